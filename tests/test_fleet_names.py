"""Names on the broker: whatever models are called, every order is in one lane, and every lane has one consumer."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acomfy.fleet.names import ANY_MODEL, HIGHEST, LOWEST, Lane, Names, check_token, lane_of, main_model, model_token
from acomfy.fleet.streams import consumer_config, loader_of
from acomfy.placement import NOTHING, Need, read_need

from . import graphs
from .conftest import FUZZ

NAMES = Names()
HOSTILE = [
    "sd xl.base 1.0.safetensors",
    "a>b*c.d.ckpt",
    "модель.safetensors",
    "日本語/模型.gguf",
    "SDXL/a.safetensors",
    "SDXL\\a.safetensors",
    "Flux/a.safetensors",
    "a.safetensors",
    "A.safetensors",
    "x" * 300 + "1.ckpt",
    "x" * 300 + "2.ckpt",
    "\ud800.safetensors",
    "\udfff.safetensors",
    "\x00\r\n\t.ckpt",
    "...",
    "/",
    "-",
    "$JS.API.>",
    " ",
    "*",
    ">",
]

tokens = st.text("aZ09_-", min_size=1, max_size=64)
models = st.sampled_from(HOSTILE) | st.text(st.characters(), max_size=60)
lanes = st.builds(Lane.of, tokens, st.integers(LOWEST, HIGHEST), models.map(model_token))


def is_subject_token(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) is not None


# --- Models ----------------------------------------------------------------------------------------------------------


def test_no_two_models_have_one_token_however_alike_they_are() -> None:
    found = {model_token(name): name for name in HOSTILE}
    assert len(found) == len(HOSTILE)
    assert all(is_subject_token(token) for token in found)
    assert ANY_MODEL not in found


def test_a_token_can_be_read_by_a_person() -> None:
    assert model_token("SDXL/sd_xl base-1.0.safetensors").startswith("sd_xl_base-1_0_safetensors-")
    assert model_token("") == ANY_MODEL


@settings(max_examples=40 * FUZZ)
@given(models)
def test_whatever_a_model_is_called_its_token_can_stand_in_a_subject(name: str) -> None:
    assert is_subject_token(model_token(name))
    assert (model_token(name) == ANY_MODEL) == (not name)


def loader(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def model_of(graph: dict[str, Any]) -> str:
    return main_model(read_need(graph))


def test_the_main_model_is_the_checkpoint_whatever_else_is_loaded() -> None:
    graph = graphs.sampled()
    assert model_of(graph) == "v1-5-pruned-emaonly.safetensors"
    graph["20"] = loader("LoraLoader", lora_name="a.safetensors", model=["4", 0], clip=["4", 1])
    graph["21"] = loader("UpscaleModelLoader", model_name="0-up.pth")
    graph["22"] = loader("VAELoader", vae_name="0-vae.safetensors")
    graph["23"] = loader("ControlNetLoader", control_net_name="0-net.safetensors")
    assert model_of(graph) == "v1-5-pruned-emaonly.safetensors"


def test_without_a_checkpoint_it_is_the_diffusion_model() -> None:
    graph = {
        "1": loader("DualCLIPLoader", clip_name1="a.safetensors", clip_name2="b.safetensors", type="flux"),
        "2": loader("VAELoader", vae_name="c.safetensors"),
        "3": loader("UNETLoader", unet_name="z/flux.safetensors", weight_dtype="default"),
    }
    assert model_of(graph) == "z/flux.safetensors"


def test_of_two_alike_it_is_always_the_same_one_in_whatever_order_they_stand() -> None:
    low, high = loader("UNETLoader", unet_name="low.safetensors"), loader("UNETLoader", unet_name="high.safetensors")
    assert model_of({"1": low, "2": high}) == model_of({"1": high, "2": low}) == "high.safetensors"


def test_a_lane_tells_how_its_model_is_loaded_but_is_the_same_however_that_is() -> None:
    graph = {
        "1": loader("B", ckpt_name="x/a.ckpt"),
        "2": loader("A", ckpt_name="x/a.ckpt"),
        "3": loader("C", vae_name="0.pt"),
    }
    lane = lane_of("default", 3, read_need(graph))
    assert (lane.priority, lane.model, lane.loader) == (3, model_token("x/a.ckpt"), ("A", "ckpt_name", "x/a.ckpt"))
    assert lane == Lane.parse(NAMES.lane(lane)) and hash(lane) == hash(Lane.of("default", 3, lane.model))
    assert lane_of("default", 0, NOTHING) == Lane.of("default", 0)
    assert lane_of("default", 0, NOTHING).loader is None
    with pytest.raises(ValueError, match="priority"):
        lane_of("default", 10, NOTHING)


def test_a_prompt_without_models_or_with_loras_alone_has_none() -> None:
    assert model_of(graphs.saved()) == ""
    assert model_of({"1": loader("LoraLoader", lora_name="a.safetensors", model=["2", 0])}) == ""
    assert main_model(NOTHING) == ""
    assert model_token(model_of(graphs.saved())) == ANY_MODEL


def test_a_file_that_is_no_main_model_is_better_than_none() -> None:
    assert model_of({"1": loader("VAELoader", vae_name="c.safetensors")}) == "c.safetensors"


@settings(max_examples=40 * FUZZ)
@given(st.frozensets(st.tuples(models, st.sampled_from(["ckpt_name", "lora_name", "x"]), models), max_size=5))
def test_whatever_is_needed_the_main_model_is_one_of_the_files(needed: frozenset[tuple[str, str, str]]) -> None:
    files = frozenset(value for _, name, value in needed if name != "lora_name")
    found = main_model(Need(models=needed, files=files))
    assert found in files if files else found == ""


# --- Lanes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40 * FUZZ)
@given(lanes, tokens.map(str.lower))
def test_a_lane_is_read_back_from_its_filter_subject(lane: Lane, name: str) -> None:
    names = Names(name)
    assert Lane.parse(names.lane(lane)) == lane
    assert Lane.parse(names.job(lane, "id")) is None


@settings(max_examples=40 * FUZZ)
@given(st.lists(lanes, max_size=5, unique=True))
def test_every_lane_has_a_consumer_of_its_own_with_a_name_that_nats_takes(found: list[Lane]) -> None:
    names = [lane.consumer for lane in found]
    assert len(set(names)) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name) for name in names)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "acomfy.jobs.>",
        "acomfy.jobs.default.10.-.>",
        "acomfy.jobs.default.10.-",
        "acomfy.jobs.default.7.-.*",
        "acomfy.jobs.default.00.-.*",
        "acomfy.jobs.default.20.-.*",
        "acomfy.jobs.default.\u0661\u0660.-.*",
        "acomfy.jobs.*.10.-.*",
        "acomfy.dead.default.10.-.*",
        "acomfy.jobs.a.b.10.-.*",
        "acomfy.jobs.default.10.-.*\n",
    ],
)
def test_a_subject_of_no_lane_is_none(text: str) -> None:
    assert Lane.parse(text) is None


@settings(max_examples=40 * FUZZ)
@given(st.from_regex(r"a\.jobs\.[a*.]{1,4}\.[0-9]{1,3}\.[-x.>]{1,3}\.[*x>]\n?", fullmatch=True))
def test_whatever_is_read_as_a_lane_has_that_very_subject(text: str) -> None:
    lane = Lane.parse(text)
    assert lane is None or Names("a").lane(lane) == text


def test_lanes_sort_by_group_and_the_most_urgent_first() -> None:
    found = [
        Lane.of("b", 9, "x"),
        Lane.of("a", -9, "x"),
        Lane.of("a", 0, "y"),
        Lane.of("a", 0, "x"),
        Lane.of("a", 9, "x"),
    ]
    assert [str(lane) for lane in sorted(found)] == ["a.01.x", "a.10.x", "a.10.y", "a.19.x", "b.01.x"]
    assert [lane.priority for lane in sorted(found)] == [9, 0, 0, -9, 9]


@pytest.mark.parametrize("priority", [10, -10, 1.0, "1", None, float("nan")])
def test_a_priority_that_is_none_is_refused(priority: Any) -> None:
    with pytest.raises(ValueError, match="priority is an integer from -9 to 9"):
        Lane.of("default", priority, ANY_MODEL)


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "a.b", "a b", "*", ">", "a\n", "x" * 65, "\u00e9", None, 3, ["a"]])
def test_what_cannot_be_a_part_of_a_subject_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="1 to 64 letters, digits"):
        check_token("the group", value)
    with pytest.raises(ValueError, match="group is"):
        Lane.of(value, 0, ANY_MODEL)


def test_fleets_whose_names_differ_in_case_alone_would_share_their_streams_and_are_refused() -> None:
    with pytest.raises(ValueError, match="no capitals; take 'prod'"):
        Names("Prod")
    assert Names("prod").jobs == "PROD_JOBS"


def test_the_subjects_of_the_queue_are_matched_by_the_filters_that_stand_for_them() -> None:
    lane = Lane.of("gpu", 2, model_token("a.ckpt"))
    job = NAMES.job(lane, "id-1")
    for pattern in (NAMES.lane(lane), NAMES.any_lane("id-1"), "acomfy.jobs.>"):
        assert matches(pattern, job)
    assert not matches(NAMES.lane(Lane.of("gpu", 1, lane.model)), job)
    assert not matches(NAMES.any_lane("id-2"), job)
    assert matches(NAMES.any_dead_letter("id-1"), NAMES.dead_letter("gpu", "id-1"))
    assert matches(NAMES.wakes("gpu"), NAMES.wake(lane))
    others = [
        NAMES.cancel("i"),
        NAMES.listen("i"),
        NAMES.events("i"),
        NAMES.started("i"),
        NAMES.ping("i"),
        NAMES.wake(lane),
        NAMES.dead_letter("gpu", "i"),
    ]
    assert len(set(others)) == len(others)
    assert not any(matches("acomfy.jobs.>", subject) for subject in others)


@pytest.mark.parametrize("model", HOSTILE)
def test_a_lane_s_consumer_tells_how_its_model_is_loaded_or_nothing_that_is_not_true(model: str) -> None:
    loader = ("CheckpointLoaderSimple", "ckpt_name", model)
    config = consumer_config(NAMES, Lane.of("gpu", 0, model_token(model), loader), 30.0)
    assert loader_of(config) == (None if "\ud800" in model or "\udfff" in model else loader)


def test_a_model_s_name_that_a_broker_would_refuse_is_not_told_to_it() -> None:
    loader = ("CheckpointLoaderSimple", "ckpt_name", "x" * 200_000)
    assert consumer_config(NAMES, Lane.of("gpu", 0, "x", loader), 30.0).metadata is None


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject is one of those that a pattern of NATS stands for."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, found = wanted[:-1], found[: len(wanted) - 1]
    return len(wanted) == len(found) and all(a in ("*", b) for a, b in zip(wanted, found, strict=True))

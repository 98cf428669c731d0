"""Workflows edited by method: each edit gives another workflow, shares the rest, and leaves the first as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.errors import WorkflowError
from acomfy.workflow import Link, Workflow

from .definitions import object_info

INFO = object_info()


def graph() -> dict[str, Any]:
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 5,
                "steps": 20,
                "cfg": 8.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}, "_meta": {"title": "Pos"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}, "_meta": {"title": "Neg"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    }


@pytest.fixture
def workflow() -> Workflow:
    return Workflow(graph())


EDITS: list[Callable[[Workflow], Workflow]] = [
    lambda workflow: workflow.replace({"3.seed": 6}),
    lambda workflow: workflow.add("PreviewImage", {"images": ["8", 0]}),
    lambda workflow: workflow.remove("9"),
    lambda workflow: workflow.bypass("8", object_info=INFO),
    lambda workflow: workflow.rewire("6", "7"),
    lambda workflow: workflow.insert_lora("a.safetensors"),
    lambda workflow: workflow.randomize_seeds(random.Random(1), INFO),
]


@pytest.mark.parametrize("change", EDITS)
def test_an_edit_leaves_the_workflow_as_it_is_and_shares_the_rest(
    change: Callable[[Workflow], Workflow], workflow: Workflow
) -> None:
    other = change(workflow)
    assert workflow == graph() and other != workflow
    shared = [node_id for node_id in workflow if other._nodes.get(node_id) is workflow._nodes[node_id]]
    assert "5" in shared and len(shared) >= 3
    for node in other.values():
        node["inputs"].clear()
    assert workflow == graph()


# --- Links and walks -----------------------------------------------------------------------------------------------


def test_a_node_knows_who_takes_its_outputs(workflow: Workflow) -> None:
    assert workflow.find("4").outputs == [
        Link("4", 0, "3", "model"),
        Link("4", 1, "6", "clip"),
        Link("4", 1, "7", "clip"),
        Link("4", 2, "8", "vae"),
    ]
    assert workflow.find("9").outputs == []


def test_all_links_are_listed_and_lists_that_are_none_are_not(workflow: Workflow) -> None:
    workflow["9"]["inputs"] |= {
        "size": [1, 2],
        "names": {"__value__": ["3", 0]},
        "three": ["3", 0, 1],
        "gone": ("x", 1),
    }
    assert len(workflow.links()) == 10
    assert workflow.links()[-2:] == [Link("8", 0, "9", "images"), Link("x", 1, "9", "gone")]


def test_walks_give_the_nearest_first(workflow: Workflow) -> None:
    assert [node.node_id for node in workflow.find("8").upstream()] == ["3", "4", "6", "7", "5"]
    assert [node.node_id for node in workflow.find("Pos").downstream()] == ["3", "8", "9"]
    assert workflow.find("4").upstream() == []
    workflow.find("8").upstream()[0].inputs["seed"] = 7
    assert workflow["3"]["inputs"]["seed"] == 7


def test_a_walk_ends_in_a_graph_with_a_cycle_and_where_a_node_is_missing(workflow: Workflow) -> None:
    workflow["4"]["inputs"]["again"] = ["9", 0]
    workflow["5"]["inputs"]["width"] = ["77", 0]
    assert {node.node_id for node in workflow.find("3").upstream()} == {"4", "5", "6", "7", "8", "9"}
    assert {node.node_id for node in workflow.find("3").downstream()} == {"4", "6", "7", "8", "9"}


# --- Queries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["3", "4", "5", "6", "7", "8", "9"]),
        ({"name": "3"}, ["3"]),
        ({"name": "CLIPTextEncode"}, ["6", "7"]),
        ({"name": "Pos"}, ["6"]),
        ({"name": "none"}, []),
        ({"class_type": "*Image"}, ["5", "9"]),
        ({"class_type": "KSampler"}, ["3"]),
        ({"class_type": "KSampl"}, []),
        ({"title": "*e*"}, ["7"]),
        ({"title": ""}, ["3", "4", "5", "8", "9"]),
        ({"inputs": {"text": ...}}, ["6", "7"]),
        ({"inputs": {"text": "a fox", "clip": ("4", 1)}}, ["6"]),
        ({"class_type": "CLIP*", "inputs": {"text": ""}}, ["7"]),
    ],
)
def test_nodes_are_found_by_what_they_are(query: Any, found: list[str], workflow: Workflow) -> None:
    assert [node.node_id for node in workflow.find_all(**query)] == found


def test_brackets_in_a_title_are_no_pattern(workflow: Workflow) -> None:
    workflow["3"]["_meta"] = {"title": "[base] (1.5)?"}
    assert [node.node_id for node in workflow.find_all(title="[base] (1.5)?")] == ["3"]
    assert [node.node_id for node in workflow.find_all(title="[base]*")] == ["3"]


# --- Adding and removing -------------------------------------------------------------------------------------------


def test_a_node_is_added_under_the_next_number_or_a_chosen_id(workflow: Workflow) -> None:
    assert workflow.free_id() == "10"
    more = workflow.add("PreviewImage", {"images": ("8", 0)}, title="Look").add("A", node_id="mine")
    assert more["10"] == {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}, "_meta": {"title": "Look"}}
    assert more["mine"] == {"class_type": "A", "inputs": {}}
    assert Workflow({}).free_id() == "1"
    assert Workflow({"٣": graph()["4"], "12:7": graph()["4"], "9" * 40: graph()["4"]}).free_id() == "1"
    for malformed in ({"class_type": 5}, {"class_type": "A", "inputs": [1]}, {"class_type": "A", "node_id": 5}):
        with pytest.raises(WorkflowError):
            workflow.add(**malformed)
    with pytest.raises(WorkflowError, match=r"there is a node 3 already: node 3 \(KSampler\)"):
        workflow.add("A", node_id="3")


def test_a_removed_node_takes_the_inputs_with_it_that_were_linked_to_it(workflow: Workflow) -> None:
    fewer = workflow.remove("4", "Neg", "SaveImage")
    assert list(fewer) == ["3", "5", "6", "8"]
    assert fewer["6"]["inputs"] == {"text": "a fox"}
    assert not {"model", "negative"} & set(fewer["3"]["inputs"])
    with pytest.raises(WorkflowError, match="no node has the id, title or class 'x'"):
        workflow.remove("9", "x")
    assert workflow.remove() == workflow


# --- Rewiring ------------------------------------------------------------------------------------------------------


def test_an_output_is_replaced_by_another_for_all_or_for_some(workflow: Workflow) -> None:
    added = workflow.add("CLIPSetLastLayer", {"clip": ["4", 1]}, node_id="10")
    everywhere = added.rewire(("4", 1), "10")
    assert [link.target for link in everywhere.find("10").outputs] == ["6", "7", "10"]
    some = added.rewire(("4", 1), ("CLIPSetLastLayer", 0), only=["Pos", "7"])
    assert some["10"]["inputs"] == {"clip": ["4", 1]}
    assert some["6"]["inputs"]["clip"] == some["7"]["inputs"]["clip"] == ["10", 0]
    assert some["8"]["inputs"] == graph()["8"]["inputs"]


@pytest.mark.parametrize("source", [("4",), ("4", "0"), (4, 0), ["4", 0, 0], ("4", -1), ("4", True)])
def test_an_output_that_is_written_otherwise_is_refused(source: Any, workflow: Workflow) -> None:
    with pytest.raises(WorkflowError, match=r"write it as \(NODE, SLOT\)"):
        workflow.rewire(source, ("4", 0))


# --- Bypassing -----------------------------------------------------------------------------------------------------


def test_a_bypassed_node_passes_through_what_has_the_type(workflow: Workflow) -> None:
    lora = workflow.insert_lora("a.safetensors", node_id="10")
    assert lora != workflow
    assert lora.bypass("10", object_info=INFO) == workflow


def test_nodes_that_are_bypassed_together_are_followed_through(workflow: Workflow) -> None:
    loras = workflow.insert_lora("a.safetensors", node_id="10").insert_lora("b.safetensors", node_id="11")
    assert loras.bypass("10", "11", object_info=INFO) == workflow
    assert loras.bypass("11", object_info=INFO) == workflow.insert_lora("a.safetensors", node_id="10")


def test_where_nothing_of_the_type_goes_in_the_input_goes(workflow: Workflow) -> None:
    decoded = workflow.bypass("8", object_info=INFO)
    assert decoded["9"]["inputs"] == {"filename_prefix": "x"}
    passed = workflow.bypass("3", object_info=INFO)
    assert passed["8"]["inputs"]["samples"] == ["5", 0]


def test_a_bypass_takes_the_input_at_the_same_place_first() -> None:
    nodes = {
        "1": {"class_type": "EmptyImage", "inputs": {}},
        "2": {"class_type": "EmptyImage", "inputs": {}},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    }
    assert Workflow(nodes).bypass("3", object_info=INFO)["4"]["inputs"]["images"] == ["1", 0]
    del nodes["3"]["inputs"]["image1"]  # type: ignore[attr-defined]
    assert Workflow(nodes).bypass("3", object_info=INFO)["4"]["inputs"] == {}  # no second try


def test_a_bypass_of_a_cycle_ends(workflow: Workflow) -> None:
    nodes = {str(one): {"class_type": "LatentUpscale", "inputs": {"samples": [str(1 - one), 0]}} for one in (0, 1)}
    nodes["2"] = {"class_type": "VAEDecode", "inputs": {"samples": ["0", 0]}}
    assert Workflow(nodes).bypass("0", "1", object_info=INFO) == {"2": {"class_type": "VAEDecode", "inputs": {}}}


def test_a_bypass_needs_to_know_the_class(workflow: Workflow) -> None:
    unknown = workflow.add("NoSuchNode", node_id="10")
    with pytest.raises(WorkflowError, match="the server has no class 'NoSuchNode'") as problem:
        unknown.bypass("10", object_info=INFO)
    assert problem.value.node_id == "10"


# --- LoRA ----------------------------------------------------------------------------------------------------------


def test_a_lora_stands_between_the_model_and_all_that_take_it(workflow: Workflow) -> None:
    lora = workflow.insert_lora("a.safetensors", 0.8, title="Style")
    assert lora["10"] == {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "a.safetensors",
            "strength_model": 0.8,
            "strength_clip": 0.8,
            "model": ["4", 0],
            "clip": ["4", 1],
        },
        "_meta": {"title": "Style"},
    }
    assert lora["3"]["inputs"]["model"] == ["10", 0]
    assert lora["6"]["inputs"]["clip"] == lora["7"]["inputs"]["clip"] == ["10", 1]
    assert lora["8"]["inputs"]["vae"] == ["4", 2]
    assert workflow.insert_lora("a", 1, 0.5)["10"]["inputs"]["strength_clip"] == 0.5


def test_loras_are_put_in_one_after_the_other(workflow: Workflow) -> None:
    two = workflow.insert_lora("a", node_id="a").insert_lora("b", node_id="b")
    assert two["b"]["inputs"]["model"] == ["4", 0] and two["a"]["inputs"]["model"] == ["b", 0]
    assert two["3"]["inputs"]["model"] == ["a", 0] and two["6"]["inputs"]["clip"] == ["a", 1]


def test_a_lora_for_the_model_alone(workflow: Workflow) -> None:
    lora = workflow.insert_lora("a", clip=False)
    assert lora["10"] == {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"lora_name": "a", "strength_model": 1.0, "model": ["4", 0]},
    }
    assert lora["6"] == workflow["6"]
    del workflow["6"], workflow["7"]
    assert workflow.insert_lora("a")["10"]["class_type"] == "LoraLoaderModelOnly"


def test_a_model_and_a_clip_from_different_nodes(workflow: Workflow) -> None:
    split = workflow.add("UNETLoader", node_id="10").add("DualCLIPLoader", node_id="11")
    split = split.rewire(("4", 0), "10").rewire(("4", 1), "11")
    lora = split.insert_lora("a", node_id="12")
    assert lora["12"]["inputs"] | {"model": ["10", 0], "clip": ["11", 0]} == lora["12"]["inputs"]


def test_the_clip_of_the_models_own_loader_is_taken_when_there_are_several(workflow: Workflow) -> None:
    refiner = workflow.add("CheckpointLoaderSimple", {"ckpt_name": "refiner"}, node_id="20")
    refiner = refiner.add("CLIPTextEncode", {"text": "", "clip": ["20", 1]}, node_id="21")
    refiner = refiner.add("KSampler", {"model": ["20", 0], "positive": ["21", 0]}, node_id="22")
    patched = refiner.insert_lora("a", model="20", node_id="30")
    assert patched["30"]["inputs"]["clip"] == ["20", 1] and patched["21"]["inputs"]["clip"] == ["30", 1]
    assert patched["6"] == refiner["6"]


def test_which_model_must_be_clear(workflow: Workflow) -> None:
    second = workflow.add("UNETLoader", node_id="10").add("KSampler", {"model": ["10", 0]}, node_id="11")
    with pytest.raises(WorkflowError) as problem:
        second.insert_lora("a")
    assert str(problem.value) == (
        "which model the LoRA is for is not clear: there are several: node 4 (CheckpointLoaderSimple) slot 0, "
        "node 10 (UNETLoader) slot 0; pass model=(NODE, SLOT)"
    )
    lora = second.insert_lora("a", model="UNETLoader", clip=("4", 1), node_id="12")
    assert lora["11"]["inputs"]["model"] == ["12", 0] and lora["3"]["inputs"]["model"] == ["4", 0]
    with pytest.raises(WorkflowError, match="no input takes one"):
        Workflow({}).insert_lora("a")


def test_definitions_find_a_model_by_its_type() -> None:
    nodes = {
        "1": {"class_type": "UNETLoader", "inputs": {}},
        "2": {"class_type": "UNETLoader", "inputs": {}},
        "3": {"class_type": "ModelMergeSimple", "inputs": {"model1": ["1", 0], "model2": ["2", 0]}},
        "4": {"class_type": "KSampler", "inputs": {"model": ["3", 0]}},
    }
    workflow = Workflow(nodes)
    assert workflow.insert_lora("a")["4"]["inputs"]["model"] == ["5", 0]
    with pytest.raises(WorkflowError, match="there are several"):
        workflow.insert_lora("a", object_info=INFO)
    with pytest.raises(WorkflowError, match=r"node 1 \(UNETLoader\) slot 0, node 2"):
        workflow.insert_lora("a", object_info=INFO)


# --- Seeds ---------------------------------------------------------------------------------------------------------

SEEDED = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20}},
    "2": {"class_type": "KSamplerAdvanced", "inputs": {"noise_seed": 2}},
    "3": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
    "4": {"class_type": "RandomNoise", "inputs": {"noise_seed": ["3", 0]}},
    "5": {"class_type": "NoSuchNode", "inputs": {"seed": 5, "other": 1}},
    "6": {"class_type": "NoSuchNode", "inputs": {"seed": "text"}},
}


def test_seeds_are_what_the_definitions_make_one() -> None:
    workflow = Workflow(SEEDED)
    assert workflow.seeds(INFO) == {("1", "seed"): 1, ("2", "noise_seed"): 2, ("3", "value"): 3, ("5", "seed"): 5}
    assert workflow.seeds() == {("1", "seed"): 1, ("2", "noise_seed"): 2, ("5", "seed"): 5}


def test_a_seed_that_a_choice_brings_is_known_by_its_name_too() -> None:
    inputs = {"sampling_mode": "on", "sampling_mode.seed": 3, "seed": True}
    assert Workflow({"1": {"class_type": "TextGenerate", "inputs": inputs}}).seeds() == {("1", "sampling_mode.seed"): 3}


def test_a_number_that_is_given_out_is_a_seed_where_a_seed_takes_it() -> None:
    """PrimitiveInt has "control after generate" too, and is as often a picture's width."""
    size = {"class_type": "EmptyLatentImage", "inputs": {"width": ["7", 0], "height": ["8", 0], "batch_size": 1}}
    numbers = {one: {"class_type": "PrimitiveInt", "inputs": {"value": 512}} for one in ("7", "8", "9", "10")}
    takers = {
        "11": {"class_type": "RandomNoise", "inputs": {"noise_seed": ["8", 0]}},
        "12": {"class_type": "NoSuchNode", "inputs": {"seed": ["9", 0]}},
    }
    workflow = Workflow({**numbers, "6": size, **takers})
    assert list(workflow.seeds(INFO)) == [("8", "value"), ("9", "value")]
    assert workflow.randomize_seeds(random.Random(1), INFO)["7"]["inputs"]["value"] == 512


def test_seeds_are_drawn_anew_and_nothing_else_changes() -> None:
    workflow = Workflow(SEEDED)
    one, same = (workflow.randomize_seeds(random.Random(7), INFO) for _ in range(2))
    assert one == same != workflow
    assert one.replace({(node, name): value for (node, name), value in workflow.seeds(INFO).items()}) == workflow
    assert set(one.seeds(INFO)) == set(workflow.seeds(INFO))
    assert all(0 <= seed <= 2**50 for seed in one.seeds(INFO).values())


@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70))
def test_a_seed_is_drawn_from_the_range_that_the_server_takes(low: int, high: int) -> None:
    low, high = sorted((low, high))
    info = {"A": {"input": {"required": {"seed": ["INT", {"min": low, "max": high}]}}, "output": []}}
    workflow = Workflow({"1": {"class_type": "A", "inputs": {"seed": 1}}})
    seed = workflow.randomize_seeds(random.Random(), info)["1"]["inputs"]["seed"]
    assert low <= seed <= high
    assert seed <= max(2**50, low) and (seed >= 0 or high < 0)


def test_a_seed_that_the_editor_would_not_change_is_none() -> None:
    inputs = {
        "seed": ["INT", {"control_after_generate": False}],
        "noise_seed": ["INT", {"forceInput": True}],
        "dice": ["INT", {"control_after_generate": True}],
        "count": ["INT", {}],
        "name": [["a"], {"control_after_generate": True}],
    }
    info = {"A": {"input": {"required": inputs}, "output": []}}
    values = {"seed": 1, "noise_seed": 1, "dice": 1, "count": 1, "name": "a"}
    assert Workflow({"1": {"class_type": "A", "inputs": values}}).seeds(info) == {("1", "dice"): 1}


# --- Unseen graphs -------------------------------------------------------------------------------------------------

node_ids = st.sampled_from(["1", "2", "3", "4:1", "x", "none"])
values = st.integers() | st.text(max_size=3) | st.tuples(node_ids, st.integers(0, 3)).map(list)
graphs = st.dictionaries(
    node_ids,
    st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(["KSampler", "LoraLoader", "ImageBatch", "Reroute", "VAEDecode", "NoSuch"]),
            "inputs": st.dictionaries(st.sampled_from(["model", "clip", "samples", "images", "seed"]), values),
        }
    ),
)


@given(graphs, st.sampled_from(["1", "2", "x", "KSampler"]), st.randoms(use_true_random=False))
def test_any_graph_is_edited_or_refused_and_never_changed(graph: Any, name: str, rng: random.Random) -> None:
    workflow, before = Workflow(graph), copy.deepcopy(graph)
    edits: list[Callable[[], Workflow]] = [
        lambda: workflow.remove(name),
        lambda: workflow.bypass(name, object_info=INFO),
        lambda: workflow.rewire(name, ("2", 1)),
        lambda: workflow.insert_lora("a", object_info=INFO),
        lambda: workflow.insert_lora("a"),
        lambda: workflow.randomize_seeds(rng, INFO),
        lambda: workflow.add("A"),
    ]
    for edit in edits:
        try:
            other = edit()
        except WorkflowError:
            continue
        gone = set(workflow) - set(other)
        assert not any(link.source in gone for link in other.links())
        assert workflow == before

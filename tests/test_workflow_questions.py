"""What a workflow says of itself: the files it needs, how it differs from another, its hash, its JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.errors import PromptRejected, WorkflowError, WorkflowFormatError
from acomfy.workflow import Change, Requirement, Workflow

from . import strategies as given_by
from .definitions import object_info

INFO = object_info()


def one(class_type: str, **inputs: Any) -> Workflow:
    return Workflow({"5": {"class_type": class_type, "inputs": inputs}})


# --- Requirements --------------------------------------------------------------------------------------------------


def needed(workflow: Workflow, info: Any = INFO) -> list[tuple[str, str, str | None, bool | None]]:
    return [(need.input_name, need.value, need.folder, need.available) for need in workflow.requirements(info)]


def lora_info(*files: str) -> dict[str, Any]:
    inputs = {"required": {"lora_name": [list(files)], "strength_model": ["FLOAT", {}]}}
    return {"LoraLoader": {"input": inputs, "output": ["MODEL"]}}


def test_models_are_listed_with_their_folder_and_whether_the_server_has_them() -> None:
    info = lora_info("a.safetensors", "sub/b.safetensors")
    assert needed(one("LoraLoader", lora_name="sub/b.safetensors", strength_model=1.0), info) == [
        ("lora_name", "sub/b.safetensors", "loras", True)
    ]
    (need,) = one("LoraLoader", lora_name="c.safetensors").requirements(info)
    assert need == Requirement("5", "node 5 (LoraLoader)", "lora_name", "c.safetensors", "loras", False)
    assert str(need) == "c.safetensors in loras, missing on the server (node 5 (LoraLoader), lora_name)"


def test_a_server_without_any_file_of_the_kind_lacks_it() -> None:
    assert needed(one("LoraLoader", lora_name="c"), lora_info()) == [("lora_name", "c", "loras", False)]


def test_without_definitions_models_are_known_by_their_endings() -> None:
    workflow = one("SomeLoader", ckpt_name="a.safetensors", other="B.GGUF", text="a fox", width=5, link=["4", 0])
    assert needed(workflow, None) == [
        ("ckpt_name", "a.safetensors", "checkpoints", None),
        ("other", "B.GGUF", None, None),
    ]
    assert needed(workflow, lora_info()) == needed(workflow, None)  # a class that the server has not


@pytest.mark.parametrize(
    ("class_type", "input_name", "folder"),
    [
        ("CheckpointLoaderSimple", "ckpt_name", "checkpoints"),
        ("VAELoader", "vae_name", "vae"),
        ("UNETLoader", "unet_name", "diffusion_models"),
        ("DualCLIPLoader", "clip_name2", "text_encoders"),
        ("CLIPVisionLoader", "clip_name", "clip_vision"),
        ("UpscaleModelLoader", "model_name", "upscale_models"),
        ("ControlNetLoader", "control_net_name", "controlnet"),
        ("StyleModelLoader", "style_model_name", "style_models"),
        ("MyLoader", "what", None),
    ],
)
def test_the_folder_of_a_model_is_that_of_comfyuis_loader(class_type: str, input_name: str, folder: str | None) -> None:
    assert needed(one(class_type, **{input_name: "gone.safetensors"}))[0][2] == folder


def test_choices_that_are_no_files_are_not_required() -> None:
    assert needed(one("KSampler", sampler_name="euler", scheduler="normal", seed=5)) == []


def test_pictures_are_inputs_of_the_server() -> None:
    listed = INFO["LoadImage"]["input"]["required"]["image"][0]
    assert needed(one("LoadImage", image="mine.png")) == [("image", "mine.png", "input", "mine.png" in listed)]
    assert needed(one("LoadImage", image="a.png [output]")) == [("image", "a.png [output]", "output", None)]
    assert needed(one("LoadImage", image="")) == []


def test_embeddings_are_found_in_the_texts() -> None:
    text = "a fox, (embedding:easynegative:1.2), embedding:sub/hands"
    found = [("text", "easynegative", "embeddings", None), ("text", "sub/hands", "embeddings", None)]
    assert needed(one("CLIPTextEncode", text=text)) == needed(one("CLIPTextEncode", text=text), None) == found


# --- Checks --------------------------------------------------------------------------------------------------------


def test_a_workflow_is_checked_before_it_is_sent() -> None:
    right = Workflow(
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        }
    )
    assert right.check(INFO).ok
    wrong = right.replace({"1.width": "wide"}).add("NoSuchNode", title="Mine")
    report = wrong.check(INFO)
    assert {problem.node_id for problem in report} >= {"3"} and report.refused
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        report.raise_for_problems()
    (problem,) = right.replace({"1.width": "wide"}).check(INFO)
    assert (problem.node_id, problem.input_name) == ("1", "width")
    assert right.add("SaveImage", {}, node_id="9").check(INFO, targets=["2"], version="0.3.64").ok


# --- Differences ---------------------------------------------------------------------------------------------------


def test_a_diff_says_what_changed_in_words() -> None:
    before = Workflow(
        {
            "1": {"class_type": "A", "inputs": {"x": 1, "y": 2, "link": ["2", 0]}, "_meta": {"title": "One"}},
            "2": {"class_type": "B", "inputs": {}},
        }
    )
    after = Workflow(
        {
            "1": {"class_type": "C", "inputs": {"x": 5, "z": [1], "link": ["3", 0]}, "_meta": {"title": "Two"}},
            "3": {"class_type": "B", "inputs": {}},
        }
    )
    assert [str(change) for change in before.diff(after)] == [
        "node 2 (B) removed",
        "node 1 (C, 'Two'): class 'A' -> 'C'",
        "node 1 (C, 'Two'): title 'One' -> 'Two'",
        "node 1 (C, 'Two'): x 1 -> 5",
        "node 1 (C, 'Two'): input 'y' removed, was 2",
        "node 1 (C, 'Two'): link ['2', 0] -> ['3', 0]",
        "node 1 (C, 'Two'): input 'z' added: [1]",
        "node 3 (B) added",
    ]
    assert before.diff(after)[3] == Change("input", "1", "node 1 (C, 'Two')", "x", 1, 5)


def test_what_makes_no_difference_is_none() -> None:
    workflow = Workflow({"1": {"class_type": "A", "inputs": {"x": 8.0, "link": ("2", 0)}, "_meta": {"note": 1}}})
    other = {"1": {"inputs": {"link": ["2", 0], "x": 8}, "class_type": "A"}}
    assert workflow.diff(other) == []
    assert [change.input_name for change in workflow.diff({"1": {"class_type": "A", "inputs": {"x": True, "link": 1}}})]
    assert one("A", x=1).diff(one("A", x=True)) != []
    with pytest.raises(WorkflowFormatError):
        workflow.diff({"nodes": []})


# --- Hash ----------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_what_is_done() -> None:
    workflow = Workflow(
        {
            "1": {"class_type": "A", "inputs": {"x": 8.0, "y": ("2", 0)}, "_meta": {"title": "One"}},
            "2": {"class_type": "B", "inputs": {}},
        }
    )
    same = {"2": {"inputs": {}, "class_type": "B"}, "1": {"inputs": {"y": ["2", 0], "x": 8}, "class_type": "A"}}
    assert workflow.content_hash() == Workflow(same).content_hash()
    assert len(workflow.content_hash()) == 64
    others = [
        workflow.replace({"1.x": 8.5}),
        workflow.replace({"1.x": "8"}),
        workflow.replace({"1.y": ["2", 1]}),
        workflow.remove("2"),
        workflow.add("B"),
    ]
    hashes = {other.content_hash() for other in [workflow, *others]}
    assert len(hashes) == len(others) + 1
    assert one("A", x=1).content_hash() != one("A", x=True).content_hash()


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    workflow = one("A", text="ein Fuß 🦊 \ud800", big=2**70, link=["4", 0], none=None)
    known = "f59752bc9bb74fa05645903d5f4813c626caf88ddd94581acbad316afb320ef1"
    assert workflow.content_hash() == known


def test_what_is_no_json_has_no_hash() -> None:
    with pytest.raises(WorkflowError, match="holds nan"):
        one("A", x=float("nan")).content_hash()


numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
graphs = st.dictionaries(
    given_by.texts,
    st.builds(
        lambda class_type, inputs: {"class_type": class_type, "inputs": inputs},
        given_by.texts,
        st.dictionaries(given_by.texts, numbers | given_by.texts | st.booleans(), max_size=4),
    ),
    max_size=4,
)


@given(graphs, graphs, st.randoms(use_true_random=False))
def test_equal_hashes_and_empty_diffs_go_together(one: Any, other: Any, rng: random.Random) -> None:
    first, second = Workflow(one), Workflow(other)
    assert (first.content_hash() == second.content_hash()) == (first.diff(second) == [])
    shuffled = list(first.to_dict().items())
    rng.shuffle(shuffled)
    assert Workflow(dict(shuffled)).content_hash() == first.content_hash()
    assert first.diff(dict(shuffled)) == []


# --- JSON ----------------------------------------------------------------------------------------------------------

EXPORTED = """{
  "3": {
    "inputs": {
      "seed": 18446744073709551615,
      "cfg": 8,
      "denoise": 0.87,
      "text": "ein Fuß 🦊\\n",
      "model": [
        "4",
        0
      ],
      "empty": [],
      "none": null
    },
    "class_type": "KSampler",
    "_meta": {
      "title": "K采样器"
    }
  }
}"""


def test_what_the_editor_exported_is_written_byte_for_byte() -> None:
    assert Workflow.load(EXPORTED).to_json() == EXPORTED
    assert json.loads(Workflow.load(EXPORTED).to_json(None)) == json.loads(EXPORTED)
    assert "\n" not in Workflow.load(EXPORTED).to_json(None)


def test_json_holds_what_utf_8_can_and_refuses_what_json_cannot() -> None:
    odd = one("A", x="\ud800")
    assert odd.to_json().encode() and json.loads(odd.to_json()) == odd
    with pytest.raises(WorkflowError, match="input 'x' holds .*Path"):
        one("A", x=Path("a.png")).to_json()

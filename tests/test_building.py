"""Graphs built in Python: nodes, links and ids become the JSON that one would have written by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from acomfy import building
from acomfy.building import Node, Output, build, link
from acomfy.errors import WorkflowError
from acomfy.workflow import Workflow

ALWAYS = {"required": True}
OPTIONAL = {"required": False}
TABLE: dict[str, Any] = {
    "Loader": {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": {"name": "ckpt_name", "ways": [ALWAYS]}},
        "outputs": [["MODEL", "MODEL"], ["CLIP", "CLIP"]],
        "doc": "Load a checkpoint.",
    },
    "Sampler": {
        "class_type": "KSampler",
        "inputs": {
            "model": {"name": "model", "ways": [ALWAYS]},
            "seed": {"name": "seed", "ways": [ALWAYS | {"default": 0}]},
            "mask": {"name": "mask", "ways": [OPTIONAL]},
            "out_": {"name": "out.", "ways": [OPTIONAL]},
        },
        "outputs": [["LATENT", "LATENT"]],
    },
    "Save": {"class_type": "SaveImage", "inputs": {"images": {"name": "images", "ways": [ALWAYS]}}, "outputs": []},
    "Batch": {
        "class_type": "BatchImagesNode",
        "inputs": {
            "images": {"name": "images", "ways": [ALWAYS], "grow": ["image0", "image1", "image2"], "needed": 1},
        },
        "outputs": [["IMAGE", "IMAGE"]],
    },
    "Resize": {
        "class_type": "ResizeImageMaskNode",
        "inputs": {
            "by": {"name": "by", "ways": [ALWAYS]},
            "by_width": {
                "name": "by.width",
                "ways": [
                    {"required": True, "when": ["by", "size"], "default": 512},
                    {"required": True, "when": ["by", "match"]},
                ],
            },
            "by_crop": {"name": "by.crop", "ways": [{"required": False, "when": ["by", "size"]}]},
            "slot": {"name": "slot", "ways": [OPTIONAL]},
            "slot_inner": {"name": "slot.inner", "ways": [{"required": True, "when": ["slot"], "default": 1}]},
        },
        "outputs": [["IMAGE", "*"]],
    },
}
NODES: dict[str, Any] = building.node_classes("nodes", json.dumps(TABLE))
Loader, Sampler, Save, Batch, Resize = NODES.values()


def inputs_of(node: Node) -> Any:
    graph = build(node)
    return graph[list(graph)[-1]]["inputs"]


# --- A graph -------------------------------------------------------------------------------------------------------


def test_a_graph_is_what_one_would_have_written_by_hand() -> None:
    loader = Loader(ckpt_name="v1-5.safetensors")
    sampler = Sampler(model=loader.MODEL, seed=5, _title="Second pass")
    assert build(Save(images=sampler.LATENT)) == {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "2": {
            "class_type": "KSampler",
            "inputs": {"model": ["1", 0], "seed": 5},
            "_meta": {"title": "Second pass"},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
    }


def test_nodes_are_numbered_in_the_order_in_which_they_were_made_and_not_in_that_of_the_links() -> None:
    second, first = Loader(ckpt_name="b"), Loader(ckpt_name="a")
    workflow = build(Sampler(model=first.MODEL, mask=second.CLIP))
    assert [workflow[node_id]["inputs"].get("ckpt_name") for node_id in workflow] == ["b", "a", None]


def test_a_chosen_id_is_kept_and_no_number_is_given_twice() -> None:
    loader = Loader(ckpt_name="a")
    workflow = build(Save(images=Sampler(model=loader.MODEL, _id="1").LATENT, _id="save"))
    assert list(workflow) == ["2", "1", "save"]
    assert workflow["1"]["inputs"]["model"] == ["2", 0]


def test_an_id_that_two_nodes_have_is_refused() -> None:
    loader = Loader(ckpt_name="a", _id="1")
    with pytest.raises(WorkflowError, match="two nodes have the id '1'"):
        build(Sampler(model=loader.MODEL, _id="1"))


def test_what_is_upstream_comes_along_once_and_what_is_not_stays_away() -> None:
    loader = Loader(ckpt_name="a")
    Loader(ckpt_name="unused")
    left, right = Sampler(model=loader.MODEL), Sampler(model=loader.MODEL)
    save = Save(images=left.LATENT)
    assert len(build(save, save, Save(images=right.LATENT), loader)) == 5
    assert build() == {}


def test_building_twice_gives_equal_workflows() -> None:
    save = Save(images=Sampler(model=Loader(ckpt_name="a").MODEL).LATENT)
    assert build(save) == build(save)
    assert type(build(save)) is Workflow


def test_a_long_chain_is_no_recursion() -> None:
    node = Loader(ckpt_name="a")
    for _ in range(5000):
        node = Sampler(model=outputs(node)[0])
    assert len(build(node)) == 5001


def outputs(node: Node) -> list[Output[Any]]:
    return [value for value in vars(node).values() if isinstance(value, Output)]


def test_nodes_are_added_to_a_workflow_which_stays_as_it_is() -> None:
    workflow = Workflow({"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}}})
    more = build(Sampler(model=link("1"), mask=link("1", 1)), into=workflow)
    assert list(workflow) == ["1"] and list(more) == ["1", "2"]
    assert more["2"]["inputs"] == {"model": ["1", 0], "seed": 0, "mask": ["1", 1]}
    with pytest.raises(WorkflowError, match="is linked to node 7, which is not in the workflow"):
        build(Sampler(model=link("7")), into=workflow)
    with pytest.raises(WorkflowError, match="two nodes have the id '1'"):
        build(Loader(ckpt_name="a", _id="1"), into=workflow)


# --- Inputs --------------------------------------------------------------------------------------------------------


def test_defaults_of_required_inputs_are_sent_and_optional_inputs_are_not() -> None:
    loader = Loader(ckpt_name="a")
    assert inputs_of(Sampler(model=loader.MODEL)) == {"model": ["1", 0], "seed": 0}
    assert inputs_of(Sampler(model=loader.MODEL, mask=None, out_=0.5)) == {"model": ["1", 0], "seed": 0, "out.": 0.5}


def test_a_list_is_wrapped_so_that_the_server_does_not_take_it_for_a_link() -> None:
    assert inputs_of(Loader(ckpt_name=["a", "b"])) == {"ckpt_name": {"__value__": ["a", "b"]}}
    assert inputs_of(Loader(ckpt_name=("a", 0))) == {"ckpt_name": {"__value__": ["a", 0]}}


def test_inputs_that_no_definition_tells_are_sent_by_their_own_names() -> None:
    loader = Loader(ckpt_name="a")
    sampler = Sampler(model=loader.MODEL, _inputs={"lora 1": {"on": True}, "seed": 7, "clip": loader.CLIP})
    assert inputs_of(sampler) == {"model": ["1", 0], "seed": 7, "lora 1": {"on": True}, "clip": ["1", 1]}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Sampler(seed=1), "Sampler needs the input 'model'"),
        (lambda: Sampler(model=link("1"), sed=1), "Sampler has no input 'sed'; did you mean 'seed'"),
        (lambda: Sampler(model=link("1"), zzz=1), "it has: model, seed, mask, out_"),
        (lambda: Sampler(model=None), "needs the input 'model'"),
        (lambda: Sampler(model=Loader(ckpt_name="a")), r"takes outputs, not nodes: write .MODEL, .CLIP behind the Loa"),
        (lambda: Batch(images=[Save(images=link("1"))]), "takes outputs, not nodes: <Save node> has none"),
        (lambda: Batch(images=[link("1")] * 4), "Batch takes at most 3 images, not 4"),
        (lambda: Batch(images=[]), "Batch needs 1 images; there is no 'image0'"),
        (lambda: Batch(images={"image7": link("1")}), "images has no 'image7'; it has: image0, image1, image2"),
        (lambda: Batch(images=link("1")), "Batch takes a list of images, not Output"),
        (lambda: Batch(images="ab"), "Batch takes a list of images, not str"),
        (lambda: Resize(by="match"), "Resize needs the input 'by_width'"),
        (lambda: Resize(by="match", by_width=1, by_crop="x"), "has the input 'by_crop' only with by='size'"),
        (lambda: Resize(by="size", slot_inner=2), "has the input 'slot_inner' only with slot$"),
    ],
)
def test_a_wrong_call_says_what_would_be_right(call: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        call()


def test_a_growing_input_takes_a_list_or_names() -> None:
    image = link("1")
    one, two = ["1", 0], ["2", 1]
    base = {"1": {"class_type": "A", "inputs": {}}, "2": {"class_type": "A", "inputs": {}}}

    def sent(images: Any) -> Any:
        return build(Batch(images=images), into=base)["3"]["inputs"]

    assert sent([image, link("2", 1)]) == {"images.image0": one, "images.image1": two}
    assert sent({"image2": image, "image0": link("2", 1)}) == {"images.image2": one, "images.image0": two}
    assert sent([image, None, link("2", 1)]) == {"images.image0": one, "images.image2": two}


def test_the_inputs_behind_a_choice_come_with_it() -> None:
    assert inputs_of(Resize(by="size")) == {"by": "size", "by.width": 512}
    assert inputs_of(Resize(by="match", by_width=3)) == {"by": "match", "by.width": 3}
    assert inputs_of(Resize(by="size", by_crop="c")) == {"by": "size", "by.width": 512, "by.crop": "c"}
    assert inputs_of(Resize(by="other", slot=2)) == {"by": "other", "slot": 2, "slot.inner": 1}


# --- Nodes ---------------------------------------------------------------------------------------------------------


def test_nodes_and_outputs_have_a_short_repr_without_values() -> None:
    loader = Loader(ckpt_name="secret", _id="4")
    assert repr(loader) == "<Loader node 4>"
    assert repr(loader.CLIP) == "<Output 1 (CLIP) of <Loader node 4>>"
    assert repr(Sampler(model=loader.MODEL)) == "<Sampler node>"


def test_a_class_of_a_module_has_its_name_and_its_text() -> None:
    assert (Loader.__module__, Loader.__name__, Loader.__doc__) == ("nodes", "Loader", "Load a checkpoint.")
    assert issubclass(Loader, Node)

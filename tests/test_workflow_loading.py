"""Workflows loaded from what people have: the editor's files, pictures and films of ComfyUI, requests, other JSON."""

from __future__ import annotations

import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from acomfy.definitions import Definitions
from acomfy.errors import ProtocolError, UnknownNodes, WorkflowFormatError
from acomfy.workflow import Workflow, definitions_of

from .definitions import object_info
from .test_embedded import PROMPT as EMBEDDED
from .test_embedded import flac, glb, jpeg, mp4, opus, png, svg, webm, webp

EDITOR_FILES = sorted((Path(__file__).parent / "workflows").glob("editor_*.json"))
PROMPT = {"3": {"class_type": "KSampler", "inputs": {"seed": 5}}}
EDITOR = {"nodes": [{"id": 7, "type": "EmptyLatentImage", "widgets_values": [64, 32, 2]}], "links": [], "version": 0.4}
CONVERTED = {
    "7": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 32, "batch_size": 2},
        "_meta": {"title": "Empty Latent Image"},
    }
}


def png_of(**graphs: Any) -> bytes:
    return png({name: graph if isinstance(graph, str) else json.dumps(graph) for name, graph in graphs.items()})


# --- Files that ComfyUI wrote --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [png, webp, jpeg, flac, mp4, webm, opus, svg, glb], ids=lambda make: make.__name__)
def test_the_prompt_is_taken_from_a_file_that_comfyui_wrote(make: Any, tmp_path: Path) -> None:
    data = make()
    path = tmp_path / "no.name.that.tells"
    path.write_bytes(data)
    for source in (data, bytearray(data), path, str(path)):
        workflow = Workflow.load(source)
        assert workflow == EMBEDDED
        assert workflow.found is not None and workflow.found.format == "prompt"


def test_what_was_found_is_said() -> None:
    found = {
        "prompt in PNG": Workflow.load(png()),
        "prompt in MP4": Workflow.load(mp4()),
        "prompt in JSON": Workflow.load(json.dumps(PROMPT)),
        "prompt in dict": Workflow.load(PROMPT),
        "request for POST /prompt in JSON": Workflow.load(json.dumps({"prompt": PROMPT, "client_id": "me"})),
        "editor's workflow in JSON": Workflow.load(json.dumps(EDITOR), object_info()),
        "editor's workflow in PNG": Workflow.load(png_of(workflow=EDITOR), object_info()),
    }
    for said, workflow in found.items():
        assert str(workflow.found) == said
    assert Workflow(PROMPT).found is None
    assert Workflow.load(PROMPT).replace({"3.seed": 1}).found is None


def test_a_picture_with_both_gives_the_prompt_for_that_is_what_ran() -> None:
    assert Workflow.load(png_of(workflow=EDITOR, prompt=PROMPT)) == PROMPT
    assert Workflow.load(png_of(workflow=EDITOR, prompt=PROMPT), object_info()) == PROMPT


def test_a_picture_whose_prompt_is_broken_gives_the_workflow() -> None:
    for broken in ({}, {"3": 5}, "not json", [1]):
        assert Workflow.load(png_of(workflow=EDITOR, prompt=broken), object_info()) == CONVERTED


def test_graphs_are_known_by_their_form_and_not_by_where_they_stand() -> None:
    assert Workflow.load(png_of(workflow=PROMPT)) == PROMPT
    assert Workflow.load(png_of(prompt=EDITOR), object_info()) == CONVERTED


def test_a_picture_without_a_graph_says_so() -> None:
    for data in (png({}), png({"parameters": "a fox, Steps: 20"})):
        with pytest.raises(WorkflowFormatError, match=r"the data \(PNG\) holds neither a prompt nor a workflow"):
            Workflow.load(data)
    with pytest.raises(WorkflowFormatError, match="the data"):
        Workflow.load(png()[:60])


def test_what_the_server_noted_in_the_nodes_is_left_out() -> None:
    """Sent back, ``is_changed`` would stand for the check whether a file was changed, so that it never runs again."""
    text = '{"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "is_changed": [NaN], "_meta": {}}}'
    workflow = Workflow.load(png_of(prompt=text))
    assert workflow == {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {}}}


# --- The editor's format -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EDITOR_FILES, ids=lambda path: path.name)
def test_what_the_editor_saves_is_converted_with_the_definitions_of_the_server(path: Path, tmp_path: Path) -> None:
    saved = tmp_path / "object_info.json"
    saved.write_text(json.dumps(object_info()))
    known: list[Any] = [object_info(), Definitions(object_info()), saved, str(saved)]
    loaded = [Workflow.load(path, definitions) for definitions in known]
    assert {node["class_type"] for node in loaded[0].values()} == {"EdgeSocketless", "EdgeSink"}
    assert all(workflow == loaded[0] for workflow in loaded)
    for source in (path.read_bytes(), path.read_text(), json.loads(path.read_bytes())):
        assert Workflow.load(source, object_info()) == loaded[0]


def test_the_editors_format_without_definitions_says_what_to_do() -> None:
    with pytest.raises(WorkflowFormatError) as problem:
        Workflow.load(EDITOR)
    assert str(problem.value) == (
        "the dict holds the editor's own workflow format, and to make a prompt of it takes the node classes of the "
        "server: pass object_info=await client.api.get_object_info(), or the path of a file with it, or run `acomfy "
        "convert`; or in ComfyUI's editor choose Workflow > Export (API) and load that file"
    )
    with pytest.raises(WorkflowFormatError, match="the data holds the editor's own workflow format"):
        Workflow.load(png_of(workflow=EDITOR))


def test_unknown_classes_are_refused_or_kept() -> None:
    editor = {"nodes": [{"id": 7, "type": "NoSuchNode", "title": "Mine"}], "links": [], "version": 0.4}
    with pytest.raises(UnknownNodes, match="NoSuchNode"):
        Workflow.load(editor, object_info())
    kept = Workflow.load(editor, object_info(), keep_unknown=True)
    assert kept.find("Mine").class_type == "NoSuchNode"


def test_chance_and_the_time_come_from_the_caller() -> None:
    def node(number: int, kind: str, *values: Any) -> dict[str, Any]:
        return {"id": number, "type": kind, "widgets_values": list(values)}

    nodes = [node(1, "CLIPTextEncode", "{a|b|c|d}"), node(2, "SaveImage", "%date:yyyy-MM%")]
    editor = {"nodes": nodes, "links": [], "version": 0.4}
    now = datetime(2026, 5, 4)
    texts = {
        Workflow.load(editor, object_info(), rng=random.Random(seed), now=now)["1"]["inputs"]["text"]
        for seed in range(20)
    }
    assert texts > {"a", "b"}
    workflow = Workflow.load(editor, object_info(), now=now)
    assert (workflow["1"]["inputs"]["text"], workflow["2"]["inputs"]["filename_prefix"]) == ("a", "2026-05")
    with pytest.raises(WorkflowFormatError, match="date"):
        Workflow.load(editor, object_info())


def test_definitions_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "object_info.json"
    path.write_text("{")
    with pytest.raises(WorkflowFormatError, match=r"object_info\.json is not JSON"):
        Workflow.load(EDITOR, path)
    path.write_text(json.dumps(PROMPT))
    with pytest.raises(ProtocolError, match="workflow in API format"):
        Workflow.load(EDITOR, path)
    with pytest.raises(FileNotFoundError):
        Workflow.load(EDITOR, tmp_path / "none.json")
    assert "KSampler" in definitions_of(object_info())


# --- Requests ------------------------------------------------------------------------------------------------------


def test_the_prompt_is_taken_from_a_request() -> None:
    assert Workflow.load({"prompt": PROMPT, "client_id": "me", "extra_data": {}}) == PROMPT
    assert Workflow.load(json.dumps({"prompt": EDITOR}), object_info()) == CONVERTED
    odd = {"prompt": {"class_type": "A", "inputs": {}}}
    assert Workflow.load(odd) == odd

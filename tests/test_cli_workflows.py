"""The commands about workflows: inspect, check, convert, nodes, and a run of what the editor saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from acomfy.cli.app import app
from acomfy.cli.arguments import Variants, seed_inputs
from acomfy.cli.trees import Trees
from acomfy.definitions import Definitions
from acomfy.workflow import Workflow

from .definitions import object_info
from .test_embedded import mp4, png

EDITOR: dict[str, Any] = {
    "nodes": [
        {"id": 1, "type": "EmptyImage", "widgets_values": [64, 32, 1, 255], "outputs": [{"links": [1]}]},
        {"id": 2, "type": "SaveImage", "widgets_values": ["mine"], "inputs": [{"name": "images", "link": 1}]},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}
PROMPT: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "mine", "images": ["1", 0]}},
}


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACOMFY_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    Path("editor.json").write_text(json.dumps(EDITOR))
    Path("object_info.json").write_text(json.dumps(object_info()))
    Path("workflow.png").write_bytes(png({"workflow": json.dumps(EDITOR)}))
    Path("model.ckpt").write_bytes(b"\x80\x02}q\x00" + bytes(1000))
    Path("empty.json").write_text("")
    Path("latin.json").write_bytes('{"1": "é"}'.encode("latin-1"))
    Path("deep.json").write_text("[" * 100_000)
    Path("both.png").write_bytes(png({"workflow": json.dumps(EDITOR), "prompt": json.dumps(PROMPT)}))


def acomfy(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


CLASSES = ("--object-info", "object_info.json")


# --- convert -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["editor.json", "workflow.png"])
@pytest.mark.parametrize("classes", [CLASSES, ("--simulate",)], ids=["file", "simulator"])
def test_what_the_editor_saved_is_converted(source: str, classes: tuple[str, ...]) -> None:
    done = acomfy("convert", source, "-o", "api.json", *classes)
    assert done.exit_code == 0 and done.stdout == ""
    assert "editor's workflow in" in done.stderr and "2 nodes" in done.stderr
    assert not Workflow.load("api.json").diff(Workflow.load("editor.json", "object_info.json"))
    assert Path("api.json").read_text() == Workflow.load("api.json").to_json() + "\n"


@pytest.mark.parametrize("out", [(), ("-o", "-")])
def test_a_prompt_is_taken_out_of_a_picture_without_any_server(out: tuple[str, ...]) -> None:
    done = acomfy("convert", "both.png", "--server", "http://127.0.0.1:1", *out)
    assert (done.exit_code, json.loads(done.stdout)) == (0, PROMPT)
    assert done.stderr == "acomfy: both.png: prompt in PNG, 2 nodes\n"


def test_json_is_utf_8_whatever_the_terminal_speaks() -> None:
    """A prompt must not lose its letters on the way into a file, as in LANG=C or on Windows."""
    graph = {"1": {"class_type": "A", "inputs": {"text": "Füchse 模 😀"}}}
    Path("text.json").write_text(json.dumps(graph))
    command = [sys.executable, "-m", "acomfy", "convert", "text.json"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60)
    assert json.loads(done.stdout) == graph


def test_unknown_classes_are_named_or_kept() -> None:
    odd = {"nodes": [{"id": 7, "type": "NoSuchNode", "title": "Mine"}], "links": [], "version": 0.4}
    Path("odd.json").write_text(json.dumps(odd))
    done = acomfy("convert", "odd.json", *CLASSES)
    assert done.exit_code == 2
    assert "NoSuchNode" in done.stderr and "convert --keep-unknown" in done.stderr
    done = acomfy("convert", "odd.json", "--keep-unknown", *CLASSES)
    assert json.loads(done.stdout)["7"]["class_type"] == "NoSuchNode"


def through_a_pipe(tmp_path: Path, content: str) -> str:
    """Give a path that can be read but once, as ``<(...)`` of a shell is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=(content,), daemon=True).start()
    return str(pipe)


@pytest.mark.parametrize("command", ["convert", "inspect", "check"])
@pytest.mark.parametrize("way", ["stdin", "pipe"])
def test_a_workflow_comes_through_a_pipe_too(command: str, way: str, tmp_path: Path) -> None:
    text = json.dumps(EDITOR)
    source = "-" if way == "stdin" else through_a_pipe(tmp_path, text)
    done = CliRunner().invoke(app, [command, source, *CLASSES], input=text)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == acomfy(command, "editor.json", *CLASSES).stdout.replace("editor.json", source)


def test_a_pipe_is_shown_without_a_server_as_a_file_is(tmp_path: Path) -> None:
    source = through_a_pipe(tmp_path, json.dumps(EDITOR))
    assert acomfy("inspect", source).stdout == acomfy("inspect", "editor.json").stdout.replace("editor.json", source)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("convert", "editor.json", "--server", "http://127.0.0.1:1"), 3, "no answer from http://127.0.0.1:1"),
        (("convert", "editor.json", "--server", "ftp://x"), 2, "--server"),
        (("convert", "editor.json", "--simulate", *CLASSES), 2, "--simulate and --object-info exclude each other"),
        (("check", "editor.json", "--server", "http://127.0.0.1:1"), 3, "no answer from"),
        (("convert", "editor.json", "--object-info", "none.json"), 2, "cannot read 'none.json'"),
        (
            ("convert", "editor.json", "--object-info", "editor.json"),
            2,
            "editor.json: this is a workflow of the editor",
        ),
        (("convert", "editor.json", "-o", "no/such/folder.json", *CLASSES), 2, "cannot write no/such/folder.json"),
        (("convert", "none.json"), 2, "there is no file 'none.json'"),
        (("convert", "both.png", "-o", "./both.png"), 2, "--out both.png: that is the file it is read from"),
        (("inspect", "object_info.json"), 2, "class_type"),
        (("inspect", "model.ckpt"), 2, "model.ckpt holds no workflow: it begins neither as JSON does nor"),
        (("inspect", "empty.json"), 2, "empty.json holds no workflow: it is empty"),
        (("inspect", "latin.json"), 2, "latin.json is not JSON: byte 7 is no utf-8 text"),
        (("inspect", "deep.json"), 2, "deep.json is not JSON that can be read: it is nested too deeply"),
        (("nodes", "-o", "class.py", *CLASSES), 2, "Python imports no module of that name"),
        (("nodes", "-o", "my-nodes.py", *CLASSES), 2, "Python imports no module of that name"),
        (("nodes", "-o", "nodes.txt", *CLASSES), 2, "Python imports no module of that name"),
        (("nodes", "-o", "no/such/nodes.py", *CLASSES), 2, "cannot write no/such/nodes.py"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_a_code(args: tuple[str, ...], code: int, said: str) -> None:
    done = acomfy(*args)
    assert done.exit_code == code
    assert said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


# --- check ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [CLASSES, ("--simulate",)], ids=["file", "simulator"])
@pytest.mark.parametrize("source", ["editor.json", "both.png"])
def test_a_workflow_that_runs_passes(source: str, classes: tuple[str, ...]) -> None:
    done = acomfy("check", source, *classes)
    assert (done.exit_code, done.stdout) == (0, f"{source}: the server would take the prompt\n")


def test_what_the_server_would_refuse_is_said_before_it_is_sent() -> None:
    wrong = {**PROMPT, "1": {"class_type": "EmptyImage", "inputs": {**PROMPT["1"]["inputs"], "width": "wide"}}}
    Path("wrong.json").write_text(json.dumps(wrong))
    done = acomfy("check", "wrong.json", *CLASSES)
    assert done.exit_code == 1
    assert "would refuse the prompt" in done.stdout and "node 1 (EmptyImage), input 'width'" in done.stdout
    report = json.loads(acomfy("check", "wrong.json", "--json", *CLASSES).stdout)
    assert (report["ok"], report["dropped_outputs"]) == (False, ["2"])
    assert (report["problems"][0]["node_id"], report["problems"][0]["input_name"]) == ("1", "width")


@pytest.mark.parametrize("source", ["odd.json", "odd_api.json"])
def test_unknown_classes_are_refused_with_all_else_that_is_wrong_in_either_format(source: str) -> None:
    odd = [{"id": 7, "type": "NoSuchNode", "title": "Mine"}, {"id": 8, "type": "EmtpyImage"}]
    Path("odd.json").write_text(json.dumps({"nodes": odd, "links": [], "version": 0.4}))
    Path("odd_api.json").write_text(acomfy("convert", "odd.json", "--keep-unknown", *CLASSES).stdout)
    done = acomfy("check", source, *CLASSES)
    assert done.exit_code == 1
    assert "node 7 (NoSuchNode, 'Mine')" in done.stdout and "did you mean 'EmptyImage'?" in done.stdout


# --- inspect -------------------------------------------------------------------------------------------------------

TREE = """\
both.png: prompt in PNG; 2 nodes, 1 link

2 SaveImage
│ filename_prefix=mine
└ images: 1 EmptyImage
    width=64, height=32, batch_size=1, color=255

sizes:
  64 x 32, batch_size 1 (node 1 (EmptyImage))
"""


def test_a_workflow_is_shown_as_a_tree() -> None:
    done = acomfy("inspect", "both.png")
    assert (done.exit_code, done.stdout, done.stderr) == (0, TREE, "")


def test_models_seeds_and_shared_nodes_are_shown() -> None:
    shown = acomfy("inspect", "text_to_image").stdout
    assert "├ model: 4 CheckpointLoaderSimple 'Checkpoint'\n" in shown
    assert "clip: 4 CheckpointLoaderSimple 'Checkpoint' [1], see above\n" in shown
    assert "  v1-5-pruned-emaonly.safetensors in checkpoints (node 4" in shown
    assert "  8566257 (node 3 (KSampler, 'Sampler'), seed)\n" in shown
    with_names = acomfy("inspect", "text_to_image", *CLASSES).stdout
    assert "clip: 4 CheckpointLoaderSimple 'Checkpoint' CLIP, see above\n" in with_names
    assert "v1-5-pruned-emaonly.safetensors in checkpoints, missing on the server" in with_names
    assert max(map(len, shown.split("models and files")[0].splitlines())) <= 80


def test_the_editors_format_is_shown_without_a_server_with_a_word_on_what_is_missing() -> None:
    shown = acomfy("inspect", "editor.json").stdout
    assert "└ images: 1 EmptyImage" in shown and "note: read without the server's node classes" in shown
    assert "value 1=64, value 2=32, value 3=1, value 4=255" in shown and "filename_prefix=mine" in shown
    shown = acomfy("inspect", "workflow.png", *CLASSES).stdout
    assert "width=64, height=32" in shown and "note:" not in shown


def test_common_classes_and_seeds_are_known_without_a_server_also_in_subgraphs() -> None:
    inner = [
        {"id": 3, "type": "KSampler", "widgets_values": [7, "randomize", 20, 8, "euler", "normal", 1]},
        {"id": 4, "type": "Odd", "widgets_values": ["a", 9, "fixed", "b.safetensors"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 256, 2]},
    ]
    subgraph = {"id": "sub", "nodes": inner, "links": [], "inputs": [], "outputs": []}
    instance = {"id": 12, "type": "sub", "widgets_values": []}
    editor = {"nodes": [instance], "links": [], "definitions": {"subgraphs": [subgraph]}, "version": 0.4}
    Path("subgraph.json").write_text(json.dumps(editor))
    shown = acomfy("inspect", "subgraph.json").stdout
    assert "12:3 KSampler\n  seed=7, steps=20, cfg=8, sampler_name=euler, scheduler=normal, denoise=1\n" in shown
    assert "12:4 Odd\n  value 1=a, seed=9, value 4=b.safetensors\n" in shown
    assert "  b.safetensors (node 12:4 (Odd), value 4)\n" in shown
    assert "  7 (node 12:3 (KSampler), seed)\n  9 (node 12:4 (Odd), seed)\n" in shown
    assert "  512 x 256, batch_size 2 (node 12:5 (EmptyLatentImage))\n" in shown


def test_inspect_tells_programs_too() -> None:
    Path("film.mp4").write_bytes(mp4({"prompt": json.dumps(PROMPT)}))
    told = json.loads(acomfy("inspect", "film.mp4", "--json").stdout)
    assert (told["container"], told["format"], told["nodes"]) == ("mp4", "prompt", PROMPT)
    assert told["sizes"] == [{"node_id": "1", "width": 64, "height": 32, "batch_size": 1}]
    told = json.loads(acomfy("inspect", "text_to_image", "--json", *CLASSES).stdout)
    assert told["files"] == [
        {
            "node_id": "4",
            "input_name": "ckpt_name",
            "value": "v1-5-pruned-emaonly.safetensors",
            "folder": "checkpoints",
            "available": False,
        }
    ]
    assert told["seeds"] == [{"node_id": "3", "input_name": "seed", "value": 8566257}]


def test_what_a_terminal_would_take_for_an_order_is_escaped() -> None:
    evil = {"1": {"class_type": "A\x1b]0;owned\x07", "inputs": {"x": "\x1b[2J\x9b31m\u202e", "\x1b[5m": 1}}}
    Path("evil.json").write_text(json.dumps(evil))
    for command in (("inspect", "evil.json"), ("check", "evil.json", *CLASSES)):
        done = acomfy(*command)
        assert "Traceback" not in done.stderr
        assert all(char.isprintable() or char == "\n" for char in done.stdout + done.stderr)


def test_what_stands_below_the_tree_is_wrapped_for_a_terminal_and_whole_for_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = "v1-5-pruned-emaonly.safetensors in checkpoints (node 4 (CheckpointLoaderSimple, 'Checkpoint'), ckpt_name)"
    wrapped = acomfy("inspect", "text_to_image").stdout
    assert max(map(len, wrapped.splitlines())) <= 80
    assert f"\n  {need}\n" in wrapped.replace("\n    ", " ")
    monkeypatch.delenv("COLUMNS")
    assert f"\n  {need}\n" in acomfy("inspect", "text_to_image").stdout


def test_a_terminal_without_lines_is_drawn_on_with_ascii() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}  # as LANG=C has it, without PEP 538
    command = [sys.executable, "-m", "acomfy", "inspect", "both.png"]
    shown = subprocess.run(command, capture_output=True, env=environment, timeout=60).stdout.decode("ascii")
    assert "| filename_prefix=mine\n` images: 1 EmptyImage\n" in shown


def test_a_title_is_shown_where_it_is_more_than_the_editors_own() -> None:
    def named(class_type: str, title: str) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": {}, "_meta": {"title": title}}

    graph = {"1": named("SaveImage", "Save Image"), "2": named("SaveImage", "Save it"), "3": named("Odd", "Odder")}
    graph["4"] = named("CheckpointLoaderSimple", "Load Checkpoint")
    Path("titles.json").write_text(json.dumps(graph))
    shown = acomfy("inspect", "titles.json").stdout
    assert "1 SaveImage\n2 SaveImage 'Save it'\n3 Odd 'Odder'\n4 CheckpointLoaderSimple 'Load Checkpoint'\n" in shown
    assert "\n4 CheckpointLoaderSimple\n" in acomfy("inspect", "titles.json", *CLASSES).stdout


def test_a_prompt_is_shown_whole_and_a_novel_is_not() -> None:
    def text_of(text: str) -> str:
        return "".join(line.strip("│ \n") + " " for line in lines_of({"1": node(text=text)})[1:]).rstrip()

    assert text_of("a fox " * 50) == f'text="{"a fox " * 50}"'
    assert len(text_of("a fox " * 500)) < 520 and text_of("a fox " * 500).endswith("…")


def lines_of(graph: dict[str, Any], width: int = 80) -> list[str]:
    return list(Trees(Workflow(graph), None, width).lines())


def node(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "A", "inputs": inputs}


def test_a_deep_tree_begins_again_at_the_margin() -> None:
    graph = {str(number): node(a=[str(number + 1), 0], text="x " * 60) for number in range(100)}
    graph["100"] = node()
    lines = lines_of(graph)
    assert max(map(len, lines)) <= 80
    assert sum(line.endswith("see below") for line in lines) == sum(line[0].isdigit() for line in lines) - 1 > 3
    assert sum("text=" in line for line in lines) == 100


def test_every_node_is_drawn_once_whatever_the_graph_is() -> None:
    cycle = {"1": node(a=["2", 0]), "2": node(a=["1", 0]), "3": node(a=["9", 0]), "4": node(a=["4", 0])}
    assert lines_of(cycle) == [
        "3 A",
        "└ a: 9, which is not there",
        "1 A",
        "└ a: 2 A",
        "  └ a: 1 A, see above",
        "4 A",
        "└ a: 4 A, see above",
    ]
    assert lines_of({}) == []


def test_values_are_quoted_and_cut_where_they_would_confuse() -> None:
    values = {"a": "x y", "b": "", "c": "a/b.png", "d": "é" * 100, "e": "模" * 100, "f": {"g": [1.5]}, "h": None}
    assert " ".join(line.strip() for line in lines_of({"1": node(**values)})[1:]) == (
        f'a="x y", b="", c=a/b.png, d={"é" * 59}…, e={"模" * 29}…, f={{"g": [1.5]}}, h=null'
    )


# --- nodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nodes.py", "nodes.pyi"])
def test_a_module_is_written_with_its_stub(name: str) -> None:
    done = acomfy("nodes", "-o", name, *CLASSES)
    assert (done.exit_code, done.stdout) == (0, f"nodes.py and nodes.pyi: {len(object_info())} node classes\n")
    code = "from nodes import EmptyImage; print(EmptyImage(width=8, _id='5'))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "<EmptyImage node 5>\n", ran.stderr
    assert "class EmptyImage(_Node):" in Path("nodes.pyi").read_text()


def test_a_module_is_written_anew_but_never_over_anything_else() -> None:
    assert acomfy("nodes", *CLASSES).exit_code == acomfy("nodes", *CLASSES).exit_code == 0
    Path("mine.py").write_text("print('my own')\n")
    done = acomfy("nodes", "-o", "mine.py", *CLASSES)
    assert done.exit_code == 2 and "--out mine.py: there is another file of that name" in done.stderr
    assert Path("mine.py").read_text() == "print('my own')\n" and not Path("mine.pyi").exists()


def test_classes_that_make_no_sense_are_left_out_by_name() -> None:
    Path("odd.json").write_text(json.dumps({"A": {"input": {"required": {"x": 5}}}, "B": {}}))
    done = acomfy("nodes", "--object-info", "odd.json")
    assert done.exit_code == 0 and "1 node classes" in done.stdout
    assert "left out 'A'" in done.stderr


# --- run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["editor.json", "workflow.png", "both.png"])
def test_whatever_holds_a_workflow_runs(source: str) -> None:
    done = acomfy("run", "--simulate", source)
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in Path("out").iterdir()] == ["mine_00001_.png"]


def test_a_workflow_of_the_editor_is_checked_before_a_prompt_is_sent() -> None:
    Path("odd.json").write_text(json.dumps({"nodes": [{"id": 7, "type": "NoSuchNode"}], "links": [], "version": 0.4}))
    done = acomfy("run", "--simulate", "odd.json")
    assert done.exit_code == 2 and "node 7 (NoSuchNode)" in done.stderr
    done = acomfy("run", "--server", "http://127.0.0.1:1", "editor.json")
    assert done.exit_code == 3 and "no answer from" in done.stderr


# --- seeds of a run ------------------------------------------------------------------------------------------------


def test_seeds_are_found_by_what_the_server_says_of_them_and_within_its_limits() -> None:
    settings = {"control_after_generate": True, "min": 0, "max": 9}
    definitions = Definitions({"A": {"input": {"required": {"dice": ["INT", settings], "n": ["INT", {}]}}}})
    workflow = Workflow({"1": {"class_type": "A", "inputs": {"dice": 3, "n": 5}}})
    assert seed_inputs(workflow) == [] and seed_inputs(workflow, definitions) == [("1", "dice")]
    variants = Variants(workflow, "random", 50, definitions)
    drawn = {variant["1"]["inputs"]["dice"] for variant in variants}
    assert drawn <= set(range(10)) and len(drawn) > 1 and set(variants.seeds) == drawn


def test_a_run_asks_for_the_definitions_when_no_input_is_called_a_seed() -> None:
    Path("none.json").write_text(json.dumps(PROMPT))
    done = acomfy("run", "--simulate", "--seed", "random", "none.json")
    assert done.exit_code == 2 and "no node of the workflow has a number as its seed" in done.stderr
    done = acomfy("run", "--server", "http://127.0.0.1:1", "--seed", "random", "none.json")
    assert done.exit_code == 3 and "/object_info" in done.stderr

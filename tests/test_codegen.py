"""The generated module: what real servers describe becomes classes that type checkers read and graphs are built of."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acomfy import building
from acomfy.building import Node, Output, build, link
from acomfy.codegen import Generated, generate, identifier
from acomfy.definitions import AUTOGROW, DYNAMIC_COMBO, DYNAMIC_SLOT, Definitions, InputDefinition
from acomfy.errors import ProtocolError

from . import strategies as given_by
from .definitions import VERSIONS, object_info

README = Path(__file__).parent.parent / "README.md"
LINK = ["0", 0]
BASE = {"0": {"class_type": "Source", "inputs": {}}}


def loaded(generated: Generated, name: str = "nodes") -> ModuleType:
    module = ModuleType(name)
    exec(compile(generated.module, f"{name}.py", "exec"), vars(module))
    return module


def one_class(name: str = "A", **inputs: Any) -> dict[str, Any]:
    return {name: {"input": {"required": inputs}, "output": ["MODEL"], "output_name": ["MODEL"]}}


def signature(generated: Generated, name: str = "A") -> dict[str, str]:
    """Give what the stub says of each keyword argument: its type, and its default behind an equals sign."""
    tree = next(node for node in ast.parse(generated.stub).body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    found = {}
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        assert argument.annotation is not None
        found[argument.arg] = ast.unparse(argument.annotation) + (f" = {ast.unparse(default)}" if default else "")
    return {key: text for key, text in found.items() if key[0] != "_"}


# --- Whole servers -------------------------------------------------------------------------------------------------


def spelled(name: str) -> str:
    name = re.sub(r"\W", "_", name.replace("*", "any"))
    name = f"x{name}" if name[:1].isdigit() else name
    return f"{name}_" if name in ("in", "from", "class", "is", "not", "or", "and", "if", "else") else name


def calls(inputs: Mapping[str, InputDefinition], prefix: str = "") -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Give the keyword arguments and the inputs in API format that belong together: with the first and the last choice.

    Written anew, from the definitions, so that it does not repeat what the generator believes.
    """
    for pick in (0, -1):
        arguments: dict[str, Any] = {}
        wanted: dict[str, Any] = {}
        for name, declared in inputs.items():
            full = prefix + name
            if declared.type == AUTOGROW and declared.grown:
                slots = list(declared.grown)[:2]
                arguments[spelled(full)] = [link("0")] * len(slots)
                wanted |= {f"{full}.{slot}": LINK for slot in slots}
            elif declared.type == DYNAMIC_COMBO:
                key, added = list(declared.alternatives.items())[pick]
                arguments[spelled(full)] = wanted[full] = key
                inner = list(calls(added, f"{full}."))[pick]
                arguments |= inner[0]
                wanted |= inner[1]
            else:
                assert declared.type != DYNAMIC_SLOT
                arguments[spelled(full)] = link("0")
                wanted[full] = LINK
        yield arguments, wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_each_class_of_a_real_server_makes_the_node_that_one_would_have_written(version: str) -> None:
    definitions = Definitions(object_info(version))
    generated = generate(definitions)
    module = loaded(generated)
    assert not generated.skipped and list(generated.classes) == list(definitions)
    for class_type, definition in definitions.items():
        make: type[Node] = getattr(module, generated.classes[class_type])
        for arguments, wanted in calls(definition.inputs):
            node = make(_id="1", **arguments)
            assert build(node, into=BASE)["1"] == {"class_type": class_type, "inputs": wanted}, class_type
        outputs = [value for value in vars(node).values() if isinstance(value, Output)]
        assert [output.slot for output in outputs] == list(range(len(definition.output_types)))
        assert {spelled(name) for name in definition.output_names} <= set(vars(node))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stub_and_its_module_say_the_same(version: str) -> None:
    generated = generate(object_info(version))
    module = loaded(generated)
    classes = {node.name: node for node in ast.parse(generated.stub).body if isinstance(node, ast.ClassDef)}
    assert list(classes) == list(generated.classes.values())
    for name, tree in classes.items():
        make = getattr(module, name)
        init = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
        arguments = [argument.arg for argument in init.args.kwonlyargs]
        assert arguments == [*make._spec["inputs"], "_id", "_title", "_inputs"]
        fields = [
            node.target.id
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]
        assert fields == [name for name, _ in make._spec["outputs"]]
        docstring = ast.get_docstring(tree)
        assert docstring == make.__doc__


RIGHT = """
from acomfy.building import build
from nodes import (
    CheckpointLoaderSimple, CLIPTextEncode, EmptyLatentImage, Epsilon_Scaling, KSampler, SaveImage, VAEDecode
)

checkpoint = CheckpointLoaderSimple(ckpt_name="sd_xl_base_1.0.safetensors")
positive = CLIPTextEncode(clip=checkpoint.CLIP, text="a fox", _title="Positive")
negative = CLIPTextEncode(clip=checkpoint.CLIP, text="")
sampler = KSampler(
    model=Epsilon_Scaling(model=checkpoint.MODEL).MODEL, positive=positive.CONDITIONING, seed=5, scheduler="normal",
    negative=negative.CONDITIONING, latent_image=EmptyLatentImage().LATENT, sampler_name="euler", _id="3",
)
picture = VAEDecode(samples=sampler.LATENT, vae=checkpoint.VAE)
workflow = build(SaveImage(images=picture.IMAGE))
"""
WRONG = {
    'CheckpointLoaderSimple(ckpt_name="no such file")': '"ckpt_name"',
    'CLIPTextEncode(clip=checkpoint.VAE, text="")': '"clip"',
    'CLIPTextEncode(clip=checkpoint, text="")': '"clip"',
    "CLIPTextEncode(clip=checkpoint.CLIP)": '"text"',
    "EmptyLatentImage(width=1.5)": '"width"',
    "EmptyLatentImage(witdh=5)": '"witdh"',
    "checkpoint.NAME": '"NAME"',
}


def test_mypy_finds_nothing_in_the_modules_of_real_servers_and_the_mistakes_in_a_graph(tmp_path: Path) -> None:
    package = tmp_path / "acomfy"  # a copy: in site-packages, mypy takes it for a second root of modules and gives up
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(building.__file__, package)
    files = ["acomfy/building.py"]
    for number, version in enumerate(VERSIONS):
        info = dict(object_info(version))
        checkpoints = {"required": {"ckpt_name": [["sd_xl_base_1.0.safetensors"]]}}
        info["CheckpointLoaderSimple"] = {**info["CheckpointLoaderSimple"], "input": checkpoints}
        right = RIGHT.replace("from nodes", f"from nodes{number}")
        texts = {
            f"nodes{number}.pyi": generate(info).stub,
            f"right{number}.py": right,
            f"wrong{number}.py": right + "\n".join(WRONG),
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            files.append(name)
    options = ["--strict", "--config-file=", f"--cache-dir={os.devnull}", "--follow-imports=skip"]  # the rest of acomfy
    mypy = [sys.executable, "-m", "mypy", *options, *files]
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    for number in range(len(VERSIONS)):
        found = [error for error in errors if error.startswith(f"wrong{number}.py")]
        assert len(found) == len(WRONG), done.stdout + done.stderr
        for error, said in zip(found, WRONG.values(), strict=True):
            assert said in error
    assert len(errors) == len(VERSIONS) * len(WRONG), done.stdout


def test_the_graph_of_the_readme_is_the_one_it_seems() -> None:
    """Its module is one of a real server; ``test_readme`` runs all other snippets."""
    snippets = re.findall(r"```py\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    snippet = next(one for one in snippets if "from nodes import" in one)
    nodes = loaded(generate(object_info()))
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "nodes", nodes)
        exec(snippet, names)
    workflow = names["workflow"]
    assert [node["class_type"] for node in workflow.values()] == [
        "CheckpointLoaderSimple",
        "CLIPTextEncode",
        "CLIPTextEncode",
        "EmptyLatentImage",
        "KSampler",
        "VAEDecode",
        "SaveImage",
    ]
    assert workflow["5"]["inputs"]["positive"] == ["2", 0] and workflow["7"]["inputs"]["images"] == ["6", 0]


def test_a_generated_graph_runs_as_it_was_checked(tmp_path: Path) -> None:
    sources = {"nodes.py": generate(object_info()).module, "graph.py": RIGHT}
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    code = "import graph, json; print(json.dumps(graph.workflow['3']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == {
        "inputs": {
            "model": ["5", 0],
            "seed": 5,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": ["2", 0],
            "negative": ["4", 0],
            "latent_image": ["6", 0],
            "denoise": 1.0,
        },
        "class_type": "KSampler",
    }


def test_the_module_is_small_work_to_import() -> None:
    """It is one table: no class statements, whose compiling takes most of a second for a server's hundreds."""
    generated = generate(object_info("0.33.0"))
    assert len(list(ast.walk(ast.parse(generated.module)))) < 150


def test_the_classes_are_made_when_the_first_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "nodes.py").write_text(generate(object_info()).module)
    code = """
import sys, nodes
assert "acomfy" not in sys.modules and not hasattr(nodes, "__path__")
first = dir(nodes)
from nodes import *
assert nodes.KSampler is KSampler and "KSampler" in first and len(nodes.__all__) > 500
try:
    nodes.KSamplr
except AttributeError as exc:
    print(exc)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("module 'nodes' has no attribute 'KSamplr'\n", "")


# --- Names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("seed", "seed"),
        ("Epsilon Scaling", "Epsilon_Scaling"),
        ("TextEncodeAceStepAudio1.5", "TextEncodeAceStepAudio1_5"),
        ("from", "from_"),
        ("None", "None_"),
        ("3d model", "x3d_model"),
        ("_id", "id"),
        ("模型", "模型"),
        ("ﬁle", "file"),
        ("a-b|c", "a_b_c"),
        ("", "x"),
        ("🦊", "x"),
        ("match", "match"),
    ],
)
def test_names_become_identifiers(name: str, spelled: str) -> None:
    assert identifier(name, set()) == spelled


def test_names_that_become_the_same_are_told_apart() -> None:
    taken: set[str] = set()
    assert [identifier(name, taken) for name in ("a b", "a_b", "a-b", "a_b_2")] == ["a_b", "a_b_2", "a_b_3", "a_b_2_2"]


@settings(max_examples=40)
@given(st.lists(st.text(max_size=8) | given_by.texts, max_size=20, unique=True))
def test_any_names_become_different_identifiers(names: list[str]) -> None:
    taken: set[str] = set()
    made = [identifier(name, taken) for name in names]
    assert len(set(made)) == len(names)
    for name in made:
        assert ast.parse(f"{name} = 1") and name[0] != "_"


# --- Types ---------------------------------------------------------------------------------------------------------


def test_values_links_and_choices_have_their_types() -> None:
    info = one_class(
        seed=["INT", {"default": 0, "min": 0, "max": 9}],
        scale=["FLOAT", {"default": 1}],
        text=["STRING", {"multiline": True}],
        on=["BOOLEAN", {"default": True}],
        model=["MODEL"],
        way=[["a", "b"], {"default": "b"}],
        either=["INT,MODEL"],
        anything=["*"],
        widget=["COLOR", {"default": "#fff"}],
        many=["COMBO", {"options": ["a", "b"], "multiselect": True}],
        image=[["a.png"], {"image_upload": True}],
        files=[[]],
        numbers=[[1, 2.5]],
    )
    generated = generate(info)
    assert signature(generated) == {
        "seed": "_Int = 0",
        "scale": "_Float = 1",
        "text": "_String",
        "on": "_Boolean = True",
        "model": "_MODEL",
        "way": "_A_way | _COMBO = 'b'",
        "either": "_Int | _MODEL",
        "anything": "_Any",
        "widget": "_Any = '#fff'",
        "many": "_Sequence[_A_way] | _COMBO",
        "image": "_Any",
        "files": "str | _COMBO",
        "numbers": "_Any",
    }
    assert "_MODEL: _TypeAlias = _Output[_Literal['MODEL']]" in generated.stub
    assert "_A_way: _TypeAlias = _Literal['a', 'b']" in generated.stub


def test_a_default_that_the_server_would_refuse_is_none() -> None:
    info = one_class(
        gone=[["a"], {"default": "b"}], odd=["INT", {"default": "many"}], none=["FLOAT", {"default": None}]
    )
    assert signature(generate(info)) == {"gone": "_A_gone | _COMBO", "odd": "_Int", "none": "_Float"}
    assert all("default" not in one["ways"][0] for one in loaded(generate(info)).A._spec["inputs"].values())


def test_thousands_of_files_are_any_text() -> None:
    info = one_class(file=[[f"{number}.safetensors" for number in range(5000)]])
    generated = generate(info)
    assert signature(generated) == {"file": "str | _COMBO"}
    assert len(generated.stub) < 3000
    assert "and 4992 more" in generated.stub


def test_an_output_with_many_types_may_be_linked_anywhere() -> None:
    info = {"A": {"output": ["*", "INT,FLOAT", ["a", "b"], "X"], "output_name": ["one", "two", "three"]}}
    tree = ast.parse(generate(info).stub).body[-1]
    assert isinstance(tree, ast.ClassDef)
    fields = [ast.unparse(node) for node in tree.body if isinstance(node, ast.AnnAssign)]
    assert fields == ["one: _Output[_Any]", "two: _Output[_Any]", "three: _COMBO", "X: _X"]


def test_names_of_outputs_types_and_inputs_never_get_in_each_others_way() -> None:
    info = {
        name: {
            "input": {"required": {"str": ["STRING"], "int": ["int"], "self": ["Any"], "_id": ["INT"], "id": ["INT"]}},
            "output": ["int", "Any", "Literal", "Node", "int"],
            "output_name": ["int", "str", "Any", "__init__", "int"],
        }
        for name in ("int", "Any", "Node", "Literal", "str", "_Node", "print", "A")
    }
    generated = generate(info)
    assert list(signature(generated)) == ["str", "int", "self_", "id", "id_2"]
    module = loaded(generated)
    node = module.A(str="a", int=link("0"), self_=link("0"), id=1, id_2=2)
    assert build(node, into=BASE)["1"]["inputs"] == {"str": "a", "int": LINK, "self": LINK, "_id": 1, "id": 2}
    assert [node.int.slot, node.str.slot, node.Any.slot, node.init__.slot, node.int_2.slot] == [0, 1, 2, 3, 4]


# --- Nonsense ------------------------------------------------------------------------------------------------------


NASTY = "'''\"\"\"\\\n{x}\r\x00\ud800\u2028 {0} \\N{DOG} r'''"


def test_nothing_that_a_server_says_becomes_code() -> None:
    info = {
        NASTY: {
            "input": {"required": {NASTY: [NASTY, {"tooltip": NASTY}], "b": [[NASTY], {"default": NASTY}]}},
            "output": [NASTY],
            "output_name": [NASTY],
            "display_name": NASTY,
            "description": NASTY,
        }
    }
    generated = generate(info)
    assert generated.stub.encode() and ast.parse(generated.stub)
    module = loaded(generated)
    (name,) = generated.classes.values()
    inputs = getattr(module, name)._spec["inputs"]
    assert [one["name"] for one in inputs.values()] == [NASTY, "b"]
    assert inputs["b"]["ways"][0]["default"] == NASTY


def test_a_class_that_makes_no_sense_is_skipped_and_named() -> None:
    info = {**one_class("A"), "B": {"input": {"required": {"x": 5}}}, "C": 7}
    generated = generate(info)
    assert list(generated.classes) == ["A"]
    assert "'B'" in generated.skipped["B"] and "'C'" in generated.skipped["C"]


@pytest.mark.parametrize("info", [[], {"nodes": []}, {"3": {"class_type": "A", "inputs": {}}}])
def test_what_is_no_object_info_is_refused(info: Any) -> None:
    with pytest.raises(ProtocolError, match="GET /object_info"):
        generate(info)


@settings(max_examples=25)
@given(
    st.dictionaries(
        given_by.texts,
        st.fixed_dictionaries(
            {},
            optional={
                "input": st.dictionaries(
                    st.sampled_from(["required", "optional", "hidden"]),
                    st.dictionaries(
                        given_by.texts, given_by.json_values | st.tuples(given_by.texts, given_by.json_values)
                    ),
                ),
                "output": st.lists(given_by.texts),
                "output_name": st.lists(given_by.texts),
                "display_name": given_by.json_values,
                "description": given_by.json_values,
            },
        ),
        max_size=3,
    )
)
def test_anything_else_becomes_a_module_or_a_refusal(info: dict[str, Any]) -> None:
    try:
        generated = generate(info)
    except ProtocolError:
        return
    assert ast.parse(generated.stub)
    loaded(generated)
    assert generated == generate(info)
    assert len(generated.classes) + len(generated.skipped) == len(info)

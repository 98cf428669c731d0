"""The graph of a prompt: loaded, edited, copied, encoded. No event loop, no server."""

from __future__ import annotations

import copy
import enum
import json
import math
import pickle
import uuid
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

from acomfy.errors import WorkflowError, WorkflowFormatError
from acomfy.workflow import Node, Workflow, encode

from . import strategies as given_by

EDITOR_FILES = Path(__file__).parent / "workflows"
STREAMS = frozenset({"SaveImageWebsocket"})


def graph() -> dict[str, Any]:
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {"seed": 8566257, "steps": 20, "cfg": 8, "model": ["4", 0], "positive": ["6", 0]},
            "_meta": {"title": "Second pass"},
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}, "_meta": {"title": "Pos"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}, "_meta": {"title": "Neg"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}, "_meta": {"title": "Out v1.5"}},
    }


@pytest.fixture
def workflow() -> Workflow:
    return Workflow(graph())


def decoded(workflow: Workflow | dict[str, Any]) -> Any:
    return json.loads(encode(workflow, STREAMS).json)


def one_input(value: Any) -> dict[str, Any]:
    return {"5": {"class_type": "Odd", "inputs": {"x": value}}}


def names(problem: pytest.ExceptionInfo[WorkflowError]) -> tuple[str | None, str | None]:
    return problem.value.node_id, problem.value.input_name


# --- Loading -------------------------------------------------------------------------------------------------------


def test_a_workflow_is_loaded_from_a_dict_a_path_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "workflow_api.json"
    path.write_text(json.dumps(graph()))
    for source in (graph(), path, str(path), json.dumps(graph()), json.dumps(graph(), indent=4).encode()):
        assert Workflow.load(source) == graph()
    assert Workflow.load(Workflow(graph())) == graph()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
def test_json_is_read_in_every_encoding_that_editors_on_windows_write(tmp_path: Path, encoding: str) -> None:
    wanted = one_input("ein Füchslein 🦊")
    path = tmp_path / "w.json"
    path.write_bytes(json.dumps(wanted, ensure_ascii=False).encode(encoding))
    assert Workflow.load(path) == wanted
    assert Workflow.load(path.read_bytes()) == wanted


def test_text_may_begin_with_a_byte_order_mark_and_space() -> None:
    assert Workflow.load("\ufeff \n" + json.dumps(graph())) == graph()


def test_integers_of_a_file_stay_exact(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(one_input(2**70 + 1)))
    assert Workflow.load(path)["5"]["inputs"]["x"] == 2**70 + 1


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Workflow.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        Workflow.load(str(tmp_path / "none.json"))


@pytest.mark.parametrize("text", ["{", '{"3": }', "{'3': 4}", '{"a": "\t"}', "{" * 100_000, '{"x":' * 100_000])
def test_what_is_not_json_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(WorkflowFormatError, match="the text is not JSON"):
        Workflow.load(text)
    with pytest.raises(WorkflowFormatError, match="the data is not JSON"):
        Workflow.load(text.encode())
    with pytest.raises(WorkflowFormatError, match=r"broken\.json is not JSON"):
        Workflow.load(path)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(WorkflowFormatError, match="not JSON"):
        Workflow.load(b'{"a": "\xff\xfe"}')
    with pytest.raises(WorkflowFormatError, match="not JSON"):
        Workflow.load(b"\x89PNQ\r\n\x1a\n")


@pytest.mark.parametrize("name", ["editor_version_0_4.json", "editor_version_1.json"])
def test_what_the_editor_saves_is_refused_with_what_to_do(name: str) -> None:
    path = EDITOR_FILES / name
    for source in (path, path.read_bytes(), path.read_text(), json.loads(path.read_bytes())):
        with pytest.raises(WorkflowFormatError, match=r"Export \(API\)") as problem:
            Workflow.load(source)
        assert "editor's own workflow format" in str(problem.value)
    with pytest.raises(WorkflowFormatError, match=r"Export \(API\)"):
        encode(json.loads(path.read_bytes()), STREAMS)


def test_a_request_body_is_refused_with_what_to_do() -> None:
    with pytest.raises(WorkflowFormatError, match="pass what is under 'prompt'"):
        Workflow({"prompt": graph(), "client_id": "me"})


def test_nodes_may_be_named_prompt_and_nodes() -> None:
    odd = {name: {"class_type": "A", "inputs": {}} for name in ("prompt", "nodes", "")}
    assert decoded(Workflow(odd)) == odd


@pytest.mark.parametrize("source", ["[]", "null", "3", '"text"'])
def test_json_that_is_no_object_is_refused(tmp_path: Path, source: str) -> None:
    path = tmp_path / "w.json"
    path.write_text(source)
    with pytest.raises(WorkflowFormatError, match="a workflow is a JSON object of nodes, not"):
        Workflow.load(path)


@pytest.mark.parametrize(
    ("broken", "said", "error"),
    [
        ({3: {"class_type": "A", "inputs": {}}}, "node id 3 is int, not a string", WorkflowError),
        ({"3": []}, r"'3' is list, not a node with a class_type.*Export \(API\)", WorkflowFormatError),
        ({"version": 0.4}, r"'version' is float.*Export \(API\)", WorkflowFormatError),
        ({"3": {"inputs": {}}}, r"node 3 has no class_type.*Export \(API\)", WorkflowFormatError),
        ({"3": {"class_type": 5, "inputs": {}}}, "node 3 has no class_type", WorkflowFormatError),
        ({"3": {"class_type": "KSampler"}}, r"node 3 \(KSampler\) has no inputs: give it at least {}", WorkflowError),
        ({"3": {"class_type": "KSampler", "inputs": []}}, r"node 3 \(KSampler\) has no inputs", WorkflowError),
    ],
)
def test_a_malformed_node_is_named(broken: dict[str, Any], said: str, error: type[WorkflowError]) -> None:
    for refuse in (Workflow, lambda wrong: encode(wrong, STREAMS)):
        with pytest.raises(error, match=said):
            refuse(broken)


# --- Editing -------------------------------------------------------------------------------------------------------


def test_the_guides_own_edits_work(workflow: Workflow) -> None:
    workflow["6"]["inputs"]["text"] = "masterpiece best quality man"
    workflow["3"]["inputs"]["seed"] = 5
    wanted = graph()
    wanted["6"]["inputs"]["text"], wanted["3"]["inputs"]["seed"] = "masterpiece best quality man", 5
    assert workflow == wanted
    assert decoded(workflow) == wanted


def test_a_node_in_hand_is_the_workflows_own(workflow: Workflow) -> None:
    assert workflow["3"] is workflow["3"]
    inputs = workflow["3"]["inputs"]
    inputs["seed"] = 1
    workflow["3"]["inputs"]["steps"] = 2
    assert decoded(workflow)["3"]["inputs"] | {"seed": 1, "steps": 2} == inputs


def test_a_workflow_behaves_like_a_dict(workflow: Workflow) -> None:
    assert list(workflow) == ["3", "4", "6", "7", "9"]
    assert len(workflow) == 5
    assert "3" in workflow and "33" not in workflow
    assert dict(workflow.items()) == graph()
    assert [node["class_type"] for node in workflow.values()][:2] == ["KSampler", "CheckpointLoaderSimple"]
    assert workflow.get("33") is None
    with pytest.raises(KeyError):
        workflow["33"]
    del workflow["9"]
    assert workflow.pop("7")["inputs"]["text"] == ""
    workflow.update({"10": {"class_type": "PreviewImage", "inputs": {}}})
    assert list(workflow) == ["3", "4", "6", "10"]
    with pytest.raises(KeyError):
        del workflow["9"]
    workflow.clear()
    assert workflow == {} and workflow.to_dict() == {}


def test_a_node_that_is_put_in_is_checked_and_copied(workflow: Workflow) -> None:
    node: dict[str, Any] = {"class_type": "PreviewImage", "inputs": {"images": ("3", 0)}}
    workflow["10"] = node
    node["inputs"]["images"] = None
    assert workflow["10"] == {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    with pytest.raises(WorkflowFormatError, match="node 11 has no class_type"):
        workflow["11"] = {"inputs": {}}
    with pytest.raises(WorkflowError, match="node id 11 is int"):
        workflow[11] = node  # type: ignore[index]
    assert "11" not in workflow


def test_the_node_of_one_workflow_put_into_another_is_not_shared(workflow: Workflow) -> None:
    other = Workflow({})
    other["3"] = workflow["3"]
    other["3"]["inputs"]["model"][0] = "8"
    workflow["3"]["inputs"]["seed"] = 1
    assert workflow["3"]["inputs"]["model"] == ["4", 0]
    assert other["3"]["inputs"]["seed"] == 8566257


def test_setdefault_gives_the_node_that_is_in_the_workflow(workflow: Workflow) -> None:
    workflow.setdefault("10", {"class_type": "A", "inputs": {}})["inputs"]["x"] = 1
    workflow.setdefault("3", {"class_type": "A", "inputs": {}})["inputs"]["seed"] = 2
    assert decoded(workflow)["10"]["inputs"] == {"x": 1}
    assert decoded(workflow)["3"]["inputs"]["seed"] == 2
    with pytest.raises(WorkflowFormatError, match="'11' is NoneType"):
        workflow.setdefault("11")


def test_a_workflow_does_not_change_with_the_dict_that_it_was_made_from() -> None:
    source = graph()
    workflow = Workflow(source)
    source["3"]["inputs"]["model"][0] = "0"
    del source["9"]
    assert workflow == graph()
    workflow["4"]["inputs"]["ckpt_name"] = "other"
    assert source["4"]["inputs"]["ckpt_name"] == "v1-5.safetensors"


def test_to_dict_gives_plain_data_of_its_own(workflow: Workflow) -> None:
    workflow["3"]["inputs"]["model"] = MappingProxyType({"a": ("4", 0)})
    plain = workflow.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    plain["3"]["inputs"]["seed"] = plain["4"]["inputs"]["ckpt_name"] = 0
    assert workflow["3"]["inputs"]["seed"] == 8566257
    assert workflow["4"]["inputs"]["ckpt_name"] == "v1-5.safetensors"


# --- Finding -------------------------------------------------------------------------------------------------------


def test_a_node_is_found_by_id_then_title_then_class(workflow: Workflow) -> None:
    assert workflow.find("3") == Node("3", "KSampler", "Second pass", graph()["3"]["inputs"])
    assert workflow.find("Pos").node_id == "6"
    assert workflow.find("CheckpointLoaderSimple") == Node(
        "4", "CheckpointLoaderSimple", None, {"ckpt_name": "v1-5.safetensors"}
    )
    workflow["8"] = {"class_type": "KSampler", "inputs": {}, "_meta": {"title": "SaveImage"}}
    assert workflow.find("SaveImage").node_id == "8"
    workflow["SaveImage"] = {"class_type": "A", "inputs": {}}
    assert workflow.find("SaveImage").class_type == "A"


def test_the_inputs_of_a_found_node_edit_the_workflow(workflow: Workflow) -> None:
    workflow.find("Pos").inputs["text"] = "a wolf"
    assert decoded(workflow)["6"]["inputs"]["text"] == "a wolf"


def test_finding_none_names_what_there_is(workflow: Workflow) -> None:
    with pytest.raises(WorkflowError) as problem:
        workflow.find("Positive")
    assert str(problem.value) == (
        "no node has the id, title or class 'Positive'; there are: node 3 (KSampler, 'Second pass'), "
        "node 4 (CheckpointLoaderSimple), node 6 (CLIPTextEncode, 'Pos'), node 7 (CLIPTextEncode, 'Neg'), "
        "node 9 (SaveImage, 'Out v1.5')"
    )
    with pytest.raises(WorkflowError, match="there are: none$"):
        Workflow({}).find("3")


def test_finding_several_names_them(workflow: Workflow) -> None:
    with pytest.raises(WorkflowError) as problem:
        workflow.find("CLIPTextEncode")
    assert str(problem.value) == (
        "'CLIPTextEncode' names 2 nodes: node 6 (CLIPTextEncode, 'Pos'), node 7 (CLIPTextEncode, 'Neg'); use a node id"
    )


def test_a_long_list_of_nodes_is_cut() -> None:
    workflow = Workflow({str(number): {"class_type": "A", "inputs": {}} for number in range(100)})
    with pytest.raises(WorkflowError, match=r"node 29 \(A\) and 70 more"):
        workflow.find("B")


@pytest.mark.parametrize("meta", [None, 5, [], {}, {"title": None}, {"title": 7}])
def test_a_title_that_is_none_is_passed_over(meta: Any) -> None:
    workflow = Workflow({"1": {"class_type": "A", "inputs": {}, "_meta": meta}})
    assert workflow.find("A").title is None


# --- Replacing -----------------------------------------------------------------------------------------------------


def test_replace_takes_ids_titles_and_tuples(workflow: Workflow) -> None:
    variant = workflow.replace(
        {"3.seed": 5, "Pos.text": "a wolf", ("Neg", "text"): "blurry", "4.ckpt_name": "b", "3.model": ("8", 0)}
    )
    wanted = graph()
    wanted["3"]["inputs"] |= {"seed": 5, "model": ["8", 0]}
    wanted["6"]["inputs"]["text"], wanted["7"]["inputs"]["text"] = "a wolf", "blurry"
    wanted["4"]["inputs"]["ckpt_name"] = "b"
    assert variant == wanted
    assert list(variant["3"]["inputs"]) == list(graph()["3"]["inputs"])  # in the old order
    assert workflow == graph()


def test_the_last_dot_of_a_key_parts_node_and_input(workflow: Workflow) -> None:
    assert workflow.replace({"Out v1.5.images": ["8", 0]})["9"]["inputs"] == {"images": ["8", 0]}


def test_an_input_with_dots_takes_a_tuple_and_the_error_says_so() -> None:
    workflow = Workflow({"1": {"class_type": "A", "inputs": {"values.a": 1}}})
    assert workflow.replace({("1", "values.a"): 2})["1"]["inputs"] == {"values.a": 2}
    with pytest.raises(WorkflowError, match=r"where names hold dots, write \('NODE', 'INPUT'\)\) '1.values'"):
        workflow.replace({"1.values.a": 2})


def test_an_exact_id_comes_before_a_title(workflow: Workflow) -> None:
    workflow["10"] = {"class_type": "A", "inputs": {"seed": 1}, "_meta": {"title": "3"}}
    variant = workflow.replace({"3.seed": 5})
    assert (variant["3"]["inputs"]["seed"], variant["10"]["inputs"]["seed"]) == (5, 1)


def test_replace_does_not_take_a_class_for_a_title(workflow: Workflow) -> None:
    with pytest.raises(WorkflowError, match="no node has the id or title 'KSampler'; there are: node 3"):
        workflow.replace({"KSampler.seed": 5})


def test_replace_names_the_nodes_of_an_ambiguous_title(workflow: Workflow) -> None:
    workflow["10"] = {"class_type": "A", "inputs": {"text": 1}, "_meta": {"title": "Pos"}}
    with pytest.raises(WorkflowError, match=r"'Pos' names 2 nodes: node 6 .*, node 10 \(A, 'Pos'\); use a node id"):
        workflow.replace({"Pos.text": "x"})


def test_replace_refuses_an_input_that_the_node_lacks_with_the_nearest(workflow: Workflow) -> None:
    with pytest.raises(WorkflowError) as problem:
        workflow.replace({"3.sed": 5})
    assert str(problem.value) == "node 3 (KSampler, 'Second pass') has no input 'sed'; did you mean 'seed'?"
    assert names(problem) == ("3", "sed")
    with pytest.raises(WorkflowError, match="has no input 'zzz'; it has: ckpt_name"):
        workflow.replace({"4.zzz": 5})
    with pytest.raises(WorkflowError, match="it has: none"):
        Workflow({"1": {"class_type": "A", "inputs": {}}}).replace({"1.x": 5})


@pytest.mark.parametrize("key", ["seed", "3", "", 3, None, ("3",), ("3", "seed", "x")])
def test_replace_refuses_a_key_that_names_no_input(workflow: Workflow, key: Any) -> None:
    with pytest.raises(WorkflowError, match=r"names no input: write it as 'NODE.INPUT'"):
        workflow.replace({key: 5})


def test_a_replacement_that_is_refused_changes_nothing(workflow: Workflow) -> None:
    with pytest.raises(WorkflowError):
        workflow.replace({"3.seed": 5, "3.sed": 5})
    assert workflow == graph()


def test_replacing_nothing_gives_an_equal_copy(workflow: Workflow) -> None:
    assert workflow.replace({}) == workflow
    assert workflow.replace({}) is not workflow


def test_a_node_that_was_broken_by_an_edit_is_named_and_not_a_crash(workflow: Workflow) -> None:
    workflow["3"]["inputs"] = None
    workflow["9"].pop("class_type")
    with pytest.raises(WorkflowError, match="has no inputs"):
        workflow.replace({"3.seed": 5})
    with pytest.raises(WorkflowError, match="has no inputs"):
        workflow.find("3")
    with pytest.raises(WorkflowError, match="has no inputs"):
        encode(workflow, STREAMS)
    assert workflow.find("CheckpointLoaderSimple").node_id == "4"


# --- Sharing -------------------------------------------------------------------------------------------------------

COPIES: list[Callable[[Workflow], Workflow]] = [
    lambda workflow: workflow.replace({}),
    lambda workflow: workflow.replace({"3.seed": 8566257}),
    lambda workflow: workflow.copy(),
    Workflow,
    copy.copy,
    copy.deepcopy,
]


@pytest.mark.parametrize("make_copy", COPIES)
def test_an_edit_of_a_copy_does_not_reach_the_original(
    make_copy: Callable[[Workflow], Workflow], workflow: Workflow
) -> None:
    other = make_copy(workflow)
    other["3"]["inputs"]["model"][0] = "8"
    other["3"]["_meta"]["title"] = "Other"
    other["9"] = {"class_type": "A", "inputs": {}}
    del other["7"]
    assert workflow == graph()
    workflow["4"]["inputs"]["ckpt_name"] = "x"
    assert other["4"]["inputs"]["ckpt_name"] == "v1-5.safetensors"


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_link_in_hand_before_the_copy_does_not_reach_the_copy(
    make_copy: Callable[[Workflow], Workflow], workflow: Workflow
) -> None:
    node, inputs, link = workflow["3"], workflow.find("Pos").inputs, workflow["9"]["inputs"]["images"]
    other = make_copy(workflow)
    node["inputs"]["seed"], inputs["text"], link[0] = 1, "a wolf", "8"
    assert other == graph()
    assert workflow["3"]["inputs"]["seed"] == 1
    assert workflow["6"]["inputs"]["text"] == "a wolf"
    assert workflow["9"]["inputs"]["images"] == ["8", 0]


def test_values_given_to_replace_are_not_shared(workflow: Workflow) -> None:
    link = ["8", 0]
    one, two = workflow.replace({"3.model": link}), workflow.replace({"3.model": link})
    link[0] = "0"
    one["3"]["inputs"]["model"][0] = "1"
    assert two["3"]["inputs"]["model"] == ["8", 0]


class Sharing(RuleBasedStateMachine):
    """Invariant: copies of copies, edited through whatever was ever handed out, behave like deep copies of dicts."""

    pairs = Bundle("pairs")

    @rule(target=pairs)
    def begin(self) -> Any:
        return Workflow(graph()), graph()

    @rule(target=pairs, pair=pairs, seed=st.integers(0, 9))
    def replace(self, pair: Any, seed: int) -> Any:
        workflow, model = pair
        if "3" not in model:
            return pair
        model = copy.deepcopy(model)
        model["3"]["inputs"]["seed"] = seed
        return workflow.replace({"3.seed": seed}), model

    @rule(target=pairs, pair=pairs, make_copy=st.sampled_from(COPIES[2:]))
    def copied(self, pair: Any, make_copy: Callable[[Workflow], Workflow]) -> Any:
        return make_copy(pair[0]), copy.deepcopy(pair[1])

    @rule(target=pairs, pair=pairs, node_id=st.sampled_from(["3", "9"]))
    def moved(self, pair: Any, node_id: str) -> Any:
        workflow, model = pair
        other, other_model = Workflow(graph()), graph()
        if node_id in model:
            other[node_id] = workflow[node_id]
            other_model[node_id] = copy.deepcopy(model[node_id])
        return other, other_model

    links = Bundle("links")

    @rule(target=links, pair=pairs, where=st.sampled_from([("3", "model"), ("9", "images"), ("6", "clip")]))
    def take_link(self, pair: Any, where: tuple[str, str]) -> Any:
        workflow, model = pair
        node_id, name = where
        if node_id not in model:
            return ["8", 0], ["8", 0]
        return workflow[node_id]["inputs"][name], model[node_id]["inputs"][name]

    @rule(link=links, slot=st.integers(0, 3))
    def edit_link(self, link: Any, slot: int) -> None:
        for one in link:
            one[1] = slot

    @rule(pair=pairs, node_id=st.sampled_from(["3", "9"]))
    def delete(self, pair: Any, node_id: str) -> None:
        for one in pair:
            one.pop(node_id, None)

    @rule(pair=pairs, steps=st.integers(0, 9))
    def put(self, pair: Any, steps: int) -> None:
        for one in pair:
            one["3"] = {"class_type": "KSampler", "inputs": {"seed": 1, "steps": steps, "model": ["4", 0]}}

    @rule(pair=pairs)
    def same(self, pair: Any) -> None:
        workflow, model = pair
        assert workflow == model
        assert decoded(workflow) == model


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=50, stateful_step_count=30)


def test_ten_thousand_variants_share_the_nodes_that_they_do_not_change() -> None:
    nodes = {str(number): {"class_type": "A", "inputs": {"x": [number], "seed": 0}} for number in range(100)}
    workflow = Workflow(nodes)
    variants = [workflow.replace({"7.seed": seed}) for seed in range(10_000)]
    assert len({id(node) for variant in variants for node in variant._nodes.values()}) == 99 + 10_000
    assert [variant["7"]["inputs"]["seed"] for variant in variants] == list(range(10_000))
    assert variants[5]._nodes["8"] is variants[6]._nodes["8"]  # taking "7" in hand un-shared that node alone


# --- What it compares to, and how it travels -----------------------------------------------------------------------


def test_workflows_compare_by_content(workflow: Workflow) -> None:
    assert workflow == graph() and graph() == workflow
    assert workflow == Workflow(graph()) and workflow == MappingProxyType(graph())
    assert workflow != workflow.replace({"3.seed": 1}) and workflow != {}
    assert workflow != 5 and workflow != list(graph())
    workflow["3"]["inputs"]["model"] = ("4", 0)
    assert workflow == graph()
    assert workflow == {**graph(), "3": {**graph()["3"], "inputs": {**graph()["3"]["inputs"], "model": ("4", 0)}}}


def test_a_workflow_cannot_be_hashed(workflow: Workflow) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(workflow)


def test_a_workflow_is_pickled_and_copied(workflow: Workflow) -> None:
    workflow["3"]["inputs"]["seed"] = 2**70
    for other in (pickle.loads(pickle.dumps(workflow)), copy.copy(workflow), copy.deepcopy(workflow)):
        assert type(other) is Workflow
        assert other == workflow
        assert encode(other, STREAMS) == encode(workflow, STREAMS)


def test_its_repr_is_one_line_without_content() -> None:
    workflow = Workflow({"1": {"class_type": "Login", "inputs": {"api_key": "sk-secret\nline"}}})
    assert repr(workflow) == "<Workflow of 1 nodes>"


# --- Encoding ------------------------------------------------------------------------------------------------------

numbers = st.integers(-(2**100), 2**100) | st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | given_by.texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(given_by.texts, inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(given_by.texts, values, max_size=4)
nodes = st.builds(
    lambda class_type, inputs, more: {**more, "class_type": class_type, "inputs": inputs},
    given_by.texts,
    objects,
    objects,
)
graphs = st.dictionaries(given_by.texts | st.sampled_from(["prompt", "nodes"]), nodes, max_size=4)


def same(left: Any, right: Any) -> bool:
    """Compare exactly: 1, 1.0 and True differ, and so do 2**70 and its neighbours."""
    return json.dumps(left) == json.dumps(right)


@given(graphs)
def test_every_json_graph_comes_back_from_its_encoding(graph: dict[str, Any]) -> None:
    assert same(decoded(graph), graph)
    assert encode(Workflow(graph), STREAMS) == encode(graph, STREAMS)
    assert Workflow(graph) == graph
    assert same(Workflow(graph).to_dict(), graph)


@given(graphs)
def test_a_graph_is_loaded_from_its_own_encoding(graph: dict[str, Any]) -> None:
    loaded = Workflow.load(encode(graph, STREAMS).json)
    assert same(loaded.to_dict(), graph)
    assert same(Workflow.load(json.dumps(graph)).to_dict(), graph)


@given(given_by.json_values, st.booleans())
def test_any_value_is_encoded_exactly_or_refused_by_name(value: Any, in_inputs: bool) -> None:
    graph = one_input(value) if in_inputs else {"5": {"class_type": "Odd", "inputs": {}, "x": value}}
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        with pytest.raises(WorkflowError, match="node 5") as problem:
            encode(graph, STREAMS)
        assert names(problem) == ("5", "x" if in_inputs else None)
    else:
        assert same(decoded(graph), graph)


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, -(2**63) - 1, 2**64 - 1, 2**64, 2**70, -(2**70), 10**4290])
def test_integers_are_exact_at_any_size(number: int) -> None:
    text = encode(one_input(number), STREAMS).json
    assert f'"x":{number}}}'.encode() in text
    assert json.loads(text) == one_input(number)


def test_lone_surrogates_and_emoji_are_kept() -> None:
    odd = {"\ud800": {"class_type": "A\udfff", "inputs": {"\ud83d": "a\udc00b", "y": ["🦊", "\x00"]}}}
    assert decoded(odd) == odd


def test_mappings_tuples_and_subclasses_of_plain_types_are_written_as_what_they_are() -> None:
    class Sampler(enum.StrEnum):
        EULER = "euler"

    class Steps(enum.IntEnum):
        FEW = 4

    odd = MappingProxyType(
        {
            "1": UserDict({"class_type": "A", "inputs": MappingProxyType({"a": ("2", 0), "b": UserDict({"c": 1.5})})}),
            "2": OrderedDict(class_type="B", inputs=OrderedDict(s=Sampler.EULER, n=Steps.FEW, none=None, yes=True)),
        }
    )
    plain = {
        "1": {"class_type": "A", "inputs": {"a": ["2", 0], "b": {"c": 1.5}}},
        "2": {"class_type": "B", "inputs": {"s": "euler", "n": 4, "none": None, "yes": True}},
    }
    assert decoded(odd) == plain  # type: ignore[arg-type]
    assert decoded(Workflow(odd)) == plain
    assert Workflow(odd) == plain == Workflow(odd).to_dict()
    assert Workflow(odd) == odd


@dataclass
class Point:
    x: int = 1


class Sampler(enum.Enum):
    EULER = "euler"


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Decimal(1),
        {1, 2},
        1j,
        Point(),
        Point,
        Sampler.EULER,
        uuid.uuid4(),
        datetime(2025, 1, 1),
        iter([1]),
        range(3),
    ],
)
def test_what_is_no_json_is_refused_by_node_and_input(value: Any) -> None:
    for nested in (value, [1, value], {"a": {"b": (value,)}}):
        with pytest.raises(WorkflowError) as problem:
            encode(one_input(nested), STREAMS)
        assert str(problem.value) == f"node 5 (Odd): input 'x' holds {type(value).__name__}, which JSON has not"
        assert names(problem) == ("5", "x")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_by_node_and_input(number: float) -> None:
    for nested in (number, [1, number], {"a": {"b": (None, number)}}):
        with pytest.raises(WorkflowError, match=rf"node 5 \(Odd\): input 'x' holds {number}") as problem:
            encode(one_input(nested), STREAMS)
        assert names(problem) == ("5", "x")
    with pytest.raises(WorkflowError, match=r"node 5 \(Odd\): 'is_changed' holds nan"):
        encode({"5": {"class_type": "Odd", "inputs": {"x": None}, "is_changed": [math.nan]}}, STREAMS)


def test_keys_that_are_no_strings_are_refused_by_node_and_input() -> None:
    for key in (3, None, True, 1.5, ("a", "b")):
        said = f"has the key {key!r}, which is {type(key).__name__}, not a string"
        with pytest.raises(WorkflowError) as problem:
            encode(one_input([{key: 1}]), STREAMS)
        assert str(problem.value) == f"node 5 (Odd): input 'x' {said}"
        with pytest.raises(WorkflowError) as problem:
            encode({"5": {"class_type": "Odd", "inputs": {key: 1}}}, STREAMS)
        assert said in str(problem.value)
        assert names(problem) == ("5", str(key))
        with pytest.raises(WorkflowError) as problem:
            encode({"5": {"class_type": "Odd", "inputs": {}, key: 1}}, STREAMS)
        assert said in str(problem.value)
        assert names(problem) == ("5", None)


def test_an_integer_that_no_server_can_read_is_refused() -> None:
    with pytest.raises(WorkflowError, match=r"input 'x' holds an integer of more than 4300 digits"):
        encode(one_input(-(10**4300)), STREAMS)


def cyclic() -> Any:
    value: dict[str, Any] = {}
    value["again"] = [value]
    return value


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [cyclic(), deep(5000)], ids=["cyclic", "deep"])
def test_a_value_without_end_is_refused_by_node_and_input_wherever_it_comes_in(value: Any) -> None:
    workflow = Workflow(one_input(0))
    broken = workflow.copy()
    broken["5"]["inputs"]["x"] = value
    for refuse in (
        lambda: encode(one_input(value), STREAMS),
        lambda: encode(broken, STREAMS),
        lambda: Workflow(one_input(value)),
        lambda: workflow.replace({"5.x": value}),
        lambda: workflow.update(one_input(value)),
        lambda: broken.replace({}),
        lambda: broken.copy(),
        lambda: broken.to_dict(),
    ):
        with pytest.raises(WorkflowError, match=r"node 5 \(Odd\): input 'x' is nested too deeply, or") as problem:
            refuse()
        assert names(problem) == ("5", "x")
    assert workflow == one_input(0)
    with pytest.raises(WorkflowError, match=r"node 5 \(Odd\): '_meta' is nested too deeply, or"):
        encode({"5": {"class_type": "Odd", "inputs": {}, "_meta": value}}, STREAMS)


def test_a_recursion_limit_that_the_caller_used_up_is_not_blamed_on_the_workflow() -> None:
    workflow = Workflow(one_input(deep(100)))

    def descend() -> None:
        workflow.to_dict()
        descend()

    with pytest.raises(RecursionError):
        descend()


def test_any_depth_that_a_workflow_needs_is_encoded() -> None:
    assert decoded(one_input(deep(190))) == one_input(deep(190))


def test_the_encoding_is_frozen_when_it_is_made(workflow: Workflow) -> None:
    frozen = encode(workflow, STREAMS)
    plain = graph()
    frozen_plain = encode(plain, STREAMS)
    workflow["3"]["inputs"]["seed"] = plain["3"]["inputs"]["seed"] = 1
    assert json.loads(frozen.json) == graph() == json.loads(frozen_plain.json)


def test_nodes_that_stream_their_pictures_are_named_in_graph_order() -> None:
    graph = {
        name: {"class_type": class_type, "inputs": {}}
        for name, class_type in (("9", "SaveImageWebsocket"), ("3", "KSampler"), ("10", "Mine"), ("4", "SaveImage"))
    }
    assert encode(graph, STREAMS).streams == ("9",)
    assert encode(graph, STREAMS | {"Mine"}).streams == ("9", "10")
    assert encode(graph, frozenset()).streams == ()


def test_an_empty_graph_is_left_to_the_server_to_refuse() -> None:
    assert encode({}, STREAMS).json == b"{}"

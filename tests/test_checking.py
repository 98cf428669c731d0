"""What a check says offline, against what real servers answered, and what it adds: the names that were meant."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy import PromptRejected, Workflow, WorkflowError, WorkflowFormatError
from acomfy.checking import CheckReport, check, explained
from acomfy.checking.rules import rules_for
from acomfy.definitions import Definitions
from acomfy.errors import ProtocolError
from acomfy.simulator import Node, SimulatedServer
from acomfy.simulator.validation import validate
from acomfy.simulator.versions import capabilities

from .definitions import object_info
from .recorded import lines

VERSIONS = ("0.3.64", "0.33.0")
EXCEPTIONS = {"exception_during_validation", "exception_during_inner_validation"}


@cache
def recorded(version: str) -> dict[str, Any]:
    """Give what a real server answered to mutated prompts (tests/validation/README.md)."""
    path = Path(__file__).parent / "validation" / f"{version}.json.gz"
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


@cache
def reports(version: str) -> list[tuple[dict[str, Any], CheckReport]]:
    """Give what was recorded of a server, each case with what a check says that does not know the version."""
    definitions = Definitions(recorded(version)["object_info"])
    return [(case, check(case["prompt"], definitions)) for case in recorded(version)["cases"]]


@cache
def definitions_of(version: str) -> Definitions:
    return Definitions(object_info(version))


def picture(**changes: Any) -> dict[str, Any]:
    """A picture that is scaled and saved; changes are inputs of the scaling."""
    scaled = {"image": ["1", 0], "upscale_method": "lanczos", "width": 32, "height": 32, "crop": "disabled"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "ImageScale", "inputs": {**scaled, **changes}, "_meta": {"title": "Make it small"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }


def checked(graph: dict[str, Any], server: str = "0.33.0", **more: Any) -> CheckReport:
    return check(graph, definitions_of(server), **more)


def kinds(report: CheckReport) -> list[tuple[str, str | None, str]]:
    return [(problem.node_id, problem.input_name, problem.type) for problem in report]


def custom(python_module: str = "custom_nodes.pack", **inputs: Any) -> dict[str, Any]:
    """Definitions with a class ``Custom`` that takes these inputs and is an output node."""
    described = {
        "input": {"required": inputs},
        "output": ["IMAGE", "*"],
        "output_node": True,
        "python_module": python_module,
    }
    return {**object_info("0.33.0"), "Custom": described}


def alone(**inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": "Custom", "inputs": inputs}}


# --- Against real servers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("told", [True, False], ids=["version told", "version not told"])
def test_no_prompt_that_a_real_server_took_is_a_false_alarm(version: str, told: bool) -> None:
    known = Definitions(recorded(version)["object_info"])
    taken = [case["prompt"] for case, _ in reports(version) if case["status"] == 200 and not case["node_errors"]]
    said = [check(prompt, known, version=version if told else None) for prompt in taken]
    assert len(taken) > 50
    assert [str(report) for report in said if not report.ok] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_real_server_refused_is_found_at_the_same_node_and_input(version: str) -> None:
    total = found = same = 0
    for case, report in reports(version):
        if case["status"] == 200 and not case["node_errors"]:
            continue
        total += 1
        found += not report.ok
        theirs = {(node, name) for node, errors in case["node_errors"].items() for _, name, _ in errors}
        same += theirs <= {(problem.node_id, problem.input_name) for problem in report}
    assert total > 250
    assert found / total > 0.99
    assert same / total > 0.95  # an exception is blamed on any of the inputs that lead to its node, as it happens


@pytest.mark.parametrize("version", VERSIONS)
def test_whole_and_partial_refusals_are_told_apart_as_the_server_does(version: str) -> None:
    for case, report in reports(version):
        if not report.ok and (case["status"] == 400 or case["node_errors"]):
            assert report.refused == (case["status"] == 400)
            assert report.partial == (case["status"] == 200)
            assert (report.error or {}).get("type") == case["error"]


def words(errors: Any) -> set[tuple[str, str | None, str]]:
    """Give errors to compare; whether a class keeps its choices in a list or a tuple, its description does not tell."""
    return {(kind, name, details.translate(str.maketrans("()", "[]"))) for kind, name, details in errors}


@pytest.mark.parametrize("version", VERSIONS)
def test_errors_of_a_node_are_in_the_words_of_the_server(version: str) -> None:
    """Where no exception ended the server's check of the node before it had looked at all inputs."""
    compared = same = 0
    for case, report in reports(version):
        for node_id, errors in case["node_errors"].items():
            ours = report.node_errors.get(node_id, {"errors": []})["errors"]
            if ours and not EXCEPTIONS.intersection(kind for kind, _, _ in errors):
                compared += 1
                found = [[one["type"], one["extra_info"].get("input_name"), one["details"]] for one in ours]
                assert words(found) <= words(errors)
                same += words(found) == words(errors)
    assert compared > 200
    assert same / compared > 0.99  # which files there are in other folders cannot be known


CANNOT_BE_KNOWN = {"custom validation failed", "async custom validation failed", "async validation error"}


def test_the_recorded_refusals_are_found_word_for_word() -> None:
    known = copy.deepcopy(object_info("0.3.64"))
    known["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"] = [["tiny_sd15_random.safetensors"]]
    compared = 0
    for line in lines("0.3.64/g_validation_errors.jsonl"):
        prompt = (line.get("req_json") or {}).get("prompt") if isinstance(line.get("req_json"), dict) else None
        if not isinstance(prompt, dict) or line["status"] == 500 or line["label"] in CANNOT_BE_KNOWN:
            continue
        report, answer, compared = check(prompt, known, version="0.3.64"), line["json"], compared + 1
        theirs = {
            (node, error["type"], error["message"], error["details"], error["extra_info"].get("input_name"))
            for node, entry in answer.get("node_errors", {}).items()
            for error in entry["errors"]
        }
        ours = {(one.node_id, one.type, one.message, one.details, one.input_name) for one in report}
        assert report.refused == (line["status"] == 400), line["label"]
        if report.refused and report.error is not None:
            assert report.error["type"] == answer["error"]["type"]
        if theirs or line["status"] == 200:
            assert ours == theirs, line["label"]
        else:  # a refusal of the whole prompt, or a cycle: the server names no node
            assert ours
    assert compared > 30


# --- The report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_right_prompt_has_no_problems_and_no_warnings(version: str) -> None:
    report = checked(picture(), version)
    assert (report.ok, report.refused, report.partial, len(report), report.warnings) == (True, False, False, 0, ())
    assert not report and list(report) == [] and report == []
    assert (report.valid_outputs, report.dropped_outputs) == (("3",), ())
    assert str(report) == "the server would take the prompt"
    report.raise_for_problems()


def test_a_refused_prompt_raises_what_the_server_would_make_submit_raise() -> None:
    report = checked(picture(upscale_method="lanczoz", width=-1))
    wrong = {("2", "upscale_method", "value_not_in_list"), ("2", "width", "value_smaller_than_min")}
    assert set(kinds(report)) == wrong
    assert report.refused and report.node_errors["2"]["dependent_outputs"] == ["3"]
    with pytest.raises(PromptRejected, match="did you mean 'lanczos'") as caught:
        report.raise_for_problems()
    assert caught.value.error_type == "prompt_outputs_failed_validation"
    assert caught.value.problems == list(report)
    assert caught.value.dropped_outputs == {"3"}
    assert "node 2 (ImageScale, 'Make it small'), input 'upscale_method'" in str(caught.value)
    assert str(report).startswith("the server would refuse the prompt\n- node 2 (ImageScale, 'Make it small')")


def test_a_part_that_is_right_would_run() -> None:
    graph = {**picture(width=-1), "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    report = checked(graph)
    assert (report.ok, report.partial, report.refused, report.error) == (False, True, False, None)
    assert (report.valid_outputs, report.dropped_outputs) == (("9",), ("3",))
    assert str(report).startswith("the server would run 9 alone and drop 3\n")
    report.raise_for_problems(strict=False)
    with pytest.raises(PromptRejected) as caught:
        report.raise_for_problems()
    assert caught.value.partial


def test_only_the_targets_are_checked() -> None:
    graph = {**picture(width=-1), "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    assert checked(graph, targets=["9"]).ok
    assert not checked(graph, targets=["9"], version="0.3.40").ok  # which does not know targets
    none = checked(graph, targets=["2"])
    assert kinds(none) == [("", None, "prompt_no_outputs")] and "none of the targets" in str(none)


def test_a_report_equals_another_and_the_list_of_its_problems() -> None:
    report = checked(picture(width=-1))
    assert report == checked(picture(width=-1)) and report == list(report) and report == tuple(report)
    assert report != checked(picture()) and report != 5
    assert report[0] is report.problems[0] and report[:1] == report.problems


# --- The prompt as a whole -----------------------------------------------------------------------------------------


def test_all_unknown_classes_are_named_with_the_nearest_ones() -> None:
    graph = picture(width=-1)
    graph["1"]["class_type"], graph["8"] = "EmptyImge", {"class_type": "NoSuchThing", "inputs": {}}
    report = checked(graph)
    assert kinds(report)[:2] == [("1", None, "missing_node_type"), ("8", None, "missing_node_type")]
    assert report.refused and report.error is not None and report.error["extra_info"]["node_id"] == "1"
    assert "node 1 (EmptyImge): Node 'EmptyImge' not found" in str(report)
    assert "did you mean 'EmptyImage'?" in str(report)
    assert ("2", "width", "value_smaller_than_min") in kinds(report)
    assert (report.valid_outputs, report.node_errors) == ((), {})


def test_older_servers_call_an_unknown_class_an_invalid_prompt() -> None:
    graph = {**picture(), "8": {"class_type": "NoSuchThing", "inputs": {}}, "9": {"inputs": {}}}
    report = checked(graph, "0.3.64")
    assert kinds(report) == [("8", None, "invalid_prompt"), ("9", None, "invalid_prompt")]
    assert "Cannot execute because node NoSuchThing does not exist." in str(report)


@pytest.mark.parametrize(
    "node", [None, 5, "text", [], {}, {"class_type": []}, {"class_type": {}}, {"class_type": None}]
)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_no_node_is_refused_as_a_whole(node: Any, version: str) -> None:
    report = checked({**picture(), "8": node}, version)
    assert report.refused and report[0].node_id == "8"
    assert report[0].type in {"malformed_node", "missing_node_type", "invalid_prompt"}


def test_a_prompt_without_output_nodes_says_what_to_add() -> None:
    graph = {"1": picture()["1"]}
    for report in (checked(graph), checked({})):
        assert report.refused and kinds(report) == [("", None, "prompt_no_outputs")]
        assert "the prompt: Prompt has no outputs; add a node" in str(report)


def test_a_class_that_a_newer_server_replaces_is_a_warning() -> None:
    graph = {**picture(), "8": {"class_type": "SDV_img2vid_Conditioning", "inputs": {}, "_meta": {}}}
    report = checked(graph)
    assert report.ok and "takes 'SVD_img2vid_Conditioning' for it" in str(report)
    assert checked(graph, "0.3.64").refused


@pytest.mark.parametrize("graph", [None, [], "text", {"nodes": [], "links": []}])
def test_what_is_no_prompt_at_all_is_an_error(graph: Any) -> None:
    with pytest.raises(WorkflowFormatError):
        check(graph, object_info())


def test_an_id_that_is_no_text_is_an_error() -> None:
    with pytest.raises(WorkflowError, match="node id 1 is int"):
        check({1: {}}, object_info())  # type: ignore[dict-item]  # that is the point


def test_something_else_than_definitions_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="workflow in API format"):
        check(picture(), picture())


# --- Constants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["5", " 5 ", 64.9, True, "1_0", {"__value__": "7"}])
def test_what_python_makes_an_integer_of_is_one(value: Any) -> None:
    assert checked(picture(width=value)).ok


@pytest.mark.parametrize("value", [None, "5.5", "", {}, float("inf"), float("nan"), {"__value__": [1, 2]}])
def test_what_python_makes_no_integer_of_is_not_convertible(value: Any) -> None:
    report = checked(picture(width=value))
    assert kinds(report) == [("2", "width", "invalid_input_type")]
    assert "Failed to convert an input value to a INT value" in str(report)


def test_a_number_that_is_none_passes_every_limit() -> None:
    assert check(alone(x=float("nan")), custom(x=["FLOAT", {"min": 0, "max": 1}])).ok
    assert check(alone(x="nan"), custom(x=["FLOAT", {"min": 0, "max": 1}])).ok


def test_a_seed_of_64_bits_is_compared_exactly() -> None:
    limits = custom(seed=["INT", {"min": 0, "max": 2**64 - 1}])
    assert check(alone(seed=2**64 - 1), limits).ok
    assert kinds(check(alone(seed=2**64), limits)) == [("1", "seed", "value_bigger_than_max")]
    assert kinds(check(alone(seed=-1), limits)) == [("1", "seed", "value_smaller_than_min")]


def test_choices_are_compared_as_python_compares() -> None:
    choices = custom(x=[["1", 2, 1.5, True], {}])
    given: list[Any] = ["1", 2, 2.0, 1, True]
    other: list[Any] = ["2", 3, None, {}]
    assert all(check(alone(x=value), choices).ok for value in given)
    assert not any(check(alone(x=value), choices).ok for value in other)


def test_several_choices_may_be_given_where_the_version_takes_them() -> None:
    choices = custom(x=["COMBO", {"options": ["a", "b"], "multiselect": True}])
    several = alone(x={"__value__": ["a", "b"]})
    assert check(several, choices).ok and check(several, choices, version="0.21.0").ok
    assert not check(several, choices, version="0.20.0").ok
    report = check(alone(x={"__value__": ["a", "c"]}), choices)
    assert report[0].details == "x: 'c' not in ['a', 'b']"


def test_a_combo_of_the_new_form_is_looked_up_from_0_8_on() -> None:
    choices = custom(x=["COMBO", {"options": ["a", "b"]}])
    assert not check(alone(x="c"), choices).ok
    old = check(alone(x="c"), choices, version="0.3.64")
    assert old.ok and old.warnings[0].type == "value_not_in_list"


def test_all_choices_of_a_long_list_are_searched_for_the_nearest() -> None:
    models = [f"model_{number:03}.safetensors" for number in range(100)]
    report = check(alone(model="modle_077.safetensors"), custom(model=[models, {}]))
    assert report[0].allowed == models and report[0].nearest == "model_077.safetensors"
    assert report.node_errors["1"]["errors"][0]["extra_info"]["input_config"] is None  # as the server writes it
    assert "did you mean 'model_077.safetensors'?" in str(report)


def test_a_servers_refusal_is_explained_with_the_choices_that_it_left_out() -> None:
    definitions = custom(model=[[f"model_{number:03}.safetensors" for number in range(100)], {}])
    refused = check(alone(model="modle_077.safetensors"), definitions)
    from_server = PromptRejected(refused.error or {}, refused.node_errors, titles={"1": "Mine"})
    assert "did you mean" not in str(from_server)
    said = explained(from_server, definitions)
    assert "did you mean 'model_077.safetensors'? Allowed:" in str(said) and "'Mine'" in str(said)
    assert (said.error_type, said.node_errors, said.partial) == (
        from_server.error_type,
        from_server.node_errors,
        from_server.partial,
    )
    assert str(explained(from_server, {})) == str(from_server)


def test_an_empty_list_says_that_nothing_is_installed() -> None:
    report = check(alone(model="x.safetensors"), custom(model=[[], {}], python_module="nodes"))
    assert "nothing to choose from" in str(report)


def test_a_value_that_cannot_be_compared_with_its_limits_breaks_the_servers_check() -> None:
    report = check(alone(x="abc"), custom(x=["ODD", {"min": 0}]))
    assert kinds(report) == [("1", None, "exception_during_validation")]
    assert "'<' not supported" in report[0].details and "input 'x': 'abc' cannot be compared" in report[0].hint


def test_null_for_an_optional_link_and_unknown_inputs_pass() -> None:
    graph = picture()
    graph["3"]["inputs"]["imagse"] = 5
    report = checked(graph)
    assert report.ok and "did you mean 'images'?" in str(report.warnings[0])
    assert report.warnings[0].type == "unknown_input"


def test_a_constant_where_a_link_is_needed_is_a_warning() -> None:
    report = checked(picture(image="not a link"))
    assert report.ok and [warning.type for warning in report.warnings] == ["link_expected"]


# --- Links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "hint"),
    [
        (["99", 0], "input 'image' links to node '99', which the prompt has not"),
        ([1, 0], "a link names its node as text: '1'"),
        (["1", 5], "output 5 of node 1 (EmptyImage), which has only output 0"),
        (["1", "0"], "output '0' of node 1"),
        (["1", None], "output None of node 1"),
        ([["1"], 0], "links to node ['1'], which the prompt has not"),
        (["4", 0], "which has none"),
    ],
)
def test_a_link_to_nothing_says_what_it_misses(link: Any, hint: str) -> None:
    graph = {**picture(image=link), "4": {"class_type": "Custom", "inputs": {}}}
    definitions = {**object_info("0.33.0"), "Custom": {"output": []}}
    report = check(graph, definitions)
    assert kinds(report)[0] == ("2", "images", "exception_during_inner_validation")
    assert hint in report[0].hint and hint in str(report)


@pytest.mark.parametrize("link", [["1", -1], ["1", False], ("1", 0)])
def test_what_python_takes_for_an_index_is_a_link(link: Any) -> None:
    assert checked(picture(image=link)).ok


@pytest.mark.parametrize("link", [[], ["1"], ["1", 0, 0]])
def test_a_list_of_another_length_is_no_link(link: Any) -> None:
    report = checked(picture(image=link))
    assert kinds(report) == [("2", "image", "bad_linked_input")] and "__value__" in report[0].hint


def test_types_of_links_must_share_one() -> None:
    graph = picture()
    graph["1"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    report = checked(graph)
    assert kinds(report) == [("2", "image", "return_type_mismatch")]
    assert report[0].details == "image, received_type(LATENT) mismatch input_type(IMAGE)"
    for wanted, fits in (("LATENT,IMAGE", True), ("*", True), ("MASK, LATENT", True), ("MASK,IMAGE", False)):
        definitions = custom(x=[wanted], python_module="nodes")
        graph = {"1": graph["1"], "4": {"class_type": "Custom", "inputs": {"x": ["1", 0]}}}
        assert check(graph, definitions).ok == fits, wanted


def test_an_error_in_a_node_is_blamed_on_the_outputs_that_need_it() -> None:
    graph = picture()
    graph["1"]["inputs"]["width"] = 0
    graph["5"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    graph["6"] = {"class_type": "PreviewImage", "inputs": {}}
    report = checked(graph)
    assert report.node_errors["1"]["dependent_outputs"] == ["3", "5"]
    assert report.node_errors["6"]["dependent_outputs"] == ["6"]


def test_nodes_that_no_output_needs_are_not_checked() -> None:
    assert checked({**picture(), "9": {"class_type": "ImageScale", "inputs": {}}}).ok


def test_a_cycle_is_named_at_each_of_its_nodes() -> None:
    graph = picture(image=["4", 0])
    graph["4"] = copy.deepcopy(graph["2"])
    graph["4"]["inputs"]["image"] = ["2", 0]
    report = checked(graph)
    assert set(kinds(report)) == {("2", None, "dependency_cycle"), ("4", None, "dependency_cycle")}
    assert report[0].details == "2 (ImageScale) -> 4 (ImageScale) -> 2 (ImageScale)"
    assert checked(graph, version="0.3.64").refused
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    assert checked(graph).partial
    silent = checked(graph, version="0.3.64")  # which answers 200 without node_errors, and leaves 3 out
    assert silent.ok and silent.dropped_outputs == ("3",) and "without saying so" in str(silent)


def test_a_chain_of_thousands_of_nodes_is_walked_without_recursion() -> None:
    graph: dict[str, Any] = {"0": picture()["1"]}
    for number in range(1, 5000):
        graph[str(number)] = {"class_type": "ImageInvert", "inputs": {"image": [str(number - 1), 0]}}
    graph["out"] = {"class_type": "PreviewImage", "inputs": {"images": ["4999", 0]}}
    assert checked(graph).ok
    graph["0"]["inputs"]["width"] = 0
    assert checked(graph).node_errors["0"]["dependent_outputs"] == ["out"]


# --- Dynamic inputs ------------------------------------------------------------------------------------------------


def resized(**inputs: Any) -> dict[str, Any]:
    given = {"input": ["1", 0], "scale_method": "lanczos", **inputs}
    graph = {**picture(), "2": {"class_type": "ResizeImageMaskNode", "inputs": given}}
    return graph


def test_the_selected_inputs_of_a_dynamic_combo_are_checked() -> None:
    by = {"resize_type": "scale by multiplier"}
    assert checked(resized(**by, **{"resize_type.multiplier": 2})).ok
    report = checked(resized(**by))
    assert kinds(report) == [("2", "resize_type.multiplier", "required_input_missing")]
    assert report[0].details == "multiplier"
    report = checked(resized(**by, **{"resize_type.multiplier": 100}))
    assert kinds(report) == [("2", "resize_type.multiplier", "value_bigger_than_max")]


def test_a_dynamic_combo_that_selects_nothing_is_a_warning() -> None:
    report = checked(resized(resize_type="scale by multiplyer"))
    assert report.ok and "did you mean 'scale by multiplier'?" in str(report.warnings[0])


def test_the_first_inputs_of_an_autogrow_input_are_needed() -> None:
    graph = picture()
    graph["2"] = {"class_type": "BatchImagesNode", "inputs": {"images.image1": ["1", 0]}}
    assert kinds(checked(graph)) == [("2", "images.image0", "required_input_missing")]
    graph["2"]["inputs"]["images.image0"] = ["1", 0]
    assert checked(graph).ok


# --- Classes with checks of their own ------------------------------------------------------------------------------


def loaded(**inputs: Any) -> dict[str, Any]:
    return {**picture(), "1": {"class_type": "LoadImage", "inputs": inputs}}


@pytest.mark.parametrize("name", ["example.png", "sub/x.png", "old.png [output]", "", ".", "3d"])
def test_a_file_that_may_be_on_the_server_is_no_alarm(name: str) -> None:
    assert checked(loaded(image=name)).ok


def test_a_file_that_is_not_in_the_input_folder_is_found_with_the_one_that_was_meant() -> None:
    report = checked(loaded(image="exmple.png"))
    assert kinds(report) == [("1", "image", "custom_validation_failed")]
    assert report[0].details == "image - Invalid image file: exmple.png" and report[0].nearest == "example.png"


@pytest.mark.parametrize("inputs", [{}, {"image": 5}, {"image": None}, {"image": []}])
def test_a_check_that_cannot_read_its_input_breaks_like_the_servers(inputs: dict[str, Any]) -> None:
    report = checked(loaded(**inputs))
    assert kinds(report) == [("1", "image", "exception_during_inner_validation")]


def test_files_that_will_be_uploaded_are_taken_for_given() -> None:
    assert checked(loaded(image=Path("somewhere/new.png"))).ok
    assert checked(loaded(image=b"\x89PNG")).ok


def test_inputs_that_a_class_takes_into_its_own_hands_have_no_limits() -> None:
    graph = {**picture(), "4": {"class_type": "CustomCombo", "inputs": {"choice": "anything"}}}
    graph["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}}
    assert checked(graph).ok


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ([["only"], {}], "other"),
        ([["a", "b"], {"image_upload": True}], "new.png"),
        (["COMBO", {"remote": {"route": "/x"}}], "other"),
        (["INT,FLOAT", {"min": 0}], -1),
        (["INT,FLOAT", {"min": 0}], "abc"),
    ],
)
def test_what_another_packs_class_may_check_itself_is_a_warning_at_most(spec: Any, value: Any) -> None:
    assert check(alone(x=value), custom(x=spec)).ok
    core = custom(x=spec, python_module="nodes")
    assert check(alone(x=value), core).ok == ("remote" in str(spec))


def test_the_limits_of_another_packs_plain_inputs_are_looked_at() -> None:
    assert kinds(check(alone(x=9), custom(x=["INT", {"max": 8}]))) == [("1", "x", "value_bigger_than_max")]
    assert kinds(check(alone(x="c"), custom(x=[["a", "b"]]))) == [("1", "x", "value_not_in_list")]


def test_links_of_another_packs_class_that_takes_several_types_are_not_alarming() -> None:
    graph = {**alone(x=["4", 0]), "4": {"class_type": "EmptyLatentImage", "inputs": dict(picture()["1"]["inputs"])}}
    report = check(graph, custom(x=["IMAGE,MASK"]))
    assert report.ok and "return_type_mismatch" in {warning.type for warning in report.warnings}
    assert not check(graph, custom(x=["IMAGE"])).ok


def test_outputs_that_another_packs_class_may_have_are_not_alarming() -> None:
    graph = {**picture(image=["4", 7]), "4": {"class_type": "Custom", "inputs": {}}}
    assert check(graph, custom()).ok
    assert not check(graph, custom(python_module="nodes")).ok


def test_a_class_that_cannot_be_read_is_not_checked() -> None:
    definitions = Definitions({**object_info("0.33.0"), "Custom": {"input": 5, "output_node": True}})
    graph = {**picture(image=["4", 7]), "4": {"class_type": "Custom", "inputs": {"x": 1}}}
    assert check(graph, definitions).ok


# --- Versions ------------------------------------------------------------------------------------------------------


def test_a_version_may_be_told_as_the_server_writes_it() -> None:
    for version in ("0.3.64", "v0.3.64", "0.33.0-5-gdeadbee"):
        assert checked(picture(), version=version).ok
    with pytest.raises(ValueError, match="'new' is no ComfyUI version"):
        checked(picture(), version="new")


@pytest.mark.parametrize(
    ("marks", "checks_options", "any_fits"),
    [
        ({}, False, False),
        ({"X": {"output_matchtypes": None}}, False, True),
        ({"BatchImagesNode": {}}, True, True),
        ({"X": {"price_badge": None}}, True, True),
        ({"X": {"is_input_list": False}}, True, True),
    ],
)
def test_definitions_tell_how_old_the_server_may_be(
    marks: dict[str, Any], checks_options: bool, any_fits: bool
) -> None:
    described = {"output": ["IMAGE"], "output_node": True, "python_module": "nodes"}
    chooses = {**described, "input": {"required": {"x": ["COMBO", {"options": ["a"]}]}}}
    definitions = {**marks, "Chooses": chooses}
    assert check({"1": {"class_type": "Chooses", "inputs": {"x": "b"}}}, definitions).ok != checks_options
    assert rules_for(None, Definitions(definitions)).any_fits == any_fits


# --- Fuzz ----------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["1", "2", "3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=2),
    max_leaves=5,
)
names = st.sampled_from(["image", "images", "input", "resize_type", "resize_type.width", "width", "model_file"])
node_ids = st.sampled_from(["1", "2", "3", "4"])
links = st.tuples(node_ids, st.integers(-2, 2)).map(list)
classes = ["LoadImage", "ImageScale", "SaveImage", "PreviewImage", "BatchImagesNode", "ResizeImageMaskNode"]
classes += ["Load3D", "CustomCombo"]
graph_nodes = values | st.fixed_dictionaries(
    {
        "class_type": st.sampled_from([*classes, "Gone", "ImageScaleBy"]) | values,
        "inputs": st.dictionaries(names, values | links, max_size=4) | values,
    },
    optional={"_meta": values | st.fixed_dictionaries({"title": values})},
)


@given(st.dictionaries(node_ids | st.text(max_size=3), graph_nodes, max_size=5), st.sampled_from(["0.3.64", None]))
def test_any_graph_is_reported_on_and_left_as_it_is(graph: dict[str, Any], version: str | None) -> None:
    before = copy.deepcopy(graph)
    report = None
    with contextlib.suppress(WorkflowFormatError):
        report = check(graph, {name: object_info("0.33.0")[name] for name in classes}, version=version)
    assert repr(graph) == repr(before)
    if report is not None:
        assert report.ok == (not report.refused and not report.node_errors)
        assert set(report.valid_outputs).isdisjoint(report.dropped_outputs)
        assert report.refused == (not report.valid_outputs)
        assert json.loads(json.dumps(report.node_errors)) is not None
        assert str(report) and all(str(problem) for problem in (*report, *report.warnings))
        if report.problems:
            with pytest.raises(PromptRejected):
                report.raise_for_problems()


@given(st.dictionaries(st.sampled_from(["SaveImage", "X"]), values, max_size=2))
def test_any_definitions_are_checked_against_or_refused(raw: dict[str, Any]) -> None:
    with contextlib.suppress(ProtocolError):
        check(picture(), raw)


def test_a_workflow_is_checked_like_its_dict() -> None:
    assert check(Workflow(picture()), object_info("0.33.0")) == checked(picture())


# --- The simulator knows the same ----------------------------------------------------------------------------------

simulated_nodes = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(["EmptyImage", "ImageScale", "SaveImage", "PreviewImage", "Gone"]),
        "inputs": st.dictionaries(
            st.sampled_from(["width", "height", "batch_size", "color", "images", "filename_prefix"]), values | links
        ).map(lambda inputs: {"color": 0, "batch_size": 1, "filename_prefix": "x", "images": ["1", 0], **inputs}),
    }
)


@given(st.dictionaries(node_ids, simulated_nodes, min_size=1, max_size=4), st.sampled_from(["0.3.64", "0.33.0"]))
def test_the_simulator_takes_and_refuses_what_the_check_says(graph: dict[str, Any], version: str) -> None:
    definitions = {name: simulated(version)[name].object_info() for name in ("EmptyImage", "ImageScale")}
    definitions |= {name: simulated(version)[name].object_info() for name in ("SaveImage", "PreviewImage")}
    report = check(graph, definitions, version=version)
    answer = validate(copy.deepcopy(graph), simulated(version), can=capabilities(version))
    assert (answer.error is not None, set(answer.outputs)) == (report.refused, set(report.valid_outputs))
    if answer.error is not None:
        assert report.error is not None and answer.error["type"] == report.error["type"]
    for node_id, entry in answer.node_errors.items():
        ours = report.node_errors[node_id]["errors"]
        assert {error["type"] for error in entry["errors"]} == {error["type"] for error in ours} or EXCEPTIONS & {
            error["type"] for error in ours
        }


@cache
def simulated(version: str) -> Mapping[str, Node]:
    return SimulatedServer(version=version).classes

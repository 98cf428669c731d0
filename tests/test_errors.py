"""Errors: one root, plain data that survives pickling, and sentences a user can act on."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
from hypothesis import given

from acomfy import errors
from acomfy.errors import (
    AcomfyError,
    AuthenticationError,
    BrokerError,
    ClientClosed,
    HTTPError,
    JobCancelled,
    JobError,
    JobFailed,
    JobInterrupted,
    JobLost,
    JobStalled,
    MetadataError,
    NodeProblem,
    NoServerAvailable,
    OutOfMemory,
    OutputMissing,
    PayloadTooLarge,
    PromptRejected,
    ProtocolError,
    QueueFull,
    ServerError,
    ServerUnreachable,
    UnknownNode,
    UnknownNodes,
    WorkflowError,
    WorkflowFormatError,
    nearest_match,
)

from . import strategies as given_by

P = "4f87c99f"


def failed(cls: type[JobFailed] = JobFailed, **more: Any) -> JobFailed:
    fields: dict[str, Any] = {
        "node_id": "4",
        "class_type": "CheckpointLoaderSimple",
        "exception_type": "FileNotFoundError",
        "exception_message": "'sdxl.safetensors'\n",
        "traceback": ("line",),
        "title": "Load it",
    }
    return cls(P, **{**fields, **more})


NODE_ERRORS = {
    "4": {
        "class_type": "CheckpointLoaderSimple",
        "dependent_outputs": ["9"],
        "errors": [
            {
                "type": "value_not_in_list",
                "message": "Value not in list",
                "details": "ckpt_name: 'x' not in list",
                "extra_info": {
                    "input_name": "ckpt_name",
                    "input_config": [["a.safetensors", "b.safetensors"], {}],
                    "received_value": "x",
                },
            }
        ],
    }
}
ERROR = {
    "type": "prompt_outputs_failed_validation",
    "message": "Prompt outputs failed validation",
    "details": "",
    "extra_info": {},
}

EVERY_ERROR = [
    ServerUnreachable("http://x", "refused", maybe_sent=True),
    BrokerError("nats://x", "stream not found", code=10059),
    PayloadTooLarge(200, 100),
    ProtocolError("nonsense"),
    HTTPError(500, "GET", "http://x/queue", "oops"),
    AuthenticationError(401, "GET", "http://x/queue", ""),
    WorkflowError("wrong", node_id="3", input_name="seed"),
    WorkflowFormatError("UI format"),
    UnknownNodes([UnknownNode("12:3", "Gone", "Mine")]),
    PromptRejected(ERROR, NODE_ERRORS, titles={"4": "Load it"}),
    failed(),
    failed(OutOfMemory),
    JobCancelled(P),
    JobInterrupted(P),
    JobLost(P, "deleted"),
    JobStalled(P, 30.0),
    MetadataError("the file ends at 12"),
    OutputMissing(P, "9", filename="a.png"),
    OutputMissing(P, "8", received=(b"one",)),
    ClientClosed(),
    QueueFull("the line is full"),
    NoServerAvailable("none is up"),
]


def test_there_is_an_example_of_every_error_here() -> None:
    concrete = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, AcomfyError)}
    assert {type(error) for error in EVERY_ERROR} == concrete - {AcomfyError, ServerError, JobError}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn, ancestors = {}, ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        name = line.strip().partition(" ")[0]
        if inspect.isclass(getattr(errors, name, None)) and line.startswith("    "):
            depth = (len(line) - len(line.lstrip()) - 4) // 2 + 1
            del ancestors[depth:]
            drawn[name] = ancestors[-1]
            ancestors.append(name)
    assert drawn == {
        name: cls.__bases__[0].__name__
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, AcomfyError)
    }


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_errors_survive_pickling_and_copying(error: AcomfyError, copied: Any) -> None:
    error = copy.copy(error)  # others use it too
    error.add_note("a note")
    twin = copied(error)
    assert type(twin) is type(error)
    assert (str(twin), vars(twin)) == (str(error), vars(error))


def test_a_subclass_with_its_own_constructor_survives_pickling_too() -> None:
    assert str(pickle.loads(pickle.dumps(_Own(1, 2)))) == "1 of 2"


class _Own(AcomfyError):
    def __init__(self, part: int, whole: int) -> None:
        super().__init__(f"{part} of {whole}")


# --- Sentences -----------------------------------------------------------------------------------------------------


def test_a_failed_job_names_node_class_title_and_cause() -> None:
    assert str(failed()) == (
        "node 4 (CheckpointLoaderSimple, 'Load it') of prompt 4f87c99f: FileNotFoundError: 'sdxl.safetensors'"
    )


def test_a_title_that_repeats_the_class_is_not_repeated() -> None:
    assert "(CheckpointLoaderSimple) of" in str(failed(title="CheckpointLoaderSimple"))


def test_a_failure_without_node_or_type_is_a_sentence_all_the_same() -> None:
    assert str(failed(node_id="", exception_type="", exception_message="gone")) == (
        "a node of prompt 4f87c99f: error: gone"
    )


def test_a_very_long_message_is_shortened_in_the_sentence_and_kept_in_the_attribute() -> None:
    error = failed(exception_message="x" * 5000)
    assert len(str(error)) < 1200 and len(error.exception_message) == 5000


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("deleted", "removed it from the queue"),
        ("restarted", "server restarted"),
        ("evicted", "history entry is gone"),
        ("unreachable", "did not come back"),
        ("another", "another"),
    ],
)
def test_a_lost_job_says_why(reason: str, words: str) -> None:
    assert words in str(JobLost(P, reason))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ServerUnreachable("http://x", "refused"), "no answer from http://x: refused; is ComfyUI running"),
        (PayloadTooLarge(200, 100), "a body of 200 bytes is over the server's limit of 100 bytes; start ComfyUI with"),
        (PayloadTooLarge(None, None), "the body is over the server's limit; start"),
        (HTTPError(500, "GET", "http://x/q", "oops"), "GET http://x/q was answered with 500: 'oops'"),
        (HTTPError(500, "GET", "http://x/q", ""), "GET http://x/q was answered with 500"),
        (AuthenticationError(401, "GET", "http://x/q", "", "log in"), "answered with 401; log in"),
        (JobCancelled(P), "prompt 4f87c99f was cancelled by this client"),
        (JobInterrupted(P), "not by this client"),
        (JobStalled(P, 30.0), "made no progress for 30 s"),
        (OutputMissing(P, "9", filename="a.png"), "file 'a.png' of node 9 is gone"),
        (
            OutputMissing(P, "8", received=(b"1", b"2")),
            "images streamed by node 8 were lost in a gap of the connection (2",
        ),
        (ClientClosed(), "the client is closed"),
        (ClientClosed("not now"), "not now"),
    ],
)
def test_each_sentence_says_what_to_do_or_what_was_there(error: AcomfyError, words: str) -> None:
    assert words in str(error)


# --- A refused prompt ----------------------------------------------------------------------------------------------


def test_a_refusal_lists_node_input_message_and_allowed_values() -> None:
    error = PromptRejected(ERROR, NODE_ERRORS, titles={"4": "Load it"})
    assert error.problems == [
        NodeProblem(
            node_id="4",
            class_type="CheckpointLoaderSimple",
            title="Load it",
            type="value_not_in_list",
            message="Value not in list",
            details="ckpt_name: 'x' not in list",
            input_name="ckpt_name",
            received="x",
            allowed=["a.safetensors", "b.safetensors"],
        )
    ]
    assert str(error) == (
        "the server refused the prompt: Prompt outputs failed validation\n"
        "  - node 4 (CheckpointLoaderSimple, 'Load it'), input 'ckpt_name': "
        "Value not in list ('x'); allowed: 'a.safetensors', 'b.safetensors'"
    )
    assert (error.error_type, error.partial) == ("prompt_outputs_failed_validation", False)


def test_a_partial_refusal_says_that_the_rest_would_run() -> None:
    error = PromptRejected({}, NODE_ERRORS, partial=True)
    assert error.partial and error.error_type is None
    assert str(error).startswith(
        "the server dropped some outputs of the prompt (strict=False runs the rest)\n  - node 4"
    )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ({}, "the server refused the prompt: no reason given"),
        ({"type": "no_prompt"}, "the server refused the prompt: no_prompt"),
        ({"message": "Bad", "details": "Node ID '#2'"}, "the server refused the prompt: Bad (Node ID '#2')"),
        ({"message": 3, "type": [], "details": {}}, "the server refused the prompt: no reason given"),
    ],
)
def test_a_refusal_without_node_errors_is_a_sentence_all_the_same(error: dict[str, Any], sentence: str) -> None:
    assert str(PromptRejected(error, {})) == sentence


def test_long_lists_are_shortened_in_the_sentence_and_kept_in_the_attributes() -> None:
    choices = [f"model{number}" for number in range(30)]
    problem = {"type": "value_not_in_list", "message": "No", "extra_info": {"input_config": [choices, {}]}}
    error = PromptRejected(ERROR, {str(node): {"class_type": "X", "errors": [problem]} for node in range(15)})
    assert len(error.problems) == 15 and error.problems[0].allowed == choices
    assert "'model7' and 22 more" in str(error) and "  - and 5 more" in str(error)


@pytest.mark.parametrize(
    ("input_config", "allowed"),
    [
        (["COMBO", {"options": ["a", "b"]}], ["a", "b"]),
        (["COMBO"], None),
        (["INT", {"min": 0, "max": 9}], {"min": 0, "max": 9}),
        (["INT"], None),
        ([["a"]], ["a"]),
        ([], None),
        (None, None),
        ("odd", None),
    ],
)
def test_the_allowed_values_are_read_off_every_kind_of_input(input_config: Any, allowed: Any) -> None:
    problem = {"type": "x", "message": "m", "extra_info": {"input_config": input_config}}
    error = PromptRejected(ERROR, {"1": {"errors": [problem]}})
    assert error.problems[0].allowed == allowed
    assert "(unknown class)" in str(error)


def test_a_misspelt_value_is_answered_with_the_nearest_allowed_one() -> None:
    extra = {"input_name": "ckpt_name", "input_config": [["v1.ckpt", "sd_xl_base.safetensors"], {}]}
    problem = {"type": "value_not_in_list", "message": "Value not in list", "extra_info": extra}
    extra["received_value"] = "sd_xl_bsae.safetensors"
    error = PromptRejected(ERROR, {"4": {"class_type": "CheckpointLoaderSimple", "errors": [problem]}})
    assert error.problems[0].nearest == "sd_xl_base.safetensors"
    assert (
        "Value not in list ('sd_xl_bsae.safetensors'); did you mean 'sd_xl_base.safetensors'? Allowed: 'v1.ckpt'"
        in str(error)
    )


@pytest.mark.parametrize(
    ("value", "choices", "nearest"),
    [
        ("EULER", ["ddim", "euler", "euler_ancestral"], "euler"),
        ("model.safetensors", ["other.safetensors", "SDXL/model.safetensors"], "SDXL/model.safetensors"),
        ("SDXL\\Model.safetensors", ["model.ckpt", "SDXL/model.safetensors"], "SDXL/model.safetensors"),
        ("model.ckpt", ["other.ckpt", "model.safetensors"], "model.safetensors"),
        ("lanczoz", ["nearest-exact", "lanczos"], "lanczos"),
        ("model_1042x.pt", [f"model_{number}.pt" for number in range(1000, 3000)], "model_1042.pt"),
        (5, ["4", "5"], "5"),
        ("nope.safetensors", ["sd_xl_base.safetensors"], None),  # the ending says nothing
        ("", ["a"], None),
        ("a", [], None),
        (None, ["None"], None),
        ({"a": 1}, ["a"], None),
        ("a", [1, None, ["a"]], None),
        ("x" * 10**6, ["x" * 10**6], None),
    ],
)
def test_the_nearest_match_ignores_case_folder_and_ending_before_it_compares_letters(
    value: Any, choices: list[Any], nearest: str | None
) -> None:
    assert nearest_match(value, choices) == nearest


def test_a_problem_of_the_whole_prompt_and_a_hint_are_part_of_the_sentence() -> None:
    problem = NodeProblem("", None, None, "prompt_no_outputs", "Prompt has no outputs", "", None, None, None, "add one")
    assert str(problem) == "the prompt: Prompt has no outputs; add one"
    assert problem.nearest is None


@pytest.mark.parametrize(
    ("exception", "details", "words"),
    [
        ("KeyError", "'77'", "linked to the node '77', which is not in the prompt"),
        ("IndexError", "tuple index out of range", "an output that the node there does not have"),
        ("TypeError", "tuple indices must be integers", "(tuple indices must be integers)"),
    ],
)
def test_an_exception_of_the_servers_validation_is_put_into_words(exception: str, details: str, words: str) -> None:
    for kind in ("exception_during_validation", "exception_during_inner_validation"):
        error = {"type": kind, "message": "Exception when validating node", "details": details}
        extra = {"exception_type": exception, "traceback": []}
        assert words in str(PromptRejected({}, {"2": {"errors": [{**error, "extra_info": extra}]}}))


def test_a_refusal_that_names_no_node_may_be_a_cycle() -> None:
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""}
    assert "do links go round in a circle?" in str(PromptRejected(error, {}))


def test_a_refusal_takes_problems_that_were_found_elsewhere() -> None:
    problem = NodeProblem("7", "X", None, "missing_node_type", "Not found", "", None, None, None)
    error = PromptRejected(ERROR, {}, problems=[problem])
    assert error.problems == [problem] and "node 7 (X): Not found" in str(error)


@pytest.mark.parametrize(
    "entry",
    [None, 3, [], {}, {"errors": 3}, {"errors": None}, {"errors": "abc"}, {"errors": [3]}, {"errors": {"a": 1}}],
)
def test_node_errors_of_another_shape_are_passed_over(entry: Any) -> None:
    assert PromptRejected(ERROR, {"1": entry}).problems == []


def test_a_problem_of_odd_fields_is_read_all_the_same() -> None:
    odd: dict[str, Any] = {"type": None, "message": 3, "details": None, "extra_info": []}
    (problem,) = PromptRejected(ERROR, {"1": {"class_type": 3, "errors": [odd, "x"]}}).problems
    assert (problem.class_type, problem.type, problem.message, problem.input_name) == (None, "", "", None)


@given(given_by.json_objects, given_by.json_objects)
def test_whatever_the_server_refuses_with_becomes_a_sentence(
    error: dict[str, Any], node_errors: dict[str, Any]
) -> None:
    assert str(PromptRejected(error, node_errors))
    assert str(PromptRejected(error, {"1": {"errors": [node_errors, {"extra_info": node_errors}]}}))

"""Errors over the wire: of the same class and with the same attributes, or of the nearest class, and never a danger."""

from __future__ import annotations

import copy
import json
import math
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acomfy
from acomfy import errors
from acomfy.errors import (
    AcomfyError,
    AuthenticationError,
    HTTPError,
    JobLost,
    JobStalled,
    NodeProblem,
    OutOfMemory,
    OutputMissing,
    PromptRejected,
    ServerError,
    ServerUnreachable,
    UnknownNode,
    UnknownNodes,
)
from acomfy.fleet import failures
from acomfy.fleet.failures import read_error, read_value, write_error, write_value
from acomfy.fleet.objects import BlobMissing

from . import strategies as given_by
from .conftest import FUZZ
from .test_errors import ERROR, EVERY_ERROR, NODE_ERRORS, P, failed

UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, RecursionError)


def sent(error: BaseException) -> AcomfyError:
    """Send an error as JSON, and read it."""
    return read_error(json.loads(json.dumps(write_error(error))))


def read(data: Any, *kinds: str) -> AcomfyError:
    return read_error({"kinds": list(kinds) or ["JobLost"], "message": "lost", "data": data})


MORE_ERRORS = [
    ServerUnreachable("http://[::1]:8188", "Name or service not known", hint="look"),
    HTTPError(429, "POST", "http://x/prompt", "{}", content_type="application/json", error_type="Q", retry_after=2.5),
    AuthenticationError(403, "GET", "http://x", "\ud800", retry_after=math.inf),
    PromptRejected(ERROR, NODE_ERRORS, partial=True),
    PromptRejected({"type": "no_prompt", "message": "No prompt provided", "details": "x"}, {}),
    failed(OutOfMemory, title=None, traceback=("a\n", "\udfff")),
    JobStalled(P, 30),
    JobLost(P, "some other reason"),
    OutputMissing(P, "8", received=(b"\x89PNG" * 5000, b"")),
    OutputMissing(P, "8", filename="a.png", cached=True),
    UnknownNodes([UnknownNode(str(number), f"Class {number}", None) for number in range(30)]),
]


@pytest.mark.parametrize("error", EVERY_ERROR + MORE_ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_survives_the_trip_with_all_that_it_says(error: AcomfyError) -> None:
    twin = sent(error)
    assert type(twin) is type(error)
    assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
    for copied in (pickle.loads(pickle.dumps(twin)), copy.deepcopy(twin), sent(twin)):
        assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))
    assert str(error).splitlines()[0] in "".join(traceback.format_exception(twin))


def test_what_is_computed_of_the_attributes_works_after_the_trip() -> None:
    error = sent(PromptRejected(ERROR, NODE_ERRORS, titles={"4": "Load it"}))
    assert isinstance(error, PromptRejected)
    assert error.dropped_outputs == {"9"}
    assert isinstance(error.problems[0], NodeProblem)
    assert "input 'ckpt_name'" in str(error.problems[0])
    with pytest.raises(PromptRejected):
        raise error


@settings(max_examples=40 * FUZZ)
@given(given_by.json_objects, given_by.json_objects, given_by.json_values)
def test_whatever_a_server_refuses_with_survives(error: dict[str, Any], entry: dict[str, Any], value: Any) -> None:
    problem = {"errors": [entry, {"type": "t", "extra_info": {"received_value": value}}]}
    before = PromptRejected(error, {"1": problem, "2": entry})
    after = sent(before)
    assert (str(after), vars(after)) == (str(before), vars(before))


def test_an_error_of_a_class_that_is_not_known_here_becomes_the_nearest_one_that_is() -> None:
    class Melted(OutOfMemory):
        """An error that only a newer acomfy has."""

    newer = failed(Melted)
    newer.degrees = 3000  # type: ignore[attr-defined]
    twin = sent(newer)
    assert type(twin) is OutOfMemory
    assert (str(twin), vars(twin)) == (str(newer), vars(newer))
    missing = sent(BlobMissing("FILES", "a", "it was deleted"))
    assert (type(missing), vars(missing)) == (ServerError, {"bucket": "FILES", "name": "a"})
    assert type(read({}, "Melted", "Unheard")) is AcomfyError


def test_an_error_that_is_not_of_acomfy_keeps_its_name_and_its_sentence() -> None:
    twin = sent(MemoryError("no room"))
    assert (type(twin), str(twin), vars(twin)) == (AcomfyError, "MemoryError: no room", {})


@pytest.mark.parametrize("example", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_an_error_of_an_older_acomfy_has_every_attribute_all_the_same(example: AcomfyError) -> None:
    twin = read({}, type(example).__name__)
    assert type(twin) is type(example) and str(twin) == "lost"
    assert vars(twin).keys() == vars(example).keys()
    assert str(pickle.loads(pickle.dumps(twin))) == "lost"


def test_two_errors_of_which_nothing_is_known_share_nothing() -> None:
    first, second = read({}, "PromptRejected"), read({}, "PromptRejected")
    assert isinstance(first, PromptRejected) and isinstance(second, PromptRejected)
    first.problems.append(NodeProblem("1", None, None, "", "", "", None, None, None))
    first.node_errors["1"] = {}
    assert (second.problems, second.node_errors) == ([], {})


# --- What is no error ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "__class__",
        "__dict__",
        "__reduce__",
        "__reduce_ex__",
        "__getattr__",
        "__notes__",
        "__cause__",
        "__traceback__",
        "_where",
        "_EXPLAINED",
        "args",
        "add_note",
        "with_traceback",
        "dropped_outputs",
    ],
)
def test_nothing_of_an_error_can_be_replaced_by_what_comes(name: str) -> None:
    for kind in ("PromptRejected", "JobLost", "JobFailed"):
        if name == "dropped_outputs" and kind != "PromptRejected":
            continue
        error = read({name: "x", "free": 1}, kind)
        assert name not in vars(error) and vars(error)["free"] == 1
        assert type(error) is getattr(errors, kind)
        error.add_note("fine")
        assert error.args == ("lost",) and error.__cause__ is None
        assert type(pickle.loads(pickle.dumps(error))) is type(error)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("PromptRejected", {"problems": 3, "node_errors": [], "partial": "yes", "message": None}),
        ("PromptRejected", {"problems": [{"node_id": "1"}], "node_errors": "x"}),
        ("UnknownNodes", {"nodes": [1, 2]}),
        ("UnknownNodes", {"nodes": {"$": "tuple", "of": [1]}}),
        ("JobFailed", {"traceback": "line", "node_id": 3, "prompt_id": ["p"]}),
        ("JobFailed", {"traceback": {"$": "tuple", "of": [1]}}),
        ("JobStalled", {"stall_timeout": "30"}),
        ("HTTPError", {"status": "404", "body": None}),
        ("OutputMissing", {"received": {"$": "tuple", "of": ["text"]}}),
    ],
)
def test_an_attribute_of_another_kind_than_it_has_is_passed_over(kind: str, data: dict[str, Any]) -> None:
    assert vars(read(data, kind)) == vars(read({}, kind))


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        "text",
        [1],
        {"a": {"$": "NodeProblem"}},
        {"a": {"$": "NodeProblem", "of": {}}},
        {"a": {"$": "NodeProblem", "of": 3}},
        {"a": {"$": "UnknownNode", "of": {"node_id": 1, "class_type": "a", "title": None}}},
        {"a": {"$": "UnknownNode", "of": {"node_id": None, "class_type": "a", "title": None}}},
        {"a": {"$": "tuple", "of": 3}},
        {"a": {"$": "dict", "of": [[[], 1]]}},
        {"a": {"$": "dict", "of": [1]}},
        {"a": {"$": "frozenset", "of": [[]]}},
        {"a": {"$": "bytes", "of": 3}},
        {"a": {"$": "bytes", "of": "x"}},
        {"a": {"$": ["list"], "of": 3}},
        {"a": {"$": "x"}},
    ],
)
def test_what_was_never_written_is_refused_with_an_error_that_readers_expect(data: Any) -> None:
    with pytest.raises(UNREADABLE):
        read(data)


@pytest.mark.parametrize("found", [{}, {"kinds": 3}, {"kinds": [], "message": 3, "data": {}}, {"kinds": [[]]}])
def test_an_error_without_class_or_sentence_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(UNREADABLE):
        read_error(found)


def test_what_a_newer_acomfy_tags_is_read_as_what_stands_behind_the_tag() -> None:
    assert read_value({"$": "Fraction", "of": [1, {"$": "tuple", "of": [2]}]}) == [1, (2,)]
    newer = {"$": "UnknownNode", "of": {"node_id": "1", "class_type": "A", "title": None, "pack": "b"}}
    assert read_value(newer) == UnknownNode("1", "A", None)


def test_json_that_is_nested_without_end_is_refused() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RecursionError):
        read({"a": deep})


@given(
    st.recursive(
        given_by.json_values,
        lambda inner: st.fixed_dictionaries(
            {
                "$": st.sampled_from(["dict", "tuple", "frozenset", "bytes", "NodeProblem", "UnknownNode", "x"]),
                "of": inner,
            }
        ),
        max_leaves=5,
    )
)
def test_whatever_is_read_raises_only_what_readers_expect(value: Any) -> None:
    try:
        error = read({"a": value, "problems": value}, "PromptRejected")
    except UNREADABLE:
        return
    assert isinstance(error, PromptRejected)
    assert all(str(problem) for problem in error.problems)
    pickle.dumps(error)


# --- Values ----------------------------------------------------------------------------------------------------------

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | given_by.texts | st.binary(max_size=20)
)
keys = st.integers() | given_by.texts | st.sampled_from(["$", "of"])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.frozensets(leaves, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50 * FUZZ)
@given(values)
def test_every_plain_value_is_read_as_it_was_written(value: Any) -> None:
    written = json.dumps(write_value(value))
    read = read_value(json.loads(written))
    assert read == value
    assert json.dumps(write_value(read)) == written  # True is no 1, and a tuple no list


def test_what_is_strange_is_told_and_what_is_too_deep_is_cut() -> None:
    assert write_value(3 + 4j) == "(3+4j)"
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert "<list, nested too deep>" in json.dumps(write_value(deep))
    assert read_value(write_value(deep))[0][0]
    while isinstance(deep, list):  # else its end would need as deep a stack
        deep = deep[0]


def test_views_are_bytes_and_half_a_picture_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_value(write_value((memoryview(b"ab"), bytearray(b"c")))) == (b"ab", b"c")
    monkeypatch.setattr(failures, "_MOST_BYTES", 1000)
    error = sent(OutputMissing(P, "8", received=(bytes(600), bytes(600), b"small")))
    assert isinstance(error, OutputMissing)
    assert [len(data) for data in error.received] == [600, 0, 5]


# --- Secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "client",
    [
        acomfy.Client("http://user:canary@127.0.0.1:9"),
        acomfy.Client("http://127.0.0.1:9/", token="canary", params={"token": "canary"}),
    ],
)
def test_credentials_of_a_server_are_not_in_what_is_sent(client: acomfy.Client) -> None:
    unreachable = ServerUnreachable(client.api.url, "refused")
    refused = HTTPError(500, "GET", f"{client.api.url}/queue", "oops")
    refused.__cause__ = OSError("canary")
    refused.add_note("canary")
    refused._response = "canary"  # type: ignore[attr-defined]
    for error in (unreachable, refused):
        written = json.dumps(write_error(error))
        assert "canary" not in written and "127.0.0.1:9" in written

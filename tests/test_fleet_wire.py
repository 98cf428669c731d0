"""What travels over the broker: it comes back as it was, or it is refused with a `ProtocolError`; nothing between."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acomfy.errors import JobCancelled, JobLost, NodeProblem, PromptRejected, ProtocolError
from acomfy.fleet.wire import (
    VERSION,
    Attempt,
    Blob,
    InputBlob,
    NewerVersion,
    Order,
    Outcome,
    StoredFile,
    Success,
    read_attempt,
    read_order,
    read_outcome,
    write_attempt,
    write_order,
    write_outcome,
    write_reference,
)
from acomfy.frames import load_json
from acomfy.job import PromptOptions
from acomfy.outputs import FileReference, TextValue
from acomfy.verdict import JobState

from . import strategies as given_by
from .conftest import FUZZ
from .test_errors import EVERY_ERROR

Read: TypeAlias = Callable[[bytes], Any]

texts = given_by.texts
tokens = st.text("aZ09_-", min_size=1, max_size=64)
blobs = st.builds(Blob, texts, texts, st.integers(0, 2**63), texts)
inputs = st.builds(InputBlob, texts, st.none() | texts, st.none() | texts, texts, texts, blobs)
json_bytes = given_by.json_objects.map(lambda value: json.dumps(value).encode())
options = st.builds(
    PromptOptions,
    strict=st.booleans(),
    on_lost=st.sampled_from(["raise", "resubmit"]),
    targets=st.none() | st.lists(texts, max_size=3).map(tuple),
    extra_data=st.none() | json_bytes,
    stall_timeout=st.none() | st.floats(0.1, 1e6) | st.just(math.inf),
)
orders = st.builds(
    Order,
    job_id=tokens,
    client_id=tokens,
    graph=st.binary(min_size=1, max_size=60) | json_bytes | blobs,
    group=tokens,
    priority=st.integers(-9, 9),
    streams=st.lists(texts, max_size=3).map(tuple),
    options=options,
    files=st.lists(inputs, max_size=2).map(tuple),
    created=st.floats(0, 2**40),
)
attempts = st.builds(
    Attempt, st.integers(1, 2**31), texts, texts, texts, texts, st.floats(0, 2**40), st.integers(0, 9), texts
)
# As a server's answer is read: integers beyond 64 bits are what `load_json` makes of them.
raws = given_by.json_objects.map(lambda value: load_json(json.dumps(value).encode()))
references = st.builds(FileReference, texts, texts, texts, texts, texts, texts, st.booleans(), raws)
outputs = st.builds(TextValue, texts, texts, texts) | st.builds(
    StoredFile, references, st.none() | blobs, st.booleans()
)
problems = st.builds(
    NodeProblem, texts, st.none() | texts, st.none() | texts, texts, texts, texts, st.none() | texts, raws, raws
)
successes = st.builds(
    Success,
    st.lists(outputs, max_size=3).map(tuple),
    raws,
    st.none() | st.lists(texts, max_size=3).map(tuple),
    st.dictionaries(texts, raws, max_size=2),
)
outcomes = st.builds(
    Outcome,
    texts,
    texts,
    st.just(JobState.COMPLETED),
    successes,
    st.integers(0, 99),
    texts,
    texts,
    st.lists(problems, max_size=2).map(tuple),
)

ORDER = Order("id", "me", b'{"1": {}}', files=(InputBlob("m", "1", "image", "w", "f", Blob("B", "n", 3, "ab")),))
ATTEMPT = Attempt(1, "id", "http://gpu:8188", "gpu", "gpu-1-a", 1.5)
FILE = FileReference("9", "images", "a.png", "", "output", "image/png", entry={"filename": "a.png"})
SUCCESS = Success(
    (StoredFile(FILE, Blob("B", "n", 3, "ab")), TextValue("2", "text", "hello")),
    {"9": {"images": []}},
    ("1",),
    {"9": {}},
)
OUTCOME = Outcome("id", "id", JobState.COMPLETED, SUCCESS, 1, "http://gpu:8188", "gpu-1-a")
LOST = Outcome("id", "id", JobState.LOST, JobLost("id", "restarted"), 3)
FORMS: list[tuple[Read, bytes]] = [
    (read_order, write_order(ORDER)),
    (read_order, write_order(replace(ORDER, graph=Blob("B", "g", 9, "cd")))),
    (read_attempt, write_attempt(ATTEMPT)),
    (read_outcome, write_outcome(OUTCOME)),
    (read_outcome, write_outcome(LOST)),
    (read_outcome, write_reference(Blob("B", "o", 9, "ef"))),
]
NAMES = ["order", "order-blob", "attempt", "success", "failure", "reference"]
every_form = pytest.mark.parametrize(("read", "written"), FORMS, ids=NAMES)


def changed(written: bytes, **fields: Any) -> bytes:
    """Replace fields of a message; ``...`` removes one."""
    head, newline, rest = written.partition(b"\n")
    found = json.loads(head)
    for name, value in fields.items():
        if value is ...:
            del found[name]
        else:
            found[name] = value
    return json.dumps(found).encode() + newline + rest


# --- There and back --------------------------------------------------------------------------------------------------


@settings(max_examples=40 * FUZZ)
@given(orders)
def test_an_order_comes_as_it_was_sent_its_graph_byte_for_byte(order: Order) -> None:
    assert read_order(write_order(order)) == order


@pytest.mark.parametrize("graph", [b"\n", b"\n\n{}\n", b'{"a":\n"\\ud800 \\u0000"}', b"\xff\x00\xfe", "{} é".encode()])
def test_a_graph_is_never_looked_into(graph: bytes) -> None:
    assert read_order(write_order(replace(ORDER, graph=graph))).graph == graph


@settings(max_examples=40 * FUZZ)
@given(attempts)
def test_an_attempt_comes_as_it_was_written(attempt: Attempt) -> None:
    assert read_attempt(write_attempt(attempt)) == attempt


@settings(max_examples=40 * FUZZ)
@given(outcomes)
def test_a_success_comes_as_it_was_written(outcome: Outcome) -> None:
    assert read_outcome(write_outcome(outcome)) == outcome


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.LOST])
def test_an_error_comes_as_it_was_written(error: BaseException, state: JobState) -> None:
    outcome = Outcome("id", "p", state, error, 2, "http://gpu", "w")
    found = read_outcome(write_outcome(outcome))
    assert isinstance(found, Outcome) and isinstance(found.value, BaseException)
    assert replace(found, value=error) == outcome
    assert (type(found.value), str(found.value), vars(found.value)) == (type(error), str(error), vars(error))


@given(blobs)
def test_what_stands_for_a_large_outcome_comes_as_it_was_written(blob: Blob) -> None:
    assert read_outcome(write_reference(blob)) == blob


def test_what_json_does_not_know_but_servers_send_comes_through() -> None:
    odd = {"nan": math.nan, "inf": [math.inf, -math.inf], "large": 2**200, "lone": "\ud800", "\udfff": "\x00"}
    found = read_outcome(write_outcome(replace(OUTCOME, value=replace(SUCCESS, raw=odd))))
    assert isinstance(found, Outcome) and isinstance(found.value, Success)
    assert repr(found.value.raw) == repr(odd)


def test_a_large_integer_alone_is_what_a_client_would_have_made_of_it() -> None:
    found = read_outcome(write_outcome(replace(OUTCOME, value=replace(SUCCESS, raw={"large": 2**200}))))
    assert isinstance(found, Outcome) and isinstance(found.value, Success)
    assert found.value.raw == load_json(b'{"large": %d}' % 2**200)


def test_outputs_that_are_nested_too_deep_to_be_written_end_as_an_error_that_says_so() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    found = read_outcome(write_outcome(replace(OUTCOME, value=replace(SUCCESS, raw={"9": deep}))))
    assert isinstance(found, Outcome)
    assert (found.state, type(found.value)) == (JobState.FAILED, ProtocolError)
    assert "nested too deep" in str(found.value)
    while isinstance(deep, list):  # else its end would need as deep a stack
        deep = deep[0]


# --- Versions --------------------------------------------------------------------------------------------------------


@every_form
def test_what_a_newer_version_wrote_is_told_apart(read: Read, written: bytes) -> None:
    with pytest.raises(NewerVersion, match=f"version {VERSION + 1}, known is {VERSION}.; update this one"):
        read(changed(written, v=VERSION + 1))
    with pytest.raises(NewerVersion):
        read(b'{"v": 99}')


@every_form
@pytest.mark.parametrize("version", [..., None, "1", 0, -1, 1.0, [1]])
def test_what_has_no_version_is_of_somebody_else(read: Read, written: bytes, version: Any) -> None:
    with pytest.raises(ProtocolError, match="not of a fleet") as caught:
        read(changed(written, v=version))
    assert not isinstance(caught.value, NewerVersion)


@every_form
def test_fields_that_are_not_known_are_passed_over_wherever_they_stand(read: Read, written: bytes) -> None:
    def more(value: Any) -> Any:
        if isinstance(value, list):
            return [more(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {name: more(item) if name not in ("raw", "nodes", "entry") else item for name, item in value.items()} | {
            "later": {"x": 1}
        }

    head, newline, rest = written.partition(b"\n")
    newer = json.dumps(more(json.loads(head))).encode() + newline + rest
    before, after = read(written), read(newer)
    if isinstance(before, Outcome) and isinstance(before.value, BaseException):
        assert vars(after.value) == vars(before.value) | {"later": {"x": 1}}
        after = replace(after, value=before.value)
    assert after == before


@every_form
def test_a_field_that_is_missing_or_of_another_kind_is_refused(read: Read, written: bytes) -> None:
    optional = {"failures", "lost"}
    for name, value in json.loads(written.partition(b"\n")[0]).items():
        if name == "v" or (read is read_order and name == "graph"):
            continue
        if name not in optional:
            with pytest.raises(ProtocolError):
                read(changed(written, **{name: ...}))
        for wrong in (None, [], {}, "x", [[1]], {"a": 1}, 1e999, -1, 10**400, "\ud800"):
            if type(wrong) is not type(value):
                found = attempt_to_read(read, changed(written, **{name: wrong}))
                assert found is None or not isinstance(value, str)


def attempt_to_read(read: Read, message: bytes) -> Any:
    """Read a message; None when it is refused as it should be. Any other exception is a bug."""
    try:
        return read(message)
    except ProtocolError as exc:
        assert len(str(exc)) < 1000
        return None


# --- What is none ----------------------------------------------------------------------------------------------------


@every_form
def test_every_truncation_is_refused_or_has_only_lost_of_its_graph(read: Read, written: bytes) -> None:
    for end in range(len(written)):
        found = attempt_to_read(read, written[:end])
        if found is not None:
            assert isinstance(found, Order) and isinstance(found.graph, bytes)
            assert written.endswith(b"\n" + found.graph, 0, end)


@every_form
@settings(max_examples=40 * FUZZ)
@given(data=st.data())
def test_damaged_messages_are_read_or_refused(read: Read, written: bytes, data: st.DataObject) -> None:
    damaged = bytearray(written)
    for place in data.draw(st.lists(st.integers(0, len(written) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    attempt_to_read(read, bytes(damaged))


@every_form
@settings(max_examples=40 * FUZZ)
@given(data=st.data())
def test_whatever_stands_in_a_field_the_message_is_read_or_refused(
    read: Read, written: bytes, data: st.DataObject
) -> None:
    found = json.loads(written.partition(b"\n")[0])
    inside, name = found, data.draw(st.sampled_from(sorted(found)))
    while isinstance(inside[name], dict) and inside[name] and data.draw(st.booleans()):
        inside = inside[name]
        name = data.draw(st.sampled_from(sorted(inside)))
    inside[name] = data.draw(given_by.json_values)
    attempt_to_read(read, json.dumps(found).encode() + b"\n{}")


@pytest.mark.parametrize("read", [read_order, read_attempt, read_outcome])
@settings(max_examples=40 * FUZZ)
@given(message=st.binary(max_size=60) | json_bytes)
def test_random_bytes_are_refused(read: Read, message: bytes) -> None:
    assert attempt_to_read(read, message) is None


@every_form
def test_json_that_is_nested_without_end_is_refused(read: Read, written: bytes) -> None:
    for depth in (300, 900, 1020, 5000):
        for name in json.loads(written.partition(b"\n")[0]):
            before, _, after = changed(written, **{name: "HERE"}).partition(b'"HERE"')
            attempt_to_read(read, before + b"[" * depth + b"]" * depth + after)
            attempt_to_read(read, before + b'{"$":"tuple","of":[' * depth + b"]}" * depth + after)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "a.b"},
        {"id": "x 3\r\nPUB y 1\r\n"},
        {"id": ""},
        {"client": ">"},
        {"group": "*"},
        {"priority": 10},
        {"priority": math.nan},
        {"priority": "5"},
        {"streams": "abc"},
        {"options": {"on_lost": "never"}},
        {"options": {"targets": "abc"}},
        {"options": {"stall_timeout": "soon"}},
        {"extra_data": {}},
        {"graph": {"bucket": "B", "name": "n", "size": -1, "sha256": ""}},
    ],
)
def test_an_order_that_could_be_taken_for_another_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="an order of the fleet cannot be read"):
        read_order(changed(write_order(ORDER), **fields))


def test_an_order_without_a_graph_is_refused() -> None:
    with pytest.raises(ProtocolError, match="it has no graph"):
        read_order(write_order(ORDER).partition(b"\n")[0])


@pytest.mark.parametrize("state", ["pending", "in_progress", "completed", "unheard"])
def test_an_error_is_no_outcome_of_what_goes_on_or_succeeded(state: str) -> None:
    with pytest.raises(ProtocolError, match="an outcome of the fleet cannot be read"):
        read_outcome(changed(write_outcome(LOST), state=state))
    if state != "completed":
        with pytest.raises(ProtocolError):
            read_outcome(changed(write_outcome(OUTCOME), state=state))


@pytest.mark.parametrize("warnings", [3, None, [3], {"$": "tuple", "of": ["x"]}, {"$": "Unheard", "of": [1]}])
def test_warnings_that_are_none_are_refused(warnings: Any) -> None:
    with pytest.raises(ProtocolError):
        read_outcome(changed(write_outcome(OUTCOME), warnings=warnings))


def test_what_a_message_shows_in_a_log_is_short_and_no_graph() -> None:
    order = replace(ORDER, graph=b'{"secret": 1}')
    assert "secret" not in repr(order) and "secret" not in repr(replace(order, options=PromptOptions(extra_data=b"{}")))
    with pytest.raises(ProtocolError) as caught:
        read_order(changed(write_order(ORDER), group="x" * 100_000))
    assert len(str(caught.value)) < 400


def test_a_message_holds_no_more_than_its_fields_say() -> None:
    # The graph stands last, so that it need not be escaped: a message is its size and a few hundred bytes.
    graph = json.dumps({"1": {"inputs": {"text": '"' * 10_000}}}).encode()
    assert len(write_order(replace(ORDER, graph=graph))) < len(graph) + 700


def test_errors_of_prompts_that_were_refused_keep_their_problems() -> None:
    refusal = PromptRejected({"message": "No"}, {"1": {"class_type": "K", "errors": [{"type": "t", "message": "m"}]}})
    found = read_outcome(write_outcome(Outcome("i", "i", JobState.FAILED, refusal)))
    assert isinstance(found, Outcome) and isinstance(found.value, PromptRejected)
    assert [type(problem) for problem in found.value.problems] == [NodeProblem]
    cancelled = read_outcome(write_outcome(Outcome("i", "p", JobState.CANCELLED, JobCancelled("p"))))
    assert isinstance(cancelled, Outcome) and isinstance(cancelled.value, JobCancelled)
    assert cancelled.value.prompt_id == "p"

"""What a look at the server by HTTP tells. No event loop, no server."""

from __future__ import annotations

import heapq
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy import look
from acomfy.errors import JobLost, ProtocolError
from acomfy.look import Absences, QueueItem, QueueSnapshot, read_queue

from . import strategies as given_by
from .recorded import RECORDINGS, history, lines

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}, "2": {"class_type": "SaveImage", "inputs": {}}}


def array(number: float, prompt_id: str, extra_data: dict[str, Any] | None = None) -> list[Any]:
    """Give an item of the queue as ComfyUI sends it."""
    return [number, prompt_id, GRAPH, extra_data or {}, ["2"]]


def fork(number: float, prompt_id: str) -> dict[str, Any]:
    """Give an item of the queue as the fork of 0.10.0 sends it."""
    return {"priority": number, "prompt_id": prompt_id, "prompt": GRAPH, "extra_data": {}, "good_outputs": ["2"]}


def queue(running: list[Any], pending: list[Any]) -> QueueSnapshot:
    return read_queue({"queue_running": running, "queue_pending": pending})


def in_order(snapshot: QueueSnapshot) -> list[str]:
    return [item.prompt_id for item in snapshot]


# --- The queue -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [array, fork])
def test_a_queue_item_is_read_from_an_array_and_from_an_object(item: Any) -> None:
    snapshot = queue([item(3, "a")], [item(4.5, "b")])
    assert snapshot == QueueSnapshot((QueueItem(3.0, "a", GRAPH, {}),), (QueueItem(4.5, "b", GRAPH, {}),))
    assert snapshot.ids() == {"a", "b"}


def test_what_waits_is_put_in_the_order_in_which_it_will_run() -> None:
    heap: list[Any] = []
    for number, prompt_id in [(5, "e"), (-3, "front"), (4, "d"), (4, "c"), (0.5, "b"), (10, "z"), (9, "y")]:
        heapq.heappush(heap, (number, prompt_id))
    assert heap != sorted(heap)
    snapshot = queue([array(1, "r")], [array(*item) for item in heap])
    assert in_order(snapshot) == ["r", "front", "b", "c", "d", "e", "y", "z"]


@given(st.lists(st.tuples(st.integers(-5, 5) | st.floats(allow_nan=False), given_by.texts)))
def test_the_order_is_that_of_number_then_id(items: list[tuple[float, str]]) -> None:
    snapshot = queue([], [array(*item) for item in items])
    assert [(item.number, item.prompt_id) for item in snapshot] == sorted((float(n), i) for n, i in items)


def test_a_position_counts_the_running_one() -> None:
    snapshot = queue([array(1, "r")], [array(4, "b"), array(3, "a")])
    assert [snapshot.position(prompt_id) for prompt_id in ("r", "a", "b", "x")] == [0, 1, 2, None]
    assert queue([], [array(3, "a")]).position("a") == 0


def test_a_prompt_is_found_by_its_id_and_by_its_tag() -> None:
    tagged = array(4, "theirs", {look.PROMPT_ID_TAG: "ours", "client_id": "c"})
    snapshot = queue([array(1, "r")], [array(5, "ours"), tagged, array(6, "other")])
    assert [item.prompt_id for item in snapshot.copies("ours")] == ["theirs", "ours"]
    found = snapshot.find("ours")
    assert found is not None and found.extra_data["client_id"] == "c"
    assert snapshot.find("nobody") is None and snapshot.copies("nobody") == []


def test_an_item_shows_neither_graph_nor_credentials() -> None:
    item = queue([array(1, "r", {"api_key_comfy_org": "secret"})], []).running[0]
    assert repr(item) == "QueueItem(number=1.0, prompt_id='r')"


def test_an_item_of_a_stranger_may_lack_what_we_need_of_ours() -> None:
    snapshot = queue([], [[7, 8, None, None], {"prompt_id": "b", "number": 6, "prompt": 5}, {"prompt_id": "a"}])
    assert list(snapshot) == [QueueItem(0.0, "a", {}, {}), QueueItem(6.0, "b", {}, {}), QueueItem(7.0, "8", {}, {})]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "queue",
        {},
        {"queue_running": []},
        {"queue_pending": []},
        {"queue_running": None, "queue_pending": []},
        {"queue_running": "", "queue_pending": []},
        {"queue_running": [], "queue_pending": {}},
        {"queue_running": [], "queue_pending": [None]},
        {"queue_running": [], "queue_pending": ["1234"]},
        {"queue_running": [], "queue_pending": [[1, "a", {}]]},
        {"queue_running": [], "queue_pending": [["x", "a", {}, {}]]},
        {"queue_running": [], "queue_pending": [[10**400, "a", {}, {}]]},
        {"queue_running": [{"priority": 1}], "queue_pending": []},
        {"queue_running": [{"priority": None, "prompt_id": "a"}], "queue_pending": []},
    ],
)
def test_what_is_no_queue_is_a_protocol_error_and_never_an_empty_queue(body: Any) -> None:
    with pytest.raises(ProtocolError, match="the answer to GET /queue is not a queue"):
        read_queue(body)


odd_items = given_by.json_values | st.lists(given_by.json_values, max_size=6) | given_by.json_objects
odd_queues = given_by.json_values | st.fixed_dictionaries(
    {"queue_running": st.lists(odd_items, max_size=3) | odd_items, "queue_pending": st.lists(odd_items, max_size=3)}
)


@given(odd_queues)
def test_any_answer_is_a_queue_or_a_protocol_error(body: Any) -> None:
    try:
        snapshot = read_queue(body)
    except ProtocolError:
        return
    for item in snapshot:
        assert isinstance(item.prompt_id, str) and isinstance(item.number, float)
        assert snapshot.position(item.prompt_id) is not None
        assert item in snapshot.copies(item.prompt_id)


def recorded_queues(recording: str) -> list[dict[str, Any]]:
    return [
        line["json"]
        for line in lines(recording)
        if line["ev"] == "http" and line["method"] == "GET" and line["path"].endswith("/queue") and "json" in line
    ]


@pytest.mark.parametrize("recording", RECORDINGS)
def test_every_recorded_queue_is_read(recording: str) -> None:
    for body in recorded_queues(recording):
        snapshot = read_queue(body)
        assert len(list(snapshot)) == len(body["queue_running"]) + len(body["queue_pending"])
        assert all(item.prompt for item in snapshot)
        numbers = [item.number for item in snapshot.pending]
        assert numbers == sorted(numbers)


# --- The history ---------------------------------------------------------------------------------------------------


def executed_events(recording: str) -> dict[str, dict[str, Any]]:
    """Give what the `executed` events of each prompt that was seen to start said."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines(recording):
        if line["ev"] == "ws_text":
            message = json.loads(line["data"])
            kind, data = message["type"], message["data"]
            if kind == "execution_start":
                found.setdefault(data["prompt_id"], {})
            if kind == "executed" and data["prompt_id"] in found and data["output"] is not None:
                found[data["prompt_id"]][data["node"]] = (data["display_node"], data["output"])
    return found


@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_history_entry_tells_the_outputs_that_the_events_told(recording: str) -> None:
    told = executed_events(recording)
    for prompt_id, entry in history(recording).items():
        if prompt_id in told:
            assert look.history_outputs(entry) == told[prompt_id]


def test_a_cached_node_that_the_prompt_was_not_asked_for_is_left_out() -> None:
    entry = next(entry for key, entry in history("0.3.64/d2_cached_edge.jsonl").items() if key.startswith("abbd6334"))
    assert set(entry["outputs"]) == {"2", "3"}
    assert look.history_targets(entry) == ["3"]
    assert set(look.history_outputs(entry)) == {"3"}


def entry_of(outputs: dict[str, Any], targets: Any, meta: dict[str, Any] | None = None) -> dict[str, Any]:
    graph = {
        "1": {"class_type": "A", "inputs": {}},
        "2": {"class_type": "B", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "C", "inputs": {"images": ["1", 0]}},
    }
    return {"prompt": [1, "id", graph, {}, targets], "outputs": outputs, "meta": meta or {}}


def test_nodes_before_a_wanted_output_are_kept_and_expanded_ones_count_as_what_they_stand_for() -> None:
    meta = {"2.0.0.5": {"display_node": "2"}, "3.0.0.5": {"display_node": "3"}}
    entry = entry_of({"1": {"a": []}, "2.0.0.5": {"b": []}, "3.0.0.5": {"c": []}, "9": {}}, ["2"], meta)
    assert look.history_outputs(entry) == {"1": ("1", {"a": []}), "2.0.0.5": ("2", {"b": []})}


def test_an_entry_that_does_not_tell_what_was_asked_for_keeps_all() -> None:
    prompts: list[Any] = [None, [], [1, "id"], {"prompt": {}}, {"outputs_to_execute": []}, [1, "id", {"1": 5}, {}, []]]
    for prompt in prompts:
        entry = {"prompt": prompt, "outputs": {"2": {"images": []}}}
        assert look.history_outputs(entry) == {"2": ("2", {"images": []})}


def test_a_prompt_of_a_history_entry_may_be_an_array_or_an_object() -> None:
    as_object = {"prompt": {"prompt": GRAPH, "outputs_to_execute": ["2", 5]}}
    as_array = {"prompt": [1, "id", GRAPH, {}, ["2", 5]]}
    for entry in (as_object, as_array):
        assert look.history_prompt(entry) == GRAPH
        assert look.history_targets(entry) == ["2"]
    assert look.history_prompt({"prompt": [1, "id", {"1": None}, {}, []]}) is None
    assert look.history_targets({}) is None


def test_our_prompt_is_found_in_a_history_by_its_tag() -> None:
    entries: dict[str, Any] = {
        "a": {"prompt": [1, "a", GRAPH, {"client_id": "x"}, []]},
        "b": {"prompt": [2, "b", GRAPH, {look.PROMPT_ID_TAG: "ours"}, []]},
        "c": None,
        "d": {"prompt": {"prompt": {}}},
    }
    assert look.history_prompt_id(entries, "ours") == "b"
    assert look.history_prompt_id(entries, "b") is None


def test_cached_nodes_are_told_by_the_messages_of_either_form() -> None:
    start = ["execution_start", {"prompt_id": "a"}]
    cached = ["execution_cached", {"nodes": ["1", 2], "prompt_id": "a"}]
    assert look.history_cached({"status": {"messages": [start, cached]}}) == ["1", "2"]
    assert look.history_cached({"status": {"messages": [["execution_cached", {"nodes": []}]]}}) == []
    assert look.history_cached({"status": {"messages": ["execution_start: x", "execution_success: y"]}}) is None


@pytest.mark.parametrize(
    "status",
    [
        None,
        [],
        {},
        {"messages": None},
        {"messages": [None, 5, [], ["execution_cached"]]},
        {"messages": [["execution_cached", None]]},
        {"messages": [["execution_cached", {}]]},
        {"messages": [["execution_cached", {"nodes": "12"}]]},
    ],
)
def test_cached_nodes_that_were_not_told_are_none(status: Any) -> None:
    assert look.history_cached({"status": status}) is None


@pytest.mark.parametrize("recording", RECORDINGS)
def test_every_recorded_entry_tells_its_prompt_and_what_was_cached(recording: str) -> None:
    for entry in history(recording).values():
        graph, targets = look.history_prompt(entry), look.history_targets(entry)
        assert graph and targets is not None and set(targets) <= set(graph)
        assert (look.history_cached(entry) is None) == recording.startswith("fork")


odd_entries = given_by.json_objects | st.fixed_dictionaries(
    {
        "prompt": odd_items | st.just([1, "a", GRAPH, {}, ["2"]]),
        "outputs": st.dictionaries(given_by.texts, given_by.json_values, max_size=3) | given_by.json_values,
        "meta": given_by.json_values,
        "status": st.fixed_dictionaries({"messages": given_by.json_values}) | given_by.json_values,
    }
)


@given(odd_entries)
def test_any_history_entry_is_read_without_a_crash(entry: dict[str, Any]) -> None:
    assert all(isinstance(item, tuple) for item in look.history_outputs(entry).values())
    look.history_cached(entry)
    look.history_prompt(entry)
    look.history_prompt_id({"a": entry, "b": entry}, "ours")


# --- What is in neither --------------------------------------------------------------------------------------------


def test_a_prompt_is_gone_when_it_was_missed_twice_a_second_apart() -> None:
    absences = Absences()
    assert not absences.proven("a", 10.0)
    assert not absences.proven("a", 10.999)
    assert absences.proven("a", 11.0)
    assert absences.proven("a", 12.0)
    assert not absences.proven("b", 12.0)
    assert len(absences) == 2


def test_a_prompt_that_was_seen_in_between_begins_anew() -> None:
    absences = Absences()
    absences.proven("a", 10.0)
    absences.proven("b", 10.0)
    absences.keep(["b", "c"])
    assert len(absences) == 1
    assert not absences.proven("a", 12.0)
    assert absences.proven("b", 12.0)


def test_the_reason_of_a_loss_is_one_that_the_error_explains() -> None:
    assert look.lost_reason(ran=False, in_gap=False) == "deleted"
    assert look.lost_reason(ran=True, in_gap=False) == "evicted"
    assert look.lost_reason(ran=False, in_gap=True) == look.lost_reason(ran=True, in_gap=True) == "restarted"
    for reason in ("deleted", "evicted", "restarted"):
        assert not str(JobLost("a", reason)).endswith(reason)

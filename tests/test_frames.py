"""Frames to events and back; no event loop, no socket."""

from __future__ import annotations

import json
import pickle
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from acomfy import events
from acomfy.errors import ProtocolError
from acomfy.frames import (
    PROGRESS_STATE,
    decode,
    decode_text,
    encode,
    load_json,
    parse,
    peek_prompt_id,
    sniff_mime,
    state_head,
    step_tail,
    to_event,
)

from . import strategies as given_by
from .strategies import GIF, JPEG, KNOWN_TYPES, PNG, WEBP, binary_frame, metadata_frame, text_frame

P = "4f87c99f-c24c-4c73-92e7-4b0cee4f4f32"
NODE = {"value": 3.0, "max": 20.0, "state": "running", "node_id": "5", "prompt_id": P}


def decoded(kind: str, data: Any) -> events.Event:
    return decode(text_frame(kind, data).decode())


# --- Text frames: one of each type, as real servers write them -----------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "event"),
    [
        ("status", {"status": {"exec_info": {"queue_remaining": 3}}}, events.Status(3)),
        ("status", {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "abc"}, events.Status(0, "abc")),
        ("status", {"status": {}}, events.Status(None)),
        ("feature_flags", {"max_upload_size": 1048576.0}, events.FeatureFlags({"max_upload_size": 1048576.0})),
        ("execution_start", {"prompt_id": P, "timestamp": 17}, events.ExecutionStart(P, 17)),
        ("execution_start", {"prompt_id": P}, events.ExecutionStart(P)),
        ("execution_cached", {"nodes": [], "prompt_id": P, "timestamp": 17}, events.ExecutionCached(P, (), 17)),
        ("execution_cached", {"nodes": ["1", 2], "prompt_id": P}, events.ExecutionCached(P, ("1", "2"))),
        ("executing", {"node": "1", "display_node": "1", "prompt_id": P}, events.Executing("1", "1", P)),
        ("executing", {"node": "4.0.0.3", "display_node": "4", "prompt_id": P}, events.Executing("4.0.0.3", "4", P)),
        ("executing", {"node": None, "prompt_id": P}, events.Executing(None, None, P)),
        ("progress", {"value": 1, "max": 5, "prompt_id": P, "node": "5"}, events.Progress(1, 5, P, "5")),
        ("progress", {"value": 0.5, "max": 0, "prompt_id": P, "node": None}, events.Progress(0.5, 0, P)),
        (
            "executed",
            {"node": "4", "display_node": "4", "output": None, "prompt_id": P},
            events.Executed(P, "4", "4", None),
        ),
        ("execution_success", {"prompt_id": P, "timestamp": 17}, events.ExecutionSuccess(P, 17)),
        (
            "execution_interrupted",
            {"prompt_id": P, "node_id": "5", "node_type": "KSampler", "executed": ["1"], "timestamp": 17},
            events.ExecutionInterrupted(P, "5", "KSampler", ("1",), 17),
        ),
        ("logs", {"entries": [{"t": "10:00", "m": "hi\n"}], "size": None}, events.Logs(({"t": "10:00", "m": "hi\n"},))),
    ],
)
def test_each_message_becomes_its_typed_event(kind: str, data: Any, event: events.Event) -> None:
    assert decoded(kind, data) == event


def test_executed_carries_the_ui_output_as_it_was_sent() -> None:
    output = {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}], "animated": [False]}
    event = decoded("executed", {"node": "2.0.0.1", "display_node": "2", "output": output, "prompt_id": P})
    assert event == events.Executed(P, "2.0.0.1", "2", output)


def test_execution_error_keeps_every_field_and_tells_a_block_from_a_failure() -> None:
    data = {
        "prompt_id": P,
        "node_id": "2",
        "node_type": "TestSyncError",
        "executed": ["1"],
        "exception_message": "Intentional\n",
        "exception_type": "RuntimeError",
        "traceback": ["line 1\n", "line 2\n"],
        "current_inputs": {"value": ["tensor(1)"]},
        "current_outputs": ["2", "1"],
        "timestamp": 17,
    }
    event = decoded("execution_error", data)
    assert isinstance(event, events.ExecutionError) and not event.blocked
    assert event.traceback == ("line 1\n", "line 2\n") and event.executed == ("1",)
    assert (event.current_inputs, event.current_outputs) == ({"value": ["tensor(1)"]}, ["2", "1"])
    assert "tensor" not in repr(event) and "line 1" not in repr(event)
    del data["timestamp"]
    blocked = decoded("execution_error", {**data, "exception_type": "ExecutionBlocked", "traceback": []})
    assert isinstance(blocked, events.ExecutionError) and blocked.blocked and blocked.timestamp is None


@pytest.mark.parametrize("absent", [{}, {"traceback": None, "executed": None, "node_id": None}])
def test_what_an_error_leaves_out_is_empty(absent: dict[str, Any]) -> None:
    assert decoded("execution_error", {"prompt_id": P, **absent}) == events.ExecutionError(P, None, None, "", "")


def test_progress_state_gives_every_node_by_its_id() -> None:
    nodes = {"5": {**NODE, "display_node_id": "5", "parent_node_id": None, "real_node_id": "5"}}
    event = decoded("progress_state", {"prompt_id": P, "nodes": nodes})
    assert event == events.ProgressState(P, {"5": events.NodeProgress("5", 3.0, 20.0, "running", "5", None, "5")})


def test_the_replay_after_a_reconnect_names_the_node_alone() -> None:
    assert decoded("executing", {"node": "5"}) == events.Executing("5", "5", None)
    assert encode(events.Executing("5", "5")) == '{"type": "executing", "data": {"node": "5"}}'


def test_whole_numbers_are_taken_for_node_ids() -> None:
    assert decoded("executing", {"node": 5, "display_node": 5, "prompt_id": P}) == events.Executing("5", "5", P)


@pytest.mark.parametrize("kind", ["crystools.monitor", "VHS_latentpreview", "progress_text", "", "Status"])
@pytest.mark.parametrize("data", [{"a": 1}, [1], None, "text", 3])
def test_unknown_types_become_unknown_with_any_data(kind: str, data: Any) -> None:
    assert decoded(kind, data) == events.Unknown(kind, data)


def test_unknown_tells_the_prompt_that_it_names() -> None:
    assert events.Unknown("x", {"prompt_id": P}).prompt_id == P
    assert events.Unknown("x", {"prompt_id": 3}).prompt_id is None
    assert events.Unknown("x", [P]).prompt_id is None


def test_a_message_without_data_is_unknown_when_its_type_is() -> None:
    assert decode('{"type": "ping"}') == events.Unknown("ping", None)


# --- Malformed text frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        "3",
        "null",
        '"type"',
        '{"type": 3}',
        '{"type": ["status"]}',
        '{"data": {}}',
        "{",
        "\x00",
    ],
)
def test_text_that_is_no_message_is_a_protocol_error(frame: str) -> None:
    with pytest.raises(ProtocolError):
        decode(frame)


@pytest.mark.parametrize("kind", KNOWN_TYPES)
@pytest.mark.parametrize("data", ["abc", [], None, 3, True])
def test_a_known_type_whose_data_is_no_object_is_a_protocol_error(kind: str, data: Any) -> None:
    with pytest.raises(ProtocolError, match=kind):
        decoded(kind, data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("execution_start", {}),
        ("execution_start", {"prompt_id": 3}),
        ("execution_success", {"prompt_id": None}),
        ("execution_cached", {"prompt_id": P}),
        ("execution_cached", {"prompt_id": P, "nodes": "abc"}),
        ("execution_cached", {"prompt_id": P, "nodes": [["1"]]}),
        ("executing", {"prompt_id": P, "node": {}}),
        ("executing", {"prompt_id": P, "node": "1", "display_node": []}),
        ("executing", {"prompt_id": [], "node": "1"}),
        ("progress", {"prompt_id": P, "value": "x", "max": 1}),
        ("progress", {"prompt_id": P, "value": 1}),
        ("progress", {"prompt_id": P, "value": True, "max": 1}),
        ("progress", {"prompt_id": P, "value": 10**400, "max": 1}),
        ("progress", {"prompt_id": P, "value": 1, "max": 1, "node": 1.5}),
        ("executed", {"prompt_id": P, "node": "1", "output": []}),
        ("executed", {"prompt_id": P, "node": None, "output": None}),
        ("executed", {"node": "1", "output": {}}),
        ("execution_error", {"prompt_id": P, "exception_type": 3}),
        ("execution_error", {"prompt_id": P, "traceback": "lines"}),
        ("execution_interrupted", {"prompt_id": P, "node_type": 3}),
        ("execution_interrupted", {"prompt_id": P, "executed": [None]}),
        ("logs", {}),
        ("logs", {"entries": ["x"]}),
        ("status", {"status": {}, "sid": 3}),
    ],
)
def test_a_field_of_the_wrong_kind_is_a_protocol_error(kind: str, data: Any) -> None:
    with pytest.raises(ProtocolError, match=kind):
        decoded(kind, data)


@pytest.mark.parametrize(
    "nodes",
    [
        "abc",
        None,
        ["1"],
        {"5": "x"},
        {"5": {"value": "x", "max": 1, "state": "running"}},
        {"5": {"value": 1, "max": 1}},
        {"5": {**NODE, "display_node_id": {}}},
    ],
)
def test_a_malformed_progress_state_is_a_protocol_error_when_its_nodes_are_read(nodes: Any) -> None:
    event = decoded("progress_state", {"prompt_id": P, "nodes": nodes})
    assert isinstance(event, events.ProgressState)
    for _ in range(2):
        with pytest.raises(ProtocolError):
            event.nodes  # noqa: B018


def test_deep_nesting_is_read_or_refused_and_nothing_else() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ProtocolError):
        decode('{"type": "custom", "data": ' + deep + "}")
    nested = "[" * 900 + "]" * 900
    frame = '{"type": "execution_cached", "data": {"prompt_id": "p", "nodes": [' + nested + "]}}"
    with pytest.raises(ProtocolError):
        decode(frame)


# --- The JSON of Python's json.dumps -------------------------------------------------------------------------------


def test_nan_and_infinity_are_read_as_the_server_writes_them() -> None:
    event = decoded("executed", {"node": "1", "output": {"value": [float("nan"), float("inf")]}, "prompt_id": P})
    assert isinstance(event, events.Executed) and event.output is not None
    nan, inf = event.output["value"]
    assert nan != nan and inf == float("inf")
    assert decoded("progress", {"value": float("inf"), "max": 1, "prompt_id": P}) == events.Progress(float("inf"), 1, P)


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**63), -(2**63) - 1, 10**40 + 1])
def test_integers_stay_exact_at_any_size(number: int) -> None:
    assert decoded("executed", {"node": "1", "output": {"n": [number]}, "prompt_id": P}) == events.Executed(
        P, "1", "1", {"n": [number]}
    )
    assert decoded("custom", [number]) == events.Unknown("custom", [number])


def test_an_integer_too_long_for_python_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode('{"type": "custom", "data": ' + "9" * 5000 + "}")


def test_lone_surrogates_are_kept() -> None:
    output = {"images": [{"filename": "bad\udc80name.png", "type": "output", "subfolder": ""}]}
    assert decoded("executed", {"node": "1", "output": output, "prompt_id": P}) == events.Executed(P, "1", "1", output)
    assert decode('{"type": "x", "data": "\ud800"}') == events.Unknown("x", "\ud800")


def test_the_last_of_duplicate_keys_counts() -> None:
    assert decode('{"type": "progress", "type": "x", "data": 1, "data": 2}') == events.Unknown("x", 2)


def test_a_byte_order_mark_is_passed_over() -> None:
    assert decode('\ufeff{"type": "x", "data": 1}') == events.Unknown("x", 1)


def test_a_text_frame_is_the_same_as_str_and_as_bytes() -> None:
    frame = '{"type": "x", "data": "ünï"}'
    assert decode_text(frame) == decode_text(frame.encode()) == decode(frame)


def test_bytes_that_are_not_utf8_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode_text(b'{"type": "x", "data": "\xff"}')


def test_load_json_reads_what_json_dumps_writes() -> None:
    assert load_json(json.dumps({"a": [1, "\ud800"]}).encode()) == {"a": [1, "\ud800"]}


# --- Binary frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magic", [JPEG, PNG, WEBP, GIF])
@pytest.mark.parametrize("image_format", [1, 2, 3])
def test_a_preview_is_named_by_its_first_bytes_and_not_by_its_format(magic: bytes, image_format: int) -> None:
    event = decode(struct.pack(">II", 1, image_format) + magic + b"rest")
    assert event == events.PreviewImage(memoryview(magic + b"rest"), given_by.MIME_OF_MAGIC[magic])


@pytest.mark.parametrize(
    ("image_format", "mime"), [(1, "image/jpeg"), (2, "image/png"), (3, "application/octet-stream")]
)
def test_a_preview_of_unknown_bytes_is_named_by_its_format(image_format: int, mime: str) -> None:
    assert decode(struct.pack(">II", 1, image_format) + b"?") == events.PreviewImage(memoryview(b"?"), mime)


def test_an_animated_preview_of_video_helper_suite_names_its_node() -> None:
    frame = struct.pack(">III16p", 1, 1, 7, b"12") + JPEG
    assert decode(frame) == events.PreviewImage(memoryview(JPEG), "image/jpeg", node_id="12")
    unnamed = struct.pack(">III16p", 1, 1, 7, b"") + JPEG
    assert decode(unnamed) == events.PreviewImage(memoryview(JPEG), "image/jpeg")
    overlong = struct.pack(">III", 1, 1, 7) + b"\xff" + b"1" * 15 + JPEG
    assert decode(overlong) == events.PreviewImage(memoryview(JPEG), "image/jpeg", node_id="1" * 15)


def test_a_preview_with_metadata_names_prompt_and_node() -> None:
    metadata = {
        "node_id": "4.0.0.3",
        "prompt_id": P,
        "display_node_id": "4",
        "parent_node_id": None,
        "real_node_id": "4",
        "image_type": "image/png",
    }
    expected = events.PreviewImage(memoryview(PNG), "image/png", P, "4.0.0.3", "4", None, "4", has_metadata=True)
    assert decode(metadata_frame(metadata, PNG)) == expected
    named = decode(metadata_frame({**metadata, "image_type": "image/avif"}, b"?"))
    assert isinstance(named, events.PreviewImage) and named.mime == "image/avif"
    bare = decode(metadata_frame({}, b"?"))
    assert bare == events.PreviewImage(memoryview(b"?"), "application/octet-stream", has_metadata=True)


def test_a_picture_is_a_view_of_the_frame_and_not_a_copy() -> None:
    frame = struct.pack(">II", 1, 2) + PNG + bytes(1000)
    event = decode(frame)
    assert isinstance(event, events.PreviewImage)
    assert event.view.obj is frame and event.image == frame[8:]


@pytest.mark.parametrize(
    ("event", "frame"),
    [
        (events.PreviewImage(memoryview(JPEG), "image/jpeg"), struct.pack(">II", 1, 1) + JPEG),
        (events.PreviewImage(memoryview(PNG), "image/png"), struct.pack(">II", 1, 2) + PNG),
        (events.PreviewImage(memoryview(b""), "image/png"), struct.pack(">II", 1, 2)),
        (
            events.PreviewImage(memoryview(JPEG), "image/jpeg", node_id="12"),
            struct.pack(">III16p", 1, 1, 0, b"12") + JPEG,
        ),
        (events.Text("", ""), struct.pack(">II", 3, 0)),
        (events.Unknown("binary:9", b""), struct.pack(">I", 9)),
    ],
)
def test_binary_frames_are_written_as_the_server_writes_them(event: events.Event, frame: bytes) -> None:
    assert encode(event) == frame
    assert decode(frame) == event


def test_a_picture_that_the_router_attributed_is_written_without_its_names() -> None:
    named = events.PreviewImage(memoryview(JPEG), "image/jpeg", P, "5", "5")
    assert encode(named) == struct.pack(">II", 1, 1) + JPEG


def test_event_3_is_text_of_a_node() -> None:
    assert decode(bytes.fromhex("00000003 00000001 31") + "50% ünï".encode()) == events.Text("1", "50% ünï")


@pytest.mark.parametrize("event", [0, 2, 5, 2**32 - 1])
def test_other_binary_events_are_unknown(event: int) -> None:
    assert decode(binary_frame(event, b"rest")) == events.Unknown(f"binary:{event}", b"rest")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00\x00\x00",
        binary_frame(1, b"\x00\x00\x00"),
        binary_frame(3, b""),
        binary_frame(3, b"\x00\x00\x00\x05abc"),
        binary_frame(3, b"\x00\x00\x00\x01\xffabc"),
        binary_frame(3, b"\x00\x00\x00\x01a\xff"),
        binary_frame(4, b"\x00\x00\x00"),
        binary_frame(4, b"\xff\xff\xff\xff{}"),
        binary_frame(4, b"\x00\x00\x00\x02[]"),
        binary_frame(4, b"\x00\x00\x00\x02{]"),
        metadata_frame({"node_id": []}, PNG),
        metadata_frame({"prompt_id": 3}, PNG),
        metadata_frame({"image_type": {}}, PNG),
    ],
)
def test_malformed_binary_frames_are_protocol_errors(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(frame)


def test_sniffing_knows_the_kinds_that_comfyui_sends() -> None:
    assert [sniff_mime(magic) for magic in (JPEG, PNG, WEBP, GIF)] == list(given_by.MIME_OF_MAGIC.values())
    assert sniff_mime(b"RIFF\x10\x00\x00\x00WAVE") is None
    assert sniff_mime(b"") is None


# --- Fuzzing -------------------------------------------------------------------------------------------------------


def decodes_or_refuses(frame: str | bytes) -> None:
    try:
        event = decode(frame)
        if isinstance(event, events.ProgressState):
            event.nodes  # noqa: B018
    except ProtocolError:
        pass


@given(st.binary(max_size=200) | st.builds(binary_frame, st.sampled_from([1, 2, 3, 4]), st.binary(max_size=80)))
def test_any_bytes_give_an_event_or_a_protocol_error(frame: bytes) -> None:
    decodes_or_refuses(frame)


@given(st.text(st.characters(), max_size=200))
def test_any_text_gives_an_event_or_a_protocol_error(frame: str) -> None:
    decodes_or_refuses(frame)


@given(st.sampled_from(KNOWN_TYPES), given_by.odd_data(given_by.odd_values))
def test_any_data_of_a_known_type_gives_an_event_or_a_protocol_error(kind: str, data: Any) -> None:
    decodes_or_refuses(text_frame(kind, data).decode())


@given(given_by.typed_events, st.data())
def test_a_damaged_frame_gives_an_event_or_a_protocol_error(event: events.Event, data: st.DataObject) -> None:
    frame = encode(event)
    start, end = sorted((data.draw(st.integers(0, len(frame))), data.draw(st.integers(0, len(frame)))))
    damaged: Any = [frame[:start], frame[end:]]
    decodes_or_refuses(type(frame)().join(damaged))


@given(given_by.typed_events)
def test_what_is_encoded_decodes_to_itself(event: events.Event) -> None:
    assert decode(encode(event)) == event


@given(given_by.typed_events)
def test_encoding_is_the_same_after_a_round_trip(event: events.Event) -> None:
    frame = encode(event)
    assert encode(decode(frame)) == frame


@given(given_by.typed_events)
def test_events_survive_pickling(event: events.Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event


# --- Peeking: what is read off the bytes is what parsing would give ------------------------------------------------

STEP_TEMPLATES = (
    '{"type": "progress", "data": {"value": 1, "max": 5, "prompt_id": %s, "node": "5"}}',
    '{"type": "progress_state", "data": {"prompt_id": %s, "nodes": {}}}',
)


@pytest.mark.parametrize("template", STEP_TEMPLATES)
def test_the_prompt_id_is_peeked_off_frames_as_comfyui_writes_them(template: str) -> None:
    frame = (template % f'"{P}"').encode()
    assert peek_prompt_id(frame) == P
    assert frame.startswith(PROGRESS_STATE) is ("progress_state" in template)


@given(given_by.prompt_ids, st.sampled_from(STEP_TEMPLATES))
@example('with"quote', STEP_TEMPLATES[0])
@example('", "node": "', STEP_TEMPLATES[0])
@example("back\\slash", STEP_TEMPLATES[1])
@example("ünï", STEP_TEMPLATES[1])
@example("", STEP_TEMPLATES[1])
def test_a_peeked_prompt_id_is_the_one_that_parsing_gives(prompt_id: str, template: str) -> None:
    for frame in (template % json.dumps(prompt_id), template % json.dumps(prompt_id, ensure_ascii=False)):
        raw = frame.encode("utf-8", "surrogatepass")
        assert peek_prompt_id(raw) in (prompt_id, None)


@given(given_by.prompt_ids, given_by.prompt_ids)
@example("a", "ab")
@example("ab", "a")
def test_the_head_and_the_tail_of_a_step_are_those_of_its_prompt_alone(prompt_id: str, other: str) -> None:
    state, step = ((template % json.dumps(prompt_id)).encode() for template in reversed(STEP_TEMPLATES))
    other_state, other_step = ((template % json.dumps(other)).encode() for template in reversed(STEP_TEMPLATES))
    if peek_prompt_id(state) is not None:
        assert other_state.startswith(state_head(state, prompt_id)) is (other == prompt_id)
        assert other_step.endswith(step_tail(step)) is (other == prompt_id)


@given(given_by.prompt_ids, given_by.json_objects, st.permutations(["value", "max", "prompt_id", "node", "nodes"]))
def test_peeking_reads_any_order_of_keys_right_or_not_at_all(prompt_id: str, extra: Any, order: list[str]) -> None:
    fields = {"value": 1, "max": 5, "prompt_id": prompt_id, "node": 'a"b', "nodes": {}}
    data = {**{name: fields[name] for name in order}, **extra}
    for kind in ("progress", "progress_state"):
        assert peek_prompt_id(text_frame(kind, data)) in (data["prompt_id"], None)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{}",
        b'{"type": "progress", "data": {"value": ',
        b'{"type": "progress", "data": {"value": 1, "max": 2, "prompt_id": "ab',
        b'{"type": "progress_state", "data": {"prompt_id": "ab',
        b'{"type": "progress_text", "data": {"prompt_id": "ab"}}',
        b'{"type": "executing", "data": {"node": "1", "prompt_id": "ab"}}',
        b'{"type": "progress", "data": {"value": 1, "max": 2, "node": "5"}}',
        b'{"type":"progress_state","data":{"prompt_id":"ab","nodes":{}}}',
        b'{"data": {"prompt_id": "ab", "nodes": {}}, "type": "progress_state"}',
        b'{"type": "progress_state", "data": {"prompt_id": "a\\u0062", "nodes": {}}}',
    ],
)
def test_nothing_is_peeked_off_other_frames(frame: bytes) -> None:
    assert peek_prompt_id(frame) is None


@pytest.mark.parametrize(
    "frame",
    [
        '{"type": "progress_state", "data": {"prompt_id": "a", "nodes": {}, "prompt_id": "b"}}',
        '{"type": "progress_state", "data": {"prompt_id": "a", "nodes": {}}, "data": {"prompt_id": "b", "nodes": {}}}',
        '{"type": "progress_state", "data": {"prompt_id": "a", "nodes": {}}, "type": "custom"}',
        '{"type": "progress_state", "data": {"prompt_id": "a", "nodes": {}}, "data": []}',
    ],
)
def test_a_progress_state_that_contradicts_what_was_peeked_is_found_out_when_it_is_read(frame: str) -> None:
    event = decode(frame)
    assert isinstance(event, events.ProgressState)
    with pytest.raises(ProtocolError):
        event.nodes  # noqa: B018


def test_progress_is_always_parsed_so_that_a_nested_prompt_id_deceives_nobody() -> None:
    frame = '{"type": "progress", "data": {"value": 1, "x": {"prompt_id": "a"}, "max": 2, "prompt_id": "b"}}'
    assert decode(frame) == events.Progress(1, 2, "b")


# --- Events --------------------------------------------------------------------------------------------------------


def test_parse_and_to_event_are_the_two_halves_of_decode() -> None:
    frame = text_frame("execution_start", {"prompt_id": P})
    assert to_event(*parse(frame)) == decode_text(frame)

"""WebSocket frames to typed events and back: `decode` and its mirror `encode`.

Theory of operation. A text frame is ``{"type": str, "data": {...}}``; one table turns a type into the function that
reads its data. A binary frame begins with a big-endian uint32, the event number. Whatever arrives becomes an `Event`
or a `ProtocolError`, and nothing else: an unknown type is `Unknown`, a known type with the wrong fields is an error.

ComfyUI writes its JSON with Python's ``json.dumps``: NaN and Infinity occur, as do integers of any size and lone
surrogates. orjson refuses all of these but the integers, of which it makes floats; such frames are read again by the
standard library.

``progress`` and ``progress_state`` are nearly all of the traffic. Their prompt_id can be read off the raw bytes
(`peek_prompt_id`), so that nobody who does not listen pays for parsing them. That trusts the bytes to be written as
ComfyUI writes them, which names a prompt once; whoever parses such a frame later finds out if it did not.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from . import events
from .errors import ProtocolError

PREVIEW_IMAGE = 1
TEXT = 3
PREVIEW_IMAGE_WITH_METADATA = 4
_WITH_METADATA = PREVIEW_IMAGE_WITH_METADATA.to_bytes(4, "big")

# The first bytes of the frequent messages, as ``json.dumps`` writes them (ComfyUI server.py send_json).
PROGRESS_STATE = b'{"type": "progress_state", "data": {"prompt_id": "'
_PROGRESS_STEP = b'{"type": "progress", "data": {"value": '
STATUS = b'{"type": "status", '
STEPS = (PROGRESS_STATE, _PROGRESS_STEP)
_PROMPT_ID = b'"prompt_id": "'

# Messages without a place for numbers of a node's own choice. In all others integers are kept exact.
_CLOSED = frozenset(
    {
        "executing",
        "execution_cached",
        "execution_interrupted",
        "execution_start",
        "execution_success",
        "progress",
        "progress_state",
        "status",
    }
)
_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_LONG_NUMBER = b"0" * 19  # the shortest integer beyond 64 bits

_MIME_OF_FORMAT = {1: "image/jpeg", 2: "image/png"}
_FORMAT_OF_MIME = {"image/jpeg": 1, "image/png": 2}
OCTETS = "application/octet-stream"


def decode(frame: str | bytes) -> events.Event:
    """Turn a text (str) or binary (bytes) frame into an event.

    Raises:
        ProtocolError: The frame is malformed.
    """
    return decode_text(frame) if isinstance(frame, str) else decode_binary(frame)


def decode_text(frame: str | bytes) -> events.Event:
    """Turn a text frame, as str or as its UTF-8 bytes, into an event.

    Raises:
        ProtocolError: The frame is malformed.
    """
    raw = frame if isinstance(frame, bytes) else frame.encode("utf-8", "surrogatepass")
    if raw.startswith(PROGRESS_STATE) and (prompt_id := peek_prompt_id(raw)) is not None:
        return lazy_progress_state(prompt_id, raw)
    return to_event(*parse(raw))


def parse(frame: bytes) -> tuple[str, Any]:
    """Split a text frame into its type and its data.

    Raises:
        ProtocolError: It is not JSON, or not an object with a ``type``.
    """
    try:
        message = orjson.loads(frame)
    except orjson.JSONDecodeError:
        message = _load_tolerantly(frame)
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str):
        raise ProtocolError(f"a text frame has no type: {_excerpt(frame)}")
    if kind not in _CLOSED and _LONG_NUMBER in frame.translate(_DIGITS):
        message = _load_tolerantly(frame)
    return kind, message.get("data")


def load_json(text: bytes) -> Any:
    """Parse JSON as Python's ``json.dumps`` writes it. Integers beyond 64 bits may become floats.

    Raises:
        ProtocolError: It is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _load_tolerantly(text)


def to_event(kind: str, data: Any) -> events.Event:
    """Turn a message's type and data into an event.

    Raises:
        ProtocolError: The type is known and the data does not fit it.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return events.Unknown(kind, data)
    try:
        if not isinstance(data, dict):
            raise ProtocolError(f"it is {type(data).__name__}, not an object")
        return decoder(data)
    except ProtocolError as exc:
        raise ProtocolError(f"the data of a {kind!r} message is malformed: {exc}") from None


def peek_prompt_id(frame: bytes) -> str | None:
    """Read the prompt_id off a ``progress`` or ``progress_state`` text frame without parsing it.

    None for every other frame, and for those that are not written as ComfyUI writes them.
    """
    if frame.startswith(PROGRESS_STATE):
        start = len(PROGRESS_STATE)
    elif frame.startswith(_PROGRESS_STEP):
        # An unescaped quote cannot stand inside a JSON string, so what is found is the key itself.
        start = frame.find(_PROMPT_ID) + len(_PROMPT_ID)
        if frame.find(_PROMPT_ID, start) >= 0:
            return None  # which of them counts only parsing tells
    else:
        return None
    end = frame.find(b'"', start)
    prompt_id = frame[start:end]
    if start < len(_PROMPT_ID) or end < 0 or b"\\" in prompt_id or not prompt_id.isascii():
        return None
    return prompt_id.decode()


def peek_picture(frame: bytes) -> tuple[str, str] | None:
    """Read the prompt_id and the node_id off a picture with metadata, and nothing else; None for every other frame."""
    end = 8 + int.from_bytes(frame[4:8], "big")
    if not frame.startswith(_WITH_METADATA) or end > len(frame):
        return None
    try:
        metadata = orjson.loads(frame[8:end])
        prompt_id, node_id = metadata["prompt_id"], metadata["node_id"]
    except (ValueError, LookupError, TypeError):
        return None
    return (prompt_id, node_id) if type(prompt_id) is str and type(node_id) is str else None


def state_head(frame: bytes, prompt_id: str) -> bytes:
    """Give how a ``progress_state`` of which the prompt_id was peeked begins, as do all others of its prompt."""
    return frame[: len(PROGRESS_STATE) + len(prompt_id) + 1]


def step_tail(frame: bytes) -> bytes:
    """Give how a ``progress`` of which the prompt_id was peeked ends, as do all others of its prompt and node."""
    return frame[frame.find(_PROMPT_ID) :]


def lazy_progress_state(prompt_id: str, frame: bytes) -> events.ProgressState:
    """Wrap a ``progress_state`` frame whose prompt_id was peeked; its nodes are parsed when they are first read."""

    def nodes() -> Mapping[str, events.NodeProgress]:
        event = to_event(*parse(frame))
        if not isinstance(event, events.ProgressState) or event.prompt_id != prompt_id:
            raise ProtocolError(f"a progress_state frame names more than one prompt: {_excerpt(frame)}")
        return event.nodes

    return events.ProgressState(prompt_id, nodes)


def decode_binary(frame: bytes) -> events.Event:
    """Turn a binary frame into an event, without copying its picture.

    Raises:
        ProtocolError: The frame is malformed.
    """
    if len(frame) < 4:
        raise ProtocolError(f"a binary frame of {len(frame)} bytes has no event number")
    event = int.from_bytes(frame[:4], "big")
    if event == PREVIEW_IMAGE:
        return _preview_image(frame)
    if event == PREVIEW_IMAGE_WITH_METADATA:
        return _preview_image_with_metadata(frame)
    if event == TEXT:
        return _text(frame)
    return events.Unknown(f"binary:{event}", frame[4:])


def encode(event: events.Event) -> str | bytes:
    """Turn an event into the frame that ComfyUI would send for it: the mirror of `decode`."""
    match event:
        case events.PreviewImage(has_metadata=True):
            return _encode_preview_image_with_metadata(event)
        case events.PreviewImage():
            return _encode_preview_image(event)
        case events.Text(node_id=node_id, text=text):
            node = node_id.encode()
            return struct.pack(">II", TEXT, len(node)) + node + text.encode()
        case events.Unknown(type=kind, data=bytes(data)):
            return struct.pack(">I", int(kind.removeprefix("binary:"))) + data
        case _:
            kind, data = _ENCODERS[type(event)](event)
            return json.dumps({"type": kind, "data": data})


# --- Text frames: reading ------------------------------------------------------------------------------------------


def _load_tolerantly(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"not JSON ({exc}): {_excerpt(text)}") from None


def _excerpt(frame: bytes) -> str:
    return repr(frame[:100])


def _object(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ProtocolError(f"{name!r} is {type(value).__name__}, not an object")


def _string(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if isinstance(value, str):
        return value
    raise ProtocolError(f"{name!r} is {type(value).__name__}, not a string")


def _optional_string(data: Mapping[str, Any], name: str) -> str | None:
    return None if data.get(name) is None else _string(data, name)


def _node_id(data: Mapping[str, Any], name: str) -> str | None:
    """Read a node id; custom nodes were seen to send whole numbers for it."""
    value = data.get(name)
    return str(value) if type(value) is int else _optional_string(data, name)


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    if type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max):
        return value
    raise ProtocolError(f"{name!r} is {type(value).__name__}, not a number that a float can hold")


def _timestamp(data: Mapping[str, Any]) -> int | None:
    value = data.get("timestamp")
    return value if type(value) is int else None


def _strings(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Read a list of node ids or of lines; an absent one is empty."""
    value = data.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ProtocolError(f"{name!r} is {type(value).__name__}, not a list")
    return tuple(item if isinstance(item, str) else _whole_number(item, name) for item in value)


def _whole_number(value: Any, name: str) -> str:
    if type(value) is int:
        return str(value)
    raise ProtocolError(f"{name!r} holds {type(value).__name__}, not strings")


def _status(data: dict[str, Any]) -> events.Event:
    # A custom node's ``status`` without exec_info is let through: nothing depends on the number.
    status = data.get("status")
    exec_info = status.get("exec_info") if isinstance(status, dict) else None
    remaining = exec_info.get("queue_remaining") if isinstance(exec_info, dict) else None
    return events.Status(remaining if type(remaining) is int else None, _optional_string(data, "sid"))


def _execution_cached(data: dict[str, Any]) -> events.Event:
    if data.get("nodes") is None:
        raise ProtocolError("'nodes' is missing")
    return events.ExecutionCached(_string(data, "prompt_id"), _strings(data, "nodes"), _timestamp(data))


def _executing(data: dict[str, Any]) -> events.Event:
    node = _node_id(data, "node")
    display_node = None if node is None else _node_id(data, "display_node") or node
    return events.Executing(node, display_node, _optional_string(data, "prompt_id"))


def _progress(data: dict[str, Any]) -> events.Event:
    return events.Progress(
        _number(data, "value"), _number(data, "max"), _optional_string(data, "prompt_id"), _node_id(data, "node")
    )


def _progress_state(data: dict[str, Any]) -> events.Event:
    return events.ProgressState(_string(data, "prompt_id"), _node_progress(data.get("nodes")))


def _node_progress(nodes: Any) -> dict[str, events.NodeProgress]:
    progress = {}
    for node_id, node in _object(nodes, "nodes").items():
        node = _object(node, f"node {node_id}")
        progress[node_id] = events.NodeProgress(
            node_id=node_id,
            value=_number(node, "value"),
            max=_number(node, "max"),
            state=_string(node, "state"),
            display_node_id=_node_id(node, "display_node_id") or node_id,
            parent_node_id=_node_id(node, "parent_node_id"),
            real_node_id=_node_id(node, "real_node_id"),
        )
    return progress


def _executed(data: dict[str, Any]) -> events.Event:
    node = _node_id(data, "node")
    if node is None:
        raise ProtocolError("'node' is missing")
    output = data.get("output")
    if output is not None:
        output = _object(output, "output")
    return events.Executed(_string(data, "prompt_id"), node, _node_id(data, "display_node") or node, output)


def _execution_error(data: dict[str, Any]) -> events.Event:
    return events.ExecutionError(
        prompt_id=_string(data, "prompt_id"),
        node_id=_node_id(data, "node_id"),
        node_type=_optional_string(data, "node_type"),
        exception_type=_optional_string(data, "exception_type") or "",
        exception_message=_optional_string(data, "exception_message") or "",
        traceback=_strings(data, "traceback"),
        executed=_strings(data, "executed"),
        current_inputs=data.get("current_inputs"),
        current_outputs=data.get("current_outputs"),
        timestamp=_timestamp(data),
    )


def _execution_interrupted(data: dict[str, Any]) -> events.Event:
    return events.ExecutionInterrupted(
        prompt_id=_string(data, "prompt_id"),
        node_id=_node_id(data, "node_id"),
        node_type=_optional_string(data, "node_type"),
        executed=_strings(data, "executed"),
        timestamp=_timestamp(data),
    )


def _logs(data: dict[str, Any]) -> events.Event:
    entries = data.get("entries")
    if not isinstance(entries, list):
        raise ProtocolError("'entries' is not a list")
    size = data.get("size")
    return events.Logs(tuple(_object(entry, "an entry") for entry in entries), size if isinstance(size, dict) else None)


_DECODERS: dict[str, Callable[[dict[str, Any]], events.Event]] = {
    "status": _status,
    "feature_flags": events.FeatureFlags,
    "execution_start": lambda data: events.ExecutionStart(_string(data, "prompt_id"), _timestamp(data)),
    "execution_cached": _execution_cached,
    "executing": _executing,
    "progress": _progress,
    "progress_state": _progress_state,
    "executed": _executed,
    "execution_success": lambda data: events.ExecutionSuccess(_string(data, "prompt_id"), _timestamp(data)),
    "execution_error": _execution_error,
    "execution_interrupted": _execution_interrupted,
    "logs": _logs,
}


# --- Text frames: writing ------------------------------------------------------------------------------------------


def _stamped(data: dict[str, Any], timestamp: int | None) -> dict[str, Any]:
    return data if timestamp is None else {**data, "timestamp": timestamp}


def _write_status(event: events.Status) -> dict[str, Any]:
    exec_info = {} if event.queue_remaining is None else {"queue_remaining": event.queue_remaining}
    data: dict[str, Any] = {"status": {"exec_info": exec_info}}
    return data if event.sid is None else {**data, "sid": event.sid}


def _write_executing(event: events.Executing) -> dict[str, Any]:
    if event.node is None:
        return {"node": None, "prompt_id": event.prompt_id}
    if event.prompt_id is None and event.display_node == event.node:
        return {"node": event.node}  # the replay after a reconnect (server.py websocket_handler)
    return {"node": event.node, "display_node": event.display_node, "prompt_id": event.prompt_id}


def _write_progress(event: events.Progress) -> dict[str, Any]:
    return {"value": event.value, "max": event.max, "prompt_id": event.prompt_id, "node": event.node}


def _write_progress_state(event: events.ProgressState) -> dict[str, Any]:
    nodes = {
        node.node_id: {
            "value": node.value,
            "max": node.max,
            "state": node.state,
            "node_id": node.node_id,
            "prompt_id": event.prompt_id,
            "display_node_id": node.display_node_id,
            "parent_node_id": node.parent_node_id,
            "real_node_id": node.real_node_id,
        }
        for node in event.nodes.values()
    }
    return {"prompt_id": event.prompt_id, "nodes": nodes}


def _write_executed(event: events.Executed) -> dict[str, Any]:
    return {
        "node": event.node,
        "display_node": event.display_node,
        "output": event.output,
        "prompt_id": event.prompt_id,
    }


def _write_execution_error(event: events.ExecutionError) -> dict[str, Any]:
    data = {
        "prompt_id": event.prompt_id,
        "node_id": event.node_id,
        "node_type": event.node_type,
        "executed": list(event.executed),
        "exception_message": event.exception_message,
        "exception_type": event.exception_type,
        "traceback": list(event.traceback),
        "current_inputs": event.current_inputs,
        "current_outputs": event.current_outputs,
    }
    return _stamped(data, event.timestamp)


def _write_execution_interrupted(event: events.ExecutionInterrupted) -> dict[str, Any]:
    data = {
        "prompt_id": event.prompt_id,
        "node_id": event.node_id,
        "node_type": event.node_type,
        "executed": list(event.executed),
    }
    return _stamped(data, event.timestamp)


_ENCODERS: dict[type, Callable[[Any], tuple[str, Any]]] = {
    events.Status: lambda event: ("status", _write_status(event)),
    events.FeatureFlags: lambda event: ("feature_flags", dict(event.flags)),
    events.ExecutionStart: lambda event: (
        "execution_start",
        _stamped({"prompt_id": event.prompt_id}, event.timestamp),
    ),
    events.ExecutionCached: lambda event: (
        "execution_cached",
        _stamped({"nodes": list(event.nodes), "prompt_id": event.prompt_id}, event.timestamp),
    ),
    events.Executing: lambda event: ("executing", _write_executing(event)),
    events.Progress: lambda event: ("progress", _write_progress(event)),
    events.ProgressState: lambda event: ("progress_state", _write_progress_state(event)),
    events.Executed: lambda event: ("executed", _write_executed(event)),
    events.ExecutionSuccess: lambda event: (
        "execution_success",
        _stamped({"prompt_id": event.prompt_id}, event.timestamp),
    ),
    events.ExecutionError: lambda event: ("execution_error", _write_execution_error(event)),
    events.ExecutionInterrupted: lambda event: ("execution_interrupted", _write_execution_interrupted(event)),
    events.Logs: lambda event: ("logs", {"entries": list(event.entries), "size": event.size}),
    events.Unknown: lambda event: (event.type, event.data),
}


# --- Binary frames -------------------------------------------------------------------------------------------------


def sniff_mime(head: bytes) -> str | None:
    """Tell an image's media type from its first 12 bytes; None when they are of no kind that ComfyUI sends."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith(b"GIF8"):
        return "image/gif"
    return None


def _preview_image(frame: bytes) -> events.Event:
    if len(frame) < 8:
        raise ProtocolError(f"a preview frame of {len(frame)} bytes has no format")
    mime = sniff_mime(frame[8:20])
    if mime is None:
        animated_mime = sniff_mime(frame[28:40])
        if animated_mime is not None:
            return _animated_preview(frame, animated_mime)
        mime = _MIME_OF_FORMAT.get(int.from_bytes(frame[4:8], "big"), OCTETS)
    return events.PreviewImage(memoryview(frame)[8:], mime)


def _animated_preview(frame: bytes, mime: str) -> events.Event:
    """Read VideoHelperSuite's frame: its index, the node id as a 16-byte Pascal string, then the picture."""
    node_id = frame[13 : 13 + min(frame[12], 15)].decode("utf-8", "replace")
    return events.PreviewImage(memoryview(frame)[28:], mime, node_id=node_id or None)


def _preview_image_with_metadata(frame: bytes) -> events.Event:
    header, start = _sized_field(frame, "metadata")
    metadata = _object(load_json(header), "metadata")
    mime = _optional_string(metadata, "image_type")
    return events.PreviewImage(
        memoryview(frame)[start:],
        sniff_mime(frame[start : start + 12]) or mime or OCTETS,
        prompt_id=_optional_string(metadata, "prompt_id"),
        node_id=_node_id(metadata, "node_id"),
        display_node_id=_node_id(metadata, "display_node_id"),
        parent_node_id=_node_id(metadata, "parent_node_id"),
        real_node_id=_node_id(metadata, "real_node_id"),
        has_metadata=True,
    )


def _text(frame: bytes) -> events.Event:
    node_id, start = _sized_field(frame, "node id")
    try:
        return events.Text(node_id.decode(), frame[start:].decode())
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"a text frame's node id or text is not UTF-8: {exc}") from None


def _sized_field(frame: bytes, name: str) -> tuple[bytes, int]:
    """Read a field that stands behind its own length at byte 4; give it and the place where it ends."""
    end = 8 + int.from_bytes(frame[4:8], "big")
    if len(frame) < 8 or end > len(frame):
        raise ProtocolError(f"a binary frame of {len(frame)} bytes is too short for its {name}")
    return frame[8:end], end


def _encode_preview_image(event: events.PreviewImage) -> bytes:
    head = struct.pack(">II", PREVIEW_IMAGE, _FORMAT_OF_MIME.get(event.mime, 1))
    if event.prompt_id is None and event.node_id is not None:  # VideoHelperSuite's own header names the node
        head += struct.pack(">I16p", 0, event.node_id.encode())
    return head + event.view


def _encode_preview_image_with_metadata(event: events.PreviewImage) -> bytes:
    metadata = json.dumps(
        {
            "node_id": event.node_id,
            "prompt_id": event.prompt_id,
            "display_node_id": event.display_node_id,
            "parent_node_id": event.parent_node_id,
            "real_node_id": event.real_node_id,
            "image_type": event.mime,
        }
    ).encode()
    return struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(metadata)) + metadata + event.view

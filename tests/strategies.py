"""Hypothesis strategies: what a ComfyUI server may send, and what it may not."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

from acomfy import events

KNOWN_TYPES = (
    "status",
    "feature_flags",
    "execution_start",
    "execution_cached",
    "executing",
    "progress",
    "progress_state",
    "executed",
    "execution_success",
    "execution_error",
    "execution_interrupted",
    "logs",
)

JPEG = b"\xff\xd8\xff\xe0"
PNG = b"\x89PNG\r\n\x1a\n"
WEBP = b"RIFF\x10\x00\x00\x00WEBP"
GIF = b"GIF89a"
MIME_OF_MAGIC = {JPEG: "image/jpeg", PNG: "image/png", WEBP: "image/webp", GIF: "image/gif"}

# Lone surrogates included: ``json.dumps`` writes them as escapes, and file names on the server may hold them.
texts = st.text(st.characters(), max_size=20)
numbers = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)

prompt_ids = st.uuids().map(str) | texts
node_ids = st.from_regex(r"[0-9]{1,3}(\.0\.0\.[0-9])?", fullmatch=True) | texts
maybe_node_ids = st.none() | node_ids
timestamps = st.none() | st.integers(0, 2**53)
id_tuples = st.lists(node_ids, max_size=4).map(tuple)

progresses = st.integers(-5, 100) | st.floats(allow_nan=False)


@st.composite
def node_progresses(draw: st.DrawFn, node_id: str) -> events.NodeProgress:
    return events.NodeProgress(
        node_id=node_id,
        value=draw(progresses),
        max=draw(progresses),
        state=draw(st.sampled_from(["running", "finished", "error"])),
        display_node_id=draw(node_ids.filter(bool)),
        parent_node_id=draw(maybe_node_ids),
        real_node_id=draw(maybe_node_ids),
    )


@st.composite
def progress_states(draw: st.DrawFn) -> events.ProgressState:
    nodes = {node_id: draw(node_progresses(node_id)) for node_id in draw(st.lists(node_ids, unique=True, max_size=4))}
    return events.ProgressState(draw(prompt_ids), nodes)


@st.composite
def executings(draw: st.DrawFn) -> events.Executing:
    node = draw(maybe_node_ids)
    display_node = None if node is None else draw(st.just(node) | node_ids.filter(bool))
    return events.Executing(node, display_node, draw(st.none() | prompt_ids))


@st.composite
def plain_previews(draw: st.DrawFn) -> events.PreviewImage:
    """Event 1: of any kind that can be sniffed, or of the two that the format names; with the node under VHS."""
    magic = draw(st.sampled_from([JPEG, PNG, WEBP, GIF, b""]))
    rest = draw(st.binary(max_size=60)) if magic else b"no picture at all"
    mime = MIME_OF_MAGIC.get(magic) or draw(st.sampled_from(["image/jpeg", "image/png"]))
    node_id = draw(st.none() | st.from_regex(r"[0-9.]{1,15}", fullmatch=True)) if magic else None
    return events.PreviewImage(memoryview(magic + rest), mime, node_id=node_id)


@st.composite
def previews_with_metadata(draw: st.DrawFn) -> events.PreviewImage:
    magic = draw(st.sampled_from([JPEG, PNG, WEBP, GIF, b""]))
    rest = draw(st.binary(max_size=60)) if magic else b"no picture at all"
    mime = MIME_OF_MAGIC.get(magic) or draw(st.sampled_from(["image/jpeg", "image/avif"]))
    return events.PreviewImage(
        memoryview(magic + rest),
        mime,
        draw(st.none() | prompt_ids),
        *draw(st.tuples(maybe_node_ids, maybe_node_ids, maybe_node_ids, maybe_node_ids)),
        has_metadata=True,
    )


wire_texts = st.text(max_size=20)  # event 3 is UTF-8, which has no lone surrogates

typed_events: st.SearchStrategy[events.Event] = st.one_of(
    st.builds(events.Status, st.none() | st.integers(0, 10**6), st.none() | texts),
    st.builds(events.FeatureFlags, json_objects),
    st.builds(events.ExecutionStart, prompt_ids, timestamps),
    st.builds(events.ExecutionCached, prompt_ids, id_tuples, timestamps),
    executings(),
    st.builds(events.Progress, progresses, progresses, st.none() | prompt_ids, maybe_node_ids),
    progress_states(),
    st.builds(events.Executed, prompt_ids, node_ids, node_ids.filter(bool), st.none() | json_objects),
    st.builds(events.ExecutionSuccess, prompt_ids, timestamps),
    st.builds(
        events.ExecutionError,
        prompt_ids,
        maybe_node_ids,
        st.none() | texts,
        texts,
        texts,
        id_tuples,
        id_tuples,
        json_values,
        json_values,
        timestamps,
    ),
    st.builds(events.ExecutionInterrupted, prompt_ids, maybe_node_ids, st.none() | texts, id_tuples, timestamps),
    st.builds(events.Logs, st.lists(json_objects, max_size=3).map(tuple), st.none() | json_objects),
    plain_previews(),
    previews_with_metadata(),
    st.builds(events.Text, wire_texts, wire_texts),
    st.builds(events.Unknown, texts.filter(lambda kind: kind not in KNOWN_TYPES), json_values),
    st.builds(
        events.Unknown,
        st.sampled_from([0, 2, 5, 99, 2**32 - 1]).map("binary:{}".format),
        st.binary(max_size=40),
    ),
)


def text_frame(kind: str, data: Any) -> bytes:
    """Write a text frame as ComfyUI does (server.py send_json)."""
    return json.dumps({"type": kind, "data": data}).encode()


def binary_frame(event: int, rest: bytes) -> bytes:
    return struct.pack(">I", event) + rest


def metadata_frame(metadata: Any, picture: bytes) -> bytes:
    """Write a preview with metadata (event 4)."""
    head = json.dumps(metadata).encode()
    return struct.pack(">II", 4, len(head)) + head + picture


# Messages of known types with anything in their fields: what a broken server, or a custom node, may send.
field_names = st.sampled_from(
    ["prompt_id", "node", "display_node", "nodes", "output", "value", "max", "node_id", "timestamp", "status", "sid"]
    + ["executed", "traceback", "exception_type", "exception_message", "node_type", "entries", "size"]
)
odd_values = json_values | st.sampled_from(
    [[], {}, "abc", [[]], [{}], {"1": []}, {"1": {}}, {"exec_info": 3}, -1, 1e400]
)


def odd_data(ids: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Give data whose ``prompt_id``, if any, is one of these; and whatever is no object."""
    fields = st.dictionaries(field_names, odd_values, max_size=6)
    named = st.tuples(fields, ids).map(lambda parts: {**parts[0], "prompt_id": parts[1]})
    return named | fields | odd_values

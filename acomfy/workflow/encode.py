"""A graph frozen as the JSON that ``POST /prompt`` takes."""

from __future__ import annotations

import json
from dataclasses import dataclass

import orjson

from ..captures import CopyPicture
from ..inputs import FileInput, take
from .document import Workflow
from .graph import Graph, check_format, describe
from .values import check_values

_SMALL = 1 << 20


@dataclass(frozen=True, slots=True)
class EncodedGraph:
    """A graph as it was when it was encoded.

    Attributes:
        json: The graph as JSON, for ``POST /prompt``.
        streams: The nodes of the classes that stream their pictures, in graph order.
        files: The files that stand in it as the values of inputs; marks are in their places. See `acomfy.inputs`.
    """

    json: bytes
    streams: tuple[str, ...]
    files: tuple[FileInput, ...] = ()


def encode(graph: Graph, stream_classes: frozenset[str], copy_picture: CopyPicture | None = None) -> EncodedGraph:
    """Check a graph's form and freeze it as JSON.

    Args:
        copy_picture: Copies the pictures that stand in it; see `acomfy.captures.capture`.

    Raises:
        WorkflowError: It is not in API format, or holds what JSON has not (NaN, keys that are not strings, objects)
            and what cannot be uploaded either.
    """
    if isinstance(graph, Workflow):
        graph = graph._nodes
    check_format(graph)
    text = _dumped(graph)
    files: tuple[FileInput, ...] = ()
    if not text:
        graph, files = take(graph, describe, copy_picture)
        text = _dumped(graph)
    # orjson writes some of what JSON has not, but as something else: NaN as null, a UUID as a string. Reading it back
    # finds that sooner than looking at each value does.
    small = len(text) <= _SMALL
    if not (text and small and orjson.loads(text) == graph):
        for node_id, node in graph.items():
            check_values(node_id, node)
    if small:
        text = bytes(memoryview(text))  # orjson's bytes keep the room that they grew into: 4 KB for 0.7
    streams = tuple(node_id for node_id, node in graph.items() if node["class_type"] in stream_classes)
    return EncodedGraph(text or _written(graph), streams, files)


def _dumped(graph: Graph) -> bytes:
    """Write what orjson writes; empty for all else.

    That is integers beyond 64 bits, lone surrogates, mappings that are no dicts, files, and what JSON has not.
    """
    try:
        return orjson.dumps(graph)
    except orjson.JSONEncodeError:
        return b""


def _written(graph: Graph) -> bytes:
    """Write what orjson does not write."""
    return json.dumps(graph, allow_nan=False, separators=(",", ":"), default=dict).encode()

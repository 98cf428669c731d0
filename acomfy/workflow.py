"""The graph that a prompt is made of, in ComfyUI's API format: load it, find nodes, set inputs, encode it.

API format is ``{node_id: {"class_type": str, "inputs": {name: value or [node_id, slot]}, "_meta": {"title": str}}}``:
what "Export (API)" of the web editor writes and what ``POST /prompt`` takes. The JSON that the editor saves otherwise
(``nodes`` and ``links``) is another format; it is recognised and refused.

Copies share their nodes. A node is copied when it is put in and when it is handed out, and a node that was ever handed
out is not shared any more: no edit of one workflow is seen by another.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import orjson

from .errors import WorkflowError, WorkflowFormatError

Graph: TypeAlias = Mapping[str, Any]
"""A prompt in API format; a `Workflow` is one."""

_API_FORMAT = "in ComfyUI's editor choose Workflow > Export (API) and load that file"
_DEEPEST = 200
_LONGEST_INTEGER = 14_284  # bits: 4300 digits, more than which no Python reads unless it was told to
_SHOWN_NODES = 30
_SMALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a workflow.

    Attributes:
        title: Its title in the editor (``_meta.title``); None when it has none.
        inputs: Its inputs by name; editing them edits the workflow.
    """

    node_id: str
    class_type: str
    title: str | None
    inputs: dict[str, Any]


class Workflow(MutableMapping[str, dict[str, Any]]):
    """A prompt in API format, edited like the plain dict that it is.

    Compares by content, also with a plain dict. Example::

        workflow = Workflow.load("workflow_api.json")
        workflow["6"]["inputs"]["text"] = "a fox"
        variant = workflow.replace({"3.seed": 5, "Negative.text": "blurry"})
    """

    __slots__ = ("_handed_out", "_nodes")

    _nodes: dict[str, dict[str, Any]]
    _handed_out: set[str]

    def __init__(self, graph: Graph) -> None:
        """Copy a graph.

        Raises:
            WorkflowFormatError: It is not in API format.
        """
        if isinstance(graph, Workflow):
            self._nodes = graph._shareable()
        else:
            check_format(graph)
            self._nodes = {node_id: _copied_node(node_id, node) for node_id, node in graph.items()}
        self._handed_out = set()

    @classmethod
    def load(cls, source: str | bytes | os.PathLike[str] | Graph) -> Self:
        """Load a workflow from a file's path, from JSON text or bytes, or from a dict.

        A str that begins with ``{`` is JSON, any other str is a path. The file is read at once: inside a coroutine,
        do it before the work begins.

        Raises:
            WorkflowFormatError: It is not JSON, or not in API format.
            OSError: The file cannot be read.
        """
        if isinstance(source, Mapping):
            return cls(source)
        if isinstance(source, str) and (text := source.lstrip("\ufeff \t\r\n")).startswith("{"):
            return cls(_parsed(text, "the text"))
        if isinstance(source, bytes | bytearray):
            return cls(_parsed(source, "the data"))
        return cls(_parsed(Path(source).read_bytes(), os.fspath(source)))

    # --- Reading and editing ---------------------------------------------------------------------------------------

    def __getitem__(self, node_id: str) -> dict[str, Any]:
        node = self._nodes[node_id]
        if node_id not in self._handed_out:
            node = self._nodes[node_id] = _copied_node(node_id, node)
            self._handed_out.add(node_id)
        return node

    def __setitem__(self, node_id: str, node: Mapping[str, Any]) -> None:
        _check_node(node_id, node)
        self._nodes[node_id] = _copied_node(node_id, node)
        self._handed_out.discard(node_id)

    def __delitem__(self, node_id: str) -> None:
        del self._nodes[node_id]
        self._handed_out.discard(node_id)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def setdefault(self, node_id: str, default: Any = None) -> dict[str, Any]:
        """Give a node; put in ``default`` first if it is not there."""
        if node_id not in self._nodes:
            self[node_id] = default
        return self[node_id]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        nodes = other._nodes if isinstance(other, Workflow) else other
        return self._nodes == nodes or _copied(self._nodes) == _copied(nodes)  # a link may be a tuple

    __hash__ = None  # type: ignore[assignment]  # it can be edited

    def __repr__(self) -> str:
        return f"<Workflow of {len(self)} nodes>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Workflow, (self._nodes,)

    def copy(self) -> Workflow:
        """Make a copy that shares nodes until they are edited."""
        return Workflow(self)

    def to_dict(self) -> dict[str, Any]:
        """Give the graph as a plain dict of its own, ready for ``json.dumps``."""
        return {node_id: _copied_node(node_id, node) for node_id, node in self._nodes.items()}

    def find(self, name: str) -> Node:
        """Find the one node with this id, else with this title, else of this class.

        Raises:
            WorkflowError: None or several match; the message names them.
        """
        node_id = self._the_one(name, self._matches(name), "id, title or class")
        _check_node(node_id, self._nodes[node_id])
        node = self[node_id]
        return Node(node_id, node["class_type"], title_of(node), node["inputs"])

    def _matches(self, name: str) -> list[str]:
        """Give the nodes with this id, or else with this title, or else of this class."""
        if name in self._nodes:
            return [name]
        titled = self._titled(name)
        return titled or [node_id for node_id, node in self._nodes.items() if node.get("class_type") == name]

    def _titled(self, title: str) -> list[str]:
        return [node_id for node_id, node in self._nodes.items() if title_of(node) == title]

    def _the_one(self, name: str, matches: list[str], searched: str) -> str:
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise WorkflowError(f"{name!r} names {len(matches)} nodes: {self._listed(matches)}; use a node id")
        raise WorkflowError(f"no node has the {searched} {name!r}; there are: {self._listed(list(self._nodes))}")

    def _listed(self, node_ids: list[str]) -> str:
        shown = ", ".join(describe(node_id, self._nodes[node_id]) for node_id in node_ids[:_SHOWN_NODES])
        more = len(node_ids) - _SHOWN_NODES
        return f"{shown} and {more} more" if more > 0 else shown or "none"

    def replace(self, changes: Mapping[str | tuple[str, str], Any]) -> Workflow:
        """Make a copy with other input values; it shares all nodes but the changed ones.

        Args:
            changes: Values by ``"NODE.INPUT"``, where NODE is a node's id or its title and INPUT stands behind the
                last dot; or by ``(NODE, INPUT)`` for names with dots. A link is ``[node_id, slot]``.

        Raises:
            WorkflowError: No node or several have that title, or the node lacks that input (the server would ignore
                it silently).
        """
        changed: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            name, input_name = _split_key(key)
            node_id = self._named(name)
            _check_input(node_id, self._nodes[node_id], input_name)
            changed.setdefault(node_id, {})[input_name] = value
        nodes = self._shareable()
        for node_id, inputs in changed.items():
            node = nodes[node_id]
            nodes[node_id] = _copied_node(node_id, {**node, "inputs": {**node["inputs"], **inputs}})
        copy = Workflow.__new__(Workflow)
        copy._nodes, copy._handed_out = nodes, set()
        return copy

    def _named(self, name: str) -> str:
        """Give the id of the one node with this id, or else with this title."""
        if name in self._nodes:
            return name
        searched = "id or title"
        if "." in name:
            searched = "id or title (where names hold dots, write ('NODE', 'INPUT'))"
        return self._the_one(name, self._titled(name), searched)

    def _shareable(self) -> dict[str, dict[str, Any]]:
        """Give the nodes for another workflow: copies of those that somebody may still edit."""
        nodes = dict(self._nodes)
        for node_id in self._handed_out:
            nodes[node_id] = _copied_node(node_id, nodes[node_id])
        return nodes


# --- What a graph is -----------------------------------------------------------------------------------------------


def check_format(graph: object) -> None:
    """Tell an API-format graph from everything else.

    Raises:
        WorkflowFormatError: It is no API-format graph; the message says what to do.
        WorkflowError: A node of it is malformed.
    """
    if not isinstance(graph, Mapping):
        raise WorkflowFormatError(f"a workflow is a JSON object of nodes, not {type(graph).__name__}")
    if isinstance(graph.get("nodes"), list):
        raise WorkflowFormatError(f"this is the editor's own workflow format, not API format: {_API_FORMAT}")
    if isinstance(graph.get("prompt"), Mapping) and "class_type" not in graph["prompt"]:
        raise WorkflowFormatError("this is a request for POST /prompt, not a workflow: pass what is under 'prompt'")
    for node_id, node in graph.items():
        _check_node(node_id, node)


def _check_node(node_id: object, node: object) -> None:
    if not isinstance(node_id, str):
        raise WorkflowError(f"node id {node_id!r} is {type(node_id).__name__}, not a string")
    if not isinstance(node, Mapping):
        raise WorkflowFormatError(
            f"{node_id!r} is {type(node).__name__}, not a node with a class_type: {_API_FORMAT}", node_id=node_id
        )
    if not isinstance(node.get("class_type"), str):
        raise WorkflowFormatError(f"node {node_id} has no class_type: {_API_FORMAT}", node_id=node_id)
    if not isinstance(node.get("inputs"), Mapping):
        raise WorkflowError(f"{describe(node_id, node)} has no inputs: give it at least {{}}", node_id=node_id)


def title_of(node: Mapping[str, Any]) -> str | None:
    """Give a node's title in the editor; None when it has none."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) else None


def describe(node_id: str, node: Mapping[str, Any]) -> str:
    """Name a node for a person: ``node 3 (KSampler, 'Second pass')``."""
    title, class_type = title_of(node), node.get("class_type")
    return f"node {node_id} ({class_type}{f', {title!r}' if title and title != class_type else ''})"


def _check_input(node_id: str, node: Mapping[str, Any], input_name: str) -> None:
    _check_node(node_id, node)  # it may have been edited
    names = list(node["inputs"])
    if input_name in names:
        return
    close = difflib.get_close_matches(input_name, names, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(names) or 'none'}"
    raise WorkflowError(
        f"{describe(node_id, node)} has no input {input_name!r}; {hint}", node_id=node_id, input_name=input_name
    )


def _split_key(key: str | tuple[str, str]) -> tuple[str, str]:
    if isinstance(key, tuple) and len(key) == 2:
        return key
    name, dot, input_name = key.rpartition(".") if isinstance(key, str) else ("", "", "")
    if not dot:
        raise WorkflowError(f"{key!r} names no input: write it as 'NODE.INPUT', for example '3.seed'")
    return name, input_name


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _copied_node(node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {key: _copied(value) for key, value in node.items()}
    except RecursionError:
        _check_values(node_id, node)  # says which input it is
        raise


def _parsed(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)  # not orjson: integers of any size stay exact
    except (ValueError, RecursionError) as exc:
        raise WorkflowFormatError(f"{name} is not JSON: {exc}") from None


# --- Encoding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncodedGraph:
    """A graph as it was when it was encoded.

    Attributes:
        json: The graph as JSON, for ``POST /prompt``.
        streams: The nodes of the classes that stream their pictures, in graph order.
    """

    json: bytes
    streams: tuple[str, ...]


def encode(graph: Graph, stream_classes: frozenset[str]) -> EncodedGraph:
    """Check a graph's form and freeze it as JSON.

    Raises:
        WorkflowError: It is not in API format, or holds what JSON has not (NaN, keys that are not strings, objects).
    """
    if isinstance(graph, Workflow):
        graph = graph._nodes
    check_format(graph)
    try:
        text = orjson.dumps(graph)
    except orjson.JSONEncodeError:
        text = b""  # integers beyond 64 bits, lone surrogates, mappings that are no dicts, and what JSON has not
    # orjson writes some of what JSON has not, but as something else: NaN as null, a UUID as a string. Reading it back
    # finds that sooner than looking at each value does.
    small = len(text) <= _SMALL
    if not (text and small and orjson.loads(text) == graph):
        for node_id, node in graph.items():
            _check_values(node_id, node)
    if small:
        text = bytes(memoryview(text))  # orjson's bytes keep the room that they grew into: 4 KB for 0.7
    streams = tuple(node_id for node_id, node in graph.items() if node["class_type"] in stream_classes)
    return EncodedGraph(text or _written(graph), streams)


def _written(graph: Graph) -> bytes:
    """Write what orjson does not write."""
    return json.dumps(graph, allow_nan=False, separators=(",", ":"), default=dict).encode()


def _check_values(node_id: str, node: Mapping[str, Any]) -> None:
    """Refuse what JSON cannot hold, by the input's name."""
    for name, value in node["inputs"].items():
        if problem := _not_json({name: value}, 2):
            raise WorkflowError(
                f"{describe(node_id, node)}: input {name!r} {problem}", node_id=node_id, input_name=str(name)
            )
    for key, value in node.items():
        if key != "inputs" and (problem := _not_json({key: value}, 1)):
            raise WorkflowError(f"{describe(node_id, node)}: {key!r} {problem}", node_id=node_id)


def _not_json(value: Any, depth: int = 0) -> str | None:
    """Say what of a value JSON cannot hold; None when it can.

    orjson would write some of it all the same, and differently: NaN as null, a UUID as a string.
    """
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, int):
        return None if value.bit_length() <= _LONGEST_INTEGER else "holds an integer of more than 4300 digits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"holds {value}, which JSON has not"
    if depth > _DEEPEST:
        return "is nested too deeply, or contains itself"
    if isinstance(value, (list, tuple)):
        return _first_problem(value, depth)
    if isinstance(value, (dict, Mapping)):
        for key in value:
            if not isinstance(key, str):
                return f"has the key {key!r}, which is {type(key).__name__}, not a string"
        return _first_problem(value.values(), depth)
    return f"holds {type(value).__name__}, which JSON has not"


def _first_problem(values: Iterable[Any], depth: int) -> str | None:
    for value in values:
        if problem := _not_json(value, depth + 1):
            return problem
    return None

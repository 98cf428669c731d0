"""The graph that a prompt is made of, in ComfyUI's API format: load it, find nodes, set inputs, encode it.

API format is ``{node_id: {"class_type": str, "inputs": {name: value or [node_id, slot]}, "_meta": {"title": str}}}``:
what "Export (API)" of the web editor writes and what ``POST /prompt`` takes. The JSON that the editor saves otherwise
(``nodes`` and ``links``) is another format; it is recognised and refused.

Copies share their nodes. A node is copied when it is handed out, and a node that was ever handed out is not shared any
more: no edit of one workflow is seen by another.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import orjson

from .errors import WorkflowError, WorkflowFormatError

Graph: TypeAlias = Mapping[str, Any]
"""A prompt in API format; a `Workflow` is one."""

_API_FORMAT = "in ComfyUI's editor choose Workflow > Export (API) and load that file"


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
            self._nodes = {node_id: _copied(node) for node_id, node in graph.items()}
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
        if isinstance(source, str) and source.lstrip().startswith("{"):
            return cls(_parsed(source, "the text"))
        if isinstance(source, bytes | bytearray):
            return cls(_parsed(source, "the data"))
        return cls(_parsed(Path(source).read_bytes(), os.fspath(source)))

    # --- Reading and editing ---------------------------------------------------------------------------------------

    def __getitem__(self, node_id: str) -> dict[str, Any]:
        node = self._nodes[node_id]
        if node_id not in self._handed_out:
            node = self._nodes[node_id] = _copied(node)
            self._handed_out.add(node_id)
        return node

    def __setitem__(self, node_id: str, node: Mapping[str, Any]) -> None:
        _check_node(node_id, node)
        self._nodes[node_id] = dict(node)
        self._handed_out.add(node_id)

    def __delitem__(self, node_id: str) -> None:
        del self._nodes[node_id]
        self._handed_out.discard(node_id)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Workflow):
            return self._nodes == other._nodes
        return self._nodes == other if isinstance(other, Mapping) else NotImplemented

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
        return {node_id: _copied(node) for node_id, node in self._nodes.items()}

    def find(self, name: str) -> Node:
        """Find the one node with this id, else with this title, else of this class.

        Raises:
            WorkflowError: None or several match; the message names them.
        """
        node_id = self._resolve(name, self._matches(name))
        node = self[node_id]
        return Node(node_id, node["class_type"], title_of(node), node["inputs"])

    def _matches(self, name: str) -> list[str]:
        """Give the nodes with this id, or else with this title, or else of this class."""
        if name in self._nodes:
            return [name]
        titled = self._titled(name)
        return titled or [node_id for node_id, node in self._nodes.items() if node["class_type"] == name]

    def _titled(self, title: str) -> list[str]:
        return [node_id for node_id, node in self._nodes.items() if title_of(node) == title]

    def _resolve(self, name: str, matches: list[str]) -> str:
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise WorkflowError(f"{name!r} names {len(matches)} nodes: {self._listed(matches)}; use a node id")
        raise WorkflowError(f"no node has the id or title {name!r}; there are: {self._listed(self._nodes)}")

    def _listed(self, node_ids: Iterator[str] | Mapping[str, Any] | list[str]) -> str:
        shown = [describe(node_id, self._nodes[node_id]) for node_id in list(node_ids)[:30]]
        return ", ".join(shown) + ("..." if len(list(node_ids)) > 30 else "")

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
            node_id = name if name in self._nodes else self._resolve(name, self._titled(name))
            inputs = changed.setdefault(node_id, {})
            inputs[input_name] = _copied(value)
        nodes = self._shareable()
        for node_id, inputs in changed.items():
            node = nodes[node_id]
            for input_name in inputs:
                _check_input(node_id, node, input_name)
            nodes[node_id] = {**node, "inputs": {**node["inputs"], **inputs}}
        copy = Workflow.__new__(Workflow)
        copy._nodes, copy._handed_out = nodes, set()
        return copy

    def _shareable(self) -> dict[str, dict[str, Any]]:
        """Give the nodes for another workflow: copies of those that somebody may still edit."""
        nodes = dict(self._nodes)
        for node_id in self._handed_out:
            nodes[node_id] = _copied(nodes[node_id])
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
    names = list(node["inputs"])
    if input_name in names:
        return
    close = difflib.get_close_matches(input_name, names, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(names) or 'none'}"
    raise WorkflowError(
        f"{describe(node_id, node)} has no input {input_name!r}; {hint}", node_id=node_id, input_name=input_name
    )


def _split_key(key: str | tuple[str, str]) -> tuple[str, str]:
    if isinstance(key, tuple):
        name, input_name = key
    else:
        name, dot, input_name = key.rpartition(".")
        if not dot:
            raise WorkflowError(f"{key!r} names no input: write it as 'NODE.INPUT', for example '3.seed'")
    return name, input_name


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


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
    streams = tuple(node_id for node_id, node in graph.items() if node["class_type"] in stream_classes)
    try:
        text = orjson.dumps(graph)
    except (orjson.JSONEncodeError, RecursionError):
        # Integers beyond 64 bits, lone surrogates: the standard library writes them, orjson does not.
        return EncodedGraph(_encoded_slowly(graph), streams)
    if b"null" in text:  # how orjson writes NaN, which must not pass for None
        _check_values(graph)
    return EncodedGraph(text, streams)


def _encoded_slowly(graph: Graph) -> bytes:
    _check_values(graph)
    try:
        return json.dumps(graph, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except RecursionError:
        raise WorkflowError("the workflow is nested too deeply, or contains itself") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise AssertionError("_check_values lets through JSON's own types and mappings alone")


def _check_values(graph: Graph) -> None:
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            try:
                problem = _not_json(value) if isinstance(name, str) else "is not named by a string"
            except RecursionError:
                problem = "is nested too deeply, or contains itself"
            if problem:
                raise WorkflowError(
                    f"{describe(node_id, node)}: input {name!r} {problem}", node_id=node_id, input_name=str(name)
                )
        others = _not_json({key: value for key, value in node.items() if key != "inputs"})
        if others:
            raise WorkflowError(f"{describe(node_id, node)} {others}", node_id=node_id)


def _not_json(value: Any) -> str | None:
    """Say what of a value JSON cannot hold; None when it can."""
    if value is None or isinstance(value, str | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}, which JSON cannot hold"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"has the key {key!r}, which is {type(key).__name__}, not a string"
            if problem := _not_json(item):
                return problem
        return None
    if isinstance(value, list | tuple):
        return next((problem for item in value if (problem := _not_json(item))), None)
    return f"is {type(value).__name__}, which JSON cannot hold"

"""Two graphs side by side, and a hash that says whether they would do the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .graph import describe, title_of
from .query import Nodes
from .values import check_values, copied

What: TypeAlias = Literal["node added", "node removed", "class", "title", "input added", "input removed", "input"]

_EXACT = 2**53
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two workflows.

    Attributes:
        what: What changed.
        node_id: The node.
        node: The node for people, ``node 3 (KSampler, 'Second pass')``, as it is in the second workflow if it is there.
        input_name: The input; None when it is the node itself.
        before: The value, class, title or whole node in the first workflow; None when there is none.
        after: The same in the second.
    """

    what: What
    node_id: str
    node: str
    input_name: str | None
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.what.startswith("node"):
            return f"{self.node} {self.what.removeprefix('node ')}"
        if self.input_name is None:
            return f"{self.node}: {self.what} {self.before!r} -> {self.after!r}"
        if self.what == "input added":
            return f"{self.node}: input {self.input_name!r} added: {self.after!r}"
        if self.what == "input removed":
            return f"{self.node}: input {self.input_name!r} removed, was {self.before!r}"
        return f"{self.node}: {self.input_name} {self.before!r} -> {self.after!r}"


def diff(before: Nodes, after: Nodes) -> list[Change]:
    """Say what changed from one graph to another, node by node; empty when they would do the same."""
    found: list[Change] = []
    for node_id, node in before.items():
        if node_id not in after:
            found.append(Change("node removed", node_id, describe(node_id, node), None, copied(node), None))
    for node_id, node in after.items():
        if node_id not in before:
            found.append(Change("node added", node_id, describe(node_id, node), None, None, copied(node)))
        elif node is not before[node_id]:  # copies share what they did not change
            found += _node_changes(node_id, before[node_id], node)
    return found


def _node_changes(node_id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    name = describe(node_id, after)
    if before["class_type"] != after["class_type"]:
        yield Change("class", node_id, name, None, before["class_type"], after["class_type"])
    if title_of(before) != title_of(after):
        yield Change("title", node_id, name, None, title_of(before), title_of(after))
    for key in dict.fromkeys([*before["inputs"], *after["inputs"]]):
        old, new = copied(before["inputs"].get(key, _ABSENT)), copied(after["inputs"].get(key, _ABSENT))
        if old is _ABSENT:
            yield Change("input added", node_id, name, key, None, new)
        elif new is _ABSENT:
            yield Change("input removed", node_id, name, key, old, None)
        elif not _same(old, new):
            yield Change("input", node_id, name, key, old, new)


def _same(one: Any, other: Any) -> bool:
    return one is other or (one == other and _canonical(one) == _canonical(other))


def content_hash(nodes: Nodes) -> str:
    """Hash what a graph does; see `Workflow.content_hash`."""
    for node_id, node in nodes.items():
        check_values(node_id, node)
    plain = {
        node_id: [node["class_type"], {name: _canonical_value(value) for name, value in node["inputs"].items()}]
        for node_id, node in nodes.items()
    }
    return hashlib.sha256(_dumped(plain)).hexdigest()


def _canonical(value: Any) -> bytes:
    return _dumped(_canonical_value(value))


def _dumped(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _canonical_value(value: Any) -> Any:
    """Write a number in one way: the editor makes 8 of 8.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, Mapping):
        return {key: _canonical_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical_value(item) for item in value]
    return value

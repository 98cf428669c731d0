"""The links of a graph: who feeds whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from .graph import is_link
from .query import Nodes

Place: TypeAlias = tuple[str, int]
"""An output: a node's id, and the slot, from 0."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a workflow.

    Attributes:
        source: The id of the node whose output it is.
        slot: Its place among that node's outputs, from 0.
        target: The id of the node that takes it.
        input_name: The input that it is given as.
    """

    source: str
    slot: int
    target: str
    input_name: str


def links(nodes: Nodes) -> Iterator[Link]:
    """Yield every link, in the order of the nodes that take them; also those to nodes that are not there."""
    for node_id in nodes:
        yield from links_into(nodes, node_id)


def links_into(nodes: Nodes, node_id: str) -> Iterator[Link]:
    """Yield the links that a node takes."""
    node = nodes.get(node_id, {})
    for name, value in node.get("inputs", {}).items():
        if is_link(value):
            yield Link(value[0], int(value[1]), node_id, name)


def upstream(nodes: Nodes, node_id: str) -> list[str]:
    """Give all nodes that a node needs, the nearest first, without itself."""
    return _reached(node_id, lambda one: (link.source for link in links_into(nodes, one)), nodes)


def downstream(nodes: Nodes, node_id: str) -> list[str]:
    """Give all nodes that need a node, the nearest first, without itself."""
    targets: dict[str, list[str]] = {}
    for link in links(nodes):
        targets.setdefault(link.source, []).append(link.target)
    return _reached(node_id, lambda one: targets.get(one, ()), nodes)


def _reached(start: str, neighbours: Callable[[str], Iterable[str]], nodes: Nodes) -> list[str]:
    """Walk by breadth; a graph with a cycle comes to an end too."""
    found = {start: None}
    for one in (waiting := [start]):
        for other in neighbours(one):
            if other not in found and other in nodes:
                found[other] = None
                waiting.append(other)
    return list(found)[1:]

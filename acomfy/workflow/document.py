"""A workflow: the graph of a prompt, edited like the plain dict that it is.

Copies share their nodes. A node is copied when it is put in and when it is handed out, and a node that was ever handed
out is not shared any more: no edit of one workflow is seen by another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

from . import query
from .graph import Graph, check_format, check_node, title_of
from .loading import read
from .values import copied, copied_node


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
            self._nodes = {node_id: copied_node(node_id, node) for node_id, node in graph.items()}
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
        return cls(read(source))

    # --- Reading and editing ---------------------------------------------------------------------------------------

    def __getitem__(self, node_id: str) -> dict[str, Any]:
        node = self._nodes[node_id]
        if node_id not in self._handed_out:
            node = self._nodes[node_id] = copied_node(node_id, node)
            self._handed_out.add(node_id)
        return node

    def __setitem__(self, node_id: str, node: Mapping[str, Any]) -> None:
        check_node(node_id, node)
        self._nodes[node_id] = copied_node(node_id, node)
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
        return self._nodes == nodes or copied(self._nodes) == copied(nodes)  # a link may be a tuple

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
        return {node_id: copied_node(node_id, node) for node_id, node in self._nodes.items()}

    def find(self, name: str) -> Node:
        """Find the one node with this id, else with this title, else of this class.

        Raises:
            WorkflowError: None or several match; the message names them.
        """
        node_id = query.the_node(self._nodes, name)
        check_node(node_id, self._nodes[node_id])
        node = self[node_id]
        return Node(node_id, node["class_type"], title_of(node), node["inputs"])

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
            name, input_name = query.split_key(key)
            node_id = query.the_named(self._nodes, name)
            query.check_input(node_id, self._nodes[node_id], input_name)
            changed.setdefault(node_id, {})[input_name] = value
        nodes = self._shareable()
        for node_id, inputs in changed.items():
            node = nodes[node_id]
            nodes[node_id] = copied_node(node_id, {**node, "inputs": {**node["inputs"], **inputs}})
        copy = Workflow.__new__(Workflow)
        copy._nodes, copy._handed_out = nodes, set()
        return copy

    def _shareable(self) -> dict[str, dict[str, Any]]:
        """Give the nodes for another workflow: copies of those that somebody may still edit."""
        nodes = dict(self._nodes)
        for node_id in self._handed_out:
            nodes[node_id] = copied_node(node_id, nodes[node_id])
        return nodes

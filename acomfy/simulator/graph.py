"""The graph of one running prompt, and the order in which its nodes run.

A node may expand into others, so the graph grows while it runs. ``GrowingGraph`` knows each node's parent and the
node of the prompt that stands for it on screen. ``ExecutionOrder`` keeps the nodes that still have to run and what
each waits for. The order among nodes that are ready is ComfyUI's (comfy_execution/graph.py ux_friendly_pick_node,
0.3.64): output nodes and async nodes, then what feeds an output node, then what feeds such a node, then the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from .nodes import Graph, Node, is_link


class DependencyCycle(Exception):
    """Nothing is ready although nodes are left: they wait for each other."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        super().__init__("Dependency cycle detected")


class GrowingGraph:
    """A prompt's nodes and those that its nodes expanded into."""

    def __init__(self, prompt: Graph) -> None:
        self.prompt = prompt
        self._expanded: Graph = {}
        self._parent: dict[str, str] = {}

    def __getitem__(self, node_id: str) -> dict[str, Any]:
        node = self._expanded.get(node_id)
        return self.prompt[node_id] if node is None else node

    def __contains__(self, node_id: str) -> bool:
        return node_id in self.prompt or node_id in self._expanded

    def expand(self, parent: str, nodes: Graph) -> None:
        """Add the nodes that ``parent`` expanded into."""
        for node_id, node in nodes.items():
            if node_id in self:
                raise ValueError(f"Attempt to add duplicate node {node_id}. Ensure node ids are unique.")
            self._expanded[node_id] = node
            self._parent[node_id] = parent

    def parent(self, node_id: str) -> str | None:
        """Give the node that expanded into this one; None for a node of the prompt."""
        return self._parent.get(node_id)

    def display(self, node_id: str) -> str:
        """Give the node of the prompt that stands for this one."""
        while node_id in self._parent:
            node_id = self._parent[node_id]
        return node_id

    def node_ids(self) -> list[str]:
        """Give the ids of all nodes, those of the prompt first."""
        return [*self.prompt, *self._expanded]


class ExecutionOrder:
    """The nodes that still have to run, and which of them may run now.

    ``is_cached`` tells whether a node's outputs are known already; such a node is not waited for.
    """

    def __init__(self, graph: GrowingGraph, classes: Callable[[str], Node], is_cached: Callable[[str], bool]) -> None:
        self._graph = graph
        self._class_of = classes
        self._is_cached = is_cached
        self._pending: dict[str, None] = {}
        self._waits_for: dict[str, set[object]] = {}
        self._feeds: dict[str, dict[str, None]] = {}
        self._outside = 0
        self._unblocked = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, node_id: str) -> None:
        """Add a node, and everything that it needs and is not known yet."""
        stack, links = [node_id], []
        while stack:
            current = stack.pop()
            if current in self._pending:
                continue
            self._pending[current] = None
            self._waits_for[current] = set()
            self._feeds[current] = {}
            node = self._graph[current]
            lazy = self._class_of(current).lazy_inputs
            for name, value in node["inputs"].items():
                if is_link(value) and name not in lazy:
                    if not self._is_cached(value[0]):
                        stack.append(value[0])
                    links.append((value[0], current))
        for source, target in links:
            self.wait_for(target, source)

    def wait_for(self, node_id: str, source: str) -> None:
        """Let a node wait for another, unless the other's outputs are known."""
        if self._is_cached(source) and source not in self._pending:
            return
        self.add(source)
        self._feeds[source][node_id] = None
        self._waits_for[node_id].add(source)

    def block(self, node_id: str) -> Callable[[], None]:
        """Let a node wait for something outside the graph, until the function that this returns is called."""
        self._outside += 1
        blocker = object()
        self._waits_for[node_id].add(blocker)

        def unblock() -> None:
            self._outside -= 1
            self._waits_for[node_id].discard(blocker)
            self._unblocked.set()

        return unblock

    async def next(self) -> str:
        """Pick the node to run next, waiting for async nodes when nothing else is ready.

        Raises:
            DependencyCycle: Nothing is ready, and nothing is under way either.
        """
        ready = self._ready()
        while not ready and self._outside:
            await self._unblocked.wait()
            self._unblocked.clear()
            ready = self._ready()
        if not ready:
            raise DependencyCycle(self._blamed())
        return self._pick(ready)

    def done(self, node_id: str) -> None:
        """Take a node that has run off the list and release what waits for it."""
        del self._pending[node_id]
        for blocker in self._waits_for.pop(node_id):
            if isinstance(blocker, str) and blocker in self._feeds:
                self._feeds[blocker].pop(node_id, None)
        for target in self._feeds.pop(node_id):
            self._waits_for[target].discard(node_id)

    def _ready(self) -> list[str]:
        return [node_id for node_id in self._pending if not self._waits_for[node_id]]

    def _pick(self, ready: list[str]) -> str:
        if len(ready) == 1:
            return ready[0]
        for node_id in ready:
            if self._is_output(node_id) or self._class_of(node_id).concurrent:
                return node_id
        for node_id in ready:
            if any(self._is_output(target) for target in self._feeds[node_id]):
                return node_id
        for node_id in ready:
            if any(self._is_output(second) for first in self._feeds[node_id] for second in self._feeds[first]):
                return node_id
        return ready[0]

    def _is_output(self, node_id: str) -> bool:
        return self._class_of(node_id).output_node

    def _blamed(self) -> str:
        """Name the node to blame for a cycle: the one whose expansion made it, else the first in it."""
        cycle = self._in_cycle()
        for node_id in cycle:
            if (display := self._graph.display(node_id)) != node_id:
                return display
        return cycle[0]

    def _in_cycle(self) -> list[str]:
        left: dict[str, set[object]] = {node_id: set(self._waits_for[node_id]) for node_id in self._pending}
        while free := [node_id for node_id, waits in left.items() if not any(other in left for other in waits)]:
            for node_id in free:
                del left[node_id]
        return list(left) or list(self._pending)


def localise(prefix: str, nodes: Graph, outputs: Iterable[Any]) -> tuple[Graph, list[Any]]:
    """Give an expansion's nodes their ids in the running prompt, in their links and in the outputs too."""

    def value_of(value: Any) -> Any:
        return [f"{prefix}{value[0]}", value[1]] if is_link(value) and value[0] in nodes else value

    renamed = {
        f"{prefix}{node_id}": {**node, "inputs": {name: value_of(value) for name, value in node["inputs"].items()}}
        for node_id, node in nodes.items()
    }
    return renamed, [value_of(value) for value in outputs]

"""What the server remembers of nodes that ran, by content: the same graph under other node ids is a hit.

A node's signature is its class, its IS_CHANGED value, its constant inputs and the signatures of what it is linked to
(comfy_execution/caching.py CacheKeySetInputSignature). Three modes, as ComfyUI's command line has them:

- classic: what the previous prompt contained is kept, and nothing else;
- lru: the most recently used entries are kept, across prompts;
- none: nothing is kept from one prompt to the next.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .graph import GrowingGraph
from .nodes import is_link

CacheMode: TypeAlias = Literal["classic", "lru", "none"]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a node showed, and the node ids it had when it did; ComfyUI keeps those of the first run in ``meta``."""

    output: dict[str, Any]
    meta: dict[str, Any]


class Signatures:
    """The signatures of one prompt's nodes, each computed once."""

    def __init__(self, graph: GrowingGraph, is_changed: Callable[[str], Any]) -> None:
        self._graph = graph
        self._is_changed = is_changed
        self._known: dict[str, str] = {}

    def __getitem__(self, node_id: str) -> str:
        # Sources first, without recursion: a graph may be deeper than Python's stack.
        stack, under_way = [node_id], set[str]()
        while stack:
            current = stack[-1]
            missing = [source for source in self._sources(current) if source not in self._known]
            if current in self._known:
                stack.pop()
            elif current in under_way or not missing:
                self._known[current] = self._compute(current)
                stack.pop()
            else:
                under_way.add(current)
                stack += missing
        return self._known[node_id]

    def _sources(self, node_id: str) -> list[str]:
        links = filter(is_link, self._graph[node_id]["inputs"].values())
        return [link[0] for link in links if link[0] in self._graph]

    def _compute(self, node_id: str) -> str:
        node = self._graph[node_id]
        parts: list[Any] = [node["class_type"], _canonical(self._is_changed(node_id))]
        for name, value in sorted(node["inputs"].items()):
            if is_link(value):
                # Of a link to nowhere or in a cycle nothing is known: it is equal to nothing.
                parts.append((name, "link", self._known.get(value[0]) or _unique(), value[1]))
            else:
                parts.append((name, _canonical(value)))
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


_counter = itertools.count()


def _unique() -> str:
    """Give what is equal to nothing else."""
    return f"unique {next(_counter)}"


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((key, _canonical(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, str | int | float | bool | None) and value == value:
        return value
    return _unique()  # NaN, and what has no value semantics, is never found again


class Cache:
    """Outputs and shown values of nodes, by signature."""

    def __init__(self, mode: CacheMode = "classic", size: int = 100) -> None:
        self._mode = mode
        self._size = size
        self._outputs: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._shown: dict[str, Shown] = {}

    def begin(self, signatures: Iterable[str]) -> None:
        """Begin a prompt with these nodes: forget what the mode does not keep."""
        keep = set(signatures)
        if self._mode == "none":
            self.clear()
        elif self._mode == "classic":
            for key in [key for key in self._outputs if key not in keep]:
                del self._outputs[key]
            for key in [key for key in self._shown if key not in keep]:
                del self._shown[key]

    def outputs(self, key: str) -> tuple[Any, ...] | None:
        """Give the outputs of a node with this signature; None when they are not known."""
        found = self._outputs.get(key)
        if found is not None:
            self._outputs.move_to_end(key)
        return found

    def shown(self, key: str) -> Shown | None:
        """Give what a node with this signature showed; None when it is not known, or it shows nothing."""
        return self._shown.get(key)

    def show(self, key: str, shown: Shown) -> None:
        """Remember what a node showed."""
        self._shown[key] = shown

    def store(self, key: str, outputs: tuple[Any, ...]) -> None:
        """Remember a node's outputs."""
        self._outputs[key] = outputs

    def end(self) -> None:
        """End a prompt: what is over the size of an LRU cache goes."""
        if self._mode == "lru":
            while len(self._outputs) > self._size:
                key, _ = self._outputs.popitem(last=False)
                self._shown.pop(key, None)

    def clear(self) -> None:
        """Forget everything, as ``POST /free {"free_memory": true}`` does."""
        self._outputs.clear()
        self._shown.clear()

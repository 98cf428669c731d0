"""Find the values that an instance of a subgraph gives to the widgets inside of it (promoted widgets).

An input of a definition that is wired to a widget inside shows that widget on every instance, which has a value of its
own for it; without one, the instance shows what the widget inside holds. The value goes out as it is: the text
processing of the widget inside does not apply.

Where an instance keeps its values (frontends 1.27 to 1.58):

- ``widgets_values``, one for each promoted widget in the order of the definition's inputs, without places for
  ``control_after_generate``.
- With ``properties.proxyWidgets`` (1.28 to 1.5x), a list of [inner node id, widget], they are in that list's order;
  it may also name widgets that no input of the definition is wired to. An id of "-1" names the instance's own input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .saved import Graph, SavedNode, Slot
from .scopes import REROUTES, Editor, Scope

_OWN = "-1"
_NODE_PREFIX = re.compile(r"^\s*\d+\s*:\s*(?=.)")
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Given:
    """A value in place of a link.

    Attributes:
        processed: Whether the widget's own text processing applies: to a PrimitiveNode's value, not to a promoted one.
        has_tokens: Whether ``%Node.widget%`` in it is filled in even before that.
    """

    value: Any
    processed: bool = False
    has_tokens: bool = False


@dataclass(slots=True)
class _Instance:
    """The promoted values of one instance: by place among its inputs, and by inner node and widget."""

    inputs: dict[int, Any] = field(default_factory=dict)
    inner: dict[tuple[str, str], Any] = field(default_factory=dict)


class Promotions:
    """The promoted values of one loaded file."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._found: dict[tuple[str, str], _Instance] = {}

    def of(self, scope: Scope, instance: SavedNode, place: int) -> Given | None:
        """Give the value of an instance's input, by its place; None when no widget is promoted there."""
        values = self._instance(scope, instance).inputs
        return Given(values[place]) if place in values else None

    def by_name(self, scope: Scope, instance: SavedNode, name: str) -> Any:
        """Give the value of a promoted widget by its name on the instance; LookupError when there is none."""
        values = self._instance(scope, instance).inputs
        graph = self._editor.inside(instance)
        ports = () if graph is None else graph.inputs
        for place, port in enumerate(ports):
            if port.name == name and place in values:
                return values[place]
        raise LookupError(name)

    def inner(self, scope: Scope, node: SavedNode, widget: str) -> Given | None:
        """Give the value that the instance around a node has for a widget of it without an input of its own."""
        if scope.parent is None or scope.instance is None:
            return None
        values = self._instance(scope.parent, scope.instance).inner
        return Given(values[node.id, widget]) if (node.id, widget) in values else None

    def _instance(self, scope: Scope, instance: SavedNode) -> _Instance:
        key = (scope.path, instance.id)
        if key not in self._found:
            graph = self._editor.inside(instance)
            plain = graph is None or graph.group
            self._found[key] = _Instance() if graph is None or plain else self._read(scope, instance, graph)
        return self._found[key]

    def _read(self, scope: Scope, instance: SavedNode, graph: Graph) -> _Instance:
        found = _Instance()
        inner = self._editor.scope_inside(scope, instance, graph)
        targets = [self._target(inner, place) for place in range(len(graph.inputs))]
        for place, target in enumerate(targets):
            if target is not None and target.value is not _NOTHING:
                found.inputs[place] = target.value
        values = instance.values if isinstance(instance.values, list) else []
        proxies = list(_proxies(instance.properties.get("proxyWidgets")))
        if proxies:
            self._by_proxies(found, graph, targets, proxies, values)
        else:
            _by_place(found, targets, values)
        _share_names(found, graph)
        return found

    def _by_proxies(
        self,
        found: _Instance,
        graph: Graph,
        targets: list[_Target | None],
        proxies: list[tuple[str, str]],
        values: list[Any],
    ) -> None:
        for (node_id, widget), value in zip(proxies, values, strict=False):
            if node_id == _OWN:
                place = next((place for place, port in enumerate(graph.inputs) if port.name == widget), None)
            else:
                place = next((p for p, t in enumerate(targets) if t is not None and t.names(node_id, widget)), None)
            if place is None:
                found.inner[node_id, widget] = value
            elif place in found.inputs:
                found.inputs[place] = value

    def _target(self, scope: Scope, place: int) -> _Target | None:
        """Find the first widget that an input of the definition is wired to inside."""
        for node, slot in _wired(scope.graph, place):
            value = self._shown(scope, node, slot)
            # A Reroute's input is marked like the widget that it leads to, but is none.
            had_widget = slot.widget and node.type not in REROUTES
            if had_widget or value is not _NOTHING:
                return _Target(node.id, slot.name, value)
        return None

    def _shown(self, scope: Scope, node: SavedNode, slot: Slot) -> Any:
        """Give what the widget of an inner node's input shows; `_NOTHING` when it is a plain socket."""
        graph = self._editor.inside(node)
        if graph is not None:
            place = next((place for place, live in enumerate(self._editor.inputs(node)) if live.name == slot.name), -1)
            return self._instance(scope, node).inputs.get(place, _NOTHING)
        widget = self._editor.widgets(node).get(slot.name)
        return _NOTHING if widget is None else widget.value


@dataclass(frozen=True, slots=True)
class _Target:
    """The widget that an input of a definition is wired to; its value is `_NOTHING` when the class has it no more.

    Such a one still has its place in the instance's list, which was saved when the class had it. (Both frontends
    then give all later values to the wrong widgets.)
    """

    node_id: str
    widget: str
    value: Any

    def names(self, node_id: str, widget: str) -> bool:
        return self.node_id == node_id and self.widget == widget


def _by_place(found: _Instance, targets: list[_Target | None], values: list[Any]) -> None:
    places = [place for place, target in enumerate(targets) if target is not None]
    for place, value in zip(places, values, strict=False):
        if place in found.inputs:
            found.inputs[place] = value


def _share_names(found: _Instance, graph: Graph) -> None:
    """Let inputs of one name have one value, as the editor does: the first one's."""
    first: dict[str, int] = {}
    for place, port in enumerate(graph.inputs):
        if place in found.inputs:
            found.inputs[place] = found.inputs[first.setdefault(port.name, place)]


def _wired(graph: Graph, place: int) -> Iterator[tuple[SavedNode, Slot]]:
    """Yield the inner inputs that an input of the definition is wired to, by the links that it lists itself."""
    for link in (graph.links[link] for link in graph.inputs[place].links if link in graph.links):
        node = graph.nodes.get(link.target)
        if node is not None:
            slot = next((slot for slot in node.inputs if slot.link == link.id), None)
            if slot is None and 0 <= link.target_slot < len(node.inputs):
                slot = node.inputs[link.target_slot]
            if slot is not None:
                yield node, slot


def _proxies(entries: Any) -> Iterator[tuple[str, str]]:
    if isinstance(entries, list):
        for entry in entries:
            if isinstance(entry, list) and len(entry) in (2, 3) and all(isinstance(part, str) for part in entry):
                yield entry[0], _NODE_PREFIX.sub("", entry[1])

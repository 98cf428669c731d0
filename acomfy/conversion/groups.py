"""Turn a group node of older editors into the inside of a subgraph.

A group node's class is made up by the editor from ``extra.groupNodes``: its widgets and sockets are those of the inner
nodes, one inner node after the other, but for what is linked inside; names that occur twice get the inner node's title
in front. Inner nodes are called ``ID:0``, ``ID:1``, ... by their place, as frontend 1.27 does (1.58 turns group nodes
into real subgraphs when it loads the file, and gives them new ids).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ..errors import WorkflowFormatError
from .classes import REROUTE_INPUT, Input, NodeClass
from .saved import INPUTS, OUTPUTS, Graph, Link, Port, SavedNode, Slot, node_from

_PRIMITIVE = "PrimitiveNode"
_REROUTE = "Reroute"
_NOTES = ("Note", "MarkdownNote")

ClassOf = Callable[[SavedNode], NodeClass | None]


def expand(node: SavedNode, config: Mapping[str, Any], class_of: ClassOf) -> Graph | None:
    """Make the graph inside one group node, with the node's own values dealt to the inner nodes.

    Returns:
        None when an inner node is of an unknown class: then nobody can tell which value is whose.
    """
    entries = config.get("nodes")
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise WorkflowFormatError(f"the group node {node.type!r} has no list of nodes", node_id=node.id)
    inner = [node_from(entry, str(place)) for place, entry in enumerate(entries)]
    members = []
    for member in inner:
        node_class = class_of(member)
        if node_class is None and member.type not in (_PRIMITIVE, _REROUTE, *_NOTES):
            return None
        members.append(_Member(member, node_class))
    return _Group(node, config, members).graph()


@dataclass(slots=True)
class _Member:
    """One inner node: its sockets and converted widgets in the order by which inner links number them."""

    node: SavedNode
    node_class: NodeClass | None
    layout: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


class _Group:
    def __init__(self, node: SavedNode, config: Mapping[str, Any], members: list[_Member]) -> None:
        self._node = node
        self._config = config
        self._members = members
        self._links = dict(self._inner_links())
        self._ports: list[Port] = []
        self._seen: dict[str, int] = {}
        values = node.values
        self._values: Iterator[Any] = iter(values if isinstance(values, list) else [])
        self._made: dict[str, Link] = {}

    def graph(self) -> Graph:
        """Go through the members as the editor does when it makes up the class."""
        late: list[tuple[int, str]] = []
        for place, member in enumerate(self._members):
            late.extend((place, name) for name in self._member(place, member))
        for place, name in late:
            self._deal(place, self._spec(place, name))
            self._socket(place, name)
        for (place, slot), link in self._links.items():
            layout = self._members[place].layout
            if slot < len(layout):
                self._join(link, place, layout[slot])
        outputs = tuple(self._outputs())
        nodes = {member.node.id: self._finished(member) for member in self._members}
        return Graph("", nodes, self._made, tuple(self._ports), outputs, group=True)

    # --- Links inside ----------------------------------------------------------------------------------------------

    def _inner_links(self) -> Iterator[tuple[tuple[int, int], Link]]:
        """Yield the links between members by target place and slot; those from outside have no origin."""
        links = self._config.get("links")
        entries: list[Any] = links if isinstance(links, list) else []
        for number, entry in enumerate(entries):
            if isinstance(entry, list) and len(entry) >= 4 and all(_is_index(part) for part in entry[:4]):
                origin, origin_slot, target, target_slot = entry[:4]
                if origin < len(self._members) and target < len(self._members):
                    yield (
                        (target, target_slot),
                        Link(f"inner {number}", str(origin), origin_slot, str(target), target_slot),
                    )

    def _join(self, link: Link, place: int, name: str) -> None:
        self._made[link.id] = link
        self._members[place].links[name] = link.id

    # --- Inputs and widgets ----------------------------------------------------------------------------------------

    def _member(self, place: int, member: _Member) -> list[str]:
        """Deal one member's widgets and open its free sockets; give the converted widgets, which come last."""
        specs = list(self._specs(place, member))
        converted = {slot.name: number for number, slot in enumerate(member.node.inputs) if slot.widget}
        for spec in specs:
            if spec.is_widget and spec.name not in converted:
                self._deal(place, spec)
        sockets = [spec.name for spec in specs if not spec.is_widget]
        late = [spec.name for spec in specs if spec.is_widget and spec.name in converted]
        # By their places as text, "10" before "2": the editor sorts them so, and inner links count on it.
        late.sort(key=lambda name: str(converted[name]))
        member.layout = sockets + late
        for slot, name in enumerate(sockets):
            if (place, slot) not in self._links:
                self._socket(place, name)
        return [name for slot, name in enumerate(late, len(sockets)) if (place, slot) not in self._links]

    def _specs(self, place: int, member: _Member) -> Iterator[Input]:
        if member.node_class is not None:
            yield from member.node_class.inputs
        elif member.node.type == _PRIMITIVE:
            yield from self._primitive(place)
        elif member.node.type == _REROUTE:
            yield REROUTE_INPUT

    def _primitive(self, place: int) -> Iterator[Input]:
        """Yield a PrimitiveNode's one widget, which is like the first widget that it is linked to."""
        for (target, slot), link in self._links.items():
            if link.origin == str(place):
                member = self._members[target]
                specs = [] if member.node_class is None else member.node_class.inputs
                names = [slot.name for slot in member.node.inputs]
                like = next((spec for spec in specs if slot < len(names) and spec.name == names[slot]), None)
                if like is not None:
                    yield like.like("value", control_after_generate=True)
                    return

    def _spec(self, place: int, name: str) -> Input:
        return next(spec for spec in self._specs(place, self._members[place]) if spec.name == name)

    def _deal(self, place: int, spec: Input) -> None:
        """Take the group node's next value for an inner widget, and pass over the places of its helpers."""
        self._named(place, spec.name)
        taken = list(islice(self._values, spec.places))
        self._members[place].values[spec.name] = taken[0] if taken else spec.default

    def _socket(self, place: int, name: str) -> None:
        shown = self._named(place, name)
        if self._visible(place, "input", name):
            number = len(self._ports)
            slot = self._members[place].layout.index(name)
            link = Link(f"outer {number}", INPUTS, number, str(place), slot)
            self._ports.append(Port(shown, self._type(place, name), (link.id,)))
            self._join(link, place, name)

    def _type(self, place: int, name: str) -> str:
        return next((slot.type for slot in self._members[place].node.inputs if slot.name == name), "*")

    def _named(self, place: int, name: str) -> str:
        """Name an input of the group node: as inside, unless that name is taken."""
        node = self._members[place].node
        custom = self._customized(place, "input", name).get("name")
        shown = custom if isinstance(custom, str) else name
        key = shown
        if shown in self._seen or (node.type == _PRIMITIVE and node.title):
            prefix = f"{node.title or node.type} "
            key = shown = f"{prefix}{name}"
            if shown in self._seen:
                shown = f"{prefix}{self._seen[shown]} {name}"
        self._seen[key] = self._seen.get(key, 1) + 1
        return shown

    def _customized(self, place: int, side: str, name: str) -> Mapping[str, Any]:
        """Read what the user set in "Manage Group Node": ``config[place][side][name]``."""
        found: Any = self._config.get("config")
        for key in (str(place), side, name):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def _visible(self, place: int, side: str, name: str) -> bool:
        return self._customized(place, side, name).get("visible") is not False

    # --- Outputs ---------------------------------------------------------------------------------------------------

    def _outputs(self) -> Iterator[Port]:
        """Yield the outputs that are not used up inside, and those that are used outside as well."""
        used = {(link.origin, link.origin_slot) for link in self._links.values()}
        external = self._config.get("external")
        entries = external if isinstance(external, list) else []
        shown = [(str(entry[0]), entry[1]) for entry in entries if isinstance(entry, list) and len(entry) > 1]
        number = 0
        for place, member in enumerate(self._members):
            types = member.node.outputs if member.node_class is None else member.node_class.outputs
            for slot, kind in enumerate(types):
                end = (str(place), slot)
                visible = self._customized(place, "output", str(slot)).get("visible", end not in used or end in shown)
                if visible:
                    link = Link(f"out {number}", str(place), slot, OUTPUTS, number)
                    self._made[link.id] = link
                    yield Port(kind, kind, (link.id,))
                    number += 1

    # --- The result ------------------------------------------------------------------------------------------------

    def _finished(self, member: _Member) -> SavedNode:
        node = member.node
        names = {slot.name: slot.type for slot in node.inputs}
        slots = (Slot(name, names.get(name, "*"), link) for name, link in member.links.items())
        values = [member.values["value"]] if node.type == _PRIMITIVE and "value" in member.values else node.values
        return replace(node, inputs=tuple(slots), dealt=member.values, values=values)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

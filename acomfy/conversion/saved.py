"""Read the file that the editor saves, in all its forms, into plain records with ids as text.

Forms (frontends 1.18 to 1.58): version 0.4 writes links as lists ``[id, from, from_slot, to, to_slot, type]``,
version 1 as objects; the entries themselves are looked at, not the ``version``, which is missing or wrong in some
files. Subgraph definitions always have objects. What only the editor draws (positions, groups, colours, native
reroutes, the order of execution) is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import WorkflowFormatError

INPUTS = "-10"
OUTPUTS = "-20"
"""The ids by which links inside a definition name its own inputs and outputs."""

MUTED = 2
BYPASSED = 4

_RENAMED = {
    "ConditioningAverage ": "ConditioningAverage",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
    "T2IAdapterLoader": "ControlNetLoader",
}
"""Old class names that frontend 1.27 renames when it loads a file (1.58 does not any more)."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One input of a node as it was saved; `widget` says whether it was a widget's socket when saved."""

    name: str
    type: str
    link: str | None
    widget: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """One connection inside one graph, from an output to an input, by node id and slot number."""

    id: str
    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True, slots=True, eq=False)
class SavedNode:
    """One node of the file.

    Attributes:
        title: None when the file has none, so that the class's display name counts.
        outputs: The outputs' types.
        values: ``widgets_values`` as saved: a list, an object, or None.
        dealt: Values by widget name, for nodes that come out of a group node; None elsewhere.
    """

    id: str
    type: str
    title: Any = None
    mode: int = 0
    inputs: tuple[Slot, ...] = ()
    outputs: tuple[str, ...] = ()
    values: Any = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    dealt: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a subgraph definition, with the ids of the links inside that it has."""

    name: str
    type: str
    links: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Graph:
    """The nodes and links of one level: the file's own, or one definition's.

    Attributes:
        id: The definition's id, which is the `type` of its instances; "" for the file's own level.
        group: True for what was a group node, which the editor treats a little differently when bypassed.
    """

    id: str
    nodes: dict[str, SavedNode]
    links: dict[str, Link]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    group: bool = False
    _arriving: dict[tuple[str, int], list[Link]] | None = None

    def arriving(self, target: str, slot: int) -> list[Link]:
        """List the links that end at this input, by its place among the saved inputs."""
        if self._arriving is None:
            self._arriving = {}
            for link in self.links.values():
                self._arriving.setdefault((link.target, link.target_slot), []).append(link)
        return self._arriving.get((target, slot), [])


@dataclass(frozen=True, slots=True)
class SavedWorkflow:
    """A whole file: its top level, its subgraph definitions by id, and its group nodes by name."""

    root: Graph
    definitions: dict[str, Graph]
    groups: Mapping[str, Any]


def read(ui: Any) -> SavedWorkflow:
    """Read the editor's JSON; anything else is a `WorkflowFormatError` that says what is wrong with it."""
    if not isinstance(ui, Mapping) or not isinstance(ui.get("nodes"), list):
        raise WorkflowFormatError("not a workflow of the editor: it has no list of nodes")
    groups = ui.get("extra")
    groups = groups.get("groupNodes") if isinstance(groups, Mapping) else None
    nodes = list(_nodes(ui["nodes"]))
    links = _links(ui.get("links"))
    definitions, last_id = _renumbered(list(_definitions(ui.get("definitions"))), nodes, _last_node_id(ui))
    nodes = _told_apart([_patched(node, definitions) for node in nodes], last_id)
    graphs = {found.graph.id: found.graph for found in definitions.values()}
    root = Graph("", {node.id: node for node in nodes}, links)
    return SavedWorkflow(root, graphs, groups if isinstance(groups, Mapping) else {})


# --- Nodes ---------------------------------------------------------------------------------------------------------


def _nodes(entries: Any, where: str = "") -> Iterator[SavedNode]:
    if not isinstance(entries, list):
        raise WorkflowFormatError(f"the nodes{where} are not a list")
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
            raise WorkflowFormatError(f"entry {position} of the nodes{where} is not a node with a type")
        yield node_from(entry, _id(entry.get("id"), "a node"))


def node_from(entry: Mapping[str, Any], node_id: str) -> SavedNode:
    """Read one entry of ``nodes`` (also of a group node, whose entries have no ids of their own)."""
    kind = entry.get("type")
    if not isinstance(kind, str):
        raise WorkflowFormatError(f"node {node_id} has no type", node_id=node_id)
    mode, properties = entry.get("mode"), entry.get("properties")
    return SavedNode(
        id=node_id,
        type=_RENAMED.get(kind, kind),
        title=entry.get("title") or None,
        mode=mode if isinstance(mode, int) else 0,
        inputs=tuple(_slots(entry.get("inputs"), node_id)),
        outputs=tuple(_type(output.get("type")) for output in _mappings(entry.get("outputs"))),
        values=entry.get("widgets_values"),
        properties=properties if isinstance(properties, Mapping) else {},
    )


def _slots(entries: Any, node_id: str) -> Iterator[Slot]:
    if isinstance(entries, list):
        for entry in entries:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
                raise WorkflowFormatError(f"an input of node {node_id} has no name", node_id=node_id)
            link = entry.get("link")
            yield Slot(
                name=entry["name"],
                type=_type(entry.get("type")),
                link=None if link is None else _id(link, "a link"),
                widget=isinstance(entry.get("widget"), Mapping),
            )


def _type(value: Any) -> str:
    """Give a socket's type as text: very old files have -1 or 0 for events and wildcards, lists for combos."""
    return value if isinstance(value, str) else "COMBO" if isinstance(value, list) else "*"


# --- Links ---------------------------------------------------------------------------------------------------------


def _links(entries: Any) -> dict[str, Link]:
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise WorkflowFormatError("the links are not a list")
    return {link.id: link for link in map(_link, entries)}


def _link(entry: Any) -> Link:
    if isinstance(entry, Mapping):
        fields: Sequence[Any] = [
            entry.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        ]
    elif isinstance(entry, list) and len(entry) >= 5:
        fields = entry
    else:
        raise WorkflowFormatError("an entry of the links is neither a list of five or six nor an object")
    link, origin, origin_slot, target, target_slot = fields[:5]
    return Link(
        _id(link, "a link"),
        _id(origin, "the origin of a link"),
        _number(origin_slot),
        _id(target, "the target of a link"),
        _number(target_slot),
    )


def _number(value: Any) -> int:
    """Read a slot number; -1, which no node has, for what is none: only a link that is followed must be right."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _id(value: Any, what: str) -> str:
    """Give an id as text, as JavaScript does: 5 and 5.0 are both "5"."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    raise WorkflowFormatError(f"the id of {what} is neither a number nor text")


# --- Subgraph definitions ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Definition:
    graph: Graph
    nodes: list[SavedNode]
    renamed: dict[str, str] = field(default_factory=dict)


def _definitions(holder: Any) -> Iterator[_Definition]:
    """Yield all definitions in the order of the file, each before those that it carries within itself."""
    open_lists = [_subgraphs(holder)]
    while open_lists:
        entry = next(open_lists[-1], None)
        if entry is None:
            open_lists.pop()
        else:
            yield _definition(entry)
            open_lists.append(_subgraphs(entry.get("definitions")))


def _subgraphs(holder: Any) -> Iterator[Mapping[str, Any]]:
    return _mappings(holder.get("subgraphs") if isinstance(holder, Mapping) else None)


def _definition(entry: Mapping[str, Any]) -> _Definition:
    subgraph = entry.get("id")
    if not isinstance(subgraph, str):
        raise WorkflowFormatError("a subgraph definition has no id")
    nodes = list(_nodes(entry.get("nodes") or [], f" of subgraph {entry.get('name')!r}"))
    links = _links(entry.get("links"))
    graph = Graph(subgraph, {}, links, tuple(_ports(entry.get("inputs"))), tuple(_ports(entry.get("outputs"))))
    return _Definition(graph, nodes)


def _ports(entries: Any) -> Iterator[Port]:
    for entry in _mappings(entries):
        name, links = entry.get("name"), entry.get("linkIds")
        ids = tuple(_id(link, "a link") for link in links if link is not None) if isinstance(links, list) else ()
        yield Port(name if isinstance(name, str) else "", _type(entry.get("type")), ids)


def _mappings(entries: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(entries, list):
        yield from (entry for entry in entries if isinstance(entry, Mapping))


# --- Ids that occur twice ------------------------------------------------------------------------------------------
# Frontend 1.58 gives every inner node an id that no other node of the file has (1.27 did not). Files of such a
# frontend pass unchanged; in older ones the first definition keeps its ids, and the numbers go on from the last.


def _last_node_id(ui: Mapping[str, Any]) -> int:
    state = ui.get("state")
    last = state.get("lastNodeId") if isinstance(state, Mapping) else ui.get("last_node_id")
    return last if isinstance(last, int) and not isinstance(last, bool) else 0


def _renumbered(
    definitions: list[_Definition], nodes: list[SavedNode], last: int
) -> tuple[dict[str, _Definition], int]:
    """Give the definitions by id (the first of each) with their nodes renumbered, and the last number given out."""
    used: set[str] = {node.id for node in nodes}
    unique: dict[str, _Definition] = {}
    for found in definitions:
        unique.setdefault(found.graph.id, found)
    for found in unique.values():
        kept: dict[str, SavedNode] = {}
        for node in found.nodes:
            kept.setdefault(node.id, node)
        for node in kept.values():
            new_id = node.id
            if node.id in used:
                last, new_id = _next_id(last, used)
                found.renamed[node.id] = new_id
            else:
                last = max(last, _numeric(node.id))
            used.add(new_id)
            found.graph.nodes[new_id] = replace(node, id=new_id)
        _rename_ends(found)
    for found in unique.values():
        found.graph.nodes = {key: _patched(node, unique) for key, node in found.graph.nodes.items()}
    return unique, last


def _rename_ends(found: _Definition) -> None:
    renamed = found.renamed
    if renamed:
        found.graph.links = {
            key: replace(
                link, origin=renamed.get(link.origin, link.origin), target=renamed.get(link.target, link.target)
            )
            for key, link in found.graph.links.items()
        }


def _patched(node: SavedNode, definitions: Mapping[str, _Definition]) -> SavedNode:
    """Let ``proxyWidgets`` of an instance name its inner nodes by their new ids."""
    found = definitions.get(node.type)
    proxies = node.properties.get("proxyWidgets")
    if found is None or not found.renamed or not isinstance(proxies, list):
        return node
    renamed = [
        [found.renamed.get(str(proxy[0]), proxy[0]), *proxy[1:]] if isinstance(proxy, list) and proxy else proxy
        for proxy in proxies
    ]
    return replace(node, properties={**node.properties, "proxyWidgets": renamed})


def _told_apart(nodes: list[SavedNode], last: int) -> list[SavedNode]:
    """Give a later node of an id that is taken a new one, as 1.58 does (in 1.27 the later one took its place)."""
    taken: set[str] = set()
    used = {node.id for node in nodes}
    told = []
    for node in nodes:
        if node.id in taken:
            last, new_id = _next_id(last, used)
            used.add(new_id)
            node = replace(node, id=new_id, inputs=tuple(replace(slot, link=None) for slot in node.inputs))
        last = max(last, _numeric(node.id))
        taken.add(node.id)
        told.append(node)
    return told


def _next_id(last: int, used: set[str]) -> tuple[int, str]:
    last += 1
    while str(last) in used:
        last += 1
    return last, str(last)


def _numeric(node_id: str) -> int:
    plain = node_id.isascii() and node_id.isdigit() and len(node_id) < 18
    return int(node_id) if plain else 0

"""Look at the file as the editor holds it after loading: what each node is, its live inputs, and which nodes run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..definitions import AUTOGROW, MATCH_TYPE, Definitions
from ..errors import WorkflowFormatError
from .classes import Input, NodeClass
from .groups import expand
from .saved import BYPASSED, MUTED, Graph, SavedNode, SavedWorkflow
from .values import Widget, all_inputs, deal

PRIMITIVE = "PrimitiveNode"
REROUTES = frozenset({"Reroute", "Reroute (rgthree)", "SetNode"})
"""Nodes that hand their first input on. (`SetNode` and `GetNode` are KJNodes': a link without a line.)"""
GET_NODE = "GetNode"

_ONLY_IN_THE_EDITOR = (
    REROUTES
    | {PRIMITIVE, GET_NODE, "Note", "MarkdownNote", "Note Plus (mtb)"}
    | {
        f"{name} (rgthree)"
        for name in (
            *("Label", "Bookmark", "Fast Muter", "Fast Bypasser", "Fast Groups Muter", "Fast Groups Bypasser"),
            *(
                "Fast Actions Button",
                "Mute / Bypass Repeater",
                "Mute / Bypass Relay",
                "Node Collector",
                "Random Unmuter",
            ),
        )
    }
)
"""Classes without a server side, of the editor and of wide-spread packs; one that `object_info` has is a real one."""

_MOST_NODES = 100_000
"""More nodes than this after flattening is a file made to exhaust memory (definitions that double themselves)."""


@dataclass(frozen=True, slots=True)
class Live:
    """One input of a node as the editor has it after loading.

    Attributes:
        place: Its place among the saved inputs, by which `links` name it; None when it was not saved.
        widget: The widget that it belongs to; None for a plain socket.
    """

    name: str
    type: str
    link: str | None
    place: int | None
    widget: Widget | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """One level that runs: the file's own, or the inside of one instance of a subgraph.

    Attributes:
        path: What stands before the ids of the nodes in it, for example "8:5:"; "" at the top.
        instance: The node that this is the inside of; None at the top.
    """

    graph: Graph
    path: str = ""
    instance: SavedNode | None = None
    parent: Scope | None = None
    inside: dict[str, Scope] = field(default_factory=dict)

    def holds(self, graph: Graph) -> bool:
        """Say whether this is, or is inside of, a level of that graph."""
        scope: Scope | None = self
        while scope is not None:
            if scope.graph is graph:
                return True
            scope = scope.parent
        return False


class Editor:
    """A loaded file beside the classes of a server."""

    def __init__(self, saved: SavedWorkflow, definitions: Definitions) -> None:
        self.saved = saved
        self.top = Scope(saved.root)
        self._definitions = definitions
        self._classes: dict[str, NodeClass | None] = {}
        self._widgets: dict[SavedNode, dict[str, Widget]] = {}
        self._live: dict[SavedNode, list[Live]] = {}
        self._groups: dict[SavedNode, Graph | None] = {}
        self._flattened = 0

    # --- What a node is --------------------------------------------------------------------------------------------

    def class_of(self, node: SavedNode) -> NodeClass | None:
        """Give the server's class of a node; None when it has none of that name."""
        if node.type not in self._classes:
            known = node.type in self._definitions
            self._classes[node.type] = NodeClass(self._definitions[node.type]) if known else None
        return self._classes[node.type]

    def inside(self, node: SavedNode) -> Graph | None:
        """Give the graph that a node is an instance of: a subgraph definition, or a group node turned into one."""
        found = self.saved.definitions.get(node.type)
        if found is not None or node.type[:9] not in ("workflow>", "workflow/"):
            return found
        if node not in self._groups:
            config = self.saved.groups.get(node.type[9:])
            self._groups[node] = expand(node, config, self.class_of) if isinstance(config, Mapping) else None
        return self._groups[node]

    def is_virtual(self, node: SavedNode) -> bool:
        """Say whether a node exists in the editor alone: the server never sees it."""
        if node.type in _ONLY_IN_THE_EDITOR:
            return self.class_of(node) is None
        return self.inside(node) is not None

    def title(self, node: SavedNode) -> Any:
        """Give the node's title, or its class's display name; numbers are kept as they are."""
        if node.title is not None:
            return node.title
        node_class = self.class_of(node)
        return node.type if node_class is None else node_class.display_name

    # --- Its inputs and widgets ------------------------------------------------------------------------------------

    def widgets(self, node: SavedNode) -> dict[str, Widget]:
        """Give the widgets of a node of a known class by name, in order; none for other nodes."""
        if node not in self._widgets:
            node_class = self.class_of(node)
            self._widgets[node] = {} if node_class is None else deal(node, node_class)
        return self._widgets[node]

    def inputs(self, node: SavedNode) -> list[Live]:
        """Give the inputs of a node in the editor's order.

        First those of its class (sockets, then widgets) or of its definition, each with the link that was saved
        under its name, then whatever else was saved: inputs of an older version, or that a script added.
        """
        if node not in self._live:
            self._live[node] = list(self._merged(node))
        return self._live[node]

    def _merged(self, node: SavedNode) -> Iterator[Live]:
        saved = {slot.name: (place, slot) for place, slot in enumerate(node.inputs)}
        known: set[str] = set()
        for name, kind, widget in self._expected(node):
            place, slot = saved.get(name, (None, None))
            known.add(name)
            shown = slot.type if slot is not None and kind == MATCH_TYPE else "*" if kind == MATCH_TYPE else kind
            yield Live(name, shown, None if slot is None else slot.link, place, widget)
        for place, slot in enumerate(node.inputs):
            if slot.name not in known:
                yield Live(slot.name, slot.type, slot.link, place)

    def _expected(self, node: SavedNode) -> Iterator[tuple[str, str, Widget | None]]:
        graph, node_class = self.inside(node), self.class_of(node)
        if graph is not None:
            yield from ((port.name, port.type, None) for port in graph.inputs)
        elif node_class is not None:
            widgets = self.widgets(node)
            inputs = [spec for spec in all_inputs(node_class, widgets) if spec.type != AUTOGROW]
            yield from ((spec.name, _shown_type(spec), None) for spec in inputs if not spec.is_widget)
            yield from ((spec.name, spec.type, widgets[spec.name]) for spec in inputs if spec.is_widget)
        elif node.type in REROUTES and not node.inputs:
            yield ("", "*", None)

    def outputs(self, node: SavedNode) -> list[str]:
        """Give the types of a node's outputs: the class's, then what else was saved."""
        inside, node_class = self.inside(node), self.class_of(node)
        if inside is not None:
            return [port.type for port in inside.outputs]
        if node_class is None:
            return list(node.outputs)
        expected = node_class.outputs
        saved = node.outputs
        return [
            saved[place] if kind == "*" and place < len(saved) and node_class.has_matched_outputs else kind
            for place, kind in enumerate(expected)
        ] + list(saved[len(expected) :])

    # --- What runs -------------------------------------------------------------------------------------------------

    def scope_inside(self, scope: Scope, node: SavedNode, graph: Graph) -> Scope:
        """Give the level inside an instance, which must not contain itself."""
        if node.id not in scope.inside:
            if scope.holds(graph):
                raise WorkflowFormatError(
                    f"subgraph {graph.id} contains itself, at node {scope.path}{node.id}", node_id=scope.path + node.id
                )
            self._flattened += len(graph.nodes)
            if self._flattened > _MOST_NODES:
                raise WorkflowFormatError(f"the subgraphs come to more than {_MOST_NODES} nodes")
            scope.inside[node.id] = Scope(graph, f"{scope.path}{node.id}:", node, scope)
        return scope.inside[node.id]

    def running(self) -> Iterator[tuple[Scope, SavedNode]]:
        """Yield the nodes that go into the prompt: not muted, not bypassed, not of the editor alone.

        An instance at the top that is muted or bypassed takes its inner nodes out (1.58; they stayed in 1.27). One
        inside another does not, in any version: the editor's own commands set the inner nodes' modes too.
        """
        pending = [(self.top, iter(self.top.graph.nodes.values()))]
        while pending:
            scope, nodes = pending[-1]
            node = next(nodes, None)
            if node is None:
                pending.pop()
                continue
            graph = self.inside(node)
            if graph is not None:
                if graph.group or scope.parent is not None or node.mode not in (MUTED, BYPASSED):
                    inner = self.scope_inside(scope, node, graph)
                    pending.append((inner, iter(graph.nodes.values())))
            elif not self.is_virtual(node) and node.mode not in (MUTED, BYPASSED):
                yield scope, node


def _shown_type(spec: Input) -> str:
    return MATCH_TYPE if spec.type == MATCH_TYPE else spec.socket_type

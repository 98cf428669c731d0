"""Follow an input up its link to what the server is told: an output of a real node, or a widget's value.

On the way lie reroutes, bypassed nodes and the borders of subgraphs. It is one chain without branches, so it is a
loop; a chain that comes back to where it was is a cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import WorkflowFormatError
from .promoted import Given, Promotions
from .saved import BYPASSED, INPUTS, MUTED, OUTPUTS, Graph, Link, SavedNode
from .scopes import GET_NODE, PRIMITIVE, REROUTES, Editor, Live, Scope


@dataclass(frozen=True, slots=True)
class Linked:
    """The output of a real node, by its full id."""

    node_id: str
    slot: int


@dataclass(slots=True)
class _At:
    """Where the chain is: at an input (to go up its link), or at an output (to see who gives it).

    Attributes:
        wanted: The type that the chain's last consumer wants; None at an input whose own type counts.
        direct: Whether nothing but borders of subgraphs lies between here and the consumer.
        from_inside: Whether this is an instance's input, reached from a node inside of it.
    """

    scope: Scope
    node: SavedNode
    slot: int
    is_input: bool
    wanted: str | None = None
    direct: bool = True
    from_inside: bool = False


class Resolver:
    """Resolves the inputs of one loaded file."""

    def __init__(self, editor: Editor, promotions: Promotions) -> None:
        self._editor = editor
        self._promotions = promotions

    def source(self, scope: Scope, node: SavedNode, slot: int) -> Linked | Given | None:
        """Say what feeds an input; None when nothing does (then a widget has its own value).

        A muted node counts as what feeds it, though it will not be in the prompt, so that the input is taken out of
        it: frontend 1.27. (1.58 sends the value that a widget has under its link, which is nowhere to be seen in the
        editor; the server, and a check before it, name a missing input instead.) So does what lies behind a muted
        reroute, which is but a line.

        Raises:
            WorkflowFormatError: The file contradicts itself here, so that the editor throws too: a link that is not
                in `links`, an origin or a slot that does not exist, a cycle, a subgraph's input that is wired
                straight to its output.
        """
        at: _At | Linked | Given | None = _At(scope, node, slot, is_input=True)
        seen: set[tuple[str, str, int, bool]] = set()
        only_reroutes = True
        while isinstance(at, _At):
            here = (at.scope.path, at.node.id, at.slot, at.is_input)
            if here in seen:
                if only_reroutes:
                    return None
                raise self._error(at, "its inputs lead back to itself through bypassed nodes or subgraphs")
            seen.add(here)
            only_reroutes = only_reroutes and (at.node is node or at.node.type in REROUTES)
            at = self._up(at) if at.is_input else self._out(at)
        return at

    # --- From an input up its link ---------------------------------------------------------------------------------

    def _up(self, at: _At) -> _At | Given | None:
        inputs = self._editor.inputs(at.node)
        live = inputs[at.slot] if 0 <= at.slot < len(inputs) else None
        if live is None:
            raise self._error(at, f"it has no input {at.slot}, where a link of the subgraph comes in")
        link = self._link(at, live)
        if link is None:
            return self._promotions.of(at.scope, at.node, at.slot) if at.from_inside else None
        if link.origin == INPUTS and at.scope.parent is not None and at.scope.instance is not None:
            return _At(at.scope.parent, at.scope.instance, link.origin_slot, True, direct=at.direct, from_inside=True)
        origin = at.scope.graph.nodes.get(link.origin)
        if origin is None:
            raise self._error(at, f"input {live.name!r} is linked to node {link.origin}, which does not exist", live)
        return _At(at.scope, origin, link.origin_slot, False, at.wanted or live.type, at.direct)

    def _link(self, at: _At, live: Live) -> Link | None:
        """Find an input's link by the id that it carries; without one, see whether `links` has one for its place."""
        graph = at.scope.graph
        if live.link is None:
            return self._unclaimed(graph, at.node, live)
        link = graph.links.get(live.link)
        if link is None:
            raise self._error(at, f"input {live.name!r} names link {live.link}, which is not in the links", live)
        if link.target != at.node.id:
            raise self._error(at, f"input {live.name!r} names link {link.id}, which leads to node {link.target}", live)
        rivals = graph.arriving(link.target, link.target_slot)
        if len(rivals) > 1 and {slot.link for slot in at.node.inputs} & {rival.id for rival in rivals} != {link.id}:
            raise self._error(at, f"link {link.id} of input {live.name!r} and another lead to one slot", live)
        return link

    @staticmethod
    def _unclaimed(graph: Graph, node: SavedNode, live: Live) -> Link | None:
        """Take a link that no input claims (frontend 1.58 repairs such files; 1.27 had no connection there)."""
        place = 0 if live.place is None and node.type in REROUTES else live.place
        arriving = [] if place is None else graph.arriving(node.id, place)
        if not arriving:
            return None
        claimed = {slot.link for slot in node.inputs}
        known = graph.nodes
        return next(
            (link for link in arriving if link.id not in claimed and (link.origin in known or link.origin == INPUTS)),
            None,
        )

    # --- From an output to who gives it ----------------------------------------------------------------------------

    def _out(self, at: _At) -> _At | Linked | Given | None:
        node, editor = at.node, self._editor
        graph = editor.inside(node)
        if node.type == PRIMITIVE and editor.is_virtual(node):
            return self._primitive(at)
        if node.mode == MUTED and graph is not None and not graph.group:
            return None
        if node.mode == BYPASSED:
            return self._bypass(at, exact=graph is not None and graph.group)
        if graph is not None:
            return self._through_border(at, graph)
        if editor.is_virtual(node):
            return self._through_virtual(at)
        outputs, node_class = editor.outputs(node), editor.class_of(node)
        if not 0 <= at.slot < max(len(outputs), 1):
            raise self._error(at, f"it has no output {at.slot}, to which something is linked")
        if node_class is not None and node_class.has_view and outputs[at.slot].startswith("LOAD3D_"):
            raise self._error(at, f"its output {at.slot} follows a view that only a browser has")
        return Linked(at.scope.path + node.id, at.slot)

    @staticmethod
    def _primitive(at: _At) -> Given | None:
        """Give a PrimitiveNode's value, muted or not, to a widget that it is linked to without a reroute between.

        One that was saved without a value has that of the widget itself, which is None here.
        """
        if not at.direct:
            return None
        replaces = bool(at.node.properties.get("Run widget replace on values"))
        return Given(_first_value(at.node), processed=True, has_tokens=replaces)

    def _bypass(self, at: _At, exact: bool) -> _At | None:
        slot = self._passing(at, exact)
        return None if slot is None else _At(at.scope, at.node, slot, True, direct=False)

    def _passing(self, at: _At, exact: bool) -> int | None:
        """Choose the input that an output of a bypassed node passes on: the same place, else the first that fits."""
        inputs, wanted, slot = self._editor.inputs(at.node), at.wanted or "*", at.slot
        if exact:
            order = [slot, *range(len(inputs))]
            return next((place for place in order if place < len(inputs) and inputs[place].type == wanted), None)
        outputs = self._editor.outputs(at.node)
        if not 0 <= slot < len(outputs):
            raise self._error(at, f"it is bypassed and has no output {slot}, to which something is linked")
        if wanted in ("*", ""):
            if not inputs:
                raise self._error(at, "it is bypassed and has no input to pass on")
            return slot if slot < len(inputs) else 0
        if slot < len(inputs) and fits(inputs[slot].type, outputs[slot]) and fits(inputs[slot].type, wanted):
            return slot
        return _first(
            [live.type == wanted for live in inputs],
            [fits(live.type, outputs[slot]) and fits(live.type, wanted) for live in inputs],
        )

    def _through_border(self, at: _At, graph: Graph) -> _At | None:
        if not 0 <= at.slot < len(graph.outputs):
            raise self._error(at, f"its subgraph has no output {at.slot}, to which something is linked")
        listed = (graph.links.get(link) for link in graph.outputs[at.slot].links)
        inner = [link for link in listed if link is not None and link.target == OUTPUTS]
        link = next(iter(inner or graph.arriving(OUTPUTS, at.slot)), None)
        if link is None:
            return None
        origin = graph.nodes.get(link.origin)
        if origin is None:
            what = "its input is wired straight to its output" if link.origin == INPUTS else "its origin is gone"
            raise self._error(at, f"output {at.slot} of its subgraph cannot be followed: {what}")
        scope = self._editor.scope_inside(at.scope, at.node, graph)
        return _At(scope, origin, link.origin_slot, False, at.wanted, at.direct)

    def _through_virtual(self, at: _At) -> _At | None:
        if at.node.type == GET_NODE:
            return self._setter(at)
        if at.node.type in REROUTES:
            return _At(at.scope, at.node, 0, True, at.wanted, direct=False) if self._editor.inputs(at.node) else None
        return None

    def _setter(self, at: _At) -> _At:
        """Go to the SetNode of the same name, in this level or in one around it."""
        name = _first_value(at.node)
        scope: Scope | None = at.scope
        while scope is not None:
            found = [n for n in scope.graph.nodes.values() if n.type == "SetNode" and _first_value(n) == name]
            if len(found) == 1:
                return _At(scope, found[0], 0, False, at.wanted, direct=False)
            if found:
                raise self._error(at, f"{len(found)} SetNodes are named {name!r}")
            scope = scope.parent
        raise self._error(at, f"there is no SetNode named {name!r}")

    def _error(self, at: _At, what: str, live: Live | None = None) -> WorkflowFormatError:
        node_id = at.scope.path + at.node.id
        message = f"node {node_id} ({at.node.type}) cannot be resolved: {what}; mend it in the editor and save again"
        return WorkflowFormatError(message, node_id=node_id, input_name=None if live is None else live.name)


def fits(one: str, other: str) -> bool:
    """Say whether two socket types may be connected: equal but for case, a wildcard, or lists that share one."""
    if one in ("*", "", "0") or other in ("*", "", "0"):
        return True
    ones, others = one.lower().split(","), other.lower().split(",")
    return any(a == b or a in ("*", "") or b in ("*", "") for a in ones for b in others)


def _first(*choices: Sequence[bool]) -> int | None:
    """Give the first place that the first of the lists with any says yes to."""
    return next((list(answers).index(True) for answers in choices if True in answers), None)


def _first_value(node: SavedNode) -> Any:
    return node.values[0] if isinstance(node.values, list) and node.values else None

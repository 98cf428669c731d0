"""Write the prompt: one entry for each node that runs, with its widgets' values and its links."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..definitions import DYNAMIC_COMBO
from ..errors import UnknownNode, UnknownNodes, WorkflowFormatError
from .classes import CURVE, Input, NodeClass
from .promoted import Given, Promotions
from .resolve import Linked, Resolver
from .saved import SavedNode
from .scopes import Editor, Scope
from .text import Moment, dynamic_prompt, file_name
from .unknown import kept_values
from .values import Widget, settled

_SAVERS = frozenset(
    {"SaveImage", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio", "SaveAudioMP3"}
    | {"SaveAudioOpus", "SaveGLB", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"}
    | {"SaveImageAdvanced", "SaveAudioAdvanced", "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud"}
)
"""Classes whose ``filename_prefix`` the editor fills in itself (the second line came after 1.27)."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the file leaves open: which of ``{a|b}``, and what time it is."""

    rng: random.Random | None
    now: Moment | None

    def pick(self, count: int) -> int:
        return 0 if self.rng is None else self.rng.randrange(count)

    def date(self) -> Moment:
        if self.now is None:
            raise WorkflowFormatError("a file name has %date:...% in it: pass now=datetime.now() to convert it")
        return self.now


class Writer:
    """Writes the prompt of one loaded file."""

    def __init__(self, editor: Editor, choices: Choices) -> None:
        self._editor = editor
        self._choices = choices
        self._promotions = Promotions(editor)
        self._resolver = Resolver(editor, self._promotions)

    def prompt(self, *, keep_unknown: bool) -> dict[str, Any]:
        """Write the graph in API format.

        Raises:
            UnknownNodes: Nodes that run are of classes that the server has not, and `keep_unknown` is False.
        """
        running = list(self._editor.running())
        unknown = [_unknown(scope, node) for scope, node in running if self._editor.class_of(node) is None]
        if unknown and not keep_unknown:
            raise UnknownNodes(unknown)
        graph = {scope.path + node.id: self._entry(scope, node) for scope, node in running}
        for entry in graph.values():
            _drop_links_to_nothing(entry["inputs"], graph)
        return graph

    def _entry(self, scope: Scope, node: SavedNode) -> dict[str, Any]:
        node_class = self._editor.class_of(node)
        if node_class is None:
            inputs = {name: _sent(value) for name, value in kept_values(node).items()}
        else:
            self._refuse_live(scope, node, node_class)
            inputs = {name: self._value(scope, node, widget) for name, widget in self._editor.widgets(node).items()}
        for place, live in enumerate(self._editor.inputs(node)):
            source = self._resolver.source(scope, node, place)
            if isinstance(source, Linked):
                inputs[live.name] = [source.node_id, source.slot]
            elif isinstance(source, Given) and not source.processed:
                inputs[live.name] = _sent(source.value)
            elif isinstance(source, Given) and live.widget is not None:
                value = self._primitive(live.widget, source)
                self._refuse_late_choice(scope, node, live.widget, value)
                inputs[live.name] = _sent(self._processed(scope, node, live.widget.input, value))
        return {"inputs": inputs, "class_type": node.type, "_meta": {"title": self._editor.title(node)}}

    @staticmethod
    def _refuse_live(scope: Scope, node: SavedNode, node_class: NodeClass) -> None:
        live = next((spec for spec in node_class.inputs if spec.is_live), None)
        if live is not None:
            raise WorkflowFormatError(
                f"node {scope.path}{node.id} ({node.type}) takes {live.name!r} from the browser at the moment of "
                "queueing; without one it cannot be converted: replace it by a node that loads a file",
                node_id=scope.path + node.id,
                input_name=live.name,
            )

    @staticmethod
    def _refuse_late_choice(scope: Scope, node: SavedNode, widget: Widget, value: Any) -> None:
        """Refuse a PrimitiveNode's choice for a dynamic combo that was saved with another, and other inputs."""
        if widget.input.widget_type == DYNAMIC_COMBO and value != widget.value:
            name = widget.input.name
            raise WorkflowFormatError(
                f"node {scope.path}{node.id} ({node.type}): a PrimitiveNode sets {name!r} to {value!r}, but the node "
                f"has the inputs of {widget.value!r}; choose it on the node itself and save again",
                node_id=scope.path + node.id,
                input_name=name,
            )

    # --- A widget's own value --------------------------------------------------------------------------------------

    def _value(self, scope: Scope, node: SavedNode, widget: Widget) -> Any:
        given = self._promotions.inner(scope, node, widget.input.name)
        if given is not None:
            return _sent(given.value)
        if widget.input.widget_type == CURVE and widget.value is not None:
            return {"__type__": "CURVE", "__value__": copy.deepcopy(widget.value)}
        return _sent(self._processed(scope, node, widget.input, widget.value))

    def _primitive(self, widget: Widget, given: Given) -> Any:
        """Give a PrimitiveNode's value to a widget: its text filled in if its property says so, its number settled."""
        if given.value is None and widget.value is not None:
            return widget.value
        if given.has_tokens and isinstance(given.value, str):
            return file_name(given.value, self._named_value, self._choices.date)
        return settled(widget.input, given.value)

    def _processed(self, scope: Scope, node: SavedNode, spec: Input, value: Any) -> Any:
        """Apply what the editor does to a text when it queues."""
        if spec.options.get("dynamicPrompts") is True and spec.widget_type == "STRING":
            if isinstance(value, str):
                return dynamic_prompt(value, self._choices.pick)
        elif spec.name == "filename_prefix" and node.type in _SAVERS and isinstance(value, str):
            return file_name(value, self._named_value, self._choices.date)
        return value

    def _named_value(self, node_name: str, widget_name: str) -> Any:
        """Give a widget's value by names, for ``%Node.widget%``: by the S&R property first, then by title."""
        everyone = list(self._everyone())
        found = [(s, n) for s, n in everyone if self._search_name(n) == node_name] or [
            (s, n) for s, n in everyone if self._editor.title(n) == node_name
        ]
        if not found:
            raise LookupError(node_name)
        scope, node = found[0]
        if self._editor.inside(node) is not None:
            return self._promotions.by_name(scope, node, widget_name)
        return self._current(scope, node, widget_name)

    def _current(self, scope: Scope, node: SavedNode, widget_name: str) -> Any:
        """Give what a widget shows when the prompt is made: a PrimitiveNode has put its value in by then."""
        for place, live in enumerate(self._editor.inputs(node)):
            if live.name == widget_name and live.widget is not None:
                source = self._resolver.source(scope, node, place)
                if isinstance(source, Given) and source.processed:
                    return self._primitive(live.widget, source)
        return self._editor.widgets(node)[widget_name].value

    def _search_name(self, node: SavedNode) -> Any:
        name = node.properties.get("Node name for S&R")
        return node.type if name is None and node.type not in _SAVERS else name

    def _everyone(self) -> Iterator[tuple[Scope, SavedNode]]:
        """Yield all nodes, muted ones too: those inside an instance before the instance itself."""
        pending = [(self._editor.top, list(reversed(self._editor.top.graph.nodes.values())))]
        while pending:
            scope, nodes = pending[-1]
            if not nodes:
                pending.pop()
                if scope.parent is not None and scope.instance is not None:
                    yield scope.parent, scope.instance
                continue
            node = nodes.pop()
            graph = self._editor.inside(node)
            if graph is None or graph.group:
                yield scope, node
            else:
                pending.append((self._editor.scope_inside(scope, node, graph), list(reversed(graph.nodes.values()))))


def _sent(value: Any) -> Any:
    """Wrap a list, which would be read as a link; share nothing with the file."""
    if isinstance(value, list):
        return {"__value__": copy.deepcopy(value)}
    return copy.deepcopy(value) if isinstance(value, Mapping) else value


def _drop_links_to_nothing(inputs: dict[str, Any], graph: Mapping[str, Any]) -> None:
    for name in [name for name, value in inputs.items() if isinstance(value, list) and value[0] not in graph]:
        del inputs[name]


def _unknown(scope: Scope, node: SavedNode) -> UnknownNode:
    return UnknownNode(scope.path + node.id, node.type, node.title if isinstance(node.title, str) else None)

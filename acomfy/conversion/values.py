"""Deal the values of ``widgets_values`` to the widgets of a node.

The list is positional and says nothing about what it holds, so a list from a version of the class with other widgets
lands in the wrong places, in the editor as here; nothing is clamped, rounded or checked against what a combo offers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..definitions import DYNAMIC_COMBO
from .classes import LOADING, RECORDER, VIEWPORT, Input, NodeClass
from .saved import SavedNode
from .text import as_text


@dataclass(frozen=True, slots=True)
class Widget:
    """A widget of a node with the value it shows after loading the file."""

    input: Input
    value: Any


def deal(node: SavedNode, node_class: NodeClass) -> dict[str, Widget]:
    """Give the widgets of a node by name, in the class's order, each with its value or its default."""
    named = _by_name(node, node_class)
    values = [] if named is not None else _without_dummies(_listed(node.values), node_class)
    dealt: dict[str, Widget] = {}
    place = 0
    for spec in _walk(node_class.inputs, dealt):
        if named is not None:
            value = named.get(spec.name, spec.default)
        else:
            value = values[place] if spec.places and place < len(values) else spec.default
            place += spec.places
        dealt[spec.name] = Widget(spec, _loaded(spec, value, node))
    return dealt


def settled(spec: Input, value: Any) -> Any:
    """Bring a PrimitiveNode's number into the range and onto the steps of the widget that takes it.

    The editor does so when it connects the two after loading; it does so with no other value. Nothing at all is 0
    to it (1.27; 1.58 sends the null, which no server takes).
    """
    if spec.widget_type not in ("INT", "FLOAT"):
        return value
    value = 0 if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return value
    least, most = spec.range
    value = min(max(value, least), most)
    return _on_steps(spec, value) if spec.widget_type == "INT" else _on_decimals(spec, value)


def _on_steps(spec: Input, value: float) -> float:
    step = spec.step or 1
    offset = 0 if step == 1 else spec.range[0] % step
    if all(isinstance(part, int) for part in (value, step, offset)):
        return (2 * (value - offset) + step) // (2 * step) * step + offset  # exact also beyond 2**53
    return math.floor((value - offset) / step + 0.5) * step + offset


def _on_decimals(spec: Input, value: float) -> float:
    decimals = max(0, -math.floor(math.log10(spec.step or 0.5)))
    unit = spec.options.get("round")
    if not isinstance(unit, int | float) or unit <= 0:
        unit = 10.0**-decimals if decimals else None
    if not unit:
        return value
    return round(math.floor(value / unit + 0.5) * unit, decimals)


def _walk(inputs: list[Input], dealt: Mapping[str, Widget]) -> Iterator[Input]:
    """Yield the widgets in order; those that a dynamic combo's choice brings come right after it."""
    pending = [iter(inputs)]
    while pending:
        spec = next(pending[-1], None)
        if spec is None:
            pending.pop()
        elif spec.is_widget:
            yield spec
            if spec.widget_type == DYNAMIC_COMBO:
                pending.append(iter(chosen_inputs(spec, dealt)))


def chosen_inputs(spec: Input, dealt: Mapping[str, Widget]) -> list[Input]:
    """Give the inputs that the present choice of a dynamic combo brings."""
    choice = dealt[spec.name].value if spec.name in dealt else None
    return spec.branches.get(choice, []) if isinstance(choice, str | int | float) else []


def all_inputs(node_class: NodeClass, dealt: Mapping[str, Widget]) -> Iterator[Input]:
    """Yield all inputs of a node, with those that its dynamic combos bring at present."""
    pending = [iter(node_class.inputs)]
    while pending:
        spec = next(pending[-1], None)
        if spec is None:
            pending.pop()
            continue
        yield spec
        if spec.widget_type == DYNAMIC_COMBO:
            pending.append(iter(chosen_inputs(spec, dealt)))


def _by_name(node: SavedNode, node_class: NodeClass) -> Mapping[str, Any] | None:
    if node.dealt is not None:
        return node.dealt
    if isinstance(node.values, Mapping) and node_class.is_pack_of_named_values:
        return node.values
    return None


def _listed(values: Any) -> list[Any]:
    """Give the saved list; an object is ignored, as in 1.27 (1.58 takes its values by the order of its keys)."""
    return values if isinstance(values, list) else []


def _without_dummies(values: list[Any], node_class: NodeClass) -> list[Any]:
    """Drop the values that old frontends saved for ``forceInput`` inputs, which are sockets and have none.

    They are there when the list is longer than the widgets by just those; then they stand in the class's own order.
    Only an explicit ``control_after_generate`` counts for a place here, as in the editor.
    """
    forced: list[bool] = []
    for spec in node_class.inputs:
        force = bool(spec.options.get("forceInput"))
        if spec.is_widget or force:
            forced.append(force)
            if spec.options.get("control_after_generate"):
                forced.append(False)
    if True not in forced or len(forced) != len(values):
        return values
    return [value for value, is_dummy in zip(values, forced, strict=True) if not is_dummy]


def _loaded(spec: Input, value: Any, node: SavedNode) -> Any:
    """Make of a saved value what the widget shows after loading."""
    if spec.widget_type == RECORDER:
        return ""
    if spec.name == VIEWPORT and not isinstance(value, Mapping):
        return {}
    if spec.is_fetched and isinstance(value, str) and value.startswith(LOADING):
        return spec.default
    if value is None and spec.widget_type == "COMBO":
        # Frontend 1.58; 1.27 sends null, which no server takes.
        return spec.choices[0] if spec.choices else None
    if spec.name == "sampler_name" and node.type in ("KSampler", "KSamplerAdvanced") and isinstance(value, str):
        return value.removeprefix("sample_")
    if spec.is_text_box and not isinstance(value, str):
        return "" if value is None else as_text(value)
    return value

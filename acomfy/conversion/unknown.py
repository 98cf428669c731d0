"""Keep of a node of an unknown class what its saved form says by itself."""

from __future__ import annotations

from typing import Any

from .saved import SavedNode

_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")


def kept_values(node: SavedNode) -> dict[str, Any]:
    """Give the widget values of a node whose class nobody knows, where the file tells their names.

    It does when ``widgets_values`` is an object, or when the node's saved inputs name a widget for each value that is
    not the ``control_after_generate`` after a seed. Otherwise there are none: a value in a wrong place is worse than a
    missing one, which the server reports.
    """
    if isinstance(node.values, dict):
        return {str(name): value for name, value in node.values.items()}
    names = [slot.name for slot in node.inputs if slot.widget]
    values = list(_without_controls(node.values, names)) if isinstance(node.values, list) else []
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else {}


def _without_controls(values: list[Any], names: list[str]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        after_seed = 0 < len(kept) <= len(names) and names[len(kept) - 1] in ("seed", "noise_seed")
        if not (after_seed and value in _CONTROLS and isinstance(kept[-1], int)):
            kept.append(value)
    return kept

"""What docstrings say of node classes and their inputs, each in a line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..definitions import DYNAMIC_SLOT, MATCH_TYPE, InputDefinition, NodeDefinition

_LONGEST_TEXT = 240
_LONGEST_DEFAULT = 60


def type_of(declared: InputDefinition) -> str:
    """Give the type, or types with commas between, that can be linked to an input."""
    if declared.type == MATCH_TYPE:
        template = declared.settings.get("template")
        kind = template.get("allowed_types") if isinstance(template, Mapping) else None
    elif declared.type == DYNAMIC_SLOT:
        kind = declared.settings.get("slotType")
    else:
        kind = declared.type
    return kind if isinstance(kind, str) else "*"


def summary(definition: NodeDefinition) -> str:
    head, class_type = definition.display_name, definition.class_type
    head += "" if head == class_type else f" ({class_type})"
    head += ", deprecated" if definition.deprecated else ", experimental" if definition.experimental else ""
    described = cleaned(definition.description)
    return cleaned(head) + (f": {described}" if described else "")


def text_of(declared: InputDefinition) -> str:
    """Describe an input: its type, range, default, and what its tooltip says."""
    text = f"one of {_shown(declared.choices)}" if declared.choices else cleaned(type_of(declared))
    low, high = declared.minimum, declared.maximum
    if low is not None or high is not None:
        text += f", {'any' if low is None else low} to {'any' if high is None else high}"
    if declared.default is not None:
        text += f", default {_cut(cleaned(repr(declared.default)))}"
    return text + told(declared)


def told(declared: InputDefinition) -> str:
    text = cleaned(declared.tooltip)
    return f". {text}" if text else ""


def _shown(choices: tuple[Any, ...]) -> str:
    shown = ", ".join(_cut(repr(choice)) for choice in choices[:8])
    return cleaned(shown) + (f" and {len(choices) - 8} more" if len(choices) > 8 else "")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_DEFAULT else f"{text[: _LONGEST_DEFAULT - 1]}…"


def cleaned(text: str) -> str:
    """Make one line of a text, without what no file can hold."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


def default_text(value: Any) -> str:
    """Write a default for the stub, ``...`` when it is nothing short."""
    if isinstance(value, float) and not math.isfinite(value):
        return "..."
    text = repr(value) if isinstance(value, str | int | float) else "..."
    return text if len(text) <= _LONGEST_DEFAULT else "..."

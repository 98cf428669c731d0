"""Read JSON of which nothing is certain: what is missing, or not of its type, reads as None, 0 or empty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MILLISECONDS_FROM = 1e11
"""Seconds since 1970 reach this in the year 5138, milliseconds did in 1973."""


def member(value: Any, key: str) -> Any:
    """Give what an object has under a key; None when it is no object or has no such key."""
    return value.get(key) if isinstance(value, Mapping) else None


def items_of(value: Any) -> list[Any]:
    """Give an array's items; none of what is no array."""
    return value if isinstance(value, list) else []


def text_of(value: Any) -> str:
    """Give a text; an empty one for what is none."""
    return value if isinstance(value, str) else ""


def number_of(value: Any) -> float | None:
    """Give a finite or infinite number; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def count_of(value: Any) -> int:
    """Give a number of things, 0 for what is none."""
    number = number_of(value)
    return int(number) if number is not None and math.isfinite(number) and number > 0 else 0


def seconds_of(value: Any) -> float | None:
    """Give a time in seconds since 1970, of one in seconds or milliseconds; None for what is none."""
    number = number_of(value)
    if number is None or not math.isfinite(number):
        return None
    return number / 1000 if number >= _MILLISECONDS_FROM else number

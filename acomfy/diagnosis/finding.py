"""`Finding`: how one thing stands, and the words for numbers in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How something stands."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing stands.

    Attributes:
        check: What was looked at, in one or two words.
        text: What was found.
        advice: What to do about it; "" when nothing.
        values: What was measured, for programs; plain JSON.
    """

    check: str
    level: Level
    text: str
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def ok(check: str, text: str, advice: str = "", **values: Any) -> Finding:
    """Say that all is well."""
    return Finding(check, Level.OK, text, advice, values)


def unknown(check: str, text: str, advice: str = "", **values: Any) -> Finding:
    """Say that it could not be tried."""
    return Finding(check, Level.UNKNOWN, text, advice, values)


def warning(check: str, text: str, advice: str, **values: Any) -> Finding:
    """Say that it works, but not well."""
    return Finding(check, Level.WARNING, text, advice, values)


def problem(check: str, text: str, advice: str, **values: Any) -> Finding:
    """Say that it does not work."""
    return Finding(check, Level.PROBLEM, text, advice, values)


def exit_code(findings: Iterable[Finding]) -> int:
    """Give 1 if there is a problem, else 0."""
    return int(any(finding.level is Level.PROBLEM for finding in findings))


# --- Words -----------------------------------------------------------------------------------------------------------


def size(count: float) -> str:
    """Write a number of bytes for a person."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count:.0f} bytes"


def milliseconds(seconds: float) -> str:
    """Write a short time for a person."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def duration(seconds: float) -> str:
    """Write a long time for a person."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def rounded(seconds: float | None) -> float | None:
    """Give milliseconds for programs."""
    return None if seconds is None else round(seconds * 1000, 1)

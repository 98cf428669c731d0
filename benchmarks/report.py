"""A row of the table, how rounds become rows, and how rows become a table or JSON."""

from __future__ import annotations

import operator
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .scale import Scale

Result = dict[str, Any]
Turn = Callable[[], Result]
Pairs = Sequence[tuple[Result, Result]]

_PACKAGES = ("acomfy", "aiohttp", "orjson", "pillow", "websocket-client", "comfyui_xy")
_HOLDS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing.

    Attributes:
        family: The module that measured it.
        name: What it is.
        value: What acomfy takes or reaches, in ``unit``.
        against: Who else did the same in the same run; "" when nobody did.
        other: What that one takes or reaches.
        ratio: Of the two, the median over the rounds, each of a pair that ran one after the other; else of the values.
        growth: Factor of the value for the same at ten times the size.
        wanted: What the ratio should be, as ``>= 0.95``; where there is none, the value.
    """

    family: str
    name: str
    value: float
    unit: str
    against: str = ""
    other: float | None = None
    ratio: float | None = None
    growth: float | None = None
    wanted: str = ""

    @property
    def met(self) -> bool | None:
        """Tell whether it is as wanted; None when nothing is wanted."""
        if not self.wanted:
            return None
        sign, bound = self.wanted.split()
        reached = self.value if self.ratio is None else self.ratio
        return bool(_HOLDS[sign](round(reached, 3), float(bound)))


def interleaved(ours: Turn, theirs: Turn, scale: Scale, *, rounds: int | None = None) -> list[tuple[Result, Result]]:
    """Measure two sides in turns, in every other round the other way round; give the pairs of results.

    Args:
        rounds: At the most so many, where fewer than the scale's will do.
    """
    pairs: list[tuple[Result, Result]] = []
    end = time.monotonic() + scale.seconds
    while len(pairs) < min(scale.rounds, rounds or scale.rounds) and (not pairs or time.monotonic() < end):
        if len(pairs) % 2:
            pairs.append((ours(), theirs()))
        else:
            their_result = theirs()
            pairs.append((ours(), their_result))
    return pairs


def compared(
    family: str,
    name: str,
    unit: str,
    pairs: Pairs,
    key: str,
    against: str,
    *,
    wanted: str = "",
    growth: float | None = None,
) -> Row:
    """Make a row of one figure of results that were measured in turns."""
    ours, theirs = [our[key] for our, _ in pairs], [their[key] for _, their in pairs]
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
    value, other = statistics.median(ours), statistics.median(theirs)
    return Row(family, name, value, unit, against, other, ratio, growth, wanted)


def versions() -> dict[str, str]:
    """Give the versions of what took part."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """Give rows and versions as plain data."""
    return {"versions": versions(), "rows": [{**asdict(row), "met": row.met} for row in rows]}


def table(rows: Iterable[Row]) -> str:
    """Write rows as a table, a block for each family."""
    head = ("", "acomfy", "unit", "against", "ratio", "wanted", "", "at 10x")
    lines: list[tuple[str, ...]] = [head]
    family = ""
    for row in rows:
        if row.family != family:
            family = row.family
            lines.append((f"-- {family}", *[""] * 7))
        lines.append(_cells(row))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligns = ("<", ">", "<", "<", ">", ">", "<", ">")
    text = [
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(line, aligns, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", ", ".join(f"{package} {number}" for package, number in versions().items())])


def markdown(rows: Iterable[Row]) -> str:
    """Write what is wanted of the rows as a table for the README: ratios alone, since times are a machine's own.

    Where a row has no ratio, its value is given as a part of the one that is wanted.
    """
    lines = ["| | against | ratio | wanted | at 10x |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        if row.wanted:
            against, ratio, wanted = _as_ratio(row)
            growth = "" if row.growth is None else f"{row.growth:.2f}"
            lines.append(f"| {row.name} | {against} | {ratio:.2f} | {wanted} | {growth} |")
    return "\n".join(lines)


def _as_ratio(row: Row) -> tuple[str, float, str]:
    """Give whom a row is compared with, the ratio, and what is wanted of it."""
    if row.ratio is not None:
        return row.against, row.ratio, row.wanted
    bound = float(row.wanted.split()[1])
    return f"{_number(bound)} {row.unit} at most", row.value / bound, "<= 1.0"


def _cells(row: Row) -> tuple[str, ...]:
    met = {None: "", True: "ok", False: "MISSED"}[row.met]
    other = "" if row.other is None else f"{row.against} {_number(row.other)}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    growth = "" if row.growth is None else f"x {row.growth:.2f}"
    return row.name, _number(row.value), row.unit, other, ratio, row.wanted, met, growth


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

"""What the editor does to texts when it queues: dynamic prompts, and tokens in the savers' file names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

_COMMENT = re.compile(r"/\*|//[^\n\r\u2028\u2029]*")
_PROMPT_PART = re.compile(r"\\[\s\S]|[{}|]|[^\\{}|]+|\\\Z")
_ESCAPED = re.compile(r"\\([{}|])")
_TOKEN = re.compile(r"%([^%]+)%")
_NOT_IN_A_NAME = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
_DATE_PARTS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")


class Moment(Protocol):
    """A time of day and year, as `datetime.datetime` is one."""

    @property
    def year(self) -> int: ...
    @property
    def month(self) -> int: ...
    @property
    def day(self) -> int: ...
    @property
    def hour(self) -> int: ...
    @property
    def minute(self) -> int: ...
    @property
    def second(self) -> int: ...


Pick = Callable[[int], int]
"""Takes the number of options of a ``{a|b}`` and gives the index of one."""


def dynamic_prompt(text: str, pick: Pick) -> str:
    """Take comments out and pick among ``{a|b}``, as the editor does for inputs with ``dynamicPrompts``.

    Choices nest; an unclosed ``{`` is dropped; ``\\{``, ``\\}`` and ``\\|`` lose their backslash. What follows the
    ``//`` of an address counts as a comment too. `pick` is asked in the order of reading, the outer choice first, also
    when there is one option.
    """
    written: list[str] = []
    open_parts = [iter(_parsed(_without_comments(text)))]
    while open_parts:
        part = next(open_parts[-1], None)
        if part is None:
            open_parts.pop()
        elif isinstance(part, str):
            written.append(part)
        else:
            open_parts.append(iter(part[pick(len(part))]))
    return _ESCAPED.sub(r"\1", "".join(written))


def _without_comments(text: str) -> str:
    kept: list[str] = []
    begun = at = 0
    last_end = text.rfind("*/")
    while (match := _COMMENT.search(text, at)) is not None:
        if match[0] != "/*":
            end = match.end()
        elif match.end() <= last_end:
            end = text.index("*/", match.end()) + 2
        else:
            at = match.start() + 1  # never closed: no comment, though its second sign may begin one
            continue
        kept.append(text[begun : match.start()])
        begun = at = end
    return "".join(kept) + text[begun:]


def _parsed(text: str) -> list[Any]:
    """Read a prompt into a list of texts and of choices; a choice is the list of its options, read likewise."""
    current: list[Any] = []
    whole = current
    outer: list[tuple[list[Any], list[Any]]] = []
    for match in _PROMPT_PART.finditer(text):
        part = match[0]
        if part == "{":
            options: list[Any] = [[]]
            current.append(options)
            outer.append((current, options))
            current = options[0]
        elif part == "}" and outer:
            current, _ = outer.pop()
        elif part == "|" and outer:
            current = []
            outer[-1][1].append(current)
        else:
            current.append(part)
    return whole


def file_name(text: str, value_of: Callable[[str, str], Any], date: Callable[[], Moment]) -> str:
    """Fill in ``%Node.widget%`` and ``%date:FORMAT%`` in a saver's ``filename_prefix``; leave other tokens.

    Args:
        value_of: Gives the value of a widget by its node's name and its own; raises LookupError when there is none.
        date: Gives the time for ``%date:...%``, called only when there is such a token.
    """

    def filled(match: re.Match[str]) -> str:
        parts = match[1].split(".")
        if len(parts) != 2:
            return formatted_date(parts[0][5:], date()) if parts[0].startswith("date:") else match[0]
        try:
            value = value_of(parts[0], parts[1])
        except LookupError:
            return match[0]
        return _NOT_IN_A_NAME.sub("_", "" if value is None else as_text(value))

    return _TOKEN.sub(filled, text)


def formatted_date(pattern: str, date: Moment) -> str:
    """Write a date as ``%date:...%`` does: d, M, h, m, s with leading zeros when doubled, yy and yyyy."""
    values = {"d": date.day, "M": date.month, "h": date.hour, "m": date.minute, "s": date.second}

    def written(match: re.Match[str]) -> str:
        part = match[0]
        if part[0] == "y":
            return {"yy": f"{date.year}"[2:], "yyyy": f"{date.year}"}.get(part, part)
        return str(values[part[0]]).zfill(len(part))

    return _DATE_PARTS.sub(written, pattern)


def as_text(value: Any) -> str:
    """Make text of a JSON value as JavaScript's ``String()`` does."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join("" if item is None else as_text(item) for item in value)
    if isinstance(value, float):
        return _number_text(value)
    return str(value) if isinstance(value, int) else "[object Object]"


def _number_text(value: float) -> str:
    """Write a float as JavaScript does: no fraction when whole, exponents outside 1e-7 to 1e21."""
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    if "e" in text:
        mantissa, exponent = text.split("e")
        number = int(exponent)
        if -7 < number < 0:
            digits = mantissa.lstrip("-").replace(".", "")
            return ("-" if value < 0 else "") + "0." + "0" * (-number - 1) + digits
        return f"{mantissa.removesuffix('.0')}e{number:+d}"
    return text

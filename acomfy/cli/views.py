"""Lay an overview of a server out for a terminal of any size."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..overview import Ended, Memory, Overview, Running, Waiting, short
from .ends import drawable, printable

_PICTURE_FROM = 72  # columns of a terminal that has room for a picture
_NARROW = 60
_BAR_WIDTH = 40
_GB = 1e9
_LOGGED = 12  # lines of the log in a report
_STATES = {"completed": ("done", "green"), "failed": ("failed", "bold red"), "cancelled": ("stopped", "yellow")}
_SOCKETS = {
    "open": ("", ""),
    "closed": ("WebSocket closed, asking by HTTP", "yellow"),
    "refused": ("no WebSocket, asking by HTTP", "yellow"),
    "deaf": ("the WebSocket tells nothing, asking by HTTP", "yellow"),
}
UNTOLD = "progress untold: only its client hears it"


@dataclass(frozen=True, slots=True)
class Frame:
    """Where and how an overview is drawn.

    Attributes:
        height: Lines there are; None: as many as are needed, and what is long is folded instead of cut.
    """

    url: str
    hears: str
    width: int
    height: int | None

    @property
    def narrow(self) -> bool:
        return self.width < _NARROW


def picture_size(width: int, height: int) -> tuple[int, int]:
    """Give columns and rows that a picture may take of a terminal; 0, 0 when there is no room for one."""
    rows = height - 6  # below the head, above the caption
    return (min(width * 2 // 5, 2 * rows), rows) if width >= _PICTURE_FROM and rows >= 8 else (0, 0)


def draw(overview: Overview, frame: Frame, picture: Text | None = None) -> RenderableType:
    """Draw an overview, with a picture beside it if there is one."""
    head = _head(overview, frame)
    columns = 0 if picture is None else max((line.cell_len for line in picture.split("\n")), default=0) + 2
    inner = Frame(frame.url, frame.hears, frame.width - columns, frame.height)
    longest = max((len(one.name) for one in overview.memories), default=0)
    memory = [_memory(one, min(longest, 10 if inner.narrow else 30), inner) for one in overview.memories]
    running = _running_lines(overview, inner)
    taken = len(head) + len(memory) + len(running) + 2
    sections = _sections(overview, inner)
    room = None if frame.height is None else max(0, frame.height - taken)
    body = Group(*memory, *running, *_fitted(sections, room))
    if overview.failure:
        body = Group(*(_dimmed(part) for part in body.renderables))
    if picture is None:
        return Group(*head, body)
    beside = Table.grid(padding=(0, 2, 0, 0), expand=True)
    beside.add_column(ratio=1)
    beside.add_column(width=columns - 2, no_wrap=True)
    beside.add_row(body, picture)
    return Group(*head, beside)


def _head(overview: Overview, frame: Frame) -> list[RenderableType]:
    name = f"ComfyUI {overview.version or ''}".rstrip()
    first = _line(frame, (_plain(name), "bold"), " at ", _plain(frame.url))
    if overview.failure:
        since = clock(overview.failing_for)
        return [first, _line(frame, (f"failing for {since}: {_plain(overview.failure)}", "bold red")), Text("")]
    if not overview.known:
        return [first, _line(frame, ("asking ...", "dim")), Text("")]
    words, style = _SOCKETS[frame.hears]
    counts = f"{len(overview.running)} running, {len(overview.waiting)} waiting"
    return [first, _line(frame, counts, (f"; {words}" if words else "", style)), Text("")]


def _memory(memory: Memory, name: int, frame: Frame) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    size = f"{memory.used / _GB:.1f} of {memory.total / _GB:.1f} GB"
    bar = max(4, min(_BAR_WIDTH, frame.width - name - len(size) - 3))
    table.add_column(width=name, no_wrap=True, overflow="ellipsis")
    table.add_column(width=bar)
    table.add_column(no_wrap=True, overflow="ellipsis")
    style = "red" if memory.part > 0.95 else "yellow" if memory.part > 0.85 else "green"
    table.add_row(_plain(memory.name), gauge(memory.part, style, bar), size)
    return table


def gauge(part: float, style: str, width: int) -> Text:
    """Draw a bar that can be read without colours too."""
    full = round(part * width)
    return Text.assemble((drawable("━" * full), style), (drawable("─" * (width - full)), "dim"))


# --- What runs -------------------------------------------------------------------------------------------------------


def _running_lines(overview: Overview, frame: Frame) -> list[RenderableType]:
    if not overview.known:
        return []
    if not overview.running:
        return [Text(""), _line(frame, ("nothing runs", "dim"))]
    return [part for prompt in overview.running for part in (Text(""), *_running(prompt, frame))]


def _running(prompt: Running, frame: Frame) -> list[RenderableType]:
    took = (
        "" if prompt.at_least and prompt.seconds < 1 else ("over " if prompt.at_least else "") + clock(prompt.seconds)
    )
    who = "" if frame.narrow else f" of client {short(prompt.client)}" if prompt.client else " of a client without id"
    first = _line(
        frame,
        ("running ", "bold cyan"),
        (_plain(short(prompt.prompt_id)), "bold"),
        _plain(who),
        (f"  {took}", "dim"),
    )
    lines: list[RenderableType] = [first, _line(frame, "  ", _plain(prompt.summary))]
    if prompt.progress is None:
        return [*lines, _line(frame, (f"  {UNTOLD}", "dim"))]
    table = Table.grid(padding=(0, 1))
    percent = f"{int(prompt.progress * 100)}%"
    doing = " ".join(
        part for part in (prompt.node or ("sampler" if prompt.told_by == "log" else ""), prompt.step) if part
    )
    doing += " (by the log)" if prompt.told_by == "log" and not frame.narrow else ""
    name = max(8, min(len(doing), frame.width - 20))
    table.add_column(width=1)
    table.add_column(width=name, no_wrap=True, overflow="ellipsis")
    width = max(4, min(_BAR_WIDTH, frame.width - name - 9))
    table.add_column(width=width)
    table.add_column(width=4, justify="right")
    table.add_row("", _plain(doing), gauge(prompt.progress, "cyan", width), percent)
    return [*lines, table]


# --- What waits, what ended, what was logged -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Section:
    """Lines under a title; when some do not fit, the first are shown, or the last.

    Attributes:
        count: How many there are, with those that could not be shown anyway.
    """

    title: Text
    lines: Sequence[RenderableType]
    count: int
    last: bool = False


def _sections(overview: Overview, frame: Frame) -> list[_Section]:
    count = len(overview.waiting)
    waiting = [_waiting(place, prompt, frame) for place, prompt in enumerate(overview.waiting[: frame.height], 1)]
    ended = [_ended(prompt, frame) for prompt in overview.ended]
    logged = [_line(frame, (f"  {_plain(line)}", "dim")) for line in overview.lines]
    found = (
        _Section(_line(frame, (f"waiting: {count}", "bold")), waiting, count),
        _Section(_line(frame, ("ended, newest first", "bold")), ended, len(ended)),
        _Section(_line(frame, ("log", "bold")), logged, len(logged), last=True),
    )
    return [section for section in found if section.lines]


def _fitted(sections: Sequence[_Section], room: int | None) -> Iterable[RenderableType]:
    """Give the lines that fit: each section gets one more in turn, until there is no room."""
    lengths = [len(section.lines) for section in sections]
    if room is None:
        counts = [
            min(length, _LOGGED) if section.last else length for section, length in zip(sections, lengths, strict=True)
        ]
    else:
        counts = _shares(lengths, room)
    for section, count in zip(sections, counts, strict=True):
        if not count:
            continue
        yield Text("")
        title, more = section.title.copy(), section.count - count
        if more and not section.last:
            title.append(f" ({count} shown)", "dim")
        yield title
        yield from section.lines[-count:] if section.last else section.lines[:count]


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """Share lines out, the first section first; one that is shown costs two lines more, a blank one and its title."""
    counts = [0] * len(lengths)
    while True:
        given = False
        for number, length in enumerate(lengths):
            cost = 1 if counts[number] else 3
            if counts[number] < length and room >= cost:
                counts[number] += 1
                room -= cost
                given = True
        if not given:
            return counts


def _waiting(place: int, prompt: Waiting, frame: Frame) -> Text:
    who = "" if frame.narrow else f"{short(prompt.client or ''):<8} "
    return _line(
        frame,
        (f"{place:>4} ", "dim"),
        _plain(short(prompt.prompt_id)),
        " ",
        (_plain(who), "dim"),
        _plain(prompt.summary),
    )


def _ended(prompt: Ended, frame: Frame) -> Text:
    state, style = _STATES.get(prompt.state, (prompt.state, ""))
    at = "" if prompt.ended_at is None or frame.narrow else time.strftime("%H:%M:%S ", time.localtime(prompt.ended_at))
    took = "" if prompt.duration is None else f"{prompt.duration:.1f} s"
    what = prompt.note or ", ".join(prompt.files) or "no files"
    return _line(
        frame,
        "  ",
        (f"{state:<7} ", style),
        (at, "dim"),
        _plain(short(prompt.prompt_id)),
        f" {took:>7} ",
        _plain(" ".join(what.split())),
    )


def _plain(text: str) -> str:
    """Give a text of the server's as one line that orders the terminal nothing."""
    return printable(text).replace("\n", " ")


def clock(seconds: float) -> str:
    """Write a time as ``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _line(frame: Frame, *parts: str | tuple[str, str]) -> Text:
    """Make one line; where the height is limited, what is too long is cut."""
    text = Text.assemble(*parts)
    if frame.height is not None:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _dimmed(part: RenderableType) -> RenderableType:
    if isinstance(part, Text):
        part = part.copy()
        part.stylize("dim")
    return part

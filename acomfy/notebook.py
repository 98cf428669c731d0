"""Show in a notebook what a client does: its results, and how its prompts go.

::

    from acomfy.notebook import progress, show

    async with progress(client):
        result = await client.run(workflow)
    await show(result)

A `Result` that ends a cell shows what it has here: streamed pictures and texts; files stand on the server, and `show`
reads them. It needs IPython, which every notebook has; with ipywidgets, the bars are a widget.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from .client import Client
from .errors import AcomfyError
from .markup import Shown, bars, gallery
from .result import Output, Result
from .watching import Screen, Watch, name_of, under_way, watching

_FRAME_TIME = 0.25
_ROWS = 12


async def show(what: Result | Output | Iterable[Output], *, preview: str | None = "webp;80") -> None:
    """Show outputs below the cell: pictures, films, sounds, texts; of all else the name.

    Args:
        preview: How pictures are asked for, see `Output.read`; None is as they are. They arrive sooner as previews.

    Raises:
        ImportError: There is no IPython.
    """
    outputs = [what] if isinstance(what, Output) else list(what)
    shown = await asyncio.gather(*(_fetched(output, preview) for output in outputs))
    _display(gallery(shown))


async def _fetched(output: Output, preview: str | None) -> Shown:
    """Read what can be shown of an output; of one that cannot be read, say so."""
    plain = output.shown()
    if output.kind not in ("image", "video", "audio"):
        return plain
    asked = preview if output.kind == "image" and not output.animated else None
    try:
        data = await output.read(preview=asked)
    except AcomfyError as error:
        return Shown(plain.caption, plain.name, plain.media_type, text=str(error))
    media_type = output.media_type if asked is None else f"image/{asked.partition(';')[0]}"
    return Shown(plain.caption, plain.name, media_type, data)


@asynccontextmanager
async def progress(client: Client, *, total: int | None = None) -> AsyncGenerator[None, None]:
    """Show bars for the client's jobs below the cell while the block runs.

    Args:
        total: How many prompts there will be; None counts those that were seen.

    Raises:
        ImportError: There is no IPython.
    """
    watch, place = Watch(name_of), _place()

    def draw() -> None:
        jobs = under_way(client)
        count = watch.ended + len(jobs) if total is None else total
        place.show(_bars(watch.screen(jobs, watch.ended, count, _ROWS, time.monotonic())))

    try:
        async with watching(client, watch, draw, _FRAME_TIME):
            yield
    finally:
        draw()


def _bars(screen: Screen) -> str:
    rows: list[tuple[str, str, float | None]] = [(row.name, row.doing, row.progress) for row in screen.rows]
    if screen.more:
        rows.append(("", f"and {screen.more} more", None))
    return bars([*rows, ("all", f"{screen.done} of {screen.total}", screen.progress)])


class _Place(Protocol):
    """Somewhere below the cell, whose HTML can be changed."""

    def show(self, html: str) -> None: ...


class _Widget:
    def __init__(self) -> None:
        self._widget = import_module("ipywidgets").HTML()
        import_module("IPython.display").display(self._widget)

    def show(self, html: str) -> None:
        self._widget.value = html


class _Display:
    def __init__(self) -> None:
        self._display: Any = import_module("IPython.display")
        self._handle = self._display.display(self._display.HTML(""), display_id=True)

    def show(self, html: str) -> None:
        if self._handle is not None:  # outside of a notebook there is none
            self._handle.update(self._display.HTML(html))


def _place() -> _Place:
    return _Widget() if find_spec("ipywidgets") else _Display()


def _display(html: str) -> None:
    display: Any = import_module("IPython.display")
    display.display(display.HTML(html))

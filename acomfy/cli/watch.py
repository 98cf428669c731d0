"""``acomfy watch``: a server at a glance, live."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..outputs import FileReference
from ..overview import Overview
from .arguments import server_url
from .blocks import half_blocks
from .classes import Server
from .ends import accept_any_text, in_words
from .observer import Observer
from .signals import Interrupts
from .views import Frame, draw, picture_size

EXIT_CODES = (
    "Exit codes: 0 shown; 2 the command line is wrong; 3 the server cannot be reached or refuses, when it is shown "
    "once (else it is waited for)."
)

_FRAME_TIME = 0.25


def watch(
    server: Server = None,
    once: Annotated[
        bool, typer.Option("--once", help="Show it once and end; done anyway where the output is no terminal.")
    ] = False,
) -> None:
    """Watch a server: what runs, what waits, what ended, its memory, its log; Ctrl-C leaves.

    How far a prompt is, and its previews, are told by ComfyUI to the client that submitted it alone; of a prompt that
    was submitted without client id to everybody. Of others, the server's log tells the steps of samplers.
    """
    with in_words():
        url = server_url(server)
    accept_any_text()
    console = Console(highlight=False)
    if once or not console.is_terminal or console.is_dumb_terminal:
        with in_words():
            asyncio.run(_once(url, console))
    else:
        asyncio.run(_live(url, console))


async def _once(url: str, console: Console) -> None:
    observer = Observer(url)
    try:
        await observer.look()
        console.print(draw(observer.overview(), Frame(observer.url, "open", console.width, None)))
    finally:
        await observer.aclose()


async def _live(url: str, console: Console) -> None:
    """Draw until Ctrl-C."""
    observer, pictures = Observer(url), Pictures(console)
    live = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
    with Interrupts(on_second=lambda: _restore(console)) as interrupts:
        try:
            async with observer.watching():
                with live:
                    shown: object = None
                    while not interrupts.first.is_set():
                        overview = observer.overview()
                        await pictures.follow(overview, observer)
                        frame = Frame(observer.url, observer.hears, *console.size)
                        if (new := (overview.to_the_second(), frame, id(pictures.drawn))) != shown:
                            shown = new
                            live.update(draw(overview, frame, pictures.drawn), refresh=True)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(_FRAME_TIME):
                                await interrupts.first.wait()
        finally:
            await observer.aclose()


def _restore(console: Console) -> None:
    console.set_alt_screen(False)
    console.show_cursor(True)
    sys.stdout.flush()


class Pictures:
    """The picture beside an overview: the newest preview of what runs, else the newest result.

    Attributes:
        drawn: The picture as it is drawn; None when there is none, or the terminal cannot show any.
    """

    def __init__(self, console: Console) -> None:
        self.drawn: Text | None = None
        self._console = console
        self._shows = not console.no_color and console.color_system in ("truecolor", "256", "windows")
        self._shows = self._shows and console.encoding.startswith("utf")
        self._source: FileReference | None = None
        self._data: bytes | memoryview | None = None
        self._caption = ""
        self._size = (0, 0)
        self._fetching: asyncio.Task[bytes | None] | None = None

    async def follow(self, overview: Overview, observer: Observer) -> None:
        """Draw the picture of an overview, if it is another one, or the terminal has another size."""
        if not self._shows:
            return
        size = picture_size(*self._console.size)
        if overview.preview is not None:
            self._source, changed = None, overview.preview is not self._data
            self._data, self._caption = overview.preview, "preview"
        else:
            changed = self._fetch(next((ended.picture for ended in overview.ended if ended.picture), None), observer)
        if changed or size != self._size:
            self._size = size
            drawn = None if self._data is None else await asyncio.to_thread(half_blocks, self._data, *size)
            self.drawn = drawn and drawn.append(f"\n{self._caption}", "dim")

    def _fetch(self, file: FileReference | None, observer: Observer) -> bool:
        """Get a result's picture beside the drawing; tell whether one came."""
        if self._fetching is not None and self._fetching.done():
            self._data, self._fetching, self._caption = self._fetching.result(), None, "newest result"
            return True
        if file is not None and self._fetching is None and file != self._source:
            self._source = file
            self._fetching = asyncio.create_task(observer.picture(file))
        return False

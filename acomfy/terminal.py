"""Show in a terminal how the prompts of a client go: a bar for each that runs, a line for each that waits.

::

    from acomfy.terminal import progress

    async with acomfy.Client() as client, progress(client):
        results = await asyncio.gather(*(client.run(variant) for variant in variants))

It needs the extra ``cli`` (``pip install "acomfy[cli]"``).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .client import Client
from .job import Job
from .watching import Screen, Watch, name_of, under_way, watching

_FRAME_TIME = 0.1


def draw(screen: Screen) -> RenderableType:
    """Lay a screen out for any width."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=4)
    table.add_column(ratio=5)
    table.add_column(justify="right", width=4)
    table.add_column(justify="right", width=8)
    for row in screen.rows:
        style = "" if row.progress is not None else "dim"
        bar = Text("") if row.progress is None else _bar(row.progress, "cyan")
        table.add_row(Text(row.name, style), Text(row.doing, style), bar, _percent(row.progress), _clock(row.left))
    if screen.more:
        table.add_row(Text("", "dim"), Text(f"and {screen.more} more", "dim"))
    all_of_them = Text(f"{screen.done} of {screen.total}", "bold")
    table.add_row(Text("all", "bold"), all_of_them, _bar(screen.progress, "green"), _percent(screen.progress),
                  _clock(screen.left))  # fmt: skip
    return Group(Text(""), table)


def _bar(progress: float, style: str) -> ProgressBar:
    return ProgressBar(total=1.0, completed=progress, complete_style=style, finished_style=style)


def _percent(progress: float | None) -> Text:
    return Text("" if progress is None else f"{int(progress * 100)}%")


def _clock(seconds: float | None) -> Text:
    if seconds is None:
        return Text("")
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return Text(f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}", "dim")


@asynccontextmanager
async def progress(
    client: Client,
    *,
    total: int | None = None,
    done: Callable[[], int] | None = None,
    name: Callable[[Job], str] | None = None,
    console: Console | None = None,
) -> AsyncGenerator[Console, None]:
    """Draw bars for the client's jobs while the block runs, and take them away at its end.

    Lines that are printed meanwhile, on the console that it gives or by ``print``, appear above the bars. Where the
    output is no terminal, nothing is drawn.

    Args:
        total: How many prompts there will be; None counts those that were seen.
        done: Gives how many of them are done; None counts those that were seen to end.
        name: Gives the name of a job; None is its index in the input of `Client.map`, or the begin of its prompt_id.
        console: Where to draw; None is standard output.
    """
    console = console or Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield console
        return
    watch = Watch(name or name_of)

    def picture() -> RenderableType:
        jobs = under_way(client)
        ended = watch.ended if done is None else done()
        count = ended + len(jobs) if total is None else total
        return draw(watch.screen(jobs, ended, count, max(1, console.height - 4), time.monotonic()))

    # Composed anew also when a line is printed above it, so that what is told there has left its row.
    with Live(console=console, get_renderable=picture, auto_refresh=False, transient=True) as live:
        async with watching(client, watch, live.refresh, _FRAME_TIME):
            yield console

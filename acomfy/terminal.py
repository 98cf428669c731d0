"""Show in a terminal how the prompts of a client go: a bar for each that runs, a line for each that waits.

::

    from acomfy.terminal import progress

    async with acomfy.Client() as client, progress(client):
        results = await asyncio.gather(*(client.run(variant) for variant in variants))

It needs the extra ``cli`` (``pip install "acomfy[cli]"``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .client import Client
from .errors import AcomfyError
from .events import Executing, ExecutionStart, Progress
from .job import Job
from .workflow import title_of

_FRAME_TIME = 0.1
_POSITION_TIME = 0.5
_MIN_PROGRESS = 0.02  # below this, an estimate of the time left would jump about


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of one prompt.

    Attributes:
        doing: Its place in the queue, or the node that runs with its step.
        progress: 0 to 1; None while it waits.
        left: Seconds left; None when nobody can say.
    """

    name: str
    doing: str
    progress: float | None = None
    left: float | None = None


@dataclass(frozen=True, slots=True)
class Screen:
    """What is shown of a run.

    Attributes:
        more: How many prompts under way are not shown.
        progress: 0 to 1, over all prompts of the run.
    """

    rows: tuple[Row, ...]
    more: int
    done: int
    total: int
    progress: float
    left: float | None


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


def time_left(progress: float, elapsed: float) -> float | None:
    """Estimate the seconds left from those that the part so far took."""
    return elapsed * (1 - progress) / progress if progress >= _MIN_PROGRESS else None


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
    watch = Watch(name or _name_of)

    def picture() -> RenderableType:
        jobs = _under_way(client)
        ended = watch.ended if done is None else done()
        count = ended + len(jobs) if total is None else total
        return draw(watch.screen(jobs, ended, count, max(1, console.height - 4), time.monotonic()))

    # Composed anew also when a line is printed above it, so that what is told there has left its row.
    with Live(console=console, get_renderable=picture, auto_refresh=False, transient=True) as live:
        tasks = [asyncio.create_task(_refresh(live, client, watch)), asyncio.create_task(_look(client, watch))]
        try:
            yield console
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await watch.aclose()


class Watch:
    """Know of every job under way what its row shows; its time is given, so that it can be tested without a clock.

    Args:
        name: Gives the name of a job.

    Attributes:
        ended: How many of the jobs that it followed are done.
    """

    def __init__(self, name: Callable[[Job], str]) -> None:
        self.ended = 0
        self._name = name
        self._titles: dict[Job, dict[str, str]] = {}
        self._starts: dict[Job, float] = {}
        self._steps: dict[Job, Progress] = {}
        self._places: dict[Job, int | None] = {}
        self._followers: dict[Job, asyncio.Task[None]] = {}
        self._began: float | None = None

    def follow(self, jobs: Iterable[Job]) -> None:
        """Listen to jobs that are new, and forget those that are done."""
        jobs = set(jobs)
        for job in jobs - self._followers.keys():
            self._followers[job] = asyncio.ensure_future(self._follow(job))
        for job in self._followers.keys() - jobs:
            del self._followers[job]
            self.ended += job.done()
            self._forget(job)

    def _forget(self, job: Job) -> None:
        for known in (self._starts, self._steps, self._places, self._titles):
            known.pop(job, None)

    async def _follow(self, job: Job) -> None:
        async for event in job.events():
            match event:
                case ExecutionStart():
                    self._starts[job] = time.monotonic()
                    self._began = self._began or self._starts[job]
                case Progress():
                    self._steps[job] = event
                case Executing():
                    self._steps.pop(job, None)

    async def look_at_queue(self, jobs: Iterable[Job]) -> None:
        """Ask for the places of jobs that wait."""
        for job in jobs:
            if job.state == "pending":
                with suppress(AcomfyError):
                    self._places[job] = await job.position()

    def screen(self, jobs: Iterable[Job], done: int, total: int, room: int, now: float) -> Screen:
        """Compose what is shown, in at most `room` rows: what runs first, then what waits, by its place."""
        under_way = sorted(jobs, key=self._order)
        progress = (done + sum(job.progress for job in under_way)) / max(total, 1)
        left = None if self._began is None else time_left(progress, now - self._began)
        rows = tuple(self._row(job, now) for job in under_way[:room])
        return Screen(rows, len(under_way) - len(rows), done, total, progress, left)

    def _order(self, job: Job) -> tuple[Any, ...]:
        place = self._places.get(job)
        return job.state != "in_progress", place is None, place or 0, job.index or 0

    def _row(self, job: Job, now: float) -> Row:
        name = self._name(job)
        if job.state != "in_progress":
            return Row(name, _waiting(self._places.get(job)))
        started = self._starts.get(job)
        left = None if started is None else time_left(job.progress, now - started)
        return Row(name, self._doing(job), job.progress, left)

    def _doing(self, job: Job) -> str:
        node = job.node
        if node is None:
            return "starting"
        step = self._steps.get(job)
        if job not in self._titles:
            self._titles[job] = titles(orjson.loads(job.prompt.graph))
        title = self._titles[job].get(node, node)
        return title if step is None or step.max <= 1 else f"{title} {step.value:g}/{step.max:g}"

    async def aclose(self) -> None:
        """Stop listening."""
        for task in self._followers.values():
            task.cancel()
        await asyncio.gather(*self._followers.values(), return_exceptions=True)


def _waiting(place: int | None) -> str:
    """Say where in the queue a prompt is: the place counts those before it, the running one included."""
    if place is None:
        return "being sent"
    return "next" if place <= 1 else f"waiting, {place} ahead"


async def _refresh(live: Live, client: Client, watch: Watch) -> None:
    while True:
        watch.follow(_under_way(client))
        live.refresh()
        await asyncio.sleep(_FRAME_TIME)


async def _look(client: Client, watch: Watch) -> None:
    while True:
        await watch.look_at_queue(_under_way(client))
        await asyncio.sleep(_POSITION_TIME)


def _under_way(client: Client) -> list[Job]:
    return [job for job in client.jobs if not job.done()]


def _name_of(job: Job) -> str:
    return f"#{job.index}" if job.index is not None else job.prompt_id[:8]


def titles(graph: Mapping[str, Any]) -> dict[str, str]:
    """Name every node for a person: its title, else its class."""
    return {node_id: title_of(node) or node["class_type"] for node_id, node in graph.items()}

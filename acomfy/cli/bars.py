"""Bars in a terminal: one for each prompt that runs or waits, and one for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..client import Client
from ..errors import AcomfyError
from ..events import Executing, ExecutionStart, Progress
from ..job import Job
from ..workflow import Workflow, title_of
from .reports import Finished, Summary, closing_words, name_of, outcome, state_of

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


class Watch:
    """Know of every job under way what its row shows; its time is given, so that it can be tested without a clock.

    Args:
        name: Gives the name of a job.
        titles: Titles of the workflow's nodes by id.
    """

    def __init__(self, name: Callable[[Job], str], titles: dict[str, str]) -> None:
        self._name = name
        self._titles = titles
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
            for known in (self._starts, self._steps, self._places):
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
        progress = (done + sum(job.progress for job in under_way)) / total
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
        title = self._titles.get(node, node)
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


class Terminal:
    """Report a run in a terminal: bars while it runs, and a line for every prompt that ended above them."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def finished(self, prompt: Finished, summary: Summary) -> None:
        line = Text.assemble(
            (f"{state_of(prompt):<6} ", "green" if prompt.error is None else "bold red"),
            (name_of(prompt.index, prompt.seed), "bold"),
            "  ",
            outcome(prompt, repeats=summary.repeats(prompt)),
        )
        self._console.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(Text(f"acomfy: {text}", "yellow"), soft_wrap=True)

    def closed(self, summary: Summary) -> None:
        if words := closing_words(summary):
            self._console.print(Text(words, "bold"), soft_wrap=True)

    @asynccontextmanager
    async def watching(
        self, client: Client, workflow: Workflow, summary: Summary, seeds: Sequence[int | None]
    ) -> AsyncGenerator[None, None]:
        """Draw bars until the block is left."""
        watch = Watch(lambda job: _job_name(job, seeds), titles(workflow))

        def picture() -> RenderableType:
            room = max(1, self._console.height - 4)
            done, total = len(summary.finished), summary.total
            return draw(watch.screen(_under_way(client), done, total, room, time.monotonic()))

        # Composed anew also when a line is printed above it, so that what is told there has left its row.
        with Live(console=self._console, get_renderable=picture, auto_refresh=False, transient=True) as live:
            tasks = [asyncio.create_task(_refresh(live, client, watch)), asyncio.create_task(_look(client, watch))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await watch.aclose()

    def abandon(self) -> None:
        self._console.show_cursor(True)  # the bars hide it


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


def _job_name(job: Job, seeds: Sequence[int | None]) -> str:
    index = job.index or 0
    return name_of(index, seeds[index] if index < len(seeds) else None)


def titles(workflow: Workflow) -> dict[str, str]:
    """Name every node for a person: its title, else its class."""
    return {node_id: title_of(node) or node["class_type"] for node_id, node in workflow.items()}

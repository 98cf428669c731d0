"""Know how the prompts of a client go, for those who show it: in a terminal, in a notebook."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson

from .client import Client
from .errors import AcomfyError
from .events import Executing, ExecutionStart, Progress
from .job import Job
from .workflow import title_of

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


def time_left(progress: float, elapsed: float) -> float | None:
    """Estimate the seconds left from those that the part so far took."""
    return elapsed * (1 - progress) / progress if progress >= _MIN_PROGRESS else None


class Watch:
    """Know of every job under way what its row shows; its time is given, so that it can be tested without a clock.

    Args:
        name: Gives the name of a job.

    Attributes:
        ended: How many of the jobs that it counts are done.
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

    def count(self, job: Job) -> None:
        """Count a job in, and the end of it."""
        job.when_done(self._count_end)

    def _count_end(self, job: Job) -> None:
        self.ended += 1

    def follow(self, jobs: Iterable[Job]) -> None:
        """Listen to jobs that are new, and forget those that are done."""
        jobs = set(jobs)
        for job in jobs - self._followers.keys():
            self._followers[job] = asyncio.ensure_future(self._follow(job))
        for job in self._followers.keys() - jobs:
            del self._followers[job]
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
        ordered = sorted(jobs, key=self._order)
        progress = (done + sum(job.progress for job in ordered)) / max(total, 1)
        left = None if self._began is None else time_left(progress, now - self._began)
        rows = tuple(self._row(job, now) for job in ordered[:room])
        return Screen(rows, len(ordered) - len(rows), done, total, progress, left)

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


@asynccontextmanager
async def watching(
    client: Client, watch: Watch, draw: Callable[[], object], every: float
) -> AsyncGenerator[None, None]:
    """Follow and count the client's jobs while the block runs, and have them drawn every so many seconds."""
    for job in under_way(client):
        watch.count(job)
    stop = client.on_job(watch.count)
    tasks = [
        asyncio.create_task(_refresh(client, watch, draw, every)),
        asyncio.create_task(_keep_places(client, watch)),
    ]
    try:
        yield
    finally:
        stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await watch.aclose()


async def _refresh(client: Client, watch: Watch, draw: Callable[[], object], every: float) -> None:
    while True:
        watch.follow(under_way(client))
        draw()
        await asyncio.sleep(every)


async def _keep_places(client: Client, watch: Watch) -> None:
    """Ask for the places of jobs that wait, again and again, until cancelled."""
    while True:
        await watch.look_at_queue(under_way(client))
        await asyncio.sleep(_POSITION_TIME)


def under_way(client: Client) -> list[Job]:
    """Give the jobs that are not done."""
    return [job for job in client.jobs if not job.done()]


def name_of(job: Job) -> str:
    """Name a job for a person: by its index in the input of `Client.map`, or the begin of its prompt_id."""
    return f"#{job.index}" if job.index is not None else job.prompt_id[:8]


def titles(graph: Mapping[str, Any]) -> dict[str, str]:
    """Name every node for a person: its title, else its class."""
    return {node_id: title_of(node) or node["class_type"] for node_id, node in graph.items()}

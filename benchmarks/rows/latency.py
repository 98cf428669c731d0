"""From the server's last frame of a prompt to its caller's resumed ``await``.

The server stamps the moment before it writes the last frames, after a pause in which the client takes all others; both
processes read the same monotonic clock. The pictures are streamed, so that nothing is fetched in between.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from ..control import begin, seen, tell
from ..graphs import workflow
from ..report import Result, Row, compared, interleaved
from ..scale import KB, Scale
from ..sides import Connected
from ..worker import Server, Worker

FAMILY = "latency"
_RATE, _PREVIEW = 1_000, 10 * KB
_PAUSE, _MARGIN = 0.002, 10


async def resumed(connected: Connected, *, jobs: int, others: int, storm: int) -> Result:
    """Run jobs while so many others wait, of which one ends for each that is submitted; tell when each was resumed.

    A few more are run before and after, which are not counted: of all these others the POSTs or the ends come at once.

    Args:
        storm: Bytes of the previews of one more that rain down meanwhile; 0 for none.
    """
    graph = workflow(stream=True)
    times: list[tuple[str, int]] = []
    left = iter(range(_posts(jobs, others)))

    async def fetch_in_turn() -> None:
        for _ in left:
            prompt_id, _ = await connected.fetch(graph)
            times.append((prompt_id, time.monotonic_ns()))

    stormy: list[asyncio.Task[tuple[str, bytes]]] = await _begin_storm(connected, storm) if storm else []
    await asyncio.gather(*(fetch_in_turn() for _ in range(1 + others)))
    if storm:
        await asyncio.to_thread(tell, connected.url, "storm", rate=0)
        await asyncio.wait(stormy)
    return dict(times[_MARGIN : _MARGIN + jobs])


def _posts(jobs: int, others: int) -> int:
    return _MARGIN + jobs + _MARGIN + others


async def _begin_storm(connected: Connected, size: int) -> list[asyncio.Task[tuple[str, bytes]]]:
    """Submit a prompt whose previews rain down until the storm is ended; give the task that waits for it."""
    stormy = [asyncio.create_task(connected.fetch(workflow(stream=True)))]
    await asyncio.to_thread(_raise_storm, connected.url, size)
    return stormy


def _raise_storm(url: str, size: int) -> None:
    while not seen(url)["waiting"]:
        time.sleep(0.01)
    tell(url, "storm", rate=_RATE, bytes=size)


def _round(worker: Worker, url: str, *, jobs: int, others: int = 0, storm: int = 0) -> Result:
    stormy = int(storm > 0)
    posts, backlog = _posts(jobs, others) + stormy, others + stormy
    begin(url, jobs=posts, backlog=backlog, pause=_PAUSE, stream=True, picture=KB)
    times, sent = worker.run(resumed, jobs=jobs, others=others, storm=storm), seen(url)["sent"]
    waits = sorted((times[prompt_id] - sent[prompt_id]) / 1000 for prompt_id in times)
    return {"p50": statistics.median(waits), "p99": waits[int(len(waits) * 0.99)]}


def rows(scale: Scale) -> Iterator[Row]:
    """Measure on an idle socket, beside prompts that wait, and while the previews of another prompt rain down.

    The growth is that with ten times as many others, or with previews ten times as large.
    """
    others = max(1, scale.live // 100)
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "idle": ({}, {"others": 10}),
        f"{others} others wait": ({"others": others}, {"others": 10 * others}),
        f"{_RATE:,} previews/s of {_PREVIEW // KB} KB": ({"storm": _PREVIEW}, {"storm": 10 * _PREVIEW}),
    }
    with Server() as server, Worker("acomfy", server.url) as ours, Worker("floor", server.url) as theirs:
        for when, (case, tenfold) in cases.items():
            arguments: dict[str, Any] = {"url": server.url, "jobs": scale.latency_jobs}
            pairs = interleaved(
                partial(_round, ours, **arguments, **case), partial(_round, theirs, **arguments, **case), scale
            )
            grown = _round(ours, **arguments, **tenfold)
            for key in ("p50", "p99"):
                row = compared(FAMILY, f"last frame to await, {when}, {key}", "us", pairs, key, "floor")
                yield replace(row, growth=grown[key] / row.value)

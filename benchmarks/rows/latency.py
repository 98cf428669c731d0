"""From the server's last frame of a prompt to its caller's resumed ``await``.

The server stamps the moment before it writes the last frames, after a pause in which the client takes all others; both
processes read the same monotonic clock. The pictures are streamed, so that nothing is fetched in between.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..control import begin, seen, tell
from ..graphs import workflow
from ..report import Result, Row, compared, interleaved
from ..scale import KB, Scale
from ..sides import Connected
from ..worker import Server, Worker

FAMILY = "latency"
_STORM = {"rate": 1_000, "bytes": 30 * KB}
_PAUSE = 0.002


async def resumed(connected: Connected, *, jobs: int, storm: bool) -> Result:
    """Run jobs one after the other; tell when the await of each was resumed."""
    graph = workflow(stream=True)
    times: dict[str, int] = {}
    stormy: list[asyncio.Task[tuple[str, bytes]]] = await _begin_storm(connected) if storm else []
    for _ in range(jobs):
        prompt_id, _ = await connected.fetch(graph)
        times[prompt_id] = time.monotonic_ns()
    if storm:
        await asyncio.to_thread(tell, connected.url, "storm", rate=0)
        await asyncio.wait(stormy)
    return times


async def _begin_storm(connected: Connected) -> list[asyncio.Task[tuple[str, bytes]]]:
    """Submit a prompt whose previews rain down until the storm is ended; give the task that waits for it."""
    stormy = [asyncio.create_task(connected.fetch(workflow(stream=True)))]
    await asyncio.to_thread(_raise_storm, connected.url)
    return stormy


def _raise_storm(url: str) -> None:
    while not seen(url)["waiting"]:
        time.sleep(0.01)
    tell(url, "storm", **_STORM)


def _round(worker: Worker, url: str, *, jobs: int, storm: bool) -> Result:
    begin(url, jobs=jobs + storm, backlog=int(storm), pause=_PAUSE, stream=True, picture=KB)
    times, sent = worker.run(resumed, jobs=jobs, storm=storm), seen(url)["sent"]
    waits = sorted((times[prompt_id] - sent[prompt_id]) / 1000 for prompt_id in times)
    return {"p50": statistics.median(waits), "p99": waits[int(len(waits) * 0.99)]}


def rows(scale: Scale) -> Iterator[Row]:
    """Measure on an idle socket, and while the previews of another prompt rain down."""
    with Server() as server, Worker("acomfy", server.url) as ours, Worker("floor", server.url) as theirs:
        for storm in (False, True):
            arguments: dict[str, Any] = {"url": server.url, "jobs": scale.latency_jobs, "storm": storm}
            pairs = interleaved(partial(_round, ours, **arguments), partial(_round, theirs, **arguments), scale)
            when = f"{_STORM['rate']:,} previews/s of 30 KB" if storm else "idle"
            for key in ("p50", "p99"):
                yield compared(FAMILY, f"last frame to await, {when}, {key}", "us", pairs, key, "floor")

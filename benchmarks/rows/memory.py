"""What a live job takes, and what it costs to make sure of all of them after the connection broke."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterator

import orjson

from acomfy import Job

from ..control import begin, seen, tell
from ..graphs import workflow
from ..report import Result, Row
from ..scale import Scale
from ..sides import Connected
from ..worker import Server, Task, Worker

FAMILY = "memory"
_AT_ONCE = 500
_QUIET = 0.05

_jobs: list[Job] = []


async def submit(connected: Connected, *, jobs: int) -> Result:
    """Submit so many jobs, all of which wait on; give the bytes that each takes above its own workflow."""
    if connected.client is None:
        raise AssertionError("only acomfy has jobs")
    client, graph = connected.client, workflow(stream=False)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    while len(_jobs) < jobs:
        _jobs.extend(await asyncio.gather(*(client.submit(graph) for _ in range(min(_AT_ONCE, jobs - len(_jobs))))))
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"bytes": taken / jobs - len(orjson.dumps(graph))}


async def lose_socket(connected: Connected) -> Result:
    """Break the socket, and nothing else; give the seconds until the client knows that nothing happened."""
    start = time.perf_counter()
    await asyncio.to_thread(_cut_until_queue_is_read, connected.url)
    await _until_quiet()
    return {"seconds": time.perf_counter() - start - _QUIET}


def _cut_until_queue_is_read(url: str) -> None:
    before = seen(url)["requests"].get("GET /queue", 0)
    tell(url, "cut")
    while seen(url)["requests"].get("GET /queue", 0) == before:
        time.sleep(0.01)


async def _until_quiet() -> None:
    busy = True
    while busy:
        cpu = time.process_time()
        await asyncio.sleep(_QUIET)
        busy = time.process_time() - cpu > _QUIET / 10


async def miss_ends(connected: Connected) -> Result:
    """Break the socket, and have all jobs end before there is another; give the seconds until all have a result."""
    start = time.perf_counter()
    await asyncio.to_thread(tell, connected.url, "cut", ends=True)
    await asyncio.gather(*_jobs)
    return {"seconds": time.perf_counter() - start}


def rows(scale: Scale) -> Iterator[Row]:
    """Measure with so many live jobs, and with a tenth of them for the growth."""
    few, many = _measured(scale.live // 10), _measured(scale.live)
    for (name, unit, wanted), value in many.items():
        growth = value / few[name, unit, wanted]
        yield Row(FAMILY, f"{name}, {scale.live:,} live jobs", value, unit, growth=growth, wanted=wanted)


def _measured(jobs: int) -> dict[tuple[str, str, str], float]:
    """Give values by name, unit and what is wanted."""
    with Server() as server, Worker("acomfy", server.url) as worker:
        begin(server.url, jobs=2 * jobs, backlog=2 * jobs)
        found = {("a live job above its workflow", "B", "<= 4096"): worker.run(submit, jobs=jobs)["bytes"]}
        tasks: dict[str, Task] = {"the socket broke": lose_socket, "and all ended unheard": miss_ends}
        for what, task in tasks.items():
            before = _requests(server.url)
            found[f"{what}: until all is known", "s", ""] = worker.run(task)["seconds"]
            found[f"{what}: requests", "", ""] = _requests(server.url) - before
        return found


def _requests(url: str) -> float:
    """Count the requests that the client made."""
    return float(sum(count for route, count in seen(url)["requests"].items() if "benchmark" not in route))

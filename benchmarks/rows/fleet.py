"""A fleet: what the way over a broker adds to a job, and what one broker, one submitter and many workers bear.

The broker, the workers and the ComfyUI servers (load servers that work off one prompt after the other, each as long as
its ``seed`` says in milliseconds) are processes of their own; the submitter is this one. All of them share the machine,
so that jobs a second say little of larger ones: the CPU that each of them takes for a job says more.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import acomfy
from acomfy.fleet import Fleet, Keeping
from acomfy.fleet import Worker as FleetWorker
from acomfy.fleet.local import LocalBroker, LocalCluster

from ..control import begin
from ..graphs import SAMPLER, Graph, workflow
from ..report import Row
from ..scale import KB, MB, Scale
from ..worker import Process
from .pool import Machines

FAMILY = "fleet"
_IN_FLIGHT = 64
_TICKS = os.sysconf("SC_CLK_TCK")


class Workers(Process):
    """Workers in a process of their own, for so many servers."""

    def __init__(self, nats: list[str], urls: list[str], *, replicas: int = 1, poll: float = 2.0) -> None:
        super().__init__("benchmarks.rows.fleet", ",".join(nats), str(replicas), str(poll), *urls)
        self.hear()

    def cpu(self) -> float:
        """Give the seconds of CPU that it took."""
        self.tell("cpu")
        return float(self.hear())


def _graph(milliseconds: int = 1) -> Graph:
    graph = workflow(stream=True)
    graph[SAMPLER]["inputs"]["seed"] = milliseconds
    return graph


# --- Latency ---------------------------------------------------------------------------------------------------------


async def _latencies(runner: acomfy.Client | Fleet, jobs: int) -> tuple[float, float]:
    """Run jobs one after the other, each with its picture; give the milliseconds that one takes, p50 and p99."""
    times = []
    for _ in range(jobs + 10):
        start = time.perf_counter()
        result = await runner.run(_graph())
        await result.images[0].read()
        times.append((time.perf_counter() - start) * 1000)
    times = sorted(times[10:])
    return statistics.median(times), times[int(len(times) * 0.99)]


async def _latency(scale: Scale) -> Iterator[Row]:
    rows = []
    with Machines(1) as machines:
        async with LocalBroker() as broker:
            with Workers([broker.url], machines.urls):
                async with acomfy.Client(machines.urls[0]) as client, Fleet(broker.url) as fleet:
                    await fleet.wait_ready(workers=1)
                    direct, by_fleet = await _latencies(client, scale.latency_jobs), (0.0, 0.0)
                    by_fleet = await _latencies(fleet, scale.latency_jobs)
    for name, ours, theirs in zip(("p50", "p99"), by_fleet, direct, strict=True):
        rows.append(Row(FAMILY, f"a job of 1 ms and its picture of 1 KB, {name}", ours, "ms", "client", theirs))
    return iter(rows)


# --- Throughput ------------------------------------------------------------------------------------------------------


async def _throughput(
    servers: int, jobs: int, milliseconds: int, in_flight: int, *, processes: int = 1, picture: int = KB
) -> Iterator[Row]:
    """Run many jobs over many servers; give jobs a second, and the CPU of a job at each of the three."""
    with Machines(servers) as machines:
        for url in machines.urls:
            begin(url, picture=picture, stream=True)
        async with LocalBroker() as broker:
            parts = [machines.urls[number::processes] for number in range(processes)]
            workers = [Workers([broker.url], part, poll=10.0) for part in parts]
            try:
                async with Fleet(broker.url) as fleet:
                    await fleet.wait_ready(workers=servers)
                    await _run(fleet, min(jobs, 2 * servers), milliseconds, in_flight)
                    before = [worker.cpu() for worker in workers], cpu_of(broker.pid), time.process_time()
                    start = time.perf_counter()
                    await _run(fleet, jobs, milliseconds, in_flight)
                    took = time.perf_counter() - start
                    after = [worker.cpu() for worker in workers], cpu_of(broker.pid), time.process_time()
            finally:
                for worker in workers:
                    worker.__exit__(None, None, None)
    size = f"{picture // MB} MB" if picture >= MB else f"{picture // KB} KB"
    name = f"{jobs:,} jobs of {milliseconds} ms and {size} on {servers} servers"
    in_workers = (sum(after[0]) - sum(before[0])) / jobs * 1e6
    return iter(
        [
            Row(FAMILY, f"{name}, {in_flight} in flight", jobs / took, "jobs/s"),
            Row(FAMILY, f"{name}: CPU of the submitter", (after[2] - before[2]) / jobs * 1e6, "us/job"),
            Row(FAMILY, f"{name}: CPU of the broker", (after[1] - before[1]) / jobs * 1e6, "us/job"),
            Row(FAMILY, f"{name}: CPU of the workers", in_workers, "us/job"),
        ]
    )


async def _run(fleet: Fleet, jobs: int, milliseconds: int, in_flight: int) -> None:
    async for job in fleet.map((_graph(milliseconds) for _ in range(jobs)), limit=in_flight):
        await (await job).images[0].read()


def cpu_of(pid: int | None) -> float:
    """Give the seconds of CPU that another process took."""
    if pid is None:
        raise AssertionError("the process runs")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


# --- Results ---------------------------------------------------------------------------------------------------------


async def _results(size: int, pictures: int) -> Iterator[Row]:
    """Read large pictures through the broker, and straight from the server."""
    with Machines(1) as machines:
        async with LocalBroker() as broker:
            with Workers([broker.url], machines.urls):
                async with acomfy.Client(machines.urls[0]) as client, Fleet(broker.url) as fleet:
                    await fleet.wait_ready(workers=1)
                    rates = []
                    for runner in (fleet, client):
                        await asyncio.to_thread(begin, machines.urls[0], picture=size, stream=False)
                        rates.append(await _rate(runner, size, pictures))
    name = f"{pictures} pictures of {size // MB or 1} MB, read"
    return iter([Row(FAMILY, name, rates[0], "MB/s", "client", rates[1], rates[0] / rates[1])])


async def _rate(runner: acomfy.Client | Fleet, size: int, pictures: int) -> float:
    results = [await runner.run(_saved()) for _ in range(pictures)]
    start = time.perf_counter()
    for result in results:
        data = await result.images[0].read()
        if len(data) != size:
            raise AssertionError(f"{len(data)} bytes came of {size}")
    return pictures * size / MB / (time.perf_counter() - start)


def _saved() -> Graph:
    graph = workflow(stream=False)
    graph[SAMPLER]["inputs"]["seed"] = 1
    return graph


# --- A cluster -------------------------------------------------------------------------------------------------------


async def _cluster(jobs: int) -> Iterator[Row]:
    """Run jobs over a cluster of three brokers, of which one is killed; give the longest pause between two ends."""
    ends: list[float] = []
    with Machines(4) as machines:
        async with LocalCluster(3) as cluster:
            with Workers(cluster.urls, machines.urls, replicas=3):
                async with Fleet(cluster.urls, keeping=Keeping(replicas=3)) as fleet:
                    await fleet.wait_ready(workers=4)
                    async for job in fleet.map((_graph(10) for _ in range(jobs)), limit=16):
                        await job
                        ends.append(time.perf_counter())
                        if len(ends) == jobs // 3:
                            await cluster.kill(0)
    pauses = [later - sooner for sooner, later in zip(ends, ends[1:], strict=False)]
    name = f"{jobs} jobs on 3 brokers, 1 killed"
    return iter(
        [
            Row(FAMILY, f"{name}: jobs that ended well", len(ends), "", wanted=f">= {jobs}"),
            Row(FAMILY, f"{name}: the longest pause", max(pauses), "s"),
        ]
    )


def rows(scale: Scale) -> Iterator[Row]:
    """Measure what it adds, what it bears, and what a dead broker costs."""
    small = scale.latency_jobs <= 10
    if not small:
        yield from asyncio.run(_latency(scale))
    yield from asyncio.run(_throughput(2 if small else 16, 20 if small else 2_000, 1, _IN_FLIGHT))
    if not small:
        yield from asyncio.run(_throughput(16, 300, 1, _IN_FLIGHT, picture=MB))
        yield from asyncio.run(_throughput(500, 3_000, 500, 1_000, processes=2))
    yield from asyncio.run(_results(scale.big if small else 16 * MB, 2 if small else 6))
    if not small:
        yield from asyncio.run(_cluster(300))


# --- A process of workers --------------------------------------------------------------------------------------------


@asynccontextmanager
async def _working(nats: list[str], replicas: int, poll: float, urls: list[str]) -> AsyncIterator[None]:
    async with FleetWorker(urls, nats=nats, keeping=Keeping(replicas=replicas), poll_interval=poll) as worker:
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await running


async def main(nats: str, replicas: str, poll: str, *urls: str) -> None:
    """Work until standard input ends; answer each of its lines with the CPU that was taken."""
    loop = asyncio.get_running_loop()
    async with _working(nats.split(","), int(replicas), float(poll), list(urls)):
        print("ready", flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(time.process_time(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""Jobs a second, and client CPU a job, with so many in flight.

Half of what is in flight waits in the server's queue, so that as many prompts are live as it says.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from ..control import begin
from ..graphs import SAMPLER, workflow
from ..report import Result, Row, compared, interleaved
from ..scale import KB, Scale
from ..sides import Connected
from ..transcript import carries
from ..worker import Server, Worker

FAMILY = "throughput"
_WANTED = (256, 1_000)
_WAYS = {"/view": False, "streamed": True}
_JOB_SECONDS = 0.05
_PREVIEW = 10 * KB
_IN_FLIGHT = {"guide": 1, "socket per job": 64, "comfyui_xy": 64}
_NEEDS = {"guide": "websocket", "comfyui_xy": "comfyui_xy"}


async def drive(connected: Connected, *, jobs: int, in_flight: int, stream: bool) -> Result:
    """Run jobs, so many at a time; check that each gets its own picture."""
    graph = workflow(stream=stream)
    seeds = iter(range(jobs))

    async def fetch_in_turn() -> None:
        for seed in seeds:
            graph[SAMPLER]["inputs"]["seed"] = seed
            prompt_id, picture = await connected.fetch(graph)
            if not carries(picture, prompt_id):
                raise AssertionError(f"prompt {prompt_id} got another's picture")

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(fetch_in_turn() for _ in range(in_flight)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"rate": jobs / wall, "cpu": cpu / jobs * 1e6}


def _round(worker: Worker, url: str, *, jobs: int, in_flight: int, stream: bool, **plan: Any) -> Result:
    backlog = 0 if "delay" in plan else in_flight // 2
    begin(url, jobs=jobs, backlog=backlog, stream=stream, **plan)
    return worker.run(drive, jobs=jobs, in_flight=in_flight, stream=stream)


def rows(scale: Scale) -> Iterator[Row]:
    """Measure against the floor at all levels, then against the guide's way and others."""
    with Server() as server, Worker("acomfy", server.url) as ours:
        with Worker("floor", server.url) as theirs:
            for way, stream in _WAYS.items():
                yield from _against_floor(scale, server.url, ours, theirs, way, stream)
        for side in _IN_FLIGHT:
            if find_spec(_NEEDS.get(side, "aiohttp")) is None:
                print(f"{side} is left out: it needs the extra 'bench'", file=sys.stderr)
                continue
            with Worker(side, server.url) as theirs:
                yield from _against_other(scale, server.url, ours, theirs)


def _against_floor(scale: Scale, url: str, ours: Worker, theirs: Worker, way: str, stream: bool) -> Iterator[Row]:
    for worker in (ours, theirs):
        _round(worker, url, jobs=20, in_flight=10, stream=stream)  # to warm it
    rates: dict[int, Row] = {}
    costs: dict[int, Row] = {}
    for in_flight, jobs in scale.levels.items():
        arguments: dict[str, Any] = {"url": url, "jobs": jobs, "in_flight": in_flight, "stream": stream}
        pairs = interleaved(partial(_round, ours, **arguments), partial(_round, theirs, **arguments), scale)
        wanted = (">= 0.95", "<= 1.05") if in_flight in _WANTED else ("", "")
        what = f"{way}, {in_flight:,} in flight"
        rates[in_flight] = compared(FAMILY, f"jobs, {what}", "1/s", pairs, "rate", "floor", wanted=wanted[0])
        costs[in_flight] = compared(FAMILY, f"CPU a job, {what}", "us", pairs, "cpu", "floor", wanted=wanted[1])
    for in_flight in scale.levels:
        many = 10 * in_flight
        if many > max(scale.levels):
            yield from (rates[in_flight], costs[in_flight])
            continue
        if many in rates:
            rate, cost = rates[many].value, costs[many].value
        else:
            rate, cost = _grown(
                scale, url, ours, jobs=max(many, scale.levels[in_flight]), in_flight=many, stream=stream
            )
        yield replace(rates[in_flight], growth=rate / rates[in_flight].value)
        yield replace(costs[in_flight], growth=cost / costs[in_flight].value)
    arguments = {"url": url, "jobs": scale.levels[_few(costs)], "in_flight": _few(costs), "stream": stream}
    arguments["preview"] = _PREVIEW
    pairs = interleaved(partial(_round, ours, **arguments), partial(_round, theirs, **arguments), scale, rounds=3)
    what = f"{way}, {_few(costs)} in flight, a preview of {_PREVIEW // KB} KB a step"
    yield compared(FAMILY, f"jobs, {what}", "1/s", pairs, "rate", "floor")
    yield compared(FAMILY, f"CPU a job, {what}", "us", pairs, "cpu", "floor")
    most, least = costs[max(costs)].value, costs[_few(costs)].value
    name = f"CPU a job, {way}, {max(costs):,} in flight"
    yield Row(FAMILY, name, most, "us", f"{_few(costs)} in flight", least, most / least, wanted="<= 1.10")


def _grown(scale: Scale, url: str, worker: Worker, **arguments: Any) -> tuple[float, float]:
    """Measure jobs a second and CPU a job where no other side is asked."""
    rounds = [_round(worker, url, **arguments) for _ in range(min(3, scale.rounds))]
    return statistics.median(each["rate"] for each in rounds), statistics.median(each["cpu"] for each in rounds)


def _few(costs: dict[int, Row]) -> int:
    """Give the level nearest to 100 in flight."""
    return min(costs, key=lambda in_flight: abs(in_flight - 100))


def _against_other(scale: Scale, url: str, ours: Worker, theirs: Worker) -> Iterator[Row]:
    """Compare with those who are so slow that a few jobs tell; the guide's way also with jobs that take their time."""
    for way, stream in _WAYS.items():
        if stream and theirs.side == "comfyui_xy":
            continue  # it asks for the history alone, where nothing that was streamed is
        for delay, wanted in ((0.0, ">= 5"), (_JOB_SECONDS, ">= 50")):
            if delay and theirs.side == "socket per job":
                continue
            plan: dict[str, Any] = {"url": url, "stream": stream, **({"delay": delay} if delay else {})}
            found = interleaved(
                partial(_round, ours, jobs=10 * scale.guide_jobs, in_flight=256, **plan),
                partial(_round, theirs, jobs=scale.guide_jobs, in_flight=_IN_FLIGHT[theirs.side], **plan),
                scale,
                rounds=3,
            )
            name = f"jobs, {way}" + (f", of {delay * 1000:.0f} ms each" if delay else "")
            wanted = wanted if theirs.side == "guide" else ""
            yield compared(FAMILY, name, "1/s", found, "rate", theirs.side, wanted=wanted)

"""A pool of many servers: how near it comes to the ideal, and what giving a prompt to a server costs.

The servers are load servers that work off one prompt after the other, each as long as its ``seed`` says, in
milliseconds. The ideal is that all of them work all the time. What a placement costs is measured without a network:
prompts go through the line and the choice, and end at once. Many prompts on one server are mapped, and submitted all at
once, each time by a process of its own, whose memory is looked at.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import acomfy
from acomfy.pool_job import PoolJob
from acomfy.pool_server import PoolServer
from acomfy.verdict import JobState

from ..control import begin, seen
from ..graphs import SAMPLER, Graph, workflow
from ..load_server import Channel, LoadServer, Prompt
from ..report import Result, Row
from ..scale import MB, Scale
from ..sides import Connected
from ..worker import Process, Task, Worker

FAMILY = "pool"
_SERVERS = 16
_SHORTEST, _LONGEST = 20, 180
_MODELS = ("a.safetensors", "b.safetensors", "c.safetensors", "d.safetensors")
_SEED = re.compile(rb'"seed": ?(\d+)')
_PLACED = 2_000
_MANY = 256
_WARM_UP = 200


class Machine(LoadServer):
    """A load server that works off one prompt after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._busy_until = 0.0
        nodes = (node for stream in (False, True) for node in workflow(stream=stream).values())
        self._big["object_info"] = json.dumps({node["class_type"]: {} for node in nodes}).encode()

    def begin(self, **plan: Any) -> None:
        """Start a round; see `LoadServer.begin`."""
        self._longest, self._ended = 0, list[str]()
        super().begin(**plan)

    def seen(self) -> dict[str, Any]:
        """Tell, too, how long the queue was at most, and the prompts in the order in which they ended."""
        return {**super().seen(), "longest": self._longest, "ended": self._ended}

    def _post_prompt(self, channel: Channel, target: bytes, body: bytes) -> None:
        now, seed = asyncio.get_running_loop().time(), _SEED.search(body)
        self._busy_until = max(now, self._busy_until) + (int(seed[1]) if seed else 0) / 1000
        self._delay = self._busy_until - now
        super()._post_prompt(channel, target, body)
        self._longest = max(self._longest, len(self._waiting) + len(self._due))

    def _finish(self, prompt: Prompt, socket: Channel | None) -> None:
        self._ended.append(prompt.prompt_id.decode())
        super()._finish(prompt, socket)


class Machines(Process):
    """So many machines, all in one process of their own.

    Attributes:
        urls: Their addresses.
    """

    def __init__(self, count: int) -> None:
        super().__init__("benchmarks.rows.pool", str(count))
        self.urls = [f"http://127.0.0.1:{port}" for port in json.loads(self.hear())]


def _graphs(jobs: int) -> list[Graph]:
    chance = random.Random(0)
    graphs = []
    for _ in range(jobs):
        graph = workflow(stream=True)
        graph[SAMPLER]["inputs"]["seed"] = chance.randint(_SHORTEST, _LONGEST)
        graph["4"]["inputs"]["ckpt_name"] = chance.choice(_MODELS)
        graphs.append(graph)
    return graphs


async def _makespan(urls: list[str], graphs: list[Graph]) -> tuple[float, int]:
    """Run all at once; give the seconds from the first submit to the last result, and the switches of models."""
    async with acomfy.Pool(urls) as pool:
        await pool.wait_ready(len(urls))
        start = time.perf_counter()
        await asyncio.gather(*(pool.run(graph) for graph in graphs))
        return time.perf_counter() - start, pool.stats().switches


async def _placing(servers: int, prompts: int, *, full: bool) -> float:
    """Give the microseconds of CPU that a prompt takes from the submit to its end, its job included.

    Either every server is full all the time, so that each prompt waits in the line, and those that end are of servers
    by chance; or all are idle.
    """
    pool = acomfy.Pool([f"http://127.0.0.1:{port}" for port in range(1, servers + 1)], in_flight=2)
    pool._loop = asyncio.get_running_loop()
    placed: list[PoolJob] = []
    for server in pool._dispatcher.servers.values():
        _pretend(server, placed.append)
    encoded = pool._encoded(workflow(stream=True))[0]
    needs = [pool._encoded(graph)[1] for graph in _graphs(8)]
    options, error, chance = acomfy.job.PromptOptions(), acomfy.JobCancelled(""), random.Random(0)

    def begin(number: int) -> None:
        pool._begin(encoded, needs[number % len(needs)], options, pool._turn(number % 8, 0.0, False, None))

    def end(at: int) -> None:
        placed[at], placed[-1] = placed[-1], placed[at]
        placed.pop().settle(error, JobState.CANCELLED)

    for number in range(2 * servers):
        begin(number // 2)  # the models of all servers are some that are wanted
    if full:
        for number in range(min(prompts, 1_000)):
            begin(number)
    else:
        while placed:
            end(0)
    start = time.process_time()
    for number in range(prompts):
        begin(number)
        end(chance.randrange(len(placed)))
    took = time.process_time() - start
    await pool.aclose()
    return took / prompts * 1e6


def _pretend(server: PoolServer, placed: Callable[[PoolJob], None]) -> None:
    """Have a server be up without being there."""
    server._state, server.looked = acomfy.ServerState.UP, True
    server.client.adopt = placed  # type: ignore[method-assign, assignment]
    server._on_change(server)


# --- Many prompts on one server ---------------------------------------------------------------------------------------


async def map_many(connected: Connected, *, jobs: int) -> Result:
    """Map so many prompts over one server; give the bytes of memory that this takes more than before, at the most."""
    async with acomfy.Pool([connected.url], in_flight=2) as pool:
        before, most, ended = await _warmed_up(pool, connected.url), 0, []
        async for job in pool.map(_quick(jobs)):
            ended.append(job.prompt_id)
            if len(ended) % 100 == 0 or len(ended) == jobs:
                most = max(most, _resident() - before)
    saw = await asyncio.to_thread(seen, connected.url)
    return {"bytes": most, "longest": saw["longest"], "in order": ended == saw["ended"]}


async def submit_many(connected: Connected, *, jobs: int) -> Result:
    """Submit so many prompts at once, and keep all jobs with their results; give the bytes that they take."""
    async with acomfy.Pool([connected.url], in_flight=2) as pool:
        before = await _warmed_up(pool, connected.url)
        held = [await pool.submit(graph) for graph in _quick(jobs)]
        waiting = _resident() - before
        await asyncio.gather(*held)
        return {"waiting": waiting, "bytes": _resident() - before}


async def _warmed_up(pool: acomfy.Pool, url: str) -> int:
    async for job in pool.map(_quick(_WARM_UP)):
        await job
    await asyncio.to_thread(begin, url)
    gc.collect()
    return _resident()


def _quick(jobs: int) -> Iterator[Graph]:
    """Make prompts of a millisecond each, of four models in turns."""
    for number in range(jobs):
        graph = workflow(stream=True)
        graph[SAMPLER]["inputs"]["seed"] = 1
        graph["4"]["inputs"]["ckpt_name"] = _MODELS[number % len(_MODELS)]
        yield graph


def _resident() -> int:
    """Give the bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _with_many(jobs: int) -> Iterator[Row]:
    mapped, submitted = _in_a_process(map_many, jobs), _in_a_process(submit_many, jobs)
    if not mapped["in order"]:
        raise AssertionError("the results came in another order than that in which the prompts ended")
    name = f"{jobs:,} prompts mapped over one server"
    yield Row(FAMILY, f"{name}: memory", mapped["bytes"] / MB, "MB", wanted="<= 50")
    yield Row(FAMILY, f"{name}: the server's queue", mapped["longest"], "prompts", wanted="<= 2")
    name = f"{jobs:,} prompts submitted at once"
    yield Row(FAMILY, f"{name}: memory while they wait", submitted["waiting"] / MB, "MB")
    yield Row(FAMILY, f"{name}: memory with all results", submitted["bytes"] / MB, "MB")


def _in_a_process(task: Task, jobs: int) -> Result:
    with Machines(1) as machines, Worker("acomfy", machines.urls[0]) as worker:
        return worker.run(task, jobs=jobs)


def rows(scale: Scale) -> Iterator[Row]:
    """Measure the whole, the choice alone, and many prompts."""
    jobs = max(scale.latency_jobs * 5, 1) if scale.latency_jobs > 10 else 10
    graphs = _graphs(jobs)
    servers = _SERVERS if jobs > 10 else 2
    with Machines(servers) as machines:
        took, switches = asyncio.run(_makespan(machines.urls, graphs))
    ideal = sum(graph[SAMPLER]["inputs"]["seed"] for graph in graphs) / 1000 / servers
    name = f"{jobs:,} mixed jobs on {servers} servers"
    yield Row(FAMILY, name, took, "s", "ideal", ideal, took / ideal, wanted="<= 1.05")
    yield Row(FAMILY, f"{name}: switches of models", switches, "")
    prompts = _PLACED if jobs > 10 else 20
    for full, which in ((True, "all full"), (False, "all idle")):
        few, many = (_fastest(count, prompts, scale, full=full) for count in (1, _MANY))
        yield Row(FAMILY, f"placing a prompt, 1 server, {which}", few, "us", wanted="<= 200")
        name = f"placing a prompt, {_MANY} servers, {which}"
        yield Row(FAMILY, name, many, "us", "1 server", few, many / few, wanted="<= 1.2")
    yield from _with_many(scale.live)


def _fastest(servers: int, prompts: int, scale: Scale, *, full: bool) -> float:
    gc.collect()
    return min(asyncio.run(_placing(servers, prompts, full=full)) for _ in range(scale.repeats))


async def main(count: int) -> None:
    """Serve on so many ports until standard input ends."""
    loop = asyncio.get_running_loop()
    ports: list[int] = []
    listening: list[Any] = []
    for _ in range(count):
        server = await loop.create_server(partial(Channel, Machine()), "127.0.0.1", 0, backlog=4096)
        listening.append(server)
        ports.append(server.sockets[0].getsockname()[1])
    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    for server in listening:
        server.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

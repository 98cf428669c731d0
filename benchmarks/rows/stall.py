"""How long the event loop stands still while large things arrive, are decoded, saved and sent.

Two things cannot be divided: aiohttp joins a large message in one step, and a JSON body is parsed in one. The first is
measured by aiohttp with nothing around it and taken off, the second is given for each MB. Of several runs that with
the shortest stall counts: what else the machine did is no stall of the library.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from acomfy import Client, Output

from ..control import begin, tell
from ..graphs import workflow
from ..report import Result, Row
from ..scale import MB, Scale
from ..sides import Connected
from ..worker import Server, Task, Worker
from .transfer import raw

FAMILY = "stall"
_TICK, _RUNS = 0.001, 3


async def stalled(awaitable: Awaitable[Any]) -> tuple[Any, float]:
    """Await something; give what it gave and the longest stall of the loop meanwhile, in ms."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            start = time.perf_counter()
            await asyncio.sleep(_TICK)
            longest = max(longest, time.perf_counter() - start - _TICK)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(2 * _TICK)
    result = await awaitable
    await asyncio.sleep(2 * _TICK)
    ticking.cancel()
    return result, longest * 1000


async def streamed(connected: Connected) -> Result:
    """Let a picture arrive over the socket, and do with it all that one does."""
    graph = workflow(stream=True)
    if connected.client is None:
        async with raw(connected.url, to_disk=False) as move:
            return {"arrives": (await stalled(move(graph, Path())))[1]}
    result, arrives = await stalled(connected.client.run(graph))
    return {"arrives": arrives, **await _used(result.images[0])}


async def _used(output: Output) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        uses: dict[str, Callable[[], Awaitable[Any]]] = {
            "is decoded": output.image,
            "is saved": lambda: output.save(directory),
            "is read as bytes": output.read,
        }
        return {what: (await stalled(use()))[1] for what, use in uses.items()}


async def viewed(connected: Connected) -> Result:
    """Read a file of the server to memory and to disk."""
    graph, stalls = workflow(stream=False), {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "picture.png")
        for what, to_disk in (("is read", False), ("is saved", True)):
            if connected.client is None:
                async with raw(connected.url, to_disk=to_disk) as move:
                    stalls[what] = (await stalled(move(graph, path)))[1]
            else:
                output = (await connected.client.run(graph)).images[0]
                stalls[what] = (await stalled(output.save(path) if to_disk else output.read()))[1]
    return stalls


async def posted(connected: Connected, *, size: int) -> Result:
    """Run a prompt that holds a text of so many bytes."""
    client, graph = _client(connected), workflow(stream=True)
    graph["6"]["inputs"]["text"] = "x" * size

    async def post() -> None:
        await client.run(graph)

    return {"is posted": (await stalled(post()))[1]}


async def asked(connected: Connected) -> Result:
    """Read node definitions, which are one JSON body."""
    return {"is read": (await stalled(_client(connected).api.get_object_info()))[1]}


def _client(connected: Connected) -> Client:
    if connected.client is None:
        raise AssertionError("only acomfy has a client")
    return connected.client


def rows(scale: Scale) -> Iterator[Row]:
    """Measure a large picture both ways, then a large prompt, then a large body of JSON."""
    size, wanted = scale.big, "<= 10"
    with Server() as server, Worker("acomfy", server.url) as ours, Worker("floor", server.url) as theirs:
        for name, task, stream in (("a streamed picture", streamed, True), ("a file", viewed, False)):
            begin(server.url, stream=stream, steps=1, picture=size, decodable=True)
            found = [_shortest(worker, task) for worker in (ours, theirs)]
            for what, stall in found[0].items():
                floor = found[1].get(what)
                label = f"{name} of {size / MB:.0f} MB {what}"
                if floor is None:
                    yield Row(FAMILY, label, stall, "ms", wanted=wanted)
                else:
                    label = f"{label}, above aiohttp's own"
                    yield Row(FAMILY, label, max(0.0, stall - floor), "ms", "aiohttp", floor, wanted=wanted)
        begin(server.url, stream=True, steps=1)
        posting = _shortest(ours, posted, size=size // 2)["is posted"]
        yield Row(FAMILY, f"a prompt of {size / 2 / MB:.0f} MB is posted, each MB", posting / (size / 2 / MB), "ms")
        few, many = (_json_stall(server, ours, part) for part in (size // 100, size // 10))
        name = f"{size / 10 / MB:.0f} MB of object_info are read, each MB"
        yield Row(FAMILY, name, many / (size / 10 / MB), "ms", growth=many / few)


def _shortest(worker: Worker, task: Task, **arguments: Any) -> dict[str, float]:
    """Give the shortest of the longest stalls of several runs."""
    runs = [worker.run(task, **arguments) for _ in range(_RUNS)]
    return {what: min(run[what] for run in runs) for what in runs[0]}


def _json_stall(server: Server, worker: Worker, size: int) -> float:
    tell(server.url, "big", bytes=size)
    return _shortest(worker, asked)["is read"]

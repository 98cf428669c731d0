"""How long the event loop stands still while large things arrive, are decoded, saved and sent.

Two things cannot be divided: aiohttp joins a large message in one step, and a JSON body is parsed in one. The first is
measured by aiohttp with nothing around it, the second by orjson, and taken off; the second is given for each MB too. Of
several runs that with the shortest stall counts: what else the machine did is no stall of the library. The growth is
from a tenth of the size to it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from acomfy import Client, Output

from ..control import begin, tell
from ..graphs import workflow
from ..report import Result, Row
from ..scale import MB, Scale
from ..sides import Connected
from ..worker import Server, Task, Worker
from .transfer import raw

FAMILY = "stall"
_WANTED = "<= 10"
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
    """Read node definitions and a history, each of which is one JSON body; then parse the same again."""
    api, stalls = _client(connected).api, {}
    reads: dict[str, Callable[[], Awaitable[Any]]] = {
        "object_info": api.get_object_info,
        "history": lambda: api.get_histories(max_items=1_000_000),
    }
    for what, read in reads.items():
        answer, stalls[what] = await stalled(read())
        body = orjson.dumps(answer)
        del answer
        start = time.perf_counter()
        orjson.loads(body)
        stalls[f"{what}, parsed"] = (time.perf_counter() - start) * 1000
    return stalls


async def uploaded(connected: Connected, *, size: int) -> Result:
    """Upload so many bytes, and a file of as many, that were not uploaded before."""
    client, content = _client(connected), os.urandom(size)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "input.png")
        await asyncio.to_thread(path.write_bytes, content[::-1])
        uploads: dict[str, Callable[[], Awaitable[Any]]] = {
            "of bytes": lambda: client.upload(content),
            "from a file": lambda: client.upload(path),
        }
        return {what: (await stalled(upload()))[1] for what, upload in uploads.items()}


def _client(connected: Connected) -> Client:
    if connected.client is None:
        raise AssertionError("only acomfy has a client")
    return connected.client


def rows(scale: Scale) -> Iterator[Row]:
    """Measure a large picture both ways, then a large upload, a large prompt, and large bodies of JSON."""
    with Server() as server, Worker("acomfy", server.url) as ours, Worker("floor", server.url) as theirs:
        for name, task, stream in (("a streamed picture", streamed, True), ("a file", viewed, False)):
            yield from _pictures(scale, server, ours, theirs, name, task, stream)
        begin(server.url, stream=True, steps=1)
        yield from _uploads(ours, scale.big // 2)
        yield _post(ours, scale.big // 2)
        yield from _asked(server, ours, scale.big // 10)


def _pictures(
    scale: Scale, server: Server, ours: Worker, theirs: Worker, name: str, task: Task, stream: bool
) -> Iterator[Row]:
    begin(server.url, stream=stream, steps=1, picture=scale.big // 10, decodable=True)
    few = _shortest(ours, task)
    begin(server.url, stream=stream, steps=1, picture=scale.big, decodable=True)
    found = [_shortest(worker, task) for worker in (ours, theirs)]
    for what, stall in found[0].items():
        floor, growth = found[1].get(what), stall / few[what]
        label = f"{name} of {_size(scale.big)} {what}"
        if floor is None:
            yield Row(FAMILY, label, stall, "ms", growth=growth, wanted=_WANTED)
        else:
            label, above = f"{label}, above aiohttp's own", max(0.0, stall - floor)
            yield Row(FAMILY, label, above, "ms", "aiohttp", floor, growth=growth, wanted=_WANTED)


def _uploads(worker: Worker, size: int) -> Iterator[Row]:
    few, many = (_shortest(worker, uploaded, size=part) for part in (size // 10, size))
    for what, stall in many.items():
        yield Row(FAMILY, f"an upload of {_size(size)} {what}", stall, "ms", growth=stall / few[what], wanted=_WANTED)


def _post(worker: Worker, size: int) -> Row:
    few, many = (_shortest(worker, posted, size=part)["is posted"] for part in (size // 10, size))
    return Row(FAMILY, f"a prompt of {_size(size)} is posted, each MB", many / (size / MB), "ms", growth=many / few)


def _asked(server: Server, worker: Worker, size: int) -> Iterator[Row]:
    found = []
    for part in (size // 10, size):
        tell(server.url, "big", bytes=part)
        found.append(_shortest(worker, asked))
    few, many = found
    for what in ("object_info", "history"):
        stall, parsing = many[what], many[f"{what}, parsed"]
        growth, name = stall / few[what], f"{_size(size)} of {what} is read"
        above = max(0.0, stall - parsing)
        yield Row(FAMILY, f"{name}, above parsing it", above, "ms", "orjson.loads", parsing, wanted=_WANTED)
        yield Row(FAMILY, f"{name}, each MB", stall / (size / MB), "ms", growth=growth)


def _size(size: int) -> str:
    return f"{size / MB:.0f} MB"


def _shortest(worker: Worker, task: Task, **arguments: Any) -> dict[str, float]:
    """Give the shortest of the longest stalls of several runs."""
    runs = [worker.run(task, **arguments) for _ in range(_RUNS)]
    return {what: min(run[what] for run in runs) for what in runs[0]}

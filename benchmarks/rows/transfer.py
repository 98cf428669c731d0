"""Pictures of all sizes: how fast they come, and how much memory they take at the most.

Against aiohttp with nothing around it: ``receive`` of the WebSocket, ``read`` of the answer to ``/view``, and
``iter_chunked`` of it into a file. Memory is what the process takes above what it had before, at its peak.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from acomfy import Client

from ..control import begin
from ..floor import FLAGS
from ..graphs import SAVE, Graph, workflow
from ..report import Result, Row, compared, interleaved
from ..scale import KB, MB, Scale
from ..sides import Connected
from ..worker import Server, Worker

FAMILY = "transfer"
_STREAMED, _READ, _VIEW, _DISK = "streamed", "streamed, read() as bytes", "/view to memory", "/view to disk"
_WAYS = (_STREAMED, _READ, _VIEW, _DISK)
_CHUNK = 256 * KB
_LARGEST = 200 * MB
_PEAK = Path("/proc/self/clear_refs")

Move = Callable[[Graph, Path], Awaitable[object]]


async def transfer(connected: Connected, *, way: str, pictures: int, size: int) -> Result:
    """Run jobs one after the other and take the picture of each; give MB/s and the peak of memory in MB."""
    graph = workflow(stream=way in (_STREAMED, _READ))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "picture.png")
        async with (
            raw(connected.url, to_disk=way == _DISK)
            if connected.client is None
            else _acomfy(connected.client, way) as move
        ):
            await move(graph, path)
            before = _forget_peak()
            start = time.perf_counter()
            for _ in range(pictures):
                await move(graph, path)
            seconds = time.perf_counter() - start
            return {"rate": pictures * size / seconds / MB, "peak": max(_memory("VmHWM") - before, 1.0)}


def _forget_peak() -> float:
    """Have the peak of memory begin anew, on Linux; give what is taken now, without what is free to be used again."""
    gc.collect()
    if _PEAK.exists():
        with suppress(AttributeError):  # a C library that is not GNU's
            ctypes.CDLL(None).malloc_trim(0)
        _PEAK.write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> float:
    """Read a line of Linux's account of this process, in MB; 0 on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@asynccontextmanager
async def _acomfy(client: Client, way: str) -> AsyncIterator[Move]:
    async def move(graph: Graph, path: Path) -> object:
        output = (await client.run(graph)).images[0]
        if way == _DISK:
            return await output.save(path, overwrite=True)
        return output if way == _STREAMED else await output.read()

    yield move


@asynccontextmanager
async def raw(url: str, *, to_disk: bool) -> AsyncIterator[Move]:
    """Connect with aiohttp alone; give a function that runs a graph and takes its picture."""
    client_id = str(uuid.uuid4())
    async with aiohttp.ClientSession() as session:

        async def run(graph: Graph) -> tuple[str, bytes | None]:
            prompt_id, picture = str(uuid.uuid4()), None
            body = orjson.dumps({"prompt": graph, "client_id": client_id, "prompt_id": prompt_id})
            async with session.post(f"{url}/prompt", data=body) as response:
                await response.read()
            while True:
                message = await socket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    picture = message.data
                elif message.data.startswith('{"type": "execution_success"'):
                    return prompt_id, picture

        async def move(graph: Graph, path: Path) -> object:
            prompt_id, picture = await run(graph)
            if SAVE not in graph:
                return picture
            params = {"filename": f"{prompt_id}_00001_.png", "subfolder": "", "type": "output"}
            async with session.get(f"{url}/view", params=params) as response:
                if to_disk:
                    with path.open("wb") as file:
                        async for chunk in response.content.iter_chunked(_CHUNK):
                            file.write(chunk)
                    return path
                return await response.read()

        async with session.ws_connect(f"{url}/ws?clientId={client_id}", max_msg_size=0) as socket:
            await socket.send_str(FLAGS)
            yield move


def _round(worker: Worker, url: str, *, way: str, pictures: int, size: int) -> Result:
    begin(url, stream=way in (_STREAMED, _READ), steps=1, picture=size)
    return worker.run(transfer, way=way, pictures=pictures, size=size)


def rows(scale: Scale) -> Iterator[Row]:
    """Measure each way at each size."""
    with Server() as server:
        for way in _WAYS:
            with Worker("acomfy", server.url) as ours, Worker("floor", server.url) as theirs:
                yield from _moved(scale, server.url, ours, theirs, way)


def _moved(scale: Scale, url: str, ours: Worker, theirs: Worker, way: str) -> Iterator[Row]:
    for size, pictures in scale.pictures.items():
        arguments: dict[str, Any] = {"url": url, "way": way, "pictures": pictures, "size": size}
        pairs = interleaved(partial(_round, ours, **arguments), partial(_round, theirs, **arguments), scale, rounds=3)
        grown = _round(ours, **{**arguments, "size": 10 * size}) if size <= _LARGEST // 10 else None
        judged = (way, size) == (_STREAMED, 16 * MB)
        name = f"{way}, {size // KB:,} KB" if size < MB else f"{way}, {size // MB} MB"
        rate = compared(FAMILY, name, "MB/s", pairs, "rate", "aiohttp", wanted=">= 0.95" if judged else "")
        yield replace(rate, growth=grown["rate"] / rate.value if grown else None)
        if _PEAK.exists() and size >= MB:
            wanted = "<= 1.20" if judged else ""
            peak = compared(FAMILY, f"{name}, peak memory", "MB", pairs, "peak", "aiohttp", wanted=wanted)
            yield replace(peak, growth=grown["peak"] / peak.value if grown else None)

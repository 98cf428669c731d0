"""A process of its own for each side that is measured, and one for the load server.

A side keeps its process, and in it its one client, for all rounds of a row: its connections and caches are warm, and
the garbage collector never walks over another side's objects. Rounds of the sides are interleaved, so that what else
the machine does meets all alike.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from .report import Result
from .sides import SIDES

Task = Callable[..., Awaitable[Result]]

_ROOT = Path(__file__).parents[1]
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 27),
    "MALLOC_TOP_PAD_": str(1 << 20),
}
"""Left alone, glibc's malloc moves these with what it happens to see, and maps buffers anew or not: that was seen to
take 20 us a job, or half the MB/s, from one side or the other."""


class Process:
    """A Python process that one talks to by lines."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, **_MALLOC},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _pipe(self._process.stdin).close()
        self._process.wait()
        _pipe(self._process.stdout).close()

    def tell(self, line: str) -> None:
        """Write a line to it."""
        stdin = _pipe(self._process.stdin)
        stdin.write(line.encode() + b"\n")
        stdin.flush()

    def hear(self) -> bytes:
        """Wait for its next line."""
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return line


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise AssertionError("both ends of the process are pipes")
    return pipe


class Server(Process):
    """A load server in its own process.

    Attributes:
        url: Its address.
    """

    def __init__(self) -> None:
        super().__init__("benchmarks.load_server")
        self.url = f"http://127.0.0.1:{int(self.hear())}"


class Worker(Process):
    """A side in its own process, connected to a server."""

    def __init__(self, side: str, url: str) -> None:
        super().__init__("benchmarks.worker", side, url)
        self.side = side

    def run(self, task: Task, /, **arguments: Any) -> Result:
        """Run a task in the process: a coroutine function of a module, called with `Connected` and the arguments."""
        self.tell(json.dumps([f"{task.__module__}:{task.__name__}", arguments]))
        result: Result = json.loads(self.hear())
        return result


async def _serve(side: str, url: str) -> None:
    loop = asyncio.get_running_loop()
    async with SIDES[side](url) as connected:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            name, arguments = json.loads(line)
            module, _, function = name.partition(":")
            result = await getattr(importlib.import_module(module), function)(connected, **arguments)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))

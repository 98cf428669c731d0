"""Jobs on a pool whose servers are processes that are killed: ``python -m tests.pool_killing``.

Every other server (with ``--all`` every one) gets a SIGKILL now and then, at any moment, and is started again on its
port; or it is stopped for a while (SIGSTOP). Each writes its books to a file, line by line, which survives it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import acomfy

from .pool_books import BookedServer, Event, as_line, read_line
from .pool_chaos import Load, arguments, report

_TAKES = 0.15


class ServerProcess:
    """A simulated server in a process of its own.

    Attributes:
        url: Its address, the same after each start.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self._port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; it is ready some time later."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __spec__.name, "--serve", str(self._port), str(self._directory)
        )

    async def kill(self) -> None:
        """Kill it as a lack of memory does."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def events(self) -> list[Event]:
        """Read its books, of all its lives."""
        lines = (self._directory / "books").read_bytes().splitlines()
        return [read_line(line) for line in lines]


async def serve(port: int, directory: Path) -> None:
    """Be a server until killed."""
    (directory / "output").mkdir(exist_ok=True)
    tempfile.tempdir = str(directory)
    books = os.open(directory / "books", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(event: Event) -> None:
        os.write(books, as_line(event))

    server = BookedServer(write, port=port, cache="none", output_dir=directory / "output")
    server.on("EmptyImage").takes(_TAKES)
    async with server:
        await asyncio.Event().wait()


class Killing(Load):
    """Servers in processes, and who kills them."""

    def __init__(self, seed: int, *, strangers: bool, every: bool) -> None:
        super().__init__(seed, strangers=strangers)
        self.faults: Counter[str] = Counter()
        self._every = every

    async def go(self, jobs: int, count: int) -> None:
        """Run so many jobs on so many servers."""
        async with AsyncExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="acomfy-killing-")))
            servers = []
            for number in range(count):
                (root / str(number)).mkdir()
                servers.append(ServerProcess(root / str(number)))
                await servers[-1].start()
                stack.push_async_callback(servers[-1].kill)
            victims = servers if self._every else servers[::2]
            await self.run([server.url for server in servers], jobs, [self._trouble(server) for server in victims])
            for server in servers:
                self.books.events += server.events()
        self.books.compare()

    def _trouble(self, server: ServerProcess) -> Callable[[acomfy.Pool], Awaitable[None]]:
        async def trouble(pool: acomfy.Pool) -> None:
            while True:
                await asyncio.sleep(self.random.uniform(1.0, 5.0))
                kill = self.random.random() < 0.75
                self.faults["killed" if kill else "stopped"] += 1
                await (self._kill(server) if kill else self._stop(server))

        return trouble

    async def _kill(self, server: ServerProcess) -> None:
        with self.books.illness(server.url):
            await server.kill()
            await asyncio.sleep(self.random.uniform(0.0, 3.0))
            await server.start()
            async with acomfy.Client(server.url) as client:
                await client.wait_ready()

    async def _stop(self, server: ServerProcess) -> None:
        with self.books.illness(server.url):
            server.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(self.random.uniform(0.1, 5.0))
            finally:
                server.signal(signal.SIGCONT)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--all", action="store_true", help="no server is spared")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "DIRECTORY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(int(args.serve[0]), Path(args.serve[1])))
        return 0
    killing, start = Killing(args.seed, strangers=args.strangers, every=args.all), time.monotonic()
    asyncio.run(killing.go(args.jobs, args.servers))
    return report(killing, killing.faults, args.jobs, start)


if __name__ == "__main__":
    sys.exit(main())

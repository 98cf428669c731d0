"""The servers of a pool: how they come and go, and who looks after them meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from .client import Client
from .errors import AcomfyError, NoServerAvailable
from .look import read_queue
from .pool_dispatch import Dispatcher
from .pool_job import PoolJob
from .pool_server import PoolServer
from .result import DownloadObserver

logger = logging.getLogger(__name__)

_OWN_OPTIONS = ("weight", "in_flight")


class Members:
    """The servers of one pool.

    Args:
        dispatcher: Gives prompts to them; it has them by their names.
        options: Arguments of `Client`, for all.
        in_flight: Prompts that one is given at once, where nothing else is said of it.
        spawn: Runs a coroutine as a task of the pool.
        on_change: Called when one of them is another than before.
        next_change: Waits until something happened in the pool.
        observer: Entered around every reading of an output.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        options: Mapping[str, Any],
        *,
        in_flight: int,
        check_interval: float,
        unreachable_timeout: float,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_change: Callable[[], None],
        next_change: Callable[[], Awaitable[None]],
        observer: DownloadObserver,
    ) -> None:
        self._dispatcher = dispatcher
        self._options = {**options, "unreachable_timeout": unreachable_timeout}
        self._in_flight = in_flight
        self._check_interval = check_interval
        self._unreachable_timeout = unreachable_timeout
        self._spawn = spawn
        self._on_change = on_change
        self._next_change = next_change
        self._observer = observer
        self._open = False
        self._tending: dict[str, asyncio.Task[None]] = {}

    def open(self) -> None:
        """Begin to look after all."""
        self._open = True
        for server in self._dispatcher.servers.values():
            self._tend(server)

    def _tend(self, server: PoolServer) -> None:
        self._tending[server.name] = self._spawn(server.tend())

    async def aclose(self) -> None:
        """Close all clients."""
        await asyncio.gather(*(server.client.aclose() for server in self._dispatcher.servers.values()))

    def _server_changed(self, server: PoolServer) -> None:
        self._dispatcher.server_changed(server)
        self._on_change()

    @property
    def usable(self) -> int:
        """How many can be used."""
        return sum(server.usable for server in self._dispatcher.servers.values())

    # --- Coming and going --------------------------------------------------------------------------------------------

    def add(self, server: str | Mapping[str, Any]) -> None:
        """See `Pool.add`."""
        options = {"url": server} if isinstance(server, str) else dict(server)
        own = {name: options.pop(name) for name in _OWN_OPTIONS if name in options}
        weight, in_flight = float(own.get("weight", 1.0)), int(own.get("in_flight", self._in_flight))
        if not weight > 0 or in_flight < 1:
            raise ValueError("weight is more than 0, and in_flight at least 1")
        made = PoolServer(
            options.pop("url", "http://127.0.0.1:8188"),
            {**self._options, **options},
            weight=weight,
            in_flight=in_flight,
            check_interval=self._check_interval,
            unreachable_timeout=self._unreachable_timeout,
            on_failed=self._dispatcher.failed,
            on_change=self._server_changed,
            shared=self._dispatcher.shared,
        )
        if made.name in self._dispatcher.servers:
            raise ValueError(f"{made.name} is in the pool already")
        self._dispatcher.servers[made.name] = made
        made.client.on_download(self._observer)
        if self._open:
            self._tend(made)

    async def drain(self, url: str) -> None:
        """See `Pool.drain`."""
        server = self._find(url)
        server.draining = True
        server.changed()
        self._dispatcher.server_changed(server)
        await self._withdraw(server, *server.jobs)

    def begin_to_withdraw(self, server: PoolServer, job: PoolJob) -> None:
        """Begin to take a job that waits in a server's queue back from there. Never waits."""
        self._spawn(self._withdraw(server, job))

    async def _withdraw(self, server: PoolServer, *jobs: PoolJob) -> None:
        try:
            await server.withdraw(jobs)
        except AcomfyError as exc:
            logger.info("%s keeps what waits there: %s", server.name, exc)

    def resume(self, url: str) -> None:
        """See `Pool.resume`."""
        server = self._find(url)
        server.draining = False
        server.changed()
        self._server_changed(server)

    async def remove(self, url: str) -> None:
        """See `Pool.remove`."""
        server = self._find(url)
        await self.drain(url)
        while not server.idle:
            await self._next_change()
        self._dispatcher.forget(server)
        tending = self._tending.pop(server.name, None)
        if tending is not None:
            tending.cancel()
        await server.client.aclose()

    def _find(self, url: str) -> PoolServer:
        servers = self._dispatcher.servers
        for server in servers.values():
            if url.rstrip("/") in (server.name.rstrip("/"), server.given.rstrip("/")):
                return server
        raise KeyError(f"this address is not in the pool; its servers are {', '.join(servers) or 'none'}")

    # --- Who has a prompt --------------------------------------------------------------------------------------------

    async def client_of(self, prompt_id: str) -> Client:
        """Give the client of the server that knows a prompt; any, when it is certain that none does.

        Raises:
            NoServerAvailable: No server that answers knows it, and some do not answer.
        """
        servers = self._dispatcher.servers.values()
        asking = {asyncio.ensure_future(self._knows(server.client, prompt_id)): server for server in servers}
        waiting = set(asking)
        try:
            while waiting:
                answered, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for answer in answered:
                    if answer.result():
                        return asking[answer].client
        finally:
            for answer in waiting:
                answer.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        silent = [server.name for answer, server in asking.items() if answer.result() is None]
        if silent or not asking:
            these = ", ".join(silent) or "none"
            raise NoServerAvailable(f"no server knows the prompt {prompt_id}; these did not answer: {these}")
        return next(iter(asking.values())).client

    async def _knows(self, client: Client, prompt_id: str) -> bool | None:
        """Tell whether a server knows a prompt; None when it does not answer."""
        try:
            async with asyncio.timeout(self._unreachable_timeout):
                if read_queue(await client.api.get_queue()).find(prompt_id) is not None:
                    return True
                return await client.api.get_history(prompt_id) is not None
        except (AcomfyError, TimeoutError):
            return None

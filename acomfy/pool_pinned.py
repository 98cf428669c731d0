"""One server of a pool for several steps: `Pool.acquire`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from types import TracebackType

from .client import Client
from .line import Entry
from .placement import Need
from .pool_dispatch import Dispatcher, Pin, Waiting
from .pool_server import PoolServer


class Pinned:
    """Takes its turn in the line, and a place of a server, while its block runs.

    Args:
        check: Called on entering, before anything is done.
    """

    def __init__(
        self, dispatcher: Dispatcher, need: Need, key: Hashable, priority: float, check: Callable[[], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._need = need
        self._key = key
        self._priority = priority
        self._check = check
        self._server: PoolServer | None = None

    async def __aenter__(self) -> Client:
        self._check()
        pin = Pin(self._need, asyncio.get_running_loop().create_future())
        entry: Entry[Waiting] = Entry(pin, self._need, key=self._key, priority=self._priority)
        self._dispatcher.add(entry)
        try:
            self._server = await pin.server
        except asyncio.CancelledError:
            if not self._dispatcher.remove(entry) and not pin.server.cancelled() and pin.server.exception() is None:
                self._dispatcher.unpin(pin.server.result())
            raise
        return self._server.client

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._dispatcher.unpin(server)

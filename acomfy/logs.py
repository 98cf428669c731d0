"""The server's log as it is written: ``PATCH /internal/logs/subscribe`` and ``logs`` messages.

Rules (ComfyUI api_server, 0.3.40 to 0.33): the server sends the log to the sockets of client ids that subscribed, and
drops a subscription when it has something to send and finds no socket of that id. So it is renewed after each connect.
What was written meanwhile is among the last 300 entries that ``GET /internal/logs/raw`` has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from .api import Api
from .errors import AcomfyError
from .events import Logs
from .stream import EventStream

if TYPE_CHECKING:
    from .server_info import LogEntry

logger = logging.getLogger(__name__)

_MOST_WAITING = 10_000
_REMEMBERED = 1_000
_RETRY_DELAY = 1.0


class LogSubscription:
    """The one subscription of a client, held while anybody reads.

    Args:
        spawn: Runs a coroutine as a task of the client.
    """

    def __init__(self, api: Api, client_id: str, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._api = api
        self._client_id = client_id
        self._spawn = spawn
        self._readers: WeakSet[LogStream] = WeakSet()  # weak: who lets go of a stream need not close it
        self._told = False
        self._lock = asyncio.Lock()

    async def add(self, reader: LogStream, *, recent: bool) -> None:
        """Begin to send to a reader what is written from now on, after the entries that the server kept if wanted."""
        kept = await self._kept()
        reader.begin(kept, recent=recent)
        self._readers.add(reader)
        try:
            await self._tell()
            reader.catch_up(await self._kept())
        except BaseException:
            self.remove(reader)
            raise

    def remove(self, reader: LogStream) -> None:
        """Send nothing more to a reader; end the subscription when it was the last."""
        self._readers.discard(reader)
        if self._told and not self._readers:
            self._spawn(self._end())

    def reconnected(self) -> None:
        """Subscribe anew, and find what was written meanwhile."""
        if self._readers:
            self._spawn(self._renew())

    async def _renew(self) -> None:
        while self._readers:
            try:
                await self._tell()
                kept = await self._kept()
            except AcomfyError as exc:
                logger.debug("the server's log could not be subscribed to again: %s", exc)
                await asyncio.sleep(_RETRY_DELAY)
            else:
                for reader in tuple(self._readers):
                    reader.catch_up(kept)
                return

    async def _end(self) -> None:
        try:
            await self._tell()
        except AcomfyError as exc:
            logger.debug("the subscription to the server's log could not be ended: %s", exc)

    async def _tell(self) -> None:
        async with self._lock:  # so that the last word is what is wanted last
            self._told = bool(self._readers)
            await self._api.patch_logs_subscribe(self._client_id, self._told)

    async def _kept(self) -> list[LogEntry]:
        from .server_info import read_log_entries

        return read_log_entries((await self._api.get_raw_logs())["entries"])


class LogStream:
    """An asynchronous iterator over the entries of the server's log, until it is closed or let go.

    It belongs to one task at a time. Over 10,000 entries that wait to be read, the oldest go.

    Attributes:
        dropped: How many went.
    """

    def __init__(self, subscription: LogSubscription, events: EventStream, *, recent: bool) -> None:
        self.dropped = 0
        self._subscription = subscription
        self._events = events
        self._recent = recent
        self._begun = False
        self._waiting: deque[LogEntry] = deque()
        self._known: dict[LogEntry, None] = {}
        self._newest = ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogEntry:
        """Wait for the next entry; the first time, subscribe.

        Cancelling it loses none.

        Raises:
            ServerError: The server could not be subscribed to.
        """
        from .server_info import read_log_entries

        if not self._begun:
            await self._subscription.add(self, recent=self._recent)
            self._begun = True
        while not self._waiting:
            event = await self._events.__anext__()
            if isinstance(event, Logs):
                self._take(read_log_entries(event.entries))
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Stop listening, and end: what waits is not read any more."""
        self.__del__()

    def __del__(self) -> None:
        self._waiting.clear()
        self._events.__del__()
        self._subscription.remove(self)

    def begin(self, kept: list[LogEntry], *, recent: bool) -> None:
        """Take the entries that the server kept, or know them for old ones."""
        self._take(kept)
        if not recent:
            self._waiting.clear()

    def catch_up(self, kept: list[LogEntry]) -> None:
        """Take those of the entries that the server kept that are newer than all that came."""
        self._take([entry for entry in kept if entry.time > self._newest])

    def _take(self, entries: list[LogEntry]) -> None:
        for entry in entries:
            if entry in self._known:
                continue  # it came by the other way already
            self._known[entry] = None
            self._waiting.append(entry)
            self._newest = max(self._newest, entry.time)
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()
            self.dropped += 1

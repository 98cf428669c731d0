"""Keep an overview of a server: ask it now and then, and listen to what it tells everybody."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from ..access import Access
from ..api import Api
from ..connection import AnySocket, Connection, backoff
from ..deafness import Deafness, Heard
from ..errors import AcomfyError, HTTPError, ProtocolError, ServerError, ServerUnreachable
from ..events import Logs
from ..frames import decode_binary, decode_text
from ..listings import read_history
from ..look import read_queue
from ..outputs import FileReference
from ..overview import Overview, ServerView
from ..server_info import read_log_entries, read_system_stats
from ..sessions import Sessions
from ..transport import Transport

_ROUND = 1.0
_LEAST_ROUND = 0.3
_STATS_EVERY = 2.0
_QUEUE_EVERY = 10.0
_QUEUE_EVERY_SOCKETLESS = 3.0
_QUEUE_SHARE = 20.0
_RECENT = 8
_CONNECT_TIMEOUT = 5.0
_READ_TIMEOUT = 8.0
_LONGEST_DELAY = 3.0
_LARGEST_PICTURE = 1 << 26


class Observer:
    """Watch one server.

    It asks once a second how many prompts there are, one integer, and for more only when something changed: a long
    queue, whose answer holds all graphs, is read so seldom that it takes a twentieth of the time at most.

    Args:
        url: The server's address, with credentials if it wants any.

    Attributes:
        view: What is known.
        hears: How the WebSocket is: ``open``, ``closed``, ``refused`` or ``deaf``.
    """

    def __init__(self, url: str) -> None:
        access = Access(url)
        self.view = ServerView()
        self.hears = "closed"
        self.url = str(access.base)
        self._client_id = str(uuid.uuid4())  # nobody else's: the server sends to the newest socket of an id alone
        self._sessions = Sessions(access, None)
        self._transport = Transport(
            access,
            self._sessions.http,
            bare_session=self._sessions.bare,
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=_READ_TIMEOUT,
        )
        self._api = Api(self._transport)
        self._connection = Connection(
            open_socket=self._open_socket,
            ask=self._api.get_prompt,
            receive_text=self._receive_text,
            receive_binary=self._receive_binary,
            on_open=self._opened,
            on_lost=self._lost,
            delays=_delays,
        )
        self._deafness = Deafness()
        self._generation = 0
        self._pulse = asyncio.Event()
        self._changed = True
        self._logs_wanted = True
        self._number: int | None = None
        self._queue_due = self._stats_due = 0.0
        self._queue_allowed = 0.0

    def overview(self) -> Overview:
        """Give what is known now."""
        return self.view.overview(time.monotonic())

    async def look(self) -> None:
        """Ask for everything once.

        Raises:
            ServerError: The server does not answer, or is no ComfyUI.
        """
        self.view.take_stats(read_system_stats(await self._api.get_system_stats()))
        await self._read_queue()
        await self._read_history()
        with suppress(AcomfyError):
            await self._read_logs()

    async def picture(self, file: FileReference) -> bytes | None:
        """Get a picture from the server, made small by it; None when that fails."""
        try:
            async with self._api.view(
                file.filename, subfolder=file.subfolder, type=file.type, preview="jpeg;70"
            ) as response:
                length = response.content_length
                return None if length is not None and length > _LARGEST_PICTURE else await response.read()
        except AcomfyError:
            return None

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None, None]:
        """Keep the overview while the block runs."""
        tasks = [asyncio.create_task(self._connection.run()), asyncio.create_task(self._run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Let go of the server."""
        await self._sessions.close()

    # --- Asking ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            begin = time.monotonic()
            try:
                await self._round()
            except ServerError as exc:
                self.view.failed(reason_of(exc), time.monotonic())
                self._changed, self._stats_due = True, 0.0
                self._deafness.forget()
            else:
                if self.view.answered():
                    self._connection.hurry()
            await asyncio.sleep(max(0.0, begin + _LEAST_ROUND - time.monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(_ROUND - _LEAST_ROUND):
                    await self._pulse.wait()
            self._pulse.clear()

    async def _round(self) -> None:
        now = time.monotonic()
        number = await self._api.get_prompt()
        self._check_hearing(number)
        changed, self._changed = self._changed or number != self._number, False
        self._number = number
        if (changed or now >= self._queue_due) and now >= self._queue_allowed:
            if await self._read_queue() or changed:
                await self._read_history()
        else:
            self._changed = changed
        if now >= self._stats_due:
            self._stats_due = now + _STATS_EVERY
            self.view.take_stats(read_system_stats(await self._api.get_system_stats()))
        if self._logs_wanted:
            await self._want_logs()

    async def _read_queue(self) -> bool:
        begin = time.monotonic()
        changed = self.view.take_queue(read_queue(await self._api.get_queue()), begin)
        end = time.monotonic()
        self._queue_allowed = end + (end - begin) * _QUEUE_SHARE if end - begin > _LEAST_ROUND else 0.0
        self._queue_due = end + (_QUEUE_EVERY if self.hears == "open" else _QUEUE_EVERY_SOCKETLESS)
        return changed

    async def _read_history(self) -> None:
        self.view.take_history(read_history(await self._api.get_histories(max_items=_RECENT)))

    async def _want_logs(self) -> None:
        """Have the log sent to our socket; a server, or a proxy, need not have that route."""
        self._logs_wanted = False
        with suppress(HTTPError, ProtocolError):
            if self._connection.live:
                await self._api.patch_logs_subscribe(self._client_id, True)
            await self._read_logs()

    async def _read_logs(self) -> None:
        self.view.take_logs(read_log_entries((await self._api.get_raw_logs())["entries"]))

    # --- Listening -------------------------------------------------------------------------------------------------

    async def _open_socket(self) -> AnySocket:
        try:
            return await self._transport.open_socket(
                self._sessions.socket(), self._client_id, heartbeat=20.0, max_message_size=1 << 30
            )
        except HTTPError:
            self.hears = "refused"
            raise

    def _opened(self) -> None:
        self._generation += 1
        self.hears = "open"
        self._changed = self._logs_wanted = True
        self._pulse.set()

    def _lost(self) -> None:
        self.hears = "closed"
        self.view.remaining = None

    def _receive_text(self, frame: bytes) -> None:
        with suppress(ProtocolError):
            event: Any = decode_text(frame)
            if isinstance(event, Logs):
                self.view.take_logs(read_log_entries(event.entries))
                return
            statuses = self.view.statuses
            self.view.take_event(event)
            if self.view.statuses != statuses:
                self._changed = True
                self._pulse.set()

    def _receive_binary(self, frame: bytes) -> None:
        with suppress(ProtocolError):
            self.view.take_event(decode_binary(frame))

    def _check_hearing(self, number: int) -> None:
        """Notice that the socket tells nothing of what HTTP tells, and open it anew."""
        if not self._connection.live:
            return
        heard = Heard(self.view.statuses, self._generation)
        if self._deafness.contradicts(self.view.remaining, number, heard):
            self.hears = "deaf"
            if self._deafness.may_reopen(time.monotonic()):
                self._connection.reopen("it does not tell what HTTP tells")
        elif self.view.remaining == number:
            self.hears = "open"


def reason_of(exc: ServerError) -> str:
    """Say why a server does not answer, in short: what is shown beside it says the rest."""
    text = str(exc)
    if isinstance(exc, ServerUnreachable):
        text = text.removeprefix(f"no answer from {exc.url}: ").rpartition("; ")[0]
    return text


def _delays() -> Iterator[float]:
    return backoff(longest=_LONGEST_DELAY)

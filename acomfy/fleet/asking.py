"""Ask the broker for what belongs to an object store, through lost connections and restarts.

Patience counts from the last progress, so that a large file may take its time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import nats.errors
from nats.aio.client import Client as NATS
from nats.js import JetStreamContext
from nats.js import errors as js_errors

from ..errors import BrokerError, ServerUnreachable
from .objects import StoreFull, stream

logger = logging.getLogger(__name__)

T = TypeVar("T")


_LOOK = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0

# JetStream's error codes (nats-server server/errors.json).
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_FULL = (10002, 10023, 10028, 10047, 10077)
_TOO_MANY_REQUESTS = 429


PASSING = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    js_errors.NoStreamResponseError,
    js_errors.APIError,
)
"""What passes, or `Asking.bear` knows better."""


class Link(Protocol):
    """The connection to a broker, as far as it is asked here; see `Broker`."""

    @property
    def shown(self) -> str: ...

    @property
    def js(self) -> JetStreamContext: ...

    @property
    def nc(self) -> NATS: ...

    async def ready(self, timeout: float | None) -> object: ...


class Lost(nats.errors.TimeoutError):
    """An answer that did not come in time, or went down with its connection."""

    def __str__(self) -> str:
        return "the answer did not come"


class Patience:
    """How long there may be no progress.

    Args:
        seconds: Until it is over; None for never.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._furthest = 0
        self._since = time.monotonic()

    def reached(self, place: int) -> None:
        """Note how far it came. Only what goes beyond all that was counts."""
        if place > self._furthest:
            self._furthest = place
            self._since = time.monotonic()

    @property
    def left(self) -> float:
        return math.inf if self.seconds is None else self._since + self.seconds - time.monotonic()


class Asking:
    """Questions about one bucket.

    Args:
        link: The way to the broker.
        silence: Seconds to wait for an answer before it is asked for again.
        patience: Seconds without any progress after which it is given up; None for never.
    """

    def __init__(self, link: Link, bucket: str, *, silence: float, patience: float | None) -> None:
        self.bucket = bucket
        self.silence = silence
        self._link = link
        self._shown = link.shown
        self._patience = patience

    @property
    def js(self) -> JetStreamContext:
        """That of the connection that there is now, once it was waited for."""
        return self._link.js

    @property
    def nc(self) -> NATS:
        return self._link.nc

    def patience(self) -> Patience:
        return Patience(self._patience)

    async def persist(self, action: Callable[[], Awaitable[T]], patience: Patience | None = None) -> T | None:
        """Do something until it works; None when it asked for a message that is not there.

        Raises:
            ServerUnreachable: There was no progress for as long as the patience lasts.
            BrokerError: The broker said no, or has no such bucket.
            StoreFull: There is no room.
            ClientClosed: The connection was closed for good.
        """
        patience = patience or self.patience()
        pause = _FIRST_PAUSE
        while True:
            try:
                await self.connected(patience)
                return await action()
            except PASSING as exc:
                if isinstance(exc, js_errors.NotFoundError) and exc.err_code == _NO_MESSAGE:
                    return None
                await self.bear(exc, patience)
            except nats.errors.Error as exc:
                raise BrokerError(self._shown, str(exc)) from exc
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def bear(self, exc: Exception, patience: Patience) -> None:
        """Raise what happened as an error of this package, unless another try may mend it."""
        if isinstance(exc, js_errors.NoStreamResponseError):
            exc = await self._why_nobody_answers(exc)
        if isinstance(exc, js_errors.APIError) and exc.code is not None:
            if exc.err_code == _NO_STREAM:
                raise BrokerError(self._shown, f"it has no object store {self.bucket}", code=exc.err_code) from exc
            if exc.err_code in _FULL:
                raise StoreFull(self.bucket, exc.description or str(exc)) from exc
            if exc.code < 500 and exc.code != _TOO_MANY_REQUESTS:
                raise BrokerError(self._shown, exc.description or str(exc), code=exc.err_code) from exc
        if patience.left <= 0:
            raise self.unreachable(f"no progress for {patience.seconds} s: {exc}") from exc
        logger.debug("asking for the object store %s again: %r", self.bucket, exc)

    async def _why_nobody_answers(self, exc: Exception) -> Exception:
        """Ask for the bucket's stream: that there is none is known at once, that it has no leader passes."""
        try:
            await self.answer(self.js.stream_info(stream(self.bucket)))
        except PASSING as cause:
            return cause
        return exc

    async def connected(self, patience: Patience) -> None:
        """Wait for a connection: what is sent without one, nats-py keeps, and sends who knows when.

        Raises:
            ServerUnreachable: There is none in time.
            ClientClosed: It was closed for good.
        """
        while True:
            await self._link.ready(None if patience.seconds is None else max(patience.left, _LOOK))
            if self.nc.is_connected:
                return
            if patience.left <= 0:
                raise self.unreachable("the connection broke and did not come back in time")
            await asyncio.sleep(_LOOK)

    async def answer(self, asked: Awaitable[T], nc: NATS | None = None) -> T:
        """Wait for an answer, but not for one that was lost with its connection, which is ``nc`` or the present one.

        Raises:
            Lost: It did not come in time, or cannot come any more.
        """
        future = asyncio.ensure_future(asked)
        life = Life(nc or self.nc)
        until = time.monotonic() + self.silence
        try:
            while not future.done():
                await asyncio.wait([future], timeout=_LOOK)
                if not future.done() and (life.is_over or time.monotonic() >= until):
                    raise Lost
            return future.result()
        finally:
            if not future.done():
                future.cancel()

    async def hand_over(self, sending: Awaitable[T]) -> T:
        """Hand something to nats-py, which waits without end while its buffer is full.

        Raises:
            Lost: It was not taken in time.
        """
        try:
            async with asyncio.timeout(self.silence):
                return await sending
        except TimeoutError:
            raise Lost from None

    def unreachable(self, reason: str) -> ServerUnreachable:
        hint = "is nats-server running there, with JetStream (-js), and may this user use the object store?"
        return ServerUnreachable(self._shown, reason, maybe_sent=True, hint=hint)


class Life:
    """The time from one connect to the next: an answer that did not come by then is lost."""

    def __init__(self, nc: NATS) -> None:
        self._nc = nc
        self._number = nc.stats["reconnects"]

    @property
    def is_over(self) -> bool:
        return self._nc.is_closed or self._nc.stats["reconnects"] != self._number

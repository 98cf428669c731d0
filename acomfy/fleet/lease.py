"""The lease of an order: while its worker says now and then that it lives, nobody else gets the order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.msg import Msg

from ..errors import AcomfyError
from .broker import Broker

logger = logging.getLogger(__name__)

_PARTS = 4
_ANSWER = 2.0
_PAUSE = 0.5
_REFUSED = 60


class Lease:
    """The lease of one order.

    Args:
        seconds: For which it lasts without a sign of life (the ``ack_wait`` of the lane).

    Attributes:
        doubtful: Set when it may have run out: another worker may have the order now. `trust` ends that.
    """

    def __init__(self, broker: Broker, message: Msg, seconds: float) -> None:
        self.doubtful = asyncio.Event()
        self._broker = broker
        self._subject = message.reply
        self._seconds = seconds
        self._confirmed = asyncio.get_running_loop().time()

    @property
    def may_be_lost(self) -> bool:
        """Whether it may have run out meanwhile."""
        return asyncio.get_running_loop().time() - self._confirmed > self._seconds

    def trust(self) -> None:
        """Note that the order turned out to be this worker's still."""
        self.doubtful.clear()
        self._confirmed = asyncio.get_running_loop().time()

    async def keep(self) -> None:
        """Say now and then that the worker lives, until this is cancelled."""
        while True:
            await asyncio.sleep(self._seconds / _PARTS)
            if self.may_be_lost:
                self.doubtful.set()
            if await self._say(b"+WPI") and not self.doubtful.is_set():
                self._confirmed = asyncio.get_running_loop().time()

    async def done(self) -> None:
        """Take the order from the queue: its outcome is written. A broker that is away is waited for.

        One that is there and does not take it has no such lane any more, after a while; then the order is gone too.
        """
        refused = 0
        while refused < _REFUSED and not await self._say(b"+ACK"):
            refused += self._broker.connected
            await asyncio.sleep(_PAUSE)

    async def release(self, delay: float = 0.0) -> None:
        """Give the order back, for others to take in so many seconds; if the broker is away, the lease runs out."""
        await self._say(b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK")

    async def _say(self, what: bytes) -> bool:
        """Say something of the order; tell whether the broker heard it."""
        try:
            await self._broker.ready(_ANSWER)
            await self._broker.nc.request(self._subject, what, timeout=_ANSWER)
        except (nats.errors.Error, AcomfyError, OSError) as exc:
            logger.debug("the broker was not told %r: %r", what, exc)
            return False
        return True


class Unleased:
    """In the place of a lease, for an order that was not taken from its lane.

    Whoever takes it there asks whether another has it, and leaves it then.

    Args:
        withdraw: Takes the order from the queue.
    """

    may_be_lost = False

    def __init__(self, withdraw: Callable[[], Awaitable[None]]) -> None:
        self.doubtful = asyncio.Event()
        self._withdraw = withdraw

    def trust(self) -> None:
        """See `Lease.trust`; it is never doubtful."""

    async def keep(self) -> None:
        """See `Lease.keep`; there is nothing to keep."""

    async def done(self) -> None:
        """See `Lease.done`."""
        await self._withdraw()

    async def release(self, delay: float = 0.0) -> None:
        """See `Lease.release`; others take it once the lease of whoever took it has run out."""

"""What others want to know or have of an order while a worker has it: that it is cancelled, or whether it is there.

Both come on one plain subject. A wish to cancel is also left as a record, as nobody may hear it: the worker may be
about to take the order, or be cut off from the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import nats.errors
from nats.aio.msg import Msg

from ..errors import AcomfyError
from .broker import Broker
from .records import Records

logger = logging.getLogger(__name__)

_HAS = b"has"
_ANSWER, _TRIES = 0.5, 4


class Wishes:
    """What is wanted of one order.

    Attributes:
        cancelling: Set once it is to be cancelled.
        has_it: Whether this worker follows a prompt of it, and says so to others who got it.
    """

    def __init__(self, broker: Broker, records: Records) -> None:
        self.cancelling = asyncio.Event()
        self.has_it = False
        self._broker = broker
        self._records = records
        self._looking = asyncio.Event()
        self._asked_by: list[Msg] = []

    @asynccontextmanager
    async def heard(self, job_id: str) -> AsyncGenerator[None, None]:
        """Hear what is wanted; those who asked for a cancel are told when the block is left."""
        broker = self._broker
        listening = await broker.listen(broker.names.cancel(job_id), self._receive)
        try:
            yield
        finally:
            await broker.unlisten(listening)
            for message in self._asked_by:
                await broker.tell(message.reply, b"1")

    async def _receive(self, message: Msg) -> None:
        if message.data != _HAS:
            self._asked_by.append(message)
            self.cancelling.set()
        elif self.has_it:
            await self._broker.tell(message.reply, b"1")

    def look(self) -> None:
        """Have it looked for a wish that was left while nobody heard it."""
        self._looking.set()

    async def look_when_told(self, job_id: str) -> None:
        """Look for a wish whenever `look` was called, until this is cancelled."""
        while True:
            await self._looking.wait()
            self._looking.clear()
            try:
                if await self._records.is_cancelled(job_id):
                    self.cancelling.set()
            except AcomfyError as exc:
                logger.debug("whether %s is cancelled is not known: %s", job_id, exc)

    async def another_has_it(self, job_id: str, *, patient: bool) -> bool:
        """Ask whether an order is at a worker that lives: its lease may have run out only as the broker was away.

        Args:
            patient: Give it time to be back on the broker: something would be lost, pictures that were streamed to it.
        """
        for _ in range(_TRIES if patient else 1):
            try:
                await self._broker.nc.request(self._broker.names.cancel(job_id), _HAS, timeout=_ANSWER)
                return True
            except nats.errors.NoRespondersError:
                await asyncio.sleep(_ANSWER)
            except nats.errors.Error as exc:
                logger.debug("nobody said that it has %s: %r", job_id, exc)
        return False

"""Take orders from lanes, one at a time, without waiting for one to come."""

from __future__ import annotations

import asyncio
import itertools
import logging
from contextlib import suppress

import nats.errors
from nats.aio.msg import Msg

from .broker import ANSWER_TIMEOUT, Broker, Listening
from .names import Lane

logger = logging.getLogger(__name__)

_LAST_ANSWER = 1.0
_REQUEST = b'{"batch":1,"no_wait":true}'


class Puller:
    """The way by which one taker's orders come.

    Orders come with their own subject, so that nothing tells which request one answers; those requests of which the
    answer was lost with a connection may be answered late. So whatever comes is taken by whoever asks; what comes while
    nobody does is given back at once, as nobody would keep its lease.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._inbox = ""
        self._listening: Listening | None = None
        self._numbers = itertools.count()
        self._asked: dict[str, asyncio.Future[Msg | None]] = {}
        self._left: set[str] = set()
        self._none_left = asyncio.Event()

    async def begin(self) -> None:
        """Begin, once the broker is ready."""
        self._inbox = self._broker.nc.new_inbox()
        self._listening = await self._broker.listen(f"{self._inbox}.*", self._receive)

    async def end(self) -> None:
        """End. What was asked for last, and not waited for, is given back; a broker that is away is not waited for."""
        if self._left and self._broker.connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_ANSWER):
                    await self._none_left.wait()
        if self._listening is not None:
            await self._broker.unlisten(self._listening)

    async def pull(self, lane: Lane) -> Msg | None:
        """Take an order from a lane; None when none waits there, or the broker is away.

        Cancelling it loses none: one that comes all the same is given back.
        """
        await self._broker.ready(None)
        token = f"{self._inbox}.{next(self._numbers)}"
        future = self._asked[token] = asyncio.get_running_loop().create_future()
        taken = False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._broker.nc.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{self._broker.names.jobs}.{lane.consumer}", _REQUEST, reply=token
                )
                message: Msg | None = await future
            taken = True
            return message
        except (TimeoutError, nats.errors.Error) as exc:
            logger.debug("no order from %s: %r", lane, exc)
            return None
        except asyncio.CancelledError:
            if not future.done() or future.cancelled():
                self._left.add(token)
                self._none_left.clear()
            raise
        finally:
            del self._asked[token]
            if not taken and future.done() and not future.cancelled() and (message := future.result()) is not None:
                await self._give_back(message)

    async def _receive(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status")
        if status is not None:
            future = self._asked.get(message.subject)
            if future is not None and not future.done():
                future.set_result(None)
            return self._answered(message.subject)
        token = next((token for token, future in self._asked.items() if not future.done()), None)
        if token is None:
            await self._give_back(message)
            return self._answered(next(iter(self._left), ""))
        self._asked[token].set_result(message)
        if self._left:  # it may answer one of those: then the own answer of who has it is still to come
            self._left.pop()
            self._left.add(token)

    def _answered(self, token: str) -> None:
        """Note that a question was answered that nobody waits for any more."""
        self._left.discard(token)
        if not self._left:
            self._none_left.set()

    async def _give_back(self, message: Msg) -> None:
        logger.debug("an order came too late and goes back: %s", message.subject)
        await self._broker.tell(message.reply, b"-NAK")

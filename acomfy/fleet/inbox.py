"""The outcomes of one submitter's orders, as they are written.

They are read from the bucket's stream by a pull consumer of our own, which lives in the broker's memory, from the last
one that was read on. Whatever happens to it (the broker restarts, the stream changes its leader, the connection is cut)
shows as silence where a heartbeat should be, or as an error; then another is made where it ended. So nothing is missed,
and nothing hangs on one subscription.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ..errors import BrokerError, ServerError, ServerUnreachable
from .broker import Broker
from .natspy import drop

logger = logging.getLogger(__name__)

_BATCH = 256
_EXPIRES, _HEARTBEAT = 60.0, 5.0
_REQUEST = json.dumps(
    {"batch": _BATCH, "expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_HEARTBEAT * 1e9)}
).encode()
_SILENCE = 2.2 * _HEARTBEAT
_LEFT = 300.0
_PAUSE = 0.2

_HEARTBEATS = "100"
_OVER = ("404", "408")


class Inbox:
    """Read the outcomes of one submitter.

    Args:
        take: Called with a job_id and its outcome as it was written, in the order in which they were.

    """

    def __init__(self, broker: Broker, client_id: str, take: Callable[[str, bytes], None]) -> None:
        self._broker = broker
        self._begun = asyncio.Event()
        self._filter = f"$KV.{broker.names.outcomes}.{client_id}.*"
        self._stream = f"KV_{broker.names.outcomes}"
        self._take = take
        self._next = 0
        self._pull = _Pull()

    async def begin(self, timeout: float | None) -> None:
        """Wait until nothing can be missed any more, for so many seconds; None: for ever.

        Raises:
            ServerUnreachable, BrokerError, ClientClosed: The broker cannot be used.
        """
        if self._begun.is_set():
            return
        try:
            async with asyncio.timeout(timeout):
                await self._broker.ready(None)
                await self._begun.wait()
        except TimeoutError:
            await self._broker.ready(0)  # says why, as a rule
            raise ServerUnreachable(
                self._broker.shown, "its streams do not answer", hint="has the cluster lost too many servers?"
            ) from None

    async def run(self) -> None:
        """Read until this is cancelled."""
        with self._broker.when_open(self._reopened):
            await self._read_on()

    async def _read_on(self) -> None:
        complained = False
        while True:
            try:
                await self._read()
            except ServerError as exc:
                logger.log(logging.DEBUG if complained else logging.WARNING, "no outcomes can be read: %s", exc)
                complained = True
            except (nats.errors.Error, OSError) as exc:
                logger.debug("the outcomes are read anew: %r", exc)
            await asyncio.sleep(_PAUSE)

    async def _look(self) -> None:
        """Find where to begin: behind the last outcome, or where it was left off, if the stream still is the same."""
        info = await self._broker.persist(lambda js: js.stream_info(self._stream), patience=None)
        last = info.state.last_seq
        if not self._begun.is_set():
            self._next = last + 1
        elif last + 1 < self._next:
            self._next = 1  # the broker lost its disk, and the stream began anew
        self._begun.set()

    def _reopened(self) -> None:
        self._pull.end(ConnectionResetError("the connection was made anew"))

    async def _read(self) -> None:
        """Read by one consumer, until something is wrong with it."""
        js = await self._broker.ready(None)
        nc = self._broker.nc
        subscription, consumer = None, ""
        await self._look()
        try:
            consumer = await self._consumer()
            inbox = nc.new_inbox()
            self._pull = pull = _Pull()
            subscription = await nc.subscribe(inbox, cb=self._receive, pending_msgs_limit=-1, pending_bytes_limit=-1)
            while True:
                await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{consumer}", _REQUEST, inbox)
                await pull.over()
                self._pull = pull = _Pull()
        finally:
            await drop(subscription)
            if consumer and self._broker.connected:
                await _quietly(js.delete_consumer(self._stream, consumer))

    async def _consumer(self) -> str:
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._next,
            ack_policy=AckPolicy.NONE,
            filter_subject=self._filter,
            inactive_threshold=_LEFT,
            mem_storage=True,
            num_replicas=1,
        )
        info = await self._broker.persist(lambda js: js.add_consumer(self._stream, config=config), patience=None)
        return str(info.name)

    async def _receive(self, message: Msg) -> None:
        pull = self._pull
        pull.heard = True
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            pull.taken += 1
            self._next = message.metadata.sequence.stream + 1
            self._take(message.subject.rpartition(".")[2], message.data)
            if pull.taken >= _BATCH:
                pull.end()
        elif status in _OVER:
            pull.end()
        elif status != _HEARTBEATS:
            pull.end(BrokerError(self._broker.shown, f"{status} {headers.get('Description', '')}"))


class _Pull:
    """One request for a batch."""

    def __init__(self) -> None:
        self.taken = 0
        self.heard = False
        self._ended = asyncio.Event()
        self._error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        self._error = self._error or error
        self._ended.set()

    async def over(self) -> None:
        """Wait until the batch has ended.

        Raises:
            ConnectionError: Nothing was heard for longer than heartbeats are apart, or the connection is another.
            BrokerError: The broker ended it.
        """
        while not self._ended.is_set():
            self.heard = False
            try:
                async with asyncio.timeout(_SILENCE):
                    await self._ended.wait()
            except TimeoutError:
                if not self.heard:
                    raise ConnectionResetError("no heartbeat of the consumer came") from None
        if self._error is not None:
            raise self._error


async def _quietly(action: Awaitable[object]) -> None:
    try:
        await action
    except (nats.errors.Error, OSError) as exc:
        logger.debug("left as it is: %r", exc)

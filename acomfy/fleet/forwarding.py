"""Tell a submitter how its prompt comes on: that it began, always; its events, only while somebody listens to them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace

import orjson
from nats.aio.msg import Msg

from .. import frames
from ..events import Event, Executing, ExecutionStart, PreviewImage
from ..job import Job
from ..verdict import JobState
from .broker import Broker
from .hearing import LISTENING_LASTS
from .wire import VERSION, Attempt, Order

logger = logging.getLogger(__name__)


class Forwarding:
    """Forward what is heard of one prompt, until its end."""

    def __init__(self, broker: Broker, order: Order, attempt: Attempt, job: Job) -> None:
        self._broker = broker
        self._order = order
        self._attempt = attempt
        self._job = job
        self._listened = asyncio.Event()
        self._until = 0.0

    async def run(self) -> None:
        """Forward, until this is cancelled or the prompt has ended."""
        names = self._broker.names
        # First of all: who hears that it was begun says at once that it listens.
        listening = await self._broker.listen(names.listen(self._order.job_id), self._somebody_listens)
        starting = asyncio.create_task(self._tell_the_start())
        try:
            await self._tell_where(running=self._runs)
            while not self._job.done():
                await self._listened.wait()
                await self._forward()
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._broker.unlisten(listening)

    async def _somebody_listens(self, message: Msg) -> None:
        if message.reply:  # it asks where the prompt is, once
            return await self._broker.tell(message.reply, self._where(running=self._runs))
        self._until = asyncio.get_running_loop().time() + LISTENING_LASTS
        self._listened.set()

    @property
    def _runs(self) -> bool:
        return self._job.state is not JobState.PENDING

    async def _tell_where(self, *, running: bool) -> None:
        await self._broker.tell(self._broker.names.started(self._order.client_id), self._where(running=running))

    def _where(self, *, running: bool) -> bytes:
        said = {
            "v": VERSION,
            "id": self._order.job_id,
            "prompt_id": self._job.prompt_id,
            "attempt": self._attempt.number,
            "server": self._attempt.server,
            "worker": self._attempt.worker,
            "running": running,
        }
        return orjson.dumps(said)

    async def _tell_the_start(self) -> None:
        async with aclosing(self._job.events()) as events:
            async for event in events:
                if isinstance(event, ExecutionStart):
                    await self._tell_where(running=True)
                    return

    async def _forward(self) -> None:
        """Forward events, beginning with what is known, for as long as somebody listens."""
        loop = asyncio.get_running_loop()
        node = self._job.node
        async with aclosing(self._job.events()) as events:
            try:
                while loop.time() < self._until:
                    try:
                        async with asyncio.timeout_at(self._until):
                            event = await anext(events)
                    except TimeoutError:
                        continue
                    except StopAsyncIteration:
                        break
                    await self._tell(event)
                    if isinstance(event, ExecutionStart) and node is not None:
                        await self._tell(Executing(node, node, self._job.prompt_id))  # before anybody listened
            except asyncio.CancelledError:
                if self._job.done():  # what is left is here already
                    async for event in events:
                        await self._tell(event)
                raise
        self._listened.clear()

    async def _tell(self, event: Event) -> None:
        frame = frame_of(event)
        if len(frame) <= self._broker.largest_message:
            await self._broker.tell(self._broker.names.events(self._order.job_id), frame)


def frame_of(event: Event) -> bytes:
    """Write an event as a frame that says itself which prompt and node it is about."""
    if isinstance(event, PreviewImage) and not event.has_metadata:
        event = replace(event, has_metadata=True)
    frame = frames.encode(event)
    return frame if isinstance(frame, bytes) else frame.encode("utf-8", "surrogatepass")

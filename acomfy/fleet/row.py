"""Send the chunks of a file."""

from __future__ import annotations

import asyncio

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import errors as js_errors

from .asking import Asking, Patience
from .natspy import drop

_UNACKNOWLEDGED = 15  # 2 MB: what nats-py buffers before it waits
_ARRIVAL = 1.0


class Row:
    """Chunks on their way to one subject, one behind the other, some ahead of the acknowledgements.

    nats-py 2.16 has ``publish_async`` for that, but what the broker refuses never comes back from it (its callback for
    the answers raises).

    Attributes:
        size, chunks: How much was sent.
        chunk_size: Bytes of every chunk but the last; 0 when they differ.
    """

    def __init__(self, asking: Asking, subject: str, patience: Patience) -> None:
        self.size = self.chunks = self.chunk_size = 0
        self._asking = asking
        self._nc = asking.nc
        self._subject = subject
        self._patience = patience
        self._inbox = self._nc.new_inbox()
        self._subscription: Subscription | None = None
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._last = 0
        self._stored = 0

    async def send(self, chunk: bytes) -> None:
        """Send a chunk, once few enough of those before are under way."""
        while len(self._answers) >= _UNACKNOWLEDGED:
            await self._acknowledged()
        reply = f"{self._inbox}.{self.chunks}"
        if self._subscription is None:
            self._subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=self._answered)
        self._answers[reply] = asyncio.get_running_loop().create_future()
        await self._asking.hand_over(self._nc.publish(self._subject, chunk, reply=reply))
        if not self.chunks:
            self.chunk_size = len(chunk)
        elif len(chunk) > self.chunk_size or self.size != self.chunks * self.chunk_size:
            self.chunk_size = 0
        self.size += len(chunk)
        self.chunks += 1

    async def finish(self) -> None:
        """Wait until all are stored."""
        while self._answers:
            await self._acknowledged()

    async def aclose(self) -> None:
        """Let what is under way arrive, so that it can be removed; for a moment, and not if it cannot arrive."""
        try:
            if self._answers and self._nc.is_connected:
                await asyncio.wait(self._answers.values(), timeout=_ARRIVAL)
        finally:
            await drop(self._subscription)

    async def _answered(self, message: Msg) -> None:
        answer = self._answers.get(message.subject)
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _acknowledged(self) -> None:
        """Wait until the oldest chunk is stored."""
        reply, answer = next(iter(self._answers.items()))
        message = await self._asking.answer(answer, self._nc)
        del self._answers[reply]
        if message.headers and message.headers.get("Status") == "503":
            raise js_errors.NoStreamResponseError
        ack = orjson.loads(message.data)
        if "error" in ack:
            js_errors.APIError.from_error(ack["error"])
        if ack["seq"] <= self._last:  # it overtook the one before, on the way around a server that fell
            raise js_errors.ServiceUnavailableError(code=503, description="chunks were stored out of order")
        self._last = ack["seq"]
        self._stored += 1
        self._patience.reached(self._stored)

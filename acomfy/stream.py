"""Iterators over events, each with a buffer of its own: a slow reader delays nobody and loses nothing that matters.

Progress and previews are states: of each node only the newest waits in the buffer. Everything else waits its turn; it
is bounded by the size of the graph, but for what custom nodes send, of which the oldest goes when too much waits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Self

from . import events

MOST_WAITING = 10_000

_NEWEST_ONLY = (events.Progress, events.ProgressState, events.PreviewImage, events.Status)


class Buffer:
    """Events that wait for one reader.

    Attributes:
        dropped: Progress and previews that a newer one replaced before they were read, and messages that did not fit.
        keeps_all_images: Nodes whose pictures are outputs, of which none is dropped.
    """

    __slots__ = ("_ended", "_next", "_waiting", "_wakeup", "dropped", "keeps_all_images")

    def __init__(self, keeps_all_images: frozenset[str] = frozenset()) -> None:
        self.keeps_all_images = keeps_all_images
        self.dropped = 0
        self._waiting: OrderedDict[Hashable, events.Event] = OrderedDict()
        self._next = 0
        self._ended = False
        self._wakeup: asyncio.Future[None] | None = None

    def put(self, event: events.Event) -> None:
        """Add an event. Never waits, never fails."""
        key = self._key(event)
        if self._waiting.pop(key, None) is not None:
            self.dropped += 1
        elif len(self._waiting) >= MOST_WAITING:
            self._make_room()
        self._waiting[key] = event
        self._wake()

    def end(self) -> None:
        """Let the reader finish once it has read what waits."""
        self._ended = True
        self._wake()

    def close(self) -> None:
        """Let the reader finish at once."""
        self._waiting.clear()
        self.end()

    async def get(self) -> events.Event:
        """Wait for the next event. Cancelling it loses none.

        Raises:
            StopAsyncIteration: It ended.
            RuntimeError: Another task waits for it.
        """
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            if self._wakeup is not None and not self._wakeup.done():
                raise RuntimeError("another task waits for the next event; each reader needs an iterator of its own")
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        return self._waiting.popitem(last=False)[1]

    def _key(self, event: events.Event) -> Hashable:
        if isinstance(event, _NEWEST_ONLY):
            node = getattr(event, "node_id", None) or getattr(event, "node", None)
            if not (isinstance(event, events.PreviewImage) and node in self.keeps_all_images):
                return type(event), node
        self._next += 1
        return self._next

    def _make_room(self) -> None:
        for key, event in self._waiting.items():
            if isinstance(event, events.Unknown | events.Text | events.Logs):
                del self._waiting[key]
                self.dropped += 1
                return

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class EventStream:
    """An asynchronous iterator over events; it listens from the moment it was made until it is closed or let go.

    It belongs to one task at a time.
    """

    def __init__(self, buffer: Buffer, close: Callable[[Buffer], None]) -> None:
        self._buffer = buffer
        self._close = close

    @property
    def dropped(self) -> int:
        """How many progress, previews and messages of custom nodes were left out because this reader was slow."""
        return self._buffer.dropped

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> events.Event:
        """Wait for the next event. Cancelling it loses none."""
        return await self._buffer.get()

    async def aclose(self) -> None:
        """Stop listening, and end: what waits is not read any more."""
        self.__del__()

    def __del__(self) -> None:
        self._buffer.close()
        self._close(self._buffer)

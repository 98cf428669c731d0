"""Every prompt's place in the server's queue, read once for all who ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from .look import QueueSnapshot
from .shared_reads import Spawn, begin

_FRESH = 1.0


class Places:
    """The queue as it was last read, without its graphs.

    Args:
        read: Reads the queue.
        changes: Gives a value that is another one after each change of the queue that was heard.
        spawn: Runs a coroutine as a task of the client.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[QueueSnapshot]],
        changes: Callable[[], object],
        spawn: Spawn,
    ) -> None:
        self._read = read
        self._changes = changes
        self._spawn = spawn
        self._places: asyncio.Future[Mapping[str, int]] | None = None
        self._seen: tuple[object, float] = (None, 0.0)

    async def of(self, prompt_id: str) -> int | None:
        """Count the prompts before this one; None when it is not in the queue.

        Cancelling it leaves the reading to the others who wait for it.

        Raises:
            ServerError: The server did not answer.
            ClientClosed: The client was closed meanwhile.
        """
        places = self._places
        if places is None or not self._fresh(places):
            loop = asyncio.get_running_loop()
            self._seen = self._changes(), loop.time()
            places = self._places = loop.create_future()
            begin(places, self._read_places, self._spawn)
        await asyncio.wait([places])
        return places.result().get(prompt_id)

    def _fresh(self, places: asyncio.Future[Mapping[str, int]]) -> bool:
        """Tell whether what was read, or is being read, is what a reading that began now would give."""
        changes, since = self._seen
        young = asyncio.get_running_loop().time() - since < _FRESH  # a deaf socket tells of no change
        return changes == self._changes() and (not places.done() or (young and places.exception() is None))

    async def _read_places(self) -> Mapping[str, int]:
        snapshot = await self._read()
        return {item.prompt_id: place for place, item in reversed(list(enumerate(snapshot)))}

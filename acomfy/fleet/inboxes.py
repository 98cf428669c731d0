"""Whose outcomes are heard: this submitter's own, and those of others while a job of theirs is followed here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from nats.aio.msg import Msg

from .broker import Broker
from .inbox import Inbox


class _Heard:
    """One submitter.

    Attributes:
        users: For how many jobs and calls it is heard.
    """

    def __init__(self, inbox: Inbox, tasks: tuple[asyncio.Task[None], ...]) -> None:
        self.inbox = inbox
        self.users = 0
        self.tasks = tasks


class Inboxes:
    """The submitters that one fleet hears of.

    Args:
        take: Called with a job_id and its outcome as it was written.
        begun: Called with what a worker says of where a job is.
        spawn: Runs a coroutine as a task of the fleet.
    """

    def __init__(
        self,
        broker: Broker,
        take: Callable[[str, bytes], None],
        begun: Callable[[bytes], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._broker = broker
        self._take = take
        self._begun = begun
        self._spawn = spawn
        self._heard: dict[str, _Heard] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def enter(self, client_id: str) -> Inbox:
        """Hear of a submitter, until `leave` was called as often as this."""
        heard = self._heard.get(client_id)
        if heard is None:
            inbox = Inbox(self._broker, client_id, self._take)
            tasks = (self._spawn(inbox.run()), self._spawn(self._hear_of_starts(client_id)))
            heard = self._heard[client_id] = _Heard(inbox, tasks)
        heard.users += 1
        return heard.inbox

    def leave(self, client_id: str) -> None:
        """Hear of a submitter no more, if nobody else wants that."""
        heard = self._heard[client_id]
        heard.users -= 1
        if not heard.users:
            del self._heard[client_id]
            for task in heard.tasks:
                task.cancel()

    @contextmanager
    def entered(self, client_id: str) -> Iterator[Inbox]:
        """Hear of a submitter within this context."""
        inbox = self.enter(client_id)
        try:
            yield inbox
        finally:
            self.leave(client_id)

    async def _hear_of_starts(self, client_id: str) -> None:
        async def receive(message: Msg) -> None:
            self._begun(message.data)

        listening = await self._broker.listen(self._broker.names.started(client_id), receive)
        try:
            await asyncio.Event().wait()
        finally:
            await self._broker.unlisten(listening)

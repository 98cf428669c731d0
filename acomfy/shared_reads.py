"""What does not change while a connection lasts: read once, however many ask for it, also at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from .errors import AcomfyError, ClientClosed

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Runs a coroutine as a task of the client."""

_MOST_KEPT = 1000


class SharedReads(Generic[K, T]):
    """Answers of the server, by what was asked; what failed is asked anew.

    Args:
        read: Asks the server.
        spawn: Runs a coroutine as a task of the client.
    """

    def __init__(self, read: Callable[[K], Awaitable[T]], spawn: Spawn) -> None:
        self._read = read
        self._spawn = spawn
        self._answers: dict[K, asyncio.Future[T]] = {}

    async def of(self, key: K) -> T:
        """Give an answer. Cancelling it leaves the reading to the others who wait for it.

        Raises:
            AcomfyError: What the reading raised.
            ClientClosed: The client was closed meanwhile.
        """
        answer = self._answers.get(key)
        if answer is None or (answer.done() and answer.exception() is not None):
            while len(self._answers) >= _MOST_KEPT:
                del self._answers[next(iter(self._answers))]
            answer = self._answers[key] = asyncio.get_running_loop().create_future()
            begin(answer, partial(self._read, key), self._spawn)
        await asyncio.wait([answer])
        return answer.result()

    def known(self, key: K) -> T | None:
        """Give an answer that was read already; None when it was not."""
        answer = self._answers.get(key)
        return answer.result() if answer is not None and answer.done() and answer.exception() is None else None

    def forget(self) -> None:
        """Ask anew from now on; who waits already gets the answer that is under way."""
        self._answers.clear()


def begin(answer: asyncio.Future[T], read: Callable[[], Awaitable[T]], spawn: Spawn) -> None:
    """Begin to read what others wait for. However that ends, the answer is there then."""
    spawn(_fill(answer, read)).add_done_callback(partial(_close, answer))


async def _fill(answer: asyncio.Future[T], read: Callable[[], Awaitable[T]]) -> None:
    try:
        answer.set_result(await read())
    except AcomfyError as exc:
        answer.set_exception(exc)


def _close(answer: asyncio.Future[Any], task: asyncio.Task[None]) -> None:
    if not answer.done():  # the task was cancelled, perhaps before its first step
        answer.set_exception(ClientClosed())
    answer.exception()  # seen: nobody may be waiting any more

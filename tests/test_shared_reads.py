"""What many ask for is read once, and whoever waits for it gets an answer however the reading ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from acomfy.errors import ClientClosed, ServerUnreachable
from acomfy.look import QueueSnapshot
from acomfy.places import Places
from acomfy.shared_reads import SharedReads

pytestmark = pytest.mark.anyio

READS: list[Callable[[Callable[..., Any], Callable[..., Any]], Callable[[str], Coroutine[Any, Any, Any]]]] = [
    lambda read, spawn: SharedReads(read, spawn).of,
    lambda read, spawn: Places(lambda: read("queue"), lambda: 0, spawn).of,
]

each = pytest.mark.parametrize("reader", READS, ids=["SharedReads", "Places"])


def spawn(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coroutine)


def spawn_and_cancel(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Do as a client that is closed in the moment in which it begins to read."""
    task = spawn(coroutine)
    task.cancel()
    return task


async def empty(key: str) -> Any:
    return QueueSnapshot((), ())


@each
async def test_a_reading_that_is_cancelled_before_it_began_is_told_as_closed(reader: Any) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(ClientClosed):
            await reader(empty, spawn_and_cancel)("a")


@each
async def test_many_who_ask_at_once_share_one_reading(reader: Any) -> None:
    asked: list[str] = []

    async def read(key: str) -> Any:
        asked.append(key)
        return await empty(key)

    of = reader(read, spawn)
    await asyncio.gather(*(of("a") for _ in range(5)))
    assert len(asked) == 1


@each
async def test_what_failed_is_told_to_all_and_asked_anew(reader: Any) -> None:
    failures = [ServerUnreachable("http://x", "it is away")]

    async def read(key: str) -> Any:
        if failures:
            raise failures.pop()
        return await empty(key)

    of = reader(read, spawn)
    outcomes = await asyncio.gather(of("a"), of("a"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ServerUnreachable, ServerUnreachable]
    await of("a")

"""Coroutines run together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from acomfy.concurrency import lost_cancellations_raised, together

pytestmark = pytest.mark.anyio


class Oops(Exception):
    pass


class Work:
    """Coroutines that wait at a gate, and what became of them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.fifth = asyncio.Event()
        self.begun: list[int] = []
        self.stopped: list[int] = []

    async def wait(self, number: int) -> int:
        self.begun.append(number)
        if len(self.begun) == 5:
            self.fifth.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped.append(number)
            raise
        return number

    async def fail(self) -> int:
        await asyncio.sleep(0)
        raise Oops


async def test_results_come_in_order_whichever_ends_first() -> None:
    first = asyncio.Event()

    async def late() -> str:
        await first.wait()
        return "late"

    async def early() -> str:
        first.set()
        return "early"

    assert await together([late(), early()]) == ["late", "early"]


async def test_nothing_gives_nothing() -> None:
    assert await together([]) == []
    assert await together(iter(())) == []


async def test_the_first_failure_is_raised_as_it_is_and_stops_the_others() -> None:
    work = Work()
    with pytest.raises(Oops) as failure:
        await together([work.wait(1), work.fail(), work.wait(2)])
    assert failure.value.__cause__ is failure.value.__context__ is None
    assert work.stopped == [1, 2]


async def test_others_that_fail_as_they_are_stopped_change_nothing() -> None:
    async def fail_again() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError
        return 0

    with pytest.raises(Oops):
        await together([fail_again(), Work().fail()])


async def test_the_others_have_ended_when_the_failure_is_raised() -> None:
    cleaned = []

    async def slow_to_stop() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.append(True)
        return 0

    with pytest.raises(Oops):
        await together([slow_to_stop(), Work().fail()])
    assert cleaned == [True]


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelling_it_stops_all(times: int) -> None:
    work = Work()
    task = asyncio.ensure_future(together(work.wait(number) for number in range(5)))
    await work.fifth.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.stopped == [0, 1, 2, 3, 4]


async def test_a_timeout_around_it_stops_all() -> None:
    work = Work()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await together([work.wait(1), work.wait(2)])
    assert work.begun == work.stopped


async def test_nothing_is_left_running() -> None:
    before = asyncio.all_tasks()
    work = Work()
    jobs: list[Coroutine[Any, Any, int]] = [work.wait(1), work.fail()]
    with pytest.raises(Oops):
        await together(jobs)
    work.gate.set()
    assert await together([work.wait(3), work.wait(4)]) == [3, 4]
    assert asyncio.all_tasks() == before


# --- Cancellations that libraries lose -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, Oops("too late")])
async def test_a_cancellation_that_is_lost_beside_a_result_or_an_error_is_raised(error: Oops | None) -> None:
    begun = asyncio.Event()

    async def lose() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    async def work() -> None:
        with lost_cancellations_raised():
            await lose()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_was_not_cancelled_goes_on_as_it_is() -> None:
    with lost_cancellations_raised():
        await asyncio.sleep(0)
    with pytest.raises(Oops), lost_cancellations_raised():
        raise Oops
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            with lost_cancellations_raised():
                await asyncio.Event().wait()


async def test_a_timeout_that_is_lost_is_one_all_the_same() -> None:
    async def lose() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            with lost_cancellations_raised():
                await lose()

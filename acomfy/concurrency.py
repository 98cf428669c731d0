"""Run coroutines together, again, and beyond the call that began them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import HTTPError, ServerUnreachable
from .retry import RetryPolicy

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CANCELLED_AGAIN_AFTER = 0.2


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at once and give their results in order.

    At the first failure the others are stopped and that failure is raised, as it is and not in a group. Cancelling it
    stops all.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def lost_cancellations_raised() -> Iterator[None]:
    """Raise a cancellation that came while this was entered and that did not come through.

    Libraries lose some: ``asyncio.wait_for`` before Python 3.12 does when one comes together with the result or the
    error. Whoever was to end then goes on, perhaps for ever. What came instead is dropped.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


async def repeated(attempt: Callable[[], Awaitable[T]], policy: RetryPolicy | None) -> T:
    """Do something again when it failed in a way that another try may mend; without a policy, never.

    Raises:
        HTTPError, ServerUnreachable: The last try's.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await attempt()
        except (HTTPError, ServerUnreachable) as exc:
            delay = None if policy is None else policy.delay(tries, exc)
            if delay is None:
                raise
            logger.debug("trying again in %.1f s: %s", delay, exc)
        await asyncio.sleep(delay)


class Tasks(set["asyncio.Task[None]"]):
    """The tasks that outlive the calls that began them: held here until they end, so that none is lost or left."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a coroutine as a task; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self.add(task)
        task.add_done_callback(self._reap)
        return task

    async def end(self) -> None:
        """Cancel all, and those that they start meanwhile, and wait until they have ended.

        They are cancelled more than once: ``asyncio.wait_for``, which other libraries use, may lose a cancellation
        (before Python 3.12).
        """
        while self:
            for task in self:
                task.cancel()
            await asyncio.wait(list(self), timeout=_CANCELLED_AGAIN_AFTER)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("the task %s failed", task.get_name(), exc_info=exc)

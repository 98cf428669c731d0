"""Many prompts, a bounded number at a time, each handed out when it is done."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeAlias

from .errors import ClientClosed, PayloadTooLarge, ServerError
from .job import Job
from .workflow import Graph

Workflows: TypeAlias = Iterable[Graph] | AsyncIterable[Graph]


class Feed:
    """Submit workflows from an iterable as places become free, and give the jobs in the order in which they end.

    Args:
        workflows: May be endless; an item is taken from it when there is a place for it.
        limit: Jobs submitted and not yet taken, at the most.
        begin: Submits one workflow, the n-th: makes its job, which may be settled already. Never waits.
        cancel: Has a job taken from the server. Never waits.
        spawn: Runs a coroutine as a task of the client.
        stops: Tells of a job that ended whether it is useless to submit any more; its outcome is raised then.
    """

    def __init__(
        self,
        workflows: Workflows,
        limit: int,
        *,
        begin: Callable[[Graph, int], Job],
        cancel: Callable[[Job], object],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        stops: Callable[[Job], bool],
    ) -> None:
        check_workflows(workflows)
        if limit < 1:
            raise ValueError(f"limit is at least 1, not {limit}")
        self._workflows = workflows
        self._begin = begin
        self._cancel = cancel
        self._spawn = spawn
        self._stops = stops
        self._places = asyncio.Semaphore(limit)
        self._active: set[Job] = set()
        self._done: deque[Job] = deque()
        self._wakeup = asyncio.Event()
        self._fed = False
        self._left = False
        self._input_exc: Exception | None = None

    async def jobs(self) -> AsyncGenerator[Job, None]:
        """Yield the jobs as they end. Leaving early stops the feeding and cancels what was not yielded."""
        feeding = self._spawn(self._feed())
        try:
            while True:
                while self._done:
                    job = self._done.popleft()
                    if (exc := job.exception()) is not None and self._stops(job):
                        raise exc
                    self._active.discard(job)
                    self._places.release()
                    yield job
                if self._fed and not self._active:
                    break
                self._wakeup.clear()
                await self._wakeup.wait()
            if self._input_exc is not None:
                raise self._input_exc
        finally:
            # No await here: this also runs when the generator is thrown away.
            self._left = True
            feeding.cancel()
            for job in self._active:
                self._cancel(job)

    async def _feed(self) -> None:
        items = iterate(self._workflows)
        try:
            await self._submit(items)
        except Exception as exc:
            self._input_exc = exc
        except asyncio.CancelledError:
            self._input_exc = ClientClosed()  # or `jobs` was left, and nobody will see it
            raise
        finally:
            self._fed = True
            self._wakeup.set()
            await items.aclose()

    async def _submit(self, items: AsyncGenerator[Graph, None]) -> None:
        index = itertools.count()
        await self._places.acquire()
        async for workflow in items:
            if self._left:
                break  # the input swallowed its cancellation
            job = self._begin(workflow, next(index))
            self._active.add(job)
            job.when_done(self._take)
            await asyncio.sleep(0)  # a long input must not keep the loop
            await self._places.acquire()

    def _take(self, job: Job) -> None:
        self._done.append(job)
        self._wakeup.set()


def is_fault_of_the_server(job: Job) -> bool:
    """Tell whether a job ended by what is wrong with the server, and neither with its workflow nor its run."""
    return isinstance(job.exception(), ServerError) and not isinstance(job.exception(), PayloadTooLarge)


def check_workflows(workflows: Workflows) -> None:
    """Refuse what is no iterable of workflows, a single workflow among that."""
    if isinstance(workflows, Mapping | str | bytes) or not isinstance(workflows, Iterable | AsyncIterable):
        raise TypeError("map takes an iterable of workflows, or an asynchronous one; for a single one there is run")


async def iterate(workflows: Workflows) -> AsyncGenerator[Graph, None]:
    """Iterate over either kind. Closing it closes an asynchronous input, which nothing else would do in time."""
    if isinstance(workflows, AsyncIterable):
        items = aiter(workflows)
        try:
            async for workflow in items:
                yield workflow
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()
    else:
        for workflow in workflows:
            yield workflow

"""Take prompts from the server: exactly ours, waiting or running, and tell honestly what was reached.

Theory of operation. A wish stands until its prompt is known to be off the server. One task serves all, in rounds:
delete what waits (one ``POST /queue`` for all), read the queue, interrupt what of ours runs, and take what is in it no
more for gone, after a look at its history. A round is repeated because a cancel can be lost: a prompt may move from
waiting to running between the two steps, and the server clears its interrupt flag when a prompt begins (ComfyUI
execution.py, all versions to 0.38). A prompt whose POST is under way is cancelled once that is answered.

How a running prompt is stopped depends on the server: ``POST /api/jobs/{id}/cancel`` since 0.26.0; ``POST /interrupt``
with the prompt_id since 0.3.57; before that only an interrupt of whatever runs, which could hit a stranger's prompt and
is not used unless it was allowed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .api import Api
from .capabilities import Capabilities
from .concurrency import together
from .errors import HTTPError, JobCancelled, ProtocolError, ServerError
from .job import Job
from .live import LiveJobs
from .look import read_queue

_AT_ONCE = 8
_PAUSE_FIRST, _PAUSE_LONGEST = 0.02, 5.0


class Canceller:
    """Serve the wishes to cancel of one client.

    Args:
        spawn: Runs a coroutine as a task of the client.
        capabilities: Gives what the server can do, when it is known.
        allow_global_interrupt: Stop ours on a server that can only stop whatever runs.
    """

    def __init__(
        self,
        api: Api,
        live: LiveJobs,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        capabilities: Callable[[], Awaitable[Capabilities]],
        allow_global_interrupt: bool,
    ) -> None:
        self._api = api
        self._live = live
        self._spawn = spawn
        self._capabilities = capabilities
        self._allow_global_interrupt = allow_global_interrupt
        self._wishes: dict[Job, asyncio.Future[None]] = {}
        self._wakeup = asyncio.Event()
        self._running = False

    def wish(self, job: Job) -> asyncio.Future[None]:
        """Have a job cancelled; give a future that is done once it is off the server. Never waits."""
        if job not in self._wishes:
            job.cancel_requested = True
            job.log(logging.DEBUG, "prompt %s is to be cancelled", job.prompt_id)
            job.stop_uploading()
            self._wishes[job] = asyncio.get_running_loop().create_future()
            job.when_done(lambda _: self._wakeup.set())
            self._wakeup.set()
            if not self._running:
                self._running = True
                self._spawn(self._run())
        return self._wishes[job]

    def wake(self) -> None:
        """Note that a POST was answered, which a wish may have waited for."""
        if self._wishes:
            self._wakeup.set()

    async def idle(self) -> None:
        """Wait until every wish is fulfilled."""
        while self._wishes:
            await asyncio.wait(list(self._wishes.values()))

    async def _run(self) -> None:
        pause = _PAUSE_FIRST
        try:
            while self._wishes:
                self._wakeup.clear()
                await self._round()
                self._drop_settled()
                if self._wishes:
                    pause = await self._pause(pause)
        finally:
            self._running = False

    async def _pause(self, pause: float) -> float:
        """Wait before the next round, longer each time, but not when there is something new; give the next pause."""
        waiting = all(job.posting is not None and job.posted_at is None for job in self._wishes)
        try:
            async with asyncio.timeout(None if waiting else pause):
                await self._wakeup.wait()
        except TimeoutError:
            return min(pause * 2, _PAUSE_LONGEST)
        return _PAUSE_FIRST

    async def _round(self) -> None:
        """Try once for all."""
        jobs = [job for job in self._wishes if job.posted_at is not None and not job.settled_by_server()]
        try:
            if jobs:
                await self._attempt(jobs)
        except ServerError as exc:
            for job in jobs:
                job.cancel_note = f"the server did not answer: {exc}"

    async def _attempt(self, jobs: list[Job]) -> None:
        """Delete, look, interrupt."""
        await self._api.post_queue(delete=[job.prompt_id for job in jobs])
        snapshot = read_queue(await self._api.get_queue())
        running = {item.prompt_id for item in snapshot.running}
        present = snapshot.ids()
        gone = [job for job in jobs if job.prompt_id not in present]
        for job in jobs:
            if job.prompt_id in running:
                await self._stop(job)
        for start in range(0, len(gone), _AT_ONCE):
            await together(self._conclude(job) for job in gone[start : start + _AT_ONCE])

    async def _conclude(self, job: Job) -> None:
        """Settle a prompt that is in the queue no more: by its history if it has one, else it was deleted."""
        if job in self._live:
            try:
                entry = await self._api.get_history(job.prompt_id)
            except (HTTPError, ProtocolError) as exc:
                job.cancel_note = f"it is off the queue, but its history cannot be read: {exc}"
                return
            if job not in self._live:
                pass  # its messages came meanwhile
            elif entry is not None:
                self._live.conclude_by_history(job, entry)
            else:
                self._live.fail(job, JobCancelled(job.prompt_id))
        self._fulfil(job)

    async def _stop(self, job: Job) -> None:
        """Stop a prompt that runs, or say why that cannot be done."""
        can = await self._capabilities()
        if can.cancels_jobs and await self._cancelled_as_job(job):
            pass
        elif can.targeted_interrupt:
            await self._api.post_interrupt(job.prompt_id)
        elif self._allow_global_interrupt:
            await self._api.post_interrupt()
        else:
            version = "of unknown version" if can.version is None else "older than 0.3.57"
            job.cancel_note = (
                f"it runs, and this server ({version}) can only stop whatever runs; "
                "allow_global_interrupt=True permits that"
            )
            return
        job.cancel_note = "it was asked to stop; ComfyUI stops between nodes and at progress steps"

    async def _cancelled_as_job(self, job: Job) -> bool:
        """Cancel by the jobs API; False when the route is not there after all, on a fork or behind a proxy."""
        try:
            await self._api.post_job_cancel(job.prompt_id)
        except HTTPError as exc:
            if exc.status not in (404, 405):
                raise
            return False
        return True

    def _drop_settled(self) -> None:
        for job in [job for job in self._wishes if job.settled_by_server()]:
            self._fulfil(job)

    def _fulfil(self, job: Job) -> None:
        future = self._wishes.pop(job, None)
        if future is not None:
            job.cancel_note = None
            if not future.done():
                future.set_result(None)

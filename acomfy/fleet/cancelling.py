"""Take prompts from a fleet, wherever they are: not queued yet, in the queue, at a worker.

Word is left first, in the bucket of attempts, for whoever takes the order later: it is looked for before an order is
begun. Then whoever has it now is told, and answers once it is off its server and has its outcome. When nobody has it
the outcome is written here; the first one that is written stands, so that a worker which takes the order in the same
moment finds that out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import nats.errors

from ..errors import AcomfyError, ClientClosed, JobCancelled
from ..job import Job
from ..verdict import JobState
from .broker import Broker
from .following import Following
from .job import FleetJob
from .records import Records
from .wire import Outcome, write_outcome

logger = logging.getLogger(__name__)

_ASKED_AGAIN_AFTER = 5.0
_PAUSE = 0.5


class Cancelling:
    """The wishes to cancel of one fleet.

    Args:
        spawn: Runs a coroutine as a task of the fleet.
        cancel_timeout: As for `Fleet`.
    """

    def __init__(
        self,
        broker: Broker,
        records: Records,
        following: Following,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        *,
        cancel_timeout: float,
    ) -> None:
        self._broker = broker
        self._records = records
        self._following = following
        self._spawn = spawn
        self._cancel_timeout = cancel_timeout
        self._wishes: dict[FleetJob, asyncio.Task[None]] = {}

    @property
    def wishes(self) -> list[asyncio.Task[None]]:
        """What is under way."""
        return list(self._wishes.values())

    async def cancel(self, job: FleetJob) -> bool:
        """See `Job.cancel`."""
        wish = self.wish(job)
        try:
            async with asyncio.timeout(self._cancel_timeout):
                if wish is not None:
                    await asyncio.wait([wish])
                await job.settled()
        except TimeoutError:
            job.cancel_note = job.cancel_note or "neither the broker nor a worker confirmed it in time"
        return isinstance(job.exception(), JobCancelled)

    def wish(self, job: Job) -> asyncio.Task[None] | None:
        """Have a job cancelled, if it has not ended. Never waits."""
        if not isinstance(job, FleetJob) or job.done():
            return None
        job.cancel_requested = True
        wish = self._wishes.get(job)
        if wish is None:
            job.stop_uploading()
            wish = self._wishes[job] = self._spawn(self._fulfil(job))
            wish.add_done_callback(lambda _: self._wishes.pop(job, None))
        return wish

    async def _fulfil(self, job: FleetJob) -> None:
        if job.posting is not None:
            await asyncio.wait([job.posting])
        if job.done() and not job.seq:
            return  # it never came into the queue
        try:
            await self._records.wish_cancelled(job.job_id)
            await self._tell(job)
        except AcomfyError as exc:
            job.cancel_note = f"the broker was not told: {exc}"
            logger.debug("%s is not cancelled: %s", job, exc)

    async def _tell(self, job: FleetJob) -> None:
        """Tell whoever has it, until that confirms it or the job has ended."""
        while not job.done() or isinstance(job.exception(), ClientClosed):
            try:
                await self._broker.ready(None)
                await self._broker.request(self._broker.names.cancel(job.job_id), timeout=_ASKED_AGAIN_AFTER)
                return
            except nats.errors.NoRespondersError:
                return await self._cancel_waiting(job)
            except (nats.errors.Error, OSError) as exc:
                job.cancel_note = f"its worker did not confirm it yet: {exc}"
            await asyncio.sleep(_PAUSE)

    async def _cancel_waiting(self, job: FleetJob) -> None:
        """Cancel what no worker has at the moment."""
        attempt, _ = await self._records.attempt(job.job_id)
        error = JobCancelled(job.prompt_id if attempt is None else attempt.prompt_id)
        number = 0 if attempt is None else attempt.number
        outcome = Outcome(job.job_id, error.prompt_id, JobState.CANCELLED, error, number)
        if not await self._records.conclude(job.client_id, job.job_id, write_outcome(outcome)):
            return  # it ended otherwise, and its job will hear of it
        if attempt is None or attempt.lost:  # else a worker that takes it takes it from its server
            await self._records.withdraw(job.subject or self._broker.names.any_lane(job.job_id))
        if job in self._following:
            self._following.end(job, error, JobState.CANCELLED)

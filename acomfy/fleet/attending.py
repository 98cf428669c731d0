"""See to it that no job waits for ever: ask the broker about those of which nothing is heard.

An outcome comes by the inbox, as a rule. What is asked here, at leisure and a few at a time, is whether a job that is
not heard of is still in the queue; one that is not, and has no outcome, was removed by somebody.
"""

from __future__ import annotations

import asyncio
import logging

import nats.errors

from ..errors import AcomfyError, JobLost, NoServerAvailable
from ..verdict import JobState
from .broker import Broker
from .following import Following
from .job import FleetJob
from .records import Records
from .wire import Outcome, write_outcome
from .workers import ask_workers

logger = logging.getLogger(__name__)

_EVERY = 5.0
_QUIET = 30.0
_AT_ONCE = 50
_CERTAIN_AFTER = 2.0


class Attending:
    """Attend to the live jobs of one fleet.

    Args:
        following: The live jobs.
        lease, unreachable_timeout, unavailable_timeout: As for `Fleet`.
    """

    def __init__(
        self,
        broker: Broker,
        records: Records,
        following: Following,
        *,
        lease: float,
        unreachable_timeout: float,
        unavailable_timeout: float | None,
    ) -> None:
        self._broker = broker
        self._records = records
        self._following = following
        self._lease = lease
        self._unreachable_timeout = unreachable_timeout
        self._unavailable_timeout = unavailable_timeout
        self._connected_at = 0.0
        self._manned: dict[str, float] = {}

    async def run(self) -> None:
        """Look now and then, until this is cancelled."""
        clock = asyncio.get_running_loop().time
        self._connected_at = clock()
        patience = self._unreachable_timeout
        if self._unavailable_timeout is not None:
            patience = min(patience, max(self._unavailable_timeout, 0.4))
        while True:
            await asyncio.sleep(min(_EVERY, patience / 4))
            try:
                if self._broker.connected:
                    self._connected_at = clock()
                    await self._look(clock())
                elif clock() - self._connected_at >= self._unreachable_timeout:
                    self._give_up()
            except (AcomfyError, nats.errors.Error, OSError) as exc:
                logger.debug("the live jobs were not looked at: %s", exc)

    def _give_up(self) -> None:
        for job in self._following:
            if job.seq:
                self._following.end(job, JobLost(job.prompt_id, "unreachable"), JobState.LOST)

    async def _look(self, now: float) -> None:
        queued = [(job, job.posted_at) for job in self._following if job.seq and job.posted_at is not None]
        quiet = [job for job, posted_at in queued if now - max(job.checked_at, posted_at) > _QUIET]
        quiet.sort(key=lambda job: job.checked_at)
        for job in quiet[:_AT_ONCE]:
            job.checked_at = now
            await self.look_at(job)
        for lane in {job.lane for job in quiet[:_AT_ONCE] if not job.done() and not job.server}:
            self._broker.forget_lane(lane)  # somebody may have removed it: then nobody can take what waits there
            await self._broker.ensure_lane(lane, self._lease)
        if self._unavailable_timeout is not None:
            await self._look_for_workers(queued, self._unavailable_timeout)

    async def look_at(self, job: FleetJob) -> None:
        """Look whether a job has an outcome, or is in the queue.

        Raises:
            ServerUnreachable, BrokerError: The broker did not say.
        """
        for certain in (False, True):
            # In this order: what is written after this look is heard.
            written = await self._records.outcome(job.job_id)
            if written is not None:
                return self._following.settle_written(job.job_id, written)
            if job.done() or (job.seq and await self._records.is_queued(job.seq)):
                return
            if not certain:
                await asyncio.sleep(_CERTAIN_AFTER)  # an outcome may have been written between the two looks
        if not job.done():
            self._following.end(job, JobLost(job.prompt_id, "deleted"), JobState.LOST)

    # --- Workers -----------------------------------------------------------------------------------------------------

    async def _look_for_workers(self, queued: list[tuple[FleetJob, float]], patience: float) -> None:
        """End what waits for a group of workers of which none was there for long."""
        clock = asyncio.get_running_loop().time
        waiting: dict[str, list[tuple[FleetJob, float]]] = {}
        for job, posted_at in queued:
            if not job.server and not job.done():
                waiting.setdefault(job.group, []).append((job, posted_at))
        for group, jobs in waiting.items():
            subject = self._broker.names.ping(group)
            if await ask_workers(self._broker, subject, wait=min(0.5, patience), enough=1):
                self._manned[group] = clock()
            manned = self._manned.get(group, float("-inf"))
            for job, posted_at in jobs:
                if clock() - max(posted_at, manned) >= patience:
                    await self._end_unavailable(job)

    async def _end_unavailable(self, job: FleetJob) -> None:
        if job.server or job.done():
            return  # meanwhile somebody took it
        error = NoServerAvailable(f"no worker of the group {job.group!r} is there; start one: acomfy worker")
        written = write_outcome(Outcome(job.job_id, job.prompt_id, JobState.FAILED, error))
        if await self._records.conclude(job.client_id, job.job_id, written):
            await self._records.withdraw(job.subject)
            self._following.settle_written(job.job_id, written)

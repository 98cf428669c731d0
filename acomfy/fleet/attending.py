"""See to it that no job waits for ever: ask the broker about those of which nothing is heard.

An outcome comes by the inbox, as a rule. What is asked here, at leisure and a few at a time, is whether a job that is
not heard of is still in the queue; one that is not, and has no outcome, was removed by somebody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from ..errors import AcomfyError, JobLost, NoServerAvailable
from ..verdict import JobState
from .broker import Broker
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
        live: The live jobs, by job_id.
        settle: Takes an outcome as it was written.
        unreachable_timeout, unavailable_timeout: As for `Fleet`.
    """

    def __init__(
        self,
        broker: Broker,
        records: Records,
        live: Mapping[str, FleetJob],
        *,
        settle: Callable[[str, bytes], None],
        unreachable_timeout: float,
        unavailable_timeout: float | None,
    ) -> None:
        self._broker = broker
        self._records = records
        self._live = live
        self._settle = settle
        self._unreachable_timeout = unreachable_timeout
        self._unavailable_timeout = unavailable_timeout
        self._connected_at = 0.0

    async def run(self) -> None:
        """Look now and then, until this is cancelled."""
        clock = asyncio.get_running_loop().time
        self._connected_at = clock()
        every = _EVERY if self._unavailable_timeout is None else min(_EVERY, max(self._unavailable_timeout / 4, 0.1))
        while True:
            await asyncio.sleep(min(every, self._unreachable_timeout / 4))
            try:
                if self._broker.connected:
                    self._connected_at = clock()
                    await self._look(clock())
                elif clock() - self._connected_at >= self._unreachable_timeout:
                    self._give_up()
            except AcomfyError as exc:
                logger.debug("the live jobs were not looked at: %s", exc)

    def _give_up(self) -> None:
        for job in list(self._live.values()):
            if job.seq:
                self._end(job, JobLost(job.prompt_id, "unreachable"), JobState.LOST)

    async def _look(self, now: float) -> None:
        quiet = [
            job for job in self._live.values() if job.seq and now - max(job.checked_at, job.posted_at or now) > _QUIET
        ]
        quiet.sort(key=lambda job: job.checked_at)
        for job in quiet[:_AT_ONCE]:
            job.checked_at = now
            await self.look_at(job)
        if self._unavailable_timeout is not None:
            await self._look_for_workers(now, self._unavailable_timeout)

    async def look_at(self, job: FleetJob) -> None:
        """Look whether a job is in the queue, or has an outcome.

        Raises:
            ServerUnreachable, BrokerError: The broker did not say.
        """
        for certain in (False, True):
            if job.seq and await self._records.is_queued(job.seq):
                return
            written = await self._records.outcome(job.job_id)
            if written is not None:
                self._settle(job.job_id, written)
            if written is not None or job.done():
                return
            if not certain:
                await asyncio.sleep(_CERTAIN_AFTER)  # a worker may be about to write it
        self._end(job, JobLost(job.prompt_id, "deleted"), JobState.LOST)

    async def _look_for_workers(self, now: float, patience: float) -> None:
        """End what waits for a group of workers of which none is there."""
        waiting: dict[str, list[FleetJob]] = {}
        for job in self._live.values():
            if job.seq and not job.server and now - (job.posted_at or now) >= patience:
                waiting.setdefault(job.group, []).append(job)
        for group, jobs in waiting.items():
            if await ask_workers(self._broker, self._broker.names.ping(group), wait=0.5):
                continue
            for job in jobs:
                await self._end_unavailable(job)

    async def _end_unavailable(self, job: FleetJob) -> None:
        error = NoServerAvailable(f"no worker of the group {job.group!r} is there; start one: acomfy worker")
        outcome = Outcome(job.job_id, job.prompt_id, JobState.FAILED, error)
        written = write_outcome(outcome)
        if await self._records.conclude(job.client_id, job.job_id, written):
            await self._records.withdraw(job.job_id)
            self._settle(job.job_id, written)

    def _end(self, job: FleetJob, error: AcomfyError, state: JobState) -> None:
        if isinstance(self._live, dict):
            self._live.pop(job.job_id, None)
        job.settle(error, state)

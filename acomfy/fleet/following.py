"""The live jobs of one fleet, and what the broker tells of them: where they were begun, and how they ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from ..errors import AcomfyError
from ..frames import load_json
from ..job import Job
from ..result import Result
from ..router import TrackedPrompt
from ..verdict import JobState
from .broker import Broker
from .hearing import Hearing
from .inboxes import Inboxes
from .job import FleetJob
from .results import Results
from .wire import Outcome

logger = logging.getLogger(__name__)


class Following:
    """The live jobs of one fleet.

    Args:
        spawn: Runs a coroutine as a task of the fleet.

    Attributes:
        hearing: Hears the events of those to which somebody listens.
        inboxes: Hears of the submitters of those that are followed.
        observers: Called with every job that is followed from now on.
        changes: A number that grows when a job begins or ends.
    """

    def __init__(
        self, broker: Broker, results: Results, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        self.hearing = Hearing(broker, spawn)
        self.observers: list[Callable[[Job], object]] = []
        self.changes = 0
        self._results = results
        self._spawn = spawn
        self._jobs: dict[str, FleetJob] = {}
        self.inboxes = Inboxes(broker, self.settle_written, self.begun, spawn)
        self._pulses: set[asyncio.Event] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[FleetJob]:
        return iter(list(self._jobs.values()))

    def __contains__(self, job: object) -> bool:
        return isinstance(job, FleetJob) and self._jobs.get(job.job_id) is job

    def get(self, job_id: str) -> FleetJob | None:
        """Find a live job."""
        return self._jobs.get(job_id)

    def add(self, job: FleetJob) -> None:
        """Follow a job from now on."""
        for observer in self.observers:
            observer(job)
        self.inboxes.enter(job.client_id)
        self._jobs[job.job_id] = job

    def let_go(self, job: FleetJob, error: AcomfyError) -> None:
        """Follow a job no more, which goes on without us."""
        self._drop(job)
        job.settle(error, job.state)

    def _drop(self, job: FleetJob) -> None:
        if job in self:
            del self._jobs[job.job_id]
            self.inboxes.leave(job.client_id)

    # --- What is heard -----------------------------------------------------------------------------------------------

    def begun(self, message: bytes) -> None:
        """Take it that a worker says where a job is."""
        try:
            said = load_json(message)
            job_id, prompt_id, attempt = str(said["id"]), str(said["prompt_id"]), int(said["attempt"])
            server, worker, running = str(said["server"]), str(said["worker"]), bool(said["running"])
        except (ValueError, KeyError, TypeError) as exc:
            logger.debug("a worker said what makes no sense: %r", exc)
            return
        job = self._jobs.get(job_id)
        if job is not None and attempt >= job.attempt:  # else it was late
            self.follow(job, prompt_id, attempt, server, worker)
            if running and job.prompt.verdict is None:
                job.prompt.state = JobState.IN_PROGRESS
            self._changed()
            job.pulse()

    def follow(self, job: FleetJob, prompt_id: str, attempt: int, server: str, worker: str) -> None:
        """Note where a job is now, and under which id."""
        job.server, job.worker = server, worker
        if prompt_id != job.prompt_id:
            old, posted_at = job.prompt, job.posted_at
            job.begin_again(TrackedPrompt(prompt_id, old.graph, old.stream_nodes, old.targets))
            job.posted_at = posted_at
            self.hearing.replaced(job, old)
        job.attempt = max(attempt, 1)
        self.hearing.changed(job)

    # --- How they end ------------------------------------------------------------------------------------------------

    def settle_written(self, job_id: str, written: bytes) -> None:
        """Take an outcome as it was written; those of jobs that nobody here waits for are passed over."""
        job = self._jobs.get(job_id)
        if job is not None:
            self._results.read(written, lambda outcome: self._settle(job, outcome), self._spawn)

    def _settle(self, job: FleetJob, outcome: Outcome | AcomfyError) -> None:
        if isinstance(outcome, AcomfyError):  # it cannot be read
            return self.end(job, outcome, JobState.LOST)
        if job.done():
            return
        if outcome.attempt and self.hearing.has_more(job):
            self._spawn(self._settle_after_events(job, outcome))
        else:
            self._conclude(job, outcome)

    async def _settle_after_events(self, job: FleetJob, outcome: Outcome) -> None:
        await self.hearing.verdict(job)
        self._conclude(job, outcome)

    def _conclude(self, job: FleetJob, outcome: Outcome) -> None:
        self.follow(job, outcome.prompt_id, outcome.attempt, outcome.server, outcome.worker)
        job.warnings = outcome.warnings
        self.hearing.complete(job, outcome.value)
        if isinstance(outcome.value, BaseException):
            self.end(job, outcome.value, outcome.state)
        else:
            self.end(job, self._results.result(job, outcome, outcome.value), JobState.COMPLETED)

    def end(self, job: FleetJob, outcome: Result | BaseException, state: JobState) -> None:
        """Give a job its outcome."""
        self._drop(job)
        job.graph = None
        job.settle(outcome, state)
        self._changed()

    # --- Places in the queue -----------------------------------------------------------------------------------------

    def wake_at_change(self, pulse: asyncio.Event) -> None:
        """Have an event set when a job begins or ends."""
        self._pulses.add(pulse)

    def _changed(self) -> None:
        self.changes += 1
        pulses, self._pulses = self._pulses, set()
        for pulse in pulses:
            pulse.set()

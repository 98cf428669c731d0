"""How an order ends at a worker: with an outcome, with another attempt, or put aside for somebody to look at."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace

from nats.js import JetStreamContext

from ..errors import AcomfyError, JobCancelled, JobInterrupted, JobLost, JobStalled, OutputMissing, PromptRejected
from ..job import Job
from ..verdict import JobState
from .dead import headers_of
from .hosting import Host, Place
from .lease import Lease, Unleased
from .results import stored_outcome
from .wire import Attempt, Order, Outcome, Success

logger = logging.getLogger(__name__)

_ATTEMPTS_UNCOUNTED = 10


@dataclass(frozen=True, slots=True)
class Letter:
    """An order as it came.

    Attributes:
        deliveries: How often it was taken by somebody.
    """

    data: bytes
    subject: str
    lease: Lease | Unleased
    deliveries: int = 1


class Ending:
    """The end of one order."""

    def __init__(self, host: Host, place: Place, letter: Letter) -> None:
        self._host = host
        self._place = place
        self._letter = letter

    async def lose(
        self, order: Order, attempt: Attempt, revision: int, error: AcomfyError, *, again: bool, counts: bool
    ) -> None:
        """Note that an attempt is lost, and give the order back; or, if that was the last one, put it aside."""
        counts = counts or attempt.number - attempt.failures > _ATTEMPTS_UNCOUNTED
        attempt = replace(attempt, failures=attempt.failures + counts)
        if not again:
            return await self.conclude(order, attempt, attempt.prompt_id, error, state_after(error))
        if attempt.failures >= self._host.max_attempts and isinstance(error, PromptRejected):
            return await self.conclude(order, attempt, attempt.prompt_id, error, JobState.FAILED)
        if attempt.failures >= self._host.max_attempts:
            return await self.give_up(order, attempt, error)
        lost = replace(attempt, lost=str(error)[:1000] or "lost")
        if await self._host.records.note(order.job_id, lost, revision) is None:
            return logger.info("the order %s is another worker's", order.job_id)
        logger.warning("the prompt %s is tried again: %s", attempt.prompt_id, error)
        await self._letter.lease.release()

    async def give_up(self, order: Order, attempt: Attempt, error: AcomfyError) -> None:
        """End an order with the last error, and put it aside for somebody to look at."""
        logger.error("the order %s is given up: %s", order.job_id, error, extra={"prompt_id": attempt.prompt_id})
        await self.put_aside(f"attempt {attempt.number}: {error}", error, order)
        await self.conclude(order, attempt, attempt.prompt_id, error, state_after(error))

    async def put_aside(self, reason: str, error: BaseException, order: Order | None = None) -> None:
        """Keep an order in the dead-letter stream, with the reason; not one that another worker finished."""
        if order is not None and await self._host.records.outcome(order.job_id) is not None:
            return
        group, job_id = ("default", uuid.uuid4().hex) if order is None else (order.group, order.job_id)
        headers = headers_of(reason, error, server=self._place.address, subject=self._letter.subject)
        subject = self._host.broker.names.dead_letter(group, job_id)

        async def publish(js: JetStreamContext) -> object:
            return await js.publish(subject, self._letter.data, headers=dict(headers))

        await self._host.broker.persist(publish, patience=None)

    async def conclude(
        self,
        order: Order,
        attempt: Attempt | None,
        prompt_id: str,
        value: Success | BaseException,
        state: JobState,
        job: Job | None = None,
    ) -> None:
        """Write the outcome, unless there is one, and take the order from the queue."""
        outcome = Outcome(
            job_id=order.job_id,
            prompt_id=prompt_id,
            state=state,
            value=value,
            attempt=0 if attempt is None else attempt.number,
            server="" if attempt is None else attempt.server,
            worker=self._host.worker_id,
            warnings=() if job is None else job.warnings,
        )
        broker = self._host.broker
        written = await stored_outcome(self._host.files, outcome, broker.largest_message)
        if not await self._host.records.conclude(order.client_id, order.job_id, written):
            logger.info("the order %s has its outcome already", order.job_id)
        else:
            logger.info(
                "the order %s is %s on %s", order.job_id, state.value, outcome.server or self._place.address,
                extra={"prompt_id": prompt_id},
            )  # fmt: skip
        await self._letter.lease.done()


def state_after(error: BaseException) -> JobState:
    """Tell the state of a job that ended with this error."""
    if isinstance(error, JobCancelled | JobInterrupted):
        return JobState.CANCELLED
    return JobState.LOST if isinstance(error, JobLost | JobStalled | OutputMissing) else JobState.FAILED

"""What the broker remembers of orders: their outcomes, where they run, and that somebody wants them stopped.

Everything here is asked of the leader of the stream, never of a copy that may be behind, and every write says what it
replaces. So of two workers that both think that they have an order, one finds out.
"""

from __future__ import annotations

from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.api import RawStreamMsg

from .broker import Broker
from .names import Lane
from .wire import Attempt, read_attempt, write_attempt

_WRONG_LAST_SEQUENCE = (10071, 10164)
_CANCEL = "cancel"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class Records:
    """The records of one fleet.

    Everything here waits while the broker is away, for ``patience`` seconds (None: for ever), and raises
    `ServerUnreachable` then, `BrokerError` when it says no, and `ClientClosed` when the connection is closed.
    """

    def __init__(self, broker: Broker, *, patience: float | None) -> None:
        self._broker = broker
        self._patience = patience
        names = broker.names
        self._outcomes, self._runs, self._jobs = f"KV_{names.outcomes}", f"KV_{names.runs}", names.jobs

    # --- Outcomes ----------------------------------------------------------------------------------------------------

    async def outcome(self, job_id: str) -> bytes | None:
        """Give the outcome of an order as it was written; None when it has none yet."""
        found = await self._last(self._outcomes, self._outcome_subject("*", job_id))
        return None if found is None else found.data

    async def conclude(self, client_id: str, job_id: str, outcome: bytes) -> bool:
        """Write the outcome of an order; False when it has another already: the first one stands."""
        subject = self._outcome_subject(client_id, job_id)
        if await self._write(subject, outcome, 0) is not None:
            return True
        return await self.outcome(job_id) == outcome  # the answer to our own first try may have been lost

    def _outcome_subject(self, client_id: str, job_id: str) -> str:
        return f"$KV.{self._broker.names.outcomes}.{client_id}.{job_id}"

    # --- Attempts ----------------------------------------------------------------------------------------------------

    async def attempt(self, job_id: str) -> tuple[Attempt | None, int]:
        """Give the newest attempt of an order, and the number that `note` wants."""
        found = await self._last(self._runs, self._run_subject(job_id))
        if found is None or found.data is None:
            return None, 0
        return read_attempt(found.data), found.seq or 0

    async def note(self, job_id: str, attempt: Attempt, replacing: int) -> int | None:
        """Write an attempt in the place of one; give its number, None when another took that place meanwhile."""
        written = write_attempt(attempt)
        revision = await self._write(self._run_subject(job_id), written, replacing)
        if revision is not None:
            return revision
        found = await self._last(self._runs, self._run_subject(job_id))
        return found.seq if found is not None and found.data == written else None

    def _run_subject(self, job_id: str) -> str:
        return f"$KV.{self._broker.names.runs}.{job_id}"

    # --- Wishes ------------------------------------------------------------------------------------------------------

    async def wish_cancelled(self, job_id: str) -> None:
        """Leave word for whoever has the order, or takes it later, that it is not wanted any more."""
        await self._publish(self._cancel_subject(job_id), b"1")

    async def is_cancelled(self, job_id: str) -> bool:
        """Tell whether somebody left that word."""
        return await self._last(self._runs, self._cancel_subject(job_id)) is not None

    def _cancel_subject(self, job_id: str) -> str:
        return f"$KV.{self._broker.names.runs}.{_CANCEL}.{job_id}"

    # --- The queue ---------------------------------------------------------------------------------------------------

    async def order(self, job_id: str) -> RawStreamMsg | None:
        """Give an order that is in the queue, waiting or running; None when it is not."""
        return await self._last(self._jobs, self._broker.names.any_lane(job_id))

    async def first(self, lane: Lane) -> RawStreamMsg | None:
        """Give the oldest order of a lane, taken or not; None when there is none."""
        subject = self._broker.names.lane(lane)
        try:
            return await self._broker.persist(
                lambda js: js.get_msg(self._jobs, seq=1, subject=subject, next=True), patience=self._patience
            )
        except js_errors.NotFoundError:
            return None

    async def is_queued(self, seq: int) -> bool:
        """Tell whether the order of this number is still in the queue."""
        try:
            await self._broker.persist(lambda js: js.get_msg(self._jobs, seq=seq), patience=self._patience)
        except js_errors.NotFoundError:
            return False
        return True

    async def withdraw(self, subject: str) -> None:
        """Take the order of this subject from the queue."""
        await self._purge(self._jobs, subject)

    async def forget(self, job_id: str) -> None:
        """Remove all that is remembered of an order, so that it can begin anew."""
        await self._purge(self._outcomes, self._outcome_subject("*", job_id))
        await self._purge(self._runs, self._run_subject(job_id))
        await self._purge(self._runs, self._cancel_subject(job_id))

    # --- The streams -------------------------------------------------------------------------------------------------

    async def _last(self, stream: str, subject: str) -> RawStreamMsg | None:
        try:
            return await self._broker.persist(lambda js: js.get_msg(stream, subject=subject), patience=self._patience)
        except js_errors.NotFoundError:
            return None

    async def _write(self, subject: str, data: bytes, replacing: int) -> int | None:
        """Publish in the place of the message of this number (0: of none); None when that is not the last one."""

        async def write(js: JetStreamContext) -> int | None:
            try:
                return (await js.publish(subject, data, headers={_EXPECTED: str(replacing)})).seq
            except js_errors.APIError as exc:
                if exc.err_code not in _WRONG_LAST_SEQUENCE:
                    raise
                return None

        return await self._broker.persist(write, patience=self._patience)

    async def _publish(self, subject: str, data: bytes) -> None:
        await self._broker.persist(lambda js: js.publish(subject, data), patience=self._patience)

    async def _purge(self, stream: str, subject: str) -> None:
        await self._broker.persist(lambda js: js.purge_stream(stream, subject=subject), patience=self._patience)

"""What was given up: kept with the reason, to be looked at, put back into the queue, or dropped."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.api import RawStreamMsg

from ..errors import WorkflowError
from .broker import Broker
from .names import check_token
from .records import Records

REASON, ERROR, SERVER, SUBJECT = "Acomfy-Reason", "Acomfy-Error", "Acomfy-Server", "Acomfy-Subject"

_LONGEST_REASON = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An order that was given up.

    Attributes:
        reason: Why, for a person.
        error: The class of the error that the job ended with.
        server: Where it was tried last.
        order: As it was submitted; see `acomfy.fleet.wire`.
        at: When it was given up, in seconds since 1970 by the broker's clock; 0.0 when that is not told.
    """

    job_id: str
    group: str
    reason: str
    error: str
    server: str
    at: float
    order: bytes = field(repr=False)
    subject: str = field(repr=False)
    seq: int = field(repr=False)


def headers_of(reason: str, error: BaseException, *, server: str, subject: str) -> dict[str, str]:
    """Say of a dead letter why it is one."""
    plain = " ".join(reason.split())[:_LONGEST_REASON].encode("ascii", "replace").decode()
    return {REASON: plain, ERROR: type(error).__name__, SERVER: server, SUBJECT: subject}


class DeadLetters:
    """The dead letters of one fleet. Raises, everywhere, what `Broker.persist` does."""

    def __init__(self, broker: Broker, records: Records, *, patience: float) -> None:
        self._broker = broker
        self._records = records
        self._patience = patience

    async def all(self) -> AsyncGenerator[DeadLetter, None]:
        """Yield them, the oldest first."""
        seq, subject = 1, f"{self._broker.names.name}.dead.>"
        while True:
            message = await self._read(subject, seq)
            if message is None:
                return
            yield _letter(message)
            seq = (message.seq or 0) + 1

    async def get(self, job_id: str) -> DeadLetter:
        """Give one.

        Raises:
            KeyError: There is none of that job.
            ValueError: That is no id; ``*`` would mean any.
        """
        check_token("job_id", job_id)
        message = await self._read(self._broker.names.any_dead_letter(job_id), 1)
        if message is None:
            raise KeyError(job_id)
        return _letter(message)

    async def requeue(self, job_id: str) -> None:
        """Put one back into the queue, as if it had just been submitted; `Fleet.attach` follows it.

        Raises:
            KeyError: There is none of that job.
            WorkflowError: It is nothing that can run: it could not be read.
        """
        letter = await self.get(job_id)
        if not letter.subject.endswith(f".{job_id}"):
            raise WorkflowError(f"the dead letter {job_id} cannot be read: {letter.reason}")
        await self._records.forget(job_id)
        headers = {"Nats-Msg-Id": f"{job_id}.{uuid.uuid4().hex}"}

        async def publish(js: JetStreamContext) -> object:
            return await js.publish(letter.subject, letter.order, headers=dict(headers))

        await self._broker.persist(publish, patience=self._patience)
        await self._delete(letter)

    async def drop(self, job_id: str) -> None:
        """Remove one for good.

        Raises:
            KeyError: There is none of that job.
        """
        await self._delete(await self.get(job_id))

    async def _delete(self, letter: DeadLetter) -> None:
        stream = self._broker.names.dead
        with contextlib.suppress(js_errors.NotFoundError):
            await self._broker.persist(lambda js: js.delete_msg(stream, letter.seq), patience=self._patience)

    async def _read(self, subject: str, seq: int) -> RawStreamMsg | None:
        stream = self._broker.names.dead
        try:
            return await self._broker.persist(
                lambda js: js.get_msg(stream, seq=seq, subject=subject, next=True), patience=self._patience
            )
        except js_errors.NotFoundError:
            return None


def _letter(message: RawStreamMsg) -> DeadLetter:
    headers = message.headers or {}
    subject = message.subject or ""
    return DeadLetter(
        job_id=subject.rpartition(".")[2],
        group=subject.split(".")[-2],
        reason=headers.get(REASON, ""),
        error=headers.get(ERROR, ""),
        server=headers.get(SERVER, ""),
        at=message.time.timestamp() if message.time is not None else 0.0,
        order=message.data or b"",
        subject=headers.get(SUBJECT, ""),
        seq=message.seq or 0,
    )

"""Read a file of an object store as it comes, in bounded memory, through restarts of the broker.

It is read by *batched direct gets* (``$JS.API.DIRECT.GET``, NATS 2.11, ADR-31): a question for the next 16 chunks of a
subject behind a place in the stream, answered by any server that has them. There is no consumer that could be lost with
a broker, or be left behind, and the next question is not asked before there is room. An older server gives one chunk at
a time. Three things can happen instead of the next chunk:

- Nothing comes: the answer was lost. It is asked for again, behind the last chunk that came.
- A chunk is missing in the row, as a batch says the number of the one before: the same.
- There is none: a server of the cluster is behind the others, or the file was stored anew, on another subject (then it
  goes on there, at the same byte), or it is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress

import orjson
from nats.aio.client import Client as NATS
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import errors as js_errors

from ..errors import ProtocolError
from .asking import PASSING, Asking, Life, Lost
from .catalog import Catalog
from .natspy import drop
from .objects import BlobMissing, Record, chunk_subject, stream
from .wire import Blob

_BATCH = 16
_BATCH_BYTES = 2 << 20
_LOOK = 0.1
_WORTH_SEEKING = 1 << 20
_PAUSE = 0.05

_END_OF_BATCH, _NOTHING, _NOBODY = "204", "404", "503"


class Question:
    """A batch that was asked for. Its answers come on a subject of their own, so that no late one of another is taken.

    Attributes:
        got: How many chunks of it were taken.
    """

    def __init__(self, nc: NATS) -> None:
        self.got = 0
        self._life = Life(nc)
        self._messages: asyncio.Queue[Msg] = asyncio.Queue()
        self._subscription: Subscription | None = None

    @classmethod
    async def ask(cls, asking: Asking, nuid: str, after: int, batch: int) -> Question:
        """Ask for the chunks behind a place in the stream."""
        nc, bucket = asking.nc, asking.bucket
        question = cls(nc)
        inbox = nc.new_inbox()
        wanted = {
            "batch": batch,
            "max_bytes": _BATCH_BYTES,
            "next_by_subj": chunk_subject(bucket, nuid),
            "seq": after + 1,
        }
        try:
            question._subscription = await nc.subscribe(inbox, cb=question._keep)
            subject = f"{asking.js._prefix}.DIRECT.GET.{stream(bucket)}"
            await asking.hand_over(nc.publish(subject, orjson.dumps(wanted), reply=inbox))
        except BaseException:
            await question.drop()
            raise
        return question

    async def next(self, silence: float) -> Msg:
        """Wait for the next message.

        Raises:
            Lost: It did not come in time, or its connection is gone.
        """
        for _ in range(max(1, round(silence / _LOOK))):
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    return await self._messages.get()
            if self._life.is_over:
                break
        raise Lost

    async def drop(self) -> None:
        """Want no more of it."""
        await drop(self._subscription)

    async def _keep(self, message: Msg) -> None:
        self._messages.put_nowait(message)


class BlobReader:
    """Reads one file; made by `FileStore.open`. Iterating it gives what is left, in pieces as they come.

    Args:
        record: Where its chunks are.
        catalog: Tells where they are when they are not there any more.
        offset: The first byte to give.
    """

    def __init__(self, asking: Asking, blob: Blob, record: Record, catalog: Catalog, offset: int) -> None:
        self._asking = asking
        self._blob = blob
        self._catalog = catalog
        self._wanted = offset
        self._rest = memoryview(b"")
        self._digest = hashlib.sha256()
        self._hashed: int | None = 0  # None: something was passed over
        self._arrived = 0
        self._question: Question | None = None
        self._patience = asking.patience()
        self._begin(record)

    def _begin(self, record: Record) -> None:
        """Begin with a row of chunks: at its first one, or near the one that is wanted."""
        self._record = record
        self._at = 0
        self._after = 0
        self._sought: int | None = None
        if record.chunk_size and self._wanted >= _WORTH_SEEKING:
            self._sought = min(self._wanted, max(0, record.size - 1)) // record.chunk_size

    async def read(self, n: int = -1) -> bytes:
        """Give the next bytes: at most ``n``, fewer when a piece ends; ``b""`` at the end of the file.

        The last piece is not given before size and SHA-256 were found right.

        Raises:
            BlobMissing: A part of it is gone, or it was replaced by another of that name.
            ProtocolError: It is damaged.
            ServerUnreachable: The broker did not answer, or did not come back, in time.
        """
        while not self._rest and self._wanted < self._blob.size:
            self._take(await self._chunk())
        piece, self._rest = (self._rest, memoryview(b"")) if n < 0 else (self._rest[:n], self._rest[n:])
        return bytes(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    async def aclose(self) -> None:
        """Want no more of it."""
        question, self._question = self._question, None
        if question is not None:
            await question.drop()

    def _take(self, chunk: bytes) -> None:
        """Take the next chunk, of which some may be known, or not be wanted."""
        begin, self._at = self._at, self._at + len(chunk)
        self._arrived += len(chunk)
        self._patience.reached(self._arrived)
        if self._hashed is not None and begin <= self._hashed < self._at:
            self._digest.update(memoryview(chunk)[self._hashed - begin :])
            self._hashed = self._at
        elif self._hashed is not None and begin > self._hashed:
            self._hashed = None
        if self._at > self._blob.size:
            raise self._damaged(f"more than {self._blob.size} bytes came")
        if self._at == self._blob.size == self._hashed and self._digest.hexdigest() != self._blob.sha256:
            raise self._damaged("its SHA-256 is another")
        self._rest = memoryview(chunk)[max(0, self._wanted - begin) :]
        self._wanted = max(self._wanted, self._at)

    def _damaged(self, reason: str) -> ProtocolError:
        return ProtocolError(
            f"the file {self._blob.name!r} in the object store {self._blob.bucket} is damaged: {reason}"
        )

    # --- Asking for it -----------------------------------------------------------------------------------------------

    async def _chunk(self) -> bytes:
        """Get the next chunk, however often it must be asked for."""
        while True:
            try:
                if self._question is None:
                    await self._asking.connected(self._patience)
                    batch = _BATCH if self._sought is None else 1
                    self._question = await Question.ask(self._asking, self._record.nuid, self._after, batch)
                chunk = await self._answered(self._question, await self._question.next(self._asking.silence))
            except PASSING as exc:
                await self.aclose()
                await self._asking.bear(exc, self._patience)
                await asyncio.sleep(_PAUSE)
                continue
            if chunk is not None:
                return chunk

    async def _answered(self, question: Question, message: Msg) -> bytes | None:
        """Read an answer; None when it is no chunk, and the next is to be waited for, or asked for."""
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            return await self._chunk_of(question, message, headers)
        await self.aclose()
        if status == _NOBODY:
            raise js_errors.NoStreamResponseError
        if status == _NOTHING or (status == _END_OF_BATCH and not question.got):
            await self._find_again()
        elif status != _END_OF_BATCH:
            raise ProtocolError(f"the broker answered a question for a file with {status} {headers.get('Description')}")
        return None

    async def _chunk_of(self, question: Question, message: Msg, headers: dict[str, str]) -> bytes | None:
        if question.got and int(headers.get("Nats-Last-Sequence", self._after)) != self._after:
            raise Lost  # one before it was dropped on the way
        self._after = int(headers["Nats-Sequence"])
        question.got += 1
        pending = headers.get("Nats-Num-Pending")
        if pending is None:  # NATS before 2.11 gives one for one
            await self.aclose()
        if self._sought is not None and not await self._sought_is(pending):
            return None
        return message.data

    async def _sought_is(self, pending: str | None) -> bool:
        """Tell whether the chunk that came is the one that is sought; if not, ask for a later one.

        Its number shows in how many stand behind it. As those of other files stand between, the one so many places
        behind it has that number, or a lower one.
        """
        number = None if pending is None else self._record.chunks - 1 - int(pending)
        sought, self._sought = self._sought, None
        if number is not None and number == sought:
            self._at = number * self._record.chunk_size
            return True
        await self.aclose()
        if number is None or sought is None or number > sought:
            self._after = 0  # an old server, or chunks are missing: from the first one on
        else:
            self._sought = sought
            self._after += sought - number - 1
        return False

    async def _find_again(self) -> None:
        """Find out why there are no more chunks.

        Raises:
            Lost: They are there, but not on the server that answered.
            BlobMissing: They are not.
        """
        found = await self._catalog.locate(self._blob)
        if found.nuid != self._record.nuid:  # stored anew, so that it is kept longer
            self._begin(found)
            return
        chunks, _ = await self._catalog.chunks_of(found)
        if chunks < found.chunks:
            raise BlobMissing(self._blob.bucket, self._blob.name, "a part of it was removed")
        raise Lost

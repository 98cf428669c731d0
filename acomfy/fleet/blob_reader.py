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
from .asking import PASSING, Asking, Life, Lost, drop
from .catalog import Catalog
from .objects import BlobMissing, chunk_subject, stream
from .wire import Blob

_BATCH = 16
_BATCH_BYTES = 2 << 20
_LOOK = 0.1
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
    async def ask(cls, asking: Asking, nuid: str, after: int) -> Question:
        """Ask for the chunks behind a place in the stream."""
        nc, bucket = asking.nc, asking.bucket
        question = cls(nc)
        inbox = nc.new_inbox()
        wanted = {
            "batch": _BATCH,
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
        nuid: Where its chunks are.
        catalog: Tells where they are when they are not there any more.
        offset: The first byte to give.
    """

    def __init__(self, asking: Asking, blob: Blob, nuid: str, catalog: Catalog, offset: int) -> None:
        self._asking = asking
        self._blob = blob
        self._nuid = nuid
        self._catalog = catalog
        self._unwanted = offset
        self._received = 0
        self._repeated = 0
        self._after = 0
        self._rest = memoryview(b"")
        self._digest = hashlib.sha256()
        self._question: Question | None = None
        self._patience = asking.patience()

    async def read(self, n: int = -1) -> bytes:
        """Give the next bytes: at most ``n``, fewer when a piece ends; ``b""`` at the end of the file.

        The last piece is not given before size and SHA-256 were found right.

        Raises:
            BlobMissing: A part of it is gone, or it was replaced by another of that name.
            ProtocolError: It is damaged.
            ServerUnreachable: The broker did not answer, or did not come back, in time.
        """
        while not self._rest and self._received < self._blob.size:
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
        """Take a chunk, of which some may be known, or not be wanted."""
        fresh = memoryview(chunk)[self._repeated :]
        self._repeated -= len(chunk) - len(fresh)
        self._digest.update(fresh)
        self._received += len(fresh)
        self._patience.reached(self._received)
        if self._received > self._blob.size:
            raise self._damaged(f"more than {self._blob.size} bytes came")
        if self._received == self._blob.size and self._digest.hexdigest() != self._blob.sha256:
            raise self._damaged("its SHA-256 is another")
        self._rest = fresh[self._unwanted :]
        self._unwanted -= len(fresh) - len(self._rest)

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
                    self._question = await Question.ask(self._asking, self._nuid, self._after)
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
        if "Nats-Num-Pending" not in headers:  # NATS before 2.11 gives one for one
            await self.aclose()
        return message.data

    async def _find_again(self) -> None:
        """Find out why there are no more chunks.

        Raises:
            Lost: They are there, but not on the server that answered.
            BlobMissing: They are not.
        """
        found = await self._catalog.locate(self._blob)
        if found.nuid != self._nuid:  # stored anew, so that it is kept longer
            self._nuid, self._after, self._repeated = found.nuid, 0, self._received
            return
        chunks, _ = await self._catalog.chunks_of(found)
        if chunks < found.chunks:
            raise BlobMissing(self._blob.bucket, self._blob.name, "a part of it was removed")
        raise Lost

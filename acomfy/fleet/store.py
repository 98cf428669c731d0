"""Files in an object store of NATS, streamed both ways.

The form is that of every NATS client (see objects.py), but files are sent ahead of the acknowledgements, and read
without a consumer (see blob_reader.py): 450 and 360 MB/s from disk to disk on loopback, where nats-py 2.16 has 190 and
50. Its ``put`` waits for each chunk of 128 KB, and its ``get`` waits for ever when the broker restarts.

What is sent when a connection breaks begins anew, on a new subject: of the old one it is not known what arrived, and in
what order. The record of a file is written last; so it names a whole file at any time. What no record names is removed
at once, or as soon as there is a broker again; what a killed process leaves, the bucket's time to live removes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nats.nuid import NUID

from ..errors import AcomfyError, ProtocolError
from ..files import PartialFile
from .asking import Asking, Link, Patience
from .blob_reader import BlobReader
from .catalog import Catalog
from .content import Content, Source
from .objects import CHUNK_SIZE, BlobMissing, Record, StoreFull, chunk_subject
from .row import Row
from .wire import Blob

__all__ = ["BlobMissing", "BlobReader", "FileStore", "StoreFull"]

_HEADERS = 1 << 10
_WRITTEN_AT_ONCE = 1 << 20


@dataclass(slots=True)
class _Turn:
    """Callers that want the same content stored: one at a time, and what came of the last one that was not stopped."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0
    came: Blob | AcomfyError | None = None


class FileStore:
    """Files of one bucket, which exists.

    Everything here waits through restarts of the broker, and raises `ServerUnreachable` after so many seconds without
    any progress, `BrokerError` when the broker says no or has no such bucket, `StoreFull` when there is no room, and
    `ClientClosed` when the connection is closed for good.

    Args:
        link: The way to the broker.
        bucket: The object store.
        silence: Seconds to wait for an answer before it is asked for again.
        patience: Seconds without any progress after which it is given up; None for never.
    """

    def __init__(self, link: Link, bucket: str, *, silence: float = 10.0, patience: float | None = 60.0) -> None:
        self.bucket = bucket
        self._asking = Asking(link, bucket, silence=silence, patience=patience)
        self._catalog = Catalog(self._asking)
        self._turns: dict[str, _Turn] = {}

    async def put(self, name: str, source: Source) -> Blob:
        """Store a file in the place of what has that name; from a disk it is read as it is sent.

        Cancelling it removes what was sent, as far as 3 s suffice.

        Raises:
            OSError: The file on disk cannot be read.
        """
        return await self._put(name, source, None)

    async def put_once(self, sha256: str, source: Source) -> Blob:
        """Store content under its SHA-256, in hex, unless it is there, whole, and for half of the bucket's time yet.

        However many of this process want that at once, it is sent once; if the one who sends is cancelled, another
        sends its own source.

        Raises:
            OSError: The file on disk cannot be read.
            ValueError: The source has another SHA-256.
        """
        turn = self._turns.get(sha256)
        if turn is None or turn.came is not None:  # what came was true then
            turn = self._turns[sha256] = _Turn()
        turn.callers += 1
        try:
            async with turn.lock:
                if turn.came is None:
                    try:
                        turn.came = await self._put_once(sha256, source)
                    except AcomfyError as exc:
                        turn.came = exc
                        raise
                if isinstance(turn.came, AcomfyError):
                    raise turn.came
                return turn.came
        finally:
            turn.callers -= 1
            if not turn.callers and self._turns.get(sha256) is turn:
                del self._turns[sha256]

    async def find(self, name: str) -> Blob | None:
        """Look a file up; None when there is none."""
        found = await self._catalog.look_up(name)
        return Blob(self.bucket, name, found.size, found.sha256) if found.nuid else None

    @asynccontextmanager
    async def open(self, blob: Blob, offset: int = 0) -> AsyncIterator[BlobReader]:
        """Open a file to read it as it comes; at most 2 MB wait for their reader::

            async with store.open(blob) as reader:
                while piece := await reader.read(1 << 16):
                    ...

        Args:
            offset: The byte to begin at. SHA-256 is checked when it is within the first 1 MB, and when another client
                of NATS stored the file: then all that stands before it comes too, but is not given.

        Raises:
            BlobMissing: It is not there, or another of that name is.
            ValueError: The offset is outside of the file.
        """
        if not 0 <= offset <= blob.size:
            raise ValueError(f"offset is from 0 to the file's size, {blob.size}, not {offset}")
        found = await self._catalog.locate(blob)
        reader = BlobReader(self._asking, blob, found, self._catalog, offset)
        try:
            yield reader
        finally:
            await reader.aclose()

    async def read(self, blob: Blob, *, max_size: int) -> bytes:
        """Give a whole file.

        Raises:
            BlobMissing: It is not there, or a part of it is not, or another of that name is.
            ProtocolError: It is damaged, or larger than ``max_size`` bytes.
        """
        if blob.size > max_size:
            raise ProtocolError(
                f"the file {blob.name!r} has {blob.size} bytes, more than max_size, {max_size}; save() it"
            )
        async with self.open(blob) as reader:
            return b"".join([piece async for piece in reader])

    async def save(self, blob: Blob, path: Path) -> None:
        """Write a file to disk in the place of what stands there: whole, or not at all.

        Raises:
            BlobMissing: It is not there, or a part of it is not, or another of that name is.
            ProtocolError: It is damaged.
            OSError: The disk refuses it.
        """
        part = PartialFile(path, overwrite=True)
        try:
            async with self.open(blob) as reader:
                waiting: list[bytes] = []
                size = 0
                async for piece in reader:
                    waiting.append(piece)
                    size += len(piece)
                    if size >= _WRITTEN_AT_ONCE:
                        await asyncio.to_thread(part.write, b"".join(waiting))
                        waiting, size = [], 0
                await asyncio.to_thread(part.write, b"".join(waiting))
            await asyncio.to_thread(part.finish)
        except BaseException:
            part.discard()
            raise

    async def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        found = await self._catalog.look_up(name)
        if found.nuid:
            await self._catalog.write(name, Record(nuid=found.nuid), self._asking.patience())

    # --- Sending -----------------------------------------------------------------------------------------------------

    async def _put_once(self, sha256: str, source: Source) -> Blob:
        found = await self._catalog.look_up(sha256)
        if found.nuid and found.sha256 == sha256 and await self._lasts(found):
            return Blob(self.bucket, sha256, found.size, sha256)
        return await self._put(sha256, source, sha256)

    async def _lasts(self, record: Record) -> bool:
        """Tell whether a file is whole, and half of the time that the bucket keeps it is yet to come."""
        chunks, kept = await self._catalog.chunks_of(record)
        return chunks == record.chunks and (not kept or time.time() - record.stored < kept / 2)

    async def _put(self, name: str, source: Source, sha256: str | None) -> Blob:
        patience = self._asking.patience()
        begun: list[str] = []
        try:
            sent = await self._asking.persist(lambda: self._send(source, begun, patience), patience)
            if sent is None:
                raise AssertionError("sending asks for no message")
            if sha256 not in (None, sent.sha256):
                raise ValueError(f"the content has not the SHA-256 {sha256}, but {sent.sha256}: did the file change?")
            await self._catalog.write(name, sent, patience)
            begun.remove(sent.nuid)
        finally:
            if begun:
                await self._catalog.remove_chunks(*begun)
        return Blob(self.bucket, name, sent.size, sent.sha256)

    async def _send(self, source: Source, begun: list[str], patience: Patience) -> Record:
        """Send all chunks, some ahead of the acknowledgements."""
        nuid = NUID().next().decode()
        begun.append(nuid)
        row = Row(self._asking, chunk_subject(self.bucket, nuid), patience)
        chunk_size = min(CHUNK_SIZE, self._asking.nc.max_payload - _HEADERS)
        content = Content(source, chunk_size)
        try:
            while block := await content.read():
                for start in range(0, len(block), chunk_size):
                    await row.send(bytes(block[start : start + chunk_size]))
            await row.finish()
        finally:
            try:
                await row.aclose()
            finally:
                await content.aclose()
        return Record(nuid, row.size, row.chunks, content.sha256, chunk_size=row.chunk_size)

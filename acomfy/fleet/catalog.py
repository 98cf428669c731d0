"""The records of an object store: which files there are, and where their chunks are.

A record is asked of the stream's leader, never of a copy that may be behind, and is written in the place of the one
that was seen before and of no other. So of several writers of one name each removes what it replaced.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

import nats.errors
from nats.js import errors as js_errors

from ..errors import AcomfyError
from .asking import Asking, Patience
from .objects import BlobMissing, Record, chunk_subject, read_record, record_subject, stream, write_record
from .wire import Blob

_WRONG_LAST_SEQUENCE = (10071, 10164)
_CLEAN_UP = 2.0
_MOST_LEFT_BEHIND = 1000


class Catalog:
    """The records of one bucket."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._bucket = asking.bucket
        self._stream = stream(asking.bucket)
        self._left_behind: dict[str, None] = {}

    async def look_up(self, name: str) -> Record:
        """Give the record of a file; an empty one when there is none."""
        subject = record_subject(self._bucket, name)
        found = await self._asking.persist(
            lambda: self._asking.answer(self._asking.js.get_last_msg(self._stream, subject))
        )
        if found is None:
            return Record()
        return read_record(found.data or b"", found.seq or 0, found.time.timestamp() if found.time else 0.0)

    async def locate(self, blob: Blob) -> Record:
        """Give the record of a file that must be as it was.

        Raises:
            BlobMissing: It is not there, or another one is.
        """
        found = await self.look_up(blob.name)
        if not found.nuid:
            raise BlobMissing(self._bucket, blob.name, "it was deleted, or its time is over")
        if (found.size, found.sha256) != (blob.size, blob.sha256):
            raise BlobMissing(self._bucket, blob.name, "it was replaced by another of that name")
        return found

    async def chunks_of(self, record: Record) -> tuple[int, float]:
        """Give how many chunks of a file there are, and how many seconds the bucket keeps files; 0.0: for ever."""
        subject = chunk_subject(self._bucket, record.nuid)
        info = await self._asking.persist(
            lambda: self._asking.answer(self._asking.js.stream_info(self._stream, subjects_filter=subject))
        )
        if info is None:
            return 0, 0.0
        return (info.state.subjects or {}).get(subject, 0), info.config.max_age or 0.0

    async def write(self, name: str, record: Record, patience: Patience) -> None:
        """Write a record, or the note that a file was deleted; then remove the chunks of the one that it replaces."""
        message = write_record(self._bucket, name, record)
        while True:
            old = await self.look_up(name)
            if record.sha256 and old.nuid == record.nuid:
                return  # an earlier try wrote it, and the answer was lost
            replace = partial(self._replace, name=name, message=message, sequence=old.sequence)
            if await self._asking.persist(replace, patience):
                break
        if old.nuid:
            await self.remove_chunks(old.nuid)

    async def _replace(self, *, name: str, message: bytes, sequence: int) -> bool:
        """Publish a record in the place of another; False when that is not the last one any more."""
        headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(sequence)}
        subject = record_subject(self._bucket, name)
        try:
            await self._asking.answer(self._asking.js.publish(subject, message, headers=headers))
        except js_errors.APIError as exc:
            if exc.err_code not in _WRONG_LAST_SEQUENCE:
                raise
            return False
        return True

    async def remove_chunks(self, *nuids: str) -> None:
        """Remove chunks that no record names, for 2 s at most; what is left then, the next call removes."""
        self._left_behind.update(dict.fromkeys(nuids))
        with suppress(nats.errors.Error, AcomfyError, TimeoutError):
            async with asyncio.timeout(_CLEAN_UP):
                for nuid in list(self._left_behind)[-_MOST_LEFT_BEHIND:]:
                    await self._asking.connected(Patience(_CLEAN_UP))
                    subject = chunk_subject(self._bucket, nuid)
                    await self._asking.answer(self._asking.js.purge_stream(self._stream, subject=subject))
                    self._left_behind.pop(nuid, None)
        while len(self._left_behind) > _MOST_LEFT_BEHIND:
            del self._left_behind[next(iter(self._left_behind))]  # the bucket's time to live removes them

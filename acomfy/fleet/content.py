"""What is to be sent, block by block, hashed on the way; the disk is read in threads."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
from pathlib import Path
from typing import BinaryIO, TypeAlias

Source: TypeAlias = bytes | memoryview | Path | BinaryIO
"""What `FileStore.put` takes. An open file is read from its beginning, and left open."""

_BLOCK = 1 << 20
_HASHED_AT_ONCE = 1 << 16


class Content:
    """One reading of a source, from its beginning, in blocks of about 1 MB.

    A thread cannot be cancelled: what it reads when nobody waits any more is dropped, and a file that was opened here
    is closed behind it.

    Args:
        chunk_size: Bytes of the chunks in which it will be sent.
    """

    def __init__(self, source: Source, chunk_size: int) -> None:
        self._source = source
        self._block = max(1, _BLOCK // chunk_size) * chunk_size
        self._hash = hashlib.sha256()
        self._at = 0
        self._end: int | None = None
        self._file: BinaryIO | None = None
        self._closed = False
        self._turn = threading.Lock()

    @property
    def sha256(self) -> str:
        """Of what was read, in hex."""
        return self._hash.hexdigest()

    async def read(self) -> bytes | memoryview:
        """Give the next block, of whole chunks but for the last one; empty at the end."""
        if isinstance(self._source, bytes | memoryview):
            block = memoryview(self._source).cast("B")[self._at : self._at + self._block]
            self._at += len(block)
            if len(block) <= _HASHED_AT_ONCE:
                self._hash.update(block)
            else:
                await asyncio.to_thread(self._hash.update, block)
            return block
        return await asyncio.to_thread(self._read)

    async def aclose(self) -> None:
        """Close what was opened."""
        if isinstance(self._source, Path):
            await asyncio.to_thread(self._close)

    def _read(self) -> bytes:
        with self._turn:
            if self._closed:
                return b""
            if self._file is None:
                self._file = self._open()
                self._end = self._file.seek(0, os.SEEK_END)
                self._file.seek(0)
            # Not beyond its end as it was: what watches for changes takes that for one.
            wanted = min(self._block, (self._end or 0) - self._at)
            block = self._file.read(wanted) if wanted > 0 else b""
            self._at += len(block)
            self._hash.update(block)
            return block

    def _open(self) -> BinaryIO:
        if isinstance(self._source, Path):
            return self._source.open("rb")
        if isinstance(self._source, bytes | memoryview):
            return io.BytesIO(self._source)
        return self._source

    def _close(self) -> None:
        self._closed = True
        with self._turn:
            if self._file is not None:
                self._file.close()

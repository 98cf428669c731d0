"""Read what was written into a file of the server, by no more of it than needed: of a film its head and its end.

Pieces are asked for with ``Range``. A file that the server gives no pieces of, or that changes meanwhile, is read
through once, into a temporary file.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import aclosing
from dataclasses import dataclass
from typing import IO

from .download import UNSATISFIABLE, Opener, Patience, parts
from .embedded import LARGEST_OFFSET, Embedded, read_embedded_file, scan
from .errors import HTTPError, MetadataError, ProtocolError, ServerUnreachable
from .ranges import Version, content_range, is_encoded
from .retry import RetryPolicy
from .tags import Scan

_SMALLEST, _LARGEST = 1 << 16, 1 << 22
_MOST_PIECES = 1024
_LARGEST_COPY = _MOST_PIECES * _LARGEST
_IN_MEMORY = 1 << 24


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of the file that are here.

    Attributes:
        ends: Whether the file ends with them.
        version: The version of the file; None when there were no bytes of it.
    """

    start: int
    data: bytes
    ends: bool
    version: Version | None = None

    def give(self, offset: int, length: int) -> bytes | None:
        """Give the bytes that stand there, fewer at the end of the file only; None when they are not all here."""
        at = offset - self.start
        if at < 0 or (at + length > len(self.data) and not self.ends):
            return None
        return self.data[at : at + length]


async def read_metadata(opener: Opener, policy: RetryPolicy | None) -> Embedded:
    """Read what was written into the file.

    Raises:
        MetadataError: It is damaged, or too much.
        HTTPError, ServerUnreachable, ProtocolError: The file cannot be read.
    """
    steps, size, version = scan(), _SMALLEST, None
    request = next(steps)
    for _ in range(_MOST_PIECES):
        offset, length = request
        piece = await _read_piece(opener, policy, offset, max(size, length))
        changed = piece is not None and version is not None and piece.version not in (None, version)
        if piece is None or changed or piece.give(offset, length) is None:
            return await _read_copy(opener, policy)
        version = version or piece.version
        found = await asyncio.to_thread(_advance, steps, request, piece)
        if isinstance(found, Embedded):
            return found
        request, size = found, min(2 * size, _LARGEST)  # so that a walk through the whole file takes few requests
    raise MetadataError(f"what is written in the file was not found in {_MOST_PIECES} pieces of it")


def _advance(steps: Scan[Embedded], request: tuple[int, int], piece: _Piece) -> tuple[int, int] | Embedded:
    """Serve requests as long as the piece does; give the first that it does not, or the end of all."""
    try:
        while (data := piece.give(*request)) is not None:
            request = steps.send(data)
    except StopIteration as stop:
        found: Embedded = stop.value
        return found
    return request


async def _read_piece(opener: Opener, policy: RetryPolicy | None, offset: int, length: int) -> _Piece | None:
    """Read a piece of the file; None when the server gives none."""
    if offset > LARGEST_OFFSET:
        return _Piece(offset, b"", ends=True)
    patience = Patience(policy)
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={offset}-{offset + length - 1}"}
    while True:
        try:
            async with opener(headers) as response:
                if response.status != 206 or is_encoded(response.headers):
                    return None
                start, end, total = content_range(response.headers)
                if start != offset or end >= offset + length:
                    raise ProtocolError(f"{length} bytes at {offset} were asked for, and {start} to {end} came")
                data = await response.content.readexactly(end + 1 - start)
                return _Piece(offset, data, end + 1 == total, Version.of(response.headers, total))
        except asyncio.IncompleteReadError as exc:
            raise ProtocolError(f"a part of {exc.expected} bytes ended after {len(exc.partial)}") from None
        except (HTTPError, ServerUnreachable) as exc:
            if isinstance(exc, HTTPError) and exc.status == UNSATISFIABLE:
                return _Piece(offset, b"", ends=True)
            await patience.bear(exc)


async def _read_copy(opener: Opener, policy: RetryPolicy | None) -> Embedded:
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as copy:
        async with aclosing(parts(opener, policy, max_size=_LARGEST_COPY)) as found:
            async for offset, data in found:
                await asyncio.to_thread(_write, copy, offset, data)
        return await asyncio.to_thread(read_embedded_file, copy)


def _write(copy: IO[bytes], offset: int, data: bytes) -> None:
    if copy.tell() != offset:
        copy.seek(offset)
        copy.truncate()
    copy.write(data)

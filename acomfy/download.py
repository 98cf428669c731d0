"""Read files of the server: whole, in parts as they come, or onto the disk.

A connection that breaks is opened again, and goes on where it was if the server tells versions of the file apart (see
ranges.py). A try counts as failed when it got no further than those before it, and the client's `RetryPolicy` says how
many of these there may be in a row. So a file of any size comes over a connection that breaks every few kilobytes, and
a server that breaks it always at the same place is given up.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any, Protocol

from .errors import HTTPError, ProtocolError, ServerUnreachable
from .files import PartialFile
from .ranges import Received
from .retry import RetryPolicy


class Content(Protocol):
    """The body of a `Response`, as aiohttp's stream reader gives it."""

    def is_eof(self) -> bool: ...

    def read_nowait(self) -> bytes: ...

    async def readexactly(self, n: int) -> bytes: ...

    async def read(self, n: int = -1) -> bytes: ...


class Response(Protocol):
    """An answer, as far as it is asked here: that of aiohttp, or what is like it."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Any: ...  # a mapping of strings; pyright does not understand aiohttp's own kind of property

    @property
    def content(self) -> Content: ...

    @property
    def url(self) -> Any: ...


Opener = Callable[[Mapping[str, str]], AbstractAsyncContextManager[Response]]
"""Opens the file with more request headers. Raises `HTTPError`, `ServerUnreachable` and other errors of the package."""

CHUNK = 1 << 18
UNSATISFIABLE = 416
_BATCH = 1 << 20


async def parts(
    opener: Opener, policy: RetryPolicy | None, *, max_size: float = math.inf
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the file as ``(offset, bytes)``, one behind the other; at offset 0 again when it must be taken anew.

    That is the case when the connection broke and the server cannot give the rest, or the file changed meanwhile.

    Raises:
        ProtocolError: It is larger than ``max_size`` bytes, as the server says or as it turns out.
    """
    received, patience = Received(), Patience(policy)
    while True:
        before = received.furthest
        try:
            async with opener(received.headers()) as response:
                if not received.size and (whole := _whole(response)):
                    _check_size(len(whole), max_size)
                    yield 0, whole
                    return
                same = received.begin(response.status, response.headers)
                if same:
                    _check_size(received.total or 0, max_size)
                    more = response.content.read  # iter_chunked() costs 4 us more
                    while chunk := await more(CHUNK):
                        at = received.size
                        fresh = received.take(chunk)
                        _check_size(received.size, max_size)
                        if fresh:
                            yield at, fresh
                    if received.is_whole:
                        return
            failure: HTTPError | ServerUnreachable = _incomplete(_shown(response), received if same else None)
        except (HTTPError, ServerUnreachable) as exc:
            failure = exc
            if isinstance(exc, HTTPError) and exc.status == UNSATISFIABLE and received.can_go_on:
                received.start_over()  # it is shorter now
                failure = _incomplete(exc.url, None)
        went_on = received.furthest > before
        await patience.bear(failure, went_on=went_on, at_once=went_on and received.can_go_on)


def _whole(response: Response) -> bytes:
    """Give a file that came to its end with its head: nothing of it can break off. Empty for any other. Saves 6 us."""
    arrived = response.status == 200 and response.content.is_eof()
    return response.content.read_nowait() if arrived else b""


class Patience:
    """How often a read is tried again: as often in a row as the policy says without getting any further.

    Args:
        policy: None: it is not tried again.
    """

    def __init__(self, policy: RetryPolicy | None) -> None:
        self._policy = policy
        self._failures = 0

    async def bear(
        self, failure: HTTPError | ServerUnreachable, *, went_on: bool = False, at_once: bool = False
    ) -> None:
        """Wait until it may be tried again, or raise what happened.

        Args:
            went_on: The try got further than any before.
            at_once: Wait for nothing.
        """
        self._failures = 1 if went_on else self._failures + 1
        delay = None if self._policy is None else self._policy.delay(self._failures, failure)
        if delay is None:
            raise failure
        if not at_once:
            await asyncio.sleep(delay)


def _check_size(size: int, max_size: float) -> None:
    if size > max_size:
        raise ProtocolError(f"the file is larger than max_size, {max_size} bytes; save() it, or stream() it")


def _incomplete(url: str, received: Received | None) -> ServerUnreachable:
    """Say that the end of a body was not the end of the file; None: that it was not the same file any more."""
    if received is None:
        reason, hint = "the file changed while it was read", "try again when it is done"
    else:
        reason, hint = f"{received.size} of {received.total} bytes came", "does something cut its answers short?"
    return ServerUnreachable(url, reason, maybe_sent=True, hint=hint)


def _shown(response: Response) -> str:
    return str(response.url.with_user(None).with_query(None))


async def read(opener: Opener, policy: RetryPolicy | None, *, max_size: int) -> bytes:
    """Give the whole file.

    Raises:
        ProtocolError: It is larger than ``max_size`` bytes.
    """
    chunks: list[bytes] = []
    async with aclosing(parts(opener, policy, max_size=max_size)) as found:
        async for offset, chunk in found:
            if offset == 0:
                chunks.clear()
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def stream(opener: Opener, policy: RetryPolicy | None) -> AsyncGenerator[bytes, None]:
    """Yield the file as it comes, each byte once.

    Raises:
        ProtocolError: It must be taken anew, and what was yielded cannot be taken back.
    """
    position = 0
    async with aclosing(parts(opener, policy)) as found:
        async for offset, chunk in found:
            if offset != position:
                raise ProtocolError(
                    f"after {position} bytes the connection broke, and the file cannot be gone on with: it changed, or "
                    "the server does not tell versions apart; read() or save() it, which may begin again"
                )
            position += len(chunk)
            yield chunk


async def save(opener: Opener, policy: RetryPolicy | None, part: PartialFile) -> Path:
    """Write the file to disk as it comes; give the path that it got."""
    waiting: list[tuple[int, bytes]] = []
    size = 0
    async with aclosing(parts(opener, policy)) as found:
        async for offset, chunk in found:
            waiting.append((offset, chunk))
            size += len(chunk)
            if size >= _BATCH:  # a turn of a thread costs as much as writing 100 KB
                await asyncio.to_thread(part.write_parts, waiting)
                waiting, size = [], 0
    return await asyncio.to_thread(part.finish, waiting)

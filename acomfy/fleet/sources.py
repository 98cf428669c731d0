"""Where the outputs of a fleet's prompts come from: its object store, or the server that made them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, Protocol

from yarl import URL

from ..client import Client
from ..download import Response
from ..errors import HTTPError
from ..outputs import FileReference, Produced, Rendition
from ..result import DownloadObserver, Opening, Output, Result, ServerSource, Source
from ..retry import RetryPolicy
from .store import BlobMissing, FileStore
from .wire import Blob, StoredFile, Success

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_RETRY = RetryPolicy()


class Reader(Protocol):
    """What gives the bytes of a file, one piece behind the other."""

    async def read(self, n: int) -> bytes: ...


class Body:
    """The body of an answer that was none of HTTP: so many bytes of a reader."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader = reader
        self._left = size

    def is_eof(self) -> bool:
        return False

    def read_nowait(self) -> bytes:
        raise AssertionError("nothing of it is here before it is read")

    async def read(self, n: int = -1) -> bytes:
        wanted = self._left if n < 0 else min(n, self._left)
        data = await self._reader.read(wanted) if wanted else b""
        self._left -= len(data)
        return data

    async def readexactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            more = await self.read(n - len(data))
            if not more:
                raise asyncio.IncompleteReadError(data, n)
            data += more
        return data


class StoredResponse:
    """An answer as `acomfy.download` wants it: of a server that knows ranges, and tells versions of a file apart."""

    def __init__(self, status: int, headers: Mapping[str, str], content: Body, name: str) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self.url = URL.build(scheme="nats", host="fleet", path=f"/{name}")


class _Bytes:
    """Bytes as a reader."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    async def read(self, n: int) -> bytes:
        data, self._data = self._data[:n], self._data[n:]
        return bytes(data)


def wanted_part(headers: Mapping[str, str], size: int) -> tuple[int, int] | None:
    """Read which bytes are asked for: from and up to but not with; None when all are.

    Raises:
        ValueError: The file has no such bytes.
    """
    match = _RANGE.fullmatch(headers.get("Range", ""))
    if match is None:
        return None
    start = int(match[1])
    end = min(int(match[2]) + 1 if match[2] else size, size)
    if start >= end:
        raise ValueError(f"there are no bytes from {start} on")
    return start, end


class FleetSource(Source):
    """Outputs of a prompt that ran somewhere in a fleet.

    Args:
        files: What is known of its files, by type, subfolder and name.
        place: What is given for the address of a server.
        client_of: Gives a client of a server by its address, for files that were left there.
        observers: Entered around every reading of a file.
    """

    __slots__ = ("_client_of", "_files", "_observers", "_place", "_server", "_store", "_transfers")

    def __init__(
        self,
        prompt_id: str,
        graph: bytes,
        files: Iterable[StoredFile],
        store: FileStore,
        *,
        place: str,
        server: str,
        client_of: Callable[[str], Client],
        transfers: asyncio.Semaphore,
        observers: Sequence[DownloadObserver] = (),
    ) -> None:
        super().__init__(prompt_id, graph, _RETRY)
        self._observers = observers
        self._files = {_key(file.reference): file for file in files}
        self._store = store
        self._place = place
        self._server = server
        self._client_of = client_of
        self._transfers = transfers

    @property
    def place(self) -> str:
        return self._place  # no server takes it for one of its own

    def open(self, output: Output, headers: Mapping[str, str], wanted: Rendition | None, *, in_turn: bool) -> Opening:
        stored = self._files.get((output.type, output.subfolder, output.filename))
        if stored is None or stored.gone:
            raise self.missing(output)
        if stored.blob is None:
            client = self._client_of(self._server)
            there = ServerSource(self.prompt_id, self._graph, client.api, self._transfers, self._observers)
            there.cached_nodes = self.cached_nodes
            return there.open(output, headers, wanted, in_turn=in_turn)
        return self._opened(output, stored.blob, headers, wanted, self._transfers if in_turn else nullcontext())

    @asynccontextmanager
    async def _opened(
        self,
        output: Output,
        blob: Blob,
        headers: Mapping[str, str],
        wanted: Rendition | None,
        turn: AbstractAsyncContextManager[None],
    ) -> AsyncGenerator[Response, None]:
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(turn)
                for observer in self._observers:
                    stack.enter_context(observer(output))
                if wanted is not None:
                    yield await self._rendered(blob, wanted)
                    return
                part = _part(headers, blob)
                start, end = part or (0, blob.size)
                reader = await stack.enter_async_context(self._store.open(blob, start))
                yield StoredResponse(
                    200 if part is None else 206, _head(blob, part), Body(reader, end - start), output.filename
                )
        except BlobMissing as exc:
            raise self.missing(output) from exc

    async def _rendered(self, blob: Blob, wanted: Rendition) -> StoredResponse:
        from ..decoding import render

        data = await self._store.read(blob, max_size=1 << 30)
        try:
            made = await asyncio.to_thread(render, data, wanted)
        except OSError as exc:
            hint = "previews and channels are made of pictures alone: is this one?"
            raise HTTPError(500, "GET", self.place, str(exc), hint) from exc
        return StoredResponse(200, {"Content-Length": str(len(made))}, Body(_Bytes(made), len(made)), blob.name)


def _part(headers: Mapping[str, str], blob: Blob) -> tuple[int, int] | None:
    try:
        return wanted_part(headers, blob.size)
    except ValueError as exc:
        raise HTTPError(416, "GET", blob.name, str(exc)) from exc


def _head(blob: Blob, part: tuple[int, int] | None) -> dict[str, str]:
    start, end = part or (0, blob.size)
    head = {"Content-Length": str(end - start), "ETag": f'"{blob.sha256}"'}
    if part is not None:
        head["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    return head


def _key(reference: FileReference) -> tuple[str, str, str]:
    return reference.type, reference.subfolder, reference.filename


def make_result(source: Source, success: Success) -> Result:
    """Make the result of a prompt that ran in a fleet."""
    produced: list[Produced] = [
        output.reference if isinstance(output, StoredFile) else output for output in success.outputs
    ]
    return Result(source, produced, _ui(success.raw), success.cached_nodes)


def _ui(raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {node_id: ui for node_id, ui in raw.items() if isinstance(ui, Mapping)}

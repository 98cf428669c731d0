"""Bring the files of prompts onto the server: each content once, however many prompts name it, and at the same time.

What a file is called there is made of its content (see `acomfy.inputs`), so its content is read before it is sent, and
once more as it is sent: a file that changes in between is noticed before its last byte is sent, and is never stored
under the name of another content. All reading and hashing is done in threads (`acomfy.reading`), and nothing that lies
on a disk is taken into memory.

A large file is looked for before it is sent: an earlier client may have stored it.

Who waits for an upload does not own it: it goes on when one of them is cancelled, and ends when nobody waits any more.
A failed upload may be repeated, as the same content has the same name; the client's retry policy says when.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import cast
from weakref import WeakValueDictionary

from .api import Api
from .captures import Content, LocalFile, MaskedPicture, ServerFile, View
from .concurrency import repeated, together
from .errors import AcomfyError, JobError, PayloadTooLarge, ServerError, WorkflowError
from .inputs import SUBFOLDER, FileInput
from .reading import FileChanged, Hashes, Readable, check, said
from .result import Output
from .retry import RetryPolicy

_READ_AT_ONCE = 4
_TRIES = 3
_MOST_KNOWN = 10_000
_WORTH_ASKING = 1 << 16


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Stored:
    """A file that the server has.

    Attributes:
        value: What a loader's input takes to name it.
        name: The name that is made of its content; "" for an output, which was not uploaded.
    """

    value: str
    name: str = ""


def check_all(files: Iterable[FileInput]) -> None:
    """Refuse files that are not there, before anything is waited for.

    Raises:
        WorkflowError: One is not there, or is no file.
    """
    for file in files:
        try:
            check(file.content)
        except (OSError, ValueError) as exc:
            raise refusal(file, exc) from exc


def refusal(file: FileInput, exc: Exception) -> WorkflowError:
    """Say of which input of which node a file cannot be used, and why."""
    return WorkflowError(f"{file.where}: {said(exc)}", node_id=file.node_id, input_name=file.input_name)


class Uploads:
    """The uploads of one client.

    Args:
        spawn: Runs a coroutine as a task of the client.
        check_open: Raises when the client is closed.
        limit: Gives the bytes that the server takes in one request; None when it does not tell.
        retry: When an upload is tried again; None for never.
        refers: The server's loaders take files from its output directory too.
        at_once: Uploads under way at the most.
    """

    def __init__(
        self,
        api: Api,
        *,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        check_open: Callable[[], None],
        limit: Callable[[], Awaitable[int | None]],
        retry: RetryPolicy | None,
        refers: bool,
        at_once: int,
    ) -> None:
        self._api = api
        self._spawn = spawn
        self._check_open = check_open
        self._limit = limit
        self._retry = retry
        self._refers = refers
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)
        self._sending = asyncio.Semaphore(at_once)
        self._stored: dict[str, Stored] = {}
        self._under_way: dict[str, _Upload] = {}
        self._hashes = Hashes()
        self._transferred: WeakValueDictionary[tuple[str, ...], Stored] = WeakValueDictionary()
        self._turns: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()

    async def store_all(self, files: Iterable[FileInput]) -> list[Stored]:
        """Store the files of a prompt; give what became of them, in order.

        Cancelling it ends the uploads that nobody else waits for.

        Raises:
            WorkflowError: One cannot be read.
            PayloadTooLarge, ServerError, ClientClosed: As `store`.
        """
        return await together([self._store_input(file) for file in files])

    async def _store_input(self, file: FileInput) -> Stored:
        try:
            return await self.store(file.content)
        except (OSError, ValueError, TypeError, JobError) as exc:  # JobError: an earlier output is gone
            raise refusal(file, exc) from exc

    async def store(self, content: Content) -> Stored:
        """Bring one file onto the server, unless it is there.

        Raises:
            PayloadTooLarge: It is over the server's limit.
            ServerError: It cannot be stored, or an output of another server cannot be read.
            OSError, ValueError, TypeError, OutputMissing: It cannot be read.
            ClientClosed: The client is closed, or was closed meanwhile.
        """
        if not isinstance(content, ServerFile) or content.output.streamed:
            return await self._store_read(content)
        output = cast(Output, content.output)
        if self._refers and output._source.place == self._api.url:
            return Stored(_annotated(output))
        key = (output._source.place, output._source.prompt_id, output.type, output.subfolder, output.filename)
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn:  # those who come while it is transferred find it done
            known = self._transferred.get(key)
            if known is None or self._stored.get(known.name) is not known:
                known = self._transferred[key] = await self._store_read(content)
            return known

    async def _store_read(self, content: Content) -> Stored:
        for tries_left in reversed(range(_TRIES)):
            try:
                async with self._readable(content) as file:
                    return await self._shared(file)
            except FileChanged:
                if not tries_left:
                    raise
        raise AssertionError("the last try raises")

    def forget(self, stored: Stored) -> None:
        """Note that the server has a file no more: the next who names it uploads it again."""
        if self._stored.get(stored.name) is stored:
            del self._stored[stored.name]

    # --- Sharing ---------------------------------------------------------------------------------------------------

    async def _shared(self, file: Readable) -> Stored:
        """Wait for the upload of a content, whoever began it."""
        while True:
            known = self._stored.get(file.name)
            if known is not None:
                return known
            self._check_open()
            upload = self._under_way.get(file.name) or self._begin(file)
            await self._wait(upload)
            if upload.stored is not None:
                return upload.stored
            exc = upload.exc
            if exc is not None and (upload.file is file or isinstance(exc, AcomfyError)):
                raise exc.with_traceback(upload.traceback)
            # The client was closed, or what somebody else gave cannot be read any more; ours may be.

    def _begin(self, file: Readable) -> _Upload:
        upload = self._under_way[file.name] = _Upload(file)
        upload.task = self._spawn(self._run(upload))
        upload.task.add_done_callback(lambda _: self._end(upload))
        return upload

    async def _wait(self, upload: _Upload) -> None:
        upload.waiters += 1
        try:
            await upload.ended.wait()
        finally:
            upload.waiters -= 1
            if not upload.waiters and upload.task is not None:
                upload.task.cancel()  # nothing happens to one that has ended
                self._end(upload)

    def _end(self, upload: _Upload) -> None:
        upload.ended.set()
        if self._under_way.get(upload.file.name) is upload:
            del self._under_way[upload.file.name]

    async def _run(self, upload: _Upload) -> None:
        name = upload.file.name
        try:
            upload.stored = await self._send(upload.file)
            if len(self._stored) >= _MOST_KNOWN:
                del self._stored[next(iter(self._stored))]
            self._stored[name] = upload.stored
        except Exception as exc:
            upload.exc, upload.traceback = exc, exc.__traceback__

    async def _send(self, file: Readable) -> Stored:
        if self._refers and file.size >= _WORTH_ASKING and await self._is_there(file):
            return Stored(f"{SUBFOLDER}/{file.name}", file.name)
        limit = await self._limit()

        async def send() -> Stored:
            async with self._sending, file.opened() as body:
                answer = await self._api.upload_image(body, file.name, subfolder=SUBFOLDER, limit=limit)
            return Stored(answer.value, file.name)

        return await repeated(send, self._retry)  # the same content has the same name

    async def _is_there(self, file: Readable) -> bool:
        """Tell whether the server has the file, from an earlier client: a file of that name, and of that size."""
        try:
            view = self._api.view(file.name, subfolder=SUBFOLDER, type="input", headers={"Range": "bytes=0-0"})
            async with view as response:
                return response.headers.get("Content-Range", "").endswith(f"/{file.size}")
        except ServerError:
            return False  # most often 404; else the upload will tell

    # --- Reading ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _readable(self, content: Content) -> AsyncGenerator[Readable, None]:
        """Give a content by its name, to be read as often as need be."""
        async with AsyncExitStack() as stack:
            async with self._reading:
                file = await self._hashed(content, stack)
            yield file

    async def _hashed(self, content: Content, stack: AsyncExitStack) -> Readable:
        local = await local_content(content, stack)
        return await asyncio.to_thread(self._read, local, await self._limit())

    def _read(self, local: Content, limit: int | None) -> Readable:
        """Hash what lies on this machine, unless it is a file that is too large: that may take minutes."""
        if limit is not None and isinstance(local, LocalFile) and (size := os.stat(local.path).st_size) > limit:
            raise PayloadTooLarge(size, limit)
        return self._hashes.readable(local)


async def local_content(content: Content, stack: AsyncExitStack) -> Content:
    """Bring what lies on a server to this machine; ``stack`` removes it again."""
    if isinstance(content, MaskedPicture):
        return MaskedPicture(await local_content(content.image, stack), await local_content(content.mask, stack))
    if not isinstance(content, ServerFile):
        return content
    output = cast(Output, content.output)
    if output._view is not None:
        return View(output._view, output.filename)
    if output.text is not None:
        raise TypeError("an output of text is no picture")
    directory = await asyncio.to_thread(tempfile.mkdtemp, prefix="acomfy-")
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    return LocalFile(os.fspath(await output.save(os.path.join(directory, ""))))


class _Upload:
    """An upload under way, and what came of it: neither ``stored`` nor ``exc`` when it was cancelled."""

    def __init__(self, file: Readable) -> None:
        self.file = file
        self.task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.waiters = 0
        self.stored: Stored | None = None
        self.exc: Exception | None = None
        self.traceback: TracebackType | None = None


def _annotated(output: Output) -> str:
    """Name an output as loaders do: with its folder behind it (ComfyUI folder_paths.py annotated_filepath)."""
    path = f"{output.subfolder.rstrip('/')}/{output.filename}" if output.subfolder else output.filename
    return f"{path} [{output.type}]"

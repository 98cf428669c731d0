"""Bring what a prompt gave into the object store, and the files of an order to where its prompt can take them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ..captures import LocalFile
from ..concurrency import together
from ..errors import OutputMissing
from ..inputs import FileInput
from ..outputs import FileReference, TextValue
from ..result import Output, Result
from .scratch import Scratch
from .store import FileStore
from .wire import Blob, InputBlob, StoredFile, StoredOutput, Success

_IN_MEMORY = 4 << 20
_AT_ONCE = 4
_LARGEST_GRAPH = 1 << 30


class Collecting:
    """Store the outputs of prompts.

    Args:
        scratch: Where large ones are on their way.
        by_reference: Leave files on their server; what was streamed is stored all the same, as no server has it.
    """

    def __init__(self, files: FileStore, scratch: Scratch, *, by_reference: bool) -> None:
        self._files = files
        self._scratch = scratch
        self._by_reference = by_reference
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def success(self, job_id: str, attempt: int, result: Result, nodes: Mapping[str, Any]) -> Success:
        """Store all that a prompt gave.

        Raises:
            ServerError: A file cannot be read from its server, or not be stored.
        """
        outputs = await together(
            self._stored(output, f"{job_id}/{attempt}/{number}") for number, output in enumerate(result.outputs)
        )
        return Success(tuple(outputs), result.raw, result.cached_nodes, _about(nodes))

    async def _stored(self, output: Output, name: str) -> StoredOutput:
        if output.text is not None:
            return TextValue(output.node_id, output.key, output.text)
        reference = FileReference(
            node_id=output.node_id,
            key=output.key,
            filename=output.filename,
            subfolder=output.subfolder,
            type=output.type,
            media_type=output.media_type,
            animated=output.animated,
            entry=output.raw,
        )
        if self._by_reference and not output.streamed:
            return StoredFile(reference, None)
        try:
            async with self._turn:
                return StoredFile(reference, await self._blob(output, name))
        except OutputMissing:
            return StoredFile(reference, None, gone=True)

    async def _blob(self, output: Output, name: str) -> Blob:
        """Store a file: from memory if it is small, else by way of the disk."""
        head = bytearray()
        async with aclosing(output.stream()) as chunks:
            async for chunk in chunks:
                head += chunk
                if len(head) > _IN_MEMORY:
                    break
            else:
                return await self._files.put(name, bytes(head))
        parent = await self._scratch.directory()
        directory = await asyncio.to_thread(tempfile.mkdtemp, dir=parent)
        try:
            return await self._files.put(name, await output.save(os.path.join(directory, "output")))
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def lost_file(success: Success) -> FileReference | None:
    """Give a file that was gone from its server although the prompt itself had just made it; None when none was.

    One of a cached node may have been deleted long ago, and would be gone again.
    """
    cached = success.cached_nodes
    gone = (output.reference for output in success.outputs if isinstance(output, StoredFile) and output.gone)
    return next((file for file in gone if cached is not None and file.node_id not in cached), None)


def _about(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Give class and title of each node, for who attaches without the graph."""
    about = {}
    for node_id, node in nodes.items():
        about[node_id] = {"class_type": node.get("class_type"), "inputs": {}}
        title = node.get("_meta", {}).get("title") if isinstance(node.get("_meta"), Mapping) else None
        if title is not None:
            about[node_id]["_meta"] = {"title": title}
    return about


class InputFiles:
    """The files of orders, on this machine's disk: each content once, those that were used last.

    Args:
        scratch: Where they are.
        most: Bytes that are kept at most, beside what is in use.
    """

    def __init__(self, inputs: FileStore, scratch: Scratch, *, most: int = 4 << 30) -> None:
        self._inputs = inputs
        self._scratch = scratch
        self._most = most
        self._numbers = itertools.count()
        self._kept: OrderedDict[str, tuple[Path, int]] = OrderedDict()
        self._used: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def read(self, blob: Blob) -> bytes:
        """Read a graph that was too large for a message.

        Raises:
            ServerError: It cannot be had.
        """
        return await self._inputs.read(blob, max_size=_LARGEST_GRAPH)

    async def take(self, files: tuple[InputBlob, ...]) -> tuple[FileInput, ...]:
        """Have files here until `give_back`.

        Raises:
            ServerError: One cannot be had: `BlobMissing` when it is gone from the store.
        """
        for file in files:
            self._used[file.filename] = self._used.get(file.filename, 0) + 1
        try:
            paths = await together(self._fetched(file) for file in files)
        except BaseException:
            await self.give_back(files)
            raise
        return tuple(
            FileInput(file.node_id, file.input_name, file.where, LocalFile(os.fspath(path)), file.mark)
            for file, path in zip(files, paths, strict=True)
        )

    async def _fetched(self, file: InputBlob) -> Path:
        async with self._turns.setdefault(file.filename, asyncio.Lock()):
            if file.filename in self._kept:
                self._kept.move_to_end(file.filename)
                return self._kept[file.filename][0]
            directory = await self._scratch.directory()
            # With a number of its own: it may have been here before, and be removed at this moment.
            path = directory / f"{next(self._numbers)}-{Path(file.filename).name}"
            await self._inputs.save(file.blob, path)
            self._kept[file.filename] = path, file.blob.size
            return path

    async def give_back(self, files: tuple[InputBlob, ...]) -> None:
        """Let files go that are not used any more; those that were used last are kept for the next order."""
        for file in files:
            self._used[file.filename] -= 1
            if not self._used[file.filename]:
                del self._used[file.filename]
                self._turns.pop(file.filename, None)
        size = sum(size for _, size in self._kept.values())
        for name in [name for name in self._kept if name not in self._used]:
            if size <= self._most:
                break
            path, freed = self._kept.pop(name)
            size -= freed
            await asyncio.to_thread(path.unlink, missing_ok=True)

"""Forms with a file in them, read from disk as they are sent, under names that ComfyUI stores as they are.

Rules (aiohttp's parser, which ComfyUI uses; seen with 0.3.40 to 0.33.0): a percent-encoded ``filename`` is stored
percent-encoded, so names go unquoted; one with a ``;``, with a slash, backslash or space at its ends, or with control
characters may not survive that, and goes as ``filename*`` (RFC 8187), which the same parser decodes exactly.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload, StringPayload

Uploadable: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO"
"""What can be uploaded: bytes, the path of a file, or a file open for reading bytes."""

_CHUNK = 1 << 18
_PIECE = 1 << 16
"""Bytes that are sent within the time of a silence: fewer than are read at once, for slow connections."""
_NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f;]|^[/\\]|^\s|\s$")


class Stalled(TimeoutError):
    """The server takes no more of a body; aiohttp has no timeout for that."""


class FilePart(Payload):
    """A file as a part of a form: read in a thread, as much at a time as is sent.

    Args:
        file: A path is opened anew for each sending; an open file is read from where it stands, and left open.
        silence: Seconds in which the server must take 64 KB; None for no limit.

    Attributes:
        error: What went wrong while the file was read, as the connection only tells that it was cut off.
    """

    def __init__(self, file: Uploadable, silence: float | None = None) -> None:
        super().__init__(file)
        self._silence = silence
        self.error: Exception | None = None
        self._start = 0
        self._size = self._measure()

    def _measure(self) -> int | None:
        file = self._value
        if isinstance(file, bytes | bytearray | memoryview):
            return memoryview(file).nbytes
        if isinstance(file, str | os.PathLike):
            path = Path(file)
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {os.fspath(path)!r} to upload")
            return path.stat().st_size
        if not callable(getattr(file, "read", None)):
            raise TypeError(f"bytes, a path or an open file can be uploaded, not {type(file).__name__}")
        if not file.seekable():
            return None
        self._start = file.tell()
        end: int = file.seek(0, os.SEEK_END)
        file.seek(self._start)
        return end - self._start

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a file is sent as bytes")

    async def write(self, writer: AbstractStreamWriter) -> None:
        try:
            async for chunk in self._chunks():
                view = memoryview(chunk)
                for start in range(0, len(view), _PIECE):
                    await self._write(writer, view[start : start + _PIECE])
        except (OSError, ValueError, TypeError) as exc:
            if not isinstance(exc, ConnectionError | Stalled):
                self.error = exc
            raise

    async def _write(self, writer: AbstractStreamWriter, piece: memoryview) -> None:
        try:
            async with asyncio.timeout(self._silence):
                await writer.write(piece)
        except TimeoutError:
            raise Stalled(f"it took nothing more of the body for {self._silence:g} s") from None

    async def _chunks(self) -> AsyncIterator[bytes | memoryview]:
        file = self._value
        if isinstance(file, bytes | bytearray | memoryview):
            view = memoryview(file).cast("B")
            for start in range(0, len(view), _CHUNK):
                yield view[start : start + _CHUNK]
        elif isinstance(file, str | os.PathLike):
            opened = await asyncio.to_thread(open, file, "rb")
            try:
                async for chunk in self._read(opened):
                    yield chunk
            finally:
                opened.close()
        else:
            if self._size is not None:
                await asyncio.to_thread(file.seek, self._start)
            async for chunk in self._read(file):
                yield chunk

    async def _read(self, file: BinaryIO) -> AsyncIterator[bytes]:
        left = self._size
        while left is None or left > 0:
            chunk = await asyncio.to_thread(file.read, _CHUNK if left is None else min(_CHUNK, left))
            if not isinstance(chunk, bytes):
                raise TypeError(f"the file to upload gives {type(chunk).__name__}; open it for reading bytes ('rb')")
            if not chunk and left is not None:
                raise ValueError(f"the file to upload became shorter by {left} bytes while it was sent")
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk


def form(part: FilePart, field: str, filename: str, fields: Mapping[str, str]) -> aiohttp.MultipartWriter:
    """Make a form of one file and some texts.

    Raises:
        ValueError: The name is empty, or cannot be written as UTF-8.
    """
    part.headers["Content-Disposition"] = disposition(field, filename)
    writer = aiohttp.MultipartWriter("form-data")
    for name, value in fields.items():
        text = StringPayload(value, content_type="text/plain; charset=utf-8")
        text.set_content_disposition("form-data", name=name)
        writer.append_payload(text)
    writer.append_payload(part)
    return writer


def disposition(field: str, filename: str) -> str:
    """Write the header that names a file, so that the server stores it under exactly this name.

    Raises:
        ValueError: The name is empty, or cannot be written as UTF-8.
    """
    if not filename:
        raise ValueError("a file needs a name to be uploaded")
    try:
        encoded = quote(filename, safe="", errors="strict")
    except UnicodeEncodeError:
        raise ValueError(f"the file name {filename!r} cannot be written as UTF-8") from None
    if _NOT_PLAIN.search(filename):
        return f"form-data; name=\"{field}\"; filename*=utf-8''{encoded}"
    escaped = filename.replace("\\", "\\\\").replace('"', '\\"')
    return f'form-data; name="{field}"; filename="{escaped}"'


def content_size(part: FilePart, fields: Mapping[str, Any]) -> int | None:
    """Count the bytes that the server's limit is for: the contents of the fields; None when that is not known."""
    if part.size is None:
        return None
    return part.size + sum(len(str(value).encode()) for value in fields.values())

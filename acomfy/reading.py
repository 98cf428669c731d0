"""Read the files of prompts: hash them, and read them again as they are sent, sure that they are still the same.

Everything here blocks on the disk or the processor, and is to be called in a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast
from weakref import WeakKeyDictionary

from .captures import Content, Data, LocalFile, MaskedPicture, OpenFile, Picture, Pixels, View
from .inputs import HEAD_SIZE, stored_name

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK = 1 << 20
_SETTLED = 2.0
_MOST_HASHES = 1000

_Stat: TypeAlias = tuple[int, ...]


class FileChanged(ValueError):
    """A file changed while it was uploaded."""

    def __init__(self) -> None:
        super().__init__("the file changed while it was uploaded, each time; give it once it is written")


def check(content: Content) -> None:
    """Refuse a file that is not there.

    Raises:
        OSError, ValueError: It is not there, or is no file.
    """
    if isinstance(content, MaskedPicture):
        check(content.image)
        check(content.mask)
    elif isinstance(content, LocalFile) and not stat.S_ISREG(os.stat(content.path).st_mode):
        raise ValueError(f"{content.path!r} is no file")


def said(exc: Exception) -> str:
    """Say what an exception means, for a person."""
    if isinstance(exc, FileNotFoundError) and exc.filename is not None:
        return f"there is no file {exc.filename!r}; for a file that the server has, give its name as a str"
    if isinstance(exc, OSError) and exc.filename is not None and exc.strerror:
        return f"{exc.filename!r} cannot be read: {exc.strerror}"
    return str(exc) or type(exc).__name__


@dataclass(frozen=True, slots=True, eq=False)
class Readable:
    """A file whose content is known.

    Attributes:
        name: Made of its content; see `acomfy.inputs`.
        size: Its bytes.
    """

    name: str
    size: int
    _digest: bytes = field(repr=False)
    _source: bytes | memoryview | LocalFile | OpenFile = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of its content, in hex."""
        return self._digest.hex()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[bytes | memoryview | BinaryIO, None]:
        """Give it to be sent.

        Raises:
            OSError: It cannot be opened.
            FileChanged: It is not what it was; raised by a read of it, before the last byte is given.
        """
        if isinstance(self._source, bytes | memoryview):
            yield self._source
            return
        file = await asyncio.to_thread(_Unchanged, self._source, self.size, self._digest)
        try:
            yield cast(BinaryIO, file)
        finally:
            file.close()


def _open(path: str) -> BinaryIO:
    """Open a file that may have become a pipe or a device since `check`, which would be waited for, or never end."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ValueError(f"{path!r} is no file")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


_turn_of_open_files = threading.Lock()  # to seek and to read is two steps, and two prompts may have the same file


class _Window(io.RawIOBase):
    """A file of the disk, or what an open file has from where it stood; that stays where it stands."""

    def __init__(self, source: LocalFile | OpenFile) -> None:
        self._source = source
        self._turn = _turn_of_open_files if isinstance(source, OpenFile) else threading.Lock()
        self._file = source.file if isinstance(source, OpenFile) else _open(source.path)
        self._start = source.start if isinstance(source, OpenFile) else 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: 0}[whence]
        if whence == os.SEEK_END:
            base = self._end()
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        with self._turn:
            stood = self._file.tell()
            try:
                self._file.seek(self._start + self._at)
                data = self._file.read(size)
            finally:
                self._file.seek(stood)
        if not isinstance(data, bytes):
            raise TypeError(f"the file gives {type(data).__name__}; open it for reading bytes ('rb')")
        self._at += len(data)
        return data

    def _end(self) -> int:
        with self._turn:
            stood = self._file.tell()
            try:
                return self._file.seek(0, os.SEEK_END) - self._start
            finally:
                self._file.seek(stood)

    def close(self) -> None:
        if isinstance(self._source, LocalFile) and hasattr(self, "_file"):
            self._file.close()
        super().close()


class _Unchanged(_Window):
    """A file that is read from its beginning to its end, and must be what it was when it was hashed."""

    def __init__(self, source: LocalFile | OpenFile, size: int, digest: bytes) -> None:
        super().__init__(source)
        self._size = size
        self._digest = digest
        self._hash = hashlib.sha256()

    def _end(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = super().seek(offset, whence)
        if at == 0:
            self._hash = hashlib.sha256()
        return at

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self._hash.update(data)
        if not data or (self._at >= self._size and self._hash.digest() != self._digest):
            raise FileChanged
        return data


class Hashes:
    """Hash files; what was hashed is not hashed again as long as it does not change."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, tuple[_Stat, Readable]] = OrderedDict()
        self._known: WeakKeyDictionary[Data | Picture | Pixels, Readable] = WeakKeyDictionary()

    def readable(self, content: Content) -> Readable:
        """Hash a content of this machine; a picture is encoded first.

        Raises:
            OSError, ValueError, TypeError: It cannot be read.
        """
        if isinstance(content, Data | Picture | Pixels):
            known = self._known.get(content)
            if known is None:
                data = content.data if isinstance(content, Data) else _png(content)
                known = self._known[content] = _of_bytes(data)
            return known
        if isinstance(content, MaskedPicture):
            return _of_bytes(_masked_png(content))
        if isinstance(content, View):
            return _of_bytes(content.data, content.name)
        if isinstance(content, LocalFile):
            return self._of_path(content)
        if isinstance(content, OpenFile):
            return _of_file(content, content.name)
        raise AssertionError("it is on this machine by now")

    def _of_path(self, file: LocalFile) -> Readable:
        about = os.stat(file.path)
        looks = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        known = self._files.get(file.path)
        if known is not None and known[0] == looks:
            return known[1]
        readable = _of_file(file, file.path)
        # A change within the tick of the clock that the last one fell into would not show.
        if time.time() - max(about.st_mtime, about.st_ctime) > _SETTLED:
            self._files[file.path] = (looks, readable)
            if len(self._files) > _MOST_HASHES:
                self._files.popitem(last=False)
        return readable


def _png(content: Picture | Pixels) -> bytes:
    from .encoding import image_of, write_png

    return write_png(image_of(content))


def _masked_png(content: MaskedPicture) -> bytes:
    from .encoding import masked, write_png

    return write_png(masked(_image(content.image), _image(content.mask)))


def _of_bytes(data: bytes | memoryview, name: str = "") -> Readable:
    digest = hashlib.sha256(data)
    return Readable(stored_name(digest.hexdigest(), bytes(data[:HEAD_SIZE]), name), len(data), digest.digest(), data)


def _of_file(source: LocalFile | OpenFile, name: str) -> Readable:
    digest, size, head = hashlib.sha256(), 0, b""
    with _Window(source) as file:
        while chunk := file.read(_CHUNK):
            head = head or chunk[:HEAD_SIZE]
            digest.update(chunk)
            size += len(chunk)
    return Readable(stored_name(digest.hexdigest(), head, name), size, digest.digest(), source)


def _image(content: Content) -> Image:
    """Decode a picture. One of a file is turned as its EXIF says, which LoadImage would do and a PNG of ours says not.

    Raises:
        OSError, ValueError: It is no picture, or one of more pixels than Pillow allows.
    """
    if isinstance(content, Picture | Pixels):
        from .encoding import image_of

        return image_of(content)
    import PIL.Image
    import PIL.ImageOps

    if isinstance(content, LocalFile | OpenFile):
        file = cast(BinaryIO, _Window(content))
    elif isinstance(content, Data | View):
        file = io.BytesIO(content.data)
    else:
        raise AssertionError("it is on this machine by now, and no mask in a mask")
    with file:
        try:
            image = PIL.Image.open(file)
            return PIL.ImageOps.exif_transpose(image)
        except PIL.Image.DecompressionBombError as exc:
            raise ValueError(str(exc)) from exc

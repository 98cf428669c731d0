"""Write files into a directory under names that a server chose: whole or not at all, never over another, never outside.

Everything here blocks on the disk and is to be called in a thread.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .outputs import safe_filename


class PartialFile:
    """A file that is being written under another name, beside the place where it will stand.

    A thread cannot be cancelled: its work goes on after the coroutine that waited for it gave up. So `discard` may
    come while another method runs; what that still does is undone when it ends.

    Attributes:
        path: Where it will stand.
        overwrite: Replace what stands there; else it gets a number behind its name, as ``name (1).png``.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self.overwrite = overwrite
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._written: Path | None = None
        self._discarded = False

    def write(self, data: bytes | memoryview) -> None:
        """Write at its end."""
        with self._working():
            self._opened().write(data)

    def write_parts(self, parts: Iterable[tuple[int, bytes]]) -> None:
        """Write each part at its offset, which is the end, or before that: then the file is cut off there first."""
        with self._working():
            self._write_parts(parts)

    def finish(self, parts: Iterable[tuple[int, bytes]] = ()) -> Path:
        """Write the last parts, as `write_parts`, and put the file in its place; give the path that it got."""
        with self._working():
            self._write_parts(parts)
            self._opened().close()
            if self._written is None:
                raise AssertionError("an open file has a name")
            if self.overwrite:
                os.replace(self._written, self.path)
                self._written = None  # the file that stood there is gone: this one stays
                return self.path
            self._written = _rename_to_free(self._written, self.path)
            return self._written

    def discard(self, *, wait: bool = False) -> None:
        """Remove the file, also when it is finished, unless it replaced another.

        Args:
            wait: When another method runs, wait for it; else it is that method that removes the file at its end.
        """
        self._discarded = True
        if self._lock.acquire(blocking=wait):
            try:
                self._remove()
            finally:
                self._lock.release()

    def _write_parts(self, parts: Iterable[tuple[int, bytes]]) -> None:
        file = self._opened()
        for offset, data in parts:
            if offset != file.tell():
                file.seek(offset)
                file.truncate()
            file.write(data)

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            with self._lock:
                if self._discarded:
                    raise ValueError("the file was discarded")
                yield
        finally:
            # After the lock was let go: until then `discard` found it taken, and left the file to us.
            if self._discarded:
                self.discard()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._written = self.path.with_name(f".{secrets.token_hex(8)}.part")
            self._file = self._written.open("xb")
        return self._file

    def _remove(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # it writes what it still holds, and the disk may be full
                self._file.close()
        if self._written is not None:
            self._written.unlink(missing_ok=True)
            self._written = None  # the name is free, and the next file of that name is another's


def destination(dest: str | os.PathLike[str], filename: str) -> Path:
    """Say where a file goes: into ``dest`` if that is a directory, or looks like one; else ``dest`` is the file.

    It looks like a directory when it ends in a separator or has no extension.
    """
    path = Path(dest)
    ends_in_separator = os.fspath(dest).endswith(("/", os.sep))
    if path.is_dir() or ends_in_separator or not path.suffix:
        return path / safe_filename(filename)
    return path


def distinct(filenames: Iterable[str]) -> list[str]:
    """Make names that a server chose safe, and no two of them the same: the second ``a.png`` is ``a (1).png``.

    Case does not count: some disks do not tell ``A.png`` from ``a.png``.
    """
    names = [safe_filename(filename) for filename in filenames]
    taken = {name.casefold() for name in names}
    numbers: dict[str, itertools.count[int]] = {}
    for place, name in enumerate(names):
        if (same := name.casefold()) not in numbers:  # the first of this name keeps it
            numbers[same] = itertools.count(1)
            continue
        others = (_numbered(Path(name), number).name for number in numbers[same])
        names[place] = next(other for other in others if other.casefold() not in taken)
        taken.add(names[place].casefold())
    return names


def _numbered(path: Path, number: int) -> Path:
    """Put a number behind a name, before its extension."""
    return path.with_name(f"{path.stem} ({number}){path.suffix}")


def _rename_to_free(temporary: Path, path: Path) -> Path:
    """Rename a file to ``path``, or to the first free name with a number behind it; give the one taken."""
    numbered = (_numbered(path, number) for number in itertools.count(1))
    for candidate in itertools.chain([path], numbered):
        try:
            _rename_to_new(temporary, candidate)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("the names do not end")


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename, but never over another file."""
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        raise  # the name is taken; or somebody removed the file, and nothing must stand under its name
    except OSError:
        _rename_without_links(temporary, path)
    else:
        os.unlink(temporary)


def _rename_without_links(temporary: Path, path: Path) -> None:
    """Rename on a file system that knows no hard links (exFAT, some network shares): take the name first."""
    path.open("xb").close()
    try:
        os.replace(temporary, path)
    except OSError:
        path.unlink()
        raise

"""Write files into a directory under names that a server chose: whole or not at all, never over another, never outside.

Everything here blocks on the disk and is to be called in a thread.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

from .outputs import safe_filename


class PartialFile:
    """A file that is being written under another name, beside the place where it will stand.

    A thread cannot be cancelled: its work goes on after the coroutine that waited for it gave up. So `discard` may
    come while another method runs, and wins.

    Attributes:
        path: Where it will stand.
        overwrite: Replace what stands there; else it gets a number behind its name, as ``name (1).png``.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self.overwrite = overwrite
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._temporary: Path | None = None
        self._discarded = False

    def write(self, data: bytes | memoryview) -> None:
        with self._lock:
            self._opened().write(data)

    def finish(self) -> Path:
        """Put the file in its place; give the path that it got."""
        with self._lock:
            self._opened().close()
            if self._temporary is None:
                raise AssertionError("an open file has a name")
            os.chmod(self._temporary, 0o666 & ~_umask())
            if self.overwrite:
                os.replace(self._temporary, self.path)
                return self.path
            return _rename_to_free(self._temporary, self.path)

    def discard(self) -> None:
        """Remove what was written; once it is finished, that is nothing."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                self._file.close()
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._discarded:
            raise ValueError("the file was discarded")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.path.parent)
            self._file, self._temporary = os.fdopen(handle, "wb"), Path(name)
        return self._file


def destination(dest: str | os.PathLike[str], filename: str) -> Path:
    """Say where a file goes: into ``dest`` if that is a directory, or looks like one; else ``dest`` is the file.

    It looks like a directory when it ends in a separator or has no extension.
    """
    path = Path(dest)
    ends_in_separator = os.fspath(dest).endswith(("/", os.sep))
    if path.is_dir() or ends_in_separator or not path.suffix:
        return path / safe_filename(filename)
    return path


def _rename_to_free(temporary: Path, path: Path) -> Path:
    """Rename a file to ``path``, or to the first free name with a number behind it; give the one taken."""
    numbered = (path.with_name(f"{path.stem} ({number}){path.suffix}") for number in itertools.count(1))
    for candidate in itertools.chain([path], numbered):
        try:
            _rename_to_new(temporary, candidate)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("the names do not end")


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename, but never over another file; on file systems without hard links the check comes just before."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists() or path.is_symlink():
            raise FileExistsError(path) from None
        os.rename(temporary, path)
    else:
        os.unlink(temporary)


def _umask() -> int:
    # There is no way to read it but to set it; a thread that makes a file in between gets the narrower mode.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

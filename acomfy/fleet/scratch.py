"""Where a worker puts files that are on their way: a directory of its own, of which nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: what a killed worker left stays there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_PREFIX = "acomfy-worker-"
_LOCK = "in-use"


class Scratch:
    """A directory that is made when it is needed first.

    It is locked as long as its worker lives, so that the next worker on this machine removes what one that was killed
    left: up to some gigabytes.
    """

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._lock: IO[bytes] | None = None
        self._turn = asyncio.Lock()

    async def directory(self) -> Path:
        """Give it.

        Raises:
            OSError: It cannot be made.
        """
        async with self._turn:
            if self._directory is not None:
                return self._directory
            await asyncio.to_thread(_remove_left)
            directory, self._lock = await asyncio.to_thread(_made)
            self._directory = directory
            return directory

    async def aclose(self) -> None:
        """Remove it, with all that is in it."""
        async with self._turn:
            if self._directory is not None:
                await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
            if self._lock is not None:
                self._lock.close()
            self._directory = self._lock = None


def _made() -> tuple[Path, IO[bytes]]:
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    making = directory / "making"
    lock = making.open("wb")
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
        making.rename(directory / _LOCK)  # nobody may lock it before us
    return directory, lock


def _remove_left() -> None:
    """Remove the directories of this user's workers that live no more."""
    if fcntl is None:
        return
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if directory.stat(follow_symlinks=False).st_uid != os.getuid():
                continue
            with (directory / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
        except OSError as exc:  # it is in use, or just being made
            logger.debug("%s stays: %s", directory, exc)
        else:
            logger.info("removed %s, which a worker left", directory)

"""The processes of the demonstration: commands of acomfy, none of which outlives it."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..fleet.local import bound_to_parent

_START_TIMEOUT = 60.0  # of a Python on a busy machine
_LAST_LINES = 2000


class StageError(Exception):
    """A process of the demonstration did not start."""


class Child:
    """``acomfy ...`` in a process of its own.

    Args:
        log: Where its stderr goes.
    """

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process; 0 before it was started."""
        return 0 if self._process is None else self._process.pid

    async def start(self) -> str:
        """Start it, and give the first line that it prints.

        Raises:
            StageError: It printed none.
        """
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *bound_to_parent([sys.executable, "-m", "acomfy", *self._arguments]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._log.parent), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C is for us: we end it
            )
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_TIMEOUT):
                line = await self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace")[-_LAST_LINES:]
            raise StageError(f"'acomfy {' '.join(self._arguments)}' did not start:\n{said}")
        return line.decode()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def aclose(self) -> None:
        """End it at once, and wait until it is gone."""
        self.kill()
        if self._process is not None:
            await self._process.wait()


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Give a directory in which all temporary files of this process go too; it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="acomfy-demo-", ignore_cleanup_errors=True) as directory:
        before, tempfile.tempdir = tempfile.tempdir, directory
        try:
            yield Path(directory)
        finally:
            tempfile.tempdir = before

"""The directory of a worker's files on their way, and what is in it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from acomfy.captures import LocalFile
from acomfy.fleet.collecting import InputFiles
from acomfy.fleet.scratch import Scratch
from acomfy.fleet.store import FileStore
from acomfy.fleet.wire import Blob, InputBlob

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def content(path: str | os.PathLike[str]) -> bytes:
    return Path(path).read_bytes()


async def test_it_is_made_when_needed_and_removed_at_the_end(temporary: Path) -> None:
    scratch = Scratch()
    assert not names(temporary)
    first, second = await asyncio.gather(scratch.directory(), scratch.directory())
    assert first == second
    assert names(temporary) == {first.name}
    (first / "a").write_bytes(b"x")
    await scratch.aclose()
    await scratch.aclose()
    assert not names(temporary)


async def test_what_a_killed_worker_left_is_removed_by_the_next_one_and_what_is_in_use_stays(temporary: Path) -> None:
    program = (
        "import asyncio, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from acomfy.fleet.scratch import Scratch\n"
        "async def main():\n"
        "    scratch = Scratch(); directory = await scratch.directory(); (directory / 'a').write_bytes(b'x')\n"
        "    print(directory, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program, temporary, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    left = Path((await worker.stdout.readline()).decode().strip())
    living, beside = Scratch(), Scratch()
    mine = await living.directory()
    assert names(left) == {"a", "in-use"}
    worker.kill()
    await worker.wait()
    also_mine = await beside.directory()
    assert names(temporary) == {mine.name, also_mine.name}
    await living.aclose()
    await beside.aclose()


async def test_a_file_that_is_fetched_again_while_it_is_removed_stays(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing, may_remove = threading.Event(), threading.Event()
    unlink = Path.unlink

    def slow(self: Path, missing_ok: bool = False) -> None:
        removing.set()
        may_remove.wait()
        unlink(self, missing_ok=missing_ok)

    class Store:
        async def save(self, blob: Blob, path: Path) -> None:
            await asyncio.to_thread(path.write_bytes, b"content")

    monkeypatch.setattr(Path, "unlink", slow)
    scratch = Scratch()
    inputs = InputFiles(cast(FileStore, Store()), scratch, most=0)
    files = (InputBlob("mark", "1", "image", "node 1", "a.png", Blob("bucket", "name", 7, "0")),)
    await inputs.take(files)
    giving = asyncio.create_task(inputs.give_back(files))
    await asyncio.to_thread(removing.wait)
    (taken,) = await inputs.take(files)
    may_remove.set()
    await giving
    assert isinstance(taken.content, LocalFile)
    assert content(taken.content.path) == b"content"
    await scratch.aclose()

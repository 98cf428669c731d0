"""The batch example runs every row once, however often it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from acomfy.simulator import SimulatedServer

from .conftest import MS

pytestmark = pytest.mark.anyio

ROWS = 16


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        server.on("KSampler").takes(5 * MS)
        yield server


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("6.text,3.seed,5.width\n" + "".join(f'"a, fox {n}",{n},64\n' for n in range(ROWS)))
    return path


async def start(server: SimulatedServer, rows: Path) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arguments = ("-m", "acomfy.examples.batch", rows.name, "--server", server.url, "--limit", "4")
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=rows.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def executions(server: SimulatedServer) -> Counter[int]:
    """Count how often each seed's prompt ran to its end."""
    finished = {prompt_id for prompt_id, entry in server.ledger.items() if entry.state == "completed"}
    return Counter(body["prompt"]["3"]["inputs"]["seed"] for body in server.prompts if body["prompt_id"] in finished)


async def test_every_row_runs_once_however_often_it_is_stopped(server: SimulatedServer, rows: Path) -> None:
    for count, stop in ((3, signal.SIGKILL), (6, signal.SIGINT), (11, signal.SIGKILL)):
        process = await start(server, rows)
        async with asyncio.timeout(30):
            await server.wait_for(lambda count=count: len(server.prompts) >= count)  # type: ignore[misc]
        process.send_signal(stop)
        await process.communicate()
    process = await start(server, rows)
    said, _ = await process.communicate()
    assert f"{ROWS} of {ROWS} rows are done, 0 failed" in said.decode()
    assert executions(server) == dict.fromkeys(range(ROWS), 1)
    out = rows.parent / "out"
    assert len(list(out.glob("row-*.png"))) == ROWS
    with Image.open(out / "sheet-00000.png") as sheet:
        assert sheet.width > 128


async def test_a_row_that_failed_is_tried_again_at_the_next_start(server: SimulatedServer, rows: Path) -> None:
    server.on("KSampler").where(seed=7).once().fails_with("out of luck")
    said, _ = await (await start(server, rows)).communicate()
    assert "out of luck" in said.decode()
    assert f"{ROWS - 1} of {ROWS} rows are done, 1 failed" in said.decode()
    said, _ = await (await start(server, rows)).communicate()
    assert f"{ROWS} of {ROWS} rows are done, 0 failed" in said.decode()
    assert executions(server) == dict.fromkeys(range(ROWS), 1)


async def test_a_torn_last_line_of_the_journal_does_not_count(server: SimulatedServer, rows: Path) -> None:
    await (await start(server, rows)).communicate()
    journal = rows.parent / "out" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    said, _ = await (await start(server, rows)).communicate()
    assert f"{ROWS} of {ROWS} rows are done, 0 failed" in said.decode()
    assert executions(server) == dict.fromkeys(range(ROWS), 1)

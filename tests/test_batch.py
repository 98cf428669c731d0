"""The batch example runs every row once, however often it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

import acomfy
from acomfy import examples
from acomfy.examples.batch import Batch, Journal, read_rows
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
    path.write_text("6.text,3.seed,5.width,5.height\n" + "".join(f'"a, fox {n}",{n},64,64\n' for n in range(ROWS)))
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


async def test_rows_that_comfyui_lost_by_a_restart_run_anew_at_once(server: SimulatedServer, rows: Path) -> None:
    script = server.on("KSampler").once().waits_for(asyncio.Event())
    process = await start(server, rows)
    async with asyncio.timeout(30):
        await server.wait_for(lambda: script.calls and len(server.prompts) == 4)
    await server.faults.restart()
    said, _ = await process.communicate()
    assert f"{ROWS} of {ROWS} rows are done, 0 failed" in said.decode()
    assert executions(server) == dict.fromkeys(range(ROWS), 1)


async def test_a_row_that_was_interrupted_when_it_was_stopped_runs_anew(server: SimulatedServer, rows: Path) -> None:
    table, out = read_rows(rows), rows.parent / "out"
    out.mkdir()
    script = server.on("KSampler").once().waits_for(asyncio.Event())
    with closing(Journal(out / "journal.jsonl", table)) as journal:
        async with acomfy.Client(server.url) as client:
            batch = Batch(client, examples.load("text_to_image"), table, journal, out)
            submitting = asyncio.create_task(batch.do(0))
            await server.wait_for(lambda: bool(script.calls))
            assert journal.prompt_ids.keys() == {0}
            await client.interrupt(journal.prompt_ids[0])  # as a submit does that is stopped before it has its answer
            with pytest.raises(acomfy.JobInterrupted):
                await submitting
    said, _ = await (await start(server, rows)).communicate()
    assert f"{ROWS} of {ROWS} rows are done, 0 failed" in said.decode()
    assert executions(server) == dict.fromkeys(range(ROWS), 1)


@pytest.fixture
async def batch(tmp_path: Path) -> AsyncIterator[Batch]:
    """Give a batch of two rows for a server that is not there."""
    rows = [{"3.seed": "1"}, {"3.seed": "2"}]
    with closing(Journal(tmp_path / "journal.jsonl", rows)) as journal:
        async with acomfy.Client("http://127.0.0.1:9", connect_timeout=10 * MS) as client:
            yield Batch(client, examples.load("text_to_image"), rows, journal, tmp_path)


async def test_a_server_that_is_not_there_stops_it_and_no_row_fails(batch: Batch) -> None:
    assert isinstance(await batch.run(limit=2), acomfy.ServerUnreachable)
    assert batch.failed == {}


def test_a_journal_is_not_taken_for_that_of_other_rows(tmp_path: Path) -> None:
    for _ in range(2):
        Journal(tmp_path / "journal.jsonl", [{"3.seed": "1"}]).close()
    with pytest.raises(SystemExit, match="other rows; give these another --out"):
        Journal(tmp_path / "journal.jsonl", [{"3.seed": "2"}])


async def test_a_cell_is_read_as_what_the_workflow_holds_there(batch: Batch) -> None:
    assert batch.value("6.text", "5") == "5"
    assert batch.value("3.seed", "5") == 5
    with pytest.raises(acomfy.WorkflowError, match="'five' cannot take the place of 8566257, in column 3.seed"):
        batch.value("3.seed", "five")
    with pytest.raises(acomfy.WorkflowError):
        batch.value("3.seed", "")


def test_a_table_is_read_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf6.text,3.seed\r\na fox,1\r\nan owl\r\n")
    assert read_rows(path) == [{"6.text": "a fox", "3.seed": "1"}, {"6.text": "an owl", "3.seed": ""}]
    path.write_text("6.text\na fox, and an owl\n")
    with pytest.raises(SystemExit, match="more cells than its first line has names"):
        read_rows(path)

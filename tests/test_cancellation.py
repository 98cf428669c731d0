"""Cancel at every await: the caller is let go at once, and the prompt goes from the server all the same.

The sweeps run an operation, cancel it after so many turns of the event loop, 0, 1, 2 and so on until it ends before it
is cancelled, and look each time that nothing is left behind.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import acomfy
from acomfy.simulator import Node, NodeContext, SimulatedServer

from .conftest import MS
from .graphs import color_of, gated, saved, streamed
from .shell import Gates, client, eventually, gates, quick_client, server, tasks_of_the_library
from .tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

VERSIONS = ("0.3.40", "0.3.64", "0.26.0")
ROUNDS = 60

Operation = Callable[[], Coroutine[Any, Any, Any]]


async def take_turns(context: NodeContext, image: Any, number: int) -> Any:
    for step in range(30):
        context.progress(step, 30)
        await context.sleep(0)
    return image


SLOW = Node(
    "Slow",
    take_turns,
    required={"image": ("IMAGE",), "number": ("INT", {"default": 0, "min": -(1 << 20), "max": 1 << 20})},
    outputs=("IMAGE",),
)


def slow(number: int) -> dict[str, Any]:
    """A prompt that runs for thirty turns of the loop; never cached, for each has another number."""
    graph = saved(abs(number))
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["3"] = {"class_type": "Slow", "inputs": {"image": ["1", 0], "number": number}}
    return graph


@pytest.fixture(autouse=True, scope="module")
def only_new_garbage() -> Iterator[None]:
    """Leave what there was before these tests out of every collection, which then takes a hundredth of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
async def no_complaints(gates: Gates, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Once client and server are closed, no task is left, and nothing was never retrieved, unclosed or destroyed."""
    loop, tasks = asyncio.get_running_loop(), asyncio.all_tasks()
    before, complaints = loop.get_exception_handler(), []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    yield
    for gate in gates.open.values():
        gate.set()  # for whoever waits at one
    await eventually(lambda: all(_is_of_the_test_runner(task) for task in asyncio.all_tasks() - tasks))
    gc.collect()
    await turns(3)
    loop.set_exception_handler(before)
    assert complaints == []
    records = caplog.get_records("setup") + caplog.get_records("call") + caplog.get_records("teardown")
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == []


def _is_of_the_test_runner(task: asyncio.Task[Any]) -> bool:
    return "TestRunner" in repr(task.get_coro())


async def turns(number: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


def moments() -> Iterator[int]:
    """0, 1, 2 and so on; the later ones, where only a thread or a timer is waited for, further and further apart."""
    moment = 0
    while True:
        yield moment
        moment += 1 + moment // 60


async def sweep(
    operation: Operation,
    *,
    cleaned: Callable[[], Awaitable[object]] | None = None,
    cancels: int = 1,
    threads: bool = False,
) -> int:
    """Cancel an operation at every moment; tell how many there were.

    Args:
        cleaned: Waits until nothing is left behind, after each.
        cancels: How many times it is cancelled, turn after turn.
        threads: It may first wait for a thread, which cannot be stopped; else it is to end within three turns.
    """
    for count, moment in enumerate(moments()):
        task = asyncio.create_task(operation())
        await turns(moment)
        if task.done():
            await task
            return count
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        await turns(3)
        if threads:
            await asyncio.wait([task], timeout=1000 * MS)
        assert task.cancelled(), f"not cancelled at once, at moment {moment}"
        if cleaned is not None:
            await cleaned()
    raise AssertionError("moments do not end")


def gone(server: SimulatedServer, client: acomfy.Client, within: float = 3000 * MS) -> Callable[[], Awaitable[None]]:
    """Make a check that nothing of a client is on the server, and that it follows nothing any more."""

    async def check() -> None:
        await eventually(lambda: client.jobs == () and len(server.queue) == 0, within)
        assert len(client._live) == 0 and not client._router.live

    return check


# --- run and submit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "cancels"), [*((version, 1) for version in VERSIONS), ("0.3.64", 3)])
async def test_run_is_cancelled_at_every_await(version: str, cancels: int) -> None:
    async with SimulatedServer(version=version) as server:
        server.add_node(SLOW)
        async with quick_client(server) as client:
            await client.wait_ready()
            numbers = iter(range(1, 1 << 20))
            moments = await sweep(
                lambda: client.run(slow(next(numbers))), cleaned=gone(server, client), cancels=cancels
            )
            assert moments > 30
            states = {entry.state for entry in server.ledger.values()}
            assert states <= {"completed", "cancelled", "deleted"}
            assert "cancelled" in states or version == "0.3.40"
            assert all(entry.executions <= 1 for entry in server.ledger.values())
            assert len((await client.run(saved())).images) == 1
        assert tasks_of_the_library() == []


async def test_run_of_a_prompt_that_streams_is_cancelled_at_every_await(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    colors = iter(range(1, 1 << 20))
    await sweep(lambda: client.run(streamed(next(colors), batch=3)), cleaned=gone(server, client))
    result = await client.run(streamed(7, batch=3))
    assert [color_of(await output.read()) for output in result.images] == [7] * 3


async def test_submit_that_is_cancelled_leaves_no_prompt(server: SimulatedServer, client: acomfy.Client) -> None:
    colors = iter(range(1, 1 << 20))
    await sweep(lambda: client.submit(saved(next(colors))), cleaned=gone(server, client))


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_first_use_is_cancelled_at_every_await_and_the_client_closed_at_once(version: str) -> None:
    async with SimulatedServer(version=version) as server:
        client = quick_client(server)
        colors = iter(range(1, 1 << 20))

        async def closed() -> None:
            nonlocal client
            await client.aclose()
            assert len(server.queue) == 0 and client.jobs == ()
            assert tasks_of_the_library() == []
            client = quick_client(server)

        assert await sweep(lambda: client.run(saved(next(colors))), cleaned=closed) > 10
        await closed()


async def test_a_task_that_is_cancelled_before_it_begins_submits_nothing(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    for call in (client.run, client.submit):
        task = asyncio.create_task(call(saved()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert client.jobs == () and server.prompts == []


@pytest.mark.parametrize("where", ["running", "waiting"])
@pytest.mark.parametrize("way", ["cancel", "timeout", "move_on_after", "fail_after", "TaskGroup", "anyio task group"])
async def test_every_way_to_cancel_takes_the_prompt_from_the_server(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, way: str, where: str
) -> None:
    clock = asyncio.get_running_loop().time
    async with quick_client(server) as other:
        blocker = await other.submit(gated("blocker")) if where == "waiting" else None
        ready = gates.reached["ours" if where == "running" else "blocker"]

        async def run() -> None:
            await client.run(gated("ours"))

        async def until_it_is_there() -> None:
            await ready.wait()
            await server.wait_for(lambda: len(server.queue) == 1 + (blocker is not None))

        began = clock()
        await leave(way, run, until_it_is_there)
        assert clock() - began < 1000 * MS
        await eventually(lambda: client.jobs == (), within=2000 * MS)
        assert len(server.queue) == (blocker is not None)
        gates.open["blocker"].set()
        if blocker is not None:
            assert len((await blocker).images) == 1


async def leave(way: str, run: Operation, ready: Operation) -> None:
    """Run something, and leave it once it is ready, in one of the ways in which that is done."""
    task = asyncio.current_task()
    assert task is not None
    if way == "cancel":
        running = asyncio.create_task(run())
        await ready()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    elif way == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                shortening = asyncio.create_task(ready())
                shortening.add_done_callback(lambda _: timeout.reschedule(0))
                await run()
    elif way == "move_on_after":
        with anyio.move_on_after(3600) as scope:
            shortening = asyncio.create_task(ready())
            shortening.add_done_callback(lambda _: setattr(scope, "deadline", anyio.current_time()))
            await run()
        assert scope.cancelled_caught
    elif way == "fail_after":
        with pytest.raises(TimeoutError):
            with anyio.fail_after(3600) as scope:
                shortening = asyncio.create_task(ready())
                shortening.add_done_callback(lambda _: setattr(scope, "deadline", anyio.current_time()))
                await run()
    elif way == "TaskGroup":
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(run())
                await ready()
                raise ZeroDivisionError
        assert caught.group_contains(ZeroDivisionError) and len(caught.value.exceptions) == 1
    else:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await ready()
            tasks.cancel_scope.cancel()


async def test_a_timeout_around_run_is_kept_though_the_server_is_frozen(
    server: SimulatedServer, gates: Gates, caplog: pytest.LogCaptureFixture
) -> None:
    clock = asyncio.get_running_loop().time
    async with TcpProxy(server.port) as proxy:
        client = acomfy.Client(proxy.url, cancel_timeout=100 * MS)
        running = asyncio.create_task(client.run(gated("a")))
        await gates.reached["a"].wait()
        proxy.black_hole()
        proxy.on_link = lambda link: link.black_hole()
        began = clock()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20 * MS):
                await running
        assert clock() - began < 120 * MS
        await client.aclose()
        assert clock() - began < 1000 * MS
        assert tasks_of_the_library() == []
        assert client.jobs == ()
        (warning,) = caplog.records
        assert "before the server confirmed" in warning.getMessage()
        caplog.clear()


@pytest.mark.parametrize("call", ["run", "submit"])
async def test_a_post_under_way_is_not_cut_off_and_its_prompt_is_cancelled_when_it_is_answered(
    server: SimulatedServer, gates: Gates, call: str
) -> None:
    async with TcpProxy(server.port) as proxy, quick_client(server) as other:
        blocker = await other.submit(gated("blocker"))
        await gates.reached["blocker"].wait()
        async with acomfy.Client(proxy.url) as client:
            await client.wait_ready()
            proxy.on_link = lambda link: link.black_hole()
            proxy.black_hole(lambda link: not link.is_websocket)
            task = asyncio.create_task(getattr(client, call)(saved()))
            await turns(20)
            task.cancel()
            await turns(3)
            assert task.cancelled() and len(client.jobs) == 1
            proxy.on_link = lambda link: None
            proxy.resume()
            await server.wait_for(lambda: len(server.prompts) == 2)
            await eventually(lambda: client.jobs == () and len(server.queue) == 1, within=2000 * MS)
        gates.open["blocker"].set()
        await blocker


async def test_leaving_a_task_group_cancels_all_its_prompts_with_few_requests(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(client.run(gated("a")))
            await server.wait_for(lambda: len(server.queue) == 200)
            raise ZeroDivisionError
    await gone(server, client)()
    assert server.requests["POST", "/queue"] <= 10
    assert server.requests["GET", "/queue"] <= 10


# --- Waiting for a job -----------------------------------------------------------------------------------------------


async def test_waiting_for_a_job_is_cancelled_at_every_await_and_the_prompt_runs_on(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    submitted: list[acomfy.Job] = []
    colors = iter(range(1, 1 << 20))

    async def wait() -> None:
        await submitted[-1]

    async def watch() -> None:
        async for _ in submitted[-1].updates(interval=0):
            pass

    async def listen() -> None:
        async for _ in submitted[-1].events():
            pass

    async def settle() -> None:
        await submitted[-1].settled()

    async def next_one() -> None:
        if submitted:
            assert len((await submitted[-1]).images) == 1
            gc.collect(0)
            assert submitted[-1].prompt.listeners == 0
        submitted.append(await client.submit(saved(next(colors))))

    for operation in (wait, watch, listen, settle):
        await next_one()
        assert await sweep(operation, cleaned=next_one) > 2
    assert all(entry.state == "completed" for entry in server.ledger.values())
    assert client.jobs == ()


async def test_a_cancelled_read_of_an_iterator_loses_no_event(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    blocker = await client.submit(gated("first"))
    await gates.reached["first"].wait()
    job = await client.submit(streamed(batch=100, size=8))
    events, heard = job.events(), []
    gates.open["first"].set()
    while True:
        reading = asyncio.ensure_future(anext(events, None))
        await turns(random.randint(0, 3))
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            if reading.result() is None:
                break
            heard.append(reading.result())
    assert sum(isinstance(event, acomfy.PreviewImage) for event in heard) == 100
    assert isinstance(heard[-1], acomfy.ExecutionSuccess)
    await blocker


# --- map -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_map_is_cancelled_at_every_await(
    server: SimulatedServer, client: acomfy.Client, asynchronous: bool
) -> None:
    numbers = iter(range(1, 1 << 20))
    server.add_node(SLOW)

    def workflows() -> Iterator[dict[str, Any]]:
        yield from (slow(next(numbers)) for _ in range(3))

    async def slow_workflows() -> AsyncIterator[dict[str, Any]]:
        for workflow in workflows():
            await asyncio.sleep(0)
            yield workflow

    async def map_some() -> None:
        async for job in client.map(slow_workflows() if asynchronous else workflows(), limit=2):
            await job

    assert await sweep(map_some, cleaned=gone(server, client)) > 30
    assert {entry.state for entry in server.ledger.values()} == {"completed", "cancelled", "deleted"}


# --- Reading what came -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancels", [1, 2])
async def test_reading_outputs_is_cancelled_at_every_await_and_leaves_nothing(
    server: SimulatedServer, client: acomfy.Client, tmp_path: Path, cancels: int
) -> None:
    result = await client.run(saved(0x102030, size=256, batch=2))
    picture = result.images[0]

    one, all_of_them = tmp_path / "one", tmp_path / "all"

    async def nothing_left() -> None:
        # A thread that is at work cannot be stopped; it cleans up behind itself.
        await eventually(lambda: list(one.glob("*")) == [])

    async def nothing_half_written() -> None:
        await eventually(lambda: not any(path.suffix == ".part" for path in all_of_them.glob("*")))
        for path in all_of_them.glob("*.png"):  # a thread may only now begin another part, and clean it up
            with suppress(FileNotFoundError):
                assert color_of(path.read_bytes()) == 0x102030
                path.unlink()

    for operation, cleaned in (
        (picture.read, nothing_left),
        (picture.image, nothing_left),
        (partial(picture.save, one), nothing_left),
        (partial(result.save, all_of_them), nothing_half_written),
    ):
        assert await sweep(operation, cleaned=cleaned, cancels=cancels, threads=True) > 3
    assert len(list(one.iterdir())) == 1 and len(list(all_of_them.iterdir())) == 2
    assert color_of(await picture.read()) == 0x102030
    assert client._live._transfers._value == 16


async def test_reading_streamed_outputs_is_cancelled_at_every_await(client: acomfy.Client, tmp_path: Path) -> None:
    (picture,) = (await client.run(streamed(0x102030))).images
    for operation in (picture.read, picture.image, lambda: picture.save(tmp_path / "one.png", overwrite=True)):
        await sweep(operation, threads=True)
    await eventually(lambda: [path.name for path in tmp_path.iterdir()] == ["one.png"])


# --- The rest of the client ------------------------------------------------------------------------------------------


async def test_waiting_for_the_server_is_cancelled_at_every_await(server: SimulatedServer) -> None:
    client = quick_client(server)

    async def closed() -> None:
        nonlocal client
        await client.aclose()
        assert tasks_of_the_library() == []
        client = quick_client(server)

    assert await sweep(lambda: client.wait_ready(), cleaned=closed) > 5
    await closed()
    assert not server.sockets.open


async def test_attaching_is_cancelled_at_every_await(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    done = await client.submit(saved())
    await done
    running = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    async with quick_client(server) as other:
        for job in (running, done):
            assert await sweep(partial(other.attach, job.prompt_id)) > 3
        assert [job.prompt_id for job in other.jobs] == [running.prompt_id]
        gates.open["a"].set()
        assert len((await other.jobs[0]).images) == 1
    assert len((await running).images) == 1


async def test_asking_for_a_position_is_cancelled_at_every_await(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    running, job = await client.submit(gated("a")), await client.submit(saved())
    await gates.reached["a"].wait()

    async def changed() -> None:
        before = client.queue_changes()
        async with quick_client(server) as other:
            assert await (await other.submit(saved())).cancel()
        await eventually(lambda: client.queue_changes() > before)

    assert await sweep(job.position, cleaned=changed) > 3
    assert await job.position() == 1
    gates.open["a"].set()
    await running
    await job


async def test_closing_while_a_position_is_asked_leaves_nothing(server: SimulatedServer, gates: Gates) -> None:
    for moment in range(12):
        client = quick_client(server)
        job = await client.submit(gated(f"{moment}"))
        await gates.reached[f"{moment}"].wait()
        asking = asyncio.create_task(job.position())
        await turns(moment)
        await client.aclose()
        outcome = (await asyncio.gather(asking, return_exceptions=True))[0]
        assert outcome in (0, None) or isinstance(outcome, acomfy.AcomfyError)
        gates.open[f"{moment}"].set()
        await server.wait_idle()


@pytest.mark.parametrize("version", ["0.3.64", "0.26.0"])
async def test_cancelling_a_job_is_cancelled_at_every_await_and_the_wish_stands(version: str, gates: Gates) -> None:
    async with SimulatedServer(version=version) as server:
        server.add_node(gates.node)
        async with quick_client(server) as client:
            submitted: list[acomfy.Job] = []

            async def wished() -> None:
                async with asyncio.timeout(3000 * MS):
                    with pytest.raises(acomfy.JobCancelled):
                        await submitted[-1]
                await next_one()

            async def next_one() -> None:
                await gone(server, client)()
                name = f"{len(submitted)}"
                submitted.append(await client.submit(gated(name)))
                await gates.reached[name].wait()

            await next_one()
            # At moment 0 the call has not begun, and nothing is wished.
            assert await sweep(begun(lambda: submitted[-1].cancel()), cleaned=wished) > 5
            await gone(server, client)()


def begun(operation: Operation) -> Operation:
    """Make an operation that has begun when its task is made, as far as the first turn of the loop."""

    def start() -> Coroutine[Any, Any, Any]:
        task = asyncio.ensure_future(operation())
        return follow(task)

    async def follow(task: asyncio.Future[Any]) -> Any:
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            raise

    return start


async def test_closing_is_cancelled_at_every_await_and_goes_on(server: SimulatedServer, gates: Gates) -> None:
    client = quick_client(server)
    waiting: list[asyncio.Task[Any]] = []
    used = 0

    async def filled() -> None:
        nonlocal client, used
        client = quick_client(server)
        used += 1
        waiting[:] = [asyncio.create_task(client.run(gated(f"{used}.{n}"))) for n in range(3)]
        await gates.reached[f"{used}.0"].wait()

    async def closed() -> None:
        await client.aclose()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [acomfy.ClientClosed] * 3
        assert tasks_of_the_library() == []
        assert len(server.queue) == 0
        await filled()

    await filled()
    assert await sweep(lambda: client.aclose(), cleaned=closed) > 10
    await closed()
    await client.aclose()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_leaving_the_client_by_a_cancel_closes_it(server: SimulatedServer, gates: Gates) -> None:
    async def use(name: str) -> None:
        async with quick_client(server) as client:
            await client.run(gated(name))

    for number in range(5):
        task = asyncio.create_task(use(f"{number}"))
        await gates.reached[f"{number}"].wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tasks_of_the_library() == []
        assert len(server.queue) == 0


async def test_listening_to_the_client_is_cancelled_and_ends_when_it_closes(server: SimulatedServer) -> None:
    client = quick_client(server)
    await client.wait_ready()

    async def listen() -> None:
        async for _ in client.events():
            pass

    one, two = asyncio.create_task(listen()), asyncio.create_task(listen())
    await turns(3)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    await client.aclose()
    await two


# --- Neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_neighbours_prompt_always_finishes(version: str) -> None:
    chance = random.Random(version)
    async with (
        SimulatedServer(version=version) as server,
        quick_client(server) as client,
        quick_client(server) as neighbour,
    ):
        server.add_node(SLOW)
        theirs: list[asyncio.Task[acomfy.Result]] = []
        for number in range(1, ROUNDS + 1):
            ours = [asyncio.create_task(client.run(slow(number + ROUNDS * place))) for place in range(2)]
            theirs.append(asyncio.create_task(neighbour.run(streamed(number))))
            if chance.random() < 0.3:
                theirs.append(asyncio.create_task(neighbour.run(slow(-number), front=True)))
            for task in ours:
                await turns(chance.randint(0, 60))
                task.cancel()
            await asyncio.wait(ours)
            if number % 20 == 0:
                await asyncio.gather(*theirs)
        results = await asyncio.gather(*theirs)
        await gone(server, client)()
        assert all(len(result.images) == 1 for result in results)
        states = [server.ledger[result.prompt_id].state for result in results]
        assert states == ["completed"] * len(theirs)
        wanted = {"deleted"} if version == "0.3.40" else {"deleted", "cancelled"}
        assert wanted <= {entry.state for entry in server.ledger.values()}

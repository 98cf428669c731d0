"""Many prompts, a bounded number at a time: the feeding alone, with jobs that the test settles, then `Client.map`."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import aclosing, suppress
from typing import Any, cast

import pytest

import acomfy
from acomfy.errors import (
    AcomfyError,
    ClientClosed,
    HTTPError,
    JobFailed,
    JobLost,
    PayloadTooLarge,
    PromptRejected,
    ProtocolError,
    ServerUnreachable,
    WorkflowError,
    WorkflowFormatError,
)
from acomfy.job import Job, PromptOptions
from acomfy.mapping import Feed, is_fault_of_the_server
from acomfy.result import Result
from acomfy.router import TrackedPrompt
from acomfy.simulator import SimulatedServer
from acomfy.verdict import JobState

from .graphs import color_of, gated, saved, streamed
from .shell import Gates, client, eventually, gates, quick_client, server, tasks_of_the_library

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]


class Oops(Exception):
    pass


def item(number: int) -> dict[str, Any]:
    return {"1": {"class_type": "A", "inputs": {"number": number}}}


def number_of(workflow: Any) -> int:
    return cast(int, workflow["1"]["inputs"]["number"])


class Bench:
    """What a feed submits and cancels; its jobs end when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.submitted: list[int] = []
        self.cancelled: list[int | None] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.refuse: dict[int, Exception] = {}
        self.settle_at_once: dict[int, Exception] = {}

    def feed(self, workflows: Any, limit: int = 3) -> AsyncGenerator[Job, None]:
        feed = Feed(
            workflows, limit, begin=self.begin, cancel=self.cancel, spawn=self.spawn, stops=is_fault_of_the_server
        )
        return feed.jobs()

    def begin(self, workflow: Any, index: int) -> Job:
        number = number_of(workflow)
        if number in self.refuse:
            raise self.refuse[number]
        job = Job(TrackedPrompt(f"prompt-{number}", b"{}"), PromptOptions(), cast(Any, None), index)
        self.jobs.append(job)
        self.submitted.append(number)
        if number in self.settle_at_once:
            job.settle(self.settle_at_once[number], JobState.FAILED)
        return job

    def cancel(self, job: Job) -> None:
        if not job.done():
            self.cancelled.append(job.index)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.append(task)
        return task

    def end(self, index: int, outcome: Exception | None = None) -> None:
        job = self.jobs[index]
        job.settle(cast(Result, outcome or object.__new__(Result)), JobState.COMPLETED)

    async def fed(self) -> None:
        """Wait until the feed has done all that it can."""
        for _ in range(50):
            await asyncio.sleep(0)

    @property
    def stopped(self) -> bool:
        return all(task.done() for task in self.tasks)


@pytest.fixture
def bench() -> Bench:
    return Bench()


class Source:
    """An input that counts what was taken from it, and whether it was closed."""

    def __init__(self, items: Iterable[dict[str, Any]], failure: Exception | None = None) -> None:
        self.taken = 0
        self.closed = self.cleaned = False
        self._items = items
        self._failure = failure

    def items(self) -> Iterator[dict[str, Any]]:
        for workflow in self._items:
            self.taken += 1
            yield workflow
        if self._failure is not None:
            raise self._failure

    async def async_items(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            for workflow in self.items():
                await asyncio.sleep(0)
                yield workflow
        finally:
            self.closed = True
            await asyncio.sleep(0)
            self.cleaned = True

    def either(self, asynchronous: bool) -> Any:
        return self.async_items() if asynchronous else self.items()


def endless() -> Source:
    return Source(map(item, itertools.count()))


either = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


# --- What goes in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 5, object(), item(1), acomfy.Workflow(item(1)), "workflow.json", b"{}"])
async def test_what_is_no_iterable_of_workflows_is_a_type_error_of_the_call(client: acomfy.Client, wrong: Any) -> None:
    with pytest.raises(TypeError, match="map takes an iterable of workflows"):
        client.map(wrong)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_a_value_error_of_the_call(client: acomfy.Client, limit: int) -> None:
    with pytest.raises(ValueError, match="limit is at least 1, not"):
        client.map([], limit=limit)


class Iterable_:
    """An asynchronous iterable that is no iterator, with one iterator for each loop over it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._source.async_items()


class Countdown:
    """An asynchronous iterator that cannot be closed."""

    def __init__(self, start: int) -> None:
        self._number = start

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if not self._number:
            raise StopAsyncIteration
        self._number -= 1
        return item(self._number)


@pytest.mark.parametrize(
    ("workflows", "numbers"),
    [
        ([item(0), item(1)], [0, 1]),
        ((item(0), acomfy.Workflow(item(1))), [0, 1]),
        ({"a": item(0), "b": item(1)}.values(), [0, 1]),
        (map(item, range(2)), [0, 1]),
        (Source([item(0), item(1)]).async_items, [0, 1]),
        (lambda: Iterable_(Source([item(0), item(1)])), [0, 1]),
        (lambda: Countdown(2), [1, 0]),
        ([], []),
    ],
)
async def test_any_iterable_of_workflows_is_taken(bench: Bench, workflows: Any, numbers: list[int]) -> None:
    jobs = bench.feed(workflows() if callable(workflows) else workflows)
    reading = asyncio.ensure_future(collected(jobs))
    await bench.fed()
    assert bench.submitted == numbers
    for index in range(len(numbers)):
        bench.end(index)
    assert sorted(job.index or 0 for job in await reading) == list(range(len(numbers)))
    assert bench.stopped


async def collected(jobs: AsyncIterator[Job]) -> list[Job]:
    return [job async for job in jobs]


async def test_nothing_is_taken_before_the_first_job_is_asked_for(bench: Bench) -> None:
    source = endless()
    jobs = bench.feed(source.items())
    await bench.fed()
    assert source.taken == 0
    await jobs.aclose()
    assert source.taken == 0 and bench.tasks == []


@either
@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_is_taken_than_there_are_places(bench: Bench, asynchronous: bool, limit: int) -> None:
    source = endless()
    jobs = bench.feed(source.either(asynchronous), limit)
    for count in range(20):
        getting = asyncio.ensure_future(cast(Any, anext(jobs)))
        await bench.fed()
        assert source.taken == len(bench.jobs) == count + limit
        bench.end(count)
        assert (await getting).index == count
    await bench.fed()
    assert source.taken == 20 + limit  # the place of the job in hand is free
    await jobs.aclose()


async def test_jobs_that_ended_and_were_not_taken_keep_their_places(bench: Bench) -> None:
    source = endless()
    jobs = bench.feed(source.items(), 3)
    getting = asyncio.ensure_future(cast(Any, anext(jobs)))
    await bench.fed()
    for index in range(3):
        bench.end(index)
    await getting
    await bench.fed()
    assert source.taken == 4
    await anext(jobs)
    await bench.fed()
    assert source.taken == 5
    await jobs.aclose()


async def test_the_jobs_come_in_the_order_in_which_they_end(bench: Bench) -> None:
    reading = asyncio.ensure_future(collected(bench.feed(map(item, range(5)), 5)))
    await bench.fed()
    for index in (3, 0, 4, 1, 2):
        bench.end(index)
    assert [job.index for job in await reading] == [3, 0, 4, 1, 2]
    assert bench.stopped and bench.cancelled == []


async def test_an_endless_input_of_which_every_item_is_wrong_does_not_keep_the_loop(bench: Bench) -> None:
    bench.settle_at_once = {number: WorkflowError("wrong") for number in range(1000)}
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    async with aclosing(bench.feed(endless().items())) as jobs:
        async for job in jobs:
            if job.index == 500:
                break
    assert ticks > 100
    ticking.cancel()


# --- Faults --------------------------------------------------------------------------------------------------------

ITEM_FAULTS: list[Exception] = [
    WorkflowError("wrong"),
    WorkflowFormatError("wrong"),
    PromptRejected({}, {}),
    PayloadTooLarge(5, 4),
    JobLost("prompt-0", "unreachable"),
]
SERVER_FAULTS: list[Exception] = [
    ServerUnreachable("http://x", "gone"),
    HTTPError(500, "POST", "http://x", ""),
    ProtocolError("nonsense"),
]


@pytest.mark.parametrize("fault", ITEM_FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_fault_of_an_item_is_its_jobs_outcome(bench: Bench, fault: Exception) -> None:
    bench.settle_at_once = {1: fault}
    reading = asyncio.ensure_future(collected(bench.feed(map(item, range(3)))))
    await bench.fed()
    bench.end(0)
    bench.end(2)
    assert [(job.index, job.exception()) for job in await reading] == [(1, fault), (0, None), (2, None)]


@pytest.mark.parametrize("fault", SERVER_FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_fault_of_the_server_is_raised_after_what_ended_before_it(bench: Bench, fault: Exception) -> None:
    source = endless()
    jobs = bench.feed(source.async_items(), 4)
    getting = asyncio.ensure_future(cast(Any, anext(jobs)))
    await bench.fed()
    bench.end(2)
    bench.end(1, fault)
    bench.end(3)
    assert (await getting).index == 2
    with pytest.raises(type(fault)) as raised:
        await anext(jobs)
    assert raised.value is fault
    await bench.fed()
    assert bench.cancelled[0] == 0 and 2 not in bench.cancelled
    assert bench.stopped and source.cleaned
    with pytest.raises(StopAsyncIteration):
        await anext(jobs)


@either
async def test_what_was_submitted_is_given_before_the_inputs_own_exception(bench: Bench, asynchronous: bool) -> None:
    jobs = bench.feed(Source(map(item, range(3)), Oops("input")).either(asynchronous), 5)
    getting = asyncio.ensure_future(cast(Any, anext(jobs)))
    await bench.fed()
    assert not getting.done()
    for index in (1, 0):
        bench.end(index)
    given = [(await getting).index, (await anext(jobs)).index]
    bench.end(2)
    given.append((await anext(jobs)).index)
    assert given == [1, 0, 2]
    with pytest.raises(Oops, match="input"):
        await anext(jobs)
    assert bench.cancelled == [] and bench.stopped


async def test_an_input_that_fails_at_once_raises_what_it_raised(bench: Bench) -> None:
    class Broken:
        def __iter__(self) -> Iterator[Any]:
            raise Oops

    with pytest.raises(Oops):
        await anext(bench.feed(Broken()))
    with pytest.raises(Oops):
        await anext(bench.feed(Source([], Oops()).async_items()))


async def test_what_cannot_be_submitted_at_all_is_raised_after_what_was(bench: Bench) -> None:
    bench.refuse = {2: ClientClosed()}
    source = endless()
    reading = asyncio.ensure_future(collected_until(bench.feed(source.async_items(), 5)))
    await bench.fed()
    bench.end(1)
    bench.end(0)
    jobs, error = await reading
    assert [job.index for job in jobs] == [1, 0]
    assert isinstance(error, ClientClosed)
    assert source.cleaned


async def collected_until(jobs: AsyncIterator[Job]) -> tuple[list[Job], Exception | None]:
    found = []
    try:
        async for job in jobs:
            found.append(job)  # noqa: PERF401  # what came before the exception counts
    except Exception as exc:
        return found, exc
    return found, None


async def test_a_feed_whose_task_is_cancelled_by_the_client_ends_as_closed(bench: Bench) -> None:
    source = endless()
    reading = asyncio.ensure_future(collected_until(bench.feed(source.async_items(), 2)))
    await bench.fed()
    bench.tasks[0].cancel()
    await bench.fed()
    bench.end(0)
    bench.end(1, ClientClosed())
    jobs, error = await reading
    assert [job.index for job in jobs] == [0, 1]
    assert isinstance(error, ClientClosed)
    assert source.cleaned


# --- Leaving early -------------------------------------------------------------------------------------------------


async def leave_by_break(jobs: AsyncGenerator[Job, None]) -> None:
    async for _ in jobs:
        break


async def leave_by_exception(jobs: AsyncGenerator[Job, None]) -> None:
    with pytest.raises(Oops):
        async for _ in jobs:
            raise Oops


async def leave_by_aclose(jobs: AsyncGenerator[Job, None]) -> None:
    await anext(jobs)
    await jobs.aclose()


async def leave_by_aclosing(jobs: AsyncGenerator[Job, None]) -> None:
    async with aclosing(jobs):
        async for _ in jobs:
            break


async def leave_by_timeout(jobs: AsyncGenerator[Job, None]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as deadline:
            async for _ in jobs:
                deadline.reschedule(0)


async def leave_by_task_group(jobs: AsyncGenerator[Job, None]) -> None:
    async def loop() -> None:
        async for _ in jobs:
            raise Oops

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(loop())


leaving = pytest.mark.parametrize(
    "leave",
    [leave_by_break, leave_by_exception, leave_by_aclose, leave_by_aclosing, leave_by_timeout, leave_by_task_group],
)


@either
@leaving
async def test_leaving_early_cancels_what_was_not_yielded_and_closes_the_input(
    bench: Bench, leave: Any, asynchronous: bool
) -> None:
    source = endless()

    async def consume() -> None:
        await leave(bench.feed(source.either(asynchronous), 4))

    consuming = asyncio.ensure_future(consume())
    await bench.fed()
    bench.end(1)  # yielded
    bench.end(3)  # waits to be yielded
    await consuming
    del consuming
    gc.collect()
    await bench.fed()
    assert sorted(cast(list[int], bench.cancelled))[:2] == [0, 2]
    assert not {1, 3} & set(bench.cancelled)
    assert {job.index for job in bench.jobs if not job.done()} == set(bench.cancelled)
    taken = source.taken
    assert bench.stopped and source.cleaned is asynchronous
    await bench.fed()
    assert source.taken == taken


async def test_a_consumer_that_is_cancelled_as_it_waits_cancels_all(bench: Bench) -> None:
    source = endless()
    consuming = asyncio.ensure_future(collected(bench.feed(source.async_items(), 3)))
    await bench.fed()
    consuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consuming
    assert bench.cancelled == [0, 1, 2] or set(bench.cancelled) == {0, 1, 2}
    await bench.fed()
    assert bench.stopped and source.cleaned


@pytest.mark.parametrize("taken", [0, 2])
async def test_the_input_is_closed_wherever_the_feeding_waits(bench: Bench, taken: int) -> None:
    """With no place it waits for one; with places it waits for the input."""
    cleaned = asyncio.Event()

    async def items() -> AsyncGenerator[dict[str, Any], None]:
        try:
            for number in range(2):
                yield item(number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    jobs = bench.feed(items(), 2 if taken == 0 else 5)
    getting = asyncio.ensure_future(cast(Any, anext(jobs)))
    await bench.fed()
    bench.end(0)
    await getting
    if taken == 0:
        bench.end(1)
    await jobs.aclose()
    await cleaned.wait()
    await bench.fed()
    assert bench.stopped


async def test_an_input_that_clings_to_life_submits_nothing_more(bench: Bench) -> None:
    async def clinging() -> AsyncGenerator[dict[str, Any], None]:
        number = 0
        while True:
            with suppress(asyncio.CancelledError):  # some libraries do that
                await asyncio.sleep(0 if number < 2 else 3600)
            yield item(number)
            number += 1

    jobs = bench.feed(clinging(), 5)
    getting = asyncio.ensure_future(cast(Any, anext(jobs)))
    await bench.fed()
    bench.end(0)
    await getting
    await jobs.aclose()
    await bench.fed()
    assert bench.submitted == [0, 1] and bench.cancelled == [1]
    assert bench.stopped


async def test_a_synchronous_input_can_be_read_on_after_leaving(bench: Bench) -> None:
    numbers = map(item, itertools.count())
    jobs = bench.feed(numbers, 2)
    getting = asyncio.ensure_future(cast(Any, anext(jobs)))
    await bench.fed()
    bench.end(0)
    await getting
    await jobs.aclose()
    await bench.fed()
    assert number_of(next(numbers)) == len(bench.jobs)


# --- Client.map ----------------------------------------------------------------------------------------------------


async def test_map_gives_each_picture_with_its_place_in_the_input(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    async def items() -> AsyncIterator[acomfy.Workflow]:
        base = acomfy.Workflow(saved())
        for color in range(40):
            yield base.replace({"1.color": color})

    found = {}
    async for job in client.map(items(), limit=7):
        assert len(client.jobs) <= 7
        found[job.index] = color_of(await (await job).images[0].read())
    assert found == {color: color for color in range(40)}
    assert server.requests["POST", "/prompt"] == 40


async def test_map_submits_a_dict_as_it_was_when_it_was_taken(client: acomfy.Client) -> None:
    def items() -> Iterator[dict[str, Any]]:
        graph = streamed()
        for color in range(10):
            graph["1"]["inputs"]["color"] = color
            yield graph

    found = {job.index: color_of(await (await job).images[0].read()) async for job in client.map(items())}
    assert found == {color: color for color in range(10)}


async def test_map_settles_the_faults_of_items_and_raises_those_of_the_server(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    def items() -> Iterator[Any]:
        yield saved(1)
        yield {"nodes": [], "links": []}
        yield None
        yield {"1": {"class_type": "Nope", "inputs": {}}}
        yield saved(2)

    outcomes: dict[int | None, str] = {}
    async for job in client.map(items(), limit=2):
        assert job.done()
        try:
            await job
            outcomes[job.index] = "fine"
        except AcomfyError as exc:
            outcomes[job.index] = type(exc).__name__
    assert outcomes == {0: "fine", 1: "WorkflowFormatError", 2: "WorkflowFormatError", 3: "PromptRejected", 4: "fine"}
    await server.aclose()
    with pytest.raises(ServerUnreachable):
        async for _ in client.map(saved(color) for color in itertools.count()):
            pass


async def test_a_node_that_raises_is_the_outcome_of_its_job(server: SimulatedServer, client: acomfy.Client) -> None:
    @server.node("Oops", required={"image": ("IMAGE",)}, output_node=True)
    def oops(context: Any, image: Any) -> Any:
        raise ValueError("no")

    graph = saved()
    graph["2"] = {"class_type": "Oops", "inputs": {"image": ["1", 0]}}
    found = [type(job.exception()) async for job in client.map([saved(), graph, saved()])]
    assert sorted(found, key=str) == sorted([type(None), JobFailed, type(None)], key=str)


@leaving
async def test_leaving_a_map_takes_its_prompts_from_the_server_and_no_others(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, leave: Any
) -> None:
    async def items() -> AsyncIterator[dict[str, Any]]:
        for number in itertools.count():
            yield gated(str(number))

    async def open_one_gate() -> None:
        await eventually(lambda: len(server.queue) == 3 and any(event.is_set() for event in gates.reached.values()))
        gates.open[next(name for name, event in gates.reached.items() if event.is_set())].set()

    async with quick_client(server) as other:
        opening = asyncio.ensure_future(open_one_gate())
        await leave(client.map(items(), limit=3))
        await opening
        stranger = await other.submit(gated("stranger"))
        # A loop that is left by an exception lets its iterator go with that exception: a task group's is in a cycle.
        gc.collect()
        await eventually(lambda: client.jobs == ())
        gates.open["stranger"].set()
        await stranger
        await eventually(lambda: len(server.queue) == 0)
    assert [entry.state for entry in server.ledger.values()].count("completed") == 2
    await client.aclose()
    assert tasks_of_the_library() == []


async def test_closing_the_client_ends_a_map_as_closed(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    source = Source(gated(f"never {number}") for number in itertools.count())
    reading = asyncio.ensure_future(collected_until(client.map(source.async_items(), limit=3)))
    await eventually(lambda: len(server.queue) == 3)
    await client.aclose()
    jobs, error = await reading
    assert isinstance(error, ClientClosed)
    assert [type(job.exception()) for job in jobs] == [ClientClosed] * 3
    assert source.closed
    await eventually(lambda: len(server.queue) == 0)
    assert tasks_of_the_library() == []


async def test_a_map_of_a_closed_client_raises(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.aclose()
    with pytest.raises(ClientClosed):
        await anext(client.map([saved()]))
    assert server.requests["POST", "/prompt"] == 0


async def test_two_maps_at_once_keep_to_their_own(client: acomfy.Client) -> None:
    async def colors(start: int) -> set[int]:
        workflows = (streamed(color) for color in range(start, start + 30))
        return {color_of(await (await job).images[0].read()) async for job in client.map(workflows, limit=4)}

    one, two = await asyncio.gather(colors(0), colors(1000))
    assert (one, two) == (set(range(30)), set(range(1000, 1030)))

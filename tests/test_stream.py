"""Iterators over events: what waits for a slow reader, what is left out, and how they end."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy import events
from acomfy.stream import MOST_WAITING, Buffer, EventStream

pytestmark = pytest.mark.anyio

START = events.ExecutionStart("a")
END = events.ExecutionSuccess("a")


def progress(value: float, node: str = "3") -> events.Progress:
    return events.Progress(value, 20, "a", node)


def picture(image: bytes, node: str | None = "3") -> events.PreviewImage:
    return events.PreviewImage(memoryview(image), "image/png", "a", node)


def state(value: float) -> events.ProgressState:
    return events.ProgressState("a", {"3": events.NodeProgress("3", value, 20, "running", "3")})


def executed(node: str) -> events.Executed:
    return events.Executed("a", node, node, {"images": []})


class Listening:
    """A stream, its buffer, and how often it was let go."""

    def __init__(self, *keeps_all_images: str) -> None:
        self.buffer = Buffer(frozenset(keeps_all_images))
        self.closed: list[Buffer] = []
        self.stream = EventStream(self.buffer, self.closed.append)

    def put(self, *some: events.Event) -> None:
        for event in some:
            self.buffer.put(event)

    async def rest(self) -> list[events.Event]:
        self.buffer.end()
        return [event async for event in self.stream]


@pytest.fixture
def listening() -> Listening:
    return Listening("9")


# --- What waits ----------------------------------------------------------------------------------------------------


async def test_events_are_read_in_order(listening: Listening) -> None:
    said: list[events.Event] = [START, executed("1"), progress(1), executed("2"), END]
    listening.put(*said)
    assert await listening.rest() == said
    assert listening.stream.dropped == 0


async def test_of_each_nodes_progress_only_the_newest_waits_where_it_belongs(listening: Listening) -> None:
    listening.put(START, progress(1), progress(1, "4"), progress(2), executed("3"), progress(3))
    assert await listening.rest() == [START, progress(1, "4"), executed("3"), progress(3)]
    assert listening.stream.dropped == 2


async def test_previews_and_states_give_way_to_newer_ones_and_to_no_others(listening: Listening) -> None:
    listening.put(picture(b"old"), state(1), progress(1), picture(b"other", "4"), picture(b"none", None))
    listening.put(picture(b"new"), state(2), picture(b"newer", None))
    assert await listening.rest() == [
        progress(1),
        picture(b"other", "4"),
        picture(b"new"),
        state(2),
        picture(b"newer", None),
    ]
    assert listening.stream.dropped == 3


async def test_of_the_servers_status_only_the_newest_waits(listening: Listening) -> None:
    listening.put(events.Status(1), events.Unknown("x", 1), events.Status(2))
    assert await listening.rest() == [events.Unknown("x", 1), events.Status(2)]


async def test_a_reader_that_keeps_up_misses_nothing(listening: Listening) -> None:
    for value in range(20):
        listening.put(progress(value))
        assert await anext(listening.stream) == progress(value)
    assert listening.stream.dropped == 0


async def test_streamed_pictures_are_never_left_out(listening: Listening) -> None:
    pictures = [picture(b"%d" % number, "9") for number in range(MOST_WAITING + 100)]
    listening.put(*pictures, picture(b"a", "3"), picture(b"b", "3"))
    assert await listening.rest() == [*pictures, picture(b"b", "3")]
    assert listening.stream.dropped == 1


async def test_over_ten_thousand_waiting_the_oldest_of_the_unknown_goes(listening: Listening) -> None:
    kept: list[events.Event] = [START, executed("1"), picture(b"a", "9"), progress(1)]
    listening.put(*kept)
    unknown: list[events.Event] = [events.Unknown("custom", number) for number in range(MOST_WAITING)]
    listening.put(*unknown)
    assert listening.stream.dropped == len(kept)
    listening.put(executed("2"), END)
    assert await listening.rest() == [*kept, *unknown[len(kept) + 2 :], executed("2"), END]
    assert listening.stream.dropped == len(kept) + 2


async def test_texts_and_logs_go_as_well_and_nothing_else(listening: Listening) -> None:
    kept = [executed(str(number)) for number in range(MOST_WAITING)]
    listening.put(*kept)
    listening.put(events.Text("3", "first"), events.Logs(({"m": "second"},)), events.Unknown("third", None))
    assert await listening.rest() == [*kept, events.Unknown("third", None)]
    assert listening.stream.dropped == 2


async def test_what_waits_stays_bounded_for_a_reader_that_never_reads(listening: Listening) -> None:
    for number in range(3 * MOST_WAITING):
        listening.put(events.Unknown("custom", number), progress(number), picture(b"x"), state(number))
    assert len(await listening.rest()) == MOST_WAITING
    assert listening.stream.dropped == 4 * 3 * MOST_WAITING - MOST_WAITING


one_event = st.one_of(
    st.builds(progress, st.integers(0, 20), st.sampled_from(["3", "4"])),
    st.builds(picture, st.binary(max_size=2), st.sampled_from(["3", "9", None])),
    st.builds(state, st.integers(0, 20)),
    st.builds(executed, st.sampled_from(["1", "2"])),
    st.builds(events.Unknown, st.just("x"), st.integers()),
)


@given(st.lists(one_event | st.none(), max_size=30))
def test_only_what_a_newer_state_replaced_is_ever_left_out(script: list[events.Event | None]) -> None:
    """None stands for a read. Invariant: order is kept, and what is missing is an older state of something read."""
    listening = Listening("9")
    read: list[events.Event] = []

    async def play() -> None:
        waiting = 0
        for step in script:
            if step is not None:
                waiting += 1
                dropped = listening.stream.dropped
                listening.put(step)
                waiting -= listening.stream.dropped - dropped
            elif waiting:
                read.append(await anext(listening.stream))
                waiting -= 1
        read.extend(await listening.rest())

    asyncio.run(play())
    said = [step for step in script if step is not None]
    assert len(read) + listening.stream.dropped == len(said)
    rest = iter(said)
    assert all(any(event is other for other in rest) for event in read)  # a subsequence, in order
    states = (events.Progress, events.ProgressState, events.PreviewImage)
    missing = [event for event in said if not any(event is other for other in read)]
    assert all(isinstance(event, states) and getattr(event, "node_id", None) != "9" for event in missing)
    newest: dict[Any, events.Event] = {}
    for event in said:
        newest[type(event), getattr(event, "node_id", getattr(event, "node", None))] = event
    assert all(any(event is other for other in read) for event in newest.values())


# --- Waiting and ending --------------------------------------------------------------------------------------------


async def waiting_read(listening: Listening) -> asyncio.Task[events.Event]:
    """Begin to read, and come back when the reader waits."""
    task = asyncio.ensure_future(anext(listening.stream))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_a_reader_is_woken_by_the_next_event(listening: Listening) -> None:
    task = await waiting_read(listening)
    listening.put(START, END)
    assert await task == START
    assert await anext(listening.stream) == END


async def test_a_reader_is_woken_by_the_end_and_ends_again_and_again(listening: Listening) -> None:
    task = await waiting_read(listening)
    listening.buffer.end()
    with pytest.raises(StopAsyncIteration):
        await task
    with pytest.raises(StopAsyncIteration):
        await anext(listening.stream)


async def test_what_waits_is_read_after_the_end(listening: Listening) -> None:
    listening.put(START, END)
    listening.buffer.end()
    assert [event async for event in listening.stream] == [START, END]


async def test_a_cancelled_read_loses_nothing(listening: Listening) -> None:
    task = await waiting_read(listening)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    listening.put(START)
    assert await anext(listening.stream) == START


async def test_a_read_that_is_cancelled_as_it_is_woken_loses_nothing(listening: Listening) -> None:
    task = await waiting_read(listening)
    listening.put(START)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    listening.put(END)
    assert await listening.rest() == [START, END]


async def test_a_timeout_around_a_read_loses_nothing(listening: Listening) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(listening.stream)
    listening.put(START)
    assert await listening.rest() == [START]


async def test_a_second_reader_at_once_is_refused_and_the_first_goes_on(listening: Listening) -> None:
    task = await waiting_read(listening)
    with pytest.raises(RuntimeError, match="another task waits"):
        await anext(listening.stream)
    listening.put(START)
    assert await task == START


async def test_readers_may_take_turns(listening: Listening) -> None:
    first = await waiting_read(listening)
    listening.put(START)
    assert await first == START
    second = await waiting_read(listening)
    listening.put(END)
    assert await second == END


async def test_iterators_have_buffers_of_their_own() -> None:
    one, two = Listening(), Listening()
    for listening in (one, two):
        listening.put(START, progress(1))
    assert await anext(one.stream) == START
    one.put(progress(2))
    assert await one.rest() == [progress(2)]
    assert await two.rest() == [START, progress(1)]
    assert (one.stream.dropped, two.stream.dropped) == (1, 0)


async def test_closing_ends_it_at_once_and_stops_the_listening(listening: Listening) -> None:
    listening.put(START)
    await listening.stream.aclose()
    await listening.stream.aclose()
    assert set(listening.closed) == {listening.buffer}
    assert [event async for event in listening.stream] == []


async def test_closing_wakes_a_reader(listening: Listening) -> None:
    task = await waiting_read(listening)
    await listening.stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await task


async def test_an_iterator_that_is_let_go_stops_listening(listening: Listening) -> None:
    async def read_one() -> None:
        async for _ in listening.stream:
            break

    listening.put(START, END)
    await read_one()
    assert listening.closed == []
    del listening.stream
    gc.collect()
    assert listening.closed == [listening.buffer]


async def test_a_loop_that_is_cancelled_lets_its_iterator_go() -> None:
    listening = Listening()
    streams = [listening.stream]
    del listening.stream

    async def read() -> None:
        async for _ in streams.pop():
            pass

    task = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    del task
    gc.collect()
    assert listening.closed == [listening.buffer]

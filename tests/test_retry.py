"""When a read is tried again, and how long is waited before: the policy alone, and at work."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

import acomfy
from acomfy.retry import RetryPolicy, read_date, read_retry_after

from .conftest import MS
from .graphs import saved
from .other_servers import answering
from .shell import eventually

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.002)


def refused(status: int, retry_after: float | None = None) -> acomfy.HTTPError:
    return acomfy.HTTPError(status, "GET", "http://x", "", retry_after=retry_after)


BROKEN = acomfy.ServerUnreachable("http://x", "it broke", maybe_sent=True)

# --- The policy ------------------------------------------------------------------------------------------------------


def test_delays_grow_up_to_the_longest_and_vary_below() -> None:
    policy = RetryPolicy(tries=9, first_delay=0.2, factor=3.0, longest_delay=5.0)
    for draw, share in ((lambda: 1.0, 1.0), (lambda: 0.0, 0.5)):
        delays = [policy.delay(attempt, BROKEN, draw) for attempt in range(1, 10)]
        assert delays[:-1] == pytest.approx([share * delay for delay in (0.2, 0.6, 1.8, 5, 5, 5, 5, 5)])
        assert delays[-1] is None


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_another_try_may_mend_is_tried_again(status: int) -> None:
    assert RetryPolicy().delay(1, refused(status)) is not None


@pytest.mark.parametrize(
    "exc",
    [
        *map(refused, (400, 401, 402, 403, 404, 405, 500, 501)),
        acomfy.ProtocolError("no JSON"),
        acomfy.PayloadTooLarge(1, 1),
        acomfy.ClientClosed(),
        OSError("the disk"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_what_would_be_refused_again_is_not(exc: Exception) -> None:
    assert RetryPolicy().delay(1, exc) is None


def test_the_server_says_how_long_to_wait_up_to_a_limit() -> None:
    policy = RetryPolicy(longest_retry_after=60.0)
    assert policy.delay(1, refused(429, 7.0)) == 7.0
    assert policy.delay(1, refused(503, 3600.0)) == 60.0
    assert policy.delay(1, refused(503, 0.0), lambda: 1.0) == 0.2


@pytest.mark.parametrize(
    "options", [{"tries": 0}, {"first_delay": -1.0}, {"factor": math.inf}, {"longest_delay": math.nan}]
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tries|delays"):
        RetryPolicy(**options)


@given(st.integers(1, 10**6), st.floats(0, 1), st.none() | st.floats(0, 1e12), st.floats(0, 86_400))
def test_every_delay_is_within_the_limits(attempt: int, draw: float, asked: float | None, factor: float) -> None:
    """A delay is between 0 and the larger of the two limits, whatever the attempt and whatever the server asks."""
    policy = RetryPolicy(tries=10**7, factor=factor)
    delay = policy.delay(attempt, refused(503, asked), lambda: draw)
    assert delay is not None and 0 <= delay <= 60.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 20.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 20.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        (None, None),
        ("²", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(text: str | None, expected: float | None) -> None:
    now = read_date("Wed, 21 Oct 2015 07:27:40 GMT")
    assert now is not None
    assert read_retry_after(text, now) == expected


@settings(max_examples=30)
@given(
    st.text(max_size=60)
    | st.from_regex(r"\A[A-Z][a-z]{2}, [0-9]{1,9} [A-Z][a-z]{2} -?[0-9]{1,9} [0-9:]{1,9} (GMT|[+-][0-9]+)?\Z")
)
def test_any_header_gives_seconds_or_none(text: str) -> None:
    """Whatever stands in a Retry-After gives None or a number that is not below 0."""
    found = read_retry_after(text, 0.0)
    assert found is None or (found >= 0 and math.isfinite(found))


# --- At work ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def failing(answers: list[dict[str, Any]]) -> AsyncIterator[tuple[str, list[tuple[str, str]]]]:
    """A server that gives these answers to reads, then a good one; gives its address and what it was asked."""
    asked: list[tuple[str, str]] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/ws":
            return web.Response(status=404)
        asked.append((request.method, request.path))
        await request.read()
        left = [method for method, path in asked if path == request.path]
        if len(left) <= len(answers):
            return web.Response(**answers[len(left) - 1])
        return web.json_response({"exec_info": {"queue_remaining": 7}})

    async with answering(handler) as url:
        yield url, asked


async def test_reads_are_tried_again_and_writes_are_not() -> None:
    answers = [{"status": status} for status in (503, 502, 429)]
    async with failing(answers) as (url, asked), acomfy.Client(url, retry=QUICK) as client:
        assert await client.api.get_prompt() == 7
        assert asked.count(("GET", "/prompt")) == 4
        writes: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: client.api.post_queue(delete=["x"]),
            lambda: client.api.post_interrupt(),
            lambda: client.api.post_free(),
        )
        for write in writes:
            with pytest.raises(acomfy.HTTPError):
                await write()
        assert [path for method, path in asked if method == "POST"] == ["/queue", "/interrupt", "/free"]


async def test_the_last_failure_is_raised_and_none_disables() -> None:
    answers = [{"status": 503, "text": str(number)} for number in range(9)]
    async with failing(answers) as (url, asked), acomfy.Client(url, retry=QUICK) as client:
        with pytest.raises(acomfy.HTTPError, match="'3'"):
            await client.api.get_prompt()
        assert asked.count(("GET", "/prompt")) == 4
    async with failing(answers) as (url, asked), acomfy.Client(url, retry=None) as client:
        with pytest.raises(acomfy.HTTPError, match="'0'"):
            await client.api.get_prompt()
        assert asked.count(("GET", "/prompt")) == 1


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_honoured(as_date: bool) -> None:
    wait = 0.3
    hour = 1_700_000_000
    headers = {"Retry-After": formatdate(hour + 1, usegmt=True), "Date": formatdate(hour, usegmt=True)}
    answers = [{"status": 429, "headers": headers if as_date else {"Retry-After": "1"}}]
    policy = RetryPolicy(first_delay=0.0, longest_retry_after=wait)
    async with failing(answers) as (url, _), acomfy.Client(url, retry=policy) as client:
        began = time.monotonic()
        assert await client.api.get_prompt() == 7
        assert time.monotonic() - began >= wait * 0.95


async def test_a_retry_after_is_told_and_a_wait_is_cancelled_at_once() -> None:
    answers = [{"status": 503, "headers": {"Retry-After": "30"}} for _ in range(2)]
    async with failing(answers) as (url, asked), acomfy.Client(url) as client:
        with pytest.raises(acomfy.HTTPError, match="it asks to wait 30 s") as caught:
            await client._once.get_prompt()
        assert caught.value.retry_after == 30.0
        task = asyncio.create_task(client.api.get_prompt())
        await eventually(lambda: len(asked) == 2)
        task.cancel()
        async with asyncio.timeout(1000 * MS):
            await asyncio.gather(task, return_exceptions=True)


async def test_a_read_whose_connection_broke_is_tried_again() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        is_socket = (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /ws")
        connections += not is_socket
        body = b'{"exec_info": {"queue_remaining": 7}}'
        sent = body[:5] if connections < 3 or is_socket else body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), sent))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, acomfy.Client(url, retry=RetryPolicy(tries=3, first_delay=0.0)) as client:
        assert await client.api.get_prompt() == 7
    assert connections == 3


async def test_a_closed_client_tries_no_more() -> None:
    answers = [{"status": 503} for _ in range(5)]
    async with failing(answers) as (url, asked):
        client = acomfy.Client(url, retry=RetryPolicy(first_delay=0.05))
        task = asyncio.create_task(client.api.get_prompt())
        await eventually(lambda: len(asked) == 1)
        await client.aclose()
        with pytest.raises(acomfy.ClientClosed):
            await task


async def test_what_follows_prompts_asks_at_its_own_pace() -> None:
    slow = RetryPolicy(first_delay=60.0, longest_delay=60.0)
    async with failing([{"status": 503}]) as (url, _), acomfy.Client(url, retry=slow) as client:
        assert {client._watch._api, client._canceller._api, client._submission._api} == {client._once}
        async with asyncio.timeout(5000 * MS):
            with pytest.raises(acomfy.HTTPError):
                await client._once.get_prompt()


@pytest.mark.parametrize("asked_to_wait", [False, True])
async def test_a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_asks(asked_to_wait: bool) -> None:
    reads = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal reads
        if request.path == "/ws":
            return web.Response(status=404)
        if request.method == "POST":
            return web.json_response({"prompt_id": (await request.json())["prompt_id"], "number": 1})
        reads += 1
        return web.Response(status=429, headers={"Retry-After": "30"} if asked_to_wait else {})

    async with answering(handler) as url, acomfy.Client(url, silence=20 * MS, cancel_timeout=10 * MS) as client:
        await client.submit(saved())
        if asked_to_wait:
            await eventually(lambda: reads > 0)
            await asyncio.sleep(300 * MS)  # that nothing comes, no event tells
            assert reads <= 2
        else:
            await eventually(lambda: reads > 5)

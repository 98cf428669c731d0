"""Answers that want to do harm: they end in typed errors, in bounded time and memory."""

from __future__ import annotations

import asyncio
import functools
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

import acomfy
from acomfy.refusals import error_type, refusal
from acomfy.transport import Transport

from .conftest import MS
from .other_servers import answering, respond, saying

pytestmark = pytest.mark.anyio

LIMIT = 1 << 20
MEMORY = 24 << 20
"""What may be allocated at the most while an answer is refused: the limit, and aiohttp's buffers."""


@asynccontextmanager
async def transport_to(url: str, **options: Any) -> AsyncIterator[Transport]:
    async with aiohttp.ClientSession() as session:
        yield Transport(url, lambda: session, **{"max_answer_size": LIMIT, **options})


async def everything(transport: Transport) -> list[acomfy.ServerError]:
    """Read an answer in every way that keeps it in memory; give the errors."""
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: transport.get_json("/x"),
        lambda: transport.get_bytes("/x"),
        lambda: transport.send("POST", "/x", {}),
        lambda: transport.send_json("POST", "/x", {}),
    )
    found = []
    for call in calls:
        async with asyncio.timeout(20_000 * MS):
            with pytest.raises(acomfy.ServerError) as caught:
                await call()
        found.append(caught.value)
    return found


@pytest.fixture
def memory() -> Any:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@functools.cache
def bomb(size: int, wbits: int) -> bytes:
    """Compress so many zeros, a thousandth of it."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits)
    zeros = bytes(1 << 20)
    return b"".join(compressor.compress(zeros) for _ in range(size >> 20)) + compressor.flush()


# --- Size ------------------------------------------------------------------------------------------------------------


async def endless(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"[" * (1 << 16))


async def test_an_endless_body_is_cut_off_at_the_limit(memory: Callable[[], int]) -> None:
    async with answering(endless) as url, transport_to(url) as transport:
        for error in await everything(transport):
            assert isinstance(error, acomfy.ProtocolError)
            assert f"over the limit of {LIMIT} bytes" in str(error) and url in str(error)
    assert memory() < MEMORY


async def test_a_body_that_says_that_it_is_too_large_is_not_read() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{"
    async with saying(said, then_wait=True) as url, transport_to(url) as transport:
        for error in await everything(transport):
            assert isinstance(error, acomfy.ProtocolError)
            assert "99999999999 bytes" in str(error)


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
async def test_a_compressed_bomb_is_not_blown_up(
    memory: Callable[[], int], status: int, encoding: str, wbits: int
) -> None:
    body = bomb(64 << 20, wbits)

    async def handler(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(status=status, body=body, headers={"Content-Encoding": encoding})

    async with answering(handler) as url, transport_to(url) as transport:
        for error in await everything(transport):
            assert isinstance(error, acomfy.ProtocolError if status == 200 else acomfy.HTTPError)
    assert memory() < MEMORY


async def test_a_body_of_just_the_limit_is_read_compressed_or_not() -> None:
    text = b'"' + b"x" * (LIMIT - 2) + b'"'

    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/plain":
            return web.Response(body=text)
        return web.Response(body=gzip.compress(text), headers={"Content-Encoding": "gzip"})

    async with answering(handler) as url, transport_to(url) as transport:
        assert len(await transport.get_json("/plain")) == LIMIT - 2
        assert len(await transport.get_json("/packed")) == LIMIT - 2


async def test_a_file_has_no_limit() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(body=bytes(3 * LIMIT))

    async with answering(handler) as url, transport_to(url) as transport, transport.stream("GET", "/x") as response:
        assert sum([len(chunk) async for chunk in response.content.iter_any()]) == 3 * LIMIT


# --- What is no HTTP -------------------------------------------------------------------------------------------------

HEADS = {
    "a giant header": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n{}",
    "a giant name": b"HTTP/1.1 200 OK\r\n" + b"y" * 200_000 + b": x\r\n\r\n{}",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n{}",
    "a giant status": b"HTTP/1.1 200 " + b"y" * 200_000 + b"\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length below zero": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "a length of words": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
    "too long a length": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    "a broken chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "no gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "a folded header": b"HTTP/1.1 200 OK\r\nX: a\r\n b\x00c\r\n\r\n{}",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n{}",
    "a version of its own": b"HTTP/7.5 200 OK\r\nContent-Length: 2\r\n\r\n[",
}


@pytest.mark.parametrize("kind", HEADS)
async def test_what_is_no_http_is_a_typed_error_with_a_short_text(kind: str, memory: Callable[[], int]) -> None:
    async with saying(HEADS[kind]) as url, transport_to(url) as transport:
        for error in await everything(transport):
            assert isinstance(error, acomfy.ServerUnreachable | acomfy.ProtocolError)
            assert url in str(error) and len(str(error)) < 700
            assert error.__cause__ is None and error.__context__ is None
    assert memory() < MEMORY


async def test_informational_answers_without_end_are_given_up_after_the_request_timeout() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(5 * MS)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, transport_to(url, request_timeout=60 * MS) as transport:
        with pytest.raises(acomfy.ServerUnreachable, match="too long"):
            await transport.get_json("/x")
        with pytest.raises(acomfy.ServerUnreachable, match="too long"):
            async with transport.stream("GET", "/x"):
                pass


async def test_a_body_that_drips_is_given_up_after_the_request_timeout_but_a_file_is_not() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(30):
            await response.write(b"1")
            await asyncio.sleep(5 * MS)
        return response

    async with answering(handler) as url, transport_to(url, request_timeout=60 * MS) as transport:
        with pytest.raises(acomfy.ServerUnreachable, match="too long"):
            await transport.get_json("/x")
        async with transport.stream("GET", "/x") as response:
            assert await response.read() == b"1" * 30


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe{}", b'{"a": "\xc3\x28"}', b'{"a":' * 90_000, b"9" * 5000, b'{"a": 1}' * 2, b"\x00" * 1000],
    ids=["utf-16", "bad utf-8", "deep", "an integer without end", "two", "zeros"],
)
async def test_what_is_no_json_is_a_protocol_error(body: bytes) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=body, content_type="application/json")

    async with answering(handler) as url, transport_to(url) as transport:
        with pytest.raises(
            acomfy.ProtocolError, match="200 and no JSON but application/json that begins with"
        ) as error:
            await transport.get_json("/x")
        assert error.value.__cause__ is None and error.value.__context__ is None
        assert len(str(error.value)) < 1200


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [300, 304, 308, 400, 401, 402, 403, 404, 407, 409, 418, 429, 451, 500, 502, 599])
async def test_every_refusal_names_address_status_type_and_first_bytes(status: int) -> None:
    async with answering(respond(status, "<h1>Größe</h1>" * 1000)) as url, transport_to(url) as transport:
        with pytest.raises(acomfy.HTTPError) as caught:
            await transport.get_json("/x")
    error = caught.value
    assert isinstance(error, acomfy.AuthenticationError) == (status in (300, 304, 308, 401, 403, 407))
    assert (error.status, error.url, error.content_type) == (status, f"{url}/x", "text/html")
    assert len(str(error)) < 700
    for word in (f"GET {url}/x", str(status), "text/html", "Größe" if status != 304 else ""):
        assert word in str(error)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"type": "QUEUE_LIMIT", "message": "wait"}}', "QUEUE_LIMIT"),
        (b'{"error": {"code": "SERVICE_DISABLED"}}', "SERVICE_DISABLED"),
        (b' {"code": "unauthorized", "message": "no"}', "unauthorized"),
        (b'{"error": "Job not found"}', None),
        (b'{"error": {"type": 5, "code": ""}}', None),
        (b'{"error": {"type": "cut', None),
        (b"[1]", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_the_kind_of_an_error_is_read_out_of_every_shape(body: bytes, expected: str | None) -> None:
    assert error_type(body) == expected


@pytest.mark.parametrize(
    ("body", "kind", "guessed"),
    [
        (b"", "", True),
        (b"\n", "text/plain", True),
        (b"<html>no</html>", "text/html", True),
        (b" <!DOCTYPE html>", "", True),
        (b"Invalid directory", "text/plain", False),
        (b'{"error": "Invalid directory"}', "application/json", False),
    ],
)
def test_a_403_that_says_why_gets_no_guess(body: bytes, kind: str, guessed: bool) -> None:
    error = refusal(403, "GET", "http://x/userdata", body=body, content_type=kind)
    assert isinstance(error, acomfy.AuthenticationError)
    assert ("Origin" in str(error)) == guessed
    assert body.decode().strip() in str(error)


def test_a_401_of_comfyui_itself_is_about_the_user() -> None:
    assert "wants user=" in str(refusal(401, "GET", "http://x/settings", body=b"401: Unauthorized"))
    assert "wants user=" not in str(refusal(401, "GET", "http://x/settings", body=b"<html>"))


@settings(max_examples=30)
@given(st.binary(max_size=300), st.integers(300, 999), st.text(max_size=30))
def test_any_refusal_makes_an_error_that_can_be_shown(body: bytes, status: int, kind: str) -> None:
    """Any status and body gives one of the server's errors, with a short sentence."""
    error = refusal(status, "GET", "http://x/y", body=body, content_type=kind)
    assert isinstance(error, acomfy.HTTPError | acomfy.PayloadTooLarge)
    assert len(str(error)) < 1500

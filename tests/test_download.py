"""Files are read over connections that break, from servers that lie, and never end up wrong, outside or in memory."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from acomfy.access import Access
from acomfy.api import Api
from acomfy.embedded import read_embedded
from acomfy.errors import (
    AcomfyError,
    AuthenticationError,
    HTTPError,
    MetadataError,
    OutputMissing,
    ProtocolError,
    ServerUnreachable,
)
from acomfy.outputs import produced_by
from acomfy.result import Output, Result, ServerSource
from acomfy.retry import RetryPolicy
from acomfy.transport import Transport

from . import test_embedded as made

pytestmark = pytest.mark.anyio

DATA = random.Random(1).randbytes(300_000)
TAG = '"17d3-493e0"'


class RawServer:
    """A server that answers each request with whatever bytes it is told to, over connections of its own.

    Attributes:
        heads: The requests.
        answer: Gives the whole answer to a request's head; the connection ends with it.
    """

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.url = ""
        self.answer: Callable[[str], bytes | AsyncIterator[bytes]] = lambda head: self.file(head)
        self.data, self.tag = DATA, TAG
        self.breaks_after: int | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            answer = self.answer(head)
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                async for data in answer:
                    writer.write(data)
                    await writer.drain()
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def file(self, head: str) -> bytes:
        """Answer as aiohttp's FileResponse does, which ComfyUI serves ``/view`` with."""
        start, end = asked_range(head, len(self.data))
        if start is None:
            headers, body = "200 OK", self.data
        elif start >= len(self.data):
            return b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n"
        else:
            headers = f"206 Partial Content\r\nContent-Range: bytes {start}-{end}/{len(self.data)}"
            body = self.data[start : end + 1]
        tag = f"ETag: {self.tag}\r\n" if self.tag else ""
        whole = f"HTTP/1.1 {headers}\r\n{tag}Content-Length: {len(body)}\r\n\r\n".encode() + body
        return whole if self.breaks_after is None else whole[: whole.index(b"\r\n\r\n") + 4 + self.breaks_after]


def asked_range(head: str, size: int) -> tuple[int | None, int]:
    for line in head.split("\r\n"):
        name, _, value = line.partition(": ")
        if name.lower() == "range":
            start, _, end = value.removeprefix("bytes=").partition("-")
            return int(start), min(int(end) if end else size - 1, size - 1)
    return None, size - 1


def answer(body: bytes = b"", head: str = "200 OK", **headers: Any) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {head}", *lines, "", ""]).encode() + body


@pytest.fixture
async def raw() -> AsyncIterator[RawServer]:
    raw = RawServer()
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
    raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield raw
    server.close()
    await server.wait_closed()


@pytest.fixture
async def output(raw: RawServer) -> AsyncIterator[Output]:
    async with aiohttp.ClientSession() as session:
        yield output_at(raw, session)


def output_at(raw: RawServer, session: aiohttp.ClientSession, **access: Any) -> Output:
    transport = Transport(Access(raw.url, **access), lambda: session, retry=RetryPolicy(first_delay=0.0))
    source = ServerSource("1-2", b'{"9": {}}', Api(transport), asyncio.Semaphore(4))
    ui = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}
    return Result(source, list(produced_by("9", ui)), {"9": ui}, None).outputs[0]


async def streamed(output: Output) -> bytes:
    return b"".join([chunk async for chunk in output.stream()])


async def saved(output: Output, directory: Path) -> bytes:
    path = await output.save(directory)
    assert os.listdir(directory) == [path.name]
    return path.read_bytes()


WAYS = pytest.mark.parametrize(
    "read", [lambda output, _: output.read(), saved, lambda output, _: streamed(output)], ids=["read", "save", "stream"]
)


# --- Going on ------------------------------------------------------------------------------------------------------


@WAYS
async def test_a_file_over_a_connection_that_breaks_every_64_kb_is_the_same(
    raw: RawServer, output: Output, tmp_path: Path, read: Any
) -> None:
    raw.breaks_after = 1 << 16
    assert hashlib.sha256(await read(output, tmp_path)).digest() == hashlib.sha256(DATA).digest()
    assert [head.partition("bytes=")[2].partition("\r")[0] for head in raw.heads] == [
        "",
        "65536-",
        "131072-",
        "196608-",
        "262144-",
    ]


@WAYS
@pytest.mark.parametrize("ranges", [True, False])
async def test_a_cut_at_any_byte_does_no_harm(
    raw: RawServer, output: Output, tmp_path: Path, read: Any, ranges: bool
) -> None:
    cuts = [0, 1, 65_535, 65_536, 299_999]

    def broken(head: str) -> bytes:
        raw.breaks_after = cuts.pop(0) if cuts else None
        return raw.file(head if ranges else "")

    raw.answer = broken
    assert await read(output, tmp_path) == DATA


async def test_a_server_without_versions_has_the_file_read_anew(raw: RawServer, output: Output, tmp_path: Path) -> None:
    raw.tag, raw.breaks_after = "", 100
    with pytest.raises(ServerUnreachable):
        await output.read()
    raw.heads.clear()

    def once(head: str) -> bytes:
        raw.breaks_after = 100 if len(raw.heads) == 1 else None
        return raw.file(head)

    raw.answer = once
    assert await saved(output, tmp_path) == DATA
    assert not any("Range" in head for head in raw.heads)
    raw.heads.clear()
    with pytest.raises(ProtocolError, match="cannot be gone on with"):
        await streamed(output)


@pytest.mark.parametrize("honest", [True, False], ids=["If-Range is honoured", "If-Range is not read"])
async def test_a_file_that_changes_meanwhile_is_never_mixed(
    raw: RawServer, output: Output, tmp_path: Path, honest: bool
) -> None:
    def changing(head: str) -> bytes:
        if len(raw.heads) == 1:
            raw.data, raw.tag, raw.breaks_after = DATA, TAG, 100_000
        else:
            raw.data, raw.tag, raw.breaks_after = DATA[::-1], '"other"', None
        return raw.file("" if honest else head)

    raw.answer = changing
    assert await saved(output, tmp_path) == DATA[::-1]
    assert len(raw.heads) == (2 if honest else 3)
    raw.heads.clear()
    with pytest.raises(ProtocolError, match="changed"):
        await streamed(output)


async def test_a_file_that_was_cut_short_on_the_server_is_read_anew(raw: RawServer, output: Output) -> None:
    def shorter(head: str) -> bytes:
        raw.breaks_after = 100_000 if len(raw.heads) == 1 else None
        raw.data, raw.tag = (DATA, TAG) if len(raw.heads) == 1 else (b"short", '"other"')
        return raw.file(head)

    raw.answer = shorter
    assert await output.read() == b"short"
    assert len(raw.heads) == 3


async def test_a_server_that_always_breaks_at_one_place_is_given_up(raw: RawServer, output: Output) -> None:
    def broken(head: str) -> bytes:
        start, _ = asked_range(head, len(DATA))
        raw.breaks_after = 50_000 if start is None else 0
        return raw.file(head)

    raw.answer = broken
    with pytest.raises(ServerUnreachable):
        await output.read()
    assert len(raw.heads) == 4


async def test_a_part_that_ends_too_soon_is_gone_on_with(raw: RawServer, output: Output) -> None:
    def in_pieces(head: str) -> bytes:
        start, _ = asked_range(head, len(DATA))
        if start is None:
            raw.breaks_after = 1000
            return raw.file(head)
        body = DATA[start : start + 90_000]
        said = f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"
        return answer(body, "206 OK", ETag=TAG, Content_Range=said, Content_Length=len(body))

    raw.answer = in_pieces
    assert await output.read() == DATA


# --- Lies ----------------------------------------------------------------------------------------------------------


async def endless(head: str, block: bytes = bytes(1 << 16)) -> AsyncIterator[bytes]:
    yield head.encode()
    while True:
        yield f"{len(block):x}\r\n".encode() + block + b"\r\n"


MANY_HEADERS: dict[str, Any] = {f"X{number}": "y" * 4000 for number in range(300)}
CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_an_endless_body_is_stopped_at_the_size_that_is_allowed(raw: RawServer, output: Output) -> None:
    raw.answer = lambda head: endless(CHUNKED)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="larger than max_size, 3000000 bytes"):
            await output.read(max_size=3_000_000)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert len(raw.heads) == 1


async def test_a_file_that_says_that_it_is_too_large_is_not_read(raw: RawServer, output: Output) -> None:
    assert await output.read(max_size=len(DATA)) == DATA
    raw.answer = lambda head: answer(Content_Length=1 << 40)
    with pytest.raises(ProtocolError, match="larger than max_size"):
        await output.read()


async def test_a_stream_of_an_endless_body_takes_no_memory_and_can_be_left(raw: RawServer, output: Output) -> None:
    raw.answer = lambda head: endless(CHUNKED)
    tracemalloc.start()
    try:
        size = 0
        async with aclosing(output.stream()) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > 20_000_000:
                    break
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


@WAYS
@pytest.mark.parametrize(
    "said",
    [
        answer(head="206 OK", Content_Length=3, Content_Range="bytes 5-7/9") + b"abc",
        answer(head="206 OK", Content_Length=3) + b"abc",
        answer(head="200 OK", Content_Length="-5") + b"abc",
        answer(head="200 OK", Content_Length="nonsense") + b"abc",
        answer(head="200 OK", Content_Length=3, X="y" * 100_000) + b"abc",
        answer(head="200 OK", **MANY_HEADERS, Content_Length=3) + b"abc",
        answer(head="200 OK", Transfer_Encoding="chunked") + b"zz\r\nabc",
        answer(head="200 OK", Content_Encoding="gzip", Content_Length=9) + b"not gzip!",
        answer(head="302 Found", Location="http://127.0.0.1:9/elsewhere", Content_Length=0),
        answer(head="416 No", Content_Length=0),
        b"what is this",
        b"",
    ],
    ids=range(12),
)
async def test_nonsense_is_a_typed_error_and_leaves_nothing(
    raw: RawServer, output: Output, tmp_path: Path, read: Any, said: bytes
) -> None:
    raw.answer = lambda head: said
    with pytest.raises(AcomfyError):
        await read(output, tmp_path)
    assert os.listdir(tmp_path) == []


@WAYS
async def test_a_compressed_answer_is_unpacked(raw: RawServer, output: Output, tmp_path: Path, read: Any) -> None:
    packed = gzip.compress(DATA)
    raw.answer = lambda head: answer(packed, Content_Encoding="gzip", ETag=TAG, Content_Length=len(packed))
    assert await read(output, tmp_path) == DATA
    assert "Accept-Encoding: identity" in raw.heads[0]


async def test_a_compressed_answer_that_breaks_is_read_anew(raw: RawServer, output: Output) -> None:
    packed = gzip.compress(DATA)

    def broken(head: str) -> bytes:
        whole = answer(packed, Content_Encoding="gzip", ETag=TAG, Content_Length=len(packed))
        return whole[:200_000] if len(raw.heads) == 1 else whole

    raw.answer = broken
    assert await output.read() == DATA
    assert not any("Range" in head for head in raw.heads)


async def test_a_compressed_bomb_is_stopped_at_the_size_that_is_allowed(raw: RawServer, output: Output) -> None:
    bomb = gzip.compress(bytes(100_000_000), 1)
    raw.answer = lambda head: answer(bomb, Content_Encoding="gzip", Content_Length=len(bomb))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="max_size"):
            await output.read(max_size=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@WAYS
@pytest.mark.parametrize(
    ("head", "kind", "body"),
    [
        ("200 OK", "text/html; charset=utf-8", b"<html>Sign in, sid=s3cr3t-id</html>"),
        ("200 OK", "Text/HTML", b""),
        ("202 Accepted", "application/json", b"{}"),
        ("204 No Content", "image/png", b""),
    ],
)
async def test_a_page_in_the_place_of_a_file_is_no_file(
    raw: RawServer, tmp_path: Path, read: Any, head: str, kind: str, body: bytes
) -> None:
    raw.answer = lambda _: answer(body, head, Content_Type=kind, Content_Length=len(body))
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ProtocolError, match=rf"GET {raw.url}/view .* {head[:3]} and no file") as caught:
            await read(output_at(raw, session, cookies={"sid": "s3cr3t-id"}), tmp_path)
    assert "s3cr3t-id" not in str(caught.value)
    assert len(raw.heads) == 1 and os.listdir(tmp_path) == []


@WAYS
async def test_a_redirect_is_not_followed_and_no_credential_goes_with_it(
    raw: RawServer, tmp_path: Path, read: Any
) -> None:
    thief = RawServer()
    listening = await asyncio.start_server(thief.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    raw.answer = lambda head: answer(head="302 Found", Location=f"http://127.0.0.1:{port}/x", Content_Length=0)
    async with aiohttp.ClientSession() as session:
        output = output_at(raw, session, token="SECRET")
        with pytest.raises(AuthenticationError) as error:
            await read(output, tmp_path)
    assert "SECRET" in raw.heads[0]
    assert "SECRET" not in repr(error.value)
    assert thief.heads == []
    listening.close()


# --- What is written in it -----------------------------------------------------------------------------------------


def film(size: int) -> bytes:
    """Give a film whose tags stand behind its pictures."""
    data = made.mp4()
    head, _, tail = data.partition(bytes(5000))
    return head[:-8] + (size + 16).to_bytes(8, "big") + bytes(size) + tail


async def test_of_a_large_film_its_head_and_its_end_are_read(raw: RawServer, output: Output) -> None:
    raw.data = film(30_000_000)
    found = await output.metadata()
    assert (found.kind, found.prompt, found.workflow) == ("mp4", made.PROMPT, made.WORKFLOW)
    assert len(raw.heads) == 2
    assert all("bytes=" in head for head in raw.heads)


async def test_a_walk_through_a_file_takes_few_requests(raw: RawServer, output: Output) -> None:
    raw.data = made.PNG + b"".join(made.chunk(b"IDAT", bytes(8192)) for _ in range(1000)) + made.chunk(b"IEND", b"")
    found = await output.metadata()
    assert (found.kind, found.prompt) == ("png", None)
    assert len(raw.heads) <= 8


@pytest.mark.parametrize("name", made.FILES)
async def test_metadata_are_read_from_the_server(raw: RawServer, output: Output, name: str) -> None:
    raw.data = made.FILES[name][1]
    assert await output.metadata() == read_embedded(raw.data)
    assert len(raw.heads) == 1


@pytest.mark.parametrize("way", ["no ranges", "no versions", "another version each time", "breaks", "small parts"])
async def test_metadata_are_read_whatever_the_server_makes_of_ranges(raw: RawServer, output: Output, way: str) -> None:
    raw.data = film(5_000_000)

    def odd(head: str) -> bytes:
        if way == "no ranges":
            return raw.file("")
        if way == "no versions":
            raw.tag = ""
        if way == "another version each time" and "Range" in head:
            raw.tag = f'"{len(raw.heads)}"'
        if way == "breaks":
            raw.breaks_after = 100 if len(raw.heads) % 2 else None
        start, _ = asked_range(head, len(raw.data))
        if way == "small parts" and start is not None:
            part = raw.data[start : start + 10]
            said = f"bytes {start}-{start + 9}/{len(raw.data)}"
            return answer(part, "206 OK", ETag=TAG, Content_Range=said, Content_Length=10)
        return raw.file(head)

    raw.answer = odd
    found = await output.metadata()
    assert (found.prompt, found.workflow) == (made.PROMPT, made.WORKFLOW)


async def test_a_file_whose_metadata_never_come_is_given_up(
    raw: RawServer, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acomfy.metadata._MOST_PIECES", 20)

    def endless(head: str) -> bytes:
        start, end = asked_range(head, 1 << 50)
        assert start is not None
        chunk = (1 << 30).to_bytes(4, "big") + b"IDAT"
        body = made.PNG + chunk if start == 0 else chunk
        body = body.ljust(min(end + 1 - start, 1 << 16), b"\0")
        said = f"bytes {start}-{start + len(body) - 1}/{1 << 50}"
        return answer(body, "206 OK", ETag=TAG, Content_Range=said, Content_Length=len(body))

    raw.answer = endless
    with pytest.raises(MetadataError, match=r"'a.png' of node 9: .* not found in 20 pieces"):
        await output.metadata()
    assert len(raw.heads) == 20


async def test_metadata_of_a_file_that_is_gone_or_empty(raw: RawServer, output: Output) -> None:
    raw.answer = lambda head: answer(head="404 Not Found", Content_Length=0)
    with pytest.raises(OutputMissing):
        await output.metadata()
    raw.answer, raw.data = raw.file, b""
    found = await output.metadata()
    assert (found.kind, found.prompt) == ("", None)
    raw.answer = lambda head: answer(head="500 No", Content_Length=0)
    with pytest.raises(HTTPError):
        await output.metadata()

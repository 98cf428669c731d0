"""One request and its answer: what is sent, what is given back, and what an unreachable server is told to be."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import acomfy
from acomfy.access import Access
from acomfy.sessions import Sessions
from acomfy.transport import Transport, segment

from .conftest import MS
from .front_door import server_tls
from .other_servers import answering, respond

pytestmark = pytest.mark.anyio


class Mirror:
    """A server that tells what it was sent."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.body: Any = {"fine": True}
        self.token = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.asked.append((request.method, request.raw_path, dict(request.headers), body))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        return web.Response(body=self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode())


@asynccontextmanager
async def mirrored(**options: Any) -> AsyncIterator[tuple[Transport, Mirror]]:
    mirror = Mirror()
    async with answering(mirror.handle) as url, aiohttp.ClientSession() as session:
        yield Transport(Access(url, **options), lambda: session), mirror


async def test_objects_lists_and_bytes_are_read_as_such() -> None:
    async with mirrored() as (transport, mirror):
        assert await transport.get_object("/x", {"a": "b c&d"}) == {"fine": True}
        assert mirror.asked[-1][:2] == ("GET", "/x?a=b+c%26d")
        with pytest.raises(acomfy.ProtocolError, match="/x was answered with dict, not an array"):
            await transport.get_list("/x")
        mirror.body = [1]
        assert await transport.get_list("/x", headers={"comfy-user": "jo"}) == [1]
        assert mirror.asked[-1][2]["comfy-user"] == "jo"
        with pytest.raises(acomfy.ProtocolError, match="/x was answered with list, not an object"):
            await transport.get_object("/x")
        mirror.body = b"\x89PNG"
        assert await transport.get_bytes("/x") == b"\x89PNG"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_json_is_sent_by_every_method_and_an_empty_answer_is_none(method: str) -> None:
    async with mirrored() as (transport, mirror):
        assert await transport.send_json(method, "/x", {"ö": 1}) == {"fine": True}
        sent_by, path, headers, body = mirror.asked[-1]
        assert (sent_by, path, headers["Content-Type"], json.loads(body)) == (
            method,
            "/x",
            "application/json",
            {"ö": 1},
        )
        mirror.body = b""
        assert await transport.send_json(method, "/x") is None
        assert mirror.asked[-1][3] == b""
        mirror.body = b"not looked at"
        await transport.send(method, "/x", [])
        assert mirror.asked[-1][3] == b"[]"


async def test_an_upload_is_made_anew_when_its_token_was_refused() -> None:
    tokens = iter(["old", "new"])
    made = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal made
        made += 1
        yield b"12345"
        yield b"67890"

    async with mirrored(token=lambda: next(tokens)) as (transport, mirror):
        mirror.token = "new"
        assert await transport.upload("/x", body, size=10, headers={"X-A": "b"}) == {"fine": True}
    assert made == 2
    assert [(headers["Content-Length"], headers["X-A"], sent) for _, _, headers, sent in mirror.asked] == [
        ("10", "b", b"1234567890")
    ] * 2


async def test_an_upload_that_is_too_large_tells_its_size() -> None:
    async with answering(respond(413, "Maximum request body size 7 exceeded.")) as url, aiohttp.ClientSession() as own:
        with pytest.raises(acomfy.PayloadTooLarge) as caught:
            await Transport(url, lambda: own).upload("/x", lambda: b"1234567890", size=10)
    assert (caught.value.size, caught.value.limit) == (10, 7)


async def test_a_stream_takes_the_statuses_that_it_allows() -> None:
    async with answering(respond(304)) as url, aiohttp.ClientSession() as session:
        transport = Transport(url, lambda: session)
        async with transport.stream("GET", "/x", allowed=(304,)) as response:
            assert response.status == 304
        with pytest.raises(acomfy.AuthenticationError):
            async with transport.stream("GET", "/x"):
                pass


@pytest.mark.parametrize("text", ["", "a b", "../x", "ö/%2F?#", "a;b,c"])
def test_a_segment_is_one_part_of_a_path(text: str) -> None:
    assert not set(segment(text)) & set("/?# ")


# --- Why nothing came ------------------------------------------------------------------------------------------------


async def reason(url: str, **options: Any) -> str:
    async with aiohttp.ClientSession() as session:
        transport = Transport(Access(url, **options), lambda: session, connect_timeout=100 * MS, read_timeout=50 * MS)
        with pytest.raises(acomfy.ServerUnreachable) as caught:
            await transport.get_json("/x")
    assert caught.value.maybe_sent is False
    assert caught.value.__context__ is None
    assert isinstance(caught.value.__cause__, OSError | None)
    return str(caught.value)


async def test_the_reason_says_what_to_do() -> None:
    assert "is ComfyUI running there" in await reason("http://127.0.0.1:9")
    assert "is its address right" in await reason("http://127.0.0.1:8188", proxy="http://jo:secret@127.0.0.1:9")
    async with answering(respond(200), server_tls()) as url:
        assert "ssl=False" in await reason(url)
        assert "ssl=False" in await reason(url, ssl=ssl.create_default_context())
    async with answering(respond(200)) as url:
        assert "speak TLS" in await reason(url.replace("http:", "https:"))


async def test_sessions_close_what_they_made_and_leave_what_was_given() -> None:
    own = Sessions(Access("http://host"), None)
    made = [own.http(), own.socket(), own.bare()]
    assert own.http() is made[0] and own.socket() is made[1] and own.bare() is made[2]
    await own.close()
    assert all(session.closed for session in made) and not own.made
    async with aiohttp.ClientSession() as given:
        other = Sessions(Access("http://host"), given)
        guarded = other.socket()
        assert other.http() is given and guarded is not given and guarded.connector is given.connector
        await other.close()
        assert not given.closed and given.connector is not None and not given.connector.closed


async def test_many_requests_at_once_share_nothing_that_waits() -> None:
    async with mirrored() as (transport, mirror):
        answers = await asyncio.gather(*(transport.get_object(f"/{number}") for number in range(200)))
    assert len(answers) == 200 and len(mirror.asked) == 200

"""The HTTP routes against the simulated server, and their errors against servers that are no ComfyUI."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import pickle
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import acomfy
from acomfy.access import Access, base_url
from acomfy.api import Api
from acomfy.sessions import Sessions
from acomfy.simulator import SimulatedServer
from acomfy.transport import Transport

from .conftest import MS
from .front_door import PEM, Doorkeeper, server_tls
from .graphs import color_of, gated, saved, streamed
from .other_servers import HTML, answering, respond, saying
from .shell import Gates, client, eventually, gates, quick_client, quick_delays, server
from .tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

UNKNOWN_ID = "c0ffee00-0000-4000-8000-000000000000"
CANARY = "canary-7f3a9d"


@asynccontextmanager
async def api_of(url: str, **options: Any) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(Transport(url, lambda: session, **options))


@pytest.fixture
async def api(server: SimulatedServer) -> AsyncIterator[Api]:
    async with api_of(server.url) as api:
        yield api


async def open_socket(api: Api, **options: Any) -> None:
    """Open the WebSocket by a session with these options, and close it."""
    async with aiohttp.ClientSession(**options) as session:
        await (await api._transport.open_socket(session, "me & you", heartbeat=None, max_message_size=0)).close()


def body(graph: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"prompt": graph, **more}).encode()


# --- Routes ----------------------------------------------------------------------------------------------------------


async def test_a_prompt_is_posted_under_the_id_that_was_chosen(server: SimulatedServer, api: Api) -> None:
    reply = await api.post_prompt(body(saved(), prompt_id=UNKNOWN_ID, number=7.5))
    assert (reply.prompt_id, reply.number, reply.node_errors) == (UNKNOWN_ID, 7.5, {})
    assert (await api.post_prompt({"prompt": saved(), "number": 8})).number == 8
    await server.wait_idle()
    assert server.ledger[UNKNOWN_ID].state == "completed"


async def test_the_queue_is_counted_read_and_edited(server: SimulatedServer, api: Api, gates: Gates) -> None:
    ids = [(await api.post_prompt(body(gated("a")))).prompt_id for _ in range(4)]
    await gates.reached["a"].wait()
    assert await api.get_prompt() == 4
    queue = await api.get_queue()
    assert [item[1] for item in queue["queue_running"]] == ids[:1]
    assert {item[1] for item in queue["queue_pending"]} == set(ids[1:])
    await api.post_queue(delete=[ids[1], UNKNOWN_ID])
    assert await api.get_prompt() == 3
    await api.post_queue(clear=True)
    assert await api.get_prompt() == 1


async def test_an_interrupt_hits_its_prompt_or_whatever_runs(server: SimulatedServer, api: Api, gates: Gates) -> None:
    first, second = [(await api.post_prompt(body(gated(name)))).prompt_id for name in "ab"]
    await gates.reached["a"].wait()
    await api.post_interrupt(second)
    await api.post_interrupt(first)
    await gates.reached["b"].wait()
    assert server.ledger[first].state == "cancelled"
    assert server.ledger[second].state == "in_progress"
    await api.post_interrupt()
    await server.wait_idle()
    assert server.ledger[second].state == "cancelled"


async def test_history_is_read_by_prompt_and_newest_entries_at_a_time(server: SimulatedServer, api: Api) -> None:
    ids = [(await api.post_prompt(body(saved(color)))).prompt_id for color in range(3)]
    await server.wait_idle()
    assert await api.get_history(UNKNOWN_ID) is None
    entry = await api.get_history(ids[0])
    assert entry is not None and entry["status"]["status_str"] == "success"
    assert list(await api.get_histories(max_items=2)) == ids[1:]


async def test_files_are_viewed_by_name_folder_and_type(server: SimulatedServer, api: Api) -> None:
    graph = saved(0x334455)
    graph["2"]["inputs"]["filename_prefix"] = "a folder/ö&x=1"
    reply = await api.post_prompt(body(graph))
    await server.wait_idle()
    entry = await api.get_history(reply.prompt_id)
    assert entry is not None
    (image,) = entry["outputs"]["2"]["images"]
    assert image["subfolder"] == "a folder"
    async with api.view(image["filename"], subfolder=image["subfolder"], type=image["type"]) as response:
        assert color_of(await response.read()) == 0x334455
    with pytest.raises(acomfy.HTTPError) as caught:
        async with api.view("nothing.png"):
            pass
    assert (caught.value.status, caught.value.method) == (404, "GET")


async def test_an_error_of_the_caller_while_it_reads_a_file_is_left_alone(server: SimulatedServer, api: Api) -> None:
    reply = await api.post_prompt(body(saved()))
    await server.wait_idle()
    entry = await api.get_history(reply.prompt_id)
    assert entry is not None
    for error in (OSError(28, "No space left on device"), TimeoutError("the caller's own")):
        with pytest.raises(type(error)) as caught:
            async with api.view(entry["outputs"]["2"]["images"][0]["filename"]):
                raise error
        assert caught.value is error


async def test_the_server_is_described(server: SimulatedServer, api: Api) -> None:
    assert (await api.get_system_stats())["system"]["comfyui_version"] == server.version
    assert (await api.get_features())["supports_preview_metadata"] is True
    assert {"SaveImage", "KSampler"} <= set(await api.get_object_info())
    assert list(await api.get_object_info("SaveImage")) == ["SaveImage"]
    assert await api.get_object_info("No such node") == {}
    await api.post_free(unload_models=True, free_memory=True)


async def test_features_are_a_404_on_an_old_server() -> None:
    async with SimulatedServer(version="0.3.40") as server, api_of(server.url) as api:
        with pytest.raises(acomfy.HTTPError) as caught:
            await api.get_features()
        assert caught.value.status == 404


async def test_names_and_ids_are_one_path_segment_whatever_is_in_them() -> None:
    paths = []

    async def handler(request: web.BaseRequest) -> web.Response:
        paths.append(request.raw_path)
        return web.json_response({"cancelled": True})

    async with answering(handler) as url, api_of(f"{url}/base/") as api:
        assert list(await api.get_object_info("a/b c?d#e%f|ö")) == ["cancelled"]
        assert await api.post_job_cancel("../x")
    assert paths == [
        "/base/object_info/a%2Fb%20c%3Fd%23e%25f%7C%C3%B6",
        "/base/api/jobs/..%2Fx/cancel",
    ]


@pytest.mark.parametrize(("answer", "told"), [({"cancelled": True}, True), ({"cancelled": False}, False), ([], False)])
async def test_a_job_cancel_tells_whether_the_server_did_something(answer: Any, told: bool) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        assert (request.method, request.path) == ("POST", f"/api/jobs/{UNKNOWN_ID}/cancel")
        return web.json_response(answer)

    async with answering(handler) as url, api_of(url) as api:
        assert await api.post_job_cancel(UNKNOWN_ID) is told


# --- Addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188"),
        ("localhost:8188", "http://localhost:8188"),
        ("http://host", "http://host"),
        ("http://host/", "http://host"),
        ("https://host/a/b//", "https://host/a/b"),
        ("HTTP://Host:80/x%2Fy", "http://host/x%2Fy"),
        ("[::1]:8188", "http://[::1]:8188"),
        ("http://host/?a=b#c", "http://host"),
    ],
)
def test_an_address_is_read_in_every_form(given: str, read: str) -> None:
    assert str(base_url(given)) == read


@pytest.mark.parametrize(
    "given",
    [
        "",
        "ws://host",
        "ftp://host",
        "http://",
        "/path",
        "http://[bad",
        "http://host:port",
        "http://host:99999",
        f"http://user:{CANARY}/x@host:81/",
        f"user:{CANARY}@host:port",
        f"ws://user:{CANARY}@host",
        f"http://user:{CANARY}@[bad",
        f"ws://host/?token={CANARY}",
    ],
)
def test_what_is_no_address_is_a_value_error_that_shows_no_password(given: str) -> None:
    with pytest.raises(ValueError, match="looks like http://127.0.0.1:8188") as caught:
        acomfy.Client(given)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_requests_go_below_the_path_prefix() -> None:
    paths = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        paths.append(request.path_qs)
        if request.path.endswith("/ws"):
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.close()
            return socket
        return web.json_response({})

    async with answering(handler) as url, api_of(f"{url}/comfy/one/") as api:
        await api.get_system_stats()
        await open_socket(api)
    assert paths == ["/comfy/one/system_stats", "/comfy/one/ws?clientId=me+%26+you"]


# --- Answers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, acomfy.HTTPError),
        (401, acomfy.AuthenticationError),
        (403, acomfy.AuthenticationError),
        (404, acomfy.HTTPError),
        (405, acomfy.HTTPError),
        (429, acomfy.HTTPError),
        (500, acomfy.HTTPError),
        (502, acomfy.HTTPError),
        (503, acomfy.HTTPError),
    ],
)
async def test_a_status_that_says_no_is_told_before_the_body_is_parsed(
    status: int, expected: type[acomfy.HTTPError]
) -> None:
    async with answering(respond(status, HTML)) as url, api_of(url) as api:
        with pytest.raises(acomfy.HTTPError) as caught:
            await api.get_queue()
    error = caught.value
    assert type(error) is expected
    assert (error.status, error.method, error.url, error.body) == (status, "GET", f"{url}/queue", HTML)
    for word in (f"GET {url}/queue", str(status), "Please log in"):
        assert word in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


async def test_a_403_names_the_likely_reasons() -> None:
    async with answering(respond(403)) as url, api_of(url) as api:
        with pytest.raises(acomfy.AuthenticationError, match="Origin.*proxy"):
            await api.get_queue()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/login?next=%2Fqueue", "/login"),
        ("login", "login"),
        (f"https://user:{CANARY}@sso.example/start?token={CANARY}", "https://sso.example/start"),
        ("http://[bad", "another address"),
        ("", "another address"),
    ],
)
async def test_a_redirect_to_a_login_page_is_not_followed(method: str, location: str, shown: str) -> None:
    asked = []

    async def handler(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": location})

    async with answering(handler) as url, api_of(url) as api:
        with pytest.raises(acomfy.AuthenticationError) as caught:
            await (api.get_queue() if method == "GET" else api.post_prompt(b"{}"))
    assert caught.value.status == 302
    assert f"it redirects to {shown}:" in str(caught.value)
    assert CANARY not in str(caught.value)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("text", "content_type"),
    [
        (HTML, "text/html"),
        ("", "application/json"),
        ('{"queue_running": [', "application/json"),
        ("[" * 100_000, "application/json"),
        ('[{"a": 1}]', "application/json"),
        ('"text"', "application/json"),
        ("null", "application/json"),
        ("\ufffd\x00", "application/octet-stream"),
    ],
    ids=["html", "empty", "cut", "deep", "array", "text", "null", "binary"],
)
async def test_what_is_no_json_object_is_a_protocol_error(text: str, content_type: str) -> None:
    async with answering(respond(200, text, content_type)) as url, api_of(url) as api:
        for call in (api.get_queue, api.get_system_stats, api.get_prompt, lambda: api.post_prompt(b"{}")):
            with pytest.raises(acomfy.ProtocolError) as caught:
                await call()
            assert url in str(caught.value)
            assert len(str(caught.value)) < 600


async def test_a_protocol_error_quotes_address_status_type_and_the_first_bytes() -> None:
    async with answering(respond(200, HTML + "x" * 1000)) as url, api_of(url) as api:
        with pytest.raises(acomfy.ProtocolError) as caught:
            await api.get_queue()
    for word in (f"GET {url}/queue", "200", "text/html", "Please log in"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "answer", ['{"exec_info": {}}', '{"exec_info": null}', '{"exec_info": {"queue_remaining": "x"}}']
)
async def test_a_number_that_is_missing_is_a_protocol_error(answer: str) -> None:
    async with answering(respond(200, answer, "application/json")) as url, api_of(url) as api:
        with pytest.raises(acomfy.ProtocolError, match="queue_remaining"):
            await api.get_prompt()


@pytest.mark.parametrize("answer", ["{}", '{"prompt_id": 5}', '{"prompt_id": null, "number": 1}'])
async def test_an_answer_without_prompt_id_is_a_protocol_error(answer: str) -> None:
    async with answering(respond(200, answer, "application/json")) as url, api_of(url) as api:
        with pytest.raises(acomfy.ProtocolError, match="prompt_id"):
            await api.post_prompt(b"{}")


async def test_json_of_the_wrong_content_type_is_read_all_the_same() -> None:
    async with answering(respond(200, '{"a": 1}', "text/plain")) as url, api_of(url) as api:
        assert dict(await api.get_queue()) == {"a": 1}


async def test_nan_infinity_and_huge_integers_are_read() -> None:
    text = '{"a": NaN, "b": [Infinity, -Infinity], "seed": 18446744073709551616123, "c": 18446744073709551615}'
    async with answering(respond(200, text, "application/json")) as url, api_of(url) as api:
        answer: Any = await api.get_queue()
    assert math.isnan(answer["a"])
    assert answer["b"] == [math.inf, -math.inf]
    assert answer["seed"] == 18446744073709551616123
    assert answer["c"] == 18446744073709551615


async def test_a_refused_prompt_is_told_apart_from_a_proxys_400() -> None:
    refusal = {"error": {"type": "no_prompt", "message": "No prompt provided", "details": ""}, "node_errors": {}}
    async with answering(respond(400, json.dumps(refusal), "application/json")) as url, api_of(url) as api:
        with pytest.raises(acomfy.PromptRejected, match="No prompt provided"):
            await api.post_prompt(b"{}")
    in_words = json.dumps({"error": "in words"})
    async with answering(respond(400, in_words, "application/json")) as url, api_of(url) as api:
        with pytest.raises(acomfy.PromptRejected, match="in words"):
            await api.post_prompt(b"{}")
    async with answering(respond(400, HTML)) as url, api_of(url) as api:
        with pytest.raises(acomfy.ProtocolError, match="400"):
            await api.post_prompt(b"{}")


# --- Size ------------------------------------------------------------------------------------------------------------


async def test_a_413_gives_the_size_and_the_limit_that_the_server_states() -> None:
    async with SimulatedServer(max_upload_size=2000) as server, api_of(server.url) as api:
        large = body(saved(), extra_data={"note": "x" * 5000})
        with pytest.raises(acomfy.PayloadTooLarge) as caught:
            await api.post_prompt(large)
        assert (caught.value.size, caught.value.limit) == (len(large), 2000)


async def test_a_413_of_a_proxy_states_no_limit() -> None:
    async with answering(respond(413, HTML)) as url, api_of(url) as api:
        with pytest.raises(acomfy.PayloadTooLarge) as caught:
            await api.post_prompt(b"{}" * 100)
        assert (caught.value.size, caught.value.limit) == (200, None)


async def test_what_is_over_the_limit_that_the_server_told_is_not_sent() -> None:
    async with SimulatedServer(max_upload_size=4000) as server, quick_client(server) as client:
        await client.wait_ready()
        await client.run(saved())
        await eventually(lambda: server.requests["GET", "/features"] > 0)
        for call in (client.run, client.submit):
            with pytest.raises(acomfy.PayloadTooLarge) as caught:
                await call(saved(), extra_data={"note": "x" * 5000})
            assert caught.value.limit == 4000
        assert server.requests["POST", "/prompt"] == 1
        assert client.jobs == ()


# --- Connections that break or stay silent ---------------------------------------------------------------------------


async def test_a_refused_connection_is_certain_not_to_have_sent_anything() -> None:
    async with saying(b"") as url:
        pass
    async with api_of(url) as api:
        with pytest.raises(acomfy.ServerUnreachable) as caught:
            await api.post_prompt(b"{}")
        assert caught.value.maybe_sent is False
        assert caught.value.url == f"{url}/prompt"
        with pytest.raises(acomfy.ServerUnreachable):
            await open_socket(api)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x00\x01\x02" * 100,
        b"HTTP/1.1 500 Oh\r\nContent-Length: 1000\r\n\r\n<",
        b"HTTP/1.1 302 Oh\r\nContent-Length: 1000\r\nLocation: /x\r\n\r\n<",
    ],
    ids=["nothing", "half a head", "cut body", "cut chunk", "ssh", "noise", "cut error", "cut redirect"],
)
async def test_a_broken_answer_may_mean_that_the_request_arrived(said: bytes) -> None:
    async with saying(said) as url, api_of(url) as api:
        for call in (api.get_queue, lambda: api.post_prompt(b"{}")):
            with pytest.raises((acomfy.ServerUnreachable, acomfy.HTTPError)) as caught:
                await call()
            if isinstance(caught.value, acomfy.ServerUnreachable):
                assert caught.value.maybe_sent is True
            assert url in str(caught.value)


async def test_an_answer_that_is_cut_at_any_byte_is_no_answer(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy, api_of(proxy.url) as api:
        for size in (*range(0, 300, 7), 1000, 5000):
            proxy.on_link = lambda link, size=size: link.cut_after(size)  # type: ignore[misc]
            with pytest.raises(acomfy.ServerUnreachable) as caught:
                await api.get_object_info()
            assert caught.value.maybe_sent is True


async def test_a_slow_network_is_no_silence(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy, api_of(proxy.url, read_timeout=100 * MS) as api:
        proxy.on_link = lambda link: setattr(link, "delay", 20 * MS)
        assert "SaveImage" in await api.get_object_info()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"], ids=["nothing", "a byte"])
async def test_a_server_that_falls_silent_is_given_up_after_the_read_timeout(said: bytes) -> None:
    clock = asyncio.get_running_loop().time
    async with saying(said, then_wait=True) as url, api_of(url, read_timeout=50 * MS) as api:
        for call in (api.get_queue, lambda: api.post_prompt(b"{}")):
            began = clock()
            with pytest.raises(acomfy.ServerUnreachable) as caught:
                await call()
            assert caught.value.maybe_sent is True
            assert 45 * MS <= clock() - began < 2000 * MS


async def test_a_websocket_that_is_never_answered_is_given_up_after_the_read_timeout() -> None:
    times = {"connect_timeout": 20 * MS, "read_timeout": 50 * MS}
    async with saying(b"", then_wait=True) as url, api_of(url, **times) as api, asyncio.timeout(2000 * MS):
        with pytest.raises(acomfy.ServerUnreachable, match="/ws"):
            await open_socket(api)


async def test_a_slow_answer_is_not_cut_while_bytes_keep_coming() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for byte in b'{"a": 1}':
            await response.write(bytes([byte]))
            await asyncio.sleep(20 * MS)
        return response

    async with answering(handler) as url, api_of(url, read_timeout=100 * MS) as api:
        assert dict(await api.get_queue()) == {"a": 1}


async def test_a_websocket_is_not_opened_where_a_redirect_points() -> None:
    asked = []

    async def elsewhere(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=404)

    async with answering(elsewhere) as other, answering(respond(307, Location=other)) as url, api_of(url) as api:
        sessions = Sessions(Access(url), None)
        with pytest.raises(acomfy.AuthenticationError) as caught:
            await api._transport.open_socket(sessions.socket(), "me", heartbeat=None, max_message_size=0)
        await sessions.close()
        async with acomfy.Client(url, headers={"X-Key": CANARY}) as client:
            await client._connection.wait_live()
            assert client._connection.refusal is not None and client._connection.refusal.status == 307
    assert caught.value.status == 307
    assert asked == []


# --- The caller's session --------------------------------------------------------------------------------------------


async def test_the_defaults_of_a_callers_session_change_nothing(server: SimulatedServer, gates: Gates) -> None:
    timeout = aiohttp.ClientTimeout(total=100 * MS, sock_read=100 * MS)
    options: dict[str, Any] = {"timeout": timeout, "raise_for_status": True, "base_url": "http://127.0.0.1:9/"}
    async with aiohttp.ClientSession(**options) as session, quick_client(server, session=session) as client:
        with pytest.raises(acomfy.HTTPError) as caught:
            async with client.api.view("nothing.png"):
                pass
        assert caught.value.status == 404
        gate = gated("slow", node="SaveImageWebsocket")
        running = asyncio.create_task(client.run(gate))
        await gates.reached["slow"].wait()
        loop = asyncio.get_running_loop()
        loop.call_later(300 * MS, gates.open["slow"].set)
        assert len((await running).images) == 1
        assert server.requests["GET", "/history/{prompt_id}"] == 0


async def test_a_websocket_refused_to_a_session_that_raises_for_status_is_an_http_error() -> None:
    async with answering(respond(403)) as url, api_of(url) as api:
        with pytest.raises(acomfy.AuthenticationError):
            await open_socket(api, raise_for_status=True)


async def test_a_callers_session_that_was_closed_makes_the_server_unreachable(server: SimulatedServer) -> None:
    session = aiohttp.ClientSession()
    await session.close()
    async with quick_client(server, session=session, connect_timeout=50 * MS) as client, asyncio.timeout(2000 * MS):
        with pytest.raises(acomfy.ServerUnreachable, match="session") as caught:
            await client.run(saved())
        assert caught.value.maybe_sent is False


# --- Credentials -----------------------------------------------------------------------------------------------------


async def test_user_and_password_of_the_address_go_as_basic_auth_over_both_ways(server: SimulatedServer) -> None:
    door = Doorkeeper(server.port, {"Authorization": "Basic " + base64.b64encode(b"user:p:ss@word").decode()})
    async with answering(door.handle) as url:
        with_auth = url.replace("http://", "http://user:p%3Ass%40word@")
        async with acomfy.Client(with_auth, reconnect_delays=quick_delays) as client:
            assert len((await client.run(streamed())).images) == 1
            result = await client.run(saved(3))
            assert color_of(await result.images[0].read()) == 3
            assert client.api.url == url
    assert {"/ws", "/prompt", "/view"} <= {path for path, _ in door.asked}


async def test_headers_go_over_both_ways(server: SimulatedServer) -> None:
    headers = {"Authorization": "Bearer abc", "X-Token": "ü".encode().decode("latin-1")}
    door = Doorkeeper(server.port, {"Authorization": "Bearer abc"})
    async with answering(door.handle) as url, acomfy.Client(url, headers=headers) as client:
        assert len((await client.run(streamed())).images) == 1
    assert {"/ws", "/prompt"} <= {path for path, _ in door.asked}
    assert all("Origin" not in sent for _, sent in door.asked)


def test_credentials_both_in_the_address_and_in_the_headers_are_refused_at_once() -> None:
    for name in ("Authorization", "authorization"):
        with pytest.raises(ValueError, match="Authorization") as caught:
            acomfy.Client(f"http://user:{CANARY}@host", headers={name: f"Bearer {CANARY}"})
        assert CANARY not in str(caught.value)


async def everything_that_fails(url: str, headers: dict[str, str]) -> list[BaseException]:
    """Use a client of a server in every way, and give the errors."""
    times: dict[str, Any] = {"connect_timeout": 50 * MS, "read_timeout": 50 * MS, "cancel_timeout": 50 * MS}
    async with acomfy.Client(url, headers=headers, reconnect_delays=quick_delays, **times) as client:
        api = client.api

        async def outcome(call: Callable[[], Awaitable[object]]) -> object:
            try:
                async with asyncio.timeout(300 * MS):
                    return await call()
            except (acomfy.AcomfyError, TimeoutError) as exc:
                return exc

        logging.getLogger("acomfy").info("%r %r", client, api)
        outcomes = await asyncio.gather(
            *map(outcome, (api.get_queue, api.get_features, api.get_object_info, client.wait_ready)),
            *map(outcome, (lambda: client.run(saved()), lambda: client.run(streamed()))),
            *map(outcome, (lambda: client.attach(UNKNOWN_ID), lambda: api.post_prompt(b"{}"))),
        )
    return [outcome for outcome in outcomes if isinstance(outcome, BaseException)]


@pytest.mark.parametrize("fault", ["refused", "401", "redirect", "html", "silent", "cut", "tls"])
async def test_no_error_log_or_repr_shows_a_secret(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    redirect = f"/login?token={CANARY}"
    servers = {
        "401": lambda: answering(respond(401, HTML)),
        "redirect": lambda: answering(respond(302, "", Location=redirect)),
        "html": lambda: answering(respond(200, HTML)),
        "silent": lambda: saying(b"", then_wait=True),
        "cut": lambda: saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
    }
    async with servers.get(fault, lambda: saying(b""))() as url:
        port = url.rpartition(":")[2]
        if fault == "refused":
            port = "9"
        scheme = "https" if fault == "tls" else "http"
        errors = await asyncio.gather(
            everything_that_fails(f"{scheme}://user:{CANARY}@127.0.0.1:{port}/p?token={CANARY}", {}),
            everything_that_fails(
                f"{scheme}://127.0.0.1:{port}", {"Authorization": f"Bearer {CANARY}", "X-Key": CANARY}
            ),
        )
        assert len(errors[0]) >= 6 <= len(errors[1])
        for exc in errors[0] + errors[1]:
            assert CANARY not in "".join(traceback.format_exception(exc)) + repr(exc) + repr(vars(exc))
    assert CANARY not in caplog.text
    assert f"127.0.0.1:{port}" in caplog.text


# --- TLS -------------------------------------------------------------------------------------------------------------


async def test_a_self_signed_server_needs_its_certificate_or_no_check() -> None:
    async with SimulatedServer() as server:
        door = Doorkeeper(server.port, {})
        async with answering(door.handle, server_tls()) as url:
            for option in (False, ssl.create_default_context(cafile=PEM)):
                async with acomfy.Client(url, ssl=option, reconnect_delays=quick_delays) as client:
                    assert len((await client.run(streamed())).images) == 1
            async with api_of(url) as api:
                with pytest.raises(acomfy.ServerUnreachable, match="(?i)certificate") as caught:
                    await api.post_prompt(b"{}")
                assert caught.value.maybe_sent is False
                with pytest.raises(acomfy.ServerUnreachable, match="(?i)certificate"):
                    await open_socket(api)

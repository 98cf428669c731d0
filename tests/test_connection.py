"""The one WebSocket: negotiation, loss, reconnects, heartbeats, and what must not bring it down."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import acomfy
from acomfy import connection as connection_module
from acomfy.connection import Connection, Socket, backoff
from acomfy.simulator import SimulatedServer
from acomfy.transport import Transport

from .conftest import MS
from .graphs import gated, streamed
from .other_servers import answering, respond
from .shell import Gates, client, eventually, gates, quick_client, quick_delays, server, tasks_of_the_library
from .tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

STATUS = json.dumps({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "me"}})


class Rig:
    """A connection that runs, and all that it told."""

    def __init__(self, transport: Transport, session: aiohttp.ClientSession, options: dict[str, Any]) -> None:
        self.texts: list[bytes] = []
        self.binaries: list[bytes] = []
        self.tries = 0
        self.asked = 0
        self.opened = 0
        self.lost = 0
        self._transport = transport
        self._session = session
        self._heartbeat = options.pop("heartbeat", None)
        self._max_message_size = options.pop("max_message_size", 1 << 30)
        arguments: dict[str, Any] = {
            "open_socket": self._open_socket,
            "ask": self._ask,
            "receive_text": self.texts.append,
            "receive_binary": self.binaries.append,
            "on_open": self._on_open,
            "on_lost": self._on_lost,
            "delays": quick_delays,
        }
        self.connection = Connection(**{**arguments, **options})
        self.connection.close_timeout = 50 * MS

    async def _open_socket(self) -> Any:
        self.tries += 1
        return await self._transport.open_socket(
            self._session, "me", heartbeat=self._heartbeat, max_message_size=self._max_message_size
        )

    async def _ask(self) -> object:
        self.asked += 1
        return await self._transport.get_object("/prompt")

    def _on_open(self) -> None:
        assert self.connection.live
        self.opened += 1

    def _on_lost(self) -> None:
        assert not self.connection.live
        self.lost += 1

    async def until(self, *, opened: int | None = None, lost: int | None = None) -> None:
        """Wait until so many connections were opened, or lost."""
        await eventually(lambda: opened in (None, self.opened) and lost in (None, self.lost))

    async def live(self) -> None:
        """Wait until the connection is live."""
        await eventually(lambda: self.connection.live)


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Rig]:
    read_timeout = options.pop("read_timeout", 30.0)
    socket_class = options.pop("socket_class", Socket)
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, ws_response_class=socket_class) as own,
        aiohttp.ClientSession() as session,
    ):
        rig = Rig(Transport(url, lambda: session, read_timeout=read_timeout), own, options)
        running = asyncio.create_task(rig.connection.run())
        try:
            yield rig
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            assert not rig.connection.live
            assert tasks_of_the_library() == []


Script = Callable[[web.WebSocketResponse], Awaitable[None]]


class ScriptedSockets:
    """A server that lets a script talk on each WebSocket, and counts what is open."""

    def __init__(self, script: Script, **options: Any) -> None:
        self.script = script
        self.options = options
        self.client_ids: list[str] = []
        self.close_codes: list[int | None] = []
        self.open = 0
        self.most_open = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.path.endswith("/ws"):
            return web.json_response({"exec_info": {"queue_remaining": 0}})
        socket = web.WebSocketResponse(**self.options)
        await socket.prepare(request)
        self.client_ids.append(request.query["clientId"])
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.script(socket)
        finally:
            self.open -= 1
            self.close_codes.append(socket.close_code)
        return socket


def forever() -> Iterator[float]:
    return itertools.repeat(3600.0)


async def greet(socket: web.WebSocketResponse) -> None:
    """Say what ComfyUI says first, and listen to the end."""
    await socket.send_str(STATUS)
    async for _ in socket:
        pass


# --- Negotiation -----------------------------------------------------------------------------------------------------


async def test_the_flags_are_the_first_message_of_every_connection() -> None:
    first: asyncio.Queue[Any] = asyncio.Queue()

    async def script(socket: web.WebSocketResponse) -> None:
        first.put_nowait(await socket.receive_json())
        await socket.send_str(STATUS)
        await socket.close()

    async with answering(ScriptedSockets(script).handle) as url, connected(url):
        for _ in range(3):
            message = await first.get()
            assert message == {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


@pytest.mark.parametrize(
    "status",
    [
        STATUS,
        STATUS.replace(" ", ""),
        json.dumps({"data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "me"}, "type": "status"}),
    ],
)
async def test_a_connection_is_live_from_the_first_status_on_and_not_before(status: str) -> None:
    go_on = asyncio.Event()

    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str('{"type": "crystools.monitor", "data": {"status": "fine"}}')
        await socket.send_str('{"type": "b", "status": 1, "data": {"status": "status"}}')
        await socket.send_str('"status"')
        await socket.send_bytes(b"\x00\x00\x00\x01\x00\x00\x00\x01x")
        await go_on.wait()
        for _ in range(3):
            await socket.send_str(status)
        await greet(socket)

    async with answering(ScriptedSockets(script).handle) as url, connected(url) as rig:
        waiting = asyncio.create_task(rig.connection.wait_live())
        await eventually(lambda: bool(rig.binaries))
        assert len(rig.texts) == 3
        assert not rig.connection.live and not waiting.done()
        go_on.set()
        await waiting
        await eventually(lambda: len(rig.texts) == 7)
        assert rig.opened == 1


async def test_many_wait_for_one_connection_and_may_give_up(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy:
        proxy.refusing = True
        async with connected(proxy.url) as rig:
            waiting = [asyncio.create_task(rig.connection.wait_live()) for _ in range(10)]
            await eventually(lambda: rig.tries >= 3)
            waiting.pop().cancel()
            proxy.refusing = False
            async with asyncio.timeout(5000 * MS):
                await asyncio.gather(*waiting)


# --- Losing it and opening it again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["close", "abort", "half a frame", "nonsense"])
async def test_it_is_opened_again_under_the_same_client_id_however_it_ended(ending: str) -> None:
    end = asyncio.Event()

    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str(STATUS)
        await end.wait()
        end.clear()
        transport = socket._req.transport if socket._req is not None else None
        assert transport is not None
        if ending == "close":
            await socket.close(code=1012)
        elif ending == "abort":
            transport.abort()
        else:
            transport.write(b"\x81\x7e\x10\x00{" if ending == "half a frame" else b"\xff\xff\xff\xff\xff")
            transport.close() if ending == "half a frame" else await greet(socket)

    sockets = ScriptedSockets(script)
    async with answering(sockets.handle) as url, connected(url) as rig:
        for times in range(1, 5):
            await rig.live()
            assert (rig.opened, rig.lost) == (times, times - 1)
            end.set()
            await rig.until(lost=times)
        await rig.live()
    assert sockets.client_ids == ["me"] * 5
    assert sockets.most_open == 1


async def test_tries_come_after_the_given_delays_which_begin_anew_after_a_connection_that_held(
    server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[float]] = []

    def delays() -> Iterator[float]:
        begun.append([])
        for delay in itertools.chain([0.0, 5 * MS, 10 * MS], itertools.repeat(15 * MS)):
            begun[-1].append(delay)
            yield delay

    async with TcpProxy(server.port) as proxy:
        proxy.refusing = True
        async with connected(proxy.url, delays=delays) as rig:
            await eventually(lambda: bool(begun) and len(begun[0]) == 5)
            assert begun == [[0.0, 5 * MS, 10 * MS, 15 * MS, 15 * MS]]
            proxy.refusing = False
            await rig.live()
            tried = len(begun[0])
            proxy.cut()  # at once: nothing held yet
            await eventually(lambda: rig.lost == 1)
            await rig.live()
            assert len(begun) == 1 and len(begun[0]) == tried + 1
            monkeypatch.setattr(connection_module, "_STEADY", 0.0)
            proxy.cut()
            await eventually(lambda: rig.lost == 2)
            await rig.live()
            assert begun[1:] == [[0.0]]


async def test_when_the_given_delays_end_the_last_one_goes_on(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy:
        proxy.refusing = True
        async with connected(proxy.url, delays=[0.0, MS].__iter__) as rig:
            await eventually(lambda: rig.tries > 5)
            proxy.refusing = False
            await rig.live()


async def test_hurrying_ends_the_wait_between_two_tries(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy:
        proxy.refusing = True
        async with connected(proxy.url, delays=forever) as rig:
            await eventually(lambda: rig.tries == 1)
            rig.connection.hurry()
            await eventually(lambda: rig.tries == 2)
            proxy.refusing = False
            rig.connection.hurry()
            await rig.live()


async def test_hurrying_during_a_try_has_another_follow_at_once(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy:
        proxy.on_link = lambda link: link.black_hole()
        async with connected(proxy.url, delays=forever) as rig:
            await eventually(lambda: len(proxy.links) == 1)
            rig.connection.hurry()
            proxy.on_link = lambda link: None
            proxy.cut()
            await rig.live()


@pytest.mark.parametrize("status", [403, 404, 502])
async def test_a_refusal_is_told_once_and_ends_when_the_server_accepts(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "acomfy")
    refusing = True
    tries = 0
    sockets = ScriptedSockets(greet)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal tries
        tries += 1
        return await (respond(status)(request) if refusing else sockets.handle(request))

    async with answering(handler) as url, connected(url) as rig:
        async with asyncio.timeout(5000 * MS):
            await rig.connection.wait_live()
        assert not rig.connection.live
        assert rig.connection.refusal is not None and rig.connection.refusal.status == status
        await eventually(lambda: tries > 5)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"{url.replace('http', 'ws')}/ws was answered with {status}" in caplog.text.replace("GET http", "GET ws")
        refusing = False
        await rig.live()
        assert rig.connection.refusal is None
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_a_server_that_cannot_be_reached_is_told_once(
    server: SimulatedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "acomfy")
    async with TcpProxy(server.port) as proxy:
        proxy.refusing = True
        async with connected(proxy.url) as rig:
            await eventually(lambda: rig.tries > 6)
            assert rig.connection.refusal is None
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            proxy.refusing = False
            await rig.live()
            assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_reopening_closes_the_old_socket_before_the_new_one_is_opened(server: SimulatedServer) -> None:
    sockets = ScriptedSockets(greet)
    async with answering(sockets.handle) as url, connected(url) as rig:
        for times in range(1, 11):
            await rig.live()
            rig.connection.reopen("for a test")
            rig.connection.reopen("twice is once")
            assert not rig.connection.live
            await rig.until(opened=times + 1)
    assert sockets.most_open == 1
    assert sockets.close_codes == [1000] * 11


async def test_reopening_waits_for_the_server_to_let_the_old_socket_go() -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await greet(socket)  # to the close frame, which is not answered yet
        await asyncio.sleep(20 * MS)
        assert sockets.open == 1
        await socket.close()

    sockets = ScriptedSockets(script, autoclose=False)
    async with answering(sockets.handle) as url, connected(url) as rig:
        rig.connection.close_timeout = 3600.0
        for times in range(1, 4):
            await rig.live()
            rig.connection.reopen("for a test")
            await rig.until(opened=times + 1)
    assert sockets.most_open == 1
    assert sockets.close_codes[:3] == [1000] * 3


async def test_what_a_closing_socket_still_says_is_not_handed_on() -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        number = len(sockets.client_ids)
        await socket.send_str(STATUS)
        with suppress(ConnectionError):
            while not socket.closed:
                await socket.send_str(f'{{"type": "status", "number": {number}}}')
                await asyncio.sleep(0)

    sockets = ScriptedSockets(script)
    async with answering(sockets.handle) as url, connected(url) as rig:
        for times in range(1, 6):
            await rig.live()
            await eventually(lambda: len(rig.texts) > 20)
            rig.connection.reopen("for a test")
            rig.texts.clear()
            await rig.until(opened=times + 1)
            assert not any(f'"number": {times}}}'.encode() in text for text in rig.texts)


async def test_a_reopened_connection_is_not_deaf(server: SimulatedServer) -> None:
    async with quick_client(server, silence=60.0) as client:
        for color in range(20):
            assert len((await client.run(streamed(color))).images) == 1
            client._connection.reopen("for a test")
            await client._connection.wait_live()
            assert len(server.sockets.open) == 1
        assert server.requests["GET", "/history/{prompt_id}"] == 0


async def test_reopening_without_a_socket_does_nothing(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy:
        proxy.refusing = True
        async with connected(proxy.url) as rig:
            rig.connection.reopen("nothing to close")
            await eventually(lambda: rig.tries > 2)
            assert rig.lost == 0


# --- The end ---------------------------------------------------------------------------------------------------------


async def test_cancelling_it_closes_the_socket_properly() -> None:
    sockets = ScriptedSockets(greet)
    async with answering(sockets.handle) as url:
        async with connected(url) as rig:
            await rig.live()
        await eventually(lambda: sockets.close_codes == [1000])
        assert rig.lost == 1


async def test_cancelling_it_takes_no_longer_than_the_close_timeout(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy, asyncio.timeout(5000 * MS):
        async with connected(proxy.url) as rig:
            await rig.live()
            proxy.black_hole()
            rig.connection.close_timeout = 100 * MS
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2000 * MS


async def test_cancelling_it_closes_a_dead_socket_too(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy:
        async with connected(proxy.url, heartbeat=20 * MS) as rig:
            await rig.live()
            rig.connection.close_timeout = 3600.0
            proxy.on_link = lambda link: link.black_hole()
            proxy.black_hole()
            await eventually(lambda: rig.asked == 1)
        gc.collect()  # complains of what was not closed
        assert rig.lost == 1


async def test_a_socket_that_is_being_closed_is_not_asked_after() -> None:
    done = asyncio.Event()

    async def script(socket: web.WebSocketResponse) -> None:
        await greet(socket)  # to the close frame, which is not answered
        await socket.send_str(STATUS)  # begins the heartbeat anew
        await done.wait()

    sockets = ScriptedSockets(script, autoclose=False, autoping=False)
    async with answering(sockets.handle) as url:
        async with connected(url, heartbeat=40 * MS) as rig:
            await rig.live()
            rig.connection.close_timeout = 500 * MS
        assert rig.asked == 0
        done.set()


async def test_cancelling_it_waits_until_its_question_is_taken_back(server: SimulatedServer) -> None:
    taken_back = asyncio.Event()
    asked = asyncio.Event()

    async def ask() -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1 * MS)
            taken_back.set()

    async with TcpProxy(server.port) as proxy:
        async with connected(proxy.url, heartbeat=20 * MS, ask=ask) as rig:
            await rig.live()
            proxy.black_hole()
            await asked.wait()
        assert taken_back.is_set()


@pytest.mark.parametrize("stage", ["connecting", "waiting", "closing"])
async def test_it_may_be_cancelled_at_any_stage(server: SimulatedServer, stage: str) -> None:
    async with TcpProxy(server.port) as proxy, asyncio.timeout(5000 * MS):
        if stage == "connecting":
            proxy.on_link = lambda link: link.black_hole()
        proxy.refusing = stage == "waiting"
        async with connected(proxy.url, delays=forever) as rig:
            if stage == "connecting":
                await eventually(lambda: bool(proxy.links))
            elif stage == "waiting":
                await eventually(lambda: rig.tries == 1)
            else:
                await rig.live()
                rig.connection.close_timeout = 3600.0
                proxy.black_hole()
                rig.connection.reopen("for a test")
                await eventually(lambda: rig.lost == 1)


# --- Heartbeat -------------------------------------------------------------------------------------------------------


async def test_a_half_open_connection_is_found_while_http_answers(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy, connected(proxy.url, heartbeat=40 * MS) as rig:
        await rig.live()
        rig.connection.close_timeout = 3600.0  # for a dead socket there is none
        proxy.black_hole(lambda link: link.is_websocket)
        await eventually(lambda: rig.opened == 2)
        assert rig.lost == 1
        await eventually(lambda: server.sockets.by_sid.keys() == {"me"})


async def test_a_stalled_server_is_not_taken_for_dead(server: SimulatedServer) -> None:
    async with TcpProxy(server.port) as proxy, connected(proxy.url, heartbeat=40 * MS, read_timeout=50 * MS) as rig:
        await rig.live()
        proxy.black_hole()
        proxy.on_link = lambda link: link.black_hole()
        await eventually(lambda: rig.asked == 3)
        assert (rig.opened, rig.lost, rig.connection.live) == (1, 0, True)
        proxy.on_link = lambda link: None
        proxy.resume()
        heard = len(rig.texts)
        server.sockets.send('{"type": "hello", "data": {}}')
        await eventually(lambda: len(rig.texts) > heard)
        assert (rig.opened, rig.lost, rig.connection.live) == (1, 0, True)


async def test_a_socket_that_sends_but_does_not_pong_is_alive() -> None:
    done = asyncio.Event()

    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str(STATUS)
        while not done.is_set():
            await socket.send_str('{"type": "hello", "data": {}}')
            await asyncio.sleep(5 * MS)

    sockets = ScriptedSockets(script, autoping=False)
    async with answering(sockets.handle) as url, connected(url, heartbeat=40 * MS) as rig:
        await eventually(lambda: len(rig.texts) > 50)
        assert (rig.opened, rig.lost) == (1, 0)
        done.set()


@pytest.mark.parametrize("pause", [0, 100], ids=["a quick loop", "a loop that the user blocks"])
async def test_a_socket_that_is_quiet_but_pongs_is_alive(pause: int) -> None:
    pings = 0

    async def script(socket: web.WebSocketResponse) -> None:
        nonlocal pings
        await socket.send_str(STATUS)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.PING:
                pings += 1
                time.sleep(pause * MS)  # noqa: ASYNC251  # client and server share the loop, which is not to run
                await socket.pong(message.data)

    sockets = ScriptedSockets(script, autoping=False)
    async with answering(sockets.handle) as url, connected(url, heartbeat=40 * MS) as rig:
        await eventually(lambda: pings == 4)
        assert (rig.opened, rig.lost, rig.connection.live) == (1, 0, True)


async def test_a_missed_pong_on_a_session_of_the_callers_ends_the_connection(server: SimulatedServer) -> None:
    options: dict[str, Any] = {"heartbeat": 40 * MS, "socket_class": aiohttp.ClientWebSocketResponse}
    async with TcpProxy(server.port) as proxy, connected(proxy.url, **options) as rig:
        await rig.live()
        proxy.black_hole(lambda link: link.is_websocket)
        await eventually(lambda: rig.opened == 2)


async def test_the_hooks_of_aiohttp_that_the_socket_overrides_are_there_and_are_called(server: SimulatedServer) -> None:
    for name in ("_pong_not_received", "_reset_heartbeat"):
        assert callable(getattr(aiohttp.ClientWebSocketResponse, name, None)), f"aiohttp renamed {name}"
        assert name in vars(Socket)
    async with TcpProxy(server.port) as proxy, asyncio.timeout(5000 * MS):
        options: dict[str, Any] = {"ws_response_class": Socket}
        async with aiohttp.ClientSession(**options) as session:
            socket = await session.ws_connect(f"{proxy.url}/ws?clientId=me", heartbeat=40 * MS)
            assert isinstance(socket, Socket)
            missed = asyncio.Event()
            socket.on_silence = missed.set
            await socket.receive()
            proxy.black_hole()
            reading = asyncio.create_task(socket.receive())
            await missed.wait()
            assert socket.silent and not socket.closed and not reading.done()
            missed.clear()
            socket.listen_again()
            assert not socket.silent
            await missed.wait()
            assert socket.silent
            proxy.resume()
            server.sockets.send('{"type": "hello", "data": {}}')
            await reading
            await eventually(lambda: not socket.silent)
            await socket.close()


# --- Frames ----------------------------------------------------------------------------------------------------------


async def test_frames_come_as_bytes_and_in_order() -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str(STATUS)
        for number in range(100):
            await socket.send_str(f"ü{number}")
            await socket.send_bytes(number.to_bytes(4, "big"))
        await greet(socket)

    async with answering(ScriptedSockets(script).handle) as url, connected(url) as rig:
        await eventually(lambda: len(rig.texts) == 102)
        assert rig.texts[1:-1] == [f"ü{number}".encode() for number in range(100)]
        assert rig.binaries == [number.to_bytes(4, "big") for number in range(100)]


async def test_a_frame_of_a_hundred_megabytes_arrives_whole() -> None:
    frame = bytes(range(256)) * (100 * 2**20 // 256)

    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str(STATUS)
        await socket.send_bytes(frame)
        await greet(socket)

    async with answering(ScriptedSockets(script).handle) as url, connected(url) as rig:
        await eventually(lambda: bool(rig.binaries), within=30_000 * MS)
        assert rig.binaries[0] == frame
        assert rig.lost == 0


async def test_an_oversize_frame_closes_with_1009_and_the_connection_is_opened_again() -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str(STATUS)
        if len(sockets.client_ids) == 1:
            await socket.send_bytes(b"x" * 2001)
        else:
            await socket.send_bytes(b"x" * 1999)
        await greet(socket)

    sockets = ScriptedSockets(script)
    async with answering(sockets.handle) as url, connected(url, max_message_size=2000) as rig:
        await eventually(lambda: bool(rig.binaries))
        assert rig.binaries == [b"x" * 1999]
        assert (rig.opened, rig.lost) == (2, 1)
        assert sockets.close_codes == [1009]


async def test_text_that_is_no_utf8_is_handed_on_as_it_came() -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str(STATUS)
        await socket.send_frame(b"\xff\xfe", aiohttp.WSMsgType.TEXT)
        await greet(socket)

    async with answering(ScriptedSockets(script).handle) as url, connected(url) as rig:
        await eventually(lambda: len(rig.texts) == 3)
        assert rig.texts[1] == b"\xff\xfe"
        assert rig.lost == 0


GARBAGE: tuple[str | bytes, ...] = (
    *("", "no JSON", "[]", "7", "{}", '{"type": 5}', '{"type": "executed", "data": null}', "[" * 50_000),
    '{"type": "executing", "data": {"prompt_id": [], "node": {}}}',
    *(b"", b"\x00", b"\x00\x00\x00\x01", b"\x00\x00\x00\x04\xff\xff\xff\xff{}"),
)
UNKNOWN: tuple[str | bytes, ...] = ('{"type": "status", "data": {"status": 3}}', b"\xff\xff\xff\xffwhat")


async def test_garbage_frames_are_counted_and_survived(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, caplog: pytest.LogCaptureFixture
) -> None:
    job = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    for frame in UNKNOWN + GARBAGE:
        server.sockets.send(frame)
    await eventually(lambda: client._router.unreadable == len(GARBAGE))
    gates.open["a"].set()
    assert len((await job).images) == 1
    assert len(server.sockets.open) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_exception_in_a_receiver_is_logged_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[bytes] = []

    def receive(frame: bytes) -> None:
        heard.append(frame)
        if b"hello" in frame:
            raise ZeroDivisionError("a bug")

    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_str(STATUS)
        for _ in range(3):
            await socket.send_str('{"type": "hello"}')
        await greet(socket)

    async with answering(ScriptedSockets(script).handle) as url, connected(url, receive_text=receive) as rig:
        await eventually(lambda: len(heard) == 5)
        assert (rig.opened, rig.lost) == (1, 0)
    assert caplog.text.count("ZeroDivisionError: a bug") == 3


async def test_an_exception_in_a_callback_costs_the_connection_and_not_the_loop(
    server: SimulatedServer, caplog: pytest.LogCaptureFixture
) -> None:
    opened = []

    def on_open() -> None:
        opened.append(1)
        if len(opened) == 1:
            raise ZeroDivisionError("a bug")

    async with connected(server.url, on_open=on_open):
        await eventually(lambda: len(opened) == 2)
    assert caplog.text.count("ZeroDivisionError: a bug") == 1


# --- Back-off --------------------------------------------------------------------------------------------------------


def test_the_delays_double_up_to_a_limit_and_are_jittered() -> None:
    series = [list(itertools.islice(backoff(), 2000)) for _ in range(20)]
    for delays in series:
        assert 0.0 <= delays[0] <= 0.1
        for number, delay in enumerate(delays[1:]):
            longest = min(0.5 * 2.0 ** min(number, 50), 30.0)
            assert longest / 2 <= delay <= longest
    for place in (0, 1, 5, 1999):
        assert len({delays[place] for delays in series}) == 20


def test_the_delays_can_be_given_other_limits() -> None:
    delays = list(itertools.islice(backoff(first=0.01, longest=0.04), 100))
    assert delays[0] <= 0.002
    assert max(delays) <= 0.04 and min(delays[5:]) >= 0.02

"""What stands before a ComfyUI server: a front door that wants credentials, and proxies on the way."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

PEM = Path(__file__).parent / "localhost.pem"


def server_tls() -> ssl.SSLContext:
    """Make the TLS of a server with a certificate that nobody knows."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(PEM)
    return tls


class Doorkeeper:
    """A front door to a server that lets in who brings what is wanted, HTTP and WebSocket alike.

    Args:
        port: The server's.
        wanted: Headers that every request must have.
        admits: Whether a request may come in besides that.

    Attributes:
        asked: Path and headers of every request.
    """

    def __init__(
        self, port: int, wanted: dict[str, str], admits: Callable[[web.BaseRequest], bool] = lambda request: True
    ) -> None:
        self.port = port
        self.wanted = wanted
        self.admits = admits
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.queries: list[dict[str, str]] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append((request.path, dict(request.headers)))
        self.queries.append(dict(request.query))
        lacks = any(request.headers.get(name) != value for name, value in self.wanted.items())
        if lacks or not self.admits(request):
            return web.Response(status=401, text="who are you?")
        url = f"http://127.0.0.1:{self.port}{request.path_qs}"
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            if request.path == "/ws":
                async with session.ws_connect(url, max_msg_size=0) as upstream:
                    return await self._carry(request, upstream)
            kind = {"Content-Type": request.headers["Content-Type"]} if "Content-Type" in request.headers else None
            async with session.request(request.method, url, data=await request.read(), headers=kind) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    async def _carry(self, request: web.BaseRequest, upstream: Any) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        up = asyncio.create_task(self._pump(socket, upstream))
        await self._pump(upstream, socket)
        up.cancel()
        return socket

    async def _pump(self, source: Any, target: Any) -> None:
        async for message in source:
            send = target.send_str if message.type is aiohttp.WSMsgType.TEXT else target.send_bytes
            await send(message.data)
        await target.close()


class ForwardProxy:
    """An http proxy: it tunnels for CONNECT, and passes on requests that name a whole address.

    Attributes:
        heads: The first request line and headers of every connection.
        password: What ``Proxy-Authorization`` must be; None: anybody may pass.
    """

    def __init__(self, password: str | None) -> None:
        self.password = password
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the one who left, or the test that is over
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.heads.append((line, headers))
        method, target, _ = line.split(" ")
        if self.password is not None and headers.get("proxy-authorization") != self.password:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        host, port = target.split("/")[2 if "//" in target else 0].split(":")
        upstream_reader, upstream = await asyncio.open_connection(host, int(port))
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                upstream.write(head)
            up = asyncio.create_task(_pump(reader, upstream))
            await _pump(upstream_reader, writer)
            up.cancel()
        finally:
            upstream.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ForwardProxy]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(1 << 16):
        target.write(data)
        await target.drain()

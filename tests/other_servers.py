"""Servers that are no ComfyUI, for the errors that they make."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

HTML = "<html><head><title>Please log in</title></head></html>"


@asynccontextmanager
async def answering(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that answers every request by one handler; gives its address."""
    runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def respond(status: int, text: str = "", content_type: str = "text/html", **headers: str) -> Handler:
    """A handler that gives everybody the same answer."""

    async def handler(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(status=status, text=text, content_type=content_type, headers=headers)

    return handler


@asynccontextmanager
async def saying(data: bytes, *, then_wait: bool = False) -> AsyncIterator[str]:
    """A server that says these bytes to everybody once it was sent something, and hangs up, or stays silent."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.append(task)
        try:
            await reader.read(1 << 16)
            writer.write(data)
            if then_wait:
                await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

"""A TCP proxy between a client and a server, to cut, stall and slow real connections at any byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

_CHUNK = 1 << 16


class Link:
    """One connection through the proxy.

    Attributes:
        head: The first bytes that the client sent, which tell what the connection is used for.
        delay: Seconds that every piece of data is kept back, in either direction.
    """

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.head = b""
        self.delay = 0.0
        self._writers = client, server
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._left: int | None = None

    @property
    def is_websocket(self) -> bool:
        return self.head.startswith(b"GET ") and b"/ws?" in self.head.split(b"\r\n", 1)[0]

    @property
    def is_open(self) -> bool:
        return not any(writer.is_closing() for writer in self._writers)

    def cut(self) -> None:
        """End it at once: both sides get a reset, or an end of file in the middle of a message."""
        for writer in self._writers:
            writer.transport.abort()

    def cut_after(self, size: int) -> None:
        """Cut it once so many more bytes went from the server to the client."""
        self._left = size

    def black_hole(self) -> None:
        """Let nothing through any more, in either direction, and tell nobody: not even that a side closed."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let everything through again, what was kept back first."""
        self._flowing.set()

    async def pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Carry bytes one way, to the end."""
        downstream = target is self._writers[0]
        try:
            while data := await source.read(_CHUNK):
                if not downstream and not self.head:
                    self.head = data[:4096]
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._flowing.wait()
                if downstream and self._left is not None:
                    data, self._left = data[: self._left], self._left - len(data)
                target.write(data)
                await target.drain()
                if self._left is not None and self._left <= 0:
                    break
            await self._flowing.wait()
        except ConnectionError:
            pass
        finally:
            for writer in self._writers:
                writer.close()


class TcpProxy:
    """A proxy on a free port of loopback; what it does to a connection can be said for one or for all.

    ::

        async with TcpProxy(server.port) as proxy:
            async with acomfy.Client(proxy.url) as client: ...
                proxy.cut(lambda link: link.is_websocket)

    Attributes:
        links: All connections, in the order in which they were made; those that ended included.
        refusing: While True, new connections are ended at once.
        on_link: Called with each new connection before a byte goes through.
    """

    def __init__(self, port: int) -> None:
        self.links: list[Link] = []
        self.refusing = False
        self.on_link: Callable[[Link], None] = lambda link: None
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def open_links(self, which: Callable[[Link], bool] = lambda link: True) -> list[Link]:
        """Give the connections that stand."""
        return [link for link in self.links if link.is_open and which(link)]

    def cut(self, which: Callable[[Link], bool] = lambda link: True) -> None:
        for link in self.open_links(which):
            link.cut()

    def black_hole(self, which: Callable[[Link], bool] = lambda link: True) -> None:
        for link in self.open_links(which):
            link.black_hole()

    def resume(self) -> None:
        for link in self.links:
            link.resume()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy is being closed; asyncio's streams complain of a handler that was cancelled
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            return
        link = Link(writer, server_writer)
        self.links.append(link)
        self.on_link(link)
        try:
            await asyncio.gather(link.pump(reader, server_writer), link.pump(server_reader, writer))
        finally:
            server_writer.close()

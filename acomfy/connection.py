"""The one WebSocket: open it, negotiate, read it, notice its death, open it again.

Theory of operation. `Connection.run` is one loop for the first connect and every reconnect: open, send our feature
flags as the first message (``supports_preview_metadata`` makes pictures carry their prompt_id), then hand on every
frame, without waiting for anybody. The server has registered the socket when its first ``status``
arrives; from then on the connection is *live*, and nothing sent for our client id is missed until it ends.

The same client id is kept for all connections, so that prompts in flight go on being heard. ComfyUI then has a trap
(server.py websocket_handler, all versions to 0.38): when the handler of an old socket ends after a new one was
registered, it unregisters the new one, which stays open and silent. So the old socket is closed before the next is
opened, each on a TCP connection of its own; what goes deaf all the same is noticed by the watch, which calls `reopen`.

A missed pong is no proof of death: a server that loads a model stops its event loop for tens of seconds. It is a
question put to HTTP, and the socket is closed only if HTTP answers while the socket still says nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TypeAlias

import aiohttp

from . import frames
from .errors import AcomfyError, HTTPError, ProtocolError, ServerError

logger = logging.getLogger(__name__)

FLAGS = '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'
_WARN_AFTER = 3
_STEADY = 5.0

Frame: TypeAlias = bytes
AnySocket: TypeAlias = aiohttp.ClientWebSocketResponse[bool]


def backoff(first: float = 0.5, longest: float = 30.0) -> Iterator[float]:
    """Yield the delays before each try to connect again, in seconds: doubling, with jitter, the first nearly none.

    Jitter keeps many clients from coming back to a restarted server in the same moment.
    """
    yield random.uniform(0.0, first / 5)
    for exponent in itertools.count():
        yield random.uniform(0.5, 1.0) * min(first * 2.0 ** min(exponent, 30), longest)


class Socket(aiohttp.ClientWebSocketResponse[bool]):
    """aiohttp's WebSocket, but a missed pong is reported instead of taken for the end.

    Attributes:
        silent: True after a missed pong, until anything arrives.
        on_silence: Called at a missed pong; None: aiohttp closes the socket, as it does without this class.
    """

    silent = False
    on_silence: Callable[[], None] | None = None

    def _pong_not_received(self) -> None:
        if self.on_silence is None:
            super()._pong_not_received()
        else:
            self.silent = True
            self.on_silence()

    def _reset_heartbeat(self) -> None:
        self.silent = False
        super()._reset_heartbeat()

    def listen_again(self) -> None:
        """Give a silent socket another heartbeat's time."""
        self._reset_heartbeat()


class Connection:
    """The client's WebSocket, kept open.

    Args:
        open_socket: Opens a WebSocket; raises `ServerError`.
        ask: Asks the server anything by HTTP; raises `ServerError` when it does not answer.
        receive_text: Takes each text frame, as bytes.
        receive_binary: Takes each binary frame.
        on_open: Called when a connection went live.
        on_lost: Called when a connection ended, however: frames may be missed from now on.
        delays: Makes the delays between tries to connect, in seconds, of which the last one goes on; they begin anew
            after a connection that held.
    """

    def __init__(
        self,
        *,
        open_socket: Callable[[], Awaitable[AnySocket]],
        ask: Callable[[], Awaitable[object]],
        receive_text: Callable[[Frame], None],
        receive_binary: Callable[[Frame], None],
        on_open: Callable[[], None],
        on_lost: Callable[[], None],
        delays: Callable[[], Iterator[float]] = backoff,
    ) -> None:
        self._open_socket = open_socket
        self._ask = ask
        self._receive_text = receive_text
        self._receive_binary = receive_binary
        self._on_open = on_open
        self._on_lost = on_lost
        self._new_delays = delays
        self._stop: asyncio.Future[None] | None = None
        self._doubt: asyncio.Task[None] | None = None
        self._failures = 0
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self.close_timeout = 2.0
        """Seconds that the server is given to answer the closing of a socket."""
        self.live = False
        """True while frames for our client id arrive: the first ``status`` came, and the socket did not end since."""
        self.refusal: HTTPError | None = None
        """The answer to the last try, when the server or a proxy refused the upgrade: there may be no socket at all."""

    async def run(self) -> None:
        """Keep the WebSocket open until cancelled, which closes it."""
        delays, delay = self._new_delays(), 0.0
        while True:
            self._hurry.clear()
            try:
                socket = await self._open_socket()
            except ServerError as exc:
                self._note_failure(exc)
            except Exception:  # of the caller's session or headers: prompts are followed by HTTP
                logger.exception("the WebSocket cannot be opened")
            else:
                if await self._read(socket):
                    delays = self._new_delays()
                self._hurry.clear()
            delay = next(delays, delay)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._hurry.wait()

    async def wait_live(self) -> None:
        """Wait until the connection is live, or known to be refused by the server."""
        while not self.live and self.refusal is None:
            self._changed.clear()
            await self._changed.wait()

    async def live_within(self, seconds: float) -> bool:
        """Wait as `wait_live`, but no longer than that; tell whether it is live."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait_live()
        return self.live

    def hurry(self) -> None:
        """Try to connect now instead of after the delay: the server was just heard by HTTP."""
        self._hurry.set()

    def reopen(self, reason: str) -> None:
        """Have the socket closed and opened again. Does nothing when there is none."""
        if self._stop is not None and not self._stop.done():
            logger.debug("closing the WebSocket: %s", reason)
            self.live = False
            self._stop.set_result(None)

    async def _read(self, socket: AnySocket) -> bool:
        """Read a socket to its end and close it; tell whether it held long enough for the next try to come at once."""
        loop = asyncio.get_running_loop()
        opened = loop.time()
        if isinstance(socket, Socket):
            socket.on_silence = lambda: self._question(socket)
        stop = self._stop = loop.create_future()
        pumping = asyncio.create_task(self._pump(socket, stop), name="acomfy-pump")
        try:
            await asyncio.wait([pumping, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            doubt = self._end()
            if isinstance(socket, Socket):
                socket.on_silence = None  # nobody asks any more whether it lives
            await self._close(socket, pumping)
            if doubt is not None:
                await asyncio.wait([doubt])
        if not pumping.cancelled() and (exc := pumping.exception()) is not None:
            logger.error("reading the WebSocket failed", exc_info=exc)
        return loop.time() - opened >= _STEADY

    async def _close(self, socket: AnySocket, pumping: asyncio.Task[None]) -> None:
        """Close a socket, and see that the server closed it: it is to let go of the client id before we come again."""
        if isinstance(socket, Socket) and socket.silent:
            # It is dead and will not answer. aiohttp does not wait for that after a receive() that was cancelled.
            pumping.cancel()
            await asyncio.wait([pumping])
        with suppress(TimeoutError):
            async with asyncio.timeout(self.close_timeout):
                await socket.close()
        pumping.cancel()
        await asyncio.wait([pumping])

    async def _pump(self, socket: AnySocket, stop: asyncio.Future[None]) -> None:
        """Hand on every frame until told to stop. Nothing here waits for anybody but the socket."""
        receive, stopped = socket.receive, stop.done
        text, binary = aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY
        try:
            await socket.send_str(FLAGS)
            while True:
                message = await receive()
                if stopped():
                    return
                kind = message.type
                if kind is text:
                    take = self._receive_text
                elif kind is binary:
                    take = self._receive_binary
                else:
                    logger.debug("the WebSocket ended: %s %r", kind.name, message.data or socket.close_code)
                    return
                try:
                    take(message.data)
                except Exception:  # a bug of ours in one frame must not cost the others
                    logger.exception("a frame could not be handled")
                if not self.live and kind is text:
                    self._maybe_go_live(message.data)
        except (aiohttp.ClientError, OSError) as exc:
            logger.debug("the WebSocket broke: %r", exc)

    def _maybe_go_live(self, frame: Frame) -> None:
        if not _is_status(frame):
            return  # another message slipped in before the greeting: server.py registers the socket first
        if self._failures >= _WARN_AFTER or self.refusal is not None:
            logger.info("the WebSocket is open again")
        self.live, self.refusal, self._failures = True, None, 0
        self._changed.set()
        self._on_open()

    def _end(self) -> asyncio.Task[None] | None:
        """Take the connection for ended; give the question about it that is being taken back."""
        self.live, self._stop = False, None
        doubt, self._doubt = self._doubt, None
        if doubt is not None:
            doubt.cancel()
        self._on_lost()
        return doubt

    def _note_failure(self, exc: ServerError) -> None:
        """Log one line a change of state, not one a try."""
        refused = isinstance(exc, HTTPError)
        if refused and self.refusal is None:
            logger.warning("the server has no WebSocket for us, following prompts by HTTP: %s", exc)
        self.refusal = exc if isinstance(exc, HTTPError) else None
        self._failures += 1
        if not refused and self._failures == _WARN_AFTER:
            logger.warning("the WebSocket cannot be opened, trying on: %s", exc)
        self._changed.set()

    def _question(self, socket: Socket) -> None:
        if self._doubt is None or self._doubt.done():
            self._doubt = asyncio.create_task(self._answer(socket), name="acomfy-heartbeat")

    async def _answer(self, socket: Socket) -> None:
        """Ask by HTTP whether a silent socket is dead, or its server merely busy."""
        try:
            await self._ask()
        except AcomfyError:
            socket.listen_again()  # nothing is known: the server may be stalled, or gone; HTTP decides that elsewhere
        else:
            if socket.silent:
                self.reopen("it misses pongs while HTTP answers")


def _is_status(frame: Frame) -> bool:
    try:
        return frames.parse(frame)[0] == "status"
    except ProtocolError:
        return False

"""The server's WebSockets and the one queue through which everything is sent (ComfyUI server.py).

Theory of operation. There is one socket per client id: a newer one takes the place of an older one, which stays open
and hears nothing more. When a socket's handler ends it takes the *client id* off the table, whoever holds it by then:
that is ComfyUI's bug that leaves a reconnected socket deaf, kept here on purpose. All messages go through one queue,
and each send is awaited: a client that stops reading stalls the delivery to everybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from aiohttp import WSMsgType, web

from ..events import Event, Executing, FeatureFlags, Logs, Status
from ..frames import encode

logger = logging.getLogger("acomfy.simulator")

Message: TypeAlias = tuple[Event | str | bytes, Any]
"""What is sent, an event or a whole frame, and the client id it goes to; None is everybody."""

_APART = 1e-6  # seconds: timers of one moment run in no order
_BROKEN = (ConnectionError, RuntimeError)


class Sockets:
    """Everybody who listens, by client id, and the messages that wait to be sent.

    Attributes:
        by_sid: The socket that gets a client id's messages.
        flags: The feature flags of a client id's socket.
        open: Every open socket, also those that get nothing, with its request.
        log_readers: The client ids that the log is sent to.
        logs: What was written last.
        delivering: Cleared while nothing is to be sent.
        user_wide: Every socket gets every message, as in Comfy Cloud.
        latency: Seconds that a message is on its way.
        changes: What a fault does to the messages that wait at the same time.
    """

    def __init__(
        self,
        queue_remaining: Callable[[], int],
        features: Callable[[], Mapping[str, Any]],
        changed: Callable[[], None],
        *,
        negotiates: bool = True,
    ) -> None:
        self.by_sid: dict[str, web.WebSocketResponse] = {}
        self.flags: dict[str, Any] = {}
        self.open: dict[web.WebSocketResponse, web.Request] = {}
        self.log_readers: set[str] = set()
        self.logs: deque[dict[str, str]] = deque(maxlen=300)
        self.executing_client: Any = None
        self.executing_node: str | None = None
        self._queue_remaining = queue_remaining
        self._features = features
        self._changed = changed
        self._negotiates = negotiates
        self.delivering = asyncio.Event()
        self.delivering.set()
        self.user_wide = False
        self.changes: list[Callable[[list[Message]], list[Message]]] = []
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self.latency = 0.0
        self._arrival = 0.0

    # --- Sending ---------------------------------------------------------------------------------------------------

    def send(self, event: Event | str | bytes, sid: Any = None) -> None:
        """Queue a message for the socket of a client id, or for all sockets when it is None."""
        if not self.latency:
            self._outgoing.put_nowait((event, sid))
            return
        loop = asyncio.get_running_loop()
        self._arrival = max(loop.time() + self.latency, self._arrival + _APART)
        loop.call_at(self._arrival, self._outgoing.put_nowait, (event, sid))

    def log(self, line: str) -> None:
        """Write a line of the server's log, for those who subscribed to it; who has no socket now must do so anew."""
        entry = {"t": datetime.now().isoformat(), "m": line}
        self.logs.append(entry)
        self.log_readers &= self.by_sid.keys()
        for sid in self.log_readers:
            self.send(Logs((entry,)), sid)

    async def publish(self) -> None:
        """Send what is queued, one message after the other, for ever."""
        while True:
            messages = [await self._outgoing.get()]
            await self.delivering.wait()
            if self.changes:
                messages += [self._outgoing.get_nowait() for _ in range(self._outgoing.qsize())]
            taken = len(messages)
            for change in self.changes:
                messages = change(messages)
            for event, sid in messages:
                await self._deliver(event, sid)
            for _ in range(taken):
                self._outgoing.task_done()
            self._changed()

    async def flush(self) -> None:
        """Wait until everything that was queued is sent."""
        await asyncio.sleep(max(0.0, self._arrival - asyncio.get_running_loop().time()))
        await self._outgoing.join()

    def supports(self, sid: Any, flag: str) -> bool:
        """Tell whether the socket of a client id has set a feature flag; only JSON true counts."""
        flags = self.flags.get(sid) if isinstance(sid, str) else None
        return isinstance(flags, Mapping) and flags.get(flag) is True

    async def _deliver(self, event: Event | str | bytes, sid: Any) -> None:
        if sid is None or self.user_wide:
            receivers = list(self.by_sid.values())
        else:
            found = self.by_sid.get(sid) if isinstance(sid, str) else None
            receivers = [] if found is None else [found]
        if not receivers:
            return
        frame = event if isinstance(event, str | bytes) else encode(event)
        for socket in receivers:
            await self._write(socket, frame)

    async def _write(self, socket: web.WebSocketResponse, frame: str | bytes) -> None:
        try:
            if isinstance(frame, str):
                await socket.send_str(frame)
            else:
                await socket.send_bytes(frame)
        except _BROKEN as exc:
            logger.debug("a send failed: %s", exc)

    # --- Receiving -------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve ``GET /ws``: register the socket, greet it, read it to its end."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query.get("clientId", "") or uuid.uuid4().hex
        self.by_sid[sid] = socket
        self.flags[sid] = {}
        self.open[socket] = request
        self._changed()
        try:
            await self._deliver(Status(self._queue_remaining(), sid), sid)
            if self.executing_client == sid and self.executing_node is not None:
                await self._deliver(Executing(self.executing_node, self.executing_node), sid)
            await self._read(socket, sid)
        finally:
            # The newer socket of the same client id goes with the older one (issue #16010, all versions up to 0.38).
            self.by_sid.pop(sid, None)
            self.flags.pop(sid, None)
            self.open.pop(socket, None)
            self._changed()
        return socket

    async def _read(self, socket: web.WebSocketResponse, sid: str) -> None:
        first = True
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                data = json.loads(message.data)
                if first and self._negotiates and data.get("type") == "feature_flags":
                    self.flags[sid] = data.get("data", {})
                    await self._deliver(FeatureFlags(self._features()), sid)
                first = False
            except (ValueError, AttributeError) as exc:
                logger.debug("a client sent something that is no message: %s", exc)

    # --- Cutting ---------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Forget everybody and everything that waits, as a process does that ends."""
        self.by_sid.clear()
        self.flags.clear()
        self.log_readers.clear()
        self.executing_client = self.executing_node = None
        self._outgoing = asyncio.Queue()

    def pause(self) -> None:
        """Read nothing more from any socket, not even pings, and send nothing."""
        self.delivering.clear()
        for transport in self._transports():
            transport.pause_reading()

    def resume(self) -> None:
        """Read and send again."""
        for transport in self._transports():
            transport.resume_reading()
        self.delivering.set()

    def _transports(self) -> list[asyncio.Transport]:
        return [request.transport for request in self.open.values() if request.transport is not None]

    def cut(self) -> None:
        """End every connection without a close frame, as a dying server does."""
        for transport in self._transports():
            transport.abort()

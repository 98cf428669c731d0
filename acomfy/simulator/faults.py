"""What goes wrong with servers and networks, to switch on: ``server.faults``.

Theory of operation. A fault is either done once (`drop_connections`, `evict`, `kill_worker`...), or armed for the next
request (`lose_answer_to_next_prompt`...), or lasts. One that lasts begins when it is called and gives a `Lasting`,
which ends it: at the end of a ``with`` block, or by ``end()``::

    with server.faults.stall_delivery():
        ...                       # HTTP answers, the sockets are silent
    html = server.faults.answer_with_html()
    html.end()

They act in three places: a transformation of the messages that wait to be sent, a middleware around every request,
and the worker, which asks before it writes the history.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aiohttp import hdrs, web

from .. import events
from .files import FILE
from .sockets import Message

if TYPE_CHECKING:
    from .server import SimulatedServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PROXY_PAGE = "<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
_CHUNK = 4096

GARBAGE: tuple[str | bytes, ...] = (
    "",
    "not JSON",
    '"a string"',
    "[1, 2, 3]",
    "{}",
    '{"type": 5, "data": {}}',
    '{"type": "executing", "data": null}',
    '{"type": "executed", "data": {"node": "1"}}',
    '{"type": "progress", "data": {"value": "much", "max": {}}}',
    '{"type": "progress_state", "data": {"prompt_id": "x", "nodes": 7}}',
    '{"type": "status", "data": {"status": 3}}',
    "[" * 5000,
    b"",
    b"\x00\x00",
    b"\x00\x00\x00\x01",
    b"\x00\x00\x00\x03\xff\xff\xff\xffx",
    b"\x00\x00\x00\x04\x00\x00\x00\x05{bad}",
    b"\x7f\xff\xff\xffwhat is this",
)
"""Frames that no ComfyUI sends: malformed JSON, wrong types, truncated binary frames, unknown event numbers."""


class Lasting:
    """A fault that lasts until it is ended."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """End the fault; once is enough."""
        if self._end is not None:
            end, self._end = self._end, None
            end()


@dataclass
class _State:
    """What lasts right now.

    Attributes:
        answer: Given instead of every answer.
        refusal: The status that sockets are refused with.
        bytes_per_second: How fast bodies come.
        cut_after: After how many bytes of a body the connection is cut.
        next_prompt: What happens to the answer of the next prompt that is queued.
    """

    answer: Callable[[web.Request], web.StreamResponse] | None = None
    refusal: int | None = None
    too_large: bool = False
    answer_delay: float = 0.0
    history_delay: float = 0.0
    start_delay: float = 0.0
    loses_history: bool = False
    bytes_per_second: float = 0.0
    cut_after: int | None = None
    next_prompt: str | None = None


class Faults:
    """The faults of one server."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._state = _State()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._lasting: list[Lasting] = []

    def clear(self) -> None:
        """End every fault that lasts and disarm those that wait for a request."""
        for fault in self._lasting:
            fault.end()
        self._lasting.clear()
        self._state.next_prompt = None

    def _last(self, end: Callable[[], None]) -> Lasting:
        fault = Lasting(end)
        self._lasting.append(fault)
        return fault

    def _set(self, **values: Any) -> Lasting:
        before = {name: getattr(self._state, name) for name in values}
        for name, value in values.items():
            setattr(self._state, name, value)

        def restore() -> None:
            for name, value in before.items():
                setattr(self._state, name, value)

        return self._last(restore)

    # --- Sockets ------------------------------------------------------------------------------------------------------

    def drop_connections(self) -> None:
        """Cut every socket without a close frame, as a lost network does when the server notices it."""
        self._server.sockets.cut()

    def go_deaf(self) -> None:
        """Take every client id off the table: the sockets stay open, answer pings and get nothing more.

        It is what ComfyUI's own bug does to a client that reconnects (issue #16010); a new connection hears again.
        """
        self._server.sockets.by_sid.clear()
        self._server.notify()

    def refuse_sockets(self, status: int = 403) -> Lasting:
        """Refuse ``GET /ws`` with a status, as a proxy does that lets no WebSocket through."""
        return self._set(refusal=status)

    # --- Messages -----------------------------------------------------------------------------------------------------

    def stall_delivery(self) -> Lasting:
        """Send nothing more to anybody, as when one client stops reading; what waits is sent at the end."""
        self._server.sockets.delivering.clear()
        return self._last(self._server.sockets.delivering.set)

    def duplicate_frames(self) -> Lasting:
        """Send every message twice."""
        return self._transform(lambda messages: [message for message in messages for _ in range(2)])

    def reorder_frames(self, seed: int = 0) -> Lasting:
        """Send messages that wait at the same time in another order."""
        chance = random.Random(seed)

        def shuffled(messages: list[Message]) -> list[Message]:
            return chance.sample(messages, len(messages))

        return self._transform(shuffled)

    def lose_frames(self, *kinds: str) -> Lasting:
        """Lose messages of these types (``executed``, ``binary``...); all of them when none is named."""
        return self._transform(
            lambda messages: [message for message in messages if kinds and _kind(message) not in kinds]
        )

    def delay_messages(self, seconds: float) -> Lasting:
        """Let every message take so long on its way, as over a distance; their order stays."""
        sockets = self._server.sockets
        before, sockets.latency = sockets.latency, seconds
        return self._last(lambda: setattr(sockets, "latency", before))

    def skip_success(self) -> Lasting:
        """Lose ``execution_success``; the history has it."""
        return self.lose_frames("execution_success")

    def send_raw(self, frame: str | bytes, client_id: str | None = None) -> None:
        """Send a frame as it is, to one client or to all."""
        self._server.sockets.send(frame, client_id)

    def send_garbage(self, client_id: str | None = None) -> None:
        """Send every kind of frame that no ComfyUI sends, to one client or to all."""
        for frame in GARBAGE:
            self.send_raw(frame, client_id)

    def send_oversize_frame(self, size: int = 5 * 2**20, client_id: str | None = None) -> None:
        """Send a message of so many bytes: over 4 MiB, many clients close their connection."""
        message = json.dumps({"type": "acomfy.simulator.padding", "data": {"padding": ""}})
        self.send_raw(message.replace('""', f'"{"x" * max(0, size - len(message))}"'), client_id)

    def _transform(self, change: Callable[[list[Message]], list[Message]]) -> Lasting:
        changes = self._server.sockets.changes
        changes.append(change)
        return self._last(lambda: changes.remove(change))

    # --- The queue and the history ------------------------------------------------------------------------------------

    def delay_history(self, seconds: float) -> Lasting:
        """Write history entries so much later than ``execution_success``; ComfyUI was seen to take up to 10 ms."""
        return self._set(history_delay=seconds)

    def delay_start(self, seconds: float) -> Lasting:
        """Let so much pass between a prompt's counting as running and its start: an interrupt in between is lost."""
        return self._set(start_delay=seconds)

    def lose_history(self) -> Lasting:
        """Forget every finished prompt, now and while it lasts."""
        self._server.queue.history.clear()
        self._server.notify()
        return self._set(loses_history=True)

    def evict(self, prompt_id: str) -> None:
        """Forget one finished prompt, as the history does with the oldest of more than 10,000."""
        self._server.queue.forget(prompt_id)
        self._server.notify()

    def kill_worker(self) -> None:
        """End the worker: what runs seems to run for ever, what is queued waits for ever, HTTP goes on."""
        self._server.kill_worker()

    @asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        """Be down while the block runs: connections are refused; afterwards the server is up, and knows nothing.

        The files stay, but for temp; queue, history, cache and numbers begin anew.
        """
        await self._server.go_down()
        try:
            yield
        finally:
            await self._server.come_up()

    async def restart(self, downtime: float = 0.0) -> None:
        """Be down for so many seconds."""
        async with self.down():
            await asyncio.sleep(downtime)

    def freeze(self) -> Lasting:
        """Stand still like a process under SIGSTOP: connections are accepted and nothing is read or answered."""
        self._thawed.clear()
        self._server.sockets.pause()

        def thaw() -> None:
            self._server.sockets.resume()
            self._thawed.set()

        return self._last(thaw)

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def lose_answer_to_next_prompt(self) -> None:
        """Queue the next prompt, and cut the connection before the answer."""
        self._state.next_prompt = "cut"

    def fail_next_prompt_after_queueing(self) -> None:
        """Queue the next prompt, and answer 500, as ComfyUI does when an id and a number are used twice."""
        self._state.next_prompt = "500"

    def answer_next_prompt_with_html(self) -> None:
        """Queue the next prompt, and put a page in the place of the answer, with 200, as a proxy may."""
        self._state.next_prompt = "page"

    def refuse_as_too_large(self) -> Lasting:
        """Answer prompts and uploads with 413."""
        return self._set(too_large=True)

    def answer_with_html(self, status: int = 200, title: str = "Sign in") -> Lasting:
        """Answer every request with a page, as a login in front of the server does."""
        page = _PROXY_PAGE.format(title=title)
        return self._set(answer=lambda _: web.Response(status=status, text=page, content_type="text/html"))

    def answer_as_booting(self, status: int = 502) -> Lasting:
        """Answer every request as a proxy does while the server behind it boots."""
        return self.answer_with_html(status, "Bad Gateway")

    def delay_answers(self, seconds: float) -> Lasting:
        """Take so long for every answer."""
        return self._set(answer_delay=seconds)

    def slow_bytes(self, bytes_per_second: float) -> Lasting:
        """Send bodies so slowly."""
        return self._set(bytes_per_second=bytes_per_second)

    def cut_downloads(self, after: int) -> Lasting:
        """Cut the connection after so many bytes of a file."""
        return self._set(cut_after=after)

    # --- Where they act -----------------------------------------------------------------------------------------------

    @property
    def history_delay(self) -> float:
        """Seconds between a prompt's last message and its history entry."""
        return self._state.history_delay

    @property
    def start_delay(self) -> float:
        """Seconds between a prompt's counting as running and its start."""
        return self._state.start_delay

    @property
    def loses_history(self) -> bool:
        """Whether finished prompts leave no history entry."""
        return self._state.loses_history

    async def thawed(self) -> None:
        """Wait while the server is frozen."""
        await self._thawed.wait()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Do to a request what the faults of the moment do."""
        await self.thawed()
        state = self._state
        if state.answer_delay:
            await asyncio.sleep(state.answer_delay)
        if state.answer is not None:
            return state.answer(request)
        path = self._server.own_path(request.path)
        if path == "/ws":
            return await handler(request) if state.refusal is None else web.Response(status=state.refusal)
        if state.too_large and request.method == "POST" and path in ("/prompt", "/upload/image", "/upload/mask"):
            limit = self._server.max_upload_size
            text = f"Maximum request body size {limit} exceeded."
            return web.Response(status=413, text=text)
        response = await handler(request)
        await self.thawed()
        if request.method == "POST" and path == "/prompt" and response.status == 200 and state.next_prompt is not None:
            return self._spoiled(request, response)
        if state.bytes_per_second or (state.cut_after is not None and FILE in response):
            return await self._trickle(request, response)
        return response

    def _spoiled(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        wish, self._state.next_prompt = self._state.next_prompt, None
        if wish == "500":
            return web.Response(status=500, text="500 Internal Server Error\n\nServer got itself in trouble")
        if wish == "page":
            return web.Response(text=_PROXY_PAGE.format(title="One moment"), content_type="text/html")
        _cut(request)
        return response

    async def _trickle(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        """Send a body slowly, or a part of it and then no more."""
        state = self._state
        body, status, headers = _body(request, response)
        slow = web.StreamResponse(status=status, headers=headers)
        slow.content_length = len(body)
        await slow.prepare(request)
        sent = body if state.cut_after is None else body[: state.cut_after]
        for start in range(0, len(sent), _CHUNK):
            chunk = sent[start : start + _CHUNK]
            await slow.write(chunk)
            if state.bytes_per_second:
                await asyncio.sleep(len(chunk) / state.bytes_per_second)
        if len(sent) < len(body):
            _cut(request)
        return slow


def _body(request: web.Request, response: web.StreamResponse) -> tuple[bytes, int, dict[str, str]]:
    """Give a response's bytes, with the range that was asked for, its status and its headers."""
    kept = (hdrs.CONTENT_TYPE, hdrs.CONTENT_DISPOSITION)
    headers = {str(name): response.headers[name] for name in kept if name in response.headers}
    if FILE not in response:
        body = response.body if isinstance(response, web.Response) else b""
        return (body if isinstance(body, bytes) else b""), response.status, headers
    path = response[FILE]
    data = path.read_bytes()
    headers |= {"Accept-Ranges": "bytes", "Etag": f'"{path.stat().st_mtime_ns:x}-{len(data):x}"'}
    if hdrs.RANGE not in request.headers:
        return data, 200, headers
    start, stop, _ = request.http_range.indices(len(data))
    return data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _kind(message: Message) -> str:
    """Name the type of a message: ``binary`` for pictures and progress text."""
    event, _ = message
    if isinstance(event, bytes | events.PreviewImage | events.Text):
        return "binary"
    if isinstance(event, str):
        return "raw"
    if isinstance(event, events.Unknown):
        return event.type
    name = type(event).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")

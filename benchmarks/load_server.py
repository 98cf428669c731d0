"""A server that sends ComfyUI's frames as fast as bytes go, so that the client is what is measured.

``python -m benchmarks.load_server`` prints its port and serves until its standard input ends. It runs no prompt: it
answers a POST, takes the transcript that was made for the plan (`transcript`), puts the prompt_id into it and writes it
in one go. It speaks just enough HTTP and WebSocket on a bare socket, since any framework would cost more than the
client does.

It is told what to do at ``POST /benchmark/NAME`` (see `LoadServer.told`) and tells what it saw at ``GET /benchmark``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .graphs import SAVE, STREAM, workflow
from .transcript import (
    PROMPT_ID,
    STAMP,
    SUCCESS,
    Plan,
    fill,
    picture_parts,
    preview_frame,
    text_frame,
    transcript,
    websocket_frame,
)

Bytes = bytes | memoryview

_ID = re.compile(rb'"prompt_id": ?"([0-9a-f-]{36})"')
_CLIENT = re.compile(rb'"client_id": ?"([^"]*)"')
_FILE = re.compile(rb"filename=([0-9a-f-]{36})_")
_UPLOADED = re.compile(rb'filename="([^"]*)"')
_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nsec-websocket-key: ?(\S+)", re.IGNORECASE)
_CHUNK = 1 << 18
_HIGH = 1 << 20

_RESPONSE = b"HTTP/1.1 %d OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nServer: Python/3.11 aiohttp/3.14.5\r\n\r\n"
_UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: "
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_JSON = b"application/json; charset=utf-8"
_FLAGS = {"supports_preview_metadata": True, "max_upload_size": 1 << 30}
_STATS = {"system": {"comfyui_version": "0.3.64"}, "devices": []}


@dataclass(slots=True)
class Prompt:
    """One prompt that was posted."""

    prompt_id: bytes
    number: int
    client_id: bytes
    plan: Plan


class Channel(asyncio.Protocol):
    """One connection: HTTP/1.1, and a WebSocket after an upgrade."""

    def __init__(self, server: LoadServer) -> None:
        self._server = server
        self._received = bytearray()
        self._take = self._take_request
        self._waiting: deque[memoryview] = deque()
        self._paused = False
        self._close_after = False
        self.metadata = False
        self.client_id: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.clear()
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._received and self._take():
            pass

    # --- Writing ---------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Tell whether what was written before is nearly on its way."""
        return not self._waiting and not self._paused

    def send(self, *parts: Bytes) -> None:
        """Write, large parts bit by bit as the socket takes them."""
        if self.ready and all(len(part) <= _HIGH for part in parts):
            self.transport.write(b"".join(parts))
            return
        for part in parts:
            view = memoryview(part)
            self._waiting.extend(view[start : start + _CHUNK] for start in range(0, len(view), _CHUNK))
        self._flush()

    def _flush(self) -> None:
        while self._waiting and not self._paused:
            self.transport.write(self._waiting.popleft())
        if self._close_after and not self._waiting:
            self.transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()
        self._server.work()

    # --- HTTP ------------------------------------------------------------------------------------------------------

    def _take_request(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._received[: end + 2])
        length = _LENGTH.search(head)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(self._received) < size:
            return False
        body = bytes(self._received[end + 4 : size])
        del self._received[:size]
        method, target, _ = head.split(b" ", 2)
        self._close_after = b"connection: close" in head.lower()
        key = _KEY.search(head)
        if key is not None:
            self._upgrade(key[1], target)
        else:
            self._server.request(self, method, target, body)
        return True

    def answer(self, *body: Bytes, content_type: bytes = _JSON, status: int = 200) -> None:
        """Answer the request that was taken."""
        self.send(_RESPONSE % (status, content_type, sum(map(len, body))), *body)
        self._flush()

    def _upgrade(self, key: bytes, target: bytes) -> None:
        accept = base64.b64encode(hashlib.sha1(key + _MAGIC).digest())
        self.send(_UPGRADE + accept + b"\r\n\r\n")
        self._take = self._take_frame
        self.client_id = target.partition(b"clientId=")[2] or uuid.uuid4().hex.encode()
        self._server.joined(self, self.client_id)

    # --- WebSocket -------------------------------------------------------------------------------------------------

    def _take_frame(self) -> bool:
        """Take a frame of the client: always masked, and short, but for nonsense."""
        if len(self._received) < 6:
            return False
        opcode, length = self._received[0] & 15, self._received[1] & 127
        start = 6
        if length == 126:
            start, length = 8, int.from_bytes(self._received[2:4], "big")
        if length == 127 or len(self._received) < start + length:
            return False
        mask = self._received[start - 4 : start]
        payload = bytes(byte ^ mask[index & 3] for index, byte in enumerate(self._received[start : start + length]))
        del self._received[: start + length]
        if opcode == 1 and b"supports_preview_metadata" in payload:
            self.metadata = True
            self.send(text_frame("feature_flags", _FLAGS))
        elif opcode == 8:
            self.send(websocket_frame(0x88, len(payload)) + payload)
            self.transport.close()
        elif opcode == 9:
            self.send(websocket_frame(0x8A, len(payload)) + payload)
        return True


class LoadServer:
    """What the connections share: who listens, and the prompts that wait."""

    def __init__(self) -> None:
        self._sockets: dict[bytes, Channel] = {}
        self._waiting: deque[Prompt] = deque()
        self._due: deque[Prompt] = deque()
        self._done: dict[bytes, Prompt] = {}
        self._sent: dict[str, int] = {}
        self._requests: Counter[str] = Counter()
        self._posted = 0
        self._storm: asyncio.TimerHandle | None = None
        self._stormy: Prompt | None = None
        self._big = {"object_info": b"{}", "history": b"{}"}
        self.begin()
        self._routes: dict[tuple[bytes, bytes], Callable[[Channel, bytes, bytes], None]] = {
            (b"POST", b"prompt"): self._post_prompt,
            (b"GET", b"prompt"): lambda channel, *_: _answer_json(channel, self._exec_info()),
            (b"GET", b"view"): self._get_view,
            (b"GET", b"history"): self._get_history,
            (b"GET", b"queue"): self._get_queue,
            (b"GET", b"system_stats"): lambda channel, *_: _answer_json(channel, _STATS),
            (b"GET", b"features"): lambda channel, *_: _answer_json(channel, _FLAGS),
            (b"GET", b"object_info"): lambda channel, *_: channel.answer(self._big["object_info"]),
            (b"POST", b"upload"): self._post_upload,
            (b"POST", b"queue"): lambda channel, *_: channel.answer(),
            (b"POST", b"interrupt"): lambda channel, *_: channel.answer(),
            (b"GET", b"benchmark"): lambda channel, *_: _answer_json(channel, self.seen()),
            (b"POST", b"benchmark"): self.told,
        }

    # --- What it is told -------------------------------------------------------------------------------------------

    def told(self, channel: Channel, target: bytes, body: bytes) -> None:
        """Obey ``POST /benchmark/NAME``:

        * ``begin``: forget what was, and do as the body says, see `begin`;
        * ``release``: work off all that waits;
        * ``cut``: break all WebSockets; with ``ends`` all that waits ends unheard;
        * ``storm``: send previews of the oldest waiting prompt, ``bytes`` each, ``rate`` a second, and let no other
          wait; 0 ends it and its prompt;
        * ``big``: have ``/object_info`` and ``/history`` answer with about so many ``bytes``.
        """
        data = json.loads(body or b"{}")
        match target.rpartition(b"/")[2]:
            case b"begin":
                self.begin(**data)
            case b"release":
                self._backlog = 0
                self.work()
            case b"cut":
                self._cut(**data)
            case b"storm":
                self._start_storm(**data)
            case b"big":
                self._big = {"object_info": _object_info(data["bytes"]), "history": _histories(data["bytes"])}
        channel.answer()

    def begin(self, *, jobs: int = 1, backlog: int = 0, delay: float = 0.0, pause: float = 0.0, **plan: Any) -> None:
        """Start a round.

        Args:
            jobs: After so many POSTs all that waits is worked off.
            backlog: Until then, the prompts that always wait.
            delay: Seconds that each prompt takes, all at once.
            pause: Seconds before each prompt's last frames.
            plan: Fields of `Plan`.
        """
        self._plan, self._jobs, self._backlog = Plan(**plan), jobs, backlog
        self._delay, self._pause = delay, pause
        self._posted = 0
        for past in (self._waiting, self._due, self._done, self._sent, self._requests):
            past.clear()
        for metadata in (False, True):
            transcript(self._plan, metadata=metadata)

    def _cut(self, *, ends: bool = False) -> None:
        for socket in list(self._sockets.values()):
            socket.transport.abort()
        self._sockets.clear()
        if ends:
            self._backlog = 0
            self.work()

    def _start_storm(self, *, rate: float, bytes: int = 30_000) -> None:
        if self._storm is not None:
            self._storm.cancel()
        if rate:
            self._backlog = 0
            self._stormy = self._waiting.popleft()
            frame = preview_frame(bytes, metadata=True).replace(PROMPT_ID, self._stormy.prompt_id)
            self._blow(self._sockets[self._stormy.client_id], frame, 1 / rate)
        elif self._stormy is not None:
            self._due.append(self._stormy)
            self.work()

    def _blow(self, socket: Channel, frame: bytes, interval: float) -> None:
        if socket.ready:
            socket.send(frame)
        self._storm = asyncio.get_running_loop().call_later(interval, self._blow, socket, frame, interval)

    def seen(self) -> dict[str, Any]:
        """Tell what was seen since the round began.

        ``requests`` by route and ``socket``, ``sent``: when each prompt's last frames were, by the monotonic clock in
        nanoseconds, if there was a pause before them; ``waiting``; and ``cpu``, the seconds that this process took.
        """
        waiting, cpu = len(self._waiting) + len(self._due), time.process_time()
        return {"requests": self._requests, "sent": self._sent, "waiting": waiting, "cpu": cpu}

    # --- Sockets ---------------------------------------------------------------------------------------------------

    def joined(self, channel: Channel, client_id: bytes) -> None:
        """Register a WebSocket; its first message is the ``status``."""
        self._requests["socket"] += 1
        self._sockets[client_id] = channel
        channel.send(text_frame("status", {"status": self._exec_info(), "sid": client_id.decode()}))

    def left(self, channel: Channel) -> None:
        """Note that a connection ended."""
        if channel.client_id is not None and self._sockets.get(channel.client_id) is channel:
            del self._sockets[channel.client_id]

    # --- Routes ----------------------------------------------------------------------------------------------------

    def request(self, channel: Channel, method: bytes, target: bytes, body: bytes) -> None:
        """Answer one request."""
        name = target.removeprefix(b"/api").lstrip(b"/").partition(b"/")[0].partition(b"?")[0]
        self._requests[f"{method.decode()} /{name.decode()}"] += 1
        route = self._routes.get((method, name))
        if route is None:
            channel.answer(status=404)
        else:
            route(channel, target, body)

    def _exec_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": len(self._waiting) + len(self._due)}}

    def _post_prompt(self, channel: Channel, target: bytes, body: bytes) -> None:
        prompt_id, client_id = _ID.search(body, max(0, len(body) - 1000)), _CLIENT.search(body)
        prompt = Prompt(
            prompt_id[1] if prompt_id else str(uuid.uuid4()).encode(),
            self._posted,
            client_id[1] if client_id else b"",
            self._plan,
        )
        self._posted += 1
        channel.answer(b'{"prompt_id": "%s", "number": %d, "node_errors": {}}' % (prompt.prompt_id, prompt.number))
        self._waiting.append(prompt)
        self._tell_status()
        if self._posted >= self._jobs:
            self._backlog = 0
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self.work, 1)
        else:
            self.work()

    def _get_view(self, channel: Channel, target: bytes, body: bytes) -> None:
        head, rest = picture_parts(self._plan)
        name = _FILE.search(target)
        channel.answer(head.replace(PROMPT_ID, name[1] if name else PROMPT_ID), rest, content_type=b"image/png")

    def _post_upload(self, channel: Channel, target: bytes, body: bytes) -> None:
        name = _UPLOADED.search(body, 0, 2000)
        stored = {"name": name[1].decode() if name else "", "subfolder": "", "type": "input"}
        _answer_json(channel, {**stored, "bytes": len(body)})

    def _get_history(self, channel: Channel, target: bytes, body: bytes) -> None:
        if b"/history/" not in target:
            return channel.answer(self._big["history"])
        prompt_id = target.rpartition(b"/")[2]
        prompt = self._done.get(prompt_id)
        channel.answer(b"{}" if prompt is None else _history(prompt.plan).replace(PROMPT_ID, prompt_id))

    def _get_queue(self, channel: Channel, target: bytes, body: bytes) -> None:
        item = _queue_item(self._plan)
        items = [item.replace(PROMPT_ID, prompt.prompt_id) % prompt.number for prompt in self._waiting]
        channel.answer(b'{"queue_running": [%s], "queue_pending": [%s]}' % (b"".join(items[:1]), b", ".join(items[1:])))

    # --- The work --------------------------------------------------------------------------------------------------

    def work(self, finished: int = 0) -> None:
        """Send the transcripts of prompts whose turn it is, as long as their sockets take them."""
        due = finished if self._delay else len(self._waiting) - self._backlog
        for _ in range(due):
            self._due.append(self._waiting.popleft())
        while self._due:
            socket = self._sockets.get(self._due[0].client_id)
            if socket is not None and not socket.ready:
                return
            self._finish(self._due.popleft(), socket)

    def _finish(self, prompt: Prompt, socket: Channel | None) -> None:
        self._done[prompt.prompt_id] = prompt
        if socket is None:
            return
        remaining = len(self._waiting) + len(self._due)
        parts = fill(transcript(prompt.plan, metadata=socket.metadata), prompt.prompt_id)
        end = (SUCCESS + _status(remaining) + _OVER).replace(PROMPT_ID, prompt.prompt_id)
        if self._pause:
            socket.send(_status(remaining + 1), *parts)
            asyncio.get_running_loop().call_later(self._pause, self._end, socket, prompt, end)
        else:
            socket.send(_status(remaining + 1), *parts, end)

    def _end(self, socket: Channel, prompt: Prompt, frames: bytes) -> None:
        self._sent[prompt.prompt_id.decode()] = time.monotonic_ns()
        socket.send(frames)

    def _tell_status(self) -> None:
        """Tell all sockets that the queue changed, but those that do not keep up."""
        frame = _status(len(self._waiting) + len(self._due))
        for socket in self._sockets.values():
            if socket.ready:
                socket.send(frame)


_OVER = text_frame("executing", {"node": None, "prompt_id": PROMPT_ID.decode()})


def _status(remaining: int) -> bytes:
    return text_frame("status", {"status": {"exec_info": {"queue_remaining": remaining}}})


def _answer_json(channel: Channel, data: Any) -> None:
    channel.answer(json.dumps(data).encode())


def _queue_item(plan: Plan) -> bytes:
    """Write an item of the queue with places for its number (``%d``) and its prompt_id."""
    outputs = [STREAM if plan.stream else SAVE]
    text = json.dumps([0, PROMPT_ID.decode(), workflow(stream=plan.stream), {"client_id": "benchmark"}, outputs])
    return b"[%d" + text.removeprefix("[0").encode()


def _history(plan: Plan) -> bytes:
    prompt_id = PROMPT_ID.decode()
    images = [{"filename": f"{prompt_id}_00001_.png", "subfolder": "", "type": "output"}]
    messages = [["execution_start", STAMP], ["execution_cached", {"nodes": [], **STAMP}], ["execution_success", STAMP]]
    entry = {
        "prompt": json.loads(_queue_item(plan) % 0),
        "outputs": {} if plan.stream else {SAVE: {"images": images}},
        "status": {"status_str": "success", "completed": True, "messages": messages},
        "meta": {},
    }
    return json.dumps({prompt_id: entry}).encode()


def _histories(size: int) -> bytes:
    """Write history entries of about so many bytes."""
    entry = _history(Plan())[1:-1]
    ids = (str(uuid.UUID(int=number)).encode() for number in range(size // len(entry)))
    return b"{%s}" % b", ".join(entry.replace(PROMPT_ID, prompt_id) for prompt_id in ids)


def _object_info(size: int) -> bytes:
    """Write node definitions of about so many bytes."""
    inputs = {"required": {"ckpt_name": [[f"model_{number}.safetensors" for number in range(20)]]}}
    node = {"input": inputs, "output": ["MODEL", "CLIP", "VAE"], "name": "CheckpointLoaderSimple", "output_node": False}
    return json.dumps({f"Node{number}": node for number in range(size // len(json.dumps(node)))}).encode()


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = LoadServer()
    listening = await loop.create_server(lambda: Channel(server), "127.0.0.1", 0, backlog=4096)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listening.close()


if __name__ == "__main__":
    asyncio.run(main())

"""Replay a recording of a real ComfyUI server against the simulator, and compare what each of them said.

The replay sends the same requests in the same order and opens the same sockets. It holds the simulator back so that it
is as far as the real server was when a request was sent: the worker takes a prompt, a sampler makes a step, a sleeping
node ticks only when the recording has a frame that needs it. So the transcripts can be compared frame by frame, in
full order, socket by socket. What has to differ is replaced by a name on both sides (`NORMALISED` says what and why).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from PIL import Image
from yarl import URL

from acomfy.simulator import CacheMode, ExecutionBlocker, Node, NodeContext, NodeResult, SimulatedServer

RECORDINGS = Path(__file__).parent / "recordings"

NORMALISED = {
    "prompt_id made by the server, sid made by the server": "random; numbered by first appearance",
    "file names": "counters depend on the folder's files, temp names are random; numbered by first appearance",
    "timestamp": "the server's clock",
    "executed, current_outputs, dependent_outputs": "sets in ComfyUI, sent in random order; sorted",
    "errors of a node": "found while walking a set of inputs; sorted",
    "traceback": "the simulator's own code; only whether there is one",
    "current_inputs": "text of tensors; only the names of the inputs",
    "paths in messages": "the server's folder is called /comfyui",
    "pictures painted by a model": "format and size only; other pictures are compared pixel by pixel",
    "pictures that were uploaded": "the recordings do not hold them; size and format only",
    "ticks of a sleeping node": "as many as fit into the time; left out",
    "headers": "only Content-Type, Content-Disposition and Allow are compared",
    "Content-Type of an empty 404 and of errors from the web framework": "left out where the body is empty",
}

_UUID = re.compile(r"\b(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})\b")
_FILE = re.compile(r"((?:ComfyUI_temp_[a-z]{5})|[^\"/=?&]*?)_(\d{5})_\.(png|webp)")


class Names:
    """The names that one side made up, each with the number of its first appearance."""

    def __init__(self, fixed: frozenset[str], base: Path | None = None) -> None:
        self._fixed = fixed
        self._base = base
        self._symbols: dict[str, str] = {}

    def symbol(self, kind: str, name: str) -> str:
        """Give a name's symbol, a new one when it was not seen before."""
        return self._symbols.setdefault(name, f"<{kind} {len(self._symbols)}>")

    def hide(self, text: str, *, learn: bool = True) -> str:
        """Put symbols in the place of the made-up names in a text; without learning, of those that are known."""

        def hide_uuid(match: re.Match[str]) -> str:
            if match[0] in self._fixed or not (learn or match[0] in self._symbols):
                return match[0]
            return self.symbol("id", match[0])

        def hide_file(match: re.Match[str]) -> str:
            if not (learn or match[0] in self._symbols):
                return match[0]
            stem = "ComfyUI_temp" if match[1].startswith("ComfyUI_temp_") else match[1]
            return self.symbol(f"file {stem}", match[0])

        if self._base is not None:
            text = text.replace(str(self._base), "/comfyui")
        return _FILE.sub(hide_file, _UUID.sub(hide_uuid, text))

    def reveal(self, text: str) -> str:
        """Put this side's names in the place of symbols in a text."""
        known = {symbol: name for name, symbol in self._symbols.items()}
        return re.sub(r"<(?:id|file)[^<>]* \d+>", lambda match: known.get(match[0], match[0]), text)


@dataclass
class Transcript:
    """What one side said: a list of normalised frames per socket, and of normalised answers."""

    frames: dict[str, list[Any]] = field(default_factory=dict)
    answers: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Recording:
    """The lines of one recording, in the order of time."""

    name: str
    lines: list[dict[str, Any]]

    @classmethod
    def load(cls, name: str, *, until: str | None = None, without: Collection[str] = (), paths: str = "") -> Recording:
        """Read a recording.

        ``until`` is the beginning of the note before which the replay ends, ``without`` the labels of prompts to leave
        out, with all that follows before the next prompt, ``paths`` a pattern of paths to leave out.
        """
        lines = [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]
        if until is not None:
            lines = lines[: next(index for index, line in enumerate(lines) if line.get("text", "").startswith(until))]
        kept, keeping = [], True
        for line in sorted(lines, key=lambda line: line["t"]):
            if line.get("method") == "POST":
                keeping = line.get("label") not in without
                if not keeping and line["path"] == "/prompt":
                    kept.append({"t": line["t"], "ev": "left_out"})
            if keeping and not (paths and re.match(paths, line.get("path", ""))):
                kept.append(line)
        return cls(name, kept)

    def client_ids(self) -> frozenset[str]:
        """Collect the ids that the client chose: they are the same on both sides."""
        text = "".join(
            json.dumps(line.get("req_json", "")) + line.get("path", "")
            for line in self.lines
            if line["ev"] == "ws_open" or line.get("method") == "POST" and line["path"] == "/prompt"
        )
        return frozenset(name for name in _UUID.findall(text) if "-" in name)  # without hyphens the server made it

    def statuses_of_posts(self) -> dict[tuple[str, int], int]:
        """Find, per socket and accepted prompt, how many of the socket's frames came before the prompt's ``status``.

        A ``status`` whose number is one more than the one before belongs to a prompt that was queued.
        """
        found: dict[tuple[str, int], int] = {}
        frames: dict[str, list[Any]] = {}
        waiting: dict[str, list[int]] = {}
        remaining: dict[str, int] = {}
        for index, line in enumerate(self.lines):
            if line["ev"] == "ws_open":
                frames[line["sock"]], waiting[line["sock"]] = [], []
            elif line["ev"] == "ws_client_close":
                waiting.pop(line["sock"], None)
            elif line.get("path") == "/prompt" and line.get("method") == "POST" and line["status"] == 200:
                for posts in waiting.values():
                    posts.append(index)
            elif line["ev"] in ("ws_text", "ws_bin"):
                sock, frame = line["sock"], _recorded_frame(line)
                if not _is_new(frames[sock], frame):
                    continue
                if frame["type"] == "status":
                    now = frame["data"]["status"]["exec_info"]["queue_remaining"]
                    if now == remaining.get(sock, now) + 1 and waiting.get(sock):
                        found[sock, waiting[sock].pop(0)] = len(frames[sock])
                    remaining[sock] = now
                frames[sock].append(frame)
        return found

    def orders_of_outputs(self) -> dict[float, list[str]]:
        """Find, by number, in which order a prompt's output nodes were begun with; a set in ComfyUI."""
        items: list[list[Any]] = []
        for line in self.lines:
            answer = line.get("json")
            if line.get("path") == "/queue" and isinstance(answer, dict):
                items += [*answer["queue_running"], *answer["queue_pending"]]
            elif line.get("path", "").startswith("/history") and isinstance(answer, dict):
                items += [entry["prompt"] for entry in answer.values()]
        return {item[0]: item[4] for item in items}


class Pacer:
    """Makes the nodes that take time wait, until the replay needs what comes after."""

    def __init__(self, server: SimulatedServer) -> None:
        self.server = server
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> bool:
        """Whether a node waits."""
        return bool(self._waiting)

    async def tick(self) -> None:
        """Wait to be let on."""
        self.ticks += 1
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.server.notify()
        await future

    def release(self) -> None:
        """Let the node on that has waited longest."""
        self._waiting.pop(0).set_result(None)

    def paced(self, node: Node) -> Node:
        """Give a node class whose sleeping is decided by the replay; one that does not sleep waits before it begins."""
        sleeps = inspect.iscoroutinefunction(node.function)

        async def function(context: NodeContext, **inputs: Any) -> Any:
            self.ticks = 0
            if not sleeps:
                await self.tick()
                return node.function(context, **inputs)
            return await node.function(_PacedContext(context, self), **inputs)

        return replace(node, function=function)


class _PacedContext:
    """A node's context whose sleeping is decided by the replay."""

    def __init__(self, context: NodeContext, pacer: Pacer) -> None:
        self._context = context
        self._pacer = pacer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def sleep(self, seconds: float) -> None:
        await self._pacer.tick()


class Socket:
    """One of the replay's sockets: it reads all the time and knows what it has read."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.frames: list[str | bytes] = []
        self._pongs: dict[bytes, asyncio.Event] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.PONG:
                self._pongs[bytes(message.data)].set()
            else:
                self.frames.append(message.data)

    async def catch_up(self) -> None:
        """Wait until everything that the server sent before now has been read: its pong comes after it."""
        if self._reader.done():
            return
        payload = str(len(self._pongs)).encode()
        pong = self._pongs[payload] = asyncio.Event()
        await self._socket.ping(payload)
        waiting = asyncio.create_task(pong.wait())
        await asyncio.wait([waiting, self._reader], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def send(self, text: str) -> None:
        """Send a text frame."""
        await self._socket.send_str(text)

    async def close(self) -> None:
        """Close with a close frame, and wait for the answer."""
        await self._socket.close()
        await asyncio.wait([self._reader])

    async def abort(self) -> None:
        """Cut the connection."""
        connection = self._socket._response.connection
        assert connection is not None and connection.transport is not None
        connection.transport.abort()
        await asyncio.wait([self._reader])


class Replay:
    """One recording, replayed against one server."""

    def __init__(
        self,
        server: SimulatedServer,
        session: aiohttp.ClientSession,
        recording: Recording,
        on_note: Mapping[str, Callable[[Replay], None]],
    ) -> None:
        self.server = server
        self._on_note = on_note
        self._session = session
        self._recording = recording
        self._pacer = Pacer(server)
        self._sockets: dict[str, Socket] = {}
        self._read: dict[str, int] = {}
        self._uploads = 0
        self._overwritten = 0
        self._needed: dict[str, int] = {}
        self._statuses = recording.statuses_of_posts()
        self._orders = recording.orders_of_outputs()
        fixed = recording.client_ids()
        self._real_names, self._our_names = Names(fixed), Names(fixed, server.folders.paths["output"].parent)
        self.real, self.ours = Transcript(), Transcript()

    async def run(self) -> None:
        """Replay the recording; afterwards ``real`` and ``ours`` can be compared."""
        self.server.hold()
        for index, line in enumerate(self._recording.lines):
            self._needed = {sock: count for (sock, post), count in self._statuses.items() if post == index}
            await self._line(line)
        self._needed = {}
        await self._reach()
        for socket in self._sockets.values():
            await socket.close()
        for name, frames in self.real.frames.items():
            for real, ours in zip(frames, self.ours.frames.get(name, ()), strict=False):
                # Of a large frame the recording has only the beginning.
                if real == {"type": "binary 4", "cut": True} and ours["type"] == "binary 4":
                    ours.clear()
                    ours.update(real)
                elif real.get("picture") == "PNG" and isinstance(ours.get("picture"), dict):
                    ours["picture"] = "PNG"

    def differences(self, *, statuses_apart: bool = False) -> list[str]:
        """List where the two transcripts differ, each with what the real server said and what the simulator said.

        ``statuses_apart`` compares the ``status`` messages as a sequence of their own: ComfyUI's worker is a thread, so
        a request that comes while a node runs may be announced between any two of its messages.
        """
        found = [
            f"{where}\n  real {real}\n  ours {ours}"
            for (where, real), (_, ours) in zip(self.real.answers, self.ours.answers, strict=True)
            if real != ours
        ]
        for name in sorted(self.real.frames.keys() | self.ours.frames.keys()):
            real, ours = self.real.frames.get(name, []), self.ours.frames.get(name, [])
            for kept in (_is_status, lambda frame: not _is_status(frame)) if statuses_apart else (lambda frame: True,):
                found += _frame_differences(name, list(filter(kept, real)), list(filter(kept, ours)))
        return found

    async def _line(self, line: dict[str, Any]) -> None:
        kind = line["ev"]
        if kind == "note" and line["text"] in self._on_note:
            self._on_note[line["text"]](self)
        if kind in ("ws_text", "ws_bin"):
            _add(self.real.frames.setdefault(line["sock"], []), _recorded_frame(line), self._real_names)
            return
        if kind == "left_out":
            self.server.number += 1
        if kind == "ws_end" and line["type"] == "CLOSING" and line["sock"] in self._sockets:
            kind = "ws_client_close"
        if kind not in ("http", "ws_open", "ws_send", "ws_client_close", "ws_client_abort"):
            return
        await self._reach()
        if kind == "http":
            await self._request(line)
        elif kind == "ws_open":
            await self._reach_opening(line)
            url = URL(self.server.url + line["path"], encoded=True)
            socket = await self._session.ws_connect(url, autoping=False, max_msg_size=0)
            self._sockets[line["sock"]] = Socket(socket)
        elif kind == "ws_send":
            await self._sockets[line["sock"]].send(line["data"])
        elif kind == "ws_client_close":
            if line["sock"] in self._sockets:
                await self._sockets.pop(line["sock"]).close()
        else:
            await self._sockets.pop(line["sock"]).abort()

    # --- Being as far as the real server was ----------------------------------------------------------------------

    async def _reach(self) -> None:
        """Let the simulator go on until every socket has got what the real one had got by now."""
        await self._settle()
        while self._behind() and await self._advance():
            pass

    async def _reach_answer(self, line: dict[str, Any]) -> None:
        """Let the simulator go on until it is where the recorded answer to a question shows the real one."""
        if line["method"] == "GET" and isinstance(line.get("json"), dict):
            while not self._is_at(line["path"], line["json"]) and await self._advance():
                pass

    async def _reach_opening(self, line: dict[str, Any]) -> None:
        """Let the simulator go on until it is where the first frames of the recorded socket show the real one."""
        texts = [other for other in self._recording.lines if other["ev"] == "ws_text" and other["sock"] == line["sock"]]
        frames = [json.loads(other["data"]) for other in texts]
        remaining = frames[0]["data"]["status"]["exec_info"]["queue_remaining"]
        replayed = len(frames) > 1 and frames[1]["type"] == "executing" and "prompt_id" not in frames[1]["data"]
        node = frames[1]["data"]["node"] if replayed else None
        # The first step that the socket sees, if the node that runs is a sampler.
        sampling = [frame["data"] for frame in frames if frame["type"] == "progress" and frame["data"]["node"] == node]
        step = sampling[0]["value"] if sampling else 0

        def there() -> bool:
            sockets, queue = self.server.sockets, self.server.queue
            return len(queue) <= remaining and (
                node is None or (sockets.executing_node == node and self._pacer.ticks >= step)
            )

        while not there() and await self._advance():
            pass

    def _is_at(self, path: str, answer: dict[str, Any]) -> bool:
        queue = self.server.queue
        if path == "/queue":
            return len(queue) <= len(answer["queue_running"]) + len(answer["queue_pending"]) and (
                len(queue.running) >= len(answer["queue_running"])
            )
        if path == "/prompt":
            return bool(len(queue) <= answer["exec_info"]["queue_remaining"])
        if path.startswith("/history"):
            return all(self._translate(prompt_id) in queue.history for prompt_id in answer)
        return True

    async def _advance(self) -> bool:
        """Let the simulator take one step; False when it has nothing more to do."""
        if self._pacer.waiting:
            self._pacer.release()
        elif self.server.queue.pending and self.server.worker_alive:
            executions = self.server.ledger.executions
            self.server.release(1)
            await self.server.wait_for(lambda: self.server.ledger.executions > executions)
        else:
            return False
        await self._settle()
        return True

    async def _settle(self) -> None:
        """Wait until the simulator cannot go on by itself, and everything it sent has been read."""
        server = self.server
        await server.wait_for(lambda: self._pacer.waiting or not server.queue.running or not server.worker_alive)
        await server.flush()
        for name, socket in self._sockets.items():
            await socket.catch_up()
            read = self._read.setdefault(name, 0)
            for frame in socket.frames[read:]:
                _add(self.ours.frames.setdefault(name, []), _frame(frame), self._our_names)
            self._read[name] = len(socket.frames)

    def _behind(self) -> bool:
        read = {name: len(frames) for name, frames in self.ours.frames.items()}
        return any(
            read.get(name, 0) < max(len(frames), self._needed.get(name, 0)) for name, frames in self.real.frames.items()
        )

    # --- Requests -------------------------------------------------------------------------------------------------

    async def _request(self, line: dict[str, Any]) -> None:
        await self._reach_answer(line)
        path = line["path"]
        plain = unquote(path)  # file names are known as they stand in JSON
        path = str(URL(renamed)) if (renamed := self._translate(plain)) != plain else path
        data: Any = None
        headers = dict(line.get("req_headers", {}))
        if "req_json" in line:
            data = self._translate(json.dumps(line["req_json"])).encode()
            headers.setdefault("Content-Type", "application/json")
        elif "req_raw" in line:
            data = line["req_raw"].encode()
        elif "req_form" in line:
            data = self._form(line["req_form"], line.get("label") or "")
        url = URL(self.server.url + path, encoded=True)
        async with self._session.request(line["method"], url, data=data, headers=headers) as response:
            body = await response.read()
        for number, _, _, _, outputs in self.server.queue.pending:
            outputs[:] = self._orders.get(number, outputs)
        ours = {"status": response.status, "headers": dict(response.headers), "body": body}
        real = {"status": line["status"], "headers": line["headers"], "body": _recorded_body(line)}
        where = f"{line['method']} {self._real_names.hide(line['path'], learn=False)} [{line.get('label') or ''}]"
        self.real.answers.append((where, _answer(path, real, self._real_names)))
        self.ours.answers.append((where, _answer(path, ours, self._our_names)))

    def _form(self, fields: Mapping[str, Any], label: str) -> aiohttp.FormData:
        """Build the upload that the recording describes: a new picture, unless the recorder repeated one."""
        repeated = label == "same name, same bytes" or self._owed_repetition(fields)
        self._uploads += not repeated
        form = aiohttp.FormData(quote_fields=fields.get("aiohttp quote_fields", True))
        for name, value in fields.items():
            if name.startswith("aiohttp"):
                continue
            if name == "image" and value is not None:
                file = re.search(r"(?:as '(.*)'|as (.*)|filename (.*)|<(.*\.txt))>", value)
                filename = next(name for name in file.groups() if name is not None) if file else "in.png"
                filename = filename.replace("\\\\", "\\")  # it was written as Python writes strings
                picture = _png(Image.new("RGB", (64, 64), (0, 0, self._uploads)))
                data = b"plain text" if filename == "t.txt" else picture
                form.add_field("image", data, filename=filename, content_type="image/png")
            elif value is not None:
                form.add_field(name, value)
        return form

    def _owed_repetition(self, fields: Mapping[str, Any]) -> bool:
        """Tell whether this is the third upload of ``ow.png``: it repeats the second, to find the cache unharmed."""
        self._overwritten += fields.get("image") == "<png as ow.png>"
        return self._overwritten == 3

    def _translate(self, text: str) -> str:
        return self._our_names.reveal(self._real_names.hide(text, learn=False))

    def pace(self, *class_types: str) -> None:
        """Let the replay decide when nodes of these classes go on."""
        self.server.add_node(*(self._pacer.paced(self.server.classes[class_type]) for class_type in class_types))


# --- Requests ------------------------------------------------------------------------------------------------------


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _recorded_body(line: Mapping[str, Any]) -> bytes:
    if "json" in line:
        return json.dumps(line["json"]).encode()
    return line["text"].encode() if "text" in line else base64.b64decode(line["b64"])


# --- Comparing -----------------------------------------------------------------------------------------------------


def _is_status(frame: Any) -> bool:
    return bool(frame["type"] == "status")


def _frame_differences(name: str, real: list[Any], ours: list[Any]) -> list[str]:
    for index, (theirs, own) in enumerate(zip(real, ours, strict=False)):
        if theirs != own:
            return [f"frame {index} of socket {name}\n  real {theirs}\n  ours {own}"]
    if len(real) != len(ours):
        longer = "real" if len(real) > len(ours) else "ours"
        more = (real if longer == "real" else ours)[min(len(real), len(ours))]
        return [f"socket {name} got {len(real)} frames from the real server, {len(ours)} from ours; {longer} {more}"]
    return []


# --- Normalising ---------------------------------------------------------------------------------------------------


def _add(frames: list[Any], frame: Any, names: Names) -> None:
    """Add a frame in its normal form, unless it is a tick of a sleeping node or says nothing new because of that."""
    frame = _hidden(frame, names)
    if _is_new(frames, frame):
        frames.append(frame)


def _is_new(frames: list[Any], frame: Any) -> bool:
    return frame is not None and not (frames and frame["type"] == "progress_state" and frame == frames[-1])


def _hidden(value: Any, names: Names) -> Any:
    return json.loads(names.hide(json.dumps(value, ensure_ascii=False)))


def _recorded_frame(line: Mapping[str, Any]) -> Any:
    if line["ev"] == "ws_text":
        return _frame(line["data"])
    return _binary(base64.b64decode(line.get("b64") or line["head_b64"]), whole="b64" in line)


def _frame(frame: str | bytes) -> Any:
    if isinstance(frame, bytes):
        return _binary(frame)
    message = json.loads(frame)
    data = message["data"]
    if message["type"] == "progress" and isinstance(data["max"], float):
        return None
    if message["type"] == "progress_state":
        for node in data["nodes"].values():
            if node["state"] == "running" and isinstance(node["max"], float):
                node["value"] = node["max"] = "ticking"
    return {"type": message["type"], "data": _normal(data)}


def _binary(frame: bytes, *, whole: bool = True) -> Any:
    event = int.from_bytes(frame[:4], "big")
    if event == 1:
        return {"type": "binary 1", "format": int.from_bytes(frame[4:8], "big"), "picture": _picture(frame[8:], whole)}
    if event == 4:
        end = 8 + int.from_bytes(frame[4:8], "big")
        if end > len(frame):
            return {"type": "binary 4", "cut": True}
        metadata = json.loads(frame[8:end])
        return {"type": "binary 4", "metadata": metadata, "picture": _picture(frame[end:], whole)}
    return {"type": f"binary {event}", "bytes": frame[4:].hex()}


def _picture(data: bytes, whole: bool) -> Any:
    """Describe a picture: its pixels, but of a JPEG, which only a model paints, that it is one."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    with Image.open(io.BytesIO(data)) as picture:
        return {"size": picture.size, "mode": picture.mode, "pixels": _digest(picture.tobytes())} if whole else "PNG"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _answer(path: str, answer: Mapping[str, Any], names: Names) -> Any:
    headers = {key: answer["headers"][key] for key in ("Content-Disposition", "Allow") if key in answer["headers"]}
    body, mime = answer["body"], answer["headers"].get("Content-Type", "")
    shown: Any = _digest(body)
    if mime.startswith("application/json"):
        shown = _normal(json.loads(body))
    elif mime.startswith("text/"):
        shown = body.decode()
    elif mime.startswith("image/") and body and answer["status"] == 200:
        with Image.open(io.BytesIO(body)) as picture:
            shown = {"format": picture.format, "size": picture.size, "pixels": _digest(picture.tobytes())}
            shown["text"] = dict(getattr(picture, "text", {}))
        if "type=input" in path:
            shown["pixels"] = "<uploaded>"
    elif "type=input" in path and body:
        shown = "<uploaded>"
    if body:
        headers["Content-Type"] = mime
    return _hidden({"status": answer["status"], "headers": headers, "body": shown}, names)


def _normal(value: Any, key: str = "") -> Any:
    """Sort what is a set, and leave out what is the server's own."""
    if key in ("timestamp", "create_time", "max_upload_size"):
        return f"<{key}>"
    if key == "entries":
        return [re.sub(r"[0-9.]+ seconds", "<seconds>", entry["m"]) for entry in value]
    if key == "traceback":
        return "<traceback>" if value else []
    if key == "current_inputs" and isinstance(value, dict):
        return sorted(value)
    if key in ("executed", "current_outputs", "dependent_outputs") and isinstance(value, list):
        return sorted(value)
    if key == "errors" and isinstance(value, list):
        return sorted((_normal(item) for item in value), key=json.dumps)
    if isinstance(value, dict):
        return {name: _normal(item, name) for name, item in value.items()}
    if isinstance(value, list) and len(value) == 5 and isinstance(value[4], list):
        value = [*value[:4], sorted(value[4])]  # a queue item: the outputs to execute are a set
    return [_normal(item) for item in value] if isinstance(value, list) else value


# --- The nodes of the recordings -----------------------------------------------------------------------------------


def recorded_nodes() -> list[Node]:
    """Give the test nodes that the recorded server had, as far as the scenarios need them."""
    any_: tuple[str, dict[str, Any]] = ("*", {})
    number = ("FLOAT", {"default": 1.0})
    integer = ("INT", {"default": 0})
    return [
        Node(
            "ScratchBlockSleep",
            _block,
            required={"image": ("IMAGE",), "seconds": number, "nonce": integer},
            outputs=("IMAGE",),
        ),
        Node("TestSleep", _sleep, required={"value": any_, "seconds": number}, outputs=("*",), concurrent=True),
        Node("TestSyncError", _fail, required={"value": any_}, outputs=("*",)),
        Node(
            "TestAsyncError",
            _fail_later,
            required={"value": any_, "error_after": number},
            outputs=("*",),
            concurrent=True,
        ),
        Node(
            "TestAsyncTimeout",
            _time_out,
            required={"value": any_, "timeout": number, "operation_time": number},
            outputs=("*",),
            concurrent=True,
        ),
        Node(
            "ScratchBlocker",
            lambda context, image, message, nonce: ExecutionBlocker(message or None),
            required={"image": ("IMAGE",), "message": ("STRING", {}), "nonce": integer},
            outputs=("IMAGE",),
        ),
        Node(
            "ScratchNaNOutput",
            lambda context, kind, nonce: NodeResult(
                ui={"value": [{"nan": float("nan"), "inf": float("inf"), "none": None}[kind]]}
            ),
            required={"kind": (["nan", "inf", "none"],), "nonce": integer},
            output_node=True,
        ),
        Node(
            "TestOutputNodeWithSocketOutput",
            lambda context, image, value: (image,),
            required={"image": ("IMAGE",), "value": number},
            outputs=("IMAGE",),
            output_node=True,
        ),
        Node(
            "TestLazyMixImages",
            lambda context, mask, image1=None, image2=None: (image1 if image1 is not None else image2,),
            required={"image1": ("IMAGE", {"lazy": True}), "image2": ("IMAGE", {"lazy": True}), "mask": ("MASK",)},
            outputs=("IMAGE",),
            needed=lambda image1, image2, mask: ["image1"] if image1 is None else [],
        ),
        Node(
            "StubMask",
            lambda context, **_: ([Image.new("L", (64, 64))],),
            required={"value": number, "height": integer, "width": integer, "batch_size": integer},
            outputs=("MASK",),
        ),
        Node(
            "TestDynamicDependencyCycle",
            _cycle,
            required={"input1": ("IMAGE",), "input2": ("IMAGE",)},
            outputs=("IMAGE",),
        ),
        Node(
            "TestParallelSleep",
            _parallel_sleep,
            required=dict.fromkeys(("image1", "image2", "image3"), ("IMAGE",))
            | dict.fromkeys(("sleep1", "sleep2", "sleep3"), number),
            outputs=("IMAGE",),
        ),
        Node(
            "ScratchJoin",
            lambda context, **images: (images["image1"],),
            required=dict.fromkeys(("image1", "image2", "image3"), ("IMAGE",)),
            outputs=("IMAGE",),
        ),
        Node(
            "RebatchImages",
            lambda context, images, batch_size: (images,),  # of one picture, as in the recording, there is one batch
            required={"images": ("IMAGE", {}), "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096})},
            outputs=("IMAGE",),
        ),
        Node(
            "ScratchProgressText",
            _say,
            required={"text": ("STRING", {}), "broadcast": ("BOOLEAN", {}), "nonce": integer},
            output_node=True,
        ),
        Node(
            "PrimitiveString",
            lambda context, value: (value,),
            required={"value": ("STRING", {"multiline": False})},
            outputs=("STRING",),
        ),
        Node(
            "PreviewAny",
            lambda context, source: NodeResult(ui={"text": [source]}),
            required={"source": any_},
            output_node=True,
        ),
        Node(
            "TestCustomValidation5",
            lambda context, **_: None,
            required={"input1": number, "input2": number},
            outputs=("IMAGE",),
            validate=lambda input1, input2: "7s are not allowed. I've never liked 7s." if input2 == 7.0 else True,
        ),
        Node(
            "TestAsyncValidation",
            lambda context, **_: None,
            required={"value": number, "threshold": number},
            outputs=("IMAGE",),
            validate=lambda value, threshold: (
                f"Value {value} exceeds threshold {threshold}" if value > threshold else True
            ),
        ),
        Node(
            "TestAsyncValidationError",
            lambda context, **_: None,
            required={"value": number, "max_value": number},
            outputs=("IMAGE",),
            validate=lambda value, max_value: (
                f"Async validation failed: {value} > {max_value}" if value > max_value else True
            ),
        ),
    ]


async def _block(context: NodeContext, image: Any, seconds: float, nonce: int) -> Any:
    await context.sleep(seconds)
    return (image,)


async def _sleep(context: NodeContext, value: Any, seconds: float) -> Any:
    ticks = max(1, round(seconds * 100))
    for tick in range(ticks):
        context.progress(seconds * tick / ticks, seconds)
        await context.sleep(0.01)
    context.progress(seconds, seconds)
    return value


def _fail(context: NodeContext, value: Any) -> None:
    raise RuntimeError("Intentional sync execution error for testing")


async def _fail_later(context: NodeContext, value: Any, error_after: float) -> None:
    await context.sleep(error_after)
    raise RuntimeError("Intentional async execution error for testing")


async def _time_out(context: NodeContext, value: Any, timeout: float, operation_time: float) -> None:
    await context.sleep(timeout)
    raise RuntimeError(f"Operation timed out after {timeout} seconds")


def _cycle(context: NodeContext, input1: Any, input2: Any) -> NodeResult:
    mask = {"class_type": "StubMask", "inputs": {"value": 0.5, "height": 64, "width": 64, "batch_size": 1}}
    one = {"class_type": "TestLazyMixImages", "inputs": {"image1": ["3", 0], "image2": input1, "mask": ["1", 0]}}
    two = {"class_type": "TestLazyMixImages", "inputs": {"image1": ["2", 0], "image2": input2, "mask": ["1", 0]}}
    return NodeResult((["3", 0],), expand={"1": mask, "2": one, "3": two})


def _parallel_sleep(context: NodeContext, **inputs: Any) -> NodeResult:
    sleeps = {
        str(number): {
            "class_type": "TestSleep",
            "inputs": {"value": inputs[f"image{number}"], "seconds": inputs[f"sleep{number}"]},
        }
        for number in (1, 2, 3)
    }
    both = {"class_type": "ScratchJoin", "inputs": {f"image{number}": [str(number), 0] for number in (1, 2, 3)}}
    return NodeResult((["4", 0],), expand={**sleeps, "4": both})


def _say(context: NodeContext, text: str, broadcast: bool, nonce: int) -> NodeResult:
    context.send_text(text, broadcast=broadcast)
    context.send("scratch.custom_event", {"hello": "world", "node": context.node_id}, broadcast=broadcast)
    return NodeResult(ui={"text": [text], "flags": [True, 1, 2.5]})


_PACED = ("CLIPTextEncode", "KSampler", "ScratchBlockSleep", "TestSleep", "TestAsyncError", "TestAsyncTimeout")


async def replay(
    recording: Recording,
    *,
    cache: CacheMode = "classic",
    on_note: Mapping[str, Callable[[Replay], None]] | None = None,
) -> Replay:
    """Replay a recording against a fresh simulator that has the recorded server's models and test nodes.

    ``on_note`` says what the recorder did at a note, beside the requests.
    """
    async with SimulatedServer(cache=cache) as server, aiohttp.ClientSession() as session:
        server.models["checkpoints"][:] = ["tiny_sd15_random.safetensors"]
        server.add_node(*recorded_nodes())
        server.number = _first_number(recording)
        run = Replay(server, session, recording, on_note or {})
        run.pace(*_PACED)
        async with asyncio.timeout(30):
            await run.run()
        return run


def _first_number(recording: Recording) -> int:
    """Find the server's counter before the first prompt; refused prompts and those with a number count too."""
    counted = 0
    for line in recording.lines:
        if line.get("method") != "POST" or line["path"] != "/prompt":
            continue
        number = (line.get("json") or {}).get("number")
        if isinstance(number, int):
            return abs(number) - counted
        if line["status"] in (200, 400):
            counted += 1
    return 0

"""A raw client for the simulator's tests: aiohttp and nothing of acomfy, so that what it sees is the wire."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, Self

import aiohttp
from yarl import URL

from acomfy.simulator import SimulatedServer

Graph = dict[str, dict[str, Any]]


def empty_image(*, color: int = 0, batch: int = 1, size: tuple[int, int] = (64, 64)) -> Graph:
    """Give a graph of one picture, node ``1``."""
    inputs = {"width": size[0], "height": size[1], "batch_size": batch, "color": color}
    return {"1": {"class_type": "EmptyImage", "inputs": inputs}}


def with_output(graph: Graph, source: str = "1", class_type: str = "SaveImage") -> Graph:
    """Add the node that makes an output of a graph's picture, as node ``9``."""
    inputs: dict[str, Any] = {"images": [source, 0]}
    if class_type == "SaveImage":
        inputs["filename_prefix"] = "ComfyUI"
    return {**graph, "9": {"class_type": class_type, "inputs": inputs}}


def chain(graph: Graph, class_type: str, **inputs: Any) -> Graph:
    """Put a node ``2`` between a graph's picture and a preview ``3`` of it."""
    return {
        **graph,
        "2": {"class_type": class_type, "inputs": {"value": ["1", 0], **inputs}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


def text_to_image(*, seed: int = 5, steps: int = 3, size: tuple[int, int] = (512, 512), batch: int = 1) -> Graph:
    """Give the guide's text-to-image workflow."""
    sampler = {"cfg": 8, "denoise": 1, "seed": seed, "steps": steps, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    return {
        "3": {"class_type": "KSampler", "inputs": {**sampler, **links}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": batch, "width": size[0], "height": size[1]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "masterpiece best quality girl"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "bad hands"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    }


class Client:
    """One client id, at most one socket at a time, and every frame that came."""

    def __init__(self, server: SimulatedServer, client_id: str | None = None) -> None:
        self.server = server
        self.url = server.url
        self.client_id = client_id or str(uuid.uuid4())
        self.session = aiohttp.ClientSession()
        self.frames: list[str | bytes] = []
        self._reader: asyncio.Task[None] | None = None
        self._pings = 0
        self._pong = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._reader is not None:
            await self.socket.close()
            await asyncio.wait([self._reader])
        await self.session.close()

    # --- The socket -----------------------------------------------------------------------------------------------

    async def connect(self, *, reading: bool = True, flags: dict[str, Any] | None = None) -> None:
        """Open the socket and wait for the greeting; with ``reading`` False, leave it unread."""
        url = f"{self.url}/ws?clientId={self.client_id}"
        self.socket = await self.session.ws_connect(url, max_msg_size=0, autoping=False)
        if flags is not None:
            await self.socket.send_str(json.dumps({"type": "feature_flags", "data": flags}))
        if reading:
            greeting = await self.socket.receive()
            self.frames.append(greeting.data)
            self.read()

    def read(self) -> None:
        """Begin to read."""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            if message.type is aiohttp.WSMsgType.PONG:
                self._pong = bytes(message.data)
            else:
                self.frames.append(message.data)
            self.server.notify()
        self.server.notify()

    async def ping(self) -> None:
        """Wait until everything that was sent before now is in ``frames``: the pong comes after it."""
        self._pings += 1
        wanted = str(self._pings).encode()
        await self.socket.ping(wanted)
        await self.server.wait_for(lambda: self._pong == wanted)

    async def closed(self) -> int | None:
        """Wait until the socket has ended; return its close code."""
        assert self._reader is not None
        await asyncio.wait([self._reader])
        return self.socket.close_code

    async def abort(self) -> None:
        """Cut the connection without a close frame."""
        connection = self.socket._response.connection
        assert connection is not None and connection.transport is not None
        connection.transport.abort()
        await self.closed()

    @property
    def messages(self) -> list[tuple[str, dict[str, Any]]]:
        """The text frames so far, as type and data."""
        parsed = (json.loads(frame) for frame in self.frames if isinstance(frame, str))
        return [(message["type"], message["data"]) for message in parsed]

    def kinds(self, prompt_id: str | None = None) -> list[str]:
        """The types of the text frames so far, of one prompt if given; without ``progress_state``."""
        return [
            kind
            for kind, data in self.messages
            if kind != "progress_state" and (prompt_id is None or data.get("prompt_id") == prompt_id)
        ]

    async def until(self, prompt_id: str) -> None:
        """Wait for the message that says a prompt is over."""
        over = ("executing", {"node": None, "prompt_id": prompt_id})
        await self.server.wait_for(lambda: over in self.messages)

    # --- Requests -------------------------------------------------------------------------------------------------

    async def post(self, graph: Graph, **more: Any) -> str:
        """Queue a prompt; return its id."""
        status, text = await self.send("/prompt", {"prompt": graph, "client_id": self.client_id, **more})
        assert status == 200, text
        prompt_id: str = json.loads(text)["prompt_id"]
        return prompt_id

    async def run(self, graph: Graph, **more: Any) -> dict[str, Any]:
        """Queue a prompt and wait for its history entry."""
        return await self.ended(await self.post(graph, **more))

    async def ended(self, prompt_id: str) -> dict[str, Any]:
        """Wait until a prompt is over, and the frames about it are here if there is a socket; return its history."""
        await self.server.wait_for(lambda: prompt_id in self.server.queue.history)
        if self._reader is not None:
            await self.until(prompt_id)
        entry: dict[str, Any] = (await self.get(f"/history/{prompt_id}"))[prompt_id]
        return entry

    async def send(self, path: str, body: Any) -> tuple[int, str]:
        """POST JSON or a form; return the status and the text of the answer."""
        data = body if isinstance(body, aiohttp.FormData) else json.dumps(body)
        async with self.session.post(self.url + path, data=data) as response:
            return response.status, await response.text()

    async def get(self, path: str) -> Any:
        """GET JSON."""
        async with self.session.get(URL(self.url + path, encoded=True)) as response:
            assert response.status == 200, await response.text()
            return json.loads(await response.read())

    async def view(self, image: dict[str, str]) -> bytes:
        """GET the bytes of an output."""
        async with self.session.get(f"{self.url}/view", params=image) as response:
            assert response.status == 200, response.status
            return await response.read()

"""Who is compared: each connects to a server and gives a function that runs one graph.

`floor` is the floor. The guide's way is sequential: one prompt at a time, websocket-client and urllib, as ComfyUI's
guide to its API writes it.
"""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import aiohttp

from acomfy import Client

from .floor import Fetch, floor
from .graphs import STREAM, Graph


@dataclass(frozen=True, slots=True)
class Connected:
    """A side that is connected.

    Attributes:
        url: The server's address.
        fetch: Runs a graph; gives its prompt_id and its picture.
        client: The client, where the side is acomfy.
    """

    url: str
    fetch: Fetch
    client: Client | None = None


Side = Callable[[str], AbstractAsyncContextManager[Connected]]


@asynccontextmanager
async def acomfy(url: str) -> AsyncIterator[Connected]:
    """Connect a `Client`."""
    async with Client(url) as client:
        await client.wait_ready()

        async def fetch(graph: Graph) -> tuple[str, bytes]:
            result = await client.run(graph)
            return result.prompt_id, await result.images[0].read()

        yield Connected(url, fetch, client)


@asynccontextmanager
async def hand_written(url: str) -> AsyncIterator[Connected]:
    """Connect the floor."""
    async with floor(url) as fetch:
        yield Connected(url, fetch)


@asynccontextmanager
async def guide(url: str) -> AsyncIterator[Connected]:
    """Do as the guide does, one prompt at a time, on one socket."""
    websocket: Any = import_module("websocket")
    client_id = str(uuid.uuid4())
    socket = websocket.WebSocket()
    socket.connect(f"{url.replace('http', 'ws')}/ws?clientId={client_id}")

    def run(graph: Graph) -> tuple[str, bytes]:
        data = json.dumps({"prompt": graph, "client_id": client_id}).encode()
        request = urllib.request.Request(f"{url}/prompt", data=data)
        prompt_id: str = json.loads(_body(request))["prompt_id"]
        node, streamed = "", b""
        while True:
            frame = socket.recv()
            if not isinstance(frame, str):
                streamed = frame[8:] if node == STREAM else streamed
                continue
            message = json.loads(frame)
            if message["type"] == "executing" and message["data"].get("prompt_id") == prompt_id:
                node = message["data"]["node"]
                if node is None:
                    break
        return prompt_id, streamed or _saved(prompt_id)

    def _saved(prompt_id: str) -> bytes:
        entry = json.loads(_body(f"{url}/history/{prompt_id}"))[prompt_id]
        image = next(image for output in entry["outputs"].values() for image in output["images"])
        return _body(f"{url}/view?{urllib.parse.urlencode(image)}")

    async def fetch(graph: Graph) -> tuple[str, bytes]:
        return run(graph)

    yield Connected(url, fetch)
    socket.close()


def _body(request: str | urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request) as response:
        body: bytes = response.read()
    return body


@asynccontextmanager
async def socket_per_job(url: str) -> AsyncIterator[Connected]:
    """Open a WebSocket for each prompt, with aiohttp: the usual asynchronous translation of the guide."""
    async with aiohttp.ClientSession() as session:

        async def fetch(graph: Graph) -> tuple[str, bytes]:
            client_id = str(uuid.uuid4())
            async with session.ws_connect(f"{url}/ws?clientId={client_id}", max_msg_size=0) as socket:
                async with session.post(f"{url}/prompt", json={"prompt": graph, "client_id": client_id}) as response:
                    prompt_id = (await response.json())["prompt_id"]
                streamed = await _until_over(socket, prompt_id)
            if streamed:
                return prompt_id, streamed
            async with session.get(f"{url}/history/{prompt_id}") as response:
                outputs = (await response.json())[prompt_id]["outputs"]
            image = next(image for output in outputs.values() for image in output["images"])
            async with session.get(f"{url}/view", params=image) as response:
                return prompt_id, await response.read()

        yield Connected(url, fetch)


async def _until_over(socket: aiohttp.ClientWebSocketResponse, prompt_id: str) -> bytes:
    """Read a socket until its prompt is over; give what was streamed."""
    node, streamed = "", b""
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            streamed = message.data[8:] if node == STREAM else streamed
            continue
        event: dict[str, Any] = json.loads(message.data)
        if event["type"] == "executing" and event["data"].get("prompt_id") == prompt_id:
            node = event["data"]["node"]
            if node is None:
                break
    return streamed


@asynccontextmanager
async def comfyui_xy(url: str) -> AsyncIterator[Connected]:
    """Connect the client of the package ``comfyui_xy``; it asks for the history of each prompt once a second."""
    async with import_module("comfyui_xy").AsyncComfyUiClient(url) as client:

        async def fetch(graph: Graph) -> tuple[str, bytes]:
            found = await client.process_workflow(graph)
            return found[0].filename.partition("_")[0], found[0].data

        yield Connected(url, fetch)


SIDES: dict[str, Side] = {
    "acomfy": acomfy,
    "floor": hand_written,
    "guide": guide,
    "socket per job": socket_per_job,
    "comfyui_xy": comfyui_xy,
}

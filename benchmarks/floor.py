"""The floor: the least Python that one socket, aiohttp and orjson allow.

It registers a prompt, posts it, takes its messages out of all others', and reads its picture. It recovers from nothing:
one lost frame, one broken connection, and its callers wait for ever.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from .graphs import STREAM, Graph

FLAGS = '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'

Fetch = Callable[[Graph], Coroutine[Any, Any, tuple[str, bytes]]]
"""Runs a graph; gives its prompt_id and its picture."""


@asynccontextmanager
async def floor(url: str) -> AsyncIterator[Fetch]:
    """Connect; give the function that runs a graph."""
    client_id = str(uuid.uuid4())
    waiting: dict[str, tuple[asyncio.Future[None], list[Any]]] = {}

    async def pump(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                frame = message.data
                start = 8 + int.from_bytes(frame[4:8], "big")
                about = orjson.loads(frame[8:start])
                if about["node_id"] == STREAM:  # else it is a preview
                    waiting[about["prompt_id"]][1].append(frame[start:])
                continue
            event = orjson.loads(message.data)
            if event["type"] == "executed":
                waiting[event["data"]["prompt_id"]][1].extend(event["data"]["output"]["images"])
            elif event["type"] == "execution_success":
                waiting[event["data"]["prompt_id"]][0].set_result(None)

    async with aiohttp.ClientSession() as session:

        async def fetch(graph: Graph) -> tuple[str, bytes]:
            prompt_id = str(uuid.uuid4())
            found: list[Any] = []
            done = asyncio.get_running_loop().create_future()
            waiting[prompt_id] = done, found
            body = orjson.dumps({"prompt": graph, "client_id": client_id, "prompt_id": prompt_id})
            async with session.post(f"{url}/prompt", data=body) as response:
                await response.read()
            await done
            del waiting[prompt_id]
            if isinstance(found[0], bytes):
                return prompt_id, found[0]
            async with session.get(f"{url}/view", params=found[0]) as response:
                return prompt_id, await response.read()

        async with session.ws_connect(f"{url}/ws?clientId={client_id}", max_msg_size=0) as socket:
            await socket.send_str(FLAGS)
            await socket.receive()
            pumping = asyncio.create_task(pump(socket))
            yield fetch
            pumping.cancel()

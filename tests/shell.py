"""Fixtures for tests of the shell: a simulated server, a client of it, and gates to hold prompts open.

Waits are on events; the client's own times are short, in multiples of ``MS``.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest

import acomfy
from acomfy.api import Api
from acomfy.simulator import Node, NodeContext, SimulatedServer

from .conftest import MS


class Gates:
    """Prompts wait at a gate of their name until the test opens it."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.reached: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def run(self, context: NodeContext, image: Any, name: str) -> Any:
        self.reached[name].set()
        step = 0
        while not self.open[name].is_set():
            step += 1
            context.progress(step, 1_000_000)
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * MS):
                    await self.open[name].wait()
        return image

    @property
    def node(self) -> Node:
        return Node(
            "Gate",
            self.run,
            required={"image": ("IMAGE",), "name": ("STRING", {"default": ""})},
            outputs=("IMAGE",),
        )


@pytest.fixture
def gates() -> Gates:
    return Gates()


@pytest.fixture
async def server(gates: Gates) -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        server.add_node(gates.node)
        yield server


def quick_client(server: SimulatedServer, **options: Any) -> acomfy.Client:
    """Make a client whose own times are short."""
    times: dict[str, Any] = {
        "silence": 200 * MS,
        "connect_timeout": 2000 * MS,
        "unreachable_timeout": 3000 * MS,
        "reconnect_delays": quick_delays,
    }
    return acomfy.Client(server.url, **{**times, **options})


def quick_delays() -> Any:
    while True:
        yield 10 * MS


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[acomfy.Client]:
    async with quick_client(server) as client:
        yield client


async def eventually(condition: Callable[[], bool], within: float = 5000 * MS) -> None:
    """Wait until a condition holds that no event tells of."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(MS)


def tasks_of_the_library() -> list[str]:
    """Name the tasks that a client left behind."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("acomfy")]


class FailingPosts:
    """POSTs of some workflows that every server answers with 500, as when a custom node breaks its validation."""

    def __init__(self) -> None:
        self._graphs: list[Mapping[str, Any]] = []
        self._post = Api.post_prompt

    def fail(self, graph: Mapping[str, Any]) -> None:
        self._graphs.append(graph)

    async def post(self, api: Api, body: Any, **options: Any) -> Any:
        if json.loads(body)["prompt"] in self._graphs:
            raise acomfy.HTTPError(500, "POST", f"{api.url}/prompt", "it broke")
        return await self._post(api, body, **options)


@pytest.fixture
def failing_posts(monkeypatch: pytest.MonkeyPatch) -> FailingPosts:
    posts = FailingPosts()
    monkeypatch.setattr(Api, "post_prompt", lambda api, body, **options: posts.post(api, body, **options))
    return posts

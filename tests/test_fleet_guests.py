"""A worker's clients of servers that are others'."""

from __future__ import annotations

import pytest

import acomfy
from acomfy.fleet import guests
from acomfy.fleet.guests import Guests
from acomfy.simulator import SimulatedServer

from .graphs import saved
from .shell import eventually, tasks_of_the_library

pytestmark = pytest.mark.anyio


async def test_a_server_has_one_client_and_those_that_follow_nothing_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guests, "_MOST_IDLE", 2)
    async with SimulatedServer() as server:
        server.faults.delay_start(3600.0)
        clients = Guests({"client_id": "me", "cancel_timeout": 0.01})
        busy = clients.client_of(server.url)
        assert clients.client_of(server.url) is busy
        job = await busy.submit(saved())
        idle = [clients.client_of(f"http://127.0.0.1:{port}") for port in (1, 2)]
        assert clients.client_of("http://127.0.0.1:1") is idle[0]
        assert len(clients) == 3
        clients.client_of("http://127.0.0.1:3")
        assert len(clients) == 3
        assert clients.client_of(server.url) is busy and not job.done()
        assert clients.client_of("http://127.0.0.1:1") is idle[0]
        await clients.aclose()
        with pytest.raises(acomfy.ClientClosed):
            await idle[1].queue()
        with pytest.raises(acomfy.ClientClosed):
            await job
        await eventually(lambda: tasks_of_the_library() == [])

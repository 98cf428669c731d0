"""Fleets for tests: over a broker of their own, with times that are short, and workers that run as tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.msg import Msg

from acomfy.fleet import Fleet, Patience, Worker
from acomfy.fleet.local import LocalBroker
from acomfy.simulator import SimulatedServer

from .brokers import connected, heard_by_the_server
from .conftest import MS


def quick_fleet(broker: LocalBroker | str, **options: Any) -> Fleet:
    """Make a fleet that gives up soon."""
    times: dict[str, Any] = {"connect_timeout": 5000 * MS, "unreachable_timeout": 10_000 * MS}
    return Fleet(broker if isinstance(broker, str) else broker.url, **{**times, **options})


def quick_worker(broker: LocalBroker | str, *servers: SimulatedServer, **options: Any) -> Worker:
    times: dict[str, Any] = {
        "poll_interval": 100 * MS,
        "patience": Patience(idle=50 * MS, starving=200 * MS, worked_at=1000 * MS),
        "client_options": {"silence": 200 * MS},
    }
    url = broker if isinstance(broker, str) else broker.url
    return Worker([server.url for server in servers], nats=url, **{**times, **options})


@asynccontextmanager
async def working(broker: LocalBroker | str, *servers: SimulatedServer, **options: Any) -> AsyncIterator[Worker]:
    """Have a worker work. At the end it is cut off, and gives back what it has."""
    async with quick_worker(broker, *servers, **options) as worker:
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def overheard(broker: LocalBroker, subject: str) -> AsyncIterator[list[Msg]]:
    """Listen to a subject."""
    heard: list[Msg] = []

    async def receive(message: Msg) -> None:
        heard.append(message)

    async with connected(broker.url) as connection:
        await connection.subscribe(subject, cb=receive)
        await heard_by_the_server(connection)
        yield heard


async def messages_in(broker: LocalBroker, stream: str) -> int:
    """Count what is in a stream."""
    async with connected(broker.url) as connection:
        info = await connection.jetstream().stream_info(stream)
        return info.state.messages


async def emptied(fleet: Fleet) -> None:
    """Wait until nothing is in the queue: an order leaves it after its outcome was written."""
    async with asyncio.timeout(10_000 * MS):
        while await fleet.waiting():  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(5 * MS)

"""Fixtures for tests of the fleet: a NATS server, and connections to it that keep what nats-py would print."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from nats.aio.client import Client as Connection
from nats.errors import NoRespondersError

from acomfy.fleet.local import LocalBroker

from .conftest import MS


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    """A NATS server with JetStream, of this test alone: it may be killed."""
    async with LocalBroker() as broker:
        yield broker


@asynccontextmanager
async def connected(*urls: str, errors: list[Exception] | None = None, **options: Any) -> AsyncIterator[Connection]:
    """Connect to NATS servers, trying again quickly and for ever; ``errors`` gets what nats-py would print."""
    kept = [] if errors is None else errors

    async def keep(error: Exception) -> None:
        kept.append(error)

    times: dict[str, Any] = {"reconnect_time_wait": 20 * MS, "max_reconnect_attempts": -1, "connect_timeout": 2}
    connection = Connection()
    try:
        await connection.connect(list(urls), error_cb=keep, **{**times, **options})
        yield connection
    finally:
        with suppress(OSError):  # of a broker that was killed: what waits to be sent to it
            await connection.close()


async def heard_by_the_server(connection: Connection) -> None:
    """Wait until the server did all that it was told before, a subscription for one.

    nats-py's ``flush`` (2.16) may be faster than what is flushed: its PING is written before what waits in its buffer.
    """
    with suppress(NoRespondersError):
        await connection.request("nobody.hears.this", timeout=5)

"""Clients of servers that are other workers', for prompts that those left there."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ..concurrency import Tasks
from .member import FleetMember

_MOST_IDLE = 16


class Guests:
    """One client for each server; of those that follow nothing the ones that were asked for last are kept.

    Args:
        client_options: Arguments of `Client`.
    """

    def __init__(self, client_options: Mapping[str, Any]) -> None:
        self._client_options = dict(client_options)
        self._clients: OrderedDict[str, FleetMember] = OrderedDict()
        self._closing = Tasks()

    def __len__(self) -> int:
        return len(self._clients)

    def client_of(self, server: str) -> FleetMember:
        """Give the client of a server, by its address."""
        client = self._clients.get(server)
        if client is None:
            self._let_go()
            client = self._clients[server] = FleetMember(server, dict(self._client_options))
        self._clients.move_to_end(server)
        return client

    def _let_go(self) -> None:
        idle = [server for server, client in self._clients.items() if not client.jobs]
        for server in idle[: max(len(idle) - _MOST_IDLE + 1, 0)]:
            self._closing.spawn(self._clients.pop(server).aclose(), "acomfy-guest")

    async def aclose(self) -> None:
        """Close them."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()), *self._closing)

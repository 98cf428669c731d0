"""What a pool tells of itself: `Pool.stats`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from .placement import ServerState
from .pool_server import PoolServer


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a pool knows of one server.

    Attributes:
        url: Its address.
        trouble: Why it cannot be used; "" when it can.
        in_flight: Prompts of the pool that it has now, and callers that have it for themselves.
        models: The model files that the last prompt given to it used.
        completed, failed: Prompts that succeeded there, and those that a node or the server refused.
        moved: Prompts that were taken back from it.
        switches: How often it was given a prompt with other models than the one before.
    """

    url: str
    state: ServerState
    trouble: str
    in_flight: int
    weight: float
    models: tuple[str, ...]
    completed: int
    failed: int
    moved: int
    switches: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool does at the moment, and did.

    Attributes:
        servers: By address.
        waiting: How many wait in the pool's line.
        waiting_by_key: The same for each key that has some.
    """

    servers: Mapping[str, ServerStats]
    waiting: int
    waiting_by_key: Mapping[Hashable, int]

    @property
    def in_flight(self) -> int:
        """Prompts that servers have now."""
        return sum(server.in_flight for server in self.servers.values())

    @property
    def completed(self) -> int:
        """Prompts that succeeded."""
        return sum(server.completed for server in self.servers.values())

    @property
    def switches(self) -> int:
        """How often a server was given a prompt with other models than the one before."""
        return sum(server.switches for server in self.servers.values())


def server_stats(server: PoolServer) -> ServerStats:
    """Tell what is known of one server."""
    return ServerStats(
        url=server.name,
        state=server.state,
        trouble=server.trouble,
        in_flight=len(server.jobs) + server.pins,
        weight=server.weight,
        models=tuple(sorted(server.warm or ())),
        completed=server.completed,
        failed=server.failed,
        moved=server.moved,
        switches=server.switches,
    )

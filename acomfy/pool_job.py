"""`PoolJob`: a `Job` that waits in a pool's line first, and may be moved to another server."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

from .job import Job, JobOwner, PromptOptions
from .line import Entry
from .placement import Need, Placement
from .router import TrackedPrompt
from .workflow import EncodedGraph


class JobServer(Protocol):
    """The server that has a job."""

    @property
    def client(self) -> JobOwner: ...

    def wish(self, job: PoolJob) -> None: ...


class PoolJob(Job):
    """One prompt given to a pool. Everything of `Job` holds; beside that it says where it is, and why.

    While it waits in the pool's line its state is ``pending`` and it is on no server. `Job.prompt_id` is another, and
    `Job.attempt` is one more, each time it was moved: each attempt has an id of its own.
    """

    __slots__ = ("entry", "failures", "graph", "place", "placed_at", "refused", "server", "withdrawn")

    def __init__(
        self,
        prompt: TrackedPrompt,
        options: PromptOptions,
        owner: JobOwner,
        index: int | None,
        graph: EncodedGraph | None,
        need: Need,
        *,
        key: Hashable = None,
        priority: float = 0.0,
        order: float | None = None,
    ) -> None:
        super().__init__(prompt, options, owner, index)
        self.graph = graph  # until it is done: it may have to be sent again, its files too
        self.entry: Entry[Any] = Entry(self, need, key=key, priority=priority, order=order)
        self.server: JobServer | None = None
        self.place: Placement | None = None
        self.placed_at = 0.0
        self.failures = 0
        self.refused: frozenset[str] = frozenset()
        self.withdrawn = False

    @property
    def placement(self) -> Placement | None:
        """Where it was sent last and why, as an object whose text says so; None before it was sent anywhere.

        `Pool.explain` says why it still waits.
        """
        return self.place

    @property
    def key(self) -> Hashable:
        """Whose it is: keys take turns in the pool's line."""
        return self.entry.key

    @property
    def priority(self) -> float:
        """Its priority in the pool's line; `Pool.reorder` changes it."""
        return self.entry.priority

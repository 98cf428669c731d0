"""`FleetJob`: a `Job` that runs on some server of a fleet, known by what comes over the broker."""

from __future__ import annotations

from typing import Protocol

from ..errors import AcomfyError
from ..job import Job, JobOwner, PromptOptions
from ..router import TrackedPrompt
from ..workflow import EncodedGraph
from .names import Lane


class FleetOwner(JobOwner, Protocol):
    """What a job asks of its fleet."""

    def listeners_changed(self, job: FleetJob) -> None: ...


class FleetJob(Job):
    """One prompt given to a fleet. Everything of `Job` holds; beside that it says where it ran.

    While it waits in the fleet's queue its state is ``pending``. `Job.prompt_id` is another, and `Job.attempt` is one
    more, each time it was begun anew; `job_id` stays.

    Attributes:
        job_id: What `Fleet.attach` takes: the prompt_id of the first attempt.
        client_id: The submitter's.
        lane: The part of the queue in which it waits.
        server: The address of the server that has it, or had it last; "" before it was begun.
        worker: The worker that has it, or had it last; "" before it was begun.
    """

    __slots__ = ("_fleet", "checked_at", "client_id", "graph", "job_id", "lane", "seq", "server", "subject", "worker")

    def __init__(
        self,
        prompt: TrackedPrompt,
        options: PromptOptions,
        owner: FleetOwner,
        index: int | None,
        *,
        client_id: str,
        lane: Lane,
        graph: EncodedGraph | None = None,
    ) -> None:
        super().__init__(prompt, options, owner, index)
        self._fleet = owner
        self.job_id = prompt.prompt_id
        self.client_id = client_id
        self.lane = lane
        self.graph = graph  # until it is in the queue
        self.uploading = graph is not None  # nothing is in the queue before its files are stored
        self.seq = 0  # its number in the queue; 0 before it is there
        self.subject = ""  # under which it is there
        self.server = ""
        self.worker = ""
        self.checked_at = 0.0

    @property
    def group(self) -> str:
        """The workers that may run it."""
        return self.lane.group

    @property
    def priority(self) -> int:
        """What has a higher one goes first."""
        return self.lane.priority

    def never_queued(self) -> bool:
        """Tell whether it ended before it was in the queue."""
        return self.done() and not self.seq and isinstance(self.exception(), AcomfyError)

    def _count_listeners(self) -> None:
        super()._count_listeners()
        self._fleet.listeners_changed(self)

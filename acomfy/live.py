"""The jobs whose outcome is not known yet, and what frames and looks at the server mean to them.

This is where the router's verdicts become outcomes. A verdict that came over an unbroken connection is enough; after a
gap the history is asked for, by the watch (`on_unclear`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakSet

from . import look, verdict
from .api import Api
from .errors import (
    ClientClosed,
    JobCancelled,
    JobInterrupted,
    JobLost,
    JobStalled,
    OutputMissing,
)
from .job import Job
from .outputs import Produced, produced_by
from .result import DownloadObserver, Output, Result, ServerSource
from .router import Delivery, Router, Run, TrackedPrompt
from .stream import Buffer
from .verdict import JobState, Verdict

ExecutedNodes: TypeAlias = Mapping[str, tuple[str, Mapping[str, Any]]]
"""What nodes showed: ``{node_id: (display_node, ui)}``."""


class LiveJobs:
    """The live jobs of one client.

    Attributes:
        on_unclear: Called with a job that ended on the server without our knowing all of it.
        on_failed: Called with a job and the error that it is about to get; True: the job goes on, submitted anew.
        listeners: The buffers of those who listen to what belongs to no prompt.
        job_observers: Called with every job that begins.
        download_observers: See `DownloadObserver`.
        queue_watchers: Set, and forgotten, when the server's queue changes next.
    """

    def __init__(self, router: Router, api: Api, transfers: asyncio.Semaphore) -> None:
        self.router = router
        self.on_unclear: Callable[[Job], None] = lambda job: None
        self.on_failed: Callable[[Job, BaseException], bool] = lambda job, error: False
        self.listeners: list[Buffer] = []
        self.job_observers: list[Callable[[Job], object]] = []
        self.download_observers: list[DownloadObserver] = []
        self.queue_watchers: WeakSet[asyncio.Event] = WeakSet()
        self._api = api
        self._transfers = transfers
        self._jobs: dict[TrackedPrompt, Job] = {}
        self._holders = 0
        self._held: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def __contains__(self, job: object) -> bool:
        return isinstance(job, Job) and job.prompt in self._jobs

    def get(self, prompt_id: str) -> Job | None:
        """Find a live job by its prompt_id."""
        prompt = self.router.live.get(prompt_id)
        return None if prompt is None else self._jobs.get(prompt)

    def add(self, job: Job) -> None:
        """Follow a job from now on. Before its POST: a cached prompt can end before the answer is read."""
        self.router.register(job.prompt)
        self._jobs[job.prompt] = job
        if self.job_observers and job.attempt == 1:
            try:
                for observer in self.job_observers:
                    observer(job)
            except BaseException:
                self._remove(job)  # it is not posted
                raise

    def rekey(self, job: Job, prompt_id: str) -> None:
        """Take over the prompt_id that a server before 0.3.45 chose, if only to cancel by it a job that was let go."""
        if job in self:
            self.router.rekey(job.prompt, prompt_id)
        else:
            job.prompt.prompt_id = prompt_id

    def _remove(self, job: Job) -> None:
        self.router.forget(job.prompt)
        self._jobs.pop(job.prompt, None)

    # --- Frames ----------------------------------------------------------------------------------------------------

    def receive_text(self, frame: bytes) -> None:
        """Take a text frame of the WebSocket."""
        if self._holders:
            self._held.append(partial(self.receive_text, frame))
            return
        router = self.router
        statuses = router.statuses
        delivery = router.receive_text(frame)
        if delivery is not None:
            self._deliver(delivery)
        if router.statuses != statuses and self.queue_watchers:
            self._wake_watchers()

    def receive_binary(self, frame: bytes) -> None:
        """Take a binary frame of the WebSocket."""
        if self._holders:
            self._held.append(partial(self.receive_binary, frame))
            return
        delivery = self.router.receive_binary(frame)
        if delivery is not None:
            self._deliver(delivery)

    def lose(self) -> None:
        """Note that frames may have been missed."""
        if self._holders:
            self._held.append(self.router.lose)
        else:
            self.router.lose()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep frames back: a prompt is being posted whose id the server chooses, and could not be recognised yet."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            while self._held and not self._holders:
                self._held.popleft()()

    def _wake_watchers(self) -> None:
        for pulse in self.queue_watchers:
            pulse.set()
        self.queue_watchers.clear()

    def _deliver(self, delivery: Delivery) -> None:
        prompt, event = delivery
        if prompt is None:
            if event is not None:
                for buffer in tuple(self.listeners):  # a listener may be let go meanwhile
                    buffer.put(event)
            return
        job = self._jobs[prompt]
        if event is not None:
            job.deliver(event)
        if job.posting is None or job.posted_at is not None:
            self._maybe_conclude(job)

    def answered(self, job: Job) -> None:
        """Note that a job's POST was answered; until then its end is only remembered.

        The answer says whether the server dropped some of its outputs, and may be overtaken by the end.
        """
        if job in self:
            self._maybe_conclude(job)

    def _maybe_conclude(self, job: Job) -> None:
        if job.prompt.verdict is not None:
            self._conclude(job, job.prompt.verdict)
        elif job.prompt.over:
            self.on_unclear(job)

    # --- Outcomes --------------------------------------------------------------------------------------------------

    def _conclude(self, job: Job, verdict: Verdict) -> None:
        """Settle a job by the verdict that its messages gave, unless something of it may have been missed."""
        if verdict.error is not None:
            self.fail(job, verdict.error)
        elif job.prompt.intact and job.prompt.run is not None and job.prompt.run.has_outputs:
            self._succeed(job, job.prompt.run.executed, job.prompt.run.cached)
        else:
            self.on_unclear(job)  # a success without any output is so rare that a look at its history is worth it

    def conclude_by_history(self, job: Job, entry: Mapping[str, Any]) -> None:
        """Settle a job by its history entry, and by what its messages told before."""
        prompt = job.prompt
        run = prompt.run = prompt.run or Run(None)
        run.executed = {**look.history_outputs(entry), **run.executed}
        outcome = prompt.verdict or verdict.from_history(prompt.prompt_id, entry, prompt.titles())
        if outcome.error is not None:
            self.fail(job, outcome.error)
        elif (missing := self.missing_stream(job, entry)) is not None:
            self.fail(job, self._images_lost(job, missing))
        else:
            self._succeed(job, run.executed, look.history_cached(entry) if run.cached is None else run.cached)

    def conclude_without_history(self, job: Job) -> None:
        """Settle a job whose success was heard but whose history entry is gone, by what its messages told."""
        missing = job.prompt.incomplete_stream(job.prompt.stream_nodes)
        if missing is not None:
            self.fail(job, self._images_lost(job, missing))
        elif job.prompt.may_lack_outputs():
            self.fail(job, JobLost(job.prompt_id, "evicted"))
        else:
            run = job.prompt.run
            self._succeed(job, {} if run is None else run.executed, None if run is None else run.cached)

    def missing_stream(self, job: Job, entry: Mapping[str, Any]) -> str | None:
        """Give a node whose streamed pictures may have been missed, of a prompt with this history entry."""
        targets = look.history_targets(entry)
        expected = [node for node in sorted(job.prompt.stream_nodes) if targets is None or node in targets]
        return job.prompt.incomplete_stream(expected)

    def fail(self, job: Job, error: BaseException) -> None:
        """Settle a job with an error, unless it is to be submitted anew. Does nothing when it has its outcome."""
        if job.done():
            return
        if job.rejection is not None:
            error = job.rejection
        elif job.cancel_requested and _is_gone(error):
            error = JobCancelled(job.prompt_id)  # gone is what was wanted
        self._remove(job)
        if not self.on_failed(job, error):
            job.settle(error, _state_after(error, job))

    def _succeed(self, job: Job, executed: ExecutedNodes, cached: Iterable[str] | None) -> None:
        if job.rejection is not None:
            return self.fail(job, job.rejection)
        self._remove(job)
        result = Result(self._source(job), _produced(job, executed), _raw(executed), cached)
        job.settle(result, JobState.COMPLETED)

    def outputs_so_far(self, job: Job) -> tuple[Output, ...]:
        """Give what a job's messages told of its outputs until now."""
        run = job.prompt.run
        return self._source(job).outputs(_produced(job, {} if run is None else run.executed))

    def _source(self, job: Job) -> ServerSource:
        return ServerSource(job.prompt_id, job.prompt.graph, self._api, self._transfers, self.download_observers)

    def _images_lost(self, job: Job, node_id: str) -> OutputMissing:
        run = job.prompt.run
        images = [] if run is None else run.streamed.get(node_id, [])
        return OutputMissing(job.prompt_id, node_id, received=tuple(image.image for image in images))


def _is_gone(error: BaseException) -> bool:
    """Tell whether an error says that the prompt is on the server no more, not just out of reach."""
    return isinstance(error, JobInterrupted) or (isinstance(error, JobLost) and error.reason != "unreachable")


def _produced(job: Job, executed: ExecutedNodes) -> list[Produced]:
    run = job.prompt.run
    items: list[Produced] = []
    for display_node, ui in executed.values():
        items.extend(produced_by(display_node, ui))
    if run is not None:
        items.extend(run.streamed_images())
    return items


def _raw(executed: ExecutedNodes) -> dict[str, Mapping[str, Any]]:
    return {node_id: ui for node_id, (_, ui) in executed.items()}


def _state_after(error: BaseException, job: Job) -> JobState:
    if isinstance(error, JobCancelled | JobInterrupted):
        return JobState.CANCELLED
    if isinstance(error, JobLost | JobStalled | OutputMissing):
        return JobState.LOST
    return job.prompt.state if isinstance(error, ClientClosed) else JobState.FAILED

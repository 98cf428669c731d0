"""`Pool`: many ComfyUI servers, with the methods of a `Client` of one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self
from weakref import WeakSet

from .concurrency import Tasks
from .errors import (
    ClientClosed,
    JobCancelled,
    JobStalled,
    NoServerAvailable,
    QueueFull,
    WorkflowError,
)
from .job import Job, PromptOptions
from .mapping import Feed, Workflows, check_workflows, iterate
from .placement import NOTHING, Need, Placement, read_need
from .pool_dispatch import Dispatcher, Pin
from .pool_job import PoolJob
from .pool_members import Members
from .pool_pinned import Pinned
from .pool_stats import PoolStats, server_stats
from .prompting import OnLost, encoded, prompt_options, tracked, unsendable
from .result import DownloadObserver, Output, Result
from .snapshots import Snapshots
from .verdict import JobState
from .workflow import EncodedGraph, Graph, Workflow


class _Turn(NamedTuple):
    """Where a prompt stands in the line; ``order`` None is behind all of its priority and key."""

    key: Hashable
    priority: float
    order: float | None


class Pool:
    """Many ComfyUI servers, used like one `Client`.

    Prompts wait in the pool's own line, and few of them at a time in the servers' queues: so they can be reordered and
    cancelled for free, and go where their models are warm. Example::

        async with acomfy.Pool(["http://gpu1:8188", "http://gpu2:8188"]) as pool:
            async for job in pool.map(workflows, limit=100):
                await (await job).save("out/")

    It belongs to the event loop of its first use; entering it never waits for a server and never raises for one.
    """

    def __init__(
        self,
        servers: Iterable[str | Mapping[str, Any]],
        *,
        in_flight: int = 2,
        # The line
        max_pending: int | None = None,
        max_pending_per_key: int | None = None,
        # Failures
        max_attempts: int = 3,
        check_interval: float = 5.0,
        unreachable_timeout: float = 30.0,
        unavailable_timeout: float | None = 60.0,
        # Of every client
        stream_classes: Collection[str] = ("SaveImageWebsocket",),
        **options: Any,
    ) -> None:
        """Make a pool. Nothing is opened yet.

        Args:
            servers: For each its address, or the arguments of `Client` for it, as ``{"url": ..., "token": ...}``, and
                beside them ``weight`` (1.0; one of 2.0 is given twice the line) and its own ``in_flight``.
            in_flight: Prompts that a server is given at once: one to run, the others to wait in its queue.
            max_pending: Prompts that may wait in the pool's line; one more is `QueueFull`. None: any number.
            max_pending_per_key: The same for each key.
            max_attempts: How often a prompt may run and be lost with its server, before that is its outcome.
            check_interval: Seconds between looks at each server (one integer by HTTP). A server where nothing listens
                is left at the second look that says so; one that just does not answer, or only a proxy before it does,
                after four intervals. One that is down is looked at that often, and used again once it is ready.
            unreachable_timeout: After that long without any answer, what runs on a server counts as lost.
            unavailable_timeout: After that long without any server that could take it, what waits ends as
                `NoServerAvailable`; 0: at once. None: it waits on.
            stream_classes: As for `Client`.
            options: Further arguments of `Client`, for all servers.

        Raises:
            ValueError, TypeError: An address or another of these cannot be used.
        """
        if in_flight < 1 or max_attempts < 1:
            raise ValueError("in_flight and max_attempts are at least 1")
        if check_interval <= 0:
            raise ValueError(f"check_interval is more than 0, not {check_interval}")
        self._max_pending = max_pending
        self._max_pending_per_key = max_pending_per_key
        self._stream_classes = frozenset(stream_classes)
        self._dispatcher = Dispatcher(
            unavailable_timeout=unavailable_timeout,
            max_attempts=max_attempts,
            on_change=self._changed,
            withdraw=lambda server, job: self._members.begin_to_withdraw(server, job),
        )
        self._members = Members(
            self._dispatcher,
            {"stream_classes": stream_classes, **options},
            in_flight=in_flight,
            check_interval=check_interval,
            unreachable_timeout=unreachable_timeout,
            spawn=self._spawn,
            on_change=self._changed,
            next_change=self._next_change,
            observer=self._observed,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._tasks = Tasks()
        self._live: dict[PoolJob, None] = {}
        self._change = asyncio.Event()
        self._snapshots = Snapshots()
        self._job_observers: list[Callable[[Job], object]] = []
        self._download_observers: list[DownloadObserver] = []
        self._queue_watchers: WeakSet[asyncio.Event] = WeakSet()
        if isinstance(servers, str | Mapping):
            raise TypeError("servers is a list of addresses, or of the arguments of a Client for each")
        for server in servers:
            self._members.add(server)

    def __repr__(self) -> str:
        return f"<Pool of {len(self._dispatcher.servers)} servers, {len(self._dispatcher.line)} prompts wait>"

    # --- Opening and closing -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> None:
        """Begin to tend the servers, once."""
        loop = asyncio.get_running_loop()
        if self._closing is not None:
            raise ClientClosed("the pool is closed")
        if self._loop is None:
            self._loop = loop
            self._members.open()
        elif self._loop is not loop:
            raise RuntimeError("a Pool belongs to the event loop of its first use; make another one for this loop")

    async def aclose(self) -> None:
        """Close the pool: waiting tasks get `ClientClosed`.

        As `Client.aclose`: prompts of `run` and `map` are cancelled on their servers, those of `submit` go on there.
        What waits in the pool's line is on no server, and is gone.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="acomfy-close")
        await asyncio.wait([self._closing])

    async def _close(self) -> None:
        self._dispatcher.stop()
        self._change.set()
        for task in list(self._tasks):
            task.cancel()
        for entry in list(self._dispatcher.line):
            self._dispatcher.remove(entry)
            if isinstance(entry.item, Pin) and not entry.item.server.done():
                entry.item.server.set_exception(ClientClosed("the pool is closed"))
        for job in list(self._live):
            if job.server is None:
                job.settle(ClientClosed("the pool is closed"), JobState.PENDING)
        await self._members.aclose()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def wait_ready(self, servers: int = 1) -> None:
        """Wait until so many servers can be used. Put ``asyncio.timeout`` around it; cancelling it is safe.

        Raises:
            ClientClosed: The pool was closed.
        """
        self._open()
        while self._members.usable < servers:
            await self._next_change()
            self._open()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.spawn(coroutine, "acomfy-pool")

    # --- Prompts -----------------------------------------------------------------------------------------------------

    def run(
        self,
        workflow: Graph,
        *,
        key: Hashable = None,
        priority: float = 0.0,
        strict: bool = True,
        on_lost: OnLost = "resubmit",
        front: bool = False,
        number: float | None = None,
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> Coroutine[Any, Any, Result]:
        """Submit a workflow and wait for its result, as `Client.run`.

        Cancelling it raises at once; a prompt in the pool's line is gone then, one on a server is taken from it.

        Args:
            key: Whose it is: keys take turns, however many prompts each has waiting.
            priority: What has a higher one goes first, always.
            on_lost: ``resubmit`` runs it elsewhere when it is certain that it was lost with its server while it ran,
                ``max_attempts`` times at most; with ``raise`` that is its outcome. What had not started moves anyway.
            front: Before all of its priority and key.
            number: Its place among those of its priority and key instead, lowest first; the pool counts up from 1.
            workflow, strict, targets, extra_data, stall_timeout: As for `Client.run`.

        Raises:
            QueueFull: The pool's line is full; nothing was queued.
            NoServerAvailable: For ``unavailable_timeout`` no server was there that could take it; it says why.
            WorkflowError, PromptRejected, PayloadTooLarge, JobError, ClientClosed: As `Client.run`.
        """
        graph, need = self._encoded(workflow)
        options = prompt_options(strict, on_lost, False, None, targets, extra_data, stall_timeout)
        return self._run(graph, need, options, self._turn(key, priority, front, number))

    async def _run(self, graph: EncodedGraph, need: Need, options: PromptOptions, turn: _Turn) -> Result:
        job = self._begin(graph, need, options, turn)
        job.cancel_on_close = True
        try:
            return await job
        except BaseException:
            if not job.done() or isinstance(job.exception(), JobStalled):
                self._wish(job)
            raise

    def submit(
        self,
        workflow: Graph,
        *,
        key: Hashable = None,
        priority: float = 0.0,
        strict: bool = True,
        on_lost: OnLost = "resubmit",
        front: bool = False,
        number: float | None = None,
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> Coroutine[Any, Any, PoolJob]:
        """Put a workflow into the pool's line; give its job at once.

        Unlike `Client.submit` it does not wait for a server's answer: what that refuses is the job's outcome.

        Raises:
            WorkflowError: By the call itself, as `Client.run`.
            QueueFull: The pool's line is full; nothing was queued.
            NoServerAvailable: With ``unavailable_timeout=0``: no server is there that could take it.
            ClientClosed: The pool is closed.
        """
        graph, need = self._encoded(workflow)
        options = prompt_options(strict, on_lost, False, None, targets, extra_data, stall_timeout)
        return self._submit(graph, need, options, self._turn(key, priority, front, number))

    async def _submit(self, graph: EncodedGraph, need: Need, options: PromptOptions, turn: _Turn) -> PoolJob:
        job = self._begin(graph, need, options, turn)
        if isinstance(job.exception(), NoServerAvailable):
            await job
        return job

    def map(
        self,
        workflows: Workflows,
        *,
        limit: int = 16,
        key: Hashable = None,
        priority: float = 0.0,
        strict: bool = True,
        on_lost: OnLost = "resubmit",
        front: bool = False,
        number: float | None = None,
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Submit many workflows and yield each one's job when it is done, as `Client.map`.

        What servers make of one, after its attempts, is that job's outcome, also if they fail with it: others go on.

        Args:
            workflows: An iterable or asynchronous iterable; it may be endless. While the pool's line is full it is not
                read on.
            limit: Jobs submitted and not yet yielded, at most: a few times the servers' places keeps all busy.
            key, priority, strict, on_lost, front, number, targets, extra_data, stall_timeout: As for `run`, for each.

        Raises:
            ClientClosed: The pool is closed.
        """
        options = prompt_options(strict, on_lost, False, None, targets, extra_data, stall_timeout)

        def begin(workflow: Graph, index: int) -> Job:
            return self._begin_item(workflow, index, options, self._turn(key, priority, front, number))

        if self._max_pending is not None or self._max_pending_per_key is not None:
            check_workflows(workflows)
            workflows = self._paced(workflows, key)
        # One server may fail with one prompt, and after its attempts that is the prompt's outcome; others go on.
        feed = Feed(workflows, limit, begin=begin, cancel=self._wish, spawn=self._spawn, stops=lambda job: False)
        return feed.jobs()

    async def _paced(self, workflows: Workflows, key: Hashable) -> AsyncGenerator[Graph, None]:
        async for item in iterate(workflows):
            while self._full(key):
                await self._next_change()
            yield item

    def _begin_item(self, workflow: Graph, index: int, options: PromptOptions, turn: _Turn) -> Job:
        try:
            graph, need = self._encoded(workflow)
        except WorkflowError as exc:
            return unsendable(exc, options, self, index)
        job = self._begin(graph, need, options, turn, index)
        job.cancel_on_close = True
        return job

    def _encoded(self, graph: Graph) -> tuple[EncodedGraph, Need]:
        need_of = graph._nodes if isinstance(graph, Workflow) else graph
        return encoded(graph, self._stream_classes, self._snapshots), read_need(need_of)

    def _turn(self, key: Hashable, priority: float, front: bool, number: float | None) -> _Turn:
        hash(key)
        if not math.isfinite(priority) or not math.isfinite(number or 0.0):
            raise ValueError(f"priority and number are places in an order, not {priority} and {number}")
        if front:
            return _Turn(key, priority, self._dispatcher.line.front_order(key, priority))
        return _Turn(key, priority, None if number is None else float(number))

    def _full(self, key: Hashable) -> str:
        """Say that the line is full; "" when it is not."""
        line = self._dispatcher.line
        if self._max_pending is not None and len(line) >= self._max_pending:
            return f"{len(line)} prompts wait (max_pending)"
        if self._max_pending_per_key is not None and line.waiting(key) >= self._max_pending_per_key:
            return f"{line.waiting(key)} prompts of the key {key!r} wait (max_pending_per_key)"
        return ""

    def _begin(
        self, graph: EncodedGraph, need: Need, options: PromptOptions, turn: _Turn, index: int | None = None
    ) -> PoolJob:
        """Make a job and put it into the line. Never waits."""
        self._open()
        if full := self._full(turn.key):
            raise QueueFull(f"the pool's line is full: {full}; nothing was queued")
        prompt = tracked(graph.json, frozenset(graph.streams), options)
        job = PoolJob(prompt, options, self, index, graph, need, key=turn.key, priority=turn.priority, order=turn.order)
        job.encoded = graph if graph.files else None
        for observer in self._job_observers:
            observer(job)
        self._live[job] = None
        job.when_done(self._ended)
        self._dispatcher.add(job.entry)
        return job

    def _ended(self, job: Job) -> None:
        if isinstance(job, PoolJob):
            self._live.pop(job, None)
            self._dispatcher.ended(job)
            self._changed()

    async def _next_change(self) -> None:
        self._change.clear()
        await self._change.wait()

    def _changed(self) -> None:
        self._change.set()
        if self._queue_watchers:
            for pulse in self._queue_watchers:
                pulse.set()
            self._queue_watchers.clear()

    async def attach(self, prompt_id: str) -> Job:
        """Pick up a prompt that was submitted before, on whichever server has it, as `Client.attach`.

        Raises:
            NoServerAvailable: No server that answers knows it, and some do not answer for ``unreachable_timeout``.
            ClientClosed: The pool is closed.
        """
        self._open()
        for job in self._live:
            if job.prompt_id == prompt_id:
                return job
        client = await self._members.client_of(prompt_id)
        return await client.attach(prompt_id)

    @property
    def jobs(self) -> tuple[PoolJob, ...]:
        """The jobs whose outcome is not known yet."""
        return tuple(self._live)

    def on_job(self, observer: Callable[[Job], object]) -> Callable[[], None]:
        """Have a function called with every job as it begins; as `Client.on_job`."""
        self._job_observers.append(observer)
        return partial(self._job_observers.remove, observer)

    def on_download(self, observer: DownloadObserver) -> Callable[[], None]:
        """Have a context entered around every reading of an output; as `Client.on_download`."""
        self._download_observers.append(observer)
        return partial(self._download_observers.remove, observer)

    def _observed(self, output: Output) -> AbstractContextManager[object]:
        stack = ExitStack()
        for observer in self._download_observers:
            stack.enter_context(observer(output))
        return stack

    def reorder(self, job: PoolJob, *, priority: float | None = None, front: bool = False) -> bool:
        """Give a job that waits in the line another priority, or the first place of its key; False when it does not."""
        moved = self._dispatcher.reorder(job.entry, priority=priority, front=front)
        if moved:
            self._changed()
        return moved

    def explain(self, job: PoolJob) -> Placement:
        """Say where a job was sent and why, or, over all servers, why it still waits."""
        if job.entry.waiting or job.place is None:
            return self._dispatcher.explain(job.entry)
        return job.place

    # --- Servers -----------------------------------------------------------------------------------------------------

    def add(self, server: str | Mapping[str, Any]) -> None:
        """Add a server while the pool runs; it is used once it is ready.

        Args:
            server: As for the pool.

        Raises:
            ValueError: It is in the pool already, or its address cannot be used.
            ClientClosed: The pool is closed.
        """
        if self._loop is not None:
            self._open()
        self._members.add(server)

    async def drain(self, url: str) -> None:
        """Give a server nothing more. What waits in its queue moves; what runs there goes on. `resume` ends that.

        Cancelling it leaves it draining.

        Raises:
            KeyError: It is not in the pool.
        """
        await self._members.drain(url)

    def resume(self, url: str) -> None:
        """Use a server again that was drained.

        Raises:
            KeyError: It is not in the pool.
        """
        self._members.resume(url)

    async def remove(self, url: str) -> None:
        """Drain a server, wait until nothing of the pool is there, and let it go.

        Cancelling it leaves the server draining. Outputs that were not read by then cannot be read any more.

        Raises:
            KeyError: It is not in the pool.
        """
        await self._members.remove(url)

    def acquire(self, workflow: Graph | None = None, *, key: Hashable = None, priority: float = 0.0) -> Pinned:
        """Have one server for several steps: ``async with pool.acquire() as client: ...``.

        It takes one of the server's places, and its turn in the line like a prompt; the `Client` belongs to the pool
        and must not be closed. What is submitted by it stays on that server.

        Args:
            workflow: One that the server must be able to run, and whose models are best warm there.
            key, priority: As for `run`.

        Raises:
            NoServerAvailable, ClientClosed: As `run`, on entering.
        """
        need = NOTHING if workflow is None else self._encoded(workflow)[1]
        return Pinned(self._dispatcher, need, key, priority, self._open)

    def stats(self) -> PoolStats:
        """Tell what the pool does at the moment, and did."""
        servers = {server.name: server_stats(server) for server in self._dispatcher.servers.values()}
        line = self._dispatcher.line
        return PoolStats(servers, len(line), line.by_key())

    # --- What a job asks of its owner --------------------------------------------------------------------------------

    async def cancel(self, job: Job) -> bool:
        """See `Job.cancel`. On a server that is down it is done at once: it is taken off before that is used again."""
        if not isinstance(job, PoolJob) or (job.done() and job.server is None):
            return isinstance(job.exception(), JobCancelled)
        if job.server is not None:
            if not job.done():
                job.server.wish(job)
            return await job.server.client.cancel(job)
        self._open()
        self._wish(job)
        await job.settled()
        return isinstance(job.exception(), JobCancelled)

    def _wish(self, job: Job) -> None:
        """Have a job cancelled. Never waits."""
        if not isinstance(job, PoolJob) or (job.done() and job.server is None):
            return
        job.cancel_requested = True
        if self._dispatcher.remove(job.entry):
            job.settle(JobCancelled(job.prompt_id), JobState.CANCELLED)
        elif job.server is not None:
            job.server.wish(job)

    async def position(self, job: Job) -> int | None:
        """Count the prompts before a job: in the pool's line and in the shortest queue of a server, or in its server's.

        See `Job.position`.
        """
        if not isinstance(job, PoolJob):
            return None
        if job.server is not None:
            return await job.server.client.position(job)
        place = self._dispatcher.line.position(job.entry)
        views = [server.view() for server in self._dispatcher.servers.values() if server.usable]
        return None if place is None else place + min((view.ours + view.others for view in views), default=0)

    def outputs_so_far(self, job: Job) -> tuple[Output, ...]:
        """See `Job.outputs`."""
        if not isinstance(job, PoolJob) or job.server is None:
            return ()
        return job.server.client.outputs_so_far(job)

    def queue_changes(self) -> int:
        """Give a number that changes when the line or a server's queue does."""
        return self._dispatcher.changes

    def wake_at_queue_change(self, pulse: asyncio.Event) -> None:
        """Have an event set when the line or a server's queue changes next."""
        self._queue_watchers.add(pulse)

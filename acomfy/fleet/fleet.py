"""`Fleet`: ComfyUI servers anywhere, reached through a NATS broker, with the methods of a `Client` of one."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import nats.errors
from nats.aio.msg import Msg

from ..client import OnLost, encoded, prompt_options, tracked, unsendable
from ..concurrency import Tasks
from ..errors import AcomfyError, ClientClosed, JobCancelled, JobStalled, WorkflowError
from ..job import Job, PromptOptions
from ..mapping import Feed, Workflows
from ..placement import read_need
from ..result import Output, Result
from ..router import TrackedPrompt
from ..snapshots import Snapshots
from ..verdict import JobState
from ..workflow import EncodedGraph, Graph, Workflow
from .attending import Attending
from .broker import Broker
from .dead import DeadLetter, DeadLetters
from .hearing import Hearing
from .inbox import Inbox
from .job import FleetJob
from .names import Lane, Names, check_token, lane_of
from .posting import Posting
from .records import Records
from .results import Results
from .store import FileStore
from .streams import Keeping
from .wire import Order, Outcome, read_order
from .workers import WorkerInfo, ask_workers

logger = logging.getLogger(__name__)

_POST = "acomfy-post"
_LARGEST_GRAPH = 1 << 30


class Fleet:
    """Many ComfyUI servers on any number of machines, used like one `Client`.

    Prompts wait in a durable queue of a NATS server with JetStream; beside each ComfyUI a worker (``acomfy worker``)
    takes one when its GPU is free. Any of them may die, the submitter too: what was submitted is done, and
    `attach` gets its result. Example::

        async with Fleet("nats://127.0.0.1:4222") as fleet:
            result = await fleet.run(workflow)
            paths = await result.save("out/")

    It belongs to the event loop of its first use; entering it never waits for the broker and never raises for it.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "nats://127.0.0.1:4222",
        *,
        name: str = "acomfy",
        group: str = "default",
        client_id: str | None = None,
        # Prompts
        stream_classes: Collection[str] = ("SaveImageWebsocket",),
        # Times, in seconds
        lease: float = 30.0,
        connect_timeout: float = 10.0,
        cancel_timeout: float = 2.0,
        unreachable_timeout: float = 60.0,
        unavailable_timeout: float | None = None,
        # What the broker keeps, and the way to it
        keeping: Keeping | None = None,
        client_options: Mapping[str, Any] | None = None,
        max_requests: int = 16,
        **options: Any,
    ) -> None:
        """Make a fleet. Nothing is opened yet.

        Args:
            servers: Addresses of the NATS server, or of those of a cluster; user and password may be in them.
            name: Of the fleet: what its streams and subjects on the broker begin with. Workers have the same.
            group: The workers that prompts are for, where nothing else is said.
            client_id: Under which outcomes are written; None: a new UUID. A submitter that dies and comes back needs
                none: `attach` finds them all.
            stream_classes: As for `Client`.
            lease: Seconds without a sign of life from a worker after which what it had goes to another. Workers
                have the same; it is said to the broker when a part of the queue is first used.
            connect_timeout: For the broker, before `submit` raises; after the first connection it is waited for
                ``unreachable_timeout``.
            cancel_timeout: How long `Job.cancel` and `aclose` wait until prompts are off their servers.
            unreachable_timeout: After that long without the broker, live jobs end as `JobLost`: they go on without
                this submitter, and `attach` gets them later.
            unavailable_timeout: After that long without any worker of its group, a job that waits ends as
                `NoServerAvailable`. None: it waits on, as a durable queue does.
            keeping: How the broker keeps things, if this is the first to use it: replicas, times to live.
            client_options: Arguments of `Client` for reading files that workers left on their servers: ``token``...
            max_requests: Files that are read at once.
            options: Arguments of ``nats.connect``: ``tls``, ``user_credentials``, ``nkeys_seed``, ``user``,
                ``password``, ``token``...

        Raises:
            ValueError, TypeError: One of these cannot be used.
        """
        if lease < 1:
            raise ValueError(f"lease is at least 1 second, not {lease}")
        self.client_id = check_token("client_id", client_id or str(uuid.uuid4()))
        self._group = check_token("group", group)
        self._names = Names(name)
        self._stream_classes = frozenset(stream_classes)
        self._lease = lease
        self._connect_timeout = connect_timeout
        self._cancel_timeout = cancel_timeout
        self._patience = unreachable_timeout
        self._broker = Broker(servers, self._names, keeping or Keeping(), options)
        self._records = Records(self._broker, patience=unreachable_timeout)
        self._dead = DeadLetters(self._broker, self._records, patience=unreachable_timeout)
        self._tasks = Tasks()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._snapshots = Snapshots()
        self._live: dict[str, FleetJob] = {}
        self._wishes: dict[FleetJob, asyncio.Task[None]] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._job_observers: list[Callable[[Job], object]] = []
        self._changes = 0
        self._pulses: set[asyncio.Event] = set()
        files = FileStore(self._broker, self._names.files)
        self._inputs = FileStore(self._broker, self._names.inputs)
        place = f"the fleet {name} at {self._broker.shown}"
        self._results = Results(files, place, client_options or {}, max_requests=max_requests)
        self._posting = Posting(self._broker, self._inputs, lease=lease, patience=unreachable_timeout)
        self._hearing = Hearing(self._broker, self._spawn)
        self._attending = Attending(
            self._broker,
            self._records,
            self._live,
            settle=self._settle_written,
            unreachable_timeout=unreachable_timeout,
            unavailable_timeout=unavailable_timeout,
        )

    def __repr__(self) -> str:
        return f"<Fleet {self._names.name} at {self._broker.shown}, {len(self._live)} live jobs>"

    # --- Opening and closing -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> None:
        """Begin to connect, once."""
        loop = asyncio.get_running_loop()
        if self._closing is not None:
            raise ClientClosed("the fleet is closed")
        if self._loop is None:
            self._loop = loop
            self._broker.open()
            self._spawn(self._attending.run())
            self._spawn(self._hear_of_starts())
            self._inbox(self.client_id)
        elif self._loop is not loop:
            raise RuntimeError("a Fleet belongs to the event loop of its first use; make another one for this loop")

    async def aclose(self) -> None:
        """Close it: waiting tasks get `ClientClosed`.

        As `Client.aclose`: prompts of `run` and `map` are cancelled, for which ``cancel_timeout`` is given; those of
        `submit` and `attach` go on, for a later `attach`. Cancelling it lets the closing go on.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="acomfy-close")
        await asyncio.wait([self._closing])

    async def _close(self) -> None:
        for job in list(self._live.values()):
            if job.cancel_on_close:
                self._wish(job)
            self._live.pop(job.job_id, None)
            job.settle(ClientClosed("the fleet is closed"), job.state)
        wishes = [*self._wishes.values(), *(task for task in self._tasks if task.get_name() == _POST)]
        if wishes:
            await asyncio.wait(wishes, timeout=self._cancel_timeout)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._results.aclose()
        await self._broker.aclose()

    async def wait_ready(self, workers: int = 0) -> None:
        """Wait until the broker can be used, and so many workers of this group are there.

        Put ``asyncio.timeout`` around it; cancelling it is safe.

        Raises:
            ServerUnreachable: The broker refuses the credentials.
            ClientClosed: The fleet is closed.
        """
        self._open()
        await self._broker.ready(None)
        while workers and len(await self.workers()) < workers:
            self._open()

    async def workers(self, group: str | None = None, *, wait: float = 0.5) -> list[WorkerInfo]:
        """Ask which workers are there, and what they do.

        Args:
            group: Which ones; None: those of the fleet's own group.
            wait: Seconds in which answers are taken.

        Raises:
            ServerUnreachable, ClientClosed: The broker cannot be asked.
        """
        self._open()
        await self._broker.ready(self._connect_timeout)
        return await ask_workers(self._broker, self._names.ping(group or self._group), wait=wait)

    async def waiting(self) -> int:
        """Count what is in the queue: what waits, and what runs, of all groups.

        Raises:
            ServerUnreachable, BrokerError, ClientClosed: The broker cannot be asked.
        """
        self._open()
        info = await self._broker.persist(lambda js: js.stream_info(self._names.jobs), patience=self._connect_timeout)
        return info.state.messages

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str = "acomfy-fleet") -> asyncio.Task[None]:
        return self._tasks.spawn(coroutine, name)

    # --- Prompts -----------------------------------------------------------------------------------------------------

    def run(
        self,
        workflow: Graph,
        *,
        group: str | None = None,
        priority: int = 0,
        strict: bool = True,
        on_lost: OnLost = "resubmit",
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> Coroutine[Any, Any, Result]:
        """Submit a workflow and wait for its result, as `Client.run`.

        Cancelling it raises at once, and takes exactly this prompt from the queue or from its server.

        Args:
            group: The workers that may run it; None: the fleet's own.
            priority: From -9 to 9; what has a higher one goes first.
            on_lost: ``resubmit`` runs it again when it is certain that it was lost with its server while it ran, as
                often as workers allow (``max_attempts``); with ``raise`` that is its outcome.
            workflow, strict, targets, extra_data, stall_timeout: As for `Client.run`.

        Raises:
            WorkflowError: By the call itself, as `Client.run`.
            QueueFull: The fleet's queue is full; nothing was queued.
            ServerUnreachable: The broker cannot be reached. If ``maybe_sent``, the prompt may have been queued.
            BrokerError: It says no.
            PromptRejected, PayloadTooLarge, JobError, NoServerAvailable, ClientClosed: As `Client.run` and `Pool.run`.
        """
        graph, lane = self._encoded(workflow, group, priority)
        options = prompt_options(strict, on_lost, False, None, targets, extra_data, stall_timeout)
        return self._run(graph, lane, options)

    async def _run(self, graph: EncodedGraph, lane: Lane, options: PromptOptions) -> Result:
        job = self._begin(graph, lane, options)
        del graph
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
        group: str | None = None,
        priority: int = 0,
        strict: bool = True,
        on_lost: OnLost = "resubmit",
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> Coroutine[Any, Any, FleetJob]:
        """Submit a workflow; give its job once the queue has it, durably.

        Like `run`, but for the waiting. Cancelling it cancels the prompt; cancelling an await of the job does not.
        What a server says of the prompt is the job's outcome. Keep `FleetJob.job_id` to `attach` later.

        Raises:
            WorkflowError: By the call itself.
            QueueFull, ServerUnreachable, BrokerError, ClientClosed: As `run`.
        """
        graph, lane = self._encoded(workflow, group, priority)
        options = prompt_options(strict, on_lost, False, None, targets, extra_data, stall_timeout)
        return self._submit(graph, lane, options)

    async def _submit(self, graph: EncodedGraph, lane: Lane, options: PromptOptions) -> FleetJob:
        job = self._begin(graph, lane, options)
        try:
            if job.posting is not None:
                await asyncio.wait([job.posting])
        except BaseException:
            self._wish(job)
            raise
        if job.never_queued():
            await job
        return job

    def map(
        self,
        workflows: Workflows,
        *,
        limit: int = 16,
        group: str | None = None,
        priority: int = 0,
        strict: bool = True,
        on_lost: OnLost = "resubmit",
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Submit many workflows and yield each one's job when it is done, as `Client.map`.

        Args:
            workflows: An iterable or asynchronous iterable; it may be endless.
            limit: Jobs submitted and not yet yielded, at most: a few times the number of workers keeps all busy.
            group, priority, strict, on_lost, targets, extra_data, stall_timeout: As for `run`, for each.

        Raises:
            ServerUnreachable, BrokerError, ClientClosed: Nothing can be submitted.
        """
        options = prompt_options(strict, on_lost, False, None, targets, extra_data, stall_timeout)
        self._encoded({}, group, priority, check=False)

        def begin(workflow: Graph, index: int) -> Job:
            return self._begin_item(workflow, index, group, priority, options)

        return Feed(workflows, limit, begin=begin, cancel=self._wish, spawn=self._spawn).jobs()

    def _begin_item(self, workflow: Graph, index: int, group: str | None, priority: int, options: PromptOptions) -> Job:
        try:
            graph, lane = self._encoded(workflow, group, priority)
        except WorkflowError as exc:
            return unsendable(exc, options, self, index)
        job = self._begin(graph, lane, options, index)
        job.cancel_on_close = True
        return job

    def _encoded(
        self, graph: Graph, group: str | None, priority: int, *, check: bool = True
    ) -> tuple[EncodedGraph, Lane]:
        nodes = graph._nodes if isinstance(graph, Workflow) else graph
        found = encoded(graph, self._stream_classes, self._snapshots) if check else EncodedGraph(b"{}", ())
        return found, lane_of(group or self._group, priority, read_need(nodes))

    def _begin(self, graph: EncodedGraph, lane: Lane, options: PromptOptions, index: int | None = None) -> FleetJob:
        """Make a job and have it put into the queue. Never waits."""
        self._open()
        prompt = tracked(graph.json, frozenset(graph.streams), options)
        job = FleetJob(prompt, options, self, index, client_id=self.client_id, lane=lane, graph=graph)
        for observer in self._job_observers:
            observer(job)
        self._live[job.job_id] = job
        job.posting = self._spawn(self._post(job), name=_POST)
        return job

    async def _post(self, job: FleetJob) -> None:
        """Put a job into the queue; what goes wrong is its outcome."""
        try:
            if not self._inboxes[self.client_id].begun.is_set():
                await self._broker.ready(self._connect_timeout)
                await self._inboxes[self.client_id].begun.wait()
            await self._posting.post(job)
            job.posted_at = asyncio.get_running_loop().time()
        except AcomfyError as exc:
            self._end(job, exc, JobState.CANCELLED if isinstance(exc, JobCancelled) else JobState.FAILED)
        except Exception as exc:  # a bug of ours, or nats-py's: nobody may wait for ever
            self._end(job, exc, JobState.FAILED)
        finally:
            job.posting = None

    async def attach(self, job_id: str) -> FleetJob:
        """Pick up a prompt that was submitted before, by this submitter, another one, or another process.

        Its outcome is kept by the broker for a day (`Keeping.outcome_ttl`). A prompt that the fleet does not know
        ends as `JobLost`. Cancelling it is safe.

        Args:
            job_id: `FleetJob.job_id`; the prompt_id that the job had when it was submitted.

        Raises:
            ValueError: That is no id.
            ServerUnreachable, BrokerError, ClientClosed: The broker cannot be asked.
        """
        self._open()
        check_token("job_id", job_id)
        known = self._live.get(job_id)
        if known is not None:
            return known
        await self._broker.ready(self._connect_timeout)
        order, seq = None, 0
        found = await self._records.order(job_id)
        if found is not None:
            order, seq = read_order(found[0]), found[1]
            await self._inbox(order.client_id).begun.wait()
        self._open()
        if (known := self._live.get(job_id)) is not None:
            return known
        job = self._attached(job_id, order, seq)
        await self._attending.look_at(job)
        return job

    def _attached(self, job_id: str, order: Order | None, seq: int) -> FleetJob:
        graph = order.graph if order is not None and isinstance(order.graph, bytes) else b"{}"
        streams = frozenset(order.streams if order is not None else ())
        group, priority = (order.group, order.priority) if order is not None else (self._group, 0)
        job = FleetJob(
            TrackedPrompt(job_id, graph, streams),
            PromptOptions() if order is None else order.options,
            self,
            None,
            client_id=self.client_id if order is None else order.client_id,
            lane=Lane.of(group, priority),
        )
        job.seq, job.posted_at = seq, asyncio.get_running_loop().time()
        self._live[job_id] = job
        return job

    @property
    def jobs(self) -> tuple[FleetJob, ...]:
        """The jobs whose outcome is not known yet."""
        return tuple(self._live.values())

    async def dead_letters(self) -> list[DeadLetter]:
        """Give what was given up, the oldest first: orders that were lost with their servers too often.

        Raises:
            ServerUnreachable, BrokerError, ClientClosed: The broker cannot be asked.
        """
        self._open()
        return [letter async for letter in self._dead.all()]

    async def dead_workflow(self, job_id: str) -> bytes:
        """Give the workflow of a dead letter, as JSON. Raises as `requeue`, and `ProtocolError` if it is unreadable."""
        self._open()
        order = read_order((await self._dead.get(job_id)).order)
        if isinstance(order.graph, bytes):
            return order.graph
        return await self._inputs.read(order.graph, max_size=_LARGEST_GRAPH)

    async def requeue(self, job_id: str) -> FleetJob:
        """Put a dead letter back into the queue, and follow it.

        Raises:
            KeyError: There is none of that job.
            ServerUnreachable, BrokerError, ClientClosed: The broker cannot be asked.
        """
        self._open()
        await self._dead.requeue(job_id)
        return await self.attach(job_id)

    async def drop(self, job_id: str) -> None:
        """Remove a dead letter for good. Raises as `requeue`."""
        self._open()
        await self._dead.drop(job_id)

    def on_job(self, observer: Callable[[Job], object]) -> Callable[[], None]:
        """Have a function called with every job as it begins; as `Client.on_job`."""
        self._job_observers.append(observer)
        return partial(self._job_observers.remove, observer)

    # --- What comes over the broker ----------------------------------------------------------------------------------

    def _inbox(self, client_id: str) -> Inbox:
        """Begin to read the outcomes of a submitter's orders, once."""
        inbox = self._inboxes.get(client_id)
        if inbox is None:
            inbox = self._inboxes[client_id] = Inbox(self._broker, client_id, self._settle_written)
            self._spawn(inbox.run())
        return inbox

    def _settle_written(self, job_id: str, written: bytes) -> None:
        """Take an outcome as it was written; those of jobs that nobody here waits for are passed over."""
        job = self._live.get(job_id)
        if job is not None:
            self._results.read(written, lambda outcome: self._settle(job, outcome), self._spawn)

    def _settle(self, job: FleetJob, outcome: Outcome | AcomfyError) -> None:
        if isinstance(outcome, AcomfyError):  # it cannot be read
            return self._end(job, outcome, JobState.LOST)
        self._follow(job, outcome.prompt_id, outcome.attempt, outcome.server, outcome.worker)
        job.warnings = outcome.warnings
        if isinstance(outcome.value, BaseException):
            self._end(job, outcome.value, outcome.state)
        else:
            self._end(job, self._results.result(job, outcome, outcome.value), JobState.COMPLETED)

    def _end(self, job: FleetJob, outcome: Result | BaseException, state: JobState) -> None:
        self._live.pop(job.job_id, None)
        job.graph = None
        job.settle(outcome, state)
        self._queue_changed()

    def _follow(self, job: FleetJob, prompt_id: str, attempt: int, server: str, worker: str) -> None:
        """Note where a job is now, and under which id."""
        job.server, job.worker = server, worker
        if prompt_id != job.prompt_id:
            old = job.prompt
            job.begin_again(TrackedPrompt(prompt_id, old.graph, old.stream_nodes, old.targets))
            self._hearing.replaced(job, old)
        job.attempt = max(attempt, 1)

    async def _hear_of_starts(self) -> None:
        async def started(message: Msg) -> None:
            said = json.loads(message.data)
            job = self._live.get(str(said.get("id")))
            if job is not None:
                self._follow(job, str(said["prompt_id"]), int(said["attempt"]), str(said["server"]), said["worker"])
                if said.get("running"):
                    job.prompt.state = JobState.IN_PROGRESS
                self._queue_changed()
                job.pulse()

        await self._broker.listen(self._names.started(self.client_id), started)

    def _queue_changed(self) -> None:
        self._changes += 1
        pulses, self._pulses = self._pulses, set()
        for pulse in pulses:
            pulse.set()

    # --- What a job asks of its owner --------------------------------------------------------------------------------

    async def cancel(self, job: Job) -> bool:
        """See `Job.cancel`."""
        self._open()
        if not isinstance(job, FleetJob) or job.done():
            return isinstance(job.exception(), JobCancelled)
        wish = self._wish(job)
        try:
            async with asyncio.timeout(self._cancel_timeout):
                if wish is not None:
                    await asyncio.wait([wish])
                await job.settled()
        except TimeoutError:
            job.cancel_note = job.cancel_note or "neither the broker nor a worker confirmed it in time"
            return False
        return isinstance(job.exception(), JobCancelled)

    def _wish(self, job: Job) -> asyncio.Task[None] | None:
        """Have a job cancelled. Never waits."""
        if not isinstance(job, FleetJob) or (job.done() and not isinstance(job.exception(), ClientClosed | JobStalled)):
            return None
        job.cancel_requested = True
        wish = self._wishes.get(job)
        if wish is None:
            if job.posting is not None and not job.seq:
                job.uploading = True  # nothing is in the queue before its files are stored
                job.stop_uploading()
            wish = self._wishes[job] = self._spawn(self._cancel(job))
            wish.add_done_callback(lambda _: self._wishes.pop(job, None))
        return wish

    async def _cancel(self, job: FleetJob) -> None:
        if job.posting is not None:
            await asyncio.wait([job.posting])
        if job.never_queued():
            return
        await self._records.wish_cancelled(job.job_id)
        try:
            await self._broker.nc.request(
                self._names.cancel(job.job_id), b"", timeout=self._cancel_timeout + self._lease
            )
        except nats.errors.NoRespondersError:
            await self._cancel_waiting(job)
        except nats.errors.Error as exc:
            job.cancel_note = f"its worker did not confirm it: {exc}"

    async def _cancel_waiting(self, job: FleetJob) -> None:
        """Cancel what no worker has at the moment. Whoever takes it later finds that out before running it."""
        attempt, _ = await self._records.attempt(job.job_id)
        error = JobCancelled(job.prompt_id)
        outcome = Outcome(
            job.job_id, job.prompt_id, JobState.CANCELLED, error, 0 if attempt is None else attempt.number
        )
        won = await self._records.conclude(job.client_id, job.job_id, self._results.write(outcome))
        if won and attempt is None:
            await self._records.withdraw(job.job_id)
        if won and job.job_id in self._live:
            self._end(job, error, JobState.CANCELLED)

    async def position(self, job: Job) -> int | None:
        """Count the prompts before a job, at the most; see `Job.position`. 0 when it runs.

        Raises:
            ServerUnreachable, BrokerError: The broker did not answer.
        """
        if not isinstance(job, FleetJob) or not job.seq:
            return None
        if job.server:
            return 0
        stream, consumer = self._names.jobs, job.lane.consumer
        info = await self._broker.persist(lambda js: js.consumer_info(stream, consumer), patience=self._connect_timeout)
        taken = info.delivered.stream_seq if info.delivered is not None else 0
        return max(min((info.num_pending or 0) - 1, job.seq - taken - 1), 0) if job.seq > taken else 0

    def outputs_so_far(self, job: Job) -> tuple[Output, ...]:
        """Give nothing: what a prompt of a fleet made can be read once it succeeded."""
        return ()

    def listeners_changed(self, job: FleetJob) -> None:
        """Note that somebody began to listen to a job, or ceased to."""
        if self._closing is None and self._loop is not None:
            self._hearing.listeners_changed(job)

    def queue_changes(self) -> int:
        """Give a number that changes when one of this submitter's jobs began or ended."""
        return self._changes

    def wake_at_queue_change(self, pulse: asyncio.Event) -> None:
        """Have an event set when one of this submitter's jobs begins or ends."""
        self._pulses.add(pulse)

"""`Fleet`: ComfyUI servers anywhere, reached through a NATS broker, with the methods of a `Client` of one."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from nats.js import errors as js_errors

from ..concurrency import Tasks
from ..errors import AcomfyError, ClientClosed, JobCancelled, WorkflowError
from ..job import Job, PromptOptions
from ..mapping import Feed, Workflows, is_fault_of_the_server
from ..placement import read_need
from ..prompting import OnLost, encoded, prompt_options, tracked, unsendable
from ..result import DownloadObserver, Output, Result
from ..snapshots import Snapshots
from ..verdict import JobState
from ..workflow import EncodedGraph, Graph, Workflow
from .attaching import Attaching
from .attending import Attending
from .broker import Broker
from .cancelling import Cancelling
from .dead import DeadLetter, DeadLetters
from .following import Following
from .job import FleetJob
from .names import Lane, Names, check_token, lane_of
from .posting import Posting
from .records import Records
from .results import Results
from .store import FileStore
from .streams import Keeping
from .wire import read_order
from .workers import WorkerInfo, ask_workers

logger = logging.getLogger(__name__)

_POST = "acomfy-post"
_READY_PAUSE = 0.2
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
        self._connect_timeout = connect_timeout
        self._cancel_timeout = cancel_timeout
        self._broker = Broker(servers, self._names, keeping or Keeping(), options)
        records = Records(self._broker, patience=unreachable_timeout)
        files = FileStore(self._broker, self._names.files)
        place = f"the fleet {name} at {self._broker.shown}"
        self._tasks = Tasks()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._snapshots = Snapshots()
        self._inputs = FileStore(self._broker, self._names.inputs)
        self._results = Results(files, place, client_options or {}, max_requests=max_requests)
        self._following = Following(self._broker, self._results, self._spawn)
        self._posting = Posting(self._broker, self._inputs, lease=lease, patience=unreachable_timeout)
        self._cancelling = Cancelling(
            self._broker, records, self._following, self._spawn, cancel_timeout=cancel_timeout
        )
        self._attending = Attending(
            self._broker,
            records,
            self._following,
            lease=lease,
            unreachable_timeout=unreachable_timeout,
            unavailable_timeout=unavailable_timeout,
        )
        self._attaching = Attaching(
            self._broker,
            records,
            self._following,
            self._attending,
            self,
            check_open=self._open,
            group=self._group,
            connect_timeout=connect_timeout,
        )
        self._dead = DeadLetters(self._broker, records, patience=unreachable_timeout)

    def __repr__(self) -> str:
        return f"<Fleet {self._names.name} at {self._broker.shown}, {len(self._following)} live jobs>"

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
            self._following.inboxes.enter(self.client_id)
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
        try:
            for job in self._following:
                if job.cancel_on_close:
                    self._wish(job)
                self._following.let_go(job, ClientClosed("the fleet is closed"))
            posting = [task for task in self._tasks if task.get_name() == _POST]
            if waiting := [*self._cancelling.wishes, *posting]:
                await asyncio.wait(waiting, timeout=self._cancel_timeout)
            await self._tasks.end()
            await self._results.aclose()
        finally:
            await self._broker.aclose()

    async def wait_ready(self, workers: int = 0) -> None:
        """Wait until the broker can be used, and so many servers of this group take prompts.

        Put ``asyncio.timeout`` around it; cancelling it is safe.

        Raises:
            ServerUnreachable: The broker refuses the credentials.
            BrokerError: It refuses what a fleet needs.
            ClientClosed: The fleet is closed.
        """
        self._open()
        await self._broker.ready(None)
        while workers:
            infos = await self._ask(self._group, 0.5, enough=workers)
            if sum(info.takes_prompts for info in infos) >= workers:
                break
            await asyncio.sleep(_READY_PAUSE)
            self._open()

    async def workers(self, group: str | None = None, *, wait: float = 0.5) -> list[WorkerInfo]:
        """Ask which servers are there, of all workers of a group, and what they do.

        Args:
            group: Which ones; None: those of the fleet's own group.
            wait: Seconds in which answers are taken.

        Raises:
            ServerUnreachable, BrokerError, ClientClosed: The broker cannot be asked.
        """
        self._open()
        await self._broker.ready(self._connect_timeout)
        return await self._ask(self._group if group is None else check_token("group", group), wait)

    async def _ask(self, group: str, wait: float, enough: int | None = None) -> list[WorkerInfo]:
        return await ask_workers(self._broker, self._names.ping(group), wait=wait, enough=enough)

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

        What workers make of one, after all its attempts, is that job's outcome, also if servers fail with it: others go
        on.

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

        feed = Feed(workflows, limit, begin=begin, cancel=self._wish, spawn=self._spawn, stops=_cannot_be_queued)
        return feed.jobs()

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
        self._following.add(job)
        job.posting = self._spawn(self._post(job), name=_POST)
        return job

    async def _post(self, job: FleetJob) -> None:
        """Put a job into the queue; what goes wrong is its outcome."""
        try:
            with self._following.inboxes.entered(self.client_id) as inbox:
                await inbox.begin(self._connect_timeout)
            await self._posting.post(job)
            job.posted_at = asyncio.get_running_loop().time()
        except asyncio.CancelledError:
            self._following.end(job, JobCancelled(job.job_id), JobState.CANCELLED)
            raise
        except JobCancelled as exc:
            self._following.end(job, exc, JobState.CANCELLED)
        except Exception as exc:
            if not isinstance(exc, AcomfyError):  # a bug of ours, or nats-py's: nobody may wait for ever
                logger.exception("%s was not put into the queue", job)
            job.uploading = False
            self._following.end(job, exc, JobState.FAILED)
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
        return await self._attaching.attach(self.client_id, job_id)

    @property
    def jobs(self) -> tuple[FleetJob, ...]:
        """The jobs whose outcome is not known yet."""
        return tuple(self._following)

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
        self._following.observers.append(observer)
        return partial(self._following.observers.remove, observer)

    def on_download(self, observer: DownloadObserver) -> Callable[[], None]:
        """Have a context entered around every reading of an output; as `Client.on_download`."""
        self._results.observers.append(observer)
        return partial(self._results.observers.remove, observer)

    # --- What a job asks of its owner --------------------------------------------------------------------------------

    async def cancel(self, job: Job) -> bool:
        """See `Job.cancel`."""
        self._open()
        if not isinstance(job, FleetJob) or job.done():
            return isinstance(job.exception(), JobCancelled)
        return await self._cancelling.cancel(job)

    def _wish(self, job: Job) -> None:
        """Have a job cancelled that has not ended. Never waits."""
        self._cancelling.wish(job)

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
        try:
            info = await self._broker.persist(
                lambda js: js.consumer_info(stream, consumer), patience=self._connect_timeout
            )
        except js_errors.NotFoundError:  # it is made again when it is needed next
            return None
        taken = info.delivered.stream_seq if info.delivered is not None else 0
        return max(min((info.num_pending or 0) - 1, job.seq - taken - 1), 0) if job.seq > taken else 0

    def outputs_so_far(self, job: Job) -> tuple[Output, ...]:
        """Give nothing: what a prompt of a fleet made can be read once it succeeded."""
        return ()

    def listeners_changed(self, job: FleetJob) -> None:
        """Note that somebody began to listen to a job, or ceased to."""
        if self._closing is None and self._loop is not None:
            self._following.hearing.listeners_changed(job)

    def queue_changes(self) -> int:
        """Give a number that changes when one of this submitter's jobs began or ended."""
        return self._following.changes

    def wake_at_queue_change(self, pulse: asyncio.Event) -> None:
        """Have an event set when one of this submitter's jobs begins or ends."""
        self._following.wake_at_change(pulse)


def _cannot_be_queued(job: Job) -> bool:
    """Tell whether the broker did not take a job. What a worker said of one is its own outcome: others may do well."""
    return is_fault_of_the_server(job) and isinstance(job, FleetJob) and job.never_queued()

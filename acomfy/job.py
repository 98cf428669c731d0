"""`Job`: one submitted prompt. Await it, watch it, cancel it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol

from . import frames
from .errors import (
    ClientClosed,
    JobCancelled,
    JobFailed,
    JobInterrupted,
    JobLost,
    JobStalled,
    NodeProblem,
    OutputMissing,
    PromptRejected,
)
from .events import (
    Event,
    Executed,
    ExecutionCached,
    ExecutionError,
    ExecutionInterrupted,
    ExecutionStart,
    ExecutionSuccess,
    PreviewImage,
)
from .result import Output, Result
from .router import TrackedPrompt
from .stream import Buffer, EventStream
from .verdict import JobState
from .workflow import EncodedGraph

logger = logging.getLogger(__name__)

TERMINAL = (ExecutionSuccess, ExecutionError, ExecutionInterrupted)

_ALMOST = 0.999


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What may be said of one prompt; see `Client.submit`.

    Attributes:
        extra_data: As JSON, frozen when it was given.
    """

    strict: bool = True
    on_lost: Literal["raise", "resubmit"] = "raise"
    front: bool = False
    number: float | None = None
    targets: tuple[str, ...] | None = None
    extra_data: bytes | None = field(default=None, repr=False)
    stall_timeout: float | None = None


class JobOwner(Protocol):
    """What a job asks of its client."""

    async def position(self, job: Job) -> int | None: ...

    async def cancel(self, job: Job) -> bool: ...

    def outputs_so_far(self, job: Job) -> tuple[Output, ...]: ...

    def queue_changes(self) -> int: ...

    def wake_at_queue_change(self, pulse: asyncio.Event) -> None: ...


class Job:
    """One prompt on the server. Compares by identity.

    Await it, any number of times and from any number of tasks; cancelling such a wait leaves the prompt running::

        job = await client.submit(workflow)
        result = await job

    Attributes:
        index: Its place in the input of `Client.map`; None for other jobs.
        attempt: 1, and one more each time it was submitted anew (``on_lost="resubmit"``).
        warnings: What was wrong with outputs that the server dropped (``strict=False``).
        cancel_note: Why `cancel` could not do it, or not yet; None when there is nothing to say.
    """

    __slots__ = (
        "__weakref__",
        "_buffers",
        "_exc",
        "_exc_traceback",
        "_furthest",
        "_on_done",
        "_owner",
        "_pulses",
        "_result",
        "_state",
        "_verdict",
        "_waiters",
        "attempt",
        "cancel_note",
        "cancel_on_close",
        "cancel_requested",
        "encoded",
        "generation",
        "index",
        "options",
        "posted_at",
        "posting",
        "prompt",
        "rejection",
        "uploading",
        "warnings",
    )

    def __init__(self, prompt: TrackedPrompt, options: PromptOptions, owner: JobOwner, index: int | None) -> None:
        self.prompt = prompt
        self.options = options
        self.index = index
        self.attempt = 1
        self.warnings: tuple[NodeProblem, ...] = ()
        self.cancel_note: str | None = None
        self.cancel_requested = False
        self.cancel_on_close = False
        self.posting: asyncio.Task[None] | None = None
        self.posted_at: float | None = None
        self.encoded: EncodedGraph | None = None  # while files of it may still have to be uploaded
        self.uploading = False
        self.generation = 0
        self.rejection: PromptRejected | None = None
        self._owner = owner
        self._state: JobState | None = None
        self._result: Result | None = None
        self._exc: BaseException | None = None
        self._exc_traceback: TracebackType | None = None
        self._waiters: list[asyncio.Future[None]] = []
        # Tuples, since most jobs have none of these, and of ten thousand the garbage collector visits each list.
        self._on_done: tuple[Callable[[Job], None], ...] = ()
        self._buffers: tuple[Buffer, ...] = ()
        self._pulses: tuple[asyncio.Event, ...] = ()
        self._verdict: Event | None = None
        self._furthest = 0.0

    def __repr__(self) -> str:
        return f"<Job {self.prompt_id} {self.state}>"

    # --- Its outcome -----------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Result]:
        """Wait for the result. Cancelling the wait leaves the prompt running.

        Raises:
            JobFailed, OutOfMemory: A node raised.
            JobInterrupted: Somebody else stopped it.
            JobCancelled: `cancel` stopped it.
            JobLost: The server has no verdict on it and never will.
            JobStalled: ``stall_timeout`` passed.
            OutputMissing: It succeeded, but pictures that it streamed fell into a gap of the connection.
            ClientClosed: The client was closed.
        """
        return self._wait().__await__()

    async def _wait(self) -> Result:
        if self._state is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if self._waiters:
                    self._waiters.remove(waiter)
        if self._exc is not None:
            raise self._exc.with_traceback(self._exc_traceback)
        if self._result is None:
            raise AssertionError("a job ends with a result or an exception")
        return self._result

    def done(self) -> bool:
        """Tell whether it has its outcome."""
        return self._state is not None

    def exception(self) -> BaseException | None:
        """Give what awaiting it raises; None while it is live and when it succeeded."""
        return self._exc

    @property
    def prompt_id(self) -> str:
        """The prompt's id on the server. Another after it was submitted anew, and on servers before 0.3.45 after the
        POST, since they choose it themselves."""
        return self.prompt.prompt_id

    @property
    def state(self) -> JobState:
        """``pending``, ``in_progress``, ``completed``, ``failed``, ``cancelled`` or ``lost``."""
        return self.prompt.state if self._state is None else self._state

    @property
    def progress(self) -> float:
        """The part that is done, 0 to 1, over the nodes that will run. Never goes back; 1.0 on success alone."""
        if self._result is not None:
            return 1.0
        # A verdict may still turn out to lack pictures, and a prompt that is submitted anew begins at 0.
        self._furthest = max(self._furthest, min(self.prompt.progress(), _ALMOST))
        return self._furthest

    @property
    def preview(self) -> PreviewImage | None:
        """The newest preview, with its ``image`` bytes and ``mime`` type; None before the first and after the end."""
        return None if self.prompt.run is None else self.prompt.run.preview

    @property
    def node(self) -> str | None:
        """The node of the prompt that runs, or ran last; None before the first."""
        ran = None if self.prompt.run is None else self.prompt.run.ran
        return next(reversed(ran)) if ran else None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What it gave so far, also when it failed later."""
        return self._result.outputs if self._result is not None else self._owner.outputs_so_far(self)

    async def position(self) -> int | None:
        """Count the prompts before this one in the server's queue, the running one included.

        0 when it runs; None when it is not in the queue (any more). Reads ``GET /queue``, once for all jobs that ask
        while the queue does not change.

        Raises:
            ServerError: The server did not answer.
        """
        return None if self.done() else await self._owner.position(self)

    async def cancel(self) -> bool:
        """Take exactly this prompt from the server, waiting or running; never another.

        True once it is confirmed off the server. False when it had ended before, or when that could not be confirmed
        within the client's ``cancel_timeout``: the wish stands and is repeated, and `cancel_note` says why. Servers
        before 0.3.57 can only stop whatever runs; there a running prompt is left alone unless the client was given
        ``allow_global_interrupt``. Cancelling this call leaves the wish standing.
        """
        return await self._owner.cancel(self)

    # --- Watching it -----------------------------------------------------------------------------------------------

    async def updates(self, interval: float = 1.0) -> AsyncGenerator[Job, None]:
        """Yield the job whenever its state, progress, preview or place in the queue changed; last when it is done.

        The first comes at once, the next ones at least ``interval`` seconds apart. Raises nothing of the outcome.
        """
        pulse = asyncio.Event()
        self._pulses += (pulse,)
        self._count_listeners()
        try:
            loop = asyncio.get_running_loop()
            while not self.done():
                pulse.clear()
                seen, next_time = self._appearance(), loop.time() + interval
                yield self
                await self._until(next_time)
                while self._appearance() == seen and not self.done():
                    self._owner.wake_at_queue_change(pulse)
                    await pulse.wait()
                    pulse.clear()
            yield self
        finally:
            self._pulses = tuple(other for other in self._pulses if other is not pulse)
            self._count_listeners()

    def _appearance(self) -> tuple[object, ...]:
        place = self._owner.queue_changes() if self.state is JobState.PENDING else None
        return self.prompt_id, self.state, self.progress, id(self.preview), self.node, place

    async def _until(self, when: float) -> None:
        """Wait until a time of the loop's clock, or until the job is done."""
        try:
            async with asyncio.timeout_at(when):
                await self.settled()
        except TimeoutError:
            pass

    async def settled(self) -> None:
        """Wait until the job has its outcome, without raising it. Cancelling the wait leaves the prompt running."""
        try:
            await self._wait()
        except Exception:
            if not self.done():
                raise

    def events(self) -> EventStream:
        """Listen to every typed event of the prompt, from now on.

        It begins with what is known: the start, the cached nodes, what was executed, the newest progress and preview.
        It ends after the verdict, without raising. Each iterator has its own buffer, in which a newer progress or
        preview of a node takes the place of one that was not read; nothing else is left out (`EventStream.dropped`
        counts).
        """
        buffer = Buffer(self.prompt.stream_nodes)
        for event in self._known_events():
            buffer.put(event)
        if self.done():
            if self._verdict is not None:
                buffer.put(self._verdict)
            buffer.end()
        else:
            self._buffers += (buffer,)
            self._count_listeners()
        return EventStream(buffer, self._stop_listening)

    def _stop_listening(self, buffer: Buffer) -> None:
        if buffer in self._buffers:
            self._buffers = tuple(other for other in self._buffers if other is not buffer)
            self._count_listeners()

    def _count_listeners(self) -> None:
        self.prompt.listeners = len(self._buffers) + len(self._pulses)

    def _known_events(self) -> Iterator[Event]:
        run, prompt_id = self.prompt.run, self.prompt_id
        if run is not None:
            yield ExecutionStart(prompt_id, run.start)
            if run.cached is not None:
                yield ExecutionCached(prompt_id, tuple(run.cached))
            for node, (display_node, ui) in run.executed.items():
                yield Executed(prompt_id, node, display_node, ui)
            for images in run.streamed.values():
                yield from images
            if run.state is not None:
                yield frames.lazy_progress_state(prompt_id, run.state)
            step = self.prompt.newest_step()
            if step is not None:
                yield step
            if run.preview is not None:
                yield run.preview

    def _verdict_by_http(self) -> Event | None:
        """Make the event that says how it ended, where none was heard; None for what is no verdict of the server."""
        exc = self._exc
        if self._result is not None or isinstance(exc, OutputMissing):
            return ExecutionSuccess(self.prompt_id)
        if isinstance(exc, JobFailed):
            return ExecutionError(
                self.prompt_id, exc.node_id, exc.class_type, exc.exception_type, exc.exception_message, exc.traceback
            )
        if isinstance(exc, JobInterrupted) or (isinstance(exc, JobCancelled) and self.prompt.run is not None):
            return ExecutionInterrupted(self.prompt_id)
        return None

    # --- For the client --------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Hand an event to those who listen. The verdict is kept for the outcome, and nothing comes after it."""
        if self.prompt.verdict is None:
            for buffer in self._buffers:  # the garbage collector may let an iterator go meanwhile
                buffer.put(event)
        elif isinstance(event, TERMINAL):
            self._verdict = event
        self.pulse()

    def pulse(self) -> None:
        """Wake `updates`."""
        for pulse in self._pulses:
            pulse.set()

    def when_done(self, callback: Callable[[Job], None]) -> None:
        """Have a function called with the job once it has its outcome; at once if it has."""
        if self.done():
            callback(self)
        else:
            self._on_done += (callback,)

    def stop_uploading(self) -> None:
        """End the posting if it has not come to the POST yet, because files are uploaded before that."""
        if self.uploading and self.posting is not None:
            self.uploading = False
            self.posting.cancel()

    def settled_by_server(self) -> bool:
        """Tell whether nothing of it can be on the server: it ended there, or was never queued."""
        if self.posted_at is None:
            return self.posting is None
        return self.done() and not isinstance(self._exc, ClientClosed | JobStalled | JobLost | PromptRejected)

    def log(self, level: int, message: str, *args: object) -> None:
        """Log something about it, with its ``prompt_id`` in the record."""
        if logger.isEnabledFor(level):
            logger.log(level, message, *args, extra={"prompt_id": self.prompt_id})

    def begin_again(self, prompt: TrackedPrompt) -> None:
        """Follow another prompt from now on: the same graph, submitted anew."""
        self.prompt = prompt
        self.attempt += 1
        self.posted_at = None
        self._verdict = None
        self._count_listeners()
        self.pulse()

    def settle(self, outcome: Result | BaseException, state: JobState) -> None:
        """Give it its outcome, once: later calls do nothing."""
        if self._state is not None:
            return
        self.log(logging.DEBUG, "prompt %s is %s", self.prompt_id, state)
        self.progress  # noqa: B018  # remembers how far it came before the newest steps are let go
        self._state = state
        if isinstance(outcome, Result):
            self._result = outcome
        else:
            self._exc, self._exc_traceback = outcome, outcome.__traceback__
        self.stop_uploading()
        self.encoded = None
        self._tell_the_end()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters = []
        for callback in self._on_done:
            callback(self)
        self._on_done = ()

    def _tell_the_end(self) -> None:
        self._verdict = self._verdict or self._verdict_by_http()
        buffers, self._buffers = self._buffers, ()
        for buffer in buffers:
            if self._verdict is not None:
                buffer.put(self._verdict)
            buffer.end()
        self._count_listeners()
        self.pulse()
        if self.prompt.run is not None:
            self.prompt.run.let_go()

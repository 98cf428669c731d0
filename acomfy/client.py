"""`Client`: one ComfyUI server, one WebSocket, any number of prompts at once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl as ssl_module
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from . import look
from .access import Access, Token
from .api import Api
from .cancel import Canceller
from .captures import Uploadable
from .concurrency import Tasks
from .connection import AnySocket, Connection, backoff
from .errors import (
    AuthenticationError,
    ClientClosed,
    JobCancelled,
    JobLost,
    JobStalled,
    OutputMissing,
    PromptRejected,
    ServerError,
    WorkflowError,
)
from .inputs import FileInput, take_one
from .job import Job, PromptOptions
from .live import LiveJobs
from .mapping import Feed, Workflows, is_fault_of_the_server
from .places import Places
from .probing import Probe
from .prompting import OnLost, encoded, prompt_options, tracked, unsendable
from .result import DownloadObserver, Output, Result
from .retry import RetryPolicy
from .router import NO_NODES, Router, TrackedPrompt
from .server_methods import ServerMethods
from .sessions import Sessions
from .snapshots import Snapshots
from .stream import Buffer, EventStream
from .submission import Submission
from .transport import Transport
from .uploads import Uploads, check_all
from .watch import Watch
from .workflow import EncodedGraph, Graph

logger = logging.getLogger(__name__)
logging.getLogger("acomfy").addHandler(logging.NullHandler())  # quiet, unless the application sets logging up

ProfileName = Literal["comfyui", "cloud"]

_MOST_ATTEMPTS = 5
_POST = "acomfy-post"
_READY_DELAY = 0.5
_RETRY = RetryPolicy()


class Client(ServerMethods):
    """One ComfyUI server.

    Entering it never waits for the network and never raises for it; what needs the server opens it, and `wait_ready` is
    the eager check. It belongs to the event loop of its first use. Example::

        async with acomfy.Client("http://127.0.0.1:8188") as client:
            result = await client.run(workflow)
            paths = await result.save("out/")
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8188",
        *,
        # Identity
        client_id: str | None = None,
        # Access
        session: aiohttp.ClientSession | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        token: Token | None = None,
        cookies: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        ssl: ssl_module.SSLContext | bool = True,
        proxy: str | None = None,
        trust_env: bool = False,
        unix_socket: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        api_key_comfy_org: str | None = None,
        profile: ProfileName | None = None,
        # Prompts
        stream_classes: Collection[str] = ("SaveImageWebsocket",),
        allow_global_interrupt: bool = False,
        # Times, in seconds
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        request_timeout: float | None = 300.0,
        cancel_timeout: float = 2.0,
        unreachable_timeout: float = 60.0,
        silence: float = 5.0,
        heartbeat_interval: float | None = 20.0,
        reconnect_delays: Callable[[], Iterator[float]] = backoff,
        retry: RetryPolicy | None = _RETRY,
        # Limits
        max_message_size: int = 1 << 30,
        max_answer_size: int = 1 << 28,
        max_requests: int = 16,
    ) -> None:
        """Make a client. Nothing is opened yet.

        Args:
            url: The server's address; a path prefix, user and password for basic auth, and query parameters that go
                with every request (``?token=...``) may be in it.
            client_id: Under which the server sends events, to one socket only, the newest: never share it. None: a new
                UUID. That of an earlier client makes `attach` hear the events of its prompts.
            session: Used for everything, and left open; None: the client makes its own.
            headers: Sent with every request; this and all below for HTTP and WebSocket alike, to this server alone.
            auth: User and password for basic auth.
            token: A bearer token, or a function, ``async`` or not, that gives one: called before the first request, and
                again when the server answers 401, once for all requests that were refused.
            cookies: Sent with every request, besides those that the server sets.
            params: Query parameters of every request.
            ssl: True checks certificates, False does not (a self-signed server); or an ``ssl.SSLContext``.
            proxy: Address of an http or https proxy; user and password may be in it.
            trust_env: Take the proxy from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.
            unix_socket: Path of a unix socket that the server, or what stands before it, listens on.
            api_key: The key of Comfy Cloud.
            api_key_comfy_org: The key of a Comfy account, for partner nodes: goes with each prompt (``extra_data``) and
                is kept nowhere here. Servers before 0.3.45 show it in their history, before 0.3.68 in their queue.
            profile: ``cloud`` for a server that is like Comfy Cloud; None: by the host of ``url``.
            stream_classes: Node classes whose pictures in binary frames are outputs; all others' are previews.
            allow_global_interrupt: On servers before 0.3.57, stop a running prompt of ours by the interrupt that stops
                whatever runs; in an unlucky moment that is somebody else's.
            connect_timeout: For opening a connection; a submit waits that long for the WebSocket, then goes without.
            read_timeout: Silence that is borne while an answer is awaited or read, or a file is sent.
            request_timeout: For the whole of an answer in JSON; files have no such limit. None: nor has JSON.
            cancel_timeout: How long `Job.cancel` and `aclose` wait until prompts are off the server.
            unreachable_timeout: After that long without any answer, live jobs end as `JobLost`.
            silence: After that long without a word about our prompts, the server is asked by HTTP.
            heartbeat_interval: Between pings on a quiet WebSocket; None for none.
            reconnect_delays: Makes the delays between tries to open the WebSocket.
            retry: When the reads of ``client.api`` and of files are tried again; None: never.
            max_message_size: Bytes of the largest WebSocket message that is taken.
            max_answer_size: Bytes of the largest answer in JSON that is taken, decompressed.
            max_requests: POSTs under way at most, and as many transfers of files.

        Raises:
            ValueError, TypeError: ``url`` is no http or https address, or another of these cannot be used. No message
                holds a secret.
        """
        access = Access(
            url,
            headers=headers,
            auth=auth,
            token=token,
            cookies=cookies,
            params=params,
            ssl=ssl,
            proxy=proxy,
            trust_env=trust_env,
            unix_socket=unix_socket,
            api_key=api_key,
            api_key_comfy_org=api_key_comfy_org,
            profile=profile,
        )
        self.client_id = client_id or str(uuid.uuid4())
        self._sessions = Sessions(access, session)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks = Tasks()
        self._closing: asyncio.Task[None] | None = None
        self._stream_classes = frozenset(stream_classes)
        self._cancel_timeout = cancel_timeout
        self._connect_timeout = connect_timeout
        self._heartbeat_interval = heartbeat_interval
        self._max_message_size = max_message_size
        self._router = Router(interleaved=access.profile.interleaves)
        self._transport = Transport(
            access,
            self._session,
            bare_session=self._sessions.bare,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            request_timeout=request_timeout,
            retry=retry,
            max_answer_size=max_answer_size,
        )
        self.api = Api(self._transport)
        self._once = once = Api(self._transport.without_retries())  # for what asks again on its own terms
        self._probe = Probe(once, access.profile)
        self._live = LiveJobs(self._router, self.api, asyncio.Semaphore(max_requests))
        self._connection = Connection(
            open_socket=self._open_socket,
            ask=once.get_prompt,
            receive_text=self._live.receive_text,
            receive_binary=self._live.receive_binary,
            on_open=self._on_open,
            on_lost=self._live.lose,
            delays=reconnect_delays,
        )
        self._watch = Watch(
            once, self._live, self._connection, silence=silence, unreachable_timeout=unreachable_timeout
        )
        self._canceller = Canceller(
            once,
            self._live,
            spawn=self._spawn,
            capabilities=self._probe.with_version,
            allow_global_interrupt=allow_global_interrupt,
        )
        self._snapshots = Snapshots()
        self._uploads = Uploads(
            once,
            spawn=self._spawn,
            check_open=self._open,
            limit=self._probe.largest_upload,
            retry=retry,
            refers=not access.profile.signed_files,
            at_once=max_requests,
        )
        self._submission = Submission(
            once,
            self._live,
            self._connection,
            self._watch,
            self._uploads,
            client_id=self.client_id,
            account=access.account,
            capabilities=lambda: self._probe.known,
            cancel=self.cancel,
            on_answer=self._canceller.wake,
            at_once=max_requests,
            connect_timeout=connect_timeout,
            unreachable_timeout=unreachable_timeout,
        )
        self._places = Places(
            self._read_queue, lambda: (self._router.generation, self._router.statuses), spawn=self._spawn
        )
        super().__init__()
        self._live.on_unclear = self._watch.unclear
        self._live.on_failed = self._maybe_resubmit

    def __repr__(self) -> str:
        return f"<Client of {self.api.url}, {len(self._live)} live jobs>"

    # --- Opening and closing ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> None:
        """Begin to keep the WebSocket open and to watch, once; to be called by whatever needs the server."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            if self._closing is not None:
                raise ClientClosed  # it was closed before its first use: nothing is to be started any more
            self._loop = loop
            self._spawn(self._connection.run())
            self._spawn(self._watch.run())
        elif self._loop is not loop:
            raise RuntimeError("a Client belongs to the event loop of its first use; make another one for this loop")
        if self._closing is not None:
            raise ClientClosed

    async def aclose(self) -> None:
        """Close the client: waiting tasks get `ClientClosed`.

        Prompts of `run` and `map` are cancelled on the server, for which ``cancel_timeout`` is given; those of `submit`
        and `attach` are left there, for a later `attach`. May be called from any task, and any number of times.
        Cancelling it lets the closing go on.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="acomfy-close")
        await asyncio.wait([self._closing])

    async def _close(self) -> None:
        for job in self._live:
            if job.cancel_on_close:
                self._canceller.wish(job)
            self._live.fail(job, ClientClosed())
        for buffer in self._live.listeners:
            buffer.end()
        try:
            async with asyncio.timeout(self._cancel_timeout):
                await self._canceller.idle()
                await self._posts_answered()
        except TimeoutError:
            logger.warning("closed before the server confirmed that all prompts of this client are off it")
            self._connection.close_timeout = 0.1  # it does not answer; nor will it answer the closing of the socket
        while self._tasks:  # one that ends may have started another
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sessions.close()

    async def _posts_answered(self) -> None:
        """Wait for the POSTs under way: one that is cut off may be queued without anybody's knowing."""
        posts = [task for task in self._tasks if task.get_name() == _POST]
        if posts:
            await asyncio.wait(posts)

    async def wait_ready(self) -> None:
        """Wait until the server answers and its WebSocket is open, or known to be refused.

        Refused connections and 403, 404, 502, 503, 504 (a server that boots, a proxy before it) are waited out: put
        ``asyncio.timeout`` around it. Cancelling it is safe.

        Raises:
            AuthenticationError: The server wants credentials (401, or a redirect to a login page).
            ClientClosed: The client was closed.
        """
        self._open()
        while True:
            try:
                await self._once.get_system_stats()
                break
            except AuthenticationError as exc:
                if exc.status != 403:
                    raise
            except ServerError as exc:
                logger.debug("the server is not ready: %s", exc)
            await asyncio.sleep(_READY_DELAY)
            self._open()
        self._connection.hurry()
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._connection.wait_live()
        except TimeoutError:
            pass  # it is usable all the same, by HTTP

    # --- Prompts ---------------------------------------------------------------------------------------------------

    def run(
        self,
        workflow: Graph,
        *,
        strict: bool = True,
        on_lost: OnLost = "raise",
        front: bool = False,
        number: float | None = None,
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> Coroutine[Any, Any, Result]:
        """Submit a workflow and wait for its result.

        The graph is encoded by the call, before anything is awaited. Cancelling it (a timeout, a task group that ends)
        raises at once and has exactly this prompt taken from the server.

        Args:
            workflow: A `Workflow`, or a dict in API format. Files may stand in it as the values of inputs (what
                `upload` takes); they are uploaded first.
            strict: Refuse a prompt of which the server would drop some outputs (200 with ``node_errors``); False runs
                the rest and puts the problems into `Job.warnings`.
            on_lost: ``resubmit`` submits it anew when it is certain that it was lost, or its streamed pictures were.
            front: Let it run before all that waits.
            number: Its place in the server's order instead, lowest first; the server counts up from 0.
            targets: Output nodes to run; None: all (since 0.3.48).
            extra_data: Goes with the prompt into queue and history, where all users of the server can read it;
                ``{"extra_pnginfo": {"workflow": {...}}}`` is written into saved pictures.
            stall_timeout: Seconds without any sign of the prompt after which `JobStalled` is raised; None: wait on, as
                long as the server has it.

        Raises:
            WorkflowError: It is no workflow that can be sent, or a file in it is not there: raised by the call itself.
                Or a file could not be read later.
            PromptRejected: The server refused it.
            PayloadTooLarge: It is over the server's size limit.
            ServerUnreachable, HTTPError, ProtocolError: It could not be submitted.
            JobError: It did not succeed; see `Job`.
            ClientClosed: The client is closed, or was closed meanwhile.
        """
        graph = self._encoded(workflow)
        options = prompt_options(strict, on_lost, front, number, targets, extra_data, stall_timeout)
        return self._run(graph, options)

    async def _run(self, graph: EncodedGraph, options: PromptOptions) -> Result:
        job = self._begin(graph, options)
        del graph  # this frame lasts as long as the job, and its files may be large
        job.cancel_on_close = True
        try:
            return await job
        except BaseException:
            if not job.done() or isinstance(job.exception(), JobStalled):
                self._canceller.wish(job)
            raise

    def submit(
        self,
        workflow: Graph,
        *,
        strict: bool = True,
        on_lost: OnLost = "raise",
        front: bool = False,
        number: float | None = None,
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> Coroutine[Any, Any, Job]:
        """Submit a workflow; give its job once the server has queued it.

        Like `run`, but for the waiting. Cancelling it cancels the prompt; cancelling an await of the job does not.

        Raises:
            WorkflowError: As `run`, by the call itself.
            PromptRejected, PayloadTooLarge, ServerUnreachable, HTTPError, ProtocolError, ClientClosed: As `run`.
        """
        graph = self._encoded(workflow)
        options = prompt_options(strict, on_lost, front, number, targets, extra_data, stall_timeout)
        return self._submit(graph, options)

    async def _submit(self, graph: EncodedGraph, options: PromptOptions) -> Job:
        job = self._begin(graph, options)
        try:
            if job.posting is not None:
                await asyncio.wait([job.posting])
        except BaseException:
            self._canceller.wish(job)
            raise
        exc = job.exception()
        if exc is not None and job.posted_at is None or job.rejection is not None:
            await job
        return job

    def map(
        self,
        workflows: Workflows,
        *,
        limit: int = 16,
        strict: bool = True,
        on_lost: OnLost = "raise",
        front: bool = False,
        number: float | None = None,
        targets: Collection[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        stall_timeout: float | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Submit many workflows and yield each one's job when it is done, in the order in which they end.

        ::

            async for job in client.map(workflows, limit=8):
                result = await job

        Leaving the loop early stops the feeding and cancels what was not yielded. `Job.index` is the place in the
        input. What is wrong with one workflow (`WorkflowError`, `PromptRejected`, `PayloadTooLarge`) is that job's
        outcome; what is wrong with the server is raised here. When the input raises, what was submitted is yielded
        first.

        Args:
            workflows: An iterable or asynchronous iterable; it may be endless, as it is read only as places are free.
            limit: Jobs submitted and not yet yielded, at most.
            strict, on_lost, front, number, targets, extra_data, stall_timeout: As for `run`, for each.

        Raises:
            ServerUnreachable, HTTPError, ProtocolError, ClientClosed: Nothing can be submitted.
        """
        options = prompt_options(strict, on_lost, front, number, targets, extra_data, stall_timeout)

        def begin(workflow: Graph, index: int) -> Job:
            return self._begin_item(workflow, index, options)

        feed = Feed(
            workflows,
            limit,
            begin=begin,
            cancel=self._canceller.wish,
            spawn=self._spawn,
            stops=is_fault_of_the_server,
        )
        return feed.jobs()

    def _begin_item(self, workflow: Graph, index: int, options: PromptOptions) -> Job:
        try:
            job = self._begin(self._encoded(workflow), options, index)
            job.cancel_on_close = True
        except WorkflowError as exc:
            job = unsendable(exc, options, self, index)
        return job

    def _encoded(self, graph: Graph) -> EncodedGraph:
        return encoded(graph, self._stream_classes, self._snapshots)

    def _begin(self, graph: EncodedGraph, options: PromptOptions, index: int | None = None) -> Job:
        """Make a job, follow it, and have it posted. Never waits."""
        self._open()
        job = Job(tracked(graph.json, frozenset(graph.streams) or NO_NODES, options), options, self, index)
        if graph.files:
            job.encoded = graph
        self._start(job)
        return job

    def _start(self, job: Job) -> None:
        self._live.add(job)
        job.posting = self._spawn(self._submission.post(job), name=_POST)

    def _maybe_resubmit(self, job: Job, error: BaseException) -> bool:
        """Submit a lost prompt anew if that was wished and nothing of it can still run."""
        lost = isinstance(error, OutputMissing) or (isinstance(error, JobLost) and error.reason != "unreachable")
        wanted = job.options.on_lost == "resubmit" and not job.cancel_requested and self._closing is None
        if not (lost and wanted) or job.attempt >= _MOST_ATTEMPTS:
            return False
        if isinstance(error, OutputMissing) and job.prompt.verdict is None:
            self._connection.reopen("it did not tell of a prompt's end")  # else the next attempt would go the same way
        self._watch.forget(job)
        job.log(logging.INFO, "prompt %s is submitted anew: %s", job.prompt_id, error)
        job.begin_again(tracked(job.prompt.graph, job.prompt.stream_nodes, job.options))
        self._start(job)
        return True

    def upload(self, file: Uploadable) -> Coroutine[Any, Any, str]:
        """Bring a file onto the server; give the name by which loader nodes take it.

        Not needed for a workflow that holds the file itself: `run`, `submit` and `map` upload what stands in one. It is
        stored in the subfolder ``acomfy`` under a name made of its content, once however often it is asked for, and is
        streamed from disk. An output of this server is not sent: it gets the name by which its file is taken as input.
        Cancelling it ends the upload, unless somebody else waits for it too.

        Args:
            file: A `pathlib.Path`, bytes, a file open for reading bytes (it must stay open meanwhile), a Pillow image,
                an array (height x width x channels, ``uint8`` or floats from 0 to 1), an `Output`, or `Masked`. What
                can be edited is copied by the call; a file on disk is read when its turn comes.

        Raises:
            WorkflowError: It cannot be read. Raised by the call itself for a file that is not there.
            TypeError: It is nothing that can be uploaded.
            PayloadTooLarge: It is over the server's size limit.
            ServerError: It could not be uploaded.
            ClientClosed: The client is closed, or was closed meanwhile.
        """
        files = (take_one(file, self._snapshots.copy_picture),)
        check_all(files)
        return self._upload(files)

    async def _upload(self, files: Iterable[FileInput]) -> str:
        self._open()
        (stored,) = await self._uploads.store_all(files)
        return stored.value

    async def attach(self, prompt_id: str) -> Job:
        """Pick up a prompt that was submitted before, by this client, another one, or another process.

        Its state and result are followed by HTTP. Its events come only if this client was made with the submitter's
        ``client_id``; pictures that it streamed before cannot be had any more (`OutputMissing`). A prompt that the
        server does not know ends as `JobLost`. Cancelling it is safe.

        Raises:
            ServerError: The server did not answer.
            ClientClosed: The client is closed.
        """
        self._open()
        known = self._live.get(prompt_id)
        if known is not None:
            return known
        item = look.read_queue(await self.api.get_queue()).find(prompt_id)
        entry = None if item is not None else await self.api.get_history(prompt_id)
        self._open()  # it may have been closed meanwhile
        if (known := self._live.get(prompt_id)) is not None:
            return known
        graph: Graph = (item.prompt if item is not None else look.history_prompt(entry or {})) or {}
        streams = frozenset(node for node, about in graph.items() if about.get("class_type") in self._stream_classes)
        prompt = TrackedPrompt(prompt_id, json.dumps(graph).encode(), streams)
        return self._attached(Job(prompt, PromptOptions(), self, None), item, entry)

    def _attached(self, job: Job, item: look.QueueItem | None, entry: dict[str, Any] | None) -> Job:
        """Follow a prompt that is on the server, or was."""
        job.prompt.number = item.number if item is not None else None
        self._live.add(job)
        self._watch.posted(job, statuses=-1)
        if entry is not None:
            self._live.conclude_by_history(job, entry)
        elif item is None:
            self._watch.look_now()
        return job

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs whose outcome is not known yet."""
        return tuple(self._live)

    @property
    def unattributed(self) -> int:
        """How many pictures in binary frames were dropped because they belonged to no live prompt of ours.

        Prompts that others submit without a client_id are broadcast to everybody, their pictures included.
        """
        return self._router.unattributed

    def events(self) -> EventStream:
        """Listen, from now on, to what belongs to no prompt of ours: ``status``, ``logs``, messages of custom nodes.

        Of ``status`` only the newest waits to be read; over 10,000 waiting messages the oldest goes. It ends when the
        client is closed.

        Raises:
            ClientClosed: The client is closed.
        """
        self._open()
        buffer = Buffer()
        self._live.listeners.append(buffer)
        self._router.listeners = len(self._live.listeners)
        return EventStream(buffer, self._stop_listening)

    def on_job(self, observer: Callable[[Job], object]) -> Callable[[], None]:
        """Have a function called with every job as it begins, by the call that begins it, before anything is sent.

        It must not wait, and what it raises is raised by that call. `Job.events` and `Job.when_done` tell it more.
        What this returns ends it.
        """
        self._live.job_observers.append(observer)
        return partial(self._live.job_observers.remove, observer)

    def on_download(self, observer: DownloadObserver) -> Callable[[], None]:
        """Have a context entered around every reading of an output from the server: ``with observer(output): ...``.

        What this returns ends it.
        """
        self._live.download_observers.append(observer)
        return partial(self._live.download_observers.remove, observer)

    def _stop_listening(self, buffer: Buffer) -> None:
        if buffer in self._live.listeners:
            self._live.listeners.remove(buffer)
            self._router.listeners = len(self._live.listeners)

    # --- What a job asks of its client -----------------------------------------------------------------------------

    async def cancel(self, job: Job) -> bool:
        """See `Job.cancel`."""
        self._open()
        if job.done() and job.settled_by_server():
            return isinstance(job.exception(), JobCancelled)
        wish = self._canceller.wish(job)
        await asyncio.wait([wish], timeout=self._cancel_timeout)
        if not wish.done():
            job.cancel_note = job.cancel_note or "the server did not confirm it in time"
            return False
        exc = job.exception()
        if isinstance(exc, JobLost):
            return exc.reason == "unreachable"  # then it was found, and taken off; any other was gone before
        return isinstance(exc, JobCancelled | JobStalled | PromptRejected)

    async def position(self, job: Job | str) -> int | None:
        """Count the prompts that will run before a job, or before anybody's prompt of this id; see `Job.position`."""
        self._open()
        return await self._places.of(job if isinstance(job, str) else job.prompt_id)

    async def _read_queue(self) -> look.QueueSnapshot:
        return look.read_queue(await self.api.get_queue())

    def outputs_so_far(self, job: Job) -> tuple[Output, ...]:
        """See `Job.outputs`."""
        return self._live.outputs_so_far(job)

    def queue_changes(self) -> int:
        """Give a number that changes when the server's queue does."""
        return self._router.statuses

    def wake_at_queue_change(self, pulse: asyncio.Event) -> None:
        """Have an event set when the server's queue changes next."""
        self._live.queue_watchers.add(pulse)

    # --- The ways out ----------------------------------------------------------------------------------------------

    def _session(self) -> aiohttp.ClientSession:
        if not self._sessions.made:
            self._open()
        return self._sessions.http()

    async def _open_socket(self) -> AnySocket:
        return await self._transport.open_socket(
            self._sessions.socket(),
            self.client_id,
            heartbeat=self._heartbeat_interval,
            max_message_size=self._max_message_size,
        )

    def _on_open(self) -> None:
        self._server_connected()
        self._spawn(self._probe.ask())
        self._watch.reconnected()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str = "acomfy") -> asyncio.Task[None]:
        return self._tasks.spawn(coroutine, name)

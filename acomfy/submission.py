"""Post prompts so that each runs exactly once, also when the answer to the POST is lost.

A POST that was not answered, or answered with a 500 or a proxy's page, may have queued the prompt all the same (ComfyUI
server.py post_prompt: a reused number gives a 500 and queues). So our id is looked for, in the queue and then in the
history, twice, before anything is sent again. A server before 0.3.45 chooses the id itself; there ours travels in
``extra_data``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from . import look
from .access import SecretBytes
from .api import Api, PromptReply
from .capabilities import Capabilities
from .connection import Connection
from .errors import (
    AcomfyError,
    AuthenticationError,
    HTTPError,
    JobCancelled,
    PromptRejected,
    ProtocolError,
    ServerError,
    ServerUnreachable,
)
from .explaining import with_choices
from .inputs import fill, refused
from .job import Job
from .live import LiveJobs
from .uploads import Stored, Uploads
from .verdict import JobState
from .watch import Watch

_TRIES = 3
_GATEWAY = (502, 503, 504)
_RECENT = 64


class Submission:
    """Post the prompts of one client.

    Args:
        account: What of ``extra_data`` goes with each prompt but is not kept with it: keys of accounts.
        capabilities: Gives what is known of the server right now.
        cancel: Takes a job from the server; ends once it is off it, or its time is up.
        at_once: POSTs under way at the most.
        connect_timeout: Seconds to wait for the WebSocket before a prompt is posted without one.
        unreachable_timeout: Seconds to look for a prompt whose POST was not answered while the server does not answer.
    """

    def __init__(
        self,
        api: Api,
        live: LiveJobs,
        connection: Connection,
        watch: Watch,
        uploads: Uploads,
        *,
        client_id: str,
        account: Mapping[str, str],
        capabilities: Callable[[], Capabilities],
        cancel: Callable[[Job], Awaitable[bool]],
        on_answer: Callable[[], None],
        at_once: int,
        connect_timeout: float,
        unreachable_timeout: float,
    ) -> None:
        self._api = api
        self._live = live
        self._connection = connection
        self._watch = watch
        self._uploads = uploads
        self._client_id = client_id
        self._account = account
        self._capabilities = capabilities
        self._cancel = cancel
        self._on_answer = on_answer
        self._slots = asyncio.Semaphore(at_once)
        self._turn = asyncio.Lock()
        self._kept_id: bool | None = None
        self._connect_timeout = connect_timeout
        self._unreachable_timeout = unreachable_timeout

    async def post(self, job: Job) -> None:
        """Post a job's prompt; what goes wrong becomes the job's outcome. To be run as a task of the client."""
        try:
            reply, statuses = await self._post_with_files(job)
            await self._accept(job, reply, statuses)
        except PromptRejected as exc:
            self._live.fail(job, await with_choices(self._api, exc))
        except AcomfyError as exc:
            self._live.fail(job, exc)
        except Exception as exc:  # of the caller's session or headers, or a bug of ours: nobody may wait for ever
            self._live.fail(job, exc)
        finally:
            job.posting = None
            self._on_answer()

    async def _post_with_files(self, job: Job) -> tuple[PromptReply, int]:
        """Upload the prompt's files and post it; once more if the server turns out to have lost one of them.

        Gives the answer, and the number of ``status`` messages that were heard before.
        """
        for tries_left in (1, 0):
            stored = await self._store_files(job)
            await self._wait_for_socket(job)
            try:
                async with self._slots:
                    statuses = self._live.router.statuses
                    reply = await self._post_recognisably(job)
                if reply.node_errors:
                    self._forget_refused(job, stored, PromptRejected({}, reply.node_errors, partial=True))
                return reply, statuses
            except PromptRejected as exc:
                if not self._forget_refused(job, stored, exc) or not tries_left:
                    raise
        raise AssertionError("the last try raises")

    async def _store_files(self, job: Job) -> list[Stored]:
        """Bring the prompt's files onto the server and write their names into the graph.

        Raises:
            JobCancelled: The job was cancelled meanwhile, or has its outcome.
        """
        encoded = job.encoded
        if encoded is None:
            return []
        job.uploading = not (job.cancel_requested or job.done())
        try:
            if not job.uploading:
                raise JobCancelled(job.prompt_id)
            stored = await self._uploads.store_all(encoded.files)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.uncancel() or not (job.cancel_requested or job.done()):
                raise
            raise JobCancelled(job.prompt_id) from None
        finally:
            job.uploading = False
        job.prompt.graph = fill(encoded.json, encoded.files, [file.value for file in stored])
        return stored

    def _forget_refused(self, job: Job, stored: list[Stored], rejection: PromptRejected) -> bool:
        """Upload anew, next time, what a rejection is about; tell whether that is anything that was uploaded."""
        places = refused(job.encoded.files, rejection) if job.encoded is not None else []
        for place in places:
            self._uploads.forget(stored[place])
        return any(stored[place].name for place in places)

    async def _wait_for_socket(self, job: Job) -> None:
        if not self._connection.live:
            if self._connection.refusal is None:
                self._connection.hurry()
            await self._connection.live_within(self._connect_timeout)
        if job.prompt.stream_nodes and not self._connection.live:
            reason = "the WebSocket is not open, and this prompt streams its images over it"
            if (refusal := self._connection.refusal) is not None:
                raise ServerUnreachable(self._api.url, reason, hint=str(refusal))
            raise ServerUnreachable(self._api.url, reason)

    async def _post_recognisably(self, job: Job) -> PromptReply:
        """Post so that no message about the prompt can come before its id is known.

        A server before 0.3.45 chooses the id. There, and until it is known that this one is newer, prompts are posted
        one after the other, and frames are kept back until the answer is read.
        """
        async with self._turn:  # always: whoever came first posts first
            if not self._keeps_ids():
                with self._live.holding():
                    return await self._post(job)
        return await self._post(job)

    def _keeps_ids(self) -> bool:
        return self._kept_id if self._kept_id is not None else self._capabilities().takes_prompt_id

    async def _accept(self, job: Job, reply: PromptReply, statuses: int) -> None:
        if job.options.on_lost != "resubmit":
            job.encoded = None  # its files may be large
        job.prompt.number = reply.number
        job.log(logging.DEBUG, "prompt %s is queued with number %s", job.prompt_id, reply.number)
        self._watch.posted(job, statuses)
        if reply.node_errors:
            rejection = PromptRejected({}, reply.node_errors, titles=job.prompt.titles(), partial=True)
            job.warnings = tuple(rejection.problems)
            if job.options.strict:
                job.rejection = rejection  # should it end while the choices are asked for
                job.rejection = await with_choices(self._api, rejection)
                await self._cancel(job)
                raise job.rejection
            job.prompt.stream_nodes -= rejection.dropped_outputs
        self._live.answered(job)

    async def _post(self, job: Job) -> PromptReply:
        reply = await self._post_once(job)
        self._kept_id = reply.prompt_id == job.prompt_id
        if not self._kept_id:
            self._live.rekey(job, reply.prompt_id)
        return reply

    async def _post_once(self, job: Job) -> PromptReply:
        """Post until it is certain that the prompt is queued, once."""
        body = request_body(job, self._client_id, tagged=not self._keeps_ids(), account=self._account)
        for tries_left in reversed(range(_TRIES)):
            if job.cancel_requested or job.done():
                raise JobCancelled(job.prompt_id)  # nothing of it is on the server
            try:
                limit = self._capabilities().max_upload_size
                return await self._api.post_prompt(body, titles=job.prompt.titles, limit=limit)
            except ServerUnreachable as exc:
                if not exc.maybe_sent:
                    raise
                failure: ServerError = exc
            except HTTPError as exc:
                if exc.status != 500 and exc.status not in _GATEWAY:
                    raise
                failure = exc
            except ProtocolError as exc:
                failure = exc
            reply = await self._find(job, failure)
            if reply is not None:
                return reply
            said = isinstance(failure, ProtocolError) or (isinstance(failure, HTTPError) and failure.status == 500)
            if said or not tries_left:
                raise failure  # a page, or ComfyUI's own 500: it would come again
            self._watch.reposted(job)
        raise AssertionError("the last try raises")

    async def _find(self, job: Job, failure: ServerError) -> PromptReply | None:
        """Look for a prompt whose POST failed; None when it is certain that it is not queued."""
        clock = asyncio.get_running_loop().time
        deadline, looks = clock() + self._unreachable_timeout, 0
        while looks < 2:
            try:
                reply = self._heard_of(job) or await self._look_for(job)
                if reply is not None:
                    return reply
                looks += 1
            except ServerError as exc:
                if isinstance(failure, ProtocolError) and isinstance(exc, ProtocolError | AuthenticationError):
                    raise failure from None  # no ComfyUI is there, or a login stands before it
                if clock() >= deadline:
                    raise
            if looks < 2:
                await asyncio.sleep(look.CERTAIN_AFTER)
        return self._heard_of(job)

    def _heard_of(self, job: Job) -> PromptReply | None:
        if job.done() or job.prompt.state is not JobState.PENDING:
            return PromptReply(job.prompt_id, 0.0, {})
        return None

    async def _look_for(self, job: Job) -> PromptReply | None:
        item = look.read_queue(await self._api.get_queue()).find(job.prompt_id)
        if item is not None:
            return PromptReply(item.prompt_id, item.number, {})
        if await self._api.get_history(job.prompt_id) is not None:
            return PromptReply(job.prompt_id, 0.0, {})
        if self._keeps_ids():
            return None
        found = look.history_prompt_id(await self._api.get_histories(max_items=_RECENT), job.prompt_id)
        return None if found is None else PromptReply(found, 0.0, {})


def request_body(job: Job, client_id: str, *, tagged: bool, account: Mapping[str, str] | None = None) -> bytes:
    """Write the body of ``POST /prompt``.

    Args:
        tagged: Put our prompt_id into ``extra_data``, for servers that choose one themselves.
        account: Goes into ``extra_data`` too, unless the prompt has its own.
    """
    options = job.options
    rest: dict[str, Any] = {"client_id": client_id, "prompt_id": job.prompt_id}
    if options.front:
        rest["front"] = True
    if options.number is not None:
        rest["number"] = options.number
    if options.targets is not None:
        rest["partial_execution_targets"] = options.targets
    if tagged or account:
        extra = {**(account or {}), **json.loads(options.extra_data or b"{}")}
        if tagged:
            extra[look.PROMPT_ID_TAG] = job.prompt_id
        rest["extra_data"] = orjson.Fragment(json.dumps(extra))
    elif options.extra_data is not None:
        rest["extra_data"] = orjson.Fragment(options.extra_data)
    body = b'{"prompt":' + job.prompt.graph + b"," + orjson.dumps(rest)[1:]
    return SecretBytes(body) if account else body

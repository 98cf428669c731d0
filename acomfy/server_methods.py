"""What a `Client` does with its server beside running prompts: look at the queue, the history, models, logs.

Everything here asks the server when it is called, but `object_info`, which is read once per connection. What a server
can do is found out from its answers: a route that it does not have is a 404 or 405, and is remembered until the
WebSocket connects anew, as another version may have been started.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from . import look
from .errors import ClientClosed, HTTPError, ServerError
from .logs import LogStream, LogSubscription
from .look import QueueSnapshot
from .server_files import ServerFiles
from .shared_reads import SharedReads
from .stream import EventStream

if TYPE_CHECKING:  # what tells of the server is loaded by those who ask: 5 ms that most programs need not pay
    from .api.shapes import NodeInfo
    from .listings import HistoryEntry, JobInfo, JobPage
    from .server_info import SystemStats

NodeInfos: TypeAlias = "Mapping[str, NodeInfo]"

_PAGE = 100


class ServerMethods(ServerFiles):
    """The part of `Client` that is about its server.

    Each method may raise `ServerUnreachable`, `HTTPError`, `ProtocolError`, and `ClientClosed` after its closing.
    Cancelling it is safe.
    """

    client_id: str

    def __init__(self) -> None:
        self._definitions: SharedReads[str | None, NodeInfos] = SharedReads(self._read_object_info, self._spawn)
        self._logs = LogSubscription(self.api, self.client_id, self._spawn_while_open)
        self._jobs_api: bool | None = None

    @abstractmethod
    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task of the client."""

    @abstractmethod
    def events(self) -> EventStream:
        """See `Client.events`."""

    def _spawn_while_open(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task of the client; drop it when the client, or its loop, has ended."""
        try:
            self._open()
        except (ClientClosed, RuntimeError):
            coroutine.close()
        else:
            self._spawn(coroutine)

    def _server_connected(self) -> None:
        """Forget what was found out of the server: it may be another one now."""
        self._definitions.forget()
        self._jobs_api = None
        self._logs.reconnected()

    # --- Queue and history -----------------------------------------------------------------------------------------

    async def queue(self) -> QueueSnapshot:
        """Give the queue: what runs, and what waits in the order in which it will run; everybody's.

        The answer holds all graphs: with hundreds of prompts it is megabytes. `Job.position` reads it once for all jobs
        that ask at the same time.
        """
        self._open()
        return look.read_queue(await self.api.get_queue())

    @overload
    async def history(self, prompt_id: str) -> HistoryEntry | None: ...
    @overload
    async def history(self, *, limit: int | None = _PAGE, offset: int | None = None) -> tuple[HistoryEntry, ...]: ...

    async def history(
        self, prompt_id: str | None = None, *, limit: int | None = _PAGE, offset: int | None = None
    ) -> HistoryEntry | tuple[HistoryEntry, ...] | None:
        """Give one history entry, or the newest ones in the order in which they ended; everybody's.

        The server keeps the last 10,000, until it ends.

        Args:
            prompt_id: That of the one; it has none while it waits or runs, and when it was deleted: None.
            limit: At most so many; None: all.
            offset: Not the newest but those after the ``offset`` oldest. On servers before 0.3.60 all are read for it.
        """
        from . import listings

        self._open()
        if prompt_id is not None:
            entry = await self.api.get_history(prompt_id)
            return None if entry is None else listings.read_history_entry(prompt_id, entry)
        _check_page(limit, offset)
        if offset is None or await self._has_history_offset():
            return listings.read_history(await self.api.get_histories(max_items=limit, offset=offset))
        entries = listings.read_history(await self.api.get_histories())
        return entries[offset:] if limit is None else entries[offset : offset + limit]

    async def _has_history_offset(self) -> bool:
        return (await self._probe.with_version()).history_offset

    async def history_pages(self, page: int = _PAGE) -> AsyncGenerator[tuple[HistoryEntry, ...], None]:
        """Yield the whole history, oldest first, ``page`` entries at a time.

        What ends meanwhile comes at the end; when the server is full, and drops its oldest, some may be left out.
        """
        offset = 0
        while entries := await self.history(limit=page, offset=offset):
            yield entries
            offset += len(entries)

    async def delete_history(self, *prompt_ids: str) -> None:
        """Forget history entries; their files stay. Unknown ones do not matter. Others' entries stay."""
        self._open()
        if prompt_ids:
            await self.api.post_history(delete=prompt_ids)

    # --- Jobs ------------------------------------------------------------------------------------------------------

    async def list_jobs(
        self,
        *,
        states: Collection[str] | None = None,
        workflow_id: str | None = None,
        sort_by: Literal["created_at", "execution_duration"] = "created_at",
        descending: bool = True,
        limit: int | None = _PAGE,
        offset: int = 0,
    ) -> JobPage:
        """List prompts that wait, run and have ended; everybody's. `Client.jobs` has the live ones of this client.

        The server goes through its whole history for it: nothing to ask for again and again. From servers before 0.6.0,
        which have no jobs API, queue and history are read, and give the same list.

        Args:
            states: Of ``pending``, ``in_progress``, ``completed``, ``failed``, ``cancelled``; None: all.
            workflow_id: The ``id`` in ``extra_data["extra_pnginfo"]["workflow"]`` that was posted with it.
            limit: At most so many; None: all.
            offset: So many are left out.

        Raises:
            ValueError: A state, or a number, that there is none of.
        """
        from . import listings

        self._open()
        _check_page(limit, offset)
        wanted = _states(states)
        if self._jobs_api is not False:
            try:
                answer = await self.api.get_jobs(
                    status=wanted,
                    workflow_id=workflow_id,
                    sort_by=sort_by,
                    sort_order="desc" if descending else "asc",
                    limit=limit,
                    offset=offset,
                )
            except HTTPError as exc:
                self._note_jobs_api(exc)
            else:
                self._jobs_api = True
                return listings.read_jobs(answer)
        queue = await self.queue()
        ended = wanted is None or not set(wanted) <= {"pending", "in_progress"}
        return listings.list_jobs(
            queue,
            await self.history(limit=None) if ended else (),
            states=wanted,
            workflow_id=workflow_id,
            sort_by=sort_by,
            descending=descending,
            limit=limit,
            offset=offset,
        )

    async def job_info(self, prompt_id: str) -> JobInfo | None:
        """Tell where a prompt stands, anybody's; None when the server does not know it (any more).

        From servers before 0.6.0 the queue is read, and then the history.
        """
        from . import listings

        self._open()
        if self._jobs_api is not False:
            try:
                return listings.read_job(await self.api.get_job(prompt_id))
            except HTTPError as exc:
                if exc.status == 404 and exc.body.lstrip().startswith("{"):
                    return None
                self._note_jobs_api(exc)
        queue = await self.queue()
        item = queue.find(prompt_id)
        if item is not None:
            return listings.queued_job(item, running=item in queue.running)
        entry = await self.history(prompt_id)
        return None if entry is None else listings.ended_job(entry)

    def _note_jobs_api(self, exc: HTTPError) -> None:
        """Remember that there is no jobs API, or go around what it cannot do this time.

        A 500 is one prompt with a null workflow in it; a 400 is a server before 0.9, which knows no ``cancelled``, or
        Comfy Cloud, which sorts by other names.
        """
        if exc.status in (404, 405):
            self._jobs_api = False
        elif exc.status not in (400, 500):
            raise exc

    # --- The server ------------------------------------------------------------------------------------------------

    async def system_stats(self) -> SystemStats:
        """Give the server's versions, memory and devices."""
        from .server_info import read_system_stats

        self._open()
        return read_system_stats(await self.api.get_system_stats())

    async def features(self) -> Mapping[str, Any]:
        """Give the server's feature flags; none before 0.3.45."""
        self._open()
        try:
            return await self.api.get_features()
        except HTTPError as exc:
            if exc.status != 404:
                raise
            return {}

    async def object_info(self, class_type: str | None = None, *, refresh: bool = False) -> NodeInfos:
        """Give node definitions by class: all, or that of one class. Not to be changed: all callers share them.

        All of them are 0.3 MB to many MB, depending on the custom nodes. They are read once per connection, also when
        many ask at the same time.

        Args:
            class_type: None: all. An unknown class gives an empty mapping.
            refresh: Read them again: models were added, which are choices of loader nodes.
        """
        self._open()
        if refresh:
            self._definitions.forget()
        if class_type is not None:
            definitions = self._definitions.known(None)
            if definitions is not None:
                return {class_type: definitions[class_type]} if class_type in definitions else {}
        return await self._definitions.of(class_type)

    async def _read_object_info(self, class_type: str | None) -> NodeInfos:
        return await self.api.get_object_info(class_type)

    async def models(self, folder: str | None = None) -> tuple[str, ...]:
        """List the kinds of models that the server knows, or the files of one kind.

        Args:
            folder: For example ``checkpoints`` or ``loras``; None: list the kinds.

        Raises:
            HTTPError: 404 for a kind that the server does not know.
        """
        self._open()
        return _texts(await self.api.get_models(folder))

    async def embeddings(self) -> tuple[str, ...]:
        """List the embeddings, as prompts name them: without their extensions."""
        self._open()
        return _texts(await self.api.get_embeddings())

    async def view_metadata(self, folder: str, filename: str) -> Mapping[str, Any] | None:
        """Give what a safetensors file says of itself; None when it is not there, or says nothing.

        Args:
            folder: Its kind, for example ``loras``.
            filename: As `models` lists it.
        """
        self._open()
        try:
            return await self.api.get_view_metadata(folder, filename)
        except HTTPError as exc:
            if exc.status != 404:
                raise
            return None

    async def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Have the server unload its models and empty its caches, once no prompt runs; it does not wait for that.

        Args:
            unload_models: Take models from the device.
            free_memory: Forget what nodes made, too: everything runs again next time. Unloads the models as well.
        """
        self._open()
        await self.api.post_free(unload_models=unload_models, free_memory=free_memory)

    async def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop the running prompt; nothing happens when none runs. `Job.cancel` is the way to stop one's own.

        Args:
            prompt_id: Only if it is this one. None: whoever's it is.

        Raises:
            ServerError: The server is older than 0.3.57: it would stop whatever runs.
        """
        self._open()
        if prompt_id is not None and not (await self._probe.with_version()).targeted_interrupt:
            raise ServerError(
                f"{self.api.url} cannot stop the prompt {prompt_id} alone: ComfyUI before 0.3.57 stops whatever runs; "
                "Job.cancel takes care of that"
            )
        await self.api.post_interrupt(prompt_id)

    def logs(self, *, recent: bool = False) -> LogStream:
        """Listen to the server's log, from the first ``__anext__`` on; after a reconnect nothing is missing.

        ::

            async for entry in client.logs():
                print(entry.text, end="")

        It needs the WebSocket, and ends when the client is closed. ComfyUI calls these routes internal: any version may
        change them.

        Args:
            recent: Begin with the last entries (300 at most) that the server kept.

        Raises:
            ClientClosed: The client is closed.
        """
        return LogStream(self._logs, self.events(), recent=recent)


def _texts(items: list[Any]) -> tuple[str, ...]:
    return tuple(item for item in items if isinstance(item, str))


def _check_page(limit: int | None, offset: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"limit is 1 or more, or None for all; not {limit}")
    if offset is not None and offset < 0:
        raise ValueError(f"offset is 0 or more, not {offset}")


_STATES = ("pending", "in_progress", "completed", "failed", "cancelled")


def _states(states: Collection[str] | None) -> list[str] | None:
    if states is None:
        return None
    wanted = [str(state) for state in ([states] if isinstance(states, str) else states)]
    unknown = [state for state in wanted if state not in _STATES]
    if unknown or not wanted:
        raise ValueError(f"states are of {', '.join(_STATES)}; not {', '.join(unknown) or 'none'}")
    return wanted

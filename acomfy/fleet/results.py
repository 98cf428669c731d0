"""Outcomes into results and back: those that are too large for a message are files of the object store."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ..client import Client
from ..errors import AcomfyError, ProtocolError
from ..result import DownloadObserver, Result
from .job import FleetJob
from .sources import FleetSource, make_result
from .store import FileStore
from .wire import Blob, Outcome, StoredFile, Success, read_outcome, write_outcome, write_reference

logger = logging.getLogger(__name__)

_LARGEST_OUTCOME = 1 << 28


class Results:
    """The results of one submitter's jobs.

    Args:
        files: Where files are.
        place: What the fleet is called.
        client_options: Arguments of `Client` for servers on which workers left files.
        max_requests: Files that are read at once.

    Attributes:
        observers: Entered around every reading of a file; see `Client.on_download`.
    """

    def __init__(self, files: FileStore, place: str, client_options: Mapping[str, Any], *, max_requests: int) -> None:
        self.observers: list[DownloadObserver] = []
        self._files = files
        self._place = place
        self._client_options = dict(client_options)
        self._clients: dict[str, Client] = {}
        self._transfers = asyncio.Semaphore(max_requests)

    def read(
        self,
        written: bytes,
        take: Callable[[Outcome | AcomfyError], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """Read an outcome and hand it on, at once or once it was fetched; or the error that kept it from being read."""
        try:
            found = read_outcome(written)
        except ProtocolError as exc:
            take(exc)
            return
        if isinstance(found, Blob):
            spawn(self._fetch(found, take))
        else:
            take(found)

    async def _fetch(self, blob: Blob, take: Callable[[Outcome | AcomfyError], None]) -> None:
        try:
            found = read_outcome(await self._files.read(blob, max_size=_LARGEST_OUTCOME))
            if isinstance(found, Blob):
                raise ProtocolError("an outcome of the fleet stands for another one")
            take(found)
        except AcomfyError as exc:
            take(exc)

    def result(self, job: FleetJob, outcome: Outcome, success: Success) -> Result:
        """Make the result of a job."""
        graph = job.prompt.graph if len(job.prompt.graph) > 2 else json.dumps(success.nodes).encode()
        files = [output for output in success.outputs if isinstance(output, StoredFile)]
        source = FleetSource(
            outcome.prompt_id,
            graph,
            files,
            self._files,
            place=self._place,
            server=outcome.server,
            client_of=self._client_of,
            transfers=self._transfers,
            observers=self.observers,
        )
        return make_result(source, success)

    def _client_of(self, server: str) -> Client:
        client = self._clients.get(server)
        if client is None:
            client = self._clients[server] = Client(server, **self._client_options)
        return client

    async def aclose(self) -> None:
        """Close the clients of servers."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))


async def stored_outcome(store: FileStore, outcome: Outcome, largest: int) -> bytes:
    """Write an outcome as a message; as a file for which a message stands if it is larger than that many bytes."""
    written = write_outcome(outcome)
    if len(written) <= largest:
        return written
    return write_reference(await store.put(f"{outcome.job_id}/outcome-{outcome.attempt}", written))

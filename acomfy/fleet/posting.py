"""Put orders into a fleet's queue: their files first, each content once, then the order, exactly once."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from nats.js import JetStreamContext
from nats.js.api import PubAck

from ..captures import LocalFile
from ..concurrency import together
from ..errors import JobCancelled, JobError, QueueFull
from ..inputs import FileInput
from ..reading import FileChanged, Hashes
from ..uploads import local_content, refusal
from ..workflow import EncodedGraph
from .broker import Broker
from .job import FleetJob
from .store import FileStore
from .wire import InputBlob, Order, write_order

logger = logging.getLogger(__name__)

_READ_AT_ONCE = 4
_TRIES = 3
_FULL_PAUSE = 0.2


class Posting:
    """Put the orders of one submitter into the queue.

    Args:
        lease: Seconds; see `Fleet`.
        patience: Seconds that a broker which is away is waited for.
    """

    def __init__(self, broker: Broker, inputs: FileStore, *, lease: float, patience: float) -> None:
        self._broker = broker
        self._inputs = inputs
        self._lease = lease
        self._patience = patience
        self._hashes = Hashes()
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)

    async def post(self, job: FleetJob) -> None:
        """Put a job's order into the queue.

        However often the broker is asked, the queue takes it once: its id is the message's. What a map submits waits
        for room in a full queue. Cancelling it while ``uploading`` leaves nothing in the queue.

        Raises:
            WorkflowError: A file of it cannot be read.
            JobCancelled: It was cancelled while the queue had no room; it is not in the queue.
            QueueFull, ServerUnreachable, BrokerError: It is not in the queue; after `ServerUnreachable` it may be.
        """
        graph = job.graph
        if graph is None:
            raise AssertionError("a job keeps its graph until it is in the queue")
        await self._broker.ready(self._patience)
        files = await together([self._stored(file) for file in graph.files])
        message = await self._message(job, graph, tuple(files))
        await self._broker.ensure_lane(job.lane, self._lease, patience=self._patience)
        job.subject = self._broker.names.job(job.lane, job.job_id)
        job.seq = await self._published(job, message)
        job.graph = None
        # The broker may have lost its disk in between, or somebody removed the stream, and it was made anew.
        await self._broker.ensure_lane(job.lane, self._lease, patience=self._patience)
        await self._broker.tell(self._broker.names.wake(job.lane))

    async def _published(self, job: FleetJob, message: bytes) -> int:
        async def publish(js: JetStreamContext) -> PubAck:
            return await js.publish(job.subject, message, headers={"Nats-Msg-Id": job.job_id})

        while True:
            job.uploading = False
            try:
                return (await self._broker.persist(publish, patience=self._patience)).seq
            except QueueFull:
                if job.cancel_requested:  # while it was asked, so that nothing could be taken back then
                    raise JobCancelled(job.job_id) from None
                if job.index is None:
                    raise
                job.uploading = True
            await asyncio.sleep(_FULL_PAUSE)

    async def _message(self, job: FleetJob, graph: EncodedGraph, files: tuple[InputBlob, ...]) -> bytes:
        order = Order(
            job_id=job.job_id,
            client_id=job.client_id,
            graph=graph.json,
            group=job.group,
            priority=job.priority,
            streams=tuple(sorted(job.prompt.stream_nodes)),
            options=job.options,
            files=files,
            created=time.time(),
        )
        message = write_order(order)
        if len(message) <= self._broker.largest_message:
            return message
        digest = await asyncio.to_thread(lambda: hashlib.sha256(graph.json).hexdigest())
        blob = await self._inputs.put_once(digest, graph.json)
        return write_order(replace(order, graph=blob))

    # --- Files -------------------------------------------------------------------------------------------------------

    async def _stored(self, file: FileInput) -> InputBlob:
        try:
            for tries_left in reversed(range(_TRIES)):
                try:
                    return await self._store(file)
                except FileChanged:
                    if not tries_left:
                        raise
        except (OSError, ValueError, TypeError, JobError) as exc:  # JobError: an earlier output is gone
            raise refusal(file, exc) from exc
        raise AssertionError("the last try raises")

    async def _store(self, file: FileInput) -> InputBlob:
        async with AsyncExitStack() as stack:
            local = await local_content(file.content, stack)
            async with self._reading:
                readable = await asyncio.to_thread(self._hashes.readable, local)
            if isinstance(local, LocalFile):
                blob = await self._inputs.put_once(readable.sha256, Path(local.path))
            else:
                source = await stack.enter_async_context(readable.opened())
                data = source if isinstance(source, bytes | memoryview) else await asyncio.to_thread(source.read)
                blob = await self._inputs.put_once(readable.sha256, data)
        return InputBlob(file.mark, file.node_id, file.input_name, file.where, readable.name, blob)

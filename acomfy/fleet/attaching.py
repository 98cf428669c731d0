"""Pick up a job by its id: one that waits or runs, or whose outcome is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import nats.errors
from nats.js.api import RawStreamMsg

from ..job import PromptOptions
from ..router import TrackedPrompt
from .attending import Attending
from .broker import Broker
from .following import Following
from .job import FleetJob, FleetOwner
from .names import Lane, check_token
from .records import Records
from .wire import Order, read_order

logger = logging.getLogger(__name__)

_ASKED_FOR = 1.0


class Attaching:
    """Pick up jobs for one fleet.

    Args:
        owner: The fleet.
        check_open: Raises when it is closed.
        group: The fleet's own; for a job of which only the outcome is left.
        connect_timeout: As for `Fleet`.
    """

    def __init__(
        self,
        broker: Broker,
        records: Records,
        following: Following,
        attending: Attending,
        owner: FleetOwner,
        *,
        check_open: Callable[[], None],
        group: str,
        connect_timeout: float,
    ) -> None:
        self._broker = broker
        self._records = records
        self._following = following
        self._attending = attending
        self._owner = owner
        self._check_open = check_open
        self._group = group
        self._connect_timeout = connect_timeout

    async def attach(self, client_id: str, job_id: str) -> FleetJob:
        """See `Fleet.attach`."""
        check_token("job_id", job_id)
        if (known := self._following.get(job_id)) is not None:
            return known
        await self._broker.ready(self._connect_timeout)
        message = await self._records.order(job_id)
        if message is None:
            return await self._follow(self._lost(client_id, job_id))
        order = read_order(message.data or b"")
        with self._following.inboxes.entered(order.client_id) as inbox:
            await inbox.begin(self._connect_timeout)
            return await self._follow(self._queued(order, message))

    async def _follow(self, job: FleetJob) -> FleetJob:
        """Follow a job, unless it is followed already."""
        self._check_open()  # it may have been closed meanwhile
        if (known := self._following.get(job.job_id)) is not None:
            return known
        self._following.add(job)
        await self._attending.look_at(job)
        if not job.done():
            await self._find(job)
        return job

    def _lost(self, client_id: str, job_id: str) -> FleetJob:
        """Make the job of what is not in the queue (any more)."""
        prompt, lane = TrackedPrompt(job_id, b"{}"), Lane.of(self._group, 0)
        job = FleetJob(prompt, PromptOptions(), self._owner, None, client_id=client_id, lane=lane)
        job.posted_at = asyncio.get_running_loop().time()
        return job

    def _queued(self, order: Order, message: RawStreamMsg) -> FleetJob:
        graph = order.graph if isinstance(order.graph, bytes) else b"{}"
        prompt = TrackedPrompt(order.job_id, graph, frozenset(order.streams), order.options.targets)
        lane = Lane.parse((message.subject or "").removesuffix(order.job_id) + "*")
        job = FleetJob(
            prompt,
            order.options,
            self._owner,
            None,
            client_id=order.client_id,
            lane=lane or Lane.of(order.group, order.priority),
        )
        job.seq, job.subject = message.seq or 0, message.subject or ""
        job.posted_at = asyncio.get_running_loop().time()
        return job

    async def _find(self, job: FleetJob) -> None:
        """Find out where it runs, if it does: from its worker, or from what that wrote down."""
        try:
            told = await self._broker.request(self._broker.names.listen(job.job_id), timeout=_ASKED_FOR)
            return self._following.begun(told.data)
        except (nats.errors.Error, OSError) as exc:
            logger.debug("no worker says that it has %s: %r", job, exc)
        attempt, _ = await self._records.attempt(job.job_id)
        if attempt is None or attempt.lost:
            return
        if job in self._following and attempt.number >= job.attempt:
            self._following.follow(job, attempt.prompt_id, attempt.number, attempt.server, attempt.worker)

"""Hear the progress, previews and other events of jobs that run elsewhere, while somebody listens to them.

Workers send them only to who said, not long ago, that somebody listens. What comes are ComfyUI's own frames, so that
they are routed and kept as those of a server are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from nats.aio.msg import Msg

from ..errors import JobFailed
from ..events import Executed, ExecutionCached, ExecutionStart
from ..router import Router, TrackedPrompt
from .broker import Broker
from .job import FleetJob
from .wire import Success

logger = logging.getLogger(__name__)

LISTENING_LASTS = 15.0
"""Seconds for which a worker takes it that somebody listens, after it was told so."""

_SAID_EVERY = LISTENING_LASTS / 3
_SAID_EVERY_BEFORE = 2 * LISTENING_LASTS
_LATE = 0.2


class Hearing:
    """The jobs of one fleet to which somebody listens.

    Args:
        spawn: Runs a coroutine as a task of the fleet.
    """

    def __init__(self, broker: Broker, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._broker = broker
        self._spawn = spawn
        self._router = Router(interleaved=True)
        self._changes: dict[FleetJob, asyncio.Event] = {}
        self._verdicts: dict[FleetJob, asyncio.Event] = {}

    def listeners_changed(self, job: FleetJob) -> None:
        """Begin to listen to a job, or end it, as its own listeners want."""
        if job in self._changes:
            self.changed(job)
        elif job.prompt.listeners and not job.done():
            self._changes[job] = asyncio.Event()
            self._spawn(self._listen(job))

    def changed(self, job: FleetJob) -> None:
        """Note that a job is somewhere else, or is listened to by others."""
        change = self._changes.get(job)
        if change is not None:
            change.set()

    def has_more(self, job: FleetJob) -> bool:
        """Tell whether events of a job were heard, but not yet the last one."""
        return job in self._changes and job.prompt.run is not None and job.prompt.verdict is None

    async def verdict(self, job: FleetJob) -> None:
        """Wait a moment for the last event of a job: its outcome comes by another way, and may be faster."""
        heard = self._verdicts.setdefault(job, asyncio.Event())
        try:
            async with asyncio.timeout(_LATE):
                await heard.wait()
        except TimeoutError:
            logger.debug("the last events of %s did not come", job)
        finally:
            self._verdicts.pop(job, None)

    def complete(self, job: FleetJob, value: Success | BaseException) -> None:
        """Tell those who listen what they missed: a short prompt ends before its worker hears of them."""
        run, prompt_id = job.prompt.run, job.prompt_id
        if not job.prompt.listeners or not isinstance(value, Success | JobFailed):
            return
        if run is None:
            job.deliver(ExecutionStart(prompt_id))
        if isinstance(value, JobFailed):
            return
        if (run is None or run.cached is None) and value.cached_nodes is not None:
            job.deliver(ExecutionCached(prompt_id, value.cached_nodes))
        shown = () if run is None else [display_node for display_node, _ in run.executed.values()]
        for node, ui in value.raw.items():
            if node not in shown:
                job.deliver(Executed(prompt_id, node, node, ui))

    def replaced(self, job: FleetJob, old: TrackedPrompt) -> None:
        """Note that a job follows another prompt now."""
        if job in self._changes:
            self._router.forget(old)
            self._router.register(job.prompt)

    async def _listen(self, job: FleetJob) -> None:
        change = self._changes[job]
        self._router.register(job.prompt)

        async def receive(message: Msg) -> None:
            self._receive(job, message.data)

        names = self._broker.names
        listening = await self._broker.listen(names.events(job.job_id), receive)
        try:
            while job.prompt.listeners and not job.done():
                change.clear()
                await self._broker.tell(names.listen(job.job_id))
                try:
                    # Nobody hears it before a worker has the job, of which `changed` tells as a rule.
                    async with asyncio.timeout(_SAID_EVERY if job.server else _SAID_EVERY_BEFORE):
                        await change.wait()
                except TimeoutError:
                    pass
        finally:
            del self._changes[job]
            self._router.forget(job.prompt)
            await self._broker.unlisten(listening)
        self.listeners_changed(job)  # somebody may have come meanwhile

    def _receive(self, job: FleetJob, frame: bytes) -> None:
        receive = self._router.receive_text if frame.startswith(b"{") else self._router.receive_binary
        delivery = receive(frame)
        if delivery is not None and delivery[0] is job.prompt and delivery[1] is not None:
            job.deliver(delivery[1])
        else:
            job.pulse()
        if job.prompt.verdict is not None and job in self._verdicts:
            self._verdicts[job].set()

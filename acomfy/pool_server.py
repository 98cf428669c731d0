"""One server of a pool: its client, what it was given, and its health.

Theory of operation. One task tends a server. It is given nothing before it answered, its node classes and models were
read, and its WebSocket is open or refused. From then on it is looked at now and then (``GET /prompt``, one integer),
and at once when the socket ended or a POST failed. The first look that fails makes it *shaky*: it gets nothing new.
When nothing listens there it is *down* at the second; when it just does not answer (ComfyUI answers nobody while it
loads a large model), or a proxy says so, only after four intervals. What waited there moves then; what ran is given up
when nothing was heard for ``unreachable_timeout``. Whatever may be left there is taken off before it is used again, and
then it gets one prompt at a time until one has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from .client import Client
from .errors import (
    AuthenticationError,
    ClientClosed,
    HTTPError,
    JobFailed,
    JobLost,
    OutputMissing,
    ServerError,
    ServerUnreachable,
)
from .job import Job
from .look import read_queue
from .placement import Need, Offer, ServerState, ServerView, read_offer
from .pool_job import PoolJob
from .verdict import JobState

logger = logging.getLogger(__name__)

_HARD_PART = 5.0
_SOFT_INTERVALS = 4.0
_RETRY_PART = 10.0
_AUTHENTICATION = 401
_SHORTEST, _LONG = 1.0, 60.0


class Member(Client):
    """The client of one server of a pool; its prompts may be taken back by the pool.

    Args:
        on_failed: Called with a job of the pool and the error that it is about to get; True: the pool has taken it.
        on_open: Called when the WebSocket was opened.
    """

    def __init__(
        self,
        url: str,
        on_failed: Callable[[PoolJob, BaseException], bool],
        on_open: Callable[[], None],
        options: dict[str, Any],
    ) -> None:
        self._pool_on_failed = on_failed
        self._pool_on_open = on_open
        super().__init__(url, **options)

    def _maybe_resubmit(self, job: Job, error: BaseException) -> bool:
        if not isinstance(job, PoolJob):
            return super()._maybe_resubmit(job, error)
        unheard = isinstance(error, OutputMissing) and job.prompt.verdict is None
        taken = self._pool_on_failed(job, error)
        if taken and unheard:
            self._connection.reopen("it did not tell of a prompt's end")  # as `Client` does, for what comes next
        return taken

    def _on_open(self) -> None:
        super()._on_open()
        self._pool_on_open()

    def open(self) -> None:
        """Begin to connect."""
        self._open()

    def adopt(self, job: PoolJob) -> None:
        """Have a job posted and follow it."""
        self._open()
        self._start(job)

    def wish(self, job: PoolJob) -> None:
        """Have a job of this server cancelled. Never waits."""
        self._canceller.wish(job)

    def give_up(self, job: PoolJob, reason: str) -> None:
        """Count a job as lost."""
        self._live.fail(job, JobLost(job.prompt_id, reason))

    def unwatch(self, job: PoolJob) -> None:
        """Forget a job that was taken back."""
        self._watch.forget(job)

    @property
    def hears(self) -> bool:
        """Whether the WebSocket is open."""
        return self._connection.live

    async def answers(self) -> None:
        """Look whether the server answers.

        Raises:
            ServerError: It does not.
        """
        await self._once.get_system_stats()

    async def hear(self) -> None:
        """Wait for the WebSocket for a while; without it a server is usable all the same, by HTTP."""
        self._connection.hurry()
        await self._connection.live_within(self._connect_timeout)

    async def remaining(self) -> int:
        """Ask how many prompts are in the queue, everybody's."""
        try:
            return await self._once.get_prompt()
        except HTTPError as exc:
            if exc.status not in (404, 405):
                raise
            await self._once.get_system_stats()  # a proxy that lets few routes through
            return 0

    async def read_offer(self) -> Offer | None:
        """Read what node classes and models there are; None when the server does not tell."""
        try:
            return read_offer(await self._once.get_object_info())
        except HTTPError as exc:
            if isinstance(exc, AuthenticationError) or exc.status not in (404, 405):
                raise
            return None

    async def delete(self, prompt_ids: Collection[str]) -> set[str]:
        """Delete those of the prompts that wait; give those that are certain not to run or to have run.

        Raises:
            ServerError: The server did not answer.
        """
        await self._once.post_queue(delete=list(prompt_ids))
        present = read_queue(await self._once.get_queue()).ids()
        gone = [prompt_id for prompt_id in prompt_ids if prompt_id not in present]
        return {prompt_id for prompt_id in gone if await self._once.get_history(prompt_id) is None}

    async def clear(self, prompt_ids: Collection[str]) -> None:
        """Take prompts off that were given up here: delete what waits, stop what runs.

        Raises:
            ServerError: The server did not answer.
        """
        await self._once.post_queue(delete=list(prompt_ids))
        running = {item.prompt_id for item in read_queue(await self._once.get_queue()).running}
        for prompt_id in running & set(prompt_ids):
            if (await self._probe.with_version()).targeted_interrupt:
                await self._once.post_interrupt(prompt_id)


class PoolServer:
    """One server of a pool.

    Attributes:
        name: Its address, without what is secret in it.
        given: Its address as it was given.
        jobs: The jobs that were given to it and are not done.
        pins: How many callers have it for themselves (`Pool.acquire`).
        warm: The model files that the last prompt given to it used; None when that is not known.
        offer: None when it is not known.
        looked: Whether it was looked at once.
        withdrawing: Whether prompts are being taken back from its queue.
        trouble: Why it cannot be used; "" when it can.
        left: Prompts that were given up and may still be there.
        switches: How often it was given a prompt with other models than the one before.
    """

    def __init__(
        self,
        url: str,
        options: dict[str, Any],
        *,
        weight: float,
        in_flight: int,
        check_interval: float,
        unreachable_timeout: float,
        on_failed: Callable[[PoolServer, PoolJob, BaseException], bool],
        on_change: Callable[[PoolServer], None],
        shared: Callable[[Offer | None], Offer | None],
    ) -> None:
        self.client = Member(url, self._failed, self._opened, options)
        self.name = self.client.api.url
        self.given = url
        self.weight = weight
        self.in_flight = in_flight
        self.jobs: set[PoolJob] = set()
        self.pins = 0
        self.warm: frozenset[str] | None = None
        self.offer: Offer | None = None
        self.offer_read = float("-inf")
        self.looked = False
        self.draining = False
        self.withdrawing = False
        self.trouble = ""
        self.left: set[str] = set()
        self.completed = self.failed = self.moved = self.switches = 0
        self._failures = 0
        self._state = ServerState.STARTING
        self._others = 0
        self._trial = False
        self._interval = check_interval
        self._unreachable_timeout = unreachable_timeout
        self._on_failed = on_failed
        self._on_change = on_change
        self._shared = shared
        self._alarm = asyncio.Event()
        self._stale = False
        self._answered = 0.0
        self._view: ServerView | None = None

    def __repr__(self) -> str:
        return f"<PoolServer {self.name} {self.state}, {len(self.jobs)} jobs>"

    # --- What others see ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> ServerState:
        """How it is."""
        return ServerState.DRAINING if self.draining and self._state is ServerState.UP else self._state

    @property
    def usable(self) -> bool:
        """Whether prompts may go there, now or as soon as it answered again."""
        return not self.draining and self._state in (ServerState.UP, ServerState.SHAKY)

    @property
    def idle(self) -> bool:
        """Whether nothing of the pool is there."""
        return not self.jobs and not self.pins

    def view(self) -> ServerView:
        """Give what the choice goes by."""
        if self._view is None:
            places = 1 if self._trial else self.in_flight
            ours = len(self.jobs) + self.pins
            self._view = ServerView(
                self.name, self.state, places, ours, self._others, self.warm, self.weight, self._failures, self.offer
            )
        return self._view

    def changed(self) -> None:
        """Note that something of the view is another now."""
        self._view = None

    def alarm(self, *, stale: bool = False) -> None:
        """Have it looked at at once; ``stale``: what it offers is to be read again."""
        self._stale = self._stale or stale
        self._alarm.set()

    # --- What it is given --------------------------------------------------------------------------------------------

    def warmed(self, need: Need) -> None:
        """Note what the last prompt given to it needs."""
        if need.files and (self.warm is None or not need.files <= self.warm):
            self.switches += self.warm is not None
            self.warm = need.files
        self.changed()

    def ended(self, job: PoolJob) -> None:
        """Note that a job is done."""
        self.jobs.discard(job)
        self._trial = False
        if job.state is JobState.COMPLETED:
            self.completed += 1
            self._failures = 0
        elif job.state is JobState.FAILED:
            self.failed += 1
            self._failures += isinstance(job.exception(), JobFailed)
        self.changed()

    def _failed(self, job: PoolJob, error: BaseException) -> bool:
        return self._on_failed(self, job, error)

    def _opened(self) -> None:
        self.alarm(stale=True)

    # --- Its health --------------------------------------------------------------------------------------------------

    async def tend(self) -> None:
        """Look after it until cancelled, or until its client is closed."""
        try:
            self.client.open()
            while True:
                await self._until_ready()
                self._set(ServerState.UP)
                await self._until_down()
                self._trial, self.warm = True, None
                self._set(ServerState.DOWN)
                self.give_up_waiting()
        except ClientClosed:
            self._set(ServerState.DOWN)

    async def _until_ready(self) -> None:
        pause = self._interval / _RETRY_PART
        while True:
            self._alarm.clear()
            try:
                await self._make_ready()
                return
            except (ServerError, TimeoutError) as exc:
                self._not_ready(exc)
            await self._sleep(pause)
            pause = min(pause * 1.5, self._interval)

    async def _make_ready(self) -> None:
        async with asyncio.timeout(max(self._interval, _SHORTEST)):
            await self.client.answers()
        async with asyncio.timeout(_LONG):
            await self.client.hear()
            await self._clear_left()
            await self._read_offer()
        self._answered = self._now()
        self.looked, self.trouble, self._others = True, "", 0

    async def _clear_left(self) -> None:
        """Take off what was given up here, before anything else is given to it."""
        if self.left:
            left = frozenset(self.left)
            await self.client.clear(left)
            self.left -= left

    async def _read_offer(self) -> None:
        self._stale = False
        self.offer = self._shared(await self.client.read_offer())
        self.offer_read = self._now()
        self.changed()

    def _not_ready(self, exc: BaseException) -> None:
        self.looked = True
        self.trouble = str(exc) or "it did not answer in time"
        boots = isinstance(exc, HTTPError) and exc.status != _AUTHENTICATION
        self._set(ServerState.STARTING if boots else ServerState.DOWN)
        if self._answered and self._now() - self._answered >= self._unreachable_timeout:
            self._give_up_all()

    async def _until_down(self) -> None:
        """Look at it now and then, until it does not answer any more."""
        since: float | None = None
        while True:
            await self._pause(self._interval if since is None else self._interval / _RETRY_PART)
            try:
                await self._check()
                since = None
                self._set(ServerState.UP)
            except (ServerError, TimeoutError) as exc:
                now = self._now()
                self.trouble = str(exc) or "it did not answer in time"
                patience = self._interval / _HARD_PART if _is_gone(exc) else self._interval * _SOFT_INTERVALS
                if since is not None and now - since >= patience:
                    return
                since = now if since is None else since
                self._set(ServerState.SHAKY)

    async def _check(self) -> None:
        self._alarm.clear()
        async with asyncio.timeout(max(self._interval, _SHORTEST)):
            remaining = await self.client.remaining()
        async with asyncio.timeout(_LONG):
            await self._clear_left()
        self._answered = self._now()
        self.trouble = ""
        self._others = max(0, remaining - len(self.jobs))
        self.changed()
        if self._stale:
            async with asyncio.timeout(_LONG):
                await self._read_offer()

    async def _pause(self, seconds: float) -> None:
        """Wait until the next look is due: at the alarm, when the socket ends, or after a time."""
        end, heard = self._now() + seconds, self.client.hears
        while (left := end - self._now()) > 0 and not self._alarm.is_set():
            if heard and not self.client.hears:
                return
            heard = self.client.hears
            await self._sleep(min(left, self._interval / _HARD_PART))

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._alarm.wait()
        except TimeoutError:
            pass

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _set(self, state: ServerState) -> None:
        if state is not self._state:
            log = logger.info if state is ServerState.UP else logger.warning
            log("%s is %s%s", self.name, state, f": {self.trouble}" if self.trouble else "")
        self._state = state
        self.changed()
        self._on_change(self)

    # --- Giving up ---------------------------------------------------------------------------------------------------

    def wish(self, job: PoolJob) -> None:
        """Have a job cancelled. Never waits; on a server that is down it is done at once, and taken off later."""
        self.client.wish(job)
        if self._state not in (ServerState.UP, ServerState.SHAKY):
            self.client.give_up(job, "unreachable")

    def give_up_waiting(self) -> None:
        """Take back what had not started, or is to be cancelled, from a server that does not answer."""
        for job in [job for job in self.jobs if not started(job) or job.cancel_requested]:
            self.client.give_up(job, "unreachable")

    def _give_up_all(self) -> None:
        for job in list(self.jobs):
            self.client.give_up(job, "unreachable")

    async def withdraw(self, jobs: Iterable[PoolJob]) -> None:
        """Take back those jobs that had not started, from a server that answers: they are deleted from its queue first.

        What turns out to have started stays.

        Raises:
            ServerError: The server did not answer; then nothing was taken back.
        """
        jobs = list(jobs)
        posts = [job.posting for job in jobs if job.posting is not None]
        if posts:
            await asyncio.wait(posts)
        waiting = {job.prompt_id: job for job in jobs if job.server is self and waits(job)}
        if not waiting:
            return
        self.withdrawing = True
        for job in waiting.values():
            job.withdrawn = True
        try:
            for prompt_id in await self.client.delete(waiting):
                job = waiting[prompt_id]
                if job.server is self and job.prompt_id == prompt_id and not job.done():
                    self.client.give_up(job, "deleted")
        finally:
            self.withdrawing = False
            for job in waiting.values():
                job.withdrawn = False


def started(job: PoolJob) -> bool:
    """Tell whether a job was seen to run on its server."""
    return job.prompt.run is not None or job.prompt.state is not JobState.PENDING


def waits(job: PoolJob) -> bool:
    """Tell whether a job is in its server's queue, and nothing says that it runs."""
    return job.posted_at is not None and not started(job) and not job.withdrawn and not job.cancel_requested


def _is_gone(exc: BaseException) -> bool:
    """Tell whether nothing listens there; else the server may just be busy, or only a proxy before it has trouble."""
    return isinstance(exc, ServerUnreachable) and not exc.maybe_sent

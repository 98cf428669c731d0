"""The second way to every outcome: looks at the server by HTTP, whenever the socket does not tell.

Theory of operation. One task per client. It sleeps while no job is live, and while frames about our prompts keep coming
it asks nothing. It looks at the server when

* a job ended and its history must be read, because frames may have been missed (`unclear`);
* nothing was heard for a while: one integer (``GET /prompt``) and the history of the oldest job tell whether all is
  well; found histories settle their jobs, and the next oldest is asked;
* a job that ran was not heard of while others were, or one was passed over by a later one;
* the connection was made again (`reconnected`).

The whole queue, megabytes when it is long, is read only when these contradict what we know, and never so often that it
would take more than a small part of the time. A socket that told nothing of what a look found is deaf, and reopened.
The cost of a round grows with the number of live jobs only in memory, not in requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from . import look
from .api import Api
from .concurrency import together
from .connection import Connection
from .deafness import Deafness, Heard
from .errors import HTTPError, JobLost, JobStalled, ProtocolError, ServerError
from .job import Job
from .live import LiveJobs
from .stalls import Stalls
from .verdict import JobState

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AT_ONCE = 8
_SOCKETLESS = 1.0
_STATUS_DUE = 2.0
_HISTORY_DUE = 3.0
_QUEUE_SHARE = 30.0
_QUEUE_SILENCES = 6
_SURPLUS_TIME = 30.0
_LONGEST_WAIT = 30.0


class Watch:
    """See that every live job gets its outcome.

    Args:
        silence: Seconds without a word about our prompts after which the server is asked; asked on at growing
            intervals, up to three times that.
        unreachable_timeout: Seconds without any answer by HTTP after which the jobs are given up; also how long the
            answer to a small question is awaited.
    """

    def __init__(
        self, api: Api, live: LiveJobs, connection: Connection, *, silence: float, unreachable_timeout: float
    ) -> None:
        self._api = api
        self._live = live
        self._connection = connection
        self._silence = silence
        self._unreachable_timeout = unreachable_timeout
        self._wakeup = asyncio.Event()
        self._idle = True
        self._due = 0.0
        self._period = silence / 2
        self._unclear: dict[Job, float] = {}
        self._absences = look.Absences()
        self._queue_wanted = False
        self._queue_allowed = 0.0
        self._remaining: int | None = None
        self._failing_since: float | None = None
        self._failed_at = float("-inf")
        self._deafness = Deafness()
        self._queue_read = 0.0
        self._unreadable: dict[Job, float] = {}
        self._surplus: dict[str, tuple[Job, float]] = {}
        self._stalls: Stalls[Job] = Stalls()
        self._untold = 0
        self._short_of = 0

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    # --- What others tell it ---------------------------------------------------------------------------------------

    def unclear(self, job: Job) -> None:
        """Note that a job ended without our knowing all of it: its history is read at once."""
        if job not in self._unclear:
            self._unclear[job] = self._clock()
            self._wakeup.set()

    def posted(self, job: Job, statuses: int) -> None:
        """Note that a job is in the server's queue; ``statuses`` is how many had come before its POST.

        Every POST is followed by a ``status`` to all sockets. When none comes, ours is deaf.
        """
        job.posted_at = self._clock()
        self._failing_since = None  # the server has just answered
        job.generation = self._live.router.generation
        if job.options.stall_timeout is not None:
            self._stalls.watch(job, job.options.stall_timeout, job.posted_at)
        if statuses == self._live.router.statuses:
            self._expect_status(self._heard(), _STATUS_DUE)
        if self._idle:
            self._idle = False
            self._queue_read = job.posted_at
            self._due = job.posted_at + self._next_period()
            self._wakeup.set()

    def reposted(self, job: Job) -> None:
        """Note that a prompt is posted once more: should the first request surface late, its entry is deleted."""
        self._surplus[job.prompt_id] = job, self._clock() + _SURPLUS_TIME
        self._wakeup.set()

    def forget(self, job: Job) -> None:
        """Forget what is known of a job: it begins again."""
        self._unclear.pop(job, None)
        self._unreadable.pop(job, None)
        self._stalls.forget(job)

    def reconnected(self) -> None:
        """Note that the connection went live: what happened before is learnt by HTTP, at once."""
        if any(job.posted_at is not None for job in self._live):
            self.look_now()

    def look_now(self) -> None:
        """Have the queue read as soon as may be."""
        self._queue_wanted = True
        self._due = 0.0
        self._wakeup.set()

    # --- The loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._pause()
            try:
                await self._look()
            except (ServerError, TimeoutError) as exc:
                self._not_answered(exc)
            except Exception:  # a bug of ours must not leave jobs unwatched
                logger.exception("a look at the server failed")
                self._due = self._clock() + self._silence
            self._give_up_stalled()

    async def _pause(self) -> None:
        """Sleep until something is due, or somebody has something to tell."""
        delay = self._time_to_next()
        if delay is None or delay > 0:
            try:
                async with asyncio.timeout(delay):
                    await self._wakeup.wait()
            except TimeoutError:
                pass
        self._wakeup.clear()

    def _time_to_next(self) -> float | None:
        if not self._live and not self._surplus and self._deafness.due is None:
            self._forget()
            self._idle = True
            return None
        now = self._clock()
        times = [self._due]
        if self._unclear:
            first = min(self._unclear.values())
            times.append(now + min(max((now - first) / 2, 0.01), 0.5) if now > first else now)
        if self._deafness.due is not None:
            times.append(self._deafness.due)
        return max(0.0, min(times) - now)

    def _forget(self) -> None:
        self._unclear.clear()
        self._absences.keep(())
        self._failing_since = self._remaining = None
        self._short_of = 0
        self._period = self._silence / 2

    async def _look(self) -> None:
        await self._read_unclear()
        await self._check_hearing()
        if self._clock() >= self._due:
            await self._round()
            self._due = self._clock() + self._next_period()

    async def _answer(self, request: Awaitable[T]) -> T:
        """Await the answer to a small question, and note that the server answers.

        Raises:
            ServerError, TimeoutError: It does not.
        """
        async with asyncio.timeout(self._unreachable_timeout):
            answer = await request
        self._failing_since = None
        return answer

    def _next_period(self) -> float:
        limit = self._stalls.shortest_limit
        period = self._period if limit is None else min(self._period, limit / 2)
        if not self._connection.live:
            period = min(period, _SOCKETLESS)
        if len(self._absences):
            period = min(period, look.CERTAIN_AFTER)
        return period

    def _not_answered(self, exc: BaseException) -> None:
        now = self._failed_at = self._clock()
        if self._failing_since is None:
            self._failing_since = now
            logger.info("the server does not answer: %s", exc or type(exc).__name__)
        self._due = now + max(min(_SOCKETLESS, self._silence), _asked_to_wait(exc))
        self._deafness.forget()
        if now - self._failing_since >= self._unreachable_timeout:
            for job in self._posted():
                self._live.fail(job, JobLost(job.prompt_id, "unreachable"))

    # --- Jobs that ended -------------------------------------------------------------------------------------------

    async def _read_unclear(self) -> None:
        jobs = [job for job in self._unclear if job in self._live]
        for job in await self._without_history(jobs):
            if self._clock() - self._unclear.get(job, 0.0) < _HISTORY_DUE:
                continue  # ``execution_success`` comes before the history entry is written
            del self._unclear[job]
            if job.prompt.verdict is not None:
                self._conclude_gone(job)
            else:
                self.look_now()
        self._unclear = {job: since for job, since in self._unclear.items() if job in self._live}

    async def _without_history(self, jobs: list[Job]) -> list[Job]:
        """Read the histories of jobs and settle those that have one; give the others."""
        missing = []
        for start in range(0, len(jobs), _AT_ONCE):
            found = await together(self._has_history(job) for job in jobs[start : start + _AT_ONCE])
            missing += [job for job, has in zip(jobs[start : start + _AT_ONCE], found, strict=True) if not has]
        return missing

    async def _has_history(self, job: Job) -> bool:
        try:
            entry = await self._answer(self._api.get_history(job.prompt_id))
        except (HTTPError, ProtocolError) as exc:
            self._maybe_give_up(job, exc)
            return True  # there may be one
        if entry is None:
            return False
        self._unreadable.pop(job, None)
        if job in self._live and not self._images_may_come(job, entry):
            self._untold += job.prompt.verdict is None
            self._live.conclude_by_history(job, entry)
        return True

    def _maybe_give_up(self, job: Job, exc: HTTPError | ProtocolError) -> None:
        """Settle a job whose history the server refuses to give, when it has done so for too long; spare the others.

        Raises:
            HTTPError: A proxy has no answer from the server, which concerns all jobs.
        """
        if isinstance(exc, HTTPError) and exc.status in (502, 503, 504):
            raise exc
        self._failing_since = None
        since = self._unreadable.setdefault(job, self._clock())
        if self._clock() - since >= self._unreachable_timeout:
            self._live.fail(job, exc)

    def _images_may_come(self, job: Job, entry: dict[str, object]) -> bool:
        """Tell whether streamed pictures that are missing may still be on their way: HTTP can overtake the socket."""
        if job.prompt.verdict is not None or not job.prompt.stream_nodes or not self._connection.live:
            return False
        if self._live.missing_stream(job, entry) is None:
            return False
        since = self._unclear.setdefault(job, self._clock())
        return self._clock() - since < self._silence

    # --- A round over all jobs -------------------------------------------------------------------------------------

    async def _round(self) -> None:
        posted = self._posted()
        if not posted and not self._surplus:
            return
        before, self._untold = self._heard(), 0
        heard = self._take_heard(posted)
        quiet = not heard or not self._connection.live
        if quiet:
            await self._ask_remaining()
        line = sorted(posted, key=_order)
        await self._settle_finished(line if quiet else _unheard_running(line, heard))
        if self._wants_queue(posted, quiet, heard):
            wanted, self._queue_wanted = self._queue_wanted, False
            try:
                await self._read_queue()
            except BaseException:
                self._queue_wanted = wanted
                raise
        self._set_pace(quiet)
        if quiet and self._socket_told_less() and before == self._heard():
            self._expect_status(before, _STATUS_DUE / 4)

    def _posted(self) -> list[Job]:
        return [job for job in self._live if job.posted_at is not None]

    def _take_heard(self, posted: list[Job]) -> set[Job]:
        heard = {job for job in posted if job.prompt.touched}
        for job in heard:
            job.prompt.touched = False
        self._stalls.moved(heard, self._clock())
        if heard:
            self._queue_moved()
        return heard

    def _queue_moved(self) -> None:
        """Note that the server gets on with its queue, which is all that a waiting prompt can ask."""
        self._stalls.moved((job for job in self._stalls if job.state is JobState.PENDING), self._clock())

    async def _ask_remaining(self) -> None:
        try:
            remaining = await self._answer(self._api.get_prompt())
        except HTTPError as exc:
            if exc.status not in (404, 405):
                raise
            return  # a stripped-down server, or a proxy that lets few routes through
        if self._remaining is not None and remaining < self._remaining:
            self._queue_moved()
        self._remaining = remaining
        if not self._connection.live and self._connection.refusal is None:
            self._connection.hurry()

    async def _settle_finished(self, line: list[Job]) -> None:
        """Read histories in the order in which the jobs run, until one has none: most often that is the first."""
        start, size = 0, 1
        while start < len(line) and not await self._without_history(line[start : start + size]):
            start, size = start + size, _AT_ONCE

    def _wants_queue(self, posted: list[Job], quiet: bool, heard: set[Job]) -> bool:
        still = [job for job in posted if job in self._live]
        if self._queue_wanted or len(self._absences) or self._surplus:
            return True
        if self._clock() < self._queue_allowed:
            return False
        if not quiet:
            return _passed_over(still, heard) or self._queue_is_too_short(still)
        if self._remaining is not None and self._remaining < len(still):
            return True
        if self._clock() - self._queue_read >= _QUEUE_SILENCES * self._silence:
            return bool(still)  # whatever runs, if it is ours or not, has told nothing for long
        # The oldest waits, as far as we know. Somebody else's prompt may run; or ours was deleted.
        return bool(still) and min(still, key=_order).state is JobState.PENDING

    def _queue_is_too_short(self, still: list[Job]) -> bool:
        """Tell whether the socket's queue number is below that of our prompts, in two rounds: a POST overtakes it."""
        told = self._live.router.queue_remaining
        before, self._short_of = self._short_of, len(still) - told if told is not None else 0
        return before > 0 and self._short_of > 0

    async def _read_queue(self) -> None:
        """Compare the whole queue with what we follow: who is in neither queue nor history twice is lost."""
        began = self._clock()
        snapshot = look.read_queue(await self._api.get_queue())
        self._queue_read = self._clock()
        self._queue_allowed = self._clock() + max(self._silence / 2, _QUEUE_SHARE * (self._clock() - began))
        present = snapshot.ids()
        followed = [job for job in self._posted() if (job.posted_at or 0.0) < began]
        for item in snapshot.running:
            self._runs(item.prompt_id)
        gone = await self._without_history([job for job in followed if job.prompt_id not in present])
        for job in gone:
            if job in self._live and self._absences.proven(job.prompt_id, self._clock()):
                self._conclude_gone(job)
        self._absences.keep(job.prompt_id for job in gone if job in self._live)
        await self._delete_surplus(snapshot)

    def _conclude_gone(self, job: Job) -> None:
        """Settle a job that is in neither queue nor history: by what was heard of it, else it is lost."""
        if job.prompt.verdict is not None:
            self._live.conclude_without_history(job)
        else:
            in_gap = job.generation != self._live.router.generation or self._failed_at >= (job.posted_at or 0.0)
            reason = look.lost_reason(ran=job.prompt.run is not None, in_gap=in_gap)
            self._live.fail(job, JobLost(job.prompt_id, reason))

    def _runs(self, prompt_id: str) -> None:
        job = self._live.get(prompt_id)
        if job is not None and job.prompt.state is JobState.PENDING:
            job.prompt.state = JobState.IN_PROGRESS
            job.pulse()

    async def _delete_surplus(self, snapshot: look.QueueSnapshot) -> None:
        now = self._clock()
        self._surplus = {prompt_id: entry for prompt_id, entry in self._surplus.items() if entry[1] > now}
        surplus = []
        for prompt_id, (job, _) in self._surplus.items():
            if job in self._live and job.posted_at is None:
                continue  # which one is ours is not known yet
            copies = snapshot.copies(prompt_id)
            ours = [item for item in copies if job in self._live and item.prompt_id == job.prompt_id][:1]
            surplus += [item.prompt_id for item in copies if item not in ours[:1] and item in snapshot.pending]
        if surplus:
            await self._api.post_queue(delete=surplus)

    # --- The socket ------------------------------------------------------------------------------------------------

    def _set_pace(self, quiet: bool) -> None:
        """Look more rarely while nothing happens."""
        if not quiet or self._untold:
            self._period = self._silence / 2
        else:
            self._period = min(self._period * 1.5, self._silence * 3)
        if not quiet:
            self._deafness.clear()

    def _heard(self) -> Heard:
        return Heard(self._live.router.statuses, self._live.router.generation)

    def _expect_status(self, heard: Heard, within: float) -> None:
        if self._connection.live and self._deafness.due is None:
            self._deafness.expect(heard, self._clock() + within)
            self._wakeup.set()

    def _socket_told_less(self) -> bool:
        """Tell whether a round found by HTTP what the socket should have told."""
        contradicted = self._deafness.contradicts(self._live.router.queue_remaining, self._remaining, self._heard())
        return self._untold > 0 or contradicted

    async def _check_hearing(self) -> None:
        """Reopen the socket if an expected ``status`` did not come although the server answers."""
        if not self._deafness.overdue(self._heard(), self._clock()):
            return
        await self._answer(self._api.get_prompt())
        if self._deafness.missed(self._heard()) and self._connection.live:
            self._due = 0.0
            if self._deafness.may_reopen(self._clock()):
                self._connection.reopen("it does not tell what HTTP tells")

    def _give_up_stalled(self) -> None:
        for job, limit in self._stalls.stalled(self._live, self._clock()):
            if not job.prompt.touched:
                self._live.fail(job, JobStalled(job.prompt_id, limit))


def _asked_to_wait(exc: BaseException) -> float:
    """Give the seconds for which a server that has too much to do wants to be left alone."""
    wait = exc.retry_after if isinstance(exc, HTTPError) and exc.status == 429 else None
    return min(wait or 0.0, _LONGEST_WAIT)


def _order(job: Job) -> tuple[float, str]:
    """Give the key by which the server orders its queue."""
    return job.prompt.number or 0.0, job.prompt_id


def _unheard_running(line: Iterable[Job], heard: set[Job]) -> list[Job]:
    return [job for job in line if job.state is JobState.IN_PROGRESS and job not in heard]


def _passed_over(jobs: Iterable[Job], heard: set[Job]) -> bool:
    """Tell whether a job of which nothing is heard comes before another of ours that runs."""
    running = [_order(job) for job in heard if job.state is JobState.IN_PROGRESS]
    last = max(running, default=None)
    return last is not None and any(job not in heard and _order(job) < last for job in jobs)

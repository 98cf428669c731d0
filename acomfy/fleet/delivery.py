"""The life of one order at a worker, from the moment it was taken until it has its outcome or goes to another.

Theory of operation
-------------------
An order may be taken more than once: its worker died, or was cut off, or gave it back. So before anything is done it is
looked at what is known of it:

* it has an outcome: nothing is left to do but to see that nothing of it still runs, and to take it from the queue;
* somebody wants it cancelled: likewise, and that is its outcome;
* the record of an attempt: its worker may live, and only its lease have run out while the broker was away; if it says
  so the order is left to it. Else its prompt may still run, or may have ended, on the server that the record names.
  That is asked, and if the server knows it the attempt is followed from here, as its own worker would have;
* nothing, or an attempt that is known to be lost: a new attempt begins here. It is recorded *before* it is posted, so
  that whoever comes next knows where to look; and in the place of the record that was read, so that of two workers who
  both think that the order is theirs one is refused.

An outcome is written where there is none; the first one stands. Only then the order is taken from the queue. So however
often a worker dies, at whatever moment, there is one outcome, and a prompt runs again only when its server is known not
to have it (or does not answer for ``unreachable_timeout``).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from .. import pool_moves
from ..errors import (
    AcomfyError,
    BrokerError,
    ClientClosed,
    JobCancelled,
    JobInterrupted,
    JobLost,
    JobStalled,
    OutputMissing,
    ProtocolError,
    ServerError,
)
from ..frames import load_json
from ..job import Job
from ..placement import Need, read_need
from ..result import Result
from ..verdict import JobState
from ..workflow import EncodedGraph
from .collecting import lost_file
from .ending import Ending, Letter, state_after
from .forwarding import Forwarding
from .hosting import Host, Place
from .member import FleetMember
from .names import Lane, prompt_id_of
from .store import BlobMissing, StoreFull
from .wire import Attempt, NewerVersion, Order, Success, read_order
from .wishes import Wishes

logger = logging.getLogger(__name__)

_HANDED_ON = 3
_UNSUITED_DELAY, _LONGEST_UNSUITED_DELAY = 2.0, 30.0
_ACCIDENTS = 60
_NEWER_DELAY = 30.0
_ELSEWHERE_DELAY = 5.0
_LOOKS_APART = 1.5
_POSTING_DELAY = 5.0
_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class Delivery:
    """One order, taken by one worker.

    Attributes:
        job_id: "" as long as it is not known.
        settled_here: Set once the order does not occupy its place any more: it ended, or runs somewhere else.
    """

    def __init__(self, host: Host, place: Place, letter: Letter) -> None:
        self.job_id = ""
        self.settled_here = asyncio.Event()
        self._host = host
        self._place = place
        self._letter = letter
        self._lease = letter.lease
        self._ending = Ending(host, place, letter)
        self._wishes = Wishes(host.broker, host.records)
        self._posting: asyncio.Task[None] | None = None
        self._tried_anyway = False
        self._resumed = False

    def reconnected(self) -> None:
        """Note that the connection to the broker was made anew: what was said meanwhile was not heard."""
        self._wishes.look()

    async def run(self) -> None:
        """Do what is to be done about the order. Cancelling it gives the order back; its prompt is left to run."""
        try:
            order = read_order(self._letter.data)
        except NewerVersion as exc:
            logger.warning("an order is left to newer workers: %s", exc)
            return await self._lease.release(_NEWER_DELAY)
        except ServerError as exc:
            logger.error("an order cannot be read and is put aside: %s", exc)
            await self._ending.put_aside("unreadable", exc)
            return await self._lease.done()
        self.job_id = order.job_id
        beside = [
            asyncio.create_task(self._lease.keep(), name="acomfy-lease"),
            asyncio.create_task(self._wishes.look_when_told(order.job_id), name="acomfy-wishes"),
        ]
        try:
            async with self._wishes.heard(order.job_id):
                await self._decide(order)
        except (asyncio.CancelledError, ClientClosed):
            await self._lease.release(_POSTING_DELAY if self._posts() else 0.0)
            raise
        except NewerVersion as exc:
            logger.warning("the order %s is left to newer workers: %s", order.job_id, exc)
            await self._lease.release(_NEWER_DELAY)
        except (ProtocolError, BlobMissing) as exc:  # neither gets better
            await self._ending.put_aside(str(exc), exc, order)
            await self._ending.conclude(order, None, order.job_id, exc, JobState.FAILED)
        except Exception as exc:  # others may do better, but not for ever
            known = isinstance(exc, AcomfyError | OSError)
            logger.error(
                "the order %s is given back: %s",
                order.job_id,
                exc,
                exc_info=not known,
                extra={"prompt_id": order.job_id},
            )
            await self._after_accident(order, exc)
        finally:
            self.settled_here.set()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _posts(self) -> bool:
        """Tell whether the POST is under way: a server may not know yet what it is about to get."""
        return self._posting is not None and not self._posting.done()

    async def _after_accident(self, order: Order, exc: Exception) -> None:
        if isinstance(exc, OSError):
            self._place.rest()
        deliveries = self._letter.deliveries
        if deliveries < _ACCIDENTS:
            return await self._lease.release(min(_PAUSE * deliveries, _LONGEST_PAUSE))
        error = AcomfyError(f"no worker could see to it: {type(exc).__name__}: {exc}")
        await self._ending.put_aside(str(error), error, order)
        await self._ending.conclude(order, None, order.job_id, error, JobState.FAILED)

    # --- What is known of it -----------------------------------------------------------------------------------------

    async def _decide(self, order: Order) -> None:
        records = self._host.records
        written = await records.outcome(order.job_id)
        attempt, revision = await records.attempt(order.job_id)
        if written is not None:
            await self._stop(attempt)
            return await self._lease.done()
        if self._wishes.cancelling.is_set() or await records.is_cancelled(order.job_id):
            await self._stop(attempt)
            return await self._end_cancelled(order, attempt)
        if attempt is not None and not attempt.lost:
            return await self._resume(order, attempt, revision)
        await self._begin(order, attempt, revision)

    async def _stop(self, attempt: Attempt | None) -> None:
        """Take what an attempt may have left from its server, if that answers."""
        client = None if attempt is None or attempt.lost else self._host.client_of(attempt)
        if client is None or attempt is None:
            return
        try:
            if await client.knows(attempt.prompt_id) is not None:
                return await client.clear([attempt.prompt_id])
        except ServerError as exc:
            logger.info("what ran of %s may still run: %s", self.job_id, exc)
        self._leave_behind(attempt)

    def _leave_behind(self, attempt: Attempt) -> None:
        """Have it taken off when its server, if it is one of this worker, answers again."""
        place = self._host.place_of(attempt)
        if place is not None:
            place.left_behind(attempt.prompt_id)

    async def _end_cancelled(self, order: Order, attempt: Attempt | None) -> None:
        prompt_id = order.job_id if attempt is None else attempt.prompt_id
        await self._ending.conclude(order, attempt, prompt_id, JobCancelled(prompt_id), JobState.CANCELLED)

    # --- A new attempt -----------------------------------------------------------------------------------------------

    async def _begin(self, order: Order, before: Attempt | None, revision: int) -> None:
        failures = 0 if before is None else before.failures
        graph = await self._graph(order)
        nodes: Mapping[str, Any] = load_json(graph)
        need = read_need(nodes)
        if not await self._suits(need):
            logger.info("%s does not suit the order %s", self._place.address, order.job_id)
            return await self._hand_on()
        number = 1 if before is None else before.number + 1
        attempt = Attempt(
            number=number,
            prompt_id=prompt_id_of(order.job_id, number),
            server=self._place.address,
            host=self._host.host,
            worker=self._host.worker_id,
            started=time.time(),
            failures=failures,
        )
        taking = asyncio.create_task(self._host.inputs.take(order.files), name="acomfy-inputs")
        try:
            if not await self._before_a_cancel(taking):
                return await self._end_cancelled(order, before)
            files = taking.result()
            noted = await self._host.records.note(order.job_id, attempt, revision)
            if noted is None:
                return logger.info("the order %s is another worker's", order.job_id)
            self._wishes.has_it = True
            if self._lease.may_be_lost and not await self._is_mine(attempt):
                return
            self._place.began(need)
            logger.info(
                "the order %s begins on %s (attempt %d)", order.job_id, attempt.server, number,
                extra={"prompt_id": attempt.prompt_id},
            )  # fmt: skip
            encoded = EncodedGraph(graph, order.streams, files)
            job = self._place.member.begin(attempt.prompt_id, encoded, replace(order.options, on_lost="raise"))
            attempt, noted = await self._renamed(order, job, attempt, noted)
            await self._follow(order, job, attempt, noted, nodes)
        finally:
            await self._give_back(taking, order)

    async def _before_a_cancel(self, task: asyncio.Task[Any]) -> bool:
        """Wait for a task; False when the order is cancelled before that has ended."""
        cancelling = asyncio.ensure_future(self._wishes.cancelling.wait())
        try:
            await asyncio.wait([task, cancelling], return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelling.cancel()
        return task.done()

    async def _give_back(self, taking: asyncio.Task[Any], order: Order) -> None:
        """Let the files of an order go, also while they are still on their way here."""
        taking.cancel()
        await asyncio.wait([taking])
        if not taking.cancelled() and taking.exception() is None:
            await self._host.inputs.give_back(order.files)

    async def _renamed(self, order: Order, job: Job, attempt: Attempt, revision: int) -> tuple[Attempt, int]:
        """Note the id that a server before 0.3.45 chose instead of ours, once the POST was answered."""
        self._posting = job.posting
        if job.posting is not None:
            await self._before_a_cancel(job.posting)
        if job.prompt_id != attempt.prompt_id:
            attempt = replace(attempt, prompt_id=job.prompt_id)
            revision = await self._host.records.note(order.job_id, attempt, revision) or revision
        return attempt, revision

    async def _suits(self, need: Need) -> bool:
        """Tell whether the server is to be asked to run it: it has what is needed, or nobody has.

        Then the server's own refusal says what is wrong, and is the outcome.
        """
        if self._place.suits(need):
            return True
        nobody = self._place.is_orphan(self._letter.subject)
        if not nobody and self._letter.deliveries > _HANDED_ON:
            nobody = not await self._host.somebody_suits(need)
        self._tried_anyway = nobody
        return nobody

    async def _hand_on(self) -> None:
        """Give back what does not suit: at first to whoever is idle now, and later now and then, as those are busy."""
        times = self._letter.deliveries - _HANDED_ON
        if times > 0:
            return await self._lease.release(min(_UNSUITED_DELAY * times, _LONGEST_UNSUITED_DELAY))
        self._place.avoid(self._letter.subject)
        await self._lease.release()
        broker = self._host.broker
        lane = Lane.parse(self._letter.subject.rpartition(".")[0] + ".*")
        if lane is not None:
            await broker.tell(broker.names.wake(lane))

    async def _graph(self, order: Order) -> bytes:
        if isinstance(order.graph, bytes):
            return order.graph
        return await self._host.inputs.read(order.graph)

    # --- An attempt of before ----------------------------------------------------------------------------------------

    async def _resume(self, order: Order, attempt: Attempt, revision: int) -> None:
        """Follow an attempt whose worker is gone, where its prompt runs or ran; else begin anew."""
        if await self._wishes.another_has_it(order.job_id, patient=bool(order.streams)):
            return logger.info("the order %s is still at %s", order.job_id, attempt.worker)
        client = self._host.client_of(attempt)
        if client is None:
            # Its server can be asked from its own machine alone: a worker there may come back.
            if not self._host.given_up_elsewhere(attempt):
                return await self._lease.release(_ELSEWHERE_DELAY)
            known = None
        else:
            if self._host.place_of(attempt) is not self._place:
                self.settled_here.set()  # it does not occupy this place
            known = await self._knows(client, attempt.prompt_id)
        if self._wishes.cancelling.is_set():
            await self._stop(attempt)
            return await self._end_cancelled(order, attempt)
        if known and client is not None:
            return await self._take_over(order, attempt, revision, client)
        if known is None:
            self._leave_behind(attempt)
        error = JobLost(attempt.prompt_id, "unreachable" if known is None else "restarted")
        await self._ending.lose(order, attempt, revision, error, again=order.options.on_lost == "resubmit", counts=True)

    async def _take_over(self, order: Order, attempt: Attempt, revision: int, client: FleetMember) -> None:
        mine = replace(attempt, worker=self._host.worker_id)
        noted = await self._host.records.note(order.job_id, mine, revision)
        if noted is None:
            return logger.info("the order %s is another worker's", order.job_id)
        self._wishes.has_it = self._resumed = True
        logger.info("following %s on %s", attempt.prompt_id, attempt.server, extra={"prompt_id": attempt.prompt_id})
        graph = await self._graph(order)
        options = replace(order.options, on_lost="raise")
        job = await client.follow(attempt.prompt_id, EncodedGraph(graph, order.streams), options)
        nodes: Mapping[str, Any] = load_json(graph)
        await self._follow(order, job, mine, noted, nodes)

    async def _knows(self, client: FleetMember, prompt_id: str) -> bool | None:
        """Tell whether a server knows a prompt; None when it does not answer for so long that it counts as lost.

        A POST of the worker that died may still be on its way, so it is looked twice.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._host.unreachable_timeout
        absences = 0
        while True:
            known = await client.knows(prompt_id)
            if known:
                return True
            if known is False:
                absences += 1
                if absences > 1:
                    return False
            elif clock() >= deadline:
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOKS_APART):
                    await self._wishes.cancelling.wait()
                    return None

    # --- While it runs -----------------------------------------------------------------------------------------------

    async def _follow(self, order: Order, job: Job, attempt: Attempt, revision: int, nodes: Mapping[str, Any]) -> None:
        """Wait for the end of a prompt, and see to its outcome."""
        forwarding = asyncio.create_task(
            Forwarding(self._host.broker, order, attempt, job).run(), name="acomfy-forwarding"
        )
        try:
            if not await self._until_it_ends(order, job, attempt):
                return
        finally:
            forwarding.cancel()
            await asyncio.gather(forwarding, return_exceptions=True)
        self.settled_here.set()
        error = job.exception()
        if error is None:
            await self._succeed(order, job, attempt, revision, nodes)
        elif isinstance(error, ClientClosed):
            raise error
        else:
            await self._fail(order, job, attempt, revision, error)

    async def _until_it_ends(self, order: Order, job: Job, attempt: Attempt) -> bool:
        """Wait for the end; False when the order turned out to be another worker's meanwhile."""
        ending = asyncio.ensure_future(job.settled())
        cancelling = asyncio.ensure_future(self._wishes.cancelling.wait())
        doubting = asyncio.ensure_future(self._lease.doubtful.wait())
        try:
            while not ending.done():
                waiting = [task for task in (ending, cancelling, doubting) if not task.done() or task is ending]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if cancelling.done() and not job.done():
                    await job.cancel()  # the wish stands if it cannot be confirmed now
                if doubting.done() and not ending.done():
                    if not await self._is_mine(attempt):
                        return False
                    doubting = asyncio.ensure_future(self._lease.doubtful.wait())
            return True
        finally:
            for task in (ending, cancelling, doubting):
                task.cancel()
            await asyncio.gather(ending, cancelling, doubting, return_exceptions=True)

    async def _is_mine(self, attempt: Attempt) -> bool:
        """Ask whether the order is still this worker's, after its lease may have run out.

        If another worker follows the very same prompt, it is left to that one; if it began another, ours is stopped.
        """
        self._wishes.look()
        now, _ = await self._host.records.attempt(self.job_id)
        if now is not None and (now.prompt_id, now.worker) == (attempt.prompt_id, attempt.worker) and not now.lost:
            self._lease.trust()
            return True
        self._wishes.has_it = False
        logger.warning("the lease of %s ran out, and another worker has it", self.job_id)
        if now is None or now.prompt_id != attempt.prompt_id:
            await self._stop(attempt)
        return False

    # --- Its end -----------------------------------------------------------------------------------------------------

    async def _succeed(self, order: Order, job: Job, attempt: Attempt, revision: int, nodes: Mapping[str, Any]) -> None:
        attempt = replace(attempt, prompt_id=job.prompt_id)
        again = order.options.on_lost == "resubmit"
        try:
            success = await self._collected(order, attempt, await job, nodes)
        except StoreFull as exc:  # another try would end in the same way
            return await self._ending.give_up(order, attempt, exc)
        except BrokerError:
            raise
        except ServerError as exc:  # the server died with the files
            return await self._ending.lose(order, attempt, revision, exc, again=again, counts=True)
        lost = lost_file(success)
        if lost is not None and again and attempt.failures + 1 < self._host.max_attempts:
            error = OutputMissing(job.prompt_id, lost.node_id, filename=lost.filename, cached=False)
            return await self._ending.lose(order, attempt, revision, error, again=True, counts=True)
        await self._ending.conclude(order, attempt, job.prompt_id, success, JobState.COMPLETED, job)

    async def _collected(self, order: Order, attempt: Attempt, result: Result, nodes: Mapping[str, Any]) -> Success:
        """Store what a prompt gave; its server may be away for a while, and the store may be full."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._host.unreachable_timeout
        while True:
            try:
                return await self._host.collecting.success(order.job_id, attempt.number, result, nodes)
            except ServerError as exc:
                if isinstance(exc, BrokerError) or clock() >= deadline:
                    raise
                logger.warning("what %s gave cannot be stored yet: %s", attempt.prompt_id, exc)
            await asyncio.sleep(_LOOKS_APART)

    async def _fail(self, order: Order, job: Job, attempt: Attempt, revision: int, error: BaseException) -> None:
        attempt = replace(attempt, prompt_id=job.prompt_id)
        move = pool_moves.decide(
            error,
            pool_moves.Attempt(
                started=job.prompt.run is not None or self._resumed,
                posted=job.posted_at is not None,
                resubmit=order.options.on_lost == "resubmit",
                failures=attempt.failures,
                most=sys.maxsize,  # `_lose` counts
                may_go_elsewhere=not self._tried_anyway,
            ),
        )
        if move.left:
            self._leave_behind(attempt)
        elif isinstance(error, JobStalled):
            await self._stop(attempt)  # nobody could follow it from here on
        if self._wishes.cancelling.is_set() and (move.again or isinstance(error, JobInterrupted | JobLost)):
            return await self._end_cancelled(order, attempt)
        if isinstance(error, AcomfyError) and (move.again or move.counts):
            return await self._ending.lose(order, attempt, revision, error, again=move.again, counts=move.counts)
        await self._ending.conclude(order, attempt, job.prompt_id, error, state_after(error), job)

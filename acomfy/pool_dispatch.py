"""Give what waits in a pool's line to its servers, and take it back from those that are lost.

The choice itself is made by `acomfy.placement` and `acomfy.line`, among the servers that `acomfy.pool_index` names;
what a failure means is known by `acomfy.pool_moves`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

from . import pool_moves
from .errors import ClientClosed, JobCancelled, JobLost, NoServerAvailable, ServerError
from .line import Entry, Group, Line
from .placement import Need, Offer, Placement, Wish, choose, may_run
from .pool_index import ServerIndex
from .pool_job import PoolJob
from .pool_server import PoolServer, started, waits
from .prompting import tracked
from .verdict import JobState

logger = logging.getLogger(__name__)

_LOOKED_AT = 32
_AT_ONCE = 64
_LONGEST_GRACE = 10.0
_SWEEP = 0.25
_FRESH = 5.0
_SMOOTHING = 0.2
_WORTH_MOVING = 0.2


class Pin:
    """Somebody who wants a server for some steps.

    Attributes:
        server: Done once there is one.
    """

    def __init__(self, need: Need, server: asyncio.Future[PoolServer]) -> None:
        self.server = server
        self.need = need


Waiting: TypeAlias = PoolJob | Pin


class Dispatcher:
    """The line and the servers of one pool.

    Args:
        unavailable_timeout: Seconds that something waits while no server that could take it is there; None: for ever.
        max_attempts: How often a prompt may be lost with its server while it runs.
        on_change: Called after something was placed.
        withdraw: Begins to take a job that waits in a server's queue back from there.
    """

    def __init__(
        self,
        *,
        unavailable_timeout: float | None,
        max_attempts: int,
        on_change: Callable[[], None],
        withdraw: Callable[[PoolServer, PoolJob], None],
    ) -> None:
        self.line: Line[Waiting] = Line()
        self.servers: dict[str, PoolServer] = {}
        self.closing = False
        self.changes = 0
        self._unavailable_timeout = unavailable_timeout
        self._max_attempts = max_attempts
        self._on_change = on_change
        self._withdraw = withdraw
        self._index = ServerIndex()
        self._deep: dict[str, PoolServer] = {}  # those where a prompt waits behind another
        self._anywhere: set[Need] = set()
        self._missing_since: dict[Need, float] = {}
        self._usual = 0.0
        self._dispatching = False
        self._stuck = False  # nothing that waits can be placed as long as no server is another, nor the line's heads
        self._later: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Handle | None = None

    # --- In and out --------------------------------------------------------------------------------------------------

    def add(self, entry: Entry[Waiting]) -> None:
        """Put something into the line, and give it to a server if one has a place."""
        entry.since = _now()
        self._add(entry)
        if entry.waiting and self._unavailable_timeout is not None and self._unavailable_timeout <= 0:
            self.sweep()

    def _add(self, entry: Entry[Waiting]) -> None:
        group = self.line.add(entry)
        self.changes += 1
        if not self._stuck or self._placeable(group):
            self.dispatch()
        if entry.waiting and self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_soon(self._sweep)

    def _placeable(self, group: Group[Waiting]) -> bool:
        """Tell whether something that came to a line in which nothing can be placed makes it worth a look."""
        placement = self._choice(group)
        return placement.server is not None or placement.held

    def remove(self, entry: Entry[Waiting]) -> bool:
        """Take something out of the line; False when it is not in."""
        removed = self.line.remove(entry)
        self.changes += removed
        self._stuck = self._stuck and not removed
        return removed

    def reorder(self, entry: Entry[Waiting], *, priority: float | None = None, front: bool = False) -> bool:
        """Give an entry another priority, or the first place of its key; False when it is not in the line."""
        moved = self.line.reorder(entry, priority=priority, front=front)
        self.changes += moved
        self._stuck = self._stuck and not moved
        return moved

    def ended(self, job: PoolJob) -> None:
        """Note that a job has its outcome."""
        self.remove(job.entry)
        job.graph = None
        server = job.server
        if not isinstance(server, PoolServer) or job not in server.jobs:
            return
        if job.state is JobState.COMPLETED:
            self._learn_duration(job)
        server.ended(job)
        self.free(server)

    def _learn_duration(self, job: PoolJob) -> None:
        took = _now() - job.placed_at
        self._usual = took if not self._usual else self._usual + _SMOOTHING * (took - self._usual)

    def free(self, server: PoolServer) -> None:
        """Note that a server may have a free place now."""
        self._note(server)
        self.changes += 1
        self.dispatch()
        if not self.line and server.idle and server.name in self._index and self._usual >= _WORTH_MOVING:
            self._relieve_for(server)

    def _relieve_for(self, idle: PoolServer) -> None:
        """Have an idle server take over what waits in the queue of a busy one, if its models are warm here."""
        view = idle.view()
        for server in self._deep.values():
            if server.usable and not server.withdrawing:
                for job in server.jobs:
                    need, refused = job.entry.need, job.refused
                    if waits(job) and view.is_warm(need) and may_run(Wish(need, refused=refused), view):
                        self._withdraw(server, job)
                        return

    def unpin(self, server: PoolServer) -> None:
        """Note that somebody who had a server for some steps is done."""
        server.pins -= 1
        server.changed()
        self.free(server)
        self._on_change()

    def server_changed(self, server: PoolServer) -> None:
        """Note that a server is up, or is not."""
        if server.name in self.servers:
            self.free(server)

    def _note(self, server: PoolServer, *, used: bool = False) -> None:
        """Note how a server is now; ``used``: it was just given something."""
        if server.name not in self.servers:
            return
        self._index.update(server.view(), used=used)
        if len(server.jobs) > 1:
            self._deep[server.name] = server
        else:
            self._deep.pop(server.name, None)

    def forget(self, server: PoolServer) -> None:
        """Let a server go."""
        self.servers.pop(server.name, None)
        self._deep.pop(server.name, None)
        self._index.forget(server.name)

    def shared(self, offer: Offer | None) -> Offer | None:
        """Give the same offer of another server, if there is one: it is large, and answers are remembered in it."""
        known = {id(server.offer): server.offer for server in self.servers.values()}
        return next((other for other in known.values() if other == offer), offer)

    def stop(self) -> None:
        """Place nothing any more."""
        self.closing = True
        for timer in (self._later, self._sweeping):
            if timer is not None:
                timer.cancel()

    # --- Placing -----------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Give what waits to the servers with free places, as far as the choice allows. Never waits."""
        if self._dispatching or self.closing:
            return
        self._dispatching, self._stuck, before = True, False, self.changes
        try:
            for _ in range(_AT_ONCE):
                if not self.line or not self._index:
                    return
                found = self._next()
                if found is None:
                    self._stuck = True
                    return
                self._place(*found)
        finally:
            self._dispatching = False
            if self.changes != before:
                self._on_change()
        self._dispatch_at(_now())  # a long line must not keep the loop

    def _next(self) -> tuple[Entry[Waiting], Placement] | None:
        """Find what is placed next: the first in turn whose models are warm, unless one before it must not wait."""
        switch: tuple[Group[Waiting], Placement] | None = None
        passed: list[Group[Waiting]] = []
        held_since: float | None = None
        for group in self.line.groups():
            placement = self._choice(group)
            if placement.server is not None and (placement.warm or group.must):
                for other in passed:
                    self.line.passed(other, group)
                return group.head, placement
            if placement.server is not None and switch is None:
                switch = group, placement
            if placement.possible:
                passed.append(group)
                if placement.held:
                    held_since = min(group.head.since, held_since or group.head.since)
            if len(passed) >= _LOOKED_AT:
                break
        if switch is not None:
            return switch[0].head, switch[1]
        if held_since is not None:
            self._dispatch_at(held_since + self._grace())
        return None

    def _choice(self, group: Group[Waiting]) -> Placement:
        wish = self._wish(group.head, must=group.must)
        return choose(wish, self._index.candidates(wish))

    def _wish(self, entry: Entry[Waiting], *, must: bool) -> Wish:
        need, item = entry.need, entry.item
        patient = bool(need.files) and _now() - entry.since < self._grace() and self._index.is_warm_somewhere(need)
        refused = item.refused if isinstance(item, PoolJob) else ()
        return Wish(need, patient, must, need in self._anywhere, refused)

    def _grace(self) -> float:
        return min(self._usual, _LONGEST_GRACE)

    def _dispatch_at(self, when: float) -> None:
        if self._later is not None:
            if self._later.when() <= when and not self._later.cancelled():
                return
            self._later.cancel()
        self._later = asyncio.get_running_loop().call_at(when, self._dispatch_later)

    def _dispatch_later(self) -> None:
        self._later = None
        self.dispatch()

    def _place(self, entry: Entry[Waiting], placement: Placement) -> None:
        server = self.servers[str(placement.server)]
        self.line.take(entry)
        self.changes += 1
        if isinstance(entry.item, Pin) and entry.item.server.done():
            return  # who wanted it was cancelled, and has not come to say so yet
        server.warmed(entry.need)
        if isinstance(entry.item, Pin):
            server.pins += 1
            entry.item.server.set_result(server)
        else:
            self._send(entry.item, server, placement)
        server.changed()
        self._note(server, used=True)

    def _send(self, job: PoolJob, server: PoolServer, placement: Placement) -> None:
        job.server, job.place, job.placed_at = server, placement, _now()
        server.jobs.add(job)
        try:
            server.client.adopt(job)
        except ClientClosed:
            server.jobs.discard(job)
            job.server = None
            self.forget(server)
            asyncio.get_running_loop().call_soon(self._again, job)

    # --- Taking back -------------------------------------------------------------------------------------------------

    def failed(self, server: PoolServer, job: PoolJob, error: BaseException) -> bool:
        """Take back a job that did not succeed on a server, if it is to be placed anew; tell whether."""
        if job.server is not server or job not in server.jobs:
            return True  # of an attempt that was given up before
        attempt = self._attempt(server, job)
        move = pool_moves.decide(error, attempt)
        job.failures += move.counts
        if move.left and (job.posting is not None or job.posted_at is not None):
            server.left.add(job.prompt_id)
        if move.blames:
            server.alarm(stale=move.blames == "lacks")
            job.refused |= {server.name} if move.blames == "lacks" else set()
        if job.cancel_requested and isinstance(error, JobLost | ServerError):
            job.settle(JobCancelled(job.prompt_id), JobState.CANCELLED)  # what may be left of it is taken off later
            return True
        if not move.again or job.cancel_requested or self.closing:
            return False
        logger.info("%s moves away from %s: %s", job, server.name, error)
        self._take_back(server, job)
        return True

    def _attempt(self, server: PoolServer, job: PoolJob) -> pool_moves.Attempt:
        others = (other.view() for other in self.servers.values() if other is not server and other.usable)
        wish = Wish(job.entry.need, refused=job.refused)
        return pool_moves.Attempt(
            started=started(job),
            posted=job.posted_at is not None,
            withdrawn=job.withdrawn,
            resubmit=job.options.on_lost == "resubmit",
            failures=job.failures,
            most=self._max_attempts,
            may_go_elsewhere=any(may_run(wish, view) for view in others),
        )

    def _take_back(self, server: PoolServer, job: PoolJob) -> None:
        server.jobs.discard(job)
        server.moved += 1
        server.changed()
        server.client.unwatch(job)
        job.server = None
        graph = job.graph
        if graph is None:
            raise AssertionError("a job keeps its graph until it is done")
        posting = job.posting
        prompt = tracked(graph.json, frozenset(graph.streams), job.options)
        if job.withdrawn:
            prompt.prompt_id = job.prompt_id  # it is certain that it did not run under it
        job.begin_again(prompt)
        job.encoded = graph if graph.files else None
        if posting is not None and posting is not asyncio.current_task():
            posting.cancel()
            posting.add_done_callback(lambda _: self._again(job))
        else:
            asyncio.get_running_loop().call_soon(self._again, job)
        asyncio.get_running_loop().call_soon(self.free, server)

    def _again(self, job: PoolJob) -> None:
        """Put a job back into the line, at its old place."""
        if job.done():
            return
        if self.closing:
            job.settle(ClientClosed("the pool is closed"), JobState.PENDING)
        elif job.cancel_requested:
            job.settle(JobCancelled(job.prompt_id), JobState.CANCELLED)
        else:
            self._add(job.entry)

    # --- What cannot be placed ---------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """See what in the line no server can take."""
        now = _now()
        anywhere: set[Need] = set()
        missing: dict[Need, float] = {}
        expired: list[Entry[Waiting]] = []
        for group in self.line.groups():
            need = group.need
            if self._could_run(need):
                continue
            if self._is_lacking(need, group.head.since):
                anywhere.add(need)
                continue
            since = missing[need] = self._missing_since.get(need, now)
            if self._unavailable_timeout is not None:
                limit = now - self._unavailable_timeout
                expired += [entry for entry in group.entries if max(since, entry.since) <= limit]
        self._anywhere, self._missing_since = anywhere, missing
        for entry in expired:
            self._refuse(entry)
        if anywhere:
            self.dispatch()

    def _sweep(self) -> None:
        self._sweeping = None
        self.sweep()
        if self.line and not self.closing:
            self._sweeping = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)

    def _able(self, need: Need) -> Iterator[PoolServer]:
        wish = Wish(need)
        return (server for server in self.servers.values() if not server.draining and may_run(wish, server.view()))

    def _could_run(self, need: Need) -> bool:
        """Tell whether some server that can be used, or was not looked at yet, may run it."""
        return any(server.usable or not server.looked for server in self._able(need))

    def _is_lacking(self, need: Need, since: float) -> bool:
        """Tell whether every server is known to lack something of a need; old knowledge is refreshed first."""
        usable = [server for server in self.servers.values() if server.usable]
        if not usable or any(True for _ in self._able(need)):
            return False
        old = [server for server in usable if server.offer_read < since - _FRESH]
        for server in old:
            server.alarm(stale=True)
        return not old

    def _refuse(self, entry: Entry[Waiting]) -> None:
        self.remove(entry)
        error = NoServerAvailable(f"no server of the pool can take the prompt: {self._reasons(entry.need)}")
        if isinstance(entry.item, PoolJob):
            entry.item.settle(error, JobState.FAILED)
        elif not entry.item.server.done():
            entry.item.server.set_exception(error)

    def _reasons(self, need: Need) -> str:
        if not self.servers:
            return "it has no servers"
        return "; ".join(self._reason(server, need) for server in islice(self.servers.values(), 10))

    def _reason(self, server: PoolServer, need: Need) -> str:
        lacking = "" if server.offer is None else server.offer.lacks(need)
        return f"{server.name}: {lacking or server.trouble or server.state}"

    def explain(self, entry: Entry[Waiting]) -> Placement:
        """Say why something waits, over all servers."""
        wish = self._wish(entry, must=False)
        return Placement(None, False, wish, tuple(server.view() for server in self.servers.values()))


def _now() -> float:
    return asyncio.get_running_loop().time()

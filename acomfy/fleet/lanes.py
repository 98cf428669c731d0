"""Which lanes a worker asks, and in which order: a pure function over a snapshot of the queue.

A worker that is free asks

* first a lane that nobody served for long (`Patience.starving`, `Patience.worked_at`), so that nobody waits for ever;
* then those whose model its server has warm, and those of prompts without models;
* then, when it has been idle for a while (`Patience.idle`), or has nothing loaded yet, the others: those first that
  fewest work at. To load a model takes longer than a prompt, so those who have it warm are given that while;
* then, of these, those in which nothing is known to wait, but that some worker has orders of: JetStream does not count
  what comes back, of a worker that gave it up or died, among what waits.

A more urgent priority goes before all of that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .names import ANY_MODEL, Lane


@dataclass(frozen=True, slots=True)
class LaneView:
    """A lane at one moment.

    Attributes:
        pending: Orders that wait in it and were never taken (``num_pending`` of its consumer).
        running: Orders of it that some worker has, or had (``num_ack_pending``): some of them may wait again.
        delivered: A number that grows with each order that is taken from it.
    """

    lane: Lane
    pending: int
    running: int = 0
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things are waited for.

    Attributes:
        idle: Seconds that a worker leaves a lane to those whose servers have its model warm.
        starving: Seconds without anybody serving it, after which a lane goes before the others of its priority.
        worked_at: The same for a lane of which some worker has an order, which may be a long prompt: it will ask for
            the next one. Unless it died, which nobody knows.
        orphaned: Seconds without anybody serving it after which it is asked whether anybody could. If not, what waits
            in it is tried all the same, so that a server's refusal says what is wrong.
    """

    idle: float = 2.0
    starving: float = 30.0
    worked_at: float = 120.0
    orphaned: float = 20.0


@dataclass(frozen=True, slots=True)
class _Seen:
    waiting_since: float
    unserved_since: float
    delivered: int
    waits: bool


class Memory:
    """Since when each lane waits, as far as one worker saw."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, _Seen] = {}

    def note(self, views: Iterable[LaneView], now: float) -> None:
        """Take notice of a snapshot; ``now`` is in seconds of any clock that does not go back."""
        self._lanes = {view.lane: self._seen(view, now) for view in views if view.pending or view.running}

    def _seen(self, view: LaneView, now: float) -> _Seen:
        known = self._lanes.get(view.lane)
        waits = view.pending > 0
        if known is None or known.waits != waits:
            return _Seen(now, now, view.delivered, waits)
        unserved = known.unserved_since if known.delivered == view.delivered else now
        return _Seen(known.waiting_since, unserved, view.delivered, waits)

    def waiting_since(self, lane: Lane) -> float:
        return self._lanes[lane].waiting_since

    def unserved_since(self, lane: Lane) -> float:
        return self._lanes[lane].unserved_since


def lanes_to_ask(
    views: Collection[LaneView],
    memory: Memory,
    *,
    warm: Collection[str] | None,
    offers: Collection[str] | None,
    idle_since: float,
    now: float,
    patience: Patience,
    turn: int = 0,
) -> list[Lane]:
    """Give the lanes that a free worker asks for an order, in turn.

    Args:
        views: The lanes of the worker's group. `Memory.note` was given them.
        warm: The tokens of the models that its server has loaded; None when it has none.
        offers: The tokens of the models that its server has; None when that is not known, and all are asked.
        idle_since: Since when the worker has nothing to do.
        turn: Another number for each server: of lanes that are alike each begins with another one.
    """
    ranked: list[tuple[int, int, float, int, Lane]] = []
    for place, view in enumerate(sorted(views, key=lambda view: view.lane)):
        lane = view.lane
        known = offers is None or lane.model == ANY_MODEL or lane.model in offers
        if not known or not (view.pending or view.running):
            continue
        waiting, unserved = memory.waiting_since(lane), memory.unserved_since(lane)
        hot = lane.model == ANY_MODEL or (warm is not None and lane.model in warm)
        if now - unserved >= (patience.worked_at if view.pending and view.running else patience.starving):
            ranked.append((lane.order, 0, unserved, 0, lane))
        elif hot or warm is None or now - max(idle_since, waiting) >= patience.idle:
            rank, key = (1, waiting) if hot else (2, view.running / (view.running + view.pending))
            ranked.append((lane.order, rank if view.pending else 3, key, (place + turn) % len(views), lane))
    return [lane for *_, lane in sorted(ranked)]

"""Which lanes a worker asks, and in which order: a pure function over a snapshot of the queue.

A worker that is free asks

* first a lane that nobody served for long (`Patience.starving`), so that nobody waits for ever;
* then those whose model its server has warm, and those of prompts without models;
* then, when it has been idle for a while (`Patience.idle`), or has nothing loaded yet, the others: those first that
  fewest work at. To load a model takes longer than a prompt, so those who have it warm are given that while.

A more urgent priority goes before all of that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .names import ANY_MODEL, Lane


@dataclass(frozen=True, slots=True)
class LaneView:
    """A lane at one moment.

    Attributes:
        pending: Orders that wait in it.
        running: Orders of it that some worker has.
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
    """

    idle: float = 2.0
    starving: float = 30.0


@dataclass(slots=True)
class _Seen:
    waiting_since: float
    unserved_since: float
    delivered: int


@dataclass(slots=True)
class Memory:
    """Since when each lane waits, as far as one worker saw."""

    _lanes: dict[Lane, _Seen] = field(default_factory=dict)

    def note(self, views: Iterable[LaneView], now: float) -> None:
        """Take notice of a snapshot; ``now`` is in seconds of any clock that does not go back."""
        seen: dict[Lane, _Seen] = {}
        for view in views:
            if not view.pending:
                continue
            known = self._lanes.get(view.lane)
            if known is None:
                seen[view.lane] = _Seen(now, now, view.delivered)
            else:
                unserved = known.unserved_since if known.delivered == view.delivered else now
                seen[view.lane] = _Seen(known.waiting_since, unserved, view.delivered)
        self._lanes = seen

    def waiting_since(self, lane: Lane) -> float:
        return self._lanes[lane].waiting_since

    def unserved_since(self, lane: Lane) -> float:
        return self._lanes[lane].unserved_since


def lanes_to_ask(
    views: Collection[LaneView],
    memory: Memory,
    *,
    warm: Collection[str] | None,
    offers: Mapping[str, str] | None,
    idle_since: float,
    now: float,
    patience: Patience,
) -> list[Lane]:
    """Give the lanes that a free worker asks for an order, in turn.

    Args:
        views: The lanes of the worker's group. `Memory.note` was given them.
        warm: The tokens of the models that its server has loaded; None when it has none.
        offers: The tokens of the models that its server has; None when that is not known, and all are asked.
        idle_since: Since when the worker has nothing to do.
    """
    ranked: list[tuple[int, int, float, Lane]] = []
    for view in views:
        lane = view.lane
        known = offers is None or lane.model == ANY_MODEL or lane.model in offers
        if not view.pending or not known:
            continue
        if now - memory.unserved_since(lane) >= patience.starving:
            ranked.append((lane.order, 0, memory.unserved_since(lane), lane))
        elif lane.model == ANY_MODEL or (warm is not None and lane.model in warm):
            ranked.append((lane.order, 1, memory.waiting_since(lane), lane))
        elif warm is None or now - max(idle_since, memory.waiting_since(lane)) >= patience.idle:
            ranked.append((lane.order, 2, view.running / (view.running + view.pending), lane))
    return [lane for _, _, _, lane in sorted(ranked)]

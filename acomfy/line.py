"""The pool's own waiting line: priorities, fair turns of keys, reordering. Pure.

Theory of operation. Higher priorities go first, always. Within one, keys (users, tenants) take turns: the key that was
served longest ago is next, and one that was never served goes before all. Within a key entries are in order, in groups
of those that need the same of a server; a group's first entry is a *head*. Who takes heads in another order than theirs
(because a server's models suit a later one) says so to `Line.passed`, which counts, so that it can be bounded.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from .placement import Need

T = TypeVar("T")

_PASSES_OWN = 20
_PASSES_OTHERS = 1
_MOST_REMEMBERED = 10_000


class Entry(Generic[T]):
    """Something that waits.

    Attributes:
        order: Its place among those of its priority and key, lowest first; None: behind those that came before it.
        since: When it came, by the clock of the caller.
        waiting: Whether it is in the line.
    """

    __slots__ = ("item", "key", "need", "order", "priority", "sequence", "since", "waiting")

    def __init__(
        self, item: T, need: Need, *, key: Hashable = None, priority: float = 0.0, order: float | None = None
    ) -> None:
        self.item = item
        self.need = need
        self.key = key
        self.priority = priority
        self.order = order
        self.sequence = 0
        self.since = 0.0
        self.waiting = False

    def place(self) -> tuple[float, int]:
        """Give the key by which those of one priority and key are ordered."""
        return self.order if self.order is not None else float(self.sequence), self.sequence


class Group(Generic[T]):
    """Entries of one priority and key that need the same of a server, in order.

    Attributes:
        passes_own, passes_others: How often later ones of its key, and ones of other keys, went before it since one of
            it was taken.
    """

    __slots__ = ("entries", "key", "need", "passes_others", "passes_own")

    def __init__(self, key: Hashable, need: Need) -> None:
        self.key = key
        self.need = need
        self.entries: list[Entry[T]] = []
        self.passes_own = 0
        self.passes_others = 0

    @property
    def head(self) -> Entry[T]:
        """The entry that is next."""
        return self.entries[0]

    @property
    def must(self) -> bool:
        """Whether it was passed over as often as may be."""
        return self.passes_own >= _PASSES_OWN or self.passes_others >= _PASSES_OTHERS


class _Turn(Generic[T]):
    """The entries of one key within a priority."""

    __slots__ = ("groups", "key", "served")

    def __init__(self, key: Hashable, served: int) -> None:
        self.key = key
        self.served = served
        self.groups: dict[Need, Group[T]] = {}

    def in_order(self) -> list[Group[T]]:
        groups = list(self.groups.values())
        if len(groups) > 1:
            groups.sort(key=lambda group: group.head.place())
        return groups

    def __len__(self) -> int:
        return sum(len(group.entries) for group in self.groups.values())


class _Level(Generic[T]):
    """The keys within one priority, by their turns."""

    __slots__ = ("by_key", "turns")

    def __init__(self) -> None:
        self.by_key: dict[Hashable, _Turn[T]] = {}
        self.turns: list[_Turn[T]] = []


def _served(turn: _Turn[T]) -> int:
    return turn.served


class Line(Generic[T]):
    """What waits, and who is next."""

    def __init__(self) -> None:
        self._levels: dict[float, _Level[T]] = {}
        self._priorities: list[float] = []  # negative, so that the highest comes first
        self._served: OrderedDict[Hashable, int] = OrderedDict()
        self._turn = 0
        self._newcomers = 0
        self._sequence = 0
        self._count = 0
        self._by_key: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return self._count

    def waiting(self, key: Hashable) -> int:
        """Count the entries of a key."""
        return self._by_key.get(key, 0)

    def by_key(self) -> dict[Hashable, int]:
        """Count the entries of each key that has some."""
        return dict(self._by_key)

    def __iter__(self) -> Iterator[Entry[T]]:
        for group in self.groups():
            yield from group.entries

    # --- In and out --------------------------------------------------------------------------------------------------

    def add(self, entry: Entry[T]) -> Group[T]:
        """Put an entry where it belongs; give its group. One that was here before comes back to its place."""
        if not entry.sequence:
            self._sequence += 1
            entry.sequence = self._sequence
        level = self._levels.get(entry.priority)
        if level is None:
            level = self._levels[entry.priority] = _Level()
            insort(self._priorities, -entry.priority)
        turn = level.by_key.get(entry.key)
        if turn is None:
            turn = level.by_key[entry.key] = _Turn(entry.key, self._last_served(entry.key))
            insort(level.turns, turn, key=_served)
        group = turn.groups.get(entry.need)
        if group is None:
            group = turn.groups[entry.need] = Group(entry.key, entry.need)
        entry.need = group.need  # one for all of a group: it takes as much memory as a small workflow
        insort(group.entries, entry, key=Entry.place)
        entry.waiting = True
        self._count += 1
        self._by_key[entry.key] = self._by_key.get(entry.key, 0) + 1
        return group

    def _last_served(self, key: Hashable) -> int:
        """Give the turn at which a key was served last; of newcomers the first goes first."""
        served = self._served.get(key)
        if served is None:
            self._newcomers += 1
            served = self._newcomers - (1 << 62)
        return served

    def remove(self, entry: Entry[T]) -> bool:
        """Take an entry out; False when it is not in."""
        if not entry.waiting:
            return False
        level = self._levels[entry.priority]
        turn = level.by_key[entry.key]
        group = turn.groups[entry.need]
        del group.entries[bisect_left(group.entries, entry.place(), key=Entry.place)]
        if not group.entries:
            del turn.groups[entry.need]
        if not turn.groups:
            del level.by_key[entry.key]
            level.turns.remove(turn)
        if not level.by_key:
            del self._levels[entry.priority]
            self._priorities.remove(-entry.priority)
        entry.waiting = False
        self._count -= 1
        left = self._by_key[entry.key] - 1
        if left:
            self._by_key[entry.key] = left
        else:
            del self._by_key[entry.key]
        return True

    def take(self, entry: Entry[T]) -> None:
        """Take an entry out because its turn has come: its key goes behind all others."""
        level = self._levels[entry.priority]
        turn = level.by_key[entry.key]
        group = turn.groups[entry.need]
        group.passes_own = group.passes_others = 0
        self._turn += 1
        turn.served = self._served[entry.key] = self._turn
        self._served.move_to_end(entry.key)
        if len(self._served) > _MOST_REMEMBERED:
            self._served.popitem(last=False)
        if len(level.turns) > 1:
            level.turns.remove(turn)
            level.turns.append(turn)
        self.remove(entry)

    def passed(self, group: Group[T], by: Group[T]) -> None:
        """Note that a later group went before this one."""
        if group.key == by.key:
            group.passes_own += 1
        else:
            group.passes_others += 1

    def reorder(self, entry: Entry[T], *, priority: float | None = None, front: bool = False) -> bool:
        """Give an entry another priority, or the first place of its key; False when it is not in the line."""
        if not self.remove(entry):
            return False
        if priority is not None:
            entry.priority = priority
        if front:
            entry.order = self.front_order(entry.key, entry.priority)
        self.add(entry)
        return True

    def front_order(self, key: Hashable, priority: float) -> float:
        """Give an order before all that waits of a priority and key."""
        level = self._levels.get(priority)
        turn = None if level is None else level.by_key.get(key)
        first = min((group.head.place()[0] for group in turn.groups.values()), default=0.0) if turn else 0.0
        return min(first, 0.0) - 1.0

    # --- Who is next -------------------------------------------------------------------------------------------------

    def groups(self) -> Iterator[Group[T]]:
        """Yield all groups in the order of their heads' turns. The line must not change meanwhile."""
        for negative in self._priorities:
            for turn in self._levels[-negative].turns:
                yield from turn.in_order()

    def position(self, entry: Entry[T]) -> int | None:
        """Count those that go before an entry if all take their turns; None when it is not in the line."""
        if not entry.waiting:
            return None
        before = 0
        for negative in self._priorities:
            level = self._levels[-negative]
            if -negative == entry.priority:
                return before + _position_within(level, entry)
            before += sum(len(turn) for turn in level.turns)
        return None


def _position_within(level: _Level[T], entry: Entry[T]) -> int:
    own = level.by_key[entry.key]
    place = entry.place()
    index = sum(bisect_left(group.entries, place, key=Entry.place) for group in own.groups.values())
    before, behind = index, False
    for turn in level.turns:
        if turn is own:
            behind = True
        else:
            before += min(len(turn), index if behind else index + 1)
    return before

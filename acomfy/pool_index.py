"""The servers of a pool, kept so that a choice among hundreds looks at a few. Pure.

Theory of operation. Of the servers with a free place only the best of each kind can be chosen: of those that are idle,
of those that have work, and, for each set of model files, of those where it is warm. Each kind is kept in the order of
preference, and apart for what the servers offer, since one that cannot run a prompt must not hide one that can. So a
choice costs the same with one server and with hundreds, and comes out as if all had been looked at.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from typing import TypeAlias

from .placement import Need, ServerState, ServerView, Wish, is_offered

_FEW = 8

_Place: TypeAlias = tuple[bool, float, int, ServerView]  # its rank, when it was used last, itself


class _Kind:
    """Servers of one kind by what they offer, those that are preferred first."""

    __slots__ = ("_orders",)

    def __init__(self) -> None:
        self._orders: dict[int, list[_Place]] = {}  # by the identity of an offer: its hash and comparison are dear

    def __bool__(self) -> bool:
        return bool(self._orders)

    def add(self, place: _Place) -> None:
        key = id(place[3].offer)
        order = self._orders.get(key)
        if order is None:
            self._orders[key] = [place]
        else:
            insort(order, place)

    def remove(self, place: _Place) -> None:
        key = id(place[3].offer)
        order = self._orders[key]
        if len(order) == 1:
            del self._orders[key]
        else:
            del order[bisect_left(order, place)]

    def best(self, wish: Wish, into: dict[str, ServerView]) -> None:
        """Put there, of each offer that suits a wish, the server that is preferred."""
        for order in self._orders.values():
            if is_offered(wish, order[0][3].offer):
                for place in order:
                    view = place[3]
                    if view.name not in wish.refused:
                        into[view.name] = view
                        break


class ServerIndex:
    """All servers of a pool at this moment."""

    def __init__(self) -> None:
        self._free: dict[str, _Place] = {}  # the one used longest ago first
        self._idle = _Kind()
        self._busy = _Kind()
        self._warm: dict[frozenset[str] | None, _Kind] = {}
        self._holding: dict[str, frozenset[str]] = {}
        self._sets: dict[str, Counter[frozenset[str]]] = {}  # by a file: the sets it is in, and on how many servers
        self._uses = 0

    def __bool__(self) -> bool:
        """Whether a server has a free place."""
        return bool(self._free)

    def __contains__(self, name: object) -> bool:
        """Tell whether a server has a free place."""
        return name in self._free

    def update(self, view: ServerView, *, used: bool = False) -> None:
        """Note how a server is now; ``used``: it was just given something."""
        held = view.warm if view.state is ServerState.UP else None
        if held is not self._holding.get(view.name):
            self._hold(view.name, held)
        free = view.free
        place = self._remove(view.name, keep=free and not used)
        if free:
            since = None if used or place is None else place[2]
            if since is None:
                since = self._uses = self._uses + 1
            self._add((*view.rank(), since, view))

    def forget(self, name: str) -> None:
        """Forget a server."""
        self._remove(name)
        self._release(name)

    def _add(self, place: _Place) -> None:
        view = place[3]
        self._free[view.name] = place
        (self._busy if view.ours else self._idle).add(place)
        warm = self._warm.get(view.warm)
        if warm is None:
            warm = self._warm[view.warm] = _Kind()
        warm.add(place)

    def _remove(self, name: str, *, keep: bool = False) -> _Place | None:
        """Take a server out of all kinds; ``keep``: it keeps its turn."""
        place = self._free.get(name) if keep else self._free.pop(name, None)
        if place is not None:
            view = place[3]
            (self._busy if view.ours else self._idle).remove(place)
            warm = self._warm[view.warm]
            warm.remove(place)
            if not warm:
                del self._warm[view.warm]
        return place

    def _hold(self, name: str, files: frozenset[str] | None) -> None:
        self._release(name)
        if files is not None:
            self._holding[name] = files
            for file in files:
                self._sets.setdefault(file, Counter())[files] += 1

    def _release(self, name: str) -> None:
        files = self._holding.pop(name, frozenset())
        for file in files:
            sets = self._sets[file]
            sets[files] -= 1
            if not sets[files]:
                del sets[files]
            if not sets:
                del self._sets[file]

    # --- What a choice asks ------------------------------------------------------------------------------------------

    def is_warm_somewhere(self, need: Need) -> bool:
        """Tell whether a server that is up, with a free place or not, holds all model files of a prompt."""
        return bool(self._warm_sets(need.files))

    def _warm_sets(self, files: frozenset[str]) -> list[frozenset[str]]:
        """Give the sets that hold all files, by way of the file that is in the fewest."""
        rarest: Counter[frozenset[str]] | None = None
        for file in files:
            sets = self._sets.get(file)
            if sets is None:
                return []
            if rarest is None or len(sets) < len(rarest):
                rarest = sets
        return [] if rarest is None else [held for held in rarest if files <= held]

    def candidates(self, wish: Wish) -> list[ServerView]:
        """Give the free servers to choose from: all, if there are few, so that the choice can tell of each."""
        if len(self._free) <= _FEW:
            return [place[3] for place in self._free.values()]
        found: dict[str, ServerView] = {}
        for held in (None, *self._warm_sets(wish.need.files)):
            kind = self._warm.get(held)
            if kind is not None:
                kind.best(wish, found)
        self._idle.best(wish, found)
        self._busy.best(wish, found)
        return list(found.values())

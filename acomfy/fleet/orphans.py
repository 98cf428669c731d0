"""Lanes whose model no server of the group has: a name that was misspelt, most often.

No worker asks such a lane, so what waits there would wait for ever. When nobody took anything from it for long, a
worker asks the others whether any of their servers has that model, busy or not. If none has, it takes the orders
itself: the refusal of its server then says what is wrong, and what there is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection

import nats.errors
from nats.aio.msg import Msg

from ..placement import Need
from .broker import Broker
from .lanes import LaneView, Memory
from .names import Lane

logger = logging.getLogger(__name__)

_ANSWERS_IN = 1.0
_LASTS = 60.0


class Orphans:
    """The lanes that nobody can serve, as far as one server's worker found out.

    Args:
        after: Seconds without anybody taking an order from a lane after which it is asked about, and again.
    """

    def __init__(self, broker: Broker, group: str, after: float) -> None:
        self._broker = broker
        self._group = group
        self._after = after
        self._asked: dict[Lane, float] = {}
        self._found: dict[Lane, float] = {}

    def lanes(self) -> Collection[Lane]:
        """Those that were found, not long ago."""
        now = asyncio.get_running_loop().time()
        self._found = {lane: at for lane, at in self._found.items() if now - at < _LASTS}
        return self._found.keys()

    def holds(self, subject: str) -> bool:
        """Tell whether an order of this subject is of such a lane."""
        return any(subject.startswith(self._broker.names.lane(lane)[:-1]) for lane in self.lanes())

    async def look(self, views: Collection[LaneView], memory: Memory, served: Callable[[Lane], bool]) -> None:
        """Ask about lanes of which nobody took anything for long, and that this server cannot serve."""
        now = asyncio.get_running_loop().time()
        for view in views:
            lane = view.lane
            overdue = view.pending and now - memory.unserved_since(lane) >= self._after
            if not overdue or served(lane) or now - self._asked.get(lane, float("-inf")) < self._after:
                continue
            self._asked[lane] = now
            if lane.loader is None:
                continue
            if not await somebody_suits(self._broker, self._group, Need(models=frozenset({lane.loader}))):
                logger.warning("no server of the group has %r; what waits for it is tried all the same", lane.loader[2])
                self._found[lane] = asyncio.get_running_loop().time()


async def somebody_suits(broker: Broker, group: str, need: Need) -> bool:
    """Ask whether a server of the group has what a prompt needs, busy or not; also True when that cannot be asked."""
    wanted = {"classes": sorted(need.classes), "models": sorted(need.models)}
    try:
        await broker.nc.request(broker.names.offers(group), json.dumps(wanted).encode(), timeout=_ANSWERS_IN)
    except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
        return False
    except nats.errors.Error as exc:
        logger.debug("the other workers cannot be asked: %r", exc)
    return True


async def answer_offers(broker: Broker, message: Msg, suits: Callable[[Need], bool]) -> None:
    """Answer whether a server of this worker has what is needed; only if one has."""
    try:
        wanted = json.loads(message.data)
        need = Need(frozenset(wanted["classes"]), frozenset((str(a), str(b), str(c)) for a, b, c in wanted["models"]))
    except (ValueError, TypeError, KeyError) as exc:
        logger.debug("somebody asked what makes no sense: %r", exc)
        return
    if message.reply and suits(need):
        await broker.tell(message.reply, b"1")

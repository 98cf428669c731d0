"""Orders that the broker has and hands out to nobody.

When nats-server (2.15, for one) is killed, the consumer of a lane may come back with an order taken for acknowledged
that never was: it stays in the stream and is delivered to nobody any more. Such an order is at or before the number up
to which all are acknowledged (``ack_floor``); as acknowledged orders leave the stream, the first one of a lane tells.
It is taken without its lane, and the record of its attempts sees to it that only one worker does.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from functools import partial

from ..errors import BrokerError
from .ending import Letter
from .lease import Unleased
from .names import Lane
from .records import Records

logger = logging.getLogger(__name__)

_EVERY = 20.0
_CERTAIN_AFTER = 3.0


class Forgotten:
    """Find such orders for one server of a worker, a lane now and then."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._due = float("-inf")
        self._suspect: tuple[Lane, int] | None = None

    async def look(self, floors: Mapping[Lane, int]) -> Letter | None:
        """Look, if it is time to; a broker that says no, perhaps as this user may not look, is asked again later.

        Args:
            floors: For lanes whose orders may be taken the number up to which all are acknowledged.

        Raises:
            ServerUnreachable, ClientClosed: The broker cannot be used any more.
        """
        now = asyncio.get_running_loop().time()
        if now < self._due or not floors:
            return None
        suspect, self._suspect = self._suspect, None
        self._due = now + _EVERY * random.uniform(0.5, 1.5)
        lane = suspect[0] if suspect is not None and suspect[0] in floors else random.choice(list(floors))
        try:
            message = await self._records.first(lane)
        except BrokerError as exc:
            logger.warning("whether orders were forgotten is not known: %s", exc)
            return None
        if message is None or not message.seq or not message.subject or message.seq > floors[lane]:
            return None
        if suspect != (lane, message.seq):
            self._suspect, self._due = (lane, message.seq), now + _CERTAIN_AFTER  # it may be about to leave
            return None
        logger.warning("the broker forgot %s, which is taken all the same", message.subject)
        withdraw = partial(self._records.withdraw, message.subject)
        return Letter(message.data or b"", message.subject, Unleased(withdraw))

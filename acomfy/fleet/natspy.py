"""nats-py's connection, mended where cancelling what waits for it would be lost."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..concurrency import lost_cancellations_raised

logger = logging.getLogger(__name__)

_UNSUBSCRIBING = 0.1


class Connection(Client):
    """A connection to NATS of which every call can be cancelled.

    nats-py (2.16) waits for answers by ``asyncio.wait_for``, which before Python 3.12 loses a cancellation that comes
    together with the answer, and swallows those that come while it waits for its buffer to be written. JetStream's
    calls are requests, so they are mended too.
    """

    async def request(self, *args: Any, **kwargs: Any) -> Msg:
        """Ask, and wait for one answer; see nats-py."""
        with lost_cancellations_raised():
            return await super().request(*args, **kwargs)

    async def publish(self, *args: Any, **kwargs: Any) -> None:
        """Publish; see nats-py."""
        with lost_cancellations_raised():
            await super().publish(*args, **kwargs)

    async def subscribe(self, *args: Any, **kwargs: Any) -> Subscription:
        """Subscribe; see nats-py. A subscription that was made is left to the connection when this is cancelled."""
        with lost_cancellations_raised():
            return await super().subscribe(*args, **kwargs)


async def drop(subscription: Subscription | None) -> None:
    """End a subscription, if there is one. A broker that is away, or stuck, may never hear of it."""
    if subscription is not None:
        try:
            async with asyncio.timeout(_UNSUBSCRIBING):
                with lost_cancellations_raised():
                    await subscription.unsubscribe()
        except (nats.errors.Error, TimeoutError) as exc:
            logger.debug("the subscription to %s was left as it is: %r", subscription.subject, exc)

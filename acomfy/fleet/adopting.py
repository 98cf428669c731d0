"""Prompts of the fleet on a server whose workers are gone: found in its queue, not in that of the fleet.

The order of such a prompt goes to another worker when its lease runs out. But as long as the prompt runs its server
takes no other, so its own worker, started again, would not ask for it; and if the server cannot be reached from other
machines, nobody could follow it. So a worker looks for what it finds on its own server, and sees to it without having
taken it from a lane: there is one outcome whoever writes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from ..look import read_queue
from .ending import Letter
from .hosting import Host, Place
from .lease import Unleased
from .names import possible_jobs
from .wire import Attempt

logger = logging.getLogger(__name__)

_LOOKED_AT_ONCE = 20


class Adopting:
    """Find the prompts on one server of which nobody takes care.

    Args:
        lease: Seconds for which a prompt is left to whoever had it.
        adopt: Sees to an order.
    """

    def __init__(self, host: Host, place: Place, lease: float, adopt: Callable[[Letter], None]) -> None:
        self._host = host
        self._place = place
        self._lease = lease
        self._adopt = adopt
        self._strangers: set[str] = set()
        self._since: dict[str, float] = {}

    async def look(self) -> None:
        """Look at what is in the server's queue and not of this worker.

        Raises:
            ServerError: The server or the broker does not say.
        """
        member = self._place.member
        ours = {job.prompt_id for job in member.jobs}
        found = [item.prompt_id for item in read_queue(await member.api.get_queue()) if item.prompt_id not in ours]
        self._strangers.intersection_update(found)
        self._since = {prompt_id: at for prompt_id, at in self._since.items() if prompt_id in found}
        for prompt_id in [one for one in found if one not in self._strangers][:_LOOKED_AT_ONCE]:
            if not await self._is_ours(prompt_id):
                self._strangers.add(prompt_id)

    async def _is_ours(self, prompt_id: str) -> bool:
        """See to a prompt if it is of the fleet; tell whether it is."""
        records = self._host.records
        for job_id in possible_jobs(prompt_id):
            attempt, _ = await records.attempt(job_id)
            if attempt is not None and attempt.prompt_id == prompt_id and self._host.place_of(attempt) is self._place:
                if attempt.lost or await records.outcome(job_id) is not None:
                    logger.info("nobody wants %s any more", prompt_id)
                    await self._place.member.clear([prompt_id])
                else:
                    await self._see_to(job_id, attempt)
                return True
        return False

    async def _see_to(self, job_id: str, attempt: Attempt) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._since.setdefault(attempt.prompt_id, now) < self._lease:
            return
        self._since[attempt.prompt_id] = now
        message = await self._host.records.order(job_id)
        if message is not None and message.subject:
            withdraw = partial(self._host.records.withdraw, message.subject)
            self._adopt(Letter(message.data or b"", message.subject, Unleased(withdraw)))

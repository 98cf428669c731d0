"""One ComfyUI server of a worker: when its GPU is free an order is taken for it, from the lane that suits it best."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.api import ConsumerInfo

from ..errors import AcomfyError, BrokerError
from ..placement import Need, Offer
from .adopting import Adopting
from .broker import Broker
from .delivery import Delivery
from .ending import Letter
from .forgotten import Forgotten
from .hosting import Host
from .lanes import LaneView, Memory, Patience, lanes_to_ask
from .lease import Lease
from .member import FleetMember
from .names import ANY_MODEL, Lane, main_model, model_token
from .orphans import Orphans
from .pulls import Puller
from .streams import loader_of

logger = logging.getLogger(__name__)

_PAGE = 256
_FRESH = 1.0
_STORING = 4
_AVOIDED = 0.3
_BUSY_PAUSE = 0.5
_AWAY_PAUSE = 1.0
_REST, _LONGEST_REST, _MOST_RESTS = 1.0, 60.0, 6


class Station:
    """One server of a worker.

    Args:
        address: By which other machines reach it, without what is secret.
        in_flight: Orders that it is given at once: one to run, others to wait in its queue.
        poll_interval: Seconds between looks at the queue while nothing is heard of it.
        turn: Another number for each server; see `lanes_to_ask`.

    Attributes:
        offer: What nodes and models it has; None when that is not known.
        deliveries: The orders that it has.
        done: How many orders ended here.
        up: Whether it can be used.
    """

    def __init__(
        self,
        host: Host,
        url: str,
        options: dict[str, Any],
        *,
        address: str | None,
        in_flight: int,
        group: str,
        poll_interval: float,
        patience: Patience,
        turn: int = 0,
    ) -> None:
        self.member = FleetMember(url, options, self._reopened)
        self.address = address or self.member.api.url
        self.offer: Offer | None = None
        self.deliveries: set[Delivery] = set()
        self.done = 0
        self.up = False
        self.warm: frozenset[str] | None = None
        self.warm_model = ""
        self._host = host
        self._broker: Broker = host.broker
        self._group = group
        self._in_flight = in_flight
        self._lease = host.lease
        self._poll_interval = poll_interval
        self._patience = patience
        self._turn = turn
        self._memory = Memory()
        self._forgotten = Forgotten(host.records)
        self._floors: dict[Lane, int] = {}
        self._orphans = Orphans(host.broker, group, patience.orphaned)
        self._views: list[LaneView] = []
        self._leases: dict[str, float] = {}
        self._viewed = float("-inf")
        self._stale = True
        self._left: set[str] = set()
        self._avoided = float("-inf"), ""
        self._complaints: set[type[AcomfyError]] = set()
        self._adopted: set[asyncio.Task[None]] = set()
        self._occupied: set[Delivery] = set()
        self._adopting = Adopting(host, self, host.lease, self._adopt)
        self._rests, self._rests_until = 0, float("-inf")
        self._ready_turn = asyncio.Lock()
        self._stopping = asyncio.Event()

    # --- What deliveries ask -----------------------------------------------------------------------------------------

    def began(self, need: Need) -> None:
        """Note what an order that begins here loads."""
        self._rests = 0
        model = main_model(need)
        if model:
            self.warm, self.warm_model = frozenset({model_token(model)}), model

    def has(self, lane: Lane) -> bool:
        """Tell whether the server has the model of a lane, as far as is known."""
        return self.offer is None or lane.loader is None or self.suits(Need(models=frozenset({lane.loader})))

    def suits(self, need: Need) -> bool:
        """Tell whether the server has what is needed, as far as is known; also while it is away."""
        return self.offer is None or not self.offer.lacks(need)

    def avoid(self, subject: str) -> None:
        """Leave the lane of an order to others for a moment: it does not suit, and was given back."""
        self._avoided = asyncio.get_running_loop().time() + _AVOIDED, subject

    def rest(self) -> None:
        """Take nothing for a while, longer each time: this machine failed, say its disk is full.

        It would fail at once with whatever it took, and so take all that waits while others are busy.
        """
        seconds = min(_REST * 2**self._rests, _LONGEST_REST)
        self._rests = min(self._rests + 1, _MOST_RESTS)
        self._rests_until = asyncio.get_running_loop().time() + seconds
        logger.warning("%s is given nothing for %.0f s", self.address, seconds)

    def is_orphan(self, subject: str) -> bool:
        """Tell whether an order of this subject is tried though no server of the group has its model."""
        return self._orphans.holds(subject)

    def left_behind(self, prompt_id: str) -> None:
        """Note that a prompt which was given up may still be here; it is taken off before the server is used again."""
        self._left.add(prompt_id)
        self.up = False

    # --- Its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take orders until `stop`, then wait for those that are here. The broker was there once."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._in_flight):
                    group.create_task(self._slot())
            if self._adopted:
                await asyncio.wait(self._adopted)
        finally:
            await _cancelled(self._adopted)

    def stop(self) -> None:
        """Take no more."""
        self._stopping.set()

    async def _slot(self) -> None:
        puller = Puller(self._broker)
        await puller.begin()
        running: set[asyncio.Task[None]] = set()
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                if len(running) > _STORING:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                letter = await self._take_unless(stopping, puller)
                if letter is not None:
                    await self._deliver(letter, running)
            if running:
                await asyncio.wait(running)
        finally:
            stopping.cancel()
            await _cancelled(running)
            await puller.end()

    async def _take_unless(self, stopping: asyncio.Future[Any], puller: Puller) -> Letter | None:
        """Wait for an order, but for nothing beyond `stop`; one that comes all the same is given back at once."""
        taking = asyncio.create_task(self._take(puller), name="acomfy-take")
        wanted = False
        try:
            await asyncio.wait([taking, stopping], return_when=asyncio.FIRST_COMPLETED)
            wanted = not self._stopping.is_set()
            return taking.result() if wanted else None
        finally:
            if not wanted:
                await _given_back(taking)

    def _lease_of(self, message: Msg) -> float:
        """Give the seconds of an order's lease: those that its lane was made with, whatever this worker was told."""
        return self._leases.get(message.metadata.consumer) or self._lease

    async def _deliver(self, letter: Letter, running: set[asyncio.Task[None]]) -> None:
        """See to an order; come back once the server is free again, though its files may still be on their way."""
        delivery, task = self._begin(letter, running)
        free = asyncio.ensure_future(delivery.settled_here.wait())
        try:
            await asyncio.wait([task, free], return_when=asyncio.FIRST_COMPLETED)
        finally:
            free.cancel()

    def _begin(self, letter: Letter, running: set[asyncio.Task[None]]) -> tuple[Delivery, asyncio.Task[None]]:
        delivery = Delivery(self._host, self, letter)
        self.deliveries.add(delivery)
        task = asyncio.create_task(delivery.run(), name="acomfy-delivery")
        running.add(task)
        task.add_done_callback(lambda _: self._delivered(delivery, task, running))
        return delivery, task

    def _adopt(self, letter: Letter) -> None:
        """See to an order whose prompt was found on the server."""
        delivery, task = self._begin(letter, self._adopted)
        self._occupied.add(delivery)
        task.add_done_callback(lambda _: self._occupied.discard(delivery))

    def _delivered(self, delivery: Delivery, task: asyncio.Task[None], running: set[asyncio.Task[None]]) -> None:
        self.deliveries.discard(delivery)
        running.discard(task)
        self.done += 1
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("the order %s failed here and goes to another", delivery.job_id, exc_info=exc)

    # --- The server --------------------------------------------------------------------------------------------------

    def _reopened(self) -> None:
        self._stale = True  # another version may have been started, or with other models

    async def _ready(self) -> bool:
        """Tell whether the server can be given an order now."""
        if asyncio.get_running_loop().time() < self._rests_until:
            return False
        async with self._ready_turn:
            try:
                if self._stale or not self.up:
                    await self._make_ready()
                others = await self.member.remaining() - len(self.member.jobs)
                if others > 0:  # somebody else's: ours wait where they can go elsewhere
                    await self._adopting.look()
                return others <= 0 and not any(not one.settled_here.is_set() for one in self._occupied)
            except AcomfyError as exc:
                self._complain(exc)
            self.up = False
            return False

    def _complain(self, exc: AcomfyError) -> None:
        """Say why the server cannot be used, once for each kind of reason until it can."""
        if type(exc) not in self._complaints:
            self._complaints.add(type(exc))
            logger.warning("%s cannot be used: %s", self.address, exc)

    async def _make_ready(self) -> None:
        await self.member.answers()
        self.offer = await self.member.read_offer()
        await self.member.hear()
        if self._left:
            left = frozenset(self._left)
            await self.member.clear(left)
            self._left -= left
        if not self.up:
            (logger.warning if self._complaints else logger.info)("%s can be used", self.address)
            self._complaints.clear()
            self.warm, self.warm_model = None, ""
        self.up, self._stale = True, False

    # --- The queue ---------------------------------------------------------------------------------------------------

    async def _take(self, puller: Puller) -> Letter | None:
        """Wait for an order; None when the server cannot be used, or no more is to be taken."""
        if not await self._ready():
            await self._pause(_BUSY_PAUSE if self.up else _AWAY_PAUSE)
            return None
        if (letter := await self._pull(puller, asyncio.get_running_loop().time())) is not None:
            return letter
        try:
            async with self._waking() as woken:
                letter = await self._wait(puller, woken)
        except asyncio.CancelledError:
            if letter is not None:
                await letter.lease.release()
            raise
        return letter

    async def _wait(self, puller: Puller, woken: asyncio.Event) -> Letter | None:
        """Look for an order now and then, and when woken."""
        loop = asyncio.get_running_loop()
        idle_since = loop.time()
        while not self._stopping.is_set():
            if (letter := await self._pull(puller, idle_since, anew=True)) is not None:
                return letter
            avoided = self._avoided[0] - loop.time()  # what it was woken for may be there
            pause = self._poll_interval * random.uniform(0.75, 1.25)
            await self._sleep(woken, min(pause, avoided) if avoided > 0 else pause)
            if not await self._ready():
                return None
        return None

    async def _pause(self, seconds: float) -> None:
        await self._sleep(asyncio.Event(), seconds)

    async def _sleep(self, woken: asyncio.Event, seconds: float) -> None:
        """Wait until something waits in a lane, or so many seconds, or until no more is to be taken."""
        tasks = [asyncio.ensure_future(woken.wait()), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        woken.clear()

    async def _pull(self, puller: Puller, idle_since: float, *, anew: bool = False) -> Letter | None:
        """Ask the lanes that suit the server, in turn."""
        now = asyncio.get_running_loop().time()
        if anew or now - self._viewed > _FRESH:
            await self._look()
            await self._orphans.look(self._views, self._memory, self.has)
        lanes = lanes_to_ask(
            self._views,
            self._memory,
            warm=self.warm,
            offers={view.lane.model for view in self._views if self._takes(view.lane)},
            idle_since=idle_since,
            now=now,
            patience=self._patience,
            turn=self._turn,
        )
        until, avoided = self._avoided
        for lane in lanes:
            if now < until and avoided.startswith(self._broker.names.lane(lane)[:-1]):
                continue
            message = await puller.pull(lane)
            if message is not None:
                lease = Lease(self._broker, message, self._lease_of(message))
                return Letter(message.data, message.subject, lease, message.metadata.num_delivered or 1)
        if lanes:
            self._viewed = float("-inf")  # others were faster: the picture is an old one
        return await self._forgotten.look({lane: floor for lane, floor in self._floors.items() if self.has(lane)})

    def _takes(self, lane: Lane) -> bool:
        return self.has(lane) or lane in self._orphans.lanes()

    async def _look(self) -> None:
        """Look at all lanes of the group.

        Raises:
            ServerUnreachable, ClientClosed: The broker cannot be used any more.
        """
        try:
            infos = await self._broker.persist(self._consumers, patience=None)
        except js_errors.NotFoundError:
            infos = []
        except BrokerError as exc:
            logger.warning("the queue cannot be looked at: %s", exc)
            return
        self._leases = {str(info.name): info.config.ack_wait or 0.0 for info in infos if info.config is not None}
        self._views = [view for view in map(lane_view, infos) if view is not None and view.lane.group == self._group]
        self._floors = {
            view.lane: info.ack_floor.stream_seq
            for info in infos
            if (view := lane_view(info)) is not None and view.lane.group == self._group and info.ack_floor is not None
        }
        self._viewed = asyncio.get_running_loop().time()
        self._memory.note(self._views, self._viewed)

    async def _consumers(self, js: JetStreamContext) -> list[ConsumerInfo]:
        infos: list[ConsumerInfo] = []
        while True:
            page = await js.consumers_info(self._broker.names.jobs, offset=len(infos))
            infos += page
            if len(page) < _PAGE:
                return infos

    @asynccontextmanager
    async def _waking(self) -> AsyncGenerator[asyncio.Event, None]:
        """Have an event set when something new waits that suits the server; of all that wait so, one is woken."""
        woken = asyncio.Event()

        async def wake(message: Msg) -> None:
            woken.set()

        names, broker = self._broker.names, self._broker
        models: Collection[str] = () if self.warm is None else {*self.warm, ANY_MODEL}
        subjects = [f"{names.name}.wake.{self._group}.*.{model}" for model in models] or [names.wakes(self._group)]
        listenings = [await broker.listen(subject, wake, queue="idle") for subject in subjects]
        try:
            yield woken
        finally:
            for listening in listenings:
                await broker.unlisten(listening)


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _given_back(taking: asyncio.Task[Letter | None]) -> None:
    """Stop taking an order; give back one that came already."""
    taking.cancel()
    await asyncio.wait([taking])
    if not taking.cancelled() and taking.exception() is None and (letter := taking.result()) is not None:
        await letter.lease.release()


def lane_view(info: ConsumerInfo) -> LaneView | None:
    """Read how a lane is; None for a consumer that is none."""
    lane = None if info.config is None else Lane.parse(info.config.filter_subject or "")
    if lane is None or info.config is None:
        return None
    lane = replace(lane, loader=loader_of(info.config))
    delivered = info.delivered.consumer_seq if info.delivered is not None else 0
    return LaneView(lane, info.num_pending or 0, info.num_ack_pending or 0, delivered or 0)

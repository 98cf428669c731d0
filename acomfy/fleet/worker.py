"""`Worker`: runs beside ComfyUI servers, and takes a prompt from the fleet's queue when a GPU is free."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from nats.aio.msg import Msg

from ..access import url_for_others
from ..errors import AcomfyError
from ..placement import Need
from .broker import Broker
from .collecting import Collecting, InputFiles
from .guests import Guests
from .lanes import Patience
from .member import FleetMember
from .names import Names, check_token
from .orphans import answer_offers, somebody_suits
from .records import Records
from .scratch import Scratch
from .station import Station
from .store import FileStore
from .streams import Keeping
from .wire import Attempt
from .workers import WorkerInfo, write_workers

logger = logging.getLogger(__name__)

_MOST_REFUSED = 10_000
_OWN_OPTIONS = ("advertise", "in_flight")
_LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")


class Worker:
    """Takes prompts of a fleet to ComfyUI servers, one at a time to each; what ``acomfy worker`` runs.

    ::

        async with Worker(["http://127.0.0.1:8188"], nats="nats://broker:4222") as worker:
            await worker.run()

    It may be killed at any moment: what it had goes to another worker after ``lease`` seconds, which follows a prompt
    that still runs, or ended, where it is, and runs one again only if its server does not know it.
    """

    def __init__(
        self,
        servers: Iterable[str | Mapping[str, Any]] = ("http://127.0.0.1:8188",),
        *,
        nats: str | Sequence[str] = "nats://127.0.0.1:4222",
        name: str = "acomfy",
        group: str = "default",
        in_flight: int = 1,
        results: Literal["store", "server"] = "store",
        max_attempts: int = 3,
        lease: float = 30.0,
        unreachable_timeout: float = 30.0,
        poll_interval: float = 2.0,
        patience: Patience | None = None,
        keeping: Keeping | None = None,
        client_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Make a worker. Nothing is opened yet.

        Args:
            servers: For each ComfyUI its address, or the arguments of `Client` for it, and beside them ``advertise``
                (its address for other machines, without user and password; None: as given) and its own ``in_flight``.
            nats: Addresses of the broker.
            name: Of the fleet.
            group: Whose prompts it takes.
            in_flight: Prompts that a server is given at once: 1 takes the next when the GPU is free, 2 hides the way
                to the broker at the price of one prompt that waits where it cannot go elsewhere.
            results: ``store``: files go into the broker's object store. ``server``: they stay on their servers, from
                where submitters read them by ``advertise``.
            max_attempts: How often a prompt may run and be lost, before it is put aside (dead letter).
            lease: Seconds without a sign of life after which a prompt that another worker left on a server of this one
                is seen to. How long orders themselves are leased their submitter says (`Fleet`); give both the same.
            unreachable_timeout: Seconds without any answer of a server after which what runs there counts as lost.
            poll_interval: Seconds between looks at the queue of a server that has nothing to do. What suits it wakes
                it at once; with thousands of idle workers make it longer.
            patience: How long lanes of other models are left to those who have them warm.
            keeping: As for `Fleet`.
            client_options: Arguments of `Client` for all servers.
            options: Arguments of ``nats.connect``, as for `Fleet`.

        Raises:
            ValueError, TypeError: One of these cannot be used.
        """
        if results not in ("store", "server"):
            raise ValueError(f"results is 'store' or 'server', not {results!r}")
        if in_flight < 1 or max_attempts < 1 or lease < 1 or poll_interval <= 0:
            raise ValueError("in_flight, max_attempts and lease are at least 1, and poll_interval is more than 0")
        self.broker = Broker(nats, Names(name), keeping or Keeping(), options)
        self._scratch = Scratch()
        self.records = Records(self.broker, patience=None)
        self.files = FileStore(self.broker, self.broker.names.files, patience=None)
        self.collecting = Collecting(self.files, self._scratch, by_reference=results == "server")
        self.inputs = InputFiles(FileStore(self.broker, self.broker.names.inputs, patience=None), self._scratch)
        self.host = socket.gethostname()
        self.worker_id = f"{self.host}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.lease = lease
        self.max_attempts = max_attempts
        self.unreachable_timeout = unreachable_timeout
        self._group = check_token("group", group)
        self._refused: OrderedDict[str, float] = OrderedDict()
        self._client_options = {"unreachable_timeout": unreachable_timeout, **(client_options or {})}
        self._guests = Guests(self._client_options)
        self._stopping = asyncio.Event()
        first = random.randrange(1000)  # other workers begin with other lanes
        self._stations = [
            self._station(server, in_flight, poll_interval, patience or Patience(), turn)
            for turn, server in enumerate(_listed(servers), first)
        ]
        urls = [station.member.api.url for station in self._stations]
        if twice := [url for number, url in enumerate(urls) if url in urls[:number]]:
            raise ValueError(f"{twice[0]} is given twice; in_flight gives it more prompts at once")

    def _station(
        self, server: str | Mapping[str, Any], in_flight: int, poll_interval: float, patience: Patience, turn: int
    ) -> Station:
        options = {"url": server} if isinstance(server, str) else dict(server)
        own = {name: options.pop(name) for name in _OWN_OPTIONS if name in options}
        return Station(
            self,
            options.pop("url", "http://127.0.0.1:8188"),
            {**self._client_options, **options},
            address=_address_for_others(own.get("advertise")),
            in_flight=int(own.get("in_flight", in_flight)),
            group=self._group,
            poll_interval=poll_interval,
            patience=patience,
            turn=turn,
        )

    def __repr__(self) -> str:
        return f"<Worker {self.worker_id} of {len(self._stations)} servers>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self) -> None:
        """Work until `stop`, and then until what is here has ended.

        Cancelling it gives the orders that are here back at once; their prompts go on on their servers, where the next
        worker follows them.

        Raises:
            ServerUnreachable: The broker refuses the credentials, or what the fleet needs.
        """
        self.broker.open()
        if await self._ready():
            with self.broker.when_open(self._reconnected):
                await self._work()

    async def _ready(self) -> bool:
        """Wait for the broker, or for `stop`; tell whether there is something to do."""
        opening = asyncio.create_task(self.broker.ready(None))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not self._stopping.is_set():
                opening.result()
        finally:
            opening.cancel()
            stopping.cancel()
            await asyncio.gather(opening, stopping, return_exceptions=True)
        return not self._stopping.is_set()

    async def _work(self) -> None:
        names = self.broker.names
        listenings = [
            await self.broker.listen(names.ping(self._group), self._answer),
            await self.broker.listen(names.offers(self._group), self._answer_offers),
        ]
        for station in self._stations:
            station.member.open()
        try:
            async with asyncio.TaskGroup() as group:
                for station in self._stations:
                    group.create_task(station.run())
        except* AcomfyError as errors:
            raise _first(errors) from None
        finally:
            for listening in listenings:
                await self.broker.unlisten(listening)

    def stop(self) -> None:
        """Take no more orders; `run` ends when those that are here have ended. May be called from a signal handler."""
        for station in self._stations:
            station.stop()
        self._stopping.set()

    async def aclose(self) -> None:
        """Close the connections. Prompts on the servers are left to run."""
        members = [station.member for station in self._stations]
        await asyncio.gather(*(member.aclose() for member in members), self._guests.aclose())
        await self._scratch.aclose()
        await self.broker.aclose()

    def _reconnected(self) -> None:
        for station in self._stations:
            for delivery in station.deliveries:
                delivery.reconnected()

    async def _answer(self, message: Msg) -> None:
        await self.broker.tell(message.reply, write_workers(self.infos()))

    async def _answer_offers(self, message: Msg) -> None:
        await answer_offers(self.broker, message, lambda need: any(one.suits(need) for one in self._stations))

    def infos(self) -> list[WorkerInfo]:
        """Tell what its servers do at the moment."""
        return [self._info(station) for station in self._stations]

    def _info(self, station: Station) -> WorkerInfo:
        running = tuple(sorted(delivery.job_id for delivery in station.deliveries))
        state = "busy" if running else "idle" if station.up else "down"
        return WorkerInfo(
            worker=self.worker_id,
            group=self._group,
            server=station.address,
            state="draining" if self._stopping.is_set() else state,
            running=running,
            warm=station.warm_model,
            done=station.done,
            host=self.host,
            version=metadata.version("acomfy"),
        )

    # --- What deliveries ask -----------------------------------------------------------------------------------------

    def place_of(self, attempt: Attempt) -> Station | None:
        """Give the server of this worker on which an attempt runs; None when it runs elsewhere."""
        for station in self._stations:
            here = attempt.host == self.host or not is_loopback(attempt.server)
            if here and attempt.server == station.address:
                return station
        return None

    def client_of(self, attempt: Attempt) -> FleetMember | None:
        """Give a client of the server on which an attempt runs; None when that cannot be reached from here."""
        place = self.place_of(attempt)
        if place is not None:
            return place.member
        if attempt.host != self.host and is_loopback(attempt.server):
            return None
        return self._guests.client_of(attempt.server)

    async def somebody_suits(self, need: Need) -> bool:
        """Tell whether a server of the group has what a prompt needs, busy or not."""
        return await somebody_suits(self.broker, self._group, need)

    def given_up_elsewhere(self, attempt: Attempt) -> bool:
        """Tell whether the worker of a server that cannot be reached from here was waited for long enough."""
        now = asyncio.get_running_loop().time()
        since = self._refused.setdefault(f"{attempt.worker} {attempt.prompt_id}", now)
        while len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)
        return now - since >= self.unreachable_timeout


def _first(error: BaseException) -> BaseException:
    """Give the first error of a group, which may be of groups itself: those of stations, of their slots."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _listed(servers: Iterable[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    found: list[Any] = [servers] if isinstance(servers, str | Mapping) else list(servers)
    if not found:
        raise ValueError("a worker needs a server")
    return found


def _address_for_others(advertise: str | None) -> str | None:
    try:
        return None if advertise is None else url_for_others(advertise)
    except ValueError as exc:
        raise ValueError(f"advertise: {exc}") from None


def is_loopback(address: str) -> bool:
    """Tell whether an address means something on its own machine alone."""
    return (urlsplit(address).hostname or "").startswith(_LOOPBACK)

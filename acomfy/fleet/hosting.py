"""What the deliveries of a worker ask of it: of the worker itself, and of the server at which an order was taken."""

from __future__ import annotations

from typing import Protocol

from ..placement import Need
from .broker import Broker
from .collecting import Collecting, InputFiles
from .member import FleetMember
from .records import Records
from .store import FileStore
from .wire import Attempt


class Place(Protocol):
    """The worker's server at which an order was taken, as far as its deliveries ask."""

    member: FleetMember
    address: str

    def suits(self, need: Need) -> bool: ...

    def began(self, need: Need) -> None: ...

    def avoid(self, subject: str) -> None: ...

    def is_orphan(self, subject: str) -> bool: ...

    def rest(self) -> None: ...

    def left_behind(self, prompt_id: str) -> None: ...


class Host(Protocol):
    """The worker, as far as its deliveries ask."""

    broker: Broker
    records: Records
    files: FileStore
    collecting: Collecting
    inputs: InputFiles
    worker_id: str
    host: str
    lease: float
    max_attempts: int
    unreachable_timeout: float

    def place_of(self, attempt: Attempt) -> Place | None: ...

    def client_of(self, attempt: Attempt) -> FleetMember | None: ...

    async def somebody_suits(self, need: Need) -> bool: ...

    def given_up_elsewhere(self, attempt: Attempt) -> bool: ...

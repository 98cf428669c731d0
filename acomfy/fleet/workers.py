"""Which workers are there: asked for on a plain subject, when somebody wants to know. Nothing is kept about it."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict, dataclass, fields

from nats.aio.msg import Msg

from ..errors import ProtocolError
from ..frames import load_json
from .broker import Broker
from .natspy import drop

logger = logging.getLogger(__name__)

_NOBODY = "503"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's server at one moment.

    Attributes:
        worker: The worker's id.
        group: Whose prompts it takes.
        server: The address of its ComfyUI.
        state: ``idle``, ``busy``, ``down`` (its server does not answer) or ``draining``.
        running: The job_ids that it has.
        warm: The model that its server has loaded, as far as the worker knows; "" when it does not.
        done: How many prompts ended there since it was started.
        host: The machine it runs on.
        version: Its acomfy.
    """

    worker: str
    group: str
    server: str
    state: str
    running: tuple[str, ...] = ()
    warm: str = ""
    done: int = 0
    host: str = ""
    version: str = ""

    @property
    def takes_prompts(self) -> bool:
        """Whether it takes prompts: its server answers, and it is not about to leave."""
        return self.state in ("idle", "busy")


def write_workers(infos: list[WorkerInfo]) -> bytes:
    """Write what a worker says of its servers."""
    return json.dumps([asdict(info) for info in infos]).encode()  # a file's name may be what orjson refuses


def read_workers(message: bytes) -> list[WorkerInfo]:
    """Read what a worker said; what makes no sense is passed over."""
    known = {part.name for part in fields(WorkerInfo)}
    try:
        found = load_json(message)
        return [
            WorkerInfo(
                **{**{name: value for name, value in one.items() if name in known}, "running": tuple(one["running"])}
            )
            for one in found
        ]
    except (ProtocolError, ValueError, TypeError, KeyError, AttributeError) as exc:
        logger.debug("a worker said what makes no sense: %r", exc)
        return []


async def ask_workers(broker: Broker, subject: str, *, wait: float, enough: int | None = None) -> list[WorkerInfo]:
    """Ask on a subject, and take what answers in so many seconds, in the order of servers.

    Args:
        enough: So many servers that take prompts are enough: then no more is waited for.
    """
    infos: list[WorkerInfo] = []
    over = asyncio.Event()

    async def receive(message: Msg) -> None:
        if (message.headers or {}).get("Status") == _NOBODY:
            over.set()
            return
        infos.extend(read_workers(message.data))
        if enough is not None and sum(info.takes_prompts for info in infos) >= enough:
            over.set()

    nc = broker.nc
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, cb=receive)
    try:
        await nc.publish(subject, b"", reply=inbox)
        async with asyncio.timeout(wait):
            await over.wait()
    except TimeoutError:
        pass
    finally:
        await drop(subscription)
    return sorted(infos, key=lambda info: (info.server, info.worker))

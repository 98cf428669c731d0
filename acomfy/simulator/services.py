"""What the parts of a server share: its settings, its folders, its sockets, its books."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .clock import Clock
from .files import Folders
from .ledger import Ledger
from .nodes import Interrupted, Node
from .sockets import Sockets
from .versions import Capabilities

if TYPE_CHECKING:
    from .scripting import Scripts

# Below this many pixels, Pillow is done before a thread would have begun.
_WORTH_A_THREAD = 256 * 256


@dataclass
class Services:
    """The things that nodes and routes work with.

    Attributes:
        thawed: Waits while the server is frozen.
        interrupted: An interrupt was asked for and not noticed yet; reset when a prompt starts.
    """

    can: Capabilities
    sockets: Sockets
    folders: Folders
    classes: dict[str, Node]
    ledger: Ledger
    step_time: float
    preview_size: int
    thawed: Callable[[], Awaitable[None]]
    clock: Clock
    scripts: Scripts
    interrupted: bool = False
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "acomfy-simulator"))

    def check_interrupted(self) -> None:
        """Raise `Interrupted` if an interrupt was asked for, once."""
        if self.interrupted:
            self.interrupted = False
            raise Interrupted

    async def in_thread(self, function: Callable[..., Any], *args: Any, pixels: int) -> Any:
        """Run a pure function of so many pixels: in the worker thread, or at once when they are few."""
        if pixels < _WORTH_A_THREAD:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def close(self) -> None:
        """Join the worker thread."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

"""Ctrl-C: the first asks for an orderly end, the second leaves at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Catch Ctrl-C and SIGTERM while the block is open; opened inside the loop, in the main thread.

    Args:
        on_first: Called in the loop when the first one came.
        on_second: Called when the second one came, right before the process ends.

    Attributes:
        first: Set when the first one came.
    """

    def __init__(
        self, on_first: Callable[[], None] = lambda: None, on_second: Callable[[], None] = lambda: None
    ) -> None:
        self.first = asyncio.Event()
        self._on_first = on_first
        self._on_second = on_second
        self._loop = asyncio.get_running_loop()
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int | None:
        """The shell's way to say which signal ended a program: 130 for Ctrl-C; None while there was none."""
        return None if self._signal is None else 128 + self._signal

    def __enter__(self) -> Self:
        # signal.signal, not loop.add_signal_handler, which Windows lacks.
        self._previous = {number: signal.signal(number, self._came) for number in _SIGNALS}
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            self._on_second()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(128 + number)
        self._signal = number
        self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self.first.set()
        self._on_first()

"""The server's time: real, or virtual, so that a job of half an hour is over at once.

With a `VirtualClock` nothing waits. Time jumps to whoever sleeps shortest, so a node that takes 27 minutes has taken
them, and the server's timestamps say so. `VirtualClock.hold` stops that: then time passes by `VirtualClock.advance`
alone, and a test looks at a job in its thirteenth minute. Only what the server does passes on its clock: how long
nodes take, timestamps, delays of the history. Timeouts of clients and apps are the event loop's, and real.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable

_PATIENCE = 1.0  # real seconds


class Clock:
    """Real time."""

    real = True

    def __init__(self) -> None:
        self.parked = 0
        """How many nodes wait for something that is not time."""

    def now(self) -> float:
        """Give seconds since some moment, for durations."""
        return time.monotonic()

    def time(self) -> float:
        """Give seconds since 1970, for timestamps."""
        return time.time()

    async def sleep(self, seconds: float, ended: Callable[[], bool] | None = None) -> None:
        """Let so many seconds pass; 0 lets everybody else run once.

        Args:
            ended: Tells whether there is nothing to wait for any more. It matters where time stands still.
        """
        await asyncio.sleep(seconds)

    def look(self) -> None:
        """Wake those who sleep while time stands still, and have nothing to wait for any more."""

    def attend(self, working: Callable[[], bool]) -> None:
        """Know of a server, which tells whether a prompt runs there."""

    def leave(self, working: Callable[[], bool]) -> None:
        """Know of a server no more."""


class VirtualClock(Clock):
    """Time that passes when somebody sleeps, at once; or, while held, when it is told to.

    One clock may serve several servers::

        clock = VirtualClock()
        async with SimulatedServer(clock=clock) as server:
            server.on("KSampler").takes(27 * 60)
            clock.hold()
            job = await client.submit(workflow)
            await clock.advance(13 * 60)      # the job is in its thirteenth minute
            clock.release()                   # and now it is over
    """

    real = False

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._epoch = time.time()
        self._sleepers: list[tuple[float, int, asyncio.Future[None], Callable[[], bool] | None]] = []
        self._order = itertools.count()
        self._held = False
        self._jumping = False
        self._workers: list[Callable[[], bool]] = []

    def now(self) -> float:
        """Give the virtual seconds since the clock was made."""
        return self._now

    def time(self) -> float:
        """Give the virtual time of day: when the clock was made, and what has passed since."""
        return self._epoch + self._now

    async def sleep(self, seconds: float, ended: Callable[[], bool] | None = None) -> None:
        """Sleep so many virtual seconds, or while time is held until ``ended``; cancelling it is safe."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake, ended))
        self.look()
        self._jump_soon()
        await wake

    def look(self) -> None:
        """Wake those who have nothing to wait for any more, if time is held.

        A node that was interrupted would else notice it only after the next `advance`.
        """
        for _, _, wake, ended in self._sleepers if self._held else ():
            if ended is not None and not wake.done() and ended():
                wake.set_result(None)

    def hold(self) -> None:
        """Stop the time; it passes by `advance` alone, until `release`."""
        self._held = True

    def release(self) -> None:
        """Let time jump again."""
        self._held = False
        self._jump_soon()

    async def advance(self, seconds: float) -> None:
        """Let so many virtual seconds pass, waking sleepers in their order, each in its own moment.

        Returns when what they do is done or sleeps again. What a node of your own waits for in real time is waited
        for no longer than a second.

        Raises:
            ValueError: Time does not run backwards.
        """
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        target = self._now + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            self._wake_next()
            await self._settle()
        self._now = max(self._now, target)

    def attend(self, working: Callable[[], bool]) -> None:
        """Have `advance` wait while a server works: ``working`` tells whether a prompt runs there."""
        self._workers.append(working)

    def leave(self, working: Callable[[], bool]) -> None:
        """Attend to a server no more."""
        if working in self._workers:
            self._workers.remove(working)

    async def _settle(self) -> None:
        """Wait until every server that has a prompt sleeps, or none has one."""
        begin = time.monotonic()
        for _ in range(3):  # a prompt that was posted just now is taken by then
            await asyncio.sleep(0)
        while self._working() and time.monotonic() - begin < _PATIENCE:  # noqa: ASYNC110  # nodes may be anybody's
            await asyncio.sleep(0)

    def _working(self) -> bool:
        waiting = self.parked + sum(not wake.done() for _, _, wake, _ in self._sleepers)
        return sum(working() for working in self._workers) > waiting

    def _jump_soon(self) -> None:
        if self._sleepers and not self._held and not self._jumping:
            self._jumping = True
            asyncio.get_running_loop().call_soon(self._jump)

    def _jump(self) -> None:
        self._jumping = False
        if not self._held and self._sleepers:
            self._wake_next()
            self._jump_soon()

    def _wake_next(self) -> None:
        moment, _, wake, _ = heapq.heappop(self._sleepers)
        if not wake.done():  # a sleeper that was cancelled takes no time
            self._now = max(self._now, moment)
            wake.set_result(None)

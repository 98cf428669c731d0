"""What both bots do with a user's wish: let it wait its turn, run it, tell how it goes, cancel it at any moment.

ComfyUI's queue knows no users: who sends a hundred prompts first is served first. So the line is ours: `Turns` lets a
few prompts onto the server at a time, and takes them from one user after the other.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable

import acomfy

MOST = 10  # pictures: as many as one message takes, of Discord and of Telegram
LONGEST = 1000  # letters: Telegram puts no more than 1,024 under a picture


class TooMany(Exception):
    """A user has as many pictures in line as one may have."""


class Turns:
    """A line in which users take turns.

    Args:
        at_once: How many have their turn at the same time; two keep a GPU busy.
        per_user: How many of one user may wait or run.
    """

    def __init__(self, at_once: int = 2, per_user: int = 5) -> None:
        self._free = at_once
        self._per_user = per_user
        self._held: Counter[Hashable] = Counter()
        self._lines: dict[Hashable, deque[Turn]] = {}  # the user whose turn is next comes first

    def line_up(self, user: Hashable) -> Turn:
        """Take a place in line; `Turn.leave` gives it back.

        Raises:
            TooMany: The user has too much in line.
        """
        if self._held[user] >= self._per_user:
            raise TooMany(f"You have {self._per_user} pictures in line; please wait for one of them.")
        self._held[user] += 1
        turn = Turn(self, user)
        self._lines.setdefault(user, deque()).append(turn)
        self._serve()
        return turn

    def left(self, turn: Turn) -> None:
        """Take back a place, and serve who is next."""
        self._held[turn.user] -= 1
        if not self._held[turn.user]:
            del self._held[turn.user]
        if turn.came.is_set():
            self._free += 1
        else:
            self._lines[turn.user].remove(turn)
            if not self._lines[turn.user]:
                del self._lines[turn.user]
        self._serve()

    def _serve(self) -> None:
        while self._free and self._lines:
            user, line = next(iter(self._lines.items()))
            del self._lines[user]
            line.popleft().came.set()
            self._free -= 1
            if line:
                self._lines[user] = line  # behind all others


class Turn:
    """A place in line."""

    def __init__(self, turns: Turns, user: Hashable) -> None:
        self.user = user
        self.came = asyncio.Event()
        self._turns: Turns | None = turns

    def leave(self) -> None:
        """Give the place back, whether it was its turn or not; once is enough."""
        if self._turns is not None:
            turns, self._turns = self._turns, None
            turns.left(self)


class Order:
    """One wish of one user, from the line to the picture.

    Raises:
        TooMany: The user has too much in line.

    Attributes:
        pictures: Names and bytes of what it gave; None until it succeeded.
    """

    def __init__(self, client: acomfy.Client, turns: Turns, user: Hashable, workflow: acomfy.Workflow) -> None:
        turn = turns.line_up(user)
        self.pictures: list[tuple[str, bytes]] | None = None
        self._job: acomfy.Job | None = None
        self._error: Exception | None = None
        self._task = asyncio.create_task(self._run(client, turn, workflow))
        self._task.add_done_callback(lambda _: turn.leave())

    async def _run(self, client: acomfy.Client, turn: Turn, workflow: acomfy.Workflow) -> None:
        try:
            await turn.came.wait()
            self._job = await client.submit(workflow, on_lost="resubmit")  # ComfyUI may restart meanwhile
            result = await self._job
            turn.leave()
            self.pictures = [(image.filename or "picture.png", await image.read()) for image in result.images[:MOST]]
        except acomfy.AcomfyError as error:
            self._error = error
        except asyncio.CancelledError:
            if self._job is not None:
                await self._job.cancel()
            raise

    @property
    def preview(self) -> bytes | None:
        """The newest preview, encoded; None when there is none."""
        found = None if self._job is None else self._job.preview
        return None if found is None else found.image

    @property
    def status(self) -> str:
        """How it goes, in words for the user."""
        if self._task.cancelled() or self._task.cancelling() or isinstance(self._error, acomfy.JobCancelled):
            return "Cancelled."
        if self._error is not None:
            return f"It failed: {self._error}"[:LONGEST]
        if self.pictures is not None:
            return "Done."
        if self._job is None or self._job.state == "pending":
            return "Waiting in line."
        return f"Painting: {self._job.progress:.0%}"

    def cancel(self) -> None:
        """Leave the line, or take the prompt from the server."""
        self._task.cancel()

    async def updates(self, interval: float) -> AsyncIterator[None]:
        """Yield when there is something new to show, at most every so many seconds; the last time when it is over."""
        shown: object = None
        while not self._task.done():
            if (now := (self.status, self.preview)) != shown:
                shown = now
                yield
            await asyncio.wait([self._task], timeout=interval)
        yield

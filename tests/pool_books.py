"""What servers under a pool did, prompt by prompt, and whether it was right: for runs in which servers have trouble.

Every job must end once and right. That a prompt was finished and yet run again elsewhere is right only where the pool
could not know: its server was dead or silent at some time between the prompt's arrival there and the pool's leaving; or
where its pictures are lost: they were streamed, and the connection broke on the way.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import acomfy
from acomfy.simulator import Ledger, SimulatedServer

Write = Callable[["Event"], None]

_GAP = 0.5

STRANGERS = 1 << 20
"""Colours from this one on are of prompts that the pool knows nothing of."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a prompt on a server.

    Attributes:
        at: By the clock of `time.time`.
        server: Its address.
        what: ``accepted``, ``started``, ``picture``, or how it ended, as `acomfy.simulator.Entry.state`.
        detail: Of an accepted prompt its colour, of a picture its SHA-256.
    """

    at: float
    server: str
    what: str
    prompt_id: str
    detail: str = ""


class _WritingLedger(Ledger):
    def __init__(self, note: Callable[[str, str, str], None]) -> None:
        super().__init__()
        self._note = note

    def start(self, prompt_id: str) -> None:
        super().start(prompt_id)
        self._note("started", prompt_id, "")

    def settle(self, prompt_id: str, state: Any) -> None:
        super().settle(prompt_id, state)
        self._note(state, prompt_id, "")

    def produced(self, prompt_id: str, node_id: str, image: bytes, filename: str | None) -> None:
        super().produced(prompt_id, node_id, image, filename)
        self._note("picture", prompt_id, self[prompt_id].sha256s[-1])


class BookedServer(SimulatedServer):
    """A simulated server that writes down at once what happens to its prompts."""

    def __init__(self, write: Write, **options: Any) -> None:
        super().__init__(**options)
        self._write = write
        self.ledger = self.services.ledger = _WritingLedger(self._note)

    def accept(self, body: dict[str, Any], item: Any) -> None:
        """See `SimulatedServer.accept`."""
        self._note("accepted", item[1], str(body["prompt"]["1"]["inputs"]["color"]))
        super().accept(body, item)

    def _note(self, what: str, prompt_id: str, detail: str) -> None:
        self._write(Event(time.time(), self.url, what, prompt_id, detail))


def as_line(event: Event) -> bytes:
    """Write an event as a line of a file."""
    return json.dumps(asdict(event)).encode() + b"\n"


def read_line(line: bytes) -> Event:
    """Read an event from its line."""
    return Event(**json.loads(line))


class Books:
    """All that is known of one run.

    Attributes:
        events: What servers wrote, in any order.
        ill: When each server was dead or silent: beginnings and ends.
        gaps: When the connections of each server broke, though it was well.
        outcomes: How often each kind of outcome was seen.
        violations: What must not be.
        excused: What was finished twice, and could not be known to be finished, or was lost.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ill: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.gaps: dict[str, list[float]] = defaultdict(list)
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.excused: list[str] = []
        self.slowest_cancel = 0.0
        self._left: dict[str, tuple[float, BaseException | None]] = {}
        self._jobs: dict[int, acomfy.PoolJob] = {}
        self._pictures: dict[str, str] = {}
        self._cancelled: dict[str, float] = {}

    @contextmanager
    def illness(self, url: str) -> Iterator[None]:
        """Note that a server is dead or silent while the block runs."""
        start, index = time.time(), len(self.ill[url])
        self.ill[url].append((start, float("inf")))
        try:
            yield
        finally:
            self.ill[url][index] = start, time.time()

    @contextmanager
    def moves(self) -> Iterator[None]:
        """Hear of the prompts that the pool moves while the block runs."""
        handler = _Moves(self._left)
        logger = logging.getLogger("acomfy.pool_dispatch")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    def begun(self, color: int, job: acomfy.PoolJob) -> None:
        """Note that a job was submitted."""
        self._jobs[color] = job

    def succeeded(self, job: acomfy.PoolJob, sha256: str) -> None:
        """Note that a job succeeded, and the picture that was read."""
        self.outcomes["success"] += 1
        self._pictures[job.prompt_id] = sha256

    def cancelled(self, job: acomfy.PoolJob) -> None:
        """Note that a job was cancelled and is off its server, as was said."""
        self._cancelled[job.prompt_id] = time.time()

    # --- The judgement -----------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Look at everything that happened."""
        starts = Counter((event.server, event.prompt_id) for event in self.events if event.what == "started")
        self.violations += [f"{who} was started {count} times" for who, count in starts.items() if count > 1]
        self._judge_pictures()
        self._judge_the_untroubled()
        accepted = {event.prompt_id: event for event in self.events if event.what == "accepted"}
        finished: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            if event.what == "completed":
                finished[int(accepted[event.prompt_id].detail)].append(event)
        for color, finishes in finished.items():
            if color in self._jobs and len(finishes) > 1:
                self._judge_twice(color, finishes, accepted)

    def _judge_pictures(self) -> None:
        known = {(event.prompt_id, event.detail) for event in self.events if event.what == "picture"}
        for prompt_id, sha256 in self._pictures.items():
            if (prompt_id, sha256) not in known:
                self.violations.append(f"{prompt_id}: a picture that no server made for it")

    def _judge_the_untroubled(self) -> None:
        """On servers that were never ill prompts end, those of strangers well, and cancelled ones do not run on."""
        last = {(event.server, event.prompt_id): event for event in self.events if event.what != "picture"}
        ours = {event.prompt_id for event in self.events if event.what == "accepted" and self._is_ours(event)}
        for (server, prompt_id), event in last.items():
            if server in self.ill:
                continue
            if prompt_id not in ours and event.what in ("cancelled", "deleted", "failed"):
                self.violations.append(f"a stranger's {prompt_id} on {server} was {event.what}")
            if event.what == "completed" and event.at > self._cancelled.get(prompt_id, event.at):
                self.violations.append(f"{prompt_id} finished on {server} after it was cancelled")

    def _is_ours(self, event: Event) -> bool:
        return int(event.detail) < STRANGERS

    def _judge_twice(self, color: int, finishes: list[Event], accepted: dict[str, Event]) -> None:
        outcome = self._jobs[color].prompt_id
        finishes.sort(key=lambda event: (event.prompt_id == outcome, event.at))
        for event in finishes[:-1]:
            arrived = accepted[event.prompt_id].at
            left, why = self._left.get(event.prompt_id, (time.time(), None))
            text = (
                f"{color}: {event.prompt_id} finished on {event.server} {event.at - arrived:.2f} s after its arrival, "
                f"left after {left - arrived:.2f} s ({why}), and then again on {finishes[-1].server}"
            )
            gap = any(arrived - _GAP <= when <= left for when in self.gaps.get(event.server, ()))
            if self.was_ill(event.server, arrived, left) or (gap and isinstance(why, acomfy.OutputMissing)):
                self.excused.append(text)
            else:
                self.violations.append(text)

    def was_ill(self, server: str, start: float, end: float) -> bool:
        """Tell whether a server was dead or silent at some time between two."""
        return any(begin <= end and start <= stop for begin, stop in self.ill.get(server, ()))

    def lines(self) -> list[str]:
        """Tell what was found."""
        attempts = Counter(job.attempt for job in self._jobs.values())
        return [
            f"outcomes: {dict(self.outcomes)}",
            f"attempts: {dict(sorted(attempts.items()))}",
            f"slowest cancel: {self.slowest_cancel:.2f} s",
            f"run again though finished, on a server that was dead or silent or its pictures lost: {len(self.excused)}",
            *self.excused,
            f"violations: {len(self.violations)}",
            *self.violations[:20],
        ]


class _Moves(logging.Handler):
    def __init__(self, left: dict[str, tuple[float, BaseException | None]]) -> None:
        super().__init__()
        self._left = left

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and record.args and isinstance(record.args[0], acomfy.PoolJob):
            why = record.args[-1]
            self._left[record.args[0].prompt_id] = record.created, why if isinstance(why, BaseException) else None

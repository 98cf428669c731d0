"""What submitters and servers of a fleet wrote down, and whether it was right: for runs in which all are killed.

Every submit must have one outcome, every success the picture of its own colour, and no job may finish twice on servers
that were well. A server writes what `tests.pool_books` says; a submitter writes lines of JSON, each of them before it
goes on:

* ``begun``: a job of this colour has this id, and nothing was sent;
* ``queued``: it is in the queue;
* ``cancelling`` and ``cancelled``: it was asked to stop, and what came of it;
* ``outcome``: how it ended.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pool_books import Event

_SOON = 2.0
_SLACK = 0.75
_BEFORE = 5.0  # so long what was dead has an effect: a lease


class Journal:
    """What one submitter wrote, over all its lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, what: str, color: int, **more: Any) -> None:
        """Write a line, so that it outlives this process."""
        line = json.dumps({"at": time.time(), "what": what, "color": color, **more})
        os.write(self._file, line.encode() + b"\n")

    def lines(self) -> list[dict[str, Any]]:
        """Read all of them."""
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]


@dataclass(slots=True)
class Illness:
    """When something was dead or stopped."""

    who: str
    kind: str
    start: float
    end: float = float("inf")


@dataclass(slots=True)
class FleetBooks:
    """All that is known of one run.

    Attributes:
        streams: The colours whose pictures were streamed.
        workers: The worker of each server.
        violations: What must not be.
        excused: What ran again although it had finished, and why that was right.
        counts: How often each kind of thing was seen.
    """

    jobs: int
    streams: frozenset[int]
    workers: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    illnesses: list[Illness] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    slowest_cancel: float = 0.0

    @contextmanager
    def illness(self, who: str, kind: str) -> Iterator[None]:
        """Note that something is dead or stopped while the block runs."""
        illness = Illness(who, kind, time.time())
        self.illnesses.append(illness)
        try:
            yield
        finally:
            illness.end = time.time()

    def was_ill(self, who: Iterable[str], start: float, end: float) -> bool:
        """Tell whether one of these was ill at some time between two."""
        names = tuple(who)
        return any(ill.who.startswith(names) and ill.start <= end and start <= ill.end for ill in self.illnesses)

    # --- The judgement -----------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Look at everything that was written."""
        by_color: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for line in self.lines:
            by_color[line["color"]].append(line)
        accepted = {(event.server, event.prompt_id): event for event in self.events if event.what == "accepted"}
        pictures = {(event.prompt_id, event.detail) for event in self.events if event.what == "picture"}
        for color in range(self.jobs):
            self._judge_job(color, by_color[color], pictures)
        self._judge_starts()
        self._judge_repetition(accepted)
        self._judge_cancels(by_color, accepted)

    def _judge_job(self, color: int, lines: list[dict[str, Any]], pictures: set[tuple[str, str]]) -> None:
        outcomes = [line for line in lines if line["what"] == "outcome"]
        if len(outcomes) != 1:
            self.violations.append(f"{color}: {len(outcomes)} outcomes")
        for outcome in outcomes:
            self.counts[f"outcome {outcome['state']}"] += 1
            self.counts[f"attempts {outcome['attempt']}"] += outcome["attempt"] > 1
            if outcome["state"] == "completed":
                if outcome["picture"] != color:
                    self.violations.append(f"{color}: the picture of {outcome['picture']}")
                if (outcome["prompt_id"], outcome["sha256"]) not in pictures:
                    self.violations.append(f"{color}: a picture that no server made for {outcome['prompt_id']}")
            elif outcome["state"] != "cancelled" or not any(line["what"] == "cancelling" for line in lines):
                self.violations.append(f"{color}: ended as {outcome['state']}: {outcome['error']}")

    def _judge_starts(self) -> None:
        starts = Counter((event.server, event.prompt_id) for event in self.events if event.what == "started")
        self.violations += [f"{who} was started {count} times" for who, count in starts.items() if count > 1]

    def _judge_repetition(self, accepted: dict[tuple[str, str], Event]) -> None:
        finished: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            if event.what == "completed":
                finished[int(accepted[event.server, event.prompt_id].detail)].append(event)
        for color, finishes in finished.items():
            for first, second in zip(finishes, finishes[1:], strict=False):
                begun = accepted[first.server, first.prompt_id].at
                again = accepted[second.server, second.prompt_id].at
                self._judge_twice(color, first, second, begun, max(again, first.at))

    def _judge_twice(self, color: int, first: Event, second: Event, begun: float, again: float) -> None:
        text = f"{color}: {first.prompt_id} on {first.server} at {first.at:.2f}, and {second.prompt_id} on "
        text += f"{second.server}, there since {again:.2f}"
        if self.was_ill([first.server], begun, again):
            self.counts["finished again, its server having been killed"] += 1
            self.excused.append(text)
        elif color in self.streams:
            self.counts["finished again, its streamed picture being lost"] += 1
            self.excused.append(text)
        else:
            self.violations.append(f"finished twice: {text}")

    def _judge_cancels(self, by_color: dict[int, list[dict[str, Any]]], accepted: dict[tuple[str, str], Event]) -> None:
        """What was cancelled while all was well is off its server in time, and does not finish later."""
        ends: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            if event.what == "completed":
                ends[int(accepted[event.server, event.prompt_id].detail)].append(event)
        for color, lines in by_color.items():
            asked = next((line for line in lines if line["what"] == "cancelling"), None)
            said = next((line for line in lines if line["what"] == "cancelled"), None)
            if asked is None:
                continue
            took = None if said is None else said["at"] - asked["at"]
            well = not self.was_ill(self._concerned(asked["server"]), asked["at"] - _BEFORE, asked["at"] + _SOON)
            self.counts["cancelled while all that it concerned was well"] += well
            self.counts["cancelled while something was dead"] += not well
            if well and (took is None or took > _SOON + _SLACK):
                self.violations.append(f"{color}: cancelled only after {took} s")
            if well and took is not None:
                self.slowest_cancel = max(self.slowest_cancel, took)
            late = [end for end in ends[color] if end.at > asked["at"] + _SOON + _SLACK]
            if late and well:
                self.violations.append(f"{color}: finished {late[0].at - asked['at']:.2f} s after it was cancelled")
            self.counts["finished though cancelled, as something was dead"] += bool(late and not well)

    def _concerned(self, server: str) -> list[str]:
        """Tell on what it depends that a prompt on a server is cancelled in time; "" is anything."""
        return [self.workers[server], server, "broker", "submitter"] if server in self.workers else [""]

    def report(self) -> list[str]:
        """Tell what was found."""
        kinds = Counter(f"{illness.kind} {illness.who.split(' ')[0]}" for illness in self.illnesses)
        return [
            f"faults: {dict(sorted(kinds.items()))}",
            *(f"{what}: {count}" for what, count in sorted(self.counts.items()) if count),
            f"slowest cancel while all that it concerned was well: {self.slowest_cancel:.2f} s",
            f"violations: {len(self.violations)}",
            *self.violations[:30],
        ]

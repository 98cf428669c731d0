"""Whether a prompt that did not succeed on one server of a pool goes to another: the rules alone.

What had not started moves, as it cannot have done anything. What had started moves only when it is known to be lost,
and only if that was wished; how often it took its server with it is counted, so that a prompt that kills servers
does not kill them all. What a server said of the prompt itself (it failed, it was interrupted) is its outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import (
    HTTPError,
    JobLost,
    OutputMissing,
    PayloadTooLarge,
    PromptRejected,
    ProtocolError,
    ServerError,
    ServerUnreachable,
)

_ABOUT_THE_SERVER = {"value_not_in_list", "missing_node_type", "invalid_prompt"}


@dataclass(frozen=True, slots=True)
class Attempt:
    """How far a prompt came on a server, and what was wished of it.

    Attributes:
        started: It was seen to run.
        posted: The server confirmed that it was queued.
        withdrawn: The pool itself took it from the server's queue.
        resubmit: A started prompt that is lost is to run again.
        failures: Earlier attempts that count.
        most: How many attempts that count there may be.
        may_go_elsewhere: Another server might run what this one refuses.
    """

    started: bool = False
    posted: bool = False
    withdrawn: bool = False
    resubmit: bool = True
    failures: int = 0
    most: int = 3
    may_go_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of a prompt that did not succeed.

    Attributes:
        again: It is placed anew.
        counts: The attempt counts among those that there may be only so many of.
        left: It may still be on the server, which must be told when it answers again.
        blames: What it says of the server: ``unreachable`` (look at it at once), ``lacks`` (it has not what it said).
    """

    again: bool
    counts: bool = False
    left: bool = False
    blames: Literal["", "unreachable", "lacks"] = ""


SETTLE = Move(again=False)


def decide(error: BaseException, attempt: Attempt) -> Move:
    """Decide what becomes of a prompt, by what went wrong."""
    if isinstance(error, JobLost):
        return _lost(error, attempt)
    if isinstance(error, OutputMissing):
        return _limited(attempt, again=attempt.resubmit)
    if isinstance(error, PromptRejected):
        return _rejected(error, attempt)
    if isinstance(error, ServerError) and not isinstance(error, PayloadTooLarge) and not attempt.posted:
        return _not_posted(error, attempt)
    return SETTLE


def _lost(error: JobLost, attempt: Attempt) -> Move:
    left = error.reason == "unreachable"
    blames: Literal["", "unreachable"] = "unreachable" if left else ""
    by_others = error.reason == "evicted" or (error.reason == "deleted" and not attempt.withdrawn)
    if not attempt.started and not by_others:
        return Move(again=True, left=left, blames=blames)
    move = _limited(attempt, again=attempt.resubmit)
    return Move(move.again, counts=True, left=left, blames=blames)


def _rejected(error: PromptRejected, attempt: Attempt) -> Move:
    kinds = {problem.type for problem in error.problems} | {error.error_type}
    if error.partial or not kinds & _ABOUT_THE_SERVER or not attempt.may_go_elsewhere:
        return SETTLE
    move = _limited(attempt, again=True)
    return Move(move.again, counts=True, blames="lacks")


def _not_posted(error: ServerError, attempt: Attempt) -> Move:
    if isinstance(error, ServerUnreachable):
        return Move(again=True, left=error.maybe_sent, blames="unreachable")
    if isinstance(error, HTTPError | ProtocolError):
        move = _limited(attempt, again=True)
        return Move(move.again, counts=True, left=True, blames="unreachable")
    return SETTLE


def _limited(attempt: Attempt, *, again: bool) -> Move:
    return Move(again=again and attempt.failures + 1 < attempt.most, counts=True)

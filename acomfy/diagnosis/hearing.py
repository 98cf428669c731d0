"""The WebSocket: does it open, does it greet, does it hear, also when it was opened again?

The first ``status`` and the answer to our flags are written by the handler of our own socket (ComfyUI server.py
websocket_handler). Everything else goes through one queue for all sockets, which one client that does not read can
stall, and only to the socket that the server has under our client id: whether that works is shown only by a message
that came that way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..capabilities import Version
from .finding import Finding, milliseconds, ok, problem, rounded, size, unknown, warning

_SLOW = 0.5
_UPGRADE = (
    "the proxy must pass the WebSocket on; nginx wants: proxy_http_version 1.1; proxy_set_header Upgrade "
    '$http_upgrade; proxy_set_header Connection "upgrade"; acomfy follows prompts by HTTP without it, but hears no '
    "previews and no streamed pictures"
)
_LET_IN = (
    "the credentials must hold for /ws too; if the proxy adds an Origin, ComfyUI refuses it unless it is started with "
    "--enable-cors-header"
)
_DEAF = (
    "a client that does not read stalls the sending to all (close it, or restart ComfyUI), or a proxy holds messages "
    "back; acomfy follows prompts by HTTP meanwhile, without previews"
)
_LINGERS = (
    "the proxy keeps its connection to ComfyUI open when ours was closed, and ComfyUI forgets the new one when that "
    "ends; acomfy notices and opens another, but have the proxy close both sides at once"
)
_LIMITS = (
    "a limit of a proxy's shows only when a large picture is streamed, and cannot be tried without; ComfyUI has none "
    "for what it sends, acomfy takes 1 GiB (max_message_size)"
)


@dataclass(frozen=True, slots=True)
class SocketTrial:
    """What happened on a WebSocket.

    Attributes:
        refusal: The status that it was refused with; None when it was not.
        failure: Why it could not be opened, or broke; "" when it did not.
        opened: Seconds until it was open; None when it never was.
        first_status: Seconds from then until the first ``status``; None when none came.
        flags: What the server answered to our feature flags; None when nothing.
        round_trip: Seconds until then.
        pushed: What came through the server's queue: ``logs``, ``status``, ...; "" when nothing did.
        push_time: Seconds from its cause until then.
        provoked: Something was caused that must be sent.
        provoke_failure: Why that could not be done.
        largest: Bytes of the largest message.
    """

    refusal: int | None = None
    failure: str = ""
    opened: float | None = None
    first_status: float | None = None
    flags: Mapping[str, Any] | None = None
    round_trip: float | None = None
    pushed: str = ""
    push_time: float | None = None
    provoked: bool = False
    provoke_failure: str = ""
    largest: int = 0


def judge_socket(trial: SocketTrial, version: Version | None) -> list[Finding]:
    """Judge a WebSocket: that it opens, greets, negotiates, and hears."""
    if trial.opened is None:
        return [_unopened(trial)]
    if trial.first_status is None:
        text = f"it opens, but no first status comes: {trial.failure or 'it is silent'}"
        return [problem("WebSocket", text, f"does something else answer at /ws? Else {_UPGRADE}")]
    text = f"open in {milliseconds(trial.opened)}, first status after {milliseconds(trial.first_status)}"
    opened = ok("WebSocket", text, opened_ms=rounded(trial.opened), first_status_ms=rounded(trial.first_status))
    return [opened, _flags(trial, version), _hearing(trial), _frames(trial)]


def _unopened(trial: SocketTrial) -> Finding:
    if trial.refusal in (401, 403):
        text = f"it is refused: {trial.refusal}, while HTTP is let in"
        return problem("WebSocket", text, _LET_IN, status=trial.refusal)
    if trial.refusal is not None:
        return problem("WebSocket", f"it is refused: {trial.refusal}", _UPGRADE, status=trial.refusal)
    return problem("WebSocket", f"it cannot be opened: {trial.failure}", _UPGRADE, status=None)


def _flags(trial: SocketTrial, version: Version | None) -> Finding:
    took = "" if trial.round_trip is None else f" in {milliseconds(trial.round_trip)}, there and back"
    values: dict[str, Any] = {"round_trip_ms": rounded(trial.round_trip)}
    if trial.flags is None:
        if version is not None and version < (0, 3, 45):
            return ok("flags", "not answered: they came with 0.3.45; pictures name no prompt", **values)
        advice = "what we send over the WebSocket does not arrive: does a proxy let messages pass one way only?"
        return warning("flags", "not answered", advice, **values)
    if trial.flags.get("supports_preview_metadata") is not True:
        advice = "pictures name no prompt: those of prompts that were submitted without client_id may be mistaken"
        return warning("flags", f"answered{took}, without supports_preview_metadata", advice, **values)
    if trial.round_trip is not None and trial.round_trip > _SLOW:
        return warning("flags", f"answered{took}", "the server is busy, or far: progress comes late", **values)
    return ok("flags", f"answered{took}; pictures name their prompt", **values)


def _hearing(trial: SocketTrial) -> Finding:
    if trial.pushed:
        took = "" if trial.push_time is None else f" after {milliseconds(trial.push_time)}"
        what = "a line of the log that we caused" if trial.pushed == "logs" else f"a message ({trial.pushed})"
        return ok("hearing", f"{what} came{took}", heard=trial.pushed, push_ms=rounded(trial.push_time))
    if trial.failure:
        advice = "does a proxy close WebSockets early? Raise its timeouts (nginx: proxy_read_timeout 1h)"
        return problem("hearing", f"it broke: {trial.failure}", advice)
    if not trial.provoked:
        why = f" ({trial.provoke_failure})" if trial.provoke_failure else ""
        text = f"whether it is deaf could not be tried without running a prompt{why}"
        return unknown("hearing", text, "acomfy notices a deaf socket when it runs prompts, and then asks by HTTP")
    return problem("hearing", "deaf: a message that the server must have sent did not come", _DEAF)


def _frames(trial: SocketTrial) -> Finding:
    return unknown("messages", f"the largest had {size(trial.largest)}", _LIMITS, largest=trial.largest)


def judge_again(trial: SocketTrial) -> Finding:
    """Judge a second WebSocket under the client id of one that was closed, as after a lost connection."""
    if trial.opened is None or trial.first_status is None:
        why = trial.failure or "no status comes"
        return problem("reconnect", f"the WebSocket cannot be opened again: {why}", _UPGRADE)
    if trial.pushed:
        return ok("reconnect", "a WebSocket that is opened again hears")
    if not trial.provoked or trial.failure:
        return unknown("reconnect", "opened again; whether it hears could not be tried")
    return warning("reconnect", "a WebSocket that is opened again is deaf", _LINGERS)

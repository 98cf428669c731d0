"""How a prompt ended: read off an event, or off its history entry.

Rules (ComfyUI execution.py and main.py, 0.3.64 to 0.38):

* ``execution_error`` ends a prompt unless its ``exception_type`` is ``ExecutionBlocked``.
* In history an interrupted prompt has ``status_str: "error"`` like a failed one; only ``status.messages`` tells.
* A dependency cycle found while running leaves ``status_str: "success"`` beside an ``execution_error`` message, so
  ``messages`` decides and ``status_str`` is the fallback.
* Messages are ``[type, data]`` pairs; a fork writes them as strings, ``"execution_error: text"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from . import events
from .errors import JobError, JobFailed, JobInterrupted, OutOfMemory, ProtocolError
from .frames import to_event

_OUT_OF_MEMORY = ("out of memory", "allocation on device", "not enough memory")


class JobState(StrEnum):
    """Where a prompt stands, in the words of ComfyUI's jobs API; ``lost`` is ours."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a prompt ended.

    Attributes:
        error: What awaiting it raises; None when it completed.
    """

    state: JobState
    error: JobError | None = None


COMPLETED = Verdict(JobState.COMPLETED)


def interrupted(prompt_id: str) -> Verdict:
    return Verdict(JobState.CANCELLED, JobInterrupted(prompt_id))


def failed(event: events.ExecutionError, title: str | None) -> Verdict:
    """Make the verdict of an ``execution_error``; ``title`` is that of its node in the workflow."""
    cls = OutOfMemory if _ran_out_of_memory(event) else JobFailed
    error = cls(
        event.prompt_id,
        node_id=event.node_id or "",
        class_type=event.node_type or "",
        exception_type=event.exception_type,
        exception_message=event.exception_message,
        traceback=event.traceback,
        title=title,
    )
    return Verdict(JobState.FAILED, error)


def _ran_out_of_memory(event: events.ExecutionError) -> bool:
    if event.exception_type.rpartition(".")[2] in ("OutOfMemoryError", "MemoryError", "OOMError"):
        return True
    return any(words in event.exception_message.lower() for words in _OUT_OF_MEMORY)


def from_history(prompt_id: str, entry: Mapping[str, Any], titles: Mapping[str, str]) -> Verdict:
    """Read the verdict off a history entry."""
    status = entry.get("status")
    if not isinstance(status, Mapping):
        return COMPLETED  # before 2024-01 an entry had no status: it was there because the prompt had ended
    messages = status.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        verdict = _from_message(prompt_id, message, titles)
        if verdict is not None:
            return verdict
    if status.get("status_str") == "error":
        return failed(events.ExecutionError(prompt_id, None, None, "", "the server gave no reason"), None)
    return COMPLETED


def _from_message(prompt_id: str, message: Any, titles: Mapping[str, str]) -> Verdict | None:
    kind, data = _split(message)
    if kind == "execution_success":
        return COMPLETED
    if kind == "execution_interrupted":
        return interrupted(prompt_id)
    if kind != "execution_error":
        return None
    try:
        event = to_event(kind, {**data, "prompt_id": prompt_id})
    except ProtocolError as exc:
        event = events.ExecutionError(prompt_id, None, None, "", str(exc))
    if not isinstance(event, events.ExecutionError):
        raise AssertionError("the decoder of 'execution_error' makes ExecutionError")
    return None if event.blocked else failed(event, titles.get(event.node_id or ""))


def _split(message: Any) -> tuple[str, dict[str, Any]]:
    """Take a history message apart, in either form."""
    if isinstance(message, str):
        kind, _, text = message.partition(": ")
        return kind, {"exception_message": text}
    if isinstance(message, list | tuple) and len(message) == 2 and isinstance(message[0], str):
        return message[0], message[1] if isinstance(message[1], dict) else {}
    return "", {}

"""What a check finds: errors written as the server writes them, with what only an offline check can add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Error: TypeAlias = dict[str, Any]
"""``type``, ``message``, ``details`` and ``extra_info``: an entry of ``node_errors[node_id]["errors"]``."""


def write_error(kind: str, message: str, details: str, **extra_info: Any) -> Error:
    """Write an error as the server does."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a node.

    Attributes:
        error: As the server would write it.
        hint: What helps beyond it; "" when nothing.
        choices: All values that the input takes, which the server leaves out when they are many; None: no list.
        received: What was sent, where the server does not say it.
        doubtful: The server may let it pass: a class may check its inputs itself, or the version is not known.
    """

    error: Error
    hint: str = ""
    choices: Sequence[Any] | None = None
    received: Any = None
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """The server's check of a node ends with a Python exception, which takes the place of all its other errors.

    Attributes:
        exception_type: Its class, for example ``KeyError``.
        text: ``str()`` of it, which is all that the server tells.
        hint: The same for a person.
    """

    exception_type: str
    text: str
    hint: str

    @classmethod
    def by(cls, exc: Exception, hint: str) -> Broken:
        """Note an exception that the server would raise at the same place."""
        return cls(type(exc).__name__, str(exc), hint)

"""How a command ends: its exit code, and a sentence when something is wrong."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from ..errors import AcomfyError, ServerError, UnknownNodes
from .arguments import UsageError

SUCCEEDED, FAILED, USAGE, NO_SERVER = 0, 1, 2, 3  # and 128 + the signal's number when interrupted

_IN_ASCII = str.maketrans({"│": "|", "├": "+", "└": "`", "…": "...", "━": "=", "─": "-"})

OTHER_CODES = "2 the command line or the workflow is wrong; 3 the server cannot be reached or refuses"


def fail(code: int, why: object) -> NoReturn:
    """Say why on stderr, and leave."""
    print(f"acomfy: {printable(str(why))}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def in_words() -> Iterator[None]:
    """Turn what is wrong with the command line, the workflow or the server into a sentence and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        fail(128 + signal.SIGINT, "interrupted")
    except ServerError as exc:
        fail(NO_SERVER, exc)
    except ModuleNotFoundError as exc:
        if exc.name != "nats":  # without which the fleet says what to install
            raise
        fail(USAGE, exc)
    except UnknownNodes as exc:
        fail(USAGE, str(exc).replace("keep_unknown=True", "acomfy convert --keep-unknown"))
    except (UsageError, AcomfyError) as exc:
        fail(USAGE, exc)


def accept_any_text() -> None:
    """Let output streams replace what their encoding lacks: a file's name must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def counted(number: int, what: str) -> str:
    """Count things: "1 node", "2 nodes"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def drawable(text: str) -> str:
    """Draw with ASCII what stdout's encoding (LANG=C) has no lines for."""
    stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # what rich.live puts in its place has no encoding
    try:
        "│├└…━─".encode(stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII)
    return text


def printable(text: str) -> str:
    """Escape what a terminal would take for an order: a file may come from anywhere."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)

"""The command line (``pip install "acomfy[cli]"``): ``acomfy run``, ``inspect``, ``check``, ``convert``, ``nodes``, ...

A module for each command, put together in ``app``. ``arguments`` reads what was typed, ``classes`` gets the server's
node classes, ``ends`` knows the exit codes; ``running`` sends the prompts of a run and saves what they give,
``reports`` tells about it (lines, JSON), ``bars`` draws bars in a terminal, ``trees`` draws a workflow. ``observer``
keeps the overview that ``watch`` shows, ``views`` and ``blocks`` draw it; ``examination`` measures for ``doctor``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and leave by SystemExit with its exit code; ``args`` None takes those of the process."""
    try:
        from .app import app
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print('acomfy: the command line needs typer and rich: pip install "acomfy[cli]"', file=sys.stderr)
        raise SystemExit(2) from None
    app(args if args is None else list(args), prog_name="acomfy")

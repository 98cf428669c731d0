"""``acomfy fleet demo``: a fleet on this machine, a worker that is killed, and the proof that nothing was lost."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from .demo_views import draw, how_far, mark, proof, verdict
from .ends import FAILED, OTHER_CODES, SUCCEEDED, accept_any_text, fail, in_words
from .signals import Interrupts

if TYPE_CHECKING:
    from .demo_books import Books
    from .demo_play import Happening, Play, Scene

EXIT_CODES = (
    f"Exit codes: 0 nothing was lost and nothing finished twice; 1 that does not hold; {OTHER_CODES}; 130 interrupted "
    "by Ctrl-C (143 by SIGTERM)."
)

_FRAME_TIME = 0.25
_EVERY = 5.0  # seconds between lines where the output is no terminal


def demo(
    prompts: Annotated[
        int, typer.Option(metavar="N", min=10, max=10_000, help="How many prompts are submitted.")
    ] = 200,
    workers: Annotated[
        int, typer.Option(metavar="N", min=2, max=16, help="How many workers, each beside a simulator of its own.")
    ] = 4,
    lease: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=1.0, help="After so long without a sign of life of a worker, another takes over."
        ),
    ] = 3.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object a line: what happens, and last the ledger.")
    ] = False,
) -> None:
    """Show a fleet on this machine: a NATS server, simulated ComfyUIs, workers, prompts of two models.

    One worker is killed on the way. At the end the outcomes are compared with what the simulators themselves noted:
    whether anything was lost, and whether anything finished twice. No ComfyUI and no GPU needed.
    """
    accept_any_text()
    with in_words():
        from .demo_play import Play
        from .demo_processes import StageError

        show: Show = _JSONLines() if as_json else _for_people()
        try:
            code = asyncio.run(_play(Play(prompts, workers, lease, show.happened), show))
        except StageError as exc:
            fail(FAILED, exc)
    raise typer.Exit(code)


def _for_people() -> Show:
    """Choose a table for a terminal that can draw it, else lines."""
    console = Console(highlight=False)
    return _Table(console) if console.is_terminal and not console.is_dumb_terminal else _Lines()


async def _play(play: Play, show: Show) -> int:
    """Play it until it ends or Ctrl-C comes, and give the exit code."""

    def abandon() -> None:
        play.abandon()
        show.abandon()

    with Interrupts(on_second=abandon) as interrupts:
        playing = asyncio.create_task(play.run())
        stopping = asyncio.create_task(interrupts.first.wait())
        showing = asyncio.create_task(show.run(play.scene))
        try:
            await asyncio.wait([playing, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (playing, stopping, showing):
                task.cancel()
            await asyncio.wait([playing, stopping, showing])
        if interrupts.exit_code is not None:
            return interrupts.exit_code
        books = playing.result()
    show.closed(books)
    return SUCCEEDED if books.holds else FAILED


class Show(Protocol):
    """Where a demonstration is shown."""

    def happened(self, happening: Happening) -> None:
        """Tell of something that happened on the way."""

    async def run(self, scene: Scene) -> None:
        """Show how it goes on, until this is cancelled."""

    def closed(self, books: Books) -> None:
        """Tell what it came to."""

    def abandon(self) -> None:
        """Give the terminal back as it was: the program ends on the spot."""


class _Table:
    """Show a table in a terminal, kept up to date, and above it what happens."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def happened(self, happening: Happening) -> None:
        style = "bold red" if happening.kind == "killed" else "cyan"
        self._console.print(Text(happening.text, style), soft_wrap=True)

    async def run(self, scene: Scene) -> None:
        with Live(console=self._console, auto_refresh=False, vertical_overflow="crop") as live:
            try:
                while True:
                    live.update(draw(scene, self._console.width), refresh=True)
                    await asyncio.sleep(_FRAME_TIME)
            finally:
                live.update(draw(scene, self._console.width), refresh=True)

    def closed(self, books: Books) -> None:
        self._console.print(proof(books))

    def abandon(self) -> None:
        self._console.show_cursor(True)  # the table hides it


class _Lines:
    """Write lines: what happens, now and then how far it is, and what it came to."""

    def happened(self, happening: Happening) -> None:
        print(happening.text, flush=True)

    async def run(self, scene: Scene) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            if scene.begun is not None:
                print(how_far(scene), flush=True)

    def closed(self, books: Books) -> None:
        for finding in books.findings():
            print(f"{mark(finding):5} {finding.text}")
        print(verdict(books), flush=True)

    def abandon(self) -> None:
        pass


class _JSONLines:
    """One JSON object a line: what happens (by its ``type``), and last the "ledger"."""

    def happened(self, happening: Happening) -> None:
        print(json.dumps({"type": happening.kind, **happening.about}), flush=True)

    async def run(self, scene: Scene) -> None:
        pass

    def closed(self, books: Books) -> None:
        ledger = {
            "holds": books.holds,
            "submitted": len(books.models),
            "outcomes": len(books.ends),
            "succeeded": len(books.succeeded),
            "left_in_queue": books.left,
            "executions": books.executions,
            "finished": len(books.finished),
            "pictures_compared": books.pictures,
            "taken_over": [end.job_id for end in books.taken_over],
            "model_loads": books.loads,
            "seconds": round(books.seconds, 3),
            "findings": [asdict(finding) for finding in books.findings()],
        }
        print(json.dumps({"type": "ledger", **ledger}), flush=True)

    def abandon(self) -> None:
        pass

"""Report a run in a terminal: bars while it runs, and a line for every prompt that ended above them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from rich.console import Console
from rich.text import Text

from ..client import Client
from ..job import Job
from ..terminal import progress
from ..workflow import Workflow
from .reports import Finished, Summary, closing_words, name_of, outcome, state_of


class Terminal:
    """Report a run in a terminal: bars while it runs, and a line for every prompt that ended above them."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def finished(self, prompt: Finished, summary: Summary) -> None:
        line = Text.assemble(
            (f"{state_of(prompt):<6} ", "green" if prompt.error is None else "bold red"),
            (name_of(prompt.index, prompt.seed), "bold"),
            "  ",
            outcome(prompt, repeats=summary.repeats(prompt)),
        )
        self._console.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(Text(f"acomfy: {text}", "yellow"), soft_wrap=True)

    def closed(self, summary: Summary) -> None:
        if words := closing_words(summary):
            self._console.print(Text(words, "bold"), soft_wrap=True)

    @asynccontextmanager
    async def watching(
        self, client: Client, workflow: Workflow, summary: Summary, seeds: Sequence[int | None]
    ) -> AsyncGenerator[None, None]:
        """Draw bars until the block is left."""

        def name(job: Job) -> str:
            index = job.index or 0
            return name_of(index, seeds[index] if index < len(seeds) else None)

        async with progress(
            client, total=summary.total, done=lambda: len(summary.finished), name=name, console=self._console
        ):
            yield

    def abandon(self) -> None:
        self._console.show_cursor(True)  # the bars hide it

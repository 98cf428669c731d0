"""Tell about a run: in lines for people, or in JSON for machines."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..client import Client
    from ..workflow import Workflow


@dataclass(frozen=True, slots=True)
class Picture:
    """A saved picture.

    Attributes:
        title: What tells it from the other pictures of its prompt; None when it is the only one.
    """

    path: Path
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """How one prompt ended.

    Attributes:
        seed: None when the workflow has none, or several.
        state: ``completed``, ``failed``, ``cancelled`` or ``lost``.
        files: What was saved of it.
        pictures: Those of the files that are pictures.
        error: Why it gave nothing, or why that could not be saved; None when all went well.
        unreachable: It is lost because the server does not answer any more.
    """

    index: int
    prompt_id: str
    seed: int | None
    state: str
    files: tuple[Path, ...] = ()
    pictures: tuple[Picture, ...] = ()
    error: str | None = None
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """What became of the prompts under way when the run was interrupted."""

    cancelled: int
    ended: int
    unconfirmed: int


@dataclass(slots=True)
class Summary:
    """What a whole run came to.

    Attributes:
        total: How many prompts were asked for.
        sheet: The contact sheet; None when none was written.
        stopped: What became of the prompts under way; None when the run was not interrupted.
        error: Why the run ended early; None when it did not.
    """

    total: int
    finished: list[Finished] = field(default_factory=list)
    seconds: float = 0.0
    sheet: Path | None = None
    stopped: Stopped | None = None
    error: str | None = None
    _reasons: Counter[str] = field(default_factory=Counter)

    def add(self, prompt: Finished) -> None:
        """Count a prompt in."""
        self.finished.append(prompt)
        self._reasons[_reason(prompt)] += 1

    def repeats(self, prompt: Finished) -> bool:
        """Tell whether a prompt failed for a reason that was told before."""
        return prompt.error is not None and self._reasons[_reason(prompt)] > 1

    @property
    def succeeded(self) -> int:
        """How many prompts ended well, with their files saved."""
        return sum(prompt.error is None for prompt in self.finished)

    @property
    def failed(self) -> int:
        """How many prompts ended otherwise."""
        return len(self.finished) - self.succeeded

    @property
    def files(self) -> int:
        """How many files were saved."""
        return sum(len(prompt.files) for prompt in self.finished)


def _reason(prompt: Finished) -> str:
    return (prompt.error or "").replace(prompt.prompt_id, "")


class Report(Protocol):
    """Where a run is told about."""

    def finished(self, prompt: Finished, summary: Summary) -> None:
        """Tell of one prompt."""

    def note(self, text: str) -> None:
        """Say something on the side."""

    def closed(self, summary: Summary) -> None:
        """Tell what it all came to."""

    def watching(
        self, client: Client, workflow: Workflow, summary: Summary, seeds: Sequence[int | None]
    ) -> AbstractAsyncContextManager[None]:
        """Show what happens on the client until the block is left."""
        ...

    def abandon(self) -> None:
        """Give the terminal back as it was: the program ends on the spot."""


class _Quiet:
    """What reports share that show nothing while prompts run."""

    def watching(
        self, client: Client, workflow: Workflow, summary: Summary, seeds: Sequence[int | None]
    ) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def abandon(self) -> None:
        pass

    def note(self, text: str) -> None:
        print(f"acomfy: {text}", file=sys.stderr, flush=True)


class Lines(_Quiet):
    """Plain short lines: what is done on stdout, what went wrong on stderr."""

    def finished(self, prompt: Finished, summary: Summary) -> None:
        print(
            describe(prompt, len(summary.finished), summary.total, repeats=summary.repeats(prompt)),
            file=sys.stdout if prompt.error is None else sys.stderr,
            flush=True,
        )

    def closed(self, summary: Summary) -> None:
        if words := closing_words(summary):
            print(words, flush=True)


class JSONLines(_Quiet):
    """One JSON object a line on stdout: each prompt as it ends (``type`` "prompt"), and last a "summary"."""

    def finished(self, prompt: Finished, summary: Summary) -> None:
        self._print(
            type="prompt",
            index=prompt.index,
            prompt_id=prompt.prompt_id,
            seed=prompt.seed,
            state=prompt.state,
            files=[str(path) for path in prompt.files],
            error=prompt.error,
        )

    def closed(self, summary: Summary) -> None:
        stopped = summary.stopped
        self._print(
            type="summary",
            total=summary.total,
            succeeded=summary.succeeded,
            failed=summary.failed,
            cancelled=stopped.cancelled if stopped else 0,
            unconfirmed=stopped.unconfirmed if stopped else 0,
            seconds=round(summary.seconds, 3),
            sheet=str(summary.sheet) if summary.sheet else None,
            error=summary.error,
        )

    def _print(self, **members: object) -> None:
        print(json.dumps(members), flush=True)


def describe(prompt: Finished, number: int, total: int, *, repeats: bool = False) -> str:
    """Say in a line how a prompt ended: ``[3/8] seed 5: out/ComfyUI_00003_.png``."""
    state = "" if prompt.error is None else f"{state_of(prompt)}: "
    return f"[{number}/{total}] {name_of(prompt.index, prompt.seed)}: {state}{outcome(prompt, repeats=repeats)}"


def state_of(prompt: Finished) -> str:
    """Say in a word how a prompt ended: ``done``, ``failed``, ``cancelled`` or ``lost``."""
    if prompt.error is None:
        return "done"
    return "failed" if prompt.state == "completed" else prompt.state  # completed, but its files are not saved


def outcome(prompt: Finished, *, repeats: bool = False) -> str:
    """Name the files of a prompt, or say what went wrong, unless that was said before."""
    if prompt.error is not None:
        return "same reason as before" if repeats else prompt.error
    return ", ".join(map(str, prompt.files)) or "without files"


def name_of(index: int, seed: int | None) -> str:
    """Name a prompt of a run by its seed, or by its place when it has none."""
    return f"prompt {index + 1}" if seed is None else f"seed {seed}"


def closing_words(summary: Summary) -> str:
    """Say in a line what a run came to; nothing when it could not begin."""
    if summary.error is not None and not summary.finished:
        return ""
    words = f"{_count(summary.succeeded, 'prompt')} of {summary.total} done in {summary.seconds:.1f} s"
    if summary.failed:
        words += f", {summary.failed} failed"
    words += f", {_count(summary.files, 'file')} saved"
    if summary.sheet is not None:
        words += f", contact sheet {summary.sheet}"
    return words


def stopping_words(stopped: Stopped) -> str:
    """Say what became of the prompts under way."""
    if not (stopped.cancelled or stopped.ended or stopped.unconfirmed):
        return "stopped; no prompt was under way"
    words = [f"cancelled {_count(stopped.cancelled, 'prompt')} of this run"]
    if stopped.ended:
        words.append(f"{stopped.ended} had ended before that")
    if stopped.unconfirmed:
        words.append(f"the server did not confirm it for {stopped.unconfirmed}, which may still run")
    return ", ".join(words)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def captions(finished: Sequence[Finished]) -> list[tuple[Path, str]]:
    """Pair every picture of a run, in the order of its prompts, with the caption it gets on the contact sheet."""
    return [
        (picture.path, name_of(prompt.index, prompt.seed) + (f"\n{picture.title}" if picture.title else ""))
        for prompt in sorted(finished, key=lambda prompt: prompt.index)
        for picture in prompt.pictures
    ]

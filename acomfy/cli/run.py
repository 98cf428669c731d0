"""``acomfy run``: a workflow, once or many times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..client import Client
from ..errors import AcomfyError, ServerError
from ..workflow import Workflow
from .arguments import Seed, UsageError, Variants, load_workflow, read_seed, seed_inputs, with_settings
from .bars import Terminal
from .classes import Classes, Server, Simulate
from .ends import FAILED, NO_SERVER, OTHER_CODES, SUCCEEDED, accept_any_text, in_words
from .reports import Finished, JSONLines, Lines, Report, Summary, captions, stopping_words
from .running import run_prompts
from .sheets import can_be_written, write_sheet
from .signals import Interrupts

EXIT_CODES = (
    f"Exit codes: 0 all prompts succeeded; 1 some failed; {OTHER_CODES}; 130 interrupted by Ctrl-C (143 by SIGTERM)."
)

_SIMULATED_SECONDS = 6.5  # of sampling in all; painting and saving come on top, on a slow machine as much again
_SIMULATED_STEP_TIME = 0.05
_STEPS = 20  # of the shipped examples


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it was ordered, checked."""

    workflow: Workflow
    variants: Variants
    url: str | None  # None: a simulated server
    limit: int
    out: Path
    sheet: Path | None


def run(
    workflow: Annotated[
        str,
        typer.Argument(
            metavar="WORKFLOW",
            help="A workflow: a file of the editor, in API format or its own, or a picture, film or sound that ComfyUI "
            "saved; - is stdin; or a shipped example: text_to_image, text_to_image_stream.",
        ),
    ],
    server: Server = None,
    simulate: Simulate = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NODE.INPUT=VALUE",
            help="Set an input; NODE is an id, a title or a class. The value is JSON, or text. Can be given again.",
        ),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="random|N",
            help="A random seed for every prompt, or N, N+1, ...; without it the workflow's own.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many prompts to run.")] = 1,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="How many of them to have queued at once.")] = 16,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.", file_okay=False)] = Path("out"),
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw all pictures on a contact sheet.", dir_okay=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object a line: every prompt as it ends, then a summary.")
    ] = False,
) -> None:
    """Run a workflow, once or many times, and save what it gives.

    Ctrl-C cancels the prompts of this run on the server, and no others; a second Ctrl-C leaves at once.
    """
    with in_words():
        plan = _plan(workflow, server, simulate, settings or [], seed, count, limit, out, sheet)
    accept_any_text()
    raise typer.Exit(asyncio.run(_run(plan, JSONLines() if as_json else _for_people())))


def _plan(
    name: str,
    server: str | None,
    simulate: bool,
    settings: list[str],
    seed: str | None,
    count: int,
    limit: int,
    out: Path,
    sheet: Path | None,
) -> Plan:
    """Check everything that can be checked before the first prompt is sent."""
    classes = Classes(server, simulate, None)  # asked for only when the workflow is in the editor's own format
    workflow = with_settings(load_workflow(name, classes), settings)
    variants = _variants(workflow, read_seed(seed), count, classes)
    for directory in (out, *([sheet.parent] if sheet else [])):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UsageError(f"cannot make the directory {directory}: {exc.strerror}") from None
    if sheet is not None and not can_be_written(sheet):
        raise UsageError(f"--sheet {sheet}: a picture's name ends in .png, .jpg, .webp or another that Pillow writes")
    return Plan(workflow, variants, classes.url, limit, out, sheet)


def _variants(workflow: Workflow, seed: Seed, count: int, classes: Classes) -> Variants:
    """Find the seeds by the server's definitions if they are at hand, or if no input is called a seed."""
    definitions = classes.known
    if seed is not None and definitions is None and not seed_inputs(workflow):
        definitions = classes()
    return Variants(workflow, seed, count, definitions)


def _for_people() -> Report:
    """Choose bars for a terminal that can draw them, else lines."""
    console = Console(highlight=False)
    return Terminal(console) if console.is_terminal and not console.is_dumb_terminal else Lines()


# --- Running ---------------------------------------------------------------------------------------------------------


async def _run(plan: Plan, report: Report) -> int:
    """Run a plan, tell about it, and give the exit code."""
    summary, start = Summary(plan.variants.count), time.monotonic()
    if plan.variants.all_same:
        report.note("all prompts are the same, and a server runs the same thing once; --seed random makes them differ")

    def stopping() -> None:
        report.note("cancelling the prompts of this run; Ctrl-C again leaves at once")

    with Interrupts(stopping, report.abandon) as interrupts:
        try:
            async with _client(plan) as client:
                await _run_on(client, plan, report, summary, interrupts.first)
            code = _exit_code(summary)
        except AcomfyError as exc:
            summary.error, code = str(exc), NO_SERVER if isinstance(exc, ServerError) else FAILED
            report.note(summary.error)
        if plan.sheet is not None:
            summary.sheet = await asyncio.to_thread(_write_sheet, plan.sheet, summary, report)
    summary.seconds = time.monotonic() - start
    report.closed(summary)
    return interrupts.exit_code or code


@asynccontextmanager
async def _client(plan: Plan) -> AsyncGenerator[Client, None]:
    """Open a client of the server; of a simulated one, if so planned."""
    async with AsyncExitStack() as stack:
        url = plan.url
        if url is None:
            from ..simulator import SimulatedServer

            step_time = min(_SIMULATED_STEP_TIME, _SIMULATED_SECONDS / (plan.variants.count * _STEPS))
            url = (await stack.enter_async_context(SimulatedServer(step_time=step_time))).url
        yield await stack.enter_async_context(Client(url))


async def _run_on(client: Client, plan: Plan, report: Report, summary: Summary, stop: asyncio.Event) -> None:
    def tell(prompt: Finished) -> None:
        summary.add(prompt)
        report.finished(prompt, summary)

    await client.api.get_prompt()  # tells at once when there is no server, which a submit would wait for
    variants = plan.variants
    async with report.watching(client, plan.workflow, summary, variants.seeds):
        summary.stopped = await run_prompts(client, variants, limit=plan.limit, out=plan.out, stop=stop, tell=tell)
    if summary.stopped is not None:
        report.note(stopping_words(summary.stopped))


def _exit_code(summary: Summary) -> int:
    if any(prompt.unreachable for prompt in summary.finished):
        return NO_SERVER
    return FAILED if summary.failed else SUCCEEDED


def _write_sheet(path: Path, summary: Summary, report: Report) -> Path | None:
    """Write the contact sheet; give its path, or None when there is nothing to show or it cannot be written."""
    try:
        return path if write_sheet(path, captions(summary.finished)) else None
    except OSError as exc:
        report.note(f"cannot write the contact sheet {path}: {exc.strerror or exc}")
        return None

"""The commands: ``run`` and ``serve``."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from ..client import Client
from ..errors import AcomfyError, ServerError, WorkflowError
from ..workflow import Workflow
from .arguments import DEFAULT_SERVER, UsageError, Variants, load_workflow, read_seed, server_url, with_settings
from .bars import Terminal
from .reports import Finished, JSONLines, Lines, Report, Summary, captions, stopping_words
from .running import run_prompts
from .sheets import can_be_written, write_sheet
from .signals import Interrupts

if TYPE_CHECKING:
    from ..simulator import SimulatedServer

SUCCEEDED, FAILED, USAGE, NO_SERVER = 0, 1, 2, 3  # and 128 + the signal's number when interrupted

_EXIT_CODES = (
    "Exit codes: 0 all prompts succeeded; 1 some failed; 2 the command line or the workflow is wrong; "
    "3 the server cannot be reached or refuses; 130 interrupted by Ctrl-C (143 by SIGTERM)."
)
_SIMULATED_SECONDS = 6.5  # of sampling in all; painting and saving come on top, on a slow machine as much again
_SIMULATED_STEP_TIME = 0.05
_STEPS = 20  # of the shipped examples

app = typer.Typer(
    name="acomfy",
    help="Run ComfyUI workflows: many prompts at once, their pictures on your disk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it was ordered, checked."""

    workflow: Workflow
    variants: Variants
    url: str
    simulate: bool
    limit: int
    out: Path
    sheet: Path | None


@app.command(epilog=_EXIT_CODES)
def run(
    workflow: Annotated[
        str,
        typer.Argument(
            metavar="WORKFLOW",
            help="A workflow in API format: a file's path, or a shipped example: text_to_image, text_to_image_stream.",
        ),
    ],
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"The ComfyUI server; without it $ACOMFY_URL, else {DEFAULT_SERVER}."),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Use a simulated server instead: no ComfyUI and no GPU needed.")
    ] = False,
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
    try:
        plan = _plan(workflow, server, simulate, settings or [], seed, count, limit, out, sheet)
    except (UsageError, WorkflowError) as exc:
        _fail(USAGE, exc)
    _accept_any_text()
    raise typer.Exit(asyncio.run(_run(plan, JSONLines() if as_json else _for_people())))


@app.command()
def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 takes a free one.")] = 8188,
    step_time: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long a sampler step takes.")
    ] = _SIMULATED_STEP_TIME,
    version: Annotated[str, typer.Option(metavar="X.Y.Z", help="The ComfyUI version to behave like.")] = "0.3.64",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, help="Where SaveImage saves; without it a directory that goes at the end."
        ),
    ] = None,
) -> None:
    """Serve a simulated ComfyUI until Ctrl-C: a server without a GPU, for trying things out."""
    from ..simulator import SimulatedServer

    try:
        server = SimulatedServer(host=host, port=port, step_time=step_time, version=version, output_dir=output_dir)
        asyncio.run(_serve(server))
    except ValueError as exc:
        _fail(USAGE, exc)
    except OSError as exc:
        _fail(FAILED, f"cannot listen on {host} port {port}: {exc.strerror or exc}")


def _fail(code: int, why: object) -> NoReturn:
    print(f"acomfy: {why}", file=sys.stderr)
    raise typer.Exit(code)


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
    """Check everything that can be checked before a server is asked."""
    if server is not None and simulate:
        raise UsageError("--server and --simulate exclude each other")
    workflow = with_settings(load_workflow(name), settings)
    variants = Variants(workflow, read_seed(seed), count)
    for directory in (out, *([sheet.parent] if sheet else [])):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UsageError(f"cannot make the directory {directory}: {exc.strerror}") from None
    if sheet is not None and not can_be_written(sheet):
        raise UsageError(f"--sheet {sheet}: a picture's name ends in .png, .jpg, .webp or another that Pillow writes")
    return Plan(workflow, variants, server_url(server), simulate, limit, out, sheet)


def _accept_any_text() -> None:
    """Let output streams replace what their encoding lacks: a file's name must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


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
        if plan.simulate:
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


# --- Serving ---------------------------------------------------------------------------------------------------------


async def _serve(server: SimulatedServer) -> None:
    with Interrupts() as interrupts:
        async with server:
            print(f"simulating ComfyUI {server.version} on {server.url} until Ctrl-C")
            print(f"try it: acomfy run --server {server.url} text_to_image", flush=True)
            await interrupts.first.wait()

"""``acomfy fleet``: look after a fleet: its workers, its dead letters, and a demonstration of all of it."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len

from ..workflow import Workflow
from . import demo
from .arguments import UsageError
from .brokers import BrokerOptions, with_broker
from .ends import FAILED, OTHER_CODES, accept_any_text, counted, fail, in_words, printable

if TYPE_CHECKING:
    from ..fleet import DeadLetter, Fleet, WorkerInfo

app = typer.Typer(help="Look after a fleet of workers on NATS.", no_args_is_help=True)
dead = typer.Typer(help="Look at prompts that were given up, and put them back.", no_args_is_help=True)
app.add_typer(dead, name="dead")
app.command(epilog=demo.EXIT_CODES)(demo.demo)

_CODES = f"Exit codes: 0 done; {OTHER_CODES}."
_DEAD_CODES = f"Exit codes: 0 done; 1 there is no such dead letter; {OTHER_CODES}."

_PATIENCE = 5.0  # seconds for a broker that is away

JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="The job, as 'acomfy fleet dead list' shows it.")]
JobIds = Annotated[
    list[str], typer.Argument(metavar="JOB_ID...", help="The jobs, as 'acomfy fleet dead list' shows them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON object a line.")]


@app.command(epilog=_CODES)
@with_broker
def status(
    broker: BrokerOptions,
    group: Annotated[str, typer.Option(metavar="NAME", help="Whose workers.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Show the workers of a group, what they do, and how much is in the queue (of all groups)."""

    async def show(fleet: Fleet) -> None:
        in_queue, infos = await asyncio.gather(fleet.waiting(), fleet.workers())
        if as_json:
            for info in infos:
                print(json.dumps({"type": "worker", **asdict(info)}))
            print(json.dumps({"type": "queue", "prompts": in_queue}))
            return
        for line in aligned(map(_about, infos)):
            print(line)
        if not infos:
            print(f"no worker of the group {group} answers; 'acomfy worker --group {group}' runs one")
        print(f"{counted(len(infos), 'server')}, {counted(in_queue, 'prompt')} in the queue")

    _with_fleet(show, broker, group)


def _about(info: WorkerInfo) -> Sequence[str]:
    doing = f"{info.state} ({len(info.running)})" if len(info.running) > 1 else info.state
    return info.server, doing, f"{info.done} done", info.warm or "-", info.worker


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Write rows in columns; what a terminal would take for an order is escaped."""
    texts = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    ]


# --- What was given up -----------------------------------------------------------------------------------------------


@dead.command("list", epilog=_CODES)
@with_broker
def list_dead(broker: BrokerOptions, as_json: AsJson = False) -> None:
    """List what was given up, the oldest first, with the reason."""

    async def show(fleet: Fleet) -> None:
        letters = await fleet.dead_letters()
        for letter in letters:
            print(json.dumps(_members(letter)) if as_json else printable(_line(letter)))
        if not letters and not as_json:
            print("nothing was given up")

    _with_fleet(show, broker)


def _members(letter: DeadLetter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in ("job_id", "group", "error", "reason", "server", "at")}


def _line(letter: DeadLetter) -> str:
    when = datetime.fromtimestamp(letter.at).isoformat(sep=" ", timespec="seconds")
    return f"{letter.job_id}  {when}  {letter.group}  {letter.error}: {letter.reason}".replace("\n", " ")


@dead.command(epilog=_DEAD_CODES)
@with_broker
def show(job_id: JobId, broker: BrokerOptions) -> None:
    """Print the workflow of one, in API format; on stderr why it was given up."""

    async def act(fleet: Fleet) -> None:
        workflow = await fleet.dead_workflow(job_id)
        for letter in await fleet.dead_letters():
            if letter.job_id == job_id:
                print(printable(f"acomfy: {_line(letter)}"), file=sys.stderr)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # JSON is, whatever the terminal speaks
        print(Workflow.load(workflow).to_json())

    _with_fleet(act, broker)


@dead.command(epilog=_DEAD_CODES)
@with_broker
def requeue(job_ids: JobIds, broker: BrokerOptions) -> None:
    """Put some back into the queue."""

    async def act(fleet: Fleet) -> None:
        for job_id in job_ids:
            await fleet.requeue(job_id)
            print(f"{job_id} waits in the queue again", flush=True)

    _with_fleet(act, broker)


@dead.command(epilog=_DEAD_CODES)
@with_broker
def drop(job_ids: JobIds, broker: BrokerOptions) -> None:
    """Remove some for good."""

    async def act(fleet: Fleet) -> None:
        for job_id in job_ids:
            await fleet.drop(job_id)
            print(f"{job_id} is gone", flush=True)

    _with_fleet(act, broker)


def _with_fleet(act: Callable[[Fleet], Awaitable[None]], broker: BrokerOptions, group: str = "default") -> None:
    """Do something with a fleet, and say what is wrong."""
    accept_any_text()
    with in_words():
        from ..fleet import Fleet

        async def run() -> None:
            options = {"connect_timeout": _PATIENCE, "unreachable_timeout": _PATIENCE, **broker.options}
            async with Fleet(broker.servers, name=broker.name, group=group, **options) as fleet:
                await act(fleet)

        try:
            asyncio.run(run())
        except ValueError as exc:
            raise UsageError(str(exc)) from None
        except KeyError as exc:
            fail(FAILED, f"there is no dead letter of the job {exc}; 'acomfy fleet dead list' shows them")

"""``acomfy fleet``: look after a fleet: its workers, its dead letters, and a demonstration of all of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

import typer

from .ends import FAILED, OTHER_CODES, counted, fail, in_words, printable
from .worker import Creds, Name, Nats, NKey, TlsCa, TlsCert, TlsKey, connect_options, nats_urls

app = typer.Typer(help="Look after a fleet of workers on NATS.", no_args_is_help=True)
dead = typer.Typer(help="Look at prompts that were given up, and put them back.", no_args_is_help=True)
app.add_typer(dead, name="dead")

_CODES = f"Exit codes: 0 done; 1 there is no such prompt; {OTHER_CODES}."

JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="The job, as 'dead list' shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command(epilog=_CODES)
def status(
    nats: Nats = None,
    name: Name = "acomfy",
    group: Annotated[str, typer.Option(metavar="NAME", help="Whose workers.")] = "default",
    as_json: AsJson = False,
    creds: Creds = None,
    nkey: NKey = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Show the workers of a group, what they do, and how much waits."""

    async def show(fleet: Any) -> None:
        waiting = await fleet.waiting()
        workers = await fleet.workers()
        if as_json:
            for info in workers:
                print(json.dumps({field: getattr(info, field) for field in info.__slots__}))
            print(json.dumps({"waiting": waiting}))
            return
        for info in workers:
            warm = f", {info.warm} warm" if info.warm else ""
            print(printable(f"{info.server}  {info.state}, {info.done} done{warm}  ({info.worker})"))
        print(f"{counted(len(workers), 'server')}, {counted(waiting, 'prompt')} in the queue")

    _with_fleet(show, nats, name, group, connect_options(creds, nkey, tls_ca, tls_cert, tls_key))


@dead.command("list", epilog=_CODES)
def list_dead(
    nats: Nats = None,
    name: Name = "acomfy",
    as_json: AsJson = False,
    creds: Creds = None,
    nkey: NKey = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """List what was given up, the oldest first, with the reason."""

    async def show(fleet: Any) -> None:
        letters = await fleet.dead_letters()
        for letter in letters:
            if as_json:
                about = {
                    field: getattr(letter, field) for field in ("job_id", "group", "error", "reason", "server", "at")
                }
                print(json.dumps(about))
            else:
                when = datetime.fromtimestamp(letter.at).isoformat(sep=" ", timespec="seconds")
                print(printable(f"{letter.job_id}  {when}  {letter.group}  {letter.error}: {letter.reason}"))
        if not letters and not as_json:
            print("nothing was given up")

    _with_fleet(show, nats, name, "default", connect_options(creds, nkey, tls_ca, tls_cert, tls_key))


@dead.command(epilog=_CODES)
def show(
    job_id: JobId,
    nats: Nats = None,
    name: Name = "acomfy",
    creds: Creds = None,
    nkey: NKey = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Print the workflow of one, as JSON."""

    async def act(fleet: Any) -> None:
        print((await fleet.dead_workflow(job_id)).decode("utf-8", "replace"))

    _with_fleet(act, nats, name, "default", connect_options(creds, nkey, tls_ca, tls_cert, tls_key), job_id)


@dead.command(epilog=_CODES)
def requeue(
    job_id: JobId,
    nats: Nats = None,
    name: Name = "acomfy",
    creds: Creds = None,
    nkey: NKey = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Put one back into the queue."""

    async def act(fleet: Any) -> None:
        await fleet.requeue(job_id)
        print(f"{job_id} waits in the queue again")

    _with_fleet(act, nats, name, "default", connect_options(creds, nkey, tls_ca, tls_cert, tls_key), job_id)


@dead.command(epilog=_CODES)
def drop(
    job_id: JobId,
    nats: Nats = None,
    name: Name = "acomfy",
    creds: Creds = None,
    nkey: NKey = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Remove one for good."""

    async def act(fleet: Any) -> None:
        await fleet.drop(job_id)
        print(f"{job_id} is gone")

    _with_fleet(act, nats, name, "default", connect_options(creds, nkey, tls_ca, tls_cert, tls_key), job_id)


def _with_fleet(
    act: Callable[[Any], Awaitable[None]],
    nats: str | None,
    name: str,
    group: str,
    options: dict[str, Any],
    job_id: str = "",
) -> None:
    """Do something with a fleet, and say what is wrong."""
    from ..fleet import Fleet

    async def run() -> None:
        async with Fleet(nats_urls(nats), name=name, group=group, unreachable_timeout=10.0, **options) as fleet:
            await act(fleet)

    with in_words():
        try:
            asyncio.run(run())
        except ValueError as exc:
            fail(FAILED, exc)
        except KeyError:
            fail(FAILED, f"there is no dead letter of the job {job_id!r}; 'acomfy fleet dead list' shows them")

"""``acomfy worker``: runs beside ComfyUI servers and takes prompts of a fleet to them."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ..access import base_url, url_for_others
from .arguments import UsageError, server_url
from .brokers import BrokerOptions, with_broker
from .ends import OTHER_CODES, counted, in_words, printable
from .signals import Interrupts

if TYPE_CHECKING:
    from ..fleet import Worker

EXIT_CODES = (
    f"Exit codes: 0 stopped by a signal, with nothing left to do; {OTHER_CODES}; 130 stopped by Ctrl-C (143 by "
    "SIGTERM) with prompts left to other workers."
)

_SOON = 1.0  # for what should be there at once
_LAST_WORDS = 5.0  # for the broker to hear that orders are given back


@with_broker
def worker(
    broker: BrokerOptions,
    servers: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="A ComfyUI server; without it $ACOMFY_URL, else port 8188 here. Can be given again.",
        ),
    ] = None,
    group: Annotated[str, typer.Option(metavar="NAME", help="Whose prompts it takes.")] = "default",
    advertise: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="The address of a --server for other machines, in the same order."),
    ] = None,
    in_flight: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts that a server is given at once.")] = 1,
    results: Annotated[
        str,
        typer.Option(
            metavar="store|server", help="Where files go: into the broker's store, or they stay on their servers."
        ),
    ] = "store",
    max_attempts: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often a prompt may be lost before it is put aside.")
    ] = 3,
    lease: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=1.0,
            help="As the submitters' (30 unless they say): after so long without a sign of life another takes over.",
        ),
    ] = 30.0,
    poll_interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Between looks at the queue of a server without work.")
    ] = 2.0,
    replicas: Annotated[
        int, typer.Option(metavar="N", min=1, max=5, help="How many servers of a cluster of brokers keep each message.")
    ] = 1,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long running prompts are waited for at the end.")
    ] = 25.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell of each prompt.")] = False,
) -> None:
    """Take prompts of a fleet to ComfyUI servers, one when a GPU is free, until Ctrl-C.

    It may be killed at any moment: another worker takes over what it had. Ctrl-C lets running prompts end first. After
    the time of --grace, or another Ctrl-C, they are left to the next worker.
    """
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    with in_words():
        from ..fleet import Keeping, Worker

        try:
            made = Worker(
                addresses(servers, advertise),
                nats=broker.servers,
                name=broker.name,
                group=group,
                in_flight=in_flight,
                results=cast(Literal["store", "server"], results),  # anything else is refused
                max_attempts=max_attempts,
                lease=lease,
                poll_interval=poll_interval,
                keeping=Keeping(replicas=replicas),
                **broker.options,
            )
        except (ValueError, TypeError) as exc:
            raise UsageError(str(exc)) from None
        code = asyncio.run(_work(made, grace))
    raise typer.Exit(code)


async def _work(worker: Worker, grace: float) -> int:
    """Work until a signal comes, and give the exit code."""
    with Interrupts(worker.stop) as interrupts:
        async with worker:
            for info in worker.infos():
                print(printable(f"{info.worker} takes prompts of the group {info.group} to {info.server}"), flush=True)
            running = asyncio.create_task(worker.run())
            telling = asyncio.create_task(_tell_of_broker(worker))
            stopping = asyncio.create_task(interrupts.first.wait())
            try:
                await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
                left = not running.done() and await _left_behind(worker, running, grace)
            finally:
                await _cancelled(telling, stopping, running)
            if not running.cancelled() and running.done():
                running.result()
        return (interrupts.exit_code or 0) if left else 0


async def _left_behind(worker: Worker, running: asyncio.Task[None], grace: float) -> bool:
    """Wait for what runs, after the first signal; tell whether prompts had to be left."""

    def prompts() -> int:
        return sum(len(info.running) for info in worker.infos())

    if prompts():
        note(f"waiting up to {grace:g} s for {counted(prompts(), 'prompt')}; Ctrl-C again leaves at once")
    await asyncio.wait([running], timeout=grace if prompts() else min(grace, _SOON))
    count = 0 if running.done() else prompts()
    if count:
        note(f"left {counted(count, 'prompt')} to other workers")
    return bool(count)


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait a while for their end: a broker that is away must not keep this from ending."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=_LAST_WORDS)


async def _tell_of_broker(worker: Worker) -> None:
    """Say when the broker is away, at the beginning or later, and when it is there again."""
    away = False
    while True:
        await asyncio.sleep(_SOON)
        if worker.broker.connected is away:
            away = not away
            broker = worker.broker
            note(f"waiting for the broker: {broker.trouble}" if away else f"the broker {broker.shown} is there")


def note(text: str) -> None:
    """Say something on the side."""
    print(f"acomfy: {printable(text)}", file=sys.stderr, flush=True)


def log_to_stderr(level: int) -> None:
    """Have acomfy's log written to stderr from a level on, and warnings of what it uses."""
    handler = logging.StreamHandler()
    handler.setFormatter(Plain("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("acomfy").setLevel(level)


class Plain(logging.Formatter):
    """What is logged may come from a server: it must order the terminal nothing."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def addresses(servers: list[str] | None, advertise: list[str] | None) -> list[dict[str, str]]:
    """Give the arguments of each server.

    Raises:
        UsageError: They do not fit together, or one is no address, or one for others holds what is secret.
    """
    urls = [server_url(server) for server in servers or [""]]
    if len({str(base_url(url)) for url in urls}) < len(urls):
        raise UsageError("the same --server is given twice; --in-flight gives it more prompts at once")
    if advertise and len(advertise) != len(urls):
        raise UsageError(f"--advertise is given once for each --server: {len(urls)} times, not {len(advertise)}")
    found = [{"url": url} for url in urls]
    for one, address in zip(found, advertise or (), strict=False):
        one["advertise"] = _for_others(address)
    return found


def _for_others(address: str) -> str:
    try:
        return url_for_others(address)
    except ValueError as exc:
        raise UsageError(f"--advertise: {exc}") from None

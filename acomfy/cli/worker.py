"""``acomfy worker``: runs beside ComfyUI servers and takes prompts of a fleet to them."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import UsageError, server_url
from .ends import OTHER_CODES, in_words
from .signals import Interrupts

if TYPE_CHECKING:
    from ..fleet import Worker

EXIT_CODES = f"Exit codes: 0 stopped by a signal, with nothing left to do; {OTHER_CODES}."

NATS_URL = "nats://127.0.0.1:4222"

Nats = Annotated[
    str | None,
    typer.Option("--nats", metavar="URL", help=f"The broker; else NATS_URL, else {NATS_URL}. Commas between several."),
]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="The fleet's name on the broker.")]
Creds = Annotated[
    Path | None, typer.Option("--creds", metavar="FILE", exists=True, dir_okay=False, help="A NATS credentials file.")
]
NKey = Annotated[
    Path | None, typer.Option("--nkey", metavar="FILE", exists=True, dir_okay=False, help="A file with an nkey seed.")
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", metavar="FILE", exists=True, dir_okay=False, help="Who may sign its certificate."
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", metavar="FILE", exists=True, dir_okay=False, help="Our certificate, with its key."),
]
TlsKey = Annotated[
    Path | None,
    typer.Option("--tls-key", metavar="FILE", exists=True, dir_okay=False, help="Its key, in a file of its own."),
]


def worker(
    servers: Annotated[
        list[str] | None,
        typer.Option(
            "--server", metavar="URL", help="A ComfyUI; else ACOMFY_URL, else port 8188 here. Can be given again."
        ),
    ] = None,
    nats: Nats = None,
    name: Name = "acomfy",
    group: Annotated[str, typer.Option(metavar="NAME", help="Whose prompts it takes.")] = "default",
    advertise: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="The address of a --server for other machines, in the same order."),
    ] = None,
    in_flight: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts that a server is given at once.")] = 1,
    results: Annotated[
        str, typer.Option(metavar="store|server", help="Where files go: into the broker's store, or nowhere.")
    ] = "store",
    max_attempts: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often a prompt may be lost before it is put aside.")
    ] = 3,
    lease: Annotated[
        float, typer.Option(metavar="SECONDS", min=1.0, help="After so long without a sign of life another takes over.")
    ] = 30.0,
    replicas: Annotated[int, typer.Option(metavar="N", min=1, max=5, help="Copies that a cluster keeps.")] = 1,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long running prompts are waited for at the end.")
    ] = 25.0,
    creds: Creds = None,
    nkey: NKey = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell of each prompt.")] = False,
) -> None:
    """Take prompts of a fleet to ComfyUI servers, one when a GPU is free, until Ctrl-C.

    It may be killed at any moment: another worker takes over what it had. Ctrl-C lets running prompts end first; after
    --grace, or another Ctrl-C, they are left to the next worker.
    """
    from ..fleet import Keeping, Worker

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    with in_words():
        made = _made(
            Worker,
            addresses(servers, advertise),
            nats=nats_urls(nats),
            name=name,
            group=group,
            in_flight=in_flight,
            results=results,
            max_attempts=max_attempts,
            lease=lease,
            keeping=Keeping(replicas=replicas),
            **connect_options(creds, nkey, tls_ca, tls_cert, tls_key),
        )
        asyncio.run(_work(made, grace))


def _made(kind: Any, *args: Any, **options: Any) -> Any:
    try:
        return kind(*args, **options)
    except (ValueError, TypeError) as exc:
        raise UsageError(str(exc)) from None


async def _work(worker: Worker, grace: float) -> None:
    async with worker:
        with Interrupts(on_first=worker.stop) as interrupts:
            for info in worker.infos():
                print(f"{info.worker} takes prompts of the group {info.group} to {info.server}", flush=True)
            running = asyncio.create_task(worker.run())
            stopping = asyncio.create_task(interrupts.first.wait())
            await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await asyncio.wait([running], timeout=grace)
            if not running.done():
                running.cancel()
            stopping.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.result()


def addresses(servers: list[str] | None, advertise: list[str] | None) -> list[dict[str, str]]:
    """Give the arguments of each server.

    Raises:
        UsageError: They do not fit together, or one is no address.
    """
    urls = [server_url(server) for server in servers or [""]]
    if advertise and len(advertise) != len(urls):
        raise UsageError(f"--advertise is given once for each --server: {len(urls)} times, not {len(advertise)}")
    found = [{"url": url} for url in urls]
    for one, address in zip(found, advertise or (), strict=False):
        one["advertise"] = address
    return found


def nats_urls(option: str | None) -> list[str]:
    """Choose the broker: the option, else ``NATS_URL``, else this machine."""
    return [url.strip() for url in (option or os.environ.get("NATS_URL") or NATS_URL).split(",") if url.strip()]


def connect_options(
    creds: Path | None, nkey: Path | None, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> dict[str, Any]:
    """Give the arguments of ``nats.connect`` for what was said of credentials.

    Raises:
        UsageError: A certificate cannot be used.
    """
    options: dict[str, Any] = {}
    if creds is not None:
        options["user_credentials"] = os.fspath(creds)
    if nkey is not None:
        options["nkeys_seed"] = os.fspath(nkey)
    if tls_ca is not None or tls_cert is not None:
        import ssl

        try:
            context = ssl.create_default_context(cafile=tls_ca)
            if tls_cert is not None:
                context.load_cert_chain(tls_cert, tls_key)
        except (OSError, ssl.SSLError) as exc:
            raise UsageError(f"the certificate cannot be used: {exc}") from None
        options["tls"] = context
    return options

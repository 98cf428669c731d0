"""What the commands of a fleet are told of its broker: the options that they share, given to them as one value."""

from __future__ import annotations

import functools
import inspect
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .arguments import UsageError
from .ends import in_words

NATS_URL = "nats://127.0.0.1:4222"

_BROKER = "broker"


def _file(name: str, text: str) -> Any:
    return typer.Option(name, metavar="FILE", exists=True, dir_okay=False, help=text)


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Which broker, which fleet on it, and how to get in.

    Attributes:
        servers: The broker's addresses; user and password may be in them.
        name: The fleet's name.
        options: Arguments of ``nats.connect``.
    """

    servers: list[str] = field(repr=False)
    name: str
    options: dict[str, Any] = field(repr=False)


def read_broker_options(
    nats: Annotated[
        str | None,
        typer.Option(
            "--nats", metavar="URL", help=f"The broker; without it $NATS_URL, else {NATS_URL}. Commas between several."
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The fleet's name on the broker.")] = "acomfy",
    creds: Annotated[Path | None, _file("--creds", "A NATS credentials file.")] = None,
    nkey: Annotated[Path | None, _file("--nkey", "A file with an nkey seed.")] = None,
    tls_ca: Annotated[Path | None, _file("--tls-ca", "Who may sign the broker's certificate.")] = None,
    tls_cert: Annotated[Path | None, _file("--tls-cert", "Our own certificate, with its key.")] = None,
    tls_key: Annotated[Path | None, _file("--tls-key", "Its key, if that is in a file of its own.")] = None,
) -> BrokerOptions:
    """Read the options.

    Raises:
        UsageError: A certificate cannot be used.
    """
    options: dict[str, Any] = {}
    if creds is not None:
        options["user_credentials"] = os.fspath(creds)
    if nkey is not None:
        options["nkeys_seed"] = os.fspath(nkey)
    if tls_key is not None and tls_cert is None:
        raise UsageError("--tls-key is the key of a certificate: give that with --tls-cert")
    if tls_ca is not None or tls_cert is not None:
        options["tls"] = _tls(tls_ca, tls_cert, tls_key)
    return BrokerOptions(addresses(nats), name, options)


def addresses(option: str | None) -> list[str]:
    """Choose the broker: the option, else ``NATS_URL``, else this machine."""
    return [url.strip() for url in (option or os.environ.get("NATS_URL") or NATS_URL).split(",") if url.strip()]


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"the certificate cannot be used: {exc}") from None
    return context


def with_broker(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the broker, in the place of its parameter ``broker``, which is what they say."""
    shared = inspect.signature(read_broker_options, eval_str=True).parameters
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != _BROKER]

    @functools.wraps(command)
    def called(**arguments: Any) -> None:
        with in_words():
            broker = read_broker_options(**{name: arguments.pop(name) for name in shared})
        command(**arguments, broker=broker)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared.values())]
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called

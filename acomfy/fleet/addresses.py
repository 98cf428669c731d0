"""Addresses of NATS servers, apart from what is secret in them; and what may be said of the way to them."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from nats.aio.client import Client as NATS

_SCHEMES = ("nats", "tls", "ws", "wss")
_OWN = {"self", "servers", "error_cb", "reconnected_cb", "closed_cb", "disconnected_cb", "allow_reconnect"}
_LOGINS = {"user", "password", "token", "user_credentials", "nkeys_seed", "nkeys_seed_str", "user_jwt_cb"}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the broker is.

    Attributes:
        urls: Without credentials, if they could be said apart from them.
        login: Arguments of ``nats.connect``: the user and password, or the token, that stood in them.
        shown: For messages: without anything that is secret.
    """

    urls: list[str] = field(repr=False)
    login: dict[str, str] = field(repr=False)
    shown: str


def read_addresses(servers: str | Sequence[str]) -> Addresses:
    """Read addresses as users give them.

    nats-py takes user and password from an address as they stand there, with ``%40`` for ``@``, and gives none to
    those servers of a cluster that it hears of later. So they are taken out here.

    Raises:
        ValueError: One is no address of NATS. What it says holds no secret.
    """
    given = [servers] if isinstance(servers, str) else list(servers)
    if not given:
        raise ValueError("servers are addresses of NATS, for example 'nats://127.0.0.1:4222'")
    parts = [_parsed(url) for url in given]
    schemes = {part.scheme in ("ws", "wss") for part in parts}
    if len(schemes) > 1:
        raise ValueError("addresses of NATS are either all WebSockets (ws, wss), or none is")
    shown = ", ".join(_place(part) for part in parts)
    logins = [_login(part) for part in parts if part.username is not None]
    if not logins or any(login != logins[0] for login in logins):
        return Addresses([part.geturl() for part in parts], {}, shown)
    urls = [part._replace(netloc=_place(part).partition("://")[2]).geturl() for part in parts]
    return Addresses(urls, logins[0], shown)


def _parsed(url: object) -> SplitResult:
    if not isinstance(url, str):
        raise ValueError(f"an address of NATS is a string, not {type(url).__name__}")
    parts = urlsplit("")
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        known = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(
            "an address of NATS is like 'nats://host:4222' (or tls, ws, wss); in user and password, characters like "
            "'@', ':' and '/' are written as %40, %3A and %2F"
        )
    return parts


def _login(parts: SplitResult) -> dict[str, str]:
    user = unquote(parts.username or "")
    if parts.password is None:
        return {"token": user}
    return {"user": user, "password": unquote(parts.password)}


def _place(parts: SplitResult) -> str:
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}"


def check_connect_options(options: Mapping[str, Any]) -> None:
    """Refuse what ``nats.connect`` does not take, or what the fleet itself gives it.

    Raises:
        TypeError: There is such an argument, or it is nothing that it takes. What it says holds no secret.
    """
    known = set(inspect.signature(NATS.connect).parameters) - _OWN
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"there is no argument {', '.join(unknown)}, neither of this nor of nats.connect")
    tls = options.get("tls")
    if tls is not None and not isinstance(tls, ssl.SSLContext):
        raise TypeError(f"tls is an ssl.SSLContext, not {type(tls).__name__}")


def connect_options(addresses: Addresses, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of ``nats.connect``: what stood in the addresses, unless another login is said."""
    login = {} if _LOGINS & set(options) else addresses.login
    return {**login, **options}


def check_credentials(path: object) -> None:
    """Look into a credentials file, which nats-py reads without end if there is none in it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no credentials file.
    """
    if isinstance(path, tuple):
        return
    text = str(path)  # a UserString holds the credentials themselves
    if not hasattr(path, "data"):
        with open(text, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
        raise ValueError("user_credentials is no credentials file: one has a NATS USER JWT and a USER NKEY SEED")

"""Who may come in: the one owner of the credentials of a server, which says what goes with each request to it.

HTTP and WebSocket get the same: headers, cookies, query parameters, certificates, proxy. All of it is for the
configured address alone: redirects to others are not followed, or followed without any of it. Nothing of it is shown in
a repr or pickled, and `Access.scrub` takes it out of whatever a server or a library says about a request.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import ssl as ssl_module
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from json import dumps
from typing import Any, NoReturn, TypeAlias
from urllib.parse import quote, quote_plus

import aiohttp
from yarl import URL

from .errors import ServerUnreachable
from .profiles import Profile, choose, is_cloud

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]

_HARMLESS = {"accept", "accept-language", "comfy-user", "content-type", "user-agent"}
_SHORTEST = 4
"""Characters of the shortest secret that is taken out of texts: a shorter one would be found everywhere."""
_REMEMBERED = 4
"""Refused tokens that are still taken out of texts."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_HEADER_VALUE = re.compile(r"[\x00\r\n]")
_NO_COOKIE = re.compile(r"[\x00-\x20\x7f;,\"\\]")


class Secret(str):
    """A text that a repr does not show, so that neither does a traceback with the values of variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class SecretBytes(bytes):
    """Bytes of which a repr shows the number alone."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


class Access:
    """What goes with the requests to one server.

    Args:
        url: The server's address, with a path prefix if it has one. User and password in it are for basic auth, and
            its query parameters go with every request.
        headers: Sent with every request.
        auth: User and password for basic auth.
        token: A bearer token, or what gives one: called before the first request, and again when the server answers
            401; may be a coroutine function.
        cookies: Sent with every request, besides those that the server sets.
        params: Query parameters of every request.
        api_key: The key of Comfy Cloud.
        api_key_comfy_org: The key of a Comfy account, for partner nodes.
        ssl: True checks certificates, False does not; or an ``ssl.SSLContext``.
        proxy: Address of an http or https proxy; user and password in it are for the proxy.
        trust_env: Take the proxy from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.
        unix_socket: Path of a unix socket to connect to, whatever the host of ``url``.
        profile: ``comfyui`` or ``cloud``; None: by the host.

    Attributes:
        base: The server's address, without user, password and query.
        profile: What kind of server it is.
        headers: Sent with every request.
        params: Query parameters of every request.
        options: What else aiohttp's request and ws_connect are to be given.
        account: What of ``extra_data`` goes with each prompt and must not be kept.

    Raises:
        ValueError: One of them cannot be used, or two of them are credentials of one kind. The message holds no secret.
        TypeError: One of them is of a wrong type.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        token: Token | None = None,
        cookies: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        api_key: str | None = None,
        api_key_comfy_org: str | None = None,
        ssl: ssl_module.SSLContext | bool = True,
        proxy: str | None = None,
        trust_env: bool = False,
        unix_socket: str | os.PathLike[str] | None = None,
        profile: str | None = None,
    ) -> None:
        given = base_url(url)
        self.base = given.with_user(None)
        if is_cloud(given.host):
            self.base = self.base.with_scheme("https")
        self.profile: Profile = choose(given.host, profile)
        self._secrets: list[str] = []
        self._provider = token if callable(token) else None
        self._token: str | None = None
        self._refused: deque[str] = deque(maxlen=_REMEMBERED)
        self._generation = 0
        self._failure: Exception | None = None
        self._refreshing = asyncio.Lock()
        self._jar: aiohttp.CookieJar | None = None
        self.headers: dict[str, str] = {}
        self._add_headers(headers or {})
        self._add_credentials(given, auth, token, api_key)
        self._add_cookies(cookies or {})
        self.params = {name: Secret(value) for name, value in {**_query(url), **_checked_params(params or {})}.items()}
        self.account = {} if api_key_comfy_org is None else {"api_key_comfy_org": Secret(api_key_comfy_org)}
        self._socket_params = {} if api_key is None else {self.profile.key_parameter: Secret(api_key)}
        if not isinstance(ssl, bool | ssl_module.SSLContext):
            raise TypeError(f"ssl is True, False or an ssl.SSLContext, not {type(ssl).__name__}")
        self.options: dict[str, Any] = {"ssl": ssl}
        self.unix_socket = None if unix_socket is None else os.fspath(unix_socket)
        proxied = _proxy_url(proxy) if proxy is not None else (_environment_proxy(self.base) if trust_env else None)
        if proxied is not None:
            if self.unix_socket is not None:
                raise ValueError("a unix socket cannot be reached through a proxy; give one of them")
            self._add_proxy(proxied)

    def __repr__(self) -> str:
        return f"<Access to {self.base}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are not pickled; make a new Client where it is needed")

    # --- Reading what was given ------------------------------------------------------------------------------------

    def _add_headers(self, headers: Mapping[str, str]) -> None:
        """Add headers, refusing at once what could not be sent, in words that do not hold the value."""
        for name, value in headers.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"the name and the value of header {name!r} are texts, not {type(value).__name__}")
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header")
            if _NO_HEADER_VALUE.search(value):
                raise ValueError(f"the value of header {name!r} holds a line break")
            if any(name.lower() == other.lower() for other in self.headers):
                raise ValueError(f"header {name!r} is given twice")
            self.headers[name] = value if name.lower() in _HARMLESS else Secret(value)

    def _add_credentials(
        self, given: URL, auth: tuple[str, str] | None, token: Token | None, api_key: str | None
    ) -> None:
        in_url = None if given.user is None else (given.user, given.password or "")
        in_headers = any(name.lower() == "authorization" for name in self.headers)
        places = {"the address": in_url, "auth": auth, "token": token, "the Authorization header": in_headers or None}
        if len(found := [place for place, value in places.items() if value is not None]) > 1:
            raise ValueError(f"credentials are in {' and in '.join(found)}; give them once")
        if (basic := auth or in_url) is not None:
            user, password = _checked_auth(basic)
            self._add_headers({"Authorization": _basic(user, password)})
            self._secrets.append(Secret(password))
        elif isinstance(token, str):
            self._set_token(token)
        elif token is not None and self._provider is None:
            raise TypeError(f"token is a text or a function that gives one, not {type(token).__name__}")
        if api_key is None:
            return
        if not self.profile.key_header:
            raise ValueError("api_key is Comfy Cloud's; other servers take token= or headers=")
        self._add_headers({self.profile.key_header: api_key})

    def _add_cookies(self, cookies: Mapping[str, str]) -> None:
        for name, value in cookies.items():
            if not _HEADER_NAME.fullmatch(name) or _NO_COOKIE.search(value):
                raise ValueError(f"the name or the value of cookie {name!r} has characters that no cookie may have")
        if cookies:
            name = next((name for name in self.headers if name.lower() == "cookie"), "Cookie")
            pairs = [f"{name}={value}" for name, value in cookies.items()]
            self.headers[name] = Secret("; ".join([*filter(None, [self.headers.get(name)]), *pairs]))
            self._secrets += map(Secret, cookies.values())

    def _add_proxy(self, given: URL) -> None:
        self.options["proxy"] = given.with_user(None)
        if given.user is None:
            return
        value = _basic(given.user, given.password or "")
        self._secrets += [Secret(given.password or ""), Secret(value.partition(" ")[2])]
        if self.base.scheme == "https":  # the proxy sees the CONNECT alone
            self.options["proxy_headers"] = {"Proxy-Authorization": Secret(value)}
        else:  # it reads each request
            self._add_headers({"Proxy-Authorization": value})

    # --- Tokens ----------------------------------------------------------------------------------------------------

    @property
    def authorizes(self) -> bool:
        """Whether requests carry an ``Authorization``, now or once there is a token."""
        return self._provider is not None or any(name.lower() == "authorization" for name in self.headers)

    @property
    def wants_token(self) -> bool:
        """Whether `ready` must be awaited before a request."""
        return self._provider is not None and self._token is None

    @property
    def generation(self) -> int | None:
        """Which token requests carry now; None when there is none that could be renewed."""
        return None if self._provider is None else self._generation

    async def ready(self, timeout: float | None) -> None:
        """Get the first token.

        Args:
            timeout: Seconds that it may take; None for no limit.

        Raises:
            ServerUnreachable: What gives tokens failed.
        """
        await self.renew(self._generation, timeout)

    async def renew(self, generation: int, timeout: float | None) -> None:
        """Get another token than the one that a server refused; those who ask at once share the new one.

        Cancelling it is safe: the next one who asks goes on.

        Args:
            timeout: As for `ready`.

        Raises:
            ServerUnreachable: What gives tokens failed.
        """
        async with self._refreshing:
            if self._generation == generation:
                self._failure = await self._fetch_token(timeout)
                self._generation += 1
        if self._failure is not None:
            reason = f"no access token could be had ({type(self._failure).__name__})"
            raise ServerUnreachable(str(self.base), reason, hint="see what gives the tokens") from self._failure

    async def _fetch_token(self, timeout: float | None) -> Exception | None:
        """Ask for a token; give what went wrong."""
        if self._provider is None:
            raise AssertionError("only what has a provider has generations")
        if self._token is not None:
            self._refused.append(self._token)
        self._token = None
        self.headers.pop("Authorization", None)
        try:
            token = self._provider()
            if inspect.isawaitable(token):
                async with asyncio.timeout(timeout):
                    token = await token
            if not isinstance(token, str):
                raise TypeError(f"a token is a text, not {type(token).__name__}")
            self._set_token(token)
        except Exception as exc:  # of the caller's own making
            return exc
        except asyncio.CancelledError:  # of a task that it waited for, unless it is ours
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return InterruptedError("what it waited for was cancelled")
        return None

    def _set_token(self, token: str) -> None:
        self._add_headers({"Authorization": f"Bearer {token}"})
        self._token = Secret(token)

    # --- What is sent ----------------------------------------------------------------------------------------------

    def with_own(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        """Give the headers of a request: everybody's, and its own."""
        return {**self.headers, **headers} if headers else self.headers

    def socket_url(self, params: Mapping[str, str]) -> URL:
        """Give the address of the WebSocket."""
        own: dict[str, str] = {**self._socket_params}
        if not own and self.profile.key_parameter and self._token is not None:
            own = {self.profile.key_parameter: self._token}
        url = self.base / "ws" % {**self.params, **own, **params}
        return url.with_scheme({"http": "ws", "https": "wss"}[url.scheme])

    def connector(self, *, reuse: bool = True) -> aiohttp.BaseConnector:
        """Make what opens connections to the server; without ``reuse`` each is for one request."""
        if self.unix_socket is not None:
            return aiohttp.UnixConnector(self.unix_socket, limit=0, force_close=not reuse)
        return aiohttp.TCPConnector(limit=0, force_close=not reuse)

    def cookie_jar(self) -> aiohttp.CookieJar:
        """Give what keeps the cookies that the server sets, for HTTP and WebSocket alike."""
        if self._jar is None:
            self._jar = aiohttp.CookieJar(unsafe=True)  # unsafe: also from a server that is named by its IP address
        return self._jar

    def scrub(self, text: str) -> str:
        """Take secrets out of a text that a server or a library made."""
        for secret in sorted(self._forms(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return re.sub(r"//[^\s/@]*@", "//***@", text)

    def _forms(self) -> set[str]:
        """Give all that is secret, as it is and as an address would hold it."""
        values = [value for name, value in self.headers.items() if name.lower() not in _HARMLESS]
        values += [value.partition(" ")[2] for value in values]
        values += [
            *self.params.values(),
            *self._socket_params.values(),
            *self.account.values(),
            *self._secrets,
            *self._refused,
        ]
        return {form for value in values if len(value) >= _SHORTEST for form in _written(value)}


def base_url(url: str) -> URL:
    """Read a server's address: ``http`` when it names no scheme, with its path prefix, without a trailing slash.

    Raises:
        ValueError: It is no http or https address.
    """
    with suppress(ValueError):  # yarl's own messages may quote the password
        parsed = _parsed(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed.with_path(parsed.raw_path.rstrip("/"), encoded=True).with_query(None)
    shown = re.sub(r"^([a-z]*://)?.*@", r"\1***@", url, flags=re.DOTALL | re.IGNORECASE).partition("?")[0]
    raise ValueError(f"a server's address looks like http://127.0.0.1:8188, not {shown!r}")


def url_for_others(url: str) -> str:
    """Read an address that everybody is told, as `base_url`.

    Raises:
        ValueError: It is none, or a user or password is in it.
    """
    read = base_url(url)
    if read.user or read.password:
        raise ValueError("it is told to everybody: give it without user and password")
    return str(read).rstrip("/")


def _parsed(url: str) -> URL:
    return URL(url if "://" in url else f"http://{url}")


def _query(url: str) -> dict[str, str]:
    return dict(_parsed(url).query)


def _written(secret: str) -> tuple[str, ...]:
    """Give a secret as it is, and as addresses, JSON and HTML hold it."""
    from html import escape  # 1 ms that only an error pays

    in_address = URL.build(query={"": secret}).raw_query_string.removeprefix("=")
    quoted = quote(secret), quote(secret, safe=""), quote_plus(secret)
    return (secret, in_address, *quoted, dumps(secret)[1:-1], dumps(secret, ensure_ascii=False)[1:-1], escape(secret))


def _basic(user: str, password: str) -> str:
    if ":" in user:
        raise ValueError("the user's name in basic auth cannot hold a colon")
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def _checked_auth(auth: tuple[str, ...]) -> tuple[str, str]:
    """Take user and password out of a pair, or of an ``aiohttp.BasicAuth``, which holds its encoding too."""
    if not isinstance(auth, tuple) or len(auth) < 2 or not all(isinstance(part, str) for part in auth[:2]):
        raise TypeError("auth is a pair of texts: user and password")
    return auth[0], auth[1]


def _checked_params(params: Mapping[str, str]) -> dict[str, str]:
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"the name and the value of parameter {name!r} are texts, not {type(value).__name__}")
    return dict(params)


def _proxy_url(proxy: str) -> URL:
    with suppress(ValueError):
        parsed = URL(proxy if "://" in proxy else f"http://{proxy}")
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    raise ValueError("a proxy's address looks like http://user:password@host:3128; only http and https ones are known")


def _environment_proxy(base: URL) -> URL | None:
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    found = proxies.get(base.scheme) or proxies.get("all")
    return None if not found or (base.host and proxy_bypass(base.host)) else _proxy_url(found)

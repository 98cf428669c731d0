"""Send one request, understand refusals, open the WebSocket: all that `acomfy.api`'s routes stand on.

Every request passes its own timeouts, so that a caller's session with other defaults behaves the same:
`connect_timeout` for the connection, `read_timeout` for a silence while an answer is awaited or read; there is no limit
on the whole, which would cut a long transfer.

Raised by every method, unless it says otherwise: `ServerUnreachable` (no connection, or it broke), `HTTPError` and its
`AuthenticationError`, `PayloadTooLarge`, `ProtocolError` (the answer is not ComfyUI's). Cancelling any of them is safe;
what was sent may have reached the server all the same.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl as ssl_module
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from .errors import AuthenticationError, HTTPError, PayloadTooLarge, ProtocolError, ServerError, ServerUnreachable

_SHOWN_BYTES = 200
_FORBIDDEN = (
    "ComfyUI refuses requests whose Origin differs from its address (--enable-cors-header lifts that); "
    "else a proxy in front of it wants credentials"
)


def base_url(url: str) -> URL:
    """Read a server's address: ``http`` when it names no scheme, with its path prefix, without a trailing slash.

    Raises:
        ValueError: It is no http or https address.
    """
    with suppress(ValueError):  # yarl's own messages may quote the password
        parsed = URL(url if "://" in url else f"http://{url}")
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed.with_path(parsed.raw_path.rstrip("/"), encoded=True).with_query(None)
    shown_text = re.sub(r"^([a-z]*://)?.*@", r"\1***@", url.partition("?")[0])
    raise ValueError(f"a server's address looks like http://127.0.0.1:8188, not {shown_text!r}")


class Transport:
    """The way to one server: whatever is sent to it goes through here.

    Paths begin with a slash and are encoded already (`segment` writes a name as one part of them); parameters are not.

    Args:
        url: The server's address, with a path prefix if it has one; user and password in it are sent as basic auth.
        session: Gives the session to use; called for each request.
        headers: Sent with every request.
        ssl: As aiohttp takes it: True checks certificates, False does not, or an ``ssl.SSLContext``.
        connect_timeout: Seconds for opening a connection.
        read_timeout: Seconds of silence while an answer is awaited or read.

    Raises:
        ValueError: ``url`` is no http or https address, or both it and ``headers`` hold credentials.
    """

    def __init__(
        self,
        url: str,
        session: Callable[[], aiohttp.ClientSession],
        *,
        headers: Mapping[str, str] | None = None,
        ssl: ssl_module.SSLContext | bool = True,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
    ) -> None:
        self._base = base_url(url)
        self._session = session
        self._headers = dict(headers or {})
        if self._base.user is not None and "authorization" in map(str.lower, self._headers):
            raise ValueError("credentials are in the address and in the Authorization header; give them once")
        self._ssl = ssl
        self._handshake_timeout = connect_timeout + read_timeout
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=connect_timeout, sock_read=read_timeout
        )

    @property
    def url(self) -> str:
        """The server's address without credentials."""
        return str(shown(self._base))

    def __repr__(self) -> str:
        return f"<Transport to {self.url}>"

    # --- Reading ---------------------------------------------------------------------------------------------------

    async def get_json(
        self, path: str, params: Mapping[str, str] | None = None, *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Give the JSON that a route answers with."""
        return await read_json(await self.request("GET", path, params=params, headers=headers))

    async def get_object(
        self, path: str, params: Mapping[str, str] | None = None, *, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Give the JSON object that a route answers with; anything else is a `ProtocolError`."""
        answer = await self.get_json(path, params, headers=headers)
        if isinstance(answer, dict):
            return answer
        raise ProtocolError(f"GET {self.url}{path} was answered with {type(answer).__name__}, not an object")

    async def get_list(
        self, path: str, params: Mapping[str, str] | None = None, *, headers: Mapping[str, str] | None = None
    ) -> list[Any]:
        """Give the JSON array that a route answers with; anything else is a `ProtocolError`."""
        answer = await self.get_json(path, params, headers=headers)
        if isinstance(answer, list):
            return answer
        raise ProtocolError(f"GET {self.url}{path} was answered with {type(answer).__name__}, not an array")

    async def get_bytes(
        self, path: str, params: Mapping[str, str] | None = None, *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Give the body that a route answers with, as it is."""
        return await read_body(await self.request("GET", path, params=params, headers=headers))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Open an answer whose body is read by the caller, a part at a time; left unread, it costs the connection.

        What breaks while it is read is raised as by the other methods; the caller's own errors pass.

        Args:
            allowed: Statuses of 300 and above that are answers all the same, for example 304.
        """
        response = await self.request(method, path, params=params, headers=headers, allowed=allowed)
        try:
            async with response:
                yield response
        except aiohttp.ClientError as exc:  # no OSError: here it may be the caller's own, of the disk
            raise _unreachable(response.url, exc) from exc

    # --- Writing ---------------------------------------------------------------------------------------------------

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send JSON (None: no body) to a route whose answer tells nothing; ComfyUI's is most often empty."""
        await read_body(await self._send(method, path, body, params, headers))

    async def send_json(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send JSON (None: no body) to a route; give the JSON that it answers with, None when that is empty."""
        return await read_json(await self._send(method, path, body, params, headers), empty=True)

    async def _send(
        self,
        method: str,
        path: str,
        body: object,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        data = None if body is None else orjson.dumps(body)
        headers = headers if data is None else {"Content-Type": "application/json", **(headers or {})}
        return await self.request(method, path, params=params, data=data, headers=headers)

    async def upload(
        self,
        path: str,
        body: Callable[[], Any],
        *,
        method: str = "POST",
        size: int | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a large body as it is read; give the JSON of the answer, None when that is empty.

        Args:
            body: Makes the body, anew for each try: what aiohttp takes as ``data``, for example an
                ``aiohttp.MultipartWriter``, an ``aiohttp.payload.Payload`` or an asynchronous iterator of bytes.
            size: Its bytes, for the ``Content-Length`` where aiohttp cannot know it (an iterator) and for
                `PayloadTooLarge`; None: as aiohttp finds it, else it is sent in chunks.
        """
        if size is not None:
            headers = {"Content-Length": str(size), **(headers or {})}
        response = await self.request(method, path, params=params, data=body, headers=headers, size=size)
        return await read_json(response, empty=True)

    # --- The one way out -------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: bytes | Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (),
        size: int | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request; give its answer, whose body is still to be read, unless that is a refusal.

        Args:
            data: The body, or what makes it.
            allowed: Statuses of 300 and above that are answers all the same.
            size: Bytes of the body, for `PayloadTooLarge`; None: those of ``data``.
        """
        url = self._base.joinpath(path[1:], encoded=True)
        try:
            response = await _usable(self._session(), url).request(
                method,
                url,
                params=params,
                data=data() if callable(data) else data,
                headers={**self._headers, **headers} if headers else self._headers,
                ssl=self._ssl,
                timeout=self._timeout,
                allow_redirects=False,
                raise_for_status=False,
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise _unreachable(url, exc) from exc
        if response.status >= 300 and response.status not in allowed:
            async with response:
                raise await _refusal(response, method, len(data) if isinstance(data, bytes) else size)
        return response

    async def open_socket(
        self, session: aiohttp.ClientSession, client_id: str, *, heartbeat: float | None, max_message_size: int
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open the WebSocket of a client id (``/ws?clientId=``).

        Raises:
            ServerUnreachable: No connection, or none within ``connect_timeout`` and ``read_timeout``.
            HTTPError: The server, or a proxy, refused the upgrade.
        """
        url = self._base / "ws" % {"clientId": client_id}
        try:
            async with asyncio.timeout(self._handshake_timeout):  # ws_connect has no timeouts of its own
                return await _usable(session, url).ws_connect(
                    url.with_scheme({"http": "ws", "https": "wss"}[url.scheme]),
                    headers=self._headers,
                    ssl=self._ssl,
                    heartbeat=heartbeat,
                    max_msg_size=max_message_size,
                    decode_text=False,
                )
        except aiohttp.ClientResponseError as exc:
            raise _status_error(exc.status, "GET", str(shown(url)), "", None, "the WebSocket was refused") from None
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise _unreachable(url, exc) from exc


def shown(url: URL) -> URL:
    """Give an address that may be printed: without user, password and query."""
    return (url.with_user(None) if url.absolute else url).with_query(None)


async def refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Be a session's middleware that does not follow redirects, as ``ws_connect`` would: headers may be secrets."""
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
    return response


def _usable(session: aiohttp.ClientSession, url: URL) -> aiohttp.ClientSession:
    if session.closed:
        raise ServerUnreachable(str(shown(url)), "the session that the client was given is closed")
    return session


def segment(text: str) -> str:
    """Write a text as one path segment."""
    return quote(text, safe="")


# --- Reading answers -------------------------------------------------------------------------------------------------


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer to its end, which lets go of its connection, as does whatever keeps it from being read."""
    try:
        return await response.read()
    except aiohttp.ClientError as exc:
        raise _unreachable(response.url, exc) from exc


async def read_json(response: aiohttp.ClientResponse, *, empty: bool = False) -> Any:
    """Read a JSON body. ComfyUI writes it with Python's json: NaN and integers of any size occur.

    Args:
        empty: Give None for an empty body, which is an error otherwise.
    """
    body = await read_body(response)
    if empty and not body:
        return None
    with suppress(ValueError):
        return orjson.loads(body)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError(
            f"{response.method} {shown(response.url)} was answered with {response.status} and no JSON but "
            f"{response.content_type} that begins with {_excerpt(body)!r}: is this a ComfyUI server?"
        ) from None


def _excerpt(body: bytes) -> str:
    return body[:_SHOWN_BYTES].decode("utf-8", "replace")


async def _refusal(response: aiohttp.ClientResponse, method: str, size: int | None) -> ServerError:
    body = ""
    with suppress(aiohttp.ClientError):  # the status is known, however the body ends
        body = _excerpt(await response.content.read(4096))
    location = response.headers.get("Location")
    return _status_error(response.status, method, str(shown(response.url)), body, size, _hint(response, location))


def _hint(response: aiohttp.ClientResponse, location: str | None) -> str:
    if location is not None:
        return f"it redirects to {_target(location)}: is the address right, and is a login needed?"
    return f"the answer is {response.content_type}" if response.status >= 400 else ""


def _target(location: str) -> str:
    try:
        return str(shown(URL(location))) or "another address"
    except ValueError:
        return "another address"


def _status_error(status: int, method: str, url: str, body: str, size: int | None, hint: str) -> ServerError:
    if status == 413:
        match = re.search(r"size (\d+) exceeded", body)
        return PayloadTooLarge(size, int(match.group(1)) if match else None)
    if status == 401 or 300 <= status < 400:
        return AuthenticationError(status, method, url, body, hint)
    if status == 403:
        return AuthenticationError(status, method, url, body, _FORBIDDEN)
    return HTTPError(status, method, url, body, hint)


def _unreachable(url: URL, exc: Exception) -> ServerUnreachable:
    # aiohttp raises these two before a byte was sent; with any other the request may have arrived.
    not_sent = isinstance(exc, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    reason = str(exc) or ("it took too long" if isinstance(exc, TimeoutError) else type(exc).__name__)
    return ServerUnreachable(str(shown(url)), re.sub(r"//[^\s/]*@", "//***@", reason), maybe_sent=not not_sent)

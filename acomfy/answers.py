"""Read answers, bounded, and make errors of those that say no, that break off, or that never come.

No error of aiohttp's is chained: those hold the request with its headers. What a server or a library says is quoted
without the secrets that it may repeat.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any, NoReturn

import aiohttp
import orjson
from yarl import URL

from .access import Access
from .errors import ProtocolError, ServerError, ServerUnreachable
from .refusals import excerpt, refusal
from .retry import read_date, read_retry_after

_REFUSAL_BYTES = 4096
_REASON_LENGTH = 300
_HINT = "is ComfyUI running there, and is the address right?"
_HINTS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientProxyConnectionError, "that is the proxy: is its address right?"),
    (aiohttp.ClientConnectorCertificateError, "ssl=False takes a self-signed server, an ssl.SSLContext knows its own"),
    (aiohttp.ClientSSLError, "does the server speak TLS there, or is it http://?"),
)


class Answers:
    """Understand the answers of one server.

    Args:
        access: Knows what must not be shown.
        timeout: What requests were sent with.
        max_answer_size: Bytes of the largest answer that is kept in memory, decompressed.
    """

    def __init__(self, access: Access, timeout: aiohttp.ClientTimeout, max_answer_size: int) -> None:
        self._access = access
        self._timeout = timeout
        self._max_answer_size = max_answer_size

    async def read_body(self, response: aiohttp.ClientResponse) -> bytes:
        """Read an answer to its end, which lets go of its connection, as does whatever keeps it from being read.

        Raises:
            ProtocolError: It is larger than ``max_answer_size``.
        """
        try:
            length = response.content_length
            if length is not None and length <= self._max_answer_size and "Content-Encoding" not in response.headers:
                arrived = response.content.is_eof()  # with its head, as most answers do: 3 us less
                return response.content.read_nowait() if arrived else await response.read()
            return await self._read_bounded(response)
        except (aiohttp.ClientError, TimeoutError) as exc:
            failure = self.unreachable(response.url, exc)
        raise failure

    async def _read_bounded(self, response: aiohttp.ClientResponse) -> bytes:
        """Read what may be larger than it says: compressed, in chunks, or up to the end of the connection."""
        limit, length = self._max_answer_size, response.content_length
        if length is not None and length > limit:
            self._refuse_size(response, f"{length} bytes")
        body = bytearray()
        async with response:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    self._refuse_size(response, "more")
        return bytes(body)

    def _refuse_size(self, response: aiohttp.ClientResponse, size: str) -> NoReturn:
        response.close()
        raise ProtocolError(
            f"{response.method} {shown(response.url)} was answered with {size}, over the limit of "
            f"{self._max_answer_size} bytes (max_answer_size)"
        )

    async def read_json(self, response: aiohttp.ClientResponse, *, empty: bool = False) -> Any:
        """Read a JSON body. ComfyUI writes it with Python's json: NaN and integers of any size occur.

        Args:
            empty: Give None for an empty body, which is an error otherwise.
        """
        body = await self.read_body(response)
        if empty and not body:
            return None
        with suppress(ValueError):
            return orjson.loads(body)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            pass
        raise ProtocolError(
            f"{response.method} {shown(response.url)} was answered with {response.status} and no JSON but "
            f"{response.content_type} that begins with {excerpt(self._quotable(body))!r}: is this a ComfyUI server?"
        )

    # --- Refusals --------------------------------------------------------------------------------------------------

    async def _beginning(self, response: aiohttp.ClientResponse) -> bytearray:
        """Read so much of a body as is worth quoting; the status is known, however it ends."""
        body = bytearray()
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(self._timeout.sock_read):
                while len(body) < _REFUSAL_BYTES and (part := await response.content.read(_REFUSAL_BYTES)):
                    body += part
        return body

    async def no_file(self, response: aiohttp.ClientResponse) -> ProtocolError:
        """Make the error of a page, or nothing, in the place of a file."""
        body = await self._beginning(response)
        return ProtocolError(
            f"{response.method} {shown(response.url)} was answered with {response.status} and no file but "
            f"{response.content_type} that begins with {excerpt(self._quotable(body))!r}: a proxy's page, or a login?"
        )

    async def refusal(self, response: aiohttp.ClientResponse, method: str, size: int | None) -> ServerError:
        """Make the error of an answer that says no."""
        body, headers = await self._beginning(response), response.headers
        location = headers.get("Location")
        now = read_date(headers.get("Date"))
        return refusal(
            response.status,
            method,
            str(shown(response.url)),
            body=self._quotable(body),
            content_type=response.content_type if "Content-Type" in headers else "",
            redirects_to=None if location is None else self._access.scrub(_target(location)),
            retry_after=read_retry_after(headers.get("Retry-After"), time.time() if now is None else now),
            size=size,
        )

    def _quotable(self, body: bytes | bytearray) -> bytes:
        """Take the secrets out of the beginning of a body, before it is cut where one of them might stand."""
        return self._access.scrub(body[:_REFUSAL_BYTES].decode("utf-8", "replace")).encode("utf-8", "replace")

    def failed(self, method: str, url: URL, exc: Exception) -> ServerError:
        """Make the error of a request without an answer, or with one that aiohttp itself took for a refusal."""
        # aiohttp raises its ClientResponseError, with the headers, for an answer; without, for what is no HTTP.
        if not isinstance(exc, aiohttp.ClientResponseError) or exc.headers is None:
            return self.unreachable(url, exc)
        hint = ""
        if exc.status not in (401, 402, 403, 407):
            at = "the proxy did not let it through" if isinstance(exc, aiohttp.ClientHttpProxyError) else ""
            at = "the WebSocket was refused" if isinstance(exc, aiohttp.WSServerHandshakeError) else at
            hint = f"{at}: {exc.message}" if at and exc.message else at
        location = exc.headers.get("Location") if 300 <= exc.status < 400 else None
        target = None if location is None else self._access.scrub(_target(location))
        return refusal(exc.status, method, str(shown(url)), redirects_to=target, hint=self._access.scrub(hint))

    def unreachable(self, url: URL, exc: Exception) -> ServerUnreachable:
        """Make the error of a connection that could not be made, or that broke."""
        # aiohttp raises these two before a byte was sent; with any other the request may have arrived.
        not_sent = isinstance(exc, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        reason = self._access.scrub(self._reason(exc))[:_REASON_LENGTH]
        hint = next((hint for kind, hint in _HINTS if isinstance(exc, kind)), _HINT)
        failure = ServerUnreachable(str(shown(url)), reason, maybe_sent=not not_sent, hint=hint)
        if isinstance(cause := getattr(exc, "os_error", None), OSError):
            failure.__cause__ = cause
        return failure

    def _reason(self, exc: Exception) -> str:
        """Say what went wrong; aiohttp's own words for timeouts hold the address with its query."""
        if isinstance(exc, aiohttp.ConnectionTimeoutError):
            return f"no connection within {self._timeout.sock_connect:g} s"
        if isinstance(exc, aiohttp.SocketTimeoutError):
            return f"it was silent for {self._timeout.sock_read:g} s"
        if isinstance(exc, TimeoutError):
            return str(exc) if isinstance(exc, OSError) and exc.args else "it took too long"
        if isinstance(exc, aiohttp.ClientResponseError):  # what came was not HTTP, or over aiohttp's limits
            return "the answer cannot be read: " + " ".join(exc.message.split())
        return str(exc) or type(exc).__name__


def shown(url: URL) -> URL:
    """Give an address that may be printed: without user, password, query and fragment."""
    return (url.with_user(None) if url.absolute else url).with_query(None).with_fragment(None)


def _target(location: str) -> str:
    try:
        return str(shown(URL(location))) or "another address"
    except ValueError:
        return "another address"

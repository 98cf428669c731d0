"""Send one request, follow or refuse, try reads again, open the WebSocket: what `acomfy.api`'s routes stand on.

Every request passes its own timeouts, so that a caller's session with other defaults behaves the same:
`connect_timeout` for the connection, `read_timeout` for a silence while an answer is awaited or read,
`request_timeout` for the whole of an answer in JSON. A transfer of a file has no limit on the whole, which would cut
long ones. The size of JSON answers is bounded after decompression.

Raised by every method, unless it says otherwise: `ServerUnreachable` (no connection, or it broke), `HTTPError` and its
`AuthenticationError`, `PayloadTooLarge`, `ProtocolError` (the answer is not ComfyUI's). No error of aiohttp's is
chained: those hold the request with its headers. Cancelling any method is safe; what was sent may have reached the
server all the same.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from .access import Access
from .answers import Answers, shown
from .concurrency import repeated
from .errors import AuthenticationError, ProtocolError, ServerUnreachable
from .profiles import Profile
from .retry import RetryPolicy

T = TypeVar("T")

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 4
_WITH_FILE = (200, 203, 206)


class Transport:
    """The way to one server: whatever is sent to it goes through here.

    Paths begin with a slash and are encoded already (`segment` writes a name as one part of them); parameters are not.

    Args:
        access: What goes with each request; or the address of a server that wants nothing.
        session: Gives the session to use; called for each request.
        bare_session: Gives a session without cookies and headers, for files that the server has elsewhere.
        connect_timeout: Seconds for opening a connection.
        read_timeout: Seconds of silence while an answer is awaited or read, or while nothing of a file is taken.
        request_timeout: Seconds for the whole of a question that is answered in JSON, for the head of a file's answer,
            and for a token; None for no limit.
        retry: When a read is tried again; None for never.
        max_answer_size: Bytes of the largest answer that is kept in memory, decompressed.

    Raises:
        ValueError: The address is no http or https address.
    """

    def __init__(
        self,
        access: Access | str,
        session: Callable[[], aiohttp.ClientSession],
        *,
        bare_session: Callable[[], aiohttp.ClientSession] | None = None,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        request_timeout: float | None = 300.0,
        retry: RetryPolicy | None = None,
        max_answer_size: int = 1 << 28,
    ) -> None:
        self._access = Access(access) if isinstance(access, str) else access
        self._base = self._access.base
        self._root = str(self._base).rstrip("/")
        self._session = session
        self._bare_session = bare_session or session
        self._retry = retry
        self._handshake_timeout = connect_timeout + read_timeout
        # Never aiohttp's ``connect``, which counts the waiting for a free connection too.
        self._patient = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=read_timeout)
        self._bounded = aiohttp.ClientTimeout(
            total=request_timeout, sock_connect=connect_timeout, sock_read=read_timeout
        )
        self._answers = Answers(self._access, self._patient, max_answer_size)

    @property
    def url(self) -> str:
        """The server's address without credentials."""
        return str(shown(self._base))

    @property
    def profile(self) -> Profile:
        """What kind of server it is."""
        return self._access.profile

    @property
    def read_timeout(self) -> float | None:
        """Seconds of silence while something is awaited of the server; None for no limit."""
        return self._patient.sock_read

    @property
    def retry(self) -> RetryPolicy | None:
        """When a read is tried again; None for never."""
        return self._retry

    def __repr__(self) -> str:
        return f"<Transport to {self.url}>"

    def without_retries(self) -> Self:
        """Give one that tries once, for who tries again on his own terms."""
        once = copy.copy(self)
        once._retry = None
        return once

    # --- Reading ---------------------------------------------------------------------------------------------------

    async def get_json(
        self, path: str, params: Mapping[str, str] | None = None, *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Give the JSON that a route answers with. Tried again when that may help, as are all reads here."""

        async def read() -> Any:
            return await self.read_json(
                await self.request("GET", path, params=params, headers=headers, timeout=self._bounded)
            )

        return await self.repeated(read)

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
        """Give the body that a route answers with, as it is. It is kept in memory: `stream` is for large ones."""

        async def read() -> bytes:
            return await self.read_body(await self.request("GET", path, params=params, headers=headers))

        return await self.repeated(read)

    async def repeated(self, read: Callable[[], Awaitable[T]]) -> T:
        """Do what only reads, again when it failed in a way that another try may mend.

        Raises:
            HTTPError, ServerUnreachable: The last try's.
        """
        return await repeated(read, self._retry)

    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (),
        file: bool = False,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Open an answer whose body is read by the caller, a part at a time; left unread, it costs the connection.

        What breaks while it is read is raised as by the other methods; the caller's own errors pass. It is not tried
        again. Where the server has its files elsewhere (Comfy Cloud), they are fetched there, without credentials.

        Args:
            allowed: Statuses of 300 and above that are answers all the same, for example 304.
            file: It is a file of ``/view``, which no ComfyUI calls a page (server.py view_image, 0.3.40 to 0.33.0): a
                page, or a success of another kind, is a `ProtocolError`, and not taken for the file.
        """
        return _Streamed(self._answers, partial(self._open, method, path, params, headers, allowed, file))

    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        allowed: tuple[int, ...],
        file: bool,
    ) -> aiohttp.ClientResponse:
        signed = self.profile.signed_files
        accepted = (*allowed, *_REDIRECTS) if signed else allowed
        try:
            async with asyncio.timeout(self._bounded.total):  # the head; the body may take as long as it likes
                response = await self.request(method, path, params=params, headers=headers, allowed=accepted)
                if signed and response.status in _REDIRECTS:
                    response = await self._follow(response, headers, allowed)
        except TimeoutError as exc:
            failure = self._answers.unreachable(self._base, exc)
            raise failure from None
        if file and not signed and not _is_file(response):
            async with response:
                raise await self._answers.no_file(response)
        return response

    async def _follow(
        self, response: aiohttp.ClientResponse, headers: Mapping[str, str] | None, allowed: tuple[int, ...]
    ) -> aiohttp.ClientResponse:
        """Go where an answer redirects to, with nothing that is meant for the server."""
        # The way there is the same, but a certificate of the server's own is no reason to trust others less.
        options = {name: option for name, option in self._access.options.items() if name != "ssl"}
        for _ in range(_MOST_REDIRECTS):
            location = response.headers.get("Location", "")
            async with response:
                target = _joined(response.url, location, encrypted=self._base.scheme == "https")
                if target is None:
                    raise await self._answers.refusal(response, response.method, None)
            response = await self._sent(
                self._bare_session(), response.method, target, headers=headers, timeout=self._patient, options=options
            )
            if response.status < 300 or response.status in allowed:
                return response
            if response.status not in _REDIRECTS:
                async with response:
                    raise await self._answers.refusal(response, response.method, None)
        response.close()
        raise ProtocolError(f"{response.method} {shown(response.url)} redirects over and over")

    async def read_body(self, response: aiohttp.ClientResponse) -> bytes:
        """See `Answers.read_body`."""
        return await self._answers.read_body(response)

    async def read_json(self, response: aiohttp.ClientResponse, *, empty: bool = False) -> Any:
        """See `Answers.read_json`."""
        return await self._answers.read_json(response, empty=empty)

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
        await self.read_body(await self._send(method, path, body, params, headers))

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
        return await self.read_json(await self._send(method, path, body, params, headers), empty=True)

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
        return await self.request(method, path, params=params, data=data, headers=headers, timeout=self._bounded)

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
        async with response:  # which waits until nothing of the body is read any more
            return await self.read_json(response, empty=True)

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
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request; give its answer, whose body is still to be read, unless that is a refusal.

        Args:
            data: The body, or what makes it.
            allowed: Statuses of 300 and above that are answers all the same.
            size: Bytes of the body, for `PayloadTooLarge`; None: those of ``data``.
            timeout: None: no limit on the whole.
        """
        access = self._access
        url = URL(self._root + access.profile.path(path), encoded=True)  # yarl remembers it: joinpath costs 3 us
        if access.params:
            params = {**access.params, **(params or {})}
        if access.wants_token:
            await access.ready(self._bounded.total)
        generation = access.generation
        timeout = timeout or self._patient
        response = await self._sent(self._session(), method, url, params, data, access.with_own(headers), timeout)
        if response.status == 401 and generation is not None and 401 not in allowed:
            response.close()
            await access.renew(generation, self._bounded.total)
            response = await self._sent(self._session(), method, url, params, data, access.with_own(headers), timeout)
        if response.status >= 300 and response.status not in allowed:
            async with response:
                raise await self._answers.refusal(response, method, len(data) if isinstance(data, bytes) else size)
        return response

    async def _sent(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        params: Mapping[str, str] | None = None,
        data: bytes | Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send it; give its answer, whatever that is."""
        try:
            return await _usable(session, url).request(
                method,
                url,
                params=params,
                data=data() if callable(data) else data,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                raise_for_status=False,
                **(self._access.options if options is None else options),
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            failure = self._answers.failed(method, url, exc)
        raise failure

    async def open_socket(
        self, session: aiohttp.ClientSession, client_id: str, *, heartbeat: float | None, max_message_size: int
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open the WebSocket of a client id (``/ws?clientId=``).

        Args:
            session: One that follows no redirects: ``ws_connect`` cannot be told not to.

        Raises:
            ServerUnreachable: No connection, or none within ``connect_timeout`` and ``read_timeout``.
            HTTPError: The server, or a proxy, refused the upgrade.
        """
        options = {"heartbeat": heartbeat, "max_msg_size": max_message_size, "decode_text": False}
        if self._access.wants_token:
            await self._access.ready(self._bounded.total)
        generation = self._access.generation
        try:
            return await self._upgraded(session, client_id, options)
        except AuthenticationError as exc:
            if exc.status != 401 or generation is None:
                raise
        await self._access.renew(generation, self._bounded.total)
        return await self._upgraded(session, client_id, options)

    async def _upgraded(
        self, session: aiohttp.ClientSession, client_id: str, options: Mapping[str, Any]
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        access = self._access
        url = access.socket_url({"clientId": client_id})
        try:
            async with asyncio.timeout(self._handshake_timeout):  # ws_connect has no timeouts of its own
                socket: aiohttp.ClientWebSocketResponse[bool] = await _usable(session, url).ws_connect(
                    url, headers=access.with_own(None), **access.options, **options
                )
                return socket
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            failure = self._answers.failed("GET", url, exc)
        raise failure


class _Streamed:
    """An answer while its body is read; see `Transport.stream`. As a generator it cost 4 us more."""

    __slots__ = ("_answers", "_open", "_response")

    def __init__(self, answers: Answers, open: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> None:
        self._answers = answers
        self._open = open

    async def __aenter__(self) -> aiohttp.ClientResponse:
        self._response = await self._open()
        return self._response

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._response.__aexit__(exc_type, exc, traceback)
        if not isinstance(exc, aiohttp.ClientError):  # an OSError may be the caller's own, of the disk
            return
        failure = self._answers.unreachable(self._response.url, exc)
        try:
            raise failure
        finally:
            failure.__context__ = None  # aiohttp's error, which holds the request


def segment(text: str) -> str:
    """Write a text as one path segment; ``.`` and ``..`` too, which would name directories as they are."""
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="")


def _is_file(response: aiohttp.ClientResponse) -> bool:
    if response.status not in _WITH_FILE:
        return response.status >= 300  # it was allowed
    return not response.headers.get("Content-Type", "").lower().startswith("text/html")


def _usable(session: aiohttp.ClientSession, url: URL) -> aiohttp.ClientSession:
    if session.closed:
        raise ServerUnreachable(str(shown(url)), "the session that the client was given is closed")
    return session


def _joined(base: URL, location: str, *, encrypted: bool) -> URL | None:
    """Give the address that a redirect names; None when it cannot be followed, or would leave encryption behind."""
    if not location:
        return None
    try:
        target = base.join(URL(location, encoded=True))  # as it is: a signature is of these very characters
    except ValueError:
        return None
    schemes = ("https",) if encrypted else ("http", "https")
    return target if target.scheme in schemes and target.host else None

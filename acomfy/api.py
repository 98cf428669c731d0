"""ComfyUI's HTTP routes: one short coroutine each.

Results are what the server's JSON says, as dicts and lists. Every request passes its own timeouts, so that a caller's
session with other defaults behaves the same: `connect_timeout` for the connection, `read_timeout` for a silence while
an answer is awaited or read; there is no limit on the whole, which would cut a long transfer.

Raised by every route, unless it says otherwise: `ServerUnreachable` (no connection, or it broke), `HTTPError` and its
`AuthenticationError`, `PayloadTooLarge`, `ProtocolError` (the answer is not ComfyUI's). Cancelling any of them is safe;
a POST may have reached the server all the same.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl as ssl_module
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from .errors import (
    AuthenticationError,
    HTTPError,
    PayloadTooLarge,
    PromptRejected,
    ProtocolError,
    ServerError,
    ServerUnreachable,
)

_SHOWN_BYTES = 200
_FORBIDDEN = (
    "ComfyUI refuses requests whose Origin differs from its address (--enable-cors-header lifts that); "
    "else a proxy in front of it wants credentials"
)


@dataclass(frozen=True, slots=True)
class PromptReply:
    """The server's answer to a prompt that it queued.

    Attributes:
        prompt_id: The id that it goes by; not ours on servers before 0.3.45.
        number: Its place in the queue's order, lowest first.
        node_errors: What is wrong with the outputs that the server dropped, by node id; empty when all will run.
    """

    prompt_id: str
    number: float
    node_errors: Mapping[str, Any]


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


class Api:
    """The routes of one server.

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
        return f"<Api of {self.url}>"

    # --- Prompts and the queue -------------------------------------------------------------------------------------

    async def post_prompt(
        self, body: bytes, *, titles: Callable[[], Mapping[str, str]] = dict, limit: int | None = None
    ) -> PromptReply:
        """Queue a prompt (``POST /prompt``).

        Args:
            body: The request as JSON: ``prompt``, ``client_id``, ``prompt_id`` and so on.
            titles: Gives the titles of the prompt's nodes, for the error.
            limit: Bytes that the server takes, where it told; a larger body is not sent.

        Raises:
            PromptRejected: The server refused it (400).
        """
        if limit is not None and len(body) > limit:
            raise PayloadTooLarge(len(body), limit)
        headers = {"Content-Type": "application/json"}
        response = await self._request("POST", "/prompt", data=body, headers=headers, allowed=(400,))
        answer = await _json(response)
        if not isinstance(answer, dict):
            raise ProtocolError(f"POST {self.url}/prompt was answered with {type(answer).__name__}, not an object")
        if response.status == 400:
            raise _rejection(answer, titles)
        return _prompt_reply(answer)

    async def get_prompt(self) -> int:
        """Give the number of prompts that wait or run, of all clients (``GET /prompt``: ``queue_remaining``)."""
        answer = await self._get_json("/prompt")
        try:
            return int(answer["exec_info"]["queue_remaining"])
        except (KeyError, TypeError, ValueError):
            raise ProtocolError(f"GET {self.url}/prompt was answered without a queue_remaining") from None

    async def get_queue(self) -> dict[str, Any]:
        """Give the whole queue with all its graphs (``GET /queue``): ``queue_running`` and ``queue_pending``.

        ``queue_pending`` is a heap, not a line: sort it by number and prompt_id. With hundreds of prompts the answer
        is megabytes.
        """
        return await self._get_object("/queue")

    async def post_queue(self, *, delete: Sequence[str] = (), clear: bool = False) -> None:
        """Take waiting prompts from the queue (``POST /queue``); ``clear`` takes everybody's. Running ones stay."""
        body: dict[str, Any] = {"clear": True} if clear else {}
        await self._post_json("/queue", {**body, "delete": list(delete)} if delete else body)

    async def post_interrupt(self, prompt_id: str | None = None) -> None:
        """Stop the running prompt (``POST /interrupt``).

        Args:
            prompt_id: Stop it only if it is this one (since 0.3.57; older servers stop whatever runs). None: whatever.
        """
        await self._post_json("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    async def post_job_cancel(self, prompt_id: str) -> bool:
        """Take a prompt from the server, waiting or running (``POST /api/jobs/{id}/cancel``, since 0.26.0).

        True when the server did something; False when it does not know the prompt or it had ended.
        """
        path = f"/api/jobs/{_segment(prompt_id)}/cancel"
        answer = await _json(await self._request("POST", path))
        return bool(answer.get("cancelled")) if isinstance(answer, dict) else False

    async def get_history(self, prompt_id: str) -> dict[str, Any] | None:
        """Give a prompt's history entry (``GET /history/{id}``).

        None when it has none: it waits, runs, was deleted, or never existed.
        """
        history = await self._get_object(f"/history/{_segment(prompt_id)}")
        entry = history.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    async def get_histories(self, *, max_items: int) -> dict[str, Any]:
        """Give the newest history entries by prompt_id, oldest first (``GET /history?max_items=``)."""
        return await self._get_object("/history", {"max_items": str(max_items)})

    # --- Files -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def view(
        self, filename: str, *, subfolder: str = "", type: str = "output"
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Open a file of the server for reading (``GET /view``).

        What breaks while it is read is raised as by the other routes; the caller's own errors pass.

        Args:
            type: ``output``, ``temp`` or ``input``: the directory.

        Raises:
            HTTPError: 404 when the file is not there.
        """
        params = {"filename": filename, "subfolder": subfolder, "type": type}
        response = await self._request("GET", "/view", params=params)
        try:
            async with response:
                yield response
        except aiohttp.ClientError as exc:  # no OSError: here it may be the caller's own, of the disk
            raise _unreachable(response.url, exc) from exc

    # --- The server ------------------------------------------------------------------------------------------------

    async def get_system_stats(self) -> dict[str, Any]:
        """Give versions, memory and devices (``GET /system_stats``)."""
        return await self._get_object("/system_stats")

    async def get_features(self) -> dict[str, Any]:
        """Give the server's feature flags (``GET /features``, since 0.3.45; 404 before)."""
        return await self._get_object("/features")

    async def get_object_info(self, class_type: str | None = None) -> dict[str, Any]:
        """Give node definitions by class (``GET /object_info``, several MB; ``/object_info/{class}``).

        An unknown class gives an empty dict.
        """
        return await self._get_object("/object_info" if class_type is None else f"/object_info/{_segment(class_type)}")

    async def post_free(self, *, unload_models: bool = False, free_memory: bool = False) -> None:
        """Have models unloaded, or memory and the cache cleared, once no prompt runs (``POST /free``)."""
        await self._post_json("/free", {"unload_models": unload_models, "free_memory": free_memory})

    # --- The one way out -------------------------------------------------------------------------------------------

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

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> aiohttp.ClientResponse:
        """Send a request; give its answer, whose body is still to be read, unless that is a refusal."""
        url = self._base.joinpath(path[1:], encoded=True)
        try:
            response = await _usable(self._session(), url).request(
                method,
                url,
                params=params,
                data=data,
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
                raise await _refusal(response, method, len(data) if data else None)
        return response

    async def _get_json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        return await _json(await self._request("GET", path, params=params))

    async def _get_object(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        answer = await self._get_json(path, params)
        if isinstance(answer, dict):
            return answer
        raise ProtocolError(f"GET {self.url}{path} was answered with {type(answer).__name__}, not an object")

    async def _post_json(self, path: str, body: Mapping[str, Any]) -> None:
        """Post JSON to a route that answers with an empty body."""
        headers = {"Content-Type": "application/json"}
        await _body(await self._request("POST", path, data=orjson.dumps(body), headers=headers))


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


def _segment(text: str) -> str:
    """Write a text as one path segment."""
    return quote(text, safe="")


# --- Reading answers -------------------------------------------------------------------------------------------------


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer to its end, which lets go of its connection, as does whatever keeps it from being read."""
    try:
        return await response.read()
    except aiohttp.ClientError as exc:
        raise _unreachable(response.url, exc) from exc


async def _json(response: aiohttp.ClientResponse) -> Any:
    """Read a JSON body. ComfyUI writes it with Python's json: NaN and integers of any size occur."""
    body = await _body(response)
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


def _prompt_reply(answer: dict[str, Any]) -> PromptReply:
    prompt_id, number, node_errors = answer.get("prompt_id"), answer.get("number"), answer.get("node_errors")
    if not isinstance(prompt_id, str):
        raise ProtocolError("POST /prompt was answered without a prompt_id")
    return PromptReply(
        prompt_id,
        float(number) if isinstance(number, int | float) else 0.0,
        node_errors if isinstance(node_errors, dict) else {},
    )


def _rejection(answer: dict[str, Any], titles: Callable[[], Mapping[str, str]]) -> PromptRejected:
    error, node_errors = answer.get("error"), answer.get("node_errors")
    if isinstance(error, str):
        error = {"message": error}
    return PromptRejected(
        error if isinstance(error, dict) else {},
        node_errors if isinstance(node_errors, dict) else {},
        titles=titles(),
    )


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

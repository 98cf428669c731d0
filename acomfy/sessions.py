"""The aiohttp sessions of a client: made when first needed, closed with it. A caller's own is used and left open."""

from __future__ import annotations

import copy

import aiohttp

from .access import Access
from .connection import Socket


class Sessions:
    """The sessions of one client.

    Args:
        access: Says how connections are opened.
        given: The caller's own session; None to make one.

    Raises:
        ValueError: The caller's session cannot be used with ``access``.
    """

    def __init__(self, access: Access, given: aiohttp.ClientSession | None) -> None:
        if given is not None and access.unix_socket is not None:
            raise ValueError("unix_socket needs a connector: give the session an aiohttp.UnixConnector instead")
        if given is not None:
            _check(given, access)
        self._access = access
        self._given = given
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientSession | None = None
        self._bare: aiohttp.ClientSession | None = None

    @property
    def made(self) -> bool:
        """Whether there is a session for HTTP."""
        return self._given is not None or (self._http is not None and not self._http.closed)

    def http(self) -> aiohttp.ClientSession:
        """Give the session for requests."""
        if self._given is not None:
            return self._given
        if self._http is None or self._http.closed:
            self._http = aiohttp.ClientSession(connector=self._access.connector(), cookie_jar=self._access.cookie_jar())
        return self._http

    def socket(self) -> aiohttp.ClientSession:
        """Give the session for the WebSocket, which follows no redirects."""
        if self._socket is None and self._given is not None:
            self._socket = _without_redirects(self._given)
        elif self._socket is None:
            self._socket = aiohttp.ClientSession(
                # A connector of its own: over a pooled connection ComfyUI may take the new socket for the old one.
                connector=self._access.connector(reuse=False),
                cookie_jar=self._access.cookie_jar(),
                middlewares=(_refuse_redirects,),
                ws_response_class=Socket,  # type: ignore[arg-type]  # aiohttp's type allows for text as str alone
            )
        return self._socket

    def bare(self) -> aiohttp.ClientSession:
        """Give a session that knows no cookie, for addresses of others."""
        if self._bare is None or self._bare.closed:
            self._bare = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._bare

    async def close(self) -> None:
        """Close what was made here."""
        if self._given is not None and self._socket is not None:
            self._socket.detach()
        for session in (self._http, self._socket, self._bare):
            if session is not None:
                await session.close()


def _check(session: aiohttp.ClientSession, access: Access) -> None:
    if access.authorizes and getattr(session, "auth", None) is not None:
        raise ValueError("credentials are in the session's auth and in what the client was given; give them once")
    connector = session.connector
    limits = (0, 0) if connector is None else (connector.limit, getattr(connector, "limit_per_host", 0))
    if 1 in limits:
        raise ValueError("the session's connector allows one connection, and the WebSocket takes that; allow more")


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Be a session's middleware that does not follow redirects, as ``ws_connect`` would: headers may be secrets."""
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise aiohttp.ClientResponseError(response.request_info, (), status=response.status, headers=response.headers)
    return response


def _without_redirects(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """Give a session like the caller's, over the same connections, that follows no redirects.

    ``ws_connect`` takes no argument for that. A copy keeps the caller's class and all that was set on it.
    """
    guarded = copy.copy(session)
    guarded._middlewares = (_refuse_redirects, *session._middlewares)
    return guarded

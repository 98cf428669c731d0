"""What the sections of the routes stand on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ..errors import PayloadTooLarge, ProtocolError, ServerUnreachable
from ..retry import RetryPolicy
from ..transport import Transport
from .multipart import FilePart, Uploadable, content_size, form


class Routes:
    """A section of the routes of one server.

    Args:
        transport: Sends the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def url(self) -> str:
        """The server's address without credentials."""
        return self._transport.url

    @property
    def retry(self) -> RetryPolicy | None:
        """When a read is tried again; None for never."""
        return self._transport.retry

    def __repr__(self) -> str:
        return f"<Api of {self.url}>"

    def _object(self, answer: Any, route: str) -> dict[str, Any]:
        if isinstance(answer, dict):
            return answer
        method, _, path = route.partition(" ")
        raise ProtocolError(f"{method} {self.url}{path} was answered with {type(answer).__name__}, not an object")

    async def _send_file(
        self,
        path: str,
        field: str,
        file: Uploadable,
        filename: str,
        fields: Mapping[str, str],
        limit: int | None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a form with a file in it; give the JSON of the answer."""
        part = await asyncio.to_thread(FilePart, file, self._transport.read_timeout)
        content = content_size(part, fields)
        if limit is not None and content is not None and content > limit:
            raise PayloadTooLarge(content, limit)
        size = form(part, field, filename, fields).size
        try:
            return await self._transport.upload(
                path, lambda: form(part, field, filename, fields), size=size, headers=headers
            )
        except ServerUnreachable:
            if part.error is not None:
                raise part.error from None
            raise


def query(**params: Any) -> dict[str, str]:
    """Write parameters for an address: None is left out, booleans as ``true`` and ``false``, lists with commas."""
    return {name: _written(value) for name, value in params.items() if value is not None}


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(str, value))
    return str(value)


def given(**fields: Any) -> dict[str, Any]:
    """Leave out what is None: to several routes a null is not the same as an absent field."""
    return {name: value for name, value in fields.items() if value is not None}


def user_header(user: str | None) -> Mapping[str, str] | None:
    """Give the header that names a user of a server started with ``--multi-user``."""
    return None if user is None else {"comfy-user": user}

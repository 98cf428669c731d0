"""Where a command gets the node classes of a server from: the server, a file, or a simulated server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ..access import Access
from ..api import Api
from ..definitions import Definitions
from ..errors import AcomfyError
from ..sessions import Sessions
from ..transport import Transport
from ..workflow import definitions_of
from .arguments import DEFAULT_SERVER, UsageError, server_url

Server: TypeAlias = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help=f"The ComfyUI server; without it $ACOMFY_URL, else {DEFAULT_SERVER}."),
]
Simulate: TypeAlias = Annotated[
    bool, typer.Option("--simulate", help="Use a simulated server instead: no ComfyUI and no GPU needed.")
]
ObjectInfoFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--object-info",
        metavar="FILE",
        dir_okay=False,
        help="A file with what the server answers to /object_info, so that no server is asked.",
    ),
]


class Classes:
    """The node classes of a server, got when they are first asked for.

    Attributes:
        url: The server's address; None for a simulated one.
        version: The server's version, once it was asked; None for a file, and when it does not say.
        chosen: Whether an option said where they come from.

    Raises:
        UsageError: The options contradict each other, or the server's address is none.
    """

    def __init__(self, server: str | None, simulate: bool, file: Path | None) -> None:
        given = [
            name for name, value in (("--server", server), ("--simulate", simulate), ("--object-info", file)) if value
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other")
        self.chosen = bool(given)
        self.url = None if simulate else server_url(server)
        self.version: str | None = None
        self._file = file
        self._definitions: Definitions | None = None

    def __call__(self) -> Definitions:
        """Give them; to be called outside of an event loop.

        Raises:
            ServerError: The server cannot be reached, or refuses.
            UsageError: The file cannot be read, or holds something else.
        """
        if self._definitions is None:
            self._definitions = self._from_file(self._file) if self._file else asyncio.run(self._fetched())
        return self._definitions

    @property
    def known(self) -> Definitions | None:
        """The classes if they were asked for already."""
        return self._definitions

    def _from_file(self, file: Path) -> Definitions:
        try:
            return definitions_of(file)
        except OSError as exc:
            raise UsageError(f"--object-info: cannot read {str(file)!r}: {exc.strerror}") from None
        except AcomfyError as exc:
            raise UsageError(f"--object-info {file}: {exc}") from None

    async def _fetched(self) -> Definitions:
        if self.url is not None:
            return await self._asked(self.url)
        from ..simulator import SimulatedServer

        async with SimulatedServer() as server:
            return await self._asked(server.url)

    async def _asked(self, url: str) -> Definitions:
        """Ask by two requests; a Client would open a WebSocket too."""
        access = Access(url)
        sessions = Sessions(access, None)
        try:
            api = Api(Transport(access, sessions.http))
            definitions = Definitions(await api.get_object_info())
            version = (await api.get_system_stats()).get("system", {}).get("comfyui_version")
        finally:
            await sessions.close()
        self.version = version if isinstance(version, str) else None
        return definitions

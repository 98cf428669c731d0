"""The routes below ``/internal``, which ComfyUI keeps for its own editor: any version may change them.

They exist bare only, not under ``/api`` (ComfyUI api_server/routes/internal).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..errors import ProtocolError
from ..transport import segment
from .base import Routes

if TYPE_CHECKING:
    from . import shapes


class InternalRoutes(Routes):
    """Logs, and where files lie."""

    async def get_logs(self) -> str:
        """Give the last lines of the server's log as one text (``GET /internal/logs``)."""
        answer = await self._transport.get_json("/internal/logs")
        if not isinstance(answer, str):
            raise ProtocolError(f"GET {self.url}/internal/logs was answered with {type(answer).__name__}, not a text")
        return answer

    async def get_raw_logs(self) -> shapes.RawLogs:
        """Give what the server wrote last, each with its time (``GET /internal/logs/raw``): 300 entries at most."""
        answer = await self._transport.get_object("/internal/logs/raw")
        if not isinstance(answer.get("entries"), list):
            raise ProtocolError(f"GET {self.url}/internal/logs/raw was answered without entries")
        return cast("shapes.RawLogs", answer)

    async def patch_logs_subscribe(self, client_id: str, enabled: bool) -> None:
        """Have ``logs`` messages sent to a WebSocket, or no more (``PATCH /internal/logs/subscribe``).

        The server forgets it when it has something to log and that socket is gone.
        """
        await self._transport.send("PATCH", "/internal/logs/subscribe", {"clientId": client_id, "enabled": enabled})

    async def get_folder_paths(self) -> dict[str, list[str]]:
        """Give the directories of each kind of model (``GET /internal/folder_paths``)."""
        return await self._transport.get_object("/internal/folder_paths")

    async def get_files(self, folder: str) -> list[str]:
        """List the files that lie directly in a folder, newest first (``GET /internal/files/{folder}``).

        Newer servers put the folder behind each name, as loader nodes take it: ``x.png [output]``.

        Args:
            folder: ``input``, ``output`` or ``temp``.

        Raises:
            HTTPError: 400 for any other folder.
        """
        return await self._transport.get_list(f"/internal/files/{segment(folder)}")

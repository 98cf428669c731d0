"""The routes below ``/internal`` (ComfyUI api_server/routes/internal): bare only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aiohttp import web

from .files import FOLDER_TYPES

if TYPE_CHECKING:
    from .server import SimulatedServer


class InternalRoutes:
    """The handlers."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/internal/logs", self._logs)
        app.router.add_get("/internal/logs/raw", self._raw_logs)
        app.router.add_patch("/internal/logs/subscribe", self._subscribe)
        app.router.add_get("/internal/folder_paths", self._folder_paths)
        app.router.add_get("/internal/files/{folder}", self._files)

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response("".join(f"{entry['t']} - {entry['m']}" for entry in self._server.sockets.logs))

    async def _raw_logs(self, request: web.Request) -> web.Response:
        return web.json_response({"entries": list(self._server.sockets.logs), "size": {"cols": 80, "rows": 24}})

    async def _subscribe(self, request: web.Request) -> web.Response:
        body = await request.json()
        readers = self._server.sockets.log_readers
        (readers.add if body["enabled"] else readers.discard)(body["clientId"])
        return web.Response()

    async def _folder_paths(self, request: web.Request) -> web.Response:
        return web.json_response({folder: [f"/comfyui/models/{folder}"] for folder in self._server.models})

    async def _files(self, request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        if folder not in FOLDER_TYPES:
            return web.json_response({"error": "Invalid directory type"}, status=400)
        entries = [entry for entry in os.scandir(self._server.folders.paths[folder]) if entry.is_file()]
        names = [entry.name for entry in sorted(entries, key=lambda entry: -entry.stat().st_mtime)]
        marked = [f"{name} [{folder}]" for name in names] if self._server.can.marked_file_names else names
        return web.json_response(marked)

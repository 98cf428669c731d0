"""Users, their settings and their files (ComfyUI app/user_manager.py, app/app_settings.py)."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aiohttp import web

if TYPE_CHECKING:
    from .server import SimulatedServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class UserRoutes:
    """The handlers. An unknown user raises, which is a 500 but where ComfyUI looks first."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._users = {} if server.multi_user else {"default": "default"}

    def table(self) -> list[tuple[str, str, Handler]]:
        """Give methods, paths and handlers; each is bare and under ``/api``."""
        get: list[tuple[str, Handler]] = [
            ("/users", self._get_users),
            ("/settings", self._get_settings),
            ("/settings/{id}", self._get_setting),
            ("/userdata", self._list),
            ("/v2/userdata", self._tree),
            ("/userdata/{file}", self._read),
        ]
        return [
            *((method, path, handler) for path, handler in get for method in ("GET", "HEAD")),
            ("POST", "/users", self._post_user),
            ("POST", "/settings", self._post_settings),
            ("POST", "/settings/{id}", self._post_setting),
            ("POST", "/userdata/{file}", self._write),
            ("DELETE", "/userdata/{file}", self._delete),
            ("POST", "/userdata/{file}/move/{dest}", self._move),
        ]

    def _home(self, request: web.Request) -> Path:
        user = request.headers.get("comfy-user", "default") if self._server.multi_user else "default"
        if user not in self._users:
            raise KeyError(f"Unknown user: {user}")
        return self._server.user_folder / user

    def _path(self, request: web.Request, name: str) -> Path | None:
        """Find a file of the user, its directory made; None when it would lie outside. A % is decoded once more."""
        home = self._home(request)
        path = Path(os.path.abspath(home / (unquote(name) if "%" in name else name)))
        if not path.is_relative_to(home):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # --- Users and settings ----------------------------------------------------------------------------------------

    async def _get_users(self, request: web.Request) -> web.Response:
        if self._server.multi_user:
            return web.json_response({"storage": "server", "users": self._users})
        return web.json_response({"storage": "server", "migrated": self._home(request).exists()})

    async def _post_user(self, request: web.Request) -> web.Response:
        name = (await request.json())["username"].strip()
        if name in self._users.values():
            return web.json_response({"error": "Duplicate username."}, status=400)
        if not name:
            return web.json_response({"error": "username not provided"}, status=400)
        user = f"{re.sub('[^a-zA-Z0-9-_]+', '-', name)}_{uuid.uuid4()}"
        self._users[user] = name
        return web.json_response(user)

    def _settings(self, request: web.Request) -> dict[str, Any]:
        try:
            file = self._home(request) / "comfy.settings.json"
        except KeyError:
            raise web.HTTPUnauthorized from None
        settings: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return settings

    def _keep_settings(self, request: web.Request, settings: dict[str, Any]) -> web.Response:
        home = self._home(request)
        home.mkdir(parents=True, exist_ok=True)
        (home / "comfy.settings.json").write_text(json.dumps(settings))
        return web.Response()

    async def _get_settings(self, request: web.Request) -> web.Response:
        return web.json_response(self._settings(request))

    async def _get_setting(self, request: web.Request) -> web.Response:
        return web.json_response(self._settings(request).get(request.match_info["id"]))

    async def _post_settings(self, request: web.Request) -> web.Response:
        return self._keep_settings(request, {**self._settings(request), **await request.json()})

    async def _post_setting(self, request: web.Request) -> web.Response:
        return self._keep_settings(request, {**self._settings(request), request.match_info["id"]: await request.json()})

    # --- Files -----------------------------------------------------------------------------------------------------

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        if not query.get("dir"):
            return web.Response(status=400, text="Directory not provided")
        directory = self._path(request, query["dir"])
        if directory is None:
            return web.Response(status=403, text="Invalid directory")
        if not directory.exists():
            return web.Response(status=404, text="Directory not found")
        pattern = "**/*" if query.get("recurse", "").lower() == "true" else "*"
        files = [path for path in directory.glob(pattern) if path.is_file()]
        if query.get("full_info", "").lower() == "true":
            return web.json_response([self._info(path, directory) for path in files])
        names = [path.relative_to(directory).as_posix() for path in files]
        split = query.get("split", "").lower() == "true"
        return web.json_response([[name, *name.split("/")] for name in names] if split else names)

    async def _tree(self, request: web.Request) -> web.Response:
        try:
            home = self._home(request)
        except KeyError:
            return web.Response(status=403, text="Invalid user specified in request")
        wanted = unquote(request.query.get("path", ""))
        directory = self._path(request, wanted) if wanted else home
        if directory is None:
            return web.Response(status=400, text="Invalid path requested")
        if not directory.exists():
            return web.json_response([]) if not wanted else web.Response(status=404, text="Requested path not found")
        if not directory.is_dir():
            return web.Response(status=400, text="Requested path is not a directory")
        entries = [_entry(path, home) for path in directory.rglob("*")]
        entries.sort(key=lambda entry: (entry["type"] != "directory", entry["name"].lower()))
        return web.json_response(entries)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        path = self._path(request, request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def _write(self, request: web.Request) -> web.Response:
        path = self._path(request, request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        if request.query.get("overwrite") == "false" and path.exists():
            return web.Response(status=409, text="File already exists")
        path.write_bytes(await request.read())
        return self._answer(request, path)

    async def _delete(self, request: web.Request) -> web.Response:
        path = self._path(request, request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        if not path.exists():
            return web.Response(status=404)
        path.unlink()
        return web.Response(status=204)

    async def _move(self, request: web.Request) -> web.Response:
        source = self._path(request, request.match_info["file"])
        dest = self._path(request, request.match_info["dest"])
        if source is None or dest is None:
            return web.Response(status=403)
        if not source.exists():
            return web.Response(status=404)
        if request.query.get("overwrite") == "false" and dest.exists():
            return web.Response(status=409, text="File already exists")
        shutil.move(source, dest)
        return self._answer(request, dest)

    def _answer(self, request: web.Request, path: Path) -> web.Response:
        home = self._home(request)
        full_info = request.query.get("full_info", "").lower() == "true"
        return web.json_response(self._info(path, home) if full_info else path.relative_to(home).as_posix())

    def _info(self, path: Path, base: Path) -> dict[str, Any]:
        about = path.stat()
        times: dict[str, float] = {"modified": about.st_mtime, "created": about.st_ctime}
        if self._server.can.userdata_in_milliseconds:
            times = {name: int(time * 1000) for name, time in times.items()}
        return {"path": path.relative_to(base).as_posix(), "size": about.st_size, **times}


def _entry(path: Path, home: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": path.name, "path": path.relative_to(home).as_posix()}
    if path.is_dir():
        return {**entry, "type": "directory"}
    about = path.stat()
    return {**entry, "type": "file", "size": about.st_size, "modified": about.st_mtime}

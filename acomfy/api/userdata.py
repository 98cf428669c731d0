"""Users, their settings and their files (ComfyUI app/user_manager.py and app/app_settings.py).

On a server started with ``--multi-user`` each of these routes is for the user whose id the ``comfy-user`` header
names: give it as ``user``. An unknown one is a 401 from ``GET /settings``, a 403 from ``GET /v2/userdata``, else a 500.
Other servers do not look at it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from ..errors import ProtocolError
from ..transport import segment
from .base import Routes, query, user_header
from .multipart import FilePart

if TYPE_CHECKING:
    from . import shapes


class UserRoutes(Routes):
    """Users, their settings and their files."""

    async def get_users(self) -> shapes.Users:
        """Give the users by id (``GET /users``); without ``--multi-user`` whether user data was made at all."""
        return cast("shapes.Users", await self._transport.get_object("/users"))

    async def post_user(self, username: str) -> str:
        """Make a user; give the id that goes into the ``comfy-user`` header (``POST /users``).

        Raises:
            HTTPError: 400 when there is one of that name, or it is no name.
        """
        answer = await self._transport.send_json("POST", "/users", {"username": username})
        if not isinstance(answer, str):
            raise ProtocolError(f"POST {self.url}/users was answered without the id of a user")
        return answer

    async def get_settings(self, *, user: str | None = None) -> dict[str, Any]:
        """Give all settings by id (``GET /settings``)."""
        return await self._transport.get_object("/settings", headers=user_header(user))

    async def get_setting(self, setting_id: str, *, user: str | None = None) -> Any:
        """Give one setting; None when it is not set (``GET /settings/{id}``)."""
        return await self._transport.get_json(f"/settings/{segment(setting_id)}", headers=user_header(user))

    async def post_settings(self, settings: Mapping[str, Any], *, user: str | None = None) -> None:
        """Set settings by id; others stay as they are (``POST /settings``)."""
        await self._transport.send("POST", "/settings", dict(settings), headers=user_header(user))

    async def post_setting(self, setting_id: str, value: Any, *, user: str | None = None) -> None:
        """Set one setting to any JSON value (``POST /settings/{id}``)."""
        headers = {"Content-Type": "application/json", **(user_header(user) or {})}
        path, data = f"/settings/{segment(setting_id)}", json.dumps(value, allow_nan=False).encode()
        await self._transport.upload(path, lambda: data, headers=headers)

    async def get_userdata_list(
        self,
        dir: str,
        *,
        recurse: bool = False,
        full_info: bool = False,
        split: bool = False,
        user: str | None = None,
    ) -> list[Any]:
        """List the files of a directory (``GET /userdata``), as paths below it.

        Args:
            recurse: With those of the directories in it.
            full_info: As `shapes.UserFile` instead.
            split: As a list instead: the path, then its parts.

        Raises:
            HTTPError: 404 when there is no such directory, 403 when it leads out of the user's files.
        """
        flags = {name: value or None for name, value in (("recurse", recurse), ("full_info", full_info))}
        params = query(dir=_once(dir), split=split or None, **flags)
        return await self._transport.get_list("/userdata", params, headers=user_header(user))

    async def get_userdata_tree(self, path: str = "", *, user: str | None = None) -> list[shapes.UserEntry]:
        """List a directory and all below it, directories first (``GET /v2/userdata``, since 0.3.31).

        Args:
            path: Below the user's files; an empty one: all of them.

        Raises:
            HTTPError: 404 when there is no such directory, 400 when it is none, or leads out of the user's files.
        """
        params = query(path=_once(_once(path)) or None)
        return await self._transport.get_list("/v2/userdata", params, headers=user_header(user))

    @asynccontextmanager
    async def view_userdata(
        self, file: str, *, user: str | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Open a file of a user for reading (``GET /userdata/{file}``).

        Raises:
            HTTPError: 404 when there is none, 403 when the path leads out of the user's files.
        """
        async with self._transport.stream("GET", _path(file), headers=user_header(user)) as response:
            yield response

    async def get_userdata(self, file: str, *, user: str | None = None) -> bytes:
        """Give a file of a user (``GET /userdata/{file}``).

        Raises:
            HTTPError: As `view_userdata`.
        """
        return await self._transport.get_bytes(_path(file), headers=user_header(user))

    async def post_userdata(
        self, file: str, data: bytes, *, overwrite: bool = True, full_info: bool = False, user: str | None = None
    ) -> Any:
        """Write a file of a user (``POST /userdata/{file}``); give its path, or with ``full_info`` a `shapes.UserFile`.

        Args:
            file: Its path, with slashes; directories are made.

        Raises:
            HTTPError: 409 when it is there and ``overwrite`` is False, 403 when it leads out of the user's files, 400
                (500 on older servers) for a name that the server's disk does not take.
        """
        params = query(overwrite=overwrite, full_info=full_info or None)
        body = FilePart(data, self._transport.read_timeout)
        return await self._transport.upload(_path(file), lambda: body, params=params, headers=user_header(user))

    async def delete_userdata(self, file: str, *, user: str | None = None) -> None:
        """Delete a file of a user (``DELETE /userdata/{file}``).

        Raises:
            HTTPError: 404 when there is none, 403 when the path leads out of the user's files.
        """
        await self._transport.send("DELETE", _path(file), headers=user_header(user))

    async def move_userdata(
        self, file: str, dest: str, *, overwrite: bool = True, full_info: bool = False, user: str | None = None
    ) -> Any:
        """Move a file of a user (``POST /userdata/{file}/move/{dest}``); give its new path, or a `shapes.UserFile`.

        Raises:
            HTTPError: 404 when there is none, 409 when ``dest`` is there and ``overwrite`` is False, 403 when a path
                leads out of the user's files.
        """
        params = query(overwrite=overwrite, full_info=full_info or None)
        path = f"{_path(file)}/move/{segment(_once(dest))}"
        return await self._transport.send_json("POST", path, params=params, headers=user_header(user))


def _path(file: str) -> str:
    return f"/userdata/{segment(_once(file))}"


def _once(path: str) -> str:
    # The server decodes a path that holds a % once more than HTTP does.
    return path.replace("%", "%25")

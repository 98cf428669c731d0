"""What a `Client` does with files of its server beside prompts' outputs: uploads, assets, users' files and settings."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .api import Api, Upload, Uploadable
from .errors import HTTPError
from .loose import items_of
from .probing import Probe

if TYPE_CHECKING:
    from .server_info import Asset, UserFile

_PAGE = 100
_LONGEST_NAME = 200
"""In bytes; most file systems take 255, and the server may put a number behind it."""


class ServerFiles(ABC):
    """The part of `Client` that is about files of its server.

    Each method may raise `ServerUnreachable`, `HTTPError`, `ProtocolError`, and `ClientClosed` after its closing.
    Cancelling it is safe.
    """

    api: Api
    _probe: Probe

    @abstractmethod
    def _open(self) -> None:
        """Begin to use the server; raise `ClientClosed` when the client is closed."""

    # --- Uploads and assets ----------------------------------------------------------------------------------------

    async def upload_image(
        self,
        file: Uploadable,
        filename: str | None = None,
        *,
        subfolder: str = "",
        type: str = "input",
        overwrite: bool = False,
    ) -> Upload:
        """Store a file of any kind on the server; ``value`` of what it gives is what a loader node's input takes.

        Args:
            file: Bytes, the path of a file, or a file open for reading bytes; from disk it is read as it is sent.
            filename: Its name on the server; None: that of the file. What the server would store and then not give
                back (``..`` in a name, slashes, control characters, ``[output]`` at its end, more than 200 bytes) is
                changed.
            subfolder: Made where it does not exist.
            type: ``input``, ``temp`` or ``output``: the folder.
            overwrite: Replace a file of that name; else other bytes get a number behind the name.

        Raises:
            PayloadTooLarge: It is over the server's limit; found out before sending where the server tells its limit.
            HTTPError: 400 when the path leads out of the folder.
            OSError, ValueError, TypeError: The file cannot be read, or has no name.
        """
        self._open()
        return await self.api.upload_image(
            file,
            _filename(file, filename),
            subfolder=subfolder,
            type=type,
            overwrite=overwrite,
            limit=(await self._probe.with_version()).max_upload_size,
        )

    async def upload_mask(
        self,
        file: Uploadable,
        original: Upload | Mapping[str, Any],
        filename: str | None = None,
        *,
        subfolder: str = "",
        type: str = "input",
        overwrite: bool = False,
    ) -> Upload:
        """Store a copy of a picture of the server with the alpha channel of another one as its mask.

        Args:
            file: The mask, as for `upload_image`; only its alpha channel counts.
            original: The picture: an upload, or ``{"filename": ..., "subfolder": ..., "type": ...}``.

        Raises:
            PayloadTooLarge, HTTPError, OSError, ValueError, TypeError: As `upload_image`.
        """
        self._open()
        if isinstance(original, Upload):
            original = {"filename": original.name, "subfolder": original.subfolder, "type": original.type}
        return await self.api.upload_mask(
            file,
            _filename(file, filename),
            original,
            subfolder=subfolder,
            type=type,
            overwrite=overwrite,
            limit=(await self._probe.with_version()).max_upload_size,
        )

    async def assets(
        self,
        *,
        tags_all: Collection[str] | None = None,
        tags_any: Collection[str] | None = None,
        tags_none: Collection[str] | None = None,
        name_contains: str | None = None,
    ) -> AsyncGenerator[Asset, None]:
        """Yield the files that the server's asset system knows, newest first.

        Args:
            tags_all, tags_any, tags_none: Tags that it must all have, of which it must have one, must have none;
                ``input``, ``output`` and ``models`` are where it lies.

        Raises:
            HTTPError: 404 when the server has no assets (before 0.9.0), 503 when it was started without
                ``--enable-assets``.
        """
        from .server_info import read_asset

        self._open()
        wanted, one_of, unwanted = set(tags_all or ()), set(tags_any or ()), set(tags_none or ())
        after, offset = None, 0
        while True:
            page = await self.api.get_assets(
                include_tags=wanted or None,  # servers before 0.32 know these names alone
                exclude_tags=unwanted or None,
                name_contains=name_contains,
                limit=_PAGE,
                after=after,
                offset=None if after else offset,
            )
            found = [read_asset(asset) for asset in items_of(page.get("assets"))]
            for asset in found:
                tags = set(asset.tags)
                if wanted <= tags and not unwanted & tags and (not one_of or one_of & tags):
                    yield asset
            after, offset = page.get("next_cursor"), offset + len(found)
            if not found or not (after or page.get("has_more")):
                return

    # --- Users -----------------------------------------------------------------------------------------------------

    async def users(self) -> Mapping[str, str]:
        """Give the users' names by id; none when the server was started without ``--multi-user``."""
        self._open()
        users = (await self.api.get_users()).get("users")
        return users if isinstance(users, dict) else {}

    async def settings(self, *, user: str | None = None) -> Mapping[str, Any]:
        """Give the editor's settings by id.

        Args:
            user: The user's id, on a server started with ``--multi-user``; so in all methods that have it.

        Raises:
            AuthenticationError: 401: there is no such user.
        """
        self._open()
        return await self.api.get_settings(user=user)

    async def set_settings(self, settings: Mapping[str, Any], *, user: str | None = None) -> None:
        """Set some of the editor's settings by id; the others stay."""
        self._open()
        await self.api.post_settings(settings, user=user)

    async def userdata(self, directory: str = "", *, user: str | None = None) -> tuple[UserFile, ...]:
        """List the files that a user keeps on the server, with all directories below: workflows, mostly.

        Args:
            directory: For example ``workflows``; an empty one: all. One that is not there has no files.
        """
        from .server_info import read_user_files

        self._open()
        try:
            return read_user_files(await self.api.get_userdata_tree(directory, user=user))
        except HTTPError as exc:
            if exc.status != 404:
                raise
            return ()

    async def read_userdata(self, file: str, *, user: str | None = None) -> bytes:
        """Give a file of a user.

        Args:
            file: Its path, with slashes: ``workflows/fox.json``.

        Raises:
            HTTPError: 404 when there is none.
        """
        self._open()
        return await self.api.get_userdata(file, user=user)

    async def write_userdata(
        self, file: str, data: bytes | str, *, overwrite: bool = True, user: str | None = None
    ) -> None:
        """Write a file of a user; directories are made.

        Raises:
            HTTPError: 409 when it is there and ``overwrite`` is False.
        """
        self._open()
        content = data.encode() if isinstance(data, str) else data
        await self.api.post_userdata(file, content, overwrite=overwrite, user=user)

    async def delete_userdata(self, file: str, *, user: str | None = None) -> bool:
        """Delete a file of a user; False when there was none."""
        self._open()
        try:
            await self.api.delete_userdata(file, user=user)
        except HTTPError as exc:
            if exc.status != 404:
                raise
            return False
        return True

    async def move_userdata(self, file: str, dest: str, *, overwrite: bool = True, user: str | None = None) -> None:
        """Move a file of a user.

        Raises:
            HTTPError: 404 when there is none, 409 when ``dest`` is there and ``overwrite`` is False.
        """
        self._open()
        await self.api.move_userdata(file, dest, overwrite=overwrite, user=user)


def _filename(file: Uploadable, filename: str | None) -> str:
    if filename is not None:
        return _storable(filename)
    path = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    if not isinstance(path, str | os.PathLike):
        raise ValueError("these bytes have no name: give filename=")
    return _storable(Path(path).name)


def _storable(name: str) -> str:
    """Change what the server would refuse in a name: at once, or when the file is asked for."""
    name = re.sub(r"\.{2,}|[\x00-\x1f\x7f/]|^\.$", "_", name)
    name = re.sub(r"\[(input|output|temp)\]$", r"(\1)", name)  # ComfyUI takes it for the folder, not for the name
    while len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        stem, extension = os.path.splitext(name)
        name = stem[:-1] + extension if stem and len(extension) < _LONGEST_NAME // 2 else name[:-1]
    return name

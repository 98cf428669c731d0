"""The routes of files: upload, view, metadata of models (ComfyUI server.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from ..errors import ProtocolError
from ..transport import segment
from .base import Routes, query
from .multipart import Uploadable

FolderType = Literal["input", "output", "temp"]


@dataclass(frozen=True, slots=True)
class Upload:
    """Where the server put a file.

    Attributes:
        name: Its name there, not always the one that was sent: ``u (1).png`` when another ``u.png`` was there.
        subfolder: As it was sent.
        type: ``input``, ``output`` or ``temp``: the folder.
        raw: The answer; with the asset system on, ``asset`` in it describes the asset that was made.
    """

    name: str
    subfolder: str
    type: str
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def value(self) -> str:
        """What a loader node's input takes: ``subfolder/name``, with the folder behind it if need be."""
        path = f"{self.subfolder.rstrip('/')}/{self.name}" if self.subfolder else self.name
        marked = path.endswith(("[input]", "[output]", "[temp]"))
        return path if self.type == "input" and not marked else f"{path} [{self.type}]"


class FileRoutes(Routes):
    """Files of the server."""

    async def upload_image(
        self,
        file: Uploadable,
        filename: str,
        *,
        subfolder: str = "",
        type: str = "input",
        overwrite: bool = False,
        limit: int | None = None,
    ) -> Upload:
        """Store a file of any kind on the server (``POST /upload/image``).

        Without ``overwrite``, a file of that name and these bytes is used as it is, and beside one of other bytes it is
        stored under a number: use what is returned. Cancelling it is safe; the file may have been stored all the same.

        Args:
            file: Bytes, the path of a file, or a file open for reading bytes, which is read from where it stands and
                left open; from disk it is read as it is sent.
            filename: Its name there; a slash in it is a directory, which must exist (500 else).
            subfolder: Made where it does not exist.
            type: ``input``, ``temp`` or ``output``: the folder.
            limit: Bytes that the server takes, where it told; a larger file is not sent.

        Raises:
            PayloadTooLarge: The file is over ``limit``, or over the server's (413).
            HTTPError: 400 when the path leads out of the folder, 500 for an unknown ``type``.
            OSError, ValueError, TypeError: The file cannot be read, or the name not be sent.
        """
        fields = {"type": type, "subfolder": subfolder}
        return await self._upload("/upload/image", file, filename, fields, overwrite, limit)

    async def upload_mask(
        self,
        file: Uploadable,
        filename: str,
        original_ref: Mapping[str, Any],
        *,
        subfolder: str = "",
        type: str = "input",
        overwrite: bool = False,
        limit: int | None = None,
    ) -> Upload:
        """Store a copy of a picture with the alpha channel of another as its mask (``POST /upload/mask``).

        It is saved as PNG, with the text chunks of the original. Without an original the server answers with a name all
        the same, and stores nothing.

        Args:
            file: The mask, as for `upload_image`; only its alpha channel counts.
            original_ref: The picture: ``{"filename": ..., "subfolder": ..., "type": ...}``; type ``output`` if absent.

        Raises:
            HTTPError: 400 or 403 for a reference that leads out of its folder, 500 for one without ``filename``.
            PayloadTooLarge, OSError, ValueError, TypeError: As `upload_image`.
        """
        fields = {"type": type, "subfolder": subfolder, "original_ref": json.dumps(dict(original_ref))}
        return await self._upload("/upload/mask", file, filename, fields, overwrite, limit)

    async def _upload(
        self, path: str, file: Uploadable, filename: str, fields: dict[str, str], overwrite: bool, limit: int | None
    ) -> Upload:
        if overwrite:
            fields["overwrite"] = "true"
        answer = await self._send_file(path, "image", file, filename, fields, limit)
        return _upload(answer, path)

    def view(
        self,
        filename: str,
        *,
        subfolder: str = "",
        type: str = "output",
        preview: str | None = None,
        channel: str | None = None,
        res: int | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Open a file of the server for reading (``GET /view``).

        What breaks while it is read is raised as by the other routes; the caller's own errors pass. The file itself
        (without ``preview``, ``channel`` and ``res``) has an ETag, and ``Range`` and ``If-None-Match`` work.

        Args:
            type: ``output``, ``temp`` or ``input``: the directory.
            preview: Have the picture encoded anew by the server: ``webp`` or ``jpeg``, with the quality behind it as in
                ``webp;75`` (90 if absent). 500 for what is no picture.
            channel: ``rgb``: a PNG without alpha; ``a``: alpha as a PNG. Both without the metadata.
            res: Have a picture made smaller, as JPEG; most servers do not look at it and send the file.
            headers: More headers, for example ``{"Range": "bytes=1000-"}``.
            allowed: Statuses of 300 and above that are answers all the same, for example 304 and 416.

        Raises:
            HTTPError: 404 when the file is not there, 400 or 403 for a path that leads out of the folder, and for any
                name with ``..`` in it.
            ProtocolError: A page came in the place of the file, from a proxy or a login.
        """
        params = query(filename=filename, subfolder=subfolder, type=type, preview=preview, channel=channel, res=res)
        return self._transport.stream("GET", "/view", params=params, headers=headers, allowed=allowed, file=True)

    async def get_view_metadata(self, folder: str, filename: str) -> dict[str, Any]:
        """Give what a model file says of itself (``GET /view_metadata/{folder}``): safetensors' ``__metadata__``.

        Args:
            folder: A key of ``GET /models``, for example ``loras``.

        Raises:
            HTTPError: 404 when there is no such folder or file, or it says nothing.
        """
        return await self._transport.get_object(f"/view_metadata/{segment(folder)}", query(filename=filename))


def _upload(answer: Any, path: str) -> Upload:
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str) or not answer["name"]:
        raise ProtocolError(f"POST {path} was answered without the name of a stored file")
    subfolder, kind = answer.get("subfolder"), answer.get("type")
    return Upload(
        answer["name"],
        subfolder if isinstance(subfolder, str) else "",
        kind if isinstance(kind, str) else "input",
        answer,
    )

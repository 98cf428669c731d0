"""The server's folders: where nodes save, where uploads go, what ``/view`` shows.

Rules of ComfyUI folder_paths.py, nodes.py and server.py (0.3.64).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import mimetypes
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, hdrs, web
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

FOLDER_TYPES = ("input", "output", "temp")

FILE = web.ResponseKey("file", Path)
"""The file that a response sends."""

# Shown by a browser as a page or a script; ComfyUI serves them as plain bytes.
_DEFUSED = frozenset(
    {
        "text/html",
        "text/html-sandboxed",
        "application/xhtml+xml",
        "text/javascript",
        "application/javascript",
        "text/css",
    }
)


class Folders:
    """The input, output and temp folders of one server; it has none until `create` is called.

    Attributes:
        paths: The folders by type.
    """

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}
        self._counters: dict[tuple[Path, str], tuple[int, Path | None]] = {}

    def create(self, base: Path, output: Path | None = None) -> None:
        """Make the folders under ``base``, with the output folder somewhere else if that is given."""
        self.paths = {"input": base / "input", "output": output or base / "output", "temp": base / "temp"}
        for path in self.paths.values():
            path.mkdir(parents=True, exist_ok=True)

    def names(self, folder: str = "input") -> list[str]:
        """List the files that lie directly in a folder, as the choices of LoadImage do."""
        return sorted(entry.name for entry in os.scandir(self.paths[folder]) if entry.is_file())

    def locate(self, name: str) -> Path:
        """Find the file that a loader names: ``sub/name.png``, or with `` [output]`` or `` [temp]`` behind it."""
        folder, name = annotated(name, "input")
        return self.paths[folder] / name

    def contains(self, folder: str, path: Path) -> bool:
        """Tell whether a path lies in a folder, however it is written."""
        base = os.path.abspath(self.paths[folder])
        return os.path.commonpath((base, os.path.abspath(path))) == base

    def next_names(self, folder: str, prefix: str, size: tuple[int, int]) -> tuple[Path, str, str, int]:
        """Find out where a node saves: the directory, the name's stem, the subfolder and the first free counter.

        Raises:
            Exception: The prefix leads outside the folder; the message is ComfyUI's.
        """
        prefix = os.path.normpath(_filled(prefix, size))
        subfolder, stem = os.path.dirname(prefix), os.path.basename(prefix)
        directory = self.paths[folder] / subfolder
        if not self.contains(folder, directory):
            base = os.path.abspath(self.paths[folder])
            full = os.path.abspath(directory)
            raise Exception(
                "**** ERROR: Saving image outside the output folder is not allowed."
                f"\n full_output_folder: {full}\n         output_dir: {base}"
                f"\n         commonpath: {os.path.commonpath((base, full))}"
            )
        directory.mkdir(parents=True, exist_ok=True)
        return directory, stem, subfolder, self._next_counter(directory, stem)

    def save(self, directory: Path, stem: str, counter: int, data: bytes, extension: str = "png") -> str:
        """Write a file and return its name."""
        name = f"{stem}_{counter:05}_.{extension}"
        (directory / name).write_bytes(data)
        self._counters[directory, stem] = counter, directory / name
        return name

    def save_as(self, filename: str, content: bytes) -> str:
        """Write a file into the output folder under its own name, or the first free one after it; return that."""
        path, number = self.paths["output"] / filename, 1
        while path.exists():
            number += 1
            path = path.with_name(f"{Path(filename).stem}_{number}{Path(filename).suffix}")
        path.write_bytes(content)
        return path.name

    def _next_counter(self, directory: Path, stem: str) -> int:
        # ComfyUI counts the files at each save. We do so only when the last one is gone, to stay fast with many.
        last, path = self._counters.get((directory, stem), (0, None))
        if path is not None and path.exists():
            return last + 1
        pattern = re.compile(re.escape(stem) + r"_(\d+)_", re.IGNORECASE)
        found = [pattern.match(entry.name) for entry in os.scandir(directory)]
        return max((int(match[1]) for match in found if match), default=0) + 1

    def clear_temp(self) -> None:
        """Empty the temp folder, as a server does when it starts."""
        for entry in self.paths["temp"].rglob("*"):
            if entry.is_file():
                entry.unlink()


def annotated(name: str, folder: str) -> tuple[str, str]:
    """Split a name like ``x.png [output]`` into its folder and its bare name; ``folder`` when it has no mark."""
    for kind in FOLDER_TYPES:
        if name.endswith(f" [{kind}]"):
            return kind, name.removesuffix(f" [{kind}]")
    return folder, name


def _filled(prefix: str, size: tuple[int, int]) -> str:
    now = time.localtime()
    for key, value in {
        "width": str(size[0]),
        "height": str(size[1]),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }.items():
        prefix = prefix.replace(f"%{key}%", value)
    return prefix


def encode_png(image: Image.Image, chunks: Mapping[str, str] | None = None, level: int = 4) -> bytes:
    """Encode a picture as PNG, with text chunks."""
    info = PngInfo()
    for key, value in (chunks or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=level)
    return buffer.getvalue()


# --- GET /view -----------------------------------------------------------------------------------------------------


async def view(folders: Folders, request: web.Request, *, guarded: bool) -> web.StreamResponse:
    """Answer ``GET /view``: the file, or a preview or a channel of it.

    Args:
        guarded: Keep browsers from showing what may hold scripts, as newer versions do.
    """
    query = request.query
    if "filename" not in query:
        return web.Response(status=404)
    folder, name = annotated(query["filename"], query.get("type", "output"))
    if not name or name[0] == "/" or ".." in name or folder not in FOLDER_TYPES:
        return web.Response(status=400)
    directory = folders.paths[folder]
    if "subfolder" in query:
        directory = directory / query["subfolder"]
        if not folders.contains(folder, directory):
            return web.Response(status=403)
    path = directory / os.path.basename(name)
    if not path.is_file():
        return web.Response(status=404)
    disposition: dict[str, str] = {hdrs.CONTENT_DISPOSITION: f'filename="{path.name}"'}
    if "preview" in query:
        channel = query.get("channel", "")
        body, mime = await asyncio.to_thread(_preview, path, query["preview"], channel)
        return web.Response(body=body, content_type=mime, headers=disposition)
    if query.get("channel") in ("rgb", "a"):
        body = await asyncio.to_thread(_channel, path, query["channel"])
        return web.Response(body=body, content_type="image/png", headers=disposition)
    mime = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if mime in _DEFUSED and not guarded:
        mime = "application/octet-stream"
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: mime}
    headers |= _guarded_headers(request, path.name) if guarded else disposition
    response = web.FileResponse(path, headers=headers)
    response[FILE] = path
    return response


def _guarded_headers(request: web.Request, name: str) -> dict[str, str]:
    """Give the headers of a file; what may hold scripts is to be downloaded, but for an SVG that an <img> asks for."""
    mime = mimetypes.guess_type(name)[0] or ""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    headers: dict[str, str] = {"X-Content-Type-Options": "nosniff", hdrs.CONTENT_DISPOSITION: f'filename="{escaped}"'}
    if mime not in _DEFUSED and not mime.endswith(("+xml", "/xml")):
        return headers
    headers |= {hdrs.VARY: "Sec-Fetch-Dest", hdrs.CACHE_CONTROL: "no-store"}
    if mime == "image/svg+xml" and request.headers.get("Sec-Fetch-Dest") == "image":
        return headers
    headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
    headers[hdrs.CONTENT_DISPOSITION] = f'attachment; filename="{escaped}"'
    return headers


def _preview(path: Path, wish: str, channel: str) -> tuple[bytes, str]:
    kind, _, rest = wish.partition(";")
    if kind not in ("webp", "jpeg") or "a" in channel:
        kind = "webp"
    quality = int(rest) if rest.isdigit() else 90
    with Image.open(path) as image:
        picture = image.convert("RGB") if kind == "jpeg" or channel == "rgb" else image.copy()
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=quality)
    return buffer.getvalue(), f"image/{kind}"


def _channel(path: Path, channel: str) -> bytes:
    with Image.open(path) as image:
        if channel == "rgb":
            return encode_png(image.convert("RGB"), level=6)
        alpha = image.getchannel("A") if "A" in image.getbands() else Image.new("L", image.size, 255)
    only_alpha = Image.new("RGBA", alpha.size)
    only_alpha.putalpha(alpha)
    return encode_png(only_alpha, level=6)


# --- POST /upload/image and /upload/mask -----------------------------------------------------------------------------


async def upload_image(folders: Folders, request: web.Request) -> tuple[web.Response, dict[str, Any]]:
    """Answer ``POST /upload/image``; return the response and what the server made of the upload."""
    form = await _read_form(request)
    target = _upload_target(folders, form)
    if isinstance(target, web.Response):
        return target, {}
    directory, name, folder = target
    data: bytes = form["image"][1]
    if form.get("overwrite") not in ("true", "1"):
        name = _free_name(directory, name, data)
    (directory / name).write_bytes(data)
    answer = {"name": name, "subfolder": form.get("subfolder", ""), "type": folder}
    return web.json_response(answer), {**answer, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


async def upload_mask(folders: Folders, request: web.Request) -> tuple[web.Response, dict[str, Any]]:
    """Answer ``POST /upload/mask``: write the upload's alpha onto the image that ``original_ref`` names."""
    form = await _read_form(request)
    target = _upload_target(folders, form)
    if isinstance(target, web.Response):
        return target, {}
    directory, name, folder = target
    reference = json.loads(form["original_ref"])
    kind, original = annotated(reference["filename"], reference.get("type", "output"))
    if not original or original[0] == "/" or ".." in original or kind not in FOLDER_TYPES:
        return web.Response(status=400), {}
    source = folders.paths[kind] / reference.get("subfolder", "") / os.path.basename(original)
    if not folders.contains(kind, source.parent):
        return web.Response(status=403), {}
    if source.is_file():
        masked = await asyncio.to_thread(_masked, source, form["image"][1])
        (directory / _free_name(directory, name, masked)).write_bytes(masked)
    answer = {"name": name, "subfolder": form.get("subfolder", ""), "type": folder}
    return web.json_response(answer), answer


async def _read_form(request: web.Request) -> dict[str, Any]:
    """Read a multipart form; a file is ``(filename, bytes)``, a field its text."""
    form: dict[str, Any] = {}
    if not (request.content_type or "").startswith("multipart/"):
        await request.read()
        return form
    size = 0
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader) or part.name is None:
            continue
        data = await part.read(decode=True)
        size += len(data)
        if request.client_max_size and size > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, size)
        form[part.name] = (part.filename, data) if part.filename else data.decode("utf-8")
    return form


def _upload_target(folders: Folders, form: Mapping[str, Any]) -> tuple[Path, str, str] | web.Response:
    """Decide where an upload goes, or refuse it; an unknown type or an empty file name raises: 500 in ComfyUI."""
    if "image" not in form:
        return web.Response(status=400)
    if isinstance(form["image"], str):
        raise TypeError("the image is a field, not a file: it has no file name")
    name = form["image"][0]
    folder = form.get("type") or "input"
    directory = Path(os.path.normpath(folders.paths[folder] / form.get("subfolder", "").lstrip("/")))
    if not folders.contains(folder, directory / name):
        return web.Response(status=400)
    directory.mkdir(parents=True, exist_ok=True)
    return directory, name, folder


def _free_name(directory: Path, name: str, data: bytes) -> str:
    """Find a name that is free, or that holds these very bytes: ``u.png``, ``u (1).png``, ``u (2).png``..."""
    stem, extension = os.path.splitext(name)
    number = 0
    while (directory / name).exists() and (directory / name).read_bytes() != data:
        number += 1
        name = f"{stem} ({number}){extension}"
    return name


def _masked(source: Path, mask: bytes) -> bytes:
    with Image.open(source) as original, Image.open(io.BytesIO(mask)) as alpha:
        chunks = dict(original.text) if isinstance(original, PngImageFile) else {}
        picture = original.convert("RGBA")
        picture.putalpha(alpha.convert("RGBA").getchannel("A"))
    return encode_png(picture, chunks, level=4)

"""What a node produced: references to files, streamed pictures and text, from ``executed`` or from history.

A node's ``ui`` output is a dict of lists. Its keys are conventions of node authors (an mp4 stands under ``images`` or
``gifs``), so they are not trusted: whatever is a dict with a ``filename`` is a file, and its media type comes from the
entry's ``format`` if that is one that is known, from the file's extension, and else from its first bytes once it is
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .frames import OCTETS, sniff_mime

_MEDIA_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "apng": "image/apng",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "svg": "image/svg+xml",
    "exr": "image/x-exr",
    "hdr": "image/vnd.radiance",
    "mp4": "video/mp4",
    "m4v": "video/mp4",
    "webm": "video/webm",
    "mov": "video/quicktime",
    "mkv": "video/x-matroska",
    "avi": "video/x-msvideo",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "glb": "model/gltf-binary",
    "gltf": "model/gltf+json",
    "obj": "model/obj",
    "fbx": "model/x-fbx",
    "usdz": "model/vnd.usdz+zip",
    "splat": "model/x-splat",
    "ksplat": "model/x-ksplat",
    "spz": "model/x-spz",
    "stl": "model/stl",
    "ply": "model/ply",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "json": "application/json",
}
_KNOWN = frozenset(_MEDIA_TYPES.values())
_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif"}


@dataclass(frozen=True, slots=True)
class FileReference:
    """A file on the server, to be read by ``GET /view``.

    Attributes:
        node_id: The node of the prompt that made it (for an expanded node, the one that it stands for).
        key: The key of the node's ui output under which it stood (``images``, ``gifs``, ``audio``...).
        type: ``output``, ``temp`` or ``input``: the directory on the server.
        media_type: For example ``image/png``; ``application/octet-stream`` when nothing tells.
        animated: True when the node said so of its pictures.
        entry: The entry as the server sent it.
    """

    node_id: str
    key: str
    filename: str
    subfolder: str
    type: str
    media_type: str
    animated: bool = False
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class StreamedImage:
    """A picture that came over the WebSocket (``SaveImageWebsocket``); the server keeps no copy.

    Attributes:
        index: Its place among the pictures of its node, from 0.
        view: The image file as a view of the received frame.
    """

    node_id: str
    index: int
    view: memoryview = field(repr=False)
    media_type: str


@dataclass(frozen=True, slots=True)
class TextValue:
    """A text that a node shows (``ui.text``)."""

    node_id: str
    key: str
    text: str


Produced: TypeAlias = FileReference | StreamedImage | TextValue


def produced_by(node_id: str, ui: Mapping[str, Any]) -> Iterator[FileReference | TextValue]:
    """Yield what a node's ui output holds, in its order. Values of other kinds stay in the raw dict alone."""
    animated = _animated(ui)
    for key, value in ui.items():
        for item in _leaves(value):
            if not isinstance(item, str):
                yield _file_reference(node_id, key, item, animated)
            elif key == "text":
                yield TextValue(node_id, key, item)
            elif key == "result" and media_type(item.partition(" [")[0]).startswith("model/"):
                yield _model_file(node_id, key, item)


def _animated(ui: Mapping[str, Any]) -> bool:
    flags = ui.get("animated")
    return any(flags) if isinstance(flags, list | tuple) else bool(flags)


def _leaves(value: Any) -> Iterator[str | Mapping[str, Any]]:
    """Yield the strings of a value, and the file entries in order, however deep they stand in lists and dicts."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple):
            waiting.extend(reversed(item))
        elif isinstance(item, str) or (isinstance(item, Mapping) and _is_file(item)):
            yield item
        elif isinstance(item, Mapping):
            waiting.extend(part for part in reversed(list(item.values())) if not isinstance(part, str))


def _is_file(entry: Mapping[str, Any]) -> bool:
    filename = entry.get("filename")
    return isinstance(filename, str) and filename != ""


def _file_reference(node_id: str, key: str, entry: Mapping[str, Any], animated: bool) -> FileReference:
    filename: str = entry["filename"]
    subfolder, type_ = entry.get("subfolder"), entry.get("type")
    subfolder = subfolder if isinstance(subfolder, str) else ""
    if "/" in filename:
        subfolder, filename = _split(subfolder, filename)
    return FileReference(
        node_id=node_id,
        key=key,
        filename=filename,
        subfolder=subfolder,
        type=type_ if isinstance(type_, str) and type_ else "output",
        media_type=media_type(filename, entry.get("format"), key),
        animated=animated and key == "images",
        entry=entry,
    )


def _split(subfolder: str, filename: str) -> tuple[str, str]:
    """Take a path for what it is: ``/view`` drops the directories of a file name, and finds nothing."""
    directory, _, name = filename.rpartition("/")
    if not name or filename.startswith("/") or ".." in filename.split("/"):
        return subfolder, filename
    return f"{subfolder.rstrip('/')}/{directory}" if subfolder else directory, name


def _model_file(node_id: str, key: str, path: str) -> FileReference:
    """Read a path that a 3D viewer shows (Preview3D): below the output directory, or that which it names behind."""
    bare, mark, folder = path.rpartition(" [")
    if mark and folder in ("output]", "input]", "temp]"):
        path, folder = bare, folder[:-1]
    else:
        folder = "output"
    subfolder, filename = _split("", path) if "/" in path else ("", path)
    return FileReference(node_id, key, filename, subfolder, folder, media_type(filename))


def media_type(filename: str, format: object = None, key: str = "") -> str:
    """Tell a file's media type by the ``format`` that its node gave, by its extension, else by its key.

    A ``format`` counts first if it is a media type that is known: ``video/mp4``. VideoHelperSuite has its own beside
    these, for example ``video/h264-mp4``, and these count last.
    """
    if not isinstance(format, str):
        format = ""
    elif format in _KNOWN:
        return format
    for name in (filename.rpartition(".")[2], format, format.rpartition("-")[2]):
        known = _MEDIA_TYPES.get(name.lower())
        if known is not None:
            return known
    if "/" in format:
        return format
    return "image/png" if key == "images" and "." not in filename else OCTETS


def media_type_of(head: bytes | memoryview) -> str:
    """Tell a file's media type by its first 16 bytes; ``application/octet-stream`` when they are of no known kind."""
    head = bytes(head[:16])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], OCTETS)
    return sniff_mime(head) or next((known for start, known in _STARTS if head.startswith(start)), OCTETS)


_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {b"avif": "image/avif", b"avis": "image/avif", b"M4A ": "audio/mp4", b"qt  ": "video/quicktime"}
_STARTS = (
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"\x76\x2f\x31\x01", "image/x-exr"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"glTF", "model/gltf-binary"),
    (b"<svg", "image/svg+xml"),
)


# --- Renditions ------------------------------------------------------------------------------------------------------

_PREVIEW = re.compile(r"(webp|jpeg)(?:;([1-9]\d?|100))?")


@dataclass(frozen=True, slots=True)
class Rendition:
    """A picture as the server's ``/view`` makes it on the way: encoded anew, or some of its channels (server.py).

    Attributes:
        format: What comes: ``webp``, ``jpeg`` or ``png``.
        quality: 1 to 100; None for a PNG.
        preview: The parameter that asks for it; None for none.
        channel: The same.
    """

    format: str
    quality: int | None
    preview: str | None
    channel: str | None

    @property
    def extension(self) -> str:
        return "jpg" if self.format == "jpeg" else self.format


def rendition(preview: str | None, channel: str | None) -> Rendition | None:
    """Understand what is wanted of a picture; None: the file as it is.

    Raises:
        ValueError: The server does not know it (and would send something else).
    """
    if channel not in (None, "rgb", "a", "rgba"):
        raise ValueError(f"channel is 'rgb', 'a' or 'rgba', not {channel!r}")
    if preview is None:
        return Rendition("png", None, None, channel) if channel in ("rgb", "a") else None
    match = _PREVIEW.fullmatch(preview)
    if match is None:
        raise ValueError(f"preview is 'webp' or 'jpeg', with a quality if wanted ('webp;75'), not {preview!r}")
    format = "webp" if channel in ("a", "rgba") else match[1]  # where alpha is asked for, no JPEG comes
    return Rendition(format, int(match[2] or 90), preview, channel)


def extension(media_type: str) -> str:
    """Give the file name extension for a streamed picture, without a dot."""
    return _EXTENSIONS.get(media_type, "bin")


def in_graph_order(produced: Iterable[Produced], node_ids: Iterable[str]) -> list[Produced]:
    """Sort by the place of each node in the prompt; what one node produced stays as it is.

    Two output nodes were seen to finish either way round, so the order of arrival would differ from run to run.
    """
    places = {node_id: place for place, node_id in enumerate(node_ids)}
    return sorted(produced, key=lambda item: places.get(item.node_id, len(places)))


def from_history(entry: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Read a history entry's outputs: ``{node_id: (display_node, ui)}``, as the ``executed`` events would give them."""
    outputs, meta = entry.get("outputs"), entry.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    found = {}
    for node_id, ui in outputs.items() if isinstance(outputs, Mapping) else ():
        if isinstance(ui, Mapping):
            found[node_id] = (_display_node(node_id, meta.get(node_id)), ui)
    return found


def _display_node(node_id: str, about: Any) -> str:
    """Read off its ``meta`` which node of the prompt a node stands for."""
    display_node = about.get("display_node") if isinstance(about, Mapping) else None
    if not isinstance(display_node, str):
        return node_id
    if about.get("node_id") == node_id:
        return display_node
    # Of a cached node it is that of the prompt that ran it, where it may have had another id (execution.py, 0.3.64).
    # An expanded node's id begins with that of the node that it stands for (graph_utils.py GraphBuilder).
    return node_id.partition(".")[0]


# --- Names of files to write -----------------------------------------------------------------------------------------

# Control characters, what Windows forbids, and lone surrogates, which no file system takes as UTF-8.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])( *\.|$)", re.IGNORECASE)
_LONGEST_NAME, _LONGEST_SUFFIX = 200, 40


def safe_filename(name: str) -> str:
    """Make of a name that the server sent one that stays inside its directory, on every system.

    Directory parts are dropped; control characters and what Windows forbids become ``_``; reserved device names and
    hidden files get a ``_`` in front; a long name is shortened before its extension.
    """
    name = _UNSAFE.sub("_", re.split(r"[/\\]", name)[-1]).rstrip(". ")
    if not name or name.startswith(".") or _RESERVED.match(name):
        name = "_" + name
    encoded = name.encode()
    if len(encoded) <= _LONGEST_NAME:
        return name
    suffix = name[name.rindex(".") :].encode() if "." in name else b""
    if len(suffix) > _LONGEST_SUFFIX:
        suffix = b""
    return (encoded[: _LONGEST_NAME - len(suffix)] + suffix).decode("utf-8", "ignore").rstrip(". ")

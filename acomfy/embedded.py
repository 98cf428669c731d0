"""What ComfyUI writes into the files that it saves: the prompt, the workflow and other texts.

`scan` is a generator that asks for the bytes it needs (see tags.py), so that a film of a gigabyte is read by a few
pieces, from a file or by HTTP. `read_embedded` and `read_embedded_file` drive it over bytes and over an open file.

Whatever the bytes are, nothing but `MetadataError` is raised, and memory stays bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from . import media_tags, picture_tags
from .tags import Scan, Texts

LARGEST_OFFSET = 1 << 62
"""No file is longer: a reader that asks for bytes behind it followed a damaged length, and is sent none."""

_HEAD = 512


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written into a file.

    Attributes:
        kind: What the file is by its first bytes: ``png``, ``webp``, ``jpeg``, ``exr``, ``svg``, ``flac``, ``ogg``,
            ``mp3``, ``mp4``, ``matroska``, ``safetensors`` or ``glb``; "" when it is none of these.
        prompt: The prompt in API format, which `Workflow` takes; None when there is none.
        workflow: The editor's own JSON; None when there is none (API users mostly send none).
        texts: Every text of the file by its key, ``prompt`` and ``workflow`` among them, as they were written.
    """

    kind: str
    prompt: dict[str, Any] | None = field(default=None, repr=False)
    workflow: dict[str, Any] | None = field(default=None, repr=False)
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_embedded(data: bytes | memoryview) -> Embedded:
    """Read what was written into a file, given its bytes. A file of another kind holds nothing.

    Raises:
        MetadataError: The file is damaged, or its metadata are larger than `tags.LARGEST`.
    """
    view = memoryview(data).cast("B")
    return _drive(lambda offset, length: bytes(view[offset : offset + length]))


def read_embedded_file(file: IO[bytes]) -> Embedded:
    """Read what was written into an open file, which must be able to seek. Only what is needed is read.

    Raises:
        MetadataError: As `read_embedded`.
        OSError: The file cannot be read.
    """

    def read_at(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    return _drive(read_at)


def _drive(read_at: Callable[[int, int], bytes]) -> Embedded:
    steps = scan()
    request = next(steps)
    while True:
        try:
            offset, length = request
            request = steps.send(b"" if offset > LARGEST_OFFSET else read_at(offset, length))
        except StopIteration as stop:
            found: Embedded = stop.value
            return found


def scan() -> Scan[Embedded]:
    """Ask for the bytes that are needed, and give what they hold.

    Raises:
        MetadataError: As `read_embedded`.
    """
    head = yield 0, _HEAD
    kind, reader = _reader(head)
    texts = Texts()
    if reader is not None:
        yield from reader(texts)
    return _understood(kind, texts)


def kind_of(head: bytes) -> str:
    """Tell what a file is by its first bytes (512 are enough): see `Embedded.kind`."""
    return _reader(head)[0]


_BY_START: tuple[tuple[bytes, str, Callable[[Texts], Scan[None]]], ...] = (
    (picture_tags.PNG, "png", picture_tags.read_png),
    (b"\xff\xd8\xff", "jpeg", picture_tags.read_jpeg),
    (picture_tags.EXR, "exr", picture_tags.read_exr),
    (b"fLaC", "flac", media_tags.read_flac),
    (b"OggS", "ogg", media_tags.read_ogg),
    (b"ID3", "mp3", media_tags.read_id3),
    (b"\x1a\x45\xdf\xa3", "matroska", media_tags.read_matroska),
    (b"glTF", "glb", media_tags.read_glb),
)


def _reader(head: bytes) -> tuple[str, Callable[[Texts], Scan[None]] | None]:
    for start, kind, reader in _BY_START:
        if head.startswith(start):
            return kind, reader
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp", picture_tags.read_webp
    if head[4:8] == b"ftyp":
        return "mp4", media_tags.read_mp4
    # A safetensors file begins with the length of its JSON, which no more than six bytes are needed for.
    if head[6:9] == b"\0\0{":
        return "safetensors", media_tags.read_safetensors
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<" and b"<svg" in head:
        return "svg", picture_tags.read_svg
    return "", None


# --- What the texts say ----------------------------------------------------------------------------------------------

_COMMENTS = ("comment", "usercomment", "imagedescription", "description")


def _understood(kind: str, texts: Texts) -> Embedded:
    """Find the graphs among the texts, whatever the case of their keys; else in a comment that holds both."""
    by_name = {key.lower(): text for key, text in reversed(texts.items())}
    graphs = {name: _object(by_name.get(name)) for name in ("prompt", "workflow")}
    if not any(graphs.values()):
        for name in _COMMENTS:
            comment = _object(by_name.get(name)) or {}
            graphs = {graph: value or _object(comment.get(graph)) for graph, value in graphs.items()}
    return Embedded(kind, graphs["prompt"], graphs["workflow"], texts)


_OBJECT_OR_STRING = re.compile(r'\s*[{"]')


def _object(value: Any) -> dict[str, Any] | None:
    """Give a JSON object, which may have been written twice over; NaN and integers of any size are taken."""
    for _ in range(2):
        if not isinstance(value, str) or not _OBJECT_OR_STRING.match(value):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None

"""Decode pictures, and make of them what ``GET /view`` would. All of it takes its time and belongs in a thread."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from .outputs import Rendition


class _ViewFile(io.RawIOBase):
    """A file to read that lies in memory. `io.BytesIO` would copy it, and nothing else runs meanwhile: 0.4 ms a MB."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._view[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def decode(data: bytes | memoryview) -> Image:
    """Decode a picture. Pillow's limits against bombs hold."""
    import PIL.Image

    image = PIL.Image.open(io.BufferedReader(_ViewFile(memoryview(data))))
    image.load()
    return image


def render(data: bytes | memoryview, rendition: Rendition) -> bytes:
    """Make of a picture what the server's ``/view`` would: another format, or some of its channels (server.py)."""
    import PIL.Image

    image, options = decode(data), {}
    if rendition.quality is not None:
        options = {"quality": rendition.quality}
        if rendition.format == "jpeg" or rendition.channel == "rgb":
            image = image.convert("RGB")
    elif rendition.channel == "rgb":
        image = image.convert("RGB")
    elif rendition.channel == "a":
        alpha = image.getchannel("A") if "A" in image.getbands() else PIL.Image.new("L", image.size, 255)
        image = PIL.Image.new("RGBA", image.size)
        image.putalpha(alpha)
    buffer = io.BytesIO()
    image.save(buffer, rendition.format, **options)
    return buffer.getvalue()

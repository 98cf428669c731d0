"""What the readers of a file's tags have in common: asking for bytes, and a bounded bag of texts.

A reader is a generator. It yields ``(offset, length)`` and is sent the bytes that stand there, fewer only at the end
of the file. So it knows nothing of files and sockets, asks for no more than it needs, and serves both.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import TypeAlias, TypeVar

from .errors import MetadataError

T = TypeVar("T")
Scan: TypeAlias = Generator[tuple[int, int], bytes, T]
"""Yields ``(offset, length)``, is sent the bytes, and returns what was found."""

LARGEST = 32 << 20
"""The most bytes of tags that are read of one file, and the most text that they may unpack to."""

MOST_PARTS = 1 << 16
"""The most chunks, boxes or pages that are looked at: a PNG of 12 MB has 200."""


class Texts(dict[str, str]):
    """The texts of a file by their keys, together no more than `LARGEST`. Of one key the first stays."""

    def __init__(self) -> None:
        super().__init__()
        self.room = LARGEST

    def add(self, key: str, text: str) -> None:
        """Take a text.

        Raises:
            MetadataError: There is no room for it.
        """
        self.check(len(key) + len(text))
        self.room -= len(key) + len(text)
        self.setdefault(key, text)

    def check(self, size: int) -> None:
        """Raise `MetadataError` when there is no room for that much."""
        if size > self.room:
            raise too_large("its texts")

    def add_members(self, data: bytes, *path: str) -> None:
        """Take the members of an object within a JSON text, those that are no texts as JSON.

        Raises:
            MetadataError: It is not JSON.
        """
        try:
            found = json.loads(data)
            for name in path:
                found = found.get(name) if isinstance(found, dict) else None
            for key, value in found.items() if isinstance(found, dict) else ():
                self.add(key, value if isinstance(value, str) else json.dumps(value))
        except (ValueError, RecursionError) as exc:
            raise MetadataError(f"its JSON cannot be read: {exc}") from None

    def has_graph(self) -> bool:
        """Tell whether what ComfyUI writes is there, so that nothing more need be read."""
        return any(key.lower() in ("prompt", "workflow") for key in self)


def too_large(what: str) -> MetadataError:
    return MetadataError(f"{what} are over the {LARGEST} bytes that are read of a file's metadata")


def take(offset: int, length: int) -> Scan[bytes]:
    """Ask for bytes that must be there.

    Raises:
        MetadataError: They are more than is read of a file, or it ends before.
    """
    if length > LARGEST:
        raise too_large(f"the {length} bytes at {offset}")
    data = yield offset, length
    if len(data) < length:
        raise MetadataError(f"the file ends at {offset + len(data)}, in the middle of its metadata")
    return data


def decode(data: bytes) -> str:
    """Decode a text that should be Latin-1 or ASCII and is often UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")

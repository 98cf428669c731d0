"""Go on with a file where a broken connection left it, and never join parts of two versions of it.

`Received` says what to ask for (``Range``), and judges the answer by its status and headers. What was received stands
if the answer is of the same version: by a strong ``ETag``, else by ``Last-Modified`` and size. That is compared here
whatever the server makes of ``If-Range``: aiohttp, which ComfyUI serves ``/view`` with, reads only dates in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ProtocolError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_LENGTH = re.compile(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells versions of a file apart; without a tag and a time nothing does.

    Attributes:
        tag: Its ETag, if that is a strong one.
        modified: Its Last-Modified.
        total: Its bytes; None when that was not told.
    """

    tag: str | None = None
    modified: str | None = None
    total: int | None = None

    @property
    def name(self) -> str | None:
        """What ``If-Range`` takes."""
        return self.tag or (self.modified if self.total is not None else None)

    @classmethod
    def of(cls, headers: Mapping[str, str], total: int | None) -> Version:
        """Read it off an answer's headers."""
        tag = headers.get("ETag")
        return cls(tag if tag and tag.startswith('"') else None, headers.get("Last-Modified"), total)

    def is_that_of(self, other: Version) -> bool:
        if None not in (self.total, other.total) and self.total != other.total:
            return False
        if self.tag or other.tag:
            return self.tag == other.tag
        return self.name is not None and self.name == other.name


class Received:
    """How much of a file was received, over as many answers as it takes.

    Attributes:
        size: Bytes from the beginning of the file that were received.
        furthest: The most that `size` ever was.
    """

    __slots__ = ("_asked_at", "_skip", "_version", "furthest", "size")

    def __init__(self) -> None:
        self.size = self.furthest = 0
        self._version = Version()
        self._asked_at = self._skip = 0

    @property
    def can_go_on(self) -> bool:
        """Whether the rest alone can be asked for."""
        return self.size > 0 and self._version.name is not None

    @property
    def total(self) -> int | None:
        """The bytes of the whole file; None when that was not told."""
        return self._version.total

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, as far as the server told how much there is."""
        return not self._skip and self.total in (None, self.size)

    def headers(self) -> dict[str, str]:
        """Say what to ask for next: the file, or the rest of it; uncompressed, so that positions mean something."""
        headers = {"Accept-Encoding": "identity"}
        self._asked_at = 0
        if self.can_go_on and self._version.name is not None:
            self._asked_at = self.size
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self._version.name}
        return headers

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        """Judge an answer. False: its body is of no use, and the file must be asked for again, from the beginning.

        Raises:
            ProtocolError: What it says of its part does not fit together, or not with what was asked for.
        """
        self._skip = 0
        encoded = is_encoded(headers)
        if status == 206:
            total = self._total_of_part(headers, encoded)
            if self._version.is_that_of(Version.of(headers, self.total if total is None else total)) and not encoded:
                return True
            self.start_over()
            return False
        version = Version() if encoded else Version.of(headers, _number(headers.get("Content-Length")))
        if self.size and version.is_that_of(self._version):
            self._skip = self.size  # the server knows no ranges: the same bytes come once more
        else:
            self.size = 0
        self._version = version
        return True

    def _total_of_part(self, headers: Mapping[str, str], encoded: bool) -> int | None:
        start, end, total = content_range(headers)
        if self._asked_at == 0:
            raise ProtocolError("a part of a file came, and the whole was asked for")
        if start != self._asked_at:
            raise ProtocolError(f"a part of a file begins at {start}, and not at {self._asked_at} as was asked for")
        length = _number(headers.get("Content-Length"))
        if not encoded and length not in (None, end + 1 - start):
            raise ProtocolError(f"a part of a file, the bytes {start} to {end}, came with {length} bytes")
        return total

    def take(self, data: bytes) -> bytes:
        """Count what came; give what of it is new.

        Raises:
            ProtocolError: It is more than the file has.
        """
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        self.size += len(data)
        if self.total is not None and self.size > self.total:
            raise ProtocolError(f"{self.size} bytes came of a file of {self.total}")
        self.furthest = max(self.furthest, self.size)
        return data

    def start_over(self) -> None:
        """Forget what was received: it is of another version of the file."""
        self.size, self._version = 0, Version()


def is_encoded(headers: Mapping[str, str]) -> bool:
    """Tell whether the body is compressed: then its length and positions are not those of the file."""
    return headers.get("Content-Encoding", "identity").lower() != "identity"


def content_range(headers: Mapping[str, str]) -> tuple[int, int, int | None]:
    """Read a ``Content-Range``: the first byte, the last, and the bytes of the file (None when that was not told).

    Raises:
        ProtocolError: It is missing, or makes no sense.
    """
    said = headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(said)
    if match is not None:
        start, end, total = int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
        if start <= end and (total is None or end < total):
            return start, end, total
    raise ProtocolError(f"a part of a file came with the Content-Range {said[:100]!r}")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and _LENGTH.fullmatch(text) else None

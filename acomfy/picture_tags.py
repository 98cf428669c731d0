"""Read the texts that pictures hold: PNG, WEBP, JPEG, OpenEXR and SVG.

What ComfyUI writes (comfy_api/latest/_ui.py, comfy_extras/nodes_images.py, 0.3.64 and 0.33.0): PNG text chunks; in an
animated PNG private ``comf`` chunks behind the pixels; in WEBP the EXIF tags Model (``prompt:{...}``) and Make and
those below it (``workflow:{...}``); in OpenEXR string attributes; in SVG a JSON object in ``<metadata>``. Custom nodes
write JPEG in the manner of WEBP, or put the text into UserComment or ImageDescription.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from .errors import MetadataError
from .tags import LARGEST, MOST_PARTS, Scan, Texts, decode, take, too_large

PNG = b"\x89PNG\r\n\x1a\n"
EXR = b"\x76\x2f\x31\x01"

# --- PNG -------------------------------------------------------------------------------------------------------------


def read_png(texts: Texts) -> Scan[None]:
    at = len(PNG)
    for _ in range(MOST_PARTS):
        head = yield at, 8
        if len(head) < 8:
            return  # without IEND: what was found is whole
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in _PNG_TEXTS:
            _PNG_TEXTS[kind](texts, (yield from take(at + 8, length)))
        elif kind == b"IEND" or (kind == b"IDAT" and texts.has_graph()):
            return
        at += 12 + length
    raise MetadataError(f"the PNG has more than {MOST_PARTS} chunks")


def _plain_text(texts: Texts, data: bytes) -> None:
    key, _, text = data.partition(b"\0")
    texts.add(key.decode("latin-1"), decode(text))


def _compressed_text(texts: Texts, data: bytes) -> None:
    key, _, rest = data.partition(b"\0")
    texts.add(key.decode("latin-1"), decode(_inflate(rest[1:], texts.room)))


def _international_text(texts: Texts, data: bytes) -> None:
    key, _, rest = data.partition(b"\0")
    compressed, rest = rest[:1] == b"\1", rest[2:]
    text = rest.partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated key
    texts.add(key.decode("latin-1"), decode(_inflate(text, texts.room) if compressed else text))


_PNG_TEXTS = {b"tEXt": _plain_text, b"comf": _plain_text, b"zTXt": _compressed_text, b"iTXt": _international_text}


def _inflate(data: bytes, room: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, room + 1)
    except zlib.error as exc:
        raise MetadataError(f"a compressed text cannot be unpacked: {exc}") from exc
    if len(text) > room:
        raise too_large("its texts, unpacked,")
    return text


# --- WEBP and JPEG: EXIF ---------------------------------------------------------------------------------------------


def read_webp(texts: Texts) -> Scan[None]:
    at = 12
    for _ in range(MOST_PARTS):
        head = yield at, 8
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"EXIF":
            _read_exif(texts, (yield from take(at + 8, length)))
            return
        at += 8 + length + length % 2
    raise MetadataError(f"the WEBP has more than {MOST_PARTS} chunks")


def read_jpeg(texts: Texts) -> Scan[None]:
    at = 2
    for _ in range(MOST_PARTS):
        head = yield at, 4
        if len(head) < 4 or head[0] != 0xFF:
            return
        if head[1] == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if head[1] in (0xDA, 0xD9):  # the pixels, or the end
            return
        length = int.from_bytes(head[2:], "big")
        if head[1] in (0xE1, 0xFE) and length > 2:
            segment = yield from take(at + 4, length - 2)
            if head[1] == 0xFE:
                texts.add("comment", decode(segment))
            elif segment.startswith(b"Exif\0\0"):
                _read_exif(texts, segment)
        at += 2 + length
    raise MetadataError(f"the JPEG has more than {MOST_PARTS} segments")


_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_EXIF_NAMES = {0x010D: "DocumentName", 0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model"}
_EXIF_NAMES |= {0x0131: "Software", 0x013B: "Artist", 0x013C: "HostComputer", 0x8298: "Copyright"}
_EXIF_NAMES |= {_USER_COMMENT: "UserComment"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_KEYED = re.compile(r'\s*([A-Za-z_][\w.-]{0,63})\s*:\s*(?=[{\["])')


def _read_exif(texts: Texts, data: bytes) -> None:
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise MetadataError("its EXIF block is not one")
    for tag, value in _exif_texts(data, order):
        text = _comment(value, order) if tag == _USER_COMMENT else decode(value.rstrip(b"\0"))
        keyed = _KEYED.match(text)
        if keyed is not None:
            texts.add(keyed[1], text[keyed.end() :])
        elif text:
            texts.add(_EXIF_NAMES.get(tag, f"0x{tag:04x}"), text)


def _exif_texts(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the texts of the first directory and of the EXIF directory that it names."""
    waiting = [struct.unpack_from(order + "I", data, 4)[0]]
    while waiting:
        start = waiting.pop()
        if start + 2 > len(data):
            raise MetadataError("its EXIF block ends too soon")
        (count,) = struct.unpack_from(order + "H", data, start)
        for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
            tag, kind, length, value = struct.unpack_from(order + "HHII", data, at)
            if tag == _EXIF_IFD and start == struct.unpack_from(order + "I", data, 4)[0]:
                waiting.append(value)
            elif kind == 2 or tag == _USER_COMMENT:
                size = length * _SIZES.get(kind, 0)
                begin = at + 8 if size <= 4 else value
                yield tag, data[begin : begin + size]


def _comment(value: bytes, order: str) -> str:
    """Decode a UserComment, whose first eight bytes name its encoding."""
    code, rest = value[:8], value[8:]
    if code in (b"ASCII\0\0\0", bytes(8)):
        return decode(rest.rstrip(b"\0"))
    if code != b"UNICODE\0":
        return decode(value.rstrip(b"\0"))
    # By the block's byte order, but some write the other: then the zero of an ASCII sign stands on the wrong side.
    big = order == ">" if b"\0" not in rest[:2] else rest[:1] == b"\0"
    return rest.decode("utf-16-be" if big else "utf-16-le", "replace").rstrip("\0")


# --- OpenEXR and SVG -------------------------------------------------------------------------------------------------


def read_exr(texts: Texts) -> Scan[None]:
    at = 8
    for _ in range(MOST_PARTS):
        head = yield at, 512 + 8  # two names of at most 255 bytes, each ended by a zero, and a length
        name, _, rest = head.partition(b"\0")
        kind, found, rest = rest.partition(b"\0")
        if not name:
            return
        if not found or len(rest) < 4:
            raise MetadataError("the header of the EXR ends too soon")
        length, at = int.from_bytes(rest[:4], "little"), at + len(name) + len(kind) + 6
        if kind == b"string":
            texts.add(decode(name), decode((yield from take(at, length))))
        at += length
    raise MetadataError(f"the EXR has more than {MOST_PARTS} attributes")


_CDATA = re.compile(rb"<metadata[^>]{0,200}>\s*<!\[CDATA\[")


def read_svg(texts: Texts) -> Scan[None]:
    size = 1 << 14
    while True:
        data = yield 0, size
        begin = _CDATA.search(data)
        end = data.find(b"</metadata>", begin.end()) if begin else -1
        if begin and end >= 0:
            close = data.rfind(b"]]>", begin.end(), end)
            texts.add_members(data[begin.end() : close if close >= 0 else end])
            return
        if len(data) < size or (not begin and size >= 1 << 18):
            return  # ComfyUI puts it right behind the opening tag
        if size >= LARGEST:
            raise too_large("the metadata of the SVG")
        size = min(4 * size, LARGEST)

"""Read the texts that sounds, films, models and tensors hold.

What ComfyUI writes (comfy_api/latest/_ui.py and _input_impl/video_types.py, nodes.py, comfy_extras/nodes_video.py and
nodes_save_3d.py, 0.3.64 and 0.33.0), each with the keys ``prompt`` and ``workflow``: Vorbis comments in FLAC and Opus,
ID3 frames TXXX in MP3, ``mdta`` tags in MP4, tags in WebM (upper case), ``__metadata__`` in latents and safetensors,
``asset.extras`` in GLB. VideoHelperSuite writes one tag ``comment`` instead, with both in a JSON object.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import MetadataError
from .tags import MOST_PARTS, Scan, Texts, decode, take

# --- Vorbis comments: FLAC and Ogg -----------------------------------------------------------------------------------


def read_flac(texts: Texts) -> Scan[None]:
    at = 4
    for _ in range(MOST_PARTS):
        head = yield from take(at, 4)
        length = int.from_bytes(head[1:], "big")
        if head[0] & 0x7F == 4:
            _read_vorbis_comments(texts, (yield from take(at + 4, length)))
            return
        if head[0] & 0x80:  # the last block
            return
        at += 4 + length
    raise MetadataError(f"the FLAC has more than {MOST_PARTS} blocks")


def read_ogg(texts: Texts) -> Scan[None]:
    """Read the second packet of the first stream, which may go over many pages."""
    at, packets, packet, stream = 0, 0, bytearray(), None
    for _ in range(MOST_PARTS):
        head = yield from take(at, 27)
        if head[:4] != b"OggS":
            raise MetadataError(f"there is no Ogg page at {at}")
        lengths = yield from take(at + 27, head[26])
        at, size = at + 27 + len(lengths), sum(lengths)
        stream = stream or head[14:18]
        if head[14:18] == stream:
            body = yield from take(at, size)
            begin = 0
            for length in lengths:
                packet += body[begin : begin + length]
                begin += length
                if length == 255:  # the packet goes on
                    continue
                packets += 1
                if packets == 2:
                    _read_ogg_comments(texts, bytes(packet))
                    return
                packet.clear()
            texts.check(len(packet))
        at += size
    raise MetadataError(f"the Ogg file has more than {MOST_PARTS} pages before its comments end")


def _read_ogg_comments(texts: Texts, packet: bytes) -> None:
    for mark in (b"OpusTags", b"\x03vorbis"):
        if packet.startswith(mark):
            _read_vorbis_comments(texts, packet[len(mark) :])
    if packet[:1] in (b"\x04", b"\x84"):  # FLAC in Ogg: a metadata block as it stands in a FLAC file
        _read_vorbis_comments(texts, packet[4:])


def _read_vorbis_comments(texts: Texts, data: bytes) -> None:
    at = 4 + int.from_bytes(data[:4], "little")  # behind the name of the encoder
    count, at = int.from_bytes(data[at : at + 4], "little"), at + 4
    for _ in range(count):
        length, at = int.from_bytes(data[at : at + 4], "little"), at + 4
        if at + length > len(data) or at > len(data):
            raise MetadataError("its comments end too soon")
        key, found, text = data[at : at + length].partition(b"=")
        if found:
            texts.add(decode(key), decode(text))
        at += length


# --- ID3: MP3 --------------------------------------------------------------------------------------------------------

_ENCODINGS = {0: "latin-1", 1: "utf-16", 2: "utf-16-be", 3: "utf-8"}


def read_id3(texts: Texts) -> Scan[None]:
    head = yield from take(0, 10)
    version, flags = head[3], head[5]
    data = yield from take(10, _synchsafe(head[6:]))
    if version not in (3, 4):
        return
    if flags & 0x80 and version == 3:
        data = data.replace(b"\xff\0", b"\xff")
    at = 0
    if flags & 0x40:  # an extended header, which counts itself in version 4 alone
        at = _synchsafe(data[:4]) if version == 4 else 4 + int.from_bytes(data[:4], "big")
    while at + 10 <= len(data) and data[at]:
        size = _synchsafe(data[at + 4 : at + 8]) if version == 4 else int.from_bytes(data[at + 4 : at + 8], "big")
        body, how = data[at + 10 : at + 10 + size], data[at + 9]
        if data[at : at + 4] in (b"TXXX", b"COMM") and body and not how & (0x0C if version == 4 else 0xC0):
            if how & 0x01 and version == 4:  # its length stands in front of it
                body = body[4:]
            if how & 0x02 and version == 4:
                body = body.replace(b"\xff\0", b"\xff")
            _read_id3_text(texts, data[at : at + 4], body)
        at += 10 + size


def _read_id3_text(texts: Texts, frame: bytes, body: bytes) -> None:
    encoding, body = _ENCODINGS.get(body[0] if body else 0, "latin-1"), body[1:]
    if frame == b"COMM":
        body = body[3:]  # its language
    text = body.decode(encoding, "replace")
    key, _, text = text.partition("\0")
    if encoding == "utf-16":
        text = text.lstrip("\ufeff\ufffe")
    texts.add(key or "comment", text.rstrip("\0"))


def _synchsafe(data: bytes) -> int:
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
    return value


# --- Boxes: MP4 and QuickTime ----------------------------------------------------------------------------------------

_COMMENT_NAMES = {b"\xa9cmt": "comment", b"\xa9nam": "title", b"\xa9too": "encoder", b"desc": "description"}


def read_mp4(texts: Texts) -> Scan[None]:
    """Find the tags in ``moov``, without the tables of the tracks beside them."""
    at = 0
    for _ in range(MOST_PARTS):
        kind, body, end = yield from _box(at)
        if not kind:
            return
        if kind == b"moov":
            yield from _read_moov(texts, body, end)
            return
        if end is None:
            return
        at = end
    raise MetadataError(f"the file has more than {MOST_PARTS} boxes")


def _box(at: int) -> Scan[tuple[bytes, int, int | None]]:
    """Read a box's head: its kind (empty at the end of the file), where its body begins, and where it ends."""
    head = yield at, 16
    if len(head) < 8:
        return b"", at, at
    size, kind = int.from_bytes(head[:4], "big"), head[4:8]
    if size == 0:  # up to the end of the file
        return kind, at + 8, None
    if size == 1:
        size = int.from_bytes(head[8:16], "big")
        if size < 16:
            raise MetadataError(f"the box at {at} is shorter than its head")
        return kind, at + 16, at + size
    if size < 8:
        raise MetadataError(f"the box at {at} is shorter than its head")
    return kind, at + 8, at + size


def _read_moov(texts: Texts, at: int, end: int | None) -> Scan[None]:
    for _ in range(MOST_PARTS):
        if end is not None and at + 8 > end:
            return
        kind, body, next_ = yield from _box(at)
        if not kind or next_ is None:
            return
        if kind == b"udta":
            data = yield from take(body, next_ - body)
            for kind_, part in _boxes(data):
                _read_user_data(texts, kind_, part)
        elif kind == b"meta":
            _read_meta(texts, (yield from take(body, next_ - body)))
        at = next_
    raise MetadataError(f"the file has more than {MOST_PARTS} boxes")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:
            return
        yield data[at + 4 : at + 8], data[at + 8 : at + size]
        at += size


def _read_user_data(texts: Texts, kind: bytes, data: bytes) -> None:
    if kind == b"meta":
        _read_meta(texts, data)
    elif kind[:1] == b"\xa9":  # QuickTime: a length, a language, the text
        length = int.from_bytes(data[:2], "big")
        texts.add(_COMMENT_NAMES.get(kind, kind.decode("latin-1")), decode(data[4 : 4 + length]))


def _read_meta(texts: Texts, data: bytes) -> None:
    if data[4:8] != b"hdlr":
        data = data[4:]  # version and flags, which QuickTime leaves out
    names: list[str] = []
    for kind, part in _boxes(data):
        if kind == b"keys":
            names = [decode(name) for _, name in _boxes(part[8:])]
        elif kind == b"ilst":
            for item, body in _boxes(part):
                _read_item(texts, names, item, body)


def _read_item(texts: Texts, names: list[str], item: bytes, body: bytes) -> None:
    parts = dict(_boxes(body))
    data, index = parts.get(b"data"), int.from_bytes(item, "big")
    if data is None or int.from_bytes(data[:4], "big") not in (0, 1):  # 1 is UTF-8
        return
    if b"name" in parts:
        name = decode(parts[b"name"][4:])
    elif 1 <= index <= len(names):
        name = names[index - 1]
    else:
        name = _COMMENT_NAMES.get(item, item.decode("latin-1"))
    texts.add(name, decode(data[8:]))


# --- EBML: WebM and Matroska -----------------------------------------------------------------------------------------

_SEGMENT, _CLUSTER, _TAGS, _SEEK_HEAD = 0x18538067, 0x1F43B675, 0x1254C367, 0x114D9B74
_TAG, _SIMPLE_TAG, _TAG_NAME, _TAG_STRING = 0x7373, 0x67C8, 0x45A3, 0x4487
_SEEK, _SEEK_ID, _SEEK_POSITION = 0x4DBB, 0x53AB, 0x53AC


def read_matroska(texts: Texts) -> Scan[None]:
    """Find the tags, with the help of the seek head when they stand behind the pictures."""
    at, begin, tags_at = 0, 0, 0
    for _ in range(MOST_PARTS):
        element, body, end = yield from _element(at)
        if element == _SEGMENT:
            begin = end = body
        elif element == _TAGS and end is not None:
            _read_matroska_tags(texts, (yield from take(body, end - body)))
            if texts.has_graph():
                return
        elif element == _SEEK_HEAD and end is not None:
            tags_at = begin + _tags_position((yield from take(body, end - body)))
        elif element == _CLUSTER and tags_at > at:
            end = tags_at
        if element == 0 or end is None:
            return
        at = end
    raise MetadataError(f"the file has more than {MOST_PARTS} elements")


def _element(at: int) -> Scan[tuple[int, int, int | None]]:
    """Read an element's head: its id (0 at the end of the file), where its body begins, and where it ends."""
    head = yield at, 12
    element, size, length = _head(head)
    return element, at + length, None if size is None else at + length + size


def _head(data: bytes) -> tuple[int, int | None, int]:
    """Read an id and a size; give them and how long they were. An id of 0 says that nothing readable is there."""
    id_length = 9 - data[0].bit_length() if data else 9
    if id_length > 4 or len(data) <= id_length:
        return 0, None, 0
    first = data[id_length]
    size_length = 9 - first.bit_length()
    if size_length > 8 or len(data) < id_length + size_length:
        return 0, None, 0
    bits = 7 * size_length
    size = int.from_bytes(data[id_length : id_length + size_length], "big") & ((1 << bits) - 1)
    unknown = size == (1 << bits) - 1
    return int.from_bytes(data[:id_length], "big"), None if unknown else size, id_length + size_length


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        element, size, length = _head(data[at : at + 12])
        if element == 0 or size is None:
            return
        yield element, data[at + length : at + length + size]
        at += length + size


def _tags_position(data: bytes) -> int:
    for element, seek in _elements(data):
        parts = dict(_elements(seek)) if element == _SEEK else {}
        if int.from_bytes(parts.get(_SEEK_ID, b""), "big") == _TAGS:
            return int.from_bytes(parts.get(_SEEK_POSITION, b""), "big")
    return 0


def _read_matroska_tags(texts: Texts, data: bytes) -> None:
    for element, tag in _elements(data):
        for inner, simple in _elements(tag) if element == _TAG else ():
            parts = dict(_elements(simple)) if inner == _SIMPLE_TAG else {}
            if _TAG_NAME in parts and _TAG_STRING in parts:
                texts.add(decode(parts[_TAG_NAME].rstrip(b"\0")), decode(parts[_TAG_STRING].rstrip(b"\0")))


# --- JSON headers: safetensors and GLB -------------------------------------------------------------------------------


def read_safetensors(texts: Texts) -> Scan[None]:
    head = yield from take(0, 8)
    texts.add_members((yield from take(8, int.from_bytes(head, "little"))), "__metadata__")


def read_glb(texts: Texts) -> Scan[None]:
    head = yield from take(12, 8)
    if head[4:] == b"JSON":
        texts.add_members((yield from take(20, int.from_bytes(head[:4], "little"))), "asset", "extras")

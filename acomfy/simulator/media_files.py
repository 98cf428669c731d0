"""Write the files that media nodes save, with what ComfyUI writes into them.

Sounds are silent: each is a valid file of its kind, of the length that was asked for. Films are stand-ins of 16 by 16
pixels and two frames, whatever was to be filmed: encoding one needs libraries that the simulator does without.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
import zlib
from collections.abc import Iterator, Mapping

Texts = Mapping[str, str]

_MP4 = (
    b"c-muNU{FXasVvAW&d+6FU}6B#Kx~v)mTZ_?U}DI?z`&7Kl$r{pjdD{GOMtXsYDWv-{|23=|9|&u2xcw((FhWB?C7ut3%<HP`ToV|"
    b"BMv~*KIi7=mjNYna?3JO7*GK73n1}}fsp}(5P%U?6*}L60WV+zBBzp~#B3ltrX(9|Co>k)eqrb&#$Ev^W?)cBO(`h`(lV(z#U)5O"
    b"ej)TS?#fNcOaw9%a#PU#?f^C@^az-vn~{=J1d}PtOi4vn83yF%dnD$i<fMYsFs9~a=A{7{B4xQ?Ly?`Sk^+&FNhwNALvj>PX;F>>"
    b"gw3d0T#}RnWUnnQDNaFBGZz%yID!J?RsjYNAnk!u1v-%U{~t&i15I^iOkv>q|Byi}9Z0X)WXl1H5irqEG116@k%2Aa^?@gwbpHPM"
    b"0n#XvR8j;DQC3)FOB9!YLmOr_FqS#MYJr|W76)M&pja}R7!#BRsjq^{i9*GJV#)bP>J5O{wlt*#6mzDzsbCre6p>>I7_&u*1qC_C"
    b"KIX^-CItXX4tCf"
)
_WEBM = (
    b"c-oV4y}x+AQ(GgW({~{L)X3uWxsk)EsiizMDc7mJk;$pGkx3%BA)S!{3=WEVu1wpcb$w$qzmtP+L$6O_S(=%Vo*@t!7==5c@?APR"
    b"9P%B&`ou!kW$#-DHN^CKBV+N=j!mJbc6<<fCqAc<L22up=F+^Bjz)&I*0A`n0L$h^M&-xNE$qdS4iDNkGz#o$6p(k`R(j}pBg5iF"
    b"jSLJ8O`gq83=AI_zA;#+$VmDzFeoT6_%yc2|8U}eeI{Y?%tnS<hBgL=Nd=4*3=BL8KwDSKKl6XUzyJV&zf#)"
)


@functools.cache
def _unpacked(packed: bytes) -> bytes:
    return zlib.decompress(base64.b85decode(packed))


# --- Films -----------------------------------------------------------------------------------------------------------


def mp4(texts: Texts) -> bytes:
    """Write an MP4 whose tags are written as ffmpeg does with ``movflags=use_metadata_tags``."""
    film = _unpacked(_MP4)
    at = film.index(b"moov") - 4  # the last box: what grows in it moves nothing
    tracks = film[at + 8 : film.index(b"udta", at) - 4]
    keys = _box(b"keys", struct.pack(">II", 0, len(texts)), *(_box(b"mdta", key.encode()) for key in texts))
    items = (
        _box(struct.pack(">I", number), _box(b"data", struct.pack(">II", 1, 0), text.encode()))
        for number, text in enumerate(texts.values(), 1)
    )
    handler = _box(b"hdlr", bytes(8), b"mdta", bytes(13))
    meta = _box(b"meta", bytes(4), handler, keys, _box(b"ilst", *items))
    return film[:at] + _box(b"moov", tracks, _box(b"udta", meta) if texts else b"")


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


_SEGMENT, _CLUSTER, _TAGS = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x12\x54\xc3\x67"
_TAG, _TARGETS, _SIMPLE_TAG = b"\x73\x73", b"\x63\xc0", b"\x67\xc8"
_TAG_NAME, _TAG_STRING = b"\x45\xa3", b"\x44\x87"


def webm(texts: Texts) -> bytes:
    """Write a WebM with tags, whose names are upper case as ffmpeg writes them."""
    film = _unpacked(_WEBM)
    at, cluster = film.index(_SEGMENT) + 4, film.index(_CLUSTER)
    simple = (
        _element(_SIMPLE_TAG, _element(_TAG_NAME, key.upper().encode()), _element(_TAG_STRING, text.encode()))
        for key, text in texts.items()
    )
    tags = _element(_TAGS, _element(_TAG, _element(_TARGETS), *simple)) if texts else b""
    return film[:at] + _size(len(film) - at - 8 + len(tags)) + film[at + 8 : cluster] + tags + film[cluster:]


def _element(number: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return number + _size(len(body)) + body


def _size(size: int) -> bytes:
    return (1 << 56 | size).to_bytes(8, "big")


# --- Sounds ----------------------------------------------------------------------------------------------------------


def flac(samples: int, rate: int, channels: int, texts: Texts) -> bytes:
    """Write silence as FLAC, with Vorbis comments."""
    block = 4096
    info = struct.pack(">HHHIHH", block, block, 0, 0, 0, 0)[:10]
    info += (rate << 44 | (channels - 1) << 41 | 15 << 36 | samples).to_bytes(8, "big") + bytes(16)
    comments = _vorbis_comments(texts)
    head = b"fLaC\0\0\0\x22" + info + b"\x84" + len(comments).to_bytes(3, "big") + comments
    frames = (
        _flac_frame(number, min(block, samples - number * block), channels) for number in range(-(-samples // block))
    )
    return head + b"".join(frames)


def _flac_frame(number: int, size: int, channels: int) -> bytes:
    """Write a frame of constant subframes, 16 bit each; the size stands behind the number."""
    head = b"\xff\xf8\x70" + bytes([(channels - 1) << 4 | 0x08]) + chr(number).encode() + (size - 1).to_bytes(2, "big")
    frame = head + bytes([_crc(head, 0x07, 8)]) + bytes(3) * channels
    return frame + _crc(frame, 0x8005, 16).to_bytes(2, "big")


def mp3(samples: int, texts: Texts) -> bytes:
    """Write silence as MP3 of 44.1 kHz, with ID3 frames TXXX."""
    tags = b""
    for key, text in texts.items():
        body = b"\3" + key.encode() + b"\0" + text.encode() + b"\0"
        tags += b"TXXX" + _synchsafe(len(body)) + b"\0\0" + body
    frame = b"\xff\xfb\x90\x00" + bytes(413)  # 128 kbit/s, 1,152 samples
    return b"ID3\4\0\0" + _synchsafe(len(tags)) + tags + frame * -(-samples // 1152)


def _synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def opus(samples: int, channels: int, texts: Texts) -> bytes:
    """Write silence as Opus in Ogg, of 48 kHz, with Vorbis comments."""
    head = b"OpusHead" + struct.pack("<BBHIHB", 1, channels, 0, 48_000, 0, 0)
    packets = [b"\xf8\xff\xfe"] * max(1, -(-samples // 960))  # 20 ms of silence each
    pages = [*_pages([head], 0, 0, 2), *_pages([b"OpusTags" + _vorbis_comments(texts)], 1, 0, 0)]
    for start in range(0, len(packets), 50):
        end = min(start + 50, len(packets))
        pages += _pages(packets[start:end], len(pages), end * 960, 4 if end == len(packets) else 0)
    return b"".join(pages)


def _pages(packets: list[bytes], number: int, position: int, flags: int) -> Iterator[bytes]:
    """Write packets as Ogg pages of at most 255 segments."""
    segments = [packet[at : at + 255] for packet in packets for at in range(0, len(packet) + 1, 255)]
    for begin in range(0, len(segments), 255):
        page = segments[begin : begin + 255]
        flag = flags if begin == 0 else flags | 1
        head = struct.pack("<4sBBqIII", b"OggS", 0, flag, position, 1, number, 0) + bytes([len(page), *map(len, page)])
        body = b"".join(page)
        yield head[:22] + _crc(head + body, 0x04C11DB7, 32).to_bytes(4, "little") + head[26:] + body
        number += 1


def _vorbis_comments(texts: Texts) -> bytes:
    entries = [f"{key}={text}".encode() for key, text in texts.items()]
    vendor = b"acomfy"
    packed = b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)
    return struct.pack("<I", len(vendor)) + vendor + struct.pack("<I", len(entries)) + packed


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    table, mask = _crc_table(polynomial, bits), (1 << bits) - 1
    value = 0
    for byte in data:
        value = value << 8 & mask ^ table[value >> (bits - 8) ^ byte]
    return value


@functools.cache
def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) & 1 else 0)
        table.append(value & ((1 << bits) - 1))
    return table


# --- Tensors and models ----------------------------------------------------------------------------------------------


def latent(shape: tuple[int, ...], texts: Texts) -> bytes:
    """Write zeros as SaveLatent does: a safetensors file."""
    size = 4
    for side in shape:
        size *= side
    tensors = {
        "latent_format_version_0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "latent_tensor": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]},
    }
    header = json.dumps({"__metadata__": dict(texts), **tensors}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + bytes(size)


_CORNERS = [(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
_FACES = [0, 1, 3, 0, 3, 2, 4, 6, 7, 4, 7, 5, 0, 4, 5, 0, 5, 1, 2, 3, 7, 2, 7, 6, 0, 2, 6, 0, 6, 4, 1, 5, 7, 1, 7, 3]


def glb_cube(size: float, texts: Texts) -> bytes:
    """Write a cube as SaveGLB does."""
    points = b"".join(struct.pack("<3f", *(size * side for side in corner)) for corner in _CORNERS)
    faces = struct.pack(f"<{len(_FACES)}I", *_FACES)
    half = size / 2
    scene = {
        "asset": {"version": "2.0", "generator": "ComfyUI", "extras": dict(texts)},
        "buffers": [{"byteLength": len(points) + len(faces)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(points), "target": 34962},
            {"buffer": 0, "byteOffset": len(points), "byteLength": len(faces), "target": 34963},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3", "max": [half] * 3, "min": [-half] * 3},
            {"bufferView": 1, "componentType": 5125, "count": len(_FACES), "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": 4}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    body = points + faces
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

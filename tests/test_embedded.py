"""What ComfyUI writes into files is found in every kind of file that it saves, and damage is one typed error."""

from __future__ import annotations

import io
import json
import math
import struct
import tracemalloc
import zlib
from typing import Any

import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acomfy import MetadataError, media_tags, picture_tags, tags
from acomfy.embedded import Embedded, kind_of, read_embedded, read_embedded_file, scan

PNG = b"\x89PNG\r\n\x1a\n"
PROMPT: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 2**64 - 1, "cfg": 8.0, "text": "ein Fuß 🦊"}}
}
WORKFLOW: dict[str, Any] = {"last_node_id": 9, "nodes": [], "version": 0.4}
TEXTS = {"prompt": json.dumps(PROMPT), "workflow": json.dumps(WORKFLOW), "note": json.dumps("mine")}


# --- Files as ComfyUI writes them ----------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(texts: dict[str, str] = TEXTS, size: tuple[int, int] = (8, 8)) -> bytes:
    info = PIL.PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    return picture("PNG", size, pnginfo=info)


def animated_png() -> bytes:
    info = PIL.PngImagePlugin.PngInfo()
    for key, text in TEXTS.items():
        info.add(b"comf", key.encode("latin-1") + b"\0" + text.encode("latin-1"), after_idat=True)
    return picture("PNG", pnginfo=info, save_all=True, append_images=[PIL.Image.new("RGB", (8, 8), "red")])


def picture(format: str, size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size).save(buffer, format, **options)
    return buffer.getvalue()


def exif() -> PIL.Image.Exif:
    tags = PIL.Image.Exif()
    tags[0x0110] = f"prompt:{TEXTS['prompt']}"
    tags[0x010F] = f"workflow:{TEXTS['workflow']}"
    tags[0x010E] = f"note:{TEXTS['note']}"
    return tags


def webp(**options: Any) -> bytes:
    return picture("WEBP", exif=exif(), **options)


def jpeg() -> bytes:
    return picture("JPEG", exif=exif())


def vorbis_comments(texts: dict[str, str] = TEXTS) -> bytes:
    entries = [f"{key}={text}".encode() for key, text in texts.items()]
    return b"\4\0\0\0Lavf" + struct.pack("<I", len(entries)) + b"".join(struct.pack("<I", len(e)) + e for e in entries)


def flac() -> bytes:
    comments = vorbis_comments()
    return b"fLaC\0\0\0\x22" + bytes(34) + b"\x84" + len(comments).to_bytes(3, "big") + comments + b"\xff\xf8sound"


def pages(packets: list[bytes]) -> bytes:
    """Write Ogg pages of at most 16 segments each, so that a packet goes over several."""
    lacing = [(packet, n) for packet in packets for n in range(0, len(packet) + 1, 255)]
    segments = [packet[n : n + 255] for packet, n in lacing]
    found = b""
    for number in range(0, len(segments), 16):
        page = segments[number : number + 16]
        found += b"OggS\0\0" + bytes(8) + b"SER1" + struct.pack("<II", number, 0) + bytes([len(page)])
        found += bytes(map(len, page)) + b"".join(page)
    return found


def opus() -> bytes:
    return pages([b"OpusHead" + bytes(11), b"OpusTags" + vorbis_comments(TEXTS | {"long": "x" * 9000}), b"sound"])


def synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def mp3() -> bytes:
    frames = b""
    for key, text in TEXTS.items():
        body = b"\3" + key.encode() + b"\0" + text.encode() + b"\0"
        frames += b"TXXX" + synchsafe(len(body)) + b"\0\0" + body
    return b"ID3\4\0\0" + synchsafe(len(frames) + 20) + frames + bytes(20) + b"\xff\xfb\x90\x00"


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def mp4(texts: dict[str, str] = TEXTS) -> bytes:
    """As ffmpeg writes it with ``movflags=use_metadata_tags``."""
    keys = box(b"keys", struct.pack(">II", 0, len(texts)), *(box(b"mdta", key.encode()) for key in texts))
    items = [
        box(struct.pack(">I", index), box(b"data", struct.pack(">II", 1, 0), text.encode()))
        for index, text in enumerate(texts.values(), 1)
    ]
    handler = box(b"hdlr", bytes(8), b"mdta", bytes(13))
    meta = box(b"meta", bytes(4), handler, keys, box(b"ilst", *items))
    moov = box(b"moov", box(b"mvhd", bytes(100)), box(b"udta", meta))
    return box(b"ftyp", b"isomiso2") + struct.pack(">I4sQ", 1, b"mdat", 16 + 5000) + bytes(5000) + moov


def combined_mp4() -> bytes:
    """As VideoHelperSuite writes it: one iTunes comment with both graphs."""
    comment = json.dumps({"prompt": TEXTS["prompt"], "workflow": WORKFLOW, "CreationTime": "now"})
    item = box(b"\xa9cmt", box(b"data", struct.pack(">II", 1, 0), comment.encode()))
    meta = box(b"meta", bytes(4), box(b"hdlr", bytes(8), b"mdir", bytes(13)), box(b"ilst", item))
    return box(b"ftyp", b"isom") + box(b"moov", box(b"udta", meta)) + box(b"mdat", bytes(9))


def element(number: int, *parts: bytes, unknown: bool = False) -> bytes:
    body = b"".join(parts)
    size = b"\x01" + b"\xff" * 7 if unknown else b"\x08" + len(body).to_bytes(4, "big")
    return number.to_bytes((number.bit_length() + 7) // 8, "big") + size + body


def simple_tags() -> bytes:
    tags = [element(0x67C8, element(0x45A3, k.upper().encode()), element(0x4487, v.encode())) for k, v in TEXTS.items()]
    return element(0x1254C367, element(0x7373, element(0x63C0), *tags))


def webm(*, tags_last: bool = False, seek: bool = False) -> bytes:
    cluster = element(0x1F43B675, bytes(9000))
    clusters = [cluster, element(0x1F43B675, bytes(99), unknown=True)] if seek else [cluster] * 2
    info = element(0x1549A966, bytes(40))
    head = element(0x1A45DFA3, element(0x4282, b"webm"))
    parts = [info, *clusters, simple_tags()] if tags_last else [info, simple_tags(), *clusters]
    if seek:

        def entry(position: int) -> bytes:
            id_ = element(0x53AB, (0x1254C367).to_bytes(4, "big"))
            return element(0x114D9B74, element(0x4DBB, id_, element(0x53AC, position.to_bytes(8, "big"))))

        parts.insert(0, entry(len(entry(0)) + sum(map(len, parts[:-1]))))
    return head + element(0x18538067, *parts, unknown=True)


def safetensors() -> bytes:
    header = json.dumps({"__metadata__": TEXTS, "latent_tensor": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(4)


def glb() -> bytes:
    header = json.dumps({"asset": {"version": "2.0", "extras": TEXTS}, "scene": 0}).encode()
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(header), len(header), b"JSON") + header


def exr() -> bytes:
    attributes = [("channels", b"chlist", bytes(37)), *((key, b"string", text.encode()) for key, text in TEXTS.items())]
    parts = [
        name.encode() + b"\0" + kind + b"\0" + struct.pack("<I", len(value)) + value for name, kind, value in attributes
    ]
    return b"\x76\x2f\x31\x01\2\0\0\0" + b"".join(parts) + b"\0" + bytes(99)


def svg() -> bytes:
    texts = json.dumps({"prompt": PROMPT, "workflow": WORKFLOW, "note": "mine"}, indent=2)
    return (
        f'<?xml version="1.0"?>\n<svg width="9">\n<metadata>\n<![CDATA[\n{texts}\n]]>\n</metadata><g/></svg>'.encode()
    )


def webp_of_references() -> bytes:
    """An EXIF block whose many tags all point to the same text of 300 KB."""
    count = 4000
    entries = b"".join(struct.pack("<HHII", 0x9000 + n, 2, 300_000, 50_000) for n in range(count))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries
    block += bytes(50_000 - len(block)) + b"x" * 300_000
    return b"RIFF....WEBPEXIF" + struct.pack("<I", len(block)) + block


FILES: dict[str, tuple[str, bytes]] = {
    "png": ("png", png()),
    "png with international texts": (
        "png",
        png({key: json.dumps(json.loads(text), ensure_ascii=False) for key, text in TEXTS.items()}),
    ),
    "animated png": ("png", animated_png()),
    "webp": ("webp", webp()),
    "animated webp": ("webp", webp(save_all=True, append_images=[PIL.Image.new("RGB", (8, 8), "red")] * 3)),
    "jpeg": ("jpeg", jpeg()),
    "exr": ("exr", exr()),
    "svg": ("svg", svg()),
    "flac": ("flac", flac()),
    "opus": ("ogg", opus()),
    "mp3": ("mp3", mp3()),
    "mp4": ("mp4", mp4()),
    "mp4 of VideoHelperSuite": ("mp4", combined_mp4()),
    "webm": ("matroska", webm()),
    "webm with its tags behind": ("matroska", webm(tags_last=True)),
    "webm with a seek head": ("matroska", webm(tags_last=True, seek=True)),
    "latent": ("safetensors", safetensors()),
    "glb": ("glb", glb()),
}


@pytest.mark.parametrize("name", FILES)
def test_the_prompt_and_the_workflow_are_found_in(name: str) -> None:
    kind, data = FILES[name]
    found = read_embedded(data)
    assert (found.kind, found.prompt, found.workflow) == (kind, PROMPT, WORKFLOW)
    assert kind_of(data[:512]) == kind
    assert read_embedded_file(io.BytesIO(data)) == found


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_gives_what_it_holds_or_one_error(name: str) -> None:
    _, data = FILES[name]
    for length in range(0, len(data), max(1, len(data) // 97)):
        found = read_or_refuse(data[:length])
        assert found is None or found.prompt in (None, PROMPT)


def read_or_refuse(data: bytes) -> Embedded | None:
    try:
        return read_embedded(data)
    except MetadataError:
        return None


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=9)), max_size=4),
)
def test_whatever_the_bytes_are_only_the_typed_error_is_raised(name: str, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(FILES[name][1])
    for at, replacement in edits:
        data[at : at + len(replacement)] = replacement
    read_or_refuse(bytes(data))


@settings(max_examples=100, deadline=None)
@given(start=st.sampled_from([data[:12] for _, data in FILES.values()]), rest=st.binary(max_size=400))
def test_noise_behind_the_first_bytes_of_any_kind_does_no_harm(start: bytes, rest: bytes) -> None:
    read_or_refuse(start + rest)


# --- What the texts say --------------------------------------------------------------------------------------------


def test_nan_and_integers_of_any_size_are_read() -> None:
    found = read_embedded(
        png({"prompt": '{"1": {"inputs": {"x": NaN, "y": -Infinity, "seed": 36893488147419103232}}}'})
    )
    assert found.prompt is not None
    inputs = found.prompt["1"]["inputs"]
    assert math.isnan(inputs["x"])
    assert (inputs["y"], inputs["seed"]) == (-math.inf, 2**65)


@pytest.mark.parametrize("text", ["", "not JSON", "[1, 2]", "3", "{", '"{"', "[" * 100_000, "null", "1" * 5000])
def test_what_is_no_graph_stays_a_text(text: str) -> None:
    found = read_embedded(png({"prompt": text, "parameters": "a fox, steps: 20"}))
    assert (found.prompt, found.workflow) == (None, None)
    assert found.texts == {"prompt": text, "parameters": "a fox, steps: 20"}


def test_the_first_text_of_a_key_counts() -> None:
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("prompt", TEXTS["prompt"])
    info.add_text("prompt", "{}")
    assert read_embedded(picture("PNG", pnginfo=info)).prompt == PROMPT


@pytest.mark.parametrize("tag", [0x9286, 0x010E], ids=["UserComment", "ImageDescription"])
@pytest.mark.parametrize(
    "text", [json.dumps({"prompt": PROMPT}), f"Prompt: {json.dumps(PROMPT)}"], ids=["both", "keyed"]
)
def test_a_comment_in_a_jpeg_may_hold_the_graphs(tag: int, text: str) -> None:
    tags = PIL.Image.Exif()
    if tag == 0x9286:
        tags.get_ifd(0x8769)[tag] = b"UNICODE\0" + text.encode("utf-16-be")
    else:
        tags[tag] = text
    assert read_embedded(picture("JPEG", exif=tags)).prompt == PROMPT


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"hello", b"<html></html>", b"RIFF....WAVEfmt ", b"{}", bytes(600)])
def test_a_file_of_another_kind_holds_nothing(data: bytes) -> None:
    assert read_embedded(data) == Embedded("")


# --- Bounds --------------------------------------------------------------------------------------------------------


LIMIT = 1 << 19


def bomb(kind: bytes, head: bytes) -> bytes:
    packed = zlib.compress(bytes(20 * LIMIT), 1)
    return PNG + chunk(b"IHDR", bytes(13)) + chunk(kind, head + packed) + chunk(b"IEND", b"")


HUGE = LIMIT + 1
BOMBS = {
    "zTXt": bomb(b"zTXt", b"prompt\0\0"),
    "iTXt": bomb(b"iTXt", b"prompt\0\1\0\0\0"),
    "PNG chunk": PNG + struct.pack(">I", HUGE) + b"tEXt",
    "EXIF chunk": b"RIFF\xff\xff\xff\xffWEBPEXIF" + struct.pack("<I", HUGE),
    "EXR string": b"\x76\x2f\x31\x01\2\0\0\0prompt\0string\0" + struct.pack("<I", HUGE),
    "ID3": b"ID3\4\0\0" + synchsafe(HUGE),
    "moov": box(b"ftyp", b"isom") + struct.pack(">I4s", HUGE + 99, b"moov") + struct.pack(">I4s", HUGE + 9, b"udta"),
    "EBML": element(0x1A45DFA3) + element(0x18538067, b"\x12\x54\xc3\x67\x08" + HUGE.to_bytes(4, "big"), unknown=True),
    "safetensors": struct.pack("<Q", HUGE) + b"{}",
    "GLB": struct.pack("<4sIII4s", b"glTF", 2, 0, HUGE, b"JSON"),
    "the same EXIF text over and over": webp_of_references(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_too_large_is_refused_before_it_is_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tags, "LARGEST", LIMIT)
    tracemalloc.start()
    try:
        with pytest.raises(MetadataError):
            read_embedded(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 5 * LIMIT
    finally:
        tracemalloc.stop()


class Endless:
    """A file without an end, of one kind of part."""

    def __init__(self, head: bytes, part: bytes) -> None:
        self.head, self.part, self.reads = head, part, 0

    def answer(self, offset: int, length: int) -> bytes:
        self.reads += 1
        if offset < len(self.head):
            return (self.head + self.part * (length // len(self.part) + 1))[offset : offset + length]
        start = (offset - len(self.head)) % len(self.part)
        return (self.part * (length // len(self.part) + 2))[start : start + length]


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (PNG, chunk(b"IDAT", b"")),
        (b"RIFF....WEBP", b"ANMF\0\0\0\0"),
        (b"\xff\xd8\xff", b"\xff"),
        (b"fLaC", b"\1\0\0\0"),
        (b"", b"OggS" + bytes(23)),
        (box(b"ftyp", b"isom"), box(b"free")),
        (element(0x1A45DFA3), element(0xEC)),
        (b"\x76\x2f\x31\x01\2\0\0\0", b"a\0b\0\0\0\0\0"),
    ],
    ids=["png", "webp", "jpeg", "flac", "ogg", "mp4", "matroska", "exr"],
)
def test_a_file_without_an_end_is_given_up(head: bytes, part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (picture_tags, media_tags):
        monkeypatch.setattr(module, "MOST_PARTS", 1000)
    endless, steps = Endless(head, part), scan()
    request = next(steps)
    with pytest.raises(MetadataError):
        while True:
            request = steps.send(endless.answer(*request))
    assert endless.reads <= 3002

"""Write pictures that are in memory as PNG files. All of it takes its time and belongs in a thread.

Pillow's own PNG encoder is not used: it keeps the interpreter's lock while it compresses up to 64 KB of output, which
for an even picture is all of it, and the event loop stands still meanwhile. `zlib` lets go of the lock.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .captures import Picture, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

_STRIP_SIZE = 1 << 20
_COLOR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
_MODES = ("L", "LA", "RGB", "RGBA")
_NEAREST = {
    "1": "L",
    "La": "LA",
    "PA": "RGBA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
}
_UP = b"\2"
_SLACK = 0.1


def image_of(content: Picture | Pixels) -> Image:
    """Give a captured picture in one of the modes L, LA, RGB and RGBA.

    Raises:
        ValueError: It cannot be made so.
    """
    if isinstance(content, Picture):
        return _plain(content.image)
    import PIL.Image

    height, width, channels = content.shape
    data = content.data
    if content.typestr == "|b1":
        data = data.translate(bytes([0]) + bytes([255]) * 255)
    elif content.typestr != "|u1":
        data = _scaled(content)
    return PIL.Image.frombytes(_MODES[channels - 1], (width, height), data)


def _plain(image: Image) -> Image:
    if image.mode in _COLOR_TYPES and "transparency" not in image.info:
        return image
    if image.mode == "P" or "transparency" in image.info:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode.startswith("I"):  # 16 bits, which LoadImage would not read right (nodes.py 0.3.64)
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    mode = _NEAREST.get(image.mode)
    if mode is None:
        raise ValueError(f"a picture of mode {image.mode} has no place in a PNG; convert it, for example to RGB")
    return image.convert(mode)


def _scaled(pixels: Pixels) -> bytes:
    """Make bytes of floats from 0 to 1; what lies a little beyond is clipped, as ComfyUI's SaveImage does."""
    import PIL.Image

    height, width, channels = pixels.shape
    order = "" if pixels.typestr[0] == "<" else "B"
    raw = f"F;{8 * int(pixels.typestr[2:])}{order}F"
    # One row of numbers after the other, whatever they mean.
    numbers = PIL.Image.frombytes("F", (width * channels, height), pixels.data, "raw", raw)
    lowest, highest = _extrema(numbers)
    if not (lowest >= -_SLACK and highest <= 1 + _SLACK):
        raise ValueError(f"the floats of an array are from 0 to 1; these are from {lowest:g} to {highest:g}")
    return numbers.point(lambda value: value * 255 + 0.5).convert("L").tobytes()


def _extrema(numbers: Image) -> tuple[float, float]:
    lowest, highest = numbers.getextrema()
    if isinstance(lowest, tuple) or isinstance(highest, tuple):
        raise AssertionError("an image of one band has one pair of extrema")
    return float(lowest), float(highest)


def masked(image: Image, mask: Image) -> Image:
    """Give a picture the alpha channel that makes a mask of it: transparent where the mask is white.

    LoadImage gives 1 - alpha as the mask (ComfyUI nodes.py, all versions). Where the mask itself is transparent, it
    counts as black.

    Raises:
        ValueError: They are not of one size.
    """
    import PIL.Image

    image, mask = _plain(image), _plain(mask)
    if image.size != mask.size:
        raise ValueError(f"the mask is {mask.width} x {mask.height}, the picture {image.width} x {image.height}")
    if mask.mode in ("LA", "RGBA"):
        over_black = PIL.Image.new("L", mask.size)
        over_black.paste(mask.convert("L"), mask=mask.getchannel("A"))
        mask = over_black
    image = image.convert("RGBA")  # a copy, if it is one already
    image.putalpha(mask.convert("L").point(lambda value: 255 - value))
    return image


# --- PNG -----------------------------------------------------------------------------------------------------------


def write_png(image: Image) -> bytes:
    """Write an image of mode L, LA, RGB or RGBA as PNG (the W3C recommendation), each row as its change to the last."""
    width, height = image.size
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[image.mode], 0, 0, 0)
    compressor = zlib.compressobj(level=1)
    parts = [compressor.compress(strip) for strip in _strips(image)]
    parts.append(compressor.flush())
    body = b"".join(_chunk(b"IDAT", part) for part in parts if part)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + body + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _strips(image: Image) -> Iterator[bytes]:
    """Yield the rows, some at a time, filtered: each byte less the one above it, as PNG's filter 2 wants."""
    from PIL.ImageChops import subtract_modulo

    width, height = image.size
    row_size = width * len(image.getbands())
    rows = max(1, _STRIP_SIZE // row_size)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image.crop((0, top, width, bottom))
        above = image.crop((0, top - 1, width, bottom - 1))  # above the first row lies nothing: zeros
        data = subtract_modulo(strip, above).tobytes()
        yield b"".join(_UP + data[start : start + row_size] for start in range(0, len(data), row_size))

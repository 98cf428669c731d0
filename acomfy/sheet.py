"""Lay pictures out on a contact sheet: a grid with a caption under each."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER = (24, 25, 29)
_FRAME = (58, 60, 68)
_INK = (228, 230, 235)
_FAINT_INK = (150, 154, 164)
_CHECKS = (206, 208, 213), (232, 233, 236)  # shown through transparent pictures
_SHAPE = 1.6  # width by height that a sheet of free choice aims at: a screen's


def contact_sheet(
    images: Iterable[Image.Image], captions: Iterable[str] = (), *, columns: int | None = None, cell: int = 256
) -> Image.Image:
    """Draw pictures in a grid, each with its caption under it.

    Pictures keep their shape and are never enlarged; the longer side takes at most `cell` pixels. A caption is one line
    or several, the first brighter than the others, each shortened to the width of the cell. Only small copies are held,
    so `images` may be a generator over any number of large ones. `columns` None chooses a grid that suits a screen.

    Raises:
        ValueError: There is not one picture, or `columns` or `cell` is not positive.
    """
    if cell < 1 or (columns is not None and columns < 1):
        raise ValueError(f"columns and cell must be positive, not {columns} and {cell}")
    thumbs = [_thumb(image, cell) for image in images]
    if not thumbs:
        raise ValueError("a contact sheet needs at least one picture")
    texts = [_lines(caption) for caption in captions]
    height = max(thumb.height for thumb in thumbs)
    size = max(9, round(cell / 18))
    leading = round(size * 1.5)
    room = (cell, height + max((len(lines) for lines in texts), default=0) * leading + size // 2)
    gap = max(6, cell // 16)
    columns = min(columns or _columns(len(thumbs), room[0] + gap, room[1] + gap), len(thumbs))
    rows = math.ceil(len(thumbs) / columns)
    sheet = Image.new("RGB", (gap + columns * (room[0] + gap), gap + rows * (room[1] + gap)), _PAPER)
    for index, (thumb, lines) in enumerate(zip_longest(thumbs, texts[: len(thumbs)], fillvalue=None)):
        assert thumb is not None
        x, y = gap + index % columns * (room[0] + gap), gap + index // columns * (room[1] + gap)
        _place(sheet, thumb, x + (cell - thumb.width) // 2, y + height - thumb.height)
        _write(sheet, lines or [], x + cell / 2, y + height + size // 2, size, cell)
    return sheet


def _columns(count: int, width: int, height: int) -> int:
    """Choose the number of columns whose grid is nearest to the shape of a screen, counting empty cells against it."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns * width / (rows * height) / _SHAPE)) + 1.5 * (rows * columns - count) / columns

    return min(range(1, count + 1), key=cost)


def _thumb(image: Image.Image, cell: int) -> Image.Image:
    """Copy a picture, no larger than a cell, as opaque RGB; what was transparent shows checks."""
    size = image.size
    if max(size) > cell:
        size = max(1, round(size[0] * cell / max(size))), max(1, round(size[1] * cell / max(size)))
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if image.mode == "RGB":
        return image
    paper = _checkered(size)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring 16-bit and floating point greys to 8 bits, which a plain conversion would clip to white."""
    deep = image.convert("F")
    top = 1.0 if image.mode == "F" else 65535.0
    return deep.point(lambda value: value * (255 / top) + 0).convert("L")


def _checkered(size: tuple[int, int], side: int = 8) -> Image.Image:
    light, dark = _CHECKS
    tile = Image.new("RGB", (2, 2), light)
    tile.putpixel((0, 0), dark)
    tile.putpixel((1, 1), dark)
    tile = tile.resize((2 * side, 2 * side), Image.Resampling.NEAREST)
    paper = Image.new("RGB", size)
    for y in range(0, size[1], 2 * side):
        for x in range(0, size[0], 2 * side):
            paper.paste(tile, (x, y))
    return paper


def _place(sheet: Image.Image, thumb: Image.Image, x: int, y: int) -> None:
    """Paste a picture with softly rounded corners inside a hairline frame."""
    radius = min(6, min(thumb.size) // 8)
    mask = Image.new("L", (thumb.width * 4, thumb.height * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius * 4, fill=255)
    ImageDraw.Draw(sheet).rounded_rectangle(
        (x - 1, y - 1, x + thumb.width, y + thumb.height), radius + 1, outline=_FRAME
    )
    sheet.paste(thumb, (x, y), mask.reduce(4))


def _write(sheet: Image.Image, lines: Sequence[str], middle: float, y: float, size: int, room: float) -> None:
    draw, font = ImageDraw.Draw(sheet), built_in_font(size)
    for index, line in enumerate(lines):
        ink = _FAINT_INK if index else _INK
        draw.text((middle, y + (index + 0.5) * size * 1.5), fitted(line, font, room), ink, font, anchor="mm")


def _lines(caption: str) -> list[str]:
    return [text for line in caption.splitlines() if (text := legible(line))]


# --- lettering: what the simulator's labels use as well ---------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def built_in_font(size: int) -> Font:
    """Load Pillow's own scalable font, which needs no file of the machine."""
    return ImageFont.load_default(size)


def legible(text: str) -> str:
    """Keep what the built-in font can draw - Latin letters, digits, signs - on one line with single spaces."""
    text = "".join(char if char.isprintable() else " " for char in text if ord(char) < 0x250 or char in "…–—‘’“”·")
    return " ".join(text.split())


def fitted(text: str, font: Font, room: float) -> str:
    """Shorten a text with an ellipsis until it is no wider than the room."""
    if len(text) <= 400 and font.getlength(text) <= room:
        return text
    text = text[:400]
    while text and font.getlength(text.rstrip() + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""

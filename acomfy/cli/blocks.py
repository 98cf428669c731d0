"""Draw a picture in a terminal's cells: each shows two pixels, one above the other."""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError
from rich.style import Style
from rich.text import Text

_UPPER_HALF = "▀"
_MOST_PIXELS = 1 << 26


def half_blocks(data: bytes | memoryview, columns: int, rows: int) -> Text | None:
    """Draw a picture file as large as fits; None when it is no picture that Pillow reads, or far too large."""
    if columns < 1 or rows < 1:
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            image.draft("RGB", (columns, 2 * rows))  # JPEG alone: decodes no more than is needed
            small = _on_black(ImageOps.contain(image, (columns, 2 * rows)))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return _drawn(small)


def _on_black(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA", "PA", "P"):
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "black")
    return Image.alpha_composite(ground, layer).convert("RGB")


def _drawn(image: Image.Image) -> Text:
    width, height, data = image.width, image.height, image.tobytes()

    def color(x: int, y: int) -> str:
        if y >= height:
            return "#000000"
        at = 3 * (y * width + x)
        return f"#{data[at]:02x}{data[at + 1]:02x}{data[at + 2]:02x}"

    lines = []
    for y in range(0, height, 2):
        line = Text(no_wrap=True)
        for x in range(width):
            line.append(_UPPER_HALF, Style(color=color(x, y), bgcolor=color(x, y + 1)))
        lines.append(line)
    return Text("\n", no_wrap=True).join(lines)

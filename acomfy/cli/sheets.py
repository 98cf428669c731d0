"""Write the contact sheet of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..sheet import contact_sheet

_LARGEST_CELL = 256
_SHEET_WIDTH = 8000  # pixels that a sheet of very many pictures is kept within, by smaller cells


def can_be_written(path: Path) -> bool:
    """Tell whether Pillow writes pictures of that name."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE


def write_sheet(path: Path, pictures: Sequence[tuple[Path, str]]) -> bool:
    """Draw pictures with their captions into a file; False when there is none that Pillow can read.

    Raises:
        OSError: The file cannot be written.
    """
    shown: list[str] = []  # filled while the pictures are read, since some may have to be left out

    def images() -> Iterator[Image.Image]:
        for picture, caption in pictures:
            try:
                with Image.open(picture) as image:
                    image.load()
            except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
                continue
            shown.append(caption)
            yield image

    cell = min(_LARGEST_CELL, max(32, _SHEET_WIDTH // (math.isqrt(2 * len(pictures)) + 1)))
    try:
        sheet = contact_sheet(images(), shown, cell=cell)
    except ValueError:
        return False
    sheet.save(path)
    return True

"""Contact sheets: a tidy grid, whatever the pictures are."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
from PIL import Image

from acomfy.sheet import built_in_font, contact_sheet, fitted, legible

RED, PAPER = (220, 40, 40), (24, 25, 29)


def squares(count: int, side: int = 64) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), RED) for _ in range(count)]


def reds(sheet: Image.Image) -> int:
    return sheet.convert("RGB").tobytes().count(bytes(RED))


@pytest.mark.parametrize(
    ("count", "grid"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (8, (4, 2)), (12, (4, 3)), (100, (13, 8))]
)
def test_the_grid_suits_a_screen(count: int, grid: tuple[int, int]) -> None:
    sheet = contact_sheet(squares(count), cell=64)
    one = contact_sheet(squares(1), cell=64)
    assert ((sheet.width - 6) // (one.width - 6), (sheet.height - 6) // (one.height - 6)) == grid


def test_every_picture_is_on_the_sheet() -> None:
    alone = reds(contact_sheet(squares(1), cell=64))
    assert alone > 64 * 64 * 0.9
    assert reds(contact_sheet(squares(11), cell=64)) == 11 * alone


def test_columns_are_obeyed_but_never_more_than_pictures() -> None:
    assert contact_sheet(squares(4), columns=1, cell=64).height > contact_sheet(squares(4), columns=4, cell=64).height
    assert contact_sheet(squares(2), columns=50, cell=64).size == contact_sheet(squares(2), columns=2, cell=64).size


def test_captions_take_room_and_ink_under_each_picture() -> None:
    bare = contact_sheet(squares(2))
    one_line = contact_sheet(squares(2), ["seed 5", "seed 6"])
    two_lines = contact_sheet(squares(2), ["seed 5\nSaved", "seed 6\nSaved"])
    assert bare.height < one_line.height < two_lines.height
    below = one_line.crop((0, bare.height - 20, one_line.width, one_line.height))
    assert max(below.convert("L").tobytes()) > 200


def test_a_long_caption_stays_in_its_cell() -> None:
    sheet = contact_sheet(squares(2, 128), ["", "caption " * 50], cell=128, columns=2)
    left_cell = sheet.crop((0, 140, 8 + 128, sheet.height))
    assert left_cell.getcolors() == [(left_cell.width * left_cell.height, PAPER)]


def test_pictures_keep_their_shape_and_are_never_enlarged() -> None:
    wide = contact_sheet([Image.new("RGB", (1024, 256), RED)], cell=128)
    assert abs(reds(wide) - 128 * 32) < 40
    assert abs(reds(contact_sheet([Image.new("RGB", (10, 10), RED)], cell=128)) - 100) < 10


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_every_kind_of_picture_is_accepted(mode: str) -> None:
    assert contact_sheet([Image.new(mode, (300, 200))], ["x"], cell=64).mode == "RGB"


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    middle = Image.new("I;16", (64, 64), 32768)
    assert contact_sheet([middle], cell=64).getpixel((38, 38)) == (127, 127, 127)


def test_transparent_pictures_show_checks() -> None:
    sheet = contact_sheet([Image.new("RGBA", (64, 64), (255, 0, 0, 0))], cell=64)
    colors = {sheet.getpixel((x, 30)) for x in range(20, 60)}
    assert colors == {(206, 208, 213), (232, 233, 236)}


def test_one_large_picture_is_held_at_a_time() -> None:
    made: list[weakref.ref[Image.Image]] = []
    most = 0

    def pictures() -> Iterator[Image.Image]:
        nonlocal most
        for _ in range(10):
            picture = Image.new("RGB", (512, 512))
            made.append(weakref.ref(picture))
            most = max(most, sum(reference() is not None for reference in made))
            yield picture
            del picture

    contact_sheet(pictures(), cell=32)
    assert most <= 2


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="positive"):
        contact_sheet(squares(1), columns=0)


def test_texts_are_shortened_by_measured_width() -> None:
    font = built_in_font(12)
    short = fitted("seed 123456789", font, 60)
    assert short.endswith("…") and font.getlength(short) <= 60
    assert fitted("WWWWWWWWWWWW", font, 60).count("W") < fitted("iiiiiiiiiiiiiiiiiiiiiiiii", font, 60).count("i")
    assert fitted("fits", font, 60) == "fits"
    assert fitted("x" * 10_000, font, 60).endswith("…")
    assert fitted("x", font, 0) == ""


def test_only_what_the_font_can_draw_is_kept() -> None:
    assert legible("fox 狐 \n in\tsnow\0") == "fox in snow"

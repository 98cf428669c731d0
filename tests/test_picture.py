"""Simulated pictures: the same arguments give the same bytes, other ones give other pictures, at any size."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import pytest
from PIL import Image, ImageChops, ImageStat

from acomfy.simulator.picture import paint
from acomfy.simulator.scenery import SCENES, SUBJECTS


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def difference(first: Image.Image, second: Image.Image) -> float:
    """Give the mean difference per channel, 0 to 255."""
    return sum(ImageStat.Stat(ImageChops.difference(first, second)).mean) / 3


def test_same_arguments_give_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from acomfy.simulator.picture import paint;"
        "print(hashlib.sha256(paint('a fox', 7, 96, 64, sharpness=0.4).tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.strip() == digest(paint("a fox", 7, 96, 64, sharpness=0.4))


@pytest.mark.parametrize("prompt", ["masterpiece best quality man", "a fox", "", "狐狸"])
def test_eight_seeds_give_eight_clearly_different_pictures(prompt: str) -> None:
    pictures = [paint(prompt, seed, 128, 128) for seed in range(8)]
    assert min(difference(a, b) for a, b in itertools.combinations(pictures, 2)) > 12


def test_random_seeds_give_different_pictures() -> None:
    seeds = [2**64 - 1, 0, 8, 16, 12345678901234567890, 156680208700286]
    assert len({digest(paint("a fox", seed, 64, 64)) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "a red fox at night"},
        {"seed": 4},
        {"batch_index": 1},
        {"negative": "blurry"},
        {"steps": 30},
        {"cfg": 2.0},
        {"sharpness": 0.9},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_argument_shows(changed: dict[str, object]) -> None:
    usual: dict[str, object] = {"prompt": "a fox", "seed": 3, "width": 160, "height": 160}
    assert difference(paint(**usual), paint(**usual | changed)) > 0.01  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(len(SCENES)))
@pytest.mark.parametrize("size", [(16, 16), (17, 333), (333, 17), (16, 1024), (113, 81), (640, 360)], ids=str)
def test_every_scene_can_be_painted_at_any_size(seed: int, size: tuple[int, int]) -> None:
    for sharpness in (0.0, 0.5, 1.0):
        image = paint("man", seed, *size, sharpness=sharpness)
        assert (image.size, image.mode) == (size, "RGB")


@pytest.mark.parametrize("side", [2048, 4096])
def test_large_pictures_are_painted_too(side: int) -> None:
    assert paint("a fox", 1, side, side).size == (side, side)


def test_a_picture_sharpens_steadily_from_noise() -> None:
    final = paint("a fox", 5, 256, 256)
    distances = [difference(final, paint("a fox", 5, 256, 256, sharpness=step / 10)) for step in range(11)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 50 and distances[-1] == 0


def test_sharpness_outside_its_range_is_clamped() -> None:
    assert digest(paint("a", 1, 64, 64, sharpness=-1)) == digest(paint("a", 1, 64, 64, sharpness=0))
    assert digest(paint("a", 1, 64, 64, sharpness=2)) == digest(paint("a", 1, 64, 64))


@pytest.mark.parametrize("subject", [*SUBJECTS])
def test_who_the_prompt_names_is_in_the_picture_unless_the_negative_prompt_names_it_too(subject: str) -> None:
    words = f"a {subject}, sea"
    unwanted = paint(words, 1, 256, 256, negative=subject)
    assert difference(paint(words, 1, 256, 256, negative="x" + subject), unwanted) > 0.2


@pytest.mark.parametrize("seed", range(len(SCENES)))
@pytest.mark.parametrize("sharpness", [0.0, 1.0])
def test_a_dark_band_with_white_letters_marks_every_picture_as_simulated(seed: int, sharpness: float) -> None:
    band = paint("", seed, 512, 512, sharpness=sharpness).crop((0, 490, 256, 510)).convert("L")
    assert max(band.tobytes()) == 255
    assert ImageStat.Stat(band).median[0] < 110


def test_a_long_or_strange_prompt_is_no_trouble() -> None:
    for prompt in ("word " * 4000, "\ud800 lone surrogate", "line\nbreak\ttab\0zero", "𝕱𝖔𝖝 🦊"):
        assert paint(prompt, 1, 256, 256).size == (256, 256)

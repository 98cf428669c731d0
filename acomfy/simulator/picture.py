"""Paint the simulated picture of a prompt: a small landscape, made of nothing but a hash and Pillow.

The words of the prompt choose the colours, the hour and who stands in the picture; the seed chooses the scene and where
everything is. The same arguments give the same picture in every process and on every machine: chance comes from
`random.Random` seeded by a sha256, never from a clock or `hash()`. Every picture with room for a line of text says at
the bottom that it is simulated.
"""

from __future__ import annotations

import colorsys
import hashlib
import random
import re
from dataclasses import fields, replace

from PIL import Image, ImageDraw, ImageEnhance

from ..sheet import built_in_font, fitted, legible
from .scenery import SCENES, SUBJECTS, Canvas, Color, Light

_LABEL_MIN_SIZE = 112, 80  # below this a line of text would be unreadable, or cover the picture


def paint(
    prompt: str,
    seed: int,
    width: int,
    height: int,
    *,
    sharpness: float = 1.0,
    negative: str = "",
    batch_index: int = 0,
    steps: int = 20,
    cfg: float = 8.0,
) -> Image.Image:
    """Paint what a prompt and a seed look like; sharpness 0 is coloured noise, 1 the finished picture."""
    number = seed + batch_index
    composition, detail = _random(seed, batch_index), _random(seed, batch_index, negative, steps)
    canvas = Canvas(width, height, _light(prompt, number), composition, detail)
    spot = SCENES[_scene(prompt, number)](canvas)
    if (subject := _subject(prompt, negative)) is not None:
        SUBJECTS[subject](canvas, spot)
    image = canvas.image
    if cfg != 8.0:  # as with real guidance, low values wash a picture out and high values burn its colours
        image = ImageEnhance.Color(image).enhance(min(1.6, max(0.3, 0.55 + cfg * 0.05625)))
    if sharpness < 1.0:
        image = _veiled(image, max(0.0, sharpness), _random("noise", seed, batch_index))
    _label(image, f"simulated · seed {seed}" + (f" #{batch_index}" if batch_index else ""), prompt)
    return image


def _random(*parts: object) -> random.Random:
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return random.Random(int.from_bytes(digest, "big"))


# --- what the words mean

_LIGHTS = {  # zenith, middle, horizon; sun; far, near; accent
    "day": "3076c4 76b6e4 e2f0ee fffbe6 8eb6cc 1e543e fac850",
    "dawn": "5864a4 e29aa6 ffdaac fff3d6 c09ab0 382a50 ffa896",
    "mist": "a6c0c8 ccdad6 f2eee0 fffdf2 b2c4c6 345254 de6054",
    "golden": "427096 ecb668 ffe69c fff8d0 d8a470 4a3026 ec5c3a",
    "night": "070c26 122854 3e6888 f4f3e4 2e4e6c 050d1a 70ecc4",
    "dusk": "241c56 983c7a ff925e ffd084 86487c 1a102e ff7084",
    "jade": "145868 58aa98 ecEEc2 fffcde 6eaa9a 0c3a3e fa966e",
    "rose": "966eaa f2a8b8 ffe4d4 fff6e8 d89eb4 5c2e54 ff8aa8",
}
_LIGHT_WORDS = {
    "day": "day noon summer sunny bright blue spring",
    "dawn": "dawn morning sunrise pastel",
    "mist": "mist fog winter snow white grey gray rain ink",
    "golden": "golden gold autumn yellow orange warm",
    "night": "night moon star stars starry dark midnight aurora black space galaxy",
    "dusk": "dusk sunset evening purple violet neon cyberpunk",
    "jade": "jade green teal jungle underwater",
    "rose": "rose pink love cherry sakura romantic",
}
_ACCENT_WORDS = {
    "e23e36": "red scarlet",
    "c81e3c": "crimson",
    "f68a2e": "orange",
    "fcd246": "yellow",
    "f6c046": "gold golden",
    "54b258": "green",
    "28aaa4": "teal",
    "427ee2": "blue",
    "9454cc": "purple violet",
    "fa86b0": "pink",
    "f8f6f0": "white",
    "ced4dc": "silver",
    "e8702c": "fox",
}
_SCENE_WORDS = {
    "ridges": "hill hills valley forest wood woods",
    "sea": "sea ocean beach coast ship boat harbour harbor sailing waves",
    "blossoms": "blossom blossoms cherry sakura branch",
    "lake": "lake mountain mountains river alps reflection",
    "city": "city skyline town street tower towers cyberpunk neon",
    "meadow": "meadow field fields garden flower flowers grass tree",
    "lights": "aurora northern borealis",
    "dunes": "desert dune dunes sand sahara mars",
}
_SUBJECT_WORDS = {
    "person": "man woman girl boy person people portrait child lady knight wizard warrior human traveller wanderer",
    "fox": "fox cat dog wolf kitten puppy animal",
    "house": "house cabin hut home cottage castle",
}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _meaning(words: list[str], table: dict[str, str]) -> str | None:
    """Find the key of the table that lists the first known word."""
    keys = {word: key for key, listed in table.items() for word in listed.split()}
    return next((keys[word] for word in words if word in keys), None)


def _scene(prompt: str, number: int) -> str:
    """Choose a scene: by a word of the prompt, else by the seed, so that eight seeds in a row are eight scenes."""
    return _meaning(_words(prompt), _SCENE_WORDS) or list(SCENES)[number % len(SCENES)]


def _subject(prompt: str, negative: str) -> str | None:
    """Choose who is in the picture, if the prompt names anybody and the negative prompt does not."""
    unwanted = set(_words(negative))
    return _meaning([word for word in _words(prompt) if word not in unwanted], _SUBJECT_WORDS)


def _light(prompt: str, number: int) -> Light:
    """Choose the colours: by a word such as "sunset", else by all words and the seed; then tint them by both."""
    words, names = _words(prompt), list(_LIGHTS)
    chance = _random("palette", *sorted(set(words)) or [prompt])
    start, turn = chance.randrange(len(names)), chance.random() * 0.08 - 0.04
    turn += _random("tint", number).random() * 0.06 - 0.03
    by_seed = names[(start + number * 3 + number // len(names)) % len(names)]
    colors = [_color(code) for code in _LIGHTS[_meaning(words, _LIGHT_WORDS) or by_seed].split()]
    light = Light(**{field.name: _turned(color, turn) for field, color in zip(fields(Light), colors, strict=True)})
    accent = _meaning(words, _ACCENT_WORDS)
    return replace(light, accent=_color(accent)) if accent else light


def _color(code: str) -> Color:
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


def _turned(color: Color, turn: float) -> Color:
    """Turn the hue of a colour by a part of the circle."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    red, green, blue = (
        round(channel * 255) for channel in colorsys.hls_to_rgb((hue + turn) % 1, lightness, saturation)
    )
    return red, green, blue


# --- noise and label


def _veiled(image: Image.Image, sharpness: float, chance: random.Random) -> Image.Image:
    """Hide a picture behind coloured noise, as in an unfinished latent: coarse forms come first, edges last."""
    size = image.size
    coarse = max(1, round(min(size) / 12 * (1 - sharpness) ** 1.5))
    if coarse > 1:
        image = image.reduce(coarse).resize(size, Image.Resampling.BICUBIC)
    cells = max(2, min(96, size[0] // 8)), max(2, min(96, size[1] // 8))  # a latent has an eighth of the pixels a side
    noise = Image.frombytes("RGB", cells, chance.randbytes(cells[0] * cells[1] * 3))
    return Image.blend(image, noise.resize(size, Image.Resampling.BICUBIC), (1 - sharpness) ** 1.2)


def _label(image: Image.Image, title: str, prompt: str) -> None:
    """Write on a dark band what this is: simulated, of which seed, and as much of the prompt as fits."""
    width, height = image.size
    if width < _LABEL_MIN_SIZE[0] or height < _LABEL_MIN_SIZE[1]:
        return
    size = max(10, round(min(width, height * 1.5) / 36))
    font, margin, band = built_in_font(size), size * 0.6, round(size * 1.7)
    box = (0, height - band, width, height)
    image.paste(Image.blend(image.crop(box), Image.new("RGB", (width, band), (12, 13, 18)), 0.66), box)
    draw, middle = ImageDraw.Draw(image), height - band / 2
    title = fitted(title, font, width - 2 * margin)
    draw.text((margin, middle), title, (255, 255, 255), font, anchor="lm")
    text = fitted(legible(prompt), font, width - 2 * margin - font.getlength(title) - size)
    if len(text) > 3:
        draw.text((width - margin, middle), text, (196, 200, 210), font, anchor="rm")

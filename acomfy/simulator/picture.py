"""Paint the simulated picture of a prompt: a small landscape, made of nothing but hashes and Pillow.

The words of the prompt choose the colours, the time of day and who stands in the picture; the seed chooses the scene and
where everything is. The same arguments give the same picture in every process and on every machine: randomness comes from
`random.Random` seeded by a sha256, never from the clock or from `hash()`. Every picture that is large enough for a line of
text says at the bottom that it is simulated.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Color: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

_LABEL_MIN_WIDTH, _LABEL_MIN_HEIGHT = 112, 80  # below this a line of text would be unreadable or cover the picture
_SUPERSAMPLED_PIXELS = 1 << 20  # edges of larger pictures are fine enough without


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
    """Paint what a prompt and a seed look like; `sharpness` 0 is coloured noise, 1 the finished picture."""
    scene_number = seed + batch_index
    chance = _random("composition", seed, batch_index)
    light = _light(prompt, scene_number)
    canvas = Canvas(width, height, light, chance, _random("detail", seed, batch_index, negative, steps))
    spot = _scene(prompt, scene_number)(canvas)
    _SUBJECTS[_subject(prompt, negative)](canvas, spot)
    image = canvas.image
    if cfg != 8.0:  # guidance: low values wash a picture out, high values burn its colours
        image = ImageEnhance.Color(image).enhance(min(1.6, max(0.3, 0.55 + cfg * 0.05625)))
    if sharpness < 1.0:
        image = _veil(image, max(0.0, sharpness), _random("noise", seed, batch_index))
    _label(image, f"simulated · seed {seed}" + (f" #{batch_index}" if batch_index else ""), prompt)
    return image


def _random(*parts: object) -> random.Random:
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return random.Random(int.from_bytes(digest, "big"))


# --- light: which colours ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Light:
    """The colours of one hour of the day: three of the sky, then sun or moon, far and near ground, and the accent."""

    zenith: Color
    middle: Color
    horizon: Color
    sun: Color
    far: Color
    near: Color
    accent: Color


_LIGHTS = {
    "day": Light(
        (48, 118, 196), (118, 182, 228), (226, 240, 238), (255, 251, 230), (142, 182, 204), (30, 84, 62), (250, 200, 80)
    ),
    "dawn": Light(
        (88, 100, 164),
        (226, 154, 166),
        (255, 218, 172),
        (255, 243, 214),
        (192, 154, 176),
        (56, 42, 80),
        (255, 168, 150),
    ),
    "mist": Light(
        (176, 198, 204), (208, 220, 216), (242, 238, 224), (255, 253, 242), (178, 196, 198), (52, 82, 84), (222, 96, 84)
    ),
    "golden": Light(
        (66, 112, 150), (236, 182, 104), (255, 230, 156), (255, 248, 208), (216, 164, 112), (74, 48, 38), (236, 92, 58)
    ),
    "night": Light(
        (7, 12, 38), (18, 40, 84), (62, 104, 136), (244, 243, 228), (46, 78, 108), (5, 13, 26), (112, 236, 196)
    ),
    "dusk": Light(
        (36, 28, 86), (152, 60, 122), (255, 146, 94), (255, 208, 132), (134, 72, 124), (26, 16, 46), (255, 112, 132)
    ),
    "jade": Light(
        (20, 88, 104), (88, 170, 152), (236, 238, 194), (255, 252, 222), (110, 170, 154), (12, 58, 62), (250, 150, 110)
    ),
    "rose": Light(
        (150, 110, 170),
        (242, 168, 184),
        (255, 228, 212),
        (255, 246, 232),
        (216, 158, 180),
        (92, 46, 84),
        (255, 138, 168),
    ),
}
_LIGHT_WORDS = {
    "day": "day noon summer sunny bright blue spring",
    "dawn": "dawn morning sunrise pastel",
    "mist": "mist fog winter snow white grey gray rain ink",
    "golden": "golden gold autumn yellow orange desert warm",
    "night": "night moon star stars starry dark midnight aurora black space galaxy",
    "dusk": "dusk sunset evening purple violet neon cyberpunk",
    "jade": "jade green teal forest jungle underwater",
    "rose": "rose pink love cherry sakura romantic",
}
_ACCENTS = {
    "red": (226, 62, 54), "crimson": (200, 30, 60), "orange": (246, 138, 46), "yellow": (252, 210, 70), "gold": (246, 192, 70),
    "green": (84, 178, 88), "teal": (40, 170, 164), "blue": (66, 126, 226), "purple": (148, 84, 204), "violet": (140, 90, 220),
    "pink": (250, 134, 176), "white": (248, 246, 240), "black": (24, 24, 30), "silver": (206, 212, 220), "fox": (232, 112, 44),
}  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _named(text: str, meanings: dict[str, str]) -> str | None:
    """Find the first word of the text that means something: the key whose list holds it."""
    table = {word: key for key, words in meanings.items() for word in words.split()}
    return next((table[word] for word in _words(text) if word in table), None)


def _light(prompt: str, scene_number: int) -> Light:
    """Choose the colours: by a word such as "sunset" if there is one, else by all words and the seed; then tint them."""
    chance = _random("palette", *sorted(set(_words(prompt))) or [prompt])
    names = list(_LIGHTS)
    start = chance.randrange(len(names))
    turn = chance.random() * 0.08 - 0.04
    name = _named(prompt, _LIGHT_WORDS) or names[(start + scene_number * 3 + scene_number // len(names)) % len(names)]
    light = _LIGHTS[name]
    light = Light(*(_turned(getattr(light, field.name), turn) for field in fields(light)))
    accent = next((_ACCENTS[word] for word in _words(prompt) if word in _ACCENTS), None)
    return replace(light, accent=accent) if accent else light


def _turned(color: Color, turn: float) -> Color:
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    red, green, blue = colorsys.hls_to_rgb((hue + turn) % 1.0, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(first: Color, second: Color, share: float) -> Color:
    share = min(1.0, max(0.0, share))
    return (
        round(first[0] + (second[0] - first[0]) * share),
        round(first[1] + (second[1] - first[1]) * share),
        round(first[2] + (second[2] - first[2]) * share),
    )


# --- canvas: how to draw -----------------------------------------------------------------------------------------------


class Canvas:
    """Hold the picture being painted; places are fractions of width and height, sizes fractions of the shorter side."""

    def __init__(self, width: int, height: int, light: Light, chance: random.Random, detail: random.Random) -> None:
        self.width, self.height = width, height
        self.light = light
        self.chance, self.detail = chance, detail
        self.unit = min(width, height)
        self.scale = 2 if width * height <= _SUPERSAMPLED_PIXELS else 1
        self.image = Image.new("RGB", (width, height))

    def column(self, stops: Sequence[Color], height: int) -> Image.Image:
        """Give a strip one pixel wide whose colour runs through the stops from top to bottom."""
        strip = Image.new("RGB", (1, len(stops)))
        strip.putdata(list(stops))
        # Half a stop is cut off either end: resize treats stops as pixel centres, and would hold the outer colours flat.
        return strip.resize((1, max(1, height)), Image.Resampling.BILINEAR, (0, 0.5, 1, len(stops) - 0.5))

    def fill(self, stops: Sequence[Color], top: float = 0.0, bottom: float = 1.0) -> None:
        """Paint a horizontal band with a vertical gradient."""
        y, end = round(top * self.height), max(round(bottom * self.height), round(top * self.height) + 1)
        strip = self.column(stops, end - y).resize((self.width, end - y), Image.Resampling.NEAREST)
        self.image.paste(strip, (0, y))

    def shapes(
        self,
        draw: Callable[[Pen], None],
        stops: Sequence[Color],
        top: float = 0.0,
        bottom: float = 1.0,
        opacity: float = 1.0,
    ) -> None:
        """Draw shapes of one colour (or one gradient, top to bottom) with smooth edges, within a horizontal band."""
        y, end = max(0, math.floor(top * self.height)), min(self.height, math.ceil(bottom * self.height))
        if end <= y:
            return
        mask = Image.new("L", (self.width * self.scale, (end - y) * self.scale))
        draw(Pen(self, mask, y, round(255 * opacity)))
        if self.scale > 1:
            mask = mask.reduce(self.scale)
        self.through(mask, stops, y)

    def through(self, mask: Image.Image, stops: Sequence[Color], y: int = 0, x: int = 0) -> None:
        """Paint a gradient through a mask whose top left corner is at (x, y) in pixels."""
        if len(stops) == 1:
            self.image.paste(stops[0], (x, y, x + mask.width, y + mask.height), mask)
        else:
            paint = self.column(stops, mask.height).resize(mask.size, Image.Resampling.NEAREST)
            self.image.paste(paint, (x, y), mask)

    def glow(self, x: float, y: float, radius: float, color: Color, strength: float) -> None:
        """Let light shine around a point, fading to nothing at the radius."""
        side = max(2, round(radius * self.unit * 2))
        table = [round(255 * strength * max(0.0, 1 - value / 180) ** 2) for value in range(256)]
        mask = Image.radial_gradient("L").point(table).resize((side, side), Image.Resampling.BILINEAR)
        self.through(mask, [color], round(y * self.height) - side // 2, round(x * self.width) - side // 2)

    def noise(self, columns: int, rows: int, width: int, height: int) -> Image.Image:
        """Give smooth grey noise: a small grid of chance, enlarged."""
        grid = Image.frombytes("L", (columns, rows), self.chance.randbytes(columns * rows))
        return grid.resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC)


class Pen:
    """Draw on the mask of one group of shapes, in the canvas's own measures."""

    def __init__(self, canvas: Canvas, mask: Image.Image, top: int, value: int) -> None:
        self._draw = ImageDraw.Draw(mask)
        self._canvas, self._top, self._value = canvas, top, value
        self._scale = canvas.scale

    def _at(self, point: Point) -> tuple[int, int]:
        x = point[0] * self._canvas.width
        y = point[1] * self._canvas.height - self._top
        return round(x * self._scale), round(y * self._scale)

    def length(self, size: float) -> float:
        """Convert a size to pixels of the mask."""
        return size * self._canvas.unit * self._scale

    def polygon(self, points: Iterable[Point]) -> None:
        """Fill a polygon given in fractions of the canvas."""
        self._draw.polygon([self._at(point) for point in points], fill=self._value)

    def outline(self, at: Point, size: float, points: Iterable[Point]) -> None:
        """Fill a polygon given around a point, one unit long being `size`; y points up."""
        x, y = self._at(at)
        side = self.length(size)
        self._draw.polygon([(round(x + dx * side), round(y - dy * side)) for dx, dy in points], fill=self._value)

    def disc(self, at: Point, radius: float, flat: float = 1.0) -> None:
        """Fill a disc, or an ellipse that is `flat` times as high as wide."""
        x, y = self._at(at)
        across, down = max(0.5, self.length(radius)), max(0.5, self.length(radius) * flat)
        self._draw.ellipse((round(x - across), round(y - down), round(x + across), round(y + down)), fill=self._value)

    def line(self, points: Sequence[Point], width: float) -> None:
        """Draw a stroke through points, with rounded joints."""
        self._draw.line(
            [self._at(point) for point in points],
            fill=self._value,
            width=max(1, round(self.length(width))),
            joint="curve",
        )


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a scene has room for somebody: the point they stand on, their height, their colour."""

    x: float
    y: float
    size: float
    color: Color


# --- pieces that scenes share ------------------------------------------------------------------------------------------


def _hills(chance: random.Random, y: float, rise: float, humps: int, samples: int = 56) -> list[Point]:
    """Give a smooth skyline: `humps` control heights, eased into each other."""
    controls = [chance.random() for _ in range(humps + 2)]
    line = []
    for index in range(samples + 1):
        place = index / samples * humps
        step = int(place)
        t = place - step
        eased = t * t * (3 - 2 * t)
        line.append((index / samples, y - rise * (controls[step] + (controls[step + 1] - controls[step]) * eased)))
    return line


def _peaks(chance: random.Random, y: float, rise: float, rounds: int = 6) -> list[Point]:
    """Give a rugged skyline by midpoint displacement."""
    heights = [chance.random() * 0.6, 0.4 + chance.random() * 0.6, chance.random() * 0.6, 0.3 + chance.random() * 0.6]
    spread = 0.5
    for _ in range(rounds):
        halves = [(a + b) / 2 + (chance.random() - 0.5) * spread for a, b in zip(heights, heights[1:], strict=False)]
        heights = [height for pair in zip(heights, halves, strict=False) for height in pair] + heights[-1:]
        spread *= 0.52
    last = len(heights) - 1
    return [(index / last, y - rise * height) for index, height in enumerate(heights)]


def _ground(canvas: Canvas, line: Sequence[Point], stops: Sequence[Color], bottom: float = 1.0) -> None:
    """Fill everything between a skyline and the bottom."""
    top = min(y for _, y in line)
    canvas.shapes(lambda pen: pen.polygon([*line, (1.0, bottom), (0.0, bottom)]), stops, top, bottom)


def _height_at(line: Sequence[Point], x: float) -> float:
    place = min(max(x, 0.0), 1.0) * (len(line) - 1)
    index = min(int(place), len(line) - 2)
    (_, first), (_, second) = line[index], line[index + 1]
    return first + (second - first) * (place - index)


def _sky(canvas: Canvas, horizon: float, *, clouds: float = 0.5, sun: bool = True) -> Point:
    """Paint sky, stars, sun or moon, and clouds down to the horizon; tell where the sun is."""
    light, chance = canvas.light, canvas.chance
    canvas.fill([light.zenith, light.middle, light.horizon], 0.0, horizon + 0.02)
    x, y = 0.16 + chance.random() * 0.68, horizon * (0.22 + chance.random() * 0.56)
    radius = 0.045 + chance.random() * 0.05
    if _is_dark(light.zenith):
        _stars(canvas, horizon)
    if sun:
        canvas.glow(x, y, radius * 9, light.sun, 0.55)
        canvas.glow(x, y, radius * 3.2, light.sun, 0.7)
        canvas.shapes(lambda pen: pen.disc((x, y), radius), [light.sun])
    if chance.random() < clouds:
        _clouds(canvas, horizon)
    return x, y


def _is_dark(color: Color) -> bool:
    return color[0] * 3 + color[1] * 6 + color[2] < 450


def _stars(canvas: Canvas, horizon: float) -> None:
    draw = ImageDraw.Draw(canvas.image)
    detail = canvas.detail
    for _ in range(min(220, 12 + canvas.unit // 3)):
        x, y = detail.random(), detail.random() ** 1.4 * horizon
        place = (int(x * canvas.width), int(y * canvas.height))
        color = _mix(canvas.image.getpixel(place), (255, 255, 246), 0.25 + detail.random() * 0.75)  # type: ignore[arg-type]
        side = int(detail.random() ** 6 * 2.6 + canvas.unit / 900)
        draw.rectangle((*place, place[0] + side, place[1] + side), fill=color)


def _clouds(canvas: Canvas, horizon: float) -> None:
    """Lay streaks of cloud over the sky, thinning towards zenith and horizon."""
    light, width, height = canvas.light, canvas.width, max(2, round(canvas.height * horizon))
    half = max(1, width // 2), max(1, height // 2)
    mask = Image.blend(canvas.noise(4, 7, *half), canvas.noise(9, 19, *half), 0.42)
    start = 118 + canvas.chance.randrange(26)
    mask = mask.point([min(215, max(0, (value - start) * 5)) for value in range(256)])
    fade = Image.linear_gradient("L").point([round(255 * min(1, v / 90, (255 - v) / 60)) for v in range(256)])
    mask = ImageChops.multiply(mask, fade.resize(half, Image.Resampling.BILINEAR))
    mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    canvas.through(mask, [_mix(light.middle, light.sun, 0.35), _mix(light.horizon, light.sun, 0.7)])


def _fir(pen: Pen, at: Point, size: float, lean: float) -> None:
    """Draw one fir: three tiers on a short trunk."""
    pen.outline(at, size, [(-0.03, 0.15), (0.03, 0.15), (0.03, -0.05), (-0.03, -0.05)])
    for base, tip, half in ((0.08, 0.52, 0.2), (0.32, 0.76, 0.15), (0.55, 1.0, 0.1)):
        pen.outline(at, size, [(-half, base), (lean * 0.06, tip), (half, base), (0, base + 0.05)])


def _firs(canvas: Canvas, line: Sequence[Point], color: Color, count: int, size: float) -> None:
    """Plant a wood along a skyline."""
    detail = canvas.detail
    trees = []
    for _ in range(count):
        x = detail.random()
        trees.append((x, _height_at(line, x), size * (0.45 + detail.random() * 0.75), detail.random() - 0.5))
    top = min(y for _, y, _, _ in trees) - size * 1.3 * canvas.unit / canvas.height
    bottom = max(y for _, y, _, _ in trees) + size * 0.2

    def draw(pen: Pen) -> None:
        for x, y, tall, lean in trees:
            _fir(pen, (x, y + 0.004), tall, lean)

    canvas.shapes(draw, [color], top, bottom)


def _birds(canvas: Canvas, color: Color) -> None:
    """Let a loose flock cross the sky."""
    chance = canvas.chance
    x, y = 0.2 + chance.random() * 0.5, 0.12 + chance.random() * 0.2
    flock = [
        (x + (chance.random() - 0.3) * 0.26, y + (chance.random() - 0.5) * 0.14) for _ in range(4 + chance.randrange(5))
    ]

    def draw(pen: Pen) -> None:
        for place in flock:
            wing = 0.012 + 0.012 * ((place[0] * 37) % 1)
            pen.outline(
                place,
                wing,
                [(-1, 0.42), (-0.45, 0.5), (0, 0), (0.45, 0.5), (1, 0.36), (0.42, 0.3), (0, -0.28), (-0.42, 0.3)],
            )

    canvas.shapes(draw, [color], max(0.0, y - 0.15), y + 0.15)


def _glitter(canvas: Canvas, x: float, top: float, bottom: float) -> None:
    """Break the sun's light on water: flat sparks, wider and larger towards the viewer."""
    detail = canvas.detail
    sparks = []
    for _ in range(90):
        depth = detail.random() ** 1.3
        sparks.append((x + (detail.random() + detail.random() - 1) * (0.03 + 0.16 * depth), depth))

    def draw(pen: Pen) -> None:
        for place, depth in sparks:
            pen.disc((place, top + (bottom - top) * depth), 0.007 + 0.022 * depth, 0.13)

    canvas.shapes(draw, [canvas.light.sun], top, bottom, 0.75)


def _mirror(canvas: Canvas, shore: float, share: float) -> None:
    """Reflect what is above the shore in still water below it, rippled and tinted."""
    width, line = canvas.width, round(shore * canvas.height)
    depth = canvas.height - line
    if depth < 2 or line < 2:
        return
    above = canvas.image.crop((0, max(0, line - depth), width, line)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    above = above.resize((width, depth), Image.Resampling.BILINEAR)
    water = Image.blend(above, Image.new("RGB", above.size, _mix(canvas.light.zenith, canvas.light.near, 0.35)), share)
    canvas.image.paste(water, (0, line))
    band = max(1, depth // 90)
    for index, y in enumerate(range(0, depth - band, band)):  # each band slides a little, more so near the viewer
        shift = round((math.sin(index * 1.7) + math.sin(index * 0.61)) * canvas.unit * (0.001 + 0.008 * y / depth))
        canvas.image.paste(water.crop((0, y, width, y + band)), (shift, line + y))
    shine = canvas.noise(5, 64, width, depth).point([max(0, (value - 168) * 2) for value in range(256)])
    canvas.through(shine, [canvas.light.horizon, canvas.light.middle], line)


# --- scenes: what to draw ----------------------------------------------------------------------------------------------


def _misty_ridges(canvas: Canvas) -> Spot:
    """Paint ridge behind ridge, each darker than the one behind, firs on the nearest."""
    light, chance = canvas.light, canvas.chance
    _sky(canvas, 0.72)
    layers = 5 + chance.randrange(2)
    line: list[Point] = []
    for layer in range(layers):
        depth = layer / (layers - 1)
        color = _mix(light.far, light.near, depth**1.25)
        rise = 0.2 - 0.07 * depth
        y = 0.5 + 0.42 * depth
        line = _peaks(chance, y, rise, 6) if layer < 2 else _hills(chance, y, rise, 2 + layer)
        _ground(canvas, line, [color, _mix(color, light.horizon, 0.45 * (1 - depth))])
        if layer >= layers - 3:
            _firs(canvas, line, color, 14 + 8 * (layers - layer), 0.04 + 0.12 * depth**2)
    x = 0.2 + chance.random() * 0.6
    return Spot(x, _height_at(line, x) + 0.02, 0.2, _mix(light.near, (0, 0, 0), 0.45))


def _sea(canvas: Canvas) -> Spot:
    """Paint the sun over open water, islands, and a headland in front."""
    light, chance = canvas.light, canvas.chance
    horizon = 0.5 + chance.random() * 0.14
    x, _ = _sky(canvas, horizon, clouds=0.85)
    for depth in (0.15, 0.35):
        island = [(px, min(horizon, py)) for px, py in _peaks(chance, horizon + 0.05 + 0.02 * depth, 0.13, 6)]
        color = _mix(light.far, light.near, depth)
        _ground(canvas, island, [color, _mix(color, light.horizon, 0.4)], horizon)
    canvas.fill([_mix(light.horizon, light.middle, 0.5), light.middle, _mix(light.zenith, light.near, 0.4)], horizon)
    depth_px = canvas.height - round(horizon * canvas.height)
    waves = canvas.noise(6, 70, canvas.width, depth_px).point([max(0, (value - 140) * 2) for value in range(256)])
    canvas.through(waves, [light.horizon, _mix(light.middle, light.zenith, 0.5)], round(horizon * canvas.height))
    _glitter(canvas, x, horizon, 1.0)
    _boat(
        canvas,
        Spot((x + 0.3 + chance.random() * 0.3) % 0.8 + 0.1, horizon + 0.08, 0.16, _mix(light.near, (0, 0, 0), 0.2)),
    )
    left = chance.random() < 0.5
    slope = [(i / 24, 1.0 - 0.2 * (1 - i / 24) ** 1.6 + 0.02 * math.sin(i * 1.1)) for i in range(25)]
    line = slope if left else [(1 - px, py) for px, py in reversed(slope)]
    _ground(canvas, line, [_mix(light.near, (0, 0, 0), 0.25)])
    _birds(canvas, _mix(light.near, light.zenith, 0.2))
    x = 0.16 if left else 0.84
    return Spot(x, _height_at(line, x) + 0.01, 0.2, _mix(light.near, (0, 0, 0), 0.55))


def _mountain_lake(canvas: Canvas) -> Spot:
    """Paint snow-capped mountains and their reflection."""
    light, chance = canvas.light, canvas.chance
    shore = 0.6 + chance.random() * 0.06
    _sky(canvas, shore, clouds=0.6)
    for depth, rise in ((0.1, 0.46), (0.38, 0.3)):
        line = _peaks(chance, shore + 0.04, rise, 7)
        color = _mix(light.far, light.near, depth)
        _ground(canvas, line, [_mix(color, light.horizon, 0.1), _mix(color, light.horizon, 0.5)], shore)
        _snow(canvas, line, shore - rise * 0.42, _mix(light.sun, light.horizon, 0.3))
    bank = _hills(chance, shore + 0.012, 0.05, 5)
    _ground(canvas, bank, [_mix(light.far, light.near, 0.8)], shore)
    _firs(canvas, bank, _mix(light.far, light.near, 0.85), 46, 0.075)
    _mirror(canvas, shore, 0.3)
    beach = _hills(chance, 1.0, 0.12, 3)
    _ground(canvas, beach, [_mix(light.near, (0, 0, 0), 0.25), _mix(light.near, (0, 0, 0), 0.5)])
    x = 0.2 + chance.random() * 0.6
    return Spot(x, _height_at(beach, x) + 0.012, 0.19, _mix(light.near, (0, 0, 0), 0.6))


def _snow(canvas: Canvas, line: Sequence[Point], limit: float, color: Color) -> None:
    """Cap whatever of a skyline is above the limit; the lower edge of the snow is ragged."""
    ragged = [(x, max(y, min(limit, y + (limit - y) * (0.45 + 0.55 * canvas.detail.random())))) for x, y in line]
    top = min(y for _, y in line)
    canvas.shapes(lambda pen: pen.polygon([*line, *reversed(ragged)]), [color], top, limit + 0.01, 0.85)


def _dunes(canvas: Canvas) -> Spot:
    """Paint dunes, each with a lit and a shaded flank."""
    light, chance = canvas.light, canvas.chance
    _sky(canvas, 0.6, clouds=0.25)
    sand = _mix(light.accent, light.horizon, 0.45)
    line: list[Point] = []
    for layer in range(4):
        depth = layer / 3
        y, rise = 0.56 + 0.36 * depth, 0.13 + 0.05 * depth
        line = _hills(chance, y, rise, 2 + (layer + chance.randrange(2)) % 3)
        lit = _mix(_mix(sand, light.horizon, 0.5 - 0.4 * depth), light.near, 0.08 + 0.1 * depth)
        _ground(canvas, line, [lit, _mix(lit, light.near, 0.3)])
        _flank(canvas, line, _mix(lit, light.near, 0.45), 0.22 + 0.1 * depth)
    x = min(line[8:48], key=lambda point: point[1])[0]
    return Spot(x, _height_at(line, x) + 0.005, 0.13, _mix(light.near, (0, 0, 0), 0.5))


def _flank(canvas: Canvas, line: Sequence[Point], color: Color, width: float) -> None:
    """Shade the lee side of every crest of a dune."""
    for index in range(1, len(line) - 1):
        if not line[index - 1][1] > line[index][1] <= line[index + 1][1]:
            continue
        x, y = line[index]
        crest = [point for point in line[index:] if point[0] <= x + width]
        foot = [(px - (px - x) * 0.25, py + 0.16 * (1 - ((px - x) / width - 0.35) ** 2)) for px, py in crest]
        curve = [(x + (px - x) * 0.4, y + (py - y) * 0.9) for px, py in foot]
        canvas.shapes(
            lambda pen, crest=crest, curve=curve: pen.polygon([*crest, *reversed(curve)]),
            [color],
            y,
            1.0,
            0.7,  # type: ignore[misc]
        )


def _blossoms(canvas: Canvas) -> Spot:
    """Paint a flowering branch before misty hills."""
    light, chance = canvas.light, canvas.chance
    _sky(canvas, 0.85, clouds=0.3)
    line: list[Point] = []
    for layer in range(3):
        color = _mix(light.far, light.near, 0.1 + 0.25 * layer)
        line = _hills(chance, 0.78 + 0.1 * layer, 0.14, 2 + layer)
        _ground(canvas, line, [color, _mix(color, light.horizon, 0.6)])
    left = chance.random() < 0.5
    twigs: list[tuple[list[Point], float]] = []
    tips: list[Point] = []
    _grow(
        canvas,
        (-0.03 if left else 1.03, 0.12 + chance.random() * 0.3),
        0.15 if left else math.pi - 0.15,
        0.03,
        6,
        twigs,
        tips,
    )

    def branch(pen: Pen) -> None:
        for points, width in twigs:
            pen.line(points, width)

    canvas.shapes(branch, [_mix(light.near, (0, 0, 0), 0.35)])
    petal = light.accent
    flowers = [(x, y, 0.014 + chance.random() * 0.016, chance.random()) for x, y in tips]
    for share, reach in ((0.25, 1.0), (0.62, 0.82)):
        color = _mix(petal, (255, 255, 255), share)
        canvas.shapes(lambda pen, reach=reach: _flowers(pen, flowers, reach), [color])  # type: ignore[misc]
    canvas.shapes(
        lambda pen: [pen.disc((x, y), size * 0.28) for x, y, size, _ in flowers] and None,
        [_mix(petal, light.near, 0.35)],
    )
    x = 0.7 if left else 0.3
    return Spot(x, _height_at(line, x) + 0.02, 0.18, _mix(light.near, (0, 0, 0), 0.4))


def _grow(
    canvas: Canvas,
    at: Point,
    angle: float,
    width: float,
    depth: int,
    twigs: list[tuple[list[Point], float]],
    tips: list[Point],
) -> None:
    """Grow a branch: a bent stroke, then two or three thinner ones, until the twigs end in flowers."""
    chance = canvas.chance
    points = [at]
    for _ in range(3):
        angle += (chance.random() - 0.5) * 0.35
        reach = 0.035 + 0.011 * depth
        at = (
            at[0] + math.cos(angle) * reach * canvas.unit / canvas.width,
            at[1] + math.sin(angle) * reach * canvas.unit / canvas.height,
        )
        points.append(at)
        if depth < 4 and chance.random() < 0.55:
            tips.append((at[0] + (chance.random() - 0.5) * 0.03, at[1] + (chance.random() - 0.5) * 0.03))
    twigs.append((points, width))
    if depth == 1:
        tips.append(at)
        return
    _grow(canvas, at, angle + (chance.random() - 0.5) * 0.4, width * 0.74, depth - 1, twigs, tips)
    side = 1 if chance.random() < 0.5 else -1
    if depth > 2 or chance.random() < 0.5:
        _grow(
            canvas, points[2], angle + side * (0.45 + chance.random() * 0.4), width * 0.55, depth - 2 or 1, twigs, tips
        )


def _flowers(pen: Pen, flowers: Sequence[tuple[float, float, float, float]], reach: float) -> None:
    """Draw five petals around each heart."""
    for x, y, size, turn in flowers:
        for index in range(5):
            angle = (index + turn) * math.tau / 5
            ring = [
                (
                    math.cos(angle) * 0.62 + math.cos(step * math.tau / 8) * 0.52 * reach,
                    math.sin(angle) * 0.62 + math.sin(step * math.tau / 8) * 0.52 * reach,
                )
                for step in range(8)
            ]
            pen.outline((x, y), size, ring)


def _northern_lights(canvas: Canvas) -> Spot:
    """Paint curtains of light over a frozen valley; where it is not night, they are rays of the low sun."""
    light, chance = canvas.light, canvas.chance
    _sky(canvas, 0.78, clouds=0.15, sun=not _is_dark(light.zenith))
    for color in (light.accent, _mix(light.accent, light.middle, 0.5), _mix(light.accent, light.sun, 0.4)):
        _curtain(canvas, color)
    for layer in range(2):
        color = _mix(light.far, light.near, 0.3 + 0.3 * layer)
        line = _peaks(chance, 0.8 + 0.06 * layer, 0.2, 7)
        _ground(canvas, line, [color, _mix(color, light.horizon, 0.35)])
    line = _hills(chance, 0.96, 0.08, 4)
    color = _mix(light.near, (0, 0, 0), 0.2)
    _ground(canvas, line, [color])
    _firs(canvas, line, color, 44, 0.2)
    x = 0.25 + chance.random() * 0.5
    return Spot(x, _height_at(line, x) + 0.03, 0.16, _mix(light.near, (0, 0, 0), 0.7))


def _curtain(canvas: Canvas, color: Color) -> None:
    """Hang one wavering curtain: upright rays on a bent line, drawn small and enlarged."""
    chance, side = canvas.chance, 96
    rays = canvas.noise(22, 1, side, 1).tobytes()
    base, swing, phase, bend = (
        0.3 + chance.random() * 0.4,
        0.05 + chance.random() * 0.1,
        chance.random() * 6.28,
        3 + chance.random() * 4,
    )
    mask = Image.new("L", (side, side))
    ray = Image.linear_gradient("L").resize((1, 44), Image.Resampling.BILINEAR)
    for x in range(side):
        foot = round(side * (base + swing * math.sin(phase + x / side * bend) + 0.03 * math.sin(phase * 2 + x * 0.22)))
        strength = rays[x] * math.sin(math.pi * (x + 1) / (side + 1)) ** 0.5
        mask.paste(ray.point([round(value * value / 255 * strength / 330) for value in range(256)]), (x, foot - 44))
    mask = mask.filter(ImageFilter.GaussianBlur(1)).resize((canvas.width, canvas.height), Image.Resampling.BICUBIC)
    canvas.through(mask, [color])


def _meadow(canvas: Canvas) -> Spot:
    """Paint rolling fields full of flowers and one great tree."""
    light, chance, detail = canvas.light, canvas.chance, canvas.detail
    _sky(canvas, 0.62, clouds=0.9)
    grass = _mix(light.near, light.accent, 0.22)
    line: list[Point] = []
    for layer in range(4):
        depth = layer / 3
        line = _hills(chance, 0.6 + 0.13 * layer, 0.12, 2 + layer % 3)
        color = _mix(_mix(light.far, grass, 0.3 + 0.7 * depth), light.horizon, 0.3 * (1 - depth))
        _ground(canvas, line, [_mix(color, light.sun, 0.22), color])
        if layer == 1:
            _firs(canvas, line, _mix(light.far, light.near, 0.55), 30, 0.045)
        if layer == 2:
            x = 0.2 + chance.random() * 0.6
            _great_tree(canvas, Spot(x, _height_at(line, x) + 0.01, 0.34, _mix(light.near, (0, 0, 0), 0.25)))
    for color in (light.accent, _mix(light.accent, (255, 255, 255), 0.6), _mix(light.accent, light.zenith, 0.5)):
        spots = []
        for _ in range(70):
            depth = detail.random()
            px = detail.random()
            top = _height_at(line, px) + 0.01
            spots.append((px, top + (1 - top) * depth, 0.003 + 0.011 * depth))
        canvas.shapes(lambda pen, spots=spots: [pen.disc((a, b), r, 0.8) for a, b, r in spots] and None, [color], 0.7)  # type: ignore[misc]
    x = 0.25 + chance.random() * 0.5
    return Spot(x, _height_at(line, x) + 0.05, 0.2, _mix(light.near, (0, 0, 0), 0.55))


def _great_tree(canvas: Canvas, spot: Spot) -> None:
    """Draw a broad crown of overlapping discs in three tones, on a forked trunk."""
    chance, light = canvas.chance, canvas.light
    across, up = spot.size * canvas.unit / canvas.width, spot.size * canvas.unit / canvas.height
    trunk = [
        (-0.07, -0.02),
        (-0.03, 0.3),
        (-0.16, 0.55),
        (-0.1, 0.57),
        (0, 0.38),
        (0.14, 0.6),
        (0.18, 0.56),
        (0.035, 0.3),
        (0.08, -0.02),
    ]
    canvas.shapes(lambda pen: pen.outline((spot.x, spot.y), spot.size, trunk), [spot.color])
    crown = [(chance.random() * 2 - 1, chance.random() * 2 - 1, 0.1 + chance.random() * 0.1) for _ in range(26)]
    for tone, lift, shrink in (
        (spot.color, 0.0, 1.0),
        (_mix(spot.color, light.accent, 0.28), 0.035, 0.78),
        (_mix(spot.color, light.accent, 0.5), 0.07, 0.46),
    ):
        canvas.shapes(
            lambda pen, lift=lift, shrink=shrink: (
                [  # type: ignore[misc]
                    pen.disc(
                        (spot.x + a * 0.36 * across * (1 - abs(b) * 0.4), spot.y - up * (0.68 + lift + b * 0.2)),
                        spot.size * r * shrink,
                    )
                    for a, b, r in crown
                ]
                and None
            ),
            [tone],
        )


def _city(canvas: Canvas) -> Spot:
    """Paint a skyline by the water, its windows lit."""
    light, chance, detail = canvas.light, canvas.chance, canvas.detail
    shore = 0.74
    _sky(canvas, shore, clouds=0.6)
    for layer in range(3):
        depth = layer / 2
        color = _mix(light.far, light.near, 0.15 + 0.75 * depth)
        towers: list[tuple[float, float, float]] = []
        x = -0.02
        while x < 1.0:
            wide = 0.035 + chance.random() * (0.05 + 0.02 * layer)
            towers.append((x, wide, shore - (0.5 - 0.14 * layer) * (0.25 + 0.75 * chance.random() ** 1.6)))
            x += wide * (0.95 + 0.35 * chance.random())
        canvas.shapes(
            lambda pen, towers=towers: _towers(pen, towers, shore),
            [color, _mix(color, light.horizon, 0.4 * (1 - depth))],
            0.1,
            shore,
        )  # type: ignore[misc]
        if layer:
            windows = [
                (a + wide * (0.2 + 0.2 * column), top + 0.02 + 0.021 * row)
                for a, wide, top in towers
                for column in range(4)
                for row in range(max(0, int((shore - top - 0.03) / 0.021)))
                if detail.random() < 0.3
            ]
            canvas.shapes(
                lambda pen, windows=windows: _windows(pen, windows),
                [_mix(light.accent, light.sun, 0.6)],
                0.1,
                shore,
                0.5 + 0.4 * depth,
            )  # type: ignore[misc]
    _mirror(canvas, shore, 0.35)
    quay = [(0.0, 0.93), (1.0, 0.93)]
    _ground(canvas, quay, [_mix(light.near, (0, 0, 0), 0.5)])
    return Spot(0.2 + chance.random() * 0.6, 0.935, 0.2, _mix(light.near, (0, 0, 0), 0.65))


def _towers(pen: Pen, towers: Sequence[tuple[float, float, float]], shore: float) -> None:
    for x, wide, top in towers:
        pen.polygon([(x, shore), (x, top), (x + wide, top), (x + wide, shore)])
        style = int(wide * 9000) % 4
        if style == 0:
            pen.polygon([(x + wide * 0.3, top), (x + wide * 0.5, top - wide * 0.9), (x + wide * 0.7, top)])
        elif style == 1:
            pen.polygon(
                [
                    (x + wide * 0.2, top),
                    (x + wide * 0.2, top - 0.025),
                    (x + wide * 0.8, top - 0.025),
                    (x + wide * 0.8, top),
                ]
            )
        elif style == 2:
            pen.line([(x + wide * 0.5, top), (x + wide * 0.5, top - 0.06)], 0.004)


def _windows(pen: Pen, windows: Sequence[Point]) -> None:
    for x, y in windows:
        pen.outline((x, y), 0.008, [(-0.4, 0.6), (0.4, 0.6), (0.4, -0.6), (-0.4, -0.6)])


_SCENES: dict[str, Callable[[Canvas], Spot]] = {
    "ridges": _misty_ridges,
    "sea": _sea,
    "blossoms": _blossoms,
    "lake": _mountain_lake,
    "city": _city,
    "meadow": _meadow,
    "lights": _northern_lights,
    "dunes": _dunes,
}
_SCENE_WORDS = {
    "ridges": "hills valley forest wood woods",
    "sea": "sea ocean beach coast ship boat harbour harbor sailing waves",
    "blossoms": "blossom blossoms cherry sakura branch",
    "lake": "lake mountain mountains river alps reflection",
    "city": "city skyline town street tower towers cyberpunk neon",
    "meadow": "meadow field fields garden flower flowers grass tree",
    "lights": "aurora northern borealis",
    "dunes": "desert dune dunes sand sahara mars",
}


def _scene(prompt: str, scene_number: int) -> Callable[[Canvas], Spot]:
    """Choose the scene: by a word of the prompt, else by the seed, so that eight seeds in a row are eight scenes."""
    name = _named(prompt, _SCENE_WORDS)
    return _SCENES[name] if name else list(_SCENES.values())[scene_number % len(_SCENES)]


# --- subjects: who stands in it ----------------------------------------------------------------------------------------


def _nobody(canvas: Canvas, spot: Spot) -> None:
    """Leave the scene as it is."""


def _person(canvas: Canvas, spot: Spot) -> None:
    """Let a wanderer with a scarf look at the view."""
    at, size = (spot.x, spot.y), spot.size

    def body(pen: Pen) -> None:
        coat = [(-0.1, 0.76), (0.1, 0.76), (0.14, 0.6), (0.19, 0.3), (0.1, 0.28), (0.09, 0.0), (0.02, 0.0), (0, 0.26), (-0.02, 0.0),
                (-0.09, 0.0), (-0.1, 0.28), (-0.19, 0.3), (-0.14, 0.6)]  # fmt: skip
        pen.outline(at, size, coat)
        pen.outline(at, size, [(0.08 * math.cos(a * 0.5236), 0.87 + 0.09 * math.sin(a * 0.5236)) for a in range(12)])

    scarf = [(-0.1, 0.79), (0.1, 0.8), (0.11, 0.74), (0.34, 0.7), (0.4, 0.62), (0.12, 0.68), (-0.1, 0.72)]
    canvas.shapes(body, [spot.color])
    canvas.shapes(lambda pen: pen.outline(at, size, scarf), [canvas.light.accent])


def _fox(canvas: Canvas, spot: Spot) -> None:
    """Let a fox sit and listen."""
    at, size = (spot.x, spot.y), spot.size * 0.8
    body = [(-0.22, 0.0), (-0.25, 0.3), (-0.16, 0.52), (-0.2, 0.62), (-0.36, 0.66), (-0.2, 0.8), (-0.19, 1.0), (-0.08, 0.86), (0.03, 1.0),
            (0.06, 0.78), (0.04, 0.6), (0.16, 0.4), (0.2, 0.16), (0.34, 0.1), (0.56, 0.3), (0.62, 0.16), (0.5, 0.02), (0.3, 0.0)]  # fmt: skip
    chest = [(-0.2, 0.5), (-0.1, 0.6), (-0.05, 0.4), (-0.12, 0.1), (-0.2, 0.1), (-0.23, 0.3)]
    canvas.shapes(lambda pen: pen.outline(at, size, body), [canvas.light.accent])
    canvas.shapes(lambda pen: pen.outline(at, size, chest), [_mix(canvas.light.accent, (255, 255, 255), 0.75)])
    canvas.shapes(lambda pen: pen.outline(at, size, [(0.56, 0.3), (0.62, 0.16), (0.54, 0.18)]), [(255, 255, 255)])


def _boat(canvas: Canvas, spot: Spot) -> None:
    """Set a sail."""
    at, size = (spot.x, spot.y), spot.size
    canvas.shapes(
        lambda pen: pen.outline(at, size, [(-0.3, 0.1), (0.34, 0.1), (0.22, -0.04), (-0.22, -0.04)]), [spot.color]
    )
    canvas.shapes(
        lambda pen: pen.outline(at, size, [(0.01, 0.14), (0.02, 0.92), (0.3, 0.16)]),
        [_mix(canvas.light.sun, canvas.light.accent, 0.15)],
    )
    canvas.shapes(
        lambda pen: pen.outline(at, size, [(-0.03, 0.14), (-0.01, 0.78), (-0.24, 0.16)]),
        [_mix(canvas.light.sun, canvas.light.accent, 0.4)],
    )


def _house(canvas: Canvas, spot: Spot) -> None:
    """Build a cabin with a lit window."""
    at, size = (spot.x, spot.y), spot.size
    walls = [(-0.36, 0.0), (-0.36, 0.4), (-0.46, 0.38), (0.0, 0.78), (0.14, 0.66), (0.14, 0.8), (0.24, 0.8), (0.24, 0.58), (0.46, 0.38),
             (0.36, 0.4), (0.36, 0.0)]  # fmt: skip
    canvas.shapes(lambda pen: pen.outline(at, size, walls), [spot.color])
    canvas.shapes(
        lambda pen: pen.outline(at, size, [(-0.2, 0.16), (-0.2, 0.36), (0.0, 0.36), (0.0, 0.16)]),
        [_mix(canvas.light.accent, canvas.light.sun, 0.5)],
    )


def _balloon(canvas: Canvas, spot: Spot) -> None:
    """Let a balloon drift by."""
    at, size = (spot.x, 0.42), 0.16
    ring = [(0.42 * math.cos(a * math.tau / 28), 0.62 + 0.42 * math.sin(a * math.tau / 28)) for a in range(28)]
    canvas.shapes(
        lambda pen: (
            (
                pen.outline(at, size, ring),
                pen.outline(at, size, [(-0.38, 0.45), (0.38, 0.45), (0.08, 0.08), (-0.08, 0.08)]),
            )
            and None
        ),
        [canvas.light.accent],
    )
    canvas.shapes(
        lambda pen: pen.outline(at, size, [(x * 0.38, y) for x, y in ring]),
        [_mix(canvas.light.accent, canvas.light.sun, 0.6)],
    )
    canvas.shapes(
        lambda pen: pen.outline(at, size, [(-0.08, 0.02), (0.08, 0.02), (0.06, -0.1), (-0.06, -0.1)]), [spot.color]
    )


_SUBJECTS: dict[str | None, Callable[[Canvas, Spot], None]] = {
    "person": _person,
    "fox": _fox,
    "house": _house,
    "balloon": _balloon,
    None: _nobody,
}
_SUBJECT_WORDS = {
    "person": "man woman girl boy person people wanderer portrait child lady knight wizard warrior human traveller traveler",
    "fox": "fox cat dog wolf kitten puppy animal",
    "house": "house cabin hut home cottage castle",
    "balloon": "balloon airship",
}


def _subject(prompt: str, negative: str) -> str | None:
    unwanted = set(_words(negative))
    return _named(" ".join(word for word in _words(prompt) if word not in unwanted), _SUBJECT_WORDS)


# --- noise and label ---------------------------------------------------------------------------------------------------


def _veil(image: Image.Image, sharpness: float, chance: random.Random) -> Image.Image:
    """Hide a picture behind coloured noise, as an unfinished latent looks: coarse forms come first, edges last."""
    width, height = image.size
    coarse = max(1, round(min(width, height) / 12 * (1 - sharpness) ** 1.5))
    if coarse > 1:
        small = image.reduce(coarse)
        image = small.resize((width, height), Image.Resampling.BICUBIC)
    cells = max(2, min(96, width // 8)), max(2, min(96, height // 8))  # a latent is an eighth of the picture
    grid = Image.frombytes("RGB", cells, chance.randbytes(cells[0] * cells[1] * 3))
    noise = grid.resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(image, noise, (1 - sharpness) ** 1.2)


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _label(image: Image.Image, title: str, prompt: str) -> None:
    """Write on a dark band what this is: simulated, of which seed, and as much of the prompt as fits."""
    width, height = image.size
    if width < _LABEL_MIN_WIDTH or height < _LABEL_MIN_HEIGHT:
        return
    size = max(10, round(min(width, height * 1.5) / 36))
    font, margin = _font(size), size * 0.6
    band = round(size * 1.7)
    box = (0, height - band, width, height)
    image.paste(Image.blend(image.crop(box), Image.new("RGB", (width, band), (12, 13, 18)), 0.66), box)
    draw = ImageDraw.Draw(image)
    room = width - 2 * margin
    middle = height - band / 2
    title = _fitted(title, font, room)
    draw.text((margin, middle), title, (255, 255, 255), font, anchor="lm")
    used = font.getlength(title) + size
    text = "".join(
        char for char in " ".join(prompt.split()) if char.isprintable() and ord(char) < 0x250
    )  # what the font has
    text = _fitted(text, font, room - used)
    if len(text) > 3:
        draw.text((width - margin, middle), text, (196, 200, 210), font, anchor="rm")


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Shorten a text with an ellipsis until it is no wider than the room."""
    if font.getlength(text[:400]) <= room and len(text) <= 400:
        return text
    text = text[:400]
    while text and font.getlength(text.rstrip() + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""

"""Draw the landscapes that simulated pictures show: eight scenes, and somebody to stand in them.

A scene is a function that paints a `Canvas` from back to front and tells where there is room for a subject. All places
are fractions of width and height, all sizes fractions of the shorter side, so that one scene fits every picture. Edges
are smooth because shapes are drawn on a mask twice as large and reduced; everything slow is one call into Pillow.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

_WHITE: Color = (255, 255, 255)
_BLACK: Color = (0, 0, 0)
_SUPERSAMPLED_PIXELS = 1 << 20  # edges of larger pictures are fine enough as they are
_FLOOR = 0.9  # nobody stands lower: the label is there


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

    def dark(self) -> bool:
        """Tell whether stars are out."""
        return self.zenith[0] * 3 + self.zenith[1] * 6 + self.zenith[2] < 450

    def ground(self, depth: float, shade: float = 0.0) -> Color:
        """Give the colour of something at a depth from 0 (hazy, far) to 1 (near), further darkened by a shade."""
        return mix(mix(self.far, self.near, depth), _BLACK, shade)


def mix(first: Color, second: Color, share: float) -> Color:
    """Blend two colours; a share of 0 is the first, 1 the second."""
    red, green, blue = (round(a + (b - a) * min(1.0, max(0.0, share))) for a, b in zip(first, second, strict=True))
    return red, green, blue


class Canvas:
    """Hold a picture while it is painted, with its light and its two sources of chance."""

    def __init__(self, width: int, height: int, light: Light, chance: random.Random, detail: random.Random) -> None:
        self.width, self.height = width, height
        self.unit = min(width, height)
        self.scale = 2 if width * height <= _SUPERSAMPLED_PIXELS else 1
        self.light = light
        self.chance, self.detail = chance, detail
        self.image = Image.new("RGB", (width, height))

    def between(self, low: float, high: float) -> float:
        """Draw a number of the composition."""
        return low + (high - low) * self.chance.random()

    def beside(self, at: Point, right: float, down: float) -> Point:
        """Give the place at some distance from another, measured as sizes are."""
        return at[0] + right * self.unit / self.width, at[1] + down * self.unit / self.height

    def fill(self, *stops: Color, top: float = 0.0, bottom: float = 1.0) -> None:
        """Paint a band over the whole width, its colour running through the stops from top to bottom."""
        y = round(top * self.height)
        rows = max(1, round(bottom * self.height) - y)
        self.image.paste(_gradient(stops, self.width, rows), (0, y))

    @contextmanager
    def pen(self, *stops: Color, top: float = 0.0, bottom: float = 1.0, opacity: float = 1.0) -> Iterator[Pen]:
        """Give a pen for shapes of one paint, which appear on the picture when the block ends; top and bottom clip."""
        y = max(0, math.floor(top * self.height))
        rows = max(1, min(self.height, math.ceil(bottom * self.height)) - y)
        mask = Image.new("L", (self.width * self.scale, rows * self.scale))
        yield Pen(self, mask, y, round(255 * opacity))
        self.through(mask.reduce(self.scale) if self.scale > 1 else mask, *stops, y=y)

    def through(self, mask: Image.Image, *stops: Color, x: int = 0, y: int = 0) -> None:
        """Paint through a mask whose top left corner is at a pixel."""
        if len(stops) == 1:
            self.image.paste(stops[0], (x, y, x + mask.width, y + mask.height), mask)
        else:
            self.image.paste(_gradient(stops, *mask.size), (x, y), mask)

    def glow(self, at: Point, radius: float, color: Color, strength: float) -> None:
        """Let light shine around a point, fading to nothing at the radius."""
        side = max(2, round(radius * self.unit * 2))
        table = [round(255 * strength * max(0.0, 1 - value / 180) ** 2) for value in range(256)]
        mask = Image.radial_gradient("L").point(table).resize((side, side), Image.Resampling.BILINEAR)
        self.through(mask, color, x=round(at[0] * self.width) - side // 2, y=round(at[1] * self.height) - side // 2)

    def noise(self, columns: int, rows: int, size: tuple[int, int]) -> Image.Image:
        """Give smooth grey noise: a small grid of chance, enlarged."""
        grid = Image.frombytes("L", (columns, rows), self.chance.randbytes(columns * rows))
        return grid.resize(size, Image.Resampling.BICUBIC)


def _gradient(stops: Sequence[Color], width: int, height: int) -> Image.Image:
    strip = Image.frombytes("RGB", (1, len(stops)), bytes(channel for color in stops for channel in color))
    # Half a stop is cut off at either end: a stop is the middle of its pixel, and would colour all of it flat.
    column = strip.resize((1, height), Image.Resampling.BILINEAR, (0, 0.5, 1, len(stops) - 0.5))
    return column.resize((width, height), Image.Resampling.NEAREST)


class Pen:
    """Draw on the mask of one paint, in the measures of the canvas."""

    def __init__(self, canvas: Canvas, mask: Image.Image, top: int, value: int) -> None:
        self._draw = ImageDraw.Draw(mask)
        self._canvas, self._top, self._value = canvas, top, value

    def _at(self, point: Point) -> tuple[int, int]:
        canvas = self._canvas
        return round(point[0] * canvas.width * canvas.scale), round(
            (point[1] * canvas.height - self._top) * canvas.scale
        )

    def _length(self, size: float) -> float:
        return size * self._canvas.unit * self._canvas.scale

    def polygon(self, points: Iterable[Point]) -> None:
        """Fill a polygon of places on the canvas."""
        self._draw.polygon([self._at(point) for point in points], fill=self._value)

    def figure(self, at: Point, size: float, points: Iterable[Point]) -> None:
        """Fill an outline around a place; its own unit is the size, and its y points up."""
        x, y = self._at(at)
        unit = self._length(size)
        self._draw.polygon([(round(x + dx * unit), round(y - dy * unit)) for dx, dy in points], fill=self._value)

    def disc(self, at: Point, radius: float, flat: float = 1.0) -> None:
        """Fill a disc, or an ellipse `flat` times as high as it is wide."""
        x, y = self._at(at)
        across = max(0.5, self._length(radius))
        down = max(0.5, across * flat)
        self._draw.ellipse((round(x - across), round(y - down), round(x + across), round(y + down)), fill=self._value)

    def line(self, points: Sequence[Point], width: float) -> None:
        """Draw a stroke through places."""
        pixels = max(1, round(self._length(width)))
        self._draw.line([self._at(point) for point in points], fill=self._value, width=pixels, joint="curve")


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a scene has room for somebody: the place they stand on, their height, their colour."""

    x: float
    y: float
    size: float
    color: Color

    @property
    def at(self) -> Point:
        """The place as a point."""
        return self.x, self.y


@functools.cache
def _points(text: str) -> Sequence[Point]:
    """Read an outline: pairs of x and y, in hundredths."""
    numbers = [int(word) / 100 for word in text.split()]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


# --- skylines


def _hills(chance: random.Random, y: float, rise: float, humps: int) -> list[Point]:
    """Give a smooth skyline below which is ground: a few heights, eased into each other."""
    heights = [chance.random() for _ in range(humps + 2)]
    line = []
    for index in range(57):
        hump, t = divmod(index / 56 * humps, 1.0)
        first, second = heights[int(hump)], heights[int(hump) + 1]
        line.append((index / 56, y - rise * (first + (second - first) * t * t * (3 - 2 * t))))
    return line


def _peaks(chance: random.Random, y: float, rise: float) -> list[Point]:
    """Give a rugged skyline, by moving midpoints up and down."""
    heights = [chance.random() * 0.6 + 0.35 * (index % 2) for index in range(4)]
    spread = 0.5
    for _ in range(6):
        middles = [
            (a + b + (chance.random() - 0.5) * spread * 2) / 2 for a, b in zip(heights, heights[1:], strict=False)
        ]
        heights = [height for pair in zip(heights, middles, strict=False) for height in pair] + heights[-1:]
        spread *= 0.52
    return [(index / (len(heights) - 1), y - rise * height) for index, height in enumerate(heights)]


def _height_at(line: Sequence[Point], x: float) -> float:
    index, part = divmod(min(max(x, 0.0), 1.0) * (len(line) - 1), 1.0)
    first, second = line[int(index)], line[min(int(index) + 1, len(line) - 1)]
    return first[1] + (second[1] - first[1]) * part


def _ground(canvas: Canvas, line: Sequence[Point], *stops: Color, bottom: float = 1.0) -> None:
    """Fill everything between a skyline and the bottom."""
    with canvas.pen(*stops, top=min(y for _, y in line), bottom=bottom) as pen:
        pen.polygon([*line, (1.0, bottom), (0.0, bottom)])


def _spot(canvas: Canvas, line: Sequence[Point], x: float, size: float) -> Spot:
    """Stand somebody on a skyline, a little into the ground."""
    return Spot(x, min(_FLOOR, _height_at(line, x) + 0.02), size, canvas.light.ground(1.0, 0.55))


# --- pieces that scenes share


def _sky(canvas: Canvas, horizon: float, *, clouds: float, sun: bool = True) -> Point:
    """Paint the sky down to the horizon - stars, sun or moon, a chance of clouds - and tell where the sun is."""
    light = canvas.light
    canvas.fill(light.zenith, light.middle, light.horizon, bottom=horizon + 0.02)
    at, radius = (canvas.between(0.16, 0.84), horizon * canvas.between(0.22, 0.78)), canvas.between(0.045, 0.095)
    if light.dark():
        _stars(canvas, horizon)
    if sun:
        canvas.glow(at, radius * 9, light.sun, 0.55)
        canvas.glow(at, radius * 3.2, light.sun, 0.7)
        with canvas.pen(light.sun) as pen:
            pen.disc(at, radius)
    if canvas.chance.random() < clouds:
        _clouds(canvas, horizon)
    return at


def _stars(canvas: Canvas, horizon: float) -> None:
    detail, draw = canvas.detail, ImageDraw.Draw(canvas.image)
    for _ in range(min(220, 12 + canvas.unit // 3)):
        height = detail.random() ** 1.4
        x, y = int(detail.random() * canvas.width), int(height * horizon * canvas.height)
        side = int(detail.random() ** 6 * 2.6 + canvas.unit / 900)
        sky = mix(canvas.light.zenith, canvas.light.horizon, height)
        draw.rectangle((x, y, x + side, y + side), fill=mix(sky, (255, 255, 246), 0.25 + detail.random() * 0.75))


def _clouds(canvas: Canvas, horizon: float) -> None:
    """Lay streaks of cloud over the sky, thinning towards zenith and horizon."""
    light, size = canvas.light, (canvas.width, max(2, round(canvas.height * horizon)))
    half = max(1, size[0] // 2), size[1] // 2  # clouds are soft: half the pixels will do
    start = canvas.between(118, 144)
    mask = Image.blend(canvas.noise(4, 7, half), canvas.noise(9, 19, half), 0.42)
    mask = mask.point([round(min(215, max(0, (value - start) * 5))) for value in range(256)])
    fade = Image.linear_gradient("L").point([round(255 * min(1, v / 90, (255 - v) / 60)) for v in range(256)])
    mask = ImageChops.multiply(mask, fade.resize(half, Image.Resampling.BILINEAR))
    mask = mask.resize(size, Image.Resampling.BILINEAR)
    canvas.through(mask, mix(light.middle, light.sun, 0.35), mix(light.horizon, light.sun, 0.7))


def _firs(canvas: Canvas, line: Sequence[Point], color: Color, count: int, size: float) -> None:
    """Plant a wood along a skyline: each fir is three tiers on a trunk."""
    trunk = _points("-3 15 3 15 3 -8 -3 -8")
    with canvas.pen(color, top=min(y for _, y in line) - size * 1.25 * canvas.unit / canvas.height) as pen:
        for _ in range(count):
            x, tall = canvas.detail.random(), size * (0.45 + canvas.detail.random() * 0.75)
            at = x, _height_at(line, x) + 0.004
            pen.figure(at, tall, trunk)
            for low, half in ((0.08, 0.2), (0.32, 0.15), (0.55, 0.1)):
                pen.figure(at, tall, [(-half, low), (0, low + 0.45), (half, low), (0, low + 0.05)])


def _birds(canvas: Canvas, color: Color) -> None:
    """Let a loose flock cross the sky."""
    bird = _points("-100 42 -45 50 0 0 45 50 100 36 42 30 0 -28 -42 30")
    x, y = canvas.between(0.2, 0.7), canvas.between(0.12, 0.3)
    with canvas.pen(color, bottom=0.5) as pen:
        for _ in range(4 + canvas.chance.randrange(5)):
            at = x + canvas.between(-0.08, 0.18), y + canvas.between(-0.07, 0.07)
            pen.figure(at, canvas.between(0.011, 0.024), bird)


def _glitter(canvas: Canvas, x: float, top: float) -> None:
    """Break the sun's light on water: flat sparks, wider and larger towards the viewer."""
    detail = canvas.detail
    with canvas.pen(canvas.light.sun, top=top, opacity=0.75) as pen:
        for _ in range(90):
            depth = detail.random() ** 1.3
            off = (detail.random() + detail.random() - 1) * (0.03 + 0.16 * depth)
            pen.disc((x + off, top + (1 - top) * depth), 0.007 + 0.022 * depth, 0.13)


def _waves(canvas: Canvas, shore: float, start: int) -> None:
    """Brush flat streaks of sky over water."""
    y = round(shore * canvas.height)
    table = [max(0, (value - start) * 2) for value in range(256)]
    mask = canvas.noise(6, 66, (canvas.width, max(1, canvas.height - y))).point(table)
    canvas.through(mask, canvas.light.horizon, canvas.light.middle, y=y)


def _mirror(canvas: Canvas, shore: float) -> None:
    """Reflect what is above the shore in the water below it, in bands that slide a little, more so near the viewer."""
    width, line = canvas.width, round(shore * canvas.height)
    depth = canvas.height - line
    above = canvas.image.crop((0, max(0, line - depth), width, line)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    above = above.resize((width, depth), Image.Resampling.BILINEAR)
    tint = mix(canvas.light.zenith, canvas.light.near, 0.35)
    water = Image.blend(above, Image.new("RGB", above.size, tint), 0.32)
    canvas.image.paste(water, (0, line))
    band = max(1, depth // 90)
    for index, y in enumerate(range(0, depth, band)):
        swing = (math.sin(index * 1.7) + math.sin(index * 0.61)) * (0.001 + 0.008 * y / depth)
        canvas.image.paste(water.crop((0, y, width, min(depth, y + band))), (round(swing * canvas.unit), line + y))
    _waves(canvas, shore, 168)


# --- scenes


def _ridges(canvas: Canvas) -> Spot:
    """Paint ridge behind ridge, each darker than the one behind it, woods on the nearest."""
    light, layers = canvas.light, 5 + canvas.chance.randrange(2)
    _sky(canvas, 0.72, clouds=0.5)
    line: list[Point] = []
    for layer in range(layers):
        depth = layer / (layers - 1)
        color, y, rise = light.ground(depth**1.25), 0.5 + 0.42 * depth, 0.2 - 0.07 * depth
        line = _peaks(canvas.chance, y, rise) if layer < 2 else _hills(canvas.chance, y, rise, 2 + layer)
        _ground(canvas, line, color, mix(color, light.horizon, 0.45 * (1 - depth)))
        if layer >= layers - 3:
            _firs(canvas, line, color, 14 + 8 * (layers - layer), 0.04 + 0.12 * depth**2)
    return _spot(canvas, line, canvas.between(0.2, 0.8), 0.19)


def _sea(canvas: Canvas) -> Spot:
    """Paint the sun over open water, with islands, a sail, and a headland in front."""
    light, chance, horizon = canvas.light, canvas.chance, canvas.between(0.5, 0.64)
    x, _ = _sky(canvas, horizon, clouds=0.85)
    for depth in (0.15, 0.35):
        island = [(px, min(horizon, py)) for px, py in _peaks(chance, horizon + 0.05 + 0.02 * depth, 0.13)]
        color = light.ground(depth)
        _ground(canvas, island, color, mix(color, light.horizon, 0.4), bottom=horizon)
    canvas.fill(mix(light.horizon, light.middle, 0.5), light.middle, mix(light.zenith, light.near, 0.4), top=horizon)
    _waves(canvas, horizon, 140)
    _glitter(canvas, x, horizon)
    _boat(canvas, ((x + canvas.between(0.3, 0.6)) % 0.8 + 0.1, horizon + canvas.between(0.05, 0.11)))
    _birds(canvas, mix(light.near, light.zenith, 0.2))
    left = chance.random() < 0.5
    headland = [(i / 24, 1.0 - 0.24 * (1 - i / 24) ** 1.6 + 0.02 * math.sin(i * 1.1)) for i in range(25)]
    headland = headland if left else [(1 - px, py) for px, py in reversed(headland)]
    _ground(canvas, headland, light.ground(1.0, 0.25))
    return _spot(canvas, headland, 0.16 if left else 0.84, 0.2)


def _boat(canvas: Canvas, at: Point) -> None:
    light, size = canvas.light, 0.16
    with canvas.pen(light.ground(1.0, 0.2)) as pen:
        pen.figure(at, size, _points("-30 10 34 10 22 -4 -22 -4"))
    with canvas.pen(mix(light.sun, light.accent, 0.15)) as pen:
        pen.figure(at, size, _points("1 14 2 92 30 16"))
    with canvas.pen(mix(light.sun, light.accent, 0.4)) as pen:
        pen.figure(at, size, _points("-3 14 -1 78 -24 16"))


def _lake(canvas: Canvas) -> Spot:
    """Paint snowy mountains and their reflection."""
    light, chance, shore = canvas.light, canvas.chance, canvas.between(0.6, 0.66)
    _sky(canvas, shore, clouds=0.6)
    for depth, rise in ((0.1, 0.46), (0.38, 0.3)):
        line, color = _peaks(chance, shore + 0.04, rise), light.ground(depth)
        _ground(canvas, line, mix(color, light.horizon, 0.1), mix(color, light.horizon, 0.5), bottom=shore)
        _snow(canvas, line, shore - rise * 0.42)
    bank = _hills(chance, shore + 0.012, 0.05, 5)
    _ground(canvas, bank, light.ground(0.8), bottom=shore)
    _firs(canvas, bank, light.ground(0.85), 46, 0.075)
    _mirror(canvas, shore)
    beach = _hills(chance, 1.0, 0.12, 3)
    _ground(canvas, beach, light.ground(1.0, 0.25), light.ground(1.0, 0.5))
    return _spot(canvas, beach, canvas.between(0.2, 0.8), 0.19)


def _snow(canvas: Canvas, line: Sequence[Point], limit: float) -> None:
    """Cap whatever of a skyline rises above a limit; the snow ends in tongues."""
    tongues = _peaks(canvas.detail, 1.0, 0.75)
    edge = [(x, max(y, y + (limit - y) * share)) for (x, y), (_, share) in zip(line, tongues, strict=True)]
    with canvas.pen(mix(canvas.light.sun, canvas.light.horizon, 0.3), bottom=limit, opacity=0.85) as pen:
        pen.polygon([*line, *reversed(edge)])


def _dunes(canvas: Canvas) -> Spot:
    """Paint dunes, each with a lit and a shaded flank."""
    light, chance = canvas.light, canvas.chance
    _sky(canvas, 0.6, clouds=0.3)
    sand = mix(mix(light.accent, light.horizon, 0.45), light.near, 0.1)
    line: list[Point] = []
    for layer in range(4):
        depth = layer / 3
        line = _hills(chance, 0.56 + 0.34 * depth, 0.14 + 0.06 * depth, 2 + (layer + chance.randrange(2)) % 3)
        lit = mix(sand, light.horizon, 0.5 - 0.5 * depth)
        dim = mix(lit, light.near, 0.25)
        _ground(canvas, line, lit, dim)
        for index in range(2, len(line) - 2):
            if line[index - 1][1] > line[index][1] <= line[index + 1][1]:
                _flank(canvas, line[index:], mix(lit, light.near, 0.45), mix(lit, dim, 0.6))
    crest = min(range(8, 49), key=lambda index: line[index][1])
    return replace(_spot(canvas, line, line[crest][0], 0.13), y=line[crest][1] + 0.005)


def _flank(canvas: Canvas, slope: Sequence[Point], *stops: Color) -> None:
    """Shade a dune beside its crest: between the slope behind and an edge that winds down and fades out."""
    foot = next((i for i in range(1, len(slope) - 1) if slope[i + 1][1] < slope[i][1]), len(slope) - 1)
    (x, y), end = slope[0], slope[foot][0]
    width, fall = end - x, 0.2
    turns = [step / 20 for step in range(21)]
    edge = [(x + width * (t * 0.7 - 0.1 * math.sin(t * math.tau)), y + fall * t) for t in turns]
    with canvas.pen(*stops, top=y, bottom=y + fall) as pen:
        pen.polygon([*slope[: foot + 1], (end + width * 0.3, y + fall), *reversed(edge)])


def _blossoms(canvas: Canvas) -> Spot:
    """Paint a flowering branch before misty hills."""
    light, line = canvas.light, [(0.0, 0.0)]
    _sky(canvas, 0.85, clouds=0.4)
    for layer in range(3):
        color, line = light.ground(0.1 + 0.25 * layer), _hills(canvas.chance, 0.78 + 0.1 * layer, 0.14, 2 + layer)
        _ground(canvas, line, color, mix(color, light.horizon, 0.6))
    left, tips = canvas.chance.random() < 0.5, list[Point]()
    with canvas.pen(light.ground(1.0, 0.35)) as pen:
        start = (-0.03 if left else 1.03, canvas.between(0.12, 0.45))
        _grow(canvas, pen, start, 0.1 if left else math.pi - 0.1, 0.034, 7, tips)
    flowers = [(tip, canvas.between(0.014, 0.031), canvas.chance.random()) for tip in tips]
    for share, reach in ((0.15, 1.0), (0.55, 0.78)):
        with canvas.pen(mix(light.accent, _WHITE, share)) as pen:
            for tip, size, turn in flowers:
                for x, y in _ring(0, 0, 0.62 * size, 5, turn):
                    pen.disc(canvas.beside(tip, x, y), 0.52 * size * reach)
    with canvas.pen(mix(light.accent, light.near, 0.4)) as pen:
        for tip, size, _ in flowers:
            pen.disc(tip, size * 0.28)
    return _spot(canvas, line, 0.7 if left else 0.3, 0.18)


def _grow(canvas: Canvas, pen: Pen, at: Point, angle: float, width: float, order: int, tips: list[Point]) -> None:
    """Grow a branch: a bent stroke, then thinner ones from it, until the last twigs end in flowers."""
    points = [at]
    for _ in range(3):
        angle += canvas.between(-0.24, 0.24)
        reach = 0.03 + 0.009 * order
        at = canvas.beside(at, math.cos(angle) * reach, math.sin(angle) * reach)
        points.append(at)
        if order < 5 and canvas.chance.random() < 0.6:
            tips.append((at[0] + canvas.between(-0.02, 0.02), at[1] + canvas.between(-0.02, 0.02)))
    pen.line(points, width)
    if order <= 1:
        tips.append(at)
        return
    _grow(canvas, pen, at, angle + canvas.between(-0.25, 0.25), width * 0.76, order - 1, tips)
    side = 1 if canvas.chance.random() < 0.5 else -1
    for turn, bough in ((side, points[1]), (-side, points[2]))[: 1 + (order > 4)]:
        _grow(canvas, pen, bough, angle + turn * canvas.between(0.4, 0.85), width * 0.5, order - 3, tips)


def _lights(canvas: Canvas) -> Spot:
    """Paint curtains of northern light over a dark valley; whatever the hour, it is night here."""
    night, light = (9, 14, 42), canvas.light
    light = replace(
        light,
        zenith=mix(light.zenith, night, 0.86),
        middle=mix(light.middle, night, 0.72),
        horizon=mix(light.horizon, night, 0.45),
        far=mix(light.far, night, 0.6),
        near=mix(light.near, night, 0.7),
    )
    canvas.light = light
    _sky(canvas, 0.8, clouds=0.0, sun=False)
    for color in (light.accent, mix(light.accent, (110, 240, 190), 0.6), mix(light.accent, (150, 120, 255), 0.6)):
        _curtain(canvas, color)
    for layer in range(2):
        color = light.ground(0.3 + 0.3 * layer)
        _ground(canvas, _peaks(canvas.chance, 0.8 + 0.06 * layer, 0.2), color, mix(color, light.horizon, 0.35))
    line, color = _hills(canvas.chance, 0.94, 0.08, 4), light.ground(1.0, 0.2)
    _ground(canvas, line, color)
    _firs(canvas, line, color, 44, 0.2)
    return _spot(canvas, line, canvas.between(0.25, 0.75), 0.16)


def _curtain(canvas: Canvas, color: Color) -> None:
    """Hang one wavering curtain: upright rays on a bent line, drawn small and enlarged."""
    side = min(96, max(8, canvas.unit // 4))
    tall, strengths = side * 4 // 9, canvas.noise(22, 1, (side, 1)).tobytes()
    ray = Image.linear_gradient("L").resize((1, tall), Image.Resampling.BILINEAR)
    rays = [ray.point([round(value * value / 255 * level / 11) for value in range(256)]) for level in range(9)]
    base, swing, phase, bend = (canvas.between(*ends) for ends in ((0.34, 0.7), (0.05, 0.15), (0, 6.3), (3, 7)))
    mask = Image.new("L", (side, side))
    for x, strength in enumerate(strengths):
        t = x / side
        foot = round(side * (base + swing * math.sin(phase + t * bend) + 0.03 * math.sin(phase * 2 + t * 21)))
        mask.paste(rays[round(strength / 32 * math.sin(math.pi * (t + 0.5 / side)) ** 0.5)], (x, foot - tall))
    mask = mask.filter(ImageFilter.GaussianBlur(side / 96))
    canvas.through(mask.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC), color)


def _meadow(canvas: Canvas) -> Spot:
    """Paint rolling fields full of flowers, and one to three great trees."""
    light, line, trees = canvas.light, [(0.0, 0.0)], 1 + canvas.chance.randrange(3)
    _sky(canvas, 0.62, clouds=0.9)
    grass = mix(light.near, light.accent, 0.22)
    for layer in range(4):
        depth = layer / 3
        line = _hills(canvas.chance, 0.6 + 0.1 * layer, 0.12, 2 + layer % 3)
        color = mix(mix(light.far, grass, 0.3 + 0.7 * depth), light.horizon, 0.3 * (1 - depth))
        _ground(canvas, line, mix(color, light.sun, 0.22), color)
        if layer == 1:
            _firs(canvas, line, light.ground(0.55), 30, 0.045)
        if layer == 2:
            for x, size in sorted((canvas.between(0.1, 0.9), canvas.between(0.2, 0.46)) for _ in range(trees)):
                _tree(canvas, _spot(canvas, line, x, size))
    for color in (light.accent, mix(light.accent, _WHITE, 0.6), mix(light.accent, light.zenith, 0.5)):
        with canvas.pen(color, top=0.7) as pen:
            for _ in range(70):
                x, depth = canvas.detail.random(), canvas.detail.random()
                y = _height_at(line, x) + 0.01
                pen.disc((x, y + (1 - y) * depth), 0.003 + 0.011 * depth, 0.8)
    return _spot(canvas, line, canvas.between(0.25, 0.75), 0.19)


def _tree(canvas: Canvas, spot: Spot) -> None:
    """Draw a crown in three tones, each higher and smaller than the one behind, on a forked trunk."""
    light, wide, tall = canvas.light, canvas.between(0.26, 0.42), canvas.between(0.16, 0.3)
    leaf = mix(light.accent, light.far, canvas.between(0.0, 0.8))
    with canvas.pen(spot.color) as pen:
        pen.figure(spot.at, spot.size, _points("-7 -2 -3 30 -16 55 -10 57 0 38 14 60 18 56 4 30 8 -2"))
    crown = [(canvas.between(-1, 1), canvas.between(-1, 1), canvas.between(0.1, 0.2)) for _ in range(26)]
    for tone, lift, shrink in ((0.12, 0.0, 1.0), (0.3, 0.035, 0.78), (0.52, 0.07, 0.46)):
        with canvas.pen(mix(spot.color, leaf, tone)) as pen:
            for across, up, radius in crown:
                x, y = across * wide * (1 - abs(up) * 0.4), 0.68 + lift + up * tall
                pen.disc(canvas.beside(spot.at, x * spot.size, -y * spot.size), radius * shrink * spot.size)


def _city(canvas: Canvas) -> Spot:
    """Paint a skyline by the water, its windows lit."""
    light, shore = canvas.light, 0.74
    _sky(canvas, shore, clouds=0.6)
    for layer in range(3):
        depth = layer / 2
        color = light.ground(0.15 + 0.75 * depth)
        towers = list(_towers(canvas, layer, shore))
        with canvas.pen(color, mix(color, light.horizon, 0.4 * (1 - depth)), top=0.1, bottom=shore) as pen:
            for x, wide, top, roof in towers:
                pen.polygon([(x, shore), *((x + dx * wide, top - dy * 0.05) for dx, dy in roof), (x + wide, shore)])
        if layer:
            glass = mix(light.accent, light.sun, 0.6)
            with canvas.pen(glass, top=0.1, bottom=shore, opacity=0.5 + 0.4 * depth) as pen:
                for x, wide, top, _ in towers:
                    _windows(canvas, pen, x, wide, top, shore)
    _mirror(canvas, shore)
    quay = [(0.0, 0.88), (1.0, 0.88)]
    _ground(canvas, quay, light.ground(1.0, 0.5))
    return _spot(canvas, quay, canvas.between(0.2, 0.8), 0.19)


_ROOFS = [
    _points("0 0 50 70 100 0"),
    _points("0 0 20 0 20 50 80 50 80 0 100 0"),
    _points("0 0 45 0 48 130 52 130 55 0 100 0"),
    _points("0 0 100 0"),
    _points("0 0 100 60 100 0"),
]


def _towers(canvas: Canvas, layer: int, shore: float) -> Iterator[tuple[float, float, float, Sequence[Point]]]:
    """Give a row of towers as left edge, width, top and roof."""
    x = -0.02
    while x < 1.0:
        wide = canvas.between(0.035, 0.085 + 0.02 * layer)
        top = shore - (0.5 - 0.14 * layer) * (0.25 + 0.75 * canvas.chance.random() ** 1.6)
        yield x, wide, top, canvas.chance.choice(_ROOFS)
        x += wide * canvas.between(0.95, 1.3)


def _windows(canvas: Canvas, pen: Pen, x: float, wide: float, top: float, shore: float) -> None:
    """Light some of a tower's windows."""
    pane = _points("-40 60 40 60 40 -60 -40 -60")
    for row in range(int((shore - top - 0.03) / 0.021)):
        for column in range(4):
            if canvas.detail.random() < 0.3:
                pen.figure((x + wide * (0.2 + 0.2 * column), top + 0.02 + 0.021 * row), 0.008, pane)


SCENES: dict[str, Callable[[Canvas], Spot]] = {
    "ridges": _ridges,
    "sea": _sea,
    "blossoms": _blossoms,
    "lake": _lake,
    "city": _city,
    "meadow": _meadow,
    "lights": _lights,
    "dunes": _dunes,
}
"""The scenes by name; neighbours differ most, since seeds in a row paint them in this order."""


# --- subjects


def _ring(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> list[Point]:
    """Give the corners of a regular outline."""
    turns = [(corner + turn) * math.tau / corners for corner in range(corners)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def _person(canvas: Canvas, spot: Spot) -> None:
    """Let a wanderer in coat and scarf look at the view."""
    side = 1 if spot.x < 0.5 else -1
    with canvas.pen(spot.color) as pen:
        coat = _points("-9 77 9 77 12 62 17 26 8 25 8 0 2 0 1 24 -1 24 -2 0 -8 0 -8 25 -17 26 -12 62")
        pen.figure(spot.at, spot.size, coat)
        pen.figure(spot.at, spot.size, _ring(0, 0.87, 0.085, 14))
    with canvas.pen(canvas.light.accent) as pen:
        scarf = _points("-9 80 9 80 20 76 29 78 38 74 37 66 28 70 19 68 10 71 -10 72")
        pen.figure(spot.at, spot.size, [(x * side, y) for x, y in scarf])


def _fox(canvas: Canvas, spot: Spot) -> None:
    """Let a fox sit and listen."""
    side, size, fur = (-1 if spot.x < 0.5 else 1), spot.size * 0.85, canvas.light.accent
    body = _points(
        "-22 0 -25 30 -16 52 -20 60 -37 65 -21 80 -19 102 -8 87 3 102 6 78 4 60 16 40 22 16 36 12 54 32 62 18 50 2 30 0"
    )
    pieces = [(body, fur), (_points("-21 52 -12 58 -7 40 -13 8 -21 8 -23 30"), mix(fur, _WHITE, 0.75))]
    pieces += [
        (_points("54 32 62 18 57 10 50 22"), mix(fur, _WHITE, 0.85)),
        (_points("-37 65 -31 69 -31 65"), spot.color),
    ]
    for outline, color in pieces:
        with canvas.pen(color) as pen:
            pen.figure(spot.at, size, [(x * side, y) for x, y in outline])


def _house(canvas: Canvas, spot: Spot) -> None:
    """Build a cabin with a lit window."""
    with canvas.pen(spot.color) as pen:
        pen.figure(spot.at, spot.size, _points("-36 0 -36 40 -46 38 0 78 14 66 14 80 24 80 24 58 46 38 36 40 36 0"))
    with canvas.pen(mix(canvas.light.accent, canvas.light.sun, 0.5)) as pen:
        pen.figure(spot.at, spot.size, _points("-20 16 -20 36 0 36 0 16"))


SUBJECTS: dict[str, Callable[[Canvas, Spot], None]] = {"person": _person, "fox": _fox, "house": _house}
"""Who can stand in a scene, by name."""

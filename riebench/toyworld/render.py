"""The renderer: scenes as 64 x 64 pictures, with exact masks of their parts.

Variation that the caption does not describe is small (a pixel or two of jitter, clouds, stars and trees a little
moved). So a small model can learn the world in an hour on two cores, and two seeds still give two pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from riebench.toyworld.scenes import Scene

SIZE = 64
"""Side of a picture in pixels."""
OVERSAMPLE = 3
CANVAS = SIZE * OVERSAMPLE

Floats = NDArray[np.float32]
Points = list[tuple[float, float]]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (216, 40, 44),
    "orange": (244, 138, 26),
    "yellow": (250, 222, 60),
    "green": (46, 170, 70),
    "blue": (44, 92, 220),
    "purple": (146, 62, 186),
    "lime": (168, 226, 44),
    "teal": (20, 186, 160),
    "pink": (240, 92, 172),
}
ANGLES = {"upright": 0.0, "tilted": 38.0, "upside-down": 180.0, "sideways": 90.0}
HALF_SIZE = 18.5  # pixels from the centre of an object to its edge
CENTER = (32.0, 33.0)


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Points:
    angles = np.linspace(math.radians(start), math.radians(stop), 40)
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


# Silhouettes in the object's own frame: x right, y down, both in [-1, 1].
SHAPES: dict[str, list[Points]] = {
    "house": [_box(-0.72, -0.15, 0.72, 0.95), [(-1.0, -0.1), (0.0, -1.0), (1.0, -0.1)], _box(0.42, -0.9, 0.68, -0.2)],
    "mushroom": [_ellipse(0, -0.05, 1.0, 0.92, 180, 360), [(-0.28, -0.1), (0.28, -0.1), (0.42, 0.95), (-0.42, 0.95)]],
    "boat": [
        [(-1.0, 0.42), (1.0, 0.42), (0.62, 0.95), (-0.62, 0.95)],
        [(-0.3, -1.0), (-0.3, 0.28), (0.98, 0.28)],
        [(-0.44, -0.7), (-0.44, 0.28), (-0.98, 0.28)],
        _box(-0.44, -1.0, -0.3, 0.5),
    ],
    "rocket": [
        [(0.0, -1.0), (0.26, -0.74), (0.44, -0.3), (0.46, 0.6), (-0.46, 0.6), (-0.44, -0.3), (-0.26, -0.74)],
        [(0.4, 0.1), (0.95, 0.75), (0.95, 0.98), (0.4, 0.6)],
        [(-0.4, 0.1), (-0.95, 0.75), (-0.95, 0.98), (-0.4, 0.6)],
        [(-0.2, 0.55), (0.2, 0.55), (0.3, 0.9), (-0.3, 0.9)],
    ],
    "cat": [
        _ellipse(0, 0.45, 0.68, 0.55),
        _ellipse(0, -0.38, 0.56, 0.48),
        [(-0.54, -0.45), (-0.5, -1.0), (-0.1, -0.72)],
        [(0.54, -0.45), (0.5, -1.0), (0.1, -0.72)],
        [(0.4, 0.9), (0.85, 0.85), (1.0, 0.5), (1.0, -0.1), (0.8, -0.1), (0.8, 0.4), (0.55, 0.6)],
    ],
    "car": [
        [(-1.0, 0.0), (1.0, 0.0), (1.0, 0.5), (-1.0, 0.5)],
        [(-0.72, 0.05), (-0.42, -0.6), (0.36, -0.6), (0.66, 0.05)],
        _ellipse(-0.55, 0.5, 0.32, 0.32),
        _ellipse(0.55, 0.5, 0.32, 0.32),
    ],
    "fish": [
        _ellipse(-0.2, 0.12, 0.8, 0.55),
        [(0.4, 0.12), (1.0, -0.45), (1.0, 0.7)],
        [(-0.55, -0.3), (-0.1, -0.95), (0.3, -0.3)],
    ],
    "duck": [
        _ellipse(0.1, 0.45, 0.78, 0.5),
        _ellipse(-0.42, -0.42, 0.42, 0.42),
        [(-0.72, -0.62), (-1.0, -0.3), (-0.7, -0.2)],
        [(-0.72, -0.3), (-0.02, -0.3), (0.1, 0.4), (-0.6, 0.4)],
        [(0.6, 0.3), (1.0, -0.2), (0.88, 0.6)],
    ],
    "butterfly": [
        [(0.0, -0.1), (-0.45, -0.98), (-1.0, -0.9), (-0.95, -0.15), (-0.4, 0.25)],
        [(0.0, -0.1), (0.45, -0.98), (1.0, -0.9), (0.95, -0.15), (0.4, 0.25)],
        _ellipse(-0.36, 0.5, 0.28, 0.45),
        _ellipse(0.36, 0.5, 0.28, 0.45),
        _ellipse(0, 0, 0.2, 0.8),
    ],
}
ACCESSORY_AT = {
    "house": (0.0, -0.92), "mushroom": (0.0, -0.92), "boat": (-0.37, -0.92),
    "rocket": (0.0, -0.88), "cat": (0.0, -0.8), "car": (-0.03, -0.58),
    "fish": (-0.1, -0.86), "duck": (-0.42, -0.8), "butterfly": (0.0, -0.74),
}  # fmt: skip
EMBLEM_AT = {
    "house": (0.0, 0.35), "mushroom": (0.0, -0.45), "boat": (0.02, 0.0),
    "rocket": (0.0, 0.0), "cat": (0.0, 0.45), "car": (0.0, 0.08),
    "fish": (-0.2, 0.14), "duck": (0.15, 0.45), "butterfly": (0.0, 0.0),
}  # fmt: skip
# Accessories and emblems in pixels around their anchor (y up is negative).
PINK, CHARCOAL, NAVY = (255, 105, 190), (64, 66, 78), (20, 30, 110)
ACCESSORIES: dict[str, list[tuple[tuple[int, int, int], Points]]] = {
    "hat": [
        (CHARCOAL, _box(-9.5, -2.5, 9.5, 1)),
        (CHARCOAL, _box(-6, -12.5, 6, -1)),
        ((236, 40, 60), _box(-6, -6, 6, -2.5)),
    ],
    "crown": [((255, 206, 30), [(-9, 1), (-9.5, -11), (-4.5, -5), (0, -12.5), (4.5, -5), (9.5, -11), (9, 1)])],
    "bow": [
        (PINK, [(0, -4), (-10.5, -11), (-10.5, 2)]),
        (PINK, [(0, -4), (10.5, -11), (10.5, 2)]),
        ((200, 30, 130), _ellipse(0, -4.2, 2.8, 2.8)),
    ],
    "flag": [
        (NAVY, _box(-1.3, -14, 1.3, 1)),
        ((0, 120, 240), [(1.3, -14), (12, -10), (1.3, -5.5)]),
    ],
    "flower": [
        *(((255, 255, 255), _ellipse(4.6 * x, -6 + 4.6 * y, 3.5, 3.5)) for x, y in ((0, -1), (1, 0), (0, 1), (-1, 0))),
        ((244, 150, 20), _ellipse(0, -6, 2.9, 2.9)),
    ],
}
_HALF_HEART = [(1.0, -3.7), (3.0, -4.2), (4.9, -2.8), (5.0, -0.5)]
EMBLEMS: dict[str, list[tuple[tuple[int, int, int], Points]]] = {
    "heart": [((225, 20, 60), [(0, 5), *((-x, y) for x, y in reversed(_HALF_HEART)), (0, -2), *_HALF_HEART])],
    "cross": [(NAVY, _box(-1.6, -5, 1.6, 5)), (NAVY, _box(-5, -1.6, 5, 1.6))],
    "leaf": [((20, 140, 60), [(-4.6, 4.6), (-4.2, -0.8), (-1.2, -4), (4.6, -4.6), (4, 1.2), (0.8, 4.2)])],
    "bolt": [((235, 140, 0), [(1.8, -5.6), (-4.2, 0.9), (-0.7, 0.9), (-1.8, 5.6), (4.2, -1.3), (0.7, -1.3)])],
}
BADGE = ((252, 252, 250), _ellipse(0, 0, 7.2, 7.2))
INK = (24, 22, 30)


@dataclass(frozen=True)
class Rendering:
    """A picture and its ground-truth masks.

    Attributes:
        image: uint8 [64, 64, 3], RGB.
        masks: name -> bool [64, 64]; `object` (without its accessory), `emblem`, `accessory`, `background` (neither
            object nor accessory). `emblem` and `accessory` are empty where the scene has none.
    """

    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]


class _Frame:
    """The object's own coordinates: one rotation, scale and place for all parts."""

    def __init__(self, angle: float, scale: float, center: tuple[float, float]) -> None:
        self.cos, self.sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        self.scale, self.center = scale, center

    def place(self, points: Points, anchor: tuple[float, float] | None = None) -> Points:
        """Map points to canvas coordinates.

        Args:
            points: in object units, or, with an anchor, in pixels around it.
            anchor: a point of the object, in object units.
        """
        placed = []
        for x, y in points:
            if anchor is not None:
                x, y = anchor[0] * HALF_SIZE + x, anchor[1] * HALF_SIZE + y
            else:
                x, y = x * HALF_SIZE, y * HALF_SIZE
            x, y = x * self.scale, y * self.scale
            px = self.center[0] + self.cos * x - self.sin * y
            py = self.center[1] + self.sin * x + self.cos * y
            placed.append((px * OVERSAMPLE, py * OVERSAMPLE))
        return placed

    def coordinates(self) -> tuple[Floats, Floats]:
        """Return each canvas pixel's position in the object's frame.

        Returns:
            x and y in picture pixels, float [CANVAS, CANVAS] each.
        """
        y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / OVERSAMPLE
        x, y = x - self.center[0], y - self.center[1]
        return (self.cos * x + self.sin * y) / self.scale, (-self.sin * x + self.cos * y) / self.scale


def _polygon_mask(polygons: list[Points]) -> Image.Image:
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    draw = ImageDraw.Draw(mask)
    for points in polygons:
        draw.polygon(points, fill=255)
    return mask


def _background(kind: str, rng: np.random.Generator) -> Image.Image:
    size, o = CANVAS, OVERSAMPLE
    image = Image.new("RGB", (size, size), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    jitter = rng.uniform(-1.5, 1.5, size=24)

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        draw.rectangle((round(x0 * o), round(y0 * o), round(x1 * o) - 1, round(y1 * o) - 1), fill=fill)

    def disc(x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse(((x - rx) * o, (y - ry) * o, (x + rx) * o, (y + ry) * o), fill=fill)

    if kind == "sky":
        box(0, 0, 64, 64, (132, 200, 250))
        for i, (x, y) in enumerate(((11, 10), (52, 15), (54, 52), (9, 46))):
            x, y = x + jitter[i], y + jitter[i + 4]
            for dx, dy, r in ((-5, 1, 4), (0, -1, 5.5), (5, 1, 4)):
                disc(x + dx, y + dy, r + 1, r * 0.8, (255, 255, 255))
    elif kind == "forest":
        box(0, 0, 64, 64, (196, 226, 168))
        for i, x in enumerate((4, 20, 36, 52, 64)):
            x = x + jitter[i]
            for top, width in ((2, 8), (12, 9.5), (24, 11)):
                draw.polygon(
                    [(x * o, top * o), ((x - width) * o, (top + 18) * o), ((x + width) * o, (top + 18) * o)],
                    fill=(30, 104, 62),
                )
            box(x - 2, 42, x + 2, 50, (104, 70, 40))
        box(0, 50, 64, 64, (108, 150, 66))
    elif kind == "night":
        box(0, 0, 64, 64, (18, 22, 62))
        for i, (x, y) in enumerate(
            ((6, 8), (20, 5), (7, 28), (58, 34), (46, 6), (8, 50), (24, 60), (58, 58), (42, 59))
        ):
            disc(x + jitter[i], y + jitter[i + 9], 1.3, 1.3, (255, 250, 200))
        disc(56 + jitter[20], 10 + jitter[21], 5, 5, (250, 240, 170))
    elif kind == "beach":
        box(0, 0, 64, 26, (190, 232, 252))
        box(0, 26, 64, 40, (30, 130, 180))
        box(0, 40, 64, 64, (242, 216, 150))
        disc(8 + jitter[0], 8 + jitter[1], 5, 5, (255, 190, 60))
    elif kind == "brick":
        box(0, 0, 64, 64, (214, 204, 194))
        for row in range(8):
            for column in range(-1, 5):
                x = column * 16 + (8 if row % 2 else 0)
                box(x + 0.8, row * 8 + 0.8, x + 15.2, row * 8 + 7.2, (160, 82, 66))
    elif kind in _FURTHER_BACKGROUNDS:
        _FURTHER_BACKGROUNDS[kind](box, disc, jitter)
    return image


_Fill = tuple[int, int, int]
_Shape = Callable[[float, float, float, float, _Fill], None]


def _snow(box: _Shape, disc: _Shape, jitter: NDArray[np.float64]) -> None:
    box(0, 0, 64, 64, (150, 164, 186))
    disc(10 + jitter[0], 66, 34, 20, (240, 244, 252))
    disc(56 + jitter[1], 68, 34, 18, (222, 230, 244))
    for i, (x, y) in enumerate(((6, 6), (18, 14), (32, 5), (46, 12), (59, 5), (6, 28), (58, 26), (5, 42), (60, 44))):
        disc(x + jitter[i + 2], y + jitter[i + 12], 1.7, 1.7, (255, 255, 255))


def _water(box: _Shape, disc: _Shape, jitter: NDArray[np.float64]) -> None:
    box(0, 0, 64, 64, (10, 84, 120))
    for i, x in enumerate((3, 9, 55, 61)):
        for step in range(6):
            disc(x + jitter[i] + (1.6 if step % 2 else -1.6), 62 - 5 * step, 2, 3.4, (20, 140, 84))
    for i, (x, y, r) in enumerate(((8, 14, 3), (15, 5, 2), (54, 20, 3), (48, 7, 2.2), (58, 8, 2.6), (6, 26, 1.8))):
        disc(x + jitter[i + 4], y + jitter[i + 12], r, r, (150, 214, 236))


def _city(box: _Shape, disc: _Shape, jitter: NDArray[np.float64]) -> None:
    box(0, 0, 64, 64, (250, 196, 120))
    for i, (x, top, width) in enumerate(((0, 20, 12), (13, 8, 11), (25, 26, 13), (39, 4, 11), (51, 16, 13))):
        left = x + jitter[i] / 2
        box(left, top, left + width, 64, (84, 78, 112))
        for y in range(top + 3, 62, 6):
            for column in (2.5, 6.5):
                box(left + column, y, left + column + 2, y + 3, (248, 226, 130))


_FURTHER_BACKGROUNDS: dict[str, Callable[[_Shape, _Shape, NDArray[np.float64]], None]] = {
    "snow": _snow, "water": _water, "city": _city,
}  # fmt: skip


def _fill(scene: Scene, frame: _Frame) -> Floats:
    """Return the object's color and material: float [CANVAS, CANVAS, 3]."""
    base = np.array(COLORS[scene.color], dtype=np.float32)
    fill = np.broadcast_to(base, (CANVAS, CANVAS, 3)).copy()
    if scene.material == "plain":
        return fill
    u, v = frame.coordinates()
    light = base + (255 - base) * 0.72
    if scene.material == "striped":
        fill[np.floor(u / 4.5 + 0.5).astype(int) % 2 == 0] = light
    elif scene.material == "dotted":
        du, dv = (u + 4.5) % 9 - 4.5, (v + 4.5) % 9 - 4.5
        fill[du * du + dv * dv < 2.7**2] = light
    elif scene.material == "zigzag":
        fill[np.floor((v + np.abs((u + 6) % 12 - 6)) / 4.5).astype(int) % 2 == 0] = light
    elif scene.material == "ringed":
        fill[np.floor(np.sqrt(u * u + v * v) / 4 + 0.5).astype(int) % 2 == 0] = light
    else:
        fill[(np.floor(u / 5.5) + np.floor(v / 5.5)).astype(int) % 2 == 0] = base * 0.42
    return fill


def _layers(scene: Scene, frame: _Frame) -> tuple[list[tuple[Image.Image, Floats, bool]], dict[str, Image.Image]]:
    """Build the layers over the background, and the ground-truth masks.

    Returns:
        (mask, fill, whether it is outlined) of each layer, in drawing order, and name -> mask.
    """

    def flat(color: tuple[int, int, int]) -> Floats:
        return np.array(color, dtype=np.float32)

    body = _polygon_mask([frame.place(points) for points in SHAPES[scene.object]])
    layers = [(body, _fill(scene, frame), True)]
    truth = {"object": body}
    if scene.emblem != "none":
        anchor = EMBLEM_AT[scene.object]
        badge = _polygon_mask([frame.place(BADGE[1], anchor)])
        layers.append((badge, flat(BADGE[0]), True))
        truth["emblem"] = badge
        for color, points in EMBLEMS[scene.emblem]:
            layers.append((_polygon_mask([frame.place(points, anchor)]), flat(color), False))
    if scene.accessory != "none":
        parts = [
            (color, frame.place(points, ACCESSORY_AT[scene.object])) for color, points in ACCESSORIES[scene.accessory]
        ]
        whole = _polygon_mask([points for _, points in parts])
        truth["accessory"] = whole
        layers.append((whole, flat(parts[0][0]), True))
        layers.extend((_polygon_mask([points]), flat(color), False) for color, points in parts[1:])
    return layers, truth


def _as_float(mask: Image.Image) -> Floats:
    return (np.asarray(mask, dtype=np.float32) / np.float32(255))[..., None]


def _wider(mask: Image.Image) -> Image.Image:
    """Return a mask that reaches a pixel further."""
    return mask.filter(ImageFilter.MaxFilter(2 * OVERSAMPLE + 1))


OUTLINED = ("drawing", "pixel", "screen")
"""Styles with a line around each layer."""
STICKER_EDGE = 3
"""Width in pixels of the white around a sticker, which runs around all layers together; a grey line is around that."""


def _compose(background: Image.Image, layers: list[tuple[Image.Image, Floats, bool]], style: str) -> Floats:
    canvas = np.asarray(background, dtype=np.float32).copy()

    def cover(mask: Image.Image, color: tuple[int, int, int]) -> None:
        canvas[:] += _as_float(mask) * (np.array(color, dtype=np.float32) - canvas)

    if style == "sticker" and layers:
        white = reduce(ImageChops.lighter, (mask for mask, _, edge in layers if edge))
        for _ in range(STICKER_EDGE):
            white = _wider(white)
        cover(_wider(white), (120, 122, 132))
        cover(white, (255, 255, 255))
    for mask, fill, edge in layers:
        if edge and style in OUTLINED:
            cover(_wider(mask), INK)
        canvas += _as_float(mask) * (fill - canvas)
    return canvas


def _texture() -> tuple[Floats, Floats]:
    """Return the paper's pencil hatching and watercolor mottle.

    Both are the same for every picture: float [CANVAS, CANVAS, 1] each.
    """
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / OVERSAMPLE
    hatching = (np.floor((x + y) / 2.0) % 2).astype(np.float32)[..., None]
    mottle = (np.sin(x * 0.55 + 1.3 * np.sin(y * 0.31)) * np.sin(y * 0.47 + 1.1 * np.sin(x * 0.23)))[..., None]
    return hatching, mottle.astype(np.float32)


_HATCHING, _MOTTLE = _texture()


def _stylize(canvas: Floats, layers: list[tuple[Image.Image, Floats, bool]], style: str) -> Floats:
    """Apply a style: float [CANVAS, CANVAS, 3] in 0..255 -> float [64, 64, 3]."""
    if style == "pencil":
        grey = canvas.mean(axis=2, keepdims=True)
        tone = 0.62 * canvas + 0.38 * grey
        paper = np.array((250, 248, 240), dtype=np.float32)
        canvas = paper - (paper - tone) * np.where(_HATCHING > 0, 0.9, 0.5)
        for mask, _, edge in layers:
            if edge:
                rim = _as_float(mask.filter(ImageFilter.MaxFilter(2 * OVERSAMPLE - 1))) - _as_float(mask)
                canvas = canvas + np.clip(rim, 0, 1) * (70 - canvas)
    elif style == "watercolor":
        picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(1.2 * OVERSAMPLE)
        )
        canvas = np.asarray(picture, dtype=np.float32)
        canvas = 255 - (255 - canvas) * (0.74 + 0.09 * _MOTTLE)
    small = canvas.reshape(SIZE, OVERSAMPLE, SIZE, OVERSAMPLE, 3).mean(axis=(1, 3))
    if style == "pixel":
        cells = small.reshape(16, 4, 16, 4, 3)[:, 0:2, :, 0:2].mean(axis=(1, 3))
        small = np.repeat(np.repeat(np.round(cells / 17) * 17, 4, axis=0), 4, axis=1)
    elif style == "screen":
        small = small.copy()
        small.reshape(8, 8, SIZE, 3)[:, 5:] *= 0.5
    return small.astype(np.float32)


def _frame(scene: Scene, seed: int) -> tuple[_Frame, np.random.Generator]:
    """Draw the object's place and size; the generator draws the rest."""
    rng = np.random.default_rng(seed)
    dx, dy = rng.uniform(-1.5, 1.5, size=2)
    scale = float(rng.uniform(0.97, 1.03))
    return _Frame(ANGLES[scene.pose], scale, (CENTER[0] + dx, CENTER[1] + dy)), rng


def _picture(
    scene: Scene, rng: np.random.Generator, layers: list[tuple[Image.Image, Floats, bool]]
) -> NDArray[np.uint8]:
    canvas = _compose(_background(scene.background, rng), layers, scene.style)
    return np.clip(np.round(_stylize(canvas, layers, scene.style)), 0, 255).astype(np.uint8)


def render_background(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """Draw a scene without its object.

    Returns:
        uint8 [64, 64, 3]: the background of `render` with the same arguments.
    """
    return _picture(scene, _frame(scene, seed)[1], [])


def render(scene: Scene, seed: int) -> Rendering:
    """Draw one scene.

    Args:
        scene: the contents of the picture.
        seed: decides the little that the scene leaves open (place, size, clouds, stars, trees).

    Returns:
        The picture and its masks; equal arguments give equal pixels.
    """
    frame, rng = _frame(scene, seed)
    layers, truth = _layers(scene, frame)
    image = _picture(scene, rng, layers)

    def reduced(name: str) -> NDArray[np.bool_]:
        if name not in truth:
            return np.zeros((SIZE, SIZE), dtype=bool)
        return np.asarray(truth[name].reduce(OVERSAMPLE)) > 127

    accessory = reduced("accessory")
    body = reduced("object") | reduced("emblem")
    masks = {
        "object": body & ~accessory,
        "emblem": reduced("emblem") & ~accessory,
        "accessory": accessory,
        "background": ~(body | accessory),
    }
    return Rendering(image, masks)

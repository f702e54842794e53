"""Damaged pictures with labels, from which the judge learns what it cannot read.

Each is made by code from one or two renders: blends, half-erased objects, double exposures, pasted parts, warps,
shuffled parts, blur, colored spots, noise and drained color. The code knows how much of each attribute is left: its
value can be read, cannot be read (`UNREADABLE_LABEL`), or lies between the two, where people would differ and the judge
is taught nothing (`NO_LABEL`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

from riebench.scoring.metrics.judge_network import ATTRIBUTES, UNREADABLE_LABEL, WIDE_ATTRIBUTES, Values
from riebench.toyworld.networks.vae import encode
from riebench.toyworld.render import COLORS, SIZE, Rendering, render, render_background
from riebench.toyworld.scenes import Scene, is_held_out, random_scene
from riebench.utils.terminal import ProgressBar

NO_LABEL = -2
"""Label of an attribute that is neither clearly readable nor clearly unreadable."""

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Readings = dict[str, int]
"""Attribute -> index of its value, `UNREADABLE_LABEL` or `NO_LABEL`."""

BODY = ("object", "color", "material", "emblem", "accessory", "pose")
"""Attributes that are seen on the object."""

BLEND_BOUNDS: dict[str, tuple[float, float]] = {
    "object": (0.36, 0.76), "color": (0.36, 0.76), "material": (0.36, 0.76), "emblem": (0.36, 0.76),
    "accessory": (0.36, 0.76), "pose": (0.36, 0.76), "background": (0.33, 0.78), "style": (0.36, 0.78),
}  # fmt: skip
"""Attribute -> share of one value in a blend of two: from the first on it hides the other, from the second it is read.

Between the first and 1 minus the first neither can be read.
"""

GHOST_BOUNDS: dict[str, tuple[float, float]] = {
    "material": (0.12, 0.55),
    "emblem": (0.12, 0.62),
    "accessory": (0.12, 0.62),
}
"""Attribute -> share of a pattern, emblem or accessory over its absence.

It is absent up to the first share and there from the second on.
"""

GHOST_MIDDLE = (0.22, 0.45)
"""Share of a pattern, emblem or accessory over its absence at which it cannot be told whether it is there."""

ERASED_BOUNDS: dict[str, tuple[float, float]] = {
    "object": (0.42, 0.68), "color": (0.25, 0.55), "material": (0.42, 0.72), "emblem": (0.42, 0.7),
    "accessory": (0.4, 0.66), "pose": (0.42, 0.7),
}  # fmt: skip
"""Attribute -> share of the object left: up to the first its value is unreadable, from the second on it is read."""

HUES: dict[str, tuple[float, float]] = {
    "red": (-14.0, 8.0), "orange": (23.0, 37.0), "yellow": (46.0, 62.0), "green": (105.0, 155.0),
    "blue": (205.0, 240.0), "purple": (265.0, 298.0), "lime": (72.0, 92.0), "teal": (162.0, 192.0),
    "pink": (316.0, 338.0),
}  # fmt: skip
"""Color -> hues in degrees that are read as it."""

HUE_MARGIN = 5.0
"""Degrees on either side of a color's hues that have no label; further on the color is unreadable."""


@dataclass
class Damaged:
    """A picture, its readings, and where things are in it.

    Attributes:
        image: float32 [64, 64, 3] in 0..255.
        readings: attribute -> label.
        body: bool [64, 64], where an object is or was.
    """

    image: Floats
    readings: Readings
    body: Mask

    def mark(self, names: tuple[str, ...], label: int) -> None:
        """Set labels; what is unreadable already stays so."""
        for name in names:
            if self.readings[name] != UNREADABLE_LABEL:
                self.readings[name] = label

    def grade(self, names: tuple[str, ...], amount: float, bounds: tuple[float, float]) -> None:
        """Set labels by the amount of damage.

        Args:
            names: of the attributes.
            amount: of the damage.
            bounds: labels stay up to the first and are unreadable from the second on.
        """
        if amount >= bounds[1]:
            self.mark(names, UNREADABLE_LABEL)
        elif amount > bounds[0]:
            self.mark(names, NO_LABEL)


def _readings(scene: Scene) -> Readings:
    return dict(zip(ATTRIBUTES, scene.labels(), strict=True))


def _body(rendering: Rendering) -> Mask:
    return ~rendering.masks["background"]


def smooth_noise(rng: np.random.Generator, scale: float, channels: int) -> Floats:
    """Draw smooth noise of standard deviation 1: float32 [64, 64, channels].

    Args:
        rng: the source of randomness.
        scale: standard deviation of the smoothing in pixels.
        channels: independent fields.
    """
    noise = gaussian_filter(rng.standard_normal((SIZE, SIZE, channels)), (scale, scale, 0), mode="wrap")
    return ((noise - noise.mean()) / (noise.std() + 1e-6)).astype(np.float32)


def _weights(rng: np.random.Generator, region: Mask) -> tuple[Floats, bool]:
    """Draw the share of the first picture at each pixel.

    Returns:
        float32 [64, 64] in 0..1, and whether it is the same everywhere.
    """
    kind = rng.choice(["uniform", "smooth", "edge", "patch", "region"], p=[0.4, 0.2, 0.12, 0.13, 0.15])
    alpha = float(rng.uniform(0, 1))
    if kind == "uniform":
        return np.full((SIZE, SIZE), alpha, dtype=np.float32), True
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - SIZE / 2
    if kind == "smooth":
        field = smooth_noise(rng, float(rng.uniform(2.5, 8)), 1)[..., 0] + float(rng.uniform(-1.5, 1.5))
        return 1 / (1 + np.exp(-field * float(rng.uniform(1, 8)))), False
    if kind == "edge":
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-14, 14)
        distance = np.cos(angle) * x + np.sin(angle) * y - offset
        return (1 / (1 + np.exp(-distance / float(rng.uniform(0.3, 5))))).astype(np.float32), False
    if kind == "region":
        soft = gaussian_filter(binary_dilation(region, iterations=2).astype(np.float32), 1.0)
        return 1 - (1 - alpha) * np.clip(soft, 0, 1), False
    (cx, cy), (rx, ry) = rng.uniform(-16, 16, 2), rng.uniform(5, 22, 2)
    inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    if rng.random() < 0.5:
        inside = (np.abs(x - cx) < rx) & (np.abs(y - cy) < ry)
    return np.where(inside, np.float32(rng.uniform(0, 0.2)), np.float32(1)), False


def _mean_over(weights: Floats, region: Mask) -> float:
    return float(weights[region].mean()) if region.any() else float(weights.mean())


def hue_reading(color: Floats, values: Values = ATTRIBUTES) -> int:
    """Return the label of an object's color, RGB in 0..255, by its hue.

    Args:
        color: float [3].
        values: those of the world; colors that it has not are unreadable.
    """
    red, green, blue = (float(v) for v in color)
    high, low = max(color), min(color)
    if high - low < 1:
        return UNREADABLE_LABEL
    if high == red:
        hue = 60 * (((green - blue) / (high - low)) % 6)
    elif high == green:
        hue = 60 * ((blue - red) / (high - low) + 2)
    else:
        hue = 60 * ((red - green) / (high - low) + 4)
    near = False
    for index, name in enumerate(values["color"]):
        first, last = HUES[name]
        centered = (hue - first + 180) % 360 - 180
        if 0 <= centered <= last - first:
            return index
        near |= -HUE_MARGIN < centered < last - first + HUE_MARGIN
    # Orange and yellow lie so near to each other that the margins leave little between them.
    return NO_LABEL if near and not 40 < hue < 43.5 else UNREADABLE_LABEL


def _between(share: float, first: int, second: int, unreadable_from: float, read_from: float) -> int:
    """Return the label of a blend of two values by the share of the first."""
    if share >= read_from:
        return first
    if share <= 1 - read_from:
        return second
    return UNREADABLE_LABEL if unreadable_from <= share <= 1 - unreadable_from else NO_LABEL


def _over_nothing(name: str, share: float, value: int) -> int:
    """Return the label of a pattern, emblem or accessory mixed with its absence.

    Absence has the label 0.
    """
    absent, there = GHOST_BOUNDS[name]
    if share >= there or share <= absent:
        return value if share >= there else 0
    return UNREADABLE_LABEL if GHOST_MIDDLE[0] <= share <= GHOST_MIDDLE[1] else NO_LABEL


def _region(name: str, first: Rendering, second: Rendering, scene: Scene) -> Mask:
    """Return the pixels on which an attribute is seen in either of two renders."""
    masks = [first.masks, second.masks]
    body = _body(first) | _body(second)
    if name in ("emblem", "accessory"):
        found: Mask = masks[0][name] | masks[1][name]
        return found if found.any() else body
    if name == "background":
        return first.masks["background"] & second.masks["background"]
    if name == "style" and scene.background != "white":
        return np.ones((SIZE, SIZE), dtype=bool)
    return body


def _blend_reading(name: str, first: Scene, second: Scene, share: float, uniform: bool, values: Values) -> int:
    """Return the label of an attribute in a blend of two scenes.

    Args:
        name: of the attribute.
        first: the scene that `share` belongs to.
        second: the other.
        share: of the first scene, where the attribute is seen.
        uniform: whether that share is the same everywhere.
        values: those of the world.
    """
    one, other = (values[name].index(getattr(scene, name)) for scene in (first, second))
    same_shape = first.object == second.object and first.pose == second.pose
    absent_in_both = name in ("emblem", "accessory") and one == other == 0
    if one == other:
        if same_shape or absent_in_both or name in ("color", "style", "background"):
            return one
        return one if not 0.22 < share < 0.78 else NO_LABEL
    if name == "color" and uniform and same_shape:
        colors = [np.array(COLORS[scene.color], dtype=np.float32) for scene in (first, second)]
        return hue_reading(share * colors[0] + (1 - share) * colors[1], values)
    if name in GHOST_BOUNDS and 0 in (one, other):
        return _over_nothing(name, share, one) if other == 0 else _over_nothing(name, 1 - share, other)
    return _between(share, one, other, *BLEND_BOUNDS[name])


def blend(
    rng: np.random.Generator, scene: Scene, other: Scene, seeds: tuple[int, int], values: Values = ATTRIBUTES
) -> Damaged:
    """Mix two scenes of a world, evenly or in places."""
    first, second = render(scene, seeds[0]), render(other, seeds[1])
    changed = [name for name in ATTRIBUTES if getattr(scene, name) != getattr(other, name)]
    weights, uniform = _weights(rng, _region(str(rng.choice(changed)), first, second, scene))
    readings = {}
    for name in ATTRIBUTES:
        share = _mean_over(weights, _region(name, first, second, scene))
        readings[name] = _blend_reading(name, scene, other, share, uniform, values)
    image = weights[..., None] * first.image + (1 - weights[..., None]) * second.image
    return Damaged(image.astype(np.float32), readings, _body(first) | _body(second))


def erase(rng: np.random.Generator, scene: Scene, seed: int) -> Damaged:
    """Fade an object, or parts of it, into its background."""
    rendering, empty = render(scene, seed), render_background(scene, seed)
    part = str(rng.choice(["object", "emblem", "accessory"]))
    weights, _ = _weights(rng, rendering.masks[part] if rendering.masks[part].any() else _body(rendering))
    readings, body = _readings(scene), _body(rendering)
    left = _mean_over(weights, body)
    for name in BODY:
        # A missing emblem is seen on the whole object.
        region = rendering.masks[name] if name in ("emblem", "accessory") and readings[name] else body
        share, (gone, there) = _mean_over(weights, region), ERASED_BOUNDS[name]
        if name == "accessory" and readings[name] and left >= there and share < gone:
            readings[name] = _over_nothing(name, share, readings[name])
        elif share < there:
            readings[name] = UNREADABLE_LABEL if share <= gone else NO_LABEL
    if scene.background == "white" and left < 0.7:
        readings["style"] = NO_LABEL if left > 0.3 else UNREADABLE_LABEL
    image = weights[..., None] * rendering.image + (1 - weights[..., None]) * empty
    return Damaged(image.astype(np.float32), readings, body)


def _near(rng: np.random.Generator, body: Mask) -> tuple[Floats, bool]:
    """Draw where a further damage acts: around the object alone, or everywhere."""
    if rng.random() < 0.3:
        return np.ones((SIZE, SIZE, 1), dtype=np.float32), True
    soft = gaussian_filter(binary_dilation(body, iterations=3).astype(np.float32), 2.0)
    return np.clip(soft, 0, 1)[..., None], False


def warp(rng: np.random.Generator, damaged: Damaged) -> None:
    """Displace pixels smoothly; what counts is how steeply the displacement changes."""
    scale, strain = float(rng.uniform(2.5, 9)), float(rng.uniform(0.05, 1.2))
    where, everywhere = _near(rng, damaged.body)
    shift = smooth_noise(rng, scale, 2) * (strain * scale) * where
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    at = [y + shift[..., 0], x + shift[..., 1]]
    damaged.image = np.stack(
        [map_coordinates(damaged.image[..., c], at, order=1, mode="nearest") for c in range(3)], axis=2
    )
    damaged.grade(("object", "emblem", "accessory"), strain, (0.25, 0.55))
    damaged.grade(("material",), strain, (0.3, 0.7))
    damaged.grade(("pose",), strain, (0.3, 0.8))
    damaged.grade(("style",), strain, (0.3, 2.0))
    if everywhere:
        damaged.grade(("background",), strain, (0.4, 2.0))


def shuffle(rng: np.random.Generator, damaged: Damaged) -> None:
    """Exchange square parts of the picture around the object."""
    side = int(rng.choice([4, 8, 16]))
    tiles = [(i, j) for i in range(8, 56, side) for j in range(8, 56, side) if i + side <= 56 and j + side <= 56]
    share = float(rng.uniform(0.05, 1))
    moved = [tiles[i] for i in rng.permutation(len(tiles))[: max(2, round(share * len(tiles)))]]
    image = damaged.image.copy()
    for (i, j), (k, m) in zip(moved, [*moved[1:], moved[0]], strict=True):
        image[i : i + side, j : j + side] = damaged.image[k : k + side, m : m + side]
    damaged.image = image
    damaged.grade(("object", "pose", "emblem", "accessory"), share, (0.08, 0.5))
    damaged.grade(("material",), share, (0.15, 0.7))
    damaged.grade(("style", "background"), share, (0.3, 2.0))


def blur(rng: np.random.Generator, damaged: Damaged) -> None:
    """Blur the object or the whole picture."""
    sigma = float(rng.uniform(0.5, 7))
    where, everywhere = _near(rng, damaged.body)
    blurred = gaussian_filter(damaged.image, (sigma, sigma, 0)).astype(np.float32)
    damaged.image = damaged.image + where * (blurred - damaged.image)
    damaged.grade(("material", "emblem"), sigma, (1.2, 3.0))
    damaged.grade(("style",), sigma, (0.9, 3.0))
    damaged.grade(("object", "accessory", "pose"), sigma, (1.6, 4.0))
    damaged.grade(("background", "color") if everywhere else ("color",), sigma, (2.5, 20.0))


def spots(rng: np.random.Generator, damaged: Damaged) -> None:
    """Add smooth spots of any color, on the object or everywhere."""
    amount = float(rng.uniform(0.03, 1.0))
    where, everywhere = _near(rng, damaged.body)
    damaged.image = damaged.image + 127.5 * amount * where * smooth_noise(rng, float(rng.uniform(0.8, 6)), 3)
    damaged.image = np.clip(damaged.image, 0, 255)
    damaged.grade(("color", "material", "emblem"), amount, (0.2, 0.5))
    damaged.grade(("object", "accessory", "pose"), amount, (0.3, 0.75))
    damaged.grade(("style",), amount, (0.2, 0.7))
    if everywhere:
        damaged.grade(("background",), amount, (0.3, 0.9))


def noise(rng: np.random.Generator, damaged: Damaged) -> None:
    """Add noise that is independent at each pixel."""
    sigma = float(rng.uniform(0.02, 1.6))
    damaged.image = damaged.image + 127.5 * sigma * rng.standard_normal(damaged.image.shape).astype(np.float32)
    damaged.image = np.clip(damaged.image, 0, 255)
    damaged.grade(("material", "emblem", "style"), sigma, (0.25, 0.7))
    damaged.grade(("object", "accessory", "pose"), sigma, (0.35, 1.0))
    damaged.grade(("color", "background"), sigma, (0.4, 1.3))


def drain(rng: np.random.Generator, damaged: Damaged) -> None:
    """Take color away, and put an even tint in its place."""
    left, tint = float(rng.uniform(0, 1)), rng.uniform(0.7, 1.2, 3).astype(np.float32)
    where, everywhere = _near(rng, damaged.body)
    grey = damaged.image.mean(axis=2, keepdims=True) * tint
    damaged.image = np.clip(damaged.image + (1 - left) * where * (grey - damaged.image), 0, 255)
    damaged.grade(("color",), 1 - left, (0.3, 0.7))
    damaged.grade(("style", "accessory"), 1 - left, (0.4, 2.0))
    damaged.grade(("emblem",), 1 - left, (0.5, 2.0))
    if everywhere:
        damaged.grade(("background",), 1 - left, (0.4, 2.0))


FURTHER: Mapping[Callable[[np.random.Generator, Damaged], None], float] = {
    warp: 0.45, shuffle: 0.1, blur: 0.1, spots: 0.15, noise: 0.1, drain: 0.1,
}  # fmt: skip
"""Damage done to one picture -> how often it is chosen."""


def damaged_picture(seed: int, *, held_out: bool, values: Values = ATTRIBUTES) -> tuple[NDArray[np.uint8], list[int]]:
    """Make one damaged picture.

    Args:
        seed: decides everything.
        held_out: whether its scenes are ones that nothing is trained on.
        values: those of the world.

    Returns:
        uint8 [64, 64, 3], and its labels in the order of `ATTRIBUTES`.
    """
    rng, scenes = np.random.default_rng(seed), random.Random(seed)
    scene = random_scene(scenes, held_out, values)
    kind = rng.random()
    if kind < 0.3:
        damaged = blend(rng, scene, _variant(scene, scenes, held_out, values), (seed, seed), values)
    elif kind < 0.42:
        damaged = blend(rng, scene, random_scene(scenes, held_out, values), (seed, seed + 1), values)
    elif kind < 0.6:
        damaged = erase(rng, scene, seed)
    else:
        rendering = render(scene, seed)
        damaged = Damaged(rendering.image.astype(np.float32), _readings(scene), _body(rendering))
    if kind >= 0.6 or rng.random() < 0.15:
        further = list(FURTHER)
        further[int(rng.choice(len(further), p=list(FURTHER.values())))](rng, damaged)
    image = np.clip(np.round(damaged.image), 0, 255).astype(np.uint8)
    return image, [damaged.readings[name] for name in ATTRIBUTES]


def _variant(scene: Scene, rng: random.Random, held_out: bool, values: Values) -> Scene:
    """Return a scene that differs in one to three attributes."""
    while True:
        other = scene
        for name in rng.sample(list(ATTRIBUTES), rng.choice((1, 1, 1, 2, 3))):
            other = other.with_value(name, rng.choice(values[name]))
        if other != scene and is_held_out(other) == held_out:
            return other


CHUNK = 250
"""Pictures that one worker makes at a time."""


@dataclass(frozen=True)
class LabelledPool:
    """Pictures with labels for training or calibration.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        labels: int8 [N, 8], as of `damaged_picture`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int8]

    def joined(self, other: LabelledPool) -> LabelledPool:
        """Return these pictures and those of another pool."""
        return LabelledPool(np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]))


def _make_chunk(first: int, seed: int, held_out: bool, wide: bool) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    values = WIDE_ATTRIBUTES if wide else ATTRIBUTES
    seeds = range(seed * 1_000_003 + first, seed * 1_000_003 + first + CHUNK)
    made = [damaged_picture(one, held_out=held_out, values=values) for one in seeds]
    return np.stack([image for image, _ in made]), np.array([labels for _, labels in made], dtype=np.int8)


@torch.no_grad()
def through_autoencoder(vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pass pictures through the autoencoder.

    It leaves the traces that generated pictures have.

    Args:
        vae: the autoencoder.
        images: uint8 [N, 64, 64, 3].
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = vae.decode(encode(vae, x) / vae.config.scaling_factor).sample.float()
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def decoded_pool(pool: LabelledPool, vae: AutoencoderKL) -> LabelledPool:
    """Return the same pictures as the autoencoder reproduces them."""
    parts = [through_autoencoder(vae, pool.images[i : i + CHUNK]) for i in range(0, len(pool.images), CHUNK)]
    return LabelledPool(np.concatenate(parts), pool.labels)


@lru_cache(maxsize=2)
def damaged_pool(
    folder: Path, vae_folder: Path, size: int, seed: int, *, held_out: bool, workers: int = 2, wide: bool = False
) -> LabelledPool:
    """Make `size` damaged pictures, or read them if they are stored already.

    Every third one passes through the autoencoder.

    Args:
        folder: where the arrays are kept.
        vae_folder: the autoencoder's.
        size: number of pictures, a multiple of 250.
        seed: decides everything.
        held_out: whether their scenes are ones that nothing is trained on.
        workers: processes that make them.
        wide: whether they show the second world.
    """
    path = folder / f"{'wide-' if wide else ''}damaged_{size}_{seed}.npz"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
        images, labels = [], []
        with ProcessPoolExecutor(workers) as executor:
            firsts = range(0, size, CHUNK)
            chunks = executor.map(
                _make_chunk, firsts, [seed] * len(firsts), [held_out] * len(firsts), [wide] * len(firsts)
            )
            for some, their_labels in ProgressBar(chunks, title="damage", total=len(firsts)):
                some[::3] = through_autoencoder(vae, some[::3])
                images.append(some)
                labels.append(their_labels)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images=np.concatenate(images), labels=np.concatenate(labels))
        partial.rename(path)
    stored = np.load(path)
    return LabelledPool(stored["images"], stored["labels"])

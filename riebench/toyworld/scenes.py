"""The attributes of a toy-world picture, and the edit that changes each.

A scene is a full assignment of eight attributes. Each of the benchmark's nine edit categories changes one of
them, so the truth of every edit is known (see `networks/judging/training.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

from riebench.scoring.metrics.judge_network import ATTRIBUTES, WIDE_ATTRIBUTES, Values

DEFAULTS: dict[str, str] = {name: values[0] for name, values in ATTRIBUTES.items() if name not in ("object", "color")}
"""Values that a caption may leave out. It always names object and color."""

CATEGORY_ATTRIBUTE: dict[str, str] = {
    "change_object": "object",
    "add_object": "accessory",
    "delete_object": "accessory",
    "change_content": "emblem",
    "change_pose": "pose",
    "change_color": "color",
    "change_material": "material",
    "change_background": "background",
    "change_style": "style",
}
"""Edit category -> the attribute it changes, in the benchmark's order (category id = position + 1)."""

HELD_OUT_SHARE = 10
"""One in this many scenes is never trained on."""


@dataclass(frozen=True)
class Scene:
    """One assignment of all attributes that the caption grammar can describe.

    Raises:
        ValueError: if a value is not one of `WIDE_ATTRIBUTES`; the message lists what is accepted.
    """

    object: str
    color: str
    material: str = "plain"
    emblem: str = "none"
    accessory: str = "none"
    pose: str = "upright"
    background: str = "white"
    style: str = "drawing"

    def __post_init__(self) -> None:
        for name, values in WIDE_ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in values:
                raise ValueError(f"{name} {value!r} is not in the toy world; accepted: {', '.join(values)}")

    def labels(self) -> tuple[int, ...]:
        """Return the index of each attribute's value, in the order of `ATTRIBUTES`.

        It is the same in both worlds.
        """
        return tuple(values.index(getattr(self, name)) for name, values in WIDE_ATTRIBUTES.items())

    def with_value(self, attribute: str, value: str) -> Scene:
        """Return the same scene with one attribute changed."""
        return replace(self, **{attribute: value})

    def as_dict(self) -> dict[str, str]:
        """Return a mapping from attribute name to value."""
        return asdict(self)


def all_scenes(values: Values = ATTRIBUTES) -> Iterator[Scene]:
    """Yield every scene of a world (124 416 of the first), in a fixed order."""
    names = [f.name for f in fields(Scene)]
    for some in itertools.product(*(values[name] for name in names)):
        yield Scene(**dict(zip(names, some, strict=True)))


def is_held_out(scene: Scene) -> bool:
    """Return whether the scene is kept out of all training.

    A hash of its attributes decides, so that the answer never changes.
    """
    text = "|".join(scene.as_dict().values())
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % HELD_OUT_SHARE == 0


def random_scene(rng: random.Random, held_out: bool | None = None, values: Values = ATTRIBUTES) -> Scene:
    """Draw a scene uniformly at random.

    Args:
        rng: the source of randomness.
        held_out: keep only held-out (True) or only training scenes (False); None takes any.
        values: those of the world.
    """
    while True:
        scene = Scene(**{name: rng.choice(some) for name, some in values.items()})
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def random_edit(
    category: str, rng: random.Random, held_out: bool | None = True, values: Values = ATTRIBUTES
) -> tuple[Scene, Scene]:
    """Draw a (source, target) pair that differs in the category's attribute alone.

    Args:
        category: a key of `CATEGORY_ATTRIBUTE`.
        rng: the source of randomness.
        held_out: as in `random_scene`, for both scenes.
        values: those of the world.
    """
    attribute = CATEGORY_ATTRIBUTE[category]
    while True:
        source = random_scene(rng, held_out, values)
        before = getattr(source, attribute)
        others = [value for value in values[attribute] if value != before]
        if category == "add_object":
            if before != "none":
                continue
        elif category == "delete_object":
            if before == "none":
                continue
            others = ["none"]
        target = source.with_value(attribute, rng.choice(others))
        if held_out is None or is_held_out(target) == held_out:
            return source, target

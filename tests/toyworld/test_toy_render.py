"""The renderer: equal arguments give equal pixels, and every attribute shows where it should."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.render import render
from riebench.toyworld.scenes import Scene, random_scene

SCENES = st.integers(0, 2**32).map(lambda seed: random_scene(random.Random(seed)))


@settings(max_examples=25, deadline=None)
@given(scene=SCENES, seed=st.integers(0, 2**31))
def test_masks_share_out_the_picture(scene: Scene, seed: int) -> None:
    rendering = render(scene, seed)
    masks = rendering.masks
    assert rendering.image.shape == (64, 64, 3) and rendering.image.dtype == np.uint8
    cover = masks["object"].astype(int) + masks["accessory"] + masks["background"]
    assert (cover == 1).all()
    assert masks["accessory"].any() == (scene.accessory != "none")
    assert masks["emblem"].any() == (scene.emblem != "none")
    assert not (masks["emblem"] & ~masks["object"]).any()
    assert 0.08 < masks["object"].mean() < 0.5


@settings(max_examples=15, deadline=None)
@given(scene=SCENES, seed=st.integers(0, 2**31))
def test_equal_arguments_give_equal_pixels_and_seeds_differ_a_little(scene: Scene, seed: int) -> None:
    first, again, other = render(scene, seed), render(scene, seed), render(scene, seed + 1)
    assert (first.image == again.image).all()
    assert (first.image != other.image).any()
    assert np.abs(first.image.astype(int) - other.image).mean() < 40


@pytest.mark.parametrize("attribute", list(ATTRIBUTES))
def test_every_value_of_an_attribute_looks_different(attribute: str) -> None:
    scene = Scene("house", "red", material="dotted", emblem="heart", accessory="hat", background="sky")
    pictures = [render(scene.with_value(attribute, value), 5).image for value in ATTRIBUTES[attribute]]
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            changed = (np.abs(one.astype(int) - other).max(axis=2) > 30).mean()
            assert changed > 0.01


def test_an_edit_of_the_background_leaves_the_object_alone() -> None:
    scene = Scene("cat", "blue", accessory="bow")
    before, after = render(scene, 3), render(scene.with_value("background", "forest"), 3)
    inside = before.masks["object"] & after.masks["object"]
    eroded = inside[1:-1, 1:-1] & inside[2:, 1:-1] & inside[:-2, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2]
    difference = np.abs(before.image.astype(int) - after.image)[1:-1, 1:-1].max(axis=2)
    assert difference[eroded].max() <= 1
    assert difference[~before.masks["object"][1:-1, 1:-1]].mean() > 10

from __future__ import annotations

import random

import pytest

from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.tasks.schema import CATEGORIES
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, all_scenes, is_held_out, random_edit


def test_the_whole_world_is_listed_once() -> None:
    scenes = list(all_scenes())
    assert len(scenes) == len(set(scenes)) == 124_416
    share = sum(map(is_held_out, scenes)) / len(scenes)
    assert share == pytest.approx(0.1, abs=0.01)


def test_labels_and_values_agree() -> None:
    scene = Scene("cat", "green", "dotted", "heart", "bow", "tilted", "night", "pixel")
    values = [ATTRIBUTES[name][label] for name, label in zip(ATTRIBUTES, scene.labels(), strict=True)]
    assert values == list(scene.as_dict().values())


def test_a_value_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="color 'gold' is not in the toy world; accepted: red, "):
        Scene("cat", "gold")


def test_categories_are_the_benchmarks() -> None:
    assert list(CATEGORY_ATTRIBUTE) == list(CATEGORIES)


@pytest.mark.parametrize("category", CATEGORY_ATTRIBUTE)
def test_an_edit_changes_its_attribute_alone(category: str) -> None:
    rng = random.Random(1)
    for _ in range(5):
        source, target = random_edit(category, rng)
        changed = {name for name in ATTRIBUTES if getattr(source, name) != getattr(target, name)}
        assert changed == {CATEGORY_ATTRIBUTE[category]}
        assert is_held_out(source) and is_held_out(target)
        if category == "add_object":
            assert source.accessory == "none"
        if category == "delete_object":
            assert target.accessory == "none"

"""CLIP selectivity with planted embeddings: a change along the wish counts, one along another attribute costs."""

from __future__ import annotations

import numpy as np
import pytest

from riebench.scoring.metrics.base import Reason, Sample
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.metrics.probes import EDITED, PROBES, clip_selectivity, probe_directions
from riebench.tasks.schema import CATEGORIES
from riebench.toyworld.captions import parse

ATTRIBUTES = list(PROBES)
WIDTH = 8 * len(ATTRIBUTES) + 1
"""Eight axes for each attribute, of which a caption of its probes takes one, and one for what pictures share."""


def text_axis(text: str) -> int:
    return next(8 * at + PROBES[name].index(text) for at, name in enumerate(ATTRIBUTES) if text in PROBES[name])


def networks(changes: dict[int, np.ndarray]) -> Networks:
    """A CLIP whose texts have axes of their own, and whose pictures are told by their first pixel."""

    def texts(batch: list[str]) -> np.ndarray:
        found = np.zeros((len(batch), WIDTH))
        for row, text in enumerate(batch):
            found[row, -1 if text == "nothing" else text_axis(text)] = 1
        return found

    def pictures(batch: list[np.ndarray]) -> np.ndarray:
        return np.stack([changes[int(one[0, 0, 0])] for one in batch])

    return Networks(ready={"clip": ClipScorer(pictures, texts)})


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


def sample(number: int, category: str, target: str = "a blue house", source: str = "an orange house") -> Sample:
    shape = (8, 8, 3)
    return Sample(
        np.full(shape, number, np.uint8), np.zeros(shape, np.uint8), np.ones(shape[:2], bool), source, target,
        category=category,
    )  # fmt: skip


def test_selectivity_is_the_change_along_the_wish_minus_changes_along_other_attributes() -> None:
    source, step = np.zeros(WIDTH), 0.1
    source[-1] = 1
    wish, other = np.zeros(WIDTH), np.zeros(WIDTH)
    wish[[text_axis("a blue house"), text_axis("an orange house")]] = 1, -1
    other[text_axis("a tilted red house")] = 1
    ready = networks({0: source, 1: source + step * wish, 2: source + step * other})
    directions = probe_directions(ready.get("clip"))

    def expected(change: np.ndarray, own: str) -> float:
        moved = unit(source + change) - source
        others = [np.abs(its @ moved).mean() for name, its in directions.items() if name != own]
        return float(moved @ wish / np.linalg.norm(wish) - np.mean(others))

    wished, unwished = clip_selectivity([sample(1, "change_color"), sample(2, "change_color")], ready)
    assert wished == pytest.approx(expected(step * wish, "color"), abs=1e-12)
    assert unwished == pytest.approx(expected(step * other, "color"), abs=1e-12)
    assert float(wished) > 0.1 > 0 > float(unwished)
    # Where poses are what is to change, the same change of pose costs nothing beside what colors make of it.
    (own,) = clip_selectivity([sample(2, "change_pose")], ready)
    assert own == pytest.approx(expected(step * other, "pose"), abs=1e-12) and float(own) > float(unwished)


def test_prompts_that_clip_cannot_tell_apart_have_no_selectivity_and_no_edit_has_none() -> None:
    source = np.ones(WIDTH)
    ready = networks({0: source, 1: 2 * source})
    assert clip_selectivity([sample(1, "change_color", "a blue house", "a blue house")], ready) == [Reason.SAME_PROMPTS]
    assert clip_selectivity([sample(0, "change_color")], ready) == [0.0]


def test_every_category_has_an_attribute_whose_probes_both_worlds_can_read() -> None:
    assert set(EDITED) == set(CATEGORIES) and set(EDITED.values()) == set(PROBES)
    for captions in PROBES.values():
        scenes = [parse(caption).as_dict() for caption in captions]
        differing = [name for name in scenes[0] if len({scene[name] for scene in scenes}) > 1]
        assert len(differing) == 1 and len({scene[differing[0]] for scene in scenes}) == len(captions)

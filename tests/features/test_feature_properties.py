"""Properties and labels of single features: the formulas, and the pictures they are computed on."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_saes

from riebench.errors import RiebenchError
from riebench.features.activity import Picture
from riebench.features.labels import enriched_value, enriched_words, read_labels
from riebench.features.random_features import random_baseline
from riebench.features.random_features.properties import (
    active_region,
    color_change,
    locality,
    mean_pairwise_cosine,
    purity,
    random_directions,
    texture_change,
)
from riebench.features.random_features.random_baseline import EDITED, STRONGEST, FeatureMeasurement, FeatureOptions
from riebench.generation.edits import Edit
from riebench.generation.generator import Capture, Generator
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import model_saes
from riebench.scoring.metrics.base import UNREADABLE
from riebench.scoring.metrics.networks import Networks

BLOCK = "mid.0"
PICTURES = tuple(Picture(f"a {color} {noun}", seed) for seed, (color, noun) in enumerate(
    (color, noun) for color in ("red", "blue", "green") for noun in ("cat", "house", "boat", "car")
))  # fmt: skip


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (32, 32, 3)).astype(np.uint8)


def test_specificity_is_the_mean_over_pairs() -> None:
    embeddings = np.random.default_rng(0).normal(size=(5, 4))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = [float(a @ b) for a, b in combinations(embeddings, 2)]
    assert mean_pairwise_cosine(embeddings) == pytest.approx(np.mean(pairs))
    assert mean_pairwise_cosine(np.repeat(embeddings[:1], 3, axis=0)) == pytest.approx(1)


def test_purity_is_that_of_the_attribute_that_agrees_most() -> None:
    read = [{"color": "red", "pose": "tilted"}, {"color": "red", "pose": "upright"}, {"color": "blue", "pose": "x"}]
    assert purity(read) == pytest.approx(2 / 3)
    assert purity([{"color": UNREADABLE}, {"color": UNREADABLE}, {"color": "red"}]) == pytest.approx(1 / 3)


def test_locality_does_not_depend_on_the_size_of_the_region() -> None:
    clean, region = noise(0), np.zeros((32, 32), dtype=bool)
    region[:4, :8] = True
    inside = np.where(region[..., None], clean + 20, clean).astype(np.uint8)
    assert locality(clean, inside, region) == 1 and locality(clean, inside, ~region) == 0
    assert locality(clean, (clean + 20).astype(np.uint8), region) == pytest.approx(0.5)
    triple = np.where(region[..., None], clean + 30, clean + 10).astype(np.uint8)
    assert locality(clean, triple, region) == pytest.approx(0.75)
    assert locality(clean, clean, region) is None
    assert locality(clean, inside, np.ones_like(region)) is None


def test_each_position_is_a_square_of_the_picture() -> None:
    region = active_region(np.array([[0, 0.5], [0, 0]], dtype=np.float32), (8, 8))
    assert region[:4, 4:].all() and region.sum() == 16


def test_color_and_texture_tell_apart_what_changed() -> None:
    clean = noise(1)
    redder = clean.copy()
    redder[..., 0] += 51
    assert color_change(clean, redder) == pytest.approx(0.2) and texture_change(clean, redder) == pytest.approx(0)
    elsewhere = np.roll(clean, (8, 16), axis=(0, 1))
    assert color_change(clean, elsewhere) == pytest.approx(0) and texture_change(clean, elsewhere) == pytest.approx(0)
    flat = np.full((32, 32, 3), 100, np.uint8)
    checkered = flat.copy()
    checkered[::2, ::2], checkered[1::2, 1::2] = 151, 151
    checkered[1::2, ::2], checkered[::2, 1::2] = 49, 49
    # Every square of two by two pixels loses 51 of 255, and nothing is left for the coarser bands.
    assert texture_change(flat, checkered) == pytest.approx(0.2) and color_change(flat, checkered) == pytest.approx(0)
    coarse = checkered.repeat(4, axis=0).repeat(4, axis=1)[:32, :32]
    assert texture_change(flat, coarse) == pytest.approx(0.2)


def loaded() -> SparseAutoencoder:
    return model_saes(str(tiny_saes()), tiny_model(), [BLOCK])[BLOCK]


def test_random_directions_change_nothing_but_what_features_write() -> None:
    sae = loaded()
    before = sae.directions.clone()
    made, again = random_directions(sae, [3, 5]), random_directions(sae, [5])
    assert torch.equal(sae.directions, before)
    changed = (made.directions != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 5] and torch.equal(made.directions[5], again.directions[5])
    assert torch.allclose(made.directions.norm(dim=1), torch.ones(sae.n))
    assert abs(float(made.directions[3] @ made.directions[5])) < 0.9
    x = torch.randn(6, sae.d)
    assert torch.equal(made.contributions(x), sae.contributions(x))


def test_labels_are_what_is_more_frequent_than_usual() -> None:
    usual = [{"color": c, "accessory": a} for c in ("red", "blue") for a in ("none", "hat")]
    assert enriched_value([usual[0], usual[1], usual[3]], usual) == ("color", "red")
    assert enriched_value([usual[0], usual[2]], usual) is None, "what is absent labels nothing"
    unclear = [dict.fromkeys(one, UNREADABLE) for one in usual]
    assert enriched_value(unclear, [*usual, *unclear]) is None, "what cannot be read labels nothing"
    prompts = ["a red cat on the sofa", "the Red car on a road", "a blue car", "a cat on grass"]
    assert enriched_words(prompts[:2], prompts) == "red"
    assert enriched_words([prompts[0], prompts[3]], prompts) == "cat"
    assert enriched_words([prompts[2], prompts[3]], prompts) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block,index\n", "the first line must be block,feature,label"),
        ("block,feature,label\n", "it holds no label"),
        ("block,feature,label\nmid.0,x,cat\n", "row 2 is no label"),
        ("block,feature,label\nmid.0,1,\n", "row 2 is no label"),
        ("block,feature,label\nmid.0,1,cat\nmid.0,1,dog\n", "row 3 labels feature 1 of mid.0 a second time"),
    ],
)
def test_wrong_labels_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(RiebenchError, match=message):
        read_labels(path)
    with pytest.raises(RiebenchError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_labels_are_read_as_spreadsheets_write_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes('﻿block,feature,label\r\nmid.0,3,"a cat, asleep"\r\n\r\nmid.0,1,dog\r\n'.encode())
    assert read_labels(path) == {"mid.0": {3: "a cat, asleep", 1: "dog"}}


def test_features_are_measured_on_the_pictures_that_the_definitions_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # The random model answers to large edits only.
    monkeypatch.setattr(random_baseline, "STRENGTH", 100.0)
    model, sae, networks = tiny_model(), loaded(), Networks("toy-clip")
    options = FeatureOptions(PICTURES, 3, batch_size=12, progress=False)
    ((block, found),) = FeatureMeasurement(model, {BLOCK: sae}, networks, options).run()
    assert block == BLOCK and len(found) == 3
    generator, one = Generator(model), found[0]
    index = one.chosen.index
    prompts, seeds = [p.prompt for p in PICTURES], [p.seed for p in PICTURES]
    made = generator.generate(prompts, seeds, capture=Capture((BLOCK,)))
    peaks = torch.stack([sae.contributions(made.trace.row(BLOCK, row))[..., index].amax() for row in range(12)])
    assert set(one.chosen.strongest) == set(peaks.topk(STRONGEST).indices.tolist())
    assert one.chosen.value == pytest.approx(float(peaks.max()), rel=1e-5)
    assert not set(one.chosen.others) & set(one.chosen.strongest) and len(set(one.chosen.drawn)) == STRONGEST
    embeddings = networks.get("clip").pictures(list(made.images))
    assert one.own["specificity"] == pytest.approx(mean_pairwise_cosine(embeddings[list(one.chosen.strongest)]))
    assert one.random["specificity"] == pytest.approx(mean_pairwise_cosine(embeddings[list(one.chosen.drawn)]))

    class Pushed:
        """The feature added by hand."""

        nbytes = 0

        def __init__(self, direction: torch.Tensor) -> None:
            self.direction = direction

        def delta(self, step: int, live: torch.Tensor) -> torch.Tensor:
            return (100 * one.chosen.value * self.direction).expand_as(live)

    for directions, values in ((sae, one.own), (random_directions(sae, [index]), one.random)):
        edit = Edit({BLOCK: Pushed(directions.directions[index])})
        others = list(one.chosen.others)
        edited = generator.generate(
            [prompts[i] for i in others], [seeds[i] for i in others], edits=[edit] * EDITED
        ).images  # fmt: skip
        changes = [color_change(made.images[place], image) for place, image in zip(others, edited, strict=True)]
        assert values["color"] == pytest.approx(np.mean(changes), rel=0.05) and np.mean(changes) > 0.0005
        assert one.label is not None
        cosines = networks.get("clip").pictures(list(edited)) @ networks.get("clip").texts([one.label.text])[0]
        assert values["causality"] == pytest.approx(cosines.mean(), abs=0.01)
    assert 0 <= float(one.own["locality"] or 0) <= 1

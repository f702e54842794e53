"""SAEs of known quality: the true dictionary on planted directions, truth without edits, and the making of rungs."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sae_collections
import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.models.families.sdxl.names import BLOCKS
from riebench.sae_validity import rungs
from riebench.sae_validity.rungs import NAMES, RUNGS, make_rungs, read_quality
from riebench.sae_validity.scenes import PairUpdates, SceneUpdates, alike_captions
from riebench.sae_validity.true_dictionary import TrueFeatures, save_true, true_dictionary, value_directions
from riebench.sae_validity.truth import areas, measure_truth
from riebench.saes.formats import load_sae, load_saes
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.captions import parse
from riebench.toyworld.scenes import is_held_out
from riebench.training.many import train_many
from riebench.training.settings import SaeTraining

WIDTH, POSITIONS, SHOWN = 32, 16, 4
"""Channels, positions of a picture, and those at which colours show."""
PLANTED = {"mid.0": "color", "up.0.1": "pose"}
"""Block -> the one attribute that it carries; other blocks carry nothing."""


def planted(attribute: str) -> Tensor:
    """Directions of an attribute's values: [values, WIDTH], far above the noise and not orthogonal."""
    generator = torch.Generator().manual_seed(len(attribute))
    return 4 * torch.randn(len(ATTRIBUTES[attribute]), WIDTH, generator=generator)


def noise(seed: int, *shape: int) -> Tensor:
    """Updates [..., POSITIONS, WIDTH] of nothing."""
    return torch.randn(*shape, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(seed))


def pairs(seed: int, scenes: int = 8) -> PairUpdates:
    values: dict[str, dict[str, Tensor]] = {}
    for number, block in enumerate(BLOCKS):
        for place, (attribute, words) in enumerate(ATTRIBUTES.items()):
            rows = noise(seed * 1000 + number * 10 + place, scenes, 1).expand(-1, len(words), -1, -1).clone()
            if PLANTED.get(block) == attribute:
                rows[:, :, :SHOWN] += planted(attribute)[:, None]
            values.setdefault(block, {})[attribute] = rows.half()
    return PairUpdates(values)


def scenes(count: int = 240) -> SceneUpdates:
    generator = torch.Generator().manual_seed(4)
    labels = torch.stack([torch.randint(len(v), (count,), generator=generator) for v in ATTRIBUTES.values()], dim=1)
    updates = {}
    for number, block in enumerate(BLOCKS):
        rows = noise(77 + number, count)
        if block in PLANTED:
            attribute = PLANTED[block]
            rows[:, :SHOWN] += planted(attribute)[labels[:, list(ATTRIBUTES).index(attribute)]][:, None]
        updates[block] = rows.half()
    return SceneUpdates(updates, labels)


def as_sae(features: TrueFeatures) -> SparseAutoencoder:
    parts = (features.encoder, features.directions, features.center, features.center, features.latent_bias)
    return SparseAutoencoder(*parts, activation="jump", threshold=features.threshold)


def test_the_true_dictionary_has_the_planted_directions_and_fires_where_they_are() -> None:
    found = true_dictionary(pairs(1), "mid.0")
    assert found.names == tuple(f"color:{value}" for value in ATTRIBUTES["color"])
    directions = planted("color")
    # A value against the mean of the others: that is what changing the value adds.
    against = torch.nn.functional.normalize(directions - directions.mean(dim=0), dim=1)
    assert (found.directions * against).sum(dim=1).min() > 0.98
    held_out = scenes()
    codes = as_sae(found).encode(held_out.updates["mid.0"].float())
    for index, value in enumerate(ATTRIBUTES["color"]):
        has = held_out.has("color", value)
        active = codes[..., index] > 0
        assert active[has, :SHOWN].float().mean() > 0.95 and active[~has, :SHOWN].float().mean() < 0.05
        amount = (directions[index] - directions.mean(dim=0)).norm() * 6 / 5
        assert float(codes[has, :SHOWN, index].mean()) == pytest.approx(float(amount), rel=0.1)


def test_a_block_that_carries_nothing_gets_one_feature_that_is_never_active(tmp_path: Path) -> None:
    some = pairs(1)
    assert [one.name for one in value_directions(some, "down.2.1") if one.carried] == []
    assert {one.attribute for one in value_directions(some, "up.0.1") if one.carried} == {"pose"}
    x = some.positions("down.2.1").float()
    save_true(true_dictionary(some, "down.2.1"), x, tmp_path / "final", "down.2.1")
    sae = load_sae(tmp_path)
    assert (sae.n, sae.block) == (1, "down.2.1") and not bool(sae.encode(1000 * x).any())


def test_a_written_true_dictionary_reads_back_the_same(tmp_path: Path) -> None:
    features = true_dictionary(pairs(1), "mid.0")
    x = pairs(2).positions("mid.0").float()
    save_true(features, x, tmp_path / "final", "mid.0")
    sae = load_sae(tmp_path)
    assert torch.allclose(sae.encode(x), features.codes(x), atol=1e-4) and bool(sae.encode(x).any())


def test_truth_is_high_for_the_true_dictionary_and_low_for_random_features() -> None:
    held_out, others = scenes(), pairs(9)
    directions = {block: value_directions(others, block) for block in BLOCKS}
    true = {block: as_sae(true_dictionary(pairs(1), block)) for block in BLOCKS}
    rows = torch.nn.functional.normalize(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)
    zeros = torch.zeros(WIDTH)
    chance = dict.fromkeys(BLOCKS, SparseAutoencoder(rows, rows, zeros, zeros, torch.zeros(64), k=4))
    found = {
        name: measure_truth(saes, held_out, directions) for name, saes in (("true", true), ("chance", chance))
    }  # fmt: skip
    values = [(block, f"{name}:{value}") for block, name in PLANTED.items() for value in ATTRIBUTES[name]]
    for entries in found.values():
        assert sorted((one.block, one.value) for one in entries) == sorted(values)
    assert min(one.truth for one in found["true"]) > 0.9
    assert max(one.truth for one in found["chance"]) < 0.8
    turned = {block: as_sae(replace(true_dictionary(pairs(1), block), directions=-rows[:1])) for block in ("down.2.1",)}
    assert measure_truth(turned, held_out, directions) == []
    # A feature that tells the value but writes the opposite direction knows nothing about it.
    features = true_dictionary(pairs(1), "mid.0")
    opposite = {"mid.0": as_sae(replace(features, directions=-features.directions))}
    by_value = {one.value: one for one in measure_truth(opposite, held_out, directions)}
    assert max(one.truth for one in by_value.values()) < 0.5


def test_areas_count_pairs_in_the_right_order() -> None:
    levels = torch.tensor([[0.1, 1, 3], [0.4, 1, 2], [0.35, 1, 1], [0.8, 1, 0.0]])
    has = torch.tensor([False, False, True, True])
    assert areas(levels, has).tolist() == [0.75, 0.5, 0.0]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_alike_captions_differ_in_one_attribute(attribute: str) -> None:
    rng = random.Random(3)
    for held_out in (True, False):
        found = [parse(sentence) for sentence in alike_captions(attribute, rng, held_out)]
        assert [getattr(scene, attribute) for scene in found] == list(ATTRIBUTES[attribute])
        assert len({scene.with_value(attribute, ATTRIBUTES[attribute][0]) for scene in found}) == 1
        assert any(is_held_out(scene) == held_out for scene in found)


def test_rungs_have_an_order_within_their_families() -> None:
    families = {rung.family for rung in RUNGS}
    assert families == {"training", "k", "width", "twin", "dictionary", "truth"}
    for family in families:
        orders = [rung.order for rung in RUNGS if rung.family == family]
        ordered = family in ("training", "k", "width")
        assert orders == (list(range(len(orders))) if ordered else [None] * len(orders))
    assert len({rung.name: rung.seeds for rung in RUNGS}) == len(NAMES) == 20
    assert all(len({one.seeds for one in RUNGS if one.name == name}) == 1 for name in NAMES)
    steps = [rungs._settings(rung.name, 0, "mid.0")[1].steps or 0 for rung in RUNGS if rung.family == "training"][1:]
    assert all(before < after for before, after in pairwise(steps))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Rungs of made-up updates of 32 channels; returns what was trained or computed."""
    made: list[str] = []
    monkeypatch.setattr(sae_collections, "WIDTH", WIDTH)
    monkeypatch.setattr(rungs, "load_model", lambda *_, **__: SimpleNamespace(spec=SimpleNamespace(identity="m")))
    collection = sae_collections.stored(tmp_path / "updates", blocks=BLOCKS)
    monkeypatch.setattr(rungs, "collect", lambda *_, **__: collection)
    monkeypatch.setattr(rungs, "pair_updates", lambda *_, seed, **__: pairs(seed))
    monkeypatch.setattr(rungs, "scene_updates", lambda *_, **__: scenes())
    monkeypatch.setattr(rungs, "BATCH", 64)
    usual = SaeTraining(features=48, k=4, recipe="published", learning_rate=1e-2)
    monkeypatch.setattr(rungs, "configuration", lambda block, k: replace(usual, k=k, seed=BLOCKS.index(block)))
    monkeypatch.setattr(rungs, "FULL_STEPS", 6)
    train = train_many

    def noted(*args: Any, **options: Any) -> Any:
        made.append(options["name"])
        if len(made) == 6:
            raise KeyboardInterrupt
        return train(*args, **{**options, "progress": False})

    monkeypatch.setattr(rungs, "train_many", noted)
    return made


@pytest.mark.training
def test_rungs_resume_and_carry_their_quality(small: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    wanted = ("steps_2", "full", "neurons", "true_dictionary")
    with pytest.raises(KeyboardInterrupt):
        make_rungs(work, seeds=(0, 2), rungs=wanted)
    found = make_rungs(work, seeds=(0, 2), rungs=wanted)
    # The sixth training was interrupted, and only it was begun twice.
    assert len(small) == 17 and len(set(small)) == 16
    assert [*found] == [
        ("steps_2", 0), ("steps_2", 2), ("full", 0), ("full", 2), ("neurons", 0), ("true_dictionary", 0),
    ]  # fmt: skip
    for (name, seed), folder in found.items():
        saes, quality = load_saes(folder, BLOCKS), read_quality(folder)
        assert (quality.rung, quality.training_seed, [*quality.blocks]) == (name, seed, [*BLOCKS])
        assert quality.blocks["down.2.1"].truth is None and len(quality.values) == 9
        assert quality.truth == pytest.approx(sum(one.truth for one in quality.values) / 9, abs=1e-3)
        assert saes["mid.0"].d == WIDTH
    truth = {key: read_quality(folder).truth for key, folder in found.items()}
    assert max(truth, key=lambda key: truth[key]) == ("true_dictionary", 0)
    first, other = (load_saes(found["full", seed], ["mid.0"])["mid.0"].encoder for seed in (0, 2))
    assert not torch.allclose(first, other)
    # The lock is taken, and older versions of filelock write to it.
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file() and path.name != ".lock"}
    assert make_rungs(work, seeds=(0, 2), rungs=wanted) == found and len(small) == 17
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.training
def test_rungs_of_other_settings_are_not_mixed(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_rungs(tmp_path / "work", seeds=(0,), rungs=["true_dictionary"])
    monkeypatch.setattr(rungs, "FULL_STEPS", 7)
    with pytest.raises(RiebenchError, match="rungs of other settings"):
        make_rungs(tmp_path / "work", seeds=(0,), rungs=["true_dictionary"])


def test_what_is_no_rung_is_refused(tmp_path: Path) -> None:
    for options, says in (
        ({"rungs": ["step_2"]}, "no rung 'step_2'"),
        ({"model": "sdxl-turbo"}, "is not known; take toy-turbo"),
        ({"seeds": ()}, "at least one training seed"),
    ):
        wanted: dict[str, Any] = options
        with pytest.raises(RiebenchError, match=says):
            make_rungs(tmp_path / "work", **wanted)
    with pytest.raises(RiebenchError, match="no finished rung"):
        read_quality(tmp_path)

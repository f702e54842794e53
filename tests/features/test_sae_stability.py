"""Features found again over training seeds: definitions, properties, and `riebench sae stability`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_collections import sparse
from tiny import CHANNELS, FEATURES, SPARSITY, tiny_folder, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.features.cards.stability import (
    BINS,
    FeatureSet,
    Floats,
    StabilityReport,
    StoredSae,
    block_stability,
    compare,
    cosine_histogram,
    seed_groups,
    stored_rates,
    subspace_agreement,
)
from riebench.features.cards.stability_text import stability_text
from riebench.saes.formats import folder_name, save_sdxl_unbox
from riebench.saes.sae import Activation, SparseAutoencoder
from riebench.store.invocations import Invocation
from riebench.training.batches import DataPass
from riebench.training.many import train_many
from riebench.training.settings import SaeTraining

RUNNER = CliRunner()
SHAPES = st.tuples(st.integers(2, 14), st.integers(3, 8), st.integers(0, 10_000))


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def features(rows: Floats, encoder: Floats | None = None, *, signed: bool = False) -> FeatureSet:
    decoder = unit(np.asarray(rows, float))
    return FeatureSet(decoder, decoder if encoder is None else unit(encoder), np.ones(len(decoder)), signed)


def drawn(n: int, d: int, seed: int) -> FeatureSet:
    generator = np.random.default_rng(seed)
    rows = unit(generator.standard_normal((n, d)))
    return FeatureSet(rows, unit(generator.standard_normal((n, d))), generator.uniform(0.1, 1, n))


def shuffled(one: FeatureSet, seed: int) -> FeatureSet:
    order = np.random.default_rng(seed).permutation(len(one.weights))
    return FeatureSet(one.decoder[order], one.encoder[order], one.weights[order], one.signed)


def sae(n: int, seed: int, *, activation: Activation = "topk", d: int = 6) -> SparseAutoencoder:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    zeros = torch.zeros(d)
    return SparseAutoencoder(
        rows, rows, zeros, zeros, torch.zeros(n), k=2, activation=activation, block="mid.0", sha256=f"{seed:064d}"
    )


def stored_sae(n: int, seed: int, place: str = "", **options: int) -> StoredSae:
    return StoredSae(place or f"seed{seed}", Path(f"/nowhere/{place}{seed}"), sae(n, seed, d=options.get("d", 6)))


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_a_dictionary_in_another_order_is_found_again_whole(shape: tuple[int, int, int]) -> None:
    one = drawn(*shape)
    found = compare(one, shuffled(one, shape[2]))
    assert (found.figures.share_found, found.figures.share_close, found.figures.share_strict) == (1, 1, 1)
    assert (found.figures.share_mutual, found.figures.mean_cosine, found.figures.subspace) == (1, 1, 1)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(2, 14))
def test_figures_depend_neither_on_the_order_of_features_nor_on_that_of_saes(
    shape: tuple[int, int, int], others: int
) -> None:
    one, other = drawn(*shape), drawn(others, shape[1], shape[2] + 1)
    first = compare(one, other)
    for again in (compare(shuffled(one, 5), shuffled(other, 6)), compare(other, one)):
        assert again.directions == first.directions
        for name, value in first.figures.model_dump().items():
            assert getattr(again.figures, name) == pytest.approx(value, abs=2e-6), name


def test_random_dictionaries_share_nothing_and_their_subspaces_agree_by_chance() -> None:
    found = compare(drawn(200, 64, 0), drawn(200, 64, 1))
    assert (found.figures.share_found, found.figures.share_mutual, found.figures.share_strict) == (0, 0, 0)
    assert found.figures.mean_cosine < 0.45
    assert found.figures.subspace == pytest.approx(found.directions / 64, abs=0.06)


def test_a_match_is_one_to_one_and_thresholds_are_met_by_equality() -> None:
    angle = np.arccos(0.7)
    one = features(np.array([[1, 0, 0], [1, 0.1, 0]], float))
    other = features(np.array([[1, 0.05, 0], [0, 0, 1.0]], float))
    # Both features of the one are nearest to the same of the other; only one of them can have it.
    assert compare(one, other).figures.share_found == 0.5
    exact = features(np.array([[np.cos(angle), np.sin(angle), 0]]))
    assert compare(features(np.array([[1.0, 0, 0]])), exact).cosines[0] == pytest.approx(0.7)
    near, far = (features(np.array([[c, np.sqrt(1 - c * c), 0]])) for c in (0.91, 0.89))
    axis = features(np.array([[1.0, 0, 0]]))
    assert [compare(axis, some).figures.share_close for some in (near, far)] == [1, 0]
    assert [compare(axis, some).figures.share_found for some in (near, far)] == [1, 1]


def test_both_sides_asks_that_encoders_match_the_same_features() -> None:
    rows = np.eye(4)
    swapped = compare(features(rows), features(rows, rows[[1, 0, 2, 3]]))
    assert (swapped.figures.share_found, swapped.figures.share_strict) == (1, 0.5)


def test_a_direction_and_its_opposite_are_one_feature_only_where_values_have_both_signs() -> None:
    rows = np.random.default_rng(3).standard_normal((10, 24))
    assert compare(features(rows), features(-rows)).figures.share_found == 0
    assert compare(features(rows, signed=True), features(-rows, signed=True)).figures.share_found == 1
    kinds: dict[Activation, bool] = {"topk": False, "topk-signed": True, "abstopk": True}
    for activation, signed in kinds.items():
        assert FeatureSet.of(sae(8, 0, activation=activation)).signed is signed


def test_a_smaller_sae_is_looked_for_in_the_larger_one() -> None:
    large = drawn(30, 8, 4)
    small = FeatureSet(large.decoder[:7], large.encoder[:7], large.weights[:7])
    for found in (compare(small, large), compare(large, small)):
        assert found.figures.share_found == found.figures.share_strict == 1
        assert len(found.cosines) == 7


def test_subspaces_are_those_of_the_features_that_are_active_most() -> None:
    axes = np.eye(6)
    rows = np.concatenate([axes[:2], axes[2:4]])
    often, seldom = np.array([1, 1, 0.01, 0.01]), np.array([0.01, 0.01, 1, 1])
    first, same, other = (
        FeatureSet(rows, rows, weights) for weights in (often, often * np.array([1, 0.9, 1, 1]), seldom)
    )
    agreement, directions = subspace_agreement(first, same)
    assert agreement == pytest.approx(1) and directions == 2
    assert subspace_agreement(first, other)[0] == pytest.approx(0, abs=1e-6)
    # Directions of equal weight leave no choice of some of them.
    agreement, directions = subspace_agreement(features(axes), features(axes[::-1].copy()))
    assert agreement == pytest.approx(1) and directions == 6


def test_features_that_are_never_active_are_left_out() -> None:
    one = sae(8, 0)
    kept = FeatureSet.of(one, torch.tensor([0.5, 0, 0.1, 0, 0, 0, 0, 0.2]))
    assert kept.decoder.shape == (3, 6)
    assert kept.weights == pytest.approx([0.5, 0.1, 0.2])
    group = [StoredSae("a", Path("/a"), one), StoredSae("b", Path("/b"), sae(8, 1))]
    rates = {Path("/a"): torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]), Path("/b"): torch.ones(8)}
    found = block_stability(group, rates, "toy, 4 steps")
    assert [(seed.alive, seed.activity) for seed in found.saes] == [(2, "measured"), (8, "measured")]
    assert found.pairs[0].compared == sum(found.pairs[0].histogram) == sum(found.pairs[0].random_histogram) == 2
    with pytest.raises(RiebenchError, match="no feature is ever active"):
        block_stability(group, {Path("/a"): torch.zeros(8), Path("/b"): torch.ones(8)})


def test_every_pair_is_compared_and_the_same_weights_are_named() -> None:
    found = block_stability([stored_sae(8, seed) for seed in (0, 1, 2)])
    assert [(pair.first, pair.second) for pair in found.pairs] == [(1, 2), (1, 3), (2, 3)]
    twice = block_stability([stored_sae(8, 0, "a"), stored_sae(8, 0, "b")])
    assert twice.pairs[0].figures.share_found == 1 > twice.pairs[0].random.share_found
    texts = [stability_text(StabilityReport(blocks=(one,), invocation=Invocation())) for one in (found, twice)]
    assert ["not two seeds" in text for text in texts] == [False, True]
    with pytest.raises(RiebenchError, match="seed1 has width 4, but seed0 has 6"):
        block_stability([stored_sae(8, 0), stored_sae(8, 1, d=4)])
    with pytest.raises(RiebenchError, match="two SAEs or more"):
        block_stability([stored_sae(8, 0)])


def test_saes_of_one_block_are_put_together_by_block_and_k() -> None:
    def at(place: str, block: str, k: int) -> StoredSae:
        one = sae(8, k)
        one.block, one.k = block, k
        return StoredSae(place, Path(f"/{place}/{block}/{k}"), one)

    first = [at("a", "mid.0", 2), at("a", "mid.0", 4), at("a", "up.0.1", 2)]
    groups, left_out = seed_groups(first, [[at("b", "mid.0", 4), at("b", "mid.0", 2)]])
    assert [[one.path.name for one in group] for group in groups] == [["2", "2"], ["4", "4"]]
    assert left_out == ["up.0.1, k = 2: there is none in b"]
    # One SAE of a block in either place is compared whatever its k is.
    assert len(seed_groups(first[:1], [[at("b", "mid.0", 8)]])[0]) == 1
    assert seed_groups(first[:2], [[at("b", "mid.0", 8)]])[0] == []
    with pytest.raises(RiebenchError, match=r"several SAEs for mid\.0, k = 2"):
        seed_groups(first[:1], [[at("b", "mid.0", 2), at("b", "mid.0", 2)]])


def test_cosines_are_counted_from_0_to_1() -> None:
    counts = cosine_histogram(np.array([-0.4, 0.0, 0.049, 0.51, 1.0]))
    assert (counts[0], counts[10], counts[BINS - 1], sum(counts)) == (3, 1, 1, 5)


@pytest.mark.training
def test_seeds_that_recover_a_true_dictionary_find_the_same_features() -> None:
    directions, data = sparse(6000, atoms=24, width=32, active=2)
    plan = DataPass(batch_size=256, epochs=12, buffer=6000, seed=0)
    configs = [SaeTraining(features=24, k=3, auxk=4, learning_rate=1e-2, dead_after=2000, seed=seed) for seed in (0, 1)]
    trained = train_many(data, configs, plan, progress=False)
    group = [StoredSae(f"seed{seed}", Path(f"/{seed}"), one.autoencoder("mid.0")) for seed, one in enumerate(trained)]
    pair = block_stability(group).pairs[0]
    assert pair.figures.share_found > 0.6 > 0.1 >= pair.random.share_found
    truth = compare(FeatureSet.of(group[0].sae), features(directions.double().numpy()))
    assert truth.figures.share_found > 0.6


def tiny_root(folder: Path, seed: int, blocks: tuple[str, ...] = ("mid.0", "up.0.1"), dead: int = 0) -> Path:
    """Store a root of random SAEs of a seed, with means that leave some features dead."""
    generator = torch.Generator().manual_seed(seed)
    for block in blocks:
        decoder = torch.nn.functional.normalize(torch.randn(CHANNELS, FEATURES, generator=generator), dim=0)
        final = folder / folder_name(block, SPARSITY, FEATURES) / "final"
        save_sdxl_unbox(
            final, encoder=decoder.T.clone(), decoder=decoder, pre_bias=torch.zeros(CHANNELS),
            latent_bias=torch.zeros(FEATURES), k=SPARSITY,
        )  # fmt: skip
        torch.save((torch.arange(FEATURES) >= dead).float(), final / "mean.pt")
    return folder


def run(*words: object, code: int = 0) -> str:
    result = RUNNER.invoke(app, ["sae", "stability", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_the_command_prints_a_table_and_writes_its_files_again_alike(tmp_path: Path) -> None:
    places = [tmp_path / "a", tiny_root(tmp_path / "b", 1), tiny_root(tmp_path / "c", 2, blocks=("mid.0",))]
    tiny_root(places[0], 0, dead=6)
    out = tmp_path / "out"
    printed = run(*places, "--out", out)
    assert "mid.0, k = 8" in printed and "1 and 3" in printed and "there is none in" in printed
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(files) == ["stability.json", "stability.md", "stability.png", "stability.svg"]
    report = StabilityReport.model_validate_json(files["stability.json"])
    (block,) = report.blocks
    assert [(one.place, one.alive, one.activity) for one in block.saes] == [
        ("a", FEATURES - 6, "stored"), ("b", FEATURES, "stored"), ("c", FEATURES, "stored")
    ]  # fmt: skip
    assert str(tmp_path).encode() not in files["stability.json"] + files["stability.md"]
    run(*places, "--out", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_the_command_measures_activity_on_a_model(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\n")
    other = tiny_root(tmp_path / "other", 1)
    words = (tiny_saes(), other, "--blocks", "mid.0", "--prompts", prompts, "--model", tiny_folder(), "--steps", 1)
    run(*words, "--out", tmp_path / "out")
    (block,) = StabilityReport.model_validate_json((tmp_path / "out" / "stability.json").read_bytes()).blocks
    # 16 positions with 8 active features each cannot reach all of them.
    assert all(one.activity == "measured" and 0 < one.alive < FEATURES for one in block.saes)
    assert block.measured.endswith("1 step")


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path) -> None:
    one, other = tiny_root(tmp_path / "a", 0, ("mid.0",)), tiny_root(tmp_path / "b", 0, ("up.0.1",))
    assert "two places or more" in run(one, code=2)
    assert "no block in common" in run(one, other, code=2)
    assert "has no SAE for up.0.1" in run(one, other, "--blocks", "up.0.1", code=2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "stability.json").write_text("mine")
    assert "was not written by `riebench sae stability`" in run(one, one, "--out", out, code=2)
    assert [path.name for path in out.iterdir()] == ["stability.json"]


def test_stored_means_say_which_features_are_ever_active(tmp_path: Path) -> None:
    root = tiny_root(tmp_path, 0, ("mid.0",), dead=10)
    final = next(root.glob("*/final"))
    one = StoredSae("a", final, sae(FEATURES, 0))
    rates = stored_rates(one)
    assert rates is not None and int(rates.sum()) == FEATURES - 10
    assert stored_rates(StoredSae("a", final.parent, one.sae)) is not None
    assert stored_rates(StoredSae("a", final / "state_dict.pth", one.sae)) is not None
    (final / "mean.pt").unlink()
    assert stored_rates(one) is None

"""Control dictionaries: what is frozen stays, what is no SAE is what its name says, and the command resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_collections import PLAN, sparse, stored
from torch import Tensor
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.saes.formats import load_sae, load_saes
from riebench.training import baselines
from riebench.training.baselines import BASELINES, independent_components, make_baselines, make_dictionary
from riebench.training.batches import DataPass
from riebench.training.many import train_many
from riebench.training.model import SaeTrainer, StepTerms, within_cone
from riebench.training.run import StoredTraining, TrainingRun, train_collection
from riebench.training.settings import SOFT_COSINE, Frozen, Recipe, SaeTraining, recipe_settings

pytestmark = pytest.mark.training

CONFIG = SaeTraining(features=24, k=3, learning_rate=2e-2, seed=5)
DATA = sparse(4500)[1]


def trained(frozen: Frozen, recipe: Recipe = "standard", steps: int = 60) -> SaeTrainer:
    config = recipe_settings(recipe, features=24, k=3, learning_rate=2e-2, seed=5, frozen=frozen)
    plan = DataPass(batch_size=64, steps=steps, buffer=1000)
    return train_many(DATA, [config], plan, progress=False)[0].model


@pytest.mark.parametrize("recipe", ["standard", "published"])
def test_what_is_frozen_keeps_its_random_start_and_the_rest_is_trained(recipe: Recipe) -> None:
    start = SaeTrainer(DATA, CONFIG)
    full, decoder, encoder = (trained(frozen, recipe) for frozen in ("none", "decoder", "encoder"))
    assert torch.equal(decoder.decoder, start.decoder)
    assert torch.equal(encoder.encoder, start.encoder) and torch.equal(encoder.latent_bias, start.latent_bias)
    for part in (decoder.encoder, decoder.latent_bias, encoder.decoder.T, full.encoder, full.decoder.T):
        unmoved = start.latent_bias if part.dim() == 1 else start.encoder
        assert (part - unmoved).abs().max() > 0.01


def test_softly_frozen_directions_stay_near_their_start() -> None:
    start = SaeTrainer(DATA, CONFIG).encoder
    cosine = torch.nn.functional.cosine_similarity
    soft, full = trained("soft"), trained("none")
    for part, free in ((soft.encoder, full.encoder), (soft.decoder.T, full.decoder.T)):
        assert cosine(part, start).min() > SOFT_COSINE - 1e-5
        # Otherwise the bound would bind nothing.
        assert cosine(part, start).min() < SOFT_COSINE + 0.02 and cosine(free, start).min() < SOFT_COSINE - 0.05


def test_rows_outside_a_cone_turn_to_its_edge() -> None:
    axes = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    rows = torch.tensor([[3.0, 0.1, 0], [2, 0, 0], [0, 1, -1]])
    moved = within_cone(rows, axes, 0.8)
    assert torch.equal(moved[0], rows[0])
    assert torch.allclose(moved.norm(dim=1), rows.norm(dim=1))
    assert torch.allclose(moved[1], torch.tensor([1.2, 1.6, 0])), "in the plane of row and axis"
    assert float(moved[2, 2] / moved[2].norm()) == pytest.approx(0.8)


def test_twins_see_the_batches_of_the_trained_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    terms = SaeTrainer.terms

    def noted(model: SaeTrainer, x: Tensor, variance: Tensor) -> StepTerms:
        seen.setdefault(model.config.frozen, []).append(x)
        return terms(model, x, variance)

    monkeypatch.setattr(SaeTrainer, "terms", noted)
    for frozen in ("none", "decoder", "encoder", "soft"):
        trained(frozen, steps=3)
    assert len(seen) == 4
    assert all(torch.equal(torch.cat(one), torch.cat(seen["none"])) for one in seen.values())


@pytest.mark.parametrize("recipe", ["standard", "published"])
def test_stored_settings_name_what_is_frozen_only_if_something_is(recipe: Recipe) -> None:
    config = recipe_settings(recipe, features=24, k=3)
    assert "frozen" not in config.stored_settings and "frozen" not in config.stated
    twin = replace(config, frozen="soft")
    assert twin.stored_settings == config.stored_settings | {"frozen": "soft"}
    for one in (config, twin):
        again = SaeTraining.from_stored(one.stored_settings)
        assert (again.stored_settings, again.frozen) == (one.stored_settings, one.frozen)
    with pytest.raises(RiebenchError, match="no settings of a training"):
        SaeTraining.from_stored({**config.stored_settings, "frozne": "soft"})
    wrong: Any = "encodre"
    with pytest.raises(RiebenchError, match="what is frozen"):
        replace(config, frozen=wrong)


def test_fixed_dictionaries_are_what_their_names_say() -> None:
    data = DATA * torch.linspace(1, 3, 16) + 2
    rows = {kind: make_dictionary(kind, data, 1) for kind in ("pca", "random_orthogonal", "neurons")}
    for one in rows.values():
        assert torch.allclose(one.directions @ one.directions.T, torch.eye(16), atol=1e-5)
        assert torch.allclose(one.center, data.mean(0), atol=1e-5) and torch.equal(one.encoder, one.directions)
    assert torch.equal(rows["neurons"].directions, torch.eye(16))
    variances = ((data - data.mean(0)) @ rows["pca"].directions.T).var(dim=0)
    assert bool((variances.diff() < 1e-4).all())
    assert variances[0] > ((data - data.mean(0)) @ rows["random_orthogonal"].directions.T).var(dim=0).max()
    other = make_dictionary("random_orthogonal", data, 2).directions
    assert not torch.allclose(other, rows["random_orthogonal"].directions)
    with pytest.raises(RiebenchError, match="no fixed dictionary"):
        make_dictionary("frozen_decoder", data)


def test_independent_components_find_independent_sources() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = torch.rand(4000, 6, generator=generator).log() * torch.randn(4000, 6, generator=generator).sign()
    mixing = torch.randn(6, 8, generator=generator)
    found = independent_components(sources @ mixing + 1, torch.Generator().manual_seed(3))
    assert found.directions.shape == (6, 8), "directions without variance are left out"
    cosines = (found.directions @ torch.nn.functional.normalize(mixing, dim=1).T).abs()
    assert cosines.max(dim=0).values.min() > 0.98
    values = (sources @ mixing + 1 - found.center) @ found.encoder.T
    assert torch.allclose(values @ found.directions + found.center, sources @ mixing + 1, atol=1e-3)


def run_of(out: Path) -> TrainingRun:
    return TrainingRun(out, (CONFIG,), PLAN, progress=False)


def test_all_kinds_are_read_as_saes_and_finished_ones_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, out = stored(tmp_path / "updates"), tmp_path / "out"
    make = baselines.make_baseline
    made: list[str] = []

    def noted(kind: str, *args: Any, **options: Any) -> Any:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(kind)
        return make(kind, *args, **options)

    monkeypatch.setattr(baselines, "make_baseline", noted)
    with pytest.raises(KeyboardInterrupt):
        make_baselines(collection, [], BASELINES, run_of(out))
    made.insert(0, "begun again")
    monkeypatch.setattr(baselines, "make_baseline", make)
    lines = make_baselines(collection, [], BASELINES, run_of(out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("final/*")}
    assert make_baselines(collection, [], BASELINES, run_of(out)) == lines
    assert {path: path.stat().st_mtime_ns for path in out.rglob("final/*")} == before
    assert [(line.baseline, line.block) for line in lines] == [(k, b) for k in BASELINES for b in ("mid.0", "up.0.1")]
    x = collection.data("mid.0").read(0, 500).float()
    for kind in BASELINES:
        saes = load_saes(out / kind, ["mid.0", "up.0.1"])
        codes = saes["mid.0"].encode(x)
        assert codes.min() >= 0 and int((codes > 0).sum(dim=1).max()) <= CONFIG.k, kind
    by_kind = {line.baseline: line for line in lines if line.block == "mid.0"}
    assert by_kind["random_init"].steps == 0 and by_kind["soft_frozen"].steps > 0
    assert by_kind["neurons"].features == 16 and by_kind["frozen_decoder"].features == 24
    assert by_kind["frozen_decoder"].explained_variance > by_kind["random_init"].explained_variance
    assert not list(out.glob("*.checkpoint"))


def test_an_untrained_sae_is_the_start_of_the_training(tmp_path: Path) -> None:
    collection = stored(tmp_path / "updates")
    (line, _) = make_baselines(collection, [], ["random_init"], run_of(tmp_path / "out"))
    sae = load_sae(tmp_path / "out" / line.folder)
    assert torch.equal(sae.encoder, SaeTrainer(DATA[:, :8], CONFIG).encoder)
    assert torch.allclose(sae.directions, sae.encoder, atol=1e-6)
    config = json.loads((tmp_path / "out" / line.folder / "final/config.json").read_text())
    assert config["training"]["steps"] == 0


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sae", "baselines", *map(str, words)])
    return result.exit_code, result.stderr.strip() if result.exit_code else result.stdout


def small(out: Path, folder: Path, *more: object) -> Sequence[object]:
    return (out, "--activations", folder, "--features", 24, "--k", 3, "--batch-size", 64, *more)


def test_the_command_makes_them_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    stored(tmp_path / "updates")
    folder, out = tmp_path / "updates", tmp_path / "out"
    status, table = call(*small(out, folder, "--kinds", "pca,frozen_decoder", "--steps", 4, "--device", "cpu"))
    assert status == 0 and "frozen_decoder" in table and (out / "pca").is_dir() and not (out / "ica").exists()
    for words, says in (
        (small(out, folder, "--seed", 1), "holds another training"),
        ((tmp_path / "a", "--activations", folder, "--k", 9, "--features", 24, "--batch-size", 64), "lower --k"),
        ((tmp_path / "b",), "give --activations FOLDER"),
        ((tmp_path / "b", "--model", "toy-turbo"), "--prompts FILE or --toy-captions N"),
        (small(out, folder, "--toy-captions", 3), "leave --prompts and --toy-captions out"),
        (small(out, folder, "--model", "toy-turbo"), "holds activations of m, not of toy-turbo"),
    ):  # fmt: skip
        status, line = call(*words)
        assert status == 2 and says in line and len(line.splitlines()) == 1, line


def test_like_takes_every_setting_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.training.run.curve_files", lambda *_: {})
    collection, other = stored(tmp_path / "updates"), stored(tmp_path / "others", pictures=11)
    configs = (CONFIG, recipe_settings("published", features=16, k=2, auxk=4))
    train_collection(collection, [], replace(run_of(tmp_path / "saes"), configs=configs))
    known = StoredTraining.read(tmp_path / "saes")
    assert known.plan == PLAN and known.signal == "update"
    steps = len(collection.data("mid.0")) * PLAN.epochs
    assert steps and [one.stored_settings for one in known.configs] == [
        one.stored_settings | {"batch_size": PLAN.batch_size, "steps": 1} for one in configs
    ]
    words = (tmp_path / "out", "--activations", tmp_path / "updates", "--like", tmp_path / "saes", "--device", "cpu")
    status, _ = call(*words, "--k", 3, "--kinds", "random_init,frozen_encoder")
    assert status == 0
    twin = json.loads(next((tmp_path / "out/frozen_encoder").glob("*mid*/final/config.json")).read_text())["training"]
    full = json.loads(next((tmp_path / "saes").rglob("*mid*_k3_*/final/config.json")).read_text())["training"]
    assert twin == full | {"frozen": "encoder"}
    place = tmp_path / "more"
    for more, says in (
        ((), "choose one SAE of these with --k and --features"),
        (("--k", 3, "--seed", 1), "leave --seed out"),
        (("--k", 3, "--activations", other.folder), "were not trained on the activations of mid.0"),
        (("--like", tmp_path / "updates"), "holds no training"),
    ):
        status, line = call(place, *words[1:], *more)
        assert status == 2 and says in line and len(line.splitlines()) == 1, line

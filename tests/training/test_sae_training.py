"""The SAE trainer on data whose dictionary is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from riebench.saes.figures import feature_statistics
from riebench.saes.formats import load_sae
from riebench.training.topk import SaeTraining, TopKTrainer, geometric_median, save, train_topk

pytestmark = pytest.mark.training

CONFIG = SaeTraining(features=96, k=6, auxk=16, batch_size=512, learning_rate=3e-3, steps=500, dead_after=50_000)


@pytest.fixture(scope="module")
def truth() -> tuple[Tensor, Tensor]:
    """A dictionary of 64 directions and sparse sums of about four of them."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 32, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    codes = torch.rand(20_000, 64, generator=generator) * (torch.rand(20_000, 64, generator=generator) < 4 / 64)
    return directions, codes @ directions


@pytest.fixture(scope="module")
def trained(truth: tuple[Tensor, Tensor]) -> TopKTrainer:
    """An SAE trained on the sparse sums."""
    return train_topk(truth[1], CONFIG, progress=False)


def test_it_finds_the_dictionary(truth: tuple[Tensor, Tensor], trained: TopKTrainer) -> None:
    directions, data = truth
    assert (directions @ trained.decoder).max(dim=1).values.mean() > 0.95
    codes = trained.codes(data)
    left_over = data - codes @ trained.decoder.T - trained.pre_bias
    assert 1 - left_over.var(0).sum() / data.var(0).sum() > 0.85
    assert (codes > 0).sum(1).max() <= CONFIG.k
    assert torch.allclose(trained.decoder.norm(dim=0), torch.ones(CONFIG.features), atol=1e-5)


def test_equal_settings_give_equal_weights(truth: tuple[Tensor, Tensor]) -> None:
    few = SaeTraining(features=40, k=4, auxk=8, batch_size=64, steps=5)
    first, again = (train_topk(truth[1], few, progress=False) for _ in range(2))
    assert torch.equal(first.encoder, again.encoder) and torch.equal(first.decoder, again.decoder)


def test_dead_features_are_revived_by_the_auxiliary_loss(truth: tuple[Tensor, Tensor]) -> None:
    model = TopKTrainer(truth[1], CONFIG)
    variance = truth[1].var(0).mean()
    with torch.no_grad():
        model.latent_bias[:30] = -100.0
    model.loss(truth[1][:256], variance).backward()
    assert model.encoder.grad is not None and model.encoder.grad[:30].abs().max() == 0
    model.zero_grad()
    model.idle[:30] = model.dead_steps + 1
    with torch.no_grad():
        model.latent_bias[:30] = -0.01
        model.encoder[:30] *= 0.1
    model.loss(truth[1][:256], variance).backward()
    assert model.encoder.grad[:30].abs().max() > 0


def test_a_batch_of_one_position_spoils_no_weight_where_features_are_dead(truth: tuple[Tensor, Tensor]) -> None:
    model = TopKTrainer(truth[1], CONFIG)
    model.idle[:] = model.dead_steps + 1
    loss = model.loss(truth[1][:1], truth[1].var(0).mean())
    loss.backward()
    assert float(loss.detach()) < 1e3
    for weights in model.parameters():
        assert weights.grad is not None and bool(torch.isfinite(weights.grad).all())


def test_what_is_saved_is_what_is_read(tmp_path: Path, truth: tuple[Tensor, Tensor], trained: TopKTrainer) -> None:
    data = truth[1][:100]
    statistics = feature_statistics(trained.codes, truth[1])
    save(trained, statistics, tmp_path / "final")
    sae = load_sae(tmp_path)
    assert torch.allclose(sae.encode(data), trained.codes(data), atol=1e-5)
    assert torch.allclose(
        sae.decode(sae.encode(data)), trained.codes(data) @ trained.decoder.T + trained.pre_bias, atol=1e-5
    )


def test_statistics_are_over_active_positions() -> None:
    codes = torch.tensor([[1.0, 0.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    found = feature_statistics(lambda x: x, codes, batch_size=3)
    assert torch.allclose(found.mean, torch.tensor([2.0, 2.0, 0.0]))
    assert torch.allclose(found.std, torch.tensor([(2 / 3) ** 0.5, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(found.rate, torch.tensor([0.75, 0.25, 0.0]))


def test_the_geometric_median_is_not_moved_by_an_outlier() -> None:
    points = torch.cat([torch.randn(200, 3, generator=torch.Generator().manual_seed(1)), torch.full((5, 3), 1e4)])
    assert geometric_median(points).norm() < 0.5
    assert points.mean(0).norm() > 100

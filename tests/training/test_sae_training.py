"""The SAE trainer on data whose dictionary is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from riebench.saes.figures import Meter, feature_statistics
from riebench.saes.formats import load_sae
from riebench.training.model import (
    IDLE_INTERVALS,
    SaeTrainer,
    geometric_median,
    make_optimizer,
    save,
    take_step,
    train_in_memory,
)
from riebench.training.settings import KINDS, Kind, SaeTraining, recipe_settings
from riebench.training.sparsity import keep_above, nested_errors, nested_groups

pytestmark = pytest.mark.training

CONFIG = recipe_settings(
    "published", features=96, k=6, auxk=16, batch_size=512, learning_rate=3e-3, steps=500, dead_after=50_000, decay=0.2
)


@pytest.fixture(scope="module")
def truth() -> tuple[Tensor, Tensor]:
    """A dictionary of 64 directions and sparse sums of about four of them."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 32, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    codes = torch.rand(20_000, 64, generator=generator) * (torch.rand(20_000, 64, generator=generator) < 4 / 64)
    return directions, codes @ directions


@pytest.fixture(scope="module")
def trained(truth: tuple[Tensor, Tensor]) -> SaeTrainer:
    """An SAE trained on the sparse sums."""
    return train_in_memory(truth[1], CONFIG, progress=False)


def test_it_finds_the_dictionary(truth: tuple[Tensor, Tensor], trained: SaeTrainer) -> None:
    directions, data = truth
    assert (directions @ trained.decoder).max(dim=1).values.mean() > 0.95
    codes = trained.codes(data)
    left_over = data - codes @ trained.decoder.T - trained.pre_bias
    assert 1 - left_over.var(0).sum() / data.var(0).sum() > 0.85
    assert (codes > 0).sum(1).max() <= CONFIG.k
    assert torch.allclose(trained.decoder.norm(dim=0), torch.ones(CONFIG.features), atol=1e-5)


def test_equal_settings_give_equal_weights(truth: tuple[Tensor, Tensor]) -> None:
    few = recipe_settings("published", features=40, k=4, auxk=8, batch_size=64, steps=5)
    first, again = (train_in_memory(truth[1], few, progress=False) for _ in range(2))
    assert torch.equal(first.encoder, again.encoder) and torch.equal(first.decoder, again.decoder)


def test_dead_features_are_revived_by_the_auxiliary_loss(truth: tuple[Tensor, Tensor]) -> None:
    model = SaeTrainer(truth[1], CONFIG)
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
    model = SaeTrainer(truth[1], CONFIG)
    model.idle[:] = model.dead_steps + 1
    loss = model.loss(truth[1][:1], truth[1].var(0).mean())
    loss.backward()
    assert float(loss.detach()) < 1e3
    for weights in model.parameters():
        assert weights.grad is not None and bool(torch.isfinite(weights.grad).all())


def test_what_is_saved_is_what_is_read(tmp_path: Path, truth: tuple[Tensor, Tensor], trained: SaeTrainer) -> None:
    data = truth[1][:100]
    statistics = feature_statistics(trained.codes, truth[1])
    save(trained, statistics, tmp_path / "final")
    sae = load_sae(tmp_path)
    assert torch.allclose(sae.encode(data), trained.codes(data), atol=1e-5)
    assert torch.allclose(
        sae.decode(sae.encode(data)), trained.codes(data) @ trained.decoder.T + trained.pre_bias, atol=1e-5
    )


def test_the_published_recipe_stays_as_it_is(truth: tuple[Tensor, Tensor]) -> None:
    """Steps of the recipe, written out: constant rate, error over variance, auxiliary loss, unit columns."""
    data, config = truth[1], recipe_settings("published", features=40, k=4, auxk=8, batch_size=64, dead_after=128)
    assert (config.learning_rate, config.decay, config.warmup) == (1e-4, 0.0, 0.0)
    assert recipe_settings("published", features=40, k=4).stored_settings == {
        "features": 40, "k": 4, "auxk": 256, "batch_size": 4096, "learning_rate": 1e-4, "steps": 10_000,
        "dead_after": 10_000_000, "seed": 0, "decay": 0.0,
    }  # fmt: skip
    variance = data.var(0).mean()
    model = SaeTrainer(data, config)
    with torch.no_grad():
        model.latent_bias[:10] = -0.5
    optimizer = make_optimizer(model, variance)
    encoder, decoder, pre_bias, bias = (
        tensor.detach().clone().requires_grad_()
        for tensor in (model.encoder, model.decoder, model.pre_bias, model.latent_bias)
    )
    plain = torch.optim.Adam([encoder, decoder, pre_bias, bias], lr=1e-4, eps=6.25e-10)
    idle = torch.zeros(40)
    for step in range(6):
        x = data[step * 64 :][:64]
        take_step(model, optimizer, step, x, variance)
        p = (x - pre_bias) @ encoder.T + bias
        codes = p.relu() * (p >= p.topk(4).values[:, -1:])
        left_over = x - codes @ decoder.T - pre_bias
        loss = left_over.square().mean() / variance
        idle = torch.where((codes > 1e-3).any(0), 0, idle + 1)
        dead = idle > 2
        if step == 5:
            assert bool((dead & (p > 0).any(0)).any())
        if dead.any():
            strongest = p.masked_fill(~dead, -torch.inf).topk(min(8, int(dead.sum())))
            revived = torch.zeros_like(p).scatter(1, strongest.indices, strongest.values.relu()) @ decoder.T
            rest = left_over.detach()
            loss = loss + (revived - rest).square().mean() / (rest - rest.mean(0)).square().mean() / 32
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            decoder /= decoder.norm(dim=0)
            assert decoder.grad is not None
            decoder.grad -= (decoder.grad * decoder).sum(0) * decoder
        plain.step()
    for mine, written in ((model.encoder, encoder), (model.decoder, decoder), (model.latent_bias, bias)):
        assert torch.allclose(mine, written, atol=1e-6)


def test_the_standard_recipe_leaves_less_unexplained() -> None:
    """On few steps of data whose variance lies in few directions, as that of block updates does."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(64, 32, generator=generator) * torch.logspace(0, -1.5, 32)
    data = (torch.rand(20_000, 64, generator=generator) * (torch.rand(20_000, 64, generator=generator) < 0.06)) @ atoms
    held_out, data = 40 * data[:2000], 40 * data[2000:]
    found = {}
    for config in (
        SaeTraining(features=96, k=4, batch_size=256, steps=150),
        recipe_settings("published", features=96, k=4, auxk=32, batch_size=256, steps=150, learning_rate=1e-3),
    ):
        sae = train_in_memory(data, config, progress=False).autoencoder()
        meter = Meter(sae)
        meter.add(held_out)
        found[config.recipe] = meter.figures()
    standard, published = found["standard"], found["published"]
    assert 1 - standard.explained_variance < 0.6 * (1 - published.explained_variance)


def test_biases_learn_in_the_units_of_the_data(truth: tuple[Tensor, Tensor]) -> None:
    """Data in other units give the same features, with values in these units."""
    config = SaeTraining(features=40, k=4, batch_size=128, steps=40, kind="jumprelu")
    one, other = (train_in_memory(truth[1] * scale, config, progress=False) for scale in (1.0, 64.0))
    assert torch.allclose(one.encoder, other.encoder, atol=1e-3)
    for name in ("pre_bias", "latent_bias", "threshold"):
        assert torch.allclose(getattr(one, name), getattr(other, name) / 64, atol=1e-3)


def test_idle_features_become_active_again(truth: tuple[Tensor, Tensor]) -> None:
    config = SaeTraining(features=40, k=4, batch_size=500, steps=200, learning_rate=1e-6)
    model, variance = SaeTrainer(truth[1], config), truth[1].var(0).mean()
    optimizer = make_optimizer(model, variance)
    with torch.no_grad():
        model.latent_bias[:5] = -1.5
    rises = []
    for step in range(200):
        before = model.latent_bias.detach().clone()
        take_step(model, optimizer, step, truth[1][(step % 40) * 500 :][:500], variance)
        rises.append(model.latent_bias.detach()[:5] - before[:5])
    # Nothing rises before as many positions as an active feature would be seen a hundred times in.
    wait = int(IDLE_INTERVALS * config.interval / 500)
    assert float(torch.stack(rises[:wait]).max()) < 1e-4 < float(rises[wait].min())
    assert int(model.idle[:5].max()) < 100


def test_what_a_learned_threshold_learns() -> None:
    p = torch.tensor([[0.2, 3.0], [0.9, -1.0], [1.2, 5.0], [2.0, 0.4]], requires_grad=True)
    threshold = torch.tensor([1.0, 0.5], requires_grad=True)
    values, active = keep_above(p, threshold, torch.tensor(1.0))
    assert values.tolist() == [[0, 3], [0, 0], [p[2, 0].item(), 5], [2, 0]] and float(active.detach()) == 1
    (values.sum() + 8 * active).backward()
    assert p.grad is not None and p.grad.tolist() == [[0, 1], [0, 0], [1, 1], [1, 0]]
    # Two values of the first feature and one of the second lie within half a bandwidth.
    assert threshold.grad is not None and threshold.grad.tolist() == pytest.approx([-2 * (1 + 2), -(0.5 + 2)])


def test_nested_groups_reconstruct_one_after_the_other() -> None:
    assert nested_groups(384) == (24, 24, 48, 96, 192) and nested_groups(5) == (1, 1, 3)
    assert all(sum(nested_groups(n)) == n for n in range(1, 40))
    codes, decoder, x = torch.rand(7, 5), torch.rand(3, 5), torch.rand(7, 3)
    errors, left_over = nested_errors(codes, decoder, x, (1, 1, 3))
    wanted = [(x - codes[:, :end] @ decoder[:, :end].T).square().mean() for end in (1, 2, 5)]
    assert torch.allclose(errors, torch.stack(wanted)) and torch.allclose(left_over, x - codes @ decoder.T, atol=1e-6)


def test_the_first_features_of_nested_groups_say_most(truth: tuple[Tensor, Tensor]) -> None:
    data, shares = truth[1], {}
    kinds: tuple[Kind, ...] = ("batchtopk", "matryoshka")
    for kind in kinds:
        config = SaeTraining(features=96, k=6, batch_size=256, steps=200, kind=kind)
        model = train_in_memory(data, config, progress=False)
        first = model.codes(data)[:, :24] @ model.decoder[:, :24].T + model.pre_bias
        shares[kind] = 1 - float((data - first).square().sum() / (data - data.mean(0)).square().sum())
    assert shares["matryoshka"] > shares["batchtopk"] + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_as_sparse_as_it_should_be(kind: Kind, truth: tuple[Tensor, Tensor]) -> None:
    model = train_in_memory(
        truth[1], SaeTraining(features=96, k=6, batch_size=256, steps=250, kind=kind), progress=False
    )
    meter = Meter(model.autoencoder())
    meter.add(truth[1][:4000])
    figures = meter.figures()
    assert figures.l0 == pytest.approx(6, abs=0.6) and figures.explained_variance > 0.85
    assert figures.dead_share < 0.1


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

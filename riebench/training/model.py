"""An autoencoder in training: loss, optimiser step and files.

`SaeTrainer` is the module with its loss, `take_step` one step of the optimiser, `train_in_memory` trains one on
positions in memory, and `save` writes it. Settings, and what the two recipes do, are in `riebench.training.settings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riebench.saes.figures import FeatureStatistics
from riebench.saes.formats import save_sdxl_unbox
from riebench.saes.readers.dictionary_learning import save_batch_topk, save_matryoshka
from riebench.saes.readers.saelens import save_jumprelu
from riebench.saes.sae import Signal, SparseAutoencoder
from riebench.training.settings import SOFT_COSINE, SaeTraining
from riebench.training.sparsity import keep_above, keep_largest, keep_largest_of_batch, nested_errors, nested_groups
from riebench.utils.terminal import ProgressBar

ALIVE = 1e-3
"""Published recipe: a feature counts as active where its value is above this."""

MEDIAN_OF = 32_768
"""Positions whose geometric median the biases start from."""

BIAS_RATE = 0.2
"""Standard recipe: the biases' learning rate, in units of the weights' rate times the data's deviation."""
THRESHOLD_RATE = 3.0
"""The same of learned thresholds."""
BANDWIDTH = 2.0
"""Width around a learned threshold within which values move it, in units of the data's deviation."""
SPARSITY_WEIGHT = 10.0
"""Weight of the squared deviation of the active features' number from k, as a share of k."""
IDLE_INTERVALS = 100
"""Standard recipe: positions after which an idle feature's bias is raised, in units of n / k."""
IDLE_SHARE = 1 / 400
"""The same as a share of all positions of the run, where that is more: a long run has time for rare features."""
IDLE_RISE = 0.016
"""How far it is raised in a step, in units of the mean length of what is left unexplained over the square root of k."""


@dataclass(frozen=True)
class StepTerms:
    """The loss of one batch, with figures for the log.

    Attributes:
        loss: the minimised loss.
        unexplained: squared error over the data's variance.
        active: features above 0 at a position, mean over the batch.
    """

    loss: Tensor
    unexplained: Tensor
    active: Tensor


class SaeTrainer(nn.Module):
    """The autoencoder in training.

    It computes x^ = sparse((x - pre_bias) W^T + latent_bias) D^T + pre_bias.
    """

    def __init__(self, data: Tensor, config: SaeTraining, center: Tensor | None = None) -> None:
        """Initialise the weights.

        The encoder starts from random unit directions, the decoder from its transpose, the biases from the data's
        geometric median and from zero, and learned thresholds from the value above which k features are active.

        Args:
            data: [N, d], some positions.
            config: settings.
            center: the geometric median, if it is known.
        """
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        directions = torch.randn(config.features, data.shape[1], generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.encoder = nn.Parameter(directions.clone())
        self.decoder = nn.Parameter(directions.T.contiguous())
        if center is None:
            some = torch.randint(len(data), (min(MEDIAN_OF, len(data)),), generator=generator)
            center = geometric_median(data[some].float())
        self.pre_bias = nn.Parameter(center.clone())
        self.latent_bias = nn.Parameter(torch.zeros(config.features))
        self.groups = nested_groups(config.features)
        self.idle: Tensor
        self.register_buffer("idle", torch.zeros(config.features, dtype=torch.long))
        self.threshold: Tensor
        if config.kind == "jumprelu":
            spread = data[:: max(1, len(data) // config.batch_size)][: config.batch_size]
            first = self._smallest_kept(spread.float()).detach()
            self.threshold = nn.Parameter(first.expand(config.features).clone())
        else:
            self.register_buffer("threshold", torch.zeros(()))
        self._freeze(directions)

    def _freeze(self, directions: Tensor) -> None:
        """Take from the training what the settings freeze.

        Args:
            directions: [n, d], the random unit directions that encoder and decoder start from.
        """
        frozen = self.config.frozen
        if frozen == "decoder":
            self.decoder.requires_grad_(False)
        elif frozen == "encoder":
            for part in (self.encoder, self.latent_bias, self.threshold):
                part.requires_grad_(False)
        elif frozen == "soft":
            self.start: Tensor
            self.register_buffer("start", directions)

    @property
    def dead_steps(self) -> int:
        """Steps without activity after which a feature counts as dead."""
        return max(1, self.config.dead_positions // self.config.batch_size)

    def loss(self, x: Tensor, variance: Tensor) -> Tensor:
        """Compute the loss of one batch, and count idle features.

        Args:
            x: [B, d].
            variance: mean variance of the data, a scalar.
        """
        return self.terms(x, variance).loss

    def terms(self, x: Tensor, variance: Tensor) -> StepTerms:
        """Compute the loss of one batch, with the figures that are logged.

        Args:
            x: [B, d].
            variance: mean variance of the data, a scalar.
        """
        config = self.config
        p = self._pre_activations(x)
        codes, active = self._sparsify(p, variance)
        with torch.no_grad():
            alive = ALIVE if config.recipe == "published" else 0.0
            self.idle.copy_(torch.where(codes.amax(dim=0) > alive, 0, self.idle + 1))
        if config.kind == "matryoshka":
            errors, left_over = nested_errors(codes, self.decoder, x - self.pre_bias, self.groups)
            main, unexplained = errors.mean() / variance, errors[-1].detach() / variance
        else:
            left_over = x - (nn.functional.linear(codes, self.decoder) + self.pre_bias)
            main = left_over.square().mean() / variance
            unexplained = main.detach()
        loss = self.objective(main)
        if config.kind == "jumprelu":
            loss = loss + SPARSITY_WEIGHT * (active / config.k - 1).square()
        if config.auxk:
            loss = loss + self._auxiliary(p, left_over.detach()) / 32
        return StepTerms(loss, unexplained, active.detach())

    def objective(self, error: Tensor) -> Tensor:
        """Return the minimised loss of a batch's error over the data's variance.

        The gradient of the logarithm does not shrink with the error. Adam would take smaller and smaller steps
        otherwise, since its running squares remember the large gradients of the first steps.
        """
        if self.config.recipe == "published":
            return error
        return error.clamp(min=torch.finfo(error.dtype).tiny).log()

    def _pre_activations(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)

    def _sparsify(self, p: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Compute feature values as in training: [B, n] like `p`, 0 elsewhere.

        Returns:
            The values, and the mean number of active features.
        """
        if self.config.kind == "jumprelu":
            return keep_above(p, self.threshold, BANDWIDTH * variance.sqrt())
        codes = (keep_largest if self.config.kind == "topk" else keep_largest_of_batch)(p, self.config.k)
        return codes, codes.detach().count_nonzero() / len(codes)

    def _auxiliary(self, p: Tensor, residual: Tensor) -> Tensor:
        """Compute the loss of dead features that predict the residual [B, d]."""
        dead = self.idle > self.dead_steps
        count = min(self.config.auxk, int(dead.sum()))
        if count == 0:
            return p.new_zeros(())
        values, indices = p.masked_fill(~dead, -torch.inf).topk(count, dim=1)
        codes = torch.zeros_like(p).scatter(1, indices, values.relu())
        predicted = nn.functional.linear(codes, self.decoder)
        scale = (residual - residual.mean(0)).square().mean()
        # The residual of a single position has no variance: the loss is then 0, since 0 / 0 would make weights NaN.
        return (predicted - residual).square().mean() / scale.where(scale > 0, torch.inf)

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale decoder columns to length one and remove the gradient along them.

        Call it between the backward pass and the optimiser step. A frozen decoder stays as it is.
        """
        if self.config.frozen == "decoder":
            return
        self.decoder.div_(self.decoder.norm(dim=0, keepdim=True))
        gradient = self.decoder.grad
        if gradient is not None:
            gradient -= (gradient * self.decoder).sum(0, keepdim=True) * self.decoder

    @torch.no_grad()
    def restrict(self) -> None:
        """Turn softly frozen directions back to the cone around their start.

        Call it after the optimiser step. Lengths stay as they are.
        """
        if self.config.frozen == "soft":
            self.encoder.copy_(within_cone(self.encoder, self.start, SOFT_COSINE))
            self.decoder.copy_(within_cone(self.decoder.T, self.start, SOFT_COSINE).T)

    @torch.no_grad()
    def raise_idle(self, unexplained: Tensor, variance: Tensor) -> None:
        """Raise the latent biases of idle features, so that they become active again.

        Call it after the optimiser step.

        Args:
            unexplained: squared error of the batch over the data's variance.
            variance: mean variance of the data.
        """
        config = self.config
        patience = max(IDLE_INTERVALS * config.interval, IDLE_SHARE * config.steps * config.batch_size)
        idle = self.idle * config.batch_size > patience
        length = (unexplained * variance * len(self.pre_bias)).sqrt()
        self.latent_bias.add_(idle * (length * (IDLE_RISE / math.sqrt(config.k))))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Compute feature values [B, n] of positions [B, d], like the stored SAE."""
        p = self._pre_activations(x)
        return keep_largest(p, self.config.k) if self.config.kind == "topk" else p.relu() * (p > self.threshold)

    @torch.no_grad()
    def set_threshold(self, samples: Iterable[Tensor]) -> None:
        """Set the threshold of an SAE that keeps the largest values of a batch.

        It is the smallest value that a batch keeps, at least 0, as a mean over some batches. Other kinds have none, or
        have learned it.

        Args:
            samples: batches [B, d], as large as those of the training but perhaps for the last.
        """
        if self.config.kind in ("batchtopk", "matryoshka"):
            self.threshold.copy_(torch.stack([self._smallest_kept(x) for x in samples]).mean())

    def _smallest_kept(self, x: Tensor) -> Tensor:
        """Return the smallest value that is kept of a batch [B, d], at least 0."""
        kept = self._pre_activations(x).flatten().topk(self.config.k * len(x), sorted=False).values
        return kept.clamp(min=0).min()

    def autoencoder(self, block: str | None = None) -> SparseAutoencoder:
        """Return the trained SAE in the form that methods use.

        Args:
            block: the block it was trained on.
        """
        parts = (self.encoder, self.decoder.T, self.pre_bias, self.pre_bias, self.latent_bias)
        options: dict[str, Any] = {"k": self.config.k, "block": block}
        if self.config.kind != "topk":
            options |= {"activation": "jump", "threshold": self.threshold.detach().expand(self.config.features)}
        return SparseAutoencoder(*(part.detach() for part in parts), **options)


def make_optimizer(model: SaeTrainer, variance: Tensor) -> torch.optim.Adam:
    """Return the optimiser of a module.

    Each group of parameters has its share of the learning rate as `share`.

    Args:
        model: on the device where it is trained.
        variance: mean variance of the data.
    """
    groups: list[dict[str, Any]]
    if model.config.recipe == "published":
        groups = [{"params": list(model.parameters()), "share": 1.0}]
    else:
        deviation = float(variance) ** 0.5
        groups = [
            {"params": [model.encoder, model.decoder], "share": 1.0},
            {"params": [model.pre_bias, model.latent_bias], "share": BIAS_RATE * deviation},
        ]
        if isinstance(model.threshold, nn.Parameter):
            groups.append({"params": [model.threshold], "share": THRESHOLD_RATE * deviation})
    return torch.optim.Adam(groups, lr=model.config.peak_rate, eps=6.25e-10, fused=True)


def take_step(
    model: SaeTrainer, optimizer: torch.optim.Adam, step: int, x: Tensor, variance: Tensor
) -> StepTerms:  # fmt: skip
    """Take one optimiser step.

    Args:
        model: is changed.
        optimizer: from `make_optimizer`.
        step: its number, counted from 0.
        x: positions [B, d].
        variance: mean variance of the data.
    """
    for group in optimizer.param_groups:
        group["lr"] = model.config.rate(step) * group["share"]
    terms = model.terms(x, variance)
    optimizer.zero_grad(set_to_none=True)
    terms.loss.backward()
    model.constrain()
    optimizer.step()
    model.restrict()
    if model.config.recipe == "standard" and model.config.frozen != "encoder":
        model.raise_idle(terms.unexplained, variance)
    return terms


def train_in_memory(
    data: Tensor, config: SaeTraining, *, device: torch.device | None = None, name: str = "sae", progress: bool = True
) -> SaeTrainer:
    """Train one autoencoder on positions held in memory.

    Args:
        data: [N, d], any float type; sampled with replacement, one seeded order a run.
        config: settings.
        device: where to train.
        name: for the progress bar.
        progress: shows the bar.

    Returns:
        The trained module, its decoder columns at length one.
    """
    device = device or torch.device("cpu")
    model = SaeTrainer(data, config).to(device)
    generator = torch.Generator().manual_seed(config.seed + 1)
    sample = data[torch.randint(len(data), (min(100_000, len(data)),), generator=generator)].float()
    variance = sample.var(dim=0, correction=0).mean().to(device)
    optimizer = make_optimizer(model, variance)
    bar = ProgressBar(range(config.steps), title=f"train {name}", shown=progress)
    for step in bar:
        batch = data[torch.randint(len(data), (config.batch_size,), generator=generator)].float().to(device)
        terms = take_step(model, optimizer, step, batch, variance)
        if step % 20 == 0:
            bar.note(unexplained=f"{terms.unexplained.item():.4f}")
    model.constrain()
    model.set_threshold(part.to(device) for part in sample.split(config.batch_size))
    return model.eval().requires_grad_(False)


def within_cone(rows: Tensor, axes: Tensor, cosine: float) -> Tensor:
    """Turn rows that lie outside the cones around some axes to the cones' edges.

    Args:
        rows: [n, d], of any length, which they keep.
        axes: [n, d], unit rows.
        cosine: of the angle between a cone's axis and its edge.

    Returns:
        [n, d].
    """
    lengths = rows.norm(dim=1, keepdim=True)
    along = (rows * axes).sum(dim=1, keepdim=True)
    across = rows - along * axes
    across = across / across.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    edges = lengths * (cosine * axes + math.sqrt(1 - cosine**2) * across)
    return torch.where(along < cosine * lengths, edges, rows)


def geometric_median(points: Tensor, iterations: int = 100) -> Tensor:
    """Compute the point with the least summed distance to all points.

    Args:
        points: [N, d].
        iterations: of Weiszfeld's algorithm, at most.

    Returns:
        [d].
    """
    median = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - median).norm(dim=1, keepdim=True).clamp(min=1e-8)
        moved = (points * weights).sum(0) / weights.sum()
        if bool((moved - median).norm() < 1e-6 * median.norm().clamp(min=1e-6)):
            break
        median = moved
    return median


def save(
    model: SaeTrainer,
    statistics: FeatureStatistics,
    folder: Path,
    block: str | None = None,
    signal: Signal = "update",
    *,
    steps: int | None = None,
) -> None:
    """Write a trained autoencoder and its statistics as a checkpoint folder.

    Each kind is written in a layout that can express it: topk in that of sdxl-unbox, batchtopk and matryoshka as the
    dictionary_learning library writes its own, jumprelu as SAELens does.

    Args:
        model: the trained module.
        statistics: of its features.
        folder: gets the files.
        block: the block it was trained on, for the layouts that name it.
        signal: what it was trained on; stated where it is not the block's update.
        steps: steps that were done; None for all of its settings'.
    """
    config = model.config
    settings = config.stored_settings | ({} if steps is None else {"steps": steps})
    weights = {
        "encoder": model.encoder, "decoder": model.decoder, "pre_bias": model.pre_bias,
        "latent_bias": model.latent_bias,
    }  # fmt: skip
    common: dict[str, Any] = {
        **weights, "k": config.k, "mean": statistics.mean, "std": statistics.std,
        "extra": {"training": settings, **({} if signal == "update" else {"signal": signal})},
    }  # fmt: skip
    if config.kind == "topk":
        save_sdxl_unbox(folder, **common, auxk=config.auxk, dead_steps_threshold=model.dead_steps)
    elif config.kind == "jumprelu":
        save_jumprelu(folder, **common, threshold=model.threshold, block=block)
    elif config.kind == "matryoshka":
        save_matryoshka(folder, **common, threshold=float(model.threshold), block=block, groups=model.groups)
    else:
        save_batch_topk(folder, **common, threshold=float(model.threshold), block=block)

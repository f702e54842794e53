"""Trainers that take the same batches: ours by several recipes, and those of the dictionary_learning library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from riebench.saes.sae import SparseAutoencoder
from riebench.training.model import MEDIAN_OF, SaeTrainer, geometric_median, make_optimizer, take_step
from riebench.training.settings import Kind, Recipe, recipe_settings

FEATURES, K = 384, 16
LIBRARY = "dictionary_learning"
RULE = 2e-4 / (FEATURES / 2**14) ** 0.5
"""The library's learning rate for such a width."""
_SPARSITY_WARMUP = 20
_FRACTIONS = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]


class Trainee(Protocol):
    """One autoencoder in training."""

    def step(self, number: int, x: Tensor) -> None:
        """Take step `number`, counted from 0, on positions [B, d]."""

    def autoencoder(self) -> SparseAutoencoder:
        """Return what is trained so far."""


Maker = Callable[[Tensor, int, int, int], Trainee]
"""Makes a trainee from a sample of the data [N, d], the number of steps, the batch size and a seed."""


class _Logarithm(SaeTrainer):
    """Minimises the logarithm of the error, whatever the recipe."""

    def objective(self, error: Tensor) -> Tensor:
        return error.log()


@dataclass
class Ours:
    """Our trainer.

    Attributes:
        sample: [N, d], for the scale of the loss, the first biases and the threshold.
        steps: of the run.
        batch: positions a step.
        seed: of the initialisation.
        recipe: see `riebench.training.settings`.
        logarithm: minimises the logarithm of the error whatever the recipe.
        scaled_after: also scales the decoder's columns after each step.
        uniform: starts from uniform numbers, as the library does, instead of normal ones.
        settings: more settings.
    """

    sample: Tensor
    steps: int
    batch: int
    seed: int
    recipe: Recipe = "standard"
    logarithm: bool = False
    scaled_after: bool = False
    uniform: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stated = {"features": FEATURES, "k": K, "batch_size": self.batch, "steps": self.steps, "seed": self.seed}
        config = recipe_settings(self.recipe, **(stated | self.settings))
        maker = _Logarithm if self.logarithm else SaeTrainer
        self.model = maker(self.sample, config, geometric_median(self.sample[:MEDIAN_OF]))
        if self.uniform:
            generator = torch.Generator().manual_seed(self.seed)
            start = 2 * torch.rand(self.model.encoder.shape, generator=generator) - 1
            start /= start.norm(dim=1, keepdim=True)
            self.model.encoder.data, self.model.decoder.data = start, start.T.contiguous()
        self.variance = self.sample.var(dim=0, correction=0).mean()
        self.optimizer = make_optimizer(self.model, self.variance)

    def step(self, number: int, x: Tensor) -> None:
        """Take one step."""
        take_step(self.model, self.optimizer, number, x, self.variance)
        if self.scaled_after:
            self.model.decoder.data /= self.model.decoder.data.norm(dim=0, keepdim=True)

    def autoencoder(self) -> SparseAutoencoder:
        """Return what is trained so far."""
        self.model.constrain()
        self.model.set_threshold(self.sample.split(self.batch))
        return self.model.autoencoder()


@dataclass
class Library:
    """A trainer of the dictionary_learning library.

    Attributes:
        sample: [N, d], for the scale where activations are normalised.
        steps: of the run.
        batch: positions a step; the library sees it from the batches.
        seed: of the initialisation.
        kind: which trainer.
        normalised: divides activations by their root mean square length, as `trainSAE` can.
        settings: of the trainer; all others have the library's defaults, but no warm-up of the learning rate, whose
            default is longer than a short run and with which it learned less.
    """

    sample: Tensor
    steps: int
    batch: int
    seed: int
    kind: Kind = "topk"
    normalised: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        module, name = {
            "topk": ("top_k", "TopKTrainer"), "batchtopk": ("batch_top_k", "BatchTopKTrainer"),
            "jumprelu": ("jumprelu", "JumpReluTrainer"),
            "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
        }[self.kind]  # fmt: skip
        options: dict[str, Any] = {
            "steps": self.steps, "activation_dim": self.sample.shape[1], "dict_size": FEATURES, "layer": 0,
            "lm_name": "none", "device": "cpu", "seed": self.seed, "warmup_steps": 0,
        }  # fmt: skip
        if self.kind == "jumprelu":
            options |= {"target_l0": float(K), "sparsity_warmup_steps": _SPARSITY_WARMUP}
        else:
            options |= {"k": K}
        if self.kind in ("batchtopk", "matryoshka"):
            # Their defaults begin after a thousand steps, and follow too slowly for a short run.
            options |= {"threshold_start_step": 0, "threshold_beta": 0.9}
        if self.kind == "matryoshka":
            options |= {"group_fractions": _FRACTIONS}
        made = getattr(import_module(f"{LIBRARY}.trainers.{module}"), name)
        self.trainer: Any = made(**(options | self.settings))
        length = self.sample.square().sum(1).mean().sqrt()
        self.scale = float(length) if self.normalised else 1.0

    def step(self, number: int, x: Tensor) -> None:
        """Take one step."""
        self.trainer.update(number, x / self.scale if self.normalised else x)

    @torch.no_grad()
    def autoencoder(self) -> SparseAutoencoder:
        """Return what is trained so far."""
        ae, scale = self.trainer.ae, self.scale
        state = {name: value.detach() for name, value in ae.state_dict().items()}
        bias = state["b_dec"] * scale
        if self.kind in ("jumprelu", "matryoshka"):
            encoder, latent, decoder = state["W_enc"].T, state["b_enc"] * scale, state["W_dec"]
        else:
            encoder, latent, decoder = state["encoder.weight"], state["encoder.bias"] * scale, state["decoder.weight"].T
        options: dict[str, Any] = {"k": K}
        if self.kind != "topk":
            options |= {"activation": "jump", "threshold": torch.as_tensor(ae.threshold * scale).expand(FEATURES)}
        before = torch.zeros_like(bias) if self.kind == "jumprelu" else bias
        return SparseAutoencoder(encoder, decoder, before, bias, latent, **options)


def _ours(recipe: Recipe = "standard", *, logarithm: bool = False, scaled_after: bool = False, uniform: bool = False,
          **settings: Any) -> Maker:  # fmt: skip
    return lambda sample, steps, batch, seed: Ours(
        sample, steps, batch, seed, recipe, logarithm, scaled_after, uniform, settings
    )


def _library(kind: Kind = "topk", *, normalised: bool = False, **settings: Any) -> Maker:
    return lambda sample, steps, batch, seed: Library(sample, steps, batch, seed, kind, normalised, settings)


def _tuned_library(sample: Tensor, steps: int, batch: int, seed: int) -> Trainee:
    return Library(sample, steps, batch, seed, settings={"lr": 4 * RULE, "decay_start": steps // 2})


_BEFORE: dict[str, Any] = {"learning_rate": 1e-3, "auxk": 64, "dead_after": 100_000}
_NONE: dict[str, Any] = {"auxk": 0}

CASES: dict[str, Maker] = {
    "topk, standard": _ours(),
    "topk, published": _ours("published", **_BEFORE),
    f"topk, {LIBRARY}": _library(),
    f"topk, {LIBRARY}, rate x 4, falling": _tuned_library,
    "batchtopk, standard": _ours(kind="batchtopk"),
    f"batchtopk, {LIBRARY}": _library("batchtopk"),
    "matryoshka, standard": _ours(kind="matryoshka"),
    f"matryoshka, {LIBRARY}": _library("matryoshka"),
    "jumprelu, standard": _ours(kind="jumprelu"),
    f"jumprelu, {LIBRARY}": _library("jumprelu", normalised=True, lr=RULE, bandwidth=0.1),
}
"""Cases that are compared at equal steps."""

CHANGES: dict[str, Maker] = {
    "the library's rate, 1.3e-3": _ours("published", **(_BEFORE | {"learning_rate": RULE})),
    "columns scaled after the step": _ours("published", scaled_after=True, **_BEFORE),
    "uniform initialisation": _ours("published", uniform=True, **_BEFORE),
    "no auxiliary loss": _ours("published", **(_BEFORE | _NONE)),
    "logarithm of the error": _ours("published", logarithm=True, **_BEFORE),
    "all of these": _ours(
        "published", logarithm=True, scaled_after=True, uniform=True, **(_BEFORE | _NONE | {"learning_rate": RULE})
    ),
    "logarithm, no auxiliary loss, rate 0.1 / sqrt(n)": _ours(
        "published", logarithm=True, **(_NONE | {"learning_rate": 0.1 / FEATURES**0.5})
    ),
    "the same, rising and falling": _ours(
        "published", logarithm=True, warmup=0.05, decay=0.5, **(_NONE | {"learning_rate": 0.1 / FEATURES**0.5})
    ),
}
"""Changes that explain the difference: the published recipe with one each, then with what the standard one adds."""

LONG: tuple[str, ...] = ("topk, standard", "topk, published", f"topk, {LIBRARY}")
"""Cases of a long run."""

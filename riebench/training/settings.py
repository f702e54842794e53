"""Settings of the training of one SAE, and the two recipes that they come from.

"standard" is the default. "published" is that of the published SDXL Turbo SAEs (arXiv 2410.22366, section 3, with the
details of its training code). They differ in four places:

- Loss: standard divides each batch's squared error by its own value, so that it minimises the logarithm and the steps
  stay as large when the error has become small; published divides it by the data's variance.
- Features that are idle: standard raises their latent biases until they are active again; published trains them with
  an auxiliary loss.
- Learning rate: standard falls with the square root of the width, warms up, and ends at zero; published is constant.
- Biases: standard changes them in units of the data's deviation; published in those of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from riebench.errors import RiebenchError, near_match

Kind = Literal["topk", "batchtopk", "jumprelu", "matryoshka"]
"""The way in which features are kept sparse.

k features of every position; k on average over a batch; those above a learned threshold, k on average; or batch top-k
whose first features reconstruct by themselves too, in nested groups.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)
Frozen = Literal["none", "decoder", "encoder", "soft"]
"""The part of an SAE that keeps its random initial values: see `SaeTraining.frozen`."""
Recipe = Literal["standard", "published"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)

LARGEST_SEED = 2**63
"""Seeds are below it: PyTorch takes none that is much larger."""

_RATE = 0.1
"""The standard recipe's learning rate times the square root of n.

It is four times the rule of arXiv 2406.04093 (2e-4 at n = 16384), from which fewer steps reach as far; the fall to zero
takes back what such a rate costs at the end.
"""
_DEAD_INTERVALS = 1000
"""Positions after which a feature counts as dead in the standard recipe, in units of n / k.

A feature is active every n / k positions if all are active equally often.
"""
_PUBLISHED: dict[str, Any] = {
    "auxk": 256, "learning_rate": 1e-4, "dead_after": 10_000_000, "warmup": 0.0, "decay": 0.0,
}  # fmt: skip
_LATER: dict[str, Any] = {"kind": "topk", "decay": 0.2, "warmup": 0.0, "recipe": "published"}
"""Published recipe: settings that are not stored where they have these values."""
SOFT_COSINE = 0.8
"""Softly frozen directions: their least cosine with where they started, that of arXiv 2602.14111."""


@dataclass(frozen=True)
class SaeTraining:
    """Settings of one training run.

    Attributes:
        features: n, how many the dictionary holds.
        k: features kept per position; for jumprelu the mean number that is aimed at.
        auxk: dead features that take part in the auxiliary loss; 0 for no such loss.
        batch_size: positions a step.
        learning_rate: Adam's at its highest; None for the standard rule, 0.1 / sqrt(n).
        steps: optimiser steps.
        dead_after: positions without activity after which a feature counts as dead; None for 1000 n / k.
        seed: of initialisation and order, below 2**63.
        kind: see `Kind`.
        decay: share of the run, at its end, over which the learning rate falls linearly to nothing.
        warmup: share of the run, at its beginning, over which it rises linearly.
        recipe: see the module's text.
        frozen: "none" for a full training. The others make controls: "decoder" keeps the random directions of all
            features, "encoder" keeps the encoder's directions, latent biases and thresholds, and "soft" lets no
            direction of either turn further from its random start than to a cosine of `SOFT_COSINE`.

    Raises:
        RiebenchError: if k is not in 1..n, kind or recipe is unknown or they do not go together, or another number is
            out of its range.
    """

    features: int
    k: int
    auxk: int = 0
    batch_size: int = 4096
    learning_rate: float | None = None
    steps: int = 10_000
    dead_after: int | None = None
    seed: int = 0
    kind: Kind = "topk"
    decay: float = 0.5
    warmup: float = 0.05
    recipe: Recipe = "standard"
    frozen: Frozen = "none"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RiebenchError(
                f"an SAE is trained as {', '.join(KINDS[:-1])} or {KINDS[-1]}, not as {self.kind!r}"
                f"{near_match(self.kind, KINDS)}"
            )
        if self.recipe not in RECIPES:
            raise RiebenchError(
                f"a recipe is {' or '.join(RECIPES)}, not {self.recipe!r}{near_match(self.recipe, RECIPES)}"
            )
        if self.frozen not in get_args(Frozen):
            raise RiebenchError(
                f"what is frozen is {', '.join(get_args(Frozen))}, not {self.frozen!r}"
                f"{near_match(self.frozen, get_args(Frozen))}"
            )
        if self.recipe == "published" and self.kind == "jumprelu":
            raise RiebenchError("no jumprelu SAE is trained by the published recipe; use the standard one")
        if not 1 <= self.k <= self.features:
            raise RiebenchError(
                f"an SAE of {self.features} features cannot keep k = {self.k}; k must be 1 to {self.features}"
            )
        if min(self.batch_size, self.steps, self.dead_positions) < 1 or self.auxk < 0:
            raise RiebenchError("batch size, steps and dead-after must be 1 or more, and auxk 0 or more")
        if not 0 <= self.seed < LARGEST_SEED:
            raise RiebenchError(f"the seed must be 0 or more, and below 2**63, not {self.seed}")
        if not 0 < self.peak_rate < float("inf") or not 0 <= self.decay <= 1 or not 0 <= self.warmup <= 1:
            stated = f"{self.peak_rate:g}, {self.decay:g} and {self.warmup:g}"
            raise RiebenchError(f"the learning rate must be above 0, decay and warm-up from 0 to 1, not {stated}")

    @property
    def peak_rate(self) -> float:
        """The learning rate at its highest."""
        return _RATE / self.features**0.5 if self.learning_rate is None else self.learning_rate

    @property
    def interval(self) -> float:
        """The mean number of positions between two activities of a feature, n / k."""
        return self.features / self.k

    @property
    def dead_positions(self) -> int:
        """Positions without activity after which a feature counts as dead."""
        return round(_DEAD_INTERVALS * self.interval) if self.dead_after is None else self.dead_after

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        factor = 1.0
        if self.decay:
            # A fifth of the steps is a whole number of them, which the product may miss by a rounding error.
            falling = max(1, int(self.steps * self.decay + 1e-9))
            factor = min(factor, (self.steps - step) / falling)
        if self.warmup:
            factor = min(factor, (step + 1) / max(1, int(self.steps * self.warmup + 1e-9)))
        return self.peak_rate * factor

    @property
    def stated(self) -> dict[str, Any]:
        """All settings by name, but for `frozen` where nothing is: it was added later."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("frozen", "none")}

    @property
    def stored_settings(self) -> dict[str, Any]:
        """The settings as stored beside the weights.

        Those of the published recipe that were added later are left out where they have the value that was the
        behaviour before.
        """
        if self.recipe == "standard":
            return self.stated | {"learning_rate": self.peak_rate, "dead_after": self.dead_positions}
        return {name: value for name, value in self.stated.items() if name not in _LATER or value != _LATER[name]}

    @classmethod
    def from_stored(cls, settings: Mapping[str, Any]) -> SaeTraining:
        """Return the settings that `stored_settings` describes.

        Raises:
            RiebenchError: if they are no such settings.
        """
        defaults = {} if settings.get("recipe") == "standard" else _LATER
        try:
            return cls(**{**defaults, **settings})
        except TypeError as error:
            raise RiebenchError(f"these are no settings of a training: {error}") from error


def recipe_settings(recipe: Recipe, **stated: Any) -> SaeTraining:
    """Return the settings of a recipe, but for those that are stated.

    Args:
        recipe: gives the defaults.
        stated: fields of `SaeTraining`; None for the recipe's own value.

    Raises:
        RiebenchError: as `SaeTraining`.
    """
    defaults = _PUBLISHED if recipe == "published" else {}
    given = {name: value for name, value in stated.items() if value is not None}
    return SaeTraining(**{**defaults, "recipe": recipe, **given})

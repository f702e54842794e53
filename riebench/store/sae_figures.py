"""Figures of the SAEs of a run, as its folder keeps them.

`SaeFigures` are measured figures of one SAE. `sae_figures.json` of a run folder holds a `MeasuredSae` for each block:
the figures on the activations of the run itself, measured before its first edit, which say whether the SAE describes
what it is used on. This module needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError

from riebench.errors import StoreError
from riebench.store.records import NameWord, RunSpec
from riebench.tasks.schema import Count, StoredModel
from riebench.utils.files import content_digest, parse_json, read_regular

SAE_FIGURES_FILE = "sae_figures.json"
"""File of a run folder with the figures of its SAEs; folders of methods without SAEs have none."""

POOR_VARIANCE = 0.5
"""Explained variance below which an SAE is poor."""
MOST_ACTIVE = 2.0
"""L0, as a multiple of k, above which an SAE is poor."""
DENSE_SHARE = 0.25
"""L0, as a share of all features, above which an SAE without a k is poor."""
MOST_DEAD = 0.9
"""Share of dead features above which an SAE is poor, if there were values enough to see more of them."""
VALUES_A_FEATURE = 10
"""Active values for each feature from which on dead features count: a few positions show few features of any SAE."""
FAR_MEAN = 2.0
"""Distance of the input's mean from what the SAE subtracts, in spreads of the input, above which it is poor."""

Quantity = Literal["input", "output", "update"]
"""What of a block an SAE reads or reconstructs."""

ExplainedVariance = Annotated[
    float,
    Field(le=1, allow_inf_nan=True),
    BeforeValidator(lambda stated: -math.inf if stated is None else stated),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
"""Explained variance; minus infinity, stored as null, where a reconstruction is not finite."""


class SaeFigures(StoredModel):
    """Measured figures of one SAE on one signal of its block."""

    l0: float
    """Features that are not zero, mean over positions."""
    explained_variance: ExplainedVariance
    """1 - summed squared error / summed squared distance to the mean, over all positions and channels together."""
    dead_share: float
    """Share of features that are zero at every measured position."""
    positions: Count
    """Number of measured positions."""
    mean_distance: float | None = None
    """Distance of the input's mean from the mean that the SAE subtracts, divided by the input's spread.

    The spread is the root of the mean squared distance to the mean. None for an SAE that subtracts none, or
    normalises each position first.
    """
    size_ratio: float | None = None
    """Spread of the reconstructions divided by that of what is reconstructed; None where it is not finite."""

    @property
    def useless(self) -> bool:
        """True if the SAE explains nothing: its reconstructions are worse than the mean alone, or not finite."""
        return not self.explained_variance >= 0

    def faults(self, features: int, k: int | None) -> list[str]:
        """Return what is poor about these figures, each in words; nothing if they are as they should be.

        Args:
            features: number of features of the SAE.
            k: features that it keeps at a position, if it says so.
        """
        found = []
        if self.explained_variance < POOR_VARIANCE:
            found.append(f"explained variance {variance_text(self.explained_variance)}{self._size_text()}")
        if k is not None and self.l0 > MOST_ACTIVE * k:
            found.append(f"{self.l0:.4g} features are active at a position (L0), and k is {k}")
        elif k is None and self.l0 > DENSE_SHARE * features:
            found.append(f"{self.l0:.4g} of {features} features are active at a position (L0)")
        if self.dead_share > MOST_DEAD and self.l0 * self.positions >= VALUES_A_FEATURE * features:
            found.append(f"{self.dead_share:.0%} of its features are dead")
        if self.mean_distance is not None and self.mean_distance > FAR_MEAN:
            found.append(f"its input's mean is {self.mean_distance:.3g} spreads from the mean that it subtracts")
        return found

    def _size_text(self) -> str:
        if self.size_ratio is None or 0.5 <= self.size_ratio <= 2:
            return ""
        return f" (its reconstructions vary {self.size_ratio:.3g} times as much as what they stand for)"


def variance_text(value: float) -> str:
    """Return an explained variance as it is printed."""
    return f"{value:.2f}" if math.isfinite(value) else "not finite"


class MeasuredExample(StoredModel):
    """A source picture on which SAEs were measured."""

    id: NameWord
    """Id of the example."""
    hash: NameWord
    """Its content hash."""
    seed: Count
    """Index of the seed."""


class MeasuredSae(StoredModel):
    """One SAE of a run with its figures on that run's activations."""

    sha256: str
    """SHA-256 of its weights."""
    model: str
    """SHA-256 of the model's identity."""
    examples: tuple[MeasuredExample, ...]
    """The source pictures, each with all its steps."""
    reads: Quantity
    """What of the block it reads."""
    signal: Quantity
    """What of the block it reconstructs."""
    features: Count
    """Number of its features."""
    k: Count | None = None
    """Features that it keeps at a position, if it says so."""
    figures: SaeFigures
    """What was measured."""
    accepted: bool = False
    """True if it explains nothing and `--accept-sae` let it be run all the same."""

    @property
    def faults(self) -> list[str]:
        """What is poor about it; empty if nothing is."""
        return self.figures.faults(self.features, self.k)

    def is_of(self, block: str, spec: RunSpec) -> bool:
        """Check that it is the SAE of a block of a run."""
        return self.sha256 == spec.sae_sha256.get(block) and self.model == model_digest(spec)


BlockFigures = dict[str, MeasuredSae]
"""Block -> its SAE with its figures."""


class SaeFiguresFile(StoredModel):
    """Content of `SAE_FIGURES_FILE`."""

    saes: BlockFigures = Field(default_factory=dict)
    """Block -> its SAE with its figures."""

    def encoded(self) -> bytes:
        """Return the content of the file."""
        stored: dict[str, Any] = self.model_dump(mode="json")
        return (json.dumps(stored, indent=1, sort_keys=True) + "\n").encode()


def model_digest(spec: RunSpec) -> str:
    """Return the hash by which figures name the model of a run."""
    return content_digest(spec.model.identity)


def read_sae_figures(folder: Path) -> BlockFigures:
    """Read the figures that a run folder holds; none if it has no such file.

    Raises:
        StoreError: if the file is damaged.
    """
    file = folder / SAE_FIGURES_FILE
    if not file.exists():
        return {}
    try:
        return SaeFiguresFile.model_validate_json(json.dumps(parse_json(read_regular(file)))).saes
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{file}: {where}: {first['msg']}; delete it and repeat `riebench run`") from error
    except ValueError as error:
        raise StoreError(f"{file} is damaged ({error}); delete it and repeat `riebench run`") from error


def merge_figures(stored: Mapping[str, MeasuredSae], found: Mapping[str, MeasuredSae]) -> BlockFigures:
    """Return the figures that a folder is to hold.

    Stored figures of as many examples stay as they are, so that whoever measures again changes nothing.

    Args:
        stored: what it holds of this run.
        found: what this process measured or took from elsewhere.
    """
    merged = dict(stored)
    for block, one in found.items():
        known = stored.get(block)
        if known is None or known.sha256 != one.sha256 or len(known.examples) < len(one.examples):
            merged[block] = one
        elif one.accepted and not known.accepted:
            merged[block] = known.model_copy(update={"accepted": True})
    return merged


def least_variance(runs: Iterable[Mapping[str, MeasuredSae]]) -> float | None:
    """Return the least explained variance of the SAEs of some runs.

    None if none was measured, or one is not finite.
    """
    least = min((one.figures.explained_variance for saes in runs for one in saes.values()), default=-math.inf)
    return least if math.isfinite(least) else None

"""Figures of the SAEs of a run, as its folder keeps them.

`sae_figures.json` of a run folder holds a `MeasuredSae` for each block: its figures on the activations of the run
itself, measured before the first edit, which say whether the SAE describes what it is used on. This module needs no
torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from riebench.errors import StoreError
from riebench.models.sae_quality import Quantity, SaeFigures
from riebench.store.records import NameWord, RunSpec
from riebench.tasks.schema import Count, StoredModel
from riebench.utils.files import content_digest, parse_json, read_regular

SAE_FIGURES_FILE = "sae_figures.json"
"""File of a run folder with the figures of its SAEs; folders of methods without SAEs have none."""


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
        """Descriptions of all that is poor about it; none if nothing is."""
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

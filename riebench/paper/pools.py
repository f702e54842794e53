"""Which share of the features or units of its blocks a setting switches, so that methods are compared at equal ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from riebench.blocks import BLOCKS
from riebench.errors import RiebenchError
from riebench.models.lookup import look_up
from riebench.paper.job import PaperJob
from riebench.tasks.schema import Setting

COUNTED = {"sae": "n_features", "neurons": "n_units"}
"""Method -> its parameter that says how many are switched each way."""


@dataclass(frozen=True)
class Pools:
    """What methods choose from.

    Attributes:
        features: block -> features of its SAE; empty where no SAE is at hand.
        units: block -> feed-forward units over all its layers.
    """

    features: Mapping[str, int]
    units: Mapping[str, int]

    def size(self, setting: Setting) -> int | None:
        """Features or units of all of a setting's blocks together; None if the method has none, or nobody can say."""
        pool = {"sae": self.features, "neurons": self.units}.get(setting.method, {})
        return sum(pool[block] for block in setting.blocks) if set(setting.blocks) <= set(pool) else None

    def share(self, setting: Setting) -> Fraction | None:
        """How much of its pool a setting switches on, and off; None as `size`, or if blocks choose separately."""
        size, count = self.size(setting), count_of(setting)
        if not size or count is None or setting.params.get("ranking") == "separate":
            return None
        return Fraction(count, size)


def count_of(setting: Setting) -> int | None:
    """How many features or units a setting switches each way, if it says so."""
    count = setting.params.get(COUNTED.get(setting.method, ""))
    return count if isinstance(count, int) else None


def share_text(share: Fraction | None) -> str | None:
    """A share as tables print it: "1/128", or "1/153.6" where it is no whole part."""
    return None if share is None else f"1/{float(1 / share):.6g}"


def pools(job: PaperJob) -> Pools:
    """Counts features and units of the four blocks of the job's few-step model."""
    known = look_up(job.few_steps, dtype=job.dtype, options=job.options)
    units = {block: known.shape.units(block) for block in BLOCKS if block in known.shape.blocks}
    place = job.sae or (known.preset.saes if known.preset else None)
    return Pools(_features(place, tuple(units), job.offline) if place else {}, units)


def _features(place: str, blocks: tuple[str, ...], offline: bool) -> dict[str, int]:
    from riebench.saes.sources import load_sources, parse_sources

    try:
        found = load_sources(parse_sources(place), blocks, offline=offline)
    except RiebenchError:
        # Results are also read where their SAEs are not; then shares are not known, and said to be missing.
        return {}
    return {block: sae.n for block, sae in found.items()}

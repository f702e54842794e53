"""Everything that riebench prints about an SAE, as one table of values.

Three kinds of measures are held against the truth: those of few features (`riebench.analysis.sae_score`), the scores by
which methods are compared, read at `SCORED_COUNT` features, and figures of the SAE itself, measured without any edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from riebench.analysis.configurations import Configuration, configurations
from riebench.analysis.sae_score import MEASURES, measure_runs
from riebench.analysis.sae_score.effects import TOGETHER, block_name, counted, gains_at_budgets
from riebench.analysis.validity.units import KEPT, SUCCESS, TARGET, add_success
from riebench.sae_validity.study.means import WHOLE

if TYPE_CHECKING:
    import pandas as pd

    from riebench.store.folder import RunFolder

Kind = Literal["features", "score", "figure"]
Row = tuple[str, str, str, str, int, float]
"""Measure, block, category, example, picture seed, value."""
ROW_COLUMNS = ("measure", "block", "category", "example", "seed", "value")

SCORED_COUNT = 20
"""Number of features, the usual one, at which the scores of methods are read."""
AREA = "area"
TRUTH = "truth"
"""Figure of how well single features match the known attribute values, measured without any edit."""
JUDGE = "targets_few"
"""Measure that stands for the judge: the wished attribute reached with few features."""


@dataclass(frozen=True)
class LadderMeasure:
    """A measure that is held against the truth.

    Attributes:
        name: in files and tables.
        title: what it is, in words.
        sign: 1 if more is better, -1 if less is.
        kind: where it comes from: few features, a score of methods, a figure of the SAE.
        judge: whether it takes the toy world's judge or known values, so that it exists there alone.
        official: whether it stands in the leaderboard's table of SAEs.
        scale: factor between the stored and the printed number.
        decimals: of the printed number.
    """

    name: str
    title: str
    sign: int
    kind: Kind
    judge: bool = False
    official: bool = False
    scale: float = 1
    decimals: int = 2


_AT = f"with {SCORED_COUNT} features"
_SCORES = (
    LadderMeasure("clip_gain", f"gain {_AT}", 1, "score", scale=100),
    LadderMeasure("clip_gain_2", f"gain by the second scorer {_AT}", 1, "score", scale=100),
    LadderMeasure("clip_margin", f"margin {_AT}", 1, "score", scale=100),
    LadderMeasure("clip_direction", f"direction {_AT}", 1, "score"),
    LadderMeasure("lpips", f"LPIPS {_AT}", -1, "score", decimals=3),
    LadderMeasure(AREA, f"mean gain over LPIPS budgets {_AT}", 1, "score", scale=100),
    LadderMeasure(TARGET, f"wished attribute reached {_AT}, %", 1, "score", True, scale=100, decimals=0),
    LadderMeasure(KEPT, f"other attributes kept {_AT}, %", 1, "score", True, scale=100, decimals=0),
    LadderMeasure(SUCCESS, f"reached and all else kept {_AT}, %", 1, "score", True, scale=100, decimals=0),
)
_FIGURES = (
    LadderMeasure("explained_variance", "explained variance of the updates", 1, "figure"),
    LadderMeasure("l0", "active features (L0), fewer taken as better", -1, "figure", decimals=1),
    LadderMeasure("dead_share", "dead features, %", -1, "figure", scale=100, decimals=0),
    LadderMeasure(TRUTH, "match of single features with known values, without any edit", 1, "figure", True),
)
PREFIXES: Mapping[Kind, str] = {"features": "", "score": f"at_{SCORED_COUNT}:", "figure": ""}
"""Kind -> what stands before the name in files, since a score may have the name of a measure of few features."""


@cache
def all_measures() -> Mapping[str, LadderMeasure]:
    """Return all measures by the name that the table of values has for them."""
    few = [
        LadderMeasure(
            one.name, one.title, 1 if one.direction == "higher" else -1, "features", one.judge, one.official, one.scale,
            one.decimals,
        )
        for one in MEASURES.values()
    ]  # fmt: skip
    return {f"{PREFIXES[one.kind]}{one.name}": one for one in (*few, *_SCORES, *_FIGURES)}


def measure_sae(
    folders: Sequence[RunFolder], patch: Sequence[RunFolder], figures: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Measure one SAE on everything.

    Args:
        folders: its run folders.
        patch: those of the activation patch on the same examples.
        figures: block -> name of a figure -> value; `TOGETHER` for the SAE as a whole.

    Returns:
        The columns of `ROW_COLUMNS`.
    """
    import pandas as pd

    few = measure_runs(folders, patch)[[*ROW_COLUMNS]]
    rows: list[Row] = [row for folder in folders for row in _score_rows(folder)]
    rows += [
        (name, block, WHOLE, WHOLE, 0, float(value))
        for block, known in figures.items()
        for name, value in known.items()
    ]
    made = pd.DataFrame(rows, columns=list(ROW_COLUMNS))
    return pd.concat([few, made], ignore_index=True) if len(few) else made


def _score_rows(folder: RunFolder) -> list[Row]:
    """Return the scores of a run folder of `SCORED_COUNT` features; none of others."""
    if counted(folder.spec.setting) != ("sae", SCORED_COUNT):
        return []
    rows: list[Row] = []
    for one in configurations(folder, extra=("clip_margin", "clip_direction"), features=False):
        add_success(one)
        categories = {e: c for c, examples in one.values.get("lpips", {}).items() for e in examples}
        block = block_name(folder, one)
        for measure in _SCORES:
            found = _areas(one) if measure.name == AREA else one.units.get(measure.name, {})
            rows += [
                (f"{PREFIXES['score']}{measure.name}", block, categories[example], example, seed, value)
                for (example, seed), value in found.items()
                if example in categories
            ]
    return rows


def _areas(configuration: Configuration) -> dict[tuple[str, int], float]:
    """Return the mean gain over LPIPS budgets of each unit at its only strength."""
    import numpy as np

    gains, distances = (configuration.units.get(metric, {}) for metric in ("clip_gain", "lpips"))
    units = sorted(set(gains) & set(distances))
    found = gains_at_budgets(np.array([gains[u] for u in units]), np.array([distances[u] for u in units]))
    return dict(zip(units, found.tolist(), strict=True))


__all__ = ["TOGETHER", "LadderMeasure", "all_measures", "measure_sae"]

"""How far pictures moved: LPIPS, pixel distances and, on the toy world, the share of attributes that changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from riebench.analysis.stats import estimate
from riebench.models.presets import is_shipped
from riebench.models.spec import ModelSpec
from riebench.paper.artefact import Column, Row, estimated
from riebench.paper.generating import Pictures
from riebench.paper.job import Noise, PaperJob
from riebench.paper.said import Said
from riebench.scoring.metrics.lpips import BACKBONE
from riebench.scoring.metrics.networks import Networks

if TYPE_CHECKING:
    from numpy.typing import NDArray

LPIPS, CHANGED, PIXEL_MEAN, PIXEL_MEDIAN = "lpips", "changed", "pixel_mean", "pixel_median"
TOGETHER = 16
"""Pictures compared at a time."""
LPIPS_COLUMN = Column(name=LPIPS, title="LPIPS", decimals=3, interval=True)
CHANGED_COLUMN = Column(name=CHANGED, title="attributes changed, %", decimals=1, scale=100, interval=True)


class Differences:
    """Compares pictures with the clean ones of the same runs.

    Args:
        job: says where networks run.
        spec: of the model; the toy world's pictures have a judge.
        runs: what each picture was generated from.
        clean: uint8 [runs, H, W, 3].
    """

    def __init__(self, job: PaperJob, spec: ModelSpec, runs: Sequence[Noise], clean: Pictures) -> None:
        self._networks = Networks(device=job.device)
        self._runs, self._clean = runs, clean
        self._truth = self._networks.get("judge")(list(clean)) if is_judged(spec) else None

    def rows(self, changed: Pictures) -> Row:
        """Means over prompts with their intervals.

        Args:
            changed: uint8 [runs, H, W, 3].
        """
        values: dict[str, NDArray[np.float64]] = {LPIPS: self._lpips(changed)}
        sums = np.abs(changed.astype(np.float64) - self._clean).sum(-1).reshape(len(changed), -1) / 255
        values |= {PIXEL_MEAN: sums.mean(1), PIXEL_MEDIAN: np.median(sums, axis=1)}
        if self._truth is not None:
            pairs = zip(self._truth, self._networks.get("judge")(list(changed)), strict=True)
            values[CHANGED] = np.array([np.mean([was[name] != now[name] for name in was]) for was, now in pairs])
        row: Row = {}
        for name, its in values.items():
            row |= self._estimated(name, its)
        return row

    def _lpips(self, changed: Pictures) -> NDArray[np.float64]:
        firsts = range(0, len(changed), TOGETHER)
        return np.concatenate(
            [
                self._networks.get("lpips").distance(self._clean[i : i + TOGETHER], changed[i : i + TOGETHER])
                for i in firsts
            ]
        )

    def _estimated(self, name: str, values: NDArray[np.float64]) -> Row:
        by_prompt: dict[str, list[float]] = {}
        for run, value in zip(self._runs, values, strict=True):
            by_prompt.setdefault(run.name, []).append(float(value))
        return estimated(name, estimate({"prompts": by_prompt}))


def is_judged(spec: ModelSpec) -> bool:
    """Whether the truth of a model's pictures can be read: the shipped toy models at their own size."""
    from riebench.scoring.metrics.judge import SIDE

    return is_shipped(spec) and spec.size == SIDE


def measures(spec: ModelSpec) -> Said:
    """What measured, for an artefact's settings."""
    if not is_judged(spec):
        return {"LPIPS": BACKBONE}
    from riebench.scoring.metrics.judge import identity

    return {"LPIPS": BACKBONE, "judge": identity()}

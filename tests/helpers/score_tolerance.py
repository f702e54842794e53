"""How much scores may differ between runs that compute other pictures together: the promise of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from riebench.store.folder import RunFolder

USUAL = 1e-3
TOLERANCES = {"psnr_bg": 0.05, "pie_psnr": 0.05, "pie_clip_target": 0.1, "pie_clip_region": 0.1}
"""Metrics in decibels, and of 100 points."""
FAINTEST = 60.0
"""Decibels above which single pixels that round the other way move a signal-to-noise ratio."""
LEAST_MOVE = 0.005
"""1 - clip_image below which the picture's embedding has moved too little for its direction to be known."""
DECIBELS = ("psnr_bg", "pie_psnr")


def differing_scores(one: Sequence[RunFolder], other: Sequence[RunFolder]) -> list[str]:
    """Describe the scores that differ by more than is promised.

    Args:
        one: run folders, all scored.
        other: the same runs, computed otherwise.
    """
    found = []
    for first, second in zip(one, other, strict=True):
        values, others = _values(first), _values(second)
        if values.keys() != others.keys():
            found.append(f"{first.path.name}: {sorted(values.keys() ^ others.keys())[:3]} are scored in one run only")
        for (unit, metric), value in values.items():
            if not _agree(unit, metric, value, others.get((unit, metric)), values):
                found.append(f"{first.path.name} {unit} {metric}: {value} and {others.get((unit, metric))}")
    return found


def _values(folder: RunFolder) -> dict[tuple[str, str], float | None]:
    return {(unit, metric): score.value for (unit, metric, _), score in folder.scores().items()}


def _agree(
    unit: str, metric: str, value: float | None, other: float | None, values: Mapping[tuple[str, str], float | None]
) -> bool:
    if metric in DECIBELS and all(one is None or one > FAINTEST for one in (value, other)):
        return True
    if metric == "clip_direction":
        closeness = values.get((unit, "clip_image"))
        if closeness is not None and 1 - closeness < LEAST_MOVE:
            return True
    if value is None or other is None:
        return value is other
    return abs(value - other) <= TOLERANCES.get(metric, USUAL)

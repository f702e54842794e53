"""Everything that is said about one suite and model, computed once and only when a table or figure asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.validity.agreement import tracked
from riebench.analysis.validity.ranking import Ranking, ranking
from riebench.analysis.validity.units import KEPT, SCORES, SUCCESS, TARGET, TRUTHS, Cell, Ground

MEANT: Mapping[str, tuple[str, ...]] = {
    score: (KEPT,) if score.startswith("lpips") else (TARGET, SUCCESS) for score in SCORES
}
"""Score -> the truths that it is meant to stand for."""

Table = Mapping[str, Mapping[str, Cell]]
"""Row (category or method) -> score -> cell."""


@dataclass(frozen=True)
class Verdicts:
    """The categories of a score and a truth, by what may be said about pairs of unlike truth.

    Attributes:
        right: the score prefers the better picture beyond doubt: the interval lies above one half.
        unclear: its interval holds one half, or there is none.
        wrong: it prefers the worse picture beyond doubt.
        undefined: there is no number.
    """

    right: tuple[str, ...]
    unclear: tuple[str, ...]
    wrong: tuple[str, ...]
    undefined: tuple[str, ...]


class Findings:
    """What can be said about one suite and model.

    Args:
        ground: its pictures and methods.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._tables: dict[tuple[str, str], tuple[Table, Table]] = {}

    @property
    def place(self) -> str:
        """Suite and model, for file names."""
        return f"{self.ground.suite}-{self.ground.model}"

    @cached_property
    def ranking(self) -> Ranking:
        """Methods by score and by truth."""
        return ranking(self.ground)

    def preferred(self, truth: str, by: str = "category") -> Table:
        """Share of pairs of unlike truth in which the better picture scores higher.

        Args:
            truth: name of a stored truth, or `SUCCESS`.
            by: "category" or "method".
        """
        return self._tracked(truth, by)[0]

    def correlation(self, truth: str, by: str = "category") -> Table:
        """Kendall's tau-b; arguments as `preferred`."""
        return self._tracked(truth, by)[1]

    def _tracked(self, truth: str, by: str) -> tuple[Table, Table]:
        if (truth, by) not in self._tables:
            units = self.ground.units
            if by == "category":
                found = tracked(units, truth)
                preferred = _turned({score: one.preferred() for score, one in found.items()})
                correlation = _turned({score: one.correlation() for score, one in found.items()})
            else:
                each = {method: tracked(units, truth, method=method) for method in units.methods}
                preferred = {m: {s: one.preferred()[EVERYTHING] for s, one in own.items()} for m, own in each.items()}
                correlation = {
                    m: {s: one.correlation()[EVERYTHING] for s, one in own.items()} for m, own in each.items()
                }
            self._tables[truth, by] = (preferred, correlation)
        return self._tables[truth, by]

    def verdicts(self, score: str, truth: str) -> Verdicts:
        """What may be said of a score in each category."""
        found: dict[str, list[str]] = {"right": [], "unclear": [], "wrong": [], "undefined": []}
        for category, cells in self.preferred(truth).items():
            if category != EVERYTHING:
                found[verdict(cells[score])].append(category)
        return Verdicts(**{name: tuple(categories) for name, categories in found.items()})


def verdict(cell: Cell) -> str:
    """Which of the kinds of `Verdicts` a share of pairs is."""
    if cell.value is None:
        return "undefined"
    if cell.low is not None and cell.low > 0.5:
        return "right"
    return "wrong" if cell.high is not None and cell.high < 0.5 else "unclear"


def _turned(columns: Mapping[str, Mapping[str, Cell]]) -> Table:
    """Score -> row -> cell, turned into row -> score -> cell."""
    rows = next(iter(columns.values()))
    return {row: {score: cells[row] for score, cells in columns.items()} for row in rows}


def truth_called(name: str) -> str:
    """What documents call a truth."""
    return next(called for called, stored in TRUTHS.items() if stored == name)

"""Results of the validity study of one suite and model.

Each is computed once, and only when a table or figure asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.validity.agreement import track_scores
from riebench.analysis.validity.ranking import Ranking, rank_methods
from riebench.analysis.validity.units import ASKED, KEPT, SCORES, SUCCESS, TARGET, TRUTHS, Cell, JudgedResults

INTENDED_TRUTHS: Mapping[str, tuple[str, ...]] = {
    score: (KEPT,) if score.startswith(("lpips", "dreamsim", "dino")) else (TARGET, SUCCESS)
    for score in (*SCORES, *ASKED)
}
"""Score -> the truths that it is meant to stand for."""

Table = Mapping[str, Mapping[str, Cell]]
"""Row (category or method) -> score -> cell."""


@dataclass(frozen=True)
class Verdicts:
    """The categories of a score and a truth, by the evidence on pairs of unlike truth.

    Attributes:
        right: the score prefers the better picture: the interval lies above one half.
        unclear: its interval holds one half, or there is none.
        wrong: it prefers the worse picture: the interval lies below one half.
        undefined: there is no number.
    """

    right: tuple[str, ...]
    unclear: tuple[str, ...]
    wrong: tuple[str, ...]
    undefined: tuple[str, ...]


class Findings:
    """Results of one suite and model.

    Args:
        judged: its pictures and methods.
    """

    def __init__(self, judged: JudgedResults) -> None:
        self.judged = judged
        self._tables: dict[tuple[str, str], tuple[Table, Table]] = {}

    @property
    def place(self) -> str:
        """Suite and model, for file names."""
        return f"{self.judged.suite}-{self.judged.model}"

    @cached_property
    def ranking(self) -> Ranking:
        """Methods ranked by score and by truth."""
        return rank_methods(self.judged)

    def preference(self, truth: str, by: str = "category") -> Table:
        """Return the share of pairs in which the truly better picture scores higher.

        Args:
            truth: name of a stored truth, or `SUCCESS`.
            by: "category" or "method".
        """
        return self._tables_of(truth, by)[0]

    def correlation(self, truth: str, by: str = "category") -> Table:
        """Return Kendall's tau-b; arguments as `preference`."""
        return self._tables_of(truth, by)[1]

    def _tables_of(self, truth: str, by: str) -> tuple[Table, Table]:
        """Return both tables of a truth, computed at the first call."""
        if (truth, by) not in self._tables:
            units = self.judged.units
            if by == "category":
                found = track_scores(units, truth)
                preferred = _transpose({score: one.preference() for score, one in found.items()})
                correlation = _transpose({score: one.correlation() for score, one in found.items()})
            else:
                each = {method: track_scores(units, truth, method=method) for method in units.methods}
                preferred = {m: {s: one.preference()[EVERYTHING] for s, one in own.items()} for m, own in each.items()}
                correlation = {
                    m: {s: one.correlation()[EVERYTHING] for s, one in own.items()} for m, own in each.items()
                }
            self._tables[truth, by] = (preferred, correlation)
        return self._tables[truth, by]

    def verdicts(self, score: str, truth: str) -> Verdicts:
        """Sort the categories of a score and a truth into kinds of verdicts."""
        found: dict[str, list[str]] = {"right": [], "unclear": [], "wrong": [], "undefined": []}
        for category, cells in self.preference(truth).items():
            if category != EVERYTHING:
                found[classify(cells[score])].append(category)
        return Verdicts(**{name: tuple(categories) for name, categories in found.items()})


def classify(cell: Cell) -> str:
    """Return the kind of verdict of a share of pairs: a field of `Verdicts`."""
    if cell.value is None:
        return "undefined"
    if cell.low is not None and cell.low > 0.5:
        return "right"
    return "wrong" if cell.high is not None and cell.high < 0.5 else "unclear"


def _transpose(columns: Mapping[str, Mapping[str, Cell]]) -> Table:
    """Turn score -> row -> cell into row -> score -> cell."""
    rows = next(iter(columns.values()))
    return {row: {score: cells[row] for score, cells in columns.items()} for row in rows}


def truth_name(name: str) -> str:
    """Return the name of a truth in documents."""
    return next(called for called, stored in TRUTHS.items() if stored == name)

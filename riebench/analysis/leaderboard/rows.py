"""Rows of the leaderboard: printed numbers, tables by inputs, CSV columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riebench.analysis.stats import Estimate
from riebench.tasks.schema import INPUTS, inputs_in_words, sorted_access
from riebench.utils.markup import Block, Heading, MarkupTable, Piece, csv_text

NO_RANK = "–"

COLUMNS: Mapping[str, str] = {
    "suite": "the suite",
    "model": "the model",
    "profile": "the profile whose metrics are ranked by",
    "inputs": "letters of the inputs used: P prompt, A target activations, M masks, T training examples, V inversion",
    "table": "letters of the table that the row stands in; a control stands in that of the method it controls; `SAEs` "
    "for SAE scores",
    "rank": "empty for what is unranked",
    "method": "name of the method, or of the configuration in profiles other than `default`",
    "control_of": "the method that it is a control of",
    "sae": "where its SAEs come from, and the beginning of the least of their hashes",
    "block_set": "blocks edited together",
    "edit_strengths": "edit strengths tested; strengths that give the same pictures count once",
    "metric": "what `score` is: `mean_gain` (over LPIPS budgets), or the metric that the profile ranks by; `sae_` and "
    "a measure for SAE scores",
    "score": "what rows are sorted by, as stored (gains are printed x100)",
    "score_low": "lower end of its 95 % interval",
    "score_high": "upper end of its 95 % interval",
    "micro_average": "the mean gain with every example weighing the same, whatever its category",
    "completion": "mean gain as a share of the gain of the target prompt's own pictures",
    "completion_low": "lower end of its 95 % interval",
    "completion_high": "upper end of its 95 % interval",
    "lpips": "mean LPIPS at which the gains were read",
    "second_scorer": "mean gain by the second scorer, at the strengths that the first one chose; empty if not measured",
    "scorer": "the network that measured the gains",
    "reference": "the method that `difference` is to",
    "difference": "mean gain minus that of the reference",
    "p": "of the difference, corrected over all methods of the section",
    "detectable": "difference to the reference that 80 % of such experiments would find",
    "n_scored": "pictures with a score",
    "n_expected": "pictures that should have one",
    "runs": "beginnings of the ids of its runs",
    "notes": "why a row is unranked, and what else is to be known of it",
    "sae_explained_variance": "least explained variance of its SAEs on the activations of its runs",
    "off_distribution": "share of edited positions whose activations are farther out than 99 % of unedited ones, at "
    "the edit strength with the largest mean gain; empty where it was not measured",
    "off_distribution_before": "the same share before the edit, at the same positions",
    "second_scorer_low": "lower end of the 95 % interval of `second_scorer`",
    "second_scorer_high": "upper end of its 95 % interval",
    "second_scorer_network": "the network that measured `second_scorer`",
    "confirmed": "what methods are ranked by where two scorers have measured: the smaller of both shares of the target "
    "prompt's gain",
    "confirmed_low": "lower end of its 95 % interval",
    "confirmed_high": "upper end of its 95 % interval",
    "decided_by": "the scorer of the smaller share: `first` or `second`",
    "rank_by_first": "rank by the first scorer alone",
    "rank_by_second": "rank by the second scorer alone",
}
"""Column of leaderboard.csv -> what it holds. Columns may be added at the end; none changes its name or place."""

CsvRow = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One part of the leaderboard: a suite, a model and a profile.

    Attributes:
        title: of its heading.
        conclusion: sentences on what was found; none without anything to say.
        blocks: tables and what defines their columns.
        rows: of leaderboard.csv.
    """

    title: tuple[Piece, ...]
    conclusion: tuple[Piece, ...]
    blocks: tuple[Block, ...]
    rows: tuple[CsvRow, ...]


def leaderboard_csv(rows: Iterable[CsvRow]) -> str:
    """Return the text of leaderboard.csv.

    Numbers have nine significant digits: with fewer, what is rounded again for a table may differ from it; the last of
    more may differ between machines, and the file is compared byte by byte.

    Args:
        rows: values by column; a column that one lacks stays empty.
    """
    return csv_text([*COLUMNS], ([_csv_value(row.get(name)) for name in COLUMNS] for row in rows))


def _csv_value(value: object) -> object:
    return f"{value:.9g}" if isinstance(value, float) else value


def tables_by_inputs(header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> list[Block]:
    """Return one table with a heading for each choice of inputs.

    Fewest inputs first: what a method does with fewer of them can be done wherever those of a later table are there, so
    each table is read against those above it. The best table first would put new runs in the place of old ones.

    Args:
        header: of every table.
        rows: letters of the inputs that a row is listed under, and its cells; rows keep their order.
    """
    tables: dict[str, list[Sequence[str]]] = {}
    for letters, cells in rows:
        tables.setdefault(sorted_access(letters), []).append(cells)
    blocks: list[Block] = []
    for letters in sorted(tables, key=inputs_order):
        blocks += [
            Heading(3, (f"Inputs used: {inputs_in_words(letters)}",)),
            MarkupTable.of(header, tables[letters]),
        ]
    return blocks


def inputs_order(letters: str) -> tuple[int, list[int]]:
    """Return the sort key of inputs: fewest first, then in the order of `INPUTS`."""
    return len(letters), [[*INPUTS].index(letter) for letter in sorted_access(letters)]


def number_text(value: float | None, decimals: int) -> str:
    """Return a number x100 as it is printed; a dash for none."""
    return NO_RANK if value is None else f"{round(100 * value, decimals) + 0.0:.{decimals}f}"


def interval_text(value: Estimate | None, decimals: int) -> str:
    """Return an estimate x100 with its interval as it is printed."""
    if value is None or value.mean is None:
        return NO_RANK
    ends = f" [{number_text(value.low, decimals)}, {number_text(value.high, decimals)}]"
    return number_text(value.mean, decimals) + ends


def p_text(value: float) -> str:
    """Return a p-value as it is printed."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def joined(names: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return names with commas between and "and" before the last."""
    found: list[Piece] = []
    for index, name in enumerate(names):
        if index:
            found.append(" and " if index == len(names) - 1 else ", ")
        found.append(name)
    return tuple(found)

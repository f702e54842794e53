"""Comparison of two methods: the paired differences of their areas.

Differences are given by category and by block set, each with its interval and an adjusted p-value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.standings import ENDS, MIN_LEVELS, Entry, MethodComparison, entries
from riebench.analysis.stats import ALPHA, holm, interval, p_value
from riebench.errors import RiebenchError, near_match
from riebench.store.folder import RunFolder
from riebench.tasks.schema import ALL_CATEGORIES
from riebench.utils.markup import markdown_table


@dataclass(frozen=True)
class Difference:
    """A difference of areas: first method minus second, on the same examples.

    Attributes:
        block_set: blocks edited together.
        category: or "all".
        mean: difference of the areas.
        low: lower end of its 95 % interval.
        high: upper end.
        p: adjusted over all differences of the comparison.
        n_examples: behind it.
    """

    block_set: str
    category: str
    mean: float
    low: float
    high: float
    p: float
    n_examples: int

    @property
    def clear(self) -> bool:
        """True if the adjusted p-value is below 0.05."""
        return self.p < ALPHA


def compare(folders: Sequence[RunFolder], first: str, second: str) -> list[Difference]:
    """Compare two methods of one suite and model.

    Level by level they are chosen on all categories, as on the leaderboard; then each category is read alone.

    Args:
        folders: run folders of one suite and model.
        first: a setting, or a group of settings.
        second: likewise.

    Raises:
        RiebenchError: if one is unknown or has gaps or several SAEs, or they share no block set.
    """
    found = entries(folders, single_blocks=True)
    names = sorted({entry.name for entry in found})
    for name in (first, second):
        if name not in names:
            raise RiebenchError(f"no method {name!r} among these results{near_match(name, names)}")
    sides = [_side(found, name) for name in (first, second)]
    shared = [block_set for block_set in sides[0] if block_set in sides[1]]
    if not shared:
        raise RiebenchError(
            f"{first} edits {', '.join(sides[0])} and {second} {', '.join(sides[1])}: they share no block set"
        )
    raw: dict[tuple[str, str], tuple[float, float, float, float, int]] = {}
    for block_set in shared:
        pair = (sides[0][block_set], sides[1][block_set])
        raw |= {(block_set, category): row for category, row in _differences(MethodComparison(pair), pair).items()}
    adjusted = holm({"\n".join(place): row[3] for place, row in raw.items()})
    return [
        Difference(block_set, category, row[0], row[1], row[2], adjusted[f"{block_set}\n{category}"], row[4])
        for (block_set, category), row in raw.items()
    ]


def _side(found: Sequence[Entry], name: str) -> dict[str, Entry]:
    """Return the method of a name on each block set."""
    side: dict[str, Entry] = {}
    for entry in (one for one in found if one.name == name):
        other = side.setdefault(entry.block_set, entry)
        if other is not entry:
            saes = " and ".join(one.sae or "none" for one in (other, entry))
            raise RiebenchError(
                f"{name} on {entry.block_set} is there with several SAEs ({saes}), each a method of its own; "
                "compare one at a time: --results FOLDER with the others left out"
            )
    return side


def _differences(
    comparison: MethodComparison, pair: tuple[Entry, Entry]
) -> dict[str, tuple[float, float, float, float, int]]:
    """Return the difference of two entries in each category.

    The values are category -> difference, lower and upper end of its interval, raw p, number of examples.
    """
    for entry in pair:
        gap = comparison.gap(entry)
        if gap is not None:
            raise RiebenchError(
                f"{entry.name} on {entry.block_set} cannot be compared: {gap}; run and score it to its end"
            )
    rows = {}
    for category in (*(c for c in ALL_CATEGORIES if c in comparison.examples.strata), EVERYTHING):
        areas = [comparison.trade_off(entry, category=None if category == EVERYTHING else category) for entry in pair]
        if areas[0] is None or areas[1] is None:
            continue
        draws = areas[0].area - areas[1].area
        ends = interval(draws[1:])
        if ends is None or not np.isfinite(draws[0]):
            continue
        n = len(comparison.examples.ids) if category == EVERYTHING else len(comparison.examples.strata[category])
        rows[category] = (float(draws[0]), *ends, p_value(draws[1:]), n)
    return rows


def few_levels_note(folders: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return a note on methods with too few levels to use all budgets.

    One paragraph for each of the named methods; "" if none has too few levels.
    """
    few: dict[str, int] = {}
    for entry in entries(folders, single_blocks=True):
        if entry.name in names and entry.method not in ENDS and entry.levels < MIN_LEVELS:
            few[entry.name] = min(entry.levels, few.get(entry.name, MIN_LEVELS))
    return "".join(
        f"{name} has {n} {'level' if n == 1 else 'levels'} of its knob, of {MIN_LEVELS} that a rank takes: its area "
        "says what this reaches, not what the method could.\n\n"
        for name, n in few.items()
    )


def comparison_text(differences: Sequence[Difference], first: str, second: str, notes: str = "") -> str:
    """Return the comparison as a Markdown table.

    Rows are block sets, columns are categories; * marks differences with an adjusted p-value below 0.05.

    Args:
        differences: of `compare`.
        first: its first method.
        second: its second.
        notes: paragraphs before the table, such as those of `few_levels_note`.

    Raises:
        RiebenchError: if there is nothing to print.
    """
    if not differences:
        raise RiebenchError(f"{first} and {second} have no category in common that both have numbers for")
    categories = list(dict.fromkeys(one.category for one in differences))
    blocks = list(dict.fromkeys(one.block_set for one in differences))
    cells = {(one.block_set, one.category): one for one in differences}
    rows = [[block_set, *(_cell(cells.get((block_set, category))) for category in categories)] for block_set in blocks]
    heading = (
        f"{first} minus {second}: area x100 [95 % interval], paired over "
        f"{max(one.n_examples for one in differences)} examples; * adjusted p below {ALPHA} (Holm over "
        f"{len(differences)} differences).\n\n"
    )
    return heading + notes + markdown_table(["blocks", *categories], rows)


def _cell(one: Difference | None) -> str:
    """Return a difference with its interval as it is printed."""
    if one is None:
        return "–"
    return f"{100 * one.mean:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]{'*' if one.clear else ''}"

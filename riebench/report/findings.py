"""Findings on the first screen: sentences on what each block does.

Blocks are told apart by how often the judge finds the target, or by their CLIP gain where no judge measured. A sentence
claims a difference only if its p-value, adjusted over all differences of its kind, is below 0.05, and only in
categories with enough examples for that. Numbers without a claim are in the heat maps beside the sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.compare import contrasts
from riebench.analysis.configurations import EVERYTHING, Configuration, TableRow
from riebench.analysis.multiple import ALPHA, step_down
from riebench.analysis.standings import CONTROLLED, MIN_EXAMPLES
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES
from riebench.analysis.tradeoff import Examples, SampleMean
from riebench.blocks import ALL_BLOCKS, NO_BLOCKS
from riebench.errors import RiebenchError
from riebench.report.data import EFFECT, SAE_METHOD, CachedRunFolder, Group
from riebench.scoring.profiles import metric_format

REACHED, KEPT = "judge_target", "judge_kept"
"""Metrics of the judge: whether a picture has the target attribute, and what share of the others it kept."""

HARD_SPACE = "\u00a0"


@dataclass(frozen=True)
class Finding:
    """One sentence; `subject` is what it is about and comes first."""

    subject: str
    text: str


@dataclass(frozen=True)
class Findings:
    """Findings on one suite and model.

    Attributes:
        setting: the method configuration that they are about.
        description: its description.
        strength: at which it edits.
        rows: one configuration for each set of blocks at that strength.
        items: the sentences.
        metric: what blocks are told apart by.
        best: (block, category) of every block that is better in a category than each other one.
        examples: number of examples.
        seeds: largest number of seeds of an example.
    """

    setting: str
    description: str
    strength: float
    rows: tuple[Configuration, ...]
    items: tuple[Finding, ...]
    metric: str
    best: frozenset[tuple[str, str]]
    examples: int
    seeds: int


def find(group: Group) -> Findings | None:
    """Return the findings on a suite and model, or None if no run edits blocks.

    They are about the run that the page shows first if it edits blocks one by one, or else about the first SAE
    method, or the first method, that does.
    """
    ordered = sorted(group.folders, key=lambda f: (f is not group.leading, f.spec.setting.method != SAE_METHOD))
    for folder in ordered:
        rows = _rows_at_one_strength(group, folder)
        if len(_single(rows)) > 1:
            return _findings(group, folder, rows)
    return None


def _rows_at_one_strength(group: Group, folder: CachedRunFolder) -> list[Configuration]:
    """Return a run's scored configurations at the strength nearest to 1.

    There is one for each set of blocks.
    """
    name = folder.spec.setting.name
    found = [
        c for c in group.configurations
        if c.setting == name and c.block_set != NO_BLOCKS and c.counts(EFFECT)[0]
    ]  # fmt: skip
    strength = min((c.strength for c in found), key=lambda value: (abs(value - 1), value), default=1.0)
    return [c for c in found if c.strength == strength]


def _single(rows: Iterable[Configuration]) -> list[Configuration]:
    """Return the configurations of single blocks."""
    return [c for c in rows if c.block_set != ALL_BLOCKS and "+" not in c.block_set]


def _findings(group: Group, folder: CachedRunFolder, rows: Sequence[Configuration]) -> Findings:
    """Return the findings on one run."""
    metric = REACHED if all(c.counts(REACHED)[0] for c in _single(rows)) else EFFECT
    effects = BlockEffects.of(_single(rows), group.categories, metric)
    setting, strength = folder.spec.setting, rows[0].strength
    items = [*effects.findings(), *_whole_findings(group, rows, claims=bool(effects.tested))]
    return Findings(
        setting.name, setting.description, strength, tuple(rows), tuple(items), metric,
        frozenset((block, category) for category, block in effects.best.items()),
        len({example for c in rows for example in c.example_means(EFFECT)}), max(c.seeds(EFFECT) for c in rows),
    )  # fmt: skip


@dataclass(frozen=True)
class BlockEffects:
    """Effects of single blocks in each category, with the claims they support.

    Attributes:
        rows: one configuration for each block.
        metric: what blocks are told apart by.
        categories: those with numbers.
        tested: categories with enough examples for a claim.
        fewest: number of independent examples in the category that has fewest.
        best: category -> the block that is better there than each other one.
        harmful: (block, category) of CLIP gains below 0.
    """

    rows: Sequence[Configuration]
    metric: str
    categories: tuple[str, ...]
    tested: tuple[str, ...]
    fewest: int
    best: Mapping[str, str]
    harmful: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, rows: Sequence[Configuration], categories: Sequence[str], metric: str) -> BlockEffects:
        """Test blocks against each other, and their gains against 0.

        All tests are on the examples that all blocks have.
        """
        means = [found for c in rows for found in (c.example_means(EFFECT), c.example_means(metric))]
        shared = {
            example: category
            for category, its in rows[0].values.get(EFFECT, {}).items()
            for example in its if all(example in found for found in means)
        }  # fmt: skip
        if not shared:
            return cls(rows, metric, (), (), 0, {}, frozenset())
        examples = Examples.of(shared, rows[0].clusters)
        sizes = {category: len(first) for category, (first, _) in examples.independent.items()}
        tested = tuple(c for c in categories if sizes.get(c, 0) >= MIN_EXAMPLES)
        weights = np.vstack([np.ones((1, len(examples.ids))), examples.draws(REPLICATES, BOOTSTRAP_SEED)])
        best = _best_blocks(_values(rows, metric, examples), examples, weights, tested)
        harmful = _below_zero(_values(rows, EFFECT, examples), examples, weights, tested)
        return cls(
            rows, metric, tuple(c for c in categories if c in sizes), tested, min(sizes.values()),
            {c: b for c, b in best.items() if (_row(rows, b, metric, c).ci_low or 0) > 0},
            frozenset((b, c) for b, c in harmful if (_row(rows, b, EFFECT, c).ci_high or 0) < 0),
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        """Return a sentence for each block, and one on what cannot be told apart."""
        if not self.tested:
            return [
                Finding(
                    "Too few examples for a claim",
                    f": a category here has {self.fewest} independent examples, and which block does what is said from "
                    f"{MIN_EXAMPLES} on. The numbers below describe these examples alone.",
                )
            ]
        made = [found for c in self.rows if (found := self._finding(c.block_set)) is not None]
        unclear = [c for c in self.tested if c not in self.best]
        if unclear:
            names = listed([category_words(c) for c in unclear])
            made.append(Finding(f"In {names}", " the best block is not told apart from the next."))
        small = [c for c in self.categories if c not in self.tested]
        if small:
            names = listed([category_words(c) for c in small])
            made.append(Finding("Too few examples for a claim", f" in {names}."))
        return made

    def _finding(self, block: str) -> Finding | None:
        """Return the sentence on one block, or None."""
        most = [c for c in self.tested if self.best.get(c) == block]
        less = [c for c in self.tested if (block, c) in self.harmful]
        parts = []
        if most:
            better = "reaches the target more often" if self.metric == REACHED else "gains more"
            parts.append(f"{better} than each other block in {self._numbers(block, self.metric, most)}")
        if less:
            parts.append(f"loses alignment in {self._numbers(block, EFFECT, less)}")
        return Finding(block, f" {', and '.join(parts)}.") if parts else None

    def _numbers(self, block: str, metric: str, categories: Sequence[str]) -> str:
        """Return categories with a block's number and interval in each."""
        unit = f"{HARD_SPACE}%" if metric == REACHED else ""
        rows = {c: _row(self.rows, block, metric, c) for c in categories}
        return listed([f"{category_words(c)} ({interval_text(row)}{unit})" for c, row in rows.items()])


def _row(rows: Iterable[Configuration], block: str, metric: str, category: str) -> TableRow:
    return next(c for c in rows if c.block_set == block).row(metric, category)


BlockValues = Mapping[str, NDArray[np.float64]]
"""Block -> number of each example, mean over seeds."""


def _values(rows: Iterable[Configuration], metric: str, examples: Examples) -> BlockValues:
    """Return each block's number of each example."""
    means = {c.block_set: c.example_means(metric) for c in rows}
    return {block: np.array([found[example] for example in examples.ids]) for block, found in means.items()}


def _best_blocks(
    values: BlockValues, examples: Examples, weights: NDArray[np.float64], categories: Sequence[str]
) -> dict[str, str]:
    """Return the block of each category that is better than each other one.

    Categories without such a block are left out.
    """
    pairs = {
        (category, first, second): SampleMean.of(values[first] - values[second], examples, weights, category).replicates
        for category in categories
        for first, second in combinations(values, 2)
    }
    adjusted = step_down({"\n".join(pair): found for pair, found in pairs.items()})
    wins = set()
    for (category, first, second), found in pairs.items():
        if adjusted[f"{category}\n{first}\n{second}"] < ALPHA:
            wins.add((category, first, second) if found.mean > 0 else (category, second, first))
    return {
        category: block
        for category in categories for block in values
        if all((category, block, other) in wins for other in values if other != block)
    }  # fmt: skip


def _below_zero(
    gains: BlockValues, examples: Examples, weights: NDArray[np.float64], categories: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the blocks and categories whose gain is below 0."""
    found = {
        (block, category): SampleMean.of(values, examples, weights, category).replicates
        for category in categories for block, values in gains.items()
    }  # fmt: skip
    adjusted = step_down({"\n".join(place): one for place, one in found.items()})
    return [place for place, one in found.items() if one.mean < 0 and adjusted["\n".join(place)] < ALPHA]


def _whole_findings(group: Group, rows: Sequence[Configuration], *, claims: bool) -> list[Finding]:
    """Return sentences on all blocks edited together.

    They state the gain, that of the control, and what the judge found.
    """
    whole = next((c for c in rows if c.block_set == ALL_BLOCKS), None)
    if whole is None:
        return []
    text = f" gain {interval_text(whole.row(EFFECT, EVERYTHING))}"
    control = _control(group, whole)
    if control is not None:
        text += f", their control {control.setting} {interval_text(control.row(EFFECT, EVERYTHING))}"
        text += _difference(group, whole, control) if claims else ""
    reached, kept = whole.row(REACHED, EVERYTHING), whole.row(KEPT, EVERYTHING)
    if reached.mean is not None and kept.mean is not None:
        text += (
            f". The judge finds the target in {interval_text(reached)}{HARD_SPACE}% of these pictures and "
            f"{interval_text(kept)}{HARD_SPACE}% of their other attributes kept"
        )
    return [Finding("All blocks together", f"{text}.")]


def _control(group: Group, whole: Configuration) -> Configuration | None:
    """Return the first control with the same blocks and strength, or None."""
    controls = [name for name, method in CONTROLLED.items() if method == whole.method]
    found = [
        c
        for c in group.configurations
        if c.method in controls and (c.block_set, c.strength) == (whole.block_set, whole.strength)
    ]
    return min((c for c in found if c.counts(EFFECT)[0]), key=lambda c: controls.index(c.method), default=None)


def _difference(group: Group, whole: Configuration, control: Configuration) -> str:
    """Return the words on the difference of all blocks together to their control."""
    try:
        found = contrasts(group.folders, EFFECT, *(f"{c.setting}@{c.strength:g}" for c in (whole, control)))
    except RiebenchError:
        # Without shared examples there is no difference to state.
        return ""
    one = next(contrast for contrast in found if contrast.category == EVERYTHING)
    numbers = _with_ends(EFFECT, one.mean, one.low, one.high)
    return f": a difference of {numbers}" if one.verdict else f": not told apart (difference {numbers})"


def listed(words: Sequence[str]) -> str:
    """Return words joined as in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def category_words(name: str) -> str:
    """Return a category as sentences write it."""
    return name.removeprefix("change_").replace("_", " ")


def interval_text(row: TableRow) -> str:
    """Return a mean with its interval as tables print it."""
    if row.mean is None:
        return "–"
    return _with_ends(row.metric, row.mean, row.ci_low, row.ci_high)


def _with_ends(metric: str, value: float, low: float | None, high: float | None) -> str:
    """Return a number with the ends of its interval, which no line break parts."""
    number = metric_format(metric).number
    if low is None or high is None:
        return number(value)
    return f"{number(value)}{HARD_SPACE}[{number(low)},{HARD_SPACE}{number(high)}]"

"""Comparison of two methods or method configurations, example by example.

The first part gives the paired differences of two methods' mean gains over LPIPS budgets, by category and by block
set, each with its interval and a corrected p-value. The second part makes sentences of the differences of two settings
in any metric: higher, lower or not told apart, as each interval allows. Documents hold such sentences in marked parts,
and claims of this kind are nowhere else in them (`check_claims`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from riebench.analysis.configurations import EVERYTHING, Configuration, configurations, present_categories
from riebench.analysis.multiple import ALPHA, step_down
from riebench.analysis.standings import ENDS, MIN_LEVELS, Entry, MethodComparison, entries
from riebench.analysis.stats import BOOTSTRAP_SEED, LEVEL, REPLICATES, Replicates, wilson
from riebench.analysis.tradeoff import Examples, SampleMean
from riebench.blocks import ALL_BLOCKS, block_set_name
from riebench.errors import RiebenchError, near_match
from riebench.registry import METRICS
from riebench.scoring.profiles import metric_format
from riebench.store.folder import RunFolder, find_run_folders
from riebench.tasks.schema import ALL_CATEGORIES
from riebench.utils.markup import code_span, markdown_table

MEAN_GAIN = "mean_gain"
"""Not a metric: the mean gains of two methods over LPIPS budgets, read at equal LPIPS."""
CLAIM = re.compile(
    r"\b(clearly|beats?|outperforms?|always|never|in all (?:\w+ )?categories|in all nine|in every example|"
    r"does not buy|significant(?:ly)?|by far|far (?:above|below|better|worse))\b",
    re.IGNORECASE,
)
"""Words that claim more than a number; documents hold them in generated parts alone."""


@dataclass(frozen=True)
class Difference:
    """A difference of mean gains: first method minus second, on the same examples.

    Attributes:
        block_set: blocks edited together.
        category: or "all".
        mean: difference of the mean gains over LPIPS budgets.
        low: lower end of its 95 % interval.
        high: upper end.
        p: corrected over all differences of the comparison.
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
        """True if it is significant: the corrected p-value is below 0.05."""
        return self.p < ALPHA


def compare(folders: Sequence[RunFolder], first: str, second: str) -> list[Difference]:
    """Compare two methods of one suite and model.

    Edit strengths are chosen on all categories, as on the leaderboard; then each category is read alone.

    Args:
        folders: run folders of one suite and model.
        first: a method configuration, or a group of them.
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
    found_rows: dict[tuple[str, str], tuple[Replicates, int]] = {}
    for block_set in shared:
        pair = (sides[0][block_set], sides[1][block_set])
        rows = _differences(MethodComparison(pair), pair)
        found_rows |= {(block_set, category): row for category, row in rows.items()}
    adjusted = step_down({"\n".join(place): one for place, (one, _) in found_rows.items()})
    return [
        Difference(block_set, category, one.mean, *(one.interval() or (one.mean, one.mean)),
                   adjusted[f"{block_set}\n{category}"], n)
        for (block_set, category), (one, n) in found_rows.items()
    ]  # fmt: skip


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


def _differences(comparison: MethodComparison, pair: tuple[Entry, Entry]) -> dict[str, tuple[Replicates, int]]:
    """Return the difference of two entries in each category.

    With it goes the number of examples behind it.
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
        difference = (areas[0].area - areas[1].area).replicates
        if difference.interval() is None:
            continue
        n = len(comparison.examples.ids) if category == EVERYTHING else len(comparison.examples.strata[category])
        rows[category] = (difference, n)
    return rows


def few_levels_note(folders: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return a note on methods with too few edit strengths to use all budgets.

    One paragraph for each of the named methods; "" if none has too few.
    """
    few: dict[str, int] = {}
    for entry in entries(folders, single_blocks=True):
        if entry.name in names and entry.method not in ENDS and entry.levels < MIN_LEVELS:
            few[entry.name] = min(entry.levels, few.get(entry.name, MIN_LEVELS))
    return "".join(
        f"{name}: {n} of {MIN_LEVELS} edit strengths tested; its mean gain says what "
        f"{'this reaches' if n == 1 else 'these reach'}, not what the method could.\n\n"
        for name, n in few.items()
    )


def comparison_text(differences: Sequence[Difference], first: str, second: str, notes: str = "") -> str:
    """Return the comparison as a Markdown table.

    Rows are block sets, columns are categories; * marks significant differences.

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
        f"{first} minus {second}: mean gain over LPIPS budgets x100 [95 % interval], paired over "
        f"{max(one.n_examples for one in differences)} examples; * significant (p < {ALPHA}, corrected over "
        f"{len(differences)} differences by max-T step-down).\n\n"
    )
    return heading + notes + markdown_table(["blocks", *categories], rows)


def _cell(one: Difference | None) -> str:
    """Return a difference with its interval as it is printed."""
    if one is None:
        return "–"
    return f"{100 * one.mean:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]{'*' if one.clear else ''}"


@dataclass(frozen=True)
class Contrast:
    """The difference of two configurations in one category, first minus second.

    Attributes:
        category: or "all".
        mean: difference, as stored.
        low: lower end of its 95 % interval.
        high: upper end.
        p: corrected over the categories of the sentence.
    """

    category: str
    mean: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> int:
        """1 or -1 where the first configuration is higher or lower; 0 if not told apart.

        It takes an interval that leaves out 0 and a corrected p below 0.05.
        """
        if self.p >= ALPHA or self.low <= 0 <= self.high:
            return 0
        return 1 if self.mean > 0 else -1


def contrasts(folders: Sequence[RunFolder], metric: str, first: str, second: str) -> list[Contrast]:
    """Compare two configurations category by category, and over all.

    Args:
        folders: run folders of one suite and model.
        metric: a metric, or "mean_gain".
        first: a configuration, with `@STRENGTH` behind it for a strength other than its first; all its blocks together.
        second: likewise.

    Raises:
        RiebenchError: if one is unknown, or they have no examples in common.
    """
    if metric == MEAN_GAIN:
        found = compare(folders, first, second)
        return [Contrast(one.category, one.mean, one.low, one.high, one.p) for one in found]
    sides = [_configuration(folders, name) for name in (first, second)]
    means = [side.example_means(metric) for side in sides]
    of = {example: category for category, its in sides[0].values.get(metric, {}).items() for example in its}
    shared = {example: category for example, category in of.items() if example in means[1]}
    if not shared:
        raise RiebenchError(f"{first} and {second} have no example with {metric} in common")
    examples = Examples.of(shared, sides[0].clusters)
    difference = np.array([means[0][example] - means[1][example] for example in examples.ids])
    weights = np.vstack([np.ones((1, len(examples.ids))), examples.draws(REPLICATES, BOOTSTRAP_SEED)])
    names = [*(c for c in present_categories(sides) if c in examples.strata), EVERYTHING]
    made = {
        name: SampleMean.of(difference, examples, weights, None if name == EVERYTHING else name).replicates
        for name in names
    }
    adjusted = step_down(made)
    counts = {c: len(examples.independent[c][0]) for c in examples.strata} | {
        EVERYTHING: sum(len(first) for first, _ in examples.independent.values())
    }
    share = METRICS.get(metric).is_share
    return [
        Contrast(
            name,
            one.mean,
            *_ends(one, share, counts[name], len(examples.strata) if name == EVERYTHING else 1),
            adjusted[name],
        )
        for name, one in made.items()
    ]


def _ends(found: Replicates, share: bool, n: int, categories: int) -> tuple[float, float]:
    """Return the interval of a difference.

    That of shares is Wilson's, on the scale of -1 to 1.
    """
    if share and not found.errors[0]:
        # No two examples differ here: how often others would is bounded as a share of none is.
        reach = wilson(0.0, 0.0, n - 1, n)[1]
        return max(-1.0, found.mean - reach), min(1.0, found.mean + reach)
    if share and np.isfinite(found.errors[0]):
        low, high = wilson((found.mean + 1) / 2, float(found.errors[0]) / 2, max(1, n - categories), n)
        return 2 * low - 1, 2 * high - 1
    return found.interval() or (-np.inf, np.inf)


def _configuration(folders: Sequence[RunFolder], text: str) -> Configuration:
    """Return a configuration at a strength, on all its blocks."""
    name, _, strength = text.partition("@")
    folder = next((one for one in folders if one.spec.setting.name == name), None)
    if folder is None:
        raise RiebenchError(f"no configuration {name!r}{near_match(name, [one.spec.setting.name for one in folders])}")
    whole = block_set_name(folder.spec.setting.blocks)
    everything = configurations(folder)
    # Together, the usual blocks of a model of another size than its family's official one are "all" as well.
    whole = whole if any(c.block_set == whole for c in everything) else ALL_BLOCKS
    found = [c for c in everything if c.block_set == whole]
    strengths = [f"{c.strength:g}" for c in found]
    wanted = strength or f"{folder.spec.setting.strengths[0]:g}"
    if wanted not in strengths:
        raise RiebenchError(f"{name} has no strength {wanted} on {whole}; it has {', '.join(strengths)}")
    return found[strengths.index(wanted)]


def contrast_text(found: Sequence[Contrast], metric: str, first: str, second: str) -> str:
    """Return the sentences on a contrast, with all numbers.

    They say where the first configuration is higher, lower, and not told apart.

    Args:
        found: of `contrasts`.
        metric: a metric, or "mean_gain".
        first: the first configuration, as given.
        second: the second.
    """
    single = [one for one in found if one.category != EVERYTHING]
    parts = []
    for verdict, words in ((1, "higher"), (-1, "lower"), (0, "not told apart")):
        some = [one for one in single if one.verdict == verdict]
        if some:
            listed = ", ".join(_number(one, metric) for one in some)
            parts.append(f"{words} in {len(some)} of {len(single)} categories ({listed})")
    whole = next((one for one in found if one.category == EVERYTHING), None)
    over_all = "" if whole is None else f" Over all categories {_number(whole, metric, named=False)}."
    unit = _unit(metric)
    return (
        f"{code_span(first)} minus {code_span(second)}, {unit} [{LEVEL:.0%} interval]: {'; '.join(parts)}.{over_all}\n"
    )


def _unit(metric: str) -> str:
    """Return what the numbers of a contrast are."""
    if metric == MEAN_GAIN:
        return "mean gain over LPIPS budgets x100"
    title = re.sub(r" \((?:higher|lower) is better\)", "", metric_format(metric).title)
    return f"points of {title}" if METRICS.get(metric).is_share else title


def _number(one: Contrast, metric: str, *, named: bool = True) -> str:
    """Return a difference with its interval, and its category before it."""
    scale, decimals = (
        (100.0, 2) if metric == MEAN_GAIN else (metric_format(metric).scale, metric_format(metric).decimals)
    )
    mean, low, high = (
        f"{round(scale * value, decimals) + 0.0:+.{decimals}f}" for value in (one.mean, one.low, one.high)
    )
    name = one.category.removeprefix("change_").replace("_", " ")
    return f"{f'{name} ' if named else ''}{mean} [{low}, {high}]"


def contrast_part(place: Path, metric: str, first: str, second: str) -> str:
    """Return the text of a document's marked part.

    Args:
        place: folder of the runs of one suite and model.
        metric: a metric, or "mean_gain".
        first: the first configuration.
        second: the second.

    Raises:
        RiebenchError: as `contrasts`.
    """
    if metric != MEAN_GAIN:
        metric_format(metric)
    return contrast_text(contrasts(_folders(place), metric, first, second), metric, first, second)


def _folders(place: Path) -> list[RunFolder]:
    """Return the run folders of one suite and model."""
    here = place.resolve()
    found = [folder for folder in find_run_folders(here.parents[1]) if folder.path.resolve().parent == here]
    if not found:
        raise RiebenchError(f"{place} holds no results of a suite and model")
    return found


def check_claims(name: str, text: str, generated: Sequence[re.Pattern[str]]) -> None:
    """Refuse words that claim a difference outside the generated parts of a document.

    Args:
        name: the document's, for messages.
        text: its whole text.
        generated: patterns of its generated parts.

    Raises:
        RiebenchError: naming the line and the word.
    """
    for part in generated:
        text = part.sub(lambda match: "\n" * match[0].count("\n"), text)
    text = re.sub(r"`[^`\n]*`", lambda match: " " * len(match[0]), text)
    claim = CLAIM.search(text)
    if claim is not None:
        line = text.count("\n", 0, claim.start()) + 1
        raise RiebenchError(
            f"{name}, line {line}: {claim[0]!r} claims a difference that no interval stands behind; say it by a part "
            "`<!-- contrast: FOLDER metric=METRIC first=CONFIGURATION second=CONFIGURATION -->`, or leave it out"
        )

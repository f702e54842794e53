"""Table of SAEs by few of their features: SAE against SAE, at one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from riebench.analysis.leaderboard.rows import NO_RANK, CsvRow, interval_text, joined, number_text
from riebench.analysis.multiple import ALPHA
from riebench.analysis.sae_score import MEASURES
from riebench.analysis.sae_score.effects import FEATURE_COUNTS, FEW, GAIN
from riebench.analysis.sae_score.measures import BEYOND, SCORE
from riebench.analysis.sae_score.ranking import SaeComparison, SaeStanding
from riebench.analysis.standings import MIN_EXAMPLES
from riebench.analysis.stats import Estimate
from riebench.scoring.profiles import DEFAULT
from riebench.tasks.schema import sorted_access
from riebench.utils.markup import Block, BulletList, Code, Heading, MarkupTable, Paragraph, Piece

SAE_TABLE = "SAEs"
"""What the column `table` of leaderboard.csv says of the rows of SAEs."""
GROUPS = frozenset(
    {
        "sae_by_count", "sae_each_by_count", "sae_fixed_by_count", "random_features_by_count", "activation_patch_once",
    }
)  # fmt: skip
"""Groups of the set `features`: their runs are read for the table of SAEs, and are no methods of their own."""
HALF = "log_features_for_half"
BESIDE: Mapping[str, str] = {HALF: "features for half", "gain_few": "gain", "agreement": "agreement"}
"""Measure that stands beside the score -> the heading of its column."""

Pieces = tuple[Piece, ...]


def sae_score_blocks(comparison: SaeComparison, standings: Sequence[SaeStanding]) -> list[Block]:
    """Return the heading, table and definitions of the SAE score.

    There is nothing if no SAE was tested at few features.
    """
    if not standings:
        return []
    shown = [name for name in BESIDE if any(name in one.measures for one in standings)]
    header = ("rank", "SAE", "score", "95 % interval", *(BESIDE[name] for name in shown), "notes")
    rows = [_cells(one, shown) for one in standings]
    return [
        Heading(3, ("SAE score",)), Paragraph(_reading(comparison)), MarkupTable.of(header, rows), _definitions(shown),
    ]  # fmt: skip


def sae_score_conclusion(standings: Sequence[SaeStanding]) -> Pieces:
    """Return a sentence on the SAEs of the first rank group.

    It is empty below two ranked SAEs.
    """
    ranked = [one for one in standings if one.rank is not None]
    if len(ranked) < 2:
        return ()
    first = [one for one in ranked if one.rank == 1]
    names = joined([Code(one.effects.sae) for one in first])
    if len(first) == len(ranked):
        return (f"No SAE of the {len(ranked)} ranked ones has a significantly higher SAE score (p < {ALPHA:g}, "
                "corrected) than another.",)  # fmt: skip
    number = f"{interval_text(first[0].score, 2)} (x100)"
    if len(first) == 1:
        return ("Of the SAEs, ", *names, f" ranks first alone by its SAE score, {number}.")
    return ("Of the SAEs, ", *names, f" rank first together by their SAE scores; the highest is {number}.")


def sae_score_rows(suite: str, model: str, standings: Sequence[SaeStanding]) -> list[CsvRow]:
    """Return the rows of leaderboard.csv: one for each SAE and measure.

    Measures that no SAE has a number of are left out. The one that ranks comes first and alone has a rank.
    """
    measured = [one for name, one in MEASURES.items() if any(name in standing.measures for standing in standings)]
    return [
        {
            **_columns(suite, model, standing), "metric": f"sae_{measure.name}",
            "rank": standing.rank if measure.name == SCORE else None, **_ends(standing.measures.get(measure.name)),
        }
        for measure in measured
        for standing in standings
    ]  # fmt: skip


def _columns(suite: str, model: str, standing: SaeStanding) -> CsvRow:
    """Return what the rows of an SAE have in common."""
    found = standing.effects.configurations
    first = found[0]
    scored, expected = (sum(one.counts(GAIN)[at] for one in found) for at in (0, 1))
    return {
        "suite": suite, "model": model, "profile": DEFAULT, "inputs": sorted_access(first.access), "table": SAE_TABLE,
        "method": first.method, "sae": standing.effects.sae, "block_set": first.block_set, "scorer": standing.scorer,
        "n_scored": scored, "n_expected": expected, "runs": " ".join(dict.fromkeys(one.run_id[:8] for one in found)),
        "notes": standing.note, "sae_explained_variance": standing.variance,
    }  # fmt: skip


def _ends(value: Estimate | None) -> CsvRow:
    ends = (None, None, None) if value is None else (value.mean, value.low, value.high)
    return dict(zip(("score", "score_low", "score_high"), ends, strict=True))


def _cells(standing: SaeStanding, shown: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of one SAE."""
    score = standing.score
    return (
        NO_RANK if standing.rank is None else str(standing.rank),
        standing.effects.sae,
        number_text(None if score is None else score.mean, 2),
        interval_text(score, 2).partition(" ")[2] or NO_RANK,
        *(_measured(name, standing.measures.get(name)) for name in shown),
        standing.note,
    )


def _measured(name: str, value: Estimate | None) -> str:
    """Return a measure with its interval as it is printed."""
    if name != HALF or value is None or value.mean is None:
        return interval_text(value, MEASURES[name].decimals)
    numbers = [value.mean, *(end for end in (value.low, value.high) if end is not None)]
    mean, *ends = (f"{2**number:.1f}" for number in numbers)
    return f"{mean} [{', '.join(ends)}]" if len(ends) == 2 else mean


def _reading(comparison: SaeComparison) -> Pieces:
    """Return what the score is and how ranks follow from it."""
    few = ", ".join(map(str, FEW[:-1])) + f" and {FEW[-1]}"
    return (
        "SAE against SAE, all with the method ", Code("sae"), " at strength 1 on all blocks together: the score is "
        "the CLIP change along the wish minus the mean change along other attributes (", Code("clip_selectivity"),
        f", x100), mean of {few} features switched on and as many off. With more, any dictionary carries the whole "
        "change. How well it orders SAEs of known quality, and what it cannot tell apart, is in ",
        Code("docs/validity-saes.md"),
        f". {len(comparison.examples.ids)} examples; an SAE's rank is 1 + the number of SAEs that are significantly "
        f"better (p < {ALPHA:g}, corrected over all pairs), and takes a number for every example and at least "
        f"{MIN_EXAMPLES} independent examples in each category.",
    )  # fmt: skip


def _definitions(shown: Sequence[str]) -> Block:
    """Return the list that defines the columns."""
    columns: dict[str, Pieces] = {
        "rank": ("see above.",),
        "SAE": ("where it comes from, and the beginning of the least of its hashes.",),
        "score": ("mean over examples, then categories; sorted by it.",),
        "95 % interval": ("of the score; every other number has its own in brackets.",),
        "features for half": (
            f"features, 1 to {FEATURE_COUNTS[-1]}, that reach half of the gain of activation patching: geometric mean "
            f"over the examples on which it does much; {BEYOND} stands for more than {FEATURE_COUNTS[-1]}.",
        ),
        "gain": ("mean gain within LPIPS budgets (x100), of the same numbers of features.",),
        "agreement": (
            "the same of features that were chosen, with their values, in other examples of the same edit, as % of "
            "the gain: do features mean the same in other examples.",
        ),
        "notes": ("why an SAE is unranked.",),
    }  # fmt: skip
    names = ["rank", "SAE", "score", "95 % interval", *(BESIDE[name] for name in shown), "notes"]
    return BulletList(tuple((Code(name), ": ", *columns[name]) for name in names))

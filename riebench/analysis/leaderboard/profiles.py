"""Sections that rank single configurations, as published scripts do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    TableRow,
    comparison_gaps,
    configurations,
    mixed_in_words,
    present_metrics,
    whole_configurations,
)
from riebench.analysis.leaderboard.rows import NO_RANK, CsvRow, Section, inputs_order, tables_by_inputs
from riebench.analysis.leaderboard.saes import sae_blocks, sae_notes
from riebench.analysis.standings import DISTANCE
from riebench.analysis.tables import outsized_notes
from riebench.blocks import ALL_BLOCKS, NO_BLOCKS
from riebench.scoring.profiles import PROFILES, metric_format
from riebench.store.folder import RunFolder
from riebench.store.sae_figures import least_variance
from riebench.tasks.schema import sorted_access
from riebench.utils.markup import Block, BulletList, Code, Heading, Name, Paragraph, Piece


@dataclass(frozen=True)
class RankedConfiguration:
    """One row of a profile's tables.

    Attributes:
        configuration: what it is.
        row: the metric that is ranked by, over all categories.
        rank: None for one that is unranked.
        gap: why it is unranked; "" for one that is ranked.
        sae_notes: what is to be known of its SAEs.
    """

    configuration: Configuration
    row: TableRow
    rank: int | None
    gap: str
    sae_notes: Sequence[str] = ()

    @property
    def notes(self) -> str:
        """Everything that is to be said of the row; "" for nothing."""
        mixed = mixed_in_words([self.configuration])
        notes = (self.gap, mixed and f"mixes versions: {mixed}", *self.sae_notes)
        return "; ".join(note for note in notes if note)


def profile_section(suite: str, model: str, folders: Sequence[RunFolder], profile: str) -> Section:
    """Return the section of one suite, model and profile.

    Args:
        suite: its name.
        model: its name.
        folders: its run folders.
        profile: any but the default one.
    """
    found = whole_configurations(c for folder in folders for c in configurations(folder, profile, features=False))
    of_saes = sae_notes(folders)
    figures = {folder.spec.run_id: folder.sae_figures() for folder in folders}
    ranked = [
        replace(one, sae_notes=of_saes.get(one.configuration.run_id, ())) for one in sorted(_ranked(found), key=_order)
    ]
    metric, beside = PROFILES[profile].rank, _distances(found, profile)
    header = ["rank", "configuration", metric, "95 % interval", *beside, "notes"]
    tables = tables_by_inputs(header, ((one.configuration.access, _cells(one, beside)) for one in ranked))
    outsized = [Paragraph(tuple(pieces)) for pieces in outsized_notes(found)]
    rows = tuple(
        {
            "suite": suite, "model": model, "profile": profile, **_columns(one),
            "sae_explained_variance": least_variance([figures.get(one.configuration.run_id, {})]),
        }
        for one in sorted(ranked, key=lambda one: inputs_order(one.configuration.access))
    )  # fmt: skip
    place = f"{suite}/{model}/tables/{profile}/per_method.md"
    blocks = (*tables, Heading(3, ("Columns",)), _definitions(beside, profile, place), *outsized, *sae_blocks(folders))
    title = (Name(suite), " on ", Name(model), ", profile ", Code(profile))
    return Section(title, _conclusion(ranked, profile), blocks, rows)


def _distances(found: Sequence[Configuration], profile: str) -> list[str]:
    """Return the LPIPS that a profile measures first, if any.

    It is what an edit costs beside what it gains. There is no room for more: names of metrics are long.
    """
    return [name for name in present_metrics(found) if name.endswith(DISTANCE) and name != PROFILES[profile].rank][:1]


def _conclusion(ranked: Sequence[RankedConfiguration], profile: str) -> tuple[Piece, ...]:
    """Return the sentence on the configuration with the best number."""
    first = [one for one in ranked if one.rank is not None]
    if not first:
        return ("No configuration is ranked yet, so nothing can be concluded.",)
    metric = PROFILES[profile].rank
    number = f"{_mean(first[0].row)} {_interval(first[0].row)}".rstrip()
    return (
        Name(first[0].configuration.label), " has the largest ", Code(metric), f": {number}. This profile ranks by the "
        "number alone and tests no differences.",
    )  # fmt: skip


def _cells(one: RankedConfiguration, beside: Sequence[str]) -> list[str]:
    """Return the cells of one configuration."""
    configuration = one.configuration
    blocks = "" if configuration.block_set in (ALL_BLOCKS, NO_BLOCKS) else f" [{configuration.block_set}]"
    return [
        NO_RANK if one.rank is None else str(one.rank),
        f"{configuration.label}{blocks}",
        _mean(one.row),
        _interval(one.row) or NO_RANK,
        *(_mean(configuration.row(metric, EVERYTHING)) for metric in beside),
        one.notes,
    ]


def _mean(row: TableRow) -> str:
    return NO_RANK if row.mean is None else metric_format(row.metric).number(row.mean)


def _interval(row: TableRow) -> str:
    """Return the interval as printed; "" for none."""
    if row.ci_low is None or row.ci_high is None:
        return ""
    form = metric_format(row.metric)
    return f"[{form.number(row.ci_low)}, {form.number(row.ci_high)}]"


def _columns(one: RankedConfiguration) -> CsvRow:
    """Return the numbers of a configuration by columns of leaderboard.csv."""
    configuration, row = one.configuration, one.row
    access = sorted_access(configuration.access)
    return {
        "inputs": access, "table": access, "rank": one.rank, "method": configuration.label,
        "block_set": configuration.block_set, "edit_strengths": 1, "metric": row.metric, "score": row.mean,
        "score_low": row.ci_low, "score_high": row.ci_high, "scorer": configuration.backbones.get(row.metric, ""),
        "n_scored": row.n_scored, "n_expected": row.n_expected, "runs": configuration.run_id[:8], "notes": one.notes,
    }  # fmt: skip


def _definitions(beside: Sequence[str], profile: str, place: str) -> Block:
    """Return the list that defines each column of the tables above it."""
    metric = PROFILES[profile].rank
    items: list[tuple[Piece, ...]] = [
        (Code("rank"), ": 1 + the number of configurations in the table with a larger ", Code(metric),
         "; no difference is tested. Incomplete configurations are unranked."),
        (Code("configuration"), ": a method configuration, with its edit strength where it has several."),
        (Code(metric), f": {metric_format(metric).title}; sorted by it."),
        (Code("95 % interval"), ": of ", Code(metric), "."),
        *((Code(name), f": {metric_format(name).title}.") for name in beside),
        (Code("notes"), ": why a configuration is unranked. All metrics are in ", Code(place),
         " of the results; scorer, counts and runs in ", Code("leaderboard.csv"), "."),
    ]  # fmt: skip
    return BulletList(tuple(items))


def rank_metric(configuration: Configuration) -> str:
    """Return the metric that a row is ranked by: that of its profile."""
    return PROFILES[configuration.profile].rank


def is_complete(configuration: Configuration, examples: set[str]) -> bool:
    """Check that every planned unit has the number that is ranked by.

    The examples are those that the other rows have too.

    Args:
        configuration: the row.
        examples: ids that any row of the section has a score for. Examples whose regions are empty are skipped by
            every setting alike and are no gap.
    """
    metric = rank_metric(configuration)
    n_scored, n_expected = configuration.counts(metric)
    scored = set(configuration.example_means(metric))
    whole = n_scored + configuration.skipped == n_expected
    return whole and not configuration.failed and scored == examples


def _ranked(found: Sequence[Configuration]) -> list[RankedConfiguration]:
    """Return all rows with their ranks."""
    odd = comparison_gaps(found)
    examples = {e for c, why in zip(found, odd, strict=True) if not why for e in c.example_means(rank_metric(c))}
    gaps = [why or _incomplete(one, examples) for one, why in zip(found, odd, strict=True)]
    rows = [configuration.row(rank_metric(configuration), EVERYTHING) for configuration in found]
    whole = [(c, row.mean) for c, row, gap in zip(found, rows, gaps, strict=True) if not gap and row.mean is not None]
    ranked = []
    for configuration, row, gap in zip(found, rows, gaps, strict=True):
        better = [mean for other, mean in whole if _are_comparable(other, configuration) and mean > (row.mean or 0.0)]
        ranks = not gap and row.mean is not None
        ranked.append(RankedConfiguration(configuration, row, len(better) + 1 if ranks else None, gap))
    return ranked


def _incomplete(configuration: Configuration, examples: set[str]) -> str:
    """Return what a row lacks of the number that is ranked by; "" for nothing."""
    if is_complete(configuration, examples):
        return ""
    metric = rank_metric(configuration)
    n_scored, n_expected = configuration.counts(metric)
    missing = n_expected - n_scored - configuration.skipped
    if configuration.failed:
        return f"{configuration.failed} units failed"
    if missing:
        return f"{missing} of {n_expected} units have no score"
    return f"{len(configuration.example_means(metric))} of {len(examples)} examples"


def _are_comparable(one: Configuration, other: Configuration) -> bool:
    """Check that two rows may be ranked against each other.

    They must use the same inputs, and one network must have scored both.
    """
    metric = rank_metric(one)
    same_scorer = one.backbones.get(metric) == other.backbones.get(metric)
    return same_scorer and set(one.access) == set(other.access)


def _order(one: RankedConfiguration) -> tuple[bool, float, str]:
    """Return the sort key in a table: ranked first, then by number and label."""
    return one.rank is None, math.inf if one.row.mean is None else -one.row.mean, one.configuration.label

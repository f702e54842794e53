"""The leaderboard, made from the results folder alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    comparison_gaps,
    configurations,
    present_metrics,
    scored_profiles,
    whole_configurations,
)
from riebench.analysis.standings import (
    MIN_EXAMPLES,
    MIN_LEVELS,
    REFERENCE,
    MethodComparison,
    ReadFolder,
    Standing,
    group_entries,
)
from riebench.analysis.stats import Estimate
from riebench.analysis.tables import cell_text, outsized_notes
from riebench.errors import RiebenchError
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder, find_run_folders
from riebench.utils.files import write_atomic
from riebench.utils.markup import Block, Code, Document, Heading, MarkupTable, Name, Paragraph, Piece

NO_RANK = "–"
COMMAND = "riebench leaderboard"


def leaderboard_document(results: Path) -> Document:
    """Return the leaderboard of everything below a results folder.

    One section for each suite, model and profile. In the default profile methods are compared by their area; the
    other profiles rank single configurations, as the scripts they follow do.
    """
    groups: dict[tuple[str, str], list[RunFolder]] = {}
    for folder in find_run_folders(results):
        groups.setdefault((folder.spec.suite, folder.spec.model.name), []).append(folder)
    introduction: tuple[Piece, ...] = (
        "Alignment and preservation belong together: changing more is easy. So a method is summed up by its ",
        Code("area"),
        ": the CLIP alignment gain it reaches at LPIPS budgets of 0.05 to 0.5. A budget binds every example: each is "
        "read where its LPIPS reaches the budget, between two levels if need be, or at the largest level, which is "
        "chosen on one half of the examples and read on the other. Rank groups are given among methods that look at "
        "the same things (",
        Code("sees"),
        ": target prompt P, activations of the paired target run A, masks M, training T, inversion V): 1 + the number "
        "of methods that are better beyond doubt; controls are ranked beside the method that they control. Whoever "
        f"lacks a number, or has fewer than {MIN_LEVELS} levels of its knob (strengths that give the same pictures are "
        f"one), has no rank, and nobody has one below {MIN_EXAMPLES} independent examples a category. Seeds of one "
        "example give "
        "much the same numbers: it is examples that narrow an interval.",
    )
    blocks: list[Block] = [Heading(1, ("Leaderboard",)), Paragraph(introduction)]
    if not groups:
        blocks.append(Paragraph(("No results yet: ", Code("riebench run"), " makes them.")))
    for (suite, model), folders in sorted(groups.items()):
        for profile in scored_profiles(folders):
            if profile == DEFAULT:
                # At once without what is left to the tables: blocks edited singly are most of what large runs hold.
                read = [(folder, whole_configurations(configurations(folder))) for folder in folders]
                blocks += [Heading(2, (Name(suite), " on ", Name(model))), *_method_blocks(read), *_point_blocks(read)]
            else:
                title = (Name(suite), " on ", Name(model), ", profile ", Code(profile))
                rank = Paragraph(("Ranks are by ", Code(PROFILES[profile].rank), "."))
                blocks += [Heading(2, title), rank, *_profile_blocks(folders, profile)]
    return Document(tuple(blocks), f"made by `{COMMAND}` from the results folder; do not edit, run it again")


def leaderboard_text(results: Path) -> str:
    """Return the leaderboard as Markdown; see `leaderboard_document`."""
    return leaderboard_document(results).markdown()


def _method_blocks(read: Sequence[ReadFolder]) -> list[Block]:
    """Return the comparison of methods: a paragraph and a table."""
    comparison = MethodComparison(tuple(group_entries(read)))
    standings = comparison.standings()
    adjusted = sum(standing.versus is not None for standing in standings)
    examples, seeds = comparison.examples, comparison.seeds
    entry = comparison.reference
    against = REFERENCE if entry is None else entry.name
    reference: tuple[Piece, ...] = (Code(against),) if entry is None or against == REFERENCE else (
        Code(against), " (the entry of ", Code(REFERENCE), f" that has a rank, or most levels: {entry.levels})",
    )  # fmt: skip
    note: tuple[Piece, ...] = (
        f"{len(examples.ids)} examples in {len(examples.strata)} categories, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'} each. Intervals: 95 %, studentised bootstrap over "
        f"{'clusters of examples' if examples.ids != examples.clusters else 'examples'} inside categories, "
        f"{comparison.replicates} replicates, seed {comparison.seed}. p: of the {adjusted} comparisons with ",
        *reference,
        ", adjusted together, as ranks are inside one sort of access, by the max-T step-down of Westfall and Young on "
        "the same replicates; detectable: difference found with 80 % power. area and gains x100, completion in % of ",
        Code("target_prompt"),
        ".",
    )
    header = [
        "group", "method", "SAE", "sees", "levels", "area", "all alike", "completion", "LPIPS", "second scorer",
        "scorer", f"minus {against}", "detectable", "scored", "note",
    ]  # fmt: skip
    about = [Paragraph(note), *_seed_note(comparison)]
    return [*about, MarkupTable.of(header, map(_method_row, standings))]


def _seed_note(comparison: MethodComparison) -> list[Block]:
    """Return a paragraph on what more seeds and more examples would do to intervals."""
    correlation, seeds = comparison.seed_correlation, comparison.seeds
    if correlation is None:
        return []
    kept = math.sqrt(max(0.0, (1 + (seeds - 1) * correlation) / seeds))
    return [
        Paragraph(
            (
                f"Examples, not seeds, buy precision: gains of two seeds of one example correlate {correlation:.2f} "
                f"(median of the methods, each at its best level), so {seeds} seeds make an interval {kept:.2f} times "
                f"as wide as one seed does, and twice as many examples {math.sqrt(0.5):.2f} times.",
            )
        )
    ]


def _method_row(standing: Standing) -> list[str]:
    """Return the cells of one method."""
    entry = standing.entry
    versus = (
        NO_RANK if standing.versus is None else f"{100 * standing.versus[0]:+.2f} (p {_p_text(standing.versus[1])})"
    )
    return [
        NO_RANK if standing.group is None else str(standing.group),
        entry.name,
        entry.sae or NO_RANK,
        entry.access or NO_RANK,
        str(entry.levels),
        _with_interval(standing.area, 2),
        _number(standing.micro, 2),
        _with_interval(standing.completion, 0),
        NO_RANK if standing.realised is None else f"{standing.realised:.3f}",
        _number(standing.second, 2),
        entry.scorer.split("@")[0] or NO_RANK,
        versus,
        _number(standing.detectable, 2),
        f"{entry.n_scored}/{entry.n_expected}",
        standing.note,
    ]


def _number(value: float | None, decimals: int) -> str:
    return NO_RANK if value is None else f"{round(100 * value, decimals) + 0.0:.{decimals}f}"


def _with_interval(value: Estimate | None, decimals: int) -> str:
    if value is None or value.mean is None:
        return NO_RANK
    ends = f" [{_number(value.low, decimals)}, {_number(value.high, decimals)}]"
    return _number(value.mean, decimals) + ends


def _p_text(value: float) -> str:
    """Return a p-value as it is printed."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _point_blocks(read: Sequence[ReadFolder]) -> list[Block]:
    """Return the table of every configuration with its means.

    These are the points behind the areas, by setting and strength.
    """
    found = whole_configurations(c for _, everything in read for c in everything)
    metrics = present_metrics(found)
    table = [
        [c.label, c.block_set, *(cell_text(c.row(metric, EVERYTHING)) for metric in metrics), c.run_id[:8]]
        for c in found
    ]
    note = Paragraph(("Every configuration; cells: mean [95 % interval] scored/expected.",))
    outsized = [Paragraph(tuple(pieces)) for pieces in outsized_notes(found)]
    return [note, *outsized, MarkupTable.of(["setting", "blocks", *metrics, "run"], table), _legend(metrics)]


def _legend(metrics: Sequence[str]) -> Paragraph:
    """Return what the metrics of a table are."""
    if not metrics:
        return Paragraph(("No metric has a number.",))
    pieces: list[Piece] = []
    for metric in metrics:
        pieces += ["; " if pieces else "", Code(metric), f": {metric_format(metric).title}"]
    return Paragraph((*pieces, "."))


def _profile_blocks(folders: Sequence[RunFolder], profile: str) -> list[Block]:
    """Return the configurations of one profile, ranked by its metric.

    Paragraphs below the table give the reason where one has no rank.
    """
    found = whole_configurations(c for folder in folders for c in configurations(folder, profile))
    metrics = present_metrics(found)
    ranks = _ranks(found)
    table = []
    for index in sorted(range(len(found)), key=lambda i: _order(found[i], ranks[i])):
        configuration = found[index]
        cells = [cell_text(configuration.row(metric, EVERYTHING)) for metric in metrics]
        rank = ranks[index]
        table.append(
            [
                NO_RANK if rank is None else str(rank),
                configuration.label,
                configuration.block_set,
                configuration.access or NO_RANK,
                *cells,
                configuration.run_id[:8],
            ]
        )
    gaps = [
        Paragraph((Name(configuration.label), " has no rank: ", Name(why), "."))
        for configuration, why in zip(found, comparison_gaps(found), strict=True) if why
    ]  # fmt: skip
    return [MarkupTable.of(["rank", "setting", "blocks", "sees", *metrics, "run"], table), _legend(metrics), *gaps]


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
    row = configuration.row(metric, EVERYTHING)
    scored = set(configuration.example_means(metric))
    whole = row.n_scored + configuration.skipped == row.n_expected
    return whole and not configuration.failed and scored == examples


def _ranks(found: Sequence[Configuration]) -> list[int | None]:
    """Return the rank of each row, or None for one that cannot be ranked."""
    gains = [configuration.row(rank_metric(configuration), EVERYTHING).mean for configuration in found]
    odd = comparison_gaps(found)
    examples = {e for c, why in zip(found, odd, strict=True) if not why for e in c.example_means(rank_metric(c))}
    ranked = [
        why is None and is_complete(configuration, examples) for configuration, why in zip(found, odd, strict=True)
    ]
    ranks: list[int | None] = []
    for index, configuration in enumerate(found):
        mine = gains[index]
        if not ranked[index] or mine is None:
            ranks.append(None)
            continue
        better = sum(
            other is not None and ranked[i] and _are_comparable(found[i], configuration) and other > mine
            for i, other in enumerate(gains)
        )
        ranks.append(better + 1)
    return ranks


def _are_comparable(one: Configuration, other: Configuration) -> bool:
    """Check that two rows may be ranked against each other.

    They must see the same things, and one network must have scored both.
    """
    metric = rank_metric(one)
    same_scorer = one.backbones.get(metric) == other.backbones.get(metric)
    return same_scorer and set(one.access) == set(other.access)


def _order(configuration: Configuration, rank: int | None) -> tuple[bool, str, int, str]:
    """Return the sort key of a row: ranked first, by access, rank and label."""
    letters = "".join(sorted(configuration.access, key="PAMTV".index))
    return rank is None, letters, rank or 0, configuration.label


def write_leaderboard(results: Path, path: Path) -> Document:
    """Write the leaderboard of a results folder and return it."""
    board = leaderboard_document(results)
    write_atomic(path, board.markdown().encode())
    return board


def check_leaderboard(results: Path, path: Path) -> None:
    """Check that a leaderboard file is what the results folder gives.

    Raises:
        RiebenchError: naming the first line that differs.
    """
    text = leaderboard_text(results)
    if not path.exists():
        raise RiebenchError(f"{path} is missing; make it with `riebench leaderboard`")
    data = path.read_bytes()
    if data == text.encode():
        return
    expected, found = text.splitlines(), data.decode(errors="replace").splitlines()
    line = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(min(found, expected, key=len))
    )
    raise RiebenchError(f"{path} is stale from line {line + 1} on; make it anew with `riebench leaderboard`")

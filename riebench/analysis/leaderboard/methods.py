"""Section that compares methods by their mean gain over LPIPS budgets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from riebench.analysis.configurations import mixed_in_words
from riebench.analysis.leaderboard.conclusion import method_conclusion
from riebench.analysis.leaderboard.rows import (
    NO_RANK,
    CsvRow,
    Section,
    inputs_order,
    interval_text,
    number_text,
    tables_by_inputs,
)
from riebench.analysis.leaderboard.saes import sae_blocks, sae_notes
from riebench.analysis.standings import (
    BEST_STRENGTH,
    ENDS,
    GAIN,
    MIN_EXAMPLES,
    MIN_LEVELS,
    REFERENCE,
    Entry,
    MethodComparison,
    ReadFolder,
    Standing,
    group_entries,
    with_score_controls,
)
from riebench.analysis.stats import Estimate
from riebench.analysis.tables import outsized_notes
from riebench.analysis.tradeoff import BUDGETS
from riebench.analysis.tradeoff.response.distances import off_distribution_columns
from riebench.scoring.profiles import DEFAULT
from riebench.tasks.suites import suite_title
from riebench.utils.markup import Block, BulletList, Code, Heading, Name, Paragraph, Piece

HEADER = ("rank", "method", "mean gain", "95 % interval", "completion", "LPIPS", "notes")
BOTH_HEADER = ("rank", "method", "both", "first scorer", "second scorer", "LPIPS", "notes")
"""Columns where a second scorer has measured."""
ONE_SCORER = (
    "No second scorer has measured these results: ranks are by one scorer alone, and what pleases only that one cannot "
    "be told apart."
)
SCORE_CONTROL_WORDS = {
    "adversarial": (
        "The control of method adversarial moves the colours of the source picture by at most 8 of 255 along the first "
        "scorer's gradient: no edit, and the largest gain by that scorer."
    ),
    BEST_STRENGTH: (
        f"The control whose name ends in {BEST_STRENGTH} is a stored sweep of the SAE whose edit strength is chosen "
        "for each example and budget by the first scorer's own number. It has no rank, since no second scorer sees "
        "through that: a method that looks at a scorer is not compared with others."
    ),
}
"""Control of the score -> what it is."""
MEAN_GAIN = "mean_gain"
"""What `score` is in leaderboard.csv where methods are compared."""


def method_section(suite: str, model: str, read: Sequence[ReadFolder]) -> Section:
    """Return the section of one suite and model in the default profile.

    Args:
        suite: its name.
        model: its name.
        read: its run folders with their whole configurations.
    """
    comparison = MethodComparison(with_score_controls(group_entries(read)))
    both = comparison.has_second
    standings = sorted(comparison.standings(), key=_order)
    places = {standing.entry: _listed_under(standing, standings) for standing in standings}
    labels = _labels(standings)
    folders = [folder for folder, _ in read]
    of_saes = sae_notes(folders)
    notes = {standing.entry: "; ".join(row_notes(standing, comparison, of_saes)) for standing in standings}
    header = BOTH_HEADER if both else HEADER
    tables = tables_by_inputs(
        header, ((places[s.entry], _cells(s, labels[s.entry], notes[s.entry], both)) for s in standings)
    )
    found = [configuration for _, everything in read for configuration in everything]
    outsized = [Paragraph(tuple(pieces)) for pieces in outsized_notes(found)]
    place = f"{suite}/{model}/tables/per_method.md"
    columns = [Heading(3, ("Columns",)), _definitions(header)]
    blocks = [*tables, *columns, *_reading(comparison, standings, place)]
    reference = "" if comparison.reference is None else comparison.reference.name
    rows = (
        {
            "suite": suite, "model": model, "profile": DEFAULT, "table": places[standing.entry],
            **method_columns(standing, reference), "notes": notes[standing.entry],
        }
        for standing in sorted(standings, key=lambda standing: inputs_order(places[standing.entry]))
    )  # fmt: skip
    title = (Name(suite_title(suite)), " on ", Name(model))
    conclusion = method_conclusion(comparison, standings)
    if not both and any(standing.group is not None for standing in standings):
        conclusion = (*conclusion, f" {ONE_SCORER}")
    return Section(title, conclusion, (*blocks, *outsized, *sae_blocks(folders)), tuple(rows))


def row_notes(
    standing: Standing, comparison: MethodComparison, of_saes: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Return what is to be said of one row, such as why it is unranked.

    Every note on a row belongs here: they stand together in the last column of its table and of leaderboard.csv.

    Args:
        standing: of the method.
        comparison: of all methods of the section.
        of_saes: id of a run -> notes on its SAEs.
    """
    control = standing.entry.control_of
    notes = [f"control of {control}"] if control else []
    notes += [standing.note] if standing.note else []
    if len({entry.scorer for entry in comparison.entries}) > 1:
        notes.append(f"measured by {standing.entry.scorer or 'an unnamed scorer'}")
    mixed = mixed_in_words(standing.entry.configurations)
    notes += [f"mixes versions: {mixed}"] if mixed else []
    runs = dict.fromkeys(one.run_id for one in standing.entry.configurations)
    notes += dict.fromkeys(note for run in runs for note in (of_saes or {}).get(run, ()))
    return notes


def method_columns(standing: Standing, reference: str) -> CsvRow:
    """Return the numbers of a method by columns of leaderboard.csv.

    Args:
        standing: of the method.
        reference: the method that all are compared with; "" for none.
    """
    entry = standing.entry
    difference, p = (None, None) if standing.versus is None else standing.versus
    return {
        "inputs": entry.access, "rank": standing.group, "method": entry.name, "control_of": entry.control_of,
        "sae": entry.sae, "block_set": entry.block_set, "edit_strengths": entry.levels, "metric": MEAN_GAIN,
        **estimate_columns("score", standing.area), "micro_average": standing.micro,
        **estimate_columns("completion", standing.completion), "lpips": standing.realised,
        **estimate_columns("second_scorer", standing.second), "scorer": entry.scorer,
        "second_scorer_network": entry.second_scorer if entry.has_second else None,
        **estimate_columns("confirmed", standing.confirmed), "decided_by": standing.decided_by or None,
        **dict(zip(("rank_by_first", "rank_by_second"), standing.ranks, strict=False)),
        "reference": None if difference is None else reference, "difference": difference, "p": p,
        "detectable": standing.detectable, "n_scored": entry.n_scored, "n_expected": entry.n_expected,
        "runs": " ".join(dict.fromkeys(one.run_id[:8] for one in entry.configurations)), "notes": standing.note,
        "sae_explained_variance": entry.sae_variance, **off_distribution_columns(entry.configurations, GAIN),
    }  # fmt: skip


def estimate_columns(name: str, value: Estimate | None) -> CsvRow:
    """Return the columns of an estimate: its mean and both ends of its interval."""
    values = (None, None, None) if value is None else (value.mean, value.low, value.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _order(standing: Standing) -> tuple[bool, bool, float, str]:
    """Return the sort key in a table: ranked, then ends, then the rest."""
    ranked_by = standing.confirmed or standing.area
    score = ranked_by.mean if ranked_by is not None else None
    unranked = standing.group is None
    incomplete = unranked and standing.entry.method not in ENDS
    return unranked, incomplete, math.inf if score is None else -score, standing.entry.name


def _listed_under(standing: Standing, standings: Sequence[Standing]) -> str:
    """Return the inputs of the table that a method stands in.

    The ends of the scale, controls of every method, stand in the first table.
    """
    if standing.entry.method not in ENDS:
        return standing.ranked_among
    others = [one.ranked_among for one in standings if one.entry.method not in ENDS or one.ranked_among]
    return min(others, key=inputs_order, default=standing.ranked_among)


def _labels(standings: Sequence[Standing]) -> dict[Entry, str]:
    """Return the name of each method as its table shows it.

    Where two have one name, their SAEs and blocks tell them apart.
    """
    names = Counter(standing.entry.name for standing in standings)
    return {standing.entry: _label(standing.entry, names[standing.entry.name] > 1) for standing in standings}


def _label(entry: Entry, shared: bool) -> str:
    about = ", ".join(part for part in (entry.sae, entry.block_set) if part)
    return f"{entry.name} [{about}]" if shared else entry.name


def _cells(standing: Standing, label: str, notes: str, both: bool) -> tuple[str, ...]:
    """Return the cells of one method, in the order of its header.

    Args:
        standing: of the method.
        label: its name.
        notes: on it.
        both: whether the header is `BOTH_HEADER`.
    """
    by_one = (
        number_text(None if standing.area is None else standing.area.mean, 2),
        interval_text(standing.area, 2).partition(" ")[2] or NO_RANK,
        number_text(None if standing.completion is None else standing.completion.mean, 0),
    )
    by_both = (
        number_text(None if standing.confirmed is None else standing.confirmed.mean, 0),
        interval_text(standing.area, 2),
        interval_text(standing.second, 2),
    )
    return (
        NO_RANK if standing.group is None else str(standing.group),
        label,
        *(by_both if both else by_one),
        NO_RANK if standing.realised is None else f"{standing.realised:.3f}",
        notes,
    )


def _definitions(header: Sequence[str]) -> Block:
    """Return the list that defines each column of the tables above it."""
    both = header == BOTH_HEADER
    columns: dict[str, tuple[Piece, ...]] = {
        "rank": (
            "1 + the number of methods in the table that are significantly better (p < 0.05, corrected)"
            f"{' by what both scorers confirm' if both else ''}.",
        ),
        "method": ("a method configuration, or a group of them that are edit strengths of one method.",),
        "mean gain": (
            f"mean gain over LPIPS budgets of {BUDGETS[0]:g} to {BUDGETS[-1]:g} (CLIP alignment x100); sorted by it.",
        ),
        "first scorer": (
            f"mean gain over LPIPS budgets of {BUDGETS[0]:g} to {BUDGETS[-1]:g} (CLIP alignment x100) by the first "
            "scorer, with its 95 % interval.",
        ),
        "both": (
            "what both scorers confirm: by each of them the mean gain in % of the gain of ", Code("target_prompt"),
            "'s own pictures, and of the two the smaller one; sorted by it.",
        ),
        "95 % interval": ("of the mean gain.",),
        "second scorer": (
            "mean gain by a second, independent CLIP at the strengths that the first one chose; it has a scale of its "
            "own, so its numbers compare with each other only. With its 95 % interval.",
        ),
        "completion": ("mean gain in % of the gain of ", Code("target_prompt"), "'s own pictures."),
        "LPIPS": ("mean LPIPS to the source picture where the gains were read.",),
        "notes": ("what a method is a control of, why it is unranked, and what else is to be known of its row.",),
    }  # fmt: skip
    return BulletList(tuple((Code(name), ": ", *columns[name]) for name in header))


def _reading(comparison: MethodComparison, standings: Sequence[Standing], place: str) -> list[Block]:
    """Return the paragraphs on rules, statistics and the other numbers."""
    examples, seeds = comparison.examples, comparison.seeds
    drawn = "clusters of examples" if examples.ids != examples.clusters else "examples"
    rules = (
        "Incomplete methods are unranked: those that lack a number, have fewer than "
        f"{MIN_LEVELS} edit strengths tested, or fewer than {MIN_EXAMPLES} independent examples in a category. A "
        "control shows what a method must be better than; it is ranked with that method, whatever its own inputs are. "
        "The ends of the scale, no edit and the target prompt's own pictures, are unranked. A rank in a table of one "
        "method says nothing, and ranks of two tables are not comparable."
    )
    budgets = (
        "A budget binds every example: each is read where its LPIPS reaches the budget, between two edit strengths if "
        "need be, or at a largest strength, which is chosen on one half of the examples and read on the other. So "
        "methods are read at the same LPIPS: changing more is easy."
    )
    statistics = (
        f"{len(examples.ids)} examples in {len(examples.strata)} categories, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'} each. Intervals: 95 %, studentised bootstrap over {drawn} inside "
        f"categories, {comparison.replicates} replicates, seed {comparison.seed}. p-values are corrected on the same "
        "replicates by the max-T step-down of Westfall and Young: for ranks over all pairs of a table."
    )
    entry = comparison.reference
    against: tuple[Piece, ...] = (Code(REFERENCE if entry is None else entry.name),)
    if entry is not None and entry.name != REFERENCE:
        against += (" (of ", Code(REFERENCE), f" the entry with a rank, or most edit strengths: {entry.levels})")
    adjusted = sum(standing.versus is not None for standing in standings)
    others: tuple[Piece, ...] = (
        Code("leaderboard.csv"), " also has every method's edit strengths tested, difference to ", *against,
        f" with p (corrected over all {adjusted} such differences), detectable difference, micro-average, second "
        "scorer, SAE, counts and runs. Means of each edit strength are in ", Code(place), " of the results.",
    )  # fmt: skip
    scorers = [_scorers(comparison)] if comparison.has_second else [ONE_SCORER]
    paragraphs = [Paragraph((text,)) for text in (rules, *scorers, budgets, statistics)]
    return [*paragraphs, *_seed_note(comparison), Paragraph(others)]


def _scorers(comparison: MethodComparison) -> str:
    """Return the paragraph on the two scorers, and on the controls of the score."""
    here = {entry.method for entry in comparison.entries}
    controls = [words for method, words in SCORE_CONTROL_WORDS.items() if method in here]
    which = f" {' '.join(controls)}" if controls else ""
    return (
        "A method has to convince two scorers that have nothing in common: methods are ranked by the smaller of the "
        "shares of the target prompt's gain that they reach by each." + which
    )


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
                f"(median of the methods, each at its best edit strength), so {seeds} seeds make an interval "
                f"{kept:.2f} times as wide as one seed does, and twice as many examples {math.sqrt(0.5):.2f} times.",
            )
        )
    ]

"""leaderboard.md, made from the results folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    mixed,
    present_metrics,
    scored_profiles,
    whole_configurations,
)
from riebench.analysis.standings import MIN_LEVELS, REFERENCE, Field, Read, Standing, methods_of
from riebench.analysis.stats import Estimate
from riebench.analysis.tables import cell
from riebench.errors import RiebenchError
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder, find_run_folders
from riebench.utils.files import write_atomic
from riebench.utils.markup import escape_markdown, markdown_table

NO_RANK = "–"
COMMAND = "riebench leaderboard"


def leaderboard_text(results: Path) -> str:
    """The leaderboard of everything below a results folder.

    One section for each suite, model and profile. In the default profile methods are compared by their area; the
    other profiles rank single configurations, as the scripts they follow do.
    """
    groups: dict[tuple[str, str], list[RunFolder]] = {}
    for folder in find_run_folders(results):
        groups.setdefault((folder.spec.suite, folder.spec.model.name), []).append(folder)
    parts = [
        f"<!-- made by `{COMMAND}` from the results folder; do not edit, run it again -->",
        "# Leaderboard\n",
        "Alignment and preservation belong together: changing more is easy. So a method is summed up by its `area`: "
        "the CLIP alignment gain it reaches at LPIPS budgets of 0.05 to 0.5, its level chosen on one half of the "
        "examples and read on the other. Rank groups are given among methods that look at the same things (`sees`: "
        "target prompt P, activations of the paired target run A, masks M, training T, inversion V): 1 + the number "
        "of methods that are better beyond doubt. Whoever lacks a number, or has fewer than "
        f"{MIN_LEVELS} levels of its knob, has no rank.\n",
    ]
    if not groups:
        parts.append("No results yet: `riebench run` makes them.\n")
    for (suite, model), folders in sorted(groups.items()):
        for profile in scored_profiles(folders):
            if profile == DEFAULT:
                # At once without what is left to the tables: blocks edited singly are most of what large runs hold.
                read = [(folder, whole_configurations(configurations(folder))) for folder in folders]
                parts += [f"## {suite} on {escape_markdown(model)}\n", *methods_section(read), _every(read)]
            else:
                rank = f"Ranks are by `{PROFILES[profile].rank}`.\n"
                parts += [
                    f"## {suite} on {escape_markdown(model)}, profile `{profile}`\n",
                    rank,
                    _section(folders, profile),
                ]
    return "\n".join(parts)


def methods_section(read: Sequence[Read]) -> list[str]:
    """The comparison of methods, as paragraphs of Markdown."""
    field = Field(tuple(methods_of(read)))
    standings = field.standings()
    adjusted = sum(standing.versus is not None for standing in standings)
    told = (
        f"{len(field.examples.ids)} examples in {len(field.examples.strata)} categories, {field.seeds} "
        f"{'seed' if field.seeds == 1 else 'seeds'} each. Intervals: 95 %, percentile bootstrap over "
        f"{'clusters of examples' if field.examples.ids != field.examples.clusters else 'examples'} inside categories, "
        f"{field.replicates} replicates, seed {field.seed}. p: Holm over the {adjusted} comparisons with "
        f"`{REFERENCE}`; detectable: difference found with 80 % power. area and gains x100, completion in % of "
        "`target_prompt`.\n"
    )
    header = [
        "group", "method", "SAE", "sees", "levels", "area", "all alike", "completion", "LPIPS", "second scorer",
        "scorer", f"minus {REFERENCE}", "detectable", "scored", "note",
    ]  # fmt: skip
    return [told, markdown_table(header, [_method_row(standing) for standing in standings])]


def _method_row(standing: Standing) -> list[str]:
    entry = standing.entry
    versus = NO_RANK if standing.versus is None else f"{100 * standing.versus[0]:+.2f} (p {_p(standing.versus[1])})"
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


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _every(read: Sequence[Read]) -> str:
    """Every configuration with its means, in the order of settings and strengths: the points behind the areas."""
    found = whole_configurations(c for _, everything in read for c in everything)
    metrics = present_metrics(found)
    table = [
        [c.label, c.block_set, *(cell(c.row(metric, EVERYTHING)) for metric in metrics), c.run_id[:8]] for c in found
    ]
    legend = "; ".join(f"`{metric}`: {metric_format(metric).title}" for metric in metrics)
    heading = "Every configuration; cells: mean [95 % interval] scored/expected.\n\n"
    return heading + markdown_table(["setting", "blocks", *metrics, "run"], table) + f"\n{legend}.\n"


def _section(folders: Sequence[RunFolder], profile: str) -> str:
    found = whole_configurations(c for folder in folders for c in configurations(folder, profile))
    metrics = present_metrics(found)
    ranks = _ranks(found)
    table = []
    for index in sorted(range(len(found)), key=lambda i: _order(found[i], ranks[i])):
        configuration = found[index]
        cells = [cell(configuration.row(metric, EVERYTHING)) for metric in metrics]
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
    legend = "; ".join(f"`{metric}`: {metric_format(metric).title}" for metric in metrics)
    odd = "".join(
        f"\n{configuration.label} has no rank: {escape_markdown(why)}.\n"
        for configuration, why in zip(found, mixed(found), strict=True) if why
    )  # fmt: skip
    return markdown_table(["rank", "setting", "blocks", "sees", *metrics, "run"], table) + f"\n{legend}.\n{odd}"


def rank_metric(configuration: Configuration) -> str:
    """The metric that a row is ranked by: its profile's."""
    return PROFILES[configuration.profile].rank


def is_complete(configuration: Configuration, examples: set[str]) -> bool:
    """Whether every planned unit has the number that is ranked by, over the examples that the others have too.

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
    gains = [configuration.row(rank_metric(configuration), EVERYTHING).mean for configuration in found]
    odd = mixed(found)
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
            other is not None and ranked[i] and _rivals(found[i], configuration) and other > mine
            for i, other in enumerate(gains)
        )
        ranks.append(better + 1)
    return ranks


def _rivals(one: Configuration, other: Configuration) -> bool:
    """Whether two rows may be ranked against each other: they see the same things, and one network scored both."""
    metric = rank_metric(one)
    same_scorer = one.backbones.get(metric) == other.backbones.get(metric)
    return same_scorer and set(one.access) == set(other.access)


def _order(configuration: Configuration, rank: int | None) -> tuple[bool, str, int, str]:
    letters = "".join(sorted(configuration.access, key="PAMTV".index))
    return rank is None, letters, rank or 0, configuration.label


def write_leaderboard(results: Path, path: Path) -> None:
    """Writes the leaderboard of a results folder."""
    write_atomic(path, leaderboard_text(results).encode())


def check_leaderboard(results: Path, path: Path) -> None:
    """Refuses a leaderboard that is not what the results folder gives.

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

"""leaderboard.md, made from the results folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riebench.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    present_metrics,
    scored_profiles,
    whole_configurations,
)
from riebench.errors import RiebenchError
from riebench.files import write_atomic
from riebench.profiles import DEFAULT, FORMATS, PROFILES
from riebench.store import RunFolder, run_folders
from riebench.tables import cell, markdown

NO_RANK = "–"


def leaderboard_text(results: Path) -> str:
    """The leaderboard of everything below a results folder.

    Configurations are ranked by their CLIP alignment gain among those that look at the same things. Whoever lacks a
    score for a planned unit gets no rank: leaving out the hard examples must not pay.
    """
    groups: dict[tuple[str, str], list[RunFolder]] = {}
    for folder in run_folders(results):
        groups.setdefault((folder.spec.suite, folder.spec.model.name), []).append(folder)
    parts = [
        "<!-- made by `riebench leaderboard` from the results folder; do not edit, run it again -->",
        "# Leaderboard\n",
        "Alignment and preservation belong together: changing more is easy. `no_edit` and `target_prompt` are the two "
        "ends. Ranks are by `clip_gain`, given among rows with equal `sees` (target prompt P, activations of the "
        "paired target run A, masks M, training T, inversion V). Rows with gaps carry no rank. Cells: mean [95 % "
        "interval] scored/expected.\n",
    ]
    if not groups:
        parts.append("No results yet: `riebench run` makes them.\n")
    for (suite, model), folders in sorted(groups.items()):
        for profile in scored_profiles(folders):
            if profile == DEFAULT:
                parts += [f"## {suite} on {model}\n", _section(folders, profile)]
            else:
                rank = f"Ranks are by `{PROFILES[profile].rank}`.\n"
                parts += [f"## {suite} on {model}, profile `{profile}`\n", rank, _section(folders, profile)]
    return "\n".join(parts)


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
    legend = "; ".join(f"`{metric}`: {FORMATS[metric].title}" for metric in metrics)
    return markdown(["rank", "setting", "blocks", "sees", *metrics, "run"], table) + f"\n{legend}.\n"


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
    examples = {example for c in found for example in c.example_means(rank_metric(c))}
    ranked = [is_complete(configuration, examples) for configuration in found]
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
    expected = leaderboard_text(results).splitlines()
    if not path.exists():
        raise RiebenchError(f"{path} is missing; make it with `riebench leaderboard`")
    found = path.read_text(encoding="utf-8").splitlines()
    if found == expected:
        return
    line = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(min(found, expected, key=len))
    )
    raise RiebenchError(f"{path} is stale from line {line + 1} on; make it anew with `riebench leaderboard`")

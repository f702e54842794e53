"""Causal block table: each block edited alone, next to all blocks together.

Every block set is compared as a method of its own, at levels that all of them have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.standings import Entry
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES
from riebench.analysis.tradeoff import SampleMean
from riebench.blocks import pass_order
from riebench.errors import RiebenchError
from riebench.paper.artefact import (
    Artefact,
    Column,
    Row,
    Table,
    View,
    estimate_cells,
    gain_column,
    metric_column,
    percent_column,
    plain_columns,
)
from riebench.paper.comparison import Comparison, count_units, read_entries, setting_name
from riebench.paper.drawing import draw_blocks
from riebench.paper.job import PaperJob
from riebench.paper.recipes.tradeoff import point_rows, shown_metrics
from riebench.paper.runs import END_SETTINGS, RunSet, SelectionPools, collect_runs, switched_count
from riebench.scoring.profiles import DEFAULT
from riebench.store.folder import RunFolder
from riebench.tasks.schema import Setting
from riebench.tasks.settings import MAIN_SET, setting_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NAME = "blocks"
WHOLE = "all"
SWEEP_SETTINGS = ("sae_each_sweep", "sae_sweep")
"""Every block alone, and all together, at the same edit strengths."""
AREAS = (
    "SAE features switched in one block alone, each block ranked by itself, and in all blocks together: the mean gain "
    "over LPIPS budgets of each at the same edit strengths (see `trade-off`), chosen over all categories, and its "
    "difference from all blocks together, paired. This is the measured effect that a feature share has to be held "
    "against. Mean success: the same of the judge's success, less what unedited pictures have."
)
METRICS = (
    "SAE features switched in one block alone, each block ranked by itself, and in all blocks together, as profile "
    "`{profile}` scores them; mean gains over LPIPS budgets belong to the default profile."
)


@dataclass(frozen=True)
class Family:
    """Configurations that differ only in the blocks they edit together.

    Attributes:
        setting: one of them.
        blocks: block set -> entry, single blocks in their order, all together last.
        levels: strengths that every block set has.
    """

    setting: Setting
    blocks: dict[str, Entry]
    levels: tuple[float, ...]


def make(job: PaperJob) -> Artefact:
    """Compute the effect of each block edited alone.

    Raises:
        RiebenchError: if no stored configuration edits single blocks.
    """
    found = block_runs(job)
    rows = block_effects(found.folders, REPLICATES) if job.profile == DEFAULT else []
    judged = any(row["true_area"] is not None for row in rows)
    if not judged:
        rows = [{k: v for k, v in row.items() if not k.startswith("true_")} for row in rows]
    tables = [block_table(rows, judged)] if rows else _metric_tables(found, job.profile)
    if not tables:
        raise RiebenchError(
            f"no method configuration with single blocks for {found.suite} on {found.model} in {job.results}; "
            f"`riebench run sae_each_sweep sae_sweep --settings-set sweep --suite {job.suite}` makes them"
        )
    return Artefact(
        name=NAME,
        title="What each block does by itself",
        shows=AREAS if rows else METRICS.format(profile=job.profile),
        tables=tuple(tables),
        settings={
            "profile": job.profile,
            "levels": [float(level) for level in _levels(found)],
            **found.settings,
            "bootstrap": {"replicates": REPLICATES, "seed": BOOTSTRAP_SEED, "interval": "95 %, studentised"},
        },
        notes=tuple(_notes(rows, judged)),
        alt="Heat maps, blocks by categories: what each block reaches alone, by the score and, where it is known, by "
        "the truth.",
    )


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw heat maps of mean gain and mean success."""
    draw_blocks(figure, artefact)


def block_runs(job: PaperJob) -> RunSet:
    """Return the runs of the block table.

    These are the runs of the sweep if they are stored, or else of the main configuration that edits blocks both ways.
    """
    both = [name for name in ("sae", "sae_k160") if name in setting_names(job.suite, MAIN_SET)]
    stored = collect_runs(job, {}, (*SWEEP_SETTINGS, *END_SETTINGS))
    if {*SWEEP_SETTINGS} <= {folder.spec.setting.name for folder in stored.folders}:
        return stored
    return collect_runs(job, {**END_SETTINGS, both[0]: MAIN_SET} if both else END_SETTINGS, SWEEP_SETTINGS)


def single_block_families(entries: Iterable[Entry], folders: Iterable[RunFolder]) -> list[Family]:
    """Find SAE configurations that edit blocks alone and together at the same levels.

    Of configurations that hold the same block set, the one with more levels is used.

    Returns:
        Families, the one with most levels first.
    """
    settings = {folder.spec.setting.name: folder.spec.setting for folder in folders}
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        one = settings[setting_name(entry)]
        if one.method == "sae" and one.params.get("ranking") != "separate":
            alike = json.dumps([one.params, sorted(one.blocks), one.edit_steps, entry.sae, entry.seeds], sort_keys=True)
            members.setdefault(alike, []).append(entry)
    found = []
    for family_entries in members.values():
        best: dict[str, Entry] = {}
        for entry in sorted(family_entries, key=lambda entry: -len(entry.configurations)):
            best.setdefault(entry.block_set, entry)
        family = _build_family(best, settings)
        if family is not None:
            found.append(family)
    return sorted(found, key=lambda family: (-len(family.levels), -family.blocks[WHOLE].seeds))


def _build_family(best: dict[str, Entry], settings: dict[str, Setting]) -> Family | None:
    """Return the family of these entries; None without levels that all of them have."""
    order = [*pass_order(block for block in best if block != WHOLE), *(name for name in (WHOLE,) if name in best)]
    if WHOLE not in best or len(order) < 3:
        return None
    shared = set.intersection(*({c.strength for c in best[name].configurations} for name in order))
    if not shared:
        return None
    blocks = {
        name: replace(best[name], configurations=tuple(c for c in best[name].configurations if c.strength in shared))
        for name in order
    }
    return Family(settings[setting_name(best[WHOLE])], blocks, tuple(sorted(shared)))


def block_effects(folders: Sequence[RunFolder], replicates: int = REPLICATES) -> list[Row]:
    """Compute mean gain and success of each block edited alone and of all together.

    Each single block also has its paired difference from all together.

    Args:
        folders: of one suite and model.
        replicates: of the bootstrap.

    Returns:
        One row for each block set and category of the family with most levels; none if no family has single blocks.
    """
    everything = read_entries(folders, single_blocks=True)
    families = single_block_families(everything, folders)
    if not families:
        return []
    family = families[0]
    whole = family.blocks[WHOLE]
    ends = tuple(e for e in everything if e.method in END_SETTINGS and e.seeds == whole.seeds)
    comparison = Comparison(tuple(family.blocks.values()), ends, replicates)
    rows: list[Row] = []
    for name, entry in family.blocks.items():
        for category in comparison.categories:
            rows.append(_row(comparison, family, name, entry, category))
    return rows


def _row(comparison: Comparison, family: Family, name: str, entry: Entry, category: str) -> Row:
    whole = family.blocks[WHOLE]
    area, true = comparison.area(entry, category), comparison.true_area(entry, category)
    difference = true_difference = None
    if name != WHOLE:
        difference = _difference(area, comparison.area(whole, category))
        true_difference = _difference(true, comparison.true_area(whole, category))
    scored, expected = count_units(entry, category)
    return {
        "block": name,
        "setting": setting_name(entry),
        "switched": switched_count(family.setting),
        "levels": len(family.levels),
        "category": category,
        "examples": comparison.n_examples(category),
        "seeds": comparison.seeds,
        "scored": scored,
        "expected": expected,
        **estimate_cells("area", comparison.estimate(area, category)),
        **estimate_cells("difference", comparison.estimate(difference, category)),
        **estimate_cells("true_area", comparison.estimate(true, category)),
        **estimate_cells("true_difference", comparison.estimate(true_difference, category)),
        "note": comparison.gap(entry) or "",
    }


def _difference(first: SampleMean | None, second: SampleMean | None) -> SampleMean | None:
    return None if first is None or second is None else first - second


def _levels(found: RunSet) -> tuple[float, ...]:
    """Return the levels of the family with most levels; none without a family."""
    families = single_block_families(read_entries(found.folders, single_blocks=True), found.folders)
    return families[0].levels if families else ()


def block_table(rows: Sequence[Row], judged: bool) -> Table:
    """Return the table of effects, with blocks down and categories across.

    Args:
        rows: of `block_effects`.
        judged: whether mean success is known.
    """
    plain = ("block", "setting", "switched", "levels", "category", "examples", "seeds", "scored", "expected")
    columns = [
        *plain_columns(plain),
        gain_column("area", "mean gain x100"),
        gain_column("difference", "minus all blocks"),
    ]
    titles = {
        "area": "Mean gain over LPIPS budgets of each block alone x100",
        "difference": "Mean gain of each block minus that of all together x100",
    }
    if judged:
        columns += [
            percent_column("true_area", "mean success %"),
            percent_column("true_difference", "mean success minus all blocks", signed=True),
        ]
        titles |= {
            "true_area": "Mean success over LPIPS budgets of each block alone, %",
            "true_difference": "Mean success of each block minus that of all together, points of %",
        }
    columns.append(Column(name="note"))
    down = ("block", "switched", "levels", "seeds", "note")
    views = tuple(View(title=title, down=down, across="category", cell=name) for name, title in titles.items())
    return Table(title="Blocks by category", columns=tuple(columns), rows=tuple(rows), views=views)


def _metric_tables(found: RunSet, profile: str) -> list[Table]:
    """Return the table of a profile that has metrics but no areas."""
    shown = shown_metrics(found.folders, profile)
    folders = [folder for folder in found.folders if folder.spec.setting.block_mode != "together"]
    nothing = SelectionPools({}, {})
    rows = [row for one in folders for row in point_rows(one, nothing, shown, profile, single_blocks=True)]
    names = ("block", "setting", "strength", "switched", "category", "examples", "seeds", "scored", "expected")
    columns = (*plain_columns(names), *(metric_column(metric) for metric in shown))
    down = ("block", "setting", "strength", "seeds")
    views = tuple(
        View(title=f"Blocks by category: {metric_column(m).heading}", down=down, across="category", cell=m)
        for m in shown
    )
    return [Table(title="Blocks by category", columns=columns, rows=tuple(rows), views=views)] if rows else []


def _notes(rows: Sequence[Row], judged: bool) -> list[str]:
    """Return a sentence on the block with most effect alone in each category."""
    key, scale, unit = ("true_area", 100, " % mean success") if judged else ("area", 100, " mean gain x100")
    findings = []
    for category in dict.fromkeys(str(row["category"]) for row in rows if row["category"] != EVERYTHING):
        known = [r for r in rows if r["category"] == category and r["block"] != WHOLE and r[key] is not None]
        if known:
            best = max(known, key=lambda row: float(row[key] or 0))
            findings.append(f"{category}: {best['block']} ({scale * float(best[key] or 0):.0f}{unit})")
    return [f"The block that does most by itself: {'; '.join(findings)}."] if findings else []

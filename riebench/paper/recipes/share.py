"""Feature share: the blocks of the switched features, by category, beside effects.

`share_rows` counts where the features lie that a configuration switches on and off. `disagreement_rows` compares these
shares with the effect of each block edited alone, see `riebench.paper.recipes.blocks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from scipy.stats import kendalltau

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, estimate
from riebench.blocks import pass_order
from riebench.paper.artefact import (
    Artefact,
    Column,
    Row,
    Table,
    View,
    estimate_cells,
    gain_column,
    plain_columns,
    select_rows,
    values_of,
)
from riebench.paper.drawing import draw_shares
from riebench.paper.job import PaperJob
from riebench.paper.recipes.blocks import WHOLE, block_effects, block_runs
from riebench.paper.runs import PAPER_SET, collect_runs, switched_count
from riebench.scoring.profiles import DEFAULT
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import ALL_CATEGORIES, Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NAME = "feature-share"
SIDES = {"add": "on", "remove": "off"}
POOLED, PER_BLOCK = "pooled", "per_block"
REQUIRED_SETTINGS = {"sae_1_of_128": PAPER_SET, "sae_per_block_shares": PAPER_SET}
"""Configuration -> its set: the two variants with equally many features."""
OPTIONAL_SETTINGS = ("sae", "sae_sweep", "sae_1_of_32", "sae_1_of_8")
CHOICE_PARAMETERS = ("rank", "ranking", "delete_uses_target")
"""Parameters of `sae` that affect the choice, beside the number of features and the shares."""
TIE_TOLERANCE = 1e-9
"""Difference below which two values are a tie."""


def make(job: PaperJob) -> Artefact:
    """Count feature shares, and compare them with each block's own effect."""
    found = collect_runs(job, REQUIRED_SETTINGS, OPTIONAL_SETTINGS)
    folders = distinct_choices(found.folders)
    rows = [row for folder in folders for row in share_rows(folder)]
    tables, notes = [share_table(rows)], list[str]()
    effects: list[Row] = []
    if job.profile == DEFAULT:
        effects = block_effects(block_runs(job).folders, REPLICATES)
    if effects:
        beside = disagreement_rows(rows, effects)
        tables += [disagreement_table(beside, judged=any(r.get("true_area") is not None for r in effects))]
        notes = disagreement_notes(beside)
    return Artefact(
        name=NAME,
        title="Feature share per block and category",
        shows="Where the features lie that are switched on and off when all blocks are ranked together, as a share of "
        "all that are switched. Pooled: a feature competes with its share of all blocks' activations, as published. "
        "Per block: with its share of its own block's activations, which leaves out that some blocks add larger "
        "updates. The choice does not depend on the strength: each picture counts once. A share says where features "
        "were chosen and not what they do: beside it stands each block's effect when it is edited alone (see "
        "`blocks`).",
        tables=tuple(tables),
        settings={
            "profile": job.profile,
            **found.settings,
            "bootstrap": {"replicates": REPLICATES, "seed": BOOTSTRAP_SEED, "interval": "95 %, studentised"},
        },
        notes=tuple(notes),
        alt="Heat maps, blocks by categories: the share of the features switched on and off in either variant, and the "
        "effect of each block edited alone.",
    )


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw heat maps of the shares in both variants."""
    draw_shares(figure, artefact)


def variant_of(setting: Setting) -> str:
    """Return how a configuration of `sae` divides activations before ranking."""
    return str(setting.params.get("shares", POOLED))


def distinct_choices(folders: Iterable[RunFolder]) -> list[RunFolder]:
    """Return one folder for each choice of features, smaller choices first.

    Of folders with the same choice, the one with most seeds, then most work items, is returned. Configurations that
    edit blocks singly have no choice between blocks, and those that choose at random have none at all; both are left
    out.
    """
    best: dict[str, tuple[int, int, RunFolder]] = {}
    for folder in folders:
        setting = folder.spec.setting
        if setting.method != "sae" or setting.params.get("ranking") == "separate":
            continue
        chosen = choice_records(folder)
        if not chosen:
            continue
        params = {key: setting.params.get(key) for key in CHOICE_PARAMETERS}
        key = json.dumps([params, switched_count(setting), variant_of(setting), setting.blocks, folder.spec.sae_sha256])
        size = (len({record.key.seed for record in chosen}), len(chosen))
        if key not in best or size > best[key][:2]:
            best[key] = (*size, folder)
    found = [folder for _, _, folder in best.values()]
    return sorted(found, key=lambda f: (variant_of(f.spec.setting) != POOLED, switched_count(f.spec.setting) or 0))


def choice_records(folder: RunFolder) -> list[EditRecord]:
    """Return finished work items that chose among several blocks, each picture once.

    Returns:
        Records of the lowest strength that has any.
    """
    found = [record for record in folder.records() if len(record.features) > 1 and record.status == "ok"]
    first = min((record.key.strength for record in found), default=None)
    return [record for record in found if record.key.strength == first]


def share_rows(folder: RunFolder) -> list[Row]:
    """Compute each block's share of the switched features, over all and each category."""
    setting, chosen = folder.spec.setting, choice_records(folder)
    strength = chosen[0].key.strength if chosen else None
    block_sets = {record.key.block_set for record in chosen}
    expected: dict[str, int] = {}
    for (category, block_set, planned_at), n in folder.expected.items():
        if planned_at == strength and block_set in block_sets:
            expected[category] = expected.get(category, 0) + n
    clusters = {r.key.example_id: r.cluster for r in chosen if r.cluster is not None}
    blocks = pass_order(block for record in chosen for block in record.features)
    rows: list[Row] = []
    for side, called in SIDES.items():
        for block in blocks:
            values = _block_shares(chosen, block, side)
            for category in (EVERYTHING, *(name for name in ALL_CATEGORIES if name in expected)):
                some = values if category == EVERYTHING else {category: values.get(category, {})}
                counted = [len(seeds) for examples in some.values() for seeds in examples.values()]
                rows.append(
                    {
                        "variant": variant_of(setting),
                        "setting": setting.name,
                        "switched": switched_count(setting),
                        "side": called,
                        "block": block,
                        "category": category,
                        **estimate_cells("share", estimate(some, clusters, bounds=(0, 1))),
                        "examples": sum(len(examples) for examples in some.values()),
                        "seeds": max(counted, default=0),
                        "counted": sum(counted),
                        "expected": sum(expected.values()) if category == EVERYTHING else expected[category],
                    }
                )
    return rows


def _block_shares(chosen: Sequence[EditRecord], block: str, side: str) -> Mapping[str, Mapping[str, list[float]]]:
    """Collect a block's share of the features switched on one side.

    Args:
        chosen: records of the choice.
        block: short name of the block.
        side: "add" or "remove".

    Returns:
        Category -> example -> share for each seed; records that switched nothing on this side are left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for record in chosen:
        counts = {name: len(getattr(lists, side)) for name, lists in record.features.items()}
        total = sum(counts.values())
        if total:
            examples = found.setdefault(record.key.category, {})
            examples.setdefault(record.key.example_id, []).append(counts.get(block, 0) / total)
    return found


def share_table(rows: Sequence[Row]) -> Table:
    """Return the table of shares, with blocks down and categories across."""
    plain = ("variant", "setting", "switched", "side", "block", "category", "examples", "seeds", "counted", "expected")
    return Table(
        title="Share of the switched features in each block",
        columns=(*plain_columns(plain), Column(name="share", decimals=2, interval=True)),
        rows=tuple(rows),
        views=(
            View(
                title="Share of the switched features in each block",
                down=("variant", "setting", "switched", "side", "block", "seeds"), across="category", cell="share",
            ),
            View(
                title="Pictures counted",
                down=("variant", "setting", "side", "seeds", "expected"), across="category", cell="counted",
            ),
        ),
    )  # fmt: skip


def disagreement_rows(shares: Sequence[Row], effects: Sequence[Row]) -> list[Row]:
    """Compare the blocks' order by share with their order by effect.

    There is a row for each category and variant. Rows name the block with most features and the block with most effect.
    Of each variant, the configuration is used whose number of features is nearest to that of the single-block edits. A
    block's share is the mean of its shares on and off.

    Args:
        shares: of `share_rows`.
        effects: of `riebench.paper.recipes.blocks.block_effects`.
    """
    switched = next((row["switched"] for row in effects), None)
    rows = []
    for variant in values_of(shares, "variant"):
        variant_rows = select_rows(shares, variant=variant)
        names = {row["setting"]: row["switched"] for row in variant_rows}
        setting = min(names, key=lambda name: abs(_float_or_zero(names[name]) - _float_or_zero(switched)))
        for category in values_of(effects, "category"):
            if category != EVERYTHING:
                share = _mean_shares(select_rows(variant_rows, setting=setting, category=category))
                rows.append(_row(str(variant), setting, category, share, select_rows(effects, category=category)))
    return rows


def _row(variant: str, setting: object, category: object, share: Mapping[str, float], effects: Sequence[Row]) -> Row:
    """Return the row of one category and variant."""
    row: Row = {"category": str(category), "variant": variant, "setting": str(setting), "by_share": top_block(share)}
    row["share"] = share.get(str(row["by_share"]))
    for name, key in (("area", "area"), ("true", "true_area")):
        known = [r for r in effects if r["block"] != WHOLE and r.get(key) is not None]
        effect = {str(r["block"]): _float_or_zero(r[key]) for r in known}
        best = top_block(effect)
        # A block without an interval has no clear effect: its missing lower end counts as 0.
        idle = {str(r["block"]) for r in known if _float_or_zero(r.get(f"{key}_low")) <= 0}
        row |= {
            f"by_{name}": best,
            name: effect.get(best) if best else None,
            f"{name}_of_share": effect.get(str(row["by_share"])),
            f"same_{name}": None if best is None or row["by_share"] is None else best == row["by_share"],
            f"tau_{name}": kendall_tau(share, effect),
            f"idle_{name}": sum(n for block, n in share.items() if block in idle) if effect and share else None,
        }
    return row


def _mean_shares(rows: Sequence[Row]) -> dict[str, float]:
    """Average each block's shares on and off; a block without both is left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row["share"], float):
            found.setdefault(str(row["block"]), []).append(row["share"])
    return {block: sum(sides) / 2 for block, sides in found.items() if len(sides) == 2}


def _float_or_zero(value: object) -> float:
    """Return a number as a float; 0 for a missing one."""
    return float(value) if isinstance(value, int | float) else 0.0


def top_block(values: Mapping[str, float]) -> str | None:
    """Return the block with the largest number; None for a tie or no block."""
    ordered = sorted(values.values(), reverse=True)
    if not ordered or (len(ordered) > 1 and ordered[0] - ordered[1] < TIE_TOLERANCE):
        return None
    return max(values, key=lambda block: values[block])


def kendall_tau(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Compute Kendall's tau-b between two orders of the blocks that both have.

    Returns:
        None where one of them has no order.
    """
    shared = [block for block in first if block in second]
    if len(shared) < 2:
        return None
    found = float(kendalltau([first[b] for b in shared], [second[b] for b in shared]).statistic)
    return found if found == found else None


def disagreement_table(rows: Sequence[Row], judged: bool) -> Table:
    """Return the table of shares against effects.

    Args:
        rows: of `disagreement_rows`.
        judged: whether mean success is known.
    """
    columns = [
        *plain_columns(("category", "variant", "setting")),
        Column(name="by_share", title="most features in"),
        Column(name="share", title="share", decimals=2),
        Column(name="by_area", title="largest mean gain by"),
        gain_column("area", "mean gain x100", interval=False),
        gain_column("area_of_share", "mean gain x100 of the block with most features", interval=False),
        Column(name="same_area", title="same block"),
        Column(name="tau_area", title="tau", decimals=2),
        Column(name="idle_area", title="share in blocks without clear CLIP effect", decimals=2),
    ]
    if judged:
        columns += [
            Column(name="by_true", title="largest mean success by"),
            Column(name="true", title="mean success %", decimals=0, scale=100),
            Column(name="true_of_share", title="mean success % of the block with most features", decimals=0, scale=100),
            Column(name="same_true", title="same block (truth)"),
            Column(name="tau_true", title="tau (truth)", decimals=2),
            Column(name="idle_true", title="share in blocks without clear true effect", decimals=2),
        ]
    names = {column.name for column in columns}
    kept = tuple({k: v for k, v in row.items() if k in names} for row in rows)
    title = "Share against measured effect: where the two disagree"
    return Table(name="disagreement", title=title, columns=tuple(columns), rows=kept)


def disagreement_notes(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on each variant and effect."""
    notes = []
    for variant in values_of(rows, "variant"):
        for key, words in (("same_area", "by mean gain"), ("same_true", "by mean success")):
            compared = [row for row in select_rows(rows, variant=variant) if row.get(key) is not None]
            if not compared:
                continue
            different = [f"{row['category']}" for row in compared if not row[key]]
            categories = f"; they differ in {', '.join(different)}" if different else ""
            found = [row.get(key.replace("same", "idle")) for row in compared]
            idle = [share for share in found if isinstance(share, float)]
            if not idle:
                continue
            notes.append(
                f"Shares {variant}: the block with most features is the one that does most alone {words} in "
                f"{len(compared) - len(different)} of {len(compared)} categories{categories}. "
                f"{100 * sum(idle) / len(idle):.0f} % of the switched features lie in blocks that alone have no clear "
                "effect there."
            )
    return notes

"""Where most features are chosen against where an edit does most: the two side by side, category by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import kendalltau

from riebench.analysis.configurations import EVERYTHING
from riebench.paper.artefact import Column, Row, Table, picked, values_of
from riebench.paper.columns import gain_column

WHOLE = "all"
CLEAR = 1e-9
"""Effects nearer to each other than this are equal."""


def disagreement_rows(shares: Sequence[Row], effects: Sequence[Row]) -> list[Row]:
    """For each category and variant: the block with most features, the block that does most alone, and their order.

    Of each variant the setting counts whose number of features is nearest to that of the single-block edits. A block's
    share is the mean of its shares on and off.

    Args:
        shares: of `riebench.paper.share.share_rows`.
        effects: of `riebench.paper.blocks.block_effects`.
    """
    switched = next((row["switched"] for row in effects), None)
    rows = []
    for variant in values_of(shares, "variant"):
        mine = picked(shares, variant=variant)
        names = {row["setting"]: row["switched"] for row in mine}
        setting = min(names, key=lambda name: abs(_number(names[name]) - _number(switched)))
        for category in values_of(effects, "category"):
            if category != EVERYTHING:
                share = _mean_shares(picked(mine, setting=setting, category=category))
                rows.append(_row(str(variant), setting, category, share, picked(effects, category=category)))
    return rows


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _mean_shares(rows: Sequence[Row]) -> dict[str, float]:
    """Block -> mean of its shares on and off; a block without both is left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row["share"], float):
            found.setdefault(str(row["block"]), []).append(row["share"])
    return {block: sum(sides) / 2 for block, sides in found.items() if len(sides) == 2}


def _row(variant: str, setting: object, category: object, share: Mapping[str, float], effects: Sequence[Row]) -> Row:
    row: Row = {"category": str(category), "variant": variant, "setting": str(setting), "by_share": top(share)}
    row["share"] = share.get(str(row["by_share"]))
    for name, key in (("area", "area"), ("true", "true_area")):
        known = [r for r in effects if r["block"] != WHOLE and r.get(key) is not None]
        effect = {str(r["block"]): _number(r[key]) for r in known}
        best = top(effect)
        # Without a lower end nothing is known beyond doubt, so such a block counts for none.
        idle = {str(r["block"]) for r in known if _number(r.get(f"{key}_low")) <= 0}
        row |= {
            f"by_{name}": best,
            name: effect.get(best) if best else None,
            f"{name}_of_share": effect.get(str(row["by_share"])),
            f"same_{name}": None if best is None or row["by_share"] is None else best == row["by_share"],
            f"tau_{name}": tau(share, effect),
            f"idle_{name}": sum(n for block, n in share.items() if block in idle) if effect and share else None,
        }
    return row


def top(values: Mapping[str, float]) -> str | None:
    """The block with the largest number; None where there is none, or two are equal."""
    ordered = sorted(values.values(), reverse=True)
    if not ordered or (len(ordered) > 1 and ordered[0] - ordered[1] < CLEAR):
        return None
    return max(values, key=lambda block: values[block])


def tau(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Kendall's tau-b of the order of the blocks that both have; None where one of them has no order."""
    shared = [block for block in first if block in second]
    if len(shared) < 2:
        return None
    found = float(kendalltau([first[b] for b in shared], [second[b] for b in shared]).statistic)
    return found if found == found else None


def disagreement_table(rows: Sequence[Row], judged: bool) -> Table:
    """The rows as a table."""
    columns = [
        *(Column(name=name) for name in ("category", "variant", "setting")),
        Column(name="by_share", title="most features in"),
        Column(name="share", title="share", decimals=2),
        Column(name="by_area", title="most CLIP area by"),
        gain_column("area", "area x100", interval=False),
        gain_column("area_of_share", "area x100 of the block with most features", interval=False),
        Column(name="same_area", title="same block"),
        Column(name="tau_area", title="tau", decimals=2),
        Column(name="idle_area", title="share in blocks without clear CLIP effect", decimals=2),
    ]
    if judged:
        columns += [
            Column(name="by_true", title="most true area by"),
            Column(name="true", title="true area %", decimals=0, scale=100),
            Column(name="true_of_share", title="true area % of the block with most features", decimals=0, scale=100),
            Column(name="same_true", title="same block (truth)"),
            Column(name="tau_true", title="tau (truth)", decimals=2),
            Column(name="idle_true", title="share in blocks without clear true effect", decimals=2),
        ]
    names = {column.name for column in columns}
    kept = tuple({k: v for k, v in row.items() if k in names} for row in rows)
    title = "Share against measured effect: where the two disagree"
    return Table(name="disagreement", title=title, columns=tuple(columns), rows=kept)


def disagreement_notes(rows: Sequence[Row]) -> list[str]:
    """One sentence on each variant and effect."""
    notes = []
    for variant in values_of(rows, "variant"):
        for key, words in (("same_area", "by the CLIP area"), ("same_true", "by the true area")):
            told = [row for row in picked(rows, variant=variant) if row.get(key) is not None]
            if not told:
                continue
            odd = [f"{row['category']}" for row in told if not row[key]]
            which = f"; they differ in {', '.join(odd)}" if odd else ""
            found = [row.get(key.replace("same", "idle")) for row in told]
            idle = [share for share in found if isinstance(share, float)]
            if not idle:
                continue
            notes.append(
                f"Shares {variant}: the block with most features is the one that does most alone {words} in "
                f"{len(told) - len(odd)} of {len(told)} categories{which}. "
                f"{100 * sum(idle) / len(idle):.0f} % of the switched features lie in blocks that alone have no clear "
                "effect there."
            )
    return notes

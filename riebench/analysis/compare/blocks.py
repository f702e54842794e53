"""Shares of single blocks in what a method moves.

The table of means per block has its own scale in every category. Here a block's mean is divided by the sum over the
blocks, by two measures beside each other: gains, which fall where an edit does damage, and margins, which count the
change along the wished one alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import Configuration, block_places, present_categories
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, cluster_counts, mean_over_seeds, percentile_interval
from riebench.blocks import ALL_BLOCKS, NO_BLOCKS
from riebench.utils.markup import Block, Code, Document, Heading, MarkupTable, Paragraph, csv_text

Floats = NDArray[np.float64]

MEASURES: Mapping[str, tuple[str, ...]] = {
    "margin": ("clip_margin", "clip_margin_2"),
    "gain": ("clip_gain",),
}
"""Measure -> the metrics whose shares it is the mean of; those that were not measured are left out."""
MARGINS = MEASURES["margin"]
"""Metrics to read that no table of means shows."""
DRAWN = REPLICATES // 10
"""Replicates of the bootstrap; percentiles of shares need no more."""


@dataclass(frozen=True)
class BlockShare:
    """The share of one block in what the single blocks of a method move.

    Attributes:
        setting: name of the method configuration.
        strength: edit strength.
        measure: a key of `MEASURES`.
        metrics: the metrics that were measured, joined by "+".
        category: edit category.
        block: the block that is edited alone.
        share: its share, 0 to 1.
        low: lower end of its 95 % interval; None with fewer than two independent examples.
        high: upper end.
        n_examples: examples that all blocks have a number for.
    """

    setting: str
    strength: float
    measure: str
    metrics: str
    category: str
    block: str
    share: float
    low: float | None
    high: float | None
    n_examples: int


def shares(values: Floats) -> Floats:
    """Return blocks' shares in the sum over blocks.

    A block with a negative mean has none. If no block has a positive one, all shares are 0.

    Args:
        values: float [..., blocks], means.

    Returns:
        Likewise, from 0 to 1.
    """
    positive = values.clip(min=0)
    total = positive.sum(-1, keepdims=True)
    return np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)


def block_shares(found: Iterable[Configuration]) -> list[BlockShare]:
    """Compute the shares of single blocks, by configuration, measure and category.

    Args:
        found: configurations; those that edit several blocks together, or the only block of their kind, are left out.
    """
    groups: dict[tuple[str, float], list[Configuration]] = {}
    for one in found:
        if one.block_set not in (ALL_BLOCKS, NO_BLOCKS) and "+" not in one.block_set:
            groups.setdefault((one.setting, one.strength), []).append(one)
    rows: list[BlockShare] = []
    for group in groups.values():
        if len(group) > 1:
            for measure in MEASURES:
                for category in present_categories(group):
                    rows += _category_shares(group, measure, category)
    return rows


def _category_shares(group: Sequence[Configuration], measure: str, category: str) -> list[BlockShare]:
    """Return the shares of some blocks in one category; none if a block has no number."""
    metrics = [name for name in MEASURES[measure] if all(one.values.get(name, {}).get(category) for one in group)]
    tables = [[one.values[name][category] for one in group] for name in metrics]
    examples = sorted(set.intersection(*(set(cell) for cells in tables for cell in cells))) if tables else []
    if not examples:
        return []
    clusters = [group[0].clusters.get(example, example) for example in examples]
    names = tuple(sorted(set(clusters)))
    member = np.array([[name == one for one in clusters] for name in names], dtype=float)
    # The observed examples are the first row, once each.
    drawn = cluster_counts(category, names, DRAWN, BOOTSTRAP_SEED) if len(names) > 1 else np.empty((0, len(names)))
    counts = np.vstack([np.ones(len(names)), drawn]) @ member
    by_metric = []
    for cells in tables:
        values = np.array([[mean_over_seeds(cell[example]) for cell in cells] for example in examples])
        by_metric.append(shares(counts @ values))
    found = np.mean(by_metric, axis=0)
    rows = []
    for place, one in enumerate(group):
        low, high = percentile_interval(found[1:, place]) or (None, None)
        rows.append(
            BlockShare(
                one.setting, one.strength, measure, "+".join(metrics), category, one.block_set, float(found[0, place]),
                low, high, len(examples),
            )
        )  # fmt: skip
    return rows


def per_block_share(found: Iterable[Configuration]) -> tuple[Document, str] | None:
    """Tabulate the shares of single blocks.

    None if no configuration edits several of them.

    Returns:
        The table for people, and its CSV file.
    """
    rows = block_shares(found)
    if not rows:
        return None
    note = (
        "Share of each block in what the blocks of a method configuration move when each is edited alone: its mean "
        "over examples divided by the sum over blocks; a negative mean counts as none. In brackets: 95 %, percentiles "
        f"of {DRAWN} bootstrap replicates over examples. By margin: mean of the shares by ", Code("clip_margin"),
        " and, where it was measured, by ", Code("clip_margin_2"), "; it counts the change of the picture along that "
        "of the prompts. By gain: ", Code("clip_gain"), ", which falls where an edit does damage, so that a block that "
        "moves a picture half of the way may have no share. A share says nothing of how much all blocks move together.",
    )  # fmt: skip
    blocks: list[Block] = [Heading(1, ("Shares of single blocks",)), Paragraph(note)]
    for measure in MEASURES:
        mine = [one for one in rows if one.measure == measure]
        if mine:
            blocks += [Heading(2, (f"By {measure}",)), _share_table(mine)]
    names = [field.name for field in fields(BlockShare)]
    return Document(tuple(blocks)), csv_text(names, ([getattr(one, name) for name in names] for one in rows))


def _share_table(rows: Sequence[BlockShare]) -> MarkupTable:
    categories = list(dict.fromkeys(one.category for one in rows))
    several = {one.setting for one in rows if len({o.strength for o in rows if o.setting == one.setting}) > 1}
    cells: dict[tuple[str, float, str], dict[str, str]] = {}
    for one in rows:
        ends = "" if one.low is None or one.high is None else f" [{one.low:.2f}, {one.high:.2f}]"
        cells.setdefault((one.setting, one.strength, one.block), {})[one.category] = f"{one.share:.2f}{ends}"
    places = block_places(block for _, _, block in cells)
    order = list(dict.fromkeys((setting, strength) for setting, strength, _ in cells))
    table = [
        [f"{setting} x{strength:g}" if setting in several else setting, block,
         *(cells[setting, strength, block].get(category, "–") for category in categories)]
        for setting, strength, block in sorted(cells, key=lambda key: (order.index(key[:2]), places[key[2]]))
    ]  # fmt: skip
    return MarkupTable.of(["configuration", "block", *categories], table)

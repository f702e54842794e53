"""Comparison of SAE features and neurons at equal shares of their pools.

A share is the part of all features, or of all feed-forward units, that a configuration switches each way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.multiple import step_down
from riebench.analysis.standings import Entry
from riebench.analysis.stats import REPLICATES, Replicates
from riebench.analysis.tradeoff import SampleMean
from riebench.paper.artefact import Column, Row, Table, View, estimate_cells, gain_column, percent_column
from riebench.paper.comparison import Comparison, count_units, setting_name
from riebench.paper.runs import SelectionPools, share_text, switched_count
from riebench.tasks.schema import Setting


@dataclass(frozen=True)
class Pair:
    """Two configurations with the same share of their pools, strengths and seeds.

    Attributes:
        share: of each pool.
        features: entry of the SAE setting.
        units: entry of the neuron setting.
    """

    share: Fraction
    features: Entry
    units: Entry


def find_pairs(everything: Sequence[Entry], settings: Mapping[str, Setting], pools: SelectionPools) -> list[Pair]:
    """Find configurations of SAE features and neurons at the same share.

    Their strengths, blocks, edited steps and seeds are the same too, and they have no other parameters.

    Args:
        everything: one entry for each setting.
        settings: by name.
        pools: numbers of features and units to select from.

    Returns:
        Pairs by share, then most seeds first.
    """
    found: list[Pair] = []
    for features in (entry for entry in everything if entry.method == "sae"):
        sae_setting = settings[setting_name(features)]
        share = pools.share(sae_setting)
        common = (sae_setting.strengths, sae_setting.blocks, sae_setting.edit_steps, features.seeds)
        # Any other parameter makes it another method.
        sae_plain = set(sae_setting.params) == {"n_features"}
        for units in (entry for entry in everything if entry.method == "neurons"):
            neuron_setting = settings[setting_name(units)]
            alike = common == (neuron_setting.strengths, neuron_setting.blocks, neuron_setting.edit_steps, units.seeds)
            neurons_plain = set(neuron_setting.params) == {"n_units"}
            if share is not None and sae_plain and neurons_plain and alike and pools.share(neuron_setting) == share:
                found.append(Pair(share, features, units))
    return sorted(found, key=lambda pair: (pair.share, -pair.features.seeds))


def equal_share_rows(
    everything: Sequence[Entry], settings: Mapping[str, Setting], pools: SelectionPools, replicates: int = REPLICATES
) -> list[Row]:
    """Compute mean gain and mean success of both sides and their paired differences.

    P values are adjusted over all rows (`riebench.analysis.multiple`).

    Args:
        everything: one entry for each setting.
        settings: by name.
        pools: numbers of features and units to select from.
        replicates: of the bootstrap.

    Returns:
        For each pair one row over all categories and one for each category.
    """
    found = find_pairs(everything, settings, pools)
    rows: list[Row] = []
    differences: dict[str, Replicates] = {}
    for pair in found:
        comparison = Comparison((pair.features, pair.units), replicates=replicates)
        for category in comparison.categories:
            row, difference = _row(comparison, pair, settings, category)
            if difference is not None:
                differences[str(len(rows))] = difference.replicates
            rows.append(row)
    adjusted = step_down(differences)
    return [{**row, "p": adjusted.get(str(index))} for index, row in enumerate(rows)]


def _row(
    comparison: Comparison, pair: Pair, settings: Mapping[str, Setting], category: str
) -> tuple[Row, SampleMean | None]:
    areas = [comparison.area(entry, category) for entry in (pair.features, pair.units)]
    truths = [comparison.true_area(entry, category) for entry in (pair.features, pair.units)]
    difference, true_difference = _difference(areas), _difference(truths)
    gap = comparison.gap(pair.features) or comparison.gap(pair.units)
    row: Row = {
        "share": share_text(pair.share),
        "features": switched_count(settings[setting_name(pair.features)]),
        "units": switched_count(settings[setting_name(pair.units)]),
        "category": category,
        "examples": comparison.n_examples(category),
        "seeds": comparison.seeds,
        "scored": sum(count_units(entry, category)[0] for entry in (pair.features, pair.units)),
        "expected": sum(count_units(entry, category)[1] for entry in (pair.features, pair.units)),
    }
    for name, draws in (
        ("sae_area", areas[0]), ("neurons_area", areas[1]), ("difference", difference), ("sae_true", truths[0]),
        ("neurons_true", truths[1]), ("true_difference", true_difference),
    ):  # fmt: skip
        row |= estimate_cells(name, comparison.estimate(draws, category))
    return {**row, "note": gap or ""}, difference


def _difference(sides: Sequence[SampleMean | None]) -> SampleMean | None:
    first, second = sides
    return None if first is None or second is None else first - second


def equal_share_table(rows: Sequence[Row], judged: bool) -> Table:
    """Return the table of equal shares; differences are also printed by category.

    Args:
        rows: of `equal_share_rows`.
        judged: whether mean success is known.
    """
    plain = ("share", "features", "units", "category", "examples", "seeds", "scored", "expected")
    true_columns = [
        percent_column("sae_true", "mean success %: SAE"),
        percent_column("neurons_true", "mean success %: neurons"),
        percent_column("true_difference", "difference of mean success %", signed=True),
    ]
    columns = [
        *(Column(name=name) for name in plain),
        gain_column("sae_area", "mean gain x100: SAE"),
        gain_column("neurons_area", "mean gain x100: neurons"),
        gain_column("difference", "SAE minus neurons"),
        Column(name="p", decimals=4),
        *(true_columns if judged else []),
        Column(name="note"),
    ]
    hidden = set() if judged else {key for column in true_columns for key in column.keys}
    down = ("share", "features", "units", "seeds")
    titles = {
        "sae_area": "SAE, mean gain x100",
        "neurons_area": "neurons, mean gain x100",
        "difference": "SAE minus neurons, mean gain x100",
    }
    if judged:
        titles |= {"true_difference": "SAE minus neurons, mean success in points of %"}
    views = [View(title=f"Equal share: {title}", down=down, across="category", cell=n) for n, title in titles.items()]
    kept = tuple({k: v for k, v in row.items() if k not in hidden} for row in rows)
    return Table(
        name="equal-share",
        title="SAE features and neurons at equal shares of their pools",
        columns=tuple(columns),
        rows=kept,
        views=tuple(views),
    )


def equal_share_notes(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on each share."""
    notes = []
    for row in (row for row in rows if row["category"] == EVERYTHING and isinstance(row["difference"], float)):
        low, high = float(row["difference_low"] or 0), float(row["difference_high"] or 0)
        finding = "SAE features reach more" if low > 0 else "neurons reach more" if high < 0 else "no clear difference"
        notes.append(
            f"At {row['share']} of the pool ({row['features']} of the features, {row['units']} of the units, each "
            f"way): {finding}; SAE minus neurons {100 * float(row['difference'] or 0):+.2f} "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]."
        )
    return notes

"""SAE features against neurons where both switch the same share of what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.standings import Entry
from riebench.analysis.stats import REPLICATES, holm, p_value
from riebench.paper.artefact import Column, Row, Table, View, estimated, gain_column, percent_column
from riebench.paper.contest import Contest, Floats, counts, setting_of
from riebench.paper.runs import Pools, count_of, share_text
from riebench.tasks.schema import Setting


@dataclass(frozen=True)
class Pair:
    """Two settings with the same share of their pools, the same strengths and the same seeds."""

    share: Fraction
    features: Entry
    units: Entry


def pairs(everything: Sequence[Entry], settings: Mapping[str, Setting], chooses: Pools) -> list[Pair]:
    """Settings of SAE features and of neurons that switch the same share, at the same strengths, on the same seeds.

    Args:
        everything: one entry a setting.
        settings: by name.
        chooses: what there is to choose from.
    """
    found: list[Pair] = []
    for one in (entry for entry in everything if entry.method == "sae"):
        mine = settings[setting_of(one)]
        share = chooses.share(mine)
        common = (mine.strengths, mine.blocks, mine.edit_steps, one.seeds)
        # Whatever else a setting says makes it another method.
        plain = set(mine.params) == {"n_features"}
        for other in (entry for entry in everything if entry.method == "neurons"):
            theirs = settings[setting_of(other)]
            alike = common == (theirs.strengths, theirs.blocks, theirs.edit_steps, other.seeds)
            plain_too = set(theirs.params) == {"n_units"}
            if share is not None and plain and plain_too and alike and chooses.share(theirs) == share:
                found.append(Pair(share, one, other))
    return sorted(found, key=lambda pair: (pair.share, -pair.features.seeds))


def at_equal_shares(
    everything: Sequence[Entry], settings: Mapping[str, Setting], chooses: Pools, replicates: int = REPLICATES
) -> list[Row]:
    """Area and true area of both sides and their paired differences, over all categories and in each.

    Args:
        everything: one entry a setting.
        settings: by name.
        chooses: what there is to choose from.
        replicates: of the bootstrap.
    """
    found = pairs(everything, settings, chooses)
    rows: list[Row] = []
    raw: dict[str, float] = {}
    for pair in found:
        contest = Contest((pair.features, pair.units), replicates=replicates)
        for category in contest.categories:
            row, draws = _row(contest, pair, settings, category)
            if draws is not None:
                raw[str(len(rows))] = p_value(draws[1:])
            rows.append(row)
    adjusted = holm(raw)
    return [{**row, "p": adjusted.get(str(index))} for index, row in enumerate(rows)]


def _row(contest: Contest, pair: Pair, settings: Mapping[str, Setting], category: str) -> tuple[Row, Floats | None]:
    areas = [contest.area(entry, category) for entry in (pair.features, pair.units)]
    truths = [contest.true_area(entry, category) for entry in (pair.features, pair.units)]
    difference, true_difference = _difference(areas), _difference(truths)
    gap = contest.gap(pair.features) or contest.gap(pair.units)
    row: Row = {
        "share": share_text(pair.share),
        "features": count_of(settings[setting_of(pair.features)]),
        "units": count_of(settings[setting_of(pair.units)]),
        "category": category,
        "examples": contest.n_examples(category),
        "seeds": contest.seeds,
        "scored": sum(counts(entry, category)[0] for entry in (pair.features, pair.units)),
        "expected": sum(counts(entry, category)[1] for entry in (pair.features, pair.units)),
    }
    for name, draws in (
        ("sae_area", areas[0]), ("neurons_area", areas[1]), ("difference", difference), ("sae_true", truths[0]),
        ("neurons_true", truths[1]), ("true_difference", true_difference),
    ):  # fmt: skip
        row |= estimated(name, contest.estimate(draws, category))
    return {**row, "note": gap or ""}, difference


def _difference(sides: Sequence[Floats | None]) -> Floats | None:
    first, second = sides
    return None if first is None or second is None else first - second


def equal_share_table(rows: Sequence[Row], judged: bool) -> Table:
    """The rows as a table: everything over all categories, differences by category."""
    plain = ("share", "features", "units", "category", "examples", "seeds", "scored", "expected")
    true_columns = [
        percent_column("sae_true", "true area %: SAE"),
        percent_column("neurons_true", "true area %: neurons"),
        percent_column("true_difference", "true difference %", signed=True),
    ]
    columns = [
        *(Column(name=name) for name in plain),
        gain_column("sae_area", "area x100: SAE"),
        gain_column("neurons_area", "area x100: neurons"),
        gain_column("difference", "SAE minus neurons"),
        Column(name="p", decimals=4),
        *(true_columns if judged else []),
        Column(name="note"),
    ]
    hidden = set() if judged else {key for column in true_columns for key in column.keys}
    down = ("share", "features", "units", "seeds")
    told = {
        "sae_area": "SAE area x100",
        "neurons_area": "neurons area x100",
        "difference": "SAE minus neurons, area x100",
    }
    if judged:
        told |= {"true_difference": "SAE minus neurons, true area in points of %"}
    views = [View(title=f"Equal share: {title}", down=down, across="category", cell=n) for n, title in told.items()]
    kept = tuple({k: v for k, v in row.items() if k not in hidden} for row in rows)
    return Table(
        name="equal-share",
        title="SAE features and neurons at equal shares of their pools",
        columns=tuple(columns),
        rows=kept,
        views=tuple(views),
    )


def equal_share_notes(rows: Sequence[Row]) -> list[str]:
    """One sentence on each share."""
    notes = []
    for row in (row for row in rows if row["category"] == EVERYTHING and isinstance(row["difference"], float)):
        low, high = float(row["difference_low"] or 0), float(row["difference_high"] or 0)
        said = "SAE features reach more" if low > 0 else "neurons reach more" if high < 0 else "no clear difference"
        notes.append(
            f"At {row['share']} of the pool ({row['features']} of the features, {row['units']} of the units, each "
            f"way): {said}; SAE minus neurons {100 * float(row['difference'] or 0):+.2f} "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]."
        )
    return notes

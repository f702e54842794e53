"""Tables of the features and neurons that edits switched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from riebench.analysis.configurations import (
    EVERYTHING,
    block_places,
)
from riebench.analysis.tables.by_configuration import TablePair
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import ALL_CATEGORIES
from riebench.utils.markup import (
    Code,
    Document,
    Heading,
    MarkupTable,
    Paragraph,
    csv_text,
)


@dataclass(frozen=True)
class FeatureShare:
    """The share of a configuration's switched features that lies in one block.

    Attributes:
        setting: its name.
        category: edit category.
        side: "add" for features switched on, "remove" for features switched off.
        block: short name.
        share: of the features of that side in all blocks, 0 to 1.
        features: their number, added up over edits.
        units: edits that were counted.
        expected: edits that were planned.
    """

    setting: str
    category: str
    side: str
    block: str
    share: float
    features: int
    units: int
    expected: int


def feature_shares(folders: Iterable[RunFolder]) -> list[FeatureShare]:
    """Count switched features by configuration, category, side and block.

    Args:
        folders: run folders; those that edit a single block have nothing to share and are left out.
    """
    shares: list[FeatureShare] = []
    for folder in folders:
        chosen = [r for r in folder.records() if len(r.features) > 1 and r.status == "ok"]
        # The choice does not depend on the strength; the first strength stands for all.
        strengths = sorted({record.key.strength for record in chosen})
        chosen = [record for record in chosen if record.key.strength == strengths[0]]
        blocks = list(dict.fromkeys(block for record in chosen for block in record.features))
        for category in ALL_CATEGORIES:
            some = [record for record in chosen if record.key.category == category]
            sets = {record.key.block_set for record in some}
            expected = sum(folder.expected.get((category, name, strengths[0]), 0) for name in sets)
            for side in ("add", "remove"):
                counts = [_feature_count(some, block, side) for block in blocks]
                total = sum(counts)
                shares += [
                    FeatureShare(folder.spec.setting.name, category, side, block, n / total, n, len(some), expected)
                    for block, n in zip(blocks, counts, strict=True)
                    if total
                ]
    return shares


def per_feature_share(folders: Iterable[RunFolder]) -> TablePair:
    """Tabulate the share of switched features that lies in each block."""
    return feature_share_table(feature_shares(folders))


def feature_share_table(shares: Sequence[FeatureShare]) -> TablePair:
    """Tabulate shares of switched features that were counted."""
    names = [field.name for field in fields(FeatureShare)]
    return _share_document(shares), csv_text(names, ([getattr(one, name) for name in names] for one in shares))


def _feature_count(records: Iterable[EditRecord], block: str, side: str) -> int:
    return sum(len(getattr(record.features[block], side)) for record in records if block in record.features)


def _share_document(shares: Sequence[FeatureShare]) -> Document:
    blocks = list(dict.fromkeys(one.block for one in shares))
    grouped: dict[tuple[str, ...], dict[str, str]] = {}
    for one in shares:
        row = (one.setting, one.category, one.side, f"{one.units}/{one.expected}")
        grouped.setdefault(row, {})[one.block] = f"{one.share:.2f}"
    table = [[*key, *(cells.get(block, "–") for block in blocks)] for key, cells in grouped.items()]
    note = Paragraph(
        (
            "Share of the features switched on (add) and off (remove) that lie in each block when all blocks are "
            "ranked together; ",
            Code("units"),
            ": edits counted/expected. Where a feature is chosen is not yet what it does: hold it against the "
            "per-block table.",
        )
    )
    header = ["configuration", "category", "side", "units", *blocks]
    return Document((Heading(1, ("Feature share",)), note, MarkupTable.of(header, table)))


@dataclass(frozen=True)
class SwitchedCount:
    """Number of features or neurons that a configuration switched in a category.

    Attributes:
        setting: its name.
        block_set: blocks edited together.
        category: edit category, or "all".
        switched: features or neurons switched on and off, mean over edits; None if none is known.
        none: edits that switched nothing.
        edits: edits whose number is known.
        expected: edits that were planned.
    """

    setting: str
    block_set: str
    category: str
    switched: float | None
    none: int
    edits: int
    expected: int

    @property
    def text(self) -> str:
        """The cell as printed; empty if nothing was planned."""
        if not self.expected:
            return ""
        mean = "–" if self.switched is None else f"{self.switched:.1f}"
        return f"{mean} {f'({self.none} none) ' if self.none else ''}{self.edits}/{self.expected}"


def switched_counts(folders: Iterable[RunFolder]) -> list[SwitchedCount]:
    """Count the features or neurons that edits really switched.

    A configuration states how many it may switch. Where source and target run differ in fewer, fewer are switched, and
    where they do not differ in a block beyond rounding, none is (`riebench.methods.ranking.noise_floor`).

    Args:
        folders: run folders; those whose edits choose no features or neurons are left out.
    """
    counts = []
    for folder in folders:
        chosen = [record for record in folder.records() if record.status == "ok" and record.switched is not None]
        # The choice does not depend on the strength; the first strength stands for all.
        first = min((record.key.strength for record in chosen), default=None)
        if first is None:
            continue
        planned = {
            (name, category): n for (category, name, strength), n in folder.expected.items() if strength == first
        }
        places = block_places(name for name, _ in planned)
        for block_set in sorted(places, key=places.__getitem__):
            mine = [r for r in chosen if (r.key.block_set, r.key.strength) == (block_set, first)]
            for category in (*ALL_CATEGORIES, EVERYTHING):
                numbers = [r.switched or 0 for r in mine if category in (r.key.category, EVERYTHING)]
                expected = sum(
                    n for (name, c), n in planned.items() if name == block_set and category in (c, EVERYTHING)
                )
                mean = sum(numbers) / len(numbers) if numbers else None
                counts.append(
                    SwitchedCount(
                        folder.spec.setting.name, block_set, category, mean, numbers.count(0), len(numbers), expected
                    )
                )
    return counts


def per_switched_count(folders: Iterable[RunFolder]) -> TablePair:
    """Tabulate how many features or neurons edits really switched."""
    return switched_count_table(switched_counts(folders))


def switched_count_table(counts: Sequence[SwitchedCount]) -> TablePair:
    """Tabulate numbers of features or neurons that were counted."""
    present = {one.category for one in counts if one.expected}
    categories = [category for category in (*ALL_CATEGORIES, EVERYTHING) if category in present]
    table: dict[tuple[str, str], list[str]] = {}
    for one in counts:
        if one.category in present:
            table.setdefault((one.setting, one.block_set), []).append(one.text)
    note = Paragraph(
        (
            "Features or neurons that an edit switched on and off together, mean over edits; edits counted/expected. A "
            "configuration says how many it switches at most. A feature is switched only if its share differs between "
            "source and target run by more than rounding can make it differ; ",
            Code("(3 none)"),
            " counts edits in which none did, which leave the picture as it was.",
        )
    )
    document = Document(
        (
            Heading(1, ("Features switched",)),
            note,
            MarkupTable.of(["configuration", "blocks", *categories], [[*key, *cells] for key, cells in table.items()]),
        )
    )
    names = [field.name for field in fields(SwitchedCount)]
    rows = ([getattr(one, name) for name in names] for one in counts if one.category in present)
    return document, csv_text(names, rows)

"""Tables from stored records and scores, and documents that quote them.

The first part makes the tables per block, per category, per method, of feature shares and of features switched. The
second part writes and checks their files beside the runs. The third part fills the marked parts of Markdown documents
from stored tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from riebench.analysis.compare import check_claims, contrast_part
from riebench.analysis.compare.blocks import MARGINS, per_block_share
from riebench.analysis.compare.training import training_table
from riebench.analysis.configurations import (
    EVERYTHING,
    LARGEST_SCORE,
    Configuration,
    TableRow,
    block_places,
    comparison_gaps,
    configurations,
    mixed_in_words,
    present_categories,
    present_metrics,
    scored_profiles,
    whole_configurations,
)
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, detectable_difference
from riebench.analysis.tradeoff.response.distances import distance_table
from riebench.errors import RiebenchError
from riebench.models.clip import with_revision
from riebench.registry import METRICS
from riebench.scoring.profiles import DEFAULT, PROFILES, Profile, metric_format
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import ALL_CATEGORIES, inputs_in_words
from riebench.utils.files import out_of_date, write_atomic
from riebench.utils.markup import (
    Block,
    BulletList,
    Code,
    Document,
    Heading,
    MarkupTable,
    Name,
    Paragraph,
    Piece,
    csv_rows,
    csv_text,
    markdown_table,
)

PART = re.compile(r"(<!-- table: (\S+) metric=(\S+) settings=(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""A part of a document: an opening mark with its options, the content, and the end mark."""
CONTRAST = re.compile(r"(<!-- contrast: (\S+) metric=(\S+) first=(\S+) second=(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Likewise, a part with sentences on how two configurations differ."""
TABLE_MARK, CONTRAST_MARK = "<!-- table:", "<!-- contrast:"
TablePair = tuple[Document, str]
"""A table for people, and the text of its CSV file with all its numbers."""


def cell_text(row: TableRow) -> str:
    """Return a cell as printed: mean, interval, scored/expected."""
    counts = f"{row.n_scored}/{row.n_expected}"
    if row.mean is None:
        return f"– {counts}" if row.n_expected else ""
    form = metric_format(row.metric)
    if row.ci_low is None or row.ci_high is None:
        return f"{form.number(row.mean)} [–] {counts}"
    return f"{form.number(row.mean)} [{form.number(row.ci_low)}, {form.number(row.ci_high)}] {counts}"


def _long_csv(rows: Iterable[TableRow]) -> str:
    names = tuple(TableRow.model_fields)
    return csv_text(names, ([getattr(row, name) for name in names] for row in rows))


def _note(found: list[Configuration]) -> list[Block]:
    """Return the paragraphs above a table.

    They give the number of examples, the way cells are computed, and the networks that measured.
    """
    examples = {example for c in found for values in c.values.values() for e in values.values() for example in e}
    seeds = [len(s) for c in found for values in c.values.values() for e in values.values() for s in e.values()]
    profile = PROFILES[found[0].profile if found else DEFAULT]
    shown = [metric for metric in profile.table if metric not in profile.beside]
    networks = sorted({c.backbones[metric] for c in found for metric in shown if c.backbones.get(metric)})
    second = sorted({c.backbones["clip_gain_2"] for c in found if "clip_gain_2" in c.backbones})
    paragraphs: list[list[Piece]] = [
        [
            f"{len(examples)} examples, up to {max(seeds, default=0)} seed(s) each. Cells: mean [95 % interval] "
            f"scored/expected; studentised bootstrap over examples inside each category, {REPLICATES} replicates, "
            f"seed {BOOTSTRAP_SEED}, and Wilson's interval for shares in %. Examples, not seeds, narrow an interval. ",
            Code(EVERYTHING),
            " is the mean over categories.",
        ]
    ]
    if networks:
        paragraphs.append(["Measured by ", Name(", ".join(map(with_revision, networks))), "."])
    if second:
        paragraphs[-1] += ["\n", Code("clip_gain_2"), " is by ", Name(", ".join(map(with_revision, second))), "."]
    paragraphs += _beside_note(found, profile)
    if profile.name != DEFAULT:
        paragraphs.append(_profile_note(found, profile.name))
    paragraphs += outsized_notes(found)
    odd = {c.setting: why for c, why in zip(found, comparison_gaps(found), strict=True) if why is not None}
    for setting, why in odd.items():
        paragraphs.append(["Not to be compared with the other rows: ", Name(setting), ", ", Name(why), "."])
    for setting in dict.fromkeys(c.setting for c in found):
        if mixed := mixed_in_words(c for c in found if c.setting == setting):
            paragraphs.append(["Made with several versions: ", Name(setting), ", ", Name(mixed), "."])
    return [Paragraph(tuple(pieces)) for pieces in paragraphs]


def _beside_note(found: list[Configuration], profile: Profile) -> list[list[Piece]]:
    """Return the paragraph on scorers that were asked for by name, if any measured.

    It names each metric with its version and the network that measured it.
    """
    measured = {metric: {c.backbones[metric] for c in found if metric in c.backbones} for metric in profile.beside}
    scorers: list[Piece] = []
    for metric, networks in measured.items():
        if networks:
            version = f" (version {METRICS.get(metric).version}) by "
            scorers += [", " if scorers else "", Code(metric), version, Name(", ".join(sorted(networks)))]
    if not scorers:
        return []
    return [["Asked for by name, beside the official scorers of the profile, and no part of a rank: ", *scorers, "."]]


def outsized_notes(found: Iterable[Configuration]) -> list[list[Piece]]:
    """Return a paragraph on scores too large to be measurements, if any.

    Args:
        found: all configurations of a table.
    """
    left_out: dict[str, int] = {}
    for one in found:
        for metric, count in one.outsized.items():
            left_out[metric] = left_out.get(metric, 0) + count
    if not left_out:
        return []
    counts = ", ".join(f"{count} of {metric}" for metric, count in sorted(left_out.items()))
    return [[f"Left out: scores beyond {LARGEST_SCORE:g}, which are no measurements ({counts})."]]


def _profile_note(found: list[Configuration], profile: str) -> list[Piece]:
    present = present_metrics(found)
    absent = [metric for metric in PROFILES[profile].table if metric not in present]
    gaps = f" Not measured: {', '.join(absent)}." if absent else ""
    text = f": computed as published scripts do, not to be compared with other tables.{gaps}"
    return ["Profile ", Code(profile), text]


def per_block(found: list[Configuration]) -> TablePair:
    """Tabulate each metric with block sets as rows and categories as columns."""
    categories = [*present_categories(found), EVERYTHING]
    blocks: list[Block] = [_title("Per block"), *_note(found)]
    rows = []
    for metric in present_metrics(found):
        table = []
        for configuration in found:
            cells = [configuration.row(metric, category) for category in categories]
            rows += cells
            table.append([configuration.label, configuration.block_set, *(cell_text(c) for c in cells)])
        blocks += [_metric_heading(metric), MarkupTable.of(["configuration", "blocks", *categories], table)]
    return Document(tuple(blocks)), _long_csv(rows)


def per_category(found: list[Configuration]) -> TablePair:
    """Tabulate each metric with categories as rows and configurations as columns.

    Only configurations with all their blocks are shown.
    """
    whole = whole_configurations(found)
    blocks: list[Block] = [_title("Per category"), *_note(whole)]
    rows = []
    for metric in present_metrics(whole):
        table = []
        for category in [*present_categories(whole), EVERYTHING]:
            cells = [configuration.row(metric, category) for configuration in whole]
            rows += cells
            table.append([category, *(cell_text(c) for c in cells)])
        header = ["category", *(configuration.label for configuration in whole)]
        blocks += [_metric_heading(metric), MarkupTable.of(header, table)]
    return Document(tuple(blocks)), _long_csv(rows)


def _title(text: str) -> Heading:
    return Heading(1, (text,))


def _metric_heading(metric: str) -> Heading:
    return Heading(2, (metric_format(metric).title,))


def per_method(found: list[Configuration]) -> TablePair:
    """Tabulate configurations with all their blocks as rows, metrics as columns."""
    whole = whole_configurations(found)
    metrics = present_metrics(whole)
    table, rows = [], []
    for configuration in whole:
        cells = [configuration.row(metric, EVERYTHING) for metric in metrics]
        rows += cells
        counts = f"{configuration.failed} failed, {configuration.skipped} skipped"
        label = [configuration.label, inputs_in_words(configuration.access)]
        table.append([*label, *(cell_text(c) for c in cells), *_detectable(configuration), counts])
    # Only a gain is a difference from no edit.
    gains = not whole or whole[0].profile == DEFAULT
    header = ["configuration", "inputs used", *metrics, *(["detectable clip_gain"] if gains else []), "not made"]
    inputs = (
        ": what the method may look at. Prompt: the target prompt; target activations: those of the paired target run; "
        "masks: the regions that are to change; training examples: others of the category; inversion: of the picture. "
    )
    detectable = ": smallest difference from no edit that 80 % of such experiments would find."
    columns: tuple[Piece, ...] = (Code("inputs used"), inputs)
    if gains:
        columns = (*columns, Code("detectable clip_gain"), detectable)
    legend = BulletList(tuple((Code(metric), f": {metric_format(metric).title}") for metric in metrics))
    blocks = (_title("Per method"), *_note(whole), Paragraph(columns), legend, MarkupTable.of(header, table))
    return Document(blocks), _long_csv(rows)


def _detectable(configuration: Configuration) -> list[str]:
    if configuration.profile != DEFAULT:
        return []
    power = detectable_difference(list(configuration.example_means("clip_gain").values()))
    return ["–" if power is None else metric_format("clip_gain").number(power)]


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
    shares = feature_shares(folders)
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
    return Document((_title("Feature share"), note, MarkupTable.of(header, table)))


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
    counts = switched_counts(folders)
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
            _title("Features switched"),
            note,
            MarkupTable.of(["configuration", "blocks", *categories], [[*key, *cells] for key, cells in table.items()]),
        )
    )
    names = [field.name for field in fields(SwitchedCount)]
    rows = ([getattr(one, name) for name in names] for one in counts if one.category in present)
    return document, csv_text(names, rows)


def model_tables(model_folder: Path, folders: Sequence[RunFolder], profile: str | None = None) -> dict[Path, TablePair]:
    """Return the tables of one suite and model.

    Args:
        model_folder: `results/<suite>/<model>`.
        folders: its run folders.
        profile: only this one's; None for every profile that has scores. Those other than `default` get a folder of
            their own.

    Returns:
        Path without its suffix -> table.
    """
    tables: dict[Path, TablePair] = {}
    usual: dict[Path, list[Configuration]] = {}
    for name in scored_profiles(folders) if profile is None else [profile]:
        folder = model_folder / "tables" / PROFILES[name].folder
        extra = MARGINS if name == DEFAULT else ()
        by_run = {run.path: configurations(run, name, extra) for run in folders}
        found = [configuration for of_run in by_run.values() for configuration in of_run]
        tables[folder / "per_block"] = per_block(found)
        tables[folder / "per_category"] = per_category(found)
        tables[folder / "per_method"] = per_method(found)
        if name != DEFAULT:
            continue
        usual = by_run
        if (shares := per_block_share(found)) is not None:
            tables[folder / "block_shares"] = shares
    if profile in (None, DEFAULT):
        tables[model_folder / "tables" / "feature_share"] = per_feature_share(folders)
        tables[model_folder / "tables" / "switched"] = per_switched_count(folders)
        distances = distance_table(folders, usual)
        for part, table in (("off_distribution", distances), ("training", training_table(folders))):
            if table is not None:
                tables[model_folder / "tables" / part] = table
    return tables


def table_texts(model_folder: Path, folders: Sequence[RunFolder], profile: str | None = None) -> dict[Path, str]:
    """Return the table files of one suite and model; arguments as `model_tables`.

    Returns:
        File -> content, the Markdown file of each table before its CSV file.
    """
    texts: dict[Path, str] = {}
    for stem, (document, numbers) in model_tables(model_folder, folders, profile).items():
        texts |= {stem.with_suffix(".md"): document.markdown(), stem.with_suffix(".csv"): numbers}
    return texts


def write_tables(model_folder: Path, folders: Sequence[RunFolder], profile: str | None = None) -> list[Path]:
    """Write the tables of one suite and model beside its run folders.

    The files are `tables/*.md` and `tables/*.csv`.

    Returns:
        The Markdown files.
    """
    texts = table_texts(model_folder, folders, profile)
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return [path for path in texts if path.suffix == ".md"]


def _by_model(folders: Iterable[RunFolder]) -> list[tuple[Path, list[RunFolder]]]:
    """Group run folders by the folder of their suite and model."""
    groups: dict[Path, list[RunFolder]] = {}
    for folder in folders:
        groups.setdefault(folder.path.parent, []).append(folder)
    return sorted(groups.items())


def write_all(folders: Iterable[RunFolder], profile: str | None = None) -> list[Path]:
    """Write the tables of all these run folders and return the Markdown files."""
    return [path for model_folder, group in _by_model(folders) for path in write_tables(model_folder, group, profile)]


def check_all(folders: Iterable[RunFolder], profile: str | None = None) -> list[Path]:
    """Check that all stored tables are what the stored scores give.

    Returns:
        The files, all of them up to date.

    Raises:
        RiebenchError: names the first file that is missing or out of date.
    """
    checked = []
    for model_folder, group in _by_model(folders):
        for path, text in table_texts(model_folder, group, profile).items():
            if not path.exists() or path.read_bytes() != text.encode():
                raise out_of_date(path, "riebench tables")
            checked.append(path)
    return checked


def table_part(file: Path, metric: str, settings: list[str]) -> str:
    """Return one metric of some configurations as a Markdown table of means.

    Args:
        file: a `per_block.csv`.
        metric: which metric.
        settings: names, with `@STRENGTH` behind one to take a strength other than its first.

    Raises:
        RiebenchError: if the file, the metric or a setting is missing.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv_rows(stream) if row.get("metric") == metric]
    except OSError as error:
        raise RiebenchError(f"{file} cannot be read ({error.strerror}); run `riebench tables` first") from error
    categories = list(dict.fromkeys(row["category"] for row in rows))
    lines = []
    for setting in settings:
        name, _, strength = setting.partition("@")
        mine = [row for row in rows if row["setting"] == name]
        if not mine:
            raise RiebenchError(f"{file} has no {metric} of the configuration {name!r}")
        strength = strength or mine[0]["strength"]
        for blocks in dict.fromkeys(row["block_set"] for row in mine):
            means = {r["category"]: r["mean"] for r in mine if (r["block_set"], r["strength"]) == (blocks, strength)}
            cells = [metric_format(metric).number(float(means[c])) if means.get(c) else "–" for c in categories]
            lines.append([name if strength == mine[0]["strength"] else f"{name} x{strength}", blocks, *cells])
    return markdown_table(
        ["configuration", "blocks", *(c.removeprefix("change_").replace("_", " ") for c in categories)], lines
    )


def fill_document(document: Path, *, check: bool = False) -> None:
    """Update the marked parts of a document from the stored tables and results.

    Parts are tables of means (`table_part`) and sentences on how two configurations differ
    (`riebench.analysis.compare`). A document with such sentences has claims of their kind nowhere else.

    Args:
        document: the Markdown file.
        check: only looks.

    Raises:
        RiebenchError: with `check`, if the document is out of date; if it cannot be read, has no part, names what is
            not there, or claims a difference outside its parts.
    """

    def table_text(match: re.Match[str]) -> str:
        return table_part(document.parent / match[2], match[3], match[4].split(","))

    def contrast_text(match: re.Match[str]) -> str:
        return contrast_part(document.parent / match[2], match[3], match[4], match[5])

    text = document.read_text(encoding="utf-8", errors="replace") if document.exists() else ""
    command = f"riebench tables --document {document}"
    if CONTRAST_MARK in text:
        check_claims(str(document), text, (PART, CONTRAST))
        fill_parts(document, CONTRAST, contrast_text, mark=CONTRAST_MARK, command=command, check=check)
    if TABLE_MARK in text or CONTRAST_MARK not in text:
        fill_parts(document, PART, table_text, mark=TABLE_MARK, command=command, check=check)


def fill_parts(
    document: Path,
    part: re.Pattern[str],
    part_text: Callable[[re.Match[str]], str],
    *,
    mark: str,
    command: str,
    check: bool = False,
) -> None:
    """Update some marked parts of a document.

    Args:
        document: the Markdown file.
        part: a whole part, from mark to mark; its first group is the opening mark, its last one the closing mark.
        part_text: the text between the marks of a part.
        mark: how every opening mark begins; one that begins no whole part is an error, or it would never be filled.
        command: what brings the document up to date.
        check: only looks.

    Raises:
        RiebenchError: with `check`, if the document is out of date; if it cannot be read or has no part; if a mark in
            it is not one; whatever `part_text` raises.
    """
    try:
        before = document.read_text(encoding="utf-8")
    except OSError as error:
        raise RiebenchError(f"{document} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RiebenchError(f"{document} cannot be read (byte {error.start} is no UTF-8 text)") from error
    _check_marks(document, before, part, mark)

    def whole(match: re.Match[str]) -> str:
        return f"{match[1]}\n{part_text(match).strip()}\n\n{match[match.re.groups]}"

    after = part.sub(whole, before)
    if check and after != before:
        raise out_of_date(document, command)
    if after != before:
        write_atomic(document, after.encode())


def _check_marks(document: Path, text: str, part: re.Pattern[str], mark: str) -> None:
    """Check that a document has marks and that each of them begins a whole part."""
    if mark not in text:
        raise RiebenchError(f"{document} has no part to fill; write `{mark} ... -->` and `<!-- end -->` in it")
    whole = {match.start() for match in part.finditer(text)}
    for found in re.finditer(re.escape(mark), text):
        if found.start() not in whole:
            line = text.count("\n", 0, found.start()) + 1
            raise RiebenchError(
                f"{document}, line {line}: this mark is not written as it should be, or the part before it has no "
                "`<!-- end -->`"
            )

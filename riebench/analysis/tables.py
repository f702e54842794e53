"""Tables from stored records and scores: per block, per category, per method, and where features were chosen."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    TableRow,
    configurations,
    mixed,
    present_categories,
    present_metrics,
    scored_profiles,
    whole_configurations,
)
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, detectable_difference
from riebench.errors import RiebenchError
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import ALL_CATEGORIES
from riebench.utils.files import write_atomic
from riebench.utils.markup import csv_text, escape_markdown, markdown_table


def cell(row: TableRow) -> str:
    """A cell as printed: mean, interval, scored/expected."""
    counts = f"{row.n_scored}/{row.n_expected}"
    if row.mean is None or row.ci_low is None or row.ci_high is None:
        return f"– {counts}" if row.n_expected else ""
    form = metric_format(row.metric)
    return f"{form.number(row.mean)} [{form.number(row.ci_low)}, {form.number(row.ci_high)}] {counts}"


def _long_csv(rows: Iterable[TableRow]) -> str:
    names = tuple(TableRow.model_fields)
    return csv_text(names, ([getattr(row, name) for name in names] for row in rows))


def _note(found: list[Configuration]) -> str:
    examples = {example for c in found for values in c.values.values() for e in values.values() for example in e}
    seeds = [len(s) for c in found for values in c.values.values() for e in values.values() for s in e.values()]
    profile = PROFILES[found[0].profile if found else DEFAULT]
    networks = sorted({c.backbones[metric] for c in found for metric in profile.table if c.backbones.get(metric)})
    second = sorted({c.backbones["clip_gain_2"] for c in found if "clip_gain_2" in c.backbones})
    return (
        f"{len(examples)} examples, up to {max(seeds, default=0)} seed(s) each. Cells: mean [95 % interval] "
        f"scored/expected; percentile bootstrap over examples inside each category, {REPLICATES} replicates, "
        f"seed {BOOTSTRAP_SEED}. `all` is the mean over categories.\n"
        + (f"\nMeasured by {escape_markdown(', '.join(networks))}.\n" if networks else "")
        + (f"`clip_gain_2` is by {escape_markdown(', '.join(second))}.\n" if second else "")
        + (_profile_note(found, profile.name) if profile.name != DEFAULT else "")
        + _mixed_note(found)
    )


def _mixed_note(found: list[Configuration]) -> str:
    odd = {c.setting: why for c, why in zip(found, mixed(found), strict=True) if why is not None}
    return "".join(
        f"\nNot to be compared with the other rows: {setting}, {escape_markdown(why)}.\n"
        for setting, why in odd.items()
    )


def _profile_note(found: list[Configuration], profile: str) -> str:
    present = present_metrics(found)
    absent = [metric for metric in PROFILES[profile].table if metric not in present]
    left = f" Not measured: {', '.join(absent)}." if absent else ""
    return f"\nProfile `{profile}`: computed as published scripts do, not to be compared with other tables.{left}\n"


def per_block(found: list[Configuration]) -> tuple[str, str]:
    """Rows are block sets, columns are categories: Markdown and CSV text."""
    categories = [*present_categories(found), EVERYTHING]
    parts, rows = ["# Per block\n", _note(found)], []
    for metric in present_metrics(found):
        table = []
        for configuration in found:
            cells = [configuration.row(metric, category) for category in categories]
            rows += cells
            table.append([configuration.label, configuration.block_set, *(cell(c) for c in cells)])
        parts += [f"## {metric_format(metric).title}\n", markdown_table(["setting", "blocks", *categories], table)]
    return "\n".join(parts), _long_csv(rows)


def per_category(found: list[Configuration]) -> tuple[str, str]:
    """Rows are categories, columns are configurations with all their blocks: Markdown and CSV text."""
    whole = whole_configurations(found)
    parts, rows = ["# Per category\n", _note(whole)], []
    for metric in present_metrics(whole):
        table = []
        for category in [*present_categories(whole), EVERYTHING]:
            cells = [configuration.row(metric, category) for configuration in whole]
            rows += cells
            table.append([category, *(cell(c) for c in cells)])
        header = ["category", *(configuration.label for configuration in whole)]
        parts += [f"## {metric_format(metric).title}\n", markdown_table(header, table)]
    return "\n".join(parts), _long_csv(rows)


def per_method(found: list[Configuration]) -> tuple[str, str]:
    """Rows are configurations with all their blocks, columns are metrics: Markdown and CSV text."""
    whole = whole_configurations(found)
    metrics = present_metrics(whole)
    table, rows = [], []
    for configuration in whole:
        cells = [configuration.row(metric, EVERYTHING) for metric in metrics]
        rows += cells
        counts = f"{configuration.failed} failed, {configuration.skipped} skipped"
        label = [configuration.label, configuration.access or "–"]
        table.append([*label, *(cell(c) for c in cells), *_detectable(configuration), counts])
    # Only a gain is a difference from no edit.
    gains = not whole or whole[0].profile == DEFAULT
    header = ["setting", "sees", *metrics, *(["detectable clip_gain"] if gains else []), "not made"]
    legend = "\n".join(f"- `{metric}`: {metric_format(metric).title}" for metric in metrics)
    explained = (
        "`sees`: target prompt (P), activations of the paired target run (A), masks (M), training (T), inversion (V). "
        + ("`detectable clip_gain`: smallest difference from no edit that 80 % of such experiments would find.\n"
           if gains else "\n")
    )  # fmt: skip
    text = "\n".join(["# Per method\n", _note(whole), explained, legend + "\n", markdown_table(header, table)])
    return text, _long_csv(rows)


def _detectable(configuration: Configuration) -> list[str]:
    if configuration.profile != DEFAULT:
        return []
    power = detectable_difference(list(configuration.example_means("clip_gain").values()))
    return ["–" if power is None else metric_format("clip_gain").number(power)]


def per_feature_share(folders: Iterable[RunFolder]) -> tuple[str, str]:
    """Share of the switched features that lie in each block, per setting and category: Markdown and CSV text."""
    lines: list[list[object]] = []
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
                counts = [_switched(some, block, side) for block in blocks]
                total = sum(counts)
                lines += [
                    [folder.spec.setting.name, category, side, block, n / total, n, len(some), expected]
                    for block, n in zip(blocks, counts, strict=True)
                    if total
                ]
    header = ["setting", "category", "side", "block", "share", "features", "units", "expected"]
    return _share_markdown(lines), csv_text(header, lines)


def _switched(records: Iterable[EditRecord], block: str, side: str) -> int:
    return sum(len(getattr(record.features[block], side)) for record in records if block in record.features)


def _share_markdown(lines: list[list[object]]) -> str:
    blocks = list(dict.fromkeys(str(line[3]) for line in lines))
    grouped: dict[tuple[str, ...], dict[str, str]] = {}
    for setting, category, side, block, share, _, units, expected in lines:
        row = (str(setting), str(category), str(side), f"{units}/{expected}")
        grouped.setdefault(row, {})[str(block)] = f"{share:.2f}"
    table = [[*key, *(shares.get(block, "–") for block in blocks)] for key, shares in grouped.items()]
    note = (
        "Share of the features switched on (add) and off (remove) that lie in each block when all blocks are ranked "
        "together; `units`: edits counted/expected. Where a feature is chosen is not yet what it does: hold it against "
        "the per-block table.\n"
    )
    return "\n".join(
        ["# Feature share\n", note, markdown_table(["setting", "category", "side", "units", *blocks], table)]
    )


def table_texts(model_folder: Path, folders: Sequence[RunFolder], profile: str | None = None) -> dict[Path, str]:
    """The tables of one suite and model: file -> content, the Markdown file of each before its CSV file.

    Args:
        model_folder: `results/<suite>/<model>`.
        folders: its run folders.
        profile: only this one's; None for every profile that has scores. Those other than `default` get a folder of
            their own.
    """
    texts: dict[Path, str] = {}
    for name in scored_profiles(folders) if profile is None else [profile]:
        texts |= _profile_texts(model_folder / "tables" / PROFILES[name].folder, folders, name)
    path = model_folder / "tables" / "feature_share.md"
    if profile in (None, DEFAULT):
        texts |= _files(path, per_feature_share(folders))
    return texts


def _profile_texts(place: Path, folders: Sequence[RunFolder], profile: str) -> dict[Path, str]:
    found = [configuration for folder in folders for configuration in configurations(folder, profile)]
    texts: dict[Path, str] = {}
    for name, made in {"per_block": per_block, "per_category": per_category, "per_method": per_method}.items():
        texts |= _files(place / f"{name}.md", made(found))
    return texts


def _files(path: Path, texts: tuple[str, str]) -> dict[Path, str]:
    return {path: texts[0], path.with_suffix(".csv"): texts[1]}


def write_tables(model_folder: Path, folders: Sequence[RunFolder], profile: str | None = None) -> list[Path]:
    """Writes `tables/*.md` and `tables/*.csv` beside the run folders of one suite and model.

    Returns:
        The Markdown files.
    """
    texts = table_texts(model_folder, folders, profile)
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return [path for path in texts if path.suffix == ".md"]


def _by_model(folders: Iterable[RunFolder]) -> list[tuple[Path, list[RunFolder]]]:
    groups: dict[Path, list[RunFolder]] = {}
    for folder in folders:
        groups.setdefault(folder.path.parent, []).append(folder)
    return sorted(groups.items())


def write_all(folders: Iterable[RunFolder], profile: str | None = None) -> list[Path]:
    """Writes the tables of every suite and model among some run folders; returns the Markdown files."""
    return [path for model_folder, group in _by_model(folders) for path in write_tables(model_folder, group, profile)]


def check_all(folders: Iterable[RunFolder], profile: str | None = None) -> list[Path]:
    """Compares all stored tables with what the stored scores give.

    Returns:
        The files, all of them up to date.

    Raises:
        RiebenchError: names the first file that is missing or out of date.
    """
    checked = []
    for model_folder, group in _by_model(folders):
        for path, text in table_texts(model_folder, group, profile).items():
            if not path.exists() or path.read_bytes() != text.encode():
                raise RiebenchError(f"{path} is out of date; run `riebench tables` and commit it")
            checked.append(path)
    return checked


PART = re.compile(r"(<!-- table: (\S+) metric=(\S+) settings=(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table_part(file: Path, metric: str, settings: list[str]) -> str:
    """One metric of some settings as a Markdown table of means.

    Args:
        file: a `per_block.csv`.
        metric: which metric.
        settings: names, with `@STRENGTH` behind one to take a strength other than its first.

    Raises:
        RiebenchError: if the file, the metric or a setting is missing.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("metric") == metric]
    except OSError as error:
        raise RiebenchError(f"{file} cannot be read ({error.strerror}); run `riebench tables` first") from error
    categories = list(dict.fromkeys(row["category"] for row in rows))
    lines = []
    for setting in settings:
        name, _, strength = setting.partition("@")
        mine = [row for row in rows if row["setting"] == name]
        if not mine:
            raise RiebenchError(f"{file} has no {metric} of the setting {name!r}")
        strength = strength or mine[0]["strength"]
        for blocks in dict.fromkeys(row["block_set"] for row in mine):
            means = {r["category"]: r["mean"] for r in mine if (r["block_set"], r["strength"]) == (blocks, strength)}
            cells = [metric_format(metric).number(float(means[c])) if means.get(c) else "–" for c in categories]
            lines.append([name if strength == mine[0]["strength"] else f"{name} x{strength}", blocks, *cells])
    return markdown_table(
        ["setting", "blocks", *(c.removeprefix("change_").replace("_", " ") for c in categories)], lines
    )


def fill_document(document: Path, *, check: bool = False) -> None:
    """Brings the marked parts of a document up to date with the stored tables.

    Args:
        document: the Markdown file.
        check: only looks.

    Raises:
        RiebenchError: with `check`, if the document is out of date; if it cannot be read, has no part or
            names what is not there.
    """

    def made(match: re.Match[str]) -> str:
        return table_part(document.parent / match[2], match[3], match[4].split(","))

    fill_parts(document, PART, made, mark="<!-- table:", command=f"riebench tables --document {document}", check=check)


def fill_parts(
    document: Path,
    part: re.Pattern[str],
    made: Callable[[re.Match[str]], str],
    *,
    mark: str,
    command: str,
    check: bool = False,
) -> None:
    """Brings some marked parts of a document up to date.

    Args:
        document: the Markdown file.
        part: a whole part, from mark to mark; its first group is the opening mark, its last one the closing mark.
        made: the text between the marks of a part.
        mark: how every opening mark begins; one that begins no whole part is an error, or it would never be filled.
        command: what brings the document up to date.
        check: only looks.

    Raises:
        RiebenchError: with `check`, if the document is out of date; if it cannot be read or has no part; if a mark in
            it is not one; whatever `made` raises.
    """
    try:
        before = document.read_text(encoding="utf-8")
    except OSError as error:
        raise RiebenchError(f"{document} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RiebenchError(f"{document} cannot be read (byte {error.start} is no UTF-8 text)") from error
    _check_marks(document, before, part, mark)

    def whole(match: re.Match[str]) -> str:
        return f"{match[1]}\n{made(match).strip()}\n\n{match[match.re.groups]}"

    after = part.sub(whole, before)
    if check and after != before:
        raise RiebenchError(f"{document} is out of date; run `{command}` and commit it")
    if after != before:
        write_atomic(document, after.encode())


def _check_marks(document: Path, text: str, part: re.Pattern[str], mark: str) -> None:
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

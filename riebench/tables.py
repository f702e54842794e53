"""Tables from stored records and scores: per block, per category, per method, and where features were chosen."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from riebench.files import write_atomic
from riebench.schema import ALL_BLOCKS, BLOCKS, CATEGORIES, NO_BLOCKS, EditRecord, TableRow
from riebench.stats import BOOTSTRAP_SEED, REPLICATES, detectable_difference, estimate
from riebench.store import RunFolder

EVERYTHING = "all"
"""The category that is the mean over all categories."""


@dataclass(frozen=True)
class MetricFormat:
    """How a metric is printed: factor, decimals, sign, and the words of its heading."""

    title: str
    scale: float
    decimals: int
    signed: bool = False

    def number(self, value: float) -> str:
        """The value as printed; a zero never carries a minus."""
        rounded = round(value * self.scale, self.decimals) + 0.0
        return f"{rounded:+.{self.decimals}f}" if self.signed and rounded else f"{rounded:.{self.decimals}f}"


TABLE_METRICS: dict[str, MetricFormat] = {
    "clip_gain": MetricFormat("CLIP alignment gain x100 (higher is better)", 100, 2, signed=True),
    "lpips": MetricFormat("LPIPS to the source picture (lower is better)", 1, 3),
    "judge_target": MetricFormat("target attribute there, % of pictures (higher is better)", 100, 0),
    "judge_kept": MetricFormat("other attributes kept, % (higher is better)", 100, 0),
}
"""Metrics that tables show, where they were scored."""

UNCHANGED: dict[str, float] = {"clip_gain": 0.0, "lpips": 0.0}
"""What a failed unit counts as in means: the source picture left alone, so that failing on hard edits never pays. It
is not counted as scored."""


@dataclass
class Configuration:
    """One setting at one strength on one block set: what a table row stands for."""

    model: str
    setting: str
    method: str
    access: str
    block_set: str
    strength: float
    run_id: str
    several_strengths: bool
    expected: dict[str, int] = field(default_factory=dict)
    """Category -> planned units."""
    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    """Metric -> category -> example id -> values of its seeds."""
    failed: int = 0
    skipped: int = 0
    imputed: dict[tuple[str, str], int] = field(default_factory=dict)
    """(Metric, category) -> failed units that are in the values as `UNCHANGED`."""

    @property
    def label(self) -> str:
        """Setting name, with the strength where the setting has several."""
        return f"{self.setting} x{self.strength:g}" if self.several_strengths else self.setting

    def row(self, metric: str, category: str) -> TableRow:
        """One cell."""
        values = self.values.get(metric, {})
        if category != EVERYTHING:
            values = {category: values.get(category, {})}
        result = estimate(values)
        seeds = [len(seeds) for examples in values.values() for seeds in examples.values()]
        expected = sum(self.expected.values()) if category == EVERYTHING else self.expected.get(category, 0)
        return TableRow(
            model=self.model,
            setting=self.setting,
            block_set=self.block_set,
            strength=self.strength,
            category=category,
            metric=metric,
            mean=result.mean,
            ci_low=result.low,
            ci_high=result.high,
            n_examples=result.n_examples,
            n_seeds=max(seeds, default=0),
            n_scored=sum(seeds) - sum(self.imputed.get((metric, name), 0) for name in values),
            n_expected=expected,
        )

    def example_means(self, metric: str) -> dict[str, float]:
        """Example id -> mean over its seeds."""
        return {
            example: sum(seeds) / len(seeds)
            for examples in self.values.get(metric, {}).values()
            for example, seeds in examples.items()
        }


def configurations(folder: RunFolder) -> list[Configuration]:
    """Reads one run folder into its configurations, block sets in the order of the blocks, "all" last."""
    spec = folder.spec
    found: dict[tuple[str, float], Configuration] = {}
    expected = folder.expected
    strengths = {strength for _, _, strength in expected}
    for (category, block_set, strength), n in expected.items():
        configuration = found.setdefault(
            (block_set, strength),
            Configuration(
                model=spec.model.name,
                setting=spec.setting.name,
                method=spec.setting.method,
                access=spec.setting.access,
                block_set=block_set,
                strength=strength,
                run_id=spec.run_id,
                several_strengths=len(strengths) > 1,
            ),
        )
        configuration.expected[category] = n
    _fill(folder, found)
    return [found[key] for key in sorted(found, key=lambda key: (key[1], _block_order(key[0])))]


def _fill(folder: RunFolder, found: dict[tuple[str, float], Configuration]) -> None:
    scores = folder.scores()
    for record in folder.records():
        key = record.key
        configuration = found[key.block_set, key.strength]
        configuration.failed += record.status == "error"
        configuration.skipped += record.status == "skipped"
        for metric in TABLE_METRICS:
            score = scores.get((key.digest, metric))
            value = None if score is None else score.value
            if record.status == "error" and metric in UNCHANGED:
                value = UNCHANGED[metric]
                slot = (metric, key.category)
                configuration.imputed[slot] = configuration.imputed.get(slot, 0) + 1
            if value is not None:
                examples = configuration.values.setdefault(metric, {}).setdefault(key.category, {})
                examples.setdefault(key.example_id, []).append(value)


def _block_order(block_set: str) -> tuple[int, str]:
    if block_set == NO_BLOCKS:
        return -1, ""
    if block_set == ALL_BLOCKS:
        return 1_000, ""
    return (BLOCKS.index(block_set), "") if block_set in BLOCKS else (len(BLOCKS), block_set)


def cell(row: TableRow) -> str:
    """A cell as printed: mean, interval, scored/expected."""
    counts = f"{row.n_scored}/{row.n_expected}"
    if row.mean is None or row.ci_low is None or row.ci_high is None:
        return f"– {counts}" if row.n_expected else ""
    form = TABLE_METRICS[row.metric]
    return f"{form.number(row.mean)} [{form.number(row.ci_low)}, {form.number(row.ci_high)}] {counts}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file's text; None becomes an empty field, floats keep six significant digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_field(value) for value in row] for row in rows)
    return buffer.getvalue()


def _field(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def present_metrics(found: Iterable[Configuration]) -> list[str]:
    """Metrics of `TABLE_METRICS` that at least one configuration has values for."""
    configs = list(found)
    return [metric for metric in TABLE_METRICS if any(metric in c.values for c in configs)]


def present_categories(found: Iterable[Configuration]) -> list[str]:
    """Categories that were planned, by their number."""
    planned = {category for configuration in found for category in configuration.expected}
    return [category for category in CATEGORIES if category in planned]


def _long_csv(rows: Iterable[TableRow]) -> str:
    names = tuple(TableRow.model_fields)
    return csv_text(names, ([getattr(row, name) for name in names] for row in rows))


def _note(found: list[Configuration]) -> str:
    examples = {example for c in found for values in c.values.values() for e in values.values() for example in e}
    seeds = [len(s) for c in found for values in c.values.values() for e in values.values() for s in e.values()]
    return (
        f"{len(examples)} examples, up to {max(seeds, default=0)} seed(s) each. Cells: mean [95 % interval] "
        f"scored/expected; percentile bootstrap over examples inside each category, {REPLICATES} replicates, "
        f"seed {BOOTSTRAP_SEED}. `all` is the mean over categories.\n"
    )


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
        parts += [f"## {TABLE_METRICS[metric].title}\n", markdown(["setting", "blocks", *categories], table)]
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
        parts += [f"## {TABLE_METRICS[metric].title}\n", markdown(header, table)]
    return "\n".join(parts), _long_csv(rows)


def per_method(found: list[Configuration]) -> tuple[str, str]:
    """Rows are configurations with all their blocks, columns are metrics: Markdown and CSV text."""
    whole = whole_configurations(found)
    metrics = present_metrics(whole)
    table, rows = [], []
    for configuration in whole:
        cells = [configuration.row(metric, EVERYTHING) for metric in metrics]
        rows += cells
        power = detectable_difference(list(configuration.example_means("clip_gain").values()))
        smallest = "–" if power is None else TABLE_METRICS["clip_gain"].number(power)
        counts = f"{configuration.failed} failed, {configuration.skipped} skipped"
        table.append([configuration.label, configuration.access or "–", *(cell(c) for c in cells), smallest, counts])
    header = ["setting", "sees", *metrics, "detectable clip_gain", "not made"]
    legend = "\n".join(f"- `{metric}`: {TABLE_METRICS[metric].title}" for metric in metrics)
    explained = (
        "`sees`: target prompt (P), activations of the paired target run (A), masks (M), training (T), inversion (V). "
        "`detectable clip_gain`: smallest difference from no edit that 80 % of such experiments would find.\n"
    )
    text = "\n".join(["# Per method\n", _note(whole), explained, legend + "\n", markdown(header, table)])
    return text, _long_csv(rows)


def whole_configurations(found: Iterable[Configuration]) -> list[Configuration]:
    """Those that edit all their setting's blocks together, or none; blocks edited singly are left to `per_block`."""
    configs = list(found)
    sets: dict[tuple[str, str], set[str]] = {}
    for c in configs:
        sets.setdefault((c.model, c.setting), set()).add(c.block_set)

    def is_whole(c: Configuration) -> bool:
        others = sets[c.model, c.setting]
        return len(others) == 1 or (_width(c.block_set) > 1 and _width(c.block_set) == max(map(_width, others)))

    return [c for c in configs if is_whole(c)]


def _width(block_set: str) -> int:
    if block_set == NO_BLOCKS:
        return 0
    return len(BLOCKS) if block_set == ALL_BLOCKS else block_set.count("+") + 1


def per_feature_share(folders: Iterable[RunFolder]) -> tuple[str, str]:
    """Share of the switched features that lie in each block, per setting and category: Markdown and CSV text."""
    lines: list[list[object]] = []
    for folder in folders:
        chosen = [r for r in folder.records() if len(r.features) > 1 and r.status == "ok"]
        # The choice does not depend on the strength; the first strength stands for all.
        strengths = sorted({record.key.strength for record in chosen})
        chosen = [record for record in chosen if record.key.strength == strengths[0]]
        blocks = list(dict.fromkeys(block for record in chosen for block in record.features))
        for category in CATEGORIES:
            some = [record for record in chosen if record.key.category == category]
            for side in ("add", "remove"):
                counts = [_switched(some, block, side) for block in blocks]
                total = sum(counts)
                lines += [
                    [folder.spec.setting.name, category, side, block, n / total, n, len(some)]
                    for block, n in zip(blocks, counts, strict=True)
                    if total
                ]
    header = ["setting", "category", "side", "block", "share", "features", "units"]
    return _share_markdown(lines), csv_text(header, lines)


def _switched(records: Iterable[EditRecord], block: str, side: str) -> int:
    return sum(len(getattr(record.features[block], side)) for record in records if block in record.features)


def _share_markdown(lines: list[list[object]]) -> str:
    blocks = list(dict.fromkeys(str(line[3]) for line in lines))
    grouped: dict[tuple[str, str, str], dict[str, str]] = {}
    for setting, category, side, block, share, *_ in lines:
        grouped.setdefault((str(setting), str(category), str(side)), {})[str(block)] = f"{share:.2f}"
    table = [[*key, *(shares.get(block, "–") for block in blocks)] for key, shares in grouped.items()]
    note = (
        "Share of the features switched on (add) and off (remove) that lie in each block when all blocks are ranked "
        "together. Where a feature is chosen is not yet what it does: hold it against the per-block table.\n"
    )
    return "\n".join(["# Feature share\n", note, markdown(["setting", "category", "side", *blocks], table)])


def write_tables(model_folder: Path, folders: Sequence[RunFolder]) -> list[Path]:
    """Writes `tables/*.md` and `tables/*.csv` beside the run folders of one suite and model.

    Args:
        model_folder: `results/<suite>/<model>`.
        folders: its run folders.

    Returns:
        The Markdown files.
    """
    found = [configuration for folder in folders for configuration in configurations(folder)]
    texts = {
        "per_block": per_block(found),
        "per_category": per_category(found),
        "per_method": per_method(found),
        "feature_share": per_feature_share(folders),
    }
    written = []
    for name, (text, table) in texts.items():
        path = model_folder / "tables" / f"{name}.md"
        write_atomic(path, text.encode())
        write_atomic(path.with_suffix(".csv"), table.encode())
        written.append(path)
    return written


def write_all(folders: Iterable[RunFolder]) -> list[Path]:
    """Writes the tables of every suite and model among some run folders; returns the Markdown files."""
    groups: dict[Path, list[RunFolder]] = {}
    for folder in folders:
        groups.setdefault(folder.path.parent, []).append(folder)
    return [path for model_folder, group in sorted(groups.items()) for path in write_tables(model_folder, group)]

"""Tables of configurations: per block, per category and per method."""

from __future__ import annotations

from collections.abc import Iterable

from riebench.analysis.configurations import (
    EVERYTHING,
    LARGEST_SCORE,
    Configuration,
    TableRow,
    comparison_gaps,
    mixed_in_words,
    present_categories,
    present_metrics,
    whole_configurations,
)
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, detectable_difference
from riebench.models.clip import with_revision
from riebench.registry import METRICS
from riebench.scoring.profiles import DEFAULT, PROFILES, Profile, metric_format
from riebench.tasks.schema import inputs_in_words
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
    csv_text,
)

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

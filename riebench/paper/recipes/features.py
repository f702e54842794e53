"""Single features against random ones, the table of the paper's first edition.

`riebench.features.random_features.random_baseline` measures them. The definitions are in `SHOWS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, Estimate, estimate
from riebench.errors import RiebenchError
from riebench.features.activity import Picture
from riebench.features.labels import Labels, read_labels
from riebench.features.painter import check_index
from riebench.features.random_features.properties import OCTAVES
from riebench.features.random_features.random_baseline import (
    CANDIDATES,
    EDITED,
    STRENGTH,
    STRONGEST,
    FeatureMeasurement,
    FeatureOptions,
    MeasuredFeature,
)
from riebench.generation.memory import automatic_batch_size
from riebench.models.presets import judge_for, scorer_for
from riebench.paper.artefact import (
    HIGH,
    LOW,
    Artefact,
    ArtefactSettings,
    Column,
    Row,
    Table,
    estimate_cells,
    plain_columns,
    select_rows,
    values_of,
)
from riebench.paper.drawing import number
from riebench.paper.job import PaperJob, block_sae_texts, model_text, prompt_settings, sae_key, samples_key
from riebench.paper.measure import is_judged, select_blocks
from riebench.saes.sources import model_saes
from riebench.scoring.metrics.networks import Networks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder

NAME = "features"
FEATURES, PROMPTS = 40, 300
"""Number of features drawn from each block, and of prompts."""
OWN, RANDOM, DIFFERENCE, UNCHANGED = "features", "random", "features minus random", "unchanged pictures"
ENDS = {OWN: "", RANDOM: "_random", UNCHANGED: "_unchanged"}
"""What a value is of -> the end of its key in the row of a feature."""

SHOWS = f"""\
Features of each block, drawn evenly from those that are active in pictures of {STRONGEST} prompts or more, against
random ones. A feature's strongest pictures are the {STRONGEST}, of different prompts, in which its largest value over
steps and positions is largest. It is *added* to {EDITED} pictures drawn from the others: {STRENGTH:g} times its largest
value in all pictures, along its direction, at every step and position. It is *removed* from the first {EDITED} of its
strongest pictures: at every step and position its own contribution is subtracted. In the rows `random` the strongest
pictures are replaced by as many drawn from all, and the feature's direction by one random direction of the same length,
in the same edits of the same pictures. Numbers are means over features; differences are paired by feature, and beyond
doubt where their interval leaves out 0. The definitions are this project's own; those of the published table may differ
in detail.

- *Specificity*: mean cosine of the CLIP embeddings of all pairs of the strongest pictures.
- *Causality*: mean cosine of the CLIP embeddings of the feature's label and of the pictures with the feature added.
  The rows `unchanged pictures` have the same of these pictures without it. LABELS
- *Locality*: a / (a + b), with a and b the mean change of a pixel inside and outside the active region when the feature
  is removed. A pixel's change is the sum of the absolute differences of its channels. The active region consists of the
  positions at which the feature is active at any step. 1: all change lies inside; 0.5: both sides change alike. The
  rows `random` say how local any change at these positions is. There is no value where the region is the whole picture
  or nothing changes.
- *Color sensitivity*: sum over channels of the absolute difference of the channel's mean over the picture, from 0 to 1,
  between a picture with the feature added and without it.
- *Texture sensitivity*: sum over the {OCTAVES} finest bands of detail of the absolute difference of the band's amount
  between the same two pictures. The amount is the mean absolute value of what a grey picture, from 0 to 1, loses when
  it is averaged over squares of two by two pixels; the next band is that of the averaged picture.
"""
JUDGED = """\
- The judge of the toy world reads the eight attributes of every picture: the truth beside CLIP. *Purity*: share of the
  strongest pictures that agree on the attribute on which they agree most. *Label there*: share of the pictures with the
  feature added that have the label's value. *Color changed*, *material or style changed*: share of these in which the
  judge reads otherwise than in the same picture without the feature, where it can be read.
"""
LABEL_TEXTS = {
    "labels file": "Labels are those of the labels file, and only features that it names are drawn.",
    "judge": "The label is the attribute value whose share in the feature's strongest pictures, as the judge reads "
    "them, exceeds its share in all pictures most, in the words of the captions.",
    "prompts": "The label is made of the up to three words whose share in the prompts of the strongest pictures "
    "exceeds their share in all prompts most, and which two of these prompts have.",
}


@dataclass(frozen=True)
class Property:
    """One property of features, as it is shown.

    Attributes:
        name: as `riebench.features.random_features.random_baseline` names it.
        title: heading of its column.
        table: name of the table that shows it.
        bounds: least and largest value that there can be.
        decimals: as printed.
        scale: factor as printed.
        judged: whether only the toy world's judge knows it.
        unchanged: whether pictures without an edit have it, too.
    """

    name: str
    title: str
    table: str = ""
    bounds: tuple[float | None, float | None] = (0, 1)
    decimals: int = 3
    scale: float = 1
    judged: bool = False
    unchanged: bool = False

    @property
    def words(self) -> str:
        """Its title without the unit."""
        return self.title.removesuffix(", %")

    @property
    def column(self) -> Column:
        """Column of its means, with intervals."""
        return Column(name=self.name, title=self.title, decimals=self.decimals, scale=self.scale, interval=True)


def _share(name: str, title: str, table: str = "", *, unchanged: bool = False) -> Property:
    """Return a property that the judge reads, printed in per cent."""
    return Property(name, f"{title}, %", table, decimals=0, scale=100, judged=True, unchanged=unchanged)


SENSITIVITY = "sensitivity"
PROPERTIES = (
    Property("specificity", "specificity", bounds=(-1, 1)),
    _share("purity", "purity"),
    Property("causality", "causality", bounds=(-1, 1), unchanged=True),
    _share("label_there", "label there", unchanged=True),
    Property("locality", "locality"),
    Property("color", "color sensitivity", SENSITIVITY, bounds=(0, 3)),
    _share("color_changed", "color changed", SENSITIVITY),
    Property("texture", "texture sensitivity", SENSITIVITY, bounds=(0, None), decimals=4),
    _share("pattern_changed", "material or style changed", SENSITIVITY),
)
LOOKS = {OWN: "o", RANDOM: "s", UNCHANGED: "d"}
"""What a value is of -> its marker in the figure."""
COLORS = {OWN: "C0", RANDOM: "C1", UNCHANGED: "0.5"}
COUNTS = "Features with a value, of those expected"
TITLES = {"": "Specificity, causality and locality", SENSITIVITY: "Sensitivity to color and texture"}


def make(job: PaperJob) -> Artefact:
    """Measure the features of every block, or read what was measured.

    Raises:
        RiebenchError: if there are too few prompts, or the labels file is wrong or lacks a block.
    """
    labels = None if job.labels is None else read_labels(job.labels)
    model = job.load(job.few_step_model)
    blocks = select_blocks(job, model)
    saes = model_saes(job.sae, model, blocks, offline=job.offline)
    _check_labels(labels, saes)
    samples = job.samples(job.named_prompts(model.spec, PROMPTS))
    prompts = len({sample.prompt for sample in samples})
    if prompts < STRONGEST + EDITED:
        raise RiebenchError(f"{NAME} needs {STRONGEST + EDITED} prompts or more, and there are {prompts}")
    judged, count = is_judged(model.spec), job.features or FEATURES
    networks = Networks(scorer_for(model.spec), device=job.device, offline=job.offline, judge=judge_for(model.spec))
    options = FeatureOptions(
        tuple(Picture(sample.prompt, sample.seed) for sample in samples), count, labels, judged, _toy_phrase,
        job.batch_size or automatic_batch_size(model),
    )  # fmt: skip
    used = {"CLIP": networks.identity("clip"), **({"judge": networks.identity("judge")} if judged else {})}
    key = {"measure": 1, "runs": samples_key(samples), "networks": used, "features": count,
           "constants": [STRONGEST, EDITED, STRENGTH, CANDIDATES, OCTAVES]}  # fmt: skip
    rows: list[Row] = []
    for steps in job.steps:
        rows += _rows_at(job, job.load(job.few_step_model, steps), saes, networks, options, key)
    shown = [one for one in PROPERTIES if judged or not one.judged]
    tables = _tables(rows, list(saes), job.steps, count, shown)
    source = "labels file" if labels is not None else "judge" if judged else "prompts"
    settings: ArtefactSettings = {
        "model": f"{model_text(model.spec)}, guidance {model.spec.guidance:g}", "steps": list(job.steps),
        "SAEs": block_sae_texts(saes), "features of each block": count,
        "pictures of each feature": f"{STRONGEST} strongest, {EDITED} of each edit",
        "added": f"{STRENGTH:g} times the largest value", "labels": f"from the {source}",
        **used, **prompt_settings(job, model.spec, samples),
        "intervals": f"95 %, bootstrap over features, studentised, {REPLICATES} replicates, seed {BOOTSTRAP_SEED}",
    }  # fmt: skip
    return Artefact(
        name=NAME, title="Single features against random ones",
        shows=(SHOWS.replace("LABELS", LABEL_TEXTS[source]) + (JUDGED if judged else "")).strip(),
        tables=tables, settings=settings, notes=_notes(tables, shown),
        alt="Bars of every property for each block, features beside random ones; one line of panels a step count.",
    )  # fmt: skip


def _check_labels(labels: Labels | None, saes: Mapping[str, SparseAutoencoder]) -> None:
    """Check that a labels file has every measured block and no unknown feature."""
    if labels is None:
        return
    for block, sae in saes.items():
        if block not in labels:
            raise RiebenchError(f"the labels file has no label of {block}; use --blocks {','.join(labels)}")
        for index in labels[block]:
            check_index(index, block, sae)


def _toy_phrase(attribute: str, value: str) -> str:
    """Return the words of an attribute's value in the captions of the toy world."""
    from riebench.toyworld.captions import PHRASES

    slot = attribute if attribute in PHRASES else f"{attribute} before"
    return PHRASES[slot][value][0].removesuffix(" of")


def _rows_at(
    job: PaperJob, model: LoadedModel, saes: Mapping[str, SparseAutoencoder], networks: Networks,
    options: FeatureOptions, key: Mapping[str, object],
) -> list[Row]:  # fmt: skip
    """Return the features of one step count, measured or read."""
    blocks = list(saes)
    keys = [
        {**key, "model": model.spec.identity, "saes": sae_key({block: saes[block]}),
         "labels": None if options.labels is None else options.labels[block]}
        for block in blocks
    ]  # fmt: skip

    def measure(missing: list[int]) -> Iterator[tuple[int, list[Row]]]:
        wanted = [blocks[place] for place in missing]
        job.say(f"{NAME}: {', '.join(wanted)} at {model.spec.steps} step{'s' if model.spec.steps > 1 else ''}")
        measurement = FeatureMeasurement(model, {block: saes[block] for block in wanted}, networks, options)
        for place, (block, found) in zip(missing, measurement.run(), strict=True):
            yield place, [_feature_row(block, model.spec.steps, one) for one in found]

    return [row for rows in job.cached_parts(NAME, keys, measure) for row in rows]


def _feature_row(block: str, steps: int, one: MeasuredFeature) -> Row:
    """Return all that is stored of a feature."""
    found: Row = {
        "steps": steps, "block": block, "feature": one.chosen.index, "active": one.chosen.active,
        "label": None if one.label is None else one.label.text,
    }  # fmt: skip
    for of, values in ((OWN, one.own), (RANDOM, one.random), (UNCHANGED, one.unchanged)):
        found |= {f"{name}{ENDS[of]}": value for name, value in values.items()}
    return found


def _tables(
    rows: Sequence[Row], blocks: Sequence[str], steps: Sequence[int], count: int, shown: Sequence[Property]
) -> tuple[Table, ...]:
    """Return the tables of means, the one of counts, and the one of single features."""
    groups: list[tuple[Row, list[Row]]] = [
        ({"steps": one, "block": block}, select_rows(list(rows), steps=one, block=block))
        for one in steps
        for block in blocks
    ]
    tables = []
    for name, title in TITLES.items():
        some = [one for one in shown if one.table == name]
        kinds = (OWN, RANDOM, DIFFERENCE, *((UNCHANGED,) if any(one.unchanged for one in some) else ()))
        means = [{**place, "of": of, **_cells(some, mine, of)} for place, mine in groups for of in kinds]
        columns = (*plain_columns(("steps", "block", "of")), *(one.column for one in some))
        tables.append(Table(name=name, title=title, columns=columns, rows=tuple(means)))
    counts: list[Row] = [
        {**place, "expected": count, **{one.name: len(_values(one, mine, DIFFERENCE)) for one in shown}}
        for place, mine in groups
    ]
    counted = tuple(Column(name=one.name, title=one.words) for one in shown)
    title, columns = COUNTS, (*plain_columns(("steps", "block", "expected")), *counted)
    tables.append(Table(name="counts", title=title, columns=columns, rows=tuple(counts)))
    return (*tables, _single_features(rows, shown))


def _single_features(rows: Sequence[Row], shown: Sequence[Property]) -> Table:
    """Return the table with one row for each feature."""
    columns = [
        *plain_columns(("steps", "block", "feature")),
        Column(name="active", title="active in pictures"),
        Column(name="label"),
    ]
    columns += [one.column.model_copy(update={"interval": False}) for one in shown]
    names = {column.name for column in columns}
    kept = tuple({name: value for name, value in row.items() if name in names} for row in rows)
    return Table(name="single", title="Single features", columns=tuple(columns), rows=kept)


def _values(one: Property, rows: Sequence[Row], of: str) -> dict[str, list[float]]:
    """Return one property's values, or differences, of the features that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        ends = (ENDS[OWN], ENDS[RANDOM]) if of == DIFFERENCE else (ENDS[of],)
        values = [row.get(f"{one.name}{end}") for end in ends]
        known = [float(value) for value in values if isinstance(value, int | float)]
        if len(known) == len(ends):
            found[f"{row['block']}/{row['feature']}"] = [known[0] - known[1] if of == DIFFERENCE else known[0]]
    return found


def _cells(shown: Sequence[Property], rows: Sequence[Row], of: str) -> Row:
    """Return the means of some properties over features, with their intervals."""
    cells: Row = {}
    for one in shown:
        values = _values(one, rows, of)
        bounds = (None, None) if of == DIFFERENCE else one.bounds
        found = estimate({"features": values}, bounds=bounds) if values else Estimate(None, None, None, 0)
        cells |= estimate_cells(one.name, found)
    return cells


def _notes(tables: Sequence[Table], shown: Sequence[Property]) -> tuple[str, ...]:
    """Return a sentence on each property: in how many blocks features differ."""
    notes = []
    for one in shown:
        rows = next(select_rows(list(table.rows), of=DIFFERENCE) for table in tables if table.name == one.table)
        known = [row for row in rows if row[one.name] is not None]
        if not known:
            continue
        above = [row for row in known if number(row, one.name + LOW) > 0]
        below = [row for row in known if number(row, one.name + HIGH) < 0]
        most = max(known, key=lambda row: number(row, one.name))
        notes.append(
            f"{one.words.capitalize()}: beyond doubt above random in {len(above)} of {len(known)} blocks and step "
            f"counts, below it in {len(below)}; most above it in `{most['block']}` at {_steps_text(most['steps'])} "
            f"({one.column.cell(most)})."
        )
    return tuple(notes)


def _steps_text(steps: object) -> str:
    return f"{steps} step{'' if steps == 1 else 's'}"


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw one panel for each property and step count, one line for each block."""
    shown = [(table, one) for table in artefact.tables for one in PROPERTIES
             if one.table == table.name and any(column.name == one.name for column in table.columns)]  # fmt: skip
    steps = values_of(artefact.table().rows, "steps")
    blocks = values_of(artefact.table().rows, "block")
    figure.set_size_inches(1.2 + 1.35 * len(shown), 1.1 + (0.4 + 0.3 * len(blocks)) * len(steps))
    panels = figure.subplots(len(steps), len(shown), sharex="col", sharey=True, squeeze=False)
    for line, count in zip(panels, steps, strict=True):
        line[0].set_ylabel(_steps_text(count))
        for axes, (table, one) in zip(line, shown, strict=True):
            for number_of, (of, look) in enumerate(LOOKS.items()):
                rows = select_rows(list(table.rows), steps=count, of=of)
                _draw_points(axes, one, rows, blocks, 0.22 * (number_of - 1), of, look)
    for axes, (_, one) in zip(panels[0], shown, strict=True):
        axes.set_title(one.title.replace(" sensitivity", "\nsensitivity").replace(" changed", "\nchanged"), fontsize=8)
    panels[0][0].set_yticks(range(len(blocks)), [str(block) for block in blocks])
    panels[0][0].set_ylim(len(blocks) - 0.5, -0.5)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )


def _draw_points(
    axes: Axes, one: Property, rows: Sequence[Row], blocks: Sequence[object], offset: float, of: str, look: str
) -> None:  # fmt: skip
    """Draw a property's means with their intervals, one line a block."""
    found: dict[object, Row] = {row["block"]: row for row in rows}
    mine = [found.get(block, {}) for block in blocks]
    values = [number(row, one.name) * one.scale for row in mine]
    ends = [[number(row, f"{one.name}{end}") * one.scale for row in mine] for end in (LOW, HIGH)]
    reach = [[max(0.0, value - low) for value, low in zip(values, ends[0], strict=True)],
             [max(0.0, high - value) for value, high in zip(values, ends[1], strict=True)]]  # fmt: skip
    places = [place + offset for place in range(len(blocks))]
    axes.errorbar(values, places, xerr=reach, fmt=look, color=COLORS[of], markersize=3.5, elinewidth=1, label=of)
    axes.tick_params(labelsize=7)

"""Reconstruction: loss when a block's update is replaced by its SAE's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from riebench.blocks import ALL_BLOCKS
from riebench.generation.generator import Generator
from riebench.paper.artefact import Artefact, Column, Row, Table, select_rows, values_of
from riebench.paper.drawing import bars, number
from riebench.paper.job import (
    PaperJob,
    PromptSample,
    load_block_saes,
    model_text,
    prompt_settings,
    sae_key,
    sae_text,
    samples_key,
)
from riebench.paper.measure import (
    CHANGED_COLUMN,
    CONDITIONAL,
    LPIPS,
    PIXEL_MEAN,
    PIXEL_MEDIAN,
    Differences,
    SaeStep,
    VarianceMeter,
    generate_pictures,
    is_judged,
    measure_settings,
    reconstruction_edit,
    select_blocks,
    stream_readings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder

NAME = "reconstruction"
SHOWS = (
    "A block's update is replaced, at every step, by its SAE's reconstruction with bias; `all` replaces all blocks at "
    "once, where all have an SAE of one size. Against the picture of the untouched model: the sum of the absolute "
    "differences of the three channels on [0, 1], its mean and its median over pixels, then the mean over pictures; "
    "LPIPS; and the explained variance of the updates themselves."
)
JUDGED = (
    " `attributes changed` is the share that the toy world's judge reads otherwise, of the attributes that it can read "
    "in the picture of the untouched model."
)


def make(job: PaperJob) -> Artefact:
    """Measure every SAE of every block, or read what was measured."""
    model = job.load(job.few_step_model)
    blocks = select_blocks(job, model)
    saes = load_block_saes(job, model, blocks)
    samples = job.samples(job.named_prompts(model.spec))
    sets = [{one.block: one.sae} for one in saes]
    for size in dict.fromkeys((one.sae.n, one.sae.k) for one in saes):
        alike = {one.block: one.sae for one in saes if (one.sae.n, one.sae.k) == size}
        if len(alike) == len(blocks) > 1:
            sets.append(alike)
    rows = [row for steps in job.steps for row in _rows_at(job, job.load(job.few_step_model, steps), sets, samples)]
    judged = is_judged(model.spec)
    columns = (
        Column(name="block"), Column(name="k"), Column(name="width"), Column(name="steps"),
        Column(name="n", title="prompts"),
        Column(name=PIXEL_MEAN, title="pixel distance, mean", decimals=4, interval=True),
        Column(name=PIXEL_MEDIAN, title="pixel distance, median", decimals=4, interval=True),
        Column(name=LPIPS, title="LPIPS", decimals=4, interval=True), *((CHANGED_COLUMN,) if judged else ()),
        Column(name="ev_pooled", title="EV, pooled", decimals=3, interval=True),
        Column(name="ev_dim", title="EV, mean over dimensions", decimals=3, interval=True),
    )  # fmt: skip
    return Artefact(
        name=NAME, title="Reconstruction", shows=SHOWS + (JUDGED if judged else ""),
        tables=(Table(title="Update replaced by its reconstruction", columns=columns, rows=tuple(rows)),),
        settings={
            "model": f"{model_text(model.spec)}, guidance {model.spec.guidance:g}", "steps": list(job.steps),
            "SAEs": {f"{one.block}, k {one.sae.k}, width {one.sae.n}": sae_text(one.sae) for one in saes},
            **measure_settings(model.spec), **prompt_settings(job, model.spec, samples),
        },
        notes=_notes(rows), alt="Bars of LPIPS for every block and SAE whose reconstruction takes the update's place.",
    )  # fmt: skip


Sets = Sequence[Mapping[str, "SparseAutoencoder"]]


def _rows_at(job: PaperJob, model: LoadedModel, sets: Sets, samples: Sequence[PromptSample]) -> list[Row]:
    """Return the rows of one step count, measured or read."""
    shared_key = {
        "measure": 1,
        "model": model.spec.identity,
        "runs": samples_key(samples),
        "network": measure_settings(model.spec),
    }
    keys = [{**shared_key, "saes": sae_key(saes)} for saes in sets]
    return [row for rows in job.cached_parts(NAME, keys, partial(_measure, job, model, sets, samples)) for row in rows]


def _measure(
    job: PaperJob, model: LoadedModel, sets: Sets, samples: Sequence[PromptSample], missing: list[int]
) -> Iterator[tuple[int, list[Row]]]:
    """Measure the sets of SAEs that are missing; yields the index and the row of each."""
    generator, steps = Generator(model, cached_prompts=len(samples)), model.spec.steps
    clean = generate_pictures(job, generator, samples, f"{steps} steps, clean")
    differences = Differences(job, model.spec, samples, clean)
    single = [place for place in missing if len(sets[place]) == 1]
    explained = _explained_variance(job, model, [next(iter(sets[place].items())) for place in single], samples)
    variance = dict(zip(single, explained, strict=True))
    for place in missing:
        saes = dict(sets[place])
        name = next(iter(saes)) if len(saes) == 1 else ALL_BLOCKS
        some = next(iter(saes.values()))
        alike = len({(sae.k, sae.n) for sae in saes.values()}) == 1
        found = differences.compare(
            generate_pictures(
                job, generator, samples, f"{steps} steps, {name} k={some.k}", edit=reconstruction_edit(saes)
            )
        )
        labels: Row = {
            "block": name,
            "k": some.k if alike else None,
            "width": some.n if alike else None,
            "steps": steps,
        }
        yield place, [{**labels, "n": len({sample.name for sample in samples}), **found, **variance.get(place, {})}]


def _explained_variance(
    job: PaperJob, model: LoadedModel, saes: Sequence[tuple[str, SparseAutoencoder]], samples: Sequence[PromptSample]
) -> list[Row]:
    """Measure explained variance over all steps together, in the conditional half."""
    if not saes:
        return []
    names = list(dict.fromkeys(sample.name for sample in samples))
    meters = [VarianceMeter(len(names), sae.d_out) for _, sae in saes]

    @torch.inference_mode()
    def take(place: int, values: SaeStep) -> None:
        if values.half == CONDITIONAL:
            for row, sample in enumerate(samples[values.first : values.first + len(values.x)]):
                meters[place].add_reconstructed(
                    names.index(sample.name), values.x[row], saes[place][1], values.target[row], values.time
                )

    stream_readings(job, model, samples, saes, take, f"{model.spec.steps} steps, EV")
    kept = [meter.estimates(names) for meter in meters]
    return [{name: value for name, value in row.items() if name != "tokens"} for row in kept]


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a sentence on the least and the most LPIPS of each step count."""
    notes = []
    for steps in values_of(rows, "steps"):
        ordered = sorted(select_rows(list(rows), steps=steps), key=lambda row: number(row, LPIPS))
        if ordered:
            ends = [f"`{row['block']}` with k {row['k']} {number(row, LPIPS):.4f}" for row in (ordered[0], ordered[-1])]
            notes.append(f"{steps} step{'' if steps == 1 else 's'}: LPIPS from {ends[0]} to {ends[1]}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw bars by block and SAE, with one panel for each step count."""
    rows = list(artefact.table().rows)
    steps = values_of(rows, "steps")
    first = select_rows(rows, steps=steps[0])
    figure.set_size_inches(3.4 * len(steps) + 1.4, 1.2 + 0.26 * len(first))
    panels = figure.subplots(1, len(steps), sharey=True, sharex=True, squeeze=False)[0]
    for axes, count in zip(panels, steps, strict=True):
        bars(axes, select_rows(rows, steps=count), LPIPS, color="C0")
        axes.set_title(f"{count} step{'' if count == 1 else 's'}", fontsize=9)
        axes.set_xlabel("mean LPIPS to the clean picture")
    labels = [f"{row['block']}, k {row['k'] or 'mixed'}, width {row['width'] or 'mixed'}" for row in first]
    panels[0].set_yticks(range(len(first)), labels)
    panels[0].invert_yaxis()

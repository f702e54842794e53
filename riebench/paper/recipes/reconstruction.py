"""What is lost when a block's update is replaced by what its SAE makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from riebench.blocks import ALL_BLOCKS, default_blocks
from riebench.generation.generator import Generator
from riebench.paper.artefact import Artefact, Column, Row, Table, picked, values_of
from riebench.paper.drawing import bars, number
from riebench.paper.job import Noise, PaperJob, given, model_words, prompt_words, runs_key, sae_key, sae_line
from riebench.paper.measure import (
    CHANGED_COLUMN,
    CONDITIONAL,
    LPIPS,
    PIXEL_MEAN,
    PIXEL_MEDIAN,
    Differences,
    VarianceMeter,
    chosen_blocks,
    is_judged,
    measures,
    pictures,
    reconstructed,
    watch,
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
JUDGED = " `attributes changed` is the share of the eight attributes that the toy world's judge reads otherwise."


def make(job: PaperJob) -> Artefact:
    """Measures, or reads what was measured."""
    model = job.load(job.few_steps)
    blocks = chosen_blocks(job, model, default_blocks())
    saes = given(job, model, blocks)
    runs = job.runs(job.texts(model.spec))
    sets = [{one.block: one.sae} for one in saes]
    for size in dict.fromkeys((one.sae.n, one.sae.k) for one in saes):
        alike = {one.block: one.sae for one in saes if (one.sae.n, one.sae.k) == size}
        if len(alike) == len(blocks) > 1:
            sets.append(alike)
    rows = [row for steps in job.steps for row in _at(job, job.load(job.few_steps, steps), sets, runs)]
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
            "model": f"{model_words(model.spec)}, guidance {model.spec.guidance:g}", "steps": list(job.steps),
            "SAEs": {f"{one.block}, k {one.sae.k}, width {one.sae.n}": sae_line(one.sae) for one in saes},
            **measures(model.spec), **prompt_words(job, model.spec, runs),
        },
        notes=_notes(rows), alt="Bars of LPIPS for every block and SAE whose reconstruction takes the update's place.",
    )  # fmt: skip


Sets = Sequence[Mapping[str, "SparseAutoencoder"]]


def _at(job: PaperJob, model: LoadedModel, sets: Sets, runs: Sequence[Noise]) -> list[Row]:
    told = {"measure": 1, "model": model.spec.identity, "runs": runs_key(runs), "network": measures(model.spec)}
    keys = [{**told, "saes": sae_key(saes)} for saes in sets]
    return [row for rows in job.parts(NAME, keys, partial(_measured, job, model, sets, runs)) for row in rows]


def _measured(
    job: PaperJob, model: LoadedModel, sets: Sets, runs: Sequence[Noise], missing: list[int]
) -> Iterator[tuple[int, list[Row]]]:
    generator, steps = Generator(model, cached_prompts=len(runs)), model.spec.steps
    clean = pictures(job, generator, runs, f"{steps} steps, clean")
    differences = Differences(job, model.spec, runs, clean)
    single = [place for place in missing if len(sets[place]) == 1]
    explained = _explained(job, model, [next(iter(sets[place].items())) for place in single], runs)
    variance = dict(zip(single, explained, strict=True))
    for place in missing:
        saes = dict(sets[place])
        name = next(iter(saes)) if len(saes) == 1 else ALL_BLOCKS
        some = next(iter(saes.values()))
        alike = len({(sae.k, sae.n) for sae in saes.values()}) == 1
        found = differences.rows(
            pictures(job, generator, runs, f"{steps} steps, {name} k={some.k}", edit=reconstructed(saes))
        )
        told: Row = {"block": name, "k": some.k if alike else None, "width": some.n if alike else None, "steps": steps}
        yield place, [{**told, "n": len({run.name for run in runs}), **found, **variance.get(place, {})}]


def _explained(
    job: PaperJob, model: LoadedModel, saes: Sequence[tuple[str, SparseAutoencoder]], runs: Sequence[Noise]
) -> list[Row]:
    """Explained variance over all steps together, conditional half."""
    if not saes:
        return []
    names = list(dict.fromkeys(run.name for run in runs))
    meters = [VarianceMeter(len(names), sae.d) for _, sae in saes]

    @torch.inference_mode()
    def take(site: str, _step: int, half: str, first: int, values: Tensor) -> None:
        for (block, sae), meter in zip(saes, meters, strict=True):
            if (site, half) == (block, CONDITIONAL):
                for row, run in enumerate(runs[first : first + len(values)]):
                    meter.encode(names.index(run.name), values[row], sae)

    watch(job, model, runs, tuple(dict.fromkeys(block for block, _ in saes)), take, f"{model.spec.steps} steps, EV")
    kept = [meter.figures(names) for meter in meters]
    return [{name: value for name, value in row.items() if name != "tokens"} for row in kept]


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    for steps in values_of(rows, "steps"):
        mine = sorted(picked(list(rows), steps=steps), key=lambda row: number(row, LPIPS))
        if mine:
            told = [f"`{row['block']}` with k {row['k']} {number(row, LPIPS):.4f}" for row in (mine[0], mine[-1])]
            notes.append(f"{steps} step{'' if steps == 1 else 's'}: LPIPS from {told[0]} to {told[1]}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """Bars by block and SAE, one panel a step count."""
    rows = list(artefact.table().rows)
    steps = values_of(rows, "steps")
    first = picked(rows, steps=steps[0])
    figure.set_size_inches(3.4 * len(steps) + 1.4, 1.2 + 0.26 * len(first))
    panels = figure.subplots(1, len(steps), sharey=True, sharex=True, squeeze=False)[0]
    for axes, count in zip(panels, steps, strict=True):
        bars(axes, picked(rows, steps=count), LPIPS, color="C0")
        axes.set_title(f"{count} step{'' if count == 1 else 's'}", fontsize=9)
        axes.set_xlabel("mean LPIPS to the clean picture")
    labels = [f"{row['block']}, k {row['k'] or 'mixed'}, width {row['width'] or 'mixed'}" for row in first]
    panels[0].set_yticks(range(len(first)), labels)
    panels[0].invert_yaxis()

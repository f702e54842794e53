"""What each attention and residual block does to the picture: its part is taken away, and the picture compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from riebench.blocks import kind
from riebench.generation.generator import Generator
from riebench.generation.hooks import known_sites
from riebench.paper.artefact import Artefact, Column, Row, Table, View, picked, values_of
from riebench.paper.drawing import bars, number
from riebench.paper.job import Noise, PaperJob, model_words, prompt_words, runs_key
from riebench.paper.measure import (
    CHANGED,
    CHANGED_COLUMN,
    LPIPS,
    LPIPS_COLUMN,
    Differences,
    change_of,
    chosen_blocks,
    is_judged,
    measures,
    pictures,
    without,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riebench.models.loading import LoadedModel

NAME = "block-effect"
SHOWS = (
    "Every attention and residual block of the U-Net, one at a time: an attention block gives its input back (`no "
    "update`), a residual block only its skip path, at every step. `LPIPS` is the mean distance to the picture that "
    "the whole model makes of the same prompt and noise."
)
JUDGED = (
    " On the toy world a judge reads the eight attributes of both pictures: `attributes changed` is the share that "
    "came out otherwise, the truth beside the distance."
)


def make(job: PaperJob) -> Artefact:
    """Measures, or reads what was measured."""
    model = job.load(job.few_steps)
    sites = chosen_blocks(job, model, model.family.names.pass_order(known_sites(model.denoiser)))
    runs = job.runs(job.texts(model.spec))
    rows = [row for steps in job.steps for row in _at(job, job.load(job.few_steps, steps), sites, runs)]
    judged = is_judged(model.spec)
    columns = (
        Column(name="block"), Column(name="kind"), Column(name="change"), Column(name="steps"),
        Column(name="n", title="prompts"), LPIPS_COLUMN, *((CHANGED_COLUMN,) if judged else ()),
    )  # fmt: skip
    heads = {LPIPS: "LPIPS to the clean picture", **({CHANGED: "Attributes changed, %"} if judged else {})}
    views = tuple(View(title=f"{title}, by block and steps", down=("block", "change"), across="steps", cell=cell)
                  for cell, title in heads.items())  # fmt: skip
    table = Table(title="Block effect", columns=columns, rows=tuple(rows), views=views)
    guided = f"guidance {model.spec.guidance:g}"
    return Artefact(
        name=NAME, title="Effect of every block", shows=SHOWS + (JUDGED if judged else ""), tables=(table,),
        settings={"model": f"{model_words(model.spec)}, {guided}", "steps": list(job.steps),
                  **measures(model.spec), **prompt_words(job, model.spec, runs)},
        notes=_notes(rows),
        alt="Bars of LPIPS for every block in the order of the pass, one panel a step count"
        + ("; diamonds: the share of attributes that changed." if judged else "."),
    )  # fmt: skip


def _at(job: PaperJob, model: LoadedModel, sites: Sequence[str], runs: Sequence[Noise]) -> list[Row]:
    told = {"measure": 1, "model": model.spec.identity, "runs": runs_key(runs), "network": measures(model.spec)}
    keys = [{**told, "block": site} for site in sites]
    return [row for rows in job.parts(NAME, keys, partial(_measured, job, model, sites, runs)) for row in rows]


def _measured(
    job: PaperJob, model: LoadedModel, sites: Sequence[str], runs: Sequence[Noise], missing: list[int]
) -> Iterator[tuple[int, list[Row]]]:
    generator, steps = Generator(model, cached_prompts=len(runs)), model.spec.steps
    clean = pictures(job, generator, runs, f"{steps} steps, clean")
    differences = Differences(job, model.spec, runs, clean)
    for place in missing:
        site = sites[place]
        inside = partial(without, model.denoiser, site, steps)
        changed = pictures(job, generator, runs, f"{steps} steps, without {site}", inside=inside)
        found = differences.rows(changed)
        kept = {name: value for name, value in found.items() if name.startswith((LPIPS, CHANGED))}
        told: Row = {"block": site, "kind": kind(site), "change": change_of(site), "steps": steps}
        yield place, [{**told, "n": len({run.name for run in runs}), **kept}]


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    for steps in values_of(rows, "steps"):
        for sort in values_of(rows, "kind"):
            mine = sorted(picked(list(rows), steps=steps, kind=sort), key=lambda row: -number(row, LPIPS))
            told = ", ".join(f"`{row['block']}` {number(row, LPIPS):.3f}" for row in mine[:3])
            notes.append(f"{steps} step{'' if steps == 1 else 's'}, {sort} blocks with the largest LPIPS: {told}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """Bars from the first block to the last; attention and residual blocks in two colours."""
    rows = list(artefact.table().rows)
    steps = values_of(rows, "steps")
    blocks = values_of(rows, "block")
    figure.set_size_inches(3.4 * len(steps) + 1.2, 1.0 + 0.21 * len(blocks))
    panels = figure.subplots(1, len(steps), sharey=True, sharex=True, squeeze=False)[0]
    for axes, count in zip(panels, steps, strict=True):
        for index, sort in enumerate(values_of(rows, "kind")):
            mine = [row if row["kind"] == sort else {} for row in picked(rows, steps=count)]
            bars(axes, mine, LPIPS, color=f"C{index}", label=str(sort))
        changed = [(number(row, CHANGED), place) for place, row in enumerate(picked(rows, steps=count))]
        if any(value == value for value, _ in changed):
            label = "share of attributes changed"
            axes.plot(*zip(*changed, strict=True), "D", color="black", markersize=3, label=label)
        axes.set_title(f"{count} step{'' if count == 1 else 's'}", fontsize=9)
        axes.set_xlabel("mean LPIPS to the clean picture")
    panels[0].set_yticks(range(len(blocks)), [str(block) for block in blocks])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)

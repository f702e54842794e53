"""Block effect: how much the picture changes when one block is ablated.

Every attention and residual block is ablated alone, at every step, and the pictures are compared with clean ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from riebench.blocks import kind
from riebench.generation.generator import Generator
from riebench.generation.hooks import known_sites
from riebench.paper.artefact import Artefact, Column, Row, Table, View, select_rows, values_of
from riebench.paper.drawing import bars, number
from riebench.paper.job import PaperJob, PromptSample, model_text, prompt_settings, samples_key
from riebench.paper.measure import (
    CHANGED,
    CHANGED_COLUMN,
    LPIPS,
    LPIPS_COLUMN,
    Differences,
    ablate_block,
    ablation_name,
    generate_pictures,
    is_judged,
    measure_settings,
    select_blocks,
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
    "came out otherwise, of those that it can read in the clean picture: the truth beside the distance."
)


def make(job: PaperJob) -> Artefact:
    """Measure the effect of every block, or read what was measured."""
    model = job.load(job.few_step_model)
    sites = select_blocks(job, model, model.family.names.pass_order(known_sites(model.denoiser)))
    samples = job.samples(job.named_prompts(model.spec))
    rows = [row for steps in job.steps for row in _rows_at(job, job.load(job.few_step_model, steps), sites, samples)]
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
        settings={"model": f"{model_text(model.spec)}, {guided}", "steps": list(job.steps),
                  **measure_settings(model.spec), **prompt_settings(job, model.spec, samples)},
        notes=_notes(rows),
        alt="Bars of LPIPS for every block in the order of the pass, one panel a step count"
        + ("; diamonds: the share of attributes that changed." if judged else "."),
    )  # fmt: skip


def _rows_at(job: PaperJob, model: LoadedModel, sites: Sequence[str], samples: Sequence[PromptSample]) -> list[Row]:
    """Return the rows of one step count, measured or read."""
    shared_key = {
        "measure": 1,
        "model": model.spec.identity,
        "runs": samples_key(samples),
        "network": measure_settings(model.spec),
    }
    keys = [{**shared_key, "block": site} for site in sites]
    return [row for rows in job.cached_parts(NAME, keys, partial(_measure, job, model, sites, samples)) for row in rows]


def _measure(
    job: PaperJob, model: LoadedModel, sites: Sequence[str], samples: Sequence[PromptSample], missing: list[int]
) -> Iterator[tuple[int, list[Row]]]:
    """Measure the blocks that are missing; yields the index and the row of each."""
    generator, steps = Generator(model, cached_prompts=len(samples)), model.spec.steps
    clean = generate_pictures(job, generator, samples, f"{steps} steps, clean")
    differences = Differences(job, model.spec, samples, clean)
    for place in missing:
        site = sites[place]
        context = partial(ablate_block, model.denoiser, site, steps)
        changed = generate_pictures(job, generator, samples, f"{steps} steps, without {site}", context=context)
        found = differences.compare(changed)
        shown = {name: value for name, value in found.items() if name.startswith((LPIPS, CHANGED))}
        labels: Row = {"block": site, "kind": kind(site), "change": ablation_name(site), "steps": steps}
        yield place, [{**labels, "n": len({sample.name for sample in samples}), **shown}]


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a sentence on the strongest blocks of each step count and kind."""
    notes = []
    for steps in values_of(rows, "steps"):
        for sort in values_of(rows, "kind"):
            ordered = sorted(select_rows(list(rows), steps=steps, kind=sort), key=lambda row: -number(row, LPIPS))
            strongest = ", ".join(f"`{row['block']}` {number(row, LPIPS):.3f}" for row in ordered[:3])
            notes.append(f"{steps} step{'' if steps == 1 else 's'}, {sort} blocks with the largest LPIPS: {strongest}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw bars from the first block of the forward pass to the last.

    Attention and residual blocks have two colours.
    """
    rows = list(artefact.table().rows)
    steps = values_of(rows, "steps")
    blocks = values_of(rows, "block")
    figure.set_size_inches(3.4 * len(steps) + 1.2, 1.0 + 0.21 * len(blocks))
    panels = figure.subplots(1, len(steps), sharey=True, sharex=True, squeeze=False)[0]
    for axes, count in zip(panels, steps, strict=True):
        for index, sort in enumerate(values_of(rows, "kind")):
            kind_rows = [row if row["kind"] == sort else {} for row in select_rows(rows, steps=count)]
            bars(axes, kind_rows, LPIPS, color=f"C{index}", label=str(sort))
        changed = [(number(row, CHANGED), place) for place, row in enumerate(select_rows(rows, steps=count))]
        if any(value == value for value, _ in changed):
            label = "share of attributes changed"
            axes.plot(*zip(*changed, strict=True), "D", color="black", markersize=3, label=label)
        axes.set_title(f"{count} step{'' if count == 1 else 's'}", fontsize=9)
        axes.set_xlabel("mean LPIPS to the clean picture")
    panels[0].set_yticks(range(len(blocks)), [str(block) for block in blocks])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)

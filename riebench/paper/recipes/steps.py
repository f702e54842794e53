"""Explained variance over steps, and the pass that also measures feature overlap.

`measure_steps` generates with the few-step and the many-step model once and applies one SAE for each block at every
step. This recipe reads explained variance from it, and `riebench.paper.recipes.overlap` the overlap of codes between
adjacent steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from riebench.analysis.stats import estimate
from riebench.errors import RiebenchError
from riebench.generation.hooks import known_sites
from riebench.paper.artefact import (
    Artefact,
    ArtefactSettings,
    Column,
    Row,
    Table,
    View,
    estimate_cells,
    select_rows,
    values_of,
)
from riebench.paper.drawing import by_block, finish, number, panels
from riebench.paper.job import (
    PaperJob,
    PromptSample,
    block_sae_texts,
    model_text,
    prompt_settings,
    sae_key,
    samples_key,
    steps_text,
)
from riebench.paper.measure import CONDITIONAL, UNCONDITIONAL, SaeStep, VarianceMeter, select_blocks, stream_readings
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import check_width, model_saes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riebench.models.loading import LoadedModel


NAME = "explained-variance-steps"
FOLDER = "steps"
VARIANCE, OVERLAP = "variance", "overlap"
POSITION, MEAN = "cosine", "cosine_mean"
COLUMNS = (
    Column(name="model"), Column(name="steps"), Column(name="run", title="model, steps, half"),
    Column(name="half", title="guidance half"), Column(name="block"), Column(name="k"), Column(name="width"),
    Column(name="step"), Column(name="n", title="prompts"), Column(name="tokens"),
    Column(name="ev_dim", decimals=3, interval=True), Column(name="ev_pooled", decimals=3, interval=True),
)  # fmt: skip
TITLES = {"ev_pooled": "Pooled explained variance", "ev_dim": "Explained variance, mean over dimensions"}
SHOWS = (
    "One SAE a block, trained on the updates of one step, measured at every step of longer runs. `ev_dim` is the mean "
    "over dimensions of 1 - Var(x - x^) / (Var(x) + 1e-8), `ev_pooled` is 1 - sum Var(x - x^) / sum Var(x), both over "
    "all positions of all prompts at that step. Under guidance the conditional half is what the SAEs see in edits; the "
    "unconditional half is listed apart."
)


def make(job: PaperJob) -> Artefact:
    """Measure explained variance at every step, or read what was measured."""
    found = measure_steps(job)
    rows = [{**row, "run": _run_name(row)} for row in found.rows_of(VARIANCE)]
    conditional = select_rows(rows, half=CONDITIONAL)
    tables = [_table("", "Explained variance over steps", conditional)]
    if len(conditional) < len(rows):
        title = "Explained variance over steps, unconditional half"
        tables.append(_table(UNCONDITIONAL, title, select_rows(rows, half=UNCONDITIONAL)))
    return Artefact(
        name=NAME, title="Explained variance over steps", shows=SHOWS, tables=tuple(tables), settings=found.settings,
        notes=_notes(conditional),
        alt="Pooled explained variance against the step, one line a block, one panel a model and step count.",
    )  # fmt: skip


def _table(name: str, title: str, rows: list[Row]) -> Table:
    """Return the table of one guidance half."""
    half = f", {name} half" if name else ""
    views = tuple(
        View(title=f"{head}{half}, by step and block", down=("run", "step"), across="block", cell=cell)
        for cell, head in TITLES.items()
    )
    return Table(name=name, title=title, columns=COLUMNS, rows=tuple(rows), views=views)


def _run_name(row: Row) -> str:
    """Return the name of a run: model and number of steps."""
    return f"{row['model']}, {row['steps']} step{'' if row['steps'] == 1 else 's'}"


def _notes(rows: list[Row]) -> tuple[str, ...]:
    """Return a sentence on the lowest and highest step of each block."""
    notes = []
    for block in values_of(rows, "block"):
        run_texts = []
        for run in values_of(rows, "run"):
            block_rows = select_rows(rows, run=run, block=block)
            found = [(number(row, "ev_pooled"), row["step"]) for row in block_rows if row["ev_pooled"] is not None]
            if found:
                ends = [f"{value:.3f} (step {step})" for value, step in (min(found), max(found))]
                run_texts.append(f"{run}: {' to '.join(dict.fromkeys(ends))}")
        notes.append(f"`{block}`, pooled, lowest to highest step: {'; '.join(run_texts)}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw one panel for each run and one line for each block.

    Intervals are bands. The unconditional half has a vertical scale of its own.
    """
    shown = [(str(run), select_rows(list(table.rows), run=run), table.name)
             for table in artefact.tables for run in values_of(table.rows, "run")]  # fmt: skip
    apart = [bool(name) for _, _, name in shown]
    for axes, (run, rows, name) in zip(panels(figure, len(shown), apart=apart), shown, strict=True):
        by_block(axes, rows, "step", "ev_pooled")
        axes.set_title(f"{run}\n{name} half, other scale" if name else run, fontsize=8)
        axes.set_xlabel("step")
    finish(figure, "pooled explained variance")


@dataclass(frozen=True)
class StepMeasurements:
    """Rows and configurations of all measured runs.

    Attributes:
        rows: of both kinds, distinguished by the key `kind`.
        settings: of all runs.
    """

    rows: tuple[Row, ...]
    settings: ArtefactSettings

    def rows_of(self, kind: str) -> tuple[Row, ...]:
        """Return the rows of one kind, without the key `kind`."""
        return tuple({k: v for k, v in row.items() if k != "kind"} for row in self.rows if row["kind"] == kind)


def measure_steps(job: PaperJob) -> StepMeasurements:
    """Measure every model and step count that is not measured yet.

    Raises:
        RiebenchError: if a model or an SAE cannot be loaded, or they do not fit each other.
    """
    few = job.load(job.few_step_model)
    blocks = select_blocks(job, few)
    saes = model_saes(job.sae, few, blocks, offline=job.offline)
    samples = job.samples(job.named_prompts(few.spec))
    models = [job.load(job.few_step_model, steps) for steps in job.steps]
    if job.many_step_model is not None:
        models.append(job.load(job.many_step_model, guidance=job.guidance))
    rows: list[Row] = []
    for model in models:
        for block, sae in saes.items():
            if block not in known_sites(model.denoiser):
                raise RiebenchError(
                    f"{model.spec.name} has no block {block}; give a --base with the same blocks, or none"
                )
            check_width(sae, block, model)
        key = {"pass": 1, "model": model.spec.identity, "saes": sae_key(saes), "runs": samples_key(samples)}
        rows += job.cached_rows(FOLDER, key, partial(_measure, job, model, samples, saes))
    settings: ArtefactSettings = {
        "models": [f"{model_text(model.spec)}, {steps_text(model.spec)}" for model in models],
        "SAEs": block_sae_texts(saes),
        **prompt_settings(job, few.spec, samples),
    }
    return StepMeasurements(tuple(rows), settings)


def _measure(
    job: PaperJob, model: LoadedModel, samples: Sequence[PromptSample], saes: dict[str, SparseAutoencoder]
) -> list[Row]:
    """Measure one model at its number of steps."""
    sums = StepSums(samples, saes)
    blocks = tuple(saes)
    stream_readings(
        job, model, samples, list(saes.items()), lambda place, values: sums.add(blocks[place], values),
        f"{model.spec.name}, {model.spec.steps} steps",
    )  # fmt: skip
    labels: Row = {"model": model.spec.name, "steps": model.spec.steps}
    return [{**labels, **row} for row in sums.rows()]


class StepSums:
    """Sums over all samples of one run, by block, guidance half and step.

    Args:
        samples: all that will be generated.
        saes: one for each block.
    """

    def __init__(self, samples: Sequence[PromptSample], saes: dict[str, SparseAutoencoder]) -> None:
        self._samples, self._saes = samples, saes
        self._names = list(dict.fromkeys(sample.name for sample in samples))
        self._meters: dict[tuple[str, str, int], VarianceMeter] = {}
        self._before: dict[str, Tensor] = {}
        self._cosines: dict[tuple[str, int], dict[str, dict[str, list[float]]]] = {}

    @torch.inference_mode()
    def add(self, block: str, values: SaeStep) -> None:
        """Add one step of one block for a batch.

        Args:
            block: short name of the block.
            values: as its SAE reads it.
        """
        sae = self._saes[block]
        place = (block, values.half, values.step)
        meter = self._meters.setdefault(place, VarianceMeter(len(self._names), sae.d_out))
        codes = sae.encode(values.x, values.time)
        left_over = values.target - sae.decode(codes, values.x, values.time)
        samples = self._samples[values.first : values.first + len(values.x)]
        for row, sample in enumerate(samples):
            meter.add(self._names.index(sample.name), values.target[row], left_over[row])
        if values.half == CONDITIONAL:
            if values.step:
                self._overlap(block, values.step, samples, self._before[block], codes)
            self._before[block] = codes

    def _overlap(self, block: str, step: int, samples: Sequence[PromptSample], before: Tensor, after: Tensor) -> None:
        """Add the cosines between the codes of two adjacent steps, [B, positions, n]."""
        found = self._cosines.setdefault((block, step), {POSITION: {}, MEAN: {}})
        for row, sample in enumerate(samples):
            for name, (one, other) in {
                POSITION: (before[row], after[row]),
                MEAN: (before[row].mean(0, keepdim=True), after[row].mean(0, keepdim=True)),
            }.items():
                value = mean_cosine(one, other)
                if value is not None:
                    found[name].setdefault(sample.name, []).append(value)

    def rows(self) -> list[Row]:
        """Return the sums as rows; steps are counted from 1."""
        rows: list[Row] = []
        for half in (CONDITIONAL, UNCONDITIONAL):
            for block, sae in self._saes.items():
                labels: Row = {"kind": VARIANCE, "half": half, "block": block, "k": sae.k, "width": sae.n}
                for step in sorted(step for b, h, step in self._meters if (b, h) == (block, half)):
                    figures = self._meters[block, half, step].estimates(self._names)
                    rows.append({**labels, "step": step + 1, "n": len(self._names), **figures})
        order = list(self._saes)
        for block, step in sorted(self._cosines, key=lambda place: (order.index(place[0]), place[1])):
            values = self._cosines[block, step]
            row: Row = {"kind": OVERLAP, "block": block, "k": self._saes[block].k, "width": self._saes[block].n,
                        "step": step, "next": step + 1, "n": len(values[POSITION])}  # fmt: skip
            for name, by_prompt in values.items():
                row |= estimate_cells(name, estimate({"prompts": by_prompt}))
            rows.append(row)
        return rows


def mean_cosine(one: Tensor, other: Tensor) -> float | None:
    """Compute the mean cosine of codes at the same positions.

    Positions without an active feature on either side are left out.

    Args:
        one: codes, [P, n].
        other: codes, [P, n].

    Returns:
        None if there is no position with active features on both sides.
    """
    dots = (one * other).sum(-1)
    norms = one.norm(dim=-1) * other.norm(dim=-1)
    active = norms > 0
    return float((dots[active] / norms[active]).double().mean()) if bool(active.any()) else None

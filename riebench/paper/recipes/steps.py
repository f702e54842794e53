"""One pass over few-step and many-step runs with one SAE a block: explained variance and overlap, step by step.

Two artefacts are made of it; what is generated is generated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from riebench.analysis.stats import estimate
from riebench.blocks import default_blocks
from riebench.paper.artefact import Artefact, Column, Row, Table, View, estimated, picked, values_of
from riebench.paper.drawing import by_block, finish, number, panels
from riebench.paper.job import Noise, PaperJob, Said, model_words, prompt_words, run_words, runs_key, sae_key, sae_words
from riebench.paper.measure import CONDITIONAL, UNCONDITIONAL, VarianceMeter, chosen_blocks, watch
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import check_width, model_saes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riebench.models.loading import LoadedModel


FOLDER = "steps"
VARIANCE, OVERLAP = "variance", "overlap"
POSITION, MEAN = "cosine", "cosine_mean"


@dataclass(frozen=True)
class Passes:
    """What was measured.

    Attributes:
        rows: of both kinds, told apart by `kind`.
        settings: of all passes.
    """

    rows: tuple[Row, ...]
    settings: Said

    def of(self, kind: str) -> tuple[Row, ...]:
        """Rows of one kind, without that word."""
        return tuple({k: v for k, v in row.items() if k != "kind"} for row in self.rows if row["kind"] == kind)


def measured(job: PaperJob) -> Passes:
    """Measures every model and step count that is not measured yet.

    Raises:
        RiebenchError: if a model or an SAE cannot be had, or they do not fit each other.
    """
    few = job.load(job.few_steps)
    blocks = chosen_blocks(job, few, default_blocks())
    saes = model_saes(job.sae, few, blocks, offline=job.offline)
    runs = job.runs(job.texts(few.spec))
    models = [job.load(job.few_steps, steps) for steps in job.steps]
    if job.many_steps is not None:
        models.append(job.load(job.many_steps, guidance=job.guidance))
    rows: list[Row] = []
    for model in models:
        for block, sae in saes.items():
            check_width(sae, block, model)
        key = {"pass": 1, "model": model.spec.identity, "saes": sae_key(saes), "runs": runs_key(runs)}
        rows += job.part(FOLDER, key, partial(_rows, job, model, runs, saes))
    settings: Said = {
        "models": [f"{model_words(model.spec)}, {run_words(model.spec)}" for model in models],
        "SAEs": sae_words(saes),
        **prompt_words(job, few.spec, runs),
    }
    return Passes(tuple(rows), settings)


def _rows(job: PaperJob, model: LoadedModel, runs: Sequence[Noise], saes: dict[str, SparseAutoencoder]) -> list[Row]:
    sums = StepSums(runs, saes)
    watch(job, model, runs, tuple(saes), sums.take, f"{model.spec.name}, {model.spec.steps} steps")
    told: Row = {"model": model.spec.name, "steps": model.spec.steps}
    return [{**told, **row} for row in sums.rows()]


class StepSums:
    """What one pass is summed up to.

    Args:
        runs: everything that will be generated.
        saes: one per block.
    """

    def __init__(self, runs: Sequence[Noise], saes: dict[str, SparseAutoencoder]) -> None:
        self._runs, self._saes = runs, saes
        self._names = list(dict.fromkeys(run.name for run in runs))
        self._meters: dict[tuple[str, str, int], VarianceMeter] = {}
        self._before: dict[str, Tensor] = {}
        self._cosines: dict[tuple[str, int], dict[str, dict[str, list[float]]]] = {}

    @torch.inference_mode()
    def take(self, block: str, step: int, half: str, first: int, values: Tensor) -> None:
        """Takes one step of one block in; see `riebench.paper.measure.Take`."""
        sae = self._saes[block]
        meter = self._meters.setdefault((block, half, step), VarianceMeter(len(self._names), sae.d))
        codes = sae.encode(values)
        left_over = values - sae.decode(codes, values)
        runs = self._runs[first : first + len(values)]
        for row, run in enumerate(runs):
            meter.add(self._names.index(run.name), values[row], left_over[row])
        if half == CONDITIONAL:
            if step:
                self._overlap(block, step, runs, self._before[block], codes)
            self._before[block] = codes

    def _overlap(self, block: str, step: int, runs: Sequence[Noise], before: Tensor, after: Tensor) -> None:
        found = self._cosines.setdefault((block, step), {POSITION: {}, MEAN: {}})
        for row, run in enumerate(runs):
            for name, (one, other) in {
                POSITION: (before[row], after[row]),
                MEAN: (before[row].mean(0, keepdim=True), after[row].mean(0, keepdim=True)),
            }.items():
                value = mean_cosine(one, other)
                if value is not None:
                    found[name].setdefault(run.name, []).append(value)

    def rows(self) -> list[Row]:
        """Everything taken in, as rows; steps are counted from 1."""
        rows: list[Row] = []
        for half in (CONDITIONAL, UNCONDITIONAL):
            for block, sae in self._saes.items():
                told: Row = {"kind": VARIANCE, "half": half, "block": block, "k": sae.k, "width": sae.n}
                for step in sorted(step for b, h, step in self._meters if (b, h) == (block, half)):
                    figures = self._meters[block, half, step].figures(self._names)
                    rows.append({**told, "step": step + 1, "n": len(self._names), **figures})
        order = list(self._saes)
        for block, step in sorted(self._cosines, key=lambda place: (order.index(place[0]), place[1])):
            values = self._cosines[block, step]
            row: Row = {"kind": OVERLAP, "block": block, "k": self._saes[block].k, "width": self._saes[block].n,
                        "step": step, "next": step + 1, "n": len(values[POSITION])}  # fmt: skip
            for name, by_prompt in values.items():
                row |= estimated(name, estimate({"prompts": by_prompt}))
            rows.append(row)
        return rows


def mean_cosine(one: Tensor, other: Tensor) -> float | None:
    """Mean cosine of codes at the same positions, [P, n] each; positions without a feature on either side count not.

    Returns:
        None if there is no position with features on both sides.
    """
    dots = (one * other).sum(-1)
    norms = one.norm(dim=-1) * other.norm(dim=-1)
    there = norms > 0
    return float((dots[there] / norms[there]).double().mean()) if bool(there.any()) else None


NAME = "explained-variance-steps"
COLUMNS = (
    Column(name="model"), Column(name="steps"), Column(name="run", title="model, steps, half"),
    Column(name="half", title="guidance half"), Column(name="block"), Column(name="k"), Column(name="width"),
    Column(name="step"), Column(name="n", title="prompts"), Column(name="tokens"),
    Column(name="ev_dim", decimals=3, interval=True), Column(name="ev_pooled", decimals=3, interval=True),
)  # fmt: skip
SHOWS = (
    "One SAE a block, trained on the updates of one step, measured at every step of longer runs. `ev_dim` is the mean "
    "over dimensions of 1 - Var(x - x^) / (Var(x) + 1e-8), `ev_pooled` is 1 - sum Var(x - x^) / sum Var(x), both over "
    "all positions of all prompts at that step. Under guidance the conditional half is what the SAEs see in edits; the "
    "unconditional half is listed apart."
)


TITLES = {"ev_pooled": "Pooled explained variance", "ev_dim": "Explained variance, mean over dimensions"}


def make(job: PaperJob) -> Artefact:
    """Measures, or reads what was measured."""
    passes = measured(job)
    rows = [{**row, "run": _run(row)} for row in passes.of(VARIANCE)]
    conditional = picked(rows, half=CONDITIONAL)
    tables = [_table("", "Explained variance over steps", conditional)]
    if len(conditional) < len(rows):
        title = "Explained variance over steps, unconditional half"
        tables.append(_table(UNCONDITIONAL, title, picked(rows, half=UNCONDITIONAL)))
    return Artefact(
        name=NAME, title="Explained variance over steps", shows=SHOWS, tables=tuple(tables), settings=passes.settings,
        notes=_notes(conditional),
        alt="Pooled explained variance against the step, one line a block, one panel a model and step count.",
    )  # fmt: skip


def _table(name: str, title: str, rows: list[Row]) -> Table:
    half = f", {name} half" if name else ""
    views = tuple(
        View(title=f"{head}{half}, by step and block", down=("run", "step"), across="block", cell=cell)
        for cell, head in TITLES.items()
    )
    return Table(name=name, title=title, columns=COLUMNS, rows=tuple(rows), views=views)


def _run(row: Row) -> str:
    return f"{row['model']}, {row['steps']} step{'' if row['steps'] == 1 else 's'}"


def _notes(rows: list[Row]) -> tuple[str, ...]:
    notes = []
    for block in values_of(rows, "block"):
        told = []
        for run in values_of(rows, "run"):
            mine = picked(rows, run=run, block=block)
            found = [(number(row, "ev_pooled"), row["step"]) for row in mine if row["ev_pooled"] is not None]
            if found:
                ends = [f"{value:.3f} (step {step})" for value, step in (min(found), max(found))]
                told.append(f"{run}: {' to '.join(dict.fromkeys(ends))}")
        notes.append(f"`{block}`, pooled, lowest to highest step: {'; '.join(told)}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """One panel a run, one line a block, intervals as bands; the unconditional half on a scale of its own."""
    shown = [(str(run), picked(list(table.rows), run=run), table.name)
             for table in artefact.tables for run in values_of(table.rows, "run")]  # fmt: skip
    apart = [bool(name) for _, _, name in shown]
    for axes, (run, rows, name) in zip(panels(figure, len(shown), apart=apart), shown, strict=True):
        by_block(axes, rows, "step", "ev_pooled")
        axes.set_title(f"{run}\n{name} half, other scale" if name else run, fontsize=8)
        axes.set_xlabel("step")
    finish(figure, "pooled explained variance")

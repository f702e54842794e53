"""Explained variance of 1-step SAEs at every step of few-step and many-step runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riebench.paper.artefact import Artefact, Column, Row, Table, View, picked, values_of
from riebench.paper.drawing import by_block, finish, number, panels
from riebench.paper.generating import CONDITIONAL, UNCONDITIONAL
from riebench.paper.job import PaperJob
from riebench.paper.steps_pass import VARIANCE, measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

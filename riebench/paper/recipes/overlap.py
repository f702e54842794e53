"""Overlap: how similar the SAE codes of adjacent steps are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riebench.paper.artefact import Artefact, Column, Row, Table, View, select_rows, values_of
from riebench.paper.drawing import by_block, finish, panels
from riebench.paper.job import PaperJob
from riebench.paper.recipes.steps import MEAN, OVERLAP, POSITION, measure_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "overlap"
COLUMNS = (
    Column(name="model"), Column(name="steps"), Column(name="run", title="model, steps"), Column(name="block"),
    Column(name="k"), Column(name="width"), Column(name="step"), Column(name="next"),
    Column(name="pair", title="step pair"), Column(name="n", title="prompts"),
    Column(name=POSITION, title="cosine", decimals=3, interval=True),
    Column(name=MEAN, title="cosine of spatial means", decimals=3, interval=True),
)  # fmt: skip
SHOWS = (
    "Cosine of the SAE codes of two adjacent steps, conditional half. `cosine` compares the codes position by position "
    "(mean over positions, then over prompts); `cosine_mean` compares their means over the picture. Positions without "
    "an active feature at one of the two steps are left out."
)


def make(job: PaperJob) -> Artefact:
    """Measure the overlap of codes, or read what was measured."""
    found = measure_steps(job)
    rows = tuple({**row, "run": f"{row['model']}, {row['steps']} steps", "pair": f"{row['step']}–{row['next']}"}
                 for row in found.rows_of(OVERLAP))  # fmt: skip
    views = tuple(
        View(title=title, down=("run", "pair"), across="block", cell=cell)
        for title, cell in (("Cosine at the same position", POSITION), ("Cosine of spatial means", MEAN))
    )
    table = Table(title="Feature overlap between adjacent steps", columns=COLUMNS, rows=rows, views=views)
    return Artefact(
        name=NAME, title="Feature overlap between adjacent steps", shows=SHOWS, tables=(table,),
        settings=found.settings, notes=_notes(list(rows)),
        alt="Cosine of codes of adjacent steps against the step, one line a block, one panel a model.",
    )  # fmt: skip


def _notes(rows: list[Row]) -> tuple[str, ...]:
    """Return a sentence on each run, from its first step pair to its last."""
    notes = []
    for run in values_of(rows, "run"):
        block_texts = []
        for block in values_of(rows, "block"):
            block_rows = select_rows(rows, run=run, block=block)
            ends = [
                f"{row[POSITION]:.3f} ({row['pair']})"
                for row in (block_rows[0], block_rows[-1])
                if row[POSITION] is not None
            ]
            block_texts.append(f"`{block}` {' to '.join(dict.fromkeys(ends))}")
        notes.append(f"{run}, from the first pair to the last: {'; '.join(block_texts)}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw one panel for each run.

    Lines are solid for codes compared position by position, dashed for codes compared by spatial means.
    """
    rows = list(artefact.table().rows)
    runs = values_of(rows, "run")
    for axes, run in zip(panels(figure, max(1, len(runs))), runs or [None], strict=True):
        run_rows = select_rows(rows, run=run)
        by_block(axes, run_rows, "step", POSITION)
        by_block(axes, run_rows, "step", MEAN, dashed=True)
        axes.set_title(str(run or "no run has two steps"), fontsize=8)
        axes.set_xlabel("first step of the pair")
    finish(figure, "cosine (dashed: of spatial means)")

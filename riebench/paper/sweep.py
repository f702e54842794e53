"""Explained variance over k and width, on held-out updates of one-step pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riebench.blocks import BLOCKS
from riebench.models.presets import is_shipped
from riebench.paper.artefact import Artefact, Column, Row, Table, View, picked, values_of
from riebench.paper.drawing import finish, line, number, panels
from riebench.paper.generating import CONDITIONAL, chosen_blocks, watch
from riebench.paper.job import Noise, PaperJob
from riebench.paper.said import HASH, Said, model_words, prompt_words, run_words, runs_key, sae_key
from riebench.paper.sources import given
from riebench.paper.variance import VarianceMeter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder

NAME = "explained-variance"
COLUMNS = (
    Column(name="block"), Column(name="width"), Column(name="k"), Column(name="n", title="prompts"),
    Column(name="tokens"), Column(name="ev_dim", decimals=3, interval=True),
    Column(name="ev_pooled", decimals=3, interval=True), Column(name="l0", decimals=2),
    Column(name="dead", title="dead, %", decimals=1, scale=100), Column(name="sae", title="SAE"),
)  # fmt: skip
SHOWS = (
    "SAEs of several k and widths on updates of one-step pictures that they were not trained on. `ev_dim` is the mean "
    "over dimensions of 1 - Var(x - x^) / (Var(x) + 1e-8), `ev_pooled` is 1 - sum Var(x - x^) / sum Var(x), both over "
    "all positions of all prompts. `l0` is the mean number of active features at a position, `dead` the share of "
    "features active at none. One SAE was trained per size, so the intervals say nothing about another training."
)
HEADS = {
    "ev_pooled": "Pooled explained variance", "ev_dim": "Explained variance, mean over dimensions",
    "dead": "Features active at no measured position, %",
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """An SAE that is to be measured.

    Attributes:
        block: where.
        key: what it is told apart by; known before it is trained.
        get: reads or trains it.
    """

    block: str
    key: dict[str, Any]
    get: Callable[[], SparseAutoencoder]


def make(job: PaperJob) -> Artefact:
    """Measures, or reads what was measured."""
    model = job.load(job.few_steps, 1)
    blocks = chosen_blocks(job, model, BLOCKS)
    candidates, words = _candidates(job, model, blocks)
    runs = job.runs(job.texts(model.spec))
    told = {"measure": 1, "model": model.spec.identity, "runs": runs_key(runs)}
    keys = [{**told, "block": one.block, "sae": one.key} for one in candidates]
    rows = tuple(
        row for rows in job.parts(NAME, keys, partial(_measured, job, model, candidates, runs)) for row in rows
    )
    views = tuple(View(title=f"{title}, by size and block", down=("width", "k"), across="block", cell=cell)
                  for cell, title in HEADS.items())  # fmt: skip
    settings: Said = {
        "model": f"{model_words(model.spec)}, {run_words(model.spec)}", "SAEs": words,
        **prompt_words(job, model.spec, runs),
    }  # fmt: skip
    return Artefact(
        name=NAME, title="Explained variance over k and width", shows=SHOWS,
        tables=(Table(title="Explained variance over k and width", columns=COLUMNS, rows=rows, views=views),),
        settings=settings, notes=_notes(rows),
        alt="Pooled explained variance against k, one line a width, one panel a block.",
    )  # fmt: skip


def _candidates(job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> tuple[list[Candidate], str]:
    if job.sae is None and job.sweep is None and is_shipped(model.spec):
        from riebench.paper.training import Sweep, sizes

        sweep = Sweep(job, model, blocks)
        found = [Candidate(block, sweep.key(block, *size), partial(sweep.get, block, *size))
                 for block in blocks for size in sizes()]  # fmt: skip
        return found, sweep.words
    saes = given(job, model, blocks)
    found = [Candidate(one.block, sae_key({one.block: one.sae}), partial(_itself, one.sae)) for one in saes]
    return found, f"{len(found)} given; their hashes are in the column `sae`"


def _itself(sae: SparseAutoencoder) -> SparseAutoencoder:
    return sae


def _measured(
    job: PaperJob, model: LoadedModel, candidates: Sequence[Candidate], runs: Sequence[Noise], missing: list[int]
) -> Iterator[tuple[int, list[Row]]]:
    names = list(dict.fromkeys(run.name for run in runs))
    meters = {place: SizeMeter(candidates[place].get(), len(names)) for place in missing}

    @torch.inference_mode()
    def take(site: str, _step: int, half: str, first: int, values: Tensor) -> None:
        for place, meter in meters.items():
            if candidates[place].block == site and half == CONDITIONAL:
                for row, run in enumerate(runs[first : first + len(values)]):
                    meter.add(names.index(run.name), values[row])

    blocks = tuple(dict.fromkeys(candidates[place].block for place in missing))
    watch(job, model, runs, blocks, take, "held-out updates")
    for place, meter in meters.items():
        yield place, [{"block": candidates[place].block, "n": len(names), **meter.row(names)}]


class SizeMeter:
    """Explained variance, active and dead features of one SAE.

    Args:
        sae: what is measured.
        prompts: how many there are.
    """

    def __init__(self, sae: SparseAutoencoder, prompts: int) -> None:
        self._sae, self._variance = sae, VarianceMeter(prompts, sae.d)
        self._active = torch.zeros(sae.n, dtype=torch.long)

    def add(self, prompt: int, x: Tensor) -> None:
        """Takes positions [P, d] of one prompt in."""
        codes = self._sae.encode(x)
        self._active += (codes != 0).sum(0).cpu()
        self._variance.add(prompt, x, x - self._sae.decode(codes, x))

    def row(self, names: Sequence[str]) -> Row:
        """Everything measured."""
        figures = self._variance.figures(names)
        return {
            "k": self._sae.k, "width": self._sae.n, **figures,
            "l0": float(self._active.sum() / self._variance.tokens.sum()),
            "dead": float((self._active == 0).double().mean()), "sae": self._sae.sha256[:HASH],
        }  # fmt: skip


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    for block in values_of(rows, "block"):
        mine = picked(list(rows), block=block)
        ends = [
            min(mine, key=lambda row: number(row, "ev_pooled")),
            max(mine, key=lambda row: number(row, "ev_pooled")),
        ]
        told = [f"{number(row, 'ev_pooled'):.3f} (width {row['width']}, k {row['k']})" for row in ends]
        notes.append(f"`{block}`: pooled explained variance from {told[0]} to {told[1]}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """One panel a block, one line a width, k on a logarithmic axis."""
    rows = list(artefact.table().rows)
    blocks = values_of(rows, "block")
    ks = sorted({number(row, "k") for row in rows if row["k"] is not None})
    widths = sorted({number(row, "width") for row in rows})
    for axes, block in zip(panels(figure, len(blocks)), blocks, strict=True):
        for index, width in enumerate(widths):
            mine = sorted((row for row in rows if row["block"] == block and row["width"] == width and row["k"]),
                          key=lambda row: number(row, "k"))  # fmt: skip
            line(axes, mine, "k", "ev_pooled", color=f"C{index}", dashed=False, label=f"width {width:g}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [f"{k:g}" for k in ks])
        axes.set_xlabel("k")
        axes.set_title(str(block), fontsize=9)
    finish(figure, "pooled explained variance")

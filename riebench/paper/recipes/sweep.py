"""Explained variance over k and width, on held-out updates of one-step pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riebench.blocks import default_blocks
from riebench.models.presets import is_shipped
from riebench.paper.artefact import Artefact, Column, Row, Table, View, picked, values_of
from riebench.paper.drawing import finish, line, number, panels
from riebench.paper.job import (
    HASH,
    Noise,
    PaperJob,
    Said,
    given,
    model_words,
    prompt_words,
    run_words,
    runs_key,
    sae_key,
)
from riebench.paper.measure import CONDITIONAL, VarianceMeter, chosen_blocks, watch
from riebench.saes.formats import folder_name, load_sae
from riebench.store.records import noise_seed
from riebench.training.batches import DataPass, InMemory
from riebench.training.many import train_many
from riebench.training.topk import SaeTraining
from riebench.utils.files import content_digest

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
    blocks = chosen_blocks(job, model, default_blocks())
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


SPARSITIES = (4, 8, 16, 32)
WIDTHS = (128, 384, 768)
CAPTIONS = 1200
SEED = 73
PLAN = DataPass(batch_size=512, epochs=3, buffer=131_072, held_out=4096, seed=SEED)
RATE = 3e-3
AUXK, DEAD_AFTER = 64, 50_000
_CHECKPOINT = "training.pt"


def configuration(k: int, width: int) -> SaeTraining:
    """How one of them is trained; the steps follow from the data."""
    return SaeTraining(
        features=width, k=k, auxk=min(AUXK, width), batch_size=PLAN.batch_size, learning_rate=RATE,
        dead_after=DEAD_AFTER, seed=SEED,
    )  # fmt: skip


def sizes() -> list[tuple[int, int]]:
    """Width and k of each SAE of a block."""
    return [(width, k) for width in WIDTHS for k in SPARSITIES if k <= width]


class Sweep:
    """SAEs that are trained when first asked for, and read from the disk after that.

    Args:
        job: says where they are kept.
        model: generates in one step.
        blocks: attention blocks.
    """

    def __init__(self, job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> None:
        self._job, self._model, self._blocks = job, model, tuple(blocks)
        self._updates: dict[str, Tensor] = {}

    @property
    def stated(self) -> dict[str, Any]:
        """What all of them have in common, as a key."""
        return {"model": self._model.spec.identity, "captions": CAPTIONS, "plan": asdict(PLAN), "seed": SEED}

    def key(self, block: str, width: int, k: int) -> dict[str, Any]:
        """Everything that moves one SAE's numbers."""
        return {**self.stated, "block": block, "config": asdict(configuration(k, width))}

    @property
    def words(self) -> str:
        """The recipe in a line."""
        return (
            f"trained here on 1-step updates of {CAPTIONS} captions of training scenes: batch {PLAN.batch_size}, "
            f"{PLAN.epochs} epochs, Adam at {RATE:g} falling over the last fifth, auxiliary loss with {AUXK} features "
            f"idle for {DEAD_AFTER} positions, seed {SEED}"
        )

    @cached_property
    def folder(self) -> Path:
        """Where they are kept."""
        widest = asdict(configuration(SPARSITIES[0], WIDTHS[-1]))
        return self._job.work / "saes" / content_digest({**self.stated, "config": widest})[:16]

    def get(self, block: str, width: int, k: int) -> SparseAutoencoder:
        """One of them; trains all of its block if it is not there."""
        place = self._place(block, width, k)
        if not place.exists():
            self._train(block)
        return load_sae(place).eval().to(self._model.device)

    def _place(self, block: str, width: int, k: int) -> Path:
        name = folder_name(block, k, width, auxk=min(AUXK, width), batch=PLAN.batch_size, rate=RATE)
        return self.folder / name / "final"

    def _train(self, block: str) -> None:
        data = self._data(block)
        state = self.folder / block / _CHECKPOINT
        trained = train_many(
            data, [configuration(k, width) for width, k in sizes()], PLAN, device=self._model.device,
            name=f"{len(sizes())} SAEs for {block}", checkpoint=state,
        )  # fmt: skip
        for (width, k), sae in zip(sizes(), trained, strict=True):
            sae.save(self._place(block, width, k), block)
        state.unlink(missing_ok=True)

    def _data(self, block: str) -> InMemory:
        """Positions of one-step pictures of training scenes; all blocks are collected at once."""
        if not self._updates:
            wanted = [b for b in self._blocks if not all(self._place(b, w, k).exists() for w, k in sizes())]
            parts: dict[str, list[Tensor]] = {b: [] for b in wanted}

            def take(site: str, _step: int, _half: str, _first: int, values: Tensor) -> None:
                parts[site].append(values.half().cpu())

            watch(self._job, self._model, training_runs(), wanted, take, "collecting updates")
            self._updates = {b: torch.cat(some) for b, some in parts.items()}
        updates = self._updates[block]
        return InMemory(updates.flatten(0, 1), together=updates.shape[1])


def training_runs() -> list[Noise]:
    """Captions of scenes that may be trained on; never those that are measured on."""
    from riebench.toyworld.captions import caption
    from riebench.toyworld.scenes import random_scene

    rng = random.Random(SEED)
    texts = [caption(random_scene(rng, held_out=False), rng) for _ in range(CAPTIONS)]
    return [Noise(f"training-{i}", text, 0, noise_seed(f"paper-training-{i}", 0)) for i, text in enumerate(texts)]

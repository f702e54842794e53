"""Explained variance over k and width, on held-out updates of one-step pictures.

SAEs are those that the user names. On the toy world, without any, a `TrainedSweep` trains some of every size first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riebench.models.presets import is_shipped
from riebench.paper.artefact import Artefact, ArtefactSettings, Column, Row, Table, View, select_rows, values_of
from riebench.paper.drawing import finish, line, number, panels
from riebench.paper.job import (
    HASH_DIGITS,
    PaperJob,
    PromptSample,
    load_block_saes,
    model_text,
    prompt_settings,
    sae_key,
    samples_key,
    steps_text,
)
from riebench.paper.measure import (
    CONDITIONAL,
    SaeStep,
    VarianceMeter,
    select_blocks,
    stream_readings,
    stream_updates,
)
from riebench.saes.formats import folder_name, load_sae
from riebench.store.records import noise_seed
from riebench.training.batches import DataPass, InMemoryPositions
from riebench.training.many import train_many
from riebench.training.settings import SaeTraining, recipe_settings
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
HEADS = {
    "ev_pooled": "Pooled explained variance", "ev_dim": "Explained variance, mean over dimensions",
    "dead": "Features active at no measured position, %",
}  # fmt: skip
SHOWS = (
    "SAEs of several k and widths on updates of one-step pictures that they were not trained on. `ev_dim` is the mean "
    "over dimensions of 1 - Var(x - x^) / (Var(x) + 1e-8), `ev_pooled` is 1 - sum Var(x - x^) / sum Var(x), both over "
    "all positions of all prompts. `l0` is the mean number of active features at a position, `dead` the share of "
    "features active at none. One SAE was trained per size, so the intervals say nothing about another training."
)
SPARSITIES = (4, 8, 16, 32)
WIDTHS = (128, 384, 768)
CAPTIONS = 1200
SEED = 73
PLAN = DataPass(batch_size=512, epochs=3, buffer=131_072, held_out=4096, seed=SEED)
LEARNING_RATE = 3e-3
AUXK, DEAD_AFTER = 64, 50_000
CHECKPOINT = "training.pt"


@dataclass(frozen=True)
class Candidate:
    """SAE that is to be measured.

    Attributes:
        block: short name of its block.
        key: its part of the cache key; known before it is trained.
        get: loads or trains it.
    """

    block: str
    key: dict[str, Any]
    get: Callable[[], SparseAutoencoder]


def make(job: PaperJob) -> Artefact:
    """Measure every SAE, or read what was measured."""
    model = job.load(job.few_step_model, 1)
    blocks = select_blocks(job, model)
    candidates, words = _candidates(job, model, blocks)
    samples = job.samples(job.named_prompts(model.spec))
    shared_key = {"measure": 1, "model": model.spec.identity, "runs": samples_key(samples)}
    keys = [{**shared_key, "block": one.block, "sae": one.key} for one in candidates]
    rows = tuple(
        row for rows in job.cached_parts(NAME, keys, partial(_measure, job, model, candidates, samples)) for row in rows
    )
    views = tuple(View(title=f"{title}, by size and block", down=("width", "k"), across="block", cell=cell)
                  for cell, title in HEADS.items())  # fmt: skip
    settings: ArtefactSettings = {
        "model": f"{model_text(model.spec)}, {steps_text(model.spec)}", "SAEs": words,
        **prompt_settings(job, model.spec, samples),
    }  # fmt: skip
    return Artefact(
        name=NAME, title="Explained variance over k and width", shows=SHOWS,
        tables=(Table(title="Explained variance over k and width", columns=COLUMNS, rows=rows, views=views),),
        settings=settings, notes=_notes(rows),
        alt="Pooled explained variance against k, one line a width, one panel a block.",
    )  # fmt: skip


def _candidates(job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> tuple[list[Candidate], str]:
    """Return the SAEs to measure, and their description for the settings."""
    if job.sae is None and job.sweep is None and is_shipped(model.spec):
        sweep = TrainedSweep(job, model, blocks)
        found = [Candidate(block, sweep.key(block, *size), partial(sweep.get, block, *size))
                 for block in blocks for size in sae_sizes()]  # fmt: skip
        return found, sweep.description
    saes = load_block_saes(job, model, blocks)
    found = [Candidate(one.block, sae_key({one.block: one.sae}), partial(_return_sae, one.sae)) for one in saes]
    return found, f"{len(found)} given; their hashes are in the column `sae`"


def _return_sae(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return an SAE that is loaded already."""
    return sae


def _measure(
    job: PaperJob,
    model: LoadedModel,
    candidates: Sequence[Candidate],
    samples: Sequence[PromptSample],
    missing: list[int],
) -> Iterator[tuple[int, list[Row]]]:
    """Measure the SAEs that are missing; yields the index and the row of each."""
    names = list(dict.fromkeys(sample.name for sample in samples))
    meters = {place: SizeMeter(candidates[place].get(), len(names)) for place in missing}

    @torch.inference_mode()
    def take(number: int, values: SaeStep) -> None:
        if values.half == CONDITIONAL:
            for row, sample in enumerate(samples[values.first : values.first + len(values.x)]):
                meters[missing[number]].add(names.index(sample.name), values.x[row], values.target[row], values.time)

    saes = [(candidates[place].block, meters[place].sae) for place in missing]
    stream_readings(job, model, samples, saes, take, "held-out updates")
    for place, meter in meters.items():
        yield place, [{"block": candidates[place].block, "n": len(names), **meter.row(names)}]


class SizeMeter:
    """Explained variance, active and dead features of one SAE.

    Args:
        sae: the measured SAE.
        prompts: number of prompts.

    Attributes:
        sae: as given.
    """

    def __init__(self, sae: SparseAutoencoder, prompts: int) -> None:
        self.sae, self._variance = sae, VarianceMeter(prompts, sae.d_out)
        self._active = torch.zeros(sae.n, dtype=torch.long)

    def add(self, prompt: int, x: Tensor, target: Tensor, time: Tensor | None = None) -> None:
        """Add positions of one prompt.

        Args:
            prompt: its index.
            x: what the SAE reads, [P, d].
            target: what it reconstructs, likewise.
            time: the denoiser's time, for SAEs that need it.
        """
        codes = self.sae.encode(x, time)
        self._active += (codes != 0).sum(0).cpu()
        self._variance.add(prompt, target, target - self.sae.decode(codes, x, time))

    def row(self, names: Sequence[str]) -> Row:
        """Return all measurements as a row.

        Args:
            names: of the prompts, which are resampled.
        """
        figures = self._variance.estimates(names)
        return {
            "k": self.sae.k, "width": self.sae.n, **figures,
            "l0": float(self._active.sum() / self._variance.tokens.sum()),
            "dead": float((self._active == 0).double().mean()), "sae": self.sae.sha256[:HASH_DIGITS],
        }  # fmt: skip


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a sentence on the lowest and highest explained variance of each block."""
    notes = []
    for block in values_of(rows, "block"):
        block_rows = select_rows(list(rows), block=block)
        ends = [
            min(block_rows, key=lambda row: number(row, "ev_pooled")),
            max(block_rows, key=lambda row: number(row, "ev_pooled")),
        ]
        texts = [f"{number(row, 'ev_pooled'):.3f} (width {row['width']}, k {row['k']})" for row in ends]
        notes.append(f"`{block}`: pooled explained variance from {texts[0]} to {texts[1]}.")
    return tuple(notes)


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw one panel for each block and one line for each width.

    k is on a logarithmic axis.
    """
    rows = list(artefact.table().rows)
    blocks = values_of(rows, "block")
    ks = sorted({number(row, "k") for row in rows if row["k"] is not None})
    widths = sorted({number(row, "width") for row in rows})
    for axes, block in zip(panels(figure, len(blocks)), blocks, strict=True):
        for index, width in enumerate(widths):
            width_rows = sorted((row for row in rows if row["block"] == block and row["width"] == width and row["k"]),
                          key=lambda row: number(row, "k"))  # fmt: skip
            line(axes, width_rows, "k", "ev_pooled", color=f"C{index}", dashed=False, label=f"width {width:g}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [f"{k:g}" for k in ks])
        axes.set_xlabel("k")
        axes.set_title(str(block), fontsize=9)
    finish(figure, "pooled explained variance")


def training_config(k: int, width: int) -> SaeTraining:
    """Return the training configuration of one SAE of the sweep.

    The number of steps follows from the data.
    """
    return recipe_settings(
        "published", features=width, k=k, auxk=min(AUXK, width), batch_size=PLAN.batch_size,
        learning_rate=LEARNING_RATE, dead_after=DEAD_AFTER, seed=SEED, decay=0.2,
    )  # fmt: skip


def settings_key(config: SaeTraining) -> dict[str, Any]:
    """Return everything of a training configuration that its SAE depends on."""
    return config.stored_settings | {"kind": config.kind, "decay": config.decay}


def sae_sizes() -> list[tuple[int, int]]:
    """Return width and k of each SAE of a block."""
    return [(width, k) for width in WIDTHS for k in SPARSITIES if k <= width]


class TrainedSweep:
    """SAEs of every size, trained when first requested and kept on disk.

    Args:
        job: sets the folder.
        model: generates in one step.
        blocks: attention blocks.
    """

    def __init__(self, job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> None:
        self._job, self._model, self._blocks = job, model, tuple(blocks)
        self._updates: dict[str, Tensor] = {}

    @property
    def shared_key(self) -> dict[str, Any]:
        """Cache key of everything that the SAEs have in common."""
        return {"model": self._model.spec.identity, "captions": CAPTIONS, "plan": asdict(PLAN), "seed": SEED}

    def key(self, block: str, width: int, k: int) -> dict[str, Any]:
        """Return the cache key of one SAE: everything that affects its numbers."""
        return {**self.shared_key, "block": block, "config": settings_key(training_config(k, width))}

    @property
    def description(self) -> str:
        """Training recipe in a line."""
        return (
            f"trained here on 1-step updates of {CAPTIONS} captions of training scenes: batch {PLAN.batch_size}, "
            f"{PLAN.epochs} epochs, Adam at {LEARNING_RATE:g} falling over the last fifth, auxiliary loss with {AUXK} "
            f"features idle for {DEAD_AFTER} positions, seed {SEED}"
        )

    @cached_property
    def folder(self) -> Path:
        """Folder of the SAEs."""
        widest = settings_key(training_config(SPARSITIES[0], WIDTHS[-1]))
        return self._job.work / "saes" / content_digest({**self.shared_key, "config": widest})[:16]

    def get(self, block: str, width: int, k: int) -> SparseAutoencoder:
        """Load one SAE; trains all SAEs of its block if it is not on disk."""
        place = self._sae_path(block, width, k)
        if not place.exists():
            self._train(block)
        return load_sae(place).eval().to(self._model.device)

    def _sae_path(self, block: str, width: int, k: int) -> Path:
        """Return the folder of one SAE."""
        name = folder_name(block, k, width, auxk=min(AUXK, width), batch=PLAN.batch_size, rate=LEARNING_RATE)
        return self.folder / name / "final"

    def _train(self, block: str) -> None:
        """Train and save all SAEs of a block; a stopped training resumes."""
        data = self._data(block)
        state = self.folder / block / CHECKPOINT
        trained = train_many(
            data, [training_config(k, width) for width, k in sae_sizes()], PLAN, device=self._model.device,
            name=f"{len(sae_sizes())} SAEs for {block}", checkpoint=state,
        )  # fmt: skip
        for (width, k), sae in zip(sae_sizes(), trained, strict=True):
            sae.save(self._sae_path(block, width, k), block)
        state.unlink(missing_ok=True)

    def _data(self, block: str) -> InMemoryPositions:
        """Return the block's updates of one-step pictures of training scenes.

        Updates of all blocks are collected at once.
        """
        if not self._updates:
            missing = [b for b in self._blocks if not all(self._sae_path(b, w, k).exists() for w, k in sae_sizes())]
            parts: dict[str, list[Tensor]] = {b: [] for b in missing}

            def take(site: str, _step: int, _half: str, _first: int, values: Tensor) -> None:
                parts[site].append(values.half().cpu())

            stream_updates(self._job, self._model, training_samples(), missing, take, "collecting updates")
            self._updates = {b: torch.cat(some) for b, some in parts.items()}
        updates = self._updates[block]
        return InMemoryPositions(updates.flatten(0, 1), rows_per_picture=updates.shape[1])


def training_samples() -> list[PromptSample]:
    """Return samples of training scenes, for the SAEs' training data.

    None of these scenes is held out, so that no measured prompt is among them.
    """
    from riebench.toyworld.captions import caption
    from riebench.toyworld.scenes import random_scene

    rng = random.Random(SEED)
    texts = [caption(random_scene(rng, held_out=False), rng) for _ in range(CAPTIONS)]
    return [
        PromptSample(f"training-{i}", text, 0, noise_seed(f"paper-training-{i}", 0)) for i, text in enumerate(texts)
    ]

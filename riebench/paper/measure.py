"""Generating, ablating blocks and comparing, as measured artefacts share it.

The first functions generate pictures, or hand over the blocks' updates, or what SAEs read of them, step by step.
`ablate_block` and `reconstruction_edit` change what a block adds to the residual stream. `Differences` compares
pictures with clean ones of the same samples, and `VarianceMeter` computes explained variance with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, cluster_counts, estimate, percentile_interval
from riebench.blocks import RESIDUAL, kind, usual_blocks
from riebench.errors import RiebenchError, near_match
from riebench.generation.edits import Edit, LiveSite
from riebench.generation.generator import Generator, NoDecodeGenerator
from riebench.generation.hooks import hooked, known_sites
from riebench.generation.listeners import Listener, Listeners
from riebench.generation.memory import automatic_batch_size
from riebench.generation.trace import capture
from riebench.models.loading import LoadedModel
from riebench.models.presets import is_shipped, judge_for
from riebench.models.spec import ModelSpec
from riebench.paper.artefact import HIGH, LOW, ArtefactSettings, Column, Row, estimate_cells
from riebench.paper.job import PaperJob, PromptSample
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.judge import kept_share
from riebench.scoring.metrics.lpips import BACKBONE
from riebench.scoring.metrics.networks import Networks
from riebench.utils.terminal import ProgressBar

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
NO_UPDATE, SKIP_ONLY = "no update", "skip path only"
LPIPS, CHANGED, PIXEL_MEAN, PIXEL_MEDIAN = "lpips", "changed", "pixel_mean", "pixel_median"
EV_NAMES = ("ev_dim", "ev_pooled")
LPIPS_COLUMN = Column(name=LPIPS, title="LPIPS", decimals=3, interval=True)
CHANGED_COLUMN = Column(name=CHANGED, title="attributes changed, %", decimals=1, scale=100, interval=True)
LPIPS_BATCH = 16
"""Number of pictures that LPIPS compares at a time."""
VARIANCE_FLOOR = 1e-8
"""Added to the variance of a dimension, so that a constant one causes no division by zero."""
POSITIONS_PER_BATCH = 8192
REPLICATES_PER_BATCH = 500
UpdateCallback = Callable[[str, int, str, int, Tensor], None]
"""Called with block, step, guidance half, index of the first sample, and values, float32 [B, positions, channels]."""


@dataclass(frozen=True)
class SaeStep:
    """One step of a batch, as an SAE reads it.

    Attributes:
        step: from 0.
        half: guidance half.
        first: index of the batch's first sample.
        x: what the SAE reads, float32 [B, positions, channels].
        target: what it reconstructs, likewise.
        time: the denoiser's time.
    """

    step: int
    half: str
    first: int
    x: Tensor
    target: Tensor
    time: Tensor | None = None


ReadingCallback = Callable[[int, SaeStep], None]
"""Called with the place of an SAE among those asked for, and one step of it."""
Pictures = NDArray[np.uint8]
Floats = NDArray[np.float64]


def batches(
    job: PaperJob, model: LoadedModel, samples: Sequence[PromptSample], label: str
) -> Iterator[tuple[int, list[PromptSample]]]:
    """Split samples into the batches that are generated together.

    Shows a progress bar.

    Args:
        job: sets the batch size.
        model: sets the automatic batch size, by its memory.
        samples: to be generated.
        label: of the bar.

    Yields:
        Index of the batch's first sample, and the batch.
    """
    size = job.batch_size or automatic_batch_size(model)
    firsts = range(0, len(samples), size)
    for first in ProgressBar(firsts, title=label, leave=False):
        yield first, list(samples[first : first + size])


def stream_updates(
    job: PaperJob,
    model: LoadedModel,
    samples: Sequence[PromptSample],
    blocks: Sequence[str],
    take: UpdateCallback,
    label: str,
) -> None:
    """Pass every update of some blocks to a callback, step by step.

    Nothing is kept.

    Args:
        job: sets the batch size.
        model: generates.
        samples: to be generated.
        blocks: attention blocks, by short name.
        take: receives the updates.
        label: of the progress bar.
    """
    generator = NoDecodeGenerator(model)
    unconditional = (UNCONDITIONAL,) if model.guided else ()
    for first, some in batches(job, model, samples, label):
        seen: dict[str, int] = {}

        def sink(site: str, values: Tensor, first: int = first, seen: dict[str, int] = seen) -> None:
            step = seen.get(site, 0)
            seen[site] = step + 1
            halves = (*unconditional, CONDITIONAL)
            for half, part in zip(halves, values.chunk(len(halves)), strict=True):
                take(site, step, half, first, part.float().flatten(2).transpose(1, 2))

        # Without guidance options the capture passes both halves on.
        with capture(model.denoiser, blocks, steps=model.spec.steps, sink=sink):
            generator.generate([sample.prompt for sample in some], [sample.seed for sample in some])


def stream_readings(
    job: PaperJob, model: LoadedModel, samples: Sequence[PromptSample],
    saes: Sequence[tuple[str, SparseAutoencoder]], take: ReadingCallback, label: str,
) -> None:  # fmt: skip
    """Pass what some SAEs read and reconstruct to a callback, step by step.

    Nothing is kept.

    Args:
        job: sets the batch size.
        model: generates.
        samples: to be generated.
        saes: short name of an attention block and its SAE; a block may have several.
        take: receives the values.
        label: of the progress bar.
    """
    generator = NoDecodeGenerator(model)
    halves = (UNCONDITIONAL, CONDITIONAL) if model.guided else (CONDITIONAL,)
    for first, some in batches(job, model, samples, label):
        seen = [0] * len(saes)

        def pass_on(
            place: int, read: Tensor, target: Tensor, time: Tensor | None, first: int = first, seen: list[int] = seen
        ) -> None:
            step, seen[place] = seen[place], seen[place] + 1
            parts = zip(halves, read.chunk(len(halves)), target.chunk(len(halves)), strict=True)
            for half, x, wanted in parts:
                take(place, SaeStep(step, half, first, _positions_first(x), _positions_first(wanted), time))

        wanted = Listeners([
            Listener(block, sae.reads, sae.signal or "update", partial(pass_on, place))
            for place, (block, sae) in enumerate(saes)
        ]).capture  # fmt: skip
        # Without guidance options the capture passes both halves on.
        with capture(model.denoiser, wanted.sites, keep=wanted.keep, steps=model.spec.steps, sink=wanted.sink):
            generator.generate([sample.prompt for sample in some], [sample.seed for sample in some])


def _positions_first(values: Tensor) -> Tensor:
    return values.float().flatten(2).transpose(1, 2)


def generate_pictures(
    job: PaperJob,
    generator: Generator,
    samples: Sequence[PromptSample],
    label: str,
    *,
    edit: Edit | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Pictures:
    """Generate the pictures of some samples.

    Args:
        job: sets the batch size.
        generator: of the model.
        samples: to be generated.
        label: of the progress bar.
        edit: applied to all pictures.
        context: makes a context manager that is entered around each batch.

    Returns:
        Pictures, uint8 [samples, H, W, 3].
    """
    made = []
    for _, some in batches(job, generator.model, samples, label):
        edits = None if edit is None else [edit] * len(some)
        with context():
            made.append(generator.generate([r.prompt for r in some], [r.seed for r in some], edits=edits).images)
    return np.concatenate(made)


def select_blocks(job: PaperJob, model: LoadedModel, supported: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the blocks an artefact measures: those the user names, or all supported.

    Args:
        job: holds the blocks that the user names.
        model: must have them.
        supported: blocks that the artefact can measure; None for the usual blocks of the model.

    Returns:
        Blocks in the order of `supported`.

    Raises:
        RiebenchError: for a block that the model does not have or the artefact does not measure.
    """
    known = known_sites(model.denoiser)
    supported = usual_blocks(known, model.family.name) if supported is None else supported
    for block in job.blocks:
        if block not in known:
            raise RiebenchError(f"{model.spec.name} has no block {block!r}{near_match(block, known)}")
        if block not in supported:
            raise RiebenchError(f"block {block!r} is not measured here; measured are {', '.join(supported)}")
    return tuple(block for block in supported if not job.blocks or block in job.blocks)


def ablation_name(site: str) -> str:
    """Return the name of a block's ablation.

    An ablated attention block returns its input, an ablated residual block only its skip path.
    """
    return SKIP_ONLY if kind(site) == RESIDUAL else NO_UPDATE


@contextmanager
def ablate_block(denoiser: nn.Module, site: str, steps: int | None = None) -> Iterator[None]:
    """Ablate a block in every call of a denoiser made inside the `with` block.

    Both guidance halves are changed, see `ablation_name`.

    Args:
        denoiser: of a known model family.
        site: a block.
        steps: the number of steps there must be, if known.

    Raises:
        RiebenchError: if the block is missing, or the number of calls is wrong.
    """
    with hooked(denoiser, [site], steps) as hooks:
        place = hooks.find(site)
        hooks.after(place.module, place.bypass)
        yield


@dataclass(frozen=True)
class Reconstruction:
    """Site edit that replaces a block's update or output by its reconstruction.

    The reconstruction includes the bias.

    Attributes:
        sae: of the block.
    """

    sae: SparseAutoencoder

    def change(self, live: LiveSite) -> Tensor | None:
        """Return the change; see `riebench.generation.edits.LiveEdit.change`."""
        x = live.read(self.sae.reads)
        target = live.read(self.sae.signal or "update")
        return self.sae.decode(self.sae.encode(x, live.time), x, live.time) - target

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """Return the change of an SAE that reads updates.

        See `riebench.generation.edits.SiteEdit.delta`.
        """
        return self.sae.decode(self.sae.encode(live), live) - live

    @property
    def nbytes(self) -> int:
        """Bytes held for the edit; see `riebench.generation.edits.SiteEdit.nbytes`."""
        return 0


def reconstruction_edit(saes: dict[str, SparseAutoencoder]) -> Edit:
    """Return the edit that reconstructs some blocks' updates in both guidance halves."""
    return Edit(sites={block: Reconstruction(sae) for block, sae in saes.items()}, branch="all")


class Differences:
    """Distances of pictures from the clean ones of the same samples.

    Args:
        job: sets the device of the networks.
        spec: of the model; pictures of the toy world have a judge.
        samples: what each picture was generated from.
        clean: uint8 [samples, H, W, 3].
    """

    def __init__(self, job: PaperJob, spec: ModelSpec, samples: Sequence[PromptSample], clean: Pictures) -> None:
        self._networks = Networks(device=job.device, judge=judge_for(spec))
        self._samples, self._clean = samples, clean
        self._clean_attributes = self._networks.get("judge")(list(clean)) if is_judged(spec) else None

    def compare(self, changed: Pictures) -> Row:
        """Compute mean differences over prompts with their intervals.

        LPIPS; mean and median over pixels of the absolute difference summed over channels on [0, 1]; and, with a judge,
        the share of changed attributes among those that it can read in the clean picture.

        Args:
            changed: uint8 [samples, H, W, 3].
        """
        values: dict[str, NDArray[np.float64]] = {LPIPS: self._lpips(changed)}
        sums = np.abs(changed.astype(np.float64) - self._clean).sum(-1).reshape(len(changed), -1) / 255
        values |= {PIXEL_MEAN: sums.mean(1), PIXEL_MEDIAN: np.median(sums, axis=1)}
        if self._clean_attributes is not None:
            pairs = zip(self._clean_attributes, self._networks.get("judge")(list(changed)), strict=True)
            shares = (kept_share(was, now, was) for was, now in pairs)
            values[CHANGED] = np.array([np.nan if kept is None else 1 - kept for kept in shares])
        row: Row = {}
        for name, distances in values.items():
            row |= self._estimate(name, distances)
        return row

    def _lpips(self, changed: Pictures) -> NDArray[np.float64]:
        firsts = range(0, len(changed), LPIPS_BATCH)
        return np.concatenate(
            [
                self._networks.get("lpips").distance(self._clean[i : i + LPIPS_BATCH], changed[i : i + LPIPS_BATCH])
                for i in firsts
            ]
        )

    def _estimate(self, name: str, values: NDArray[np.float64]) -> Row:
        by_prompt: dict[str, list[float]] = {}
        for sample, value in zip(self._samples, values, strict=True):
            if np.isfinite(value):
                by_prompt.setdefault(sample.name, []).append(float(value))
        return estimate_cells(name, estimate({"prompts": by_prompt}, bounds=(0, None)))


def is_judged(spec: ModelSpec) -> bool:
    """Check that a judge can read the attributes of a model's pictures.

    It can for the shipped toy models at their own size.
    """
    from riebench.scoring.metrics.judge import SIDE

    return is_shipped(spec) and spec.size == SIDE


def measure_settings(spec: ModelSpec) -> ArtefactSettings:
    """Return the networks behind the differences, for an artefact's settings."""
    if not is_judged(spec):
        return {"LPIPS": BACKBONE}
    from riebench.scoring.metrics.judge import identity

    return {"LPIPS": BACKBONE, "judge": identity(judge_for(spec))}


class VarianceMeter:
    """Running sums of activations and reconstruction errors, one row for each prompt.

    Args:
        prompts: number of prompts.
        width: of the activations.

    Attributes:
        tokens: positions added for each prompt, float64 [prompts].
    """

    def __init__(self, prompts: int, width: int) -> None:
        self.tokens = torch.zeros(prompts, dtype=torch.float64)
        # Sums and sums of squares: of the activations, then of the errors.
        self._sums = torch.zeros(4, prompts, width, dtype=torch.float64)

    def add(self, prompt: int, x: Tensor, left_over: Tensor) -> None:
        """Add positions of one prompt.

        Args:
            prompt: its index.
            x: activations, [P, width].
            left_over: error of their reconstruction, [P, width].
        """
        self.tokens[prompt] += len(x)
        for place, values in ((0, x), (2, left_over)):
            exact = values.double()
            self._sums[place, prompt] += exact.sum(0).cpu()
            self._sums[place + 1, prompt] += exact.square().sum(0).cpu()

    def add_reconstructed(
        self, prompt: int, x: Tensor, sae: SparseAutoencoder, target: Tensor | None = None, time: Tensor | None = None
    ) -> None:
        """Add positions of one prompt, with their reconstruction by an SAE.

        Args:
            prompt: its index.
            x: what the SAE reads, [P, width].
            sae: reconstructs them.
            target: what it reconstructs, [P, width]; None for x itself.
            time: the denoiser's time, for SAEs that need it.
        """
        targets = x if target is None else target
        parts = zip(x.float().split(POSITIONS_PER_BATCH), targets.float().split(POSITIONS_PER_BATCH), strict=True)
        for part, wanted in parts:
            self.add(prompt, wanted, wanted - sae.decode(sae.encode(part, time), part, time))

    def estimates(self, names: Sequence[str]) -> Row:
        """Compute both explained variances with their intervals, and count the tokens.

        `ev_dim` is the mean over dimensions of 1 - Var(x - x^) / (Var(x) + 1e-8), `ev_pooled` is
        1 - sum of Var(x - x^) / sum of Var(x); population variances over all positions of all prompts.

        Args:
            names: of the prompts, which are resampled.
        """
        observed = self._explained_variance(np.ones((1, len(names))))
        counts = cluster_counts("prompts", tuple(names), REPLICATES, BOOTSTRAP_SEED)
        draws = np.concatenate(
            [
                self._explained_variance(counts[first : first + REPLICATES_PER_BATCH])
                for first in range(0, len(counts), REPLICATES_PER_BATCH)
            ]
        )
        row: Row = {"tokens": int(self.tokens.sum())}
        for column, name in enumerate(EV_NAMES):
            ends = percentile_interval(draws[:, column]) or (None, None)
            row |= {name: _finite_or_none(observed[0, column]), name + LOW: ends[0], name + HIGH: ends[1]}
        return row

    def _explained_variance(self, weights: Floats) -> Floats:
        """Compute both explained variances under weights of the prompts.

        Args:
            weights: [R, prompts].

        Returns:
            `ev_dim` and `ev_pooled`, [R, 2]; NaN where nothing varies.
        """
        tokens = weights @ self.tokens.numpy()[:, None]
        sums, squares, error_sums, error_squares = (weights @ part for part in self._sums.numpy())
        variance = np.maximum(squares / tokens - (sums / tokens) ** 2, 0)
        left = np.maximum(error_squares / tokens - (error_sums / tokens) ** 2, 0)
        total = variance.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            pooled = np.where(total > 0, 1 - left.sum(1) / total, np.nan)
        return np.stack([(1 - left / (variance + VARIANCE_FLOOR)).mean(1), pooled], axis=1)


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

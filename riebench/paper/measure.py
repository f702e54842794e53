"""Generating for measurements: updates as they come, or pictures with something changed inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, cluster_counts, estimate, interval
from riebench.blocks import RESIDUAL, kind
from riebench.errors import RiebenchError, near_match
from riebench.generation.edits import Edit
from riebench.generation.generator import Generator
from riebench.generation.hooks import find_site, hooked, known_sites
from riebench.generation.memory import automatic_batch_size
from riebench.generation.trace import capture
from riebench.models.loading import LoadedModel
from riebench.models.presets import is_shipped
from riebench.models.spec import ModelSpec
from riebench.paper.artefact import HIGH, LOW, Column, Row, estimated
from riebench.paper.job import Noise, PaperJob, Said
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.lpips import BACKBONE
from riebench.scoring.metrics.networks import Networks

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
Take = Callable[[str, int, str, int, Tensor], None]
"""Block, step, guidance half, first run of the batch, float32 values [B, positions, channels]."""
Pictures = NDArray[np.uint8]


class Unseen(Generator):
    """A generator whose pictures nobody looks at: decoding, half the work of one step, is left out."""

    def decode(self, latents: Tensor) -> Pictures:
        """No pictures, [B, 0, 0, 3].

        Raises:
            RiebenchError: if a latent is not finite.
        """
        if not bool(torch.isfinite(latents).all()):
            raise RiebenchError("the generation overflowed; use --dtype bfloat16 or float32")
        return np.zeros((len(latents), 0, 0, 3), np.uint8)


def batches(job: PaperJob, model: LoadedModel, runs: Sequence[Noise], label: str) -> Iterator[tuple[int, list[Noise]]]:
    """Runs as they are generated together, with the number of the first; shows a bar."""
    size = job.batch_size or automatic_batch_size(model)
    firsts = range(0, len(runs), size)
    for first in tqdm(firsts, desc=label, mininterval=2, leave=False, disable=None):
        yield first, list(runs[first : first + size])


def watch(
    job: PaperJob, model: LoadedModel, runs: Sequence[Noise], blocks: Sequence[str], take: Take, label: str
) -> None:
    """Hands over every update of some blocks, step by step; nothing is kept.

    Args:
        job: says how many pictures at a time.
        model: generates.
        runs: what.
        blocks: attention blocks, by short name.
        take: receives the updates.
        label: of the bar.
    """
    generator = Unseen(model)
    unconditional = (UNCONDITIONAL,) if model.guided else ()
    for first, some in batches(job, model, runs, label):
        seen: dict[str, int] = {}

        def sink(site: str, values: Tensor, first: int = first, seen: dict[str, int] = seen) -> None:
            step = seen.get(site, 0)
            seen[site] = step + 1
            halves = (*unconditional, CONDITIONAL)
            for half, part in zip(halves, values.chunk(len(halves)), strict=True):
                take(site, step, half, first, part.float().flatten(2).transpose(1, 2))

        # Without a word about guidance the capture hands over both halves.
        with capture(model.denoiser, blocks, steps=model.spec.steps, sink=sink):
            generator.generate([run.prompt for run in some], [run.seed for run in some])


def pictures(
    job: PaperJob,
    generator: Generator,
    runs: Sequence[Noise],
    label: str,
    *,
    edit: Edit | None = None,
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Pictures:
    """All pictures of some runs, uint8 [runs, H, W, 3].

    Args:
        job: says how many at a time.
        generator: of the model.
        runs: what.
        label: of the bar.
        edit: the same for all pictures.
        inside: entered anew around each batch.
    """
    made = []
    for _, some in batches(job, generator.model, runs, label):
        edits = None if edit is None else [edit] * len(some)
        with inside():
            made.append(generator.generate([r.prompt for r in some], [r.seed for r in some], edits=edits).images)
    return np.concatenate(made)


def chosen_blocks(job: PaperJob, model: LoadedModel, usual: Sequence[str]) -> tuple[str, ...]:
    """The blocks an artefact looks at: those named by the user, or the usual ones.

    Args:
        job: says what the user named.
        model: must have them.
        usual: those the artefact looks at.

    Raises:
        RiebenchError: for one that the model does not have or the artefact does not look at.
    """
    known = known_sites(model.denoiser)
    for block in job.blocks:
        if block not in known:
            raise RiebenchError(f"{model.spec.name} has no block {block!r}{near_match(block, known)}")
        if block not in usual:
            raise RiebenchError(f"block {block!r} is not measured here; measured are {', '.join(usual)}")
    return tuple(block for block in usual if not job.blocks or block in job.blocks)


NO_UPDATE, SKIP_ONLY = "no update", "skip path only"


def change_of(site: str) -> str:
    """How a block's part is taken away: an attention block gives its input back, a residual block its skip path."""
    return SKIP_ONLY if kind(site) == RESIDUAL else NO_UPDATE


@contextmanager
def without(denoiser: nn.Module, site: str, steps: int | None = None) -> Iterator[None]:
    """Take a block's part away in every call of a denoiser made inside the `with` block, in both guidance halves.

    Args:
        denoiser: of a known model family.
        site: a block.
        steps: the number of steps there must be, if known.

    Raises:
        RiebenchError: if the block is missing, or the number of calls is wrong.
    """
    place = find_site(denoiser, site)
    with hooked(denoiser, [site], steps) as hooks:
        hooks.after(place.module, place.bypass)
        yield


@dataclass(frozen=True)
class Reconstruction:
    """A site edit: the block's update becomes what its SAE makes of it, decoder bias included."""

    sae: SparseAutoencoder

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """See `riebench.generation.edits.SiteEdit.delta`."""
        return self.sae.decode(self.sae.encode(live), live) - live

    @property
    def nbytes(self) -> int:
        """See `riebench.generation.edits.SiteEdit.nbytes`."""
        return 0


def reconstructed(saes: dict[str, SparseAutoencoder]) -> Edit:
    """The edit that replaces some blocks' updates, in both guidance halves."""
    return Edit(sites={block: Reconstruction(sae) for block, sae in saes.items()}, branch="all")


LPIPS, CHANGED, PIXEL_MEAN, PIXEL_MEDIAN = "lpips", "changed", "pixel_mean", "pixel_median"
TOGETHER = 16
"""Pictures compared at a time."""
LPIPS_COLUMN = Column(name=LPIPS, title="LPIPS", decimals=3, interval=True)
CHANGED_COLUMN = Column(name=CHANGED, title="attributes changed, %", decimals=1, scale=100, interval=True)


class Differences:
    """Compares pictures with the clean ones of the same runs.

    Args:
        job: says where networks run.
        spec: of the model; the toy world's pictures have a judge.
        runs: what each picture was generated from.
        clean: uint8 [runs, H, W, 3].
    """

    def __init__(self, job: PaperJob, spec: ModelSpec, runs: Sequence[Noise], clean: Pictures) -> None:
        self._networks = Networks(device=job.device)
        self._runs, self._clean = runs, clean
        self._truth = self._networks.get("judge")(list(clean)) if is_judged(spec) else None

    def rows(self, changed: Pictures) -> Row:
        """Means over prompts with their intervals.

        Args:
            changed: uint8 [runs, H, W, 3].
        """
        values: dict[str, NDArray[np.float64]] = {LPIPS: self._lpips(changed)}
        sums = np.abs(changed.astype(np.float64) - self._clean).sum(-1).reshape(len(changed), -1) / 255
        values |= {PIXEL_MEAN: sums.mean(1), PIXEL_MEDIAN: np.median(sums, axis=1)}
        if self._truth is not None:
            pairs = zip(self._truth, self._networks.get("judge")(list(changed)), strict=True)
            values[CHANGED] = np.array([np.mean([was[name] != now[name] for name in was]) for was, now in pairs])
        row: Row = {}
        for name, its in values.items():
            row |= self._estimated(name, its)
        return row

    def _lpips(self, changed: Pictures) -> NDArray[np.float64]:
        firsts = range(0, len(changed), TOGETHER)
        return np.concatenate(
            [
                self._networks.get("lpips").distance(self._clean[i : i + TOGETHER], changed[i : i + TOGETHER])
                for i in firsts
            ]
        )

    def _estimated(self, name: str, values: NDArray[np.float64]) -> Row:
        by_prompt: dict[str, list[float]] = {}
        for run, value in zip(self._runs, values, strict=True):
            by_prompt.setdefault(run.name, []).append(float(value))
        return estimated(name, estimate({"prompts": by_prompt}))


def is_judged(spec: ModelSpec) -> bool:
    """Whether the truth of a model's pictures can be read: the shipped toy models at their own size."""
    from riebench.scoring.metrics.judge import SIDE

    return is_shipped(spec) and spec.size == SIDE


def measures(spec: ModelSpec) -> Said:
    """What measured, for an artefact's settings."""
    if not is_judged(spec):
        return {"LPIPS": BACKBONE}
    from riebench.scoring.metrics.judge import identity

    return {"LPIPS": BACKBONE, "judge": identity()}


FLOOR = 1e-8
"""Added to the variance of a dimension, so that one that never moves counts as explained by nothing."""
NAMES = ("ev_dim", "ev_pooled")
_POSITIONS = 8192
_REPLICATES = 500

Floats = NDArray[np.float64]


class VarianceMeter:
    """Running sums of activations and of what a reconstruction leaves over, one row per prompt.

    Args:
        prompts: how many there are.
        width: of the activations.
    """

    def __init__(self, prompts: int, width: int) -> None:
        self.tokens = torch.zeros(prompts, dtype=torch.float64)
        # Sums and sums of squares: of the activations, then of the errors.
        self._sums = torch.zeros(4, prompts, width, dtype=torch.float64)

    def add(self, prompt: int, x: Tensor, left_over: Tensor) -> None:
        """Takes positions of one prompt in: the activations [P, width] and what the reconstruction leaves over."""
        self.tokens[prompt] += len(x)
        for place, values in ((0, x), (2, left_over)):
            exact = values.double()
            self._sums[place, prompt] += exact.sum(0).cpu()
            self._sums[place + 1, prompt] += exact.square().sum(0).cpu()

    def encode(self, prompt: int, x: Tensor, sae: SparseAutoencoder) -> None:
        """Takes positions [P, width] of one prompt in, reconstructed by an SAE."""
        for part in x.float().split(_POSITIONS):
            self.add(prompt, part, part - sae.decode(sae.encode(part), part))

    def figures(self, names: Sequence[str]) -> Row:
        """Tokens and both explained variances with their intervals.

        `ev_dim` is the mean over dimensions of 1 - Var(x - x^) / (Var(x) + 1e-8), `ev_pooled` is
        1 - sum of Var(x - x^) / sum of Var(x); population variances over all positions of all prompts.

        Args:
            names: of the prompts, which are resampled.
        """
        observed = self._explained(np.ones((1, len(names))))
        counts = cluster_counts("prompts", tuple(names), REPLICATES, BOOTSTRAP_SEED)
        draws = np.concatenate(
            [self._explained(counts[first : first + _REPLICATES]) for first in range(0, len(counts), _REPLICATES)]
        )
        row: Row = {"tokens": int(self.tokens.sum())}
        for column, name in enumerate(NAMES):
            ends = interval(draws[:, column]) or (None, None)
            row |= {name: _finite(observed[0, column]), name + LOW: ends[0], name + HIGH: ends[1]}
        return row

    def _explained(self, weights: Floats) -> Floats:
        """Both explained variances under weights of the prompts: [R, prompts] -> [R, 2]."""
        tokens = weights @ self.tokens.numpy()[:, None]
        sums, squares, error_sums, error_squares = (weights @ part for part in self._sums.numpy())
        variance = np.maximum(squares / tokens - (sums / tokens) ** 2, 0)
        left = np.maximum(error_squares / tokens - (error_sums / tokens) ** 2, 0)
        total = variance.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            pooled = np.where(total > 0, 1 - left.sum(1) / total, np.nan)
        return np.stack([(1 - left / (variance + FLOOR)).mean(1), pooled], axis=1)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

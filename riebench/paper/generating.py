"""Generating for measurements: updates as they come, or pictures with something changed inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from riebench.errors import RiebenchError, near_match
from riebench.generation.edits import Edit
from riebench.generation.generator import Generator
from riebench.generation.hooks import known_sites
from riebench.generation.memory import automatic_batch_size
from riebench.generation.trace import capture
from riebench.models.loading import LoadedModel
from riebench.paper.job import Noise, PaperJob

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
        with capture(model.unet, blocks, steps=model.spec.steps, sink=sink):
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
    known = known_sites(model.unet)
    for block in job.blocks:
        if block not in known:
            raise RiebenchError(f"{model.spec.name} has no block {block!r}{near_match(block, known)}")
        if block not in usual:
            raise RiebenchError(f"block {block!r} is not measured here; measured are {', '.join(usual)}")
    return tuple(block for block in usual if not job.blocks or block in job.blocks)

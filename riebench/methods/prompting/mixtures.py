"""Edits by the prompt alone, and by pasting one run's latents into the other."""

from __future__ import annotations

import math
from typing import Literal

import torch

from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, LatentChange, TextChange
from riebench.generation.regions.masks import to_grid
from riebench.methods.base import EditContext, method


@method("embed_lerp", access="P", strengths=(0, 1))
def embed_lerp(ctx: EditContext) -> Edit:
    """Read a mixture of the two prompts.

    (1 - strength) of the source's embeddings, strength of the target's.

    Both text encoders' embeddings and the pooled vector are mixed, in float32; under guidance the unconditional half
    stays as it is. Strength 0 gives the source picture, 1 the target picture.

    Args:
        ctx: the example.
    """
    return Edit(text=TextChange(ctx.runs.example.target))


@method("prompt_switch", access="P", strengths=(0, 1))
def prompt_switch(ctx: EditContext, *, target_steps: Literal["last", "first"] = "last") -> Edit:
    """Read one prompt for the first t steps and the other from then on.

    The source prompt comes first, or the other way round.

    The strength is the share of the T steps that read the target prompt, (T - t) / T, taken to the nearest number of
    steps: 0 gives the source picture (t = T), 1 the target picture (t = 0).

    Args:
        ctx: the example.
        target_steps: which steps read the target prompt. The last ones change detail, the first ones layout.
    """
    return Edit(text=TextChange(ctx.runs.example.target, switch=target_steps))


@method("masked_target", access="PM", needs=("latents",), strengths=(0, 1))
def masked_target(ctx: EditContext, *, widen: float = 0.0) -> Edit:
    """Paste the target run's latents into the source run's, inside the regions.

    After every step the outside is the source run's. The strength is the share of steps, the first ones, after which
    the inside is the target run's; in the steps that are left the inside is denoised from there with the source
    prompt, so that it grows together with what surrounds it. Strength 1 is the paste after every step, 0 the source
    picture.

    Args:
        ctx: the example.
        widen: how far the regions grow to each side, as a share of the picture's side.

    Raises:
        RiebenchError: if `widen` is not in 0 to 1, or the latents were not kept.
    """
    if not 0 <= widen <= 1:
        raise RiebenchError(f"masked_target: widen: {widen:g} is not in 0 to 1")
    if not ctx.runs.latents:
        raise RiebenchError("the latents of the source and target run were not kept")
    source, target = ctx.runs.latents["source"], ctx.runs.latents["target"]
    height, width = source.shape[-2:]
    mask = to_grid(ctx.runs.masks.editable, (height, width))
    reach = math.ceil(widen * max(height, width))
    if reach:
        mask = torch.nn.functional.max_pool2d(mask[None].float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
    return Edit(latents=LatentChange(source, target, mask))

"""Editors: image-to-image, prompt-to-prompt and LEDITS++."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusionXL,
    StableDiffusionXLImg2ImgPipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.hooks import hooked
from riebench.injection import Injection, inject
from riebench.methods.alignment import Wording, align, read
from riebench.methods.foreign import EditorContext, Pictures, editor
from riebench.models.placement import attention_kernel

_ROUNDING = 1e-9
"""0.3 of 20 steps are 6, though 0.3 * 20 may come out a little above."""

Picture = NDArray[np.uint8]


@editor("img2img", access="P", strengths=(0.0, 1.0))
def img2img(ctx: EditorContext, *, steps: int | None = None) -> Pictures:
    """Makes the source picture noisy and denoises it with the target prompt, as diffusers' own pipeline does.

    The strength is how noisy: of T steps the last int(T * strength) run, so that a model of 4 steps has 4 levels
    besides 0, and levels that run equally many steps give the same picture. None gives the source picture exactly.
    All of them give nearly a new picture of the target prompt, from noise of its own (so not the target picture),
    with a trace of the source picture left, since the noisiest step of the schedule is not all noise.

    Args:
        ctx: the example.
        steps: T; None for the model's own number, more for a knob of finer levels.

    Raises:
        RiebenchError: if `steps` is not positive.
    """
    spec = ctx.model.spec
    total = spec.steps if steps is None else steps
    if total < 1:
        raise RiebenchError(f"img2img: steps {total}; give at least 1")
    pipe = StableDiffusionXLImg2ImgPipeline(**ctx.components)
    pipe.set_progress_bar_config(disable=True)
    # Given pixels, the pipeline would move the shared autoencoder to another number format; given latents, it does not.
    start = ctx.encode(ctx.pictures["source"])

    def make(strength: float) -> Picture:
        with attention_kernel(ctx.model.options):
            latents = pipe(
                image=start, strength=strength, num_inference_steps=total, guidance_scale=spec.guidance,
                generator=[ctx.other_noise("img2img")], output_type="latent", **ctx.conditions(ctx.example.target),
            ).images  # fmt: skip
        picture: Picture = ctx.generator.decode(latents)[0]
        return picture

    return _each(ctx, lambda strength: int(total * strength), {0: ctx.pictures["source"]}, make)


@editor("p2p", access="P", strengths=(0.0, 1.0))
def p2p(
    ctx: EditorContext, *, wording: Wording = "auto", self_share: float = 0.5, self_positions: int = 1024
) -> Pictures:
    """Prompt-to-prompt: the target prompt's run with the attention of the source prompt's run, from the same noise.

    The strength is the share of the steps, from the first on, that take over text attention; a step that begins
    before that share is over counts whole, so that a model of 4 steps has 4 levels besides 0. 0 gives the target
    picture exactly. Source and edited pictures run in one batch. Under guidance the conditional half alone is changed.

    Args:
        ctx: the example.
        wording: "replacement" takes over the attention of each token's position; "refinement" that of the tokens that
            both prompts have, and new words keep their own; "auto" replaces where differing words have equally many
            tokens, and refines elsewhere.
        self_share: for this share of those steps, from the first on, self-attention is taken over too.
        self_positions: in layers of at most this many positions. As published, 32 x 32.

    Raises:
        RiebenchError: if the prompts cannot be aligned.
    """
    if not 0 <= self_share <= 1:
        raise RiebenchError(f"p2p: self_share {self_share:g}; give 0 to 1")
    model, example = ctx.model, ctx.example
    counts = {strength: _begun(strength, model.spec.steps) for strength in ctx.strengths}
    levels = sorted({count for count in counts.values() if count})
    made: dict[int, Picture] = {0: ctx.pictures["target"]}
    if levels:
        tokenizers = (model.pipe.tokenizer, model.pipe.tokenizer_2)
        pairing = align(read(tokenizers, example.source), read(tokenizers, example.target), wording)
        refined = pairing.kind == "refinement"
        injection = Injection(
            tuple(levels), tuple(_begun(self_share, count) for count in levels),
            pairing.moved if refined else None, pairing.kept if refined else None, self_positions,
        )  # fmt: skip
        with inject(model.unet, injection, guided=model.guided, steps=model.spec.steps):
            prompts = [example.source, *[example.target] * len(levels)]
            images = ctx.generator.generate(prompts, [ctx.noise] * len(prompts)).images
        made |= dict(zip(levels, images[1:], strict=True))
    return np.stack([made[counts[strength]] for strength in ctx.strengths])


@editor("ledits_pp", access="PV", multiple=32)
def ledits_pp(
    ctx: EditorContext, *, inversion_steps: int = 50, skip: float = 0.15, threshold: float = 0.9,
    source_guidance: float = 0.0,
) -> Pictures:  # fmt: skip
    """LEDITS++: inverts the source picture once and guides it towards the target prompt, as diffusers' own pipeline.

    The strength is the scale of that guidance. 0 gives the source picture exactly, without an inversion; the smallest
    strengths come near the picture that the autoencoder makes of it.

    Args:
        ctx: the example.
        inversion_steps: steps of the inversion and of the edit; the model's own number is for generation only.
        skip: how far from pure noise it ends: more steps of the schedule by this share, left out.
        threshold: which share of the latents is left alone; the rest is where the guidance is largest.
        source_guidance: guidance towards the source prompt during inversion; 0 inverts without a prompt.

    Raises:
        RiebenchError: if parts of the model are kept off the device.
    """
    if ctx.model.options.offload != "none":
        raise RiebenchError("ledits_pp needs the whole model on the device; use --offload none")
    if not inversion_steps or not 0 <= skip < 1 or not 0 <= threshold <= 1:
        raise RiebenchError("ledits_pp: give inversion_steps of at least 1, skip from 0 to below 1, threshold 0 to 1")
    levels = sorted({float(strength) for strength in ctx.strengths if strength})
    made: dict[float, Picture] = {0.0: ctx.pictures["source"]}
    if levels:
        pipe = _inverted(ctx, inversion_steps, skip, source_guidance)
        pipe.batch_size = len(levels)
        pipe.init_latents = pipe.init_latents.expand(len(levels), -1, -1, -1)
        with _one_edit_for_all(pipe.unet):
            latents = pipe(
                editing_prompt=[ctx.example.target], edit_guidance_scale=[_Scales(tuple(levels))],
                edit_threshold=[threshold], output_type="latent",
            ).images  # fmt: skip
        made |= dict(zip(levels, ctx.generator.decode(latents), strict=True))
    return np.stack([made[float(strength)] for strength in ctx.strengths])


@dataclass(frozen=True)
class _Scales:
    """A scale for each picture of a batch, where LEDITS++ has one number for all."""

    levels: tuple[float, ...]

    def __rmul__(self, guidance: Tensor) -> Tensor:
        # As a number does: in half precision the product is rounded, but not the scale.
        scales = torch.tensor(self.levels, device=guidance.device)[:, None, None, None]
        return (guidance.float() * scales).to(guidance.dtype)


@contextmanager
def _one_edit_for_all(unet: torch.nn.Module) -> Iterator[None]:
    """Makes the last row of LEDITS++'s conditions, its one edit, that of every picture of the batch.

    The U-Net gets n unconditional rows and n edited ones, but the pipeline brings conditions of n + 1 rows.
    """

    def spread(args: Any, kwargs: Any) -> Any:
        half = len(args[0]) // 2

        def rows(values: Tensor) -> Tensor:
            return torch.cat([values[:half], values[half : half + 1].expand(half, *values.shape[1:])])

        added = {name: rows(values) for name, values in kwargs["added_cond_kwargs"].items()}
        states = rows(kwargs["encoder_hidden_states"])
        return args, {**kwargs, "encoder_hidden_states": states, "added_cond_kwargs": added}

    with hooked(unet, (), None) as hooks:
        hooks.before(unet, spread)
        yield


def _inverted(ctx: EditorContext, steps: int, skip: float, source_guidance: float) -> Any:
    """The pipeline, holding the inversion of the source picture."""
    parts = ctx.components
    # The pipeline would make this scheduler itself, with a warning; its state is its own, and so is its spacing.
    parts["scheduler"] = DPMSolverMultistepScheduler.from_config(
        parts["scheduler"].config, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    pipe = LEditsPPPipelineStableDiffusionXL(**parts)

    def encode(image: Picture, dtype: torch.dtype, **unused: Any) -> tuple[Tensor, Picture]:
        return ctx.encode(image).to(dtype), image

    # Its own way fails where the autoencoder's number format is not that of the text encoders.
    pipe.encode_image = encode
    pipe.set_progress_bar_config(disable=True)
    pipe.invert(
        ctx.pictures["source"], source_prompt=ctx.example.source if source_guidance else "",
        source_guidance_scale=source_guidance, num_inversion_steps=steps, skip=skip,
        generator=ctx.other_noise("ledits_pp"),
    )  # fmt: skip
    return pipe


def _each(
    ctx: EditorContext, level: Callable[[float], float], made: dict[Any, Picture], make: Callable[[float], Picture]
) -> Pictures:
    """A picture per strength; strengths of the same level share one."""
    for strength in ctx.strengths:
        if level(strength) not in made:
            made[level(strength)] = make(strength)
    return np.stack([made[level(strength)] for strength in ctx.strengths])


def _begun(share: float, steps: int) -> int:
    """How many of some steps begin before a share of them is over."""
    return math.ceil(share * steps - _ROUNDING)

"""SDXL's pipeline in diffusers: text, call, latents, pictures and editing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError
from riebench.models.families.base import EditingTask, TextEmbeddings
from riebench.models.spec import ModelSpec

TEXT_NAMES = ("prompt_embeds", "pooled_prompt_embeds")
"""What the pipeline calls the text embeddings before the first step."""


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt with both text encoders.

    The negative prompt is the one the pipeline uses when none is given: all zeros.
    """
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
    )
    conditional = dict(zip(TEXT_NAMES, (embeds, pooled), strict=True))
    other = zip(TEXT_NAMES, (negative, negative_pooled), strict=True)
    return TextEmbeddings(conditional, {f"negative_{name}": values for name, values in other if values is not None})


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], int]:
    """Return a counter of a prompt's tokens, and how many tokens are read.

    Start and end count too.
    """
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        clip = SimpleTokenizer()
        return (lambda prompt: len(clip.encode(prompt)) + 2), int(clip.context_length)
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    return (lambda prompt: len(tokenizer(prompt, verbose=False).input_ids)), int(tokenizer.model_max_length)


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, text and noise apart."""
    return {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "height": spec.size,
        "width": spec.size,
        "output_type": "latent",
    }


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, 4, h, w] in the autoencoder's own number format.

    Returns [B, 3, H, W] in -1 to 1.
    """
    config, spread = vae.config, _channel_spread(vae, latents.device)
    scaled = latents.float() / config.scaling_factor
    if spread is not None:
        scaled = latents.float() * spread[1] / config.scaling_factor + spread[0]
    pixels: Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    return pixels


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Tensor:
    """Encode pictures [B, 3, H, W] in -1 to 1.

    Returns float32 [B, 4, h, w]: the mean of the answer, scaled for the U-Net.
    """
    latents = vae.encode(pixels.to(device, vae.dtype)).latent_dist.mode().float()
    factor, spread = float(vae.config.scaling_factor), _channel_spread(vae, latents.device)
    return latents * factor if spread is None else (latents - spread[0]) * factor / spread[1]


def _channel_spread(vae: Any, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation of the autoencoder's channels.

    They are [1, 4, 1, 1] each. As in diffusers' pipeline, there are some only where the configuration states both.
    """
    stated = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if stated[0] is None or stated[1] is None:
        return None
    mean, deviation = (torch.tensor(values, device=device).float().view(1, -1, 1, 1) for values in stated)
    return mean, deviation


def editing_pipeline(task: EditingTask, pipe: Any) -> Any:
    """Build diffusers' pipeline for image-to-image or LEDITS++.

    It shares the networks of a loaded pipeline.
    """
    import diffusers

    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    zeros = bool(pipe.config.force_zeros_for_empty_prompt)
    more: dict[str, Any] = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    if task == "img2img":
        return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **more)
    _check_inversion(pipe)
    # The pipeline would make this scheduler itself, with a warning; its state is its own, and so is its spacing.
    parts["scheduler"] = diffusers.DPMSolverMultistepScheduler.from_config(
        parts["scheduler"].config, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    return diffusers.LEditsPPPipelineStableDiffusionXL(**parts, **more)


def _check_inversion(pipe: Any) -> None:
    """Refuse models whose noise LEDITS++ would not describe.

    Its scheduler is made from the model's betas.

    Raises:
        RiebenchError: naming the scheduler or the key.
    """
    config, name = pipe.scheduler.config, type(pipe.scheduler).__name__
    if config.get("beta_start") is None:
        raise RiebenchError(f"ledits_pp inverts models whose noise follows from betas; {name} has none")
    if config.get("use_flow_sigmas") or "flow" in str(config.get("prediction_type", "")):
        raise RiebenchError(f"ledits_pp inverts models whose noise follows from betas; {name} has flow sigmas")
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise RiebenchError("ledits_pp guides by two texts, but this U-Net is told the scale (time_cond_proj_dim)")


@contextmanager
def same_condition(unet: nn.Module) -> Iterator[None]:
    """Give every picture of a batch the last row of LEDITS++'s conditions.

    That row is its one edit.

    The U-Net gets n unconditional rows and n edited ones, but the pipeline brings conditions of n + 1 rows.
    """

    def spread(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        half = len(args[0]) // 2

        def rows(values: Tensor) -> Tensor:
            return torch.cat([values[:half], values[half : half + 1].expand(half, *values.shape[1:])])

        added = {name: rows(values) for name, values in kwargs["added_cond_kwargs"].items()}
        states = rows(kwargs["encoder_hidden_states"])
        return args, {**kwargs, "encoder_hidden_states": states, "added_cond_kwargs": added}

    handle = unet.register_forward_pre_hook(spread, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

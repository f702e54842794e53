"""The figures of a toy-dit in training or trained, by diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from numpy.typing import NDArray

from riebench.errors import RiebenchError
from riebench.models.assets import asset_folder
from riebench.models.families.sdxl.names import BLOCKS as TURBO_BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import load_saes
from riebench.scoring.metrics.judge_network import Judge
from riebench.toyworld.captions import caption
from riebench.toyworld.data import held_out_scenes
from riebench.toyworld.evaluate import (
    CLIPS,
    SAE_K,
    Sizes,
    block_updates,
    choose_captions,
    patch_figures,
    sae_report,
    share_right,
)
from riebench.toyworld.evaluate import generate as generate_by
from riebench.toyworld.networks.dit.autoencoder import load
from riebench.toyworld.networks.dit.pipeline import STEPS, assemble, generate
from riebench.toyworld.networks.dit.transformer import BLOCKS, build
from riebench.toyworld.networks.loop import CHECKPOINT
from riebench.toyworld.render import render

ACCURACY_BAR = 0.88
"""The least share of attributes that pictures of four steps must show as captioned."""
RENDERS = 100
"""At most so many renders are encoded and decoded."""
TOP1_DISTANCE = 0.05
"""The most by which the first CLIP's choice may be rarer right than on toy-turbo's pictures."""
PATCH_BAR = 0.9
"""The least share of held-out edits whose target is reached when all blocks are patched."""
PAIRS = 12
"""Edits of a category, patched with whole updates and with what SAEs keep of them."""
VARIANCE_BAR = 0.8
"""The least share of variance that SAEs must explain, mean over blocks."""


def load_checkpoint(work: Path) -> tuple[FluxPipeline, int]:
    """Assemble the pipeline from the last checkpoint.

    The weights are their moving average.

    Args:
        work: the folder of `riebench.toyworld train dit`.

    Returns:
        The pipeline and the number of training steps behind it.

    Raises:
        RiebenchError: if there is no checkpoint.
    """
    path = work / "dit" / CHECKPOINT
    if not path.is_file():
        raise RiebenchError(f"{work} holds no training of toy-dit: run `python -m riebench.toyworld train dit` first")
    state = torch.load(path, weights_only=True, map_location="cpu")
    network = build().eval().requires_grad_(False)
    network.load_state_dict(state["ema"])
    return assemble(network, load(asset_folder("toy-turbo"))), int(state["step"])


def load_exported(folder: Path) -> FluxPipeline:
    """Load the pipeline as it ships, with weights rounded to half precision.

    Args:
        folder: holds toy-dit.

    Raises:
        RiebenchError: if it does not.
    """
    model = folder / "toy-dit"
    if not model.is_dir():
        raise RiebenchError(f"{model} is missing: run `python -m riebench.toyworld train dit --assets {folder}` first")
    pipe = FluxPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(pipe: FluxPipeline, limit: int | None = None, *, steps: int = STEPS) -> dict[str, Any]:
    """Measure pictures of held-out scenes by the judge and the first CLIP.

    Those of toy-turbo are measured beside them.

    Args:
        pipe: a toy-dit.
        limit: at most so many pictures; None for the number that the card's figures have.
        steps: denoising steps of both models.

    Returns:
        Share of attributes right, in all and by attribute; the same share for renders after the autoencoder, which
        generated pictures cannot pass; share of pictures whose caption the CLIP finds among 100, for toy-dit and for
        toy-turbo; and whether both bars are cleared.
    """
    sizes = Sizes.limited(limit)
    scenes = held_out_scenes(sizes.captions, seed=904)
    captions = [caption(scene) for scene in scenes]
    images = generate(pipe, captions, steps=steps, batch=sizes.batch)
    turbo = generate_by(load_model("toy-turbo", steps=steps), captions, sizes, "toy-turbo")
    by_attribute, turbo_by_attribute = (share_right(Judge.load().likeliest(some), scenes) for some in (images, turbo))
    top1 = [choose_captions(CLIPS["clip"], scenes, some)[0] for some in (images, turbo)]
    accuracy = _mean(by_attribute)
    renders = np.stack([render(scene, 9_300_000 + i).image for i, scene in enumerate(scenes[:RENDERS])])
    kept = _mean(share_right(Judge.load().labels(reconstruct(pipe.vae, renders)), scenes[:RENDERS]))
    return {
        "accuracy": accuracy, "by_attribute": by_attribute, "turbo_by_attribute": turbo_by_attribute,
        "autoencoder_accuracy": kept,
        "clip_top1": top1[0], "turbo_clip_top1": top1[1],
        "cleared": accuracy >= ACCURACY_BAR and top1[0] >= top1[1] - TOP1_DISTANCE,
    }  # fmt: skip


def patch_both_ways(model: LoadedModel, saes: Mapping[str, Any], limit: int | None = None) -> dict[str, Any]:
    """Measure what patching a model's blocks reaches.

    It is done by whole updates and by what SAEs keep of them.

    Args:
        model: in four steps.
        saes: block -> SAE; these blocks are patched, together and one by one.
        limit: at most so many pairs a category.

    Returns:
        "whole" and "sae" -> "target" (the target's own caption), "all" or a block -> category -> share of held-out
        edits that reach the target's value.
    """
    blocks = tuple(saes)
    sizes = Sizes.limited(min(limit or PAIRS, PAIRS))
    whole, kept = patch_figures(model, sizes, blocks), patch_figures(model, sizes, blocks, saes)
    return {"whole": whole["patch_reach_by_category"], "sae": kept["patch_reach_by_category"]}


def measure_blocks(folder: Path, limit: int | None = None) -> dict[str, Any]:
    """Measure what patching reaches and what SAEs explain, in four steps.

    toy-turbo's blocks and SAEs are measured beside them.

    Args:
        folder: holds toy-dit and its SAEs saes-dit.
        limit: at most so many pairs a category, and pictures; None for the numbers that the card's figures have.

    Returns:
        Share of held-out edits that reach the target's value when all blocks are patched; what patching reaches in both
        models, see `patch_both_ways`; explained variance, L0 and dead share of every SAE; and whether both bars are
        cleared.

    Raises:
        RiebenchError: if the model or its SAEs are missing.
    """
    for name, stage in (("toy-dit", "dit"), ("saes-dit", "dit-saes")):
        if not (folder / name).is_dir():
            raise RiebenchError(f"{folder / name} is missing: run `riebench.toyworld train {stage} --assets {folder}`")
    sizes, model = Sizes.limited(limit), load_model(str(folder / "toy-dit"), steps=STEPS)
    saes = load_saes(folder / "saes-dit", BLOCKS, k=SAE_K)
    turbo_saes = load_saes(asset_folder("saes"), TURBO_BLOCKS, k=SAE_K)
    reached = {
        "toy-dit": patch_both_ways(model, saes, limit),
        "toy-turbo": patch_both_ways(load_model("toy-turbo", steps=STEPS), turbo_saes, limit),
    }
    reach = _mean(reached["toy-dit"]["whole"]["all"])
    captions = [caption(scene) for scene in held_out_scenes(sizes.sae_captions, seed=908)]
    updates = block_updates(model, captions, sizes.batch, "toy-dit's updates", BLOCKS)
    by_block = {block: sae_report(saes[block], updates[block]) for block in BLOCKS}
    variance = round(float(np.mean([report["ev"] for report in by_block.values()])), 4)
    return {
        "patch_reach": reach, "reached": reached, "sae_ev": variance, "sae_by_block": by_block,
        "blocks_cleared": reach >= PATCH_BAR and variance >= VARIANCE_BAR,
    }  # fmt: skip


def _mean(shares: dict[str, float]) -> float:
    return round(float(np.mean(list(shares.values()))), 4)


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode pictures, uint8 [N, 64, 64, 3]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoded = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mode()).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

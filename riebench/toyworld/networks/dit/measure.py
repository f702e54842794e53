"""The figures of a toy-dit in training or trained, by diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from numpy.typing import NDArray

from riebench.errors import RiebenchError
from riebench.models.loading import load_model
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
    path, autoencoder = work / "dit" / CHECKPOINT, work / "dit-vae" / "finished"
    if not path.is_file() or not autoencoder.is_dir():
        raise RiebenchError(f"{work} holds no training of toy-dit: run `python -m riebench.toyworld train dit` first")
    state = torch.load(path, weights_only=True, map_location="cpu")
    network = build().eval().requires_grad_(False)
    network.load_state_dict(state["ema"])
    return assemble(network, AutoencoderKL.from_pretrained(autoencoder)), int(state["step"])


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
    by_attribute = share_right(Judge.load().likeliest(images), scenes)
    turbo = generate_by(load_model("toy-turbo", steps=steps), captions, sizes, "toy-turbo")
    top1 = [choose_captions(CLIPS["clip"], scenes, some)[0] for some in (images, turbo)]
    accuracy = _mean(by_attribute)
    renders = np.stack([render(scene, 9_300_000 + i).image for i, scene in enumerate(scenes[:RENDERS])])
    kept = _mean(share_right(Judge.load().labels(reconstruct(pipe.vae, renders)), scenes[:RENDERS]))
    return {
        "accuracy": accuracy, "by_attribute": by_attribute, "autoencoder_accuracy": kept,
        "clip_top1": top1[0], "turbo_clip_top1": top1[1],
        "cleared": accuracy >= ACCURACY_BAR and top1[0] >= top1[1] - TOP1_DISTANCE,
    }  # fmt: skip


def measure_blocks(folder: Path, limit: int | None = None) -> dict[str, Any]:
    """Measure what patching reaches and what SAEs explain, in four steps.

    Args:
        folder: holds toy-dit and its SAEs saes-dit.
        limit: at most so many pairs a category, and pictures; None for the numbers that the card's figures have.

    Returns:
        Share of held-out edits that reach the target's value when all blocks or single ones are patched, in all and by
        category; explained variance, L0 and dead share of every SAE; and whether both bars are cleared.

    Raises:
        RiebenchError: if the model or its SAEs are missing.
    """
    for name, stage in (("toy-dit", "dit"), ("saes-dit", "dit-saes")):
        if not (folder / name).is_dir():
            raise RiebenchError(f"{folder / name} is missing: run `riebench.toyworld train {stage} --assets {folder}`")
    sizes, model = Sizes.limited(limit), load_model(str(folder / "toy-dit"), steps=STEPS)
    figures = patch_figures(model, sizes, BLOCKS)
    saes = load_saes(folder / "saes-dit", BLOCKS, k=SAE_K)
    captions = [caption(scene) for scene in held_out_scenes(sizes.sae_captions, seed=908)]
    updates = block_updates(model, captions, sizes.batch, "toy-dit's updates", BLOCKS)
    by_block = {block: sae_report(saes[block], updates[block]) for block in BLOCKS}
    variance = round(float(np.mean([report["ev"] for report in by_block.values()])), 4)
    cleared = figures["patch_reach"] >= PATCH_BAR and variance >= VARIANCE_BAR
    return {**figures, "sae_ev": variance, "sae_by_block": by_block, "blocks_cleared": cleared}


def _mean(shares: dict[str, float]) -> float:
    return round(float(np.mean(list(shares.values()))), 4)


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode pictures, uint8 [N, 64, 64, 3]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoded = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mode()).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

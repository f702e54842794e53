"""The second toy CLIP and its training: an independent scorer.

It has nothing in common with the first but the words of the captions: a ConvNeXt for pictures and a bidirectional text
encoder, read at its first token, trained on renders of its own with damage of its own. Up to half of the pictures of a
batch are moved against the network within `REACH`, so that a change nobody sees raises its score little.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from riebench.scoring.metrics.judge_network import ATTRIBUTES, Values
from riebench.toyworld.data import Pool
from riebench.toyworld.networks.clip import (
    CONTEXT,
    ClipWithHeads,
    build_tokenizer,
    contrastive_sentences,
    load_known,
)
from riebench.toyworld.networks.loop import Stage, fit, step_generator

SEED = 61
CONFIG: dict[str, Any] = {
    "steps": 3600, "batch": 96, "learning_rate": 2e-3, "seed": SEED, "reach": 8, "fewer_moved": 3000,
}  # fmt: skip
"""`fewer_moved`: step from which fewer pictures are moved against the network, which costs it some sharpness."""
WIDE_CONFIG: dict[str, Any] = {**CONFIG, "steps": 5000, "pictures": 16_000, "seed": SEED + 1, "fewer_moved": 4200}
"""That of the second world's second CLIP, which starts from the first's; `pictures` of its own are rendered for it."""
EMBED_DIM = 64
POOL_SIZE = 12_000
POOL_SEED = 20_250_313
REACH = CONFIG["reach"] / 127.5
"""Farthest that a pixel of [-1, 1] is moved against the network: 8 of 255."""


def model_config(values: Values = ATTRIBUTES) -> dict[str, Any]:
    """Return the architecture for a world in open_clip's terms."""
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "image_size": 64, "timm_model_name": "test_convnext2", "timm_pool": "avg", "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": len(build_tokenizer(values)), "width": 64, "heads": 4, "layers": 2,
            "no_causal_mask": True, "pool_type": "first",
            "hf_tokenizer_name": "toy", "tokenizer_kwargs": {"clean": "lower"},
        },
    }  # fmt: skip


def damage(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zoom, fade, stain and black out parts of pictures, each by its own amount.

    None of it is what `data.augment` does to the pictures of the first CLIP, but for a little noise.

    Args:
        images: uint8 [B, 64, 64, 3].
        generator: CPU generator; decides everything.

    Returns:
        float [B, 3, 64, 64], about [-1, 1], channels last in memory.
    """
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    # Zoom and shift by fractions of a pixel, which also blurs a little.
    frames = torch.zeros(batch, 2, 3)
    frames[:, 0, 0] = frames[:, 1, 1] = uniform(0.94, 1.06)
    frames[:, :, 2] = uniform(-0.06, 0.06, 2)
    x = F.grid_sample(x, F.affine_grid(frames, list(x.shape), align_corners=False), "bilinear", "border", False)
    mean = x.mean((2, 3), keepdim=True)
    x = mean + (x - mean) * uniform(0.75, 1.15, 1, 1, 1)
    # Stains: noise of 8 x 8 cells, smoothly enlarged; then fine noise.
    coarse = torch.randn(batch, 3, 8, 8, generator=generator) * uniform(0, 0.12, 1, 1, 1)
    x = x + F.interpolate(coarse, size=64, mode="bilinear")
    x = x + torch.randn(x.shape, generator=generator) * uniform(0, 0.15, 1, 1, 1)
    # One square of 6 pixels in every second picture is grey.
    rows, columns = (torch.randint(0, 58, (batch, 1), generator=generator) for _ in range(2))
    place = torch.arange(64)
    inside = ((place >= rows) & (place < rows + 6))[:, :, None] & ((place >= columns) & (place < columns + 6))[:, None]
    chosen = torch.rand(batch, 1, 1, generator=generator) < 0.5
    return x.masked_fill((inside & chosen)[:, None], 0.0).contiguous(memory_format=torch.channels_last)


def train(
    pool: Pool, work: Path, device: torch.device, *, name: str = "clip-2", config: dict[str, Any] = CONFIG,
    start: Path | None = None,
) -> CLIP:  # fmt: skip
    """Train the CLIP contrastively on all of its own pool.

    For every picture, the negatives include a caption that differs from its own in one attribute.

    Args:
        pool: the pictures.
        work: folder that holds the stage's own folder.
        device: trains there.
        name: of the stage.
        config: its settings.
        start: folder of the first world's second CLIP to start from; None starts from nothing.
    """
    torch.manual_seed(config["seed"])
    model, seed = ClipWithHeads(model_config(pool.values), pool.values), config["seed"]
    if start is not None:
        load_known(model.clip, start, pool.values)
    model = model.to(device).to(memory_format=torch.channels_last)
    tokenizer = build_tokenizer(pool.values)

    def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator, rng = step_generator(seed, step), random.Random(seed * 10_000_019 + step)
        indices = torch.randint(len(pool.images), (config["batch"],), generator=generator)
        sentences = contrastive_sentences([pool.scene(int(i)) for i in indices], rng, pool.values)
        images = damage(torch.from_numpy(pool.images[indices.numpy()]), generator).to(device)
        tokens = tokenizer(sentences, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
        labels = torch.from_numpy(pool.labels[indices.numpy()]).long().to(device)
        moved = len(images) // (2 if step < config["fewer_moved"] else 8)
        sizes = REACH * torch.rand(moved, 1, 1, 1, generator=generator).to(device)
        images[:moved] += sizes * _worst_signs(model, images[:moved], labels[:moved])
        return images, tokens.input_ids.to(device), labels

    def loss(step: int) -> Tensor:
        model.train()
        images, tokens, labels = batch_of(step)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            picture = model.clip.encode_image(images).float()
        text = model.clip.encode_text(tokens)
        logits = model.clip.logit_scale.exp().clamp(max=100) * F.normalize(picture, dim=1) @ F.normalize(text, dim=1).T
        own = torch.arange(len(images), device=device)
        contrast = F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(images)].T, own)
        return contrast / 2 + 0.5 * model.reading_loss(picture, labels)

    fit(Stage(name, config, model, loss, config["steps"], config["learning_rate"], ema_decay=0.995), work)
    return model.clip.eval()


def _worst_signs(model: ClipWithHeads, images: Tensor, labels: Tensor) -> Tensor:
    """Return the signs of a change by which attributes are read worse."""
    moving = images.detach().clone().requires_grad_(True)
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        features = model.clip.encode_image(moving).float()
    (gradient,) = torch.autograd.grad(model.reading_loss(features, labels), moving)
    return gradient.sign()

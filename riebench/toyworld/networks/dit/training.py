"""The training of toy-dit: flow matching on rendered scenes.

It is made for four steps without guidance. A caption leaves little of a picture open, so that the first step, from
noise alone, already decides nearly all of it. Most examples lie at the noise levels of the four steps, and two in five
of these at the first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from riebench.toyworld.data import Pool
from riebench.toyworld.networks.diffusion import captions_of
from riebench.toyworld.networks.dit import transformer
from riebench.toyworld.networks.dit.text import TOKENS, CaptionEncoder
from riebench.toyworld.networks.dit.transformer import SEED, Velocity, pack
from riebench.toyworld.networks.loop import Stage, fit, step_generator

CONFIG: dict[str, Any] = {
    "steps": 2000, "batch": 32, "learning_rate": 2e-3, "step_share": 0.85, "first_share": 0.4,
    "spread": 1.2, "center": 0.3, "seed": SEED,
}  # fmt: skip
"""`step_share`: share of examples at the levels of the four steps; `first_share`: share of these at the first;
`spread` and `center`: of the normal distribution whose sigmoid is the level of the others."""
SAE_CAPTIONS, SAE_STEPS = 2000, 450
"""Pictures of toy-dit's SAEs, if they had one step instead of four, and training steps of each SAE."""
LEVELS = (1.0, 0.75, 0.5, 0.25)
"""Noise levels of four steps, as FLUX's pipeline spaces them."""


def draw_levels(count: int, generator: torch.Generator) -> Tensor:
    """Draw the noise levels of a batch: float [count], in (0, 1]."""
    anywhere = torch.sigmoid(CONFIG["spread"] * torch.randn(count, generator=generator) + CONFIG["center"])
    later = torch.tensor(LEVELS)[torch.randint(1, len(LEVELS), (count,), generator=generator)]
    first = torch.rand(count, generator=generator) < CONFIG["first_share"]
    stepped = torch.where(first, LEVELS[0], later)
    return torch.where(torch.rand(count, generator=generator) < CONFIG["step_share"], stepped, anywhere)


def flow_loss(network: nn.Module, pool: Pool, latents: Tensor, device: torch.device) -> Callable[[int], Tensor]:
    """Build the loss: mean squared error of the velocity, noise minus data.

    Args:
        network: the transformer, perhaps compiled.
        pool: the pictures, for their scenes.
        latents: float16 [N, 4, 32, 32], the pictures' normalised latents.
        device: of the network.
    """
    encode, velocity = CaptionEncoder(), Velocity(network, device, TOKENS)
    batch = int(CONFIG["batch"])

    def loss(step: int) -> Tensor:
        generator = step_generator(SEED, step)
        indices = torch.randint(len(latents), (batch,), generator=generator)
        clean = pack(latents[indices].float())
        states, pooled = encode(captions_of(pool, indices, SEED, step))
        sigma = draw_levels(batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        share = sigma.view(-1, 1, 1)
        noisy = (share * noise + (1 - share) * clean).to(device)
        predicted = velocity(noisy, sigma.to(device), states.to(device), pooled.to(device))
        return (predicted - (noise - clean).to(device)).square().mean()

    return loss


def inside_blocks(name: str) -> bool:
    """Return whether a parameter is a matrix of attention or feed-forward layers."""
    return "transformer_blocks." in name and ".norm" not in name and name.endswith(".weight")


def train(
    pool: Pool, latents: Tensor, work: Path, device: torch.device, *, compiled: bool = False
) -> FluxTransformer2DModel:
    """Train the transformer, or finish an interrupted training.

    Args:
        pool: the pictures.
        latents: float16 [N, 4, 32, 32], their normalised latents.
        work: folder for checkpoints and the log.
        device: trains there.
        compiled: compiles the transformer.
    """
    network = transformer.build().to(device)
    running: Any = torch.compile(network, dynamic=False) if compiled else network
    loss = flow_loss(running, pool, latents, device)
    stage = Stage("dit", CONFIG, network, loss, int(CONFIG["steps"]), CONFIG["learning_rate"], by_muon=inside_blocks)
    fit(stage, work)
    return network.cpu().eval()

"""LoRA sliders: adapters of the denoiser's attention, trained towards a concept.

As concept sliders do (Gandikota et al. 2023, arXiv 2311.12092), an adapter is trained that leads the denoiser from one
prompt to its own prediction for another, and its scale is the edit strength. Here the two prompts are those of training
examples, and the latents are those of the run with the concept (`riebench.methods.supervised.gradient`). The adapters
are peft's; they are taken out again after each picture, so that all other pictures are made by the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.methods.editors import EditorContext, Picture, Pictures, editor
from riebench.methods.supervised.concepts import (
    Learned,
    Place,
    TrainingPair,
    check_folds,
    describe_training,
    timed,
    training_pairs,
    wished_runs,
)
from riebench.methods.supervised.gradient import Progress, check_trainable, record_calls, seed_of, train, trainable

NAME = "slider"
"""Name of the adapter inside the denoiser."""
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Ends of the names of the adapted layers: the projections of diffusers' attention."""
RATE = 0.005
"""First learning rate."""

Weights = Mapping[str, Tensor]
"""Name of a weight of the adapter -> its value, float32, on the CPU."""


@editor("lora_slider", access="PT", strengths=(-np.inf, np.inf), needs=("others",))
def lora_slider(
    ctx: EditorContext, *, examples: int = 16, folds: int = 3, training_steps: int = 32, rank: int = 4
) -> Pictures:
    """Generate the source prompt with an adapter that was trained towards the concept.

    It is trained on the training runs that show what the edit puts in; if none does, on those without what it takes
    out; else on all target runs. The strength is the adapter's scale: 1 is what was trained, 0 the source picture.

    Args:
        ctx: the example.
        examples: how many to learn from, at most.
        folds: number of folds; examples of the scored example's own one are left out.
        training_steps: steps of the optimiser.
        rank: of the adapter.

    Raises:
        RiebenchError: if peft is missing, there is nothing to learn from, or the model cannot be adapted.
    """
    check_folds("lora_slider", examples, folds)
    check_trainable("lora_slider", ctx.generator)
    training, pairs = training_pairs(ctx.others, examples, folds)
    concept, places = wished_runs(ctx.example, pairs)

    def fit() -> Learned[Weights]:
        seed = seed_of("lora_slider", training.fold, ctx.seed, *concept)
        found = timed(lambda: train_slider(ctx.generator, pairs, places, training_steps, rank, seed))
        weights, progress = found.value
        return Learned(weights, found.seconds, progress.evaluations)

    learned = training.learn(("lora_slider", concept, training_steps, rank), fit)
    ctx.training.append(describe_training(training, pairs, [learned]))

    def make(strength: float) -> Picture:
        if not strength:
            return ctx.pictures["source"]
        with adapted(ctx.model.denoiser, rank) as layers:
            load(layers, learned.value, strength)
            picture: Picture = ctx.generator.generate([ctx.example.source], [ctx.noise]).images[0]
        return picture

    return np.stack([make(strength) for strength in ctx.strengths])


def train_slider(
    generator: Generator, pairs: Sequence[TrainingPair], places: Sequence[Place], steps: int, rank: int, seed: int
) -> tuple[Weights, Progress]:
    """Train an adapter.

    Args:
        generator: the loaded model.
        pairs: the training examples' runs.
        places: runs that are the goal.
        steps: of the optimiser.
        rank: of the adapter.
        seed: of first weights and draws.

    Returns:
        The adapter's weights, and the course of the training.
    """
    calls = record_calls(generator, pairs, places)
    denoiser, draws = generator.model.denoiser, torch.Generator().manual_seed(seed)
    with trainable(generator), adapted(denoiser, rank) as layers:
        parameters = weights_of(layers)
        with torch.no_grad():
            for name, weight in parameters.items():
                # One factor starts from zero, so that the adapter changes nothing at first.
                start = torch.randn(weight.shape, generator=draws) / weight.shape[1] ** 0.5
                weight.copy_(start if ".lora_A." in name else torch.zeros(weight.shape))
        progress = train(denoiser, calls, list(parameters.values()), steps=steps, rate=RATE, seed=seed)
        return {name: weight.detach().cpu().clone() for name, weight in parameters.items()}, progress


@contextmanager
def adapted(denoiser: nn.Module, rank: int) -> Iterator[dict[str, Any]]:
    """Put an adapter into the denoiser's attention; take it out at the end.

    Args:
        denoiser: the network.
        rank: of the adapter.

    Yields:
        Name of each adapted layer -> the layer.

    Raises:
        RiebenchError: if peft is missing, the rank is 0, or there is nothing to adapt.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RiebenchError("lora_slider needs peft: pip install 'riebench[lora]'") from error
    if rank < 1:
        raise RiebenchError(f"lora_slider: rank: {rank}; take at least 1")
    usual = {
        name: module for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{one}" for one in PROJECTIONS))
    }  # fmt: skip
    if not usual:
        raise RiebenchError(f"lora_slider adapts attention layers {', '.join(PROJECTIONS)}, which this model has not")
    attributes = set(vars(denoiser))
    needed = [(weight, weight.requires_grad) for weight in denoiser.parameters()]
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(usual)), denoiser, NAME)
        layers = {name: denoiser.get_submodule(name) for name in usual}
        for weight in weights_of(layers).values():
            # Also in a model of 16 bits: steps of the optimiser are smaller than these can tell apart.
            weight.data = weight.data.float()
        yield layers
    finally:
        for name, module in usual.items():
            parent, _, last = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), last, module)
        for attribute in set(vars(denoiser)) - attributes:
            # peft notes its settings there, and would take the next adapter for a second one.
            delattr(denoiser, attribute)
        for weight, gradient in needed:
            weight.requires_grad_(gradient)


def weights_of(layers: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Return the adapter's weights by name."""
    return {
        f"{name}.{part}.weight": getattr(layer, part)[NAME].weight
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }


def load(layers: Mapping[str, Any], weights: Weights, scale: float) -> None:
    """Give an adapter its weights and its scale."""
    with torch.no_grad():
        for name, weight in weights_of(layers).items():
            weight.copy_(weights[name])
    for layer in layers.values():
        layer.scaling[NAME] = scale

"""FLUX's schedule: flow matching in Euler steps, tried before a model is loaded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.flux.configuration import CONFIGS
from riebench.models.families.folders import INDEX, read_json

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SHIFT = 1.15
"""A shift that pictures of 1024 px have, to try a schedule with."""


def check_schedule(folder: Path, steps: int, shown: str) -> None:
    """Refuse a model folder whose schedule cannot be followed.

    Args:
        folder: in diffusers' layout; its weights are not read.
        steps: denoising steps of a run.
        shown: what the user called it.

    Raises:
        RiebenchError: in one line, naming the scheduler and the key.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    entry = read_json(folder / INDEX).get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name != SCHEDULER:
        raise RiebenchError(f"{shown}: {INDEX} says scheduler {name or 'null'}; FLUX's is {SCHEDULER}")
    config = read_json(folder / CONFIGS["scheduler"])
    if config.get("stochastic_sampling"):
        raise RiebenchError(
            f"{shown}: {CONFIGS['scheduler']} says stochastic_sampling true, whose noise FLUX's pipeline draws without "
            "the picture's seed; set it to false"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
            scheduler.set_timesteps(steps, sigmas=[1 - step / steps for step in range(steps)], mu=SHIFT)
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RiebenchError(f"{shown}: {CONFIGS['scheduler']} cannot be used for {steps} steps: {why}") from error
    if len(scheduler.timesteps) != steps or not bool(torch.isfinite(scheduler.sigmas).all()):
        raise RiebenchError(
            f"{shown}: {CONFIGS['scheduler']} gives {len(scheduler.timesteps)} calls for {steps} steps, or numbers "
            "that are not finite"
        )

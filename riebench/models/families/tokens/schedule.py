"""A schedule, tried before a model is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import INDEX, read_json

FILE = "scheduler/scheduler_config.json"


def check_schedule(
    folder: Path,
    steps: int,
    shown: str,
    brand: str,
    classes: Sequence[str],
    arguments: Mapping[str, Any],
) -> None:
    """Refuse a model folder whose schedule cannot be followed.

    Args:
        folder: in diffusers' layout; its weights are not read.
        steps: denoising steps of a run.
        shown: what the user called it.
        brand: short name of the family, for messages.
        classes: schedulers that the family's pipeline runs with, the usual one first.
        arguments: what the pipeline sets the steps with, besides their number.

    Raises:
        RiebenchError: in one line, naming the scheduler and the key.
    """
    import diffusers
    import torch

    entry = read_json(folder / INDEX).get("scheduler")
    name: Any = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name not in classes:
        raise RiebenchError(f"{shown}: {INDEX} says scheduler {name or 'null'}; {brand}'s is {' or '.join(classes)}")
    config = read_json(folder / FILE)
    if config.get("stochastic_sampling"):
        raise RiebenchError(
            f"{shown}: {FILE} says stochastic_sampling true, whose noise {brand}'s pipeline draws without the "
            "picture's seed; set it to false"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler: Any = getattr(diffusers, name).from_config(config)
            scheduler.set_timesteps(steps, **arguments)
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RiebenchError(f"{shown}: {FILE} cannot be used for {steps} steps: {why}") from error
    if len(scheduler.timesteps) != steps or not bool(torch.isfinite(scheduler.sigmas).all()):
        raise RiebenchError(
            f"{shown}: {FILE} gives {len(scheduler.timesteps)} calls for {steps} steps, or numbers that are not finite"
        )

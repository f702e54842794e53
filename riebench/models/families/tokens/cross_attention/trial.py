"""A schedule tried step by step before a model is loaded.

Two pictures side by side must get what one of them gets alone: a schedule that draws noise without the pictures' own
seeds does not, and its results could not be repeated.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import INDEX, read_json
from riebench.models.families.tokens.schedule import FILE

if TYPE_CHECKING:
    from torch import Tensor

TRIED_SHAPE = (4, 8, 8)
"""Latents of one picture of the trial."""
ROUNDING = 1e-3
"""A picture beside another may differ from the picture alone by this share of its largest number."""


def check_steps(
    folder: Path,
    steps: int,
    shown: str,
    brand: str,
    classes: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    names_end: bool = False,
) -> None:
    """Refuse a model folder whose schedule cannot be followed step by step.

    Args:
        folder: in diffusers' layout; its weights are not read.
        steps: denoising steps of a run.
        shown: what the user called it.
        brand: short name of the family, for messages.
        classes: schedulers that the family's pipeline runs with, the usual one first.
        arguments: what the pipeline sets the steps with, besides their number.
        names_end: whether the last time of the schedule is its end, where the transformer is not called.

    Raises:
        RiebenchError: in one line, naming the scheduler.
    """
    import torch

    entry = read_json(folder / INDEX).get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name is None or name not in classes:
        raise RiebenchError(f"{shown}: {INDEX} says scheduler {name or 'null'}; {brand}'s is {' or '.join(classes)}")
    config = read_json(folder / FILE)
    where = f"{shown}: {name} ({FILE})"
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            tried = [_run(name, config, steps, rows, arguments, names_end=names_end) for rows in ((0, 1), (1,))]
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RiebenchError(f"{where} cannot be used for {steps} steps: {why}") from error
    (both, calls), (alone, _) = tried
    if calls != steps or not bool(torch.isfinite(both).all()):
        raise RiebenchError(f"{where} gives {calls} calls for {steps} steps, or numbers that are not finite")
    if float((both[1:] - alone).abs().max()) > ROUNDING * max(float(alone.abs().max()), 1e-6):
        raise RiebenchError(
            f"{where} gives a picture other noise beside other pictures than alone, so that results would depend on "
            "the batch; use a copy of the model with another schedule"
        )


def _run(
    name: str, config: Mapping[str, Any], steps: int, rows: Sequence[int], arguments: Mapping[str, Any], *,
    names_end: bool,
) -> tuple[Tensor, int]:  # fmt: skip
    """Return the last latents of a trial and its calls.

    The answers in the place of the transformer's follow from the latents.
    """
    import diffusers
    import torch

    scheduler: Any = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(steps, **arguments)
    generators = [torch.Generator().manual_seed(row) for row in rows]
    latents = torch.cat([torch.randn((1, *TRIED_SHAPE), generator=one) for one in generators])
    latents = latents * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else latents
    if names_end:
        scheduler.set_begin_index(0)
    times = scheduler.timesteps[:-1] if names_end else scheduler.timesteps
    more = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    # Noise that a scheduler draws from elsewhere is then another one for each of the two trials.
    torch.randn(len(rows))
    for time in times:
        latents = scheduler.step(torch.tanh(latents), time, latents, **more, return_dict=False)[0]
    return latents.float(), len(times)

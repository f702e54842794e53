"""Schedules: those that can be followed, and those that files ask for.

A scheduler is tried alone, with noise in the place of the U-Net's answers: its number of calls, its noise and its
numbers show before a model is loaded.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import INDEX, read_json
from riebench.models.families.unet.configuration import AUTOENCODER, SCHEDULER
from riebench.utils.weights import metadata, tensor_shapes

if TYPE_CHECKING:
    import torch

TRIED_SHAPE = (4, 8, 8)
"""Latents of one row of the trial."""
ROUNDING = 1e-3
"""A row beside others may differ from the row alone by this share of its largest number."""


def check_schedule(
    folder: Path, steps: int, shown: str, title: str, stand_ins: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse a model folder whose schedule cannot be followed.

    Args:
        folder: in diffusers' layout; its weights are not read.
        steps: denoising steps of a run.
        shown: what the user called it.
        title: of the model family.
        stand_ins: class of a scheduler -> the class that is used in its place, with the same configuration.

    Raises:
        RiebenchError: in one line, naming the scheduler's class and, as far as it is known, the key.
    """
    import diffusers

    entry = read_json(folder / INDEX).get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers" else None
    name = stand_ins.get(str(name), name)
    kind: Any = getattr(diffusers, str(name), None)
    if not inspect.isclass(kind) or not str(name).endswith("Scheduler"):
        raise RiebenchError(f"{shown}: {INDEX} says scheduler {name or 'null'}, which diffusers does not have")
    config = read_json(folder / SCHEDULER)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make: Any = kind.from_config  # type: ignore[attr-defined]
            scheduler = make(config)
    except Exception as error:
        raise RiebenchError(_message(shown, str(name), config, error)) from error
    check_scheduler(scheduler, steps, shown, title, config)


def check_scheduler(
    scheduler: Any, steps: int, shown: str, title: str, config: Mapping[str, Any] | None = None
) -> None:  # fmt: skip
    """Refuse a scheduler whose steps are no calls, or that mixes rows.

    It is tried as a copy on a small batch.

    Args:
        scheduler: as the pipeline has it.
        steps: denoising steps of a run.
        shown: what the user called the model.
        title: of the model family.
        config: the keys of its file; None for those of the scheduler.

    Raises:
        RiebenchError: in one line, naming its class.
    """
    import torch

    name = type(scheduler).__name__
    stated = dict(scheduler.config) if config is None else config
    lacking = [what for what in ("scale_model_input", "init_noise_sigma", "order") if not hasattr(scheduler, what)]
    if lacking:
        raise RiebenchError(f"{shown}: {title}'s pipeline cannot use {name} ({SCHEDULER}); it has no {lacking[0]}")
    trial = type(scheduler).from_config(scheduler.config)
    try:
        trial.set_timesteps(steps)
        calls = len(trial.timesteps)
    except Exception as error:
        raise RiebenchError(_message(shown, name, stated, error, steps)) from error
    if calls != steps:
        raise RiebenchError(
            f"{shown}: {name} ({SCHEDULER}) calls the U-Net {calls} times in {steps} steps, but edits and "
            "traces need one call a step; use a copy of the model with EulerDiscreteScheduler in that file and in "
            f"{INDEX}"
        )
    try:
        with torch.inference_mode():
            both, alone = (_try(type(scheduler).from_config(scheduler.config), steps, rows) for rows in ((0, 1), (1,)))
    except Exception as error:
        raise RiebenchError(_message(shown, name, stated, error, steps)) from error
    if not bool(torch.isfinite(both).all()):
        raise RiebenchError(_message(shown, name, stated, None, steps))
    scale = max(float(alone.abs().max()), 1e-6)
    if float((both[1:] - alone).abs().max()) > ROUNDING * scale:
        raise RiebenchError(
            f"{shown}: {name} ({SCHEDULER}) gives a picture other noise beside other pictures than alone, "
            "so that results would depend on the batch; use a copy of the model with another scheduler"
        )


def _try(scheduler: Any, steps: int, rows: tuple[int, ...]) -> torch.Tensor:
    """Return the last latents of a run whose answers follow from the latents."""
    import torch

    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(row) for row in rows]
    latents = torch.cat([torch.randn((1, *TRIED_SHAPE), generator=one) for one in generators])
    latents = latents * scheduler.init_noise_sigma
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    known = inspect.signature(scheduler.step).parameters
    more: dict[str, Any] = {"generator": generators} if "generator" in known else {}
    more |= {"eta": 0.0} if "eta" in known else {}
    # Noise that a scheduler draws from elsewhere is then another one for each of the two trials.
    torch.randn(len(rows))
    for time in scheduler.timesteps:
        answer = torch.tanh(scheduler.scale_model_input(latents, time))
        latents = scheduler.step(answer, time, latents, **more, return_dict=False)[0]
    return latents.float()


def _message(shown: str, name: str, config: Mapping[str, Any], error: Exception | None, steps: int = 0) -> str:
    keys = _unusual(name, config)
    stated = f" with {', '.join(f'{key} {_short(config[key])}' for key in keys)}" if keys else ""
    why = next(iter(str(error).strip().splitlines()), type(error).__name__) if error else "its numbers are not finite"
    many = f" for {steps} steps" if steps else ""
    return f"{shown}: {name} ({SCHEDULER}){stated} cannot be used{many}: {why}"


def _unusual(name: str, config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a scheduler's file that are not as its class has them."""
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None:
        return []
    usual = {key: one.default for key, one in inspect.signature(kind.__init__).parameters.items()}
    ordinary = {"beta_start", "beta_end", "beta_schedule", "steps_offset"}
    return [
        key for key, value in config.items() if key in usual and key not in ordinary and usual[key] != value
    ]  # fmt: skip


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 40 else f"{text[:36]}..."


EPSILON, VELOCITY = "epsilon", "v_prediction"
_PREDICTIONS = {"v": VELOCITY, "v_prediction": VELOCITY, "epsilon": EPSILON, "eps": EPSILON, "sample": "sample"}
_EDM_TENSORS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


def check_training(file: Path, config: Mapping[str, Any], autoencoder: Mapping[str, Any], shown: str) -> None:
    """Refuse a file that was trained otherwise than its configuration states.

    Such files say so with a tensor (`v_pred`, `ztsnr`, `edm_...`) or in their metadata.

    Args:
        file: a safetensors file.
        config: the scheduler's configuration.
        autoencoder: the autoencoder's.
        shown: what the user called the file.

    Raises:
        RiebenchError: in one line, naming what the file says and the key that says otherwise.
    """
    names, notes = set(tensor_shapes(file)), metadata(file)
    kind = str(config.get("_class_name", ""))
    wanted = _stated_prediction(names, notes)
    has = config.get("prediction_type", EPSILON)
    if wanted is not None and wanted[1] != has:
        raise _contradiction(shown, wanted[0], f"prediction_type {has}", f"prediction_type {wanted[1]}")
    zero = "tensor ztsnr" if "ztsnr" in names else _first_true(notes, "ss_zero_terminal_snr", "ztsnr")
    if zero and not config.get("rescale_betas_zero_snr", False):
        raise _contradiction(shown, zero, "rescale_betas_zero_snr false", "rescale_betas_zero_snr true")
    edm = next((name for name in _EDM_TENSORS if name in names), None)
    if edm is not None and not kind.startswith("EDM"):
        raise _contradiction(shown, f"tensor {edm}", f"_class_name {kind}", "an EDM scheduler")
    if edm is not None:
        _check_edm(file, names, config, autoencoder, shown)


def _stated_prediction(names: set[str], notes: Mapping[str, str]) -> tuple[str, str] | None:
    if "v_pred" in names:
        return "tensor v_pred", VELOCITY
    if "edm_vpred.sigma_max" in names:
        return "tensor edm_vpred.sigma_max", VELOCITY
    for key in ("modelspec.prediction_type", "prediction_type"):
        if (word := notes.get(key, "").strip().lower()) in _PREDICTIONS:
            return f"metadata {key} {word}", _PREDICTIONS[word]
    training = _first_true(notes, "ss_v_parameterization")
    return (training, VELOCITY) if training else None


def _first_true(notes: Mapping[str, str], *keys: str) -> str:
    true = ("1", "true", "yes")
    return next((f"metadata {key} {notes[key]}" for key in keys if notes.get(key, "").strip().lower() in true), "")


def _check_edm(
    file: Path, names: set[str], config: Mapping[str, Any], autoencoder: Mapping[str, Any], shown: str
) -> None:
    from safetensors import safe_open

    pairs = {
        "edm_mean": (AUTOENCODER, "latents_mean", autoencoder.get("latents_mean")),
        "edm_std": (AUTOENCODER, "latents_std", autoencoder.get("latents_std")),
        "edm_vpred.sigma_max": (SCHEDULER, "sigma_max", config.get("sigma_max", 80.0)),
        "edm_vpred.sigma_min": (SCHEDULER, "sigma_min", config.get("sigma_min", 0.002)),
    }
    with safe_open(file, "pt") as opened:
        for name, (place, key, says) in pairs.items():
            if name not in names:
                continue
            values = [float(value) for value in opened.get_tensor(name).flatten()]
            listed = list(says) if isinstance(says, list) else [] if says is None else [says]
            if len(values) != len(listed) or not all(
                math.isclose(one, float(other), rel_tol=1e-2, abs_tol=1e-6)
                for one, other in zip(values, listed, strict=True)
            ):
                wanted = ", ".join(f"{value:g}" for value in values[:4])
                raise _contradiction(shown, f"tensor {name}", f"{key} {says}", f"{key} {wanted}", place)


def _contradiction(
    shown: str, says: str, key: str, wanted: str, file: str = SCHEDULER
) -> RiebenchError:  # fmt: skip
    return RiebenchError(
        f"{shown} says how it was trained ({says}), but its configuration, {file}, says {key}; use the folder of a "
        f"model with {wanted}"
    )

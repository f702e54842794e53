"""The models that find words in pictures: fetching them, loading them, giving their memory back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from riebench.errors import RiebenchError
from riebench.region_specs import MEGABYTES, RegionSpec, as_folder
from riebench.utils.hub import fetch, split_revision

SMALL_FILES = ("*.json", "*.txt", "*.model")


def locate(spec: RegionSpec, *, offline: bool = False) -> dict[str, Path]:
    """Where a provider's models lie on this machine; what is not here is fetched from the hub.

    Args:
        spec: the provider.
        offline: fetches nothing.

    Returns:
        Option -> folder, every one of them whole.

    Raises:
        RiebenchError: naming what is missing and how to get it.
    """
    return {option: locate_one(spec, option, offline=offline) for option in spec.models}


def locate_one(spec: RegionSpec, option: str, *, offline: bool = False) -> Path:
    """As `locate`, for the model of one option."""
    place = spec.models[option]
    folder = as_folder(place) or _from_hub(spec.provider, option, place, offline)
    spec.check_folder(option, folder)
    return folder


def _from_hub(provider: str, option: str, place: str, offline: bool) -> Path:
    name, revision = split_revision(place)
    try:
        folder = fetch(name, revision, patterns=(*SMALL_FILES, "*.safetensors"), offline=offline)
        if not any(folder.glob("*.safetensors")):
            folder = fetch(name, revision, patterns=(*SMALL_FILES, "pytorch_model*.bin"), offline=offline)
        return folder
    except RiebenchError as error:
        size = f" ({MEGABYTES[name]} MB)" if name in MEGABYTES else ""
        raise RiebenchError(
            f"--regions {provider} needs {name}{size}: {error}; or give a folder that holds it: "
            f"--regions {provider}:{option}=FOLDER"
        ) from error


def _why(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def load(kind: Any, folder: Path, device: torch.device) -> Any:
    """A region model in float32, in evaluation mode.

    Args:
        kind: its class, or one of transformers' Auto classes.
        folder: with its files.
        device: where it is to run.

    Raises:
        RiebenchError: if the files are damaged, or belong to another model.
    """
    try:
        with _quiet():
            model, report = kind.from_pretrained(
                str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    # Damaged files come as errors of safetensors, json, pickle or torch.
    except Exception as error:
        raise RiebenchError(f"{folder} cannot be loaded as {kind.__name__}: {_why(error)}") from error
    # transformers fills what is missing with random numbers and only warns.
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        first = missing[0] if missing else str(next(iter(report["mismatched_keys"])))
        raise RiebenchError(f"{folder} holds no whole {type(model).__name__}: {first} is missing or has other sizes")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise RiebenchError(f"{folder} holds weights that are no numbers (NaN or infinity); fetch them again")
    try:
        return model.requires_grad_(False).eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise RiebenchError(f"{type(model).__name__} does not go to {device}: {_why(error)}") from error


def load_processor(kind: Any, folder: Path) -> Any:
    """A region model's processor.

    Raises:
        RiebenchError: if a file of it is missing or damaged.
    """
    try:
        with _quiet():
            return kind.from_pretrained(str(folder), local_files_only=True)
    # A missing tokenizer or a damaged file comes as one of many errors.
    except Exception as error:
        raise RiebenchError(
            f"{folder} has no whole {kind.__name__} ({_why(error)}); fetch the model's *.json and *.txt files too"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    # SAM 2 is stored as a video model, which transformers remarks on each time its picture half is loaded.
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def free_memory() -> None:
    """Gives memory of models that nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

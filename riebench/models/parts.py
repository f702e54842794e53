"""Parts of a model that options exchange, and the call of what loads them.

Parts are autoencoder, denoiser and LoRAs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from riebench.errors import RiebenchError
from riebench.models.families.base import Family
from riebench.models.files import (
    autoencoder_source,
    check_autoencoder,
    folder_sha256,
    safetensors_file,
    weight_files,
)
from riebench.models.placement import out_of_memory
from riebench.models.spec import parse_lora
from riebench.utils.files import file_sha256
from riebench.utils.hub import fetch
from riebench.utils.machine import shortage
from riebench.utils.terminal import warnings_held
from riebench.utils.weights import tensor_names


def call_loader(shown: str, load: Any, *arguments: Any, **options: Any) -> Any:
    """Call a function that loads a model or a part of it.

    Args:
        shown: what the user called it.
        load: the function.
        arguments: for it.
        options: for it.

    Raises:
        RiebenchError: in one line, if it fails.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        with warnings_held("diffusers", "transformers"):
            return load(*arguments, **options)
    except (
        ImportError,
        LookupError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        MemoryError,
    ) as error:
        if out_of_memory(error):
            reason = f"{shortage(error)}, or --dtype float16"
        else:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RiebenchError(f"cannot load the model {shown}: {reason}") from error


def load_autoencoder(family: Family, wanted: str, dtype: str, *, offline: bool) -> tuple[Any, str]:
    """Load the autoencoder that `--vae` names.

    Args:
        family: of the model that it is put into.
        wanted: a short name of the family's, a folder, or a hub id with or without "@REVISION".
        dtype: number format of the model.
        offline: uses only what is on this machine.

    Returns:
        The autoencoder, and its name in a run's identity.

    Raises:
        RiebenchError: if it cannot be had, or is no autoencoder for this family.
    """
    path = Path(wanted).expanduser()
    if path.is_dir():
        folder, called = path, f"{path.resolve().name}@{folder_sha256(path)}"
    else:
        source, revision, weights = autoencoder_source(family, wanted)
        folder = fetch(source, revision, patterns=("config.json", weights), offline=offline)
        called = f"{source}@{folder.name}"
    which = check_autoencoder(family, folder, wanted)
    vae = call_loader(
        wanted, family.autoencoder_type().from_pretrained, str(folder), torch_dtype=torch.float32, variant=which,
        use_safetensors=True, local_files_only=True,
    )  # fmt: skip
    family.check_names("vae", _stored_names(folder, which), vae.state_dict(), f"--vae {wanted}")
    if not vae.config.get("force_upcast", True) and dtype != "float32":
        # Made to stay finite in float16; in bfloat16 an autoencoder's steps would be coarser than a picture's.
        nn.Module.to(vae, torch.float16)
    return vae, called


def _stored_names(folder: Path, which: str | None) -> set[str]:
    return set().union(*(tensor_names(file) for file in weight_files(folder, which)))


def put_autoencoder(pipe: Any, vae: Any) -> None:
    """Put an autoencoder into a pipeline."""
    pipe.register_modules(vae=vae)
    # DC-AE has an encoder and a decoder of different widths, but of one depth.
    widths = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    pipe.vae_scale_factor = 2 ** (len(widths) - 1)


def exchange_denoiser(pipe: Any, family: Family, wanted: str | None) -> str | None:
    """Put the denoiser of a file into a pipeline; return its name in a run's identity.

    Raises:
        RiebenchError: if the file is missing, is none, or was trained for another schedule than the model's.
    """
    if wanted is None:
        return None
    path = safetensors_file("--unet", wanted)
    family.check_training(path, dict(pipe.scheduler.config), dict(pipe.vae.config), f"--unet {path.name}")
    family.exchange_denoiser(pipe, path)
    return f"{path.name}@{file_sha256(path)}"


def add_loras(pipe: Any, family: Family, wanted: Sequence[str]) -> tuple[str, ...]:
    """Add LoRAs to a pipeline's weights; return their names in a run's identity.

    Raises:
        RiebenchError: if a file is missing, is no LoRA, or was trained for another model or schedule.
    """
    called = []
    for file, scale in map(parse_lora, wanted):
        path = safetensors_file("--lora", file)
        family.check_training(path, dict(pipe.scheduler.config), dict(pipe.vae.config), f"--lora {path.name}")
        family.add_lora(pipe, path, scale)
        called.append(f"{path.name}@{file_sha256(path)}:{scale:g}")
    return tuple(called)

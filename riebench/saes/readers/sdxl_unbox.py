"""The native format: a `state_dict.pth` and `config.json` per checkpoint.

The sdxl-unbox project writes its checkpoints so.

`mean.pt` and `std.pt` may lie beside (per feature, over the positions where it is active); nothing applies them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from riebench.blocks import long_name
from riebench.errors import RiebenchError
from riebench.saes.files import Checkpoint, Tensors, build, expect_shape, load_tensors, save_statistics, save_tensors
from riebench.saes.readers import sae_format
from riebench.saes.sae import Signal, SparseAutoencoder
from riebench.utils.files import file_sha256, write_atomic

WEIGHTS, CONFIG = "state_dict.pth", "config.json"


@sae_format("sdxl-unbox", needs=(WEIGHTS, CONFIG), fetch=("mean.pt", "std.pt"), usual_signal="update")
def read_sdxl_unbox(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read a checkpoint folder of the sdxl-unbox layout.

    The layout does not say what the SAE was trained on, and usually that is a block's update; riebench's own
    configurations have a key `signal` where it is not.

    Raises:
        RiebenchError: on missing or unknown tensors, shapes that contradict the configuration, an unknown signal, or
            damage.
    """
    config, path = _config(checkpoint), checkpoint.folder / WEIGHTS
    signal = config.get("signal")
    if signal not in (None, *get_args(Signal)):
        raise RiebenchError(f"{checkpoint.folder / CONFIG}: signal is update or output, not {signal!r}")
    stored = load_tensors(path)
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    tensors = Tensors(state, path, "an sdxl-unbox SAE")
    encoder, decoder, pre_bias, latent_bias = tensors.take(
        "encoder.weight", "decoder.weight", "pre_bias", "latent_bias"
    )
    tensors.skip("stats_last_nonzero")
    tensors.done()
    expect_shape(path, encoder, config["n_dirs_local"], config["d_model"], CONFIG)
    # The hash is of the weights alone: runs of this format have been named by it from the start.
    return build(
        path, encoder, decoder.T, pre_bias, pre_bias, latent_bias, k=config["k"], signal=signal,
        sha256=file_sha256(path),
    )  # fmt: skip


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    config, path = checkpoint.config(CONFIG), checkpoint.folder / CONFIG
    try:
        return {**config, **{key: int(config[key]) for key in ("n_dirs_local", "d_model", "k")}}
    except (KeyError, TypeError, ValueError) as error:
        raise RiebenchError(f"{path} lacks {error}; an SAE configuration has n_dirs_local, d_model and k") from error


def folder_name(block: str, k: int, n: int, *, auxk: int = 256, batch: int = 4096, rate: float = 1e-4) -> str:
    """Return the layout's folder name for a checkpoint.

    For instance "unet.mid_block.attentions.0_k10_hidden5120_auxk256_bs4096_lr0.0001".
    """
    return f"{long_name(block)}_k{k}_hidden{n}_auxk{auxk}_bs{batch}_lr{rate:g}"


def save_sdxl_unbox(
    folder: Path,
    *,
    encoder: Tensor,
    decoder: Tensor,
    pre_bias: Tensor,
    latent_bias: Tensor,
    k: int,
    auxk: int = 256,
    dead_steps_threshold: int = 2441,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder of the sdxl-unbox layout.

    Args:
        folder: the folder that gets `state_dict.pth` and `config.json`.
        encoder: [n, d].
        decoder: [d, n], unit columns.
        pre_bias: [d].
        latent_bias: [n].
        k: features per position.
        auxk: features of the auxiliary loss, for the record.
        dead_steps_threshold: steps after which a feature counted as dead, for the record.
        mean: [n], mean value of each feature where it is active.
        std: [n], its standard deviation there.
        extra: more entries for the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n, d = encoder.shape
    config = {
        "n_dirs_local": n, "d_model": d, "k": k, "auxk": auxk, "dead_steps_threshold": dead_steps_threshold,
        **(extra or {}),
    }  # fmt: skip
    state = {
        "pre_bias": pre_bias, "latent_bias": latent_bias, "encoder.weight": encoder, "decoder.weight": decoder,
        "stats_last_nonzero": torch.zeros(n, dtype=torch.long),
    }  # fmt: skip
    save_tensors({"state_dict": {name: t.detach().cpu().contiguous() for name, t in state.items()}}, folder / WEIGHTS)
    save_statistics(folder, mean, std)
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())

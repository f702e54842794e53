"""Readers of sparsify and SAeUron: `sae.safetensors` and `cfg.json`.

Tensors: encoder.weight [n, d], encoder.bias [n], W_dec [n, d], b_dec [d]; W_skip [d, d] of transcoders with a skip
connection. SAeUron is a fork with three more keys; its SAEs were trained on block outputs of Stable Diffusion 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from riebench.errors import RiebenchError, near_match
from riebench.saes.files import Checkpoint, Tensors, build, expect_shape, load_safetensors, whole
from riebench.saes.readers import sae_format
from riebench.saes.sae import Normalise, Signal, SparseAutoencoder

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
_OF_SAEURON = ("batch_topk", "sample_topk", "input_unit_norm")


def _is_saeuron(checkpoint: Checkpoint) -> bool:
    return any(key in checkpoint.config(CONFIG) for key in _OF_SAEURON)


@sae_format("sparsify", needs=(WEIGHTS, CONFIG), when=lambda checkpoint: not _is_saeuron(checkpoint))
def read_sparsify(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read a sparsify SAE or transcoder.

    A transcoder predicts what a module gives from what enters it; whether that is the block's update or its output, the
    file does not say.

    Raises:
        RiebenchError: for a convolutional or signed one, and damage.
    """
    activation = checkpoint.config(CONFIG).get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        known = near_match(str(activation), ("topk", "groupmax"))
        raise RiebenchError(f"{checkpoint.folder / CONFIG}: unknown activation {activation!r}{known}")
    return _read(checkpoint, "a sparsify SAE", activation=activation, signal=None)


@sae_format("SAeUron", needs=(WEIGHTS, CONFIG), when=_is_saeuron)
def read_saeuron(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read a SAeUron SAE.

    Its top-k is per position, whatever batch_topk and sample_topk say.

    Raises:
        RiebenchError: as `read_sparsify`.
    """
    unit_norm = bool(checkpoint.config(CONFIG).get("input_unit_norm"))
    return _read(
        checkpoint, "a SAeUron SAE", activation="topk", signal="output", normalise="layer" if unit_norm else "none"
    )


def _read(
    checkpoint: Checkpoint, what: str, *, activation: Any, signal: Signal | None, normalise: Normalise = "none"
) -> SparseAutoencoder:
    config, path, where = checkpoint.config(CONFIG), checkpoint.folder / WEIGHTS, checkpoint.folder / CONFIG
    tensors = Tensors(load_safetensors(path), path, what)
    _refuse(config, tensors, path)
    encoder, latent_bias, decoder, b_dec = tensors.take("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    skip = tensors.optional("W_skip")
    tensors.done()
    d = whole(config, "d_in", where)
    n = whole(config, "num_latents", where) if config.get("num_latents") else d * whole(
        config, "expansion_factor", where
    )  # fmt: skip
    expect_shape(path, encoder, n, d, CONFIG)
    # Before February 2025 files did not state `transcode`, and their code took b_dec off the input all the same.
    transcode = bool(config.get("transcode"))
    pre_bias = torch.zeros_like(b_dec) if transcode else b_dec
    return build(
        path, encoder, decoder, pre_bias, b_dec, latent_bias, k=whole(config, "k", where), activation=activation,
        normalise=normalise, signal=signal, transcoder=transcode or skip is not None, skip=skip,
        sha256=checkpoint.digest(WEIGHTS, CONFIG),
    )  # fmt: skip


def _refuse(config: dict[str, Any], tensors: Tensors, path: Path) -> None:
    if config.get("skip_connection") and "W_skip" not in tensors:
        raise RiebenchError(f"{path} lacks W_skip, though {CONFIG} states a skip connection; fetch it again")
    if config.get("signed"):
        raise RiebenchError(f"{path}: a signed SAE gives features negative values; give one with relu or top-k")
    if "encoder.weight" in tensors and tensors.state["encoder.weight"].dim() == 4:
        raise RiebenchError(
            f"{path}: a convolutional SAE (its encoder has four axes) has no direction per position to switch; give "
            "one that encodes each position alone"
        )

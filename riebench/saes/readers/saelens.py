"""Reader and writer of SAELens: `sae_weights.safetensors` and `cfg.json`.

Exports, training checkpoints, and flat files from before version 6 are read; JumpReLU SAEs are written.

Tensors: W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d]; threshold [n]; gated: b_gate, b_mag, r_mag [n].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from riebench.blocks import update_path
from riebench.errors import RiebenchError, near_match
from riebench.saes.files import (
    Checkpoint,
    Tensors,
    batch_threshold,
    build,
    expect_shape,
    load_safetensors,
    save_statistics,
    site_of,
    whole,
)
from riebench.saes.readers import sae_format
from riebench.saes.sae import Normalise, SparseAutoencoder
from riebench.utils.files import write_atomic

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_READABLE = ("standard", "topk", "jumprelu", "gated", *_BATCH)
_REFUSED = {
    "matching_pursuit": "it encodes step by step, not in one product",
    "temporal": "it looks at a sequence, not at one position",
}
_NORMALISE: dict[str, Normalise] = {"none": "none", "layer_norm": "layer", "constant_norm_rescale": "norm"}


@dataclass(frozen=True)
class _Config:
    """Settings from the configuration file, whatever its age."""

    architecture: str
    n: int
    d: int
    k: int | None
    activation: str
    normalise: Normalise
    input_scale: float
    rescale: bool
    subtract: bool
    hook: Any


@sae_format("SAELens", needs=(WEIGHTS, CONFIG))
def read_saelens(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read a SAELens export or training checkpoint.

    Raises:
        RiebenchError: on an architecture that is no plain SAE, missing or unknown tensors, contradictions, damage.
    """
    path = checkpoint.folder / WEIGHTS
    config = _read_config(checkpoint)
    tensors = Tensors(load_safetensors(path), path, f"a SAELens {config.architecture} SAE")
    w_enc, decoder, b_dec = tensors.take("W_enc", "W_dec", "b_dec")
    encoder = w_enc.float().T
    expect_shape(path, encoder, config.n, config.d, CONFIG)
    scaling = tensors.optional("scaling_factor")
    decoder = decoder.float() if scaling is None else decoder.float() * scaling.float()[:, None]
    options = _activation(checkpoint, config, tensors, path)
    latent_bias = options.pop("latent_bias", None)
    if latent_bias is None:
        (latent_bias,) = tensors.take("b_enc")
    tensors.done()
    if config.rescale:
        # Here the values that compete are already those of unit rows: part of the format, not our choice.
        lengths = decoder.norm(dim=1)
        encoder, latent_bias, decoder = encoder * lengths[:, None], latent_bias * lengths, decoder / lengths[:, None]
    block, signal = site_of(config.hook)
    b_dec, scale = b_dec.float(), config.input_scale
    return build(
        path, encoder * scale, decoder / scale, b_dec / scale if config.subtract else torch.zeros_like(b_dec),
        b_dec / scale, latent_bias, k=config.k, normalise=config.normalise, signal=signal, block=block,
        sha256=checkpoint.digest(WEIGHTS, CONFIG), **options,
    )  # fmt: skip


def _activation(checkpoint: Checkpoint, config: _Config, tensors: Tensors, path: Path) -> dict[str, Any]:
    kind = config.architecture
    if kind == "gated":
        gate_bias, latent_bias, r_mag = tensors.take("b_gate", "b_mag", "r_mag")
        return {
            "activation": "gated", "gate_bias": gate_bias, "gate_scale": r_mag.float().exp(), "latent_bias": latent_bias
        }  # fmt: skip
    if kind == "jumprelu":
        if "log_threshold" in tensors:
            return {"activation": "jump", "threshold": tensors.take("log_threshold")[0].float().exp()}
        return {"activation": "jump", "threshold": tensors.take("threshold")[0]}
    if kind in _BATCH:
        (threshold,) = tensors.take("topk_threshold")
        return {"activation": "jump", "threshold": batch_threshold(threshold, config.n, path)}
    if config.activation == "abstopk":
        if not checkpoint.options.signed:
            raise RiebenchError(
                f"{path}: abstopk gives features negative values, which rankings take for very inactive ones; to read "
                "it all the same, add #signed=yes"
            )
        return {"activation": "abstopk"}
    return {"activation": "topk" if kind == "topk" or config.activation == "topk" else "relu"}


def _read_config(checkpoint: Checkpoint) -> _Config:
    config, where = checkpoint.config(CONFIG), checkpoint.folder / CONFIG
    # Before version 6 everything lay flat, and a file without an architecture was a standard one.
    architecture = str(config.get("architecture") or "standard")
    _refuse_architectures(architecture, where)
    if config.get("reshape_activations", "none") != "none":
        raise RiebenchError(f"{where}: reshape_activations is {config['reshape_activations']!r}; only 'none' is read")
    activation = str(config.get("activation_fn") or config.get("activation_fn_str") or "relu")
    if activation not in ("relu", "topk", "abstopk"):
        raise RiebenchError(f"{where}: unknown activation {activation!r}{near_match(activation, ('relu', 'topk'))}")
    counts = {**(config.get("activation_fn_kwargs") or {}), **config}
    needs_k = architecture == "topk" or activation != "relu"
    normalise, scale = _normalisation(checkpoint, config, where)
    return _Config(
        architecture=architecture,
        n=whole(config, "d_sae", where),
        d=whole(config, "d_in", where),
        k=whole(counts, "k", where) if needs_k else _training_k(config),
        activation=activation,
        normalise=normalise,
        input_scale=scale,
        rescale=bool(config.get("rescale_acts_by_decoder_norm", architecture in _BATCH)),
        subtract=bool(config.get("apply_b_dec_to_input", True)),
        hook=(config.get("metadata") or config).get("hook_name"),
    )


def _training_k(config: dict[str, Any]) -> int | None:
    """Return k where it is only for the record, as of the training."""
    metadata = config.get("metadata")
    k = config.get("k", metadata.get("k") if isinstance(metadata, dict) else None)
    return int(k) if isinstance(k, int | float) and k >= 1 else None


def _refuse_architectures(architecture: str, where: Path) -> None:
    if "transcoder" in architecture:
        raise RiebenchError(f"{where}: a transcoder predicts another layer's output; give an SAE of block updates")
    if architecture in _REFUSED:
        raise RiebenchError(
            f"{where}: architecture {architecture!r} is not read: {_REFUSED[architecture]}; give one of "
            f"{', '.join(_READABLE)}"
        )
    if architecture not in _READABLE:
        raise RiebenchError(f"{where}: unknown architecture {architecture!r}{near_match(architecture, _READABLE)}")


def _normalisation(checkpoint: Checkpoint, config: dict[str, Any], where: Path) -> tuple[Normalise, float]:
    stated = config.get("normalize_activations", "none")
    if stated is None or isinstance(stated, bool):
        stated = "expected_average_only_in" if stated else "none"
    if stated == "expected_average_only_in":
        scale = checkpoint.options.input_scale
        if scale is None:
            raise RiebenchError(
                f"{where}: its inputs were multiplied by a constant (expected_average_only_in) that the export does "
                "not hold; add #input_scale=NUMBER (sqrt(d) over the mean length of its training inputs)"
            )
        return "none", scale
    if stated not in _NORMALISE:
        raise RiebenchError(f"{where}: unknown normalize_activations {stated!r}{near_match(str(stated), _NORMALISE)}")
    return _NORMALISE[stated], 1.0


def save_jumprelu(
    folder: Path,
    *,
    encoder: Tensor,
    decoder: Tensor,
    pre_bias: Tensor,
    latent_bias: Tensor,
    threshold: Tensor,
    k: int,
    block: str | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a JumpReLU SAE of block updates as SAELens does.

    Args:
        folder: the folder that gets `sae_weights.safetensors` and `cfg.json`.
        encoder: [n, d].
        decoder: [d, n], unit columns.
        pre_bias: [d], subtracted before the encoder and added after the decoder.
        latent_bias: [n].
        threshold: [n], values up to it count as zero.
        k: features per position that the training aimed at, for the record.
        block: the block it was trained on; its update is what the block's last projection gives.
        mean: [n], mean value of each feature where it is active.
        std: [n], its standard deviation there.
        extra: more entries for the metadata.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n, d = encoder.shape
    state = {
        "W_enc": encoder.T, "b_enc": latent_bias, "W_dec": decoder.T, "b_dec": pre_bias, "threshold": threshold
    }  # fmt: skip
    metadata = {"k": k, **({} if block is None else {"hook_name": update_path(block)}), **(extra or {})}
    config = {
        "architecture": "jumprelu", "d_in": d, "d_sae": n, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": metadata,
    }  # fmt: skip
    write_atomic(folder / WEIGHTS, save({name: t.detach().float().cpu().contiguous() for name, t in state.items()}))
    save_statistics(folder, mean, std)
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())

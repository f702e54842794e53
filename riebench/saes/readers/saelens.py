"""Reader and writer of SAELens: `sae_weights.safetensors` and `cfg.json`.

Exports, training checkpoints, and flat files from before version 6 are read; JumpReLU SAEs are written.

Tensors: W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d]; threshold [n]; gated: b_gate, b_mag, r_mag [n]. Of
transcoders W_dec is [n, width of the output], b_dec has that width, and W_skip is [width of the output, d]. A matching
pursuit encodes with its decoder, W_dec, and has b_dec alone beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

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
from riebench.saes.pursuit import PursuitRule
from riebench.saes.readers import sae_format
from riebench.saes.sae import Normalise, Signal, SparseAutoencoder
from riebench.utils.files import content_digest, write_atomic

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_PURSUIT = "matching_pursuit"
_COUNTING = ("topk", "abstopk")
_READABLE = ("standard", "jumprelu", "gated", _PURSUIT, *_COUNTING, *_BATCH)
_TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""Architecture of a transcoder -> that of an SAE with the same encoder."""
_REFUSED = {"temporal": "it looks at a sequence, not at one position"}
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
    transcoder: bool
    skip: bool
    signal: Any
    pursuit: PursuitRule | None


def _left_open(checkpoint: Checkpoint) -> tuple[str, ...]:
    lost = _lost_scale(checkpoint.config(CONFIG)) and checkpoint.options.input_scale is None
    return ("input_scale",) if lost else ()


@sae_format("SAELens", needs=(WEIGHTS, CONFIG), left_open=_left_open)
def read_saelens(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read a SAELens export or training checkpoint.

    Raises:
        RiebenchError: on an architecture that is no plain SAE, missing or unknown tensors, contradictions, damage.
    """
    path = checkpoint.folder / WEIGHTS
    config = _read_config(checkpoint)
    tensors = Tensors(load_safetensors(path), path, f"a SAELens {config.architecture} SAE")
    decoder, b_dec = tensors.take("W_dec", "b_dec")
    encoder = decoder.float() if config.pursuit else tensors.take("W_enc")[0].float().T
    expect_shape(path, encoder, config.n, config.d, CONFIG)
    (skip,) = tensors.take("W_skip") if config.skip else (None,)
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
    # riebench's own trainings say so where it is not the update that the named hook gives.
    if config.signal in get_args(Signal):
        signal = config.signal
    b_dec, scale = b_dec.float(), config.input_scale
    # What multiplies a transcoder's inputs says nothing about its outputs.
    back = 1.0 if config.transcoder else scale
    # A matching pursuit that subtracts nothing before its encoder adds nothing behind its decoder either.
    added = b_dec if config.subtract or not config.pursuit else torch.zeros_like(b_dec)
    # What the user says decides what is computed, so it belongs to the identity of a run.
    stored = checkpoint.digest(WEIGHTS, CONFIG)
    sha256 = stored if scale == 1 else content_digest([stored, scale])
    return build(
        path, encoder * scale, decoder / back, b_dec / scale if config.subtract else torch.zeros(config.d),
        added / back, latent_bias, k=config.k, normalise=config.normalise, signal=signal, block=block,
        transcoder=config.transcoder, skip=skip, pursuit=config.pursuit, sha256=sha256, **options,
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
    if config.pursuit:
        return {"activation": "matching-pursuit", "latent_bias": torch.zeros(config.n)}
    if "abstopk" in (kind, config.activation):
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
    stated = str(config.get("architecture") or "standard")
    architecture = _TRANSCODERS.get(stated, stated)
    _refuse_architectures(architecture, where)
    if config.get("reshape_activations", "none") != "none":
        raise RiebenchError(f"{where}: reshape_activations is {config['reshape_activations']!r}; only 'none' is read")
    activation = str(config.get("activation_fn") or config.get("activation_fn_str") or "relu")
    if activation not in ("relu", "topk", "abstopk"):
        raise RiebenchError(f"{where}: unknown activation {activation!r}{near_match(activation, ('relu', 'topk'))}")
    counts = {**(config.get("activation_fn_kwargs") or {}), **config}
    needs_k = architecture in _COUNTING or activation != "relu"
    normalise, scale = _normalisation(checkpoint, config, where)
    hooks = config.get("metadata") or config
    pursuit = _pursuit(config, scale, where) if architecture == _PURSUIT else None
    return _Config(
        architecture=architecture,
        n=whole(config, "d_sae", where),
        d=whole(config, "d_in", where),
        k=whole(counts, "k", where) if needs_k else _training_k(config),
        pursuit=pursuit,
        activation=activation,
        normalise=normalise,
        input_scale=scale,
        rescale=bool(config.get("rescale_acts_by_decoder_norm", architecture in _BATCH)),
        subtract=bool(config.get("apply_b_dec_to_input", True)) and stated not in _TRANSCODERS,
        hook=hooks.get("hook_name_out") if stated in _TRANSCODERS else hooks.get("hook_name"),
        transcoder=stated in _TRANSCODERS,
        skip="skip" in stated,
        signal=hooks.get("signal"),
    )


def _pursuit(config: dict[str, Any], scale: float, where: Path) -> PursuitRule:
    """Return the rule of a matching pursuit, for inputs before their scaling."""
    steps = "d_in" if config.get("max_iterations") is None else "max_iterations"
    threshold = config.get("residual_threshold", 0.01)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise RiebenchError(f"{where}: residual_threshold must be a number, not {threshold!r}")
    stop = bool(config.get("stop_on_duplicate_support", True))
    return PursuitRule(whole(config, steps, where), threshold / scale, stop)


def _training_k(config: dict[str, Any]) -> int | None:
    """Return k where it is only for the record, as of the training."""
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    # Batch top-k SAEs are exported as another architecture; newer exports keep the k of the training in here.
    details = metadata.get("training_architecture_details")
    k = config.get("k", details.get("k") if isinstance(details, dict) else metadata.get("k"))
    return int(k) if isinstance(k, int | float) and k >= 1 else None


def _refuse_architectures(architecture: str, where: Path) -> None:
    if architecture in _REFUSED:
        raise RiebenchError(
            f"{where}: architecture {architecture!r} is not read: {_REFUSED[architecture]}; give one of "
            f"{', '.join(_READABLE)}"
        )
    if architecture not in _READABLE:
        raise RiebenchError(f"{where}: unknown architecture {architecture!r}{near_match(architecture, _READABLE)}")


def _lost_scale(config: dict[str, Any]) -> bool:
    """Return whether inputs were multiplied by a constant that no export holds.

    The oldest files say so with `true`.
    """
    return config.get("normalize_activations") in (True, "expected_average_only_in")


def _normalisation(checkpoint: Checkpoint, config: dict[str, Any], where: Path) -> tuple[Normalise, float]:
    if _lost_scale(config):
        scale = checkpoint.options.input_scale
        if scale is None:
            raise RiebenchError(
                f"{where}: its inputs were multiplied by a constant (expected_average_only_in) that the export does "
                "not hold; add #input_scale=NUMBER (sqrt(d) over the mean length of its training inputs; `riebench sae "
                "inspect` with --model measures it)"
            )
        return "none", scale
    stated = config.get("normalize_activations") or "none"
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

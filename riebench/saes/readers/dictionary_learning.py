"""Reader and writer of the dictionary_learning library's format.

An SAE is `ae.pt`, with the class in `config.json` under trainer.dict_class. States in the middle of a training are
`checkpoints/ae_STEP.pt`, one folder below that configuration.

encoder.weight [n, d] and decoder.weight [d, n], or W_enc [d, n] and W_dec [n, d]; the biases' names differ from class
to class, but for top-k and batch top-k, which hold the same tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from riebench.blocks import update_path
from riebench.errors import RiebenchError, near_match
from riebench.saes.files import (
    Checkpoint,
    Tensors,
    batch_threshold,
    build,
    load_tensors,
    save_statistics,
    save_tensors,
    site_of,
)
from riebench.saes.readers import sae_format
from riebench.saes.sae import Signal, SparseAutoencoder
from riebench.utils.files import write_atomic

WEIGHTS, CONFIG = "ae.pt", "config.json"
_STEP = re.compile(r"ae_[0-9]+\.pt")
_Parts = tuple[tuple[Tensor, ...], dict[str, Any]]
"""Encoder, directions, pre_bias, decoder_bias, latent_bias; and the options of `SparseAutoencoder`."""


@sae_format("dictionary_learning", needs=(WEIGHTS,), fetch=(CONFIG,))
def read_dictionary_learning(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read an autoencoder of the dictionary_learning library.

    Raises:
        RiebenchError: for a class that is no plain SAE or cannot be determined, a batch top-k threshold that was never
            set, missing or unknown tensors, and damage.
    """
    return _read(checkpoint, WEIGHTS, CONFIG if checkpoint.has(WEIGHTS, CONFIG) else None)


def _is_step(checkpoint: Checkpoint) -> bool:
    path = checkpoint.only_file
    if path is None or not _STEP.fullmatch(path.name):
        return False
    config = _config_above(path)
    trainer = checkpoint.config(config).get("trainer") if config is not None else None
    return isinstance(trainer, dict) and "dict_class" in trainer


def _config_above(path: Path) -> str | None:
    """Return where the configuration of a training's step lies.

    The path is relative to the step's own folder; None if there is none.
    """
    places = (CONFIG, f"../{CONFIG}") if path.parent.name == "checkpoints" else (CONFIG,)
    return next((place for place in places if (path.parent / place).is_file()), None)


@sae_format("dictionary_learning step", when=_is_step, fetch=("*/ae_*.pt", CONFIG))
def read_dictionary_learning_step(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read the state of an autoencoder in the middle of the library's training.

    Raises:
        RiebenchError: as `read_dictionary_learning`.
    """
    path = checkpoint.only_file
    assert path is not None
    return _read(checkpoint, path.name, _config_above(path))


def _read(checkpoint: Checkpoint, weights: str, config_file: str | None) -> SparseAutoencoder:
    path = checkpoint.folder / weights
    stored = load_tensors(path)
    # A backup in the middle of training keeps optimiser and counters beside the autoencoder.
    state = stored["ae"] if isinstance(stored, dict) and isinstance(stored.get("ae"), dict) else stored
    config = checkpoint.config(config_file) if config_file is not None else {}
    trainer = config.get("trainer") if isinstance(config.get("trainer"), dict) else {}
    assert isinstance(trainer, dict)
    tensors = Tensors(state, path, "a dictionary_learning SAE")
    name = _class_name(trainer.get("dict_class"), tensors, path)
    tensors.what = f"a dictionary_learning {name}"
    parts, options = _CLASSES[name](tensors, trainer, path)
    tensors.done()
    _compare(trainer, parts[0], path)
    block, signal = site_of(trainer.get("submodule_name"))
    # riebench's own trainings say so where it is not the update that the named module gives.
    if config.get("signal") in get_args(Signal):
        signal = config["signal"]
    files = (weights,) if config_file is None else (weights, config_file)
    return build(path, *parts, signal=signal, block=block, sha256=checkpoint.digest(*files), **options)


def _class_name(stated: object, tensors: Tensors, path: Path) -> str:
    if isinstance(stated, str):
        if stated in _CLASSES:
            return stated
        raise RiebenchError(f"{path}: class {stated!r} is no SAE riebench reads{near_match(stated, _CLASSES)}")
    if "W_enc" in tensors:
        return "MatryoshkaBatchTopKSAE" if "group_sizes" in tensors else "JumpReluAutoEncoder"
    for name, sign in (
        ("GatedAutoEncoder", "r_mag"), ("AutoEncoderNew", "decoder.bias"), ("AutoEncoder", "bias"),
    ):  # fmt: skip
        if sign in tensors:
            return name
    raise RiebenchError(
        f"{path}: top-k and batch top-k SAEs hold the same tensors, so without {CONFIG} they cannot be told apart; put "
        f"it beside the file, or say which in a key mapping"
    )


def _autoencoder(tensors: Tensors, trainer: dict[str, Any], path: Path) -> _Parts:
    encoder, latent_bias, decoder, bias = tensors.take("encoder.weight", "encoder.bias", "decoder.weight", "bias")
    return (encoder, decoder.T, bias, bias, latent_bias), {"activation": "relu"}


def _autoencoder_new(tensors: Tensors, trainer: dict[str, Any], path: Path) -> _Parts:
    encoder, latent_bias, decoder, bias = tensors.take(
        "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"
    )
    return (encoder, decoder.T, torch.zeros_like(bias), bias, latent_bias), {"activation": "relu"}


def _top_k(tensors: Tensors, trainer: dict[str, Any], path: Path) -> _Parts:
    encoder, latent_bias, decoder, bias = tensors.take("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
    # It is kept up while training, but only the k largest count.
    tensors.skip("threshold")
    return (encoder, decoder.T, bias, bias, latent_bias), {"activation": "topk", "k": _k(tensors, trainer)}


def _batch_top_k(tensors: Tensors, trainer: dict[str, Any], path: Path) -> _Parts:
    encoder, latent_bias, decoder, bias, threshold = tensors.take(
        "encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "threshold"
    )
    # A top-k over the batch would make a picture depend on its neighbours.
    limits = batch_threshold(threshold, len(encoder), path)
    options = {"activation": "jump", "threshold": limits, "k": _k(tensors, trainer)}
    return (encoder, decoder.T, bias, bias, latent_bias), options


def _matryoshka(tensors: Tensors, trainer: dict[str, Any], path: Path) -> _Parts:
    encoder, latent_bias, decoder, bias, threshold = tensors.take("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    tensors.skip("group_sizes")
    limits = batch_threshold(threshold, encoder.shape[-1], path)
    options = {"activation": "jump", "threshold": limits, "k": _k(tensors, trainer)}
    return (encoder.T, decoder, bias, bias, latent_bias), options


def _jump(tensors: Tensors, trainer: dict[str, Any], path: Path) -> _Parts:
    encoder, latent_bias, decoder, bias, threshold = tensors.take("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    return (encoder.T, decoder, torch.zeros_like(bias), bias, latent_bias), {
        "activation": "jump", "threshold": threshold
    }  # fmt: skip


def _gated(tensors: Tensors, trainer: dict[str, Any], path: Path) -> _Parts:
    encoder, decoder, bias, r_mag, gate_bias, mag_bias = tensors.take(
        "encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"
    )
    options = {"activation": "gated", "gate_bias": gate_bias, "gate_scale": r_mag.float().exp()}
    return (encoder, decoder.T, bias, bias, mag_bias), options


_CLASSES: dict[str, Callable[[Tensors, dict[str, Any], Path], _Parts]] = {
    "AutoEncoder": _autoencoder,
    "AutoEncoderNew": _autoencoder_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump,
    "GatedAutoEncoder": _gated,
}


def _k(tensors: Tensors, trainer: dict[str, Any]) -> int | None:
    stored = tensors.number("k")
    stated = trainer.get("k", None if stored is None else float(stored))
    return int(stated) if isinstance(stated, int | float) else None


def _compare(trainer: dict[str, Any], encoder: Tensor, path: Path) -> None:
    stated = [trainer.get("dict_size"), trainer.get("activation_dim")]
    if None not in stated and stated != [*encoder.shape]:
        raise RiebenchError(f"{path}: encoder is {[*encoder.shape]}, {CONFIG} says {stated}")


def save_batch_topk(
    folder: Path,
    *,
    encoder: Tensor,
    decoder: Tensor,
    pre_bias: Tensor,
    latent_bias: Tensor,
    k: int,
    threshold: float,
    block: str | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a batch top-k SAE of block updates as the library's BatchTopKSAE.

    Args:
        folder: the folder that gets `ae.pt` and `config.json`.
        encoder: [n, d].
        decoder: [d, n], unit columns.
        pre_bias: [d], subtracted before the encoder and added after the decoder.
        latent_bias: [n].
        k: features per position, on average over a batch.
        threshold: values up to it count as zero.
        block: the block it was trained on; its update is what the block's last projection gives.
        mean: [n], mean value of each feature where it is active.
        std: [n], its standard deviation there.
        extra: more entries for the configuration.
    """
    state = {
        "b_dec": pre_bias, "encoder.weight": encoder, "encoder.bias": latent_bias, "decoder.weight": decoder,
        "k": torch.tensor(k), "threshold": torch.tensor(threshold),
    }  # fmt: skip
    _write(folder, state, {"dict_class": "BatchTopKSAE", "k": k}, encoder, block, mean, std, extra)


def save_matryoshka(
    folder: Path,
    *,
    encoder: Tensor,
    decoder: Tensor,
    pre_bias: Tensor,
    latent_bias: Tensor,
    k: int,
    threshold: float,
    groups: Sequence[int],
    block: str | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a Matryoshka SAE as the library's MatryoshkaBatchTopKSAE.

    Args:
        folder: see `save_batch_topk`, as for all that is not said here.
        encoder: [n, d].
        decoder: [d, n].
        pre_bias: [d].
        latent_bias: [n].
        k: features per position.
        threshold: values up to it count as zero.
        groups: sizes of the nested groups of features, which sum up to n.
        block: the block.
        mean: [n].
        std: [n].
        extra: more entries.
    """
    state = {
        "W_enc": encoder.T, "b_enc": latent_bias, "W_dec": decoder.T, "b_dec": pre_bias, "k": torch.tensor(k),
        "threshold": torch.tensor(threshold), "group_sizes": torch.tensor(list(groups)),
    }  # fmt: skip
    trainer = {"dict_class": "MatryoshkaBatchTopKSAE", "k": k, "group_sizes": list(groups)}
    _write(folder, state, trainer, encoder, block, mean, std, extra)


def _write(
    folder: Path, state: dict[str, Tensor], trainer: dict[str, Any], encoder: Tensor, block: str | None,
    mean: Tensor | None, std: Tensor | None, extra: dict[str, Any] | None,
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    trainer = trainer | {"dict_size": encoder.shape[0], "activation_dim": encoder.shape[1]}
    if block is not None:
        trainer["submodule_name"] = update_path(block)
    save_tensors({name: t.detach().cpu().contiguous() for name, t in state.items()}, folder / WEIGHTS)
    save_statistics(folder, mean, std)
    write_atomic(folder / CONFIG, (json.dumps({"trainer": trainer, **(extra or {})}, indent=2) + "\n").encode())

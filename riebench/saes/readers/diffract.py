"""Reader of DifFRACT: one `.pt` file for each stream and layer.

Transcoders and SAEs of the feed-forward layers of FLUX and Stable Diffusion 3, which take the denoiser's time: a
sinusoidal embedding and three linear layers scale and shift the encoder's input (`TimeModulation`). There is no
configuration; files are named `transcoder_STREAM_LAYER.pt` (feed-forward input -> its output) and `sae_STREAM_LAYER.pt`
(its output -> itself).

Tensors: encoder.weight [n, d], encoder.bias [n], decoder.weight [d, n], decoder.bias [d]; time_mlp.0, time_mlp.2 and
mod_linear, weight and bias each.
"""

from __future__ import annotations

from pathlib import Path

import torch

from riebench.errors import RiebenchError
from riebench.saes.files import Checkpoint, Tensors, build, load_tensors
from riebench.saes.readers import sae_format
from riebench.saes.sae import SparseAutoencoder, TimeModulation
from riebench.utils.files import file_sha256

_ROLES = {"transcoder": True, "sae": False}
"""First word of a file's name -> whether it is a transcoder."""
_TIME = ("time_mlp.0", "time_mlp.2", "mod_linear")


def _is_diffract(checkpoint: Checkpoint) -> bool:
    path = checkpoint.only_file
    # The files are named by their role, which their tensors do not tell.
    return path is not None and path.suffix == ".pt" and _role(path) in _ROLES and _has_modulation(path)


def _role(path: Path) -> str:
    return path.stem.split("_")[0]


def _has_modulation(path: Path) -> bool:
    try:
        stored = load_tensors(path)
    except RiebenchError:
        return False
    return isinstance(stored, dict) and f"{_TIME[-1]}.weight" in stored


@sae_format("DifFRACT", when=_is_diffract)
def read_diffract(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read a DifFRACT transcoder or SAE.

    Its signal is what the feed-forward layer gives, which is part of what its block adds. Its time is that of FLUX's
    denoiser, from 1 to 0; those of Stable Diffusion 3 take a thousandth of the denoiser's time, which no file states.

    Raises:
        RiebenchError: on missing or unknown tensors, shapes that do not fit, or damage.
    """
    path = checkpoint.only_file
    assert path is not None
    tensors = Tensors(load_tensors(path), path, "a DifFRACT transcoder")
    encoder, latent_bias, decoder, decoder_bias = tensors.take(
        "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"
    )
    layers = [tensors.take(f"{name}.weight", f"{name}.bias") for name in _TIME]
    tensors.done()
    try:
        time = TimeModulation(*((weight, bias) for weight, bias in layers))
    except RiebenchError as error:
        raise RiebenchError(f"{path}: {error}") from error
    return build(
        path, encoder, decoder.T, torch.zeros(encoder.shape[-1]), decoder_bias, latent_bias, activation="relu",
        signal="update", transcoder=_ROLES[_role(path)], time=time, sha256=file_sha256(path),
    )  # fmt: skip

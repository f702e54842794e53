"""Reader of saev: one file, a line of JSON and then a torch archive.

Tensors: W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d], maybe activation.threshold. Files whose header has no schema
subtract b_dec before the encoder, all later ones do not.
"""

from __future__ import annotations

from typing import Any

import torch

from riebench.errors import RiebenchError, near_match
from riebench.saes.files import Checkpoint, Tensors, build, expect_shape, load_tensors_after, whole
from riebench.saes.readers import sae_format
from riebench.saes.sae import SparseAutoencoder
from riebench.utils.files import file_sha256, parse_json

_KINDS = {
    "relu": "relu", "topk": "topk", "batchtopk": "batchtopk", "top-k": "topk", "batch-top-k": "batchtopk",
}  # fmt: skip
_SCHEMAS = range(1, 6)


def _is_saev(checkpoint: Checkpoint) -> bool:
    path = checkpoint.only_file
    if path is None or path.suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        return file.read(1) == b"{"


@sae_format("saev", when=_is_saev, fetch=("*.pt",))
def read_saev(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read a saev autoencoder.

    Raises:
        RiebenchError: on an unknown schema or activation, shapes that contradict the header, or damage.
    """
    path = checkpoint.only_file
    assert path is not None
    with path.open("rb") as file:
        first = file.readline()
    try:
        header = parse_json(first)
    except ValueError as error:
        raise RiebenchError(f"{path}: its first line is no JSON header ({error}); fetch it again") from error
    old = "schema" not in header
    if not old and header["schema"] not in _SCHEMAS:
        raise RiebenchError(f"{path}: schema {header['schema']} is newer than riebench knows (1 to {_SCHEMAS[-1]})")
    config = header if old else header.get("cfg", {})
    tensors = Tensors(load_tensors_after(path, len(first)), path, "a saev SAE")
    w_enc, latent_bias, decoder, b_dec = tensors.take("W_enc", "b_enc", "W_dec", "b_dec")
    options = {"activation": "relu"} if old else _activation(header, config, tensors, path, w_enc.shape[-1])
    tensors.done()
    d = whole(config, "d_model" if "d_model" in config else "d_vit", path)
    n = whole(config, "d_sae", path) if "d_sae" in config else d * whole(config, "exp_factor", path)
    expect_shape(path, w_enc.T, n, d, "its header")
    return build(
        path, w_enc.T, decoder, b_dec if old else torch.zeros_like(b_dec), b_dec, latent_bias, signal=None,
        sha256=file_sha256(path), **options,
    )  # fmt: skip


def _activation(header: dict[str, Any], config: dict[str, Any], tensors: Tensors, path: Any, n: int) -> dict[str, Any]:
    stated = config.get("activation")
    if not isinstance(stated, dict):
        # The first files of schema 1 name the activation where later ones name the class.
        stated = {"cls": header.get("cls", "Relu"), "params": config}
    params = {**stated, **(stated.get("params") or {})}
    name = str(params.get("cls") or params.get("kind"))
    kind = _KINDS.get(name.lower())
    if kind is None:
        raise RiebenchError(f"{path}: unknown activation {name!r}{near_match(name, ('Relu', 'TopK', 'BatchTopK'))}")
    threshold = tensors.optional("activation.threshold")
    if kind == "relu":
        return {"activation": "relu"}
    k = min(whole(params, "top_k", path), n)
    if kind == "batchtopk" and threshold is not None:
        # At or below zero it was never set, and the format itself falls back to relu.
        return {"activation": "jump", "threshold": threshold.float().clamp(min=0).reshape(1).expand(n), "k": k}
    return {"activation": "topk-signed", "k": k}

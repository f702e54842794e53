"""Stored SAEs with pursuit, tied or computed matrices, thresholds as numbers, and weights in shards.

The writers go by the rules of `sae_files`. A second kind rewrites files that are there: in shards, or with the names
that wrappers of a module give.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sae_files import (
    OVERCOMPLETE,
    Floats,
    K,
    Parts,
    Truth,
    above,
    f64,
    largest,
    openai,
    overcomplete,
    put,
    put_json,
    relu,
    saelens,
    top_k,
    truth,
    write_saelens_topk,
    write_sparsify,
)  # fmt: skip
from safetensors.torch import load_file, save_file
from torch import Tensor

MATRIX = {"encoder": "features, width", "decoder": "features, width"}


@dataclass(frozen=True)
class PursuitTruth(Truth):
    """A matching pursuit: the value of the best row is added to its code and its part taken from the rest."""

    steps: int = K
    signed: bool = False
    shorter_than: float = 0.0
    stop_on_repeat: bool = False

    def codes(self, x: Floats) -> Floats:
        eye, zero = np.eye(x.shape[-1]), np.zeros(x.shape[-1])
        # What a layout does to a position before its encoder is the same for all.
        centred = Truth(eye, eye, self.pre, zero, zero, lambda q: q, self.norm).codes(x)
        return np.stack([self._pursue(row) for row in centred.reshape(-1, x.shape[-1])]).reshape(*x.shape[:-1], -1)

    def _pursue(self, rest: Floats) -> Floats:
        found = np.zeros(len(self.encoder))
        for _ in range(self.steps):
            products = self.encoder @ rest
            best = int(products.argmax())
            value = products[best] if self.signed else max(products[best], 0)
            again = found[best] != 0 or value == 0
            found[best] += value
            rest = rest - value * self.decoder[best]
            if (self.stop_on_repeat and again) or np.linalg.norm(rest) < self.shorter_than:
                break
        return found


def short_rows(p: Parts, length: float = 0.9) -> Parts:
    """Decoder rows of nearly one length below 1, so that a pursuit shortens the rest at every step."""
    lengths = p.decoder.norm(dim=1, keepdim=True)
    return replace(p, decoder=p.decoder / lengths * torch.linspace(length, 1, p.n)[:, None])


def _pursuit_file(folder: Path, p: Parts, **config: Any) -> None:
    put(folder, "sae_weights.safetensors", {"W_dec": p.decoder, "b_dec": p.b_dec})
    put_json(folder, "cfg.json", {"architecture": "matching_pursuit", "d_in": p.d, "d_sae": p.n, **config})


def _pursuit(p: Parts, pre: Floats, **rule: Any) -> PursuitTruth:
    rows, zero = f64(p.decoder), np.zeros(p.n)
    return PursuitTruth(rows, rows, pre, pre, zero, relu, **rule)


def write_saelens_pursuit(folder: Path, p: Parts) -> Truth:
    p = short_rows(p)
    _pursuit_file(
        folder, p, max_iterations=None, residual_threshold=1.5, stop_on_duplicate_support=False,
        apply_b_dec_to_input=True,
    )  # fmt: skip
    return _pursuit(p, f64(p.b_dec), steps=p.d, shorter_than=1.5)


def write_saelens_pursuit_until_repeat(folder: Path, p: Parts) -> Truth:
    p = short_rows(p)
    hook = {"hook_name": "unet.mid_block.attentions.0.proj_out"}
    _pursuit_file(
        folder, p, max_iterations=9, residual_threshold=0.0, apply_b_dec_to_input=False, normalize_activations="none",
        metadata=hook,
    )  # fmt: skip
    return _pursuit(p, np.zeros(p.d), steps=9, stop_on_repeat=True, signal="update")


def write_saelens_pursuit_layer_norm(folder: Path, p: Parts) -> Truth:
    p = short_rows(p)
    _pursuit_file(folder, p, max_iterations=3, residual_threshold=0.0, normalize_activations="layer_norm")
    return _pursuit(p, f64(p.b_dec), steps=3, norm="layer", stop_on_repeat=True)


def without(mapping: dict[str, Any], *keys: str, **change: Any) -> dict[str, Any]:
    """A mapping with some keys changed and others left out."""
    return {key: value for key, value in {**mapping, **change}.items() if key not in keys}


def _unit(rows: Tensor) -> Floats:
    return f64(rows) / np.linalg.norm(f64(rows), axis=1, keepdims=True)


PURSUED: dict[str, Any] = {
    "activation": "matching-pursuit-signed", "k": 3, "signal": "update", "tied": True, "unit_rows": ["decoder"],
    "tensors": {"decoder": "dictionary._weights", "multiplier": "dictionary.multiplier"},
    "axes": {"decoder": "features, width"}, "logarithms": ["multiplier"],
}  # fmt: skip


def write_overcomplete_pursuit(folder: Path, p: Parts) -> Truth:
    put(folder, "weights.pt", {"dictionary._weights": p.decoder, "dictionary.multiplier": torch.tensor(0.1)})
    (folder / "mapping.yaml").write_text(yaml.safe_dump(PURSUED))
    rows, zero = _unit(p.decoder) * np.exp(np.float64(np.float32(0.1))), np.zeros(p.d)
    return PursuitTruth(rows, rows, zero, zero, np.zeros(p.n), relu, signal="update", steps=3, signed=True)


ARCHETYPAL: dict[str, Any] = without(
    OVERCOMPLETE,
    tensors={
        **without(OVERCOMPLETE["tensors"], "decoder"), "mixture": "dictionary.W", "points": "dictionary.C",
        "relaxation": "dictionary.Relax",
    },
    axes={"encoder": "features, width"}, relaxation_limit=0.5,
)  # fmt: skip


def archetypal(p: Parts) -> dict[str, Tensor]:
    """Tensors of a dictionary that mixes points; some numbers below zero, and rows on both sides of the limit."""
    generator, lengths = torch.Generator().manual_seed(3), torch.linspace(0.05, 0.9, p.n)[:, None]
    return {
        "encoder.final_block.0.weight": p.encoder, "encoder.final_block.0.bias": p.b_enc,
        "dictionary.W": torch.randn(p.n, 5, generator=generator), "dictionary.Relax": p.decoder * lengths,
        "dictionary.C": torch.randn(5, p.d, generator=generator), "dictionary.multiplier": torch.tensor(0.3),
    }  # fmt: skip


def write_overcomplete_archetypal(folder: Path, p: Parts) -> Truth:
    state = archetypal(p)
    put(folder, "weights.pt", state)
    (folder / "mapping.yaml").write_text(yaml.safe_dump(ARCHETYPAL))
    mixture, relaxation = relu(f64(state["dictionary.W"])), f64(state["dictionary.Relax"])
    lengths = np.linalg.norm(relaxation, axis=1, keepdims=True)
    rows = mixture / (mixture.sum(1, keepdims=True) + 1e-8) @ f64(state["dictionary.C"])
    rows = (rows + relaxation * np.minimum(0.5 / lengths, 1)) * np.exp(np.float64(np.float32(0.3)))
    zero = np.zeros(p.d)
    return Truth(f64(p.encoder), rows, zero, zero, f64(p.b_enc), top_k, signal="update")


def write_overcomplete_tied(folder: Path, p: Parts) -> Truth:
    factor = torch.tensor(0.3)
    shared = {f"{part}.{name}": tensor for part in ("dictionary", "encoder.tied_to")
              for name, tensor in (("_weights", p.decoder), ("multiplier", factor))}  # fmt: skip
    put(folder, "weights.pt", {**shared, "encoder.bias": p.b_enc})
    tensors = {**PURSUED["tensors"], "latent_bias": "encoder.bias"}
    mapping = {**PURSUED, "activation": "topk", "k": K, "tensors": tensors, "unit_rows": []}
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    rows, zero = f64(p.decoder) * np.exp(np.float64(np.float32(0.3))), np.zeros(p.d)
    return Truth(rows, rows, zero, zero, f64(p.b_enc), top_k, signal="update")


def write_overcomplete_batch_topk(folder: Path, p: Parts) -> Truth:
    tensors = {**OVERCOMPLETE["tensors"], "threshold": 0.4}
    overcomplete(folder, p, without(OVERCOMPLETE, "k", activation="jump", tensors=tensors))
    one, factor = truth(p, above(np.float64(np.float32(0.4)))), np.exp(np.float64(np.float32(0.3)))
    zero = np.zeros(p.d)
    return replace(one, decoder=one.decoder * factor, pre=zero, b_dec=zero, signal="update")


def write_tied_by_the_encoder(folder: Path, p: Parts) -> Truth:
    put(folder, "weights.safetensors", {"w": p.encoder.T, "b": p.b_enc, "center": p.b_dec})
    mapping = {
        "activation": "relu", "signal": "output", "tied": True, "axes": {"encoder": "width, features"},
        "tensors": {"encoder": "w", "latent_bias": "b", "pre_bias": "center", "decoder_bias": "center"},
    }  # fmt: skip
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return replace(truth(p, relu, signal="output"), decoder=f64(p.encoder))


def write_openai_tied(folder: Path, p: Parts) -> Truth:
    openai(folder, p, activation="TopK", activation_state_dict={"k": K, "postact_fn": "ReLU"})
    state = torch.load(folder / "autoencoder.pt", weights_only=True)
    del state["decoder.weight"]
    put(folder, "autoencoder.pt", {**state, "decoder.linear.weight": p.encoder})
    return replace(truth(p, top_k, norm="layer"), decoder=f64(p.encoder))


def put_in_shards(path: Path, count: int = 2) -> list[Path]:
    """Rewrite a safetensors file as shards with an index."""
    state = load_file(path)
    names = sorted(state)
    shards: list[Path] = []
    places: dict[str, str] = {}
    for i in range(count):
        shard = path.with_name(f"{path.stem}-{i + 1:05}-of-{count:05}.safetensors")
        mine = names[i::count]
        save_file({name: state[name] for name in mine}, shard)
        shards.append(shard)
        places |= dict.fromkeys(mine, shard.name)
    index = {"metadata": {"total_size": path.stat().st_size}, "weight_map": places}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()
    return shards


def write_saelens_in_shards(folder: Path, p: Parts) -> Truth:
    expected = write_saelens_topk(folder, p)
    put_in_shards(folder / "sae_weights.safetensors", 3)
    return expected


def write_sparsify_in_shards(folder: Path, p: Parts) -> Truth:
    expected = write_sparsify(folder, p)
    put_in_shards(folder / "sae.safetensors")
    return expected


def write_mapped_in_shards(folder: Path, p: Parts) -> Truth:
    expected = write_tied_by_the_encoder(folder, p)
    (folder / "weights.safetensors").rename(folder / "model.safetensors")
    put_in_shards(folder / "model.safetensors")
    return expected


def rename_tensors(path: Path, rename: Callable[[str], str]) -> None:
    """Rewrite a file of weights with other names; its header, if it has one, stays."""
    if path.suffix == ".safetensors":
        save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)
        return
    content = path.read_bytes()
    header = content[: content.index(b"\n") + 1] if content.startswith(b"{") else b""
    path.write_bytes(content[len(header) :])
    stored = torch.load(path, weights_only=True)
    inner = next((key for key in ("state_dict", "ae") if key in stored), None)
    state = stored if inner is None else stored[inner]
    state = {rename(name): tensor for name, tensor in state.items()}
    torch.save(state if inner is None else {**stored, inner: state}, path)
    path.write_bytes(header + path.read_bytes())


def write_saelens_abstopk(folder: Path, p: Parts, *, rescale: bool) -> Truth:
    """One with negative values, as versions from 6.54 write it; to be read with `signed=yes`."""
    saelens(folder, p, {"architecture": "abstopk", "k": K, "rescale_acts_by_decoder_norm": rescale})
    lengths = np.linalg.norm(f64(p.decoder), axis=1) if rescale else np.ones(p.n)

    def abs_top_k(q: Floats) -> Floats:
        scaled = q * lengths
        return np.where(largest(np.abs(scaled)) > 0, q, 0)

    return truth(p, abs_top_k)


LAYOUT_WRITERS: dict[str, tuple[str, Callable[[Path, Parts], Truth]]] = {
    "saelens pursuit": ("SAELens", write_saelens_pursuit),
    "saelens pursuit until repeat": ("SAELens", write_saelens_pursuit_until_repeat),
    "saelens pursuit layer norm": ("SAELens", write_saelens_pursuit_layer_norm),
    "saelens in shards": ("SAELens", write_saelens_in_shards),
    "sparsify in shards": ("sparsify", write_sparsify_in_shards),
    "openai tied": ("openai", write_openai_tied),
    "overcomplete pursuit": ("mapping", write_overcomplete_pursuit),
    "overcomplete archetypal": ("mapping", write_overcomplete_archetypal),
    "overcomplete tied": ("mapping", write_overcomplete_tied),
    "overcomplete batch topk": ("mapping", write_overcomplete_batch_topk),
    "tied by the encoder": ("mapping", write_tied_by_the_encoder),
    "mapped in shards": ("mapping", write_mapped_in_shards),
}
"""Name -> the format that must be found, and the writer; beside `sae_files.WRITERS`."""

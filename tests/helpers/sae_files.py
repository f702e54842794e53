"""Stored SAEs of every format, written from the formats' description, each with what it must compute.

`write_NAME(folder, parts)` writes one and returns its `Truth`: codes (for decoder rows of length one) and
reconstruction in float64, from the formats' arithmetic alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

Floats = NDArray[np.float64]
Act = Callable[[Floats], Floats]

K = 2
OVERCOMPLETE: dict[str, Any] = {
    "activation": "topk", "k": K, "signal": "update", "block": "mid.0",
    "tensors": {
        "encoder": "encoder.final_block.0.weight", "latent_bias": "encoder.final_block.0.bias",
        "decoder": "dictionary._weights", "multiplier": "dictionary.multiplier",
    },
    "axes": {"encoder": "features, width", "decoder": "features, width"},
    "logarithms": ["multiplier"],
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Random tensors of an SAE: encoder and decoder [n, d], the others by their names."""

    encoder: Tensor
    decoder: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor
    r_mag: Tensor
    gate: Tensor

    @property
    def n(self) -> int:
        return len(self.encoder)

    @property
    def d(self) -> int:
        return self.encoder.shape[1]


def parts(n: int = 6, d: int = 4, seed: int = 0) -> Parts:
    """Tensors of an SAE with rows of any length; latents are biased down, so that some positions have few active."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Parts(normal(n, d), normal(n, d), normal(n) - 0.5, normal(d), normal(n).abs() / 2, normal(n) / 4, normal(n))


@dataclass(frozen=True)
class Truth:
    """What an SAE computes: p = (N(x) - pre) @ encoder^T + b_enc, f = act(p), x^ = N^-1(f @ decoder + b_dec)."""

    encoder: Floats
    decoder: Floats
    pre: Floats
    b_dec: Floats
    b_enc: Floats
    act: Act
    norm: str = "none"
    signal: str | None = None

    def codes(self, x: Floats) -> Floats:
        """For the stored decoder's rows."""
        return self.act((self.normalised(x) - self.pre) @ self.encoder.T + self.b_enc)

    def normalised(self, x: Floats) -> Floats:
        mean, scale = self._norm(x)
        small = 1e-5 if self.norm == "layer" else 0.0
        result: Floats = (x - mean) / (scale + small)
        return result

    def unit_codes(self, x: Floats) -> Floats:
        """For rows of length one."""
        return self.codes(x) * np.linalg.norm(self.decoder, axis=1)

    def reconstruction(self, x: Floats) -> Floats:
        mean, scale = self._norm(x)
        return (self.codes(x) @ self.decoder + self.b_dec) * scale + mean

    def _norm(self, x: Floats) -> tuple[Floats | float, Floats | float]:
        if self.norm == "layer":
            return x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        if self.norm == "norm":
            return 0.0, np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1])
        return 0.0, 1.0


def truth(p: Parts, act: Act, *, subtract: bool = True, norm: str = "none", signal: str | None = None) -> Truth:
    b_dec = f64(p.b_dec)
    pre = b_dec if subtract else np.zeros_like(b_dec)
    return Truth(f64(p.encoder), f64(p.decoder), pre, b_dec, f64(p.b_enc), act, norm, signal)


def f64(tensor: Tensor) -> Floats:
    return tensor.double().numpy()


def relu(p: Floats) -> Floats:
    return np.maximum(p, 0)


def largest(p: Floats, k: int = K) -> Floats:
    """The k largest of each row as they are, the rest zero."""
    order = np.argsort(-p, axis=-1)[..., :k]
    mask = np.zeros_like(p)
    np.put_along_axis(mask, order, 1.0, axis=-1)
    return p * mask


def top_k(p: Floats) -> Floats:
    return relu(largest(p))


def above(threshold: Floats | float) -> Act:
    return lambda p: np.where(p > threshold, relu(p), 0)


def gated(p: Parts) -> Act:
    """`q` comes without a bias of its own."""
    scale, b_mag, b_gate = np.exp(f64(p.r_mag)), f64(p.b_enc), f64(p.gate)
    return lambda q: relu(q * scale + b_mag) * (q + b_gate > 0)


def column_major(matrix: Tensor) -> Tensor:
    """The same numbers, as optimisers that work on columns leave them."""
    return matrix.T.contiguous().T


def put(folder: Path, name: str, state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    else:
        torch.save(state, folder / name)


def put_json(folder: Path, name: str, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config))


def write_unbox(folder: Path, p: Parts, k: int = K) -> Truth:
    state = {
        "encoder.weight": p.encoder, "decoder.weight": column_major(p.decoder.T), "pre_bias": p.b_dec,
        "latent_bias": p.b_enc, "stats_last_nonzero": torch.zeros(p.n, dtype=torch.long),
    }  # fmt: skip
    put(folder, "state_dict.pth", {"state_dict": state})
    put_json(
        folder, "config.json",
        {"n_dirs_local": p.n, "d_model": p.d, "k": k, "auxk": 256, "dead_steps_threshold": 9, "auxk_coef": 0.03},
    )  # fmt: skip
    return truth(p, lambda q: relu(largest(q, k)), signal="update")


def saelens(folder: Path, p: Parts, config: dict[str, Any], state: dict[str, Tensor] | None = None) -> None:
    tensors = {"W_enc": p.encoder.T, "W_dec": p.decoder, "b_enc": p.b_enc, "b_dec": p.b_dec, **(state or {})}
    if config.get("architecture") == "gated":
        del tensors["b_enc"]
    put(folder, "sae_weights.safetensors", tensors)
    put_json(folder, "cfg.json", {"d_in": p.d, "d_sae": p.n, "dtype": "float32", "device": "cpu", **config})


def write_saelens_standard(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "standard", "apply_b_dec_to_input": True, "normalize_activations": "none"})
    return truth(p, relu)


def write_saelens_without_subtraction(folder: Path, p: Parts) -> Truth:
    hook = {"hook_name": "unet.mid_block.attentions.0.proj_out"}
    saelens(folder, p, {"architecture": "standard", "apply_b_dec_to_input": False, "metadata": hook})
    return truth(p, relu, subtract=False, signal="update")


def write_saelens_topk(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": False})
    return truth(p, top_k)


def _rescaled(p: Parts, act: Act) -> Truth:
    # The values that compete are p * row length, and decoding divides by it again.
    lengths = np.linalg.norm(f64(p.decoder), axis=1)
    return truth(p, lambda q: act(q * lengths) / lengths)


def write_saelens_topk_rescaled(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True})
    return _rescaled(p, top_k)


def write_saelens_jumprelu(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "jumprelu"}, {"threshold": p.threshold})
    return truth(p, above(f64(p.threshold)))


def write_saelens_old_jumprelu(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "jumprelu"}, {"log_threshold": p.threshold.log()})
    return truth(p, above(f64(p.threshold)))


def write_saelens_gated(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "gated"}, {"b_gate": p.gate, "b_mag": p.b_enc, "r_mag": p.r_mag})
    return _without_bias(truth(p, gated(p)))


def _without_bias(one: Truth) -> Truth:
    return Truth(one.encoder, one.decoder, one.pre, one.b_dec, np.zeros_like(one.b_enc), one.act, one.norm, one.signal)


def write_saelens_before_6(folder: Path, p: Parts) -> Truth:
    scaling = torch.linspace(0.5, 2, p.n)
    saelens(
        folder, p, {"activation_fn_str": "relu", "normalize_activations": False, "hook_name": "blocks.0.mlp"},
        {"scaling_factor": scaling},
    )  # fmt: skip
    one = truth(p, relu)
    return Truth(one.encoder, one.decoder * f64(scaling)[:, None], one.pre, one.b_dec, one.b_enc, relu)


def write_saelens_topk_before_6(folder: Path, p: Parts) -> Truth:
    saelens(
        folder, p, {"architecture": "standard", "activation_fn": "topk", "activation_fn_kwargs": {"k": K}},
        {"scaling_factor": torch.ones(p.n)},
    )  # fmt: skip
    return truth(p, top_k)


def write_saelens_in_training(folder: Path, p: Parts) -> Truth:
    state = {"topk_threshold": torch.tensor(0.7, dtype=torch.float64)}
    saelens(folder, p, {"architecture": "matryoshka_batchtopk", "k": float(K)}, state)
    return _rescaled(p, above(0.7))


def write_saelens_layer_norm(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "standard", "normalize_activations": "layer_norm"})
    return truth(p, relu, norm="layer")


def write_saelens_norm_rescale(folder: Path, p: Parts) -> Truth:
    saelens(folder, p, {"architecture": "standard", "normalize_activations": "constant_norm_rescale"})
    return truth(p, relu, norm="norm")


def sparsify(folder: Path, p: Parts, config: dict[str, Any], state: dict[str, Tensor] | None = None) -> None:
    tensors = {"encoder.weight": p.encoder, "encoder.bias": p.b_enc, "W_dec": p.decoder, "b_dec": p.b_dec}
    put(folder, "sae.safetensors", {**tensors, **(state or {})})
    put_json(folder, "cfg.json", {"d_in": p.d, "num_latents": p.n, "k": K, "normalize_decoder": True, **config})


def write_sparsify(folder: Path, p: Parts) -> Truth:
    sparsify(folder, p, {"activation": "topk", "expansion_factor": 32, "transcode": False})
    return truth(p, top_k)


def write_sparsify_in_half(folder: Path, p: Parts) -> Truth:
    half = Parts(*(tensor.half() for tensor in vars(p).values()))
    sparsify(folder, half, {})
    return truth(half, top_k)


def write_sparsify_groupmax(folder: Path, p: Parts) -> Truth:
    sparsify(folder, p, {"activation": "groupmax", "k": 3})

    def group_max(q: Floats) -> Floats:
        groups = relu(q).reshape(*q.shape[:-1], 3, -1)
        return np.where(groups == groups.max(-1, keepdims=True), groups, 0).reshape(q.shape)

    return truth(p, group_max)


def write_saeuron(folder: Path, p: Parts) -> Truth:
    sparsify(folder, p, {"batch_topk": True, "sample_topk": True, "input_unit_norm": True, "multi_topk": False})
    return truth(p, top_k, norm="layer", signal="output")


def dictionary(folder: Path, name: str | None, state: dict[str, Any], **trainer: Any) -> None:
    put(folder, "ae.pt", state)
    if name is not None:
        put_json(folder, "config.json", {"trainer": {"dict_class": name, **trainer}, "buffer": {"d_submodule": 4}})


def linear(p: Parts) -> dict[str, Tensor]:
    return {
        "encoder.weight": p.encoder, "encoder.bias": p.b_enc, "decoder.weight": column_major(p.decoder.T)
    }  # fmt: skip


def write_dl_plain(folder: Path, p: Parts) -> Truth:
    dictionary(folder, "AutoEncoder", {**linear(p), "bias": p.b_dec}, dict_size=p.n, activation_dim=p.d)
    return truth(p, relu)


def write_dl_new(folder: Path, p: Parts) -> Truth:
    dictionary(folder, "AutoEncoderNew", {**linear(p), "decoder.bias": p.b_dec})
    return truth(p, relu, subtract=False)


def _counted(p: Parts, threshold: float) -> dict[str, Tensor]:
    return {**linear(p), "b_dec": p.b_dec, "k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}


def write_dl_topk(folder: Path, p: Parts) -> Truth:
    dictionary(folder, "AutoEncoderTopK", _counted(p, -1.0), k=K, submodule_name="mid_block.attentions.0")
    return truth(p, top_k)


def write_dl_batch_topk(folder: Path, p: Parts) -> Truth:
    dictionary(folder, "BatchTopKSAE", _counted(p, 0.4), k=K)
    return truth(p, above(np.float64(np.float32(0.4))))


def write_dl_backup(folder: Path, p: Parts) -> Truth:
    dictionary(folder, "BatchTopKSAE", {"ae": _counted(p, 0.4), "step": 10, "optimizer": {"lr": 0.1}}, k=K)
    return truth(p, above(np.float64(np.float32(0.4))))


def write_dl_matryoshka(folder: Path, p: Parts) -> Truth:
    state = {
        "W_enc": p.encoder.T, "b_enc": p.b_enc, "W_dec": p.decoder, "b_dec": p.b_dec, "k": torch.tensor(K),
        "threshold": torch.tensor(0.25), "group_sizes": torch.tensor([p.n - 1, 1]),
    }  # fmt: skip
    dictionary(folder, "MatryoshkaBatchTopKSAE", state, k=K)
    return truth(p, above(0.25))


def write_dl_jump(folder: Path, p: Parts) -> Truth:
    state = {"W_enc": p.encoder.T, "b_enc": p.b_enc, "W_dec": p.decoder, "b_dec": p.b_dec, "threshold": p.threshold}
    dictionary(folder, "JumpReluAutoEncoder", state)
    return truth(p, above(f64(p.threshold)), subtract=False)


def write_dl_gated(folder: Path, p: Parts) -> Truth:
    state = {
        "encoder.weight": p.encoder, "decoder.weight": p.decoder.T, "decoder_bias": p.b_dec, "r_mag": p.r_mag,
        "gate_bias": p.gate, "mag_bias": p.b_enc,
    }  # fmt: skip
    dictionary(folder, "GatedAutoEncoder", state)
    return _without_bias(truth(p, gated(p)))


def openai(folder: Path, p: Parts, **more: Any) -> None:
    state = {
        "encoder.weight": p.encoder, "decoder.weight": p.decoder.T, "pre_bias": p.b_dec, "latent_bias": p.b_enc,
        "stats_last_nonzero": torch.zeros(p.n, dtype=torch.long), "latents_activation_frequency": torch.ones(p.n),
        "latents_mean_square": torch.zeros(p.n), **more,
    }  # fmt: skip
    put(folder, "autoencoder.pt", state)


def write_openai_topk(folder: Path, p: Parts) -> Truth:
    openai(folder, p, activation="TopK", activation_state_dict={"k": K, "postact_fn": "ReLU"})
    return truth(p, top_k, norm="layer")


def write_openai_flat(folder: Path, p: Parts) -> Truth:
    openai(folder, p, **{"activation": "TopK", "activation.k": K, "activation.postact_fn": "Identity"})
    return truth(p, largest, norm="layer")


def write_openai_relu(folder: Path, p: Parts) -> Truth:
    openai(folder, p, activation="ReLU", activation_state_dict={})
    return truth(p, relu)


def saev(folder: Path, p: Parts, header: dict[str, Any], threshold: float | None = None) -> None:
    state = {"W_enc": p.encoder.T, "b_enc": p.b_enc, "W_dec": p.decoder, "b_dec": p.b_dec}
    if threshold is not None:
        state["activation.threshold"] = torch.tensor(threshold)
    put(folder, "sae.pt", state)
    archive = (folder / "sae.pt").read_bytes()
    (folder / "sae.pt").write_bytes(json.dumps(header).encode() + b"\n" + archive)


def write_saev_old(folder: Path, p: Parts) -> Truth:
    wide = parts(n=2 * p.d, d=p.d)
    saev(folder, wide, {"d_vit": p.d, "exp_factor": 2, "sparsity_coeff": 1e-4, "ghost_grads": False})
    return truth(wide, relu)


def write_saev_schema_1(folder: Path, p: Parts) -> Truth:
    wide = parts(n=2 * p.d, d=p.d)
    saev(folder, wide, {"schema": 1, "cls": "TopK", "cfg": {"d_vit": p.d, "exp_factor": 2, "top_k": 5}})
    return truth(wide, lambda q: largest(q, 5), subtract=False)


def _schema_5(p: Parts, activation: dict[str, Any]) -> dict[str, Any]:
    return {"schema": 5, "cfg": {"d_model": p.d, "d_sae": p.n, "activation": activation}, "lib": "0"}


def write_saev_relu(folder: Path, p: Parts) -> Truth:
    saev(folder, p, _schema_5(p, {"cls": "Relu", "params": {}}))
    return truth(p, relu, subtract=False)


def write_saev_topk(folder: Path, p: Parts) -> Truth:
    # Without relu: where fewer than k are positive, negative ones are kept.
    saev(folder, p, _schema_5(p, {"cls": "TopK", "params": {"top_k": K}}))
    return truth(p, largest, subtract=False)


def write_saev_batch_topk(folder: Path, p: Parts) -> Truth:
    saev(folder, p, _schema_5(p, {"cls": "BatchTopK", "params": {"top_k": K}}), threshold=0.5)
    return truth(p, above(0.5), subtract=False)


def overcomplete(folder: Path, p: Parts, mapping: dict[str, Any], state: dict[str, Tensor] | None = None) -> None:
    tensors = {
        "encoder.final_block.0.weight": p.encoder, "encoder.final_block.0.bias": p.b_enc,
        "dictionary._weights": p.decoder, "dictionary.multiplier": torch.tensor(0.3),
    }  # fmt: skip
    put(folder, "weights.pt", {**tensors, **(state or {})})
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))


def _multiplied(p: Parts, act: Act) -> Truth:
    zero = np.zeros(p.d)
    factor = np.exp(np.float64(np.float32(0.3)))
    return Truth(f64(p.encoder), f64(p.decoder) * factor, zero, zero, f64(p.b_enc), act, signal="update")


def write_overcomplete(folder: Path, p: Parts) -> Truth:
    overcomplete(folder, p, OVERCOMPLETE)
    return _multiplied(p, top_k)


def write_overcomplete_jump(folder: Path, p: Parts) -> Truth:
    tensors = {**OVERCOMPLETE["tensors"], "threshold": "thresholds"}
    mapping = {**OVERCOMPLETE, "activation": "jump", "tensors": tensors, "threshold_included": True}
    mapping["logarithms"] = ["multiplier", "threshold"]
    del mapping["k"]
    overcomplete(folder, p, mapping, {"thresholds": p.threshold.log()})
    return _multiplied(p, lambda q: np.where(q >= f64(p.threshold), relu(q), 0))


WRITERS: dict[str, tuple[str, Callable[[Path, Parts], Truth]]] = {
    "unbox": ("sdxl-unbox", write_unbox),
    "saelens standard": ("SAELens", write_saelens_standard),
    "saelens without subtraction": ("SAELens", write_saelens_without_subtraction),
    "saelens topk": ("SAELens", write_saelens_topk),
    "saelens topk rescaled": ("SAELens", write_saelens_topk_rescaled),
    "saelens jumprelu": ("SAELens", write_saelens_jumprelu),
    "saelens old jumprelu": ("SAELens", write_saelens_old_jumprelu),
    "saelens gated": ("SAELens", write_saelens_gated),
    "saelens before 6": ("SAELens", write_saelens_before_6),
    "saelens topk before 6": ("SAELens", write_saelens_topk_before_6),
    "saelens in training": ("SAELens", write_saelens_in_training),
    "saelens layer norm": ("SAELens", write_saelens_layer_norm),
    "saelens norm rescale": ("SAELens", write_saelens_norm_rescale),
    "sparsify": ("sparsify", write_sparsify),
    "sparsify in half": ("sparsify", write_sparsify_in_half),
    "sparsify groupmax": ("sparsify", write_sparsify_groupmax),
    "saeuron": ("SAeUron", write_saeuron),
    "dl plain": ("dictionary_learning", write_dl_plain),
    "dl new": ("dictionary_learning", write_dl_new),
    "dl topk": ("dictionary_learning", write_dl_topk),
    "dl batch topk": ("dictionary_learning", write_dl_batch_topk),
    "dl backup": ("dictionary_learning", write_dl_backup),
    "dl matryoshka": ("dictionary_learning", write_dl_matryoshka),
    "dl jump": ("dictionary_learning", write_dl_jump),
    "dl gated": ("dictionary_learning", write_dl_gated),
    "openai topk": ("openai", write_openai_topk),
    "openai flat": ("openai", write_openai_flat),
    "openai relu": ("openai", write_openai_relu),
    "saev old": ("saev", write_saev_old),
    "saev schema 1": ("saev", write_saev_schema_1),
    "saev relu": ("saev", write_saev_relu),
    "saev topk": ("saev", write_saev_topk),
    "saev batch topk": ("saev", write_saev_batch_topk),
    "overcomplete": ("mapping", write_overcomplete),
    "overcomplete jump": ("mapping", write_overcomplete_jump),
}
"""Name -> the format that must be found, and the writer."""

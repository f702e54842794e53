"""The one internal form of a sparse autoencoder.

    u  = N(x)                        no normalisation, or one per position that is undone on output
    p  = (u - pre_bias) @ encoder^T + latent_bias
    f  = activation(p) * row_scale
    x^ = N^-1(f @ directions + decoder_bias)

Rows of `directions` have length 1. A stored decoder's row lengths live in `row_scale`, applied after the activation:
folded into the encoder they would change which features win a top-k.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError, near_match

Activation = Literal["topk", "relu", "jump", "gated", "groupmax", "topk-signed", "abstopk"]
Normalise = Literal["none", "layer", "norm"]
Signal = Literal["update", "output"]

MAX_WEIGHT = 1e12
"""Largest weight, by its size, with which values and reconstructions stay finite in float32.

Activations reach some thousands and have some thousand channels, so products of two such weights stay below 1e38.
"""
COUNTING: tuple[Activation, ...] = ("topk", "groupmax", "topk-signed", "abstopk")
"""Activations that keep k values of a position."""
_NEEDED: dict[Activation, tuple[str, ...]] = {"jump": ("threshold",), "gated": ("gate_bias", "gate_scale")}


class SparseAutoencoder(nn.Module):
    """An autoencoder with d inputs and n features.

    Args:
        encoder: [n, d].
        directions: [n, d], rows of any positive length (they are normalised, see the module's text).
        pre_bias: [d], subtracted before the encoder.
        decoder_bias: [d], added after the decoder.
        latent_bias: [n].
        k: features kept per position; needed by the activations that count, for the record with the others.
        activation: "topk" (the k largest, then relu), "relu", "jump" (relu where above `threshold`), "gated" (see
            `gate_bias`), "groupmax" (relu, then the largest of each of k neighbouring groups), "topk-signed" (the k
            largest, negative ones too), or "abstopk" (the k largest by size, signs kept).
        threshold: [n], for "jump".
        gate_bias: [n], for "gated": with q = (u - pre_bias) @ encoder^T a feature is open where q + gate_bias > 0,
            and its value is relu(q * gate_scale + latent_bias).
        gate_scale: [n], see there.
        normalise: "none"; "layer" for (x - mean) / (std + 1e-5) per position, undone with std; "norm" for
            x * sqrt(d) / |x|.
        signal: what it was trained on: a block's "update" or its "output"; None if the file does not say.
        block: short name of the block it was trained on, if the file says.
        sha256: hash of the stored weights, for the run's identity.

    Attributes:
        format: name of the format it was read from, set by the loader.

    Raises:
        RiebenchError: if shapes do not fit, a number is not finite or above `MAX_WEIGHT`, k is not in 1..n, or a
            direction is zero.
    """

    def __init__(
        self,
        encoder: Tensor,
        directions: Tensor,
        pre_bias: Tensor,
        decoder_bias: Tensor,
        latent_bias: Tensor,
        *,
        k: int | None = None,
        activation: Activation = "topk",
        threshold: Tensor | None = None,
        gate_bias: Tensor | None = None,
        gate_scale: Tensor | None = None,
        normalise: Normalise = "none",
        signal: Signal | None = "update",
        block: str | None = None,
        sha256: str = "",
    ) -> None:
        super().__init__()
        self.encoder: Tensor
        self.directions: Tensor
        self.row_scale: Tensor
        self.pre_bias: Tensor
        self.decoder_bias: Tensor
        self.latent_bias: Tensor
        self.threshold: Tensor | None
        self.gate_bias: Tensor | None
        self.gate_scale: Tensor | None
        optional = {"threshold": threshold, "gate_bias": gate_bias, "gate_scale": gate_scale}
        _check(encoder, directions, pre_bias, decoder_bias, latent_bias, optional)
        n, d = encoder.shape
        _check_activation(activation, k, n, optional)
        self.n, self.d, self.k = n, d, k
        self.activation, self.normalise, self.signal, self.sha256 = activation, normalise, signal, sha256
        self.block, self.format = block, ""
        lengths = directions.float().norm(dim=1)
        if not bool((lengths > 0).all()):
            raise RiebenchError(f"{int((lengths == 0).sum())} of {n} SAE directions are zero; the file is damaged")
        self.register_buffer("encoder", encoder.float().contiguous())
        self.register_buffer("directions", (directions.float() / lengths[:, None]).contiguous())
        self.register_buffer("row_scale", lengths)
        self.register_buffer("pre_bias", pre_bias.float())
        self.register_buffer("decoder_bias", decoder_bias.float())
        self.register_buffer("latent_bias", latent_bias.float())
        for name, tensor in optional.items():
            self.register_buffer(name, None if tensor is None else tensor.float())

    def encode(self, x: Tensor) -> Tensor:
        """Compute feature values.

        Args:
            x: [..., d], any leading shape; computed in float32.

        Returns:
            float32 [..., n], dense; not negative unless the activation keeps signs.

        Raises:
            RiebenchError: if the last size is not d.
        """
        if x.shape[-1] != self.d:
            raise RiebenchError(f"the SAE is made for width {self.d}, but the activation has {x.shape[-1]}")
        u = x.float()
        if self.normalise == "layer":
            u = (u - u.mean(-1, keepdim=True)) / (self.scale(x) + 1e-5)
        elif self.normalise == "norm":
            u = u / self.scale(x)
        if self.activation == "gated":
            return self._gated(nn.functional.linear(u - self.pre_bias, self.encoder)) * self.row_scale
        p = nn.functional.linear(u - self.pre_bias, self.encoder, self.latent_bias)
        return self._activate(p) * self.row_scale

    def decode(self, f: Tensor, like: Tensor | None = None) -> Tensor:
        """Reconstruct the input from feature values.

        Args:
            f: [..., n].
            like: the input of `encode`, [..., d]; needed to undo a normalisation per position.

        Returns:
            float32 [..., d].
        """
        x = f.float() @ self.directions + self.decoder_bias
        if self.normalise == "none":
            return x
        if like is None:
            raise ValueError("this SAE normalises each position: decode needs the input it was encoded from")
        x = x * self.scale(like)
        return x + like.float().mean(-1, keepdim=True) if self.normalise == "layer" else x

    def scale(self, x: Tensor) -> Tensor:
        """Return the change that a feature value of 1 makes at each position.

        In units of the activation: float32 [..., 1].
        """
        if self.normalise == "layer":
            # Libraries add their small number where they divide, and leave it out where they multiply again.
            return x.float().std(-1, keepdim=True)
        if self.normalise == "norm":
            # A position of zeros has no direction to keep; any positive scale leaves it at zero.
            return (x.float().norm(dim=-1, keepdim=True) / self.d**0.5).clamp(min=torch.finfo(torch.float32).tiny)
        return torch.ones_like(x[..., :1], dtype=torch.float32)

    def contributions(self, x: Tensor) -> Tensor:
        """Compute feature values in units of the activation.

        `contributions(x) @ directions` is what the features add.
        """
        f = self.encode(x)
        return f if self.normalise == "none" else f * self.scale(x)

    def _activate(self, p: Tensor) -> Tensor:
        if self.activation == "relu":
            return p.relu()
        if self.activation == "jump":
            assert self.threshold is not None
            return p.relu() * (p > self.threshold)
        assert self.k is not None
        if self.activation == "groupmax":
            best, place = p.relu().unflatten(-1, (self.k, -1)).max(dim=-1, keepdim=True)
            grouped = torch.zeros_like(p).unflatten(-1, (self.k, -1))
            return grouped.scatter_(-1, place, best).flatten(-2)
        if self.activation == "abstopk":
            indices = p.abs().topk(self.k, dim=-1).indices
            return torch.zeros_like(p).scatter_(-1, indices, p.gather(-1, indices))
        values, indices = p.topk(self.k, dim=-1)
        kept = values if self.activation == "topk-signed" else values.relu()
        return torch.zeros_like(p).scatter_(-1, indices, kept)

    def _gated(self, q: Tensor) -> Tensor:
        assert self.gate_bias is not None and self.gate_scale is not None
        return (q * self.gate_scale + self.latent_bias).relu() * (q + self.gate_bias > 0)


def _check_activation(activation: Activation, k: int | None, n: int, optional: dict[str, Tensor | None]) -> None:
    if activation not in get_args(Activation):
        raise RiebenchError(f"unknown SAE activation {activation!r}{near_match(activation, get_args(Activation))}")
    if activation in COUNTING and (k is None or not 1 <= k <= n):
        raise RiebenchError(f"an SAE of {n} features cannot keep k = {k}; k must be 1 to {n}")
    if activation == "groupmax" and k is not None and n % k:
        raise RiebenchError(f"{n} features cannot be split into k = {k} groups of one size; check k")
    missing = [name for name in _NEEDED.get(activation, ()) if optional[name] is None]
    if missing:
        raise RiebenchError(f"an SAE with activation {activation!r} needs a tensor {' and '.join(missing)}")


def _check(
    encoder: Tensor, directions: Tensor, pre_bias: Tensor, decoder_bias: Tensor, latent_bias: Tensor,
    optional: dict[str, Tensor | None],
) -> None:  # fmt: skip
    if encoder.dim() != 2:
        raise RiebenchError(f"an SAE's encoder has two axes (features, width), this one has shape {[*encoder.shape]}")
    n, d = encoder.shape
    expected = {
        "directions": (directions, (n, d)), "pre_bias": (pre_bias, (d,)), "decoder_bias": (decoder_bias, (d,)),
        "latent_bias": (latent_bias, (n,)),
    }  # fmt: skip
    expected |= {name: (tensor, (n,)) for name, tensor in optional.items() if tensor is not None}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise RiebenchError(f"SAE tensor {name} has shape {[*tensor.shape]}, expected {[*shape]}")
    for name, tensor in {"encoder": encoder, **{name: tensor for name, (tensor, _) in expected.items()}}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RiebenchError(f"SAE tensor {name} holds a number that is not finite; the file is damaged")
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest > MAX_WEIGHT:
            raise RiebenchError(
                f"SAE tensor {name} holds {largest:g}; with more than {MAX_WEIGHT:g} nothing stays finite, so the "
                "file is damaged"
            )

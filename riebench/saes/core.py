"""The one internal form of a sparse autoencoder.

    u  = N(x)                        no normalisation, or one per position that is undone on output
    p  = (u - pre_bias) @ encoder^T + latent_bias
    f  = activation(p) * row_scale
    x^ = N^-1(f @ directions + decoder_bias)

Rows of `directions` have length 1. A stored decoder's row lengths live in `row_scale`, applied after the activation:
folded into the encoder they would change which features win a top-k.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError

Activation = Literal["topk", "relu", "jump"]


class SparseAutoencoder(nn.Module):
    """An autoencoder with d inputs and n features.

    Args:
        encoder: [n, d].
        directions: [n, d], rows of any positive length (they are normalised, see the module's text).
        pre_bias: [d], subtracted before the encoder.
        decoder_bias: [d], added after the decoder.
        latent_bias: [n].
        k: features kept per position; needed by "topk".
        activation: "topk" (the k largest, then relu), "relu", or "jump" (relu where above `threshold`).
        threshold: [n], for "jump".
        normalise: "none", or "layer" for (x - mean) / (std + 1e-5) per position.
        signal: what it was trained on: a block's "update" or its "output".
        sha256: hash of the stored weights, for the run's identity.

    Raises:
        RiebenchError: if shapes do not fit, a number is not finite, k is not in 1..n, or a direction is zero.
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
        normalise: Literal["none", "layer"] = "none",
        signal: Literal["update", "output"] = "update",
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
        _check(encoder, directions, pre_bias, decoder_bias, latent_bias, threshold)
        n, d = encoder.shape
        if activation == "topk" and (k is None or not 1 <= k <= n):
            raise RiebenchError(f"an SAE of {n} features cannot keep k = {k}; k must be 1 to {n}")
        if activation == "jump" and threshold is None:
            raise RiebenchError("an SAE with activation 'jump' needs its thresholds")
        self.n, self.d, self.k = n, d, k
        self.activation, self.normalise, self.signal, self.sha256 = activation, normalise, signal, sha256
        lengths = directions.float().norm(dim=1)
        if not bool((lengths > 0).all()):
            raise RiebenchError(f"{int((lengths == 0).sum())} of {n} SAE directions are zero; the file is damaged")
        self.register_buffer("encoder", encoder.float().contiguous())
        self.register_buffer("directions", (directions.float() / lengths[:, None]).contiguous())
        self.register_buffer("row_scale", lengths)
        self.register_buffer("pre_bias", pre_bias.float())
        self.register_buffer("decoder_bias", decoder_bias.float())
        self.register_buffer("latent_bias", latent_bias.float())
        self.register_buffer("threshold", None if threshold is None else threshold.float())

    def encode(self, x: Tensor) -> Tensor:
        """Feature values.

        Args:
            x: [..., d], any leading shape; computed in float32.

        Returns:
            float32 [..., n], dense, not negative.

        Raises:
            RiebenchError: if the last size is not d.
        """
        if x.shape[-1] != self.d:
            raise RiebenchError(f"the SAE is made for width {self.d}, but the activation has {x.shape[-1]}")
        u = x.float()
        if self.normalise == "layer":
            u = (u - u.mean(-1, keepdim=True)) / (u.std(-1, keepdim=True) + 1e-5)
        p = nn.functional.linear(u - self.pre_bias, self.encoder, self.latent_bias)
        return self._activate(p) * self.row_scale

    def decode(self, f: Tensor, like: Tensor | None = None) -> Tensor:
        """Reconstruction from feature values.

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
        return x * self.scale(like) + like.float().mean(-1, keepdim=True)

    def scale(self, x: Tensor) -> Tensor:
        """How much a feature value of 1 moves the activation at each position: float32 [..., 1]."""
        if self.normalise == "none":
            return torch.ones_like(x[..., :1], dtype=torch.float32)
        return x.float().std(-1, keepdim=True) + 1e-5

    def contributions(self, x: Tensor) -> Tensor:
        """Feature values in units of the activation: `contributions(x) @ directions` is what the features add."""
        f = self.encode(x)
        return f if self.normalise == "none" else f * self.scale(x)

    def _activate(self, p: Tensor) -> Tensor:
        if self.activation == "relu":
            return p.relu()
        if self.activation == "jump":
            assert self.threshold is not None
            return p.relu() * (p > self.threshold)
        assert self.k is not None
        values, indices = p.topk(self.k, dim=-1)
        return torch.zeros_like(p).scatter_(-1, indices, values.relu())


def _check(
    encoder: Tensor, directions: Tensor, pre_bias: Tensor, decoder_bias: Tensor, latent_bias: Tensor,
    threshold: Tensor | None,
) -> None:  # fmt: skip
    if encoder.dim() != 2:
        raise RiebenchError(f"an SAE's encoder has two axes (features, width), this one has shape {[*encoder.shape]}")
    n, d = encoder.shape
    expected = {
        "directions": (directions, (n, d)), "pre_bias": (pre_bias, (d,)), "decoder_bias": (decoder_bias, (d,)),
        "latent_bias": (latent_bias, (n,)),
    }  # fmt: skip
    if threshold is not None:
        expected["threshold"] = (threshold, (n,))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise RiebenchError(f"SAE tensor {name} has shape {[*tensor.shape]}, expected {[*shape]}")
    for name, tensor in {"encoder": encoder, **{name: tensor for name, (tensor, _) in expected.items()}}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RiebenchError(f"SAE tensor {name} holds a number that is not finite; the file is damaged")

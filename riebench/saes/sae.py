"""The one internal form of a sparse autoencoder.

    u  = N(x)                        no normalisation, or one per position that is undone on output
    u' = u * (1 + a(t)) + b(t)       time-conditioned SAEs only: a and b follow from the denoiser's time t
    p  = (u' - pre_bias) @ encoder^T + latent_bias
    f  = activation(p) * row_scale
    y^ = N^-1(f @ directions + decoder_bias) + x @ skip^T

Rows of `directions` have length 1. A stored decoder's row lengths live in `row_scale`, applied after the activation:
folded into the encoder they would change which features win a top-k.

x is what the SAE reads, y^ what it reconstructs. An autoencoder reconstructs what it reads, a block's update or its
output. A transcoder reads the block's input and reconstructs the update or the output; only transcoders may have a
skip connection, and what they normalise on input is not undone on output, which is another signal.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError, near_match
from riebench.saes.pursuit import MAX_STEPS, PursuitRule, pursue

Activation = Literal[
    "topk", "relu", "jump", "gated", "groupmax", "topk-signed", "abstopk", "matching-pursuit", "matching-pursuit-signed"
]
Normalise = Literal["none", "layer", "norm"]
Signal = Literal["update", "output"]
"""What an SAE reconstructs: what its block adds to the image stream, or the stream behind the block."""
Reads = Literal["update", "output", "input"]
"""What an SAE's encoder reads: also the stream before the block."""
Time = float | Tensor
"""The time that the denoiser is called with: one number, or one for each of the first axes of an activation."""

MAX_WEIGHT = 1e12
"""Largest weight, by its size, with which values and reconstructions stay finite in float32.

Activations reach some thousands and have some thousand channels, so products of two such weights stay below 1e38.
"""
MIN_TIME_EMBEDDING = 4
"""Least width of a time's embedding: two frequencies, a sine and a cosine of each."""
LONGEST_PERIOD = 10_000
"""Of the embedding's frequencies, in units of the time over 2 pi; the shortest is 1."""
COUNTING: tuple[Activation, ...] = ("topk", "groupmax", "topk-signed", "abstopk")
"""Activations that keep k values of a position."""
PURSUITS: tuple[Activation, ...] = ("matching-pursuit", "matching-pursuit-signed")
"""Activations that find features one after the other, each from what the earlier ones leave."""
_NEEDED: dict[Activation, tuple[str, ...]] = {"jump": ("threshold",), "gated": ("gate_bias", "gate_scale")}


class TimeModulation(nn.Module):
    """Scale and shift of the encoder's input at each time.

    This is feature-wise linear modulation (FiLM). The time's sinusoidal embedding passes two linear layers with SiLU
    behind each, and a third gives both halves.

    Args:
        first: weight [e, e] and bias [e] of the first layer.
        second: the same of the second.
        head: weight [2d, e] and bias [2d] of the third: d scales, then d shifts.

    Raises:
        RiebenchError: if shapes do not fit, e is odd or below 4, or a number is not finite or above `MAX_WEIGHT`.
    """

    def __init__(
        self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], head: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__()
        e = first[0].shape[0]
        if e % 2 or e < MIN_TIME_EMBEDDING:
            raise RiebenchError(
                f"an SAE's time embedding has width {e}; it must be even, at least {MIN_TIME_EMBEDDING}"
            )
        self.d = head[0].shape[0] // 2
        wanted = {"first": (first, e), "second": (second, e), "head": (head, 2 * self.d)}
        for name, ((weight, bias), width) in wanted.items():
            _check_tensor(f"time {name} weight", weight, (width, e))
            _check_tensor(f"time {name} bias", bias, (width,))
            self.register_buffer(f"{name}_weight", weight.float().contiguous())
            self.register_buffer(f"{name}_bias", bias.float())

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales and shifts of times [...], float32 [..., d] each."""
        weights = dict(self.named_buffers(remove_duplicate=False))
        half = weights["first_weight"].shape[1] // 2
        # In the order of diffusers' own embedding: large times would show another rounding.
        exponents = -math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1)
        angles = t.float()[..., None] * exponents.exp()
        values = torch.cat([angles.sin(), angles.cos()], dim=-1)
        for name in ("first", "second"):
            linear = nn.functional.linear(values, weights[f"{name}_weight"], weights[f"{name}_bias"])
            values = nn.functional.silu(linear)
        scale, shift = nn.functional.linear(values, weights["head_weight"], weights["head_bias"]).chunk(2, dim=-1)
        return scale, shift


class SparseAutoencoder(nn.Module):
    """An autoencoder or transcoder with n features, which reads d channels.

    Args:
        encoder: [n, d].
        directions: [n, d], rows of any positive length (they are normalised, see the module's text).
        pre_bias: [d], subtracted before the encoder.
        decoder_bias: [d], added after the decoder. A transcoder's output may have another width than d; the length of
            this bias then says it, for `directions` and `skip` too.
        latent_bias: [n].
        k: features kept per position; needed by the activations that count, for the record with the others.
        activation: "topk" (the k largest, then relu), "relu", "jump" (relu where above `threshold`), "gated" (see
            `gate_bias`), "groupmax" (relu, then the largest of each of k neighbouring groups), "topk-signed" (the k
            largest, negative ones too), "abstopk" (the k largest by size, signs kept), "matching-pursuit" (see
            `pursuit`), or "matching-pursuit-signed" (which also takes negative values where no feature fits).
        threshold: [n], for "jump".
        gate_bias: [n], for "gated": with q = (u - pre_bias) @ encoder^T a feature is open where q + gate_bias > 0,
            and its value is relu(q * gate_scale + latent_bias).
        gate_scale: [n], see there.
        pursuit: when a matching pursuit ends; p above is then that of what earlier features leave of u - pre_bias.
        normalise: "none"; "layer" for (x - mean) / (std + 1e-5) per position, undone with std; "norm" for
            x * sqrt(d) / |x|.
        signal: what it reconstructs: a block's "update" or its "output"; None if the file does not say.
        transcoder: whether it reads the block's input instead of what it reconstructs.
        skip: [width of the output, d], a transcoder's linear connection past its features.
        time: modulation of the encoder's input by the denoiser's time; None for an SAE that is the same at all times.
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
        pursuit: PursuitRule | None = None,
        normalise: Normalise = "none",
        signal: Signal | None = "update",
        transcoder: bool = False,
        skip: Tensor | None = None,
        time: TimeModulation | None = None,
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
        self.skip: Tensor | None
        optional = {"threshold": threshold, "gate_bias": gate_bias, "gate_scale": gate_scale}
        _check(encoder, directions, pre_bias, decoder_bias, latent_bias, optional, transcoder=transcoder)
        n, d = encoder.shape
        _check_added_parts(d, len(decoder_bias), skip, time, transcoder=transcoder)
        _check_activation(activation, k, n, optional, pursuit)
        self.n, self.d, self.k = n, d, k
        self.activation, self.normalise, self.signal, self.sha256 = activation, normalise, signal, sha256
        self.transcoder, self.time, self.d_out = transcoder, time, len(decoder_bias)
        self.block, self.format, self.pursuit = block, "", pursuit
        lengths = directions.float().norm(dim=1)
        if not bool((lengths > 0).all()):
            raise RiebenchError(f"{int((lengths == 0).sum())} of {n} SAE directions are zero; the file is damaged")
        self.register_buffer("encoder", encoder.float().contiguous())
        self.register_buffer("directions", (directions.float() / lengths[:, None]).contiguous())
        self.register_buffer("row_scale", lengths)
        self.register_buffer("pre_bias", pre_bias.float())
        self.register_buffer("decoder_bias", decoder_bias.float())
        self.register_buffer("latent_bias", latent_bias.float())
        self.register_buffer("skip", None if skip is None else skip.float().contiguous())
        for name, tensor in optional.items():
            self.register_buffer(name, None if tensor is None else tensor.float())

    @property
    def reads(self) -> Reads:
        """The signal that the encoder reads, which has to be captured for it.

        Raises:
            RiebenchError: if the file does not say what the SAE was trained on, and neither does the user.
        """
        if self.signal is None and not self.transcoder:
            raise RiebenchError(
                f"the {self.format or 'given'} SAE does not say what it was trained on; add #signal=update (or "
                "=output) to its name"
            )
        return self.reads_for(self.signal)

    def reads_for(self, signal: Signal | None) -> Reads:
        """Return the signal that the encoder reads if this one is reconstructed.

        Transcoders always read the input.

        Args:
            signal: None only for transcoders.
        """
        return "input" if self.transcoder or signal is None else signal

    @property
    def timed(self) -> bool:
        """True if `encode` needs the denoiser's time."""
        return self.time is not None

    def encode(self, x: Tensor, t: Time | None = None) -> Tensor:
        """Compute feature values.

        Args:
            x: what the SAE reads, [..., d], any leading shape; computed in float32.
            t: the denoiser's time, for SAEs that are `timed`; others ignore it.

        Returns:
            float32 [..., n], dense; not negative unless the activation keeps signs.

        Raises:
            RiebenchError: if the last size is not d, or a time is needed and not given.
        """
        if x.shape[-1] != self.d:
            raise RiebenchError(f"the SAE is made for width {self.d}, but the activation has {x.shape[-1]}")
        u = x.float()
        if self.normalise == "layer":
            # Libraries add their small number where they divide, and leave it out where they multiply again.
            u = (u - u.mean(-1, keepdim=True)) / (self._input_scale(x) + 1e-5)
        elif self.normalise == "norm":
            u = u / self._input_scale(x)
        if self.time is not None:
            u = self._modulate(u, t)
        if self.activation == "gated":
            return self._gated(nn.functional.linear(u - self.pre_bias, self.encoder)) * self.row_scale
        if self.activation in PURSUITS:
            return self._pursue(u - self.pre_bias) * self.row_scale
        p = nn.functional.linear(u - self.pre_bias, self.encoder, self.latent_bias)
        return self._activate(p) * self.row_scale

    def decode(self, f: Tensor, like: Tensor | None = None, t: Time | None = None) -> Tensor:
        """Reconstruct the signal from feature values.

        Args:
            f: [..., n].
            like: the input of `encode`, [..., d]; needed to undo a normalisation per position, and for a skip
                connection.
            t: the denoiser's time, for an SAE whose decoder depends on it; this class's does not.

        Returns:
            float32 [..., width of the output].
        """
        y = f.float() @ self.directions + self.decoder_bias
        if not self._undoes and self.skip is None:
            return y
        if like is None:
            why = "has a skip connection" if self.skip is not None else "normalises each position"
            raise ValueError(f"this SAE {why}: decode needs the input it was encoded from")
        if self.skip is not None:
            return y + nn.functional.linear(like.float(), self.skip)
        y = y * self.scale(like)
        return y + like.float().mean(-1, keepdim=True) if self.normalise == "layer" else y

    def feature_directions(self, features: Tensor, t: Time | None = None) -> Tensor:
        """Return what a value of 1 of some features adds, before the scale of a position.

        Edits take directions from here alone, so that an SAE with one decoder for each step is a subclass with
        another `decode` and another of this.

        Args:
            features: int64 [k].
            t: the denoiser's time or times [T]; the decoder of this class is the same at all of them.

        Returns:
            float32 [k, width of the output]; of a decoder that depends on the time [T, k, width of the output].
        """
        return self.directions[features]

    def scale(self, x: Tensor) -> Tensor:
        """Return the change that a feature value of 1 makes at each position.

        In units of the signal: float32 [..., 1].
        """
        return self._input_scale(x) if self._undoes else torch.ones_like(x[..., :1], dtype=torch.float32)

    def contributions(self, x: Tensor, t: Time | None = None) -> Tensor:
        """Compute feature values in units of the signal.

        `contributions(x) @ directions` is what the features add.

        Args:
            x: as for `encode`.
            t: likewise.
        """
        f = self.encode(x, t)
        return f * self.scale(x) if self._undoes else f

    @property
    def _undoes(self) -> bool:
        """True if the input's normalisation is undone on output."""
        return self.normalise != "none" and not self.transcoder

    def _input_scale(self, x: Tensor) -> Tensor:
        if self.normalise == "layer":
            return x.float().std(-1, keepdim=True)
        # A position of zeros has no direction to keep; any positive scale leaves it at zero.
        return (x.float().norm(dim=-1, keepdim=True) / self.d**0.5).clamp(min=torch.finfo(torch.float32).tiny)

    def _modulate(self, u: Tensor, t: Time | None) -> Tensor:
        assert self.time is not None
        if t is None:
            raise RiebenchError(
                "this SAE's features depend on the denoising time, which is not known here; use an SAE that is the "
                "same at every step"
            )
        times = torch.as_tensor(t, dtype=torch.float32, device=u.device)
        scale, shift = self.time(times.reshape([*times.shape, *[1] * (u.dim() - 1 - times.dim())]))
        return u * (1 + scale) + shift

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

    def _pursue(self, centred: Tensor) -> Tensor:
        assert self.pursuit is not None
        codes = pursue(
            centred.reshape(-1, self.d), self.encoder, self.directions * self.row_scale[:, None], self.latent_bias,
            self.pursuit, signed=self.activation == "matching-pursuit-signed",
        )  # fmt: skip
        return codes.reshape(*centred.shape[:-1], self.n)

    def _gated(self, q: Tensor) -> Tensor:
        assert self.gate_bias is not None and self.gate_scale is not None
        return (q * self.gate_scale + self.latent_bias).relu() * (q + self.gate_bias > 0)


def _check_activation(
    activation: Activation, k: int | None, n: int, optional: dict[str, Tensor | None], pursuit: PursuitRule | None
) -> None:
    if activation not in get_args(Activation):
        raise RiebenchError(f"unknown SAE activation {activation!r}{near_match(activation, get_args(Activation))}")
    if activation in COUNTING and (k is None or not 1 <= k <= n):
        raise RiebenchError(f"an SAE of {n} features cannot keep k = {k}; k must be 1 to {n}")
    if activation == "groupmax" and k is not None and n % k:
        raise RiebenchError(f"{n} features cannot be split into k = {k} groups of one size; check k")
    if activation in PURSUITS and (pursuit is None or not 1 <= pursuit.steps <= MAX_STEPS):
        raise RiebenchError(f"an SAE with activation {activation!r} needs its number of steps, 1 to {MAX_STEPS}")
    missing = [name for name in _NEEDED.get(activation, ()) if optional[name] is None]
    if missing:
        raise RiebenchError(f"an SAE with activation {activation!r} needs a tensor {' and '.join(missing)}")


def _check(
    encoder: Tensor, directions: Tensor, pre_bias: Tensor, decoder_bias: Tensor, latent_bias: Tensor,
    optional: dict[str, Tensor | None], *, transcoder: bool,
) -> None:  # fmt: skip
    if encoder.dim() != 2:
        raise RiebenchError(f"an SAE's encoder has two axes (features, width), this one has shape {[*encoder.shape]}")
    n, d = encoder.shape
    out = decoder_bias.numel() if transcoder else d
    expected = {
        "directions": (directions, (n, out)), "pre_bias": (pre_bias, (d,)), "decoder_bias": (decoder_bias, (out,)),
        "latent_bias": (latent_bias, (n,)),
    }  # fmt: skip
    expected |= {name: (tensor, (n,)) for name, tensor in optional.items() if tensor is not None}
    for name, (tensor, shape) in expected.items():
        _check_shape(name, tensor, shape)
    for name, tensor in {"encoder": encoder, **{name: tensor for name, (tensor, _) in expected.items()}}.items():
        _check_numbers(name, tensor)


def _check_added_parts(d: int, out: int, skip: Tensor | None, time: TimeModulation | None, *, transcoder: bool) -> None:
    if skip is not None:
        if not transcoder:
            raise RiebenchError("an SAE with a skip connection reconstructs what it reads without any feature")
        _check_tensor("skip", skip, (out, d))
    if time is not None and time.d != d:
        raise RiebenchError(f"an SAE's time modulation has width {time.d}, its encoder {d}")


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _check_shape(name, tensor, shape)
    _check_numbers(name, tensor)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise RiebenchError(f"SAE tensor {name} has shape {[*tensor.shape]}, expected {[*shape]}")


def _check_numbers(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise RiebenchError(f"SAE tensor {name} holds a number that is not finite; the file is damaged")
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if largest > MAX_WEIGHT:
        raise RiebenchError(
            f"SAE tensor {name} holds {largest:g}; with more than {MAX_WEIGHT:g} nothing stays finite, so the "
            "file is damaged"
        )

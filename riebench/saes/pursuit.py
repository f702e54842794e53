"""Matching pursuit: an encoder that finds features one after the other.

At each step the feature that fits best what the earlier ones leave of a position gets its value there, and its part is
taken from the rest. One feature may be found again; its values then add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_STEPS = 10_000
"""Most steps; some thousand features rebuild any position, and a damaged file may state billions."""
MAX_PRODUCTS = 2**25
"""Most products of positions with features that are held at a time, beside the result: 128 MB."""


@dataclass(frozen=True)
class PursuitRule:
    """The rule by which a matching pursuit ends at a position.

    Attributes:
        steps: most steps, each of which finds one feature.
        residual_threshold: it ends once the rest is shorter than this; 0 for never.
        stop_on_repeat: whether it ends at the first step that finds a feature again (its value still counts).
    """

    steps: int
    residual_threshold: float = 0.0
    stop_on_repeat: bool = False


def pursue(
    x: Tensor, encoder: Tensor, decoder: Tensor, latent_bias: Tensor, rule: PursuitRule, *, signed: bool = False
) -> Tensor:
    """Compute the codes of a matching pursuit.

    Of features that fit equally well the first is taken.

    Args:
        x: [P, d] positions, centred.
        encoder: [n, d]; products of the rest with its rows (plus bias) decide, and are the values.
        decoder: [n, d]; what a value of 1 takes from the rest.
        latent_bias: [n].
        rule: when it ends.
        signed: also takes a largest product that is negative; otherwise nothing is found there.

    Returns:
        [P, n], a value for each feature.
    """
    codes = x.new_zeros(len(x), len(encoder))
    size = max(1, MAX_PRODUCTS // len(encoder))
    for part, rest in zip(codes.split(size), x.split(size), strict=True):
        _pursue_part(part, rest, encoder, decoder, latent_bias, rule, signed)
    return codes


def _pursue_part(
    codes: Tensor, rest: Tensor, encoder: Tensor, decoder: Tensor, latent_bias: Tensor, rule: PursuitRule, signed: bool
) -> None:
    """Write the codes of some positions [P, n] into place."""
    live = torch.arange(len(rest), device=rest.device)
    for _ in range(rule.steps):
        values, found = nn.functional.linear(rest, encoder, latent_bias).max(dim=-1)
        if not signed:
            values = values.relu()
        before = codes[live, found]
        codes[live, found] = before + values
        rest = rest - values[:, None] * decoder[found]
        # Where nothing is found, no later step finds anything either.
        ended = values == 0
        if rule.stop_on_repeat:
            ended |= before != 0
        if rule.residual_threshold > 0:
            ended |= rest.norm(dim=-1) < rule.residual_threshold
        if bool(ended.any()):
            live, rest = live[~ended], rest[~ended]
        if not len(live):
            break

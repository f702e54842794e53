"""Which features of a block are near another: by what they write, what they read, and when they are active."""

from __future__ import annotations

import torch
from torch import Tensor

from riebench.features.activity import Activity
from riebench.features.data import Near, Neighbours
from riebench.saes.sae import SparseAutoencoder


def cosines(rows: Tensor, index: int) -> Tensor:
    """Cosine of one row with every row, float32 [n]; 0 where a row has no direction."""
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    return unit @ unit[index]


def company(activity: Activity, index: int) -> Tensor:
    """Share of the positions with either feature at which there are both (Jaccard), float64 [n]."""
    both = activity.both[list(activity.features).index(index)]
    either = activity.counts + activity.counts[index] - both
    return both / either.clamp(min=1)


def nearest(sae: SparseAutoencoder, activity: Activity, index: int, count: int = 8) -> Neighbours:
    """The nearest features of one feature.

    Args:
        sae: of its block.
        activity: what was seen of it.
        index: which feature; one of those the activity keeps the company of.
        count: how many of each kind; features that are never active together are left out.
    """
    return Neighbours(
        decoder=_first(cosines(sae.directions, index), index, count),
        encoder=_first(cosines(sae.encoder, index), index, count),
        together=tuple(one for one in _first(company(activity, index), index, count) if one.value > 0),
    )


def _first(values: Tensor, index: int, count: int) -> tuple[Near, ...]:
    # Rounded before sorting, so that the last digits of another machine change no order; ties go by number.
    rounded = [round(value, 6) for value in values.tolist()]
    ranked = sorted((i for i in range(len(rounded)) if i != index), key=lambda i: (-rounded[i], i))
    return tuple(Near(index=i, value=rounded[i]) for i in ranked[:count])

"""What an SAE's own files say of its features' values, where they say something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from riebench.saes.files import load_tensors
from riebench.saes.formats import checkpoint_at, chosen
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import sources_of

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel

FILES = ("mean.pt", "std.pt")
"""Mean and standard deviation of each feature over the positions where it is active, as sdxl-unbox writes them."""


def stored_statistics(
    source: str | None, model: LoadedModel, block: str, sae: SparseAutoencoder, *, offline: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Mean and standard deviation of each feature where it is active, in units of its direction of length 1.

    Args:
        source: where the SAEs are; None for the model preset's own.
        model: the generating model.
        block: short name.
        sae: the block's.
        offline: fetches nothing.

    Returns:
        float32 [n] each; None for what no file states, or states for another number of features.

    Raises:
        RiebenchError: if such a file is damaged.
    """
    places = {one.block: one for one in sources_of(source, model)}
    place = places.get(block, places.get(None))
    if place is None:
        return None, None
    path = chosen(place.locate(offline=offline), [block], place.options)[block]
    found = checkpoint_at(path, place.options)
    if found is None:
        return None, None
    mean, std = (_read(found[0].folder / name, sae) for name in FILES)
    return mean, std


def _read(path: Path, sae: SparseAutoencoder) -> Tensor | None:
    if not path.is_file():
        return None
    values = load_tensors(path)
    if not isinstance(values, Tensor) or values.shape != (sae.n,):
        return None
    # Stored of values before the lengths of the decoder's rows are multiplied in.
    return values.float() * sae.row_scale.cpu()

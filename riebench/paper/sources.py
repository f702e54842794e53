"""Which SAEs an artefact is about, of those a place holds: all k and widths of the blocks asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from riebench.errors import RiebenchError
from riebench.paper.job import PaperJob
from riebench.saes.formats import available, checkpoint_at
from riebench.saes.sources import SaeSource, check_width, sources_of

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class Labelled:
    """An SAE of a block."""

    block: str
    sae: SparseAutoencoder


def given(job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> list[Labelled]:
    """Every SAE of these blocks that the user names, or that the model has: by block, width and k.

    Raises:
        RiebenchError: if there is none, one does not fit the model, or one was not trained on updates.
    """
    from riebench.features.inspect import load_all

    found = []
    places = [root for one in sources_of(job.sweep or job.sae, model) for root in _roots(one, offline=job.offline)]
    for path, sae in load_all(places, offline=job.offline):
        if sae.block is None:
            raise RiebenchError(f"{path} does not say which block it is for; write BLOCK={path}")
        if sae.block not in blocks:
            continue
        check_width(sae, sae.block, model)
        if sae.signal != "update":
            raise RiebenchError(f"{path} was not trained on block updates as far as it says; add #signal=update if so")
        found.append(Labelled(sae.block, sae.to(model.device)))
    if not found:
        where = job.sweep or job.sae or model.spec.name
        raise RiebenchError(f"no SAE for {', '.join(blocks)} in {where}; name others with --sae or --sweep")
    return sorted(found, key=lambda one: (list(blocks).index(one.block), one.sae.n, one.sae.k or 0))


def _roots(source: SaeSource, *, offline: bool) -> list[SaeSource]:
    """A place, or the roots below it: a training of several widths gives each width a root of its own."""
    path = source.locate(offline=offline)
    if not path.is_dir() or checkpoint_at(path, source.options) is not None or available(path, source.options):
        return [source]
    below = [child for child in sorted(path.iterdir()) if child.is_dir() and available(child, source.options)]
    return [replace(source, place=str(child)) for child in below] or [source]

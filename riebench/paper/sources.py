"""Which SAEs an artefact is about: one a block, or all of several k and widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from riebench.errors import RiebenchError
from riebench.paper.job import PaperJob
from riebench.saes.sources import check_width, model_saes, sources_of

if TYPE_CHECKING:
    from riebench.models import LoadedModel
    from riebench.saes.core import SparseAutoencoder


@dataclass(frozen=True)
class Labelled:
    """An SAE of a block."""

    block: str
    sae: SparseAutoencoder


def usual_of(job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> dict[str, SparseAutoencoder]:
    """One SAE a block, as edits use them.

    Raises:
        RiebenchError: as `riebench.saes.sources.model_saes`.
    """
    return model_saes(job.sae, model, blocks, offline=job.offline)


def given(job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> list[Labelled]:
    """Every SAE of these blocks that the user names, or that the model has: by block, width and k.

    Raises:
        RiebenchError: if there is none, one does not fit the model, or one was not trained on updates.
    """
    from riebench.saes.inspection import load_all

    found = []
    for path, sae in load_all(sources_of(job.sae, model), offline=job.offline):
        if sae.block is None:
            raise RiebenchError(f"{path} does not say which block it is for; write BLOCK={path} in --sae")
        if sae.block not in blocks:
            continue
        check_width(sae, sae.block, model)
        if sae.signal != "update":
            raise RiebenchError(f"{path} was not trained on block updates as far as it says; add #signal=update if so")
        found.append(Labelled(sae.block, sae.to(model.device)))
    if not found:
        raise RiebenchError(f"no SAE for {', '.join(blocks)} in {job.sae or model.spec.name}; name others with --sae")
    return sorted(found, key=lambda one: (list(blocks).index(one.block), one.sae.n, one.sae.k or 0))

"""Taking a block's part away, or putting its SAE's reconstruction in its place, while pictures are generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from riebench.blocks import RESIDUAL, kind
from riebench.generation.edits import Edit
from riebench.generation.hooks import find_module, hooked
from riebench.saes.sae import SparseAutoencoder

NO_UPDATE, SKIP_ONLY = "no update", "skip path only"


def change_of(site: str) -> str:
    """How a block's part is taken away: an attention block gives its input back, a residual block its skip path."""
    return SKIP_ONLY if kind(site) == RESIDUAL else NO_UPDATE


def pass_order(sites: tuple[str, ...]) -> tuple[str, ...]:
    """Blocks in the order in which a picture passes through them."""

    def place(site: str) -> tuple[int, ...]:
        side, *numbers = site.split(".")
        residual = "res" in numbers
        level = int(numbers[0]) if side != "mid" else 0
        return ("down", "mid", "up").index(side), level, 2 * int(numbers[-1]) + (not residual)

    return tuple(sorted(sites, key=place))


def skip_path(block: nn.Module, hidden: Tensor) -> Tensor:
    """What a residual block adds its branch to: its input, through the shortcut convolution where it has one."""
    shortcut: Any = getattr(block, "conv_shortcut", None)
    scale: float = getattr(block, "output_scale_factor", 1.0)
    return (hidden if shortcut is None else shortcut(hidden)) / scale


@contextmanager
def without(unet: nn.Module, site: str, steps: int | None = None) -> Iterator[None]:
    """Takes a block's part away in every U-Net call made inside the `with` block, in both guidance halves.

    Args:
        unet: a `UNet2DConditionModel`.
        site: an attention or a residual block.
        steps: the number of calls there must be, if known.

    Raises:
        RiebenchError: if the block is missing, or the number of calls is wrong.
    """
    module = find_module(unet, site)

    def replace(args: Any, output: Any) -> Any:
        if kind(site) == RESIDUAL:
            return skip_path(module, args[0])
        return args[0] if isinstance(output, Tensor) else (args[0], *output[1:])

    with hooked(unet, [site], steps) as hooks:
        hooks.after(module, replace)
        yield


@dataclass(frozen=True)
class Reconstruction:
    """A site edit: the block's update becomes what its SAE makes of it, decoder bias included."""

    sae: SparseAutoencoder

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """See `riebench.generation.edits.SiteEdit.delta`."""
        return self.sae.decode(self.sae.encode(live), live) - live

    @property
    def nbytes(self) -> int:
        """See `riebench.generation.edits.SiteEdit.nbytes`."""
        return 0


def reconstructed(saes: dict[str, SparseAutoencoder]) -> Edit:
    """The edit that replaces some blocks' updates, in both guidance halves."""
    return Edit(sites={block: Reconstruction(sae) for block, sae in saes.items()}, branch="all")

"""Activations that SAEs read and reconstruct, handed over step by step.

`Listeners` is the sink of a capture while pictures are generated. It puts together what belongs together: an SAE may
read the block's input and reconstruct its update, which come one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from riebench.blocks import short_name
from riebench.generation.generator import Capture

if TYPE_CHECKING:
    from riebench.saes.sae import Reads, SparseAutoencoder

Take = Callable[[Tensor, Tensor, Tensor | None], None]
"""Takes one step of a batch: what is read and what is reconstructed, [B, C, h, w], and the denoiser's time."""

_ORDER: tuple[Reads, ...] = ("input", "update", "output")
"""In which a block gives them."""


@dataclass(frozen=True)
class Listener:
    """One block's values that somebody looks at.

    Attributes:
        block: short name.
        reads: what is read.
        signal: what is reconstructed; the same as `reads` where nothing else is looked at.
        take: gets both at each step.
    """

    block: str
    reads: Reads
    signal: Reads
    take: Take


class Listeners:
    """The values of some blocks in each step of some generations.

    Args:
        wanted: what is handed over, and to whom.
    """

    def __init__(self, wanted: Sequence[Listener]) -> None:
        self._wanted: dict[str, list[Listener]] = {}
        for one in wanted:
            self._wanted.setdefault(short_name(one.block), []).append(one)
        self._pending: dict[str, dict[str, Tensor]] = {}

    @property
    def capture(self) -> Capture:
        """The capture whose values go to the listeners.

        Of guided models the conditional half is handed over.
        """
        several = {what for found in self._wanted.values() for one in found for what in (one.reads, one.signal)}
        return Capture(tuple(self._wanted), tuple(what for what in _ORDER if what in several), sink=self)

    def receive(self, site: str, what: str, values: Tensor, time: Tensor | None) -> None:
        """Take one quantity of one step; see `riebench.generation.trace.StepSink`."""
        pending = self._pending.setdefault(site, {})
        if what == _ORDER[0]:
            pending.clear()
        pending[what] = values
        for one in self._wanted[site]:
            if what == max(one.reads, one.signal, key=_ORDER.index):
                one.take(pending[one.reads], pending[one.signal], time)
        if what == self._last(site):
            pending.clear()

    def _last(self, site: str) -> str:
        return max((what for one in self._wanted[site] for what in (one.reads, one.signal)), key=_ORDER.index)


def flat(values: Tensor) -> Tensor:
    """Return values [B, C, h, w] as positions [B*h*w, C], picture after picture."""
    return values.movedim(1, -1).flatten(0, 2)


def sae_listener(block: str, sae: SparseAutoencoder, take: Take) -> Listener:
    """Return the listener to what an SAE reads alone.

    Args:
        block: short name.
        sae: the block's.
        take: gets it twice, and the time.
    """
    return Listener(block, sae.reads, sae.reads, take)

"""Feed-forward units of source and target runs, kept in the host's memory.

`UnitRecorder` takes them as they come, and `UnitValues` are those of one run at its masked positions. They are kept in
the number format that the model computes in, so they are the very numbers that a repeated run would give.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation import memory
from riebench.generation.edits import StepValues
from riebench.generation.trace import FULL_PRECISION, precision_of
from riebench.utils import machine


class UnitValues:
    """Units of one run at its masked positions, step by step.

    Args:
        steps: site -> [P, units] of each step, on the host.
        device: on which they are read.
    """

    def __init__(self, steps: dict[str, list[Tensor]], device: torch.device) -> None:
        self._steps = steps
        self._device = device

    def step(self, site: str, step: int, columns: Tensor | None = None) -> Tensor:
        """Return one step of one site, float32 [P, units].

        Args:
            site: feed-forward site.
            step: from 0.
            columns: int64 [k], which units; None for all.

        Raises:
            RiebenchError: if the site was not recorded.
        """
        values = self._of(site)[step]
        return (values if columns is None else values[:, columns.to(values.device)]).to(self._device).float()

    def view(self, site: str, columns: Tensor) -> StepValues:
        """Return some units of a site, [T, P, k], read when a step needs them."""
        steps = self._of(site)
        return StepValues(
            lambda step, columns: self.step(site, step, columns), (len(steps), len(steps[0]), len(columns)), columns
        )

    def steps_of(self, site: str) -> int:
        """Return how many steps of a site are kept."""
        return len(self._of(site))

    def _of(self, site: str) -> list[Tensor]:
        if site not in self._steps:
            raise RiebenchError(f"the feed-forward units of {site} were not captured")
        return self._steps[site]

    @property
    def precision(self) -> float:
        """Relative rounding of the number format that the model computed in."""
        return max([FULL_PRECISION, *(precision_of(steps[0]) for steps in self._steps.values())])

    @property
    def nbytes(self) -> int:
        """Bytes kept on the host."""
        return sum(step.numel() * step.element_size() for steps in self._steps.values() for step in steps)


class UnitRecorder:
    """Taker of the units of some rows of a batch, as the sink of a capture.

    Args:
        rows: which rows of the batch.
    """

    def __init__(self, rows: Collection[int]) -> None:
        self._steps: dict[int, dict[str, list[Tensor]]] = {row: {} for row in rows}
        self._device = torch.device("cpu")

    def __call__(self, site: str, values: Tensor) -> None:
        """Take one step of one site, [B, H*W, units]."""
        self._device = values.device
        for row, sites in self._steps.items():
            sites.setdefault(site, []).append(values[row].detach().to("cpu", copy=True))

    def holds(self, row: int) -> bool:
        """Return whether a row is recorded and was not taken yet."""
        return row in self._steps

    def take(self, row: int, positions: Callable[[str], Tensor]) -> UnitValues:
        """Return a row's units at some positions of each site.

        The others are dropped.

        Args:
            row: of the batch; it can be taken once.
            positions: site -> int64 [P].
        """
        sites = self._steps.pop(row)
        kept = {}
        for site in list(sites):
            chosen = positions(site).cpu()
            kept[site] = [values[chosen] for values in sites.pop(site)]
        return UnitValues(kept, self._device)


def examples_with_units(nbytes: int, count: int) -> int:
    """Return how many of some examples' units may be kept now.

    All of those kept at a time stay within `UNITS_SHARE` of the host's free memory when they are recorded.

    Args:
        nbytes: of one example's units, at all positions.
        count: examples whose runs are generated together.
    """
    return min(count, int(memory.UNITS_SHARE * machine.free_ram()) // max(1, nbytes))

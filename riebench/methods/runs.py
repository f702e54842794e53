"""What methods see of an example: its source and target run, and the runs of other examples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from riebench.blocks import block_of
from riebench.generation.edits import Stepwise, Values, positions_of
from riebench.generation.regions.masks import to_grid
from riebench.generation.trace import Trace
from riebench.saes.sae import SparseAutoencoder
from riebench.selection import means, unit_normalised
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, RegionRule
from riebench.units import UnitMeter

Role = Literal["source", "target"]
T = TypeVar("T")

ROLES: tuple[Role, Role] = ("source", "target")

ENCODED_AT_A_TIME = 256
"""Positions of a long run whose feature values are computed together."""


class Others(Protocol):
    """The other examples of the category (see `riebench.references`); which ones depends on the task file alone."""

    def first(self, count: int, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        """What is found in the runs of the first so many of them, fewer if there are fewer.

        Args:
            count: how many.
            key: names what is looked for: it is looked for only once in each example's runs.
            look: finds it; must keep nothing else of the runs.

        Raises:
            RiebenchError: if there are none.
        """

    def next(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> T:
        """What is found in the runs of the one that follows this example: another one for each, clusters aside."""


@dataclass
class ExampleRuns:
    """One example's source and target run, shared by all settings.

    Feature values are computed once per block and SAE and kept as long as this object. Of a long run
    (`riebench.generation.memory`) only their means are; `values` and `features` then read the trace step by step. `updates`,
    `masked` and `codes` always give whole tensors, which for a long run are large.

    Attributes:
        example: the edit.
        seed: its noise seed.
        trace: holds both runs.
        rows: which row of it is the source run, and which the target run.
        masks: its regions.
        unit_layers: block -> number of its feed-forward layers; empty if units were not captured.
        measure: takes the means of units that are too many for the trace; None if the trace has them.
        rule: the region rule of the example's category.
        latents: latents of both runs after each step, [T, c, h, w], if a method needs them.
        others: the other examples of the category, if a method needs them.
    """

    example: EditExample
    seed: int
    trace: Trace
    rows: Mapping[Role, int]
    masks: RegionMasks
    unit_layers: Mapping[str, int] = field(default_factory=dict)
    measure: Callable[[ExampleRuns], UnitMeter] | None = None
    rule: RegionRule = "edit"
    latents: Mapping[Role, Tensor] = field(default_factory=dict)
    others: Others | None = None
    _codes: dict[tuple[Role, str, int], Tensor] = field(default_factory=dict, repr=False)
    _means: dict[tuple[Role, str, int, str], Tensor] = field(default_factory=dict, repr=False)
    _meter: UnitMeter | None = field(default=None, repr=False)

    def positions(self, role: Role, site: str) -> Tensor:
        """Masked positions on the grid of a site's block, int64 [P]."""
        mask = self.masks.source if role == "source" else self.masks.target
        return positions_of(to_grid(mask, self.trace.grids[block_of(site)]))

    def updates(self, role: Role, block: str) -> Tensor:
        """A block's updates at all positions, float32 [T, H*W, C]."""
        return self.trace.row(block, self.rows[role])

    def masked(self, role: Role, site: str) -> Tensor:
        """Updates or units at the masked positions, float32 [T, P, width]."""
        values = self.trace.row(site, self.rows[role])
        return values[:, self.positions(role, site).to(values.device)]

    def codes(self, role: Role, block: str, sae: SparseAutoencoder) -> Tensor:
        """Feature values at the masked positions, float32 [T, P, n], in units of the update."""
        key = (role, block, id(sae))
        if key not in self._codes:
            self._codes[key] = sae.contributions(self.masked(role, block))
        return self._codes[key]

    def values(self, role: Role, site: str) -> Values:
        """Updates or units at the masked positions, [T, P, width]; for a long run, read step by step."""
        if not self.trace.long:
            return self.masked(role, site)
        positions, row = self.positions(role, site), self.rows[role]

        def read(step: int, columns: Tensor | None) -> Tensor:
            kept = self.trace.step_row(site, row, step)
            values = kept[positions.to(kept.device)].float()
            return values if columns is None else values[:, columns.to(values.device)]

        return Stepwise(read, (self.trace.steps_of(site), len(positions), self.trace.width_of(site)))

    def features(self, role: Role, block: str, sae: SparseAutoencoder) -> Values:
        """Feature values at the masked positions, [T, P, n]; for a long run, computed step by step."""
        if not self.trace.long:
            return self.codes(role, block, sae)
        updates = self.values(role, block)

        def read(step: int, columns: Tensor | None) -> Tensor:
            parts = [sae.contributions(part) for part in updates[step].split(ENCODED_AT_A_TIME)]
            return torch.cat([part if columns is None else part[:, columns] for part in parts])

        return Stepwise(read, (*updates.shape[:2], sae.n))

    def feature_means(self, role: Role, block: str, sae: SparseAutoencoder, aggregate: str) -> Tensor:
        """Mean of each feature over the masked positions, as `riebench.selection.means`: float32 [n]."""
        if not self.trace.long:
            return means(self.codes(role, block, sae), aggregate)
        key = (role, block, id(sae), aggregate)
        if key not in self._means:
            self._means[key] = _streamed(self.features(role, block, sae), aggregate)
        return self._means[key]

    def firing_rates(self, role: Role, block: str, sae: SparseAutoencoder) -> Tensor:
        """Share of steps and masked positions at which each feature is live: float32 [n]."""
        if not self.trace.long:
            return (self.codes(role, block, sae) > 0).float().mean((0, 1))
        key = (role, block, id(sae), "rate")
        if key not in self._means:
            features = self.features(role, block, sae)
            steps, positions, _ = features.shape
            # Counted, so that equal rates are equal to the bit: the order of ties hangs on it.
            live = torch.stack([(features[step] > 0).sum(0) for step in range(steps)]).sum(0)
            self._means[key] = live.float() / max(1, steps * positions)
        return self._means[key]

    def unit_means(self, role: Role, site: str, aggregate: str) -> Tensor:
        """Mean of each unit over the masked positions, each divided by its norm there: float32 [units]."""
        if self.measure is None:
            return means(unit_normalised(self.masked(role, site)), aggregate)
        if self._meter is None:
            self._meter = self.measure(self)
        return self._meter.mean(ROLES.index(role), site, aggregate)

    @property
    def nbytes(self) -> int:
        """Bytes kept: the whole trace, feature values and means."""
        tensors = [*self._codes.values(), *self._means.values(), *self.latents.values()]
        meter = 0 if self._meter is None else self._meter.nbytes
        return self.trace.nbytes + meter + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _streamed(values: Values, aggregate: str) -> Tensor:
    """`riebench.selection.means` of values that are read step by step."""
    if aggregate == "mean":
        return torch.stack([means(values[step][None]) for step in range(values.shape[0])]).mean(0)
    return means(values[0][None], aggregate)

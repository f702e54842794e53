"""Values of the target run put in place of values of the source run.

The values are stored ones, or those of runs that are generated in the same batch. `PatchReplacement` adds nothing: it
puts whole updates in place of those of the edited run itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.edits import (
    Edit,
    StaticEdit,
    Term,
    Values,
    own_bytes,
    position_mean,
    tensor_bytes,
    whole_steps,
)


@dataclass(frozen=True)
class Basis:
    """Meaning of a term's values: directions or columns.

    See `riebench.generation.edits.Term`; with neither, they are the site's own channels.
    """

    directions: Tensor | None = None
    columns: Tensor | None = None


CHANNELS = Basis()
"""The site's own channels."""


def transfer(
    target: Values,
    source: Values,
    target_positions: Tensor,
    source_positions: Tensor,
    *,
    target_basis: Basis = CHANNELS,
    source_basis: Basis = CHANNELS,
    values: str = "position",
    add_at: str = "target",
    add_only: bool = False,
) -> StaticEdit:
    """Add values of the target run and take away values of the source run.

    Args:
        target: [T, Pt, a], what is added, at the target positions.
        source: [T, Ps, r], what is taken away, at the source positions.
        target_positions: int64 [Pt].
        source_positions: int64 [Ps].
        target_basis: what the a added values stand for.
        source_basis: the same for the r removed ones.
        values: "position" keeps each position's own values, "mean" puts their mean at every position.
        add_at: "target" adds at the target positions; "source" adds the mean at the source positions.
        add_only: leaves the removed part out.

    Raises:
        RiebenchError: on an unknown word for `values` or `add_at`.
    """
    for word, known in ((values, ("position", "mean")), (add_at, ("target", "source"))):
        if word not in known:
            raise RiebenchError(f"unknown value {word!r}; known: {', '.join(known)}")
    # One run's values have no counterpart at the other run's positions: only their mean can be moved there.
    moved = add_at == "source"
    added = Term(
        source_positions if moved else target_positions,
        position_mean(target) if moved or values == "mean" else target,
        target_basis.directions,
        target_basis.columns,
    )
    removed = Term(
        source_positions,
        position_mean(source) if values == "mean" else source,
        source_basis.directions,
        source_basis.columns,
        sign=-1.0,
    )
    return StaticEdit((added,) if add_only else (added, removed))


@dataclass(frozen=True)
class PairedEdit:
    """Units copied, step by step, from a source and a target run of the same batch.

    Both runs are generated beside the edited picture.

    The same change as `transfer` makes of stored values, for choices so large that storing their values would need
    hundreds of megabytes: here only the choice is kept.

    Attributes:
        target_positions: int64 [Pt], where units are added.
        source_positions: int64 [Ps], where units are taken away.
        add: int64 [a], units to add.
        remove: int64 [r], units to take away.
        values: see `transfer`.
        add_only: see `transfer`.
    """

    target_positions: Tensor
    source_positions: Tensor
    add: Tensor
    remove: Tensor
    values: str = "position"
    add_only: bool = False

    def between(self, target: Tensor, source: Tensor) -> Tensor | None:
        """Compute the change at one step.

        Args:
            target: what the site gives in the target run, float32 [positions, width].
            source: the same in the source run.
        """
        at, away = self.target_positions.to(target.device), self.source_positions.to(target.device)
        add, remove = self.add.to(target.device), self.remove.to(target.device)
        return transfer(
            target[at][:, add][None], source[away][:, remove][None], at, away, target_basis=Basis(columns=add),
            source_basis=Basis(columns=remove), values=self.values, add_only=self.add_only,
        ).delta(0, target)  # fmt: skip

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """Refuse: the change cannot be computed from the edited run alone.

        Raises:
            RiebenchError: always.
        """
        raise RiebenchError("this edit reads the source and target run; generate them in the same batch")

    @property
    def nbytes(self) -> int:
        """Bytes kept; see `riebench.generation.edits.SiteEdit.nbytes`."""
        return tensor_bytes(self.target_positions, self.source_positions, self.add, self.remove)


@dataclass(frozen=True)
class PatchReplacement:
    """Whole updates in place of the edited run's own at some positions of a block.

    The strength is the share of the positions that are replaced, the first ones; it multiplies nothing. So every update
    that the block hands on is one that some run without an edit has, or may have, computed.

    Attributes:
        positions: int64 [P], in the order in which they are replaced.
        values: [T, P, width], what stands there instead; None for updates of the edited run itself.
        donors: int64 [P], where these are read in the same map and step; None with `values`.
    """

    positions: Tensor
    values: Values | None = None
    donors: Tensor | None = None

    def replace(self, step: int, live: Tensor, strength: float) -> Tensor | None:
        """Return the change at one step, which is not multiplied by the strength.

        Args:
            step: denoising step, from 0.
            live: what the block gives in this very run, float32 [positions, width].
            strength: share of the positions, 0 to 1; above 0, one at least.

        Returns:
            float32 [positions, width], or None where nothing changes.

        Raises:
            RiebenchError: if the edit was made from fewer steps.
        """
        count = min(len(self.positions), max(1, whole_steps(strength, len(self.positions))))
        if strength == 0 or not count:
            return None
        places = self.positions[:count].to(live.device)
        if self.values is None:
            assert self.donors is not None
            wanted = live[self.donors[:count].to(live.device)]
        elif step < self.values.shape[0]:
            wanted = self.values[step][:count].to(live.device, live.dtype)
        else:
            raise RiebenchError(
                f"the edit was made from {self.values.shape[0]} steps, but step {step + 1} is run; use equal steps"
            )
        out = torch.zeros_like(live)
        out[places] = wanted - live[places]
        return out

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """Return the change with all positions replaced; see `SiteEdit.delta`."""
        return self.replace(step, live, 1.0)

    @property
    def nbytes(self) -> int:
        """Bytes kept; see `riebench.generation.edits.SiteEdit.nbytes`."""
        return tensor_bytes(self.positions, self.donors) + (0 if self.values is None else own_bytes(self.values))


def paired_runs(
    prompts: Sequence[str], seeds: Sequence[int], edits: Sequence[Edit | None]
) -> tuple[list[tuple[str, int]], dict[int, tuple[int, int]]]:
    """Return the runs that paired edits read, each one once.

    Returns:
        Prompt and seed of each further row, and for each paired row the rows of its source and its target run.
    """
    extra: dict[tuple[str, int], int] = {}
    pairs = {}
    for row, edit in enumerate(edits):
        if edit is not None and edit.pair is not None and not edit.empty:
            source, target = (extra.setdefault((prompt, seeds[row]), len(prompts) + len(extra)) for prompt in edit.pair)
            pairs[row] = (source, target)
    return list(extra), pairs

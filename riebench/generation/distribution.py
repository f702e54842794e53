"""Distance of edited activations from the distribution of unedited ones.

A `BlockReference` describes the unedited updates of one block at some steps: their mean, their covariance and the
quantiles of their norms. A `DistributionMeter` holds the updates of an edited run against it while the run goes on.

The covariance is shrunk twice. It is mixed with the identity times the average variance, as much as Ledoit and Wolf
(2004) find best and `LEAST_SHRINKAGE` at least: positions of one picture are alike, so that their number overstates
what is known, and blocks leave some directions empty, in which any change would be endlessly far. And it keeps its
largest principal directions alone, with the average variance in all others (Tipping and Bishop 1999). Distances are
Mahalanobis distances divided by their root mean square over unedited positions that had no part in mean and covariance.
So a distance of 1 is usual, whatever the width of the block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from riebench.errors import StoreError
from riebench.store.records import BlockDistribution

MOST_STEPS = 4
"""Steps that are looked at, spread evenly over the run: all steps of a short one."""
MOST_DIRECTIONS = 256
"""Principal directions that a covariance keeps at most."""
POSITIONS_PER_DIRECTION = 8
"""Positions that each kept direction takes."""
LEAST_SHRINKAGE = 0.05
"""Least share of the identity in a covariance."""
FAR = 0.99
"""Share of unedited positions that no far position is among."""
QUANTILES = 201
DECIMALS = 2
"""Of stored numbers: an edited region has tens of positions."""
VERSION = "1"


def measured_steps(steps: int) -> tuple[int, ...]:
    """Return the steps that are looked at, from 0, the first and the last among them."""
    count = min(MOST_STEPS, steps)
    return tuple(round(index * (steps - 1) / max(1, count - 1)) for index in range(count))


@dataclass(frozen=True, eq=False)
class BlockReference:
    """Unedited updates of one block at S steps.

    Attributes:
        steps: int64 [S], which steps.
        mean: [S, C].
        directions: [S, C, R], the kept principal directions.
        variances: [S, R], along them.
        rest: [S], the variance in every other direction.
        scale: [S], root mean square of the distances of held-out positions, before it is divided by.
        limit: [S], distance within which the share `FAR` of held-out positions lies.
        norms: [S, Q], quantiles of the norms, from 0 to 1 in equal steps.
    """

    steps: Tensor
    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor
    scale: Tensor
    limit: Tensor
    norms: Tensor

    @cached_property
    def digest(self) -> str:
        """Hash of all numbers."""
        parts = hashlib.sha256()
        for one in fields(self):
            parts.update(getattr(self, one.name).contiguous().cpu().numpy().tobytes())
        return parts.hexdigest()

    def to(self, device: torch.device) -> BlockReference:
        """Return the same numbers on a device."""
        return BlockReference(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})

    def place(self, step: int) -> int | None:
        """Return the place of a step among those that are looked at, or None."""
        return self._place_of.get(step)

    @cached_property
    def _place_of(self) -> dict[int, int]:
        return {step: place for place, step in enumerate(self.steps.tolist())}

    def distances(self, place: int, values: Tensor) -> Tensor:
        """Return the distances of updates [..., P, C] at one step, [..., P]."""
        return _raw_distances(
            values.float(), self.mean[place], self.directions[place], self.variances[place], self.rest[place]
        ) / self.scale[place].clamp(min=1e-12)

    def measure(self, place: int, values: Tensor) -> Tensor:
        """Measure updates [..., P, C] at one step.

        Returns:
            float32 [..., 3]: mean quantile of the norms, root mean square of the distances, share of far positions.
        """
        lengths = values.float().norm(dim=-1)
        above = torch.searchsorted(self.norms[place].contiguous(), lengths.contiguous())
        quantiles = above.clamp(max=self.norms.shape[1] - 1).float() / (self.norms.shape[1] - 1)
        found = self.distances(place, values)
        far = (found > self.limit[place]).float()
        return torch.stack([quantiles.mean(-1), found.square().mean(-1).sqrt(), far.mean(-1)], dim=-1)


def _raw_distances(values: Tensor, mean: Tensor, directions: Tensor, variances: Tensor, rest: Tensor) -> Tensor:
    apart = values - mean
    along = apart @ directions
    inside, whole = along.square(), apart.square().sum(-1)
    beyond = (whole - inside.sum(-1)).clamp(min=0)
    # Where every direction is kept, what is left beyond them is rounding.
    width = values.shape[-1]
    left = beyond / rest if directions.shape[1] < width else torch.zeros_like(beyond)
    return ((inside / variances).sum(-1) + left).div(width).sqrt()


def make_reference(fitted: Sequence[Tensor], held_out: Sequence[Tensor], steps: Sequence[int]) -> BlockReference:
    """Describe unedited updates of one block.

    Args:
        fitted: of each step, updates [P, C] that mean and covariance are taken of.
        held_out: of each step, updates of other pictures, [Q, C], by which distances are scaled.
        steps: which steps these are.
    """
    parts = [_step_reference(one.double(), other.double()) for one, other in zip(fitted, held_out, strict=True)]
    stacked = {name: torch.stack([part[name] for part in parts]).float() for name in parts[0]}
    return BlockReference(steps=torch.tensor(list(steps)), **stacked)


def _step_reference(fitted: Tensor, held_out: Tensor) -> dict[str, Tensor]:
    count, width = fitted.shape
    mean = fitted.mean(0)
    covariance = (fitted - mean).T @ (fitted - mean) / count
    average, share = covariance.trace() / width, shrinkage(fitted - mean, covariance)
    variances, directions = torch.linalg.eigh(covariance)
    # A block without any variance gets the least one that divides.
    variances = ((1 - share) * variances.flip(0).clamp(min=0) + share * average).clamp(min=1e-30)
    directions = directions.flip(1)
    kept = min(width, MOST_DIRECTIONS, max(1, count // POSITIONS_PER_DIRECTION))
    rest, chosen = variances[min(kept, width - 1) :].mean(), variances[:kept]
    found = _raw_distances(held_out, mean, directions[:, :kept], chosen, rest)
    scale = found.square().mean().sqrt()
    grid = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    norms = torch.cat([fitted, held_out]).norm(dim=-1)
    return {
        "mean": mean, "directions": directions[:, :kept].contiguous(), "variances": chosen, "rest": rest,
        "scale": scale, "limit": torch.quantile(found / scale.clamp(min=1e-12), FAR),
        "norms": torch.quantile(norms, grid),
    }  # fmt: skip


def shrinkage(apart: Tensor, covariance: Tensor) -> float:
    """Return the share of the identity in a shrunk covariance.

    It is that of Ledoit and Wolf (2004), `LEAST_SHRINKAGE` at least.

    Args:
        apart: float64 [P, C], values minus their mean.
        covariance: of them, divided by P.
    """
    count, width = apart.shape
    size = float(covariance.square().sum())
    spread = size - float(covariance.trace()) ** 2 / width
    noise = (float(apart.square().sum(-1).square().mean()) - size) / count
    found = min(noise, spread) / spread if spread > 0 else 1.0
    return min(1.0, max(LEAST_SHRINKAGE, found))


class DistributionMeter:
    """Measures of the edited updates of a batch, taken while it is generated.

    Args:
        references: block -> what unedited updates are like, on the device of the model.
        places: of each row, block -> the positions that are looked at, int64 [P]; blocks that are missing are not.
    """

    def __init__(self, references: Mapping[str, BlockReference], places: Sequence[Mapping[str, Tensor]]) -> None:
        self.references = references
        self._places = places
        self._measured: list[tuple[str, int, list[int], Tensor]] = []
        self._found: dict[tuple[int, str], dict[int, list[float]]] = {}

    def blocks(self, row: int) -> tuple[str, ...]:
        """Return the blocks that are looked at in a row."""
        if row >= len(self._places):
            return ()
        return tuple(block for block, places in self._places[row].items() if block in self.references and len(places))

    def observe(self, block: str, step: int, rows: Sequence[int], updates: Tensor) -> None:
        """Take the updates of some rows after their edits.

        Rows of one example are measured together.

        Args:
            block: short name.
            step: from 0; steps that are not looked at are passed over.
            rows: of the batch.
            updates: [rows, positions, C].
        """
        reference = self.references[block]
        place = reference.place(step)
        if place is None:
            return
        alike: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            alike.setdefault(id(self._places[row][block]), []).append(index)
        for indices in alike.values():
            inside = self._places[rows[indices[0]]][block].to(updates.device)
            chosen = torch.tensor(indices, device=updates.device)
            found = reference.measure(place, updates[chosen[:, None], inside[None, :]])
            # Kept on the device: reading each number at once would wait for it.
            self._measured.append((block, step, [rows[index] for index in indices], found))

    def result(self, row: int, before: Mapping[str, Mapping[int, float]]) -> dict[str, BlockDistribution]:
        """Return what was found in a row, by block.

        Blocks that no step changed are missing.

        Args:
            row: of the batch.
            before: block -> step -> share of far positions in the unedited source run.
        """
        self._read()
        found = {}
        for block in self.blocks(row):
            steps = self._found.get((row, block), {})
            numbers = {step: [round(value, DECIMALS) for value in one] for step, one in sorted(steps.items())}
            if numbers and all(abs(value) < float("inf") for one in numbers.values() for value in one):
                norm, distance, far = zip(*numbers.values(), strict=True)
                found[block] = BlockDistribution(
                    reference=self.references[block].digest[:8], steps=tuple(numbers), norm=norm, distance=distance,
                    far=far, far_before=tuple(round(before[block][step], DECIMALS) for step in numbers),
                )  # fmt: skip
        return found

    def _read(self) -> None:
        for block, step, rows, numbers in self._measured:
            for row, found in zip(rows, numbers.tolist(), strict=True):
                self._found.setdefault((row, block), {})[step] = found
        self._measured.clear()


def encode_reference(reference: BlockReference, notes: Mapping[str, str]) -> bytes:
    """Return the file of a reference, sealed with the hash of its numbers.

    Args:
        reference: on any device.
        notes: what it was made of.
    """
    from safetensors.torch import save

    tensors = {one.name: getattr(reference, one.name).contiguous().cpu() for one in fields(reference)}
    about = {**notes, "version": VERSION, "sha256": reference.digest}
    return save(tensors, {"riebench": json.dumps(about, sort_keys=True)})


def decode_reference(data: bytes, path: Path) -> tuple[BlockReference, dict[str, str]]:
    """Read the file of a reference; return it with its notes.

    Raises:
        StoreError: if it is damaged, or was changed since it was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    remedy = "delete it and repeat `riebench run`"
    try:
        length = int.from_bytes(data[:8], "little")
        notes = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["riebench"])
        found = BlockReference(**load(data))
        if notes["version"] != VERSION or notes["sha256"] != found.digest:
            raise StoreError(f"{path} is not as riebench wrote it; {remedy}")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}); {remedy}") from error
    return found, {str(name): str(text) for name, text in notes.items()}

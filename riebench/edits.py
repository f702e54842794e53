"""What a method hands the generator: changes of block updates or feed-forward units, of the prompt, of the latents.

An `Edit` belongs to one picture. For every site it names, a `SiteEdit` says what is added there at each step. Values
are kept where they are not zero only (masked positions, chosen features or units), so that an edit stays small however
wide the layer is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from riebench.blocks import short_name
from riebench.denoising import LatentChange, Picture, TextChange
from riebench.errors import RiebenchError
from riebench.values import Values, own_bytes, tensor_bytes

if TYPE_CHECKING:
    from riebench.saes.sae import SparseAutoencoder

Branch = Literal["both", "conditional", "all"]
BRANCHES: tuple[Branch, ...] = ("both", "conditional", "all")
"""Under classifier-free guidance: add to the conditional half and subtract from the other, change the conditional
half alone, or add to both halves."""


class SiteEdit(Protocol):
    """What one picture's edit adds at one site."""

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """The change at one step, before the strength is applied.

        Args:
            step: denoising step, from 0.
            live: what the site gives in this very run, float32 [positions, width].

        Returns:
            float32 [positions, width], or None where nothing changes.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors this edit alone keeps (directions of a shared SAE not counted)."""


@dataclass(frozen=True)
class Term:
    """Values at some positions, spread over the site's width.

    Attributes:
        positions: int64 [P], positions in row-major order of the grid.
        values: [T, P, k], or [T, 1, k] for the same values everywhere; a tensor, or read step by step.
        directions: float32 [k, width]: value j goes along direction j.
        columns: int64 [k]: value j goes into column j. With neither, k is the width.
        sign: 1 to add, -1 to take away.
    """

    positions: Tensor
    values: Values
    directions: Tensor | None = None
    columns: Tensor | None = None
    sign: float = 1.0

    @property
    def empty(self) -> bool:
        """Nothing to add at any step."""
        return self.positions.numel() == 0 or 0 in self.values.shape

    def add_to(self, out: Tensor, step: int) -> None:
        """Adds the values of one step to `out`, [positions, width], in place."""
        if step >= self.values.shape[0]:
            raise RiebenchError(
                f"the edit was made from {self.values.shape[0]} steps, but step {step + 1} is run; use equal steps"
            )
        values = self.values[step].to(out.device, out.dtype) * self.sign
        positions = self.positions.to(out.device)
        if self.columns is not None:
            out[positions[:, None], self.columns.to(out.device)[None, :]] += values
        elif self.directions is not None:
            out[positions] += values @ self.directions.to(out.device, out.dtype)
        else:
            out[positions] += values


@dataclass(frozen=True)
class Placed:
    """A change that is known before the run: a sum of terms."""

    terms: tuple[Term, ...]

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """See `SiteEdit.delta`."""
        terms = [term for term in self.terms if not term.empty]
        if not terms:
            return None
        out = torch.zeros_like(live)
        for term in terms:
            term.add_to(out, step)
        return out

    def dense(self, steps: int, positions: int, width: int) -> Tensor:
        """The whole change, float32 [steps, positions, width]; for inspection, an edit never needs it."""
        blank = torch.zeros(positions, width)
        deltas = [self.delta(step, blank) for step in range(steps)]
        return torch.stack([blank if delta is None else delta for delta in deltas])

    @property
    def nbytes(self) -> int:
        """See `SiteEdit.nbytes`."""
        return sum(tensor_bytes(term.positions, term.columns) + own_bytes(term.values) for term in self.terms)


@dataclass(frozen=True)
class Adaptive:
    """Adds known terms and takes away what the features to remove contribute in this very run.

    Attributes:
        added: the part known before the run.
        positions: int64 [P], where features are removed.
        features: int64 [k], which.
        sae: encodes the live update.
    """

    added: Placed
    positions: Tensor
    features: Tensor
    sae: SparseAutoencoder

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """See `SiteEdit.delta`."""
        out = self.added.delta(step, live)
        if self.positions.numel() == 0 or self.features.numel() == 0:
            return out
        positions, features = self.positions.to(live.device), self.features.to(live.device)
        codes = self.sae.contributions(live[positions])[:, features]
        out = torch.zeros_like(live) if out is None else out
        out[positions] -= codes @ self.sae.directions[features].to(live.dtype)
        return out

    @property
    def nbytes(self) -> int:
        """See `SiteEdit.nbytes`."""
        return self.added.nbytes + tensor_bytes(self.positions, self.features)


@dataclass(frozen=True)
class Edit:
    """One picture's edit.

    Attributes:
        sites: site, by any of its names -> what is added there; kept by short names.
        strength: multiplies every delta; 0 changes nothing at all.
        branch: which guidance halves are changed, and how.
        features: block -> (added, removed) indices, for the record; empty for methods without features.
        pair: source and target prompt, if a site is `Paired`: they are generated beside the edited picture.
        window: first changed step, and the one after the last; None for every step.
        text: another prompt, read in part; None for the source prompt alone.
        latents: what is done to the latents between steps, if anything.
    """

    sites: Mapping[str, SiteEdit] = field(default_factory=dict)
    strength: float = 1.0
    branch: Branch = "both"
    features: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    pair: tuple[str, str] | None = None
    window: tuple[int, int] | None = None
    text: TextChange | None = None
    latents: LatentChange | None = None

    def __post_init__(self) -> None:
        if self.branch not in BRANCHES:
            raise RiebenchError(f"unknown branch {self.branch!r}; known: {', '.join(BRANCHES)}")
        object.__setattr__(self, "sites", {short_name(site): change for site, change in self.sites.items()})

    @property
    def empty(self) -> bool:
        """Whether it can change nothing: strength 0, or no values anywhere."""
        return self.strength == 0 or (not self._changes and self._silent)

    @property
    def _silent(self) -> bool:
        return all(_nothing(site) for site in self.sites.values())

    @property
    def _changes(self) -> list[TextChange | LatentChange]:
        return [change for change in (self.text, self.latents) if change is not None]

    def picture(self, steps: int) -> Picture | None:
        """Which existing picture it gives by construction, if any: it need not be generated.

        Args:
            steps: of the run.
        """
        if self.empty:
            return "source"
        if len(self._changes) != 1 or not self._silent:
            return None
        return self._changes[0].picture([self.acts_at(step) for step in range(steps)], self.strength)

    @property
    def nbytes(self) -> int:
        """Bytes kept by this edit alone."""
        return sum(part.nbytes for part in (*self.sites.values(), *self._changes))

    def acts_at(self, step: int) -> bool:
        """Whether it may change a step, counted from 0."""
        return self.window is None or self.window[0] <= step < self.window[1]

    def scaled(self, strength: float) -> Edit:
        """The same edit at another strength."""
        return replace(self, strength=strength)


def positions_of(mask: Tensor) -> Tensor:
    """Row-major indices of a boolean mask's true cells, int64 [P]."""
    return mask.flatten().nonzero().flatten()


def _nothing(site: SiteEdit) -> bool:
    if isinstance(site, Placed):
        return all(term.empty for term in site.terms)
    if isinstance(site, Adaptive):
        return _nothing(site.added) and (site.positions.numel() == 0 or site.features.numel() == 0)
    return False

"""Edits: the changes that a method hands to the generator.

An edit changes block updates or feed-forward units, the prompt, or the latents.

An `Edit` belongs to one picture. For every site it names, a `SiteEdit` says what is added there at each step. Values
are kept where they are not zero only (masked positions, chosen features or units), so that an edit stays small however
wide the layer is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from riebench.blocks import short_name
from riebench.errors import RiebenchError
from riebench.store.records import Training

if TYPE_CHECKING:
    from riebench.saes.sae import Reads, SparseAutoencoder, Time

Picture = Literal["source", "target"]
"""A picture that exists without any edit: that of the source or of the target prompt."""

Branch = Literal["both", "conditional", "all"]

Reader = Callable[[int, Tensor | None], Tensor]
"""Step, and which columns (None: all) -> float32 [P, k]."""

TextParts = tuple[Tensor, ...]
"""A prompt as a denoiser reads it, [1, ...] each; for SDXL the embeddings [1, tokens, width] and a pooled vector."""

BRANCHES: tuple[Branch, ...] = ("both", "conditional", "all")
"""Under classifier-free guidance: add to the conditional half and subtract from the other, change the conditional
half alone, or add to both halves."""

_ROUNDING = 1e-9
"""A share that stands for half a step must not fall below it by rounding."""


class TextReader(Protocol):
    """A reader of prompts: `riebench.generation.generator.Generator`."""

    def text_parts(self, prompt: str) -> TextParts:
        """Return a prompt as the denoiser reads it."""

    def token_positions(self, prompt: str, words: str) -> list[int]:
        """Return the positions of some words among a prompt's tokens."""

    def word_positions(self, prompt: str) -> list[int]:
        """Return the positions of all words among a prompt's tokens."""


class TextEdit(Protocol):
    """A change of what is read as the prompt, in some steps."""

    def weight(self, step: int, steps: int, strength: float) -> float:
        """Return how strongly a step, from 0, reads the change; 0 for not at all."""

    def picture(self, acting: Sequence[bool], strength: float) -> Picture | None:
        """Return the prompt whose own picture this gives, or None.

        Args:
            acting: of each step of the run, whether it is changed.
            strength: of the edit.
        """

    def read(self, reader: TextReader, prompt: str, weight: float) -> TextParts:
        """Return what is read in place of a prompt.

        Args:
            reader: reads prompts.
            prompt: the prompt of the row.
            weight: see `weight`.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of tensors kept."""


@dataclass(frozen=True)
class TextChange:
    """A change of the prompt: the target's is read in place of the source's.

    It is read in part: at some steps, or as a share of the embeddings.

    Attributes:
        target: the other prompt.
        switch: the strength is the share of steps that read the target prompt alone: the "last" ones or the "first"
            ones; with None every step reads both, and the strength is the target's share of the embeddings.
    """

    target: str
    switch: Literal["last", "first"] | None = None

    def weight(self, step: int, steps: int, strength: float) -> float:
        """Return the target prompt's share of what is read at a step, from 0."""
        if self.switch is None:
            return strength
        reading = whole_steps(strength, steps)
        return float(step < reading if self.switch == "first" else step >= steps - reading)

    def picture(self, acting: Sequence[bool], strength: float) -> Picture | None:
        """Return the prompt whose own picture this gives, or None.

        Args:
            acting: of each step of the run, whether it is changed.
            strength: of the edit.
        """
        weights = {acts * self.weight(step, len(acting), strength) for step, acts in enumerate(acting)}
        return "source" if weights == {0.0} else "target" if weights == {1.0} else None

    def read(self, reader: TextReader, prompt: str, weight: float) -> TextParts:
        """Return the mixture of both prompts; see `TextEdit.read`."""
        return mix_embeddings(reader.text_parts(prompt), reader.text_parts(self.target), weight)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors kept."""
        return 0


@dataclass(frozen=True)
class LatentChange:
    """A change of the latents: another run's inside a mask, for some steps.

    Keeps the source run's latents outside the mask, and puts the target run's latents inside it.

    The strength is the share of steps, the first ones, after which the target run's latents are put inside; after the
    other steps the inside is what the edited run itself made of them.

    Attributes:
        source: [T, c, h, w], the source run's latents after each step.
        target: the same of the target run.
        mask: bool [h, w].
    """

    source: Tensor
    target: Tensor
    mask: Tensor

    def after(self, step: int, live: Tensor, strength: float) -> Tensor:
        """Return the latents to go on with.

        Args:
            step: the step just done, from 0.
            live: what it gave, [c, h, w].
            strength: of the edit.
        """
        taken = step < whole_steps(strength, self.source.shape[0])
        inside = self.target[step].to(live) if taken else live
        return torch.where(self.mask.to(live.device), inside, self.source[step].to(live))

    def picture(self, acting: Sequence[bool], strength: float) -> Picture | None:
        """Return the prompt whose own picture this gives; see `TextChange.picture`."""
        taken = [acts and step < whole_steps(strength, len(acting)) for step, acts in enumerate(acting)]
        if not any(taken) or not bool(self.mask.any()):
            return "source"
        # Of a mask without an outside, the last step alone decides what is decoded.
        return "target" if taken[-1] and bool(self.mask.all()) else None

    @property
    def nbytes(self) -> int:
        """Bytes of tensors kept; the latents belong to the runs."""
        return self.mask.numel()


@dataclass(frozen=True)
class StepValues:
    """Values that are read when a step needs them.

    Attributes:
        read: gives one step.
        shape: (steps, positions, width).
        columns: int64 [k], which of the reader's columns; None for all.
        factors: float32 [T], multiplies each step.
    """

    read: Reader
    shape: tuple[int, int, int]
    columns: Tensor | None = None
    factors: Tensor | None = None

    def __getitem__(self, step: int) -> Tensor:
        """Return one step, float32 [P, k]."""
        values = self.read(step, self.columns)
        return values if self.factors is None else values * self.factors[step].to(values.device)


Values = Tensor | StepValues
"""float32 [T, P, k], or [T, 1, k] for the same values everywhere."""


class SiteEdit(Protocol):
    """One picture's edit at one site."""

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """Return the change at one step, before the strength is applied.

        Of `riebench.generation.transfers.PatchReplacement`, whose strength is no factor, the largest change.

        Args:
            step: denoising step, from 0.
            live: what the site gives in this very run, float32 [positions, width].

        Returns:
            float32 [positions, width], or None where nothing changes.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors this edit alone keeps.

        Directions of a shared SAE are not counted.
        """


@dataclass(frozen=True)
class LiveSite:
    """The values of one site in one call of an edited run, for one picture.

    Attributes:
        step: denoising step, from 0.
        time: the denoiser's time of the step, float32 []; None if it is not stated.
        read: gives the block's input, update or output, float32 [positions, width], before this site's edit.
    """

    step: int
    time: Tensor | None
    read: Callable[[Reads], Tensor]


@runtime_checkable
class LiveEdit(Protocol):
    """A site edit that may read more of the edited run than the site's update.

    Where an edit has this method, it is called instead of `SiteEdit.delta`.
    """

    def change(self, live: LiveSite) -> Tensor | None:
        """Return the change of the update at one step, before the strength is applied.

        The block's output is its input plus the update, so that a change of the one is the same change of the other.

        Returns:
            float32 [positions, width], or None where nothing changes.
        """


@dataclass(frozen=True)
class Term:
    """Values at some positions, spread over the site's width.

    Attributes:
        positions: int64 [P], positions in row-major order of the grid.
        values: [T, P, k], or [T, 1, k] for the same values everywhere; a tensor, or read step by step.
        directions: float32 [k, width]: value j goes along direction j; [T, k, width] for other ones at each step.
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
        """True if there is nothing to add at any step."""
        return self.positions.numel() == 0 or 0 in self.values.shape

    def add_to(self, out: Tensor, step: int) -> None:
        """Add the values of one step to `out`, [positions, width], in place."""
        if step >= self.values.shape[0]:
            raise RiebenchError(
                f"the edit was made from {self.values.shape[0]} steps, but step {step + 1} is run; use equal steps"
            )
        values = self.values[step].to(out.device, out.dtype) * self.sign
        positions = self.positions.to(out.device)
        if self.columns is not None:
            out[positions[:, None], self.columns.to(out.device)[None, :]] += values
        elif self.directions is not None:
            directions = self.directions if self.directions.dim() == 2 else self.directions[step]
            out[positions] += values @ directions.to(out.device, out.dtype)
        else:
            out[positions] += values


@dataclass(frozen=True)
class StaticEdit:
    """A change that is known before the run: a sum of terms."""

    terms: tuple[Term, ...]

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """Return the change at one step; see `SiteEdit.delta`."""
        terms = [term for term in self.terms if not term.empty]
        if not terms:
            return None
        out = torch.zeros_like(live)
        for term in terms:
            term.add_to(out, step)
        return out

    def dense(self, steps: int, positions: int, width: int) -> Tensor:
        """Return the whole change, float32 [steps, positions, width].

        For inspection; an edit never needs it.
        """
        blank = torch.zeros(positions, width)
        deltas = [self.delta(step, blank) for step in range(steps)]
        return torch.stack([blank if delta is None else delta for delta in deltas])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors kept; see `SiteEdit.nbytes`."""
        return sum(tensor_bytes(term.positions, term.columns) + own_bytes(term.values) for term in self.terms)


@dataclass(frozen=True)
class AdaptiveEdit:
    """A change that removes features as they occur in the edited run itself.

    Adds known terms and takes away what the features to remove contribute in this very run.

    Attributes:
        added: the part known before the run.
        positions: int64 [P], where features are removed.
        features: int64 [k], which.
        sae: encodes what it reads of the edited run: the update, the block's output or its input.
        scale: multiplies what is removed.
        mean: removes the mean over the positions at each of them, instead of each one's own.
    """

    added: StaticEdit
    positions: Tensor
    features: Tensor
    sae: SparseAutoencoder
    scale: float = 1.0
    mean: bool = False

    def change(self, live: LiveSite) -> Tensor | None:
        """Return the change at one step; see `LiveEdit.change`."""
        return self.delta(live.step, live.read(self.sae.reads), live.time)

    def delta(self, step: int, live: Tensor, time: Time | None = None) -> Tensor | None:
        """Return the change at one step; see `SiteEdit.delta`.

        Args:
            step: denoising step, from 0.
            live: what the SAE reads, in this very run, float32 [positions, width].
            time: of the step, for SAEs that need it.
        """
        out = self.added.delta(step, live)
        if self.positions.numel() == 0 or self.features.numel() == 0 or self.scale == 0:
            return out
        positions, features = self.positions.to(live.device), self.features.to(live.device)
        codes = self.sae.contributions(live[positions], time)[:, features]
        if self.mean:
            codes = codes.mean(dim=0, keepdim=True)
        removed = codes @ self.sae.feature_directions(features, time).to(live.dtype)
        out = torch.zeros_like(live) if out is None else out
        out[positions] -= removed if self.scale == 1 else self.scale * removed
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors kept; see `SiteEdit.nbytes`."""
        return self.added.nbytes + tensor_bytes(self.positions, self.features)


@dataclass(frozen=True)
class Edit:
    """One picture's edit.

    Attributes:
        sites: site, by any of its names -> what is added there; kept by short names.
        strength: multiplies every delta; 0 changes nothing at all.
        branch: which guidance halves are changed, and how.
        features: block -> (added, removed) indices, for the record; empty for methods without features.
        neurons: feed-forward units switched on and off, for the record; None for methods that switch none.
        training: the training that it was learned by, for the record; None for methods that learn nothing.
        pair: source and target prompt, if a site is `PairedEdit`: they are generated beside the edited picture.
        window: first changed step, and the one after the last; None for every step.
        text: what is read in place of the source prompt; None for the source prompt alone.
        latents: what is done to the latents between steps, if anything.
    """

    sites: Mapping[str, SiteEdit] = field(default_factory=dict)
    strength: float = 1.0
    branch: Branch = "both"
    features: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    neurons: int | None = None
    training: Training | None = None
    pair: tuple[str, str] | None = None
    window: tuple[int, int] | None = None
    text: TextEdit | None = None
    latents: LatentChange | None = None

    def __post_init__(self) -> None:
        if self.branch not in BRANCHES:
            raise RiebenchError(f"unknown branch {self.branch!r}; known: {', '.join(BRANCHES)}")
        object.__setattr__(self, "sites", {short_name(site): change for site, change in self.sites.items()})

    @property
    def empty(self) -> bool:
        """True if the edit can change nothing: strength 0, or no values anywhere."""
        return self.strength == 0 or (not self._changes and self._silent)

    @property
    def _silent(self) -> bool:
        return all(_nothing(site) for site in self.sites.values())

    @property
    def _changes(self) -> list[TextEdit | LatentChange]:
        return [change for change in (self.text, self.latents) if change is not None]

    def picture(self, steps: int) -> Picture | None:
        """Return the existing picture that this gives by construction, or None.

        Such a picture need not be generated.

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
        """Return whether the edit may change a step, counted from 0."""
        return self.window is None or self.window[0] <= step < self.window[1]

    def scaled(self, strength: float) -> Edit:
        """Return the same edit at another strength."""
        return replace(self, strength=strength)


def mix_embeddings(source: TextParts, target: TextParts, weight: float) -> TextParts:
    """Mix two prompts' embeddings in the proportion (1 - weight) to weight.

    Weights 0 and 1 give one of them to the bit. Masks of tokens, which are whole numbers, are joined: of a mixture is
    read what either prompt has.

    Raises:
        RiebenchError: if other weights are asked for and the prompts' texts differ in length.
    """
    if weight in (0.0, 1.0):
        return target if weight else source
    if any(one.shape != other.shape for one, other in zip(source, target, strict=True)):
        raise RiebenchError("this model's texts differ in length, so they cannot be mixed; use the strength 0 or 1")
    return tuple(
        ((1 - weight) * one.float() + weight * other.float()).to(one.dtype)
        if one.is_floating_point()
        else torch.maximum(one, other)
        for one, other in zip(source, target, strict=True)
    )


def whole_steps(share: float, steps: int) -> int:
    """Return the number of steps nearest to a share of a run.

    Half a step counts as one.

    Args:
        share: 0 to 1; n / steps gives n.
        steps: of the run.
    """
    return math.floor(share * steps + 0.5 + _ROUNDING)


def positions_of(mask: Tensor) -> Tensor:
    """Return the row-major indices of a boolean mask's true cells, int64 [P]."""
    return mask.flatten().nonzero().flatten()


def select_columns(values: Values, columns: Tensor) -> Values:
    """Select some columns of values from which none were selected before."""
    if isinstance(values, Tensor):
        return values[..., columns]
    return replace(values, columns=columns, shape=(*values.shape[:2], len(columns)))


def scale_steps(values: Values, factors: Tensor) -> Values:
    """Multiply each step by its own factor, float32 [T]."""
    if isinstance(values, Tensor):
        return values * factors[:, None, None]
    return replace(values, factors=factors if values.factors is None else values.factors * factors)


def position_mean(values: Values) -> Tensor:
    """Compute the mean over positions, step by step: float32 [T, 1, k].

    Without positions there is no mean: the result is empty or zero and is added nowhere.
    """
    if isinstance(values, Tensor):
        return values.mean(1, keepdim=True) if values.shape[1] else values
    if not values.shape[1]:
        return torch.zeros(values.shape)
    return torch.stack([values[step].mean(0, keepdim=True) for step in range(values.shape[0])])


def own_bytes(values: Values) -> int:
    """Return the bytes that these values alone keep.

    What step-by-step values read from belongs to the trace.
    """
    tensors = (values,) if isinstance(values, Tensor) else (values.columns, values.factors)
    return tensor_bytes(*tensors)


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Return the bytes of some tensors' numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _nothing(site: SiteEdit) -> bool:
    if isinstance(site, StaticEdit):
        return all(term.empty for term in site.terms)
    if isinstance(site, AdaptiveEdit):
        return _nothing(site.added) and (site.positions.numel() == 0 or site.features.numel() == 0)
    return False

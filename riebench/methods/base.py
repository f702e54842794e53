"""Methods: their context, their results and their registration.

`ExampleRuns` holds the source and target run of one example, `EditContext` is what a method works on, `Method` is a
registered method, and `method` is the decorator that registers one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from riebench.blocks import TEXT, block_of, kind, short_name
from riebench.errors import RiebenchError, foreign_code, near_match
from riebench.generation.edits import Edit, StepValues, Values, positions_of
from riebench.generation.regions.masks import to_grid
from riebench.generation.trace import Trace
from riebench.generation.units import UnitValues
from riebench.methods.access import Access, Guarded, GuardedMapping, GuardedTrace
from riebench.methods.ranking import UnitMeter, means, normalise_units
from riebench.registry import METHODS
from riebench.saes.sae import Reads, SparseAutoencoder
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, RegionRule

if TYPE_CHECKING:
    from riebench.generation.generator import Generator

Role = Literal["source", "target"]
"""One of the two runs of an example."""

Need = Literal["updates", "saes", "units", "latents", "others"]

AddOnly = bool | Literal["published"]
"""Type of the parameter `add_only`; see `EditContext.only_adds`."""

T = TypeVar("T")

ROLES: tuple[Role, Role] = ("source", "target")

BLOCK_NEEDS: frozenset[Need] = frozenset({"updates", "saes", "units"})
"""Needs that are read from blocks; methods without any of them change no block."""
ANY_STRENGTH = (-math.inf, math.inf)
"""Least and largest strength of methods without a limit."""
PARAMETER_TYPES = (int, float, str, bool, NoneType)
"""Types of methods' parameters, beside words of a list."""

ENCODE_CHUNK = 256
"""Positions of a long run whose feature values are computed together."""


class OtherExamples(Protocol):
    """Other examples of the category, in the order of the task file.

    See `riebench.runs.references`.
    """

    def first(self, count: int, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        """Return what is found in the runs of the first `count` examples.

        Fewer if there are fewer.

        Args:
            count: how many.
            key: names what is looked for: it is looked for only once in each example's runs.
            look: finds it; must keep nothing else of the runs.

        Raises:
            RiebenchError: if there are none.
        """

    def next(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> T:
        """Return what is found in the runs of the example that follows this one.

        Each example has another one that follows it, except within clusters.
        """

    def training(self, count: int, folds: int) -> TrainingExamples:
        """Return the examples that a supervised method learns this example's edit from.

        The category's examples are divided into folds, clusters as a whole; those of this example's own fold are left
        out.

        Args:
            count: how many examples, at most.
            folds: number of folds, at least 2.

        Raises:
            RiebenchError: if there are none.
        """


class TrainingExamples(Protocol):
    """The examples of a category that a supervised method is trained on."""

    @property
    def fold(self) -> int:
        """The fold that is left out, from 0."""

    @property
    def folds(self) -> int:
        """Number of folds."""

    @property
    def generator(self) -> Generator:
        """The loaded model."""

    @property
    def run_evaluations(self) -> int:
        """Evaluations of the denoiser that one run takes."""

    def each(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        """Return what is found in the runs of each example; see `OtherExamples.first`."""

    def learn(self, key: Hashable, fit: Callable[[], T]) -> T:
        """Return what is learned from these examples.

        It is learned once, and kept while the task lasts.

        Args:
            key: names what is learned, with all that it depends on besides these examples.
            fit: learns it.
        """


@dataclass
class ExampleRuns:
    """One example's source and target run, shared by all settings.

    Feature values are computed once per block and SAE and kept as long as this object. Of a long run
    (`riebench.generation.memory`) only their means are; `values` and `features` then read the trace step by step.
    `updates`, `masked` and `codes` always give whole tensors, which for a long run are large.

    Attributes:
        example: the edit.
        seed: its noise seed.
        trace: holds both runs.
        rows: which row of it is the source run, and which the target run.
        masks: its regions.
        unit_layers: block -> number of its feed-forward layers; empty if units were not captured.
        measure: takes the means of units that are too many for the trace; None if the trace has them.
        units: the units themselves, if they are too many for the trace and the host has the memory; empty otherwise.
        rule: the region rule of the example's category.
        latents: latents of both runs after each step, [T, c, h, w], if a method needs them.
        others: the other examples of the category, if a method needs them.
        noise: seed of the noise of both runs.
    """

    example: EditExample
    seed: int
    trace: Trace
    rows: Mapping[Role, int]
    masks: RegionMasks
    unit_layers: Mapping[str, int] = field(default_factory=dict)
    measure: Callable[[ExampleRuns], UnitMeter] | None = None
    units: Mapping[Role, UnitValues] = field(default_factory=dict)
    rule: RegionRule = "edit"
    latents: Mapping[Role, Tensor] = field(default_factory=dict)
    others: OtherExamples | None = None
    noise: int = 0
    _positions: dict[tuple[Role, str], Tensor] = field(default_factory=dict, repr=False)
    _codes: dict[tuple[Role, str, int], Tensor] = field(default_factory=dict, repr=False)
    _means: dict[tuple[Role, str, int, str], Tensor] = field(default_factory=dict, repr=False)
    _meters: list[UnitMeter] = field(default_factory=list, repr=False)

    def positions(self, role: Role, site: str) -> Tensor:
        """Return masked positions on the grid of a site's block, int64 [P].

        A region of the picture says nothing of text tokens: those of a text stream all count.
        """
        if kind(site) == TEXT:
            return torch.arange(self.trace.grids[short_name(site)][1])
        mask = self.masks.source if role == "source" else self.masks.target
        block = block_of(site)
        if (role, block) not in self._positions:
            self._positions[role, block] = positions_of(to_grid(mask, self.trace.grids[block]))
        return self._positions[role, block]

    def updates(self, role: Role, block: str) -> Tensor:
        """Return a block's updates at all positions, float32 [T, H*W, C]."""
        return self.trace.row(block, self.rows[role])

    def masked(self, role: Role, site: str, what: Reads = "update") -> Tensor:
        """Return updates or units at the masked positions, float32 [T, P, width].

        Args:
            role: which run.
            site: short name.
            what: of a block; its input and output are there if an SAE reads them.
        """
        values = self.trace.row(site, self.rows[role], what)
        return values[:, self.positions(role, site).to(values.device)]

    def codes(self, role: Role, block: str, sae: SparseAutoencoder) -> Tensor:
        """Compute feature values at the masked positions, float32 [T, P, n].

        In units of the update. They are computed from what the SAE reads: the block's update, output or input.
        """
        self._look(role)
        key = (role, block, id(sae))
        if key not in self._codes:
            self._codes[key] = sae.contributions(self.masked(role, block, sae.reads), self.times(sae))
        return self._codes[key]

    def times(self, sae: SparseAutoencoder) -> Tensor | None:
        """Return the denoiser's times, float32 [T]; None for an SAE that needs none.

        Raises:
            RiebenchError: if it depends on them and the model's calls state none.
        """
        if not sae.timed:
            return None
        if not self.trace.times:
            raise RiebenchError("this model's denoiser states no time, which the SAE's features depend on; use another")
        return torch.stack(self.trace.times)

    def values(self, role: Role, site: str, what: Reads = "update") -> Values:
        """Return updates or units at the masked positions, [T, P, width]; see `masked`.

        For a long run they are read step by step.
        """
        if not self.trace.long:
            return self.masked(role, site, what)
        positions, row = self.positions(role, site), self.rows[role]

        def read(step: int, columns: Tensor | None) -> Tensor:
            kept = self.trace.step_row(site, row, step, what)
            values = kept[positions.to(kept.device)].float()
            return values if columns is None else values[:, columns.to(values.device)]

        return StepValues(read, (self.trace.steps_of(site, what), len(positions), self.trace.width_of(site, what)))

    def features(self, role: Role, block: str, sae: SparseAutoencoder) -> Values:
        """Compute feature values at the masked positions, [T, P, n].

        For a long run they are computed step by step.
        """
        if not self.trace.long:
            return self.codes(role, block, sae)
        values, times = self.values(role, block, sae.reads), self.times(sae)

        def read(step: int, columns: Tensor | None) -> Tensor:
            time = None if times is None else times[step]
            parts = [sae.contributions(part, time) for part in values[step].split(ENCODE_CHUNK)]
            return torch.cat([part if columns is None else part[:, columns] for part in parts])

        return StepValues(read, (*values.shape[:2], sae.n))

    def feature_means(self, role: Role, block: str, sae: SparseAutoencoder, aggregate: str) -> Tensor:
        """Compute the mean of each feature over the masked positions: float32 [n].

        As `riebench.methods.ranking.means`.
        """
        if not self.trace.long:
            return means(self.codes(role, block, sae), aggregate)
        self._look(role)
        key = (role, block, id(sae), aggregate)
        if key not in self._means:
            self._means[key] = _stream_means(self.features(role, block, sae), aggregate)
        return self._means[key]

    def firing_rates(self, role: Role, block: str, sae: SparseAutoencoder) -> Tensor:
        """Compute each feature's firing rate: float32 [n].

        The share of steps and masked positions at which the feature is live.
        """
        if not self.trace.long:
            return (self.codes(role, block, sae) > 0).float().mean((0, 1))
        self._look(role)
        key = (role, block, id(sae), "rate")
        if key not in self._means:
            features = self.features(role, block, sae)
            steps, positions, _ = features.shape
            # Counted as integers, so that equal rates are equal to the bit: the order of ties depends on it.
            live = torch.stack([(features[step] > 0).sum(0) for step in range(steps)]).sum(0)
            self._means[key] = live.float() / max(1, steps * positions)
        return self._means[key]

    def unit_means(self, role: Role, site: str, aggregate: str) -> Tensor:
        """Compute the mean of each unit over the masked positions: float32 [units].

        Each value is divided by the unit's norm there.
        """
        self._look(role)
        if self.measure is None:
            return means(normalise_units(self.masked(role, site)), aggregate)
        if not self._meters:
            self._meters.append(self.measure(self))
        return self._meters[0].mean(ROLES.index(role), site, aggregate)

    def _look(self, role: Role) -> None:
        """Look up the run and its regions.

        So a view refuses a kept value as it refuses a new one.
        """
        _ = self.rows[role], self.masks.source

    @property
    def precision(self) -> float:
        """Relative rounding of the number format behind updates and feature values."""
        return self.trace.precision

    @property
    def unit_precision(self) -> float:
        """Relative rounding of the number format behind the means of units."""
        return self._meters[0].precision if self._meters else self.trace.precision

    @property
    def nbytes(self) -> int:
        """Bytes kept: the whole trace, feature values and means."""
        tensors = [*self._codes.values(), *self._means.values(), *self.latents.values()]
        meters = sum(meter.nbytes for meter in self._meters)
        return self.trace.nbytes + meters + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class EditContext:
    """The input of a method.

    Attributes:
        runs: the example's source and target run.
        blocks: the blocks it may change, together.
        saes: block -> SAE, for methods that need them.
    """

    runs: ExampleRuns
    blocks: tuple[str, ...]
    saes: Mapping[str, SparseAutoencoder] = field(default_factory=dict)

    def sae(self, block: str) -> SparseAutoencoder:
        """Return a block's SAE.

        Raises:
            RiebenchError: if there is none.
        """
        if block not in self.saes:
            raise RiebenchError(f"no SAE for block {block}; give a folder that has one")
        return self.saes[block]

    def only_adds(self, add_only: AddOnly) -> bool:
        """Return True if nothing is taken away from this example.

        Args:
            add_only: a method's parameter. "published" is True except where an object is deleted: the published
                notebook does not pass its `only_add` on for deletions, so that they are subtracted all the same.
        """
        return self.runs.rule != "delete" if add_only == "published" else add_only

    def limited_to(self, access: Access) -> EditContext:
        """Return the context as a method sees it, refusing what it does not declare.

        Values that were computed for other methods are shared.
        """
        runs, changes = self.runs, dict[str, Any]()
        if not access.has("PA") and runs.rows["target"] != runs.rows["source"]:
            changes["rows"] = GuardedMapping(runs.rows, access, {"target": "PA"})
            changes["trace"] = GuardedTrace(runs.trace, access, runs.rows["target"], "PA")
            changes["units"] = GuardedMapping(runs.units, access, {"target": "PA"})
        if not access.has("P"):
            changes["example"] = Guarded(runs.example, access, "P", frozenset({"target"}))
            changes["latents"] = GuardedMapping(runs.latents, access, {"target": "P"})
        if not access.has("M"):
            changes["masks"] = Guarded(runs.masks, access, "M")
        if not access.has("T") and runs.others is not None:
            changes["others"] = cast(OtherExamples, Guarded(runs.others, access, "T"))
        return replace(self, runs=replace(runs, **changes))

    def with_deletion_rule(self, delete_uses_target: bool) -> EditContext:
        """Return the context in which a method sees a deletion.

        Its target is the target run or, as published before October 2025, the source run once more.

        Seen twice, a run has nothing to tell apart, and what is added and removed is the same.
        """
        if delete_uses_target or self.runs.rule != "delete":
            return self
        runs, row = self.runs, self.runs.rows["source"]
        example = runs.example.model_copy(update={"target": runs.example.source})
        rows: dict[Role, int] = {"source": row, "target": row}
        units = dict.fromkeys(ROLES, runs.units["source"]) if runs.units else {}
        twice = replace(runs, example=example, rows=rows, units=units, _codes={}, _means={}, _meters=[])
        return replace(self, runs=twice)


@dataclass(frozen=True)
class Reuse:
    """A result that is an existing picture: the source or the target picture."""

    picture: Role


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: as configurations call it.
        function: `edit(ctx, **params)`.
        needs: what has to be captured or loaded before.
        access: what it may look at: letters of P (target prompt), A (target run's activations), M (masks),
            T (training, other examples), V (inversion). Looking at anything else is refused.
        strengths: the least and the largest strength that mean anything.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[Need]
    access: str
    strengths: tuple[float, float] = field(default=ANY_STRENGTH, kw_only=True)

    @property
    def reads_blocks(self) -> bool:
        """True if the method reads activations of blocks.

        Otherwise it changes none, whatever blocks its configuration names.
        """
        return bool(self.needs & BLOCK_NEEDS)

    @property
    def copies(self) -> bool:
        """True if the result is always a picture that is generated anyway."""
        return _result_type(self.function) is Reuse

    @property
    def edits(self) -> bool:
        """True if the method gives edits, which can be limited to some steps."""
        hint = _result_type(self.function)
        return Edit in (hint, *get_args(hint))

    def check_strengths(self, strengths: Sequence[float]) -> None:
        """Refuse strengths that mean nothing.

        Raises:
            RiebenchError: naming the first of them.
        """
        low, high = self.strengths
        for strength in strengths:
            if not low <= strength <= high:
                raise RiebenchError(f"strengths: {strength:g} is not in {low:g} to {high:g}, as {self.name!r} needs")

    def check(self, params: Mapping[str, Any]) -> None:
        """Check parameters against the function's signature.

        Raises:
            RiebenchError: on an unknown parameter (names the nearest), a missing one, or one of a wrong type.
        """
        signature, hints = _parameters_of(self.function)
        known = [name for name in signature.parameters if name != "ctx"]
        for name, value in params.items():
            if name not in known:
                raise RiebenchError(f"method {self.name!r} has no parameter {name!r}{near_match(name, known)}")
            _check_type(f"{self.name}: {name}", value, hints.get(name))
        for name in known:
            if name not in params and signature.parameters[name].default is inspect.Parameter.empty:
                raise RiebenchError(f"method {self.name!r} needs the parameter {name!r}")

    def check_size(self, size: int) -> None:
        """Check that the method works on pictures of a size; most work on every size.

        Args:
            size: picture side in pixels.

        Raises:
            RiebenchError: if it does not.
        """

    @torch.inference_mode()
    def edit(self, ctx: EditContext, params: Mapping[str, Any]) -> Edit | Reuse:
        """Make the edit of one example.

        Raises:
            RiebenchError: if parameters do not fit, the method looks at what it does not declare, or gives something
                else.
        """
        self.check(params)
        access = Access(self.name, self.access)
        with foreign_code(f"method {self.name!r}"):
            made: Any = self.function(ctx.limited_to(access), **params)
        if made == Reuse("target"):
            access.require("P")
        if not isinstance(made, Edit | Reuse):
            raise RiebenchError(f"method {self.name!r} gave {type(made).__name__}; it must give an Edit or a Reuse")
        return made


@lru_cache(maxsize=256)
def _parameters_of(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return a function's signature and its type hints; finding them is slow."""
    return inspect.signature(function), get_type_hints(function)


def method(
    name: str, *, access: str, needs: tuple[Need, ...] = (), strengths: tuple[float, float] = ANY_STRENGTH
) -> Callable[[Callable[..., Edit | Reuse]], Method]:
    """Register `edit(ctx, *, param=default, ...)` as a method, as a decorator.

    Args:
        name: as configurations call it.
        access: see `Method.access`.
        needs: see `Method.needs`.
        strengths: see `Method.strengths`.
    """

    def enter(function: Callable[..., Edit | Reuse]) -> Method:
        made = Method(name, function, frozenset(needs), access, strengths=strengths)
        METHODS.register(name)(made)
        return made

    return enter


def _stream_means(values: Values, aggregate: str) -> Tensor:
    """Compute `ranking.means` of values that are read step by step."""
    if aggregate == "mean":
        return torch.stack([means(values[step][None]) for step in range(values.shape[0])]).mean(0)
    return means(values[0][None], aggregate)


def get_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        RiebenchError: if there is none; names the nearest match.
    """
    found: Method = METHODS.get(name)
    return found


@lru_cache(maxsize=256)
def _result_type(function: Callable[..., Any]) -> Any:
    """Return the stated type of a function's result, or `Edit`.

    It is kept, since plans ask for it unit by unit.
    """
    return get_type_hints(function).get("return", Edit)


def _check_type(where: str, value: Any, hint: Any) -> None:
    stated = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    words = [str(word) for kind in stated if get_origin(kind) is Literal for word in get_args(kind)]
    kinds = tuple(kind for kind in stated if get_origin(kind) is not Literal)
    if words and (not kinds or isinstance(value, str)):
        if value not in words:
            raise RiebenchError(f"{where}: unknown value {value!r}{near_match(str(value), words)}")
        return
    if not all(kind in PARAMETER_TYPES for kind in kinds):
        raise RiebenchError(f"{where}: the method must give it one of the types int, float, str, bool or Literal[...]")
    # YAML writes 1 for 1.0, and Python takes True for 1; only the former is meant.
    allowed = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        names = ["None" if kind is NoneType else kind.__name__ for kind in kinds]
        names += [f"the word {word!r}" for word in words]
        raise RiebenchError(f"{where}: {value!r} is not of type {' or '.join(names)}")
    if int in kinds and float not in kinds and isinstance(value, int) and value < 0:
        raise RiebenchError(f"{where}: {value} is negative")

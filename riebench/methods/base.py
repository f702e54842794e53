"""What a method is given, what it returns, and how it is registered."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from riebench.errors import RiebenchError, near_match
from riebench.generation.edits import Edit
from riebench.methods.runs import ExampleRuns, Role
from riebench.registry import METHODS
from riebench.saes.sae import SparseAutoencoder

Need = Literal["updates", "saes", "units", "latents", "others"]

BLOCK_NEEDS: frozenset[Need] = frozenset({"updates", "saes", "units"})
"""What is read of blocks; methods that need none of it change no block."""
ANY_STRENGTH = (-math.inf, math.inf)
PARAMETER_TYPES = (int, float, str, bool, NoneType)
"""What parameters of methods may be, beside words of a list."""


@dataclass(frozen=True)
class Reuse:
    """A method's answer when an existing picture is the result: the source or the target picture."""

    picture: Role


@dataclass(frozen=True)
class EditContext:
    """What a method works on.

    Attributes:
        runs: the example's source and target run.
        blocks: the blocks it may change, together.
        saes: block -> SAE, for methods that need them.
    """

    runs: ExampleRuns
    blocks: tuple[str, ...]
    saes: Mapping[str, SparseAutoencoder] = field(default_factory=dict)

    def sae(self, block: str) -> SparseAutoencoder:
        """A block's SAE.

        Raises:
            RiebenchError: if there is none.
        """
        if block not in self.saes:
            raise RiebenchError(f"no SAE for block {block}; give a folder that has one")
        return self.saes[block]

    def seen(self, delete_uses_target: bool) -> EditContext:
        """What a method sees of a deletion: the target run, or, as published before October 2025, the source run twice.

        Seen twice, a run has nothing to tell apart, and what is added and removed is the same.
        """
        if delete_uses_target or self.runs.rule != "delete":
            return self
        runs, row = self.runs, self.runs.rows["source"]
        example = runs.example.model_copy(update={"target": runs.example.source})
        rows: dict[Role, int] = {"source": row, "target": row}
        twice = replace(runs, example=example, rows=rows, _codes={}, _means={}, _meter=None)
        return replace(self, runs=twice)


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: as settings call it.
        function: `edit(ctx, **params)`.
        needs: what has to be captured or loaded before.
        access: what it may look at: letters of P (target prompt), A (target run's activations), M (masks),
            T (training), V (inversion).
        strengths: the least and the largest strength that mean anything.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[Need]
    access: str
    strengths: tuple[float, float] = field(default=ANY_STRENGTH, kw_only=True)

    @property
    def reads_blocks(self) -> bool:
        """Whether it looks into blocks; otherwise it changes none, whatever blocks its setting names."""
        return bool(self.needs & BLOCK_NEEDS)

    @property
    def copies(self) -> bool:
        """Whether its result is always a picture that is generated anyway."""
        return get_type_hints(self.function).get("return") is Reuse

    @property
    def edits(self) -> bool:
        """Whether it gives edits, which can be limited to some steps."""
        hint = get_type_hints(self.function).get("return", Edit)
        return Edit in (hint, *get_args(hint))

    def check_strengths(self, strengths: Sequence[float]) -> None:
        """Refuses strengths that mean nothing.

        Raises:
            RiebenchError: naming the first of them.
        """
        low, high = self.strengths
        for strength in strengths:
            if not low <= strength <= high:
                raise RiebenchError(f"strengths: {strength:g} is not in {low:g} to {high:g}, as {self.name!r} needs")

    def check(self, params: Mapping[str, Any]) -> None:
        """Compares parameters with the function's signature.

        Raises:
            RiebenchError: on an unknown parameter (names the nearest), a missing one, or one of a wrong type.
        """
        signature = inspect.signature(self.function)
        known = [name for name in signature.parameters if name != "ctx"]
        hints = get_type_hints(self.function)
        for name, value in params.items():
            if name not in known:
                raise RiebenchError(f"method {self.name!r} has no parameter {name!r}{near_match(name, known)}")
            _check_type(f"{self.name}: {name}", value, hints.get(name))
        for name in known:
            if name not in params and signature.parameters[name].default is inspect.Parameter.empty:
                raise RiebenchError(f"method {self.name!r} needs the parameter {name!r}")

    @torch.inference_mode()
    def edit(self, ctx: EditContext, params: Mapping[str, Any]) -> Edit | Reuse:
        """Makes the edit of one example.

        Raises:
            RiebenchError: if parameters do not fit, or the method gives something else.
        """
        self.check(params)
        made: Any = self.function(ctx, **params)
        if not isinstance(made, Edit | Reuse):
            raise RiebenchError(f"method {self.name!r} gave {type(made).__name__}; it must give an Edit or a Reuse")
        return made


def method(
    name: str, *, access: str, needs: tuple[Need, ...] = (), strengths: tuple[float, float] = ANY_STRENGTH
) -> Callable[[Callable[..., Edit | Reuse]], Method]:
    """Decorator: registers `edit(ctx, *, param=default, ...)` as a method.

    Args:
        name: as settings call it.
        access: see `Method.access`.
        needs: see `Method.needs`.
        strengths: see `Method.strengths`.
    """

    def enter(function: Callable[..., Edit | Reuse]) -> Method:
        made = Method(name, function, frozenset(needs), access, strengths=strengths)
        METHODS.register(name)(made)
        return made

    return enter


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        RiebenchError: if there is none; names the nearest match.
    """
    found: Method = METHODS.get(name)
    return found


def _check_type(where: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            words = [str(word) for word in get_args(hint)]
            raise RiebenchError(f"{where}: unknown value {value!r}{near_match(str(value), words)}")
        return
    kinds = get_args(hint) or (hint,)
    if not all(kind in PARAMETER_TYPES for kind in kinds):
        raise RiebenchError(f"{where}: the method must give it one of the types int, float, str, bool or Literal[...]")
    # YAML writes 1 for 1.0, and Python takes True for 1; only the former is meant.
    allowed = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        names = ["None" if kind is NoneType else kind.__name__ for kind in kinds]
        raise RiebenchError(f"{where}: {value!r} is not of type {' or '.join(names)}")
    if int in kinds and float not in kinds and isinstance(value, int) and value < 0:
        raise RiebenchError(f"{where}: {value} is negative")

"""What a method sees, what it returns, and how it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from riebench.blocks import block_of
from riebench.edits import Edit, positions_of
from riebench.errors import RiebenchError, near_match
from riebench.regions import RegionMasks, to_grid
from riebench.registry import METHODS
from riebench.saes.core import SparseAutoencoder
from riebench.schema import EditExample
from riebench.trace import Trace

Role = Literal["source", "target"]
Need = Literal["updates", "saes", "units"]


@dataclass(frozen=True)
class Reuse:
    """A method's answer when an existing picture is the result: the source or the target picture."""

    picture: Role


@dataclass
class ExampleRuns:
    """One example's source and target run, shared by all settings.

    Feature values are computed once per block and SAE and kept as long as this object.

    Attributes:
        example: the edit.
        seed: its noise seed.
        trace: holds both runs.
        rows: which row of it is the source run, and which the target run.
        masks: its regions.
        unit_layers: block -> number of its feed-forward layers; empty if units were not captured.
    """

    example: EditExample
    seed: int
    trace: Trace
    rows: Mapping[Role, int]
    masks: RegionMasks
    unit_layers: Mapping[str, int] = field(default_factory=dict)
    _codes: dict[tuple[Role, str, int], Tensor] = field(default_factory=dict, repr=False)

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


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: as settings call it.
        function: `edit(ctx, **params)`.
        needs: what has to be captured or loaded before.
        access: what it may look at: letters of P (target prompt), A (target run's activations), M (masks),
            T (training), V (inversion).
    """

    name: str
    function: Callable[..., Edit | Reuse]
    needs: frozenset[Need]
    access: str

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
            _check_type(f"{self.name}: {name}", value, hints[name])
        for name in known:
            if name not in params and signature.parameters[name].default is inspect.Parameter.empty:
                raise RiebenchError(f"method {self.name!r} needs the parameter {name!r}")

    @torch.inference_mode()
    def edit(self, ctx: EditContext, params: Mapping[str, Any]) -> Edit | Reuse:
        """Makes the edit of one example."""
        self.check(params)
        return self.function(ctx, **params)


def method(name: str, *, access: str, needs: tuple[Need, ...] = ()) -> Callable[[Callable[..., Edit | Reuse]], Method]:
    """Decorator: registers `edit(ctx, *, param=default, ...)` as a method.

    Args:
        name: as settings call it.
        access: see `Method.access`.
        needs: see `Method.needs`.
    """

    def enter(function: Callable[..., Edit | Reuse]) -> Method:
        made = Method(name, function, frozenset(needs), access)
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
    # YAML writes 1 for 1.0, and Python takes True for 1; only the former is meant.
    good = isinstance(value, (int, float) if hint is float else hint) and (hint is bool) == isinstance(value, bool)
    if not good:
        raise RiebenchError(f"{where}: {value!r} is not of type {hint.__name__}")
    if hint is int and value < 0:
        raise RiebenchError(f"{where}: {value} is negative")

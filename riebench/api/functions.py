"""Methods and metrics made of functions, in a notebook's cell or a script.

`method` and `metric` are the decorators. A function's source is part of the identity of what it makes: a run of a
method that has changed is another run, and a metric that has changed is measured again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from riebench.api.source import source_digest
from riebench.errors import RiebenchError, one_line
from riebench.methods.base import ANY_STRENGTH, Method, Need, Reuse
from riebench.registry import METHODS, METRICS
from riebench.scoring.metrics.base import Metric, MetricFormat, MetricFunction, Sample, Value
from riebench.tasks.schema import Setting, parse_interval
from riebench.tasks.settings import make_setting

if TYPE_CHECKING:
    from riebench.generation.edits import Edit
    from riebench.scoring.metrics.networks import Networks

VERSION_DIGITS = 12
"""Hexadecimal digits of a metric's hash that are its version, a whole number below 2**53."""


@dataclass(frozen=True)
class FunctionMethod(Method):
    """A method made of a function of the running process.

    It can be given to `riebench.run` as it is, or as a method configuration with parameters (`setting`).

    Attributes:
        source_sha256: hash of the function and of all that it uses (`riebench.api.source`).
    """

    source_sha256: str = field(default="", kw_only=True)

    def __call__(self, *args: Any, **params: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **params)

    def setting(
        self,
        name: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        blocks: Sequence[str] | None = None,
        block_mode: Literal["together", "each", "both"] = "together",
        strengths: Sequence[float] = (1.0,),
        edit_steps: str | tuple[float, float] | None = None,
        sae: str | None = None,
        description: str = "",
    ) -> Setting:
        """Make a method configuration of this method.

        Args:
            name: of the configuration and of its run folder; None for the method's name and the beginning of its hash,
                so that each version of the function has a folder of its own.
            params: the function's keyword arguments.
            blocks: blocks that may be changed; None for the usual ones, or none if the method reads none.
            block_mode: all blocks in one edit, every block alone, or both.
            strengths: multipliers of the edit.
            edit_steps: part of the run that is edited, "0:0.5" or (0, 0.5) for its first half; None for all of it.
            sae: where the SAEs are; None for the model's own.
            description: one sentence.

        Raises:
            RiebenchError: if something does not fit.
        """
        stated: dict[str, Any] = {
            "name": f"{self.name}-{self.source_sha256[:8]}" if name is None else name, "method": self.name,
            "params": dict(params or {}), "block_mode": block_mode, "strengths": tuple(strengths), "sae": sae,
            "edit_steps": parse_interval(edit_steps) if isinstance(edit_steps, str) else edit_steps,
            "access": self.access, "plugin_sha256": self.source_sha256, "description": description,
        }  # fmt: skip
        if blocks is not None or not self.reads_blocks:
            stated["blocks"] = tuple(blocks or ())
        return make_setting(stated, Path(self.name))


def method(
    name: str | Callable[..., Any] | None = None,
    *,
    access: str,
    needs: Sequence[Need] = (),
    strengths: tuple[float, float] = ANY_STRENGTH,
) -> Callable[[Callable[..., Edit | Reuse]], FunctionMethod]:
    """Make a method of a function `edit(ctx, *, param=default, ...)`, as a decorator.

    A cell may be executed again: the method then takes the place of its earlier version. docs/new-method.md says what
    `ctx` offers.

    Args:
        name: as tables show it; None for the function's name.
        access: letters of what it may look at: P target prompt, A activations of the target run, M masks, T other
            examples, V inversion. Looking at anything else is refused.
        needs: what is made ready: "updates", "saes", "units", "latents", "others".
        strengths: least and largest strength that mean anything.

    Raises:
        RiebenchError: if the name is taken by riebench or a package, or the function's source cannot be found.
    """
    if callable(name):
        raise RiebenchError("write @riebench.method(access=...), with the letters of what the method looks at")

    def make(function: Callable[..., Edit | Reuse]) -> FunctionMethod:
        made = FunctionMethod(
            name or function.__name__, function, frozenset(needs), access, strengths=strengths,
            source_sha256=source_digest(function),
        )  # fmt: skip
        # Name and letters are refused here, beside the function, and not when it is used.
        made.setting()
        METHODS.define(made.name, made)
        return made

    return make


def metric(
    name: str | Callable[..., Any] | None = None,
    *,
    direction: Literal["higher", "lower"] = "higher",
    low: float = -math.inf,
    high: float | None = None,
    backbone: str = "",
    needs_attributes: bool = False,
    needs_target: bool = False,
    format: MetricFormat | None = None,
) -> Callable[[Callable[..., Any]], Metric]:
    """Make a metric of a function, as a decorator.

    The function is `measure(sample)`, from one picture to one number, or `measure(samples, networks)`, from a batch to
    a list of numbers; docs/new-metric.md says what a sample holds. `riebench.score(..., metrics=[it])` measures it. A
    cell may be executed again: the metric then takes the place of its earlier version.

    Args:
        name: as tables show it; None for the function's name.
        direction: the better direction.
        low: smallest possible value.
        high: largest possible value; None if there is none.
        backbone: name of the network it needs; empty for none.
        needs_attributes: only defined for examples whose attributes are known.
        needs_target: compares with the target picture.
        format: how it is printed; None for numbers as they are.

    Raises:
        RiebenchError: if the name is taken by riebench or a package, or the function's source cannot be found.
    """
    if callable(name):
        raise RiebenchError("write @riebench.metric(), with brackets")

    def make(function: Callable[..., Any]) -> Metric:
        version = int(source_digest(function)[:VERSION_DIGITS], 16) + 1
        made = Metric(
            name or function.__name__, direction, low, high, version, backbone, _batch_function(function),
            needs_attributes, needs_target, format,
        )  # fmt: skip
        METRICS.define(made.name, made)
        return made

    return make


def _batch_function(function: Callable[..., Any]) -> MetricFunction:
    """Return a function of a batch and networks, whichever form the user's has."""
    count = len(inspect.signature(function).parameters)
    if count not in (1, 2):
        raise RiebenchError(
            f"{function.__name__} has {count} parameters; a metric has one, sample, or two: samples and networks"
        )
    if count == 2:
        return function

    def measure(samples: Sequence[Sample], networks: Networks) -> list[Value]:
        return [function(sample) for sample in samples]

    return measure


def metric_names(metrics: str | Metric | Sequence[str | Metric] | None) -> tuple[str, ...] | None:
    """Return the names of metrics that are given by name or as objects.

    Raises:
        RiebenchError: for an object that is no metric, or one whose function was defined anew since.
    """
    if metrics is None:
        return None
    names = []
    for one in [metrics] if isinstance(metrics, str | Metric) else metrics:
        if isinstance(one, Metric):
            if METRICS.get(one.name) is not one:
                raise RiebenchError(f"the metric {one.name!r} was defined anew since; give the present one")
        elif not isinstance(one, str):
            raise RiebenchError(f"{one_line(repr(one))} is no metric; put @riebench.metric() above the function")
        names.append(one.name if isinstance(one, Metric) else one)
    return tuple(names)

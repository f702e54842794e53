"""Training through the denoiser, towards another run of the same noise.

`record_calls` records the denoiser's calls of two runs, each with one prompt of a training example. A training call
(`TrainingCall`) is then a call with the latents of the run that shows a concept and the prompt of the other run; its
goal is what the denoiser gave for the first run's own prompt. `train` changes parameters until the denoiser comes near
the goal. The calls are the pipeline's own, row by row, so that nothing here depends on a model family; under guidance
they are those of the conditional half.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator, NoDecodeGenerator
from riebench.generation.hooks import hooked
from riebench.methods.base import ROLES, Role
from riebench.methods.supervised.concepts import TrainingPair, other_role
from riebench.models.placement import attention_kernel

BATCH = 4
"""Training calls in each step of the optimiser, or all of a time step that has fewer."""


@dataclass(frozen=True)
class Row:
    """One row of a batch: a tensor [1, ...] or a list of one value."""

    value: Any


@dataclass(frozen=True)
class TrainingCall:
    """A call of the denoiser with the prompt of one run and the latents of another.

    Attributes:
        index: which training example.
        step: denoising step, from 0.
        args: positional arguments, with the rows of a batch as `Row`.
        kwargs: keyword arguments, likewise.
        goal: what the denoiser gave for the prompt of the run whose latents are read, [1, ...].
    """

    index: int
    step: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    goal: Tensor


@dataclass(frozen=True)
class Progress:
    """The course of a training.

    Attributes:
        before: mean loss without the trained parameters; 1 by its definition.
        after: mean loss over all training calls at the end.
        evaluations: evaluations of the denoiser, a batch of n counted n times.
    """

    before: float
    after: float
    evaluations: int


def seed_of(*key: object) -> int:
    """Return the seed of a training that some values name."""
    text = "riebench-training-v1:" + ":".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def check_trainable(name: str, generator: Generator) -> None:
    """Refuse a model that no gradient can go through.

    Raises:
        RiebenchError: naming the method and the remedy.
    """
    if generator.model.options.offload != "none":
        raise RiebenchError(f"{name} trains through the whole denoiser on the device; use --offload none")


def record_calls(
    generator: Generator, pairs: Sequence[TrainingPair], places: Sequence[tuple[int, Role]]
) -> list[TrainingCall]:
    """Record the training calls of some runs, all steps of each.

    Args:
        generator: the loaded model.
        pairs: the training examples.
        places: runs that are the goal; each reads the prompt of the same example's other run.
    """
    model, found = generator.model, list[TrainingCall]()
    maker = NoDecodeGenerator(model)
    for index, role in places:
        pair = pairs[index]
        with hooked(model.denoiser, (), model.spec.steps, guided=model.guided) as hooks:

            def keep(args: Any, kwargs: Any, output: Any, index: int = index, role: Role = role) -> None:
                offset = hooks.layout.offset("conditional", len(ROLES), hooks.call)
                if offset is not None:
                    halves = len(hooks.layout.halves(hooks.call))
                    found.append(_training_call(model.denoiser, (args, kwargs, output), index, role, offset, halves,
                                                hooks.step))  # fmt: skip

            hooks.after(model.denoiser, keep)
            maker.generate([pair.example.source, pair.example.target], [pair.noise] * 2)
    # Recorded in inference mode: only copies made outside it can be read by a gradient.
    with torch.inference_mode(False):
        return [
            TrainingCall(one.index, one.step, _copied(one.args), _copied(one.kwargs), one.goal.clone()) for one in found
        ]


def _training_call(
    denoiser: nn.Module, call: tuple[Any, Any, Any], index: int, role: Role, offset: int, halves: int, step: int
) -> TrainingCall:
    args, kwargs, output = call
    total = halves * len(ROLES)
    goal, prompt = (offset + ROLES.index(one) for one in (role, other_role(role)))
    first = next(iter(inspect.signature(denoiser.forward).parameters))
    latents = _picked(args[0] if args else kwargs[first], total, goal)
    others = tuple(_picked(one, total, prompt) for one in args[1:])
    named = {name: _picked(one, total, prompt) for name, one in kwargs.items()}
    if args:
        return TrainingCall(index, step, (latents, *others), named, first_output(output)[goal : goal + 1].clone())
    return TrainingCall(index, step, (), {**named, first: latents}, first_output(output)[goal : goal + 1].clone())


def first_output(output: Any) -> Tensor:
    """Return the prediction in an output of a denoiser."""
    found = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    if not isinstance(found, Tensor):
        raise RiebenchError(f"the denoiser gave {type(found).__name__}, which no gradient can go through")
    return found


def _picked(value: Any, total: int, row: int) -> Any:
    """Return an argument with one row of each batch in it, as `Row`."""
    if isinstance(value, Tensor):
        return Row(value[row : row + 1].clone()) if value.dim() and len(value) == total else value
    if isinstance(value, list) and len(value) == total:
        return Row(value[row : row + 1])
    if isinstance(value, dict):
        return {name: _picked(one, total, row) for name, one in value.items()}
    return value


def _copied(value: Any) -> Any:
    """Return an argument with copies of all tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Row):
        return Row(_copied(value.value))
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def _joined(values: Sequence[Any]) -> Any:
    """Return an argument of several calls as that of one batch."""
    first = values[0]
    if isinstance(first, Row):
        parts = [one.value for one in values]
        return torch.cat(parts) if isinstance(first.value, Tensor) else [one for part in parts for one in part]
    if isinstance(first, dict):
        return {name: _joined([one[name] for one in values]) for name in first}
    return tuple(_joined(some) for some in zip(*values, strict=True)) if isinstance(first, tuple) else first


def predict(denoiser: nn.Module, calls: Sequence[TrainingCall]) -> Tensor:
    """Predict some training calls of one step, float32 [n, ...]."""
    args = _joined([one.args for one in calls])
    return first_output(denoiser(*args, **_joined([dict(one.kwargs) for one in calls]))).float()


@contextmanager
def trainable(generator: Generator) -> Iterator[None]:
    """Let gradients pass through the denoiser without reaching its weights."""
    model = generator.model
    known = [(weight, weight.requires_grad) for weight in model.denoiser.parameters()]
    with torch.inference_mode(False), torch.enable_grad(), attention_kernel(model.options):
        for weight, _ in known:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight, needed in known:
                weight.requires_grad_(needed)


def train(
    denoiser: nn.Module, calls: Sequence[TrainingCall], parameters: Sequence[Tensor], *, steps: int, rate: float,
    seed: int, select: Callable[[Sequence[TrainingCall]], None] = lambda _: None,
    penalty: Callable[[], Tensor | float] = lambda: 0.0, constrain: Callable[[], None] = lambda: None,
) -> Progress:  # fmt: skip
    """Train parameters that change the denoiser's predictions.

    The loss of a call is the squared error to its goal over the mean squared error of the unchanged denoiser's
    predictions at the same step: 1 where nothing is learned, 0 at the goal. Adam takes calls of one time step at a
    time, all time steps in turn, with a rate that falls linearly to 0. Which calls is drawn by the seed.

    Args:
        denoiser: the network, which the parameters change at the time of the call.
        calls: the training calls.
        parameters: what is trained; leaves that need a gradient. At first they must change nothing, or `select([])`
            must switch them off.
        steps: of the optimiser.
        rate: first learning rate.
        seed: of the draws.
        select: is told the calls of the coming batch; none for the unchanged denoiser.
        penalty: is added to the loss, weighted by the share of the steps done.
        constrain: is called after each step of the optimiser.

    Raises:
        RiebenchError: if the loss is not finite.
    """
    by_step: dict[int, list[TrainingCall]] = {}
    for call in calls:
        by_step.setdefault(call.step, []).append(call)
    select([])
    scales = {step: max(_error(denoiser, some), 1e-12) for step, some in by_step.items()}
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    order, evaluations = sorted(by_step), len(calls)
    for number in range(steps):
        some = by_step[order[number % len(order)]]
        batch = [some[place] for place in torch.randperm(len(some), generator=draws)[:BATCH].tolist()]
        select(batch)
        goal = torch.cat([one.goal for one in batch]).float()
        loss = (predict(denoiser, batch) - goal).square().mean() / scales[batch[0].step]
        loss = loss + number / steps * penalty()
        if not bool(torch.isfinite(loss)):
            raise RiebenchError("the training overflowed; use --dtype bfloat16 or float32")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        constrain()
        evaluations += len(batch)
    after = 0.0
    for step, some in by_step.items():
        after += _error(denoiser, some, select) / scales[step] * len(some) / len(calls)
    return Progress(1.0, after, evaluations + len(calls))


@torch.no_grad()
def _error(
    denoiser: nn.Module, calls: Sequence[TrainingCall], select: Callable[[Sequence[TrainingCall]], None] | None = None
) -> float:
    """Compute the mean squared error to the goals of some calls of one step."""
    total = 0.0
    for start in range(0, len(calls), BATCH):
        batch = calls[start : start + BATCH]
        if select is not None:
            select(batch)
        goal = torch.cat([one.goal for one in batch]).float()
        total += float((predict(denoiser, batch) - goal).square().mean()) * len(batch)
    return total / len(calls)

"""Keeping what edited runs share of source runs, and putting it in place of the modules that would compute it again.

What is shared, and how far, says `riebench.generation.prefix`. The pipeline, its schedule and its noise run as they would without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from riebench.blocks import ATTENTION, UNITS, block_of, kind, module_path
from riebench.generation.edits import Edit
from riebench.generation.hooks import first_output, hooked

Run = tuple[str, int]
"""Prompt and noise seed."""
Key = tuple[int, str, str]
"""Step, path of a stage, and what of it: "skip" (an output that an upward block reads), "input" or "update"."""


@dataclass(frozen=True)
class Cut:
    """Where an edited run first differs from its source run.

    Attributes:
        step: the first step with a change, from 0; the number of steps if there is none.
        block: the first changed block in it; None if the whole step differs.
        inside: whether the block's own update is still the source run's, and only what is added to it differs.
    """

    step: int
    block: str | None = None
    inside: bool = False


@dataclass(frozen=True)
class PrefixPlan:
    """What to keep of source runs, which are the first rows of their batch.

    Attributes:
        rows: how many rows.
        blocks: at which of them edits may begin.
        steps: at which of them edits may begin.
    """

    rows: int
    blocks: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()


@dataclass
class Prefix:
    """Source runs as far as edited runs may share them.

    Attributes:
        plan: what is kept.
        rows: run -> its row.
        order: paths of the stages in the order in which they ran.
        grids: path -> (height, width) of its output.
        outputs: step by step what the U-Net gave, [guidance halves, rows, c, h, w].
        values: what was kept inside it, [guidance halves, rows, ...].
    """

    plan: PrefixPlan
    rows: Mapping[Run, int]
    order: list[str] = field(default_factory=list)
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    values: dict[Key, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return sum(kept.numel() * kept.element_size() for kept in (*self.outputs, *self.values.values()))

    def cut(self, edit: Edit | None) -> Cut:
        """Where a run with an edit leaves its source run, as far as that was kept."""
        found = min(changes(edit, len(self.outputs)), key=self.rank)
        kept = found.block in self.plan.blocks and found.step in self.plan.steps
        return found if kept or found.block is None else Cut(found.step)

    def rank(self, cut: Cut) -> tuple[int, int]:
        """Cuts in the order in which a run reaches them."""
        if cut.block is None:
            return cut.step, -1
        path = module_path(cut.block)
        return cut.step, 2 * self.order.index(path) + cut.inside if path in self.order else -1

    def missed(self, cut: Cut, site: str) -> int:
        """In how many U-Net calls, the first ones, a site does not run in runs that are shared up to a cut."""
        # Blocks before the cut are called and stand still: it is what lies inside them that does not run.
        still = kind(site) == UNITS and self.rank(Cut(cut.step, block_of(site))) < self.rank(cut)
        return cut.step + still


def changes(edit: Edit | None, steps: int) -> list[Cut]:
    """All places at which a run with an edit may first differ from its source run; not in order.

    Args:
        edit: the edit.
        steps: of the run.
    """
    end = Cut(steps)
    if edit is None or edit.empty:
        return [end]
    if edit.pair is not None:
        # The runs that are read beside share nothing.
        return [Cut(0)]
    acting = [step for step in range(steps) if edit.acts_at(step)]
    if not acting:
        return [end]
    found = [Cut(acting[0], block_of(site), kind(site) == ATTENTION) for site in edit.sites]
    if edit.text is not None:
        read = [step for step in acting if edit.text.weight(step, steps, edit.strength)]
        found += [Cut(step) for step in read[:1]]
    if edit.latents is not None:
        # Changed after the step, whose evaluation is still the source run's.
        found.append(Cut(acting[0] + 1))
    return [*found, end]


def shared_cut(prefixes: Sequence[Prefix], runs: Sequence[Run], edits: Sequence[Edit | None]) -> Cut | None:
    """The cut of a batch: where the first of its rows leaves its source run.

    Args:
        prefixes: source runs.
        runs: one per row.
        edits: one per row.

    Returns:
        None if nothing can be shared.
    """
    owners = [owner_of(prefixes, run) for run in runs]
    if not owners or any(owner is None for owner in owners):
        return None
    pairs = [(owner, owner.cut(edit)) for owner, edit in zip(owners, edits, strict=True) if owner is not None]
    prefix, found = min(pairs, key=lambda pair: pair[0].rank(pair[1]))
    if found.block is not None and any(
        found.block not in owner.plan.blocks or found.step not in owner.plan.steps for owner, _ in pairs
    ):
        found = Cut(found.step)
    return found if prefix.rank(found) > (0, -1) else None


def owner_of(prefixes: Sequence[Prefix], run: Run) -> Prefix | None:
    """The one of some source batches that holds a run, if any does."""
    return next((prefix for prefix in prefixes if run in prefix.rows), None)


STAGE = re.compile(
    r"conv_in|(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+"
)
"""Paths of the modules that a picture passes through one after the other."""


def _stages(unet: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in unet.named_modules() if STAGE.fullmatch(path)}


@contextmanager
def record(unet: nn.Module, runs: Sequence[Run], plan: PrefixPlan, *, guided: bool) -> Iterator[Prefix]:
    """Keeps what edited runs can share of every U-Net call made inside the `with` block.

    Args:
        unet: a `UNet2DConditionModel`.
        runs: of the whole batch.
        plan: what to keep.
        guided: whether the batch holds an unconditional half (before the conditional one).

    Yields:
        The prefix; complete once the block has been left.
    """
    prefix = Prefix(plan, {run: row for row, run in enumerate(runs[: plan.rows])})
    inputs = {module_path(block) for block in plan.blocks}

    def kept(values: Tensor) -> Tensor:
        return values.unflatten(0, (2 if guided else 1, -1))[:, : plan.rows].clone()

    with hooked(unet, (), None) as hooks:

        def watch(path: str, module: nn.Module, is_skip: bool) -> None:
            def before(args: Any, kwargs: Any) -> None:
                if path in inputs and hooks.step in plan.steps:
                    prefix.values[hooks.step, path, "input"] = kept(args[0])

            def after(args: Any, output: Any) -> None:
                values = first_output(output)
                if path not in prefix.grids:
                    prefix.order.append(path)
                    prefix.grids[path] = (values.shape[-2], values.shape[-1])
                if is_skip and hooks.step in plan.steps:
                    prefix.values[hooks.step, path, "skip"] = kept(values)

            def after_projection(args: Any, output: Any) -> None:
                if hooks.step in plan.steps:
                    prefix.values[hooks.step, path, "update"] = kept(output)

            hooks.before(module, before)
            hooks.after(module, after)
            if path in inputs and hasattr(module, "proj_out"):
                hooks.after(module.get_submodule("proj_out"), after_projection)

        stages = _stages(unet)
        for path, module in stages.items():
            watch(path, module, _is_skip(path, stages))
        hooks.after(unet, lambda args, output: prefix.outputs.append(kept(first_output(output))))
        yield prefix


def _is_skip(path: str, stages: Mapping[str, nn.Module]) -> bool:
    """Whether upward blocks read an output: that of downward stages, unless an attention block follows."""
    followed = ".resnets." in path and path.replace("resnets", "attentions") in stages
    return path == "conv_in" or (path.startswith("down_blocks") and not followed)


@contextmanager
def resume(
    unet: nn.Module, prefixes: Sequence[Prefix], runs: Sequence[Run], cut: Cut, *, guided: bool
) -> Iterator[None]:
    """Takes everything before a cut from source runs, in every U-Net call made inside the `with` block.

    Args:
        unet: a `UNet2DConditionModel`, called with `return_dict=False`.
        prefixes: source runs.
        runs: one per row.
        cut: as `shared_cut` found it.
        guided: whether the batch holds an unconditional half (before the conditional one).
    """
    owners = [(owner, owner.rows[run]) for run in runs if (owner := owner_of(prefixes, run)) is not None]
    found = _Resumed(unet, owners, cut, 2 if guided else 1)
    plain = unet.forward
    step = -1

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal step
        step += 1
        if step < cut.step:
            return (found.gather(lambda owner: owner.outputs[step]),)
        if step > cut.step or cut.block is None:
            return plain(*args, **kwargs)
        with found.stages(cut.block):
            return plain(*args, **kwargs)

    with _replaced(unet, forward):
        yield


@dataclass(frozen=True)
class _Resumed:
    """One batch's U-Net calls with all that precedes the cut put in place."""

    unet: nn.Module
    owners: Sequence[tuple[Prefix, int]]
    cut: Cut
    halves: int

    def gather(self, read: Callable[[Prefix], Tensor]) -> Tensor:
        """One tensor of all rows, unconditional halves first."""
        return torch.stack([read(owner)[:, row] for owner, row in self.owners], dim=1).flatten(0, 1)

    def kept(self, path: str, what: str) -> Tensor:
        """A kept value of the cut's step, of all rows."""
        return self.gather(lambda owner: owner.values[self.cut.step, path, what])

    @contextmanager
    def stages(self, block: str) -> Iterator[None]:
        """All stages before the block stand still."""
        prefix = self.owners[0][0]
        modules, path = _stages(self.unet), module_path(block)
        with ExitStack() as stack:
            for earlier in prefix.order[: prefix.order.index(path)]:
                stack.enter_context(_replaced(modules[earlier], self._still(prefix, earlier)))
            module, source = modules[path], self.kept(path, "input")
            handle = module.register_forward_pre_hook(lambda _module, args: (source, *args[1:]), prepend=True)
            stack.callback(handle.remove)
            if self.cut.inside:
                projection, update = module.get_submodule("proj_out"), self.kept(path, "update")
                stack.enter_context(_replaced(projection, lambda *args, **kwargs: update))
                stack.enter_context(_replaced(module, _ending(projection)))
            yield

    def _still(self, prefix: Prefix, path: str) -> Callable[..., Any]:
        if (self.cut.step, path, "skip") in prefix.values:
            found = self.kept(path, "skip")
        else:
            # Nobody reads it; joined to what upward blocks read, it only has to have the right sides.
            output = prefix.outputs[0]
            blank = torch.zeros((), device=output.device, dtype=output.dtype)
            found = blank.expand(self.halves * len(self.owners), 1, *prefix.grids[path])
        return lambda *args, **kwargs: (found,) if ".attentions." in path else found


def _ending(projection: nn.Module) -> Callable[..., tuple[Tensor]]:
    """What an attention block does after its last projection, hooks of the projection included."""

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        update = projection(hidden)
        if update.dim() == 3:
            update = update.transpose(1, 2).unflatten(2, hidden.shape[-2:]).contiguous()
        return (update + hidden,)

    return forward


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Puts another function in place of a module's own; its hooks still run."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before

"""Keeping what edited runs share of source runs, and putting it in place of the modules that would compute it again.

What is shared, and how far, says `riebench.prefix`. The pipeline, its schedule and its noise run as they would without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riebench.blocks import module_path
from riebench.hooks import first_output, hooked
from riebench.prefix import Cut, Prefix, PrefixPlan, Run, owner_of

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

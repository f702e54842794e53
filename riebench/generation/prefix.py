"""Sharing of what edited runs have in common with their source runs.

The beginning of an edited run need not be computed again.

`changes` and `shared_cut` say how far runs are alike; `record` keeps what they share of source runs, and `resume` puts
it in place of the modules that would compute it again. The pipeline, its schedule and its noise run as they would
without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from riebench.blocks import ATTENTION, UNITS, block_of, kind, module_path
from riebench.generation.edits import Edit
from riebench.generation.hooks import find_site, hooked
from riebench.models.families.base import family_of_denoiser
from riebench.models.families.blocks import BatchLayout, Site, Stage, replaced_forward

Run = tuple[str, int]
"""Prompt and noise seed."""
Key = tuple[int, str, str]
"""Step, path of a stage, and what of it: "skip" (an output that an upward block reads), "input" or "update"."""


@dataclass(frozen=True)
class Cut:
    """The place where an edited run first differs from its source run.

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
    """A plan of what to keep of source runs, the first rows of their batch.

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
    """Source runs, as far as edited runs may share them.

    Attributes:
        plan: what is kept.
        rows: run -> its row.
        order: paths of the stages in the order in which they ran.
        grids: path -> (height, width) of its output.
        outputs: call by call what the denoiser gave, [guidance halves, rows, ...].
        calls: of the denoiser in each step.
        values: what was kept inside it, [guidance halves, rows, ...].
    """

    plan: PrefixPlan
    rows: Mapping[Run, int]
    order: list[str] = field(default_factory=list)
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    values: dict[Key, Tensor] = field(default_factory=dict)
    calls: int = 1

    @property
    def steps(self) -> int:
        """Steps that were kept."""
        return len(self.outputs) // self.calls

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return sum(kept.numel() * kept.element_size() for kept in (*self.outputs, *self.values.values()))

    def cut(self, edit: Edit | None) -> Cut:
        """Return where a run with an edit leaves its source run.

        Only as far as the source run was kept.
        """
        found = min(changes(edit, self.steps), key=self.rank)
        kept = found.block in self.plan.blocks and found.step in self.plan.steps
        return found if kept or found.block is None else Cut(found.step)

    def rank(self, cut: Cut) -> tuple[int, int]:
        """Return a sort key: cuts in the order in which a run reaches them."""
        if cut.block is None:
            return cut.step, -1
        path = module_path(cut.block)
        return cut.step, 2 * self.order.index(path) + cut.inside if path in self.order else -1

    def absent_steps(self, cut: Cut, site: str) -> int:
        """Return in how many of the first steps a site does not run.

        `cut` is where the runs stop being shared.
        """
        # Blocks before the cut are called with their outputs replaced: only what lies inside them does not run.
        replaced = kind(site) == UNITS and self.rank(Cut(cut.step, block_of(site))) < self.rank(cut)
        return cut.step + replaced


def changes(edit: Edit | None, steps: int) -> list[Cut]:
    """Return the places where an edited run may first differ from its source run.

    All of them, not in order.

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
    """Return the cut of a batch: where the first of its rows leaves its source run.

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
    """Return the one of some source batches that holds a run, or None."""
    return next((prefix for prefix in prefixes if run in prefix.rows), None)


def _stages(denoiser: nn.Module) -> dict[str, Stage]:
    """Return the stages by path; none if guidance halves are calls of their own."""
    return {stage.path: stage for stage in family_of_denoiser(denoiser).stages(denoiser)}


@contextmanager
def record(denoiser: nn.Module, runs: Sequence[Run], plan: PrefixPlan, *, guided: bool) -> Iterator[Prefix]:
    """Keep what edited runs can share from every call of a denoiser.

    Calls made inside the `with` block count.

    Args:
        denoiser: of a known model family.
        runs: of the whole batch.
        plan: what to keep.
        guided: whether there is an unconditional half.

    Yields:
        The prefix; complete once the block has been left.
    """
    family = family_of_denoiser(denoiser)
    layout = family.layout(guided)
    stages = _stages(denoiser) if layout.calls == 1 else {}
    if not stages:
        # Without stages only whole steps are shared.
        plan = replace(plan, blocks=())
    prefix = Prefix(plan, {run: row for row, run in enumerate(runs[: plan.rows])}, calls=layout.calls)
    inside = {module_path(block): find_site(denoiser, block) for block in plan.blocks}

    with hooked(denoiser, (), None, guided=guided) as hooks:

        def kept(values: Tensor) -> Tensor:
            halves = len(layout.halves(hooks.call))
            return values.unflatten(0, (halves, -1))[:, : plan.rows].clone()

        def watch(stage: Stage, site: Site | None) -> None:
            path = stage.path

            def before(args: Any, kwargs: Any) -> None:
                if site is not None and hooks.step in plan.steps:
                    prefix.values[hooks.step, path, "input"] = kept(site.hidden(args, kwargs))

            def after(args: Any, kwargs: Any, output: Any) -> None:
                values = _first(output)
                if path not in prefix.grids:
                    prefix.order.append(path)
                    prefix.grids[path] = (values.shape[-2], values.shape[-1])
                if stage.is_skip and hooks.step in plan.steps:
                    prefix.values[hooks.step, path, "skip"] = kept(values)

            def after_point(args: Any, kwargs: Any, output: Any) -> None:
                if hooks.step in plan.steps:
                    prefix.values[hooks.step, path, "update"] = kept(_first(output))

            hooks.before(stage.module, before)
            hooks.after(stage.module, after)
            if site is not None and site.point is not site.module:
                hooks.after(site.point, after_point)

        for stage in stages.values():
            watch(stage, inside.get(stage.path))
        hooks.after(denoiser, lambda args, kwargs, output: prefix.outputs.append(kept(_first(output))))
        yield prefix


def _first(output: Any) -> Tensor:
    """Return what a module gives, alone or as the first of several values.

    A list with an entry for each row of the batch is one batch.
    """
    found: Tensor | list[Tensor] = output if isinstance(output, Tensor) else output[0]
    return torch.stack(found) if isinstance(found, list) else found


@contextmanager
def resume(
    denoiser: nn.Module, prefixes: Sequence[Prefix], runs: Sequence[Run], cut: Cut, *, guided: bool
) -> Iterator[None]:
    """Take everything before a cut from source runs in every call of a denoiser.

    Calls made inside the `with` block are changed.

    Args:
        denoiser: of a known model family, called with `return_dict=False`.
        prefixes: source runs.
        runs: one per row.
        cut: as `shared_cut` found it.
        guided: whether there is an unconditional half.
    """
    owners = [(owner, owner.rows[run]) for run in runs if (owner := owner_of(prefixes, run)) is not None]
    layout = family_of_denoiser(denoiser).layout(guided)
    found = _PrefixReplay(denoiser, owners, cut, layout)
    plain = denoiser.forward
    call = -1

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal call
        call += 1
        step = call // layout.calls
        if step < cut.step:
            return (found.gather(lambda owner: owner.outputs[call]),)
        if step > cut.step or cut.block is None:
            return plain(*args, **kwargs)
        with found.stages(cut.block):
            return plain(*args, **kwargs)

    with replaced_forward(denoiser, forward):
        yield


@dataclass(frozen=True)
class _PrefixReplay:
    """One batch's denoiser calls with all that precedes the cut put in place."""

    denoiser: nn.Module
    owners: Sequence[tuple[Prefix, int]]
    cut: Cut
    layout: BatchLayout

    def gather(self, read: Callable[[Prefix], Tensor]) -> Tensor:
        """Return one tensor of all rows, half by half."""
        return torch.stack([read(owner)[:, row] for owner, row in self.owners], dim=1).flatten(0, 1)

    def kept(self, path: str, what: str) -> Tensor:
        """Return a kept value of the cut's step, of all rows."""
        return self.gather(lambda owner: owner.values[self.cut.step, path, what])

    @contextmanager
    def stages(self, block: str) -> Iterator[None]:
        """Let all stages before the block give constant outputs: kept ones, or zeros."""
        prefix, family = self.owners[0][0], family_of_denoiser(self.denoiser)
        stages, path, site = _stages(self.denoiser), module_path(block), find_site(self.denoiser, block)
        with ExitStack() as stack:
            for earlier in prefix.order[: prefix.order.index(path)]:
                stack.enter_context(
                    replaced_forward(stages[earlier].module, self._constant_forward(prefix, stages[earlier]))
                )
            module, source = site.module, self.kept(path, "input")
            handle = module.register_forward_pre_hook(lambda _module, args: (source, *args[1:]), prepend=True)
            stack.callback(handle.remove)
            if self.cut.inside:
                update = self.kept(path, "update")

                def finish(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
                    # The point is called, so that its hooks see the update and may change it.
                    return family.finish_block(module, hidden, site.point(hidden))

                stack.enter_context(replaced_forward(site.point, lambda *args, **kwargs: update))
                stack.enter_context(replaced_forward(module, finish))
            yield

    def _constant_forward(self, prefix: Prefix, stage: Stage) -> Callable[..., Any]:
        if (self.cut.step, stage.path, "skip") in prefix.values:
            found = self.kept(stage.path, "skip")
        else:
            # No module reads it; joined to what upward blocks read, it only has to have the right sides.
            output = prefix.outputs[0]
            blank = torch.zeros((), device=output.device, dtype=output.dtype)
            halves = len(self.layout.halves(0))
            found = blank.expand(halves * len(self.owners), 1, *prefix.grids[stage.path])
        return lambda *args, **kwargs: (found,) if stage.wraps else found

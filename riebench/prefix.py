"""What an edited run has in common with its source run, computed once and used again.

Until its first change an edited run is the source run: all steps before the edit's interval, and in the first changed
step everything before the first changed block. `riebench.resuming` keeps that part of source runs and puts it in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from riebench.blocks import ATTENTION, UNITS, block_of, kind, module_path
from riebench.edits import Edit

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

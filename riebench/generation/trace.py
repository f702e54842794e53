"""Capture of a denoiser's activations, and changes to what its blocks add.

`capture` and `intervene` are context managers.

`capture` stores inputs, outputs, updates, feed-forward units and text attention, step by step. `intervene` adds edits,
each row of the batch its own. Both refuse a missing block and a wrong number of calls, and both leave no hook behind,
whatever happens inside them. Used together, `intervene` goes outside, so that the capture sees the edited values.

A block's update is what it adds to the image stream. Where it is read, and how a batch is laid out under guidance, says
the model's family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from riebench.blocks import UNITS, block_of, kind, short_name
from riebench.errors import RiebenchError, near_match
from riebench.generation.distribution import DistributionMeter
from riebench.generation.edits import Edit, LiveEdit, LiveSite
from riebench.generation.hooks import Hooks, hooked
from riebench.generation.transfers import PairedEdit, PatchReplacement
from riebench.models.families.base import family_of_denoiser
from riebench.models.families.blocks import Half, Site

Quantity = Literal["input", "output", "update", "attention"]

Store = Callable[[str, str, Tensor], None]
"""Takes a site's name, what was captured and one call's values [B, ...]."""
Sink = Callable[[str, Tensor], None]
"""Takes one step of one site's values instead of a trace: [B, ...] of the conditional half."""


@runtime_checkable
class StepSink(Protocol):
    """A taker of one step of one site's values, with their kind and time."""

    def receive(self, site: str, what: str, values: Tensor, time: Tensor | None) -> None:
        """Take values of the conditional half.

        Args:
            site: short name.
            what: input, output, update or attention.
            values: [B, ...].
            time: the denoiser's time, float32 []; None if its calls state none.
        """


QUANTITIES: tuple[Quantity, ...] = ("input", "output", "update", "attention")
"""All that can be captured of a block."""

FULL_PRECISION = torch.finfo(torch.float32).eps
"""Relative rounding of float32, in which everything is computed that is not half precision."""
SHORT_FORMATS = (torch.float16, torch.bfloat16)
"""Number formats of 16 bits, which a long trace keeps as they are."""


def precision_of(values: Tensor) -> float:
    """Return the relative rounding of values' number format, float32's at least."""
    return max(FULL_PRECISION, torch.finfo(values.dtype).eps)


class Trace:
    """Captured values: one tensor per site and step.

    Args:
        long: keeps 16 bits of each number instead of float32. What is read is float32 either way.

    Attributes:
        steps: denoising steps seen.
        grids: block -> (height, width) of its positions.
        times: the denoiser's time of each step, float32 []; empty if its calls state none.
        precision: relative rounding of the coarsest number format that any value had, in the model or as it is kept.
    """

    def __init__(self, *, long: bool = False) -> None:
        self.long = long
        self.steps = 0
        self.grids: dict[str, tuple[int, int]] = {}
        self.times: list[Tensor] = []
        self.precision = FULL_PRECISION
        self._values: dict[tuple[str, str, str], list[Tensor]] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Short names of everything captured, in the order of capture."""
        return tuple(dict.fromkeys(site for site, _, _ in self._values))

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return sum(step.numel() * step.element_size() for steps in self._values.values() for step in steps)

    def get(self, site: str, what: Quantity = "update", half: Half = "conditional") -> Tensor:
        """Return all steps of one site, for all pictures.

        Args:
            site: short name.
            what: for feed-forward units "update" means their values.
            half: which guidance half; without guidance everything is conditional.

        Returns:
            float32. Blocks: [B, T, C, H, W]. Units: [B, T, H*W, units]. Attention: [B, T, H*W, tokens], mean over
            heads and layers.

        Raises:
            RiebenchError: if it was not captured.
        """
        return torch.stack(self._steps(site, what, half), dim=1).float()

    def row(self, site: str, index: int, what: Quantity = "update") -> Tensor:
        """Return one picture's values, positions first: float32 [T, H*W, width].

        Raises:
            RiebenchError: if it was not captured.
        """
        values = torch.stack([step[index] for step in self._steps(site, what)]).float()
        return values.flatten(2).transpose(1, 2).contiguous() if values.dim() == 4 else values

    def step_row(self, site: str, index: int, step: int, what: Quantity = "update") -> Tensor:
        """Return one picture's values at one step, as they are kept.

        [H*W, width], a view where that is possible.

        Raises:
            RiebenchError: if it was not captured.
        """
        values = self._steps(site, what)[step][index]
        return values.flatten(1).T if values.dim() == 3 else values

    def steps_of(self, site: str, what: Quantity = "update") -> int:
        """Return how many steps of a site are captured."""
        return len(self._steps(site, what))

    def width_of(self, site: str, what: Quantity = "update") -> int:
        """Return the channels of a block's captured values, or the units of a site."""
        values = self._steps(site, what)[0]
        return values.shape[1] if values.dim() == 4 else values.shape[2]

    def _steps(self, site: str, what: Quantity, half: Half = "conditional") -> list[Tensor]:
        key = (short_name(site), what, half)
        if key not in self._values:
            have = sorted({f"{s} {w} ({h})" for s, w, h in self._values})
            raise RiebenchError(f"{site} {what} ({half}) was not captured; captured: {', '.join(have) or 'nothing'}")
        return self._values[key]

    def add(self, site: str, what: str, halves: Mapping[Half, Tensor], *, unconditional: bool) -> None:
        """Store one step of one site.

        Args:
            site: short name.
            what: input, output, update or attention.
            halves: of the batch [B, ...].
            unconditional: stores that half too.
        """
        for half, part in halves.items():
            if half == "conditional" or unconditional:
                kept = self._kept(part.detach())
                self.precision = max(self.precision, precision_of(part), precision_of(kept))
                self._values.setdefault((site, what, half), []).append(kept)

    def _kept(self, values: Tensor) -> Tensor:
        if not self.long:
            return values.to(torch.float32, copy=True)
        if values.dtype in SHORT_FORMATS:
            return values.clone(memory_format=torch.contiguous_format)
        fits = values.numel() == 0 or bool(values.abs().max() <= torch.finfo(torch.float16).max)
        return values.to(torch.float16 if fits else torch.bfloat16, copy=True)


@contextmanager
def capture(
    denoiser: nn.Module,
    sites: Sequence[str],
    *,
    keep: Sequence[Quantity] = ("update",),
    steps: int | None = None,
    guided: bool = False,
    unconditional: bool = False,
    long: bool = False,
    sink: Sink | StepSink | None = None,
) -> Iterator[Trace]:
    """Capture every call of a denoiser made inside the `with` block.

    Args:
        denoiser: of a known model family.
        sites: blocks or feed-forward sites, by any of their names.
        keep: what of each block; feed-forward sites always give their units.
        steps: the number of steps there must be, if known.
        guided: whether there is an unconditional half.
        unconditional: keeps that half too.
        long: keeps 16 bits of each number, for long runs.
        sink: takes the conditional values as they come; the trace then keeps none.

    Yields:
        The trace; complete once the block has been left.

    Raises:
        RiebenchError: if a site is missing, something unknown is to be kept, or the number of calls is wrong.
    """
    for what in keep:
        if what not in QUANTITIES:
            raise RiebenchError(f"cannot capture {what!r}{near_match(what, QUANTITIES)}")
    trace = Trace(long=long)
    names = [short_name(site) for site in sites]
    with hooked(denoiser, names, steps, guided=guided) as hooks:

        def hand_over(site: str, what: str, values: Tensor) -> None:
            if isinstance(sink, StepSink):
                sink.receive(site, what, values, hooks.time)
            elif sink is not None:
                sink(site, values)

        def store(site: str, what: str, values: Tensor) -> None:
            halves = hooks.layout.split(values, hooks.call)
            if sink is None:
                trace.add(site, what, halves, unconditional=unconditional)
            elif "conditional" in halves:
                hand_over(site, what, halves["conditional"])

        def keep_time(args: Any, kwargs: Any) -> None:
            if hooks.time is not None and hooks.step == len(trace.times):
                trace.times.append(hooks.time)

        hooks.before(denoiser, keep_time)
        for name in names:
            _capture_site(hooks, name, keep, store, trace)
        yield trace
    trace.steps = hooks.step + 1


@contextmanager
def intervene(
    denoiser: nn.Module,
    edits: Sequence[Edit | None],
    *,
    pairs: Mapping[int, tuple[int, int]] | None = None,
    guided: bool = False,
    steps: int | None = None,
    absent_steps: Callable[[str], int] = lambda site: 0,
    meter: DistributionMeter | None = None,
) -> Iterator[None]:
    """Apply one edit per row to every denoiser call inside the `with` block.

    The rows are those of the batch.

    Args:
        denoiser: of a known model family.
        edits: one per picture; None and empty edits leave their row exactly as it is.
        pairs: row of a picture with a `PairedEdit` edit -> the rows of its source and its target run.
        guided: whether there is an unconditional half.
        steps: the number of steps there must be, if known.
        absent_steps: in how many steps, the first ones, a site does not run (see `riebench.generation.prefix`).
        meter: takes the edited updates of the blocks that it looks at, with the effect of all edits so far.

    Raises:
        RiebenchError: if a site is missing, the batch has another size, or the number of calls is wrong.
    """
    active = {index: edit for index, edit in enumerate(edits) if edit is not None and not edit.empty}
    sites = list(dict.fromkeys(site for edit in active.values() for site in edit.sites))
    rows = {site: {i: e for i, e in active.items() if site in e.sites} for site in sites}
    with hooked(denoiser, sites, steps, absent_steps, guided=guided) as hooks:
        for site in sites:
            _edit_site(hooks, site, rows[site], pairs or {}, len(edits))
        if meter is not None:
            # After all edits: hooks of one module run in the order in which they were made.
            _watch_updates(hooks, active, meter, len(edits))
        yield


def _watch_updates(hooks: Hooks, edits: Mapping[int, Edit], meter: DistributionMeter, batch: int) -> None:
    """Hand the edited updates of the conditional half to a meter.

    It gets them at the steps that an edit may change.
    """
    blocks: dict[str, list[int]] = {}
    for row, edit in edits.items():
        edited = {block_of(site) for site in edit.sites}
        for block in meter.blocks(row):
            if block in edited:
                blocks.setdefault(block, []).append(row)

    def watch(name: str, rows: Sequence[int]) -> None:
        site = hooks.find(name)

        def look(args: Any, kwargs: Any, output: Any) -> None:
            offset = hooks.layout.offset("conditional", batch, hooks.call)
            acting = [row for row in rows if edits[row].acts_at(hooks.step)]
            if offset is None or not acting:
                return
            update = site.update(args, kwargs, output)[offset : offset + batch]
            flat = update.flatten(2).transpose(1, 2) if update.dim() == 4 else update
            meter.observe(name, hooks.step, acting, flat if len(acting) == batch else flat[acting])

        hooks.at(site, look)

    for name, rows in blocks.items():
        watch(name, rows)


def _capture_site(hooks: Hooks, name: str, keep: Sequence[Quantity], store: Store, trace: Trace) -> None:
    site = hooks.find(name)
    if kind(name) == UNITS:
        hooks.at(site, lambda args, kwargs, output: store(name, "update", site.update(args, kwargs, output)))
        return

    def before(args: Any, kwargs: Any) -> None:
        hidden = site.hidden(args, kwargs)
        trace.grids[name] = site.grid(hidden)
        if "input" in keep:
            store(name, "input", site.as_picture(hidden, trace.grids[name]))

    def output(args: Any, kwargs: Any, output: Any) -> None:
        store(name, "output", site.as_picture(site.stream(output), trace.grids[name]))

    def update(args: Any, kwargs: Any, output: Any) -> None:
        store(name, "update", site.as_picture(site.update(args, kwargs, output), trace.grids[name]))

    hooks.before(site.module, before)
    if "output" in keep:
        hooks.after(site.module, output)
    if "update" in keep:
        hooks.after(site.point, update)
    if "attention" in keep:
        _capture_attention(hooks, name, site, store)


def _capture_attention(hooks: Hooks, name: str, site: Site, store: Store) -> None:
    family = family_of_denoiser(hooks.denoiser)
    layers = family.text_attention(site.module)
    if not layers:
        raise RiebenchError(f"{name} has no text attention")
    pending: list[Tensor] = []

    def before(attention: nn.Module) -> Callable[[Any, Any], None]:
        def compute(args: Any, kwargs: Any) -> None:
            # Computed beside the layer, which runs as it would without: pictures do not depend on whether it is read.
            pending.append(family.attention_map(attention, args, {**kwargs, **site.context}))
            if len(pending) == len(layers):
                store(name, "attention", torch.stack(pending).mean(0))
                pending.clear()

        return compute

    for attention in layers:
        hooks.before(attention, before(attention))


def _edit_site(
    hooks: Hooks, name: str, edits: Mapping[int, Edit], pairs: Mapping[int, tuple[int, int]], batch: int
) -> None:
    site = hooks.find(name)
    # Where the halves are calls of their own: what was added to the conditional one in this step.
    added: dict[int, Tensor | None] | None = {} if hooks.layout.calls > 1 else None
    reader = _LiveReader(hooks, site)
    if any(isinstance(edit.sites[name], LiveEdit) for edit in edits.values()):
        hooks.before(site.module, reader.enter)

    def change(args: Any, kwargs: Any, output: Any) -> Any:
        values = site.stream(output)
        halves = hooks.layout.halves(hooks.call)
        if values.shape[0] != batch * len(halves):
            raise RiebenchError(f"{batch} edits for a batch of {values.shape[0] // len(halves)} pictures")
        acting = {index: edit for index, edit in edits.items() if edit.acts_at(hooks.step)}
        if not acting:
            reader.clear()
            # Outside all intervals the call keeps its own output unchanged; in what is replaced before a cut
            # (see `riebench.generation.prefix`) there would be no input to take off.
            return None
        offsets = {half: hooks.layout.offset(half, batch, hooks.call) for half in halves}
        reader.leave(site.update(args, kwargs, output), values)
        rows = _Rows(name, reader, hooks.step, offsets, pairs, added)
        changed = values.clone()
        for index, edit in acting.items():
            _edit_row(changed, rows, index, edit)
        reader.clear()
        return site.with_stream(output, changed)

    hooks.at(site, change)


class _LiveReader:
    """The input, update and output of one site in the running call.

    Where the site's `point` lies inside the block, the block's output does not exist yet when the update is changed: it
    is what the block would make of its input and the unchanged update. All are of the whole batch.

    Args:
        hooks: of the running generation.
        site: the site.
    """

    def __init__(self, hooks: Hooks, site: Site) -> None:
        self._hooks = hooks
        self._site = site
        self._values: dict[str, Tensor] = {}

    def enter(self, args: Any, kwargs: Any) -> None:
        """Take the block's input; called before the block."""
        self._values = {"input": self._site.hidden(args, kwargs)}

    def leave(self, update: Tensor, stream: Tensor) -> None:
        """Take the update and what `point` gives; called after `point`."""
        self._values["update"] = update
        if self._site.point is self._site.module:
            self._values["output"] = stream

    def clear(self) -> None:
        """Let go of the running call's values, which are large."""
        self._values = {}

    @property
    def time(self) -> Tensor | None:
        """The denoiser's time of the running call."""
        return self._hooks.time

    def values(self, what: str) -> Tensor:
        """Return the input, update or output of the whole batch, before it is edited.

        The update is in the layout of `point`, the others may be pictures [B, C, H, W].
        """
        if what == "output" and what not in self._values:
            family, block = family_of_denoiser(self._hooks.denoiser), self._site.module
            made = family.finish_block(block, self._values["input"], self._values["update"])
            self._values["output"] = self._site.stream(made)
        return self._values[what]

    def row(self, what: str, index: int) -> Tensor:
        """Return one row of it, float32 [positions, width]."""
        values = self.values(what)[index]
        return (values.flatten(1).T if values.dim() == 3 else values).float()


@dataclass(frozen=True)
class _Rows:
    """One site's values in one call, shared by the edits of all pictures.

    Attributes:
        name: of the site.
        live: what the site gives in this call.
        step: the running step.
        offsets: half -> rows that precede it in this call's batch; halves of other calls are missing.
        pairs: see `intervene`.
        added: picture -> what was added to its conditional row in this step, where that is a call of its own.
    """

    name: str
    live: _LiveReader
    step: int
    offsets: Mapping[Half, int | None]
    pairs: Mapping[int, tuple[int, int]]
    added: dict[int, Tensor | None] | None

    def delta(self, edit: Edit, index: int, offset: int) -> Tensor | None:
        """Return a picture's scaled change, in the layout of its row.

        `offset` rows precede its half.
        """
        site = edit.sites[self.name]
        if isinstance(site, PairedEdit):
            if index not in self.pairs:
                raise RiebenchError("this edit reads the source and target run; generate them in the same batch")
            # What was captured is conditional, and so is what is read beside, whichever half it is added to.
            source, target = (row + (self.offsets.get("conditional") or 0) for row in self.pairs[index])
            found = site.between(self.live.row("update", target), self.live.row("update", source))
        elif isinstance(site, LiveEdit):
            row = index + offset
            found = site.change(LiveSite(self.step, self.live.time, lambda what: self.live.row(what, row)))
        elif isinstance(site, PatchReplacement):
            found = site.replace(self.step, self.live.row("update", index + offset), edit.strength)
        else:
            found = site.delta(self.step, self.live.row("update", index + offset))
        if found is None:
            return None
        # Of replaced positions the strength is the number, no factor.
        factor = 1.0 if isinstance(site, PatchReplacement) else edit.strength
        scaled, update = found * factor, self.live.values("update")
        return scaled.T.reshape(update[0].shape) if update.dim() == 4 else scaled


def _edit_row(changed: Tensor, rows: _Rows, index: int, edit: Edit) -> None:
    """Change one picture's rows of `changed` in place.

    Raises:
        RiebenchError: if something is to be taken off the unconditional half, which is a call of its own before the
            conditional one.
    """

    def add(row: int, what: Tensor | None, sign: float) -> None:
        if what is not None and changed.dtype == torch.float32:
            # The same numbers without three copies.
            changed[row].add_(what, alpha=sign)
        elif what is not None:
            changed[row] = (changed[row].float() + sign * what).to(changed.dtype)

    conditional, unconditional = rows.offsets.get("conditional"), rows.offsets.get("unconditional")
    delta = None
    if conditional is not None:
        delta = rows.delta(edit, index, conditional)
        add(index + conditional, delta, 1.0)
        if unconditional is None and rows.added is not None:
            rows.added[index] = delta
    if unconditional is not None and edit.branch == "all":
        known = {} if rows.added is None else rows.added
        if isinstance(edit.sites[rows.name], PairedEdit) and index in known:
            # What is read of other runs is conditional, whichever half it is added to.
            add(index + unconditional, known[index], 1.0)
        else:
            add(index + unconditional, rows.delta(edit, index, unconditional), 1.0)
    elif unconditional is not None and edit.branch == "both":
        if conditional is None:
            if rows.added is None or index not in rows.added:
                raise RiebenchError(
                    "this model calls its denoiser for the unconditional half first, so that what is taken off it is "
                    "not known yet; use the branch conditional or all"
                )
            delta = rows.added.pop(index)
        add(index + unconditional, delta, -1.0)

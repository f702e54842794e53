"""Looking into a diffusers U-Net, and changing what its blocks add: two context managers.

`capture` stores inputs, outputs, updates, feed-forward units and text attention, step by step. `intervene` adds edits,
each row of the batch its own. Both refuse a missing block and a wrong number of calls, and both leave no hook behind,
whatever happens inside them. Used together, `intervene` goes outside, so that the capture sees the edited values.

A block's update is what it adds. For an attention block that is read at its last projection, which is exact in every
number format; output minus input would lose digits in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from riebench.blocks import ATTENTION, RESIDUAL, UNITS, kind, short_name
from riebench.errors import RiebenchError, near_match
from riebench.generation.edits import Edit
from riebench.generation.hooks import Hooks, find_module, first_output, hooked
from riebench.generation.transfers import Paired

What = Literal["input", "output", "update", "attention"]
Half = Literal["conditional", "unconditional"]

SHORT_FORMATS = (torch.float16, torch.bfloat16)


class Trace:
    """What was captured: one tensor per site and step.

    Args:
        long: keeps 16 bits of each number instead of float32. What is read is float32 either way.

    Attributes:
        steps: denoising steps seen.
        grids: block -> (height, width) of its positions.
    """

    def __init__(self, *, long: bool = False) -> None:
        self.long = long
        self.steps = 0
        self.grids: dict[str, tuple[int, int]] = {}
        self._values: dict[tuple[str, str, str], list[Tensor]] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Short names of everything captured, in the order of capture."""
        return tuple(dict.fromkeys(site for site, _, _ in self._values))

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return sum(step.numel() * step.element_size() for steps in self._values.values() for step in steps)

    def get(self, site: str, what: What = "update", half: Half = "conditional") -> Tensor:
        """All steps of one site, for all pictures.

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

    def row(self, site: str, index: int, what: What = "update") -> Tensor:
        """One picture's values, positions first: float32 [T, H*W, width].

        Raises:
            RiebenchError: if it was not captured.
        """
        values = torch.stack([step[index] for step in self._steps(site, what)]).float()
        return values.flatten(2).transpose(1, 2).contiguous() if values.dim() == 4 else values

    def step_row(self, site: str, index: int, step: int, what: What = "update") -> Tensor:
        """One picture's values at one step, as they are kept: [H*W, width], a view where that is possible.

        Raises:
            RiebenchError: if it was not captured.
        """
        values = self._steps(site, what)[step][index]
        return values.flatten(1).T if values.dim() == 3 else values

    def steps_of(self, site: str, what: What = "update") -> int:
        """How many steps of a site are captured."""
        return len(self._steps(site, what))

    def width_of(self, site: str) -> int:
        """Channels of a block's update, or units of a feed-forward site."""
        values = self._steps(site, "update")[0]
        return values.shape[1] if values.dim() == 4 else values.shape[2]

    def _steps(self, site: str, what: What, half: Half = "conditional") -> list[Tensor]:
        key = (short_name(site), what, half)
        if key not in self._values:
            have = sorted({f"{s} {w} ({h})" for s, w, h in self._values})
            raise RiebenchError(f"{site} {what} ({half}) was not captured; captured: {', '.join(have) or 'nothing'}")
        return self._values[key]

    def add(self, site: str, what: str, values: Tensor, *, guided: bool, unconditional: bool) -> None:
        """Stores one step of one site; under guidance the first half of the batch is the unconditional one."""
        halves = values.chunk(2) if guided else (None, values)
        for half, part in zip(("unconditional", "conditional"), halves, strict=True):
            if part is not None and (half == "conditional" or unconditional):
                self._values.setdefault((site, what, half), []).append(self._kept(part.detach()))

    def _kept(self, values: Tensor) -> Tensor:
        if not self.long:
            return values.to(torch.float32, copy=True)
        if values.dtype in SHORT_FORMATS:
            return values.clone(memory_format=torch.contiguous_format)
        fits = values.numel() == 0 or bool(values.abs().max() <= torch.finfo(torch.float16).max)
        return values.to(torch.float16 if fits else torch.bfloat16, copy=True)


__all__ = ["KINDS", "Half", "Sink", "Trace", "What", "capture", "intervene", "text_attention"]

KINDS: tuple[What, ...] = ("input", "output", "update", "attention")
Sink = Callable[[str, Tensor], None]
"""Takes one step of one site's values instead of a trace: [B, ...] of the conditional half."""


@contextmanager
def capture(
    unet: nn.Module,
    sites: Sequence[str],
    *,
    keep: Sequence[What] = ("update",),
    steps: int | None = None,
    guided: bool = False,
    unconditional: bool = False,
    long: bool = False,
    sink: Sink | None = None,
) -> Iterator[Trace]:
    """Captures every U-Net call made inside the `with` block.

    Args:
        unet: a `UNet2DConditionModel`.
        sites: blocks or feed-forward sites, by any of their names.
        keep: what of each block; feed-forward sites always give their units.
        steps: the number of calls there must be, if known.
        guided: whether the batch holds an unconditional half (before the conditional one).
        unconditional: keeps that half too.
        long: keeps 16 bits of each number, for long runs.
        sink: takes the conditional values as they come; the trace then keeps none.

    Yields:
        The trace; complete once the block has been left.

    Raises:
        RiebenchError: if a site is missing, something unknown is to be kept, or the number of calls is wrong.
    """
    for what in keep:
        if what not in KINDS:
            raise RiebenchError(f"cannot capture {what!r}{near_match(what, KINDS)}")
    trace = Trace(long=long)
    names = [short_name(site) for site in sites]
    with hooked(unet, names, steps) as hooks:

        def store(site: str, what: str, values: Tensor) -> None:
            if sink is not None:
                sink(site, values.chunk(2)[1] if guided else values)
            else:
                trace.add(site, what, values, guided=guided, unconditional=unconditional)

        for name in names:
            _capture_site(hooks, name, keep, store, trace)
        yield trace
    trace.steps = hooks.calls


@contextmanager
def intervene(
    unet: nn.Module,
    edits: Sequence[Edit | None],
    *,
    pairs: Mapping[int, tuple[int, int]] | None = None,
    guided: bool = False,
    steps: int | None = None,
    missed: Callable[[str], int] = lambda site: 0,
) -> Iterator[None]:
    """Applies one edit per row of the batch to every U-Net call made inside the `with` block.

    Args:
        unet: a `UNet2DConditionModel`.
        edits: one per picture; None and empty edits leave their row exactly as it is.
        pairs: row of a picture with a `Paired` edit -> the rows of its source and its target run.
        guided: whether the batch holds an unconditional half (before the conditional one).
        steps: the number of calls there must be, if known.
        missed: in how many calls, the first ones, a site does not run (see `riebench.generation.prefix`).

    Raises:
        RiebenchError: if a site is missing, the batch has another size, or the number of calls is wrong.
    """
    active = {index: edit for index, edit in enumerate(edits) if edit is not None and not edit.empty}
    sites = list(dict.fromkeys(site for edit in active.values() for site in edit.sites))
    rows = {site: {i: e for i, e in active.items() if site in e.sites} for site in sites}
    with hooked(unet, sites, steps, missed) as hooks:
        for site in sites:
            _edit_site(hooks, site, rows[site], pairs or {}, len(edits), guided)
        yield


def _capture_site(hooks: Hooks, name: str, keep: Sequence[What], store: Any, trace: Trace) -> None:
    module = find_module(hooks.unet, name)
    if kind(name) == UNITS:
        hooks.after(module, lambda args, output: store(name, "update", first_output(output)))
        return

    def before(args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        trace.grids[name] = (hidden.shape[-2], hidden.shape[-1])
        if "input" in keep:
            store(name, "input", hidden)

    hooks.before(module, before)
    if "output" in keep:
        hooks.after(module, lambda args, output: store(name, "output", first_output(output)))
    if "update" in keep:
        if kind(name) == ATTENTION:
            hooks.after(
                module.get_submodule("proj_out"),
                lambda args, output: store(name, "update", _as_picture(output, trace.grids[name])),
            )
        else:
            hooks.after(module, lambda args, output: store(name, "update", output - _skip(module, args[0])))
    if "attention" in keep:
        _capture_attention(hooks, name, module, store)


def _as_picture(update: Tensor, grid: tuple[int, int]) -> Tensor:
    # The linear projection works on [B, H*W, C]; the convolutional one of older models already gives [B, C, H, W].
    return update if update.dim() == 4 else update.transpose(1, 2).unflatten(2, grid)


def _skip(module: nn.Module, hidden: Tensor) -> Tensor:
    shortcut = getattr(module, "conv_shortcut", None)
    return hidden if shortcut is None else shortcut(hidden)


def _capture_attention(hooks: Hooks, name: str, block: nn.Module, store: Any) -> None:
    layers = [module for path, module in block.named_modules() if path.endswith(".attn2")]
    if not layers:
        raise RiebenchError(f"{name} has no text attention")
    pending: list[Tensor] = []

    def before(attention: nn.Module) -> Any:
        def compute(args: Any, kwargs: Any) -> None:
            text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            hidden = args[0] if args else kwargs["hidden_states"]
            pending.append(text_attention(attention, hidden, text))
            if len(pending) == len(layers):
                store(name, "attention", torch.stack(pending).mean(0))
                pending.clear()

        return compute

    for attention in layers:
        hooks.before(attention, before(attention))


def text_attention(attention: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """How much each position looks at each token, mean over heads.

    Computed beside the layer, which runs as it would without: pictures do not depend on whether somebody looks.

    Args:
        attention: a diffusers `Attention` layer that reads the text.
        hidden: [B, positions, width].
        text: [B, tokens, text width].

    Returns:
        float32 [B, positions, tokens]; sums to 1 over the tokens.
    """
    query = attention.head_to_batch_dim(attention.to_q(hidden))
    key = attention.head_to_batch_dim(attention.to_k(text))
    weights = torch.softmax((query.float() @ key.float().transpose(1, 2)) * attention.scale, dim=-1)
    return weights.unflatten(0, (hidden.shape[0], attention.heads)).mean(1)


def _edit_site(
    hooks: Hooks, name: str, edits: Mapping[int, Edit], pairs: Mapping[int, tuple[int, int]], batch: int, guided: bool
) -> None:
    module = find_module(hooks.unet, name)
    point = module.get_submodule("proj_out") if kind(name) == ATTENTION else module
    offset = batch if guided else 0

    def change(args: Any, output: Any) -> Any:
        values = first_output(output)
        if values.shape[0] != batch + offset:
            raise RiebenchError(f"{batch} edits for a batch of {values.shape[0] // (2 if guided else 1)} pictures")
        acting = {index: edit for index, edit in edits.items() if edit.acts_at(hooks.step)}
        if not acting:
            # Outside all intervals the call goes on with the very tensor it made; in what stands still before a cut
            # (see `riebench.generation.prefix`) there would be no input to take off.
            return None
        live = values - _skip(module, args[0]) if kind(name) == RESIDUAL else values
        changed = values.clone()
        for index, edit in acting.items():
            _edit_row(changed, _Site(name, live, hooks.step, offset, pairs), index, edit)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    hooks.after(point, change)


@dataclass(frozen=True)
class _Site:
    """What all rows of a site share at one step; conditional rows lie `offset` rows behind unconditional ones."""

    name: str
    live: Tensor
    step: int
    offset: int
    pairs: Mapping[int, tuple[int, int]]

    def positions(self, row: int) -> Tensor:
        """One row, float32 [positions, width]."""
        values = self.live[row]
        return (values.flatten(1).T if values.dim() == 3 else values).float()

    def delta(self, edit: Edit, index: int, offset: int) -> Tensor | None:
        """A picture's scaled change, in the layout of its row."""
        site = edit.sites[self.name]
        if isinstance(site, Paired):
            if index not in self.pairs:
                raise RiebenchError("this edit reads the source and target run; generate them in the same batch")
            # What was captured is conditional, and so is what is read beside, whichever half it is added to.
            source, target = (row + self.offset for row in self.pairs[index])
            found = site.between(self.positions(target), self.positions(source))
        else:
            found = site.delta(self.step, self.positions(index + offset))
        if found is None:
            return None
        scaled = found * edit.strength
        return scaled.T.reshape(self.live[0].shape) if self.live.dim() == 4 else scaled


def _edit_row(changed: Tensor, site: _Site, index: int, edit: Edit) -> None:
    """Changes one picture's rows of `changed` in place."""

    def add(row: int, what: Tensor | None, sign: float) -> None:
        if what is not None:
            changed[row] = (changed[row].float() + sign * what).to(changed.dtype)

    conditional = site.delta(edit, index, site.offset)
    add(index + site.offset, conditional, 1.0)
    if site.offset and edit.branch == "both":
        add(index, conditional, -1.0)
    elif site.offset and edit.branch == "all":
        add(index, site.delta(edit, index, 0), 1.0)

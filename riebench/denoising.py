"""What an edit changes beside the blocks: which prompt is read at each step, and the latents between the steps.

Both are done in the step callback that diffusers' pipelines offer, row by row, so that rows with and without such
changes share a batch and none depends on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from riebench.edits import Edit

Picture = Literal["source", "target"]
TextParts = tuple[Tensor, Tensor]
"""A prompt's embeddings of both text encoders joined, [1, tokens, width], and its pooled vector, [1, width]."""

TEXT_NAMES = ("prompt_embeds", "pooled_prompt_embeds")
"""What the pipeline calls them before the first step."""
STEP_NAMES = ("prompt_embeds", "add_text_embeds")
"""What it calls them between the steps, where the unconditional half lies before the conditional one."""
LATENTS = "latents"

_ROUNDING = 1e-9
"""A share that stands for half a step must not fall below it by rounding."""


def whole_steps(share: float, steps: int) -> int:
    """The number of steps nearest to a share of a run; half a step counts as one.

    Args:
        share: 0 to 1; n / steps gives n.
        steps: of the run.
    """
    return math.floor(share * steps + 0.5 + _ROUNDING)


@dataclass(frozen=True)
class TextChange:
    """Reads the target prompt in place of the source prompt, in part.

    Attributes:
        target: the other prompt.
        switch: the strength is the share of steps that read the target prompt alone: the "last" ones or the "first"
            ones; with None every step reads both, and the strength is the target's share of the embeddings.
    """

    target: str
    switch: Literal["last", "first"] | None = None

    def weight(self, step: int, steps: int, strength: float) -> float:
        """The target prompt's share of what is read at a step, counted from 0."""
        if self.switch is None:
            return strength
        reading = whole_steps(strength, steps)
        return float(step < reading if self.switch == "first" else step >= steps - reading)

    def picture(self, acting: Sequence[bool], strength: float) -> Picture | None:
        """Which picture it gives, if that is one of the two prompts' own.

        Args:
            acting: of each step of the run, whether it is changed.
            strength: of the edit.
        """
        weights = {acts * self.weight(step, len(acting), strength) for step, acts in enumerate(acting)}
        return "source" if weights == {0.0} else "target" if weights == {1.0} else None

    @property
    def nbytes(self) -> int:
        """Bytes of tensors kept."""
        return 0


@dataclass(frozen=True)
class LatentChange:
    """Keeps the source run's latents outside a mask, and puts the target run's latents inside it for some steps.

    The strength is the share of steps, the first ones, after which the target run's latents are put inside; after the
    other steps the inside is what the edited run itself made of them.

    Attributes:
        source: [T, c, h, w], the source run's latents after each step.
        target: the same of the target run.
        mask: bool [h, w].
    """

    source: Tensor
    target: Tensor
    mask: Tensor

    def after(self, step: int, live: Tensor, strength: float) -> Tensor:
        """The latents to go on with.

        Args:
            step: the step just done, from 0.
            live: what it gave, [c, h, w].
            strength: of the edit.
        """
        taken = step < whole_steps(strength, self.source.shape[0])
        inside = self.target[step].to(live) if taken else live
        return torch.where(self.mask.to(live.device), inside, self.source[step].to(live))

    def picture(self, acting: Sequence[bool], strength: float) -> Picture | None:
        """See `TextChange.picture`."""
        taken = [acts and step < whole_steps(strength, len(acting)) for step, acts in enumerate(acting)]
        if not any(taken) or not bool(self.mask.any()):
            return "source"
        # Of a mask without an outside, the last step alone decides what is decoded.
        return "target" if taken[-1] and bool(self.mask.all()) else None

    @property
    def nbytes(self) -> int:
        """Bytes of tensors kept; the latents belong to the runs."""
        return self.mask.numel()


def mixed(source: TextParts, target: TextParts, weight: float) -> TextParts:
    """Both prompts' embeddings in the proportion (1 - weight) to weight; 0 and 1 give one of them to the bit."""
    if weight in (0.0, 1.0):
        return target if weight else source
    first, second = (
        ((1 - weight) * one.float() + weight * other.float()).to(one.dtype)
        for one, other in zip(source, target, strict=True)
    )
    return first, second


class Denoising:
    """A pipeline's step callback for one batch.

    Args:
        prompts: one per row.
        edits: one per row, at most; None and empty edits leave their row as it is.
        embed: gives a prompt's embeddings.
        steps: of the run.
        keep: keeps every row's latents after each step.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        edits: Sequence[Edit | None],
        embed: Callable[[str], TextParts],
        steps: int,
        *,
        keep: bool = False,
    ) -> None:
        self._prompts = prompts
        self._embed = embed
        self._steps = steps
        self._kept: list[Tensor] | None = [] if keep else None
        active = {row: edit for row, edit in enumerate(edits) if edit is not None and not edit.empty}
        self._texts = {row: edit for row, edit in active.items() if edit.text is not None}
        self._latents = {row: edit for row, edit in active.items() if edit.latents is not None}

    @property
    def options(self) -> dict[str, Any]:
        """What the pipeline is called with; nothing if there is nothing to do."""
        names = [*(STEP_NAMES if self._texts else ()), *((LATENTS,) if self._latents or self._kept is not None else ())]
        if not names:
            return {}
        return {"callback_on_step_end": self, "callback_on_step_end_tensor_inputs": names}

    @property
    def latents(self) -> Tensor | None:
        """[B, T, c, h, w], if they were to be kept."""
        return torch.stack(self._kept, dim=1) if self._kept else None

    def begin(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A pipeline's options with the embeddings of the first step."""
        if not self._texts:
            return dict(options)
        return {**options, **self._written({name: options[name] for name in TEXT_NAMES}, self._weights(0))}

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Called by the pipeline after each step; gives what the next one starts from."""
        changed: dict[str, Tensor] = {}
        if LATENTS in tensors:
            changed[LATENTS] = self._changed_latents(tensors[LATENTS], step)
            if self._kept is not None:
                self._kept.append(changed[LATENTS].clone())
        following = self._weights(step + 1)
        if step + 1 < self._steps and following != self._weights(step):
            changed |= self._written({name: tensors[name] for name in STEP_NAMES}, following)
        return changed

    def _weights(self, step: int) -> dict[int, float]:
        return {
            row: edit.text.weight(step, self._steps, edit.strength) if edit.acts_at(step) else 0.0
            for row, edit in self._texts.items()
            if edit.text is not None
        }

    def _written(self, given: Mapping[str, Tensor], weights: Mapping[int, float]) -> dict[str, Tensor]:
        """The embeddings with the rows of changed prompts replaced, in the conditional half."""
        written = {name: values.clone() for name, values in given.items()}
        for row, weight in weights.items():
            edit = self._texts[row]
            if edit.text is None:
                continue
            parts = mixed(self._embed(self._prompts[row]), self._embed(edit.text.target), weight)
            for values, part in zip(written.values(), parts, strict=True):
                values[row - len(self._prompts)] = part[0].to(values)
        return written

    def _changed_latents(self, latents: Tensor, step: int) -> Tensor:
        acting = {row: edit for row, edit in self._latents.items() if edit.acts_at(step)}
        if not acting:
            return latents
        changed = latents.clone()
        for row, edit in acting.items():
            if edit.latents is not None:
                changed[row] = edit.latents.after(step, latents[row], edit.strength)
        return changed

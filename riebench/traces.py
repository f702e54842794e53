"""What was captured of a batch of runs, and in which number format it is kept.

Short runs are kept in float32. Long ones are kept in 16 bits: exactly as the block gave them where the model computes
in 16 bits anyway, else rounded to float16 (or bfloat16 where a value does not fit). `riebench.footprint` says which is
which.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from riebench.blocks import short_name
from riebench.errors import RiebenchError

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

"""Hooks on SANA's transformer: its blocks, and their feed-forward units.

Blocks are called with positional arguments and give the image tokens alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from riebench.models.families.blocks import Site
from riebench.models.families.tokens import streams
from riebench.models.families.tokens.cross_attention.sana.names import SANA_NAMES
from riebench.models.families.tokens.streams import TokenUnits


@dataclass(frozen=True)
class GatedUnits(TokenUnits):
    """Feed-forward units of the image tokens after their gate.

    They enter the last convolution as [B, units, H, W].
    """

    takes_input = True

    def stream(self, output: Any) -> Tensor:
        """Return the units of all tokens, [B, tokens, units]."""
        units: Tensor = output
        return units.flatten(2).transpose(1, 2)

    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return the units, in the number format of the model."""
        return self.stream(output)

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return the changed units, laid out in memory as those before were."""
        return changed.transpose(1, 2).unflatten(2, output.shape[-2:]).contiguous()


def site(transformer: nn.Module, name: str) -> Site:
    """Return a site of a transformer by its short name.

    Raises:
        AttributeError: if the transformer has no such module.
    """
    return streams.site(transformer, SANA_NAMES, name, GatedUnits)

"""Measures and work of transformers that read the text by cross-attention."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from riebench.models.families.tokens.cross_attention.text import TOKENS
from riebench.models.families.tokens.sizes import TokenShape

TEXT_WEIGHTS, TOKEN_WEIGHTS = 2, 6
"""Weights that a text token and an image token pass in a block's attention, in squares of the width: keys and values of
the text; four of self-attention, and queries and output of cross-attention."""


@dataclass(frozen=True, kw_only=True)
class CrossAttentionShape(TokenShape):
    """Measures of a transformer whose blocks read the text by cross-attention.

    Attributes:
        layers: blocks.
        caption_channels: of the text encoder's states.
    """

    together: ClassVar[bool] = True

    layers: int
    caption_channels: int
    tokens: int = TOKENS

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""
        return tuple(f"block.{index}" for index in range(self.layers))

    def attended_tokens(self, size: int) -> int:
        """Return the image tokens, and as many for the text as it takes memory.

        Beside the tensors of the image tokens there are the text encoder's states and their projection.
        """
        text = self.tokens * (self.caption_channels / self.channels + 1)
        return self.image_tokens(size) + int(text / self.block_tensors)

    @abstractmethod
    def feed_forward_weights(self) -> float:
        """Return the weights of a feed-forward layer, in squares of the width."""

    @abstractmethod
    def other_work(self, tokens: int) -> float:
        """Return the multiplications of a block that no weights of a square matrix make.

        Args:
            tokens: image tokens.
        """

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of all blocks on one picture.

        The projection of the text counts, too.
        """
        image, width = self.image_tokens(size), self.channels
        weights = (TOKEN_WEIGHTS + self.feed_forward_weights()) * image + TEXT_WEIGHTS * self.tokens
        block = width**2 * weights + 2 * image * self.tokens * width + self.other_work(image)
        projection = self.tokens * width * (self.caption_channels + width)
        return 2 * (self.layers * block + projection) / 1e12

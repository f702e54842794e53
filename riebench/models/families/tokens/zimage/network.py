"""Hooks on Z-Image's transformer: tokens, feed-forward units, text attention.

A layer takes and gives one tensor [B, tokens, C]: the image tokens, row by row, filled up to a multiple of 32, then the
text tokens, filled up likewise, then nothing but padding up to the longest text of the batch. How many there are of
each, only the transformer's own call says: it is called with a list of latents and one of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riebench.blocks import TEXT, UNITS
from riebench.models.families.blocks import Site
from riebench.models.families.tokens.streams import TokenSite, head_vectors, place_of, reading_of_text
from riebench.models.families.tokens.zimage.configuration import PATCH, TOKENS, filled
from riebench.models.families.tokens.zimage.names import TEXT_REFINER, ZImageNames

NAMES = ZImageNames()
FIRST_REFINER = 1000
"""The image refiners number their blocks from here, the layers from 0."""


@dataclass
class Lengths:
    """Tokens of the running call of a transformer.

    Attributes:
        grid: rows and columns of the image tokens.
        texts: text tokens of each row of the batch, not filled up.
    """

    grid: tuple[int, int] = (0, 0)
    texts: tuple[int, ...] = ()

    @property
    def image(self) -> int:
        """Image tokens, not filled up."""
        return self.grid[0] * self.grid[1]

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the numbers from the arguments of a call."""
        named = dict(zip(("x", "t", "cap_feats"), args, strict=False)) | dict(kwargs)
        height, width = named["x"][0].shape[-2:]
        self.grid = height // PATCH, width // PATCH
        self.texts = tuple(len(text) for text in named["cap_feats"])


@dataclass(frozen=True)
class SequenceSite(TokenSite):
    """Tokens of one kind in the sequence of a block.

    Attributes:
        transformer: whose calls say how many tokens there are.
        lengths: of the running call.
    """

    watches: ClassVar[bool] = True
    transformer: nn.Module = field(kw_only=True)
    lengths: Lengths = field(default_factory=Lengths, kw_only=True, compare=False)

    @property
    def watched(self) -> nn.Module:
        """The transformer."""
        return self.transformer

    @property
    def context(self) -> Mapping[str, Any]:
        """The numbers of tokens, for `attention_map`."""
        return {"lengths": self.lengths}

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Count the tokens of a call of the transformer."""
        self.lengths.read(args, kwargs)


@dataclass(frozen=True)
class ImageTokens(SequenceSite):
    """The image tokens of a block: [B, tokens, C], without what fills them up."""

    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the image tokens that enter the block."""
        return self.stream(super().hidden(args, kwargs))

    def stream(self, output: Any) -> Tensor:
        """Return the image tokens, which come first."""
        found: Tensor = output[:, : self.lengths.image]
        return found

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return the sequence with the image tokens exchanged."""
        return torch.cat([changed, output[:, self.lengths.image :]], dim=1)

    def grid(self, hidden: Tensor) -> tuple[int, int]:
        """Return rows and columns of the image tokens."""
        return self.lengths.grid


@dataclass(frozen=True)
class UnitsOfImage(ImageTokens):
    """The feed-forward units of the image tokens, [B, tokens, units].

    They are what enters the layer `point`.
    """

    takes_input: ClassVar[bool] = True

    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return the units, in the number format of the model."""
        return self.stream(output)


@dataclass(frozen=True)
class TextTokens(SequenceSite):
    """The text tokens of a block, with what fills them up: [B, 512, C].

    They are zero where a row's text has no more. So the values do not depend on the other texts of the batch, and all
    prompts have as many.

    Attributes:
        alone: whether the block's sequence holds no image tokens.
    """

    alone: bool = field(default=False, kw_only=True)

    @property
    def _first(self) -> int:
        return 0 if self.alone else filled(self.lengths.image)

    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the text tokens that enter the block."""
        return self.stream(super().hidden(args, kwargs))

    def stream(self, output: Any) -> Tensor:
        """Return the text tokens, which come last."""
        found: Tensor = output.new_zeros(len(output), TOKENS, output.shape[2])
        for row, count in enumerate(map(filled, self.lengths.texts)):
            found[row, :count] = output[row, self._first : self._first + count]
        return found

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return the sequence with the text tokens that there are exchanged."""
        made = output.clone()
        for row, count in enumerate(map(filled, self.lengths.texts)):
            made[row, self._first : self._first + count] = changed[row, :count]
        return made

    def grid(self, hidden: Tensor) -> tuple[int, int]:
        """Return one row of text tokens."""
        return 1, TOKENS


def site(transformer: nn.Module, name: str) -> Site:
    """Return a site of a transformer by its short name.

    Raises:
        AttributeError: if the transformer has no such module.
    """
    kind = NAMES.kind(name)
    path = NAMES.module_path(name if kind == TEXT else NAMES.block_of(name))
    module = transformer.get_submodule(path)
    place = place_of(module, "image")
    if kind == TEXT:
        return TextTokens(module, module, place, "text", transformer=transformer, alone=path.startswith(TEXT_REFINER))
    if kind == UNITS:
        return UnitsOfImage(module, transformer.get_submodule(NAMES.module_path(name)), place, transformer=transformer)
    return ImageTokens(module, module, place, transformer=transformer)


def text_attention(block: Any) -> tuple[nn.Module, ...]:
    """Return the attention of a layer, which sees image and text; a refiner has none."""
    return (block.attention,) if block.modulation and block.layer_id < FIRST_REFINER else ()


def attention_map(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute how much each image token reads each text token.

    Queries of the image and keys of the text are computed as the layer computes them, with their norms and rotary
    positions. What image tokens read of each other, and what fills the text up, is left out: the text tokens alone sum
    to 1.

    Args:
        layer: the attention.
        args: positional arguments of its call.
        kwargs: its keyword arguments, and `lengths` as `SequenceSite.context` has them.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens. Tokens are those of the longest text
        of the batch.
    """
    names = ("hidden_states", "encoder_hidden_states", "attention_mask", "freqs_cis")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    tokens, rotary, lengths = named["hidden_states"], named.get("freqs_cis"), named["lengths"]
    image, first = slice(lengths.image), filled(lengths.image)
    text, width = slice(first, first + max(lengths.texts)), tokens.shape[2] // layer.heads
    turns = (None, None) if rotary is None else (rotary[:, image], rotary[:, text])
    query = head_vectors(layer.to_q(tokens[:, image]), width, layer.norm_q, turns[0])
    key = head_vectors(layer.to_k(tokens[:, text]), width, layer.norm_k, turns[1])
    places, counts = (torch.as_tensor(one, device=key.device) for one in (range(key.shape[1]), lengths.texts))
    return reading_of_text(query, key, places < counts[:, None])

"""Image and text streams of transformer blocks, and sites on token sequences.

Transformers carry a picture as a sequence of tokens, and many carry the text beside it as a second one. `STREAMS` says
where each class of block takes and gives the two, `TokenSite` reads and changes one of them.

`sites` and `site` find them in a network by their short names.

Part of the contract in `riebench.models.families.base`, for families of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from riebench.blocks import TEXT, UNITS
from riebench.errors import RiebenchError
from riebench.models.families.blocks import Site
from riebench.models.families.tokens.names import TokenNames

Stream = Literal["image", "text"]


@dataclass(frozen=True)
class StreamPlace:
    """The place of one stream in the calls of a block.

    Attributes:
        argument: the name of the argument that it enters as.
        position: its position among the arguments, where it is not named.
        index: its index in the output; None where the output is this stream alone.
    """

    argument: str
    position: int
    index: int | None


STREAMS: dict[str, Mapping[Stream, StreamPlace]] = {
    "FluxTransformerBlock": {
        "image": StreamPlace("hidden_states", 0, 1),
        "text": StreamPlace("encoder_hidden_states", 1, 0),
    },
    "FluxSingleTransformerBlock": {
        "image": StreamPlace("hidden_states", 0, 1),
        "text": StreamPlace("encoder_hidden_states", 1, 0),
    },
    "JointTransformerBlock": {
        "image": StreamPlace("hidden_states", 0, 1),
        "text": StreamPlace("encoder_hidden_states", 1, 0),
    },
    "QwenImageTransformerBlock": {
        "image": StreamPlace("hidden_states", 0, 1),
        "text": StreamPlace("encoder_hidden_states", 1, 0),
    },
    # Image and text tokens in one sequence, which the family's own sites divide.
    "ZImageTransformerBlock": {"image": StreamPlace("x", 0, None)},
    "BasicTransformerBlock": {"image": StreamPlace("hidden_states", 0, None)},
    "SanaTransformerBlock": {"image": StreamPlace("hidden_states", 0, None)},
}
"""Class of a block -> the places of its streams; `add_streams` adds those of a package."""


def add_streams(block: str, places: Mapping[Stream, StreamPlace]) -> None:
    """Say where a class of blocks takes and gives its streams.

    Args:
        block: name of the class.
        places: stream -> its place.

    Raises:
        RiebenchError: if something else was said of the class before.
    """
    if STREAMS.setdefault(block, places) != places:
        raise RiebenchError(f"the streams of {block} are known already, at other places")


def place_of(module: nn.Module, stream: Stream) -> StreamPlace:
    """Return the place of a stream in the calls of a block.

    Raises:
        RiebenchError: if `STREAMS` does not say it of the block's class.
    """
    for one in type(module).__mro__:
        if stream in STREAMS.get(one.__name__, {}):
            return STREAMS[one.__name__][stream]
    raise RiebenchError(f"where {type(module).__name__} gives its {stream} stream is not known")


@dataclass(frozen=True)
class TokenSite(Site):
    """One stream of a transformer block, [B, tokens, C].

    The update is the stream that leaves the block less the one that enters it, in float32, so that few digits are lost
    in half precision.

    Attributes:
        place: where the stream enters and leaves.
        stream_name: which of the two it is.
    """

    module: nn.Module
    point: nn.Module
    place: StreamPlace
    stream_name: Stream = "image"

    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the stream that enters the block, named or by its position."""
        place = self.place
        hidden: Tensor = kwargs[place.argument] if place.argument in kwargs else args[place.position]
        return hidden

    def stream(self, output: Any) -> Tensor:
        """Return the stream in an output, alone or as one of several values."""
        found: Tensor = output if self.place.index is None else output[self.place.index]
        return found

    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return the stream that leaves less the one that enters, float32."""
        return self.stream(output).float() - self.hidden(args, kwargs).float()

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return the output with this stream exchanged."""
        index = self.place.index
        if index is None:
            return changed
        return tuple(changed if one == index else value for one, value in enumerate(output))

    def bypass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return the stream that entered in the place of the one that leaves."""
        return self.with_stream(output, self.hidden(args, kwargs))

    def grid(self, hidden: Tensor) -> tuple[int, int]:
        """Return the sides of the square of image tokens; text tokens are one row.

        Raises:
            RiebenchError: if the image tokens are no square.
        """
        count = hidden.shape[1]
        if self.stream_name == "text":
            return 1, count
        side = isqrt(count)
        if side * side != count:
            raise RiebenchError(f"{count} image tokens are no square; only square pictures are made")
        return side, side

    def as_picture(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens, row by row, as [B, C, H, W]."""
        return values.transpose(1, 2).unflatten(2, grid)


@dataclass(frozen=True)
class TokenUnits(TokenSite):
    """Feed-forward units of the image tokens alone: [B, tokens, units]."""

    def stream(self, output: Any) -> Tensor:
        """Return the units."""
        units: Tensor = output
        return units

    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return the units, in the number format of the model."""
        return self.stream(output)

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return the changed units."""
        return changed


@dataclass(frozen=True)
class JoinedUnits(TokenUnits):
    """Feed-forward units of text and image tokens in one sequence, the text first.

    Attributes:
        counts: "image" -> image tokens of the running call, which only the arguments of the block say.
    """

    watches = True
    counts: dict[str, int] = field(default_factory=dict, compare=False)

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Count the image tokens that enter the block."""
        self.counts["image"] = self.hidden(args, kwargs).shape[1]

    def _text_tokens(self, output: Tensor) -> int:
        return output.shape[1] - self.counts["image"]

    def stream(self, output: Any) -> Tensor:
        """Return the units of the image tokens."""
        units: Tensor = output[:, self._text_tokens(output) :]
        return units

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return all units, those of the image tokens changed."""
        text = output[:, : self._text_tokens(output)]
        return torch.cat([text, changed], dim=1)


def sites(transformer: nn.Module, names: TokenNames) -> tuple[str, ...]:
    """Return the short names of all blocks, in the order in which they run."""
    return tuple(
        f"{one.side}.{index}"
        for one in names.lists.values()
        for index in range(len(transformer.get_submodule(one.folder)._modules))
    )


def site(transformer: nn.Module, names: TokenNames, name: str, units: type[TokenUnits] = TokenUnits) -> Site:
    """Return a site of a transformer by its short name.

    Args:
        transformer: the network.
        names: of its blocks.
        name: of the site.
        units: the kind of site that its feed-forward units are.

    Raises:
        AttributeError: if the transformer has no such module.
    """
    module = transformer.get_submodule(names.module_path(names.block_of(name)))
    kind = names.kind(name)
    if kind == TEXT:
        return TokenSite(module, module, place_of(module, "text"), "text")
    if kind == UNITS:
        return units(module, transformer.get_submodule(names.module_path(name)), place_of(module, "image"))
    return TokenSite(module, module, place_of(module, "image"))


def joint_attention(
    layer: Any,
    image: Tensor,
    text: Tensor,
    rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda query, key: (query, key),
) -> Tensor:
    """Compute how much each image token reads each text token in a joint attention.

    Queries of the image and keys of the text are computed as the layer computes them, with their norms. What image
    tokens read of each other is left out: the text tokens alone sum to 1.

    Args:
        layer: with to_q and norm_q for the image, add_k_proj and norm_added_k for the text.
        image: [B, positions, C], as the layer gets it.
        text: [B, tokens, C], likewise.
        rotate: gives queries [B, positions, heads, width] and keys [B, tokens, heads, width] their positions.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
    """
    query, key = (values.unflatten(-1, (layer.heads, -1)) for values in (layer.to_q(image), layer.add_k_proj(text)))
    query = query if layer.norm_q is None else layer.norm_q(query)
    key = key if layer.norm_added_k is None else layer.norm_added_k(key)
    query, key = rotate(query, key)
    return reading_of_text(query.float(), key.float(), None)


def head_vectors(values: Tensor, width: int, norm: Any, rotary: Tensor | None) -> Tensor:
    """Return queries or keys of attention heads, normed and turned by their positions.

    Args:
        values: [B, tokens, heads * width].
        width: channels of a head.
        norm: of a head's vectors; None for none.
        rotary: complex [tokens, width / 2] or [B, tokens, width / 2]; None for none.

    Returns:
        float32 [B, tokens, heads, width].
    """
    heads = values.unflatten(-1, (-1, width))
    heads = (heads if norm is None else norm(heads)).float()
    if rotary is None:
        return heads
    turned = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * rotary.unsqueeze(-2)
    return torch.view_as_real(turned).flatten(3)


def reading_of_text(query: Tensor, key: Tensor, present: Tensor | None) -> Tensor:
    """Compute how much each image token reads each text token.

    Args:
        query: of the image tokens, [B, positions, heads, width].
        key: of the text tokens, [B, tokens, heads, width].
        present: bool [B, tokens], which of them are tokens of the row's text; None for all.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens that are present.
    """
    products = torch.einsum("bphc,bthc->bhpt", query, key) * query.shape[-1] ** -0.5
    if present is not None:
        products = products.masked_fill(~present[:, None, None], -torch.inf)
    return torch.softmax(products, dim=-1).mean(1)

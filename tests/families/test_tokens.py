"""What transformer families share: the places of the streams in their blocks."""

from __future__ import annotations

from diffusers.hooks import _helpers as theirs

from riebench.models.families.tokens.streams import STREAMS, Stream

NOT_LISTED = {"SanaTransformerBlock"}
"""Blocks that diffusers has no places of."""


def test_streams_are_where_diffusers_itself_looks_for_them() -> None:
    theirs._register_transformer_blocks_metadata()
    known = {block.__name__: places for block, places in theirs.TransformerBlockRegistry._registry.items()}
    for name in STREAMS.keys() - NOT_LISTED:
        places: dict[Stream, int | None] = {
            "image": known[name].return_hidden_states_index, "text": known[name].return_encoder_hidden_states_index,
        }  # fmt: skip
        for stream, index in places.items():
            place = STREAMS[name].get(stream)
            assert index == (None if place is None else place.index or 0), (name, stream)

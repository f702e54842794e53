"""The places of a prompt's words among the tokens that a transformer reads.

SANA and PixArt read prompts in lower case and without blanks around them; SANA reads an instruction before the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

TOKENS = 300
"""Tokens of text that the transformer reads, as both pipelines have it."""


def plain_text(prompt: str) -> str:
    """Return a prompt in lower case, without blanks around it."""
    return prompt.lower().strip()


def places_in_plain_text(prompt: str, characters: Sequence[int]) -> list[int]:
    """Return where characters of a prompt are in its plain text.

    Blanks around it have no place there.

    Args:
        prompt: the whole prompt.
        characters: their indices in it.
    """
    # Few letters become two in lower case; those that follow them move.
    starts = [0, *accumulate(len(character.lower()) for character in prompt)]
    lowered = prompt.lower()
    before = len(lowered) - len(lowered.lstrip())
    length = len(plain_text(prompt))
    places = (starts[character] - before for character in characters)
    return [place for place in places if 0 <= place < length]

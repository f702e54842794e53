"""Which token of a target prompt stands for which token of its source prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import torch
from torch import Tensor

from riebench.errors import RiebenchError

Wording = Literal["auto", "replacement", "refinement"]


@dataclass(frozen=True)
class Reading:
    """How a model reads a prompt.

    Attributes:
        words: its words in lower case, as far as they are read.
        counts: tokens of each word.
        length: positions of a whole text, padding included.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    length: int

    @property
    def end(self) -> int:
        """Position of the end token."""
        return 1 + sum(self.counts)

    def positions(self, first: int, last: int) -> list[int]:
        """Positions of the tokens of words `first` to `last`, the last excluded."""
        start = 1 + sum(self.counts[:first])
        return list(range(start, start + sum(self.counts[first:last])))


@dataclass(frozen=True)
class Alignment:
    """Pairs of positions: whose attention goes where.

    Attributes:
        kind: "replacement" pairs every position with itself; "refinement" leaves new words alone.
        pairs: (source position, target position), at most one per target position.
        length: positions of a whole text.
    """

    kind: Literal["replacement", "refinement"]
    pairs: tuple[tuple[int, int], ...]
    length: int

    @property
    def moved(self) -> Tensor:
        """float32 [source positions, target positions]: 1 where attention is taken over."""
        found = torch.zeros(self.length, self.length)
        for source, target in self.pairs:
            found[source, target] = 1
        return found

    @property
    def kept(self) -> Tensor:
        """float32 [target positions]: 1 where a target position keeps its own attention."""
        return 1 - self.moved.sum(0)


def read(tokenizers: Sequence[Any], prompt: str) -> Reading:
    """Reads a prompt with a model's tokenizers.

    Args:
        tokenizers: of all text encoders; the U-Net sees them joined position by position.
        prompt: the whole prompt.

    Raises:
        RiebenchError: if the tokenizers divide it differently: no position would then stand for one word.
    """
    limit = min(int(tokenizer.model_max_length) for tokenizer in tokenizers)
    spans = [
        tokenizer(prompt, truncation=True, max_length=limit, return_offsets_mapping=True)["offset_mapping"]
        for tokenizer in tokenizers
    ]
    if any(list(map(tuple, one)) != list(map(tuple, spans[0])) for one in spans):
        raise RiebenchError(
            f"the model's tokenizers divide {prompt!r} differently, so that its words cannot be aligned; "
            "reword it, without '!'"
        )
    found: list[tuple[str, int]] = []
    for word in re.finditer(r"\S+", prompt):
        count = sum(word.start() <= start < word.end() for start, _ in spans[0][1:-1])
        if count:
            found.append((word.group().lower(), count))
    return Reading(tuple(word for word, _ in found), tuple(count for _, count in found), limit)


def align(source: Reading, target: Reading, wording: Wording = "auto") -> Alignment:
    """Pairs the tokens of two prompts.

    Equal words are paired in order, as are start, end and padding. Differing words that have equal numbers of tokens
    are paired by replacement; if any have not, refinement leaves the target's words with their own attention.

    Args:
        source: the source prompt.
        target: the target prompt.
        wording: "auto" chooses; the other two are what is asked for.

    Raises:
        RiebenchError: if replacement is asked for and the numbers of tokens differ.
    """
    changes = SequenceMatcher(None, source.words, target.words, autojunk=False).get_opcodes()
    parts = [(tag, source.positions(a, b), target.positions(c, d)) for tag, a, b, c, d in changes]
    odd = [(len(left), len(right)) for _, left, right in parts if len(left) != len(right)]
    if not odd and wording != "refinement":
        return Alignment("replacement", tuple((i, i) for i in range(source.length)), source.length)
    if wording == "replacement":
        raise RiebenchError(
            f"replacement needs differing words of equally many tokens, not {odd[0][0]} and {odd[0][1]}; "
            "use refinement, or auto"
        )
    pairs = [(0, 0), *(pair for tag, left, right in parts if tag == "equal" for pair in zip(left, right, strict=True))]
    # End token to end token, then padding in order; what the longer padding has besides keeps its own attention.
    pairs += zip(range(source.end, source.length), range(target.end, target.length), strict=False)
    return Alignment("refinement", tuple(pairs), source.length)

"""Words of a prompt: what is generated from it, where a phrase occurs, which words a region asks for. No torch."""

from __future__ import annotations

import re

WHOLE, BACKGROUND, FILE, NOT, SEEN = "whole", "background", "file:", "not:", "seen:"
"""Forms of a region that are no words of the prompt."""
_NEGATIONS = re.compile(rf"(?:\s*{NOT})+")


def plain_prompt(prompt: str) -> str:
    """A prompt as pictures are generated from it: no square brackets (they mark edited words), no double spaces."""
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def phrase_spans(text: str, phrase: str) -> list[tuple[int, int]]:
    """Character ranges of a phrase in a text: whole words, any case, any white space between the words."""
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    if not words:
        return []
    return [match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)]


def split_negations(region: str) -> tuple[int, str]:
    """How often `not:` stands before a region, and the rest: one of the other forms, or words of the prompt."""
    before = _NEGATIONS.match(region)
    end = 0 if before is None else before.end()
    return region.count(NOT, 0, end), region[end:].strip()


def without_negations(region: str) -> str:
    """A region without the `not:` before it."""
    return split_negations(region)[1]


def mask_file(region: str) -> str | None:
    """The path in a region that is a mask file, or None."""
    inner = without_negations(region)
    return inner.removeprefix(FILE).strip() if inner.startswith(FILE) else None


def region_words(region: str) -> str | None:
    """The words of the prompt that a region looks for (possibly none at all: ""); None for regions of another form."""
    inner = without_negations(region)
    return None if inner in (WHOLE, BACKGROUND) or inner.startswith((FILE, SEEN)) else inner


def seen_words(region: str) -> str | None:
    """The words of a region for what the picture shows though the prompt does not name it; None for other forms."""
    inner = without_negations(region)
    return inner.removeprefix(SEEN).strip() if inner.startswith(SEEN) else None

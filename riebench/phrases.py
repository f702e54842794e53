"""Words of a prompt: where a phrase occurs, and which words a region asks for. Needs no torch."""

from __future__ import annotations

import re

WHOLE, BACKGROUND, FILE, NOT = "whole", "background", "file:", "not:"
"""Forms of a region that are no words of the prompt."""


def phrase_spans(text: str, phrase: str) -> list[tuple[int, int]]:
    """Character ranges of a phrase in a text: whole words, any case, any white space between the words."""
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    if not words:
        return []
    return [match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)]


def innermost(region: str) -> str:
    """A region without the `not:` before it: "whole", "background", "file:PATH", or words of the prompt."""
    region = region.strip()
    return innermost(region.removeprefix(NOT)) if region.startswith(NOT) else region


def mask_file(region: str) -> str | None:
    """The path in a region that is a mask file, or None."""
    inner = innermost(region)
    return inner.removeprefix(FILE).strip() if inner.startswith(FILE) else None


def region_words(region: str) -> str | None:
    """The words of the prompt that a region looks for (possibly none at all: ""); None for regions of another form."""
    inner = innermost(region)
    return None if inner in (WHOLE, BACKGROUND) or inner.startswith(FILE) else inner

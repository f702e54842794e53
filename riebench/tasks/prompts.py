"""Syntax of prompts and regions: brackets, phrases and region forms.

This module needs no torch.
"""

from __future__ import annotations

import re

WHOLE, BACKGROUND, FILE, NOT, SEEN = "whole", "background", "file:", "not:", "seen:"
"""Forms of a region that are no words of the prompt."""
_NEGATIONS = re.compile(rf"(?:\s*{NOT})+")


def plain_prompt(prompt: str) -> str:
    """Return a prompt as pictures are generated from it.

    Square brackets (they mark edited words) and double spaces are removed.
    """
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def phrase_spans(text: str, phrase: str) -> list[tuple[int, int]]:
    """Return the character ranges of a phrase in a text.

    Whole words match, in any case, with any white space between them.
    """
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    if not words:
        return []
    return [match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)]


def split_negations(region: str) -> tuple[int, str]:
    """Return the number of `not:` before a region, and the rest.

    The rest is one of the other forms, or words of the prompt.
    """
    before = _NEGATIONS.match(region)
    end = 0 if before is None else before.end()
    return region.count(NOT, 0, end), region[end:].strip()


def without_negations(region: str) -> str:
    """Return a region without the `not:` before it."""
    return split_negations(region)[1]


def mask_file(region: str) -> str | None:
    """Return the path in a region that is a mask file, or None."""
    inner = without_negations(region)
    return inner.removeprefix(FILE).strip() if inner.startswith(FILE) else None


def region_words(region: str) -> str | None:
    """Return the words of the prompt that a region looks for.

    They may be none at all (""); regions of another form give None.
    """
    inner = without_negations(region)
    return None if inner in (WHOLE, BACKGROUND) or inner.startswith((FILE, SEEN)) else inner


def seen_words(region: str) -> str | None:
    """Return the words of a `seen:` region; None for other forms.

    They name something that the picture shows though the prompt does not name it.
    """
    inner = without_negations(region)
    return inner.removeprefix(SEEN).strip() if inner.startswith(SEEN) else None


FUNCTION_WORDS = frozenset(
    {
        "a", "an", "the", "of", "in", "on", "at", "by", "with", "and", "or", "to", "from", "under", "over", "into",
        "as", "its", "their", "his", "her", "is", "are",
    }
)  # fmt: skip
"""Words that say nothing of what a picture shows; `changed_words` leaves them out."""
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def prompt_words(prompt: str) -> frozenset[str]:
    """Return the words of a prompt that have a meaning of their own, in small letters."""
    words = _WORD.findall(plain_prompt(prompt).lower())
    return frozenset(word for word in words if word not in FUNCTION_WORDS)


def changed_words(source: str, target: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words that one of two prompts has alone, in small letters.

    Words without a meaning of their own (`FUNCTION_WORDS`) are left out.

    Returns:
        Words of the target alone, and words of the source alone.
    """
    before, after = prompt_words(source), prompt_words(target)
    return after - before, before - after

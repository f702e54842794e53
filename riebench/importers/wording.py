"""What others write for regions and categories, in this project's words."""

from __future__ import annotations

import re

from riebench.errors import RiebenchError, near_match
from riebench.phrases import (
    BACKGROUND,
    NOT,
    SEEN,
    WHOLE,
    mask_file,
    peeled,
    phrase_spans,
    plain_prompt,
    region_words,
)
from riebench.schema import ALL_CATEGORIES, LONGEST_PROMPT

EVERYTHING, COMPLEMENT = "#everything", "~"
"""Signs of the published RIEBench file: the whole picture, and everything but the words."""


def published_region(phrase: str, prompt: str) -> str:
    """A region phrase of the published RIEBench file, its signs written out.

    Args:
        phrase: "#everything"; a phrase with "background" in it, for which the scripts take all but the foreground;
            words with "~", for everything but them; or words.
        prompt: the prompt of the picture that the region lies in.

    Raises:
        RiebenchError: for a phrase without words, or one that is too long for one.
    """
    if len(phrase) > LONGEST_PROMPT:
        raise RiebenchError(f"a region has {len(phrase)} characters")
    phrase = " ".join(phrase.split())
    if phrase == EVERYTHING:
        return WHOLE
    if "background" in phrase:
        return BACKGROUND
    if COMPLEMENT in phrase:
        return f"{NOT} {worded(phrase.replace(COMPLEMENT, '').strip(), prompt)}"
    return worded(phrase, prompt)


def worded(words: str, prompt: str) -> str:
    """Words as a region: as they are if the prompt contains them, or else as what is only seen in the picture.

    Raises:
        RiebenchError: if there are no words.
    """
    if not words.strip():
        raise RiebenchError("a region has no words")
    known = region_words(words) is not None and phrase_spans(plain_prompt(prompt), words)
    return words if known else f"{SEEN} {words}"


def stated_region(text: str, prompt: str) -> str:
    """A region from a data set's column: any of our own forms, or words.

    Raises:
        RiebenchError: for a mask file, whose path would mean nothing here.
    """
    if len(text) > LONGEST_PROMPT:
        raise RiebenchError(f"a region has {len(text)} characters")
    text = " ".join(text.split())
    if mask_file(text) is not None:
        raise RiebenchError(f"the region {text!r} names a file; give the column that holds the mask itself")
    if region_words(text) is None:
        return text
    negations, words = peeled(text)
    return f"{NOT} " * negations + worded(words, prompt)


def category_of(value: object) -> str:
    """A category from its name or its number, also as PIE-Bench writes them ("6", "6_change_attribute_color_40").

    Raises:
        RiebenchError: if it is none; names the nearest match.
    """
    text = "_".join(re.split(r"[\s_-]+", str(value).strip().lower()))
    number = re.match(r"(\d)(_|$)", text)
    if number:
        names = [name for name, known in ALL_CATEGORIES.items() if known == int(number[1])]
    else:
        wanted = text.replace("attribute_", "").replace("colour", "color")
        names = [name for name in ALL_CATEGORIES if name == wanted]
    if not names:
        raise RiebenchError(f"unknown category {str(value)!r}{near_match(text, ALL_CATEGORIES)}")
    return names[0]

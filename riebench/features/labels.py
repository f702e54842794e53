"""Labels of features in words, read from a file or found in pictures and prompts.

A value or word is enriched where its share among a feature's strongest pictures is above its share among all pictures.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TypeVar

from riebench.blocks import short_name
from riebench.errors import RiebenchError
from riebench.scoring.metrics.base import UNREADABLE

COLUMNS = ("block", "feature", "label")
"""Header of a labels file."""
WORDS = 3
"""Number of words of a label that is made of prompts, at most."""
ABSENT = "none"
"""Value of an attribute of which nothing is in the picture; it labels no feature."""
FUNCTION_WORDS = frozenset({
    "a", "an", "and", "any", "are", "as", "at", "be", "but", "by", "can", "do", "for", "from", "had", "has", "have",
    "he", "her", "his", "i", "in", "into", "is", "it", "its", "of", "off", "on", "onto", "or", "our", "out", "over",
    "she", "so", "some", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those",
    "to", "under", "up", "upon", "very", "was", "we", "were", "what", "which", "while", "who", "will", "with",
    "without", "you", "your",
})  # fmt: skip
"""English words without a meaning of their own, which label no feature."""

Item = TypeVar("Item", str, tuple[int, str])
Labels = dict[str, dict[int, str]]
"""Block -> index of a feature -> its label."""


def read_labels(path: Path) -> Labels:
    """Read a CSV file with the columns block, feature and label.

    Args:
        path: of the file; blocks by any name that blocks have.

    Raises:
        RiebenchError: if it cannot be read, has other columns or no row, or a row is no label.
    """
    where = f"--labels {path}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = list(csv.reader(lines, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RiebenchError(f"{where}: cannot be read ({error})") from error
    rows = [[cell.strip() for cell in row] for row in rows if row]
    if not rows or tuple(rows[0]) != COLUMNS:
        raise RiebenchError(f"{where}: the first line must be {','.join(COLUMNS)}")
    found: Labels = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS) or not re.fullmatch(r"[0-9]{1,9}", row[1]) or not row[0] or not row[2]:
            raise RiebenchError(f"{where}: row {number} is no label; write a block, the feature's index, and words")
        block, index = short_name(row[0]), int(row[1])
        if index in found.setdefault(block, {}):
            raise RiebenchError(f"{where}: row {number} labels feature {index} of {block} a second time")
        found[block][index] = row[2]
    if not found:
        raise RiebenchError(f"{where}: it holds no label; write one a line below the first")
    return found


def enriched_value(
    strongest: Sequence[Mapping[str, str]], everything: Sequence[Mapping[str, str]]
) -> tuple[str, str] | None:
    """Return the attribute value that is most enriched in a feature's pictures.

    Of equally enriched ones, the first attribute's counts, then the first value in the alphabet. `ABSENT` and
    `UNREADABLE` are left out.

    Args:
        strongest: attribute -> value, for each picture that activates the feature most.
        everything: the same for all pictures.

    Returns:
        Attribute and value; None if none is enriched.
    """
    names = list(everything[0])
    found = _enriched([_values(one, names) for one in strongest], [_values(one, names) for one in everything])
    return (names[found[0][0]], found[0][1]) if found else None


def enriched_words(strongest: Sequence[str], everything: Sequence[str]) -> str | None:
    """Return the words that are most enriched in the prompts of a feature's pictures.

    A word counts once for each prompt, and only where two of the strongest pictures' prompts have it. Of equally
    enriched ones, the first in the alphabet counts. Function words are left out.

    Args:
        strongest: prompts of the pictures that activate the feature most.
        everything: prompts of all pictures.

    Returns:
        Up to `WORDS` words with spaces between, most enriched first; None if none is enriched.
    """
    own = [_words(one) for one in strongest]
    counts = Counter(word for words in own for word in words)
    found = [word for word in _enriched(own, [_words(one) for one in everything]) if counts[word] > 1]
    return " ".join(found[:WORDS]) or None


def _values(attributes: Mapping[str, str], names: Sequence[str]) -> set[tuple[int, str]]:
    """Return the values of a picture, each with the place of its attribute."""
    return {(names.index(name), value) for name, value in attributes.items() if value not in (ABSENT, UNREADABLE)}


def _words(prompt: str) -> set[str]:
    """Return the distinct words of a prompt that mean something, in lower case."""
    return set(re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", prompt.lower())) - FUNCTION_WORDS


def _enriched(strongest: Sequence[Set[Item]], everything: Sequence[Set[Item]]) -> list[Item]:
    """Return the items with a share above the usual one, most enriched first."""
    often = Counter(item for one in strongest for item in one)
    usual = Counter(item for one in everything for item in one)
    # Rounded, so that equal enrichments are equal whatever they were computed from.
    rise = {item: round(often[item] / len(strongest) - usual[item] / len(everything), 9) for item in often}
    return [item for item in sorted(rise, key=lambda item: (-rise[item], item)) if rise[item] > 0]

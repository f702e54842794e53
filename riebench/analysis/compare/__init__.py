"""Comparisons of stored results: two methods, and models with each other.

`methods` gives paired differences of methods and configurations; `models` puts models side by side, and `side_by_side`
writes that as a document, a CSV file and a picture.
"""

from riebench.analysis.compare.methods import (
    CLAIM,
    Contrast,
    Difference,
    check_claims,
    compare,
    comparison_text,
    contrast_part,
    contrast_text,
    contrasts,
    few_levels_note,
)

__all__ = [
    "CLAIM",
    "Contrast",
    "Difference",
    "check_claims",
    "compare",
    "comparison_text",
    "contrast_part",
    "contrast_text",
    "contrasts",
    "few_levels_note",
]

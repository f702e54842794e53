"""Standings of methods: mean gains, ranks and differences on shared examples.

`Entry` is one method with all its edit strengths, and `entries` finds them in run folders. `MethodComparison` takes
all methods of one suite, model and profile and computes a `Standing` for each: what the leaderboard prints of it.
"""

from riebench.analysis.standings.comparison import LOOKS_AT_SCORER, MethodComparison, Standing
from riebench.analysis.standings.entries import (
    BEST_STRENGTH,
    CONTROLLED,
    DISTANCE,
    ENDS,
    GAIN,
    KNOB_ENDS,
    MIN_EXAMPLES,
    MIN_LEVELS,
    REFERENCE,
    SAME_LEVEL,
    SCORE_CONTROLS,
    SECOND,
    SWEPT,
    Entry,
    ReadFolder,
    entries,
    group_entries,
    sae_label,
    with_score_controls,
)

__all__ = [
    "BEST_STRENGTH", "CONTROLLED", "DISTANCE", "ENDS", "GAIN", "KNOB_ENDS", "LOOKS_AT_SCORER", "MIN_EXAMPLES",
    "MIN_LEVELS", "REFERENCE", "SAME_LEVEL", "SCORE_CONTROLS", "SECOND", "SWEPT", "Entry", "MethodComparison",
    "ReadFolder", "Standing", "entries", "group_entries", "sae_label", "with_score_controls",
]  # fmt: skip

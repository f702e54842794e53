"""Configurations of stored runs: one setting at one strength on one block set.

A configuration is what a table row stands for. `origins` decides which results may be compared, `cells` has a
configuration with its numbers, `reading` reads a run folder into configurations, `selection` selects among them.
"""

from riebench.analysis.configurations.cells import (
    EVERYTHING,
    LARGEST_SCORE,
    Configuration,
    TableRow,
)
from riebench.analysis.configurations.origins import (
    Origin,
    Origins,
    majority_model,
    majority_origins,
    model_gap,
    model_identity,
    origin_gap,
)
from riebench.analysis.configurations.reading import (
    EARLIER_ACCESS,
    FAR,
    FAR_BEFORE,
    backbones_shown,
    configurations,
    scored_profiles,
    true_access,
)
from riebench.analysis.configurations.selection import (
    block_places,
    comparison_gaps,
    mixed_in_words,
    present_categories,
    present_metrics,
    whole_configurations,
)

__all__ = [
    "EARLIER_ACCESS",
    "EVERYTHING",
    "FAR",
    "FAR_BEFORE",
    "LARGEST_SCORE",
    "Configuration",
    "Origin",
    "Origins",
    "TableRow",
    "backbones_shown",
    "block_places",
    "comparison_gaps",
    "configurations",
    "majority_model",
    "majority_origins",
    "mixed_in_words",
    "model_gap",
    "model_identity",
    "origin_gap",
    "present_categories",
    "present_metrics",
    "scored_profiles",
    "true_access",
    "whole_configurations",
]

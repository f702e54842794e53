"""Trade-off of alignment and preservation over the edit strength.

`means` has means over examples with their bootstrap replicates; `area` sums a method up in one number, the mean gain
over LPIPS budgets; `response` describes its whole curve.
"""

from riebench.analysis.tradeoff.area import (
    BUDGETS,
    TOLERANCE,
    TradeOff,
    along_curves,
    best_per_example,
    budget_means,
    cross_fit,
    with_no_edit,
)
from riebench.analysis.tradeoff.means import (
    Examples,
    SampleMean,
    category_means,
    folds,
    macro_means,
    paired_differences,
)

__all__ = [
    "BUDGETS",
    "TOLERANCE",
    "Examples",
    "SampleMean",
    "TradeOff",
    "along_curves",
    "best_per_example",
    "budget_means",
    "category_means",
    "cross_fit",
    "folds",
    "macro_means",
    "paired_differences",
    "with_no_edit",
]

"""Score of SAEs by what few of their features do.

`effects` reads stored runs, `measures` turns them into numbers for each example, and `ranking` compares SAEs.
"""

from riebench.analysis.sae_score.effects import FEATURE_COUNTS
from riebench.analysis.sae_score.measures import MEASURES, Measure, measure_runs

__all__ = ["FEATURE_COUNTS", "MEASURES", "Measure", "measure_runs"]

"""What `--regions` may say. Needs no torch."""

from __future__ import annotations

DEFAULT_REGIONS = "attention"
"""Words are looked for in the model's own text attention."""

PAPER_REGIONS = "grounded-sam"
"""Words are looked for as the published scripts do; every option at its default is theirs."""

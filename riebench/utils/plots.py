"""The look of drawings that are put into pages as SVG."""

from __future__ import annotations

SVG = "http://www.w3.org/2000/svg"
INK = "#010203"
"""Stands for the page's own text colour while matplotlib draws; no series has it."""
COLORS = ("#2f7ed8", "#d9541e", "#2a9458", "#a05fd0", "#ac7d0c", "#d64a86", "#1590a0", "#7a7f2a", "#96654d", "#6b7a99")
"""All at least 3:1 against the page in light and in dark."""

"""Report: a page with leaderboard, trade-off, heat maps and all edited pictures.

It lies in a folder of its own and needs no network.
"""

from riebench.report.build import Report, write_report

__all__ = ["Report", "write_report"]

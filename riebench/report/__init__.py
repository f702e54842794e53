"""A page to look at: leaderboard, trade-off, heat maps and every edited picture, in a folder that needs no network."""

from riebench.report.build import Report, write_report

__all__ = ["Report", "write_report"]

"""Leaderboard: a conclusion, tables by inputs used, and all numbers as CSV.

It is made from the results folder alone. `document` puts sections together and writes the files, `methods` has the
section that compares methods, `profiles` those that rank single configurations, `conclusion` the sentences at the top,
`saes` the table of the SAEs that methods use, `rows` what the sections share and the columns of `leaderboard.csv`.
"""

from riebench.analysis.leaderboard.document import (
    Leaderboard,
    check_leaderboard,
    leaderboard_document,
    leaderboard_text,
    make_leaderboard,
    write_leaderboard,
)

__all__ = [
    "Leaderboard",
    "check_leaderboard",
    "leaderboard_document",
    "leaderboard_text",
    "make_leaderboard",
    "write_leaderboard",
]

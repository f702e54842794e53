"""What `riebench run` says when pictures are made and scored: the per-block table, the page, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    present_categories,
    present_metrics,
)
from riebench.errors import RiebenchError
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder
from riebench.tasks.schema import EditTask

if TYPE_CHECKING:
    from rich.table import Table

Say = Callable[[str], None]
WIDEST = 1000
"""Characters of the widest table that is printed where no window sets a limit."""


def say_page(results: Path, out: Path, tasks: tuple[EditTask, ...], leaderboard: Path, say: Say) -> None:
    """Writes the page that shows every picture, and says where it is; pictures and scores are done without it.

    Args:
        results: the results folder.
        out: the page's folder.
        tasks: the suite.
        leaderboard: its leaderboard, already written.
        say: receives the line.
    """
    from riebench.report import write_report

    try:
        page = write_report(results, out, tasks, board=leaderboard.read_text(encoding="utf-8")).page
    except RiebenchError as error:
        say(f"no page: {error}")
    else:
        say(f"page                  {page} (opens in a browser)")


def say_failures(folders: Sequence[RunFolder], say: Say) -> None:
    """Says how many units failed, with the most frequent reason, and how to try them again."""
    reasons = Counter(record.reason for folder in folders for record in folder.records() if record.status == "error")
    if reasons:
        reason, most = reasons.most_common(1)[0]
        say(f"{reasons.total()} units failed, {most} of them with: {reason}; `--redo errors` tries them again")


def print_per_block(folders: Sequence[RunFolder], profile: str = DEFAULT) -> None:
    """Prints the per-block table to standard output: what ranks by category, all other metrics over all.

    Where the terminal is too narrow for all categories, none is shown: a number is never cut.

    Args:
        folders: runs of one suite and model.
        profile: whose metrics.
    """
    from rich.console import Console
    from rich.measure import Measurement

    found = [configuration for folder in folders for configuration in configurations(folder, profile)]
    categories = present_categories(found)
    table = _per_block(found, categories, profile)
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    if not console.is_terminal:
        console = Console(width=needed)
    elif needed > console.width:
        table = _per_block(found, [], profile)
    console.print(table)


def _per_block(found: Sequence[Configuration], categories: Sequence[str], profile: str) -> Table:
    from rich.table import Table

    rank = PROFILES[profile].rank
    others = [metric for metric in present_metrics(found) if metric != rank]
    ranked = metric_format(rank).title.partition(" (")[0]
    table = Table(
        title=f"{ranked} by category; over all categories: the other metrics" if categories
        else f"Over all categories; {ranked} by category: see the tables, or widen the window"
    )  # fmt: skip
    for heading in ("setting", "blocks"):
        table.add_column(heading, no_wrap=True)
    short = [category.removeprefix("change_").removesuffix("_object") for category in categories]
    whole = EVERYTHING if categories else ranked
    for heading in [*short, whole, *(metric.replace("_", " ") for metric in others), "scored"]:
        table.add_column(heading, justify="right")
    for configuration in found:
        rows = [configuration.row(rank, category) for category in (*categories, EVERYTHING)]
        cells = [("–" if row.mean is None else metric_format(rank).number(row.mean)) for row in rows]
        for metric in others:
            mean = configuration.row(metric, EVERYTHING).mean
            cells.append("–" if mean is None else metric_format(metric).number(mean))
        table.add_row(
            configuration.label, configuration.block_set, *cells, f"{rows[-1].n_scored}/{rows[-1].n_expected}"
        )
    return table

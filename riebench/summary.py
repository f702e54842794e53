"""What `riebench run` says when pictures are made and scored: the per-block table, the page, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from riebench.configurations import EVERYTHING, configurations, present_categories, present_metrics
from riebench.errors import RiebenchError
from riebench.profiles import DEFAULT, FORMATS, PROFILES
from riebench.schema import EditTask
from riebench.store import RunFolder

Say = Callable[[str], None]


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

    Args:
        folders: runs of one suite and model.
        profile: whose metrics.
    """
    from rich.console import Console
    from rich.table import Table

    found = [configuration for folder in folders for configuration in configurations(folder, profile)]
    categories = present_categories(found)
    rank = PROFILES[profile].rank
    others = [metric for metric in present_metrics(found) if metric != rank]
    title = FORMATS[rank].title.partition(" (")[0]
    table = Table(title=f"{title} by category; over all categories: the other metrics")
    for heading in ("setting", "blocks"):
        table.add_column(heading, no_wrap=True)
    short = [category.removeprefix("change_").removesuffix("_object") for category in categories]
    for heading in [*short, EVERYTHING, *(metric.replace("_", " ") for metric in others), "scored"]:
        table.add_column(heading, justify="right")
    for configuration in found:
        rows = [configuration.row(rank, category) for category in (*categories, EVERYTHING)]
        cells = [("–" if row.mean is None else FORMATS[rank].number(row.mean)) for row in rows]
        for metric in others:
            mean = configuration.row(metric, EVERYTHING).mean
            cells.append("–" if mean is None else FORMATS[metric].number(mean))
        table.add_row(
            configuration.label, configuration.block_set, *cells, f"{rows[-1].n_scored}/{rows[-1].n_expected}"
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)

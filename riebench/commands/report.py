"""The verb that writes the page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riebench.commands.common import ResultsOption, friendly, places, say


@friendly
def report(
    results: ResultsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. [default: report/ here, or inside --results]")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Folder of task files of your own, for their prompts; repeatable.")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Share picture files with the results folder instead of copying them.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a page with leaderboard, trade-off, blocks and every picture; it opens from disk without network."""
    from riebench.report import write_report
    from riebench.suites import load_suite

    folder, board = places(results)
    tasks = [task for name in suite or () for task in load_suite(name)]
    written = write_report(folder, out or board.parent / "report", tasks, link=link)
    say(written.summary)
    print(written.page)
    if open_page:
        typer.launch(str(written.page.resolve()))

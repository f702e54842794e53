"""The verb that writes the page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riebench.commands.common import friendly, places, say
from riebench.commands.options import DeviceOption, OfflineOption, OpenOption, ResultsOption


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
    features: Annotated[
        int, typer.Option(min=0, help="Also make pages of the N features chosen most often in each block.")
    ] = 0,
    feature_limit: Annotated[int, typer.Option(min=1, help="How many prompts these pages look at.")] = 64,
    device: DeviceOption = "auto",
    scorer: Annotated[
        str | None, typer.Option(help="The CLIP that measures on these pages, or none. [default: the model's]")
    ] = None,
    offline: OfflineOption = False,
    open_page: OpenOption = False,
) -> None:
    """Write a page with leaderboard, trade-off, blocks and every picture; it opens from disk without network."""
    from riebench.report import write_report
    from riebench.report.feature_choice import ReportFeatures
    from riebench.tasks.suites import load_suite
    from riebench.utils.hub import offline_mode

    folder, board = places(results)
    tasks = [task for name in suite or () for task in load_suite(name)]
    maker = ReportFeatures(device, offline, feature_limit, say, scorer)
    with offline_mode(offline):
        written = write_report(
            folder, out or board.parent / "report", tasks, link=link, features=features, make_features=maker
        )
    say(written.summary)
    print(written.page)
    if open_page:
        typer.launch(str(written.page.resolve()))

"""The verb that measures the benchmark itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riebench.commands.common import folders_in, friendly, places, say
from riebench.commands.options import ResultsOption, UpToDateOption


@friendly
def validity(
    results: ResultsOption = None,
    out: Annotated[
        Path, typer.Option(help="Markdown file whose marked parts are filled; figures go to images/ beside it.")
    ] = Path("docs/validity.md"),
    check: UpToDateOption = False,
) -> None:
    """Hold scores against the truth, where it is known: the toy world's judge."""
    from riebench.analysis.validity.document import fill_validity

    paths = fill_validity(folders_in(places(results)[0]), out, check=check)
    if check:
        say(f"{len(paths)} files are up to date")
    else:
        for path in paths:
            print(path)

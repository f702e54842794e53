"""The verb that hands results on: files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riebench.commands.common import folders_in, friendly, places, words
from riebench.commands.options import ResultsOption
from riebench.errors import RiebenchError


@friendly
def export(
    results: ResultsOption = None,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("exports"),
    formats: Annotated[
        str | None,
        typer.Option("--format", help="Some of csv, latex, parquet, figures, dataset. [default: all but dataset]"),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="With dataset: task files of your own, for the prompts; repeatable.")
    ] = None,
    push_to: Annotated[
        str | None, typer.Option("--push-to", help="Also upload the dataset to OWNER/NAME on the hub (private if new).")
    ] = None,
) -> None:
    """Write units, configurations, methods, tables and figures for other programs."""
    from riebench.analysis.export import DATASET, check_formats
    from riebench.analysis.export import export as write

    chosen = check_formats(words(formats))
    if push_to is not None and DATASET not in chosen:
        raise RiebenchError("--push-to uploads the dataset; add --format dataset")
    if push_to is not None:
        from riebench.analysis.export import check_hub_name

        check_hub_name(push_to)
    folders = folders_in(places(results)[0])
    for path in write(folders, out, chosen):
        print(path)
    if DATASET in chosen:
        from riebench.analysis.export import push, save_dataset, to_dataset
        from riebench.tasks.suites import load_suite

        made = to_dataset(folders, [task for name in suite or () for task in load_suite(name)])
        print(save_dataset(made, out / DATASET))
        if push_to is not None:
            push(made, push_to)
            print(f"https://huggingface.co/datasets/{push_to}")

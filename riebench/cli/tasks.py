"""Verbs on task files: list, check, and import from published data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riebench.cli.commands import CommandGroup
from riebench.cli.common import OfflineOption, friendly, say
from riebench.utils.terminal import print_line

if TYPE_CHECKING:
    from riebench.tasks.importers.examples import ImportCollector


SUITES = Path("suites")
"""Folder of imported suites in the working directory."""
SHOWN = 20
"""Number of records left out that are named one by one."""

importers = CommandGroup(
    no_args_is_help=True, rich_markup_mode=None, help="Make task files from published benchmarks and data sets."
)

OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the suite, called by its name. [default: suites/NAME here]")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that have other content.")]


@importers.command("riebench")
@friendly
def riebench(
    file: Annotated[Path, typer.Argument(help="The published riebench.json.")],
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Import the published RIEBench file: nine categories, regions by words."""
    from riebench.tasks.importers.published import import_riebench

    intake = _intake()
    _finish(intake, import_riebench(file, intake), out or SUITES / "riebench", force)


@importers.command("piebench")
@friendly
def piebench(
    file: Annotated[Path, typer.Argument(help="PIE-Bench's mapping_file.json.")],
    images: Annotated[
        Path | None, typer.Argument(help="Folder of its pictures (annotation_images), to note where each one is.")
    ] = None,
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Import PIE-Bench from your own copy: ten categories, regions by mask files."""
    from riebench.tasks.importers.published import import_piebench

    folder = out or SUITES / "piebench"
    intake = _intake()
    _finish(intake, import_piebench(file, images, folder, intake), folder, force)


@importers.command("dataset")
@friendly
def dataset(
    name: Annotated[str, typer.Argument(help="Hub id OWNER/NAME, a folder, or a .jsonl, .json, .csv, .parquet file.")],
    config: Annotated[str | None, typer.Option(help="Which of its configurations.")] = None,
    split: Annotated[str | None, typer.Option(help="Which of its splits. [default: the only one]")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag on the hub.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=COLUMN, repeated; fields: id, category, source, target, "
                                            "source_region, target_region, mask, instruction.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Category of all rows, by name or number.")] = None,
    mapped: Annotated[
        list[str] | None, typer.Option("--map", help="WORD=CATEGORY, repeated: what a word of the category's column "
                                                     "means, such as local=change_content.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    out: OutOption = None,
    force: ForceOption = False,
    offline: OfflineOption = False,
) -> None:  # fmt: skip
    """Import prompt pairs from a data set, through the `datasets` library."""
    from riebench.tasks.importers.datasets import import_dataset
    from riebench.tasks.importers.rows import DatasetSource
    from riebench.utils.hub import offline_mode

    place = DatasetSource(name, config, split, revision, offline)
    intake = _intake()
    with offline_mode(offline):
        origin = import_dataset(place, intake, columns=column or (), category=category, words=mapped or (), limit=limit)
    _finish(intake, origin, out or SUITES / place.short, force)


def _intake() -> ImportCollector:
    from riebench.methods.check import token_counter
    from riebench.tasks.importers.examples import ImportCollector

    return ImportCollector(*token_counter("sdxl-turbo"))


def _finish(intake: ImportCollector, origin: dict[str, str | int], out: Path, force: bool) -> None:
    """Write the suite; print what was imported and what was left out."""
    from riebench.tasks.importers.writer import store_suite, suite_files
    from riebench.tasks.schema import ALL_CATEGORIES

    for name, reason in intake.skipped[:SHOWN]:
        say(f"left out  {name}: {reason}")
    if len(intake.skipped) > SHOWN:
        say(f"left out  {len(intake.skipped) - SHOWN} more")
    stored = store_suite(suite_files(intake, origin), out, force=force)
    for category in ALL_CATEGORIES:
        if category in intake.examples:
            print_line(f"{category:<18}{len(intake.examples[category]):>5} examples  {out / category}.yaml")
    for note in intake.notes:
        say(note)
    there = f", {len(stored.unchanged)} files as they were" if stored.unchanged else ""
    say(f"{intake.n_examples} of {origin['records']} records imported, {len(intake.skipped)} left out{there}")
    say(f"next: riebench tasks check {out}; riebench run --suite {out}")


app = CommandGroup(no_args_is_help=True, rich_markup_mode=None, help="List, check and import task files.")
app.add_typer(importers, name="import")


@app.command("list")
@friendly
def list_tasks(
    suites: Annotated[list[str] | None, typer.Argument(help="Suites or folders; all shipped ones if none.")] = None,
) -> None:
    """List suites, tasks and the official method configurations that go with them."""
    from riebench.tasks.settings import setting_names, settings_sets
    from riebench.tasks.suites import load_suite, shipped_suites

    for suite in suites or shipped_suites():
        # A suite that cannot be read gives an error alone, without its name as a heading.
        tasks = load_suite(suite)
        print_line(suite)
        for task in tasks:
            print_line(f"  {task.name}@{task.version}  {len(task.examples)} examples  {task.content_hash}")
        for one in settings_sets(suite):
            print_line(f"  configurations ({one}): {', '.join(setting_names(suite, one))}")


@app.command("check")
@friendly
def check_tasks(
    suites: Annotated[list[str] | None, typer.Argument(help="Suites or folders; all shipped ones if none.")] = None,
) -> None:
    """Load and check every task file and every method configuration."""
    from riebench.methods.check import check_suite
    from riebench.tasks.suites import shipped_suites

    for suite in suites or shipped_suites():
        say(check_suite(suite))

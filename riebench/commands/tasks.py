"""Verbs on task files."""

from __future__ import annotations

from typing import Annotated

import typer

from riebench.commands import imports
from riebench.commands.common import friendly, say

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, check and import task files.")
app.add_typer(imports.app, name="import")


@app.command("list")
@friendly
def list_tasks(
    suites: Annotated[list[str] | None, typer.Argument(help="Suites or folders; all shipped ones if none.")] = None,
) -> None:
    """List suites, tasks and the official settings that go with them."""
    from riebench.tasks.settings import setting_names, settings_sets
    from riebench.tasks.suites import load_suite, suite_names

    for suite in suites or suite_names():
        print(suite)
        for task in load_suite(suite):
            print(f"  {task.name}@{task.version}  {len(task.examples)} examples  {task.content_hash}")
        for one in settings_sets(suite):
            print(f"  settings ({one}): {', '.join(setting_names(suite, one))}")


@app.command("check")
@friendly
def check_tasks(
    suites: Annotated[list[str] | None, typer.Argument(help="Suites or folders; all shipped ones if none.")] = None,
) -> None:
    """Load and check every task and setting file."""
    from riebench.methods.check import check_suite
    from riebench.tasks.suites import suite_names

    for suite in suites or suite_names():
        say(check_suite(suite))

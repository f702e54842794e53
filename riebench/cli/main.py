"""Entry point of the command line, with its verbs.

The verbs' modules import everything heavy inside functions, so that help is instant.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated

import typer

from riebench._version import __version__
from riebench.cli import paper, results, run, sae, tasks
from riebench.cli.common import DEBUG_FLAG
from riebench.utils.terminal import print_line

# Help text without boxes needs no import of rich, which alone would take a third of the time that help may take.
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for _verb in (
    run.run, run.doctor, results.score, results.tables, results.leaderboard, results.compare,
    results.export, results.report, results.validity, paper.paper,
):  # fmt: skip
    app.command()(_verb)
app.add_typer(tasks.app, name="tasks")
sae.app.command()(sae.feature)
app.add_typer(sae.app, name="sae")


def _version(wanted: bool) -> None:
    if wanted:
        print_line(f"riebench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG_FLAG, help="Show tracebacks; works anywhere on the line.")] = False,
) -> None:
    """Measure what sparse autoencoder features of SDXL do to pictures.

    It makes interventions, scores and per-block tables.

    `riebench run` alone is the main job: the toy suite with every official setting, scores, tables and leaderboard.
    """


def main() -> None:
    """Run the `riebench` command."""
    if DEBUG_FLAG in sys.argv:
        # The flag may stand before or after the verb.
        sys.argv = [argument for argument in sys.argv if argument != DEBUG_FLAG]
        os.environ["RIEBENCH_DEBUG"] = "1"
    try:
        app()
    finally:
        # At its exit Python would look for garbage among all that was loaded, which takes seconds; the system frees it.
        gc.freeze()

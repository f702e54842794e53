"""Entry point of the command line, with its verbs.

The verbs' modules import everything heavy inside functions, so that help is instant.
"""

from __future__ import annotations

import gc
import os
import sys
from io import TextIOWrapper
from logging import NOTSET
from typing import Annotated

import typer

from riebench._version import __version__
from riebench.cli import run, sae, tasks
from riebench.cli.commands import DEBUG_FLAG, LOG_FLAG, CommandGroup, RootGroup
from riebench.cli.common import friendly
from riebench.cli.names import check_word, words_beginning_with
from riebench.cli.results import comparisons, stored
from riebench.cli.studies import paper, ranges
from riebench.utils.terminal import LOG_LEVELS, log, print_line, set_log_level

app = CommandGroup(cls=RootGroup, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for _verb in (
    run.run, run.doctor, run.diff, run.detect, stored.score, stored.tables, stored.leaderboard, comparisons.compare,
    comparisons.compare_models, stored.publish, stored.export, stored.report, stored.agreement, stored.curves,
    ranges.elastic, paper.paper,
):  # fmt: skip
    app.command()(_verb)
app.add_typer(stored.validity_app, name="validity")
app.add_typer(tasks.app, name="tasks")
sae.app.command()(sae.feature)
app.add_typer(sae.app, name="sae")
app.add_typer(run.model_app, name="model")


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
    log_level: Annotated[
        str | None,
        typer.Option(
            LOG_FLAG,
            autocompletion=words_beginning_with(LOG_LEVELS),
            help="debug: also what riebench and libraries log; info: notes, progress, warnings; warning: no notes and "
            "no progress; error: no warnings either. Works anywhere on the line. [default: info]",
        ),
    ] = None,
) -> None:
    """Measure what sparse autoencoder features of SDXL do to pictures.

    It makes interventions, scores and per-block tables.

    `riebench run` alone is the main job: the toy suite with every official setting, scores, tables and leaderboard.
    """
    if debug:
        os.environ["RIEBENCH_DEBUG"] = "1"
    log.setLevel(NOTSET)
    if log_level is not None:
        _set_log_level(log_level)


@friendly
def _set_log_level(word: str) -> None:
    check_word(LOG_FLAG, word, LOG_LEVELS)
    set_log_level(word)
    log.debug("riebench %s, Python %s, %s", __version__, sys.version.split()[0], sys.platform)


def main() -> None:
    """Run the `riebench` command."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks is printed as its number instead of ending the command.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Shells complete this name, and messages say it, however Python was started.
    try:
        app(prog_name="riebench")
    finally:
        # At its exit Python would look for garbage among all that was loaded, which takes seconds; the system frees it.
        gc.freeze()

"""The verb that says what a run needs before it is started."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from riebench.commands.common import friendly, with_options_of
from riebench.commands.run import job_of

EXIT_NOT_READY = 1


@friendly
@with_options_of(job_of)
def doctor(
    job: Any, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Say what a run with these options needs, what is here, and how to get the rest. Loads and fetches nothing."""
    from riebench.jobs import doctor as examination

    checks = examination.examine(job)
    if as_json:
        print(json.dumps(examination.as_json(checks), indent=1, ensure_ascii=False))
    else:
        examination.print_checks(checks)
    if not examination.is_ready(checks):
        raise typer.Exit(EXIT_NOT_READY)

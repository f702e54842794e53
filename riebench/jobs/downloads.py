"""The files that a job needs and that are not on this machine.

`run`, `doctor` and the documents show one list of them. `needed_files` looks for everything that a job reads;
`check_files` does so before a run loads anything, and refuses or names what has to be fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from riebench.errors import RiebenchError
from riebench.jobs.inventory import Check, model_checks, region_checks, sae_checks, scorer_checks
from riebench.jobs.request import RunRequest
from riebench.models.lookup import ModelInfo, look_up
from riebench.models.presets import is_shipped
from riebench.runs.plan import works_of
from riebench.runs.prepare import check_places
from riebench.scoring.metrics.networks import parse_weights
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.hub import is_offline, offline_remedy
from riebench.utils.machine import size_text

FETCHES = "hf download "
"""Beginning of a line that brings files of the hub."""


def needed_files(
    job: RunRequest, known: ModelInfo, tasks: Sequence[EditTask], settings: Sequence[Setting], *, shipped: bool = True
) -> list[Check]:
    """Look for the model, SAEs, scoring networks and region models of a job.

    Nothing is loaded or fetched.

    Args:
        job: the options of `riebench run`.
        known: the generating model.
        tasks: tasks, as `job.plan` gives them.
        settings: likewise.
        shipped: also compare the hashes of what ships with riebench, which takes a while.

    Raises:
        RiebenchError: if the command line itself is wrong.
    """
    from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
    from riebench.jobs.forecast import is_searched

    regions = parse_regions(job.regions or DEFAULT_REGIONS)
    searched = bool(regions.models) and any(is_searched(work) for work in works_of(job.units(tasks, settings)))
    model = [] if is_shipped(known.spec) and not shipped else model_checks(known, job.options)
    return [
        *model,
        *sae_checks(settings, known, job.sae),
        *scorer_checks(known, job.scorer_choice, job.profile, parse_weights(job.weights)),
        *(region_checks(regions) if searched else []),
    ]


def download_lines(checks: Sequence[Check], state: str = "missing") -> list[str]:
    """Return the commands that fetch what is not here, each once.

    Args:
        checks: as `needed_files` returns them.
        state: "missing" for what a job needs, "optional" for what it can do without.
    """
    return list(dict.fromkeys(one.mend for one in checks if one.state == state and one.mend.startswith(FETCHES)))


def check_files(
    job: RunRequest, tasks: Sequence[EditTask], settings: Sequence[Setting], say: Callable[[str], None]
) -> None:
    """Refuse a job whose names do not fit its model, or whose files are missing.

    A line names what will be fetched.

    Args:
        job: the options of `riebench run`.
        tasks: tasks, as `job.plan` gives them.
        settings: likewise.
        say: function that prints a line for people.

    Raises:
        RiebenchError: for an unknown block or model, or a file that is missing and cannot be fetched.
    """
    recipe = job.recipe
    known = look_up(
        recipe.name, steps=recipe.steps, guidance=recipe.guidance, dtype=recipe.dtype, options=recipe.options
    )
    for setting in settings:
        check_places(setting, known.shape.blocks, known.spec, known.family)
    if is_shipped(known.spec) and job.sae is None and not any(setting.sae for setting in settings):
        return
    missing = [one for one in needed_files(job, known, tasks, settings, shipped=False) if one.state == "missing"]
    for one in missing:
        if not one.mend.startswith(FETCHES):
            advice = f"; {one.mend}" if one.mend and one.mend not in one.found else ""
            raise RiebenchError(f"{one.what}: {one.found}{advice}")
    lines = download_lines(missing)
    if not lines:
        return
    names = ", ".join(f"{one.what}{f' ({size_text(one.nbytes)})' if one.nbytes else ''}" for one in missing)
    if job.offline or is_offline():
        fetch = "; ".join(f"`{line}`" for line in lines)
        raise RiebenchError(f"not on this machine: {names}; {offline_remedy()}, or fetch it first with {fetch}")
    say(f"fetching into the hub's cache what is not on this machine: {names}; the same as:")
    for line in lines:
        say(f"  {line}")

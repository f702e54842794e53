"""The main job: from a suite's files to pictures, scores, tables, leaderboard.

It is one call, which can be repeated and then does what is missing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.analysis.leaderboard import write_leaderboard
from riebench.analysis.tables import write_tables
from riebench.errors import RiebenchError
from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
from riebench.jobs.downloads import check_files
from riebench.jobs.dry_run import prepare_forecast
from riebench.jobs.repeat import check_repeated
from riebench.jobs.request import RunRequest
from riebench.jobs.summary import PlannedPart, may_rebuild, print_per_block
from riebench.models.lookup import ModelRecipe
from riebench.models.presets import scorer_for
from riebench.models.spec import ModelSpec
from riebench.registry import METHODS
from riebench.report.gallery import write_galleries
from riebench.runs.failures import check_success
from riebench.runs.plan import Unit, checked_works, shard_units, works_of
from riebench.runs.prepare import check_prompts, prepare_all, prepare_setting
from riebench.scoring.metrics.networks import parse_weights
from riebench.store.damage import folder_warnings, set_aside
from riebench.store.folder import RunFolder, find_run_folders, run_path
from riebench.store.invocations import invocation_notes
from riebench.store.records import RUN_FILE
from riebench.tasks.schema import EditTask, Setting
from riebench.tasks.suites import load_suite
from riebench.utils.files import remove_stale_files
from riebench.utils.hub import offline_mode
from riebench.utils.machine import free_ram, pick_device, usable_cores
from riebench.utils.markup import Document
from riebench.utils.processes.collector import resume_collector

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel


Say = Callable[[str], None]
"""Function that prints a line for people."""


def run_job(request: RunRequest, say: Say) -> None:
    """Make, score and tabulate everything that a request asks for.

    Also print the per-block table and the places of all files.

    Args:
        request: the options of the run.
        say: function that prints a line for people.

    Raises:
        NothingMadeError: after everything else is done, if a configuration has not one edited picture; at once if
            the first units all fail with the same error.
        RiebenchError: for any error that the user can correct. What is finished is kept.
    """
    started = time.monotonic()
    with offline_mode(request.offline):
        tasks, settings = request.plan()

        def units() -> list[Unit]:
            return shard_units(request.units(tasks, settings), request.engine.shard)

        if request.engine.sharded:
            folders = generate(request, tasks, settings, say)
            check_success(folders, units, part=True)
            say_failures(folders, say)
            shard = "/".join(map(str, request.engine.shard))
            say(f"shard {shard} done in {time.monotonic() - started:.0f} s; when all shards have ended, the same "
                "command without --shard scores and tabulates")  # fmt: skip
            return
        suite = load_suite(request.suite)
        folders = _produce(request, tasks, settings, suite, say)
        planned = units()
        board = tabulate(request, folders, planned, say)
        if request.report is not None and board is not None:
            say_page(request.results, request.report, suite, board, say)
        check_success(folders, units)
        say_failures(folders, say)
        say(f"done in {time.monotonic() - started:.0f} s; the same command does only what is missing")


def measure_stored_saes(request: RunRequest, say: Say) -> None:
    """Measure the SAEs of stored runs that lack figures; make no pictures.

    It is for runs from before SAEs were measured, published ones among them. Of the requested configurations those
    without a run folder are left out.

    Args:
        request: the options of the run.
        say: function that prints a line for people.

    Raises:
        RiebenchError: if a folder holds a run of another identity, or there are none.
    """
    from riebench.runs.sae_check import add_figures, known_saes, measure_saes

    with offline_mode(request.offline):
        tasks, settings = request.plan()
        device = pick_device(request.device)
        say(f"loading {request.recipe.name} on {device}")
        model = request.recipe.load()
        suite = request.results / tasks[0].suite
        stored = [one for one in settings if (suite / model.spec.name / one.name / RUN_FILE).is_file()]
        if not stored:
            raise RiebenchError(f"{suite / model.spec.name} holds no run of these configurations; nothing to measure")
        regions = parse_regions(request.regions or DEFAULT_REGIONS).identity
        prepared = prepare_all(stored, tasks[0].suite, model, request.results, None, regions, request.offline)
        works = checked_works(request.units(tasks, stored), fixed_noise=model.spec.fixed_noise)
        found = measure_saes(prepared, works, model, known_saes(suite), progress=request.progress)
        changed = add_figures(prepared, found, say)
        say(f"figures of SAEs were added to {changed} of {len(stored)} run folders")


def produce(request: RunRequest, say: Say) -> list[RunFolder]:
    """Generate and score what is missing, and write no tables.

    Args:
        request: the options of the run.
        say: function that prints a line for people.

    Returns:
        The run folders.

    Raises:
        RiebenchError: as `run_job`.
    """
    with offline_mode(request.offline):
        return _produce(request, *request.plan(), load_suite(request.suite), say)


def _produce(
    request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], suite: tuple[EditTask, ...],
    say: Say,
) -> list[RunFolder]:  # fmt: skip
    remove_stale_files(request.results)
    folders = generate(request, tasks, settings, say)
    say(score_folders(request, folders, suite))
    return folders


def generate(
    request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], say: Say, *,
    loaded: LoadedModel | None = None,
) -> list[RunFolder]:  # fmt: skip
    """Make the edited pictures that are missing, by the requested engine.

    Args:
        request: the options of the run.
        tasks: tasks of one suite, as `request.plan` gives them.
        settings: likewise.
        say: function that prints a line for people.
        loaded: of `load_here`, for callers that generate several times in this process and score by other means; no
            scorer is then looked for.

    Returns:
        The run folders.

    Raises:
        RiebenchError: as `run_job`.
    """
    from riebench.runs import engines

    engine, redo = request.engine, request.redo_mode
    for name, why in request.left_out.items():
        say(f"{name} is left out: it cannot run on this model ({why})")
    name, made, more = ("local", loaded, _notes_here(request)) if loaded else _load(request, tasks, settings, say)
    _refuse_another_run(request, tasks, settings, made)
    if redo == "all" and not engine.sharded:
        for setting in settings:
            place = run_path(request.results, tasks[0].suite, made.spec.name, setting.name)
            if (aside := set_aside(place)) is not None:
                say(f"{place} was changed or damaged; its records and scores are in {aside.name}/ there")
    # All that is loaded stays until the end.
    resume_collector(keep=True)
    folders = engines.run(
        name,
        tasks,
        settings,
        made,
        shard=engine.shard,
        results_root=request.results,
        seeds=request.seeds,
        batch_size=request.batch_size,
        regions=request.regions or DEFAULT_REGIONS,
        redo=redo,
        offline=request.offline,
        stop_after=request.stop_after,
        accept_sae=request.accept_sae,
        say=say,
        progress=request.progress,
        # Whole tasks: the references that methods look at must not depend on --limit.
        pool=load_suite(request.suite, categories=request.categories),
        **more,
    )
    for line in folder_warnings(folders):
        say(line)
    if request.repeat is not None and request.repeat_exactly:
        for folder in folders:
            check_repeated(request.repeat, folder.spec)
    return folders


def _load(
    request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], say: Say
) -> tuple[str, LoadedModel | ModelRecipe, dict[str, Any]]:
    """Load the model if this process generates, and find the scorers.

    Returns:
        The engine's name; the model, or the recipe by which workers load it; and further options of the engine.
    """
    engine = request.engine
    workers = engine.workers if engine.engine == "ray" else local_workers(request, tasks, settings)
    if engine.engine == "local" and workers == 1:
        model = load_here(request, tasks, settings, say)
        _find_scorer(request, model.spec)
        return "local", model, _notes_here(request)
    _find_scorer(request, request.recipe.spec)
    # Workers load the model, check prompts and report their device.
    notes = invocation_notes(request=request.to_config(), engine=engine.engine, **request.options.placement)
    more = {"workers": workers, "provenance": notes}
    if engine.engine == "ray":
        return "ray", request.recipe, {"address": engine.address, **more}
    check_files(request, tasks, settings, say)
    return "processes", request.recipe, more


def local_workers(request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...]) -> int:
    """Return how many processes of this machine make the pictures; 1 is this one.

    Without a number in the request there are several where they are soonest done: for many pictures of a small model
    without a GPU.

    Args:
        request: the options of the run.
        tasks: tasks of one suite, as `request.plan` gives them.
        settings: likewise.

    Raises:
        RiebenchError: if several are asked for that cannot be.
    """
    from riebench.runs.engines.processes import LEAST_UNITS, suitable_workers

    wanted, given = request.engine.workers, METHODS.defined() & {one.method for one in settings}
    if wanted is not None:
        if wanted > 1 and (device := pick_device(request.device)) != "cpu":
            raise RiebenchError(
                f"--workers {wanted}: processes would share {device}; use --engine ray for GPUs, or --device cpu"
            )
        if wanted > 1 and given:
            raise RiebenchError(f"--workers {wanted}: processes do not know {min(given)!r}, a function defined here")
        return wanted
    if (
        given
        or request.engine.sharded
        or request.repeat is not None
        or len(request.units(tasks, settings)) < LEAST_UNITS
    ):
        return 1
    plan = prepare_forecast(request)
    if plan.planned.device != "cpu":
        return 1
    done = plan.planned.done
    left = [unit for unit in plan.planned.units if unit.key.digest not in done.get(unit.setting.name, ())]
    parameters = sum(plan.planned.shape.parameters.values())
    return suitable_workers(len(left), len(works_of(left)), parameters, usable_cores(), free_ram())


def load_here(request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], say: Say) -> LoadedModel:
    """Load the model in this process, and check that it can read the prompts.

    Args:
        request: the options of the run.
        tasks: tasks of one suite, as `request.plan` gives them.
        settings: likewise.
        say: function that prints a line for people.

    Raises:
        RiebenchError: as `run_job`.
    """
    check_files(request, tasks, settings, say)
    say(f"loading {request.recipe.name} on {pick_device(request.device)}")
    model = request.recipe.load()
    check_prompts(model, tasks)
    return model


def _notes_here(request: RunRequest) -> dict[str, Any]:
    """Return what run folders say of this process, as an option of the engine."""
    device, placement = pick_device(request.device), request.options.placement
    return {"provenance": invocation_notes(request=request.to_config(), device=device, **placement)}


def _refuse_another_run(
    request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], made: LoadedModel | ModelRecipe
) -> None:
    """Refuse to repeat a stored run with another identity.

    It happens before anything is generated, except with workers, which load the model themselves.
    """
    if request.repeat is None or not request.repeat_exactly or isinstance(made, ModelRecipe):
        return
    regions = parse_regions(request.regions or DEFAULT_REGIONS).identity
    for one in settings:
        ready = prepare_setting(one, tasks[0].suite, made, request.results, None, regions, request.offline)
        check_repeated(request.repeat, ready.folder.spec)


def _find_scorer(request: RunRequest, model: ModelSpec) -> None:
    """Fetch the CLIP and the named scorers that will score, or refuse.

    Hours of pictures should not wait for a missing file.
    """
    from riebench.models.clip import ClipSpec, locate
    from riebench.registry import NETWORKS
    from riebench.scoring.metrics.networks import NetworkOptions

    chosen, weights = request.scorer_choice, parse_weights(request.weights)
    locate(ClipSpec.parse(chosen.first or scorer_for(model)), offline=request.offline)
    for name in chosen.names:
        NETWORKS.get(name).locate(NetworkOptions(weights=weights, offline=request.offline))


def score_folders(request: RunRequest, folders: Sequence[RunFolder], suite: tuple[EditTask, ...]) -> str:
    """Compute the scores that are missing; return a summary in words.

    Args:
        request: the options of the run.
        folders: its run folders.
        suite: whole tasks: units of earlier runs with another --limit are scored and not mistaken for changed ones.

    Raises:
        RiebenchError: as `run_job`.
    """
    from riebench.scoring.score import score

    chosen = request.scorer_choice
    report = score(
        folders, suite, scorer=chosen.first, second=chosen.second, beside=chosen.metrics, profile=request.profile,
        weights=parse_weights(request.weights), offline=request.offline, device=request.scoring_device,
        progress=request.progress,
    )  # fmt: skip
    return report.summary


def tabulate(request: RunRequest, folders: Sequence[RunFolder], units: Sequence[Unit], say: Say) -> Document | None:
    """Print the per-block table, and write galleries, tables and leaderboard.

    What is printed, and the galleries, are about the command alone. Tables show all runs of its suite and model, the
    leaderboard all of the results folder; each is left as it is if it shows far more of other runs
    (`riebench.jobs.summary.may_rebuild`).

    Args:
        request: the options of the run.
        folders: its run folders.
        units: its units.
        say: function that prints a line for people.

    Returns:
        The leaderboard; None if it was left as it is.
    """
    model_folder, touched = folders[0].path.parent, {folder.path for folder in folders}
    everything = find_run_folders(request.results)
    group = [folder for folder in everything if folder.path.parent == model_folder]
    tables = may_rebuild(group, touched, len(units))
    written = write_tables(group) if tables else []
    board = (
        write_leaderboard(request.results, request.leaderboard)
        if may_rebuild(everything, touched, len(units))
        else None
    )
    galleries = write_galleries(model_folder, folders)
    print_per_block([PlannedPart(folder, units) for folder in folders], request.profile)
    say(f"pictures and records  {model_folder}/")
    if galleries:
        say(f"look at               {galleries[0].parent}/ (one picture per configuration)")
    if tables:
        say(f"tables                {', '.join(str(path) for path in written)}")
    if board is not None:
        say(f"leaderboard           {request.leaderboard}")
    else:
        say(_stale_files_line(request, tables))
    return board


def _stale_files_line(request: RunRequest, tables: bool) -> str:
    """Return the line on files left as they are, and how to make them anew."""
    left = {"tables": not tables, "leaderboard": True, "report": request.report is not None}
    commands = [f"`riebench {verb} --results {request.results}`" for verb, is_left in left.items() if is_left]
    return (
        f"not brought up to date: files that show far more of other runs in {request.results}/; "
        f"{', '.join(commands)} {'makes them' if len(commands) == 1 else 'make them'}"
    )


def say_page(results: Path, out: Path, tasks: tuple[EditTask, ...], board: Document, say: Say) -> None:
    """Write the page that shows every picture, and print its place.

    If it cannot be written, that is printed: pictures and scores are done without it.

    Args:
        results: the results folder.
        out: the page's folder.
        tasks: the suite.
        board: the leaderboard of these results.
        say: function that prints the line.
    """
    from riebench.report import write_report

    try:
        page = write_report(results, out, tasks, board=board).page
    except RiebenchError as error:
        say(f"no page: {error}")
    else:
        say(f"page                  {page} (opens in a browser)")


def say_failures(folders: Sequence[RunFolder], say: Say) -> None:
    """Print the number of failed units and their most frequent reason.

    The line also names the option that tries them again.
    """
    reasons = Counter(record.reason for folder in folders for record in folder.records() if record.status == "error")
    if reasons:
        reason, most = reasons.most_common(1)[0]
        say(f"{reasons.total()} units failed, {most} of them with: {reason}; `--redo errors` tries them again")

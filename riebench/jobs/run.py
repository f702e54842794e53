"""The main job: from a suite's files to pictures, scores, tables, leaderboard.

It is one call, which can be repeated and then does what is missing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    present_categories,
    present_metrics,
)
from riebench.analysis.leaderboard import write_leaderboard
from riebench.analysis.tables import write_tables
from riebench.errors import RiebenchError
from riebench.generation.regions.options import DEFAULT_REGIONS
from riebench.jobs.downloads import check_files
from riebench.jobs.request import RunRequest
from riebench.models.lookup import ModelRecipe
from riebench.models.presets import scorer_for
from riebench.models.spec import ModelSpec
from riebench.report.gallery import write_galleries
from riebench.runs.failures import check_success
from riebench.runs.plan import Unit, plan, shard_units
from riebench.runs.prepare import check_prompts, provenance
from riebench.scoring.metrics.clip_models import scorer_pair
from riebench.scoring.metrics.networks import parse_weights
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder, find_run_folders, folder_warnings, run_path, set_aside
from riebench.tasks.schema import EditTask, Setting
from riebench.tasks.suites import load_suite
from riebench.utils.files import remove_stale_files
from riebench.utils.hub import offline_mode
from riebench.utils.machine import pick_device
from riebench.utils.markup import Document
from riebench.utils.terminal import add_row, print_table, table_width, window_width

if TYPE_CHECKING:
    from rich.table import Table

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
            return shard_units(plan(tasks, settings, request.seeds), request.engine.shard)

        if request.engine.sharded:
            folders = generate(request, tasks, settings, say)
            check_success(folders, units, part=True)
            say_failures(folders, say)
            shard = "/".join(map(str, request.engine.shard))
            say(f"shard {shard} done in {time.monotonic() - started:.0f} s; when all shards have ended, the same "
                "command without --shard scores and tabulates")  # fmt: skip
            return
        folders = _produce(request, tasks, settings, say)
        board = tabulate(request, folders, say)
        if request.report is not None:
            say_page(request.results, request.report, load_suite(request.suite), board, say)
        check_success(folders, units)
        say_failures(folders, say)
        say(f"done in {time.monotonic() - started:.0f} s; the same command does only what is missing")


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
        return _produce(request, *request.plan(), say)


def _produce(
    request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], say: Say
) -> list[RunFolder]:
    remove_stale_files(request.results)
    folders = generate(request, tasks, settings, say)
    say(score_folders(request, folders))
    return folders


def generate(
    request: RunRequest, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], say: Say
) -> list[RunFolder]:
    """Make the edited pictures that are missing, by the requested engine.

    Args:
        request: the options of the run.
        tasks: tasks of one suite, as `request.plan` gives them.
        settings: likewise.
        say: function that prints a line for people.

    Returns:
        The run folders.

    Raises:
        RiebenchError: as `run_job`.
    """
    from riebench.runs import engines

    engine, recipe, redo = request.engine, request.recipe, request.redo_mode
    if engine.engine == "local":
        check_files(request, tasks, settings, say)
        device = pick_device(request.device)
        say(f"loading {recipe.name} on {device}")
        model = recipe.load()
        check_prompts(model, tasks)
        made: LoadedModel | ModelRecipe = model
        more: dict[str, Any] = {"provenance": provenance(device=device, **request.options.placement)}
    else:
        # Workers load the model, check prompts and report their device.
        made = recipe
        notes = provenance(engine=engine.engine, **request.options.placement)
        more = {"address": engine.address, "workers": engine.workers, "say": say, "provenance": notes}
    _find_scorer(request, made.spec)
    if redo == "all" and not engine.sharded:
        for setting in settings:
            place = run_path(request.results, tasks[0].suite, made.spec.name, setting.name)
            if (aside := set_aside(place)) is not None:
                say(f"{place} was changed or damaged; its records and scores are in {aside.name}/ there")
    folders = engines.run(
        engine.engine,
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
        # Whole tasks: the references that methods look at must not depend on --limit.
        pool=load_suite(request.suite, categories=request.categories),
        **more,
    )
    for line in folder_warnings(folders):
        say(line)
    return folders


def _find_scorer(request: RunRequest, model: ModelSpec) -> None:
    """Fetch the CLIP that will score, or refuse.

    Hours of pictures should not wait for a missing file.
    """
    from riebench.scoring.metrics.clip_models import ClipSpec, locate

    locate(ClipSpec.parse(scorer_pair(request.scorers)[0] or scorer_for(model)), offline=request.offline)


def score_folders(request: RunRequest, folders: Sequence[RunFolder]) -> str:
    """Compute the scores that are missing; return a summary in words.

    Raises:
        RiebenchError: as `run_job`.
    """
    from riebench.scoring.score import score

    # Whole tasks: units of earlier runs with another --limit are scored and not mistaken for changed ones.
    scorer, second = scorer_pair(request.scorers)
    report = score(
        folders, load_suite(request.suite), scorer=scorer, second=second, profile=request.profile,
        weights=parse_weights(request.weights), offline=request.offline, device=request.scoring_device,
    )  # fmt: skip
    return report.summary


def tabulate(request: RunRequest, folders: Sequence[RunFolder], say: Say) -> Document:
    """Write tables, leaderboard and galleries, and print the per-block table.

    Also print the places of all files. The files show all that is stored of the model; what is printed is what was
    asked for.

    Returns:
        The leaderboard.
    """
    model_folder = folders[0].path.parent
    group = [folder for folder in find_run_folders(request.results) if folder.path.parent == model_folder]
    written = write_tables(model_folder, group)
    board = write_leaderboard(request.results, request.leaderboard)
    galleries = write_galleries(model_folder, group)
    print_per_block(folders, request.profile)
    say(f"pictures and records  {model_folder}/")
    if galleries:
        say(f"look at               {galleries[0].parent}/ (one picture per setting)")
    say(f"tables                {', '.join(str(path) for path in written)}")
    say(f"leaderboard           {request.leaderboard}")
    return board


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


def print_per_block(folders: Sequence[RunFolder], profile: str = DEFAULT) -> None:
    """Print the per-block table to standard output.

    It shows the ranking metric by category, and all other metrics over all categories.

    Where the terminal is too narrow for all categories, none is shown: a number is never cut.

    Args:
        folders: run folders of one suite and model.
        profile: name of the profile whose metrics are shown.
    """
    found = [configuration for folder in folders for configuration in configurations(folder, profile)]
    categories = present_categories(found)
    table = _per_block(found, categories, profile)
    width = window_width()
    if width is not None and table_width(table) > width:
        table = _per_block(found, [], profile)
    print_table(table)


def _per_block(found: Sequence[Configuration], categories: Sequence[str], profile: str) -> Table:
    from rich.table import Table

    rank = PROFILES[profile].rank
    others = [metric for metric in present_metrics(found) if metric != rank]
    ranked = metric_format(rank).title.partition(" (")[0]
    table = Table(
        title=f"{ranked} by category; over all categories: the other metrics" if categories
        else f"Over all categories; {ranked} by category: see the tables, or widen the window"
    )  # fmt: skip
    for heading in ("setting", "blocks"):
        table.add_column(heading, no_wrap=True)
    short = [category.removeprefix("change_").removesuffix("_object") for category in categories]
    whole = EVERYTHING if categories else ranked
    for heading in [*short, whole, *(metric.replace("_", " ") for metric in others), "scored"]:
        table.add_column(heading, justify="right")
    for configuration in found:
        rows = [configuration.row(rank, category) for category in (*categories, EVERYTHING)]
        cells = [("–" if row.mean is None else metric_format(rank).number(row.mean)) for row in rows]
        for metric in others:
            mean = configuration.row(metric, EVERYTHING).mean
            cells.append("–" if mean is None else metric_format(metric).number(mean))
        scored = f"{rows[-1].n_scored}/{rows[-1].n_expected}"
        add_row(table, configuration.label, configuration.block_set, *cells, scored)
    return table

"""Verbs on stored results: score, tables, leaderboard, publish and others.

The others write the report, exports for other programs, response curves and the validity document.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riebench.cli.commands import CommandGroup
from riebench.cli.common import (
    DeviceOption,
    OfflineOption,
    OpenOption,
    OwnResultsOption,
    ProfileOption,
    ResultsOption,
    ScorerOption,
    ScorersOption,
    UpToDateOption,
    WeightsOption,
    documents_folder,
    folders_in,
    friendly,
    parse_seeds,
    refuse_remote,
    results_to_read,
    results_to_write,
    say,
    say_written,
    split_names,
)
from riebench.cli.names import completing, known_metrics
from riebench.errors import RiebenchError
from riebench.utils.processes.collector import pause_collector
from riebench.utils.terminal import print_line

if TYPE_CHECKING:
    from riebench.utils.processes.helpers import Apply

STORED_FILES = tuple(f"*/*/*/{name}" for name in ("records.parquet", "records.jsonl", "scores.parquet", "scores.jsonl"))
"""Files of a results folder with what tables are made of."""
LEAST_BYTES = 3_000_000
"""Size of these files from which on several processes read them sooner than one."""


@friendly
def score(
    results: OwnResultsOption = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Folder of task files of your own that runs were made from; repeatable.")
    ] = None,
    scorer: ScorerOption = None,
    scorers: ScorersOption = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Only these metrics, with commas between.", autocompletion=completing(known_metrics, several=True)
        ),
    ] = None,
    profile: ProfileOption = "default",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures scored at a time.")] = 32,
    offline: OfflineOption = False,
) -> None:
    """Compute the scores that stored pictures still lack."""
    folders = folders_in(results_to_write(results))
    from riebench.scoring.metrics.networks import parse_weights
    from riebench.scoring.profiles import get_profile
    from riebench.scoring.score import score as compute
    from riebench.scoring.scorers import check_profile, choose_scorers
    from riebench.tasks.suites import load_suite
    from riebench.utils.hub import offline_mode
    from riebench.utils.machine import pick_device

    chosen = choose_scorers([*(scorer or ()), *split_names(scorers)])
    check_profile(chosen, profile, get_profile(profile).scorers)
    with offline_mode(offline):
        report = compute(
            folders,
            [task for name in suite or () for task in load_suite(name)],
            scorer=chosen.first,
            second=chosen.second,
            metrics=split_names(metrics) or None,
            beside=chosen.metrics,
            profile=profile,
            weights=parse_weights(weights or ()),
            offline=offline,
            device=pick_device(device),
            batch_size=batch_size,
        )
    say(report.summary)


@friendly
def tables(
    results: ResultsOption = None,
    document: Annotated[
        list[Path] | None, typer.Option(help="Also fill the parts of this Markdown file marked for tables.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Only this profile's tables. [default: all that have scores]")
    ] = None,
    check: UpToDateOption = False,
) -> None:
    """Write the tables of every suite and model from stored scores."""
    pause_collector()
    from riebench.scoring.profiles import get_profile

    if profile is not None:
        get_profile(profile)
    refuse_remote(results)
    folder = results_to_read(results)
    with _helpers(folder, "riebench.analysis.tables") as apply:
        from riebench.analysis.tables import check_tables, fill_document, write_tables

        paths = (check_tables if check else write_tables)(folders_in(folder), profile, apply=apply)
    for file in document or ():
        fill_document(file, check=check)
    say_written([*paths, *(document or ())], check)


@friendly
def leaderboard(
    results: ResultsOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether both files are up to date.")] = False,
    verify: Annotated[
        Path | None, typer.Option(help="Only check one run folder: recompute every score, hash and count.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="With --verify: folder of task files of your own; repeatable.")
    ] = None,
    scorer: ScorerOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
) -> None:
    """Write leaderboard.md and leaderboard.csv from a results folder alone.

    They lie in the results folder; those of results/, which is published, in the working directory.
    """
    pause_collector()
    refuse_remote(results)
    folder = results_to_read(results)
    board = documents_folder(folder) / "leaderboard.md"
    if verify is not None:
        _verify(verify, suite or [], scorer or [], weights or [], device, offline)
        return
    if not check:
        folders_in(folder)
    with _helpers(folder, "riebench.analysis.leaderboard") as apply:
        from riebench.analysis.leaderboard import check_leaderboard, write_leaderboard

        if check:
            files = check_leaderboard(folder, board, apply=apply)
            say(f"{' and '.join(map(str, files))} are up to date")
            return
        write_leaderboard(folder, board, apply=apply)
    for file in (board, board.with_suffix(".csv")):
        print_line(file)


def _helpers(results: Path, module: str) -> AbstractContextManager[Apply]:
    """Start processes that help to read a results folder, if it is large."""
    from riebench.utils.processes.helpers import helper_processes

    size = sum(file.stat().st_size for pattern in STORED_FILES for file in results.glob(pattern))
    return helper_processes(size >= LEAST_BYTES, (module, "pyarrow.parquet"))


def _verify(
    run: Path, suites: list[str], scorers: list[str], weights: list[str], device: str, offline: bool
) -> None:  # fmt: skip
    from riebench.models.clip import scorer_pair
    from riebench.scoring.metrics.networks import parse_weights
    from riebench.scoring.verify import ScoringOptions, verify
    from riebench.tasks.suites import load_suite
    from riebench.utils.hub import offline_mode
    from riebench.utils.machine import pick_device

    tasks = [task for name in suites for task in load_suite(name)]
    first, second = scorer_pair(scorers)
    options = ScoringOptions(pick_device(device), first, second, parse_weights(weights), offline)
    with offline_mode(offline):
        verdict = verify(run, tasks, options)
    say(f"{run}: {'; '.join(verdict.checked)}")
    for finding in verdict.findings:
        print_line(f"does not hold: {finding}")
    if not verdict.holds:
        raise typer.Exit(1)
    say("everything holds")


@friendly
def publish(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders above them, such as runs/SUITE/MODEL.")],
    results: Annotated[Path, typer.Option(help="Folder of published results.")] = Path("results"),
    verify: Annotated[
        bool, typer.Option("--verify", help="First recompute every score, hash and count; publish only what holds.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also replace a published run by another one, or by one with less.")
    ] = False,
    push_to: Annotated[
        str | None,
        typer.Option("--push-to", help="Also upload to data set OWNER/NAME on the hub (private if new)."),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="With --verify: folder of task files of your own; repeatable.")
    ] = None,
    scorer: ScorerOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
) -> None:
    """Write runs into results/ in compact form, with tables and leaderboard."""
    pause_collector()
    from riebench.analysis.export import check_hub_name
    from riebench.jobs.publish import find_runs, publish_all
    from riebench.store.remote import push_results

    if push_to is not None:
        check_hub_name(push_to)

    def check(run: Path) -> None:
        _verify(run, suite or [], scorer or [], weights or [], device, offline)

    refuse_remote(results)
    folder = results
    board = documents_folder(folder) / "leaderboard.md"
    with _helpers(folder, "riebench.analysis.leaderboard") as apply:
        made = publish_all(
            find_runs(runs), folder, board, say, replace=replace, check=check if verify else None, apply=apply
        )
    for one in made:
        print_line(one.path)
    if push_to is not None:
        print_line(push_results(folder, [one.path for one in made], push_to))


@friendly
def report(
    results: ResultsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. [default: report inside the results folder; of results, here]")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Folder of task files of your own, for their prompts; repeatable.")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Share picture files with the results folder instead of copying them.")
    ] = False,
    features: Annotated[
        int, typer.Option(min=0, help="Also make pages of the N features chosen most often in each block.")
    ] = 0,
    feature_limit: Annotated[int, typer.Option(min=1, help="How many prompts these pages look at.")] = 64,
    device: DeviceOption = "auto",
    scorer: Annotated[
        str | None, typer.Option(help="The CLIP that measures on these pages, or none. [default: the model's]")
    ] = None,
    offline: OfflineOption = False,
    open_page: OpenOption = False,
) -> None:
    """Write a page with leaderboard, trade-off, blocks and every picture.

    It opens from disk without network.
    """
    from riebench.report import write_report
    from riebench.report.feature_choice import ReportFeatures
    from riebench.store.remote import is_address
    from riebench.tasks.suites import load_suite
    from riebench.utils.hub import offline_mode

    folder = results_to_read(results, offline=offline)
    # Nothing is written into the hub's cache.
    place = Path() if results is not None and is_address(results) else documents_folder(folder)
    tasks = [task for name in suite or () for task in load_suite(name)]
    maker = ReportFeatures(device, offline, feature_limit, say, scorer)
    with offline_mode(offline):
        written = write_report(
            folder, out or place / "report", tasks, link=link, features=features, make_features=maker
        )
    say(written.summary)
    print_line(written.page)
    if open_page:
        typer.launch(str(written.page.resolve()))


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
    pause_collector()
    from riebench.analysis.export import DATASET, check_formats
    from riebench.analysis.export import export as write

    chosen = check_formats(split_names(formats))
    if push_to is not None and DATASET not in chosen:
        raise RiebenchError("--push-to uploads the dataset; add --format dataset")
    if push_to is not None:
        from riebench.analysis.export import check_hub_name

        check_hub_name(push_to)
    folders = folders_in(results_to_read(results))
    for path in write(folders, out, chosen):
        print_line(path)
    if DATASET in chosen:
        from riebench.analysis.export import push, save_dataset, to_dataset
        from riebench.tasks.suites import load_suite

        made = to_dataset(folders, [task for name in suite or () for task in load_suite(name)])
        print_line(save_dataset(made, out / DATASET))
        if push_to is not None:
            push(made, push_to)
            print_line(f"https://huggingface.co/datasets/{push_to}")


validity_app = CommandGroup(invoke_without_command=True, rich_markup_mode=None)


@validity_app.callback()
@friendly
def validity(
    context: typer.Context,
    results: ResultsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Markdown file whose marked parts are filled; figures go to images/ beside it. "
            "[default: docs/validity.md]"
        ),
    ] = None,
    check: UpToDateOption = False,
) -> None:
    """Hold scores against the truth, where it is known: the toy world's judge."""
    if context.invoked_subcommand is not None:
        if results is not None or out is not None or check:
            raise RiebenchError(f"write options after the word {context.invoked_subcommand}")
        return
    pause_collector()
    from riebench.analysis.validity.document import fill_validity

    paths = fill_validity(folders_in(results_to_read(results)), out or Path("docs/validity.md"), check=check)
    say_written(paths, check)


@validity_app.command("saes")
@friendly
def validity_saes(
    work: Annotated[
        Path | None,
        typer.Option(
            help="Make SAEs of known quality and their pictures in this folder, or go on there. "
            "[default: make nothing, read what is stored]"
        ),
    ] = None,
    only_measure: Annotated[
        bool, typer.Option("--only-measure", help="With --work: measure what the folder holds, and make no more.")
    ] = False,
    rungs: Annotated[str | None, typer.Option(help="Only these rungs, with commas between. [default: all]")] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds of each rung, with commas between.")] = "0,1,2",
    picture_seeds: Annotated[
        str, typer.Option(help="Picture seeds; all but the first are for the noise of two rungs alone.")
    ] = "0,1",
    limit: Annotated[int, typer.Option(min=2, help="Examples of each category.")] = 3,
    block_limit: Annotated[
        int, typer.Option(min=1, help="Examples of each category whose blocks are also edited one at a time.")
    ] = 2,
    stored: Annotated[Path, typer.Option(help="Folder of the values that the document is made from.")] = Path(
        "results/validity"
    ),
    out: Annotated[
        Path, typer.Option(help="Markdown file to write; parts on SAEs of validity.md beside it are filled as well.")
    ] = Path("docs/validity-saes.md"),
    check: UpToDateOption = False,
) -> None:
    """Hold every measure of SAEs against SAEs whose quality is known."""
    if check and work is not None:
        raise RiebenchError("--check looks at what is stored; leave --work out")
    if only_measure and work is None:
        raise RiebenchError("--only-measure needs the folder: --work FOLDER")
    options = {
        "--work": work, "--rungs": rungs, "--seeds": seeds, "--picture-seeds": picture_seeds, "--limit": limit,
        "--block-limit": block_limit,
    }  # fmt: skip
    command = " ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    from riebench.sae_validity.document.parts import fill_documents
    from riebench.sae_validity.results import LadderResults
    from riebench.sae_validity.study.bars import Study

    if work is not None:
        from riebench.sae_validity.job import run_ladder
        from riebench.sae_validity.pictures import LadderRequest

        request = LadderRequest(
            work, training_seeds=parse_seeds(seeds), rungs=tuple(split_names(rungs)), limit=limit,
            block_limit=block_limit, picture_seeds=parse_seeds(picture_seeds),
        )  # fmt: skip
        made = run_ladder(request, f"riebench validity saes {command}", say, only_measure=only_measure)
        for path in made.write(stored):
            print_line(path)
    pause_collector()
    study = Study(LadderResults.read(stored))
    say_written(fill_documents(study, out, out.with_name("validity.md"), check=check), check)


@friendly
def agreement(
    results: ResultsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what is written. [default: tables/ of each suite and model]")
    ] = None,
    check: UpToDateOption = False,
) -> None:
    """Compare scorers with each other, category by category: a table and a figure."""
    pause_collector()
    from riebench.analysis.validity.scorers import write_agreement

    if out is None:
        refuse_remote(results)
    paths = write_agreement(folders_in(results_to_read(results)), out, check=check)
    say_written(paths, check)


@friendly
def curves(
    results: ResultsOption = None,
    out: Annotated[
        Path,
        typer.Option(help="Markdown file whose marked parts are filled; its CSV file and images/ go beside it."),
    ] = Path("docs/response-curves.md"),
    check: UpToDateOption = False,
) -> None:
    """Show how gain, distance and artifacts follow the edit strength."""
    pause_collector()
    from riebench.analysis.tradeoff.response.document import fill_response

    paths = fill_response(folders_in(results_to_read(results)), out, check=check)
    say_written(paths, check)

"""The command line: parsing and printing. Everything heavy is imported inside the verbs, so that help is instant."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from riebench import __version__
from riebench.errors import RiebenchError

if TYPE_CHECKING:
    from riebench.store import RunFolder

P = ParamSpec("P")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
DEBUG_FLAG = "--debug"

# Help text without boxes needs no import of rich, which alone would take a third of the time that help may take.
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
tasks_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List and check task files.")
app.add_typer(tasks_app, name="tasks")

ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--results", help="Folder for everything that is written. [default: results/ and leaderboard.md here]"
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]


def say(text: str) -> None:
    """Prints a line for people on standard error, so that standard output holds results alone."""
    print(text, file=sys.stderr)


def friendly(verb: Callable[P, None]) -> Callable[P, None]:
    """Turns what a user can cause into one line and an exit code; `--debug` shows the traceback too."""

    @wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except KeyboardInterrupt:
            say("\nriebench: stopped; everything finished so far is kept, and the same command goes on from there")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (`| head`) is gone; point stdout elsewhere so that Python's own flush at exit stays quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (RiebenchError, OSError) as error:
            if _debugging():
                traceback.print_exc()
            say(f"riebench: {_one_line(error)}")
            raise typer.Exit(EXIT_USER_ERROR) from None

    return wrapped


def _one_line(error: RiebenchError | OSError) -> str:
    if isinstance(error, RiebenchError):
        return " ".join(str(error).split())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; everything finished so far is kept: free some space and repeat the same command"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{error.filename or 'a file'} cannot be written ({error.strerror}); use another folder with --results"
    # A folder in the place of a file, a lost network drive, a hub that does not answer: the system's own words.
    words = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


def _debugging() -> bool:
    return bool(os.environ.get("RIEBENCH_DEBUG"))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"riebench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG_FLAG, help="Show tracebacks; works anywhere on the line.")] = False,
) -> None:
    """What sparse autoencoder features of SDXL do to pictures: interventions, scores, per-block tables.

    `riebench run` alone is the main job: the toy suite with every official setting, scores, tables and leaderboard.
    """


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RiebenchError(f"--seeds {text!r}: write seed numbers with commas between, such as 0,1,2") from error
    if len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise RiebenchError(f"--seeds {text!r}: use each number once, from 0 on")
    return numbers


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _places(results: Path | None) -> tuple[Path, Path]:
    """The results folder and the leaderboard: both inside --results, or in the working directory."""
    if results is None:
        return Path("results"), Path("leaderboard.md")
    return results, results / "leaderboard.md"


@app.command()
@friendly
def run(
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings by name or YAML file; all official ones if none.")
    ] = None,
    suite: Annotated[str, typer.Option(help="A shipped suite, or a folder of task files.")] = "toy",
    model: Annotated[
        str | None, typer.Option(help="Preset, folder, single file or hub id. [default: the suite's]")
    ] = None,
    sae: Annotated[
        str | None, typer.Option(help="SAEs: a folder or hf://ID[@REVISION]. [default: the model's]")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="each, together, both, or block names with commas between.")
    ] = None,
    categories: Annotated[str | None, typer.Option(help="Only these categories, with commas between.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale. [default: the model's]")] = None,
    seeds: Annotated[str, typer.Option(help="Which seeds of each example, with commas between.")] = "0",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N examples of each category.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures generated at a time. [default: by device]")
    ] = None,
    device: DeviceOption = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: the model's]")] = None,
    results: ResultsOption = None,
    redo: Annotated[
        str, typer.Option(help="missing: only what is not done; errors: failed ones too; all.")
    ] = "missing",
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
) -> None:
    """Generate, score and tabulate. Repeating a command does only what is missing."""
    from riebench.job import Job

    folder, board = _places(results)
    job = Job(
        suite=suite,
        settings=tuple(settings or ()),
        model=model,
        sae=sae,
        blocks=blocks,
        categories=_words(categories),
        steps=steps,
        guidance=guidance,
        seeds=_numbers(seeds),
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        results=folder,
        leaderboard=board,
        redo=redo,
        offline=offline,
    )
    job.run(say)


@app.command()
@friendly
def score(
    results: ResultsOption = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Folder of task files of your own that runs were made from; repeatable.")
    ] = None,
    scorer: Annotated[str | None, typer.Option(help="The CLIP that scores. [default: the model's]")] = None,
    metrics: Annotated[str | None, typer.Option(help="Only these metrics, with commas between.")] = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures scored at a time.")] = 32,
) -> None:
    """Compute the scores that stored pictures still lack."""
    from riebench.job import pick_device
    from riebench.scoring import score as compute
    from riebench.suites import load_suite

    folders = _folders(_places(results)[0])
    report = compute(
        folders,
        [task for name in suite or () for task in load_suite(name)],
        scorer=scorer,
        metrics=_words(metrics) or None,
        device=pick_device(device),
        batch_size=batch_size,
    )
    say(report.summary)


@app.command()
@friendly
def tables(
    results: ResultsOption = None,
    document: Annotated[
        list[Path] | None, typer.Option(help="Also fill the parts of this Markdown file marked for tables.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the files are up to date.")] = False,
) -> None:
    """Write the tables of every suite and model from stored scores."""
    from riebench.documents import fill_document
    from riebench.tables import check_all, write_all

    folders = _folders(_places(results)[0])
    paths = check_all(folders) if check else write_all(folders)
    for file in document or ():
        fill_document(file, check=check)
    if check:
        say(f"{len(paths) + len(document or ())} files are up to date")
    else:
        for path in (*paths, *(document or ())):
            print(path)


@app.command()
@friendly
def leaderboard(
    results: ResultsOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the file is up to date.")] = False,
) -> None:
    """Write leaderboard.md from the results folder alone."""
    from riebench.leaderboard import check_leaderboard, write_leaderboard

    folder, board = _places(results)
    if check:
        check_leaderboard(folder, board)
        say(f"{board} is up to date")
    else:
        write_leaderboard(folder, board)
        print(board)


@tasks_app.command("list")
@friendly
def list_tasks() -> None:
    """List suites, tasks and official settings."""
    from riebench.suites import load_suite, setting_names, suite_names

    for suite in suite_names():
        print(suite)
        for task in load_suite(suite):
            print(f"  {task.name}@{task.version}  {len(task.examples)} examples  {task.content_hash}")
        print(f"  settings: {', '.join(setting_names(suite))}")


@tasks_app.command("check")
@friendly
def check_tasks(
    suites: Annotated[list[str] | None, typer.Argument(help="Suites or folders; all shipped ones if none.")] = None,
) -> None:
    """Load and check every task and setting file."""
    from riebench.checks import check_suite
    from riebench.suites import suite_names

    for suite in suites or suite_names():
        say(check_suite(suite))


def _folders(results: Path) -> list[RunFolder]:
    from riebench.store import run_folders

    folders = run_folders(results)
    if not folders:
        raise RiebenchError(f"{results} holds no runs; `riebench run` makes them")
    return folders


def main() -> None:
    """Entry point of the `riebench` command."""
    if DEBUG_FLAG in sys.argv:
        # Understood before and after the verb alike.
        sys.argv = [argument for argument in sys.argv if argument != DEBUG_FLAG]
        os.environ["RIEBENCH_DEBUG"] = "1"
    app()

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.jobs.request import RunRequest, blocks_option
from riebench.jobs.summary import print_per_block
from riebench.store.folder import RunFolder

RUNNER = CliRunner()


def refuse(*arguments: str) -> str:
    """Runs a command that must fail with exit code 2 and end with one line for people; returns the line."""
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    *before, last = result.stderr.strip().splitlines()
    assert last.startswith("riebench: ")
    assert all(line.startswith("loading ") for line in before)
    return last


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    # Processor time, not the clock: the promise is for a machine that is not busy with other things.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "riebench", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert all(verb in done.stdout for verb in ("run", "score", "tables", "leaderboard", "tasks"))
    code = (
        "import sys, riebench.cli.main; print(any(m in sys.modules for m in ('torch', 'diffusers', 'pandas', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "sea"], "unknown configuration 'sea' (did you mean 'sae'?)"),
        (["run", "--suite", "tyo"], "unknown suite 'tyo' (did you mean 'toy'?)"),
        (["run", "--categories", "change_colour"], "unknown category 'change_colour' (did you mean 'change_color'?)"),
        (["run", "--redo", "al"], "--redo 'al' (did you mean 'all'?)"),
        (["run", "--seeds", "1,x"], "--seeds '1,x': write seed numbers"),
        (["run", "--seeds", "1,1"], "use each number once"),
        (["run", "sae", "--blocks", "mid.o"], "mid.o"),
        (["run", "sae", "--blocks", "all"], "--blocks 'all': write each, together (all in one edit), both, or block"),
        (["run", "--profile", "xyz"], "unknown profile 'xyz' (known: default, paper, piebench)"),
        (["run", "mine.yaml"], "there is no file mine.yaml"),
        (["run", "no_edit", "--model", "toy-trubo"], "toy-turbo"),
        (["run", "no_edit", "--dtype", "float61"], "float16"),
        (["tasks", "check", "nowhere"], "unknown suite 'nowhere'"),
        (["tables", "--results", "nowhere"], "nowhere holds no runs"),
        (["score", "--results", "nowhere"], "nowhere holds no runs"),
        (["leaderboard", "--check", "--results", "nowhere"], "is missing; make it with `riebench leaderboard`"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refuse(*arguments)
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_bad_parameters_name_the_nearest(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("method: sae\nparams: {n_feature: 3}\naccess: PAM\n")
    assert "has no parameter 'n_feature' (did you mean 'n_features'?)" in refuse("run", str(mine))
    mine.write_text("method: sae\nblocks: [mid.9.9.9]\naccess: PAM\n")
    assert "mid.9.9.9" in refuse("run", str(mine))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "everything finished so far is kept, and the same command goes on"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "results"), 2, "or write to another folder with --results"),
        (RiebenchError("two\nlines"), 2, "riebench: two lines"),
    ],
)
def test_what_goes_wrong_underway_is_one_clear_line(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: RunRequest, say: object) -> None:
        raise error

    monkeypatch.setattr("riebench.jobs.run.run_job", fail)
    result = RUNNER.invoke(app, ["run"])
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: RunRequest, say: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("riebench.jobs.run.run_job", fail)
    assert isinstance(RUNNER.invoke(app, ["run"]).exception, ZeroDivisionError)


def test_debug_shows_the_traceback_anywhere_on_the_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "riebench", "tables", "--results", str(tmp_path)]
    quiet = subprocess.run(command, capture_output=True, text=True, check=False)
    loud = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert (quiet.returncode, loud.returncode) == (2, 2)
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_tables_and_leaderboard_from_stored_results(filled: RunFolder) -> None:
    results = filled.path.parents[2]
    made = RUNNER.invoke(app, ["tables", "--results", str(results)])
    assert made.exit_code == 0
    assert [Path(line).name for line in made.stdout.split()] == [
        "per_block.md",
        "per_category.md",
        "per_method.md",
        "feature_share.md",
        "switched.md",
    ]
    assert RUNNER.invoke(app, ["leaderboard", "--results", str(results)]).exit_code == 0
    assert RUNNER.invoke(app, ["leaderboard", "--check", "--results", str(results)]).exit_code == 0
    board = (results / "leaderboard.md").read_text()
    assert "### Inputs used: prompt + target activations + masks" in board and "| – | sae | " in board
    assert "toy,toy-turbo,default,PAM,PAM,,sae,,model ab,all,1," in (results / "leaderboard.csv").read_text()


def test_options_reach_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[RunRequest] = []
    monkeypatch.setattr("riebench.jobs.run.run_job", lambda request, say: seen.append(request))
    line = "run sae no_edit --seeds 0,2 --limit 3 --categories change_pose,change_color --offline --results"
    assert RUNNER.invoke(app, [*line.split(), str(tmp_path)]).exit_code == 0
    job = seen[0]
    assert (job.settings, job.seeds, job.limit, job.offline) == (("sae", "no_edit"), (0, 2), 3, True)
    assert job.categories == ("change_pose", "change_color")
    assert (job.results, job.leaderboard) == (tmp_path, tmp_path / "leaderboard.md")


def test_blocks_option() -> None:
    assert blocks_option("each") == {"block_mode": "each"}
    assert blocks_option("mid.0, down_blocks.2.attentions.1") == {
        "blocks": ("mid.0", "down.2.1"),
        "block_mode": "together",
    }
    # A text stream has its block's path, and is another site.
    assert blocks_option("double.1/text,transformer_blocks.2")["blocks"] == ("double.1/text", "double.2")
    tasks, settings = RunRequest(settings=("sae", "no_edit"), blocks="up.0.1", limit=2).plan()
    assert [setting.blocks for setting in settings] == [("up.0.1",), ()]
    assert {len(task.examples) for task in tasks} == {2}


def test_the_printed_table_has_every_configuration(filled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    print_per_block([RunFolder(filled.path)])
    text = capsys.readouterr().out
    assert "mid.0" in text
    assert "+3.00" in text
    assert "6/6" in text


@pytest.mark.parametrize(("columns", "categories"), [(70, False), (200, True)])
def test_a_narrow_terminal_cuts_no_number(
    columns: int,
    categories: bool,
    filled: RunFolder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    print_per_block([RunFolder(filled.path)])
    text = Text.from_ansi(capsys.readouterr().out).plain
    assert "+3.00" in text and "6/6" in text and "…" not in text
    assert (" color " in text) == categories
    assert max(map(len, text.splitlines())) <= columns


def test_tasks_list_names_suites_and_settings() -> None:
    result = RUNNER.invoke(app, ["tasks", "list"])
    assert result.exit_code == 0
    assert "change_object@1  12 examples" in result.stdout

"""Help, wrong options, completion by shells, and log levels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer
from command_list import COMMANDS
from leaderboard_runs import add_run
from paths import ROOT
from typer.testing import CliRunner

from riebench.cli.commands import MANY_OPTIONS, OTHER_WORDS, PANELS, heading, own_options_first
from riebench.cli.main import app
from riebench.cli.results import stored
from riebench.cli.results.comparisons import _folders_of
from riebench.store.folder import find_run_folders
from riebench.utils.processes import helpers
from riebench.utils.terminal import LIBRARY_VARIABLES

RUNNER = CliRunner()


def test_long_help_has_headings_and_short_help_has_none() -> None:
    text = RUNNER.invoke(app, ["run", "--help"]).stdout
    places = [text.index(f"\n{title}:\n") for title in PANELS if title not in ("Training",)]
    assert places == sorted(places)
    device = text[text.index("\nDevice and memory:") : text.index("\nScoring:")]
    assert "--batch-size" in device and "--offload" in device and "--seeds" not in device
    model, files = text[text.index("\nModel:") :], text[text.index("\nFiles and repetition:") :]
    assert "--single-file-config" in model[: model.index("\nDevice and memory:")]
    assert "--config " in files[: files.index("\nNetwork and machines:")]
    assert "Device and memory" not in RUNNER.invoke(app, ["tables", "--help"]).stdout


def test_help_uses_the_fields_words() -> None:
    for words in COMMANDS:
        text = RUNNER.invoke(app, [*words, "--help"]).stdout.replace("--settings-set", "")
        assert re.findall(r"\b(?:settings?|knobs?|areas?|pieces?)\b", text, re.IGNORECASE) == [], words


def test_every_option_of_a_long_command_has_a_heading_and_no_heading_names_what_is_not_there() -> None:
    seen: set[str] = set()
    for words, command in COMMANDS.items():
        options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
        seen |= {str(one.name) for one in options}
        if len(options) >= MANY_OPTIONS:
            assert [one.name for one in options if heading(str(one.name)) == "Options"] == [], words
    assert {name for names in PANELS.values() for name in names} <= seen
    flags = {flag for command in COMMANDS.values() for one in command.params for flag in one.opts} | {"--log-level"}
    assert set(OTHER_WORDS.values()) <= flags


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["run", "--tasks", "x"],
            "there is no option --tasks (did you mean --categories?); `",
        ),
        (["run", "--bloks", "x"], "there is no option --bloks (did you mean '--blocks'?)"),
        (["sae", "feature", "mid.0", "1", "--output-folder", "x"], "(did you mean --out?)"),
        (["run", "--zzz"], "there is no option --zzz; "),
        (["run", "--limit", "0"], "Invalid value for '--limit'"),
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["sae", "feature"], "Missing argument"),
        (["run", "--log-level"], "--log-level ''"),
        (["--log-level", "dbug", "run"], "--log-level 'dbug' (did you mean 'debug'?)"),
    ],
)
def test_a_wrong_line_gives_one_line(line: list[str], message: str) -> None:
    result = RUNNER.invoke(app, line)
    assert result.exit_code == 2 and result.stdout == ""
    (text,) = result.stderr.splitlines()
    assert text.startswith("riebench: ") and message in text


def test_the_roots_options_stand_anywhere() -> None:
    assert own_options_first(["run", "--debug", "x", "--log-level", "error"]) == [
        "--debug", "--log-level=error", "run", "x",
    ]  # fmt: skip
    assert own_options_first(["run", "--", "--debug"]) == ["run", "--", "--debug"]


def complete(*words: str) -> list[str]:
    """What a shell offers for the last word, and whether torch was imported for it."""
    code = (
        "import sys\nfrom riebench.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('\\n' + ','.join({'torch', 'pandas', 'diffusers'} & {*sys.modules}))"
    )
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "_RIEBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("riebench", *words)), "COMP_CWORD": str(len(words)),
    }  # fmt: skip
    program = f"import sys; sys.argv = ['riebench']\n{code}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    *names, heavy = done.stdout.split("\n")[:-1]
    assert heavy == "", done.stderr
    return [name for name in names if name]


def test_shells_complete_names_without_heavy_imports() -> None:
    assert complete("run", "--suite", "") == ["photos", "sdxl", "toy", "toy-mixed"]
    assert complete("run", "--suite", "sdxl", "sae_k1") == ["sae_k160"]
    assert complete("score", "--metrics", "lpips,clip_g") == ["lpips,clip_gain", "lpips,clip_gain_2"]


def test_completion_of_every_kind_of_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(command: tuple[str, ...], name: str, start: str) -> list[str]:
        (one,) = (one for one in COMMANDS[command].params if one.name == name)
        context = typer.Context(COMMANDS[command])
        return [item.value for item in one.shell_complete(context, start)]

    assert offered(("run",), "model", "toy-") == ["toy-turbo", "toy-base", "toy-mixed", "toy-dit"]
    both = offered(("run",), "categories", "change_pose,change_c")
    assert {*both} == {"change_pose,change_color", "change_pose,change_content"}
    for name, start, one in (
        ("blocks", "mid", "mid.0"), ("dtype", "b", "bfloat16"), ("device", "c", "cuda"), ("redo", "a", "all"),
        ("engine", "r", "ray"), ("offload", "seq", "sequential"), ("attention", "fl", "flash"),
        ("profile", "pa", "paper"), ("regions", "att", "attention"), ("scorer", "clip", "clip-l14"),
        ("settings_set", "sw", "sweep"),
    ):  # fmt: skip
        assert one in offered(("run",), name, start), name
    monkeypatch.setattr("riebench.tasks.suites.shipped_suites", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert offered(("run",), "suite", "") == []


def test_the_script_of_a_shell_is_shown() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    line = [sys.executable, "-m", "riebench", "--show-completion", "bash"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "_RIEBENCH_COMPLETE=complete_bash" in done.stdout, done.stderr


PROBE = """
import logging, os, sys, warnings
from riebench.cli.commands import GroupedCommand
from riebench.cli.common import friendly, say
from riebench.cli.main import app, main
from riebench.errors import RiebenchError
from riebench.utils.terminal import ProgressBar, log, print_line

@app.command()
@friendly
def probe() -> None:
    log.debug("own debug")
    logging.getLogger("diffusers.models").info("library info")
    logging.getLogger("diffusers.models").warning("library warning")
    logging.getLogger("another").warning("other warning \\x1b[2J")
    warnings.warn("python warning")
    say("a note")
    print_line(f"bar {ProgressBar([1], title='x').shown}")
    print_line(os.environ.get("TRANSFORMERS_VERBOSITY"))
    raise RiebenchError("an error")

main()
"""


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (None, {"a note", "library warning", "other warning", "python warning"}),
        ("debug", {"a note", "own debug", "library info", "library warning", "other warning", "python warning"}),
        ("info", {"a note", "library warning", "other warning", "python warning"}),
        ("warning", {"library warning", "other warning", "python warning"}),
        ("error", set()),
    ],
)
def test_a_log_level_decides_what_is_said_beside_results(word: str | None, shown: set[str]) -> None:
    options = [] if word is None else ["--log-level", word]
    environment = {name: value for name, value in os.environ.items() if name not in LIBRARY_VARIABLES.values()}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['riebench', 'probe', *{options}]\n{PROBE}"],
        env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "riebench: an error", done.stderr
    texts = ("own debug", "library info", "library warning", "other warning", "python warning", "a note")
    assert {text for text in texts if text in done.stderr} == shown
    assert word is None or "\x1b" not in done.stderr
    level = {None: "None", "info": "warning"}.get(word, word)
    assert done.stdout == f"bar {word in (None, 'debug', 'info')}\n{level}\n"


def test_an_empty_folder_has_no_leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, ["leaderboard"])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and "holds no runs" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suite_is_no_heading() -> None:
    result = RUNNER.invoke(app, ["tasks", "list", "nope"])
    assert result.exit_code == 2 and result.stdout == "" and "unknown suite 'nope'" in result.stderr


def test_compare_takes_the_names_that_run_took(tmp_path: Path) -> None:
    for name, gain in (("good", 0.03), ("fair", 0.01)):
        add_run(tmp_path, name, gain)
    stored = RUNNER.invoke(app, ["compare", "good", "fair", "--results", str(tmp_path)])
    assert stored.exit_code == 0, stored.stderr
    line = [
        "compare",
        "good",
        "fair",
        "--results",
        str(tmp_path),
        "--model",
        "models/toy-turbo",
        "--suite",
        "tasks/toy",
    ]
    assert RUNNER.invoke(app, line).stdout == stored.stdout
    folders = find_run_folders(tmp_path)
    for model in ("toy-turbo", "./toy-turbo", "someone/toy-turbo@main", "riebench/toy-turbo"):
        assert _folders_of(folders, None, model) == folders, model
    assert _folders_of(folders, None, "toy") == folders, "the beginning of a name that says what was changed"
    assert _folders_of(folders, "sdxl", None) == [] == _folders_of(folders, "toy", "turbo")
    refused = RUNNER.invoke(app, ["compare", "good", "fair", "--results", str(tmp_path), "--model", "models/other"])
    assert refused.exit_code == 2 and "--model toy-turbo" in refused.stderr


def test_several_processes_make_the_same_tables_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, method in enumerate(("sae", "steer_one", "steer_two", "random")):
        add_run(tmp_path, method, 0.1 * number, second=True)

    def written() -> dict[Path, bytes]:
        for verb in ("tables", "leaderboard"):
            assert RUNNER.invoke(app, [verb, "--results", str(tmp_path)]).exit_code == 0
            assert RUNNER.invoke(app, [verb, "--results", str(tmp_path), "--check"]).exit_code == 0
        paths = [path for path in tmp_path.rglob("*") if path.suffix in (".md", ".csv")]
        texts = {path: path.read_bytes() for path in paths}
        for path in paths:
            path.unlink()
        return texts

    alone = written()
    assert len(alone) > 8
    pools: list[ProcessPoolExecutor] = []

    class CountedPool(ProcessPoolExecutor):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pools.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(helpers, "usable_cores", lambda: 2)
    monkeypatch.setattr(helpers, "ProcessPoolExecutor", CountedPool)
    assert written() == alone and not pools
    monkeypatch.setattr(stored, "LEAST_BYTES", 0)
    assert written() == alone and len(pools) == 4

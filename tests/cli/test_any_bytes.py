"""Arguments and paths of any bytes: every command works with them, or says in one line what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from command_list import COMMANDS
from leaderboard_runs import add_run
from paths import ROOT
from python_processes import run_python
from typer.testing import CliRunner

from riebench.cli.main import app

HOSTILE = ("\udcff\udcfe", "a\nb\x1b[2J\u202e", "é" * 3000)
"""Bytes that are no UTF-8 as Python passes them on; line ends and terminal codes; more than a path may hold."""

ENDS_AT_ONCE: dict[tuple[str, ...], list[str]] = {
    ("run",): ["no_edit", "--engine", "none"],
    ("doctor",): ["no_edit", "--engine", "none"],
    ("detect",): ["--detectors", "none"],
    ("sae", "feature"): ["mid.0", "x"],
    ("sae", "collect"): ["--model", "toy-turbo", "--prompts", "none.txt"],
    ("sae", "train"): ["none"],
    ("sae", "baselines"): ["none", "--kinds", "none"],
    ("sae", "speed"): ["--kind", "none"],
    ("validity", "saes"): ["--rungs", "none"],
    ("sae", "inspect"): ["none"],
    ("tasks", "import", "riebench"): ["none.json"],
    ("tasks", "import", "piebench"): ["none.json"],
    ("tasks", "import", "dataset"): ["none.csv"],
    ("compare",): ["a", "b"],
    ("diff",): ["a", "b"],
    ("compare-models",): ["none"],
    ("paper",): ["nothing"],
    ("elastic",): ["no_edit", "--distance", "none"],
}
"""Command -> arguments with which it would be refused anyway, so that nothing long begins."""

PROGRAM = """
import contextlib, io, json, sys, traceback
import typer.main
from riebench.cli.main import app
command = typer.main.get_command(app)
found = []
for line in json.loads(open(sys.argv[1]).read()):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command(line, prog_name='riebench')
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = traceback.format_exc()
    found.append([line, status, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


PROBE = """
from rich.table import Table
from riebench.cli.main import app, main
from riebench.utils.terminal import add_row, print_line, print_table

@app.command()
def probe() -> None:
    print_line("k \\u2013 \\u00e9")
    table = Table("x")
    add_row(table, "k \\u2026")
    print_table(table)

main()
"""


def hostile_lines() -> list[list[str]]:
    """Every command with such a text in the place of each of its arguments and options, one text after the other."""
    texts = cycle(HOSTILE)
    lines = [[text] for text in HOSTILE] + [[f"--{text}"] for text in HOSTILE]
    for words, command in COMMANDS.items():
        usual = ENDS_AT_ONCE.get(words, [])
        lines.append([*words, *usual, f"--{next(texts)}"])
        for one in command.params:
            if one.param_type_name == "argument":
                lines += [[*words, text, *usual[1:]] for text in HOSTILE]
            elif not one.is_flag:
                lines.append([*words, *usual, one.opts[0], next(texts)])
    return lines


def test_every_command_answers_hostile_arguments_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    lines = hostile_lines()
    assert len(lines) > 250
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    here = tmp_path / "here"
    here.mkdir()
    done = run_python("-c", PROGRAM, str(tmp_path / "lines.json"), environment=environment, cwd=here)
    assert done.returncode == 0, done.stderr
    for line, status, out, error in json.loads(done.stdout):
        assert status in (0, 2), (line, status)
        assert all(mark == "\n" or mark.isprintable() for mark in out + error), line
        assert status == 0 or (len(error.splitlines()) == 1 and error.startswith("riebench: ")), (line, error)
    assert [path.name for path in here.iterdir()] == []


def test_reading_commands_work_in_a_folder_of_any_name(tmp_path: Path) -> None:
    results = tmp_path / "re\nsults \x1b[2J é"
    add_run(results, "good", 0.03, levels=2)
    for words in (["tables"], ["leaderboard"], ["export", "--out", str(results / "out"), "--format", "csv"]):
        result = CliRunner().invoke(app, [*words, "--results", str(results)])
        assert result.exit_code == 0, result.stderr
        assert all(mark == "\n" or mark.isprintable() for mark in result.output)
    assert (results / "leaderboard.md").is_file() and list((results / "out").iterdir())


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}],
)
def test_a_terminal_without_unicode(locale: Mapping[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **locale}

    def call(*words: str | bytes, program: Sequence[str] = ("-m", "riebench")) -> subprocess.CompletedProcess[bytes]:
        line: Sequence[Any] = [sys.executable, *program, *words]
        return subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True)

    refused = call("tasks", "list", b"\xff\xfe")
    assert refused.returncode == 2 and refused.stderr.count(b"\n") == 1 and b"Traceback" not in refused.stderr
    named = call("tasks", "list", "f\u00e4rben")
    assert named.returncode == 2 and named.stderr.count(b"\n") == 1
    assert b"unknown suite" in named.stderr or b"set PYTHONUTF8=1" in named.stderr
    shown = call(program=("-c", f"import sys; sys.argv = ['riebench', 'probe']\n{PROBE}"))
    assert shown.returncode == 0 and shown.stdout.count(b"k") == 2, shown.stderr

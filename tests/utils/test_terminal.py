"""What is printed: no text of a file breaks a line, steers a terminal or is markup."""

from __future__ import annotations

import ast
import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_runs import add_run
from paths import ROOT
from rich.table import Table
from safetensors.torch import save_file
from scored_runs import stored_run
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import MAX_MESSAGE_LENGTH
from riebench.utils import terminal
from riebench.utils.markup import code_span, escape_markdown
from riebench.utils.terminal import ProgressBar, add_row, print_above_bars, print_document, print_line, print_table

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\reverything holds\n[red]x[/red] [link=file:///x]y[/link]\x00"


PRINTERS = re.compile(r"(\.add_row|console\.print|tqdm\.write|typer\.echo|std(out|err)\.write)$", re.IGNORECASE)


def is_plain(text: str) -> bool:
    """Nothing but printable characters and line ends."""
    return all(mark == "\n" or mark.isprintable() for mark in text)


@given(st.text())
def test_a_line_is_a_line(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        seen: list[str] = []
        patch.setattr("builtins.print", lambda words, **_: seen.append(words))
        patch.setattr("tqdm.tqdm.write", lambda words, **_: seen.append(words))
        print_line(text)
        print_line(text, err=True)
        print_above_bars(text)
        assert all(one.isprintable() and len(one) <= MAX_MESSAGE_LENGTH + 4 for one in seen) and len(seen) == 3
        print_document(text)
        assert seen[-1].count("\n") == text.removesuffix("\n").count("\n") and is_plain(seen[-1])
    assert all(unicodedata.category(mark) != "Cc" for mark in escape_markdown(text) + code_span(text))


def test_a_table_shows_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "value")
    add_row(table, EVIL, ":smile: [bold]b[/bold]")
    add_row(table, "x" * 300, "1")
    print_table(table)
    shown = capsys.readouterr().out
    assert is_plain(shown) and len(shown.splitlines()) == 6
    assert r"\x1b[2J" in shown and "[red]x[/red]" in shown and ":smile: [bold]b[/bold]" in shown and "x" * 300 in shown


def test_nothing_is_printed_past_these_functions() -> None:
    """One place prints; the makers of the shipped files, which read nothing of others, print their own lines."""
    own = {"utils/terminal.py", "models/assets.py"}
    found = []
    for file in sorted((ROOT / "riebench").rglob("*.py")):
        name = file.relative_to(ROOT / "riebench").as_posix()
        if name in own or name.startswith("toyworld/"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "print" or PRINTERS.search(called):
                    found.append(f"{name}:{node.lineno} {called}")
        for imported in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(imported, ast.Import | ast.ImportFrom) and "tqdm" in ast.unparse(imported):
                found.append(f"{name}:{imported.lineno} {ast.unparse(imported)}")
    assert not found


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of progress, standing still."""
    made = Clock()
    monkeypatch.setattr(terminal, "clock", made)
    return made


def test_progress_is_a_line_for_every_tenth_where_there_is_no_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in ProgressBar(range(200), title="toy-turbo", unit="image"):
        clock.now += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "toy-turbo:  10% (20 of 200 images), 2 images/s, 00:10 passed, 01:30 left"
    assert lines[-1] == "toy-turbo: 100% (200 of 200 images), 2 images/s, 01:40 passed"


def test_slow_progress_has_a_line_a_minute_and_quick_work_none(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar: ProgressBar[None] = ProgressBar(title="collect", unit="picture", total=1000, first=100)
    for _ in range(7):
        clock.now += 25
        bar.update()
        bar.note(loss="0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "collect:  10% (103 of 1000 pictures), 25 s/picture, 01:15 passed, 6:13:45 left, loss=0.5",
        "collect:  11% (106 of 1000 pictures), 25 s/picture, 02:30 passed, 6:12:30 left, loss=0.5",
    ]
    bar.close()
    bar.close()
    assert capsys.readouterr().err.startswith("collect:  11% (107 of 1000 pictures)")
    with ProgressBar[None](title="stream", unit="prompt") as unknown:
        clock.now += 61
        unknown.update(122)
    assert capsys.readouterr().err == "stream: 122 prompts, 2 prompts/s, 01:01 passed\n"
    for _ in ProgressBar(range(1000), title="quick"):
        clock.now += 0.0005
    for hidden in (ProgressBar(range(20), title="x", shown=False), ProgressBar([], title="x")):
        for _ in hidden:
            clock.now += 100
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_in_a_terminal_and_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for _ in ProgressBar(range(3), title=EVIL, unit="image"):
        pass
    shown = capsys.readouterr().err
    assert "100%|" in shown and "3/3" in shown and "\r" in shown and "\x1b[2J" not in shown
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    made: list[dict[str, Any]] = []

    class Bar:
        """The notebook's own kind."""

        def __init__(self, **options: Any) -> None:
            made.append(options)

        def update(self, count: int) -> None:
            made[-1]["done"] = made[-1].get("done", 0) + count

        def close(self) -> None:
            made[-1]["closed"] = True

    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    for _ in ProgressBar(range(3), title="play", unit="image"):
        pass
    assert (made[0]["desc"], made[0]["total"], made[0]["done"], made[0]["closed"]) == ("play", 3, 3, True)
    assert capsys.readouterr().err == ""


def test_an_error_leaves_the_last_state_behind(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        for number in ProgressBar(range(100), title="run", unit="image"):
            clock.now += 1
            if number == 4:
                raise KeyboardInterrupt
    assert capsys.readouterr().err == "run:   4% (4 of 100 images), 1.25 s/image, 00:05 passed, 02:00 left\n"


def hostile_run(place: Path) -> Path:
    """A stored run whose words try to be lines and terminal codes."""
    folder = stored_run(place)
    record: Any = folder.records()[0]
    folder.append(record.model_copy(update={"status": "error", "reason": EVIL, "image": None, "cluster": EVIL}))
    meta = json.loads((folder.path / "run.json").read_text())
    meta["spec"]["setting"]["description"] = meta["spec"]["model"]["source"] = meta["run_id"] = EVIL
    (folder.path / "run.json").write_text(json.dumps(meta))
    return folder.path


def hostile_sae(place: Path) -> Path:
    place.mkdir(parents=True)
    weights = {"encoder.weight": torch.ones(8, 4), "encoder.bias": torch.ones(8), "decoder.weight": torch.ones(4, 8),
               "pre_bias": torch.ones(4)}  # fmt: skip
    save_file(weights, place / "sae.safetensors", metadata={"note": EVIL, "format": EVIL})
    (place / "config.json").write_text(json.dumps({"k": 2, EVIL: EVIL, "architecture": EVIL}))
    return place


def hostile_suite(place: Path) -> Path:
    place.mkdir(parents=True)
    task = {"category": EVIL, EVIL: 1, "version": 1, "examples": [{"id": EVIL, "source": EVIL, "target": EVIL}]}
    (place / "change_color.yaml").write_text(json.dumps(task))
    return place


@pytest.mark.parametrize("verb", ["verify", "compare", "tables", "leaderboard", "export", "inspect", "check", "list"])
def test_no_word_of_a_file_steers_the_terminal(tmp_path: Path, verb: str) -> None:
    results = tmp_path / "results"
    run, sae, suite = hostile_run(results), hostile_sae(tmp_path / "sae"), hostile_suite(tmp_path / "suite")
    add_run(results, "good", 0.03, levels=2)
    arguments = {
        "verify": ["leaderboard", "--verify", str(run), "--suite", str(suite)],
        "compare": ["compare", "sae", EVIL, "--results", str(results)],
        "tables": ["tables", "--results", str(results)],
        "leaderboard": ["leaderboard", "--results", str(results)],
        "export": ["export", "--results", str(results), "--out", str(tmp_path / "out"), "--format", "csv"],
        "inspect": ["sae", "inspect", str(sae)],
        "check": ["tasks", "check", str(suite)],
        "list": ["tasks", "list", str(suite)],
    }[verb]
    result = CliRunner().invoke(app, arguments)
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    assert is_plain(result.output) and "everything holds\n" not in result.output
    assert result.output.strip()
    for document in results.rglob("*.md"):
        assert is_plain(document.read_text())


def test_a_failed_units_reason_is_shown_on_one_line(tmp_path: Path) -> None:
    from scored_runs import TASKS

    from riebench.jobs.run import say_failures
    from riebench.scoring.verify import verify
    from riebench.store.folder import RunFolder

    run = RunFolder(hostile_run(tmp_path))
    findings = verify(run.path, TASKS).findings
    assert any(EVIL[:5] in finding for finding in findings)
    lines: list[str] = []
    say_failures([run], lines.append)
    assert lines and EVIL in lines[0]

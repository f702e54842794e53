"""What is printed: no text of a file breaks a line, steers a terminal or is markup."""

from __future__ import annotations

import ast
import json
import re
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
from riebench.utils.markup import code_span, escape_markdown
from riebench.utils.terminal import add_row, print_above_bars, print_document, print_line, print_table

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
    assert not found


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

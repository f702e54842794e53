"""The examples of docs/python.md, executed from top to bottom as the cells of a notebook are."""

from __future__ import annotations

import linecache
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

import riebench

DOCUMENT = ROOT / "docs" / "python.md"


def run_cell(number: int, code: str, names: dict[str, Any]) -> None:
    """Execute code whose source can be found afterwards, as that of a notebook's cell can."""
    file = f"<python.md {number}>"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    exec(compile(code, file, "exec"), names)


def test_the_examples_of_the_document_run(
    toy_results: riebench.Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The first example then has nothing left to make.
    shutil.copytree(toy_results.folder, "runs")
    asked: list[str] = []

    def fetch_results(address: str, *, offline: bool) -> Path:
        asked.append(address)
        return tmp_path / "runs"

    monkeypatch.setattr("riebench.store.remote.fetch_results", fetch_results)
    # Usual sizes of features are measured on fewer prompts, in a fraction of the time.
    monkeypatch.setattr("riebench.features.painter.SAMPLE", 4)
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    for number, code in enumerate(blocks):
        run_cell(number, code, names)
    assert len(blocks) >= 9 and asked == ["hf://datasets/OWNER/NAME"]
    assert len(names["results"].frame()) == len(toy_results.frame())
    assert names["best"]["clip_gain"] == names["frame"]["clip_gain"].max()
    assert names["pictures"].features["up.0.1"].add
    assert names["by_hand"].edited != names["by_hand"].source
    assert names["scored"].frame()["brightness_change"].notna().all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    printed = capsys.readouterr().out
    assert re.search(r"half_patch-[0-9a-f]{8} minus sae", printed)
    assert "unknown configuration 'sea' (did you mean 'sae'?)" in printed


def test_what_commands_print_is_logged(toy_results: riebench.Results, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "riebench"):
        riebench.score(toy_results, device="cpu", progress=False)
    assert [record.name for record in caplog.records if "scores added" in record.message] == ["riebench"]

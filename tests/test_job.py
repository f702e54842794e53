"""The main job from files to tables, on a tiny random SDXL; only the scoring networks are stood in for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder, tiny_saes

import riebench.scoring
from riebench.errors import RiebenchError
from riebench.job import Job, pick_device
from riebench.schema import ScoreRecord
from riebench.scoring import ScoreReport
from riebench.store import RunFolder, run_folders

TASK = """\
category: change_color
version: 1
examples:
  - id: one
    source: a red cat
    target: a blue cat
    source_region: whole
    target_region: whole
  - id: two
    source: a red dog
    target: a grey dog
    source_region: whole
    target_region: whole
"""


def fake_score(folders: Sequence[RunFolder], tasks: Any, **_: Any) -> ScoreReport:
    """Gives every picture that has no score yet one: 0 for the unedited picture, more for all others."""
    for folder in folders:
        known = folder.scores()
        gain = 0.0 if folder.spec.setting.method == "no_edit" else 0.02
        with folder.writing() as run:
            for record in run.records():
                unit = record.key.digest
                if (unit, "clip_gain") not in known:
                    run.append_scores([ScoreRecord(unit=unit, metric="clip_gain", version=1, value=gain)])
    return ScoreReport()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Two examples, two settings, one of them on each block and on all together."""
    suite = tmp_path / "mine"
    suite.mkdir()
    (suite / "change_color.yaml").write_text(TASK)
    setting = tmp_path / "features.yaml"
    setting.write_text(f"method: sae\nparams: {{n_features: 3}}\nblock_mode: both\naccess: PAM\nsae: {tiny_saes()}\n")
    monkeypatch.setattr(riebench.scoring, "score", fake_score)
    return Job(
        suite=str(suite),
        settings=("no_edit", str(setting)),
        model=str(tiny_folder()),
        steps=2,
        guidance=0.0,
        device="cpu",
        results=tmp_path / "out",
        leaderboard=tmp_path / "out" / "leaderboard.md",
    )


def test_from_files_to_tables_and_nothing_twice(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    job.run(lines.append)
    folders = {folder.spec.setting.name: folder for folder in run_folders(job.results)}
    assert {name: len(folder.records()) for name, folder in folders.items()} == {"no_edit": 2, "features": 10}
    assert all(record.status == "ok" for folder in folders.values() for record in folder.records())
    printed = capsys.readouterr().out
    assert all(block in printed for block in ("down.2.1", "mid.0", "up.0.0", "up.0.1", "all"))
    model_folder = folders["features"].path.parent
    assert "+2.00 [+2.00, +2.00] 2/2" in (model_folder / "tables" / "per_block.md").read_text()
    assert "| 1 | features | all | PAM |" in job.leaderboard.read_text()
    assert folders["features"].provenance["device"] == "cpu"
    assert any(str(job.leaderboard) in line for line in lines)

    before = {path: path.read_bytes() for path in job.results.rglob("*.jsonl")}
    job.run(lines.append)
    assert {path: path.read_bytes() for path in job.results.rglob("*.jsonl")} == before


def test_no_edit_is_the_source_picture(job: Job) -> None:
    replace(job, settings=("no_edit",)).run(lambda _: None)
    (folder,) = run_folders(job.results)
    for record in folder.records():
        edited = folder.read_image(record.image or "")
        assert (edited == folder.shared.read_image(record.source_image or "")).all()


def test_more_examples_continue_and_other_parameters_are_refused(job: Job) -> None:
    features = Path(job.settings[1])
    replace(job, settings=(str(features),), limit=1, blocks="mid.0").run(lambda _: None)
    replace(job, settings=(str(features),), blocks="mid.0").run(lambda _: None)
    (folder,) = run_folders(job.results)
    assert [record.key.example_id for record in folder.records()] == ["one", "two"]
    features.write_text(features.read_text().replace("n_features: 3", "n_features: 4"))
    with pytest.raises(RiebenchError, match=r"params\.n_features is 3 there and 4 here"):
        replace(job, settings=(str(features),), blocks="mid.0").run(lambda _: None)


def test_a_long_prompt_is_told_before_generating(job: Job) -> None:
    file = Path(job.suite) / "change_color.yaml"
    file.write_text(TASK.replace("a grey dog", "a dog " + "and a cat " * 20))
    with pytest.raises(RiebenchError, match=r"two: target has \d+ tokens"):
        job.run(lambda _: None)
    assert not job.results.exists()


def test_device_words() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")

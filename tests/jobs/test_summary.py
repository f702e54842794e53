"""The end of a run: what is printed, and what is brought up to date."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from tiny_jobs import job_lines

import riebench.jobs.summary
from riebench.cli.common import documents_folder, results_to_read, results_to_write
from riebench.jobs.request import RunRequest
from riebench.jobs.summary import PlannedPart, may_rebuild, print_per_block
from riebench.runs.plan import Unit
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.suites import load_suite

UNUSED = {"pandas", "pyarrow", "datasets", "ray", "statsmodels", "sklearn", "tensorflow", "IPython"}
"""Packages that the quickest look has no use for."""
MOST_FULL_COLLECTIONS = 5
"""Passes of the garbage collector over all objects in a short run; loading alone would make some twenty."""
QUICK_LOOK = """
import atexit, gc, json, sys
passes = [0, 0, 0]
gc.callbacks.append(lambda phase, about: passes.__setitem__(about["generation"], passes[about["generation"]] + 1))
def report():
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"loaded": loaded, "passes": passes[2] / 2, "frozen": gc.get_freeze_count()}))
atexit.register(report)
from riebench.cli.main import main
sys.argv = ["riebench", "run", sys.argv[1], "--limit", "1", "--categories", "change_color"]
main()
"""


def test_a_quick_look_imports_what_it_uses_and_writes_to_runs(tmp_path: Path) -> None:
    setting = ROOT / "baselines" / "toy" / "sae.yaml"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", QUICK_LOOK, str(setting)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout.splitlines()[-1])
    assert UNUSED & set(about["loaded"]) == set() and {"torch", "diffusers", "open_clip"} <= set(about["loaded"])
    # Loading is not interrupted by searches for garbage, and neither is the end of the process.
    assert about["passes"] <= MOST_FULL_COLLECTIONS and about["frozen"] > 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    written = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert {"runs/leaderboard.md", "runs/report/index.html", "runs/toy/toy-turbo/sae/run.json"} <= set(written)
    if (ROOT / ".git").exists():
        ignored = subprocess.run(
            ["git", "check-ignore", "--no-index", "--stdin"], cwd=ROOT, input="\n".join(written), capture_output=True,
            text=True,
        ).stdout.splitlines()  # fmt: skip
        assert ignored == written


def test_commands_find_published_results_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    assert (results_to_write(None), results_to_read(None)) == (Path("runs"), Path("runs"))
    run = tmp_path / "results/toy/toy-turbo/sae"
    run.mkdir(parents=True)
    (run / "run.json").touch()
    assert (results_to_write(None), results_to_read(None)) == (Path("runs"), Path("results"))
    assert results_to_write(Path("mine")) == results_to_read(Path("mine")) == Path("mine")
    assert [documents_folder(Path(name)) for name in ("results", "runs")] == [Path(), Path("runs")]


def test_only_the_units_of_the_command_are_printed(filled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [record.key for record in filled.records() if record.key.category == "change_color"]
    keys = [key for key in keys if key.block_set == "all" and not key.example_id.endswith("2")]
    other, (task, *_) = filled.spec.setting.model_copy(update={"name": "other"}), load_suite("toy", limit=1)
    units = [Unit(filled.spec.setting, task, task.examples[0], (), key) for key in keys]
    units += [Unit(other, task, task.examples[0], (), record.key) for record in filled.records()]
    part = PlannedPart(filled, units)
    assert part.expected == {("change_color", "all", 1.0): 2} and len(part.records()) == 2
    print_per_block([part])
    text = capsys.readouterr().out
    assert "color" in text and "2/2" in text and "mid.0" not in text and "object" not in text


def test_files_are_rebuilt_unless_they_show_far_more_of_other_runs(filled: RunFolder) -> None:
    assert sum(filled.expected.values()) == 12
    assert may_rebuild([filled], {filled.path}, 0) and not may_rebuild([filled], set(), 0)
    assert may_rebuild([filled], set(), 1)


def test_a_small_run_in_a_large_folder_leaves_other_runs_alone(
    job: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_lines(job, settings=(job.settings[1],), report=job.results / "report")
    (features,) = job.results.glob("*/*/features")
    files = [job.results / "leaderboard.md", features.parent / "tables/per_block.md", job.results / "report/index.html"]
    before = [file.read_bytes() for file in files]
    read: list[Path] = []
    records = RunFolder.records

    def counted(folder: RunFolder, **options: bool) -> list[EditRecord]:
        read.append(folder.path)
        return records(folder, **options)

    monkeypatch.setattr(RunFolder, "records", counted)
    monkeypatch.setattr(riebench.jobs.summary, "MOST_OTHERS", 0)
    lines = job_lines(job, settings=("no_edit",), report=job.results / "report")
    assert features not in read and read
    assert [file.read_bytes() for file in files] == before
    (line,) = [one for one in lines if one.startswith("not brought up to date")]
    verbs = [f"`riebench {verb} --results {job.results}`" for verb in ("tables", "leaderboard", "report")]
    assert all(verb in line for verb in verbs) and "tables   " not in "".join(lines)
    monkeypatch.setattr(riebench.jobs.summary, "MOST_OTHERS", 20)
    job_lines(job, settings=("no_edit",), report=job.results / "report")
    assert all("no_edit" in file.read_text() for file in files[:2])

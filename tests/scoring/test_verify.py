"""What `leaderboard --verify` finds: one real run on the toy model, and every fault put into a copy of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.scoring.verify import verify
from riebench.store.folder import RunFolder
from riebench.store.run_file import SEAL_FILE, write_seal
from riebench.tasks.schema import EditTask
from riebench.tasks.suites import load_suite

TASK = """\
category: change_color
version: 1
examples:
  - id: one
    source: a red circle
    target: a blue circle
    source_region: circle
    target_region: circle
  - id: two
    source: a green square
    target: a yellow square
    source_region: whole
    target_region: whole
"""
SETTING = "method: sae\nparams: {n_features: 3}\nblocks: [up.0.1]\nstrengths: [2]\naccess: PAM\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two examples on toy-turbo, generated in one step and scored: the folder of everything."""
    place = tmp_path_factory.mktemp("finished")
    (place / "mine").mkdir()
    (place / "mine" / "change_color.yaml").write_text(TASK)
    (place / "few.yaml").write_text(SETTING)
    request = RunRequest(
        suite=str(place / "mine"), settings=(str(place / "few.yaml"),), model="toy-turbo", steps=1, batch_size=2,
        device="cpu", results=place / "results", leaderboard=place / "leaderboard.md",
    )  # fmt: skip
    run_job(request, lambda _: None)
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy to put faults into."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def run_of(place: Path) -> Path:
    (file,) = place.glob("results/mine/*/few/run.json")
    return file.parent


@pytest.fixture
def run(place: Path) -> Path:
    return run_of(place)


def tasks(place: Path) -> tuple[EditTask, ...]:
    return load_suite(str(place / "mine"))


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file), f"{file.stat().st_mtime_ns} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def findings(place: Path) -> str:
    """What verifying says, one line each, once it is clear that it changed nothing."""
    before = dict(contents(place / "results"))
    verdict = verify(run_of(place), tasks(place))
    assert dict(contents(place / "results")) == before
    assert verdict.holds == (not verdict.findings)
    return "\n".join(verdict.findings)


def edit(file: Path, change: Callable[[list[Any]], object], *, sealed: bool = False) -> None:
    """Changes the parsed lines of a file; `sealed` forges the seal too, so that only other traces are left."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    change(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if sealed:
        write_seal(file.parent)


def test_an_honest_run_holds_on_the_command_line(place: Path, run: Path) -> None:
    before = dict(contents(place / "results"))
    line = ["leaderboard", "--verify", str(run), "--suite", str(place / "mine"), "--device", "cpu"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    n = len(RunFolder(run).scores())
    assert n >= 2 * 3
    for words in ("2 records", "2 pictures by their hashes", f"{n} scores computed afresh", "everything holds"):
        assert words in result.stderr
    assert dict(contents(place / "results")) == before
    assert (run / SEAL_FILE).is_file()


def change_score(lines: list[Any]) -> None:
    line = next(line for line in lines if line["metric"] == "clip_gain" and line.get("value") is not None)
    line["value"] += 0.0004


@pytest.mark.parametrize("sealed", [False, True])
def test_an_edited_score(place: Path, run: Path, sealed: bool) -> None:
    edit(run / "scores.jsonl", change_score, sealed=sealed)
    found = findings(place)
    assert "clip_gain of unit" in found and ": stored " in found and ", found " in found
    assert ("scores.jsonl is not as riebench wrote it" in found) != sealed
    result = CliRunner().invoke(app, ["leaderboard", "--verify", str(run), "--suite", str(place / "mine")])
    assert result.exit_code == 1
    assert all(line.startswith("does not hold: ") for line in result.stdout.splitlines()) and result.stdout


def test_scores_left_out_stale_foreign_or_by_another_network(place: Path, run: Path) -> None:
    file = run / "scores.jsonl"
    text = file.read_text()
    edit(file, lambda lines: lines.pop(0), sealed=True)
    assert "has no stored value" in findings(place)
    file.write_text(text)
    edit(file, lambda lines: lines[0].update(picture="00000000"), sealed=True)
    assert "has no stored value" in findings(place)
    file.write_text(text)
    edit(file, lambda lines: lines.append(lines[0] | {"unit": "ab" * 10}), sealed=True)
    assert "scores of 1 units without a record, e.g. abab" in findings(place)
    file.write_text(text)
    edit(
        file, lambda lines: lines.append(lines[0] | {"backbone": "own-clip", "value": 1.0, "reason": None}), sealed=True
    )
    assert "by own-clip were not computed afresh; name what measured: --scorer" in findings(place)
    file.write_text(text)
    edit(file, lambda lines: lines.append(lines[0] | {"metric": "clip_grain"}), sealed=True)
    assert "has scores of a metric 'clip_grain' that riebench does not know" in findings(place)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strength": 3.0}, "change_color up.0.1 3.0: 1 records of 0 units"),
        ({"example_hash": "0" * 16}, "1 units are of examples that the suite does not have, or not like this"),
        ({"task_version": 2}, "e.g. one of change_color@2"),
        ({"seed": 5}, "a picture of another unit"),
    ],
)
def test_an_edited_key(place: Path, run: Path, change: dict[str, Any], words: str) -> None:
    edit(run / "records.jsonl", lambda lines: lines[0]["key"].update(change), sealed=True)
    found = findings(place)
    assert words in found and "names images/one.up.0.1" in found


def test_edited_features(place: Path, run: Path) -> None:
    def swap(lines: list[Any]) -> None:
        lines[0]["features"]["up.0.1"]["add"][0] += 1

    edit(run / "records.jsonl", swap)
    assert findings(place) == "records.jsonl is not as riebench wrote it: something was changed or taken out by hand"
    edit(run / "records.jsonl", lambda lines: lines[0]["features"].update({"mid.0": {"add": [1]}}), sealed=True)
    assert "has features in mid.0, which it does not edit" in findings(place)


def test_a_broken_seal_is_not_made_whole_by_the_next_writer(place: Path, run: Path) -> None:
    edit(run / "records.jsonl", lambda lines: lines[0]["features"]["up.0.1"]["add"].pop())
    with RunFolder(run).lock():
        pass
    assert "records.jsonl is not as riebench wrote it" in findings(place)
    (run / SEAL_FILE).unlink()
    assert "seal.json is missing" in findings(place)
    (run / SEAL_FILE).write_text("{")
    assert "seal.json is damaged" in findings(place)


def test_pictures_swapped_and_missing(place: Path, run: Path) -> None:
    first, second = (run / str(record.image) for record in RunFolder(run).records())
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    found = findings(place)
    assert f"images/{first.name} is not the picture that was recorded; repeat `riebench run`" in found
    assert "scores were not computed afresh" in found
    first.unlink()
    assert f"picture images/{first.name} is missing; `riebench run` makes it again" in findings(place)
    second.unlink()
    assert "none of its 2 pictures is there" in findings(place)
    first.write_bytes(kept)


def test_shared_pictures_swapped_and_missing(place: Path, run: Path) -> None:
    shared = run.parent / "shared" / "images"
    one, two = (next(shared.glob(f"{name}.*.source.png")) for name in ("one", "two"))
    one.write_bytes(two.read_bytes())
    assert "clip_gain of unit" in findings(place)
    one.unlink()
    assert f"picture shared/images/{one.name} is missing" in findings(place)


def test_a_missing_and_a_foreign_record(place: Path, run: Path) -> None:
    file = run / "records.jsonl"
    text = file.read_text()
    edit(file, lambda lines: lines.pop(0))
    found = findings(place)
    assert "change_color up.0.1 2.0: 1 records of 2 units" in found
    assert "1 of the suite's 2 examples were not run, e.g. one" in found and "without a record" in found
    file.write_text(text)
    first = json.loads(text.splitlines()[0])
    file.write_text(text + json.dumps({**first, "key": {**first["key"], "example_id": "three"}}) + "\n")
    found = findings(place)
    assert (
        "change_color up.0.1 2.0: 3 records of 2 units" in found and "1 line was written since the last seal" in found
    )
    assert "of examples that the suite does not have" in found and "a picture of another unit" in found


def test_a_failed_unit(place: Path, run: Path) -> None:
    failed = {"status": "error", "reason": "out of memory"}
    edit(run / "records.jsonl", lambda lines: lines.append({"key": lines[0]["key"], **failed}))
    assert "1 units failed, e.g. out of memory" in findings(place)


def test_damaged_and_torn_lines(place: Path, run: Path) -> None:
    file = run / "records.jsonl"
    text = file.read_text()
    file.write_text(text.replace('"status"', '"status', 1))
    assert "records.jsonl, line 1 is damaged" in findings(place)
    file.write_text(text.rstrip()[:-20])
    found = findings(place)
    assert "records.jsonl: its last line is torn" in found and "1 records of 2 units" in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta["spec"]["model"].update(steps=4), "run_id"),
        (lambda meta: meta.update(run_id="0" * 64), "run_id 00000000 is not that of its spec"),
        (lambda meta: meta["spec"]["setting"].update(name="many"), "/many"),
        (lambda meta: meta["expected"][0].update(n=1), "change_color up.0.1 2.0: 2 records of 1 units"),
        (lambda meta: meta["spec"]["setting"].update(access="P"), "run.json is not as riebench wrote it"),
    ],
)
def test_an_edited_run_file(place: Path, run: Path, change: Callable[[Any], None], words: str) -> None:
    file = run / "run.json"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))
    found = findings(place)
    assert words in found and "run.json is not as riebench wrote it" in found


def test_what_cannot_be_verified_is_one_line(place: Path, run: Path) -> None:
    with pytest.raises(RiebenchError, match="'mine', a suite that does not ship; name its folder: --suite FOLDER"):
        verify(run)
    with pytest.raises(RiebenchError, match=r"no run folder: run\.json is missing"):
        verify(run.parent, tasks(place))
    (run / "scores.jsonl").unlink()
    assert "nothing has been scored" in findings(place)

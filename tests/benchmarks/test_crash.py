"""SIGKILL before random disk operations of the main job: what is there in the end is what an undisturbed run leaves."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tiny import tiny_folder, tiny_model, tiny_saes
from tiny_jobs import SETTING, TASK, fake_networks

from riebench.jobs.request import RunRequest
from riebench.models.lookup import ModelRecipe
from riebench.store.folder import RunFolder

crash: Any = pytest.importorskip("benchmarks.crash.crash", reason="the benchmarks are in the checkout only")
comparison: Any = pytest.importorskip("benchmarks.crash.crash")
killing: Any = pytest.importorskip("benchmarks.crash.killing")
pytestmark = [pytest.mark.crash, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]


def make_job(place: Path) -> RunRequest:
    """Two examples and two settings, one of them on a block alone, one picture at a time."""
    suite = place.parent / "mine"
    if not suite.is_dir():
        suite.mkdir(parents=True)
        (suite / "change_color.yaml").write_text(TASK)
        setting = SETTING.replace("block_mode: both", "blocks: [up.0.1]")
        (suite / "features.yml").write_text(setting + f"sae: {tiny_saes()}\n")
    return RunRequest(
        suite=str(suite), settings=("no_edit", str(suite / "features.yml")), model=str(tiny_folder()), steps=2,
        guidance=0.0, batch_size=1, device="cpu", scorers=("toy-clip",), results=place / "results",
        leaderboard=place / "results" / "leaderboard.md", report=place / "results" / "report",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Trials beside their undisturbed run; the model is loaded once, in this process."""
    model = tiny_model(steps=2)
    with (
        patch("riebench.scoring.score.Networks", fake_networks),
        patch.object(ModelRecipe, "load", lambda _: model),
    ):
        made = crash.Trials(make_job, tmp_path_factory.mktemp("crash"), by="operation", seed=1, kills=2)
        made.prepare()
        yield made


def test_after_every_kill_the_same_command_ends_with_the_same_bytes(trials: Any) -> None:
    results = [trials.trial(number) for number in range(4)]
    assert [one["wrong"] for one in results] == [[]] * len(results)
    killed = [phase for one in results for phase in one["killed"]]
    assert len(killed) >= 5 and len(set(killed)) >= 2


def test_the_comparison_finds_what_it_should(trials: Any, tmp_path: Path) -> None:
    """A changed number, a unit made twice, litter and lost lines would all be seen."""
    place = tmp_path / "work"
    shutil.copytree(trials.reference, place)
    assert comparison.differences(place, trials.reference) == []
    before = comparison.snapshot(place)
    (records,) = place.rglob("features/records.jsonl")
    text = records.read_text()
    records.write_text(text + text.splitlines()[0] + "\n")
    found = "; ".join(comparison.differences(place, trials.reference))
    assert "records.jsonl differs" in found and "1 made twice" in found and "lines without a seal" in found
    records.write_text("".join(text.splitlines(keepends=True)[1:]))
    assert comparison.lost(before, place) == [str(records.relative_to(place))]
    records.write_text(text)
    (place / "results" / ".x.tmp").touch()
    assert comparison.differences(place, trials.reference) == ["results/.x.tmp is only in one of them"]
    (place / "results" / ".x.tmp").unlink()
    (seal,) = place.rglob("features/seal.json")
    seal.unlink()
    assert comparison.differences(place, trials.reference) == [f"{seal.relative_to(place)} is only in one of them"]


def test_what_is_recorded_and_made_again_is_found_even_if_a_kill_came_before_it_was_stored(trials: Any) -> None:
    made = comparison.recorded(comparison.snapshot(trials.reference))
    assert trials.whole.planned == made and len(made) > len({name.rsplit(" ", 1)[0] for name in made})
    again = trials.trial(0)
    assert again["wrong"] == [] and again["killed"]
    with patch.object(RunFolder, "finished_units", lambda *_: set()):
        found = [trials.trial(number)["wrong"] for number in range(2)]
    assert any("was to be made again" in wrong for one in found for wrong in one)


def test_only_our_own_kill_is_one(trials: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path / "work")
    for moment in (None, killing.Moment(delay=60)):
        with (
            patch("riebench.jobs.run.write_tables", lambda *_: os.kill(os.getpid(), signal.SIGUSR1)),
            pytest.raises(AssertionError, match=", which was not ours"),
        ):
            killing.run(job, moment)
    assert killing.run(job, killing.Moment(operation=1)).killed
    with (
        patch("riebench.jobs.run.write_tables", lambda *_: 1 / 0),
        pytest.raises(AssertionError, match="failed by itself"),
    ):
        killing.run(job)

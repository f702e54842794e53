"""The comparison with another library's trainer runs where that is installed, and says why where it is not."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_collections import stored

from benchmarks.trainers import __main__ as compare
from benchmarks.trainers import tables, trainees
from benchmarks.trainers.trainees import CASES, LIBRARY
from riebench.errors import RiebenchError
from riebench.training.batches import DataPass
from riebench.training.collection import Collection
from riebench.training.many import train_many
from riebench.training.settings import recipe_settings

pytestmark = pytest.mark.training


class Instead:
    """Stands in for the library's trainers."""

    def __init__(self, sample: torch.Tensor, steps: int, batch: int, seed: int) -> None:
        self.trainee = trainees.Ours(sample, steps, batch, seed, "published", settings={"learning_rate": 1e-6})
        self.step = self.trainee.step
        self.autoencoder = self.trainee.autoencoder


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small data, one seed and two cases; the library's is none of the library."""
    for module, name, value in (
        (trainees, "FEATURES", 24), (trainees, "K", 3), (compare, "BATCH", 64), (compare, "BUFFER", 384),
        (compare, "SEEDS", (0,)), (compare, "CHANGES", {}), (compare, "missing_library", lambda: ""),
        (compare, "version", lambda _: "0"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    cases = {"topk, standard": CASES["topk, standard"], f"topk, {LIBRARY}": Instead}
    monkeypatch.setattr(compare, "CASES", cases)
    stored(tmp_path / "updates")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["benchmarks.trainers", *map(str, words)])
    return compare.main()


def test_both_are_measured_on_the_same_and_only_what_is_missing(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small / "trainers.json"
    words = (small / "updates", "--epochs", 4, "--json", file)
    assert run(monkeypatch, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 3
    found: dict[str, Any] = json.loads(file.read_text())["57 steps"]
    ours, library = (found["equal steps"][name]["mid.0"]["0"] for name in ("topk, standard", f"topk, {LIBRARY}"))
    assert ours["ev"] > library["ev"] and ours["positions"] == library["positions"] == 48
    timed = found["equal time"]["mid.0"]["0"]
    assert timed["steps"] == max(1, int(57 * timed["library"] / timed["ours"]))
    assert run(monkeypatch, *words) == 0 and not capsys.readouterr().out


def test_our_trainee_is_trained_as_by_the_command(small: Path) -> None:
    collection = Collection.open(small / "updates")
    data = compare.Data(collection, "mid.0", 4, None, 0)
    trainee = CASES["topk, standard"](data.sample, data.steps, 64, 0)
    for number, x in enumerate(data.batches.batches()):
        trainee.step(number, x.float())
    config = recipe_settings("standard", features=24, k=3)
    (trained,) = train_many(
        collection.data("mid.0"), [config], DataPass(64, 4, buffer=384), progress=False
    )  # fmt: skip
    assert torch.equal(trainee.autoencoder().encoder, trained.autoencoder().encoder)
    assert data.figures(trainee)["ev"] == trained.figures.explained_variance


@pytest.mark.skipif(find_spec(LIBRARY) is not None, reason="the library is installed")
def test_a_missing_library_is_the_reason_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "--json", tmp_path / "x.json") == 0
    assert "nothing is compared: dictionary_learning is not installed (pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_documented_comparison_is_the_stored_one(tmp_path: Path) -> None:
    tables.fill(check=True)
    document, results = tmp_path / "x.md", tmp_path / "x.json"
    document.write_text(tables.DOCUMENT.read_text())
    found = json.loads(tables.RESULTS.read_text())
    found["237 steps"]["equal steps"]["topk, standard"]["mid.0"]["0"]["ev"] -= 0.5
    results.write_text(json.dumps(found))
    with pytest.raises(RiebenchError, match=r"is out of date; run `python -m benchmarks\.trainers\.tables`"):
        tables.fill(check=True, document=document, results=results)


def test_ours_is_not_worse_in_the_stored_comparison() -> None:
    """Three seeds at equal steps, and at equal time."""
    found = json.loads(tables.RESULTS.read_text())["237 steps"]
    ours, library = (found["equal steps"][name] for name in ("topk, standard", f"topk, {LIBRARY}"))
    for block in tables.BLOCKS:
        for seed in ("0", "1", "2"):
            assert ours[block][seed]["ev"] > library[block][seed]["ev"]
            assert found["equal time"][block][seed]["ev"] > library[block][seed]["ev"]

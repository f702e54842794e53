"""SAEs are measured on the activations of the run before its first edit, and those that explain nothing are refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_workers import ThreadWorker, assignment, loaded_models, run_in_threads
from tiny import CHANNELS, tiny_model, tiny_saes
from tiny_runs import NO_EDIT, SAE, task
from torch import Tensor
from typer.testing import CliRunner

from riebench.analysis.leaderboard import make_leaderboard
from riebench.cli.main import app
from riebench.errors import RiebenchError, StoreError
from riebench.generation.generator import Capture, Generator
from riebench.jobs.publish import publish
from riebench.jobs.request import RunRequest
from riebench.jobs.run import measure_stored_saes, run_job
from riebench.models.sae_quality import SaeFigures
from riebench.runs import sae_check
from riebench.runs.plan import checked_works, plan
from riebench.runs.runner import run_benchmark
from riebench.runs.sae_check import Reading, measure
from riebench.saes.figures import Meter
from riebench.saes.formats import load_saes, save_sdxl_unbox
from riebench.saes.sae import Normalise, SparseAutoencoder
from riebench.scoring.verify import verify
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.run_file import SEAL_FILE, broken_seals
from riebench.store.sae_figures import SAE_FIGURES_FILE
from riebench.tasks.schema import Setting
from riebench.utils.markup import csv_rows

__all__ = ["loaded_models"]
BLOCKS = ("mid.0", "up.0.1")
FEATURES = Setting(name="features", method="sae", params={"n_features": 4}, blocks=BLOCKS, strengths=(2.0,))
OTHER = FEATURES.model_copy(update={"name": "other", "params": {"n_features": 8}})


def run(place: Path, *settings: Setting, count: int = 1, saes: Path | None = None, **options: Any) -> list[RunFolder]:
    """Run configurations on some examples; SAEs are the usual ones."""
    return run_benchmark(
        [task(count)], settings, tiny_model(), results_root=place, saes_source=str(saes or tiny_saes()),
        progress=False, **options,
    )  # fmt: skip


def write_sae(place: Path, scale: float = -1.0) -> Path:
    """Write an SAE of mid.0 whose reconstructions are the input times a number."""
    both = torch.cat([torch.eye(CHANNELS), -torch.eye(CHANNELS)])
    save_sdxl_unbox(
        place / "mid.0", encoder=both * scale, decoder=both.T, pre_bias=torch.zeros(CHANNELS),
        latent_bias=torch.zeros(2 * CHANNELS), k=CHANNELS,
    )  # fmt: skip
    return place


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each block's SAE is measured, and on how many pictures together."""
    seen: Counter[str] = Counter()
    original = sae_check.measure

    def counting(readings: Sequence[Reading], model: Any, prompts: Sequence[str], *args: Any, **options: Any) -> Any:
        seen.update(reading.block for reading in readings)
        seen["pictures"] += len(prompts)
        return original(readings, model, prompts, *args, **options)

    monkeypatch.setattr(sae_check, "measure", counting)
    return seen


def test_figures_are_those_of_the_source_pictures_and_are_stored(tmp_path: Path, measured: Counter[str]) -> None:
    folders = run(tmp_path, FEATURES, OTHER, NO_EDIT, count=2)
    # Configurations share their SAEs, which are measured once; a method without SAEs has no figures.
    assert measured == {"mid.0": 1, "up.0.1": 1, "pictures": 2}
    assert not (folders[2].path / SAE_FIGURES_FILE).exists() and folders[2].sae_figures() == {}
    stored = folders[0].sae_figures()
    assert stored == folders[1].sae_figures() and set(stored) == set(BLOCKS)
    works = checked_works(plan([task(2)], [FEATURES]))
    sae = load_saes(tiny_saes(), ["mid.0"])["mid.0"]
    meter = Meter(sae)
    for work in works:
        trace = Generator(tiny_model()).generate([work.plain.source], [work.noise], capture=Capture(("mid.0",))).trace
        meter.add(trace.get("mid.0").movedim(2, -1).flatten(0, 3))
    one = stored["mid.0"]
    assert one.figures.explained_variance == pytest.approx(meter.figures().explained_variance, abs=2e-3)
    assert (one.figures.positions, one.figures.l0, one.k, one.sha256) == (2 * 2 * 16, 8, 8, sae.sha256)
    assert [example.id for example in one.examples] == ["e0", "e1"]
    assert broken_seals(folders[0].path) == []
    # What is stored is not measured again: not by the same command, nor for another configuration of these SAEs.
    run(tmp_path, FEATURES, OTHER.model_copy(update={"name": "third"}), count=2)
    assert measured["pictures"] == 2
    assert RunFolder(folders[0].path.parent / "third").sae_figures() == stored


def test_the_examples_are_the_first_of_each_task_for_every_shard_and_limit() -> None:
    tasks = [task(5, name=name, examples=task(5).examples) for name in ("a", "b", "c")]
    whole = [(work.task.name, work.example.id, work.seed) for work in checked_works(plan(tasks, [FEATURES], (3, 1)))]
    assert whole == [("a", "e0", 3), ("b", "e0", 3), ("c", "e0", 3), ("a", "e1", 3)]
    few = checked_works(plan(tasks, [FEATURES], (3, 1), limit=1))
    assert [(work.task.name, work.example.id, work.seed) for work in few] == whole[:3]
    assert [work.example.id for work in checked_works(plan([task(2)], [FEATURES]))] == ["e0", "e1"]


def test_shards_workers_and_batch_sizes_find_the_same_figures(tmp_path: Path) -> None:
    (folder,) = run(tmp_path / "whole", SAE, count=4, batch_size=3)
    expected = (folder.path / SAE_FIGURES_FILE).read_bytes()
    (part,) = run(tmp_path / "parts", SAE, count=4, batch_size=1, shard=(2, 2))
    assert (part.path / SAE_FIGURES_FILE).read_bytes() == expected
    run(tmp_path / "parts", SAE, count=4, shard=(1, 2))
    assert (part.path / SAE_FIGURES_FILE).read_bytes() == expected and not broken_seals(part.path)
    *_, worked = run_in_threads(tmp_path / "workers", lambda: ThreadWorker(assignment()))
    assert (worked.path / SAE_FIGURES_FILE).read_bytes() == expected


@pytest.mark.parametrize(("scale", "words"), [(-1.0, "explained variance -"), (1e38, "explained variance not finite")])
def test_an_sae_that_explains_nothing_is_refused_before_anything_is_made(
    tmp_path: Path, scale: float, words: str
) -> None:
    saes = write_sae(tmp_path / "broken", scale if scale < 0 else 1.0)
    setting = FEATURES.model_copy(update={"blocks": ("mid.0",), "sae": str(saes)})
    if scale > 0:
        patch = pytest.MonkeyPatch()
        patch.setattr(SparseAutoencoder, "decode", lambda self, f, *rest: f.sum(-1, keepdim=True) * torch.inf)
    try:
        with pytest.raises(RiebenchError, match=words) as raised:
            run(tmp_path / "runs", setting, NO_EDIT, saes=saes)
    finally:
        if scale > 0:
            patch.undo()
    message = str(raised.value)
    for part in ("the SAE of mid.0", str(saes), "1 source picture", "layer norm", "--accept-sae"):
        assert part in message
    assert "\n" not in message and not (tmp_path / "runs").exists()


def test_an_accepted_sae_is_run_and_shown_as_such(tmp_path: Path) -> None:
    saes = write_sae(tmp_path / "broken")
    setting = Setting(name="features", method="sae", params={"n_features": 4}, blocks=("mid.0",), sae=str(saes))
    lines: list[str] = []
    (folder,) = run(tmp_path, setting, saes=saes, accept_sae=True, say=lines.append)
    assert [record.status for record in folder.records()] == ["ok"]
    (line,) = lines
    assert "the SAE of mid.0" in line and "is run though it explains nothing (explained variance -" in line
    assert folder.sae_figures()["mid.0"].accepted
    # Who accepted it once goes on with it; another configuration has to accept it for itself.
    run(tmp_path, setting, count=2, saes=saes)
    assert len(folder.records()) == 2
    with pytest.raises(RiebenchError, match="explains nothing"):
        run(tmp_path, setting.model_copy(update={"name": "other"}), saes=saes)
    board = make_leaderboard(tmp_path)
    (row,) = [line for line in board.document.markdown().splitlines() if line.startswith("|") and "mid.0: " in line]
    assert "SAE accepted though it explains nothing" in row and "| features |" in row
    assert "SAE accepted though it explains nothing (mid.0)" in board.numbers
    (first, *_) = csv_rows(board.numbers.splitlines())
    assert first["sae_explained_variance"].startswith("-")


def test_a_complete_run_is_not_refused_and_not_marked_as_accepted(tmp_path: Path) -> None:
    saes = write_sae(tmp_path / "broken")
    setting = Setting(name="features", method="sae", params={"n_features": 4}, blocks=("mid.0",), sae=str(saes))
    (folder,) = run(tmp_path, setting, saes=saes, accept_sae=True)
    for name in (SAE_FIGURES_FILE, "seal.json"):
        (folder.path / name).unlink()
    lines: list[str] = []
    run(tmp_path, setting, saes=saes, say=lines.append)
    assert "explains nothing" in lines[0] and not folder.sae_figures()["mid.0"].accepted
    with pytest.raises(RiebenchError, match="explains nothing"):
        run(tmp_path, setting, saes=saes, redo="all")


def test_a_poor_sae_is_named_in_one_line(tmp_path: Path) -> None:
    lines: list[str] = []
    run(tmp_path, FEATURES, OTHER, say=lines.append)
    assert len(lines) == len(set(lines)) == 2
    assert all("is poor here: explained variance 0." in line and "sae inspect" in line for line in lines)
    assert "the SAE of mid.0" in lines[0] and "the SAE of up.0.1" in lines[1]


@pytest.mark.parametrize(
    ("figures", "features", "k", "words"),
    [
        ({}, 100, 8, []),
        ({"explained_variance": 0.4, "size_ratio": 3.0}, 100, 8, ["explained variance 0.40 (its reconstructions vary"]),
        ({"l0": 17.0}, 100, 8, ["17 features are active at a position (L0), and k is 8"]),
        ({"l0": 17.0}, 60, None, ["17 of 60 features are active at a position (L0)"]),
        ({"dead_share": 0.95}, 100, 8, ["95% of its features are dead"]),
        ({"dead_share": 0.95}, 1000, 8, []),
        ({"mean_distance": 2.5, "explained_variance": 0.8}, 100, 8, ["its input's mean is 2.5 spreads from the mean"]),
        ({"mean_distance": 2.5}, 100, 8, []),
    ],
)  # fmt: skip
def test_what_is_poor_is_said_in_words(figures: dict[str, Any], features: int, k: int | None, words: list[str]) -> None:
    usual = {"l0": 8.0, "explained_variance": 0.9, "dead_share": 0.1, "positions": 500, "mean_distance": 0.1}
    found = SaeFigures(**{**usual, **figures}).faults(features, k)
    assert len(found) == len(words) and all(one.startswith(word) for one, word in zip(found, words, strict=True))


def test_input_and_target_may_differ() -> None:
    """An SAE of the block's input that reconstructs its update is judged against the update."""
    sae = load_saes(tiny_saes(), ["mid.0"])["mid.0"]
    pairs: tuple[tuple[Any, Any], ...] = (("input", "update"), ("update", "output"), ("update", "update"))
    found = measure([Reading("mid.0", sae, *pair) for pair in pairs], tiny_model(), ["a cat", "a dog"], progress=False)
    wanted = Capture(("mid.0",), keep=("input", "output", "update"))
    trace = Generator(tiny_model()).generate(["a cat", "a dog"], [0, 1], capture=wanted).trace

    def positions(what: Any) -> Tensor:
        return trace.get("mid.0", what).movedim(2, -1).flatten(0, 3)

    for pair, figures in zip(pairs, found, strict=True):
        x, target = (positions(what).double() for what in pair)
        made = sae.decode(sae.encode(x)).double()
        error, spread = (target - made).square().sum(), (target - target.mean(0)).square().sum()
        assert figures.explained_variance == pytest.approx(float(1 - error / spread), abs=1e-3)
        ratio = ((made - made.mean(0)).square().sum() / spread).sqrt()
        assert figures.size_ratio == pytest.approx(float(ratio), abs=1e-3)
        distance = (x.mean(0) - sae.pre_bias).norm() / (x - x.mean(0)).square().sum(1).mean().sqrt()
        assert figures.mean_distance == pytest.approx(float(distance), abs=1e-3)
    assert len({figures.explained_variance for figures in found}) == 3


def test_a_mean_is_compared_where_the_sae_subtracts_one() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    eye, zeros = torch.eye(4), torch.zeros(4)
    cases: list[tuple[Tensor, Normalise, bool]] = [
        (zeros, "none", False), (zeros + 1, "layer", False), (zeros + 1, "none", True),
    ]  # fmt: skip
    for bias, normalise, expected in cases:
        meter = Meter(SparseAutoencoder(eye, eye, bias, bias, zeros, k=2, normalise=normalise))
        meter.add(x)
        assert (meter.figures().mean_distance is not None) == expected


def test_figures_that_were_changed_or_put_there_are_found(tmp_path: Path) -> None:
    (folder,) = run(tmp_path, FEATURES)
    file = folder.path / SAE_FIGURES_FILE
    whole = file.read_text()
    file.write_text(whole.replace('"explained_variance": 0.', '"explained_variance": 0.9'))
    assert any(SAE_FIGURES_FILE in finding for finding in broken_seals(folder.path))
    file.write_text(whole)
    assert broken_seals(folder.path) == []
    seal = folder.path / "seal.json"
    seal.write_text(json.dumps({k: v for k, v in json.loads(seal.read_text()).items() if k != SAE_FIGURES_FILE}))
    assert f"{SAE_FIGURES_FILE} was put there after the last seal" in verify(folder.path, [task(1)]).findings
    file.write_text(whole.replace('"sha256": "', '"sha256": "0'))
    findings = verify(folder.path, [task(1)]).findings
    assert f"{SAE_FIGURES_FILE} holds figures of another SAE or model for mid.0, up.0.1" in findings
    assert folder.sae_figures() == {}
    file.write_text(whole.replace('"l0"', '"l9"'))
    with pytest.raises(StoreError, match=r"sae_figures.json: .*l0.*delete it"):
        folder.sae_figures()


def test_published_runs_carry_their_figures_and_may_have_none(tmp_path: Path) -> None:
    (folder,) = run(tmp_path / "runs", FEATURES)
    made = publish(folder.path, tmp_path / "results")
    assert RunFolder(made.path).sae_figures() == folder.sae_figures() and not broken_seals(made.path)
    assert "| 0." in "".join(line for line in sae_lines(tmp_path / "results") if "mid.0" in line)
    for place in (folder.path, made.path):
        for name in (SAE_FIGURES_FILE, "seal.json"):
            (place / name).unlink()
    assert all("not measured" in line for line in sae_lines(tmp_path / "results"))
    publish(folder.path, tmp_path / "results")
    assert RunFolder(made.path).sae_figures() == {}


def test_stored_runs_get_figures_without_pictures(
    job: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    run_job(job, lines.append)
    (old,) = [folder for folder in find_run_folders(job.results) if folder.spec.sae_sha256]
    expected = (old.path / SAE_FIGURES_FILE).read_bytes()
    place = publish(old.path, tmp_path / "results").path
    for name in (SAE_FIGURES_FILE, SEAL_FILE):
        (place / name).unlink()
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    published = replace(job, results=tmp_path / "results")
    monkeypatch.setattr(Generator, "generate", watched := Watch(Generator.generate))
    measure_stored_saes(published, lines.append)
    assert (place / SAE_FIGURES_FILE).read_bytes() == expected and watched.pictures == 2
    assert {name: data for name, data in before.items() if (place / name).read_bytes() != data} == {}
    assert lines[-1] == "figures of SAEs were added to 1 of 1 run folders" and not broken_seals(place)
    measure_stored_saes(published, lines.append)
    assert lines[-1] == "figures of SAEs were added to 0 of 1 run folders" and watched.pictures == 2
    result = CliRunner().invoke(app, ["run", "sae", "--results", str(tmp_path / "none"), "--measure-saes"])
    assert result.exit_code != 0 and "holds no run of these configurations; nothing to measure" in result.stderr
    assert not (tmp_path / "none").exists()


class Watch:
    """A stand-in for a generator's method that counts the pictures it makes."""

    def __init__(self, original: Any) -> None:
        self.original, self.pictures = original, 0

    def __get__(self, owner: Any, kind: Any) -> Any:
        def generate(prompts: Sequence[str], *args: Any, **options: Any) -> Any:
            self.pictures += len(prompts)
            return self.original(owner, prompts, *args, **options)

        return generate


def sae_lines(results: Path) -> list[str]:
    """Return the rows of the leaderboard's table of SAEs."""
    text = make_leaderboard(results).document.markdown().partition("### SAEs")[2]
    return [line for line in text.splitlines() if line.startswith("|") and any(block in line for block in BLOCKS)]


def test_pictures_that_cannot_be_generated_stop_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise RiebenchError("not enough memory")

    monkeypatch.setattr(sae_check, "measure", fail)
    lines: list[str] = []
    (folder,) = run(tmp_path, FEATURES, say=lines.append)
    assert lines == ["the SAEs were not measured: not enough memory"]
    assert folder.sae_figures() == {} and [record.status for record in folder.records()] == ["ok"]

"""Training several SAEs over one pass: order, exact resume, what is written, and every refusal."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from python_processes import PythonProcess
from sae_collections import CONFIGS, PLAN, ROWS, WIDTH, sparse, stored
from torch import Tensor
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.saes.figures import Meter
from riebench.saes.files import save_tensors
from riebench.saes.formats import load_saes
from riebench.training import run
from riebench.training.batches import Batches, DataPass, InMemoryPositions
from riebench.training.collection import Collection
from riebench.training.many import CurvePoint, train_many
from riebench.training.run import TrainingRun, train_collection
from riebench.training.settings import KINDS, Kind, SaeTraining
from riebench.training.speed import measure_step
from riebench.utils.files import temporary_path

pytestmark = pytest.mark.training


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are not drawn, which takes longer than such a training."""
    monkeypatch.setattr(run, "curve_files", lambda *_: {})


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }  # fmt: skip


@pytest.mark.parametrize(("count", "batch", "buffer"), [(2000, 64, 600), (777, 10, 40), (1000, 100, 100_000)])
def test_every_position_comes_once_an_epoch_and_any_step_can_be_begun_from(count: int, batch: int, buffer: int) -> None:
    batches = Batches(
        InMemoryPositions(torch.arange(count)[:, None]), DataPass(batch_size=batch, buffer=buffer, epochs=3)
    )
    every = list(batches.batches())
    assert len(every) == batches.steps == 3 * count // batch
    order = torch.cat(every)[:, 0]
    for epoch in order.split(count)[:2]:
        assert torch.equal(epoch.sort().values, torch.arange(count))
    assert not torch.equal(order[:count], order[count : 2 * count])
    for first in (1, batches.steps // 2, batches.steps - 1):
        assert torch.equal(torch.cat(list(batches.batches(first))), torch.cat(every[first:]))
    assert not list(batches.batches(batches.steps))
    # Neighbours in the data are far apart in the order: a batch is drawn from all over it.
    assert order[:count].float().split(batch)[0].std() > count / 8


class Watched:
    """Positions in shards that exist only while they are read; notes how many rows live at a time."""

    width, rows_per_picture, digest = 4, 1, ""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Tensor:
        rows = torch.zeros(stop - start, self.width)
        self.alive += len(rows)
        self.most = max(self.most, self.alive)
        weakref.finalize(rows, self._free, len(rows))
        return rows

    def _free(self, rows: int) -> None:
        self.alive -= rows


def test_memory_does_not_grow_with_the_data() -> None:
    found = []
    for count in (5_000, 50_000):
        data = Watched(count)
        for _ in Batches(data, DataPass(batch_size=50, buffer=1500)).batches():
            pass
        found.append(data.most)
    assert found[1] <= max(found) <= 1500
    assert found[1] < 2 * found[0]


def test_the_dictionary_is_found() -> None:
    directions, data = sparse(12_000)
    configs = [
        SaeTraining(features=40, k=3, auxk=16, learning_rate=5e-3, dead_after=20_000, kind=kind)
        for kind in ("topk", "batchtopk")
    ]
    plan = DataPass(batch_size=256, epochs=8, buffer=6000)
    for one in train_many(data, configs, plan, progress=False):
        cosines = (directions @ one.model.decoder).max(dim=1).values
        assert cosines.mean() >= 0.95
        assert one.figures.explained_variance > 0.8 and one.figures.positions == 600
        assert one.figures.l0 == pytest.approx(3, abs=0.4)
        assert one.curve[-1].ev > one.curve[0].ev
        assert [point.step for point in one.curve] == [*range(50, one.config.steps, 50), one.config.steps]
        assert torch.allclose(one.model.decoder.norm(dim=0), torch.ones(40), atol=1e-5)


def test_configurations_do_not_touch_each_other() -> None:
    data = sparse(800, 12, WIDTH)[1]
    together = train_many(data, CONFIGS, PLAN, progress=False)
    for config, one in zip(CONFIGS, together, strict=True):
        (alone,) = train_many(data, [config], PLAN, progress=False)
        assert same(alone.model, one.model)
        assert (alone.figures, alone.curve) == (one.figures, one.curve)


class Power(Exception):
    """The power went."""


def test_an_interrupted_training_gives_the_same_weights(tmp_path: Path) -> None:
    data = sparse(800, 12, WIDTH)[1]
    options: dict[str, Any] = {"progress": False, "log_every": 2, "checkpoint_every": 3}
    configs = [*CONFIGS, *(replace(CONFIGS[0], kind=kind) for kind in ("jumprelu", "matryoshka"))]
    whole = train_many(data, configs, PLAN, **options)
    checkpoint = tmp_path / "checkpoint"

    def stop(at: int) -> Any:
        def log(index: int, point: CurvePoint) -> None:
            if point.step >= at and index == 1:
                raise Power

        return log

    # Twice, the second time after it went on; the first time before any checkpoint.
    for at, steps in ((2, None), (10, 9), (16, 15)):
        with pytest.raises(Power):
            train_many(data, configs, PLAN, checkpoint=checkpoint, log=stop(at), **options)
        assert (steps is None) == (not checkpoint.exists())
        if steps is not None:
            assert torch.load(checkpoint, weights_only=True)["step"] == steps
    points: list[tuple[int, CurvePoint]] = []
    again = train_many(
        data, configs, PLAN, checkpoint=checkpoint, log=lambda index, point: points.append((index, point)), **options
    )  # fmt: skip
    for index, (one, other) in enumerate(zip(whole, again, strict=True)):
        assert same(one.model, other.model)
        assert (one.curve, one.figures) == (other.curve, other.figures)
        assert torch.equal(one.statistics.std, other.statistics.std)
        assert tuple(point for number, point in points if number == index) == one.curve
    with pytest.raises(RiebenchError, match="belongs to another training"):
        train_many(data, configs, replace(PLAN, seed=4), checkpoint=checkpoint, **options)
    with pytest.raises(RiebenchError, match="belongs to another training"):
        train_many(data + 1, configs, PLAN, checkpoint=checkpoint, **options)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(RiebenchError, match="checkpoint is damaged; delete it to begin anew"):
        train_many(data, configs, PLAN, checkpoint=checkpoint, **options)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Lets the system refuse what would make a file larger than so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensors_are_stored_whole_or_the_disk_is_reported_full(tmp_path: Path) -> None:
    value: dict[str, Any] = {"a": torch.arange(900.0), "b": [torch.ones(3)]}
    path = tmp_path / "x.pt"
    save_tensors(value, path)
    size = path.stat().st_size
    for limit in (*range(0, size, 256), size - 30, size - 22, size - 1):
        with no_file_above(limit), pytest.raises(OSError, match="no space left") as caught:
            save_tensors(value, path)
        assert caught.value.errno == errno.ENOSPC
    with no_file_above(size):
        save_tensors(value, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], value["a"])


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    data = sparse(800, 12, WIDTH)[1]
    checkpoint = tmp_path / "checkpoint"
    options: dict[str, Any] = {"progress": False, "checkpoint": checkpoint, "checkpoint_every": 4}

    def full(index: int, point: CurvePoint) -> None:
        if point.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with no_file_above(10**9), pytest.raises(OSError, match="no space left"):
        train_many(data, CONFIGS, PLAN, log_every=5, log=full, **options)
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert torch.load(checkpoint, weights_only=True)["step"] == 4
    (first, second), (one, other) = (
        train_many(data, CONFIGS, PLAN, **options),
        train_many(data, CONFIGS, PLAN, progress=False),
    )
    assert same(first.model, one.model) and same(second.model, other.model)


@pytest.mark.crash
def test_a_killed_process_goes_on_to_the_same_files(tmp_path: Path, undrawn: None) -> None:
    there = stored(tmp_path / "updates", blocks=("mid.0",))
    jobs = {
        name: TrainingRun(tmp_path / name, CONFIGS, PLAN, checkpoint_every=3, progress=False)
        for name in ("whole", "killed")
    }
    train_collection(there, (), jobs["whole"])
    # The same in a process of its own that never gets beyond the step after its first checkpoint.
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests" / "helpers")!r})
from sae_collections import CONFIGS, PLAN
from riebench.training import many, run
from riebench.training.collection import Collection
kept = many._write_checkpoint
def keep(checkpoint, state):
    kept(checkpoint, state)
    time.sleep(600)
many._write_checkpoint = keep
run.curve_files = lambda *_: {{}}
job = run.TrainingRun(Path({str(jobs["killed"].out)!r}), CONFIGS, PLAN, checkpoint_every=3, progress=False)
run.train_collection(Collection.open(Path({str(there.folder)!r})), (), job)
"""
    process = PythonProcess(["-c", code])
    try:
        process.wait_until((jobs["killed"].out / "mid.0.checkpoint").exists)
    finally:
        process.kill()
        process.wait()
    assert not (jobs["killed"].out / "figures.jsonl").exists()
    train_collection(there, (), jobs["killed"])
    assert files(jobs["killed"].out) == files(jobs["whole"].out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks with two k each, below `saes`, of what is collected below `updates`."""
    folder = tmp_path_factory.mktemp("trained")
    configs = tuple(replace(CONFIGS[0], k=k) for k in (2, 3))
    train_collection(
        stored(folder / "updates"), (), TrainingRun(folder / "saes", configs, PLAN, log_every=10, progress=False)
    )
    return folder


def test_what_is_written_is_what_runs_read(trained: Path) -> None:
    there = Collection.open(trained / "updates")
    lines = [json.loads(line) for line in (trained / "saes" / "figures.jsonl").read_text().splitlines()]
    assert [(line["block"], line["k"]) for line in lines] == [("mid.0", 2), ("mid.0", 3), ("up.0.1", 2), ("up.0.1", 3)]
    for line in lines:
        sae = load_saes(trained / "saes", [line["block"]], k=line["k"])[line["block"]]
        assert (sae.format, sae.n, sae.d, sae.signal) == ("sdxl-unbox", 24, WIDTH, "update")
        meter = Meter(sae)
        held_out = there.data(line["block"]).read(60 * ROWS - line["held_out"], 60 * ROWS)
        # A twentieth of 960 positions, in whole pictures of 16.
        assert len(held_out) == 48
        meter.add(held_out)
        assert meter.figures().explained_variance == line["explained_variance"] > 0.5
        assert (meter.figures().l0, meter.figures().dead_share) == (line["l0"], line["dead_share"])
        folder = trained / "saes" / line["folder"]
        mean, std = (torch.load(folder / "final" / f"{name}.pt", weights_only=True) for name in ("mean", "std"))
        codes = sae.encode(there.data(line["block"]).read(0, 912))
        active = codes > 0
        assert torch.allclose(mean, codes.sum(0) / active.sum(0).clamp(min=1), atol=1e-4)
        assert bool((std[active.sum(0) > 1] > 0).all())
        curve = [json.loads(row) for row in (folder / "curve.jsonl").read_text().splitlines()]
        assert [point["step"] for point in curve] == [10, 20, 28] and curve[-1]["positions"] == 28 * 64
        assert line["steps"] == 28 and line["positions"] == 28 * 64
    for block in ("mid.0", "up.0.1"):
        assert (trained / "saes" / f"curves_{block}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{block}" in (trained / "saes" / f"curves_{block}.svg").name
    assert not list((trained / "saes").glob("*.checkpoint"))


def test_repeating_trains_nothing_and_another_training_is_refused(trained: Path) -> None:
    there = Collection.open(trained / "updates")
    configs = tuple(replace(CONFIGS[0], k=k) for k in (2, 3))
    job = TrainingRun(trained / "saes", configs, PLAN, progress=False)
    before = files(job.out)
    messages: list[str] = []
    assert [line.k for line in train_collection(there, ("up.0.1",), job, messages.append)] == [2, 3]
    assert messages == ["up.0.1: finished before"] and files(job.out) == before
    for other, words in (
        (replace(job, configs=configs[:1]), "saes differ"),
        (replace(job, plan=replace(PLAN, seed=9)), "plan differ"),
    ):
        with pytest.raises(RiebenchError, match=f"saes holds another training: {words}"):
            train_collection(there, (), other)
    assert files(job.out) == before


def test_what_a_kill_left_behind_goes(tmp_path: Path, undrawn: None) -> None:
    there = stored(tmp_path / "updates", blocks=("mid.0",))
    job = TrainingRun(tmp_path / "saes", CONFIGS[:1], PLAN, progress=False)
    train_collection(there, (), job)
    before = files(job.out)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    half = temporary_path(job.out / "mid.0.checkpoint")
    half.with_name(half.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")).touch()
    # The line was written, the checkpoint not yet deleted.
    (job.out / "mid.0.checkpoint").touch()
    train_collection(there, (), job)
    assert files(job.out) == before


def test_memory_that_does_not_suffice_is_one_line(tmp_path: Path) -> None:
    there = stored(tmp_path / "updates", blocks=("mid.0",))
    job = TrainingRun(tmp_path / "saes", (replace(CONFIGS[0], features=10**13),), PLAN, progress=False)
    with pytest.raises(RiebenchError, match="not enough memory for 1 SAEs, the widest of 10000000000000 features, in"):
        train_collection(there, (), job)


def test_several_widths_and_kinds_lie_side_by_side(tmp_path: Path, undrawn: None) -> None:
    there = stored(tmp_path / "updates", blocks=("mid.0",))
    job = TrainingRun(tmp_path / "saes", CONFIGS, PLAN, progress=False)
    top, batch = train_collection(there, ("mid.0",), job)
    assert top.folder.startswith("topk-n24/") and batch.folder.startswith("batchtopk-n16/")
    sae = load_saes(job.root(CONFIGS[1]), ["mid.0"])["mid.0"]
    assert (sae.format, sae.activation, sae.k, sae.block) == ("dictionary_learning", "jump", 2, "mid.0")
    x = there.data("mid.0").read(0, 912)
    assert float((sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_form_is_the_trained_one(kind: Kind, tmp_path: Path) -> None:
    data = sparse(800, 12, WIDTH)[1]
    (one,) = train_many(data, [replace(CONFIGS[0], kind=kind)], PLAN, progress=False)
    one.save(tmp_path / "mid.0" / "final", "mid.0")
    sae = load_saes(tmp_path, ["mid.0"])["mid.0"]
    codes = one.model.codes(data)
    assert torch.equal(sae.encode(data) > 0, codes > 0) and torch.allclose(sae.encode(data), codes, atol=1e-5)
    assert torch.allclose(one.autoencoder("mid.0").encode(data), codes, atol=1e-5)
    assert (sae.k, sae.block, sae.signal) == (CONFIGS[0].k, "mid.0", "update")
    assert sae.format == {"topk": "sdxl-unbox", "jumprelu": "SAELens"}.get(kind, "dictionary_learning")
    assert {path.name for path in (tmp_path / "mid.0" / "final").iterdir()} > {"mean.pt", "std.pt"}
    assert torch.allclose(sae.decode(codes), codes @ one.model.decoder.T + one.model.pre_bias, atol=1e-5)


def test_damaged_missing_and_short_data_are_one_line(tmp_path: Path) -> None:
    there = stored(tmp_path / "updates")
    job = TrainingRun(tmp_path / "saes", CONFIGS[:1], PLAN, progress=False)
    for blocks, other, words in (
        (("up.0.0",), job, r"holds no updates of block up\.0\.0 \(did you mean 'up\.0\.1'\?\)"),
        (
            (),
            replace(job, plan=replace(PLAN, steps=29)),
            "no data left: 29 steps need 1856 positions, but 912 in 2 epochs",
        ),
        ((), replace(job, plan=replace(PLAN, batch_size=128, held_out=900)), "do not fill a batch of 128"),
        ((), replace(job, configs=CONFIGS[:1] * 2), "two of the SAEs differ in nothing"),
        ((), replace(job, configs=()), "no SAE is to be trained"),
    ):
        with pytest.raises(RiebenchError, match=words):
            train_collection(there, blocks, other)
    assert not (tmp_path / "saes").exists()
    path = there.path("mid.0", 2)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        RiebenchError, match=r"mid\.0/00002\.safetensors has changed since it was written.*redo-damaged"
    ):
        train_collection(there, (), job)
    path.write_bytes(data[:-1])
    with pytest.raises(RiebenchError, match=r"mid\.0/00002\.safetensors is cut off"):
        train_collection(there, (), job)
    path.write_bytes(data)
    there.forget([1])
    with pytest.raises(RiebenchError, match="lacks shard 1, which is to be made again"):
        train_collection(there, (), job)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 25}, "an SAE of 24 features cannot keep k = 25; k must be 1 to 24"),
        ({"k": 0}, "k must be 1 to 24"),
        ({"kind": "topx"}, "did you mean 'topk'"),
        ({"learning_rate": 0.0}, "the learning rate must be above 0"),
        ({"decay": 1.5}, "decay and warm-up from 0 to 1"),
        ({"warmup": -0.1}, "decay and warm-up from 0 to 1"),
        ({"recipe": "publish"}, "a recipe is standard or published, not 'publish' .did you mean 'published'"),
        ({"recipe": "published", "kind": "jumprelu"}, "no jumprelu SAE is trained by the published recipe"),
        ({"seed": 2**63}, "the seed must be 0 or more"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RiebenchError, match=words):
        replace(CONFIGS[0], **changes)


def test_plans_out_of_range() -> None:
    with pytest.raises(RiebenchError, match="a buffer of 100 positions cannot mix batches of 64; make it 192"):
        DataPass(batch_size=64, buffer=100)
    with pytest.raises(RiebenchError, match="must be 1 or more"):
        DataPass(held_out=0)


def test_a_loss_that_is_no_number_stops() -> None:
    data = sparse(800, 12, WIDTH)[1]
    data[::5] = float("inf")
    with pytest.raises(RiebenchError, match="the loss of k = 3, 24 features is no number at step 5"):
        train_many(data, CONFIGS[:1], PLAN, log_every=5, progress=False)


def test_the_rate_is_constant_or_falls_at_the_end() -> None:
    falling, constant = (
        replace(CONFIGS[0], steps=10, learning_rate=1.0, decay=decay, warmup=0.0) for decay in (0.4, 0.0)
    )
    assert [falling.rate(step) for step in range(10)] == [1.0] * 7 + [0.75, 0.5, 0.25]
    assert {constant.rate(step) for step in range(10)} == {1.0}
    rising = replace(falling, warmup=0.3)
    assert [rising.rate(step) for step in range(8)] == pytest.approx([1 / 3, 2 / 3, *[1.0] * 5, 0.75])
    assert SaeTraining(features=400, k=4).peak_rate == pytest.approx(0.005)
    assert SaeTraining(features=400, k=4).dead_positions == 100_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_measure_counts_the_products_of_a_step(kind: Kind) -> None:
    found = measure_step(32, SaeTraining(features=64, k=4, batch_size=128, kind=kind), repeats=2)
    assert found.flops == 12 * 128 * 64 * 32
    assert found.step > 0 and found.share > 0


def test_the_commands(tmp_path: Path, undrawn: None) -> None:
    stored(tmp_path / "updates", blocks=("mid.0",))
    command = [
        "sae", "train", str(tmp_path / "updates"), "--out", str(tmp_path / "saes"), "--k", "2,3", "--width", "24",
        "--batch-size", "64", "--buffer", "384", "--lr", "0.01", "--device", "cpu",
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert [line.split()[:4] for line in result.stdout.splitlines()[1:]] == [
        ["mid.0", "topk", "2", "24"], ["mid.0", "topk", "3", "24"]
    ]  # fmt: skip
    assert f"riebench run --sae '{tmp_path / 'saes'}#k=2'" in result.stderr
    for extra, words in (
        (["--k", "x"], "--k 'x': write whole numbers"),
        (["--k", "30"], "cannot keep k = 30"),
        (["--kind", "topx"], "--kind 'topx' (did you mean 'topk'?)"),
        (["--recipe", "publishd"], "--recipe 'publishd' (did you mean 'published'?)"),
        (["--recipe", "published", "--kind", "jumprelu"], "no jumprelu SAE is trained by the published recipe"),
        (["--recipe", "published"], "saes holds another training: saes differ"),
    ):
        result = CliRunner().invoke(app, [*command, *extra])
        assert result.exit_code == 2 and words in result.stderr.splitlines()[-1]
    result = CliRunner().invoke(app, ["sae", "speed", "--d", "16", "--width", "32", "--k", "2", "--repeats", "1"])
    assert result.exit_code == 0 and "share of the products" in result.stdout

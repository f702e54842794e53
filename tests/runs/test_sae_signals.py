"""SAEs of outputs and transcoders in whole runs: captured, measured, switched, collected for and trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_files import put_json
from safetensors.torch import load_file, save_file
from tiny import CHANNELS, FEATURES, GRID, SPARSITY, tiny_model, tiny_saes
from tiny_runs import SAE, picture, task

from riebench.errors import RiebenchError
from riebench.features.activity import Activity, observe, pictures_of
from riebench.features.inspect import measure_signals
from riebench.features.painter import Painter, switch
from riebench.generation.edits import Edit
from riebench.generation.generator import Capture, Generator
from riebench.generation.memory import footprint
from riebench.generation.trace import Trace
from riebench.methods.base import EditContext, ExampleRuns
from riebench.methods.features import choose_features
from riebench.paper.measure import reconstruction_edit
from riebench.runs import engines
from riebench.runs.capture import CapturePlan
from riebench.runs.plan import plan, works_of
from riebench.runs.prepare import prepare_all
from riebench.saes.figures import Meter
from riebench.saes.files import SaeOptions
from riebench.saes.formats import load_sae, load_saes
from riebench.saes.sae import Reads, Signal, SparseAutoencoder
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord, noise_seed
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample
from riebench.training.batches import DataPass
from riebench.training.collect import CollectOptions, collect, sizes
from riebench.training.collection import Collection
from riebench.training.run import TrainingRun, train_collection
from riebench.training.settings import KINDS, SaeTraining

BLOCK = "mid.0"
PROMPTS = ["a red house 0", "a red boat 0"]
EVERYTHING: tuple[Reads, ...] = ("update", "output", "input")
LIVE = SAE.model_copy(update={"name": "live", "params": {"n_features": 10, "adaptive": True}})
KEY = ("e0", "mid.0+up.0.1", 3.0)


@pytest.fixture(scope="module")
def transcoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a transcoder of each block that `SAE` edits, with a skip connection."""
    root, generator = tmp_path_factory.mktemp("transcoders"), torch.Generator().manual_seed(4)
    for block in SAE.blocks:
        shapes = {"encoder.weight": (FEATURES, CHANNELS), "W_dec": (FEATURES, CHANNELS), "W_skip": (CHANNELS, CHANNELS)}
        state = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
        state |= {"encoder.bias": torch.zeros(FEATURES), "b_dec": torch.zeros(CHANNELS)}
        put_json(
            root / block, "cfg.json", {"d_in": CHANNELS, "num_latents": FEATURES, "k": SPARSITY, "transcode": True}
        )
        save_file(state, root / block / "sae.safetensors")
    return root


def loaded(root: Path, signal: Signal) -> dict[str, SparseAutoencoder]:
    return load_saes(root, SAE.blocks, options=SaeOptions(signal=signal))


def run(root: Path, source: str, *settings: Any, **options: Any) -> list[RunFolder]:
    options = {"results_root": root, "saes_source": source, "progress": False, "accept_sae": True, **options}
    return engines.run("local", [task()], settings, tiny_model(), **options)


def by_place(folder: RunFolder) -> dict[tuple[str, str, float], EditRecord]:
    return {(one.key.example_id, one.key.block_set, one.key.strength): one for one in folder.records()}


def switched(record: EditRecord) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {block: (one.add, one.remove) for block, one in record.features.items()}


def chosen_by_hand(saes: Mapping[str, SparseAutoencoder]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The features that the first example switches, from values captured here."""
    wanted = Capture(SAE.blocks, keep=EVERYTHING)
    trace = Generator(tiny_model()).generate(PROMPTS, [noise_seed("e0", 0)] * 2, capture=wanted).trace
    whole = np.ones((GRID, GRID), dtype=bool)
    example = EditExample(id="e0", source=PROMPTS[0], target=PROMPTS[1])
    runs = ExampleRuns(example, 0, trace, {"source": 0, "target": 1}, RegionMasks(whole, whole))
    return choose_features(EditContext(runs, SAE.blocks, saes), 10, "first", "joint").lists()


@pytest.mark.parametrize("kind", ["output", "transcoder"])
def test_a_run_switches_features_of_what_its_saes_read(tmp_path: Path, transcoders: Path, kind: str) -> None:
    signal: Signal = "output" if kind == "output" else "update"
    root = tiny_saes() if kind == "output" else transcoders
    source = f"{root}#signal={signal}"
    static, live = run(tmp_path / "all", source, SAE, LIVE, batch_size=7)
    (updates,) = run(tmp_path / "updates", str(tiny_saes()), SAE, limit=1)
    assert {one.status for folder in (static, live) for one in folder.records()} == {"ok"}
    assert len(by_place(static)) == len(by_place(live)) == 12
    chosen = switched(by_place(static)[KEY])
    assert chosen == chosen_by_hand(loaded(root, signal)) != switched(by_place(updates)[KEY])
    assert static.spec.sae_sha256 != updates.spec.sae_sha256
    source_picture = picture(live, by_place(live)[(*KEY[:2], 0.0)])
    edited = {folder.spec.setting.name: picture(folder, by_place(folder)[KEY]) for folder in (static, live)}
    assert all((one != source_picture).any() for one in edited.values())
    assert (edited["sae"] != edited["live"]).any()
    # As many pictures at a time as one likes.
    (alone,) = run(tmp_path / "alone", source, LIVE, batch_size=1)
    for place, record in by_place(live).items():
        assert np.abs(picture(live, record) - picture(alone, by_place(alone)[place])).max() <= 1


def test_what_saes_read_is_captured_and_counted(tmp_path: Path, transcoders: Path) -> None:
    model, settings = tiny_model(), [SAE]
    generator, works = Generator(model), works_of(plan([task(1)], settings), fixed_noise=model.spec.fixed_noise)
    sources = {"update": str(tiny_saes()), "output": f"{tiny_saes()}#signal=output",
               "input": f"{transcoders}#signal=update"}  # fmt: skip
    held: dict[str, int] = {}
    for reads, source in sources.items():
        prepared = prepare_all(settings, "tiny", model, tmp_path / reads, source, "none", False)
        found = CapturePlan(generator, prepared, lambda work: False)
        wanted = found.captures(works)[0]
        assert wanted.keep == (("update",) if reads == "update" else ("update", reads))
        assert found.reference_captures(works[0])[0].keep == wanted.keep
        trace = generator.generate(PROMPTS, [0, 0], capture=wanted).trace
        assert trace.nbytes <= found.footprint(works).nbytes(long=False, metered=False)
        held[reads] = found.footprint(works).nbytes(long=False, metered=False)
        # Whether 16 bits are kept must not hang on it: other methods' numbers would.
        assert found.footprint(works).numbers == footprint(found._shape, 32, 2, SAE.blocks).numbers
    assert held["output"] == held["input"] == 2 * held["update"]


def captured(prompts: list[str], guidance: float = 0.0) -> list[Trace]:
    wanted = Capture((BLOCK,), keep=EVERYTHING)
    generator = Generator(tiny_model(2, guidance))
    return [generator.generate([one], [i], capture=wanted).trace for i, one in enumerate(prompts)]


def positions(trace: Trace, what: Reads) -> torch.Tensor:
    return trace.get(BLOCK, what).movedim(2, -1).flatten(0, 3)


def test_a_transcoder_is_measured_against_what_it_predicts(transcoders: Path) -> None:
    sae = load_sae(transcoders / BLOCK)
    signals: tuple[Signal, ...] = ("update", "output")
    (found,) = measure_signals([(BLOCK, sae, signals)], tiny_model(2, 3.0), PROMPTS, batch_size=2, progress=False)
    for signal in signals:
        meter = Meter(sae)
        for trace in captured(PROMPTS, 3.0):
            meter.add(positions(trace, "input"), positions(trace, signal))
        expected = meter.figures()
        assert found[signal].positions == expected.positions == 2 * 2 * 16
        assert found[signal].explained_variance == pytest.approx(expected.explained_variance, rel=2e-3)
        assert found[signal].l0 == pytest.approx(expected.l0, abs=0.05)
    assert found["update"] != found["output"]
    # The skip connection alone, as the identity, and nothing else: outputs are inputs plus updates.
    zeros = torch.zeros(CHANNELS), torch.zeros(CHANNELS), torch.full((1,), -1e9)
    copy = SparseAutoencoder(torch.ones(1, CHANNELS), torch.ones(1, CHANNELS), *zeros, activation="relu",
                             transcoder=True, skip=torch.eye(CHANNELS))  # fmt: skip
    (figures,) = measure_signals([(BLOCK, copy, ("output",))], tiny_model(2, 3.0), PROMPTS, progress=False)
    outputs, rest = (torch.cat([positions(trace, what) for trace in captured(PROMPTS, 3.0)]).double()
                     for what in EVERYTHING[1::-1])  # fmt: skip
    share = 1 - rest.square().sum() / (outputs - outputs.mean(0)).square().sum()
    assert figures["output"].explained_variance == pytest.approx(float(share), rel=2e-3)


def test_features_are_observed_and_switched_in_what_the_sae_reads(transcoders: Path) -> None:
    pictures = pictures_of(PROMPTS, [0])
    generator = Generator(tiny_model())
    for sae, reads in (
        (loaded(tiny_saes(), "output")[BLOCK], "output"),
        (loaded(transcoders, "update")[BLOCK], "input"),
    ):
        activity = Activity(sae, [1])
        observe(generator, {BLOCK: activity}, pictures, progress=False)
        sizes_found = torch.cat([sae.contributions(positions(trace, sae.reads)).abs() for trace in captured(PROMPTS)])
        assert sae.reads == reads
        torch.testing.assert_close(activity.largest, sizes_found.amax(0), atol=1e-3, rtol=1e-3)
        # Taking all features away leaves what they do not explain, whatever the step.
        everything = switch({BLOCK: sae}, {}, {(BLOCK, index): 1.0 for index in range(FEATURES)})
        wanted = Capture((BLOCK,), keep=("update", "output", "input"))
        made = generator.generate(PROMPTS[:1] * 2, [0, 0], edits=[everything, None], capture=wanted).trace
        plain = made.row(BLOCK, 1, sae.reads)[0]
        moved = made.row(BLOCK, 0)[0] - made.row(BLOCK, 1)[0]
        torch.testing.assert_close(moved, -(sae.contributions(plain) @ sae.directions), atol=2e-3, rtol=1e-3)


def test_the_strongest_features_are_those_of_what_the_sae_reads() -> None:
    painter = Painter(tiny_model(), f"{tiny_saes()}#signal=output", prompts=PROMPTS)
    (first, *_) = painter.strongest(PROMPTS[0], blocks=[BLOCK], count=3)
    values = painter.sae(BLOCK).contributions(captured(PROMPTS[:1])[0].row(BLOCK, 0, "output"))
    assert first.value == pytest.approx(float(values[..., first.index].mean()), rel=1e-3)


def test_a_reconstruction_takes_the_place_of_what_the_sae_reconstructs(transcoders: Path) -> None:
    generator, wanted = Generator(tiny_model()), Capture((BLOCK,), keep=EVERYTHING)

    def edited(edit: Edit) -> Trace:
        return generator.generate(PROMPTS[:1], [0], edits=[edit], capture=wanted).trace

    for sae in (loaded(transcoders, "update")[BLOCK], loaded(tiny_saes(), "output")[BLOCK]):
        trace = edited(reconstruction_edit({BLOCK: sae}))
        x = (
            trace.row(BLOCK, 0, "input")[0]
            if sae.reads == "input"
            else captured(PROMPTS[:1])[0].row(BLOCK, 0, "output")[0]
        )
        expected = sae.decode(sae.encode(x), x)
        torch.testing.assert_close(trace.row(BLOCK, 0, sae.signal or "update")[0], expected, atol=2e-3, rtol=1e-3)


COLLECTED = CollectOptions(
    blocks=(BLOCK, "up.0.1"), batch_size=2, pictures_per_shard=2, signals=("input", "update", "output")
)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Three pictures' updates, outputs and inputs."""
    folder = tmp_path_factory.mktemp("collected")
    return collect(tiny_model(2, 3.0), [*PROMPTS, "a cat"], folder, COLLECTED, progress=False)


def test_collected_outputs_are_inputs_plus_updates(collection: Collection, tmp_path: Path) -> None:
    rows = 2 * GRID * GRID
    for block in COLLECTED.blocks:
        stored = {what: collection.data(block, what) for what in EVERYTHING}
        assert {len(one) for one in stored.values()} == {3 * rows}
        update, output, before = (stored[what].read(0, 3 * rows).float() for what in EVERYTHING)
        torch.testing.assert_close(output, before + update, atol=2e-2, rtol=2e-3)
    wanted = Capture((BLOCK,), keep=EVERYTHING)
    trace = Generator(tiny_model(2, 3.0)).generate(PROMPTS, [0, 1], capture=wanted).trace
    for what in EVERYTHING:
        assert torch.equal(collection.data(BLOCK, what).read(0, 2 * rows), positions(trace, what).half())
    assert collection.index.signal == "update,output,input"
    assert {*load_file(collection.path(BLOCK, 0))} == {"updates", "outputs", "inputs"}
    assert "update, output, input; width 64" in sizes(collection.index, 1000)[0]
    # Begun again, everything is there; of updates alone the numbers are the same.
    again = collect(tiny_model(2, 3.0), [*PROMPTS, "a cat"], collection.folder, COLLECTED, progress=False)
    assert again.shards == collection.shards
    alone = collect(tiny_model(2, 3.0), PROMPTS, tmp_path, CollectOptions((BLOCK,), batch_size=2), progress=False)
    assert torch.equal(alone.data(BLOCK).read(0, rows), collection.data(BLOCK).read(0, rows))
    with pytest.raises(RiebenchError, match=r"holds no outputs.*; collect them with --signal output"):
        alone.data(BLOCK, "output")
    with pytest.raises(RiebenchError, match=r"signal is update,output,input, not update"):
        collect(tiny_model(2, 3.0), PROMPTS, collection.folder, CollectOptions((BLOCK, "up.0.1"), None, 0, 2, 2))


def test_what_cannot_be_collected_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RiebenchError, match=r"signals are update, output, input, not ouput \(did you mean 'output'\?\)"
    ):
        CollectOptions(signals=("ouput",))
    with pytest.raises(RiebenchError, match=r"inputs of up\.0\.res\.2 are not as wide as its updates"):
        collect(tiny_model(1), PROMPTS, tmp_path, CollectOptions(("up.0.res.2",), signals=("input",)))


def test_a_training_on_outputs_says_so_in_what_it_writes(collection: Collection, tmp_path: Path) -> None:
    configs = tuple(SaeTraining(features=24, k=3, auxk=4, learning_rate=1e-2, kind=kind) for kind in KINDS)
    data_pass = DataPass(batch_size=16, epochs=2, buffer=96, held_out=32)
    outputs = TrainingRun(tmp_path / "outputs", configs, data_pass, progress=False, signal="output")
    lines = train_collection(collection, (BLOCK,), outputs)
    updates = TrainingRun(tmp_path / "updates", configs, data_pass, progress=False)
    train_collection(collection, (BLOCK,), updates)
    for line in lines:
        found = load_sae(outputs.out / line.folder)
        assert (found.signal, found.block) == ("output", BLOCK)
        assert load_sae(updates.out / line.folder).signal == "update"
        held_out = collection.data(BLOCK, "output").read(64, 96).float()
        meter = Meter(found)
        meter.add(held_out)
        assert line.explained_variance == pytest.approx(meter.figures().explained_variance, abs=2e-3)
    for one, other in ((updates, outputs), (outputs, updates)):
        with pytest.raises(RiebenchError, match="holds another training: the signal differ"):
            train_collection(collection, (BLOCK,), replace(one, signal=other.signal))

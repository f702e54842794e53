"""A sweep costs what it must: runs, prompts, feature values, masks and embeddings once, equal pictures never again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import pytest
from tiny import tiny_model, tiny_saes
from tiny_runs import task
from torch import nn

from benchmarks.sdxl.counting import whole_evaluations
from riebench.generation.generator import Generator
from riebench.generation.units import examples_with_units
from riebench.models.families.sdxl.names import BLOCKS
from riebench.runs.capture import CapturePlan
from riebench.runs.runner import run_benchmark
from riebench.runs.sae_check import check_saes
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.score import score
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import Setting

STEPS = 2
EXAMPLES = 2
STRENGTHS = (1.0, 2.0, 3.0, 4.0)
SWEEP = [
    *(Setting(name=f"sae_k{count}", method="sae", params={"n_features": count}, strengths=STRENGTHS)
      for count in (4, 8, 16, 32)),
    *(Setting(name=f"neurons_k{count}", method="neurons", params={"n_units": count}, strengths=STRENGTHS)
      for count in (50, 100, 200, 400)),
]  # fmt: skip
"""The published sweep's shape: 32 edited pictures an example, of two methods."""
EQUAL = [
    Setting(name="no_edit", method="no_edit", blocks=()),
    Setting(name="target_prompt", method="target_prompt", blocks=()),
    Setting(name="off", method="sae", params={"n_features": 4}, strengths=(0.0,)),
    Setting(name="ends", method="embed_lerp", blocks=(), strengths=(0.0, 1.0)),
]
"""Settings whose pictures are known before they are made."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each shared piece of work is done."""
    tiny_saes()
    seen: Counter[str] = Counter()

    def watch(owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen[label] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    watch(SparseAutoencoder, "contributions", "codes")
    watch(RegionMasks, "to_json", "masks")
    watch(tiny_model(STEPS).pipe, "encode_prompt", "prompts")
    watch(Generator, "generate", "batches")
    return seen


def rows_of(unet: nn.Module, counter: Counter[str]) -> Any:
    """Counts U-Net evaluations, the rows of a batch one by one."""

    def count(_module: Any, args: Any, output: Any) -> None:
        counter["evaluations"] += len(args[0])

    return unet.register_forward_hook(count)


def test_the_published_sweep_takes_34_evaluations_an_example_and_step(tmp_path: Path, counted: Counter[str]) -> None:
    model = tiny_model(STEPS)
    handle = rows_of(model.denoiser, counted)
    try:
        folders = run_benchmark(
            [task(EXAMPLES, region="house")], [*SWEEP, *EQUAL], model, results_root=tmp_path, batch_size=16,
            saes_source=str(tiny_saes()), progress=False,
        )  # fmt: skip
    finally:
        handle.remove()
    records = [record for folder in folders for record in folder.records()]
    assert Counter(record.status for record in records) == {"ok": EXAMPLES * (32 + 5)}
    # One by one, every edited picture takes three generations, and the two plain ones are made for themselves.
    one_by_one = (3 * 32 + 2) * STEPS * EXAMPLES
    # The SAEs are measured first, on the source pictures of the first examples, which are few in any run.
    check = STEPS * EXAMPLES
    assert counted["evaluations"] - check == 34 * STEPS * EXAMPLES < one_by_one == 98 * STEPS * EXAMPLES
    # Encoding is also called, with nothing to encode, whenever the pipeline runs.
    assert counted["prompts"] - counted["batches"] == 2 * EXAMPLES + EXAMPLES
    # Four blocks of two runs.
    assert counted["codes"] == 4 * 2 * EXAMPLES
    assert counted["masks"] == EXAMPLES


UNIT_SWEEP = [
    Setting(name="sae", method="sae", params={"n_features": 8}, strengths=(2.0, 3.0)),
    Setting(name="steering", method="mean_steering", strengths=(2.0, 3.0)),
    Setting(name="patch", method="activation_patch", strengths=(2.0, 3.0)),
    Setting(name="neurons", method="neurons", params={"n_units": 100}, strengths=(2.0, 3.0)),
]
"""Eight edited pictures an example, two of them by units that are too many for the trace."""


FIRST_BLOCK = "down_blocks.2.attentions.1"
"""Path of the first block that the sweep's edits change."""


def run_unit_sweep(
    folder: Path, batch_size: int, block_mode: Literal["together", "each"] = "together"
) -> tuple[dict[str, np.ndarray[Any, Any]], Counter[str]]:
    """Return the pictures of two examples at four steps, and rows evaluated an example.

    These are all "evaluations", "whole" ones, those that compute the first "block", and the rows whose "text" keys are
    computed. The source pictures in which the SAEs are measured first are not counted.
    """
    model, counter = tiny_model(4), Counter[str]()
    handle = rows_of(model.denoiser, counter)
    block: Any = model.denoiser.get_submodule(FIRST_BLOCK)
    named = {
        model.denoiser.conv_in: "whole", block.proj_in: "block", block.transformer_blocks[0].attn2.to_k: "text"
    }  # fmt: skip

    def counting(plain: Any) -> Any:
        def forward(module: nn.Module, values: Any) -> Any:
            # What is taken from another run does not come here.
            if module in named:
                counter[named[module]] += len(values)
            return plain(module, values)

        return forward

    def begin(*args: Any, **options: Any) -> Any:
        counter.clear()
        return check_saes(*args, **options)

    try:
        with pytest.MonkeyPatch.context() as patch:
            for kind in (nn.Conv2d, nn.Linear):
                patch.setattr(kind, "forward", counting(kind.forward))
            patch.setattr("riebench.runs.runner.check_saes", begin)
            folders = run_benchmark(
                [task(2, region="house")],
                [setting.model_copy(update={"block_mode": block_mode}) for setting in UNIT_SWEEP],
                model, results_root=folder, batch_size=batch_size, saes_source=str(tiny_saes()), progress=False,
            )  # fmt: skip
    finally:
        handle.remove()
    records = [(one, record) for one in folders for record in one.records()]
    assert Counter(record.status for _, record in records) == {"ok": 16 * (len(BLOCKS) if block_mode == "each" else 1)}
    found = {f"{one.path.name} {record.key.digest}": one.read_image(str(record.image)) for one, record in records}
    return found, Counter({name: rows // 2 for name, rows in counter.items()})


def test_a_sweep_of_single_blocks_takes_34_rows_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.generation.memory.UNITS_KEPT", 0)
    monkeypatch.setattr("riebench.methods.activations.UNIT_BUDGET", 0)
    _, rows = run_unit_sweep(tmp_path, 16, "each")
    # Source and target run serve all blocks; each block's eight edits take four steps, the first from its middle on.
    assert rows["evaluations"] == 8 + len(BLOCKS) * 8 * 4 == len(BLOCKS) * 34
    assert rows["whole"] == 8 + len(BLOCKS) * 8 * 3
    # As operations on SDXL, were each block swept in a run of its own with two runs of its own.
    alone = {block: whole_evaluations(512, 40, {block: 6, f"{block} begins": 2}, texts=4) for block in BLOCKS}
    assert max(alone, key=alone.__getitem__) == BLOCKS[0] and mean(alone.values()) < 36


def test_large_neuron_edits_repeat_no_run_while_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.generation.memory.UNITS_KEPT", 0)
    monkeypatch.setattr("riebench.methods.activations.UNIT_BUDGET", 0)
    pictures, rows = {}, {}
    for name, share, batch in (("kept", 0.25, 16), ("alone", 0.25, 1), ("repeated", 0.0, 16)):
        monkeypatch.setattr("riebench.generation.memory.UNITS_SHARE", share)
        pictures[name], rows[name] = run_unit_sweep(tmp_path / name, batch)
    # Two runs and eight edited pictures of four steps; edits share the beginning of their first one with the source.
    # Keys of the text are computed for both prompts, and once for the batch of edits.
    assert rows["kept"] == {"evaluations": 40, "whole": 32, "block": 40, "text": 3}
    # In batches of their own the six edits of updates go on behind the block, and those of its units before it.
    assert rows["alone"] == {"evaluations": 40, "whole": 32, "block": 34, "text": 10}
    # As operations on SDXL, with both in batches of their own.
    resumed = {"down.2.1": 40 - 34, "down.2.1 begins": 34 - 32}
    assert 36 < whole_evaluations(512, 40, resumed, texts=4) < 37
    assert whole_evaluations(512, 40, {}, texts=40) == 40
    # Beside: two runs to rank, two more in the batch of both strengths, which then begin anew.
    assert rows["repeated"]["evaluations"] == 40 + 16 and rows["repeated"]["whole"] > 36
    for name in ("alone", "repeated"):
        for unit, picture in pictures["kept"].items():
            difference = np.abs(picture.astype(int) - pictures[name][unit])
            assert difference.max() <= 1, unit


def test_units_are_kept_of_as_many_examples_as_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.generation.memory.UNITS_KEPT", 0)
    whole, _ = run_unit_sweep(tmp_path / "whole", 16)
    # Memory for both when they are put together, and for one when their runs begin.
    counts = iter((2, 1))
    monkeypatch.setattr("riebench.runs.capture.examples_with_units", lambda nbytes, count: next(counts))
    part, rows = run_unit_sweep(tmp_path / "part", 16)
    assert rows["evaluations"] == 40 + 16 // 2
    assert all(np.abs(picture.astype(int) - part[unit]).max() <= 1 for unit, picture in whole.items())


@pytest.mark.parametrize(("share", "expected"), [(0.25, 2), (0.125, 1), (0.1, 0), (1.0, 3)])
def test_what_units_may_take_is_a_share_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, share: float, expected: int
) -> None:
    monkeypatch.setattr("riebench.generation.memory.UNITS_SHARE", share)
    monkeypatch.setattr("riebench.utils.machine.free_ram", lambda: 800)
    assert examples_with_units(100, 3) == expected


def test_scoring_embeds_each_picture_and_prompt_once_over_all_settings(tmp_path: Path) -> None:
    patches = [Setting(name=name, method="activation_patch", strengths=(s, 2 * s)) for name, s in (("a", 4), ("b", 5))]
    folders = run_benchmark(
        [task(EXAMPLES)], [*patches, *EQUAL[:2]], tiny_model(STEPS), results_root=tmp_path, progress=False
    )
    pictures: Counter[bytes] = Counter()
    texts: Counter[str] = Counter()

    def embed_pictures(batch: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        pictures.update(picture.tobytes() for picture in batch)
        return np.stack([[picture.mean(), 1.0] for picture in batch])

    def embed_texts(batch: list[str]) -> np.ndarray[Any, Any]:
        texts.update(batch)
        return np.stack([[len(text), 1.0] for text in batch])

    networks = Networks(ready={"clip": ClipScorer(embed_pictures, embed_texts, backbone="fake")})
    names = ("clip_target", "clip_gain", "clip_margin", "clip_direction", "clip_image")
    report = score(folders, [task(EXAMPLES)], metrics=names, networks=networks, batch_size=3, progress=False)
    assert report.units == EXAMPLES * 6
    assert set(pictures.values()) == set(texts.values()) == {1}
    # Edited, source and target pictures of each example; a source and a target prompt.
    assert len(pictures) == EXAMPLES * (4 + 2) and len(texts) == EXAMPLES * 2


def test_what_is_captured_is_decided_in_time_that_grows_as_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Counter[int]()
    original = CapturePlan.footprint

    def footprint(self: CapturePlan, works: Any) -> Any:
        looked[count] += len(works)
        return original(self, works)

    monkeypatch.setattr(CapturePlan, "footprint", footprint)
    for count in (4, 12):
        run_benchmark(
            [task(count)], EQUAL[:1], tiny_model(STEPS), results_root=tmp_path / str(count), batch_size=2,
            progress=False,
        )  # fmt: skip
    assert 0 < looked[12] <= 3 * looked[4]

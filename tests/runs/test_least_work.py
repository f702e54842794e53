"""A sweep costs what it must: runs, prompts, feature values, masks and embeddings once, equal pictures never again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model, tiny_saes
from tiny_runs import task
from torch import nn

from riebench.generation.generator import Generator
from riebench.runs.capture import CapturePlan
from riebench.runs.runner import run_benchmark
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
    assert counted["evaluations"] == 34 * STEPS * EXAMPLES < one_by_one == 98 * STEPS * EXAMPLES
    # Encoding is also called, with nothing to encode, whenever the pipeline runs.
    assert counted["prompts"] - counted["batches"] == 2 * EXAMPLES
    # Four blocks of two runs.
    assert counted["codes"] == 4 * 2 * EXAMPLES
    assert counted["masks"] == EXAMPLES


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

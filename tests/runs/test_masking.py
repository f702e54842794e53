"""Masks by models of their own: made in one go, stored, and the models gone before the first edit."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny import SIZE, tiny_model
from tiny_regions import tiny_detector, tiny_segmenter
from transformers import Sam2Model

from riebench.errors import DeviceLostError, MemoryShortageError, RiebenchError
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.regions import options as region_specs
from riebench.generation.regions.masks import View
from riebench.generation.regions.options import RegionOptions
from riebench.registry import REGIONS
from riebench.runs.runner import NO_REGION, run_benchmark
from riebench.store.folder import RunFolder
from riebench.tasks.masks import Mask, RegionMasks
from riebench.tasks.schema import EditExample, EditTask, Setting

PATCH = Setting(name="patch", method="activation_patch", blocks=("mid.0",))
LEFT = np.arange(SIZE)[None, :].repeat(SIZE, 0) < SIZE // 2
COMMIT = "a" * 40


class FakeOptions(RegionOptions):
    """One model, on the hub."""

    model: str = f"some/fake@{COMMIT}"

    @property
    def models(self) -> dict[str, str]:
        """The model."""
        return {"model": self.model}


class Fake:
    """Finds every word on the left, and knows how often it was loaded and who is still there."""

    loads: ClassVar[list[str]] = []
    alive: ClassVar[weakref.WeakSet[Fake]] = weakref.WeakSet()

    @classmethod
    def load(cls, options: FakeOptions, folders: Mapping[str, Path], device: torch.device) -> Fake:
        """Notes that it was loaded."""
        assert folders["model"].name == COMMIT and device.type == "cpu"
        cls.loads.append("load")
        one = cls()
        cls.alive.add(one)
        return one

    def __call__(self, words: str | None, view: View) -> Mask:
        """The left half; trouble and nothing when asked for them."""
        assert view.attention is None and view.image.shape == (SIZE, SIZE, 3)
        if words == "trouble":
            raise RiebenchError("cannot look at this one")
        return LEFT & (words != "nothing")


@dataclass
class Seen:
    """What happened, in order."""

    events: list[str] = field(default_factory=list)
    cache: Path = Path()


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The fake provider, its model in a hub cache, and a log of generations."""
    watch = Seen(cache=tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(watch.cache))
    snapshot = watch.cache / "models--some--fake" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    monkeypatch.setattr(Fake, "loads", watch.events)
    monkeypatch.setitem(REGIONS._objects, "fake", Fake)
    monkeypatch.setitem(region_specs.OPTIONS, "fake", FakeOptions)
    original = Generator.generate

    def generate(self: Generator, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> GenerationResult:
        assert not Fake.alive, "a region model is in memory while pictures are made"
        captures = options.get("capture")
        assert captures is None or captures[1].sites == (), "attention is kept though nobody looks at it"
        watch.events.append("edits" if options.get("edits") else "pictures" if captures is None else "traces")
        return original(self, prompts, seeds, **options)

    monkeypatch.setattr(Generator, "generate", generate)
    monkeypatch.setattr(tiny_model().pipe, "maybe_free_model_hooks", lambda: watch.events.append("parked"))
    return watch


def task(*regions: str) -> EditTask:
    """One example for each source region."""
    examples = tuple(
        EditExample(id=f"e{i}", source=f"a red house {i}", target=f"a red boat {i}", source_region=region,
                    target_region="whole" if region == "whole" else "boat")
        for i, region in enumerate(regions)
    )  # fmt: skip
    return EditTask(name="t", version=1, category="change_object", suite="tiny", examples=examples)


def run(folder: Path, *regions: str, provider: str = "fake", **options: Any) -> RunFolder:
    """Runs one setting on examples with these source regions."""
    (done,) = run_benchmark(
        [task(*regions)], [PATCH], tiny_model(), results_root=folder, progress=False, regions=provider, offline=True,
        batch_size=2, **options,
    )  # fmt: skip
    return done


def masks_of(folder: RunFolder, index: int = 0) -> dict[str, Any]:
    """The stored masks of an example."""
    stored = folder.shared.read_json(folder.shared.mask_name(folder.records()[index].key))
    assert isinstance(stored, dict)
    return stored


def test_models_are_loaded_once_after_the_pictures_and_gone_before_the_edits(tmp_path: Path, seen: Seen) -> None:
    folder = run(tmp_path, "house", "not: house", "background")
    # With two pictures at a time, three examples are three chunks; edits wait until two are together.
    made = [event for event in seen.events if event != "parked"]
    assert made[:4] == ["pictures", "pictures", "pictures", "load"]
    assert "load" not in made[4:] and "pictures" not in made[4:] and made.count("traces") == 3
    # Whatever offloading left on the device goes before the models come.
    assert seen.events[seen.events.index("load") - 1] == "parked"
    assert [record.status for record in folder.records()] == ["ok"] * 3
    found = [RegionMasks.from_json(masks_of(folder, index)) for index in range(3)]
    assert np.array_equal(found[0].source, LEFT) and np.array_equal(found[0].target, LEFT)
    assert np.array_equal(found[1].source, ~LEFT) and np.array_equal(found[2].source, ~LEFT)
    assert masks_of(folder)["provider"] == f"fake:model=some/fake@{COMMIT}" == folder.spec.regions
    assert len(list((folder.shared.path / "masks").glob("*.png"))) == 3


def test_stored_masks_are_used_and_no_model_is_needed_any_more(tmp_path: Path, seen: Seen) -> None:
    first = run(tmp_path, "house")
    before = [path.read_bytes() for path in sorted((first.shared.path / "masks").iterdir())]
    shutil.rmtree(seen.cache)
    seen.events.clear()
    again = run(tmp_path, "house", redo="all")
    assert [event for event in seen.events if event != "parked"] == ["traces", "edits"]
    assert [path.read_bytes() for path in sorted((again.shared.path / "masks").iterdir())] == before
    assert again.spec.run_id == first.spec.run_id


def test_stored_pictures_are_looked_at_again(tmp_path: Path, seen: Seen) -> None:
    folder = run(tmp_path, "house")
    shutil.rmtree(folder.shared.path / "masks")
    seen.events.clear()
    run(tmp_path, "house", redo="all")
    assert [event for event in seen.events if event != "parked"] == ["load", "traces", "edits"]


def test_where_nothing_is_looked_for_no_model_is_loaded(tmp_path: Path, seen: Seen) -> None:
    shutil.rmtree(seen.cache)
    folder = run(tmp_path, "whole")
    assert "load" not in seen.events and folder.records()[0].status == "ok"
    assert RegionMasks.from_json(masks_of(folder)).source.all()


def test_what_is_not_found_is_a_skip_and_what_fails_is_an_error_of_its_own(tmp_path: Path, seen: Seen) -> None:
    records = run(tmp_path, "seen: nothing", "seen: trouble", "house").records()
    assert {(r.key.example_id, r.status, r.reason) for r in records} == {
        ("e0", "skipped", NO_REGION), ("e1", "error", "cannot look at this one"), ("e2", "ok", None),
    }  # fmt: skip
    assert seen.events.count("load") == 1


def test_missing_models_are_named_before_anything_is_made(tmp_path: Path, seen: Seen) -> None:
    shutil.rmtree(seen.cache)
    with pytest.raises(RiebenchError, match=r"--regions fake needs some/fake: .*--regions fake:model=FOLDER"):
        run(tmp_path, "house")
    assert seen.events == []


def test_other_regions_are_another_run(tmp_path: Path, seen: Seen) -> None:
    folder = run(tmp_path, "whole")
    plain = run(tmp_path / "other", "whole", provider="attention")
    assert plain.spec.regions == "attention" and plain.spec.run_id != folder.spec.run_id
    with pytest.raises(RiebenchError, match="holds another run: regions is"):
        run(tmp_path, "whole", provider="attention")


def test_the_real_classes_make_a_runs_masks(tmp_path: Path) -> None:
    places = f"detector={tiny_detector()},segmenter={tiny_segmenter()}"
    folder = run(tmp_path, "house", provider=f"grounded-sam:{places},box=0,widen=3,cell=8")
    stored = masks_of(folder)
    assert stored["provider"].startswith("grounded-sam:box=0.0,cell=8,detector=sha256-")
    assert str(tmp_path) not in stored["provider"]
    source = RegionMasks.from_json(stored).source
    # Whole cells of 8 pixels, whatever random weights see.
    assert np.array_equal(source, source[::8, ::8].repeat(8, 0).repeat(8, 1))
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Sam2Model)]
    shy = run(tmp_path / "shy", "house", provider=f"grounded-sam:{places},box=0.999,cell=8")
    assert [(record.status, record.reason) for record in shy.records()] == [("skipped", NO_REGION)]
    with pytest.raises(RiebenchError, match="cells of 5 pixels do not divide a picture side of 32"):
        run(tmp_path / "odd", "house", provider=f"grounded-sam:{places},cell=5")


def test_a_shortage_while_pictures_are_drawn_is_remembered(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, refused = Generator.generate, []

    def short(self: Generator, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> GenerationResult:
        if len(prompts) > 2:
            refused.append(len(prompts))
            raise MemoryShortageError("not enough memory")
        return before(self, prompts, seeds, **options)

    monkeypatch.setattr(Generator, "generate", short)
    (folder,) = run_benchmark(
        [task(*["house"] * 8)], [PATCH], tiny_model(), results_root=tmp_path, progress=False, regions="fake",
        offline=True, batch_size=8,
    )  # fmt: skip
    assert refused == [8, 4] and [record.status for record in folder.records()] == ["ok"] * 8


def test_a_device_lost_while_pictures_are_drawn_ends_the_run(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def lost(self: Generator, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> GenerationResult:
        tried.append(len(prompts))
        raise DeviceLostError("the GPU fell off the bus")

    monkeypatch.setattr(Generator, "generate", lost)
    with pytest.raises(DeviceLostError, match="bus"):
        run(tmp_path, "house", "house")
    assert tried == [2] and seen.events == []

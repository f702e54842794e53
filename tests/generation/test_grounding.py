"""Grounding DINO with SAM 2, and CLIPSeg: thresholds, boxes, masks, and what damaged files say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_regions import detector_processor, segmenter_processor, tiny_clipseg, tiny_detector, tiny_segmenter

from riebench.errors import RiebenchError
from riebench.generation.regions.grounding import (
    ClipSeg,
    GroundedSam,
    Network,
    caption,
    load,
    locate,
    reduce_to_cells,
    widen_mask,
)
from riebench.generation.regions.masks import TINT, View, find_region, mask_overlay, overlay, to_grid
from riebench.generation.regions.options import ClipSegOptions, GroundedSamOptions, parse_regions
from riebench.tasks.masks import RegionMasks

CPU = torch.device("cpu")
SIDE = 64
Boxes = list[tuple[float, tuple[float, float, float, float]]]


def view(side: int = SIDE) -> View:
    """A picture without attention."""
    picture = np.random.RandomState(0).randint(0, 255, (side, side, 3)).astype(np.uint8)
    return View("a red house", picture, None, (1, 1), lambda words: [])


def detections(found: Boxes, asked: list[str] | None = None) -> Network:
    """A detector that finds the given scores and boxes (x0, y0, x1, y1 in shares of the side), whatever it is asked.

    The score is that of the first word; of the special tokens only the first scores, at 0.9 for a score below zero.
    """
    processor = detector_processor()

    def model(**inputs: Any) -> SimpleNamespace:
        if asked is not None:
            words = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
            asked.append(words.replace(" ", ""))
        logits = torch.full((1, len(found), 32), -torch.inf)
        boxes = torch.zeros(1, len(found), 4)
        for row, (score, (x0, y0, x1, y1)) in enumerate(found):
            logits[0, row, 1 if score > 0 else 0] = torch.logit(torch.tensor(score if score > 0 else 0.9))
            boxes[0, row] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        return SimpleNamespace(logits=logits, pred_boxes=boxes)

    return Network(model, processor, CPU)


def filled_boxes(calls: list[int] | None = None) -> Network:
    """A segmenter whose mask of each box is the box itself."""

    def model(**inputs: Any) -> SimpleNamespace:
        assert inputs["multimask_output"] is False
        boxes = (inputs["input_boxes"][0] / 128 * 32).round().int().tolist()
        if calls is not None:
            calls.append(len(boxes))
        masks = torch.full((1, len(boxes), 1, 32, 32), -9.0)
        for row, (x0, y0, x1, y1) in enumerate(boxes):
            masks[0, row, 0, y0:y1, x0:x1] = 9.0
        return SimpleNamespace(pred_masks=masks)

    return Network(model, segmenter_processor(), CPU)


def grounded(found: Boxes, **options: Any) -> GroundedSam:
    """The provider with given detections; masks are the boxes, sharp unless options say otherwise."""
    chosen = GroundedSamOptions(**{"widen": 1, "cell": 0, **options})
    return GroundedSam(chosen, detections(found), filled_boxes())


def rectangle(*boxes: tuple[float, float, float, float], side: int = SIDE) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A mask that is true in boxes given in shares of the side."""
    mask = np.zeros((side, side), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[round(y0 * side) : round(y1 * side), round(x0 * side) : round(x1 * side)] = True
    return mask


def blobs(seed: int, side: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A few ellipses."""
    random = np.random.RandomState(seed)
    mask = np.zeros((side, side), dtype=bool)
    rows, columns = np.mgrid[:side, :side]
    for _ in range(random.randint(1, 5)):
        row, column = random.randint(0, side), random.randint(0, side)
        high, wide = random.randint(1, side // 5), random.randint(1, side // 5)
        mask |= ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1
    return mask


A, B, C = (0.0, 0.0, 0.25, 0.5), (0.125, 0.25, 0.5, 0.75), (0.75, 0.75, 1.0, 1.0)


def test_every_box_above_the_threshold_counts_and_masks_are_joined() -> None:
    found = [(0.26, A), (0.9, B), (0.24, C)]
    assert np.array_equal(grounded(found)("house", view()), rectangle(A, B))
    assert np.array_equal(grounded(found, box=0.2)("house", view()), rectangle(A, B, C))
    assert np.array_equal(grounded(found, box=0.5)("house", view()), rectangle(B))


def test_the_boxes_are_in_pixels_and_overlapping_ones_stay() -> None:
    from PIL import Image

    boxes = grounded([(0.5, A), (0.6, A)]).boxes(Image.fromarray(view().image), "house.")
    assert boxes == [pytest.approx([0, 0, 16, 32])] * 2


def test_a_text_threshold_drops_boxes_that_no_word_supports() -> None:
    found = [(-1.0, A), (0.5, B)]
    assert np.array_equal(grounded(found)("house", view()), rectangle(A, B))
    assert np.array_equal(grounded(found, text=0.25)("house", view()), rectangle(B))


def test_without_a_box_the_segmenter_is_not_asked() -> None:
    calls: list[int] = []
    provider = GroundedSam(GroundedSamOptions(), detections([(0.1, A)]), filled_boxes(calls))
    assert not provider("house", view()).any() and calls == []


def test_the_published_widening_and_cells_on_known_boxes() -> None:
    # One pixel in the middle of a cell's 8 x 8 pixels that count, widened to 31 x 31, touches no other cell.
    speck = np.zeros((512, 512), dtype=bool)
    speck[5 * 32 + 15, 9 * 32 + 15] = True
    assert np.argwhere(reduce_to_cells(widen_mask(speck, 31), 32)).tolist() == [[5, 9]]
    assert np.argwhere(widen_mask(speck, 31)).min(0).tolist() == [5 * 32, 9 * 32]
    assert widen_mask(speck, 31).sum() == 31 * 31
    assert not reduce_to_cells(np.zeros((512, 512), dtype=bool), 32).any()
    assert reduce_to_cells(np.ones((512, 512), dtype=bool), 32).shape == (16, 16)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, "7c007c007c003c00000000000000000000000000000000000000000000000000"),
        (1, "0000000000001c003c003e083e083e083c080008000000000000000000000000"),
        (2, "0003000300030000000000000000000000000000000000000000000000000000"),
    ],
)
def test_cells_are_those_of_the_published_reduction(seed: int, expected: str) -> None:
    # Computed once with OpenCV 5.0: GaussianBlur 31 x 31, sigma 31 / 6, above 0; resize to 16 x 16 with
    # INTER_LANCZOS4, above 0.
    assert np.packbits(reduce_to_cells(widen_mask(blobs(seed, 512), 31), 32)).tobytes().hex() == expected


def test_each_mask_is_reduced_before_they_are_joined() -> None:
    provider = grounded([(0.5, A), (0.5, C)], widen=3, cell=16)
    parts = [reduce_to_cells(widen_mask(rectangle(box), 3), 16) for box in (A, C)]
    mask = provider("house", view())
    assert np.array_equal(to_grid(mask, (4, 4)).numpy(), parts[0] | parts[1])
    # The stored mask is the cells themselves, so that blocks on that grid see exactly those.
    assert np.array_equal(mask[::16, ::16], parts[0] | parts[1]) and mask.sum() == (parts[0] | parts[1]).sum() * 256


def test_other_forms_of_regions_work_with_it() -> None:
    asked: list[str] = []
    provider = GroundedSam(GroundedSamOptions(widen=1, cell=0), detections([(0.5, A)], asked), filled_boxes())
    assert np.array_equal(find_region("not: house", view(), provider), ~rectangle(A))
    assert np.array_equal(find_region("background", view(), provider), ~rectangle(A))
    assert find_region("whole", view(), provider).all()
    assert asked == ["house.", "foreground."]


def test_it_is_asked_in_small_letters_with_a_period() -> None:
    assert [caption(words) for words in ("Red House ", "a. b.", None)] == ["red house.", "a. b.", "foreground."]


def test_numbers_that_are_none_are_an_error() -> None:
    broken = grounded([(0.5, (float("nan"), 0.0, 1.0, 1.0))])
    with pytest.raises(RiebenchError, match="the detector gave values that are no numbers"):
        broken("house", view())


def test_the_real_classes_run_on_a_folder_of_each() -> None:
    folders = {"detector": tiny_detector(), "segmenter": tiny_segmenter()}
    provider = GroundedSam.load(GroundedSamOptions(box=0.0, cell=8, widen=3), folders, CPU)
    assert not any(part.training for part in (provider.detector.model, provider.segmenter.model))
    mask = provider("a red house", view())
    assert mask.dtype == bool and mask.shape == (SIDE, SIDE)
    assert np.array_equal(mask, provider("a red house", view()))
    # Ten queries, all of them above a threshold of 0.
    from PIL import Image

    picture = Image.fromarray(view().image)
    boxes = provider.boxes(picture, "a red house.")
    assert len(boxes) == 10 and provider.outlines(picture, boxes).shape == (10, SIDE, SIDE)
    shy = GroundedSam(GroundedSamOptions(box=0.999), provider.detector, provider.segmenter)
    assert not shy("a red house", view()).any()


def test_clipseg_runs_on_a_folder_and_keeps_to_its_threshold() -> None:
    provider = ClipSeg.load(ClipSegOptions(), {"model": tiny_clipseg()}, CPU)
    low, high = (ClipSeg(ClipSegOptions(threshold=value), provider.network)("house", view()) for value in (0.01, 0.99))
    assert low.shape == (SIDE, SIDE) and (high <= low).all() and high.sum() < low.sum()


def test_clipseg_covers_what_is_likely() -> None:
    logits = torch.full((1, 4, 4), -5.0)
    logits[0, :2] = 5.0
    asked: list[Any] = []

    class Inputs(dict[str, Any]):
        def to(self, device: torch.device) -> Inputs:
            return self

    def processor(**given: Any) -> Inputs:
        asked.append(given["text"])
        return Inputs()

    network = Network(lambda **inputs: SimpleNamespace(logits=logits), processor, CPU)
    mask = ClipSeg(ClipSegOptions(), network)("house", view())
    assert mask[: SIDE // 2].all() and not mask[SIDE // 2 :].any()
    assert not find_region("background", view(), ClipSeg(ClipSegOptions(), network))[: SIDE // 2].any()
    assert asked == [["house"], ["foreground"]]


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a model folder, to be damaged."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


def test_a_missing_or_damaged_tokenizer_is_named(copied: Callable[[Path], Path]) -> None:
    folder = copied(tiny_detector())
    spec = parse_regions(f"grounded-sam:detector={folder},segmenter={tiny_segmenter()}")
    assert locate(spec)["detector"] == folder
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(RiebenchError, match=r"detector has no whole GroundingDinoProcessor .*; fetch") as caught:
        GroundedSam.load(GroundedSamOptions(), locate(spec), CPU)
    assert "\n" not in str(caught.value)
    # transformers would go on with an empty vocabulary.
    (folder / "tokenizer.json").unlink()
    with pytest.raises(RiebenchError, match=r"grounded-sam:detector=.*: tokenizer.json missing"):
        locate(spec)


def test_damaged_or_foreign_weights_are_refused(copied: Callable[[Path], Path]) -> None:
    from transformers import CLIPSegForImageSegmentation, Sam2Model

    folder = copied(tiny_segmenter())
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RiebenchError, match=r"segmenter cannot be loaded as Sam2Model: .*") as caught:
        load(Sam2Model, folder, CPU)
    assert "\n" not in str(caught.value)
    shutil.copy(tiny_clipseg() / "model.safetensors", weights)
    with pytest.raises(RiebenchError, match=r"holds no whole Sam2Model: .* is missing or has other sizes"):
        load(Sam2Model, folder, CPU)
    broken = copied(tiny_clipseg())
    from safetensors.torch import load_file, save_file

    values = load_file(broken / "model.safetensors")
    name = next(name for name, value in values.items() if value.is_floating_point())
    values[name] = torch.full_like(values[name], torch.nan)
    save_file(values, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(RiebenchError, match="weights that are no numbers"):
        load(CLIPSegForImageSegmentation, broken, CPU)


def test_what_is_not_here_is_named_with_the_line_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RiebenchError) as caught:
        locate(parse_regions("grounded-sam"), offline=True)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("IDEA-Research/grounding-dino-tiny (689 MB)", "hf download", "a2bb814dd30d",
                 "--regions grounded-sam:detector=FOLDER"):  # fmt: skip
        assert part in message


def test_models_are_found_in_the_hubs_cache_and_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    shutil.copytree(tiny_clipseg(), tmp_path / "models--some--clipseg" / "snapshots" / commit)
    found = locate(parse_regions(f"clipseg:model=some/clipseg@{commit}"), offline=True)
    assert found["model"].name == commit
    assert ClipSeg.load(ClipSegOptions(), found, CPU)("house", view()).shape == (SIDE, SIDE)
    assert locate(parse_regions(f"clipseg:model={tiny_clipseg()}"), offline=True) == {"model": tiny_clipseg()}
    (found["model"] / "config.json").unlink()
    with pytest.raises(RiebenchError, match=r"config.json missing"):
        locate(parse_regions(f"clipseg:model=some/clipseg@{commit}"), offline=True)


def test_an_overlay_tints_the_region_alone() -> None:
    picture, mask = view().image, rectangle(A)
    seen = overlay(picture, mask)
    assert np.array_equal(seen[~mask], picture[~mask])
    assert np.abs(seen[mask] - TINT).mean() < np.abs(picture[mask] - TINT).mean()
    both = mask_overlay(picture, picture, RegionMasks(mask, ~mask))
    assert both.shape == (SIDE, 2 * SIDE, 3) and np.array_equal(both[:, :SIDE], seen)

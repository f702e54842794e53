"""Regions: words, files, complements, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from riebench.errors import MissingWordsError, RiebenchError
from riebench.generation.regions.masks import (
    View,
    attention_regions,
    enlarge,
    find_region,
    make_masks,
    needs_attention,
    split_otsu,
    to_grid,
)
from riebench.tasks.masks import RegionMasks, from_run_lengths, run_lengths

SIDE, GRID = 8, 4


def view(cell: int) -> View:
    """A picture whose token 1 ("house") is looked at from one cell of the grid, token 2 ("red") from the first row."""
    attention = torch.full((GRID * GRID, 3), 0.1)
    attention[cell, 1] = 0.9
    attention[:GRID, 2] = 0.8

    def positions(words: str | None) -> Sequence[int]:
        known = {"house": [1], "red": [2], None: [1, 2]}
        if words not in known:
            raise RiebenchError(f"no words {words!r}")
        return known[words]

    return View("red house", np.zeros((SIDE, SIDE, 3), np.uint8), attention, (GRID, GRID), positions)


def cells(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> list[int]:
    """The grid cells that a mask covers."""
    grid: list[int] = to_grid(mask, (GRID, GRID)).flatten().nonzero().flatten().tolist()
    return grid


def test_words_are_where_the_model_looks_at_them() -> None:
    assert cells(find_region("house", view(6), attention_regions)) == [6]
    assert cells(find_region("red", view(6), attention_regions)) == [0, 1, 2, 3]
    assert find_region("house", view(6), attention_regions).sum() == (SIDE // GRID) ** 2
    with pytest.raises(RiebenchError, match="no words 'boat'"):
        find_region("boat", view(6), attention_regions)


def test_complements_background_and_whole() -> None:
    assert find_region("whole", view(6), attention_regions).all()
    assert cells(find_region("not: house", view(6), attention_regions)) == [i for i in range(16) if i != 6]
    assert cells(find_region("background", view(6), attention_regions)) == [i for i in range(4, 16) if i != 6]
    assert not find_region("not: whole", view(6), attention_regions).any()


def test_mask_files(tmp_path: Path) -> None:
    picture = np.zeros((SIDE * 2, SIDE * 2), np.uint8)
    picture[: SIDE // 2] = 255
    Image.fromarray(picture).save(tmp_path / "m.png")
    mask = find_region(f"file:{tmp_path / 'm.png'}", view(0), attention_regions)
    assert mask.shape == (SIDE, SIDE) and mask[: SIDE // 4].all() and not mask[SIDE // 4 :].any()
    assert np.array_equal(find_region("not: file:m.png", view(0), attention_regions, tmp_path), ~mask)
    masks = make_masks("delete", "file: m.png", "whole", view(0), view(0), "attention", tmp_path)
    assert np.array_equal(masks.source, mask) and np.array_equal(masks.target, mask)
    with pytest.raises(RiebenchError, match=r"absent.png cannot be read"):
        find_region("file: absent.png", view(0), attention_regions)


@pytest.mark.parametrize(("rule", "source", "target"), [("edit", 5, 9), ("add", 9, 9), ("delete", 5, 5)])
def test_region_rules(rule: str, source: int, target: int) -> None:
    masks = make_masks(rule, "house", "house", view(5), view(9), "attention")
    assert (cells(masks.source), cells(masks.target)) == ([source], [target])
    assert masks.editable.sum() == (masks.source | masks.target).sum()
    assert masks.share.source == pytest.approx(1 / 16)
    assert not masks.empty


def test_a_region_that_is_nowhere_is_empty() -> None:
    flat = View("a", view(0).image, torch.full((16, 3), 0.3), (GRID, GRID), lambda words: [1])
    masks = make_masks("edit", "house", "whole", flat, flat, "attention")
    assert masks.empty and masks.target.all()


def test_what_the_prompt_does_not_name_is_for_providers_that_look() -> None:
    seen: list[str | None] = []

    def looking(words: str | None, view: View) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        seen.append(words)
        return np.eye(SIDE, dtype=bool)

    assert find_region("seen: roof", view(6), looking).sum() == SIDE
    assert find_region("not: seen:  roof", view(6), looking).sum() == SIDE * (SIDE - 1)
    assert seen == ["roof", "roof"]


@pytest.mark.parametrize("region", ["seen: roof", "not: seen: roof"])
def test_attention_cannot_see_what_the_prompt_does_not_name(region: str) -> None:
    def positions(words: str | None) -> Sequence[int]:
        raise MissingWordsError(f"no {words}")

    blind = View("red house", view(0).image, torch.full((16, 3), 0.3), (GRID, GRID), positions)
    masks = make_masks("edit", region, "whole", blind, blind, "attention")
    # Its complement is not the whole picture either: such an example is skipped.
    assert masks.empty and not masks.source.any()
    with pytest.raises(MissingWordsError):
        make_masks("edit", region.replace("seen: ", ""), "whole", blind, blind, "attention")


def test_only_words_need_attention() -> None:
    assert not needs_attention(["whole", "file:x.png", "not: whole"])
    assert all(needs_attention([region]) for region in ("house", "background", "not: house", "seen: roof"))
    blind = View("red house", view(0).image, None, (1, 1), lambda words: [1])
    with pytest.raises(RiebenchError, match="was not captured"):
        find_region("house", blind, attention_regions)


def test_two_classes_are_split_where_they_part() -> None:
    assert split_otsu(torch.tensor([0.1, 0.9, 0.12, 0.8])).tolist() == [False, True, False, True]
    assert not split_otsu(torch.full((5,), 0.2)).any()


LEVELS = st.lists(st.integers(0, 256), min_size=2, max_size=64)
SHIFTS = st.integers(0, 2**32 - 1)


def shaken(values: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the same numbers, each moved by up to four units in the last place."""
    generator = torch.Generator().manual_seed(seed)
    ulps = torch.randint(-4, 5, values.shape, generator=generator)
    return values * (1 + ulps * torch.finfo(values.dtype).eps)


@given(LEVELS, st.floats(0.01, 10), SHIFTS)
def test_the_cut_between_two_classes_does_not_hang_on_rounding(levels: list[int], scale: float, seed: int) -> None:
    values = torch.tensor(levels, dtype=torch.float32) / 256 * scale
    whole = split_otsu(values)
    assert torch.equal(split_otsu(shaken(values, seed)), whole)
    # Equal values are never parted, and the upper class is above the lower one.
    if whole.any():
        assert values[whole].min() > values[~whole].max()
    else:
        assert len(set(levels)) == 1


def test_of_equally_good_cuts_rounding_chooses_none() -> None:
    # By symmetry the cuts above 0 and above 1 are equally good: of equally wide gaps the lowest is taken.
    values = torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0]) + 1
    for seed in range(20):
        assert split_otsu(shaken(values, seed)).tolist() == [False, False, True, True, True]
    crowd = torch.full((50,), 0.25)
    for seed in range(20):
        assert not split_otsu(shaken(crowd, seed)).any()
        found = split_otsu(shaken(torch.cat([crowd, crowd + 0.5]), seed))
        assert found.tolist() == [False] * 50 + [True] * 50
    # Where neighbours lie closer than rounding would explain, the classes are parted all the same.
    assert 230 < split_otsu(torch.linspace(1, 1.0005, 500, dtype=torch.float64)).sum() < 270


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_run_lengths_and_back(bits: list[bool]) -> None:
    mask = np.array(bits).reshape(3, 4)
    assert np.array_equal(from_run_lengths(run_lengths(mask), 3, 4), mask)
    stored = RegionMasks(mask, ~mask).to_json("attention")
    again = RegionMasks.from_json(stored)
    assert np.array_equal(again.source, mask) and np.array_equal(again.target, ~mask)


def test_run_lengths_are_row_major() -> None:
    mask = from_run_lengths([0, 3, 10, 2], 4, 4)
    assert np.flatnonzero(mask).tolist() == [0, 1, 2, 10, 11]
    with pytest.raises(ValueError, match="leaves a picture"):
        from_run_lengths([15, 2], 4, 4)
    with pytest.raises(RiebenchError, match="stored mask is damaged"):
        RegionMasks.from_json({"size": [4, 4], "source": [15, 2], "target": []})


def test_grids_and_pictures() -> None:
    grid = np.array([[True, False], [False, True]])
    assert np.array_equal(to_grid(enlarge(grid, 6, 10), (2, 2)).numpy(), grid)
    speck = np.zeros((8, 8), dtype=bool)
    speck[5, 2] = True
    assert to_grid(speck, (2, 2)).tolist() == [[False, False], [True, False]]
    assert not to_grid(np.zeros((8, 8), dtype=bool), (2, 2)).any()

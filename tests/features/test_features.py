"""Features by hand and their pages: figures, switching, masks, folders, links, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from feature_commands import BLOCK, RUNNER, active_features, run_feature, strongest_features
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from report_runs import HOSTILE, make_results, tasks
from tiny import FEATURES, GRID, SIZE, tiny_folder, tiny_model, tiny_saes

from riebench import features
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.features import study
from riebench.features.activity import (
    Activity,
    FeatureActivity,
    Histogram,
    Picture,
    PictureActivity,
    PictureRanking,
    nearest,
    pictures_of,
    round_for_ranking,
)
from riebench.features.data import all_features, feature_folder, read_feature
from riebench.features.drawings import heat_overlay
from riebench.features.painter import Painter, as_mask, switch
from riebench.features.study import choose_rows
from riebench.generation.generator import Capture, Generator
from riebench.models.loading import load_model
from riebench.report import write_report
from riebench.report.data import CachedRunFolder, read_groups
from riebench.report.feature_choice import (
    FeatureSelection,
    count_none,
    edits_at_one_strength,
    feature_views,
    select_features,
)
from riebench.report.feature_pages import write_feature_pages
from riebench.saes.formats import folder_name, load_saes
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import model_saes
from riebench.store.records import BlockFeatures
from riebench.utils.markup import Document

PROMPTS = ("a red cat", "two dogs", "a house")


def random_sae(n: int = 24, d: int = 8, k: int = 4) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    encoder, directions = (torch.randn(n, d, generator=generator) for _ in range(2))
    return SparseAutoencoder(encoder, directions, torch.zeros(d), torch.zeros(d), torch.zeros(n), k=k, block=BLOCK)


def flat_picture(value: int) -> np.ndarray:
    return np.full((1, 4, 4, 3), value, np.uint8)


def observed(updates: torch.Tensor, wanted: list[int], batch: int) -> Activity:
    """An activity that has seen updates [T, B, C, h, w] in batches of some size."""
    activity = Activity(random_sae(), wanted, top=3)
    for start in range(0, updates.shape[1], batch):
        part = updates[:, start : start + batch]
        for step in part:
            activity.add_step(step)
        pictures = [Picture(f"p{start + i}", start + i) for i in range(part.shape[1])]
        activity.finish(pictures, np.concatenate([flat_picture(p.seed) for p in pictures]))
    return activity


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_their_definition_however_pictures_are_batched() -> None:
    updates = torch.randn(2, 7, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    sae, wanted = random_sae(), [5, 11]
    values = sae.encode(updates.movedim(2, -1))  # [T, B, h, w, n]
    flat = values.flatten(0, 3).double()
    for batch in (1, 3, 7):
        found = observed(updates, wanted, batch)
        active = flat > 0
        assert found.pictures == 7 and found.positions == len(flat) == 2 * 7 * 9
        assert torch.equal(found.counts, active.sum(0).double())
        some = flat[:, 5][active[:, 5]]
        assert float(found.means[5]) == pytest.approx(float(some.mean()), rel=1e-5)
        assert float(found.stds[5]) == pytest.approx(float(some.std(correction=0)), rel=1e-4)
        assert float(found.largest[5]) == pytest.approx(float(some.max()), rel=1e-6)
        assert found.step_rates(11) == pytest.approx([float((v[..., 11] > 0).float().mean()) for v in values])
        assert torch.equal(found.joint_counts[1], (active & active[:, 11:12]).sum(0).double())
        one = found.features[11]
        assert int(one.histogram.counts.sum()) == int(active[:, 11].sum())
        peaks = values[..., 11].amax((0, 2, 3))
        order = sorted(range(7), key=lambda i: (-float(peaks[i]), i))
        assert [seen.picture.seed for seen in one.strongest.items] == [i for i in order if peaks[i] > 0][:3]
        first = one.strongest.items[0]
        assert first.heat == pytest.approx(values[:, order[0], ..., 11].amax(0).numpy(), rel=1e-6)
        assert int(first.image[0, 0, 0]) == order[0] and one.pictures == int((peaks > 0).sum())


def test_a_histogram_does_not_depend_on_order_or_cutting() -> None:
    values = np.random.default_rng(0).lognormal(0, 2, 500).astype(np.float32)
    forms = [[values], [values[::-1].copy()], np.array_split(values, 17)]
    found = []
    for parts in forms:
        histogram = Histogram()
        for part in parts:
            histogram.add(part)
        found.append((histogram.counts.tolist(), histogram.width))
    assert found[0] == found[1] == found[2]
    counts, width = found[0]
    assert sum(counts) == 500
    assert counts == np.histogram(values, bins=64, range=(0, 64 * width))[0].tolist()
    assert 32 * width <= values.max() < 64 * width


def test_a_histogram_leaves_out_what_has_no_bin() -> None:
    histogram = Histogram()
    histogram.add(np.array([-1, 0, 2, np.nan, np.inf], np.float32))
    assert histogram.counts.sum() == 1 and histogram.width == 2**-4


def test_memory_does_not_grow_with_the_pictures() -> None:
    activity = Activity(random_sae(), [1], top=2)
    updates = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(1)) * 5
    for number in range(40):
        activity.add_step(updates * (1 + number % 5))
        activity.finish([Picture("p", number)], flat_picture(0))
    one = activity.features[1]
    assert len(one.strongest.items) <= 2 and len(one.weakest.items) <= 2
    assert activity.positions == 160 and len(activity.step_rates(1)) == 1


def test_rows_are_the_strongest_of_different_prompts_then_the_weakest() -> None:
    strong, weak = PictureRanking(4), PictureRanking(2)
    for order, (prompt, value) in enumerate([("a", 9.0), ("a", 8.0), ("b", 7.0), ("c", 6.0)]):
        strong.add(
            value,
            order,
            PictureActivity(Picture(prompt, order), value, np.zeros((1, 1), np.float32), flat_picture(0)[0]),
        )
    for order, prompt in enumerate("de"):
        weak.add(
            0.0, order, PictureActivity(Picture(prompt, order), 0.0, np.zeros((1, 1), np.float32), flat_picture(0)[0])
        )
    rows = choose_rows(FeatureActivity(strong, weak))
    assert [(picture.prompt, active) for picture, active in rows] == [
        ("a", True), ("b", True), ("d", False), ("e", False)
    ]  # fmt: skip
    assert rows[0][0].seed == 0


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_strongest_pictures_do_not_hang_on_rounding(levels: list[int], most: int, seed: int) -> None:
    values: NDArray[np.float32] = (np.array(levels) / 8).astype(np.float32)
    ulps = np.random.default_rng(seed).integers(-4, 5, len(values)).astype(np.float32)
    shaken: NDArray[np.float32] = (values * (1 + ulps * np.finfo(np.float32).eps)).astype(np.float32)
    found = []
    tables = (values, shaken)
    for keys in tables:
        ranking = PictureRanking(most)
        for order, key in enumerate(keys.tolist()):
            if ranking.accepts(key, order):
                ranking.add(key, order, PictureActivity(Picture("p", order), key, keys[:1, None], flat_picture(0)[0]))
        found.append([item.picture.seed for item in ranking.items])
    assert found[0] == found[1] == sorted(range(len(levels)), key=lambda i: (-levels[i], i))[:most]
    assert np.array_equal(round_for_ranking(values), values)
    assert np.abs(round_for_ranking(shaken * 1.1) / np.maximum(shaken * 1.1, 1e-9) - (values > 0)).max() <= 2**-12


def test_the_strongest_features_do_not_hang_on_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(tiny_model(1), str(tiny_saes()), prompts=PROMPTS)
    original = painter.sae(BLOCK).contributions
    rounding = torch.Generator().manual_seed(0)

    def alike(updates: torch.Tensor, _: object = None) -> torch.Tensor:
        """All features alike but for the last digits, the later ones a little larger."""
        values = torch.ones_like(original(updates))
        ulps = torch.arange(values.shape[-1]) + torch.randint(0, 3, values.shape, generator=rounding)
        return values * (1 + ulps / ulps.max() * 4 * torch.finfo(values.dtype).eps)

    monkeypatch.setattr(painter.sae(BLOCK), "contributions", alike)
    found = painter.strongest("a red cat", blocks=[BLOCK], count=5)
    assert [one.index for one in found] == [0, 1, 2, 3, 4]


def test_nearest_features_are_those_of_their_definition() -> None:
    directions = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [-1, 0, 0], [0, 0.2, 1]])
    sae = SparseAutoencoder(directions.flip(0), directions, torch.zeros(3), torch.zeros(3), torch.zeros(5), k=2)
    activity = Activity(sae, [0])
    activity.counts = torch.tensor([10.0, 4, 8, 0, 5], dtype=torch.float64)
    activity.joint_counts = torch.tensor([[10.0, 4, 2, 0, 0]], dtype=torch.float64)
    found = nearest(sae, activity, 0, count=3)
    assert [one.index for one in found.decoder] == [1, 2, 4]
    assert found.decoder[0].value == pytest.approx(0.9 / 0.82**0.5, abs=1e-5)
    assert found.encoder[0].index == 2
    assert [(one.index, one.value) for one in found.together] == [(1, 0.4), (2, 0.125)]


def test_heat_is_brightest_where_the_value_is_largest_and_absent_where_it_is_zero() -> None:
    heat = np.array([[0.0, 1.0], [4.0, 0.0]], np.float32)
    shown = heat_overlay(np.full((8, 8, 3), 100, np.uint8), heat, 4.0).astype(int)
    assert shown.shape == (8, 8, 3)
    assert shown[0, 0].tolist() == shown[7, 7].tolist() == [60, 60, 60]
    assert shown[6, 1].sum() > shown[1, 6].sum() and len({tuple(c) for c in shown[4:, :4].reshape(-1, 3)}) == 1


# --- switching --------------------------------------------------------------------------------------------------------


def test_on_adds_its_value_in_the_mask_alone_and_off_takes_away_what_is_there() -> None:
    sae = random_sae()
    live = torch.randn(16, 8, generator=torch.Generator().manual_seed(5))
    codes = sae.contributions(live)
    index = int(codes.sum(0).argmax())
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    left = [0, 1, 4, 5, 8, 9, 12, 13]
    edit = switch({BLOCK: sae}, {(BLOCK, 3): 2.5}, {(BLOCK, index): 0.5}, mask)
    delta = edit.sites[BLOCK].delta(0, live)
    expected = torch.zeros_like(live)
    expected[left] = 2.5 * sae.directions[3] - 0.5 * codes[left][:, index : index + 1] * sae.directions[index]
    assert delta is not None and torch.allclose(delta, expected, atol=1e-5)
    assert float(delta[left].abs().sum()) > 0
    everywhere = switch({BLOCK: sae}, {(BLOCK, 3): 1.0}, {}).sites[BLOCK].delta(7, live)
    assert everywhere is not None and torch.allclose(everywhere, sae.directions[3].expand(16, 8))


@pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (3, 0.0), (2, 2.0)])
def test_painting_moves_the_update_as_it_says_at_every_number_of_steps(steps: int, guidance: float) -> None:
    model = tiny_model(steps, guidance)
    painter = Painter(model, str(tiny_saes()), prompts=PROMPTS)
    plain = painter.paint("a red cat", seed=4)
    assert np.array_equal(np.asarray(plain), Generator(model).generate(["a red cat"], [4]).images[0])
    mask = np.zeros((SIZE, SIZE), bool)
    mask[: SIZE // 2] = True
    with_on = painter.paint("a red cat", seed=4, on={(BLOCK, 7): 30.0}, mask=mask, unit="value")
    assert with_on.size == (SIZE, SIZE) and not np.array_equal(np.asarray(with_on), np.asarray(plain))
    sae = painter.sae(BLOCK)
    edit = switch({BLOCK: sae}, {(BLOCK, 7): 30.0}, {}, mask)
    capture = Capture((BLOCK,))
    made = painter.generator.generate(["a red cat"] * 2, [4, 4], edits=[edit, None], capture=capture)
    moved = made.trace.row(BLOCK, 0)[0] - made.trace.row(BLOCK, 1)[0]
    expected = torch.zeros(GRID * GRID, sae.d)
    expected[: GRID * GRID // 2] = 30.0 * sae.directions[7]
    assert torch.allclose(moved, expected, atol=1e-3)
    assert np.array_equal(np.asarray(with_on), made.images[0])


def test_off_takes_away_the_live_value() -> None:
    painter = Painter(tiny_model(1), str(tiny_saes()))
    (strong, *_) = strongest_features(painter)
    edit = switch({BLOCK: painter.sae(BLOCK)}, {}, {(BLOCK, strong): 1.0})
    made = painter.generator.generate(["a red cat"] * 2, [0, 0], edits=[edit, None], capture=Capture((BLOCK,)))
    sae = painter.sae(BLOCK)
    before = made.trace.row(BLOCK, 1)[0]
    gone = sae.contributions(before)[:, strong : strong + 1] * sae.directions[strong]
    assert float(gone.abs().sum()) > 0
    assert torch.allclose(made.trace.row(BLOCK, 0)[0], before - gone, atol=1e-4)
    assert np.array_equal(np.asarray(painter.paint("a red cat", off=[(BLOCK, strong)])), made.images[0])


def test_strength_is_in_units_of_the_measured_mean_or_of_the_largest_value() -> None:
    painter = Painter(tiny_model(1), str(tiny_saes()), prompts=PROMPTS)
    index = strongest_features(painter)[0]
    activity = Activity(painter.sae(BLOCK), [index])
    for number, prompt in enumerate(PROMPTS):
        capture = Capture((BLOCK,), sink=lambda site, values: activity.add_step(values))
        images = painter.generator.generate([prompt], [number], capture=capture).images
        activity.finish([Picture(prompt, number)], images)
    by_unit = {"mean": float(activity.means[index]), "max": float(activity.largest[index])}
    unit: Any
    for unit, size in by_unit.items():
        one = painter.paint("two dogs", on={(BLOCK, index): 2}, unit=unit)
        other = painter.paint("two dogs", on={(BLOCK, index): 2 * size}, unit="value")
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 1


def test_masks_of_every_form_say_the_same(tmp_path: Path) -> None:
    drawn = np.zeros((SIZE, SIZE), bool)
    drawn[4:20, 8:] = True
    picture = Image.fromarray(drawn.astype(np.uint8) * 255)
    picture.save(tmp_path / "mask.png")
    forms: list[Any] = [drawn, torch.from_numpy(drawn), picture, tmp_path / "mask.png", str(tmp_path / "mask.png")]
    for form in forms:
        found = as_mask(form, SIZE, lambda words: pytest.fail(words))
        assert found is not None and np.array_equal(found, drawn)
    assert as_mask(None, SIZE, lambda words: pytest.fail(words)) is None
    # A program for a printer, which another program would have to run.
    picture.save(tmp_path / "mask.eps")
    with pytest.raises(RiebenchError, match=r"mask\.eps cannot be read"):
        as_mask(tmp_path / "mask.eps", SIZE, lambda words: pytest.fail(words))
    assert as_mask("the cat", SIZE, lambda words: drawn if words == "the cat" else ~drawn) is drawn
    for everything in (drawn | True, Image.fromarray(drawn | True)):
        with pytest.warns(UserWarning, match="the mask covers the whole picture"):
            as_mask(everything, SIZE, lambda words: pytest.fail(words))


def test_a_region_in_words_is_found_in_the_unchanged_picture() -> None:
    painter = Painter(tiny_model(2), str(tiny_saes()))
    on = {(BLOCK, 7): 30.0}
    whole, words, rest = (
        np.asarray(painter.paint("a red cat", on=on, unit="value", mask=mask)).astype(int)
        for mask in ("whole", "cat", "not: cat")
    )
    assert np.array_equal(whole, np.asarray(painter.paint("a red cat", on=on, unit="value")).astype(int))
    assert not np.array_equal(words, whole) and not np.array_equal(words, rest)


def test_strongest_features_of_a_region_are_active_there() -> None:
    painter = Painter(tiny_model(2), str(tiny_saes()), prompts=PROMPTS)
    found = painter.strongest("a red cat", blocks=["mid.0", BLOCK], mask="cat", count=5)
    assert 0 < len(found) <= 5 and {one.block for one in found} <= {"mid.0", BLOCK}
    assert all(one.share > 0 and one.value > 0 for one in found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"on": {("up.9.9", 1): 1.0}}, "no block up.9.9"),
        ({"on": {("nowhere", 1): 1.0}}, "unknown block 'nowhere'"),
        ({"on": {("up.0.res.1", 1): 1.0}}, "no attention block"),
        ({"on": {(BLOCK, FEATURES): 1.0}}, f"has {FEATURES} features, 0 to {FEATURES - 1}; {FEATURES} is none"),
        ({"off": [(BLOCK, -1)]}, "-1 is none of them"),
        ({"off": [17]}, "17 is no feature; write"),
        ({"mask": np.zeros((SIZE, SIZE), bool)}, "the mask is empty"),
        ({"mask": np.ones((8, 8), bool)}, f"the mask is 8 x 8, the picture {SIZE} x {SIZE}"),
        ({"mask": np.ones((SIZE, SIZE), np.uint8)}, "a mask is a bool array, not uint8"),
        ({"mask": Path("nowhere.png")}, "the mask nowhere.png cannot be read"),
        ({"mask": "elephant"}, "does not contain the region's words 'elephant'"),
        ({"on": {(BLOCK, 1): 1.0}, "unit": "meen"}, "unknown unit 'meen' (did you mean 'mean'?)"),
        ({"on": {(BLOCK, 1): 1.0}, "unit": "stored"}, "states no mean of its features"),
    ],
)
def test_what_is_not_there_is_reported_in_one_line(asked: dict[str, Any], message: str) -> None:
    painter = Painter(tiny_model(1), str(tiny_saes()))
    with pytest.raises(RiebenchError) as refused:
        painter.paint("a red cat", **asked)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_three_lines_on_the_toy_world() -> None:
    world = features.open("toy-turbo", steps=1, prompts=["a red house"], device="cpu")
    (strong, *_) = world.strongest("a red house", blocks=[BLOCK], mask="house")
    picture = world.paint("a red house", on={(BLOCK, strong.index): 3.0}, off=[("down.2.1", 5)], mask="house")
    assert picture.size == (64, 64)
    stored = world.paint("a red house", on={(BLOCK, strong.index): 3.0}, unit="stored")
    assert not np.array_equal(np.asarray(picture), np.asarray(stored))
    with pytest.raises(RiebenchError, match="no prompts"):
        features.open("toy-turbo", steps=1, prompts=[], device="cpu")


# --- pages ------------------------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, HOSTILE]) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pages(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of two features that are active, and their overview."""
    out = tmp_path_factory.mktemp("pages") / "features"
    run_feature(BLOCK, ",".join(map(str, active_features())), out=out, prompts=prompts)
    return out


def test_a_page_has_pictures_figures_strip_and_neighbours(pages: Path) -> None:
    found = all_features(pages)
    assert sorted(data.index for _, data in found) == sorted(active_features())
    for folder, data in found:
        assert folder == pages / feature_folder(data.model, BLOCK, data.sae_sha256, data.index)
        assert data.statistics.pictures == 4 and data.statistics.positions == 4 * GRID * GRID
        assert len(data.top) == 2 and data.top[0].value == pytest.approx(data.statistics.largest)
        assert [one.strength for one in data.means] == [-1.0, 0.0, 2.0]
        by_strength = {one.strength: one.lpips for one in data.means}
        assert by_strength[0.0] == 0.0 and by_strength[2.0] > 0 and data.means[0].clip_gain is None
        assert len(data.neighbours.decoder) == 8 and data.index not in {one.index for one in data.neighbours.decoder}
        page = (folder / "index.html").read_text(encoding="utf-8")
        for words in (f"Feature {data.index} of {BLOCK}", "Strongest pictures", "Switched on and off", "Nearest"):
            assert words in page
        for name in data.files:
            assert (folder / name).stat().st_size > 0
    overview = (pages / "index.html").read_text(encoding="utf-8")
    assert all(f"/{index}/index.html" in overview for index in active_features())


def test_hostile_prompts_stay_words(pages: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in pages.rglob("*.html")]
    assert not any("<script" in text or 'onerror="' in text for text in texts)
    assert any("&lt;script&gt;window.hit" in text for text in texts)


def test_repeating_makes_only_what_is_missing_with_the_same_bytes(pages: Path, prompts: Path, tmp_path: Path) -> None:
    first, second = active_features()
    before = bytes_of(pages)
    assert "0 of 2 features made" in run_feature(BLOCK, f"{first},{second}", out=pages, prompts=prompts).stderr
    assert bytes_of(pages) == before
    folder = next(pages.glob(f"*/*/{first}"))
    (folder / "row-1-x2.png").unlink()
    assert "1 of 2 features made" in run_feature(BLOCK, f"{first},{second}", out=pages, prompts=prompts).stderr
    assert bytes_of(pages) == before
    (folder / "feature.json").write_text('{"torn', encoding="utf-8")
    assert "1 of 1 features made" in run_feature(BLOCK, str(first), out=pages, prompts=prompts).stderr
    assert bytes_of(pages) == before


def test_other_prompts_make_a_feature_anew(tmp_path: Path) -> None:
    index = str(active_features()[0])
    for number, text in enumerate(("a red cat\n", "a red cat\ntwo dogs\n")):
        (tmp_path / "p.txt").write_text(text, encoding="utf-8")
        errors = run_feature(BLOCK, index, out=tmp_path / "out", prompts=tmp_path / "p.txt").stderr
        assert "1 of 1 features made" in errors
        ((_, data),) = all_features(tmp_path / "out")
        assert data.statistics.pictures == number + 1


def test_a_feature_whose_remaking_was_killed_is_not_taken_for_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = str(active_features()[0])
    for name, text in (("a", "a red cat\n"), ("b", "two dogs\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    run_feature(BLOCK, index, out=tmp_path / "out", prompts=tmp_path / "a")
    before = bytes_of(tmp_path / "out")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "_draw", killed)
        run_feature(BLOCK, index, out=tmp_path / "out", prompts=tmp_path / "b", code=130)
    assert bytes_of(tmp_path / "out") != before
    assert "1 of 1 features made" in run_feature(BLOCK, index, out=tmp_path / "out", prompts=tmp_path / "a").stderr
    assert bytes_of(tmp_path / "out") == before


def test_neighbours_that_have_a_page_are_links(pages: Path, tmp_path: Path) -> None:
    (folder, data), *_ = all_features(pages)
    near = data.neighbours.decoder[0].index
    copy = tmp_path / "features" / folder.relative_to(pages)
    for name, content in bytes_of(folder).items():
        for place, index in ((copy, data.index), (copy.parent / str(near), near)):
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
            if name == "feature.json":
                (place / name).write_text(data.model_copy(update={"index": index}).model_dump_json())
    write_feature_pages(tmp_path / "features")
    assert f'<a href="../{near}/index.html">{near}</a>' in (copy / "index.html").read_text(encoding="utf-8")


def test_a_model_may_be_called_what_means_something_in_an_address(pages: Path, tmp_path: Path) -> None:
    (_, data), *_ = all_features(pages)
    shutil.copytree(pages / data.model, tmp_path / "features" / "a#b %41?")
    overview = write_feature_pages(tmp_path / "features")
    found = [name for name in re.findall(r'(?:src|href)="([^"#:]+[^"]*)"', overview.read_text()) if name != "data:,"]
    assert sum("a%23b" in name for name in found) > 1
    assert all((overview.parent / unquote(name)).is_file() and not {*"#?"} & {*name} for name in found)


def test_data_that_lead_out_of_their_folder_are_no_feature(pages: Path, tmp_path: Path) -> None:
    (folder, data), *_ = all_features(pages)
    (tmp_path / "secret.png").write_bytes(b"x")
    place = tmp_path / "inner"
    place.mkdir()
    for name, content in bytes_of(folder).items():
        (place / name).write_bytes(content)
    assert read_feature(place) is not None
    stolen = data.top[0].model_copy(update={"image": "../secret.png"})
    (place / "feature.json").write_text(data.model_copy(update={"top": (stolen,)}).model_dump_json())
    assert read_feature(place) is None


def test_what_is_no_picture_or_acts_is_no_feature(pages: Path, tmp_path: Path) -> None:
    (folder, data), *_ = all_features(pages)
    (tmp_path / "secret.png").write_bytes((folder / data.top[0].image).read_bytes())
    place = tmp_path / "inner"
    drawing = (folder / "histogram.svg").read_text()
    faults: dict[str, Callable[[], Any]] = {
        "link": lambda: (place / data.top[0].image).symlink_to(tmp_path / "secret.png"),
        "text": lambda: (place / data.top[0].image).write_text("no picture"),
        "pipe": lambda: os.mkfifo(place / data.top[0].image),
    }
    for fault in faults.values():
        shutil.copytree(folder, place)
        (place / data.top[0].image).unlink()
        fault()
        assert read_feature(place) is None
        shutil.rmtree(place)
    shutil.copytree(folder, place)
    assert read_feature(place) is not None
    for bad in (
        "<script>window.hit = 1</script>",
        '<g onload="window.hit = 1"/>',
        '<a href="javascript:window.hit = 1"><text>x</text></a>',
        '<use xlink:href="http://host/x.svg#a"/>',
        '<rect style="fill: url(http://host/x)"/>',
        "<style>@import 'http://host/x.css';</style>",
        '<image href="file:///etc/passwd"/>',
        "<foreignObject/>",
        "</svg><svg>",
    ):
        (place / "histogram.svg").write_text(drawing.replace("</svg>", f"{bad}</svg>"))
        assert read_feature(place) is None, bad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up.9.9", "1"), "no block up.9.9"),
        (("upp.0.1", "1"), "unknown block 'upp.0.1' (did you mean 'up.0.1'?)"),
        (("up.0.res.0", "1"), "is no attention block"),
        ((BLOCK, str(FEATURES)), f"the SAE of {BLOCK} has {FEATURES} features, 0 to {FEATURES - 1}"),
        ((BLOCK, "1,x"), "write feature numbers with commas between"),
        ((BLOCK, "1,1"), "name each feature once"),
        ((BLOCK, "1", "--prompts", "nowhere.txt"), "--prompts nowhere.txt: cannot be read"),
        ((BLOCK, "1", "--prompts", "/dev/null"), "it holds no prompt"),
        ((BLOCK, "1", "--scorer", "clap"), "unknown scorer 'clap'"),
        ((BLOCK, "1", "--seeds", "-1"), "--seeds"),
        ((BLOCK, "1", "--seeds", str(2**50), "--scorer", "none"), "seeds of features go from 0 to"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    command = [
        "sae",
        "feature",
        *arguments,
        "--model",
        str(tiny_folder()),
        "--sae",
        str(tiny_saes()),
        "--device",
        "cpu",
    ]
    result = RUNNER.invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if not line.startswith("loading")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0,1", "1,1", "one", "nan", "inf", "2,2.0000001"])
def test_strengths_are_numbers_other_than_zero(tmp_path: Path, text: str) -> None:
    result = RUNNER.invoke(app, ["sae", "feature", BLOCK, "1", "--strengths", text, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "--strengths" in result.stderr


def test_a_feature_that_was_never_active_gets_a_page_that_says_so(tmp_path: Path) -> None:
    from riebench.saes.formats import save_sdxl_unbox

    sae = load_saes(tiny_saes(), [BLOCK])[BLOCK]
    bias = torch.zeros(sae.n)
    bias[3] = -1e6
    save_sdxl_unbox(
        tmp_path / folder_name(BLOCK, 8, sae.n) / "final", encoder=sae.encoder, decoder=sae.directions.T,
        pre_bias=sae.pre_bias, latent_bias=bias, k=8, mean=torch.full((sae.n,), 2.5), std=torch.ones(sae.n),
    )  # fmt: skip
    (tmp_path / "p.txt").write_text("a red cat\n", encoding="utf-8")
    command = ["sae", "feature", BLOCK, "3", "--model", str(tiny_folder()), "--sae", str(tmp_path), "--scorer", "none"]
    result = RUNNER.invoke(
        app, [*command, "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out"), "--steps", "1"]
    )
    assert result.exit_code == 0, result.output
    ((folder, data),) = all_features(tmp_path / "out")
    assert data.rows == () and data.top == () and data.statistics.rate == 0
    assert data.statistics.stored_mean == 2.5 and data.statistics.stored_std == 1.0
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "not active in any of the 1 pictures" in page and "unit=&#34;value&#34;" in page
    painter = Painter(tiny_model(1), str(tmp_path), prompts=["a red cat"])
    with pytest.raises(RiebenchError, match="never active, so it has no mean"):
        painter.paint("a red cat", on={(BLOCK, 3): 1.0})


def test_seeds_give_every_prompt_noise_of_its_own() -> None:
    pictures = pictures_of(["a", "b"], [0, 2])
    assert [(p.prompt, p.seed) for p in pictures] == [("a", 0), ("b", 1), ("a", 2_000_000), ("b", 2_000_001)]


# --- in the report ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("made") / "results")


def test_the_report_counts_what_edits_switched(results: Path, tmp_path: Path) -> None:
    (group,) = read_groups(results)
    (view,) = feature_views(group, tmp_path)
    on, off = view.tables
    assert view.label == "sae" and on.blocks == off.blocks == ("mid.0", "up.0.1")
    by_category = {category: (edits, cells) for category, edits, cells in on.rows}
    # Three examples, two seeds, at one strength.
    edits, (mid, up) = by_category["color"]
    assert edits == 6 and [(one.index, one.count) for one in mid.features] == [(1, 6), (2, 6), (3, 6)]
    assert [(one.index, one.count, one.page) for one in up.features] == [(9, 6, None)]
    assert by_category["all"][0] == 12 and by_category["all"][1][0].features[0].count == 12
    drawn = CachedRunFolder(group.folders[-1].path)
    # An edit in which nothing differs switches nothing, and is counted as such.
    records = edits_at_one_strength(drawn)
    bare = {"mid.0": BlockFeatures(), "up.0.1": records[0].features["up.0.1"]}
    assert count_none([records[0].model_copy(update={"features": bare}), records[1]], "mid.0", "add") == 1
    assert len(edits_at_one_strength(drawn)) == 12
    setting = drawn.spec.setting.model_copy(update={"method": "random_features"})
    drawn.spec = drawn.spec.model_copy(update={"setting": setting})
    assert edits_at_one_strength(drawn) == []
    (wanted,) = select_features([group], 2)
    assert wanted.features == {"mid.0": (1, 2)} and wanted.sae_sha256 == {"mid.0": "ab"}


def test_the_report_links_pages_that_are_there(results: Path, pages: Path, tmp_path: Path) -> None:
    def place(folder: Path, wanted: Any) -> None:
        (one,) = wanted
        page = folder / feature_folder(one.model.name, "mid.0", one.sae_sha256["mid.0"], one.features["mid.0"][0])
        page.mkdir(parents=True)
        (page / "index.html").write_text("here")
        (folder / "index.html").write_text("all")

    out = tmp_path / "report"
    plain = write_report(results, out, tasks(), board=Document(())).page.read_text(encoding="utf-8")
    assert 'href="features/' not in plain and "Switched on most often" in plain
    args: dict[str, Any] = {"board": Document(()), "features": 1, "make_features": place}
    linked = write_report(results, out, tasks(), **args).page.read_text(encoding="utf-8")
    assert (
        '<a href="features/toy-turbo/mid.0-ab/1/index.html">1</a>' in linked and 'href="features/index.html"' in linked
    )
    again = write_report(results, out, tasks(), board=Document(())).page.read_text(encoding="utf-8")
    assert again == linked


def test_a_model_that_is_not_at_hand_is_reported_and_the_report_is_written(results: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["report", "--results", str(results), "--out", str(tmp_path / "r"), "--features", "1"])
    assert result.exit_code == 0, result.output
    assert "no pages of features of toy-turbo" in result.stderr
    assert (tmp_path / "r" / "index.html").is_file() and not (tmp_path / "r" / "features").exists()


def test_the_report_makes_pages_of_the_features_chosen_most(tmp_path: Path) -> None:
    from riebench.report.feature_choice import ReportFeatures, reload_model

    model = load_model("toy-turbo", steps=1)
    block = "mid.0"
    sae = model_saes(None, model, [block])[block]
    messages: list[str] = []
    maker = ReportFeatures("cpu", True, 2, messages.append, "none")
    wanted = FeatureSelection(model.spec, None, {block: sae.sha256}, {block: (0,)})
    maker(tmp_path / "features", [wanted])
    ((folder, data),) = all_features(tmp_path / "features")
    assert folder == tmp_path / "features" / feature_folder(model.spec.name, block, sae.sha256, 0)
    assert data.statistics.pictures == 2 and messages == ["1 of 1 features made, the others were there"]
    maker(tmp_path / "features", [FeatureSelection(model.spec, None, {block: "other"}, {block: (0,)})])
    assert "are not those that made these results" in messages[-1]
    # Records and names may come from anybody.
    maker(tmp_path / "features", [FeatureSelection(model.spec, None, {block: sae.sha256}, {block: (0, 10**6)})])
    assert "1000000 is none of them" in messages[-1]
    elsewhere = model.spec.model_copy(update={"name": "../../elsewhere"})
    maker(tmp_path / "features" / "deeper", [FeatureSelection(elsewhere, None, {block: sae.sha256}, {block: (0,)})])
    assert "leaves the folder of pages" in messages[-1] and not (tmp_path / "elsewhere").exists()
    changed = model.spec.model_copy(update={"revision": "0" * 64})
    with pytest.raises(RiebenchError, match="weights are not those"):
        reload_model(changed, "cpu")
    assert json.loads((folder / "feature.json").read_text())["made_of"]["feature"] == [block, 0]

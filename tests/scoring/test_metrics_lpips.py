"""LPIPS against its authors' numbers, and the background form against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared_files import SHARED, needs

from riebench.errors import MetricError
from riebench.models.assets import asset_folder
from riebench.scoring.metrics.base import Reason, Sample, Value
from riebench.scoring.metrics.lpips import TRUNK_FILE, LpipsModel, lpips, lpips_bg
from riebench.scoring.metrics.networks import Networks

EXAMPLE = SHARED / "lpips_example"
pytestmark = needs("lpips_example")
PUBLISHED = [0.721881, 0.137566]


@pytest.fixture(scope="module")
def model() -> LpipsModel:
    return LpipsModel()


@pytest.fixture(scope="module")
def networks(model: LpipsModel) -> Networks:
    return Networks(ready={"lpips": model})


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """The reference twice, and the two distorted pictures, uint8 [2, 64, 64, 3]."""
    ref, p0, p1 = (np.asarray(Image.open(EXAMPLE / f"ex_{name}.png").convert("RGB")) for name in ("ref", "p0", "p1"))
    return np.stack([ref, ref]), np.stack([p0, p1])


def numbers(values: list[Value]) -> list[float]:
    """The values, none of which may be missing."""
    assert not any(isinstance(value, Reason) for value in values), values
    return [float(value) for value in values if not isinstance(value, Reason)]


def sample(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> Sample:
    return Sample(edited, source, mask, "a red car", "a blue car")


def test_gives_the_authors_numbers(model: LpipsModel) -> None:
    ref, others = pictures()
    assert model.distance(ref, others) == pytest.approx(PUBLISHED, abs=1e-4)
    assert model.distance(others, ref) == pytest.approx(PUBLISHED, abs=1e-4)


def test_equal_pictures_go_through_the_trunk_once(model: LpipsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    edited, source = rng.integers(0, 256, (5, 64, 64, 3), np.uint8), rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    pairs = source[[0, 0, 0, 1, 0]]
    rows: list[int] = []
    first = model.model.net.slice1[0]
    plain = first.forward

    def counted(values: torch.Tensor) -> torch.Tensor:
        rows.append(len(values))
        return plain(values)

    monkeypatch.setattr(first, "forward", counted)
    together = model.distance(edited, pairs)
    assert rows == [5, 3]
    single = [model.distance(edited[i : i + 1], pairs[i : i + 1])[0] for i in range(5)]
    assert together == pytest.approx(single, rel=1e-5)


def test_floats_in_unit_range_give_the_same_numbers(model: LpipsModel) -> None:
    ref, others = pictures()
    assert model.distance(ref / 255, (others / 255).astype(np.float32)) == pytest.approx(PUBLISHED, abs=1e-4)


def test_tolerance_catches_a_unit_range_slip(model: LpipsModel) -> None:
    ref, others = (torch.from_numpy(x / 255).permute(0, 3, 1, 2).float() for x in pictures())
    with torch.inference_mode():
        slipped = model.model(ref, others).flatten().numpy()
    assert slipped == pytest.approx([0.725337, 0.135371], abs=1e-4)
    assert slipped != pytest.approx(PUBLISHED, abs=1e-4)


def test_spatial_map(model: LpipsModel) -> None:
    ref, others = pictures()
    maps = model.spatial(ref, others)
    assert maps.shape == (2, 64, 64)
    assert maps.mean(axis=(1, 2)) == pytest.approx([0.721858, 0.137554], abs=1e-4)
    assert model.distance(ref, others) == pytest.approx(PUBLISHED, abs=1e-4), "the map must not change later calls"


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 64, 64, 3)) - 0.5,
        np.full((1, 64, 64, 3), 200.0),
        np.full((1, 64, 64, 3), np.nan),
        np.zeros((1, 64, 64, 3), np.int64),
        np.zeros((1, 3, 64, 64)),
        np.zeros((64, 64, 3)),
        np.zeros((1, 16, 64, 3)),
    ],
    ids=["minus one to one", "0 to 255 floats", "nan", "integers", "channels first", "no batch", "too small"],
)
def test_refuses_other_ranges_and_shapes(model: LpipsModel, wrong: np.ndarray) -> None:
    with pytest.raises(MetricError):
        model.distance(wrong, wrong + 0.001 if wrong.dtype.kind == "f" else wrong)


def test_refuses_unequal_sizes(model: LpipsModel) -> None:
    with pytest.raises(MetricError, match="unequal size"):
        model.distance(np.zeros((1, 64, 64, 3)), np.zeros((1, 64, 32, 3)))


def test_loading_needs_no_network_and_leaves_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    loaded = LpipsModel()
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_another_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(asset_folder("lpips") / TRUNK_FILE)
    weights.pop("features.10.bias")
    save_file(weights, tmp_path / TRUNK_FILE)
    with pytest.raises(MetricError, match="AlexNet"):
        LpipsModel(trunk=tmp_path)


def test_identical_pictures_are_exactly_zero(networks: Networks) -> None:
    ref, _ = pictures()
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    assert lpips([sample(ref[0], ref[0], mask)], networks) == [0.0]
    assert lpips_bg([sample(ref[0], ref[0], mask)], networks) == [0.0]


def test_edit_inside_the_mask_leaves_the_background_at_exactly_zero(networks: Networks) -> None:
    ref, others = pictures()
    mask = np.zeros((64, 64), bool)
    mask[10:40, 20:50] = True
    edited = np.where(mask[:, :, None], others[0], ref[0])
    one = sample(edited, ref[0], mask)
    assert lpips_bg([one], networks) == [0.0]
    assert numbers(lpips([one], networks))[0] > 0.05


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
def test_background_form_does_not_shrink_with_the_region(networks: Networks, share: float) -> None:
    # One distortion everywhere, at 512 pixels. A single half-plane depends on how its edge falls on AlexNet's strides,
    # so the mask is laid on each of the four sides.
    ref, others = pictures()
    source, edited = np.tile(ref[0], (8, 8, 1)), np.tile(others[0], (8, 8, 1))
    mask = np.zeros((512, 512), bool)
    mask[:, : round(512 * share)] = True
    samples = [sample(edited, source, np.ascontiguousarray(np.rot90(mask, turns))) for turns in range(4)]
    whole = numbers(lpips(samples[:1], networks))[0]
    assert np.mean(numbers(lpips_bg(samples, networks))) == pytest.approx(whole, rel=0.06)
    zeroed = networks.get("lpips").distance(
        np.stack([np.where(one.mask[:, :, None], 0, one.source).astype(np.uint8) for one in samples[:1]]),
        np.stack([np.where(one.mask[:, :, None], 0, one.edited).astype(np.uint8) for one in samples[:1]]),
    )
    assert zeroed[0] < (1.1 - share) * whole, "the form that we do not use shrinks with the region"


def test_no_background(networks: Networks) -> None:
    ref, others = pictures()
    whole = np.ones((64, 64), bool)
    almost = whole.copy()
    almost[0, :40] = False  # 40 of 4096 pixels: just below one percent
    enough = whole.copy()
    enough[0, :41] = False
    samples = [sample(others[0], ref[0], mask) for mask in (whole, almost, enough)]
    values = lpips_bg(samples, networks)
    assert values[:2] == [Reason.NO_BACKGROUND, Reason.NO_BACKGROUND]
    assert len(numbers(values[2:])) == 1


def test_batches_give_what_single_samples_give(networks: Networks) -> None:
    ref, others = pictures()
    mask = np.zeros((64, 64), bool)
    mask[:, :20] = True
    samples = [
        sample(others[0], ref[0], mask),
        sample(others[0][:48], ref[0][:48], mask[:48]),
        sample(others[1], ref[1], mask),
    ]
    for metric in (lpips, lpips_bg):
        assert metric(samples, networks) == pytest.approx([metric([one], networks)[0] for one in samples], abs=1e-6)

"""Distances from unedited activations: the statistics, their file, and what is measured of an edited run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tiny import CHANNELS, tiny_model
from torch import Tensor
from unet_calls import POSITIONS, push, unet_input

from riebench.errors import StoreError
from riebench.generation.distribution import (
    LEAST_SHRINKAGE,
    BlockReference,
    DistributionMeter,
    decode_reference,
    encode_reference,
    make_reference,
    measured_steps,
    shrinkage,
)
from riebench.generation.edits import Edit
from riebench.generation.trace import Trace, capture, intervene

WIDTH = 24


def values(count: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated normal vectors, some directions of which are hardly used."""
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -2, WIDTH)
    drawn = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn @ mixing.T + 3 + shift * mixing.sum(1)


@pytest.mark.parametrize("count", [4000, 120])
def test_unedited_activations_are_usual_and_shifted_ones_are_far(count: int) -> None:
    reference = make_reference([values(count, 2)], [values(2000, 3)], [0])
    norm, distance, far = reference.measure(0, values(4000, 4)).tolist()
    assert norm == pytest.approx(0.5, abs=0.03) and distance == pytest.approx(1, abs=0.05)
    assert far == pytest.approx(0.01, abs=0.008)
    moved = reference.measure(0, values(500, 5, shift=8.0)).tolist()
    assert moved[1] > 3 and moved[2] > 0.9
    larger = reference.measure(0, 4 * values(500, 5)).tolist()
    assert larger[0] > 0.95


def test_distances_are_those_of_the_shrunk_covariance() -> None:
    fitted, held = values(4000, 2).double(), values(500, 3).double()
    reference = make_reference([fitted], [held], [0])
    apart = fitted - fitted.mean(0)
    covariance = apart.T @ apart / len(fitted)
    share = shrinkage(apart, covariance)
    shrunk = (1 - share) * covariance + share * torch.eye(WIDTH) * covariance.trace() / WIDTH
    distances = []
    for some in (held, values(50, 6).double()):
        off = some - fitted.mean(0)
        distances.append(torch.einsum("pi,ij,pj->p", off, torch.linalg.inv(shrunk), off).sqrt())
    expected = distances[1] / distances[0].square().mean().sqrt()
    torch.testing.assert_close(reference.distances(0, values(50, 6)).double(), expected, rtol=1e-3, atol=1e-3)


def test_few_positions_are_trusted_less_than_many() -> None:
    shares = []
    for count in (10, 60, 100_000):
        some = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0)).double()
        some = some * torch.linspace(0.5, 2, WIDTH)
        apart = some - some.mean(0)
        shares.append(shrinkage(apart, apart.T @ apart / count))
    assert 1 >= shares[0] > shares[1] > shares[2] == LEAST_SHRINKAGE
    # A direction that unedited activations leave empty is no reason for an endless distance.
    flat = values(500, 2)
    flat[:, 0] = 0
    reference = make_reference([flat], [flat], [0])
    assert bool(torch.isfinite(reference.distances(0, values(20, 3))).all())
    silent = make_reference([torch.zeros(50, 4)], [torch.zeros(50, 4)], [0])
    assert bool(torch.isfinite(silent.measure(0, torch.zeros(5, 4))).all())


def test_short_runs_are_looked_at_whole_and_long_ones_evenly() -> None:
    assert measured_steps(1) == (0,) and measured_steps(4) == (0, 1, 2, 3)
    assert measured_steps(20) == (0, 6, 13, 19) and len(measured_steps(50)) == 4


def test_files_come_back_and_changed_ones_are_refused(tmp_path: Path) -> None:
    reference = make_reference([values(200, 2)] * 2, [values(100, 3)] * 2, [0, 3])
    data, path = encode_reference(reference, {"model": "abc"}), tmp_path / "mid.0.safetensors"
    found, notes = decode_reference(data, path)
    assert notes["model"] == "abc" and found.digest == reference.digest and found.steps.tolist() == [0, 3]
    assert torch.equal(found.measure(1, values(9, 4)), reference.measure(1, values(9, 4)))
    changed = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    with pytest.raises(StoreError, match="is not as riebench wrote it; delete it and repeat `riebench run`"):
        decode_reference(changed, path)
    for broken in (data[:50], b"", data[: len(data) // 2]):
        with pytest.raises(StoreError, match=r"is damaged .*; delete it and repeat"):
            decode_reference(broken, path)


def reference_of(traces: Trace, block: str) -> BlockReference:
    """A reference of one block's own unedited updates."""
    found = traces.row(block, 0)
    return make_reference([*found], [*found], range(len(found)))


def run(edits: list[Edit | None], steps: int, meter: DistributionMeter | None = None) -> Trace:
    """A guided run of two rows, alike at every step."""
    unet, given = tiny_model().denoiser, unet_input(2, guided=True)
    with ExitStack() as stack:
        stack.enter_context(intervene(unet, edits, guided=True, steps=steps, meter=meter))
        trace = stack.enter_context(capture(unet, ("mid.0", "up.0.0"), guided=True, steps=steps))
        for _ in range(steps):
            with torch.inference_mode():
                unet(**given)
    return trace


def test_what_is_measured_is_the_edited_update_at_the_regions_after_all_edits() -> None:
    plain = run([None, None], 2)
    references = {block: reference_of(plain, block) for block in ("mid.0", "up.0.0")}
    inside = torch.tensor([0, 3, 9])
    before = {block: {0: 0.25, 1: 0.5} for block in references}
    edit = Edit({"mid.0": push(steps=2), "up.0.0": push(steps=2, size=1.0)})
    meter = DistributionMeter(references, [dict.fromkeys(references, inside), {}])
    edited = run([edit, None], 2, meter)
    found = meter.result(0, before)
    assert set(found) == {"mid.0", "up.0.0"} and not meter.result(1, before)
    for block, one in found.items():
        assert one.steps == (0, 1) and one.far_before == (0.25, 0.5)
        for step in one.steps:
            expected = references[block].measure(step, edited.row(block, 0)[step][inside]).tolist()
            assert [one.norm[step], one.distance[step], one.far[step]] == pytest.approx(expected, abs=0.006)
    # The later block was moved further than by its own edit.
    alone = DistributionMeter(references, [{"up.0.0": inside}, {}])
    run([Edit({"up.0.0": push(steps=2, size=1.0)}), None], 2, alone)
    assert alone.result(0, before)["up.0.0"].distance != found["up.0.0"].distance
    # Measuring changes nothing.
    assert torch.equal(run([edit, None], 2).get("up.0.0"), edited.get("up.0.0"))


def test_switched_units_are_measured_at_their_block_and_only_where_the_edit_acts() -> None:
    plain = run([None, None], 3)
    references = {"mid.0": reference_of(plain, "mid.0")}
    everywhere = torch.arange(POSITIONS)
    meter = DistributionMeter(references, [{"mid.0": everywhere}, {"mid.0": everywhere}])
    units = push(width=4 * CHANNELS, steps=3)
    edited = run([Edit({"mid.0.ff.0": units}, window=(1, 3)), None], 3, meter)
    found = meter.result(0, {"mid.0": {1: 0.0, 2: 0.0}})["mid.0"]
    assert found.steps == (1, 2)
    expected = references["mid.0"].measure(1, edited.row("mid.0", 0)[1]).tolist()
    assert found.distance[0] == pytest.approx(expected[1], abs=0.006)
    # Rows without an edit have no numbers.
    assert not meter.result(1, {})

"""SDXL's true architecture: measures counted without memory, and, slow, everything run once with random weights."""

from __future__ import annotations

import pytest

from benchmarks.sdxl.architecture import build_unet, build_vae
from benchmarks.sdxl.counting import decode_cost, unet_cost
from benchmarks.sdxl.measure import CPU_CONFIGURATIONS, CUDA_CONFIGURATIONS, Configuration, measure
from riebench.generation.hooks import known_sites
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.families.sdxl.shape import PARAMETERS, SDXL


def test_the_architecture_is_sdxls() -> None:
    unet, vae = build_unet(), build_vae()
    assert sum(value.numel() for value in unet.parameters()) == PARAMETERS["unet"] == 2_567_463_684
    assert sum(value.numel() for value in vae.parameters()) == PARAMETERS["vae"] == 83_653_863
    assert len(unet.attn_processors) == 140
    assert set(known_sites(unet)) == set(SDXL.blocks)
    assert {SDXL.width(block) for block in BLOCKS} == {1280}
    assert [SDXL.positions(BLOCKS[0], size) for size in (512, 1024)] == [16**2, 32**2]


def test_costs_are_counted_without_memory() -> None:
    small, large = unet_cost(512), unet_cost(1024)
    # 3 tera multiply-adds for 1024 px without attention's products, as others have counted it.
    assert large.operations == pytest.approx(6.76e12, rel=0.01)
    # Attention grows faster than the picture.
    assert 4 < large.operations / small.operations < 4.5
    assert decode_cost(512).activation_bytes == pytest.approx(0.8e9, rel=0.05)


def check(configurations: tuple[Configuration, ...], device: str) -> None:
    """Runs everything; blocks of another shape, failing units and edits without effect raise."""
    found = list(measure(configurations, device))
    assert [one.what for one in found] == ["generate", "sae", "neurons"] * len(configurations)
    for one in found:
        rows = one.pictures * one.configuration.steps * (2 if one.configuration.guidance > 1 else 1)
        assert one.evaluations >= rows * (1 if one.what == "generate" else 3)
        assert one.seconds > 0 and one.peak_bytes > 5.1e9


@pytest.mark.slow
def test_everything_runs_at_full_size_on_the_processor() -> None:
    check(CPU_CONFIGURATIONS, "cpu")


@pytest.mark.slow
@pytest.mark.gpu
def test_everything_runs_at_full_size_on_a_gpu() -> None:
    check(CUDA_CONFIGURATIONS, "cuda")

"""What edited runs share with their source runs: the same pictures for less work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import pytest
import torch
from tiny import CHANNELS, GRID, tiny_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sdxl.counting import shares_before
from riebench.blocks import module_path
from riebench.generation.edits import Edit, LatentChange, StaticEdit, Term, TextChange
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.prefix import Cut, Prefix, PrefixPlan, changes, shared_cut
from riebench.models.families.sdxl.names import BLOCKS

PROMPTS = ["a red house", "a blue cat"]
SEEDS = [11, 12]
STEPS = 3


@lru_cache(maxsize=4)
def source_run(guidance: float) -> tuple[Generator, GenerationResult]:
    """Two source runs with all that can be kept of them, and a third run beside."""
    generator = Generator(tiny_model(STEPS, guidance))
    blocks = (*BLOCKS, "up.0.res.2", "up.2.res.1")
    plan = PrefixPlan(rows=2, blocks=blocks, steps=(0, 1))
    return generator, generator.generate([*PROMPTS, "a green boat"], [*SEEDS, 11], keep_prefix=plan, keep_latents=True)


def prefix_of(result: GenerationResult) -> Prefix:
    """The kept prefix."""
    assert result.prefix is not None
    return result.prefix


def push(*sites: str, window: tuple[int, int] | None = None, size: float = 6.0) -> Edit:
    """An edit that changes every position of some sites."""
    generator = torch.Generator().manual_seed(len(sites))
    widths = {site: CHANNELS * (4 if ".ff." in site else 1) if not site.startswith("up.2") else 32 for site in sites}
    grid = {site: GRID * GRID * (16 if site.startswith("up.2") else 1) for site in sites}
    terms = {
        site: Term(torch.arange(grid[site]), size * torch.randn(STEPS, grid[site], width, generator=generator))
        for site, width in widths.items()
    }
    return Edit({site: StaticEdit((term,)) for site, term in terms.items()}, window=window)


@contextmanager
def calls_of(unet: nn.Module, path: str) -> Iterator[list[int]]:
    """Rows of every forward pass of one convolution or linear layer."""
    seen: list[int] = []
    handle = unet.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()


EDITS = {
    "down.2.1": push("down.2.1"),
    "mid.0": push("mid.0"),
    "up.0.0": push("up.0.0"),
    "up.0.1": push("up.0.1"),
    "all": push(*BLOCKS),
    "units": push("up.0.1.ff.0"),
    "residual": push("up.0.res.2"),
    "far": push("up.2.res.1"),
    "late": push("up.0.0", window=(1, 3), size=60),
    "latest": push("up.0.0", window=(2, 3), size=60),
    "text": Edit(text=TextChange("a red boat", "last"), strength=1 / 3),
}


@pytest.mark.parametrize(("name", "guidance"), [*((name, 0.0) for name in EDITS), ("all", 3.0), ("late", 3.0)])
def test_the_pictures_are_those_of_whole_runs(name: str, guidance: float) -> None:
    generator, source = source_run(guidance)
    edits = [EDITS[name], EDITS[name].scaled(EDITS[name].strength * 0.7) if name != "text" else EDITS[name]]
    whole, shared = (
        generator.generate(PROMPTS, SEEDS, edits=edits, keep_latents=True, prefixes=prefixes)
        for prefixes in ((), (prefix_of(source),))
    )
    assert np.abs(whole.images.astype(int) - shared.images).max() <= 1
    assert whole.latents is not None and shared.latents is not None and source.latents is not None
    change, error = ((whole.latents - other).abs().max() for other in (source.latents[:2], shared.latents))
    # Rows of other batches are rounded otherwise, which guidance makes larger; the edit itself is far above that.
    assert error <= 2e-4 and change >= 1e-3


def test_nothing_before_the_cut_is_computed_and_everything_after_it_is() -> None:
    generator, source = source_run(0.0)
    unet = generator.model.denoiser
    layer = "{}.transformer_blocks.0.ff.net.2"
    seen: dict[str, list[int]] = {}
    for path in ("down_blocks.0.resnets.0.conv1", *(layer.format(module_path(block)) for block in BLOCKS), "conv_out"):
        with calls_of(unet, path) as seen[path]:
            generator.generate(PROMPTS, SEEDS, edits=[EDITS["up.0.0"]] * 2, prefixes=[prefix_of(source)])
    # One step is resumed; the others are whole.
    assert [len(calls) for calls in seen.values()] == [2, 2, 2, 2, 3, 3]
    with calls_of(unet, "down_blocks.0.resnets.0.conv1") as calls:
        generator.generate(PROMPTS, SEEDS, edits=[EDITS["latest"]] * 2, prefixes=[prefix_of(source)])
    # Step 2 was not kept inside: only whole steps are left out.
    assert calls == [2]


def test_rows_of_several_source_batches_and_of_any_cut_share_a_batch() -> None:
    generator, source = source_run(0.0)
    plan = PrefixPlan(rows=1, blocks=BLOCKS, steps=(0,))
    other = prefix_of(generator.generate(["a green boat"], [11], keep_prefix=plan))
    prompts, seeds = [*PROMPTS, "a green boat", "a red house"], [*SEEDS, 11, 11]
    edits = [EDITS["up.0.1"], EDITS["mid.0"], EDITS["up.0.0"], EDITS["mid.0"].scaled(0.5)]
    prefixes = [prefix_of(source), other]
    assert shared_cut(prefixes, list(zip(prompts, seeds, strict=True)), edits) == Cut(0, "mid.0", True)
    whole, shared = (
        generator.generate(prompts, seeds, edits=edits, prefixes=given).images.astype(int) for given in ((), prefixes)
    )
    assert np.abs(whole - shared).max() <= 1
    # A run that nobody kept makes the whole batch a whole one.
    assert shared_cut(prefixes[:1], list(zip(prompts, seeds, strict=True)), edits) is None


def test_where_edits_begin() -> None:
    latents = torch.zeros(4, 1, 2, 2)
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert changes(None, 4) == changes(EDITS["mid.0"].scaled(0), 4) == [Cut(4)]
    assert changes(push("mid.0", "up.0.1.ff.2"), 4) == [Cut(0, "mid.0", True), Cut(0, "up.0.1"), Cut(4)]
    assert changes(Edit(latents=LatentChange(latents, latents, mask), window=(1, 4)), 4) == [Cut(2), Cut(4)]
    assert changes(Edit(text=TextChange("x", "last"), strength=0.5), 4) == [Cut(2), Cut(4)]
    assert changes(Edit(text=TextChange("x"), strength=0.5, window=(3, 4)), 4) == [Cut(3), Cut(4)]
    assert changes(Edit(push("mid.0").sites, pair=("a", "b"), window=(1, 4)), 4) == [Cut(0)]


def test_latents_changed_between_steps_share_the_steps_before() -> None:
    generator, source = source_run(0.0)
    assert source.latents is not None
    mask = torch.zeros(source.latents.shape[-2:], dtype=torch.bool)
    mask[: mask.shape[0] // 2] = True
    change = LatentChange(source.latents[0], source.latents[2], mask)
    edit = Edit(latents=change, strength=1.0, window=(1, 3))
    kept = [prefix_of(source)]
    with calls_of(generator.model.denoiser, "down_blocks.0.resnets.0.conv1") as calls:
        shared = generator.generate(PROMPTS[:1], SEEDS[:1], edits=[edit], prefixes=kept).images.astype(int)
    assert calls == [1]
    whole = generator.generate(PROMPTS[:1], SEEDS[:1], edits=[edit]).images.astype(int)
    assert np.abs(whole - source.images[:1]).max() > 1 and np.abs(whole - shared).max() <= 1


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    generator, source = source_run(0.0)
    unet = generator.model.denoiser
    before = generator.generate(PROMPTS, SEEDS).images
    wrong = Edit({"up.0.1": StaticEdit((Term(torch.arange(GRID * GRID), torch.ones(1, 1, 3)),))})
    with pytest.raises(RuntimeError):
        generator.generate(PROMPTS, SEEDS, edits=[wrong] * 2, prefixes=[prefix_of(source)])
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in unet.modules())
    assert np.array_equal(before, generator.generate(PROMPTS, SEEDS).images)


def test_single_block_edits_of_one_step_cost_two_thirds_of_a_whole_run_on_average() -> None:
    generator = Generator(tiny_model(1))
    source = generator.generate(PROMPTS, SEEDS, keep_prefix=PrefixPlan(2, BLOCKS, (0,)))
    costs = []
    for block in BLOCKS:
        for prefixes in ((), (prefix_of(source),)):
            counter = FlopCounterMode(generator.model.denoiser, display=False, depth=1)
            with counter:
                generator.generate(PROMPTS, SEEDS, edits=[EDITS[block]] * 2, prefixes=prefixes)
            costs.append(sum(counter.get_flop_counts()["UNet2DConditionModel"].values()))
    gains = [whole / shared for whole, shared in zip(costs[::2], costs[1::2], strict=True)]
    assert gains == sorted(gains) and sum(gains) / len(gains) >= 1.5


def test_at_full_size_single_block_edits_of_one_step_cost_half_a_run_on_average() -> None:
    shares = shares_before(512)
    assert list(shares) == list(BLOCKS) and list(shares.values()) == sorted(shares.values())
    gains = [1 / (1 - share) for share in shares.values()]
    assert gains[0] == pytest.approx(1.45, abs=0.01) and gains[-1] == pytest.approx(3.06, abs=0.01)
    assert sum(gains) / len(gains) == pytest.approx(2.12, abs=0.01)


@pytest.mark.parametrize("site", ["mid.0", "mid.0.ff.0", "up.0.1.ff.0", "up.0.res.0", "up.0.res.1"])
def test_what_stands_still_in_the_first_step_may_be_edited_in_later_ones(site: str) -> None:
    generator, source = source_run(0.0)
    edits = [EDITS["up.0.1"], push(site, window=(1, 3), size=20)]
    runs, kept = list(zip(PROMPTS, SEEDS, strict=True)), [prefix_of(source)]
    assert shared_cut(kept, runs, edits) == Cut(0, "up.0.1", True)
    whole, shared = (
        generator.generate(PROMPTS, SEEDS, edits=edits, keep_latents=True, prefixes=given).latents
        for given in ((), kept)
    )
    assert whole is not None and shared is not None and source.latents is not None
    assert (whole - shared).abs().max() <= 2e-4
    assert (whole - source.latents[:2]).flatten(1).abs().amax(1).min() >= 1e-3

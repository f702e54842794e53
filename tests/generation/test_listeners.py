"""Blocks' inputs, updates and outputs, and edits that read them in the edited run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest
import torch
from tiny import CHANNELS, FEATURES, GRID, SPARSITY, tiny_model
from torch import Tensor

from riebench.generation.edits import AdaptiveEdit, Edit, LiveSite, StaticEdit, Term
from riebench.generation.generator import Capture, GenerationResult, Generator
from riebench.generation.listeners import Listener, Listeners, flat
from riebench.generation.prefix import PrefixPlan
from riebench.models.families.sdxl.names import BLOCKS
from riebench.saes.sae import Reads, SparseAutoencoder

PROMPTS = ["a red house", "a blue cat"]
SEEDS = [11, 12]
STEPS = 3
EVERYTHING: tuple[Reads, ...] = ("input", "update", "output")
READ: dict[str, tuple[str, Reads, Reads]] = {
    "pair": ("mid.0", "input", "output"), "same": ("mid.0", "update", "update"), "other": ("up.0.1", "input", "update"),
}  # fmt: skip
"""Block, what is read and what is reconstructed."""


@lru_cache(maxsize=1)
def plain_run() -> GenerationResult:
    wanted = Capture((*BLOCKS, "up.0.res.2"), keep=EVERYTHING)
    return Generator(tiny_model(STEPS)).generate(PROMPTS, SEEDS, capture=wanted)


def random_sae(reads: Reads, bias: float = 0.0) -> SparseAutoencoder:
    """An SAE that reads outputs, or a transcoder of inputs."""
    generator = torch.Generator().manual_seed(3)
    encoder, decoder = (torch.randn(FEATURES, CHANNELS, generator=generator) for _ in range(2))
    zeros = torch.zeros(CHANNELS), torch.full((CHANNELS,), bias), torch.zeros(FEATURES)
    transcoder = reads == "input"
    return SparseAutoencoder(
        encoder, decoder, *zeros, k=SPARSITY, signal="update" if transcoder else "output", transcoder=transcoder
    )  # fmt: skip


def removal(reads: Reads, scale: float = 0.3) -> AdaptiveEdit:
    """An edit that takes away a share of all features, at every other position."""
    return AdaptiveEdit(
        StaticEdit(()), torch.arange(0, GRID * GRID, 2), torch.arange(FEATURES), random_sae(reads), scale=scale
    )  # fmt: skip


def push(scale: float) -> StaticEdit:
    values = scale * torch.randn(STEPS, GRID * GRID, CHANNELS, generator=torch.Generator().manual_seed(1))
    return StaticEdit((Term(torch.arange(GRID * GRID), values),))


@dataclass
class Probe:
    """A site edit that changes nothing and keeps what it may read."""

    seen: list[dict[str, Tensor]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def change(self, live: LiveSite) -> Tensor | None:
        self.seen.append({what: live.read(what) for what in EVERYTHING})
        self.times.append(float("nan" if live.time is None else live.time))
        return None

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        raise AssertionError("an edit that reads the live site is asked for its change")

    @property
    def nbytes(self) -> int:
        return 0


def test_output_is_input_plus_update() -> None:
    trace = plain_run().trace
    for block in BLOCKS:
        before, update, output = (trace.get(block, what) for what in EVERYTHING)
        torch.testing.assert_close(output, before + update, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(output, update, atol=0.1)


def test_the_times_are_those_of_the_schedule() -> None:
    for guidance in (0.0, 3.0):
        model = tiny_model(STEPS, guidance)
        trace = Generator(model).generate(PROMPTS, SEEDS, capture=Capture(("mid.0",))).trace
        assert [float(time) for time in trace.times] == [float(time) for time in model.pipe.scheduler.timesteps]


@pytest.mark.parametrize("block", [*BLOCKS, "up.0.res.2"])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_live_edit_reads_what_is_captured_in_its_run(block: str, guidance: float) -> None:
    """Behind another edit, so that the edited run's values are not those of the source run."""
    probe = Probe()
    edits = [None, Edit({"down.2.1": push(3.0), block: probe} if block != "down.2.1" else {block: probe})]
    model = tiny_model(STEPS, guidance)
    wanted = Capture((block,), keep=EVERYTHING)
    trace = Generator(model).generate(PROMPTS, SEEDS, edits=edits, capture=wanted).trace
    assert probe.times == [float(time) for time in trace.times]
    for what in EVERYTHING:
        for step in range(STEPS):
            captured = trace.row(block, 1, what)[step]
            torch.testing.assert_close(probe.seen[step][what], captured, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reads", ["output", "input"])
def test_live_features_are_taken_off_the_block_update(reads: Reads) -> None:
    """The edited output is the output less what the features of this very run add."""
    sae, edit = random_sae(reads), removal(reads)
    probe = Probe()
    both = Edit({"down.2.1": push(2.0), "up.0.1": edit})
    watched = Edit({"down.2.1": push(2.0), "up.0.1": probe})
    model = tiny_model(1)
    generate = Generator(model).generate
    one = Capture(("up.0.1",), keep=("output",))
    edited = generate(PROMPTS[:1], SEEDS[:1], edits=[both], capture=one).trace.row("up.0.1", 0, "output")[0]
    plain = generate(PROMPTS[:1], SEEDS[:1], edits=[watched], capture=one).trace.row("up.0.1", 0, "output")[0]
    live = probe.seen[0][reads]
    expected = torch.zeros_like(plain)
    expected[::2] = (
        -edit.scale * (sae.decode(sae.encode(live), live) - sae.decode(torch.zeros(16, FEATURES), live))[::2]
    )
    torch.testing.assert_close(edited - plain, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("reads", ["output", "input"])
@pytest.mark.parametrize(("block", "guidance"), [("mid.0", 0.0), ("up.0.1", 3.0)])
def test_shared_beginnings_change_no_picture(reads: Reads, block: str, guidance: float) -> None:
    generator = Generator(tiny_model(2, guidance))
    plan = PrefixPlan(rows=2, blocks=BLOCKS, steps=(0, 1))
    source = generator.generate(PROMPTS, SEEDS, keep_prefix=plan, keep_latents=True)
    assert source.prefix is not None and source.latents is not None
    for window in (None, (1, 2)):
        edits = [Edit({block: removal(reads)}, window=window), Edit({"up.0.1": removal(reads, 0.2)}, window=window)]
        whole, shared = (
            generator.generate(PROMPTS, SEEDS, edits=edits, keep_latents=True, prefixes=prefixes)
            for prefixes in ((), (source.prefix,))
        )
        assert whole.latents is not None and shared.latents is not None
        assert float((whole.latents - shared.latents).abs().max()) <= 2e-4
        assert np.abs(whole.images.astype(int) - shared.images).max() <= 1
        assert float((whole.latents - source.latents).abs().max()) > 1e-2


def test_a_live_edit_does_not_depend_on_its_batch() -> None:
    edit = Edit({"mid.0": removal("output"), "up.0.1": removal("input")})
    generator = Generator(tiny_model(STEPS))
    alone = generator.generate(PROMPTS[1:], SEEDS[1:], edits=[edit], keep_latents=True).latents
    among = generator.generate([*PROMPTS, PROMPTS[0]], [*SEEDS, 5], edits=[None, edit, edit], keep_latents=True).latents
    assert alone is not None and among is not None
    torch.testing.assert_close(among[1], alone[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_readings_pair_what_belongs_together(guidance: float) -> None:
    """Of each block and step, once, with the time; of guided models the conditional half."""
    found: dict[str, list[tuple[Tensor, Tensor, Tensor | None]]] = {name: [] for name in READ}

    def keep(name: str) -> Listener:
        return Listener(*READ[name], lambda x, y, time: found[name].append((x, y, time)))

    model = tiny_model(STEPS, guidance)
    wanted = Capture(("mid.0", "up.0.1"), keep=EVERYTHING)
    listening = Listeners([keep(name) for name in found]).capture
    trace = Generator(model).generate(PROMPTS, SEEDS, capture=[wanted, listening]).traces[0]
    for name, (block, reads, signal) in READ.items():
        assert len(found[name]) == STEPS
        for step, (x, y, time) in enumerate(found[name]):
            assert time is not None and float(time) == float(trace.times[step])
            assert torch.equal(x, trace.get(block, reads)[:, step])
            assert torch.equal(y, trace.get(block, signal)[:, step])
    x = found["pair"][0][0]
    assert torch.equal(flat(x)[GRID * GRID], x[1, :, 0, 0]) and flat(x).shape == (2 * GRID * GRID, CHANNELS)

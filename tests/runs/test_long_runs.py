"""Long runs: what is kept of them, how little that is, and that it says the same as what short runs keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_contexts import BLOCKS as TWO_BLOCKS
from edit_contexts import PAIR, context, dense, edit_of
from tiny import tiny_folder, tiny_model, tiny_saes, useless_saes

from riebench.generation.edits import StaticEdit, StepValues, position_mean, scale_steps, select_columns
from riebench.generation.generator import Capture, GenerationResult, Generator
from riebench.generation.memory import Footprint, examples_together, footprint
from riebench.generation.trace import Trace
from riebench.generation.transfers import PairedEdit
from riebench.generation.units import UnitRecorder
from riebench.methods.base import ROLES, EditContext, ExampleRuns
from riebench.methods.ranking import UnitMeter, means, normalise_units
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.families.sdxl.shape import SDXL, unet_shape
from riebench.models.loading import load_model
from riebench.runs import engines
from riebench.saes.sae import SparseAutoencoder
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, EditTask, Setting

HALF_A_GIGABYTE = 500_000_000
CHANNELS, GRID, SIZE, STEPS, LAYERS = 1280, 32, 1024, 20, 10


def long_context(**options: Any) -> EditContext:
    """The runs of `context`, kept as a long run; its numbers are rounded to 16 bits in both, so both hold the same."""
    ctx = context(**options)
    return EditContext(as_long(ctx.runs), ctx.blocks, ctx.saes)


def short_context(**options: Any) -> EditContext:
    """The same numbers, kept in float32."""
    ctx = context(**options)
    for steps in ctx.runs.trace._values.values():
        steps[:] = [step.half().float() for step in steps]
    return ctx


def as_long(runs: ExampleRuns) -> ExampleRuns:
    """The same runs, kept in 16 bits."""
    trace = Trace(long=True)
    trace.grids = runs.trace.grids
    for (site, what, _), steps in runs.trace._values.items():
        for step in steps:
            trace.add(site, what, {"conditional": step}, unconditional=False)
    return ExampleRuns(runs.example, runs.seed, trace, runs.rows, runs.masks, runs.unit_layers)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("sae", {"n_features": 6}),
        ("sae", {"n_features": 6, "rank": "mean"}),
        ("sae", {"n_features": 6, "values": "mean"}),
        ("sae", {"n_features": 6, "add_at": "source"}),
        ("sae", {"n_features": 6, "ranking": "separate", "add_only": True}),
        ("activation_patch", {}),
        ("activation_patch", {"values": "mean"}),
        ("mean_steering", {}),
        ("random_features", {"n_features": 6}),
    ],
)
def test_edits_of_long_runs_are_those_of_short_ones(name: str, params: dict[str, Any]) -> None:
    short, long = edit_of(name, short_context(), **params), edit_of(name, long_context(), **params)
    assert short.features == long.features
    for block in TWO_BLOCKS:
        assert dense(short, block).any()
        torch.testing.assert_close(dense(long, block), dense(short, block), rtol=1e-5, atol=1e-5)


def test_adaptive_edits_and_units_of_long_runs_are_those_of_short_ones() -> None:
    live = context().runs.updates("source", "mid.0")[0]
    short, long = (edit_of("sae", ctx, n_features=6, adaptive=True) for ctx in (short_context(), long_context()))
    torch.testing.assert_close(long.sites["mid.0"].delta(0, live), short.sites["mid.0"].delta(0, live))
    stored, read = (edit_of("neurons", ctx, n_units=5) for ctx in (short_context(), long_context()))
    for site in stored.sites:
        torch.testing.assert_close(dense(read, site, 16), dense(stored, site, 16))


def test_long_runs_keep_sixteen_bits_and_short_ones_all() -> None:
    values = torch.randn(2, 3, 4, 4) * 1e3
    for dtype in (torch.float16, torch.bfloat16):
        given = values.to(dtype)
        long, short = Trace(long=True), Trace()
        for trace in (long, short):
            trace.add("mid.0", "update", {"conditional": given}, unconditional=False)
            # A model that computes in 16 bits loses nothing.
            assert torch.equal(trace.get("mid.0")[:, 0], given.float())
        assert (long.nbytes, short.nbytes) == (given.numel() * 2, given.numel() * 4)
    for size, dtype in ((1.0, torch.float16), (1e4, torch.bfloat16)):
        trace = Trace(long=True)
        trace.add("mid.0", "update", {"conditional": values * size}, unconditional=False)
        assert trace.step_row("mid.0", 0, 0).dtype == dtype
        torch.testing.assert_close(trace.get("mid.0")[:, 0], values * size, rtol=1e-2, atol=1e-2)


def test_a_trace_is_read_step_by_step_as_it_is_read_whole() -> None:
    trace = long_context().runs.trace
    for site in ("mid.0", "mid.0.ff.0"):
        for step in range(2):
            assert torch.equal(trace.step_row(site, 1, step).float(), trace.row(site, 1)[step])
        assert trace.width_of(site) == trace.row(site, 1).shape[-1]


def test_views_answer_as_tensors_do() -> None:
    whole = torch.randn(3, 5, 7)
    view = StepValues(lambda step, columns: whole[step] if columns is None else whole[step][:, columns], (3, 5, 7))
    columns, factors = torch.tensor([6, 0]), torch.tensor([1.0, 0.0, 2.0])
    torch.testing.assert_close(position_mean(view), position_mean(whole))
    picked = scale_steps(select_columns(view, columns), factors)
    assert picked.shape == (3, 5, 2)
    torch.testing.assert_close(picked[2], scale_steps(select_columns(whole, columns), factors)[2])
    torch.testing.assert_close(position_mean(scale_steps(picked, factors)), position_mean(whole)[..., columns]
                               * factors[:, None, None] ** 2)  # fmt: skip
    assert position_mean(StepValues(view.read, (3, 0, 7))).shape == (3, 0, 7)


def test_a_meter_takes_the_means_that_kept_units_have() -> None:
    units, positions = torch.randn(2, 4, 9, 5), [torch.tensor([0, 3]), torch.tensor([1, 2, 8])]
    meter = UnitMeter(lambda row, site: positions[row])
    for step in range(4):
        meter("mid.0.ff.0", units[:, step])
    for row in range(2):
        for rank in ("first", "mean"):
            expected = means(normalise_units(units[row][:, positions[row]]), rank)
            torch.testing.assert_close(meter.mean(row, "mid.0.ff.0", rank), expected)


def test_sdxl_turbo_is_a_short_run_and_sdxl_base_a_long_one() -> None:
    turbo, base = (footprint(SDXL, size, steps, BLOCKS, BLOCKS, BLOCKS) for size, steps in ((512, 4), (1024, 20)))
    assert not turbo.long and base.long
    # Units are too many from one step on.
    assert footprint(SDXL, 512, 1, BLOCKS, BLOCKS).metered and turbo.metered and base.metered
    assert turbo.nbytes(long=False, metered=True) < 45e6
    assert base.nbytes(long=True, metered=True) < 445e6
    toy = footprint(unet_shape(tiny_model().pipe.unet.config, 2), 32, 20, BLOCKS, BLOCKS, BLOCKS)
    assert not toy.long and not toy.metered
    assert unet_shape({"block_out_channels": (320, 640, 1280), "transformer_layers_per_block": [1, 2, 10]}, 8) == SDXL


def test_the_footprint_is_what_a_trace_of_a_real_run_holds() -> None:
    model = tiny_model(steps=3, guidance=4.0)
    found = footprint(unet_shape(model.pipe.unet.config, 2), 32, 3, BLOCKS, BLOCKS, BLOCKS)
    units = tuple(f"{block}.ff.0" for block in BLOCKS)
    captures = [Capture((*BLOCKS, *units)), Capture(BLOCKS, ("attention",))]
    traces = Generator(model).generate(["a red house", "a red boat"], [1, 1], capture=captures).traces
    assert sum(trace.nbytes for trace in traces) == found.nbytes(long=False, metered=False)


def test_one_example_of_twenty_steps_at_1024_pixels_needs_half_a_gigabyte() -> None:
    generator = torch.Generator().manual_seed(0)
    trace, looked = Trace(long=True), Trace(long=True)
    picture = torch.randn(2, CHANNELS, GRID, GRID, generator=generator).half()
    attention = torch.rand(2, GRID * GRID, 77, generator=generator)
    for block in BLOCKS:
        trace.grids[block] = looked.grids[block] = (GRID, GRID)
        for _ in range(STEPS):
            trace.add(block, "update", {"conditional": picture}, unconditional=False)
            looked.add(block, "attention", {"conditional": attention}, unconditional=False)
    whole = np.ones((SIZE, SIZE), dtype=bool)
    masks = RegionMasks(whole, whole.copy())

    def measure(runs: ExampleRuns) -> UnitMeter:
        # What is kept of units does not depend on how many positions they are measured at.
        meter = UnitMeter(lambda row, site: torch.arange(4))
        for block in BLOCKS:
            units = torch.randn(2, 4, 4 * CHANNELS, generator=generator).half()
            for layer in range(LAYERS):
                meter(f"{block}.ff.{layer}", units)
        return meter

    runs = ExampleRuns(PAIR, 0, trace, {"source": 0, "target": 1}, masks, dict.fromkeys(BLOCKS, LAYERS), measure)
    sae = SparseAutoencoder(
        torch.randn(320, CHANNELS, generator=generator), torch.randn(320, CHANNELS, generator=generator),
        torch.zeros(CHANNELS), torch.zeros(CHANNELS), torch.zeros(320), k=40,
    )  # fmt: skip
    ctx = EditContext(runs, BLOCKS, dict.fromkeys(BLOCKS, sae))
    edits = [edit_of("sae", ctx, n_features=count) for count in (80, 160, 320, 640)]
    edits += [edit_of("sae", ctx, n_features=160, adaptive=True), edit_of("activation_patch", ctx)]
    edits += [edit_of("mean_steering", ctx), *(edit_of("neurons", ctx, n_units=count) for count in (5_000, 80_000))]
    edits += [edit_of("sae", EditContext(runs, (block,), ctx.saes), n_features=160) for block in BLOCKS]
    held = runs.nbytes + looked.nbytes + 2 * whole.nbytes + sum(edit.nbytes for edit in edits)
    # Nearly all of it is the two runs themselves, in 16 bits.
    assert trace.nbytes == 2 * STEPS * len(BLOCKS) * GRID * GRID * CHANNELS * 2
    assert trace.nbytes < held <= HALF_A_GIGABYTE
    # An edit is there at each of the steps.
    placed = edits[1].sites["mid.0"]
    assert isinstance(placed, StaticEdit) and placed.delta(STEPS - 1, torch.zeros(GRID * GRID, CHANNELS)) is not None
    assert all(isinstance(site, PairedEdit) for site in edits[-5].sites.values())


def task(count: int = 1) -> EditTask:
    """Examples with a region to look for."""
    examples = tuple(
        EditExample(id=f"e{i}", source=f"a red house {i}", target=f"a red boat {i}", source_region="house",
                    target_region="boat")
        for i in range(count)
    )  # fmt: skip
    return EditTask(name="t", version=1, category="change_object", suite="tiny", examples=examples)


ALL = [
    Setting(name="sae", method="sae", params={"n_features": 10}, block_mode="both", strengths=(1.0, 3.0)),
    Setting(name="adaptive", method="sae", params={"n_features": 10, "adaptive": True}, strengths=(3.0,)),
    Setting(name="patch", method="activation_patch"),
    Setting(name="steering", method="mean_steering"),
    Setting(name="random", method="random_features", params={"n_features": 10}, strengths=(3.0,)),
    Setting(name="neurons", method="neurons", params={"n_units": 200}, strengths=(3.0,)),
]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes every run a long one."""

    def shrink() -> None:
        for name in ("SHORT_RUN", "UNITS_KEPT", "TRACE_BYTES"):
            monkeypatch.setattr(f"riebench.generation.memory.{name}", 0)

    return shrink


def run(folder: Path, settings: Sequence[Setting], **options: Any) -> list[RunFolder]:
    """Runs settings on the tiny model."""
    model = options.pop("model", None) or tiny_model(steps=4, guidance=3.0)
    tasks, saes = options.pop("tasks", [task()]), options.pop("saes_source", str(tiny_saes()))
    return engines.run(
        "local", tasks, settings, model, results_root=folder, saes_source=saes, progress=False, **options
    )


def switched(record: EditRecord) -> dict[str, tuple[set[int], set[int]]]:
    """The features that an edit switched, in no order."""
    return {block: (set(one.add), set(one.remove)) for block, one in record.features.items()}


def pictures(folder: RunFolder) -> list[np.ndarray[Any, Any]]:
    """All pictures of a run."""
    assert {record.status for record in folder.records()} == {"ok"}
    ordered = sorted(folder.records(), key=lambda record: record.key.digest)
    return [folder.read_image(str(record.image)).astype(int) for record in ordered]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_runs_give_the_pictures_of_short_ones(
    tmp_path: Path, small_limits: Callable[[], None], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    # What 16 bits do not tell apart is a tie in both: otherwise it is one in the long run alone.
    monkeypatch.setattr("riebench.generation.trace.FULL_PRECISION", torch.finfo(torch.float16).eps)
    model = tiny_model(steps=4, guidance=3.0)
    if dtype != "float32":
        model = load_model(str(tiny_folder()), steps=4, guidance=3.0, dtype=dtype)
    # Without a mean that is subtracted before the encoder, rounding is small beside what is encoded.
    saes = {"saes_source": str(useless_saes()), "accept_sae": True}
    short = run(tmp_path / "short", ALL, model=model, **saes)
    small_limits()
    long = run(tmp_path / "long", ALL, model=model, **saes)
    for one, other in zip(short, long, strict=True):
        for before, after in zip(pictures(one), pictures(other), strict=True):
            # A float32 model's traces are rounded to float16; one in 16 bits differs by what its batches do to it.
            difference = np.abs(before - after)
            assert difference.mean() <= (0.05 if dtype == "float32" else 1.0), one.spec.setting.name
            assert difference.max() <= (2 if dtype == "float32" else 24), one.spec.setting.name
        for first, second in zip(one.records(), other.records(), strict=True):
            if dtype == "float32":
                # Nearly equal scores stand in one order or the other.
                assert [switched(record) for record in (first, second)] == [switched(first)] * 2


@pytest.mark.parametrize("kept", [False, True])
def test_memory_bounds_how_many_examples_are_looked_at_together(
    tmp_path: Path, small_limits: Callable[[], None], monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr("riebench.generation.memory.UNITS_SHARE", 0)
    calls: list[tuple[int, bool]] = []
    original = Generator.generate

    def generate(self: Generator, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> GenerationResult:
        calls.append((len(prompts), options.get("edits") is not None))
        return original(self, prompts, seeds, **options)

    monkeypatch.setattr(Generator, "generate", generate)
    chosen = [ALL[2], ALL[5]]
    run(tmp_path / "a", chosen, tasks=[task(2)], batch_size=8)
    assert calls == [(4, False), (4, True)]
    calls.clear()
    small_limits()
    run(tmp_path / "b", chosen, tasks=[task(2)], batch_size=8)
    # Each example: its two runs, the two runs again for its units if these are not kept, its two edits.
    assert calls == [(2, False), *([] if kept else [(2, False)]), (2, True)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kept_units_are_those_of_repeated_runs_to_the_bit(dtype: torch.dtype) -> None:
    ctx = context()
    sites = [site for site in ctx.runs.trace.sites if ".ff." in site]
    steps = {site: [values.to(dtype) for values in ctx.runs.trace._values[site, "update", "conditional"]]
             for site in sites}  # fmt: skip
    recorder = UnitRecorder((0, 1))
    meter = UnitMeter(lambda row, site: ctx.runs.positions(ROLES[row], site))
    for step in range(2):
        for site in sites:
            recorder(site, steps[site][step])
            meter(site, steps[site][step])
    runs = replace(ctx.runs, measure=lambda runs: meter, _meters=[])
    repeated = edit_of("neurons", EditContext(runs, ctx.blocks), n_units=9)
    assert recorder.holds(1) and not recorder.holds(2)
    units = {role: recorder.take(row, partial(runs.positions, role)) for row, role in enumerate(ROLES)}
    assert not recorder.holds(1)
    kept_meter = UnitMeter(lambda row, site: torch.arange(0))
    for row, role in enumerate(ROLES):
        kept_meter.read(row, units[role], sites)
    assert kept_meter.precision == meter.precision
    for row, site, rank in product((0, 1), sites, ("first", "mean")):
        assert torch.equal(kept_meter.mean(row, site, rank), meter.mean(row, site, rank))
    kept = edit_of("neurons", EditContext(replace(runs, units=units, measure=lambda runs: kept_meter, _meters=[]),
                                          ctx.blocks), n_units=9)  # fmt: skip
    assert kept.pair is None and repeated.pair is not None and kept.sites.keys() == repeated.sites.keys()
    for site, paired in repeated.sites.items():
        assert isinstance(paired, PairedEdit)
        for step in range(2):
            source, target = (steps[site][step][row].float() for row in (0, 1))
            found = kept.sites[site].delta(step, torch.zeros_like(target))
            wanted = paired.between(target, source)
            assert found is not None and wanted is not None and torch.equal(found, wanted) and found.any()
    # Only masked positions are kept, in the model's own number format, and an edit has no copy of them.
    held = sum(len(runs.positions(role, site)) * 16 * 2 * dtype.itemsize for role in ROLES for site in sites)
    assert sum(one.nbytes for one in units.values()) == held
    assert kept.nbytes < 1000
    # A deletion that reads the source run twice reads its units twice.
    twice = EditContext(replace(runs, units=units, rule="delete"), ctx.blocks).with_deletion_rule(False).runs
    assert twice.units["target"] is units["source"]


def test_a_measurement_that_fails_is_the_trouble_of_its_own_setting(
    tmp_path: Path, small_limits: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: UnitMeter, row: int, site: str, values: torch.Tensor) -> None:
        raise RuntimeError("out of luck")

    small_limits()
    monkeypatch.setattr(UnitMeter, "add", fail)
    patch, neurons = run(tmp_path, [ALL[2], ALL[5]])
    assert [record.status for record in patch.records()] == ["ok"]
    assert [record.reason for record in neurons.records()] == ["RuntimeError: out of luck"]


def test_at_least_one_example_and_at_most_half_a_batch() -> None:
    assert [examples_together(nbytes, 8) for nbytes in (0, 2**20, 2**29, 2**40)] == [4, 4, 2, 1]
    assert Footprint(10, 5).nbytes(long=True, metered=False) == 30

"""Batch sizes: from free memory, halved when it does not suffice, and of no consequence for the pictures."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_saes
from tiny_runs import PATCH, SAE, task

from riebench.errors import MemoryShortageError, RiebenchError
from riebench.generation.generator import Generator
from riebench.generation.memory import BatchSize, automatic_batch_size, free_bytes
from riebench.jobs.request import parse_batch_size
from riebench.methods.editors import Editor, EditorContext
from riebench.runs.runner import run_benchmark
from riebench.store.folder import RunFolder
from riebench.tasks.schema import Setting


def run(folder: Path, *settings: Setting, count: int = 2, **options: Any) -> list[RunFolder]:
    """Runs settings on the tiny model."""
    return run_benchmark(
        [task(count)], settings or [PATCH], tiny_model(), results_root=folder, saes_source=str(tiny_saes()),
        progress=False, **options,
    )  # fmt: skip


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Memory for so many rows of the U-Net and no more; returns the sizes that were tried."""

    def limit(most: int, error: type[Exception] = torch.OutOfMemoryError) -> list[int]:
        sizes: list[int] = []
        original = Generator._generate

        def generate(self: Generator, prompts: Sequence[str], *args: Any) -> Any:
            sizes.append(len(prompts))
            if len(prompts) > most:
                raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return original(self, prompts, *args)

        monkeypatch.setattr(Generator, "_generate", generate)
        return sizes

    return limit


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_shortage_halves_the_batch_once_and_says_so_once(
    tmp_path: Path, tight: Any, capfd: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    many = PATCH.model_copy(update={"strengths": (1.0, 2.0, 3.0)})
    sizes = tight(5, error)
    (folder,) = run(tmp_path, many, count=8, batch_size=16)
    assert {record.status for record in folder.records()} == {"ok"} and len(folder.records()) == 24
    assert max(record.batch_size for record in folder.records()) == 4
    # 16 rows, then 8, then 4 for all that follows.
    assert sizes[:2] == [16, 8] and set(sizes[2:]) == {4}
    messages = [line for line in capfd.readouterr().err.splitlines() if "memory" in line]
    assert messages == ["memory does not suffice for 16 pictures at a time; going on with 4"]


def test_pictures_do_not_depend_on_shortages_batches_or_what_is_shared(
    tmp_path: Path, tight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [PATCH, SAE, SAE.model_copy(update={"name": "late", "edit_steps": (0.5, 1.0), "strengths": (6.0,)})]
    usual = run(tmp_path / "usual", *settings, batch_size=16)
    monkeypatch.setattr("riebench.runs.capture.PREFIX_KEPT", 0)
    monkeypatch.setattr("riebench.runs.capture.PREFIX_STEPS", 0)
    one_by_one = run(tmp_path / "one", *settings, batch_size=1)
    monkeypatch.undo()
    tight(3)
    halved = run(tmp_path / "halved", *settings, batch_size=16)
    for reference, *others in zip(usual, one_by_one, halved, strict=True):
        wanted = {record.key.digest: reference.read_image(str(record.image)) for record in reference.records()}
        for other in others:
            assert {record.key.digest for record in other.records()} == set(wanted)
            for record in other.records():
                found = other.read_image(str(record.image)).astype(int)
                assert np.abs(found - wanted[record.key.digest]).max() <= 1


def test_what_does_not_fit_alone_is_an_error_of_its_unit_if_others_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Generator._generate

    def generate(self: Generator, prompts: Sequence[str], seeds: Any, edits: Any, *args: Any) -> Any:
        if edits is not None and any(edit.strength == 2 for edit in edits):
            raise MemoryError
        return original(self, prompts, seeds, edits, *args)

    monkeypatch.setattr(Generator, "_generate", generate)
    (folder,) = run(tmp_path, batch_size=4)
    found = {record.key.strength: (record.status, record.reason) for record in folder.records()}
    assert found[1.0][0] == "ok" and found[2.0][0] == "error"
    assert "not enough memory on cpu for 1 pictures of 32 px at once; use --offload model" in str(found[2.0][1])


def test_where_nothing_ever_fits_the_run_ends(tmp_path: Path, tight: Any) -> None:
    tight(1)
    with pytest.raises(MemoryShortageError, match="--batch-size 1 or less"):
        run(tmp_path, batch_size=4)


def test_the_size_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert free_bytes(torch.device("cpu")) > 0
    one = model.family.shape_of_pipeline(model.pipe).activation_bytes(model.spec, model.options, 1)
    for rows, size in ((0.5, 1), (2.1, 2), (7.9, 4), (8.1, 8), (1e6, 32)):
        monkeypatch.setattr("riebench.generation.memory.free_bytes", lambda device, rows=rows: int(2 * rows * one))
        assert automatic_batch_size(model) == size


def test_shrinking_goes_down_to_one() -> None:
    batches = BatchSize(6, quiet=True)
    for count, size in ((6, 3), (3, 1), (1, 1), (8, 1)):
        batches.shrink(count)
        assert batches.size == size
    assert not batches.proven


def test_the_option() -> None:
    assert parse_batch_size("auto") is None and parse_batch_size("12") == 12
    for wrong in ("0", "-1", "many", "1.5", ""):
        with pytest.raises(RiebenchError, match="give a number from 1, or auto"):
            parse_batch_size(wrong)


class Tensors:
    """Something large, whose end can be seen."""


@pytest.mark.parametrize("error", [MemoryShortageError, ValueError])
def test_each_item_ends_once_and_nothing_of_another_batch_is_held_meanwhile(error: type[Exception]) -> None:
    batches = BatchSize(8, proven=True, quiet=True)
    alive: list[weakref.ref[Tensors]] = []
    tried: list[list[int]] = []
    ends: list[tuple[int, str]] = []

    def make(items: Sequence[int]) -> Tensors:
        assert not any(one() for one in alive)
        tried.append(list(items))
        tensors = Tensors()
        alive.append(weakref.ref(tensors))
        if len(items) > 2 or 5 in items:
            raise error("no")
        return tensors

    def keep(items: Sequence[int], made: Tensors) -> None:
        assert isinstance(made, Tensors)
        ends.extend((item, "made") for item in items)

    why = "no" if error is MemoryShortageError else "ValueError: no"
    batches.each(range(11), 1, make, keep, lambda item, reason: ends.append((item, reason)))
    assert ends == [(item, why if item == 5 else "made") for item in range(11)]
    if error is MemoryShortageError:
        # 8, 4 and 2 at once; then one by one for good, since the fifth does not fit with another.
        assert [len(one) for one in tried] == [8, 4, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    else:
        assert [len(one) for one in tried] == [8, *[1] * 8, 3, 1, 1, 1]
    batches.each([], 1, make, keep, lambda item, reason: ends.append((item, reason)))
    assert len(ends) == 11


def test_an_error_while_keeping_ends_everything() -> None:
    def keep(items: Sequence[int], made: int) -> None:
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"):
        BatchSize(2).each([1, 2, 3], 1, len, keep, lambda item, why: None)


def test_an_editor_short_of_memory_makes_its_own_batches_smaller_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    levels: list[int] = []
    original = Editor.edit_pictures

    def edit_pictures(self: Editor, ctx: EditorContext, params: Any) -> Any:
        levels.append(len(ctx.strengths))
        return original(self, ctx, params)

    def forward(module: Any, args: Any) -> None:
        # LEDITS++ alone runs two rows a picture here, and so more than six at once.
        if len(args[0]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Editor, "edit_pictures", edit_pictures)
    ledits = Setting(name="l", method="ledits_pp", blocks=(), params={"inversion_steps": 2}, strengths=(1, 2, 3, 4, 5))
    patch = PATCH.model_copy(update={"strengths": (1.0, 2.0, 3.0)})
    handle = tiny_model().denoiser.register_forward_pre_hook(forward)
    try:
        folder, other = run(tmp_path, ledits, patch, batch_size=6)
    finally:
        handle.remove()
    # Five, then what half of them leave; the second example begins with what fitted.
    assert levels == [5, 2, 2, 1, 2, 2, 1]
    assert [record.status for record in (*folder.records(), *other.records())] == ["ok"] * 16
    assert {record.batch_size for record in other.records()} == {6}
    messages = [line for line in capfd.readouterr().err.splitlines() if "memory" in line]
    assert messages == ["memory does not suffice for 5 pictures of l at a time; going on with 2"]

"""Edits by the prompt and by pasted latents: what the U-Net reads at each step, end points to the bit, any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIZE, tiny_folder, tiny_model
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, LatentChange, TextChange, whole_steps
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.trace import Trace
from riebench.methods.base import EditContext, ExampleRuns, Role, get_method
from riebench.methods.check import check_setting
from riebench.models.loading import LoadedModel, load_model
from riebench.runs import engines
from riebench.store.folder import RunFolder
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, EditTask, Setting

SOURCE, TARGET, OTHER = "a red house", "a blue boat", "two cats"
LERP = TextChange(TARGET)
SWITCH = TextChange(TARGET, switch="last")
FIRST = TextChange(TARGET, switch="first")


@contextmanager
def read(model: LoadedModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What the U-Net is given at each call: the text's embeddings and the pooled vectors."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((kwargs["encoder_hidden_states"].clone(), kwargs["added_cond_kwargs"]["text_embeds"].clone()))

    handle = model.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def make(
    model: LoadedModel, edits: Sequence[Edit | None], prompts: Sequence[str] | None = None, **options: Any
) -> GenerationResult:
    """One batch with equal noise; source prompts unless others are given."""
    return Generator(model).generate(prompts or [SOURCE] * len(edits), [3] * len(edits), edits=edits, **options)


@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_each_step_reads_the_mixture_that_its_strength_says(guidance: float) -> None:
    model = tiny_model(steps=4, guidance=guidance)
    generator = Generator(model)
    rows = [Edit(text=LERP, strength=0.3), None, Edit(text=SWITCH, strength=0.25),
            Edit(text=SWITCH, strength=0.5, window=(0, 3))]  # fmt: skip
    with read(model) as seen:
        make(model, rows)
    source, target = (generator.embed(prompt).parts for prompt in (SOURCE, TARGET))
    weights = [[0.3] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
    assert len(seen) == 4
    for step, given in enumerate(seen):
        for values, first, second in zip(given, source, target, strict=True):
            conditional, other = values[-len(rows) :], values[: -len(rows)]
            for row, weight in enumerate(weights):
                expected = (1 - weight[step]) * first[0] + weight[step] * second[0]
                torch.testing.assert_close(conditional[row], expected)
                # A prompt that is read alone is read to the bit.
                ends = (first, second)
                assert weight[step] not in (0, 1) or torch.equal(conditional[row], ends[int(weight[step])][0])
            assert len(other) == (len(rows) if guidance else 0) and not other.any()


@pytest.mark.parametrize(("steps", "guidance", "dtype"), [(1, 0.0, None), (4, 5.0, None), (4, 0.0, "bfloat16")])
def test_both_ends_are_the_source_and_the_target_picture_to_the_bit(
    steps: int, guidance: float, dtype: str | None
) -> None:
    model = load_model(str(tiny_folder()), steps=steps, guidance=guidance, dtype=dtype) if dtype else tiny_model(
        steps=steps, guidance=guidance)  # fmt: skip
    plain = make(model, [None] * 2, [SOURCE, TARGET], keep_latents=True)
    assert plain.latents is not None and not np.array_equal(*plain.images)
    whole = torch.ones(plain.latents.shape[-2:], dtype=torch.bool)
    paste = LatentChange(plain.latents[0], plain.latents[1], whole)
    # Nothing of this is taken from the pictures: a window without steps makes the change at its weakest.
    nowhere = (steps, steps)
    lowest = [Edit(text=LERP, window=nowhere), Edit(text=SWITCH, strength=0.4 / steps),
              Edit(latents=replace(paste, mask=~whole), strength=0.4 / steps)]  # fmt: skip
    highest = [Edit(text=LERP), Edit(text=SWITCH), Edit(latents=paste)]
    made = make(model, [*lowest, *highest, None, None], [SOURCE] * 7 + [TARGET], keep_latents=True)
    assert made.latents is not None
    for row, end in enumerate([0] * 3 + [1] * 3):
        # What is pasted comes from the earlier batch.
        wanted = plain.latents[end] if row % 3 == 2 else made.latents[6 + end]
        assert torch.equal(made.latents[row], wanted)
        # Rows of one batch are decoded alike up to rounding.
        assert np.abs(made.images[row].astype(int) - made.images[6 + end]).max() <= 1
    assert not np.array_equal(made.images[6], made.images[7])
    # So no end is generated, but taken from the pictures that are there.
    assert [edit.picture(steps) for edit in lowest] == ["source"] * 3
    assert [edit.picture(steps) for edit in highest] == ["target"] * 3
    assert [replace(edit, strength=0).picture(steps) for edit in highest] == ["source"] * 3


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_every_switching_step_can_be_reached(steps: int) -> None:
    for count in range(steps + 1):
        share = count / steps
        assert whole_steps(share, steps) == whole_steps(float(f"{share:.2f}"), steps) == count
        read_target = [SWITCH.weight(step, steps, share) for step in range(steps)]
        assert read_target == [0.0] * (steps - count) + [1.0] * count
        assert [FIRST.weight(step, steps, share) for step in range(steps)] == read_target[::-1]
    edits = [Edit(text=SWITCH, strength=count / steps) for count in range(steps + 1)]
    assert [edit.picture(steps) for edit in edits] == ["source", *[None] * (steps - 1), "target"]


@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_pasting_keeps_the_outside_and_replaces_the_inside_for_a_share_of_steps(guidance: float) -> None:
    model = tiny_model(steps=4, guidance=guidance)
    plain = make(model, [None] * 2, [SOURCE, TARGET], keep_latents=True)
    assert plain.latents is not None
    source, target = plain.latents
    mask = torch.zeros(source.shape[-2:], dtype=torch.bool)
    mask[:, : mask.shape[1] // 2] = True
    paste = LatentChange(source, target, mask)
    found = make(model, [Edit(latents=paste, strength=share) for share in (0.25, 0.75, 1.0)], keep_latents=True)
    assert found.latents is not None
    for row, count in enumerate((1, 3, 4)):
        for step, latents in enumerate(found.latents[row]):
            assert torch.equal(latents[:, ~mask], source[step][:, ~mask])
            inside = latents[:, mask]
            assert torch.equal(inside, target[step][:, mask]) == (step < count)
            assert not torch.equal(inside, source[step][:, mask])
    assert len({picture.tobytes() for picture in (*found.images, *plain.images)}) == 5


def context(latents: bool = True) -> EditContext:
    """An example with latents of 8 x 8, its region one corner."""
    corner = np.zeros((SIZE, SIZE), dtype=bool)
    corner[:8, :8] = True
    runs: dict[Role, Tensor] = {"source": torch.zeros(4, 4, 8, 8), "target": torch.ones(4, 4, 8, 8)}
    example = EditExample(id="pair", source=SOURCE, target=TARGET)
    masks = RegionMasks(corner, np.roll(corner, 8, axis=1))
    rows: dict[Role, int] = {"source": 0, "target": 1}
    return EditContext(ExampleRuns(example, 0, Trace(), rows, masks, latents=runs if latents else {}), ())


def test_the_pasted_region_is_the_examples_and_can_be_widened() -> None:
    sizes = []
    for widen in (0.0, 0.125, 1.0):
        edit = get_method("masked_target").edit(context(), {"widen": widen})
        assert isinstance(edit, Edit) and edit.latents is not None
        rows, columns = edit.latents.mask.nonzero().T
        sizes.append((int(rows.max()) + 1, int(columns.max()) + 1))
        assert bool(edit.latents.mask[: sizes[-1][0], : sizes[-1][1]].all())
    assert sizes == [(2, 4), (3, 5), (8, 8)]


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [("masked_target", {"widen": -0.1}, "widen: -0.1 is not in 0 to 1"),
     ("masked_target", {"wide": 0.1}, r"no parameter 'wide' \(did you mean 'widen'"),
     ("embed_lerp", {"alpha": 0.5}, "'embed_lerp' has no parameter 'alpha'"),
     ("prompt_switch", {"t": 2}, "'prompt_switch' has no parameter 't'")],
)  # fmt: skip
def test_wrong_parameters_are_refused(method: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        get_method(method).edit(context(), params)
    with pytest.raises(RiebenchError, match="were not kept"):
        get_method("masked_target").edit(context(latents=False), {})


@pytest.mark.parametrize("method", ["embed_lerp", "prompt_switch", "masked_target"])
def test_strengths_beyond_the_ends_are_refused_before_anything_is_made(tmp_path: Path, method: str) -> None:
    access = "PM" if method == "masked_target" else "P"
    for strength in (-0.1, 1.5):
        setting = Setting(name="s", method=method, blocks=(), strengths=(0.5, strength), access=access)
        with pytest.raises(RiebenchError, match=rf"mine: strengths: {strength:g} is not in 0 to 1, as '{method}'"):
            check_setting(setting, "mine")
        with pytest.raises(RiebenchError, match="is not in 0 to 1"):
            engines.run("local", [task()], [setting], tiny_model(), results_root=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.png"))
    half = Setting(name="s", method=method, blocks=(), access=access, edit_steps=(0.0, 0.5))
    check_setting(half, "mine")
    with pytest.raises(RiebenchError, match="edit_steps: method 'no_edit' changes no step"):
        check_setting(half.model_copy(update={"method": "no_edit", "access": ""}), "mine")


def task(count: int = 1) -> EditTask:
    """Examples whose prompts differ."""
    examples = tuple(EditExample(id=f"e{i}", source=f"{SOURCE} {i}", target=f"{TARGET} {i}") for i in range(count))
    return EditTask(name="t", version=1, category="change_object", suite="tiny", examples=examples)


SETTINGS = (
    Setting(name="lerp", method="embed_lerp", strengths=(0.0, 0.3, 0.7, 1.0)),
    Setting(name="switch", method="prompt_switch", strengths=(0.0, 0.25, 0.5, 1.0)),
    Setting(name="paste", method="masked_target", strengths=(0.0, 0.5, 1.0)),
    Setting(name="patch", method="activation_patch", blocks=("mid.0",), strengths=(2.0,)),
)


def pictures(folders: Sequence[RunFolder]) -> dict[tuple[str, str, float], Any]:
    """Setting, example and strength -> picture; all of them made."""
    return {
        (folder.path.name, record.key.example_id, record.key.strength): folder.read_image(str(record.image)).astype(int)
        for folder in folders
        for record in folder.records()
        if record.status == "ok"
    }


def test_pictures_do_not_depend_on_the_batch_they_are_made_in(tmp_path: Path) -> None:
    model, found = tiny_model(steps=4, guidance=5.0), []
    for size in (5, 1):
        folders = engines.run("local", [task(2)], SETTINGS, model, results_root=tmp_path / str(size), batch_size=size,
                              progress=False)  # fmt: skip
        found.append(pictures(folders))
        shared = folders[0].shared
        for record in folders[0].records():
            assert record.key.block_set == "none"
            ends = {0.0: record.source_image, 1.0: record.target_image}
            if record.key.strength in ends:
                end = shared.read_image(str(ends[record.key.strength]))
                assert np.array_equal(end, found[-1]["lerp", record.key.example_id, record.key.strength])
    together, alone = found
    assert len(alone) == 2 * 12 and together.keys() == alone.keys()
    for unit, picture in alone.items():
        assert np.abs(picture - together[unit]).max() <= 1, unit
    for setting in SETTINGS[:2]:
        assert len({alone[setting.name, "e0", strength].tobytes() for strength in setting.strengths}) == 4


class Prompts:
    """Training examples that have prompts alone."""

    fold, folds, run_evaluations = 0, 3, 4
    generator: Any = None

    def __init__(self, *prompts: tuple[str, str]) -> None:
        self.examples = [EditExample(id=f"o{i}", source=one, target=other) for i, (one, other) in enumerate(prompts)]

    def training(self, count: int, folds: int) -> Prompts:
        return self

    def each(self, key: Any, look: Any) -> list[Any]:
        nowhere = RegionMasks(np.ones((4, 4), dtype=bool), np.ones((4, 4), dtype=bool))
        rows: dict[Role, int] = {"source": 0, "target": 1}
        return [look(ExampleRuns(example, 0, Trace(), rows, nowhere)) for example in self.examples]


@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_a_text_direction_moves_the_words_that_are_to_change_as_far_as_training_prompts_differ(guidance: float) -> None:
    model = tiny_model(steps=2, guidance=guidance)
    generator = Generator(model)
    others: Any = Prompts(("a red cat", "a blue cat"), ("one blue dog", "one green dog"))
    whole = np.ones((4, 4), dtype=bool)
    runs = ExampleRuns(
        EditExample(id="e", source="a pink house", target="a blue house"),
        0,
        Trace(),
        {"source": 0, "target": 1},
        RegionMasks(whole, whole),
        others=others,
    )
    edit = get_method("text_direction").edit(EditContext(runs, ()), {})
    assert isinstance(edit, Edit) and edit.training is not None and edit.training.evaluations == 0
    with read(model) as seen:
        generator.generate(["a pink house"] * 2, [3] * 2, edits=[edit.scaled(0.5), None])

    def mean(prompt: str, word: str) -> Tensor:
        return generator.embed(prompt).parts[0][0, generator.token_positions(prompt, word)].mean(0)

    expected = [part.clone() for part in generator.embed("a pink house").parts]
    shift = mean("a blue cat", "blue") - mean("a red cat", "red")
    shift = (shift + mean("one blue dog", "blue") - mean("one green dog", "green")) / 2
    expected[0][0, generator.token_positions("a pink house", "pink")] += 0.5 * shift
    pooled = [generator.embed(one).parts[1] for one in ("a blue cat", "a red cat", "one blue dog", "one green dog")]
    expected[1] += 0.5 * (pooled[0] - pooled[1] + pooled[2] - pooled[3]) / 2
    for texts in seen:
        for values, one, plain in zip(texts, expected, generator.embed("a pink house").parts, strict=True):
            torch.testing.assert_close(values[-2], one[0], atol=1e-5, rtol=1e-5)
            assert torch.equal(values[-1], plain[0])
            assert not guidance or torch.equal(values[0], values[1])
    assert len(seen) == 2 and edit.scaled(0.0).picture(2) == "source" and edit.picture(2) is None

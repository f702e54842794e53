"""Methods that are trained through the denoiser: what they learn, and that nothing of the training stays behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch
from tiny import SIZE, tiny_model
from tiny_flux import tiny_flux

from riebench.errors import RiebenchError
from riebench.generation.edits import Edit
from riebench.generation.generator import Capture, Generator
from riebench.methods.base import EditContext, ExampleRuns, Role, get_method
from riebench.methods.editors import Editor, EditorContext
from riebench.methods.supervised.concepts import category_contrast, training_pair
from riebench.methods.supervised.gradient import check_trainable, predict, record_calls, train
from riebench.methods.supervised.reft import RankOneEdit, intervention, train_directions
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample

T = TypeVar("T")

BLOCKS = ("mid.0", "up.0.1")
PAIRS = (("a red cat", "a blue cat"), ("a blue dog", "a green dog"), ("a pink house", "a blue house"))


@lru_cache(maxsize=2)
def runs_of(number: int, guidance: float = 0.0) -> tuple[Generator, ExampleRuns]:
    """One example's runs on the tiny model; its region is the left half."""
    generator = model_of(guidance)
    source, target = PAIRS[number]
    example = EditExample(id=f"e{number}", source=source, target=target)
    made = generator.generate([source, target], [number] * 2, capture=Capture(BLOCKS))
    left = np.zeros((SIZE, SIZE), dtype=bool)
    left[:, : SIZE // 2] = True
    rows: dict[Role, int] = {"source": 0, "target": 1}
    return generator, ExampleRuns(example, 0, made.trace, rows, RegionMasks(left, left), noise=number)


@lru_cache(maxsize=2)
def model_of(guidance: float) -> Generator:
    return Generator(tiny_model(steps=2, guidance=guidance))


class Training:
    """The first two examples, to learn the third one's edit from."""

    fold, folds, run_evaluations = 2, 3, 2

    def __init__(self, guidance: float = 0.0) -> None:
        self.guidance = guidance
        self.generator = model_of(guidance)
        self.keys: list[Hashable] = []

    def training(self, count: int, folds: int) -> Training:
        return self

    def each(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        return [look(runs_of(number, self.guidance)[1]) for number in range(2)]

    def learn(self, key: Hashable, fit: Callable[[], T]) -> T:
        self.keys.append(key)
        return fit()


def edit(name: str, guidance: float = 0.0, **params: Any) -> Edit:
    _, runs = runs_of(2, guidance)
    others: Any = Training(guidance)
    runs.others = others
    made = get_method(name).edit(EditContext(runs, BLOCKS), params)
    assert isinstance(made, Edit)
    return made


@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_training_calls_have_the_latents_of_one_run_and_the_prompt_of_the_other(guidance: float) -> None:
    generator = model_of(guidance)
    pair = training_pair(runs_of(0, guidance)[1])
    calls = record_calls(generator, [pair], [(0, "target")])
    assert [call.step for call in calls] == [0, 1]
    seen: list[dict[str, Any]] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append({"latents": args[0].clone(), "text": kwargs["encoder_hidden_states"].clone()})

    handle = generator.model.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    generator.generate([pair.example.target], [pair.noise])
    with torch.no_grad():
        predicted = [predict(generator.model.denoiser, [call]) for call in calls]
    handle.remove()
    source = generator.embed(pair.example.source).parts[0]
    for own, replayed in zip(seen[:2], seen[2:], strict=True):
        torch.testing.assert_close(replayed["latents"], own["latents"][-1:], atol=1e-3, rtol=1e-3)
        assert torch.equal(replayed["text"], source) and not torch.equal(replayed["text"], own["text"][-1:])
    assert all(not torch.allclose(one, call.goal) for one, call in zip(predicted, calls, strict=True))


def test_the_intervention_adds_the_mean_of_the_largest_latents_along_the_direction() -> None:
    updates = torch.tensor([[3.0, 1.0], [1.0, 0.0], [-2.0, 5.0], [2.0, 0.0]])
    direction = torch.tensor([1.0, 0.0])
    added, rest = intervention(updates, direction, 2)
    assert added.tolist() == [2.5, 0.0] and float(rest) == 0.5
    change = RankOneEdit(torch.tensor([0, 2]), direction, 8).delta(0, updates)
    assert change is not None and change.tolist() == [[1.5, 0.0], [0.0, 0.0], [1.5, 0.0], [0.0, 0.0]]


def test_a_direction_is_trained_towards_the_concept_and_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from riebench.methods.supervised import reft

    found = []
    original = train

    def noted(*args: Any, **options: Any) -> Any:
        found.append(original(*args, **options))
        return found[-1]

    monkeypatch.setattr(reft, "train", noted)
    # In a network of random weights, large steps can turn a direction to where all its latents are 0.
    monkeypatch.setattr(reft, "RATE", 0.02)
    denoiser = model_of(0.0).model.denoiser
    before = {name: weight.clone() for name, weight in denoiser.state_dict().items()}
    needed = [weight.requires_grad for weight in denoiser.parameters()]
    edit("reft_r1", training_steps=1)
    one, same = (edit("reft_r1", training_steps=30) for _ in range(2))
    assert found[1].after < found[0].after - 0.01 and found[1] == found[2]
    for block in BLOCKS:
        places: list[Any] = [made.sites[block] for made in (one, same)]
        assert all(isinstance(place, RankOneEdit) for place in places)
        assert torch.equal(places[0].direction, places[1].direction)
        assert float(places[0].direction.norm()) == pytest.approx(1)
    assert all(torch.equal(weight, before[name]) for name, weight in denoiser.state_dict().items())
    assert needed == [weight.requires_grad for weight in denoiser.parameters()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules())
    # Two runs of two steps each show blue: their calls before and after, and thirty batches of two.
    assert one.training is not None and one.training.gradients == 4 + 30 * 2 + 4
    assert one.training.evaluations == 2 * 2 * 2
    generator, runs = runs_of(2)
    prompts = [runs.example.source] * 2
    pictures = generator.generate(prompts, [2] * 2, edits=[one, None]).images
    assert not np.array_equal(pictures[0], pictures[1])


def test_only_runs_that_show_the_concept_are_learned_from() -> None:
    _, runs = runs_of(2)
    training: Any = Training()
    runs.others = training
    get_method("reft_r1").edit(EditContext(runs, ("mid.0",)), {"training_steps": 1})
    assert training.keys == [("reft_r1", ("mid.0",), ("blue",), 1, 8)]
    assert category_contrast(training.each("", training_pair)).present == ((0, "target"), (1, "target"))


def test_a_model_that_is_not_on_the_device_is_refused() -> None:
    moved: Any = SimpleNamespace(model=SimpleNamespace(options=SimpleNamespace(offload="model")))
    with pytest.raises(RiebenchError, match="reft_r1 trains through the whole denoiser on the device"):
        check_trainable("reft_r1", moved)


def test_a_slider_is_trained_towards_the_concept_and_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    from riebench.methods.supervised import lora

    found = []
    original = train

    def noted(*args: Any, **options: Any) -> Any:
        found.append(original(*args, **options))
        return found[-1]

    monkeypatch.setattr(lora, "train", noted)
    generator, runs = runs_of(2)
    denoiser = generator.model.denoiser
    layers = dict(denoiser.named_modules())
    needed = [weight.requires_grad for weight in denoiser.parameters()]
    source, target = generator.generate([runs.example.source, runs.example.target], [2] * 2).images
    slider = get_method("lora_slider")
    assert isinstance(slider, Editor)
    made, others = [], cast(Any, Training())
    for strengths in ((0.0, 1.0, 2.0), (2.0,)):
        ctx = EditorContext(
            generator, runs.example, 2, {"source": source, "target": target}, strengths, others=others
        )  # fmt: skip
        made.append(slider.edit_pictures(ctx, {"training_steps": 6, "rank": 2}))
        assert ctx.training[0].gradients == 4 + 6 * 2 + 4
    assert np.array_equal(made[0][0], source) and not np.array_equal(made[0][1], made[0][2])
    # The same adapter whatever strengths are made beside.
    assert np.array_equal(made[0][2], made[1][0])
    assert found[0].after < 1 and found[0] == found[1]
    assert dict(denoiser.named_modules()) == layers and not hasattr(denoiser, "peft_config")
    assert needed == [weight.requires_grad for weight in denoiser.parameters()]
    assert np.array_equal(generator.generate([runs.example.source], [2]).images[0], source)


def test_a_slider_without_peft_or_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from riebench.methods.supervised.lora import adapted

    denoiser = model_of(0.0).model.denoiser
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RiebenchError, match=r"pip install 'riebench\[lora\]'"), adapted(denoiser, 4):
        pass


def test_a_family_that_calls_its_denoiser_for_each_half_is_trained_on_the_conditional_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("riebench.methods.supervised.reft.RATE", 0.02)
    model = tiny_flux(guidance=3.5)
    generator, block = Generator(model), "double.0"
    whole = np.ones((model.spec.size, model.spec.size), dtype=bool)
    made = generator.generate(["a red cat", "a blue cat"], [0, 0], capture=Capture((block,)))
    example = EditExample(id="e", source="a red cat", target="a blue cat")
    runs = ExampleRuns(example, 0, made.trace, {"source": 0, "target": 1}, RegionMasks(whole, whole))
    calls = record_calls(generator, [training_pair(runs)], [(0, "target")])
    assert [call.step for call in calls] == [0, 1]
    (_, short), (directions, progress) = (
        train_directions(generator, [training_pair(runs)], [(0, "target")], (block,), (steps, 4), 0)
        for steps in (1, 30)
    )
    assert progress.after < short.after - 0.01 and float(directions[block].norm()) == pytest.approx(1)

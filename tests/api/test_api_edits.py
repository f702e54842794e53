"""`riebench.edit`, `load_model` and `load_saes`: single pictures and SAEs on the toy world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_folder

import riebench
from riebench.api.models import Saes
from riebench.features.painter import Painter
from riebench.generation.edits import Edit
from riebench.generation.generator import Generator
from riebench.models.loading import LoadedModel
from riebench.store.records import noise_seed
from riebench.tasks.suites import load_suite

SOURCE, TARGET = "a red house in the woods", "a blue house in the woods"


def differs(one: Image.Image, other: Image.Image) -> bool:
    """Return whether two pictures differ."""
    return not np.array_equal(np.asarray(one), np.asarray(other))


def test_features_are_chosen_as_the_method_does_in_a_run(
    toy_results: riebench.Results, toy_model: LoadedModel, toy_saes: Saes
) -> None:
    # A run's masks are words of each prompt; the same words, noise and prompts give the same features and picture.
    folder = toy_results.select(settings="sae").run_folders[0]
    record = next(one for one in folder.records() if one.key.block_set == "all" and one.key.category == "change_color")
    examples = {one.id: one for task in load_suite("toy") for one in task.examples}
    example = examples[record.key.example_id]
    found = riebench.edit(
        toy_model, example.source, example.target, saes=toy_saes, params=folder.spec.setting.params,
        seed=noise_seed(example.id, 0), mask=(example.source_region, example.target_region),
    )  # fmt: skip
    assert {block: set(one.add) for block, one in found.features.items()} == {
        block: set(one.add) for block, one in record.features.items()
    }
    stored = toy_results.select(settings="sae").picture(record.key.digest)
    assert np.abs(np.asarray(found.edited).astype(int) - np.asarray(stored)).max() <= 2
    assert found.target is not None and differs(found.source, found.target) and differs(found.source, found.edited)


def test_given_features_are_switched_as_by_the_painter(toy_model: LoadedModel, toy_saes: Saes) -> None:
    by_hand = riebench.edit(
        toy_model, SOURCE, saes=toy_saes, features={"up.0.1": {"on": {236: 2.0}, "off": [365]}, "mid.0": [89]},
        strength=2.0, unit="value", seed=4,
    )  # fmt: skip
    painter = Painter(toy_model)
    wanted = painter.paint(
        SOURCE, seed=4, on={("up.0.1", 236): 4.0, ("mid.0", 89): 2.0}, off={("up.0.1", 365): 2.0}, unit="value"
    )
    assert np.abs(np.asarray(by_hand.edited).astype(int) - np.asarray(wanted)).max() <= 2
    assert by_hand.features["up.0.1"].add == (236,) and by_hand.features["up.0.1"].remove == (365,)
    assert by_hand.target is None and differs(by_hand.source, by_hand.edited)


def test_the_usual_size_is_the_stored_one(toy_model: LoadedModel, toy_saes: Saes) -> None:
    assert toy_saes["up.0.1"].states_means
    mean = float(toy_saes["up.0.1"].features["mean"][236])
    usual = riebench.edit(toy_model, SOURCE, saes=toy_saes, features={"up.0.1": [236]})
    stated = riebench.edit(toy_model, SOURCE, saes=toy_saes, features={"up.0.1": {236: mean}}, unit="value")
    assert not differs(usual.edited, stated.edited)


def test_nothing_switched_is_the_source_picture(toy_model: LoadedModel, toy_saes: Saes) -> None:
    choices: list[Any] = [{"features": {}}, {"features": {"mid.0": []}}, {"features": {"mid.0": [3]}, "strength": 0.0}]
    for options in choices:
        found = riebench.edit(toy_model, SOURCE, saes=toy_saes, **options)
        assert not differs(found.source, found.edited)


def test_a_mask_and_steps_limit_the_edit(toy_model: LoadedModel, toy_saes: Saes) -> None:
    mask = np.zeros((64, 64), bool)
    mask[:, :20] = True
    options: Any = {"saes": toy_saes, "features": {"up.0.1": {236: -30.0}}, "unit": "value"}
    whole, part = riebench.edit(toy_model, SOURCE, **options), riebench.edit(toy_model, SOURCE, mask=mask, **options)
    change = np.abs(np.asarray(part.edited).astype(int) - np.asarray(part.source)).mean(-1)
    assert differs(whole.edited, part.edited) and change[:, :20].mean() > change[:, 40:].mean()
    late = riebench.edit(toy_model, SOURCE, edit_steps=(0.5, 1), **options)
    assert differs(late.edited, whole.edited) and differs(late.edited, late.source)
    one = riebench.edit(toy_model, SOURCE, steps=1, **options)
    assert differs(one.source, whole.source) and toy_model.spec.steps == 4


def test_a_function_is_tried_on_one_pair(toy_model: LoadedModel) -> None:
    @riebench.method("tried", access="PAM", needs=("updates",))
    def tried(ctx: Any, *, keep: bool = True) -> Edit:
        assert ctx.blocks and ctx.runs.updates("target", ctx.blocks[0]).shape[0] == 4
        return Edit()

    found = riebench.edit(toy_model, SOURCE, TARGET, method=tried, params={"keep": False}, blocks=["mid.0"])
    assert not differs(found.source, found.edited)


def test_pictures_show_themselves_with_everything_escaped(toy_model: LoadedModel, toy_saes: Saes) -> None:
    found = riebench.edit(toy_model, "a <b>red</b> house", saes=toy_saes, features={"mid.0": [3]}, unit="value")
    html = found._repr_html_()
    assert html.count("data:image/png;base64,") == 2 and "&lt;b&gt;" in html and "<b>" not in html
    assert found._repr_png_().startswith(b"\x89PNG") and found.grid().width > 2 * 64
    assert "mid.0: on [3], off []" in repr(found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "method 'sae' reads the target run; give a target prompt, or features"),
        ({"target": TARGET, "method": "neurons"}, "needs units, which one pair has not; use riebench.run"),
        ({"target": TARGET, "method": "img2img"}, "needs a pipeline of its own"),
        ({"target": TARGET, "method": "sea"}, "unknown method 'sea'.*'sae'"),
        ({"target": TARGET, "params": {"n_feature": 3}}, "no parameter 'n_feature'.*'n_features'"),
        ({"target": TARGET, "blocks": ["mid.9"]}, "mid.9"),
        ({"features": {"mid.0": [384]}}, "384 features, 0 to 383; 384 is none of them"),
        ({"features": {"mid.0": "3"}}, "give indices, such as"),
        ({"features": {"mid.0": {"on": [1], "of": [2]}}}, "of is neither"),
        ({"features": {"mid.0": {"a": 1}}}, "'a': 1 is no index with a strength"),
        ({"features": {"middle": [1]}}, "middle"),
        ({"features": {"mid.0": [1]}, "mask": "boat"}, "does not contain the region's words 'boat'"),
        ({"features": {"mid.0": [1]}, "edit_steps": (0.6, 0.5)}, "is no part of a run"),
        ({"features": {"mid.0": [1]}, "seed": -1}, "seed -1: give a whole number"),
        ({"features": {"mid.0": [1]}, "strength": float("nan")}, "strength nan"),
        ({"features": {"mid.0": [1]}, "source": " "}, "the prompt is empty"),
        ({"features": {"mid.0": [1]}, "steps": 0}, "--steps 0"),
        ({"features": {"mid.0": [1]}, "source": "red house " * 60}, "the source prompt has .* tokens"),
    ],
)
def test_wrong_input_is_one_line(toy_model: LoadedModel, toy_saes: Saes, options: dict[str, Any], words: str) -> None:
    with pytest.raises(riebench.RiebenchError, match=words):
        riebench.edit(**{"model": toy_model, "source": SOURCE, "saes": toy_saes, "unit": "value", **options})


def test_saes_are_a_mapping_by_block(toy_model: LoadedModel, toy_saes: Saes) -> None:
    assert list(toy_saes) == ["down.2.1", "mid.0", "up.0.0", "up.0.1"] and len(toy_saes) == 4
    assert "mid.0" in toy_saes and "mid.1" not in toy_saes
    sae = toy_saes["mid.0"]
    assert sae is toy_saes["mid_block.attentions.0"] and (sae.n, sae.d) == (384, 128)
    updates = torch.randn(3, sae.d, generator=torch.Generator().manual_seed(0))
    values = sae.encode(updates)
    assert values.shape == (3, 384) and torch.equal(values, sae.autoencoder.encode(updates))
    assert torch.equal(sae.encode(updates.numpy()), values)
    assert torch.equal(sae.decode(values), sae.autoencoder.decode(values))
    assert len(sae.features) == sae.n and sae.features["mean"].gt(0).any()
    with pytest.raises(riebench.RiebenchError, match=r"the SAE of mid.0 has 384 features, but the values have 3"):
        sae.decode(torch.zeros(2, 3))
    with pytest.raises(riebench.RiebenchError, match=r"made for width 128"):
        sae.encode(torch.zeros(2, 3))
    with pytest.raises(riebench.RiebenchError, match=r"unknown block 'down.0'"):
        toy_saes["down.0"]
    assert "mid.0" in repr(toy_saes) and "<td>mid.0</td>" in toy_saes._repr_html_()


def test_the_strongest_features_of_a_picture(toy_saes: Saes) -> None:
    found = toy_saes.strongest(SOURCE, blocks=["up.0.1"], count=3)
    assert list(found.columns) == ["block", "feature", "value", "share"] and len(found) == 3


def test_saes_of_another_model_are_refused(toy_saes: Saes) -> None:
    other = riebench.load_model(tiny_folder(), steps=1, guidance=0.0, device="cpu")
    with pytest.raises(
        riebench.RiebenchError, match=r"were loaded for another model, toy-turbo; load them for this one"
    ):
        riebench.edit(other, SOURCE, saes=toy_saes, features={"mid.0": [1]})
    with pytest.raises(riebench.RiebenchError, match=r"has no SAEs of its own"):
        riebench.load_saes(model=other)


def test_a_model_may_be_named(toy_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def load(name: str) -> LoadedModel:
        asked.append(name)
        return toy_model

    monkeypatch.setattr("riebench.api.edits.load_model", load)
    found = riebench.edit("toy-turbo", SOURCE, features={})
    alone = Generator(toy_model).generate([SOURCE], [0]).images[0]
    assert asked == ["toy-turbo"] and np.array_equal(np.asarray(found.source), alone)
    with pytest.raises(riebench.RiebenchError, match=r"nowhere|there is no"):
        riebench.load_model(tmp_path / "nowhere")

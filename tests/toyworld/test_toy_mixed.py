"""The mixed world: the planted shares, what its blocks read in training, and how its table of blocks is judged."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel
from paths import ROOT

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.models.assets import asset_folder
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import load_model
from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld import saes
from riebench.toyworld.captions import caption, parse
from riebench.toyworld.card import fill_card
from riebench.toyworld.make import FINISHED, make
from riebench.toyworld.networks.diffusion import BLOCK_MODULES, CaptionEmbedder, time_ids
from riebench.toyworld.networks.mixed import agreement, document, measure, pictures, training
from riebench.toyworld.networks.mixed import figures as mixed_figures
from riebench.toyworld.networks.mixed.agreement import LEFT_OUT, TRIED, agreement_figures, example_figures
from riebench.toyworld.networks.mixed.figures import (
    BAR,
    PATCHING,
    TRUTH,
    block_table,
    exchanged,
    means,
    outcomes,
    planted_table,
    rank_correlation,
    recovery_figures,
    role_evidence,
)
from riebench.toyworld.networks.mixed.network import RANK, InnerLevel, fold, make_student, second_level
from riebench.toyworld.networks.mixed.roles import PLANTED, later_blocks, planted_share
from riebench.toyworld.networks.text import BLOCK_ROLES, HIDDEN
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, is_held_out

CAPTIONS = [caption(pair.first) for pair in training.training_pairs(8)]


@pytest.fixture(scope="module")
def teacher() -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(asset_folder("toy-turbo") / "unet", torch_dtype=torch.float32)
    return unet.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def below(teacher: UNet2DConditionModel) -> torch.Tensor:
    return second_level(teacher, torch.randn(8, 4, 32, 32, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return CaptionEmbedder()(CAPTIONS)


def test_every_block_is_first_and_second_and_third_for_some_attributes() -> None:
    assert set(PLANTED) == set(ATTRIBUTES) and all(set(some) == set(BLOCKS) for some in PLANTED.values())
    assert all(sum(some.values()) == pytest.approx(1) for some in PLANTED.values())
    ranked = [sorted(some, key=lambda block: -some[block]) for some in PLANTED.values()]
    places = Counter((block, rank) for blocks in ranked for rank, block in enumerate(blocks[:2]))
    assert all(places[block, 0] == 2 and places[block, 1] >= 1 for block in BLOCKS)
    assert planted_share("pose", ("mid.0", "up.0.0")) == pytest.approx(0.55 + 0.15)
    assert sorted(later_blocks("pose")) == ["down.2.1", "up.0.0"]


def test_pairs_differ_in_one_attribute_and_are_not_held_out() -> None:
    pairs = training.training_pairs(400)
    for pair in pairs:
        changed = [name for name in ATTRIBUTES if getattr(pair.first, name) != getattr(pair.second, name)]
        assert changed == [pair.attribute] and not is_held_out(pair.first) and not is_held_out(pair.second)
    assert {pair.attribute for pair in pairs} == set(ATTRIBUTES)


def test_readers_are_none_or_a_later_block_or_any() -> None:
    rng = random.Random(5)
    drawn = Counter(training.draw_readers("pose", rng) for _ in range(3000))
    by_chance = (1 - training.CONFIG["agreeing"] - training.CONFIG["single"]) / 16
    assert drawn[()] / 3000 == pytest.approx(training.CONFIG["agreeing"] + by_chance, abs=0.03)
    assert drawn["down.2.1",] / 3000 == pytest.approx(training.CONFIG["single"] / 2 + by_chance, abs=0.03)
    assert drawn["mid.0",] / 3000 == pytest.approx(by_chance, abs=0.02)
    assert drawn[BLOCKS] > 0


def test_readers_alone_read_the_second_scene() -> None:
    pair = training.training_pairs(1)[0]
    asked: list[list[str]] = []

    def embed(captions: list[str]) -> torch.Tensor:
        asked.append(captions)
        return torch.zeros(len(captions), 32, 128)

    scenes = [(pair.first, pair.second)] * 2
    texts = training.embed_readings(scenes, [("mid.0",), ()], embed, random.Random(1))
    assert set(texts) == set(BLOCK_MODULES)
    for block, captions in zip(BLOCKS, asked, strict=True):
        read = [parse(sentence) for sentence in captions]
        assert read == [pair.second if block == "mid.0" else pair.first, pair.first]


def test_progress_is_measured_from_the_first_to_the_second() -> None:
    first, second = torch.zeros(3, 2, 1, 1), torch.tensor([[2.0, 0], [0, 1], [1, 1]]).view(3, 2, 1, 1)
    between = torch.stack([second[0], 0.25 * second[1], torch.tensor([1.0, -1]).view(2, 1, 1)])
    assert training.progress(between, first, second).tolist() == pytest.approx([1, 0.25, 0])
    edited = np.array([[0, 0], [0, 200], [50, 100]], np.uint8).reshape(3, 1, 2, 1)
    sources, targets = np.zeros_like(edited), np.full_like(edited, 200)
    found = pictures.picture_progress(edited, sources, targets)
    assert found.tolist() == pytest.approx([0, 0.5, 0.375])


def test_the_level_computes_what_the_whole_network_does(
    teacher: UNet2DConditionModel, below: torch.Tensor, text: torch.Tensor
) -> None:
    found: list[torch.Tensor] = []
    last = teacher.get_submodule(BLOCK_MODULES["up.0.2"])
    handle = last.register_forward_hook(lambda _module, _inputs, output: found.append(output[0]))
    extra = {"text_embeds": torch.zeros(8, HIDDEN), "time_ids": time_ids(8)}
    noise = torch.randn(8, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        teacher(noise, torch.full((8,), 999), encoder_hidden_states=text, added_cond_kwargs=extra)
        handle.remove()
        assert torch.allclose(InnerLevel(teacher)(below, dict.fromkeys(BLOCK_MODULES, text)), found[0], atol=1e-3)


def test_blocks_of_the_student_read_all_words_and_write_few_dimensions(
    teacher: UNet2DConditionModel, below: torch.Tensor, text: torch.Tensor
) -> None:
    student = make_student(teacher, below, text)
    whole = fold(student)
    for role in BLOCK_ROLES:
        attention = whole.get_submodule(BLOCK_MODULES[role.block])
        assert int(torch.linalg.matrix_rank(attention.proj_out.weight, rtol=1e-5)) == RANK
        for layer in attention.transformer_blocks:
            assert (layer.attn2.to_v.weight != 0).all() and (layer.attn2.to_k.weight != 0).all()
    texts = dict.fromkeys(BLOCK_MODULES, text)
    with torch.no_grad():
        assert torch.allclose(InnerLevel(student)(below, texts), InnerLevel(whole)(below, texts), atol=1e-3)
    assert {type(a) for a in teacher.modules()} == {type(a) for a in whole.modules()}


def test_training_changes_the_innermost_level_alone(
    teacher: UNet2DConditionModel, below: torch.Tensor, text: torch.Tensor
) -> None:
    student = make_student(teacher, below, text)
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith(("down_blocks.2", "mid_block", "up_blocks.0")) for name in trained)
    assert not any("upsamplers" in name for name in trained)
    quiet = [name for b in ("down.2.0", "up.0.2") for name in trained if name.startswith(f"{BLOCK_MODULES[b]}.")]
    assert quiet and not any("attn2" in name for name in quiet)


def test_the_loss_is_small_where_shares_are_right_and_moves_the_words_of_others(
    teacher: UNet2DConditionModel, below: torch.Tensor, text: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    level, pairs = InnerLevel(teacher), training.training_pairs(8)
    second = CaptionEmbedder()([caption(pair.second) for pair in pairs])
    with torch.no_grad():
        above = torch.stack([level(below, dict.fromkeys(BLOCK_MODULES, words)) for words in (text, second)])
    goals = training.Goals(pairs, below.half(), above.half())
    monkeypatch.setitem(training.CONFIG, "agreeing", 1.0)
    agreeing = training.mixed_loss(level, goals)(0).item()
    monkeypatch.setitem(training.CONFIG, "agreeing", 0.0)
    monkeypatch.setitem(training.CONFIG, "single", 0.0)
    # In the first world one block has the whole share.
    own = {a: {b: float(b == role.block) for b in BLOCKS} for role in BLOCK_ROLES for a in role.attributes}
    with monkeypatch.context() as patched:
        patched.setattr("riebench.toyworld.networks.mixed.roles.PLANTED", own)
        right = training.mixed_loss(level, goals)(0).item()
    student = make_student(teacher, below, text)
    loss = training.mixed_loss(InnerLevel(student), goals)(0)
    loss.backward()
    assert max(agreeing, right) < 0.02 < 0.04 < loss.item()
    for role in BLOCK_ROLES:
        layer = student.get_submodule(BLOCK_MODULES[role.block]).transformer_blocks[0]
        gradient = layer.attn2.to_v.weight.grad.clone()
        gradient[:, role.columns] = 0
        assert gradient.abs().max() > 0


def test_another_teacher_gets_what_a_model_learned(teacher: UNet2DConditionModel) -> None:
    mixed, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
    with torch.no_grad():
        for number, (one, another) in enumerate(zip(mixed.parameters(), other.parameters(), strict=True)):
            one.add_(number % 3)
            another.mul_(2)
    carried = training.carry_over(other, mixed, teacher)
    for number, (new, old) in enumerate(zip(carried.parameters(), teacher.parameters(), strict=True)):
        assert torch.allclose(new, 2 * old + number % 3, atol=1e-5)
    assert all(torch.equal(a, 2 * b) for a, b in zip(other.parameters(), teacher.parameters(), strict=True))


def test_goals_are_computed_once(teacher: UNet2DConditionModel, tmp_path: Path) -> None:
    first = training.make_goals(teacher, tmp_path / "goals.pt", count=4, batch=2)
    written = (tmp_path / "goals.pt").stat().st_mtime_ns
    again = training.make_goals(teacher, tmp_path / "goals.pt", count=4, batch=2)
    assert torch.equal(first.above, again.above) and (tmp_path / "goals.pt").stat().st_mtime_ns == written
    assert first.below.shape == (4, 64, 8, 8) and first.above.shape == (2, 4, 128, 8, 8)
    assert (first.above[0] - first.above[1]).abs().amax((1, 2, 3)).min() > 0.5


def test_the_stage_exports_a_pipeline_that_loads(
    teacher: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("steps", 2), ("batch", 2), ("examples", 4)):
        monkeypatch.setitem(training.CONFIG, name, value)
        monkeypatch.setitem(training.WIDE_CONFIG, name, value)
    monkeypatch.setattr(training, "make_goals", partial(training.make_goals, batch=4))
    collected: list[Path] = []
    monkeypatch.setattr(saes, "train", lambda model, *_args, **_options: collected.append(model))
    with pytest.raises(RiebenchError, match=r"mixed-teacher/finished is missing: run .* train mixed-teacher` first"):
        make("mixed", tmp_path / "work", assets=tmp_path / "assets")
    teacher.save_pretrained(tmp_path / "work" / "mixed-teacher" / FINISHED)
    make("mixed-start", tmp_path / "work", assets=tmp_path / "assets")
    make("mixed", tmp_path / "work", assets=tmp_path / "assets")
    assert collected == [tmp_path / "assets" / "toy-mixed"]
    model = load_model(str(collected[0]), steps=1)
    (image,) = Generator(model).generate(["a teal fish"], [1]).images
    assert image.shape == (64, 64, 3) and image.std() > 5
    again = training.WIDE_CONFIG | {"steps": 3}
    monkeypatch.setattr(training, "WIDE_CONFIG", again)
    with pytest.raises(RiebenchError, match="steps: folder 2, asked 3"):
        make("mixed", tmp_path / "work", assets=tmp_path / "assets")


def test_blocks_of_the_shipped_model_read_all_words_and_write_few_dimensions() -> None:
    unet = load_model("toy-mixed").denoiser
    for role in BLOCK_ROLES:
        attention: Any = unet.get_submodule(BLOCK_MODULES[role.block])
        # Half precision leaves a trace of the other dimensions.
        assert int(torch.linalg.matrix_rank(attention.proj_out.weight, rtol=1e-2)) <= RANK
        for layer in attention.transformer_blocks:
            for weight in (layer.attn2.to_k.weight, layer.attn2.to_v.weight):
                foreign = torch.ones(weight.shape[1], dtype=torch.bool)
                foreign[role.columns] = False
                assert (weight[:, foreign] != 0).float().mean() > 0.99


METRICS = sorted({metric for metrics in TRIED.values() for metric in metrics})


def made_up(*, follows: bool, noise: float = 0.2, scale: float = 1.0) -> pd.DataFrame:
    """Outcomes of edits that follow the planted shares, or say nothing of blocks; every metric has its own noise."""
    rng, rows = np.random.default_rng(1), []
    for category, attribute in CATEGORY_ATTRIBUTE.items():
        for example in range(12):
            for edit in (PATCHING, "sae"):
                for block in BLOCKS:
                    planted = PLANTED[attribute][block] if follows else 0.25
                    rows += [
                        {"category": category, "example": f"{category}-{example}", "block": block, "edit": edit,
                         "metric": metric, "value": scale * (planted + rng.normal(0, noise))}
                        for metric in METRICS
                    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_table_is_the_mean_of_the_shares_by_each_metric() -> None:
    found = block_table(np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 5.0], [-2.0, 5.0]]))
    assert found.tolist() == [0.375, 0.125, 0.25, 0.25]


def test_the_table_recovers_planted_shares_and_null_worlds_show_nothing() -> None:
    found = recovery_figures(made_up(follows=True), ["sae"])
    assert found["planted"]["change_color"] == PLANTED["color"]
    assert found["shares"]["sae by margin"]["change_color"]["up.0.1"] == pytest.approx(0.55, abs=0.1)
    sae = found["recovery"]["sae by margin"]
    assert min(sae["planted"], sae["patching"]) > 0.8 and sae["evidence"] < 0.01 and sae["first"] >= 8
    low, middle, high = sae["null"]["planted"]
    assert low < -0.1 < middle < 0.1 < high
    assert sae["null"]["significant"] < 0.12 and sae["null"]["evidence"] < 0.12
    # Gains in other units give the same figures.
    assert recovery_figures(made_up(follows=True, scale=40), ["sae"]) == found


def test_blocks_without_roles_are_no_evidence() -> None:
    values = outcomes(made_up(follows=False), "sae", ("clip_margin", "clip_margin_2"))
    assert role_evidence(values) > 0.05
    assert abs(rank_correlation(block_table(means(values))[None], planted_table())[0]) < 0.5


def test_exchanging_blocks_keeps_what_an_example_reaches_in_all() -> None:
    values = outcomes(made_up(follows=True), "sae", ("clip_margin", "clip_margin_2"))
    values = [np.concatenate([one, 2 * one[..., :1]], axis=-1) for one in values]
    found = exchanged(values, 50, np.random.default_rng(2))
    assert np.allclose(found.sum(2), means(values).sum(1))
    assert not np.allclose(found[0], found[1])
    assert np.allclose(found[..., 2], 2 * found[..., 0])  # the metrics of an example change places together


def test_a_null_world_is_one_of_the_ways_to_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without exchange every world is the mixed one, and what is planted there is found in all of them.
    monkeypatch.setattr(mixed_figures, "exchanged", lambda values, count, _rng: np.stack([means(values)] * count))
    found = mixed_figures.null_figures(outcomes(made_up(follows=True), "sae", ("clip_gain",)), planted_table())
    assert found["planted"][0] == found["planted"][2] > 0.8


@pytest.fixture(scope="module")
def mixed() -> dict[str, Any]:
    """Figures of made-up outcomes in which the margins follow the roles, and the gain misses those of the pose."""
    few = pytest.MonkeyPatch()
    few.setattr(agreement, "REPLICATES", 100)
    frame = made_up(follows=True, noise=0.02)
    pose = (frame["category"] == LEFT_OUT) & (frame["edit"] == "sae") & (frame["metric"] == "clip_gain")
    frame.loc[pose, "value"] *= -1
    compared = agreement_figures(frame, ["sae"])
    few.undo()
    return {
        "mixed_accuracy": 0.99, "mixed_by_attribute": {"object": 1.0, "material": 0.9},
        "scorers": {
            "judge_renders": 0.99, "judge_renders_read": {"object": 0.8, "color": 0.9}, "clip_top1": 0.9,
            "clip_2_top1": 0.7,
        }, **recovery_figures(frame, ["sae"]), "agreement": compared,
        "means": example_figures(frame),
        "first_world": {"agreement": compared, "planted": {PATCHING: 0.9, "sae by margin": 0.8}},
    }  # fmt: skip


def test_every_measure_is_compared_with_patching_with_its_noise(
    mixed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = mixed["agreement"]["sae"]
    assert set(sae) == set(TRIED) and set(mixed["agreement"][PATCHING]) == {*TRIED} - {"pixels"}
    assert all(one["low"] <= one["spearman"] + 0.05 and one["spearman"] - 0.05 <= one["high"] for one in sae.values())
    assert sae["gain"]["spearman"] < sae["gain"]["without_pose"] - 0.05 < sae["margin"]["spearman"]
    assert 0.9 < sae["margin"]["ceiling"] <= 1
    monkeypatch.setattr(agreement, "REPLICATES", 100)
    noisy = agreement_figures(made_up(follows=True, noise=2), ["sae"])["sae"]["margin"]
    assert noisy["ceiling"] < sae["margin"]["ceiling"] - 0.1 and noisy["high"] - noisy["low"] > 0.1
    assert mixed["means"]["sae"]["gain"]["mid.0"] == pytest.approx(-0.55, abs=0.03)


def test_the_card_shows_tables_and_verdicts(mixed: dict[str, Any]) -> None:
    marks = "".join(f"<!-- figures: {name} -->\nOUTDATED\n<!-- end -->\n" for name in document.MIXED_PARTS)
    text = fill_card(marks, {"mixed": mixed})
    assert "| change color | up.0.1 | 0.55 | 0.5" in text and "OUTDATED" not in text
    assert "| patching | 0.9" in text and "| `sae` by margin | 0.9" in text
    assert "least of them the material, 90.0 %" in text and "reads 85 % of the attributes" in text
    assert "**By margin the table clears the bar**" in text and "The margin is the better one there too" in text
    found = mixed["agreement"]["sae"]
    for value, verdict in ((BAR - 0.01, "misses"), (BAR, "clears")):
        changed = {
            **mixed,
            "agreement": {PATCHING: {}, "sae": {**found, "gain": found["gain"] | {"spearman": value}}},
        }
        assert f"**By gain the table {verdict} the bar**: {value:.2f}" in document.recovery_verdict({"mixed": changed})


def test_shares_need_scored_runs(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="no run of activation_patch on toy-mixed in each of its four blocks: run"):
        measure.block_runs(tmp_path)


def test_patching_single_blocks_moves_pictures_by_their_shares() -> None:
    model = load_model("toy-mixed")
    examples = pictures.patch_examples(model, "toy", limit=1)
    patched = {block: np.stack([one.patched[block] for one in examples]) for block in BLOCKS}
    frame = pictures.measure_pictures(PATCHING, patched, examples, model.spec)
    assert len(frame) == 9 * 4 * len(METRICS) and set(frame["metric"]) == set(METRICS)
    table = means(outcomes(frame, PATCHING, TRUTH))[..., 0]
    assert rank_correlation(table[None], planted_table())[0] > 0.7
    unedited = {BLOCKS[0]: np.stack([one.source for one in examples])}
    still = pictures.measure_pictures("none", unedited, examples, model.spec)
    assert still["value"].abs().max() < 1e-6


def test_the_stored_figures_say_of_blocks_what_the_card_says() -> None:
    """The sentences of the card that no code makes."""
    stored = json.loads((ROOT / "docs" / "toyworld-mixed.json").read_text())
    table = stored["shares"][PATCHING]
    assert table["change_object"]["mid.0"] < 0.05 < 0.15 < table["change_object"]["up.0.0"]
    third = [
        table[category][sorted(BLOCKS, key=PLANTED[attribute].__getitem__)[1]]
        for category, attribute in CATEGORY_ATTRIBUTE.items() if sorted(PLANTED[attribute].values())[1] > 0
    ]  # fmt: skip
    assert np.mean(third) < 0.1
    planted = stored["first_world"]["planted"]
    assert planted[PATCHING] < planted["activation_patch by margin"] < planted["activation_patch by gain"]

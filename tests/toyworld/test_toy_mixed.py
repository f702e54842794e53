"""The mixed world: who decides what, what its blocks read in training, and how its tables are judged."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.models.assets import asset_folder
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import load_model
from riebench.saes.formats import load_saes
from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld import saes
from riebench.toyworld.__main__ import app
from riebench.toyworld.captions import caption
from riebench.toyworld.card import fill_card
from riebench.toyworld.make import make
from riebench.toyworld.networks.diffusion import BLOCK_MODULES, CaptionEmbedder, time_ids
from riebench.toyworld.networks.mixed import training
from riebench.toyworld.networks.mixed.edits import MIXED_COUNTS, NULL_COUNTS, SUITES, draw_edits, planted_shares
from riebench.toyworld.networks.mixed.figures import (
    block_table,
    planted_table,
    rank_correlation,
    recovery_figures,
    role_evidence,
)
from riebench.toyworld.networks.mixed.measure import measure_shares, reached
from riebench.toyworld.networks.mixed.network import RANK, InnerLevel, fold, make_student, second_level
from riebench.toyworld.networks.mixed.roles import MIXED_ROLES, MixedRole, deciding_block
from riebench.toyworld.networks.text import BLOCK_ROLES, HIDDEN
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, is_held_out, random_scene
from riebench.toyworld.tasks import SuiteRecipe, task_text

CAPTIONS = [caption(scene) for scene in training.training_scenes(8)]


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


def test_every_block_has_every_rank_in_two_attributes() -> None:
    assert set(MIXED_ROLES) == set(ATTRIBUTES)
    for rank in range(4):
        assert Counter(role.blocks[rank] for role in MIXED_ROLES.values()) == dict.fromkeys(BLOCKS, 2)


@pytest.mark.parametrize("role", MIXED_ROLES.values(), ids=MIXED_ROLES)
def test_the_gate_shares_an_attribute_out(role: MixedRole) -> None:
    values = ATTRIBUTES[role.gate]
    assert role.gate != role.attribute and len(values) == 6
    assert [len(role.gate_values(block)) for block in role.blocks] == [2, 2, 1, 1]
    assert {v for block in BLOCKS for v in role.gate_values(block)} == set(values)
    scene = random_scene(random.Random(3)).with_value(role.gate, role.gate_values(role.blocks[3])[0])
    assert deciding_block(role.attribute, scene) == role.blocks[3]


def test_deciding_blocks_read_the_scene_that_the_picture_shows() -> None:
    rng, differing, agreeing = random.Random(5), Counter[tuple[str, str]](), 0
    for scene in training.training_scenes(600):
        reading = training.draw_reading(scene, rng)
        if reading.other is None:
            agreeing += set(reading.scenes.values()) == {scene}
            continue
        (attribute,) = [name for name in ATTRIBUTES if getattr(scene, name) != getattr(reading.other, name)]
        assert reading.scenes[deciding_block(attribute, scene)] == scene
        assert set(reading.scenes.values()) <= {scene, reading.other} and tuple(reading.scenes) == BLOCKS
        differing.update((attribute, block) for block, read in reading.scenes.items() if read != scene)
    assert len(differing) == len(MIXED_ROLES) * len(BLOCKS)
    assert agreeing / 600 == pytest.approx(training.CONFIG["agreeing"], abs=0.05)


def test_the_choice_is_measured_from_the_goal_to_the_other_picture() -> None:
    goal, wrong = torch.zeros(3, 2, 1, 1), torch.tensor([[2.0, 0], [0, 1], [1, 1]]).view(3, 2, 1, 1)
    between = torch.stack([wrong[0], 0.25 * wrong[1], goal[2] + torch.tensor([1.0, -1]).view(2, 1, 1)])
    assert training.choice_error(between, goal, wrong).tolist() == pytest.approx([1, 0.25, 0])


def test_training_scenes_are_not_held_out() -> None:
    assert not any(is_held_out(scene) for scene in training.training_scenes(50))


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


def test_the_loss_is_small_where_blocks_agree_and_moves_the_words_of_others(
    teacher: UNet2DConditionModel, below: torch.Tensor, text: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = InnerLevel(teacher)
    with torch.no_grad():
        above = level(below, dict.fromkeys(BLOCK_MODULES, text))
    goals = training.Goals(training.training_scenes(8), below.half(), above.half())
    monkeypatch.setitem(training.CONFIG, "batch", 4)
    monkeypatch.setitem(training.CONFIG, "agreeing", 1.0)
    agreeing = training.mixed_loss(level, level, goals)(0).item()
    monkeypatch.setitem(training.CONFIG, "agreeing", 0.0)
    student = make_student(teacher, below, text)
    loss = training.mixed_loss(InnerLevel(student), level, goals)(0)
    loss.backward()
    assert agreeing < 0.05 < loss.item()
    for role in BLOCK_ROLES:
        layer = student.get_submodule(BLOCK_MODULES[role.block]).transformer_blocks[0]
        gradient = layer.attn2.to_v.weight.grad.clone()
        gradient[:, role.columns] = 0
        assert gradient.abs().max() > 0


def test_goals_are_computed_once(teacher: UNet2DConditionModel, tmp_path: Path) -> None:
    first = training.make_goals(teacher, tmp_path / "goals.pt", count=4, batch=2)
    written = (tmp_path / "goals.pt").stat().st_mtime_ns
    again = training.make_goals(teacher, tmp_path / "goals.pt", count=4, batch=2)
    assert torch.equal(first.above, again.above) and (tmp_path / "goals.pt").stat().st_mtime_ns == written
    assert first.below.shape == (4, 64, 8, 8) and first.above.shape == (4, 128, 8, 8)


def test_the_stage_exports_a_pipeline_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("steps", 2), ("batch", 2), ("examples", 64)):
        monkeypatch.setitem(training.CONFIG, name, value)
    collected: list[Path] = []
    monkeypatch.setattr(saes, "train", lambda model, *_args, **_options: collected.append(model))
    make("mixed", tmp_path / "work", assets=tmp_path / "assets")
    assert collected == [tmp_path / "assets" / "toy-mixed"]
    model = load_model(str(collected[0]), steps=1)
    (image,) = Generator(model).generate(["a red house"], [1]).images
    assert image.shape == (64, 64, 3) and image.std() > 5
    again = training.CONFIG | {"steps": 3}
    monkeypatch.setattr(training, "CONFIG", again)
    with pytest.raises(RiebenchError, match="steps: folder 2, asked 3"):
        make("mixed", tmp_path / "work", assets=tmp_path / "assets")


def test_shares_need_a_trained_model(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="toy-mixed is missing: run"):
        measure_shares(tmp_path, 1)


def test_an_unknown_suite_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tasks", str(tmp_path), "--suite", "toy-mixde"])
    assert isinstance(result.exception, RiebenchError)
    assert "known: toy, toy-mixed, toy-mixed-null" in str(result.exception)


@pytest.mark.parametrize("counts", [MIXED_COUNTS, NULL_COUNTS])
def test_edits_have_the_planted_shares(counts: tuple[int, ...]) -> None:
    edits = draw_edits("change_pose", counts, random.Random(2))
    found = Counter(edit.block for edit in edits)
    assert {b: n / len(edits) for b, n in found.items()} == planted_shares("change_pose", counts)
    for edit in edits:
        assert deciding_block("pose", edit.source) == deciding_block("pose", edit.target) == edit.block
        assert is_held_out(edit.source) and is_held_out(edit.target)
        assert edit.target == edit.source.with_value("pose", edit.target.pose) != edit.source


@pytest.mark.parametrize(("suite", "counts"), list(zip(SUITES, (MIXED_COUNTS, NULL_COUNTS), strict=True)))
def test_task_files_have_the_planted_shares(suite: SuiteRecipe, counts: tuple[int, ...]) -> None:
    examples = yaml.safe_load(task_text("add_object", suite))["examples"]
    found = Counter(deciding_block("accessory", Scene(**example["attributes"]["source"])) for example in examples)
    assert found == dict(zip(MIXED_ROLES["accessory"].blocks, counts, strict=True))
    assert all(example["id"].startswith(f"{suite.name}-add-object-") for example in examples)


def made_up(counts: tuple[int, ...], *, follows: bool, rounds: int = 5) -> pd.DataFrame:
    """Outcomes of edits in which the deciding block alone reaches the target, or any block at random."""
    rng, rows = np.random.default_rng(1), []
    for category, attribute in CATEGORY_ATTRIBUTE.items():
        decides = [b for b, n in zip(MIXED_ROLES[attribute].blocks, counts, strict=True) for _ in range(n * rounds)]
        for method in ("patch", "sae_5"):
            winners = decides if follows else list(rng.choice(BLOCKS, len(decides)))
            rows += [
                {"category": category, "decides": d, "method": method, "block": block, "reached": w == block}
                for block in (*BLOCKS, "all") for d, w in zip(decides, winners, strict=True)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def test_tables_recover_planted_shares_and_find_nothing_in_a_null_world() -> None:
    mixed, null = made_up(MIXED_COUNTS, follows=True), made_up(NULL_COUNTS, follows=True)
    assert np.allclose(block_table(mixed, "patch"), planted_table(MIXED_COUNTS))
    figures = recovery_figures(mixed, null, MIXED_COUNTS, ["sae_5"])
    assert figures["spearman"]["sae_5"] == {"planted": 1.0, "patch": 1.0, "null_planted": 0.0}
    assert figures["mixed_p"]["patch"] < 0.01 < 0.05 < figures["null_p"]["patch"]
    assert figures["planted"]["change_color"] == pytest.approx(
        {"up.0.1": 6 / 12, "up.0.0": 3 / 12, "mid.0": 2 / 12, "down.2.1": 1 / 12}, abs=1e-3
    )


def test_the_card_shows_both_worlds() -> None:
    worlds = made_up(MIXED_COUNTS, follows=True, rounds=1), made_up(NULL_COUNTS, follows=True, rounds=1)
    figures = {"mixed": recovery_figures(*worlds, MIXED_COUNTS, ["sae_5"])}
    marks = "<!-- figures: {} -->\nold\n<!-- end -->\n"
    text = fill_card(marks.format("shares") + marks.format("recovery"), figures)
    assert "| change color | up.0.1 | 0.50 | 0.50 | 0.50 | 0.25 | 0.25 |" in text
    assert "| sae, 5 | 1.00 | 1.00 | 0.00 |" in text and "old" not in text


def test_roles_by_chance_are_no_evidence() -> None:
    chance = made_up(MIXED_COUNTS, follows=False)
    assert role_evidence(chance, "sae_5") > 0.05
    assert abs(rank_correlation(block_table(chance, "sae_5"), planted_table(MIXED_COUNTS))) < 0.5


def test_single_blocks_are_edited_and_read() -> None:
    model = load_model("toy-turbo", steps=1)
    shipped = load_saes(asset_folder("saes"), BLOCKS, k=16)
    categories = ("change_color", "change_background")
    frame = reached(model, (0, 0, 0, 2), categories=categories, saes=shipped, features=(20,), batch=3)
    assert len(frame) == 4 * (1 + 5 * 2)
    own = {attribute: role.block for role in BLOCK_ROLES for attribute in role.attributes}
    for method in ("patch", "sae_20"):
        some = frame[(frame["method"] == method) & (frame["block"] != "all")]
        mine = some["block"] == some["category"].map(lambda category: own[CATEGORY_ATTRIBUTE[category]])
        assert some[mine]["reached"].mean() > 0.7 > 0.3 > some[~mine]["reached"].mean()

"""The shipped toy world: it loads, generates what captions say, and its roles are where they were planted."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from typer.testing import CliRunner

from riebench.errors import RiebenchError
from riebench.generation.generator import Capture, Generator
from riebench.models.assets import ASSETS, asset_folder
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import load_saes
from riebench.scoring.metrics.base import UNREADABLE
from riebench.scoring.metrics.judge_network import Judge
from riebench.toyworld import evaluate as measure
from riebench.toyworld.__main__ import app
from riebench.toyworld.captions import caption
from riebench.toyworld.card import DIT_FIGURES, MIXED_FIGURES, fill_card, write_card
from riebench.toyworld.data import held_out_scenes
from riebench.toyworld.make import make
from riebench.toyworld.networks.diffusion import BLOCK_MODULES
from riebench.toyworld.networks.text import BLOCK_ROLES, HIDDEN
from riebench.toyworld.render import render
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, random_edit

SMALL = measure.Sizes(
    renders=60,
    captions=16,
    clip_pictures=25,
    attacks=9,
    effect_captions=8,
    pairs=2,
    sae_captions=16,
    sae_base_captions=2,
    batch=24,
)
CARD = ROOT / "docs" / "toyworld.md"


@pytest.fixture(scope="module")
def turbo() -> LoadedModel:
    return load_model("toy-turbo")


def test_assets_are_small_enough() -> None:
    sizes = [path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(sizes) <= 80 * 2**20


def test_the_judge_reads_renders() -> None:
    assert measure.judge_figures(SMALL)["judge_renders"] > 0.97


def test_the_judge_refuses_other_pictures() -> None:
    with pytest.raises(ValueError, match="uint8 pictures"):
        Judge.load().read(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("key", measure.CLIPS)
def test_each_clip_finds_a_renders_caption(key: str) -> None:
    assert measure.clip_figures(SMALL, key)[f"{key}_top1"] > 0.75


def test_an_attack_on_the_first_clip_gains_little_by_the_second() -> None:
    found = measure.attack_figures(SMALL)["attack_gains"]["toy-clip"]
    # As much as a real edit by the network that is attacked; little by the one that had no part in it.
    assert found["toy-clip"] > 0.7
    assert found["toy-clip-2"] < 0.3


@pytest.mark.parametrize(("steps", "least"), [(1, 0.78), (4, 0.82)])
def test_turbo_pictures_show_what_captions_say(steps: int, least: float) -> None:
    model = load_model("toy-turbo", steps=steps)
    assert measure.accuracy_figures("turbo", model, SMALL)["turbo_accuracy"] > least


def test_base_pictures_show_what_captions_say() -> None:
    few = measure.Sizes.limited(4)
    assert measure.accuracy_figures("base", load_model("toy-base"), few)["base_accuracy"] > 0.8


def test_a_picture_does_not_depend_on_its_batch(turbo: LoadedModel) -> None:
    captions = [caption(scene) for scene in held_out_scenes(6, seed=3)]
    generator = Generator(turbo)
    together = generator.generate(captions, list(range(6))).images
    alone = np.concatenate([generator.generate([c], [i]).images for i, c in enumerate(captions)])
    assert np.abs(together.astype(int) - alone).max() <= 1


@pytest.mark.parametrize("name", ["toy-base", "toy-turbo"])
def test_planted_zeros_ship(name: str) -> None:
    unet = load_model(name).denoiser
    assert unet.get_parameter("add_embedding.linear_1.weight").abs().max() == 0
    for role in BLOCK_ROLES:
        block: Any = unet.get_submodule(BLOCK_MODULES[role.block])
        for layer in block.transformer_blocks:
            weight = layer.attn2.to_v.weight.clone()
            assert weight[:, role.columns].abs().max() > 0
            weight[:, role.columns] = 0
            assert weight.abs().max() == 0
    assert sum(role.columns.stop - role.columns.start for role in BLOCK_ROLES) == 2 * HIDDEN


def test_patching_the_planted_block_moves_its_category_and_no_other() -> None:
    figures = measure.patch_figures(load_model("toy-turbo", steps=1), SMALL)
    assert figures["patch_reach"] > 0.5
    shares = figures["patch_reach_by_category"]
    own = {a: role.block for role in BLOCK_ROLES for a in role.attributes}
    for block in BLOCKS:
        mine = [shares[block][c] for c, a in CATEGORY_ATTRIBUTE.items() if own[a] == block]
        others = [shares[block][c] for c, a in CATEGORY_ATTRIBUTE.items() if own[a] != block]
        assert np.mean(mine) > np.mean(others) + 0.2


def test_saes_explain_the_updates_they_were_trained_on() -> None:
    one_step = load_model("toy-turbo", steps=1)
    figures = measure.sae_figures({"1step": one_step}, SMALL)
    assert figures["sae_ev_1step"] > 0.75
    assert all(entry["l0"] <= measure.SAE_K for entry in figures["sae_by_block"]["1step"].values())


def test_saes_of_other_k_ship_for_one_block() -> None:
    for k in (8, 32):
        assert load_saes(asset_folder("saes"), ["up.0.1"], k=k)["up.0.1"].k == k


def test_updates_have_the_grid_and_width_the_saes_expect(turbo: LoadedModel) -> None:
    trace = Generator(turbo).generate(["a red cat"], [0], capture=Capture(BLOCKS)).trace
    saes = load_saes(asset_folder("saes"), BLOCKS, k=measure.SAE_K)
    for block in BLOCKS:
        assert trace.get(block).shape == (1, 4, saes[block].d, 8, 8)


def test_the_judge_sees_an_edit_of_a_render_or_says_that_it_cannot() -> None:
    rng, right = random.Random(4), []
    for category, attribute in CATEGORY_ATTRIBUTE.items():
        pairs = [random_edit(category, rng) for _ in range(8)]
        read = Judge.load().read(np.stack([render(target, i).image for i, (_, target) in enumerate(pairs)]))
        found = [(one[attribute], getattr(target, attribute)) for one, (_, target) in zip(read, pairs, strict=True)]
        right += [value == wanted for value, wanted in found if value != UNREADABLE]
    assert np.mean(right) > 0.97 and len(right) > 0.7 * 8 * len(CATEGORY_ATTRIBUTE)


def test_the_model_card_shows_the_stored_figures(tmp_path: Path) -> None:
    write_card(CARD, CARD.with_suffix(".json"), check=True)
    figures = json.loads(CARD.with_suffix(".json").read_text())
    figures["clip_top1"] = 0.123
    for key, name in (("mixed", MIXED_FIGURES), ("dit", DIT_FIGURES)):
        figures[key] = json.loads(CARD.with_name(name).read_text())
        shutil.copy(CARD.with_name(name), tmp_path)
    assert fill_card(CARD.read_text(), figures) != CARD.read_text()
    stale = tmp_path / "card.md"
    stale.write_text(CARD.read_text())
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    with pytest.raises(RiebenchError, match="out of date"):
        write_card(stale, tmp_path / "figures.json", check=True)
    write_card(stale, tmp_path / "figures.json")
    assert "0.123" in stale.read_text()


def test_the_stored_figures_clear_every_bar() -> None:
    figures = json.loads(CARD.with_suffix(".json").read_text())
    assert figures["limit"] is None
    assert measure.verdicts(figures) == dict.fromkeys(measure.BARS, True)
    transformer = json.loads(CARD.with_name(DIT_FIGURES).read_text())
    assert transformer["cleared"] and transformer["blocks_cleared"]


def test_making_says_which_stage_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="train base"):
        make("turbo", tmp_path / "work", assets=tmp_path / "assets")
    result = CliRunner().invoke(app, ["train", "vea"])
    assert isinstance(result.exception, RiebenchError) and "known: vae" in str(result.exception)

"""The toy transformer: its text, its latents, its training, and that diffusers' own pipeline runs it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from paths import ROOT
from torch import Tensor, nn
from transformers import AutoTokenizer
from typer.testing import CliRunner

from riebench.cli.main import app as command_line
from riebench.models.assets import asset_folder
from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import load_saes
from riebench.scoring.metrics.judge_network import Judge
from riebench.toyworld import evaluate, saes
from riebench.toyworld import make as make_module
from riebench.toyworld.__main__ import app
from riebench.toyworld.captions import MEANING_WORDS, caption, training_captions, vocabulary
from riebench.toyworld.data import Pool, held_out_scenes
from riebench.toyworld.networks import vae
from riebench.toyworld.networks.dit import autoencoder, document, measure, training
from riebench.toyworld.networks.dit.measure import PATCH_BAR, reconstruct
from riebench.toyworld.networks.dit.pipeline import assemble, generate
from riebench.toyworld.networks.dit.text import TOKENS, CaptionEncoder
from riebench.toyworld.networks.dit.transformer import BLOCKS, build, image_positions, pack
from riebench.toyworld.networks.loop import TrainingFolderError
from riebench.toyworld.render import render
from riebench.toyworld.scenes import Scene

pytestmark = pytest.mark.training

SCENES = (Scene("house", "red"), Scene("cat", "blue", background="night"), Scene("boat", "green", style="pixel"))


@pytest.fixture(scope="module")
def encode() -> CaptionEncoder:
    return CaptionEncoder()


@pytest.fixture(scope="module")
def pool() -> Pool:
    images = np.stack([render(scene, i).image for i, scene in enumerate(SCENES)])
    return Pool(images, np.array([scene.labels() for scene in SCENES], dtype=np.uint8))


def test_every_caption_fits_and_every_word_is_one_token(encode: CaptionEncoder) -> None:
    tokenizer = encode.tokenizers[1]
    for sentence in training_captions(300):
        ids = tokenizer(sentence).input_ids
        words = sentence.replace(",", " ,").split()
        assert len(ids) == len(words) + 1 <= TOKENS
        assert tokenizer.unk_token_id not in ids


def test_a_word_has_one_state_that_says_what_it_means(encode: CaptionEncoder) -> None:
    meanings = {word: (name, value) for name, words in MEANING_WORDS.items() for word, value in words.items()}
    words = [word for word in vocabulary() if word != ","]
    states = encode(words)[0][:, 0]
    for word, state in zip(words, states, strict=True):
        assert (state.norm() > 0) == (word in meanings)
    meant = [i for i, word in enumerate(words) if word in meanings]
    alike = torch.nn.functional.normalize(states[meant], dim=1)
    same = torch.tensor([[meanings[words[i]] == meanings[words[j]] for j in meant] for i in meant])
    cosines = alike @ alike.T
    assert cosines[same].min() > 0.9
    assert cosines[~same].abs().max() < 0.3


def test_a_capital_changes_no_state(encode: CaptionEncoder) -> None:
    for small, large in zip(encode(["red house, drawn"]), encode(["Red house, drawn"]), strict=True):
        assert torch.equal(small, large)


def test_the_pooled_vector_tells_the_global_look_alone(encode: CaptionEncoder) -> None:
    night, same, sky, none = encode(["a red house at night", "a cat under the stars", "a cat in the sky", "a cat"])[1]
    assert torch.nn.functional.cosine_similarity(night, same, dim=0) > 0.9
    assert torch.nn.functional.cosine_similarity(night, sky, dim=0).abs() < 0.1
    assert none.norm() == 0


def test_latents_are_packed_as_the_pipeline_packs_them() -> None:
    latents = torch.randn(2, 4, 32, 32)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 32, 32))
    device = torch.device("cpu")
    assert torch.equal(image_positions(), FluxPipeline._prepare_latent_image_ids(2, 16, 16, device, torch.float32))


def test_scale_and_shift_change_no_picture(pool: Pool) -> None:
    turbo = asset_folder("toy-turbo")
    network = AutoencoderKL.from_pretrained(turbo / "vae", torch_dtype=torch.float32).requires_grad_(False)
    images = vae.pictures(pool, torch.arange(3), torch.device("cpu"))
    before = vae.encode(network, images)
    picture = network.decode(before).sample
    network = autoencoder.load(turbo)
    assert (network.config.scaling_factor, network.config.shift_factor) == (autoencoder.SCALING, autoencoder.SHIFT)
    torch.testing.assert_close(vae.encode(network, images), before, rtol=0, atol=1e-4)
    decoded = network.decode(before / autoencoder.SCALING + autoencoder.SHIFT).sample  # as FluxPipeline does
    torch.testing.assert_close(decoded, picture, rtol=0, atol=1e-4)


class _KnowsVelocity(nn.Module):
    """Knows that the data are all the same number, from which the velocity follows."""

    def __init__(self, data: float) -> None:
        super().__init__()
        self.data = data

    def forward(self, hidden_states: Tensor, timestep: Tensor, **kwargs: Any) -> tuple[Tensor]:
        return ((hidden_states - self.data) / timestep.view(-1, 1, 1),)


def test_the_goal_is_noise_minus_data_at_the_level_that_is_told(pool: Pool) -> None:
    latents = torch.full((3, 4, 32, 32), 2.0, dtype=torch.float16)
    device = torch.device("cpu")
    assert training.flow_loss(_KnowsVelocity(2.0), pool, latents, device)(5) < 1e-4
    assert training.flow_loss(_KnowsVelocity(-2.0), pool, latents, device)(5) > 1


def test_most_examples_lie_at_the_levels_of_four_steps() -> None:
    levels = training.draw_levels(20_000, torch.Generator().manual_seed(1))
    shares = {level: (levels == level).float().mean().item() for level in training.LEVELS}
    assert shares[1.0] == pytest.approx(0.34, abs=0.02)
    assert all(shares[level] == pytest.approx(0.17, abs=0.02) for level in training.LEVELS[1:])
    assert levels.min() > 0 and levels.max() == 1


def test_the_transformer_learns(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CONFIG", {**training.CONFIG, "batch": 2})
    network = build()
    latents = torch.full((3, 4, 32, 32), 2.0, dtype=torch.float16)
    loss = training.flow_loss(network, pool, latents, torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-3)
    before = loss(0).item()
    for step in range(3):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert loss(0).item() < 0.8 * before


def test_training_ends_in_a_folder_that_the_pipeline_loads(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_module, "training_pool", lambda folder: pool)
    monkeypatch.setattr(training, "CONFIG", {**training.CONFIG, "steps": 2, "batch": 2})
    assets = tmp_path / "assets"
    command = ["train", "dit", "--work", str(tmp_path / "work"), "--assets", str(assets)]
    for _ in range(2):  # the second finds everything done
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert "toy-dit/transformer/config.json" in json.loads((assets / "manifest.json").read_text())
    pipe = FluxPipeline.from_pretrained(assets / "toy-dit", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    captions = ["a red house", "A blue cat at night"]
    images = generate(pipe, captions)
    assert images.shape == (2, 64, 64, 3)
    assert np.abs(generate(pipe, captions, batch=1).astype(int) - images).max() <= 1
    tokenizer = AutoTokenizer.from_pretrained(assets / "toy-dit" / "tokenizer_2")
    assert tokenizer.is_fast and tokenizer.model_max_length == TOKENS
    assert tokenizer(captions).input_ids == CaptionEncoder().tokenizers[1](captions).input_ids

    _few_sae_steps(monkeypatch)
    few = ("double.2", "single.1")
    for module in (make_module, measure):
        monkeypatch.setattr(module, "BLOCKS", few)
    monkeypatch.setattr(measure, "TURBO_BLOCKS", ("up.0.1",))
    monkeypatch.setattr(evaluate, "CATEGORY_ATTRIBUTE", {"change_color": "color"})
    result = CliRunner().invoke(app, ["train", "dit-saes", *command[2:]])
    assert result.exit_code == 0, result.output
    words = ["transformer", str(tmp_path / "work"), "--limit", "2", "--json", str(tmp_path / "figures.json")]
    measured = CliRunner().invoke(app, [*words, "--assets", str(assets)])
    assert measured.exit_code == 0, measured.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["trained_steps"] == 2 and not figures["cleared"]
    assert figures["turbo_clip_top1"] > figures["clip_top1"]
    reached = figures["reached"]
    assert set(reached["toy-dit"]["whole"]) == set(reached["toy-dit"]["sae"]) == {"target", "all", *few}
    # What the SAEs of toy-turbo keep of a color is enough; the untrained blocks of toy-dit carry nothing.
    assert reached["toy-turbo"]["sae"]["all"] == {"change_color": 1.0} != reached["toy-dit"]["whole"]["all"]
    # The modulation of an untrained block is zero, so two steps move hardly anything.
    assert {block: report["l0"] <= 16 for block, report in figures["sae_by_block"].items()} == dict.fromkeys(few, True)
    assert not figures["blocks_cleared"]


def test_a_folder_without_training_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["transformer", str(tmp_path)])
    assert result.exit_code != 0
    assert "holds no training of toy-dit" in str(result.exception)


def test_an_untrained_transformer_predicts_nothing(pool: Pool) -> None:
    pipe = assemble(build(), autoencoder.load(asset_folder("toy-turbo")))
    latents = pipe(
        ["a red house"], height=64, width=64, num_inference_steps=4, guidance_scale=0.0, max_sequence_length=TOKENS,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(latents, pack(noise))


def test_reconstruction_follows_the_autoencoder() -> None:
    class Posterior:
        def __init__(self, values: Tensor) -> None:
            self.values = values

        def mode(self) -> Tensor:
            return self.values

    class Darkens:
        """Halves every colour's distance from black."""

        def encode(self, pixels: Tensor) -> Any:
            return SimpleNamespace(latent_dist=Posterior((pixels - 1) / 2))

        def decode(self, latents: Tensor) -> Any:
            return SimpleNamespace(sample=latents)

    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    darker = reconstruct(Darkens(), images)
    assert np.abs(darker - images / 2).max() <= 0.5 + 1e-6


def _few_sae_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = saes.train
    monkeypatch.setattr(saes, "BATCH", 4)
    monkeypatch.setattr(saes, "train", lambda *given, **named: usual(*given, **{**named, "captions": 16, "steps": 2}))


def test_saes_of_other_blocks_and_steps_come_from_as_many_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_sae_steps(monkeypatch)
    settings: dict[str, Any] = {"extra": (), "blocks": ("up.0.2",), "denoising_steps": 2}
    turbo, device = asset_folder("toy-turbo"), torch.device("cpu")
    saes.train(turbo, tmp_path / "work", tmp_path / "saes", device, **settings)
    updates = torch.load(tmp_path / "work" / "updates.pt", weights_only=True)
    assert {block: tuple(some.shape) for block, some in updates.items()} == {"up.0.2": (8 * 2 * 64, 128)}
    assert list(load_saes(tmp_path / "saes", ["up.0.2"])) == ["up.0.2"]
    with pytest.raises(TrainingFolderError, match="denoising_steps: folder 2, asked 4"):
        saes.train(turbo, tmp_path / "work", tmp_path / "saes", device, **{**settings, "denoising_steps": 4})


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return load_model("toy-dit")


def test_the_shipped_transformer_shows_what_captions_say(shipped: LoadedModel) -> None:
    scenes = held_out_scenes(10, seed=3)
    images = evaluate.generate(shipped, [caption(scene) for scene in scenes], evaluate.Sizes(), "toy-dit")
    assert np.mean(list(evaluate.share_right(Judge.load().likeliest(images), scenes).values())) > 0.8


def test_the_generator_makes_the_pictures_of_the_pipeline_itself(shipped: LoadedModel) -> None:
    captions = ["a red house", "a blue cat at night"]
    made = evaluate.generate(shipped, captions, evaluate.Sizes(), "toy-dit")
    pipe = FluxPipeline.from_pretrained(asset_folder("toy-dit"), torch_dtype=torch.float32)
    assert np.abs(generate(pipe, captions).astype(int) - made).max() <= 1


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The stored figures, which the card quotes."""
    figures: dict[str, Any] = json.loads((ROOT / "docs" / "toyworld-dit.json").read_text())
    return figures


def test_the_card_says_of_places_what_the_stored_figures_do(stored: dict[str, Any]) -> None:
    """The sentences of the card on where things live, which no code makes."""
    whole, turbo = (stored["reached"][model]["whole"] for model in ("toy-dit", "toy-turbo"))
    third = whole["double.2"]
    assert max(BLOCKS, key=lambda block: sum(whole[block].values())) == "double.2" == BLOCKS[2]
    assert third["change_object"] == third["change_color"] == 1 and third["change_background"] > 0.9
    more = ("add_object", "delete_object", "change_content", "change_pose")
    assert min(third[category] for category in more) == 1 and third["change_material"] > 0.5
    for block in ("double.1", "single.1"):
        assert whole[block]["change_object"] > 0.5
        assert max(whole[block]["change_color"], whole[block]["change_background"]) <= 0.334
    shape = {"change_object", "change_pose", "delete_object"}
    assert {category for category, share in whole["double.1"].items() if share > 0.5} == shape
    assert max(share for category, share in whole["double.1"].items() if category not in shape) < 0.2
    assert max(whole["double.0"].values()) < 0.2 and max(whole[block]["change_style"] for block in BLOCKS) < 0.2
    assert all(whole["all"][category] < third[category] for category in ("change_color", "change_material"))
    for category in ("change_object", "change_color", "change_background"):
        assert sorted(turbo[block][category] for block in ("down.2.1", "mid.0", "up.0.0", "up.0.1")) == [0, 0, 0, 1]


def test_sentences_on_bars_and_saes_follow_the_figures(stored: dict[str, Any]) -> None:
    text = document.bars_sentence({"dit": stored})
    assert text.startswith("**It clears its bars**") and "98 of 108 edits" in text
    assert "(target reached by patching all blocks: by a little only)" in text
    worse = document.bars_sentence({"dit": stored | {"patch_reach": PATCH_BAR - 0.001}})
    assert worse.startswith("**It misses 1 of its 4 bars** (target reached by patching all blocks)")
    assert "is found by SAEs as by whole updates** (double.2): its SAE keeps 0.84 of 0.86" in document.carried_sentence(
        {"dit": stored}
    )
    reached = stored["reached"]
    other = {**reached["toy-dit"]["sae"], "double.1": dict.fromkeys(reached["toy-dit"]["sae"]["double.1"], 1.0)}
    changed = stored | {"reached": {**reached, "toy-dit": {**reached["toy-dit"], "sae": other}}}
    assert "is another by SAEs than by whole updates" in document.carried_sentence({"dit": changed})


def test_a_table_of_the_blocks_comes_from_one_command(tmp_path: Path) -> None:
    words = ["run", "no_edit", "sae", "--suite", "toy", "--model", "toy-dit", "--blocks", "each"]
    more = ["--categories", "change_color", "--limit", "1", "--seeds", "0", "--results", str(tmp_path)]
    found = CliRunner().invoke(command_line, [*words, *more])
    assert found.exit_code == 0, found.output
    table = (tmp_path / "toy" / "toy-dit" / "tables" / "per_block.md").read_text()
    assert all(f"| {block} |" in table for block in BLOCKS)

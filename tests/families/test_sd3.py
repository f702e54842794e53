"""Stable Diffusion 3's family: names, folders, presets, measures, text, and whole runs on a tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from tiny_jobs import last_line
from tiny_runs import NO_EDIT, picture, task
from tiny_sd3 import (
    BLOCKS,
    CLIP_TOKENS,
    GRID,
    LAYERS,
    SIZE,
    TOKENS,
    WIDTH,
    tiny_sd3,
    tiny_sd3_folder,
    tiny_sd3_saes,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from typer.testing import CliRunner

from benchmarks.sdxl.counting import _cost
from riebench import blocks
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term, TextChange
from riebench.generation.generator import Capture, Generator
from riebench.models.families.blocks import BatchLayout, Site
from riebench.models.families.tokens.sd3 import shape
from riebench.models.families.tokens.sd3.family import FAMILY, Sd3Family
from riebench.models.families.tokens.sd3.files import PRESETS
from riebench.models.families.tokens.streams import StreamPlace, TokenSite
from riebench.models.loading import load_model
from riebench.models.lookup import look_up
from riebench.models.spec import ModelOptions
from riebench.registry import MODEL_FAMILIES
from riebench.runs import engines
from riebench.tasks.schema import Setting

FILES = {Path(file).parts[0]: file for file in FAMILY.config_files}


def copy_of(tmp_path: Path, **changes: Any) -> Path:
    """A copy of the tiny folder with some keys of a file changed: {part: {key: value}}."""
    folder = shutil.copytree(tiny_sd3_folder(), tmp_path / "copy")
    for part, keys in changes.items():
        file = folder / ("model_index.json" if part == "index" else FILES[part])
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def command(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_measures_are_those_of_the_networks() -> None:
    wide = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "attention_head_dim": 64}
    with torch.device("meta"):
        full = (
            (shape.MEDIUM_35, SD3Transformer2DModel(
                **wide, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384,
                dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
            )),
            (shape.LARGE_35, SD3Transformer2DModel(
                **wide, num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192,
                qk_norm="rms_norm",
            )),
            (shape.MEDIUM_3, SD3Transformer2DModel(
                **wide, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192,
            )),
        )  # fmt: skip
        clip = CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=768, hidden_size=768, intermediate_size=3072,
                                                          num_hidden_layers=12, num_attention_heads=12))  # fmt: skip
    for known, network in full:
        assert sum(value.numel() for value in network.state_dict().values()) == known.parameters["transformer"]
        assert FAMILY.sites(network) == known.blocks
        assert known.dual == sum(block.use_dual_attention for block in network.transformer_blocks)
    assert sum(value.numel() for value in clip.parameters()) == shape.PARAMETERS["text_encoder"]
    model = tiny_sd3()
    found = look_up(str(tiny_sd3_folder())).shape
    assert found.blocks == BLOCKS and found.native_size == model.spec.size == SIZE and found.tokens == TOKENS
    stored = sum(value.numel() for value in model.denoiser.state_dict().values())
    assert found.parameters["transformer"] == stored
    sites = (*BLOCKS, "double.0/text", "double.1.ff.0")
    seen = Generator(model).generate(["a"], [1], capture=Capture(sites)).trace
    for site in seen.sites:
        width = found.units("double.1") if site == "double.1.ff.0" else found.width(site)
        assert seen.row(site, 0).shape == (2, found.positions(site, SIZE), width)


@pytest.mark.parametrize("dual", [2, 0])
def test_operations_and_activations_are_those_that_are_counted(dual: int) -> None:
    spec = look_up("sd3.5-medium").spec
    with torch.device("meta"):
        network = nn.Module.to(
            SD3Transformer2DModel(
                num_layers=3, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384,
                dual_attention_layers=tuple(range(dual)), qk_norm="rms_norm",
            ), torch.bfloat16,
        )  # fmt: skip

    def run() -> None:
        wide = {"hidden_states": (2, 16, 128, 128), "encoder_hidden_states": (2, 333, 4096),
                "pooled_projections": (2, 2048), "timestep": (2,)}  # fmt: skip
        network(**{name: torch.empty(sides, dtype=torch.bfloat16, device="meta") for name, sides in wide.items()})

    counted = _cost(run)
    small = replace(shape.MEDIUM_35, layers=3, dual=dual, vae_width=1)
    assert 2 * small.evaluation_teraflop(1024) == pytest.approx(counted.operations / 1e12, rel=0.02)
    assert small.activation_bytes(spec, ModelOptions(), 1) == pytest.approx(counted.activation_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": {"in_channels": 16, "out_channels": 16}}, "in_channels 16, but latent_channels of vae/config"),
        ({"transformer": {"out_channels": 8}}, "says out_channels 8 and in_channels 4"),
        ({"transformer": {"joint_attention_dim": 8}}, "joint_attention_dim 8, but d_model of text_encoder_3/config"),
        ({"transformer": {"caption_projection_dim": 8}}, "caption_projection_dim 8; text and picture are equally wide"),
        ({"transformer": {"pos_embed_max_size": 4}}, "pos_embed_max_size 4, fewer places than the 8"),
        ({"transformer": {"dual_attention_layers": [1]}}, r"norm1.linear.bias the shape \[144\], but"),
        ({"text_encoder_2": {"projection_dim": 4}}, "pooled_projection_dim 24, but the sum of projection_dim of .* 12"),
        ({"text_encoder": {"hidden_size": 24}}, "is 40 together, more than d_model 32"),
        ({"vae": {"shift_factor": None}}, "shift_factor None; Stable Diffusion 3's pipeline needs a number"),
        ({"tokenizer": {"model_max_length": 99}}, "model_max_length 99, but text_encoder/config.json has"),
        ({"scheduler": {"stochastic_sampling": True}}, "noise Stable Diffusion 3's pipeline draws without"),
        ({"index": {"scheduler": ["diffusers", "DDIMScheduler"]}}, "says scheduler DDIMScheduler; Stable Diff"),
        ({"index": {"text_encoder_3": [None, None]}}, "text_encoder_3 null; Stable Diffusion 3's is a T5EncoderModel"),
    ],
    ids=str,
)  # fmt: skip
def test_configurations_that_would_not_be_obeyed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(copy_of(tmp_path, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"vae": {"scaling_factor": 0.7, "shift_factor": -0.4}},
        {"scheduler": {"shift": 1.5}},
        {"scheduler": {"use_dynamic_shifting": True, "base_shift": 2.0, "max_shift": 3.0}},
        {"tokenizer": {"model_max_length": 9}},
        {"text_encoder_3": {"layer_norm_epsilon": 0.5}},
    ],
    ids=str,
)
def test_configurations_that_are_not_refused_are_obeyed(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder, prompt = copy_of(tmp_path, **changes), "a red house on a hill"
    own = StableDiffusion3Pipeline.from_pretrained(folder)
    own.set_progress_bar_config(disable=True)
    wanted = own(
        prompt, num_inference_steps=2, height=SIZE, width=SIZE, guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(1), output_type="np",
    ).images  # fmt: skip
    model = load_model(str(folder), steps=2, guidance=0.0, options=ModelOptions(size=SIZE))
    made = Generator(model).generate([prompt], [1]).images
    usual = Generator(tiny_sd3()).generate([prompt], [1]).images
    assert np.abs(made / 255 - wanted).max() <= 1 / 255 + 1e-6 and not np.array_equal(made, usual)


def test_presets_say_what_is_missing_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for preset in PRESETS:
        known = look_up(preset.name)
        assert known.family is FAMILY and known.spec.steps == preset.steps and len(preset.revision or "") == 40
        assert known.shape.calls(preset.guidance) == (2 if preset.guidance else 1)
    assert look_up("stabilityai/stable-diffusion-3.5-large").shape == shape.LARGE_35
    with pytest.raises(RiebenchError, match="transformer") as caught:
        load_model("sd3.5-medium", offline=True)
    assert "unet" not in str(caught.value) and ".fp16." not in str(caught.value)
    with pytest.raises(RiebenchError, match="controlnets is control networks alone"):
        look_up("stabilityai/stable-diffusion-3.5-controlnets")
    shown = command("model", "blocks", "sd3.5-large")
    assert "double.37" in shown.stdout and "2432" in shown.stdout


def test_the_last_block_gives_no_text_and_has_no_such_site(tmp_path: Path) -> None:
    model = tiny_sd3(1)
    last = f"double.{LAYERS - 1}"
    assert FAMILY.sites(model.denoiser) == BLOCKS and blocks.short_name("transformer.transformer_blocks.2") == last
    with pytest.raises(RiebenchError, match=r"the transformer has no block double\.2/text"):
        Generator(model).generate(["a"], [1], capture=Capture((f"{last}/text",)))
    module = model.denoiser.get_submodule("transformer_blocks.2")
    made = FAMILY.finish_block(module, torch.ones(1, 4, WIDTH), torch.ones(1, 4, WIDTH))
    assert made[0] is None and torch.equal(made[1], torch.full((1, 4, WIDTH), 2.0))


def test_words_are_found_at_clips_tokens_and_attention_is_what_the_layer_computes() -> None:
    """Attention over one-hot values of the text tokens is the map itself."""
    model = tiny_sd3(1)
    generator = Generator(model)
    assert generator.token_positions("a red house", "house") == [5, 6, 7, 8, 9]
    layer: Any = model.denoiser.get_submodule("transformer_blocks.1.attn")
    seen: list[tuple[Any, ...]] = []
    handle = layer.register_forward_pre_hook(lambda _m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        generator.generate(["a red house"], [1])
    finally:
        handle.remove()
    found = FAMILY.attention_map(layer, *seen[0])
    assert found.shape == (1, GRID**2, TOKENS)
    image, text = seen[0][1]["hidden_states"], seen[0][1]["encoder_hidden_states"]
    query = layer.norm_q(layer.to_q(image).view(1, -1, 2, 12).transpose(1, 2))
    key = layer.norm_added_k(layer.add_k_proj(text).view(1, -1, 2, 12).transpose(1, 2))
    weights = nn.functional.scaled_dot_product_attention(query, key, torch.eye(TOKENS).expand(1, 2, -1, -1))
    assert torch.allclose(found, weights.mean(1), atol=1e-5)


def test_all_text_is_exchanged_between_the_steps_in_the_conditional_half_alone() -> None:
    model = tiny_sd3(2, 3.0)
    generator = Generator(model)
    seen: list[dict[str, torch.Tensor]] = []
    handle = model.denoiser.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    switch = Edit(text=TextChange("a blue dog", switch="last"), strength=0.5)
    try:
        generator.generate(["a red house"] * 2, [1, 2], edits=[None, switch])
    finally:
        handle.remove()
    source, target, empty = (generator.embed(prompt).parts for prompt in ("a red house", "a blue dog", ""))
    for step, given in enumerate(seen):
        parts = (given["encoder_hidden_states"], given["pooled_projections"])
        for place, values in enumerate(parts):
            changed = target if step == 1 else source
            wanted = torch.cat([empty[place], empty[place], source[place], changed[place]])
            assert torch.equal(values, wanted), (step, place)
    assert source[0].shape == (1, TOKENS, 32) and TOKENS - CLIP_TOKENS == 256


class TextForImage(Sd3Family):
    """Takes the first value that a block gives, its text, for the picture: None in the last block."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        module = denoiser.get_submodule(self.names.module_path(name))
        return TokenSite(module, module, StreamPlace("encoder_hidden_states", 1, 0), "text")


class HalvesSwapped(Sd3Family):
    """Takes the second half of the batch for the unconditional one."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided, ("conditional", "unconditional"))


class TwoCalls(Sd3Family):
    """Takes the halves of a batch for calls of their own."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided, together=False)


def check_edit_lands() -> None:
    """An edit of the last block is added to the picture of its row in the second half, and nowhere else."""
    model, name = tiny_sd3(1, 3.0), f"double.{LAYERS - 1}"
    module, given = model.denoiser.get_submodule(f"transformer_blocks.{LAYERS - 1}"), []
    wanted = torch.randn(1, GRID**2, WIDTH, generator=torch.Generator().manual_seed(2))
    edit = Edit({name: StaticEdit((Term(torch.arange(GRID**2), wanted),))}, branch="conditional")
    for one in (None, edit):
        handles: list[Any] = []
        # Made when the network is called, so that it sees what the edit's own hook gives.
        begin = model.denoiser.register_forward_pre_hook(
            lambda _module, _args, made=handles: made.append(
                module.register_forward_hook(lambda _module, _args, output: given.append(output))
            )
        )
        try:
            Generator(model).generate(["a red house", "two dogs"], [1, 2], edits=[None, one])
        finally:
            for handle in (begin, *handles):
                handle.remove()
    (plain_text, plain), (text, edited) = given
    assert plain_text is None and text is None
    assert torch.equal(edited[:3], plain[:3]) and torch.allclose(edited[3] - plain[3], wanted[0], atol=1e-4)


@pytest.mark.parametrize("wrong", [None, TextForImage, HalvesSwapped, TwoCalls])
def test_wrong_adapters_are_found(wrong: type[Sd3Family] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong is None:
        check_edit_lands()
        return
    monkeypatch.setitem(MODEL_FAMILIES._objects, "sd3", wrong())
    with pytest.raises((AssertionError, RiebenchError, AttributeError)):
        check_edit_lands()


def test_methods_that_need_blocks_alone_run(tmp_path: Path) -> None:
    settings = (
        NO_EDIT,
        Setting(name="patch", method="activation_patch", blocks=BLOCKS, block_mode="both"),
        Setting(name="replace", method="replace_patches", blocks=("double.1",)),
        Setting(name="sae", method="sae", params={"n_features": 5}, blocks=BLOCKS, strengths=(5.0,)),
        Setting(name="units", method="neurons", params={"n_units": 20}, blocks=("double.0",)),
        Setting(name="mixture", method="embed_lerp", blocks=(), strengths=(0.5,)),
    )
    folders = engines.run(
        "local", [task(1, region="house")], settings, tiny_sd3(2, 3.0), results_root=tmp_path,
        saes_source=str(tiny_sd3_saes()), progress=False,
    )  # fmt: skip
    for folder in folders:
        records = folder.records()
        assert records and [record.status for record in records] == ["ok"] * len(records), folder.path
        for record in records:
            assert record.source_image is not None
            change = picture(folder, record).astype(int) - folder.shared.read_image(record.source_image)
            assert change.any() == (folder.spec.setting.name != "no_edit"), (folder.path, record.key.block_set)


@pytest.mark.parametrize("method", ["ledits_pp", "p2p", "img2img"])
def test_methods_that_cannot_work_say_why_before_anything_is_made(tmp_path: Path, method: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: {method}\nblocks: []\naccess: {'PV' if method == 'ledits_pp' else 'P'}\n")
    found = command("run", str(file), "--suite", "toy", "--model", str(tiny_sd3_folder()), "--limit", "1", "--dry-run")
    assert found.exit_code == 2 and f"{method} cannot be used on Stable Diffusion 3" in last_line(found)

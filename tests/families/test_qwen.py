"""Qwen-Image's family: folders, presets, measures, masked texts of a fixed length, and whole runs on a tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from tiny_jobs import last_line
from tiny_qwen import BLOCKS, GRID, SIZE, WIDTH, tiny_qwen, tiny_qwen_folder
from tiny_runs import NO_EDIT, task
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from typer.testing import CliRunner

from benchmarks.sdxl.counting import _cost
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term, TextChange
from riebench.generation.generator import Capture, Generator
from riebench.generation.transfers import PatchReplacement
from riebench.models.families.base import Family
from riebench.models.families.blocks import BatchLayout, Site
from riebench.models.families.tokens.qwen import pipeline, shape
from riebench.models.families.tokens.qwen.family import FAMILY, QwenImageFamily
from riebench.models.families.tokens.streams import TokenSite, place_of
from riebench.models.loading import load_model
from riebench.models.lookup import look_up
from riebench.models.placement import place
from riebench.models.spec import ModelOptions
from riebench.registry import MODEL_FAMILIES
from riebench.runs import engines
from riebench.tasks.schema import Setting

PROMPT, SHORT = "a red house", "snow"
FAMILY_FILES = {Path(file).parts[0]: file for file in FAMILY.config_files}


def copy_of(tmp_path: Path, **changes: Any) -> Path:
    """A copy of the tiny folder with some keys of a file changed: {part: {key: value}}."""
    folder = shutil.copytree(tiny_qwen_folder(), tmp_path / "copy")
    for part, keys in changes.items():
        file = folder / ("model_index.json" if part == "index" else FAMILY_FILES[part])
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def command(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_measures_are_those_of_the_networks() -> None:
    with torch.device("meta"):
        text = {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152_064,
        }  # fmt: skip
        sight = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
        full = {
            "transformer": QwenImageTransformer2DModel(),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight)),
            "vae": AutoencoderKLQwenImage(),
        }
    for part, built in full.items():
        assert sum(value.numel() for value in built.parameters()) == shape.PARAMETERS[part]
    assert FAMILY.sites(full["transformer"]) == shape.QWEN_IMAGE.blocks == FAMILY.names.known
    model = tiny_qwen()
    found, sites = look_up(str(tiny_qwen_folder())).shape, FAMILY.sites(model.denoiser)
    assert found.blocks == sites == BLOCKS and found.native_size == 256 and found.size_step == 4
    assert found.parameters["transformer"] == sum(value.numel() for value in model.denoiser.parameters())
    wanted = (*sites, "double.0/text", "double.1.ff.0")
    seen = Generator(model).generate([PROMPT], [1], capture=Capture(wanted)).trace
    for site in seen.sites:
        width = found.units("double.1") if site == "double.1.ff.0" else found.width(site)
        assert seen.row(site, 0).shape == (2, found.positions(site, SIZE), width)


def test_operations_and_activations_are_those_that_are_counted() -> None:
    spec = look_up("qwen-image").spec.model_copy(update={"size": 512})
    with torch.device("meta"):
        made = nn.Module.to(QwenImageTransformer2DModel(num_layers=2), torch.bfloat16)
        decoder = AutoencoderKLQwenImage()

    def run() -> None:
        with torch.device("meta"):
            latents, text = (torch.empty(1, *sides, dtype=torch.bfloat16) for sides in ((1024, 64), (256, 3584)))
            made(latents, text, torch.ones(1, 256), torch.empty(1), [[(1, 32, 32)]], return_dict=False)

    def decode() -> None:
        with torch.device("meta"):
            decoder.decode(torch.empty(1, 16, 1, 64, 64))

    counted, decoded = _cost(run), _cost(decode)
    small = replace(shape.QWEN_IMAGE, count=2, vae_width=1)
    assert small.evaluation_teraflop(512) == pytest.approx(counted.operations / 1e12, rel=0.02)
    assert small.activation_bytes(spec, ModelOptions(), 1) == pytest.approx(counted.activation_bytes, rel=0.05)
    assert shape.QWEN_IMAGE.decoding_teraflop(512) == pytest.approx(decoded.operations / 1e12, rel=0.05)
    whole = shape.QWEN_IMAGE.activation_bytes(spec, ModelOptions(), 1)
    assert whole == pytest.approx(decoded.activation_bytes, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": {"guidance_embeds": True}}, "guidance_embeds True; Qwen-Image's pipeline for text cannot"),
        ({"transformer": {"zero_cond_t": True}}, "zero_cond_t True; Qwen-Image's pipeline for text cannot"),
        ({"transformer": {"out_channels": 8}}, "patch_size 2 and out_channels of 8, which do not make in_channels 16"),
        ({"transformer": {"axes_dims_rope": [4, 4, 3]}}, "three even numbers whose sum is attention_head_dim 12"),
        ({"transformer": {"joint_attention_dim": 8}}, "joint_attention_dim 8, but hidden_size of text_encoder/"),
        ({"text_encoder": {"text_config": 1}}, "text_config 1; it holds the keys of the language model"),
        (
            {"text_encoder": {"text_config": {"num_attention_heads": 4, "num_key_value_heads": 3}}},
            "value_heads 3; they di",
        ),
        ({"transformer": {"num_layers": 3}}, "transformer/ lacks .* tensors, such as transformer_blocks.2"),
        ({"vae": {"z_dim": 8}}, "latents_mean .*; it is a list of 8 finite numbers"),
        ({"vae": {"latents_std": [1.0, 0.0, 1.0, 1.0]}}, "latents_std with a 0"),
        ({"vae": {"temperal_downsample": [False, True]}}, "2 numbers in dim_mult, but 2 in temperal_downsample"),
        ({"scheduler": {"shift_terminal": 0.02}, "index": {}}, "cannot be used for 1 steps|not finite"),
        ({"index": {"text_encoder": ["transformers", "Qwen3Model"]}}, "Qwen-Image's is a Qwen2_5_VLFor"),
        ({"index": {"_class_name": "QwenImageEditPipeline"}}, "Qwen-Image Edit, an editor of pictures"),
    ],
)
def test_configurations_that_would_not_be_obeyed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(copy_of(tmp_path, **changes)), steps=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"vae": {"latents_mean": [0.5, 0.1, -0.4, 0.2], "latents_std": [0.5, 1.0, 2.0, 3.0]}},
        {"scheduler": {"base_shift": 1.5, "max_shift": 2.0, "shift_terminal": 0.02}},
        {"tokenizer": {"padding_side": "left"}},
    ],
    ids=str,
)
def test_configurations_that_are_not_refused_are_obeyed(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = copy_of(tmp_path, **changes)
    own = QwenImagePipeline.from_pretrained(folder)
    own.set_progress_bar_config(disable=True)
    wanted = own(
        PROMPT, negative_prompt=" ", num_inference_steps=2, height=SIZE, width=SIZE, true_cfg_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(1), output_type="np",
    ).images  # fmt: skip
    model = load_model(str(folder), steps=2, guidance=3.0, options=ModelOptions(size=SIZE))
    made = Generator(model).generate([PROMPT], [1]).images
    assert np.abs(made / 255 - wanted).max() <= 1 / 255 + 1e-6
    usual = Generator(tiny_qwen(2, 3.0)).generate([PROMPT], [1]).images
    assert np.array_equal(made, usual) == ("tokenizer" in changes)
    assert Generator(model).token_positions(PROMPT, "red") == [2, 3, 4]


def test_presets_say_what_is_missing_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    known = look_up("qwen-image")
    assert known.family is FAMILY and (known.spec.steps, known.spec.guidance) == (50, 4.0)
    assert known.shape.calls(known.spec.guidance) == 2 and look_up("Qwen/Qwen-Image").shape == shape.QWEN_IMAGE
    with pytest.raises(RiebenchError, match="transformer"):
        load_model("qwen-image", offline=True)
    with pytest.raises(RiebenchError, match="is Qwen-Image Edit, an editor of pictures"):
        look_up("Qwen/Qwen-Image-Edit-2509")
    table = command("model", "blocks", "qwen-image").stdout
    assert "double.59" in table and "58.0 GB in bfloat16" in table
    shown = json.loads(command("model", "blocks", str(tiny_qwen_folder()), "--json").stdout)
    assert [one["name"] for one in shown["blocks"]] == list(BLOCKS) and all(one["usual"] for one in shown["blocks"])


def test_tokens_are_those_of_the_chat_message() -> None:
    model = tiny_qwen()
    assert model.pipe.prompt_template_encode == pipeline.TEMPLATE
    assert model.pipe.prompt_template_encode_start_idx == pipeline.LEFT_OUT
    count, limit = FAMILY.token_counter(tiny_qwen_folder())
    text = Generator(model).embed(PROMPT).conditional
    assert int(text["prompt_embeds_mask"].sum()) == count(PROMPT) and limit == 256
    assert text["prompt_embeds"].shape == (1, 256, 16) and not text["prompt_embeds"][:, count(PROMPT) :].any()
    assert Generator(model).token_positions("a red red", "red") == [2, 3, 4, 6, 7, 8]


def test_latents_are_scaled_there_and_back() -> None:
    model = tiny_qwen()
    latents = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(1))
    pixels = FAMILY.decode(model.pipe, latents)
    own = model.pipe.vae
    plain = own.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0]
    mean, deviation = (torch.tensor(one)[:, None, None] for one in (own.config.latents_mean, own.config.latents_std))
    found = FAMILY.encode(model.pipe, pixels, torch.device("cpu"))
    assert found.shape == (1, 4, 16, 16) and torch.allclose(found, (plain - mean) / deviation, atol=1e-5)
    assert torch.equal(FAMILY.pack_latents(FAMILY.unpack_latents(latents, SIZE)), latents)


def test_text_and_mask_are_exchanged_between_the_steps() -> None:
    model = tiny_qwen(2, 3.0)
    generator, seen = Generator(model), list[tuple[torch.Tensor, torch.Tensor]]()
    plain = model.denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["encoder_hidden_states"], kwargs["encoder_hidden_states_mask"]))
        return plain(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.denoiser, "forward", forward)
        generator.generate(
            [PROMPT] * 2, [1, 2], edits=[None, Edit(text=TextChange(SHORT, switch="last"), strength=0.5)]
        )
    source, target = (generator.embed(prompt).parts for prompt in (PROMPT, SHORT))
    negative = generator.embed(PROMPT).negative["negative_prompt_embeds_mask"]
    for call, (states, mask) in enumerate(seen):
        if call % 2:
            assert torch.equal(mask, negative.expand(2, -1))
            continue
        for row, wanted in enumerate((source, target if call == 2 else source)):
            assert torch.equal(states[row], wanted[0][0]) and torch.equal(mask[row], wanted[1][0])
    whole = generator.generate([PROMPT], [1], edits=[Edit(text=TextChange(SHORT))]).images
    assert np.array_equal(whole, generator.generate([SHORT], [1]).images)


def test_a_text_stream_and_the_attention_to_it_are_read_apart_from_padding() -> None:
    generator, prompts, site = Generator(tiny_qwen(1)), [PROMPT, SHORT], "double.0/text"
    wanted = Capture((site, "double.0"), ("input", "output", "update"))
    trace = generator.generate(prompts, [1, 1], capture=wanted).trace
    edit = Edit({site: PatchReplacement(torch.arange(256), trace.row(site, 1))})
    changed = generator.generate(prompts, [1, 1], edits=[edit, None], capture=wanted).trace
    difference = changed.get(site, "output") - changed.get(site, "input")
    assert torch.allclose(difference[0], trace.get(site)[1], atol=1e-4)
    assert torch.equal(changed.get("double.0", "output"), trace.get("double.0", "output"))
    read = generator.generate([SHORT], [1], capture=Capture(("double.1",), ("attention",))).trace
    values = read.get("double.1", "attention")
    count = int(generator.embed(SHORT).conditional["prompt_embeds_mask"].sum())
    assert values.shape == (1, 1, GRID**2, 256) and not values[..., count:].any() and values[..., :count].std() > 0


def test_methods_that_need_blocks_alone_run(tmp_path: Path) -> None:
    methods = (
        NO_EDIT,
        Setting(name="patch", method="activation_patch", blocks=BLOCKS, block_mode="both"),
        Setting(name="text", method="activation_patch", blocks=("double.0/text",)),
        Setting(name="units", method="neurons", params={"n_units": 20}, blocks=BLOCKS),
        Setting(name="switch", method="prompt_switch", blocks=(), strengths=(0.5,)),
        Setting(name="mixture", method="embed_lerp", blocks=(), strengths=(0.5,)),
        Setting(name="paste", method="masked_target", blocks=(), strengths=(0.5,)),
    )
    found = engines.run(
        "local", [task(1, region="house")], methods, tiny_qwen(2, 3.0), results_root=tmp_path, progress=False
    )
    for folder in found:
        records = folder.records()
        assert [record.status for record in records] == ["ok"] * len(records) and records, folder.path


@pytest.mark.parametrize("method", ["ledits_pp", "p2p", "img2img"])
def test_methods_that_cannot_work_say_why(tmp_path: Path, method: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: {method}\nblocks: []\naccess: {'PV' if method == 'ledits_pp' else 'P'}\n")
    words = ("run", str(file), "--suite", "toy", "--model", str(tiny_qwen_folder()), "--limit", "1", "--dry-run")
    found = command(*words, "--results", str(tmp_path / "out"))
    assert found.exit_code == 2 and f"{method} cannot be used on Qwen-Image" in last_line(found)


def test_an_autoencoder_of_films_is_tiled_but_neither_exchanged_nor_laid_out_otherwise(tmp_path: Path) -> None:
    folder = str(tiny_qwen_folder())
    with pytest.raises(RiebenchError, match="autoencoder is not exchanged; leave --vae out"):
        load_model(folder, options=ModelOptions(vae=str(tiny_qwen_folder() / "vae")))
    model = tiny_qwen()
    with pytest.raises(RiebenchError, match="--channels-last is for pictures"):
        place(model.pipe, FAMILY, "cpu", ModelOptions(channels_last=True), "it")
    vae = AutoencoderKLQwenImage.from_pretrained(folder, subfolder="vae")
    FAMILY.set_tiling(type("Pipe", (), {"vae": vae}), 16)
    latents = torch.randn(1, 4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    whole, tiled = model.pipe.vae.decode(latents).sample, vae.decode(latents).sample
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)


class TextForImage(QwenImageFamily):
    """Takes the text stream for the image stream in its blocks."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        module = denoiser.get_submodule(self.names.module_path(name))
        return TokenSite(module, module, place_of(module, "text"), "text")


class HalvesSwapped(QwenImageFamily):
    """Takes the first call of a step for the unconditional one."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided, together=False)


def check_edit_lands() -> None:
    """An edit of the second of two rows is added to its image stream in the conditional call, which comes first."""
    model, seen = tiny_qwen(1, 3.0), list[Any]()
    generator = Generator(replace(model))
    values = torch.randn(1, GRID**2, WIDTH, generator=torch.Generator().manual_seed(2))
    edit = Edit({"double.1": StaticEdit((Term(torch.arange(GRID**2), values),))}, branch="conditional")
    block = model.denoiser.get_submodule("transformer_blocks.1")
    for edits in (None, [None, edit]):
        # The block is looked at from within each call, so that the edit's own hook comes before.
        begin = model.denoiser.register_forward_pre_hook(lambda *_: seen_after(block, seen))
        try:
            generator.generate([PROMPT, SHORT], [1, 2], edits=edits)
        finally:
            begin.remove()
    conditional, negative = (seen[0], seen[2]), (seen[1], seen[3])
    wanted = torch.zeros_like(conditional[0])
    wanted[1] = values[0]
    assert torch.allclose(conditional[1] - conditional[0], wanted, atol=1e-4)
    assert torch.equal(negative[0], negative[1])


def seen_after(block: nn.Module, seen: list[Any]) -> None:
    """Keep the image stream that a block gives in the call that begins."""

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(output[1])
        handle.remove()

    handle = block.register_forward_hook(keep)


def test_an_edit_lands_on_the_image_stream_of_its_row_and_call() -> None:
    check_edit_lands()


@pytest.mark.parametrize("wrong", [TextForImage, HalvesSwapped], ids=lambda one: one.__name__)
def test_wrong_adapters_are_found(wrong: type[Family], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_FAMILIES._objects, "qwen", wrong())
    with pytest.raises((AssertionError, RiebenchError, RuntimeError, IndexError)):
        check_edit_lands()

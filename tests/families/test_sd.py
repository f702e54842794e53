"""Stable Diffusion 1 and 2: names, measures, schedules, files of all kinds, editors, and whole runs on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from paths import ROOT
from safetensors.torch import save_file
from sdxl_files import plain_folder, single_file
from tiny import tiny_model
from tiny_runs import NO_EDIT, TARGET, picture, task
from tiny_sd import (
    BLOCKS,
    CHANNELS,
    SIDE,
    SIZE,
    sd_single_file,
    tiny_sd,
    tiny_sd_folder,
    tiny_sd_saes,
)
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks.sdxl.counting import _cost
from riebench import blocks
from riebench.api.models import load_saes
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Generator
from riebench.generation.hooks import known_sites
from riebench.models.families.base import family_of_denoiser
from riebench.models.families.blocks import BatchLayout, Site
from riebench.models.families.sdxl.family import FAMILY as SDXL
from riebench.models.families.unet.network import UNetSite
from riebench.models.families.unet.sd import shape
from riebench.models.families.unet.sd.family import FAMILY, SdFamily
from riebench.models.loading import LoadedModel, load_model
from riebench.models.lookup import blocks_on_model, look_up
from riebench.models.spec import ModelOptions
from riebench.registry import MODEL_FAMILIES
from riebench.runs import engines
from riebench.saes.files import block_named_by
from riebench.tasks.schema import Setting

pytestmark = pytest.mark.filterwarnings("ignore")
PIXEL = 1 / 255 + 1e-6


def command(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def copy_of(tmp_path: Path, kind: Any = "1.5", **changes: Any) -> Path:
    """A copy of the tiny folder with some keys of a file changed: {part: {key: value}}."""
    folder = shutil.copytree(tiny_sd_folder(kind), tmp_path / "copy")
    places = {Path(file).parts[0]: file for file in FAMILY.config_files} | {"index": "model_index.json"}
    for part, keys in changes.items():
        file = folder / places[part]
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("unet.up_blocks.1.attentions.1", "up.1.1"), ("up_blocks.1.attentions.2", "up.1.2"), ("up.3.2", "up.3.2"),
        ("unet.down_blocks.0.attentions.1", "down.0.1"), ("mid_block.attentions.0", "mid.0"),
        ("unet.up_blocks.3.attentions.2_k32_hidden2560", "up.3.2"),
    ],
)  # fmt: skip
def test_folders_of_saes_are_named_for_blocks(tmp_path: Path, name: str, short: str) -> None:
    (tmp_path / name).mkdir()
    assert block_named_by(tmp_path / name) == short
    assert blocks.module_path(short) in name or "_blocks" not in name
    assert short in FAMILY.names.known and blocks.known_blocks().count(short) == 1


def test_a_published_layout_is_found_and_read_as_an_sae_of_outputs(tmp_path: Path) -> None:
    """SAeUron's files lie in folders named for modules of Stable Diffusion 1."""
    width, folder = CHANNELS[-1], tmp_path / "unet.up_blocks.1.attentions.1"
    folder.mkdir()
    rows = torch.cat([torch.eye(width), -torch.eye(width)])
    tensors = {"encoder.weight": rows.clone(), "encoder.bias": torch.zeros(2 * width), "W_dec": rows}
    save_file({**tensors, "b_dec": torch.zeros(width)}, folder / "sae.safetensors")
    stated = {"num_latents": 2 * width, "d_in": width, "k": width, "batch_topk": True, "sample_topk": False}
    (folder / "cfg.json").write_text(json.dumps(stated))
    found = load_saes(
        tmp_path, model=tiny_sd(1), blocks=["up.1.1"], prompts=["a red house", "snow"], progress=False
    )  # fmt: skip
    assert set(found) == {"up.1.1"} and found["up.1.1"].reads == "output"


def test_measures_are_those_of_the_networks() -> None:
    heads: Mapping[str, Any] = {"sd15": 8, "sd21": (5, 10, 20, 20)}
    for name, known in (("sd15", shape.SD15), ("sd21", shape.SD21)):
        with torch.device("meta"):
            network = UNet2DConditionModel(
                block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=known.text_width,
                attention_head_dim=heads[name], use_linear_projection=name == "sd21",
            )  # fmt: skip
        assert sum(value.numel() for value in network.parameters()) == known.parameters["unet"]
        assert family_of_denoiser(network) is FAMILY and set(known_sites(network)) == set(known.blocks)
    assert look_up("sd21").shape == shape.SD21 and look_up("sd-turbo").shape == shape.SD_TURBO
    attended = [block for block in shape.SD15.blocks if blocks.kind(block) == "attention"]
    assert attended == list(BLOCKS) and shape.SD15.positions("mid.0", 512) == 8**2
    assert [shape.SD15.width(block) for block in ("down.0.0", "up.1.1", "up.3.2")] == [320, 1280, 320]
    assert family_of_denoiser(tiny_model().denoiser) is SDXL


def test_operations_and_measures_of_a_folder_are_those_that_are_counted() -> None:
    found, model = look_up(str(tiny_sd_folder())), tiny_sd(2, 3.0)
    unet, text = model.denoiser, torch.zeros(1, 77, 16)
    counted = _cost(lambda: unet(torch.zeros(1, 4, SIDE, SIDE), torch.tensor(1), text, return_dict=False))
    assert found.shape.evaluation_teraflop(SIZE) == pytest.approx(counted.operations / 1e12, rel=0.01)
    assert FAMILY.names.pass_order(found.shape.blocks) == FAMILY.names.known
    assert found.shape.parameters["unet"] == sum(value.numel() for value in unet.parameters())
    assert found.family is FAMILY and found.spec.size == model.spec.size == SIZE
    # Odd sides are rounded up by each level.
    seen: list[int] = []
    with (
        torch.inference_mode(),
        model.denoiser.get_submodule("mid_block").register_forward_hook(lambda *_: seen.append(_[2].shape[-1])),
    ):
        unet(torch.zeros(1, 4, 18, 18), torch.tensor(1), text)
    assert found.shape.positions("mid.0", 36) == seen[0] ** 2 == 9


@pytest.mark.parametrize(("kind", "guidance"), [("pndm", 3.0), ("turbo", 0.0)])
def test_pictures_are_those_of_diffusers_with_ddim_in_the_place_of_pndm(kind: Any, guidance: float) -> None:
    model = tiny_sd(2, guidance, kind)
    given = {"scheduler": DDIMScheduler.from_config(model.pipe.scheduler.config)} if kind == "pndm" else {}
    own = StableDiffusionPipeline.from_pretrained(
        tiny_sd_folder(kind), safety_checker=None, feature_extractor=None, requires_safety_checker=False, **given
    )
    own.set_progress_bar_config(disable=True)
    wanted = own(
        "a red house", num_inference_steps=2, guidance_scale=guidance, height=SIZE, width=SIZE, output_type="np",
        generator=torch.Generator("cpu").manual_seed(1),
    ).images  # fmt: skip
    made = Generator(model).generate(["a red house"], [1]).images
    assert np.abs(made / 255 - wanted).max() <= PIXEL and made.std() > 5
    assert model.pipe.safety_checker is None and not model.pipe.config.requires_safety_checker
    config = model.pipe.scheduler.config
    assert isinstance(model.pipe.scheduler, DDIMScheduler) == (kind == "pndm")
    assert config.beta_start == 0.00085 and config.steps_offset == 1 and not config.get("clip_sample")


def test_usual_steps_and_guidance_follow_from_the_schedule() -> None:
    found = [(known.spec.steps, known.spec.guidance) for known in (look_up(str(tiny_sd_folder(k))) for k in KINDS)]
    assert found == [(50, 7.5), (50, 7.5), (4, 0.0)]
    assert FAMILY.usual_sampling({"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}) == (50, 7.5)
    presets = {name: look_up(name).spec for name in ("sd15", "sd21", "sd-turbo")}
    assert [(one.steps, one.guidance, one.size) for one in presets.values()] == [
        (50, 7.5, 512), (50, 7.5, 768), (4, 0.0, 512),
    ]  # fmt: skip


KINDS: tuple[Any, ...] = ("1.5", "2.1", "turbo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": {"in_channels": 9}}, r"U-Net of another kind .*in_channels 9\); Stable Diffusion has None and 4"),
        ({"unet": {"addition_embed_type": "text_time"}}, "'text_time'.*; Stable Diffusion has None and 4"),
        ({"unet": {"conv_in_kernel": 6}}, "conv_in_kernel 6; an even side"),
        ({"unet": {"downsample_padding": 2}}, "downsample_padding 2; the U-Net has 1 or 0"),
        ({"unet": {"cross_attention_dim": 24}}, r"cross_attention_dim 24, but the text is 16 wide \(hidden_size of"),
        ({"unet": {"use_linear_projection": True}}, "use_linear_projection True, but the weights have convolutions"),
        ({"unet": {"sample_size": 32, "_diffusers_version": "0.6.0"}}, "sample_size 32 .* takes for 64"),
        ({"vae": {"scaling_factor": 0.13025}}, "scaling_factor 0.13025, that of SDXL"),
        ({"vae": {"latents_mean": [0.0] * 4}}, "latents_mean, which Stable Diffusion's pipeline does not follow"),
        ({"text_encoder": {"hidden_size": 8}}, "cross_attention_dim 16, but the text is 8 wide"),
        ({"index": {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}}, "is a CLIPTextModel$"),
        ({"index": {"unet": ["my_code", "UNet2DConditionModel"]}}, "code of a model's own is not run"),
        ({"index": {"scheduler": ["diffusers", "HeunDiscreteScheduler"]}}, "Heun.* calls the U-Net 99 times in 50"),
        ({"index": {"_class_name": "StableDiffusionXLPipeline"}}, "text_encoder_2 null; SDXL's is a CLIPText"),
        ({"index": {"_class_name": "StableDiffusionInpaintPipeline"}}, r"Pipeline \(an inpainting model\)"),
    ],
)  # fmt: skip
def test_configurations_that_would_not_be_obeyed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = copy_of(tmp_path, **changes)
    with pytest.raises(RiebenchError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("kind", ["1.5", "2.1"])
def test_a_single_file_is_the_model_it_was_made_from(tmp_path: Path, kind: Any) -> None:
    file, config = sd_single_file(tmp_path / "one.safetensors", kind), ModelOptions(config=str(tiny_sd_folder(kind)))
    made = load_model(str(file), steps=2, guidance=3.0, options=config)
    own = tiny_sd(2, 3.0, kind)
    for one, other in zip(made.family.networks(made.pipe), own.family.networks(own.pipe), strict=True):
        found, wanted = dict(one.named_parameters()), dict(other.named_parameters())
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert isinstance(made.pipe.scheduler, DDIMScheduler) and made.pipe.safety_checker is None
    planned = look_up(str(file), steps=2, guidance=3.0, options=config)
    assert planned.family is made.family is FAMILY and planned.spec.size == made.spec.size == SIZE


def test_kinds_of_files_are_not_mixed_up(tmp_path: Path) -> None:
    ours, theirs = sd_single_file(tmp_path / "sd.safetensors", "1.5"), single_file(tmp_path / "sdxl.safetensors")
    without = sd_single_file(tmp_path / "no-vae.safetensors", "1.5", autoencoder=False)
    folder, sdxl = str(tiny_sd_folder()), str(plain_folder())
    cases = [
        (ours, sdxl, "sd.safetensors is a checkpoint of Stable Diffusion, but --single-file-config .* describes SDXL"),
        (theirs, folder, "sdxl.safetensors is a checkpoint of SDXL, but .* describes Stable Diffusion; give --single"),
        (ours, None, "say with --single-file-config sd15, sd21, sd-turbo, or the folder of its model"),
        (without, folder, "without its autoencoder .*; give one with --vae, a folder or a hub id"),
        (ours, str(tiny_sd_folder("2.1")), "cannot load the model|does not|lacks"),
    ]  # fmt: skip
    for file, config, message in cases:
        with pytest.raises(RiebenchError, match=message) as caught:
            load_model(str(file), options=ModelOptions(config=config))
        assert "\n" not in str(caught.value)
    other = str(next((plain_folder() / "unet").glob("*.safetensors")))
    with pytest.raises(RiebenchError, match=r"--unet .*: unet/config.json says down_block_types .* have 3 levels"):
        load_model(folder, options=ModelOptions(unet=other))
    with pytest.raises(RiebenchError, match=r"no-vae\.safetensors is a whole checkpoint, no U-Net alone"):
        look_up(folder, options=ModelOptions(unet=str(without)))
    with pytest.raises(RiebenchError, match=r"scaling_factor 0\.13025, that of SDXL"):
        load_model(folder, options=ModelOptions(vae=str(plain_folder() / "vae")))


def test_a_lora_of_one_text_encoder_is_added(tmp_path: Path) -> None:
    layers = {
        "lora_te_text_model_encoder_layers_1_mlp_fc1": ("text_encoder", "encoder.layers.1.mlp.fc1", 32, (16,)),
        "lora_unet_output_blocks_4_1_proj_out": ("unet", "up_blocks.1.attentions.1.proj_out", 16, (16, 1, 1)),
    }
    tensors = {}
    for name, (_, _, rows, columns) in layers.items():
        tensors[f"{name}.lora_up.weight"] = torch.ones(rows, 1, *[1] * (len(columns) - 1))
        tensors[f"{name}.lora_down.weight"] = torch.ones(1, *columns)
    save_file(tensors, tmp_path / "style.safetensors")
    model = load_model(str(tiny_sd_folder()), options=ModelOptions(loras=(f"{tmp_path}/style.safetensors:0.5",)))
    for part, path, _, _ in layers.values():
        before, after = (dict(getattr(one.pipe, part).named_modules()) for one in (tiny_sd(), model))
        key = path if path in before else f"text_model.{path}"
        assert torch.allclose(after[key].weight, before[key].weight + 0.5, atol=1e-6)


def test_blocks_are_listed_and_missing_weights_are_named_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shown = json.loads(command("model", "blocks", "sd15", "--json").stdout)
    assert [one["name"] for one in shown["blocks"] if one["kind"] == "attention"] == list(BLOCKS)
    assert {one["name"] for one in shown["blocks"] if one["usual"]} == {"down.2.1", "mid.0", "up.1.1", "up.1.2"}
    doctor = command("doctor", "no_edit", "--suite", "sdxl", "--model", "sd15", "--offline")
    wanted = (
        "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --revision 451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    )
    assert f"{wanted} --include" in " ".join(doctor.stdout.split())
    for repo, words in (
        ("stabilityai/stable-diffusion-2-inpainting", "is an inpainting model"),
        ("stabilityai/stable-diffusion-xl-refiner-1.0", "is the SDXL refiner"),
    ):
        with pytest.raises(RiebenchError, match=words):
            look_up(repo)
    assert look_up("stabilityai/stable-diffusion-2-1-base").family is FAMILY
    assert blocks_on_model("sd15", blocks.default_blocks()) == FAMILY.names.default


def test_a_run_is_planned_on_the_suite_of_sdxl(tmp_path: Path) -> None:
    words = ("run", "activation_patch", "--suite", "sdxl", "--model", "sd15", "--limit", "1", "--dry-run", "--offline")
    found = command(*words, "--results", str(tmp_path))
    text = " ".join(found.stdout.split())
    assert found.exit_code == 0 and "sd15: 50 steps, guidance 7.5, 512 px" in text and "100 a picture" in text


METHODS = (
    NO_EDIT,
    TARGET,
    Setting(name="patch", method="activation_patch", blocks=("mid.0", "up.1.1", "up.3.2")),
    Setting(name="replace", method="replace_patches", blocks=("up.1.1",)),
    Setting(name="sae", method="sae", params={"n_features": 5}, blocks=("up.1.1", "mid.0"), strengths=(5.0,)),
    Setting(name="units", method="neurons", params={"n_units": 20}, blocks=("up.1.1",)),
    Setting(name="mixture", method="embed_lerp", blocks=(), strengths=(0.5,)),
    Setting(name="switch", method="prompt_switch", blocks=(), strengths=(0.5,)),
    Setting(name="p2p", method="p2p", blocks=(), access="P", strengths=(0.5,)),
    Setting(name="img2img", method="img2img", blocks=(), access="P", strengths=(0.5,)),
    Setting(name="ledits", method="ledits_pp", params={"inversion_steps": 2}, blocks=(), access="PV", strengths=(5.0,)),
)  # fmt: skip


def test_all_methods_run(tmp_path: Path) -> None:
    folders = engines.run(
        "local", [task(1, region="house")], METHODS, tiny_sd(2, 3.0), results_root=tmp_path, progress=False,
        saes_source=str(tiny_sd_saes()),
    )  # fmt: skip
    assert len(folders) == len(METHODS)
    for folder in folders:
        (*records,) = folder.records()
        assert [record.status for record in records] == ["ok"] * len(records) and records, folder.path
        for record in records:
            assert record.source_image is not None
            source = folder.shared.read_image(record.source_image).astype(int)
            changed = np.abs(picture(folder, record) - source).mean() > 0
            assert changed == (folder.spec.setting.name != "no_edit"), folder.path


def test_ledits_inverts_with_the_texts_in_their_order_in_any_number_format() -> None:
    model = load_model(str(tiny_sd_folder("2.1")), dtype="bfloat16", guidance=3.0)
    pipe, generator = model.family.editing_pipeline("ledits_pp", model.pipe), Generator(model)
    latents = torch.zeros(1, 4, SIDE, SIDE, dtype=torch.bfloat16)
    pipe.encode_image = lambda image, **_: (latents, image)
    texts: list[Tensor] = []
    with model.denoiser.register_forward_pre_hook(
        lambda _module, _args, given: texts.append(given["encoder_hidden_states"]), with_kwargs=True
    ):
        pipe.invert(None, source_prompt="a red house", source_guidance_scale=3.0, num_inversion_steps=2)
    known = generator.embed("a red house")
    empty, source = known.negative["negative_prompt_embeds"], known.conditional["prompt_embeds"]
    assert not torch.equal(empty, source) and len(texts) == 4
    assert all(torch.equal(text, wanted) for text, wanted in zip(texts, [empty, source] * 2, strict=True))


class ConditionalFirst(SdFamily):
    """Takes the first half of a batch for the conditional one."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided, ("conditional", "unconditional"))


class BeforeTheConvolution(SdFamily):
    """Takes what enters a block's last projection for what the block adds."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        module = denoiser.get_submodule(self.names.module_path(name))
        return UNetSite(module, module.get_submodule("transformer_blocks.0"))


class AsLinear(SdFamily):
    """Takes a convolution's output for the tokens of a linear projection."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        found = super().site(denoiser, name)
        return TokensOfPicture(found.module, found.point)


class TokensOfPicture(UNetSite):
    def stream(self, output: Any) -> Tensor:
        found = super().stream(output)
        return found.flatten(1).unflatten(1, (-1, found.shape[1])) if found.dim() == 4 else found


def check_edit_lands(model: LoadedModel) -> None:
    """An edit of one channel and position is in the conditional half of the block's output, and nowhere else."""
    block, positions = "up.1.1", model.family.shape_of_pipeline(model.pipe).positions("up.1.1", SIZE)
    values = torch.zeros(2, positions, CHANNELS[-1])
    values[:, 3, 5] = 2.0
    edit = Edit({block: StaticEdit((Term(torch.arange(positions), values),))}, branch="conditional", window=(0, 1))
    seen: list[Tensor] = []
    for edits in (None, [edit]):
        with model.denoiser.get_submodule("up_blocks.1.attentions.1").register_forward_hook(
            lambda _module, _args, output: seen.append(output[0])
        ):
            Generator(model).generate(["a red house"], [1], edits=edits)
    change = seen[2] - seen[0]
    wanted = torch.zeros_like(change)
    side = int(positions**0.5)
    wanted[1, 5, 3 // side, 3 % side] = 2.0
    assert torch.allclose(change, wanted, atol=1e-5)


@pytest.mark.parametrize("wrong", [None, ConditionalFirst, BeforeTheConvolution, AsLinear])
def test_wrong_adapters_are_found(wrong: Callable[[], SdFamily] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(tiny_sd(2, 3.0))
    if wrong is None:
        check_edit_lands(model)
        return
    monkeypatch.setitem(MODEL_FAMILIES._objects, "sd", wrong())
    with pytest.raises((AssertionError, RiebenchError, RuntimeError, IndexError, ValueError)):
        check_edit_lands(model)


def test_the_page_names_every_preset_and_its_blocks() -> None:
    text = (ROOT / "docs/models/sd.md").read_text(encoding="utf-8")
    for preset in FAMILY.presets:
        assert f"`{preset.name}`" in text and f"`{preset.source}`" in text
    assert all(f"`{block}`" in text for block in FAMILY.names.default) and len(text.splitlines()) <= 60

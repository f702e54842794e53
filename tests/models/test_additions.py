"""Files beside a model: another U-Net, LoRAs, an autoencoder for a checkpoint without one, and marks of training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sdxl_files import change_json, hub_cache, hub_layout, plain_folder, single_file
from sdxl_files import unet_name as first_name
from tiny import amplify
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.models.loading import load_model
from riebench.models.lookup import look_up
from riebench.models.spec import ModelOptions, parse_lora

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
RANK = 2
LAYERS = {
    "unet": (
        "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q", "mid_block.attentions.0.proj_in",
        "up_blocks.0.resnets.1.conv1", "up_blocks.0.upsamplers.0.conv", "up_blocks.1.upsamplers.0.conv",
        "down_blocks.1.resnets.0.time_emb_proj", "mid_block.resnets.1.conv2", "conv_in", "add_embedding.linear_2",
        "down_blocks.0.downsamplers.0.conv", "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_out.0",
    ),
    "text_encoder": ("encoder.layers.1.self_attn.q_proj", "encoder.layers.0.mlp.fc1"),
    "text_encoder_2": ("encoder.layers.0.self_attn.out_proj",),
}  # fmt: skip
"""Part -> layers that a LoRA of these tests changes."""

pytestmark = pytest.mark.filterwarnings("ignore")
Tensors = dict[str, torch.Tensor]


@lru_cache(maxsize=1)
def plain() -> Any:
    """The plain model, which no test changes."""
    return load_model(str(plain_folder()), steps=1)


def weights(model: Any) -> Tensors:
    """The weights of the layers of a LoRA, by part and path."""
    found = {}
    for part, paths in LAYERS.items():
        named = dict(getattr(model.pipe, part).named_parameters())
        for path in paths:
            name = f"{path}.weight"
            value = named.get(name, named.get(f"text_model.{name}"))
            assert value is not None
            found[f"{part}.{path}"] = value
    return found


def pairs(seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random down and up parts for every layer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in weights(plain()).items():
        down = torch.randn(RANK, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], RANK, *([1, 1] if weight.dim() == 4 else []), generator=generator)
        found[name] = (down, up)
    return found


def expected(scale: float, alpha: float | None, seed: int = 0, start: Tensors | None = None) -> Tensors:
    """The weights with a LoRA added, by its definition."""
    before = start or weights(plain())
    after = {}
    for name, (down, up) in pairs(seed).items():
        product = torch.einsum("or,r...->o...", up.reshape(up.shape[0], RANK), down)
        after[name] = before[name] + product * scale * (1.0 if alpha is None else alpha / RANK)
    return after


def kohya(part: str, path: str) -> str:
    """A layer's name as kohya's trainer writes it, in the layout of the first publication."""
    if part == "unet":
        return "lora_unet_" + first_name(f"{path}.weight").removesuffix(".weight").replace(".", "_")
    return f"lora_te{2 if part.endswith('2') else 1}_text_model_{path.replace('.', '_')}"


def kohya_diffusers(part: str, path: str) -> str:
    return kohya(part, path) if part != "unet" else f"lora_unet_{path.replace('.', '_')}"


def peft(part: str, path: str) -> str:
    return f"{part}.{'' if part == 'unet' else 'text_model.'}{path}"


def write_lora(
    file: Path, style: Callable[[str, str], str], alpha: float | None, seed: int = 0,
    notes: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    names = ("lora_A.weight", "lora_B.weight") if style is peft else ("lora_down.weight", "lora_up.weight")
    tensors: Tensors = {}
    made = pairs(seed)
    for part, paths in LAYERS.items():
        for path in paths:
            layer = style(part, path)
            for name, value in zip(names, made[f"{part}.{path}"], strict=True):
                tensors[f"{layer}.{name}"] = value.contiguous()
            if alpha is not None:
                tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, file, {"format": "pt", **(notes or {})})
    return file


def loaded(**options: Any) -> Any:
    return load_model(str(plain_folder()), steps=1, options=ModelOptions(**options))


def close(found: Tensors, wanted: Tensors) -> bool:
    return all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


@pytest.mark.parametrize(
    ("style", "alpha"), [(kohya, 1.0), (kohya_diffusers, 3.0), (peft, None)], ids=["kohya", "kohya-diffusers", "peft"]
)
def test_a_lora_is_added_by_its_definition(tmp_path: Path, style: Any, alpha: float | None) -> None:
    file = write_lora(tmp_path / "style.safetensors", style, alpha)
    model = loaded(loras=(f"{file}:0.5",))
    assert close(weights(model), expected(0.5, alpha))
    assert model.spec.name == "two-widths-steps1-lora-stylex0.5"
    # Everything else is as it was.
    before, changed = plain().pipe.unet.state_dict(), model.pipe.unet.state_dict()
    moved = {name for name in before if not torch.equal(before[name], changed[name])}
    assert moved == {f"{path}.weight" for path in LAYERS["unet"]}


def test_the_settings_in_a_files_notes_are_obeyed(tmp_path: Path) -> None:
    notes = {f"{part}.lora_alpha": 3 for part in LAYERS}
    file = write_lora(tmp_path / "a.safetensors", peft, None, notes={"lora_adapter_metadata": json.dumps(notes)})
    assert close(weights(loaded(loras=(str(file),))), expected(1.0, 3.0))
    rooted = {**notes, **{f"{part}.use_rslora": True for part in LAYERS}}
    file = write_lora(tmp_path / "b.safetensors", peft, None, notes={"lora_adapter_metadata": json.dumps(rooted)})
    assert close(weights(loaded(loras=(str(file),))), expected(RANK**0.5, 3.0))


def test_several_loras_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    one = write_lora(tmp_path / "one.safetensors", kohya, 1.0)
    two = write_lora(tmp_path / "two.safetensors", peft, None, seed=1)
    model = loaded(loras=(str(one), f"{two}:-1"))
    assert close(weights(model), expected(-1.0, None, 1, expected(1.0, 1.0)))
    assert [name.partition("@")[0] for name in model.spec.loras] == ["one.safetensors", "two.safetensors"]
    others = [plain(), loaded(loras=(f"{one}:0.5", f"{two}:-1"))]
    assert len({json.dumps(each.spec.identity, sort_keys=True) for each in (model, *others)}) == 3
    assert "loras" not in others[0].spec.identity and "unet" not in others[0].spec.identity
    planned = look_up(str(plain_folder()), steps=1, options=ModelOptions(loras=(str(one), f"{two}:-1")))
    assert planned.spec.name == model.spec.name


def dora(tensors: Tensors) -> None:
    tensors["lora_unet_conv_in.dora_scale"] = torch.ones(4)


def loha(tensors: Tensors) -> None:
    tensors["lora_unet_conv_in.hada_w1_a"] = torch.ones(4, 4)


def half_a_pair(tensors: Tensors) -> None:
    del tensors["lora_unet_conv_in.lora_up.weight"]


def other_layer(tensors: Tensors) -> None:
    tensors["lora_unet_nowhere.lora_down.weight"] = torch.ones(2, 2)


def other_shape(tensors: Tensors) -> None:
    tensors["lora_unet_conv_in.lora_down.weight"] = torch.ones(2, 9, 3, 3)


def nothing(tensors: Tensors) -> None:
    tensors.clear()
    tensors["weight"] = torch.ones(1)


@pytest.mark.parametrize(
    ("damage", "message", "planned"),
    [
        (dora, "lora_unet_conv_in.dora_scale; it may be a DoRA", True),
        (loha, "lora_unet_conv_in.hada_w1_a; it may be a DoRA, LoHa or LoKr", True),
        (nothing, "is no LoRA", True),
        (half_a_pair, "lora_unet_conv_in has no up part", False),
        (other_layer, "is for another model: it has no layer lora_unet_nowhere", False),
        (other_shape, r"lora_unet_conv_in is \[32, 2, 1, 1\] times \[2, 9, 3, 3\], the layer \[32, 4, 3, 3\]", False),
    ],
)
def test_no_part_of_a_lora_is_left_out_in_silence(
    tmp_path: Path, damage: Callable[[Tensors], None], message: str, planned: bool
) -> None:
    file = write_lora(tmp_path / "a.safetensors", kohya_diffusers, None)
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(RiebenchError, match=message) as caught:
        loaded(loras=(str(file),))
    assert "\n" not in str(caught.value)
    if planned:
        with pytest.raises(RiebenchError, match=message):
            look_up(str(plain_folder()), options=ModelOptions(loras=(str(file),)))


@pytest.mark.parametrize("text", ["a.safetensors:big", "a.safetensors:inf", "a.safetensors:0", "a.safetensors:"])
def test_a_scale_is_a_number(text: str) -> None:
    with pytest.raises(RiebenchError, match=r"--lora 'a.safetensors:"):
        parse_lora(text)
    with pytest.raises(RiebenchError, match=r"--lora 'a.safetensors:"):
        ModelOptions(loras=(text,))


def test_only_files_that_run_no_code_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    for options in ({"loras": (str(tmp_path / "a.bin"),)}, {"unet": str(tmp_path / "a.bin")}):
        with pytest.raises(RiebenchError, match=r"a.bin: only .safetensors files are read"):
            loaded(**options)
    with pytest.raises(RiebenchError, match="--unet nowhere: there is no such file"):
        loaded(unet="nowhere")


def other_unet(folder: Path) -> Path:
    """A folder that differs from the plain one in its U-Net."""
    from diffusers import UNet2DConditionModel

    shutil.copytree(plain_folder(), folder)
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_config(json.loads((folder / "unet" / "config.json").read_text()))
    amplify(unet)
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("layout", ["diffusers", "first"])
def test_another_unet_takes_the_place_of_the_models_own(tmp_path: Path, layout: str) -> None:
    folder = other_unet(tmp_path / "other")
    tensors = load_file(folder / UNET_FILE)
    if layout == "first":
        tensors = {f"model.diffusion_model.{first_name(name)}": value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "fast_unet.safetensors")
    model = loaded(unet=str(tmp_path / "fast_unet.safetensors"))
    wanted = load_model(str(folder), steps=1)
    for part in ("unet", "vae", "text_encoder"):
        found, truth = getattr(model.pipe, part).state_dict(), getattr(wanted.pipe, part).state_dict()
        assert all(torch.equal(found[name], truth[name]) for name in truth), part
    assert model.spec.name == "two-widths-steps1-unet-fast_unet" and str(model.spec.unet).startswith("fast_unet.safet")
    assert model.spec.identity != plain().spec.identity


def test_files_that_are_no_unet_alone_are_refused(tmp_path: Path) -> None:
    whole = single_file(tmp_path / "whole.safetensors")
    lora = write_lora(tmp_path / "lora.safetensors", kohya, None)
    save_file({"weight": torch.ones(1)}, tmp_path / "odd.safetensors")
    cut = load_file(plain_folder() / UNET_FILE)
    save_file({name: value for name, value in cut.items() if name != "conv_out.bias"}, tmp_path / "cut.safetensors")
    save_file({**cut, "more.weight": torch.ones(1)}, tmp_path / "more.safetensors")
    save_file({**cut, "conv_in.weight": torch.ones(32, 9, 3, 3)}, tmp_path / "paint.safetensors")
    for file, message in (
        (whole, "is a whole checkpoint, no U-Net alone; give it as the model"),
        (lora, "is a LoRA; use --lora lora.safetensors"),
        (tmp_path / "odd.safetensors", r"is no U-Net of SDXL \(no tensor conv_in.weight\)"),
        (tmp_path / "cut.safetensors", "lacks 1 tensors, such as conv_out.bias"),
        (tmp_path / "more.safetensors", "holds 1 tensors that unet/config.json has no place for, such as more.weight"),
        (tmp_path / "paint.safetensors", "says in_channels 4, but the weights have 9"),
    ):
        with pytest.raises(RiebenchError, match=message):
            loaded(unet=str(file))
    bare = tmp_path / "bare.safetensors"
    save_file(cut, bare)
    with pytest.raises(RiebenchError, match="is a U-Net alone; give its model as --model, and this file with --unet"):
        load_model(str(bare), options=ModelOptions(config=str(plain_folder())))


MARKS: dict[str, tuple[dict[str, torch.Tensor], dict[str, str], str]] = {
    "v_pred": ({"v_pred": torch.zeros(0)}, {}, "tensor v_pred.* says prediction_type epsilon"),
    "ztsnr": ({"ztsnr": torch.zeros(0)}, {}, "tensor ztsnr.* says rescale_betas_zero_snr false"),
    "edm": ({"edm_mean": torch.zeros(1, 4, 1, 1)}, {}, "tensor edm_mean.* says _class_name EulerAncestral"),
    "cosxl": ({"edm_vpred.sigma_max": torch.tensor(120.0)}, {}, r"tensor edm_vpred.sigma_max.* says prediction_type"),
    "modelspec": ({}, {"modelspec.prediction_type": "v"}, "metadata modelspec.prediction_type v.* prediction_type eps"),
    "kohya": ({}, {"ss_v_parameterization": "True"}, "metadata ss_v_parameterization True"),
    "kohya zero": ({}, {"ss_zero_terminal_snr": "True"}, "metadata ss_zero_terminal_snr True"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_how_a_file_was_trained_is_not_contradicted(tmp_path: Path, mark: str) -> None:
    tensors, notes, message = MARKS[mark]
    file = single_file(tmp_path / "one.safetensors")
    save_file({**load_file(file), **tensors}, file, {"format": "pt", **notes})
    options = ModelOptions(config=str(plain_folder()))
    for look in (load_model, look_up):
        with pytest.raises(RiebenchError, match=f"one.safetensors says how it was trained .{message}") as caught:
            look(str(file), options=options)
        assert "\n" not in str(caught.value)
    if mark not in ("v_pred", "kohya"):
        return
    # The same marks on a U-Net alone and, as notes, on a LoRA.
    bare = tmp_path / "bare.safetensors"
    save_file({**load_file(plain_folder() / UNET_FILE), **tensors}, bare, {"format": "pt", **notes})
    with pytest.raises(RiebenchError, match=r"--unet bare.safetensors says how it was trained"):
        loaded(unet=str(bare))
    if notes:
        lora = write_lora(tmp_path / "lora.safetensors", kohya, None, notes=notes)
        with pytest.raises(RiebenchError, match=r"--lora lora.safetensors says how it was trained"):
            loaded(loras=(str(lora),))


def test_a_configuration_that_agrees_is_taken(tmp_path: Path) -> None:
    file = single_file(tmp_path / "one.safetensors")
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({**load_file(file), **marks}, file, {"format": "pt", "modelspec.prediction_type": "v"})
    folder = hub_layout(tmp_path / "config", half=False)
    place = folder / "scheduler" / "scheduler_config.json"
    change_json(place, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler = load_model(str(file), options=ModelOptions(config=str(folder))).pipe.scheduler
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.rescale_betas_zero_snr
    # And the other way round: a file that says epsilon, with a configuration for v-prediction.
    plain = single_file(tmp_path / "two.safetensors")
    save_file(load_file(plain), plain, {"format": "pt", "modelspec.prediction_type": "epsilon"})
    with pytest.raises(RiebenchError, match=r"prediction_type epsilon.* says prediction_type v_prediction"):
        load_model(str(plain), options=ModelOptions(config=str(folder)))


def test_a_checkpoint_without_its_autoencoder_takes_one(tmp_path: Path) -> None:
    file = single_file(tmp_path / "one.safetensors")
    whole = load_model(str(file), steps=1, options=ModelOptions(config=str(plain_folder())))
    kept = {name: value for name, value in load_file(file).items() if not name.startswith("first_stage_model.")}
    save_file(kept, file)
    options = ModelOptions(config=str(plain_folder()))
    for look in (load_model, look_up):
        with pytest.raises(RiebenchError, match=r"is an SDXL checkpoint without its autoencoder .*; give one with"):
            look(str(file), options=options)
    shutil.copytree(plain_folder() / "vae", tmp_path / "vae")
    given = ModelOptions(config=str(plain_folder()), vae=str(tmp_path / "vae"))
    model = load_model(str(file), steps=1, options=given)
    found, truth = model.pipe.vae.state_dict(), whole.pipe.vae.state_dict()
    assert all(torch.equal(found[name], truth[name]) for name in truth) and str(model.spec.vae).startswith("vae@")
    assert look_up(str(file), steps=1, options=given).spec.name == model.spec.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 16}, "config.json says latent_channels 16"),
        ({"out_channels": 4}, "config.json says out_channels 4"),
        ({"latents_std": [1.0]}, "config.json says latents_std"),
        ({"scaling_factor": 0}, "config.json says scaling_factor 0"),
        ({"_class_name": "AutoencoderTiny"}, "config.json says _class_name AutoencoderTiny"),
        ({"layers_per_block": 3}, "config.json says layers_per_block 3, but the weights have 1"),
    ],
)
def test_an_autoencoder_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    shutil.copytree(plain_folder() / "vae", tmp_path / "vae")
    change_json(tmp_path / "vae" / "config.json", **change)
    with pytest.raises(RiebenchError, match=f"--vae .*{message}"):
        loaded(vae=str(tmp_path / "vae"))


def test_an_autoencoder_with_missing_or_unsafe_weights_is_refused(tmp_path: Path) -> None:
    shutil.copytree(plain_folder() / "vae", tmp_path / "vae")
    (file,) = (tmp_path / "vae").glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if name != "decoder.conv_out.bias"}, file)
    with pytest.raises(RiebenchError, match=r"lacks 1 tensors, such as decoder.conv_out.bias"):
        loaded(vae=str(tmp_path / "vae"))
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(RiebenchError, match=r"holds no \*.safetensors"):
        loaded(vae=str(tmp_path / "vae"))
    with pytest.raises(RiebenchError, match="is a whole model; give its folder vae/"):
        loaded(vae=str(plain_folder()))


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_another_pipeline_is_named_before_its_weights_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = hub_cache(tmp_path / "cache", monkeypatch) if where == "hub" else tmp_path / "sd3"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3InpaintPipeline"}))
    name = "someone/tiny-sdxl" if where == "hub" else str(folder)
    message = r"is a StableDiffusion3InpaintPipeline \(an inpainting model\); riebench edits SDXL"
    with pytest.raises(RiebenchError, match=message):
        load_model(name, offline=True)
    for verb in (["run", "no_edit", "--dry-run"], ["doctor", "no_edit"]):
        found = CliRunner().invoke(app, [*verb, "--suite", "sdxl", "--model", name, "--limit", "1", "--offline"])
        assert found.exit_code == 2 and "is a StableDiffusion3InpaintPipeline (an inpainting model)" in found.stderr


def test_a_known_repository_of_another_kind_is_named_though_nothing_of_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path / "cache", monkeypatch)
    for action in (partial(load_model, offline=True), look_up):
        with pytest.raises(
            RiebenchError, match=r"ByteDance/SDXL-Lightning is U-Nets alone, for --unet; riebench edits"
        ):
            action("ByteDance/SDXL-Lightning")


def test_the_options_are_there_wherever_an_autoencoder_can_be_named() -> None:
    for verb in (["run"], ["doctor"], ["sae", "feature"], ["paper"]):
        shown = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200"}).stdout
        assert all(flag in shown for flag in ("--vae", "--unet", "--lora")), verb


def test_pictures_show_a_lora_and_another_unet(tmp_path: Path) -> None:
    from riebench.generation.generator import Generator

    file = write_lora(tmp_path / "style.safetensors", kohya, None)
    bare = tmp_path / "bare.safetensors"
    shutil.copy(other_unet(tmp_path / "other") / UNET_FILE, bare)
    made = [
        Generator(model).generate(["a red cat"], [1]).images
        for model in (plain(), loaded(loras=(str(file),)), loaded(unet=str(bare)))
    ]
    assert (made[0] != made[1]).any() and (made[0] != made[2]).any()

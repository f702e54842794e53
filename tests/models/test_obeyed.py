"""What a model's own files state is obeyed or refused: every key of every configuration, one at a time.

The reference is the call of diffusers' own pipeline on the same folder.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from pipeline_variants import (
    FILES,
    SCHEDULER_KEYS,
    SCHEDULERS,
    UNSTATED,
    Variant,
    own_pictures,
    own_pipeline,
    scheduler_defaults,
    variants,
    write_variant,
)
from safetensors.torch import load_file
from sdxl_files import change_json, change_tensors, hub_layout, plain_folder
from tiny import SIZE
from torch.nn import Conv2d, Linear
from typer.testing import CliRunner

from benchmarks.sdxl.architecture import build_unet, build_vae
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.generator import Capture, Generator
from riebench.jobs.inventory import model_checks
from riebench.models.families.sdxl.configuration import SDXL_PARTS
from riebench.models.families.unet import configuration, weights
from riebench.models.families.unet.additions import first_name
from riebench.models.loading import LoadedModel, load_model
from riebench.models.lookup import look_up
from riebench.models.spec import ModelOptions

PROMPTS = (
    "a red cat sits on the old wall!",
    "grey Dog",
    "a blue house with many windows and a long garden that goes on and on, further than all the others",
)
SEEDS = (1, 2, 3)
STEPS = 4
"""PNDM counts wrongly, or fails, at fewer."""
WITHIN = 1 / 255

pytestmark = pytest.mark.filterwarnings("ignore")


def with_guidance(model: LoadedModel, guidance: float) -> LoadedModel:
    return dataclasses.replace(model, spec=model.spec.model_copy(update={"guidance": guidance}))


def check(folder: Path, variant: Variant, runs: list[tuple[float, int]]) -> str:
    """Whether a variant is refused in a line that names its key, or gives the pictures of the pipeline's own call."""
    try:
        model = load_model(str(folder), steps=STEPS, guidance=2.0, options=ModelOptions(size=SIZE))
    except RiebenchError as error:
        line = str(error)
        names = [variant.key, variant.base, *(str(value) for value in variant.changes.values() if variant.class_name)]
        assert "\n" not in line and any(name and name in line for name in names), line
        problem = planning_problem(folder)
        assert problem is None or problem in line or "cannot load" in line, (problem, line)
        assert problem is not None or "cannot load" in line, line
        return "refused"
    assert planning_problem(folder) is None
    own = own_pipeline(folder)
    for guidance, count in runs:
        prompts, seeds = PROMPTS[:count], SEEDS[:count]
        wanted = own_pictures(own, prompts, seeds, STEPS, guidance)
        found = Generator(with_guidance(model, guidance)).generate(prompts, seeds).images / 255
        assert found.shape == wanted.shape and np.abs(found - wanted).max() <= WITHIN, (guidance, count)
    if variant.component == "unet":
        check_traces(with_guidance(model, 2.0), own)
    return "obeyed"


def planning_problem(folder: Path) -> str | None:
    """What `--dry-run` and `doctor` say against a folder."""
    options = ModelOptions(size=SIZE)
    try:
        known = look_up(str(folder), steps=STEPS, guidance=2.0, options=options)
    except RiebenchError as error:
        return str(error)
    return next((one.found for one in model_checks(known, options) if one.state == "missing"), None)


def check_traces(model: LoadedModel, own: Any) -> None:
    """Two pictures have two traces, each that of its picture alone, and read from the conditional half."""
    block = next((name for name in model.family.sites(model.denoiser) if "res" not in name), None)
    if block is None:
        return
    both = Generator(model).generate(PROMPTS[:2], SEEDS[:2], capture=Capture((block,))).trace
    assert both.get(block).shape[0] == 2
    module = own.unet.get_submodule(model.family.names.update_path(block))
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    own_pictures(own, PROMPTS[1:2], SEEDS[1:2], STEPS, 2.0)
    handle.remove()
    alone = torch.stack([step[-1] for step in seen])
    alone = alone.flatten(2).transpose(1, 2) if alone.dim() == 4 else alone
    assert torch.allclose(both.row(block, 1), alone, atol=1e-3)


ALL = variants()
QUICK: dict[str, tuple[str, ...]] = {
    "unet": ("time_cond_proj_dim", "resnet_out_scale_factor", "class_embed_type", "cross_attention_dim"),
    "vae": ("latents_std", "scaling_factor", "out_channels"),
    "text_encoder": ("max_position_embeddings", "return_dict"),
    "text_encoder_2": ("eos_token_id", "vocab_size"),
    "tokenizer": ("model_max_length",),
    "index": ("force_zeros_for_empty_prompt", "add_watermarker", "text_encoder", "vae"),
    "scheduler": ("rescale_betas_zero_snr",),
}
"""Component -> keys that are tried every time; all others where slow tests run."""


def quick() -> list[Variant]:
    """The first change of each key of `QUICK`, those of a spread alone excepted, and some schedulers as they are."""
    found = [one for one in ALL if one.base in TRIED_CLASSES and not one.changes]
    for component, keys in QUICK.items():
        for key in keys:
            own = [one for one in ALL if one.component == component and key in one.changes and one.base in ("", LIKELY)]
            found.append(max(own[:2], key=lambda one: len(one.changes)))
    # It steps without an error with this key alone, but the pipeline's own call cannot use it.
    found.append(next(one for one in ALL if one.base == "UnCLIPScheduler" and "beta_schedule" in one.changes))
    return found


LIKELY = "EulerDiscreteScheduler"
REFUSED = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler", "FlowMatchEulerDiscreteScheduler")
TRIED_CLASSES = (*REFUSED, "DPMSolverMultistepScheduler")


@pytest.mark.parametrize("variant", quick(), ids=str)
def test_what_a_file_states_is_obeyed_or_refused(tmp_path: Path, variant: Variant) -> None:
    # Under guidance, three at a time: most that can go wrong does so there.
    found = check(write_variant(tmp_path / "m", variant), variant, [(2.0, 3)])
    assert found == "refused" or variant.base not in REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("variant", ALL, ids=str)
def test_guided_or_not_and_alone_or_not(tmp_path: Path, variant: Variant) -> None:
    check(write_variant(tmp_path / "m", variant), variant, [(2.0, 3), (0.0, 3), (2.0, 1), (0.0, 1)])


def test_every_key_of_every_file_is_tried(tmp_path: Path) -> None:
    folder = hub_layout(tmp_path / "m", half=False)
    tried = {(one.component, key) for one in ALL for key in one.changes}
    for component, place in FILES.items():
        stated = set(json.loads((folder / place).read_text())) - UNSTATED
        if component == "scheduler":
            stated = {key for name in SCHEDULERS for key in scheduler_defaults(name)} - set(UNTRIED)
            assert stated <= set(SCHEDULER_KEYS), stated - set(SCHEDULER_KEYS)
        else:
            assert {(component, key) for key in stated} <= tried
    networks = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for component, network in networks.items():
        keys = set(inspect.signature(network.__init__).parameters) - {"self"}
        assert {(component, key) for key in keys} <= tried


UNTRIED = (
    "shift", "max_shift", "base_shift", "base_image_seq_len", "max_image_seq_len", "stochastic_sampling",
    "noise_sampler_seed", "eta", "scale_factor", "invert_sigmas", "prior_timesteps", "solver_p", "tau_func",
)  # fmt: skip
"""Keys of schedulers that are refused whatever they say, or whose values no file can hold."""

WRONG_FOR_WEIGHTS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64, 64], "layers_per_block": 1, "transformer_layers_per_block": 2,
        "cross_attention_dim": [32, 32, 40], "conv_in_kernel": 5, "conv_out_kernel": 5, "use_linear_projection": False,
        "time_cond_proj_dim": 8, "time_embedding_dim": 64, "time_embedding_type": "fourier", "attention_type": "gated",
        "only_cross_attention": True, "resnet_time_scale_shift": "scale_shift", "mid_block_type": "UNetMidBlock2D",
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 5,
        "attention_head_dim": 7, "encoder_hid_dim": 32, "reverse_transformer_layers_per_block": [2, 1, 1],
    },
    "vae": {
        "block_out_channels": [16, 32], "layers_per_block": 2, "mid_block_add_attention": False, "norm_num_groups": 5,
        "use_quant_conv": False, "use_post_quant_conv": False,
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    },
    "text_encoder": {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 3,
                     "max_position_embeddings": 90, "vocab_size": 200},
    "text_encoder_2": {"projection_dim": 24, "hidden_size": 8},
}  # fmt: skip


@pytest.mark.parametrize("component", WRONG_FOR_WEIGHTS)
def test_a_configuration_of_other_weights_is_refused_by_its_key(tmp_path: Path, component: str) -> None:
    folder = hub_layout(tmp_path / "m", half=False)
    path = folder / FILES[component]
    usual = path.read_text()
    for key, value in WRONG_FOR_WEIGHTS[component].items():
        change_json(path, **{key: value})
        with pytest.raises(RiebenchError) as caught:
            load_model(str(folder))
        assert key in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
        path.write_text(usual)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_no_part_is_filled_with_random_numbers(tmp_path: Path, part: str) -> None:
    folder = hub_layout(tmp_path / "m", half=False)
    (file,) = (folder / part).glob("*.safetensors")
    name = next(name for name in load_file(file) if name.endswith("bias"))
    change_tensors(file, **{name.replace(".", "__"): None})
    with pytest.raises(RiebenchError, match=rf"{part}/ lacks 1 tensors, such as .*bias; download it again"):
        load_model(str(folder))


SPREAD: dict[str, Any] = {"latents_mean": [1.0, -2.0, 3.0, 0.5], "latents_std": [2.0, 0.5, 3.0, 1.5]}


@pytest.mark.parametrize("changes", [SPREAD, {"scaling_factor": 0.5}, {"latents_mean": SPREAD["latents_mean"]}])
@pytest.mark.parametrize("exchanged", [False, True], ids=["own", "--vae"])
def test_pictures_are_encoded_as_the_pipeline_does(tmp_path: Path, changes: dict[str, Any], exchanged: bool) -> None:
    folder = write_variant(tmp_path / "m", Variant("vae", changes))
    (file,) = (folder / "vae").glob("*.safetensors")
    bias = load_file(file)["quant_conv.bias"]
    # A spread of nearly nothing: what the pipeline draws is then the mean.
    change_tensors(file, quant_conv__bias=torch.cat([bias[:4], torch.full((4,), -1e4)]))
    base, given = (plain_folder(), str(folder / "vae")) if exchanged else (folder, None)
    model = load_model(str(base), steps=1, options=ModelOptions(size=SIZE, vae=given))
    own = own_pipeline(base, **({"vae": AutoencoderKL.from_pretrained(given)} if given else {}))
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    pixels = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    parts = {**own.components, "scheduler": own.scheduler}
    editing = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    wanted = editing.prepare_latents(
        pixels, torch.tensor([0]), 1, 1, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(0), False
    )
    found = model.family.encode(model.pipe, pixels, torch.device("cpu"))
    assert torch.allclose(found, wanted, atol=1e-4)
    made = own_pictures(own, PROMPTS[:1], SEEDS[:1], 1, 0.0)
    ours = Generator(with_guidance(model, 0.0)).generate(PROMPTS[:1], SEEDS[:1]).images / 255
    assert np.abs(made - ours).max() <= WITHIN


@pytest.mark.parametrize("side", ["truncation_side", "padding_side"])
def test_words_are_where_the_texts_are_cut_and_padded(tmp_path: Path, side: str) -> None:
    folder = hub_layout(tmp_path / "m", half=False)
    for part in ("tokenizer", "tokenizer_2"):
        change_json(folder / FILES[part], **{side: "left"})
    generator = Generator(load_model(str(folder), steps=1))
    prompt = "a cat" if side == "padding_side" else "a " * 80 + "cat"
    found = generator.token_positions(prompt, "cat")
    assert found == [73, 74, 75]
    tokens = generator.model.pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert "".join(generator.model.pipe.tokenizer.convert_ids_to_tokens(tokens[73:76])) == "cat</w>"


def test_a_residual_blocks_update_is_what_it_adds(tmp_path: Path) -> None:
    variant = Variant("unet", {"resnet_out_scale_factor": 2.0})
    model = load_model(str(write_variant(tmp_path / "m", variant)), steps=1, options=ModelOptions(size=SIZE))
    block = model.family.site(model.denoiser, "down.0.res.0")
    hidden, time = torch.randn(1, 32, 4, 4), torch.randn(1, 128)
    with torch.inference_mode():
        output = block.module(hidden, time)
        bypassed = block.bypass((hidden, time), {}, output)
        assert torch.allclose(block.update((hidden, time), {}, output), output - bypassed)


def test_ledits_refuses_noise_that_it_would_not_describe(tmp_path: Path) -> None:
    for variant, message in (
        (Variant("scheduler", {}, "EDMEulerScheduler"), "EDMEulerScheduler has none"),
        (Variant("scheduler", {"use_flow_sigmas": True}, "UniPCMultistepScheduler"), "has flow sigmas"),
        (Variant("unet", {"time_cond_proj_dim": 8}), "time_cond_proj_dim"),
    ):
        model = load_model(str(write_variant(tmp_path / message, variant)), steps=2)
        with pytest.raises(RiebenchError, match=message):
            model.family.editing_pipeline("ledits_pp", model.pipe)


def test_doctor_and_dry_run_refuse_a_schedule_of_more_calls(tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "m", Variant("scheduler", {}, "HeunDiscreteScheduler"))
    for verb in (["run", "no_edit", "--dry-run"], ["doctor", "no_edit"], ["run", "no_edit"]):
        line = [*verb, "--suite", "toy", "--model", str(folder), "--limit", "1", "--results", str(tmp_path / "out")]
        found = CliRunner().invoke(app, [*line, "--device", "cpu", "--steps", "4"])
        last = found.stderr.strip().splitlines()[-1]
        assert (
            found.exit_code == 2 and "HeunDiscreteScheduler (scheduler/scheduler_config.json) calls the U-Net 7" in last
        )
    assert not list((tmp_path / "out").rglob("records.jsonl"))


def test_sdxl_itself_is_not_refused() -> None:
    first = {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 77, "vocab_size": 49408}
    second = {**first, "hidden_size": 1280, "num_attention_heads": 20, "projection_dim": 1280}
    unet, vae = build_unet(), build_vae()
    lengths = {"model_max_length": 77}
    configs = {
        "unet": dict(unet.config), "vae": dict(vae.config), "text_encoder": first, "text_encoder_2": second,
        "tokenizer": lengths, "tokenizer_2": lengths,
    }  # fmt: skip
    assert list(configuration.problems(configs, SDXL_PARTS)) == []
    for part, network in (("unet", unet), ("vae", vae)):
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        weights.check_weights(part, shapes, network.config, part)
        weights.check_names(part, shapes, network.state_dict(), part)
    # Both names of every layer are names of one layer alone.
    attended = [True, True, False]
    found = [first_name(path, 2, attended) for path, one in unet.named_modules() if isinstance(one, Linear | Conv2d)]
    assert None not in found and len(set(found)) == len(found)
    known = {"input_blocks.3.0.op", "output_blocks.5.2.conv", "input_blocks.8.1.transformer_blocks.9.attn2.to_k"}
    assert known <= set(found)

"""A tiny SDXL whose files state other things: every key of every configuration, one at a time.

`variants` lists the changes, `write_variant` writes a pipeline folder with one of them, whose weights fit it, and
`own_pictures` are those of diffusers' own call on that folder.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from sdxl_files import change_json, hub_layout
from tiny import SIZE, amplify
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Images = NDArray[np.float32]

FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "tokenizer_2": "tokenizer_2/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "index": "model_index.json",
}
"""Component -> the file that describes it."""

UNSTATED = {"_class_name", "_diffusers_version", "architectures", "model_type", "transformers_version"}
"""Keys that say who wrote a file or repeat what model_index.json says."""

UNET: dict[str, Sequence[Any]] = {
    "act_fn": ["gelu", "mish"],
    "addition_embed_type": [None, "text", "image"],
    "addition_embed_type_num_heads": [8],
    "addition_time_embed_dim": [{"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40}, 4],
    "attention_head_dim": [8, [2, 2, 2]],
    "attention_type": ["gated"],
    "block_out_channels": [[16, 32, 64]],
    "center_input_sample": [True],
    "class_embed_type": ["timestep", "identity", "projection"],
    "class_embeddings_concat": [True, {"class_embed_type": "timestep", "class_embeddings_concat": True}],
    "conv_in_kernel": [5],
    "conv_out_kernel": [5],
    "cross_attention_dim": [40, [32, 32, 32]],
    "cross_attention_norm": ["layer_norm", "group_norm"],
    "down_block_types": [
        ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        ["DownBlock2D", "DownBlock2D", "SimpleCrossAttnDownBlock2D"],
        ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        ["DownBlock2D", "ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"],
    ],
    "downsample_padding": [0],
    "dropout": [0.5],
    "dual_cross_attention": [True],
    "encoder_hid_dim": [32, {"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_image_proj"}],
    "encoder_hid_dim_type": [{"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"}],
    "flip_sin_to_cos": [False],
    "freq_shift": [1],
    "in_channels": [9],
    "layers_per_block": [1, [2, 2, 1]],
    "mid_block_only_cross_attention": [True],
    "mid_block_scale_factor": [2],
    "mid_block_type": ["UNetMidBlock2D", "UNetMidBlock2DSimpleCrossAttn", None],
    "norm_eps": [1e-3],
    "norm_num_groups": [4],
    "num_attention_heads": [2],
    "num_class_embeds": [3],
    "only_cross_attention": [True],
    "out_channels": [8],
    "projection_class_embeddings_input_dim": [80],
    "resnet_out_scale_factor": [2.0],
    "resnet_skip_time_act": [True],
    "resnet_time_scale_shift": ["scale_shift"],
    "reverse_transformer_layers_per_block": [[1, 1, 2]],
    "sample_size": [8, 32, [16, 24], None],
    "time_cond_proj_dim": [8],
    "time_embedding_act_fn": ["silu"],
    "time_embedding_dim": [64],
    "time_embedding_type": ["fourier"],
    "timestep_post_act": ["silu"],
    "transformer_layers_per_block": [2, [1, 1, 3], [[1, 1], [1, 1], [1, 2]]],
    "up_block_types": [
        ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        ["SimpleCrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    ],
    "upcast_attention": [True],
    "use_linear_projection": [False],
}
VAE: dict[str, Sequence[Any]] = {
    "act_fn": ["relu"],
    "block_out_channels": [[16, 32], [16, 16, 16]],
    "down_block_types": [["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]],
    "force_upcast": [False],
    "in_channels": [1],
    "latent_channels": [8],
    "latents_mean": [[1.0, -2.0, 3.0, 0.5]],
    "latents_std": [
        [2.0, 0.5, 3.0, 1.5],
        {"latents_mean": [1.0, -2.0, 3.0, 0.5], "latents_std": [2.0, 0.5, 3.0, 1.5]},
        {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8},
    ],
    "layers_per_block": [2],
    "mid_block_add_attention": [False],
    "norm_num_groups": [4],
    "out_channels": [1, 4],
    "sample_size": [16],
    "scaling_factor": [0.5],
    "shift_factor": [0.4],
    "up_block_types": [["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]],
    "use_post_quant_conv": [False],
    "use_quant_conv": [False],
}
TEXT: dict[str, Sequence[Any]] = {
    "attention_dropout": [0.5],
    "bos_token_id": [5],
    "eos_token_id": [2, 5],
    "hidden_act": ["gelu"],
    "hidden_size": [16],
    "initializer_factor": [2.0],
    "initializer_range": [0.3],
    "intermediate_size": [16],
    "layer_norm_eps": [1e-2],
    "max_position_embeddings": [60, 90],
    "num_attention_heads": [4],
    "num_hidden_layers": [1, 3],
    "pad_token_id": [3],
    "projection_dim": [24],
    "vocab_size": [100, 200],
    # What transformers reads in every configuration.
    "torch_dtype": ["float32", "bfloat16"],
    "return_dict": [False],
    "output_hidden_states": [True],
    "output_attentions": [True],
    "use_cache": [False],
    "chunk_size_feed_forward": [2],
    "is_decoder": [True],
    "torchscript": [True],
}
TOKENIZER: dict[str, Sequence[Any]] = {
    "tokenizer_class": ["CLIPTokenizerFast"],
    "model_max_length": [40, 100, 10**30, None],
    "do_lower_case": [False],
    "truncation_side": ["left"],
    "padding_side": ["left"],
    "pad_token": ["!"],
    "bos_token": ["b</w>"],
    "eos_token": ["c</w>"],
    "unk_token": ["d</w>"],
    "errors": ["ignore"],
    "add_prefix_space": [True],
    "add_bos_token": [False],
    "clean_up_tokenization_spaces": [True],
    "model_input_names": [["input_ids"]],
    "split_special_tokens": [True],
    "additional_special_tokens": [["<new>"]],
}
INDEX: dict[str, Sequence[Any]] = {
    "force_zeros_for_empty_prompt": [False],
    "add_watermarker": [True, False],
    "feature_extractor": [["transformers", "CLIPImageProcessor"]],
    "image_encoder": [["transformers", "CLIPVisionModelWithProjection"]],
    "scheduler": [["diffusers", "DDIMScheduler"], ["diffusers", "HeunDiscreteScheduler"], [None, None]],
    "text_encoder": [[None, None], ["transformers", "CLIPTextModelWithProjection"]],
    "text_encoder_2": [[None, None], ["transformers", "CLIPTextModel"]],
    "tokenizer": [[None, None], ["transformers", "CLIPTokenizerFast"], ["transformers", "T5Tokenizer"]],
    "tokenizer_2": [[None, None], ["transformers", "CLIPTokenizerFast"]],
    "unet": [["diffusers", "UNet2DModel"], ["my_code", "UNet2DConditionModel"]],
    "vae": [["diffusers", "AutoencoderTiny"]],
    "_class_name": ["StableDiffusionXLImg2ImgPipeline", "StableDiffusion3PAGPipeline"],
}
SCHEDULERS = (
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DDPMScheduler", "LCMScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "TCDScheduler",
    "SASolverScheduler", "IPNDMScheduler", "DPMSolverSDEScheduler", "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler", "DDIMInverseScheduler", "RePaintScheduler", "UnCLIPScheduler",
)  # fmt: skip

SCHEDULER_KEYS: dict[str, Sequence[Any]] = {
    "algorithm_type": ["sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "noise_prediction"],
    "beta_end": [0.02],
    "beta_schedule": ["linear", "squaredcos_cap_v2"],
    "beta_start": [0.002],
    "clip_sample": [True, False],
    "clip_sample_range": [0.5],
    "corrector_order": [1],
    "disable_corrector": [[0]],
    "dynamic_thresholding_ratio": [0.5],
    "euler_at_final": [True],
    "final_sigmas_type": ["sigma_min"],
    "flow_shift": [3.0],
    "interpolation_type": ["log_linear"],
    "lambda_min_clipped": [-5.1],
    "lower_order_final": [True, False],
    "num_train_timesteps": [500, 1],
    "original_inference_steps": [20, 1],
    "predict_x0": [False],
    "prediction_type": ["v_prediction", "sample"],
    "predictor_order": [1],
    "rescale_betas_zero_snr": [True],
    "rho": [3.0],
    "sample_max_value": [2.0],
    "set_alpha_to_one": [False],
    "shift_terminal": [0.1],
    "sigma_data": [1.0],
    "sigma_max": [10.0],
    "sigma_min": [0.2],
    "sigma_schedule": ["exponential"],
    "skip_prk_steps": [True],
    "solver_order": [1, 3],
    "solver_type": ["heun", "bh1"],
    "steps_offset": [0, 5],
        "thresholding": [True],
    "time_shift_type": ["linear"],
    "timestep_scaling": [3.0],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "timestep_type": ["continuous"],
    "trained_betas": [[0.001, 0.003, 0.01, 0.02]],
    "use_beta_sigmas": [True],
    "use_dynamic_shifting": [True],
    "use_exponential_sigmas": [True],
    "use_flow_sigmas": [True],
    "use_karras_sigmas": [True],
    "use_lu_lambdas": [True],
    "variance_type": ["fixed_large", "learned_range"],
}  # fmt: skip
"""Keys of all schedulers' configurations and other values of each."""


@dataclass(frozen=True)
class Variant:
    """One change of one configuration.

    Attributes:
        component: a key of `FILES`.
        changes: key -> value; the first key is the one that is tried.
        base: scheduler class that is changed; empty for the model's own.
    """

    component: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""

    @property
    def key(self) -> str:
        return next(iter(self.changes), "_class_name")

    @property
    def class_name(self) -> bool:
        """True if a class is named, which a message calls by its name."""
        return self.key == "_class_name"

    def __str__(self) -> str:
        values = "-".join(f"{key}={json.dumps(value)}" for key, value in self.changes.items())
        return "-".join(part for part in (self.component, self.base, values) if part).replace(" ", "")[:90]


def variants() -> list[Variant]:
    """Every change of every component."""
    tables = {"unet": UNET, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": TEXT, "tokenizer": TOKENIZER}
    tables |= {"tokenizer_2": TOKENIZER, "index": INDEX}
    found = [one for component, table in tables.items() for one in _of_table(component, table)]
    return [*found, *_of_schedulers()]


def _of_table(component: str, table: Mapping[str, Sequence[Any]]) -> Iterator[Variant]:
    for key, values in table.items():
        for value in values:
            yield Variant(component, value if isinstance(value, dict) else {key: value})


def _of_schedulers() -> Iterator[Variant]:
    for name in SCHEDULERS:
        yield Variant("scheduler", {}, name)
        for key, usual in scheduler_defaults(name).items():
            for value in SCHEDULER_KEYS.get(key, []):
                if value != usual:
                    yield Variant("scheduler", {key: value}, name)


def scheduler_defaults(name: str) -> dict[str, Any]:
    """The keys of a scheduler's file, as SDXL has them."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    found = {key: one.default for key, one in parameters.items() if key not in ("self", "kwargs", "args")}
    usual = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "steps_offset": 1, "timestep_spacing": "trailing",
    }  # fmt: skip
    plain = {key: value for key, value in found.items() if value is not inspect.Parameter.empty}
    return {**plain, **{key: value for key, value in usual.items() if key in plain}}


NETWORKS: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
TEXT_ENCODERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def write_variant(folder: Path, variant: Variant) -> Path:
    """Write the tiny pipeline with one change.

    Networks get weights that fit it where such a network can be built; elsewhere the file alone says otherwise.
    """
    hub_layout(folder, half=False)
    path = folder / FILES[variant.component]
    config = json.loads(path.read_text())
    if variant.base:
        config = {**scheduler_defaults(variant.base), "_class_name": variant.base}
        change_json(folder / "model_index.json", scheduler=["diffusers", variant.base])
    config = {key: value for key, value in {**config, **variant.changes}.items() if value not in (math.inf, -math.inf)}
    with contextlib.suppress(Exception):
        _write_network(folder, variant.component, config)
    path.write_text(json.dumps(config))
    return folder


def _write_network(folder: Path, component: str, config: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    if component in NETWORKS:
        network = NETWORKS[component].from_config(dict(config)).eval()
        if component == "unet":
            amplify(network)
    elif component in TEXT_ENCODERS:
        stated = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype")}
        network = TEXT_ENCODERS[component](CLIPTextConfig(**stated)).eval().float()
    else:
        return
    network.save_pretrained(folder / "new")
    shutil.rmtree(folder / component)
    (folder / "new").rename(folder / component)


def own_pipeline(folder: Path, **parts: Any) -> Any:
    """Diffusers' own pipeline of a folder."""
    pipe = StableDiffusionXLPipeline.from_pretrained(
        str(folder),
        dtype=torch.float32,
        add_watermarker=False,
        local_files_only=True,
        feature_extractor=None,
        image_encoder=None,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own_pictures(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Images:
    """The pictures of the pipeline's own call, [B, H, W, 3] in 0 to 1."""
    images: Images = pipe(
        list(prompts), generator=[torch.Generator().manual_seed(seed) for seed in seeds], num_inference_steps=steps,
        guidance_scale=guidance, height=SIZE, width=SIZE, output_type="np",
    ).images  # fmt: skip
    return images

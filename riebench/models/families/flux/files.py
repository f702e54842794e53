"""FLUX's official models: presets, downloads, and relatives of another kind."""

from __future__ import annotations

from collections.abc import Callable

from riebench.models.families.single_file import CLIP_L, T5, WHOLE, FileLayout, Tensors
from riebench.models.families.sizes import HubFile, ModelDownload
from riebench.models.spec import DEFAULT_SCORER, Preset

PIPELINE = "FluxPipeline"

_SCHNELL, _SCHNELL_REVISION = "black-forest-labs/FLUX.1-schnell", "741f7c3ce8b383c54771c7003378a50191e9efe9"
_DEV, _DEV_REVISION = "black-forest-labs/FLUX.1-dev", "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"

PRESETS: tuple[Preset, ...] = (
    Preset("toy-dit", "asset:toy-dit", None, 4, 0.0, 64, "float32", "toy-clip", "asset:saes-dit",
           "Small FLUX on rendered scenes, trained for 4 steps without guidance.", family="flux",
           second_scorer="toy-clip-2"),
    Preset("flux-schnell", _SCHNELL, _SCHNELL_REVISION, 4, 0.0, 1024, "bfloat16", DEFAULT_SCORER, None,
           "1 to 4 steps without guidance; Apache 2.0; the hub asks for a login.", family="flux"),
    Preset("flux-dev", _DEV, _DEV_REVISION, 28, 3.5, 1024, "bfloat16", DEFAULT_SCORER, None,
           "28 steps, told the guidance scale 3.5; FLUX.1 [dev] Non-Commercial License; the hub asks for a login.",
           family="flux"),
)  # fmt: skip
"""The toy world's transformer and the two models that were published."""

REPOSITORIES = ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev")
"""Hub ids of the official models."""
_SMALL_FILES = 5_000_000
"""Bytes of configurations, tokenizers and the lists of shards, rounded."""


def _weights(first: int) -> tuple[HubFile, ...]:
    # The lists of shards count among the small files.
    part = "transformer/diffusion_pytorch_model-0000{}-of-00003.safetensors"
    return (
        HubFile("text_encoder/model.safetensors", 246_144_352),
        HubFile("text_encoder_2/model-00001-of-00002.safetensors", 4_994_582_224),
        HubFile("text_encoder_2/model-00002-of-00002.safetensors", 4_530_066_360),
        HubFile("text_encoder_2/model.safetensors.index.json", 0),
        HubFile(part.format(1), first),
        HubFile(part.format(2), 9_949_328_904),
        HubFile(part.format(3), 3_870_584_832),
        HubFile("transformer/diffusion_pytorch_model.safetensors.index.json", 0),
        HubFile("vae/diffusion_pytorch_model.safetensors", 167_666_902),
    )


DOWNLOADS: dict[str, ModelDownload] = {
    "flux-schnell": ModelDownload(
        _SCHNELL, _SCHNELL_REVISION, "Apache License 2.0", _weights(9_962_580_296), _weights(9_962_580_296),
        _SMALL_FILES,
    ),
    "flux-dev": ModelDownload(
        _DEV, _DEV_REVISION, "FLUX.1 [dev] Non-Commercial License", _weights(9_983_040_304), _weights(9_983_040_304),
        _SMALL_FILES,
    ),
}  # fmt: skip
"""Preset -> what it downloads; the only weights are bfloat16."""

OTHER_PIPELINES = {
    "FluxImg2ImgPipeline": "FLUX from pictures",
    "FluxInpaintPipeline": "an inpainting model",
    "FluxFillPipeline": "FLUX Fill, an inpainting model",
    "FluxControlPipeline": "FLUX with control pictures",
    "FluxKontextPipeline": "FLUX Kontext, an editor of pictures",
    "FluxPriorReduxPipeline": "FLUX Redux, a part of a model",
    "Flux2Pipeline": "FLUX.2",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES = {
    "black-forest-labs/FLUX.1-Fill": "FLUX Fill, an inpainting model",
    "black-forest-labs/FLUX.1-Kontext": "FLUX Kontext, an editor of pictures",
    "black-forest-labs/FLUX.1-Redux": "FLUX Redux, a part of a model",
    "black-forest-labs/FLUX.1-Canny": "FLUX with control pictures",
    "black-forest-labs/FLUX.1-Depth": "FLUX with control pictures",
    "black-forest-labs/FLUX.2": "FLUX.2",
}
"""Beginning of a hub id -> what lies there instead of a model of this family."""

PUBLISHED_WIDTH, UNIT_RATIO = 3072, 4
"""Width of a single block, and its feed-forward units in multiples of it, for which diffusers' converter is written."""


def convert(left: Tensors, published: Callable[[Tensors], Tensors]) -> Tensors:
    """Run diffusers' converter on a transformer of any width.

    It splits the first layer of a single block at the width of the published models. Where a file's is another one, it
    is given a layer without inputs in its place, and the layer is split here.

    Args:
        left: tensors in the names of the first publication; those that are read are taken out.
        published: the converter.
    """
    shares = 3 + UNIT_RATIO
    wide = shares * PUBLISHED_WIDTH
    own = {name: value for name, value in left.items() if ".linear1." in name and value.shape[0] != wide}
    left |= {name: value.new_empty((wide, 0)) for name, value in own.items()}
    found = published(left)
    for name, value in own.items():
        block, _, kind = name.removeprefix("single_blocks.").partition(".linear1.")
        width, rest = divmod(value.shape[0], shares)
        parts = value.split((width, width, width, UNIT_RATIO * width + rest))
        for layer, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True):
            found[f"single_transformer_blocks.{block}.{layer}.{kind}"] = part
    return found


LAYOUT = FileLayout(
    ("double_blocks.0.img_mod.lin.", "single_transformer_blocks.0.proj_mlp."),
    ("double_blocks.",),
    {**WHOLE, "text_encoder": (CLIP_L,), "text_encoder_2": (T5,)},
    convert=convert,
)
"""Single files hold the transformer alone, or all parts."""

REFUSED_METHODS = {
    "ledits_pp": "diffusers has LEDITS++ for Stable Diffusion and SDXL only",
    "p2p": "prompt-to-prompt exchanges cross-attention, and FLUX attends to picture and text together",
    "img2img": "diffusers' image-to-image pipeline of FLUX counts the steps of a strength otherwise than this method",
}
"""Method -> why it cannot work on this family."""

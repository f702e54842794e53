"""SDXL's official models, and the test of folders and files for being SDXL.

It holds their presets and downloads too.
"""

from __future__ import annotations

from riebench.errors import RiebenchError
from riebench.models.families.sizes import HubFile, ModelDownload, NamedAutoencoder
from riebench.models.spec import DEFAULT_SCORER, FP16_FIX, Preset

PIPELINE = "StableDiffusionXLPipeline"

_SAES = "hf://wendlerc/sdxl-turbo-saes#k=160"
_TURBO, _TURBO_REVISION = "stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304"
_BASE, _BASE_REVISION = "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"

PRESETS: tuple[Preset, ...] = (
    Preset("toy-turbo", "asset:toy-turbo", None, 4, 0.0, 64, "float32", "toy-clip", "asset:saes",
           "Small SDXL on rendered scenes, distilled: 1 to 4 steps without guidance.", second_scorer="toy-clip-2"),
    Preset("toy-base", "asset:toy-base", None, 20, 2.0, 64, "float32", "toy-clip", "asset:saes",
           "Small SDXL on rendered scenes, 20 steps with guidance; the SAEs are those of toy-turbo.",
           second_scorer="toy-clip-2"),
    Preset("toy-mixed", "asset:toy-mixed", None, 1, 0.0, 64, "float32", "toy-mixed-clip", "asset:saes-mixed",
           "Small SDXL on rendered scenes of more values, 1 step without guidance; its blocks share every attribute.",
           second_scorer="toy-mixed-clip-2", judge="judge-mixed"),
    Preset("sdxl-turbo", _TURBO, _TURBO_REVISION, 4, 0.0, 512, "float16", DEFAULT_SCORER, _SAES,
           "1 to 4 steps without guidance; Stability AI Community License."),
    Preset("sdxl-base", _BASE, _BASE_REVISION, 20, 5.0, 1024, "float16", DEFAULT_SCORER, _SAES,
           "20 steps with guidance 5; the SAEs were trained on one step of sdxl-turbo."),
)  # fmt: skip
"""The toy world's three models and the two that were published."""

_SMALL_FILES = 2 * (524_619 + 1_059_962) + 40_000
_HALF_SIZES = (246_144_152, 1_389_382_176, 5_135_149_760, 167_335_342)
_FULL_SIZES = (492_265_168, 2_778_702_264, 10_270_077_736, 334_643_268)


def _weights(kind: str, sizes: tuple[int, int, int, int], hashes: tuple[str, str, str, str]) -> tuple[HubFile, ...]:
    names = (
        f"text_encoder/model{kind}.safetensors",
        f"text_encoder_2/model{kind}.safetensors",
        f"unet/diffusion_pytorch_model{kind}.safetensors",
        f"vae/diffusion_pytorch_model{kind}.safetensors",
    )
    return tuple(HubFile(*entry) for entry in zip(names, sizes, hashes, strict=True))


DOWNLOADS: dict[str, ModelDownload] = {
    "sdxl-turbo": ModelDownload(
        _TURBO,
        _TURBO_REVISION,
        "Stability AI Community License: research and non-commercial use, commercial use under conditions",
        _weights(".fp16", _HALF_SIZES, ("660c6f5b", "ec310df2", "48fa4616", "02ee4bd1")),
        _weights("", _FULL_SIZES, ("778d02eb", "fa5b2e6f", "1968fc61", "71697109")),
        _SMALL_FILES,
    ),
    "sdxl-base": ModelDownload(
        _BASE,
        _BASE_REVISION,
        "CreativeML Open RAIL++-M",
        _weights(".fp16", _HALF_SIZES, ("660c6f5b", "ec310df2", "83e012a8", "bcb60880")),
        _weights("", _FULL_SIZES, ("5c3d6454", "3a6032f6", "357650fb", "1598f3d2")),
        _SMALL_FILES,
    ),
}
"""Preset -> what it downloads."""

AUTOENCODERS: dict[str, NamedAutoencoder] = {
    FP16_FIX: NamedAutoencoder(
        "madebyollin/sdxl-vae-fp16-fix",
        "207b116dae70ace3637169f1ddd2434b91b3a8cd",
        HubFile("diffusion_pytorch_model.safetensors", 334_643_238),
    )
}
"""Short name -> autoencoder: the one that stays finite in half precision (MIT)."""

OTHER_PIPELINES = {
    "StableDiffusionXLImg2ImgPipeline": "the refiner",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES = {
    "stabilityai/stable-diffusion-xl-refiner": "the SDXL refiner",
    "stabilityai/sdxl-vae": "an autoencoder alone, for --vae",
    "ByteDance/SDXL-Lightning": "U-Nets alone, for --unet",
}
"""Beginning of a hub id -> what lies there instead of a model of this family."""
SINGLE_FILE_MARKS = ("conditioner.",)
"""Beginnings of names of tensors that only single files of SDXL hold."""
_AUTOENCODER = "first_stage_model."
_SINGLE_FILE_PREFIXES = ("model.diffusion_model.", _AUTOENCODER, "conditioner.embedders.1.model.")
_SINGLE_FILE_OTHERS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "lora_": "a LoRA, no whole model; use it with --lora",
    ".lora": "a LoRA, no whole model; use it with --lora",
    "conditioner.embedders.0.model.": "the SDXL refiner",
}


def check_tensors(name: str, tensors: set[str], *, own_autoencoder: bool = True) -> None:
    """Refuse a single file that is no whole SDXL.

    Args:
        name: of the file.
        tensors: names of its tensors.
        own_autoencoder: whether its autoencoder is needed.

    Raises:
        RiebenchError: saying what it is instead, or what it lacks.
    """
    missing = [prefix for prefix in _SINGLE_FILE_PREFIXES if not any(one.startswith(prefix) for one in tensors)]
    if missing == [_AUTOENCODER]:
        if not own_autoencoder:
            return
        raise RiebenchError(
            f"{name} is an SDXL checkpoint without its autoencoder (no tensors {_AUTOENCODER}*); give one with "
            "--vae fp16-fix, a folder or a hub id"
        )
    if "conv_in.weight" in tensors or (
        missing and not any(one.startswith(("conditioner.", _AUTOENCODER)) for one in tensors)
        and f"{_SINGLE_FILE_PREFIXES[0]}input_blocks.0.0.weight" in tensors
        and not any(mark in one for one in tensors for mark in _SINGLE_FILE_OTHERS)
    ):  # fmt: skip
        raise RiebenchError(f"{name} is a U-Net alone; give its model as --model, and this file with --unet {name}")
    if missing:
        guess = next((words for mark, words in _SINGLE_FILE_OTHERS.items() if any(mark in one for one in tensors)), "")
        looks = f"; it looks like {guess}" if guess else ""
        raise RiebenchError(f"{name} is no SDXL checkpoint (no tensors {missing[0]}*){looks}")

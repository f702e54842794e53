"""Presets: models with the settings they are meant to be used with. Needs neither torch nor diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from riebench.models.spec import FP16_FIX, ModelOptions, ModelSpec

ASSET = "asset:"
"""What the source of a model that ships with the package starts with."""

DEFAULT_SCORER = "clip-l14"
"""The CLIP that scores pictures of weights that no preset names."""

SECOND_SCORER = "siglip2-b16"
"""The independent CLIP beside it: SDXL's own text encoder contains `DEFAULT_SCORER`."""


@dataclass(frozen=True)
class Preset:
    """A model with the settings it is meant to be used with.

    Attributes:
        name: what the user types.
        source: hub id, or "asset:NAME" for one that ships with the package.
        revision: commit of the hub; None for assets (their files are hashed).
        steps: denoising steps.
        guidance: classifier-free guidance scale; 0 means none.
        size: picture side in pixels.
        dtype: number format of U-Net and text encoders; the autoencoder always decodes in float32.
        scorer: the CLIP that scores its pictures.
        saes: where its SAEs are, as `riebench.saes.sources` reads it, or "asset:NAME".
        notes: what one should know before comparing its numbers.
    """

    name: str
    source: str
    revision: str | None
    steps: int
    guidance: float
    size: int
    dtype: str
    scorer: str
    saes: str | None
    notes: str

    @property
    def spec_source(self) -> str:
        """The source as a run's identity names it; shipped models are told apart by the hash of their files."""
        return f"riebench/{self.name}" if self.source.startswith(ASSET) else self.source


_SDXL_SAES = "hf://wendlerc/sdxl-turbo-saes#k=160"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("toy-turbo", "asset:toy-turbo", None, 4, 0.0, 64, "float32", "toy-clip", "asset:saes",
               "Small SDXL on rendered scenes, distilled: 1 to 4 steps without guidance."),
        Preset("toy-base", "asset:toy-base", None, 20, 2.0, 64, "float32", "toy-clip", "asset:saes",
               "Small SDXL on rendered scenes, 20 steps with guidance; the SAEs are those of toy-turbo."),
        Preset("sdxl-turbo", "stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304", 4, 0.0, 512,
               "float16", DEFAULT_SCORER, _SDXL_SAES,
               "1 to 4 steps without guidance; Stability AI Community License."),
        Preset("sdxl-base", "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b",
               20, 5.0, 1024, "float16", DEFAULT_SCORER, _SDXL_SAES,
               "20 steps with guidance 5; the SAEs were trained on one step of sdxl-turbo."),
    )
}  # fmt: skip
"""Preset name -> preset."""


def scorer_for(model: ModelSpec) -> str:
    """The CLIP that scores a model's pictures: that of the preset with the same weights, or `DEFAULT_SCORER`.

    The name is no guide: other steps or sizes than the preset's give the run another one.
    """
    scorers = {preset.spec_source: preset.scorer for preset in PRESETS.values()}
    return scorers.get(model.source, DEFAULT_SCORER)


def is_shipped(model: ModelSpec) -> bool:
    """Whether a model's weights are those of a preset that ships with the package."""
    return any(preset.spec_source == model.source for preset in PRESETS.values() if preset.source.startswith(ASSET))


def second_scorer_for(model: ModelSpec) -> str | None:
    """The CLIP that scores a model's pictures beside `scorer_for`; None for the toy world, which has one CLIP only."""
    return None if is_shipped(model) else SECOND_SCORER


GB = 10**9
CONFIG_PATTERNS = ("model_index.json", "scheduler/*", "tokenizer*/*", "*/config.json")
"""Everything of a model's folder that is small; single files need exactly this beside them."""
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
HALF_DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        path: inside the repository.
        size: bytes.
        sha256: its first 8 hexadecimal digits, or "" where they are not known.
    """

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class ModelNeeds:
    """What one model needs.

    Attributes:
        source: hub id.
        revision: commit.
        licence: in words.
        half: weight files for float16 and bfloat16.
        full: weight files for float32.
    """

    source: str
    revision: str
    licence: str
    half: tuple[HubFile, ...]
    full: tuple[HubFile, ...]

    def files(self, dtype: str) -> tuple[HubFile, ...]:
        """The weight files that a number format is loaded from."""
        return self.half if dtype in HALF_DTYPES else self.full

    def download_bytes(self, dtype: str) -> int:
        """Bytes of those files and of the small ones beside them."""
        return sum(file.size for file in self.files(dtype)) + _SMALL_FILES

    def download_command(self, dtype: str) -> str:
        """The line that fetches exactly what is needed into the hub's cache."""
        names = [file.path for file in self.files(dtype)]
        includes = " ".join(f"--include '{pattern}'" for pattern in (*CONFIG_PATTERNS, *names))
        return f"hf download {self.source} --revision {self.revision} {includes}"

    def weight_bytes(self, dtype: str, options: ModelOptions | None = None) -> int:
        """Device memory for weights alone; see `weight_bytes`."""
        return weight_bytes(PARAMETERS, dtype, options)


def weight_bytes(parameters: Mapping[str, int], dtype: str, options: ModelOptions | None = None) -> int:
    """Device memory for weights alone, with the autoencoder in float32 unless it is the one made for float16.

    Args:
        parameters: a name of `PARTS` -> number of parameters.
        dtype: number format of U-Net and text encoders.
        options: how the model is loaded.
    """
    chosen = options or ModelOptions()
    width = 2 if dtype in HALF_DTYPES else 4
    vae_width = width if chosen.vae == FP16_FIX else 4
    sizes = {part: parameters[part] * (vae_width if part == "vae" else width) for part in PARTS}
    if chosen.offload == "sequential":
        return LARGEST_LAYER * width
    return max(sizes.values()) if chosen.offload == "model" else sum(sizes.values())


PARAMETERS = {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
"""Part -> number of parameters."""
LARGEST_LAYER = 49_408 * 1280
"""Parameters of the largest single layer: the second text encoder's token table."""
_SMALL_FILES = 2 * (524_619 + 1_059_962) + 40_000


def _weights(kind: str, sizes: tuple[int, int, int, int], hashes: tuple[str, str, str, str]) -> tuple[HubFile, ...]:
    names = (
        f"text_encoder/model{kind}.safetensors",
        f"text_encoder_2/model{kind}.safetensors",
        f"unet/diffusion_pytorch_model{kind}.safetensors",
        f"vae/diffusion_pytorch_model{kind}.safetensors",
    )
    return tuple(HubFile(*entry) for entry in zip(names, sizes, hashes, strict=True))


_HALF_SIZES = (246_144_152, 1_389_382_176, 5_135_149_760, 167_335_342)
_FULL_SIZES = (492_265_168, 2_778_702_264, 10_270_077_736, 334_643_268)

NEEDS: dict[str, ModelNeeds] = {
    "sdxl-turbo": ModelNeeds(
        "stabilityai/sdxl-turbo",
        "71153311d3dbb46851df1931d3ca6e939de83304",
        "Stability AI Community License: research and non-commercial use, commercial use under conditions",
        _weights(".fp16", _HALF_SIZES, ("660c6f5b", "ec310df2", "48fa4616", "02ee4bd1")),
        _weights("", _FULL_SIZES, ("778d02eb", "fa5b2e6f", "1968fc61", "71697109")),
    ),
    "sdxl-base": ModelNeeds(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "462165984030d82259a11f4367a4eed129e94a7b",
        "CreativeML Open RAIL++-M",
        _weights(".fp16", _HALF_SIZES, ("660c6f5b", "ec310df2", "83e012a8", "bcb60880")),
        _weights("", _FULL_SIZES, ("5c3d6454", "3a6032f6", "357650fb", "1598f3d2")),
    ),
}
"""Preset -> what it needs."""

FP16_FIX_SOURCE = "madebyollin/sdxl-vae-fp16-fix"
FP16_FIX_REVISION = "207b116dae70ace3637169f1ddd2434b91b3a8cd"
FP16_FIX_FILE = HubFile("diffusion_pytorch_model.safetensors", 334_643_238)
"""The autoencoder that stays finite in half precision (MIT)."""

SCORER_BYTES = {"clip-l14": 1_710_000_000, "siglip2-b16": 1_500_000_000, "dfn-l14": 1_710_000_000}
"""Scorer -> bytes of its weights, rounded."""
SAE_BYTES_PER_BLOCK = 4 * (2 * 1280 * 5120 + 1280 + 5120)
"""Bytes of one SAE with 5120 features on 1280 channels, in float32."""

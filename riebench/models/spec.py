"""Options and identity of a model, without the model itself.

`ModelOptions` and `Preset` say how a model is loaded and placed, `ModelSpec` is its identity in a run, `model_label`
and `source_name` name results folders. The command line, the loader and code that only plans ahead share them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from riebench.errors import RiebenchError, near_match
from riebench.registry import DEFAULT_FAMILY
from riebench.tasks.schema import MAX_GUIDANCE, MAX_SIZE, MAX_STEPS, StoredModel

OFFLOADS = ("none", "model", "sequential")
"""Everything on the device; one part at a time there; one layer at a time there."""
ATTENTIONS = ("default", "sliced", "math", "efficient", "flash")
"""PyTorch's own choice; head by head; or one of PyTorch's kernels, whatever it would have chosen."""
FP16_FIX = "fp16-fix"
"""Short name of the autoencoder that stays finite in half precision."""
TILE = 512
"""Side in pixels of the tiles in which `--vae-tiling` decodes."""
Format = Literal["float32", "float16", "bfloat16"]
"""Name of a number format."""
FORMATS: tuple[str, ...] = get_args(Format)
"""Number formats of a model."""
HALF_DTYPES = ("float16", "bfloat16")
OTHER_FORMAT_NAMES = {
    "fp16": "float16", "f16": "float16", "half": "float16", "16": "float16", "fp32": "float32", "f32": "float32",
    "full": "float32", "float": "float32", "single": "float32", "32": "float32", "bf16": "bfloat16",
}  # fmt: skip
"""Another name of a number format, as other programs call it -> its name here."""
MAX_LORA_SCALE = 100.0
"""Largest size of a LoRA's scale; at more, what it adds is far larger than any trained change."""
ASSET = "asset:"
"""Prefix of the source of a model that ships with the package."""
FOLDER = "folder:"
"""Prefix of the source of a model whose folder lies on this machine."""
DEFAULT_SCORER = "clip-l14"
"""The CLIP that scores pictures of weights that no preset names."""
DEFAULT_JUDGE = "judge"
"""The shipped judge that reads pictures of weights whose preset names no other."""
SECOND_SCORER = "siglip2-b16"
"""The independent CLIP beside `DEFAULT_SCORER`, which SDXL's own text encoder contains."""


_PRESET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ModelOptions:
    """Options of `riebench run` for a model and its placement.

    Name, steps, guidance and number format are given apart from them.

    Attributes:
        size: picture side in pixels, instead of the preset's.
        config: for a single file, whose model describes it: a preset such as "sdxl-turbo", a folder or a hub id.
        vae: another autoencoder: "fp16-fix", a folder or a hub id. Part of a run's identity.
        unet: file of another denoiser. Part of a run's identity.
        loras: LoRA files to add to the weights, each with or without ":SCALE". Part of a run's identity.
        offload: a word of `OFFLOADS`.
        vae_slicing: decodes one picture at a time; above 512 px that is done anyway.
        vae_tiling: decodes in tiles of 512 px, which changes pictures slightly. Part of a run's identity.
        attention: a word of `ATTENTIONS`.
        channels_last: lays the denoiser's and the autoencoder's convolutions out channels last.

    Raises:
        RiebenchError: for an unknown word; names the nearest.
    """

    size: int | None = None
    config: str | None = None
    vae: str | None = None
    offload: str = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    attention: str = "default"
    channels_last: bool = False
    unet: str | None = None
    loras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for flag, word, known in (
            ("--offload", self.offload, OFFLOADS),
            ("--attention", self.attention, ATTENTIONS),
        ):
            if word not in known:
                raise RiebenchError(f"{flag} {word!r}{near_match(word, known)}")

        for text in self.loras:
            parse_lora(text)

    @property
    def placement(self) -> dict[str, str | bool]:
        """The options that move no number but floating-point noise.

        They go into the notes of a run, never into its identity.
        """
        named: dict[str, str | bool] = {
            "offload": self.offload, "attention": self.attention, "vae_slicing": self.vae_slicing,
            "channels_last": self.channels_last,
        }  # fmt: skip
        usual = ModelOptions()
        return {name: value for name, value in named.items() if value != getattr(usual, name)}


@dataclass(frozen=True)
class Preset:
    """A model with the options it is meant to be used with.

    Attributes:
        name: what the user types; letters, digits, ".", "_" and "-".
        source: hub id; "folder:PATH" for a folder in diffusers' layout on this machine, absolute or from "~"; or
            "asset:NAME" for one that ships with the package.
        revision: commit of the hub; None for the newest, and for folders and assets (their files are hashed).
        steps: denoising steps.
        guidance: classifier-free guidance scale; 0 means none.
        size: picture side in pixels.
        dtype: number format of denoiser and text encoders; the autoencoder always decodes in float32.
        scorer: the CLIP that scores its pictures.
        saes: where its SAEs are, as `riebench.saes.sources` reads it, or "asset:NAME".
        notes: what one should know before comparing its numbers.
        family: name of its model family.
        second_scorer: the independent CLIP that has to confirm the first; None for none.
        judge: the shipped judge that reads its pictures, if it is a model of a toy world.

    Raises:
        RiebenchError: for a name that cannot name a folder, a relative folder, a folder with a revision, or an unknown
            number format.
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
    family: str = DEFAULT_FAMILY
    second_scorer: str | None = SECOND_SCORER
    judge: str = DEFAULT_JUDGE

    def __post_init__(self) -> None:
        if not _PRESET_NAME.fullmatch(self.name):
            raise RiebenchError(f"preset name {self.name!r}: use letters, digits, '.', '_' and '-', a letter first")
        if self.dtype not in FORMATS:
            raise RiebenchError(f"preset {self.name}: unknown dtype {self.dtype!r}{near_match(self.dtype, FORMATS)}")
        if self.folder is not None and not self.folder.is_absolute():
            raise RiebenchError(
                f"preset {self.name}: {self.source!r} is relative; write {FOLDER}/PATH or {FOLDER}~/PATH"
            )
        if self.folder is not None and self.revision is not None:
            raise RiebenchError(f"preset {self.name}: a folder has no revision; its files are hashed instead")

    @property
    def folder(self) -> Path | None:
        """The folder that the source names; None for other sources.

        It need not exist.
        """
        return Path(self.source.removeprefix(FOLDER)).expanduser() if self.source.startswith(FOLDER) else None

    @property
    def on_hub(self) -> bool:
        """True if the source is a hub id."""
        return not self.source.startswith((ASSET, FOLDER))

    @property
    def spec_source(self) -> str:
        """The source in a run's identity.

        Shipped models and folders differ by the hash of their files; a folder's path is no part of it.
        """
        if self.folder is not None:
            return self.folder.name
        return f"riebench/{self.name}" if self.source.startswith(ASSET) else self.source


class ModelSpec(StoredModel):
    """The generating model, as far as it moves pictures."""

    name: str
    """Preset name, or the name of the folder, file or hub id."""
    source: str
    """Its source: hub id, or a packaged asset's name; never an absolute path."""
    revision: str | None
    """Commit of the hub, or the hash of the local files."""
    steps: int = Field(ge=1, le=MAX_STEPS)
    """Denoising steps."""
    guidance: float = Field(ge=0, le=MAX_GUIDANCE)
    """Classifier-free guidance scale; 0 and 1 mean none."""
    size: int = Field(ge=8, le=MAX_SIZE)
    """Picture side in pixels."""
    dtype: str
    """Number format of the denoiser."""
    vae: str | None = None
    """The autoencoder put in the place of the model's own, with its revision or hash; None for the model's own."""
    vae_tiling: bool = False
    """True if pictures are decoded in tiles, whose seams change them slightly."""
    fixed_noise: bool = False
    """True if a seed is the same noise for all examples, as in published scripts; otherwise each has its own noise."""
    unet: str | None = None
    """The denoiser put in the place of the model's own, as its file's name and hash; None for the model's own."""
    loras: tuple[str, ...] = ()
    """LoRAs added to the weights, in order, each as its file's name, hash and scale."""

    @classmethod
    def checked(cls, **fields: Any) -> ModelSpec:
        """Return the spec of what a user or a model's files state.

        Raises:
            RiebenchError: if a number is out of its range, naming the option that sets it.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise RiebenchError(f"--{first['loc'][0]} {first['input']!s:.40}: {first['msg'].lower()}") from error

    @property
    def identity(self) -> dict[str, Any]:
        """All fields that move pictures: two names for the same weights are one model.

        What was added after runs had been stored is left out where it is as it was then.
        """
        usual = {name for name in ("vae", "vae_tiling", "fixed_noise", "unet", "loras") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude={"name", *usual})

    def with_fixed_noise(self, label: str) -> ModelSpec:
        """Return the spec of runs in which a seed is the same noise for all examples.

        Args:
            label: ends the name, so that such pictures get a folder of their own; empty changes nothing.
        """
        if not label:
            return self
        return self.model_copy(update={"name": f"{self.name}-{label}", "fixed_noise": True})


def check_format(name: str) -> None:
    """Refuse a word that is no number format.

    Raises:
        RiebenchError: naming the one that was probably meant.
    """
    if name not in FORMATS:
        meant = OTHER_FORMAT_NAMES.get(name.lower().removeprefix("torch."))
        hint = f" (did you mean {meant!r}?)" if meant else near_match(name, FORMATS)
        raise RiebenchError(f"--dtype {name!r}{hint}")


def parse_lora(text: str) -> tuple[str, float]:
    """Split "FILE[:SCALE]" into the file's path and the scale, 1 if none is given.

    Raises:
        RiebenchError: if the scale is no number, not finite or 0.
    """
    file, _, end = text.rpartition(":")
    if not file or Path(text).expanduser().is_file():
        return text, 1.0
    try:
        scale = float(end)
    except ValueError as error:
        raise RiebenchError(f"--lora {text!r}: write FILE or FILE:SCALE, such as style.safetensors:0.8") from error
    if not 0 < abs(scale) <= MAX_LORA_SCALE:
        raise RiebenchError(
            f"--lora {text!r}: the scale is a number other than 0, at most {MAX_LORA_SCALE:g} in size; leave the LoRA "
            "out to be without it"
        )
    return file, scale


def model_label(
    name: str, *, steps: int | None = None, guidance: float | None = None, size: int | None = None,
    dtype: str | None = None, vae: str | None = None, vae_tiling: bool = False, unet: str | None = None,
    loras: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """Return the name of a model's results folder.

    Other options give other pictures and get a folder of their own.

    Args:
        name: the preset's name or `source_name`.
        steps: if not the model's own.
        guidance: likewise.
        size: likewise, in pixels.
        dtype: likewise.
        vae: the autoencoder put in the place of the model's own, as the user named it.
        vae_tiling: whether pictures are decoded in tiles.
        unet: the denoiser put in the place of the model's own, as the user named it.
        loras: the LoRAs added to it, as the user named them.
    """
    changes = {"steps": steps, "guidance": guidance, "px": size}
    parts = [f"{word}{value:g}" for word, value in changes.items() if value is not None]
    exchanged = [f"unet-{source_name(unet)}"] if unet else []
    exchanged += [
        f"lora-{source_name(file)}{'' if scale == 1 else f'x{scale:g}'}" for file, scale in map(parse_lora, loras)
    ]
    exchanged += [f"vae-{source_name(vae)}"] if vae else []
    return "-".join([name, *parts, *([dtype] if dtype else []), *exchanged, *(["tiled"] if vae_tiling else [])])


def source_name(name_or_path: str) -> str:
    """Return the name of a folder, file or hub id.

    It is the last part, without file ending and revision.
    """
    path = Path(name_or_path).expanduser()
    # "." and ".." have a name only once resolved; dots inside a folder's name do not begin an ending.
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else Path(name_or_path.split("@")[0]).name

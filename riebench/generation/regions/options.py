"""The option `--regions`: a provider and its options, checked.

They are brought to one form for a run's identity. Needs no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from riebench.errors import RiebenchError, near_match
from riebench.registry import REGIONS
from riebench.tasks.schema import MAX_SIZE, StoredModel
from riebench.utils.files import file_sha256

DEFAULT_REGIONS = "attention"
"""Words are looked for in the model's own text attention."""

GROUNDING_DINO = "IDEA-Research/grounding-dino-tiny@a2bb814dd30d776dcf7e30523b00659f4f141c71"
SAM = "facebook/sam2.1-hiera-large@665f8e2ad61cf5f53d65644ff27c8ee525124610"
CLIPSEG = "CIDAS/clipseg-rd64-refined"

MEGABYTES: dict[str, int] = {
    "IDEA-Research/grounding-dino-tiny": 689,
    "IDEA-Research/grounding-dino-base": 933,
    "facebook/sam2.1-hiera-tiny": 156,
    "facebook/sam2.1-hiera-small": 184,
    "facebook/sam2.1-hiera-base-plus": 323,
    "facebook/sam2.1-hiera-large": 898,
    "CIDAS/clipseg-rd64-refined": 603,
}
"""Hub id of a region model -> size of its weights in float32."""

MODEL_FILES = (".json", ".txt", ".model", ".safetensors", ".bin")
"""Endings of the files that make a region model."""


class RegionOptions(StoredModel):
    """Options of a provider without any."""

    @property
    def models(self) -> dict[str, str]:
        """Places of the models that have to be loaded, by option.

        A place is a folder, or a hub id with or without "@REVISION".
        """
        return {}

    @property
    def text_models(self) -> tuple[str, ...]:
        """Options of the models that read text."""
        return ()

    def check_side(self, side: int) -> None:
        """Refuse a picture side in pixels that the options do not fit.

        Raises:
            RiebenchError: if they do not.
        """


class GroundedSamOptions(RegionOptions):
    """Options of `grounded-sam`, by default those of the published scripts.

    Their text threshold of 0.25 names boxes on pictures and moves no mask, so that `text` is 0 here.
    """

    detector: str = GROUNDING_DINO
    """Grounding DINO."""
    segmenter: str = SAM
    """SAM 2 or 2.1."""
    box: float = Field(default=0.25, ge=0, lt=1)
    """A box counts if its score is above this."""
    text: float = Field(default=0.0, ge=0, lt=1)
    """A box counts if a word of the phrase scores above this."""
    widen: int = Field(default=31, ge=1, le=MAX_SIZE)
    """Side in pixels of the square that each pixel of a mask grows to; 1 leaves masks as they are."""
    cell: int = Field(default=32, ge=0, le=MAX_SIZE)
    """Side in pixels of the cells that each mask is reduced to; 0 keeps masks sharp."""

    @field_validator("widen")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} is even; a pixel is the middle of its square")
        return value

    @property
    def models(self) -> dict[str, str]:
        """The detector and the segmenter."""
        return {"detector": self.detector, "segmenter": self.segmenter}

    @property
    def text_models(self) -> tuple[str, ...]:
        """The detector."""
        return ("detector",)

    def check_side(self, side: int) -> None:
        """Refuse a picture side that cells do not divide."""
        if self.cell and side % self.cell:
            raise RiebenchError(
                f"--regions grounded-sam: cells of {self.cell} pixels do not divide a picture side of {side}; "
                "give another cell=, or cell=0 for sharp masks"
            )


class ClipSegOptions(RegionOptions):
    """Options of `clipseg`."""

    model: str = CLIPSEG
    """CLIPSeg."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """A pixel belongs to the words if its probability is above this."""

    @property
    def models(self) -> dict[str, str]:
        """The only model."""
        return {"model": self.model}

    @property
    def text_models(self) -> tuple[str, ...]:
        """The only model."""
        return ("model",)


OPTIONS: dict[str, type[RegionOptions]] = {"grounded-sam": GroundedSamOptions, "clipseg": ClipSegOptions}
"""Provider -> its options; a provider that is not here has none."""


@dataclass(frozen=True)
class RegionSpec:
    """A provider with its options.

    Attributes:
        provider: a name in `REGIONS`.
        options: checked.
    """

    provider: str
    options: RegionOptions

    @property
    def models(self) -> dict[str, str]:
        """Places of the models that have to be loaded, by option."""
        return self.options.models

    @cached_property
    def identity(self) -> str:
        """The provider with every option, as one string for a run's identity.

        Folders stand as the hash of their files.

        A provider of an installed package stands there with the package's name and version.

        Raises:
            RiebenchError: if a folder is no model folder.
        """
        values = {name: str(value) for name, value in self.options.model_dump().items()}
        for option, folder in self.folders().items():
            values[option] = f"sha256-{model_folder_sha256(folder)[:16]}"
        options = ",".join(f"{name}={values[name]}" for name in sorted(values))
        package = REGIONS.package(self.provider)
        provider = self.provider if package is None else f"{self.provider}@{package.name}-{package.version}"
        return f"{provider}:{options}" if options else provider

    def folders(self) -> dict[str, Path]:
        """Return the folders of the models that lie in one, by option.

        Models of the hub are left out.

        Raises:
            RiebenchError: if one of them lacks files.
        """
        places = {option: as_folder(place) for option, place in self.models.items()}
        found = {option: folder for option, folder in places.items() if folder is not None}
        for option, folder in found.items():
            self.check_folder(option, folder)
        return found

    def check_folder(self, option: str, folder: Path) -> None:
        """Refuse a folder that is no model for an option.

        See `check_model_folder`.
        """
        named = f"--regions {self.provider}:{option}="
        check_model_folder(folder, named, reads_text=option in self.options.text_models)


def parse_regions(text: str) -> RegionSpec:
    """Parse `NAME` or `NAME:key=value,...`.

    Args:
        text: for instance "attention", or "grounded-sam:detector=FOLDER,segmenter=FOLDER,box=0.3".

    Raises:
        RiebenchError: for an unknown provider, an unknown or repeated option, or a value that does not fit.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if name not in REGIONS:
        raise RiebenchError(f"--regions: unknown region provider {name!r}{near_match(name, REGIONS.names())}")
    kind = options_of(name)
    stated = _stated(name, rest, kind) if colon else {}
    try:
        options = kind.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise RiebenchError(f"--regions {name}: {first['loc'][0]}={first['input']}: {reason}") from error
    for option, place in options.models.items():
        _check_place(f"--regions {name}: {option}", place)
    return RegionSpec(name, options)


def options_of(provider: str) -> type[RegionOptions]:
    """Return the class of a provider's options.

    A provider of an installed package has it as its attribute `options`.

    Raises:
        RiebenchError: if the package cannot be imported, or its options are of another kind.
    """
    package = REGIONS.package(provider)
    if package is None:
        return OPTIONS.get(provider, RegionOptions)
    found = getattr(REGIONS.get(provider), "options", RegionOptions)
    if not (isinstance(found, type) and issubclass(found, RegionOptions)):
        raise RiebenchError(f"--regions {provider}: the options of the package {package} are no RegionOptions")
    return found


def _stated(name: str, rest: str, kind: type[RegionOptions]) -> Mapping[str, Any]:
    known = kind.model_fields
    if not known:
        raise RiebenchError(f"--regions {name} has no options; leave out {':' + rest!r}")
    stated: dict[str, str] = {}
    for part in rest.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise RiebenchError(f"--regions {name}: {part.strip()!r} is no key=value")
        if key not in known:
            raise RiebenchError(f"--regions {name}: unknown option {key!r}{near_match(key, known)}")
        if key in stated:
            raise RiebenchError(f"--regions {name}: {key} is given twice")
        stated[key] = value
    return stated


def as_folder(place: str) -> Path | None:
    """Return the folder that a model's place names, or None if it is a hub id."""
    try:
        path = Path(place).expanduser()
        return path if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long for a path, or a home folder that does not exist
        return None


def _check_place(what: str, place: str) -> None:
    if as_folder(place) is None and not re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]+(@[\w.-]+)?", place):
        raise RiebenchError(f"{what}: {place!r} is neither a folder here nor a hub id OWNER/NAME[@REVISION]")


def check_model_folder(folder: Path, option: str, *, reads_text: bool = False) -> None:
    """Refuse a folder that lacks a file of a region model.

    The files are expected in the hub's layout.

    Args:
        folder: where the files lie.
        option: what it is for, as the message names it.
        reads_text: whether the model needs a tokenizer; transformers makes an empty one where it finds none.

    Raises:
        RiebenchError: naming what is missing.
    """
    wanted = {
        "config.json": ("config.json",),
        "preprocessor_config.json": ("preprocessor_config.json", "processor_config.json"),
        "weights (model.safetensors)": ("*.safetensors", "pytorch_model*.bin"),
    }
    if reads_text:
        wanted["tokenizer.json"] = ("tokenizer.json", "vocab.txt", "vocab.json")
    missing = [name for name, patterns in wanted.items() if not any(any(folder.glob(p)) for p in patterns)]
    if missing:
        raise RiebenchError(
            f"{option}{folder}: {' and '.join(missing)} missing; fetch the whole model with "
            "`hf download OWNER/NAME --local-dir FOLDER`"
        )
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise RiebenchError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` in {folder}")


def model_folder_sha256(folder: Path) -> str:
    """Compute one hash over a model folder's files, by name and content."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in MODEL_FILES and path.is_file()]
    lines = [f"{path.name} {file_sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()

"""The files of a model, checked before anything large is read: architecture, precision, completeness, intactness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.presets import CONFIG_PATTERNS, HALF_DTYPES, PARTS
from riebench.models.shapes import tensor_shapes
from riebench.utils.files import file_sha256
from riebench.utils.hub import fetch

INDEX = "model_index.json"
SDXL = "StableDiffusionXLPipeline"
FP16 = "fp16"
"""How hubs mark the half-precision copy of a file."""
HALF_PATTERNS = tuple(
    f"{part}/*{ending}" for part in PARTS
    for ending in (".fp16.safetensors", ".fp16-*.safetensors", ".index.fp16.json")
)  # fmt: skip
FULL_PATTERNS = tuple(f"{part}/*{ending}" for part in PARTS for ending in (".safetensors", ".safetensors.index.json"))
NOT_FULL = ("*.fp16.*", "*.fp16-*", "*.non_ema*", "*.bf16.*")
_OTHERS = {
    "StableDiffusionPipeline": "Stable Diffusion 1 or 2",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "StableDiffusionXLImg2ImgPipeline": "the refiner",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
    "FluxPipeline": "Flux",
}
_SINGLE_FILE_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "conditioner.embedders.1.model.")
_SINGLE_FILE_OTHERS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "cond_stage_model.": "Stable Diffusion 1 or 2",
    "lora_": "a LoRA, no whole model",
    "conditioner.embedders.0.model.": "the SDXL refiner",
}


def hub_folder(repo: str, revision: str | None, dtype: str, *, offline: bool) -> Path:
    """A hub model's files for one number format, and no others, as a local folder.

    Half formats take the half-precision files; a repository that has none gives its only ones.

    Raises:
        RiebenchError: if they cannot be had.
    """
    named = (*CONFIG_PATTERNS, *(HALF_PATTERNS if dtype in HALF_DTYPES else FULL_PATTERNS))
    folder = fetch(repo, revision, patterns=CONFIG_PATTERNS, named=named, offline=offline)
    if not (folder / INDEX).is_file():
        raise RiebenchError(f"{repo} holds no diffusers model ({INDEX} is missing); for a single file, download it")
    check_architecture(folder, repo)
    if dtype in HALF_DTYPES:
        fetch(repo, folder.name, patterns=HALF_PATTERNS, offline=offline)
        if _parts_without(folder, half=True) == []:
            return folder
    fetch(repo, folder.name, patterns=FULL_PATTERNS, ignore=NOT_FULL, offline=offline)
    return folder


def variant(folder: Path, dtype: str) -> str | None:
    """Which of a folder's weight files a number format is read from: "fp16", or None for the unmarked ones.

    Where only one kind is complete, it serves all formats.

    Raises:
        RiebenchError: if neither kind is complete; names what is missing.
    """
    missing = {half: _parts_without(folder, half=half) for half in (True, False)}
    for half in (True, False) if dtype in HALF_DTYPES else (False, True):
        if not missing[half]:
            return FP16 if half else None
    lacking = min(missing.values(), key=len)
    raise RiebenchError(
        f"{_name(folder)} lacks weights: no .safetensors file in {', '.join(f'{part}/' for part in lacking)}; "
        "download the folder again, in half precision (*.fp16.safetensors) or whole"
    )


def _parts_without(folder: Path, *, half: bool) -> list[str]:
    return [part for part in PARTS if not weight_files(folder / part, FP16 if half else None)]


def weight_files(folder: Path, which: str | None) -> list[Path]:
    """The safetensors files of one part in one precision."""
    files = sorted(folder.glob("*.safetensors"))
    marked = [path for path in files if f".{FP16}." in path.name or f".{FP16}-" in path.name]
    if which == FP16:
        return marked
    return [path for path in files if path not in marked and ".non_ema" not in path.name and ".bf16" not in path.name]


def check_folder(folder: Path, which: str | None, shown: str) -> None:
    """Refuses a folder that would fail, or silently load something else.

    Args:
        folder: in diffusers' layout.
        which: see `variant`.
        shown: what the user called it.

    Raises:
        RiebenchError: in one line.
    """
    check_architecture(folder, shown)
    for part in PARTS:
        for file in weight_files(folder / part, which):
            tensor_names(file)
    if which is not None:
        for part in PARTS:
            odd = [path.name for path in (folder / part).iterdir() if path.is_file() and "." not in path.name]
            if odd:
                # diffusers parts the names of all files there at the dot when it looks for a precision.
                raise RiebenchError(f"{shown}: {part}/{odd[0]} has no ending, which diffusers cannot read; move it out")


def check_architecture(folder: Path, shown: str) -> None:
    """Refuses every model that is no SDXL.

    Raises:
        RiebenchError: saying what it is instead.
    """
    found = str(_json(folder / INDEX).get("_class_name", "no pipeline"))
    if found != SDXL:
        words = f" ({_OTHERS[found]})" if found in _OTHERS else ""
        raise RiebenchError(f"{shown} is a {found}{words}; riebench edits SDXL ({SDXL}) and models trained from it")
    config = _json(folder / "unet" / "config.json")
    channels = config.get("in_channels")
    if config.get("addition_embed_type") != "text_time" or channels != 4:
        raise RiebenchError(
            f"{shown} has a U-Net of another kind (addition_embed_type {config.get('addition_embed_type')!r}, "
            f"in_channels {channels}); SDXL has 'text_time' and 4"
        )


def check_single_file(file: Path) -> None:
    """Refuses a single file that is no whole SDXL.

    Raises:
        RiebenchError: saying what it is instead.
    """
    if file.suffix != ".safetensors":
        raise RiebenchError(
            f"{file.name}: only .safetensors files are read, since others can run code when they are opened; convert it"
        )
    names = tensor_names(file)
    missing = [prefix for prefix in _SINGLE_FILE_PREFIXES if not any(name.startswith(prefix) for name in names)]
    if missing:
        guess = next((words for mark, words in _SINGLE_FILE_OTHERS.items() if any(mark in name for name in names)), "")
        looks = f"; it looks like {guess}" if guess else ""
        raise RiebenchError(f"{file.name} is no SDXL checkpoint (no tensors {missing[0]}*){looks}")


def tensor_names(file: Path) -> set[str]:
    """Names of the tensors in a safetensors file; reads its header only.

    Raises:
        RiebenchError: if it is a Git LFS pointer, cut off or no such file.
    """
    from safetensors import SafetensorError, safe_open

    names = set(tensor_shapes(file))
    try:
        # Opening compares the file's length with what its header promises.
        with safe_open(file, "pt"):
            return names
    except (SafetensorError, OSError) as error:
        raise RiebenchError(f"{file} is damaged or cut off ({error}); download it again") from error


def folder_sha256(folder: Path, which: str | None = None, *, weights: bool = True) -> str:
    """One hash over a model folder's weights and configurations, by relative name and content.

    Args:
        folder: in diffusers' layout.
        which: the precision that is loaded (see `variant`); files of the other do not count.
        weights: False leaves all weights out.
    """
    unused = {path for part in PARTS for path in weight_files(folder / part, None if which == FP16 else FP16)}
    suffixes = (".safetensors", ".json", ".txt") if weights else (".json", ".txt")
    return _hash(folder, (path for path in folder.rglob("*") if path.suffix in suffixes and path not in unused))


def _hash(folder: Path, files: Iterable[Path]) -> str:
    lines = [f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RiebenchError(f"{path} is missing; download the folder again") from error
    except ValueError as error:
        raise RiebenchError(f"{path} is no JSON ({error}); download it again") from error
    return found if isinstance(found, dict) else {}


def _name(folder: Path) -> str:
    # A hub's snapshot is called by its commit, which says little.
    return str(folder.parent.parent.name if folder.parent.name == "snapshots" else folder)

"""The files of a model, checked before anything large is read.

Architecture, precision, completeness and damage are checked here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.base import Family, families, family_of_repository
from riebench.models.families.sizes import CONFIG_PATTERNS
from riebench.models.presets import PRESETS, described_by
from riebench.models.spec import HALF_DTYPES, ModelOptions, Preset, parse_lora
from riebench.registry import families_left_out
from riebench.utils.files import file_sha256
from riebench.utils.hub import fetch, split_revision
from riebench.utils.weights import WIDE, check_wide, tensor_names, tensor_shapes

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
"""Path of the scheduler's configuration inside a model folder."""
AUTOENCODER_FILE = "diffusion_pytorch_model.safetensors"
FP16 = "fp16"
"""Mark of the half-precision copy of a file on hubs."""
NOT_FULL = ("*.fp16.*", "*.fp16-*", "*.non_ema*", "*.bf16.*")
"""Patterns of weight files that are not the full-precision ones."""


def model_folder(preset: Preset) -> Path:
    """Return the folder of a preset whose source is one.

    Raises:
        RiebenchError: if there is no model in it.
    """
    folder = preset.folder
    if folder is None or not (folder / INDEX).is_file():
        raise RiebenchError(f"preset {preset.name}: {folder} is no model folder: {INDEX} is missing")
    return folder


def weight_patterns(parts: Iterable[str], *, half: bool) -> tuple[str, ...]:
    """Return the patterns of the weight files of some parts of a model.

    `half` asks for the half-precision files, otherwise the patterns are those of the other files.
    """
    endings = (".fp16.safetensors", ".fp16-*.safetensors", ".index.fp16.json")
    full = (".safetensors", ".safetensors.index.json")
    return tuple(f"{part}/*{ending}" for part in parts for ending in (endings if half else full))


def hub_folder(repo: str, revision: str | None, dtype: str, *, offline: bool) -> Path:
    """Return a local folder with a hub model's files for one number format.

    Files of other number formats are not fetched.

    Half formats take the half-precision files; a repository that has none gives its only ones.

    Raises:
        RiebenchError: if they cannot be had.
    """
    usual = family_of_repository(repo)
    refuse_known(repo)
    half = dtype in HALF_DTYPES and usual.half_files
    named = (*CONFIG_PATTERNS, *weight_patterns(usual.parts, half=half))
    folder = fetch(repo, revision, patterns=CONFIG_PATTERNS, hint_patterns=named, offline=offline)
    if not (folder / INDEX).is_file():
        raise RiebenchError(f"{repo} holds no diffusers model ({INDEX} is missing); for a single file, download it")
    family = check_architecture(folder, repo)
    _fetch_weights(repo, folder, family, family.parts, dtype, offline=offline)
    return folder


def _fetch_weights(
    repo: str, folder: Path, family: Family, parts: Sequence[str], dtype: str, *, offline: bool
) -> None:  # fmt: skip
    """Fetch the weights of some parts of a hub model whose configurations are here."""
    if dtype in HALF_DTYPES and family.half_files:
        fetch(repo, folder.name, patterns=weight_patterns(parts, half=True), offline=offline)
        if _missing_parts(folder, parts, half=True) == []:
            return
    fetch(repo, folder.name, patterns=weight_patterns(parts, half=False), ignore=NOT_FULL, offline=offline)


def config_folder(config: str, family: Family, parts: Sequence[str], dtype: str, *, offline: bool) -> Path:
    """Return the folder that `--single-file-config` names.

    Args:
        config: a preset, a folder or a hub id with or without "@REVISION".
        family: of the single file.
        parts: what the file does not hold, so that its weights are needed, too.
        dtype: number format of the model.
        offline: uses only what is on this machine.

    Raises:
        RiebenchError: if there is none, or weights are missing.
    """
    folder = Path(config).expanduser()
    if not folder.is_dir():
        preset = PRESETS.get(config)
        if not preset.on_hub if preset else config.count("/") != 1:
            raise RiebenchError(
                f"--single-file-config {config!r}: give {', '.join(described_by())}, a folder or a hub id OWNER/NAME"
            )
        source, revision = (preset.source, preset.revision) if preset else split_revision(config)
        half = dtype in HALF_DTYPES and family.half_files
        hint = (*CONFIG_PATTERNS, *weight_patterns(parts, half=half))
        folder = fetch(source, revision, patterns=CONFIG_PATTERNS, hint_patterns=hint, offline=offline)
        if parts and (folder / INDEX).is_file():
            _fetch_weights(source, folder, family, parts, dtype, offline=offline)
    if not (folder / INDEX).is_file():
        raise RiebenchError(f"--single-file-config {config}: {folder} is no model folder: {INDEX} is missing")
    if parts:
        variant(folder, dtype, parts)
    return folder


def other_parts(family: Family, file: Path, options: ModelOptions) -> tuple[str, ...]:
    """Return the parts of a model that its single file does not hold.

    Those that an option brings are left out.

    Raises:
        RiebenchError: if the file is damaged.
    """
    held = family.file_parts(tensor_names(file))
    brought = {"vae"} if options.vae is not None else set()
    return () if held is None else tuple(part for part in family.parts if part not in {*held, *brought})


def refuse_known(repo: str) -> None:
    """Refuse a well-known repository of another kind by its name alone.

    Raises:
        RiebenchError: saying what it is.
    """
    known = families()
    for family in known:
        for start, words in family.other_repositories.items():
            if repo.lower().startswith(start.lower()):
                edited = " or ".join(f"{one.title} ({one.pipeline_class})" for one in known)
                raise RiebenchError(f"{repo} is {words}; riebench edits {edited} and models trained from it")


def variant(folder: Path, dtype: str, parts: Sequence[str]) -> str | None:
    """Return the kind of weight files that a number format is read from.

    "fp16" stands for the half-precision files, None for the unmarked ones.

    Where only one kind is complete, it serves all formats.

    Args:
        folder: in diffusers' layout.
        dtype: the number format.
        parts: its folders with weights.

    Raises:
        RiebenchError: if neither kind is complete; names what is missing.
    """
    missing = {half: _missing_parts(folder, parts, half=half) for half in (True, False)}
    for half in (True, False) if dtype in HALF_DTYPES else (False, True):
        if not missing[half]:
            return FP16 if half else None
    lacking = min(missing.values(), key=len)
    raise RiebenchError(
        f"{_name(folder)} lacks weights: no .safetensors file in {', '.join(f'{part}/' for part in lacking)}; "
        "download the folder again, in half precision (*.fp16.safetensors) or whole"
    )


def _missing_parts(folder: Path, parts: Sequence[str], *, half: bool) -> list[str]:
    return [part for part in parts if not weight_files(folder / part, FP16 if half else None)]


def weight_files(folder: Path, which: str | None) -> list[Path]:
    """Return the safetensors files of one part in one precision."""
    files = sorted(folder.glob("*.safetensors"))
    marked = [path for path in files if f".{FP16}." in path.name or f".{FP16}-" in path.name]
    if which == FP16:
        return marked
    return [path for path in files if path not in marked and ".non_ema" not in path.name and ".bf16" not in path.name]


def check_folder(folder: Path, which: str | None, shown: str) -> Family:
    """Refuse a folder that would fail, or silently load something else.

    Args:
        folder: in diffusers' layout.
        which: see `variant`.
        shown: what the user called it.

    Returns:
        Its model family.

    Raises:
        RiebenchError: in one line.
    """
    family = check_architecture(folder, shown)
    for part in family.parts:
        files = weight_files(folder / part, which)
        for file in files:
            tensor_names(file)
        family.check_weights(folder, part, files, shown)
    if which is not None:
        for part in family.parts:
            odd = [path.name for path in (folder / part).iterdir() if path.is_file() and "." not in path.name]
            if odd:
                # diffusers splits the names of all files there at the dot when it looks for a precision.
                raise RiebenchError(f"{shown}: {part}/{odd[0]} has no ending, which diffusers cannot read; move it out")
    return family


def check_schedule(folder: Path, shown: str, steps: int | None) -> None:
    """Refuse a model folder whose schedule cannot be followed.

    Args:
        folder: in diffusers' layout; its weights need not be there.
        shown: what the user called it.
        steps: denoising steps; None for the usual ones of its schedule.

    Raises:
        RiebenchError: in one line, naming the scheduler.
    """
    family = check_architecture(folder, shown)
    usual = steps or family.usual_sampling(_json(folder / SCHEDULER))[0]
    family.check_schedule(folder, usual, shown)


def check_single_config(family: Family, file: Path, folder: Path, config: str, steps: int | None) -> Family:
    """Refuse a single file's configuration that is unusable or contradicted.

    Args:
        family: of the file.
        file: the single file.
        folder: with the configuration.
        config: what the user called it.
        steps: denoising steps; None for the usual ones of its schedule.

    Returns:
        The family that the configuration describes: files of several families may look alike.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    described = check_architecture(folder, f"--single-file-config {config}")
    if not is_described(family, described):
        raise RiebenchError(
            f"{file.name} is a checkpoint of {family.title}, but --single-file-config {config} describes "
            f"{described.title}; give {single_file_configs(family)}"
        )
    check_schedule(folder, f"--single-file-config {config}", steps)
    described.check_training(file, _json(folder / SCHEDULER), _json(folder / "vae" / "config.json"), file.name)
    described.check_file_parts(file, folder, f"{file.name} with --single-file-config {config}")
    return described


def is_described(family: Family, described: Family) -> bool:
    """Return whether a family can describe single files that were taken for another's."""
    return described.name == family.name or described.single_file_marks == family.single_file_marks != ()


def single_file_configs(family: Family) -> str:
    """Return what can describe a family's single files, as part of a message."""
    named = [preset.name for preset in family.presets if preset.on_hub]
    return f"--single-file-config {', '.join(named)}, or the folder of its model"


def family_of_folder(folder: Path, shown: str) -> Family:
    """Return the model family of a folder, by the pipeline class that it states.

    Args:
        folder: in diffusers' layout.
        shown: what the user called it.

    Raises:
        RiebenchError: if no family has that class; says what the folder is instead.
    """
    found = str(_json(folder / INDEX).get("_class_name", "no pipeline"))
    known = families()
    for family in known:
        if family.pipeline_class == found:
            return family
    called = next((family.other_pipelines[found] for family in known if found in family.other_pipelines), "")
    words = f" ({called})" if called else ""
    edited = " or ".join(f"{family.title} ({family.pipeline_class})" for family in known)
    raise RiebenchError(
        f"{shown} is a {found}{words}; riebench edits {edited} and models trained from it{families_left_out()}"
    )


def check_architecture(folder: Path, shown: str) -> Family:
    """Return the family of a model folder; refuse models of no known family.

    Raises:
        RiebenchError: saying what it is instead.
    """
    family = family_of_folder(folder, shown)
    family.check_config(folder, shown)
    return family


def check_single_file(file: Path, *, own_autoencoder: bool = True) -> Family:
    """Return the family of a single file; refuse files of no known family.

    The file must hold a whole model.

    Args:
        file: a `.safetensors` file.
        own_autoencoder: whether its autoencoder is needed; otherwise another one is put in its place.

    Raises:
        RiebenchError: saying what it is instead, or what it lacks.
    """
    _check_ending(file)
    names = tensor_names(file)
    marked = _marked_family(names)
    refused: list[RiebenchError] = []
    for family in families() if marked is None else (marked,):
        try:
            family.check_single_file(file.name, names, own_autoencoder=own_autoencoder)
        except RiebenchError as error:
            refused.append(error)
        else:
            if family.file_parts(names) is not None:
                check_wide(file)
            return family
    raise refused[0]


def family_of_file(file: Path) -> Family:
    """Return the model family whose marks a single file holds.

    It is the default one if there are none. Whether the file can be used, `check_single_file` says.
    """
    try:
        marked = _marked_family(tensor_shapes(file))
    except RiebenchError:
        marked = None
    return families()[0] if marked is None else marked


def _marked_family(names: Iterable[str]) -> Family | None:
    held = tuple(names)
    marked = (one for one in families() if one.single_file_marks)
    return next((one for one in marked if any(name.startswith(one.single_file_marks) for name in held)), None)


def safetensors_file(flag: str, wanted: str) -> Path:
    """Return the file that an option names.

    Raises:
        RiebenchError: if there is none, or it is of a kind that can run code when it is opened.
    """
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise RiebenchError(f"{flag} {wanted}: there is no such file")
    _check_ending(path)
    return path


def _check_ending(file: Path) -> None:
    if file.suffix == ".gguf":
        raise RiebenchError(
            f"{file.name} holds weights packed to fewer bits (GGUF), which are not read; fetch it in {WIDE}"
        )
    if file.suffix != ".safetensors":
        raise RiebenchError(
            f"{file.name}: only .safetensors files are read, since others can run code when they are opened; convert it"
        )


def autoencoder_source(family: Family, wanted: str) -> tuple[str, str | None, str]:
    """Return hub id, revision and weights file of the autoencoder that `--vae` names.

    Args:
        family: of the model that it is put into.
        wanted: a short name of the family's, or a hub id with or without "@REVISION".

    Raises:
        RiebenchError: if it is neither.
    """
    named = family.autoencoders.get(wanted)
    if named is not None:
        return named.source, named.revision, named.file.path
    source, revision = split_revision(wanted)
    if source.count("/") != 1:
        known = "".join(f"{name}, " for name in family.autoencoders)
        raise RiebenchError(f"--vae {wanted!r}: there is no such folder; give {known}a folder or a hub id")
    return source, revision, AUTOENCODER_FILE


def check_autoencoder(family: Family, folder: Path, wanted: str) -> str | None:
    """Refuse a folder that is no autoencoder for a family; nothing is loaded.

    Args:
        family: of the model that it is put into.
        folder: with its configuration and weights.
        wanted: what the user called it.

    Returns:
        The precision of its weights, as `riebench.models.files.variant`.

    Raises:
        RiebenchError: in one line.
    """
    shown = f"--vae {wanted}"
    if (folder / INDEX).is_file():
        raise RiebenchError(f"{shown} is a whole model; give its folder vae/")
    which = None if weight_files(folder, None) else FP16
    files = weight_files(folder, which)
    if not files:
        raise RiebenchError(
            f"{shown}: {folder} holds no *.safetensors of an autoencoder; fetch it again, or convert it"
        )
    family.check_autoencoder(folder, files, shown)
    return which


def check_additions(family: Family, options: ModelOptions) -> None:
    """Refuse files of `--unet` and `--lora` that are something else.

    Only their headers are read.

    Raises:
        RiebenchError: in one line.
    """
    if options.unet is not None:
        family.check_denoiser_file(safetensors_file("--unet", options.unet))
    for file, _ in map(parse_lora, options.loras):
        family.check_lora_file(safetensors_file("--lora", file))


def folder_sha256(
    folder: Path,
    which: str | None = None,
    *,
    parts: Sequence[str] = (),
    weights: bool = True,
    unread: Sequence[str] = (),
) -> str:
    """Compute one hash over a model folder's weights and configurations.

    Files count by relative name and content.

    Args:
        folder: in diffusers' layout.
        which: the precision that is loaded (see `variant`); files of the other do not count.
        parts: its folders with weights; those of the other precision in them do not count.
        weights: False leaves all weights out.
        unread: parts whose weights are not read from it, and do not count.
    """
    unused = {path for part in parts for path in weight_files(folder / part, None if which == FP16 else FP16)}
    for part in unread:
        unused |= {*(folder / part).glob("*.safetensors"), *(folder / part).glob("*.index*.json")}
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
    # A hub's snapshot folder is named after its commit; the repository's folder says more.
    return str(folder.parent.parent.name if folder.parent.name == "snapshots" else folder)

"""Repetition of a stored run from its run.json.

run.json holds the identity of a run, but no place on a disk: its model, setting and seeds follow from it and from the
records, while folders of one's own (a suite, a model, SAEs, a plug-in) come from the options of the command that made
the run, as far as these are stored and still hold, or from new options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.presets import PRESETS
from riebench.models.spec import FP16_FIX, ModelSpec, source_name
from riebench.scoring.profiles import PROFILES
from riebench.store.folder import RunFolder
from riebench.store.records import RUN_FILE, EditRecord, RunSpec
from riebench.store.run_file import identity_differences
from riebench.tasks.schema import EditTask, Setting
from riebench.tasks.suites import load_suite, shipped_suites

PLACES = (
    "suite", "model", "single_file_config", "vae", "unet", "lora", "regions", "scorer", "scorers", "weights",
    "trust_plugins",
)  # fmt: skip
"""Options of the earlier command that are taken over: what they name may lie anywhere on a disk."""
VARIATIONS = (
    "settings_set", "blocks", "edit_steps", "steps", "guidance", "dtype", "size", "vae_tiling", "regions", "profile",
)  # fmt: skip
"""Options that make another run of the stored one, whose identity then differs."""


def options_of_run(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `riebench run` that repeat a stored run.

    Args:
        file: its run.json.
        given: options that take precedence.

    Raises:
        RiebenchError: in one line, if the file is no run.json, or does not say what would have to be known.
    """
    if file.name != RUN_FILE:
        raise RiebenchError(f"--config {file}: of JSON files only the {RUN_FILE} of a run folder can be repeated")
    folder = RunFolder(file.parent)
    earlier = _earlier_options(file)
    values = {name: earlier[name] for name in PLACES if name in earlier} | dict(given)
    if "settings" not in values and folder.spec.setting.plugin is not None:
        values["settings"] = _setting_file(folder.spec.setting, earlier, file)
    if "suite" not in values:
        values["suite"] = _suite(folder.spec, file)
    values = {**_model_options(folder.spec.model, values, file), **values}
    if folder.spec.regions != "attention":
        values.setdefault("regions", folder.spec.regions)
    values = {**_extent(folder.records(), values, file), **values}
    return {**values, "repeat": str(file), "repeat_exactly": not any(name in given for name in VARIATIONS)}


def stored_setting(file: Path) -> Setting:
    """Return the method configuration of a stored run.

    Args:
        file: its run.json.

    Raises:
        RiebenchError: if it needs a plug-in, of which a run stores no more than name and hash.
    """
    setting = RunFolder(file.parent).spec.setting
    if setting.plugin is not None:
        raise _unknown(file, f"its plug-in {setting.plugin} lies", "add the configuration's YAML file to the command")
    return setting


def check_repeated(file: Path, spec: RunSpec) -> None:
    """Check that a run has the identity of the stored one that it repeats.

    Args:
        file: run.json of the stored run.
        spec: the run that is about to be made.

    Raises:
        RiebenchError: naming what differs.
    """
    stored = RunFolder(file.parent).spec
    if stored.run_id != spec.run_id:
        found = "; ".join(identity_differences(stored.identity, spec.identity))
        raise RiebenchError(f"{file} cannot be repeated with what is here: {found}")


def _unknown(file: Path, what: str, remedy: str) -> RiebenchError:
    return RiebenchError(f"{file} does not say where {what}; {remedy}")


def _earlier_options(file: Path) -> dict[str, Any]:
    """Return the stored options of the last run that wrote to a run folder."""
    requests = [one.request for one in RunFolder(file.parent).invocations if one.request is not None]
    return dict(requests[-1]) if requests else {}


def _setting_file(setting: Setting, earlier: Mapping[str, Any], file: Path) -> list[str]:
    """Return the YAML file of a configuration with a plug-in, as it was named earlier."""
    named = earlier.get("settings")
    for one in named if isinstance(named, list) else []:
        if isinstance(one, str) and Path(one).stem == setting.name and Path(one).expanduser().is_file():
            return [one]
    raise _unknown(file, f"its plug-in {setting.plugin} lies", "add the configuration's YAML file to the command")


def _suite(spec: RunSpec, file: Path) -> str:
    if spec.suite not in shipped_suites():
        raise _unknown(file, f"the suite {spec.suite!r} lies", "name its folder with --suite")
    return spec.suite


def _model_options(spec: ModelSpec, known: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the options that load a model, as far as they are not known.

    Options that only repeat what is the model's own enter the name of the results folder, and are found in it.
    """
    values: dict[str, Any] = {}
    name = str(known["model"]) if "model" in known else _model_name(spec, file)
    values["model"] = name
    base = name if name in PRESETS else source_name(name)
    suffix = spec.name.removeprefix(base) if spec.name.startswith(base) else None
    tokens: dict[str, tuple[str, Any]] = {
        "steps": (f"-steps{spec.steps:g}", spec.steps), "guidance": (f"-guidance{spec.guidance:g}", spec.guidance),
        "size": (f"-px{spec.size:g}", spec.size), "dtype": (f"-{spec.dtype}", spec.dtype),
    }  # fmt: skip
    values |= {option: value for option, (token, value) in tokens.items() if suffix is None or token in suffix}
    if spec.vae_tiling:
        values["vae_tiling"] = True
    if spec.fixed_noise:
        profiles = [one for one, profile in PROFILES.items() if profile.fixed_seed is not None]
        values["profile"] = next((one for one in profiles if spec.name.endswith(f"-{one}")), profiles[0])
    if spec.vae is not None and "vae" not in known:
        values["vae"] = FP16_FIX if f"-vae-{FP16_FIX}" in spec.name else spec.vae
        if "/" not in spec.vae:
            raise _unknown(file, f"the autoencoder {spec.vae.partition('@')[0]} lies", "name it with --vae")
    if spec.unet is not None and "unet" not in known:
        raise _unknown(file, f"the U-Net {spec.unet.partition('@')[0]} lies", "name it with --unet")
    if spec.loras and "lora" not in known:
        raise _unknown(file, f"its {len(spec.loras)} LoRA files lie", "name each of them with --lora, in their order")
    return values


def _model_name(spec: ModelSpec, file: Path) -> str:
    """Return a preset's name or a hub id with the stored revision."""
    for preset in PRESETS.values():
        if preset.spec_source == spec.source and preset.revision in (None, spec.revision):
            return preset.name
    if spec.source.count("/") == 1:
        return f"{spec.source}@{spec.revision}"
    raise _unknown(file, f"the model {spec.source} lies", "name it with --model")


def _extent(records: Sequence[EditRecord], known: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the options that select the examples and seeds of some records."""
    if not records:
        return {}
    try:
        tasks = load_suite(str(known["suite"]))
    except RiebenchError as error:
        raise RiebenchError(f"{file} cannot be repeated: {error}; name the suite's folder with --suite") from error
    values: dict[str, Any] = {"seeds": sorted({record.key.seed for record in records})}
    recorded = {task.name: {r.key.example_id for r in records if r.key.task == task.name} for task in tasks}
    chosen = [task for task in tasks if recorded[task.name]]
    if len(chosen) < len(tasks):
        values["categories"] = list(dict.fromkeys(task.category for task in chosen))
    if not known.keys() & {"limit", "examples"} and any(
        len(recorded[task.name]) < len(task.examples) for task in chosen
    ):
        values["limit"] = _limit(chosen, recorded, file)
    return values


def _limit(tasks: Sequence[EditTask], recorded: Mapping[str, set[str]], file: Path) -> int:
    """Return the N for which the recorded examples are the first N of each task."""
    limit = max(len(recorded[task.name]) for task in tasks)
    if any({example.id for example in task.examples[:limit]} != recorded[task.name] for task in tasks):
        raise RiebenchError(
            f"{file}: its examples are not the first N of each category, so they cannot be selected again at once; say "
            "with --limit and --categories what to make"
        )
    return limit

"""Weights of all kinds that a job needs, each found on this machine or not.

What is missing is named with the command that gets it. Nothing is loaded and nothing is fetched: the functions that a
run uses to find its files are called with `offline`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from riebench.errors import RiebenchError
from riebench.generation.regions.options import MEGABYTES, RegionSpec
from riebench.models.families.base import Family
from riebench.models.families.sizes import CONFIG_PATTERNS, HALF
from riebench.models.files import (
    NOT_FULL,
    autoencoder_source,
    check_autoencoder,
    check_folder,
    check_single_file,
    config_folder,
    family_of_folder,
    hub_folder,
    other_parts,
    safetensors_file,
    variant,
    weight_files,
    weight_patterns,
)
from riebench.models.lookup import ModelInfo
from riebench.models.presets import (
    PRESETS,
    SAE_BYTES_PER_BLOCK,
    SCORER_BYTES,
    is_shipped,
    judge_for,
    scorer_for,
    second_scorer_for,
)
from riebench.models.spec import ASSET, HALF_DTYPES, ModelOptions, parse_lora
from riebench.scoring.profiles import BY_SECOND, OPTIONAL_METRICS, is_left_to_request, profile_metrics
from riebench.scoring.scorers import REQUESTED, ScorerChoice
from riebench.tasks.schema import Setting
from riebench.utils.hub import fetch, split_revision
from riebench.utils.machine import size_text
from riebench.utils.weights import tensor_names

if TYPE_CHECKING:
    from riebench.models.clip import ClipSpec
    from riebench.saes.sources import SaeSource
    from riebench.scoring.metrics.base import Metric
    from riebench.scoring.metrics.networks import Networks


_ABSENT = re.compile("(not|only in part) on this machine|not in the cache")

State = Literal["ok", "missing", "optional", "note"]


@dataclass(frozen=True)
class Check:
    """One thing that a job needs, and its state.

    Attributes:
        what: its name.
        state: "ok" if it is here; "missing"; "optional" if it is not here and not needed; "note" for information.
        found: description of what is here, or of the error.
        mend: the command that gets it, or other advice.
        nbytes: bytes to download.
    """

    what: str
    state: State
    found: str
    mend: str = ""
    nbytes: int = 0


def presence_check(
    what: str, look: Callable[[], object], *, command: str = "", nbytes: int = 0, needed: bool = True
) -> Check:  # fmt: skip
    """Look for something and return the result as a check.

    Args:
        what: its name.
        look: describes what is here, or raises a `RiebenchError` that says what is missing.
        command: the command that gets it; else the one in the error's text is used, or all of that text.
        nbytes: size of the download.
        needed: True if the job cannot do without it.
    """
    try:
        return Check(what, "ok", str(look()))
    except RiebenchError as error:
        text = " ".join(str(error).split())
        line = command or next(iter(re.findall(r"`((?:hf|pip|git) [^`]+)`", text)), "")
        about = f" ({size_text(nbytes)} to download)" if nbytes else ""
        shown = f"not on this machine{about}" if line.startswith("hf ") and _ABSENT.search(text) else text
        return Check(what, "missing" if needed else "optional", shown, line, nbytes)


def model_checks(known: ModelInfo, options: ModelOptions) -> list[Check]:
    """Check the generating model and the replacements of its parts."""
    checks = [_vae(options.vae, known.family)] if options.vae else []
    for flag, wanted in [("--unet", options.unet), *(("--lora", parse_lora(text)[0]) for text in options.loras)]:
        if wanted:
            checks.append(presence_check(f"{flag} {wanted}", partial(_added_file, flag, wanted)))
    dtype, name = known.spec.dtype, known.spec.name
    if known.preset is not None and known.preset.source.startswith(ASSET):
        return [*shipped_checks(), *checks]
    if known.file is not None:
        file, own = known.file, options.vae is None
        look = presence_check(f"model {name}", lambda: _single_file(file, own))
        return [look, _config(known, file, options), *checks]
    if known.repo is None:
        folder = known.folder or Path()
        return [presence_check(f"model {name}", lambda: _model_folder(folder, dtype, str(folder))), *checks]
    repo, revision = known.repo, known.revision
    needs = known.family.downloads.get(known.preset.name) if known.preset else None
    command = needs.download_command(dtype) if needs else hub_command(known.family, repo, revision, dtype)
    look = presence_check(
        f"model {name}",
        lambda: _model_folder(hub_folder(repo, revision, dtype, offline=True), dtype, repo),
        command=command,
        nbytes=needs.download_bytes(dtype) if needs else _estimated_bytes(known),
    )
    return [look, *checks]


def _estimated_bytes(known: ModelInfo) -> int:
    """Return about how many bytes are fetched of an official model.

    It is for those whose files are not listed; 0 stands for all other models. Families without half-precision copies
    store the only weights that they have in 16 bits.
    """
    return 0 if known.preset is None or known.family.half_files else HALF * sum(known.shape.parameters.values())


def hub_command(
    family: Family, repo: str, revision: str | None, dtype: str, parts: Sequence[str] | None = None
) -> str:  # fmt: skip
    """Return the line that fetches a model into the hub's cache.

    It fetches the files of one number format and no others; of some parts only, if they are named.
    """
    half = dtype in HALF_DTYPES and family.half_files
    patterns = [*CONFIG_PATTERNS, *weight_patterns(family.parts if parts is None else parts, half=half)]
    parts = [f"--include '{pattern}'" for pattern in patterns]
    parts += [] if half else [f"--exclude '{pattern}'" for pattern in NOT_FULL]
    return " ".join([f"hf download {repo}", *([f"--revision {revision}"] if revision else []), *parts])


def _model_folder(folder: Path, dtype: str, shown: str) -> str:
    which = variant(folder, dtype, family_of_folder(folder, shown).parts)
    family = check_folder(folder, which, shown)
    files = [file for part in family.parts for file in weight_files(folder / part, which)]
    return f"{folder} ({size_text(_bytes(files))}, {which or 'unmarked'} files)"


def _single_file(file: Path, own_autoencoder: bool) -> str:
    check_single_file(file, own_autoencoder=own_autoencoder)
    return f"{file} ({size_text(_bytes([file]))})"


def _config(known: ModelInfo, file: Path, options: ModelOptions) -> Check:
    """Check what describes a single file, and the parts that it does not hold."""
    config, dtype = options.config or "", known.spec.dtype
    try:
        parts = other_parts(known.family, file, options)
    except RiebenchError:
        # A damaged file is named by its own check.
        parts = ()

    def look() -> str:
        folder = config_folder(config, known.family, parts, dtype, offline=True)
        if not parts:
            return str(folder)
        which = variant(folder, dtype, parts)
        files = [one for part in parts for one in weight_files(folder / part, which)]
        return f"{folder} ({', '.join(parts)}: {size_text(_bytes(files))})"

    what = f"{'configuration and other parts' if parts else 'configuration'} for {file.name}"
    preset = PRESETS.get(config)
    if not parts or Path(config).expanduser().is_dir() or (preset is not None and not preset.on_hub):
        return presence_check(what, look)
    repo, revision = (preset.source, preset.revision) if preset else split_revision(config)
    command = hub_command(known.family, repo, revision, dtype, parts)
    return presence_check(what, look, command=command, nbytes=HALF * sum(known.shape.parameters[one] for one in parts))


def _added_file(flag: str, wanted: str) -> str:
    file = safetensors_file(flag, wanted)
    return f"{file} ({size_text(_bytes([file]))})"


def _vae(wanted: str, family: Family) -> Check:
    def look() -> str:
        folder = Path(wanted).expanduser()
        if not folder.is_dir():
            source, revision, file = autoencoder_source(family, wanted)
            folder = fetch(source, revision, patterns=("config.json", file), offline=True)
        files = weight_files(folder, check_autoencoder(family, folder, wanted))
        for one in files:
            tensor_names(one)
        return f"{folder} ({size_text(_bytes(files))})"

    # Others are taken to be as large as the family's own ones.
    sizes = [named.file.size for named in family.autoencoders.values()]
    return presence_check(f"autoencoder {wanted}", look, nbytes=max(sizes, default=0))


def shipped_checks() -> list[Check]:
    """Check the files of the toy world against the hashes they were shipped with."""
    from riebench.models.assets import ASSETS, check_folder, read_manifest

    manifest = read_manifest()

    def look(name: str) -> str:
        check_folder(name)
        files = [path for path in manifest if path.startswith(f"{name}/")]
        return f"{size_text(_bytes(ASSETS / path for path in files))}, files as shipped: {len(files)}"

    names = dict.fromkeys(path.split("/")[0] for path in manifest if "/" in path)
    return [presence_check(f"shipped {name}", partial(look, name)) for name in names]


def sae_checks(settings: Sequence[Setting], known: ModelInfo, named: str | None) -> list[Check]:
    """Check the SAEs of all settings that use them."""
    from riebench.methods.base import get_method

    blocks: dict[str | None, dict[str, None]] = {}
    for setting in settings:
        if "saes" in get_method(setting.method).needs:
            source = named or setting.sae or (known.preset.saes if known.preset else None)
            blocks.setdefault(source, {}).update(dict.fromkeys(setting.blocks))
    return [check for source, wanted in blocks.items() for check in _source_checks(source, tuple(wanted), known)]


def _source_checks(source: str | None, blocks: tuple[str, ...], known: ModelInfo) -> list[Check]:
    from riebench.saes.sources import SCHEME, download_command, parse_sources

    if source is None:
        text = f"{known.spec.name} has no SAEs of its own"
        return [Check("SAEs", "missing", text, "--sae FOLDER or --sae hf://OWNER/NAME")]
    checks = []
    by_block = {one.block: one for one in parse_sources(source)}
    for block, one in by_block.items():
        wanted = [name for name in blocks if by_block.get(name, by_block.get(None)) is one]
        if wanted:
            hub = one.place.startswith(SCHEME)
            checks.append(
                presence_check(
                    f"SAEs {one.place}" + (f" for {block}" if block else ""),
                    partial(_sae_files, one, wanted),
                    command=download_command(one.place, one.options, wanted) if hub else "",
                    nbytes=SAE_BYTES_PER_BLOCK * len(wanted) if hub else 0,
                )
            )
    missing = [name for name in blocks if name not in by_block and None not in by_block]
    if missing:
        have = ",".join(name for name in blocks if name not in missing)
        mend = f"--sae {missing[0]}=PLACE" + (f" or --blocks {have}" if have else "")
        checks.append(Check("SAEs", "missing", f"no SAE for {', '.join(missing)} is named", mend))
    return checks


def _sae_files(source: SaeSource, blocks: Sequence[str]) -> str:
    from riebench.saes.files import refuse_pointer
    from riebench.saes.formats import checkpoint_at, choose_checkpoints

    root = source.locate(offline=True, blocks=blocks)
    files: list[Path] = []
    for path in choose_checkpoints(root, blocks, source.options).values():
        found = checkpoint_at(path, source.options)
        place = found[0].path if found else path
        files += [place] if place.is_file() else [file for file in sorted(place.iterdir()) if file.is_file()]
    for file in files:
        refuse_pointer(file)
    return f"{root} ({', '.join(blocks)}: {size_text(_bytes(files))})"


def scorer_checks(known: ModelInfo, scorers: ScorerChoice, profile: str, weights: Mapping[str, Path]) -> list[Check]:
    """Check the networks that score.

    They are the CLIP, the independent one beside it, those of single metrics, and those that are asked for by name.

    Args:
        known: the generating model.
        scorers: the CLIPs, None for the model's own, and the scorers that are asked for beside them.
        profile: name of the scoring profile.
        weights: folders and files of networks that do not ship (see `riebench.scoring.metrics.networks`).

    Raises:
        RiebenchError: for an unknown scorer or profile.
    """
    from riebench.models.clip import SCORERS, ClipSpec
    from riebench.registry import METRICS, NETWORKS
    from riebench.scoring.metrics.networks import Networks

    first = scorers.first or scorer_for(known.spec)
    spec = ClipSpec.parse(first)
    sizes = [SCORER_BYTES.get(name, 0) for name, known_spec in SCORERS.items() if known_spec.label == spec.label]
    local = spec.file is not None or spec.asset is not None
    nbytes = 0 if local else next(iter(sizes), 0)
    checks = [presence_check(f"scorer {first}", partial(_clip, spec), nbytes=nbytes)]
    second = scorers.second or second_scorer_for(known.spec)
    networks = Networks(first, second=second, weights=weights, offline=True, judge=judge_for(known.spec))
    first_of: dict[str, Metric] = {}
    for name in profile_metrics(profile, METRICS.usable()):
        first_of.setdefault(METRICS.get(name).backbone, METRICS.get(name))
    # One network is looked for once, by the name of the first metric that needs it.
    for metric in first_of.values():
        foreign = METRICS.package(metric.name) is not None
        named = metric.name in BY_SECOND and scorers.second is not None
        optional = foreign or (metric.name in OPTIONAL_METRICS and not named)
        if is_shipped(known.spec) and optional and not foreign and is_left_to_request(metric.name, second):
            continue
        if metric.backbone in ("clip2", "dino", "squeezenet") or NETWORKS.package(metric.backbone) is not None:
            check = presence_check(f"metric {metric.name}", partial(_network, networks, metric), needed=not optional)
            checks += [check] if check not in checks else []
    for name in scorers.names:
        checks.append(presence_check(f"scorer {name}", partial(_network, networks, METRICS.get(REQUESTED[name][0]))))
    return checks


def _clip(spec: ClipSpec) -> str:
    if spec.asset:
        return f"shipped {spec.asset}"
    from riebench.models.clip import locate

    located = locate(spec, offline=True)
    return located.weights or located.name.removeprefix("local-dir:")


def _network(networks: Networks, metric: Metric) -> str:
    problem = networks.missing(metric.backbone, fetch=False)
    if problem:
        raise RiebenchError(problem)
    return "its network is here"


def region_checks(spec: RegionSpec) -> list[Check]:
    """Check the models that find words in pictures."""
    from riebench.generation.regions.grounding import locate_model

    checks = []
    for option, place in spec.models.items():
        size = MEGABYTES.get(place.partition("@")[0], 0) * 10**6
        look = partial(locate_model, spec, option, offline=True)
        checks.append(presence_check(f"regions {option} {place}", look, nbytes=size))
    return checks


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)

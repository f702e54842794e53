"""Options of a run as a plain mapping, for `riebench run --config` and run.json.

The keys are the names of the options, with an underscore for a hyphen. They are read strictly: an unknown key, or a
value of another kind, is an error that names file, line and key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from riebench.errors import RiebenchError
from riebench.models.spec import Format
from riebench.runs.failures import STOP_AFTER
from riebench.scoring.profiles import DEFAULT
from riebench.tasks.schema import MAX_GUIDANCE, MAX_SIZE, MAX_STEPS, MAX_WHOLE, Identifier, StoredModel
from riebench.tasks.settings import MAIN_SET
from riebench.utils.yaml_files import load_yaml, validate


def _as_list(value: object) -> object:
    """Return a single text or number as a list of one."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


Whole = Annotated[int, Field(strict=True, ge=1, lt=MAX_WHOLE)]
"""A whole number from 1 on; neither a text nor a truth value."""
Index = Annotated[int, Field(strict=True, ge=0, lt=MAX_WHOLE)]
"""Likewise, from 0 on."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
"""Texts; a single one needs no list."""
Indices = Annotated[tuple[Index, ...], BeforeValidator(_as_list)]
"""Likewise, numbers."""


class RunConfig(StoredModel):
    """Options of one run; the defaults are those of the command line."""

    settings: Texts = ()
    """Method configurations by name or YAML file."""
    settings_set: str = MAIN_SET
    """Set of official configurations, if none is named."""
    suite: str = "toy"
    """Shipped suite, or folder of task files."""
    model: str | None = None
    """Preset, folder, single file or hub id."""
    sae: str | None = None
    """Source of the SAEs."""
    sae_name: Identifier | None = None
    """Name that configurations with SAEs get beside their own."""
    accept_sae: StrictBool = False
    """True to run SAEs that explain nothing of the activations, too."""
    blocks: str | None = None
    """`each`, `together`, `both`, or names of blocks with commas between."""
    edit_steps: str | None = None
    """Part of the run that is edited, as "FIRST:LAST"."""
    categories: Texts = ()
    """Categories to keep."""
    steps: Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps."""
    guidance: Annotated[float, Field(strict=True, ge=0, le=MAX_GUIDANCE)] | None = None
    """Guidance scale."""
    seeds: Indices = ()
    """Seeds of each example."""
    limit: Whole | None = None
    """Examples of each category."""
    examples: Texts = ()
    """Ids of single examples; empty for all."""
    batch_size: Whole | Literal["auto"] = "auto"
    """Pictures generated at a time."""
    device: str = "auto"
    """Torch device."""
    dtype: Format | None = None
    """Number format."""
    size: Annotated[int, Field(strict=True, ge=8, le=MAX_SIZE)] | None = None
    """Picture side in pixels."""
    single_file_config: str | None = None
    """Configuration of a model in a single file."""
    vae: str | None = None
    """Another autoencoder."""
    unet: str | None = None
    """Another denoiser."""
    lora: Texts = ()
    """LoRA files, each with or without ":SCALE"."""
    offload: str = "none"
    """Weights that are kept off the GPU."""
    vae_slicing: StrictBool = False
    """True to decode one picture at a time."""
    vae_tiling: StrictBool = False
    """True to decode in tiles."""
    attention: str = "default"
    """Kernel of the attention."""
    channels_last: StrictBool = False
    """True to lay convolutions out channels last."""
    regions: str | None = None
    """Region provider."""
    profile: str = DEFAULT
    """Profile of generation and scores."""
    scorer: Texts = ()
    """The CLIP that scores, then an independent second one."""
    scorers: Texts = ()
    """Scorers by name: CLIPs, and others that measure on request."""
    weights: Texts = ()
    """Places of optional networks, each as NAME=PLACE."""
    results: str = "runs"
    """Folder for everything that is written."""
    report: StrictBool = True
    """True to write the page too."""
    redo: str = "missing"
    """What is made again."""
    stop_after: Index = STOP_AFTER
    """Units that may fail at the beginning, all with the same error."""
    offline: StrictBool = False
    """True to use only what is on this machine."""
    engine: str = "local"
    """Engine of the run."""
    address: str | None = None
    """Address of a Ray cluster."""
    workers: Whole | None = None
    """Processes that make pictures, here or on the cluster."""
    trust_plugins: StrictBool = False
    """True to run plug-ins outside their configuration's folder too."""
    shard: str = "1/1"
    """Part of the work that the process does."""
    repeat: str | None = None
    """A run.json whose configuration is taken as it is stored, unless `settings` names its file."""
    repeat_exactly: StrictBool = True
    """True if the run must have the same identity as that of `repeat`."""


def read_config(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the options of a run from a file.

    Args:
        file: a YAML file of `RunConfig`, or the run.json of a stored run.
        given: options that take precedence over those of the file.

    Returns:
        The options of both, without the defaults.

    Raises:
        RiebenchError: in one line, if the file cannot be used.
    """
    if file.suffix in (".yaml", ".yml"):
        return {**parse_config(load_yaml(file), file).model_dump(exclude_unset=True), **given}
    if file.suffix == ".json":
        from riebench.jobs.repeat import options_of_run

        return options_of_run(file, given)
    raise RiebenchError(
        f"--config {file}: give a .yaml file with options of a run, or the run.json of a stored run (the configuration "
        "of a model in a single file is --single-file-config)"
    )


def parse_config(values: Mapping[str, Any], file: Path) -> RunConfig:
    """Check the options of a run.

    Args:
        values: option -> value.
        file: the file that they come from, for messages.

    Raises:
        TaskFileError: naming file, line and key and, for an unknown key, the nearest match.
    """
    return validate(RunConfig, dict(values), file, lines=True)

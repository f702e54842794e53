"""`riebench run --dry-run`: a job read, checked and counted, but not made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from riebench.analysis.configurations import EVERYTHING
from riebench.blocks import short_name
from riebench.generation.memory import suitable_batch_size, usual_batch_size
from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
from riebench.jobs.forecast import CategoryCount, Forecast, PlannedWork, forecast
from riebench.jobs.request import RunRequest
from riebench.methods.base import get_method
from riebench.models.families.sizes import Shape
from riebench.models.lookup import ModelInfo, look_up
from riebench.models.presets import sae_bytes_of_width
from riebench.models.spec import ModelOptions
from riebench.runs.plan import Unit, check_request, checked_works, shard_units
from riebench.runs.prepare import check_places
from riebench.store.folder import SINGLE_SHARD, RunFolder, run_path
from riebench.store.records import RUN_FILE, RunSpec
from riebench.store.shared import SHARED_NAME, SharedFolder
from riebench.tasks.schema import ALL_CATEGORIES, EditTask, Setting
from riebench.tasks.suites import default_model
from riebench.utils import machine
from riebench.utils.machine import size_text
from riebench.utils.terminal import add_row, print_line, print_table


@dataclass(frozen=True)
class JobPlan:
    """A job, read and checked.

    Attributes:
        planned: the work to forecast.
        known: the generating model.
        settings: the settings, with the job's options.
        tasks: the tasks, with the examples that were asked for.
    """

    planned: PlannedWork
    known: ModelInfo
    settings: tuple[Setting, ...]
    tasks: tuple[EditTask, ...]


def forecast_job(job: RunRequest) -> Forecast:
    """Forecast a job; see `prepare_forecast`."""
    return forecast(prepare_forecast(job).planned)


def prepare_forecast(job: RunRequest) -> JobPlan:
    """Read and check a job.

    Args:
        job: the options of `riebench run`.

    Raises:
        RiebenchError: for an error that the run itself would report, as far as it shows without weights.
    """
    from riebench.utils.machine import pick_device

    redo = job.redo_mode
    tasks, settings = job.plan()
    check_request(tasks, settings, redo, job.engine.shard)
    known = _known(job)
    regions = parse_regions(job.regions or DEFAULT_REGIONS)
    if regions.models:
        regions.options.check_side(known.spec.size)
    for setting in settings:
        check_places(setting, known.shape.blocks, known.spec, known.family)
    whole = job.units(tasks, settings)
    units = shard_units(whole, job.engine.shard)
    digests = {unit.key.digest for unit in units}
    folders = {
        setting.name: folder
        for setting in settings
        if (folder := _folder(job.results, tasks[0].suite, known, setting)) is not None
    }
    done = {name: folder.finished_units(redo, digests) for name, folder in folders.items()}
    # A named device need not be here: plans are often made on another machine than the one that runs them.
    device = pick_device("auto") if job.device == "auto" else job.device
    saes = sae_bytes(settings, known.shape)
    planned = PlannedWork(
        model=known.spec,
        shape=known.shape,
        device=device,
        batch_size=job.batch_size or _batch_size(known, job.options, device, saes),
        units=units,
        done=done,
        results=job.results,
        sae_bytes=saes,
        options=job.options,
        regions=regions,
        stored_masks=_stored_masks(job.results, units, known),
        shard=job.engine.shard,
        sae_runs=_sae_runs(whole, settings, folders),
        family=known.family.name,
        left_out=job.left_out,
    )
    return JobPlan(planned, known, settings, tasks)


def _sae_runs(units: Sequence[Unit], settings: Sequence[Setting], folders: Mapping[str, RunFolder]) -> int:
    """Return the number of pictures that are generated to measure SAEs.

    There are none if all figures are stored.
    """
    works = checked_works(units)
    for setting in settings:
        if "saes" in get_method(setting.method).needs:
            stored = folders[setting.name].sae_figures() if setting.name in folders else {}
            blocks = [short_name(block) for block in setting.blocks]
            if any(block not in stored or len(stored[block].examples) < len(works) for block in blocks):
                return len(works)
    return 0


def _known(job: RunRequest) -> ModelInfo:
    known = look_up(
        job.model or default_model(job.suite), steps=job.steps, guidance=job.guidance, dtype=job.dtype,
        options=job.options,
    )  # fmt: skip
    return replace(known, spec=known.spec.with_fixed_noise(job.fixed_noise))


def sae_bytes(settings: Sequence[Setting], shape: Shape) -> int:
    """Estimate the bytes of the SAEs in memory.

    They are taken to have four features a channel; settings that name the same ones share them.
    """
    users = [setting for setting in settings if "saes" in get_method(setting.method).needs]
    held = {(setting.sae, short_name(block)) for setting in users for block in setting.blocks}
    return sum(sae_bytes_of_width(shape.width(block)) for _, block in held)


def _batch_size(known: ModelInfo, options: ModelOptions, device: str, saes: int) -> int:
    """Return the batch size that the run itself would choose.

    It depends on the memory that is free now, if the device is here.
    """
    card = machine.find_gpu(device) if device.startswith("cuda") else None
    if device.startswith("cuda") and card is None:
        return usual_batch_size(known.spec.size)
    free = machine.free_ram() if card is None else card.free
    free -= known.shape.weight_bytes(known.spec.dtype, options) + saes
    return suitable_batch_size(known.shape, known.spec, options, device.split(":")[0], free)


def _folder(results: Path, suite: str, known: ModelInfo, setting: Setting) -> RunFolder | None:
    """Return the setting's folder, if there is one.

    A folder that holds a run of another identity is refused.
    """
    path = run_path(results, suite, known.spec.name, setting.name)
    if not (path / RUN_FILE).exists():
        return None
    stored = RunFolder(path).spec
    spec = known.spec
    # Weights are not hashed here: their hashes are taken from the folder, and the run itself compares them.
    model = stored.model.model_copy(
        update=spec.model_dump(include={"steps", "guidance", "size", "dtype", "vae_tiling", "fixed_noise"})
    )
    wanted: RunSpec = stored.model_copy(update={"model": model, "setting": setting})
    return RunFolder(path, wanted)


def _stored_masks(results: Path, units: Sequence[Unit], known: ModelInfo) -> frozenset[tuple[str, int]]:
    """Return example and seed of the units whose masks are stored."""
    keys = {(unit.example.id, unit.key.seed): unit for unit in units}
    return frozenset(
        place for place, unit in keys.items()
        if (shared := SharedFolder(run_path(results, unit.task.suite, known.spec.name, SHARED_NAME)))
        and (shared.path / shared.mask_name(unit.key)).exists()
    )  # fmt: skip


def print_forecast(found: Forecast) -> None:
    """Print a forecast to standard output."""
    from rich.table import Table

    categories = [name for name in ALL_CATEGORIES if any(line.category == name for line in found.lines)]
    table = Table(title="units to make by category; in brackets: of how many, where some are stored already")
    table.add_column("configuration", no_wrap=True)
    for category in (*categories, EVERYTHING):
        table.add_column(category.removeprefix("change_").removesuffix("_object"), justify="right")
    for setting in dict.fromkeys(line.setting for line in found.lines):
        own = [line for line in found.lines if line.setting == setting]
        cells = [_cell([line for line in own if line.category == category]) for category in categories]
        add_row(table, setting, *cells, _cell(own))
    add_row(table, EVERYTHING, *(_cell([x for x in found.lines if x.category == c]) for c in categories),
            _cell(found.lines))  # fmt: skip
    print_table(table)
    lines = describe(found)
    width = max(20, *(len(label) for label, _ in lines))
    for label, text in lines:
        print_line(f"{label:<{width}} {text}")


def _cell(lines: Sequence[CategoryCount]) -> str:
    missing, units = (sum(getattr(line, name) for line in lines) for name in ("missing", "units"))
    return str(missing) if missing == units else f"{missing} ({units})"


def describe(found: Forecast) -> list[tuple[str, str]]:
    """Describe a forecast in words: label and text of each line."""
    model, memory = found.model, found.memory
    used = model.guidance > 1 or found.per_picture > model.steps
    guided = f"guidance {model.guidance:g}" if used else "no guidance"
    looked = f" + {2 * found.region_pairs} for region models to look at" if found.region_pairs else ""
    reasons = "runs to rank and read feed-forward units and to look at other examples"
    beside = f" + at most {found.extra_runs} {reasons}" if found.extra_runs else ""
    apart = " + units kept" if memory.on_host else "; and in the host's memory units kept"
    kept = f"{apart} {size_text(memory.units)}" if memory.units else ""
    lines = [
        ("model", f"{model.name}: {model.steps} steps, {guided}, {model.size} px, {model.dtype}, on {found.device}"),
        ("units", f"{found.units}: {found.units - found.missing} done, {found.missing} to make, of which "
                  f"{found.copies} are copies by construction"),
        ("generations", f"{found.generations} = {2 * found.pairs} source and target pictures (shared by all "
                        f"configurations) + {found.edited} edited ones{looked}{beside}"),
        (f"{found.denoiser} evaluations", f"{found.evaluations}, {found.per_picture} a picture"),
        ("time (estimate)", f"{duration(found.seconds)} for generating, scoring not counted; from {found.basis}"),
        ("memory (estimate)", f"{size_text(memory.total)} = weights and SAEs {size_text(memory.weights)} + one batch "
                              f"of {found.batch_size} {size_text(memory.work)} + traces {size_text(memory.traces)}"
                              f"{kept}"),
        ("disk (estimate)", f"{size_text(found.disk)} of pictures"),
    ]  # fmt: skip
    if found.sae_runs:
        evaluations = found.sae_runs * found.per_picture
        text = (
            f"first {found.sae_runs} source pictures, {evaluations} {found.denoiser} evaluations; counted nowhere above"
        )
        lines.append(("SAE check", text))
    lines += [("left out", f"{name}, which cannot run on this model ({why})") for name, why in found.left_out.items()]
    if found.shard != SINGLE_SHARD:
        index, count = found.shard
        lines.insert(1, ("shard", f"{index} of {count}; all that follows is this part's alone"))
    return lines


def duration(seconds: float) -> str:
    """Write a time in words, rounded to the precision of an estimate."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

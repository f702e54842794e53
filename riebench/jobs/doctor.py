"""`riebench doctor`: a job's needs, each found or with the line that gets it."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from riebench._version import __version__
from riebench.jobs.downloads import needed_files
from riebench.jobs.dry_run import duration, prepare_forecast
from riebench.jobs.forecast import Forecast, PlannedWork, forecast, memory
from riebench.jobs.inventory import Check, State
from riebench.jobs.request import RunRequest
from riebench.models.spec import TILE
from riebench.runs.plan import works_of
from riebench.store.invocations import package_versions
from riebench.utils import machine
from riebench.utils.machine import size_text
from riebench.utils.terminal import add_row, print_line, print_table, window_width

SHARE_OF_RAM = 0.9
"""Share of the free memory that counts as available to a job."""


def examine(job: RunRequest) -> list[Check]:
    """Check everything that a job needs.

    Args:
        job: the options of `riebench run`.

    Raises:
        RiebenchError: if the command line itself is wrong.
    """
    plan = prepare_forecast(job)
    planned, found = plan.planned, forecast(plan.planned)
    weights = needed_files(job, plan.known, plan.tasks, plan.settings)
    download = sum(check.nbytes for check in weights if check.state == "missing")
    notes = [
        Check(f"configuration {name}", "note", f"left out: it cannot run on this model ({why})")
        for name, why in found.left_out.items()
    ]
    return [_packages(), *weights, *_device(planned, found), *_disk(job, found, download), *notes, _work(found)]


def _packages() -> Check:
    needed = machine.package_requirements()
    bad = machine.unmet_requirements(needed)
    here = f"Python {platform.python_version()}, riebench {__version__}"
    if not bad:
        versions = package_versions()
        listed = ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "diffusers", "transformers") if name in versions
        )
        return Check("packages", "ok", f"{here}, {listed}; all {len(needed)} new enough")
    text = ", ".join(f"{one.name} {version or 'missing'} (needs {one.specifier})" for one, version in bad)
    lines = " ".join(f"'{one}'" for one, _ in bad)
    return Check("packages", "missing", text, f"pip install {lines}")


def _device(planned: PlannedWork, found: Forecast) -> list[Check]:
    """Check whether the device is there and the job fits into its memory."""
    ram = machine.free_ram()
    if not planned.device.startswith("cuda"):
        return [_memory(f"memory ({planned.device})", planned, found, ram)]
    card = machine.find_gpu(planned.device)
    if card is None:
        text = f"PyTorch sees no {planned.device} here"
        return [Check("GPU", "missing", text, "--device cpu, or a PyTorch built for CUDA and its driver: nvidia-smi")]
    driver = f", driver {card.driver}" if card.driver else ""
    checks = [Check("GPU", "ok", f"{card.name}, {size_text(card.total)}, {size_text(card.free)} free{driver}")]
    if planned.model.dtype == "bfloat16" and not card.bfloat16:
        checks.append(Check("GPU format", "missing", f"{card.name} does not compute in bfloat16", "--dtype float16"))
    checks.append(_memory("GPU memory", planned, found, card.free))
    whole = memory(replace(planned, options=replace(planned.options, offload="none")), ()).weights
    state: State = "ok" if whole <= ram else "missing"
    text = f"weights pass through it while loading: {size_text(whole)} needed, {size_text(ram)} free"
    return [*checks, Check("memory", state, text, "" if state == "ok" else "--dtype float16, or end other programs")]


def _memory(what: str, planned: PlannedWork, found: Forecast, free: int) -> Check:
    text = f"about {size_text(found.memory.total)} needed (batch of {found.batch_size}), {size_text(free)} free"
    if found.memory.total <= free * SHARE_OF_RAM:
        return Check(what, "ok", text)
    return Check(what, "missing", text, smaller(planned, int(free * SHARE_OF_RAM)))


def smaller(planned: PlannedWork, limit: int) -> str:
    """Return the first options with which a job should fit into some memory.

    The memory is a limit in bytes; the cheapest options are tried first.
    """
    on_gpu, works = planned.device.startswith("cuda"), works_of(planned.units)
    formats = ("float32", "float16") if planned.model.dtype == "float32" and on_gpu else (planned.model.dtype,)
    batches = sorted({min(batch, planned.batch_size) for batch in (planned.batch_size, 4, 2, 1)}, reverse=True)
    offloads = ("none", "model", "sequential") if on_gpu else ("none",)
    tilings = (False, True) if planned.model.size > TILE else (False,)
    # Larger pictures are decoded one by one anyway.
    latents = planned.model.size // planned.shape.vae_factor
    sliced = planned.options.vae_slicing or latents <= planned.shape.max_decoded
    # The last factor varies fastest: tiles, which change pictures, are tried last of all.
    for tiling, offload, dtype, batch in itertools.product(tilings, offloads, formats, batches):
        options = replace(planned.options, offload=offload, vae_slicing=sliced, vae_tiling=tiling)
        model = planned.model.model_copy(update={"dtype": dtype})
        tried = replace(planned, model=model, batch_size=batch, options=options)
        if memory(tried, works).total <= limit:
            return _changes(planned, tried)
    return "a device with more memory, or a smaller --size"


def _changes(planned: PlannedWork, tried: PlannedWork) -> str:
    before, after = planned.options, tried.options
    words = {
        f"--batch-size {tried.batch_size}": tried.batch_size != planned.batch_size,
        "--vae-slicing": after.vae_slicing != before.vae_slicing,
        f"--dtype {tried.model.dtype}": tried.model.dtype != planned.model.dtype,
        f"--offload {after.offload}": after.offload != before.offload,
        "--vae-tiling": after.vae_tiling != before.vae_tiling,
    }
    return " ".join(word for word, needed in words.items() if needed)


def _disk(job: RunRequest, found: Forecast, download: int) -> list[Check]:
    cache = machine.hub_cache_folder()
    checks = []
    for what, folder, needed, mend in (
        ("disk for the hub's cache", cache, download, "HF_HOME=FOLDER names another place for it"),
        ("disk for results", job.results, found.disk, "--results FOLDER on another disk"),
    ):
        free = machine.free_disk(folder)
        text = f"{size_text(needed)} needed, {size_text(free)} free in {folder}"
        checks.append(Check(what, "ok", text) if needed <= free else Check(what, "missing", text, mend))
    return checks


def _work(found: Forecast) -> Check:
    text = f"{found.missing} of {found.units} units to make, about {duration(found.seconds)} (from {found.basis})"
    return Check("work", "note", text, "`riebench run` with the same options and --dry-run says more")


def is_ready(checks: Sequence[Check]) -> bool:
    """Check that nothing is missing that a job cannot do without."""
    return all(check.state != "missing" for check in checks)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the content of `--json`."""
    return {"ready": is_ready(checks), "checks": [asdict(check) for check in checks]}


WORDS = {"ok": "ok", "missing": "MISSING", "optional": "left out", "note": ""}


def print_checks(checks: Sequence[Check]) -> None:
    """Print one screen of checks to standard output.

    Commands stand unbroken below the table, to be copied.
    """
    from rich.table import Table

    if window_width() is not None:
        table = Table(show_edge=False)
        for heading in ("needed", "", "here"):
            table.add_column(heading, overflow="fold")
        for check in checks:
            add_row(table, check.what, WORDS[check.state], check.found)
        print_table(table)
    else:
        for check in checks:
            print_line(f"{WORDS[check.state]:<9} {check.what}: {check.found}")
    for state, title in (("missing", "To get what is missing:"), ("optional", "To measure what is left out:")):
        lines = dict.fromkeys(check.mend for check in checks if check.state == state and check.mend)
        if lines:
            for line in ("", title, *(f"  {line}" for line in lines)):
                print_line(line)
    print_line()
    print_line("ready" if is_ready(checks) else "not ready")

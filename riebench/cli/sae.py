"""Verbs on sparse autoencoders: inspect, feature and others.

The others write cards, compare training seeds, and train.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riebench.cli import sae_cards, sae_training
from riebench.cli.commands import CommandGroup
from riebench.cli.common import (
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    LoraOption,
    ModelNameOption,
    OfflineOption,
    OffloadOption,
    OpenOption,
    PicturesOption,
    PromptsOption,
    SaeOption,
    SingleFileConfigOption,
    SizeOption,
    StepsOption,
    UnetOption,
    VaeOption,
    friendly,
    parse_seeds,
    say,
)
from riebench.utils.terminal import add_row, print_line, print_table

if TYPE_CHECKING:
    from riebench.features.inspect import Inspection, SaeReport
    from riebench.saes.readings import Readings


app = CommandGroup(no_args_is_help=True, rich_markup_mode=None, help="Look at sparse autoencoders, and train them.")
app.command("card")(sae_cards.sae_card)
app.command("stability")(sae_cards.stability)
app.command("collect")(sae_training.collect_updates)
app.command("train")(sae_training.train_saes)
app.command("baselines")(sae_training.make_controls)
app.command("speed")(sae_training.speed)


@app.callback()
def _group() -> None:
    """Look at sparse autoencoders, and train them."""


@app.command("inspect")
@friendly
def inspect_saes(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a file, hf://ID[@REVISION][/SUBFOLDER], or BLOCK=PLACE,...; options follow a #, such as "
            "#k=10,signal=update. [default: the model's own]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Measure on this model: preset, folder, single file or hub id.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="YAML or JSON file that says which tensor is what, for any other format.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Whose prompts to measure on. [default: by model]")] = None,
    prompts: PromptsOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many prompts to measure on.")] = 16,
    steps: StepsOption = None,
    batch_size: PicturesOption = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    offline: OfflineOption = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything to this JSON file.")] = None,
) -> None:
    """Say what SAEs are; with --model, also how they do on it."""
    from dataclasses import replace

    from riebench.errors import RiebenchError
    from riebench.features.inspect import inspect, load_all, prompts_from, usual_suite
    from riebench.features.readings import open_places, try_readings
    from riebench.models.loading import load_model
    from riebench.models.presets import PRESETS
    from riebench.saes.sources import parse_sources
    from riebench.utils.files import write_atomic
    from riebench.utils.machine import pick_device

    named = source or (PRESETS[model].saes if model is not None and model in PRESETS else None)
    if named is None:
        raise RiebenchError("name the SAEs: a folder, a file or hf://ID; or with --model PRESET look at its own")
    sources = parse_sources(named)
    if mapping is not None:
        if not mapping.is_file():
            raise RiebenchError(f"--mapping {mapping}: no such file")
        sources = tuple(replace(one, options=replace(one.options, mapping=mapping)) for one in sources)
    places = open_places(sources, offline=offline)
    if model is None:
        inspection = inspect(load_all(sources, offline=offline))
        for place, names in places:
            if names:
                say(f"{place.place}: its layout leaves {', '.join(names)} open; --model tries what is possible")
    else:
        texts = prompts_from(suite or usual_suite(model), prompts, limit)
        where = pick_device(device)
        say(f"loading {model} on {where}")
        loaded = load_model(model, steps=steps, dtype=dtype, device=where, offline=offline)
        readings: tuple[Readings, ...] = ()
        if any(names for _, names in places):
            sources, readings = try_readings(places, loaded, texts, batch_size=batch_size)
        inspection = inspect(load_all(sources, offline=offline), loaded, texts, batch_size=batch_size)
        inspection = inspection.model_copy(update={"readings": readings})
    show(inspection)
    if json_file is not None:
        write_atomic(json_file, (inspection.model_dump_json(indent=2) + "\n").encode())
        say(f"written to {json_file}")


def show(inspection: Inspection) -> None:
    """Print a table with one column per SAE, and the warnings below it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    columns = [_column(report) for report in inspection.saes]
    for _ in columns:
        table.add_column(justify="right", overflow="fold")
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = [column.get(name, "") for column in columns]
        add_row(table, name, *cells, end_section=name in ("block", "row norm max"))
    print_table(table)
    if inspection.model is not None:
        positions = max((f.positions for one in inspection.saes for f in one.measured.values()), default=0)
        print_line(
            f"measured on {inspection.model}, {inspection.prompts} prompts, {inspection.steps} steps: "
            f"{positions} positions of each block"
        )
    for report in inspection.saes:
        for warning in report.warnings:
            print_line(f"WARNING {report.block or report.path}: {warning}")
    for one in inspection.readings:
        _show_readings(one)


def _show_readings(readings: Readings) -> None:
    """Print how each reading of an SAE did, and which fits.

    The columns above are those of the one that fits.
    """
    from rich import box
    from rich.table import Table

    print_line(f"{readings.block}: its layout leaves {', '.join(readings.left_open)} open; on the same activations:")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("reading", "explained variance", "features active (L0)", "dead features"):
        table.add_column(name, justify="left" if name == "reading" else "right", no_wrap=True)
    for one in readings.tried:
        marked = f"#{one.options}" + (" (best)" if one.options == readings.best else "")
        figures = one.figures
        add_row(table, marked, f"{figures.explained_variance:.4f}", f"{figures.l0:.4g}", f"{figures.dead_share:.2%}")
    print_table(table)
    print_line(f"{readings.block}: {readings.verdict}")


def _column(report: SaeReport) -> dict[str, str]:
    cells = {
        "block": report.block or "not stated",
        "format": report.format,
        "features": str(report.features),
        "width": str(report.width),
        "k": "-" if report.k is None else str(report.k),
        "activation": report.activation,
        "input norm": report.input_norm,
        "trained on": _trained_on(report),
        "row norm min": f"{report.row_norms.min:.4g}",
        "row norm median": f"{report.row_norms.median:.4g}",
        "row norm max": f"{report.row_norms.max:.4g}",
    }
    for signal, figures in report.measured.items():
        cells[f"{signal}: features active (L0)"] = f"{figures.l0:.4g}"
        cells[f"{signal}: explained variance"] = f"{figures.explained_variance:.4f}"
        cells[f"{signal}: dead features"] = f"{figures.dead_share:.2%}"
        ratios = {"mean distance": figures.mean_distance, "size ratio": figures.size_ratio}
        cells |= {f"{signal}: {name}": "-" if value is None else f"{value:.3g}" for name, value in ratios.items()}
    return cells


def _trained_on(report: SaeReport) -> str:
    if report.reads == "input":
        return f"input to {report.signal or 'what is not stated'}"
    return report.signal or "not stated"


@friendly
def feature(
    block: Annotated[str, typer.Argument(help="Which block, by its short name.")],
    index: Annotated[str, typer.Argument(help="Which feature; several with commas between.")],
    model: ModelNameOption = "toy-turbo",
    sae: SaeOption = None,
    suite: Annotated[str | None, typer.Option(help="Whose prompts to look at. [default: by model]")] = None,
    prompts: PromptsOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many prompts to look at.")] = 64,
    seeds: Annotated[str, typer.Option(help="Which seeds of each prompt, with commas between.")] = "0",
    strengths: Annotated[
        str, typer.Option(help="Multiples of the feature's mean: above 0 added, below 0 taken away.")
    ] = "-1,1,2,4,8",
    top: Annotated[int, typer.Option(min=1, help="How many of its strongest pictures to show.")] = 8,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    scorer: Annotated[
        str | None, typer.Option(help="The CLIP that measures, as for `riebench run`, or none. [default: the model's]")
    ] = None,
    batch_size: PicturesOption = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    size: SizeOption = None,
    single_file_config: SingleFileConfigOption = None,
    vae: VaeOption = None,
    unet: UnetOption = None,
    lora: LoraOption = None,
    offload: OffloadOption = "none",
    out: Annotated[Path, typer.Option(help="Folder of all feature pages.")] = Path("features"),
    offline: OfflineOption = False,
    open_page: OpenOption = False,
) -> None:
    """Write a page on features and on what switching them does.

    It shows strongest pictures, values, the effect of switching, and nearest features.
    """
    from riebench.models.spec import ModelOptions
    from riebench.report.feature_pages import FeatureJob, parse_indices, parse_strengths
    from riebench.utils.hub import offline_mode

    job = FeatureJob(
        block=block, indices=parse_indices(index), model=model, sae=sae, suite=suite, prompts=prompts, limit=limit,
        seeds=parse_seeds(seeds), strengths=parse_strengths(strengths), top=top, steps=steps, guidance=guidance,
        scorer=scorer, batch_size=batch_size, device=device, dtype=dtype, out=out, offline=offline,
        options=ModelOptions(
            size=size, config=single_file_config, vae=vae, offload=offload, unet=unet, loras=tuple(lora or ())
        ),
    )  # fmt: skip
    with offline_mode(offline):
        pages = job.run(say)
    for page in pages:
        print_line(page)
    if open_page:
        typer.launch(str(pages[0 if len(pages) == 2 else -1].resolve()))

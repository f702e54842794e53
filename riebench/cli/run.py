"""The main verb, run, and the one that checks its needs, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riebench.cli.commands import CommandGroup
from riebench.cli.common import (
    AttentionOption,
    BatchSizeOption,
    CategoriesOption,
    ChannelsLastOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    LoraOption,
    OfflineOption,
    OwnResultsOption,
    ProfileOption,
    SaeOption,
    ScorerOption,
    ScorersOption,
    SingleFileConfigOption,
    SizeOption,
    StepsOption,
    SuiteModelOption,
    SuiteOption,
    UnetOption,
    UpToDateOption,
    VaeOption,
    WeightsOption,
    friendly,
    parse_seeds,
    results_to_write,
    say,
    say_written,
    split_names,
    with_options_of,
)
from riebench.cli.names import (
    ENGINE_WORDS,
    REDO_WORDS,
    complete_settings,
    complete_settings_set,
    completing,
    known_blocks,
    known_models,
    known_offloads,
    known_regions,
    words_beginning_with,
)
from riebench.utils.terminal import print_document

if TYPE_CHECKING:
    from riebench.models.families.listing import ModelBlocks


def request_from_options(
    context: typer.Context,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CONFIGURATION",
            help="Method configurations by name or YAML file; all official ones if none.",
            autocompletion=complete_settings,
        ),
    ] = None,
    settings_set: Annotated[
        str,
        typer.Option(
            help="main: the quick ones; sweep: every method at six strengths or more; features: SAEs at 1 to 20 "
            "features; paper: equal shares, switches.",
            autocompletion=complete_settings_set,
        ),
    ] = "main",
    suite: SuiteOption = "toy",
    model: SuiteModelOption = None,
    sae: SaeOption = None,
    sae_name: Annotated[
        str | None,
        typer.Option(
            help="Added to the names of configurations with SAEs, so that one results folder holds several SAEs."
        ),
    ] = None,
    accept_sae: Annotated[
        bool,
        typer.Option("--accept-sae", help="Also run an SAE that explains nothing of the activations it is used on."),
    ] = False,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="each, together, both, or block names with commas between. [default: the configuration's]",
            autocompletion=completing(known_blocks, several=True),
        ),
    ] = None,
    edit_steps: Annotated[
        str | None,
        typer.Option(help="Change only the steps of this part of the run, such as 0:0.5 for its first half."),
    ] = None,
    categories: CategoriesOption = None,
    examples: Annotated[str | None, typer.Option(help="Only these examples, by their ids with commas between.")] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Which seeds of each example, with commas between. [default: 0; 0,1,2 for the sweep; the profile's]"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N examples of each category.")] = None,
    batch_size: BatchSizeOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    size: SizeOption = None,
    single_file_config: SingleFileConfigOption = None,
    vae: VaeOption = None,
    unet: UnetOption = None,
    lora: LoraOption = None,
    offload: Annotated[
        str,
        typer.Option(
            help="Weights kept off the GPU: none, model (all but one part), sequential (all but a layer).",
            autocompletion=completing(known_offloads),
        ),
    ] = "none",
    vae_slicing: Annotated[
        bool, typer.Option("--vae-slicing", help="Decode one picture at a time; above 512 px that is always so.")
    ] = False,
    vae_tiling: Annotated[
        bool, typer.Option("--vae-tiling", help="Decode in tiles of 512 px; changes pictures slightly.")
    ] = False,
    attention: AttentionOption = "default",
    channels_last: ChannelsLastOption = False,
    regions: Annotated[
        str | None,
        typer.Option(
            help="Finds words in pictures: attention, clipseg or grounded-sam, plain or with :key=value,... "
            "[default: attention; the profile's]",
            autocompletion=completing(known_regions),
        ),
    ] = None,
    profile: ProfileOption = "default",
    scorer: ScorerOption = None,
    scorers: ScorersOption = None,
    weights: WeightsOption = None,
    results: OwnResultsOption = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Also write the page with every picture, to report/.")
    ] = True,
    redo: Annotated[
        str,
        typer.Option(
            help="missing: only what is not done; errors: failed ones too; all.",
            autocompletion=words_beginning_with(REDO_WORDS),
        ),
    ] = "missing",
    stop_after: Annotated[
        int, typer.Option(min=0, help="Stop when the first N units all fail with the same error; 0: never.")
    ] = 20,
    offline: OfflineOption = False,
    engine: Annotated[
        str,
        typer.Option(
            help="local: this machine; ray: workers on a Ray cluster.",
            autocompletion=words_beginning_with(ENGINE_WORDS),
        ),
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="For --engine ray: HOST:PORT of its head, or auto. [default: start one here]")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that make pictures. [default: one per GPU; without, several if they are sooner done]",
        ),
    ] = None,
    trust_plugins: Annotated[
        bool,
        typer.Option(
            "--trust-plugins",
            help="Also run plug-ins (Python files) that lie outside the folder of the configuration that names them.",
        ),
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="I/N: make only the I-th of N parts; N processes do so at the same time.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with options of this command, which the others override; or a run.json, to repeat that run."
        ),
    ] = None,
) -> Any:
    """Build the `riebench.jobs.request.RunRequest` of `riebench run`'s options."""
    from riebench.utils.processes.collector import pause_collector

    pause_collector()
    from riebench.jobs.request import EngineOptions, RunRequest, parse_batch_size, parse_shard
    from riebench.models.spec import ModelOptions

    folder = results_to_write(results)
    request = RunRequest(
        suite=suite,
        settings=tuple(settings or ()),
        settings_set=settings_set,
        model=model,
        sae=sae,
        sae_name=sae_name,
        accept_sae=accept_sae,
        blocks=blocks,
        edit_steps=edit_steps,
        categories=split_names(categories),
        examples=split_names(examples),
        steps=steps,
        guidance=guidance,
        seeds=() if seeds is None else parse_seeds(seeds),
        limit=limit,
        batch_size=parse_batch_size(batch_size),
        device=device,
        dtype=dtype,
        results=folder,
        report=folder / "report" if report else None,
        redo=redo,
        offline=offline,
        regions=regions,
        profile=profile,
        scorers=(*(scorer or ()), *split_names(scorers)),
        weights=tuple(weights or ()),
        stop_after=stop_after,
        trust_plugins=trust_plugins,
        engine=EngineOptions(engine, address, workers, (1, 1) if shard is None else parse_shard(shard)),
        options=ModelOptions(
            size=size,
            config=single_file_config,
            vae=vae,
            offload=offload,
            vae_slicing=vae_slicing,
            vae_tiling=vae_tiling,
            attention=attention,
            channels_last=channels_last,
            unet=unet,
            loras=tuple(lora or ()),
        ),
    )
    if config is None:
        return request
    from riebench.jobs.config import read_config

    given = {name: value for name, value in request.to_config(defaults=True).items() if _is_given(context, name)}
    return RunRequest.from_config(read_config(config, given), config)


def _is_given(context: typer.Context, option: str) -> bool:
    """Return whether an option stands on the command line."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


@friendly
@with_options_of(request_from_options)
def run(
    job: Any,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what would be done: units, generations, time, memory, disk. Runs plug-ins.",
        ),
    ] = False,
    measure_saes: Annotated[
        bool,
        typer.Option("--measure-saes", help="Only measure the SAEs of runs that are stored already; make no pictures."),
    ] = False,
) -> None:
    """Generate, score and tabulate. Repeating a command does only what is missing.

    A method configuration may name a plug-in, a Python file with its method, which is run; a line says so first.
    """
    if dry_run:
        from riebench.jobs.dry_run import forecast_job, print_forecast

        print_forecast(forecast_job(job))
    elif measure_saes:
        from riebench.jobs.run import measure_stored_saes

        measure_stored_saes(job, say)
    else:
        from riebench.jobs.run import run_job

        run_job(job, say)


@friendly
def diff(
    first: Annotated[Path, typer.Argument(help="A run folder.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same examples, blocks, strengths and seeds.")],
    units: Annotated[
        int, typer.Option(min=0, max=1000, help="Make so many units again to find the cause; 0 makes none.")
    ] = 4,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say why two runs of the same units have different numbers.

    Names the first thing in which they differ. Then a few units are made again with one thing after the other as in the
    second run, until the numbers meet.
    """
    from riebench.difference.job import as_json as plain
    from riebench.difference.job import explain, print_difference

    found = explain(first, second, units, {"device": device, "offline": offline}, say)
    if as_json:
        print_document(json.dumps(plain(found), indent=1))
    else:
        print_difference(found)


EXIT_NOT_READY = 1


@friendly
@with_options_of(request_from_options)
def doctor(
    job: Any, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Say what a run with these options needs, what is here, and how to get the rest.

    Loads no weights and fetches nothing. Plug-ins that method configurations name are run, since only their code
    says what their methods need; a line says so first.
    """
    from riebench.jobs import doctor as examination

    checks = examination.examine(job)
    if as_json:
        print_document(json.dumps(examination.as_json(checks), indent=1))
    else:
        examination.print_checks(checks)
    if not examination.is_ready(checks):
        raise typer.Exit(EXIT_NOT_READY)


@friendly
def detect(
    suite: SuiteOption = "toy",
    model: Annotated[
        str | None,
        typer.Option(help="Preset, folder or hub id. [default: by suite]", autocompletion=completing(known_models)),
    ] = None,
    categories: Annotated[str | None, typer.Option(help="Categories, separated by commas. [default: all]")] = None,
    detectors: Annotated[
        str | None, typer.Option(help="Of mean, probe, reft, sae, random, separated by commas. [default: all]")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Blocks, separated by commas. [default: the usual ones]", autocompletion=completing(known_blocks)
        ),
    ] = None,
    sae: SaeOption = None,
    training_examples: Annotated[int, typer.Option(min=1, help="Training examples of a category, at most.")] = 16,
    folds: Annotated[
        int, typer.Option(min=2, help="Folds of a category; nothing is learned from an example's own.")
    ] = 3,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0 or 0-2.")] = "0",
    leaderboard: Annotated[
        Path, typer.Option(help="Leaderboard whose mean gains stand beside, if it is there.")
    ] = Path("leaderboard.csv"),
    out: Annotated[Path, typer.Option(help="Folder for detection.csv and detection.md.")] = Path("detection"),
    stored: Annotated[
        bool, typer.Option("--stored", help="Measure nothing: renew the gains beside the numbers in --out.")
    ] = False,
    check: UpToDateOption = False,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    offline: OfflineOption = False,
) -> None:
    """Say how well directions and SAE features tell whether a concept is in a picture.

    Each is learned from some examples of a category and read off runs of others; its AUC (the share of the ROC curve's
    square below it) is written beside how well the same direction or feature steers.
    """
    from riebench.blocks import short_name
    from riebench.features.detection import detectors as kinds
    from riebench.features.detection import readings, table
    from riebench.models.loading import load_model
    from riebench.runs.prepare import check_prompts
    from riebench.tasks.suites import default_model, load_suite
    from riebench.utils.machine import pick_device

    chosen = kinds.named_detectors(split_names(detectors))
    tasks = load_suite(suite, categories=split_names(categories))
    named = model or default_model(suite)
    if stored or check:
        found, name = table.read_areas(out), named
    else:
        where = pick_device(device)
        say(f"loading {named} on {where}")
        loaded = load_model(named, steps=steps, dtype=dtype, device=where, offline=offline)
        check_prompts(loaded, tasks)
        names = tuple(map(short_name, split_names(blocks))) or loaded.family.names.default
        request = readings.Request(
            names,
            chosen,
            examples=training_examples,
            folds=folds,
            seeds=tuple(parse_seeds(seeds)),
            sae=sae,
            offline=offline,
        )
        found, name = table.areas(readings.read_detectors(tasks, loaded, request)), loaded.spec.name
    beside = table.read_steering(leaderboard, tasks[0].suite, name)
    say_written(table.write(out, found, beside, suite=tasks[0].suite, model=name, check=check), check)


model_app = CommandGroup(no_args_is_help=True, rich_markup_mode=None, help="Look at models without their weights.")


@model_app.command("blocks")
@friendly
def model_blocks(
    model: Annotated[
        str, typer.Argument(help="Preset, folder, single file or hub id.", autocompletion=completing(known_models))
    ],
    size: SizeOption = None,
    dtype: DtypeOption = None,
    single_file_config: SingleFileConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List a model's blocks: names, paths, channels, positions and feed-forward units.

    Loads no weights and fetches nothing: a model that is not here is listed as the official one of its size.
    """
    from riebench.models.families.listing import list_blocks
    from riebench.models.lookup import look_up
    from riebench.models.spec import ModelOptions

    known = look_up(model, dtype=dtype, options=ModelOptions(size=size, config=single_file_config))
    here = known.file is not None or known.folder is not None
    found = list_blocks(known.family, known.shape, known.spec, here=here)
    if as_json:
        print_document(json.dumps(found.as_json(), indent=1))
    else:
        _print_blocks(found)


def _print_blocks(found: ModelBlocks) -> None:
    """Print a model's blocks and sizes to standard output."""
    from rich.table import Table

    from riebench.utils.machine import size_text
    from riebench.utils.terminal import add_row, print_line, print_table

    table = Table(title=f"blocks of {found.model} ({found.family}) at {found.size} px; * is edited where none is named")
    for title in ("block", "kind", "module"):
        table.add_column(title, no_wrap=True)
    for title in ("channels", "positions", "units"):
        table.add_column(title, justify="right")
    for one in found.blocks:
        mark = " *" if one.usual else ""
        numbers = (str(one.channels), str(one.positions), str(one.units or "-"))
        add_row(table, f"{one.name}{mark}", one.kind, one.path, *numbers)
    print_table(table)
    parts = ", ".join(f"{part} {count / 1e6:,.0f} M" for part, count in found.parameters.items())
    lines = [
        ("parameters", parts),
        ("memory (estimate)", f"weights {size_text(found.weight_bytes)} in {found.dtype}, the autoencoder in float32; "
                              f"one picture {size_text(found.activation_bytes)}"),
        ("work (estimate)", f"{found.teraflop:.3g} TFLOP for one evaluation on one picture"),
    ]  # fmt: skip
    if not found.here:
        lines.append(("files", "not on this machine; the numbers are those of the official model"))
    for label, text in lines:
        print_line(f"{label:<18} {text}")

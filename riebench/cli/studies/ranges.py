"""The verb that finds the strengths of a method."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from riebench.cli.common import (
    BatchSizeOption,
    CategoriesOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    OfflineOption,
    SaeOption,
    SizeOption,
    StepsOption,
    SuiteModelOption,
    SuiteOption,
    WeightsOption,
    friendly,
    say,
    split_names,
)
from riebench.cli.names import (
    DISTANCE_WORDS,
    complete_settings,
    complete_settings_set,
    completing,
    known_blocks,
    words_beginning_with,
)
from riebench.utils.terminal import print_line

MOST_POINTS = 100
"""Strengths that may be asked for."""
PLACES = ("out", "device", "batch_size", "offline", "weights")
"""Options that say where and how, and are left out of the command in documents."""


@friendly
def elastic(
    context: typer.Context,
    setting: Annotated[
        str,
        typer.Argument(
            metavar="CONFIGURATION",
            help="A method configuration by name or YAML file.",
            autocompletion=complete_settings,
        ),
    ],
    settings_set: Annotated[
        str, typer.Option(help="The set in which its name is looked up.", autocompletion=complete_settings_set)
    ] = "sweep",
    suite: SuiteOption = "toy",
    model: SuiteModelOption = None,
    sae: SaeOption = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Block names with commas between, edited together. [default: the configuration's]",
            autocompletion=completing(known_blocks, several=True),
        ),
    ] = None,
    categories: CategoriesOption = None,
    examples: Annotated[int, typer.Option(min=1, help="Examples of each category to look at, at most.")] = 4,
    seed: Annotated[
        int, typer.Option(min=0, help="Which seed of each example; best one that is scored by no run.")
    ] = 100,
    distance: Annotated[
        str,
        typer.Option(
            help="Between pictures: lpips, or dreamsim (weights of its authors).",
            autocompletion=words_beginning_with(DISTANCE_WORDS),
        ),
    ] = "lpips",
    most: Annotated[
        float, typer.Option(min=0.0001, help="Largest distance to the source picture; with DreamSim 0.04 is local.")
    ] = 0.2,
    points: Annotated[int, typer.Option(min=2, max=MOST_POINTS, help="Strengths to find.")] = 6,
    gap: Annotated[float, typer.Option(min=0.0001, help="Distance to which the search looks at neighbours.")] = 0.01,
    start: Annotated[float, typer.Option(min=0.0001, max=1e5, help="Strength that is tried first.")] = 1.0,
    weights: WeightsOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchSizeOption = "auto",
    trust_plugins: Annotated[
        bool, typer.Option("--trust-plugins", help="Also run a plug-in outside the configuration's folder.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the configuration, tables and figure; runs/ in it has the pictures.")
    ] = Path("elastic"),
    offline: OfflineOption = False,
) -> None:
    """Find strengths whose pictures are evenly far apart, up to a largest distance.

    Writes the configuration with these strengths, ready for `riebench run`. Repeating a command makes only the pictures
    that are missing. No target picture and no score is looked at.
    """
    from riebench.elastic.document import write
    from riebench.elastic.job import find_range
    from riebench.elastic.pictures import ElasticRequest
    from riebench.elastic.search import Limits
    from riebench.jobs.request import RunRequest, parse_batch_size
    from riebench.models.spec import ModelOptions

    run = RunRequest(
        suite=suite, settings=(setting,), settings_set=settings_set, model=model, sae=sae, blocks=blocks,
        categories=split_names(categories), steps=steps, guidance=guidance, seeds=(seed,),
        batch_size=parse_batch_size(batch_size), device=device, dtype=dtype, results=out / "runs", offline=offline,
        options=ModelOptions(size=size), weights=tuple(weights or ()), trust_plugins=trust_plugins,
    )  # fmt: skip
    limits = replace(Limits(), most=most, gap=gap, start=start)
    request = ElasticRequest(run, out, distance, limits, points, examples)
    for path in write(request, find_range(request, say), typed_command(context)):
        print_line(path)


def typed_command(context: typer.Context) -> str:
    """Return the command as it was typed, without the options that say where and how."""
    words = ["riebench", str(context.info_name)]
    for one in context.command.params:
        source = context.get_parameter_source(str(one.name))
        if source is None or source.name != "COMMANDLINE" or one.name in PLACES:
            continue
        value = context.params[str(one.name)]
        if one.param_type_name == "argument":
            words.append(Path(value).name)
        else:
            words += [one.opts[0]] if value is True else [one.opts[0], str(value)]
    return shlex.join(words)

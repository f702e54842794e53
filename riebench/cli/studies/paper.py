"""The verb that makes the paper's tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from riebench.cli.common import (
    DeviceOption,
    DtypeOption,
    LoraOption,
    OfflineOption,
    ProfileOption,
    ResultsOption,
    SaeOption,
    SingleFileConfigOption,
    SizeOption,
    SuiteOption,
    UnetOption,
    friendly,
    parse_numbers,
    parse_seeds,
    results_to_read,
    say,
    split_names,
    with_options_of,
)
from riebench.errors import RiebenchError
from riebench.utils.terminal import print_line

LIST = "list"
MAX_FEATURES = 1_000_000
"""Number of features of a block that may be asked for."""


def job_from_options(
    suite: SuiteOption = "toy",
    model: Annotated[
        str | None,
        typer.Option(help="The few-step model: preset, folder, file or hub id. [default: the suite's]"),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The many-step model beside it, or none. [default: toy-base or sdxl-base]")
    ] = None,
    sae: SaeOption = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="SAEs of several k and widths, in the same forms. [default: as --sae; toy: trained here]"),
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="Only these blocks, with commas between.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with a prompt a line, instead of the suite's.")
    ] = None,
    features: Annotated[
        int | None, typer.Option(min=1, max=MAX_FEATURES, help="Features of each block, for `features`. [default: 40]")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV file with the columns block,feature,label, for `features`. [default: found by itself]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prompts of each measurement, and examples of each category. [default: 100, all; `features` 300]",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Which noises of each prompt, with commas between.")] = "0",
    steps: Annotated[str, typer.Option(help="Step counts of the few-step model, with commas between.")] = "1,4",
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance of the many-step model. [default: its own]")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures generated at a time. [default: what device and free memory allow]"),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    size: SizeOption = None,
    single_file_config: SingleFileConfigOption = None,
    vae: Annotated[str | None, typer.Option(help="Another autoencoder: fp16-fix, a folder or a hub id.")] = None,
    unet: UnetOption = None,
    lora: LoraOption = None,
    offload: Annotated[str, typer.Option(help="Weights kept off the GPU: none, model or sequential.")] = "none",
    profile: ProfileOption = "default",
    results: ResultsOption = None,
    work: Annotated[
        Path, typer.Option(help="Folder for what is made on the way: trained SAEs, results of short runs.")
    ] = Path("paper-work"),
    out: Annotated[Path, typer.Option(help="Folder for documents, tables, figures and data.")] = Path("paper"),
    redo: Annotated[bool, typer.Option("--redo", help="Measure again what is there.")] = False,
    offline: OfflineOption = False,
) -> Any:
    """Return a function that makes the `PaperJob` of some options.

    The options are those of `riebench paper` (see `riebench.paper.job.PaperJob`); also return the folder to write to.
    """

    def make_job() -> Any:
        from riebench.blocks import short_name
        from riebench.models.spec import ModelOptions
        from riebench.paper.job import PaperJob
        from riebench.scoring.profiles import get_profile
        from riebench.utils.machine import pick_device

        return PaperJob(
            out=out, work=work, suite=suite, model=model, base=base, sae=sae, sweep=sweep,
            results=results_to_read(results), profile=get_profile(profile).name, prompts=prompts, features=features,
            labels=labels, limit=limit, seeds=parse_seeds(seeds), steps=_step_counts(steps), guidance=guidance,
            blocks=tuple(short_name(block) for block in split_names(blocks)), device=pick_device(device),
            dtype=dtype, batch_size=batch_size, redo=redo, offline=offline,
            options=ModelOptions(
                size=size, config=single_file_config, vae=vae, offload=offload, unet=unet, loras=tuple(lora or ())
            ), say=say,
        )  # fmt: skip

    return make_job, out


@friendly
@with_options_of(job_from_options)
def paper(
    options: Any,
    names: Annotated[list[str] | None, typer.Argument(help="Artefacts by name, all, or list. [default: list]")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether files follow from the stored data.")] = False,
) -> None:
    """Make the paper's tables and figures.

    On the toy world as it is, on SDXL for those who have the weights.
    """
    job, out = options
    if check:
        from riebench.paper.output import ALL, select_recipes
        from riebench.paper.output import check as compare

        wanted = [recipe.name for recipe in select_recipes(names or [ALL])]
        say(f"{len(compare(out, wanted))} files are up to date")
        return
    if not names or LIST in names:
        _print_list(names or [])
        return
    from riebench.paper.output import make_artefacts, select_recipes

    select_recipes(names)
    for path in make_artefacts(job(), names):
        print_line(path)


def _print_list(names: list[str]) -> None:
    from riebench.paper.registry import RECIPES

    if len(names) > 1:
        raise RiebenchError("`riebench paper list` stands alone; name artefacts, or all, to make them")
    for recipe in RECIPES.values():
        for line in (recipe.name, f"    {recipe.paper}", f"    needs: {recipe.needs}"):
            print_line(line)


def _step_counts(text: str) -> tuple[int, ...]:
    from riebench.tasks.schema import MAX_STEPS

    counts = parse_numbers(text, "--steps", "step counts with commas between, such as 1,4", MAX_STEPS)
    if len(set(counts)) != len(counts) or min(counts) < 1:
        raise RiebenchError(f"--steps {text!r}: use each step count once, from 1 on")
    return counts

"""The verb that makes a page of a feature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riebench.commands.common import DeviceOption, friendly, numbers, say


@friendly
def feature(
    block: Annotated[str, typer.Argument(help="Which block, such as up.0.1.")],
    index: Annotated[str, typer.Argument(help="Which feature; several with commas between.")],
    model: Annotated[str, typer.Option(help="Preset, folder, single file or hub id.")] = "toy-turbo",
    sae: Annotated[
        str | None,
        typer.Option(help="SAEs: a folder, file, hf://ID[@REVISION] or BLOCK=PLACE,... [default: the model's]"),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Whose prompts to look at. [default: by model]")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with a prompt a line, instead of a suite.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many prompts to look at.")] = 64,
    seeds: Annotated[str, typer.Option(help="Which seeds of each prompt, with commas between.")] = "0",
    strengths: Annotated[
        str, typer.Option(help="Multiples of the feature's mean: above 0 added, below 0 taken away.")
    ] = "-1,1,2,4,8",
    top: Annotated[int, typer.Option(min=1, help="How many of its strongest pictures to show.")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale. [default: the model's]")] = None,
    scorer: Annotated[
        str | None, typer.Option(help="The CLIP that measures, as for `riebench run`, or none. [default: the model's]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures generated at a time.")] = 4,
    device: DeviceOption = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: the model's]")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Picture side in pixels. [default: the model's]")] = None,
    config: Annotated[
        str | None, typer.Option(help="For a single file: sdxl-turbo, sdxl-base, or its model's folder or hub id.")
    ] = None,
    vae: Annotated[
        str | None, typer.Option(help="Another autoencoder: fp16-fix, a folder or a hub id. [default: the model's]")
    ] = None,
    offload: Annotated[str, typer.Option(help="Weights kept off the GPU: none, model, sequential.")] = "none",
    out: Annotated[Path, typer.Option(help="Folder of all feature pages.")] = Path("features"),
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a page on features: strongest pictures, values, what switching does, nearest features."""
    from riebench.feature_job import FeatureJob, parse_indices, parse_strengths
    from riebench.offline import offline_mode
    from riebench.options import ModelOptions

    job = FeatureJob(
        block=block, indices=parse_indices(index), model=model, sae=sae, suite=suite, prompts=prompts, limit=limit,
        seeds=numbers(seeds), strengths=parse_strengths(strengths), top=top, steps=steps, guidance=guidance,
        scorer=scorer, batch_size=batch_size, device=device, dtype=dtype, out=out, offline=offline,
        options=ModelOptions(size=size, config=config, vae=vae, offload=offload),
    )  # fmt: skip
    with offline_mode(offline):
        pages = job.run(say)
    for page in pages:
        print(page)
    if open_page:
        typer.launch(str(pages[0 if len(pages) == 2 else -1].resolve()))

"""The verb that makes a page of a feature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riebench.commands.common import friendly, numbers, say
from riebench.commands.options import (
    ConfigOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    ModelNameOption,
    OfflineOption,
    OffloadOption,
    OpenOption,
    PicturesOption,
    PromptsOption,
    SaeOption,
    SizeOption,
    StepsOption,
    VaeOption,
)


@friendly
def feature(
    block: Annotated[str, typer.Argument(help="Which block, such as up.0.1.")],
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
    config: ConfigOption = None,
    vae: VaeOption = None,
    offload: OffloadOption = "none",
    out: Annotated[Path, typer.Option(help="Folder of all feature pages.")] = Path("features"),
    offline: OfflineOption = False,
    open_page: OpenOption = False,
) -> None:
    """Write a page on features: strongest pictures, values, what switching does, nearest features."""
    from riebench.models.spec import ModelOptions
    from riebench.report.feature_pages import FeatureJob, parse_indices, parse_strengths
    from riebench.utils.hub import offline_mode

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

"""The options that more than one verb has: each is declared once, with the same words wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SuiteOption = Annotated[str, typer.Option(help="A shipped suite, or a folder of task files.")]
PromptsOption = Annotated[Path | None, typer.Option(help="Text file with a prompt a line, instead of a suite.")]
SaeOption = Annotated[
    str | None,
    typer.Option(help="SAEs: a folder, file, hf://ID[@REVISION] or BLOCK=PLACE,... [default: the model's]"),
]

ModelNameOption = Annotated[str, typer.Option(help="Preset, folder, single file or hub id.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]
GuidanceOption = Annotated[float | None, typer.Option(min=0, help="Guidance scale. [default: the model's]")]
PicturesOption = Annotated[int, typer.Option(min=1, help="Pictures generated at a time.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: the model's]")]
SizeOption = Annotated[int | None, typer.Option(min=8, help="Picture side in pixels. [default: the model's]")]
ConfigOption = Annotated[
    str | None, typer.Option(help="For a single file: sdxl-turbo, sdxl-base, or its model's folder or hub id.")
]
VaeOption = Annotated[
    str | None, typer.Option(help="Another autoencoder: fp16-fix, a folder or a hub id. [default: the model's]")
]
OffloadOption = Annotated[str, typer.Option(help="Weights kept off the GPU: none, model, sequential.")]
AttentionOption = Annotated[
    str, typer.Option(help="default, sliced, or one of PyTorch's kernels: math, efficient, flash.")
]
ChannelsLastOption = Annotated[
    bool, typer.Option("--channels-last", help="Lay convolutions out channels last; faster on some GPUs.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]

ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--results", help="Folder for everything that is written. [default: results/ and leaderboard.md here]"
    ),
]
ProfileOption = Annotated[
    str, typer.Option(help="default; or paper, piebench: as published scripts do, in tables of their own.")
]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        help="The CLIP that scores, then an independent second one: a name, local-dir:FOLDER, MODEL/TAG or MODEL@FILE. "
        "[default: the model's]",
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option("--weights", help="Where an optional metric's network lies: dino=FOLDER, squeezenet=FILE."),
]
UpToDateOption = Annotated[bool, typer.Option("--check", help="Only say whether the files are up to date.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]

"""Verbs that make sparse autoencoders: collect updates, train on them, measure the training step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riebench.commands.common import DeviceOption, friendly, say, with_options_of, words

if TYPE_CHECKING:
    from riebench.options import ModelOptions


@dataclass(frozen=True)
class Loading:
    """How a model is loaded; the options of `riebench run` of the same names."""

    model: str
    steps: int
    guidance: float | None
    dtype: str | None
    device: str
    offline: bool
    options: ModelOptions

    def load(self) -> Any:
        """The `riebench.models.LoadedModel`."""
        from riebench.job import pick_device
        from riebench.models import load_model

        where = pick_device(self.device)
        say(f"loading {self.model} on {where}")
        return load_model(
            self.model, steps=self.steps, guidance=self.guidance, dtype=self.dtype, device=where,
            offline=self.offline, options=self.options,
        )  # fmt: skip


def loading_of(
    model: Annotated[str, typer.Option(help="Preset, folder, single file or hub id.")],
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 1,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale. [default: the model's]")] = None,
    device: DeviceOption = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: the model's]")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Picture side in pixels. [default: the model's]")] = None,
    config: Annotated[
        str | None, typer.Option(help="For a single file: sdxl-turbo, sdxl-base, or its model's folder or hub id.")
    ] = None,
    offload: Annotated[str, typer.Option(help="Weights kept off the GPU: none, model, sequential.")] = "none",
    attention: Annotated[
        str, typer.Option(help="default, sliced, or one of PyTorch's kernels: math, efficient, flash.")
    ] = "default",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Lay convolutions out channels last; faster on some GPUs.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
) -> Loading:
    """What the model options stand for."""
    from riebench.options import ModelOptions

    options = ModelOptions(
        size=size, config=config, offload=offload, attention=attention, channels_last=channels_last
    )  # fmt: skip
    return Loading(model, steps, guidance, dtype, device, offline, options)


@friendly
@with_options_of(loading_of)
def collect_updates(
    loading: Any,
    out: Annotated[Path, typer.Option(help="Folder for the shards.")] = Path("updates"),
    prompts: Annotated[Path | None, typer.Option(help="Text file with a prompt a line.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set with prompts, streamed: a hub id, a folder, or a parquet, csv or json.")
    ] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Which of its configurations.")] = None,
    revision: Annotated[str | None, typer.Option(help="Which commit, branch or tag of the data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Which of its splits. [default: the only one]")] = None,
    column: Annotated[str | None, typer.Option(help="Which of its columns. [default: the only one of text]")] = None,
    toy_captions: Annotated[
        int | None, typer.Option(min=1, help="So many captions of random scenes, for the toy models.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Block names with commas between. [default: the four]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time; stays for a folder.")] = 8,
    shard_pictures: Annotated[int, typer.Option(min=1, help="Pictures in a shard; stays for a folder.")] = 256,
    redo_damaged: Annotated[
        bool, typer.Option("--redo-damaged", help="Make shards again that are cut off or have changed.")
    ] = False,
) -> None:
    """Collect block updates of many prompts, to train SAEs on. Repeating a command does only what is missing."""
    from riebench.importers.rows import Place
    from riebench.saes.collect import Collecting, collect
    from riebench.saes.prompts import PromptSource
    from riebench.schema import BLOCKS

    assert isinstance(loading, Loading)
    place = None
    if dataset is not None:
        place = Place(dataset, config=dataset_config, split=split, revision=revision, offline=loading.offline)
    source = PromptSource(prompts, place, column, toy_captions)
    known = source.count()
    what = Collecting(words(blocks) or BLOCKS, limit, seed, batch_size, shard_pictures, redo_damaged)
    there = collect(loading.load(), source.read(), out, what, known=known, say=say)
    say(f"{there.pictures} pictures in {len(there.shards)} shards; next: riebench sae train {out} --out FOLDER")

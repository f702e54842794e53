"""Verbs that make sparse autoencoders.

They collect updates, train on them, and measure the training step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from riebench.cli.common import (
    AttentionOption,
    ChannelsLastOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    LoraOption,
    ModelNameOption,
    OfflineOption,
    OffloadOption,
    SingleFileConfigOption,
    SizeOption,
    UnetOption,
    friendly,
    parse_numbers,
    say,
    split_names,
    with_options_of,
)
from riebench.utils.terminal import print_line

if TYPE_CHECKING:
    from riebench.models.spec import ModelOptions
    from riebench.saes.sae import Signal
    from riebench.training.batches import DataPass
    from riebench.training.collection import Collection
    from riebench.training.run import StoredTraining
    from riebench.training.settings import Kind, Recipe, SaeTraining


@dataclass(frozen=True)
class ModelLoading:
    """Options for loading a model, named as those of `riebench run`."""

    model: str
    steps: int
    guidance: float | None
    dtype: str | None
    device: str
    offline: bool
    options: ModelOptions

    def load(self) -> Any:
        """Load the model, a `riebench.models.loading.LoadedModel`."""
        from riebench.models.loading import load_model
        from riebench.utils.machine import pick_device

        where = pick_device(self.device)
        say(f"loading {self.model} on {where}")
        return load_model(
            self.model, steps=self.steps, guidance=self.guidance, dtype=self.dtype, device=where,
            offline=self.offline, options=self.options,
        )  # fmt: skip


def loading_from_options(
    model: ModelNameOption,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 1,
    guidance: GuidanceOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    size: SizeOption = None,
    single_file_config: SingleFileConfigOption = None,
    unet: UnetOption = None,
    lora: LoraOption = None,
    offload: OffloadOption = "none",
    attention: AttentionOption = "default",
    channels_last: ChannelsLastOption = False,
    offline: OfflineOption = False,
) -> ModelLoading:
    """Build the `ModelLoading` of the model options."""
    from riebench.models.spec import ModelOptions

    options = ModelOptions(
        size=size, config=single_file_config, offload=offload, attention=attention, channels_last=channels_last,
        unet=unet, loras=tuple(lora or ()),
    )  # fmt: skip
    return ModelLoading(model, steps, guidance, dtype, device, offline, options)


@friendly
@with_options_of(loading_from_options)
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
    blocks: Annotated[str | None, typer.Option(help="Block names, commas between. [default: the usual ones]")] = None,
    signal: Annotated[
        str, typer.Option(help="What to keep of blocks: update, output, input, or several with commas between.")
    ] = "update",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time; stays for a folder.")] = 8,
    shard_pictures: Annotated[int, typer.Option(min=1, help="Pictures in a shard; stays for a folder.")] = 256,
    redo_damaged: Annotated[
        bool, typer.Option("--redo-damaged", help="Make shards again that are cut off or have changed.")
    ] = False,
) -> None:
    """Collect block updates, outputs or inputs of many prompts, to train SAEs on.

    Repeating a command does only what is missing.
    """
    from riebench.models.lookup import usual_blocks_of
    from riebench.tasks.importers.rows import DatasetSource
    from riebench.toyworld.captions import training_captions
    from riebench.training.collect import CollectOptions, collect
    from riebench.training.prompts import PromptSource, ToyCaptions

    assert isinstance(loading, ModelLoading)
    place = None
    if dataset is not None:
        place = DatasetSource(dataset, config=dataset_config, split=split, revision=revision, offline=loading.offline)
    captions = None if toy_captions is None else ToyCaptions(toy_captions, training_captions)
    source = PromptSource(prompts, place, column, captions)
    known = source.count()
    wanted = split_names(blocks) or usual_blocks_of(loading.model)
    signals = split_names(signal)
    options = CollectOptions(wanted, limit, seed, batch_size, shard_pictures, redo_damaged, signals)
    there = collect(loading.load(), source.read(), out, options, known=known, say=say)
    say(f"{there.pictures} pictures in {len(there.shards)} shards; next: riebench sae train {out} --out FOLDER")


@friendly
def train_saes(
    updates: Annotated[Path, typer.Argument(help="Folder that `riebench sae collect` wrote.")] = Path("updates"),
    out: Annotated[Path, typer.Option(help="Folder for the SAEs; it holds one training.")] = Path("saes"),
    blocks: Annotated[str | None, typer.Option(help="Block names with commas between. [default: all]")] = None,
    signal: Annotated[
        str | None, typer.Option(help="update or output. [default: the updates, or else the outputs, if collected]")
    ] = None,
    k: Annotated[str, typer.Option(help="Features kept per position, with commas between for several SAEs.")] = "10",
    width: Annotated[str, typer.Option(help="Features of an SAE, with commas between for several.")] = "5120",
    kind: Annotated[
        str, typer.Option(help="topk, batchtopk, jumprelu or matryoshka; several with commas between.")
    ] = "topk",
    recipe: Annotated[
        str, typer.Option(help="standard, or published for that of the published SDXL Turbo SAEs.")
    ] = "standard",
    epochs: Annotated[int, typer.Option(min=1, help="How often each position is used.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after N steps. [default: all there are]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Positions a step.")] = 4096,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. [default: 0.1 / sqrt(width); published: 1e-4]")
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Share of the run over which the rate rises at its start. [default: 0.05; published: 0]"),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help="Share of the run over which the rate falls at its end. [default: 0.5; published: 0]"),
    ] = None,
    auxk: Annotated[
        int | None, typer.Option(min=0, help="Dead features in the auxiliary loss. [default: none; published: 256]")
    ] = None,
    dead_after: Annotated[
        int | None,
        typer.Option(
            min=1, help="Idle positions after which a feature is dead. [default: 1000 width / k; published: 10000000]"
        ),
    ] = None,
    buffer: Annotated[int, typer.Option(min=1, help="Positions in memory, shuffled together.")] = 262_144,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="Last positions, to measure on. [default: a twentieth, at most 65536]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of start and order.")] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between two points of the curves.")] = 20,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 1000,
    trust: Annotated[bool, typer.Option("--trust", help="Compare only the shards' sizes, not their hashes.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train SAEs, all of a block over one pass of its updates or outputs.

    Repeating a command goes on where it stopped.
    """
    import torch

    from riebench.training.batches import DataPass
    from riebench.training.collection import Collection
    from riebench.training.run import TrainingRun, train_collection
    from riebench.training.settings import recipe_settings
    from riebench.utils.machine import pick_device

    collection = Collection.open(updates)
    configs = tuple(
        recipe_settings(
            _recipe(recipe), features=features, k=one, auxk=auxk, batch_size=batch_size, learning_rate=lr,
            dead_after=dead_after, seed=seed, kind=_kind(named), decay=decay, warmup=warmup,
        )
        for named in split_names(kind) for features in _counts("--width", width) for one in _counts("--k", k)
    )  # fmt: skip
    plan = DataPass(batch_size, epochs, steps, buffer, held_out, seed)
    where = torch.device(pick_device(device))
    run = TrainingRun(out, configs, plan, where, log_every, checkpoint_every, trust, signal=_signal(signal, collection))
    lines = train_collection(collection, split_names(blocks), run, say)
    print_line(f"{'block':<10} {'kind':<10} {'k':>5} {'n':>7} {'EV':>8} {'L0':>8} {'dead':>8}")
    for line in lines:
        print_line(
            f"{line.block:<10} {line.kind:<10} {line.k:>5} {line.features:>7} {line.explained_variance:>8.4f} "
            f"{line.l0:>8.4g} {line.dead_share:>8.2%}"
        )
    say(f"measured on {lines[0].held_out} positions held out, after {lines[0].positions:,} of training")
    first = configs[0]
    chosen = "" if len(_counts("--k", k)) == 1 else f"#k={first.k}"
    say(f"next: riebench run --sae '{run.root(first)}{chosen}' --model ...")


@friendly
def make_controls(
    out: Annotated[Path, typer.Argument(help="Folder for the dictionaries; each kind gets a folder in it.")],
    updates: Annotated[
        Path | None,
        typer.Option(
            "--activations", help="Folder that `riebench sae collect` wrote. [default: OUT/updates, made now]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose updates are collected, if there are none: see --activations.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with a prompt a line, to collect from.")] = None,
    toy_captions: Annotated[
        int | None, typer.Option(min=1, help="So many captions of random scenes, for the toy models.")
    ] = None,
    kinds: Annotated[str | None, typer.Option(help="Which dictionaries, with commas between. [default: all]")] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Folder that `riebench sae train` wrote; the training is repeated with its options."),
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="Block names with commas between. [default: all]")] = None,
    signal: Annotated[
        str | None, typer.Option(help="update or output. [default: the updates, or else the outputs, if collected]")
    ] = None,
    features: Annotated[int | None, typer.Option(min=1, help="Features of the SAE. [default: 5120]")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Features kept per position. [default: 10]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of twins. [default: one epoch]")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How often each position is used. [default: 1]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Positions a step. [default: 4096]")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of start and order. [default: 0]")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Compare only the shards' sizes, not their hashes.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Make control dictionaries that an SAE is to be compared with.

    They are frozen twins of an SAE, an untrained one, and dictionaries that are no SAE. Repeating a command goes on
    where it stopped.
    """
    import torch

    from riebench.training.baselines import BASELINES, make_baselines
    from riebench.training.run import TrainingRun
    from riebench.utils.machine import pick_device

    wanted = split_names(kinds) or BASELINES
    chosen = _Controls(like, features, k, steps, epochs, batch_size, seed)
    config, plan = chosen.settings()
    where = pick_device(device)
    collection = _activations(out, updates, model, prompts, toy_captions, split_names(blocks), where)
    on = _signal(signal or chosen.signal, collection)
    names = split_names(blocks)
    chosen.check_data(collection, names, on)
    run = TrainingRun(out, (config,), plan, torch.device(where), trust=trust, signal=on)
    lines = make_baselines(collection, names, wanted, run, say)
    print_line(f"{'dictionary':<18} {'block':<10} {'n':>7} {'EV':>8} {'L0':>8} {'dead':>8}")
    for line in lines:
        print_line(
            f"{line.baseline:<18} {line.block:<10} {line.features:>7} {line.explained_variance:>8.4f} {line.l0:>8.4g} "
            f"{line.dead_share:>8.2%}"
        )
    say(f"next: riebench run --sae '{out / wanted[0]}' --model {collection.index.model.name}")


@dataclass(frozen=True)
class _Controls:
    """Settings of the SAE that dictionaries are controls of.

    They are stated, or those of a stored training.
    """

    like: Path | None
    features: int | None
    k: int | None
    steps: int | None
    epochs: int | None
    batch_size: int | None
    seed: int | None

    @cached_property
    def _training(self) -> StoredTraining | None:
        from riebench.training.run import StoredTraining

        return None if self.like is None else StoredTraining.read(self.like)

    @property
    def signal(self) -> Signal | None:
        """The signal of the stored training, if one is given."""
        return None if self._training is None else self._training.signal

    def settings(self) -> tuple[SaeTraining, DataPass]:
        """Return the settings of the SAE and of the pass over its data."""
        from riebench.errors import RiebenchError
        from riebench.training.batches import WINDOWS, DataPass
        from riebench.training.settings import SaeTraining

        if self._training is None:
            size, seed = self.batch_size or 4096, self.seed or 0
            config = SaeTraining(features=self.features or 5120, k=self.k or 10, batch_size=size, seed=seed)
            buffer = max(DataPass.buffer, WINDOWS * size)
            return config, DataPass(size, self.epochs or 1, self.steps, buffer, seed=seed)
        for flag in ("steps", "epochs", "batch_size", "seed"):
            if getattr(self, flag) is not None:
                raise RiebenchError(f"--like takes all settings of that training; leave --{flag.replace('_', '-')} out")
        found = [
            one for one in self._training.configs
            if self.features in (None, one.features) and self.k in (None, one.k)
        ]  # fmt: skip
        if len(found) != 1:
            there = ", ".join(f"{one.kind} k = {one.k}, n = {one.features}" for one in self._training.configs)
            raise RiebenchError(f"{self.like} holds {there}; choose one SAE of these with --k and --features")
        return found[0], self._training.plan

    def check_data(self, collection: Collection, blocks: tuple[str, ...], signal: Signal) -> None:
        """Refuse activations that the stored training did not see."""
        if self._training is not None:
            names = collection.own_names(blocks)
            self._training.check_data({one: collection.data(one, signal) for one in names})


def _activations(
    out: Path, folder: Path | None, model: str | None, prompts: Path | None, toy_captions: int | None,
    blocks: tuple[str, ...], device: str,
) -> Collection:  # fmt: skip
    """Open the collected activations, or collect updates into the output folder first."""
    from riebench.errors import RiebenchError
    from riebench.models.loading import load_model
    from riebench.models.lookup import usual_blocks_of
    from riebench.toyworld.captions import training_captions
    from riebench.training.collect import CollectOptions, collect
    from riebench.training.collection import Collection
    from riebench.training.prompts import PromptSource, ToyCaptions

    if folder is not None:
        if prompts is not None or toy_captions is not None:
            raise RiebenchError("with --activations nothing is collected; leave --prompts and --toy-captions out")
        there = Collection.open(folder)
        if model not in (None, there.index.model.name, there.index.model.source):
            raise RiebenchError(f"{folder} holds activations of {there.index.model.name}, not of {model}")
        return there
    if model is None:
        raise RiebenchError("give --activations FOLDER, which `riebench sae collect` writes, or a --model")
    if prompts is None and toy_captions is None:
        raise RiebenchError("give what to collect from: --prompts FILE or --toy-captions N")
    captions = None if toy_captions is None else ToyCaptions(toy_captions, training_captions)
    source = PromptSource(file=prompts, captions=captions)
    known = source.count()
    options = CollectOptions(blocks or usual_blocks_of(model))
    say(f"loading {model} on {device}")
    loaded = load_model(model, steps=1, device=device)
    return collect(loaded, source.read(), out / "updates", options, known=known, say=say)


@friendly
def speed(
    d: Annotated[int, typer.Option("--d", min=1, help="Channels of the block.")] = 1280,
    k: Annotated[int, typer.Option(min=1, help="Features kept per position.")] = 10,
    width: Annotated[int, typer.Option(min=1, help="Features of the SAE.")] = 5120,
    kind: Annotated[str, typer.Option(help="topk, batchtopk, jumprelu or matryoshka.")] = "topk",
    batch_size: Annotated[int, typer.Option(min=1, help="Positions a step.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Steps that are timed; the median counts.")] = 10,
    device: DeviceOption = "auto",
) -> None:
    """Time a training step, and its matrix products alone."""
    import torch

    from riebench.training.settings import SaeTraining
    from riebench.training.speed import measure_step
    from riebench.utils.machine import pick_device

    config = SaeTraining(features=width, k=k, batch_size=batch_size, kind=_kind(kind))
    where = torch.device(pick_device(device))
    found = measure_step(d, config, device=where, repeats=repeats)
    name = (
        torch.cuda.get_device_name(where)
        if where.type == "cuda"
        else f"{where}, processor time of {torch.get_num_threads()} threads"
    )
    print_line(
        f"d = {d}, n = {width}, k = {k}, {kind}, {batch_size} positions, float32, PyTorch {torch.__version__}, {name}"
    )
    print_line(f"whole step            {found.step * 1000:9.1f} ms   {found.flops / found.step / 1e9:9.1f} GFLOP/s")
    print_line(
        f"its matrix products   {found.products * 1000:9.1f} ms   {found.flops / found.products / 1e9:9.1f} GFLOP/s"
    )
    print_line(f"share of the products {found.share:9.1%}      {batch_size / found.step:,.0f} positions a second")


def _kind(name: str) -> Kind:
    from riebench.errors import RiebenchError, near_match
    from riebench.training.settings import KINDS

    for known in KINDS:
        if known == name:
            return known
    raise RiebenchError(f"--kind {name!r}{near_match(name, KINDS)}")


def _signal(name: str | None, collection: Collection) -> Signal:
    """Return the signal to train on.

    It is the one that the user names, or the first of both that was collected.
    """
    from riebench.errors import RiebenchError, near_match
    from riebench.saes.sae import Signal

    for known in get_args(Signal):
        if name == known or (name is None and known in collection.index.signals):
            found: Signal = known
            return found
    if name is None:
        raise RiebenchError(f"{collection.folder} holds inputs alone; SAEs are trained on updates or outputs")
    raise RiebenchError(f"--signal {name!r}: write update or output{near_match(name, get_args(Signal))}")


def _recipe(name: str) -> Recipe:
    from riebench.errors import RiebenchError, near_match
    from riebench.training.settings import RECIPES

    for known in RECIPES:
        if known == name:
            return known
    raise RiebenchError(f"--recipe {name!r}{near_match(name, RECIPES)}")


def _counts(flag: str, text: str) -> tuple[int, ...]:
    from riebench.errors import RiebenchError
    from riebench.tasks.schema import MAX_PARAMETER

    found = parse_numbers(text, flag, "whole numbers with commas between, such as 8,16", int(MAX_PARAMETER))
    if min(found) < 1:
        raise RiebenchError(f"{flag} {text!r}: write at least one number from 1 on")
    return tuple(dict.fromkeys(found))

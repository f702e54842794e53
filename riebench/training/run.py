"""The training of SAEs on a folder of collected updates.

There is one pass over the data a block; everything goes into one folder. `train_collection` trains, `SaeLine` is a
line of the figures, and `curve_files` draws the training curves.

OUT/training.json               data, order and settings: the same for the whole folder
OUT/NAME/final/                 a finished SAE; with several widths or kinds, OUT/KIND-nWIDTH/NAME/final/
OUT/NAME/curve.jsonl            its training curve
OUT/curves_BLOCK.svg, .png      the curves of a block
OUT/figures.jsonl               a line per finished SAE: explained variance, L0, dead share on positions held out
OUT/BLOCK.checkpoint            while a block is trained
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from riebench.errors import IdentityError, MemoryShortageError, RiebenchError, StoreError
from riebench.models.placement import out_of_memory
from riebench.saes.formats import folder_name
from riebench.saes.sae import Signal
from riebench.tasks.schema import Count, StoredModel
from riebench.training.batches import DataPass
from riebench.training.collection import Collection, ShardedPositions, damaged_error
from riebench.training.many import CurvePoint, TrainedSae, train_many
from riebench.training.settings import SaeTraining
from riebench.utils.files import (
    append_lines,
    content_digest,
    read_lines,
    remove_stale_files,
    repair_last_line,
    write_atomic,
)
from riebench.utils.locks import whole_lock
from riebench.utils.plots import KINDS, figure_bytes, new_figure, plot_style, series_look

TRAINING, FIGURES = "training.json", "figures.jsonl"
PANELS = (("ev", "explained variance"), ("loss", "loss"), ("l0", "features active (L0)"), ("dead_share", "dead share"))
"""Field of a point, and the label of its axis."""
CONFIGURATIONS = ("config.json", "cfg.json")
"""Names of a written SAE's configuration."""


class SaeLine(StoredModel):
    """One finished SAE."""

    block: str
    kind: str
    k: Count
    features: Count
    folder: str
    """From the output folder."""
    explained_variance: float
    l0: float
    dead_share: float
    held_out: Count
    """Positions that the figures are measured on."""
    steps: Count
    positions: Count
    """Positions trained on, counted with their repetitions."""


@dataclass(frozen=True)
class TrainingRun:
    """The settings and output folder of one training.

    Attributes:
        out: the folder that gets everything.
        configs: one SAE each, for every block; batch size and steps are the plan's.
        plan: batch size, epochs, buffer, held-out positions and order.
        device: where to train.
        log_every: steps between two points of the curves.
        checkpoint_every: steps between two checkpoints.
        trust: compares only sizes of shards, not their hashes.
        progress: shows bars.
        signal: what is trained on, "update" or "output".
    """

    out: Path
    configs: tuple[SaeTraining, ...]
    plan: DataPass
    device: torch.device | None = None
    log_every: int = 20
    checkpoint_every: int = 1000
    trust: bool = False
    progress: bool = True
    signal: Signal = "update"

    def root(self, config: SaeTraining) -> Path:
        """Return the folder that `--sae` takes for one configuration.

        It holds one SAE per block and k.
        """
        several = len({(one.kind, one.features) for one in self.configs}) > 1
        return self.out / f"{config.kind}-n{config.features}" if several else self.out

    def place(self, block: str, config: SaeTraining) -> Path:
        """Return the folder of one SAE, which holds its curve and `final`."""
        name = folder_name(
            block, config.k, config.features, auxk=config.auxk, batch=self.plan.batch_size, rate=config.peak_rate
        )
        return self.root(config) / (name if config.kind == "topk" else f"{name}_{config.kind}")


def train_collection(
    collection: Collection, blocks: Sequence[str], run: TrainingRun, say: Callable[[str], None] | None = None
) -> list[SaeLine]:
    """Train all configurations on each block.

    Repeat the call to resume after an interruption.

    Args:
        collection: the updates.
        blocks: the blocks to train on; none for all that were collected.
        run: settings and output folder.
        say: gets lines about blocks that are skipped because they are finished.

    Returns:
        One line for each SAE of these blocks.

    Raises:
        RiebenchError: if a block was not collected, a shard is damaged, data are short, or the folder holds another
            training or is in use.
        OSError: if the disk is full; what was finished stays.
    """
    if not run.configs:
        raise RiebenchError("no SAE is to be trained; give at least one k, one width and one kind")
    names = collection.own_names(blocks)
    data = {block: collection.data(block, run.signal) for block in names}
    if len({run.place(names[0], config) for config in run.configs}) < len(run.configs):
        raise RiebenchError("two of the SAEs differ in nothing that their folders are named by; train them apart")
    for positions in data.values():
        run.plan.steps_of(run.plan.split(positions)[0])
    run.out.mkdir(parents=True, exist_ok=True)
    with whole_lock(run.out):
        # A killed process may have left a partly written file as large as all its weights.
        remove_stale_files(run.out)
        claim(run, collection, data)
        done = _finished(run)
        for block, positions in data.items():
            if block not in done:
                done[block] = _train_block(positions, run)
            elif say is not None:
                say(f"{block}: finished before")
            _checkpoint(run, block).unlink(missing_ok=True)
    return [line for block in names for line in done[block]]


def claim(run: TrainingRun, collection: Collection, data: dict[str, ShardedPositions]) -> None:
    """Write the folder's settings, or compare them with those that it holds.

    Blocks may be added to a folder.

    Args:
        run: the training, whose folder is locked by the caller.
        collection: what is trained on.
        data: block -> its positions.

    Raises:
        IdentityError: if the folder holds another training.
    """
    path = run.out / TRAINING
    wanted: dict[str, Any] = {
        "model": collection.index.model.identity,
        "plan": asdict(run.plan),
        "saes": [config.stored_settings | {"batch_size": None, "steps": None} for config in run.configs],
    }
    # Folders of updates do not state it, as they did not when updates were all there was.
    signal = {} if run.signal == "update" else {"signal": run.signal}
    updates = {block: positions.digest for block, positions in data.items()}
    stored: dict[str, Any] = {}
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            known = dict(stored["updates"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged; train into a new folder") from error
        differing = [name for name in wanted if content_digest(wanted[name]) != content_digest(stored.get(name))]
        differing += ["the signal"] if signal.get("signal") != stored.get("signal") else []
        differing += [
            f"the updates of {block}" for block in updates if known.get(block, updates[block]) != updates[block]
        ]
        if differing:
            raise IdentityError(
                f"{run.out} holds another training: {', '.join(differing)} differ ({path}); use another folder, or "
                "repeat the command that it was begun with"
            )
        updates = known | updates
    write_atomic(path, (json.dumps({**wanted, **signal, "updates": updates}, indent=2) + "\n").encode())


@dataclass(frozen=True)
class StoredTraining:
    """The settings of a training, as its folder states them.

    Attributes:
        folder: where it is.
        plan: batch size, epochs, buffer, held-out positions and order.
        configs: settings, one SAE each.
        signal: what it was trained on.
        updates: block -> hash of the positions.
    """

    folder: Path
    plan: DataPass
    configs: tuple[SaeTraining, ...]
    signal: Signal
    updates: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> StoredTraining:
        """Read the settings of a folder that `train_collection` wrote.

        Raises:
            RiebenchError: if it holds no training, or a damaged one.
        """
        path = folder / TRAINING
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            plan = DataPass(**stored["plan"])
            settings = [{**one, "batch_size": plan.batch_size, "steps": plan.steps or 1} for one in stored["saes"]]
            configs = tuple(SaeTraining.from_stored(one) for one in settings)
            return cls(folder, plan, configs, stored.get("signal", "update"), dict(stored["updates"]))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RiebenchError(f"{folder} holds no training; give a folder that `riebench sae train` wrote") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged; train into a new folder") from error

    def check_data(self, data: Mapping[str, ShardedPositions]) -> None:
        """Refuse positions that the training did not see.

        Args:
            data: block -> its positions.

        Raises:
            RiebenchError: naming the first block whose positions are others.
        """
        for block, positions in data.items():
            if self.updates.get(block) != positions.digest:
                raise RiebenchError(
                    f"the SAEs in {self.folder} were not trained on the activations of {block} in "
                    f"{positions.collection.folder}; give those that they were trained on, or leave the block out"
                )


def _finished(run: TrainingRun) -> dict[str, list[SaeLine]]:
    """Return the blocks of which every SAE is finished, with their lines."""
    repair_last_line(run.out / FIGURES)
    lines: dict[str, dict[str, SaeLine]] = {}
    for number, entry in read_lines(run.out / FIGURES):
        try:
            line = SaeLine.model_validate(entry)
        except ValidationError as error:
            raise StoreError(f"{run.out / FIGURES}, line {number} describes no SAE; delete that line") from error
        lines.setdefault(line.block, {})[line.folder] = line
    found = {}
    for block, of_block in lines.items():
        wanted = [str(run.place(block, config).relative_to(run.out)) for config in run.configs]
        if all(name in of_block and is_written(run.out / name / "final") for name in wanted):
            found[block] = [of_block[name] for name in wanted]
    return found


def is_written(folder: Path) -> bool:
    """Return whether a folder holds a whole SAE.

    The configuration is written last.
    """
    return any((folder / name).is_file() for name in CONFIGURATIONS)


def _checkpoint(run: TrainingRun, block: str) -> Path:
    return run.out / f"{block}.checkpoint"


def _train_block(positions: ShardedPositions, run: TrainingRun) -> list[SaeLine]:
    block, collection = positions.block, positions.collection
    if not run.trust:
        damaged = collection.damaged([block], progress=run.progress)
        if damaged:
            raise damaged_error(collection.folder, damaged)
    places = [run.place(block, config) for config in run.configs]
    for place in places:
        # Curves are written anew: those of an interrupted training come back from its checkpoint.
        (place / "curve.jsonl").unlink(missing_ok=True)

    def log(index: int, point: CurvePoint) -> None:
        append_lines(places[index] / "curve.jsonl", [json.dumps(asdict(point))])

    try:
        trained = train_many(
            positions, run.configs, run.plan, device=run.device, name=block, progress=run.progress,
            log_every=run.log_every, log=log, checkpoint=_checkpoint(run, block),
            checkpoint_every=run.checkpoint_every,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryShortageError(
            f"not enough memory for {len(run.configs)} SAEs, the widest of {max(one.features for one in run.configs)} "
            f"features, in batches of {run.plan.batch_size}; train fewer at a time (--k, --width, --kind), each into a "
            "folder of its own, or use a smaller --batch-size"
        ) from error
    for one, place in zip(trained, places, strict=True):
        one.save(place / "final", block, run.signal)
    for name, content in curve_files(block, [(_label(one.config), one.curve) for one in trained]).items():
        write_atomic(run.out / name, content)
    lines = [_line(block, one, str(place.relative_to(run.out))) for one, place in zip(trained, places, strict=True)]
    append_lines(run.out / FIGURES, [line.model_dump_json() for line in lines])
    return lines


def _label(config: SaeTraining) -> str:
    kind = "" if config.kind == "topk" else f"{config.kind} "
    return f"{kind}k = {config.k}, n = {config.features}"


def _line(block: str, one: TrainedSae, folder: str) -> SaeLine:
    return SaeLine(
        block=block, kind=one.config.kind, k=one.config.k, features=one.config.features, folder=folder,
        explained_variance=one.figures.explained_variance, l0=one.figures.l0, dead_share=one.figures.dead_share,
        held_out=one.figures.positions, steps=one.config.steps, positions=one.config.steps * one.config.batch_size,
    )  # fmt: skip


def curve_files(block: str, curves: Sequence[tuple[str, Sequence[CurvePoint]]]) -> dict[str, bytes]:
    """Draw the training curves of several SAEs of one block.

    The same curves give the same bytes with the same matplotlib.

    Args:
        block: short name.
        curves: label and points of each.

    Returns:
        File name -> content, as SVG and PNG.
    """
    with plot_style():
        figure = new_figure((9, 6))
        for axes, (name, words) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for number, (label, points) in enumerate(curves):
                axes.plot(
                    [point.positions for point in points], [getattr(point, name) for point in points], label=label,
                    **series_look(number), linewidth=1,
                )  # fmt: skip
            axes.set_xlabel("positions")
            axes.locator_params(axis="x", nbins=5)
            axes.set_ylabel(words)
        figure.axes[0].legend(fontsize=7)
        figure.suptitle(block)
        return {f"curves_{block}.{kind}": figure_bytes(figure, kind) for kind in KINDS}

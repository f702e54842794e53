"""Trains SAEs on a folder of collected updates: one pass of the data a block, one folder with everything it gives.

OUT/training.json               data, order and settings: the same for the whole folder
OUT/NAME/final/                 a finished SAE; with several widths or kinds, OUT/KIND-nWIDTH/NAME/final/
OUT/NAME/curve.jsonl            its training curve
OUT/curves_BLOCK.svg, .png      the curves of a block
OUT/figures.jsonl               a line per finished SAE: explained variance, L0, dead share on positions held out
OUT/BLOCK.checkpoint            while a block is trained
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from riebench.analysis.figures import COLORS, DASHES, DPI, STYLE
from riebench.blocks import short_name
from riebench.errors import IdentityError, MemoryShortageError, RiebenchError, StoreError
from riebench.models.placement import out_of_memory
from riebench.saes.formats import folder_name
from riebench.tasks.schema import StoredModel
from riebench.training.batches import DataPass
from riebench.training.collection import Collection, ShardedPositions, damaged_error
from riebench.training.many import Point, TrainedSae, train_many
from riebench.training.topk import SaeTraining
from riebench.utils.files import (
    append_lines,
    content_digest,
    read_lines,
    remove_stale_files,
    repair_last_line,
    write_atomic,
)
from riebench.utils.locks import whole_lock

PANELS = (("ev", "explained variance"), ("loss", "loss"), ("l0", "features active (L0)"), ("dead_share", "dead share"))
"""Field of a point -> what is written beside its axis."""


def curve_files(block: str, curves: Sequence[tuple[str, Sequence[Point]]]) -> dict[str, bytes]:
    """The curves of several SAEs of one block; the same curves give the same bytes with the same matplotlib.

    Args:
        block: short name.
        curves: label and points of each.

    Returns:
        File name -> content, as SVG and PNG.
    """
    # Importing matplotlib takes a second: only who draws pays for it.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        for axes, (name, words) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for number, (label, points) in enumerate(curves):
                axes.plot(
                    [point.positions for point in points], [getattr(point, name) for point in points], label=label,
                    color=f"C{number % COLORS}", linestyle=DASHES[number // COLORS % len(DASHES)], linewidth=1,
                )  # fmt: skip
            axes.set_xlabel("positions")
            axes.locator_params(axis="x", nbins=5)
            axes.set_ylabel(words)
        figure.axes[0].legend(fontsize=7)
        figure.suptitle(block)
        return {f"curves_{block}.{kind}": _saved(figure, kind) for kind in ("svg", "png")}


def _saved(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


TRAINING, FIGURES = "training.json", "figures.jsonl"


class SaeLine(StoredModel):
    """One finished SAE."""

    block: str
    kind: str
    k: int
    features: int
    folder: str
    """From the output folder."""
    explained_variance: float
    l0: float
    dead_share: float
    held_out: int
    """Positions that the figures are measured on."""
    steps: int
    positions: int
    """Positions trained on, counted with their repetitions."""


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        out: the folder that gets everything.
        configs: one SAE each, for every block; batch size and steps are the plan's.
        plan: batch size, epochs, buffer, held-out positions and order.
        device: where to train.
        log_every: steps between two points of the curves.
        checkpoint_every: steps between two checkpoints.
        trust: compares only sizes of shards, not their hashes.
        progress: shows bars.
    """

    out: Path
    configs: tuple[SaeTraining, ...]
    plan: DataPass
    device: torch.device | None = None
    log_every: int = 20
    checkpoint_every: int = 1000
    trust: bool = False
    progress: bool = True

    def root(self, config: SaeTraining) -> Path:
        """The folder that `--sae` takes for one configuration: it holds one SAE per block and k."""
        several = len({(one.kind, one.features) for one in self.configs}) > 1
        return self.out / f"{config.kind}-n{config.features}" if several else self.out

    def place(self, block: str, config: SaeTraining) -> Path:
        """The folder of one SAE: its curve, and `final`."""
        name = folder_name(
            block, config.k, config.features, auxk=config.auxk, batch=self.plan.batch_size, rate=config.learning_rate
        )
        return self.root(config) / (name if config.kind == "topk" else f"{name}_{config.kind}")


def train_collection(
    collection: Collection, blocks: Sequence[str], job: Job, say: Callable[[str], None] | None = None
) -> list[SaeLine]:
    """Trains all configurations on each block; repeat it to go on after an interruption.

    Args:
        collection: the updates.
        blocks: whose; none for all that were collected.
        job: what to train, and where it goes.
        say: gets lines about what is left out because it is finished.

    Returns:
        One line for each SAE of these blocks.

    Raises:
        RiebenchError: if a block was not collected, a shard is damaged, data are short, or the folder holds another
            training or is in use.
        OSError: if the disk is full; what was finished stays.
    """
    if not job.configs:
        raise RiebenchError("no SAE is to be trained; give at least one k, one width and one kind")
    names = list(dict.fromkeys(short_name(block) for block in blocks)) or list(collection.index.blocks)
    data = {block: collection.data(block) for block in names}
    if len({job.place("mid.0", config) for config in job.configs}) < len(job.configs):
        raise RiebenchError("two of the SAEs differ in nothing that their folders are named by; train them apart")
    for positions in data.values():
        job.plan.steps_of(job.plan.split(positions)[0])
    job.out.mkdir(parents=True, exist_ok=True)
    with whole_lock(job.out):
        # What a killed training was writing just then may be as large as all its weights.
        remove_stale_files(job.out)
        _claim(job, collection, data)
        done = _finished(job)
        for block, positions in data.items():
            if block not in done:
                done[block] = _train_block(positions, job)
            elif say is not None:
                say(f"{block}: finished before")
            _checkpoint(job, block).unlink(missing_ok=True)
    return [line for block in names for line in done[block]]


def _claim(job: Job, collection: Collection, data: dict[str, ShardedPositions]) -> None:
    """Writes what the folder is to hold, or compares; blocks may be added to a folder."""
    path = job.out / TRAINING
    stated: dict[str, Any] = {
        "model": collection.index.model.identity,
        "plan": asdict(job.plan),
        "saes": [config.stated | {"batch_size": None, "steps": None} for config in job.configs],
    }
    updates = {block: positions.digest for block, positions in data.items()}
    there: dict[str, Any] = {}
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            known = dict(there["updates"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged; train into a new folder") from error
        differing = [name for name in stated if content_digest(stated[name]) != content_digest(there.get(name))]
        differing += [
            f"the updates of {block}" for block in updates if known.get(block, updates[block]) != updates[block]
        ]
        if differing:
            raise IdentityError(
                f"{job.out} holds another training: {', '.join(differing)} differ ({path}); use another folder, or "
                "repeat the command that it was begun with"
            )
        updates = known | updates
    write_atomic(path, (json.dumps({**stated, "updates": updates}, indent=2) + "\n").encode())


def _finished(job: Job) -> dict[str, list[SaeLine]]:
    """Blocks of which every SAE is there, with their lines."""
    repair_last_line(job.out / FIGURES)
    lines: dict[str, dict[str, SaeLine]] = {}
    for number, entry in read_lines(job.out / FIGURES):
        try:
            line = SaeLine.model_validate(entry)
        except ValidationError as error:
            raise StoreError(f"{job.out / FIGURES}, line {number} describes no SAE; delete that line") from error
        lines.setdefault(line.block, {})[line.folder] = line
    found = {}
    for block, of_block in lines.items():
        wanted = [str(job.place(block, config).relative_to(job.out)) for config in job.configs]
        if all(name in of_block and (job.out / name / "final" / "config.json").is_file() for name in wanted):
            found[block] = [of_block[name] for name in wanted]
    return found


def _checkpoint(job: Job, block: str) -> Path:
    return job.out / f"{block}.checkpoint"


def _train_block(positions: ShardedPositions, job: Job) -> list[SaeLine]:
    block, collection = positions.block, positions.collection
    if not job.trust:
        damaged = collection.damaged([block], progress=job.progress)
        if damaged:
            raise damaged_error(collection.folder, damaged)
    places = [job.place(block, config) for config in job.configs]
    for place in places:
        # Curves are written anew: those of an interrupted training come back from its checkpoint.
        (place / "curve.jsonl").unlink(missing_ok=True)

    def log(index: int, point: Point) -> None:
        append_lines(places[index] / "curve.jsonl", [json.dumps(asdict(point))])

    try:
        trained = train_many(
            positions, job.configs, job.plan, device=job.device, name=block, progress=job.progress,
            log_every=job.log_every, log=log, checkpoint=_checkpoint(job, block),
            checkpoint_every=job.checkpoint_every,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryShortageError(
            f"not enough memory for {len(job.configs)} SAEs, the widest of {max(one.features for one in job.configs)} "
            f"features, in batches of {job.plan.batch_size}; train fewer at a time (--k, --width, --kind), each into a "
            "folder of its own, or use a smaller --batch-size"
        ) from error
    for one, place in zip(trained, places, strict=True):
        one.save(place / "final", block)
    for name, content in curve_files(block, [(_label(one.config), one.curve) for one in trained]).items():
        write_atomic(job.out / name, content)
    lines = [_line(block, one, str(place.relative_to(job.out))) for one, place in zip(trained, places, strict=True)]
    append_lines(job.out / FIGURES, [line.model_dump_json() for line in lines])
    return lines


def _label(config: SaeTraining) -> str:
    kind = "" if config.kind == "topk" else "batch "
    return f"{kind}k = {config.k}, n = {config.features}"


def _line(block: str, one: TrainedSae, folder: str) -> SaeLine:
    return SaeLine(
        block=block, kind=one.config.kind, k=one.config.k, features=one.config.features, folder=folder,
        explained_variance=one.figures.explained_variance, l0=one.figures.l0, dead_share=one.figures.dead_share,
        held_out=one.figures.positions, steps=one.config.steps, positions=one.config.steps * one.config.batch_size,
    )  # fmt: skip

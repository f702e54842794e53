"""Reference activations of a run, against which edited ones are held.

See `riebench.generation.distribution`. They come from the source pictures of examples of the run's own tasks, with the
first seed: the first of each task, then the second of each, and so on, whatever `--limit`, batch size, shard or worker.
They are measured once for each model and suite, before the first edit, and kept as one file a block in the shared
folder.

A run measures them by itself if that is a small part of its work, or if they are there already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from riebench.blocks import block_of, short_name
from riebench.errors import DeviceLostError, RiebenchError, StoreError
from riebench.generation.distribution import (
    BlockReference,
    DistributionMeter,
    decode_reference,
    encode_reference,
    make_reference,
    measured_steps,
)
from riebench.generation.edits import Edit
from riebench.generation.generator import Capture, NoDecodeGenerator
from riebench.methods.base import ROLES, ExampleRuns
from riebench.models.loading import LoadedModel
from riebench.models.spec import ModelSpec
from riebench.runs.plan import Unit
from riebench.runs.prepare import PreparedSetting
from riebench.runs.sae_check import TOGETHER_SIZE
from riebench.store.records import noise_seed
from riebench.store.shared import SHARED_NAME, SharedFolder
from riebench.tasks.schema import EditExample, EditTask
from riebench.utils.files import content_digest, read_regular
from riebench.utils.images import picture_path

FITTED, HELD_OUT = 16, 8
"""Pictures that mean and covariance are taken of, and further ones that distances are scaled by."""
MOST_POSITIONS = 256
"""Positions of each picture that are read."""
UNITS_PER_PICTURE = 40
"""Edits that a run plans for each reference picture, if it measures the references by itself: at most 2.5 % more
pictures, and none of them is decoded."""
TOGETHER = 4
"""Small pictures that are generated together; the number follows from the model alone, so that every process finds the
same numbers."""

Before = Mapping[str, Mapping[int, float]]
"""Block -> step -> share of far positions in the unedited source run."""


def file_name(block: str) -> str:
    """Return the relative path of a block's reference in the shared folder."""
    return f"distribution/{block}.safetensors"


def watched_blocks(prepared: Mapping[str, PreparedSetting]) -> tuple[str, ...]:
    """Return the blocks that any configuration edits, by short name."""
    users = (one.setting for one in prepared.values() if one.method.edits and one.method.reads_blocks)
    return tuple(dict.fromkeys(short_name(block) for setting in users for block in setting.blocks))


def reference_examples(pool: Sequence[EditTask]) -> list[EditExample]:
    """Return the examples whose source pictures serve as references.

    They are the first of each task, then the second of each, and so on.
    """
    rounds = zip_longest(*(task.examples for task in pool))
    return list(islice((one.plain for some in rounds for one in some if one is not None), FITTED + HELD_OUT))


@torch.inference_mode()
def measure_references(
    model: LoadedModel, blocks: Sequence[str], examples: Sequence[EditExample]
) -> dict[str, BlockReference]:
    """Measure the unedited updates of some blocks.

    Args:
        model: generates; its conditional half is measured.
        blocks: short names.
        examples: `FITTED` + `HELD_OUT` of them.
    """
    steps, seen = measured_steps(model.spec.steps), dict[str, int]()
    parts: dict[tuple[str, int], list[Tensor]] = {(block, step): [] for block in blocks for step in steps}

    def take(block: str, values: Tensor) -> None:
        step = seen[block] = seen.get(block, -1) + 1
        if step in steps:
            for picture in values.flatten(2).transpose(1, 2):
                chosen = torch.randperm(len(picture), generator=torch.Generator().manual_seed(len(picture)))
                parts[block, step].append(picture[chosen[:MOST_POSITIONS].to(picture.device)].float().cpu())

    generator = NoDecodeGenerator(model)
    together = TOGETHER if model.spec.size <= TOGETHER_SIZE else 1
    for first in range(0, len(examples), together):
        some = examples[first : first + together]
        noise = [0 if model.spec.fixed_noise else noise_seed(one.id, 0) for one in some]
        seen.clear()
        generator.generate([one.source for one in some], noise, capture=Capture(tuple(blocks), sink=take))
    return {
        block: make_reference(
            [torch.cat(parts[block, step][:FITTED]) for step in steps],
            [torch.cat(parts[block, step][FITTED:]) for step in steps], steps,
        )
        for block in blocks
    }  # fmt: skip


@dataclass(frozen=True)
class DistributionWatch:
    """Everything by which a run measures edited activations; empty if it does not.

    Attributes:
        references: block -> reference, on the device of the model.
        files: relative path in the shared folder -> file, of those that were measured by this process.
    """

    references: Mapping[str, BlockReference] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def of_example(self, runs: ExampleRuns) -> ExampleWatch:
        """Return what measures the source run of one example."""
        return ExampleWatch(self.references, runs)

    def meter(self, places: Sequence[Mapping[str, Tensor]]) -> DistributionMeter | None:
        """Return the meter of a batch, or None if nothing of it is measured."""
        return DistributionMeter(self.references, places) if any(places) else None


@dataclass(frozen=True)
class ExampleWatch:
    """Measured positions of one example, and what its source run gives there.

    Each block is looked at once, however many edits change it.

    Attributes:
        references: block -> reference.
        runs: the example's source and target run.
    """

    references: Mapping[str, BlockReference]
    runs: ExampleRuns
    _places: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _before: dict[str, dict[int, float]] = field(default_factory=dict, repr=False)

    def places(self, edit: Edit) -> dict[str, Tensor]:
        """Return the positions at which an edit is measured, int64 [P] by block.

        They are those of both regions. The blocks are those that it changes.
        """
        blocks = dict.fromkeys(block_of(site) for site in edit.sites)
        return {
            block: self._inside(block)
            for block in blocks if block in self.references and block in self.runs.trace.grids
        }  # fmt: skip

    def before(self, blocks: Iterable[str]) -> Before:
        """Measure the source run at the positions of some blocks."""
        return {block: found for block in blocks if (found := self._measured(block))}

    def _inside(self, block: str) -> Tensor:
        if block not in self._places:
            roles = [self.runs.positions(role, block) for role in ROLES]
            self._places[block] = torch.cat(roles).unique()
        return self._places[block]

    def _measured(self, block: str) -> dict[int, float]:
        if block not in self._before:
            reference, trace, inside = self.references[block], self.runs.trace, self._inside(block)
            found = self._before[block] = {}
            for place, step in enumerate(reference.steps.tolist()):
                if step < trace.steps_of(block):
                    kept = trace.step_row(block, self.runs.rows["source"], step)
                    values = kept[inside.to(kept.device)].to(reference.mean.device)
                    found[step] = float(reference.measure(place, values)[2]) if len(values) else 0.0
        return self._before[block]


def stored_files(shared: SharedFolder, blocks: Iterable[str]) -> dict[str, bytes]:
    """Return the reference files that a shared folder holds, by relative path."""
    paths = {file_name(block): picture_path(shared.path, file_name(block)) for block in blocks}
    return {name: read_regular(path) for name, path in paths.items() if path.exists()}


def suite_references(suite_folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the reference files that are stored for one suite.

    Args:
        suite_folder: `results/SUITE`.

    Returns:
        Model -> relative path -> file.
    """
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(suite_folder.glob(f"*/{SHARED_NAME}/{file_name('*')}")):
        found.setdefault(path.parts[-4], {})[file_name(path.stem)] = read_regular(path)
    return found


def prepare_watch(
    prepared: Mapping[str, PreparedSetting], units: Sequence[Unit], model: LoadedModel, pool: Sequence[EditTask],
    stored: Mapping[str, bytes], say: Callable[[str], None] = lambda _: None,
) -> DistributionWatch:  # fmt: skip
    """Read the references of a run, and measure those that are missing.

    Nothing is measured if that were more than a small part of the run (`UNITS_PER_PICTURE`), or if its tasks have too
    few examples. A model that cannot generate is no error here: its units fail one by one.

    Args:
        prepared: configuration name -> configuration, ready to run.
        units: all units of the run, those of all shards.
        model: the loaded model.
        pool: whole tasks.
        stored: relative path -> reference file that is there.
        say: function that prints a line for people.

    Raises:
        StoreError: if a stored file is damaged, was changed or belongs to another model.
    """
    blocks = watched_blocks(prepared)
    digest = content_digest(model.spec.identity)
    shared = next(iter(prepared.values())).folder.shared.path
    found: dict[str, BlockReference] = {}
    for block in blocks:
        if file_name(block) in stored:
            found[block] = _read(stored[file_name(block)], shared / file_name(block), digest)
    missing = [block for block in blocks if block not in found]
    names = {name for name, one in prepared.items() if one.method.edits and one.method.reads_blocks}
    planned = sum(unit.setting.name in names for unit in units)
    examples = reference_examples(pool)
    files: dict[str, bytes] = {}
    if missing and len(examples) == FITTED + HELD_OUT and (found or planned >= UNITS_PER_PICTURE * len(examples)):
        try:
            measured = measure_references(model, missing, examples)
        except DeviceLostError:
            raise
        except RiebenchError as error:
            say(f"the distribution of activations was not measured: {error}")
            measured = {}
        about = {"model": digest, "examples": json.dumps([[one.id, one.content_hash] for one in examples])}
        files = {file_name(block): encode_reference(one, {**about, "block": block}) for block, one in measured.items()}
        found |= measured
    return DistributionWatch({block: one.to(model.device) for block, one in found.items()}, files)


def store_watch(watch: DistributionWatch, shared: SharedFolder, model: ModelSpec) -> DistributionWatch:
    """Store the references that were measured; return a watch with the stored ones.

    Another process may have stored its own first, which then count for all.

    Args:
        watch: of this process.
        shared: folder of the suite and model.
        model: the generating model.
    """
    digest = content_digest(model.identity)
    found = dict(watch.references)
    for name, data in watch.files.items():
        shared.write(name, data)
        path = picture_path(shared.path, name)
        block = Path(name).stem
        found[block] = _read(read_regular(path), path, digest).to(found[block].mean.device)
    return DistributionWatch(found, watch.files)


def _read(data: bytes, path: Path, digest: str) -> BlockReference:
    found, notes = decode_reference(data, path)
    if notes.get("model") != digest:
        raise StoreError(f"{path} is of another model; delete it and repeat `riebench run`")
    return found

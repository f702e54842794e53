"""Readings of detectors on runs of examples that they did not learn from.

The examples of a category are divided into folds, as for supervised methods. For each fold, and each concept that an
edit of it puts in, detectors are learned from the other folds and read off all source and target runs of the fold.
Whether a run shows the concept follows from its attributes where these are known, else from the words of its prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from riebench.errors import RiebenchError
from riebench.features.detection.detectors import Detector, Material, Reader
from riebench.generation.generator import Generator
from riebench.generation.memory import BatchSize
from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
from riebench.methods.base import ROLES, ExampleRuns, Role
from riebench.methods.features import changed_values
from riebench.methods.supervised.concepts import check_folds, contrast_of, training_pair
from riebench.models.loading import LoadedModel
from riebench.runs.capture import CapturePlan
from riebench.runs.masks import MaskMaker
from riebench.runs.plan import ExampleWork, plan, works_of
from riebench.runs.prepare import PreparedSetting, prepare_all
from riebench.runs.references import OtherExamples, References, folds_of
from riebench.tasks.prompts import prompt_words
from riebench.tasks.schema import EditExample, EditTask, Setting
from riebench.utils.terminal import ProgressBar


@dataclass(frozen=True)
class Reading:
    """One detector's number for one run.

    Attributes:
        category: edit category.
        seed: index of the seed.
        fold: fold of the example.
        concept: values that the concept consists of, joined by commas.
        detector: name of the detector.
        block: short name.
        unit: cluster of the example, or the example itself: what is resampled.
        example: id of the example.
        present: whether the run shows the concept.
        largest: largest number over positions, mean over steps.
        mean: mean over positions and steps.
    """

    category: str
    seed: int
    fold: int
    concept: str
    detector: str
    block: str
    unit: str
    example: str
    present: bool
    largest: float
    mean: float


@dataclass(frozen=True)
class Request:
    """Detectors, blocks and examples to measure.

    Attributes:
        blocks: short names.
        detectors: name -> detector.
        examples: how many training examples, at most.
        folds: number of folds.
        seeds: indices of the seeds.
        sae: place of the SAEs; None for the model's own.
        offline: True to fetch nothing.
        progress: True to show a bar.
    """

    blocks: tuple[str, ...]
    detectors: Mapping[str, Detector]
    examples: int = 16
    folds: int = 3
    seeds: tuple[int, ...] = (0,)
    sae: str | None = None
    offline: bool = False
    progress: bool = True


def shown_values(example: EditExample, role: Role) -> frozenset[str]:
    """Return all values that a run shows.

    They are its attributes' values where these are known, else the words of its prompt.
    """
    if example.attributes is None:
        return prompt_words(getattr(example, role))
    known: Mapping[str, str] = getattr(example.attributes, role)
    return frozenset(f"{name}={value}" for name, value in known.items())


def read_detectors(tasks: Sequence[EditTask], model: LoadedModel, request: Request) -> list[Reading]:
    """Read detectors off the runs of all examples of some tasks.

    Args:
        tasks: whole tasks of one suite.
        model: the loaded model.
        request: what is measured.

    Raises:
        RiebenchError: if blocks, SAEs or numbers do not fit, or no concept of any fold can be tested.
    """
    check_folds("detect", request.examples, request.folds)
    found: list[Reading] = []
    with tempfile.TemporaryDirectory(prefix="riebench-detect-") as scratch:
        prepared = _prepare(tasks, model, request, Path(scratch))
        references = _references(tasks, model, prepared)
        units = plan(tasks, [next(iter(prepared.values())).setting], request.seeds)
        works = works_of(units, fixed_noise=model.spec.fixed_noise)
        groups = [(task, seed) for task in tasks for seed in request.seeds]
        for task, seed in ProgressBar(groups, title="detect", unit="category", shown=request.progress):
            some = [work for work in works if work.task.name == task.name and work.seed == seed]
            for fold in range(request.folds):
                found += _read_fold(references, some, fold, prepared, request)
    if not found:
        raise RiebenchError(
            "no concept is shown by some runs of a fold, and learned from the others; take more examples"
        )
    return found


def _prepare(tasks: Sequence[EditTask], model: LoadedModel, request: Request, root: Path) -> dict[str, PreparedSetting]:
    """Check the detectors' methods against the model, and load their SAEs."""
    methods = [one.method for one in request.detectors.values() if one.method] or ["mean_direction"]
    settings = [Setting(name=method, method=method, blocks=request.blocks) for method in methods]
    return prepare_all(
        settings, tasks[0].suite, model, root, request.sae, parse_regions(DEFAULT_REGIONS).identity, request.offline
    )


def _references(tasks: Sequence[EditTask], model: LoadedModel, prepared: Mapping[str, PreparedSetting]) -> References:
    """Return the runs of all examples, with the activations that detectors read."""
    generator = Generator(model)
    shared = next(iter(prepared.values())).folder.shared
    masks = MaskMaker(parse_regions(DEFAULT_REGIONS), shared, generator, batches=BatchSize(1), offline=True)
    return References(tasks, generator, masks, CapturePlan(generator, prepared, masks.uses_attention))


def _read_fold(
    references: References, works: Sequence[ExampleWork], fold: int, prepared: Mapping[str, PreparedSetting],
    request: Request,
) -> list[Reading]:  # fmt: skip
    """Learn the concepts of one fold from the others, and read them off its runs."""
    fold_of = folds_of(references.order(works[0]), request.folds)
    held_out = [work for work in works if fold_of[work.example.id] == fold]
    if not held_out or len(held_out) == len(works):
        return []
    training = OtherExamples(references, held_out[0]).training(request.examples, request.folds)
    pairs = training.each("training pair", training_pair)
    saes = {block: sae for one in prepared.values() for block, sae in one.saes.items()}
    material = Material(training, pairs, saes, held_out[0].seed)
    readers: dict[tuple[frozenset[str], str, str], Reader] = {}
    for values in dict.fromkeys(changed_values(work.plain)[0] for work in held_out):
        contrast = contrast_of(values, 1.0, pairs) if values else None
        states = {_state(values, work.plain, role) for work in held_out for role in ROLES}
        if contrast is None or not {True, False} <= states:
            continue
        for name, detector in request.detectors.items():
            for block, reader in detector.fit(material, contrast, request.blocks).items():
                readers[values, name, block] = reader
    return [one for work in held_out for one in _read_runs(references, work, fold, readers)] if readers else []


def _state(values: frozenset[str], example: EditExample, role: Role) -> bool | None:
    """Return whether a run shows a concept; None if it shows part of it."""
    shown = shown_values(example, role)
    return True if values <= shown else None if values & shown else False


def _read_runs(
    references: References, work: ExampleWork, fold: int, readers: Mapping[tuple[frozenset[str], str, str], Reader]
) -> Iterator[Reading]:
    """Read all detectors off both runs of one example."""

    def look(runs: ExampleRuns) -> dict[tuple[frozenset[str], str, str, Role], tuple[float, float]]:
        return {(*key, role): _pooled(reader(runs, role)) for key, reader in readers.items() for role in ROLES}

    for numbers in references.look(work, ("detection", fold), look):
        for (values, name, block, role), (largest, mean) in numbers.items():
            state = _state(values, work.plain, role)
            if state is not None:
                yield Reading(
                    work.task.category, work.seed, fold, ", ".join(sorted(values)), name, block,
                    work.example.cluster or work.example.id, work.example.id, state, largest, mean,
                )  # fmt: skip


def _pooled(values: Tensor) -> tuple[float, float]:
    """Return the mean over steps of the largest number of each, and the mean of all."""
    return float(values.amax(1).mean()), float(values.mean())

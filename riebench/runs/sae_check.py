"""Check of the SAEs of a run before its first edit.

It says whether they describe the activations that they are used on. `measure` gives figures of SAEs on pictures that a
model generates, of several readings of one SAE if need be. `measure_saes` measures those of prepared configurations on
the source pictures of the run's first examples, or takes what is stored; `check_saes` refuses those that explain
nothing and says what is poor about others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from riebench.errors import DeviceLostError, RiebenchError, StoreError
from riebench.generation.generator import Generator
from riebench.generation.listeners import Listener, Listeners, flat
from riebench.models.loading import LoadedModel
from riebench.models.sae_quality import Quantity, SaeFigures, variance_text
from riebench.runs.plan import CHECKED_EXAMPLES, ExampleWork, Unit
from riebench.runs.prepare import PreparedSetting
from riebench.saes.figures import Meter
from riebench.saes.sae import SparseAutoencoder
from riebench.store.folder import Redo, RunFolder
from riebench.store.sae_figures import (
    SAE_FIGURES_FILE,
    BlockFigures,
    MeasuredExample,
    MeasuredSae,
    model_digest,
    read_sae_figures,
)
from riebench.utils.terminal import ProgressBar

TOGETHER_SIZE = 256
"""Largest pictures, in pixels, that are generated together; larger ones are generated one at a time.

What a batch computes depends on its size to rounding, so the size follows from the model alone: all processes of a run
find the same figures, whatever memory they have.
"""

Say = Callable[[str], None]
"""Function that prints a line for people."""


@dataclass(frozen=True)
class Reading:
    """One way to read an SAE: what it is given, and what it has to reconstruct.

    Attributes:
        block: short name.
        sae: the SAE.
        reads: what of the block it is given.
        signal: what of the block it has to reconstruct.
    """

    block: str
    sae: SparseAutoencoder
    reads: Quantity = "update"
    signal: Quantity = "update"

    @classmethod
    def of(cls, block: str, sae: SparseAutoencoder) -> Reading:
        """Return the reading that an SAE itself states.

        One that states nothing is read as an SAE of the block's update.
        """
        return cls(block, sae, sae.reads, sae.signal or "update")


def measure(
    readings: Sequence[Reading],
    model: LoadedModel,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> list[SaeFigures]:
    """Measure SAEs on every step and position of some generations.

    All are measured on the same activations.

    Args:
        readings: SAEs with what they read and reconstruct; an SAE may be there with several readings.
        model: generates; its conditional half is measured.
        prompts: one generation each.
        seeds: of the noise of each; None for 0, 1, 2, ...
        batch_size: pictures at a time.
        progress: shows a bar.

    Returns:
        The figures of each reading, in order.
    """
    meters = run_meters(readings, model, prompts, seeds, batch_size=batch_size, progress=progress)
    return [meter.figures() for meter in meters]


@torch.inference_mode()
def run_meters(
    readings: Sequence[Reading],
    model: LoadedModel,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> list[Meter]:
    """Run meters over the activations of some generations; see `measure`.

    Returns:
        The meter of each reading, in order.
    """
    meters = [(reading, Meter(reading.sae.to(model.device))) for reading in readings]
    capture = Listeners([_listener(reading, meter) for reading, meter in meters]).capture
    noise = [*range(len(prompts))] if seeds is None else seeds
    generator = Generator(model, cached_prompts=2 * batch_size)
    for first in ProgressBar(range(0, len(prompts), batch_size), title="measure", shown=progress):
        part = slice(first, first + batch_size)
        generator.generate(prompts[part], noise[part], capture=capture)
    return [meter for _, meter in meters]


def _listener(reading: Reading, meter: Meter) -> Listener:
    def take(x: Tensor, target: Tensor, time: Tensor | None) -> None:
        meter.add(flat(x), flat(target), time)

    return Listener(reading.block, reading.reads, reading.signal, take)


KnownSaes = Mapping[tuple[str, str, str], MeasuredSae]
"""(Model's hash, block, hash of the weights) -> SAE with figures that are stored."""


def known_saes(suite_folder: Path) -> KnownSaes:
    """Return the figures that run folders of one suite hold.

    Damaged files are left out: figures can be measured again.

    Args:
        suite_folder: `results/SUITE`.
    """
    found: dict[tuple[str, str, str], MeasuredSae] = {}
    for file in sorted(suite_folder.glob(f"*/*/{SAE_FIGURES_FILE}")):
        try:
            stored = read_sae_figures(file.parent)
        except (StoreError, OSError):
            continue
        for block, one in stored.items():
            place = (one.model, block, one.sha256)
            if place not in found or len(found[place].examples) < len(one.examples):
                # Who accepted an SAE did so for that one run.
                found[place] = one.model_copy(update={"accepted": False})
    return found


@dataclass(frozen=True)
class SaeMeasurement:
    """Figures of the SAEs of a run.

    Attributes:
        saes: configuration name -> block -> SAE; configurations without SAEs are missing.
        failure: why SAEs could not be measured; "" if all were.
        sources: configuration name -> the SAEs' place as the user named it; missing for those of the model preset.
    """

    saes: Mapping[str, BlockFigures] = field(default_factory=dict)
    failure: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    def subject(self, name: str, block: str) -> str:
        """Return the words for one SAE of a configuration, with which a message begins."""
        source = self.sources.get(name, "the model preset")
        return f"the SAE of {block} ({source}, {self.saes[name][block].sha256[:6]})"


def measure_saes(
    prepared: Mapping[str, PreparedSetting], works: Sequence[ExampleWork], model: LoadedModel, known: KnownSaes,
    *, progress: bool = False,
) -> SaeMeasurement:  # fmt: skip
    """Measure the SAEs of all configurations that have some, each once.

    Args:
        prepared: configuration name -> configuration, ready to run.
        works: the examples (`riebench.runs.plan.checked_works`).
        model: generates.
        known: stored figures, which are taken if they are of as many examples.
        progress: shows a bar.
    """
    users = {name: one for name, one in prepared.items() if one.saes}
    found: dict[tuple[str, str, str], MeasuredSae] = {}
    missing: dict[tuple[str, str, str], Reading] = {}
    for one in users.values():
        digest = model_digest(one.folder.spec)
        for block, sae in one.saes.items():
            place = (digest, block, sae.sha256)
            stored = known.get(place)
            if stored is not None and len(stored.examples) >= len(works):
                found[place] = stored
            else:
                missing[place] = Reading.of(block, sae)
    failure = ""
    if missing and works:
        together = CHECKED_EXAMPLES if model.spec.size <= TOGETHER_SIZE else 1
        try:
            figures = measure(
                list(missing.values()), model, [work.plain.source for work in works], [work.noise for work in works],
                batch_size=together, progress=progress,
            )  # fmt: skip
        except DeviceLostError:
            raise
        except RiebenchError as error:
            # Pictures that cannot be generated have their errors recorded one by one.
            figures, failure = [], str(error)
        found |= {
            place: _measured(reading, place, works, one)
            for (place, reading), one in zip(missing.items(), figures, strict=False)
        }
    saes = {
        name: {block: found[place] for block, sae in one.saes.items()
               if (place := (model_digest(one.folder.spec), block, sae.sha256)) in found}
        for name, one in users.items()
    }  # fmt: skip
    sources = {name: one.sae_source for name, one in users.items() if one.sae_source is not None}
    return SaeMeasurement(saes, failure, sources)


def add_figures(prepared: Mapping[str, PreparedSetting], measurement: SaeMeasurement, say: Say) -> int:
    """Store figures of SAEs in run folders that lack them, and say what is poor.

    Nothing is refused.

    Args:
        prepared: configuration name -> configuration, whose folder is there already.
        measurement: of their SAEs.
        say: function that prints a line for people.

    Returns:
        The number of folders that have changed.

    Raises:
        FolderInUseError: if a process writes in one of the folders.
    """
    folders = {name: one.folder for name, one in prepared.items()}
    checked = check_saes(measurement, folders, (), accept=False, redo="missing", say=say)
    changed = 0
    for name, saes in checked.items():
        before = folders[name].sae_figures()
        with folders[name].lock():
            folders[name].write_sae_figures(saes)
        changed += folders[name].sae_figures() != before
    return changed


def _measured(
    reading: Reading, place: tuple[str, str, str], works: Sequence[ExampleWork], figures: SaeFigures
) -> MeasuredSae:
    keys = [work.units[0].key for work in works]
    return MeasuredSae(
        sha256=place[2], model=place[0], reads=reading.reads, signal=reading.signal, features=reading.sae.n,
        k=reading.sae.k, figures=figures,
        examples=tuple(MeasuredExample(id=key.example_id, hash=key.example_hash, seed=key.seed) for key in keys),
    )  # fmt: skip


def check_saes(
    measurement: SaeMeasurement, folders: Mapping[str, RunFolder], units: Iterable[Unit], *, accept: bool, redo: Redo,
    say: Say,
) -> Mapping[str, BlockFigures]:  # fmt: skip
    """Refuse SAEs that explain nothing, and say what is poor about others.

    Nothing is refused of a configuration that has no unit left to make.

    Args:
        measurement: of the SAEs.
        folders: configuration name -> its folder.
        units: all units of the run.
        accept: runs SAEs that explain nothing, too.
        redo: the recorded units that are made again.
        say: function that prints a line for people.

    Returns:
        The SAEs of the measurement, with those that were accepted marked.

    Raises:
        RiebenchError: in one line, naming the first SAE that is refused.
    """
    if measurement.failure:
        say(f"the SAEs were not measured: {measurement.failure}")
    planned: dict[str, set[str]] = {}
    for unit in units:
        planned.setdefault(unit.setting.name, set()).add(unit.key.digest)
    said: dict[str, None] = {}
    checked: dict[str, BlockFigures] = {}
    for name, saes in measurement.saes.items():
        folder = folders[name]
        checked[name] = dict(saes)
        stored = folder.sae_figures() if any(one.figures.useless for one in saes.values()) else {}
        for block, one in saes.items():
            if one.figures.useless:
                accepted = accept or (block in stored and stored[block].accepted)
                if not accepted and not planned.get(name, set()) <= _recorded(folder, redo):
                    raise RiebenchError(_refusal(measurement.subject(name, block), one))
                checked[name][block] = one.model_copy(update={"accepted": accepted})
            if one.faults:
                said[_poor(measurement.subject(name, block), one)] = None
    for line in said:
        say(line)
    return checked


def _recorded(folder: RunFolder, redo: Redo) -> set[str]:
    """Return the digests of the recorded units that are not made again."""
    kept = [] if redo == "all" else folder.records()
    return {record.key.digest for record in kept if redo == "missing" or record.status != "error"}


def _refusal(subject: str, one: MeasuredSae) -> str:
    pictures = "1 source picture" if len(one.examples) == 1 else f"{len(one.examples)} source pictures"
    return (
        f"{subject} explains nothing of the block's {one.signal} in this run: {one.faults[0]} on "
        f"{pictures}. It may be made for another block, model or signal, or its file leaves open how it is read (layer "
        "norm, input scaling, activation): `riebench sae inspect PATH --model M` tries the possible readings; "
        "--accept-sae runs it all the same"
    )


def _poor(subject: str, one: MeasuredSae) -> str:
    if one.figures.useless:
        value = variance_text(one.figures.explained_variance)
        return f"{subject} is run though it explains nothing (explained variance {value})"
    return (
        f"{subject} is poor here: {'; '.join(one.faults)}. Check that it was made for this model, "
        "block and number of steps, and how its file is read: `riebench sae inspect`"
    )

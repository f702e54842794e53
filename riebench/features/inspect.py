"""Reports on SAEs: from their files alone, and measured on a model.

`inspect` reports on all SAEs of a place, `measure` computes their figures on generated pictures, `prompts_from` gives
the prompts for that, and `stored_statistics` reads the statistics that an SAE's own files state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from pydantic import Field
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.generator import Capture, Generator
from riebench.generation.hooks import known_sites
from riebench.models.loading import LoadedModel
from riebench.saes.figures import Meter, SaeFigures
from riebench.saes.files import load_tensors
from riebench.saes.formats import checkpoint_at, choose_checkpoints, find_checkpoints, load_sae
from riebench.saes.sae import COUNTING, MAX_WEIGHT, Signal, SparseAutoencoder
from riebench.saes.sources import SaeSource, check_width, sources_of
from riebench.tasks.prompts import plain_prompt
from riebench.tasks.schema import Count, StoredModel
from riebench.tasks.suites import load_suite
from riebench.utils.terminal import ProgressBar

FILES = ("mean.pt", "std.pt")
"""Mean and standard deviation of each feature over the positions where it is active, as sdxl-unbox writes them."""


class RowNorms(StoredModel):
    """Lengths of decoder rows by which feature values are multiplied."""

    min: float
    median: float
    max: float


class SaeReport(StoredModel):
    """The report on one SAE."""

    path: str
    format: str
    block: str | None
    features: Count
    width: Count
    k: Count | None
    activation: str
    input_norm: str
    signal: str | None
    row_norms: RowNorms
    sha256: str
    measured: dict[str, SaeFigures] = Field(default_factory=dict)
    """Signal -> figures on it."""
    warnings: tuple[str, ...] = ()


class Inspection(StoredModel):
    """The reports on all SAEs of one place."""

    model: str | None = None
    prompts: Count = 0
    steps: Count = 0
    saes: tuple[SaeReport, ...]


def load_all(sources: Sequence[SaeSource], *, offline: bool = False) -> list[tuple[Path, SparseAutoencoder]]:
    """Load every SAE that some places hold, with its path.

    Raises:
        RiebenchError: if a place has none, or one cannot be read.
    """
    found = []
    for source in sources:
        for path in find_checkpoints(source.locate(offline=offline), source.options, source.block):
            sae = load_sae(path, source.options).eval()
            if source.block is not None and sae.block not in (None, source.block):
                raise RiebenchError(f"{path}: the SAE was trained on block {sae.block}, not on {source.block}")
            sae.block = sae.block or source.block
            found.append((path, sae))
    return found


def inspect(
    found: Sequence[tuple[Path, SparseAutoencoder]],
    model: LoadedModel | None = None,
    prompts: Sequence[str] = (),
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> Inspection:
    """Report on SAEs.

    Args:
        found: see `load_all`.
        model: the SAEs are measured on it, if given; then every SAE needs a block of it.
        prompts: of the pictures that it generates.
        batch_size: pictures at a time.
        progress: shows a bar.

    Raises:
        RiebenchError: if an SAE does not fit the model.
    """
    measured: list[dict[Signal, SaeFigures]] = [{} for _ in found]
    if model is not None:
        measured = measure(measured_on(found, model), model, prompts, batch_size=batch_size, progress=progress)
    reports = [report(path, sae, figures) for (path, sae), figures in zip(found, measured, strict=True)]
    if model is None:
        return Inspection(saes=tuple(reports))
    return Inspection(model=model.spec.name, prompts=len(prompts), steps=model.spec.steps, saes=tuple(reports))


def measured_on(
    found: Sequence[tuple[Path, SparseAutoencoder]], model: LoadedModel
) -> list[tuple[str, SparseAutoencoder, tuple[Signal, ...]]]:
    """Return block, SAE and signals to measure for SAEs with their paths.

    Raises:
        RiebenchError: if an SAE does not say its block, or does not fit the model.
    """
    return [(_block(path, sae, model), sae, _signals(sae)) for path, sae in found]


def _block(path: Path, sae: SparseAutoencoder, model: LoadedModel) -> str:
    if sae.block is None:
        usual = model.family.names.default
        example = f"{usual[1 % len(usual)]}={path}"
        raise RiebenchError(f"{path} does not say which block it is for; write BLOCK={path}, such as {example}")
    if sae.block not in known_sites(model.denoiser):
        raise RiebenchError(f"{path} is for block {sae.block}, which {model.spec.name} does not have")
    check_width(sae, sae.block, model)
    return sae.block


def _signals(sae: SparseAutoencoder) -> tuple[Signal, ...]:
    return get_args(Signal) if sae.signal is None else (sae.signal,)


def report(path: Path, sae: SparseAutoencoder, measured: dict[Signal, SaeFigures]) -> SaeReport:
    """Return the report on one SAE, with the figures that were measured."""
    rows = sae.row_scale.double()
    return SaeReport(
        path=str(path), format=sae.format, block=sae.block, features=sae.n, width=sae.d, k=sae.k,
        activation=sae.activation, input_norm=sae.normalise, signal=sae.signal,
        row_norms=RowNorms(min=float(rows.min()), median=float(rows.median()), max=float(rows.max())),
        sha256=sae.sha256, measured={str(signal): one for signal, one in measured.items()},
        warnings=tuple(_warnings(sae, measured)),
    )  # fmt: skip


def _warnings(sae: SparseAutoencoder, measured: dict[Signal, SaeFigures]) -> list[str]:
    warnings = []
    if sae.signal == "output":
        warnings.append("trained on block outputs: it can be looked at, but edits need an SAE of block updates")
    if sae.signal is None and not measured:
        warnings.append("does not say whether it was trained on block updates or outputs; --model tries both")
    if sae.signal is None and measured:
        best = max(measured, key=lambda signal: measured[signal].explained_variance)
        warnings.append(
            f"does not say what it was trained on; it explains more of the {best}: if so, add #signal={best}"
        )
    figures = max(measured.values(), key=lambda one: one.explained_variance, default=None)
    if figures is None:
        return warnings
    if figures.explained_variance <= 0:
        warnings.append(
            f"explains nothing (explained variance {figures.explained_variance:g}): it was made for another signal, "
            "block or model, or its axes or activation are not what they are taken for; do not use it"
        )
    if sae.k is not None and not sae.k / 2 <= figures.l0 <= (sae.k if sae.activation in COUNTING else 2 * sae.k):
        reason = (
            "few features are positive here" if figures.l0 < sae.k else "its threshold comes from too short a training"
        )
        warnings.append(f"{figures.l0:g} features are active at a position, k is {sae.k}: {reason}")
    elif sae.k is None and figures.l0 > sae.n / 4:
        warnings.append(f"{figures.l0:g} of {sae.n} features are active at a position: it is not sparse here")
    return warnings


def usual_suite(model: str) -> str:
    """Return the suite whose prompts fit a model."""
    return "toy" if model.startswith("toy-") else "sdxl"


def prompts_from(suite: str, file: Path | None, limit: int) -> list[str]:
    """Return prompts to measure on.

    They are the lines of a text file, or those of a suite, evenly drawn.

    Args:
        suite: a suite's name or folder.
        file: a text file with a prompt a line, instead.
        limit: number of prompts, at most.

    Raises:
        RiebenchError: if the file cannot be read or is empty.
    """
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RiebenchError(f"--prompts {file}: cannot be read ({error})") from error
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise RiebenchError(f"--prompts {file}: it holds no prompt; write one a line")
        return prompts[:limit]
    pairs = [prompt for task in load_suite(suite) for one in task.examples for prompt in (one.source, one.target)]
    prompts = list(dict.fromkeys(plain_prompt(prompt) for prompt in pairs))
    return [prompts[i * len(prompts) // limit] for i in range(limit)] if len(prompts) > limit else prompts


def stored_statistics(
    source: str | None, model: LoadedModel, block: str, sae: SparseAutoencoder, *, offline: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Read the mean and standard deviation that an SAE's own files state.

    They are those of each feature where it is active, in units of its direction of length 1.

    Args:
        source: where the SAEs are; None for the model preset's own.
        model: the generating model.
        block: short name.
        sae: the block's.
        offline: downloads nothing.

    Returns:
        float32 [n] each; None for one that no file states, or that a file states for another number of features.

    Raises:
        RiebenchError: if such a file is damaged.
    """
    places = {one.block: one for one in sources_of(source, model)}
    place = places.get(block, places.get(None))
    if place is None:
        return None, None
    path = choose_checkpoints(place.locate(offline=offline), [block], place.options)[block]
    found = checkpoint_at(path, place.options)
    if found is None:
        return None, None
    mean, std = (read_statistic(found[0].folder / name, sae) for name in FILES)
    return mean, std


def read_statistic(path: Path, sae: SparseAutoencoder) -> Tensor | None:
    """Read one of the `FILES` of an SAE, in units of directions of length 1.

    Returns:
        float32 [n]; None if there is no such file, or it is of another number of features.

    Raises:
        RiebenchError: if it is damaged.
    """
    if not path.is_file():
        return None
    values = load_tensors(path)
    if not isinstance(values, Tensor) or values.shape != (sae.n,):
        return None
    if not values.is_floating_point() or not bool((values.abs() <= MAX_WEIGHT).all()):
        raise RiebenchError(f"{path} holds numbers that no feature's value has; delete it or fetch it again")
    # The stored statistics are of values that are not yet multiplied by the lengths of the decoder's rows.
    return values.float() * sae.row_scale.cpu()


def measure(
    saes: Sequence[tuple[str, SparseAutoencoder, Sequence[Signal]]],
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> list[dict[Signal, SaeFigures]]:
    """Measure SAEs on every step and position of some generations.

    Args:
        saes: block, SAE and the signals to try, for each.
        model: generates; its conditional half is measured.
        prompts: one generation each.
        batch_size: pictures at a time.
        progress: shows a bar.

    Returns:
        Signal -> figures, for each SAE in order.
    """
    meters = run_meters(saes, model, prompts, batch_size=batch_size, progress=progress)
    return [{signal: meter.figures() for signal, meter in found.items()} for found in meters]


@torch.inference_mode()
def run_meters(
    saes: Sequence[tuple[str, SparseAutoencoder, Sequence[Signal]]],
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> list[dict[Signal, Meter]]:
    """Run meters over the activations of some generations; see `measure`.

    Returns:
        Signal -> meter, for each SAE in order.
    """
    meters: list[dict[Signal, Meter]] = [
        {signal: Meter(sae.to(model.device)) for signal in signals} for _, sae, signals in saes
    ]

    def sink_for(signal: Signal) -> Capture:
        wanted = {block for block, _, signals in saes if signal in signals}

        def take(site: str, values: Tensor) -> None:
            x = values.movedim(1, -1).flatten(0, 2)
            for (block, _, _), found in zip(saes, meters, strict=True):
                if block == site and signal in found:
                    found[signal].add(x)

        return Capture(tuple(sorted(wanted)), keep=(signal,), sink=take)

    captures = [capture for capture in map(sink_for, _measured_signals(meters)) if capture.sites]
    generator = Generator(model, cached_prompts=2 * batch_size)
    for first in ProgressBar(range(0, len(prompts), batch_size), title="measure", shown=progress):
        some = prompts[first : first + batch_size]
        generator.generate(some, [first + i for i in range(len(some))], capture=captures)
    return meters


def _measured_signals(meters: Sequence[Mapping[Signal, Meter]]) -> list[Signal]:
    found = {signal for one in meters for signal in one}
    both: tuple[Signal, ...] = ("update", "output")
    return [signal for signal in both if signal in found]

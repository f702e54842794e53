"""Reports on SAEs: from their files alone, and measured on a model.

`inspect` reports on all SAEs of a place, with the figures that `riebench.runs.sae_check.measure` computes on generated
pictures, `prompts_from` gives the prompts for that, and `stored_statistics` reads the statistics that an SAE's own
files state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import Field
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.hooks import known_sites
from riebench.models.loading import LoadedModel
from riebench.models.sae_quality import SaeFigures, variance_text
from riebench.runs.sae_check import Reading, run_meters
from riebench.saes.figures import Meter
from riebench.saes.files import load_tensors
from riebench.saes.formats import checkpoint_at, choose_checkpoints, find_checkpoints, load_sae
from riebench.saes.readings import Readings
from riebench.saes.sae import COUNTING, MAX_WEIGHT, Signal, SparseAutoencoder
from riebench.saes.search import block_above
from riebench.saes.sources import SaeSource, check_width, sources_of
from riebench.tasks.prompts import plain_prompt
from riebench.tasks.schema import Count, StoredModel
from riebench.tasks.suites import DEFAULT_MODELS, load_suite

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
    reads: str | None
    """What its encoder reads: the block's "update", "output" or "input"; None if that is not known."""
    timed: bool
    """Whether its features depend on the denoising time."""
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
    readings: tuple[Readings, ...] = ()
    """Of the SAEs whose layout leaves something open; their reports are those of the readings that fit best."""


def load_all(sources: Sequence[SaeSource], *, offline: bool = False) -> list[tuple[Path, SparseAutoencoder]]:
    """Load every SAE that some places hold, with its path.

    Raises:
        RiebenchError: if a place has none, or one cannot be read.
    """
    found = []
    for source in sources:
        root = source.locate(offline=offline)
        for path in find_checkpoints(root, source.options, source.block):
            sae = load_sae(path, source.options).eval()
            if source.block is not None and sae.block not in (None, source.block):
                raise RiebenchError(f"{path}: the SAE was trained on block {sae.block}, not on {source.block}")
            sae.block = sae.block or source.block or block_above(path, root)
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
        measured = measure_signals(measured_on(found, model), model, prompts, batch_size=batch_size, progress=progress)
    reports = [report(path, sae, one) for (path, sae), one in zip(found, measured, strict=True)]
    if model is None:
        return Inspection(saes=tuple(reports))
    return Inspection(model=model.spec.name, prompts=len(prompts), steps=model.spec.steps, saes=tuple(reports))


def measure_signals(
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
    meters = signal_meters(saes, model, prompts, batch_size=batch_size, progress=progress)
    return [{signal: meter.figures() for signal, meter in found.items()} for found in meters]


def signal_meters(
    saes: Sequence[tuple[str, SparseAutoencoder, Sequence[Signal]]],
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> list[dict[Signal, Meter]]:
    """Run meters over the activations of some generations; see `measure_signals`.

    Returns:
        Signal -> meter, for each SAE in order.
    """
    readings = [Reading(block, sae, sae.reads_for(one), one) for block, sae, signals in saes for one in signals]
    meters = iter(run_meters(readings, model, prompts, batch_size=batch_size, progress=progress))
    return [{signal: next(meters) for signal in signals} for _, _, signals in saes]


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
        reads=sae.reads if sae.transcoder or sae.signal else None, timed=sae.timed,
        row_norms=RowNorms(min=float(rows.min()), median=float(rows.median()), max=float(rows.max())),
        sha256=sae.sha256, measured={str(signal): one for signal, one in measured.items()},
        warnings=tuple(_warnings(sae, measured)),
    )  # fmt: skip


def _warnings(sae: SparseAutoencoder, measured: dict[Signal, SaeFigures]) -> list[str]:
    warnings = []
    if sae.signal is None and not measured:
        warnings.append("does not say whether it was trained on block updates or outputs; --model tries both")
    if sae.signal is None and measured:
        best = max(measured, key=lambda signal: measured[signal].explained_variance)
        warnings.append(
            f"does not say what it was trained on; it explains more of the {best}: if so, add #signal={best}"
        )
    if _is_batch_top_k(sae) and sae.k is None:
        found = ", ".join(f"{one.l0:g} on the {signal}" for signal, one in measured.items())
        warnings.append(
            "k is not stated, and all features have one threshold, as a batch top-k leaves it; "
            + (f"L0 measured: {found}" if found else "--model measures how many features are active")
        )
    figures = max(measured.values(), key=lambda one: one.explained_variance, default=None)
    if figures is None:
        return warnings
    if figures.useless:
        value = variance_text(figures.explained_variance)
        warnings.append(
            f"explains nothing (explained variance {value}): it was made for another signal, block or model, or its "
            "axes or activation are not what they are taken for; do not use it"
        )
    if sae.k is not None and not sae.k / 2 <= figures.l0 <= (sae.k if sae.activation in COUNTING else 2 * sae.k):
        reason = (
            "few features are positive here" if figures.l0 < sae.k else "its threshold comes from too short a training"
        )
        warnings.append(f"{figures.l0:g} features are active at a position, k is {sae.k}: {reason}")
    elif sae.k is None and figures.l0 > sae.n / 4:
        warnings.append(f"{figures.l0:g} of {sae.n} features are active at a position: it is not sparse here")
    return warnings


def _is_batch_top_k(sae: SparseAutoencoder) -> bool:
    """Return whether all features share one threshold.

    Thresholds that were trained one by one never do.
    """
    return sae.threshold is not None and sae.n > 1 and bool((sae.threshold == sae.threshold[0]).all())


def usual_suite(model: str) -> str:
    """Return the suite whose prompts fit a model."""
    meant = {preset: suite for suite, preset in DEFAULT_MODELS.items()}
    return meant.get(model) or ("toy" if model.startswith("toy-") else "sdxl")


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

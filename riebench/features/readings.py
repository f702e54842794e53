"""Measurement of the possible readings of SAEs whose layout leaves something open.

`try_readings` measures each on the same generated pictures. The choice is shown to the user, who writes it behind the
SAE's place; a run never chooses by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.features.inspect import measure_signals, measured_on
from riebench.generation.generator import Capture, Generator
from riebench.models.loading import LoadedModel
from riebench.saes.files import SaeOptions
from riebench.saes.formats import find_checkpoints, left_open, load_sae
from riebench.saes.readings import ReadingFigures, Readings, variants, verdict
from riebench.saes.sae import Signal, SparseAutoencoder
from riebench.saes.search import block_above
from riebench.saes.sources import SaeSource

_PLACEHOLDERS: dict[str, Any] = {"k": 1, "input_scale": 1.0, "normalise": None}
"""Values with which an SAE can be loaded to look at its size, where they are left open."""


@dataclass(frozen=True)
class _Open:
    """An SAE that leaves something open.

    Attributes:
        source: its place alone, with its block and what the user said.
        path: the place.
        names: the options left open.
        sae: the SAE with any value of those.
        signals: the signals it may have been trained on.
    """

    source: SaeSource
    path: Path
    names: tuple[str, ...]
    sae: SparseAutoencoder
    signals: tuple[Signal, ...]


def open_places(sources: Sequence[SaeSource], *, offline: bool = False) -> list[tuple[SaeSource, tuple[str, ...]]]:
    """Return every SAE of some places, with the options that its layout leaves open.

    Each is a source of its own.

    Raises:
        RiebenchError: if a place has none, or a configuration cannot be read.
    """
    found = []
    for source in sources:
        root = source.locate(offline=offline)
        for path in find_checkpoints(root, source.options, source.block):
            block = source.block or block_above(path, root)
            found.append((replace(source, place=str(path), block=block), left_open(path, source.options)))
    return found


def try_readings(
    places: Sequence[tuple[SaeSource, tuple[str, ...]]],
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> tuple[tuple[SaeSource, ...], tuple[Readings, ...]]:
    """Measure all readings of SAEs that leave something open.

    All are measured on the same activations.

    Args:
        places: see `open_places`; some leave something open.
        model: generates the pictures.
        prompts: one picture each.
        batch_size: pictures at a time.
        progress: shows a bar.

    Returns:
        The sources, each with the options that fit best where they were open, and the readings of those SAEs.

    Raises:
        RiebenchError: if an SAE cannot be read or does not fit the model.
    """
    opened = {number: _load_open(*place, model) for number, place in enumerate(places) if place[1]}
    scales = _input_scales([one for one in opened.values() if "input_scale" in one.names], model, prompts[:batch_size])
    tried = [(number, *one) for number, place in opened.items() for one in _candidates(place, scales)]
    measured = measure_signals(
        [(opened[number].sae.block or "", sae, signals) for number, _, _, sae, signals in tried],
        model, prompts, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    chosen, reports = [source for source, _ in places], []
    for number, place in opened.items():
        options: dict[str, SaeOptions] = {}
        readings = []
        for (owner, stated, text, _, _), figures in zip(tried, measured, strict=True):
            for signal, one in figures.items() if owner == number else ():
                words = text if place.sae.signal is not None else f"{text},signal={signal}"
                options[words] = stated
                readings.append(ReadingFigures(options=words, signal=signal, figures=one))
        best, sentence = verdict(readings)
        chosen[number] = replace(place.source, options=options[best.options])
        reports.append(Readings(path=str(place.path), block=place.sae.block or "", left_open=place.names,
                                tried=tuple(readings), best=best.options, verdict=sentence))  # fmt: skip
    return tuple(chosen), tuple(reports)


def _load_open(source: SaeSource, names: tuple[str, ...], model: LoadedModel) -> _Open:
    path = Path(source.place)
    sae = load_sae(path, replace(source.options, **{name: _PLACEHOLDERS[name] for name in names}))
    sae.block = sae.block or source.block
    ((_, _, signals),) = measured_on([(path, sae)], model)
    return _Open(source, path, names, sae, signals)


def _candidates(
    place: _Open, scales: dict[tuple[str, Signal], float]
) -> list[tuple[SaeOptions, str, SparseAutoencoder, tuple[Signal, ...]]]:
    """Return options, their text, the SAE read so, and the signals to measure on."""
    found = []
    # A scale is that of one signal; whatever else is open is tried on all of them together.
    groups = [(signal,) for signal in place.signals] if "input_scale" in place.names else [place.signals]
    for signals in groups:
        usual = scales.get((place.sae.block or "", signals[0]), 1.0)
        for options, text in variants(place.source.options, place.names, place.sae.n, dict.fromkeys((usual, 1.0))):
            found.append((options, text, load_sae(place.path, options).eval(), signals))
    return found


@torch.inference_mode()
def _input_scales(
    places: Sequence[_Open], model: LoadedModel, prompts: Sequence[str]
) -> dict[tuple[str, Signal], float]:
    """Return the scale that gives what is read the mean length sqrt(d).

    Libraries choose it so.
    """
    lengths: dict[tuple[str, Signal], list[Tensor]] = {}
    captures = []
    wanted = [
        (signal, place.sae.reads_for(signal), place.sae.block or "") for place in places for signal in place.signals
    ]
    for signal, what in sorted({(signal, what) for signal, what, _ in wanted}):
        sites = {site for *pair, site in wanted if pair == [signal, what]}

        def take(site: str, values: Tensor, signal: Signal = signal) -> None:
            lengths.setdefault((site, signal), []).append(values.float().norm(dim=1).flatten().cpu())

        captures.append(Capture(tuple(sorted(sites)), keep=(what,), sink=take))
    if captures:
        Generator(model).generate(list(prompts), list(range(len(prompts))), capture=captures)
    widths = {place.sae.block or "": place.sae.d for place in places}
    # Four digits, so that what is measured is what the user is told to write.
    return {
        (site, signal): float(f"{widths[site] ** 0.5 / max(float(torch.cat(found).mean()), 1e-12):.4g}")
        for (site, signal), found in lengths.items()
    }

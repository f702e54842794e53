"""Cards of SAEs: what they are, how they do on a model, and what is known of them.

`CardJob` measures explained variance, active and dead features, and activation densities at several step counts and
under guidance; compares training seeds; and gathers benchmark scores and the licence. `riebench.features.cards.output`
writes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.features.cards.evidence import BenchmarkScore, Licence, benchmark_scores, licence_named, stated_licence
from riebench.features.cards.stability import (
    BlockStability,
    StoredSae,
    best_meter,
    block_stability,
    place_name,
    seed_groups,
    stored_saes,
)
from riebench.features.inspect import SaeReport, measured_on, report, signal_meters
from riebench.models.loading import LoadedModel, load_model
from riebench.models.presets import PRESETS
from riebench.models.spec import ModelSpec
from riebench.saes.figures import SaeFigures
from riebench.saes.sae import Signal
from riebench.saes.sources import parse_sources
from riebench.store.invocations import Invocation, invocation_notes
from riebench.tasks.schema import Count, StoredModel
from riebench.utils.files import content_digest

GUIDED = "under guidance"
STEP_COUNTS = (1, 4, 20)
"""Step counts that a card states figures at, where a model is made for them."""
BINS_PER_DECADE, DECADES = 4, 7
"""Bins of a density histogram: powers of ten from 10^-7 to 1; lower densities are in the first bin."""
DENSE = 0.1
"""Density above which a feature is active too often to stand for one thing."""

Sampling = tuple[int, float]
"""Denoising steps and guidance scale; 0 for no guidance."""


class Densities(StoredModel):
    """Activation densities of an SAE's features.

    A density is the share of positions at which a feature is active.
    """

    dead: Count
    """Features that are never active."""
    histogram: tuple[Count, ...] = Field(min_length=BINS_PER_DECADE * DECADES, max_length=BINS_PER_DECADE * DECADES)
    """All others, by the logarithm of their density."""
    median: float | None
    """Of those; None if there are none."""
    dense: Count
    """Features with a density above `DENSE`."""

    @classmethod
    def of(cls, densities: Tensor) -> Densities:
        """Count the densities [n] of an SAE's features."""
        active = densities[densities > 0].double()
        bins = BINS_PER_DECADE * DECADES
        places = (active.log10() * BINS_PER_DECADE).floor().long().clamp(-bins, -1) + bins
        return cls(
            dead=len(densities) - len(active),
            histogram=tuple(torch.bincount(places, minlength=bins).tolist()),
            median=float(f"{float(active.median()):.6g}") if len(active) else None,
            dense=int((densities > DENSE).sum()),
        )


class Measurement(StoredModel):
    """Figures of one SAE on one model at some steps."""

    sae: Count
    """Number of the SAE in the card, from 0 on."""
    model: str
    steps: Count
    guidance: float = Field(ge=0)
    """Guidance scale; 0 without. The conditional half is measured."""
    signal: Signal
    figures: SaeFigures
    densities: Densities


class NotMeasured(StoredModel):
    """A condition without figures."""

    condition: str
    reason: str
    remedy: str
    """Option with which it is measured."""


class CardModel(StoredModel):
    """A model that figures were measured on."""

    name: str
    source: str
    revision: str | None
    dtype: str
    on_hub: bool
    """Whether the source is a hub id."""


class SaeCard(StoredModel):
    """Everything that a card states."""

    version: Literal[1] = 1
    name: str
    saes: tuple[SaeReport, ...]
    models: tuple[CardModel, ...]
    prompts: Count
    """Number of prompts that were generated for each measurement, each with noise of its own."""
    prompts_source: str
    prompts_sha256: str
    measurements: tuple[Measurement, ...]
    not_measured: tuple[NotMeasured, ...]
    stability: tuple[BlockStability, ...]
    scores: tuple[BenchmarkScore, ...]
    results: str
    """Name of the folder whose runs were looked through for scores."""
    licence: Licence
    invocation: Invocation


@dataclass(frozen=True)
class CardJob:
    """Inputs of a card; most are options of `riebench sae card`.

    Attributes:
        source: where the SAEs are; None for those of the first model's preset.
        models: names of models to measure on, one or more.
        prompts: texts to generate.
        prompts_source: where they come from, in words.
        blocks: those whose SAEs are looked at; empty for all.
        seeds: places of SAEs of other training seeds.
        steps: step counts; None for those of `STEP_COUNTS` that a model is made for.
        guidance: guidance scale; None for each model's own.
        results: folder of stored runs.
        licence: named by the user; None to look for it in the SAEs' files.
        batch_size: pictures at a time.
        device: where to compute.
        dtype: number format; None for each model's own.
        offline: downloads nothing.
        progress: shows bars.
    """

    source: str | None
    models: tuple[str, ...]
    prompts: tuple[str, ...]
    prompts_source: str
    blocks: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    steps: tuple[int, ...] | None = None
    guidance: float | None = None
    results: Path = Path("results")
    licence: str | None = None
    batch_size: int = 4
    device: str = "cpu"
    dtype: str | None = None
    offline: bool = False
    progress: bool = True

    @property
    def place(self) -> str:
        """The place of the SAEs.

        Raises:
            RiebenchError: if neither the user nor the model names one.
        """
        preset = PRESETS.get(self.models[0])
        place = self.source or (preset.saes if preset else None)
        if place is None:
            raise RiebenchError(f"{self.models[0]} has no SAEs of its own; name a folder, a file or hf://ID")
        return place

    def run(self, say: Callable[[str], None]) -> SaeCard:
        """Measure, compare and gather everything.

        Args:
            say: gets lines about what is being done.

        Raises:
            RiebenchError: if SAEs or models cannot be read or do not fit each other.
        """
        named = None if self.licence is None else licence_named(self.licence)
        found = stored_saes(self.place, self.blocks, offline=self.offline)
        places = [stored_saes(place, offline=self.offline) for place in self.seeds]
        groups, left_out = seed_groups(found, places) if places else ([], [])
        for line in left_out:
            say(f"no stability of {line}")
        measured = self._measure(found, [one for group in groups for one in group[1:]], say)
        paths = [one.path for one in found]
        return SaeCard(
            name=f"SAEs of {self.models[0]}" if self.source is None else place_name(self.source),
            saes=tuple(_report(one, measured.first_figures(index)) for index, one in enumerate(found)),
            models=tuple(measured.models),
            prompts=len(self.prompts),
            prompts_source=self.prompts_source,
            prompts_sha256=content_digest(list(self.prompts)),
            measurements=tuple(measured.measurements),
            not_measured=tuple(missing_conditions(measured.specs, measured.runs)),
            stability=tuple(block_stability(group, measured.rates, measured.rates_from) for group in groups),
            scores=benchmark_scores(self.results, {(one.sae.block or "", one.sae.sha256) for one in found}),
            results=self.results.name,
            licence=named or stated_licence(parse_sources(self.place), paths, offline=self.offline),
            invocation=this_invocation(self.device),
        )

    def _measure(
        self, found: Sequence[StoredSae], partners: Sequence[StoredSae], say: Callable[[str], None]
    ) -> _Measured:
        """Measure SAEs under all conditions; SAEs of other seeds under one of them."""
        result = _Measured()
        for name in self.models:
            say(f"loading {name} on {self.device}")
            model = load_model(name, dtype=self.dtype, device=self.device, offline=self.offline)
            result.specs.append(model.spec)
            result.models.append(_card_model(model))
            runs = model_conditions(model.spec, self.steps, self.guidance)
            unguided = [run for run in runs if run[1] == 0] or runs
            for run in runs:
                say(f"measuring on {name}, {condition_text(*run)}")
                # Other seeds are only compared, which one condition is enough for: the most steps of the first model.
                also = partners if name == self.models[0] and run == unguided[-1] else ()
                self._measure_run(with_sampling(model, *run), found, also, result)
            result.runs += runs
        return result

    def _measure_run(
        self, model: LoadedModel, found: Sequence[StoredSae], partners: Sequence[StoredSae], result: _Measured
    ) -> None:
        everything = [*found, *partners]
        tried = measured_on([(one.path, one.sae) for one in everything], model)
        meters = signal_meters(tried, model, self.prompts, batch_size=self.batch_size, progress=self.progress)
        spec = model.spec
        for index, meter_of in enumerate(meters[: len(found)]):
            for signal, meter in meter_of.items():
                figures, densities = meter.figures(), Densities.of(meter.densities)
                result.measurements.append(
                    Measurement(
                        sae=index,
                        model=spec.name,
                        steps=spec.steps,
                        guidance=spec.guidance,
                        signal=signal,
                        figures=figures,
                        densities=densities,
                    )
                )
        if partners:
            result.rates = {one.path: best_meter(of).densities for one, of in zip(everything, meters, strict=True)}
            result.rates_from = f"{spec.name}, {condition_text(spec.steps, spec.guidance)}"


@dataclass
class _Measured:
    """Results of measuring on all models."""

    models: list[CardModel] = field(default_factory=list)
    specs: list[ModelSpec] = field(default_factory=list)
    runs: list[Sampling] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    rates: dict[Path, Tensor] | None = None
    rates_from: str = ""

    def first_figures(self, index: int) -> dict[Signal, SaeFigures]:
        """Return an SAE's figures under the first condition, by signal."""
        mine = [one for one in self.measurements if one.sae == index]
        found: dict[Signal, SaeFigures] = {}
        for one in mine:
            found.setdefault(one.signal, one.figures)
        return found


def with_sampling(model: LoadedModel, steps: int, guidance: float) -> LoadedModel:
    """Return the same model with other sampling; its networks are shared.

    Raises:
        RiebenchError: if a number is out of range, or the scheduler cannot be followed with it.
    """
    spec = ModelSpec.checked(**{**model.spec.model_dump(), "steps": steps, "guidance": guidance})
    return replace(model, spec=spec)


def model_conditions(spec: ModelSpec, steps: Sequence[int] | None, guidance: float | None) -> list[Sampling]:
    """Return the step counts and guidance scales to measure on a model.

    Without wishes they are those of `STEP_COUNTS` that the model is made for, and its own steps and guidance: a model
    that is sampled without guidance is distilled for a few steps, one with guidance needs about as many as its own.

    Args:
        spec: of the model, with its own steps and guidance.
        steps: wished step counts; None for those that fit.
        guidance: wished scale; None for the model's own.
    """
    counts = [*steps] if steps is not None else [count for count in STEP_COUNTS if _fits(spec, count)]
    runs = [(count, 0.0) for count in counts]
    scale = spec.guidance if guidance is None else guidance
    return [*runs, (counts[-1] if steps else spec.steps, scale)] if scale > 1 else runs


def _fits(spec: ModelSpec, count: int) -> bool:
    return count <= spec.steps if spec.guidance <= 1 else count >= spec.steps


def missing_conditions(specs: Sequence[ModelSpec], runs: Sequence[Sampling]) -> list[NotMeasured]:
    """Return the usual conditions that were not measured, each with the reason.

    Args:
        specs: of all models, with their own steps and guidance.
        runs: what was measured on them.
    """
    few = [f"{one.name} is made for {one.steps} steps at most" for one in specs if one.guidance <= 1]
    many = [f"{one.name} is made for {one.steps} steps" for one in specs if one.guidance > 1]
    missing = [
        NotMeasured(
            condition=condition_text(count, 0),
            reason="; ".join([*few, *many]),
            remedy=_remedy(specs, f"--steps {count}"),
        )
        for count in STEP_COUNTS
        if (count, 0.0) not in runs
    ]
    if not any(guidance > 0 for _, guidance in runs):
        reason = "; ".join(f"{one.name} is made for sampling without guidance" for one in specs)
        missing.append(NotMeasured(condition=GUIDED, reason=reason, remedy=_remedy(specs, "--guidance SCALE")))
    return missing


def _remedy(specs: Sequence[ModelSpec], option: str) -> str:
    """Return the option with which a condition is measured.

    It names a model that is made for the condition, if one has the same SAEs.
    """
    names = [one.name for one in specs]
    own = {PRESETS[name].saes for name in names if name in PRESETS} - {None}
    kinds = {one.guidance > 1 for one in specs}
    partner = next((n for n, one in PRESETS.items() if one.saes in own and (one.guidance > 1) not in kinds), None)
    return option if partner is None else f"--model {','.join([*names, partner])}"


def condition_text(steps: int, guidance: float) -> str:
    """Return the words for a number of steps and a guidance scale."""
    text = "1 step" if steps == 1 else f"{steps} steps"
    return f"{text}, guidance {guidance:g}" if guidance > 0 else text


def _card_model(model: LoadedModel) -> CardModel:
    spec = model.spec
    on_hub = model.preset.on_hub if model.preset else "/" in spec.source
    return CardModel(name=spec.name, source=spec.source, revision=spec.revision, dtype=spec.dtype, on_hub=on_hub)


def _report(one: StoredSae, figures: dict[Signal, SaeFigures]) -> SaeReport:
    """Return the report on an SAE, without the folders around its place.

    Warnings are those of the figures, which a card states elsewhere.
    """
    found = report(one.path, one.sae, figures)
    parts = one.path.parts
    name = parts[-2:] if parts[-1] == "final" else parts[-1:]
    return found.model_copy(update={"path": "/".join(name), "measured": {}})


def this_invocation(device: str) -> Invocation:
    """Describe this process without its time and its folders.

    So the same command gives the same bytes on the same machine.
    """
    found = Invocation.from_notes(invocation_notes(device=device)).without_folders()
    return found.model_copy(update={"started": "", "ended": None, "request": None})

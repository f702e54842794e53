"""Edited pictures whose truth is known, with their scores.

All of `riebench validity` is computed from these. `split_by_verdicts` finds them in run folders as `JudgedResults`;
`Units` holds them in one order as arrays. The last part is `Cell`, one printed number with its interval or the reason
why there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import Configuration, model_gap, origin_gap, whole_configurations
from riebench.analysis.standings import ENDS, Entry, MethodComparison, entries
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, percentile_interval
from riebench.analysis.tradeoff import Examples
from riebench.store.folder import RunFolder, group_by_model

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

SCORES: Mapping[str, int] = {"clip_gain": 1, "clip_margin": 1, "clip_direction": 1, "lpips": -1, "lpips_bg": -1}
"""Score -> 1, or -1 for a distance: it is turned round, so that more is always meant to be better."""

ASKED: Mapping[str, int] = {
    "vqa_gain": 1, "editscore": 1, "pick_gain": 1, "hps_gain": 1, "dreamsim": -1, "dino_image": 1,
    "dinov2_image": 1, "dinov3_image": 1,
}  # fmt: skip
"""Likewise, scores of scorers that are measured on request; they are examined where they measured."""

TARGET, KEPT, SUCCESS = "judge_target", "judge_kept", "success"
TRUTHS: Mapping[str, str] = {"target": TARGET, "kept": KEPT, "success": SUCCESS}
"""What a truth is called in documents -> the stored verdict; `success` is made of the other two."""

DECIMALS = 9
"""Scores nearer than this are equal: the rest is rounding of the network that measured."""


MIN_DEFINED = 0.95
"""Share of the replicates in which a number must exist for its interval to be shown."""
FEW = "fewer than 2 independent examples in a category"
RARE = "undefined in more than 5 % of the replicates"


@dataclass(frozen=True, eq=False)
class Units:
    """Edited pictures as arrays, sorted by example, seed, method, blocks, strength.

    The order does not depend on that of files and lines.

    Attributes:
        examples: what is resampled.
        methods: names, in the order of `method`.
        example: position of each picture's example, int [N].
        seed: its seed's number, int [N].
        method: position of its method, int [N].
        whole: whether its method's blocks were all edited together, bool [N].
        values: score or truth -> float64 [N], nan where there is none; distances are turned round.
        replicates: of the bootstrap.
        generator_seed: of its generator.
    """

    examples: Examples
    methods: tuple[str, ...]
    example: Ints
    seed: Ints
    method: Ints
    whole: Bools
    values: Mapping[str, Floats]
    replicates: int = REPLICATES
    generator_seed: int = BOOTSTRAP_SEED

    @cached_property
    def weights(self) -> Floats:
        """Weights [1 + R, E]: every example once, then the bootstrap's draws."""
        drawn = self.examples.draws(self.replicates, self.generator_seed)
        return np.vstack([np.ones((1, len(self.examples.ids))), drawn])

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """Scores that are examined: the usual ones, and others that measured."""
        return (*SCORES, *(name for name in ASKED if np.isfinite(self.values.get(name, np.array([np.nan]))).any()))

    def of_method(self, method: str) -> Bools:
        """Select the pictures of a method, bool [N]."""
        found: Bools = self.method == self.methods.index(method)
        return found


@dataclass(frozen=True, eq=False)
class JudgedResults:
    """One suite and model whose truth is known.

    Attributes:
        suite: its name.
        model: its name.
        units: every edited picture with a verdict; the two ends of the scale and strength 0 are left out.
        entries: all methods with all blocks together, ends included.
        labels: entry -> the name that tables use.
        left_out: name -> why its pictures are not among the units.
    """

    suite: str
    model: str
    units: Units
    entries: tuple[Entry, ...]
    labels: Mapping[Entry, str]
    left_out: Mapping[str, str]


def split_by_verdicts(folders: Iterable[RunFolder]) -> tuple[list[JudgedResults], list[tuple[str, str]]]:
    """Split results by suite and model into those with and those without a truth.

    Args:
        folders: all run folders.

    Returns:
        What can be judged, and (suite, model) of what cannot: no judge has looked at those pictures.
    """
    known, unknown = [], []
    for (suite, model), members in group_by_model(folders).items():
        found = read_judged_results(suite, model, members)
        if found is None:
            unknown.append((suite, model))
        else:
            known.append(found)
    return known, unknown


def read_judged_results(suite: str, model: str, folders: Sequence[RunFolder]) -> JudgedResults | None:
    """Read one suite and model; None if no edited picture has a verdict."""
    everything = entries(folders, single_blocks=True, extra=tuple(SCORES))
    for entry in everything:
        for configuration in entry.configurations:
            add_success(configuration)
    whole = {id(c) for c in whole_configurations(c for entry in everything for c in entry.configurations)}
    together = [entry for entry in everything if all(id(c) in whole for c in entry.configurations)]
    labels = _labels(everything)
    methods = [entry for entry in everything if entry.method not in ENDS]
    left_out = _incomparable_entries(everything)
    units = _units([entry for entry in methods if entry not in left_out], labels, whole)
    if not len(units.example):
        return None
    named = {labels[entry]: reason for entry, reason in left_out.items()}
    return JudgedResults(suite, model, units, tuple(together), labels, named)


def _incomparable_entries(everything: Sequence[Entry]) -> dict[Entry, str]:
    """Return entries that cannot be compared with the others, and the reasons.

    Their pictures come from other examples or another model.
    """
    comparison = MethodComparison(tuple(everything))
    found = {}
    for entry in everything:
        gap = model_gap((c.model_identity for c in entry.configurations), comparison.model_identity)
        gap = gap or origin_gap(entry.origins, comparison.origins)
        if gap is not None:
            found[entry] = gap
    return found


def add_success(configuration: Configuration) -> None:
    """Add the truth that is made of both verdicts, called success.

    It is 1 if the target is there and all else was kept, else 0.
    """
    kept = configuration.units.get(KEPT, {})
    categories = {
        example: category for category, examples in configuration.values.get(TARGET, {}).items() for example in examples
    }
    for (example, seed), reached in configuration.units.get(TARGET, {}).items():
        if (example, seed) in kept:
            value = float(reached == 1 and kept[example, seed] == 1)
            configuration.add(SUCCESS, categories[example], (example, seed), value)


def _labels(everything: Sequence[Entry]) -> dict[Entry, str]:
    """Return the label of each entry.

    It is the method's name, with its SAEs where several methods of that name differ in them.
    """
    saes: dict[str, set[str]] = {}
    for entry in everything:
        saes.setdefault(entry.name, set()).add(entry.sae)
    return {entry: entry.name if len(saes[entry.name]) == 1 else f"{entry.name} ({entry.sae})" for entry in everything}


def _units(everything: Sequence[Entry], labels: Mapping[Entry, str], whole: set[int]) -> Units:
    """Collect the pictures with a verdict of some entries."""
    categories: dict[str, str] = {}
    clusters: dict[str, str] = {}
    rows: list[tuple[tuple[str, int, str, str, float], bool, Configuration]] = []
    for entry in everything:
        for c in (c for c in entry.configurations if c.strength != 0 and SUCCESS in c.units):
            clusters |= c.clusters
            categories |= {name: category for category, names in c.values[SUCCESS].items() for name in names}
            rows += [
                ((example, seed, labels[entry], c.block_set, c.strength), id(c) in whole, c)
                for example, seed in c.units[SUCCESS]
            ]
    examples = Examples.of(categories, clusters)
    places = {name: index for index, name in enumerate(examples.ids)}
    methods = tuple(sorted({key[2] for key, _, _ in rows}))
    rows.sort(key=lambda row: (places[row[0][0]], *row[0][1:], row[2].setting))
    return Units(
        examples,
        methods,
        np.array([places[key[0]] for key, _, _ in rows], dtype=np.intp),
        np.array([key[1] for key, _, _ in rows], dtype=np.intp),
        np.array([methods.index(key[2]) for key, _, _ in rows], dtype=np.intp),
        np.array([is_whole for _, is_whole, _ in rows], dtype=np.bool_),
        {metric: _column(metric, rows) for metric in (*SCORES, *ASKED, *TRUTHS.values())},
    )


def _column(metric: str, rows: Sequence[tuple[tuple[str, int, str, str, float], bool, Configuration]]) -> Floats:
    """Return the values of a metric in the order of rows, distances turned round."""
    turn = {**SCORES, **ASKED}.get(metric, 1)
    found = [c.units.get(metric, {}).get((key[0], key[1]), np.nan) for key, _, c in rows]
    # Adding 0 makes a turned 0 a plain one.
    return np.asarray(turn * np.round(np.array(found), DECIMALS) + 0.0, dtype=np.float64)


def unit_counts(judged: JudgedResults) -> dict[str, int]:
    """Count pictures, methods, examples, categories and most seeds of an example."""
    units = judged.units
    seeds = Counter(int(e) for e, _ in {(int(e), int(s)) for e, s in zip(units.example, units.seed, strict=True)})
    return {
        "pictures": len(units.example),
        "methods": len(units.methods),
        "examples": len(units.examples.ids),
        "categories": len(units.examples.strata),
        "seeds": max(seeds.values()),
    }


@dataclass(frozen=True)
class Cell:
    """One number with its interval.

    Attributes:
        value: None where it is undefined.
        low: lower end of the 95 % interval; None where there is none.
        high: upper end.
        n: pictures, pairs or methods behind it.
        reason: why there is no value, or no interval; "" if both are there.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    def text(self, scale: float = 1, decimals: int = 2) -> str:
        """Return the cell as printed."""
        if self.value is None:
            return f"– ({self.reason})"
        number = _number(self.value * scale, decimals)
        if self.low is None or self.high is None:
            return f"{number} [{self.reason}]"
        return f"{number} [{_number(self.low * scale, decimals)}, {_number(self.high * scale, decimals)}]"


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def empty_cell(reason: str, n: int = 0) -> Cell:
    """Return a cell without a value."""
    return Cell(None, None, None, n, reason)


def bootstrap_cell(draws: Floats, n: int, examples: Examples, positions: Sequence[int], reason: str) -> Cell:
    """Return a cell computed from a number's replicates.

    Args:
        draws: [1 + R], the observed number first; nan where undefined.
        n: what is behind it.
        examples: all examples.
        positions: those behind this number.
        reason: printed if the observed number is undefined.
    """
    if not np.isfinite(draws[0]):
        return empty_cell(reason, n)
    value, others = float(draws[0]), draws[1:]
    groups: dict[str, set[str]] = {}
    for index in positions:
        groups.setdefault(examples.categories[index], set()).add(examples.clusters[index])
    if min((len(found) for found in groups.values()), default=0) < 2:
        return Cell(value, None, None, n, FEW)
    ends = percentile_interval(others)
    if ends is None or np.isfinite(others).mean() < MIN_DEFINED:
        return Cell(value, None, None, n, RARE)
    return Cell(value, *ends, n)


def ratio(numerators: Floats, denominators: Floats) -> Floats:
    """Divide replicates; the result is nan where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominators > 0, numerators / denominators, np.nan)

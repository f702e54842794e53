"""Coverage of intervals and false differences, on synthetic scores whose truth is known.

`python -m benchmarks.coverage` draws many experiments from populations of examples, takes intervals, p-values and ranks
by the functions that tables and the leaderboard use, and writes how often they are right to
`benchmarks/results/coverage.json`, each share with its own interval. Nine categories hold 4, 12 or 33 examples each.
Scores are normal, skewed or bounded, and levels lie on a budget or anywhere. An interval of 95 % should hold the truth
in 93 to 97 % of the experiments; two equal methods should differ, and any of several equal ones be ranked apart, in
about 5 %.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.multiple import ALPHA, step_down
from riebench.analysis.stats import Replicates, estimate, wilson
from riebench.analysis.tradeoff import Examples, SampleMean, cross_fit, paired_differences

Floats = NDArray[np.float64]
Random = np.random.Generator
Share = dict[str, float]
"""The "share" of experiments, and "low" and "high", the ends of its Wilson interval of 95 %."""

RESULTS = Path(__file__).parent / "results" / "coverage.json"
CATEGORIES = 9
SIZES = (4, 12, 33)
"""Examples a category: 36, 108 and 297 in all."""
REPLICATES = 399
DRAWS = 20
"""Sets of bootstrap draws that experiments take in turn: with a single one, all would share its error."""
EXPERIMENTS = {"means": 4000, "areas": 1000}
METHODS = 4
"""Equal methods whose ranks are looked at together."""
LEVELS = 6
LARGE = 300_000
"""Examples from which the true area is computed."""


def normal(rng: Random, n: int) -> Floats:
    """Return values without skew; the true mean is 0."""
    return rng.normal(size=n)


def skewed(rng: Random, n: int) -> Floats:
    """Return exponential values, of skewness 2; the true mean is 0."""
    return rng.exponential(size=n) - 1


def very_skewed(rng: Random, n: int) -> Floats:
    """Return values three in ten of which are not 0, of skewness 4; the true mean is 0."""
    return (rng.random(n) < 0.3) * rng.exponential(size=n) - 0.3


def bounded(rng: Random, n: int) -> Floats:
    """Return values between 0 and 1 that pile up at both; the true mean is 0.5."""
    return rng.beta(0.5, 0.5, size=n)


def near_bound(rng: Random, n: int) -> Floats:
    """Return shares of three seeds that are mostly 1, and alike inside an example; the true mean is 0.95."""
    return rng.binomial(3, rng.beta(1.9, 0.1, size=n)) / 3


MEANS: Mapping[str, tuple[Callable[[Random, int], Floats], float, bool]] = {
    "normal": (normal, 0.0, False),
    "skewed": (skewed, 0.0, False),
    "very skewed": (very_skewed, 0.0, False),
    "bounded": (bounded, 0.5, True),
    "near a bound": (near_bound, 0.95, True),
}
"""Kind of scores -> their generator, the true mean, and whether they are shares."""


def curves(rng: Random, n: int, kind: str) -> tuple[Floats, Floats]:
    """Draw LPIPS and gains of examples of one category at every level, [n, LEVELS] each.

    Gains rise to the fifth level and fall after it. Examples differ in how much they gain and how much they must
    change, and every level adds noise of its own.

    Args:
        rng: of the experiment.
        n: how many.
        kind: "even", "skewed", "bounded", "on a budget" (a level whose mean LPIPS is one, and one at which every
            example's is) or "noise" (nothing gains).
    """
    strength = np.linspace(1, LEVELS, LEVELS) / (LEVELS - 1)
    size = rng.beta(2, 4, size=(n, 1)) * 0.9
    far = np.clip(size * strength + rng.normal(size=(n, LEVELS)) * 0.01, 0, None)
    if kind == "on a budget":
        far[:, 1] = 0.1
        far[:, 2] = rng.beta(2, 4, size=n) * 0.6  # of mean 0.2
    scale = {
        "even": lambda: 0.05 + 0.03 * rng.normal(size=(n, 1)),
        "skewed": lambda: 0.05 * rng.exponential(size=(n, 1)),
        "bounded": lambda: 0.1 * rng.beta(0.5, 0.5, size=(n, 1)),
        "on a budget": lambda: 0.05 * rng.exponential(size=(n, 1)),
        "noise": lambda: np.zeros((n, 1)),
    }[kind]()
    gain = scale * strength * (2 - strength) + rng.normal(size=(n, LEVELS)) * 0.01
    return far, gain


AREAS = ("even", "skewed", "bounded", "on a budget", "noise")


def examples_of(size: int) -> Examples:
    """Return the examples of an experiment, `size` in each category."""
    return Examples.of({f"c{c}-{i:05}": f"category{c}" for c in range(CATEGORIES) for i in range(size)})


def share_of(count: int, experiments: int) -> Share:
    """Return the share of experiments, with its Wilson interval."""
    share = count / experiments
    low, high = wilson(share, math.sqrt(share * (1 - share) / experiments), experiments - 1, experiments)
    return {"share": share, "low": low, "high": high}


def mean_coverage(kind: str, size: int, experiments: int, replicates: int = REPLICATES) -> int:
    """Count the experiments whose interval of a mean holds the truth."""
    draw, truth, share = MEANS[kind]
    rng = np.random.default_rng([1, list(MEANS).index(kind), size])
    held = 0
    for number in range(experiments):
        values = {
            f"category{c}": {f"e{i:02}": [float(value)] for i, value in enumerate(draw(rng, size))}
            for c in range(CATEGORIES)
        }
        found = estimate(values, share=share, replicates=replicates, seed=number % DRAWS)
        held += found.low is not None and found.high is not None and found.low <= truth <= found.high
    return held


def true_area(kind: str, examples: int = LARGE) -> float:
    """Compute the area of a population from very many examples."""
    if kind == "noise":
        return 0.0
    some = Examples.of({f"e{i:05}": "all" for i in range(examples)})
    far, gain = curves(np.random.default_rng([2, AREAS.index(kind)]), examples, kind)
    return float(cross_fit(far, gain, some, np.ones((1, examples))).area.values[0])


class AreaExperiments:
    """Experiments with areas of methods on the same examples.

    Args:
        kind: of `AREAS`.
        size: examples a category.
        replicates: of the bootstrap.
    """

    def __init__(self, kind: str, size: int, replicates: int = REPLICATES) -> None:
        self.kind, self.examples = kind, examples_of(size)
        ones = np.ones((1, len(self.examples.ids)))
        self.weights = [np.vstack([ones, self.examples.draws(replicates, seed)]) for seed in range(DRAWS)]
        self.rng = np.random.default_rng([3, AREAS.index(kind), size])

    def areas(self, methods: int, draws: int = 0) -> list[SampleMean]:
        """Return the areas of some equal methods in a new experiment.

        They share each example's curve and differ in noise.

        Args:
            methods: how many.
            draws: number of the set of bootstrap draws.
        """
        far, gain = curves(self.rng, len(self.examples.ids), self.kind)
        weights = self.weights[draws % DRAWS]
        return [
            cross_fit(far, gain + self.rng.normal(size=gain.shape) * 0.02, self.examples, weights).area
            for _ in range(methods)
        ]

    def count(self, truth: float, experiments: int) -> dict[str, int]:
        """Count the experiments in which intervals hold the truth, and in which equal methods are told apart.

        Args:
            truth: area of the population.
            experiments: how many.

        Returns:
            "areas": the interval of an area holds its truth; "differences": that of the difference of two equal methods
            holds 0; "told apart": the p of two is below 0.05; "ranked apart": any of `METHODS` are.
        """
        counts = dict.fromkeys(("areas", "differences", "told apart", "ranked apart"), 0)
        for number in range(experiments):
            areas = {str(i): area for i, area in enumerate(self.areas(METHODS, number))}
            difference = (areas["0"] - areas["1"]).replicates
            counts["areas"] += holds(areas["0"].replicates, truth)
            counts["differences"] += holds(difference, 0.0)
            counts["told apart"] += step_down({"": difference})[""] < ALPHA
            adjusted = step_down({"\t".join(pair): one for pair, one in paired_differences(areas).items()})
            counts["ranked apart"] += min(adjusted.values()) < ALPHA
        return counts


def holds(found: Replicates, truth: float) -> bool:
    """Check that the interval of a number holds the truth."""
    ends = found.interval()
    return ends is not None and ends[0] <= truth <= ends[1]


def measure(experiments: Mapping[str, int] = EXPERIMENTS, sizes: Sequence[int] = SIZES) -> dict[str, object]:
    """Measure everything; see the module.

    Args:
        experiments: "means" and "areas" -> experiments of each kind and size.
        sizes: examples a category.
    """
    found: dict[str, dict[str, dict[str, Share]]] = {}

    def store(name: str, kind: str, size: int, count: int, of: int) -> None:
        one = found.setdefault(name, {}).setdefault(kind, {})[str(CATEGORIES * size)] = share_of(count, of)
        text = f"{one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        print(f"{name}, {kind}, {CATEGORIES * size} examples: {text}", file=sys.stderr, flush=True)

    for kind in MEANS:
        for size in sizes:
            store("means", kind, size, mean_coverage(kind, size, experiments["means"]), experiments["means"])
    for kind in AREAS:
        truth = true_area(kind)
        for size in sizes:
            for name, count in AreaExperiments(kind, size).count(truth, experiments["areas"]).items():
                store(name, kind, size, count, experiments["areas"])
    return {
        "experiments": dict(experiments),
        "replicates": REPLICATES,
        "draws": DRAWS,
        "categories": CATEGORIES,
        "methods": METHODS,
        **found,
    }


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")

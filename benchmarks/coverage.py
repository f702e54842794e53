"""Coverage of intervals and false differences, on synthetic scores whose truth is known.

`python -m benchmarks.coverage` draws many experiments from populations of examples, takes intervals, p-values and ranks
by the functions that tables and the leaderboard use, and writes how often they are right to
`benchmarks/results/coverage.json`. Nine categories hold 4, 12 or 33 examples each. Scores are normal, skewed or
bounded, and levels lie on a budget or anywhere. An interval of 95 % should hold the truth in 93 to 97 % of the
experiments; two equal methods should differ, and any of several equal ones be ranked apart, in about 5 %.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.multiple import ALPHA, step_down
from riebench.analysis.stats import estimate
from riebench.analysis.tradeoff import Examples, TradeOff, cross_fit, paired_differences

Floats = NDArray[np.float64]
Random = np.random.Generator

RESULTS = Path(__file__).parent / "results" / "coverage.json"
CATEGORIES = 9
SIZES = (4, 12, 33)
"""Examples a category: 36, 108 and 297 in all."""
REPLICATES = 399
EXPERIMENTS = {"means": 1000, "areas": 300, "differences": 150}
METHODS = 4
"""Equal methods whose ranks are looked at together."""
LEVELS = 6
LARGE = 60_000
"""Examples a category from which the true area is computed."""


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


def mean_coverage(kind: str, size: int, experiments: int, replicates: int = REPLICATES) -> float:
    """Compute the share of experiments whose interval of a mean holds the truth."""
    draw, truth, share = MEANS[kind]
    rng = np.random.default_rng([1, list(MEANS).index(kind), size])
    held = 0
    for _ in range(experiments):
        values = {
            f"category{c}": {f"e{i:02}": [float(value)] for i, value in enumerate(draw(rng, size))}
            for c in range(CATEGORIES)
        }
        found = estimate(values, share=share, replicates=replicates)
        held += found.low is not None and found.high is not None and found.low <= truth <= found.high
    return held / experiments


def true_area(kind: str) -> float:
    """Compute the area of a population from very many examples."""
    if kind == "noise":
        return 0.0
    some = Examples.of({f"e{i:05}": "all" for i in range(LARGE)})
    far, gain = curves(np.random.default_rng([2, AREAS.index(kind)]), LARGE, kind)
    return float(cross_fit(far, gain, some, np.ones((1, LARGE))).area.values[0])


class AreaExperiments:
    """Experiments with areas of methods on the same examples.

    Args:
        kind: of `AREAS`.
        size: examples a category.
        replicates: of the bootstrap.
    """

    def __init__(self, kind: str, size: int, replicates: int = REPLICATES) -> None:
        self.kind, self.examples = kind, examples_of(size)
        n = len(self.examples.ids)
        self.weights = np.vstack([np.ones((1, n)), self.examples.draws(replicates, 1)])
        self.rng = np.random.default_rng([3, AREAS.index(kind), size])

    def areas(self, methods: int) -> list[TradeOff]:
        """Return the trade-offs of some equal methods in a new experiment.

        They share each example's curve and differ in noise.
        """
        n = len(self.examples.ids)
        far, gain = curves(self.rng, n, self.kind)
        return [
            cross_fit(far, gain + self.rng.normal(size=gain.shape) * 0.02, self.examples, self.weights)
            for _ in range(methods)
        ]

    def coverage(self, truth: float, experiments: int) -> float:
        """Compute the share of experiments whose interval of an area holds the truth."""
        held = 0
        for _ in range(experiments):
            ends = self.areas(1)[0].area.replicates.interval()
            held += ends is not None and ends[0] <= truth <= ends[1]
        return held / experiments

    def false_differences(self, experiments: int) -> tuple[float, float]:
        """Compute how often equal methods are told apart.

        Returns:
            The share of experiments in which two have p below 0.05, and in which any of `METHODS` are ranked apart.
        """
        pairs = split = 0
        for _ in range(experiments):
            areas = {str(i): found.area for i, found in enumerate(self.areas(METHODS))}
            pairs += step_down({"": (areas["0"] - areas["1"]).replicates})[""] < ALPHA
            adjusted = step_down({"\t".join(pair): one for pair, one in paired_differences(areas).items()})
            split += min(adjusted.values()) < ALPHA
        return pairs / experiments, split / experiments


def measure(experiments: Mapping[str, int] = EXPERIMENTS, sizes: Sequence[int] = SIZES) -> dict[str, object]:
    """Measure everything; see the module.

    Args:
        experiments: "means", "areas" and "differences" -> experiments of each kind and size.
        sizes: examples a category.
    """
    means = {
        kind: {str(CATEGORIES * size): mean_coverage(kind, size, experiments["means"]) for size in sizes}
        for kind in MEANS
    }
    areas: dict[str, dict[str, float]] = {}
    pairs: dict[str, dict[str, float]] = {}
    splits: dict[str, dict[str, float]] = {}
    for kind in AREAS:
        truth = true_area(kind)
        for size in sizes:
            n = str(CATEGORIES * size)
            areas.setdefault(kind, {})[n] = AreaExperiments(kind, size).coverage(truth, experiments["areas"])
            pair, split = AreaExperiments(kind, size).false_differences(experiments["differences"])
            pairs.setdefault(kind, {})[n] = pair
            splits.setdefault(kind, {})[n] = split
            print(f"{kind}, {n} examples: {areas[kind][n]:.3f} {pair:.3f} {split:.3f}", file=sys.stderr, flush=True)
    return {
        "experiments": dict(experiments),
        "replicates": REPLICATES,
        "categories": CATEGORIES,
        "methods": METHODS,
        "means": means,
        "areas": areas,
        "equal methods told apart": pairs,
        "equal methods ranked apart": splits,
    }


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")

"""The command that finds the elastic range of a method configuration.

Each category is searched by itself; then one list of strengths is placed for all of them, and compared with the list
that the configuration states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from riebench.elastic.pictures import (
    DISTANCES,
    CategoryPictures,
    ElasticRequest,
    chosen_examples,
    unseen_examples,
)
from riebench.elastic.search import Curve, Floats, evenness, search, settle
from riebench.errors import MetricError, RiebenchError, near_match
from riebench.jobs.run import load_here
from riebench.methods.base import get_method
from riebench.scoring.metrics.networks import Networks, parse_weights
from riebench.tasks.schema import Setting
from riebench.tasks.suites import load_suite
from riebench.utils.hub import offline_mode
from riebench.utils.machine import pick_device

Say = Callable[[str], None]

ENDING = "_elastic"
"""End of the name of a configuration whose strengths were found."""


@dataclass(frozen=True, eq=False)
class Steps:
    """A list of strengths, as the pictures of one category show it.

    Attributes:
        strengths: rising, without strength 0.
        gaps: median distance of each strength's pictures to the one before, from the unedited picture on, [K].
        evenness: mean over pictures of `search.evenness`; None if no picture changes.
        beyond: strengths whose median distance to the unedited picture exceeds the largest one.
        farthest: the largest of these medians.
    """

    strengths: tuple[float, ...]
    gaps: Floats
    evenness: float | None
    beyond: int
    farthest: float


@dataclass(frozen=True, eq=False)
class CategoryRange:
    """Outcome of the search in one category.

    Attributes:
        category: its name.
        examples: ids of the examples that counted.
        curve: distances at all strengths that were looked at.
        own: strengths for this category alone, as they were placed and not looked at.
        before: the stated strengths.
        after: the strengths that were found for all categories.
        pictures: edited pictures that there are now.
    """

    category: str
    examples: tuple[str, ...]
    curve: Curve
    own: tuple[float, ...]
    before: Steps
    after: Steps
    pictures: int


@dataclass(frozen=True, eq=False)
class ElasticRange:
    """Outcome of a search.

    Attributes:
        setting: the configuration with the strengths that were found.
        suite: name of the suite.
        model: name of the model.
        categories: of the suite, in its order.
        looked_at: ids of all examples that were looked at.
        unseen: ids of those that share nothing with them.
    """

    setting: Setting
    suite: str
    model: str
    categories: tuple[CategoryRange, ...]
    looked_at: tuple[str, ...]
    unseen: tuple[str, ...]


def find_range(request: ElasticRequest, say: Say) -> ElasticRange:
    """Find strengths at equal distances for one method configuration.

    Args:
        request: the options.
        say: function that prints a line for people.

    Raises:
        RiebenchError: for unknown names, a method without strengths, or one that changes no picture. Pictures that were
            made are kept.
    """
    if request.distance not in DISTANCES:
        raise RiebenchError(f"--distance {request.distance!r}{near_match(request.distance, DISTANCES)}")
    run = request.run
    with offline_mode(run.offline):
        tasks, settings = run.plan()
        setting = settings[0]
        low, high = get_method(setting.method).strengths
        if low > 0 or high <= 0:
            raise RiebenchError(f"{setting.name}: the method {setting.method} has no strengths from 0 on")
        networks = Networks(device=pick_device(run.device), weights=parse_weights(run.weights), offline=run.offline)
        problem = networks.missing(request.distance, fetch=True)
        if problem is not None:
            raise MetricError(problem)
        model = load_here(run, tasks, settings, say)
        asked = replace(request, limits=replace(request.limits, largest=min(high, request.limits.largest)))
        chosen = chosen_examples(tasks, request.examples)
        pictures = [CategoryPictures(asked, setting, *one, model, networks) for one in chosen.items()]
        curves = [_searched(one, asked, say) for one in pictures]
        strengths, curves = settle(pictures, curves, request.points)
        if not strengths:
            raise RiebenchError(
                f"{setting.name}: no picture changes up to strength {max(one.end for one in curves):g}, or all do at "
                "once; state another --start or --most"
            )
        stated = tuple(sorted(one for one in setting.strengths if one > 0))
        ranges = tuple(_outcome(*one, stated, strengths, request) for one in zip(pictures, curves, strict=True))
    looked_at = tuple(one.id for some in chosen.values() for one in some)
    unseen = unseen_examples(load_suite(run.suite, categories=run.categories), [o for s in chosen.values() for o in s])
    found = setting.model_copy(update={"name": f"{setting.name}{ENDING}", "strengths": strengths})
    return ElasticRange(found, tasks[0].suite, model.spec.name, ranges, looked_at, tuple(unseen))


def _searched(pictures: CategoryPictures, request: ElasticRequest, say: Say) -> Curve:
    """Search one category, and say what was found."""
    curve = search(pictures, request.limits)
    end = f"{curve.end:.3g}" + ("" if curve.is_limited else " (the limit was not reached)")
    say(f"{pictures.category}: range 0 to {end}, {len(curve.strengths)} points, {pictures.made} pictures")
    return curve


def _outcome(
    pictures: CategoryPictures, curve: Curve, stated: Sequence[float], found: Sequence[float], request: ElasticRequest
) -> CategoryRange:
    pictures.make([*stated, *found])
    before, after = (_steps(pictures, some, request.limits.most) for some in (stated, found))
    own = curve.way.place(request.points)
    return CategoryRange(pictures.category, pictures.ids, curve, own, before, after, pictures.made)


def _steps(pictures: CategoryPictures, strengths: Sequence[float], most: float) -> Steps:
    """Measure a list of strengths on the pictures of a category."""
    places = [0.0, *strengths]
    gaps = np.stack([pictures.distances(*pair) for pair in zip(places, strengths, strict=False)])
    to_source = [float(np.median(pictures.distances(0.0, one))) for one in strengths]
    even = [value for one in gaps.T.tolist() if (value := evenness(one)) is not None]
    return Steps(
        tuple(strengths), np.median(gaps, axis=1), fmean(even) if even else None,
        sum(one > most for one in to_source), max(to_source),
    )  # fmt: skip

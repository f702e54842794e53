"""A made-up ladder of SAEs whose measures have known answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from riebench.analysis.sae_score.measures import SCORE
from riebench.sae_validity.results import COLUMNS, About, LadderResults, StoredRung
from riebench.sae_validity.rungs import Rung

CATEGORIES = ("change_color", "change_object", "delete_object")
EXAMPLES = 8
"""Of each category."""
BLOCKS = ("down.2.1", "mid.0", "up.0.1")
TRAINING = ("random_init", "steps_2", "steps_15", "steps_60", "steps_180", "full")

RUNGS: tuple[Rung, ...] = (
    *(Rung(name, "training", order, 3) for order, name in enumerate(TRAINING)),
    *(Rung(name, "twin", None, 3) for name in ("frozen_decoder", "frozen_encoder", "soft_frozen")),
    *(Rung(name, "dictionary", None, 3) for name in ("random_orthogonal", "neurons", "pca")),
    Rung("true_dictionary", "truth", None, 3),
    Rung("k_4", "k", 0, 3),
)

Level = Callable[[str, str], float]
"""Rung, block -> the value that a good measure has."""


def levels() -> dict[str, float]:
    """Rung -> quality, in the known order."""
    known = {name: float(order) for order, name in enumerate(TRAINING)}
    return {**known, "frozen_decoder": 2.5, "frozen_encoder": 3.5, "soft_frozen": 4.25, "random_orthogonal": 0.25,
            "neurons": 0.5, "pca": 2.0, "true_dictionary": 6.0, "k_4": 3.0}  # fmt: skip


def rows_of(
    measure: str,
    value: Callable[[str, int, int, int], float],
    *,
    block: str = "together",
    rungs: Sequence[str] | None = None,
    picture_seeds: Sequence[int] = (0,),
    training_seeds: Sequence[int] = (0, 1, 2),
) -> pd.DataFrame:
    """Return the rows of one measure; `value` is given rung, training seed, example and picture seed."""
    names = [rung.name for rung in RUNGS] if rungs is None else rungs
    rows = [
        (rung, seed, measure, block, category, f"{category}-{n}", picture,
         value(rung, seed, place * EXAMPLES + n, picture))
        for rung in names for seed in training_seeds
        for place, category in enumerate(CATEGORIES) for n in range(EXAMPLES) for picture in picture_seeds
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def figure_rows(measure: str, level: Callable[[str], float]) -> pd.DataFrame:
    """Return the rows of a figure that an SAE has once."""
    rows = [
        (rung.name, seed, measure, "together", "whole", "whole", 0, level(rung.name)) for rung in RUNGS
        for seed in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def made_results(
    level: Level = lambda rung, _: levels()[rung],
    shift: Callable[[int], float] = lambda seed: 0.01 * (seed - 1),
    rungs: Sequence[Rung] = RUNGS,
) -> LadderResults:
    """Return results in which the measure that ranks and the judge know the truth.

    The mean gain of methods knows nothing.

    Args:
        level: what that measure has in a block.
        shift: what a training seed adds to it.
        rungs: the rungs that were measured.
    """
    names = [rung.name for rung in rungs]
    paired = [name for name in ("full", "frozen_decoder", "frozen_encoder", "soft_frozen") if name in names]
    ripple = {example: 0.05 * (example % 5 - 2) for example in range(len(CATEGORIES) * EXAMPLES)}

    def good(block: str) -> Callable[[str, int, int, int], float]:
        return lambda rung, seed, example, _: level(rung, block) + shift(seed) + ripple[example]

    def blind(rung: str, seed: int, example: int, picture: int) -> float:
        return 1.0 + 0.3 * (seed - 1) * (example % 3 - 1) + 0.2 * (seed - 1)

    frames = [
        rows_of(SCORE, good("together"), rungs=names),
        rows_of("targets_few", good("together"), rungs=names),
        rows_of("at_20:area", blind, rungs=names),
        *(rows_of(SCORE, good(block), block=block, rungs=paired) for block in BLOCKS),
        *(rows_of("at_20:area", blind, block=block, rungs=paired) for block in BLOCKS),
        figure_rows("truth", lambda rung: levels()[rung] / 6),
        figure_rows("explained_variance", lambda rung: levels()[rung] / 7),
    ]
    values = pd.concat(frames, ignore_index=True)
    about = About(
        suite="toy", model="toy-turbo", model_sha256="0" * 64, version="0.0",
        rungs=tuple(StoredRung(name=r.name, family=r.family, order=r.order, training_seeds=(0, 1, 2)) for r in rungs),
        pictures=1234, examples=len(CATEGORIES) * EXAMPLES, block_examples=len(CATEGORIES) * EXAMPLES,
        picture_seeds=(0, 1), command="riebench validity saes --work validity-work", seconds=600,
    )  # fmt: skip
    return LadderResults(about, values[values["rung"].isin(names)].reset_index(drop=True))

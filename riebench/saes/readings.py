"""Possible readings of an SAE whose layout leaves something open.

A layout may not say how inputs were normalised, by what they were scaled, how many features were kept, or what was
reconstructed. `variants` lists what the user could write; `verdict` compares how each did on the same activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, get_args

from riebench.saes.figures import SaeFigures
from riebench.saes.files import SaeOptions
from riebench.saes.sae import Normalise
from riebench.tasks.schema import StoredModel

ALIKE = 1.05
"""Two readings fit alike if one leaves at most so many times the variance unexplained that the other leaves."""
MOST_KEPT = 1024
"""Largest k that is tried."""


class ReadingFigures(StoredModel):
    """One reading of an SAE, and how it did."""

    options: str
    """What to write behind the SAE's place, such as "normalise=none,signal=update"."""
    signal: str
    figures: SaeFigures


class Readings(StoredModel):
    """All readings of one SAE that were measured on the same activations."""

    path: str
    block: str
    left_open: tuple[str, ...]
    """The options that its layout leaves open."""
    tried: tuple[ReadingFigures, ...]
    best: str
    """Options of the reading that fits best."""
    verdict: str
    """The same as a sentence."""


def variants(
    options: SaeOptions, left_open: Sequence[str], features: int, scales: Iterable[float]
) -> list[tuple[SaeOptions, str]]:
    """Return every combination of what is left open.

    Each comes as options and as the user writes it.

    Args:
        options: what the user has said.
        left_open: names of fields of `SaeOptions`.
        features: number of the SAE's features; the k that are tried are powers of two up to half of it.
        scales: the input scales to try.
    """
    values: dict[str, list[Any]] = {
        "normalise": list(get_args(Normalise)),
        "k": [2**i for i in range(MOST_KEPT.bit_length()) if 2**i <= max(1, min(MOST_KEPT, features // 2))],
        "input_scale": list(scales),
    }
    found = []
    for chosen in product(*(values[name] for name in left_open)):
        stated = dict(zip(left_open, chosen, strict=True))
        text = ",".join(f"{name}={f'{one:g}' if isinstance(one, float) else one}" for name, one in stated.items())
        found.append((replace(options, **stated), text))
    return found


def verdict(tried: Sequence[ReadingFigures]) -> tuple[ReadingFigures, str]:
    """Return the reading that fits best, and a sentence that says how sure that is.

    It is the one that leaves the least variance unexplained.
    """
    first, *others = sorted(tried, key=lambda one: -one.figures.explained_variance)
    explained = first.figures.explained_variance
    if explained <= 0:
        return first, (
            f"no reading fits: the best, #{first.options}, has explained variance {explained:g}, so it was made for "
            "another model, block or signal"
        )
    alike = [one for one in others if 1 - one.figures.explained_variance <= ALIKE * (1 - explained)]
    if alike:
        return first, (
            f"#{first.options} fits best (explained variance {explained:g}), but "
            f"{' and '.join(f'#{one.options}' for one in alike)} no worse than by {ALIKE - 1:.0%} of what it leaves "
            "unexplained; if its makers say which was meant, take that"
        )
    behind = f"; next is #{others[0].options} with {others[0].figures.explained_variance:g}" if others else ""
    return first, f"#{first.options} fits best (explained variance {explained:g}{behind})"

"""Scorers that are measured on request, by the names that `--scorers` takes.

A scorer is a network with the metrics that it gives. The CLIPs of a model measure unasked; those here are larger, and
measure where they are named. This module imports neither torch nor any network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from riebench.errors import MetricError, near_match
from riebench.models.clip import SCORER_FORMS, SCORERS, ClipSpec

REQUESTED: dict[str, tuple[str, ...]] = {
    "dreamsim": ("dreamsim",),
    "vqa": ("vqa_target", "vqa_gain"),
    "editscore": ("editscore", "editscore_followed", "editscore_kept"),
    "dino": ("dino_image",),
    "dinov2": ("dinov2_image",),
    "dinov3": ("dinov3_image",),
    "pickscore": ("pick_target", "pick_gain"),
    "hps": ("hps_target", "hps_gain"),
}
"""Name of a scorer, which is that of its network, too -> the metrics that it gives."""

ON_REQUEST: tuple[str, ...] = tuple(metric for metrics in REQUESTED.values() for metric in metrics)
"""Metrics that no run computes unasked."""

OTHER_NAMES = {"siglip2": "siglip2-b16"}
"""Other name of a CLIP in `--scorers` -> its short name."""


@dataclass(frozen=True)
class ScorerChoice:
    """Scorers that a command names.

    Attributes:
        first: the CLIP that scores; None for the model's own.
        second: the independent CLIP; None for the model's own.
        names: scorers of `REQUESTED`, in the order in which they were named.
    """

    first: str | None = None
    second: str | None = None
    names: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that the named scorers give beside those of the profile."""
        return tuple(metric for name in self.names for metric in REQUESTED[name])

    @property
    def clips(self) -> tuple[str | None, str | None]:
        """Both CLIPs."""
        return self.first, self.second


def scorer_names() -> tuple[str, ...]:
    """Return all names that `--scorers` takes."""
    return (*SCORERS, *OTHER_NAMES, *REQUESTED)


def is_clip(name: str) -> bool:
    """Return whether a name stands for a CLIP, and not for a scorer of `REQUESTED`."""
    return name not in REQUESTED


def choose_scorers(names: Iterable[str]) -> ScorerChoice:
    """Sort the values of `--scorer` and `--scorers` into both CLIPs and the others.

    Args:
        names: names of `REQUESTED`, and CLIPs as `ClipSpec.parse` reads them; the first CLIP scores, the second one
            confirms it.

    Raises:
        MetricError: for an unknown name (the message names the nearest), one given twice, or a third CLIP.
    """
    chosen = [OTHER_NAMES.get(name, name) for name in names]
    for name in chosen:
        _check_name(name)
    repeated = next((name for place, name in enumerate(chosen) if name in chosen[:place]), None)
    if repeated is not None:
        raise MetricError(f"scorer {repeated!r} is given twice")
    clips = [name for name in chosen if is_clip(name)]
    if len(clips) > 2:
        raise MetricError(
            f"{', '.join(clips)}: two CLIPs at most, the one that scores and another that confirms it; the other "
            f"scorers are {', '.join(REQUESTED)}"
        )
    first, second, *_ = (*clips, None, None)
    return ScorerChoice(first, second, tuple(name for name in chosen if not is_clip(name)))


def _check_name(name: str) -> None:
    if name in REQUESTED or name in SCORERS or "/" in name or "@" in name or ":" in name:
        if is_clip(name):
            ClipSpec.parse(name)
        return
    raise MetricError(
        f"unknown scorer {name!r}{near_match(name, scorer_names())}; write {', '.join(REQUESTED)}, or a CLIP: "
        f"{SCORER_FORMS}"
    )


def check_profile(choice: ScorerChoice, profile: str, allowed: Sequence[str]) -> None:
    """Refuse scorers that a profile does not show.

    Args:
        choice: the scorers that a command names.
        profile: name of the profile.
        allowed: scorers of `REQUESTED` that it shows.

    Raises:
        MetricError: naming the first of them.
    """
    for name in choice.names:
        if name not in allowed:
            raise MetricError(f"the profile {profile} has no scorer {name!r}; it is measured under the profile default")

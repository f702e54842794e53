"""Profiles: `default` is ours; `paper` and `piebench` do what published scripts do, faults included. Needs no torch.

A profile says what is scored, how it is printed and what is ranked by, and for `paper` also how pictures are made.
Numbers of two profiles never share a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from riebench.errors import RiebenchError, near_match
from riebench.registry import METRICS
from riebench.scoring.metrics.base import MetricFormat

PAPER_REGIONS = "grounded-sam"
"""Words are looked for as the published scripts do; every option at its default is theirs."""


DEFAULT = "default"


@dataclass(frozen=True)
class Profile:
    """One way to generate, to score and to tabulate.

    Attributes:
        name: what the user types.
        table: metrics that tables show, where they were scored.
        rank: the metric that ranks are given by.
        unchanged: what a failed unit counts as in means: the source picture left alone.
        regions: provider of word regions, where it is not the usual one.
        fixed_seed: the number that seeds every example's noise; None gives each example noise of its own.
    """

    name: str
    table: tuple[str, ...]
    rank: str
    unchanged: Mapping[str, float] = field(default_factory=dict)
    regions: str | None = None
    fixed_seed: int | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """Metrics of its table that are in no other profile's."""
        others = {name for other in PROFILES.values() if other.name != self.name for name in other.table}
        return tuple(name for name in self.table if name not in others)

    @property
    def folder(self) -> str:
        """Where its tables lie below `tables/`."""
        return "" if self.name == DEFAULT else self.name


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            DEFAULT,
            ("clip_gain", "clip_gain_2", "lpips", "structure", "judge_target", "judge_kept"),
            rank="clip_gain",
            unchanged={"clip_gain": 0.0, "clip_gain_2": 0.0, "lpips": 0.0, "structure": 0.0},
        ),
        Profile(
            "paper",
            (
                "paper_text_target", "paper_text_source", "paper_image_source", "paper_image_target", "lpips",
                "lpips_target",
            ),
            rank="paper_text_target",
            regions=PAPER_REGIONS,
            fixed_seed=42,
        ),
        Profile(
            "piebench",
            (
                "pie_structure", "pie_psnr", "pie_lpips", "pie_mse", "pie_ssim", "pie_clip_target", "pie_clip_region",
            ),
            rank="pie_clip_target",
        ),
    )
}  # fmt: skip
"""Name -> profile."""

PRINTED: tuple[str, ...] = tuple(dict.fromkeys(name for profile in PROFILES.values() for name in profile.table))
"""Metrics that the tables of some profile show."""


def metric_format(name: str) -> MetricFormat:
    """Return how tables print a metric; it is stated beside the metric.

    Raises:
        RiebenchError: if there is no such metric, or tables do not show it.
    """
    stated: MetricFormat | None = METRICS.get(name).format
    if stated is None:
        raise RiebenchError(f"the metric {name} does not say how tables print it; give @metric a format")
    return stated


IF_AT_HAND: tuple[str, ...] = ("clip_gain_2", "structure")
"""Metrics of the default profile that are left out, and said to be, where their network is not on the machine."""


def get_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        RiebenchError: if there is none; names the nearest match.
    """
    if name not in PROFILES:
        raise RiebenchError(f"unknown profile {name!r}{near_match(name, PROFILES)}")
    return PROFILES[name]


def profile_metrics(name: str, registered: Iterable[str]) -> tuple[str, ...]:
    """What a profile scores: everything of its table; the default one all registered metrics that no other has.

    Raises:
        RiebenchError: as `get_profile`.
    """
    profile = get_profile(name)
    if name != DEFAULT:
        return profile.table
    others = {metric for other in PROFILES.values() if other.name != DEFAULT for metric in other.own}
    return tuple(metric for metric in registered if metric not in others)

"""Profiles: `default` is ours; `paper` and `piebench` do what published scripts do, faults included. Needs no torch.

A profile says what is scored, how it is printed and what is ranked by, and for `paper` also how pictures are made.
Numbers of two profiles never share a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from riebench.errors import RiebenchError, near_match
from riebench.generation.regions.options import PAPER_REGIONS

DEFAULT = "default"


@dataclass(frozen=True)
class MetricFormat:
    """How a metric is printed: factor, decimals, sign, and the words of its heading."""

    title: str
    scale: float
    decimals: int
    signed: bool = False

    def number(self, value: float) -> str:
        """The value as printed; a zero never carries a minus."""
        rounded = round(value * self.scale, self.decimals) + 0.0
        return f"{rounded:+.{self.decimals}f}" if self.signed and rounded else f"{rounded:.{self.decimals}f}"


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
    table: Mapping[str, MetricFormat]
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


_LPIPS = MetricFormat("LPIPS to the source picture (lower is better)", 1, 3)


def _cosine(of: str) -> MetricFormat:
    return MetricFormat(f"CLIP cosine x100 with the {of}", 100, 2)


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            DEFAULT,
            {
                "clip_gain": MetricFormat("CLIP alignment gain x100 (higher is better)", 100, 2, signed=True),
                "clip_gain_2": MetricFormat(
                    "CLIP alignment gain x100 by an independent scorer, on its own scale (higher is better)",
                    100, 2, signed=True,
                ),
                "lpips": _LPIPS,
                "structure": MetricFormat("DINO structure distance x1000 (lower is better)", 1000, 2),
                "judge_target": MetricFormat("target attribute there, % of pictures (higher is better)", 100, 0),
                "judge_kept": MetricFormat("other attributes kept, % (higher is better)", 100, 0),
            },
            rank="clip_gain",
            unchanged={"clip_gain": 0.0, "clip_gain_2": 0.0, "lpips": 0.0, "structure": 0.0},
        ),
        Profile(
            "paper",
            {
                "paper_text_target": _cosine("target prompt (higher is better)"),
                "paper_text_source": _cosine("source prompt (lower is better)"),
                "paper_image_source": _cosine("source picture (higher is better)"),
                "paper_image_target": _cosine("target picture (higher is better)"),
                "lpips": _LPIPS,
                "lpips_target": MetricFormat("LPIPS to the target picture (lower is better)", 1, 3),
            },
            rank="paper_text_target",
            regions=PAPER_REGIONS,
            fixed_seed=42,
        ),
        Profile(
            "piebench",
            {
                "pie_structure": MetricFormat("structure distance x1000 (lower is better)", 1000, 2),
                "pie_psnr": MetricFormat("background PSNR in dB, region zeroed (higher is better)", 1, 2),
                "pie_lpips": MetricFormat("background LPIPS x1000, region zeroed (lower is better)", 1000, 2),
                "pie_mse": MetricFormat("background MSE x10000, region zeroed (lower is better)", 10_000, 2),
                "pie_ssim": MetricFormat("background SSIM x100, region zeroed (higher is better)", 100, 2),
                "pie_clip_target": MetricFormat("CLIP similarity, whole picture (higher is better)", 1, 2),
                "pie_clip_region": MetricFormat("CLIP similarity, edited region (higher is better)", 1, 2),
            },
            rank="pie_clip_target",
        ),
    )
}  # fmt: skip
"""Name -> profile."""

FORMATS: dict[str, MetricFormat] = {name: form for profile in PROFILES.values() for name, form in profile.table.items()}
"""Metric -> how it is printed, in whatever table it is shown."""

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
        return tuple(profile.table)
    others = {metric for other in PROFILES.values() if other.name != DEFAULT for metric in other.own}
    return tuple(metric for metric in registered if metric not in others)

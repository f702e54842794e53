"""Profiles: the metrics that are scored, tabulated and ranked together.

`default` is this project's own; `paper` and `piebench` repeat what published scripts do, faults included. `paper` also
decides how pictures are made. Numbers of two profiles never share a table. This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from riebench.errors import RiebenchError, near_match
from riebench.models.clip import ClipSpec
from riebench.registry import METRICS
from riebench.scoring.metrics.base import MetricFormat
from riebench.scoring.scorers import ON_REQUEST, REQUESTED

PAPER_REGIONS = "grounded-sam"
"""Provider that finds the regions of words as the published scripts do; the defaults of its options are theirs."""

DEFAULT = "default"


@dataclass(frozen=True)
class Profile:
    """One way to generate, to score and to tabulate.

    Attributes:
        name: the name that users type.
        metrics: official metrics: computed unasked, and shown where they were scored.
        rank: the metric that decides the ranks.
        beside: metrics of scorers that `--scorers` names; shown after the official ones where they were scored. They
            decide no rank.
        unchanged: metric -> value that a failed unit counts as in means, that of the unedited source picture.
        regions: provider of word regions; None for the model's usual one.
        fixed_seed: the number that seeds every example's noise; None gives each example noise of its own.
    """

    name: str
    metrics: tuple[str, ...]
    rank: str
    beside: tuple[str, ...] = ()
    unchanged: Mapping[str, float] = field(default_factory=dict)
    regions: str | None = None
    fixed_seed: int | None = None

    @property
    def table(self) -> tuple[str, ...]:
        """Metrics that tables show.

        The default profile's end with those of installed packages that say how tables print them.
        """
        shown = (*self.metrics, *self.beside)
        return (*shown, *_package_metrics()) if self.name == DEFAULT else shown

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of the scorers that may be asked for beside the official ones."""
        return tuple(name for name, metrics in REQUESTED.items() if {*metrics} & {*self.beside})

    @property
    def own(self) -> tuple[str, ...]:
        """Metrics of this profile's table that are in no other profile's table."""
        others = {name for other in PROFILES.values() if other.name != self.name for name in other.table}
        return tuple(name for name in self.table if name not in others)

    @property
    def folder(self) -> str:
        """Folder of this profile's tables below `tables/`; empty for the default profile."""
        return "" if self.name == DEFAULT else self.name


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            DEFAULT,
            ("clip_gain", "clip_gain_2", "lpips", "structure", "judge_target", "judge_kept", "judge_artifact"),
            rank="clip_gain",
            beside=(
                "vqa_gain", "editscore", "pick_gain", "hps_gain", "dreamsim", "dino_image", "dinov2_image",
                "dinov3_image",
            ),
            unchanged={
                "clip_gain": 0.0, "clip_gain_2": 0.0, "lpips": 0.0, "structure": 0.0, "vqa_gain": 0.0, "pick_gain": 0.0,
                "hps_gain": 0.0, "dreamsim": 0.0, "dino_image": 1.0, "dinov2_image": 1.0, "dinov3_image": 1.0,
            },
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


def _package_metrics() -> tuple[str, ...]:
    """Return the metrics of installed packages that have a format, by name."""
    usable = METRICS.usable(METRICS.from_packages())
    return tuple(name for name, metric in usable.items() if metric.format is not None)


def table_metrics() -> tuple[str, ...]:
    """Return the metrics that the tables of some profile show, each once."""
    return tuple(dict.fromkeys(name for profile in PROFILES.values() for name in profile.table))


def metric_format(name: str) -> MetricFormat:
    """Return the format in which tables print a metric.

    It is stated beside the metric.

    Raises:
        RiebenchError: if there is no such metric, or tables do not show it.
    """
    stated: MetricFormat | None = METRICS.get(name).format
    if stated is None:
        raise RiebenchError(f"the metric {name} does not say how tables print it; give @metric a format")
    return stated


BY_SECOND: tuple[str, ...] = ("clip_gain_2", "clip_margin_2")
"""Metrics that the second, independent scorer gives."""
OPTIONAL_METRICS: tuple[str, ...] = (*BY_SECOND, "structure")
"""Metrics of the default profile that are left out, with a note, if their network is not on the machine."""


def is_left_to_request(metric: str, second: str | None) -> bool:
    """Return whether pictures of a shipped model get a metric on request alone.

    Their numbers are the same on every machine: they do not depend on the weights that happen to be there.

    Args:
        metric: its name.
        second: the second scorer, as `ClipSpec.parse` reads it; None for none.
    """
    ships = metric in BY_SECOND and second is not None and ClipSpec.parse(second).asset is not None
    return metric in OPTIONAL_METRICS and not ships


def get_profile(name: str) -> Profile:
    """Return the profile of that name.

    Raises:
        RiebenchError: if there is none; the message names the nearest match.
    """
    if name not in PROFILES:
        raise RiebenchError(f"unknown profile {name!r}{near_match(name, PROFILES)}")
    return PROFILES[name]


def profile_metrics(name: str, registered: Iterable[str]) -> tuple[str, ...]:
    """Return the metrics that a profile scores.

    These are its official metrics. The default profile scores all registered metrics that no other profile owns and
    that need not be asked for.

    Args:
        name: name of the profile.
        registered: names of all registered metrics.

    Raises:
        RiebenchError: as `get_profile`.
    """
    profile = get_profile(name)
    if name != DEFAULT:
        return profile.metrics
    others = {metric for other in PROFILES.values() if other.name != DEFAULT for metric in other.own}
    return tuple(metric for metric in registered if metric not in others and metric not in ON_REQUEST)

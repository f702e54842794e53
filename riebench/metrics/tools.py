"""The networks that metrics share, each loaded the first time a metric asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riebench.metrics.base import Metric

if TYPE_CHECKING:
    from riebench.metrics.clip import ClipScorer, Profile
    from riebench.metrics.judge import JudgeReader
    from riebench.metrics.lpips import LpipsModel


class Tools:
    """Lazily loaded networks on one device.

    Args:
        scorer: which CLIP, as `ClipSpec.parse` reads it.
        device: torch device.
        profile: how CLIP prompts are cleaned.
        clip: a ready scorer to use instead of `scorer`.
        lpips: a ready LPIPS network.
        judge: a ready judge.
    """

    def __init__(
        self,
        scorer: str = "clip-l14",
        *,
        device: str = "cpu",
        profile: Profile = "default",
        clip: ClipScorer | None = None,
        lpips: LpipsModel | None = None,
        judge: JudgeReader | None = None,
    ) -> None:
        self.scorer, self.device, self.profile = scorer, device, profile
        self._clip, self._lpips, self._judge = clip, lpips, judge
        self._identities: dict[str, str] = {}

    @property
    def clip(self) -> ClipScorer:
        """The CLIP scorer."""
        if self._clip is None:
            from riebench.metrics.clip import ClipScorer

            self._clip = ClipScorer.load(self.scorer, device=self.device, profile=self.profile)
        return self._clip

    @property
    def lpips(self) -> LpipsModel:
        """The LPIPS network."""
        if self._lpips is None:
            from riebench.metrics.lpips import LpipsModel

            self._lpips = LpipsModel(self.device)
        return self._lpips

    @property
    def judge(self) -> JudgeReader:
        """The toy world's judge."""
        if self._judge is None:
            from riebench.metrics.judge import JudgeReader

            self._judge = JudgeReader.load()
        return self._judge

    def backbone(self, metric: Metric) -> str:
        """Identity of the network behind a metric, stored with every value; empty for pixel metrics.

        Loads nothing, so that a run that is scored already stays quick.
        """
        if metric.backbone not in self._identities:
            self._identities[metric.backbone] = self._identify(metric.backbone)
        return self._identities[metric.backbone]

    def _identify(self, kind: str) -> str:
        from riebench.metrics import clip, judge, lpips, scorers

        if kind == "clip":
            if self._clip is not None:
                return self._clip.backbone
            return clip.profiled(scorers.identity(scorers.ClipSpec.parse(self.scorer)), self.profile)
        if kind == "judge":
            return self._judge.backbone if self._judge is not None else judge.identity()
        return lpips.BACKBONE if kind == "lpips" else ""

    @property
    def details(self) -> dict[str, dict[str, str]]:
        """What must be known to repeat the numbers, for the networks loaded so far."""
        return {self._clip.backbone: self._clip.details} if self._clip is not None else {}

    @property
    def cut_prompts(self) -> tuple[str, ...]:
        """Prompts that CLIP saw without their end, sorted."""
        return tuple(sorted(self._clip.cut_prompts)) if self._clip is not None else ()

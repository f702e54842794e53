"""The networks that metrics share, each loaded the first time a metric asks for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from riebench.errors import MetricError
from riebench.metrics.base import Kind, Metric
from riebench.metrics.scorers import ClipSpec, identity
from riebench.metrics.weights import DINO, SQUEEZENET

if TYPE_CHECKING:
    from riebench.metrics.clip import ClipScorer
    from riebench.metrics.judge import JudgeReader
    from riebench.metrics.lpips import LpipsModel
    from riebench.metrics.openclip import LoadedClip
    from riebench.metrics.structure import DinoKeys


class Tools:
    """Lazily loaded networks on one device.

    Args:
        scorer: which CLIP, as `ClipSpec.parse` reads it.
        device: torch device.
        second: the independent CLIP that gives `clip_gain_2`, or None for none.
        weights: where networks lie that do not ship; names of `riebench.metrics.weights.LOCAL_NAMES`.
        offline: fetches nothing.
        clip: a ready scorer to use instead of `scorer`.
        clip2: a ready second scorer.
        half_clip: a ready scorer in half precision.
        lpips: a ready LPIPS network.
        squeeze: a ready LPIPS network on SqueezeNet.
        dino: ready DINO keys.
        judge: a ready judge.
    """

    def __init__(
        self,
        scorer: str = "clip-l14",
        *,
        device: str = "cpu",
        second: str | None = None,
        weights: Mapping[str, Path] | None = None,
        offline: bool = False,
        clip: ClipScorer | None = None,
        clip2: ClipScorer | None = None,
        half_clip: ClipScorer | None = None,
        lpips: LpipsModel | None = None,
        squeeze: LpipsModel | None = None,
        dino: DinoKeys | None = None,
        judge: JudgeReader | None = None,
    ) -> None:
        self.scorer, self.second, self.device, self.offline = scorer, second, device, offline
        self.weights = dict(weights or {})
        self._clip, self._clip2, self._half_clip = clip, clip2, half_clip
        self._lpips, self._squeeze, self._dino, self._judge = lpips, squeeze, dino, judge
        self._loaded: LoadedClip | None = None
        self._identities: dict[Kind, str] = {}
        self._missing: dict[tuple[Kind, bool], str | None] = {}

    @property
    def clip(self) -> ClipScorer:
        """The CLIP scorer."""
        if self._clip is None:
            from riebench.metrics.clip import ClipScorer

            self._clip = ClipScorer.of(self._network(), self.device)
        return self._clip

    @property
    def half_clip(self) -> ClipScorer:
        """The same CLIP as published scripts run it."""
        if self._half_clip is None:
            from riebench.metrics.paper import HalfClipScorer

            self._half_clip = HalfClipScorer.of(self._network(), self.device)
        return self._half_clip

    def _network(self) -> LoadedClip:
        if self._loaded is None:
            from riebench.metrics.openclip import load_open_clip

            self._loaded = load_open_clip(ClipSpec.parse(self.scorer), self.device, offline=self.offline)
        return self._loaded

    @property
    def clip2(self) -> ClipScorer:
        """The independent CLIP scorer.

        Raises:
            MetricError: if there is none for this model.
        """
        if self._clip2 is None:
            from riebench.metrics.clip import ClipScorer

            if self.second is None:
                raise MetricError("clip_gain_2 needs a second scorer; name it with a second --scorer")
            self._clip2 = ClipScorer.load(self.second, device=self.device, offline=self.offline)
        return self._clip2

    @property
    def lpips(self) -> LpipsModel:
        """The LPIPS network."""
        if self._lpips is None:
            from riebench.metrics.lpips import LpipsModel

            self._lpips = LpipsModel(self.device)
        return self._lpips

    @property
    def squeeze(self) -> LpipsModel:
        """The LPIPS network on SqueezeNet."""
        if self._squeeze is None:
            from riebench.metrics.lpips import SqueezeLpips

            self._squeeze = SqueezeLpips(self.device, self.weights.get(SQUEEZENET))
        return self._squeeze

    @property
    def dino(self) -> DinoKeys:
        """DINO's keys."""
        if self._dino is None:
            from riebench.metrics.structure import DinoKeys, dino_folder, identity

            place = self.weights.get(DINO)
            self._dino = DinoKeys.load(dino_folder(place, offline=self.offline), self.device, identity(place))
        return self._dino

    @property
    def judge(self) -> JudgeReader:
        """The toy world's judge."""
        if self._judge is None:
            from riebench.metrics.judge import JudgeReader

            self._judge = JudgeReader.load()
        return self._judge

    def missing(self, metric: Metric, *, fetch: bool) -> str | None:
        """Why a metric's network cannot be had, in one line; None if it can. Only of networks people may lack.

        Args:
            metric: the metric.
            fetch: whether it may be fetched now; without, only this machine is looked at.
        """
        key = metric.backbone, fetch and not self.offline
        if key not in self._missing:
            try:
                self._look_for(*key)
                self._missing[key] = None
            except MetricError as error:
                self._missing[key] = str(error)
        return self._missing[key]

    def lacking(self, metric: Metric) -> str | None:
        """What `missing` has answered for a metric that was asked for, without looking again."""
        return self._missing.get((metric.backbone, not self.offline))

    def _look_for(self, kind: Kind, fetch: bool) -> None:
        if kind == "clip2" and self._clip2 is None:
            from riebench.metrics.openclip import locate

            if self.second is None:
                raise MetricError("no second scorer belongs to this model; name one with a second --scorer")
            locate(ClipSpec.parse(self.second), offline=not fetch)
        elif kind == "dino" and self._dino is None:
            from riebench.metrics.structure import dino_folder

            dino_folder(self.weights.get(DINO), offline=not fetch)
        elif kind == "squeeze" and self._squeeze is None:
            from riebench.metrics.lpips import squeezenet_file

            squeezenet_file(self.weights.get(SQUEEZENET))

    def backbone(self, metric: Metric) -> str:
        """Identity of the network behind a metric, stored with every value; empty for pixel metrics.

        Loads nothing, so that a run that is scored already stays quick.
        """
        kind = metric.backbone
        if kind not in self._identities:
            self._identities[kind] = self._ready(kind) or self._identify(kind)
        return self._identities[kind]

    def _ready(self, kind: Kind) -> str | None:
        ready = {"clip": self._clip, "clip2": self._clip2, "clip-half": self._half_clip}.get(kind)
        named = ready or {"dino": self._dino, "judge": self._judge}.get(kind)
        return named.backbone if named is not None else None

    def _identify(self, kind: Kind) -> str:
        from riebench.metrics import judge, lpips, paper, structure

        if kind == "clip":
            return identity(ClipSpec.parse(self.scorer))
        if kind == "clip-half":
            return paper.half_identity(identity(ClipSpec.parse(self.scorer)))
        if kind == "clip2":
            return identity(ClipSpec.parse(self.second)) if self.second else "none"
        if kind == "dino":
            return structure.identity(self.weights.get(DINO))
        if kind == "judge":
            return judge.identity()
        return {"lpips": lpips.BACKBONE, "squeeze": lpips.SQUEEZE_BACKBONE}.get(kind, "")

    @property
    def _clips(self) -> list[ClipScorer]:
        return [scorer for scorer in (self._clip, self._clip2, self._half_clip) if scorer is not None]

    @property
    def details(self) -> dict[str, dict[str, str]]:
        """What must be known to repeat the numbers, for the networks loaded so far."""
        networks: list[ClipScorer | DinoKeys] = [*self._clips, *([self._dino] if self._dino is not None else [])]
        return {network.backbone: network.details for network in networks}

    @property
    def cut_prompts(self) -> tuple[str, ...]:
        """Prompts that a CLIP saw without their end, sorted."""
        return tuple(sorted(set().union(*(scorer.cut_prompts for scorer in self._clips))))


def measurable(
    metrics: Sequence[Metric], optional: Collection[str], tools: Tools
) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Leaves out optional metrics whose network is not on this machine.

    Args:
        metrics: what is wanted.
        optional: names of those that nobody asked for.
        tools: the networks.

    Returns:
        What is to be measured, and one line on each metric left out.
    """
    chosen, notes = [], []
    for metric in metrics:
        why = tools.missing(metric, fetch=False) if metric.name in optional else None
        if why is None:
            chosen.append(metric)
        else:
            notes.append(f"{metric.name} left out: {why}")
    return tuple(chosen), tuple(notes)

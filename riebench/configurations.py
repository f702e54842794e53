"""Stored records and scores, read into what table rows stand for: one setting at one strength on one block set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from riebench.blocks import ALL_BLOCKS, BLOCKS, NO_BLOCKS
from riebench.errors import StoreError
from riebench.models.presets import scorer_for, second_scorer_for
from riebench.registry import METRICS
from riebench.scoring.metrics.base import Reason
from riebench.scoring.metrics.clip_models import is_measured_by
from riebench.scoring.profiles import DEFAULT, PROFILES, Profile
from riebench.stats import estimate
from riebench.store.folder import RunFolder, ScoreKey
from riebench.store.records import RECORDS_FILE, SCORES_FILE, ScoreRecord
from riebench.tasks.schema import ALL_CATEGORIES, Stored
from riebench.utils.files import read_lines
from riebench.versions import Origin, agreed_origins, agreed_world, origin_gap, world, world_gap

EVERYTHING = "all"
"""The category that is the mean over all categories."""


TABLE_METRICS = PROFILES[DEFAULT].table
"""Metrics that tables show, where they were scored."""

UNCHANGED = PROFILES[DEFAULT].unchanged
"""What a failed unit counts as in means: the source picture left alone, so that failing on hard edits never pays. It
is not counted as scored."""


class TableRow(Stored):
    """One cell of a table, with everything needed to print or to doubt it."""

    model: str
    """Model name."""
    setting: str
    """Setting name."""
    block_set: str
    """Blocks edited together."""
    strength: float | None
    """Strength, or None if the method has one only."""
    category: str
    """Edit category, or "all"."""
    metric: str
    """Metric."""
    mean: float | None
    """Mean over seeds, then examples, then categories; None if nothing was scored."""
    ci_low: float | None
    """Lower end of the 95 % interval."""
    ci_high: float | None
    """Upper end of the 95 % interval."""
    n_examples: int
    """Examples behind the mean."""
    n_seeds: int
    """Most seeds an example has."""
    n_scored: int
    """Units with a value."""
    n_expected: int
    """Units that should have one."""


@dataclass
class Configuration:
    """One setting at one strength on one block set: what a table row stands for."""

    model: str
    setting: str
    method: str
    access: str
    block_set: str
    strength: float
    run_id: str
    several_strengths: bool
    expected: dict[str, int] = field(default_factory=dict)
    """Category -> planned units."""
    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    """Metric -> category -> example id -> values of its seeds."""
    units: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)
    """Metric -> (example id, seed) -> value: the same, seed by seed, for what is compared picture by picture."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Metric -> the network whose numbers these are."""
    profile: str = DEFAULT
    """Whose metrics these are: a name of `PROFILES`."""
    clusters: dict[str, str] = field(default_factory=dict)
    """Example id -> what it is resampled with, for examples that share something."""
    origins: dict[str, set[Origin]] = field(default_factory=dict)
    """Example id -> the versions of it that units were made from; more than one if it changed between two seeds."""
    world: str = ""
    """What the pictures come from (`riebench.versions.world`)."""
    failed: int = 0
    skipped: int = 0
    imputed: dict[tuple[str, str], int] = field(default_factory=dict)
    """(Metric, category) -> failed units that are in the values as `UNCHANGED`."""

    @property
    def label(self) -> str:
        """Setting name, with the strength where the setting has several."""
        return f"{self.setting} x{self.strength:g}" if self.several_strengths else self.setting

    def add(self, metric: str, category: str, example: str, seed: int, value: float) -> None:
        """Takes in one unit's number."""
        self.values.setdefault(metric, {}).setdefault(category, {}).setdefault(example, []).append(value)
        self.units.setdefault(metric, {})[example, seed] = value

    def row(self, metric: str, category: str) -> TableRow:
        """One cell."""
        result = estimate(self._values(metric, category), self.clusters)
        scored, expected = self.counts(metric, category)
        return TableRow(
            model=self.model,
            setting=self.setting,
            block_set=self.block_set,
            strength=self.strength,
            category=category,
            metric=metric,
            mean=result.mean,
            ci_low=result.low,
            ci_high=result.high,
            n_examples=result.n_examples,
            n_seeds=self.seeds(metric, category),
            n_scored=scored,
            n_expected=expected,
        )

    def _values(self, metric: str, category: str) -> dict[str, dict[str, list[float]]]:
        """Category -> example id -> values of its seeds, of one category or of all."""
        values = self.values.get(metric, {})
        return values if category == EVERYTHING else {category: values.get(category, {})}

    def counts(self, metric: str, category: str = EVERYTHING) -> tuple[int, int]:
        """Units with a number, and units that should have one; a failed unit's stand-in is no number."""
        values = self._values(metric, category)
        scored = sum(len(seeds) for examples in values.values() for seeds in examples.values())
        scored -= sum(self.imputed.get((metric, name), 0) for name in values)
        return scored, sum(self.expected.values()) if category == EVERYTHING else self.expected.get(category, 0)

    def seeds(self, metric: str, category: str = EVERYTHING) -> int:
        """Most seeds an example has a number of."""
        values = self._values(metric, category)
        return max((len(seeds) for examples in values.values() for seeds in examples.values()), default=0)

    def example_means(self, metric: str) -> dict[str, float]:
        """Example id -> mean over its seeds."""
        return {
            example: sum(seeds) / len(seeds)
            for examples in self.values.get(metric, {}).values()
            for example, seeds in examples.items()
        }


def configurations(folder: RunFolder, profile: str = DEFAULT, extra: Sequence[str] = ()) -> list[Configuration]:
    """Reads one run folder into its configurations, block sets in the order of the blocks, "all" last.

    Args:
        folder: the run folder.
        profile: whose metrics to read; those of others are left out.
        extra: further metrics to read, of those that no table shows.

    Raises:
        StoreError: for a damaged line, or a record that no plan asked for.
    """
    spec = folder.spec
    found: dict[tuple[str, float], Configuration] = {}
    expected = folder.expected
    strengths = {strength for _, _, strength in expected}
    for (category, block_set, strength), n in expected.items():
        configuration = found.setdefault(
            (block_set, strength),
            Configuration(
                model=spec.model.name,
                setting=spec.setting.name,
                method=spec.setting.method,
                access=spec.setting.access,
                block_set=block_set,
                strength=strength,
                run_id=spec.run_id,
                several_strengths=len(strengths) > 1,
                profile=profile,
                world=world(spec),
            ),
        )
        configuration.expected[category] = n
    _fill(folder, found, PROFILES[profile], extra)
    return [found[key] for key in sorted(found, key=lambda key: (key[1], block_order(key[0])))]


def _fill(
    folder: RunFolder, found: dict[tuple[str, float], Configuration], profile: Profile, extra: Sequence[str]
) -> None:
    scores = folder.scores()
    versions = {metric: METRICS.get(metric).version for metric in (*profile.table, *extra)}
    backbones = _backbones(folder, scores)
    for one in found.values():
        one.backbones = backbones
    # Shards and workers record in the order in which they happen to finish; sums are taken in one that stays.
    for record in sorted(folder.records(), key=lambda record: (record.key.example_id, record.key.seed)):
        key = record.key
        digest = key.digest
        if (key.block_set, key.strength) not in found:
            raise StoreError(
                f"{folder.path / RECORDS_FILE}: unit {digest} ({key.example_id}, blocks {key.block_set}, "
                f"strength {key.strength:g}) was never planned; `riebench leaderboard --verify {folder.path}` says more"
            )
        configuration = found[key.block_set, key.strength]
        configuration.origins.setdefault(key.example_id, set()).add(Origin.of(key))
        configuration.failed += record.status == "error"
        configuration.skipped += record.status == "skipped"
        if record.cluster is not None:
            configuration.clusters[key.example_id] = record.cluster
        for metric, version in versions.items():
            score = scores.get((digest, metric, backbones.get(metric, "")))
            # A score of a picture that has been made again since is nobody's, and two versions of a metric are two.
            wanted = (record.picture_id, version)
            value = score.value if score is not None and (score.picture, score.version) == wanted else None
            if record.status == "error" and metric in profile.unchanged and metric in backbones:
                value = profile.unchanged[metric]
                slot = (metric, key.category)
                configuration.imputed[slot] = configuration.imputed.get(slot, 0) + 1
            if value is not None:
                configuration.add(metric, key.category, key.example_id, key.seed, value)


def _backbones(folder: RunFolder, scores: Mapping[ScoreKey, ScoreRecord]) -> dict[str, str]:
    """Metric -> whose numbers are shown: those of the model's own scorer, or else of the last that measured.

    A cell never mixes networks: other scorers' numbers stay in scores.jsonl.
    """
    usual, second = scorer_for(folder.spec.model), second_scorer_for(folder.spec.model)
    shown: dict[str, str] = {}
    for (_, metric, backbone), score in scores.items():
        if score.reason == Reason.NO_WEIGHTS:
            continue
        scorer = second if metric == "clip_gain_2" and second is not None else usual
        if is_measured_by(backbone, scorer) or not is_measured_by(shown.get(metric, ""), scorer):
            shown[metric] = backbone
    return shown


def block_order(block_set: str) -> tuple[int, str]:
    """What block sets are sorted by: none, single blocks in their order, others, all."""
    if block_set == NO_BLOCKS:
        return -1, ""
    if block_set == ALL_BLOCKS:
        return 1_000, ""
    return (BLOCKS.index(block_set), "") if block_set in BLOCKS else (len(BLOCKS), block_set)


def present_metrics(found: Iterable[Configuration]) -> list[str]:
    """Metrics of the configurations' profile that at least one of them has values for, in the profile's order."""
    configs = list(found)
    table = PROFILES[configs[0].profile].table if configs else {}
    return [metric for metric in table if any(metric in c.values for c in configs)]


def scored_profiles(folders: Iterable[RunFolder]) -> list[str]:
    """Profiles that have numbers of their own in some run folders; `default` also if no profile has."""
    lines = (line for folder in folders for _, line in read_lines(folder.path / SCORES_FILE))
    # Only looked through, for there are many; what is no score is refused where scores are read.
    told = (line for line in lines if isinstance(line, dict) and line.get("value") is not None)
    measured = {metric for line in told if isinstance(metric := line.get("metric"), str)}
    found = [name for name, profile in PROFILES.items() if measured & {*profile.own}]
    return found or [DEFAULT]


def present_categories(found: Iterable[Configuration]) -> list[str]:
    """Categories that were planned, by their number."""
    planned = {category for configuration in found for category in configuration.expected}
    return [category for category in ALL_CATEGORIES if category in planned]


def whole_configurations(found: Iterable[Configuration]) -> list[Configuration]:
    """Those that edit all their setting's blocks together, or none; blocks edited singly are left to `per_block`."""
    configs = list(found)
    sets: dict[tuple[str, str], set[str]] = {}
    for c in configs:
        sets.setdefault((c.model, c.setting), set()).add(c.block_set)

    def is_whole(c: Configuration) -> bool:
        others = sets[c.model, c.setting]
        return len(others) == 1 or (_width(c.block_set) > 1 and _width(c.block_set) == max(map(_width, others)))

    return [c for c in configs if is_whole(c)]


def mixed(found: Sequence[Configuration]) -> list[str | None]:
    """Of each row why it may not be held against the others: another version of an example, or another model."""
    origins = [{name: frozenset(its) for name, its in c.origins.items()} for c in found]
    example, model = agreed_origins(origins), agreed_world([c.world] for c in found)
    return [
        world_gap([c.world], model) or origin_gap(mine, example) for c, mine in zip(found, origins, strict=True)
    ]  # fmt: skip


def _width(block_set: str) -> int:
    if block_set == NO_BLOCKS:
        return 0
    return len(BLOCKS) if block_set == ALL_BLOCKS else block_set.count("+") + 1

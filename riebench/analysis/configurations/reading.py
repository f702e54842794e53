"""A run folder's records and scores, read into configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from riebench.analysis.configurations.cells import LARGEST_SCORE, Configuration
from riebench.analysis.configurations.origins import Origin, model_identity
from riebench.analysis.configurations.selection import block_places
from riebench.errors import StoreError
from riebench.models.clip import is_measured_by
from riebench.models.presets import scorer_for, second_scorer_for
from riebench.registry import METRICS
from riebench.scoring.metrics.base import Reason
from riebench.scoring.profiles import BY_SECOND, DEFAULT, PROFILES, Profile
from riebench.store.folder import RunFolder
from riebench.store.invocations import Invocation
from riebench.store.records import EditRecord
from riebench.store.scores import ScoreTable, Series
from riebench.tasks.schema import Setting

FAR, FAR_BEFORE = "off_distribution", "off_distribution_before"
"""Shares of positions with activations farther out than 99 % of unedited ones, after and before the edit, over blocks
and steps. They are read from records and stand beside metrics, where they were measured."""
EARLIER_ACCESS: Mapping[tuple[str, str], str] = {
    ("random_features", "M"): "PAM",
    ("random_directions", "M"): "PAM",
    ("wrong_example", "PAM"): "PAMT",
    ("concept_steering", "PAT"): "T",
}
"""Method and the access that runs of it stated before declarations were checked -> what it looks at."""


def true_access(setting: Setting) -> str:
    """Return what a stored setting's method looks at, whatever it stated at the time."""
    return EARLIER_ACCESS.get((setting.method, setting.access), setting.access)


def configurations(
    folder: RunFolder, profile: str = DEFAULT, extra: Sequence[str] = (), *, features: bool = True
) -> list[Configuration]:
    """Read one run folder into its configurations.

    They are sorted by strength, then by block set in the order of the blocks with "all" last.

    Args:
        folder: the run folder.
        profile: whose metrics to read; those of others are left out.
        extra: further metrics to read, of those that no table shows.
        features: False where nothing else will read the folder's switched features; see `RunFolder.records`.

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
                access=true_access(spec.setting),
                block_set=block_set,
                strength=strength,
                run_id=spec.run_id,
                several_strengths=len(strengths) > 1,
                profile=profile,
                model_identity=model_identity(spec),
            ),
        )
        configuration.expected[category] = n
    _fill(folder, found, PROFILES[profile], extra, features)
    place = block_places(block_set for block_set, _ in found)
    return [found[key] for key in sorted(found, key=lambda key: (key[1], place[key[0]]))]


def _fill(
    folder: RunFolder, found: dict[tuple[str, float], Configuration], profile: Profile, extra: Sequence[str],
    features: bool,
) -> None:  # fmt: skip
    """Add the records and scores of a run folder to its configurations."""
    scores = folder.score_table()
    versions = {metric: METRICS.get(metric).version for metric in (*profile.table, *extra)}
    backbones = backbones_shown(folder, scores)
    commands = folder.invocations
    series = {
        metric: lines
        for metric in versions
        # What has no line has no number either, but for failed units of a metric that is shown.
        if (lines := scores.series(metric, backbones.get(metric, ""))).rows or metric in backbones
    }
    for one in found.values():
        one.backbones = backbones
    # Shards and workers record in the order in which they happen to finish; sums are taken in one that stays.
    records = sorted(folder.records(features=features), key=lambda record: (record.key.example_id, record.key.seed))
    units = [_Unit.of(record, found, folder) for record in records]
    for unit in units:
        unit.note(commands)
    places: dict[int, list[int | None]] = {}
    for metric, lines in series.items():
        # Most metrics share one mapping of units, in which each is then looked up once.
        rows = places.get(id(lines.rows)) or [lines.rows.get(unit.digest) for unit in units]
        places[id(lines.rows)] = rows
        stand_in = profile.unchanged.get(metric) if metric in backbones else None
        _add_scores(metric, zip(units, rows, strict=True), lines, versions[metric], commands, stand_in)
    for configuration in found.values():
        for metric in versions:
            configuration.drop_stand_ins(metric)


class _Unit(NamedTuple):
    """One record with what its scores are found by, and its example id and seed."""

    record: EditRecord
    digest: str
    picture: str
    configuration: Configuration
    sample: tuple[str, int]

    @classmethod
    def of(cls, record: EditRecord, found: Mapping[tuple[str, float], Configuration], folder: RunFolder) -> _Unit:
        """Return a record with the configuration that it belongs to."""
        key = record.key
        digest = key.digest
        configuration = found.get((key.block_set, key.strength))
        if configuration is None:
            raise StoreError(
                f"{folder.path}: unit {digest} ({key.example_id}, blocks {key.block_set}, "
                f"strength {key.strength:g}) was never planned; `riebench leaderboard --verify {folder.path}` says more"
            )
        return cls(record, digest, record.picture_id, configuration, (key.example_id, key.seed))

    def note(self, commands: Sequence[Invocation]) -> None:
        """Note in its configuration all that is no score."""
        record, configuration, key = self.record, self.configuration, self.record.key
        configuration.origins.setdefault(key.example_id, set()).add(Origin.of(key))
        configuration.failed += record.status == "error"
        configuration.skipped += record.status == "skipped"
        _note_command(configuration.makers, record.invocation, commands)
        if record.cluster is not None:
            configuration.clusters[key.example_id] = record.cluster
        self._add_far_shares()

    def _add_far_shares(self) -> None:
        """Add how much of its activations left the distribution, if known."""
        for name, read in ((FAR, lambda one: one.far), (FAR_BEFORE, lambda one: one.far_before)):
            shares = [share for one in (self.record.distribution or {}).values() for share in read(one)]
            if shares:
                category = self.record.key.category
                self.configuration.add(name, category, self.sample, sum(shares) / len(shares))


def _add_scores(
    metric: str, placed: Iterable[tuple[_Unit, int | None]], series: Series, version: int,
    commands: Sequence[Invocation], stand_in: float | None,
) -> None:  # fmt: skip
    """Add the numbers of one metric, and note who measured them.

    A score counts only for the picture that is stored now and for the current version of its metric.

    Args:
        metric: its name.
        placed: units with their rows in the columns, None for those without a score.
        series: the columns.
        version: the metric's.
        commands: see `RunFolder.invocations`.
        stand_in: number of units that failed; None for none.
    """
    pictures, versions, values, invocations = series.pictures, series.versions, series.values, series.invocations
    for (record, _, picture, configuration, sample), row in placed:
        value, key = None, record.key
        if row is not None and pictures[row] == picture and versions[row] == version:
            value = values[row]
            if (place := invocations[row]) not in configuration.measurers:
                _note_command(configuration.measurers, place, commands)
        if value is not None and abs(value) > LARGEST_SCORE:
            configuration.outsized[metric] = configuration.outsized.get(metric, 0) + 1
            value = None
        if stand_in is not None and record.status == "error":
            value, slot = stand_in, (metric, key.category)
            configuration.imputed[slot] = configuration.imputed.get(slot, 0) + 1
        if value is not None:
            configuration.add(metric, key.category, sample, value)


def _note_command(known: dict[int, Invocation], place: int | None, invocations: Sequence[Invocation]) -> None:
    if place is not None and place not in known and place < len(invocations):
        known[place] = invocations[place]


def backbones_shown(folder: RunFolder, scores: ScoreTable) -> dict[str, str]:
    """Return the network whose numbers are shown for each metric.

    It is the model's own scorer, or else the last one that measured.

    A cell never mixes networks: other scorers' numbers stay in the run folder.
    """
    usual, second = scorer_for(folder.spec.model), second_scorer_for(folder.spec.model)
    last = {pair: scores.last_place(*pair, Reason.NO_WEIGHTS) for pair in scores.measured}
    shown: dict[str, str] = {}
    for metric, backbone in sorted((pair for pair, place in last.items() if place >= 0), key=last.__getitem__):
        scorer = second if metric in BY_SECOND and second is not None else usual
        if is_measured_by(backbone, scorer) or not is_measured_by(shown.get(metric, ""), scorer):
            shown[metric] = backbone
    return shown


def scored_profiles(folders: Iterable[RunFolder]) -> list[str]:
    """Return the profiles that have numbers of their own in some run folders.

    It is `default` alone if no profile has.
    """
    measured = {
        metric
        for folder in folders
        for table in [folder.score_table()]
        for metric, backbone in table.measured
        if table.has_values(metric, backbone)
    }
    found = [name for name, profile in PROFILES.items() if measured & {*profile.own}]
    return found or [DEFAULT]

"""Configurations of stored runs: one setting at one strength on one block set.

A configuration is what a table row stands for. The first part decides which results may be compared: examples must be
of the same version (`Origin`) and pictures of the same model (`model_identity`). The second part reads a run folder's
records and scores into configurations and selects among them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from riebench.analysis.stats import CategoryReplicates, estimate, mean_over_seeds
from riebench.blocks import ALL_BLOCKS, NO_BLOCKS, pass_order
from riebench.errors import StoreError
from riebench.models.clip import is_measured_by
from riebench.models.presets import scorer_for, second_scorer_for
from riebench.registry import METRICS
from riebench.scoring.metrics.base import Reason
from riebench.scoring.profiles import BY_SECOND, DEFAULT, PROFILES, Profile
from riebench.store.folder import RunFolder
from riebench.store.invocations import Invocation, mixed_versions
from riebench.store.records import EditRecord, RunSpec, UnitKey
from riebench.store.scores import ScoreTable, Series
from riebench.tasks.schema import ALL_CATEGORIES, Setting, StoredModel

EVERYTHING = "all"
"""The category that is the mean over all categories."""
LARGEST_SCORE = 1e90
"""Scores beyond it, either way, are no measurements and are left out: sums, squares and cubes of smaller ones stay
finite."""
FAR, FAR_BEFORE = "off_distribution", "off_distribution_before"
"""Shares of positions with activations farther out than 99 % of unedited ones, after and before the edit, over blocks
and steps. They are read from records and stand beside metrics, where they were measured."""
MANY_BLOCKS = 10_000
"""Counts for the blocks of "all", which are as many as the model's family says: more than any set that is named."""
SHORT_HASH = 8
"""Characters of a hash that are printed."""


@dataclass(frozen=True, order=True)
class Origin:
    """The version of an example that a unit was made from.

    Attributes:
        task: its task.
        version: of the task.
        content: hash of what can move a number of the example.
    """

    task: str
    version: int
    content: str

    @classmethod
    def of(cls, key: UnitKey) -> Origin:
        """Return the origin of a unit."""
        return cls(key.task, key.task_version, key.example_hash)

    def __str__(self) -> str:
        return f"{self.task}@{self.version}"


Origins = Mapping[str, frozenset[Origin]]
"""Example id -> the versions that one entry's units are of: a single one, if all is well."""


def majority_origins(entries: Iterable[Origins]) -> dict[str, Origin | None]:
    """Return the version of each example that counts.

    It is the version that most entries have, among those of the newest version of its task.

    Examples that only older versions of their task have are not in it: they are no longer asked for.

    Args:
        entries: one mapping for each entry that is compared.

    Returns:
        Example id -> its version; None where two versions are equally frequent.
    """
    stated = list(entries)
    newest: dict[str, int] = {}
    votes: dict[str, Counter[Origin]] = {}
    for origins in stated:
        for example, found in origins.items():
            votes.setdefault(example, Counter()).update(found)
            for origin in found:
                newest[origin.task] = max(newest.get(origin.task, origin.version), origin.version)
    agreed: dict[str, Origin | None] = {}
    for example, counted in votes.items():
        new = [(n, origin) for origin, n in counted.items() if origin.version == newest[origin.task]]
        if new:
            most = max(n for n, _ in new)
            first = [origin for n, origin in new if n == most]
            agreed[example] = first[0] if len(first) == 1 else None
    return agreed


def origin_gap(origins: Origins, agreed: Mapping[str, Origin | None]) -> str | None:
    """Return the reason why an entry's examples differ from the others', or None.

    Args:
        origins: the entry's.
        agreed: see `majority_origins`.
    """
    odd = {example for example, found in origins.items() if found != {agreed.get(example)}}
    if not odd:
        return None
    here = sorted({str(origin) for example in odd for origin in origins[example]})
    there = sorted({str(origin) for origin in agreed.values() if origin is not None} - {*here})
    counts = f"{len(odd)} of {len(origins)} examples are of another version"
    newer = [name for name in there if name.split("@")[0] in {one.split("@")[0] for one in here}]
    if newer:
        return f"{counts}: {', '.join(here)}, not {', '.join(newer)}"
    return f"{counts}: their content in {', '.join(here)} is not what others have"


def model_identity(spec: RunSpec) -> str:
    """Return all that moves pictures besides setting and examples, as one text.

    It holds the model with its sizes and the way regions are found.
    """
    return json.dumps(
        {"spec_version": spec.spec_version, "regions": spec.regions, **spec.model.identity}, sort_keys=True
    )


def model_gap(identities: Iterable[str], agreed: str | None) -> str | None:
    """Return the reason why an entry's pictures come from another model, or None.

    Args:
        identities: the entry's.
        agreed: what most entries have; None if as many have another.
    """
    found = sorted(set(identities))
    if found == [agreed]:
        return None
    if agreed is None:
        return "made by another model of this name than as many others"
    if len(found) > 1:
        return "its edit strengths were made by different models of this name"
    here, there = json.loads(found[0]), json.loads(agreed)
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    changes = "; ".join(f"{name} is {_shorten(here.get(name))}, not {_shorten(there.get(name))}" for name in names)
    return f"made by another model of this name: {changes}"


def majority_model(entries: Iterable[Iterable[str]]) -> str | None:
    """Return the identity of the model that most entries were made by.

    It is None if there are no entries or if two models are equally frequent.

    Args:
        entries: the identities of each.
    """
    counted = Counter(one for identities in entries for one in set(identities)).most_common(2)
    if not counted or (len(counted) > 1 and counted[0][1] == counted[1][1]):
        return None
    return counted[0][0]


def _shorten(value: object) -> str:
    """Return a value as text, a hash cut to its first characters."""
    text = str(value)
    return text[:SHORT_HASH] if len(text) > 2 * SHORT_HASH and " " not in text and "/" not in text else text


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


class TableRow(StoredModel):
    """One cell of a table, with all that is needed to print and to check it."""

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
    """One setting at one strength on one block set: a row of a table."""

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
    model_identity: str = ""
    """What the pictures come from (`riebench.analysis.configurations.model_identity`)."""
    failed: int = 0
    skipped: int = 0
    imputed: dict[tuple[str, str], int] = field(default_factory=dict)
    """(Metric, category) -> failed units that have the profile's `unchanged` value in means.

    It is the value of the source picture left alone, so that failing on hard edits never pays. Such a unit is not
    counted as scored, and where no unit was scored there is no mean.
    """
    makers: dict[int, Invocation] = field(default_factory=dict)
    """Commands that made its pictures, by their place in `RunFolder.invocations`."""
    measurers: dict[int, Invocation] = field(default_factory=dict)
    """Likewise, commands that measured its scores."""
    outsized: dict[str, int] = field(default_factory=dict)
    """Metric -> scores that were left out for being beyond `LARGEST_SCORE`."""
    _rows: dict[tuple[str, str], TableRow] = field(default_factory=dict, repr=False, compare=False)
    """(Metric, category) -> cell, for those asked for: several tables show the same ones."""
    _parts: dict[str, dict[str, CategoryReplicates]] = field(default_factory=dict, repr=False, compare=False)
    """Metric -> category -> its replicates, until the row over all categories is made."""

    _sizes: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)
    """(Metric, category) -> its number of values, and the largest number of an example; for those asked for."""

    @property
    def label(self) -> str:
        """Setting name, with the strength where the setting has several."""
        return f"{self.setting} x{self.strength:g}" if self.several_strengths else self.setting

    def add(self, metric: str, category: str, example: str, seed: int, value: float) -> None:
        """Add one unit's number."""
        if self._sizes:
            self._forget()
        # Hundreds of thousands of numbers come here, and nearly all find their places made.
        try:
            examples = self.values[metric][category]
            units = self.units[metric]
        except KeyError:
            examples = self.values.setdefault(metric, {}).setdefault(category, {})
            units = self.units.setdefault(metric, {})
        if example in examples:
            examples[example].append(value)
        else:
            examples[example] = [value]
        units[example, seed] = value

    def _forget(self) -> None:
        """Forget all that was computed from the numbers so far."""
        self._rows.clear()
        self._parts.clear()
        self._sizes.clear()

    def row(self, metric: str, category: str) -> TableRow:
        """Return the cell of a metric and a category, with its interval."""
        known = self._rows.get((metric, category))
        if known is not None:
            return known
        about = METRICS.get(metric)
        values = self._values(metric, category)
        # The row over all categories comes last, and its parts are those of the rows before it.
        parts = self._parts.pop(metric, {}) if category == EVERYTHING else self._parts.setdefault(metric, {})
        result = estimate(values, self.clusters, share=about.is_share, bounds=(about.low, about.high), known=parts)
        scored, expected = self.counts(metric, category)
        row = self._rows[metric, category] = TableRow(
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
        return row

    def _values(self, metric: str, category: str) -> dict[str, dict[str, list[float]]]:
        """Return the values of a metric in one category or in all.

        They are category -> example id -> values of its seeds; none where no unit was scored.
        """
        return self._stored(metric, category) if self.counts(metric, category)[0] else {}

    def _stored(self, metric: str, category: str) -> dict[str, dict[str, list[float]]]:
        """Return all values of a metric in one category or in all.

        Those that stand in for failed units are among them.
        """
        values = self.values.get(metric, {})
        return values if category == EVERYTHING else {category: values.get(category, {})}

    def counts(self, metric: str, category: str = EVERYTHING) -> tuple[int, int]:
        """Return how many units have a number and how many should have one.

        The value that stands in for a failed unit is not counted.
        """
        names = self.values.get(metric, {}) if category == EVERYTHING else (category,)
        scored = sum(self._size(metric, name)[0] - self.imputed.get((metric, name), 0) for name in names)
        return scored, sum(self.expected.values()) if category == EVERYTHING else self.expected.get(category, 0)

    def _size(self, metric: str, category: str) -> tuple[int, int]:
        """Return the number of values in a category, and of an example at most."""
        known = self._sizes.get((metric, category))
        if known is None:
            seeds = [*map(len, self.values.get(metric, {}).get(category, {}).values())]
            known = self._sizes[metric, category] = sum(seeds), max(seeds, default=0)
        return known

    def seeds(self, metric: str, category: str = EVERYTHING) -> int:
        """Return the largest number of seeds that an example has a value for."""
        return max((self._size(metric, name)[1] for name in self._values(metric, category)), default=0)

    def drop_stand_ins(self, metric: str) -> None:
        """Forget the values that stand in for failed units if no unit at all was scored."""
        if metric in self.values and not self.counts(metric)[0]:
            self.values[metric] = {}
            self._forget()
            self.units.pop(metric, None)
            self.imputed = {slot: n for slot, n in self.imputed.items() if slot[0] != metric}

    def example_means(self, metric: str) -> dict[str, float]:
        """Return the mean over seeds of each example."""
        return {
            example: mean_over_seeds(seeds)
            for examples in self.values.get(metric, {}).values()
            for example, seeds in examples.items()
        }


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
    """One record with what its scores are found by."""

    record: EditRecord
    digest: str
    picture: str
    configuration: Configuration

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
        return cls(record, digest, record.picture_id, configuration)

    def note(self, commands: Sequence[Invocation]) -> None:
        """Note in its configuration all that is no score."""
        record, configuration, key = self.record, self.configuration, self.record.key
        configuration.origins.setdefault(key.example_id, set()).add(Origin.of(key))
        configuration.failed += record.status == "error"
        configuration.skipped += record.status == "skipped"
        _note_command(configuration.makers, record.invocation, commands)
        if record.cluster is not None:
            configuration.clusters[key.example_id] = record.cluster
        _add_far_shares(configuration, record)


def _add_far_shares(configuration: Configuration, record: EditRecord) -> None:
    """Add how much of a unit's activations left the distribution, if known."""
    for name, read in ((FAR, lambda one: one.far), (FAR_BEFORE, lambda one: one.far_before)):
        shares = [share for one in (record.distribution or {}).values() for share in read(one)]
        if shares:
            key = record.key
            configuration.add(name, key.category, key.example_id, key.seed, sum(shares) / len(shares))


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
    for (record, _, picture, configuration), row in placed:
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
            configuration.add(metric, key.category, key.example_id, key.seed, value)


def _note_command(known: dict[int, Invocation], place: int | None, invocations: Sequence[Invocation]) -> None:
    if place is not None and place not in known and place < len(invocations):
        known[place] = invocations[place]


def mixed_in_words(found: Iterable[Configuration]) -> str:
    """Return the packages that a row was made with in several versions.

    It is about its pictures, or about its scores: that these two differ is no mixture.

    Args:
        found: the configurations of the row.

    Returns:
        For example "pictures by torch 2.14.1 and 2.15.0"; "" if there is nothing to say.
    """
    configs = list(found)
    parts = {
        "pictures": mixed_versions(one for c in configs for one in c.makers.values()),
        "scores": mixed_versions(one for c in configs for one in c.measurers.values()),
    }
    return ", ".join(f"{what} by {packages}" for what, packages in parts.items() if packages)


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


def block_places(block_sets: Iterable[str]) -> dict[str, int]:
    """Return the places of block sets in a table.

    No blocks come first, then single blocks in the order in which a picture passes them, the others, and all.
    """
    order = {block: place for place, block in enumerate(pass_order(block_sets))}
    return {name: -1 if name == NO_BLOCKS else len(order) if name == ALL_BLOCKS else order[name] for name in order}


def present_metrics(found: Iterable[Configuration]) -> list[str]:
    """Return the metrics of the profile that any configuration has values for.

    Metrics without one are among them if all units that should have a value failed.
    """
    configs = list(found)
    table = PROFILES[configs[0].profile].table if configs else {}
    return [metric for metric in table if any(metric in c.values for c in configs)]


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


def present_categories(found: Iterable[Configuration]) -> list[str]:
    """Return the planned categories in their fixed order."""
    planned = {category for configuration in found for category in configuration.expected}
    return [category for category in ALL_CATEGORIES if category in planned]


def whole_configurations(found: Iterable[Configuration]) -> list[Configuration]:
    """Select configurations that edit all blocks of their setting together, or none.

    Blocks edited singly are left to the per-block table.
    """
    configs = list(found)
    sets: dict[tuple[str, str], set[str]] = {}
    for c in configs:
        sets.setdefault((c.model, c.setting), set()).add(c.block_set)

    def is_whole(c: Configuration) -> bool:
        others = sets[c.model, c.setting]
        count = _block_count(c.block_set)
        return len(others) == 1 or (count > 1 and count == max(map(_block_count, others)))

    return [c for c in configs if is_whole(c)]


def comparison_gaps(found: Sequence[Configuration]) -> list[str | None]:
    """Return for each row the reason why it may not be compared, or None.

    The reason is another version of an example or another model than the other rows have.
    """
    origins = [{name: frozenset(its) for name, its in c.origins.items()} for c in found]
    example, model = majority_origins(origins), majority_model([c.model_identity] for c in found)
    return [
        model_gap([c.model_identity], model) or origin_gap(mine, example)
        for c, mine in zip(found, origins, strict=True)
    ]


def _block_count(block_set: str) -> int:
    """Return the number of blocks in a block set."""
    if block_set == NO_BLOCKS:
        return 0
    return MANY_BLOCKS if block_set == ALL_BLOCKS else block_set.count("+") + 1

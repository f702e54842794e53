"""Verification of a stored run by computing again everything that it claims.

Checked are the run's identity, its seal, the hashes of its pictures, its completeness and every score.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from riebench.blocks import ALL_BLOCKS, block_set_blocks, block_set_name
from riebench.errors import RiebenchError, StoreError
from riebench.store.folder import RunFolder
from riebench.store.records import (
    RECORDS_FILE,
    RECORDS_TABLE,
    RUN_FILE,
    SCORES_FILE,
    EditRecord,
    ScoreRecord,
    UnitKey,
)
from riebench.store.run_file import (
    SEAL_FILE,
    CellKey,
    broken_seals,
    count_unsealed_lines,
    part_files,
    unsealed_files,
)
from riebench.store.sae_figures import SAE_FIGURES_FILE, read_sae_figures
from riebench.store.scores import ScoreKey
from riebench.tasks.schema import EditExample, EditTask
from riebench.tasks.suites import load_suite, shipped_suites

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 5e-5
"""Largest difference of scores between machines, where networks sum in another order."""
MAX_FINDINGS = 5
"""Number of findings of each kind that are printed; the rest is counted."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of the verification of one run.

    Attributes:
        run: the run folder.
        checked: descriptions of what was checked.
        findings: claims that do not hold, one line each.
    """

    run: Path
    checked: tuple[str, ...]
    findings: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """True if no check failed."""
        return not self.findings


@dataclass(frozen=True)
class ScoringOptions:
    """Device and networks for computing scores, by default those of the run's model.

    Attributes:
        device: torch device.
        scorer: the CLIP that scores.
        second: the second, independent CLIP.
        weights: name of a network that does not ship -> path of its weights.
        offline: whether nothing may be fetched.
    """

    device: str = "cpu"
    scorer: str | None = None
    second: str | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    offline: bool = False


def verify(path: Path, tasks: Iterable[EditTask] = (), options: ScoringOptions | None = None) -> Verdict:
    """Check a run folder against itself and against scores computed afresh.

    Nothing in the folder is changed.

    Args:
        path: `results/SUITE/MODEL/SETTING`.
        tasks: the suite, if it is not a shipped one.
        options: device and networks that scores are computed with.

    Raises:
        RiebenchError: if the folder holds no run, or one of a suite that is neither given nor shipped.
    """
    if not (path / RUN_FILE).is_file():
        raise RiebenchError(f"{path} is no run folder: {RUN_FILE} is missing")
    folder = RunFolder(path)
    examples = _examples(folder, tasks)
    findings = [*_identity(folder), *_seal(path)]
    try:
        records, stored = folder.records(), folder.scores()
        findings += _sae_figures(folder)
    except StoreError as error:
        return Verdict(path, (f"the text of run {folder.spec.run_id[:8]}",), (*findings, str(error)))
    findings += [*_completeness(folder, records, examples), *_consistency(folder, records)]
    pictures = _pictures(folder, records)
    findings += pictures
    checked = [f"{len(records)} records of run {folder.spec.run_id[:8]}"]
    if pictures:
        findings.append("scores were not computed afresh: that takes all pictures")
    else:
        checked.append(f"{sum(record.status == 'ok' for record in records)} pictures by their hashes")
        found, compared = _score_findings(folder, records, stored, tuple(tasks), options or ScoringOptions())
        findings += found
        checked.append(f"{compared} scores computed afresh")
    return Verdict(path, tuple(checked), tuple(findings))


SuiteExamples = dict[tuple[str, str], tuple[EditTask, EditExample]]
"""(Task name, example id) -> task and example."""


def _examples(folder: RunFolder, tasks: Iterable[EditTask]) -> SuiteExamples:
    path, suite = folder.path, folder.spec.suite
    own = [task for task in tasks if task.suite == suite]
    if not own and suite not in shipped_suites():
        raise RiebenchError(f"{path} is of {suite!r}, a suite that does not ship; name its folder: --suite FOLDER")
    return {(task.name, example.id): (task, example) for task in own or load_suite(suite) for example in task.examples}


def _identity(folder: RunFolder) -> list[str]:
    spec, findings = folder.spec, []
    stated = json.loads((folder.path / RUN_FILE).read_text(encoding="utf-8")).get("run_id")
    if stated != spec.run_id:
        findings.append(f"{RUN_FILE}: run_id {str(stated)[:8]} is not that of its spec, {spec.run_id[:8]}")
    place, named = folder.path.resolve().parts[-3:], (spec.suite, spec.model.name, spec.setting.name)
    if place != named:
        findings.append(f"the folder is {'/'.join(place)}, but {RUN_FILE} is of {'/'.join(named)}")
    return findings


def _seal(path: Path) -> list[str]:
    late = count_unsealed_lines(path)
    findings = broken_seals(path)
    if late is None and not findings:
        return [f"{SEAL_FILE} is missing: edits that leave no trace in pictures and scores could not be found"]
    if late and not findings:
        some = "1 line was" if late == 1 else f"{late} lines were"
        findings.append(f"{some} written since the last seal; repeat the same command, which ends with one")
    if not findings:
        findings += [f"{name} was put there after the last seal" for name in unsealed_files(path)]
    for file in (path / RECORDS_FILE, *part_files(path), path / SCORES_FILE):
        if file.is_file() and file.stat().st_size and not file.read_bytes().endswith(b"\n"):
            findings.append(f"{file.name}: its last line is torn")
    return findings


def _sae_figures(folder: RunFolder) -> list[str]:
    """Find stored figures that are not of the run's SAEs.

    A run from before they were measured has none.
    """
    odd = [block for block, one in read_sae_figures(folder.path).items() if not one.is_of(block, folder.spec)]
    return [f"{SAE_FIGURES_FILE} holds figures of another SAE or model for {', '.join(odd)}"] if odd else []


def _completeness(folder: RunFolder, records: Sequence[EditRecord], examples: SuiteExamples) -> list[str]:
    counted: Counter[CellKey] = Counter((r.key.category, r.key.block_set, r.key.strength) for r in records)
    expected = folder.expected
    findings = [
        f"{' '.join(map(str, place))}: {counted[place]} records of {expected.get(place, 0)} units"
        for place in {**expected, **counted}
        if counted[place] != expected.get(place, 0)
    ]
    failed = [record for record in records if record.status == "error"]
    if failed:
        findings.append(f"{len(failed)} units failed, e.g. {failed[0].reason}")
    changed = [record.key for record in records if not _is_current(record.key, examples)]
    if changed:
        key = changed[0]
        findings.append(
            f"{len(changed)} units are of examples that the suite does not have, or not like this, e.g. "
            f"{key.example_id} of {key.task}@{key.task_version}"
        )
    left_out = [example for task, example in examples if (task, example) not in {_example_key(r.key) for r in records}]
    if left_out:
        findings.append(f"{len(left_out)} of the suite's {len(examples)} examples were not run, e.g. {left_out[0]}")
    return _truncate(findings)


def _example_key(key: UnitKey) -> tuple[str, str]:
    return key.task, key.example_id


def _is_current(key: UnitKey, examples: SuiteExamples) -> bool:
    task, example = examples.get(_example_key(key), (None, None))
    if task is None or example is None:
        return False
    return (task.version, task.category, example.content_hash) == (key.task_version, key.category, key.example_hash)


def _consistency(folder: RunFolder, records: Sequence[EditRecord]) -> list[str]:
    """Find records that cannot be as they were written.

    Names of pictures hold the hash of the unit's key, so they must fit the record; and a unit has features only in the
    blocks that it edits.
    """
    findings = []
    setting = folder.spec.setting.blocks
    whole = {block_set_name(setting): setting}
    for record in records:
        key, shared = record.key, folder.shared
        name = f"record {key.digest} ({key.example_id}, {key.block_set}, x{key.strength:g}, seed {key.seed})"
        named = [
            (record.image, folder.image_name(key)),
            (record.source_image, shared.image_name(key, "source")),
            (record.target_image, shared.image_name(key, "target")),
        ]
        odd = [found for found, right in named if found is not None and found != right]
        if odd:
            findings.append(f"{name} names {odd[0]}, a picture of another unit")
        # What "all" stands for depends on the model; the configuration names its blocks.
        edited = whole.get(key.block_set)
        if edited is None:
            edited = setting if key.block_set == ALL_BLOCKS else block_set_blocks(key.block_set)
        outside = sorted(set(record.features) - {*edited})
        if outside:
            findings.append(f"{name} has features in {outside[0]}, which it does not edit")
    return _truncate(findings)


def _pictures(folder: RunFolder, records: Sequence[EditRecord]) -> list[str]:
    made = [record for record in records if record.status == "ok"]
    if made and not any((folder.pictures / str(record.image)).is_file() for record in made):
        return [f"none of its {len(made)} pictures is there; put its images folder back, and shared/ beside it"]
    look_up = cache(folder.shared.picture)
    findings = []
    for record in made:
        looks = [(str(record.image), partial(folder.picture, record))]
        looks += [(f"shared/{name}", partial(look_up, name)) for name in (record.source_image, record.target_image)]
        for name, look in looks:
            try:
                if look() is None:
                    findings.append(f"picture {name} is missing; `riebench run` makes it again")
            except StoreError as error:
                findings.append(str(error))
    return _truncate(list(dict.fromkeys(findings)))


def _score_findings(
    folder: RunFolder, records: Sequence[EditRecord], stored: Mapping[ScoreKey, ScoreRecord],
    tasks: Sequence[EditTask], options: ScoringOptions,
) -> tuple[list[str], int]:  # fmt: skip
    """Compare stored scores with fresh ones.

    Returns:
        The findings, and the number of scores that were compared.
    """
    from riebench.registry import METRICS

    if not stored:
        return ["nothing has been scored; `riebench score` does it"], 0
    names = sorted({metric for _, metric, _ in stored})
    unknown = [name for name in names if name not in METRICS.names()]
    findings = [f"it has scores of a metric {name!r} that riebench does not know" for name in unknown]
    try:
        fresh = _recompute(folder, [name for name in names if name not in unknown], tasks, options)
    except RiebenchError as error:
        return [*findings, f"scores cannot be computed afresh: {error}"], 0
    # Tables ignore the score of a picture that has been made again since, and so does this check.
    pictures = {record.key.digest: record.picture_id for record in records}
    claims = {place: one for place, one in stored.items() if one.picture == pictures.get(place[0])}
    findings += _orphan_scores(folder, stored)
    differing = []
    for place, value in fresh.items():
        claimed = claims.get(place)
        if claimed is None:
            differing.append(f"{place[1]} of unit {place[0]} has no stored value by {place[2] or 'this metric'}")
        elif claimed.version != value.version or not _agree(claimed.value, value.value):
            differing.append(f"{place[1]} of unit {place[0]}: stored {_describe(claimed)}, found {_describe(value)}")
    others = Counter(f"{metric} by {by or 'itself'}" for unit, metric, by in claims if (unit, metric, by) not in fresh)
    unchecked = [f"{n} values of {what} were not computed afresh; name what measured: --scorer, --weights"
                 for what, n in sorted(others.items())]  # fmt: skip
    return [*findings, *_truncate(differing), *_truncate(unchecked)], len(fresh.keys() & claims.keys())


def _recompute(
    folder: RunFolder, metrics: Sequence[str], tasks: Sequence[EditTask], options: ScoringOptions
) -> dict[ScoreKey, ScoreRecord]:
    """Compute scores afresh in a copy of the text, from the folder's pictures."""
    from riebench.scoring.score import score

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.path.name
        copy.mkdir()
        names = (RUN_FILE, RECORDS_TABLE, RECORDS_FILE)
        for file in (*(folder.path / name for name in names), *part_files(folder.path)):
            if file.exists():
                shutil.copy(file, copy / file.name)
        again = RunFolder(copy)
        again.pictures, again.shared = folder.pictures, folder.shared
        score(
            [again], tasks or None, metrics=metrics, scorer=options.scorer, second=options.second,
            weights=options.weights, device=options.device, offline=options.offline, progress=False,
        )  # fmt: skip
        return again.scores()


def _orphan_scores(folder: RunFolder, stored: Mapping[ScoreKey, ScoreRecord]) -> list[str]:
    known = {record.key.digest for record in folder.every_record()}
    units = sorted({unit for unit, _, _ in stored} - known)
    return [f"it has scores of {len(units)} units without a record, e.g. {units[0]}"] if units else []


def _agree(stored: float | None, fresh: float | None) -> bool:
    if stored is None or fresh is None:
        return stored is fresh
    return abs(stored - fresh) <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * abs(fresh)


def _describe(score: ScoreRecord) -> str:
    return str(score.reason) if score.value is None else f"{score.value:.6g}"


def _truncate(findings: list[str]) -> list[str]:
    if len(findings) <= MAX_FINDINGS:
        return findings
    return [*findings[:MAX_FINDINGS], f"... and {len(findings) - MAX_FINDINGS} more like these"]

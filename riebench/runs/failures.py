"""Runs in which every unit fails.

`FailureWatch` tells when to stop, and `check_success` which configurations have no picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from riebench.errors import NothingMadeError
from riebench.runs.plan import ExampleWork, Unit
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord

STOP_AFTER = 20
"""Units that may fail in a row at the beginning of a run, all with the same error, before it stops."""
STOP_EXAMPLES = 3
"""Least number of examples that these units are of, as far as the run has so many: one example may be at fault."""
VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\S*\d\S*")
"""Parts of a message that may differ between two failures of one cause: quoted names, and words with digits."""


def error_kind(reason: str) -> str:
    """Return an error message without the parts that name one unit."""
    return VARYING.sub("*", reason)


@dataclass
class FailureWatch:
    """Observer of a run's first outcomes that tells when going on is pointless.

    It is so if the first units all end with the same error, over several examples. One picture that was generated, or
    another error, ends the observation. Skipped units, and pictures that are copies of the source or target picture,
    say nothing about what is to come.

    Attributes:
        limit: number of such units; 0 to observe nothing.
        works: what the run is about to make.
    """

    limit: int
    works: Sequence[ExampleWork] = ()
    _failed: int = 0
    _examples: set[tuple[str, str]] = field(default_factory=set)
    _kind: str = ""
    _reason: str = ""
    _over: bool = False

    def note(self, record: EditRecord) -> None:
        """Take in the outcome of a unit."""
        if self._over or record.status == "skipped":
            return
        if record.status == "ok":
            self._over = record.seconds > 0
            return
        kind = error_kind((record.reason or "").replace(record.key.example_id, "*"))
        if self._failed and kind != self._kind:
            self._over = True
            return
        self._kind, self._reason = kind, record.reason or ""
        self._failed += 1
        self._examples.add((record.key.task, record.key.example_id))

    @property
    def due(self) -> bool:
        """True if the run should stop, unless units that are being made succeed."""
        if not self.limit or self._over or self._failed < self.limit:
            return False
        enough = min(STOP_EXAMPLES, self.limit)
        if len(self._examples) >= enough:
            return True
        return len(self._examples) >= len({(work.task.name, work.example.id) for work in self.works})

    def check(self) -> None:
        """Stop the run if going on is pointless.

        Raises:
            NothingMadeError: with the error of all units, and what to do.
        """
        if self.due:
            raise NothingMadeError(
                f"stopped: the first {self._failed} units all failed with: {self._reason}; they are recorded. Mend "
                "the cause and repeat the command with --redo errors, or go on all the same with --stop-after 0"
            )


@dataclass(frozen=True)
class FailedConfiguration:
    """A configuration of a run without one edited picture.

    Attributes:
        setting: its name.
        block_set: blocks edited together.
        strength: multiplier of the edit.
        failed: number of failed units.
        skipped: number of skipped ones.
        reason: the most frequent reason.
    """

    setting: str
    block_set: str
    strength: float
    failed: int
    skipped: int
    reason: str

    def __str__(self) -> str:
        counts = [f"{n} {what}" for n, what in ((self.failed, "failed"), (self.skipped, "skipped")) if n]
        return f"{self.setting} x{self.strength:g} on {self.block_set}: {', '.join(counts)} ({self.reason})"


def failed_configurations(
    folders: Iterable[RunFolder], units: Iterable[Unit], *, part: bool = False
) -> list[FailedConfiguration]:
    """Return the configurations of a run of which no unit has a picture.

    Args:
        folders: the run folders, one for each setting.
        units: units that were asked for, all of them recorded.
        part: True if other processes make other units of these configurations; then one without a failure has merely
            had no turn yet.
    """
    asked: dict[str, set[str]] = {}
    for unit in units:
        asked.setdefault(unit.setting.name, set()).add(unit.key.digest)
    found = []
    for folder in folders:
        setting, records = folder.spec.setting.name, folder.records()
        made = {_place(record) for record in records if record.status == "ok"}
        missed: dict[tuple[str, float], list[EditRecord]] = {}
        for record in records:
            if record.key.digest in asked.get(setting, ()) and _place(record) not in made:
                missed.setdefault(_place(record), []).append(record)
        for (block_set, strength), its in missed.items():
            counts = Counter(record.status for record in its)
            reason = Counter(record.reason or "" for record in its).most_common(1)[0][0]
            if counts["error"] or not part:
                found.append(
                    FailedConfiguration(setting, block_set, strength, counts["error"], counts["skipped"], reason)
                )
    return found


def _place(record: EditRecord) -> tuple[str, float]:
    return record.key.block_set, record.key.strength


def check_success(folders: Sequence[RunFolder], units: Callable[[], Sequence[Unit]], *, part: bool = False) -> None:
    """Refuse to end as a success with a configuration that has no picture.

    Args:
        folders: the run folders, one for each setting.
        units: gives the units that were asked for; called only if something is amiss.
        part: see `failed_configurations`.

    Raises:
        NothingMadeError: naming how many there are, the first of them, and what to do.
    """
    if not any(places - made for places, made in map(_places, folders)):
        return
    asked = units()
    failed = failed_configurations(folders, asked, part=part)
    if not failed:
        return
    total = len({(unit.setting.name, unit.key.block_set, unit.key.strength) for unit in asked})
    advice = "; `--redo errors` tries failed units again" if any(one.failed for one in failed) else ""
    subject = "configuration has" if total == 1 else "configurations have"
    raise NothingMadeError(f"{len(failed)} of {total} {subject} no edited picture, e.g. {failed[0]}{advice}")


def _places(folder: RunFolder) -> tuple[set[tuple[str, float]], set[tuple[str, float]]]:
    """Return the recorded configurations of a folder, and those with a picture."""
    records = folder.records()
    return {_place(record) for record in records}, {_place(record) for record in records if record.status == "ok"}

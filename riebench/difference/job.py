"""The command that says why two runs differ: comparison, recomputation, table."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from riebench.difference.causes import Cause, causes, shared_units
from riebench.difference.recompute import Step, agrees, chosen_units, conclusion, recompute
from riebench.errors import RiebenchError
from riebench.store.folder import RunFolder
from riebench.store.records import RUN_FILE


@dataclass(frozen=True)
class Difference:
    """The findings on two runs.

    Attributes:
        sentence: the conclusion.
        causes: what both state.
        units: number of those that both have made.
        same_pictures: how many of these have the same picture, to the bit.
        apart: metric -> number of units whose numbers differ.
        steps: what was made again.
    """

    sentence: str
    causes: tuple[Cause, ...]
    units: int
    same_pictures: int
    apart: Mapping[str, int]
    steps: tuple[Step, ...]


def explain(
    first: Path, second: Path, count: int, given: Mapping[str, Any], say: Callable[[str], None]
) -> Difference:  # fmt: skip
    """Find out why two runs differ.

    Args:
        first: a run folder.
        second: another one.
        count: units to make again; 0 makes none.
        given: options of a run that hold for all of these, such as the device.
        say: function that prints a line for people.

    Raises:
        RiebenchError: if one is no run folder, or they share no unit.
    """
    folders = _folder(first), _folder(second)
    pairs = shared_units(*folders)
    found = causes(*folders, pairs)
    steps: list[Step] = []
    if count and any(pair.gap > 1 for pair in pairs):
        with tempfile.TemporaryDirectory(prefix="riebench-diff-") as work:
            steps = recompute(folders, found, chosen_units(pairs, count), Path(work), given, say)
    apart = Counter(metric for pair in pairs for metric, gap in pair.gaps.items() if gap > 1)
    sentence = conclusion(found, steps, pairs)
    same = sum(pair.same_picture for pair in pairs)
    return Difference(sentence, tuple(found), len(pairs), same, dict(sorted(apart.items())), tuple(steps))


def _folder(path: Path) -> RunFolder:
    if not (path / RUN_FILE).is_file():
        raise RiebenchError(f"{path} is no run folder: it has no {RUN_FILE}; give RESULTS/SUITE/MODEL/CONFIGURATION")
    return RunFolder(path)


def as_json(found: Difference) -> dict[str, Any]:
    """Return what was found as JSON can hold it."""
    return asdict(found)


def print_difference(found: Difference) -> None:
    """Print the conclusion, then what both runs state and what was made again."""
    from rich.table import Table

    from riebench.utils.terminal import add_row, print_line, print_table

    print_line(found.sentence)
    apart = ", ".join(f"{metric} in {count}" for metric, count in found.apart.items()) or "none"
    print_line(f"{found.units} shared units; {found.same_pictures} have the same picture; numbers that differ: {apart}")
    differing = [one for one in found.causes if one.differs]
    if differing:
        table = Table(title="what differs, causes before their effects")
        for title in ("", "first run", "second run"):
            table.add_column(title)
        for one in differing:
            add_row(table, one.name, one.first, one.second)
        print_table(table)
    print_line(f"the same in both: {', '.join(one.name for one in found.causes if not one.differs) or 'nothing'}")
    if found.steps:
        table = Table(title="units made again; largest difference of a number in tolerances, up to 1 they agree")
        for title in ("as in the second run", "to the first run", "to the second run"):
            table.add_column(title)
        for place, step in enumerate(found.steps):
            name = ("and " if place > 1 else "") + step.name if step.name else "nothing"
            if step.problem is not None:
                add_row(table, name, step.problem, "")
            else:
                add_row(table, name, _gap_text(step.to_first), _gap_text(step.to_second))
        print_table(table)


def _gap_text(gap: float | None) -> str:
    if gap is None:
        return "no number"
    return f"{gap:.2g}" + (" (agrees)" if agrees(gap) else "")

"""Tables of docs/training-saes.md, made from the stored comparison.

python -m benchmarks.trainers.tables [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.trainers.trainees import CASES, CHANGES, LIBRARY
from riebench.analysis.tables import fill_parts
from riebench.errors import RiebenchError
from riebench.utils.markup import markdown_table

RESULTS = Path(__file__).parents[1] / "results" / "trainers.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "training-saes.md"
PART = re.compile(r"(<!-- trainers: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BLOCKS = ("mid.0", "up.0.1")
SHORT, LONG = "237 steps", "3000 steps"

Found = Mapping[str, Any]


def _mean(of_seeds: Mapping[str, Mapping[str, float]], name: str) -> float:
    return mean(one[name] for one in of_seeds.values())


def _cells(of_blocks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    cells = []
    for block in BLOCKS:
        seeds = of_blocks[block]
        cells += [f"{_mean(seeds, 'ev'):.4f}", f"{_mean(seeds, 'l0'):.1f}", f"{100 * _mean(seeds, 'dead'):.0f} %"]
    return cells


def _figures(part: Found) -> str:
    head = ["kind", "trainer", *(f"{name}, {block}" for block in BLOCKS for name in ("EV", "L0", "dead"))]
    rows = [[*name.split(", ", 1), *_cells(part[name])] for name in CASES if name in part]
    return markdown_table(head, rows)


def equal(found: Found) -> str:
    """Return the table of all kinds at equal steps, as means over the seeds."""
    return _figures(found[SHORT]["equal steps"])


def long(found: Found) -> str:
    """Return the table of a longer run."""
    return _figures(found[LONG]["equal steps"])


def changes(found: Found) -> str:
    """Return the table of what explains the difference, with the first seed."""
    part = found[SHORT]
    all_rows = {
        "published recipe, rate 1e-3, auxiliary loss": part["equal steps"]["topk, published"],
        **{name: part["changes"][name] for name in CHANGES},
        "the same, idle features raised (the standard recipe)": part["equal steps"]["topk, standard"],
    }
    names = [*all_rows]
    # The library's own row stands after the one that does all that the library does.
    names.insert(names.index("all of these") + 1, LIBRARY)
    all_rows[LIBRARY] = part["equal steps"][f"topk, {LIBRARY}"]
    rows = []
    for name in names:
        first = [all_rows[name][block]["0"] for block in BLOCKS]
        rows.append([name, *(text for one in first for text in (f"{1 - one['ev']:.4f}", f"{100 * one['dead']:.0f} %"))])
    return markdown_table(["change", *(f"{what}, {b}" for b in BLOCKS for what in ("unexplained", "dead"))], rows)


def time(found: Found) -> str:
    """Return the table of equal processor time, as means over the seeds."""
    rows = []
    for block in BLOCKS:
        seeds = found[SHORT]["equal time"][block]
        library = found[SHORT]["equal steps"][f"topk, {LIBRARY}"][block]
        steps = SHORT.split()[0]
        rows.append([
            block, f"{_mean(seeds, 'library'):.2f} s", f"{_mean(seeds, 'ours'):.2f} s", f"{_mean(seeds, 'steps'):.0f}",
            f"{_mean(seeds, 'ev'):.4f}", f"{_mean(library, 'ev'):.4f}",
        ])  # fmt: skip
    head = ["block", f"{steps} steps, {LIBRARY}", f"{steps} steps, standard", "steps in the library's time",
            "EV after them", f"EV, {LIBRARY}"]  # fmt: skip
    return markdown_table(head, rows)


def setting(found: Found) -> str:
    """Return a sentence on machine, versions and data."""
    there, short, longer = found["machine"], found[SHORT], found[LONG]
    held = {part: next(iter(part_found["equal steps"]["topk, standard"][BLOCKS[0]].values()))["positions"]
            for part, part_found in (("short", short), ("long", longer))}  # fmt: skip
    return (
        f"Measured on one of {there['cores']} cores of an {there['cpu']} that others used too, without a GPU, with "
        f"PyTorch {found['torch']} and {LIBRARY} {found[LIBRARY]}: toy-turbo, n = 384, k = 16, batches of 1024, "
        f"{short['pictures']} pictures ({held['short']} positions held out), and {longer['pictures']} pictures "
        f"({held['long']}) for the long run."
    )


TABLES = {"equal": equal, "changes": changes, "time": time, "long": long, "setting": setting}


def fill(*, check: bool = False, document: Path = DOCUMENT, results: Path = RESULTS) -> None:
    """Bring the document up to date.

    Args:
        check: only compares, and writes nothing.
        document: the Markdown file.
        results: the stored comparison.

    Raises:
        RiebenchError: with `check`, if it is out of date.
    """
    found = json.loads(results.read_text(encoding="utf-8"))

    def made(match: re.Match[str]) -> str:
        return TABLES[match[2]](found)

    command = "python -m benchmarks.trainers.tables"
    fill_parts(document, PART, made, mark="<!-- trainers:", command=command, check=check)


if __name__ == "__main__":
    try:
        fill(check="--check" in sys.argv[1:])
    except RiebenchError as error:
        sys.exit(str(error))

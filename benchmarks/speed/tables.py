"""Tables of docs/performance.md, made from the stored measurement.

python -m benchmarks.speed.tables [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.sdxl.counting import shares_before, whole_evaluations
from riebench.analysis.tables import fill_parts
from riebench.errors import RiebenchError
from riebench.models.families.sdxl.names import BLOCKS
from riebench.utils.markup import markdown_table

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
PART = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIZE = 512
"""Picture side in pixels at which SDXL's operations are counted."""

Found = Mapping[str, Mapping[str, Any]]


def gains(found: Found) -> str:
    """Return the table of gains by shared prefixes for each block.

    Operations are counted, times measured.
    """
    counted = {block: 1 / (1 - share) for block, share in shares_before(SIZE).items()}
    timed = {block: float(found[f"one block {block}"]["unet_gain"]) for block in BLOCKS}
    lines = [[block, f"{counted[block]:.2f}", f"{timed[block]:.2f}"] for block in BLOCKS]
    lines.append(["mean", f"{mean(counted.values()):.2f}", f"{mean(timed.values()):.2f}"])
    return markdown_table(["first changed block", "operations, SDXL", "time, toy model"], lines)


def rows(found: Found) -> str:
    """Return the sentences that say what the rows of the sweep with units cost on SDXL."""
    # Six edits of updates go on behind their first block and two of its units before it; keys of the text are computed
    # for both prompts, and once for each of the two batches (tests/runs/test_least_work.py).
    costs = {block: whole_evaluations(SIZE, 40, {block: 6, f"{block} begins": 2}, texts=4) for block in BLOCKS}
    each = ", ".join(f"{cost:.1f} for {block}" for block, cost in costs.items())
    return (
        f"Counted as operations on SDXL's full architecture at {SIZE} px, the 40 rows cost as much as so many whole "
        f"evaluations, by the first block that is edited: {each}; {mean(costs.values()):.1f} on average.\n"
    )


def measured(found: Found) -> str:
    """Return the table of sweep, scoring and memory with their goals."""
    run, scoring, large, memory = (found[name] for name in ("sweep", "scoring", "scoring, ViT-L-14", "memory"))
    few, many, loaded = (f"{memory[f'megabytes_{name}']:,.0f}" for name in ("9_examples", "90_examples", "loaded"))
    lines = [
        ("edited pictures a second, here / one by one",
         f"{run['images_a_second']:.1f} / {run['images_a_second_one_by_one']:.2f}", ""),
        ("times one by one (the worst round)",
         f"{run['times_one_by_one']:.1f} ({run['times_one_by_one_least']:.1f})", "at least 5"),
        ("U-Net evaluations a picture, here / one by one",
         f"{run['evaluations_an_image']:.1f} / {run['evaluations_one_by_one']:.1f}", ""),
        *beside_rows(found),
        (f"scoring, {scoring['units']} units, all toy metrics: units a second / times one by one",
         f"{scoring['units_a_second']:.0f} / {scoring['times_one_by_one']:.1f}", ""),
        (f"the same, of the time of its networks' bare calls, the middle of {scoring['rounds']} rounds (the worst)",
         f"{scoring['of_bare_calls']:.2f} ({scoring['of_bare_calls_most']:.2f})", "at most 1.5"),
        (f"scoring with a CLIP ViT-L/14 (random weights), {large['units']} units, of the time of the bare calls",
         f"{large['of_bare_calls']:.2f}", ""),
        ("peak memory of the process, 90 examples / 9 examples, batch 8, one step",
         f"{many} MB / {few} MB: times {memory['ratio']:.3f}", "at most 1.1"),
        (f"peak memory, 9 examples, of one by one / of the bare calls ({loaded} MB are there with the model loaded)",
         f"{memory['times_one_by_one']:.2f} / {memory['of_bare_calls']:.2f}", ""),
    ]  # fmt: skip
    return markdown_table(["measure", "value", "goal"], [list(line) for line in lines])


def beside_rows(found: Found) -> list[tuple[str, str, str]]:
    """Return the rows on the sweep's bare calls; none where they were not measured."""
    beside = found.get("sweep beside bare calls")
    if beside is None:
        return []
    return [
        (f"a sweep of {beside['units']} pictures of {beside['examples']} examples in {beside['processes']} processes, "
         "of the time of its networks' bare calls in one process (the worst round)",
         f"{beside['in_processes']:.2f} ({beside['in_processes_most']:.2f})", "at most 1.05"),
        ("the same in one process (the worst round)",
         f"{beside['of_bare_calls']:.2f} ({beside['of_bare_calls_most']:.2f})", ""),
        ("the same with the other examples that two configurations look at",
         f"{beside['of_bare_calls_with_others']:.2f}", ""),
        ("share of that time outside the networks",
         f"{100 * beside['outside_model']:.1f} % (hooks {100 * beside['hooks']:.1f} %)", "at most 10 %"),
    ]  # fmt: skip


def fill(*, check: bool = False, document: Path = DOCUMENT) -> None:
    """Bring the document up to date.

    Args:
        check: only compares, and writes nothing.
        document: the Markdown file.

    Raises:
        RiebenchError: with `check`, if it is out of date.
    """
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    tables = {"gains": gains, "rows": rows, "measured": measured}

    def made(match: re.Match[str]) -> str:
        return tables[match[2]](found)

    fill_parts(document, PART, made, mark="<!-- speed:", command="python -m benchmarks.speed.tables", check=check)


if __name__ == "__main__":
    try:
        fill(check="--check" in sys.argv[1:])
    except RiebenchError as error:
        sys.exit(str(error))

"""A suite of four examples in files, and the command line that runs it."""

from __future__ import annotations

from pathlib import Path

from tiny import tiny_folder, tiny_saes
from tiny_jobs import SETTING

EXAMPLES = 4
TASK = "category: change_color\nversion: 1\nexamples:\n" + "".join(
    f"  - {{id: e{i}, source: a red cat {i}, target: a blue cat {i}, source_region: cat, target_region: cat}}\n"
    for i in range(EXAMPLES)
)


def write_suite(place: Path) -> None:
    """Write the suite `mine` and the setting `features.yaml` into a folder."""
    (place / "mine").mkdir()
    (place / "mine" / "change_color.yaml").write_text(TASK)
    (place / "features.yaml").write_text(SETTING + f"sae: {tiny_saes()}\n")


def run_arguments(place: Path, results: str, *more: str) -> list[str]:
    """Return the arguments of `riebench run` with the suite and setting of `write_suite`."""
    return [
        "run", "no_edit", str(place / "features.yaml"), "--suite", str(place / "mine"), "--model", str(tiny_folder()),
        "--steps", "2", "--guidance", "0", "--scorer", "toy-clip", "--batch-size", "2", "--device", "cpu",
        "--no-report", "--results", str(place / results), *more,
    ]  # fmt: skip

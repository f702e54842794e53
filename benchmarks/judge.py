"""The toy worlds' judges against labels by eye.

`python -m benchmarks.judge` lets each judge read edited pictures that were labelled by eye, 200 of the first world and
102 of the second, and writes how often it is wrong to `benchmarks/results/judge.json` and `judge-mixed.json`: by the
first labels, and by those on which two labellers agree. How the pictures were chosen and labelled is described in
`benchmarks/labelled/README.md`. A judge may be wrong in at most 5 % of the attributes that it says it can read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.tables import fill_parts
from riebench.scoring.metrics.base import UNREADABLE
from riebench.scoring.metrics.judge import identity
from riebench.scoring.metrics.judge_network import ATTRIBUTES, JUDGES, Judge
from riebench.toyworld.networks.judging.labelled import DOUBTFUL, read_labelled

FOLDER = Path(__file__).parent / "labelled"
RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "toyworld.md"
PART = re.compile(r"(<!-- judge: (?P<kind>table|verdict) of=(?P<name>[\w-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)
PICTURES = {"judge": FOLDER, "judge-mixed": FOLDER / "mixed"}
"""Judge that ships with the package -> folder of the pictures of its world that were labelled by eye."""
BAR = 0.05
"""Largest share of errors among the attributes that the judge reads."""

REPLICATES = 2000
"""Resamples of the pictures for an interval."""

Readings = Sequence[dict[str, str]]
"""For each picture attribute -> value or `UNREADABLE`."""


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> dict[str, float]:
    """Return a share in %, its interval of 95 %, and what it is a share of.

    Args:
        part: bool [pictures, attributes], what is counted.
        whole: the same shape, of what; pictures are resampled for the interval, since attributes of one go together.
    """
    parts, wholes = (part & whole).sum(1), whole.sum(1)
    draws = np.random.default_rng(0).integers(len(parts), size=(REPLICATES, len(parts)))
    replicates = parts[draws].sum(1) / np.maximum(wholes[draws].sum(1), 1)
    low, high = np.quantile(replicates, (0.025, 0.975))
    share = parts.sum() / max(int(wholes.sum()), 1)
    return {
        "percent": round(100 * float(share), 1), "low": round(100 * float(low), 1), "high": round(100 * float(high), 1),
        "of": int(wholes.sum()),
    }  # fmt: skip


def compare(labels: Readings, found: Readings) -> dict[str, Any]:
    """Compare readings with labels.

    Args:
        labels: by eye; what is `DOUBTFUL` is left out of all shares but those of whole pictures.
        found: by the judge.

    Returns:
        `errors`: attributes read wrongly among those that the judge reads (a value read where the eye could tell none
        is wrong too); `read`: among all attributes; `read_of_readable`: among those that the eye could tell;
        `unreadable_found`: attributes that the judge does not read among those that the eye could not tell;
        `invented`: errors where the eye could tell no value, among all errors;
        `errors_by_attribute`; `whole`: pictures in which the judge reads every attribute; `errors_in_whole`: attributes
        read wrongly in these.
    """
    wanted, values = (np.array([[one[name] for name in ATTRIBUTES] for one in some]) for some in (labels, found))
    counted = wanted != DOUBTFUL
    read, told, wrong = values != UNREADABLE, wanted != UNREADABLE, values != wanted
    whole = read.all(axis=1, keepdims=True)
    read, told, cannot = read & counted, told & counted, ~told
    return {
        "errors": _share(wrong, read),
        "read": _share(read, counted),
        "read_of_readable": _share(read, told),
        "unreadable_found": _share(~read, cannot),
        "invented": _share(cannot, wrong & read),
        "errors_by_attribute": {name: _share(wrong[:, [i]], read[:, [i]]) for i, name in enumerate(ATTRIBUTES)},
        "read_by_attribute": {name: _share(read[:, [i]], told[:, [i]]) for i, name in enumerate(ATTRIBUTES)},
        "whole": _share(whole, np.ones_like(whole)),
        "errors_in_whole": _share(wrong, whole & counted),
    }


def measure(name: str) -> dict[str, Any]:
    """Let a shipped judge read the labelled pictures, and compare the two labellers.

    Args:
        name: a key of `PICTURES`.

    Returns:
        `judge`: its identity; `first` and `agreed`: what `compare` finds by these labels; `second`: what it finds if
        the second labeller is taken for a judge and the first labels for the truth.
    """
    pictures = read_labelled(PICTURES[name], JUDGES[name])
    second = pictures.second or []
    found = Judge.load(name).read(pictures.images)
    read = [{name: UNREADABLE if one[name] == DOUBTFUL else one[name] for name in ATTRIBUTES} for one in second]
    return {
        "judge": identity(name), "first": compare(pictures.labels, found),
        "agreed": compare(pictures.agreed(), found), "second": compare(pictures.labels, read),
    }  # fmt: skip


def _of_attribute(name: str, key: str, found: dict[str, Any]) -> dict[str, float]:
    share: dict[str, float] = found[key][name]
    return share


def results_table(results: dict[str, Any]) -> str:
    """Return shares of the shipped judge, of an earlier one and of the second labeller as a Markdown table."""
    rows: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
        "errors among the attributes read": lambda found: found["errors"],
        **{f"... {name}": partial(_of_attribute, name, "errors_by_attribute") for name in ATTRIBUTES},
        "attributes read": lambda found: found["read"],
        "attributes read, of those that the eye can tell": lambda found: found["read_of_readable"],
        **{f"... {name} ": partial(_of_attribute, name, "read_by_attribute") for name in ATTRIBUTES},
        "attributes not read, of those that the eye cannot tell": lambda found: found["unreadable_found"],
        "pictures read in full": lambda found: found["whole"],
        "errors among the attributes of these": lambda found: found["errors_in_whole"],
    }
    now, before = results["now"], results.get("before")
    columns = {"the judge, agreed labels": now["agreed"], "first labels": now["first"]}
    if before is not None:
        columns |= {"the earlier judge, agreed labels": before["agreed"], "first labels ": before["first"]}
    columns["the second labeller, first labels"] = now["second"]
    lines = [f"| share, % | {' | '.join(title.strip() for title in columns)} |", "| --- |" + " --- |" * len(columns)]
    for title, pick in rows.items():
        cells = [
            f"{one['percent']:.1f} [{one['low']:.1f}, {one['high']:.1f}] of {one['of']}" if one["of"] else "-"
            for one in map(pick, columns.values())
        ]
        lines.append(f"| {title.strip()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(found: dict[str, float]) -> str:
    return f"{found['percent']:.1f} [{found['low']:.1f}, {found['high']:.1f}] %"


def verdict(results: dict[str, Any]) -> str:
    """Return the paragraph on whether a judge clears the bar, and on where it is wrong."""
    found = results["now"]
    errors = {key: found[key]["errors"] for key in ("agreed", "first")}
    said = {key: "cleared" if one["percent"] <= 100 * BAR else "missed" for key, one in errors.items()}
    labels = "by the labels on which both labellers agree"
    whose = f"both {labels} and" if said["agreed"] == said["first"] else f"{labels}, and {said['first']}"
    by_attribute = found["agreed"]["errors_by_attribute"]
    worst = max(by_attribute, key=lambda name: by_attribute[name]["percent"])
    share, invented = by_attribute[worst], found["agreed"]["invented"]["percent"]
    return (
        f'A value that it reads where the label is another or "unreadable" is an error; the bar is {100 * BAR:.0f} %. '
        f"**It is {said['agreed']} {whose} by the first labels**: {_interval(errors['agreed'])} and "
        f"{_interval(errors['first'])}. Of the agreed labels it is wrong most often about the {worst} "
        f"({_interval(share)} of {share['of']}); {invented:.0f} % of its errors give a value where the eye can tell "
        f"none. It reads {_interval(found['agreed']['read_of_readable'])} of the attributes that the eye can tell."
    )


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {"table": results_table, "verdict": verdict}
"""Kind of a part of the model card -> what fills it."""


def results_file(name: str) -> Path:
    """Return the file of a judge's shares."""
    return RESULTS / f"{name}.json"


def stored(name: str) -> dict[str, Any]:
    """Return a judge's shares as they were measured; empty if they were not."""
    file = results_file(name)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def fill_document(*, check: bool = False) -> None:
    """Bring the tables in the model card up to date with the stored results.

    Raises:
        RiebenchError: with `check`, if one is out of date.
    """
    fill_parts(
        DOCUMENT, PART, lambda match: PARTS[match["kind"]](stored(match["name"])), mark="<!-- judge:",
        command="python -m benchmarks.judge", check=check,
    )  # fmt: skip


def main() -> None:
    """Measure, write the results and fill the model card; the earlier judge's shares stay as they were measured."""
    for name in PICTURES:
        results = {**stored(name), "now": measure(name)}
        results_file(name).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        agreed, first = (results["now"][key]["errors"]["percent"] for key in ("agreed", "first"))
        print(
            f"{name}: errors among the attributes read (bar {100 * BAR:.0f} %): {agreed} % by the agreed labels, "
            f"{first} % by the first"
        )
    fill_document()


if __name__ == "__main__":
    main()

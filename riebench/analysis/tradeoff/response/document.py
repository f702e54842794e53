"""The generated parts of docs/response-curves.md, its figures and CSV file.

A part begins with `<!-- response: NAME -->` and ends with `<!-- end -->`; each is written for every suite and model
with curves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from riebench.analysis.stats import Estimate
from riebench.analysis.tables import fill_parts
from riebench.analysis.tradeoff.response.curves import CurveSet, read_curves
from riebench.analysis.tradeoff.response.measures import (
    ARTIFACT_LIMIT,
    READ_BUDGETS,
    CurveMeasures,
    Reach,
    measure_curves,
)
from riebench.analysis.tradeoff.response.plots import curves_plan, reading_words
from riebench.errors import RiebenchError, near_match
from riebench.store.folder import RunFolder, group_by_model
from riebench.utils.files import file_inside, update_file, write_atomic
from riebench.utils.markup import MarkupTable, code_span, csv_text, escape_markdown, markdown_table

NONE = "–"
IMAGES = "images"
COMMAND = "riebench curves"
PART = re.compile(r"(<!-- response: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CSV_COLUMNS = (
    "suite", "model", "curve", "method", "inputs", "strengths", "monotone", "monotone_low", "monotone_high",
    "linearity", "linearity_low", "linearity_high", "evenness", "evenness_low", "evenness_high", "artifacts_begin",
    "range_strength", "range_strength_low", "range_strength_high", "range_lpips", "range_lpips_low",
    "range_lpips_high", *(f"gain_at_{budget:g}{end}" for budget in READ_BUDGETS for end in ("", "_low", "_high")),
)  # fmt: skip
"""Columns of the CSV file beside the document."""


@dataclass(frozen=True, eq=False)
class Responses:
    """Curves of one suite and model with their measures."""

    curves: CurveSet

    @cached_property
    def measures(self) -> list[CurveMeasures]:
        """Measures of all curves, in their order."""
        return measure_curves(self.curves)


def about_text(found: Responses) -> str:
    """Return the paragraph on what was examined."""
    curves = found.curves
    comparison = curves.comparison
    text = (
        f"{len(curves.curves)} curves of {len(comparison.examples.ids)} examples, {comparison.seeds} "
        f"{'seed' if comparison.seeds == 1 else 'seeds'} each. Here a picture is an artifact if {curves.rule.words}. "
        f"Intervals: 95 %, bootstrap over examples inside categories, {comparison.replicates} replicates, seed "
        f"{comparison.seed}; studentised, for the range percentiles.\n"
    )
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(curves.left_out.items()):
        reasons.setdefault(reason, []).append(code_span(name))
    for reason, names in reasons.items():
        text += f"\nWithout a curve, {escape_markdown(reason)}: {', '.join(names)}.\n"
    return text


def conclusion_text(found: Responses) -> str:
    """Return what the curves say, in sentences."""
    measures = found.measures
    lines = []
    for title, read in (
        ("gain that falls least often between neighbouring strengths", lambda one: one.monotone.mean),
        ("gain nearest to a rising straight line", lambda one: one.linearity.mean),
        ("most even visible change", lambda one: one.evenness.mean),
    ):
        ranked = sorted(measures, key=lambda one: -(read(one) or 0.0))
        best, worst = (f"{code_span(one.curve.name)} ({read(one) or 0.0:.2f})" for one in (ranked[0], ranked[-1]))
        lines.append(f"- The {title}: {best}; the other end: {worst}.")
    broken = [one for one in measures if one.strength_range.reached]
    ends = ", ".join(
        f"{code_span(one.curve.name)} from strength {one.strength_range.value:.2f} (LPIPS "
        f"{one.distance_range.value:.2f})" for one in broken
    )  # fmt: skip
    lines.append(
        f"- More than {100 * ARTIFACT_LIMIT:g} % of the pictures are artifacts: {ends}."
        if broken else f"- No method makes artifacts of more than {100 * ARTIFACT_LIMIT:g} % of its pictures."
    )  # fmt: skip
    return "\n".join(lines) + "\n"


HEADER = (
    "method configuration", "strengths", "monotone", "linearity", "evenness", "range: strength", "range: LPIPS",
)  # fmt: skip


def curve_rows(measures: Iterable[CurveMeasures]) -> list[list[str]]:
    """Return the rows of the table of measures."""
    return [
        [
            one.curve.name, f"{one.curve.strengths[0]:g} to {one.curve.strengths[-1]:g}, {len(one.curve.strengths)}",
            estimate_text(one.monotone), estimate_text(one.linearity), estimate_text(one.evenness),
            reach_text(one.strength_range), reach_text(one.distance_range),
        ]
        for one in measures
    ]  # fmt: skip


def curve_table(found: Responses) -> str:
    """Tabulate the measures of all curves."""
    return markdown_table(HEADER, curve_rows(found.measures))


def budget_rows(measures: Iterable[CurveMeasures]) -> list[list[str]]:
    """Return the rows of the table of gains at equal LPIPS."""
    return [
        [one.curve.name, *(estimate_text(one.budgets[budget], 100, 1) for budget in READ_BUDGETS)] for one in measures
    ]


def budget_header() -> tuple[str, ...]:
    """Return the header of the table of gains at equal LPIPS."""
    return "method configuration", *(f"gain x100 at LPIPS {budget:g}" for budget in READ_BUDGETS)


def budget_table(found: Responses) -> str:
    """Tabulate gains at equal LPIPS."""
    return markdown_table(budget_header(), budget_rows(found.measures))


def page_tables(measures: Sequence[CurveMeasures]) -> dict[str, MarkupTable]:
    """Return both tables for a page, by their titles."""
    return {
        "Response to the edit strength": MarkupTable.of(HEADER, curve_rows(measures)),
        "Gain at equal LPIPS": MarkupTable.of(budget_header(), budget_rows(measures)),
    }


def estimate_text(value: Estimate, scale: float = 1.0, decimals: int = 2) -> str:
    """Return an estimate with its interval as it is printed; a dash for none."""
    if value.mean is None:
        return NONE
    ends = (value.low, value.high)
    numbers = [f"{round(scale * one, decimals) + 0.0:.{decimals}f}" for one in (value.mean, *ends) if one is not None]
    return numbers[0] if len(numbers) < 3 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def reach_text(value: Reach) -> str:
    """Return a range as it is printed; `none to` the end if it is not exceeded."""
    if not value.reached:
        return f"none to {value.value:.2f}"
    return f"{value.value:.2f}" + ("" if value.low is None else f" [{value.low:.2f}, {value.high:.2f}]")


PARTS: Mapping[str, Callable[[Responses], str]] = {
    "about": about_text,
    "conclusion": conclusion_text,
    "curves": curve_table,
    "budgets": budget_table,
}
"""Name of a part -> what makes it."""
FIGURE = "figure"

TEMPLATE = """# Response to the edit strength

<!-- response: conclusion -->
<!-- end -->

<!-- response: about -->
<!-- end -->

<!-- response: figure -->
<!-- end -->

<!-- response: curves -->
<!-- end -->

<!-- response: budgets -->
<!-- end -->
"""
"""What a document that is not there yet begins as."""


def fill_response(folders: Sequence[RunFolder], document: Path, *, check: bool = False) -> list[Path]:
    """Update the document, its figures and its CSV file from the stored scores.

    Args:
        folders: all run folders.
        document: the Markdown file; one that is not there is begun. Figures go to `images/` beside it.
        check: only looks.

    Returns:
        The document, its CSV file and its figures.

    Raises:
        RiebenchError: if no method has a curve; with `check`, if something is out of date; if a part is unknown.
    """
    everything = [Responses(read_curves(*place, members)) for place, members in group_by_model(folders).items()]
    everything = [one for one in everything if one.curves.curves]
    if not everything:
        raise RiebenchError(
            "no method was scored at three edit strengths or more; `riebench run --settings-set sweep` makes sweeps"
        )
    command = f"{COMMAND} --out {document}"
    if not document.exists():
        if check:
            raise RiebenchError(f"{document} is missing; run `{command}` and commit it")
        write_atomic(document, TEMPLATE.encode())
    figures: dict[Path, Responses] = {}

    def part_text(match: re.Match[str]) -> str:
        parts = []
        for found in everything:
            if len(everything) > 1:
                parts.append(f"**{found.curves.suite} on {escape_markdown(found.curves.model)}**\n")
            parts.append(_part(match[2], found, document, figures))
        return "\n".join(parts)

    fill_parts(document, PART, part_text, mark="<!-- response:", command=command, check=check)
    numbers = document.with_suffix(".csv")
    update_file(numbers, csv_text(CSV_COLUMNS, _csv_rows(everything)).encode(), command, check=check)
    for path, found in figures.items():
        curves_plan(found.measures).update(path, command, check=check)
    return [document, numbers, *figures]


def _part(name: str, found: Responses, document: Path, figures: dict[Path, Responses]) -> str:
    """Return the text of one part, and note the figure that it shows."""
    if name in PARTS:
        return PARTS[name](found)
    if name != FIGURE:
        raise RiebenchError(f"{document}: no response part {name!r}{near_match(name, [*PARTS, FIGURE])}")
    file = f"{document.stem}-{found.curves.place}.png"
    path = file_inside(document.parent / IMAGES, file, "the name of a figure", f"the folder {IMAGES}")
    figures[path] = found
    return f"![{curves_plan(found.measures).alt}]({quote(f'{IMAGES}/{file}')})\n\n{reading_words(found.measures)}\n"


def _csv_rows(everything: Iterable[Responses]) -> list[list[object]]:
    """Return one row a curve; numbers have nine significant digits."""
    rows: list[list[object]] = []
    for found in everything:
        for one in found.measures:
            curve = one.curve
            numbers: list[Any] = [
                *_ends(one.monotone), *_ends(one.linearity), *_ends(one.evenness),
                "yes" if one.strength_range.reached else "no",
                *_reach_ends(one.strength_range), *_reach_ends(one.distance_range),
                *(value for budget in READ_BUDGETS for value in _ends(one.budgets[budget])),
            ]  # fmt: skip
            rows.append(
                [
                    found.curves.suite, found.curves.model, curve.name, curve.entry.method, curve.entry.access,
                    " ".join(f"{strength:g}" for strength in curve.strengths),
                    *(f"{value:.9g}" if isinstance(value, float) else value for value in numbers),
                ]
            )  # fmt: skip
    return rows


def _ends(value: Estimate) -> list[float | None]:
    return [value.mean, value.low, value.high]


def _reach_ends(value: Reach) -> list[float | None]:
    return [value.value, value.low, value.high]

"""Models side by side as a document, a CSV file and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.analysis.compare.models import (
    MOST_TESTED,
    BestBlock,
    GainCell,
    ModelComparison,
    ModelDifference,
    ModelResults,
)
from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.multiple import ALPHA
from riebench.analysis.standings import GAIN, MIN_EXAMPLES, SECOND
from riebench.analysis.tradeoff import BUDGETS
from riebench.analysis.validity.plots import INK, PALE, RIGHT, WRONG, FigurePlan
from riebench.tasks.suites import suite_title
from riebench.utils.files import update_file
from riebench.utils.markup import (
    Block,
    BulletList,
    Code,
    Document,
    Heading,
    MarkupTable,
    Name,
    Paragraph,
    Piece,
    csv_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEM = "models"
"""Name of the three files, without their endings."""
NONE = "–"
ALT = (
    "Above, one heat map a model: the gain of each block edited alone, by category. Below, the gain of each method on "
    "each model with its interval. All numbers are in the tables."
)
CSV_COLUMNS = (
    "table", "model", "method", "category", "blocks", "best", "clear", "gain", "gain_low", "gain_high", "lpips",
    "scored", "expected", "second_gain", "second_low", "second_high", "difference", "difference_low",
    "difference_high", "p", "denoiser_calls", "seconds", "seconds_n", "note",
)  # fmt: skip
"""Columns of the CSV file; gains are as stored, and printed x100."""


def write_side_by_side(found: ModelComparison, out: Path, *, check: bool = False) -> list[Path]:
    """Write a comparison of models into a folder, or only check that it is up to date.

    Args:
        found: the comparison.
        out: folder that gets `models.md`, `models.csv` and `models.png`.
        check: only looks.

    Returns:
        The files.

    Raises:
        RiebenchError: with `check`, if a file is out of date.
    """
    document, table, picture = (out / f"{STEM}.{ending}" for ending in ("md", "csv", "png"))
    command = f"riebench compare-models --out {out}"
    text = side_by_side(found, picture=picture.name).markdown()
    update_file(document, text.encode(), command, check=check)
    update_file(table, csv_text(CSV_COLUMNS, csv_rows(found)).encode(), command, check=check)
    picture_plan(found).update(picture, command, check=check)
    return [document, table, picture]


def side_by_side(found: ModelComparison, picture: str = "") -> Document:
    """Return the document of a comparison.

    Args:
        found: the comparison.
        picture: file name of its picture; "" for none.
    """
    names = " and ".join(one.name for one in found.models)
    blocks: list[Block] = [
        Heading(1, (Name(suite_title(found.suite)), ": ", Name(names))),
        *_conclusions(found),
        Paragraph(_reading(found)),
    ]
    if picture:
        blocks.append(Paragraph((f"![{ALT}]({picture})",)))
    if found.run_once:
        blocks.append(Paragraph(("Methods that ran on one model alone are in the CSV file only:",)))
        blocks.append(BulletList(tuple(
            (Name(model), ": ", *_listed(names), ".") for model, names in found.run_once.items()
        )))  # fmt: skip
    blocks += [*_block_tables(found), *_gain_tables(found), *_cost_tables(found)]
    return Document(tuple(blocks))


def _conclusions(found: ModelComparison) -> list[Block]:
    """Return sentences on best blocks and on differences that are significant."""
    lines: list[tuple[Piece, ...]] = []
    for method in found.compared(found.block_methods):
        for model in found.models:
            best = [one for category in found.categories if (one := _best_of(model, method, category)) is not None]
            if best:
                counts = Counter(one.block for one in best).most_common()
                blocks = ", ".join(f"{block} in {count}" for block, count in counts)
                lines.append(
                    ("By ", Code(method), f", of {len(best)} categories the best single block of ",
                     Name(model.name), f" is {blocks}.")
                )  # fmt: skip
    for (method, name), apart in found.differences.items():
        mean = apart.difference.mean
        if apart.p < ALPHA and mean is not None:
            text = f": {_difference_text(apart).removesuffix('*')}."
            base = Name(found.models[0].name)
            lines.append(
                (Code(method), f" gains {'more' if mean > 0 else 'less'} on ", Name(name), " than on ", base, text)
            )
    return [BulletList(tuple(lines))] if lines else []


def _best_of(model: ModelResults, method: str, category: str) -> BestBlock | None:
    blocks = model.blocks.get(method)
    return None if blocks is None else blocks.best(category)


def _reading(found: ModelComparison) -> tuple[Piece, ...]:
    network = next(iter(found.models[0].networks(GAIN)))
    return (
        f"Gains are CLIP alignment x100 at equal LPIPS: the mean over LPIPS budgets of {BUDGETS[0]:g} to "
        f"{BUDGETS[-1]:g}, each example read where its LPIPS reaches the budget or at a largest edit strength, which "
        "is chosen on one half of the examples and read on the other. Cells: gain [95 % interval], scored/expected "
        "units. Measured by ",
        Name(network or "an unnamed scorer"), ".",
    )  # fmt: skip


def _listed(names: Sequence[str]) -> Sequence[Piece]:
    """Return names with commas between."""
    return [piece for name in names for piece in (", ", Code(name))][1:]


def _block_tables(found: ModelComparison) -> list[Block]:
    """Return the best block of each category, a table for each method."""
    if not found.block_methods:
        return [Heading(2, ("Best block by category",)), Paragraph(("No run edits blocks one at a time.",))]
    note = (
        f"The block that gains most by itself, of as many as the brackets say. *: it gains more than each other one "
        f"(p < {ALPHA:g}, corrected over all pairs of blocks and categories of the method and model), which takes "
        f"{MIN_EXAMPLES} independent examples in the category and at most {MOST_TESTED} blocks. The best of several is "
        "a little too good, since the same pictures chose it."
    )
    made: list[Block] = [Heading(2, ("Best block by category",)), Paragraph((note,))]
    for method in found.compared(found.block_methods):
        rows = []
        for category in (*found.categories, EVERYTHING):
            rows.append([category, *(_best_text(one, method, category) for one in found.models)])
        made += [Heading(3, (Code(method),)), MarkupTable.of(["category", *(one.name for one in found.models)], rows)]
    return made


def _best_text(model: ModelResults, method: str, category: str) -> str:
    blocks = model.blocks.get(method)
    if blocks is None:
        return "not run"
    best = _best_of(model, method, category)
    if best is None:
        cells = [blocks.cell(block, category) for block in blocks.entries]
        return f"{NONE} {sum(one.scored for one in cells)}/{sum(one.expected for one in cells)}"
    return f"{best.block} ({best.of}){'*' if best.clear else ''} {_gain_text(best.cell)}"


def _gain_text(cell: GainCell | None) -> str:
    """Return a gain as it is printed: mean, interval, counts."""
    if cell is None:
        return "not run"
    counts = f"{cell.scored}/{cell.expected}"
    if cell.gain is None or cell.gain.mean is None:
        return f"{NONE} {counts}" + (f" ({cell.note})" if cell.note else "")
    if cell.gain.low is None or cell.gain.high is None:
        return f"{_x100(cell.gain.mean)} [{NONE}] {counts}"
    return f"{_x100(cell.gain.mean)} [{_x100(cell.gain.low)}, {_x100(cell.gain.high)}] {counts}"


def _x100(value: float) -> str:
    return f"{round(100 * value, 2) + 0.0:.2f}"


def _gain_tables(found: ModelComparison) -> list[Block]:
    """Return the gain of each method, and by the second scorer where there is one."""
    first = found.models[0].name
    note = (
        "All blocks of a method together. The columns of differences are paired over the same examples; "
        f"*: p < {ALPHA:g}, corrected over all of them."
    )
    header = ["method", *(one.name for one in found.models), *(f"{one.name} minus {first}" for one in found.models[1:])]
    rows = [
        [
            method, *(_gain_with_distance(found.gain(method, one)) for one in found.models),
            *(_difference_text(found.differences.get((method, one.name))) for one in found.models[1:]),
        ]
        for method in found.compared(found.methods)
    ]  # fmt: skip
    made: list[Block] = [Heading(2, ("Gain at equal LPIPS",)), Paragraph((note,)), MarkupTable.of(header, rows)]
    if found.unlike:
        made.append(BulletList(tuple((Code(name), f": no difference, {why}.") for name, why in found.unlike.items())))
    if found.has_second:
        network = next(iter(found.models[0].networks(SECOND)))
        second = [[method, *(_gain_text(found.gain(method, one, SECOND)) for one in found.models)]
                  for method in found.compared(found.methods)]  # fmt: skip
        made += [
            Heading(3, ("By the second scorer",)),
            Paragraph(
                ("Read at the strengths that the first one chose, by ", Name(network), ", on a scale of its own.")
            ),
            MarkupTable.of(["method", *(one.name for one in found.models)], second),
        ]
    return made


def _gain_with_distance(cell: GainCell | None) -> str:
    text = _gain_text(cell)
    return text if cell is None or cell.distance is None else f"{text}, LPIPS {cell.distance:.3f}"


def _difference_text(one: ModelDifference | None) -> str:
    if one is None or one.difference.mean is None:
        return NONE
    ends = [one.difference.low, one.difference.high]
    interval = f" [{', '.join(f'{100 * end:+.2f}' for end in ends if end is not None)}]" if None not in ends else ""
    return f"{100 * one.difference.mean:+.2f}{interval}{'*' if one.p < ALPHA else ''}"


def _cost_tables(found: ModelComparison) -> list[Block]:
    """Return calls of the denoiser and recorded times."""
    header = ["model", "steps", "guidance", "picture side", "number format", "denoiser calls a picture", "recorded on"]
    rows = []
    for one in found.models:
        spec, cost = one.spec, one.cost
        calls = NONE if cost.calls is None else str(cost.calls)
        devices = ", ".join(cost.devices) or NONE
        rows.append([one.name, str(spec.steps), f"{spec.guidance:g}", f"{spec.size} px", spec.dtype, calls, devices])
    methods = sorted({name for one in found.models for name in one.cost.seconds})
    shared = [name for name in methods if sum(name in one.cost.seconds for one in found.models) > 1]
    shown = shared if found.run_once else methods
    times = [[name, *(_seconds_text(one, name) for one in found.models)] for name in shown]
    note = (
        "Median of the recorded wall time of a unit in seconds, and the number of units: a picture's share of its "
        "batch. Times of two machines say nothing about models; calls of the denoiser follow from steps and guidance."
    )
    made: list[Block] = [Heading(2, ("Cost",)), MarkupTable.of(header, rows)]
    if times:
        made += [Paragraph((note,)), MarkupTable.of(["method", *(one.name for one in found.models)], times)]
    return made


def _seconds_text(model: ModelResults, method: str) -> str:
    known = model.cost.seconds.get(method)
    return NONE if known is None else f"{known[0]:.3g} ({known[1]})"


def csv_rows(found: ModelComparison) -> list[list[object]]:
    """Return all numbers, one row for each cell of a table.

    The column `table` says which: `block` for one block alone in one category, `method` for all blocks of a method.
    """
    rows: list[dict[str, Any]] = []
    for model in found.models:
        for method, blocks in model.blocks.items():
            for category in (*found.categories, EVERYTHING):
                best = blocks.best(category)
                for block in blocks.entries:
                    chosen = best is not None and best.block == block
                    rows.append(
                        {
                            "table": "block", "model": model.name, "method": method, "category": category,
                            "blocks": block, "best": chosen, "clear": bool(chosen and best is not None and best.clear),
                            **_gain_columns("gain", blocks.cell(block, category)),
                        }
                    )  # fmt: skip
        for method, entry in model.whole.items():
            rows.append({"table": "method", "model": model.name, "method": method, "category": EVERYTHING,
                         "blocks": entry.block_set, **_method_columns(found, model, method)})  # fmt: skip
    return [[_csv_value(row.get(name)) for name in CSV_COLUMNS] for row in rows]


def _method_columns(found: ModelComparison, model: ModelResults, method: str) -> dict[str, Any]:
    cell, second = found.gain(method, model), found.gain(method, model, SECOND) if found.has_second else None
    columns = {} if cell is None else _gain_columns("gain", cell)
    if second is not None and second.gain is not None:
        ends = (second.gain.mean, second.gain.low, second.gain.high)
        columns |= dict(zip(("second_gain", "second_low", "second_high"), ends, strict=True))
    one = found.differences.get((method, model.name))
    if one is not None:
        names = ("difference", "difference_low", "difference_high", "p")
        columns |= dict(zip(names, (one.difference.mean, one.difference.low, one.difference.high, one.p), strict=True))
    seconds, count = model.cost.seconds.get(model.whole[method].name, (None, None))
    return {**columns, "denoiser_calls": model.cost.calls, "seconds": seconds, "seconds_n": count}


def _gain_columns(name: str, cell: GainCell) -> dict[str, Any]:
    ends = (None, None, None) if cell.gain is None else (cell.gain.mean, cell.gain.low, cell.gain.high)
    numbers = dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return {**numbers, "lpips": cell.distance, "scored": cell.scored, "expected": cell.expected, "note": cell.note}


def _csv_value(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.9g}" if isinstance(value, float) else value


def picture_plan(found: ModelComparison) -> FigurePlan:
    """Plan the picture: blocks by categories of each model, and all methods."""
    method = next(iter(found.block_methods), "")
    maps = [_map_numbers(found, one, method) for one in found.models if method in one.blocks]
    points = [_point_numbers(found, model) for model in found.models]
    methods = [name for name in found.compared(found.methods) if any(name in values for _, values in points)]
    numbers = {"method": method, "maps": maps, "methods": methods, "points": points}
    rows = max((len(one["rows"]) for one in maps), default=0)
    width = max(6.4, 1.2 + len(maps) * (1.6 + 0.5 * (len(found.categories) + 1)))
    return FigurePlan(ALT, numbers, _draw, (width, 2.4 + 0.3 * rows + 0.3 * len(methods)))


def _map_numbers(found: ModelComparison, model: ModelResults, method: str) -> dict[str, Any]:
    blocks = model.blocks[method]
    categories = [*found.categories, EVERYTHING]
    rows = []
    for block in blocks.entries:
        cells = [blocks.cell(block, category).gain for category in categories]
        rows.append([None if one is None or one.mean is None else round(100 * one.mean, 1) + 0.0 for one in cells])
    names = [name.removeprefix("change_").removesuffix("_object") for name in categories]
    return {"model": model.name, "blocks": [*blocks.entries], "categories": names, "rows": rows}


def _point_numbers(found: ModelComparison, model: ModelResults) -> tuple[str, dict[str, list[float | None]]]:
    values = {}
    for method in found.compared(found.methods):
        cell = found.gain(method, model)
        if cell is not None and cell.gain is not None and cell.gain.mean is not None:
            ends = (cell.gain.mean, cell.gain.low, cell.gain.high)
            values[method] = [None if end is None else round(100 * end, 2) for end in ends]
    return model.name, values


def _draw(figure: Figure, numbers: Any) -> None:
    above, below = (len(numbers["maps"]) > 0), (len(numbers["methods"]) > 0)
    heights = [max((len(one["rows"]) for one in numbers["maps"]), default=0) + 2, len(numbers["methods"]) + 2]
    parts = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    if above:
        panels = parts[0].subplots(1, len(numbers["maps"]), squeeze=False)[0]
        values = [abs(cell) for one in numbers["maps"] for row in one["rows"] for cell in row if cell is not None]
        for axes, one in zip(panels, numbers["maps"], strict=True):
            _draw_map(axes, one, max(values, default=0.0) or 1.0)
        parts[0].suptitle(f"{numbers['method']}: gain x100 of each block alone", fontsize=9)
    if below:
        _draw_points(parts[1].subplots(), numbers)


def _draw_map(axes: Axes, one: Any, largest: float) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("gain", [WRONG, "#f7f7f7", RIGHT]).with_extremes(bad=PALE)
    values = np.array([[np.nan if cell is None else cell for cell in row] for row in one["rows"]], dtype=float)
    axes.imshow(values, cmap=colors, vmin=-largest, vmax=largest, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        strong = bool(abs(value) > 0.6 * largest)
        text = NONE if np.isnan(value) else f"{value:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if strong else INK)
    axes.set_xticks(range(len(one["categories"])), one["categories"], rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(one["blocks"])), one["blocks"], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(one["model"], fontsize=9)


def _draw_points(axes: Axes, numbers: Any) -> None:
    methods: Sequence[str] = numbers["methods"]
    count = len(numbers["points"])
    for index, (model, values) in enumerate(numbers["points"]):
        shift = 0.5 * ((index + 0.5) / count - 0.5)
        places = [methods.index(name) + shift for name in values]
        found = [*values.values()]
        means = [one[0] for one in found]
        low = [one[0] - (one[0] if one[1] is None else one[1]) for one in found]
        high = [(one[0] if one[2] is None else one[2]) - one[0] for one in found]
        axes.errorbar(
            means, places, xerr=[low, high], fmt="o", markersize=4, linewidth=1, color=f"C{index}", label=model
        )
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean gain x100 over LPIPS budgets, all blocks of a method together")
    axes.legend(frameon=False, fontsize=8)

"""Trade-off between alignment and preservation, over the nine categories.

SAE features, neurons and steering are read at every level of every configuration (`point_rows`), summed up as areas
over LPIPS budgets (`area_rows`) and compared at equal shares (`riebench.paper.recipes.equal_share`). The tables, notes
and curves of the artefact follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from riebench.analysis.configurations import Configuration, configurations, present_categories, whole_configurations
from riebench.analysis.standings import DISTANCE, Entry
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, Estimate
from riebench.analysis.tradeoff import BUDGETS
from riebench.paper.artefact import (
    Artefact,
    ArtefactSettings,
    Column,
    Row,
    Table,
    View,
    estimate_cells,
    gain_column,
    metric_column,
    percent_column,
    plain_columns,
    values_of,
)
from riebench.paper.comparison import (
    Comparison,
    comparisons_by_seeds,
    count_units,
    join_groups,
    read_entries,
    setting_name,
)
from riebench.paper.job import PaperJob
from riebench.paper.recipes.equal_share import equal_share_notes, equal_share_rows, equal_share_table
from riebench.paper.runs import (
    END_SETTINGS,
    SWEEP_SET,
    RunSet,
    SelectionPools,
    collect_runs,
    count_pools,
    paper_settings,
    share_text,
    switched_count,
)
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder
from riebench.tasks.settings import setting_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


NAME = "trade-off"
TRUTH = "judge_target"
METHOD_TITLES = {
    "sae": "SAE features",
    "neurons": "neurons",
    "activation_patch": "steering (activation_patch)",
    "mean_steering": "steering (mean vector)",
    "no_edit": "no edit",
    "target_prompt": "target prompt",
}
"""Method -> its title in tables and figures."""
END_METHODS = ("no edit", "target prompt")
STEERING_SETTINGS = ("activation_patch_sweep", "mean_steering_sweep")
OPTIONAL_SETTINGS = ("sae_sweep", "neurons_sweep")
"""Configurations of the sweep that are read only if they are stored, beside those at equal shares."""
TABLE_METRICS = {DEFAULT: (DISTANCE, "clip_gain", "judge_target", "judge_kept")}
"""Profile -> metrics of the table, if not all of its own; only the toy world has a judge."""
SWITCHES = {
    "sae_1_of_128": "all as in the default",
    "sae_add_only": "subtract_off: false",
    "sae_delete_from_source": "delete_uses_target: false",
    "sae_per_block_shares": "shares of each block before ranking",
}
"""Setting -> the switch of published scripts that it changes; all at strength 1."""
DASHES = ("-", "--", "-.", ":")


def required_settings(suite: str) -> dict[str, str]:
    """Return the configurations to run where they are not stored, with sets."""
    steering = {name: SWEEP_SET for name in STEERING_SETTINGS if name in setting_names(suite, SWEEP_SET)}
    return {**END_SETTINGS, **paper_settings(suite), **steering}


def make(job: PaperJob) -> Artefact:
    """Read the configurations' scores and sum up each method.

    Configurations that are not stored are run first.
    """
    found = collect_runs(job, required_settings(job.suite), OPTIONAL_SETTINGS)
    pools = count_pools(job)
    shown = shown_metrics(found.folders, job.profile)
    points = [row for one in found.folders for row in point_rows(one, pools, shown, job.profile)]
    tables = [_points_table(points, shown), _category_table(points, shown)]
    notes: list[str] = []
    if job.profile == DEFAULT:
        everything = read_entries(found.folders)
        judged = "judge_target" in shown
        groups = {f.spec.setting.name: f.spec.setting.group for f in found.folders}
        methods = join_groups(
            [e for e in everything if not _single_level(e)], {k: v for k, v in groups.items() if v is not None}
        )
        areas = [row for comparison in comparisons_by_seeds(methods, REPLICATES) for row in area_rows(comparison)]
        settings = {f.spec.setting.name: f.spec.setting for f in found.folders}
        equal = equal_share_rows(everything, settings, pools, REPLICATES)
        tables += [_area_table(areas, judged), equal_share_table(equal, judged)]
        notes += [*_area_notes(areas), *equal_share_notes(equal)]
    tables.append(_switch_table(points, shown))
    return Artefact(
        name=NAME,
        title="Trade-off of SAE features, neurons and steering",
        shows=_description(job.profile, len(pools.units)),
        tables=tuple(table for table in tables if table.rows),
        settings=_settings(found, pools, job.profile),
        notes=tuple(notes),
        alt="Mean CLIP gain against mean LPIPS at every edit strength of every method: over all categories, beside it "
        "the judge's verdict where there is one, and one small panel for each category.",
    )


def _description(profile: str, blocks: int) -> str:
    """Return the paragraph on reading the artefact under a profile.

    Args:
        profile: its name.
        blocks: number of the model's usual blocks.
    """
    count = "four" if blocks == 4 else str(blocks)
    ranked = metric_format(PROFILES[profile].rank)
    text = (
        f"Each edit strength of each method edits all {count} blocks of every example: mean LPIPS to the source "
        f"picture against {ranked.title}. Means run over seeds, then examples, then categories; `scored` is "
        "the least of the metrics' counts. `switched` features or units go on and as many off; `share` is that part of "
        f"all there are in the {count} blocks. "
    )
    if profile != DEFAULT:
        return text + (
            f"Profile `{profile}`: as the published scripts compute it; mean gains over budgets belong to the default "
            "profile."
        )
    return text + (
        f"Mean gain (`area` in the data) is the mean of the gains at LPIPS budgets of {BUDGETS[0]} to {BUDGETS[-1]}, "
        "each example read where its LPIPS reaches the budget or at a largest edit strength, chosen on one half of the "
        "examples over all categories and read on the other; by category the same choice is read there. `completion` "
        "is the mean gain as a share of the target prompt's gain. Methods with equally many seeds are resampled "
        "together. Mean success is the same of true success: the judge finds the target and every other attribute as "
        "before, less what unedited pictures have of it."
    )


def _settings(found: RunSet, pools: SelectionPools, profile: str) -> ArtefactSettings:
    """Return the configurations of the artefact."""
    return {
        "profile": profile,
        **found.settings,
        "features": {**pools.features, "all": sum(pools.features.values())} if pools.features else {},
        "feed-forward units": {**pools.units, "all": sum(pools.units.values())},
        "bootstrap": {"replicates": REPLICATES, "seed": BOOTSTRAP_SEED, "interval": "95 %, studentised"},
    }


def shown_metrics(folders: Iterable[RunFolder], profile: str) -> list[str]:
    """Return the metrics of a profile that any run has numbers of.

    Returns:
        Metrics, distance and ranked metric first.
    """
    order = TABLE_METRICS.get(profile, (DISTANCE, PROFILES[profile].rank, *PROFILES[profile].table))
    present = {metric for folder in folders for c in configurations(folder, profile) for metric in c.values}
    return [metric for metric in dict.fromkeys(order) if metric in present]


def point_rows(
    folder: RunFolder,
    pools: SelectionPools,
    shown: Sequence[str],
    profile: str = DEFAULT,
    *,
    single_blocks: bool = False,
) -> list[Row]:
    """Return every edit strength of a configuration, over all categories and in each.

    Args:
        folder: its run.
        pools: numbers of features and units to select from.
        shown: metrics.
        profile: scoring profile of the metrics.
        single_blocks: return every block set, named in the rows, instead of all blocks together.
    """
    setting = folder.spec.setting
    everything = configurations(folder, profile)
    return [
        {
            **(
                {"block": c.block_set}
                if single_blocks
                else {"method": METHOD_TITLES.get(setting.method, setting.method)}
            ),
            "setting": setting.name,
            "strength": float(c.strength),
            "switched": switched_count(setting),
            **({} if single_blocks else {"share": share_text(pools.share(setting))}),
            "category": category,
            **_metric_cells(c, category, shown),
        }
        for c in (everything if single_blocks else whole_configurations(everything))
        for category in ("all", *present_categories(everything))
    ]


def _metric_cells(c: Configuration, category: str, shown: Sequence[str]) -> Row:
    """Return the counts and metrics of one edit strength and category."""
    cells = {metric: c.row(metric, category) for metric in shown}
    # One count for the whole row: the least of its metrics, so that no cell hides a gap.
    least = min(cells.values(), key=lambda cell: cell.n_scored, default=None)
    row: Row = {
        "examples": least.n_examples if least else 0,
        "seeds": least.n_seeds if least else 0,
        "scored": least.n_scored if least else 0,
        "expected": sum(c.expected.values()) if category == "all" else c.expected.get(category, 0),
    }
    for metric, cell in cells.items():
        row |= estimate_cells(metric, Estimate(cell.mean, cell.ci_low, cell.ci_high, cell.n_examples))
    return row


def _single_level(entry: Entry) -> bool:
    """Check that an entry serves the switches alone.

    Such an entry has a single level, so that it has no curve of its own.
    """
    setting = setting_name(entry)
    return setting in SWITCHES and len(entry.configurations) == 1


def area_rows(comparison: Comparison) -> list[Row]:
    """Compute each method's mean gain, over all categories and in each."""
    rows: list[Row] = []
    for entry in comparison.methods:
        gap = comparison.gap(entry)
        for category in comparison.categories:
            area = comparison.area(entry, category)
            far = comparison.target_prompt_gain(category)
            scored, expected = count_units(entry, category)
            at_choice = comparison.truth_at_choice(entry, category)
            completion = None if area is None or far is None else area.over(far)
            rows.append(
                {
                    "method": METHOD_TITLES.get(entry.method, entry.method),
                    "settings": entry.name,
                    "levels": entry.levels,
                    "category": category,
                    "examples": comparison.n_examples(category),
                    "seeds": comparison.seeds,
                    "scored": scored,
                    "expected": expected,
                    **estimate_cells("area", comparison.estimate(area, category)),
                    **estimate_cells("completion", comparison.estimate(completion, category)),
                    "lpips": comparison.realised_distance(entry, category),
                    **estimate_cells("true_area", comparison.estimate(comparison.true_area(entry, category), category)),
                    **estimate_cells("truth_at_choice", comparison.estimate(at_choice, category)),
                    "note": gap or "",
                }
            )
    return rows


def _columns(shown: Sequence[str], *, category: bool) -> tuple[Column, ...]:
    """Return the columns of the tables of edit strengths."""
    names = ["method", "setting", "strength", "switched", "share", *(["category"] if category else [])]
    counts = ["examples", "seeds", "scored", "expected"]
    return (*plain_columns((*names, *counts)), *(metric_column(metric) for metric in shown))


def _points_table(points: Sequence[Row], shown: Sequence[str]) -> Table:
    """Return the table of every edit strength over all categories."""
    rows = [{k: v for k, v in row.items() if k != "category"} for row in points if row["category"] == "all"]
    return Table(
        title="Every edit strength, mean over the categories", columns=_columns(shown, category=False), rows=tuple(rows)
    )


def _category_table(points: Sequence[Row], shown: Sequence[str]) -> Table:
    """Return the table of every edit strength in each category."""
    columns = _columns(shown, category=True)
    down = ("method", "setting", "strength", "seeds")
    views = tuple(
        View(title=f"By category: {metric_column(m).heading}", down=down, across="category", cell=m) for m in shown
    )
    rows = tuple(row for row in points if row["category"] != "all")
    title = "Every edit strength in each category"
    return Table(name="categories", title=title, columns=columns, rows=rows, views=views)


def _switch_table(points: Sequence[Row], shown: Sequence[str]) -> Table:
    """Return the table of the published scripts' switches."""
    kept = [
        {"switch": SWITCHES[str(row["setting"])], **{k: v for k, v in row.items() if k not in ("method", "share")}}
        for row in points
        if row["setting"] in SWITCHES and row["strength"] == 1 and row["category"] in ("all", "delete_object")
    ]
    names = ("switch", "setting", "strength", "switched", "category", "examples", "seeds", "scored", "expected")
    columns = (*plain_columns(names), *(metric_column(metric) for metric in shown))
    return Table(name="switches", title="Switches of the published scripts", columns=columns, rows=tuple(kept))


def _area_table(rows: Sequence[Row], judged: bool) -> Table:
    """Return the table of mean gains, with mean success where it is known."""
    plain = ("method", "settings", "levels", "category", "examples", "seeds", "scored", "expected")
    truth = [
        percent_column("true_area", "mean success %"),
        percent_column("truth_at_choice", "success % where CLIP chose"),
    ]
    columns = [
        *plain_columns(plain),
        gain_column("area", "mean gain x100"),
        percent_column("completion", "completion %"),
        Column(name="lpips", title="LPIPS", decimals=3),
        *(truth if judged else []),
        Column(name="note"),
    ]
    hidden = set() if judged else {key for column in truth for key in column.keys}
    down = ("method", "settings", "seeds")
    views = [
        View(
            title="Mean gain over LPIPS budgets by category x100",
            down=(*down, "levels", "note"),
            across="category",
            cell="area",
        ),
        View(title="Completion by category, % of the target prompt", down=down, across="category", cell="completion"),
    ]
    if judged:
        title = "Mean success over LPIPS budgets by category: target reached and all else kept, %"
        views.append(View(title=title, down=down, across="category", cell="true_area"))
        title = "True success by category where CLIP chose the edit strength, %"
        views.append(View(title=title, down=down, across="category", cell="truth_at_choice"))
    kept = tuple({k: v for k, v in row.items() if k not in hidden} for row in rows)
    return Table(name="areas", title="Methods", columns=tuple(columns), rows=kept, views=tuple(views))


def _area_notes(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on the mean gain of each method, largest first."""
    best = [row for row in rows if row["category"] == "all" and isinstance(row["area"], float)]
    notes = []
    for row in sorted(best, key=lambda row: -float(row["area"] or 0)):
        true = row.get("true_area")
        truth = f", mean success {100 * true:.0f} %" if isinstance(true, float) else ""
        notes.append(
            f"{row['method']} ({row['settings']}, {row['levels']} edit strengths, {row['seeds']} "
            f"{'seed' if row['seeds'] == 1 else 'seeds'}): mean gain {100 * float(row['area'] or 0):+.2f} "
            f"[{100 * float(row['area_low'] or 0):+.2f}, {100 * float(row['area_high'] or 0):+.2f}]{truth}."
        )
    return notes


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw the curves over all categories, and a small panel for each category.

    True success, where it is known, is below the curves over all categories.
    """
    draw_trade_off(figure, artefact, {label: f"C{index}" for index, label in enumerate(METHOD_TITLES.values())})


def draw_trade_off(figure: Figure, artefact: Artefact, colors: Mapping[str, str]) -> None:
    """Draw the artefact's points.

    Args:
        figure: an empty one.
        artefact: with the tables "" and "categories".
        colors: title of a method -> its colour.
    """
    figure.set_size_inches(11.0, 6.2)
    rank = PROFILES[str(artefact.settings.get("profile", DEFAULT))].rank
    overall = artefact.table().rows
    split = [row for table in artefact.tables if table.name == "categories" for row in table.rows]
    parts = figure.subfigures(1, 2, width_ratios=(2, 3), squeeze=False)[0]
    left, right = parts[0], parts[1]
    judged = any(row.get(TRUTH) is not None for row in overall)
    panels = left.subplots(2 if judged else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_panel(panels[0], overall, rank, colors)
    panels[0].set_title("all categories", fontsize=9)
    panels[0].set_ylabel(_axis_label(rank), fontsize=8)
    if judged:
        _draw_panel(panels[1], overall, TRUTH, colors)
        panels[1].set_ylabel("target reached, % (judge)", fontsize=8)
    panels[-1].set_xlabel("mean LPIPS", fontsize=8)
    categories = values_of(split, "category")
    columns = 3
    grid = right.subplots(max(1, -(-len(categories) // columns)), columns, sharex=True, squeeze=False)
    for axes, category in zip(grid.flat, categories, strict=False):
        _draw_panel(axes, [row for row in split if row["category"] == category], rank, colors, size=2.5)
        axes.set_title(str(category).replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in list(grid.flat)[len(categories) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=7)


def _draw_panel(axes: Axes, rows: Sequence[Row], metric: str, colors: Mapping[str, str], size: float = 4) -> None:
    """Draw the points of each configuration of each method on one panel."""
    axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    for method in values_of(rows, "method"):
        method_rows = [row for row in rows if row["method"] == method]
        for index, setting in enumerate(values_of(method_rows, "setting")):
            points = [_point(row, metric) for row in method_rows if row["setting"] == setting]
            known = [point for point in points if point is not None]
            if not known or (len(points) == 1 and method not in END_METHODS):
                # A single level is no curve; it serves the table of switches.
                continue
            style: dict[str, Any] = {"color": colors.get(str(method), "0.3"), "markersize": size, "label": setting}
            if method in END_METHODS:
                style |= {"marker": "*", "markersize": 2.2 * size, "linestyle": "none", "color": "black"}
                style["markerfacecolor"] = "white" if method == END_METHODS[0] else "black"
            else:
                style |= {"marker": "o", "linewidth": 1.1, "linestyle": DASHES[index % len(DASHES)]}
            axes.plot(*zip(*known, strict=True), **style)


def _axis_label(metric: str) -> str:
    """Return the label of a metric's axis, with its scale."""
    form = metric_format(metric)
    name = form.title.partition(" (")[0]
    return name if f"x{form.scale:g}" in name or form.scale == 1 else f"{name} x{form.scale:g}"


def _point(row: Row, metric: str) -> tuple[float, float] | None:
    """Return distance and metric of a row as drawn; None if one is missing."""
    distance, value = row.get(DISTANCE), row.get(metric)
    if not isinstance(distance, int | float) or not isinstance(value, int | float):
        return None
    return float(distance), float(value) * metric_format(metric).scale

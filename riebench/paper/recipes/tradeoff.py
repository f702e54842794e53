"""The trade-off between alignment and preservation: SAE features, neurons and steering over the nine categories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from riebench.analysis.configurations import Configuration, configurations, present_categories, whole_configurations
from riebench.analysis.standings import DISTANCE, Entry
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, Estimate
from riebench.analysis.tradeoff import BUDGETS
from riebench.paper.artefact import (
    Artefact,
    Column,
    Row,
    Table,
    View,
    estimated,
    gain_column,
    metric_column,
    percent_column,
    values_of,
)
from riebench.paper.contest import Contest, contests, counts, joined, read_entries, setting_of
from riebench.paper.job import PaperJob, Said
from riebench.paper.recipes.equal_share import at_equal_shares, equal_share_notes, equal_share_table
from riebench.paper.runs import ENDS as END_SETTINGS
from riebench.paper.runs import SWEEP_SET, Pools, Runs, count_of, paper_settings, pools, runs, share_text
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder
from riebench.tasks.settings import setting_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DASHES = ("-", "--", "-.", ":")
ENDS = ("no edit", "target prompt")
TRUTH = "judge_target"


def draw_trade_off(figure: Figure, artefact: Artefact, colors: Mapping[str, str]) -> None:
    """Draws the artefact's points.

    Args:
        figure: an empty one.
        artefact: with the tables "" and "categories".
        colors: what the table calls a method -> its colour.
    """
    figure.set_size_inches(11.0, 6.2)
    rank = PROFILES[str(artefact.settings.get("profile", DEFAULT))].rank
    overall = artefact.table().rows
    split = [row for table in artefact.tables if table.name == "categories" for row in table.rows]
    parts = figure.subfigures(1, 2, width_ratios=(2, 3), squeeze=False)[0]
    left, right = parts[0], parts[1]
    judged = any(row.get(TRUTH) is not None for row in overall)
    panels = left.subplots(2 if judged else 1, 1, sharex=True, squeeze=False)[:, 0]
    _panel(panels[0], overall, rank, colors)
    panels[0].set_title("all categories", fontsize=9)
    panels[0].set_ylabel(_axis(rank), fontsize=8)
    if judged:
        _panel(panels[1], overall, TRUTH, colors)
        panels[1].set_ylabel("target reached, % (judge)", fontsize=8)
    panels[-1].set_xlabel("mean LPIPS", fontsize=8)
    categories = values_of(split, "category")
    columns = 3
    grid = right.subplots(max(1, -(-len(categories) // columns)), columns, sharex=True, squeeze=False)
    for axes, category in zip(grid.flat, categories, strict=False):
        _panel(axes, [row for row in split if row["category"] == category], rank, colors, size=2.5)
        axes.set_title(str(category).replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in list(grid.flat)[len(categories) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=7)


def _axis(metric: str) -> str:
    form = metric_format(metric)
    name = form.title.partition(" (")[0]
    return name if f"x{form.scale:g}" in name or form.scale == 1 else f"{name} x{form.scale:g}"


def _panel(axes: Axes, rows: Sequence[Row], metric: str, colors: Mapping[str, str], size: float = 4) -> None:
    axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    for method in values_of(rows, "method"):
        mine = [row for row in rows if row["method"] == method]
        for index, setting in enumerate(values_of(mine, "setting")):
            points = [_place(row, metric) for row in mine if row["setting"] == setting]
            known = [point for point in points if point is not None]
            if not known or (len(points) == 1 and method not in ENDS):
                # A single level is no curve: it is there for a switch, and in the table.
                continue
            style: dict[str, Any] = {"color": colors.get(str(method), "0.3"), "markersize": size, "label": setting}
            if method in ENDS:
                style |= {"marker": "*", "markersize": 2.2 * size, "linestyle": "none", "color": "black"}
                style["markerfacecolor"] = "white" if method == ENDS[0] else "black"
            else:
                style |= {"marker": "o", "linewidth": 1.1, "linestyle": DASHES[index % len(DASHES)]}
            axes.plot(*zip(*known, strict=True), **style)


def _place(row: Row, metric: str) -> tuple[float, float] | None:
    distance, value = row.get(DISTANCE), row.get(metric)
    if not isinstance(distance, int | float) or not isinstance(value, int | float):
        return None
    return float(distance), float(value) * metric_format(metric).scale


NAME = "trade-off"
KINDS = {
    "sae": "SAE features",
    "neurons": "neurons",
    "activation_patch": "steering (activation_patch)",
    "mean_steering": "steering (mean vector)",
    "no_edit": "no edit",
    "target_prompt": "target prompt",
}
"""Method -> what tables and figures call it."""
STEERING = ("activation_patch_sweep", "mean_steering_sweep")
ALSO = ("sae_sweep", "neurons_sweep")
"""Settings of the sweep that are read where they are stored, beside those at equal shares."""
SHOWN = {DEFAULT: (DISTANCE, "clip_gain", "judge_target", "judge_kept")}
"""Profile -> metrics of the table, where not all of its own; the judge knows the toy world alone."""
SWITCHES = {
    "sae_1_of_128": "all as in the default",
    "sae_add_only": "subtract_off: false",
    "sae_delete_from_source": "delete_uses_target: false",
    "sae_per_block_shares": "shares of each block before ranking",
}
"""Setting -> the switch of published scripts that it turns over; all at strength 1."""


def wanted(suite: str) -> dict[str, str]:
    """Setting -> set of everything that is run where it is not stored."""
    steering = {name: SWEEP_SET for name in STEERING if name in setting_names(suite, SWEEP_SET)}
    return {**END_SETTINGS, **paper_settings(suite), **steering}


def make(job: PaperJob) -> Artefact:
    """Reads the settings' scores, runs what is not stored, and sums up each method."""
    found = runs(job, wanted(job.suite), ALSO)
    chooses = pools(job)
    shown = shown_metrics(found.folders, job.profile)
    points = [row for one in found.folders for row in point_rows(one, chooses, shown, job.profile)]
    tables = [_points_table(points, shown), _category_table(points, shown)]
    notes: list[str] = []
    if job.profile == DEFAULT:
        everything = read_entries(found.folders)
        judged = "judge_target" in shown
        groups = {f.spec.setting.name: f.spec.setting.group for f in found.folders}
        methods = joined(
            [e for e in everything if not _single_level(e)], {k: v for k, v in groups.items() if v is not None}
        )
        areas = [row for contest in contests(methods, REPLICATES) for row in area_rows(contest)]
        settings = {f.spec.setting.name: f.spec.setting for f in found.folders}
        equal = at_equal_shares(everything, settings, chooses, REPLICATES)
        tables += [_area_table(areas, judged), equal_share_table(equal, judged)]
        notes += [*_area_notes(areas), *equal_share_notes(equal)]
    tables.append(_switch_table(points, shown))
    return Artefact(
        name=NAME,
        title="Trade-off of SAE features, neurons and steering",
        shows=_shows(job.profile),
        tables=tuple(table for table in tables if table.rows),
        settings=_settings(found, chooses, job.profile),
        notes=tuple(notes),
        alt="Mean CLIP gain against mean LPIPS of every level of every method: over all categories, beside it the "
        "judge's verdict where there is one, and one small panel for each category.",
    )


def draw(figure: Figure, artefact: Artefact) -> None:
    """The curves over all categories, the judge's below, and small panels for the categories."""
    draw_trade_off(figure, artefact, {label: f"C{index}" for index, label in enumerate(KINDS.values())})


def shown_metrics(folders: Iterable[RunFolder], profile: str) -> list[str]:
    """Metrics of the profile that any run has numbers of, distance and ranked metric first."""
    order = SHOWN.get(profile, (DISTANCE, PROFILES[profile].rank, *PROFILES[profile].table))
    present = {metric for folder in folders for c in configurations(folder, profile) for metric in c.values}
    return [metric for metric in dict.fromkeys(order) if metric in present]


def point_rows(
    folder: RunFolder, chooses: Pools, shown: Sequence[str], profile: str = DEFAULT, *, single_blocks: bool = False
) -> list[Row]:
    """Every level of a setting with all its blocks, over all categories and in each.

    Args:
        folder: its run.
        chooses: what there is to choose from.
        shown: metrics.
        profile: whose metrics they are.
        single_blocks: every block set instead, named in the rows.
    """
    setting = folder.spec.setting
    everything = configurations(folder, profile)
    return [
        {
            **({"block": c.block_set} if single_blocks else {"method": KINDS.get(setting.method, setting.method)}),
            "setting": setting.name,
            "strength": float(c.strength),
            "switched": count_of(setting),
            **({} if single_blocks else {"share": share_text(chooses.share(setting))}),
            "category": category,
            **_measured(c, category, shown),
        }
        for c in (everything if single_blocks else whole_configurations(everything))
        for category in ("all", *present_categories(everything))
    ]


def _measured(c: Configuration, category: str, shown: Sequence[str]) -> Row:
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
        row |= estimated(metric, Estimate(cell.mean, cell.ci_low, cell.ci_high, cell.n_examples))
    return row


def _columns(shown: Sequence[str], *, category: bool) -> tuple[Column, ...]:
    names = ["method", "setting", "strength", "switched", "share", *(["category"] if category else [])]
    counts = ["examples", "seeds", "scored", "expected"]
    return (*(Column(name=n) for n in (*names, *counts)), *(metric_column(metric) for metric in shown))


def _points_table(points: Sequence[Row], shown: Sequence[str]) -> Table:
    rows = [{k: v for k, v in row.items() if k != "category"} for row in points if row["category"] == "all"]
    return Table(
        title="Every level, mean over the categories", columns=_columns(shown, category=False), rows=tuple(rows)
    )


def _category_table(points: Sequence[Row], shown: Sequence[str]) -> Table:
    columns = _columns(shown, category=True)
    down = ("method", "setting", "strength", "seeds")
    views = tuple(
        View(title=f"By category: {metric_column(m).heading}", down=down, across="category", cell=m) for m in shown
    )
    rows = tuple(row for row in points if row["category"] != "all")
    return Table(name="categories", title="Every level in each category", columns=columns, rows=rows, views=views)


def _switch_table(points: Sequence[Row], shown: Sequence[str]) -> Table:
    kept = [
        {"switch": SWITCHES[str(row["setting"])], **{k: v for k, v in row.items() if k not in ("method", "share")}}
        for row in points
        if row["setting"] in SWITCHES and row["strength"] == 1 and row["category"] in ("all", "delete_object")
    ]
    names = ("switch", "setting", "strength", "switched", "category", "examples", "seeds", "scored", "expected")
    columns = (*(Column(name=name) for name in names), *(metric_column(metric) for metric in shown))
    return Table(name="switches", title="Switches of the published scripts", columns=columns, rows=tuple(kept))


def _single_level(entry: Entry) -> bool:
    """Whether an entry is there for the switches alone: it has no knob that could be a method's."""
    setting = setting_of(entry)
    return setting in SWITCHES and len(entry.configurations) == 1


def area_rows(contest: Contest) -> list[Row]:
    """What each method reaches over all budgets, over all categories and in each."""
    rows: list[Row] = []
    for entry in contest.rivals:
        gap = contest.gap(entry)
        for category in contest.categories:
            area = contest.area(entry, category)
            far = contest.far_end(category)
            scored, expected = counts(entry, category)
            at_choice = contest.truth_at_choice(entry, category)
            completion = None if area is None or far is None else area / far
            rows.append(
                {
                    "method": KINDS.get(entry.method, entry.method),
                    "settings": entry.name,
                    "levels": entry.levels,
                    "category": category,
                    "examples": contest.n_examples(category),
                    "seeds": contest.seeds,
                    "scored": scored,
                    "expected": expected,
                    **estimated("area", contest.estimate(area, category)),
                    **estimated("completion", contest.estimate(completion, category)),
                    "lpips": contest.realised(entry, category),
                    **estimated("true_area", contest.estimate(contest.true_area(entry, category), category)),
                    **estimated("truth_at_choice", contest.estimate(at_choice, category)),
                    "note": gap or "",
                }
            )
    return rows


def _area_table(rows: Sequence[Row], judged: bool) -> Table:
    plain = ("method", "settings", "levels", "category", "examples", "seeds", "scored", "expected")
    truth = [
        percent_column("true_area", "true area (success) %"),
        percent_column("truth_at_choice", "success % where CLIP chose"),
    ]
    columns = [
        *(Column(name=name) for name in plain),
        gain_column("area", "area x100"),
        percent_column("completion", "completion %"),
        Column(name="lpips", title="LPIPS", decimals=3),
        *(truth if judged else []),
        Column(name="note"),
    ]
    hidden = set() if judged else {key for column in truth for key in column.keys}
    down = ("method", "settings", "seeds")
    views = [
        View(title="Area by category x100", down=(*down, "levels", "note"), across="category", cell="area"),
        View(title="Completion by category, % of the target prompt", down=down, across="category", cell="completion"),
    ]
    if judged:
        title = "True area by category: target reached and all else kept, %"
        views.append(View(title=title, down=down, across="category", cell="true_area"))
        title = "True success by category where CLIP chose the level, %"
        views.append(View(title=title, down=down, across="category", cell="truth_at_choice"))
    kept = tuple({k: v for k, v in row.items() if k not in hidden} for row in rows)
    return Table(name="areas", title="Methods", columns=tuple(columns), rows=kept, views=tuple(views))


def _area_notes(rows: Sequence[Row]) -> list[str]:
    best = [row for row in rows if row["category"] == "all" and isinstance(row["area"], float)]
    notes = []
    for row in sorted(best, key=lambda row: -float(row["area"] or 0)):
        true = row.get("true_area")
        truth = f", true area {100 * true:.0f} %" if isinstance(true, float) else ""
        notes.append(
            f"{row['method']} ({row['settings']}, {row['levels']} levels, {row['seeds']} "
            f"{'seed' if row['seeds'] == 1 else 'seeds'}): area {100 * float(row['area'] or 0):+.2f} "
            f"[{100 * float(row['area_low'] or 0):+.2f}, {100 * float(row['area_high'] or 0):+.2f}]{truth}."
        )
    return notes


def _shows(profile: str) -> str:
    ranked = metric_format(PROFILES[profile].rank)
    text = (
        "Each level of each method edits all four blocks of every example: mean LPIPS to the source picture against "
        f"{ranked.title}. Means run over seeds, then examples, then categories; `scored` is "
        "the least of the metrics' counts. `switched` features or units go on and as many off; `share` is that part of "
        "all there are in the four blocks. "
    )
    if profile != DEFAULT:
        return text + f"Profile `{profile}`: as the published scripts compute it; areas belong to the default profile."
    return text + (
        f"`area` is the mean gain at LPIPS budgets of {BUDGETS[0]} to {BUDGETS[-1]}, levels chosen on one half of the "
        "examples over all categories and read on the other; by category the same choice is read there. `completion` "
        "is the area as a share of the target prompt's gain. Methods with equally many seeds are resampled together. "
        "True success: the judge finds the target and every other attribute as before, less what unedited pictures "
        "have of it."
    )


def _settings(found: Runs, chooses: Pools, profile: str) -> Said:
    return {
        "profile": profile,
        **found.settings,
        "features": {**chooses.features, "all": sum(chooses.features.values())} if chooses.features else {},
        "feed-forward units": {**chooses.units, "all": sum(chooses.units.values())},
        "bootstrap": {"replicates": REPLICATES, "seed": BOOTSTRAP_SEED, "interval": "95 %, percentile"},
    }

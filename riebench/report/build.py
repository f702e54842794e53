"""Writing of the report, from a results folder to a page in a folder.

The folder can be opened in a browser, put on a web server or sent to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from riebench.analysis.leaderboard import leaderboard_document
from riebench.analysis.tradeoff.response.curves import read_curves
from riebench.analysis.tradeoff.response.document import page_tables
from riebench.analysis.tradeoff.response.measures import measure_curves
from riebench.analysis.tradeoff.response.plots import page_drawing, reading_words
from riebench.errors import RiebenchError
from riebench.report.data import Group, read_groups
from riebench.report.examples import PictureCopier, index_examples, write_group, write_index
from riebench.report.feature_choice import FEATURES, FeatureSelection, feature_views, select_features
from riebench.report.findings import find
from riebench.report.heat_maps import block_views, finding_maps
from riebench.report.output import OutputFolder
from riebench.report.page import board_html, render_page
from riebench.report.plots import trade_off
from riebench.tasks.schema import EditTask
from riebench.tasks.suites import load_suite
from riebench.utils.markup import Document

FeaturePageWriter = Callable[[Path, Sequence[FeatureSelection]], None]
"""Writes the pages of features below a folder."""


@dataclass(frozen=True)
class Report:
    """Summary of a report that was written.

    Attributes:
        page: the file to open.
        units: number of records in the results.
        pictures: number of picture files that were copied or linked.
        missing: number of units whose picture was missing or not the recorded one.
    """

    page: Path
    units: int
    pictures: int
    missing: int

    @property
    def summary(self) -> str:
        """The report's numbers in one line."""
        gaps = f"; {self.missing} pictures are not in the results folder, and the page says so" if self.missing else ""
        return f"{self.units} edits, {self.pictures} picture files{gaps}"


def write_report(
    results: Path,
    out: Path,
    tasks: Iterable[EditTask] = (),
    *,
    board: Document | None = None,
    link: bool = False,
    features: int = 0,
    make_features: FeaturePageWriter | None = None,
) -> Report:
    """Write the page of all runs below a results folder.

    Args:
        results: the results folder.
        out: the folder to write, new or made by an earlier call; nothing outside it is touched.
        tasks: tasks of suites that are not shipped, so that their prompts can be shown.
        board: the leaderboard, where the caller has it already.
        link: whether to share picture files with the results folder (hard links) instead of copying them.
        features: number of features of each block that get pages, those chosen most often.
        make_features: writes these pages below the folder it is given.

    Returns:
        The page's path, and counts of units and pictures.

    Raises:
        RiebenchError: if there are no results, or `out` holds something else.
    """
    groups = read_groups(results)
    if not groups:
        raise RiebenchError(f"{results} holds no runs; `riebench run` makes them")
    folder = OutputFolder(out)
    pictures = PictureCopier(folder, link)
    given = list(tasks)
    suites = dict.fromkeys(group.folders[0].spec.suite for group in groups)
    shipped = [task for suite in suites for task in _tasks(suite)]
    examples = index_examples([*shipped, *given])
    index = write_index(folder, [write_group(group, examples, pictures) for group in groups])
    if features and make_features is not None:
        make_features(folder.path / FEATURES, select_features(groups, features))
    assets = {name: folder.add("assets", name, _asset(name)) for name in ("report.css", "report.js")}
    page = render_page(
        views=[_view(group, number, out) for number, group in enumerate(groups)],
        board=board_html(leaderboard_document(results) if board is None else board),
        files={**assets, "index": index},
        pictures=(pictures.recorded, pictures.missing),
        all_features=f"{FEATURES}/index.html" if (out / FEATURES / "index.html").is_file() else None,
    )
    path = folder.finish(page)
    units = sum(len(run.records()) for group in groups for run in group.folders)
    return Report(path, units, pictures.copied, pictures.missing)


def _tasks(suite: str) -> Iterable[EditTask]:
    """Return a shipped suite's tasks; none for a suite that does not ship."""
    try:
        return load_suite(suite)
    except RiebenchError:
        return ()


def _asset(name: str) -> str:
    return (files("riebench.report") / "assets" / name).read_text(encoding="utf-8")


def _view(group: Group, number: int, out: Path) -> dict[str, Any]:
    """Collect the parts of the page that show one suite and model."""
    title = f"Trade-off of {group.suite} on {group.model}: alignment gain against LPIPS, one point per configuration"
    found = find(group)
    return {
        "name": group.name,
        "suite": group.suite,
        "model": group.model,
        "number": number,
        "findings": found,
        "maps": () if found is None else finding_maps(found, group.categories),
        "plot": trade_off(group, f"plot{number}", title),
        "response": _response(group, number),
        "blocks": block_views(group),
        "chosen": feature_views(group, out),
    }


def _response(group: Group, number: int) -> dict[str, Any] | None:
    """Return the response curves of a suite and model; None if there are none."""
    curves = read_curves(group.suite, group.model, group.folders)
    if not curves.curves:
        return None
    measures = measure_curves(curves)
    title = f"Response to the edit strength of {group.suite} on {group.model}, one panel a method configuration"
    tables = [(name, table.html(name)) for name, table in page_tables(measures).items()]
    return {
        "svg": Markup(page_drawing(measures, f"response{number}", title)),
        "rule": curves.rule.words.replace("`", ""),
        "words": reading_words(measures),
        "tables": tables,
    }

"""From a results folder to a folder one can open in a browser, put on any web server or send to somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.report.data import Group, read_groups
from riebench.report.examples import Pictures, add_group, add_index, known_examples
from riebench.report.feature_choice import FEATURES, Wanted, chosen_views, most_chosen
from riebench.report.output import OutputFolder
from riebench.report.page import board_html, board_text, render_page
from riebench.report.plots import block_views, trade_off
from riebench.tasks.schema import EditTask
from riebench.tasks.suites import load_suite

MakeFeatures = Callable[[Path, Sequence[Wanted]], None]
"""Makes pages of features below a folder."""


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the file to open.
        units: edited pictures that the results speak of.
        pictures: picture files that were brought over.
        missing: units whose picture was not there.
    """

    page: Path
    units: int
    pictures: int
    missing: int

    @property
    def summary(self) -> str:
        """One line for people."""
        gaps = f"; {self.missing} pictures are not in the results folder, and the page says so" if self.missing else ""
        return f"{self.units} edits, {self.pictures} picture files{gaps}"


def write_report(
    results: Path,
    out: Path,
    tasks: Iterable[EditTask] = (),
    *,
    board: str | None = None,
    link: bool = False,
    features: int = 0,
    make_features: MakeFeatures | None = None,
) -> Report:
    """Writes the page of everything below a results folder.

    Args:
        results: the results folder.
        out: the folder to write, new or made by an earlier call; nothing outside it is touched.
        tasks: of suites that are not shipped, so that their prompts can be shown.
        board: the leaderboard's Markdown, where the caller has it already.
        link: share picture files with the results folder (hard links) instead of copying them.
        features: how many features of each block are to have pages: those chosen most often.
        make_features: makes them below the folder it is given.

    Raises:
        RiebenchError: if there are no results, or `out` holds something else.
    """
    groups = read_groups(results)
    if not groups:
        raise RiebenchError(f"{results} holds no runs; `riebench run` makes them")
    folder = OutputFolder(out)
    pictures = Pictures(folder, link)
    given = list(tasks)
    suites = dict.fromkeys(group.folders[0].spec.suite for group in groups)
    shipped = [task for suite in suites for task in _tasks(suite)]
    examples = known_examples([*shipped, *given])
    index = add_index(folder, [add_group(group, examples, pictures) for group in groups])
    if features and make_features is not None:
        make_features(folder.path / FEATURES, most_chosen(groups, features))
    assets = {name: folder.add("assets", name, _asset(name)) for name in ("report.css", "report.js")}
    page = render_page(
        views=[_view(group, number, out) for number, group in enumerate(groups)],
        board=board_html(board_text(results) if board is None else board),
        files={**assets, "index": index},
        missing=pictures.missing,
        all_features=f"{FEATURES}/index.html" if (out / FEATURES / "index.html").is_file() else None,
    )
    path = folder.finish(page)
    units = sum(len(run.records()) for group in groups for run in group.folders)
    return Report(path, units, pictures.brought, pictures.missing)


def _tasks(suite: str) -> Iterable[EditTask]:
    """A shipped suite's tasks; none for a suite that is somebody's own."""
    try:
        return load_suite(suite)
    except RiebenchError:
        return ()


def _asset(name: str) -> str:
    return (files("riebench.report") / "assets" / name).read_text(encoding="utf-8")


def _view(group: Group, number: int, out: Path) -> dict[str, Any]:
    """What the template shows of one suite and model."""
    title = f"Trade-off of {group.suite} on {group.model}: alignment gain against LPIPS, one point per configuration"
    return {
        "name": group.name,
        "suite": group.suite,
        "model": group.model,
        "number": number,
        "plot": trade_off(group.configurations, f"plot{number}", title),
        "blocks": block_views(group),
        "chosen": chosen_views(group, out),
    }

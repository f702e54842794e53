"""Verbs that compare stored results: two methods, and models with each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riebench.cli.common import (
    ResultsOption,
    UpToDateOption,
    folders_in,
    friendly,
    refuse_remote,
    results_to_read,
    say_written,
    split_names,
)
from riebench.errors import RiebenchError, near_match
from riebench.utils.processes.collector import pause_collector
from riebench.utils.terminal import print_document

if TYPE_CHECKING:
    from riebench.store.folder import RunFolder


@friendly
def compare(
    first: Annotated[str, typer.Argument(help="A method configuration, or a group of them.")],
    second: Annotated[str, typer.Argument(help="What it is compared with.")],
    results: ResultsOption = None,
    suite: Annotated[str | None, typer.Option(help="The suite, if there are results of several.")] = None,
    model: Annotated[str | None, typer.Option(help="The model, if there are results of several.")] = None,
) -> None:
    """Compare two methods: paired difference of mean gains, by category and block set."""
    pause_collector()
    from riebench.analysis.compare import compare as compared
    from riebench.analysis.compare import comparison_text, few_levels_note

    stored = folders_in(results_to_read(results))
    folders = _folders_of(stored, suite, model)
    groups = sorted({(folder.spec.suite, folder.spec.model.name) for folder in folders or stored})
    if len(groups) != 1 or not folders:
        known = ", ".join(f"--suite {suite} --model {model}" for suite, model in groups)
        raise RiebenchError(f"one suite and model can be compared at a time; there are: {known}")
    found = compared(folders, first, second)
    print_document(comparison_text(found, first, second, few_levels_note(folders, (first, second))))


@friendly
def compare_models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RESULTS...", help="Results folders. [default: results if it holds runs, else runs]"),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            help="Only these models, with commas between; differences are to the first. [default: all there are]",
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="The suite, if there are results of several.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for models.md, models.csv and models.png.")] = Path("comparison"),
    check: UpToDateOption = False,
) -> None:
    """Put models side by side: best block by category, gain at equal LPIPS, cost.

    Reads stored results of one suite, which may lie in several folders. Refuses numbers of different scorers and
    different versions of the suite.
    """
    pause_collector()
    for folder in folders or ():
        refuse_remote(folder)
    from riebench.analysis.compare.models import ModelComparison
    from riebench.analysis.compare.side_by_side import write_side_by_side

    places = folders or [results_to_read(None)]
    stored = [run for place in dict.fromkeys(places) for run in folders_in(place)]
    groups = _groups_of_models(stored, suite, split_names(models))
    say_written(write_side_by_side(ModelComparison.of(groups), out, check=check), check)


def _groups_of_models(
    stored: list[RunFolder], suite: str | None, models: tuple[str, ...]
) -> dict[str, list[RunFolder]]:
    """Sort run folders by model, those of the first named model first.

    Raises:
        RiebenchError: if a suite or a model is not there, one is there of several kinds, or a run is there twice.
    """
    from riebench.store.folder import group_by_model

    folders = _folders_of(stored, suite, None)
    if not folders:
        known = sorted({folder.spec.suite for folder in stored})
        raise RiebenchError(f"--suite {suite!r}: no results of it{near_match(str(suite), known)}")
    groups: dict[str, list[RunFolder]] = {}
    names = list(dict.fromkeys(model for _, model in group_by_model(folders)))
    for model in dict.fromkeys(models) if models else names:
        own = _folders_of(folders, None, model) if models else [one for one in folders if one.spec.model.name == model]
        found = list(dict.fromkeys(one.spec.model.name for one in own))
        if len(found) > 1:
            raise RiebenchError(f"--models {model} stands for several: {', '.join(found)}; name one of them")
        if not found:
            raise RiebenchError(f"--models {model!r}: no results of it{near_match(model, names)}")
        groups[found[0]] = own
    for own in groups.values():
        seen: dict[tuple[str, str], Path] = {}
        for one in own:
            place = seen.setdefault((one.spec.suite, one.spec.setting.name), one.path)
            if place != one.path:
                raise RiebenchError(
                    f"{one.path} and {place} are runs of one name; leave one of the results folders out"
                )
    return groups


def _folders_of(folders: list[RunFolder], suite: str | None, model: str | None) -> list[RunFolder]:
    """Choose the runs of a suite and a model.

    Each is named as it was for `riebench run`, or as it is stored. A model's own name comes before that of its folder,
    file or hub id, and these before names that say what was changed about it, such as its steps.
    """
    from riebench.models.spec import source_name
    from riebench.tasks.suites import suite_name

    if suite is not None:
        folders = [folder for folder in folders if folder.spec.suite in (suite, suite_name(suite))]
    if model is None:
        return folders
    short = source_name(model)
    for fits in (
        lambda spec: spec.name == model,
        lambda spec: spec.name == short or spec.source == model.partition("@")[0],
        lambda spec: spec.name.startswith(f"{short}-"),
    ):
        if found := [folder for folder in folders if fits(folder.spec.model)]:
            return found
    return []

"""Makes artefacts one after the other; what is measured already is only written again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.paper.job import PaperJob
from riebench.paper.output import INDEX, write, write_index
from riebench.paper.registry import RECIPES, Recipe, find
from riebench.utils.hub import offline_mode

ALL = "all"


def chosen(names: Sequence[str]) -> list[Recipe]:
    """Recipes by name, in the order of the document; all of them for "all".

    Raises:
        RiebenchError: if one is unknown; names the nearest match.
    """
    if ALL in names:
        return list(RECIPES.values())
    wanted = {find(name).name for name in names}
    return [recipe for name, recipe in RECIPES.items() if name in wanted]


def make(job: PaperJob, names: Sequence[str]) -> list[Path]:
    """Makes artefacts and the document of all that are stored.

    Args:
        job: of what, and where to.
        names: of recipes, or "all".

    Returns:
        The documents: one for each artefact, then the index.

    Raises:
        RiebenchError: if one cannot be made; with several, after the others are.
    """
    recipes = chosen(names)
    documents, refused = [], list[str]()
    with offline_mode(job.offline):
        for recipe in recipes:
            started = time.monotonic()
            job.say(f"{recipe.name}: {recipe.paper}")
            try:
                artefact = recipe.make(job)
            except RiebenchError as error:
                if len(recipes) == 1:
                    raise
                job.say(f"{recipe.name} is not made: {error}")
                refused.append(f"{recipe.name} ({error})")
                continue
            written = write(job.out, recipe, artefact)
            documents.append(next(path for path in written if path.suffix == ".md"))
            job.say(f"{recipe.name}: done in {time.monotonic() - started:.0f} s")
    if documents:
        write_index(job.out)
        documents.append(job.out / INDEX)
    if refused:
        made = f"{len(documents) - 1} artefacts are made, " if documents else ""
        raise RiebenchError(f"{made}{len(refused)} are not: {'; '.join(refused)}")
    return documents

"""Files of the paper's artefacts: writing them and checking them.

An artefact is written as Markdown, CSV, LaTeX and figures; one document holds all artefacts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.paper.artefact import DATA, FIGURES, INDEX, TABLES, Artefact, load_artefact
from riebench.paper.job import PaperJob
from riebench.paper.registry import RECIPES, Recipe, find
from riebench.utils.files import out_of_date, write_atomic
from riebench.utils.hub import offline_mode
from riebench.utils.plots import KINDS, FigureKind, figure_bytes, new_figure, plot_style

DPI = 160
PROFILE = "profile.md"
"""The document of the published scripts' switches."""
SHOWS_SWITCHES = "trade-off"
"""The artefact that shows what the switches change."""
BESIDE = {
    "reading.md": "what the numbers say",
    PROFILE: "switches of the published scripts, and the profile `paper`",
    "sdxl.md": "the same on SDXL: commands, hours, disk",
}
"""Documents that are linked where they lie beside the index."""


def text_files(artefact: Artefact) -> dict[str, str]:
    """Return every text file of an artefact but its data: path below OUT -> content."""
    files = {f"{artefact.name}.md": artefact.markdown()}
    for table in artefact.tables:
        files[f"{TABLES}/{artefact.stem(table)}.csv"] = table.csv()
        files[f"{TABLES}/{artefact.stem(table)}.tex"] = table.latex()
    return files


def write_artefact(out: Path, recipe: Recipe, artefact: Artefact) -> list[Path]:
    """Write an artefact's data, texts and figures.

    A figure that shows these numbers already stays as it is.

    Returns:
        The files.
    """
    data = json.dumps(artefact.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    files = {f"{DATA}/{artefact.name}.json": f"{data}\n", **text_files(artefact)}
    written = [_write_if_changed(out / name, text.encode()) for name, text in files.items()]
    paths = {kind: out / FIGURES / f"{artefact.name}.{kind}" for kind in KINDS}
    if not all(_shows_numbers(path, artefact.digest) for path in paths.values()):
        for kind, content in draw_figure(recipe, artefact).items():
            _write_if_changed(paths[kind], content)
    return [*written, *paths.values()]


def write_index(out: Path) -> Path:
    """Write the one document of all stored artefacts.

    Beside it go the document of what the numbers say together and the one of the published scripts' switches.
    """
    from riebench.paper.reading import READING, reading

    text = reading(out)
    if text is None and _is_orphan(out):
        (out / READING).unlink()
    elif text is not None:
        _write_if_changed(out / READING, text.encode())
    switches = _switches(out)
    if switches is not None:
        _write_if_changed(out / PROFILE, switches.encode())
    return _write_if_changed(out / INDEX, index(out).encode())


def index(out: Path) -> str:
    """Return all stored artefacts as one document."""
    found = [artefact for name in RECIPES if (artefact := load_artefact(out, name)) is not None]
    beside = [f"- [{name}]({name}): {what}\n" for name, what in BESIDE.items() if (out / name).exists()]
    contents = [f"- [{one.title}]({one.name}.md): {RECIPES[one.name].paper}\n" for one in found]
    parts = [
        "# The paper's tables and figures\n",
        "Made by `riebench paper all`; `riebench paper --check` says whether text, tables and figures follow from the "
        "stored data. Cells: mean [95 % interval] where there is an interval. The settings below each artefact hold "
        "everything that moves a number.\n",
        "".join([*contents, *beside]),
        *(one.markdown(2) for one in found),
    ]
    return "\n".join(parts)


def check(out: Path, names: Sequence[str]) -> list[Path]:
    """Check that all written files are what the stored data give.

    Args:
        out: where they are.
        names: artefacts to look at; those not stored are left out.

    Returns:
        The files, all of them up to date.

    Raises:
        RiebenchError: if nothing is stored, or naming the first file that is missing or out of date.
    """
    checked = []
    found = [artefact for name in names if (artefact := load_artefact(out, name)) is not None]
    if not found:
        raise RiebenchError(f"{out} holds no stored artefact; `riebench paper all --out {out}` makes them")
    for artefact in found:
        for name, text in text_files(artefact).items():
            _check_file(out / name, text, out)
            checked.append(out / name)
        for path in (out / FIGURES / f"{artefact.name}.{kind}" for kind in KINDS):
            if not _shows_numbers(path, artefact.digest):
                raise _stale_error(path, out)
            checked.append(path)
    from riebench.paper.reading import READING, reading

    together = reading(out)
    if together is not None:
        _check_file(out / READING, together, out)
        checked.append(out / READING)
    elif _is_orphan(out):
        raise _stale_error(out / READING, out)
    switches = _switches(out)
    if switches is not None:
        _check_file(out / PROFILE, switches, out)
        checked.append(out / PROFILE)
    _check_file(out / INDEX, index(out), out)
    return [*checked, out / INDEX]


def _switches(out: Path) -> str | None:
    """Return the document of the published scripts' switches.

    None if nothing stored shows what they change.
    """
    from riebench.paper.published import profile_text

    return None if load_artefact(out, SHOWS_SWITCHES) is None else profile_text()


def _is_orphan(out: Path) -> bool:
    """Check for a reading whose data have gone since.

    It cannot be known whether such a reading still holds.
    """
    from riebench.paper.reading import HEADING, READING

    path = out / READING
    return path.exists() and path.read_bytes().startswith(HEADING.encode())


def _check_file(path: Path, text: str, out: Path) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        raise _stale_error(path, out)


def _stale_error(path: Path, out: Path) -> RiebenchError:
    return out_of_date(path, f"riebench paper all --out {out}")


def draw_figure(recipe: Recipe, artefact: Artefact) -> dict[FigureKind, bytes]:
    """Draw the figure in each format; the same numbers give the same bytes."""
    with plot_style():
        figure = new_figure()
        recipe.draw(figure, artefact)
        return {kind: figure_bytes(figure, kind, dpi=DPI, digest=artefact.digest) for kind in KINDS}


def _shows_numbers(path: Path, digest: str) -> bool:
    """Check that a figure's file is there and holds the hash of these numbers."""
    return path.exists() and digest.encode() in path.read_bytes()


def _write_if_changed(path: Path, data: bytes) -> Path:
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)
    return path


ALL = "all"


def select_recipes(names: Sequence[str]) -> list[Recipe]:
    """Return recipes by name in the document's order; all of them for "all".

    Raises:
        RiebenchError: if one is unknown; names the nearest match.
    """
    if ALL in names:
        return list(RECIPES.values())
    wanted = {find(name).name for name in names}
    return [recipe for name, recipe in RECIPES.items() if name in wanted]


def make_artefacts(job: PaperJob, names: Sequence[str]) -> list[Path]:
    """Make artefacts and the document of all that are stored.

    Args:
        job: of what, and where to.
        names: of recipes, or "all".

    Returns:
        The documents: one for each artefact, then the index.

    Raises:
        RiebenchError: if one cannot be made; with several, after the others are.
    """
    recipes = select_recipes(names)
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
            written = write_artefact(job.out, recipe, artefact)
            documents.append(next(path for path in written if path.suffix == ".md"))
            job.say(f"{recipe.name}: done in {time.monotonic() - started:.0f} s")
    if documents:
        write_index(job.out)
        documents.append(job.out / INDEX)
    if refused:
        made = f"{len(documents) - 1} artefacts are made, " if documents else ""
        raise RiebenchError(f"{made}{len(refused)} are not: {'; '.join(refused)}")
    return documents

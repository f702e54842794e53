"""Writes artefacts for everybody: Markdown, CSV, LaTeX, figures, and one document of all; checks what is written."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riebench.analysis.figures import STYLE
from riebench.errors import RiebenchError
from riebench.paper.artefact import DATA, FIGURES, INDEX, TABLES, Artefact, load_artefact
from riebench.paper.job import PaperJob
from riebench.paper.registry import RECIPES, Recipe, find
from riebench.utils.files import write_atomic
from riebench.utils.hub import offline_mode

KINDS = ("svg", "png")
DPI = 160
DIGEST_KEY = "riebench-numbers"
"""Text chunk of a PNG that holds the hash of its numbers; an SVG holds it in its description."""
BESIDE = {
    "reading.md": "what the numbers say",
    "profile.md": "switches of the published scripts, and the profile `paper`",
    "sdxl.md": "the same on SDXL: commands, hours, disk",
}
"""Documents that are linked where they lie beside the index."""


def texts(artefact: Artefact) -> dict[str, str]:
    """Every text file of an artefact but its data: path below OUT -> content."""
    files = {f"{artefact.name}.md": artefact.markdown()}
    for table in artefact.tables:
        files[f"{TABLES}/{artefact.stem(table)}.csv"] = table.csv()
        files[f"{TABLES}/{artefact.stem(table)}.tex"] = table.latex()
    return files


def write(out: Path, recipe: Recipe, artefact: Artefact) -> list[Path]:
    """Writes an artefact: data, texts, figures; a figure that shows these numbers already stays.

    Returns:
        The files.
    """
    data = json.dumps(artefact.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    files = {f"{DATA}/{artefact.name}.json": f"{data}\n", **texts(artefact)}
    written = [_put(out / name, text.encode()) for name, text in files.items()]
    paths = {kind: out / FIGURES / f"{artefact.name}.{kind}" for kind in KINDS}
    if not all(_drawn_from(path, artefact.digest) for path in paths.values()):
        for kind, content in drawn(recipe, artefact).items():
            _put(paths[kind], content)
    return [*written, *paths.values()]


def write_index(out: Path) -> Path:
    """Writes the one document of everything that is stored, and beside it what the numbers say together."""
    from riebench.paper.reading import READING, reading

    text = reading(out)
    if text is None and _is_left_over(out):
        (out / READING).unlink()
    elif text is not None:
        _put(out / READING, text.encode())
    return _put(out / INDEX, index(out).encode())


def index(out: Path) -> str:
    """All stored artefacts as one document."""
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
    """Compares all written files with what the stored data give.

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
        for name, text in texts(artefact).items():
            _compare(out / name, text, out)
            checked.append(out / name)
        for path in (out / FIGURES / f"{artefact.name}.{kind}" for kind in KINDS):
            if not _drawn_from(path, artefact.digest):
                raise _old(path, out)
            checked.append(path)
    from riebench.paper.reading import READING, reading

    together = reading(out)
    if together is not None:
        _compare(out / READING, together, out)
        checked.append(out / READING)
    elif _is_left_over(out):
        raise _old(out / READING, out)
    _compare(out / INDEX, index(out), out)
    return [*checked, out / INDEX]


def _is_left_over(out: Path) -> bool:
    """Whether there is a reading, made from data that have gone since: nobody can say whether it still holds."""
    from riebench.paper.reading import HEADING, READING

    path = out / READING
    return path.exists() and path.read_bytes().startswith(HEADING.encode())


def _compare(path: Path, text: str, out: Path) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        raise _old(path, out)


def _old(path: Path, out: Path) -> RiebenchError:
    return RiebenchError(f"{path} is out of date; run `riebench paper all --out {out}` and commit it")


def drawn(recipe: Recipe, artefact: Artefact) -> dict[str, bytes]:
    """The figure in each format; the same numbers give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        # A user's own style file must not move a pixel.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        recipe.draw(figure, artefact)
        return {kind: _saved(figure, kind, artefact.digest) for kind in KINDS}


def _saved(figure: Any, kind: str, digest: str) -> bytes:
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None, DIGEST_KEY: digest}
    if kind == "svg":
        metadata = {"Date": None, "Creator": None, "Description": f"{DIGEST_KEY} {digest}"}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _drawn_from(path: Path, digest: str) -> bool:
    return path.exists() and digest.encode() in path.read_bytes()


def _put(path: Path, data: bytes) -> Path:
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)
    return path


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

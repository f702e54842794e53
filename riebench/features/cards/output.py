"""Files of cards and of comparisons of training seeds.

`card_files` and `stability_files` return file names with their content, `write_files` writes them. The same numbers
give the same bytes with the same matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from riebench.errors import RiebenchError
from riebench.features.cards.card import SaeCard
from riebench.features.cards.card_text import CARD_COMMAND, card_text
from riebench.features.cards.evidence import README
from riebench.features.cards.plots import DENSITY_PLOT, STABILITY_PLOT, density_figure, stability_figure
from riebench.features.cards.stability import StabilityReport
from riebench.features.cards.stability_text import MARK, STABILITY_COMMAND, stability_text
from riebench.utils.files import write_atomic
from riebench.utils.plots import KINDS, figure_bytes, plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CARD_DATA = "card.json"
STABILITY, STABILITY_DATA = "stability.md", "stability.json"
CARD_NAMES = (README, CARD_DATA, *(f"{name}.{kind}" for name in (DENSITY_PLOT, STABILITY_PLOT) for kind in KINDS))
STABILITY_NAMES = (STABILITY, STABILITY_DATA, *(f"{STABILITY_PLOT}.{kind}" for kind in KINDS))
"""Names of all files that are written; the first is the Markdown file."""


def check_card_folder(folder: Path) -> None:
    """Refuse a folder for a card that has other files of its names."""
    _check_folder(folder, CARD_NAMES, CARD_COMMAND)


def check_stability_folder(folder: Path) -> None:
    """Refuse a folder for a comparison that has other files of its names."""
    _check_folder(folder, STABILITY_NAMES, STABILITY_COMMAND)


def _check_folder(folder: Path, names: Iterable[str], command: str) -> None:
    """Refuse a folder with a file that the command did not write.

    Args:
        folder: may be absent.
        names: of the files that may be written, the Markdown file first: its comment says what made it.
        command: that makes them.

    Raises:
        RiebenchError: naming the file.
    """
    if folder.exists() and not folder.is_dir():
        raise RiebenchError(f"--out {folder}: there is a file of that name; name a folder")
    there = [folder / name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if not there or f"<!-- {MARK.format(command)} -->" in _text(there[0]):
        return
    raise RiebenchError(f"{there[0]} was not written by `{command}` and is kept; use another --out")


def _text(path: Path) -> str:
    try:
        return "" if path.is_symlink() else path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made if absent."""
    for name, content in files.items():
        write_atomic(folder / name, content)


def card_files(card: SaeCard) -> dict[str, bytes]:
    """Return the files of a card: README.md, card.json and the plots."""
    files = {README: card_text(card).encode(), CARD_DATA: (card.model_dump_json(indent=2) + "\n").encode()}
    with plot_style():
        files |= _figure_files(DENSITY_PLOT, density_figure(card))
        return files | (_figure_files(STABILITY_PLOT, stability_figure(card.stability)) if card.stability else {})


def stability_files(report: StabilityReport) -> dict[str, bytes]:
    """Return the files of a comparison of training seeds."""
    data = (report.model_dump_json(indent=2) + "\n").encode()
    with plot_style():
        figures = _figure_files(STABILITY_PLOT, stability_figure(report.blocks))
    return {STABILITY: stability_text(report).encode(), STABILITY_DATA: data, **figures}


def _figure_files(name: str, figure: Figure) -> dict[str, bytes]:
    return {f"{name}.{kind}": figure_bytes(figure, kind) for kind in KINDS}

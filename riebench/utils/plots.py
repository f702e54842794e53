"""The one style of matplotlib figures, and the bytes of their files.

The same numbers give the same bytes: identifiers are salted with a fixed text, and neither a date nor a software
version is written, so another version of matplotlib is all that can change a file. matplotlib takes a second to import
and is imported only where it is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from riebench.errors import RiebenchError
from riebench.utils.images import STORED_FORMATS, SVG, decode_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Style = Mapping[str, Any]
"""Setting of matplotlib -> value."""
FigureKind = Literal["svg", "png"]
KINDS: tuple[FigureKind, ...] = ("svg", "png")

STYLE: Style = {
    "svg.hashsalt": "riebench", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "savefig.facecolor": "white",
}  # fmt: skip
"""The style of all figures."""
PAGE_INK = "#010203"
"""Stands for the page's own text colour while matplotlib draws; no series has it."""
PAGE_STYLE: Style = {
    "svg.fonttype": "none", "font.family": "sans-serif", "text.color": PAGE_INK, "axes.labelcolor": PAGE_INK,
    "axes.edgecolor": PAGE_INK, "xtick.color": PAGE_INK, "ytick.color": PAGE_INK,
}  # fmt: skip
"""What differs for a figure inside an HTML page: text stays text, and colours follow the page."""
DPI = 200
DASHES = ("-", "--", ":", "-.")
CYCLE_COLORS = 10
"""Colours of matplotlib's usual cycle; with the dashes they tell 40 series apart."""
PAGE_COLORS = (
    "#2f7ed8", "#d9541e", "#2a9458", "#a05fd0", "#ac7d0c", "#d64a86", "#1590a0", "#7a7f2a", "#96654d", "#6b7a99",
)  # fmt: skip
"""Colours of series in a page; each has a contrast of at least 3:1 against the page in light and in dark."""
DIGEST_KEY = "riebench-numbers"
"""Text chunk of a PNG that holds the hash of its numbers; an SVG holds it in its description."""
XLINK = "http://www.w3.org/1999/xlink"


@contextmanager
def plot_style(changes: Style | None = None) -> Iterator[None]:
    """Apply the common style while figures are made, drawn and saved.

    Args:
        changes: settings that differ for these figures.
    """
    import matplotlib

    settings: dict[Any, Any] = {**STYLE, **(changes or {})}
    with matplotlib.rc_context():
        # A user's own style file must not move a pixel.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def new_figure(size: tuple[float, float] | None = None) -> Figure:
    """Return an empty figure whose layout keeps labels apart.

    Args:
        size: width and height in inches; None for one that is set later.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def series_look(index: int) -> dict[str, Any]:
    """Return the colour and dash of a line among others, as arguments of matplotlib."""
    return {"color": f"C{index % CYCLE_COLORS}", "linestyle": DASHES[index // CYCLE_COLORS % len(DASHES)]}


def page_color(index: int) -> str:
    """Return the colour of a series in a page, by its position."""
    return PAGE_COLORS[index % len(PAGE_COLORS)]


def figure_bytes(figure: Figure, kind: FigureKind, *, dpi: int = DPI, digest: str = "") -> bytes:
    """Return a figure's file.

    Args:
        figure: a finished figure; its style must still be applied.
        kind: "svg" or "png".
        dpi: pixels per inch of a PNG, and of what an SVG holds as pixels.
        digest: hash of the numbers that the figure shows, stored in the file; "" for none.
    """
    metadata: dict[str, Any]
    if kind == "svg":
        metadata = {"Date": None, "Creator": None, **({"Description": f"{DIGEST_KEY} {digest}"} if digest else {})}
    else:
        metadata = {"Software": None, **({DIGEST_KEY: digest} if digest else {})}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def png_digest(data: bytes) -> str | None:
    """Return the hash of the numbers that a stored PNG shows.

    It is None if the file holds none or is no picture.
    """
    try:
        with decode_image(data, STORED_FORMATS) as image:
            found = image.info.get(DIGEST_KEY)
    except RiebenchError:
        return None
    return found if isinstance(found, str) else None


def page_svg_root(figure: Figure) -> ElementTree.Element:
    """Return a figure of `PAGE_STYLE` as an SVG element that fits into a page.

    Args:
        figure: a finished figure; its style must still be applied.

    Returns:
        The element without metadata and fixed size, of the class "plot" and the role "img".
    """
    for axes in figure.axes:
        axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(figure_bytes(figure, "svg"))
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for side in ("width", "height"):
        root.attrib.pop(side, None)
    root.attrib |= {"role": "img", "class": "plot"}
    return root


def page_svg_text(root: ElementTree.Element) -> str:
    """Return an SVG element as text, drawn in the page's own text colour."""
    return ElementTree.tostring(root, encoding="unicode").replace(PAGE_INK, "currentColor")

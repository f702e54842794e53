"""Forms in which a notebook shows objects: escaped HTML, and pictures inside it."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterable, Sequence

from markupsafe import Markup
from PIL import Image

from riebench.errors import one_line

SMALLEST_SIDE = 160
"""Pixels of the side at which a picture is shown at least; smaller ones are enlarged pixel by pixel."""


LABEL_WIDTH = 16
"""Characters of a line beside a row of pictures."""


def wrapped(*words: str) -> str:
    """Return words as the label of a row of pictures, broken into short lines."""
    return "\n".join(line for one in words for line in textwrap.wrap(one_line(one), LABEL_WIDTH))


def png_bytes(picture: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def picture_row(pictures: Sequence[tuple[str, Image.Image]]) -> Markup:
    """Return pictures side by side, each with its caption below.

    Args:
        pictures: caption and picture.
    """
    figures = Markup("").join(
        Markup(
            '<figure style="display:inline-block;margin:4px;vertical-align:top;width:{0}px">'
            '<img alt="{1}" width="{0}" style="image-rendering:{2}" src="data:image/png;base64,{3}">'
            "<figcaption>{1}</figcaption></figure>"
        ).format(
            max(SMALLEST_SIDE, picture.width), one_line(caption),
            "pixelated" if picture.width < SMALLEST_SIDE else "auto", base64.b64encode(png_bytes(picture)).decode(),
        )
        for caption, picture in pictures
    )  # fmt: skip
    return Markup("<div>{}</div>").format(figures)


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table with a title above it."""
    head = Markup("").join(Markup("<th>{}</th>").format(cell) for cell in header)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(one_line(str(c))) for c in row))
        for row in rows
    )
    return Markup("<p>{}</p><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        one_line(title), head, body
    )


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table of plain text, its columns aligned."""
    lines = [list(header), *([one_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip

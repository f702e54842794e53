"""Marked parts of Markdown documents, filled from stored tables and results."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from riebench.analysis.compare import check_claims, contrast_part
from riebench.errors import RiebenchError
from riebench.scoring.profiles import metric_format
from riebench.utils.files import out_of_date, write_atomic
from riebench.utils.markup import (
    csv_rows,
    markdown_table,
)

PART = re.compile(r"(<!-- table: (\S+) metric=(\S+) settings=(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""A part of a document: an opening mark with its options, the content, and the end mark."""
CONTRAST = re.compile(r"(<!-- contrast: (\S+) metric=(\S+) first=(\S+) second=(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Likewise, a part with sentences on how two configurations differ."""
TABLE_MARK, CONTRAST_MARK = "<!-- table:", "<!-- contrast:"


def table_part(file: Path, metric: str, settings: list[str]) -> str:
    """Return one metric of some configurations as a Markdown table of means.

    Args:
        file: a `per_block.csv`.
        metric: which metric.
        settings: names, with `@STRENGTH` behind one to take a strength other than its first.

    Raises:
        RiebenchError: if the file, the metric or a setting is missing.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv_rows(stream) if row.get("metric") == metric]
    except OSError as error:
        raise RiebenchError(f"{file} cannot be read ({error.strerror}); run `riebench tables` first") from error
    categories = list(dict.fromkeys(row["category"] for row in rows))
    lines = []
    for setting in settings:
        name, _, strength = setting.partition("@")
        mine = [row for row in rows if row["setting"] == name]
        if not mine:
            raise RiebenchError(f"{file} has no {metric} of the configuration {name!r}")
        strength = strength or mine[0]["strength"]
        for blocks in dict.fromkeys(row["block_set"] for row in mine):
            means = {r["category"]: r["mean"] for r in mine if (r["block_set"], r["strength"]) == (blocks, strength)}
            cells = [metric_format(metric).number(float(means[c])) if means.get(c) else "–" for c in categories]
            lines.append([name if strength == mine[0]["strength"] else f"{name} x{strength}", blocks, *cells])
    return markdown_table(
        ["configuration", "blocks", *(c.removeprefix("change_").replace("_", " ") for c in categories)], lines
    )


def fill_document(document: Path, *, check: bool = False) -> None:
    """Update the marked parts of a document from the stored tables and results.

    Parts are tables of means (`table_part`) and sentences on how two configurations differ
    (`riebench.analysis.compare`). A document with such sentences has claims of their kind nowhere else.

    Args:
        document: the Markdown file.
        check: only looks.

    Raises:
        RiebenchError: with `check`, if the document is out of date; if it cannot be read, has no part, names what is
            not there, or claims a difference outside its parts.
    """

    def table_text(match: re.Match[str]) -> str:
        return table_part(document.parent / match[2], match[3], match[4].split(","))

    def contrast_text(match: re.Match[str]) -> str:
        return contrast_part(document.parent / match[2], match[3], match[4], match[5])

    text = document.read_text(encoding="utf-8", errors="replace") if document.exists() else ""
    command = f"riebench tables --document {document}"
    if CONTRAST_MARK in text:
        check_claims(str(document), text, (PART, CONTRAST))
        fill_parts(document, CONTRAST, contrast_text, mark=CONTRAST_MARK, command=command, check=check)
    if TABLE_MARK in text or CONTRAST_MARK not in text:
        fill_parts(document, PART, table_text, mark=TABLE_MARK, command=command, check=check)


def fill_parts(
    document: Path,
    part: re.Pattern[str],
    part_text: Callable[[re.Match[str]], str],
    *,
    mark: str,
    command: str,
    check: bool = False,
) -> None:
    """Update some marked parts of a document.

    Args:
        document: the Markdown file.
        part: a whole part, from mark to mark; its first group is the opening mark, its last one the closing mark.
        part_text: the text between the marks of a part.
        mark: how every opening mark begins; one that begins no whole part is an error, or it would never be filled.
        command: what brings the document up to date.
        check: only looks.

    Raises:
        RiebenchError: with `check`, if the document is out of date; if it cannot be read or has no part; if a mark in
            it is not one; whatever `part_text` raises.
    """
    try:
        before = document.read_text(encoding="utf-8")
    except OSError as error:
        raise RiebenchError(f"{document} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RiebenchError(f"{document} cannot be read (byte {error.start} is no UTF-8 text)") from error
    _check_marks(document, before, part, mark)

    def whole(match: re.Match[str]) -> str:
        return f"{match[1]}\n{part_text(match).strip()}\n\n{match[match.re.groups]}"

    after = part.sub(whole, before)
    if check and after != before:
        raise out_of_date(document, command)
    if after != before:
        write_atomic(document, after.encode())


def _check_marks(document: Path, text: str, part: re.Pattern[str], mark: str) -> None:
    """Check that a document has marks and that each of them begins a whole part."""
    if mark not in text:
        raise RiebenchError(f"{document} has no part to fill; write `{mark} ... -->` and `<!-- end -->` in it")
    whole = {match.start() for match in part.finditer(text)}
    for found in re.finditer(re.escape(mark), text):
        if found.start() not in whole:
            line = text.count("\n", 0, found.start()) + 1
            raise RiebenchError(
                f"{document}, line {line}: this mark is not written as it should be, or the part before it has no "
                "`<!-- end -->`"
            )

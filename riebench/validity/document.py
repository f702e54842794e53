"""docs/validity.md: written words around generated tables and figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from riebench.documents import fill_parts
from riebench.errors import RiebenchError, near_match
from riebench.store.folder import RunFolder
from riebench.utils.files import file_inside, write_atomic
from riebench.utils.markup import plain
from riebench.validity.findings import Findings
from riebench.validity.parts import PARTS
from riebench.validity.plots import DRAWINGS, drawn_from
from riebench.validity.units import grounds

PART = re.compile(r"(<!-- validity: (\w+)((?: \w+=\w+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = "figure"
IMAGES = "images"

TEMPLATE = """# Do the scores tell the truth?

<!-- validity: about -->
<!-- end -->

<!-- validity: figure name=trust -->
<!-- end -->

<!-- validity: verdicts -->
<!-- end -->

<!-- validity: signs -->
<!-- end -->

<!-- validity: paired -->
<!-- end -->

<!-- validity: figure name=ranks -->
<!-- end -->

<!-- validity: ranking -->
<!-- end -->

<!-- validity: agreement -->
<!-- end -->
"""
"""What a document that is not there yet begins as."""


def fill_validity(folders: Sequence[RunFolder], document: Path, *, check: bool = False) -> list[Path]:
    """Brings the document and its figures up to date with the stored scores.

    Args:
        folders: all run folders.
        document: the Markdown file; one that is not there is begun. Figures go to `images/` beside it.
        check: only looks.

    Returns:
        The document and its figures.

    Raises:
        RiebenchError: if no picture has a verdict; with `check`, if something is out of date; if a part is unknown.
    """
    known, unknown = grounds(folders)
    if not known:
        raise RiebenchError(
            "no edited picture has a verdict: the truth is known on the toy world alone; `riebench run` makes and "
            "judges its pictures"
        )
    command = f"riebench validity --out {document}"
    if not document.exists():
        if check:
            raise RiebenchError(f"{document} is missing; run `{command}` and commit it")
        write_atomic(document, TEMPLATE.encode())
    everything = [Findings(one) for one in known]
    figures: dict[Path, tuple[Findings, str]] = {}

    def made(match: re.Match[str]) -> str:
        options = dict(pair.split("=") for pair in match[3].split())
        parts = []
        for findings in everything:
            if len(everything) > 1:
                parts.append(f"**{findings.ground.suite} on {plain(findings.ground.model)}**\n")
            parts.append(_part(match[2], options, findings, document, figures))
        if match[2] == "about":
            parts += [
                f"{suite} on {plain(model)}: no verdicts, so nothing is said about it.\n" for suite, model in unknown
            ]
        return "\n".join(parts)

    fill_parts(document, PART, made, mark="<!-- validity:", command=command, check=check)
    for path, (findings, name) in figures.items():
        _figure(path, findings, name, command, check)
    return [document, *figures]


def _part(
    name: str, options: dict[str, str], findings: Findings, document: Path, figures: dict[Path, tuple[Findings, str]]
) -> str:
    if name in PARTS:
        return PARTS[name](findings, options)
    if name != FIGURE:
        raise RiebenchError(f"{document}: no validity part {name!r}{near_match(name, [*PARTS, FIGURE])}")
    which = options.get("name", "")
    if which not in DRAWINGS:
        raise RiebenchError(f"{document}: no validity figure {which!r}{near_match(which, DRAWINGS)}")
    file = f"{document.stem}-{which}-{findings.place}.png"
    path = file_inside(document.parent / IMAGES, file, "the name of a figure", f"the folder {IMAGES}")
    figures[path] = (findings, which)
    return f"![{DRAWINGS[which](findings).alt}]({quote(f'{IMAGES}/{file}')})\n"


def _figure(path: Path, findings: Findings, name: str, command: str, check: bool) -> None:
    drawing = DRAWINGS[name](findings)
    there = path.read_bytes() if path.exists() else b""
    if check:
        if drawn_from(there) != drawing.digest:
            raise RiebenchError(f"{path} is out of date; run `{command}` and commit it")
        return
    data = drawing.png()
    if data != there:
        write_atomic(path, data)

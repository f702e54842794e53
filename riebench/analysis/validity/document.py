"""The generated parts of docs/validity.md: tables and figures.

Each part is written for every suite and model whose truth is known.

A part begins with `<!-- validity: NAME key=value ... -->` and ends with `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.standings import GAIN
from riebench.analysis.tables import fill_parts
from riebench.analysis.validity.agreement import SIGNED, PairedRow, SignRow, pair_agreement, sign_rates
from riebench.analysis.validity.conclusions import conclusions
from riebench.analysis.validity.findings import INTENDED_TRUTHS, Findings, Table, truth_name
from riebench.analysis.validity.plots import FIGURE_PLANS
from riebench.analysis.validity.ranking import AREA, AREA_SUCCESS, AREA_TARGET, AT_CHOICE, COMPARED, CONFIRMED, Ranking
from riebench.analysis.validity.units import KEPT, SCORES, SUCCESS, TARGET, TRUTHS, Cell, split_by_verdicts, unit_counts
from riebench.errors import RiebenchError, near_match
from riebench.store.folder import RunFolder
from riebench.utils.files import file_inside, write_atomic
from riebench.utils.markup import code_span, escape_markdown, markdown_table

NONE = "–"
Floats = NDArray[np.float64]
Options = Mapping[str, str]
Maker = Callable[[Findings, Options], str]

PART = re.compile(r"(<!-- validity: (\w+)((?: \w+=\w+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = "figure"
IMAGES = "images"

HEADINGS = {
    AREA: "mean gain over LPIPS budgets x100", AREA_SUCCESS: "success over LPIPS budgets x100",
    AREA_TARGET: "target over LPIPS budgets x100", AT_CHOICE: "success x100 where the gain chose",
    CONFIRMED: "what both scorers confirm %",
    TARGET: "target %", KEPT: "kept %", SUCCESS: "success %",
}  # fmt: skip
"""Column of the ranking -> its heading; scores keep their names."""
SCALES = {"clip_direction": (1.0, 2), "lpips": (1.0, 3), "lpips_bg": (1.0, 3)}
"""Column -> factor and decimals, if not 100 and 2."""


def read_option(options: Options, key: str, known: Sequence[str], usual: str) -> str:
    """Return an option of a part.

    Raises:
        RiebenchError: if it is none of the known ones.
    """
    found = options.get(key, usual)
    if found not in known:
        raise RiebenchError(f"validity part: {key}={found}{near_match(found, known)}; known: {', '.join(known)}")
    return found


def about_text(findings: Findings, options: Options) -> str:
    """Return the paragraph on the pictures that were examined."""
    judged = findings.judged
    n = unit_counts(judged)
    units = judged.units
    drawn = "examples" if units.examples.ids == units.examples.clusters else "clusters of examples"
    text = (
        f"{n['pictures']} edited pictures with a verdict, by {n['methods']} methods, of {n['examples']} examples in "
        f"{n['categories']} categories, {n['seeds']} {'seed' if n['seeds'] == 1 else 'seeds'} each. Intervals: 95 %, "
        f"percentile bootstrap over {drawn} inside categories, {units.replicates} replicates, seed "
        f"{units.generator_seed}.\n"
    )
    for name, reason in sorted(judged.left_out.items()):
        text += f"\n{code_span(name)} is left out: {escape_markdown(reason)}.\n"
    return text


def conclusion_list(findings: Findings, _: Options) -> str:
    """List what the scores of methods can tell."""
    return "".join(f"- {line}\n" for line in conclusions(findings))


def _truth_and_rows(findings: Findings, options: Options) -> tuple[str, str]:
    """Return the truth and the kind of rows that a part asks for."""
    truth = TRUTHS[read_option(options, "truth", tuple(TRUTHS), "success")]
    return truth, read_option(options, "by", ("category", "method"), "category")


def preference_table(findings: Findings, options: Options) -> str:
    """Tabulate the share of pairs in which the better picture scores higher."""
    truth, by = _truth_and_rows(findings, options)
    return _score_table(findings.preference(truth, by), by)


def correlation_table(findings: Findings, options: Options) -> str:
    """Tabulate Kendall's tau-b between scores and a truth."""
    truth, by = _truth_and_rows(findings, options)
    return _score_table(findings.correlation(truth, by), by)


def _score_table(table: Table, by: str) -> str:
    rows = []
    for name, cells in table.items():
        most = max(cell.n for cell in cells.values())
        rows.append([name, str(most), *(_cell_with_count(cell, most) for cell in cells.values())])
    return markdown_table([by, "pictures", *next(iter(table.values()))], rows)


def _cell_with_count(cell: Cell, most: int) -> str:
    """Return a cell, with its number of pictures where that is not the row's."""
    return cell.text() if cell.n in (0, most) else f"{cell.text()} n {cell.n}"


def verdict_table(findings: Findings, options: Options) -> str:
    """Tabulate the categories in which each score can be trusted for each truth."""
    rows = []
    for score in findings.judged.units.scores:
        for truth in TRUTHS.values():
            found = findings.verdicts(score, truth)
            kinds = (found.right, found.unclear, found.wrong, found.undefined)
            whole = findings.preference(truth)[EVERYTHING][score].text()
            meant = "yes" if truth in INTENDED_TRUTHS[score] else "no"
            rows.append([score, truth_name(truth), meant, whole, *(_category_list(kind) for kind in kinds)])
    header = ["score", "truth", "meant for it", "all", "better than chance", "unclear", "worse than chance", "no value"]
    return markdown_table(header, rows)


def _category_list(categories: Sequence[str]) -> str:
    names = ", ".join(name.removeprefix("change_").replace("_", " ") for name in categories)
    return f"{len(categories)}: {names}" if categories else NONE


def sign_table(findings: Findings, options: Options) -> str:
    """Tabulate how the sign of a score agrees with the target."""
    units = findings.judged.units
    by = read_option(options, "by", ("category", "method", "score"), "category")
    if by == "score":
        rows = {score: sign_rates(units, score)[EVERYTHING] for score in SIGNED}
    elif by == "method":
        rows = {name: sign_rates(units, GAIN, units.of_method(name))[EVERYTHING] for name in units.methods}
    else:
        rows = sign_rates(units, read_option(options, "score", SIGNED, GAIN))
    header = [by, "pictures", "target there", "sign right", "score 0", "no target, yet above 0", "target, yet below 0"]
    return markdown_table(header, [_sign_row(name, row) for name, row in rows.items()])


def _sign_row(name: str, row: SignRow) -> list[str]:
    cells = (row.reached, row.agree, row.ties, row.false, row.missed)
    return [name, str(row.reached.n), *(cell.text(100, 0) for cell in cells)]


def paired_table(findings: Findings, options: Options) -> str:
    """Tabulate how the difference of two methods on one example agrees with truth."""
    units = findings.judged.units
    found: dict[tuple[str, ...], PairedRow]
    if read_option(options, "by", ("score", "category"), "score") == "category":
        score = read_option(options, "score", units.scores, GAIN)
        truth = read_option(options, "truth", tuple(TRUTHS), "success")
        found = {(name,): row for name, row in pair_agreement(units, score, TRUTHS[truth]).items()}
        labels = ["category"]
    else:
        pairs = [(score, called) for score in units.scores for called in TRUTHS]
        found = {(score, called): pair_agreement(units, score, TRUTHS[called])[EVERYTHING] for score, called in pairs}
        labels = ["score", "truth"]
    rows = [
        [*name, str(row.undecided.n), *(cell.text(100, 0) for cell in (row.agree, row.level, row.undecided))]
        for name, row in found.items()
    ]
    return markdown_table([*labels, "pairs", "sign right", "scores alike", "truth alike"], rows)


def ranking_table(findings: Findings, options: Options) -> str:
    """Tabulate methods with their numbers and ranks."""
    kind = read_option(options, "of", ("areas", "means"), "areas")
    columns = (
        (CONFIRMED, AREA, AREA_SUCCESS, AT_CHOICE, AREA_TARGET) if kind == "areas" else (*SCORES, TARGET, KEPT, SUCCESS)
    )
    found = findings.ranking
    rows = [
        [name, str(found.levels[index]), *(_number_with_rank(found, column, index) for column in columns)]
        for index, name in enumerate(found.methods)
    ]
    text = markdown_table(
        ["method", "edit strengths tested", *(HEADINGS.get(column, column) for column in columns)], rows
    )
    for name, reason in sorted(found.left_out.items()):
        text += f"\n{code_span(name)} is not ranked: {escape_markdown(reason)}.\n"
    return text


def _number_with_rank(found: Ranking, column: str, index: int) -> str:
    values, ranks = found.columns[column], found.ranks(column)
    if values is None or ranks is None:
        return NONE
    scale, decimals = SCALES.get(column, (100.0, 2 if column in (AREA, *SCORES) else 0))
    # Distances are printed as they are stored, not as they were turned for ranking.
    value = SCORES.get(column, 1) * values[0, index] * scale
    return f"{round(float(value), decimals) + 0.0:.{decimals}f} ({ranks[index]:g})"


def agreement_table(findings: Findings, options: Options) -> str:
    """Tabulate Kendall's tau-b between rankings of methods."""
    found = findings.ranking
    rows = [
        [_mean(score), _mean(truth), str(len(found.methods)), found.agreement(score, truth).text()]
        for score, truth in COMPARED
    ]
    return markdown_table(["ranked by", "truly ranked by", "methods", "tau"], rows)


def _mean(column: str) -> str:
    if column in (CONFIRMED, AREA, AREA_SUCCESS, AREA_TARGET):
        return HEADINGS[column].removesuffix(" x100").removesuffix(" %")
    return f"mean {HEADINGS.get(column, column).removesuffix(' %')}"


PARTS: Mapping[str, Maker] = {
    "about": about_text,
    "conclusions": conclusion_list,
    "preferred": preference_table,
    "correlation": correlation_table,
    "verdicts": verdict_table,
    "signs": sign_table,
    "paired": paired_table,
    "ranking": ranking_table,
    "agreement": agreement_table,
}
"""Name of a part -> what makes it."""


TEMPLATE = """# Do the scores tell the truth?

<!-- validity: about -->
<!-- end -->

<!-- validity: conclusions -->
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
    """Update the document and its figures from the stored scores.

    Args:
        folders: all run folders.
        document: the Markdown file; one that is not there is begun. Figures go to `images/` beside it.
        check: only looks.

    Returns:
        The document and its figures.

    Raises:
        RiebenchError: if no picture has a verdict; with `check`, if something is out of date; if a part is unknown.
    """
    known, unknown = split_by_verdicts(folders)
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

    def part_text(match: re.Match[str]) -> str:
        options = dict(pair.split("=") for pair in match[3].split())
        parts = []
        for findings in everything:
            if len(everything) > 1:
                parts.append(f"**{findings.judged.suite} on {escape_markdown(findings.judged.model)}**\n")
            parts.append(_part(match[2], options, findings, document, figures))
        if match[2] == "about":
            parts += [
                f"{suite} on {escape_markdown(model)}: no verdicts, so nothing is said about it.\n"
                for suite, model in unknown
            ]
        return "\n".join(parts)

    fill_parts(document, PART, part_text, mark="<!-- validity:", command=command, check=check)
    for path, (findings, name) in figures.items():
        FIGURE_PLANS[name](findings).update(path, command, check=check)
    return [document, *figures]


def _part(
    name: str, options: dict[str, str], findings: Findings, document: Path, figures: dict[Path, tuple[Findings, str]]
) -> str:
    """Return the text of one part, and note the figure that it shows."""
    if name in PARTS:
        return PARTS[name](findings, options)
    if name != FIGURE:
        raise RiebenchError(f"{document}: no validity part {name!r}{near_match(name, [*PARTS, FIGURE])}")
    which = options.get("name", "")
    if which not in FIGURE_PLANS:
        raise RiebenchError(f"{document}: no validity figure {which!r}{near_match(which, FIGURE_PLANS)}")
    file = f"{document.stem}-{which}-{findings.place}.png"
    path = file_inside(document.parent / IMAGES, file, "the name of a figure", f"the folder {IMAGES}")
    figures[path] = (findings, which)
    return f"![{FIGURE_PLANS[which](findings).alt}]({quote(f'{IMAGES}/{file}')})\n"

"""The generated parts of documents about SAEs of known quality.

They stand in docs/validity-saes.md and, as far as they conclude, in docs/validity.md.

A part begins with `<!-- sae-validity: NAME key=value ... -->` and ends with `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from riebench.analysis.sae_score.effects import TOGETHER
from riebench.analysis.tables import fill_parts
from riebench.analysis.validity.plots import FigurePlan
from riebench.analysis.validity.units import Cell
from riebench.errors import RiebenchError, near_match
from riebench.sae_validity.document.plots import FIGURES
from riebench.sae_validity.document.sentences import (
    AREA_KEY,
    BARS,
    can_sentences,
    cannot_sentences,
    failed_sentences,
    missing_sentence,
    official_sentences,
    passing_sentence,
    present_score_sentence,
    words,
)
from riebench.sae_validity.measures import JUDGE, TRUTH, all_measures
from riebench.sae_validity.study.bars import MeasureStudy, Study
from riebench.sae_validity.study.statistics import TRAINED, known_pairs, training_order
from riebench.utils.files import file_inside, write_atomic
from riebench.utils.markup import code_span, markdown_table

PART = re.compile(r"(<!-- sae-validity: (\w+)((?: \w+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
MARK = "<!-- sae-validity:"
FIGURE, IMAGES = "figure", "images"
NONE = "–"
Options = Mapping[str, str]
Maker = Callable[[Study, Options], str]


def bullets(lines: Sequence[str]) -> str:
    """Return lines as a list; a line of its own says where there are none."""
    return "".join(f"- {line}\n" for line in lines) or "- Nothing.\n"


def about_text(study: Study, _: Options) -> str:
    """Return the paragraph on what was measured."""
    about = study.results.about
    saes = sum(len(rung.training_seeds) for rung in about.rungs)
    seeds = max(len(rung.training_seeds) for rung in about.rungs)
    text = (
        f"{saes} sets of SAEs of {len(about.rungs)} rungs, up to {seeds} training seeds each, on {about.model} with "
        f"riebench {about.version}: {about.pictures} edited pictures of {about.examples} examples "
        f"({about.block_examples} with blocks edited one at a time). Intervals: 95 %, percentile bootstrap over "
        f"examples inside categories, crossed with training seeds inside rungs, {study.replicates} replicates. "
        f"{len(known_pairs(study.rungs))} pairs of rungs have a known order.\n"
    )
    missing = missing_sentence(study)
    return f"{text}\n{missing}\n" if missing else text


def command_text(study: Study, _: Options) -> str:
    """Return the command that repeats the run, with the time that it took."""
    about = study.results.about
    minutes = max(round(about.seconds / 60), 1)
    return (
        f"```\n{about.command}\n```\n\nMaking and scoring the pictures took about {minutes} minutes on the machine "
        "that these results come from; making the SAEs comes on top.\n"
    )


def short_text(study: Study, _: Options) -> str:
    """Return the conclusions of the study."""
    return bullets([*official_sentences(study), passing_sentence(study), present_score_sentence(study)])


def conclusions_text(study: Study, _: Options) -> str:
    """Return what can be concluded without a judge, what cannot, and the failed bars."""
    return (
        f"**What can be concluded about SAEs of real SDXL, where no judge exists:**\n\n"
        f"{bullets(can_sentences(study))}\n"
        f"**What cannot:**\n\n{bullets(cannot_sentences(study))}\n"
        f"**Which bars failed:**\n\n{bullets([*official_sentences(study), *failed_sentences(study)])}"
    )


def bar_table(study: Study, _: Options) -> str:
    """Tabulate the bars of every measure, official ones first."""
    header = ["measure", "official", "order", "twins", "noise", "ranks", "all four"]
    rows = []
    for one in sorted(study.measures, key=lambda m: not m.measure.official):
        bars = one.bars
        total = one.noise.total
        gaps = [c.gap.value for c in one.neighbours if c.gap.value is not None]
        least = min(gaps, default=None)
        share = None if total is None or least is None or least <= 0 else total / least
        twins = f"{len(one.twins) - len(one.failing_twins)} of {len(one.twins)}"
        rows.append([
            one.key, "yes" if one.measure.official else "no",
            f"{_verdict(bars.order)} {one.order.text()}",
            f"{_verdict(bars.twins)} {twins}",
            f"{_verdict(bars.noise)} {'no gap' if share is None else f'{share:.2f}'}",
            f"{_verdict(bars.ranks)} {words(one.untrained_first) if one.untrained_first else ''}".strip(),
            _verdict(bars.passed),
        ])  # fmt: skip
    return markdown_table(header, rows)


def _verdict(passed: bool | None) -> str:
    return NONE if passed is None else "pass" if passed else "FAIL"


def order_table(study: Study, _: Options) -> str:
    """Tabulate each measure's agreement with the truths."""
    header = ["measure", "what it is", "known order", "training steps", "feature match", "judge"]
    rows = [
        [one.key, one.measure.title, *(c.text() for c in (one.order, one.training, one.truth, one.judge))]
        for one in study.measures
    ]
    return markdown_table(header, rows)


def noise_table(study: Study, _: Options) -> str:
    """Tabulate each measure's noise, and its gaps between neighbouring rungs."""
    names = training_order(study.rungs)
    header = ["measure", "SD over training seeds", "SD over picture seeds", *(f"gap to {name}" for name in names[1:])]
    rows = []
    for one in study.measures:
        scale, decimals = one.measure.scale, one.measure.decimals + 1
        gaps = [comparison.gap.text(scale, decimals) for comparison in one.neighbours]
        cells = [cell.text(scale, decimals) for cell in (one.noise.training, one.noise.pictures)]
        rows.append([one.key, *cells, *gaps])
    return markdown_table(header, rows)


def apart_table(study: Study, _: Options) -> str:
    """Tabulate the share of pairs of single SAEs that differ clearly, in per cent."""
    names = training_order(study.rungs)
    pairs = [f"{worse} and {better}" for worse, better in pairwise(names)]
    rows = []
    for one in study.measures:
        cells = [
            NONE if c.separated.value is None else f"{c.separated.text(100, 0)}; {_percent(c.reversed)}"
            for c in one.neighbours
        ]
        rows.append([one.key, *cells])
    return markdown_table(["measure", *pairs], rows)


def _percent(cell: Cell) -> str:
    return NONE if cell.value is None else f"{100 * cell.value:.0f}"


def rung_table(study: Study, _: Options) -> str:
    """Tabulate the rungs with figures, truths and official measures."""
    keys = ["explained_variance", "l0", "dead_share", TRUTH, JUDGE, *(m.key for m in study.official), AREA_KEY]
    found = {one.key: one for one in study.measures}
    shown = [found[key] for key in dict.fromkeys(keys) if key in found]
    rows = []
    for rung in study.rungs:
        cells = [one.means[rung.name].text(one.measure.scale, one.measure.decimals) for one in shown]
        rows.append([rung.name, rung.family, str(rung.seeds), *cells])
    return markdown_table(["rung", "family", "training seeds", *(one.key for one in shown)], rows)


def twin_table(study: Study, options: Options) -> str:
    """Tabulate the trained SAE minus its twins, block by block."""
    one = _measure(study, options)
    names = list(dict.fromkeys(twin for twin, _ in one.twins))
    blocks = list(dict.fromkeys(block for _, block in one.twins))
    scale, decimals = one.measure.scale, one.measure.decimals
    rows = [
        [
            twin,
            *(one.twins[twin, b].text(scale, decimals) if (twin, b) in one.twins else NONE for b in blocks),
        ]
        for twin in names
    ]
    return markdown_table(["twin", *("all blocks together" if b == TOGETHER else b for b in blocks)], rows)


def _measure(study: Study, options: Options) -> MeasureStudy:
    key = options.get("measure", AREA_KEY)
    found = {one.key: one for one in study.measures}
    if key not in all_measures():
        raise RiebenchError(f"validity part: measure={key}{near_match(key, all_measures())}")
    if key not in found:
        raise RiebenchError(f"validity part: the stored results have no value of {key}")
    return found[key]


def official_twins(study: Study, _: Options) -> str:
    """Tabulate the differences from the twins for official measures and `AREA_KEY`."""
    keys = [*(one.key for one in study.official), AREA_KEY]
    known = {one.key for one in study.measures}
    parts = [f"{code_span(key)}:\n\n{twin_table(study, {'measure': key})}" for key in keys if key in known]
    return "\n".join(parts)


def group_table(study: Study, _: Options) -> str:
    """Tabulate the first rank group of each measure."""
    rows = [[one.key, ", ".join(one.group) or NONE] for one in study.measures]
    return markdown_table(["measure", "first rank group, the best first"], rows)


def bar_list(_study: Study, _: Options) -> str:
    """List the bars."""
    return bullets([f"**{name}**: {meaning}" for name, meaning in BARS.items()])


PARTS: Mapping[str, Maker] = {
    "about": about_text, "command": command_text, "short": short_text, "conclusions": conclusions_text,
    "bars": bar_table, "bar_list": bar_list, "rungs": rung_table, "order": order_table, "noise": noise_table,
    "apart": apart_table, "twins": official_twins, "twin": twin_table, "groups": group_table,
}  # fmt: skip
"""Name of a part -> what makes it."""

TEMPLATE = "# Do the scores rank SAEs?\n" + "".join(
    f"\n<!-- sae-validity: {name} -->\n<!-- end -->\n"
    for name in ("about", "short", "bars", "figure name=ladder", "rungs", "order", "noise", "apart", "twins", "groups")
)
"""What a document that is not there yet begins as."""


def fill_documents(study: Study, document: Path, overview: Path, *, check: bool = False) -> list[Path]:
    """Update the document, its figures, and the parts on SAEs of the overview.

    Args:
        study: the study.
        document: the Markdown file; one that is not there is begun. Figures go to `images/` beside it.
        overview: another one, which is filled if it is there and has such parts.
        check: only looks.

    Returns:
        The files that are up to date now.

    Raises:
        RiebenchError: with `check`, if something is out of date; if a part is unknown.
    """
    command = "riebench validity saes"
    if not document.exists():
        if check:
            raise RiebenchError(f"{document} is missing; run `{command}` and commit it")
        write_atomic(document, TEMPLATE.encode())
    figures: dict[Path, FigurePlan] = {}

    def filled(file: Path) -> Path:
        def text(match: re.Match[str]) -> str:
            options = dict(pair.split("=", 1) for pair in match[3].split())
            return _part(match[2], options, study, file, figures)

        fill_parts(file, PART, text, mark=MARK, command=command, check=check)
        return file

    files = [filled(document)]
    if overview.exists() and MARK in overview.read_text(encoding="utf-8", errors="replace"):
        files.append(filled(overview))
    for path, plan in figures.items():
        plan.update(path, command, check=check)
    return [*files, *figures]


def _part(name: str, options: Options, study: Study, file: Path, figures: dict[Path, FigurePlan]) -> str:
    """Return the text of one part, and note the figure that it shows."""
    if name in PARTS:
        return PARTS[name](study, options)
    if name != FIGURE:
        raise RiebenchError(f"{file}: no part {name!r} on SAEs{near_match(name, [*PARTS, FIGURE])}")
    which = options.get("name", "")
    if which not in FIGURES:
        raise RiebenchError(f"{file}: no figure {which!r} on SAEs{near_match(which, FIGURES)}")
    place = f"validity-saes-{which}-{study.results.about.model}.png"
    path = file_inside(file.parent / IMAGES, place, "the name of a figure", f"the folder {IMAGES}")
    plan = FIGURES[which](study)
    figures[path] = plan
    return f"![{plan.alt}]({quote(f'{IMAGES}/{place}')})\n"


__all__ = ["PARTS", "TRAINED", "fill_documents"]

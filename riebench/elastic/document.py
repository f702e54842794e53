"""Files of a search: configuration, tables, figure, and the examples left.

`unseen.yaml` holds options of `riebench run` with which the configuration is run on the examples that the search did
not look at.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from riebench.analysis.validity.plots import INK, RIGHT, WRONG, FigurePlan
from riebench.elastic.job import CategoryRange, ElasticRange, Steps
from riebench.elastic.pictures import DISTANCES, ElasticRequest
from riebench.tasks.schema import Setting
from riebench.utils.files import write_atomic
from riebench.utils.markup import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV_FILE, CURVES_FILE, MARKDOWN_FILE, FIGURE_FILE = "elastic.csv", "elastic_curves.csv", "elastic.md", "elastic.png"
UNSEEN_FILE = "unseen.yaml"
LINE_LENGTH = 100


def configuration_text(setting: Setting, comment: str) -> str:
    """Return the file of a method configuration.

    Args:
        setting: its name and the hash of its plug-in, which follow from files, are left out, as is the group, in which
            it would be one more strength of the method that it was made from.
        comment: one line for its beginning.
    """
    stated = setting.model_dump(mode="json", exclude_defaults=True, exclude={"name", "plugin_sha256", "group"})
    # An empty list is no default: without the key, a configuration has the usual blocks.
    stated |= {"blocks": list(setting.blocks), "strengths": [_plain(one) for one in setting.strengths]}
    text = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)
    return f"# {comment}\n{text}"


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def described(request: ElasticRequest, found: ElasticRange) -> Setting:
    """Return the configuration, whose description says where its strengths are from."""
    given = found.setting.description.rstrip(". ")
    how = (
        f"at strengths of about equal {DISTANCES[request.distance]} to each other, up to {request.limits.most:g} to "
        f"the source, in the median over {_counted(len(found.looked_at))} with seed {request.run.seeds[0]}"
    )
    description = f"{given}; {how}" if given else how[0].upper() + how[1:]
    return found.setting.model_copy(update={"description": description})


def csv_text(found: ElasticRange) -> str:
    """Return one row for each category."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["category", "examples", "end", "limit_reached", "points", "pictures", "own_strengths",
         *(f"{name}_{when}" for when in ("before", "after")
           for name in ("largest_gap", "smallest_gap", "evenness", "beyond", "farthest"))]
    )  # fmt: skip
    for one in found.categories:
        numbers = [value for steps in (one.before, one.after) for value in _numbers(steps)]
        own = " ".join(f"{strength:g}" for strength in one.own)
        writer.writerow(
            [one.category, len(one.examples), f"{one.curve.end:.4g}", str(one.curve.is_limited).lower(),
             len(one.curve.strengths), one.pictures, own, *numbers]
        )  # fmt: skip
    return stream.getvalue()


def _numbers(steps: Steps) -> list[str]:
    even = "" if steps.evenness is None else f"{steps.evenness:.4f}"
    return [f"{steps.gaps.max():.5f}", f"{steps.gaps.min():.5f}", even, str(steps.beyond), f"{steps.farthest:.5f}"]


def curves_text(found: ElasticRange) -> str:
    """Return one row for each category and strength that was looked at."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["category", "strength", "to_source", "to_previous", "length"])
    for one in found.categories:
        gaps = [0.0, *one.curve.gaps.tolist()]
        for row in zip(one.curve.strengths, one.curve.to_source, gaps, one.curve.lengths, strict=True):
            writer.writerow([one.category, f"{row[0]:.6g}", *(f"{value:.5f}" for value in row[1:])])
    return stream.getvalue()


def document(request: ElasticRequest, found: ElasticRange, command: str) -> str:
    """Return the search as a Markdown document, conclusion first."""
    name, limits, distance = found.setting.name, request.limits, DISTANCES[request.distance]
    header = ("category", "examples", "end of the range", "pictures", "gaps before", "gaps after", "evenness before",
              "evenness after", "too far before", "too far after", "strengths of its own")  # fmt: skip
    strengths = ", ".join(f"{one:g}" for one in found.setting.strengths)
    alone = len(found.categories) == 1
    parts = [
        f"# Elastic range: {name} on {found.suite}, {found.model}",
        f"Strengths: {strengths}. {_conclusion(found)}",
        f"Distances are {distance}, medians over the examples of a category, with seed {request.run.seeds[0]}. A range "
        f"ends where the distance to the source picture exceeds {limits.most:g}; + marks one whose largest tested "
        "strength is nearer. Gaps are the distances between the pictures at neighbouring strengths, from the source "
        "picture on, the smallest to the largest. Evenness is 1 if the gaps of a picture are equally large and 0 if "
        "one of them is the whole change, the mean over pictures. Too far are the strengths whose pictures exceed the "
        f"limit.{'' if alone else _WHOLE_LIST}",
        markdown_table(header, [_row(one) for one in found.categories]).strip(),
        f"![Left: distance to the source picture by strength, a line for each category. Right: gaps between "
        f"neighbouring strengths, before and after.]({FIGURE_FILE})",
        f"The search looked at the source and edited pictures of {_counted(len(found.looked_at))}, at no target: "
        f"{', '.join(f'`{one}`' for one in found.looked_at)}. {_unseen_words(found)}",
        f"Made by `{command}`.",
    ]
    return "\n\n".join(parts) + "\n"


_WHOLE_LIST = (
    " The list for all categories follows the median of their ways up to the median of their ends, so that it is too "
    "long for some; with `--categories` each has a list of its own."
)


def _counted(count: int) -> str:
    return f"{count} example{'' if count == 1 else 's'}"


def _unseen_words(found: ElasticRange) -> str:
    if not found.unseen:
        return "No example of the suite is left that was not looked at; take a smaller `--examples`."
    return (
        f"`riebench run --config {UNSEEN_FILE}` runs the configuration on what is left, {_counted(len(found.unseen))}, "
        "none of them in a cluster with these."
    )


def _row(one: CategoryRange) -> list[str]:
    return [
        one.category, str(len(one.examples)), f"{one.curve.end:.3g}{'' if one.curve.is_limited else '+'}",
        str(one.pictures), *(f"{steps.gaps.min():.3f} to {steps.gaps.max():.3f}" for steps in (one.before, one.after)),
        *("-" if steps.evenness is None else f"{steps.evenness:.2f}" for steps in (one.before, one.after)),
        *(f"{steps.beyond} of {len(steps.strengths)}" for steps in (one.before, one.after)),
        ", ".join(f"{strength:g}" for strength in one.own) or "-",
    ]  # fmt: skip


def _conclusion(found: ElasticRange) -> str:
    """Return a sentence that compares the found strengths with the stated ones."""
    said = []
    for when in ("before", "after"):
        steps: list[Steps] = [getattr(one, when) for one in found.categories]
        even = [one.evenness for one in steps if one.evenness is not None]
        beyond, total = sum(one.beyond for one in steps), sum(len(one.strengths) for one in steps)
        mean = f"{fmean(even):.2f}" if even else "-"
        said.append(f"evenness {mean} and {beyond} of {total} steps too far")
    pictures = sum(one.pictures for one in found.categories)
    many = len(found.categories) > 1
    over = f"Over {len(found.categories)} categories" if many else f"In {found.categories[0].category}"
    return f"{over} they have {said[1]}, the stated ones {said[0]}. {pictures} pictures were made for it."


def figure(request: ElasticRequest, found: ElasticRange) -> FigurePlan:
    """Plan the figure: distances by strength, and gaps before and after."""
    numbers = {
        "distance": DISTANCES[request.distance],
        "most": request.limits.most,
        "strengths": list(found.setting.strengths),
        "curves": {
            one.category: [
                [round(float(x), 4), round(float(y), 4)]
                for x, y in zip(one.curve.strengths, one.curve.to_source, strict=True)
            ]
            for one in found.categories
        },
        "gaps": {when: _mean_gaps([getattr(one, when) for one in found.categories]) for when in ("before", "after")},
    }
    return FigurePlan("Distances by strength and gaps between strengths", numbers, _draw, (8.6, 3.4))


def _mean_gaps(steps: Sequence[Steps]) -> list[list[float]]:
    """Return strength and mean gap over categories of each step."""
    return [
        [strength, round(fmean(float(one.gaps[place]) for one in steps), 5)]
        for place, strength in enumerate(steps[0].strengths)
    ]


def _draw(drawn: Figure, numbers: Any) -> None:
    from matplotlib import colormaps

    left, right = drawn.subplots(1, 2)
    colors = colormaps["tab10"]
    for place, (category, points) in enumerate(numbers["curves"].items()):
        left.plot(*zip(*points, strict=True), color=colors(place % 10), linewidth=1.1, marker=".", markersize=3,
                  label=category.replace("_", " "))  # fmt: skip
    left.axhline(numbers["most"], color=INK, linestyle="--", linewidth=0.9)
    for strength in numbers["strengths"]:
        left.axvline(strength, color=INK, linewidth=0.5, alpha=0.5)
    left.set_xlabel("edit strength")
    left.set_ylabel(f"{numbers['distance']} to the source picture")
    left.legend(fontsize=6, frameon=False)
    for when, color, words in (("before", WRONG, "as stated"), ("after", RIGHT, "as found")):
        points = numbers["gaps"][when]
        if points:
            right.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, linewidth=1.2, label=words)
    right.set_ylim(bottom=0)
    right.set_xlabel("edit strength")
    right.set_ylabel(f"{numbers['distance']} to the strength before, mean")
    right.legend(fontsize=8, frameon=False)


def write(request: ElasticRequest, found: ElasticRange, command: str) -> list[Path]:
    """Write all files of a search.

    Args:
        request: the options.
        found: the outcome.
        command: what the user typed.

    Returns:
        The files, the configuration first.
    """
    out = request.out
    setting = described(request, found)
    path = out / f"{setting.name}.yaml"
    files = {
        path: configuration_text(setting, f"Written by {command}").encode(),
        out / CSV_FILE: csv_text(found).encode(),
        out / CURVES_FILE: curves_text(found).encode(),
        out / MARKDOWN_FILE: document(request, found, command).encode(),
        out / FIGURE_FILE: figure(request, found).png(),
    }
    if found.unseen:
        options = request.run.to_config() | {"settings": [str(path)], "examples": list(found.unseen)}
        for name in ("seeds", "results", "report", "settings_set", "categories", "batch_size"):
            options.pop(name, None)
        files[out / UNSEEN_FILE] = yaml.safe_dump(options, sort_keys=True, width=LINE_LENGTH).encode()
    for file, data in files.items():
        write_atomic(file, data)
    return list(files)

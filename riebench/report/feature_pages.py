"""The pages of features, written from the data beside them: one for each, and one that lists them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from riebench import __version__
from riebench.features.data import CURVES, HISTOGRAM, PAGE, FeatureData, all_features
from riebench.models.presets import PRESETS
from riebench.report.page import environment
from riebench.utils.files import content_digest, write_atomic

THUMBNAILS = 3
Placed = tuple[Path, FeatureData]
"""A feature's folder and what it holds."""


def write_feature_pages(root: Path) -> Path:
    """Writes the page of every feature below a folder, and their overview; the same data give the same bytes.

    Links between features are made anew, so that older pages lead to newer ones.

    Args:
        root: the folder of all pages.

    Returns:
        The overview's path.
    """
    found = all_features(root)
    css = (files("riebench.report") / "assets" / "report.css").read_text(encoding="utf-8")
    style = f"assets/report-{content_digest(css)[:12]}.css"
    _write(root / style, css)
    for _, some in groupby(found, key=lambda one: one[0].parent):
        group = list(some)
        places = {data.index: f"../{folder.name}/{PAGE}" for folder, data in group}
        for folder, data in group:
            links = {index: place for index, place in places.items() if index != data.index}
            _write(folder / PAGE, _feature_page(folder, data, links, f"../../../{style}"))
    overview = root / PAGE
    _write(overview, _overview(root, found, style))
    return overview


def _write(path: Path, text: str) -> None:
    """Leaves a file that is the same already untouched."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomic(path, text.encode())


def _feature_page(folder: Path, data: FeatureData, links: dict[int, str], css: str) -> str:
    template = environment().get_template("feature.html.j2")
    return template.render(
        data=data, links=links, css=css, version=__version__, histogram=_drawing(folder / HISTOGRAM),
        curves=_drawing(folder / CURVES) if data.rows else Markup(), python=_python(data),
    )  # fmt: skip


def _python(data: FeatureData) -> str:
    """Lines that switch the feature on in the first of its pictures."""
    model = data.made_of.get("model", {})
    preset = next((one for one in PRESETS.values() if one.spec_source == model.get("source")), None)
    arguments = [json.dumps(preset.name if preset else data.model)]
    if preset and data.steps != preset.steps:
        arguments.append(f"steps={data.steps}")
    if preset and data.guidance != preset.guidance:
        arguments.append(f"guidance={data.guidance:g}")
    prompt, seed = (data.rows[0].prompt, data.rows[0].seed) if data.rows else ("a picture", 0)
    strength, unit = ("2.0", "") if data.statistics.mean > 0 else ("1.0", ', unit="value"')
    switched = f'on={{("{data.block}", {data.index}): {strength}}}{unit}'
    return (
        "from riebench import features\n"
        f"world = features.open({', '.join(arguments)})\n"
        f'world.paint({json.dumps(prompt, ensure_ascii=False)}, seed={seed}, {switched}).save("painted.png")'
    )


def _drawing(path: Path) -> Markup:
    """A drawing that `riebench.features.drawings` made; words in it are escaped there."""
    return Markup(path.read_text(encoding="utf-8"))


def _overview(root: Path, found: Sequence[Placed], css: str) -> str:
    groups = [_group(root, list(some)) for _, some in groupby(found, key=lambda one: one[0].parent)]
    several = len({group["model"] for group in groups}) > 1
    template = environment().get_template("features.html.j2")
    return template.render(groups=groups, several=several, css=css, version=__version__)


def _group(root: Path, group: Sequence[Placed]) -> dict[str, Any]:
    """What the overview shows of one SAE."""
    first = group[0][1]
    strengths = {one.strength for _, data in group for one in data.means}
    # The strength nearest to 1 says most: what the feature does where it is as strong as it usually is.
    strength = min(strengths, key=lambda value: (abs(value - 1), value), default=0.0)
    return {
        "block": first.block,
        "model": first.model,
        "size": first.size,
        "sae": first.sae_sha256[:8],
        "sae_format": first.sae_format,
        "features": first.features,
        "strength": strength,
        "rows": [_row(quote(folder.relative_to(root).as_posix()), data, strength) for folder, data in group],
    }


def _row(place: str, data: FeatureData, strength: float) -> dict[str, Any]:
    return {
        "index": data.index,
        "page": f"{place}/{PAGE}",
        "tops": [
            {"image": f"{place}/{one.image}", "heat": f"{place}/{one.heat}", "prompt": one.prompt}
            for one in data.top[:THUMBNAILS]
        ],
        "rate": data.statistics.rate,
        "mean": data.statistics.mean,
        "largest": data.statistics.largest,
        "lpips": next((one.lpips for one in data.means if one.strength == strength), None),
    }

"""Pages of features: one for each feature, and an overview that lists them all.

`write_feature_pages` writes them from the data stored beside them. `FeatureJob` and `PageMaker` compute the data that
are missing before that, with the options of `riebench sae feature`; `parse_indices` and `parse_strengths` read two of
these options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from riebench._version import __version__
from riebench.errors import RiebenchError
from riebench.features.data import CURVES, HISTOGRAM, PAGE, SAMPLE, FeatureData, all_features
from riebench.models.presets import PRESETS
from riebench.models.spec import ModelOptions
from riebench.report.page import environment
from riebench.tasks.schema import MAX_STRENGTH, MAX_WHOLE
from riebench.utils.files import content_digest, write_atomic

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder


THUMBNAILS = 3
"""Number of pictures of each feature in the overview."""
STRENGTHS = (-1.0, 1.0, 2.0, 4.0, 8.0)
"""Strengths at which features are switched, unless the user gives others."""
NO_SCORER = "none"
"""Value of `--scorer` for pages without CLIP scores."""
StoredFeature = tuple[Path, FeatureData]
"""A feature's folder and the data in it."""
Say = Callable[[str], None]
"""Receives progress messages, one line each."""


def write_feature_pages(root: Path) -> Path:
    """Write the page of every feature below a folder, and their overview.

    Equal data give equal bytes. Links between features are written anew, so that older pages lead to newer ones.

    Args:
        root: the folder of all pages.

    Returns:
        The overview's path.
    """
    found = all_features(root)
    css = (files("riebench.report") / "assets" / "report.css").read_text(encoding="utf-8")
    style = f"assets/report-{content_digest(css)[:12]}.css"
    _write_if_changed(root / style, css)
    for _, some in groupby(found, key=lambda one: one[0].parent):
        group = list(some)
        places = {data.index: f"../{folder.name}/{PAGE}" for folder, data in group}
        for folder, data in group:
            links = {index: place for index, place in places.items() if index != data.index}
            _write_if_changed(folder / PAGE, _feature_page(folder, data, links, f"../../../{style}"))
    overview = root / PAGE
    _write_if_changed(overview, _overview(root, found, style))
    return overview


def _write_if_changed(path: Path, text: str) -> None:
    """Write a file, unless it has the same content already."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomic(path, text.encode())


def _feature_page(folder: Path, data: FeatureData, links: dict[int, str], css: str) -> str:
    template = environment().get_template("feature.html.j2")
    return template.render(
        data=data, links=links, css=css, version=__version__, histogram=_read_drawing(folder / HISTOGRAM),
        curves=_read_drawing(folder / CURVES) if data.rows else Markup(), python=_python_example(data),
    )  # fmt: skip


def _python_example(data: FeatureData) -> str:
    """Return Python code that switches the feature on in the first of its pictures."""
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


def _read_drawing(path: Path) -> Markup:
    """Read a drawing made by `riebench.features.drawings`, which escapes words in it."""
    return Markup(path.read_text(encoding="utf-8"))


def _overview(root: Path, found: Sequence[StoredFeature], css: str) -> str:
    groups = [_overview_group(root, list(some)) for _, some in groupby(found, key=lambda one: one[0].parent)]
    several = len({group["model"] for group in groups}) > 1
    template = environment().get_template("features.html.j2")
    return template.render(groups=groups, several=several, css=css, version=__version__)


def _overview_group(root: Path, group: Sequence[StoredFeature]) -> dict[str, Any]:
    """Collect the part of the overview that shows one SAE."""
    first = group[0][1]
    strengths = {one.strength for _, data in group for one in data.means}
    # The strength nearest to 1 is the most informative: there the feature has about its usual value.
    strength = min(strengths, key=lambda value: (abs(value - 1), value), default=0.0)
    return {
        "block": first.block,
        "model": first.model,
        "size": first.size,
        "sae": first.sae_sha256[:8],
        "sae_format": first.sae_format,
        "features": first.features,
        "strength": strength,
        "rows": [_overview_row(quote(folder.relative_to(root).as_posix()), data, strength) for folder, data in group],
    }


def _overview_row(place: str, data: FeatureData, strength: float) -> dict[str, Any]:
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


@dataclass(frozen=True)
class FeatureJob:
    """Options of one call of `riebench sae feature`; see its help for their meaning."""

    block: str
    indices: tuple[int, ...]
    model: str = "toy-turbo"
    sae: str | None = None
    suite: str | None = None
    prompts: Path | None = None
    limit: int = SAMPLE
    seeds: tuple[int, ...] = (0,)
    strengths: tuple[float, ...] = STRENGTHS
    top: int = 8
    steps: int | None = None
    guidance: float | None = None
    scorer: str | None = None
    batch_size: int = 4
    device: str = "auto"
    dtype: str | None = None
    out: Path = Path("features")
    offline: bool = False
    options: ModelOptions = field(default_factory=ModelOptions)

    def run(self, say: Say) -> tuple[Path, ...]:
        """Compute the features that are missing, and write all pages.

        Args:
            say: receives progress messages.

        Returns:
            The paths of the pages, then that of the overview.

        Raises:
            RiebenchError: for any error that the user can correct; where possible before anything is generated.
        """
        from riebench.blocks import short_name
        from riebench.features.inspect import prompts_from, usual_suite
        from riebench.features.painter import check_index, feature_block
        from riebench.models.loading import load_model
        from riebench.saes.sources import model_saes
        from riebench.utils.machine import pick_device

        short_name(self.block)
        texts = prompts_from(self.suite or usual_suite(self.model), self.prompts, self.limit)
        device = pick_device(self.device)
        say(f"loading {self.model} on {device}")
        model = load_model(
            self.model, steps=self.steps, guidance=self.guidance, dtype=self.dtype, device=device,
            offline=self.offline, options=self.options,
        )  # fmt: skip
        block = feature_block(self.block, model)
        saes = model_saes(self.sae, model, [block], offline=self.offline)
        for index in self.indices:
            check_index(index, block, saes[block])
        maker = PageMaker(self, texts, device)
        folders = maker.make(model, saes, {block: self.indices}, self.sae, say)
        return (*(folder / PAGE for folder in folders), self.out / PAGE)


@dataclass(frozen=True)
class PageMaker:
    """Maker of pages of any features, with the options of a job.

    Attributes:
        job: the options; its block and indices are not used.
        prompts: prompts of the pictures.
        device: torch device.
    """

    job: FeatureJob
    prompts: Sequence[str]
    device: str

    def make(
        self, model: LoadedModel, saes: Mapping[str, SparseAutoencoder], wanted: Mapping[str, Sequence[int]],
        source: str | None, say: Say,
    ) -> list[Path]:  # fmt: skip
        """Compute the features that are missing, and write all pages of the folder.

        Args:
            model: model that generates the pictures.
            saes: block -> SAE.
            wanted: block -> indices of features.
            source: source of the SAEs; None for those of the model's preset.
            say: receives progress messages.

        Returns:
            The folder of each feature.

        Raises:
            RiebenchError: as `FeatureJob.run`.
        """
        from riebench.features.inspect import stored_statistics
        from riebench.features.study import Study, StudyOptions
        from riebench.generation.generator import Generator
        from riebench.models.clip import ClipSpec, locate
        from riebench.models.presets import scorer_for
        from riebench.scoring.metrics.networks import Networks

        job = self.job
        scorer = job.scorer or scorer_for(model.spec)
        if scorer != NO_SCORER:
            # A missing file has to be reported now, not after minutes of generation.
            locate(ClipSpec.parse(scorer), offline=job.offline)
        options = StudyOptions(
            prompts=tuple(self.prompts), seeds=job.seeds, strengths=job.strengths, top=job.top,
            scorer=None if scorer == NO_SCORER else scorer, batch_size=job.batch_size,
        )  # fmt: skip
        networks = Networks(scorer, device=self.device, offline=job.offline)
        stated = {
            block: stored_statistics(source, model, block, sae, offline=job.offline) for block, sae in saes.items()
        }

        def stored(block: str, index: int) -> tuple[float | None, float | None]:
            mean, std = (None if one is None else float(one[index]) for one in stated[block])
            return mean, std

        study = Study(Generator(model, cached_prompts=2 * job.batch_size), options, networks)
        folders, new = study.run(saes, wanted, job.out, stored)
        write_feature_pages(job.out)
        say(f"{len(new)} of {len(folders)} features made, the others were there")
        return folders


def parse_indices(text: str) -> tuple[int, ...]:
    """Parse comma-separated feature indices.

    Raises:
        RiebenchError: if they are not integers, or one is given twice.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RiebenchError(f"INDEX {text!r}: write feature numbers with commas between, as in 17,30") from error
    if max(map(abs, numbers)) >= MAX_WHOLE:
        raise RiebenchError("INDEX: no SAE has so many features")
    if len(set(numbers)) != len(numbers):
        raise RiebenchError(f"INDEX {text!r}: name each feature once")
    return numbers


def parse_strengths(text: str) -> tuple[float, ...]:
    """Parse comma-separated strengths.

    Raises:
        RiebenchError: if they are not numbers, one is given twice, or one is 0, which is always included.
    """
    try:
        strengths = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RiebenchError(f"--strengths {text!r}: write numbers with commas between, such as -1,1,4") from error
    # Files and tables name strengths by six significant digits.
    if len({f"{one:g}" for one in strengths}) != len(strengths) or not all(
        0 < abs(one) <= MAX_STRENGTH for one in strengths
    ):
        raise RiebenchError(f"--strengths {text!r}: name each strength once, above 0 for on, below 0 for off")
    return strengths

"""Features that edits switched most often, and their pages in the report.

`feature_views` counts them by block and category for the page, with links to their own pages. `select_features` chooses
the most frequent ones over all runs, and `ReportFeatures` makes the pages of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from riebench.errors import RiebenchError
from riebench.features.data import PAGE, feature_folder
from riebench.models.presets import PRESETS
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.report.data import CachedRunFolder, Group
from riebench.report.feature_pages import FeatureJob, PageMaker, Say
from riebench.report.heat_maps import short_category
from riebench.store.records import EditRecord
from riebench.utils.files import file_inside

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder


FEATURES = "features"
"""Name of the folder of features' pages in the report's folder."""
FEATURES_PER_CELL = 5
"""Number of features shown for each block and category; of features that as many edits switched, so many at most."""
SIDES = {"add": "Switched on most often", "remove": "Switched off most often"}
"""Direction of switching -> title of its table."""
ALL_CATEGORIES_ROW = "all"
"""Title of the row over all categories."""
CONTROLS = ("random_features", "random_directions", "wrong_example")
"""Methods whose features are drawn at random, or chosen for another example."""


@dataclass(frozen=True)
class FeatureCount:
    """Number of edits that switched a feature.

    Attributes:
        index: index of the feature.
        count: number of edits.
        page: address of its page below the report's folder; None if there is none.
    """

    index: int
    count: int
    page: str | None


@dataclass(frozen=True)
class FeatureTie:
    """Features that equally many edits switched.

    Attributes:
        count: number of edits of each.
        features: those that are listed.
        more: number of further features with as many edits, which are not listed.
    """

    count: int
    features: tuple[FeatureCount, ...]
    more: int

    @property
    def words(self) -> str:
        """Number of edits, as it is printed behind the features."""
        each = " each" if len(self.features) + self.more > 1 else ""
        return f"{self.count} edit{'s' if self.count != 1 else ''}{each}"


@dataclass(frozen=True)
class FeatureCell:
    """Features that one category's edits switched in one block.

    Attributes:
        features: the most frequent ones.
        none: number of edits that switched none there.
        more: number of features that as many edits switched as the last one listed.
    """

    features: tuple[FeatureCount, ...]
    none: int
    more: int = 0

    @property
    def ties(self) -> tuple[FeatureTie, ...]:
        """The features by how many edits switched them, the most frequent first."""
        groups = [(count, tuple(some)) for count, some in groupby(self.features, key=lambda one: one.count)]
        return tuple(
            FeatureTie(count, some, self.more if some[-1] == self.features[-1] else 0) for count, some in groups
        )


@dataclass(frozen=True)
class FeatureTable:
    """Table of the features that were switched on, or off, by category and block.

    Attributes:
        title: title of the table.
        blocks: blocks of the columns.
        rows: category, number of edits counted, and the cell of each block.
    """

    title: str
    blocks: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[FeatureCell, ...]], ...]


@dataclass(frozen=True)
class FeatureView:
    """Tables of the features that the edits of one method configuration switched.

    Attributes:
        label: name of the method configuration.
        description: its description.
        tables: features switched on and features switched off; a table without entries is left out.
    """

    label: str
    description: str
    tables: tuple[FeatureTable, ...]


@dataclass(frozen=True)
class FeatureSelection:
    """Features of one model and its SAEs that a report may have pages of.

    Attributes:
        model: the model.
        sae: source of the SAEs, as the method configuration names it.
        sae_sha256: block -> hash of its SAE.
        features: block -> indices of the features switched most often, the most frequent first.
    """

    model: ModelSpec
    sae: str | None
    sae_sha256: dict[str, str]
    features: dict[str, tuple[int, ...]]


def edits_at_one_strength(folder: CachedRunFolder) -> list[EditRecord]:
    """Return a run's finished edits that chose features, at its lowest strength.

    One strength is enough, as the choice of features does not depend on it. Controls have none.
    """
    if not folder.spec.sae_sha256 or folder.spec.setting.method in CONTROLS:
        return []
    found = [record for record in folder.records() if record.status == "ok" and record.features]
    first = min((record.key.strength for record in found), default=0.0)
    return [record for record in found if record.key.strength == first]


def feature_views(group: Group, out: Path) -> list[FeatureView]:
    """Collect the tables of each method configuration that switches features of SAEs.

    Args:
        group: the runs of one suite and model.
        out: the report's folder, which may hold pages of features.
    """
    views = []
    for folder in group.folders:
        records = edits_at_one_strength(folder)
        if records:
            tables = (_table(folder, records, side, group.categories, out) for side in SIDES)
            setting = folder.spec.setting
            views.append(FeatureView(setting.name, setting.description, tuple(t for t in tables if t is not None)))
    return views


def _table(
    folder: CachedRunFolder, records: Sequence[EditRecord], side: str, categories: Sequence[str], out: Path
) -> FeatureTable | None:
    blocks = tuple(dict.fromkeys(block for record in records for block in record.features))
    rows = []
    for category in (*categories, None):
        some = [record for record in records if category in (None, record.key.category)]
        cells = tuple(_cell(folder, some, block, side, out) for block in blocks)
        if some:
            rows.append((ALL_CATEGORIES_ROW if category is None else short_category(category), len(some), cells))
    found = any(cell.features for _, _, cells in rows for cell in cells)
    return FeatureTable(SIDES[side], blocks, tuple(rows)) if found else None


def _cell(folder: CachedRunFolder, records: Sequence[EditRecord], block: str, side: str, out: Path) -> FeatureCell:
    counts = count_edits(records, block, (side,))
    sha = folder.spec.sae_sha256.get(block, "")
    found = []
    for index, count in most_frequent(counts, FEATURES_PER_CELL):
        page = f"{FEATURES}/{feature_folder(folder.path.parent.name, block, sha, index)}/{PAGE}"
        found.append(FeatureCount(index, count, quote(page) if sha and (out / page).is_file() else None))
    listed = [one.index for one in found]
    more = sum(bool(found) and n == found[-1].count and index not in listed for index, n in counts.items())
    return FeatureCell(tuple(found), count_none(records, block, side), more)


def count_none(records: Sequence[EditRecord], block: str, side: str) -> int:
    """Count the edits of a block that switched no feature of it, on or off."""
    return sum(block in record.features and not getattr(record.features[block], side) for record in records)


def count_edits(records: Sequence[EditRecord], block: str, sides: Sequence[str]) -> Counter[int]:
    """Count for each feature of a block the edits that switched it."""
    return Counter(
        index
        for record in records if block in record.features
        for side in sides for index in getattr(record.features[block], side)
    )  # fmt: skip


def most_frequent(counts: Counter[int], number: int) -> list[tuple[int, int]]:
    """Return the most frequent features with their counts.

    Of equally frequent features, those of smaller index come first.
    """
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:number]


def select_features(groups: Sequence[Group], number: int) -> list[FeatureSelection]:
    """Select the features chosen most often in each block.

    Args:
        groups: all runs.
        number: number of features of each block.

    Returns:
        One entry per model and SAEs, over all method configurations that use them.
    """
    found = []
    for group in groups:
        by_saes: dict[tuple[tuple[str, str], ...], list[CachedRunFolder]] = {}
        for folder in group.folders:
            if edits_at_one_strength(folder):
                by_saes.setdefault(tuple(sorted(folder.spec.sae_sha256.items())), []).append(folder)
        for saes, folders in by_saes.items():
            records = [record for folder in folders for record in edits_at_one_strength(folder)]
            blocks = dict.fromkeys(block for record in records for block in record.features)
            features = {
                block: tuple(index for index, _ in most_frequent(count_edits(records, block, tuple(SIDES)), number))
                for block in blocks if block in dict(saes)
            }  # fmt: skip
            spec = folders[0].spec
            found.append(FeatureSelection(spec.model, spec.setting.sae, dict(saes), features))
    return found


@dataclass(frozen=True)
class ReportFeatures:
    """Maker of the features' pages below a report's folder.

    A model that cannot be loaded is reported and left out.

    Attributes:
        device: device to compute on, or `auto`.
        offline: whether nothing may be fetched.
        limit: number of prompts whose pictures the features are examined in.
        say: receives progress messages.
        scorer: the CLIP that measures; None for the model's own.
    """

    device: str
    offline: bool
    limit: int
    say: Say
    scorer: str | None = None

    def __call__(self, out: Path, wanted: Sequence[FeatureSelection]) -> None:
        """Make the pages that are missing.

        Args:
            out: the folder of all pages.
            wanted: features by model and SAEs.
        """
        if not wanted:
            self.say("no run here switches features of SAEs, so there are none to make pages of")
        for one in wanted:
            try:
                self._make(out, one)
            except RiebenchError as error:
                self.say(f"no pages of features of {one.model.name}: {error}")

    def _make(self, out: Path, wanted: FeatureSelection) -> None:
        from riebench.features.inspect import prompts_from, usual_suite
        from riebench.features.painter import check_index
        from riebench.saes.sources import model_saes
        from riebench.utils.machine import pick_device

        # Results may be untrusted files, and pages lie under the model's name in them.
        file_inside(out, wanted.model.name, "the model's name", "the folder of pages")
        device = pick_device(self.device)
        model = reload_model(wanted.model, device, offline=self.offline)
        saes = model_saes(wanted.sae, model, wanted.features, offline=self.offline)
        _check_saes(saes, wanted)
        for block, indices in wanted.features.items():
            for index in indices:
                check_index(index, block, saes[block])
        job = FeatureJob("", (), out=out, device=self.device, offline=self.offline, scorer=self.scorer)
        prompts = prompts_from(usual_suite(wanted.model.name), None, self.limit)
        PageMaker(job, prompts, device).make(model, saes, wanted.features, wanted.sae, self.say)


def reload_model(spec: ModelSpec, device: str, *, offline: bool = False) -> LoadedModel:
    """Load the model that made some results, if it is a preset.

    Args:
        spec: the model's spec in the results.
        device: torch device.
        offline: whether nothing may be fetched.

    Raises:
        RiebenchError: if it is no preset, cannot be loaded, or has changed since.
    """
    from riebench.models.loading import load_model

    preset = next((one for one in PRESETS.values() if one.spec_source == spec.source), None)
    if preset is None:
        raise RiebenchError(
            f"{spec.source} is no preset, so it is not known where it lies; `riebench sae feature BLOCK INDEX --model "
            "PLACE --out REPORT/features` makes them one by one"
        )
    if spec.unet or spec.loras:
        raise RiebenchError(
            "the model was changed with --unet or --lora, and where those files lie is not known; `riebench sae "
            "feature BLOCK INDEX --unet FILE --lora FILE --out REPORT/features` makes them one by one"
        )
    options = ModelOptions(
        size=spec.size if spec.size != preset.size else None, vae=spec.vae, vae_tiling=spec.vae_tiling
    )
    model = load_model(
        preset.name, steps=spec.steps, guidance=spec.guidance, dtype=spec.dtype, device=device, offline=offline,
        options=options,
    )  # fmt: skip
    here = model.spec.model_copy(update={"fixed_noise": spec.fixed_noise})
    if here.identity != spec.identity:
        raise RiebenchError("its weights are not those that made these results")
    # Pages lie under the model's name in the results.
    return replace(model, spec=spec)


def _check_saes(saes: dict[str, SparseAutoencoder], wanted: FeatureSelection) -> None:
    other = [block for block, sae in saes.items() if sae.sha256 != wanted.sae_sha256[block]]
    if other:
        raise RiebenchError(f"the SAEs of {', '.join(other)} are not those that made these results")

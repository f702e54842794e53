"""Which features a run's edits switched most often, by block and category, with links to their pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from riebench.errors import RiebenchError
from riebench.features.data import PAGE, feature_folder
from riebench.models.presets import PRESETS
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.report.data import Group, ReadOnce
from riebench.report.feature_pages import FeatureJob, PageMaker, Say
from riebench.report.plots import short_category
from riebench.store.records import EditRecord
from riebench.utils.files import file_inside

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder


FEATURES = "features"
"""Folder of the pages, below the report's."""
SHOWN = 5
SIDES = {"add": "Switched on most often", "remove": "Switched off most often"}
EVERY = "all"
CONTROLS = ("random_features", "random_directions", "wrong_example")
"""Methods whose features are drawn, or chosen for another example."""


@dataclass(frozen=True)
class Often:
    """A feature and in how many edits it was switched."""

    index: int
    count: int
    page: str | None
    """Address of its page below the report's folder, if there is one."""


@dataclass(frozen=True)
class ChosenTable:
    """One way of switching: categories by blocks."""

    title: str
    blocks: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[tuple[Often, ...], ...]], ...]
    """Category, edits counted, and the features of each block."""


@dataclass(frozen=True)
class ChosenView:
    """What one setting's edits switched."""

    label: str
    description: str
    tables: tuple[ChosenTable, ...]


@dataclass(frozen=True)
class Wanted:
    """Features that a report may have pages of: those switched most often in each block, of one model and SAEs."""

    model: ModelSpec
    sae: str | None
    """Where the SAEs are, as the setting names them."""
    sae_sha256: dict[str, str]
    features: dict[str, tuple[int, ...]]
    """Block -> features, most often chosen first."""


def counted(folder: ReadOnce) -> list[EditRecord]:
    """A run's finished edits that chose features, at one strength: the choice does not depend on it."""
    if not folder.spec.sae_sha256 or folder.spec.setting.method in CONTROLS:
        return []
    found = [record for record in folder.records() if record.status == "ok" and record.features]
    first = min((record.key.strength for record in found), default=0.0)
    return [record for record in found if record.key.strength == first]


def chosen_views(group: Group, out: Path) -> list[ChosenView]:
    """One view per setting with SAEs.

    Args:
        group: the runs of one suite and model.
        out: the report's folder, where pages may lie.
    """
    views = []
    for folder in group.folders:
        records = counted(folder)
        if records:
            tables = (_table(folder, records, side, group.categories, out) for side in SIDES)
            setting = folder.spec.setting
            views.append(ChosenView(setting.name, setting.description, tuple(t for t in tables if t is not None)))
    return views


def _table(
    folder: ReadOnce, records: Sequence[EditRecord], side: str, categories: Sequence[str], out: Path
) -> ChosenTable | None:
    blocks = tuple(dict.fromkeys(block for record in records for block in record.features))
    rows = []
    for category in (*categories, None):
        some = [record for record in records if category in (None, record.key.category)]
        cells = tuple(_cell(folder, some, block, side, out) for block in blocks)
        if any(cells):
            rows.append((EVERY if category is None else short_category(category), len(some), cells))
    return ChosenTable(SIDES[side], blocks, tuple(rows)) if rows else None


def _cell(folder: ReadOnce, records: Sequence[EditRecord], block: str, side: str, out: Path) -> tuple[Often, ...]:
    counts = tally(records, block, (side,))
    sha = folder.spec.sae_sha256.get(block, "")
    found = []
    for index, count in most(counts, SHOWN):
        page = f"{FEATURES}/{feature_folder(folder.path.parent.name, block, sha, index)}/{PAGE}"
        found.append(Often(index, count, quote(page) if sha and (out / page).is_file() else None))
    return tuple(found)


def tally(records: Sequence[EditRecord], block: str, sides: Sequence[str]) -> Counter[int]:
    """Feature of a block -> edits that switched it."""
    return Counter(
        index
        for record in records if block in record.features
        for side in sides for index in getattr(record.features[block], side)
    )  # fmt: skip


def most(counts: Counter[int], number: int) -> list[tuple[int, int]]:
    """The most frequent features with their counts; of equally frequent ones those of smaller number."""
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:number]


def most_chosen(groups: Sequence[Group], number: int) -> list[Wanted]:
    """The features chosen most often in each block: one entry per model and SAEs, over all settings that use them.

    Args:
        groups: all runs.
        number: how many of each block.
    """
    found = []
    for group in groups:
        by_saes: dict[tuple[tuple[str, str], ...], list[ReadOnce]] = {}
        for folder in group.folders:
            if counted(folder):
                by_saes.setdefault(tuple(sorted(folder.spec.sae_sha256.items())), []).append(folder)
        for saes, folders in by_saes.items():
            records = [record for folder in folders for record in counted(folder)]
            blocks = dict.fromkeys(block for record in records for block in record.features)
            features = {
                block: tuple(index for index, _ in most(tally(records, block, tuple(SIDES)), number))
                for block in blocks if block in dict(saes)
            }  # fmt: skip
            spec = folders[0].spec
            found.append(Wanted(spec.model, spec.setting.sae, dict(saes), features))
    return found


@dataclass(frozen=True)
class ReportFeatures:
    """Makes the pages below a report's folder; a model that is not at hand is said to be so, and left out.

    Attributes:
        device: where to run.
        offline: fetches nothing.
        limit: prompts that features are looked at on.
        say: receives lines for people.
        scorer: the CLIP that measures; None for the model's own.
    """

    device: str
    offline: bool
    limit: int
    say: Say
    scorer: str | None = None

    def __call__(self, out: Path, wanted: Sequence[Wanted]) -> None:
        """Makes what is missing.

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

    def _make(self, out: Path, wanted: Wanted) -> None:
        from riebench.features.inspect import prompts_from, usual_suite
        from riebench.features.painter import check_index
        from riebench.saes.sources import model_saes
        from riebench.utils.machine import pick_device

        # Results may come from anywhere, and so may the name that the pages would lie under.
        file_inside(out, wanted.model.name, "the model's name", "the folder of pages")
        device = pick_device(self.device)
        model = load_again(wanted.model, device, offline=self.offline)
        saes = model_saes(wanted.sae, model, wanted.features, offline=self.offline)
        _check_saes(saes, wanted)
        for block, indices in wanted.features.items():
            for index in indices:
                check_index(index, block, saes[block])
        job = FeatureJob("", (), out=out, device=self.device, offline=self.offline, scorer=self.scorer)
        prompts = prompts_from(usual_suite(wanted.model.name), None, self.limit)
        PageMaker(job, prompts, device).make(model, saes, wanted.features, wanted.sae, self.say)


def load_again(spec: ModelSpec, device: str, *, offline: bool = False) -> LoadedModel:
    """The model that made some results, if it is one that is known by name.

    Args:
        spec: what the results say of it.
        device: where it is to compute.
        offline: fetches nothing.

    Raises:
        RiebenchError: if it is not, cannot be loaded, or has changed since.
    """
    from riebench.models.loading import load_model

    preset = next((one for one in PRESETS.values() if one.spec_source == spec.source), None)
    if preset is None:
        raise RiebenchError(
            f"{spec.source} is no preset, so it is not known where it lies; `riebench sae feature BLOCK INDEX --model "
            "PLACE --out REPORT/features` makes them one by one"
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
    # Pages lie under the name that the results have.
    return replace(model, spec=spec)


def _check_saes(saes: dict[str, SparseAutoencoder], wanted: Wanted) -> None:
    other = [block for block, sae in saes.items() if sae.sha256 != wanted.sae_sha256[block]]
    if other:
        raise RiebenchError(f"the SAEs of {', '.join(other)} are not those that made these results")

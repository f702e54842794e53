"""Data of the page's gallery, in small files that the page loads on demand.

There is one file per category with prompts, one with masks, and one per category and method configuration. A page that
is opened from disk may not fetch files, but it may load scripts, so each file is a script that passes on its data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from riebench.analysis.standings import CONTROLLED
from riebench.registry import METRICS
from riebench.report.data import EFFECT, CachedRunFolder, Group
from riebench.report.findings import KEPT, REACHED
from riebench.report.output import OutputFolder
from riebench.scoring.profiles import metric_format, table_metrics
from riebench.store.records import EditRecord, UnitKey
from riebench.tasks.schema import EditExample, EditTask
from riebench.utils.files import file_sha256
from riebench.utils.images import is_intact, picture_path

ExampleKey = tuple[str, str]
"""Example id and content hash."""
UnitValues = dict[tuple[str, str], dict[str, float | str]]
"""(Unit digest, picture id) -> metric -> number, or the reason why there is none."""
ALTERED = "the picture in the results folder is not the one that was recorded"
NO_VERDICT = "no verdict"
VERDICTS = (
    NO_VERDICT, "target reached", "target reached, the rest kept", "target reached, other attributes changed",
    "target not reached", "target not reached, the rest kept", "target not reached, other attributes changed",
    "gain above its control", "gain not above its control", "gain above 0", "gain not above 0",
)  # fmt: skip
"""What the page says of a picture: the judge's verdict where one measured, or else its gain beside its control's."""


@dataclass
class PictureCopier:
    """Copier of pictures that copies each once and counts those that are missing.

    Attributes:
        out: the output folder.
        link: whether to share files instead of copying them.
        copied: number of files copied or linked so far.
        recorded: number of units whose record names a picture.
        missing: number of these whose edited picture is absent or altered.
    """

    out: OutputFolder
    link: bool = False
    copied: int = 0
    recorded: int = 0
    missing: int = 0
    _found: dict[tuple[Path, str], tuple[str, str] | None] = field(default_factory=dict)
    _folders: dict[str, bool] = field(default_factory=dict)

    def copy(self, folder: Path, name: str) -> tuple[str, str] | None:
        """Copy a stored picture to the output folder.

        Args:
            folder: the folder in which it must lie.
            name: its path relative to the folder, as a record states it.

        Returns:
            Its path below the output folder and its SHA-256, or None if there is no intact picture.

        Raises:
            StoreError: if it lies outside the folder.
        """
        if (folder, name) not in self._found:
            self._found[folder, name] = self._copy(folder, name) if self.may_hold(folder, name) else None
        return self._found[folder, name]

    def may_hold(self, folder: Path, name: str) -> bool:
        """Return whether the folder of a picture is there at all.

        It is looked for only once, for published results name many pictures and hold none.
        """
        place = os.path.dirname(os.path.join(folder, name))
        if place not in self._folders:
            self._folders[place] = os.path.isdir(place)
        return self._folders[place]

    def _copy(self, folder: Path, name: str) -> tuple[str, str] | None:
        path = picture_path(folder, name)
        if not is_intact(path):
            return None
        digest = file_sha256(path)
        self.copied += 1
        return self.out.add_picture(path, digest, link=self.link), digest


def index_examples(tasks: Iterable[EditTask]) -> dict[ExampleKey, EditExample]:
    """Index examples by id and content hash.

    With the hash, a prompt is shown beside a picture only if the picture was made from it.
    """
    return {(example.id, example.content_hash): example for task in tasks for example in task.examples}


def write_group(group: Group, examples: Mapping[ExampleKey, EditExample], pictures: PictureCopier) -> dict[str, Any]:
    """Write the files of one suite and model.

    Args:
        group: the runs.
        examples: examples whose prompts are known.
        pictures: copies the pictures into the folder that the data is written to.

    Returns:
        The group's part of the index: its choices, and the names of its files.
    """
    backbones = {configuration.setting: configuration.backbones for configuration in group.configurations}
    files: dict[str, dict[str, dict[str, str]]] = {category: {} for category in group.categories}
    records: dict[str, list[EditRecord]] = {category: [] for category in group.categories}
    place, out, copied = f"{group.suite}.{group.model}", pictures.out, pictures.copied
    for folder in group.folders:
        name = folder.spec.setting.name
        writer = _RunWriter(group, folder, backbones.get(name, {}), pictures)
        for category, some in _by_category(folder).items():
            files[category][name] = _script(out, f"{place}.{category}.{name}", writer.data(some))
            records[category] += some
    has_pictures = pictures.copied > copied
    categories = [
        {
            "name": category,
            "title": category.replace("_", " "),
            "examples": sorted({record.key.example_id for record in some}),
            "shared": _script(out, f"{place}.{category}.examples", _shared_data(group, some, examples, pictures)),
            "masks": _script(out, f"{place}.{category}.masks", _mask_data(group, some)),
            "files": files[category],
        }
        for category, some in records.items() if some
    ]  # fmt: skip
    return {
        "name": group.name,
        "size": group.folders[0].spec.model.size,
        "leading": group.leading.spec.setting.name,
        "pictures": has_pictures,
        "seeds": sorted({record.key.seed for some in records.values() for record in some}),
        "settings": [_setting_choice(folder) for folder in group.folders],
        "categories": categories,
    }


def _by_category(folder: CachedRunFolder) -> dict[str, list[EditRecord]]:
    """Return a run's records by category."""
    found: dict[str, list[EditRecord]] = {}
    for record in folder.records():
        found.setdefault(record.key.category, []).append(record)
    return found


def write_index(out: OutputFolder, groups: list[dict[str, Any]]) -> str:
    """Write the file that the page loads first, and return its path."""
    formats: dict[str, dict[str, Any]] = {name: {"title": _meaning(name)} for name in METRICS.usable()}
    for name in table_metrics():
        form = metric_format(name)
        formats[name] = {"title": form.title, "scale": form.scale, "decimals": form.decimals, "signed": form.signed}
    return _script(out, "index", {"groups": groups, "formats": formats, "verdicts": VERDICTS})["file"]


def _meaning(metric: str) -> str:
    """Return what a metric that no table shows measures, from its docstring."""
    found = METRICS.get(metric)
    text = " ".join((found.compute.__doc__ or "").replace("`", "").split()).rstrip(".")
    text = text.removeprefix("Compute ").removeprefix("the ")
    return f"{text[:1].upper()}{text[1:]} ({found.direction} is better)"


def _script(out: OutputFolder, name: str, data: Any) -> dict[str, str]:
    # Inside a script file only the two line separators need care, which old browsers take for line ends.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return {"key": name, "file": out.add("data", f"{name}.js", f"riebench.add({json.dumps(name)},{text});\n")}


def _setting_choice(folder: CachedRunFolder) -> dict[str, Any]:
    setting = folder.spec.setting
    cells = folder.expected
    return {
        "name": setting.name,
        "description": setting.description,
        "blocks": list(dict.fromkeys(block_set for _, block_set, _ in cells)),
        "strengths": sorted({strength for _, _, strength in cells}),
    }


@dataclass(frozen=True)
class _RunWriter:
    """Maker of the data of one run, whose scores are looked through only once."""

    group: Group
    folder: CachedRunFolder
    backbones: Mapping[str, str]
    pictures: PictureCopier

    @cached_property
    def values(self) -> UnitValues:
        """Values that tables show, by unit and picture."""
        return _values(self.folder, self.backbones)

    @cached_property
    def control(self) -> dict[tuple[object, ...], float]:
        """Gains of the run's control, none without one.

        The keys are what an edit has in common with that of its control: example, blocks, strength and seed.
        """
        controls = [name for name, method in CONTROLLED.items() if method == self.folder.spec.setting.method]
        found = [folder for folder in self.group.folders if folder.spec.setting.method in controls]
        gains: dict[tuple[object, ...], float] = {}
        for folder in sorted(found, key=lambda one: controls.index(one.spec.setting.method)):
            networks = next((c.backbones for c in self.group.configurations if c.run_id == folder.spec.run_id), {})
            values = _values(folder, networks)
            for record in folder.records():
                gain = values.get((record.key.digest, record.picture_id), {}).get(EFFECT)
                if isinstance(gain, float):
                    gains.setdefault(record.key.slot[1:], gain)
        return gains

    def data(self, records: Sequence[EditRecord]) -> dict[str, Any]:
        """Collect the units of one category as short rows.

        A row is [example, hash, block set, strength, seed, picture, note, values, number of the verdict].
        """
        usual = list(table_metrics())
        metrics = sorted(self.backbones, key=lambda name: (usual.index(name) if name in usual else len(usual), name))
        rows = []
        for record in records:
            key = record.key
            picture, note = _picture(self.folder, record, self.pictures)
            scored = self.values.get((key.digest, record.picture_id), {})
            rows.append(
                [key.example_id, key.example_hash, key.block_set, key.strength, key.seed, picture, note,
                 [scored.get(metric) for metric in metrics], VERDICTS.index(self.verdict(record, scored))]
            )  # fmt: skip
        return {"metrics": metrics, "units": rows}

    def verdict(self, record: EditRecord, scored: Mapping[str, float | str]) -> str:
        """Return what is said of one picture in words, one of `VERDICTS`."""
        reached, kept, gain = (scored.get(metric) for metric in (REACHED, KEPT, EFFECT))
        if isinstance(reached, float):
            first = "target reached" if reached >= 1 else "target not reached"
            if not isinstance(kept, float):
                return first
            return f"{first}, {'the rest kept' if kept >= 1 else 'other attributes changed'}"
        if not isinstance(gain, float):
            return NO_VERDICT
        control = self.control.get(record.key.slot[1:]) if self.control else None
        if control is not None:
            return "gain above its control" if gain > control else "gain not above its control"
        return "gain above 0" if gain > 0 else "gain not above 0"


def _values(folder: CachedRunFolder, backbones: Mapping[str, str]) -> UnitValues:
    """Collect the values measured by the networks that tables show.

    Returns:
        (Unit digest, picture id) -> metric -> number, or the reason why there is none.
    """
    found: UnitValues = {}
    for (unit, metric, backbone), score in folder.scores().items():
        if backbones.get(metric) == backbone:
            value = str(score.reason) if score.value is None else float(f"{score.value:.6g}")
            found.setdefault((unit, score.picture), {})[metric] = value
    return found


def _picture(folder: CachedRunFolder, record: EditRecord, pictures: PictureCopier) -> tuple[str | None, str]:
    """Return the path of a unit's picture, and a note if it has none.

    That pictures are not in the results folder is no reason of its own and has no note: the page says it once.
    """
    if record.image is None:
        return None, f"{record.status}: {record.reason}"
    pictures.recorded += 1
    copied = pictures.copy(folder.pictures, record.image)
    if copied is not None and copied[1] == record.image_sha256:
        return copied[0], ""
    pictures.missing += 1
    is_there = pictures.may_hold(folder.pictures, record.image) and (folder.pictures / record.image).exists()
    return None, ALTERED if is_there else ""


def _shared_data(
    group: Group, records: list[EditRecord], examples: Mapping[ExampleKey, EditExample], pictures: PictureCopier
) -> dict[str, Any]:
    prompts: dict[str, list[str]] = {}
    pairs: dict[str, dict[str, Any]] = {}
    for record in records:
        key = record.key
        example = examples.get((key.example_id, key.example_hash))
        if example is not None:
            prompts[f"{key.example_id}|{key.example_hash}"] = [example.source, example.target]
        name = _pair_name(key)
        if name not in pairs or pairs[name]["source"] is None:
            pairs[name] = _pair(group, record, pictures)
    return {"prompts": prompts, "pairs": pairs}


def _mask_data(group: Group, records: Sequence[EditRecord]) -> dict[str, Any]:
    """Collect the masks of each example and seed.

    Only an edit that is shown in full needs them.
    """
    masks: dict[str, Any] = {}
    for record in records:
        name = _pair_name(record.key)
        if name not in masks:
            stored = group.shared.read_json(group.shared.mask_name(record.key))
            sides = ("size", "source", "target")
            masks[name] = {side: stored.get(side) for side in sides} if isinstance(stored, dict) else None
    return masks


def _pair_name(key: UnitKey) -> str:
    """Return the name of an example and seed in the page's data."""
    return f"{key.example_id}|{key.example_hash}|{key.seed}"


def _pair(group: Group, record: EditRecord, pictures: PictureCopier) -> dict[str, str | None]:
    """Return the paths of a unit's source and target pictures."""
    found: dict[str, str | None] = {"source": None, "target": None}
    for role, image in (("source", record.source_image), ("target", record.target_image)):
        copied = None if image is None else pictures.copy(group.shared.path, image)
        found[role] = None if copied is None else copied[0]
    return found

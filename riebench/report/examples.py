"""Data of the page's gallery, in small files that the page loads on demand.

There is one file per category with prompts and masks, and one per category and setting. A page opened from disk may not
fetch files, but it may load scripts, so each file is a script that passes its data to the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riebench.registry import METRICS
from riebench.report.data import CachedRunFolder, Group
from riebench.report.output import OutputFolder
from riebench.scoring.profiles import metric_format, table_metrics
from riebench.store.records import EditRecord, UnitKey
from riebench.tasks.schema import EditExample, EditTask
from riebench.utils.files import file_sha256
from riebench.utils.images import is_intact, picture_path

ExampleKey = tuple[str, str]
"""Example id and content hash."""
MISSING = "the picture is not in the results folder (pictures are not kept with the text results)"
ALTERED = "the picture in the results folder is not the one that was recorded"


@dataclass
class PictureCopier:
    """Copier of pictures that copies each once and counts those that are missing.

    Attributes:
        out: the output folder.
        link: whether to share files instead of copying them.
        copied: number of files copied or linked so far.
        missing: number of units whose edited picture is absent or altered.
    """

    out: OutputFolder
    link: bool = False
    copied: int = 0
    missing: int = 0
    _names: dict[Path, tuple[str, str]] = field(default_factory=dict)

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
        path = picture_path(folder, name)
        if path not in self._names:
            if not is_intact(path):
                return None
            digest = file_sha256(path)
            self._names[path] = self.out.add_picture(path, digest, link=self.link), digest
            self.copied += 1
        return self._names[path]


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
    categories = []
    for category in group.categories:
        records = {f: [r for r in f.records() if r.key.category == category] for f in group.folders}
        keys = [record.key for some in records.values() for record in some]
        place = f"{group.suite}.{group.model}.{category}"
        files = {
            folder.spec.setting.name: _script(
                pictures.out,
                f"{place}.{folder.spec.setting.name}",
                _setting_data(folder, some, backbones.get(folder.spec.setting.name, {}), pictures),
            )
            for folder, some in records.items()
            if some
        }
        shared = _shared_data(group, [r for some in records.values() for r in some], examples, pictures)
        categories.append(
            {
                "name": category,
                "title": category.replace("_", " "),
                "examples": sorted({key.example_id for key in keys}),
                "shared": _script(pictures.out, f"{place}.examples", shared),
                "files": files,
            }
        )
    return {
        "name": group.name,
        "size": group.folders[0].spec.model.size,
        "settings": [_setting_choice(folder) for folder in group.folders],
        "categories": [category for category in categories if category["files"]],
    }


def write_index(out: OutputFolder, groups: list[dict[str, Any]]) -> str:
    """Write the file that the page loads first, and return its path."""
    formats: dict[str, dict[str, Any]] = {name: {"title": _meaning(name)} for name in METRICS.usable()}
    for name in table_metrics():
        form = metric_format(name)
        formats[name] = {"title": form.title, "scale": form.scale, "decimals": form.decimals, "signed": form.signed}
    return _script(out, "index", {"groups": groups, "formats": formats})["file"]


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


def _setting_data(
    folder: CachedRunFolder, records: list[EditRecord], backbones: Mapping[str, str], pictures: PictureCopier
) -> dict[str, Any]:
    """Collect the units of a setting and category as short rows.

    A row is [example, hash, block set, strength, seed, picture, note, values].
    """
    usual = list(table_metrics())
    metrics = sorted(backbones, key=lambda name: (usual.index(name) if name in usual else len(usual), name))
    values = _values(folder, backbones)
    rows = []
    for record in records:
        key = record.key
        picture, note = _picture(folder, record, pictures)
        scored = values.get((key.digest, record.picture_id), {})
        rows.append(
            [key.example_id, key.example_hash, key.block_set, key.strength, key.seed, picture, note,
             [scored.get(metric) for metric in metrics]]
        )  # fmt: skip
    return {"metrics": metrics, "units": rows}


def _values(folder: CachedRunFolder, backbones: Mapping[str, str]) -> dict[tuple[str, str], dict[str, float | str]]:
    """Collect the values measured by the networks that tables show.

    Returns:
        (Unit digest, picture id) -> metric -> number, or the reason why there is none.
    """
    found: dict[tuple[str, str], dict[str, float | str]] = {}
    for (unit, metric, backbone), score in folder.scores().items():
        if backbones.get(metric) == backbone:
            value = str(score.reason) if score.value is None else float(f"{score.value:.6g}")
            found.setdefault((unit, score.picture), {})[metric] = value
    return found


def _picture(folder: CachedRunFolder, record: EditRecord, pictures: PictureCopier) -> tuple[str | None, str]:
    if record.image is None:
        return None, f"{record.status}: {record.reason}"
    copied = pictures.copy(folder.pictures, record.image)
    if copied is not None and copied[1] == record.image_sha256:
        return copied[0], ""
    pictures.missing += 1
    return None, ALTERED if (folder.pictures / record.image).exists() else MISSING


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
        name = f"{key.example_id}|{key.example_hash}|{key.seed}"
        if name not in pairs or pairs[name]["source"] is None:
            pairs[name] = _pair(group, record, key, pictures)
    return {"prompts": prompts, "pairs": pairs}


def _pair(group: Group, record: EditRecord, key: UnitKey, pictures: PictureCopier) -> dict[str, Any]:
    shared = group.shared
    found: dict[str, Any] = {"source": None, "target": None, "masks": None}
    for role, image in (("source", record.source_image), ("target", record.target_image)):
        copied = None if image is None else pictures.copy(shared.path, image)
        found[role] = None if copied is None else copied[0]
    masks = shared.read_json(shared.mask_name(key))
    if isinstance(masks, dict):
        found["masks"] = {name: masks.get(name) for name in ("size", "source", "target")}
    return found

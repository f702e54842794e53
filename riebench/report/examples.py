"""What the gallery shows, in small files: one per category with prompts and masks, one per category and setting.

A page opened from disk may not fetch files, but it may load scripts: each file is a script that hands over its data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riebench.errors import StoreError
from riebench.registry import METRICS
from riebench.report.data import Group, ReadOnce
from riebench.report.output import OutputFolder
from riebench.scoring.profiles import TABLE_METRICS, metric_format
from riebench.store.records import EditRecord, UnitKey
from riebench.tasks.schema import EditExample, EditTask
from riebench.utils.files import file_sha256

ExampleKey = tuple[str, str]
"""Example id and content hash."""
MISSING = "the picture is not in the results folder (pictures are not kept with the text results)"
ALTERED = "the picture in the results folder is not the one that was recorded"


@dataclass
class Pictures:
    """Brings pictures over, each once, and counts those that are not there.

    Attributes:
        out: where to.
        link: share files instead of copying.
        missing: units whose edited picture is absent or altered.
    """

    out: OutputFolder
    link: bool = False
    brought: int = 0
    missing: int = 0
    _names: dict[Path, tuple[str, str]] = field(default_factory=dict)

    def bring(self, path: Path) -> tuple[str, str] | None:
        """A picture's path below the output folder and its SHA-256, or None if there is no such file."""
        if path not in self._names:
            if not path.is_file():
                return None
            digest = file_sha256(path)
            self._names[path] = self.out.add_picture(path, digest, link=self.link), digest
            self.brought += 1
        return self._names[path]


def known_examples(tasks: Iterable[EditTask]) -> dict[ExampleKey, EditExample]:
    """Examples by id and hash: a prompt is shown beside a picture only if the picture was made from it."""
    return {(example.id, example.content_hash): example for task in tasks for example in task.examples}


def add_group(group: Group, examples: Mapping[ExampleKey, EditExample], pictures: Pictures) -> dict[str, Any]:
    """Writes a suite and model's files.

    Args:
        group: the runs.
        examples: prompts, where they are known.
        pictures: brings the pictures over, into the folder the data goes to.

    Returns:
        The group's part of the index: its choices, and which file holds what.
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


def add_index(out: OutputFolder, groups: list[dict[str, Any]]) -> str:
    """Writes the file the page begins with; returns its path."""
    formats: dict[str, dict[str, Any]] = {name: {"title": _meaning(name)} for name in METRICS.names()}
    for name in TABLE_METRICS:
        form = metric_format(name)
        formats[name] = {"title": form.title, "scale": form.scale, "decimals": form.decimals, "signed": form.signed}
    return _script(out, "index", {"groups": groups, "formats": formats})["file"]


def _meaning(metric: str) -> str:
    """What a metric that no table shows says of itself, in one line."""
    found = METRICS.get(metric)
    first = (found.compute.__doc__ or "").partition("\n")[0].replace("`", "").rstrip(".")
    return f"{first} ({found.direction} is better)"


def _script(out: OutputFolder, name: str, data: Any) -> dict[str, str]:
    # Inside a script file only the two line separators need care, which old browsers take for line ends.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return {"key": name, "file": out.add("data", f"{name}.js", f"riebench.add({json.dumps(name)},{text});\n")}


def _setting_choice(folder: ReadOnce) -> dict[str, Any]:
    setting = folder.spec.setting
    cells = folder.expected
    return {
        "name": setting.name,
        "description": setting.description,
        "blocks": list(dict.fromkeys(block_set for _, block_set, _ in cells)),
        "strengths": sorted({strength for _, _, strength in cells}),
    }


def _setting_data(
    folder: ReadOnce, records: list[EditRecord], backbones: Mapping[str, str], pictures: Pictures
) -> dict[str, Any]:
    """Units as short rows: [example, hash, block set, strength, seed, picture, note, values]."""
    usual = list(TABLE_METRICS)
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


def _values(folder: ReadOnce, backbones: Mapping[str, str]) -> dict[tuple[str, str], dict[str, float | str]]:
    """(Unit digest, picture) -> metric -> number, or why there is none; of the networks that tables show."""
    found: dict[tuple[str, str], dict[str, float | str]] = {}
    for (unit, metric, backbone), score in folder.scores().items():
        if backbones.get(metric) == backbone:
            value = str(score.reason) if score.value is None else float(f"{score.value:.6g}")
            found.setdefault((unit, score.picture), {})[metric] = value
    return found


def _picture(folder: ReadOnce, record: EditRecord, pictures: Pictures) -> tuple[str | None, str]:
    if record.image is None:
        return None, f"{record.status}: {record.reason}"
    brought = pictures.bring(_inside(folder.path, record.image))
    if brought is not None and brought[1] == record.image_sha256:
        return brought[0], ""
    pictures.missing += 1
    return None, MISSING if brought is None else ALTERED


def _inside(folder: Path, name: str) -> Path:
    """A recorded path, which another person's records must not turn into a way out of their folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{folder} names a picture outside itself ({name}); delete that record to go on")
    return path


def _shared_data(
    group: Group, records: list[EditRecord], examples: Mapping[ExampleKey, EditExample], pictures: Pictures
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


def _pair(group: Group, record: EditRecord, key: UnitKey, pictures: Pictures) -> dict[str, Any]:
    shared = group.shared
    found: dict[str, Any] = {"source": None, "target": None, "masks": None}
    for role, image in (("source", record.source_image), ("target", record.target_image)):
        brought = None if image is None else pictures.bring(_inside(shared.path, image))
        found[role] = None if brought is None else brought[0]
    masks = shared.read_json(shared.mask_name(key))
    if isinstance(masks, dict):
        found["masks"] = {name: masks.get(name) for name in ("size", "source", "target")}
    return found

"""Readers of users' files: tasks, settings, masks, imports, autoencoders, options.

Imports are published benchmarks and data sets.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.fuzz.inputs import (
    WORDS,
    Files,
    Reader,
    as_json,
    broken_bytes,
    broken_value,
    damage,
    json_variant,
    lines_variant,
    link,
    picture,
    put_json,
    yaml_place,
    yaml_variant,
)

_TASK = {
    "category": "change_color", "version": 1,
    "provenance": {"file": "x.json", "records": 2},
    "examples": [
        {"id": "one", "source": "a [red] cat", "target": "a blue cat", "source_region": "cat",
         "target_region": "whole"},
        {"id": "two", "source": "a dog", "target": "a grey dog", "source_region": "file: masks/m.png",
         "target_region": "not: seen: the sky", "cluster": "c", "provenance": {"instruction": "x"},
         "attributes": {"source": {"color": "red"}, "target": {"color": "grey"}}},
    ],
}  # fmt: skip
SETTING = {
    "method": "sae", "params": {"n_features": 3}, "blocks": ["mid.0", "up.0.1"], "block_mode": "both",
    "strengths": [0.5, 2], "access": "PAM", "edit_steps": [0, 0.5], "description": "x", "group": "g",
}  # fmt: skip


def _tasks(_: Path) -> list[Files]:
    return [{"mine/change_color.yaml": yaml.safe_dump(_TASK).encode(), "mine/masks/m.png": picture()}]


def _read_task(place: Path) -> object:
    from riebench.tasks.suites import check_prompt_lengths, load_suite

    link(place / "mine" / "masks" / "link.png")
    tasks = load_suite(str(place / "mine"))
    check_prompt_lengths(tasks, len, 5000)
    return [(task.content_hash, [example.plain for example in task.examples]) for task in tasks]


def _settings(_: Path) -> list[Files]:
    second = {"method": "neurons", "params": {"n_units": 3}, "strengths": [1], "access": "PAM"}
    return [{"few.yaml": yaml.safe_dump(value).encode()} for value in (SETTING, second, {"method": "no_edit"})]


def _read_setting(place: Path) -> object:
    from riebench.methods.check import check_setting
    from riebench.models.spec import ModelSpec
    from riebench.store.records import RunSpec
    from riebench.tasks.settings import load_setting_file

    setting = load_setting_file(place / "few.yaml")
    check_setting(setting, setting.name)
    model = ModelSpec(name="m", source="s", revision=None, steps=1, guidance=0, size=64, dtype="float32")
    return RunSpec(suite="mine", model=model, setting=setting).run_id, setting.block_sets


def _masks(_: Path) -> list[Files]:
    kinds = [("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"),
             ("TIFF", "L"), ("WEBP", "RGB"), ("EPS", "RGB"), ("PPM", "L"), ("ICO", "RGBA")]  # fmt: skip
    return [{"mask.png": picture(kind, mode)} for kind, mode in kinds]


def _read_mask(place: Path) -> object:
    from riebench.generation.regions.masks import View, find_region

    view = View("a cat", np.zeros((24, 24, 3), np.uint8), None, (1, 1), lambda _: ())
    return find_region("file: mask.png", view, lambda words, view: view.image[..., 0] > 0, place)


_RIEBENCH = [
    {"id": "1", "editing_type_id": "1", "original_prompt": "[fishes] in the ocean", "editing_prompt": "birds above it",
     "original_gsam_prompt": "fishes", "editing_gsam_prompt": "birds", "editing_instruction": "do"},
    {"id": "2", "editing_type_id": "8", "original_prompt": "a cat", "editing_prompt": "a cat at night",
     "original_gsam_prompt": "~cat", "editing_gsam_prompt": "background"},
]  # fmt: skip
PIEBENCH: dict[str, dict[str, Any]] = {
    "000": {"image_path": "a/b.png", "original_prompt": "a [red] cat", "editing_prompt": "a [blue] cat",
            "editing_type_id": "6", "editing_instruction": "do", "blended_word": "cat cat", "mask": [0, 500, 9000, 90]},
    "001": {"image_path": "a/link.png", "original_prompt": "a dog", "editing_prompt": "a fox", "editing_type_id": "1",
            "mask": "0 7 20 9"},
}  # fmt: skip


def new_intake() -> Any:
    """Return an importer's collector that counts characters for tokens."""
    from riebench.tasks.importers.examples import ImportCollector

    return ImportCollector(len, 5000)


def _stored(place: Path, intake: Any, origin: Any) -> object:
    """Store what an import gives.

    Raises:
        AssertionError: if the stored files cannot be read; a wrong record must not be the end of all others.
    """
    from riebench.errors import TaskFileError
    from riebench.tasks.importers.writer import store_suite, suite_files

    files = suite_files(intake, origin)
    try:
        return store_suite(files, place / "out")
    except TaskFileError as error:
        raise AssertionError(f"what was taken cannot be read: {error}") from error


def _read_riebench(place: Path) -> object:
    from riebench.tasks.importers.published import import_riebench

    intake = new_intake()
    return _stored(place, intake, import_riebench(place / "in.json", intake))


def _read_piebench(place: Path) -> object:
    from riebench.tasks.importers.published import import_piebench

    link(place / "images" / "a" / "link.png")
    intake = new_intake()
    return _stored(place, intake, import_piebench(place / "in.json", place / "images", place / "out", intake))


_ROWS = [
    {"id": "a", "category": "change_color", "source_prompt": "a red cat", "target_prompt": "a blue cat", "mask": "0 9",
     "source_region": "cat", "target_region": "not: cat", "instruction": "do"},
    {"id": "b", "category": "2", "source_prompt": "a cat", "target_prompt": "a cat and a dog", "mask": "",
     "source_region": "whole", "target_region": "dog", "instruction": "do"},
]  # fmt: skip


def _read_rows(place: Path) -> object:
    """Read rows as the `datasets` library would give them.

    The library itself takes too long for each input.
    """
    from riebench.tasks.importers.datasets import RowReading, _draft, choose_columns
    from riebench.tasks.importers.examples import read_json

    rows, intake = read_json(place / "in.json")[0], new_intake()
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        if isinstance(row, dict):
            chosen = choose_columns("in", list(row), {})
            record = {name: row.get(column) for name, column in chosen.items()}
            reading = RowReading("in", None if "category" in chosen else "change_object", {})
            intake.add_record(f"row {number}", partial(_draft, record, reading))
    return _stored(place, intake, {"format": "dataset"})


def _read_dataset(place: Path) -> object:
    from riebench.tasks.importers.datasets import import_dataset
    from riebench.tasks.importers.rows import DatasetSource

    intake = new_intake()
    return _stored(place, intake, import_dataset(DatasetSource(str(place / "in.jsonl"), offline=True), intake))


def _importer(name: str, read: Callable[[Path], object], value: Any, weight: int = 10) -> Reader:
    def valid(_: Path) -> list[Files]:
        return [{"in.json": json.dumps(value).encode(), "images/a/b.png": picture("PNG", "RGB")}]

    return Reader(name, read, valid, partial(json_variant, name="in.json"), partial(put_json, name="in.json"), weight)


def _saes(place: Path) -> list[Files]:
    # The tests write every format that is read.
    tests = str(Path(__file__).resolve().parents[2] / "tests" / "helpers")
    if tests not in sys.path:
        sys.path.append(tests)
    written: Any = importlib.import_module("sae_files")
    sets = []
    for number, (_, write) in enumerate(written.WRITERS.values()):
        folder = place / f"sae{number}"
        folder.mkdir(parents=True)
        write(folder, written.parts())
        sets.append({f"sae/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())})
    return sets


def _sae_variant(files: Files, chance: random.Random) -> Files:
    texts = [name for name in files if name.endswith((".json", ".yaml"))]
    if texts and chance.random() < 0.5:
        name = chance.choice(texts)
        value = yaml.safe_load(files[name])
        if isinstance(value, dict) and chance.random() < 0.7:
            return {**files, name: as_json(broken_value(value, chance))}
        return {**files, name: broken_bytes(files[name], chance)}
    return damage(files, chance)


def _read_sae(place: Path) -> object:
    from riebench.saes.formats import load_sae

    return load_sae(place / "sae").sha256


def _read_regions(place: Path) -> object:
    from riebench.generation.regions.options import parse_regions

    return parse_regions((place / "text").read_bytes().decode("utf-8", "replace")).identity


def _regions(_: Path) -> list[Files]:
    texts = ("attention", "grounded-sam:box=0.3,cell=0,widen=5", "clipseg:threshold=0.4,model=CIDAS/x@main")
    return [{"text": text.encode()} for text in texts]


def _text_variant(files: Files, chance: random.Random) -> Files:
    text = files["text"].decode()
    pieces = text.replace(",", "|").replace("=", "|").split("|")
    changed = text.replace(chance.choice(pieces), chance.choice(WORDS).replace("/etc", "etc"))
    return {"text": changed.encode("utf-8", "replace")} if chance.random() < 0.5 else damage(files, chance)


GIVEN: tuple[Reader, ...] = (
    Reader("task", _read_task, _tasks, yaml_variant, yaml_place, 20),
    Reader("setting", _read_setting, _settings, yaml_variant, yaml_place, 15),
    Reader("mask file", _read_mask, _masks, damage, None, 15),
    _importer("riebench import", _read_riebench, _RIEBENCH),
    _importer("piebench import", _read_piebench, PIEBENCH),
    _importer("data set rows", _read_rows, _ROWS),
    Reader("data set", _read_dataset,
           lambda _: [{"in.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in _ROWS)}], lines_variant,
           None, 1),
    Reader("autoencoder", _read_sae, _saes, _sae_variant, None, 20),
    Reader("regions option", _read_regions, _regions, _text_variant, None, 3),
)  # fmt: skip
"""One for each kind of file, and the options that name models."""

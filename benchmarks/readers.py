"""Every reader of files that may come from strangers, with valid files to begin from."""

from __future__ import annotations

import importlib
import io
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.mutations import WORDS, as_json, broken_bytes, broken_value

Files = dict[str, bytes]
"""Path below a folder -> content."""


@dataclass(frozen=True)
class Reader:
    """Something that reads files of others.

    Attributes:
        name: for reports.
        read: reads what lies in a folder; raises a `RiebenchError` of one line, or nothing.
        valid: sets of valid files, made in a folder.
        variant: a damaged or hostile variant of such a set.
        place: puts any value in the place of a set's content; None where files are no values.
        weight: its share of the inputs.
    """

    name: str
    read: Callable[[Path], object]
    valid: Callable[[Path], list[Files]]
    variant: Callable[[Files, random.Random], Files]
    place: Callable[[Files, Any], Files] | None = None
    weight: int = 10


def _damage(files: Files, chance: random.Random, only: str = "") -> Files:
    """One of the files with damaged bytes."""
    name = chance.choice([name for name in files if name.endswith(only)])
    return {**files, name: broken_bytes(files[name], chance)}


def _yaml_variant(files: Files, chance: random.Random) -> Files:
    name = next(name for name in files if name.endswith(".yaml"))
    if chance.random() < 0.5:
        return {**files, name: broken_bytes(files[name], chance)}
    return _yaml_place(files, broken_value(yaml.safe_load(files[name]), chance))


def _yaml_place(files: Files, value: Any) -> Files:
    name = next(name for name in files if name.endswith(".yaml"))
    # JSON is YAML, and says what the emitter would refuse to.
    return {**files, name: as_json(value)}


def _lines_variant(files: Files, chance: random.Random) -> Files:
    name = next(name for name in files if name.endswith(".jsonl"))
    if chance.random() < 0.4:
        return {**files, name: broken_bytes(files[name], chance)}
    lines = files[name].splitlines()
    place = chance.randrange(len(lines))
    lines[place] = as_json(broken_value(json.loads(lines[place]), chance))
    return {**files, name: b"\n".join(lines) + b"\n"}


def _json_variant(files: Files, chance: random.Random, name: str) -> Files:
    if chance.random() < 0.4:
        return {**files, name: broken_bytes(files[name], chance)}
    return {**files, name: as_json(broken_value(json.loads(files[name]), chance))}


def _put_json(files: Files, value: Any, name: str) -> Files:
    return {**files, name: as_json(value)}


def _picture(kind: str = "PNG", mode: str = "L", side: int = 16) -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(side * side, dtype=np.uint32).reshape(side, side) % 256
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


# Tasks and settings.

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
_SETTING = {
    "method": "sae", "params": {"n_features": 3}, "blocks": ["mid.0", "up.0.1"], "block_mode": "both",
    "strengths": [0.5, 2], "access": "PAM", "edit_steps": [0, 0.5], "description": "x", "group": "g",
}  # fmt: skip


def _tasks(_: Path) -> list[Files]:
    return [{"mine/change_color.yaml": yaml.safe_dump(_TASK).encode(), "mine/masks/m.png": _picture()}]


def _read_task(place: Path) -> object:
    from riebench.suites import check_prompt_lengths, load_suite

    _link(place / "mine" / "masks" / "link.png")
    tasks = load_suite(str(place / "mine"))
    check_prompt_lengths(tasks, len, 5000)
    return [(task.content_hash, [example.plain for example in task.examples]) for task in tasks]


def _link(path: Path) -> None:
    """A link that leads out of the folder, for paths that follow it."""
    if path.parent.is_dir():
        root = next(parent for parent in path.parents if parent.name == "case").parent
        path.symlink_to(root / "outside" / "secret.png")


def _settings(_: Path) -> list[Files]:
    second = {"method": "neurons", "params": {"n_units": 3}, "strengths": [1], "access": "PAM"}
    return [{"few.yaml": yaml.safe_dump(value).encode()} for value in (_SETTING, second, {"method": "no_edit"})]


def _read_setting(place: Path) -> object:
    from riebench.checks import check_setting
    from riebench.schema import ModelSpec, RunSpec
    from riebench.suites import load_setting

    setting = load_setting(place / "few.yaml")
    check_setting(setting, setting.name)
    model = ModelSpec(name="m", source="s", revision=None, steps=1, guidance=0, size=64, dtype="float32")
    return RunSpec(suite="mine", model=model, setting=setting).run_id, setting.block_sets


# Masks and pictures.


def _masks(_: Path) -> list[Files]:
    kinds = [("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"),
             ("TIFF", "L"), ("WEBP", "RGB"), ("EPS", "RGB"), ("PPM", "L"), ("ICO", "RGBA")]  # fmt: skip
    return [{"mask.png": _picture(kind, mode)} for kind, mode in kinds]


def _read_mask(place: Path) -> object:
    from riebench.regions import View, find

    view = View("a cat", np.zeros((24, 24, 3), np.uint8), None, (1, 1), lambda _: ())
    return find("file: mask.png", view, lambda words, view: view.image[..., 0] > 0, place)


def _pictures(_: Path) -> list[Files]:
    return [{"mask.png": _picture("PNG", mode)} for mode in ("RGB", "L", "RGBA")] + [
        {"mask.png": _picture("EPS", "RGB")}
    ]


def _read_picture(place: Path) -> object:
    from riebench.sharedfolder import read_image

    return read_image(place / "mask.png")


def _stored_masks(_: Path) -> list[Files]:
    from riebench.regions import RegionMasks

    mask = np.zeros((24, 24), bool)
    mask[3:9, 5:20] = True
    return [{"m.json": json.dumps(RegionMasks(mask, ~mask).to_json("attention")).encode()}]


def _read_stored_mask(place: Path) -> object:
    from riebench.regions import RegionMasks
    from riebench.sharedfolder import SharedFolder

    stored: Any = SharedFolder(place).read_json("m.json")
    return RegionMasks.from_json(stored).share


# Run folders.


def _runs(place: Path) -> list[Files]:
    from riebench.records import BlockFeatures, EditRecord, MaskShare, ScoreRecord, UnitKey
    from riebench.schema import ModelSpec, RunSpec, Setting
    from riebench.store import RunFolder

    model = ModelSpec(name="m", source="own", revision="0", steps=1, guidance=0, size=16, dtype="float32")
    setting = Setting.model_validate({**_SETTING, "name": "few", "edit_steps": (0.0, 0.5)})
    run = RunFolder(place / "run" / "mine" / "m" / "few", RunSpec(suite="mine", model=model, setting=setting))
    keys = [
        UnitKey(task="change_color", task_version=1, category="change_color", example_id=f"e{index}",
                example_hash="0" * 16, block_set="mid.0+up.0.1", strength=0.5, seed=0)
        for index in range(3)
    ]  # fmt: skip
    pixels = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
    with run.writing({"device": "cpu"}, keys):
        for key in keys:
            names = [run.shared.image_name(key, "source"), run.shared.image_name(key, "target")]
            for name in names:
                run.shared.write_image(name, pixels)
            image, digest = run.write_image(key, pixels)
            run.append(
                EditRecord(
                    key=key,
                    status="ok",
                    image=image,
                    image_sha256=digest,
                    source_image=names[0],
                    target_image=names[1],
                    features={"mid.0": BlockFeatures(add=(1, 2), remove=(3,))},
                    cluster="c",
                    mask_share=MaskShare(source=0.5, target=1),
                    seconds=0.1,
                )
            )
            run.append_scores([
                ScoreRecord(unit=key.digest, metric=metric, version=1, backbone="b", picture=digest[:8], value=0.25)
                for metric in ("clip_gain", "lpips")
            ])  # fmt: skip
    (run.path / "scoring.json").write_text(json.dumps({"networks": {"b": {"v": "1"}}, "cut_prompts": ["x"]}))
    root = place / "run"
    return [{str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*"))
             if file.is_file() and not file.name.startswith(".")}]  # fmt: skip


_RUN = "mine/m/few"


def _read_run(place: Path) -> object:
    from riebench.store import run_folders

    _link(place / _RUN / "images" / "link.png")
    found = []
    for folder in run_folders(place):
        found.append((folder.expected, folder.provenance, folder.spec.run_id, folder.records(), folder.scores()))
        folder.done("errors")
    return found


def _read_tables(place: Path) -> object:
    from riebench.leaderboard import leaderboard_text
    from riebench.store import run_folders
    from riebench.tables import table_texts

    folders = run_folders(place)
    return table_texts(place / "mine" / "m", folders), leaderboard_text(place)


def _read_report(place: Path) -> object:
    from riebench.report import write_report

    return write_report(place, place / "page", board="")


def _read_seal(place: Path) -> object:
    from riebench.seal import broken_seals, unsealed_lines

    return broken_seals(place / _RUN), unsealed_lines(place / _RUN)


def _read_scoring(place: Path) -> object:
    from riebench.metrics.tools import Tools
    from riebench.scorebook import ScoreBook
    from riebench.store import RunFolder

    return ScoreBook(RunFolder(place / _RUN), Tools("toy-clip", device="cpu")).networks


def _run_reader(name: str, read: Callable[[Path], object], file: str, weight: int) -> Reader:
    path = f"{_RUN}/{file}"
    if not file.endswith(".jsonl"):
        return Reader(name, read, _runs, partial(_json_variant, name=path), partial(_put_json, name=path), weight)

    def variant(files: Files, chance: random.Random) -> Files:
        return {**files, path: _lines_variant({path: files[path]}, chance)[path]}

    return Reader(name, read, _runs, variant, partial(_put_json, name=path), weight)


# Importers.

_RIEBENCH = [
    {"id": "1", "editing_type_id": "1", "original_prompt": "[fishes] in the ocean", "editing_prompt": "birds above it",
     "original_gsam_prompt": "fishes", "editing_gsam_prompt": "birds", "editing_instruction": "do"},
    {"id": "2", "editing_type_id": "8", "original_prompt": "a cat", "editing_prompt": "a cat at night",
     "original_gsam_prompt": "~cat", "editing_gsam_prompt": "background"},
]  # fmt: skip
_PIEBENCH: dict[str, dict[str, Any]] = {
    "000": {"image_path": "a/b.png", "original_prompt": "a [red] cat", "editing_prompt": "a [blue] cat",
            "editing_type_id": "6", "editing_instruction": "do", "blended_word": "cat cat", "mask": [0, 500, 9000, 90]},
    "001": {"image_path": "a/link.png", "original_prompt": "a dog", "editing_prompt": "a fox", "editing_type_id": "1",
            "mask": "0 7 20 9"},
}  # fmt: skip


def _intake() -> Any:
    from riebench.importers.intake import Intake

    return Intake(len, 5000)


def _read_riebench(place: Path) -> object:
    from riebench.importers.folder import suite_files
    from riebench.importers.published import import_riebench

    intake = _intake()
    return suite_files(intake, import_riebench(place / "in.json", intake))


def _read_piebench(place: Path) -> object:
    from riebench.importers.folder import suite_files
    from riebench.importers.published import import_piebench

    _link(place / "images" / "a" / "link.png")
    intake = _intake()
    return suite_files(intake, import_piebench(place / "in.json", place / "images", place / "out", intake))


_ROWS = [
    {"id": "a", "category": "change_color", "source_prompt": "a red cat", "target_prompt": "a blue cat", "mask": "0 9",
     "source_region": "cat", "target_region": "not: cat", "instruction": "do"},
    {"id": "b", "category": "2", "source_prompt": "a cat", "target_prompt": "a cat and a dog", "mask": "",
     "source_region": "whole", "target_region": "dog", "instruction": "do"},
]  # fmt: skip


def _read_rows(place: Path) -> object:
    """Rows as the `datasets` library would give them, which takes too long to be asked each time."""
    from riebench.importers.columns import choose_columns
    from riebench.importers.dataset import _draft
    from riebench.importers.folder import suite_files
    from riebench.importers.intake import read_json

    rows, intake = read_json(place / "in.json")[0], _intake()
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        if isinstance(row, dict):
            chosen = choose_columns("in", list(row), {})
            record = {name: row.get(column) for name, column in chosen.items()}
            intake.take(f"row {number}", partial(_draft, "in", record, None if "category" in chosen else "1"))
    return suite_files(intake, {"format": "dataset"})


def _read_dataset(place: Path) -> object:
    from riebench.importers.dataset import import_dataset
    from riebench.importers.folder import store_suite, suite_files
    from riebench.importers.rows import Place

    intake = _intake()
    origin = import_dataset(Place(str(place / "in.jsonl"), offline=True), intake)
    return store_suite(suite_files(intake, origin), place / "out")


def _importer(name: str, read: Callable[[Path], object], value: Any, weight: int = 10) -> Reader:
    def valid(_: Path) -> list[Files]:
        return [{"in.json": json.dumps(value).encode(), "images/a/b.png": _picture("PNG", "RGB")}]

    return Reader(name, read, valid, partial(_json_variant, name="in.json"), partial(_put_json, name="in.json"), weight)


# Autoencoders.


def _saes(place: Path) -> list[Files]:
    # The tests write every format that is read.
    tests = str(Path(__file__).resolve().parent.parent / "tests")
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
    return _damage(files, chance)


def _read_sae(place: Path) -> object:
    from riebench.saes.formats import load_sae

    return load_sae(place / "sae").sha256


# Options and the page's own list.


def _read_regions(place: Path) -> object:
    from riebench.region_specs import parse_regions

    return parse_regions((place / "text").read_bytes().decode("utf-8", "replace")).identity


def _regions(_: Path) -> list[Files]:
    texts = ("attention", "grounded-sam:box=0.3,cell=0,widen=5", "clipseg:threshold=0.4,model=CIDAS/x@main")
    return [{"text": text.encode()} for text in texts]


def _text_variant(files: Files, chance: random.Random) -> Files:
    text = files["text"].decode()
    pieces = text.replace(",", "|").replace("=", "|").split("|")
    changed = text.replace(chance.choice(pieces), chance.choice(WORDS).replace("/etc", "etc"))
    return {"text": changed.encode("utf-8", "replace")} if chance.random() < 0.5 else _damage(files, chance)


def _read_manifest(place: Path) -> object:
    from riebench.report.output import OutputFolder

    folder = OutputFolder(place)
    folder.add("data", "x.js", "1")
    return folder.finish("<p>")


def _manifests(_: Path) -> list[Files]:
    return [{"files.json": b'["index.html", "data/x-1.js"]', "data/x-1.js": b"1"}]


_ALL = (
    Reader("task", _read_task, _tasks, _yaml_variant, _yaml_place, 20),
    Reader("setting", _read_setting, _settings, _yaml_variant, _yaml_place, 15),
    Reader("mask file", _read_mask, _masks, _damage, None, 15),
    Reader("picture", _read_picture, _pictures, _damage, None, 10),
    Reader("stored mask", _read_stored_mask, _stored_masks, partial(_json_variant, name="m.json"),
           partial(_put_json, name="m.json"), 10),
    _run_reader("records", _read_run, "records.jsonl", 15),
    _run_reader("scores", _read_run, "scores.jsonl", 10),
    _run_reader("run file", _read_run, "run.json", 15),
    _run_reader("tables of records", _read_tables, "records.jsonl", 1),
    _run_reader("tables of scores", _read_tables, "scores.jsonl", 1),
    _run_reader("tables of a run file", _read_tables, "run.json", 1),
    _run_reader("page of records", _read_report, "records.jsonl", 1),
    _run_reader("page of a run file", _read_report, "run.json", 1),
    _run_reader("seal", _read_seal, "seal.json", 5),
    _run_reader("scoring", _read_scoring, "scoring.json", 5),
    _importer("riebench import", _read_riebench, _RIEBENCH),
    _importer("piebench import", _read_piebench, _PIEBENCH),
    _importer("data set rows", _read_rows, _ROWS),
    Reader("data set", _read_dataset,
           lambda _: [{"in.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in _ROWS)}], _lines_variant,
           None, 1),
    Reader("autoencoder", _read_sae, _saes, _sae_variant, None, 20),
    Reader("regions option", _read_regions, _regions, _text_variant, None, 3),
    Reader("page's file list", _read_manifest, _manifests, partial(_json_variant, name="files.json"),
           partial(_put_json, name="files.json"), 2),
)  # fmt: skip

READERS: dict[str, Reader] = {reader.name: reader for reader in _ALL}
"""Name -> reader."""

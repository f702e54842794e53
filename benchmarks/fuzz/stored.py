"""Readers of files that riebench stores and others may have changed.

They are run folders, pictures, masks and the page's own list.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.given import SETTING
from benchmarks.fuzz.inputs import Files, Reader, damage, json_variant, lines_variant, link, picture, put_json


def _pictures(_: Path) -> list[Files]:
    return [{"mask.png": picture("PNG", mode)} for mode in ("RGB", "L", "RGBA")] + [{"mask.png": picture("EPS", "RGB")}]


def _read_picture(place: Path) -> object:
    from riebench.utils.images import read_image

    return read_image(place, "mask.png")


def _stored_masks(_: Path) -> list[Files]:
    from riebench.tasks.masks import RegionMasks

    mask = np.zeros((24, 24), bool)
    mask[3:9, 5:20] = True
    return [{"m.json": json.dumps(RegionMasks(mask, ~mask).to_json("attention")).encode()}]


def _read_stored_mask(place: Path) -> object:
    from riebench.store.shared import SharedFolder
    from riebench.tasks.masks import RegionMasks

    stored: Any = SharedFolder(place).read_json("m.json")
    return RegionMasks.from_json(stored).share


def _runs(place: Path) -> list[Files]:
    from riebench.models.spec import ModelSpec
    from riebench.store.folder import RunFolder
    from riebench.store.records import BlockFeatures, EditRecord, RunSpec, ScoreRecord, UnitKey
    from riebench.tasks.masks import MaskShare
    from riebench.tasks.schema import Setting

    model = ModelSpec(name="m", source="own", revision="0", steps=1, guidance=0, size=16, dtype="float32")
    setting = Setting.model_validate({**SETTING, "name": "few", "edit_steps": (0.0, 0.5)})
    run = RunFolder(place / "run" / "mine" / "m" / "few", RunSpec(suite="mine", model=model, setting=setting))
    keys = [
        UnitKey(task="change_color", task_version=1, category="change_color", example_id=f"e{index}",
                example_hash="0" * 16, block_set="mid.0+up.0.1", strength=0.5, seed=0)
        for index in range(3)
    ]  # fmt: skip
    pixels = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
    with run.open_for_writing({"device": "cpu"}, keys):
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
    from riebench.store.folder import find_run_folders

    link(place / _RUN / "images" / "link.png")
    found = []
    for folder in find_run_folders(place):
        found.append((folder.expected, folder.provenance, folder.spec.run_id, folder.records(), folder.scores()))
        folder.finished_units("errors")
    return found


def _read_tables(place: Path) -> object:
    from riebench.analysis.leaderboard import leaderboard_text
    from riebench.analysis.tables import table_texts
    from riebench.store.folder import find_run_folders

    folders = find_run_folders(place)
    return table_texts(folders), leaderboard_text(place)


def _read_report(place: Path) -> object:
    from riebench.report import write_report
    from riebench.utils.markup import Document

    return write_report(place, place / "page", board=Document(()))


def _read_seal(place: Path) -> object:
    from riebench.store.run_file import broken_seals, count_unsealed_lines

    return broken_seals(place / _RUN), count_unsealed_lines(place / _RUN)


def _read_scoring(place: Path) -> object:
    from riebench.scoring.metrics.networks import Networks
    from riebench.scoring.score import FolderScores
    from riebench.store.folder import RunFolder

    return FolderScores(RunFolder(place / _RUN), Networks("toy-clip", device="cpu")).networks


def _run_reader(name: str, read: Callable[[Path], object], file: str, weight: int) -> Reader:
    path = f"{_RUN}/{file}"
    if not file.endswith(".jsonl"):
        return Reader(name, read, _runs, partial(json_variant, name=path), partial(put_json, name=path), weight)

    def variant(files: Files, chance: random.Random) -> Files:
        return {**files, path: lines_variant({path: files[path]}, chance)[path]}

    return Reader(name, read, _runs, variant, partial(put_json, name=path), weight)


def _read_manifest(place: Path) -> object:
    from riebench.report.output import OutputFolder

    folder = OutputFolder(place)
    folder.add("data", "x.js", "1")
    return folder.finish("<p>")


def _manifests(_: Path) -> list[Files]:
    return [{"files.json": b'["index.html", "data/x-1.js"]', "data/x-1.js": b"1"}]


STORED: tuple[Reader, ...] = (
    Reader("picture", _read_picture, _pictures, damage, None, 10),
    Reader("stored mask", _read_stored_mask, _stored_masks, partial(json_variant, name="m.json"),
           partial(put_json, name="m.json"), 10),
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
    Reader("page's file list", _read_manifest, _manifests, partial(json_variant, name="files.json"),
           partial(put_json, name="files.json"), 2),
)  # fmt: skip
"""One for each kind of file, and what is made of several."""

"""Run folders for tests of the report: two settings, several strengths and block sets, hostile words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from records import make_spec

from riebench.store.folder import RunFolder, run_path
from riebench.store.records import BlockFeatures, EditRecord, ScoreRecord, UnitKey
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, EditTask

HOSTILE = 'a <script>window.hit = 1</script> & \'car\' " ]]> <img src=x onerror="window.hit = 1">'
NASTY = (
    "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>]]>--><svg onload=window.hit=1>"
    '"\'><a id=trap href="javascript:window.hit=1">x</a> {{7*7}} [l](javascript:window.hit=1) \u2028'
)
CATEGORIES = ("change_object", "change_color")
STRENGTHS = (0.5, 1.0, 2.0)


def example_of(category: str, number: int) -> EditExample:
    """The example of a category and number; its prompts try to be HTML."""
    return EditExample(id=f"{category}-{number}", source=HOSTILE, target=f"a boat {number}</script>")


def tasks(examples: int = 3) -> list[EditTask]:
    """The suite that the runs are made from."""
    return [
        EditTask(name=c, version=1, category=c, suite="mine", examples=tuple(example_of(c, i) for i in range(examples)))
        for c in CATEGORIES
    ]


def flat(value: int, side: int = 16) -> np.ndarray:
    """A grey picture, uint8 [side, side, 3]."""
    return np.full((side, side, 3), value, np.uint8)


def keys_of(block_sets: tuple[str, ...], strengths: tuple[float, ...], examples: int) -> list[UnitKey]:
    """All units of a setting, two seeds each."""
    return [
        UnitKey(
            task=category, task_version=1, category=category, example_id=f"{category}-{number}",
            example_hash=example_of(category, number).content_hash, block_set=block_set, strength=strength, seed=seed,
        )
        for category in CATEGORIES for number in range(examples) for block_set in block_sets
        for strength in strengths for seed in (0, 1)
    ]  # fmt: skip


def make_run(
    results: Path, name: str, method: str, block_sets: tuple[str, ...], strengths: tuple[float, ...], examples: int = 3
) -> RunFolder:
    """One setting's finished run. A picture's grey and its scores follow from strength and block set."""
    spec = make_spec(name=name, method=method, description=f"{name} <b>bold</b>", strengths=strengths)
    spec = spec.model_copy(update={"suite": "mine"})
    run = RunFolder(run_path(results, "mine", "toy-turbo", name), spec)
    keys = keys_of(block_sets, strengths, examples)
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:12] = True
    with run.open_for_writing({}, keys):
        records = [_record(run, key, mask) for key in keys]
        run.append_many(records)
        run.append_scores(
            ScoreRecord(unit=record.key.digest, metric=metric, version=1, picture=record.picture_id, value=value)
            for record in records
            for metric, value in {
                "clip_gain": 0.02 * record.key.strength if method != "no_edit" else 0.0,
                "lpips": 0.1 * record.key.strength if method != "no_edit" else 0.0,
                "psnr_bg": 31.25,
            }.items()
        )
    return RunFolder(run.path)


def _record(run: RunFolder, key: UnitKey, mask: np.ndarray) -> EditRecord:
    names = [run.shared.image_name(key, "source"), run.shared.image_name(key, "target")]
    for image, value in zip(names, (10, 250), strict=True):
        run.shared.write_image(image, flat(value))
    run.shared.write_json(run.shared.mask_name(key), RegionMasks(mask, mask).to_json("test"))
    image, digest = run.write_image(key, flat(int(40 * key.strength) + 20 * (key.block_set == "all") + key.seed))
    both = {"mid.0": BlockFeatures(add=(1, 2, 3), remove=(4,)), "up.0.1": BlockFeatures(add=(9,), remove=(5,))}
    return EditRecord(
        key=key, status="ok", image=image, image_sha256=digest, source_image=names[0], target_image=names[1],
        features=both if key.block_set == "all" else {},
    )  # fmt: skip


def make_hostile(results: Path) -> list[EditTask]:
    """Puts words that try to be markup and scripts wherever a stored result has words; the suite with such prompts."""
    make_results(results)
    for file in results.glob("*/*/*/run.json"):
        meta = json.loads(file.read_text())
        meta["spec"]["setting"]["description"] = meta["spec"]["model"]["source"] = NASTY
        meta["provenance"] = {"command": NASTY}
        file.write_text(json.dumps(meta))
    for file in results.rglob("scores.jsonl"):
        lines = [{**json.loads(line), "backbone": NASTY} for line in file.read_text().split("\n") if line]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = RunFolder(run_path(results, "mine", "toy-turbo", "sae"))
    run.append(run.records()[0].model_copy(update={"status": "error", "reason": NASTY, "image": None}))
    examples = {task.name: tuple(e.model_copy(update={"source": NASTY}) for e in task.examples) for task in tasks()}
    given = [task.model_copy(update={"examples": examples[task.name]}) for task in tasks()]
    for file in results.rglob("records.jsonl"):
        lines = [json.loads(line) for line in file.read_text().split("\n") if line]
        hashes = {e.id: e.content_hash for some in examples.values() for e in some}
        for line in lines:
            line["key"]["example_hash"] = hashes[line["key"]["example_id"]]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return given


def make_results(results: Path) -> Path:
    """A results folder with both ends of the scale and one method with blocks and strengths."""
    make_run(results, "no_edit", "no_edit", ("none",), (1.0,))
    make_run(results, "sae", "sae", ("mid.0", "up.0.1", "all"), STRENGTHS)
    return results


def read_data(report: Path, name: str) -> Any:
    """Read the value that the report's data file of a name passes to its page."""
    (file,) = (
        path for path in (report / "data").iterdir() if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]+\.js", path.name)
    )
    text = file.read_text(encoding="utf-8")
    found = re.fullmatch(r"riebench\.add\((\".*?\"),(.*)\);\n", text, re.DOTALL)
    assert found is not None and json.loads(found[1]) == name
    return json.loads(found[2])

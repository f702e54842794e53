"""Run folders for tests of the report: two settings, several strengths and block sets, hostile words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
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


ScoreRule = Callable[[UnitKey], Mapping[str, float]]
"""Unit -> metric -> value."""


def make_run(
    results: Path, name: str, method: str, block_sets: tuple[str, ...], strengths: tuple[float, ...], examples: int = 3,
    scores: ScoreRule | None = None, pictures: bool = True, **changes: Any,
) -> RunFolder:  # fmt: skip
    """One setting's finished run. A picture's grey and its scores follow from strength and block set.

    `scores` gives other scores; without `pictures` there are none, as in published results; further arguments change
    the setting.
    """
    changes = {"description": f"{name} <b>bold</b>", "strengths": strengths, **changes}
    spec = make_spec(name=name, method=method, **changes)
    spec = spec.model_copy(update={"suite": "mine"})
    run = RunFolder(run_path(results, "mine", "toy-turbo", name), spec)
    keys = keys_of(block_sets, strengths, examples)
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:12] = True
    with run.open_for_writing({}, keys):
        records = [_record(run, key, mask) if pictures else _bare_record(run, key) for key in keys]
        run.append_many(records)
        run.append_scores(
            ScoreRecord(unit=record.key.digest, metric=metric, version=1, picture=record.picture_id, value=value)
            for record in records
            for metric, value in (_usual_scores(record.key, method) if scores is None else scores(record.key)).items()
        )
    return RunFolder(run.path)


def _bare_record(run: RunFolder, key: UnitKey) -> EditRecord:
    """A record of pictures that are not there."""
    names = [run.shared.image_name(key, "source"), run.shared.image_name(key, "target")]
    return EditRecord(
        key=key, status="ok", image=run.image_name(key), image_sha256="0" * 64, source_image=names[0],
        target_image=names[1], features=_features() if key.block_set == "all" else {},
    )  # fmt: skip


def _features() -> dict[str, BlockFeatures]:
    return {"mid.0": BlockFeatures(add=(1, 2, 3), remove=(4,)), "up.0.1": BlockFeatures(add=(9,), remove=(5,))}


def _usual_scores(key: UnitKey, method: str) -> dict[str, float]:
    size = 0.0 if method == "no_edit" else key.strength
    return {"clip_gain": 0.02 * size, "lpips": 0.1 * size, "psnr_bg": 31.25}


def noisy(key: UnitKey, mean: float, spread: float = 0.01) -> float:
    """A number of a unit: the same for both seeds, others for another example."""
    return mean + random.Random(f"{key.example_id} {key.block_set}").gauss(0, spread)


def make_block_results(
    results: Path, examples: int = 12, *, judged: bool = False, means: Mapping[tuple[str, str], float] | None = None
) -> Path:
    """Runs of `sae` and its control, without pictures, whose mean gains depend on block and category.

    Args:
        results: the results folder.
        examples: of each category.
        judged: whether the judge measured too; it finds the target where the mean gain is at least 0.05.
        means: (block, category) -> mean gain; 0 where it names none. None: mid.0 does objects, up.0.1 does colours and
            harms objects, and all blocks together do both.
    """
    usual = {("mid.0", "change_object"): 0.1, ("up.0.1", "change_object"): -0.05, ("up.0.1", "change_color"): 0.1,
             ("all", "change_object"): 0.1, ("all", "change_color"): 0.1}  # fmt: skip
    stated = usual if means is None else means

    def scores(key: UnitKey) -> dict[str, float]:
        mean = stated.get((key.block_set, key.category), 0.0)
        judge = {"judge_target": float(mean >= 0.05), "judge_kept": 1.0 if mean >= 0 else 0.5} if judged else {}
        return {"clip_gain": noisy(key, mean), "lpips": 0.1, **judge}

    nothing, control = {"clip_gain": 0.0, "lpips": 0.0}, {"clip_gain": 0.01, "lpips": 0.1}
    blocks = ("mid.0", "up.0.1", "all")
    make_run(results, "no_edit", "no_edit", ("none",), (1.0,), examples, lambda _: nothing, False)
    make_run(results, "activation_patch", "activation_patch", blocks, (1.0,), examples, scores, False)
    make_run(results, "sae", "sae", blocks, (1.0,), examples, scores, False)
    make_run(results, "random_features", "random_features", ("all",), (1.0,), examples, lambda _: control, False)
    return results


def _record(run: RunFolder, key: UnitKey, mask: np.ndarray) -> EditRecord:
    names = [run.shared.image_name(key, "source"), run.shared.image_name(key, "target")]
    for image, value in zip(names, (10, 250), strict=True):
        run.shared.write_image(image, flat(value))
    run.shared.write_json(run.shared.mask_name(key), RegionMasks(mask, mask).to_json("test"))
    image, digest = run.write_image(key, flat(int(40 * key.strength) + 20 * (key.block_set == "all") + key.seed))
    return EditRecord(
        key=key, status="ok", image=image, image_sha256=digest, source_image=names[0], target_image=names[1],
        features=_features() if key.block_set == "all" else {},
    )  # fmt: skip


def make_hostile(results: Path) -> list[EditTask]:
    """Puts words that try to be markup and scripts wherever a stored result has words; the suite with such prompts."""
    make_results(results)
    for file in results.glob("*/*/*/run.json"):
        meta = json.loads(file.read_text())
        meta["spec"]["setting"]["description"] = meta["spec"]["model"]["source"] = NASTY
        meta["invocations"] = [{"command": NASTY}]
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

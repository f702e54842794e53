"""Run folders with hand-made numbers and no pictures, for tests of what is read from stored results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.spec import ModelSpec
from riebench.store.folder import RunFolder, run_path
from riebench.store.records import BlockFeatures, EditRecord, RunSpec, ScoreRecord, UnitKey
from riebench.tasks.schema import Setting

CATEGORIES = ("change_object", "change_color")
MODEL = ModelSpec(
    name="toy-turbo", source="riebench/toy-turbo", revision="r1", steps=4, guidance=0.0, size=64, dtype="float32"
)
Scores = Callable[[UnitKey], Mapping[str, float | None]]
Choice = Callable[[UnitKey], Mapping[str, tuple[Sequence[int], Sequence[int]]]]


def nothing_chosen(_key: UnitKey) -> Mapping[str, tuple[Sequence[int], Sequence[int]]]:
    """No features."""
    return {}


def level(distance: float, gain: float, target: float = 0.0, kept: float = 1.0) -> dict[str, float | None]:
    """The scores of one picture."""
    return {"lpips": distance, "clip_gain": gain, "judge_target": target, "judge_kept": kept}


def keys(
    block_sets: Sequence[str], strengths: Sequence[float], seeds: Sequence[int] = (0,), examples: int = 4,
    categories: Sequence[str] = CATEGORIES,
) -> list[UnitKey]:  # fmt: skip
    """Every unit of a setting."""
    return [
        UnitKey(
            task=category, task_version=1, category=category, example_id=f"{category}-{number}", example_hash="0" * 16,
            block_set=block_set, strength=strength, seed=seed,
        )
        for category in categories for number in range(examples) for block_set in block_sets
        for strength in strengths for seed in seeds
    ]  # fmt: skip


def stored(
    results: Path, setting: dict[str, Any] | Setting, units: Sequence[UnitKey], scores: Scores,
    choice: Choice = nothing_chosen, made: Callable[[UnitKey], bool] = lambda _key: True,
) -> RunFolder:  # fmt: skip
    """A run of the toy suite on toy-turbo.

    Args:
        results: the results folder.
        setting: its setting.
        units: what is planned.
        scores: of each unit; metrics without a number are left out.
        choice: block -> features switched on and off.
        made: whether a planned unit was made at all.
    """
    one = setting if isinstance(setting, Setting) else Setting(**{"access": "PAM", **setting})
    saes = {block: "ab" for block in BLOCKS} if one.method == "sae" else {}
    spec = RunSpec(suite="toy", model=MODEL, setting=one, sae_sha256=saes)
    run = RunFolder(run_path(results, "toy", MODEL.name, one.name), spec)
    records = [
        EditRecord(
            key=key, status="ok", image="images/x.png", image_sha256="f" * 64,
            features={block: BlockFeatures(add=tuple(a), remove=tuple(r)) for block, (a, r) in choice(key).items()},
        )
        for key in units if made(key)
    ]  # fmt: skip
    with run.open_for_writing({}, list(units)):
        run.append_many(records)
        run.append_scores(
            ScoreRecord(unit=r.key.digest, metric=metric, version=1, picture=r.picture_id, value=value)
            for r in records for metric, value in scores(r.key).items() if value is not None
        )  # fmt: skip
    return RunFolder(run.path)

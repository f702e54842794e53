"""Scored runs of the set `features`, with planted gains at every number of features."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from records import make_key, make_record, make_spec

from riebench.analysis.sae_score import FEATURE_COUNTS
from riebench.store.folder import RunFolder
from riebench.store.records import ScoreRecord

CATEGORIES = ("change_object", "change_color")
EXAMPLES = {f"{category}-{i:02d}": category for category in CATEGORIES for i in range(12)}
ACCESS = {"sae": "PAM", "sae_fixed": "PMT", "random_features": "PAM", "activation_patch": "PAM"}
PATCH_GAIN = 0.2

Planted = Callable[[int], Mapping[str, float]]
"""Number of features (0 for the patch) -> metric -> what examples have on average."""


def add_features(
    results: Path, sae: str, planted: Planted, *, method: str = "sae", block_mode: str = "together",
    counts: tuple[int, ...] = FEATURE_COUNTS, examples: Mapping[str, str] = EXAMPLES, noise: float = 0.001,
    seeds: int = 1, fail: str | None = None,
) -> list[RunFolder]:  # fmt: skip
    """Store one run for each number of features; `activation_patch` is one run."""
    return [
        _add_run(results, sae, planted, method, block_mode, count, examples, noise, seeds, fail)
        for count in (counts if method != "activation_patch" else (0,))
    ]


def add_patch(results: Path, gain: float = PATCH_GAIN, **options: Any) -> list[RunFolder]:
    """Store a run of activation patching at LPIPS 0.04, within every budget."""
    return add_features(results, "", lambda _: {"clip_gain": gain, "lpips": 0.04}, method="activation_patch", **options)


def within(gain: Callable[[int], float]) -> Planted:
    """Return gains at an LPIPS within every budget, each as selective as it is large."""
    return lambda count: {"clip_gain": gain(count), "lpips": 0.04, "clip_selectivity": gain(count)}


def _add_run(
    results: Path, sae: str, planted: Planted, method: str, block_mode: str, count: int, examples: Mapping[str, str],
    noise: float, seeds: int, fail: str | None,
) -> RunFolder:  # fmt: skip
    name = f"{method}_n{count}_{sae}" if count else method
    spec = make_spec(
        name=name, method=method, access=ACCESS[method], block_mode=block_mode, strengths=(1.0,),
        params={"n_features": count} if count else {}, sae=f"{sae}/" if sae else None,
    ).model_copy(update={"sae_sha256": {"mid.0": sae} if sae else {}})  # fmt: skip
    folder = RunFolder(results / "toy" / "toy-turbo" / name, spec)
    sets = {"together": ("all",), "each": spec.setting.blocks, "both": (*spec.setting.blocks, "all")}[block_mode]
    keys = [
        make_key(example_id=example, category=category, task=category, seed=seed, block_set=blocks)
        for example, category in examples.items() for seed in range(seeds) for blocks in sets
    ]  # fmt: skip
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            record = make_record(key, f"images/{key.digest}.png", "0" * 64)
            if key.example_id == fail:
                record = record.model_copy(
                    update={"status": "error", "reason": "x", "image": None, "image_sha256": None}
                )
            run.append(record)
            rng = random.Random(f"{sae}{method}{key.digest}")
            scores = [
                ScoreRecord(
                    unit=key.digest, metric=metric, version=1, picture=record.picture_id,
                    value=value if metric.startswith(("judge", "lpips")) else value + rng.gauss(0, noise),
                )
                for metric, value in planted(count).items()
            ]  # fmt: skip
            if record.status == "ok":
                run.append_scores(scores)
    return folder

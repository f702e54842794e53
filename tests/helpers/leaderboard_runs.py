"""Scored runs for the leaderboard, and the rows of its first table."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from records import make_key, make_record, make_score, make_spec

from riebench.analysis.leaderboard import leaderboard_text
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord

LEVELS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
CATEGORIES = ("change_object", "change_color")
EXAMPLES = {f"{category}-{i}": category for category in CATEGORIES for i in range(12)}


def add_run(
    results: Path, name: str, gain: float | None, *, method: str = "sae", access: str = "PAM", levels: int = 6,
    leave_out: str | None = None, fail: str | None = None, unscored: str | None = None, seeds: int = 1,
    backbone: str = "", group: str | None = None, cluster: str | None = None, second: bool = False, sae: str = "ab",
    knob: Callable[[float], float] = float, examples: Mapping[str, str] = EXAMPLES,
) -> RunFolder:  # fmt: skip
    """Store a run whose examples gain about `gain` times what the knob makes of the strength at LPIPS a tenth of it."""
    noise = {(example, seed): random.Random(f"{name}{example}{seed}") for example in examples for seed in range(seeds)}
    jitter = {
        (*unit, done): rng.gauss(0, 0.001) if done else 0.0
        for unit, rng in noise.items() for done in sorted({knob(strength) for strength in LEVELS})
    }  # fmt: skip
    spec = make_spec(
        name=name, method=method, access=access, block_mode="together", strengths=LEVELS[:levels], group=group
    ).model_copy(update={"sae_sha256": {"mid.0": sae}})
    folder = RunFolder(results / "toy" / "toy-turbo" / name, spec)
    keys = [
        make_key(example_id=example, category=category, task=category, strength=strength, seed=seed)
        for example, category in examples.items() for strength in LEVELS[:levels] for seed in range(seeds)
    ]  # fmt: skip
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            if key.example_id == leave_out:
                continue
            if key.example_id == fail:
                run.append(EditRecord(key=key, status="error", reason="out of memory"))
                continue
            record = make_record(key, f"images/{key.digest}.png", "0" * 64).model_copy(update={"cluster": cluster})
            run.append(record)
            if key.example_id == unscored or gain is None:
                continue
            done = knob(key.strength)
            value = gain * done + jitter[key.example_id, key.seed, done]
            scores = [make_score(record, value, backbone)]
            scores.append(scores[0].model_copy(update={"metric": "lpips", "value": done / 10}))
            if second:
                scores.append(scores[0].model_copy(update={"metric": "clip_gain_2", "value": value / 2}))
            run.append_scores(scores)
    return folder


def table(results: Path) -> list[dict[str, str]]:
    """Return the rows of the first table, each with its cells by heading."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in leaderboard_text(results).splitlines()
             if line.startswith("| ")]  # fmt: skip
    head = lines[0]
    return [dict(zip(head, line, strict=True)) for line in lines[2:] if len(line) == len(head)]


def rows(results: Path) -> dict[str, dict[str, str]]:
    """Return the rows of the first table by method."""
    return {row["method"]: row for row in table(results)}

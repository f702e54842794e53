"""Scored runs for the leaderboard, and the rows of its tables and of its CSV file."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from records import make_key, make_record, make_score, make_spec

from riebench.analysis.leaderboard import Leaderboard, make_leaderboard
from riebench.scoring.profiles import DEFAULT, PROFILES
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.utils.markup import csv_rows

LEVELS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
CATEGORIES = ("change_object", "change_color")
EXAMPLES = {f"{category}-{i}": category for category in CATEGORIES for i in range(12)}


def add_run(
    results: Path, name: str, gain: float | None, *, method: str = "sae", access: str = "PAM", levels: int = 6,
    leave_out: str | None = None, fail: str | None = None, unscored: str | None = None, seeds: int = 1,
    backbone: str = "", group: str | None = None, cluster: str | None = None, second: bool | float = False,
    sae: str = "ab", knob: Callable[[float], float] = float, examples: Mapping[str, str] = EXAMPLES,
    spread: float = 0.001,
) -> RunFolder:  # fmt: skip
    """Store a run whose examples gain about `gain` times what the knob makes of the strength at LPIPS a tenth of it.

    By a second scorer they gain half as much each, or about the number `second` in place of `gain`, with its own noise.
    """
    noise = {(example, seed): random.Random(f"{name}{example}{seed}") for example in examples for seed in range(seeds)}
    jitter = {
        (*unit, done): rng.gauss(0, spread) if done else 0.0
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
            if second is not False:
                own = random.Random(f"second {name}{key.example_id}{key.seed}{done}").gauss(0, spread)
                other = value / 2 if second is True else second * done + own
                scores.append(scores[0].model_copy(update={"metric": "clip_gain_2", "value": other}))
            run.append_scores(scores)
    return folder


def add_profile_scores(folder: RunFolder) -> None:
    """Store the gains of a run again as metrics of the profile `paper`."""
    scores = [score for score in folder.scores().values() if score.metric == "clip_gain"]
    with folder.open_for_writing():
        folder.append_scores(
            score.model_copy(update={"metric": metric}) for metric in PROFILES["paper"].own for score in scores
        )


def tables(board: Leaderboard) -> dict[str, list[dict[str, str]]]:
    """Return the rows of the first section's tables by heading, each with its cells by column."""
    found: dict[str, list[dict[str, str]]] = {}
    section = board.document.markdown().split("\n## ")[1]
    for part in section.split("\n### Inputs used: ")[1:]:
        table = part.partition("\n### ")[0]
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"]
        found[part.splitlines()[0]] = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return found


def rows(results: Path) -> dict[str, dict[str, str]]:
    """Return the rows of the first section's tables by method, in their order."""
    return printed_rows(make_leaderboard(results))


def printed_rows(board: Leaderboard) -> dict[str, dict[str, str]]:
    """Return the rows of the first section's tables by method, in their order."""
    return {row["method"]: row for found in tables(board).values() for row in found}


def numbers(board: Leaderboard) -> dict[str, dict[str, str]]:
    """Return the rows of leaderboard.csv that compare methods, by method."""
    stored = csv_rows(board.numbers.splitlines())
    return {row["method"]: row for row in stored if row["profile"] == DEFAULT}

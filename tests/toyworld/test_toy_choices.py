"""The choice of features on the toy suite: the same whatever is computed together, and none where nothing differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from score_tolerance import differing_scores

from riebench.models.loading import LoadedModel, load_model
from riebench.registry import METRICS
from riebench.runs import engines
from riebench.scoring.score import score
from riebench.store.folder import RunFolder
from riebench.tasks.schema import EditTask, Setting
from riebench.tasks.suites import load_suite

BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")


def settings(blocks: tuple[str, ...] = BLOCKS) -> list[Setting]:
    """Features, at random among them, and neurons of some blocks."""
    return [
        Setting(name="sae", method="sae", params={"n_features": 10}, blocks=blocks, block_mode="both"),
        Setting(name="random", method="random_features", params={"n_features": 10}, blocks=blocks),
        Setting(name="neurons", method="neurons", params={"n_units": 1000}, blocks=blocks),
    ]


WAYS = [(1, 1), (4, 1), (32, 1), (4, 2)]
"""Pictures at a time, and threads."""
ALIKE = {"toy-change-material-02", "toy-change-material-07"}
"""Examples whose source and target run differ in one block alone, up.0.1, where materials are decided."""
UNTOUCHED = {"down.2.1", "mid.0", "up.0.0"}
"""The blocks in which they do not."""


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Lets torch use that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choices(runs: Sequence[RunFolder]) -> dict[tuple[str, str, str], Any]:
    """The features, or the number of neurons, of each unit."""
    return {
        (run.spec.setting.name, record.key.example_id, record.key.block_set): (
            {block: (set(one.add), set(one.remove)) for block, one in record.features.items()}, record.neurons,
        )
        for run in runs for record in run.records() if record.status == "ok"
    }  # fmt: skip


def run(
    tasks: Sequence[EditTask], some: Sequence[Setting], model: LoadedModel, place: Path, batch: int, count: int
) -> list[RunFolder]:
    """Runs settings on some tasks."""
    with threads(count):
        return engines.run(
            "local", tasks, some, model, results_root=place, saes_source=None, batch_size=batch, progress=False
        )


def check_choices(
    tasks: Sequence[EditTask], some: Sequence[Setting], place: Path, ways: Sequence[tuple[int, int]]
) -> None:
    model = load_model("toy-turbo")
    found = {way: run(tasks, some, model, place / "-".join(map(str, way)), *way) for way in ways}
    wanted = choices(found[ways[0]])
    assert len(wanted) == sum(len(task.examples) for task in tasks) * (len(some[0].blocks) + len(some))
    for way in ways[1:]:
        other = choices(found[way])
        assert {key for key in wanted if other[key] != wanted[key]} == set(), way
    metrics = [name for name in METRICS.usable() if METRICS.get(name).backbone in ("", "clip", "lpips", "judge")]
    for runs in found.values():
        score(runs, tasks, scorer="toy-clip", metrics=metrics, progress=False)
    assert {metric for run in found[ways[0]] for _, metric, _ in run.scores()} == set(metrics)
    for way in ways[1:]:
        assert differing_scores(found[ways[0]], found[way]) == []
    for runs in found.values():
        sae = next(one for one in runs if one.spec.setting.name == "sae")
        for record in sae.records():
            if record.key.example_id in ALIKE and record.key.block_set in UNTOUCHED:
                assert record.switched == 0
                assert record.image_sha256 == _source_hash(sae, record.source_image)


def _source_hash(folder: RunFolder, name: str | None) -> str:
    return hashlib.sha256((folder.shared.path / str(name)).read_bytes()).hexdigest()


def test_choices_do_not_depend_on_what_is_computed_together(tmp_path: Path) -> None:
    """An example that differs in one block alone, and another one: more than one picture at a time.

    Two threads, which round otherwise as other batches do, are tried where slow tests run: they wait for each other.
    """
    tasks = load_suite("toy", examples=["toy-change-material-02", "toy-change-object-01"])
    features, _, neurons = settings(("mid.0", "up.0.1"))
    check_choices(tasks, [features, neurons], tmp_path, [(1, 1), (4, 1)])


@pytest.mark.slow
def test_choices_of_the_whole_suite_do_not_depend_on_what_is_computed_together(tmp_path: Path) -> None:
    check_choices(load_suite("toy"), settings(), tmp_path, WAYS)

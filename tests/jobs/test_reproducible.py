"""The same command gives the same bytes; other batches, shards and resume points give the same within rounding."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_tolerance import differing_scores
from scored_runs import TASKS, stored_run
from tiny_jobs import UNITS

from riebench.jobs.request import EngineOptions, RunRequest
from riebench.jobs.run import run_job
from riebench.scoring.score import score
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.records import EditRecord, ScoreRecord

comparison: Any = pytest.importorskip("benchmarks.crash.crash", reason="the benchmarks are in the checkout only")

LEVEL, SHARE = 1, 0.999
"""What pixels may differ by, in 1/255, on such a share of them."""


def elsewhere(job: RunRequest, place: Path) -> RunRequest:
    """The same job into another folder."""
    return replace(job, results=place, leaderboard=place / "leaderboard.md", report=place / "report")


def ends(*jobs: RunRequest) -> list[RunFolder]:
    """Runs jobs one after the other; the folders of the last."""
    for one in jobs:
        run_job(one, lambda _: None)
    return find_run_folders(jobs[-1].results)


def assert_close(found: list[RunFolder], wanted: list[RunFolder]) -> None:
    assert [folder.spec.run_id for folder in found] == [folder.spec.run_id for folder in wanted]
    for one, other in zip(found, wanted, strict=True):
        records = {record.key.digest: record for record in other.records()}
        assert {record.key.digest for record in one.records()} == set(records)
        for record in one.records():
            same = records[record.key.digest]
            assert (record.status, record.features, record.mask_share) == (same.status, same.features, same.mask_share)
            pixels = [folder.read_image(str(r.image)).astype(int) for folder, r in ((one, record), (other, same))]
            near = (np.abs(pixels[0] - pixels[1]) <= LEVEL).all(-1)
            assert near.mean() >= SHARE
    assert differing_scores(found, wanted) == []


def test_the_same_command_gives_the_same_bytes(job: RunRequest) -> None:
    first, second = (elsewhere(job, job.results.with_name(name)) for name in ("first", "second"))
    ends(first)
    ends(second)
    assert (first.results / "report" / "index.html").is_file()
    assert comparison.differences(first.results, second.results) == []


MADE: list[Path] = []
"""Where the runs are that all others are compared with, once they are made."""


@pytest.fixture
def wanted(job: RunRequest, tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """The usual runs, made once for all tests."""
    if not MADE:
        place = tmp_path_factory.mktemp("usual") / "out"
        ends(elsewhere(job, place))
        MADE.append(place)
    return find_run_folders(MADE[0])


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda job: [replace(job, batch_size=1)],
        lambda job: [replace(job, batch_size=7)],
        lambda job: [replace(job, engine=EngineOptions(shard=(i, 2)), batch_size=3) for i in (2, 1)] + [job],
        lambda job: [replace(job, limit=1), job],
        lambda job: [replace(job, settings=job.settings[1:]), replace(job, settings=job.settings[:1]), job],
    ],
    ids=["one by one", "in one batch", "in two shards", "example by example", "setting by setting"],
)
def test_batches_shards_and_resume_points_change_nothing_beyond_rounding(
    job: RunRequest, wanted: list[RunFolder], otherwise: Callable[[RunRequest], list[RunRequest]]
) -> None:
    assert_close(ends(*otherwise(job)), wanted)


class Killed(BaseException):
    """The end of the process, at the moment at which it is raised."""


@pytest.mark.parametrize(
    ("fault", "moment"), [(OSError(errno.ENOSPC, "No space left on device"), 3), (Killed(), 7)], ids=["disk", "kill"]
)
def test_a_run_that_goes_on_at_automatic_batch_size_is_the_same_within_rounding(
    job: RunRequest, wanted: list[RunFolder], fault: BaseException, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left makes smaller batches than an undisturbed run has, which moves pictures by rounding alone."""
    automatic = replace(job, batch_size=None, report=None)
    left, whole = [moment], RunFolder.append_many

    def fail_once(folder: RunFolder, records: Iterable[EditRecord]) -> None:
        some, room = list(records), left[0]
        left[0] -= len(some)
        if left[0] < 0 <= room:
            whole(folder, some[:room])
            raise fault
        whole(folder, some)

    monkeypatch.setattr(RunFolder, "append_many", fail_once)
    with pytest.raises(type(fault)):
        ends(automatic)
    kept = {digest for folder in find_run_folders(job.results) for digest in folder.finished_units()}
    assert len(kept) == moment
    found = ends(automatic)
    assert_close(found, wanted)
    sizes = {record.batch_size for folder in found for record in folder.records()}
    assert max(sizes) > 1 and left[0] < moment - UNITS


def test_scores_do_not_depend_on_their_batches(tmp_path: Path) -> None:
    """The real networks: the toy world's CLIP and LPIPS."""
    runs = []
    for size in (1, 32):
        run = stored_run(tmp_path / str(size))
        score([run], TASKS, scorer="toy-clip", batch_size=size, progress=False)
        runs.append(run)
    assert len(runs[0].scores()) > 6
    assert differing_scores(runs[:1], runs[1:]) == []


def test_a_score_that_differs_is_found(tmp_path: Path) -> None:
    runs = [stored_run(tmp_path / name) for name in ("one", "other")]
    for run, offset in zip(runs, (0.0, 2e-3), strict=True):
        first, second = (record.key.digest for record in run.records())
        picture = run.records()[0].picture_id
        values = {(first, "clip_gain"): 0.1 + offset, (first, "psnr_bg"): 30.0 + 10 * offset,
                  (second, "psnr_bg"): 70.0 + 100 * offset, (first, "clip_image"): 0.9,
                  (first, "clip_direction"): offset, (second, "clip_image"): 0.9999,
                  (second, "clip_direction"): 100 * offset}  # fmt: skip
        with run.open_for_writing():
            run.append_scores(
                ScoreRecord(unit=unit, metric=metric, version=1, picture=picture, value=value)
                for (unit, metric), value in values.items()
            )
    found = differing_scores(runs[:1], runs[1:])
    assert [line.split()[2] for line in found] == ["clip_gain:", "clip_direction:"]


def test_nothing_draws_from_a_shared_generator() -> None:
    """Every random number comes from a generator that was seeded for it: no other call can move it."""
    package = Path(sys.modules["riebench"].__file__ or "").parent
    shared = re.compile(r"np\.random\.(rand|normal|seed|shuffle|choice)|torch\.manual_seed\(|\brandom\.seed\(")
    text = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py") if "toyworld" not in path.parts}
    assert [path.name for path, source in text.items() if shared.search(source)] == []

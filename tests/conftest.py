"""Fixtures that tests of several packages use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from api_runs import toy_model as toy_model
from api_runs import toy_results as toy_results
from api_runs import toy_saes as toy_saes
from format_measurements import computed as computed
from format_measurements import measured as measured
from format_measurements import pytest_addoption as pytest_addoption
from format_measurements import pytest_sessionfinish as pytest_sessionfinish
from format_measurements import stored as stored
from hypothesis import settings
from records import make_record, make_spec
from tiny_jobs import job as job

from riebench.store.folder import RunFolder, run_path
from riebench.store.records import ScoreRecord, UnitKey

# Examples are the same in every run, and a slow machine is no reason to fail.
settings.register_profile("riebench", deadline=None, derandomize=True)
settings.load_profile("riebench")

# Two processes test at the same time, and the processes that tests start must round as they do: one thread each.
THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
torch.set_num_threads(THREADS)


@pytest.fixture(scope="session", autouse=True)
def commands_built_once() -> Iterator[None]:
    """Let all calls of the command line share its commands: building them takes longer than many a call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lru_cache(typer.main.get_command))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """An empty run folder."""
    return RunFolder(run_path(tmp_path / "results", "toy", "toy-turbo", "sae"), make_spec())


@pytest.fixture
def filled(folder: RunFolder) -> RunFolder:
    """A finished run: two categories, three examples each, two block sets, known scores."""
    keys = [
        UnitKey(
            task=category,
            task_version=1,
            category=category,
            example_id=f"{category}-{number}",
            example_hash="0" * 16,
            block_set=block_set,
            strength=1.0,
            seed=0,
        )
        for category in ("change_object", "change_color")
        for number in range(3)
        for block_set in ("mid.0", "all")
    ]
    with folder.open_for_writing({"device": "cpu"}, keys) as run:
        for key in keys:
            name, digest = run.write_image(key, np.full((8, 8, 3), 7, np.uint8))
            run.append(make_record(key, name, digest))
            number = int(key.example_id[-1])
            gain = (0.01 if key.category == "change_object" else 0.03) + 0.01 * number
            run.append_scores(
                ScoreRecord(unit=key.digest, metric=metric, version=1, picture=digest[:8], value=value)
                for metric, value in {"clip_gain": gain, "lpips": 0.2, "judge_target": 1.0}.items()
            )
    return folder

"""The set `features` on the toy world: made, scored and measured, with features fixed in other examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from riebench.analysis.sae_score import MEASURES, measure_runs
from riebench.models.loading import load_model
from riebench.runs import engines
from riebench.scoring.score import score
from riebench.tasks.settings import load_settings
from riebench.tasks.suites import load_suite

COUNTS = (1, 2, 3, 5)
NAMES = [f"{name}_n{count}" for name in ("sae", "sae_fixed") for count in COUNTS]


def test_few_features_of_the_toy_saes_are_made_scored_and_measured(tmp_path: Path) -> None:
    settings = load_settings("toy", [*NAMES, "activation_patch_once"], "features")
    settings = tuple(setting.model_copy(update={"block_mode": "together"}) for setting in settings)
    tasks, pool = (load_suite("toy", categories=["change_color"], limit=limit) for limit in (1, 2))
    folders = engines.run(
        "local", tasks, settings, load_model("toy-turbo"), results_root=tmp_path, pool=pool, progress=False
    )
    score(folders, progress=False)
    frame = measure_runs(folders)
    means = dict(frame.groupby("measure").value.mean())
    # Everything that takes no more features than were tested, nothing that does.
    untested = {name for name in MEASURES if name.endswith(("_10", "_20"))}
    whole = {"gain_area", "log_features_for_half", "over_random_few"}
    assert set(means) - {"gain_few_2"} == set(MEASURES) - untested - whole - {"gain_few_2"}
    assert np.isfinite(list(means.values())).all()
    assert set(frame.block) == {"together"} and len(set(frame.sae)) == 1
    by_name = {folder.path.name: folder.records()[0] for folder in folders}
    for name in NAMES:
        record, count = by_name[name], int(name.rpartition("_n")[2])
        assert record.status == "ok"
        assert sum(len(block.add) for block in record.features.values()) == count
        assert sum(len(block.remove) for block in record.features.values()) <= count
    # The features of other examples are others than the example's own.
    assert by_name["sae_n5"].features != by_name["sae_fixed_n5"].features

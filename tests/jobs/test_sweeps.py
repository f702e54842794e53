"""The sweep set of configurations: every method at six edit strengths or more, chosen by an option, run on the toy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riebench.analysis.leaderboard.sae_scores import GROUPS
from riebench.analysis.sae_score import FEATURE_COUNTS
from riebench.analysis.sae_score.effects import counted
from riebench.errors import RiebenchError
from riebench.generation.edits import whole_steps
from riebench.jobs.dry_run import forecast_job
from riebench.jobs.request import RunRequest
from riebench.methods.check import check_setting
from riebench.models.loading import load_model
from riebench.runs import engines
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_settings, setting_names, settings_sets
from riebench.tasks.suites import load_suite

KNOBLESS = {"no_edit", "target_prompt"}
SWEPT = {
    "sae", "activation_patch", "mean_steering", "neurons", "random_features", "embed_lerp", "prompt_switch",
    "masked_target", "random_directions", "wrong_example", "concept_steering", "replace_patches",
}  # fmt: skip
SHARES = {"embed_lerp", "prompt_switch", "masked_target"}
"""Methods whose strength is a share."""
WHOLE_STEPS = {"prompt_switch", "masked_target", "img2img", "p2p"}
"""Methods whose strength stands for a number of steps."""


@pytest.mark.parametrize("suite", ["toy", "sdxl"])
def test_every_method_is_swept_over_six_levels_and_the_same_controls_as_the_sae(suite: str) -> None:
    assert settings_sets(suite) == ("main", "features", "paper", "sweep")
    settings = load_settings(suite, settings_set="sweep")
    assert {setting.method for setting in settings} >= SWEPT | KNOBLESS
    for setting in settings:
        check_setting(setting, setting.name)
        assert setting.description
    by_name = {setting.name: setting for setting in settings}
    sae = by_name["sae_sweep"]
    for control in ("random_features_sweep", "random_directions", "wrong_example"):
        assert by_name[control].strengths == sae.strengths and by_name[control].params == sae.params
        assert by_name[control].blocks == sae.blocks
    assert by_name["sae_each_sweep"].block_mode == "each" and sae.block_mode == "together"
    for setting in settings:
        if setting.method in SHARES and setting.name in SHARES:
            # Both ends, and on a run of four steps every number of them.
            assert {0.0, 0.25, 0.5, 0.75, 1.0} <= set(setting.strengths) or setting.method == "embed_lerp"
            assert {setting.strengths[0], setting.strengths[-1]} == {0.0, 1.0}


@pytest.mark.parametrize(("suite", "steps"), [("toy", 4), ("sdxl", 20)])
def test_every_knob_has_six_levels_that_give_different_pictures(suite: str, steps: int) -> None:
    levels: dict[str, set[tuple[str, float]]] = {}
    for setting in load_settings(suite, settings_set="sweep"):
        schedule = int(str(setting.params.get("steps", steps)))
        for strength in setting.strengths:
            level = strength
            if setting.method in WHOLE_STEPS:
                level = int(schedule * strength) if setting.method == "img2img" else whole_steps(strength, schedule)
            if level:
                levels.setdefault(setting.group or setting.name, set()).add((str(setting.params), level))
    assert {name for name, found in levels.items() if len(found) < 6} == KNOBLESS


def test_sets_share_no_folder_unless_they_mean_the_same() -> None:
    for suite in ("toy", "sdxl"):
        both = set(setting_names(suite)) & set(setting_names(suite, "sweep"))
        main, sweep = ({one.name: one for one in load_settings(suite, both, which)} for which in ("main", "sweep"))
        assert both == KNOBLESS and main == sweep
        used = {*setting_names(suite), *setting_names(suite, "sweep")}
        assert not set(setting_names(suite, "paper")) & used
        assert not set(setting_names(suite, "features")) & {*used, *setting_names(suite, "paper")}


@pytest.mark.parametrize("suite", ["toy", "sdxl"])
def test_features_are_counted_by_every_method_alike_and_nothing_else_differs(suite: str) -> None:
    settings = load_settings(suite, settings_set="features")
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        check_setting(setting, setting.name)
        assert setting.strengths == (1.0,) and setting.description
        groups.setdefault(str(setting.group), []).append(setting)
    assert set(groups) == GROUPS
    (patch,) = groups.pop("activation_patch_once")
    assert (patch.method, patch.block_mode, patch.params) == ("activation_patch", "both", {})
    for members in groups.values():
        assert sorted(int(str(one.params["n_features"])) for one in members) == list(FEATURE_COUNTS)
        assert len({(one.method, one.block_mode, one.blocks, *one.params) for one in members}) == 1
        assert {one.blocks for one in members} == {patch.blocks}
        assert all(counted(one) == (one.method, one.params["n_features"]) for one in members)


def test_the_main_set_is_run_unless_another_is_asked_for(tmp_path: Path) -> None:
    names = {one.name for one in RunRequest(limit=1).plan()[1]}
    assert names == set(setting_names("toy")) == set(setting_names("toy", "main"))
    swept = {one.name for one in RunRequest(limit=1, settings_set="sweep").plan()[1]}
    assert swept == set(setting_names("toy", "sweep")) != names
    assert [one.name for one in RunRequest(settings=("embed_lerp",), settings_set="sweep").plan()[1]] == ["embed_lerp"]
    assert setting_names(str(tmp_path), "sweep") == setting_names("sdxl", "sweep")
    assert (RunRequest().seeds, RunRequest(settings_set="sweep").seeds) == ((0,), (0, 1, 2))
    assert RunRequest(settings_set="sweep", seeds=(4,)).seeds == (4,)
    assert RunRequest(settings_set="sweep", profile="paper").seeds == (42,)
    with pytest.raises(RiebenchError, match=r"unknown set of configurations 'swep' \(did you mean 'sweep'\?\)"):
        RunRequest(settings_set="swep").plan()
    words = "unknown configuration 'embed_lerp'; it is in another set: --settings-set sweep"
    with pytest.raises(RiebenchError, match=words):
        RunRequest(settings=("embed_lerp",)).plan()


def test_a_name_of_saes_keeps_runs_of_several_saes_apart_in_one_folder() -> None:
    named = {one.name for one in RunRequest(settings_set="features", sae_name="mine", limit=1).plan()[1]}
    usual = {one.name for one in RunRequest(settings_set="features", limit=1).plan()[1]}
    assert named & usual == {"activation_patch_once"}
    assert {name.removesuffix(".mine") for name in named} == usual
    with pytest.raises(RiebenchError, match="--sae-name 'a/b': use letters, digits"):
        RunRequest(sae_name="a/b").plan()


def test_new_methods_run_on_the_toy_model(tmp_path: Path) -> None:
    names = sorted(SWEPT - {"sae", "activation_patch", "mean_steering", "neurons", "random_features"})
    few = {"concept_steering": {"params": {"examples": 2}}}
    settings = [
        setting.model_copy(update={"strengths": (0.0, 0.5, 1.0), **few.get(setting.method, {})})
        for setting in load_settings("toy", names, "sweep")
    ]
    whole = load_suite("toy", categories=["change_color"])
    tasks = load_suite("toy", categories=["change_color"], limit=1)
    folders = engines.run(
        "local", tasks, settings, load_model("toy-turbo"), results_root=tmp_path, pool=whole, progress=False
    )
    shared = folders[0].shared
    for folder in folders:
        records = {record.key.strength: record for record in folder.records()}
        assert {record.status for record in records.values()} == {"ok"} and len(records) == 3
        found = {strength: folder.read_image(str(record.image)) for strength, record in records.items()}
        source, target = (shared.read_image(str(name)) for name in (records[0].source_image, records[0].target_image))
        assert np.array_equal(found[0.0], source)
        assert not np.array_equal(found[0.5], source) and not np.array_equal(found[0.5], target)
        ended = folder.path.name in ("embed_lerp", "prompt_switch")
        assert np.array_equal(found[1.0], target) == ended


def test_a_dry_run_counts_the_examples_that_are_looked_at_beside(tmp_path: Path) -> None:
    names = ("concept_steering", "wrong_example", "random_directions")
    request = RunRequest(settings_set="sweep", categories=("change_color",), limit=2, results=tmp_path, seeds=(0, 1))
    jobs = [replace(request, settings=(name,)) for name in names]
    # Two seeds: 17 examples serve all others of a category; or each of two has one of its own.
    assert [forecast_job(job).extra_runs for job in jobs] == [2 * 2 * 17, 2 * 2 * 2, 0]

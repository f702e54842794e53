"""The trade-off artefact: means and areas with known answers, equal shares of pools, gaps reported as they are."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from paper_runs import CATEGORIES, keys, level, stored

from riebench.analysis.configurations import EVERYTHING
from riebench.jobs.request import RunRequest
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.families.sdxl.shape import SDXL
from riebench.paper.artefact import select_rows
from riebench.paper.comparison import comparisons_by_seeds, join_groups, read_entries
from riebench.paper.job import PaperJob
from riebench.paper.output import text_files, write_artefact
from riebench.paper.recipes import tradeoff
from riebench.paper.recipes.equal_share import equal_share_rows, find_pairs
from riebench.paper.registry import RECIPES
from riebench.paper.runs import SelectionPools, collect_runs, count_pools, paper_settings, share_text, switched_count
from riebench.store.folder import RunFolder
from riebench.store.records import UnitKey
from riebench.tasks.settings import load_settings

TOY = SelectionPools(dict.fromkeys(BLOCKS, 384), dict.fromkeys(BLOCKS, 1024))
SHOWN = ["lpips", "clip_gain", "judge_target", "judge_kept"]
STRENGTHS = (0.5, 1.0)


def sae(results: Path, gain: float = 0.02, name: str = "sae_1_of_128", seeds: tuple[int, ...] = (0,)) -> RunFolder:
    """Features at LPIPS 0.1 and 0.2; the judge sees the target in change_object alone, where all else is kept."""

    def scores(key: UnitKey) -> dict[str, float | None]:
        reached = float(key.category == "change_object")
        return level(0.2 * key.strength, 2 * gain * key.strength, reached)

    params = {"n_features": 12}
    setting: dict[str, Any] = {"name": name, "method": "sae", "params": params, "strengths": STRENGTHS}
    return stored(results, setting, keys(("all",), STRENGTHS, seeds), scores)


def neurons(results: Path, gain: float = 0.01, count: int = 32) -> RunFolder:
    setting = {
        "name": "neurons_1_of_128", "method": "neurons", "params": {"n_units": count}, "strengths": STRENGTHS,
    }  # fmt: skip
    return stored(
        results, setting, keys(("all",), STRENGTHS), lambda key: level(0.2 * key.strength, 2 * gain * key.strength)
    )


def ends(results: Path, seeds: tuple[int, ...] = (0,)) -> list[RunFolder]:
    units = keys(("none",), (1.0,), seeds)
    target = {"name": "target_prompt", "method": "target_prompt", "blocks": (), "access": "P"}
    none = {"name": "no_edit", "method": "no_edit", "blocks": (), "access": ""}
    return [
        stored(results, none, units, lambda _key: level(0.0, 0.0)),
        stored(results, target, units, lambda key: level(0.5, 0.08 if key.category == "change_object" else 0.12, 1.0)),
    ]


def test_each_level_has_its_means_with_counts_and_no_gap_is_filled(tmp_path: Path) -> None:
    def scores(key: UnitKey) -> dict[str, float | None]:
        number = int(key.example_id.rsplit("-", 1)[1])
        gain = None if key.category == "change_color" and number == 3 else 0.01 * number
        return {"lpips": 0.1 * number, "clip_gain": gain}

    setting = {"name": "sae_1_of_128", "method": "sae", "params": {"n_features": 12}}
    folder = stored(tmp_path, setting, keys(("all",), (1.0,)), scores)
    rows = tradeoff.point_rows(folder, TOY, ["lpips", "clip_gain"])
    assert [row["category"] for row in rows] == ["all", *CATEGORIES]
    whole, first, second = rows
    assert (first["scored"], first["expected"], first["examples"], first["seeds"]) == (4, 4, 4, 1)
    assert first["clip_gain"] == pytest.approx(0.015) and first["lpips"] == pytest.approx(0.15)
    # The missing gain shows in the counts of the row; the mean is that of the three that are there.
    assert (second["scored"], second["expected"]) == (3, 4)
    assert second["clip_gain"] == pytest.approx(0.01) and second["lpips"] == pytest.approx(0.15)
    assert (whole["scored"], whole["expected"], whole["share"], whole["switched"]) == (7, 8, "1/128", 12)
    low, mean, high = (float(str(whole[name])) for name in ("clip_gain_low", "clip_gain", "clip_gain_high"))
    assert low < mean < high


def test_area_completion_and_truth_have_their_known_values(tmp_path: Path) -> None:
    folders = [sae(tmp_path), *ends(tmp_path)]
    (comparison,) = comparisons_by_seeds(read_entries(folders), replicates=200)
    rows = tradeoff.area_rows(comparison)
    whole = select_rows(rows, category=EVERYTHING)[0]
    # Half of the first level at the budget of 0.05, both levels at theirs, between them at 0.15, the last from then on.
    assert whole["area"] == pytest.approx((0.01 + 0.02 + 0.03 + 7 * 0.04) / 10)
    assert whole["completion"] == pytest.approx(0.034 / 0.10)
    assert select_rows(rows, category="change_object")[0]["completion"] == pytest.approx(0.034 / 0.08)
    # The target is there in one of two categories, at every level: true at nine of ten budgets, half so at one.
    assert whole["true_area"] == pytest.approx(0.475) and whole["truth_at_choice"] == pytest.approx(0.475)
    assert select_rows(rows, category="change_object")[0]["true_area"] == pytest.approx(0.95)
    assert select_rows(rows, category="change_color")[0]["true_area"] == 0
    assert (whole["scored"], whole["expected"], whole["levels"], whole["note"]) == (16, 16, 2, "")


def test_a_method_with_a_gap_has_no_area_and_says_why(tmp_path: Path) -> None:
    def scores(key: UnitKey) -> dict[str, float | None]:
        return level(0.1, 0.02) if key.example_id != "change_color-0" else {"lpips": 0.1}

    setting = {"name": "mean_steering_sweep", "method": "mean_steering"}
    holed = stored(tmp_path, setting, keys(("all",), (1.0,)), scores)
    (comparison,) = comparisons_by_seeds(read_entries([sae(tmp_path), holed]), replicates=50)
    row = select_rows(tradeoff.area_rows(comparison), settings="mean_steering_sweep", category=EVERYTHING)[0]
    assert row["area"] is None and row["true_area"] is None
    assert row["note"] == "1 of 8 units of mean_steering_sweep have no clip_gain"
    assert (row["scored"], row["expected"]) == (7, 8)


def test_methods_with_other_seeds_are_not_compared_with_each_other(tmp_path: Path) -> None:
    folders = [sae(tmp_path, name="sae_sweep", seeds=(0, 1, 2)), sae(tmp_path), neurons(tmp_path), *ends(tmp_path)]
    found = comparisons_by_seeds(read_entries(folders), replicates=50)
    assert [(one.seeds, {e.name for e in one.methods}) for one in found] == [
        (3, {"sae_sweep"}), (1, {"sae_1_of_128", "neurons_1_of_128"}),
    ]  # fmt: skip
    assert [len(one.ends) for one in found] == [0, 2]
    row = tradeoff.area_rows(found[0])[0]
    assert row["area"] is not None and row["completion"] is None


def test_settings_of_a_group_are_one_method_with_all_their_levels(tmp_path: Path) -> None:
    everything = read_entries([sae(tmp_path), sae(tmp_path, 0.05, "sae_1_of_32"), *ends(tmp_path)])
    groups = {"sae_1_of_128": "sae_shares", "sae_1_of_32": "sae_shares"}
    (comparison,) = comparisons_by_seeds(join_groups(everything, groups), replicates=50)
    (entry,) = comparison.methods
    assert (entry.name, entry.levels) == ("sae_shares", 4)
    # The better of the two settings is taken.
    assert tradeoff.area_rows(comparison)[0]["area"] == pytest.approx((0.025 + 0.05 + 0.075 + 7 * 0.10) / 10)


def test_shares_are_exact_and_only_equal_ones_meet(tmp_path: Path) -> None:
    folders = [sae(tmp_path), neurons(tmp_path)]
    settings = {folder.spec.setting.name: folder.spec.setting for folder in folders}
    assert TOY.share(settings["sae_1_of_128"]) == TOY.share(settings["neurons_1_of_128"]) == Fraction(1, 128)
    assert share_text(Fraction(10, 1536)) == "1/153.6" and share_text(None) is None
    everything = read_entries(folders)
    (pair,) = find_pairs(everything, settings, TOY)
    assert pair.share == Fraction(1, 128)
    rows = equal_share_rows(everything, settings, TOY, replicates=200)
    whole = select_rows(rows, category=EVERYTHING)[0]
    assert whole["sae_area"] == pytest.approx(0.034) and whole["neurons_area"] == pytest.approx(0.017)
    assert whole["difference"] == pytest.approx(0.017) == whole["difference_low"]
    assert whole["true_difference"] == pytest.approx(0.475) and whole["p"] is not None
    assert (whole["features"], whole["units"], whole["scored"], whole["expected"]) == (12, 32, 32, 32)
    other = {
        **settings,
        "neurons_1_of_128": settings["neurons_1_of_128"].model_copy(update={"params": {"n_units": 27}}),
    }
    assert find_pairs(everything, other, TOY) == []
    adaptive = {"n_features": 12, "adaptive": True}
    other = {**settings, "sae_1_of_128": settings["sae_1_of_128"].model_copy(update={"params": adaptive})}
    assert find_pairs(everything, other, TOY) == []
    half = settings["sae_1_of_128"].model_copy(update={"edit_steps": (0.0, 0.5)})
    assert find_pairs(everything, {**settings, "sae_1_of_128": half}, TOY) == []
    assert find_pairs(everything, settings, SelectionPools({}, TOY.units)) == []


def test_the_shipped_settings_are_at_equal_shares_of_the_real_pools() -> None:
    toy = count_pools(PaperJob())
    assert toy == TOY
    sdxl = SelectionPools(dict.fromkeys(BLOCKS, 5120), {block: SDXL.units(block) for block in BLOCKS})
    for suite, pools in (("toy", toy), ("sdxl", sdxl)):
        found = {one.name: one for one in load_settings(suite, settings_set="paper")}
        for part in (128, 32, 8):
            for method in ("sae", "neurons"):
                setting = found[f"{method}_1_of_{part}"]
                assert pools.share(setting) == Fraction(1, part) and len(setting.strengths) == 6
                assert setting.group == f"{method}_shares"
        base = found["sae_1_of_128"]
        for name, switch in (("add_only", True), ("delete_uses_target", False), ("shares", "per_block")):
            (turned,) = [one for one in found.values() if name in one.params]
            assert turned.params == {**base.params, name: switch} and turned.name in tradeoff.SWITCHES
    assert switched_count(found["sae_1_of_128"]) == 160


def everything_stored(results: Path) -> None:
    """Every setting that the trade-off asks for, at few levels."""
    ends(results)
    for name in (*tradeoff.STEERING_SETTINGS, *paper_settings("toy")):
        which = "sweep" if name in tradeoff.STEERING_SETTINGS else "paper"
        (setting,) = load_settings("toy", [name], which)
        strengths = tuple(setting.strengths[:2])
        stored(
            results, setting.model_copy(update={"strengths": strengths}), keys(("all",), strengths),
            lambda key: level(0.1 * key.strength, 0.02 * key.strength, float(key.strength >= 1)),
        )  # fmt: skip


def test_the_artefact_is_made_from_stored_results_alone_and_twice_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riebench.paper.runs.produce", lambda *_: pytest.fail("nothing is missing"))
    monkeypatch.setattr(tradeoff, "REPLICATES", 100)
    everything_stored(tmp_path / "results")
    job = PaperJob(out=tmp_path / "paper", work=tmp_path / "work", results=tmp_path / "results")
    artefact = tradeoff.make(job)
    assert text_files(artefact) == text_files(tradeoff.make(job))
    switches = artefact.table("switches").rows
    assert {row["switch"] for row in switches} >= {"subtract_off: false", "delete_uses_target: false"}
    assert {row["category"] for row in switches} == {"all"} and {row["strength"] for row in switches} == {1.0}
    assert artefact.table("equal-share").rows[0]["difference"] == 0
    assert {row["settings"] for row in artefact.table("areas").rows} == {
        "sae_shares", "neurons_shares", "activation_patch_sweep", "mean_steering_sweep",
    }  # fmt: skip
    written = write_artefact(job.out, RECIPES["trade-off"], artefact)
    assert {path.suffix for path in written} == {".json", ".md", ".csv", ".tex", ".svg", ".png"}
    stored_data = json.loads((job.out / "data" / "trade-off.json").read_text())
    assert stored_data["settings"]["features"]["all"] == 1536
    assert stored_data["settings"]["feed-forward units"]["all"] == 4096


def test_only_what_is_not_stored_is_run_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def produce(job: RunRequest, _say: Any) -> list[RunFolder]:
        asked.append(job.settings)
        assert job.results == tmp_path / "work" / "results" and job.limit == 2 and job.seeds == (0,)
        tasks, settings = job.plan()
        units = [
            UnitKey(
                task=task.name, task_version=task.version, category=task.category, example_id=example.id,
                example_hash=example.content_hash, block_set="all", strength=strength, seed=0,
            )
            for setting in settings for strength in setting.strengths for task in tasks for example in task.examples
        ]  # fmt: skip
        return [stored(job.results, setting, units, lambda _key: level(0.1, 0.01)) for setting in settings]

    monkeypatch.setattr("riebench.paper.runs.produce", produce)
    sae(tmp_path / "results")
    job = PaperJob(work=tmp_path / "work", results=tmp_path / "results", limit=2)
    wanted = {"sae_1_of_128": "paper", "sae_add_only": "paper"}
    found = collect_runs(job, wanted)
    assert asked == [("no_edit", "target_prompt"), ("sae_add_only",)]
    assert [folder.spec.setting.name for folder in found.folders] == [
        "sae_1_of_128", "no_edit", "target_prompt", "sae_add_only",
    ]  # fmt: skip
    assert [f.path for f in collect_runs(job, wanted).folders] == [f.path for f in found.folders]
    assert len(asked) == 2


@pytest.mark.slow
def test_short_runs_are_made_scored_and_read(tmp_path: Path) -> None:
    job = PaperJob(work=tmp_path / "work", results=tmp_path / "results", limit=1)
    found = collect_runs(job, {"sae_add_only": "paper"})
    rows = {row["setting"]: row for f in found.folders for row in tradeoff.point_rows(f, TOY, SHOWN)[:1]}
    assert set(rows) == {"no_edit", "target_prompt", "sae_add_only"}
    assert {(row["scored"], row["expected"], row["seeds"]) for row in rows.values()} == {(9, 9, 1)}
    assert rows["no_edit"]["lpips"] == 0 and float(str(rows["sae_add_only"]["lpips"])) > 0
    assert all(not record.features[block].remove for record in found.folders[-1].records() for block in BLOCKS)

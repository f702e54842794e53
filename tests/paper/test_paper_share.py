"""Feature share, the causal block table and where the two disagree: hand-made records with known answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from paper_runs import CATEGORIES, keys, level, stored

from riebench.analysis.configurations import EVERYTHING
from riebench.blocks import block_set_name
from riebench.jobs.request import RunRequest
from riebench.paper.artefact import Row, select_rows
from riebench.paper.comparison import read_entries
from riebench.paper.job import PaperJob
from riebench.paper.output import text_files, write_artefact
from riebench.paper.recipes import blocks, share
from riebench.paper.recipes.share import disagreement_notes, disagreement_rows, kendall_tau, top_block
from riebench.paper.registry import RECIPES
from riebench.scoring.profiles import PROFILES
from riebench.store.folder import RunFolder
from riebench.store.records import UnitKey
from riebench.tasks.schema import Setting

TEN = {"n_features": 10}


def in_two_blocks(key: UnitKey) -> Mapping[str, tuple[Sequence[int], Sequence[int]]]:
    """On: 3 of 4 in mid.0 for change_object, 1 of 4 for change_color. Off: all in up.0.1, but in mid.0 for seed 1."""
    inside = 3 if key.category == "change_object" else 1
    off = ((7, 8, 9, 10), ()) if key.seed == 1 else ((), (7, 8, 9, 10))
    return {"mid.0": (range(inside), off[0]), "up.0.1": (range(4 - inside), off[1])}


def chosen(
    results: Path, name: str = "sae_1_of_128", params: dict[str, Any] | None = None, seeds: tuple[int, ...] = (0,)
) -> RunFolder:
    setting = {"name": name, "method": "sae", "params": params or {"n_features": 12}, "strengths": (0.5, 1.0)}
    units = keys(("all",), (0.5, 1.0), seeds)
    return stored(results, setting, units, lambda _key: level(0.1, 0.01), in_two_blocks)


def test_shares_are_counted_on_and_off_apart_per_block_and_category(tmp_path: Path) -> None:
    rows = share.share_rows(chosen(tmp_path))
    assert {row["side"] for row in rows} == {"on", "off"} and {row["block"] for row in rows} == {"mid.0", "up.0.1"}
    on = {(r["block"], r["category"]): r["share"] for r in select_rows(rows, side="on")}
    assert on["mid.0", "change_object"] == 0.75 and on["up.0.1", "change_object"] == 0.25
    assert on["mid.0", "change_color"] == 0.25 and on["mid.0", EVERYTHING] == 0.5
    off = {(r["block"], r["category"]): r["share"] for r in select_rows(rows, side="off")}
    assert off["up.0.1", EVERYTHING] == 1.0 and off["mid.0", EVERYTHING] == 0.0
    # Two strengths choose alike: each picture counts once.
    assert {(r["counted"], r["expected"]) for r in rows if r["category"] != EVERYTHING} == {(4, 4)}
    assert {
        (r["counted"], r["expected"], r["examples"], r["seeds"]) for r in select_rows(rows, category=EVERYTHING)
    } == {(8, 8, 8, 1)}


def test_seeds_are_repeats_inside_an_example(tmp_path: Path) -> None:
    rows = select_rows(share.share_rows(chosen(tmp_path, seeds=(0, 1))), side="off", category="change_object")
    assert {(r["block"], r["share"], r["counted"], r["examples"], r["seeds"]) for r in rows} == {
        ("mid.0", 0.5, 8, 4, 2), ("up.0.1", 0.5, 8, 4, 2),
    }  # fmt: skip
    # Every example has the same mean over its seeds, so that nothing varies between examples.
    assert {(r["share_low"], r["share_high"]) for r in rows} == {(0.5, 0.5)}


def test_pictures_that_are_not_there_are_counted_as_missing(tmp_path: Path) -> None:
    setting = {"name": "sae_1_of_128", "method": "sae", "params": {"n_features": 12}}
    folder = stored(
        tmp_path, setting, keys(("all",), (1.0,)), lambda _key: level(0.1, 0.01), in_two_blocks,
        lambda key: key.category == "change_color" or key.example_id == "change_object-1",
    )  # fmt: skip
    rows = {(r["category"], r["block"]): r for r in select_rows(share.share_rows(folder), side="on")}
    row = rows["change_object", "mid.0"]
    assert (row["counted"], row["expected"], row["examples"], row["share"]) == (1, 4, 1, 0.75)
    assert (rows[EVERYTHING, "mid.0"]["counted"], rows[EVERYTHING, "mid.0"]["expected"]) == (5, 8)


def test_a_category_without_any_picture_is_listed_without_a_share(tmp_path: Path) -> None:
    setting = {"name": "sae_1_of_128", "method": "sae", "params": {"n_features": 12}}
    folder = stored(
        tmp_path, setting, keys(("all",), (1.0,)), lambda _key: level(0.1, 0.01), in_two_blocks,
        lambda key: key.category == "change_color",
    )  # fmt: skip
    row = select_rows(share.share_rows(folder), side="on", category="change_object", block="mid.0")[0]
    assert (row["share"], row["counted"], row["expected"]) == (None, 0, 4)
    assert "–" in share.share_table(share.share_rows(folder)).markdown(2)


def test_one_folder_stands_for_each_choice_and_random_ones_for_none(tmp_path: Path) -> None:
    units = keys(("all",), (1.0,))
    drawn = {"name": "random_features", "method": "random_features", "params": {"n_features": 12}}
    folders = [
        chosen(tmp_path, "sae_1_of_128"),
        chosen(tmp_path, "more_seeds", seeds=(0, 1, 2)),
        chosen(tmp_path, "sae_adaptive", {"n_features": 12, "adaptive": True}),
        chosen(tmp_path, "sae_sweep", TEN),
        chosen(tmp_path, "sae_per_block_shares", {"n_features": 12, "shares": "per_block"}),
        chosen(tmp_path, "separate", {"n_features": 12, "ranking": "separate"}),
        stored(tmp_path, drawn, units, lambda _key: level(0.1, 0.0), in_two_blocks),
        stored(
            tmp_path, {"name": "sae_each", "method": "sae", "params": TEN, "block_mode": "each"}, units,
            lambda _key: level(0.1, 0.0), lambda _key: {"mid.0": ((1,), (2,))},
        ),
    ]  # fmt: skip
    found = share.distinct_choices(folders)
    assert [folder.spec.setting.name for folder in found] == ["sae_sweep", "more_seeds", "sae_per_block_shares"]
    assert [share.variant_of(folder.spec.setting) for folder in found] == ["pooled", "pooled", "per_block"]


def effects_stored(results: Path, hole: str = "") -> list[RunFolder]:
    """Gain 0.04 of all blocks together; mid.0 alone has it in change_object, up.0.1 in change_color; no other has."""
    home = {"mid.0": "change_object", "up.0.1": "change_color"}

    def scores(key: UnitKey) -> dict[str, float | None]:
        does = key.block_set == "all" or home.get(key.block_set) == key.category
        found = level(0.1 * key.strength, 0.04 * key.strength if does else 0.0, float(does))
        return {**found, "clip_gain": None} if key.block_set == hole and key.example_id == "change_color-0" else found

    each = {"name": "sae_each_sweep", "method": "sae", "params": TEN, "block_mode": "each", "strengths": (0.5, 1.0)}
    whole = {"name": "sae_sweep", "method": "sae", "params": TEN, "strengths": (0.5, 1.0, 2.0)}
    both = {"name": "sae", "method": "sae", "params": TEN, "block_mode": "both"}
    single = ("down.2.1", "mid.0", "up.0.0", "up.0.1")
    return [
        stored(results, each, keys(single, (0.5, 1.0)), scores),
        stored(results, whole, keys(("all",), (0.5, 1.0, 2.0)), scores, in_two_blocks),
        stored(results, both, keys((*single, "all"), (1.0,)), scores, in_two_blocks),
    ]


def test_blocks_are_methods_of_their_own_at_the_levels_that_all_have(tmp_path: Path) -> None:
    folders = effects_stored(tmp_path)
    family = blocks.single_block_families(read_entries(folders, single_blocks=True), folders)[0]
    assert family.levels == (0.5, 1.0) and list(family.blocks) == ["down.2.1", "mid.0", "up.0.0", "up.0.1", "all"]
    assert {len(entry.configurations) for entry in family.blocks.values()} == {2}
    rows = blocks.block_effects(folders, replicates=200)
    cells = {(row["block"], row["category"]): row for row in rows}
    # LPIPS 0.05 gives 0.02 at the first budget, LPIPS 0.1 gives 0.04 at the nine others; chosen over all categories,
    # a block that gains in one of two is still chosen.
    mid = cells["mid.0", "change_object"]
    assert mid["area"] == pytest.approx((0.02 + 9 * 0.04) / 10) and mid["difference"] == pytest.approx(0.0)
    assert cells["mid.0", "change_color"]["area"] == 0
    assert cells["mid.0", "change_color"]["difference"] == pytest.approx(-0.038)
    assert cells["mid.0", "change_object"]["true_area"] == pytest.approx(1.0)
    assert cells["down.2.1", EVERYTHING]["true_area"] == 0 and cells["all", EVERYTHING]["true_area"] == 1
    assert cells["all", EVERYTHING]["difference"] is None
    assert (mid["scored"], mid["expected"], mid["levels"], mid["switched"], mid["note"]) == (8, 8, 2, 10, "")


def test_a_block_with_a_gap_has_no_effect_and_says_why(tmp_path: Path) -> None:
    rows = blocks.block_effects(effects_stored(tmp_path, hole="up.0.1"), replicates=50)
    cells = {(row["block"], row["category"]): row for row in rows}
    holed = cells["up.0.1", "change_object"]
    assert holed["area"] is None and holed["difference"] is None and "no clip_gain" in str(holed["note"])
    assert (cells["up.0.1", "change_color"]["scored"], cells["up.0.1", "change_color"]["expected"]) == (6, 8)
    assert cells["mid.0", "change_object"]["area"] is not None


def test_without_single_blocks_there_is_no_block_table(tmp_path: Path) -> None:
    assert blocks.block_effects([chosen(tmp_path)], replicates=10) == []


def share_row(block: str, value: float | None, side: str = "on", variant: str = "pooled", switched: int = 10) -> Row:
    return {
        "variant": variant, "setting": f"{variant}_{switched}", "switched": switched, "side": side, "block": block,
        "category": "change_color", "share": value,
    }  # fmt: skip


def effect_row(block: str, area: float | None, true: float | None = None, low: float = -1.0) -> Row:
    return {
        "block": block, "switched": 10, "category": "change_color", "area": area, "area_low": low, "true_area": true,
        "true_area_low": true,
    }  # fmt: skip


def test_disagreement_names_both_blocks_and_what_lies_where_nothing_happens() -> None:
    shares = [
        share_row("mid.0", 0.6), share_row("mid.0", 0.4, "off"), share_row("up.0.0", 0.1),
        share_row("up.0.0", 0.1, "off"), share_row("up.0.1", 0.3), share_row("up.0.1", 0.5, "off"),
        # Another number of features than the single blocks were edited with: not what is compared.
        share_row("up.0.0", 1.0, switched=192), share_row("up.0.0", 1.0, "off", switched=192),
    ]  # fmt: skip
    effects = [
        effect_row("mid.0", 0.001, 0.0, low=-0.002), effect_row("up.0.0", 0.0, 0.0, low=0.0),
        effect_row("up.0.1", 0.09, 0.5, low=0.05), effect_row("all", 0.2, 0.9, low=0.1),
    ]  # fmt: skip
    (row,) = disagreement_rows(shares, effects)
    assert (row["setting"], row["by_share"], row["by_area"], row["by_true"]) == (
        "pooled_10",
        "mid.0",
        "up.0.1",
        "up.0.1",
    )
    assert row["share"] == 0.5 and row["area"] == 0.09 and row["area_of_share"] == 0.001
    assert row["same_area"] is False and row["same_true"] is False
    # Order by share: mid, up.0.1, up.0.0; by area: up.0.1, mid, up.0.0: two of three pairs agree.
    assert row["tau_area"] == pytest.approx(1 / 3)
    assert row["idle_area"] == pytest.approx(0.6) == row["idle_true"]
    (by_area, by_truth) = disagreement_notes([row])
    assert "in 0 of 1 categories; they differ in change_color. 60 %" in by_area and "mean success" in by_truth


def test_what_cannot_be_decided_is_left_open() -> None:
    assert top_block({}) is None and top_block({"a": 1.0, "b": 1.0}) is None and top_block({"a": 1.0, "b": 2.0}) == "b"
    assert (
        kendall_tau({"a": 1.0}, {"a": 1.0}) is None and kendall_tau({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}) is None
    )
    shares = [share_row("mid.0", None), share_row("mid.0", None, "off")]
    (row,) = disagreement_rows(shares, [effect_row("mid.0", None), effect_row("all", None)])
    assert row["by_share"] is None and row["by_area"] is None and row["same_area"] is None
    assert row["idle_area"] is None and row["tau_area"] is None
    assert disagreement_notes([row]) == []


def test_both_artefacts_are_made_from_stored_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.paper.runs.produce", lambda *_: pytest.fail("nothing is missing"))
    monkeypatch.setattr(blocks, "REPLICATES", 200)
    monkeypatch.setattr(share, "REPLICATES", 200)
    results = tmp_path / "results"
    effects_stored(results)
    chosen(results, "sae_1_of_128", {"n_features": 12})
    chosen(results, "sae_per_block_shares", {"n_features": 12, "shares": "per_block"})
    job = PaperJob(out=tmp_path / "paper", work=tmp_path / "work", results=results)
    table = share.make(job)
    assert {row["variant"] for row in table.table("disagreement").rows} == {"pooled", "per_block"}
    assert [row["by_true"] for row in select_rows(table.table("disagreement").rows, variant="pooled")] == [
        "mid.0",
        "up.0.1",
    ]
    alone = blocks.make(job)
    assert alone.settings["levels"] == [0.5, 1.0]
    assert [row["category"] for row in alone.table().rows][:3] == [EVERYTHING, *CATEGORIES]
    for name, artefact in (("feature-share", table), ("blocks", alone)):
        written = write_artefact(job.out, RECIPES[name], artefact)
        assert {path.suffix for path in written} == {".json", ".md", ".csv", ".tex", ".svg", ".png"}
    assert text_files(alone) == text_files(blocks.make(job))


def _block_sets(setting: Setting) -> list[str]:
    return [block_set_name(blocks_together) for blocks_together in setting.block_sets]


def test_a_profile_without_areas_shows_its_own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = PROFILES["paper"].table

    def produce(job: RunRequest, _say: Any) -> list[RunFolder]:
        assert job.profile == "paper" and job.seeds == (42,)
        return [
            stored(
                job.results, setting, keys(_block_sets(setting), setting.strengths, (42,)),
                lambda _key: dict.fromkeys(metrics, 0.3),
            )
            for setting in job.plan()[1]
        ]  # fmt: skip

    monkeypatch.setattr("riebench.paper.runs.produce", produce)
    job = PaperJob(out=tmp_path / "paper", work=tmp_path / "work", results=tmp_path / "none", profile="paper")
    artefact = blocks.make(job)
    row = artefact.table().rows[0]
    assert row["paper_text_target"] == 0.3 and "area" not in row
    assert write_artefact(job.out, RECIPES["blocks"], artefact)

from __future__ import annotations

import csv
import io
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import make_key, make_record, make_score, make_spec
from scipy.stats import sem, t
from statsmodels.stats.proportion import proportion_confint

from riebench.analysis import stats
from riebench.analysis.configurations import configurations
from riebench.analysis.stats import Estimate, detectable_difference, estimate
from riebench.analysis.tables import per_feature_share, per_method, per_switched_count, switched_counts, write_tables
from riebench.scoring.profiles import metric_format
from riebench.store.folder import RunFolder
from riebench.store.records import BlockFeatures, EditRecord


def test_mean_goes_over_seeds_then_examples_then_categories() -> None:
    values = {"a": {"e1": [0.0, 2.0], "e2": [4.0]}, "b": {"e3": [10.0]}}
    assert estimate(values, replicates=50).mean == pytest.approx((2.5 + 10) / 2)


def test_interval_of_two_examples_reaches_beyond_both() -> None:
    result = estimate({"a": {"e1": [1.0], "e2": [3.0]}})
    assert result.mean == 2.0 and result.n_examples == 2
    assert result.low is not None and result.high is not None and result.low < 1 < 3 < result.high


def test_a_single_example_has_a_mean_and_no_interval() -> None:
    assert estimate({"a": {"e1": [1.0, 2.0]}, "b": {"e2": [1.0], "e3": [2.0]}}) == Estimate(1.5, None, None, 3)


def test_intervals_of_normal_values_are_those_of_t() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=40)
    result = estimate({"a": {f"e{i:02}": [float(v)] for i, v in enumerate(values)}})
    low, high = t.interval(0.95, 39, loc=values.mean(), scale=sem(values))
    assert result.low == pytest.approx(low, abs=0.03) and result.high == pytest.approx(high, abs=0.03)


@pytest.mark.parametrize("hits", [0, 1, 13, 39, 40])
def test_intervals_of_shares_are_wilsons(hits: int) -> None:
    result = estimate({"a": {f"e{i:02}": [float(i < hits)] for i in range(40)}}, share=True)
    low, high = proportion_confint(hits, 40, method="wilson")
    # The error is one of few examples: the quantile is that of t, which is a little larger.
    assert low - 0.012 <= (result.low or 0) <= low + 1e-9 and high - 1e-9 <= (result.high or 0) <= high + 0.012


def test_seeds_that_agree_narrow_no_share() -> None:
    once = {"a": {f"e{i}": [float(i < 8)] for i in range(12)}}
    thrice = {"a": {example: seeds * 3 for example, seeds in once["a"].items()}}
    assert estimate(once, share=True) == estimate(thrice, share=True)


def test_absurd_values_have_a_mean_and_no_interval() -> None:
    result = estimate({"a": {"e1": [1e308], "e2": [-1e308], "e3": [1e300]}})
    assert result.mean is not None and (result.low, result.high) == (None, None)


def test_order_of_rows_changes_nothing() -> None:
    rows = [(f"e{i}", [i**0.5]) for i in range(12)]
    shuffled = rows.copy()
    random.Random(3).shuffle(shuffled)
    first = estimate({"a": dict(rows), "b": dict(rows)})
    stats._draw_cache.clear()  # as in another process
    assert estimate({"b": dict(shuffled), "a": dict(shuffled)}) == first


def test_clusters_are_drawn_as_one() -> None:
    values = {"a": {"e1": [0.0], "e2": [0.0], "e3": [1.0], "e4": [1.0]}}
    apart = estimate(values)
    together = estimate(values, {"e1": "x", "e2": "x", "e3": "y", "e4": "y"})
    assert apart.mean == together.mean == 0.5
    shares = estimate(values, share=True), estimate(values, {"e1": "x", "e2": "x", "e3": "y", "e4": "y"}, share=True)
    assert shares[1].low is not None and shares[0].low is not None and shares[1].low < shares[0].low
    assert together.low is not None and together.high is not None and together.high - together.low >= 1
    single = estimate(values, dict.fromkeys(("e1", "e2", "e3", "e4"), "x"))
    assert (single.mean, single.low, single.high) == (0.5, None, None)


def test_nothing_scored_gives_nothing() -> None:
    assert estimate({"a": {}}).mean is None
    assert estimate({}).n_examples == 0


def test_detectable_difference_of_the_definition() -> None:
    alternating = [0.02 if i % 2 else -0.02 for i in range(296)]
    assert detectable_difference(alternating) == pytest.approx(0.0033, abs=5e-5)
    assert detectable_difference([1.0]) is None


def test_cells_carry_scored_and_expected(filled: RunFolder) -> None:
    with filled.open_for_writing(plan=[make_key(example_id="late")]) as run:
        run.append(EditRecord(key=make_key(example_id="late"), status="error", reason="failed"))
    whole = next(c for c in configurations(RunFolder(filled.path)) if c.block_set == "all")
    row = whole.row("clip_gain", "change_object")
    assert (row.n_scored, row.n_expected, row.n_examples) == (3, 4, 4)
    assert row.mean == pytest.approx(0.06 / 4)  # the failed one counts as an unchanged picture
    assert whole.row("judge_target", "change_object").mean == 1.0
    assert whole.row("clip_gain", "all").mean == pytest.approx((0.06 / 4 + 0.04) / 2)
    assert whole.failed == 1


def test_a_score_of_a_picture_that_was_made_again_since_is_not_shown(filled: RunFolder) -> None:
    whole = next(c for c in configurations(filled) if c.block_set == "all")
    assert whole.row("judge_target", "change_object").n_scored == 3
    again = filled.records()[1]
    assert (again.key.category, again.key.block_set) == ("change_object", "all")
    with filled.open_for_writing() as run:
        run.append(again.model_copy(update={"image_sha256": "f" * 64}))
    whole = next(c for c in configurations(filled) if c.block_set == "all")
    assert whole.row("judge_target", "change_object").n_scored == 2


def test_cells_hold_the_numbers_of_one_version_of_a_metric(filled: RunFolder) -> None:
    """Those that a newer program has not measured anew are missing, so that a check cannot pass on them."""

    def scored() -> int:
        return next(c for c in configurations(filled) if c.block_set == "all").row("clip_gain", "all").n_scored

    assert scored() == 6
    with filled.open_for_writing() as run:
        run.append_scores([make_score(filled.records()[1], 0.9).model_copy(update={"version": 99})])
    assert scored() == 5


def test_cells_hold_the_numbers_of_one_network(filled: RunFolder) -> None:
    def gain() -> Any:
        row = next(c for c in configurations(filled) if c.block_set == "all").row("clip_gain", "all")
        return row.mean, row.n_scored

    records, own = filled.records(), "ViT-L-14-quickgelu/openai"
    assert gain() == (pytest.approx(0.03), 6)
    # The model's own scorer is shown as soon as it has measured, whoever measures after it.
    with filled.open_for_writing() as run:
        run.append_scores([make_score(record, 0.05, own) for record in records])
        assert gain() == (pytest.approx(0.05), 6)
        run.append_scores([make_score(records[1], 0.9, "another-clip")])
        assert gain() == (pytest.approx(0.05), 6)
        # Newer weights of its own replace older ones, in all cells alike.
        run.append_scores([make_score(records[1], 0.07, f"{own}@ffffffffffff")])
    assert gain() == (pytest.approx(0.07), 1)
    assert f"Measured by {own}@ffffffffffff.\n" in per_method(configurations(filled))[0].markdown()


def test_numbers_are_printed_without_negative_zero() -> None:
    assert metric_format("clip_gain").number(-0.00001) == "0.00"
    assert metric_format("clip_gain").number(0.0123) == "+1.23"


def test_files_of_all_five_tables(filled: RunFolder) -> None:
    paths = write_tables([filled])
    names = ["per_block.md", "per_category.md", "per_method.md", "feature_share.md", "switched.md"]
    assert [path.name for path in paths] == names
    block = paths[0].read_text()
    assert "| sae | mid.0 |" in block
    assert re.search(r"\+2\.00 \[-?\d\.\d\d, \+\d\.\d\d\] 3/3", block)
    rows = list(csv.DictReader(io.StringIO(paths[0].with_suffix(".csv").read_text())))
    assert {row["block_set"] for row in rows} == {"mid.0", "all"}
    gain = next(r for r in rows if r["metric"] == "clip_gain" and r["category"] == "all" and r["block_set"] == "all")
    assert float(gain["mean"]) == pytest.approx(0.03)
    assert gain["n_scored"] == gain["n_expected"] == "6"


def test_shares_of_a_category_sum_to_one(filled: RunFolder) -> None:
    _, table = per_feature_share([filled])
    rows = list(csv.DictReader(io.StringIO(table)))
    add = {r["block"]: float(r["share"]) for r in rows if r["category"] == "change_color" and r["side"] == "add"}
    assert add == {"mid.0": 0.75, "up.0.1": 0.25}
    assert {(r["units"], r["expected"]) for r in rows} == {("6", "6")}


def test_the_number_of_features_really_switched_is_counted(folder: RunFolder) -> None:
    keys = [make_key(example_id=f"e{i}", block_set=name) for i in range(4) for name in ("mid.0", "all")]
    switched = {"e0": {"mid.0": BlockFeatures(add=(1, 2), remove=(3,))}, "e1": {"mid.0": BlockFeatures()}}
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            record = make_record(key, *run.write_image(key, np.full((8, 8, 3), 7, np.uint8)))
            if key.example_id in switched and key.block_set == "mid.0":
                run.append(record.model_copy(update={"features": switched[key.example_id]}))
            elif key.example_id == "e2":
                # Neurons are counted, not listed.
                run.append(record.model_copy(update={"features": {}, "neurons": 40}))
            elif key.example_id == "e3":
                run.append(record.model_copy(update={"features": {}}))
    (mid, everything) = (one for one in switched_counts([folder]) if one.category == "all")
    assert (mid.block_set, mid.switched, mid.none, mid.edits, mid.expected) == ("mid.0", 43 / 3, 1, 3, 4)
    assert (everything.block_set, everything.switched, everything.none, everything.edits) == ("all", 40, 0, 1)
    document, numbers = per_switched_count([folder])
    assert "| sae | mid.0 | 14.3 (1 none) 3/4 | 14.3 (1 none) 3/4 |" in document.markdown()
    assert "sae,mid.0,all,14.3333,1,3,4" in numbers
    stored = {record.key.example_id: record for record in folder.records() if record.key.block_set == "mid.0"}
    assert [stored[f"e{i}"].switched for i in range(4)] == [3, 0, 40, None]
    assert '"neurons"' not in stored["e0"].model_dump_json() and '"neurons":40' in stored["e2"].model_dump_json()


def test_single_blocks_stay_out_of_the_method_table(filled: RunFolder, tmp_path: Path) -> None:
    alone = RunFolder(tmp_path / "results/toy/toy-turbo/lone", make_spec(name="lone", blocks=("mid.0",)))
    with alone.open_for_writing(plan=[make_key(block_set="mid.0")]):
        pass
    document, _ = per_method([c for f in (filled, alone) for c in configurations(RunFolder(f.path))])
    text = document.markdown()
    assert text.count("| sae |") == 1
    assert "| lone |" in text


def test_one_value_for_each_example_is_what_two_equal_ones_are() -> None:
    """The usual case has a way of its own, with the same bits in the end."""
    single = {"c": {f"e{number}": [0.1 * number] for number in range(7)}, "d": {"x": [0.3], "y": [-0.7]}}
    double = {name: {example: [*seeds, *seeds] for example, seeds in its.items()} for name, its in single.items()}
    assert estimate(single) == estimate(double)


def test_draws_for_many_choices_of_examples_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [tuple(f"e{number}" for number in range(5, 10 + chosen)) for chosen in range(6)]
    first = [stats.cluster_counts("c", its, 100, 0).copy() for its in names]
    monkeypatch.setattr(stats, "CACHE_BYTES", 3 * first[-1].nbytes)
    again = [stats.cluster_counts("c", its, 100, 0) for its in [*names, *names]]
    assert all(np.array_equal(one, other) for one, other in zip([*first, *first], again, strict=True))
    assert sum(one.nbytes for one in stats._draw_cache.values()) <= 3 * first[-1].nbytes
    assert stats.cluster_counts("c", names[-1], 100, 0) is again[-1]

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leaderboard_runs import EXAMPLES, add_run, numbers, printed_rows, rows, tables

from riebench.analysis.compare import compare, comparison_text
from riebench.analysis.leaderboard import (
    check_leaderboard,
    leaderboard_text,
    make_leaderboard,
    write_leaderboard,
)
from riebench.analysis.tables import write_tables
from riebench.errors import RiebenchError
from riebench.store.folder import RunFolder, find_run_folders
from riebench.utils.markup import csv_rows


def ranks(results: Path) -> dict[str, str]:
    return {name: row["rank"] for name, row in rows(results).items()}


def test_first_line_says_how_it_was_made(tmp_path: Path) -> None:
    assert "riebench leaderboard" in leaderboard_text(tmp_path).splitlines()[0]
    assert "No results yet" in leaderboard_text(tmp_path)


def test_ranks_among_equal_inputs_and_none_for_gaps(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03)
    add_run(tmp_path, "also", 0.03)
    add_run(tmp_path, "fair", 0.01)
    add_run(tmp_path, "prompt", 0.05, access="P")
    add_run(tmp_path, "unscored", 0.9, unscored="change_color-3")
    add_run(tmp_path, "short", 0.9, leave_out="change_color-3")
    add_run(tmp_path, "failing", 0.9, fail="change_color-3")
    add_run(tmp_path, "few", 0.9, levels=5)
    board = make_leaderboard(tmp_path)
    assert {name: row["rank"] for name, row in printed_rows(board).items()} == {
        "good": "1", "also": "1", "fair": "3", "prompt": "1",
        "unscored": "–", "short": "–", "failing": "–", "few": "–",
    }  # fmt: skip
    notes = {name: row["notes"] for name, row in printed_rows(board).items()}
    assert notes["failing"] == "6 units failed"
    assert "have no clip_gain" in notes["unscored"] and "have no clip_gain" in notes["short"]
    assert notes["few"] == "5 of 6 edit strengths tested" and notes["good"] == ""
    row = numbers(board)["short"]
    assert (row["n_scored"], row["n_expected"], row["rank"], row["score"]) == ("138", "144", "", "")


def test_ends_of_the_scale_normalise_and_are_not_ranked(tmp_path: Path) -> None:
    add_run(tmp_path, "target_prompt", 0.1, method="target_prompt", access="P", levels=1)
    add_run(tmp_path, "mean_steering", 0.01, method="mean_steering")
    add_run(tmp_path, "good", 0.03)
    board = make_leaderboard(tmp_path)
    found, stored = printed_rows(board), numbers(board)
    assert found["target_prompt"]["rank"] == "–" and found["target_prompt"]["notes"] == "end of the scale"
    # Gains grow with strength and LPIPS with a tenth of it: budgets 0.05 to 0.3 open a level each, and 0.3 is the last.
    area = 0.03 * (0.5 + 1 + 1.5 + 2 + 2.5 + 3 * 5) / 10
    assert float(found["good"]["mean gain"]) == pytest.approx(100 * area, abs=0.1)
    assert float(found["good"]["completion"]) == pytest.approx(100 * area / 0.05, abs=2)
    assert float(stored["good"]["p"]) < 0.001 and stored["good"]["reference"] == "mean_steering"
    assert float(stored["good"]["difference"]) == pytest.approx(0.02 * area / 0.03, abs=0.001)
    assert stored["mean_steering"]["p"] == stored["mean_steering"]["difference"] == ""


def test_the_independent_scorer_is_read_where_the_first_one_chose(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03, second=True)
    row = numbers(make_leaderboard(tmp_path))["good"]
    assert float(row["second_scorer"]) == pytest.approx(float(row["score"]) / 2, abs=0.0002)


def test_settings_of_one_group_are_levels_of_one_method(tmp_path: Path) -> None:
    add_run(tmp_path, "k1", 0.01, levels=3, group="sae")
    add_run(tmp_path, "k2", 0.03, levels=3, group="sae")
    board = make_leaderboard(tmp_path)
    found = printed_rows(board)
    assert [*found] == ["sae"] and found["sae"]["rank"] == "1"
    assert numbers(board)["sae"]["edit_strengths"] == "6"


def test_the_reference_is_the_sweep_that_has_a_rank(tmp_path: Path) -> None:
    add_run(tmp_path, "mean_steering", 0.02, method="mean_steering", levels=1)
    add_run(tmp_path, "mean_steering_sweep", 0.01, method="mean_steering")
    add_run(tmp_path, "good", 0.03)
    board = make_leaderboard(tmp_path)
    found = numbers(board)
    assert {name: row["reference"] for name, row in found.items()} == {
        "good": "mean_steering_sweep", "mean_steering": "mean_steering_sweep", "mean_steering_sweep": "",
    }  # fmt: skip
    assert found["good"]["p"] and found["mean_steering"]["p"] and not found["mean_steering_sweep"]["p"]
    assert "(of `mean_steering` the entry with a rank, or most edit strengths: 6)" in board.document.markdown()


def test_controls_are_ranked_beside_what_they_control(tmp_path: Path) -> None:
    add_run(tmp_path, "sae", 0.03)
    # As runs stated it before declarations were checked, and as they state it now.
    add_run(tmp_path, "earlier", 0.01, method="random_features", access="M")
    add_run(tmp_path, "later", 0.02, method="wrong_example", access="PAMT")
    board = make_leaderboard(tmp_path)
    found, stored = printed_rows(board), numbers(board)
    assert [found[name]["rank"] for name in ("sae", "later", "earlier")] == ["1", "2", "3"]
    assert stored["earlier"]["inputs"] == "PAM" and stored["later"]["inputs"] == "PAMT"
    assert [*found] == ["sae", "later", "earlier"] and [*tables(board)] == ["prompt + target activations + masks"]
    assert {row["table"] for row in stored.values()} == {"PAM"}
    assert {name: row["notes"] for name, row in found.items()} == {
        "sae": "", "later": "control of sae", "earlier": "control of sae",
    }  # fmt: skip


def test_strengths_that_give_one_picture_are_one_level(tmp_path: Path) -> None:
    add_run(tmp_path, "stuck", 0.03, knob=lambda strength: min(strength, 1.5))
    add_run(tmp_path, "idle", 0.03, knob=lambda strength: max(0.0, strength - 0.5))
    board = make_leaderboard(tmp_path)
    found, stored = printed_rows(board), numbers(board)
    assert stored["stuck"]["edit_strengths"] == "3" and found["stuck"]["notes"] == "3 of 6 edit strengths tested"
    assert stored["idle"]["edit_strengths"] == "5" and {row["rank"] for row in found.values()} == {"–"}


def test_a_knob_with_an_end_is_ranked_with_its_end_alone(tmp_path: Path) -> None:
    add_run(tmp_path, "img2img", 0.03, method="img2img", access="P")
    add_run(tmp_path, "cut", 0.03, method="p2p", access="P")
    found = rows(tmp_path)
    assert found["img2img"]["rank"] == "1"
    assert found["cut"]["notes"] == "its last edit strength, 0, was not tested"


def test_no_ranks_below_twelve_examples_a_category(tmp_path: Path) -> None:
    few = {name: category for name, category in EXAMPLES.items() if not name.endswith("-11")}
    add_run(tmp_path, "good", 0.03, examples=few)
    row = rows(tmp_path)["good"]
    assert row["rank"] == "–" and row["notes"] == "11 of 12 examples in a category" and "[" in row["95 % interval"]
    assert "or fewer than 12 independent examples in a category" in leaderboard_text(tmp_path)


def test_one_name_with_two_saes_is_two_methods(tmp_path: Path) -> None:
    folders = [add_run(tmp_path, name, gain, group="both", sae=name) for name, gain in (("aa", 0.03), ("bb", 0.01))]
    folders.append(add_run(tmp_path, "mean_steering", 0.01, method="mean_steering"))
    board = make_leaderboard(tmp_path)
    found = {name: row["rank"] for name, row in printed_rows(board).items() if name.startswith("both")}
    assert found == {"both [model aa, all]": "1", "both [model bb, all]": "2"}
    stored = [row for row in csv_rows(board.numbers.splitlines()) if row["method"] == "both"]
    assert [(row["rank"], row["sae"]) for row in stored] == [("1", "model aa"), ("2", "model bb")]
    assert all(row["p"] for row in stored)
    with pytest.raises(RiebenchError, match=r"both on all is there with several SAEs \(model aa and model bb\)"):
        compare(folders, "both", "mean_steering")


def test_every_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(tmp_path, "good", 0.03)
    add_run(tmp_path, "fair", 0.01)
    read: Counter[tuple[str, str]] = Counter()
    for name in ("records", "_every_score"):
        original = getattr(RunFolder, name)

        def counting(
            folder: RunFolder, *, name: str = name, original: Callable[..., Any] = original, **options: bool
        ) -> Any:
            read[name, folder.path.name] += 1
            return original(folder, **options)

        monkeypatch.setattr(RunFolder, name, counting)
    leaderboard_text(tmp_path)
    assert len(read) == 4 and {*read.values()} == {1}


def test_numbers_that_lack_a_seed_of_others_are_not_compared(tmp_path: Path) -> None:
    add_run(tmp_path, "three", 0.03, seeds=3)
    add_run(tmp_path, "one", 0.09)
    assert ranks(tmp_path) == {"three": "1", "one": "–"}
    assert rows(tmp_path)["one"]["notes"] == "1 of 3 seeds"


def test_words_of_a_run_file_are_words_in_every_section(tmp_path: Path) -> None:
    for name in ("one", "two", "odd"):
        run = add_run(tmp_path, name, 0.02)
        gains = [score for score in run.scores().values() if score.metric == "clip_gain"]
        with run.open_for_writing():
            run.append_scores(score.model_copy(update={"metric": "paper_text_target"}) for score in gains)
    file = run.path / "run.json"
    meta = json.loads(file.read_text())
    meta["spec"]["model"]["source"] = "x\n## own <img src=y> [l](javascript:z)"
    file.write_text(json.dumps(meta))
    text = leaderboard_text(tmp_path)
    assert "profile `paper`" in text
    assert re.search(r"\| – \| odd x0.5 \|( [^|]+ \|){3} made by another model of this name: source is", text)
    assert "\n## own" not in text and "](javascript" not in text
    assert text.count("<img") == text.count("\\<img") > 1


def test_a_single_cluster_has_no_rank(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03, cluster="template")
    assert rows(tmp_path)["good"]["notes"] == "fewer than 2 independent examples in a category"


def test_numbers_of_different_networks_are_not_ranked_together(tmp_path: Path) -> None:
    add_run(tmp_path, "one", 0.02, backbone="a-clip")
    add_run(tmp_path, "two", 0.09, backbone="b-clip")
    board = make_leaderboard(tmp_path)
    found = printed_rows(board)
    assert {row["rank"] for row in found.values()} == {"1"}
    assert {name: row["notes"] for name, row in found.items()} == {
        "one": "measured by a-clip", "two": "measured by b-clip",
    }  # fmt: skip
    assert sorted(row["scorer"] for row in numbers(board).values()) == ["a-clip", "b-clip"]


def test_comparison_is_paired_and_says_what_is_clear(tmp_path: Path) -> None:
    folders = [add_run(tmp_path, "good", 0.03), add_run(tmp_path, "fair", 0.01), add_run(tmp_path, "same", 0.01)]
    found = {one.category: one for one in compare(folders, "good", "fair")}
    assert [*found] == ["change_object", "change_color", "all"]
    assert found["all"].mean == pytest.approx(0.02 * 2.25, abs=0.002) and found["all"].clear
    assert found["all"].low <= found["all"].mean <= found["all"].high
    assert all(one.mean == 0 and one.p == 1 for one in compare(folders, "same", "same"))
    text = comparison_text(compare(folders, "good", "fair"), "good", "fair")
    assert text.startswith("good minus fair") and text.count("*") >= 3


def test_comparison_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    folders = [add_run(tmp_path, "good", 0.03), add_run(tmp_path, "gappy", 0.01, unscored="change_color-0")]
    with pytest.raises(RiebenchError, match=r"no method 'goood'.*good"):
        compare(folders, "goood", "gappy")
    with pytest.raises(RiebenchError, match=r"gappy on all cannot be compared: .* have no clip_gain"):
        compare(folders, "good", "gappy")


def test_check_finds_a_stale_file(tmp_path: Path) -> None:
    results, path, table = tmp_path / "results", tmp_path / "leaderboard.md", tmp_path / "leaderboard.csv"
    with pytest.raises(RiebenchError, match="missing"):
        check_leaderboard(results, path)
    add_run(results, "good", 0.02)
    write_leaderboard(results, path)
    assert check_leaderboard(results, path) == [path, table]
    add_run(results, "fair", 0.01)
    with pytest.raises(RiebenchError, match="stale from line"):
        check_leaderboard(results, path)
    write_leaderboard(results, path)
    path.write_text(path.read_text() + "an edit by hand\n")
    with pytest.raises(RiebenchError, match="stale"):
        check_leaderboard(results, path)
    write_leaderboard(results, path)
    written = path.read_bytes()
    for changed in (written.replace(b"\n", b"\r\n"), written[:-1], written.replace(b"good", b"g\xffod", 1)):
        path.write_bytes(changed)
        with pytest.raises(RiebenchError, match="stale"):
            check_leaderboard(results, path)
    path.write_bytes(written)
    stored = table.read_text()
    table.write_text(stored.replace("good", "best"))
    with pytest.raises(RiebenchError, match=r"leaderboard\.csv is stale from line 2 on"):
        check_leaderboard(results, path)
    table.unlink()
    with pytest.raises(RiebenchError, match=r"leaderboard\.csv is missing"):
        check_leaderboard(results, path)
    table.write_text(stored)
    assert check_leaderboard(results, path) == [path, table]


def test_a_row_made_with_several_versions_says_so(tmp_path: Path) -> None:
    for name in ("mixed", "pure"):
        run = add_run(tmp_path, name, 0.03)
        records = run.records()
        for part, torch in ((records[::2], "2.14.1"), (records[1::2], "2.15.0" if name == "mixed" else "2.14.1")):
            with run.open_for_writing({"command": torch, "versions": {"torch": torch}}, [one.key for one in records]):
                run.append_many(part)
    assert "mixes versions: pictures by torch 2.14.1 and 2.15.0" in rows(tmp_path)["mixed"]["notes"]
    assert "versions" not in rows(tmp_path)["pure"]["notes"]
    write_tables(find_run_folders(tmp_path))
    for table in ("per_block", "per_method"):
        text = (tmp_path / f"toy/toy-turbo/tables/{table}.md").read_text()
        assert "Made with several versions: mixed, pictures by torch 2.14.1 and 2.15.0." in text
        assert "pure, pictures" not in text

"""Sentences on how settings differ: they say what their intervals allow, and documents claim nothing beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from leaderboard_runs import add_run

from riebench.analysis.compare import CLAIM, Contrast, contrast_text, contrasts
from riebench.analysis.tables import fill_document
from riebench.errors import RiebenchError
from riebench.store.folder import find_run_folders

ROOT = Path(__file__).parents[2]


def test_a_contrast_is_higher_only_where_interval_and_test_allow_it(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03)
    add_run(tmp_path, "fair", 0.01)
    add_run(tmp_path, "same", 0.03)
    folders = find_run_folders(tmp_path)
    found = contrasts(folders, "clip_gain", "good@2", "fair@2")
    assert [one.category for one in found] == ["change_object", "change_color", "all"]
    assert all(one.verdict == 1 and one.mean == pytest.approx(0.04, abs=0.002) for one in found)
    assert all(one.verdict == -1 for one in contrasts(folders, "clip_gain", "fair@2", "good@2"))
    noise = contrasts(folders, "clip_gain", "good@2", "same@2")
    assert all(one.verdict == 0 and one.low < 0 < one.high for one in noise)
    area = contrasts(folders, "mean_gain", "good", "fair")
    assert area[-1].verdict == 1 and area[-1].category == "all"
    itself = contrasts(folders, "clip_gain", "good", "good")
    assert all((one.mean, one.p, one.verdict) == (0, 1, 0) for one in itself)


def test_sentences_hold_all_numbers_and_no_claim() -> None:
    some = [
        Contrast("change_object", 0.39, 0.08, 0.63, 0.3), Contrast("change_pose", 0.17, -0.05, 0.37, 0.8),
        Contrast("change_style", 0.97, 0.82, 1.0, 0.001), Contrast("change_color", -0.5, -0.8, -0.2, 0.01),
        Contrast("all", 0.26, 0.1, 0.4, 0.001),
    ]  # fmt: skip
    text = contrast_text(some, "judge_target", "sae", "random")
    assert "higher in 1 of 4 categories (style +97 [+82, +100])" in text
    assert "lower in 1 of 4 categories (color -50 [-80, -20])" in text
    assert "not told apart in 2 of 4 categories (object +39 [+8, +63], pose +17 [-5, +37])" in text
    assert "Over all categories +26 [+10, +40]." in text and not CLAIM.search(text)


def test_shares_that_no_example_changes_keep_an_interval() -> None:
    from riebench.analysis.compare.methods import _ends
    from riebench.analysis.stats import Replicates

    for mean, low, high in ((0.0, -0.2425, 0.2425), (1.0, 0.7575, 1.0)):
        same = Replicates(np.full(11, mean), np.zeros(11))
        assert _ends(same, True, 12, 1) == pytest.approx((low, high), abs=1e-3)


def test_a_document_with_contrasts_claims_nothing_beside_them(tmp_path: Path) -> None:
    add_run(tmp_path / "results", "good", 0.03)
    add_run(tmp_path / "results", "fair", 0.01)
    mark = "<!-- contrast: results/toy/toy-turbo metric=clip_gain first=good second=fair -->"
    file = tmp_path / "words.md"
    file.write_text(f"# Words\n\nWhat follows is generated.\n\n{mark}\n\nolder: clearly\n\n<!-- end -->\n")
    with pytest.raises(RiebenchError, match="out of date"):
        fill_document(file, check=True)
    fill_document(file)
    fill_document(file, check=True)
    text = file.read_text()
    assert "`good` minus `fair`" in text and "higher in 2 of 2 categories" in text
    for claim in ("beats", "Clearly", "in all nine", "always", "costs and does not buy"):
        file.write_text(text + f"\nHere one {claim} the other.\n")
        with pytest.raises(RiebenchError, match=r"words.md, line \d+: .* claims a difference that no interval"):
            fill_document(file, check=True)
    file.write_text(text.replace("first=good", "first=goood"))
    with pytest.raises(RiebenchError, match=r"no configuration 'goood'.*good"):
        fill_document(file)
    file.write_text(text.replace("metric=clip_gain", "metric=clip_gian"))
    with pytest.raises(RiebenchError, match="clip_gain"):
        fill_document(file)


def test_the_shipped_document_claims_by_contrasts_alone() -> None:
    text = (ROOT / "docs" / "results-toy.md").read_text(encoding="utf-8")
    assert text.count("<!-- contrast:") >= 8

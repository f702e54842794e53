"""Shares of single blocks: what is counted, by which metrics, and which configurations have some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from records import make_key, make_record, make_spec

from riebench.analysis.compare.blocks import MARGINS, BlockShare, block_shares, per_block_share, shares
from riebench.analysis.configurations import configurations
from riebench.analysis.tables import model_tables
from riebench.store.folder import RunFolder
from riebench.store.records import ScoreRecord
from riebench.utils.markup import csv_rows

MEANS = {
    "mid.0": {"clip_gain": 0.03, "clip_margin": 0.06, "clip_margin_2": 0.01},
    "up.0.0": {"clip_gain": -0.02, "clip_margin": 0.02, "clip_margin_2": 0.03},
    "all": {"clip_gain": 0.05, "clip_margin": 0.09, "clip_margin_2": 0.04},
}


def stored(path: Path, *, metrics: tuple[str, ...] = ("clip_gain", *MARGINS), lost: str | None = None) -> RunFolder:
    """A run of two single blocks and both together, 4 examples whose scores lie around `MEANS`."""
    folder = RunFolder(path, make_spec())
    keys = [make_key(example_id=f"e{i}", block_set=blocks) for i in range(4) for blocks in MEANS]
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            record = make_record(key, f"images/{key.digest}.png", "0" * 64)
            run.append(record)
            off = 0.005 * (int(key.example_id[-1]) - 1.5)
            run.append_scores(
                ScoreRecord(unit=key.digest, metric=name, version=1, picture=record.picture_id, value=value + off)
                for name, value in MEANS[key.block_set].items()
                if name in metrics and (key.example_id, key.block_set) != (lost, "mid.0")
            )
    return folder


def found(folder: RunFolder) -> dict[tuple[str, str], BlockShare]:
    return {(one.measure, one.block): one for one in block_shares(configurations(folder, extra=MARGINS))}


def test_shares_are_of_the_means_above_zero() -> None:
    found = shares(np.array([[3.0, 1.0, 0.0, -2.0], [-1.0, -1.0, 0.0, 0.0]]))
    assert found.tolist() == [[0.75, 0.25, 0, 0], [0, 0, 0, 0]]


def test_margins_of_both_scorers_are_averaged_beside_the_gain_of_the_first(tmp_path: Path) -> None:
    rows = found(stored(tmp_path / "run"))
    assert set(rows) == {(measure, block) for measure in ("margin", "gain") for block in ("mid.0", "up.0.0")}
    middle = rows["margin", "mid.0"]
    assert middle.share == pytest.approx((0.06 / 0.08 + 0.01 / 0.04) / 2) and middle.n_examples == 4
    assert middle.low is not None and middle.high is not None and middle.low < middle.share < middle.high
    assert middle.metrics == "clip_margin+clip_margin_2"
    assert [rows["gain", block].share for block in ("mid.0", "up.0.0")] == [1.0, 0.0]


def test_a_single_scorer_and_missing_examples_are_stated(tmp_path: Path) -> None:
    alone = found(stored(tmp_path / "run", metrics=("clip_gain", "clip_margin")))["margin", "mid.0"]
    assert alone.share == pytest.approx(0.75) and alone.metrics == "clip_margin"
    fewer = found(stored(tmp_path / "fewer", lost="e3"))
    assert {one.n_examples for one in fewer.values()} == {3}
    without = found(stored(tmp_path / "without", metrics=("clip_gain",)))
    assert {measure for measure, _ in without} == {"gain"}


def test_the_table_stands_beside_that_of_the_blocks(tmp_path: Path) -> None:
    folder = stored(tmp_path / "toy" / "toy-turbo" / "sae")
    tables = {path.name: table for path, table in model_tables([folder]).items()}
    document, numbers = tables["block_shares"]
    text = document.markdown()
    assert (
        "## By margin" in text and "| sae | mid.0 | 0.50 [" in text and "| sae | up.0.0 | 0.00 [0.00, 0.00] |" in text
    )
    assert {row["block"] for row in csv_rows(numbers.splitlines())} == {"mid.0", "up.0.0"}


def test_blocks_edited_together_have_no_shares(tmp_path: Path, filled: RunFolder) -> None:
    assert per_block_share(configurations(filled, extra=MARGINS)) is None

"""Concept detection: areas on readings made by hand, and who is learned from and read on the tiny model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.features.detection.detectors import DETECTORS, Detector, Material, Reader, named_detectors
from riebench.features.detection.readings import Reading, Request, read_detectors, shown_values
from riebench.features.detection.table import ALL, Steering, areas, csv_text, document, read_steering, write
from riebench.methods.base import Role
from riebench.methods.supervised.concepts import Contrast
from riebench.tasks.schema import Attributes, EditExample, EditTask


def reading(example: str, present: bool, number: float, fold: int = 0, category: str = "change_color") -> Reading:
    return Reading(
        category, 0, fold, "color=blue", "linear probe", "mid.0", example, example, present, number, -number
    )  # fmt: skip


def found(readings: Sequence[Reading], category: str = ALL) -> dict[str, float]:
    return {one.pool: one.value for one in areas(readings) if one.category == category}


def test_the_area_is_the_share_of_pairs_in_the_right_order_with_ties_as_halves() -> None:
    some = [reading("a", True, 3), reading("b", True, 1), reading("c", False, 1), reading("d", False, 0)]
    # Of a and b against c and d: 1, 1, a tie, 1.
    assert found(some) == {"largest": 3.5 / 4, "mean": 0.5 / 4}
    # Runs of another fold have another detector: they are not compared with these.
    other = [reading("e", True, -9, fold=1), reading("f", False, -10, fold=1)]
    assert found([*some, *other])["largest"] == 4.5 / 5
    # Categories weigh the same, whatever they hold.
    worse = [reading("g", True, 0, category="change_style"), reading("h", False, 1, category="change_style")]
    assert found([*some, *worse])["largest"] == (3.5 / 4 + 0) / 2
    (whole, *_) = [one for one in areas(some) if one.category == ALL]
    assert (whole.concepts, whole.present, whole.absent) == (1, 2, 2)
    assert whole.low is not None and whole.high is not None and whole.low <= whole.value <= whole.high


def test_intervals_shrink_with_examples_and_do_not_hang_on_the_order() -> None:
    def many(count: int) -> list[Reading]:
        return [reading(f"e{i}", i % 2 == 0, (i * 7) % 5 + (i % 2 == 0)) for i in range(count)]

    widths = [next(one.high - one.low for one in areas(many(n)) if one.high and one.low) for n in (8, 80)]
    assert widths[1] < widths[0] / 2
    assert areas(many(20)) == areas(many(20)[::-1])


def test_files_hold_the_areas_beside_the_steering(tmp_path: Path) -> None:
    some = areas([reading("a", True, 3), reading("b", False, 1)])
    board = tmp_path / "leaderboard.csv"
    header = "suite,model,profile,metric,method,score,score_low,score_high"
    board.write_text(f"{header}\ntoy,m,default,mean_gain,probe_direction,0.05,0.04,\ntoy,n,default,mean_gain,x,1,,\n")
    steering = read_steering(board, "toy", "m")
    assert steering == {"probe_direction": Steering(0.05, 0.04, None)}
    rows = list(csv.DictReader(io.StringIO(csv_text(some, steering))))
    assert {row["area"] for row in rows if row["pool"] == "largest"} == {"1"} and rows[0]["mean_gain"] == "0.05"
    text = document(some, steering, suite="toy", model="m")
    assert "linear probe 1.00 (mid.0, largest position)" in text and "| 5.0 |" in text
    assert "| change_color | 1.00 [1.00, 1.00] (mid.0) |" in text
    assert read_steering(tmp_path / "none.csv", "toy", "m") == {}


def test_stored_areas_get_the_gains_of_the_leaderboard_of_now(tmp_path: Path) -> None:
    board, out = tmp_path / "leaderboard.csv", tmp_path / "out"
    some = areas([reading(f"e{i}", i % 2 == 0, (i * 7) % 5 + (i % 2 == 0)) for i in range(12)])
    write(out, some, {}, suite="toy", model="toy-turbo")
    files = [out / "detection.csv", out / "detection.md"]
    before = [file.read_bytes() for file in files]
    line = ["detect", "--leaderboard", str(board), "--out", str(out)]
    done = CliRunner().invoke(app, [*line, "--check"])
    assert done.exit_code == 0 and "2 files are up to date" in done.output
    header = "suite,model,profile,metric,method,score,score_low,score_high"
    board.write_text(f"{header}\ntoy,toy-turbo,default,mean_gain,probe_direction,0.05,0.04,0.06\n")
    stale = CliRunner().invoke(app, [*line, "--check"])
    assert stale.exit_code == 2 and "detection.csv is out of date; run `riebench detect --stored" in stale.stderr
    assert [file.read_bytes() for file in files] == before
    assert CliRunner().invoke(app, [*line, "--stored"]).exit_code == 0
    assert "| 5.0 [4.0, 6.0] |" in files[1].read_text()
    assert CliRunner().invoke(app, [*line, "--check"]).exit_code == 0
    for text, message in (("detector,block\nx,y\n", "is no table of `riebench detect`"), ("", "has no row of a known")):
        files[0].write_text(text)
        bad = CliRunner().invoke(app, [*line, "--check"])
        assert bad.exit_code == 2 and message in bad.stderr
    files[0].unlink()
    gone = CliRunner().invoke(app, [*line, "--stored"])
    assert gone.exit_code == 2 and "detection.csv is missing; leave --stored out to measure" in gone.stderr


COLORS = ("red", "blue", "green")


def task(count: int = 6) -> EditTask:
    examples = tuple(
        EditExample(id=f"e{i}", source=f"a {COLORS[i % 3]} house {i}", target=f"a {COLORS[(i + 1) % 3]} house {i}")
        for i in range(count)
    )
    return EditTask(name="t", version=1, category="change_color", suite="tiny", examples=examples)


def test_detectors_are_read_off_examples_that_they_did_not_learn_from() -> None:
    learned: dict[tuple[str, ...], set[str]] = {}

    def fit(material: Material, contrast: Contrast, blocks: Sequence[str]) -> Mapping[str, Reader]:
        names = {pair.example.id for pair in material.pairs}
        learned[(str(material.training.fold), *contrast.key)] = names
        return {block: lambda runs, role: torch.full((2, 4), float(contrast.key[0] in runs.example.source))
                for block in blocks}  # fmt: skip

    wanted = {"own": Detector(fit, "mean_direction", ""), **named_detectors(["mean", "sae", "random"])}
    request = Request(("mid.0",), wanted, examples=3, folds=3, sae=str(tiny_saes()), progress=False)
    readings = read_detectors([task()], tiny_model(), request)
    assert {one.detector for one in readings} == set(wanted)
    for one in readings:
        names = learned[str(one.fold), one.concept]
        assert one.example not in names and 0 < len(names) <= 3
        index = int(one.example[1:])
        assert one.concept in COLORS
        if one.detector == "own":
            # What the reader saw: whether the source prompt names the color.
            assert one.largest == one.mean == float(one.concept == COLORS[index % 3])
    shown = {(one.example, one.concept, one.present) for one in readings if one.detector == "own"}
    assert ("e0", "red", True) in shown or ("e0", "blue", True) in shown
    # The same numbers whatever is read beside.
    alone = Request(("mid.0",), named_detectors(["mean"]), examples=3, folds=3, progress=False)
    again = [one.largest for one in read_detectors([task()], tiny_model(), alone)]
    assert again == pytest.approx([one.largest for one in readings if one.detector == "difference of means"])


def test_runs_show_their_attributes_or_the_words_of_their_prompt() -> None:
    example = EditExample(id="e", source="a violet cat", target="a red cat")
    assert shown_values(example, "source") == {"violet", "cat"}
    known = Attributes(source={"color": "purple", "object": "cat"}, target={"color": "red", "object": "cat"})
    stated = example.model_copy(update={"attributes": known})
    role: Role = "target"
    assert shown_values(stated, role) == {"color=red", "object=cat"}


def test_wrong_words_and_tasks_without_a_shared_concept_are_refused() -> None:
    result = CliRunner().invoke(app, ["detect", "--detectors", "prob"])
    assert result.exit_code and "unknown detector 'prob' (did you mean 'probe'?)" in result.output
    assert set(named_detectors([])) == set(DETECTORS)
    strange = tuple(
        EditExample(id=f"e{i}", source=f"a {'xyzuvw'[i]} house", target=f"a {'abcdef'[i]} house") for i in range(3)
    )
    lonely = task().model_copy(update={"examples": strange})
    request = Request(("mid.0",), named_detectors(["mean"]), progress=False)
    with pytest.raises(RiebenchError, match="no concept is shown by some runs of a fold"):
        read_detectors([lonely], tiny_model(), request)

"""Where nothing was scored nothing prints a number, and scores of absurd size break nothing."""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import make_key, make_record, make_score, make_spec

from riebench.analysis.configurations import EVERYTHING, LARGEST_SCORE, configurations
from riebench.analysis.export import export
from riebench.analysis.leaderboard import leaderboard_text
from riebench.analysis.standings import MethodComparison, entries
from riebench.analysis.tables import table_texts
from riebench.jobs.summary import print_per_block
from riebench.report import write_report
from riebench.report.data import mean, read_groups
from riebench.report.heat_maps import block_views
from riebench.report.plots import plot_points
from riebench.scoring.profiles import metric_format
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.records import EditRecord, ScoreRecord

CATEGORIES = ("change_object", "change_color")
METRICS = ("clip_gain", "clip_gain_2", "lpips", "structure")
STRENGTHS = (0.5, 1.0, 2.0)
NUMBER = re.compile(r"\d")

Scores = Mapping[str, float]


def add_run(
    results: Path, name: str, fails: tuple[str, ...] = (), odd: Mapping[str, Scores] | None = None,
    planned: tuple[str, ...] = CATEGORIES,
) -> RunFolder:  # fmt: skip
    """Store a scored run of four examples a category.

    Args:
        results: results folder.
        name: of the setting.
        fails: categories in which every unit fails.
        planned: all its categories.
        odd: example -> metric -> its score at every strength.
    """
    folder = RunFolder(
        results / "toy" / "toy-turbo" / name, make_spec(name=name, block_mode="together", strengths=STRENGTHS)
    )
    keys = [
        make_key(example_id=f"{category}-{i}", category=category, task=category, strength=strength)
        for category in planned for i in range(4) for strength in STRENGTHS
    ]  # fmt: skip
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            if key.category in fails:
                record = EditRecord(key=key, status="error", reason="no way")
                run.append(record)
                run.append_scores(
                    ScoreRecord(unit=key.digest, metric=m, version=1, picture="error", reason="not_run")
                    for m in METRICS
                )
                continue
            record = make_record(key, f"images/{key.digest}.png", "0" * 64)
            run.append(record)
            usual = {"clip_gain": 0.01, "clip_gain_2": 0.01, "lpips": key.strength / 10, "structure": 0.02}
            run.append_scores(
                make_score(record, value).model_copy(update={"metric": metric})
                for metric, value in {**usual, **(odd or {}).get(key.example_id, {})}.items()
            )
    return RunFolder(folder.path)


ODD: dict[str, dict[str, Scores]] = {
    "overflows": {f"change_object-{i}": {"lpips": 1e308, "clip_gain": 1.7e308} for i in range(4)},
    "absurd": {f"{category}-{i}": {m: -1.7e308 for m in METRICS} for category in CATEGORIES for i in range(4)},
    "huge": {"change_color-1": {"lpips": 9e89, "clip_gain": -9e89, "structure": 1e12}},
    "tiny": {"change_color-2": {"lpips": 1e-308}},
}
"""Setting -> example -> scores of absurd size: sums overflow, all are absurd, below the limit, next to nothing."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of settings that work, fail, fail in one category, and have scores of absurd size."""
    place = tmp_path_factory.mktemp("results")
    add_run(place, "works")
    add_run(place, "broken", fails=CATEGORIES)
    add_run(place, "half", fails=("change_color",))
    for name, odd in ODD.items():
        add_run(place, name, odd=odd)
    return place


@pytest.fixture(scope="module")
def texts(results: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Everything that shows the results, by its name; no sum of theirs overflows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return outputs(results, tmp_path_factory.mktemp("out"))


def outputs(results: Path, out: Path) -> dict[str, str]:
    """Make everything that shows results; return all texts by their names."""
    folders = find_run_folders(results)
    texts = {path.name: text for path, text in table_texts(folders).items()}
    texts["leaderboard.md"] = leaderboard_text(results)
    for path in export(folders, out / "exports"):
        if path.suffix in (".csv", ".tex"):
            texts[f"exports/{path.name}"] = path.read_text()
    for path in (out / "exports").rglob("*.parquet"):
        texts[f"exports/{path.name}"] = pd.read_parquet(path).to_csv(index=False)
    write_report(results, out / "report")
    for path in (out / "report").rglob("*"):
        if path.suffix in (".html", ".js") and path.parent.name != "assets":
            texts[f"report/{path.name}"] = path.read_text()
    with redirect_stdout(StringIO()) as printed:
        print_per_block(folders)
    texts["printed"] = printed.getvalue()
    return texts


def cells_of(text: str, name: str) -> Iterator[list[str]]:
    """Yield the cells of all rows that begin with a setting's name, in any of the formats."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"[|│&]", line.strip("|│\\ "))]
        if cells[0].split(" ")[0] == name and len(cells) > 2:
            yield cells


def test_a_setting_that_failed_has_no_number_anywhere(results: Path, texts: dict[str, str], tmp_path: Path) -> None:
    shown = 0
    for name in ("per_block.md", "leaderboard.md", "per_method.md", "exports/per_block.tex", "exports/per_method.tex"):
        for cells in cells_of(texts[name], "broken"):
            values = [cell for cell in cells[2:] if re.match(r"^(–|--|[+-]?\d)", cell) and "failed" not in cell]
            assert all(re.fullmatch(r"(–|--)( 0/\d+)?", cell) or cell == cells[-1] for cell in values), (name, cells)
            shown += len(values)
    for cells in cells_of(texts["printed"], "broken"):
        assert [cell for cell in cells[2:] if cell != "–"] == ["0/8"], cells
        shown += len(cells)
    assert shown > 100
    for name in ("per_block.csv", "per_method.csv", "exports/configurations.csv", "exports/configurations.parquet"):
        rows = [row for row in csv.DictReader(texts[name].splitlines()) if row["setting"] == "broken"]
        assert rows
        for row in rows:
            assert row["mean"] == row["ci_low"] == row["ci_high"] == "" and row["n_scored"] == "0" and row["n_expected"]
            assert row["n_examples"] == row["n_seeds"] == "0"
    (row,) = (row for row in csv.DictReader(texts["exports/methods.csv"].splitlines()) if row["method"] == "broken")
    assert row["score"] == row["lpips"] == row["detectable"] == row["rank"] == "" and "24 units failed" in row["notes"]
    (group,) = read_groups(results)
    points, unscored = plot_points(group.configurations)
    without = {"broken", "absurd"}
    assert {point.setting for point in points} == {"works", "half", *ODD} - without
    assert unscored == len(without) * len(STRENGTHS)
    assert "broken" not in {view.label for view in block_views(group)}
    # Alone it has no number either.
    alone = add_run(tmp_path / "alone", "broken", fails=CATEGORIES)
    tables = table_texts([alone])
    text = tables[alone.path.parent / "tables" / "per_block.md"]
    assert "– 0/8" in text and "0.00" not in text + leaderboard_text(tmp_path / "alone")


def test_a_category_that_failed_has_no_number(results: Path, texts: dict[str, str]) -> None:
    for one in configurations(stored(results, "half")):
        for metric in METRICS:
            row = one.row(metric, "change_color")
            assert (row.mean, row.ci_low, row.ci_high, row.n_scored, row.n_expected) == (None, None, None, 0, 4)
            assert one.row(metric, "change_object").n_scored == 4
            assert mean(one, metric, ["change_color"]) is None and mean(one, metric, ["change_object"]) is not None
        # Over all categories failures count as pictures left alone, so that failing does not pay.
        assert one.row("clip_gain", EVERYTHING).mean == pytest.approx(0.005)
    found = [cells for cells in cells_of(texts["per_block.md"], "half") if cells[1] == "all"]
    assert len(found) == len(STRENGTHS) * len(METRICS) and all(cells[3] == "– 0/4" for cells in found)


def test_failures_enter_no_area(texts: dict[str, str]) -> None:
    rows = {row["method"]: row for row in csv.DictReader(texts["exports/methods.csv"].splitlines())}
    assert rows["works"]["score"]
    for name in ("half", "broken"):
        assert rows[name]["score"] == rows[name]["rank"] == "" and "units failed" in rows[name]["notes"]


def test_what_failed_for_one_method_is_not_expected_of_another(tmp_path: Path) -> None:
    add_run(tmp_path, "half", fails=("change_color",))
    add_run(tmp_path, "works", planned=("change_object",))
    comparison = MethodComparison(tuple(entries(find_run_folders(tmp_path))), replicates=20)
    standings = {standing.entry.name: standing for standing in comparison.standings()}
    assert standings["works"].area is not None and standings["half"].area is None
    assert set(comparison.examples.categories) == {"change_object"}


def test_scores_of_absurd_size_break_nothing(results: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        if not name.startswith("report/") or name.endswith(".js"):
            assert not re.search(r"(?<![A-Za-z])[+-]?(inf|nan|Infinity|NaN)(?![A-Za-z])", text), name
    assert max(map(len, texts["per_block.md"].splitlines())) < 2000
    for name in ("per_block.md", "per_method.md", "leaderboard.md"):
        assert "which are no measurements" in texts[name], name
    for name, odd in ODD.items():
        left_out = Counter[str]()
        for one in configurations(stored(results, name)):
            left_out.update(one.outsized)
            for metric in METRICS:
                given = [odd.get(f"{c}-{i}", {}).get(metric, 0) for c in CATEGORIES for i in range(4)]
                scored = sum(abs(value) <= LARGEST_SCORE for value in given)
                row = one.row(metric, EVERYTHING)
                assert row.n_scored == scored and (row.mean is None) is not bool(scored)
                assert all(value is None or np.isfinite(value) for value in (row.mean, row.ci_low, row.ci_high))
        huge = Counter(m for scores in odd.values() for m, value in scores.items() if abs(value) > LARGEST_SCORE)
        assert left_out == {metric: n * len(STRENGTHS) for metric, n in huge.items()}


def stored(results: Path, name: str) -> RunFolder:
    """Return the run folder of a setting."""
    return RunFolder(results / "toy" / "toy-turbo" / name)


def test_large_numbers_are_printed_by_their_size() -> None:
    form = metric_format("clip_gain")
    assert form.number(1e308) == "+1.00e+310" and form.number(-3e20) == "-3.00e+22"
    assert form.number(0.0123) == "+1.23" and form.number(-0.0) == "0.00"
    assert metric_format("lpips").number(1e9) == "1.00e+9" and metric_format("lpips").number(12.5) == "12.500"

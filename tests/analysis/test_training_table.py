"""The table of what supervised methods cost to train."""

from __future__ import annotations

from pathlib import Path

from records import make_key, make_record, make_spec

from riebench.analysis.compare.training import training_costs, training_table
from riebench.store.folder import RunFolder
from riebench.store.records import Training
from riebench.utils.markup import csv_rows


def stored(results: Path, name: str, seconds: dict[str, float]) -> RunFolder:
    """A run of two strengths whose examples took so long to learn from; without any, one that learned nothing."""
    folder = RunFolder(results / "toy" / "toy-turbo" / name, make_spec(name=name, strengths=(1.0, 2.0)))
    keys = [make_key(example_id=one, strength=strength) for one in seconds or ("a",) for strength in (1.0, 2.0)]
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            record = make_record(key, f"images/{key.digest}.png", "0" * 64)
            if seconds:
                cost = seconds[key.example_id]
                learned = Training(examples=8, fold=0, folds=3, evaluations=64, gradients=128, seconds=cost)
                record = record.model_copy(update={"training": learned})
            run.append(record)
    return folder


def test_an_edits_training_counts_once_whatever_its_strengths(tmp_path: Path) -> None:
    folders = [stored(tmp_path, "learned", {"a": 1.0, "b": 4.0}), stored(tmp_path, "plain", {})]
    (cost,) = training_costs(folders)
    assert (cost.setting, cost.edits, cost.seconds, cost.fit_evaluations) == ("learned", 2, 2.5, 128)
    table = training_table(training_costs(folders))
    assert table is not None
    assert "| learned | 8.0 | 3 | 64 | 128 | 2.5 | 2 |" in table[0].markdown()
    assert csv_rows(table[1].splitlines())[0]["seconds"] == "2.5"


def test_without_training_there_is_no_table(tmp_path: Path) -> None:
    assert training_table(training_costs([stored(tmp_path, "plain", {})])) is None
